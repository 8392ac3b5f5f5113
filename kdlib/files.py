"""Files that are whole or absent: locks, atomic writes, SHA-256, JSON, and tensors with a checked digest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdlib.contents import content_of
from kdlib.errors import KDError
from kdlib.foreign import is_foreign, read_tensors, tensor_bytes

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
PAUSES = (0.05, 0.2, 0.7)  # seconds before a rename that was refused is tried again


@contextmanager
def locked(path: Path, remedy: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a kernel lock on a file. A second process that wants the lock calls `on_wait`, then blocks.

    A caller that does not want to wait raises an exception in `on_wait`. The operating system releases the lock of a
    killed process. Raises KDError for a holder without a sign of life (`kdlib.alive`), and, with `remedy` at its end,
    if the lock file cannot be written.
    """
    from filelock import FileLock

    from kdlib import alive

    # One lock object for each path: a thread that holds the lock may take it again without waiting for itself.
    lock = FileLock(path.absolute(), is_singleton=True)
    again = lock.is_locked
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        alive.acquire(lock, path, on_wait)
    except OSError as error:
        raise KDError(f"{path}: could not be written ({error.strerror}); {remedy}") from error
    try:
        with nullcontext() if again else alive.shown(path):
            yield
    finally:
        lock.release()


class DamagedFile(KDError):
    """A stored file is missing, cut, altered, or not the file that its name says."""


class ForeignFile(DamagedFile):
    """A file that kdlib did not write: other weights, an archive, a text."""


def not_read(path: Path, error: BaseException) -> KDError:
    """Return the error to raise for a file that cannot be read: DamagedFile if there is no file, otherwise KDError.

    In the other cases (too many open files, no memory, no permission) the file may be intact, so it is not reported as
    damaged.
    """
    why = getattr(error, "strerror", None) or str(error) or "out of memory"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return DamagedFile(f"{path}: expected a file, found none ({why})")
    if isinstance(error, OSError) and error.errno in (errno.ELOOP, errno.ENXIO):  # links that end nowhere, sockets
        return DamagedFile(f"{path}: expected a file, found a link or a special file ({why})")
    return KDError(f"{path}: cannot be read ({why}). Nothing was changed: mend this, then run the same command again.")


def is_there(path: Path) -> bool:
    """Return whether there is a file, folder or link; KDError if that cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise not_read(path, error) from error
    except ValueError as error:  # a character of code 0
        raise KDError(f"{str(path)!r}: expected the name of a file, found {error}; give it another name") from error
    return True


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one that replaces it; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size


def read_file(path: Path, *, follow: bool = True) -> bytes:
    """Return the bytes of a regular file; without `follow`, not those of a link's target.

    Raises DamagedFile if there is no such file, KDError if it cannot be read just now. A pipe does not block.
    """
    extra = getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a regular file")
            return file.read()
    except (OSError, MemoryError) as error:
        raise not_read(path, error) from error


def replace(source: Path, target: Path) -> None:
    """Rename a file or a folder to a name that may be taken, as `os.replace` does; try a refusal again for a second.

    A virus scanner may have just opened the file, and Windows then refuses.
    """
    for pause in (*PAUSES, None):
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if pause is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY):
                raise
            time.sleep(pause)


def previous(path: Path) -> Path:
    """Return the place of the version of a file before the present one, if `keep_previous` was called."""
    return path.with_name(f"previous-{path.name}")


def keep_previous(path: Path) -> None:
    """Keep a file, which is about to be replaced, under a second name; KDError if that cannot be done.

    The file itself stays in its place. If it was deleted, the version before it is deleted too.
    """
    kept, new = previous(path), path.with_name(f".{previous(path).name}")
    try:
        if not is_there(path):
            kept.unlink(missing_ok=True)
            return
        new.unlink(missing_ok=True)  # left by a killed process
        _second_name(path, new)
        replace(new, kept)
    except OSError as error:
        raise _not_written(kept, error) from error


def _second_name(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # not every file system has hard links
        shutil.copyfile(path, name)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `<name>.damaged`, or with a number if that name is taken; return the new path.

    If the version before it was kept, it takes the file's place; a kill never leaves the place empty.
    """
    target, number = path.with_name(f"{path.name}.damaged"), 1
    while is_there(target):
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    try:
        if is_there(previous(path)):
            _second_name(path, target)
            replace(previous(path), path)
        else:
            replace(path, target)
    except OSError as error:
        raise KDError(
            f"{path}: damaged, and cannot be renamed to {target.name} ({error.strerror}); remove it by hand"
        ) from error
    return target


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and without spaces: the same value always gives the same text.

    Raises ValueError for NaN and infinity, TypeError for what JSON does not know.
    """
    return CANONICAL.encode(value)


def read_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is not JSON or has a number that is not finite.

    Python's parser takes NaN and Infinity, which are not JSON, reads 1e999 as infinity, and half a pair of surrogates
    as text that cannot be written. Both parsers read the same numbers, to the last bit.
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError as error:
        raise ValueError("lists or objects nested too deep") from error


def atomic_write(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: write under a temporary name in the same folder, fsync, replace the old file.

    The umask says who else may read the file.
    Raises KDError if the file cannot be written, for example on a full disk; the old file is then still there.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        temporary = name
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mode = stat.S_IMODE(os.stat(temporary).st_mode)
        if mode & 0o600 != 0o600:  # by an odd umask: nobody could go on with such a file
            os.chmod(temporary, mode | 0o600)
        replace(Path(temporary), path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise _not_written(path, error, f" ({len(content)} bytes to write)") from error


def _not_written(path: Path, error: OSError, what: str = "") -> KDError:
    return KDError(
        f"{path}: {_why(error)}{what}. Nothing that was complete is lost: mend this, then run the same command again."
    )


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full or a size limit was hit ({error.strerror}); free some space or choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"may not be written ({error.strerror}); change its permissions or choose another folder"
    return f"could not be written ({error.strerror or error})"


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # as bytes: NumPy has no bfloat16
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor], notes: Any) -> str:
    return sha256((tensor_digest(tensors) + canonical_json(notes)).encode())


def array_digest(*arrays: NDArray[Any] | Tensor) -> str:
    """Return a data set's digest: the first 16 hex digits of the SHA-256 of its arrays' types, shapes and bytes.

    A tensor has the digest of the NumPy array with its numbers, in either order of the bytes. KDError for what is
    neither, for arrays of Python objects (their bytes are addresses) and for tensors that NumPy cannot hold.
    """
    digest = hashlib.sha256()
    for array in arrays:
        kind, content = content_of(array)
        digest.update(f"{kind}|{tuple(array.shape)}|".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Any = None) -> None:
    """Write tensors and notes (any JSON value) to one safetensors file, atomically.

    The same content gives the same bytes. Raises KDError as `atomic_write` does.
    """
    # Copies: safetensors refuses tensors that share memory, for example two names for one set of weights.
    flat = {name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in sorted(tensors)}
    # Only one metadata key: safetensors keeps metadata in a hash map, so several keys would come in random order.
    metadata = {"kdlib": canonical_json({"digest": _digest(flat, notes), "notes": notes})}
    atomic_write(path, tensor_bytes(flat, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read a file of `save_tensors` and return (tensors, notes).

    Raises DamagedFile if the file is missing or cut, or if a byte of a tensor or a note is not as it was written;
    KDError if it cannot be read just now.
    """
    # Python opens the file: safetensors reports every failure to open one as a missing file.
    return tensors_of(read_file(path), path)


def tensors_of(content: bytes, path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return (tensors, notes) of the bytes of a file of `save_tensors`; errors, as in `load_tensors`, name `path`."""
    try:
        header = read_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = read_json(header["__metadata__"]["kdlib"])
        expected, notes = about["digest"], about["notes"]
        # Cloned: the tensors that safetensors returns are not aligned in memory.
        tensors = {name: value.clone() for name, value in sorted(read_tensors(content).items())}
        found = _digest(tensors, notes)
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        if is_foreign(content):
            raise ForeignFile(f"{path}: expected a safetensors file of kdlib, found another file") from error
        raise DamagedFile(
            f"{path}: expected a safetensors file of kdlib, found unreadable content ({error})"
        ) from error
    except (MemoryError, RuntimeError) as error:  # torch reports that memory is short as a RuntimeError
        raise not_read(path, error) from error
    if found != expected:
        raise DamagedFile(f"{path}: expected content with SHA-256 {str(expected)[:64]}, found {found}")
    return tensors, notes
