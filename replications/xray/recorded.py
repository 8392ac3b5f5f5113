"""The recorded teacher: the logits of a full training, without its weights. With them, students train in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from kdlib.data import vgg16
from kdlib.errors import KDError
from kdlib.run.experiment import Run
from kdlib.run.store import read_run

from .data import Data, digest_with

RECORDED = Path(__file__).parent / "recorded_teacher"  # pruned runs, one folder each
RECORDED_TEACHER = "not-yet-recorded"  # used by profile quick; made by `kd run xray --profile full --arms teacher`
INSTEAD = "train a teacher with --profile full"


def recorded_logits(run: Run, recipe: str) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, float]]]:
    """Return the logits that a recorded teacher keeps, its parameters and epochs, and its history.

    KDError if it is not there, or if its seed, pictures or training function are others.
    """
    folder, data = RECORDED / run.config.recorded_teacher, run.data
    if not folder.is_dir():
        raise KDError(
            f"recorded_teacher: expected a run in {RECORDED}, found none named {run.config.recorded_teacher}; use one "
            f"of its folders, or {INSTEAD}"
        )
    if run.config.teacher_start != "imagenet":
        raise KDError(
            f"teacher_start: expected imagenet, as the recorded teacher has, found {run.config.teacher_start!r}; "
            f"leave it out, or {INSTEAD}"
        )
    teacher = read_run(folder)
    if run.seed != teacher.description.seed:
        raise KDError(
            f"{run.label}: expected seed {teacher.description.seed}, that of the recorded teacher, found {run.seed}; "
            "there is one teacher for the students of all seeds"
        )
    if teacher.description.recipe.partition("/")[2] != recipe:
        raise KDError(
            f"{folder}: expected a run of {recipe}, found one of {teacher.description.recipe}; use another recorded "
            f"teacher, or {INSTEAD}"
        )
    if teacher.description.data != (expected := expected_data(data)):
        raise KDError(
            f"{folder}: expected the teacher of these pictures and their views (digest {expected}), found one of "
            f"{teacher.description.data}; get the x-rays again (DATA.md), or {INSTEAD}"
        )
    logits = {f"final.{part}": teacher.soft_targets(f"final.{part}") for part in ("train", "others")}
    return logits, {name: teacher.metrics["final"][name] for name in ("parameters", "epochs")}, teacher.history


def expected_data(data: Data) -> str:
    """Return the digest of the data that a teacher of these pictures was trained on, with Keras's weights."""
    return digest_with(data.whole, vgg16.KERAS_DIGEST)
