"""Measures of predictions, computed in float64 from torch tensors or NumPy arrays, and the refusal of a bad teacher.

KDError for what has no right answer: logits that are not (N, K) with K >= 2, no row, NaN or +inf, labels and predicted
classes outside the classes or with fractions. The logit -inf is a class that is excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.checks import check_classes, check_logits, check_values, tensor_of, whole_number
from kdlib.class_labels import whole_labels
from kdlib.errors import KDError, same_shape
from kdlib.probabilities import warn_of_probabilities

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
    predicted, true = _predictions_and_labels(logits, labels)
    return int((predicted != true).sum())


def agreement(logits_a: Array, logits_b: Array) -> float:
    """Return the share of the rows, from 0 to 1, for which two models (N, K) predict the same class."""
    first, second = _checked(logits_a), _checked(logits_b)
    same_shape(first, second)  # of the logits: the same number is another class among others
    return float((first.argmax(-1) == second.argmax(-1)).double().mean())


def confusion_matrix(predictions: Array, labels: Array, classes: int) -> list[list[int]]:
    """Return the counts (K, K): a row per label, a column per predicted class. Predictions and labels are (N,)."""
    predicted, true = whole_labels(predictions, "predicted classes"), whole_labels(labels)
    same_shape(predicted, true)
    classes = whole_number("classes", classes)  # the square of a number of 8 bits overflows
    if true.ndim != 1 or classes < 1:
        raise KDError(
            f"expected predictions and labels (N,) and at least one class, found shape {tuple(true.shape)} and "
            f"{classes} classes; give the predicted classes, logits.argmax(1), and flatten places"
        )
    check_classes(true.cpu(), classes)
    check_classes(predicted.cpu(), classes, "predicted classes")
    counts = (true * classes + predicted).bincount(minlength=classes * classes)
    matrix: list[list[int]] = counts.view(classes, classes).tolist()
    return matrix


def macro_f1(predictions: Array, labels: Array, classes: int) -> float:
    """Return the macro F1, from 0 to 1: the unweighted mean of F1 over all classes. Predictions and labels are (N,)."""
    if len(labels) == 0:
        raise KDError("expected at least one label for the macro F1, found none; give the rows to measure")
    return macro_f1_of_confusion(confusion_matrix(predictions, labels, classes))


def macro_f1_of_confusion(matrix: Array) -> float:
    """Return the macro F1, from 0 to 1, of a confusion matrix (K, K) with a row per label."""
    return float(f1_by_class(matrix).mean())


def f1_by_class(matrices: Array) -> Tensor:
    """Return the F1 of each class (..., K), from 0 to 1, of confusion matrices (..., K, K) with a row per label.

    It is 2 TP / (2 TP + FP + FN), and 0 for a class that is neither a label nor predicted. KDError for matrices that
    are not (..., K, K), and for numbers that are no counts: the shares of a normalised matrix, for example.
    """
    given = tensor_of(matrices, "confusion matrices")
    counts = given.double()
    whole = not given.is_floating_point() or bool(((counts == counts.round()) & counts.isfinite()).all())
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or not whole or not bool((counts >= 0).all()):
        raise KDError(
            f"expected confusion matrices (..., K, K) of counts, whole numbers from 0, found shape "
            f"{tuple(counts.shape)}{'' if whole else ' and fractions, NaN or infinity'}; confusion_matrix makes one of "
            "predicted classes and labels, and it must not be normalised"
        )
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
    return float(-_expected(log_probs, log_probs).mean())


def mean_kl(teacher_logits: Array, student_logits: Array) -> float:
    """Return the mean of KL(teacher || student), in nats, of logits (N, K).

    It is infinite if the student excludes a class to which the teacher gives a probability above 0.
    """
    teacher, student = _log_probs(teacher_logits), _log_probs(student_logits)
    same_shape(teacher, student)
    return float(_expected(teacher, teacher - student).mean())


def expected_calibration_error(logits: Array, labels: Array, bins: int = 15) -> float:
    """Return the mean gap between accuracy and confidence, from 0 to 1, over equal bins (low, high].

    Logits are (N, K), labels (N,). Each bin counts by its number of rows (Guo et al. 2017, eq. 3). KDError for less
    than one bin.
    """
    bins = whole_number("bins", bins)
    if bins < 1:
        raise KDError(f"bins: expected at least 1, found {bins}; 15 is usual")
    _, true = _predictions_and_labels(logits, labels)
    confidence, predicted = _log_probs(logits).exp().max(-1)
    gap = (predicted == true).double() - confidence
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=gap.device)
    number = torch.bucketize(confidence, edges[1:-1])
    gaps = gap.new_zeros(bins).index_add(0, number, gap)
    return float(gaps.abs().sum() / len(gap))


def refuse_at_chance(logits: Tensor, labels: Tensor, score: Callable[[Tensor, Tensor], float], who: str) -> None:
    """Refuse a teacher whose logits (N, K) do not score above chance on labels (N,): its students would learn nothing.

    Chance is the score of always predicting the most frequent class. `score(logits, labels)` is the accuracy or the
    macro F1, for example; `who` names the run in the KDError. KDError also for one logit an example and for labels
    outside the classes.
    """
    _, labels = _predictions_and_labels(logits, labels)
    logits = tensor_of(logits, "logits")
    labels, constant = labels.to(logits.device), torch.zeros_like(logits)
    constant[:, labels.mode().values] = 1
    chance, reached = score(constant, labels), score(logits, labels)
    if not reached > chance:  # also NaN
        raise KDError(
            f"{who}: expected a teacher above chance ({chance:.3f}, the score of the most frequent class), found "
            f"{reached:.3f}; its students are not started. Train it longer or check its inputs"
        )


def _log_probs(logits: Array) -> Tensor:
    values = _checked(logits)
    warn_of_probabilities(values, "a metric")
    return F.log_softmax(values.double(), dim=-1)


def _expected(log_probs: Tensor, values: Tensor) -> Tensor:
    """The mean of values (N, K) in each row's distribution, (N,); a class of probability 0 counts as 0."""
    probs = log_probs.exp()
    return (probs * values).masked_fill(probs == 0, 0).sum(-1)


def _predictions(logits: Array) -> Tensor:
    return _checked(logits).argmax(-1)


def _predictions_and_labels(logits: Array, labels: Array) -> tuple[Tensor, Tensor]:
    values = _checked(logits)
    predicted = values.argmax(-1)
    same_shape(predicted, tensor_of(labels, "labels"))
    true = whole_labels(labels)
    check_classes(true.cpu(), values.shape[1])
    return predicted, true


def _checked(logits: Array) -> Tensor:
    if isinstance(logits, dict) or (isinstance(logits, tuple) and any(isinstance(part, Tensor) for part in logits)):
        raise KDError(f"expected logits (N, K), found {type(logits).__name__}; pick one of the model's outputs")
    values = tensor_of(logits, "logits (N, K)").detach()
    values = check_logits(values if values.is_floating_point() else values.double())
    check_values(values.cpu(), "the model")
    return values
