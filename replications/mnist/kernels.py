"""The convolution block of the MNIST networks as one CPU operation, several times as fast as separate layers.

    conv 3x3 "valid", bias, max-pool 2, ReLU        (one input channel)

ReLU and adding a channel's bias can be done after the maximum. So only the maxima are kept, with their places: the
gradient is zero everywhere else. If maxima are equal, the first place gets the gradient, as in torch. A NaN in the
input gives a NaN in the output, so a training that diverges is noticed.

Channels are the last axis, so that the innermost loops run over them and become vector instructions. The flattened
features are in the order of Keras: row, column, channel.

Shapes: B batch, H x W pixels, P x Q positions after pooling, C channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdlib.compiled import compiled
from kdlib.errors import KDError

# Constants for the compiler, which unrolls the loops over them.
SIDE = 3
POOL = 2


@compiled
def _block(x, w, b, h, winner):  # type: ignore[no-untyped-def]
    """Write h (B, P, Q, C) = relu(max over 2 x 2 of conv(x (B, H, W), w (3, 3, C)) + b); winner: which of the 4.

    The winner is -1 if h is 0.
    """
    for n in range(h.shape[0]):
        for p in range(h.shape[1]):
            for q in range(h.shape[2]):
                for c in range(h.shape[3]):
                    best, which = np.float32(-np.inf), np.int8(0)
                    for j in range(POOL * POOL):
                        row, column = POOL * p + j // POOL, POOL * q + j % POOL
                        value = np.float32(0)
                        for k in range(SIDE):
                            for m in range(SIDE):
                                value += x[n, row + k, column + m] * w[k, m, c]
                        larger = value > best or value != value
                        which = np.int8(j) if larger else which
                        best = value if larger else best
                    best += b[c]
                    h[n, p, q, c] = np.float32(0) if best <= 0 else best
                    winner[n, p, q, c] = np.int8(-1) if best <= 0 else which


@compiled
def _gradients(g, winner, x, gw, gb):  # type: ignore[no-untyped-def]
    """Add the gradients of w and b to gw (3, 3, C) and gb (C), for the gradient g (B, P, Q, C) of h."""
    zero = np.float32(0)
    for n in range(g.shape[0]):
        for p in range(g.shape[1]):
            for q in range(g.shape[2]):
                v, j = g[n, p, q], winner[n, p, q]
                for c in range(v.size):
                    gb[c] += v[c] if j[c] >= 0 else zero
                for k in range(SIDE):
                    for m in range(SIDE):
                        r, s, total = POOL * p + k, POOL * q + m, gw[k, m]
                        x0, x1, x2, x3 = x[n, r, s], x[n, r, s + 1], x[n, r + 1, s], x[n, r + 1, s + 1]
                        for c in range(total.size):
                            seen = x0 if j[c] == 0 else zero
                            seen = x1 if j[c] == 1 else seen
                            seen = x2 if j[c] == 2 else seen
                            seen = x3 if j[c] == 3 else seen
                            total[c] += v[c] * seen


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        batch, height, width = x.shape
        pooled = batch, (height - SIDE + 1) // POOL, (width - SIDE + 1) // POOL, len(weight)
        h, winner = torch.empty(pooled), torch.empty(pooled, dtype=torch.int8)
        taps = weight.view(-1, SIDE, SIDE).permute(1, 2, 0).contiguous()
        _block(x.numpy(), taps.numpy(), bias.numpy(), h.numpy(), winner.numpy())
        ctx.save_for_backward(x, winner)
        return h.flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, winner = ctx.saved_tensors
        filters = winner.shape[3]
        gw, gb = torch.zeros(SIDE, SIDE, filters), torch.zeros(filters)
        _gradients(grads[0].contiguous().view(winner.shape).numpy(), winner.numpy(), x.numpy(), gw.numpy(), gb.numpy())
        return None, gw.permute(2, 0, 1).unsqueeze(1), gb


def features(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the features (B, P * Q * C) of pictures x (B, 1, H, W), float32 on the CPU, with torch's Conv2d weights.

    There is no gradient to x. Raises KDError for another device or dtype, several input channels, a kernel other than
    3x3, or pictures too small to pool.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        raise KDError(
            f"expected float32 pictures on the CPU that need no gradient, found {x.dtype} on {x.device}"
            f"{', requires_grad' if x.requires_grad else ''}; use torch's own layers for these"
        )
    if weight.shape[1:] != (1, SIDE, SIDE) or x.shape[1:2] != (1,):
        raise KDError(
            f"expected weights of shape (filters, 1, {SIDE}, {SIDE}) and pictures of one channel, found "
            f"{tuple(weight.shape)} and {tuple(x.shape)}; use torch's own layers for these"
        )
    if min(x.shape[2:]) < POOL + SIDE - 1:
        raise KDError(
            f"expected pictures of at least {POOL + SIDE - 1} x {POOL + SIDE - 1} pixels, found {tuple(x.shape[2:])}; "
            "pad the pictures"
        )
    result: Tensor = _Features.apply(x.squeeze(1).contiguous(), weight, bias)  # type: ignore[no-untyped-call]
    return result
