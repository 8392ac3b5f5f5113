"""Texts that people edit, such as READMEs: read in one way, and told if they cannot be read; files deleted."""

from __future__ import annotations

from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import is_there, read_file

__all__ = ["deleted", "read_text"]


def read_text(path: Path) -> str:
    """Return the text of a file; nothing if there is none. KDError for a file that cannot be read, or is not UTF-8."""
    if not is_there(path):
        return ""
    try:
        return read_file(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise KDError(
            f"{path}: expected text in UTF-8, found another byte at {error.start}; save it in UTF-8"
        ) from error


def deleted(path: Path) -> None:
    """Delete a file, if there is one; KDError if that cannot be done."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KDError(f"{path}: cannot be deleted ({error.strerror or error}); delete it by hand") from error
