"""Chest x-rays of children, normal or with pneumonia (Kermany et al. 2018, Cell 172(5):1122-1131), as grey 224 x 224.

A file's name says which pneumonia it is and whose x-ray: person136_bacteria_648.jpeg, NORMAL2-IM-0095-0001.jpeg.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdlib.checks import check_generator, whole_number
from kdlib.data import DataError
from kdlib.data.picture_files import Named, Skipped, decoded, listed, refuse_damaged, refuse_empty_classes
from kdlib.data.pictures import Bytes
from kdlib.files import array_digest

CLASSES = ("normal", "bacteria", "virus")
SIDE = 224
FOLDERS = ("train/NORMAL", "train/PNEUMONIA", "test/NORMAL", "test/PNEUMONIA")
MORE_FOLDERS = ("val/NORMAL", "val/PNEUMONIA")  # a copy of the set has 16 of the pictures here
NAMES = {
    "NORMAL": re.compile(r"(?P<person>(?:NORMAL2-)?IM-[0-9]+)(?:-[0-9]+){1,2}"),
    "PNEUMONIA": re.compile(r"(?P<person>person[0-9]+)_(?P<kind>bacteria|virus)_[0-9]+(?:_[0-9]+)?"),
}
Rows = NDArray[np.int64]  # row numbers
Sizes = tuple[int, int, int]  # pictures of each class for training, validation and test
SIZES: Sizes = (800, 100, 100)  # the source's


class Xrays(NamedTuple):
    """Images uint8 (N, 1, 224, 224), labels uint8 (N,) as in CLASSES, persons int64 (N,), and the skipped files.

    Rows are in the order of the file names. A person is a number from 0.
    """

    images: Bytes
    labels: Bytes
    persons: Rows
    skipped: tuple[Skipped, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of images, labels and persons, 16 hex digits."""
        return array_digest(self.images, self.labels, self.persons)


class Split(NamedTuple):
    """Row numbers of each part, ascending."""

    train: Rows
    validation: Rows
    test: Rows


def xrays(folder: Path | str) -> Xrays:
    """Return the x-rays of all folders as one set.

    The files are in `folder`/train/NORMAL, train/PNEUMONIA, test/NORMAL and test/PNEUMONIA. A file is skipped if its
    name does not say class and person, or by the rule of `picture_files`. Decoded arrays are stored. Raises DataError
    for a folder that is missing and for a class without pictures.
    """
    folder = Path(folder)
    files, persons, misnamed = _named(folder)
    found = decoded(folder, files, SIDE, "L", misnamed)
    refuse_empty_classes(folder, found.labels, CLASSES, found.skipped)
    names = [persons[file.name] for file in found.files]
    return Xrays(found.images, found.labels, np.unique(names, return_inverse=True)[1].astype(np.int64), found.skipped)


def check(folder: Path | str) -> None:
    """Read the whole set; DataError as for `xrays`, and if a file is skipped that is not a copy of another."""
    refuse_damaged(Path(folder), xrays(folder).skipped)


def split(
    pictures: Xrays, generator: torch.Generator, sizes: Sizes = SIZES, by_person: bool = False, seen: Rows | None = None
) -> Split:
    """Draw `sizes` pictures of each class for training, validation and test.

    With `by_person`, no person is in two parts. No picture of `seen` (with `by_person`, no picture of a person of
    `seen`) is in validation or test: pass the rows that a teacher was trained on. Raises DataError if a class has too
    few pictures.
    """
    check_generator(generator)
    counts = [whole_number("sizes", size, least=0) for size in sizes]
    if len(counts) != 3:
        raise DataError(f"chest_xray.split: expected sizes of training, validation and test, found {sizes}.")
    total = len(pictures.labels)
    seen = None if seen is None else np.asarray(seen, np.int64)
    if seen is not None and len(seen) and not 0 <= seen.min() <= seen.max() < total:
        raise DataError(f"chest_xray.split: expected rows of `seen` from 0 to {total - 1}, found others.")
    groups = pictures.persons if by_person else np.arange(total)
    numbers, group_of = np.unique(groups, return_inverse=True)
    rows = np.argsort(torch.randperm(len(numbers), generator=generator).numpy()[group_of], kind="stable")
    barred = np.isin(groups, groups[seen]) if seen is not None else np.zeros(len(groups), bool)
    parts = {}
    for part, count in (("test", counts[2]), ("validation", counts[1]), ("training", counts[0])):
        candidates = rows if part == "training" else rows[~barred[rows]]
        parts[part] = _first(candidates, pictures.labels, count, part)
        rows = rows[~np.isin(groups[rows], groups[parts[part]])]
    return Split(parts["training"], parts["validation"], parts["test"])


def _first(rows: Rows, labels: Bytes, count: int, part: str) -> Rows:
    """Return the first `count` of the rows of each class, ascending."""
    chosen = [rows[labels[rows] == label][:count] for label in range(len(CLASSES))]
    for name, some in zip(CLASSES, chosen, strict=True):
        if len(some) < count:
            raise DataError(
                f"chest_xray.split: expected {count} {name} pictures for {part}, found {len(some)} that may be drawn. "
                "Ask for fewer, or use the whole set (`kd data verify chest_xray` says what is skipped)."
            )
    return np.sort(np.concatenate(chosen))


def _named(folder: Path) -> tuple[list[Named], dict[str, str], list[Skipped]]:
    """Return the files with their labels, ordered by name, the person of each file, and the misnamed files."""
    files, persons, misnamed = [], {}, []
    for inner in (*FOLDERS, *(inner for inner in MORE_FOLDERS if (folder / inner).is_dir())):
        if not (folder / inner).is_dir():
            raise DataError(f"{folder / inner}: expected a folder of x-rays, found none. See DATA.md for the layout.")
        for name in listed(folder, inner):
            if match := NAMES[Path(inner).name].fullmatch(Path(name).stem):
                files.append(Named(name, CLASSES.index(match.groupdict().get("kind", "normal"))))
                persons[name] = match["person"]
            else:
                misnamed.append(Skipped(name, "misnamed: the name does not say class and person"))
    return sorted(files, key=lambda file: (Path(file.name).name, file.name)), persons, misnamed
