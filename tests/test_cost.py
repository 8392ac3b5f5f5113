"""What a prediction costs, against counts made by hand."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.cost import latency, one_thread, prediction_cost
from kdlib.errors import KDError


def test_parameters_operations_and_memory_are_those_counted_by_hand():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    found = prediction_cost(dense, torch.randn(1, 2, 2))
    assert found.parameters == 4 * 3 + 3 + 3 * 2 + 2
    assert found.flops == 2 * (4 * 3 + 3 * 2)
    assert found.float32_bytes == 4 * 23
    assert found.peak_bytes == 4 * (23 + 4 + 3 + 3)  # parameters, input, and the hidden layer before and after ReLU


def test_moving_averages_count_and_a_convolution_has_the_operations_of_its_outputs():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.MaxPool2d(2))
    found = prediction_cost(layers, torch.randn(1, 3, 10, 12))
    assert found.parameters == 8 * 3 * 9 + 4 * 8
    assert found.flops == 2 * 10 * 12 * 8 * 3 * 9


def test_one_of_many_examples_costs_what_it_costs_alone():
    inputs, model = torch.randn(1000, 6), nn.Linear(6, 2)
    assert prediction_cost(model, inputs[:1]) == prediction_cost(model, inputs[:1].clone())


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prediction_cost(model, torch.randn(1, 3))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_examples_are_refused():
    with pytest.raises(KDError, match=r"expected one example, .* found \(2, 3\)"):
        prediction_cost(nn.Linear(3, 1), torch.randn(2, 3))


def test_a_network_that_looks_at_its_numbers_is_refused():
    class Looks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(KDError, match=r"expected a network that torch.export takes, found Looks"):
        prediction_cost(Looks(), torch.randn(1, 3))


def test_latency_is_the_percentiles_of_the_timed_predictions():
    seconds = np.random.default_rng(0).uniform(1, 2, 50)
    times = itertools.chain.from_iterable((1000.0 * k, 1000.0 * k + spent) for k, spent in enumerate(seconds))
    calls = []
    found = latency(lambda: calls.append(None), warm_up=7, repeats=50, clock=lambda: next(times))
    assert len(calls) == 57
    assert found.p50_seconds == pytest.approx(np.median(seconds), abs=1e-9)
    assert found.p95_seconds == pytest.approx(np.quantile(seconds, 0.95), abs=1e-9)


def test_one_thread_is_for_the_block_only():
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
