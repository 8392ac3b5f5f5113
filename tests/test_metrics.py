"""Metrics against scikit-learn, SciPy and hand-written loops."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from sklearn import metrics as sklearn_metrics

from kdlib import metrics
from kdlib.errors import KDError

N, K = 300, 6


@pytest.fixture(params=["torch", "numpy"])
def predicted(request):
    """Logits and labels that mostly agree; class 4 is a label but never predicted, class 5 is neither."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 4], N, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    logits = rng.normal(0, 1, (N, K)).astype(np.float32) + 2 * np.eye(K, dtype=np.float32)[labels]
    logits[:, 4:] -= 50
    return (torch.tensor(logits), torch.tensor(labels)) if request.param == "torch" else (logits, labels)


def arrays(predicted):
    return tuple(np.asarray(part) for part in predicted)


def test_accuracy_and_error_count(predicted):
    logits, labels = arrays(predicted)
    value = metrics.accuracy(*predicted)
    assert value == pytest.approx(sklearn_metrics.accuracy_score(labels, logits.argmax(1)), rel=1e-12)
    assert 0.5 < value < 0.95
    assert metrics.error_count(*predicted) == (logits.argmax(1) != labels).sum()
    assert type(metrics.error_count(*predicted)) is int


def test_confusion_matrix_and_macro_f1(predicted):
    logits, labels = arrays(predicted)
    guesses = logits.argmax(1)
    matrix = metrics.confusion_matrix(predicted[0].argmax(-1), predicted[1], K)
    assert matrix == sklearn_metrics.confusion_matrix(labels, guesses, labels=range(K)).tolist()
    expected = sklearn_metrics.f1_score(labels, guesses, labels=range(K), average="macro", zero_division=0)
    assert metrics.macro_f1(guesses, labels, K) == pytest.approx(expected, rel=1e-12)
    assert metrics.macro_f1_of_confusion(matrix) == pytest.approx(expected, rel=1e-12)


def test_classification_metrics_are_the_single_ones(predicted):
    other = np.roll(arrays(predicted)[0], 7, axis=0)
    alone = metrics.classification_metrics(*predicted, K)
    assert alone["accuracy"] == metrics.accuracy(*predicted)
    assert alone["entropy"] == metrics.mean_entropy(predicted[0])
    assert alone["confusion"] == metrics.confusion_matrix(predicted[0].argmax(-1), predicted[1], K)
    taught = metrics.classification_metrics(*predicted, K, other)
    assert taught["agreement"] == metrics.agreement(other, predicted[0])
    assert taught["teacher_kl"] == metrics.mean_kl(other, predicted[0])
    assert taught.keys() - alone.keys() == {"agreement", "teacher_kl"}


def test_f1_by_class_of_many_matrices(predicted):
    guesses, labels = arrays(predicted)[0].argmax(1), arrays(predicted)[1]
    halves = [(guesses[part], labels[part]) for part in (slice(0, N // 2), slice(N // 2, N))]
    matrices = [metrics.confusion_matrix(*half, K) for half in halves]
    found = metrics.f1_by_class(np.array([matrices, matrices[::-1]]))
    assert found.shape == (2, 2, K)
    for (guess, true), f1 in zip(halves, found[0], strict=True):
        expected = sklearn_metrics.f1_score(true, guess, labels=range(K), average=None, zero_division=0)
        np.testing.assert_allclose(f1, expected, rtol=1e-12)
    assert torch.equal(found[1], found[0].flip(0))


@pytest.mark.parametrize(
    "score", [metrics.accuracy, lambda logits, labels: metrics.macro_f1(logits.argmax(1), labels, K)]
)
def test_a_teacher_must_be_above_the_score_of_the_most_frequent_class(score):
    labels = torch.tensor([2] * 16 + [0, 1, 3, 4])
    constant = torch.zeros(20, K)
    constant[:, 2] = 1
    with pytest.raises(KDError, match=r"teacher, seed 0: expected a teacher above chance .* students are not started"):
        metrics.refuse_at_chance(constant, labels, score, "teacher, seed 0")
    with pytest.raises(KDError, match="above chance"):
        metrics.refuse_at_chance(torch.zeros(20, K), labels, score, "teacher, seed 0")
    better = constant.clone()
    better[16, 0] = 2  # one more row right
    metrics.refuse_at_chance(better, labels, score, "teacher, seed 0")


def test_accuracy_and_macro_f1_are_not_the_same_chance():
    """All rare rows are right, 6 of the frequent class are wrong: above chance by macro F1 but not by accuracy."""
    labels = torch.tensor([2] * 16 + [0, 1, 3, 4])
    guesses = torch.tensor([2] * 10 + [0] * 6 + [0, 1, 3, 4])
    logits = torch.nn.functional.one_hot(guesses, K)
    metrics.refuse_at_chance(logits, labels, lambda x, y: metrics.macro_f1(x.argmax(1), y, K), "teacher")
    with pytest.raises(KDError, match="above chance"):
        metrics.refuse_at_chance(logits, labels, metrics.accuracy, "teacher")


def test_confusion_matrix_takes_small_integers():
    labels = np.array([200, 3, 200], dtype=np.uint8)
    assert metrics.confusion_matrix(labels, labels, 201)[200][200] == 2


def test_confusion_matrix_refuses_logits(predicted):
    with pytest.raises(KDError, match="predicted classes"):
        metrics.confusion_matrix(predicted[0], predicted[1], K)


def test_agreement(predicted):
    logits, _ = arrays(predicted)
    other = np.roll(logits, 7, axis=0)
    expected = sum(a.argmax() == b.argmax() for a, b in zip(logits, other, strict=True)) / N
    assert metrics.agreement(predicted[0], other) == pytest.approx(expected, rel=1e-12)
    assert metrics.agreement(predicted[0], 3 * predicted[0]) == 1


@pytest.mark.parametrize("measure", [metrics.accuracy, metrics.error_count, metrics.expected_calibration_error])
def test_labels_that_would_be_broadcast_are_refused(predicted, measure):
    for labels in (predicted[1][:, None], predicted[1][:1], predicted[0]):
        with pytest.raises(KDError, match="one shape"):
            measure(predicted[0], labels)


@pytest.mark.parametrize("measure", [metrics.agreement, metrics.mean_kl])
def test_logits_that_would_be_broadcast_are_refused(predicted, measure):
    with pytest.raises(KDError, match=r"one shape, found \((300, 6|300,)\) and \(1,"):
        measure(predicted[0], predicted[0][:1])


def test_mean_entropy_and_mean_kl(predicted):
    logits, _ = arrays(predicted)
    other = np.random.default_rng(1).normal(0, 2, (N, K))
    probs, others = softmax(logits.astype(float), 1), softmax(other, 1)
    assert metrics.mean_entropy(predicted[0]) == pytest.approx(entropy(probs, axis=1).mean(), rel=1e-12)
    expected = entropy(probs, others, axis=1).mean()
    assert metrics.mean_kl(predicted[0], other) == pytest.approx(expected, rel=1e-12)
    assert metrics.mean_entropy(np.zeros((3, K))) == pytest.approx(math.log(K), rel=1e-12)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_expected_calibration_error(predicted, bins):
    logits, labels = arrays(predicted)
    probs = softmax(logits.astype(float), 1)
    expected = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        members = [i for i in range(N) if low < probs[i].max() <= high]
        if members:
            right = np.mean([probs[i].argmax() == labels[i] for i in members])
            expected += len(members) / N * abs(right - np.mean([probs[i].max() for i in members]))
    assert metrics.expected_calibration_error(*predicted, bins) == pytest.approx(expected, rel=1e-9)


def test_a_certain_and_right_model_is_calibrated_and_a_wrong_one_is_not():
    logits = 100 * np.eye(3)
    assert metrics.expected_calibration_error(logits, [0, 1, 2]) == pytest.approx(0, abs=1e-12)
    assert metrics.expected_calibration_error(logits, [1, 2, 0]) == pytest.approx(1, abs=1e-12)


def test_models_of_different_classes_cannot_agree():
    with pytest.raises(KDError, match=r"found \(4, 3\) and \(4, 5\)"):
        metrics.agreement(np.zeros((4, 3)), np.zeros((4, 5)))


def test_complex_labels_are_refused():
    logits, labels = torch.randn(2, 3), torch.tensor([0j, 1 + 1j])
    for metric in (metrics.accuracy, lambda *given: metrics.macro_f1(torch.tensor([0, 1]), given[1], 3)):
        with pytest.raises(KDError, match="labels that are whole numbers"):
            metric(logits, labels)
