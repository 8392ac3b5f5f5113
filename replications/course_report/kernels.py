"""ReLU, batch norm and max-pool as one CPU operation.

    max-pool 2 (batch norm (ReLU (z)))        (the max-pool is optional)

Separate layers write every intermediate picture to memory and read it again. Here z is read twice in the forward pass
and twice in the backward pass. In the benchmark, a training step of ta_chain's network of 2 convolutions takes 0.6 of
the time of separate layers, one of its network of 10 takes 0.9.

Batch norm is linear in a channel, so its maximum over a window is at one position of ReLU(z), and only that value is
normalised. If maxima are equal, the first position gets the gradient, as in torch. Sums are float32 within a picture,
less the mean of the first picture, and float64 over pictures. A NaN in the input gives a NaN in the output, so a
training that diverges is noticed.

In memory the channels come last, so that the innermost loops run over a row, or over the channels, and become vector
instructions.

Shapes: B batch, C channels, H x W positions, R = W * C numbers of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlib.compiled import AVAILABLE, compiled, narrow, wide
from kdlib.errors import KDError
from kdlib.networks import keras_batch_norm

Array = np.ndarray[Any, Any]
ZERO = np.float32(0)
DTYPES = (torch.float32, torch.bfloat16)


@compiled
def _moments(z, sums):  # type: ignore[no-untyped-def]
    """Add to sums (2, C) the sums over z (B, H, R) of relu(z) - shift and of its square; return shift (R).

    shift holds the means of relu(z[0]) by channel.
    """
    shift, total = np.zeros(z.shape[2], np.float32), np.zeros(sums.shape[1], np.float32)
    for p in range(z.shape[1]):
        for k in range(shift.size):
            v = wide(z[0, p, k])
            shift[k] += ZERO if v <= 0 else v
    _gather(shift, total)
    for k in range(shift.size):
        shift[k] = total[k % total.size] * np.float32(total.size / z[0].size)
    first, second = np.empty_like(shift), np.empty_like(shift)  # of one picture
    for n in range(z.shape[0]):
        first[:], second[:] = ZERO, ZERO
        for p in range(z.shape[1]):
            x = z[n, p]
            for k in range(shift.size):
                v = wide(x[k])
                d = (ZERO if v <= 0 else v) - shift[k]
                first[k] += d
                second[k] += d * d
        _gather(first, sums[0])
        _gather(second, sums[1])
    return shift


@compiled
def _gather(row, sums):  # type: ignore[no-untyped-def]
    """Add the numbers of each channel in a row (R) to sums (C)."""
    for start in range(0, row.size, sums.size):
        for c in range(sums.size):
            sums[c] += row[start + c]


@compiled
def _normalise(z, scale, offset, out):  # type: ignore[no-untyped-def]
    """Write out (B, H, R) = scale * relu(z) + offset."""
    for n in range(z.shape[0]):
        for p in range(z.shape[1]):
            x, y = z[n, p], out[n, p]
            for k in range(scale.size):
                v = wide(x[k])
                y[k] = narrow((ZERO if v <= 0 else v) * scale[k] + offset[k], y)


@compiled
def _choose(z, scale, chosen, which):  # type: ignore[no-untyped-def]
    """Write chosen (B, H/2, W/2, C): from each 2 x 2 window of relu(z (B, H, W, C)) the value with the largest product.

    The product is value * scale; which: the place of the value among the 4.
    """
    for n in range(chosen.shape[0]):
        for i in range(chosen.shape[1]):
            for j in range(chosen.shape[2]):
                z0, z1, z2, z3 = (
                    z[n, 2 * i, 2 * j],
                    z[n, 2 * i, 2 * j + 1],
                    z[n, 2 * i + 1, 2 * j],
                    z[n, 2 * i + 1, 2 * j + 1],
                )
                y, w = chosen[n, i, j], which[n, i, j]
                for c in range(scale.size):
                    best, at = wide(z0[c]), np.uint8(0)
                    best = ZERO if best <= 0 else best
                    x = wide(z1[c])
                    x = ZERO if x <= 0 else x
                    at = np.uint8(1) if x * scale[c] > best * scale[c] else at
                    best = x if x * scale[c] > best * scale[c] else best
                    x = wide(z2[c])
                    x = ZERO if x <= 0 else x
                    at = np.uint8(2) if x * scale[c] > best * scale[c] else at
                    best = x if x * scale[c] > best * scale[c] else best
                    x = wide(z3[c])
                    x = ZERO if x <= 0 else x
                    w[c] = np.uint8(3) if x * scale[c] > best * scale[c] else at
                    y[c] = narrow(x if x * scale[c] > best * scale[c] else best, y)


@compiled
def _products(g, z, mean, sums):  # type: ignore[no-untyped-def]
    """Add to sums (2, C) the sums over g (B, H, R) of g and of g * (relu(z) - mean (R))."""
    first, second = np.empty_like(mean), np.empty_like(mean)  # of one picture
    for n in range(z.shape[0]):
        first[:], second[:] = ZERO, ZERO
        for p in range(z.shape[1]):
            v, x = g[n, p], z[n, p]
            for k in range(mean.size):
                a, b = wide(v[k]), wide(x[k])
                first[k] += a
                second[k] += a * ((ZERO if b <= 0 else b) - mean[k])
        _gather(first, sums[0])
        _gather(second, sums[1])


@compiled
def _back(g, z, scale, constant, slope, gz):  # type: ignore[no-untyped-def]
    """Write gz (B, H, R) = scale * g - (constant + slope * z) where z > 0, else 0."""
    for n in range(z.shape[0]):
        for p in range(z.shape[1]):
            v, x, y = g[n, p], z[n, p], gz[n, p]
            for k in range(scale.size):
                b = wide(x[k])
                d = scale[k] * wide(v[k]) - (constant[k] + slope[k] * b)
                y[k] = narrow(ZERO if b <= 0 else d, y)


@compiled
def _back_through_pool(g, which, z, scale, constant, slope, gz):  # type: ignore[no-untyped-def]
    """Do the same for g (B, H/2, W/2, C), which goes to one position of each window only."""
    for n in range(g.shape[0]):
        for i in range(g.shape[1]):
            for j in range(g.shape[2]):
                v, w = g[n, i, j], which[n, i, j]
                for k in range(4):
                    x, y = z[n, 2 * i + k // 2, 2 * j + k % 2], gz[n, 2 * i + k // 2, 2 * j + k % 2]
                    for c in range(scale.size):
                        b = wide(x[c])
                        d = (scale[c] * wide(v[c]) if w[c] == k else ZERO) - (constant[c] + slope[c] * b)
                        y[c] = narrow(ZERO if b <= 0 else d, y)


class _ReluNormPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pictures: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
        z = array(pictures.permute(0, 2, 3, 1).contiguous())
        width, channels = z.shape[2:]
        count = z.size // channels
        sums = np.zeros((2, channels))
        shift = _moments(_rows(z), sums)
        excess, square = sums / count
        mean, variance = shift[:channels] + excess, square - excess**2
        _follow(norm, mean, variance * count / (count - 1))
        inverse = 1 / np.sqrt(variance + norm.eps)
        scale = (weight.numpy() * inverse).astype(np.float32)
        offset = (bias.numpy() - mean * weight.numpy() * inverse).astype(np.float32)
        which = None
        if pool:
            chosen = np.empty((len(z), z.shape[1] // 2, width // 2, channels), z.dtype)
            which = np.empty(chosen.shape, np.uint8)
            _choose(z, scale, chosen, which)
        else:
            chosen = z
        out = torch.empty(chosen.shape, dtype=pictures.dtype)
        _normalise(_rows(chosen), _tiled(scale, chosen), _tiled(offset, chosen), _rows(array(out)))
        ctx.kept = z, chosen, which, mean, inverse, scale
        return out.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        z, chosen, which, mean, inverse, scale = ctx.kept
        g, count = array(gradient.permute(0, 2, 3, 1).contiguous()), z.size // z.shape[-1]
        of_bias, of_scale = sums = np.zeros((2, z.shape[-1]))
        _products(_rows(g), _rows(chosen), _tiled(mean, chosen), sums)
        # With r = relu(z), m and v its mean and variance:
        # d/dr = scale * (g - mean of g - (r - m) / v * mean of g (r - m)).
        slope = scale * of_scale * inverse**2 / count
        constant = scale * of_bias / count - slope * mean
        result = torch.empty(z.shape, dtype=gradient.dtype)
        if which is None:
            _back(_rows(g), _rows(z), _tiled(scale, z), _tiled(constant, z), _tiled(slope, z), _rows(array(result)))
        else:
            _back_through_pool(g, which, z, scale, constant.astype(np.float32), slope.astype(np.float32), array(result))
        of_weight = torch.from_numpy((of_scale * inverse).astype(np.float32))
        return result.permute(0, 3, 1, 2), of_weight, torch.from_numpy(of_bias.astype(np.float32)), None, None


def array(pictures: Tensor) -> Array:
    """Return the memory of a float32 tensor, or of a bfloat16 one as uint16: NumPy and numba have no bfloat16."""
    return (pictures.view(torch.uint16) if pictures.dtype == torch.bfloat16 else pictures).numpy()


def _rows(pictures: Array) -> Array:
    """Return pictures (B, H, W, C) as rows (B, H, R)."""
    return pictures.reshape(len(pictures), pictures.shape[1], -1)


def _tiled(values: Array, pictures: Array) -> Array:
    """Return values (C) repeated for each position of a row (R)."""
    return np.tile(values.astype(np.float32), pictures.shape[2])


def _follow(norm: nn.BatchNorm2d, mean: Array, variance: Array) -> None:
    """Move the moving averages a step towards the moments of this batch."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    for average, found in ((norm.running_mean, mean), (norm.running_var, variance)):
        values = average.numpy()
        values += np.float32(norm.momentum) * (found.astype(np.float32) - values)


def relu_norm_pool(z: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
    """Return ReLU, batch norm and, if `pool`, max-pool 2 of z (B, C, H, W), float32 or bfloat16 on a CPU.

    `norm` acts as in training: it uses the moments of this batch, and its moving averages take a step. Raises KDError
    for another device or dtype, a batch of one value per channel, or a max-pool of an odd height or width.
    """
    if z.device.type != "cpu" or z.dtype not in DTYPES:
        raise KDError(
            f"expected float32 or bfloat16 on the CPU, found {z.dtype} on {z.device}; use torch's own layers for these"
        )
    if z[:, 0].numel() < 2:
        raise KDError(f"expected more than one value per channel, found shape {tuple(z.shape)}; use a larger batch")
    if pool and (z.shape[2] % 2 or z.shape[3] % 2):
        raise KDError(
            f"expected an even height and width to pool, found {tuple(z.shape[2:])}; use torch's own layers for these"
        )
    result: Tensor = _ReluNormPool.apply(z, norm.weight, norm.bias, norm, pool)  # type: ignore[no-untyped-call]
    return result


class ReluNormPool(nn.Module):
    """ReLU, then batch norm, then the layer's max-pool if it has one; in training on a CPU all in one operation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = keras_batch_norm(channels, dims=2)
        assert isinstance(norm, nn.BatchNorm2d)
        self.norm = norm
        self.pool: nn.Module = nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        if AVAILABLE and self.training and z.device.type == "cpu" and z.dtype in DTYPES:
            return relu_norm_pool(z, self.norm, isinstance(self.pool, nn.MaxPool2d))
        result: Tensor = self.pool(self.norm(F.relu(z)))
        return result
