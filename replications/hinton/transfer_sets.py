"""Transfer sets that are not the training set: digits left out, and 3% of the digits (sections 3 and 6).

A student that never saw a class predicts it too rarely: its bias for the class is too low. The paper corrects the bias
with the test labels. The other correction here needs no label.

Shapes: N digits, K = 10 classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from kdlib.batches import Examples
from kdlib.errors import KDError
from kdlib.losses import cross_entropy
from kdlib.metrics import accuracy
from kdlib.run.experiment import Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets
from kdlib.training import hard_targets, predict_logits

from .config import CLASSES
from .digits import about_student, distillation, fit, last, measure, on_device, teacher_targets

WIDEST = 100.0  # the largest change of a bias that is looked for
CURVE = torch.linspace(-10, 10, 81)  # biases at which a figure shows the number of errors


def train_left_out(run: Run) -> Result:
    """Distil on the digits of the other classes, without labels; then correct the bias of some classes in two ways.

    Without 3s, the bias of 3 is corrected. With 7s and 8s alone, those of 7 and 8 are, by one number.
    """
    run, config = on_device(run)
    kept = ~torch.isin(run.data.train.labels, torch.tensor(config.left_out, device=run.device))
    transfer_set = run.data.train.select(kept).without_labels()
    soft = teacher_targets(run).select(kept)
    progress = fit(run, transfer_set, distillation(replace(config, soft_only=True)), soft)
    shifted = rarer_classes(config.left_out)
    on_test, on_transfer_set = (predict_logits(progress.model, part.inputs) for part in (run.data.test, transfer_set))
    biases = {
        "final": 0.0,
        "corrected": best_bias(on_test, run.data.test.labels, shifted),
        "matched": matching_bias(on_transfer_set, soft.logits, shifted),
    }
    weights, metrics = {}, {}
    for snapshot, bias in biases.items():
        weights[snapshot] = with_bias(progress.kept["final"], shifted, bias)
        found = measure(run, raised(on_test, shifted, bias)) | about_student(progress)
        metrics[snapshot] = found | {
            "bias": bias,
            "threes_accuracy": found["confusion"][3][3] / sum(found["confusion"][3]),
        }
    metrics["corrected"] |= seen_right(raised(on_test, shifted, biases["corrected"]), run.data.test)
    metrics["final"]["curve"] = [
        [float(bias), errors_with(on_test, run.data.test.labels, shifted, float(bias))] for bias in CURVE
    ]
    return Result(metrics, progress.history, weights)


def rarer_classes(left_out: tuple[int, ...]) -> tuple[int, ...]:
    """Return the classes whose bias is corrected: those left out or, if most are, those that were not."""
    return left_out if len(left_out) < CLASSES / 2 else tuple(sorted({*range(CLASSES)} - {*left_out}))


def seen_right(logits: Tensor, test: Examples) -> dict[str, list[int]]:
    """Return the numbers of the test digits of class 3 that are recognised, for a figure."""
    right = (logits.argmax(1) == 3) & (test.labels == 3)
    return {"right_threes": right.nonzero()[:, 0].tolist()}


# ---- the correction of biases


def raised(logits: Tensor, classes: tuple[int, ...], bias: float) -> Tensor:
    """Return logits (N, K) with `bias` added to some classes."""
    changed = logits.clone()
    changed[:, list(classes)] += bias
    return changed


def with_bias(weights: dict[str, Tensor], classes: tuple[int, ...], bias: float) -> dict[str, Tensor]:
    name = list(weights)[-1]  # the bias of the last layer
    changed = weights[name].clone()
    changed[list(classes)] += bias
    return {**weights, name: changed}


def errors_with(logits: Tensor, labels: Tensor, classes: tuple[int, ...], bias: float) -> int:
    return int((raised(logits.double(), classes, bias).argmax(1) != labels).sum())


def best_bias(logits: Tensor, labels: Tensor, classes: tuple[int, ...]) -> float:
    """Return the bias of some classes that gives the fewest errors on logits (N, K), as the paper chose it.

    An example is given to these classes if the bias exceeds its gap: the largest other logit minus their largest one.
    So the number of errors changes at the gaps only, and the middle between two neighbours stands for all in between.
    Of equally good ones, the bias nearest to 0 is taken.
    """
    inside = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    inside[list(classes)] = True
    within, outside = (logits.double().masked_fill(~mask, -torch.inf) for mask in (inside, ~inside))
    gaps, order = (outside.amax(1) - within.amax(1)).sort()
    right_within, right_outside = ((part.argmax(1) == labels)[order].long() for part in (within, outside))
    # Right answers if the first n examples in order are given to the classes.
    right = torch.cat([gaps.new_zeros(1).long(), (right_within - right_outside).cumsum(0)]) + right_outside.sum()
    ends = torch.cat([gaps[:1] - 2, gaps, gaps[-1:] + 2])
    between = ((ends[1:] + ends[:-1]) / 2)[(right == right.max()) & (ends[1:] > ends[:-1])]
    return float(between[between.abs().argmin()])


def matching_bias(student: Tensor, teacher: Tensor, classes: tuple[int, ...]) -> float:
    """Return the bias of some classes at which the student predicts them as often as the teacher does, at T = 1.

    "How often" is the mean predicted probability over the transfer set, so no label is needed. Both logits are (N, K).
    """
    inside = list(classes)
    others = [k for k in range(student.shape[1]) if k not in classes]

    def log_odds(logits: Tensor) -> Tensor:
        logits = logits.double()
        return logits[:, inside].logsumexp(1) - logits[:, others].logsumexp(1)

    aim, own = log_odds(teacher).sigmoid().mean(), log_odds(student)

    def excess(bias: float) -> float:
        return float((own + bias).sigmoid().mean() - aim)

    if excess(-WIDEST) > 0 or excess(WIDEST) < 0:
        raise KDError(
            f"expected a bias between -{WIDEST:g} and {WIDEST:g} that matches the teacher's mean probability "
            f"{float(aim):g} of the classes {classes}, found none; check the teacher's logits"
        )
    return float(brentq(excess, -WIDEST, WIDEST, xtol=1e-9))


# ---- a small share of the digits


def train_small_hard(run: Run) -> Result:
    return train_small(run, taught=False)


def train_small_soft(run: Run) -> Result:
    return train_small(run, taught=True)


def train_small(run: Run, taught: bool) -> Result:
    """Train on 3% of the digits, the same number of each class, for as many steps as on all digits."""
    run, config = on_device(run)
    chosen = small_share(run.data.train.labels, config.small_share, run.generator("small share"))
    # An epoch has as many rows as there are digits, so it has as many steps, and checkpoints are as frequent.
    rows = chosen.repeat(-(-len(run.data.train.labels) // len(chosen)))[: len(run.data.train.labels)]
    soft: SoftTargets | None = teacher_targets(run).select(rows) if taught else None
    objective = distillation(config) if taught else hard_targets
    progress = fit(run, run.data.train.select(rows), objective, soft)
    seen = run.data.train.select(chosen)
    logits, on_seen = (predict_logits(progress.model, part.inputs) for part in (run.data.test, seen))
    found: dict[str, Any] = measure(run, logits) | about_student(progress)
    found |= {
        "training_accuracy": accuracy(on_seen, seen.labels),
        "gap": accuracy(on_seen, seen.labels) - found["accuracy"],
        "nats_gap": float(cross_entropy(logits, run.data.test.labels) - cross_entropy(on_seen, seen.labels)),
    }
    return Result({"final": found}, progress.history, last(progress))


def small_share(labels: Tensor, share: float, draws: torch.Generator) -> Tensor:
    """Return row numbers of a share of labels (N,), the same number of each class, in random order."""
    each = round(share * len(labels) / CLASSES)
    order = torch.randperm(len(labels), generator=draws)
    rows = torch.cat([order[labels.cpu()[order] == k][:each] for k in range(CLASSES)])
    if len(rows) < CLASSES * each or each == 0:
        raise KDError(f"small_share: expected {each} digits of each class, at least 1, found {len(rows)} in all")
    return rows[torch.randperm(len(rows), generator=draws)].to(labels.device)
