"""What mnist, grid, teacher_free and ta_chain share: they replicate one course report (IIT Kanpur, CS771A, 2020).

Ten classes everywhere, one distillation loss, one sham, one set of measurements, and one use of CIFAR-10: inputs in [0, 1], all
50,000 pictures to train.

Shapes: N pictures, C channels, K = 10 classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlib.batches import Batch, Examples
from kdlib.data import cifar10, synthetic_pictures
from kdlib.data.pictures import Pictures
from kdlib.errors import KDError
from kdlib.experiment import Run
from kdlib.files import array_digest
from kdlib.losses import cross_entropy, hard_and_soft
from kdlib.metrics import accuracy, agreement, confusion_matrix, mean_entropy, mean_kl
from kdlib.targets import SoftTargets
from kdlib.training import Objective

SOURCE = "course-report"
CLASSES = 10


@dataclass(frozen=True)
class Data:
    """Training and test pictures; the source has no validation part, and whatever it chose it chose on test."""

    train: Examples  # inputs uint8 (N, C, H, W), labels 0 to 9
    test: Examples
    digest: str
    name: str
    whole: str = ""  # digest of all the pictures that these are the first of
    synthetic: bool = False

    def to(self, device: torch.device) -> Data:
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def in_bfloat16(precision: str) -> bool:
    """Whether training steps run under autocast to bfloat16; predictions are float32 always."""
    if precision not in ("float32", "bfloat16"):
        raise KDError(f"precision: expected float32 or bfloat16, found {precision!r}; mend the configuration")
    return precision == "bfloat16"


# ---- what is learned


def hard_targets(outputs: Tensor, batch: Batch) -> Tensor:
    return cross_entropy(outputs, batch.labels)


def check_weights(run: Run, soft_weight: float = 1.0) -> None:
    alpha, temperature = run.config.alpha, run.config.temperature
    if not 0 <= alpha <= 1 or not 0 < temperature < math.inf or not 0 <= soft_weight < math.inf:
        raise KDError(f"{run.label}: expected alpha from 0 to 1, a finite temperature above 0 and a finite soft_weight of at "
                      f"least 0, found {alpha}, {temperature} and {soft_weight}; mend its configuration")


def distillation(run: Run, soft_weight: float = 1.0) -> Objective:
    # (1 - alpha) CE(labels, student) + alpha T^2 KL(teacher_T || student_T): alpha weighs the teacher
    check_weights(run, soft_weight)
    alpha, temperature = run.config.alpha, run.config.temperature

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return hard_and_soft(outputs, batch.soft, batch.labels, 1 - alpha, soft_weight * alpha, temperature)

    return objective


def teacher_targets(run: Run) -> SoftTargets:
    """The teacher's soft targets of the training pictures; KDError for one that knows no more than the largest class."""
    soft = run.soft_targets("teacher", "train", run.data.train)
    if run.data.synthetic:  # profile smoke: a ResNet's moving averages do not settle in its few steps, and it proves nothing
        return soft
    labels = run.data.train.labels.to(soft.logits.device)
    chance = float((labels == labels.mode().values).double().mean())
    if (reached := accuracy(soft.logits, labels)) <= chance:
        raise KDError(f"{run.label}: expected a teacher above chance ({chance:.3f} of the training pictures), found "
                      f"{reached:.3f} in run {soft.teacher_run}; there is nothing to learn from it. Train it longer")
    return soft


def sham_targets(run: Run) -> SoftTargets:
    """The teacher's soft targets permuted within each class: each picture gets those of some picture of its class."""
    return teacher_targets(run).permuted_within_classes(run.data.train.labels, run.generator("sham"))


# ---- what is measured


def measure(run: Run, logits: Tensor) -> dict[str, Any]:
    """Metrics of logits (N, K) on the test part; with a teacher, how near its predictions they are."""
    test: Examples = run.data.test
    found: dict[str, Any] = {"accuracy": accuracy(logits, test.labels), "entropy": mean_entropy(logits),
                             "confusion": confusion_matrix(logits.argmax(1), test.labels, CLASSES)}
    if run.parents:
        teacher = run.soft_targets("teacher", "test", test).logits
        found |= {"agreement": agreement(teacher, logits), "teacher_kl": mean_kl(teacher, logits)}
    return found


# ---- pictures


@lru_cache(maxsize=2)
def cifar10_data(folder: Path | None, train: int, test: int) -> Data:
    """CIFAR-10's first pictures in canonical order, a random subset; without a folder, the stand-in."""
    if folder is None:
        return first_pictures("synthetic pictures", synthetic_pictures.pictures(train, test, seed=0), train, test, synthetic=True)
    return first_pictures("CIFAR-10", cifar10.pictures(folder), train, test)


def first_pictures(name: str, pictures: Pictures, train: int, test: int, synthetic: bool = False) -> Data:
    """The first pictures of both parts; the name says where not all are trained on."""
    if train < len(pictures.train_labels):
        name = f"{name}, first {train:,} training pictures"
    parts = {"train": (pictures.train_images[:train], pictures.train_labels[:train]),
             "test": (pictures.test_images[:test], pictures.test_labels[:test])}
    digest = array_digest(*parts["train"], *parts["test"])

    def examples(part: str) -> Examples:
        images, labels = map(torch.from_numpy, parts[part])
        return Examples(images, labels.long(), f"{digest}/{part}")

    return Data(examples("train"), examples("test"), digest, name, array_digest(*pictures), synthetic)
