"""What safetensors reads and writes, and files that kdlib did not write: they are the user's, and not damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import safetensors
import safetensors.torch
from torch import Tensor

__all__ = ["is_foreign", "read_tensors", "tensor_bytes"]


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file of safetensors; MemoryError where its Rust code panics, as it does without memory.

    Other errors as of `safetensors.torch.load`.
    """
    with _panics_as_memory_errors():
        return safetensors.torch.load(content)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file of safetensors; MemoryError and others as `read_tensors`."""
    with _panics_as_memory_errors():
        return safetensors.torch.save(dict(tensors), dict(metadata))


@contextmanager
def _panics_as_memory_errors() -> Iterator[None]:
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # no `except Exception` takes a PanicException
        if type(error).__name__ != "PanicException":
            raise
        raise MemoryError(str(error)) from error


def is_foreign(content: bytes) -> bool:
    """Return whether the content of a file is surely not that of a damaged file of `kdlib.files.save_tensors`.

    It is text, an archive of torch.save, or a whole file of safetensors without kdlib's digest.
    """
    # A file of safetensors begins with a length of eight bytes, some of them 0.
    if (content and 0 not in content[:8] and _is_text(content)) or content.startswith(b"PK\x03\x04"):
        return True
    try:
        tensors = read_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (ValueError, KeyError, RuntimeError, MemoryError, safetensors.SafetensorError):
        return False
    return bool(tensors) and "digest" not in str(header.get("__metadata__"))


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
