"""Dropout from fewer random bits, as one CPU operation in the forward pass and one in the backward pass.

It uses 16 random bits for a number; torch uses 64. The dropped share is p to within 1e-5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlib.compiled import AVAILABLE, compiled, narrow, wide
from replications.course_report.kernels import DTYPES, ZERO, Array, array


@compiled
def _keep(x, words, least, scale, out):  # type: ignore[no-untyped-def]
    """Write out = x * scale where a word is at least `least`, else 0. All arrays are flat."""
    for k in range(x.size):
        out[k] = narrow(wide(x[k]) * (scale if words[k] >= least else ZERO), out)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        ctx.how = words.view(torch.int16).numpy(), round(p * 2**16) - 2**15, np.float32(1 / (1 - p))
        return _Dropout.kept(x, *ctx.how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Dropout.kept(gradient, *ctx.how), None

    @staticmethod
    def kept(x: Tensor, words: Array, least: int, scale: np.float32) -> Tensor:
        # In the order of memory with the channels last, which is the same in both passes.
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()
        out = torch.empty_like(x)
        flat, result = (array(t.as_strided((t.numel(),), (1,))) for t in (x, out))
        _keep(flat, words, least, scale, result)
        return out


def dropped(x: Tensor, p: float) -> Tensor:
    """Return x, on a CPU, with dropped values 0 and the others scaled by 1 / (1 - p); draw from torch's generator."""
    result: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return result


class Dropout(nn.Dropout):
    """Dropout with probability p, on a CPU as one operation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x after dropout in training, otherwise x."""
        if self.training and AVAILABLE and x.device.type == "cpu" and x.dtype in (*DTYPES, torch.float64):
            return dropped(x, self.p)
        return super().forward(x)
