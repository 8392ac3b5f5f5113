"""ReLU, batch norm and max-pool as one CPU operation, and dropout from fewer random bits.

    max-pool 2 (batch norm (ReLU (z)))        (the max-pool only where asked for)

Separate layers write every intermediate picture to memory and read it back.  Here z is read twice on the way forward and twice
on the way back: the benchmark has a training step of the network of 2 at 0.6 of the time, one of 10 at 0.9.  Batch norm
is linear in a channel, so its maximum over a window is at one position of ReLU(z), and that value alone is normalised.  Where
maxima tie, the first position gets the gradient, as in torch.  Sums run in float32 within a picture, shifted by the first
picture's mean, and in float64 over pictures.  A NaN comes out as NaN, so that a training that diverges is noticed.

Shapes: B batch, C channels, H x W positions; in memory the channels come last, so that the innermost loops run over them and
become vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlib.compiled import compiled
from kdlib.errors import KDError

ZERO = np.float32(0)


@compiled
def _moments(z, shift, first, second):  # type: ignore[no-untyped-def]
    """Adds to first and second (B, C) the sums over positions of relu(z (B, P, C)) - shift (C) and of its square."""
    for n in range(z.shape[0]):
        s, q = first[n], second[n]
        for p in range(z.shape[1]):
            x = z[n, p]
            for c in range(s.size):
                d = (ZERO if x[c] <= 0 else x[c]) - shift[c]
                s[c] += d
                q[c] += d * d


@compiled
def _normalise(z, scale, offset, out):  # type: ignore[no-untyped-def]
    """out (B, P, C) = scale * relu(z) + offset."""
    for n in range(z.shape[0]):
        for p in range(z.shape[1]):
            x, y = z[n, p], out[n, p]
            for c in range(scale.size):
                y[c] = (ZERO if x[c] <= 0 else x[c]) * scale[c] + offset[c]


@compiled
def _choose(z, scale, chosen, which):  # type: ignore[no-untyped-def]
    """chosen (B, H/2, W/2, C): of each 2 x 2 window of relu(z (B, H, W, C)) what is largest times scale; which: of the 4."""
    for n in range(chosen.shape[0]):
        for i in range(chosen.shape[1]):
            for j in range(chosen.shape[2]):
                z0, z1, z2, z3 = z[n, 2 * i, 2 * j], z[n, 2 * i, 2 * j + 1], z[n, 2 * i + 1, 2 * j], z[n, 2 * i + 1, 2 * j + 1]
                y, w = chosen[n, i, j], which[n, i, j]
                for c in range(scale.size):
                    best, at = ZERO if z0[c] <= 0 else z0[c], np.int32(0)
                    x = ZERO if z1[c] <= 0 else z1[c]
                    at = np.int32(1) if x * scale[c] > best * scale[c] else at
                    best = x if x * scale[c] > best * scale[c] else best
                    x = ZERO if z2[c] <= 0 else z2[c]
                    at = np.int32(2) if x * scale[c] > best * scale[c] else at
                    best = x if x * scale[c] > best * scale[c] else best
                    x = ZERO if z3[c] <= 0 else z3[c]
                    w[c] = np.int32(3) if x * scale[c] > best * scale[c] else at
                    y[c] = x if x * scale[c] > best * scale[c] else best


@compiled
def _products(g, z, mean, first, second):  # type: ignore[no-untyped-def]
    """Adds to first and second (B, C) the sums over positions of g (B, P, C) and of g * (relu(z) - mean (C))."""
    for n in range(z.shape[0]):
        s, q = first[n], second[n]
        for p in range(z.shape[1]):
            v, x = g[n, p], z[n, p]
            for c in range(s.size):
                s[c] += v[c]
                q[c] += v[c] * ((ZERO if x[c] <= 0 else x[c]) - mean[c])


@compiled
def _back(g, z, scale, constant, slope, gz):  # type: ignore[no-untyped-def]
    """gz (B, P, C) = scale * g - (constant + slope * z) where z > 0, else 0."""
    for n in range(z.shape[0]):
        for p in range(z.shape[1]):
            v, x, y = g[n, p], z[n, p], gz[n, p]
            for c in range(scale.size):
                d = scale[c] * v[c] - (constant[c] + slope[c] * x[c])
                y[c] = ZERO if x[c] <= 0 else d


@compiled
def _back_through_pool(g, which, z, scale, constant, slope, gz):  # type: ignore[no-untyped-def]
    """The same for g (B, H/2, W/2, C), which reaches one position of each window alone."""
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            for j in range(g.shape[2]):
                v, w = g[n, i, j], which[n, i, j]
                for k in range(4):
                    x, y = z[n, 2 * i + k // 2, 2 * j + k % 2], gz[n, 2 * i + k // 2, 2 * j + k % 2]
                    for c in range(scale.size):
                        d = (scale[c] * v[c] if w[c] == k else ZERO) - (constant[c] + slope[c] * x[c])
                        y[c] = ZERO if x[c] <= 0 else d


class _ReluNormPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
        z = pictures.permute(0, 2, 3, 1).contiguous().numpy()
        rows = z.reshape(len(z), -1, z.shape[-1])  # (B, H * W, C)
        count = rows.shape[0] * rows.shape[1]
        shift = np.maximum(rows[0], ZERO).mean(0)
        first, second = np.zeros((2, len(z), z.shape[-1]), np.float32)
        _moments(rows, shift, first, second)
        excess = first.sum(0, dtype=np.float64) / count
        mean, variance = shift + excess, second.sum(0, dtype=np.float64) / count - excess**2
        _follow(norm, mean, variance * count / (count - 1))
        inverse = 1 / np.sqrt(variance + norm.eps)
        scale = (weight.numpy() * inverse).astype(np.float32)
        offset = (bias.numpy() - mean * weight.numpy() * inverse).astype(np.float32)
        which = None
        if pool:
            chosen = np.empty((len(z), z.shape[1] // 2, z.shape[2] // 2, z.shape[3]), np.float32)
            which = np.empty(chosen.shape, np.int32)
            _choose(z, scale, chosen, which)
        else:
            chosen = z
        out = torch.empty(chosen.shape)
        _normalise(_rows(chosen), scale, offset, _rows(out.numpy()))
        ctx.kept = z, chosen, which, mean, inverse, scale
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, chosen, which, mean, inverse, scale = ctx.kept
        g, count = gradient.permute(0, 2, 3, 1).contiguous().numpy(), z.size // z.shape[-1]
        first, second = np.zeros((2, len(z), z.shape[-1]), np.float32)
        _products(_rows(g), _rows(chosen), mean.astype(np.float32), first, second)
        of_bias, of_scale = first.sum(0, dtype=np.float64), second.sum(0, dtype=np.float64)
        # With r = relu(z), m and v its mean and variance: d/dr = scale * (g - mean of g - (r - m) / v * mean of g (r - m)).
        slope = scale * of_scale * inverse**2 / count
        constant = (scale * of_bias / count - slope * mean).astype(np.float32)
        result = torch.empty(z.shape)
        if which is None:
            _back(_rows(g), _rows(z), scale, constant, slope.astype(np.float32), _rows(result.numpy()))
        else:
            _back_through_pool(g, which, z, scale, constant, slope.astype(np.float32), result.numpy())
        of_weight = torch.from_numpy((of_scale * inverse).astype(np.float32))
        return result.permute(0, 3, 1, 2), of_weight, torch.from_numpy(of_bias.astype(np.float32)), None, None


def _rows(pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return pictures.reshape(len(pictures), -1, pictures.shape[-1])


def _follow(norm: nn.BatchNorm2d, mean: np.ndarray[Any, Any], variance: np.ndarray[Any, Any]) -> None:
    """Let the moving averages take a step towards this batch's."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(torch.from_numpy(mean).float(), norm.momentum)
    norm.running_var.lerp_(torch.from_numpy(variance).float(), norm.momentum)


def relu_norm_pool(z: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
    """max-pool 2 (where `pool`) of batch norm, by this batch's moments, of ReLU of z (B, C, H, W), float32 on the CPU.

    `norm` is as in training: its moving averages take a step.  Raises KDError for another device or dtype, a batch of one
    value per channel, and a max-pool of an odd height or width.
    """
    if z.device.type != "cpu" or z.dtype != torch.float32:
        raise KDError(f"expected float32 on the CPU, found {z.dtype} on {z.device}; use torch's own layers for these")
    if z[:, 0].numel() < 2:
        raise KDError(f"expected more than one value per channel, found shape {tuple(z.shape)}; use a larger batch")
    if pool and (z.shape[2] % 2 or z.shape[3] % 2):
        raise KDError(f"expected an even height and width to pool, found {tuple(z.shape[2:])}; use torch's own layers for these")
    result: Tensor = _ReluNormPool.apply(z, norm.weight, norm.bias, norm, pool)  # type: ignore[no-untyped-call]
    return result


class Dropout(nn.Dropout):
    """Dropout that spends 16 random bits on a number on the CPU, where torch spends 64; p is met to within 1e-5."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale what is kept by 1 / (1 - p); draws from torch's global generator."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        mask = torch.empty_like(x)
        flat = mask.as_strided((x.numel(),), (1,))  # in the order of memory, whichever axis is last
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        flat.copy_(words.view(torch.int16)[: x.numel()] >= round(self.p * 2**16) - 2**15)
        return x * mask.mul_(1 / (1 - self.p))
