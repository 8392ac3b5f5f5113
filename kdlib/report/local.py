"""Tables of a session of your own: they never take the place of tables with more arms or seeds."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from kdlib.files import DamagedFile, locked, read_file
from kdlib.report.tables import Page
from kdlib.run.records import Record

__all__ = ["write_local"]

Cells = set[tuple[str, str]]  # arm and seed
Named = Callable[[str, Sequence[Record]], str]


def write_local(
    folder: Path, make: Callable[[Named], list[Page]], on_wait: Callable[[Path], None] = lambda lock: None
) -> list[Page]:
    """Write the pages that `make(named)` returns, and the runs that they are made from; return the pages.

    The tables of fewer arms or seeds than those in the folder get another name. Calls `on_wait(lock)`, then waits, if
    another session writes there. KDError if they cannot be written, or if the lock is that of a dead session.
    """
    lock = folder / ".lock"
    with locked(lock, "choose another folder with --out DIR", partial(on_wait, lock)):  # sessions may end together
        pages = [_with_runs(page) for page in make(lambda label, records: free_name(folder, label, records))]
        for page in pages:
            page.write(folder)
    return pages


def free_name(folder: Path, label: str, records: Sequence[Record]) -> str:
    """Return the label; if the tables of that name have runs that these records lack, the label with a number.

    So the same part of the runs always gets the same name, and its tables are replaced when it has grown.
    """
    cells = {(arm, str(record.seed)) for record in records for arm in record.arms}
    names = (label if number == 1 else f"{label}-part-{number}" for number in count(1))
    return next(name for name in names if not _has_more(folder, name, cells))


def _with_runs(page: Page) -> Page:
    """Return the page with one more file, `<name>-runs.csv`: arm, seed and run of all that its tables are made from."""
    rows = sorted((arm, record.seed, record.run) for record in page.records for arm in record.arms)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("arm", "seed", "run"), *rows])
    # First, so that no tables are there without it.
    return page._replace(files={f"{page.name}-runs.csv": text.getvalue().encode(), **page.files})


def _has_more(folder: Path, name: str, cells: Cells) -> bool:
    """Whether the tables of a name have an arm or a seed that is not among `cells`."""
    try:
        if (rows := _rows(folder / f"{name}-runs.csv")) is not None:
            return not {(row["arm"], row["seed"]) for row in rows} <= cells
        # Tables of an earlier version say the number of seeds only.
        rows = _rows(folder / f"{name}-arms.csv") or []
        return any(int(row["n"]) > len([arm for arm, _ in cells if arm == row["arm"]]) for row in rows)
    except (KeyError, TypeError, ValueError, csv.Error):
        return True  # nobody knows what it is


def _rows(path: Path) -> list[dict[str, str]] | None:
    """The rows of a CSV file; None if there is none. KDError if it cannot be read: it may have more."""
    try:
        return list(csv.DictReader(io.StringIO(read_file(path).decode())))
    except DamagedFile:
        return None
