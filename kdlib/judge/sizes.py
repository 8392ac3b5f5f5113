"""How large the numbers of a `claims.toml` may be: shares are written as shares, and percent exists only in tables."""

from __future__ import annotations

import math

from kdlib.judge.schema import Table

__all__ = ["decimals_of", "limits_of", "widest"]


def limits_of(metric: str) -> tuple[float, float]:
    """Return the smallest and the largest value of a metric: those of shares are 0 and 1."""
    return (0.0, 1.0) if metric.endswith(("accuracy", "f1")) else (-1e15, 1e15)


def decimals_of(table: Table, number: float, more: int = 0) -> int:
    """Return the decimals of a reported number, which must not have more: 91.2%, written 0.912, has three."""
    decimals = table.integer("decimals", -9, 15)
    if not math.isclose(round(number, decimals + more), number, rel_tol=1e-9, abs_tol=1e-12):
        raise table.error("decimals", f"as many decimals as {number:.15g} has here, as a share and not in percent")
    return decimals


def widest(metric: str) -> float:
    """Return the largest margin or spread: of shares half of their range, so that points (1.5) are told."""
    low, high = limits_of(metric)
    return (high - low) / 2
