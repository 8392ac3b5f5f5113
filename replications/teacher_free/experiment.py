"""Distillation without a larger teacher on CIFAR-10: a student taught by its like, by label smoothing, by a teacher made by hand.

Experiments 4 and 5 of a course project report (IIT Kanpur, CS771A, 2020), after Yuan et al. 2020, "Revisiting Knowledge
Distillation via Label Smoothing Regularization".  A student taught by a student like itself is said to reach 88.7%, against
87.25% from scratch; taught by a student that was so taught, 89%.

What the arms are, and where text and released code differ, is in README.md beside this file; the networks, the loss and the
training are in replications/course_cifar.py, and the full runs that grid needs too are trained once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlib import cli
from kdlib.experiment import Arm, Profile
from replications.course_cifar import (
    ALPHAS,
    RECORDED_TEACHER,
    TEMPERATURES,
    Config,
    cell,
    train_distilled,
    train_distilled_sham,
    train_distilled_sham_together,
    train_distilled_together,
    train_resnet18,
    train_smoothed,
    train_smoothed_together,
    train_student,
    train_student_together,
    train_virtual_teacher,
    train_virtual_teacher_together,
)
from replications.course_report import SOURCE, Data, cifar10_data

__all__ = ["SOURCE"]  # runs are shared between replications of one source
PROTOCOL = 1  # raised whenever an edit can move results
DATA = ("cifar10",)
DATA_FIELDS = ()

PAPER = Config()
# Its teacher is the recorded one, of 3 epochs; the 2 are of a teacher of synthetic pictures.
QUICK = replace(PAPER, epochs=8, slow_from=5, train_pictures=2_500, teacher_epochs=2, recorded_teacher=RECORDED_TEACHER)
SMOKE = replace(PAPER, epochs=6, slow_from=5, batch=8, train_pictures=160, test_pictures=60)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    return cifar10_data(folders.get("cifar10"), config.train_pictures, config.test_pictures)


BOTH = ("as released", "controlled")
SLOWS = {"slows": True}  # code: a tenth of the learning rate from epoch 30 on, in every taught run; the baseline had not that
FIRST = {"alpha": 0.2, "temperature": 2.0}  # the report's best cell; also ours for smoothing, virtual teacher and sham


def taught(name: str, teacher: str, modes: tuple[str, ...] = BOTH, **change: Any) -> Arm:
    change = SLOWS | change | {"temperature": float(change["temperature"])}
    return Arm(name, modes, train_distilled, {"teacher": teacher}, change, together=train_distilled_together,
               mapped=("alpha", "temperature"))


ARMS = (
    Arm("teacher", ("as released",), train_resnet18, seed=0),
    Arm("resnet18", ("as released",), train_resnet18),  # one for each seed, to compare its entropy with
    # also the teacher of experiment 4
    Arm("baseline_64", ("as released",), train_student, change={"batch": 64}, together=train_student_together),
    Arm("baseline", ("as described",), train_student, together=train_student_together),
    Arm("baseline_slowed", ("controlled",), train_student, change=SLOWS, together=train_student_together),
    # Experiment 4. The text does not speak of a slower rate. (Alone: the by_resnet18 cells then make groups as in grid.)
    Arm(f"described_{cell(0.2, 2)}", ("as described",), train_distilled, {"teacher": "baseline"}, FIRST),
    *(taught(f"self_{cell(alpha, t)}", "baseline_64", alpha=alpha, temperature=t) for alpha in ALPHAS for t in TEMPERATURES),
    # Experiment 5.
    *(taught(f"again_{cell(alpha, t)}", f"self_{cell(0.6, 2)}", alpha=alpha, temperature=t)
      for alpha in (0.2, 0.4, 0.6) for t in (2, 4)),
    # What the report compares its best T and experiment 5 with: grid's cells of the best alpha.
    *(taught(f"by_resnet18_{cell(0.6, t)}", "teacher", ("as released",), alpha=0.6, temperature=t, slows=False)
      for t in TEMPERATURES),
    Arm("smoothed", ("controlled",), train_smoothed, change=SLOWS | FIRST, together=train_smoothed_together),
    Arm("virtual_teacher", ("controlled",), train_virtual_teacher, change=SLOWS | FIRST, together=train_virtual_teacher_together),
    Arm("sham", ("sham",), train_distilled_sham, {"teacher": "baseline_64"}, SLOWS | FIRST,
        together=train_distilled_sham_together),
)
HEADLINE = ("baseline_64", "baseline_slowed", f"self_{cell(0.2, 2)}", f"self_{cell(1.0, 2)}", "smoothed", "sham")
BANDED = ("accuracy", "training_loss")  # with recorded bands; the loss is what a sham teacher moves most
CHECK = ("smoothed", f"self_{cell(1.0, 2)}")  # what `check` trains, with seed 0; at alpha 0.2 it could not tell a sham
PROFILES = {
    "full": Profile(PAPER, seeds=5),
    "quick": Profile(QUICK, seeds=2, arms=HEADLINE, reduced="8 epochs (the last 4 slowed) on the first 2,500 pictures instead "
                     "of 50 (the last 21) on 50,000; the same student, batch sizes and losses"),
    "smoke": Profile(SMOKE, seeds=1, arms=("virtual_teacher", f"described_{cell(0.2, 2)}"), synthetic=True,
                     reduced="6 epochs of 160 synthetic pictures, batch 8"),
}

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
