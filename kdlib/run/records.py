"""Records of finished runs, one JSON object a line, with all that tables and verdicts need; without weights."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from kdlib.collector import without_collector
from kdlib.errors import KDError
from kdlib.files import atomic_write, canonical_json, sha256
from kdlib.run.readable import check_metrics
from kdlib.run.schema import LineShape, decoded
from kdlib.run.store import Description, FinishedRun
from kdlib.shapes import Misshapen

__all__ = ["Record", "grouped", "measured", "merged", "read_records", "record_of", "write_records"]


@dataclass(frozen=True)
class Record:
    """A finished run as one line of `runs.jsonl`; `arms` maps each arm that it serves to its snapshot."""

    profile: str
    seed: int
    run: str
    arms: Mapping[str, str]
    data_name: str
    description: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    history: Sequence[Mapping[str, float]]
    environment: Mapping[str, Any]
    weights_sha256: str
    trace: Mapping[str, Any] = field(default_factory=dict)  # what the training did; empty: not traced
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # role -> SHA-256 of the parent's files

    @property
    def data(self) -> str:
        """The digest of the data that the run was trained on."""
        return str(self.description["data"])

    @cached_property  # a table asks for them some six times
    def scalars(self) -> dict[str, dict[str, float]]:
        """The scalar metrics by arm; `training_loss` is that of the last epoch trained."""
        by_arm = {}
        for arm, snapshot in self.arms.items():
            found = self.metrics[snapshot]
            by_arm[arm] = {name: value for name, value in found.items() if _scalar(value)}
            for last in self.history[: found.get("epochs")][-1:]:
                if "training_loss" in last:
                    by_arm[arm].setdefault("training_loss", last["training_loss"])
        return by_arm


def _scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def record_of(run: FinishedRun, profile: str, arms: Mapping[str, str], data_name: str) -> Record:
    """Return the record of a finished run; `arms` maps the names of the arms that it serves to its snapshots."""
    description = asdict(run.description)
    line = _line(
        Record(
            profile,
            run.description.seed,
            run.id,
            arms,
            data_name,
            description,
            run.metrics,
            [{name: _rounded(value) for name, value in entry.items()} for entry in run.history],
            run.environment,
            run.weights_sha256,
            run.trace,
            run.parents,
        )
    )
    return _record(f"run {run.id}", line)  # as it will be read back: no tuples


def _rounded(value: float) -> float:
    # Otherwise most of the file would be digits of the history that no figure shows. Metrics keep all digits.
    return float(f"{value:.6g}") if isinstance(value, float) else value


def merged(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Return the new records, plus the old ones for cells (profile, data, seed, arm) that were not replaced."""
    new = list(new)
    filled = {cell for record in new for cell in _cells(record)}
    kept = []
    for record in old:
        arms = {cell[-1]: record.arms[cell[-1]] for cell in _cells(record) if cell not in filled}
        if arms:
            kept.append(replace(record, arms=arms))
    return kept + new


def _cells(record: Record) -> list[tuple[str, str, int, str]]:
    return [(record.profile, record.data, record.seed, arm) for arm in record.arms]


def grouped(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """Return the records of each table, by data digest and profile, like the keys of `bands.toml`."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.data, record.profile), []).append(record)
    return groups


def measured(
    records: Iterable[Record], arms_of_interest: Collection[str] | None = None
) -> dict[str, dict[int, dict[str, float]]]:
    """Return the scalar metrics by arm and seed; `training_loss` is that of the last epoch trained.

    KDError if the records have several profiles or data sets, or if two runs are the same arm and seed.
    """
    records = list(records)
    if len(groups := grouped(records)) > 1:
        several = ", ".join(f"{profile} on {data}" for data, profile in groups)
        raise KDError(f"expected runs of one profile on one data set, found {several}: make a table of each")
    by_arm: dict[str, dict[int, dict[str, float]]] = {}
    for record in records:
        for arm, scalars in record.scalars.items():
            if arms_of_interest is not None and arm not in arms_of_interest:
                continue
            seeds = by_arm.setdefault(arm, {})
            if record.seed in seeds:
                raise KDError(
                    f"{arm}, seed {record.seed}: expected one run, found a second, {record.run}; keep the right one"
                )
            seeds[record.seed] = dict(scalars)
    return by_arm


# ---- the file


def write_records(path: Path, records: Iterable[Record], arm_order: Sequence[str] = ()) -> list[Record]:
    """Write a whole `runs.jsonl`, sorted by profile, data, seed, first arm in `arm_order` and run id.

    The same records always give the same bytes, whatever their order. Returns them in the order of the file. KDError,
    before the file is changed, for a record that `read_records` would refuse.
    """
    place = {arm: number for number, arm in enumerate(arm_order)}

    def order(record: Record) -> tuple[str, str, int, int, str]:
        first = min((place.get(arm, len(place)) for arm in record.arms), default=len(place))
        return record.profile, record.data, record.seed, first, record.run

    in_order = sorted(records, key=order)
    lines = [_line(record) for record in in_order]
    for record, line in zip(in_order, lines, strict=True):
        _record(f"run {record.run}", line)
    atomic_write(path, "".join(line + "\n" for line in lines).encode())
    return in_order


def digest_of(records: Iterable[Record]) -> str:
    """Return the SHA-256 over the sorted lines of records: a table that shows it was made from just these records."""
    return sha256("".join(sorted(_line(record) + "\n" for record in records)).encode())


def _line(record: Record) -> str:
    content = {name: getattr(record, name) for name in _KEYS}
    for name in _OPTIONAL:  # a record from before there were traces keeps its bytes
        if not content[name]:
            del content[name]
    try:
        return canonical_json(content)
    except (TypeError, ValueError) as error:
        expected = "finite numbers, text, lists and objects in its record"
        raise KDError(f"run {record.run}: expected {expected}, found: {error}") from error


@without_collector()
def read_records(path: Path) -> list[Record]:
    """Return the records of a `runs.jsonl`, none if there is no such file; KDError names a line that is wrong.

    So is one with an arm and a seed that an earlier line has, as after two branches were merged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise KDError(f"{path}: expected a readable file of records, found: {error}") from error
    found, line_of = [], dict[tuple[str, str, int, str], int]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _record(f"{path}, line {number}", line)
        for cell in _cells(record):
            if (first := line_of.setdefault(cell, number)) != number:
                raise KDError(
                    f"{path}, line {number}: expected one run for each arm and seed, found {cell[-1]}, seed {cell[2]}, "
                    f"which line {first} has too; delete the wrong line"
                )
        found.append(record)
    return found


def _record(place: str, line: str) -> Record:
    try:
        record = Record(**msgspec.structs.asdict(decoded(line, LineShape)))
        _check(place, record)
    except Misshapen as error:
        raise _wrong(place, error.expected, error.found) from error
    except ValueError as error:
        raise _wrong(place, "a line of JSON", str(error)) from error
    return record


_KEYS = {field.name for field in fields(Record)}
_OPTIONAL = {"trace", "parents"}


def _check(place: str, record: Record) -> None:
    """Refuse a record that contradicts itself, as after an edit by hand."""
    description = Description(**record.description)
    if description.id != record.run:
        raise _wrong(place, f"the description of run {record.run[:80]!a}", f"that of {description.id}")
    if description.seed != record.seed:
        raise _wrong(place, f"seed {description.seed}, as in the description", str(record.seed))
    if not record.arms:
        raise _wrong(place, "at least one arm", "none")
    check_metrics(record.metrics, record.arms.values())


def _wrong(place: str, expected: str, found: str) -> KDError:
    remedy = "restore the line (with git), or delete it and record its run again"
    return KDError(f"{place}: expected {expected}, found {found}; {remedy}")
