"""Kaggle's two files of the heartbeats: 187 values and the class in each line, no header; every line is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdlib.data import DataError
from kdlib.data.reading import reading

FILES = ("mitbih_train.csv", "mitbih_test.csv")
FIELDS = 188
LONGEST_LINE = 40 * FIELDS
REMEDY = "Replace the file by the published one, or use PhysioNet's records (`kd data fetch mitdb`)."


def checksum(row: NDArray[np.float32], label: int) -> int:
    """Return four bytes, of the row's float32 bytes and its class, that are different for all published rows."""
    content = row.astype("<f4", copy=False).tobytes() + bytes([label])
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")


def checked_lines(path: Path, row_of: dict[int, int]) -> Iterator[tuple[int, NDArray[np.float32], int]]:
    """Yield (row number, values, class) of each line; `row_of` maps the rows' checksums to their numbers.

    Raises DataError at the first line that is not one of those rows, that repeats one, or that is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected both {' and '.join(FILES)}, found only one of them. {REMEDY}")
    seen: dict[int, int] = {}
    with reading(path), path.open("rb") as file:
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            here = len(seen) + 1
            values, label = _parse(path, here, line)
            number = row_of.get(checksum(values, label))
            if number is None:
                raise _bad(path, here, "one of this file's published rows", "another (altered values or class)")
            if number in seen:
                raise _bad(path, here, "each published row once", f"the row of line {seen[number]} again")
            seen[number] = here
            yield number, values, label
    if len(seen) < len(row_of):
        raise _bad(path, len(seen) + 1, f"{len(row_of)} lines", f"the end of the file after {len(seen)}")


def _parse(path: Path, here: int, line: bytes) -> tuple[NDArray[np.float32], int]:
    fields = line.split(b",")
    if len(fields) != FIELDS:
        raise _bad(path, here, f"{FIELDS} values", f"{len(fields)}")
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise _bad(path, here, "numbers only", str(error)) from None
    if values[-1] not in (0.0, 1.0, 2.0, 3.0, 4.0):
        raise _bad(path, here, "a class from 0 to 4 as the last value", repr(values[-1]))
    return np.array(values[:-1], np.float32), int(values[-1])


def _bad(path: Path, here: int, expected: str, found: str) -> DataError:
    return DataError(f"{path}, line {here}: expected {expected}, found {found}. {REMEDY}")
