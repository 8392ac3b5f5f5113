"""The part that an arm plays, and its colour, the same in every figure and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from kdlib.run.experiment import Arm

__all__ = ["COLORS", "role_of"]

# Told apart with any colour vision, and lighter or darker than each other in print (Paul Tol's bright and muted sets).
COLORS = {
    "teacher": "#999933",
    "assistant": "#aa3377",
    "baseline": "#4477aa",
    "distilled": "#ee6677",
    "sham": "#777777",
}


def role_of(arm: Arm, arms: Sequence[Arm]) -> str:
    """Return a key of COLORS: an assistant is taught and teaches, a baseline does neither; or the arm's own `role`."""
    if arm.role:
        return arm.role
    if "sham" in arm.modes:
        return "sham"
    taught = "teacher" in arm.needs and not arm.name.startswith("teacher")  # a teacher that is only tested needs itself
    teaches = arm.name.startswith("teacher") or any(other.needs.get("teacher") == arm.name for other in arms)
    if taught:
        return "assistant" if teaches else "distilled"
    return "teacher" if teaches else "baseline"
