"""Soft targets: a teacher's logits with their origin, means of ensembles, and teachers that are made by hand.

A transfer set need not be the training set. `SoftTargets.select` and `Examples.select` leave out rows of both, and
`Examples.without_labels` drops the labels, which soft targets do not need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.checks import (
    check_classes,
    check_generator,
    check_kind,
    check_number,
    check_values,
    in_float32,
    outside_zero_to_one,
    row_numbers,
    tensor_of,
    whole_number,
)
from kdlib.class_labels import class_numbers
from kdlib.errors import KDError
from kdlib.files import tensor_digest
from kdlib.probabilities import checked_logits

__all__ = [
    "SoftTargets",
    "ensemble_targets",
    "mean_of_distributions",
    "mix_logits",
    "selected_rows",
    "smoothed_labels",
    "virtual_teacher",
]


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """A teacher's logits (N, K), one row per example, and where they come from.

    `teacher_run` is the id of the teacher's run and `part` the part of its logits ("final.train"), `data_digest` the
    digest of the examples, `view` the augmentation of the inputs that the teacher got. `Examples.check` compares data
    and view with those of the student's examples. Logits (N, 1), one an example, are for `binary_distillation`.

    KDError for logits that are no tensor (N, ...), that are NaN, +inf, complex or truth values, for rows without a
    class, and for a row of -inf alone.
    """

    logits: Tensor
    teacher_run: str
    data_digest: str
    view: str = "plain"
    part: str = ""

    def __post_init__(self) -> None:
        """Refuse logits that are no teacher's (KDError)."""
        if not isinstance(self.logits, Tensor) or self.logits.ndim < 1:
            raise KDError(
                f"expected a teacher's logits, a tensor (N, K), found {type(self.logits).__name__}; predict_logits "
                "makes them, and torch.as_tensor makes a tensor of an array"
            )
        if self.logits.is_complex() or self.logits.dtype == torch.bool or 0 in self.logits.shape[1:]:
            raise KDError(
                f"expected a teacher's logits (N, K), numbers of at least one class, found {self.logits.dtype} of "
                f"shape {tuple(self.logits.shape)}; predict_logits makes them"
            )
        check_values(self.logits.detach().cpu())
        object.__setattr__(self, "logits", self.logits.detach())  # the class is frozen; a teacher gets no gradient

    def origin(self) -> dict[str, str]:
        """Return where the logits come from, and the SHA-256 of their bytes."""
        digest = tensor_digest({"logits": self.logits})
        return {"run": self.teacher_run, "part": self.part, "sha256": digest}

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Return the teacher's distributions (N, K) at a temperature above 0, from logits in 16 bits as float32.

        KDError for logits that are not (N, K) with K >= 2.
        """
        temperature = _check_temperature(temperature)
        return F.softmax(checked_logits(self.logits, "the teacher") / temperature, dim=-1)

    def select(self, rows: Any) -> SoftTargets:
        """Return the soft targets of some rows, for a transfer set: row numbers (n,) or a mask (N,).

        Rows are a tensor, a NumPy array or a list. They fit `Examples.select` of the same rows and no other examples.
        KDError for a mask of another length.
        """
        rows, digest = selected_rows(rows, len(self.logits), self.data_digest)
        return replace(self, logits=self.logits[rows.to(self.logits.device)], data_digest=digest)

    def permuted_within_classes(self, labels: Any, generator: torch.Generator) -> SoftTargets:
        """Return sham targets: the rows permuted at random among the examples of the same class, given labels (N,).

        The targets then say nothing about an example except its class. Raises KDError unless there is one label for
        each row.
        """
        check_generator(generator)
        labels = tensor_of(labels, "labels")
        if labels.shape != self.logits.shape[:1]:
            raise KDError(
                f"expected {len(self.logits)} labels, one per soft target, found labels of shape {tuple(labels.shape)}"
            )
        shuffled = torch.randperm(len(labels), generator=generator, device="cpu").to(labels.device)
        source = torch.empty_like(shuffled)
        # Both sides list the rows class by class; the right side is shuffled within each class.
        source[labels.argsort(stable=True)] = shuffled[labels[shuffled].argsort(stable=True)]
        shuffled_logits = self.logits[source.to(self.logits.device)]
        return replace(self, logits=shuffled_logits, part=f"{self.part}, permuted within classes")


def selected_rows(rows: Any, count: int, digest: str) -> tuple[Tensor, str]:
    """Return row numbers int64 (n,) of data with `count` rows, and a digest made from the data's digest and these rows.

    `rows` are row numbers or a mask (count,). KDError for a mask of another length and for rows outside.
    """
    rows = row_numbers(rows, count)
    if rows.dtype == torch.bool:
        if rows.shape != (count,):
            raise KDError(f"expected a mask of shape ({count},), one per row, found {tuple(rows.shape)}")
        rows = rows.nonzero()[:, 0]
    if rows.ndim != 1:
        raise KDError(f"expected row numbers (n,) or a mask, found shape {tuple(rows.shape)}; use rows.flatten()")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < count:
        raise KDError(f"expected row numbers from 0 to {count - 1}, found {int(rows.min())} to {int(rows.max())}")
    return rows, f"{digest}, rows {tensor_digest({'rows': rows})[:16]}"


def ensemble_targets(
    members: Sequence[SoftTargets], kind: Literal["arithmetic", "geometric"], temperature: float
) -> SoftTargets:
    """Return the soft targets of an ensemble: the mean of its members' distributions at the temperature that is used.

    Pass this temperature to the loss too: `mean_of_distributions` says why. `part` says how the targets were made.
    KDError without members, if the members' data, view or number of rows differ, for another `kind`, and for logits
    that are not (N, K) with K >= 2. Make two logits of one, 0 and z; `binary_logit` makes one of the mean's two.
    """
    temperature = _check_temperature(temperature)
    for member in members if isinstance(members, Sequence) else [members]:
        check_kind("members", member, SoftTargets, "mean_of_distributions takes logits as they are")
    check_kind("members", members, (list, tuple), "give the members in a list")
    origins = sorted({(soft.data_digest, soft.view, tuple(soft.logits.shape)) for soft in members})
    if len(origins) != 1:
        raise KDError(
            f"expected members with logits of the same examples, view and shape, found {origins or 'no member'}; "
            "predict the logits of all members on the same examples"
        )
    logits = mean_of_distributions([soft.logits for soft in members], kind, temperature)
    runs, parts = (
        list(dict.fromkeys(names)) for names in zip(*((m.teacher_run, m.part) for m in members), strict=True)
    )
    part = f"{kind} mean of {len(members)} at temperature {temperature:g}: {' + '.join(parts)}"
    return replace(members[0], logits=logits, teacher_run=" + ".join(runs), part=part)


def mean_of_distributions(
    logits: Sequence[Tensor], kind: Literal["arithmetic", "geometric"], temperature: float = 1.0
) -> Tensor:
    """Return logits (N, K) whose softmax at `temperature` is the mean of the members' distributions at it.

    Each member has logits (N, K). The arithmetic mean holds at this temperature only: the mean of softened
    distributions is not the softened mean. The geometric mean holds at every temperature: it is the softmax of the
    mean logits. Logits in 16 bits give float32. KDError for another `kind`, no member, logits that are not (N, K) with
    K >= 2, members of different shapes, a temperature that is not above 0, and a row without a mean: it has NaN, or its
    members exclude all classes between them. Warns (ProbabilitiesAsLogits) if a member's rows are distributions
    (Hinton, Vinyals, Dean 2015, section 1).
    """
    temperature = _check_temperature(temperature)
    logits = [checked_logits(member, "a member of the ensemble") for member in logits]
    shapes = {tuple(member.shape) for member in logits}
    if len(shapes) != 1:
        raise KDError(f"expected logits of members, all of one shape, found shapes {sorted(shapes) or 'of no member'}")
    log_probs = F.log_softmax(torch.stack(logits) / temperature, dim=-1)
    if kind not in ("arithmetic", "geometric"):
        raise KDError(f"expected a mean of kind 'arithmetic' or 'geometric', found {kind!r}; choose one of them")
    log_means = log_probs.mean(dim=0) if kind == "geometric" else F.log_softmax(log_probs.logsumexp(dim=0), dim=-1)
    mean = temperature * log_means
    check_values(mean, f"the {kind} mean")
    return mean


def mix_logits(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Return logits (N, K) with the softmax weight * softmax(first) + (1 - weight) * softmax(second) at temperature 1.

    `first` and `second` are (N, K), `weight` is (N,). The result is the logarithm of the mixture, of logits in 16 bits
    in float32. KDError for other shapes, and for weights outside 0 to 1.
    """
    weight = tensor_of(weight, "the first partner's weights")
    if first.shape != second.shape or weight.shape != first.shape[:-1]:
        raise KDError(
            f"expected logits (N, K) of both partners and weights (N,), found {tuple(first.shape)}, "
            f"{tuple(second.shape)} and {tuple(weight.shape)}; give a weight for each row"
        )
    if outside_zero_to_one(weight):
        raise KDError("expected weights from 0 to 1, found others; give the first partner's share of each row")
    first, second = checked_logits(first, "the teacher"), checked_logits(second, "the teacher")
    weight = in_float32(weight).unsqueeze(-1)
    return torch.logaddexp(
        weight.log() + F.log_softmax(first, dim=-1), torch.log1p(-weight) + F.log_softmax(second, dim=-1)
    )


def smoothed_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return distributions (N, K) for labels (N,): (1 - smoothing) one_hot + smoothing / K (Szegedy et al. 2016).

    KDError for a label outside the classes and for a smoothing outside 0 to 1.
    """
    smoothing, classes = check_number("smoothing", smoothing, 0, 1, "0.1 is usual"), whole_number("classes", classes)
    return (1 - smoothing) * _one_hot(labels, classes) + smoothing / classes


def virtual_teacher(labels: Tensor, classes: int, correct_probability: float, temperature: float) -> Tensor:
    """Return logits (N, K) of a teacher that is made by hand from labels (N,): the virtual teacher of Yuan et al. 2020.

    At `temperature` its distribution has correct_probability on the label and (1 - correct_probability) / (K - 1) on
    each other class; at another temperature it is sharper or softer. KDError unless 0 < correct_probability < 1 and
    temperature > 0, for fewer than two classes, and for a label outside the classes.
    """
    temperature = _check_temperature(temperature)
    remedy = "a certain teacher is a hard target: use cross_entropy"
    correct_probability = check_number("correct_probability", correct_probability, 0, 1, remedy)
    if not 0 < correct_probability < 1:
        raise KDError(f"expected 0 < correct_probability < 1, found {correct_probability}; {remedy}")
    classes = whole_number("classes", classes)
    correct = _one_hot(labels, classes).bool()
    probs = torch.where(correct, correct_probability, (1 - correct_probability) / (classes - 1))
    logits = temperature * probs.log()
    if not bool(logits.isfinite().all()):
        raise KDError(
            f"expected a probability and a temperature whose logits float32 can hold, found {correct_probability:g} "
            f"and {temperature:g}; take a probability further from 0 and 1, or a lower temperature"
        )
    return logits


def _check_temperature(temperature: float) -> float:
    remedy = "1 leaves the logits as they are"
    checked: float = check_number("temperature", temperature, 0, math.inf, remedy, above=True)
    return checked


def _one_hot(labels: Any, classes: int) -> Tensor:
    labels = class_numbers(labels)
    if classes < 2:
        raise KDError(f"expected two or more classes, found {classes}; give the number of all classes")
    check_classes(labels.cpu(), classes)
    return F.one_hot(labels, classes)
