"""The 3x3 convolution of float32 training steps on a CPU with a quarter of the multiplications.

In Lavin and Gray 2015 (arXiv 1509.09308, Section 4.3, F(4x4, 3x3)), a 4x4 tile of outputs depends on a 6x6 tile d of
inputs. With w the 3x3 kernel, * the product number by number, and A, B and G small matrices, it is

    A^T [ (G w G^T) * (B^T d B) ] A

so 36 multiplications do what took 144. Summed over the channels, each of the 36 is a matrix product. The gradients are
made of the same tiles. The result is the convolution's but for rounding: it is right to about 1e-5 of its largest
number, where torch's convolution has 3e-6. A step of VGG16's layers takes a third of the time, one of 32 channels five
sixths (tests/benchmarks/test_winograd_speed.py).

Shapes: B batch, C and D channels before and after, H x W positions, N = B * (H/4) * (W/4) tiles, both rounded up.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kdlib.checks import computes_as
from kdlib.compiled import AVAILABLE, compiled

__all__ = ["convolution"]

FEWEST = 32  # channels, before and after: with fewer, making the tiles takes longer than the products save

B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
B, A = np.ascontiguousarray(B_T.T), np.ascontiguousarray(A_T.T)
OF_KERNEL = torch.tensor(np.kron(G, G), dtype=torch.float32, device="cpu")  # (36, 9)
CONSTANT = 7  # A^T m A is 1 everywhere if m is 1 at its second row and column and 0 elsewhere: there the bias is added


def convolution(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Return what `layer` does with x (B, C, H, W): outputs (B, D, H, W).

    A convolution of 3x3 with a bias, stride 1 and one zero around the pictures is computed by tiles in float32 on a
    CPU, if there are 32 channels or more before and after; any other, and one with code of its own or with hooks, by
    `layer`.
    """
    if not computes_as(layer, nn.Conv2d):
        return cast(Tensor, layer(x))
    bias, usual = layer.bias, layer.padding == layer.stride == layer.dilation == (1, 1)
    if bias is None or layer.kernel_size != (3, 3) or not usual or layer.padding_mode != "zeros" or x.ndim != 4:
        return cast(Tensor, layer(x))
    plain = x.device.type == "cpu" and x.dtype == layer.weight.dtype == torch.float32
    plain = plain and not torch.compiler.is_exporting()  # an exported network has torch's layers
    many = min(layer.in_channels, layer.out_channels) >= FEWEST and layer.groups == 1
    tiled = AVAILABLE and plain and many and not torch.is_autocast_enabled("cpu")
    result: Tensor = _Convolution.apply(x, layer.weight, bias) if tiled else layer(x)  # type: ignore[no-untyped-call]
    return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        height, width = x.shape[2:]
        padded = F.pad(x.detach().permute(0, 2, 3, 1), (0, 0, 1, 1 + -width % 4, 1, 1 + -height % 4)).contiguous()
        outputs = padded.new_empty(len(x), padded.shape[1] - 2, padded.shape[2] - 2, len(weight))
        tiles = padded.new_empty(36, outputs[..., 0].numel() // 16, x.shape[1])
        _to_tiles(padded.numpy(), tiles.numpy())
        rows = weight.detach().permute(2, 3, 0, 1).reshape(9, -1)
        kernel = (OF_KERNEL @ rows).view(36, len(weight), -1)  # (36, D, C)
        products = torch.bmm(tiles, kernel.transpose(1, 2))
        products[CONSTANT] += bias.detach()
        _from_products(products.numpy(), outputs.numpy())
        ctx.save_for_backward(tiles, kernel)
        return outputs[:, :height, :width].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        tiles, kernel = ctx.saved_tensors
        height, width = gradient.shape[2:]
        padded = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, -width % 4, 0, -height % 4)).contiguous()
        products = padded.new_empty(36, tiles.shape[1], padded.shape[3])
        _to_products(padded.numpy(), products.numpy())
        of_kernel = torch.bmm(products.transpose(1, 2), tiles)  # (36, D, C)
        of_weight = (OF_KERNEL.t() @ of_kernel.view(36, -1)).view(3, 3, *of_kernel.shape[1:]).permute(2, 3, 0, 1)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_padded = padded.new_zeros(len(padded), padded.shape[1] + 2, padded.shape[2] + 2, tiles.shape[2])
            _from_tiles(torch.bmm(products, kernel).numpy(), of_padded.numpy())
            of_x = of_padded[:, 1 : 1 + height, 1 : 1 + width].permute(0, 3, 1, 2)
        return of_x, of_weight, gradient.sum((0, 2, 3))


# ---- The innermost loops. With unsigned numbers numba does not look for negative indices, so they become vector
# instructions: of C numbers if they make columns of a tile, of W * C if they make rows.


@compiled
def _four(m, source, between, step, out, out_step, count, size):  # type: ignore[no-untyped-def]
    """Write out[j * out_step + c] = the sum of m[i] * source[i * between + j * step + c] over i < 4.

    It does so for j < count and c < size.
    """
    m0, m1, m2, m3 = m[0], m[1], m[2], m[3]
    one, two, three = np.uint64(between), np.uint64(2 * between), np.uint64(3 * between)
    for j in range(count):
        s, o = source[j * step :], out[j * out_step :]
        for c in range(np.uint64(size)):
            o[c] = m0 * s[c] + m1 * s[one + c] + m2 * s[two + c] + m3 * s[three + c]


@compiled
def _six(m, source, between, step, out, out_step, count, size):  # type: ignore[no-untyped-def]
    """Write the same sum over i < 6."""
    m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
    one, two, three = np.uint64(between), np.uint64(2 * between), np.uint64(3 * between)
    four, five = np.uint64(4 * between), np.uint64(5 * between)
    for j in range(count):
        s, o = source[j * step :], out[j * out_step :]
        for c in range(np.uint64(size)):
            half = m0 * s[c] + m1 * s[one + c] + m2 * s[two + c]
            o[c] = half + m3 * s[three + c] + m4 * s[four + c] + m5 * s[five + c]


@compiled
def _add_six(m, source, between, step, out, out_step, count, size):  # type: ignore[no-untyped-def]
    """Add the sum over i < 6 to out."""
    m0, m1, m2, m3, m4, m5 = m[0], m[1], m[2], m[3], m[4], m[5]
    one, two, three = np.uint64(between), np.uint64(2 * between), np.uint64(3 * between)
    four, five = np.uint64(4 * between), np.uint64(5 * between)
    for j in range(count):
        s, o = source[j * step :], out[j * out_step :]
        for c in range(np.uint64(size)):
            half = m0 * s[c] + m1 * s[one + c] + m2 * s[two + c]
            o[c] += half + m3 * s[three + c] + m4 * s[four + c] + m5 * s[five + c]


# ---- Between pictures and tiles, a row of tiles at a time: first one side of the tiles, then the other.


@compiled
def _to_tiles(x, tiles):  # type: ignore[no-untyped-def]
    """Write tiles (36, N, C) = B^T d B for each 6 x 6 tile d of x (B, H + 2, W + 2, C)."""
    batch, height, width, c = x.shape
    row, down, across = width * c, (height - 2) // 4, (width - 2) // 4
    rows, flat = x.reshape(-1), tiles.reshape(36, -1)
    strip = np.empty((6, row), np.float32)
    n = 0
    for k in range(batch * down):
        first = k // down * height + 4 * (k % down)
        for p in range(6):
            _six(B_T[p], rows[first * row :], row, 0, strip[p], 0, 1, row)
        for p in range(6):
            for q in range(6):
                _six(B_T[q], strip[p], c, 4 * c, flat[6 * p + q, n:], c, across, c)
        n += across * c


@compiled
def _from_tiles(tiles, x):  # type: ignore[no-untyped-def]
    """Add B t B^T to each 6 x 6 tile of x (B, H + 2, W + 2, C), for tiles t (36, N, C): the transpose of _to_tiles."""
    batch, height, width, c = x.shape
    row, down, across = width * c, (height - 2) // 4, (width - 2) // 4
    between = tiles.shape[1] * c
    rows, flat = x.reshape(-1), tiles.reshape(-1)
    strip = np.empty((6, row), np.float32)
    n = 0
    for k in range(batch * down):
        first = k // down * height + 4 * (k % down)
        strip[:] = np.float32(0)
        for p in range(6):
            for q in range(6):
                _add_six(B[q], flat[6 * p * between + n :], between, c, strip[p, q * c :], 4 * c, across, c)
        for p in range(6):
            _add_six(B[p], strip.reshape(-1), row, 0, rows[(first + p) * row :], 0, 1, row)
        n += across * c


@compiled
def _from_products(products, y):  # type: ignore[no-untyped-def]
    """Write y (B, H, W, D) = A^T m A for each 4 x 4 tile, for products m (36, N, D)."""
    batch, height, width, c = y.shape
    row, across, between = width * c, width // 4, products.shape[1] * c
    rows, flat = y.reshape(-1), products.reshape(-1)
    strip = np.empty((6, row), np.float32)
    n = 0
    for first in range(0, batch * height, 4):
        for p in range(6):
            for q in range(4):
                _six(A_T[q], flat[6 * p * between + n :], between, c, strip[p, q * c :], 4 * c, across, c)
        for p in range(4):
            _six(A_T[p], strip.reshape(-1), row, 0, rows[(first + p) * row :], 0, 1, row)
        n += across * c


@compiled
def _to_products(y, products):  # type: ignore[no-untyped-def]
    """Write products (36, N, D) = A y A^T for each 4 x 4 tile of y (B, H, W, D): the transpose of _from_products."""
    batch, height, width, c = y.shape
    row, across = width * c, width // 4
    rows, flat = y.reshape(-1), products.reshape(36, -1)
    strip = np.empty((6, row), np.float32)
    n = 0
    for first in range(0, batch * height, 4):
        for p in range(6):
            _four(A[p], rows[first * row :], row, 0, strip[p], 0, 1, row)
        for p in range(6):
            for q in range(6):
                _four(A[q], strip[p], c, 4 * c, flat[6 * p + q, n:], c, across, c)
        n += across * c
