"""Distillation without a larger teacher on CIFAR-10: from an equal student, label smoothing or a virtual teacher.

Experiments 4 and 5 of a course project report (IIT Kanpur, CS771A, 2020), after Yuan et al. 2020, "Revisiting Knowledge
Distillation via Label Smoothing Regularization". According to the report, a student taught by a student of its own kind
reaches 88.7%, against 87.25% from scratch; taught by a student that was itself so taught, it reaches 89%.

README.md in this folder says what the arms are, and where the text and the released code differ. Read in this order:
1. this file: the configurations, the arms (who is taught by whom, and what changes) and the profiles;
2. replications/course_report/cifar.py: `Config`, the two networks, and one function per method, `train_distilled` etc.;
   the report's experiments before these (grid) use them too, and the full runs that both need are trained once;
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
    train_smoothed,
    train_student,
    train_virtual_teacher,
)

PAPER = Config()
# Real data use the recorded 3-epoch teacher; teacher_epochs=2 applies to synthetic data only.
QUICK = replace(PAPER, epochs=8, slow_from=5, train_pictures=2_500, teacher_epochs=2, recorded_teacher=RECORDED_TEACHER)
SMOKE = replace(PAPER, epochs=6, slow_from=5, batch=8, train_pictures=160, test_pictures=60)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    return cifar10_data(folders.get("cifar10"), config.train_pictures, config.test_pictures)


# ---- the arms

BOTH = ("as released", "controlled")
# code: a tenth of the learning rate from epoch 30 on, in every taught run, but not in the baseline
SLOWS = {"slows": True}
# The report's best cell. Ours: label smoothing, virtual teacher and sham have its alpha and T too.
FIRST = {"alpha": 0.2, "temperature": 2.0}
OTHER = 10_000  # seed_offset of a teacher: more than anyone has seeds


def scratch(name: str, mode: str, **change: Any) -> Arm:
    return Arm(name, (mode,), train_student, change=change, mapped=())


def taught(
    name: str, teacher: str, alpha: float, temperature: int, modes: tuple[str, ...] = BOTH, slows: bool = True
) -> Arm:
    change = {"slows": slows, "alpha": alpha, "temperature": float(temperature)}
    return Arm(name, modes, train_distilled, {"teacher": teacher}, change, mapped=("alpha", "temperature"))


ARMS = (
    Arm("teacher", ("as released",), train_resnet18, seed=0),
    Arm("resnet18", ("as released",), train_resnet18),  # one for each seed, to compare its entropy
    scratch("baseline_64", "as released", batch=64),
    scratch("baseline", "as described"),
    scratch("baseline_slowed", "controlled", **SLOWS),
    # The teachers are students of the same kind, with random numbers of their own: first weights, order and dropout.
    scratch("equal_teacher_64", "as released", batch=64, seed_offset=OTHER),  # of experiment 4
    scratch("equal_teacher", "as described", seed_offset=OTHER),
    Arm(  # of experiment 5
        "taught_teacher",
        ("as released",),
        train_distilled,
        {"teacher": "equal_teacher_64"},
        SLOWS | {"alpha": 0.6, "temperature": 2.0, "seed_offset": 2 * OTHER},
        mapped=(),
    ),
    # Experiment 4. The text does not mention a slower rate. This arm is not trained side by side with cells: so the
    # by_resnet18 cells make the same groups as in grid.
    Arm(
        f"described_{cell(0.2, 2)}", ("as described",), train_distilled, {"teacher": "equal_teacher"}, FIRST, mapped=()
    ),
    *(taught(f"self_{cell(alpha, t)}", "equal_teacher_64", alpha, t) for alpha in ALPHAS for t in TEMPERATURES),
    # Experiment 5.
    *(taught(f"again_{cell(alpha, t)}", "taught_teacher", alpha, t) for alpha in (0.2, 0.4, 0.6) for t in (2, 4)),
    # What the report compares its best T and experiment 5 with: grid's cells of the best alpha.
    *(
        taught(f"by_resnet18_{cell(0.6, t)}", "teacher", 0.6, t, modes=("as released",), slows=False)
        for t in TEMPERATURES
    ),
    Arm("smoothed", ("controlled",), train_smoothed, change=SLOWS | FIRST, mapped=()),
    Arm("virtual_teacher", ("controlled",), train_virtual_teacher, change=SLOWS | FIRST, mapped=()),
    Arm("sham", ("sham",), train_distilled_sham, {"teacher": "equal_teacher_64"}, SLOWS | FIRST, mapped=()),
)
HEADLINE = (
    "baseline_64",
    "equal_teacher_64",
    "baseline_slowed",
    f"self_{cell(0.2, 2)}",
    f"self_{cell(1.0, 2)}",
    "smoothed",
    "sham",
)

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
        reduced="8 epochs (the last 4 slowed) on the first 2,500 pictures instead "
        "of 50 (the last 21) on 50,000; the same student, batch sizes and losses",
    ),
    "smoke": Profile(
        SMOKE,
        seeds=1,
        arms=("virtual_teacher", f"described_{cell(0.2, 2)}"),
        synthetic=True,
        reduced="6 epochs of 160 synthetic pictures, batch 8",
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
    # What `kd check` trains, with seed 0. The cell has alpha 1: at alpha 0.2 the bands could not detect a sham teacher.
    check=("smoothed", f"self_{cell(1.0, 2)}"),
    banded=("accuracy", "training_loss"),  # the training loss is what a sham teacher changes most
    metrics=("accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl", "validation_accuracy"),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
