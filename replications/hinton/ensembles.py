"""An ensemble of ten students, and students that are taught by it (sections 1 and 4).

Shapes: N digits, K = 10 classes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdlib.errors import KDError
from kdlib.run.experiment import Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets, ensemble_targets
from kdlib.training import predict_logits

from .digits import about_student, distillation, fit, last, measure, on_device

MEMBERS = 10


def role(number: int) -> str:
    return f"member_{number}"


def average_members(run: Run) -> Result:
    """Measure the mean of the members' distributions at T = 1. Nothing is trained."""
    logits = of_members(run, "test", 1.0).logits
    # An ensemble has no weights. Its logits stand in for them, so that two ensembles are not taken for one.
    return Result({"final": measure(run, logits) | {"epochs": 0}}, [], {"final": {"logits": logits}})


def train_by_ensemble(run: Run) -> Result:
    """Distil from the mean of the members' distributions at the temperature that the student is trained at."""
    run, config = on_device(run)
    soft = of_members(run, "train", config.temperature)
    progress = fit(run, run.data.train, distillation(config), soft)
    logits: Tensor = predict_logits(progress.model, run.data.test.inputs)
    found = measure(run, logits, of_members(run, "test", 1.0).logits) | about_student(progress)
    return Result({"final": found}, progress.history, last(progress))


def of_members(run: Run, part: str, temperature: float) -> SoftTargets:
    """Return the mean of the members' soft targets (N, K) of a part of the data."""
    members = [run.soft_targets(role(number), part, getattr(run.data, part)) for number in range(MEMBERS)]
    return ensemble_targets(members, kind_of(run.config.mean), temperature)


def kind_of(name: str) -> Literal["arithmetic", "geometric"]:
    if name == "arithmetic":
        return "arithmetic"
    if name == "geometric":
        return "geometric"
    raise KDError(f"mean: expected arithmetic or geometric, found {name!r}; correct the arm's configuration")
