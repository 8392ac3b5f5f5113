"""The fused blocks against torch's own layers, in float32 and in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.errors import KDError
from replications.ecg.kernels import features

STUDENT, TEACHER = (32, 16), (64, 64)  # filters, dense units


def layers(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    h = F.max_pool1d(F.relu(F.conv1d(x[:, None], w1, b1)), 4)
    return F.max_pool1d(F.relu(F.conv1d(h, w2, b2)), 4).amax(2)


def weights(filters: int, kernel: int = 3, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = (filters, 1, 5), (filters,), (filters, filters, kernel), (filters,)
    scales = 0.5, 0.1, 0.1, 0.1
    return [s * torch.randn(shape, generator=g) for shape, s in zip(shapes, scales, strict=True)]


def rows(kind: str, batch: int, length: int = 187) -> Tensor:
    x = torch.rand(batch, length, generator=torch.Generator().manual_seed(7))
    if kind == "padded":
        ends = torch.randint(20, length, (batch, 1), generator=torch.Generator().manual_seed(8))
        x[torch.arange(length) >= ends] = 0
    elif kind == "plateaus":
        x = (x[:, ::20] * 3).round().div(3).repeat_interleave(20, 1)[:, :length]
    elif kind == "zero":
        x = torch.zeros(batch, length)
    return x.contiguous()


def value_and_gradients(function, x: Tensor, parameters: list[Tensor], upstream: Tensor) -> list[Tensor]:
    leaves = [p.clone().requires_grad_() for p in parameters]
    value = function(x, *leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, upstream)]


def upstream(batch: int, filters: int) -> Tensor:
    return torch.randn(batch, filters, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("filters", [STUDENT[0], TEACHER[0]])
@pytest.mark.parametrize("batch", [64, 2, 1])
@pytest.mark.parametrize("kind", ["random", "padded", "plateaus", "zero"])
def test_values_and_gradients_equal_torch_layers_in_both_precisions(kind, batch, filters):
    x, w, g = rows(kind, batch), weights(filters), upstream(batch, filters)
    ours = value_and_gradients(features, x, w, g)
    single = value_and_gradients(layers, x, w, g)
    double = value_and_gradients(layers, x.double(), [p.double() for p in w], g.double())
    assert [t.shape for t in ours] == [t.shape for t in single]
    for mine, theirs, exact in zip(ours, single, double, strict=True):
        scale = exact.abs().max().item()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6 * max(scale, 1))
        torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=2e-6 * max(scale, 1))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [36, 61, 187, 200])
def test_other_lengths_and_second_kernels_equal_torch_layers(length, kernel):
    x, w, g = rows("random", 3, length), weights(6, kernel), upstream(3, 6)
    for mine, theirs in zip(value_and_gradients(features, x, w, g), value_and_gradients(layers, x, w, g), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=5e-6)


def test_gradient_is_the_slope_of_the_value():
    """Central differences of the float64 layers along random directions: an oracle without autograd."""
    x, w, g = rows("random", 4), weights(8), upstream(4, 8)
    _, *gradients = value_and_gradients(features, x, w, g)
    for index, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(index)).double()
        ends = []
        for sign in (1, -1):
            moved = [p.double() for p in w]
            moved[index] = moved[index] + sign * 1e-7 * direction
            ends.append((layers(x.double(), *moved) * g).sum())
        assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]).item() / 2e-7, rel=1e-4)


@pytest.mark.parametrize("change", ["dead first block", "dead second block"])
def test_dead_units_pass_no_gradient(change):
    w = weights(8)
    w[1 if change == "dead first block" else 3][:] = -100
    ours = value_and_gradients(features, rows("random", 5), w, upstream(5, 8))
    theirs = value_and_gradients(layers, rows("random", 5), w, upstream(5, 8))
    assert all(bool((gradient == 0).all()) for gradient in ours[1:3])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("position", [0, 3, 50, 171])
def test_not_a_number_comes_out(position):
    x = rows("random", 3)
    x[1, position] = torch.nan
    assert torch.equal(features(x, *weights(8)).isnan(), layers(x, *weights(8)).isnan())
    assert bool(features(x, *weights(8))[1].isnan().all())


def test_repeats_to_the_last_bit():
    x, w, g = rows("padded", 64), weights(32), upstream(64, 32)
    first, second = (value_and_gradients(features, x.clone(), w, g) for _ in range(2))
    assert [t.numpy().tobytes() for t in first] == [t.numpy().tobytes() for t in second]


def test_rows_do_not_depend_on_their_batch():
    x, w = rows("padded", 64), weights(32)
    torch.testing.assert_close(features(x, *w)[5:6], features(x[5:6], *w), rtol=1e-6, atol=1e-6)


def test_prediction_without_gradients_gives_the_same_values_and_takes_strided_rows():
    x, w = rows("padded", 10), [p.requires_grad_() for p in weights(32)]
    with torch.no_grad():
        assert torch.equal(features(x.t().contiguous().t(), *w), features(x, *w).detach())
        assert not features(x, *w).requires_grad


class Network(nn.Module):
    def __init__(self, function, filters: int, dense: int) -> None:
        super().__init__()
        self.function = function
        self.conv1, self.conv2 = nn.Conv1d(1, filters, 5), nn.Conv1d(filters, filters, 3)
        self.dense1, self.dense2 = nn.Linear(filters, dense), nn.Linear(dense, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(x, self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias)
        return self.dense2(F.relu(self.dense1(h)))


@pytest.mark.parametrize("sizes", [STUDENT, TEACHER], ids=["student", "teacher"])
def test_a_short_training_ends_at_the_parameters_of_torch_layers(sizes):
    torch.manual_seed(3)
    networks = Network(features, *sizes), Network(layers, *sizes)
    start = networks[0].state_dict()
    networks[1].load_state_dict(start)
    start = {name: value.clone() for name, value in start.items()}
    x, y = rows("padded", 20 * 64 - 37), torch.arange(20 * 64 - 37) % 5  # the last of 20 batches is short
    for network in networks:
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for inputs, labels in zip(x.split(64), y.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(value, networks[1].state_dict()[name], rtol=1e-4, atol=1e-5)
        assert (value - start[name]).abs().max() > 1e-3  # two untrained networks would agree as well


def test_refuses_what_it_cannot_compute():
    x, w = rows("random", 2), weights(8)
    for bad, others, message in [
        (x.double(), w, "float64"),
        (x.clone().requires_grad_(), w, "requires_grad"),
        (x, [torch.zeros(8, 1, 7), *w[1:]], r"\(8, 1, 7\)"),
        (x[:, :27], w, "at least 28 samples, found 27"),
    ]:
        with pytest.raises(KDError, match=message):
            features(bad, *others)
    assert features(x[:, :28], *w).shape == (2, 8)
