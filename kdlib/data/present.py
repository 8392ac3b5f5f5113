"""What is wrong with the files of a data set in a folder. What may not be read is an error, and not a missing file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdlib.data.reading import reading
from kdlib.data.sources import File


def is_folder(path: Path) -> bool:
    """Return whether there is a folder; KDError if that cannot be told."""
    with reading(path):
        return path.is_dir()


def is_there(folder: Path, name: str) -> bool:
    """Return whether a folder has a file of that name, or a folder if the name ends with a slash."""
    with reading(folder / name):
        return (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file()


def file_problem(path: Path, file: File, hashes: bool) -> str | None:
    """Return what is wrong with one file, or None."""
    with reading(path):
        if file.name.endswith("/"):
            return None if path.is_dir() and any(path.iterdir()) else f"{file.name} is missing or empty"
        if not path.is_file():
            return f"{file.name} is missing"
        size = path.stat().st_size
        if size == 0 or (file.size is not None and size != file.size):
            return f"{file.name}: expected {file.size or 'some'} bytes, found {size}"
        if hashes and file.sha256 is not None:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != file.sha256:
                return f"{file.name}: expected SHA-256 {file.sha256}, found {found}"
    return None
