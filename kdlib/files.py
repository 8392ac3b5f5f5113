"""Files that are whole or absent: atomic writes, SHA-256, tensors as safetensors with a checked digest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdlib.errors import KDError


@contextmanager
def locked(path: Path, remedy: str, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a kernel lock on a file: a second process that wants it calls `waits`, and waits; a killed one leaves no lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waits()
            lock.acquire()
    except OSError as error:
        raise KDError(f"{path}: could not be written ({error.strerror}); {remedy}") from error
    try:
        yield
    finally:
        lock.release()


class DamagedFile(KDError):
    """A stored file is cut, altered or not what its name says."""


def not_read(path: Path, error: OSError) -> KDError:
    """What to raise for a file that could not be read: DamagedFile where there is none; else it may be as good as ever."""
    why = error.strerror or error
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return DamagedFile(f"{path}: expected a file, found none ({why})")
    return KDError(f"{path}: cannot be read ({why}). Nothing was changed: mend this and run the same command again.")


def sha256(content: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; the same value always gives the same text (NaN and infinity are refused)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a whole file or none: temporary name in the same folder, fsync, rename over the old one.

    Raises KDError where the disk is full or the folder may not be written; the old file is then still there.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; results are meant to be read by others
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise KDError(f"{path}: {_why(error)} ({len(content)} bytes to write). "
                      "Nothing that was complete is lost: mend this and run the same command again.") from error


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full or a size limit was hit ({error.strerror}); free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"may not be written ({error.strerror}); change its permissions or choose another folder"
    return f"could not be written ({error.strerror or error})"


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # as bytes: NumPy has no bfloat16
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor], notes: Any) -> str:
    return sha256((tensor_digest(tensors) + canonical_json(notes)).encode())


def array_digest(*arrays: NDArray[Any]) -> str:
    """The first 16 hex digits of the SHA-256 over types, shapes and bytes of arrays: the digest of a data set."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.newbyteorder('<')}|{array.shape}|".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
    """Write tensors and JSON-able notes as one safetensors file, atomically; the same content gives the same bytes."""
    # Copies, because safetensors refuses tensors that share memory (two names for one kept set of weights, say).
    flat = {name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)}
    # One metadata key only: safetensors keeps metadata in a hash map, and several keys would come in random order.
    metadata = {"kdlib": canonical_json({"digest": _digest(flat, notes), "notes": notes})}
    atomic_write(path, safetensors.torch.save(flat, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote: (tensors, notes).

    Raises DamagedFile where the file is cut, or any byte of a tensor or a note differs from what was written.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            recorded = json.loads((file.metadata() or {})["kdlib"])
            expected, notes = recorded["digest"], recorded["notes"]
            # Cloned: a tensor that still lies in the file's memory map keeps Windows from replacing the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        found = _digest(tensors, notes)
    except OSError as error:  # of a folder safetensors says that it is no device
        raise not_read(path, IsADirectoryError(errno.EISDIR, "a folder") if path.is_dir() else error) from error
    except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise DamagedFile(f"{path}: expected a safetensors file of kdlib, found something unreadable ({error})") from error
    if found != expected:
        raise DamagedFile(f"{path}: expected content with SHA-256 {str(expected)[:64]}, found {found}")
    return tensors, notes
