"""The recorded teacher: the logits of a full training, without its weights. With them, students train in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from kdlib.data import vgg16
from kdlib.errors import KDError
from kdlib.run.experiment import Run
from kdlib.run.finished import read_teacher

from .data import Data, digest_with

RECORDED = Path(__file__).parent / "recorded_teacher"  # pruned runs, one folder each
RECORDED_TEACHER = "a3b3ec941cea82a5"  # made by `kd run xray --profile own_teacher --arms teacher`
INSTEAD = "train a teacher with --profile own_teacher"


def recorded_logits(run: Run, recipe: str) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, float]]]:
    """Return the logits that a recorded teacher keeps, its parameters and epochs, and its history.

    KDError if it is not there, or if its seed, pictures or training function are others.
    """
    if run.config.teacher_start != "imagenet":
        raise KDError(
            f"teacher_start: expected imagenet, as the recorded teacher has, found {run.config.teacher_start!r}; "
            f"leave it out, or {INSTEAD}"
        )
    teacher = read_teacher(
        RECORDED / run.config.recorded_teacher,
        recipe=recipe,
        seed=run.seed,
        data=expected_data(run.data),
        instead=INSTEAD,
    )
    logits = {f"final.{part}": teacher.soft_targets(f"final.{part}") for part in ("train", "others")}
    return logits, {name: teacher.metrics["final"][name] for name in ("parameters", "epochs")}, teacher.history


def expected_data(data: Data) -> str:
    """Return the digest of the data that a teacher of these pictures was trained on, with Keras's weights."""
    return digest_with(data.whole, vgg16.KERAS_DIGEST)
