"""The student's convolutions before a max-pool, in float32 on a CPU, without the gradients that are zero.

    h -> ReLU (max-pool 2 (convolution (ReLU (h))))

After the max-pool, one in four results of the convolution has a gradient, and ReLU takes away half of them. torch's
backward pass computes with all. Here, each result that has a gradient adds its 3 x 3 inputs to the gradient of its
kernel, and its kernel to the gradients of its inputs. The first ReLU's gradient is taken picture by picture, while it
is in the processor's cache. The results are torch's but for rounding, and a training step of the student takes two
thirds of the time (tests/benchmarks/test_xray_speed.py).

In memory the channels come last, so that three neighbouring inputs with all their channels are one row of numbers.

Shapes: B batch, C and D channels before and after the convolution, H x W positions of its inputs, h x w of the results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlib.compiled import AVAILABLE, add_multiple, compiled

ZERO = np.float32(0)
CHANNELS = 8  # of a vector; other numbers of channels are for torch's layers
THREE = 3 * CHANNELS


def pooled(h: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return relu(max-pool 2 (layer(relu(h)))) (B, D, h, w) for h (B, C, H, W), a 3 x 3 convolution without padding.

    h is changed in place.
    """
    plain = h.device.type == "cpu" and h.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    plain = plain and not torch.compiler.is_exporting()  # an exported network has torch's own layers
    if not AVAILABLE or not plain or layer.in_channels % CHANNELS:
        # ReLU after the max-pool gives the same numbers and gradients as before it, with less work.
        return F.relu(F.max_pool2d(layer(F.relu_(h)), 2))
    result: Tensor = _Pooled.apply(h, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


def channels_last(x: Tensor) -> Tensor:
    return x.detach().permute(0, 2, 3, 1).contiguous()


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = h.detach().relu_()
        highest, places = F.max_pool2d_with_indices(F.conv2d(h, weight, bias), [2, 2])
        out = F.relu_(highest)
        ctx.save_for_backward(h, weight, out, places)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, weight, out, places = ctx.saved_tensors
        masked = channels_last(torch.where(out > 0, gradient, 0))
        inputs, kernel = channels_last(h), channels_last(weight)  # kernel (D, 3, 3, C)
        of_inputs, of_kernel = torch.empty_like(inputs), torch.zeros_like(kernel)
        arrays = masked, channels_last(places), inputs, kernel, of_inputs, of_kernel
        _pooled_backward(*(array.numpy() for array in arrays))
        return of_inputs.permute(0, 3, 1, 2), of_kernel.permute(0, 3, 1, 2), masked.sum((0, 1, 2))


@compiled
def _pooled_backward(gradient, places, inputs, kernel, of_inputs, of_kernel):  # type: ignore[no-untyped-def]
    """Write the gradients of inputs (B, H, W, C), before their ReLU, and add to those of a kernel (D, 3, 3, C).

    places (B, h, w, D) are positions among the (H - 2) * (W - 2) results before the max-pool.
    """
    height, width, channels = inputs.shape[1:]
    row, three = np.uint64(width * channels), np.uint64(3 * channels)
    h, w, of_h, of_w = inputs.reshape(-1), kernel.reshape(-1), of_inputs.reshape(-1), of_kernel.reshape(-1)
    part = np.empty_like(of_w)  # of one picture, so that a sum of many numbers loses less
    for n in range(gradient.shape[0]):
        own, of_own = inputs[n].reshape(-1), of_inputs[n].reshape(-1)
        part[:] = of_own[:] = ZERO
        for i in range(gradient.shape[1]):
            for j in range(gradient.shape[2]):
                for k in range(gradient.shape[3]):
                    g, place = gradient[n, i, j, k], places[n, i, j, k]
                    if g == ZERO:
                        continue
                    down = 2 * i + (place >= (2 * i + 1) * (width - 2))
                    at = np.uint64((n * height * width + place + 2 * down) * channels)
                    start = np.uint64(3 * k) * three
                    for _ in range(3):
                        for c in range(np.uint64(0), three, np.uint64(THREE)):
                            add_multiple(of_h, at + c, g, w, start + c, THREE)
                            add_multiple(part, start + c, g, h, at + c, THREE)
                        at += row
                        start += three
        for k in range(part.size):
            of_w[k] += part[k]
        bits = of_own.view(np.uint32)
        for k in range(of_own.size):  # without a branch, which a processor guesses wrong half of the time
            bits[k] &= np.uint32(0) - np.uint32(own[k] > ZERO)
