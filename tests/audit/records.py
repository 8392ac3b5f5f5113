"""The records of `runs.jsonl`: each is what `experiment.py` says, whole, and agrees with itself and with its parents."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kdlib.audit.faults import Fault, differs, shown
from kdlib.audit.statistics import f1_of
from kdlib.experiment import Experiment

Record = Mapping[str, Any]
Key = tuple[str, str]  # data digest and profile: one table
KINDS = {"profile": str, "seed": int, "run": str, "arms": dict, "data_name": str, "description": dict, "metrics": dict,
         "history": list, "environment": dict, "weights_sha256": str}  # fmt: skip
DESCRIBED = {"recipe", "protocol", "config", "seed", "data", "parents"}
ROUNDING = 1e-15  # of a mean of a few shares, however it is summed


def canonical(thing: Any) -> str:
    """JSON with sorted keys and no spaces: what a run's id is the SHA-256 of."""
    return json.dumps(thing, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read(path: Path, file: str) -> tuple[list[Record], list[Fault]]:
    """The records that can be read, and a fault for each line that cannot."""
    records: list[Record] = []
    faults = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line, parse_constant=_finite, parse_float=_finite)
            if not isinstance(record, dict) or record.keys() != KINDS.keys():
                raise ValueError("other keys than " + ", ".join(KINDS))
            if wrong := [key for key, kind in KINDS.items() if type(record[key]) is not kind]:
                raise ValueError(f"{wrong[0]} of another kind")
            if record["description"].keys() != DESCRIBED:
                raise ValueError("a description with other keys than " + ", ".join(sorted(DESCRIBED)))
            if canonical(record) != line:
                raise ValueError("another spelling (spaces, order of keys, a key twice)")
        except (ValueError, RecursionError) as error:
            faults.append(Fault(file, f"line {number}", "a finished run as canonical JSON", shown(str(error))))
            continue
        records.append(record)
    return records, faults


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):  # NaN, Infinity, 1e999
        raise ValueError(f"{text}, which is no finite number")
    return number


def grouped(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """The records of each table."""
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault((record["description"]["data"], record["profile"]), []).append(record)
    return groups


def label(experiment: Experiment, record: Record) -> str:
    """The name of a table's files: the profile, and the fields that make other data than the profile's."""
    usual = asdict(experiment.profile(record["profile"]).config)
    config = record["description"]["config"]
    other = [str(config[field]) for field in config if field in experiment.module.DATA_FIELDS and config[field] != usual[field]]
    return "-".join([record["profile"], *other])


def check(file: str, experiment: Experiment, records: Sequence[Record]) -> Iterator[Fault]:
    """Every fault of the records."""
    for record in records:
        place = f"run {shown(record['run'])}"
        yield from _description(file, place, experiment, record)
        yield from _parents(file, place, experiment, record, records)
        yield from _numbers(file, place, record)
    yield from _together(file, experiment, records)


def _description(file: str, place: str, experiment: Experiment, record: Record) -> Iterator[Fault]:
    description, module = record["description"], experiment.module
    digest = hashlib.sha256(canonical(description).encode()).hexdigest()[:16]
    yield from differs(file, f"{place}: run, the SHA-256 of its description", digest, record["run"])
    yield from differs(file, f"{place}: seed", description["seed"], record["seed"])
    profile = module.PROFILES.get(record["profile"])
    if profile is None or profile.synthetic:
        known = ", ".join(name for name, found in module.PROFILES.items() if not found.synthetic)
        yield Fault(file, f"{place}: profile", f"one on real data ({known})", shown(record["profile"]))
        return
    if not record["arms"]:
        yield Fault(file, f"{place}: arms", "at least one", "none")
    arms = {arm.name: arm for arm in experiment.arms}
    for name, snapshot in record["arms"].items():
        if name not in arms:
            yield Fault(file, f"{place}: arms", "arms of " + ", ".join(arms), shown(name))
            continue
        arm = arms[name]
        yield from differs(file, f"{place}: snapshot of {name}", arm.snapshot, snapshot)
        yield from differs(file, f"{place}: recipe of {name}", f"{module.SOURCE}/{arm.train.__name__}", description["recipe"])
        yield from differs(file, f"{place}: protocol", module.PROTOCOL, description["protocol"])
        config = dict(description["config"])
        device, threads = config.pop("device", None), config.pop("threads", None)
        if not isinstance(device, str) or type(threads) is not int or threads < 1:
            yield Fault(file, f"{place}: device and threads", "a device and at least 1 thread", shown((device, threads)))
        if "replicas" in config:  # trained beside others
            beside = config.pop("replicas")
            if type(beside) is not int or beside < 2 or arm.together is None:
                expected = "2 or more, of an arm that is trained beside others"
                yield Fault(file, f"{place}: replicas of {name}", expected, shown(beside))
        wanted = asdict(experiment.config(arm, profile))
        for field in module.DATA_FIELDS:  # each such data set has a table of its own
            wanted[field] = config.get(field)
        for field in sorted(wanted.keys() | config.keys()):
            yield from differs(file, f"{place}: {field} of {name}", wanted.get(field), config.get(field))


def _parents(file: str, place: str, experiment: Experiment, record: Record, records: Sequence[Record]) -> Iterator[Fault]:
    arms = {arm.name: arm for arm in experiment.arms}
    for name in record["arms"].keys() & arms.keys():
        needs, parents = arms[name].needs, record["description"]["parents"]
        yield from differs(file, f"{place}: parents of {name}", sorted(needs), sorted(parents))
        for role in needs.keys() & parents.keys():
            parent = arms[needs[role]]
            seed = record["seed"] if parent.seed is None else parent.seed
            same = [other for other in records if (other["profile"], other["seed"]) == (record["profile"], seed)
                    and other["description"]["data"] == record["description"]["data"] and parent.name in other["arms"]]
            wanted = " or ".join(f"{other['run']}/{parent.snapshot}" for other in same) or "a recorded run"
            whose = "the same seed" if parent.seed is None else f"seed {seed}"
            yield from differs(file, f"{place}: {role} of {name}, arm {parent.name} of {whose}", wanted, parents[role])


def _numbers(file: str, place: str, record: Record) -> Iterator[Fault]:
    if not re.fullmatch(r"[0-9a-f]{64}", record["weights_sha256"]):
        yield Fault(file, f"{place}: weights_sha256", "64 hexadecimal digits", shown(record["weights_sha256"]))
    for snapshot in set(record["arms"].values()) - record["metrics"].keys():
        yield Fault(file, f"{place}: metrics", f"those of snapshot {snapshot}", shown(sorted(record["metrics"])))
    lengths = {metrics["epochs"] for metrics in record["metrics"].values() if "epochs" in metrics}
    if lengths:
        yield from differs(file, f"{place}: length of its history", max(lengths), len(record["history"]))
    counted = [entry["epoch"] for entry in record["history"] if "epoch" in entry]
    if counted:
        yield from differs(file, f"{place}: epochs of its history", list(range(1, len(record["history"]) + 1)), counted)
    for snapshot, metrics in sorted(record["metrics"].items()):
        yield from _of_confusion(file, f"{place}: {snapshot}", metrics)
        yield from _of_history(file, f"{place}: {snapshot}", metrics, record["history"])
        for name in ("accuracy", "macro_f1", "agreement"):
            if not 0 <= metrics.get(name, 0) <= 1:
                yield Fault(file, f"{place}: {snapshot}: {name}", "a share from 0 to 1", shown(metrics[name]))
        for name in ("entropy", "teacher_kl"):  # a rounding may leave either just below 0
            if metrics.get(name, 0) < -1e-9:
                yield Fault(file, f"{place}: {snapshot}: {name}", "at least 0", shown(metrics[name]))


def _of_confusion(file: str, place: str, metrics: Mapping[str, Any]) -> Iterator[Fault]:
    if "confusion" not in metrics:
        return
    rows = metrics["confusion"]
    square = all(len(row) == len(rows) for row in rows)
    if not square or not all(type(count) is int and count >= 0 for row in rows for count in row) or not sum(map(sum, rows)):
        yield Fault(file, f"{place}: confusion", "a square of counts", shown(rows))
        return
    counts = np.array(rows, dtype=np.float64)
    for name, derived in (("macro_f1", float(f1_of(counts))), ("accuracy", float(counts.trace() / counts.sum()))):
        if name in metrics and not abs(metrics[name] - derived) <= ROUNDING:
            yield Fault(file, f"{place}: {name}", f"{derived!r}, by its confusion matrix", shown(metrics[name]))


def _of_history(file: str, place: str, metrics: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Iterator[Fault]:
    """The metrics are those of the epoch with the lowest validation loss, in a history of 6 digits."""
    seen = history[: metrics.get("epochs", len(history))]
    if "best_epoch" not in metrics or not seen or not all("validation_loss" in entry for entry in seen):
        return
    losses = [entry["validation_loss"] for entry in seen]
    best = metrics["best_epoch"]
    # losses that differ beyond the digits kept are equal here: any of the lowest may be the one
    if not 1 <= best <= len(losses) or losses[best - 1] > min(losses):
        yield Fault(file, f"{place}: best_epoch", f"{losses.index(min(losses)) + 1}, by its history", shown(best))
        return
    for name, recorded in sorted(seen[best - 1].items()):
        metric = name if name.startswith("validation_") else name.removeprefix("test_") if name.startswith("test_") else ""
        if isinstance(metrics.get(metric), float):
            yield from differs(file, f"{place}: history, epoch {best}, {name}", float(f"{metrics[metric]:.6g}"), recorded)


def _together(file: str, experiment: Experiment, records: Sequence[Record]) -> Iterator[Fault]:
    """What holds between records: nothing twice, seeds from 0 without a gap, one test set for each data set."""
    cells = Counter((r["description"]["data"], r["profile"], arm, r["seed"]) for r in records for arm in r["arms"])
    for (_, profile, arm, seed), count in cells.items():
        if count > 1:
            yield Fault(file, f"{profile}: {arm}, seed {seed}", "one run", f"{count} runs")
    for data, profile, arm in sorted({cell[:3] for cell in cells}):
        seeds = sorted({cell[3] for cell in cells if cell[:3] == (data, profile, arm)})
        yield from differs(file, f"{profile}: seeds of {arm} on {data}", list(range(len(seeds))), seeds)
    for data in sorted({record["description"]["data"] for record in records}):
        group = [record for record in records if record["description"]["data"] == data]
        fields = [[r["data_name"], *(r["description"]["config"].get(f) for f in experiment.module.DATA_FIELDS)] for r in group]
        lengths = [sorted(history) for history in {tuple(sorted(entry)) for r in group for entry in r["history"]}]
        tests = [[sum(row) for row in m["confusion"]] for r in group for m in r["metrics"].values() if "confusion" in m]
        for name, found in (("name and fields of the data", fields), ("measurements of an epoch", lengths),
                            ("test examples of each class", tests)):
            for other in found[1:]:
                yield from differs(file, f"data {data}: {name}", found[0], other)
    labels = {key: label(experiment, group[0]) for key, group in grouped(records).items()
              if group[0]["profile"] in experiment.module.PROFILES}
    for name, count in Counter(labels.values()).items():
        if count > 1:
            yield Fault(file, f"tables {name}", "one data set", f"{count} data sets of that name")
