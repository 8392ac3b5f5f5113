"""The convolution by tiles against torch's in float64: values, gradients, sizes that are no multiple of a tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from kdlib import winograd
from kdlib.compiled import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="numba is not there: the layers are torch's")
SIZES = [(4, 4), (8, 12), (7, 9), (14, 14), (1, 1), (5, 2), (3, 16)]


def layer_of(before: int = 32, after: int = 48) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(before, after, 3, padding=1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def value_and_gradients(function, layer: nn.Conv2d, x: Tensor, g: Tensor) -> list[Tensor]:
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(leaf)
    return [value.detach(), *torch.autograd.grad(value, [leaf, layer.weight, layer.bias], g)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_values_and_gradients_are_those_of_the_convolution_in_float64(height, width, last):
    layer, memory = layer_of(), torch.channels_last if last else torch.contiguous_format
    x = drawn(3, 32, height, width).contiguous(memory_format=memory)
    g = drawn(3, 48, height, width, seed=2).contiguous(memory_format=memory)
    found = value_and_gradients(lambda leaf: winograd.convolution(leaf, layer), layer, x, g)
    exact = layer_of().double()
    wanted = value_and_gradients(exact, exact, x.double(), g.double())
    assert "_Convolution" in winograd.convolution(x.requires_grad_(), layer).grad_fn.name()
    for mine, right in zip(found, wanted, strict=True):
        assert mine.shape == right.shape
        assert (mine.double() - right).abs().max() <= 2e-5 * right.abs().max()


def test_the_matrices_are_those_of_the_convolution():
    """A^T [(G w) * (B^T d)] is the correlation of d and w in one dimension (Lavin and Gray 2015, Equation 9)."""
    draws = np.random.default_rng(0)
    d, w = draws.normal(size=6), draws.normal(size=3)
    assert winograd.A_T @ ((winograd.G @ w) * (winograd.B_T @ d)) == pytest.approx(
        np.correlate(d, w, "valid"), rel=1e-12
    )


def test_pictures_without_a_gradient_get_none():
    layer = layer_of()
    winograd.convolution(drawn(1, 32, 4, 4), layer).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_the_same_input_gives_the_same_bytes():
    layer, x = layer_of(), drawn(4, 32, 12, 12)
    first, second = (
        value_and_gradients(lambda y: winograd.convolution(y, layer), layer, x, drawn(4, 48, 12, 12)) for _ in "12"
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_nan_is_not_hidden():
    x = drawn(1, 32, 8, 8)
    x[0, 3, 2, 2] = torch.nan
    value = winograd.convolution(x, layer_of())
    assert value[0, :, 1:4, 1:4].isnan().all()


@pytest.mark.parametrize("channels", [(31, 48), (32, 31)])
def test_a_layer_of_few_channels_is_torchs(channels):
    layer = layer_of(*channels)
    x = drawn(2, channels[0], 4, 4)
    assert torch.equal(winograd.convolution(x, layer), layer(x))


def test_bfloat16_and_float64_are_torchs():
    layer, x = layer_of(), drawn(2, 32, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(winograd.convolution(x, layer), layer(x))
    layer.double()
    assert torch.equal(winograd.convolution(x.double(), layer), layer(x.double()))


def test_without_numba_the_layer_is_torchs(monkeypatch):
    monkeypatch.setattr(winograd, "AVAILABLE", False)
    layer, x = layer_of(), drawn(2, 32, 4, 4)
    assert torch.equal(winograd.convolution(x, layer), layer(x))


@pytest.mark.parametrize(
    "how",
    [
        {"padding_mode": "reflect"},
        {"padding_mode": "circular"},
        {"dilation": 2},
        {"stride": 2},
        {"padding": "same"},
        {"padding": 0},
        {"bias": False},
        {"groups": 2},
    ],
    ids=str,
)
def test_another_convolution_is_torchs(how):
    layer = nn.Conv2d(32, 64, 3, **({"padding": 1} | how))
    x = drawn(2, 32, 9, 7)
    assert torch.equal(winograd.convolution(x, layer), layer(x))


def test_one_picture_without_a_batch_and_another_kernel_are_torchs():
    assert torch.equal(winograd.convolution(drawn(32, 9, 7), layer := layer_of()), layer(drawn(32, 9, 7)))
    layer = nn.Conv2d(32, 48, 5, padding=1)
    assert torch.equal(winograd.convolution(drawn(2, 32, 9, 7), layer), layer(drawn(2, 32, 9, 7)))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class StandardisedWithin(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


def with_hook(layer):
    layer.register_forward_hook(lambda layer, inputs, outputs: 2 * outputs)
    return layer


def with_old_norm(layer):
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(layer)
    with torch.no_grad():
        layer.weight_g += 1  # the layer's weight is as before until the layer is called
    return layer


def pruned(layer):
    nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    with torch.no_grad():
        layer.weight_orig += 1
    return layer


def with_own_forward(layer):
    layer.forward = lambda x: 2 * nn.Conv2d.forward(layer, x)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Standardised(32, 32, 3, padding=1),
        lambda: StandardisedWithin(32, 32, 3, padding=1),
        lambda: with_hook(layer_of(32, 32)),
        lambda: with_old_norm(layer_of(32, 32)),
        lambda: pruned(layer_of(32, 32)),
        lambda: with_own_forward(layer_of(32, 32)),
    ],
)
def test_a_layer_that_does_something_else_with_its_weights_is_called(layer):
    made, x = layer(), drawn(2, 32, 9, 7)
    found = winograd.convolution(x, made)
    assert torch.equal(found, made(x))


def test_a_layer_with_torchs_parametrizations_is_computed_by_tiles():
    layer, x = nn.utils.parametrizations.weight_norm(layer_of()), drawn(2, 32, 9, 7)
    with torch.no_grad():
        layer.parametrizations.weight.original0 += 1
    found = winograd.convolution(x, layer)
    assert not torch.equal(found, layer(x))
    torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-4)
