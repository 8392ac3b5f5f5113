"""What mnist, grid, teacher_free and ta_chain share: they replicate one course report (IIT Kanpur, CS771A, 2020).

All four have ten classes, one distillation loss, one sham and one set of metrics. Three of them train on CIFAR-10.

Shapes: B batch, N pictures, C channels, K = 10 classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlib.batches import Batch, Examples
from kdlib.data import cifar10, synthetic_pictures
from kdlib.data.pictures import Pictures
from kdlib.errors import KDError
from kdlib.files import array_digest
from kdlib.losses import hard_and_soft
from kdlib.metrics import accuracy, classification_metrics, refuse_at_chance
from kdlib.run.experiment import Run
from kdlib.targets import SoftTargets
from kdlib.training import Objective

SOURCE = "course-report"  # the four folders share their runs
CLASSES = 10


@dataclass(frozen=True)
class Data:
    """Training and test pictures. The source has no validation pictures: it chose on the test pictures."""

    train: Examples  # inputs uint8 (N, C, H, W), labels 0 to 9
    test: Examples
    digest: str
    name: str
    whole: str = ""  # digest of the full data set, of which `train` and `test` hold the first pictures
    synthetic: bool = False

    def to(self, device: torch.device) -> Data:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def trains_in_bfloat16(precision: str) -> bool:
    """Return whether training steps run under autocast to bfloat16. Predictions are always float32."""
    if precision not in ("float32", "bfloat16"):
        raise KDError(f"precision: expected float32 or bfloat16, found {precision!r}; correct the configuration")
    return precision == "bfloat16"


# ---- the loss and the soft targets


def check_weights(run: Run, soft_weight: float = 1.0) -> None:
    """Refuse an alpha, a temperature or a weight of the soft term that is out of range (KDError)."""
    alpha, temperature = run.config.alpha, run.config.temperature
    if not 0 <= alpha <= 1 or not 0 < temperature < math.inf or not 0 <= soft_weight < math.inf:
        raise KDError(
            f"{run.label}: expected alpha from 0 to 1, a finite temperature above 0 and a finite soft_weight of at "
            f"least 0, found {alpha}, {temperature} and {soft_weight}; correct its configuration"
        )


def distillation(run: Run, soft_weight: float = 1.0) -> Objective:
    # (1 - alpha) CE(labels, student) + alpha T^2 KL(teacher_T || student_T): alpha is the weight of the teacher
    check_weights(run, soft_weight)
    alpha, temperature = run.config.alpha, run.config.temperature

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return hard_and_soft(outputs, batch.soft, batch.labels, 1 - alpha, soft_weight * alpha, temperature)

    return objective


def teacher_targets(run: Run) -> SoftTargets:
    """Return the teacher's soft targets (N, K) of the training pictures; KDError if the teacher is at chance."""
    soft = run.soft_targets("teacher", "train", run.data.train)
    # The smoke profile is exempt: its few steps are too short for a ResNet's moving averages, and it judges nothing.
    if not run.data.synthetic:
        refuse_at_chance(soft.logits, run.data.train.labels, accuracy, f"{run.label}, run {soft.teacher_run}")
    return soft


def sham_targets(run: Run) -> SoftTargets:
    """Return the teacher's soft targets permuted within each class: each picture gets those of one of its class."""
    return teacher_targets(run).permuted_within_classes(run.data.train.labels, run.generator("sham"))


# ---- metrics


def measure(run: Run, logits: Tensor) -> dict[str, Any]:
    """Return the metrics of logits (N, K) of the test pictures, compared with the teacher's logits if there is one."""
    test: Examples = run.data.test
    teacher = run.soft_targets("teacher", "test", test).logits if run.parents else None
    return classification_metrics(logits, test.labels, CLASSES, teacher)


# ---- pictures


def cifar10_data(folder: Path | None, train: int, test: int) -> Data:
    """Return the first pictures of CIFAR-10, whose order is random; without a folder, synthetic pictures."""
    if folder is None:
        pictures = synthetic_pictures.pictures(train, test, seed=0)
        return first_pictures("synthetic pictures", pictures, train, test, synthetic=True)
    return first_pictures("CIFAR-10", cifar10.pictures(folder), train, test)


def first_pictures(name: str, pictures: Pictures, train: int, test: int, synthetic: bool = False) -> Data:
    """Return the first `train` training and `test` test pictures; the name says if training pictures are left out."""
    if train < len(pictures.train_labels):
        name = f"{name}, first {train:,} training pictures"
    parts = {
        "train": (pictures.train_images[:train], pictures.train_labels[:train]),
        "test": (pictures.test_images[:test], pictures.test_labels[:test]),
    }
    digest = array_digest(*parts["train"], *parts["test"])

    def examples(part: str) -> Examples:
        images, labels = map(torch.from_numpy, parts[part])
        return Examples(images, labels.long(), f"{digest}/{part}")

    return Data(examples("train"), examples("test"), digest, name, array_digest(*pictures), synthetic)
