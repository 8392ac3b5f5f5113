"""The student's convolutions before a max-pool, in float32 on a CPU, without the gradients that are zero.

    h -> ReLU (max-pool 2 (convolution (ReLU (h))))

After the max-pool, one in four results of the convolution has a gradient, and ReLU takes away half of them. torch's
backward pass computes with all. Here, each result that has a gradient adds its 3 x 3 inputs to the gradient of its
kernel, and its kernel to the gradients of its inputs. The results are torch's but for rounding.

In memory the channels come last, so that three neighbouring inputs with all their channels are one row of numbers.

Shapes: B batch, C and D channels before and after, H x W positions of the inputs, h x w of the results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlib.compiled import AVAILABLE, compiled, gather_windows, spread_windows

ZERO = np.float32(0)
CHANNELS = 8  # of a vector; other numbers of channels are for torch's layers
CHUNK = np.uint64(24)  # of the numbers in a row of a kernel, as many as a window of kdlib.compiled has


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
    """Return x (B, C, H, W) as contiguous (B, H, W, C)."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = h.detach().relu_()
        results = channels_last(F.conv2d(h, weight, bias))
        batch, height, width, channels = results.shape
        out = results.new_empty(batch, height // 2, width // 2, channels)
        corners = torch.empty(out.shape, dtype=torch.uint8)
        _highest(results.numpy(), out.numpy(), corners.numpy())
        ctx.save_for_backward(h, weight, out, corners)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, weight, out, corners = ctx.saved_tensors
        before_relu = torch.ops.aten.threshold_backward(channels_last(gradient), out, 0)
        inputs, kernel = channels_last(h), channels_last(weight)  # kernel (D, 3, 3, C)
        of_inputs, of_kernel = torch.empty_like(inputs), torch.zeros_like(kernel)
        _backward(*(array.numpy() for array in (before_relu, corners, inputs, kernel, of_inputs, of_kernel)))
        return of_inputs.permute(0, 3, 1, 2), of_kernel.permute(0, 3, 1, 2), before_relu.sum((0, 1, 2))


@compiled
def _highest(results, out, corners):  # type: ignore[no-untyped-def]
    """Write the highest of each 2 x 2 results (B, H, W, D), or 0, and which of the four it is, the first of equal ones.

    NaN is higher than all numbers, as in torch.
    """
    channels, two = (
        np.uint64(results.shape[3]),
        np.uint64(2),
    )  # unsigned, so that no place is asked whether it is below 0
    for n in range(out.shape[0]):
        for i in range(out.shape[1]):
            upper, lower = results[n, 2 * i].reshape(-1), results[n, 2 * i + 1].reshape(-1)
            of_out, of_corners = out[n, i].reshape(-1), corners[n, i].reshape(-1)
            for j in range(np.uint64(out.shape[2])):
                at, to = two * j * channels, j * channels
                for k in range(channels):
                    highest, corner = upper[at + k], np.uint8(0)
                    second, third, fourth = upper[at + channels + k], lower[at + k], lower[at + channels + k]
                    if second > highest or second != second:
                        highest, corner = second, np.uint8(1)
                    if third > highest or third != third:
                        highest, corner = third, np.uint8(2)
                    if fourth > highest or fourth != fourth:
                        highest, corner = fourth, np.uint8(3)
                    of_out[to + k] = ZERO if highest <= ZERO else highest
                    of_corners[to + k] = corner


@compiled
def _backward(gradient, corners, inputs, kernel, of_inputs, of_kernel):  # type: ignore[no-untyped-def]
    """Write the gradients of inputs (B, H, W, C), before their ReLU, and add to those of a kernel (D, 3, 3, C).

    gradient and corners are (B, h, w, D).
    """
    height, width, channels = inputs.shape[1:]
    length = width * channels
    row, three = np.uint64(length), np.uint64(3 * channels)
    w, of_w = kernel.reshape(-1), of_kernel.reshape(-1)
    part = np.empty_like(of_w)  # of one picture, so that a sum of many numbers loses less
    places, factors = np.empty(gradient.shape[2], np.uint64), np.empty(gradient.shape[2], np.float32)
    rows = gradient.shape[1]
    for n in range(gradient.shape[0]):
        h, of_h = inputs[n].reshape(-1), of_inputs[n].reshape(-1)
        bits = of_h.view(np.uint32)
        part[:] = ZERO
        for i in range(rows):
            # Rows of gradients are begun and finished here, while they are in the processor's cache.
            of_h[(2 * i + 2 if i else 0) * length : (2 * i + 4 if i < rows - 1 else height) * length] = ZERO
            for k in range(gradient.shape[3]):
                found = 0
                for j in range(gradient.shape[2]):  # a zero is written over by the next: there is no branch to guess
                    corner = corners[n, i, j, k]
                    at = (2 * i + (corner >> 1)) * width + 2 * j + (corner & 1)
                    places[found], factors[found] = np.uint64(at * channels), gradient[n, i, j, k]
                    found += factors[found] != ZERO
                count, start = np.uint64(found), np.uint64(3 * k) * three
                for chunk in range(np.uint64(0), three, CHUNK):
                    if chunk:
                        for t in range(found):
                            places[t] += CHUNK
                    gather_windows(part, start + chunk, three, h, row, places, factors, count)
                    spread_windows(w, start + chunk, three, of_h, row, places, factors, count)
            done = slice(2 * i * length, (2 * i + 2 if i < rows - 1 else height) * length)
            before, after = h[done], bits[done]
            for k in range(after.size):  # of ReLU, without a branch, too
                after[k] &= np.uint32(0) - np.uint32(before[k] > ZERO)
        for k in range(part.size):
            of_w[k] += part[k]
