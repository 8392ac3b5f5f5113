"""What an audit finds, and the comparison it is made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was derived."""

    file: str
    place: str
    expected: str
    found: str

    def __str__(self) -> str:
        place = f", {self.place}" if self.place else ""
        return f"{self.file}{place}: expected {self.expected}, found {self.found}"


def differs(file: str, place: str, expected: Any, found: Any) -> Iterator[Fault]:
    """A fault unless both are the same; numbers to the last bit."""
    if expected != found or isinstance(expected, bool) != isinstance(found, bool):
        yield Fault(file, place, shown(expected), shown(found))


def shown(thing: Any) -> str:
    """A short text of anything, on one line and without control characters."""
    text = thing if isinstance(thing, str) and thing and thing.isprintable() else ascii(thing)
    return text if len(text) <= 200 else text[:197] + "..."


_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


def numbers(text: str) -> list[str]:
    """The numbers in a text, as they are printed; those within words ("F1", "C2") are none."""
    return _NUMBER.findall(text.replace("\\", ""))


def plain(text: str) -> str:
    """A Markdown text without its escapes."""
    return re.sub(r"\\([^\w\s])", r"\1", re.sub(r"\\_", "_", text))
