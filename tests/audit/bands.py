"""`recorded.toml`: bands, verdicts and places in or out of the reported ranges, from the records."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.audit.derived import FULL, rulings, series
from kdlib.audit.evidence import Key, Record
from kdlib.audit.faults import Fault, differs, shown
from kdlib.audit.reported import Reported
from kdlib.audit.statistics import LEAST, constant, prediction
from kdlib.audit.tables import ALIKE
from kdlib.experiment import Experiment

LEVEL = 0.99
PARTS = ("bands", "verdicts", "inside")
Recorded = dict[str, dict[Key, dict[str, Any]]]


def check(path: Path, file: str, experiment: Experiment, reported: Reported,
          groups: Mapping[Key, Sequence[Record]]) -> Iterator[Fault]:
    """Every fault of a `recorded.toml`."""
    expected: Recorded = {part: {} for part in PARTS}
    for key, records in groups.items():
        of_group = derived(experiment, reported, records)
        for part in PARTS:
            if of_group[part]:
                expected[part][key] = of_group[part]
    if not path.exists():
        if any(expected.values()):
            yield Fault(file, "", "the bands of the recorded runs", "no such file")
        return
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    yield from differs(file, "tables", [], sorted(content.keys() - set(PARTS)))
    for part in PARTS:
        found = {(data, profile): table for data, profiles in content.get(part, {}).items()
                 for profile, table in profiles.items()}
        for data, profile in sorted(found.keys() | expected[part].keys()):
            wanted, table = expected[part].get((data, profile), {}), found.get((data, profile), {})
            for name in sorted(wanted.keys() | table.keys()):
                if wanted.get(name) or table.get(name) != {}:  # a claim none of whose arms has enough seeds
                    yield from _entry(file, f"{part}.{data}.{profile}.{name}", wanted.get(name), table.get(name))


def derived(experiment: Experiment, reported: Reported, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Bands of every banded metric of the arms with enough seeds; of full runs, the verdicts and places, too."""
    bands = {f"{arm}.{metric}": band(seeds, _commits(arm, records)) for metric in experiment.module.BANDED
             for arm, seeds in series(records, metric, LEAST).items()}
    verdicts: dict[str, dict[str, str]] = {}
    inside: dict[str, bool] = {}
    if records[0]["profile"] == FULL:
        for (claim, mode), found in rulings(reported, records, LEAST).items():
            verdicts.setdefault(claim, {})[mode] = found.outcome
        for value in reported.values:
            measured = series(records, value.metric, LEAST)
            for arm in value.arms:
                if arm in measured:
                    low, high = value.range(len(measured[arm]))
                    inside[f"{arm}.{value.metric}"] = bool(low <= np.mean(list(measured[arm].values())) <= high)
    return {"bands": bands, "verdicts": verdicts, "inside": inside}


def _commits(arm: str, records: Sequence[Record]) -> str:
    return ", ".join(sorted({record["environment"]["commit"][:12] for record in records if arm in record["arms"]}))


def band(seeds: Mapping[int, float], commits: str) -> dict[str, Any]:
    """Where 99% of further runs should lie, by those of these seeds: mean -+ t s sqrt(1 + 1/n)."""
    values = [float(value) for value in seeds.values()]
    mean = float(np.mean(values))
    std = 0.0 if constant(values) else float(np.std(values, ddof=1))
    low, high = prediction(mean, std, len(values), 1, LEVEL)
    return {"low": low, "high": high, "mean": mean, "n": len(values), "seeds": list(seeds), "values": values, "commit": commits}


def _entry(file: str, place: str, wanted: Any, found: Any) -> Iterator[Fault]:
    if wanted is None:
        yield Fault(file, place, f"nothing: no {LEAST} seeds are recorded for it", shown(found))
    elif not isinstance(wanted, dict) or not isinstance(found, dict):
        yield from differs(file, place, wanted, found)
    else:
        for key in sorted(wanted.keys() | found.keys()):
            if not _alike(wanted.get(key), found.get(key)):
                yield from differs(file, f"{place}, {key}", wanted.get(key), found.get(key))


def _alike(wanted: Any, found: Any) -> bool:
    both = isinstance(wanted, float) and isinstance(found, float)
    return both and not ALIKE and math.isclose(wanted, found, rel_tol=1e-12, abs_tol=1e-14)
