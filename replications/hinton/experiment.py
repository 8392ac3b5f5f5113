"""Soft targets on MNIST, ensembles and specialists (Hinton, Vinyals, Dean 2015, arXiv 1503.02531).

A student of two hidden layers of 800 units recognises handwritten digits. According to the paper, it makes 74 errors on
the 10,000 test digits if it is taught at temperature 20 by a teacher with 67, and 146 errors without a teacher. Taught
without a single 3, it still recognises 98.6% of the 3s, after one bias is corrected.

README.md in this folder says what the arms are, and where the paper is silent. Read in this order:
1. this file: the arms and the profiles; config.py: the settings and the data;
2. digits.py: teacher and students on MNIST; transfer_sets.py: digits left out, and 3% of the digits; ensembles.py;
3. gradients.py: what the paper says of gradients; specialists.py: the generalist and its specialists, on CIFAR-10;
   clusters.py: their classes.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from torch import nn

from kdlib import cli
from kdlib.batches import Examples
from kdlib.errors import KDError
from kdlib.run.experiment import Arm, Experiment, Profile, Run
from kdlib.run.store import Result

from .clusters import SPECIALISTS
from .config import CLASSES, Config, Data, load_data
from .digits import student_network, teacher_network, train_hard, train_sham, train_soft, train_teacher
from .ensembles import MEMBERS, average_members, role, train_by_ensemble
from .gradients import measure_limit
from .specialists import (
    PictureNetwork,
    combine,
    train_generalist,
    train_generalist_longer,
    train_soft_specialist,
    train_specialist,
)
from .specialists import role as specialist_role
from .transfer_sets import train_left_out, train_small_hard, train_small_soft

PAPER = Config()
QUICK = replace(
    PAPER,
    teacher_epochs=15,
    epochs=10,
    picture_epochs=6,
    specialist_epochs=3,
    train_digits=10_000,
    cifar_pictures=5_000,
)
SMOKE = replace(
    PAPER,
    teacher_width=100,
    width=64,
    teacher_epochs=6,
    epochs=3,
    batch=32,
    picture_epochs=6,
    specialist_epochs=2,
    train_digits=400,
    test_digits=100,
    cifar_pictures=300,
    cifar_test_pictures=100,
)

# ---- the arms

DESCRIBED, CONTROLLED, BOTH = ("as described",), ("controlled",), ("as described", "controlled")
TAUGHT = {"teacher": "teacher"}
TEMPERATURES = (1.0, 2.0, 2.5, 4.0, 8.0, 20.0, 50.0)
# The widths of the temperature sweep. At width 800 and T 20 it is the main arm, `distilled`.
SWEPT = {800: tuple(T for T in TEMPERATURES if T != 20), 300: (8.0, 20.0, 50.0), 30: TEMPERATURES}


def swept(width: int, temperature: float) -> str:
    """Return the name of the arm of a width and T."""
    return "distilled" if (width, temperature) == (800, 20) else f"width_{width}_T_{temperature:g}".replace(".", "_")


def left_out(name: str, classes: tuple[int, ...]) -> list[Arm]:
    """One run: as trained, with the bias chosen on the test digits, and with the bias chosen without labels."""
    change = {"left_out": classes, "soft_only": True}
    return [
        Arm(name, BOTH, train_left_out, TAUGHT, change),
        Arm(f"{name}_corrected", DESCRIBED, train_left_out, TAUGHT, change, snapshot="corrected"),
        Arm(f"{name}_matched", CONTROLLED, train_left_out, TAUGHT, change, snapshot="matched"),
    ]


FAST = {"learning_rate": 1e-2}  # ten times the usual rate
ALL_BUT_78 = tuple(k for k in range(CLASSES) if k not in (7, 8))
MEMBER_ARMS = ("baseline", *(role(number) for number in range(1, MEMBERS)))
OF_MEMBERS = {role(number): name for number, name in enumerate(MEMBER_ARMS)}
MEANS = ("arithmetic", "geometric")
DIGITS = (
    Arm("teacher", BOTH, train_teacher),
    Arm("baseline", BOTH, train_hard),
    Arm("distilled", BOTH, train_soft, TAUGHT),
    Arm("sham", ("sham",), train_sham, TAUGHT),
    *(
        Arm(swept(width, T), DESCRIBED, train_soft, TAUGHT, {"width": width, "temperature": T})
        for width, temperatures in SWEPT.items()
        for T in temperatures
    ),
    *left_out("no_threes", (3,)),
    *left_out("only_78", ALL_BUT_78),
    Arm("small_hard", DESCRIBED, train_small_hard),
    Arm("small_soft", DESCRIBED, train_small_soft, TAUGHT),
    Arm("baseline_fast", DESCRIBED, train_hard, {"usual": "baseline"}, FAST),
    Arm("distilled_fast", DESCRIBED, train_soft, {**TAUGHT, "usual": "distilled"}, FAST),
    Arm("limit", DESCRIBED, measure_limit, {**TAUGHT, "student": "baseline"}),
)
# Nine more baselines for each seed. Seeds share no member: else their ensembles would resemble each other, and the
# interval over the seeds would be too narrow.
ENSEMBLES = (
    *(Arm(role(number), DESCRIBED, train_hard, change={"member": number}) for number in range(1, MEMBERS)),
    *(Arm(f"ensemble_{mean}", DESCRIBED, average_members, OF_MEMBERS, {"mean": mean}) for mean in MEANS),
    *(Arm(f"by_ensemble_{mean}", DESCRIBED, train_by_ensemble, OF_MEMBERS, {"mean": mean}) for mean in MEANS),
)


def together(kind: str, active: int) -> Arm:
    needs = {specialist_role(number): f"{kind}_{number}" for number in range(SPECIALISTS)}
    return Arm(f"{kind}s_n{active}", BOTH, combine, {"generalist": "generalist", **needs}, {"active": active})


OF_GENERALIST = {"generalist": "generalist"}
KINDS = {"specialist": train_specialist, "soft_specialist": train_soft_specialist}
PICTURES = (
    Arm("generalist", BOTH, train_generalist),
    Arm("generalist_longer", CONTROLLED, train_generalist_longer, OF_GENERALIST),
    *(
        Arm(f"{kind}_{number}", DESCRIBED, train_one, OF_GENERALIST, {"specialist": number})
        for kind, train_one in KINDS.items()
        for number in range(SPECIALISTS)
    ),
    *(together(kind, active) for kind, active in product(KINDS, (1, 2))),
)

# The teacher's settings are chosen among these, on digits that are neither trained on nor tested on, with a seed that
# no other run has. Dropout of inputs and hidden layers, epochs, learning rate.
TRIED = tuple((*which, rate) for which in ((0.2, 0.5, 150), (0.0, 0.3, 60), (0.0, 0.3, 150)) for rate in (0.05, 0.1))
CHOICE_SEED = 100


def tried(inputs: float, hidden: float, count: int, rate: float) -> Arm:
    change: dict[str, Any] = {"input_dropout": inputs, "hidden_dropout": hidden, "teacher_epochs": count}
    name = f"tried_{inputs:g}_{hidden:g}_{count}_{rate:g}".replace(".", "")
    change |= {"teacher_rate": rate, "validated": True}
    return Arm(name, DESCRIBED, train_teacher, change=change, seed=CHOICE_SEED)


# What is no single network that its own run can rebuild: means of networks, measurements, and a specialist, whose
# classes come from the generalist's predictions.
NO_NETWORK = (average_members, measure_limit, combine, train_specialist, train_soft_specialist)


def network(arm: Arm, config: Config, data: Data) -> nn.Module | None:
    if arm.train in (*NO_NETWORK, train_elsewhere):
        return None
    if arm.train in (train_generalist, train_generalist_longer):
        return PictureNetwork(config.precision)
    return teacher_network(config) if arm.train is train_teacher else student_network(config)


def examples(arm: Arm, data: Data, seed: int) -> tuple[Examples, Examples]:
    """Return the training and test examples of an arm's network: digits, or pictures for the generalist."""
    if arm.train in (train_generalist, train_generalist_longer):
        return data.pictures, data.test_pictures
    return data.train, data.test


def train_elsewhere(run: Run) -> Result:
    """Refuse: these data or weights are not public, or not available here."""
    raise KDError(f"{run.label}: expected data that cannot be had here; README.md says why. Leave this arm out")


ELSEWHERE = (
    *("caltech_mobilenet", "caltech_mobilenet_distilled", "caltech_squeezenet", "caltech_squeezenet_distilled"),
    *("jft_generalist", "jft_specialists", "speech_single", "speech_ensemble", "speech_by_ensemble"),
    *("speech_small_hard", "speech_small_soft"),
)
CHOICE = tuple(tried(*values) for values in TRIED)
ARMS = (
    *DIGITS,
    *ENSEMBLES,
    *PICTURES,
    *CHOICE,
    *(Arm(name, DESCRIBED, train_elsewhere) for name in ELSEWHERE),
)

# ---- how much is run

NAMES = tuple(arm.name for arm in (*DIGITS, *ENSEMBLES, *PICTURES))
# Of the sweep at width 800, the quick profile has T = 1 and 50 alone; smoke has one arm of the whole sweep.
QUICK_ARMS = tuple(name for name in NAMES if name not in [swept(800, T) for T in (2, 2.5, 4, 8)])
SMOKE_ARMS = tuple(name for name in NAMES if not name.startswith("width_") or name == swept(30, 4))
PROFILES = {
    # float32, because a processor without bfloat16 instructions takes eight times as long in bfloat16.
    "full": Profile(PAPER, seeds=5, arms=NAMES, judged=True),
    "bfloat16": Profile(
        replace(PAPER, precision="bfloat16"),
        seeds=5,
        arms=NAMES,
        reduced="training steps in bfloat16, predictions in float32",
    ),
    "choice": Profile(
        PAPER,
        seeds=1,
        arms=tuple(arm.name for arm in CHOICE),
        reduced="teachers on 50,000 training digits; the other 10,000 choose the teacher's settings",
    ),
    "quick": Profile(
        QUICK,
        seeds=2,
        arms=QUICK_ARMS,
        reduced="the first 10,000 training digits and 5,000 training pictures; 15 epochs of the teacher instead of "
        "150, 10 of the students instead of 60, 6 of the generalist instead of 15, 3 of the specialists instead of 6",
    ),
    "smoke": Profile(
        SMOKE,
        seeds=1,
        arms=SMOKE_ARMS,
        synthetic=True,
        reduced="400 synthetic digits and 300 synthetic pictures, batch 32, up to 6 epochs; narrower networks",
    ),
}
EXPERIMENT = Experiment(
    source="hinton",
    protocol=2,  # raise with every edit that can move results
    data=("mnist", "cifar10"),
    load_data=load_data,
    network=network,
    examples=examples,
    arms=ARMS,
    profiles=PROFILES,
    check=("teacher", "distilled", "no_threes"),  # what `kd check` trains, with seed 0
    banded=("errors", "training_loss", "teacher_kl"),
    metrics=(
        *("errors", "accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl", "extra_errors"),
        *("validation_errors", "threes_accuracy", "bias", "training_accuracy", "nats_gap", "gap", "asked"),
        *("oversampled", "noise_at_start", "noise_after_epoch", "matching_order", "gradient_order"),
    ),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
