"""The head of a page of tables: what its runs are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdlib.report.markdown import NONE, escaped
from kdlib.run.records import Record, digest_of

__all__ = ["beyond", "header", "ranges"]


def header(records: Sequence[Record], profile: str, reduced: str, synthetic: bool, declared: int | None = None) -> str:
    """Return what the runs of a table are: data, profile, seeds, device, versions, commits.

    `declared`: the number of seeds that the claims are judged on; None if it is that of the runs.
    """
    seeds = sorted({record.seed for record in records})
    lines = {
        "data": _each(f"{record.data_name} (digest {record.data})" for record in records),
        "profile": profile + (f"; reduced: {reduced}" if reduced else ""),
        "seeds": f"{len(seeds)} ({ranges(seeds)}), {len({record.run for record in records})} runs",
        "records": f"SHA-256 {digest_of(records)}",
        "device": _each(_device(record) for record in records),
        "versions": _each(_versions(record.environment) for record in records),
        "commit": _each(_commit(record.environment) for record in records),
    }
    if declared is not None and (more := [seed for seed in seeds if seed >= declared]):
        lines["seeds"] += f"; {beyond(declared, more)}"
    text = "\n".join(f"- {head}: {escaped(line)}" for head, line in lines.items())
    return f"{_SYNTHETIC}\n\n{text}" if synthetic else text


_SYNTHETIC = (
    "**SYNTHETIC DATA: these runs did not see the source's data. Their numbers show that the code works and "
    "say nothing about the source; no claim gets a verdict.**"
)


def beyond(declared: int, more: Sequence[int]) -> str:
    """Return what a page says if it has runs of `more` seeds than the `declared` ones."""
    return (
        f"the claims are judged on the {declared} declared seeds alone, {ranges(range(declared))}; "
        f"all other numbers are also of {ranges(more)}"
    )


def ranges(seeds: Sequence[int]) -> str:
    """Return sorted seeds as text: 0-19 for twenty seeds without a gap."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts)


def _each(texts: Iterable[str]) -> str:
    return "; ".join(sorted(set(texts))) or NONE


def _device(record: Record) -> str:
    config, environment = record.description["config"], record.environment
    threads = config.get("threads", environment.get("threads", "unknown"))
    name = environment.get("device", "unknown processor")
    return f"{config.get('device', 'unknown')} ({name}), {threads} thread{'' if threads == 1 else 's'} a run"


def _versions(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions", {})
    names = ("python", "torch", "numpy", "numba", "kdlib")
    order = [*(name for name in names if name in versions), *sorted({*versions} - {*names})]
    return ", ".join(f"{name} {versions[name]}" for name in order)


def _commit(environment: Mapping[str, Any]) -> str:
    clean = environment.get("clean")
    state = "clean tree" if clean is True else "uncommitted changes" if clean is False else "tree not known"
    return f"{str(environment.get('commit', 'unknown'))[:10]} ({state})"
