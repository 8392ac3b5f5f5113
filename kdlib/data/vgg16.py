"""ImageNet weights of VGG16's 13 convolutions, from either of two files (Simonyan and Zisserman 2015, arXiv:1409.1556).

`vgg16_features.safetensors` holds Keras's, whose first kernel expects blue, green, red. torchvision's
`VGG16_Weights.IMAGENET1K_FEATURES` expects red, green, blue; here its first kernel is turned, so that both files give
the same tensors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from kdlib.data import DataError
from kdlib.data.reading import reading
from kdlib.files import DamagedFile, not_read, read_file
from kdlib.foreign import read_tensors

CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # into and out of the 13 convolutions
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # in torchvision's vgg16().features
FIRST_KERNEL = "features.0.weight"
KERAS = "vgg16_features.safetensors"
TORCHVISION = "vgg16_features-amdegroot-88682ab5.pth"
TORCHVISION_SHA256 = "88682ab5"  # the first digits, which are in the file's name; the rest is not known to kdlib
KERAS_DIGEST = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
REMEDY = "Delete it and fetch it again: `kd data fetch vgg16`."


class Features(NamedTuple):
    """Weights by torchvision's names, `features.0.weight` (64, 3, 3, 3) to `features.28.bias` (512,), float32.

    The input channels of the first kernel are blue, green, red. `digest` is the SHA-256 of `weights_digest`.
    """

    tensors: dict[str, Tensor]
    digest: str


def features(folder: Path | str) -> Features:
    """Return the weights from `folder`; Keras's file is before torchvision's.

    Raises DataError if there is none of the two files, or another content: Keras's weights are checked by their digest,
    torchvision's file by the digits of its SHA-256 that are in its name. No pickled object but tensors is read.
    """
    folder = Path(folder)
    keras, other = folder / KERAS, folder / TORCHVISION
    if keras.is_file():
        tensors = _checked(keras, _read_keras(keras))
        digest = weights_digest(tensors)
        if digest != KERAS_DIGEST:
            raise DataError(f"{keras}: expected weights of SHA-256 {KERAS_DIGEST}, found {digest}. {REMEDY}")
        return Features(tensors, digest)
    if not other.is_file():
        raise DataError(f"{folder}: expected {KERAS} or {TORCHVISION}, found neither. Fetch it: `kd data fetch vgg16`.")
    tensors = _checked(other, _read_torchvision(other))
    tensors[FIRST_KERNEL] = tensors[FIRST_KERNEL].flip(1)
    return Features(tensors, weights_digest(tensors))


def weights_digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of each kernel (height, width, in, out) and its bias, one convolution after the other."""
    digest = hashlib.sha256()
    for name in _names():
        tensor = tensors[name].permute(2, 3, 1, 0) if tensors[name].ndim == 4 else tensors[name]
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _names() -> list[str]:
    return [f"features.{place}.{part}" for place in PLACES for part in ("weight", "bias")]


def _shapes() -> list[tuple[int, ...]]:
    pairs = zip(CHANNELS[1:], CHANNELS[:-1], strict=True)
    return [shape for out, into in pairs for shape in ((out, into, 3, 3), (out,))]


def _read_keras(path: Path) -> dict[str, Tensor]:
    try:
        # Python opens the file: safetensors reports every failure to open one as a missing file.
        return read_tensors(read_file(path))
    except (MemoryError, RuntimeError) as error:
        raise not_read(path, error) from error
    except (DamagedFile, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: expected a safetensors file, found unreadable content ({error}). {REMEDY}") from error


def _read_torchvision(path: Path) -> dict[str, Tensor]:
    with reading(path), path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if not found.startswith(TORCHVISION_SHA256):
        raise DataError(f"{path}: expected a SHA-256 that begins with {TORCHVISION_SHA256}, found {found}. {REMEDY}")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError, RuntimeError) as error:  # its SHA-256 is right, so it is not damaged
        raise not_read(path, error) from error
    except Exception as error:  # torch names no errors for a file that is not its own
        raise DataError(f"{path}: expected tensors, found unreadable content ({error}). {REMEDY}") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{path}: expected tensors by name, found a {type(loaded).__name__}. {REMEDY}")
    return loaded


def _checked(path: Path, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the 26 tensors; the file of torchvision also has the classifier's, which are not numbers."""
    for name, shape in zip(_names(), _shapes(), strict=True):
        tensor = loaded.get(name)
        found: Any = tensor
        if tensor is not None:
            found = (str(tensor.dtype), tuple(tensor.shape)) if isinstance(tensor, Tensor) else (type(tensor).__name__,)
        if found != ("torch.float32", shape):
            raise DataError(f"{path}: expected {name} in float32 of shape {shape}, found {found}. {REMEDY}")
    return {name: loaded[name].clone() for name in _names()}
