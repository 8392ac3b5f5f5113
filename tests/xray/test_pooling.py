"""The convolution with a max-pool, against torch's layers in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.compiled import AVAILABLE
from replications.xray.pooling import pooled


def outcome(h, layer, forward):
    h = h.clone().requires_grad_()
    layer.zero_grad()
    out = forward(h * 1, layer)
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape).to(out)).sum().backward()
    return out, h.grad, layer.weight.grad, layer.bias.grad


def exact(h, layer):
    twin = nn.Conv2d(layer.in_channels, layer.out_channels, 3).double()
    twin.load_state_dict(layer.state_dict())
    return outcome(h.double(), twin, lambda h, layer: F.max_pool2d(F.relu(layer(F.relu(h))), 2))


@pytest.mark.parametrize("shape", [(2, 8, 12, 14), (3, 16, 9, 7), (1, 64, 4, 4)])  # even, odd, one window
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_results_and_gradients_are_torchs(shape, order):
    torch.manual_seed(0)
    layer, h = nn.Conv2d(shape[1], 24, 3), torch.randn(shape).contiguous(memory_format=order)
    for found, wanted in zip(outcome(h, layer, pooled), exact(h, layer), strict=True):
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


def test_of_equal_results_the_first_gets_the_gradient_as_in_torch():
    torch.manual_seed(0)
    layer, h = nn.Conv2d(8, 8, 3), torch.randint(0, 2, (2, 8, 10, 10)).float()
    with torch.no_grad():
        layer.weight.round_()  # all zero: every window has four equal results
        layer.bias.copy_(torch.arange(8.0) - 4)
    for found, wanted in zip(outcome(h, layer, pooled), exact(h, layer), strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-6)


def test_what_it_cannot_do_is_done_by_torch(monkeypatch):
    torch.manual_seed(0)
    layer, h = nn.Conv2d(6, 8, 3), torch.randn(1, 6, 8, 8)
    assert torch.equal(pooled(h.clone(), layer), F.relu(F.max_pool2d(layer(F.relu(h)), 2)))
    assert "PoolBackward" not in type(pooled(h, layer).grad_fn).__name__
    layer, h = nn.Conv2d(8, 8, 3), torch.randn(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert pooled(h, layer).dtype == torch.bfloat16
    assert pooled(h.double(), layer.double()).dtype == torch.float64


@pytest.mark.parametrize("place", range(4))
def test_nan_is_not_lost(place):
    layer, h = nn.Conv2d(8, 8, 3), torch.rand(1, 8, 4, 4)
    h[0, :, 3 * (place // 2), 3 * (place % 2)] = torch.nan  # in one corner, so that one of the four results has it
    assert pooled(h, layer).isnan().all()


@pytest.mark.skipif(not AVAILABLE, reason="numba is not there")
def test_gradients_that_are_zero_are_left_out():
    layer, leaf = nn.Conv2d(8, 8, 3), torch.randn(1, 8, 8, 8, requires_grad=True)
    h = leaf * 1
    with torch.no_grad():
        layer.bias.fill_(-1e3)  # no result is above zero
    assert type(pooled(h, layer).grad_fn).__name__ == "_PooledBackward"
    pooled(h, layer).sum().backward()
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()
    assert not leaf.grad.any()
