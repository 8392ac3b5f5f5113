"""CIFAR-10 (Krizhevsky 2009), binary version: a label byte and 3,072 pixel bytes (red, green, blue plane) per picture.

The Python version has the same pictures in pickles. They are never unpickled, as that would run what is in them:
pickletools lists a pickle's operations and runs none, and the pixels and labels are the values of a few of them.

Copies of the set have different orders. Each part is therefore put into one canonical order, by the SHA-256 of the
pixel bytes. Then the same pictures give the same arrays, whichever files they were read from.
"""

from __future__ import annotations

import hashlib
import pickletools
from pathlib import Path

import numpy as np

from kdlib.data import DataError
from kdlib.data.pictures import Bytes, Pictures
from kdlib.files import read_file

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
PICTURES_PER_FILE = 10_000
FILE_BYTES = PICTURES_PER_FILE * (1 + PIXELS)

# SHA-256 of a part's images and then its labels, in canonical order.
TRAIN_SHA256 = "d5c33a0afd72fe35251e959af302dfef966350024637730d8058215e180322e3"
TEST_SHA256 = "925c51da8e6370f27c9a4f605722e4eef262a69c1b6b4b322b14461b3bd95faf"
REMEDY = "Replace the files by the published ones: `kd data fetch cifar10`."


def pictures(folder: Path | str) -> Pictures:
    """Return the 50,000 + 10,000 pictures, uint8 (N, 3, 32, 32), each part in canonical order.

    The files are in `folder`/cifar-10-batches-bin, in `folder`/cifar-10-batches-py or in `folder` itself. Raises
    DataError unless the pictures and their labels are the published ones, in any order.
    """
    folder = Path(folder)
    return Pictures(*read_part(folder, TRAIN_FILES, TRAIN_SHA256), *read_part(folder, TEST_FILES, TEST_SHA256))


def places(name: str) -> tuple[str, ...]:
    """Return the paths below a folder where a file may be: the binary version before the Python version."""
    python = name.removesuffix(".bin")
    return f"{FOLDER}/{name}", name, f"{PYTHON_FOLDER}/{python}", python


def read_part(folder: Path, files: tuple[str, ...], sha256: str) -> tuple[Bytes, Bytes]:
    """Return the images and labels of one part, in canonical order.

    `sha256` is that of the arrays returned. Raises DataError for another one, or if the classes differ in size.
    """
    paths = [[folder / place for place in places(name)] for name in files]
    rows = np.concatenate([read_rows(next(filter(Path.is_file, some), some[0])) for some in paths])
    counts = np.bincount(rows[:, 0], minlength=len(CLASSES)).tolist()
    each = len(rows) // len(CLASSES)
    if counts != [each] * len(CLASSES):
        raise DataError(
            f"{folder}: expected {each} pictures of each class in {', '.join(files)}, found {counts}. {REMEDY}"
        )
    order = canonical_order(rows)
    images, labels = rows[:, 1:][order], rows[:, 0][order]
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    if digest.hexdigest() != sha256:
        raise DataError(
            f"{folder}: expected the published pictures in {', '.join(files)}, SHA-256 {sha256} in canonical order, "
            f"found {digest.hexdigest()}. {REMEDY}"
        )
    return images.reshape(-1, *SHAPE), labels


def read_rows(path: Path) -> Bytes:
    """Return one file as rows uint8 (10,000, 1 + 3,072) of label and pixels; DataError for another size or label."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found none. {REMEDY}")
    if path.suffix == ".bin":
        if (size := path.stat().st_size) != FILE_BYTES:
            raise DataError(
                f"{path}: expected {FILE_BYTES} bytes ({PICTURES_PER_FILE} pictures), found {size}. {REMEDY}"
            )
        rows = np.frombuffer(read_file(path), np.uint8).reshape(-1, 1 + PIXELS)
    else:
        rows = _python_rows(path)
    if rows[:, 0].max() >= len(CLASSES):
        at = int(np.argmax(rows[:, 0] >= len(CLASSES)))
        raise DataError(f"{path}: expected labels from 0 to 9, found {rows[at, 0]} in row {at}. {REMEDY}")
    return rows


def _python_rows(path: Path) -> Bytes:
    """Return the rows of a file of the Python version: the pixels are its one long text, the labels a list."""
    if (size := path.stat().st_size) > 2 * FILE_BYTES:
        raise DataError(f"{path}: expected at most {2 * FILE_BYTES} bytes, found {size}. {REMEDY}")
    labels, pixels, key, before = list[int](), None, "", ""
    try:
        for operation, value, _ in pickletools.genops(read_file(path)):
            if isinstance(value, str):  # Python 2's texts are bytes, which pickletools gives as Latin 1
                key = value
                if len(value) == PICTURES_PER_FILE * PIXELS:
                    pixels = np.frombuffer(value.encode("latin-1"), np.uint8)
                    by_column = before == "NEWTRUE"  # NumPy's mark of Fortran's order
                    pixels = pixels.reshape(PIXELS, -1).T if by_column else pixels.reshape(-1, PIXELS)
            elif operation.name == "BININT1" and key == "labels" and value is not None:
                labels.append(value)
            before = operation.name
    except ValueError as error:
        raise DataError(f"{path}: expected a file of CIFAR-10's Python version, found: {error}. {REMEDY}") from error
    if pixels is None or len(labels) != PICTURES_PER_FILE:
        found = f"{len(labels)} labels and {'some' if pixels is not None else 'no'} pixels"
        raise DataError(f"{path}: expected labels and pixels of {PICTURES_PER_FILE} pictures, found {found}. {REMEDY}")
    return np.ascontiguousarray(np.column_stack([np.array(labels, np.uint8), pixels]))


def canonical_order(rows: Bytes) -> list[int]:
    """Return the row numbers in the order of the pixels' SHA-256; equal pictures are in the order of their labels."""
    keys = [hashlib.sha256(row[1:]).digest() + row[:1].tobytes() for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)
