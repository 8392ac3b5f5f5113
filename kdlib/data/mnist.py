"""The MNIST digits of LeCun, Cortes and Burges from their four IDX files, plain or gzipped.

An IDX file has a big-endian header: two zero bytes, the type of its values, the number of axes, then the length of each
axis as uint32. The values follow; the index of the last axis changes fastest.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

from kdlib.data import DataError
from kdlib.data.pictures import Bytes, Pictures
from kdlib.files import DamagedFile, not_read

FOLDER = "MNIST/raw"  # torchvision puts the files here, below its root
CLASSES = 10
UNSIGNED_BYTE = 8  # the IDX code of this type of values

# Shape and SHA-256 of each whole file, ungzipped, including the header.
FILES = {
    "train-images-idx3-ubyte": ((60_000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": ((60_000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": ((10_000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": ((10_000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
REMEDY = "Replace the file by the published one: `kd data fetch mnist`."


def digits(folder: Path | str) -> Pictures:
    """Return the 60,000 + 10,000 digits, uint8 (N, 1, 28, 28), in the published order.

    The files are in `folder`/MNIST/raw, in `folder`/raw, in `folder` itself or each in a folder of its name, plain or
    with `.gz`, named like train-images-idx3-ubyte or train-images.idx3-ubyte. Raises DataError unless their bytes are
    the published ones.
    """
    images, labels, test_images, test_labels = (
        read_idx(find_file(Path(folder), name), shape, digest) for name, (shape, digest) in FILES.items()
    )
    return Pictures(images[:, None], labels, test_images[:, None], test_labels)


def places(name: str) -> tuple[str, ...]:
    """Return the paths below a folder where a file may be: torchvision's first, plain before gzipped."""
    return tuple(
        f"{inner}{spelled}{end}"
        for inner in (f"{FOLDER}/", "raw/", "", f"{name}/")  # Kaggle has each file in a folder of its own, too
        for spelled in (name, name.replace("-idx", ".idx"))  # as torchvision and LeCun spell it, as Kaggle does
        for end in ("", ".gz")
    )


def find_file(folder: Path, name: str) -> Path:
    """Return the path of a file, in the order of `places`; DataError if absent."""
    paths = [folder / place for place in places(name)]
    for path in paths:
        if path.is_file():
            return path
    raise DataError(f"{paths[0]}: expected a file (or {name}.gz, or either in {folder}), found none. {REMEDY}")


def read_idx(path: Path, shape: tuple[int, ...], sha256: str | None = None) -> Bytes:
    """Read an IDX file of unsigned bytes of this shape; a file with one axis holds labels, at most 9.

    `sha256` is that of the whole file, ungzipped. Raises DataError for another type, shape, size, label or hash.
    """
    header = struct.pack(f">HBB{len(shape)}I", 0, UNSIGNED_BYTE, len(shape), *shape)
    size = len(header) + int(np.prod(shape))
    content = _content(path, size + 1)
    if content[:4] != header[:4]:
        raise DataError(
            f"{path}: expected an IDX file that begins with {header[:4].hex()} (unsigned bytes, {len(shape)} "
            f"axes), found {content[:4].hex()}. {REMEDY}"
        )
    if content[: len(header)] != header:
        found = struct.unpack(f">{len(shape)}I", content[4 : len(header)].ljust(4 * len(shape), b"\0"))
        raise DataError(f"{path}: expected axes of {shape}, found {found}. {REMEDY}")
    if len(content) != size:
        found_size = "more" if len(content) > size else str(len(content))
        raise DataError(f"{path}: expected {size} bytes, found {found_size}. {REMEDY}")
    values = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()  # callers may write to a copy
    if len(shape) == 1 and values.max(initial=0) >= CLASSES:
        at = int(np.argmax(values >= CLASSES))
        raise DataError(f"{path}: expected labels from 0 to 9, found {values[at]} in row {at}. {REMEDY}")
    if sha256 is not None and (found_hash := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(
            f"{path}: expected the published file, SHA-256 {sha256}, found {found_hash} (Fashion-MNIST has files of "
            f"the same names). {REMEDY}"
        )
    return values


def _content(path: Path, most_bytes: int) -> bytes:
    """Return the first bytes of a file, ungzipped: never more than `most_bytes`, whatever the file unpacks to."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(most_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a readable file, found: {error}. {REMEDY}") from error
    except (OSError, MemoryError) as error:
        problem = not_read(path, error)
        raise DataError(f"{problem}. {REMEDY}") if isinstance(problem, DamagedFile) else problem from error
