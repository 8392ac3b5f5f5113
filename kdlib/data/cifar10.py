"""CIFAR-10 (Krizhevsky 2009), binary version: one label byte and 3,072 pixel bytes (red, green, blue plane) per picture.

Copies of the set come in different orders. Each part is therefore put into one canonical order, by the SHA-256 of the pixel
bytes, so that the same pictures give the same arrays whatever files they were read from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from kdlib.data import DataError
from kdlib.data.pictures import Bytes, Pictures

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-bin"
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
    """Return the 50,000 + 10,000 pictures, (N, 3, 32, 32), each part in canonical order.

    The files lie in `folder`/cifar-10-batches-bin or in `folder` itself. Raises DataError unless the pictures and their
    labels are the published ones, in whatever order.
    """
    folder = Path(folder)
    inner = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    return Pictures(*read_part(inner, TRAIN_FILES, TRAIN_SHA256), *read_part(inner, TEST_FILES, TEST_SHA256))


def read_part(folder: Path, files: tuple[str, ...], sha256: str) -> tuple[Bytes, Bytes]:
    """Read one part, images and labels, as many pictures of each class; `sha256` is that of the canonical arrays."""
    rows = np.concatenate([read_rows(folder / name) for name in files])
    counts = np.bincount(rows[:, 0], minlength=len(CLASSES)).tolist()
    each = len(rows) // len(CLASSES)
    if counts != [each] * len(CLASSES):
        raise DataError(f"{folder}: expected {each} pictures of each class in {', '.join(files)}, found {counts}. {REMEDY}")
    order = canonical_order(rows)
    images, labels = rows[:, 1:][order], rows[:, 0][order]
    digest = hashlib.sha256(images.data)
    digest.update(labels.data)
    if digest.hexdigest() != sha256:
        raise DataError(f"{folder}: expected the published pictures in {', '.join(files)}, SHA-256 {sha256} in canonical order, "
                        f"found {digest.hexdigest()}. {REMEDY}")
    return images.reshape(-1, *SHAPE), labels


def read_rows(path: Path) -> Bytes:
    """Read one file as rows (pictures, 1 + 3,072): label, pixels."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file, found none. {REMEDY}")
    if (size := path.stat().st_size) != FILE_BYTES:
        raise DataError(f"{path}: expected {FILE_BYTES} bytes ({PICTURES_PER_FILE} pictures), found {size}. {REMEDY}")
    rows = np.fromfile(path, np.uint8).reshape(-1, 1 + PIXELS)
    if rows[:, 0].max() >= len(CLASSES):
        at = int(np.argmax(rows[:, 0] >= len(CLASSES)))
        raise DataError(f"{path}: expected labels from 0 to 9, found {rows[at, 0]} in row {at}. {REMEDY}")
    return rows


def canonical_order(rows: Bytes) -> list[int]:
    """Return the row numbers by SHA-256 of the pixels; the label decides between equal pictures."""
    keys = [hashlib.sha256(row[1:]).digest() + row[:1].tobytes() for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)
