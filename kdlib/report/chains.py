"""Which parts of a gain are steps of it: one after the other, from the arm that it is over to its own arm."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PARTS", "Step", "chain"]

PARTS = ("schedule", "softness", "transfer")  # in this order they lead from a claim's rival to its arm

Step = tuple[str, str]  # an arm, and the arm that it is over


def chain(steps: Sequence[Step], arm: str, over: str) -> range:
    """Return the places of the longest row of neighbouring steps that leads from `over` to `arm`; none if none does."""
    found = range(0)
    for first in range(len(steps)):
        for last in range(first + 1 + len(found), len(steps) + 1):
            row = steps[first:last]
            ends = [over, *(each for each, _ in row)]
            if [each for _, each in row] == ends[:-1] and ends[-1] == arm:
                found = range(first, last)
    return found
