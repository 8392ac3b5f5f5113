"""Whether the recorded seeds of an arm are of one experiment: an interval over several means nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from kdlib.files import canonical_json
from kdlib.run.records import Record

__all__ = ["other_source_files", "unlike_seeds"]

SHOWN = 3


def unlike_seeds(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each arm whose traces show that its seeds were trained in different ways.

    `records` are of one replication. Network, optimizer, the first learning rates, and size and view of the batches are
    compared, in runs of the same profile, data and configuration, but of other source files: seeds of the same ones are
    of one experiment, and what differs among these is drawn by the seed. Runs without a trace are left out, and
    optimizers of another version of torch, which may have other settings.
    """
    ways: dict[tuple[str, str, str, str], list[tuple[Record, dict[str, str]]]] = {}
    for record in sorted(records, key=lambda record: record.seed):
        for arm in record.arms if record.trace else ():
            config = canonical_json(record.description["config"])
            ways.setdefault((record.profile, record.data, config, arm), []).append((record, _way(record.trace)))
    found = []
    for (profile, _, _, arm), runs in ways.items():
        pairs = list(combinations(runs, 2))
        drawn = {
            name
            for (one, first), (two, second) in pairs
            for name in first
            if _source(one) == _source(two) and first[name] != second[name]
        }
        for (one, first), (two, second) in pairs:
            left_out = drawn if _torch(one) == _torch(two) else drawn | {"the optimizer"}
            differ = [name for name in first if name not in left_out and first[name] != second[name]]
            if differ and _source(one) != _source(two):
                seeds = f"seeds {one.seed} and {two.seed}"
                found.append(f"{arm} of profile {profile}: {seeds} differ in {', '.join(differ)}")
                break
    return found


def _source(record: Record) -> object:
    return record.environment.get("source")


def _torch(record: Record) -> object:
    return record.environment.get("versions", {}).get("torch")


def _way(trace: Mapping[str, Any]) -> dict[str, str]:
    data, rates = trace.get("data", {}), trace.get("epochs", {}).get("rates", [])
    parts = {
        "the network": trace.get("network"),
        "the optimizer": trace.get("optimizer"),
        "the learning rates of the first epoch": rates[:1],
        "the batches": {name: data.get(name) for name in ("size", "view", "drop_last")},
    }
    return {name: canonical_json(part) for name, part in parts.items()}


def other_source_files(new: Sequence[Record], old: Sequence[Record]) -> str:
    """Return a sentence if `old` runs of the profiles of `new` ones were trained with other source files; else ""."""
    profiles, runs = {record.profile for record in new}, {record.run for record in new}
    own = {record.environment.get("source") for record in new}
    others = [
        record
        for record in old
        if record.profile in profiles and record.run not in runs and record.environment.get("source") not in own
    ]
    if not others:
        return ""
    commits = list(dict.fromkeys(str(record.environment.get("commit", "unknown"))[:10] for record in others))
    more = f" and {len(commits) - SHOWN} more" if len(commits) > SHOWN else ""
    return (
        f"{len(others)} recorded runs of this profile were trained with other source files (commit "
        f"{', '.join(commits[:SHOWN])}{more}). If an edit since then can move a result, raise `protocol` in "
        "experiment.py, and record all seeds anew."
    )
