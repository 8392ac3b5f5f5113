"""Cats and dogs as RGB 96 x 96: the Asirra subset in folders, and Oxford-IIIT Pet for those who do not have it.

Asirra: Elson, Douceur, Howell and Saul 2007, ACM CCS. Oxford-IIIT Pet: Parkhi, Vedaldi, Zisserman and Jawahar 2012,
CVPR. They are different data sets: results on one are not compared with those on the other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdlib.data import DataError
from kdlib.data.picture_files import Named, Skipped, decoded, listed, refuse_damaged, refuse_empty_classes
from kdlib.data.pictures import Bytes, Pictures
from kdlib.files import DamagedFile, read_file

CLASSES = ("cat", "dog")
SIDE = 96
FOLDERS = tuple(f"{part}/{name}" for part in ("training", "test") for name in CLASSES)
OXFORD = "oxford-iiit-pet"  # torchvision's folder
OXFORD_LISTS = ("annotations/trainval.txt", "annotations/test.txt")
OXFORD_LINE = re.compile(r"([A-Za-z_]+_[0-9]+) [0-9]+ ([12]) [0-9]+")  # name, breed, 1 for a cat, breed within it


class CatsDogs(NamedTuple):
    """Images uint8 (N, 3, 96, 96), labels uint8 (N,): 0 is a cat, 1 is a dog; and the skipped files."""

    pictures: Pictures
    skipped: tuple[Skipped, ...]


def pictures(folder: Path | str) -> CatsDogs:
    """Return the pictures of `folder`/training/cat, training/dog, test/cat and test/dog, ordered by name.

    A file is skipped if its name begins with the other class, or by the rule of `picture_files`. Of equal pictures in
    both parts, that of the test part is kept. Decoded arrays are stored. Raises DataError for a folder that is missing
    and for a class without pictures.
    """
    folder, parts, misnamed = Path(folder), dict[str, list[Named]](), []
    for inner in FOLDERS:
        if not (folder / inner).is_dir():
            raise DataError(f"{folder / inner}: expected a folder of pictures, found none. See DATA.md for the layout.")
        part, name = inner.split("/")
        other = CLASSES[1 - CLASSES.index(name)]
        for file in listed(folder, inner):
            if Path(file).name.lower().startswith(other):
                misnamed.append(Skipped(file, f"misnamed: a name of a {other}"))
            else:
                parts.setdefault(part, []).append(Named(file, CLASSES.index(name)))
    return _both(folder, parts.get("training", []), parts.get("test", []), misnamed)


def check(folder: Path | str) -> None:
    """Read the whole set; DataError as for `pictures`, and if a file is skipped that is not a copy of another."""
    refuse_damaged(Path(folder), pictures(folder).skipped)


def oxford_pets(folder: Path | str) -> CatsDogs:
    """Return Oxford-IIIT Pet's parts `trainval` and `test`, in the order of its lists.

    The folders images and annotations are in `folder`/oxford-iiit-pet, as torchvision puts them, or in `folder` itself.
    Files are skipped by the rule of `picture_files`. Decoded arrays are stored. Raises DataError for a list that is
    missing or has a wrong line, and for a class without pictures.
    """
    inner = Path(folder) / OXFORD
    if not inner.is_dir() and (Path(folder) / OXFORD_LISTS[0]).is_file():
        inner = Path(folder)
    train, test = (_oxford_list(inner / name) for name in OXFORD_LISTS)
    return _both(inner, train, test)


def _oxford_list(path: Path) -> list[Named]:
    try:
        lines = read_file(path).decode().splitlines()
    except (DamagedFile, UnicodeError) as error:
        raise DataError(f"{path}: expected a list of pictures, found: {error}. See DATA.md for the layout.") from error
    files = []
    for number, line in enumerate(lines, 1):
        match = OXFORD_LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(
                f"{path}, line {number}: expected `name breed 1 or 2 number`, found {line[:60]!r}. "
                "Replace the file by the published one: `kd data fetch oxford_pets`."
            )
        files.append(Named(f"images/{match[1]}.jpg", int(match[2]) - 1))
    return files


def _both(folder: Path, train: Sequence[Named], test: Sequence[Named], misnamed: Sequence[Skipped] = ()) -> CatsDogs:
    found = decoded(folder, [*test, *train], SIDE, "RGB", misnamed)  # of equal pictures, the first is kept
    in_test = np.isin([file.name for file in found.files], [file.name for file in test])
    arrays: list[Bytes] = []
    for part in (~in_test, in_test):
        refuse_empty_classes(folder, found.labels[part], CLASSES, found.skipped)
        arrays += [found.images[part], found.labels[part]]
    return CatsDogs(Pictures(*arrays), found.skipped)
