"""Convolutions as matrix products against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.errors import KDError
from kdlib.products import ConvolutionsAsProducts, convolution_as_product
from kdlib.replicas import Replicas
from kdlib.seeds import generator

DRAWS = generator(0, "products")


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=DRAWS, requires_grad=True)


@pytest.mark.parametrize("padding", [(0, 0), (1, 1), (2, 1)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 2)])
def test_value_and_gradients(padding, kernel):
    inputs, weight, bias = randn(3, 5, 9, 7), randn(4, 5, *kernel), randn(4)
    found = convolution_as_product(inputs, weight, bias, padding)
    expected = F.conv2d(inputs, weight, bias, padding=padding)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    towards = torch.randn(expected.shape, dtype=torch.float64, generator=DRAWS)
    for one, other in zip(
        torch.autograd.grad(found, (inputs, weight, bias), towards),
        torch.autograd.grad(expected, (inputs, weight, bias), towards),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, (3, 1), padding=(1, 0))],
)
def test_a_layer_uses_a_product(layer, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return convolution_as_product(*arguments)

    monkeypatch.setattr("kdlib.products.convolution_as_product", counted)
    inputs = torch.randn(2, 4, 8, 8, generator=DRAWS)
    expected = layer(inputs)
    with ConvolutionsAsProducts():
        found = layer(inputs)
    assert len(calls) == 1
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2),
        nn.Conv2d(4, 6, 3, dilation=2),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 6, 3, padding="same"),
    ],
)
def test_other_convolutions_stay_as_they_are(layer):
    inputs = torch.randn(2, 4, 8, 8, generator=DRAWS)
    with ConvolutionsAsProducts():
        assert torch.equal(layer(inputs), layer(inputs))
        found = layer(inputs)
    assert torch.equal(found, layer(inputs))


def test_inputs_are_cast_under_autocast():
    layer, inputs = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 8, 8, generator=DRAWS)
    with torch.autocast("cpu", torch.bfloat16), ConvolutionsAsProducts():
        found = layer(inputs)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), layer(inputs), atol=0.05)


def members():
    return [nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).double() for _ in range(3)]


def test_a_stack_of_students_is_the_same_either_way():
    networks, inputs = members(), torch.randn(3, 2, 3, 6, 6, dtype=torch.float64, generator=DRAWS)
    stacks = [Replicas(networks, way).train() for way in ("grouped", "products")]
    outputs = [stack(inputs) for stack in stacks]
    assert torch.allclose(*outputs, rtol=0, atol=1e-12)
    for output in outputs:
        output.square().sum().backward()
    for one, other in zip(stacks[0].parameters(), stacks[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-11)
    for one, other in zip(stacks[0].buffers(), stacks[1].buffers(), strict=True):
        assert torch.allclose(one, other)


def test_another_way_is_refused():
    with pytest.raises(KDError, match="convolutions: expected grouped or products, found 'fast'"):
        Replicas(members(), "fast")
