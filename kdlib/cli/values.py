"""The values of options: numbers, names and folders, checked before anything is done."""

from __future__ import annotations

from argparse import ArgumentTypeError
from contextlib import suppress
from pathlib import Path

from kdlib.checks import path_of
from kdlib.errors import KDError
from kdlib.run.arguments import LARGEST_SEED, MOST, MOST_SEEDS, minutes_of

__all__ = ["count", "file", "folder", "minutes", "names", "seed", "seeds", "word"]


def count(text: str) -> int:
    """Return a number of processes, threads or students."""
    return _number(text, 1, MOST)


def seeds(text: str) -> int:
    """Return a number of seeds."""
    return _number(text, 1, MOST_SEEDS)


def seed(text: str) -> int:
    """Return a seed."""
    return _number(text, 0, LARGEST_SEED)


def minutes(text: str) -> float:
    """Return a number of minutes above 0."""
    try:
        return minutes_of(text)
    except KDError as error:
        raise ArgumentTypeError(str(error).removeprefix("minutes: ")) from error


def names(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:  # an unset shell variable must not mean all arms
        raise ArgumentTypeError("expected names, separated by commas, found none")
    return found


def word(text: str) -> str:
    """Return an address or a name; an empty text, as of an unset shell variable, must not mean that there is none."""
    if not text.strip():
        raise ArgumentTypeError("expected a name or an address, found none; leave the option out")
    return text


def folder(text: str) -> Path:
    """Return the path of a folder, with ~ expanded; an empty text, as of an unset variable, is not the current one."""
    if not text.strip() or "\0" in text:
        raise ArgumentTypeError("expected the path of a folder, found none; write . for the current folder")
    path = _path(text)
    with suppress(OSError):  # what cannot be looked at is told when it is used
        if path.is_file():
            raise ArgumentTypeError(f"expected the path of a folder, found the file {path}; choose a folder")
    return path


def file(text: str) -> Path:
    """Return the path of a file to write."""
    return _path(text or ".")


def _path(text: str) -> Path:
    try:
        return path_of("", text)
    except KDError as error:
        raise ArgumentTypeError(str(error).removeprefix(": ")) from error


def _number(text: str, least: int, most: int) -> int:
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise ArgumentTypeError(f"expected a whole number from {least} to {most}, found {shown}")
    return int(text)
