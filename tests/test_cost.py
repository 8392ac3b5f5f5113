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


class Last(nn.Module):
    """A recurrent layer, and a dense one (3) of its last step."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize(("layers", "ways"), [(1, 1), (2, 2)])
def test_a_recurrent_layer_has_the_operations_of_its_gates(kind, gates, layers, ways):
    inputs, width, steps = 8, 32, 4
    layer = kind(inputs, width, layers, batch_first=True, bidirectional=ways == 2)
    first = gates * width * (inputs + width)
    others = gates * width * (ways * width + width)
    enabled = torch.backends.mkldnn.enabled
    found = prediction_cost(Last(layer, ways * width), torch.randn(1, steps, inputs))
    assert found.flops == 2 * steps * ways * (first + (layers - 1) * others) + 2 * ways * width * 3
    assert torch.backends.mkldnn.enabled == enabled


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weights", [False, True])  # with them, torch computes attention by other operators
def test_attention_has_the_operations_of_its_scores_and_of_its_mean(masked, weights):
    places, width = 10, 8
    attention = nn.MultiheadAttention(width, 2, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(places) if masked else None
    module = Applied(lambda x: attention(x, x, x, attn_mask=mask, need_weights=weights)[0])
    module.attention = attention
    dense = 4 * places * width * width  # query, key, value and output
    assert prediction_cost(module, torch.randn(1, places, width)).flops == 2 * (dense + 2 * places * places * width)


MATRIX, VECTOR = torch.randn(6, 8), torch.randn(8)


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x @ VECTOR, 2 * 5 * 8),
        (lambda x: MATRIX.mv(x[0, 0])[None], 2 * 6 * 8),
        (lambda x: torch.zeros(6).addmv(MATRIX, x[0, 0])[None], 2 * 6 * 8),
        (lambda x: torch.zeros(6).addmv_(MATRIX, x[0, 0])[None], 2 * 6 * 8),
        (lambda x: torch.zeros(5, 6).addmm_(x[0], MATRIX.t())[None], 2 * 5 * 6 * 8),
        (lambda x: torch.zeros(1, 5, 6).baddbmm_(x, MATRIX.t()[None]), 2 * 5 * 6 * 8),
        (lambda x: torch.zeros(5, 6).addbmm_(x, MATRIX.t()[None])[None], 2 * 5 * 6 * 8),
        (lambda x: torch.addbmm(torch.zeros(5, 6), x, MATRIX.t()[None])[None], 2 * 5 * 6 * 8),
        (lambda x: x[0, 0].dot(VECTOR)[None], 2 * 8),
        (lambda x: torch.einsum("nij,kj,j->ik", x, MATRIX, VECTOR)[None], 2 * 5 * 6 * 8),
        (lambda x: torch.nn.functional.normalize(x), 0),
    ],
)
def test_products_with_vectors_and_in_place_count(function, flops):
    assert prediction_cost(Applied(function), torch.randn(1, 5, 8)).flops == flops


def test_a_bilinear_layer_is_a_product_with_one_input_and_then_with_the_other():
    layer = nn.Bilinear(6, 7, 4)
    module = Applied(lambda x: layer(x[..., :6], x[..., 6:]))
    module.layer = layer
    assert prediction_cost(module, torch.randn(1, 3, 13)).flops == 3 * 4 * (2 * 6 * 7 + 2 * 7)


@torch.library.custom_op("kdlib_test::scores", mutates_args=())
def scores(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT


@scores.register_fake
def _(x):
    return x @ x.mT


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: torch.cdist(x, MATRIX[None]), "aten._cdist_forward"),
        (lambda x: torch.cdist(x.repeat(1, 9, 1), MATRIX[None]), "aten._euclidean_dist"),
        (lambda x: torch.fft.rfft(x).real, "aten._fft_r2c"),
        (lambda x: torch.linalg.solve(x @ x.mT + torch.eye(5), x), "aten._linalg_solve_ex"),
        (scores, "kdlib_test.scores"),
    ],
)
def test_operators_without_a_formula_are_refused_by_name(function, name):
    with pytest.raises(KDError, match=f"be counted, found {name}; give a formula"):
        prediction_cost(Applied(function), torch.randn(1, 5, 8))


def test_latency_is_the_percentiles_of_the_timed_predictions():
    seconds = np.random.default_rng(0).uniform(1, 2, 50)
    times = itertools.chain.from_iterable((1000.0 * k, 1000.0 * k + spent) for k, spent in enumerate(seconds))
    calls = []
    found = latency(lambda: calls.append(None), warm_up=7, repeats=50, clock=lambda: next(times))
    assert len(calls) == 57
    assert found.p50_seconds == pytest.approx(np.median(seconds), abs=1e-9)
    assert found.p95_seconds == pytest.approx(np.quantile(seconds, 0.95), abs=1e-9)


def test_a_latency_of_no_prediction_is_refused():
    with pytest.raises(KDError, match="repeats: expected a whole number of 1 or more, found 0"):
        latency(lambda: None, repeats=0)


def test_one_thread_is_for_the_block_only():
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
