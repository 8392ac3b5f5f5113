"""Distillation from a ResNet-18 on CIFAR-10, for 25 pairs of alpha and T and for parts of the data.

Experiments 2 and 3 of a course project report (IIT Kanpur, CS771A, 2020).  A student of 816,938 parameters is said to reach
89.41% where a ResNet-18 (93.5%) teaches it, against 87.25% from scratch, and to gain the more the fewer pictures there are.

What the arms are, and where text and released code differ, is in README.md beside this file; the networks, the loss and the
training are in replications/course_cifar.py, for the report's next experiments (teacher_free) use them too.
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
    train_student,
    train_student_together,
)
from replications.course_report import SOURCE, Data, cifar10_data

__all__ = ["SOURCE"]  # runs are shared between replications of one source
PROTOCOL = 1  # raised whenever an edit can move results
DATA = ("cifar10",)
DATA_FIELDS = ()

PAPER = Config()
# Its teacher is the recorded one, of 3 epochs; the 2 are of a teacher of synthetic pictures.
QUICK = replace(PAPER, epochs=8, train_pictures=2_500, teacher_epochs=2, recorded_teacher=RECORDED_TEACHER)
SHORT_TEACHER = replace(PAPER, teacher_epochs=3, teacher_schedule="one-cycle")
SMOKE = replace(PAPER, epochs=2, batch=8, train_pictures=80, test_pictures=40, teacher_epochs=1, teacher_batch=8)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    return cifar10_data(folders.get("cifar10"), config.train_pictures, config.test_pictures)


PERCENT = (5, 10, 15, 25, 50, 75)
FAIR = ("as described", "controlled")  # the text is silent on the batch size, and one for all students is also the fair one
TAUGHT = {"teacher": "teacher"}


def distilled(name: str, modes: tuple[str, ...], **change: Any) -> Arm:
    return Arm(name, modes, train_distilled, TAUGHT, change, together=train_distilled_together, mapped=("alpha", "temperature"))


CELLS = tuple((alpha, temperature) for alpha in ALPHAS for temperature in TEMPERATURES)
ARMS = (
    Arm("teacher", (*FAIR, "as released"), train_resnet18, seed=0),  # one for all students, as in the source
    Arm("baseline_64", ("as released",), train_student, change={"batch": 64}, together=train_student_together),
    Arm("baseline", FAIR, train_student, together=train_student_together),
    *(distilled(cell(alpha, t), (*FAIR, "as released"), alpha=alpha, temperature=float(t)) for alpha, t in CELLS),
    Arm("sham", ("sham",), train_distilled_sham, TAUGHT, together=train_distilled_sham_together),
    # Experiment 3: the first pictures only; all of them is experiment 2.
    *(Arm(f"baseline_{p}_percent", (*FAIR, "as released"), train_student, change={"share": p / 100},
          together=train_student_together) for p in PERCENT),
    *(distilled(f"distilled_{p}_percent", (*FAIR, "as released"), share=p / 100) for p in PERCENT),
    # Ours: the source picked the best of 25 cells on the test pictures; these are picked on a tenth that they are not trained on.
    Arm("validated_baseline", ("controlled",), train_student, change={"validated": True}, together=train_student_together),
    *(distilled(f"validated_{cell(alpha, t)}", ("controlled",), alpha=alpha, temperature=float(t), validated=True)
      for alpha, t in CELLS),
)
HEADLINE = ("teacher", "baseline_64", "baseline", cell(0.6, 8), cell(1.0, 8), "sham")
BANDED = ("accuracy", "training_loss")  # with recorded bands; the loss is what a sham teacher moves most
CHECK = ("baseline", cell(0.6, 8))  # what `check` trains, with seed 0
PROFILES = {
    "full": Profile(PAPER, seeds=5),
    "quick": Profile(QUICK, seeds=2, arms=HEADLINE, reduced="8 epochs on the first 2,500 pictures instead of 50 on 50,000; the "
                     "teacher is one ResNet-18 recorded earlier, trained for 3 epochs on all pictures instead of 90; the same "
                     "student, batch sizes and losses"),
    "teacher": Profile(SHORT_TEACHER, seeds=1, arms=("teacher",), reduced="the teacher of profile quick: 3 epochs "
                       "with a one-cycle learning rate instead of 90 with three steps"),
    "smoke": Profile(SMOKE, seeds=1, arms=("baseline", cell(0.6, 8), "sham"), synthetic=True,
                     reduced="2 epochs of 80 synthetic pictures, batch 8"),
}

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
