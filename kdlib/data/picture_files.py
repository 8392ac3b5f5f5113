"""Files of single pictures, decoded once to small uint8 arrays. Unfit files are skipped, and named with the reason.

The rule: a file is used if it lies in the data set's folder, has at most 32 MiB, ends in .jpg or .jpeg, and holds a
whole JPEG picture of at most 2^25 pixels, grey or RGB (so with 8 bits). Of equal pictures, only the first is used; if
they have different labels, none is.
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile

from kdlib.data import DataError
from kdlib.data.cache import computed_once
from kdlib.data.pictures import Bytes
from kdlib.data.reading import reading
from kdlib.errors import KDError, some_of
from kdlib.files import DamagedFile, canonical_json, not_read, sha256

ENDINGS = (".jpg", ".jpeg")
MOST_BYTES = 2**25  # of a file
MOST_PIXELS = 2**25
TOO_LARGE = f"more than {MOST_PIXELS} pixels"
RULE = 1  # raised when other pictures are skipped or a pixel changes; it is part of the key of stored arrays


class Named(NamedTuple):
    """A picture file: its path below the data set's folder, with `/`, and its label."""

    name: str
    label: int


class Skipped(NamedTuple):
    """A file that is not used, and why."""

    name: str
    reason: str


class Decoded(NamedTuple):
    """The pictures that are used, uint8 (N, C, S, S), with their names and labels, and the files that are not."""

    files: tuple[Named, ...]
    images: Bytes
    skipped: tuple[Skipped, ...]

    @property
    def labels(self) -> Bytes:
        """The labels, uint8 (N,)."""
        return np.array([file.label for file in self.files], np.uint8)


class UnfitError(Exception):
    """A file breaks the rule; the text is the reason."""


def listed(folder: Path, inner: str) -> list[str]:
    """Return the paths below `folder` of all that is in its folder `inner`, sorted; hidden files are left out."""
    with reading(folder / inner):
        return sorted(f"{inner}/{path.name}" for path in (folder / inner).iterdir() if not path.name.startswith("."))


def decoded(folder: Path, files: Sequence[Named], side: int, mode: str, unfit: Sequence[Skipped] = ()) -> Decoded:
    """Return the pictures in `mode` ("L" is grey, "RGB" is colour), resized to squares, in the order of `files`.

    Grey is Pillow's: 0.299 red + 0.587 green + 0.114 blue. Resizing is bilinear over all source pixels, and it does not
    keep the proportions. The arrays are stored under a key of all names, labels and file contents. The skipped files
    begin with `unfit`.
    """
    root = folder.resolve()  # the data set's folder itself may be a link
    digests, bad = _digests(root, files)
    good = [file for file in files if file.name in digests]
    key = [RULE, PIL.__version__, side, mode, [[*file, digests[file.name]] for file in good]]

    def compute() -> tuple[dict[str, torch.Tensor], Any]:
        images, used, skipped = _decode_all(root, good, digests, side, mode)
        return {"images": torch.from_numpy(images), "used": torch.from_numpy(used)}, skipped

    tensors, skipped = computed_once(folder, sha256(canonical_json(key).encode())[:32], compute)
    used = tuple(good[at] for at in tensors["used"].tolist())
    return Decoded(used, tensors["images"].numpy(), (*unfit, *bad, *(Skipped(*each) for each in skipped)))


COPIES = "a copy of"  # the reason that says nothing against a file itself


def refuse_damaged(folder: Path, skipped: Sequence[Skipped]) -> None:
    """Raise DataError if a file was skipped for another reason than having an equal; it says how many and which."""
    damaged = [f"{name} ({reason})" for name, reason in skipped if not reason.startswith(COPIES)]
    if damaged:
        raise DataError(
            f"{folder}: expected only whole pictures, skipped {len(damaged)} of the files: "
            f"{some_of(damaged, '; ')}. Replace them by fresh copies."
        )


def refuse_empty_classes(folder: Path, labels: Bytes, classes: Sequence[str], skipped: Sequence[Skipped]) -> None:
    """Raise DataError unless each class has a picture; the text names three of the skipped files."""
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    if 0 in counts:
        found = ", ".join(f"{count} of {name}" for count, name in zip(counts, classes, strict=True))
        why = "; ".join(f"{name} ({reason})" for name, reason in skipped[:3])
        raise DataError(
            f"{folder}: expected pictures of each class, found {found}, and {len(skipped)} skipped files"
            f"{f': {why}' if why else ''}. Put the files of DATA.md there."
        )


def decode(content: bytes, side: int, mode: str) -> Bytes:
    """Return one picture, uint8 (C, side, side); UnfitError if the file's content breaks the rule.

    KDError if there is too little memory to decode it.
    """
    pixels = 0
    try:
        with _usual_pillow(), Image.open(io.BytesIO(content), formats=("JPEG",)) as picture:  # reads the header only
            pixels = picture.width * picture.height
            if picture.width * picture.height > MOST_PIXELS:
                raise UnfitError(TOO_LARGE)
            if picture.mode not in ("L", "RGB"):
                raise UnfitError(f"mode {picture.mode}, not grey or RGB")
            small = picture.convert(mode).resize((side, side), Image.Resampling.BILINEAR)
    except UnfitError:
        raise
    except Image.DecompressionBombError as error:  # Pillow refuses still larger pictures itself
        raise UnfitError(TOO_LARGE) from error
    except MemoryError as error:
        raise _too_little_memory() from error
    except Exception as error:  # a hostile file may raise anything in a decoder
        try:  # libjpeg reports that memory is short as a broken file
            np.empty(16 * min(pixels, MOST_PIXELS), np.uint8)
        except MemoryError:
            raise _too_little_memory() from error
        raise UnfitError("not a whole JPEG picture") from error
    return np.asarray(small).reshape(side, side, -1).transpose(2, 0, 1)


def _too_little_memory() -> KDError:
    return KDError("expected memory to decode a picture, found too little; free some, then run the same command again")


@contextmanager
def _usual_pillow() -> Iterator[None]:
    """Decode with Pillow's own settings, which a notebook may have changed: what is stored is for all processes."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None  # the rule has its own limit
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _content(folder: Path, name: str) -> bytes:
    """Return the bytes of a file; UnfitError if its name or its place breaks the rule."""
    path = folder / name
    if path.suffix.lower() not in ENDINGS:
        raise UnfitError("misnamed: the ending is not .jpg or .jpeg")
    try:
        if not path.resolve(strict=True).is_relative_to(folder):
            raise UnfitError("a link out of the folder")
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UnfitError("not a file")
        if about.st_size > MOST_BYTES:
            raise UnfitError(f"{about.st_size} bytes, more than {MOST_BYTES}")
        content = path.read_bytes()
    except RuntimeError as error:  # links that lead in a circle
        raise UnfitError(f"not readable ({error})") from error
    except (OSError, MemoryError) as error:  # without a file that is only not read just now, the data would be others
        problem = not_read(path, error)
        if isinstance(problem, DamagedFile):
            raise UnfitError(f"not readable ({getattr(error, 'strerror', error)})") from error
        raise problem from error
    if not content:
        raise UnfitError("empty")
    return content


def _digests(folder: Path, files: Sequence[Named]) -> tuple[dict[str, str], list[Skipped]]:
    """Return the SHA-256 of each file that can be read, by name, and the files that cannot."""
    digests, bad = {}, []
    for file in files:
        try:
            digests[file.name] = sha256(_content(folder, file.name))
        except UnfitError as error:
            bad.append(Skipped(file.name, str(error)))
    return digests, bad


def _same_content(folder: Path, name: str, digest: str) -> bytes:
    """Return the bytes of a file that was read before; DataError if they are others now."""
    try:
        content = _content(folder, name)
    except UnfitError:
        content = b""
    if sha256(content) != digest:
        raise DataError(f"{folder / name}: expected the bytes of a moment ago, found others. Start again.")
    return content


def _decode_all(
    folder: Path, files: Sequence[Named], digests: dict[str, str], side: int, mode: str
) -> tuple[Bytes, NDArray[np.int64], list[Skipped]]:
    """Return the images, which files they are of, and the skipped files."""
    images = np.empty((len(files), 3 if mode == "RGB" else 1, side, side), np.uint8)
    used: list[int] = []
    skipped = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata and sizes: the rule decides
        for at, file in enumerate(files):
            content = _same_content(folder, file.name, digests[file.name])
            try:
                images[len(used)] = decode(content, side, mode)
                used.append(at)
            except UnfitError as error:
                skipped.append(Skipped(file.name, str(error)))
    images = images[: len(used)]
    kept, copies = _without_copies(images, [files[at] for at in used])
    if copies:
        images = images[kept]
    return images, np.array(used, np.int64)[kept], sorted([*skipped, *copies])


def _without_copies(images: Bytes, files: Sequence[Named]) -> tuple[NDArray[np.int64], list[Skipped]]:
    """Return the rows of the pictures to keep, and the copies."""
    groups: dict[bytes, list[int]] = {}
    for at, image in enumerate(images):
        groups.setdefault(
            hashlib.sha256(image.data if image.flags.c_contiguous else image.tobytes()).digest(), []
        ).append(at)
    kept, skipped = [], []
    for group in groups.values():
        first = files[group[0]]
        if len({files[at].label for at in group}) == 1:
            kept.append(group[0])
            skipped += [Skipped(files[at].name, f"a copy of {first.name}") for at in group[1:]]
        else:
            skipped += [Skipped(files[at].name, "the same picture has different labels") for at in group]
    return np.array(sorted(kept), np.int64), skipped
