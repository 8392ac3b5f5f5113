"""The settings and the data of the replication of Hinton, Vinyals and Dean.

The paper states only the widths, the temperatures, the constraint on the weights and the jitter. All other values were
fixed before the first full run; those of the teacher were chosen on validation digits.

Shapes: N digits or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdlib.batches import Examples
from kdlib.data import cifar10, mnist, synthetic_pictures
from kdlib.data.pictures import Pictures
from kdlib.files import array_digest

CLASSES = 10


@dataclass(frozen=True)
class Config:
    """The paper's values; "not stated": ours, fixed in advance."""

    # The teacher: 2 hidden layers of `teacher_width` units.
    teacher_width: int = 1200  # section 3
    teacher_epochs: int = 150  # not stated: chosen on validation digits by profile choice
    teacher_rate: float = 0.1  # not stated: chosen likewise; Nesterov momentum 0.9, falls to 0 by a cosine
    input_dropout: float = 0.0  # not stated: chosen likewise
    hidden_dropout: float = 0.3  # not stated: chosen likewise
    largest_norm: float = 15**0.5  # section 3: the constraint of its reference 5, on a hidden unit's incoming weights
    jitter: int = 2  # section 3: pixels
    # The students: 2 hidden layers of `width` units, no dropout, no jitter.
    width: int = 800  # section 3; also 300 and 30
    epochs: int = 60  # not stated
    learning_rate: float = 1e-3  # not stated: Adam, falls to 0 by a cosine
    batch: int = 128  # not stated; also the teacher's
    temperature: float = 20.0  # section 3
    hard_weight: float = 0.1  # section 2: "a considerably lower weight" for the hard targets
    soft_only: bool = False  # section 3, digits left out: no hard targets
    left_out: tuple[int, ...] = ()  # classes that the transfer set lacks
    small_share: float = 0.03  # section 6: of the examples
    mean: str = ""  # section 1: of the members' distributions, arithmetic or geometric
    member: int = 0  # number of an ensemble's member; it has other random streams than the baseline, which is number 0
    validated: bool = False  # the last sixth of the training digits is used to choose, and not to train
    # The generalist and its specialists, on CIFAR-10 instead of JFT. Nothing is stated for this data set.
    picture_epochs: int = 15  # Adam at `picture_rate`, falls to 0 by a cosine
    picture_rate: float = 1e-3
    specialist_epochs: int = 6  # from the generalist's weights
    specialist_rate: float = 5e-4
    specialist_temperature: float = 2.0  # of the generalist's soft targets
    specialist_hard_weight: float = 0.5
    specialist: int = 0  # which of the specialists: 0, 1 or 2
    active: int = 1  # section 5.4: the n most probable classes decide which specialists are asked
    # What is trained on.
    train_digits: int = 60_000
    test_digits: int = 10_000
    cifar_pictures: int = 50_000
    cifar_test_pictures: int = 10_000
    precision: str = "float32"  # or bfloat16: training steps under autocast; predictions are always float32


@dataclass(frozen=True)
class Data:
    """Digits and pictures. One digest covers both, so that all arms stand in one table."""

    train: Examples  # MNIST: inputs uint8 (N, 1, 28, 28), labels 0 to 9
    test: Examples
    pictures: Examples  # CIFAR-10: inputs uint8 (N, 3, 32, 32), labels 0 to 9
    test_pictures: Examples
    digest: str
    name: str
    synthetic: bool = False

    def to(self, device: torch.device) -> Data:
        parts = {part: getattr(self, part).to(device) for part in PARTS}
        return replace(self, **parts)


PARTS = ("train", "test", "pictures", "test_pictures")


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    """Return the first digits and pictures of each part, in a full run all; without folders, synthetic ones."""
    counts = config.train_digits, config.test_digits, config.cifar_pictures, config.cifar_test_pictures
    if folders:
        digits, pictures = mnist.digits(folders["mnist"]), cifar10.pictures(folders["cifar10"])
    else:
        digits, pictures = (
            synthetic_pictures.digits(*counts[:2], seed=0),
            synthetic_pictures.pictures(*counts[2:], seed=0),
        )
    return first_of(digits, pictures, counts, synthetic=not folders)


def first_of(digits: Pictures, pictures: Pictures, counts: tuple[int, int, int, int], synthetic: bool) -> Data:
    arrays = []
    for (images, labels), count in zip((digits[:2], digits[2:], pictures[:2], pictures[2:]), counts, strict=True):
        arrays.append((images[:count], labels[:count]))
    digest = array_digest(*(array for part in arrays for array in part))
    parts = {
        name: Examples(torch.from_numpy(images), torch.from_numpy(labels).long(), f"{digest}/{name}")
        for name, (images, labels) in zip(PARTS, arrays, strict=True)
    }
    name = "MNIST and CIFAR-10" if not synthetic else "synthetic digits and pictures"
    if counts[0] < len(digits.train_labels) or counts[2] < len(pictures.train_labels):
        name += f", first {counts[0]:,} training digits and {counts[2]:,} training pictures"
    return Data(**parts, digest=digest, name=name, synthetic=synthetic)
