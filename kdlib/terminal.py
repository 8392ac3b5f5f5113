"""Text for a terminal: without control characters, shortened in the middle, durations in words."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

__all__ = ["duration", "place", "printable", "shortened", "width_of", "words_of"]


def printable(text: str) -> str:
    """Return text with every character escaped that would do something to a terminal, line breaks included."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def width_of(text: str) -> int:
    """Return the columns that a text takes: Chinese letters, for example, take two."""
    return sum(_columns(letter) for letter in text)


def _columns(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def shortened(text: str, width: int, end: float = 0.5) -> str:
    """Return text of at most `width` >= 4 columns; what is too long loses its middle, because names differ at the ends.

    `end` is the share of the columns that the end of the text gets; 0 cuts the end off.
    """
    if width_of(text) <= width:
        return text
    last = int((width - 2) * end)
    return f"{_first(text, width - 2 - last)}..{_first(text[::-1], last)[::-1]}"


def _first(text: str, width: int) -> str:
    """The longest beginning of a text that takes at most `width` columns."""
    kept = ""
    for letter in text:
        width -= _columns(letter)
        if width < 0:
            break
        kept += letter
    return kept


def place(path: Path) -> str:
    """Return a path as a user types it: from the current folder where it lies in that folder, otherwise in full."""
    full, here = os.path.abspath(path), Path.cwd()
    return os.path.relpath(full, here) if Path(full).is_relative_to(here) else full


def words_of(metric: str) -> str:
    """Return the name of a metric as words: macro F1."""
    return re.sub(r"\bf1\b", "F1", metric.replace("_", " "))


def duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit: 8 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
