"""ReLU, batch norm and max-pool as one operation against torch's layers in float64; dropout from 16 bits a number."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor, nn

from kdlib.compiled import compiled, narrow, wide
from kdlib.errors import KDError
from kdlib.networks import keras_batch_norm
from replications.course_report.convolution import Convolution, convolved
from replications.course_report.dropout import Dropout
from replications.course_report.kernels import relu_norm_pool

SHAPES = [(64, 16, 8, 8), (3, 32, 4, 6), (1, 5, 2, 2), (8, 128, 4, 4)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(kind: str, shape: tuple[int, ...]) -> Tensor:
    z = drawn(*shape)
    if kind == "flat":  # many equal windows, where maxima tie: above and below zero
        z[:, :, : shape[2] // 2] = drawn(shape[1], seed=3).view(1, -1, 1, 1)
    if kind == "far":  # a deviation much smaller than the mean
        z = 100 + 0.1 * z
    return z.contiguous(memory_format=torch.channels_last)


def norm_of(channels: int) -> nn.BatchNorm2d:
    norm = keras_batch_norm(channels, dims=2)
    with torch.no_grad():
        norm.weight.copy_(
            drawn(channels, seed=1)
        )  # of both signs: under a negative one the smallest value is the maximum
        norm.bias.copy_(drawn(channels, seed=2))
    return norm


def layers(z: Tensor, norm: nn.BatchNorm2d, pool: bool) -> Tensor:
    h = norm(F.relu(z))
    return F.max_pool2d(h, 2) if pool else h


def all_of(function, z: Tensor, norm: nn.BatchNorm2d, pool: bool, rounded: torch.dtype | None = None) -> list[Tensor]:
    """Return value, gradients of z, weight and bias, and the moving averages after one step.

    The gradient of the value is rounded to the dtype `rounded` first.
    """
    leaf = z.clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(leaf, norm, pool)
    gradients = torch.autograd.grad(
        value, [leaf, norm.weight, norm.bias], drawn(*value.shape, seed=9).to(rounded or z.dtype).to(z.dtype)
    )
    return [value.detach(), *gradients, norm.running_mean, norm.running_var]


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["random", "flat", "far"])
def test_values_gradients_and_moving_averages_are_those_of_torchs_layers(kind, shape, pool):
    z = pictures(kind, shape)
    ours = all_of(relu_norm_pool, z, norm_of(shape[1]), pool)
    exact = all_of(layers, z.double(), norm_of(shape[1]).double(), pool)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert mine.shape == theirs.shape
        # Far from zero, float32 holds but four digits of what is left when the mean is taken off.
        assert (mine - theirs).abs().max() <= (2e-3 if kind == "far" else 2e-5) * max(theirs.abs().max(), 1e-2)


def test_the_gradient_is_that_of_finite_differences():
    z, norm = pictures("random", (2, 3, 4, 4)), norm_of(3)
    g = drawn(2, 3, 2, 2, seed=9)
    leaf = z.clone(memory_format=torch.preserve_format).requires_grad_()
    (found,) = torch.autograd.grad(relu_norm_pool(leaf, norm, True), [leaf], g)
    wide, double = z.double(), norm_of(3).double()
    for n, c, i, j in np.ndindex(*z.shape):
        if abs(z[n, c, i, j]) < 1e-3:
            continue  # at the bend of the ReLU
        steps = []
        for h in (1e-6, -1e-6):
            moved = wide.clone()
            moved[n, c, i, j] += h
            steps.append((layers(moved, double, True) * g).sum().item())
        assert found[n, c, i, j].item() == pytest.approx((steps[0] - steps[1]) / 2e-6, abs=1e-4)


def test_a_value_that_is_not_a_number_comes_out_as_such():
    z = pictures("random", (2, 4, 4, 4))
    z[1, 2, 3, 3] = float("nan")
    for pool, dtype in product((True, False), (torch.float32, torch.bfloat16)):
        out = relu_norm_pool(z.to(dtype), norm_of(4), pool)
        assert out[:, 2].isnan().all()
        assert not out[:, [0, 1, 3]].isnan().any()


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_rounded_once_on_the_way_in_and_out(shape, pool):
    z = pictures("random", shape).bfloat16()
    ours = all_of(relu_norm_pool, z, norm_of(shape[1]), pool)
    exact = all_of(layers, z.double(), norm_of(shape[1]).double(), pool, rounded=torch.bfloat16)
    value, gradient, *others = zip(ours, exact, strict=True)
    for mine, theirs in (value, gradient):
        assert mine.dtype == torch.bfloat16
        error = (mine.double() - theirs).abs()
        # Half a unit of bfloat16's 8 bits; near 0, the float32 rounding of terms as large as the largest.
        assert (error <= 2**-8 * theirs.abs() * 1.001 + 2e-5 * theirs.abs().max()).all()
    for mine, theirs in others:
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() <= 2e-5 * max(theirs.abs().max(), 1e-2)


def test_what_is_kept_as_bfloat16_is_the_nearest_one_with_ties_to_even():
    values = torch.cat(
        [drawn(10_000), torch.tensor([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.3e38, -3.4e38, 1e-40, float("inf")])]
    )
    bits = torch.empty(len(values), dtype=torch.bfloat16)
    store(values.numpy(), bits.view(torch.uint16).numpy())
    assert torch.equal(bits, values.bfloat16())
    back = torch.empty(len(values))
    store(bits.view(torch.uint16).numpy(), back.numpy())
    assert torch.equal(back, bits.float())
    odd = torch.tensor([0x7FFFFFFF, 0x7F800001, -1], dtype=torch.int32).view(torch.float32)  # not numbers
    store(odd.numpy(), bits[:3].view(torch.uint16).numpy())
    assert bits[:3].isnan().all()


@compiled
def store(values, out):
    for k in range(values.size):
        out[k] = narrow(wide(values[k]), out)


@pytest.mark.parametrize("pool", [True, False])
def test_the_layout_in_memory_does_not_matter(pool):
    z = pictures("random", (4, 8, 6, 6))
    mine, other = (all_of(relu_norm_pool, x, norm_of(8), pool) for x in (z, z.contiguous()))
    assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))


@pytest.mark.parametrize(
    ("z", "pool", "words"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.float64), True, "float32 or bfloat16 on the CPU"),
        (torch.zeros(1, 3, 1, 1), False, "more than one value per channel"),
        (torch.zeros(2, 3, 4, 5), True, "even height and width"),
    ],
)
def test_what_the_operation_cannot_do_is_refused(z, pool, words):
    with pytest.raises(KDError, match=words):
        relu_norm_pool(z, norm_of(3), pool)


@pytest.mark.parametrize(("side", "channels"), [(4, 32), (2, 5), (4, 1), (8, 16)])
def test_bfloat16_convolutions_have_the_gradients_of_torchs_in_float64(side, channels):
    """Up to the rounding of bfloat16, or to that of torch's own layer: some processors add in bfloat16."""
    torch.manual_seed(0)
    layer = Convolution(channels, 7)
    x = drawn(6, channels, side, side).contiguous(memory_format=torch.channels_last)
    g = drawn(6, 7, side, side, seed=9).bfloat16()
    plain = nn.Conv2d(channels, 7, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    ours, torchs = (value_and_gradients(module, x, g) for module in (layer, plain))
    exact = [t.detach().bfloat16().double().requires_grad_() for t in (x, *layer.parameters())]  # what autocast rounds
    value = F.conv2d(*exact, padding=1)
    wanted = [value, *torch.autograd.grad(value, exact, g.double())]
    for mine, other, theirs in zip(ours, torchs, wanted, strict=True):
        assert mine.shape == theirs.shape
        error, of_torch = ((found.double() - theirs).abs().max() for found in (mine, other))
        assert error <= max(2**-8 * theirs.abs().max(), 1.1 * of_torch)


@pytest.mark.parametrize(("height", "width", "own"), [(32, 32, True), (16, 64, True), (8, 8, False)])
def test_large_bfloat16_convolutions_have_the_gradients_of_torchs_in_float64(height, width, own):
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, padding=1)
    x = drawn(2, 5, height, width).contiguous(memory_format=torch.channels_last)
    g = drawn(2, 7, height, width, seed=9).bfloat16()
    ours, torchs = (value_and_gradients(plain, x, g, how) for how in (lambda h: convolved(h, plain), plain))
    assert ("LargeConvolution" in ours[0].grad_fn.name()) == own
    exact = [t.detach().bfloat16().double().requires_grad_() for t in (x, *plain.parameters())]
    value = F.conv2d(*exact, padding=1)
    wanted = [value, *torch.autograd.grad(value, exact, g.double())]
    for mine, other, theirs in zip(ours, torchs, wanted, strict=True):
        assert mine.shape == theirs.shape
        error, of_torch = ((found.double() - theirs).abs().max() for found in (mine, other))
        assert error <= max(2**-8 * theirs.abs().max(), 1.1 * of_torch)


def test_a_large_convolution_of_pictures_without_a_gradient_is_torchs():
    plain, x = nn.Conv2d(3, 4, 3, padding=1), drawn(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolved(x, plain), plain(x))
        assert "LargeConvolution" not in convolved(x, plain).grad_fn.name()


def value_and_gradients(module, x, g, how=None):
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = (how or module)(leaf)
    return [value, *torch.autograd.grad(value, [leaf, *module.parameters()], g)]


def test_float32_convolutions_are_torchs_own():
    torch.manual_seed(0)
    layer, x = Convolution(3, 4), drawn(2, 3, 4, 4)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("p", [0.1, 0.4, 0.9])
def test_dropout_keeps_the_share_it_should_and_scales_what_it_keeps(p):
    torch.manual_seed(0)
    x = torch.full((7, 16, 60, 50), 3.0).contiguous(memory_format=torch.channels_last)
    y = Dropout(p)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y[y != 0], torch.tensor(3.0 / (1 - p)))
    kept = (y != 0).sum().item()
    low, high = binom.interval(1 - 1e-6, x.numel(), 1 - p)
    assert low <= kept <= high
    # Neighbours share a 64-bit word; their results must not be correlated.
    bits = (y.permute(0, 2, 3, 1).reshape(-1, 4) != 0).double().numpy()
    assert np.abs(np.corrcoef(bits.T) - np.eye(4)).max() < 0.02


def test_dropout_is_torchs_in_evaluation_and_repeats_from_a_seed():
    x, layer = drawn(5, 33), Dropout(0.4)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_dropout_is_its_mask(dtype, layout):
    torch.manual_seed(0)
    x = drawn(6, 4, 2, 2).to(dtype).contiguous(memory_format=layout).requires_grad_()
    y = Dropout(0.4)(x)
    (found,) = torch.autograd.grad(y, [x], torch.ones(6, 4, 2, 2, dtype=dtype))  # of another layout than x
    scale = torch.tensor(1 / 0.6, dtype=dtype)
    assert set(found.unique().tolist()) == {0.0, scale.item()}
    assert torch.equal(found != 0, y != 0)
    assert torch.equal(y, (x.float() * (1 / 0.6)).to(dtype).where(found != 0, 0.0))
