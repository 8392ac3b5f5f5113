"""What mnist, grid, teacher_free and ta_chain share: they replicate one course report (IIT Kanpur, CS771A, 2020).

Its distillation loss is the same everywhere, and so is its use of CIFAR-10: inputs in [0, 1], all 50,000 pictures to train.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kdlib.batches import Batch, Examples
from kdlib.data import cifar10, synthetic_pictures
from kdlib.data.pictures import Pictures
from kdlib.errors import KDError
from kdlib.experiment import Run
from kdlib.files import array_digest
from kdlib.losses import hard_and_soft
from kdlib.metrics import accuracy
from kdlib.targets import SoftTargets
from kdlib.training import Objective

SOURCE = "course-report"


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


def distillation(alpha: float, temperature: float) -> Objective:
    # (1 - alpha) CE(labels, student) + alpha T^2 KL(teacher_T || student_T): alpha weighs the teacher
    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return hard_and_soft(outputs, batch.soft, batch.labels, 1 - alpha, alpha, temperature)

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


@lru_cache(maxsize=2)
def cifar10_data(folder: Path | None, train: int, test: int) -> Data:
    """CIFAR-10's first pictures in canonical order, a random subset; without a folder, the stand-in."""
    if folder is None:
        return first_pictures("synthetic pictures", synthetic_pictures.pictures(train, test, seed=0), train, test)
    return first_pictures("CIFAR-10", cifar10.pictures(folder), train, test)


def first_pictures(name: str, pictures: Pictures, train: int, test: int) -> Data:
    """The first pictures of both parts; the name says where not all are trained on."""
    if train < len(pictures.train_labels):
        name = f"{name}, first {train:,} training pictures"
    parts = {"train": (pictures.train_images[:train], pictures.train_labels[:train]),
             "test": (pictures.test_images[:test], pictures.test_labels[:test])}
    digest = array_digest(*parts["train"], *parts["test"])

    def examples(part: str) -> Examples:
        images, labels = map(torch.from_numpy, parts[part])
        return Examples(images, labels.long(), f"{digest}/{part}")

    return Data(examples("train"), examples("test"), digest, name, array_digest(*pictures), name.startswith("synthetic"))
