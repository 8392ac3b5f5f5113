"""The CSV files of a table: every cell to the last digit."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from kdlib.audit.derived import Row, empty
from kdlib.audit.faults import Fault, numbers, shown
from kdlib.audit.rule import TOO_FEW
from kdlib.audit.statistics import LEAST, t

# What the processors that made the tables get. Where Student's quantile comes out otherwise in its last bit, no table can
# be compared to the last digit.
ALIKE = [t(0.975, 4), t(0.95, 4), t(0.975, 5), t(0.95, 5)] == [
    2.7764451051977934, 2.1318467863266495, 2.5705818356363146, 2.0150483733330233]  # fmt: skip


def check(file: str, text: str, rows: Sequence[Row], key: Sequence[str]) -> Iterator[Fault]:
    """Every fault of a CSV file; `key`: the columns that say which row it is."""
    lines = list(csv.reader(io.StringIO(text)))
    heads = list(rows[0]) if rows else []
    if not lines or lines[0] != heads:
        yield Fault(file, "columns", ", ".join(heads), shown(", ".join(lines[0]) if lines else ""))
        return
    if len(lines) - 1 != len(rows):
        yield Fault(file, "", f"{len(rows)} rows", f"{len(lines) - 1} rows")
        return
    for row, cells in zip(rows, lines[1:], strict=True):
        place = f"row {', '.join(row[name] for name in key)}"
        if len(cells) != len(heads):
            yield Fault(file, place, f"{len(heads)} cells", f"{len(cells)} cells")
            continue
        for head, cell in zip(heads, cells, strict=True):
            if not same(cell, row[head]):
                yield Fault(file, f"{place}, column {head}", shown("nothing" if empty(row[head]) else row[head]), shown(cell))
        yield from _too_early(file, place, row, dict(zip(heads, cells, strict=True)))


def _too_early(file: str, place: str, row: Row, found: dict[str, str]) -> Iterator[Fault]:
    if found.get("verdict", "") not in ("", TOO_FEW) and row["kind"] != "exact" and row["n"] < LEAST:
        verdict = f"{found['verdict']}, n = {row['n']}"
        yield Fault(file, f"{place}, column verdict", f"none from fewer than {LEAST} seeds", verdict)


def same(cell: str, value: Any) -> bool:
    """Whether a cell holds a value; of a list of numbers, whether it is a text that names these."""
    if empty(value):
        return cell == ""
    if isinstance(value, list):
        return numbers(cell) == value
    if isinstance(value, str | bool):
        return cell == str(value)
    written = repr(float(value))
    if cell == written or (float(value).is_integer() and cell == str(int(value))):
        return True
    return not ALIKE and _close(cell, float(value))


def _close(cell: str, value: float) -> bool:
    try:
        return math.isclose(float(cell), value, rel_tol=1e-12, abs_tol=1e-14)
    except ValueError:
        return False
