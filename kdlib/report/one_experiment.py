"""Whether the recorded seeds of an arm are of one experiment: an interval over several means nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from kdlib.errors import some_of
from kdlib.files import canonical_json
from kdlib.run.records import Record

__all__ = ["other_source_files", "unlike_seeds"]


_Traced = tuple[Record, dict[str, str]]  # a run, and how it was trained


def unlike_seeds(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each arm whose traces show that its seeds were trained in different ways.

    `records` are of one replication. Network, optimizer, the first learning rates, and size and view of the batches are
    compared, in runs of the same profile and data, but of other source files: seeds of the same ones are of one
    experiment, and what differs among these is drawn by the seed. Configurations need not be the same, as an edit may
    give them other fields. Runs without a trace are left out, and optimizers of another version of torch or on another
    kind of device, which may have other settings.
    """
    ways: dict[tuple[str, str, str], list[_Traced]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        for arm in record.arms if record.trace else ():
            ways.setdefault((record.profile, record.data, arm), []).append((record, _way(record.trace)))
    found = []
    for (profile, _, arm), runs in ways.items():
        pairs = list(combinations(runs, 2))
        drawn = {name for one, two in pairs if _source(one[0]) == _source(two[0]) for name in _differ(one, two)}
        for one, two in pairs:
            differ = [name for name in _differ(one, two) if name not in drawn]
            if differ and _source(one[0]) != _source(two[0]):
                seeds = f"seeds {one[0].seed} and {two[0].seed}"
                found.append(f"{arm} of profile {profile}: {seeds} differ in {', '.join(differ)}")
                break
    return found


def _source(record: Record) -> object:
    return record.environment.get("source")


def _differ(one: _Traced, two: _Traced) -> list[str]:
    """In what two runs were trained in different ways."""
    (first, way), (second, other) = one, two
    unlike = [name for name in way if way[name] != other[name]]
    return unlike if _defaults(first) == _defaults(second) else [name for name in unlike if name != "the optimizer"]


def _defaults(record: Record) -> object:
    """What decides on settings of an optimizer that no source file names."""
    return record.environment.get("versions", {}).get("torch"), record.description["config"].get("device")


def _way(trace: Mapping[str, Any]) -> dict[str, str]:
    data, rates = trace.get("data", {}), trace.get("epochs", {}).get("rates", [])
    parts = {
        "the network": trace.get("network"),
        "the optimizer": trace.get("optimizer"),
        "the learning rates of the first epoch": rates[:1],
        "the batches": {name: data.get(name) for name in ("size", "view", "drop_last")},
    }
    return {name: canonical_json(part) for name, part in parts.items()}


def other_source_files(new: Sequence[Record], recorded: Sequence[Record]) -> str:
    """Return a sentence if `recorded` runs of the profiles of `new` ones are of other source files; else ""."""
    profiles, runs = {record.profile for record in new}, {record.run for record in new}
    own = {record.environment.get("source") for record in new}
    others = [
        record
        for record in recorded
        if record.profile in profiles and record.run not in runs and record.environment.get("source") not in own
    ]
    if not others:
        return ""
    commits = list(dict.fromkeys(str(record.environment.get("commit", "unknown"))[:10] for record in others))
    return (
        f"{len(others)} recorded runs of this profile were trained with other source files (commit "
        f"{some_of(commits)}). If an edit since then can move a result, raise `protocol` in "
        "experiment.py, and record all seeds anew."
    )
