"""Keras's conventions against their formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from kdlib.errors import KDError
from kdlib.networks import (
    he_normal_,
    he_uniform_,
    keras_adam,
    keras_batch_norm,
    keras_glorot_,
    parameter_count,
)
from kdlib.seeds import generator

# a layer and the shape of its kernel in Keras: (*window, inputs, outputs)
LAYERS = {
    "dense": (lambda: nn.Linear(90, 200), (90, 200)),
    "conv1d": (lambda: nn.Conv1d(30, 120, 5), (5, 30, 120)),
    "conv2d": (lambda: nn.Conv2d(24, 80, (3, 3)), (3, 3, 24, 80)),
}


def fans(kernel):
    window = math.prod(kernel[:-2])
    return window * kernel[-2], window * kernel[-1]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("initialise", [keras_glorot_, he_uniform_])
def test_uniform_initialisers(kind, initialise):
    build, kernel = LAYERS[kind]
    fan_in, fan_out = fans(kernel)
    limit = math.sqrt(6 / (fan_in + fan_out)) if initialise is keras_glorot_ else math.sqrt(6 / fan_in)
    layer = initialise(build(), generator(0, kind))
    weight = layer.weight.detach().double().numpy().ravel()
    assert weight.size == math.prod(kernel)
    assert 0.999 * limit < np.abs(weight).max() <= limit * (1 + 1e-6)
    assert stats.kstest(weight, stats.uniform(-limit, 2 * limit).cdf).pvalue > 0.01
    assert not layer.bias.any()


@pytest.mark.parametrize("kind", LAYERS)
def test_he_normal_is_truncated_and_keeps_its_variance(kind):
    build, kernel = LAYERS[kind]
    variance = 2 / fans(kernel)[0]
    layer = he_normal_(build(), generator(0, kind))
    weight = layer.weight.detach().double().numpy().ravel()
    assert weight.var() == pytest.approx(variance, rel=0.03)
    scale = math.sqrt(variance / stats.truncnorm(-2, 2).var())
    assert 1.98 * scale < np.abs(weight).max() <= 2 * scale * (1 + 1e-6)
    assert stats.kstest(weight, stats.truncnorm(-2, 2, scale=scale).cdf).pvalue > 0.01
    assert not layer.bias.any()


@pytest.mark.parametrize("initialise", [keras_glorot_, he_uniform_, he_normal_])
def test_initialisers_reach_every_layer_and_repeat_with_their_generator(initialise):
    def build(seed):
        dense = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net = nn.Sequential(nn.Conv1d(1, 4, 3, bias=False), nn.ReLU(), dense)
        return [p.detach().clone() for p in initialise(net, generator(seed, "weights")).parameters()]

    first, again, other = build(0), build(0), build(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1)
    assert not torch.equal(first[1], first[3])


def test_batch_norm_follows_keras():
    inputs = torch.tensor(np.random.default_rng(0).normal(3, 0.05, (64, 4, 10)), dtype=torch.float32)
    norm = keras_batch_norm(4, dims=1)
    output = norm(inputs).detach()
    values = inputs.numpy().astype(float)
    mean, variance = values.mean((0, 2)), values.var((0, 2))
    expected = (values - mean[:, None]) / np.sqrt(variance[:, None] + 1e-3)
    np.testing.assert_allclose(output, expected, atol=1e-4)
    np.testing.assert_allclose(norm.running_mean, 0.01 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var, 0.99 + 0.01 * variance * 640 / 639, rtol=1e-5)


def test_batch_norm_after_a_dense_layer_keeps_the_biased_variance_as_keras_does():
    draws = np.random.default_rng(0)
    norm, mean, variance = keras_batch_norm(4, dims=0), np.zeros(4), np.ones(4)
    plain = torch.nn.BatchNorm1d(4, eps=1e-3, momentum=0.01)
    for _ in range(3):
        values = draws.normal(3, 2, (5, 4))
        inputs = torch.tensor(values, dtype=torch.float32)
        ours, torchs = (inputs.clone().requires_grad_() for _ in "12")
        output, wanted = norm(ours), plain(torchs)
        for found, expected in (
            (output, wanted),
            *zip(gradients(output, ours), gradients(wanted, torchs), strict=True),
        ):
            np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-6)
        mean, variance = 0.99 * mean + 0.01 * values.mean(0), 0.99 * variance + 0.01 * values.var(0)
        np.testing.assert_allclose(norm.running_mean, mean, rtol=1e-5)
        np.testing.assert_allclose(norm.running_var, variance, rtol=1e-5)
    predicted = norm.eval()(torch.ones(1, 4)).detach().numpy()
    np.testing.assert_allclose(predicted, [(1 - mean) / np.sqrt(variance + 1e-3)], rtol=1e-5)


def gradients(output, inputs):
    weights = torch.arange(output.numel(), dtype=output.dtype).view(output.shape).sin()
    return torch.autograd.grad((output * weights).sum(), [inputs])


@pytest.mark.parametrize(("dims", "shape"), [(0, (8, 3)), (1, (8, 3, 5)), (2, (8, 3, 5, 5))])
def test_batch_norm_for_each_number_of_axes(dims, shape):
    assert keras_batch_norm(3, dims)(torch.ones(shape)).shape == shape


def test_batch_norm_refuses_other_axes():
    with pytest.raises(KDError, match="found 3"):
        keras_batch_norm(3, 3)


def keras_steps(weight, gradients, lr, eps=1e-7):
    """Adam as Keras writes it, in float64: epsilon is added to the uncorrected root."""
    m = v = np.zeros_like(weight)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        weight = weight - lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
    return weight


def torch_steps(weight, gradients, **settings):
    parameter = torch.tensor(weight, requires_grad=True)
    optimizer = keras_adam([parameter], **settings)
    for g in gradients:
        parameter.grad = torch.tensor(g)
        optimizer.step()
    return parameter.detach().numpy()


@pytest.mark.parametrize("settings", [{}, {"lr": 1e-2}])
def test_adam_is_that_of_keras_to_1e_6(settings):
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 2, 50)
    gradients = rng.uniform(0.1, 1, (10, 50)) * rng.choice([-1, 1], (10, 50))
    expected = keras_steps(weight, gradients, settings.get("lr", 1e-3))
    np.testing.assert_allclose(torch_steps(weight, gradients, **settings), expected, rtol=1e-6)
    assert np.abs(expected - weight).mean() > 1e-3


def test_adam_differs_from_keras_where_the_first_gradients_are_tiny():
    """The documented difference at its largest: torch corrects the root before it adds epsilon."""
    g, root = np.array([1e-6]), math.sqrt(0.001)
    step = -torch_steps(np.array([0.0]), [g], lr=1.0)
    np.testing.assert_allclose(step, g / (g + 1e-7), rtol=1e-9)
    np.testing.assert_allclose(-keras_steps(np.array([0.0]), [g], lr=1.0), g / (g + 1e-7 / root), rtol=1e-9)


def test_parameter_count_counts_as_keras_does():
    net = nn.Sequential(nn.Conv1d(2, 8, 3), keras_batch_norm(8, 1), nn.Flatten(), nn.Linear(16, 5))
    trainable = (2 * 8 * 3 + 8) + (8 + 8) + (16 * 5 + 5)
    assert parameter_count(net) == trainable + 8 + 8
    net[0].requires_grad_(False)
    assert parameter_count(net) == trainable + 16


def test_layers_without_a_shape_are_refused():
    with pytest.raises(KDError, match="LazyLinear without a shape; call the network on one batch first"):
        keras_glorot_(nn.LazyLinear(3), generator(0, "weights"))


def test_adam_takes_groups_of_weights():
    layers = nn.Linear(2, 2), nn.Linear(2, 2)
    adam = keras_adam([{"params": list(layers[0].parameters()), "lr": 0.5}, {"params": layers[1].parameters()}], lr=0.1)
    assert [group["lr"] for group in adam.param_groups] == [0.5, 0.1]
    assert [len(group["params"]) for group in adam.param_groups] == [2, 2]
