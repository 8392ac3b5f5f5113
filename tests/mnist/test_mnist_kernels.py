"""The fused convolution block against torch's own layers, in float32 and in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import KDError
from replications.mnist.kernels import features


def layers(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, weight, bias)), 2).permute(0, 2, 3, 1).flatten(1)


def weights(filters: int = 32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [0.4 * torch.randn(filters, 1, 3, 3, generator=g), 0.1 * torch.randn(filters, generator=g)]


def pictures(kind: str, batch: int, size: tuple[int, int] = (28, 28)) -> Tensor:
    g = torch.Generator().manual_seed(7)
    x = torch.randint(256, (batch, 1, *size), generator=g).float() / 255
    if kind == "framed":  # as digits are: many equal windows, where maxima tie
        x[:, :, :6] = x[:, :, -6:] = x[:, :, :, :6] = x[:, :, :, -6:] = 0
    return torch.zeros_like(x) if kind == "black" else x


def value_and_gradients(function, x: Tensor, parameters: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in parameters]
    value = function(x, *leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream)]


@pytest.mark.parametrize("size", [(28, 28), (7, 10), (4, 4)])
@pytest.mark.parametrize("batch", [32, 1])
@pytest.mark.parametrize("kind", ["random", "framed", "black"])
def test_values_and_gradients_equal_torch_layers_in_both_precisions(kind, batch, size):
    x, w = pictures(kind, batch, size), weights()
    shape = layers(x, *w).shape
    g = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    ours = value_and_gradients(features, x, w, g)
    single = value_and_gradients(layers, x, w, g)
    double = value_and_gradients(layers, x.double(), [p.double() for p in w], g.double())
    assert [t.shape for t in ours] == [t.shape for t in single]
    # In float64 another place may be the maximum where two are equal but for rounding.
    for mine, theirs, exact in zip(ours, single, double, strict=True):
        scale = max(exact.abs().max().item(), 1e-3)
        assert (mine - theirs).abs().max().item() <= 2e-5 * scale
        assert (mine - exact).abs().max().item() <= 1e-4 * scale


def test_a_weight_that_is_not_a_number_comes_out_as_such():
    w, b = weights()
    w[3] = float("nan")
    out = features(pictures("random", 2), w, b).view(2, 13, 13, 32)
    assert out[..., 3].isnan().all()
    assert not out[..., 4].isnan().any()


def test_the_gradient_of_a_strided_upstream_is_the_same():
    x, (w, b) = pictures("random", 4), weights()
    g = torch.randn(5408, 4, generator=torch.Generator().manual_seed(9)).t()
    mine, theirs = (value_and_gradients(features, x, [w, b], upstream) for upstream in (g, g.contiguous()))
    assert all(torch.equal(a, c) for a, c in zip(mine, theirs, strict=True))


@pytest.mark.parametrize(
    ("x", "filters", "words"),
    [
        (torch.zeros(2, 1, 28, 28, dtype=torch.float64), (32, 1, 3, 3), "float32 pictures on the CPU"),
        (torch.zeros(2, 1, 28, 28, requires_grad=True), (32, 1, 3, 3), "requires_grad"),
        (torch.zeros(2, 1, 28, 28), (32, 1, 5, 5), "weights of shape"),
        (torch.zeros(2, 3, 28, 28), (32, 1, 3, 3), "pictures of one channel"),
        (torch.zeros(2, 1, 3, 28), (32, 1, 3, 3), "at least 4 x 4 pixels"),
    ],
)
def test_what_the_block_cannot_do_is_refused(x, filters, words):
    with pytest.raises(KDError, match=words):
        features(x, torch.zeros(filters), torch.zeros(32))
