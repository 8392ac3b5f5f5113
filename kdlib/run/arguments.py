"""Numbers of a session that make no sense are refused before anything is done."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from itertools import islice
from typing import Any

from kdlib.errors import KDError

__all__ = ["LARGEST_SEED", "MOST", "MOST_SEEDS", "count_of", "minutes_of", "seeds_of", "typed_value"]

MOST = 1024  # processes, threads, or students side by side
MOST_SEEDS = 10_000  # of one session
LARGEST_SEED = 2**53 - 1  # the largest whole number that every reader of JSON takes as it is


def count_of(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """Return a whole number from `least` to `most`; KDError names the argument."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not least <= number <= most:
        raise KDError(f"{name}: expected a whole number from {least} to {most}, found {_short(value)}")
    return number


def minutes_of(value: Any) -> float:
    """Return a number of minutes; KDError if it is not above 0 and finite."""
    try:
        minutes = float(value)
    except (TypeError, ValueError, OverflowError):
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise KDError(f"minutes: expected a number of minutes above 0, found {_short(value)}")
    return minutes


def seeds_of(values: Iterable[Any]) -> tuple[int, ...]:
    """Return the seeds, each once; KDError if there is none, if there are too many, or if one is no seed."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise KDError(f"seeds: expected whole numbers, as in range(5), found {_short(values)}")
    seeds = list(islice(values, MOST_SEEDS + 1))
    if not 0 < len(seeds) <= MOST_SEEDS:
        found = f"more than {MOST_SEEDS}" if seeds else "none"
        raise KDError(f"seeds: expected 1 to {MOST_SEEDS} of them, found {found}")
    return tuple(dict.fromkeys(count_of("seeds", seed, 0, LARGEST_SEED) for seed in seeds))


def _short(value: Any) -> str:
    """A value as text. A whole number may have too many digits to be written."""
    try:
        text = ascii(value)
    except ValueError:
        return "a number of very many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def typed_value(name: str, text: str, usual: Any) -> Any:
    """Return the text of a setting as a value of the type of the `usual` one; KDError for a text that is none."""
    kind = type(usual)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (KeyError, ValueError) as error:
        expected = {bool: "true or false", int: "a whole number"}.get(kind, "a finite number")
        raise KDError(f"--set {name}={text}: expected {expected}, such as {usual}, found {text!r}") from error
