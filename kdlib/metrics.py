"""Measures of predictions: torch tensors or NumPy arrays in, Python numbers out; computed in float64."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import KDError

__all__ = ["accuracy", "agreement", "confusion_matrix", "error_count", "expected_calibration_error",
           "macro_f1", "macro_f1_of_confusion", "mean_entropy", "mean_kl"]

Array = Any  # a torch tensor, a NumPy array or nested lists


def accuracy(logits: Array, labels: Array) -> float:
    """Share of the rows whose largest logit is the label's."""
    return 1 - error_count(logits, labels) / len(labels)


def error_count(logits: Array, labels: Array) -> int:
    """Number of rows whose largest logit is not the label's."""
    predicted, true = _predictions(logits), _integers(labels)
    _same_shape(predicted, true)
    return int((predicted != true).sum())


def agreement(logits_a: Array, logits_b: Array) -> float:
    """Share of the rows for which two models predict the same class."""
    first, second = _predictions(logits_a), _predictions(logits_b)
    _same_shape(first, second)
    return float((first == second).double().mean())


def confusion_matrix(predictions: Array, labels: Array, classes: int) -> list[list[int]]:
    """Counts by label (rows) and predicted class (columns)."""
    predicted, true = _integers(predictions), _integers(labels)
    _same_shape(predicted, true)
    counts = (true * classes + predicted).bincount(minlength=classes * classes)
    matrix: list[list[int]] = counts.view(classes, classes).tolist()
    return matrix


def macro_f1(predictions: Array, labels: Array, classes: int) -> float:
    """Unweighted mean over all classes of F1; a class neither predicted nor present counts 0."""
    return macro_f1_of_confusion(confusion_matrix(predictions, labels, classes))


def macro_f1_of_confusion(matrix: Array) -> float:
    """Macro F1 of a confusion matrix (rows: labels)."""
    counts = torch.as_tensor(matrix, dtype=torch.float64)
    involved = counts.sum(0) + counts.sum(1)  # 2 TP + FP + FN
    return float((2 * counts.diagonal() / involved.clamp(min=1)).mean())


def mean_entropy(logits: Array) -> float:
    """Mean entropy of the predicted distributions, in nats."""
    log_probs = _log_probs(logits)
    return float(-(log_probs.exp() * log_probs).sum(-1).mean())


def mean_kl(teacher_logits: Array, student_logits: Array) -> float:
    """Mean of KL(teacher || student), in nats."""
    teacher, student = _log_probs(teacher_logits), _log_probs(student_logits)
    _same_shape(teacher, student)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def expected_calibration_error(logits: Array, labels: Array, bins: int = 15) -> float:
    """Mean gap of accuracy and confidence over equal bins (low, high] (Guo et al. 2017, eq. 3)."""
    confidence, predicted = _log_probs(logits).exp().max(-1)
    true = _integers(labels)
    _same_shape(predicted, true)
    gap = (predicted == true).double() - confidence
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=gap.device)
    number = torch.bucketize(confidence, edges[1:-1])
    gaps = gap.new_zeros(bins).index_add(0, number, gap)
    return float(gaps.abs().sum() / len(gap))


def _log_probs(logits: Array) -> Tensor:
    return F.log_softmax(torch.as_tensor(logits).detach().double(), dim=-1)


def _predictions(logits: Array) -> Tensor:
    return torch.as_tensor(logits).argmax(-1)


def _integers(values: Array) -> Tensor:
    return torch.as_tensor(values).long()


def _same_shape(one: Tensor, other: Tensor) -> None:
    # Broadcasting would turn (N,) against (N, 1) into (N, N), and count all of it.
    if one.shape != other.shape:
        raise KDError(f"expected one prediction for each label, or for each of the other's, found shapes {tuple(one.shape)} and "
                      f"{tuple(other.shape)}; logits are (N, classes), labels and predicted classes (N,)")
