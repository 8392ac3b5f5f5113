"""Convolutions as matrix products, for many small students on one device.

A stack of R students turns each convolution into one of R groups. With few channels a group has little to do, and a
device's matrix units wait. As a product of unfolded pictures it is R products of usual matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ConvolutionsAsProducts", "convolution_as_product"]


class ConvolutionsAsProducts(TorchFunctionMode):
    """Within `with ConvolutionsAsProducts():` convolutions of stride 1 without groups are matrix products."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func`, or a product in place of a convolution."""
        if func is torch.conv2d and not kwargs:
            filled: tuple[Any, ...] = (*args, *_DEFAULTS[len(args) :])
            inputs, weight, bias, stride, padding, dilation, groups = filled
            if _pair(stride) == _pair(dilation) == (1, 1) and groups == 1 and not isinstance(padding, str):
                return convolution_as_product(inputs, weight, bias, _pair(padding))
        return func(*args, **kwargs or {})


_DEFAULTS = (None, None, None, 1, 0, 1, 1)  # of torch.conv2d's arguments


def convolution_as_product(inputs: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Return the convolution (B, O, H', W') of inputs (B, C, H, W) and weight (O, C, h, w), with stride 1.

    It is weight (O, Chw) @ unfolded inputs (Chw, BH'W'). Under autocast the inputs are cast before they are unfolded.
    """
    kind = inputs.device.type
    if torch.is_autocast_enabled(kind):
        inputs = inputs.to(torch.get_autocast_dtype(kind))
    padded = F.pad(inputs, (padding[1], padding[1], padding[0], padding[0]))
    (count, channels, height, width), (filters, _, h, w) = padded.shape, weight.shape
    height, width = height - h + 1, width - w + 1
    shifted = [padded[:, :, i : i + height, j : j + width] for i in range(h) for j in range(w)]
    unfolded = torch.stack(shifted).permute(2, 0, 1, 3, 4).reshape(channels * h * w, count * height * width)
    product = weight.reshape(filters, -1) @ unfolded
    if bias is not None:
        product = product + bias.to(product.dtype).unsqueeze(1)
    return product.view(filters, count, height, width).transpose(0, 1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
