"""What the audit finds, and the comparisons that find it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scipy import special

from kdlib.errors import KDError

# Whether this machine computes the same bits as those that wrote the committed files. If not, numbers may be rounded
# otherwise.
SAME_BITS = [float(special.stdtrit(n, p)) for n, p in ((4, 0.975), (4, 0.95), (5, 0.975), (5, 0.95))] == [
    2.7764451051977934,
    2.1318467863266495,
    2.5705818356363146,
    2.0150483733330233,
]


@dataclass(frozen=True)
class Fault:
    """One thing that is not as the audit derived it."""

    place: str
    expected: str
    found: str
    file: str = ""

    def __str__(self) -> str:
        return f"{', '.join(filter(None, (self.file, self.place)))}: expected {self.expected}, found {self.found}"


Faults = Iterator[Fault]


def in_file(file: str, faults: Iterable[Fault]) -> Faults:
    """Give the faults of a file. Content that is misshapen beyond comparing is a fault, not a crash."""
    try:
        for fault in faults:
            yield replace(fault, file=fault.file or file)
    except (ArithmeticError, AttributeError, KDError, LookupError, OSError, TypeError, ValueError) as error:
        yield Fault("", "what can be read", f"{type(error).__name__}: {shown(error)}", file)


def compare(place: str, expected: Any, found: Any) -> Faults:
    """Give a fault for each value that differs, however deep in dictionaries and lists."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*expected, *found]):
            yield from compare(f"{place}, {key}", expected.get(key, "nothing"), found.get(key, "nothing"))
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from compare(f"{place}, {index}", *pair)
    elif not same(expected, found):
        yield Fault(place, shown(expected), shown(found))


def same(expected: Any, found: Any) -> bool:
    """Return whether two values are equal; numbers to the last bit if this machine computes the same bits."""
    if not SAME_BITS and isinstance(expected, float) and isinstance(found, float):
        return math.isclose(expected, found, rel_tol=1e-12, abs_tol=1e-14)
    return bool(expected == found) and isinstance(expected, bool) == isinstance(found, bool)


def within(place: str, low: float, found: float, high: float, why: str = "") -> Faults:
    """Give a fault for a number outside its bounds."""
    if not low <= found <= high:
        yield Fault(place, f"{low:.17g} to {high:.17g}{why}", shown(found))


def shown(thing: Any) -> str:
    """Return a short text of anything, on one line and without control characters."""
    text = str(thing) if isinstance(thing, str | Exception) else ascii(thing)
    text = text if text and text.isprintable() else ascii(text)
    return text if len(text) <= 200 else text[:197] + "..."
