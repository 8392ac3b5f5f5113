"""The 3x3 convolution of training steps on a CPU: in bfloat16, with faster gradients where oneDNN's are slow.

In float32, a student of grid has the convolution by tiles of kdlib/winograd.py.

Small pictures: oneDNN's weight gradient in bfloat16 takes several times as long as its other two passes if the pictures
are small and the channels many. For 128 channels of 4x4, it takes 3 to 6 ms of one core with AMX, and the forward pass
0.5 to 1 ms. As one matrix product, of the outputs' gradient and the 9 shifted copies of the input, it takes 1 ms.

Large pictures: oneDNN's gradient of the input in bfloat16 takes three times as long as its forward pass for 32 channels
of 32x32 on a core without AMX. It is a forward pass, too: of the outputs' gradient, with the weights turned by 180
degrees and the roles of their channels exchanged. A matrix product with the 9 shifted copies does not pay here: in
float32, the product takes twice as long as oneDNN's gradient, and the copies three times as long.

Shapes: B batch, C and D channels before and after, H x W positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from kdlib import winograd

SMALL = 16  # positions of a picture: above this, oneDNN's own gradient of the weights is as fast
LARGE = 1024  # below this, its gradient of the input is as fast


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_x: Tensor = conv2d_input(x.shape, weight, gradient, padding=1)  # type: ignore[no-untyped-call]
        batch, channels, height, width = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()  # (B, H + 2, W + 2, C)
        b, h, w, c = padded.stride()
        shifted = padded.as_strided((batch, height, width, 3, 3, channels), (b, h, w, h, w, c)).reshape(
            -1, 9 * channels
        )
        of_outputs = gradient.permute(0, 2, 3, 1).reshape(len(shifted), -1)  # (B H W, D)
        of_weight = (of_outputs.t() @ shifted).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        return of_x, of_weight, of_outputs.sum(0)


class _LargeConvolution(_Convolution):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        turned = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
        of_x = F.conv2d(gradient, turned, padding=1)
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, True]
        )
        return of_x, of_weight, of_bias


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return a 3x3 "same" convolution with bias (B, D, H, W) of x (B, C, H, W) on a CPU."""
    if torch.is_autocast_enabled("cpu") and x.requires_grad and x.shape[2] * x.shape[3] >= LARGE:
        assert layer.bias is not None
        result: Tensor = _LargeConvolution.apply(*(t.bfloat16() for t in (x, layer.weight, layer.bias)))  # type: ignore[no-untyped-call]
        return result
    return winograd.convolution(x, layer)


class Convolution(nn.Conv2d):
    """A 3x3 "same" convolution with bias."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution (B, D, H, W) of x (B, C, H, W)."""
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and x.shape[2] * x.shape[3] <= SMALL:
            assert self.bias is not None
            result: Tensor = _Convolution.apply(*(t.bfloat16() for t in (x, self.weight, self.bias)))  # type: ignore[no-untyped-call]
            return result
        return super().forward(x)
