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
    """Logits and labels that mostly agree; class 4 is in the labels only, class 5 nowhere."""
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
        with pytest.raises(KDError, match=r"one prediction for each label"):
            measure(predicted[0], labels)


@pytest.mark.parametrize("measure", [metrics.agreement, metrics.mean_kl])
def test_logits_that_would_be_broadcast_are_refused(predicted, measure):
    with pytest.raises(KDError, match=r"found shapes \((300, 6|300,)\) and \(1,"):
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
