"""Measures of predictions, computed in float64 from torch tensors or NumPy arrays, and the refusal of a bad teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import KDError, same_shape

__all__ = [
    "accuracy",
    "agreement",
    "classification_metrics",
    "confusion_matrix",
    "error_count",
    "expected_calibration_error",
    "f1_by_class",
    "macro_f1",
    "macro_f1_of_confusion",
    "mean_entropy",
    "mean_kl",
    "refuse_at_chance",
]

Array = Any  # a torch tensor, a NumPy array or nested lists


def accuracy(logits: Array, labels: Array) -> float:
    """Return the share of the rows, from 0 to 1, whose largest logit (N, K) is that of the label (N,)."""
    return 1 - error_count(logits, labels) / len(labels)


def error_count(logits: Array, labels: Array) -> int:
    """Return the number of rows whose largest logit (N, K) is not that of the label (N,)."""
    predicted, true = _predictions(logits), _integers(labels)
    same_shape(predicted, true)
    return int((predicted != true).sum())


def agreement(logits_a: Array, logits_b: Array) -> float:
    """Return the share of the rows, from 0 to 1, for which two models (N, K) predict the same class."""
    first, second = _predictions(logits_a), _predictions(logits_b)
    same_shape(first, second)
    return float((first == second).double().mean())


def confusion_matrix(predictions: Array, labels: Array, classes: int) -> list[list[int]]:
    """Return the counts (K, K): a row per label, a column per predicted class. Predictions and labels are (N,)."""
    predicted, true = _integers(predictions), _integers(labels)
    same_shape(predicted, true)
    counts = (true * classes + predicted).bincount(minlength=classes * classes)
    matrix: list[list[int]] = counts.view(classes, classes).tolist()
    return matrix


def macro_f1(predictions: Array, labels: Array, classes: int) -> float:
    """Return the macro F1, from 0 to 1: the unweighted mean of F1 over all classes. Predictions and labels are (N,)."""
    return macro_f1_of_confusion(confusion_matrix(predictions, labels, classes))


def macro_f1_of_confusion(matrix: Array) -> float:
    """Return the macro F1, from 0 to 1, of a confusion matrix (K, K) with a row per label."""
    return float(f1_by_class(matrix).mean())


def f1_by_class(matrices: Array) -> Tensor:
    """Return the F1 of each class (..., K), from 0 to 1, of confusion matrices (..., K, K) with a row per label.

    It is 2 TP / (2 TP + FP + FN), and 0 for a class that is neither a label nor predicted.
    """
    counts = torch.as_tensor(matrices, dtype=torch.float64)
    involved = counts.sum(-2) + counts.sum(-1)  # 2 TP + FP + FN
    return 2 * counts.diagonal(dim1=-2, dim2=-1) / involved.clamp(min=1)


def classification_metrics(
    logits: Array, labels: Array, classes: int, teacher_logits: Array | None = None
) -> dict[str, Any]:
    """Return accuracy, mean entropy (nats) and confusion matrix of logits (N, K) for labels (N,), by name.

    With the teacher's logits (N, K) also the agreement with the teacher and `teacher_kl`, KL(teacher || these) in nats.
    """
    found = {
        "accuracy": accuracy(logits, labels),
        "entropy": mean_entropy(logits),
        "confusion": confusion_matrix(_predictions(logits), labels, classes),
    }
    if teacher_logits is None:
        return found
    return found | {"agreement": agreement(teacher_logits, logits), "teacher_kl": mean_kl(teacher_logits, logits)}


def mean_entropy(logits: Array) -> float:
    """Return the mean entropy of the predicted distributions, in nats, of logits (N, K)."""
    log_probs = _log_probs(logits)
    return float(-(log_probs.exp() * log_probs).sum(-1).mean())


def mean_kl(teacher_logits: Array, student_logits: Array) -> float:
    """Return the mean of KL(teacher || student), in nats, of logits (N, K)."""
    teacher, student = _log_probs(teacher_logits), _log_probs(student_logits)
    same_shape(teacher, student)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def expected_calibration_error(logits: Array, labels: Array, bins: int = 15) -> float:
    """Return the mean gap between accuracy and confidence, from 0 to 1, over equal bins (low, high].

    Logits are (N, K), labels (N,). Each bin counts by its number of rows (Guo et al. 2017, eq. 3).
    """
    confidence, predicted = _log_probs(logits).exp().max(-1)
    true = _integers(labels)
    same_shape(predicted, true)
    gap = (predicted == true).double() - confidence
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=gap.device)
    number = torch.bucketize(confidence, edges[1:-1])
    gaps = gap.new_zeros(bins).index_add(0, number, gap)
    return float(gaps.abs().sum() / len(gap))


def refuse_at_chance(logits: Tensor, labels: Tensor, score: Callable[[Tensor, Tensor], float], who: str) -> None:
    """Refuse a teacher whose logits (N, K) do not score above chance on labels (N,): its students would learn nothing.

    Chance is the score of always predicting the most frequent class. `score(logits, labels)` is the accuracy or the
    macro F1, for example; `who` names the run in the KDError.
    """
    labels = labels.to(logits.device)
    constant = torch.zeros_like(logits)
    constant[:, labels.mode().values] = 1
    chance, reached = score(constant, labels), score(logits, labels)
    if reached <= chance:
        raise KDError(
            f"{who}: expected a teacher above chance ({chance:.3f}, the score of the most frequent class), found "
            f"{reached:.3f}; its students are not started. Train it longer or check its inputs"
        )


def _log_probs(logits: Array) -> Tensor:
    return F.log_softmax(torch.as_tensor(logits).detach().double(), dim=-1)


def _predictions(logits: Array) -> Tensor:
    return torch.as_tensor(logits).argmax(-1)


def _integers(values: Array) -> Tensor:
    return torch.as_tensor(values).long()
