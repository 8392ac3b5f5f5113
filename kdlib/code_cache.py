"""Where the machine code of compiled functions is kept between processes, and under which names.

A name is a digest of all that the code is made from: the function's own bytecode and constants, the functions that it
calls, and the constants that it takes from its module. So an edited function, or an edited helper of it, is compiled
anew, and a process never executes other code than its source files say.

A file begins with the SHA-256 of the rest; one that is cut or altered is not used. The rest is a pickle, which could
execute anything: so it is read only from a folder that belongs to this user and that nobody else may write to.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

__all__ = ["described", "fingerprint", "private_folder", "read", "write"]

KEPT = 300  # files: those used last
DIGEST = hashlib.sha256().digest_size
FROZEN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)  # equal if their texts are equal
KNOWN_MODULES = ("math", "numba", "numpy")  # their versions are part of the name


class Unknown(Exception):
    """A function uses something that may change without a change of its fingerprint."""


def fingerprint(function: FunctionType, unwrap: Callable[[Any], Any] = lambda value: value) -> str:
    """Return a digest of a function's code, of the functions that it calls, and of the constants that it uses.

    `unwrap` returns the Python function behind a compiled one, and other values as they are. Raises Unknown for a
    function that uses anything else, for example an attribute of a module that is not NumPy's.
    """
    numbers = {function: 0}  # two functions may have one name
    pending = [function]
    parts = []
    while pending:
        one = pending.pop(0)
        parts.append(repr((one.__qualname__, described(one.__code__), one.__defaults__, one.__kwdefaults__)))
        for name, value in _used(one):
            value = unwrap(value)
            if isinstance(value, FunctionType):
                if value not in numbers:
                    numbers[value] = len(numbers)
                    pending.append(value)
                parts.append(f"{name}: function {numbers[value]}")
            else:
                parts.append(f"{name}: {_frozen(name, value)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def described(code: CodeType) -> tuple[Any, ...]:
    """Return what a code object does, without the place of its source."""
    constants = [described(c) if isinstance(c, CodeType) else (type(c).__name__, repr(c)) for c in code.co_consts]
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    return code.co_code.hex(), code.co_exceptiontable.hex(), constants, names, counts


def _used(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Give the global names of a function with their values, and the values of its closure."""
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:  # others are builtins, attributes, or not defined
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, cell.cell_contents


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _frozen(name: str, value: Any) -> str:
    if isinstance(value, ModuleType) and value.__name__.partition(".")[0] in KNOWN_MODULES:
        return f"module {value.__name__}"
    if isinstance(value, tuple):
        return repr([_frozen(name, part) for part in value])
    if isinstance(value, np.ndarray) and value.dtype.hasobject is False:
        return repr((value.dtype, value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()))
    if isinstance(value, FROZEN):
        return repr((type(value).__name__, value))
    if isinstance(value, type) and value.__module__ in ("builtins", "numpy"):
        return repr(value)
    if getattr(builtins, name, None) is value:
        return f"builtin {name}"
    raise Unknown(f"{name}: expected a number, an array, or a function, found {type(value).__name__}")


# ---- files


def private_folder(folder: Path) -> Path | None:
    """Return a folder, made if need be, that is this user's and that nobody else may write to; None otherwise."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return None
    owned = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return folder if stat.S_ISDIR(found.st_mode) and owned else None


def read(path: Path) -> bytes | None:
    """Return the content that `write` wrote to a file; None if there is no such file, or if it is cut or altered."""
    try:
        whole = path.read_bytes()
        content = whole[DIGEST:]
        if hashlib.sha256(content).digest() != whole[:DIGEST]:
            return None
        os.utime(path)  # it was used now
    except OSError:
        return None
    return content


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and delete the files that were not used for longest; OSError if it fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _delete_oldest(path.parent)


def _delete_oldest(folder: Path) -> None:
    used = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process deletes too
            used.append((path.stat().st_mtime, path))
    for _, path in sorted(used, reverse=True)[KEPT:]:
        path.unlink(missing_ok=True)
