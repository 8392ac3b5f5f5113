"""Soft targets: a teacher's logits and where they come from, ensembles, and teachers made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import KDError

if TYPE_CHECKING:
    from kdlib.batches import Examples

__all__ = ["SoftTargets", "mean_of_distributions", "mix_logits", "smoothed_labels", "virtual_teacher"]


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """A teacher's logits (N, K), one row per example, the run they come from and the data they belong to."""

    logits: Tensor
    teacher_run: str
    data_digest: str
    views: str = "plain"

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """The teacher's distributions (N, K) at a temperature."""
        return F.softmax(self.logits / temperature, dim=-1)

    def check(self, examples: Examples) -> None:
        """Refuse examples other than those, in other views than those, the teacher saw (KDError)."""
        mine = (self.data_digest, self.views, len(self.logits))
        theirs = (examples.digest, examples.views, len(examples.inputs))
        if mine != theirs:
            raise KDError("expected soft targets of these very examples "
                          f"(data {theirs[0]}, views {theirs[1]!r}, {theirs[2]} rows), found those of run "
                          f"{self.teacher_run} (data {mine[0]}, views {mine[1]!r}, {mine[2]} rows); "
                          "predict the teacher's logits anew on these examples")

    def permuted_within_classes(self, labels: Tensor, generator: torch.Generator) -> SoftTargets:
        """The sham: each row goes to a random example of its class (labels (N,)); only what the class says is left.

        Raises KDError unless there is one label a row.
        """
        if len(labels) != len(self.logits):
            raise KDError(f"expected {len(self.logits)} labels, one per soft target, found {len(labels)}")
        shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
        source = torch.empty_like(shuffled)
        # Two orders that run through the classes alike, one of them shuffled within each class.
        source[labels.argsort(stable=True)] = shuffled[labels[shuffled].argsort(stable=True)]
        return replace(self, logits=self.logits[source.to(self.logits.device)])


def mean_of_distributions(logits: Sequence[Tensor], kind: Literal["arithmetic", "geometric"]) -> Tensor:
    """Logits (N, K) whose softmax is the mean of those of an ensemble's logits (N, K) (Hinton, Vinyals, Dean 2015, sec. 1).

    The arithmetic mean is that at temperature 1 (for another, divide the logits first), the geometric at any.
    """
    log_probs = F.log_softmax(torch.stack(list(logits)), dim=-1)
    if kind == "geometric":
        return log_probs.mean(dim=0)
    if kind == "arithmetic":
        return F.log_softmax(log_probs.logsumexp(dim=0), dim=-1)
    raise KDError(f"expected a mean of kind 'arithmetic' or 'geometric', found {kind!r}")


def mix_logits(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Logits whose softmax at temperature 1 is weight * softmax(first) + (1 - weight) * softmax(second).

    Shapes (N, K), (N, K), (N,).  The result is the mixture's log-probabilities.
    """
    weight = weight.unsqueeze(-1)
    return torch.logaddexp(weight.log() + F.log_softmax(first, dim=-1),
                           torch.log1p(-weight) + F.log_softmax(second, dim=-1))


def smoothed_labels(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Distributions (N, K) for labels (N,): 1 - smoothing on the label, the rest spread evenly over all (Szegedy et al. 2016)."""
    return (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes


def virtual_teacher(labels: Tensor, classes: int, correct_probability: float, temperature: float) -> Tensor:
    """Logits (N, K) of a teacher made by hand (Yuan et al. 2020, virtual teacher), as the losses take them.

    At `temperature` their distribution has correct_probability on the label and
    (1 - correct_probability) / (K - 1) elsewhere; at another temperature it is sharper or softer.  Labels (N,);
    KDError where correct_probability is not between 0 and 1.
    """
    if not 0 < correct_probability < 1:
        raise KDError(f"expected 0 < correct_probability < 1, found {correct_probability}; "
                      "a teacher that is certain is a hard target: use cross_entropy")
    correct = F.one_hot(labels, classes).bool()
    probs = torch.where(correct, correct_probability, (1 - correct_probability) / (classes - 1))
    return temperature * probs.log()
