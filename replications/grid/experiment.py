"""Distillation from a ResNet-18 on CIFAR-10, for 25 pairs of alpha and T and for parts of the data.

Experiments 2 and 3 of a course project report (IIT Kanpur, CS771A, 2020). According to the report, a student of 816,938
parameters reaches 89.41% taught by a ResNet-18 (93.5%), against 87.25% from scratch, and with fewer pictures the gain
is larger.

README.md in this folder says what the arms are, and where the text and the released code differ. Read in this order:
1. this file: the configurations, the arms (who is taught by whom, and what changes) and the profiles;
2. replications/course_report/cifar.py: `Config`, the two networks, and one function per method, `train_distilled` etc.;
   the report's next experiments (teacher_free) use them too;
3. replications/course_report/__init__.py: the distillation loss, the sham, the metrics and the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdlib import cli
from kdlib.run.experiment import Arm, Experiment, Profile
from replications.course_report import SOURCE, Data, cifar10_data
from replications.course_report.cifar import (
    ALPHAS,
    PROTOCOL,
    RECORDED_TEACHER,
    TEMPERATURES,
    Config,
    cell,
    network,
    train_distilled,
    train_distilled_sham,
    train_resnet18,
    train_student,
)

PAPER = Config()
# Real data use the recorded 3-epoch teacher; teacher_epochs=2 applies to synthetic data only.
QUICK = replace(PAPER, epochs=8, train_pictures=2_500, teacher_epochs=2, recorded_teacher=RECORDED_TEACHER)
SHORT_TEACHER = replace(PAPER, teacher_epochs=3, teacher_schedule="one-cycle")
SMOKE = replace(PAPER, epochs=2, batch=8, train_pictures=80, test_pictures=40, teacher_epochs=1, teacher_batch=8)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    return cifar10_data(folders.get("cifar10"), config.train_pictures, config.test_pictures)


# ---- the arms

PERCENT = (5, 10, 15, 25, 50, 75)  # of the training pictures, in experiment 3
FAIR = ("as described", "controlled")  # the text gives no batch size; equal batches are also the controlled setting
ALL = (*FAIR, "as released")
TAUGHT = {"teacher": "teacher"}


def scratch(name: str, modes: tuple[str, ...], **change: Any) -> Arm:
    return Arm(name, modes, train_student, change=change, mapped=())


def distilled(name: str, modes: tuple[str, ...], **change: Any) -> Arm:
    return Arm(name, modes, train_distilled, TAUGHT, change, mapped=("alpha", "temperature"))


CELLS = tuple((alpha, temperature) for alpha in ALPHAS for temperature in TEMPERATURES)
ARMS = (
    Arm("teacher", ALL, train_resnet18, seed=0),  # one for all students, as in the source
    scratch("baseline_64", ("as released",), batch=64),
    scratch("baseline", FAIR),
    *(distilled(cell(alpha, t), ALL, alpha=alpha, temperature=float(t)) for alpha, t in CELLS),
    Arm("sham", ("sham",), train_distilled_sham, TAUGHT, mapped=()),
    # Experiment 3: the first pictures only. With all pictures it is experiment 2.
    *(scratch(f"baseline_{p}_percent", ALL, share=p / 100) for p in PERCENT),
    *(distilled(f"distilled_{p}_percent", ALL, share=p / 100) for p in PERCENT),
    # Ours: the source chose the best of 25 cells on the test pictures; these are chosen on a tenth of the training
    # pictures, which they are not trained on.
    scratch("validated_baseline", ("controlled",), validated=True),
    *(
        distilled(f"validated_{cell(alpha, t)}", ("controlled",), alpha=alpha, temperature=float(t), validated=True)
        for alpha, t in CELLS
    ),
)
HEADLINE = ("teacher", "baseline_64", "baseline", cell(0.6, 8), cell(1.0, 8), "sham")

# ---- how much is run

PROFILES = {
    # The source uses float32 throughout. On a GPU, and on a CPU with bfloat16 instructions, bfloat16 is faster.
    "full": Profile(
        replace(PAPER, precision="bfloat16"),
        seeds=5,
        judged=True,
        reduced="training steps in bfloat16, predictions in float32",
    ),
    "float32": Profile(PAPER, seeds=5),
    "quick": Profile(
        QUICK,
        seeds=2,
        arms=HEADLINE,
        reduced="8 epochs on the first 2,500 pictures instead of 50 on 50,000; the "
        "teacher is one ResNet-18 recorded earlier, trained for 3 epochs on all pictures instead of 90; the same "
        "student, batch sizes and losses",
    ),
    "teacher": Profile(
        SHORT_TEACHER,
        seeds=1,
        arms=("teacher",),
        reduced="the teacher of profile quick: 3 epochs with a one-cycle learning rate instead of 90 with three steps",
    ),
    "smoke": Profile(
        SMOKE,
        seeds=1,
        arms=("baseline", cell(0.6, 8), "sham"),
        synthetic=True,
        reduced="2 epochs of 80 synthetic pictures, batch 8",
    ),
}
EXPERIMENT = Experiment(
    source=SOURCE,
    protocol=PROTOCOL,
    data=("cifar10",),
    load_data=load_data,
    network=network,
    arms=ARMS,
    profiles=PROFILES,
    check=("baseline", cell(0.6, 8)),  # what `kd check` trains, with seed 0
    banded=("accuracy", "training_loss"),  # the training loss is what a sham teacher changes most
    metrics=("accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl", "validation_accuracy"),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
