"""The two convolution blocks of the ECG networks as one CPU operation, several times as fast as separate layers.

    conv(5) ReLU, max-pool 4, conv(k) ReLU, max-pool 4, global max-pool       (all "valid", stride 1)

Three identities make it cheap without changing the function:
- ReLU and adding a channel's bias can be done after the maximum;
- a max-pool of 4 followed by a global max-pool is one maximum over all positions that the pooling covers;
- the gradient of a maximum is zero except at one position, so the backward pass needs one window per channel.

If maxima are equal, the first position gets the gradient; torch may divide it among them. Equal maxima come from equal
windows (flat pieces, zero padding), and for these the gradients of the weights are the same either way. A NaN in the
input gives a NaN in the output, so a training that diverges is noticed.

Channels are the last axis everywhere (w1 (5, C1), w2 (C2, k * C1) with the offset before the channel), so that the
innermost loops run over them and become vector instructions.

Shapes: B batch, L samples, P positions, C1 and C2 channels after the first and the second block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.compiled import compiled
from kdlib.errors import KDError

# Constants for the compiler, which unrolls the loops over them.
TAPS = 5
POOL = 4


@compiled
def _first_block(x, w1, b1, h, winner1):  # type: ignore[no-untyped-def]
    """Write h (B, P, C1) = relu(max over 4 of conv(x (B, L), w1) + b1); winner1: which of the 4, or -1 if h is 0."""
    for n in range(h.shape[0]):
        for p in range(h.shape[1]):
            for c in range(h.shape[2]):
                best, which = np.float32(-np.inf), np.int8(0)
                for j in range(POOL):
                    value = x[n, POOL * p + j] * w1[0, c]
                    for k in range(1, TAPS):
                        value += x[n, POOL * p + j + k] * w1[k, c]
                    larger = value > best or value != value
                    which = np.int8(j) if larger else which
                    best = value if larger else best
                best += b1[c]
                h[n, p, c] = np.float32(0) if best <= 0 else best
                winner1[n, p, c] = np.int8(-1) if best <= 0 else which


@compiled
def _maximum(y, b2, out, winner2):  # type: ignore[no-untyped-def]
    """Write out (B, C2) = relu(max over positions of y (B, P, C2) + b2); winner2: the position of the maximum."""
    for n in range(y.shape[0]):
        out[n] = y[n, 0]
        winner2[n] = 0
        for p in range(1, y.shape[1]):
            for c in range(y.shape[2]):
                larger = y[n, p, c] > out[n, c] or y[n, p, c] != y[n, p, c]
                winner2[n, c] = np.int32(p) if larger else winner2[n, c]
                out[n, c] = y[n, p, c] if larger else out[n, c]
        for c in range(y.shape[2]):
            value = out[n, c] + b2[c]
            out[n, c] = np.float32(0) if value <= 0 else value


@compiled
def _second_gradients(g, out, winner2, h, gw2, gb2):  # type: ignore[no-untyped-def]
    """Add the gradients of w2 and b2 to gw2 and gb2, for the gradient g (B, C2) of out."""
    flat, row, channels, width = h.reshape(h.size), h[0].size, h.shape[2], gw2.shape[1]
    for c in range(g.shape[1]):
        total = gw2[c]
        for n in range(g.shape[0]):
            if out[n, c] > 0:
                start = n * row + winner2[n, c] * channels
                window = flat[start : start + width]
                gb2[c] += g[n, c]
                for q in range(width):
                    total[q] += g[n, c] * window[q]


@compiled
def _first_gradients(g, out, winner2, w2, winner1, x, gw1, gb1):  # type: ignore[no-untyped-def]
    """Add the gradients of w1 and b1 to gw1 and gb1, for the gradient g (B, C2) of out."""
    gh = np.empty(winner1.shape[1:], np.float32)
    reached = np.empty(winner1.shape[1], np.bool_)
    for n in range(g.shape[0]):
        _row_gradient(g[n], out[n], winner2[n], w2, gh, reached)
        _row_first_gradients(gh, reached, winner1[n], x[n], gw1, gb1)


@compiled
def _row_gradient(g, out, winner2, w2, gh, reached):  # type: ignore[no-untyped-def]
    """Write gh (P, C1), the gradient of one row's h for g (C2) of its out; reached (P): where it may differ from 0."""
    gh[:] = 0
    reached[:] = False
    flat, channels, width = gh.reshape(gh.size), gh.shape[1], w2.shape[1]
    for c in range(g.size):
        if out[c] > 0:
            first, v, w = winner2[c], g[c], w2[c]
            window = flat[first * channels : first * channels + width]
            for q in range(width):
                window[q] += v * w[q]
            reached[first : first + width // channels] = True


@compiled
def _row_first_gradients(gh, reached, winner1, x, gw1, gb1):  # type: ignore[no-untyped-def]
    zero = np.float32(0)
    for p in range(gh.shape[0]):
        if reached[p]:
            for c in range(gh.shape[1]):
                v, j = gh[p, c], winner1[p, c]
                v0, v1 = v if j == 0 else zero, v if j == 1 else zero
                v2, v3 = v if j == 2 else zero, v if j == 3 else zero
                gb1[c] += v0 + v1 + v2 + v3
                for k in range(TAPS):
                    s = POOL * p + k
                    gw1[k, c] += v0 * x[s] + v1 * x[s + 1] + v2 * x[s + 2] + v3 * x[s + 3]


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        batch, length = x.shape
        c1, (c2, _, k2) = len(w1), w2.shape
        used = ((length - TAPS + 1) // POOL - k2 + 1) // POOL * POOL  # positions of conv(k) that its pooling covers
        reach = used + k2 - 1  # positions of the first block that these need
        h = torch.empty(batch, reach, c1)
        winner1 = torch.empty(batch, reach, c1, dtype=torch.int8)
        _first_block(x.numpy(), w1.view(c1, TAPS).t().contiguous().numpy(), b1.numpy(), h.numpy(), winner1.numpy())
        flat_w2 = w2.permute(0, 2, 1).reshape(c2, k2 * c1)
        windows = h.as_strided((batch, used, k2 * c1), (reach * c1, c1, 1)).reshape(batch * used, k2 * c1)
        y = (windows @ flat_w2.t()).view(batch, used, c2)
        out = torch.empty(batch, c2)
        winner2 = torch.empty(batch, c2, dtype=torch.int32)
        _maximum(y.numpy(), b2.numpy(), out.numpy(), winner2.numpy())
        ctx.save_for_backward(x, flat_w2, h, winner1, winner2, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, flat_w2, h, winner1, winner2, out = ctx.saved_tensors
        g, at, chosen = grads[0].contiguous().numpy(), out.detach().numpy(), winner2.numpy()
        c1, c2 = h.shape[2], len(flat_w2)
        gw1, gb1, gw2, gb2 = torch.zeros(TAPS, c1), torch.zeros(c1), torch.zeros_like(flat_w2), torch.zeros(c2)
        _second_gradients(g, at, chosen, h.numpy(), gw2.numpy(), gb2.numpy())
        _first_gradients(g, at, chosen, flat_w2.numpy(), winner1.numpy(), x.numpy(), gw1.numpy(), gb1.numpy())
        return None, gw1.t().unsqueeze(1), gb1, gw2.view(c2, -1, c1).permute(0, 2, 1), gb2


def features(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Return the features (B, C2) of rows x (B, L), float32 on the CPU, with torch's Conv1d weights; no gradient to x.

    Raises KDError for another device or dtype, a first kernel other than 5, or rows too short for one pooled position.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        raise KDError(
            f"expected float32 rows on the CPU that need no gradient, found {x.dtype} on {x.device}"
            f"{', requires_grad' if x.requires_grad else ''}; use torch's own layers for these"
        )
    if w1.shape[1:] != (1, TAPS):
        raise KDError(
            f"expected first weights of shape (filters, 1, {TAPS}), found {tuple(w1.shape)}; "
            "use torch's own layers for another kernel"
        )
    shortest = POOL * (POOL + w2.shape[2] - 1) + TAPS - 1
    if x.shape[1] < shortest:
        raise KDError(f"expected rows of at least {shortest} samples, found {x.shape[1]}; pad the rows")
    result: Tensor = _Features.apply(x.contiguous(), w1, b1, w2, b2)  # type: ignore[no-untyped-call]
    return result
