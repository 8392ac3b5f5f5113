"""The x-rays of the replication: a teacher's training pictures as a bank of views, and all others, drawn by seed.

The teacher is trained once, and its logits exist for its own training pictures only. So the students of all seeds are
trained on these. Their validation and test pictures are drawn by seed from the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdlib.batches import Examples
from kdlib.data import chest_xray, vgg16
from kdlib.data.cache import computed_once
from kdlib.data.chest_xray import Rows, Sizes, Xrays
from kdlib.data.synthetic_photographs import xrays as synthetic_xrays
from kdlib.errors import KDError
from kdlib.files import array_digest, canonical_json, sha256
from kdlib.seeds import generator

from .views import RULE, bank_of

CLASSES = len(chest_xray.CLASSES)
STARTS = ("imagenet", "scratch")  # of the teacher's convolutions
SYNTHETIC, SYNTHETIC_SIZES = 72, (9, 3, 3)  # pictures in all; training, validation and test pictures of each class


class Parts(NamedTuple):
    """Row numbers of `Data.others`, of one seed; no two of the first two parts share a row.

    `unseen` are all pictures that no training and no selection of teacher or students has seen, test included;
    `unseen_persons` those of them whose person has no other picture in a training or a selection.
    """

    validation: Tensor
    test: Tensor
    unseen: Tensor
    unseen_persons: Tensor


@dataclass(frozen=True)
class Data:
    """The bank of views of the training pictures, and all other pictures."""

    train: Examples  # inputs uint8 (N * V, 1, 224, 224), labels 0 to 2: normal, bacteria, virus
    others: Examples  # inputs uint8 (M, 1, 224, 224)
    persons: Rows  # of the others
    trained_persons: Rows
    teacher_validation: Rows  # rows of the others
    sizes: Sizes
    views: int  # V
    digest: str
    name: str
    whole: str  # digest of pictures, split and bank, without the weights that the teacher begins with
    weights: vgg16.Features | None = None
    synthetic: bool = False

    def to(self, device: torch.device) -> Data:
        return replace(self, train=self.train.to(device), others=self.others.to(device))

    def parts(self, seed: int) -> Parts:
        """Draw a seed's validation and test pictures: none of the teacher's training and validation."""
        labels = self.others.labels.numpy(force=True).astype(np.uint8)
        rest = Xrays(np.empty((len(labels), 1, 0, 0), np.uint8), labels, self.persons)
        sizes = (0, *self.sizes[1:])
        drawn = chest_xray.split(rest, generator(seed, "split"), sizes, seen=self.teacher_validation)
        selection = np.union1d(self.teacher_validation, drawn.validation)
        unseen = np.setdiff1d(np.arange(len(labels)), selection)
        known = np.union1d(self.trained_persons, self.persons[selection])
        strangers = unseen[~np.isin(self.persons[unseen], known)]
        return Parts(*map(torch.from_numpy, (drawn.validation, drawn.test, unseen, strangers)))


def load(config: Any, folders: Mapping[str, Path]) -> Data:
    """Return the pictures and, if a teacher is to be trained from them, the weights of VGG16 (KDError without)."""
    if config.teacher_start not in STARTS:
        raise KDError(f"teacher_start: expected {' or '.join(STARTS)}, found {config.teacher_start!r}; correct it")
    folder = folders.get("chest_xray")
    pictures = synthetic_xrays(SYNTHETIC, seed=0) if folder is None else chest_xray.xrays(folder)
    sizes = SYNTHETIC_SIZES if folder is None else chest_xray.SIZES
    split = chest_xray.split(pictures, generator(0, "teacher split"), sizes)
    bank = _bank(pictures, split.train, config.views, folder)
    others = np.setdiff1d(np.arange(len(pictures.labels)), split.train)
    arrays = (pictures.images, pictures.labels, pictures.persons, split.train, split.validation, bank.numpy())
    whole, weights = array_digest(*arrays), None
    if folder is not None and config.teacher_start == "imagenet" and not config.recorded_teacher:
        weights = _weights(folders)
    digest = whole if weights is None else digest_with(whole, weights.digest)
    labels = torch.from_numpy(pictures.labels).long()
    return Data(
        Examples(bank, labels[split.train].repeat_interleave(config.views), f"{digest}/train", view_name(config.views)),
        Examples(torch.from_numpy(pictures.images)[others], labels[others], f"{digest}/others"),
        pictures.persons[others],
        np.unique(pictures.persons[split.train]),
        np.searchsorted(others, split.validation),
        sizes,
        config.views,
        digest,
        "synthetic x-rays" if folder is None else "chest x-rays",
        whole,
        weights,
        synthetic=folder is None,
    )


def view_name(views: int) -> str:
    """Return the name of a bank's view, which soft targets and examples must share."""
    return f"bank of {views} views, rule {RULE}"


def digest_with(whole: str, weights: str) -> str:
    """Return the digest of pictures and weights together."""
    return sha256(canonical_json([whole, weights]).encode())[: len(whole)]


def _bank(pictures: Xrays, rows: Rows, views: int, folder: Path | None) -> Tensor:
    def compute() -> tuple[dict[str, Tensor], None]:
        return {"bank": bank_of(torch.from_numpy(pictures.images[rows]), rows.tolist(), views)}, None

    if folder is None:
        return compute()[0]["bank"]
    key = sha256(canonical_json([RULE, views, pictures.digest, rows.tolist()]).encode())[:32]
    return computed_once(folder, key, compute)[0]["bank"]


def _weights(folders: Mapping[str, Path]) -> vgg16.Features:
    if "vgg16" not in folders:
        raise KDError(
            "the teacher: expected VGG16's weights on this machine, found none; `kd data fetch vgg16` downloads them. "
            "Or train the teacher from scratch, which is another teacher than the source's: --profile own_teacher "
            "--set teacher_start=scratch"
        )
    return vgg16.features(folders["vgg16"])
