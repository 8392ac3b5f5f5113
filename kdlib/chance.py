"""Tells soft targets that know no more of the labels than chance does: often they are those of other rows."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.targets import SoftTargets

__all__ = ["TeacherAtChance", "share_of_labels"]

ROWS_AT_ONCE = 65536
LIMIT, MANY_ROWS_LIMIT, MANY_ROWS = 2, 3, 1000  # standard deviations; of many rows, a weak teacher shows at 3 as well


class TeacherAtChance(UserWarning):
    """The soft targets know no more of the labels than chance does."""


def share_of_labels(soft: SoftTargets, labels: Tensor) -> float:
    """Return the share of rows whose most probable class is their label (N,), in 0 to K - 1.

    Warns (TeacherAtChance) if chance explains it.
    """
    logits, count = soft.logits.to(labels.device), len(labels)
    found = (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)  # one logit: binary
    share = float((found == labels).double().mean())
    _, every = torch.unique(torch.cat([labels, found]), return_inverse=True)
    most = int(every.max()) + 1
    classes, predicted = (torch.bincount(part, minlength=most).double() / count for part in every.split(count))
    # With these shares of classes, answers that know nothing agree as often, up to two or three standard deviations.
    chance = float((classes * predicted).sum())
    deviation = math.sqrt(max(0, _variance_of_agreement(classes, predicted)) / max(1, count - 1))
    limit = MANY_ROWS_LIMIT if count >= MANY_ROWS else LIMIT
    at_chance = share < 1 and int((classes > 0).sum()) > 1 and share <= chance + limit * deviation + 1e-9
    if at_chance and not _knows_labels(logits, labels, limit):
        warnings.warn(
            f"the teacher is at chance: run {soft.teacher_run} agrees with the labels of {share:.1%} of {count} "
            f"examples, and chance with {chance:.1%}; check that its rows are in the order of the examples",
            TeacherAtChance,
            stacklevel=4,
        )
    return share


def _variance_of_agreement(classes: Tensor, predicted: Tensor) -> float:
    """N - 1 times the variance of the share of agreement, if the predictions were in a random order.

    `classes` and `predicted` are the shares of the classes (Hoeffding 1951, Theorem 2).
    """
    chance = (classes * predicted).sum()
    return float(chance + chance**2 - (classes * predicted * (classes + predicted)).sum())


def _knows_labels(logits: Tensor, labels: Tensor, limit: float) -> bool:
    """Whether a label's probability is higher for its own rows than for all rows, by `limit` deviations.

    The most probable class alone says nothing of a class so rare that it is hardly ever the most probable one.
    """
    classes = max(2, logits.shape[1])
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        return False
    shares = torch.bincount(labels, minlength=classes).double() / len(labels)
    gains = []
    for rows, own in zip(torch.split(logits, ROWS_AT_ONCE), torch.split(labels, ROWS_AT_ONCE), strict=True):
        both = F.pad(rows.double(), (1, 0)) if rows.shape[1] == 1 else rows.double()
        probabilities = both.softmax(1)
        gains.append(probabilities.gather(1, own[:, None]).squeeze(1) - probabilities @ shares)
    every = torch.cat(gains)
    return float(every.mean()) > limit * float(every.std(correction=0)) / math.sqrt(len(every))
