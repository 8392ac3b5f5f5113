"""Typed shapes of what a file holds: whoever edits a file by hand is told the key that is wrong.

A value is checked and then used as it was read, so that what is written again keeps its bytes: a whole number does not
become 1.0, and keys that a later version adds are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

__all__ = ["Count", "Misshapen", "Number", "OptimizerShape", "TraceShape", "Whole", "check", "shown"]

Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]  # a larger one cannot be made a float, or printed
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Number = Whole | float

NAMES = {
    "int": "a whole number",
    "float": "a number",
    "int | float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}


class Misshapen(ValueError):
    """A key is missing, unknown, or of another type; says what was expected and what was found."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found = expected, found


class TraceShape(msgspec.Struct):
    """What `kdlib.trace.Tracer` writes."""

    network: str
    start: str
    optimizer: OptimizerShape
    data: dict[str, Any]
    mixed: bool
    first_loss: Number | None
    probe: Number | None
    steps: Count
    epochs: dict[str, list[str]]
    changed: list[Count]
    # Of later runs.
    settings: str = ""
    outputs: Number | None = None
    probes: list[tuple[Count, Number]] = []
    ends: list[str] = []
    tensors: list[tuple[str, str, list[Count]]] = []
    kept: dict[str, list[Count]] = {}
    epoch_of: dict[str, Count | None] = {}
    may_be_best: list[str] = []


class OptimizerShape(msgspec.Struct, rename={"kind": "class"}):
    """An optimizer's class and groups, as `kdlib.trace` describes them."""

    kind: str
    groups: list[dict[str, Any]]


def check(content: Any, shape: type[msgspec.Struct], root: str) -> None:
    """Raise Misshapen, which names the key below `root`, if the content does not fit a shape."""
    text = _complaint(content, shape)
    if text is None:
        return
    about, _, path = text.rstrip("`").partition(" - at `")
    keys, found = _place(content, path, lambda: _complaint(content, shape) == text)
    where = ".".join(filter(None, [root, *keys]))
    if match := re.fullmatch(r"Expected `(.*)`, got `.*", about):
        kinds = match[1] if match[1] in NAMES else match[1].split(" | ")
        words = NAMES[kinds] if isinstance(kinds, str) else " or ".join(dict.fromkeys(NAMES[kind] for kind in kinds))
        raise Misshapen(f"{where or 'the whole'} to be {words}", shown(found))
    if match := re.fullmatch(r"Object (missing required|contains unknown) field `(.*)", about, re.DOTALL):
        known = "the key" if match[1] == "missing required" else "no key"
        inside = f" in {where}" if where else ""
        raise Misshapen(f"{known} {shown(match[2])}{inside}", ", ".join(map(shown, found))[:400] or "none")
    limits = re.sub("`(int|float|array)`", lambda kind: NAMES[kind[1]], about.removeprefix("Expected "))
    raise Misshapen(f"{where} to be {limits}", shown(found))


def _complaint(content: Any, shape: Any) -> str | None:
    """What msgspec has against the content."""
    try:
        msgspec.convert(content, shape)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _place(content: Any, path: str, is_same: Callable[[], bool]) -> tuple[list[str], Any]:
    """The keys to a wrong value, and the value. msgspec writes [...] for a key of a dictionary: they are tried."""
    keys = []
    for name, number, any_key in re.findall(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])", path):
        key: Any = int(number) if number else name
        if any_key:
            key = _wrong_key(content, is_same)
        keys.append(str(key) if number or re.fullmatch(r"[\w.-]{1,80}", str(key), re.ASCII) else shown(key))
        content = content[key]
    return keys, content


def _wrong_key(content: dict[str, Any], is_same: Callable[[], bool]) -> str:
    """The first key that is wrong even alone; `is_same` looks at the content, which is changed for that and back."""
    kept = dict(content)
    try:
        for key, value in kept.items():
            content.clear()
            content[key] = value
            if is_same():
                return key
    finally:
        content.clear()
        content.update(kept)
    raise AssertionError("no key is wrong alone")


def shown(thing: Any) -> str:
    """Return a short text of anything that JSON knows, on one line and without control characters."""
    text = ascii(thing)
    return text if len(text) <= 80 else f"{text[:77]}..."
