"""Subsets, training sets, heads and corrections of specialists, against counts, NumPy and scikit-learn."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.seeds import generator
from kdlib.specialists import (
    check_subset,
    corrected_dustbin,
    correlation_clusters,
    dustbin_labels,
    dustbin_logits,
    kmeans_clusters,
    oversampling,
    specialist_head,
    specialist_rows,
)
from kdlib.targets import SoftTargets

K = 7
PLANTED = [(0, 3), (1, 2, 6), (4, 5)]  # classes that the generalist below confuses


@pytest.fixture
def probs():
    """Predictions that put 0.9 on the planted group of the true class, divided at random within it."""
    rng = np.random.default_rng(0)
    rows = np.full((3000, K), 0.0)
    for row, k in zip(rows, rng.integers(K, size=3000), strict=True):
        group = next(group for group in PLANTED if k in group)
        row[:] = 0.1 * rng.dirichlet(np.ones(K))
        row[list(group)] += 0.9 * rng.dirichlet(np.full(len(group), 3.0))
    return torch.tensor(rows)


@pytest.fixture
def labels():
    return torch.tensor(np.random.default_rng(1).choice(K, size=500, p=[0.3, 0.05, 0.15, 0.1, 0.2, 0.05, 0.15]))


# ---- clusters


def test_both_clusterings_find_the_classes_that_are_confused(probs):
    assert kmeans_clusters(probs, 3, generator(0, "clusters")) == PLANTED
    assert correlation_clusters(probs) == PLANTED


@pytest.mark.parametrize("cluster", [lambda p: kmeans_clusters(p, 3, generator(0, "clusters")), correlation_clusters])
def test_clusters_follow_a_permutation_of_the_classes_and_of_the_examples(cluster, probs):
    classes = [3, 0, 6, 4, 1, 5, 2]
    permuted = cluster(probs.flip(0)[:, classes])
    assert sorted(tuple(sorted(classes[k] for k in subset)) for subset in permuted) == sorted(PLANTED)


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_clusters_the_columns_of_the_covariance(seed):
    """With so few classes every partition into three can be tried: none has closer clusters."""
    noise = np.random.default_rng(seed).dirichlet(np.ones(K), size=20)
    columns = np.cov(noise, rowvar=False)

    def inertia(cluster_of):
        groups = [columns[np.array(cluster_of) == cluster] for cluster in range(3)]
        return sum(((group - group.mean(0)) ** 2).sum() for group in groups)

    partitions = [p for p in itertools.product(range(3), repeat=K) if p[0] == 0 and len({*p}) == 3]
    found = kmeans_clusters(torch.tensor(noise), 3, generator(0, "clusters"))
    cluster_of = [next(number for number, subset in enumerate(found) if k in subset) for k in range(K)]
    assert inertia(cluster_of) == pytest.approx(min(map(inertia, partitions)), rel=1e-12)
    assert kmeans_clusters(torch.tensor(noise), 3, generator(0, "clusters")) == found


def test_kmeans_refuses_a_wrong_count_and_says_what_to_install(probs, monkeypatch):
    for count in (0, K + 1):
        with pytest.raises(KDError, match="1 to 7 clusters"):
            kmeans_clusters(probs, count, generator(0, "clusters"))
    assert kmeans_clusters(probs, K, generator(0, "clusters")) == [(k,) for k in range(K)]
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(KDError, match=r"pip install 'kdlib\[specialists\]'"):
        kmeans_clusters(probs, 3, generator(0, "clusters"))


def weights_of(probs):
    return np.corrcoef(probs.numpy(), rowvar=False) + 1 / (K - 1)


def total(weights, subsets):
    """The sum of weights within the subsets, from the definition."""
    return sum(weights[i, j] for subset in subsets for i, j in itertools.combinations(subset, 2))


def test_correlation_clusters_have_the_largest_weight_of_all_partitions(probs):
    weights = weights_of(probs)
    partitions = {
        tuple(tuple(k for k in range(K) if cluster_of[k] == c) for c in sorted({*cluster_of}))
        for cluster_of in itertools.product(range(4), repeat=K)
        if cluster_of[0] == 0  # a cluster's number means nothing
    }
    best = max(total(weights, subsets) for subsets in partitions)
    assert total(weights, correlation_clusters(probs)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_joining_two_correlation_clusters_never_helps(seed):
    noise = torch.tensor(np.random.default_rng(seed).dirichlet(np.full(K, 0.5), 200))
    weights, found = weights_of(noise), correlation_clusters(noise)
    assert sorted(k for subset in found for k in subset) == list(range(K))
    assert 1 < len(found) < K
    for one, other in itertools.combinations(found, 2):
        rest = [subset for subset in found if subset not in (one, other)]
        assert total(weights, [*rest, one + other]) <= total(weights, found) + 1e-12


def test_a_class_with_a_constant_prediction_remains_alone(probs):
    probs[:, 6] = 0.0
    probs /= probs.sum(1, keepdim=True)
    assert correlation_clusters(probs) == [(0, 3), (1, 2), (4, 5), (6,)]


@pytest.mark.parametrize("cluster", [lambda p: kmeans_clusters(p, 2, generator(0, "clusters")), correlation_clusters])
@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (torch.zeros(0, K), r"N >= 2 rows .* found shape \(0, 7\)"),
        (torch.full((1, K), 1 / K), r"N >= 2 rows .* found shape \(1, 7\)"),
        (torch.ones(9, 1), "K >= 2 classes"),
        (torch.ones(9, 2, 2), "K >= 2 classes"),
        (torch.tensor([[0.5, 0.5], [math.nan, 0.5]]), "found row 1 with numbers from nan"),
        (torch.tensor([[0.5, 0.5], [0.4, 0.6], [-0.1, 1.0]]), "found row 2 with numbers from -0.1 to 1"),
        (torch.tensor([[0.5, 0.5], [0.9, 0.8]]), "found row 1 with .* the sum 1.7; use logits.softmax"),  # of sigmoids
        ("predictions", "found str"),
    ],
)
def test_clusters_are_of_rows_of_probabilities(cluster, wrong, match):
    with pytest.raises(KDError, match=match):
        cluster(wrong)


def test_clusters_take_lists_and_kmeans_a_part_of_the_classes(probs):
    assert correlation_clusters(probs.tolist()) == PLANTED
    with pytest.raises(KDError, match="the sum 1, found row 0"):
        correlation_clusters(probs[:, [0, 3, 1]])
    assert kmeans_clusters(probs[:, [0, 3, 1]], 2, generator(0, "clusters")) == [(0, 1), (2,)]


# ---- training sets


@pytest.mark.parametrize(
    ("wrong", "subset", "match"),
    [
        (torch.tensor([0, 1, 2, -100, 3]), (0, 1), "labels from 0, found -100 in row 3"),
        (torch.tensor([0.0, 0.5]), (0,), "whole numbers of classes, found torch.float32"),
        (torch.eye(3, dtype=torch.int64), (0,), r"found torch.int64 of shape \(3, 3\)"),
        (torch.tensor([0, 1, 2]), (0, 0), "different classes from 0"),
        (torch.tensor([0, 1, 2]), (), "different classes from 0"),
        (
            torch.tensor([0, 1, 2]),
            torch.tensor([0, 1]),
            r"a tuple of whole numbers, found Tensor tensor.*write \(1, 3\)",
        ),
        (torch.tensor([0, 1, 2]), (0, -1), "different classes from 0"),
    ],
)
def test_labels_and_subsets_without_a_meaning_are_refused(wrong, subset, match):
    for call in (
        lambda: dustbin_labels(wrong, subset),
        lambda: specialist_rows(wrong, subset, generator(0, "rest")),
        lambda: oversampling(wrong, torch.arange(2), subset),
    ):
        with pytest.raises(KDError, match=match):
            call()


def test_a_class_of_the_subset_without_an_example_is_refused():
    labels = torch.tensor([0, 0, 1, 2])
    for call in (
        lambda: specialist_rows(labels, (0, 99), generator(0, "rest")),
        lambda: oversampling(labels, torch.arange(4), (0, 99)),
    ):
        with pytest.raises(KDError, match=r"of each of them, found none of \[99\]"):
            call()
    assert dustbin_labels(labels, (0, 9)).tolist() == [0, 0, 2, 2]  # of a batch, for example
    for classes, match in ((3, "subset of 1 to 2 different classes"), (2, "subset of 1 to 1 different classes")):
        with pytest.raises(KDError, match=match):
            dustbin_labels(labels, (0, 9), classes)
    with pytest.raises(KDError, match="labels from 0 to 1, of 2 classes, found 2 in row 3"):
        dustbin_labels(labels, (0,), 2)
    assert dustbin_labels(labels.numpy(), (2, 0), 3).tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_row_numbers_of_any_width_are_the_same_rows(dtype):
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert oversampling(labels, torch.tensor([0, 1, 4], dtype=dtype), (0,)) == pytest.approx(2 / (2 / 3))
    assert oversampling(labels, torch.tensor([True, True, False, False, True]), (0,)) == pytest.approx(2 / (2 / 3))


@pytest.mark.parametrize("rows", [[0, -1], [0, 5], [[0, 4]], [True, False]])
def test_rows_that_the_labels_do_not_have_are_refused(rows):
    with pytest.raises(KDError, match=r"row numbers .* from 0 to 4, or a mask"):
        oversampling(torch.tensor([0, 0, 1, 1, 1]), torch.tensor(rows), (0,))


@pytest.mark.parametrize("subset", [(1,), (6, 2), (0, 4, 2, 6)])  # the last one holds more than half of the rows
def test_half_of_a_specialists_rows_are_of_its_subset_and_half_of_the_rest(labels, subset):
    rows = specialist_rows(labels, subset, generator(0, "rest"))
    inside = np.isin(labels, subset)
    smaller = min(inside.sum(), (~inside).sum())
    chosen = inside[rows]
    assert (chosen.sum(), (~chosen).sum()) == (smaller, smaller)
    assert rows.tolist() == sorted({*rows.tolist()})
    whole = inside if inside.sum() == smaller else ~inside
    assert {*np.flatnonzero(whole).tolist()} <= {*rows.tolist()}
    assert torch.equal(specialist_rows(labels, subset, generator(0, "rest")), rows)
    assert not torch.equal(specialist_rows(labels, subset, generator(1, "rest")), rows)


def test_every_other_row_is_drawn_equally_often():
    labels, stream = torch.tensor([0, 0, 1, 2, 2, 1]), generator(0, "rest")
    drawn = [tuple(specialist_rows(labels, (0,), stream).tolist()[2:]) for _ in range(1200)]
    counts = [drawn.count(pair) for pair in itertools.combinations(range(2, 6), 2)]
    assert sum(counts) == 1200
    assert max(abs(count - 200) for count in counts) < 58  # 4.5 standard deviations


def test_rows_of_a_class_without_examples_are_refused(labels):
    for subset in [(9,), tuple(range(K))]:
        with pytest.raises(KDError, match="inside and outside"):
            specialist_rows(labels, subset, generator(0, "rest"))


def test_dustbin_labels_count_in_the_order_of_the_subset():
    labels = torch.tensor([5, 0, 2, 6, 5, 1])
    assert dustbin_labels(labels, (5, 2)).tolist() == [0, 2, 1, 2, 0, 2]
    assert dustbin_labels(labels, (1,)).tolist() == [1, 1, 1, 1, 1, 0]
    assert dustbin_labels(labels, (5, 2)).dtype == torch.int64


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("subset", [(3,), (6, 0), (5, 4, 3, 2, 1, 0)])
def test_the_dustbin_has_the_sum_of_the_other_probabilities(temperature, subset):
    logits = np.random.default_rng(2).normal(0, 5, (30, K))
    probs = softmax(logits / temperature, 1)
    expected = np.column_stack([probs[:, subset], np.delete(probs, subset, 1).sum(1)])
    found = dustbin_logits(torch.tensor(logits), subset, temperature)
    np.testing.assert_allclose(softmax(found.numpy() / temperature, 1), expected, rtol=1e-10)
    assert torch.isfinite(dustbin_logits(torch.tensor([[1e4, -1e4, 0, 0, 0, 0, 0]]), subset, temperature)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_keeps_the_subset_and_starts_the_dustbin_at_the_mean_of_the_rest(bias):
    torch.manual_seed(0)
    head, subset, inputs = nn.Linear(5, K, bias=bias).double(), (6, 2), torch.randn(20, 5).double()
    state = torch.get_rng_state()
    made = specialist_head(head, subset)
    assert torch.equal(torch.get_rng_state(), state)
    logits, found = head(inputs).detach().numpy(), made(inputs).detach().numpy()
    np.testing.assert_allclose(found[:, :2], logits[:, subset], rtol=1e-12)
    rest = np.delete(logits, subset, 1)
    np.testing.assert_allclose(found[:, 2], rest.mean(1) + np.log(K - 2), rtol=1e-9)
    assert (found[:, 2] < logsumexp(rest, 1)).all()
    made.weight.sum().backward()
    assert head.weight.grad is None
    with torch.no_grad():
        head.weight[[0, 1, 3, 4, 5]] = head.weight[0].clone()
        if bias:
            head.bias[[0, 1, 3, 4, 5]] = 0.3
    equal = head(inputs).detach().numpy()
    exact = specialist_head(head, subset)(inputs).detach().numpy()
    np.testing.assert_allclose(exact[:, 2], logsumexp(np.delete(equal, subset, 1), 1), rtol=1e-10)


# ---- correction


def test_oversampling_is_a_ratio_of_odds(labels):
    subset = (0, 1)
    rows = specialist_rows(labels, subset, generator(0, "rest"))
    inside = int(np.isin(labels, subset).sum())
    assert oversampling(labels, rows, subset) == pytest.approx((500 - inside) / inside)
    assert oversampling(labels, torch.arange(500), subset) == pytest.approx(1)
    assert oversampling(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1, 4]), (0,)) == pytest.approx(3 / (2 / 3))
    with pytest.raises(KDError, match="inside and outside"):
        oversampling(labels, rows, (9,))


def test_the_correction_makes_an_exact_specialist_exact_on_natural_proportions():
    """Bayes: a joint distribution of inputs and classes, sampled as a specialist's training set, then as it is."""
    joint = np.random.default_rng(3).dirichlet(np.ones(4 * K)).reshape(4, K)  # 4 inputs
    counts = np.rint(joint * 1e6).astype(int)
    labels = torch.tensor(np.repeat(np.arange(K), counts.sum(0)))
    subset = (2, 5)
    rows = specialist_rows(labels, subset, generator(0, "rest"))
    rate = [(labels[rows] == k).sum().item() / (labels == k).sum().item() for k in range(K)]
    rest = np.delete(np.arange(K), subset)
    rate = np.where(np.isin(np.arange(K), rest), np.mean([rate[k] for k in rest]), rate)  # as drawn in the mean
    expected, sampled = (
        np.column_stack([p[:, subset], p[:, rest].sum(1)]) / p.sum(1, keepdims=True) for p in (counts, counts * rate)
    )
    specialist = torch.tensor(np.log(sampled))
    corrected = corrected_dustbin(specialist, oversampling(labels, rows, subset))
    np.testing.assert_allclose(softmax(corrected.numpy(), 1), expected, rtol=1e-2)
    assert np.abs(sampled - expected).max() > 0.05
    assert torch.equal(corrected[:, :-1], specialist[:, :-1])
    assert (corrected > specialist)[:, -1].all()  # the subset was oversampled


# ---- together


def test_a_specialists_examples_and_soft_targets_fit_each_other(labels):
    rng, subset = np.random.default_rng(5), (4, 0)
    examples = Examples(torch.tensor(rng.normal(size=(500, 2))), labels, "data")
    logits = torch.tensor(rng.normal(0, 2, (500, K)))
    soft = SoftTargets(dustbin_logits(logits, subset, 3.0), "generalist", "data")
    rows = specialist_rows(labels, subset, generator(0, "rest"))
    chosen = examples.select(rows)
    for batch in Batches(chosen, 32, 0, soft.select(rows))(1):
        expected = log_softmax(logits[rows][batch.indices].numpy() / 3, 1)
        np.testing.assert_allclose(log_softmax(batch.soft.numpy() / 3, 1)[:, 0], expected[:, 4], rtol=1e-10)
        assert torch.equal(batch.inputs, examples.inputs[rows][batch.indices])


@pytest.mark.parametrize("subset", [(), (0, 0), (K,), (-1,), tuple(range(K))])
def test_subsets_without_a_meaning_are_refused(subset):
    head, logits = nn.Linear(2, K), torch.zeros(3, K)
    for call in (
        lambda: check_subset(subset, K),
        lambda: dustbin_logits(logits, subset),
        lambda: specialist_head(head, subset),
    ):
        with pytest.raises(KDError, match="expected a subset of 1 to 6 different classes"):
            call()
    check_subset((6, 0, 1, 2, 3, 5), K)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_classes_with_constant_predictions_remain_alone_also_if_their_numbers_are_rounded(dtype):
    for seed in range(20):
        draws = torch.randn(1000, 4, dtype=dtype, generator=generator(seed, "probs"))
        constant = torch.tensor([0.1, 0.3], dtype=dtype).expand(1000, 2)
        clusters = correlation_clusters(torch.cat([draws.softmax(1) * 0.6, constant], dim=1))
        assert (4,) in clusters
        assert (5,) in clusters


def test_fewer_different_columns_than_clusters_are_refused():
    equal = torch.full((20, 6), 1 / 6)
    with pytest.raises(KDError, match="equal but for 1; train the generalist longer"):
        kmeans_clusters(equal, 3, generator(0, "k-means"))
    assert kmeans_clusters(equal, 1, generator(0, "k-means")) == [tuple(range(6))]


@pytest.mark.parametrize("subset", [3, (1.5, 2), (1.0, 2), (True, 2), "12", None, torch.tensor([1, 2])])
def test_a_subset_is_of_whole_numbers(subset):
    labels = torch.tensor([0, 1, 2, 3])
    for refused in (lambda: check_subset(subset, 4), lambda: dustbin_labels(labels, subset)):
        with pytest.raises(KDError, match="expected a subset"):
            refused()


@pytest.mark.parametrize("count", [2.5, "2", None])
def test_a_number_of_clusters_is_whole(count, probs):
    with pytest.raises(KDError, match="count: expected a whole number"):
        kmeans_clusters(probs, count, generator(0, "k-means"))


def test_a_head_that_computes_something_else_is_refused():
    class Cosine(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight), self.bias)

    hooked = nn.Linear(5, K)
    hooked.register_forward_hook(lambda layer, inputs, outputs: 2 * outputs)
    for head in (Cosine(5, K), hooked, nn.Conv1d(5, K, 1)):
        with pytest.raises(KDError, match=r"head: expected an nn\.Linear without hooks and without a forward"):
            specialist_head(head, (6, 2))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, K))
    inputs = torch.randn(3, 5)
    torch.testing.assert_close(specialist_head(normed, (6, 2))(inputs)[:, :2], normed(inputs)[:, [6, 2]])
