"""The records of `runs.jsonl`: each is what `experiment.py` says, and agrees with itself and with the others."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kdlib.run.experiment import Arm, Experiment
from tests.audit.faults import Fault, Faults, compare, shown, within
from tests.audit.statistics import f1_of

Record = Mapping[str, Any]
Cell = tuple[str, str, int]  # data digest, profile, seed
Groups = dict[tuple[str, str], list[Mapping[str, Any]]]  # the records of each table, by data digest and profile
KEYS = {
    *("arms", "data_name", "description", "environment", "history", "metrics", "profile", "run", "seed"),
    "weights_sha256",
}
NEWER = ("parents", "trace")  # keys that the records of earlier runs lack
DESCRIBED = ["config", "data", "parents", "protocol", "recipe", "seed"]
ROUNDING = 1e-15  # of a mean of a few shares, however it is summed


def canonical(thing: Any) -> str:
    """Return JSON with sorted keys and no spaces; ValueError for a number that is not finite."""
    return json.dumps(thing, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity(description: Record) -> str:
    """Return the id of a run: the start of the SHA-256 of its description."""
    return hashlib.sha256(canonical(description).encode()).hexdigest()[:16]


def read(path: Path) -> tuple[list[Record], list[Fault]]:
    """Return the records that can be read, and a fault for each line that cannot."""
    records: list[Record] = []
    faults = []
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else (), 1):
        try:
            record = json.loads(line)
            present = {key for key in record if key not in NEWER or not record[key]}
            if (present, sorted(record["description"])) != (KEYS, DESCRIBED) or canonical(record) != line:
                raise ValueError("other keys or another spelling (spaces, order of keys, a key twice)")
            records.append(record)
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            faults.append(Fault(f"line {number}", "a finished run as canonical JSON", shown(error)))
    return records, faults


def grouped(records: Iterable[Record]) -> Groups:
    """Return the records of each table."""
    groups: Groups = {}
    for record in records:
        groups.setdefault(cell_of(record)[:2], []).append(record)
    return groups


def cell_of(record: Record) -> Cell:
    """Return what an arm has one run for."""
    return record["description"]["data"], record["profile"], record["seed"]


def check(experiment: Experiment, records: Sequence[Record]) -> Faults:
    """Give every fault of the records of a replication."""
    runs = {record["run"]: record for record in records}
    placed = {(name, *cell_of(record)): record["run"] for record in records for name in record["arms"]}
    for record in records:
        place = f"run {shown(record['run'])}"
        yield from compare(f"{place}: the SHA-256 of its description", identity(record["description"]), record["run"])
        yield from _described(place, experiment, record, placed)
        yield from _measured(place, record, runs)
    yield from _together(experiment, records)


# ---- one record and its experiment


def _described(place: str, experiment: Experiment, record: Record, placed: Mapping[Any, str]) -> Faults:
    known = [name for name, profile in experiment.profiles.items() if not profile.synthetic]
    if record["profile"] not in known:
        yield Fault(f"{place}: profile", f"one on real data ({', '.join(known)})", shown(record["profile"]))
        return
    if not record["arms"]:
        yield Fault(f"{place}: arms", "at least one", "none")
    for name, snapshot in record["arms"].items():
        wanted = _expected(experiment, experiment.arm(name), record, placed)
        yield from compare(f"{place}: {name}", wanted, {**record["description"], "snapshot": snapshot})


def _expected(experiment: Experiment, arm: Arm, record: Record, placed: Mapping[Any, str]) -> dict[str, Any]:
    """Return the description that an arm's run must have."""
    found, (data, profile, seed) = record["description"]["config"], cell_of(record)
    environment = record["environment"]
    config = json.loads(canonical(asdict(experiment.config(arm, experiment.profiles[profile]))))
    config |= {field: found.get(field) for field in experiment.data_fields}  # each choice has tables of its own
    config["device"] = "cpu" if environment["versions"]["torch"].endswith("+cpu") else str(found.get("device"))
    config["threads"] = max(1, int(environment["threads"]))
    if arm.mapped is not None and "replicas" in found:  # trained side by side with others
        config["replicas"] = max(2, int(found["replicas"]))
    parents = {}
    for role, name in arm.needs.items():
        parent = experiment.arm(name)
        run = placed.get((name, data, profile, seed if parent.seed is None else parent.seed), "a recorded run")
        parents[role] = f"{run}/{parent.snapshot}"
    recipe = f"{experiment.source}/{arm.train.__name__}"
    protocol = _protocol(experiment, record)
    description = {"recipe": recipe, "protocol": protocol, "config": config, "parents": parents}
    return {**description, "data": data, "seed": seed, "snapshot": arm.snapshot}


def _protocol(experiment: Experiment, record: Record) -> int:
    """Return the protocol that a record must have. A table without verdicts may be of an earlier one."""
    found = record["description"]["protocol"]
    earlier = type(found) is int and 0 < found < experiment.protocol
    return found if earlier and not experiment.profiles[record["profile"]].judged else experiment.protocol


# ---- one record and its numbers


def _measured(place: str, record: Record, runs: Mapping[str, Record]) -> Faults:
    metrics, history = record["metrics"], record["history"]
    if not re.fullmatch(r"[0-9a-f]{64}", record["weights_sha256"]):
        yield Fault(f"{place}: weights_sha256", "64 hexadecimal digits", shown(record["weights_sha256"]))
    longest = max(found.get("epochs", len(history)) for found in metrics.values())
    yield from compare(f"{place}: length of its history", longest, len(history))
    parents = [parent.partition("/") for parent in record["description"]["parents"].values()]
    teachers = [_teacher(record, run, snapshot, runs) for run, _, snapshot in parents if run in runs]
    kept: dict[int, Record] = {}
    for snapshot, found in sorted(metrics.items()):
        yield from _of_confusion(f"{place}: {snapshot}", found)
        if "best_epoch" in found:
            yield from _of_history(f"{place}: {snapshot}", found, history[: found["epochs"]])
            same = kept.setdefault(found["best_epoch"], found)  # snapshots of one epoch's weights are one network
            yield from compare(f"{place}: {snapshot}", {**same, "epochs": found["epochs"]}, found)
        if "agreement" in found and len(teachers) == len(parents) == 1:
            yield from _of_teacher(f"{place}: {snapshot}", found, teachers[0])


def _teacher(record: Record, run: str, snapshot: str, runs: Mapping[str, Record]) -> Record:
    """Return the metrics of a record's teacher on the record's own examples.

    Where each seed has test examples of its own, a run that trains nothing measures the only teacher for each seed, by
    the logits that it keeps.
    """
    for other in runs.values():
        needs = [*other["description"]["parents"].values()]
        if other["seed"] == record["seed"] and not other["history"] and needs == [f"{run}/{snapshot}"]:
            (measured,) = other["metrics"].values()
            return dict(measured)
    return dict(runs[run]["metrics"][snapshot])


def _of_confusion(place: str, metrics: Record) -> Faults:
    if "confusion" not in metrics:
        return
    rows = metrics["confusion"]
    if not all(len(row) == len(rows) and all(type(n) is int and n >= 0 for n in row) for row in rows):
        yield Fault(f"{place}: confusion", "a square of counts", shown(rows))
        return
    counts = np.array(rows)
    for name, share in (("macro_f1", float(f1_of(counts))), ("accuracy", float(counts.trace() / counts.sum()))):
        found = metrics.get(name, share)
        yield from within(f"{place}: {name}", share - ROUNDING, found, share + ROUNDING, ", by its confusion matrix")
    for name, count in (("errors", int(counts.sum() - counts.trace())), ("threes_accuracy", _share(counts, 3))):
        yield from compare(f"{place}: {name}", count, metrics.get(name, count))
    entropy = metrics.get("entropy", 0.0)
    yield from within(f"{place}: entropy", -1e-9, entropy, math.log(len(rows)), ", the largest for its classes")


def _share(counts: NDArray[np.int64], label: int) -> float:
    """Return which share of a class is recognised; 0 if there is no such class."""
    row = counts[label] if label < len(counts) else counts[:0]
    return int(row[label]) / int(row.sum()) if row.any() else 0.0


def _of_history(place: str, metrics: Record, seen: Sequence[Record]) -> Faults:
    """The metrics are those of the epoch with the lowest validation loss, in a history of 6 digits."""
    losses, best = [entry["validation_loss"] for entry in seen], metrics["best_epoch"]
    # Losses that differ beyond the digits in the history are equal here: any of the lowest may be the best.
    if best not in [epoch for epoch, loss in enumerate(losses, 1) if loss == min(losses)]:
        yield Fault(f"{place}: best_epoch", f"{losses.index(min(losses)) + 1}, by its history", shown(best))
        return
    for name, value in sorted(seen[best - 1].items()):
        measured = metrics.get(name.removeprefix("test_")) if name != "training_loss" else None
        if measured is not None:
            yield from compare(f"{place}: history, epoch {best}, {name}", float(f"{measured:.6g}"), value)


def _of_teacher(place: str, metrics: Record, teacher: Record) -> Faults:
    """What a student has in common with its teacher is possible for two networks with these predictions."""
    ours, theirs = np.array(metrics["confusion"]), np.array(teacher["confusion"])
    total, agreement, kl = int(ours.sum()), metrics["agreement"], metrics["teacher_kl"]
    least = float(np.maximum(ours + theirs - ours.sum(axis=1, keepdims=True), 0).sum() / total)
    most = float(np.minimum(ours, theirs).sum() / total)
    yield from within(f"{place}: agreement", least, agreement, most, ", by both confusion matrices")
    yield from compare(f"{place}: agreement, a number of examples", round(agreement * total) / total, agreement)
    # Pinsker's and Fannes' inequalities: distributions that are close have entropies that are close.
    distance = min(math.sqrt(max(0.0, kl) / 2), 1 - 1 / len(ours))
    shares = np.array([1 - distance, *[distance / (len(ours) - 1)] * (len(ours) - 1)])
    room = float(special.entr(shares).sum()) + 1e-9
    yield from within(f"{place}: teacher_kl", -1e-9, kl, math.inf)
    gap = metrics["entropy"] - teacher["entropy"]
    yield from within(f"{place}: entropy less its teacher's", -room, gap, room, ", by their divergence")


# ---- all records of a replication


def _together(experiment: Experiment, records: Sequence[Record]) -> Faults:
    """Nothing twice, seeds from 0 without a gap; one test set per data set, network per arm, data set per table."""
    cells = Counter((arm, *cell_of(record)) for record in records for arm in record["arms"])
    yield from compare("runs of an arm and seed", dict.fromkeys(cells, 1), dict(cells))
    for arm in sorted({cell[:3] for cell in cells}):
        seeds = sorted({cell[3] for cell in cells if cell[:3] == arm})
        own = experiment.arm(arm[0]).seed  # of all its runs, if it has one
        yield from compare(f"seeds of {', '.join(arm)}", list(range(len(seeds))) if own is None else [own], seeds)
    known: dict[str, Any] = {}
    for record in records:
        (data, profile, _), config = cell_of(record), record["description"]["config"]
        facts = {f"data {data}: name": record["data_name"], f"tables {experiment.label(profile, config)}": data}
        facts |= {f"data {data}: {field}": config[field] for field in experiment.data_fields}
        facts[f"data {data}, {profile}: protocol"] = record["description"]["protocol"]
        if record["history"]:  # without one, nothing was trained
            measurements = sorted({", ".join(sorted(e)) for e in record["history"]})
            facts[f"data {data}: measurements of an epoch"] = measurements
        metrics = record["metrics"].values()
        examples = {str([sum(row) for row in found["confusion"]]) for found in metrics if "confusion" in found}
        if examples:
            facts[f"data {data}: test examples of each class"] = ", ".join(sorted(examples))
        networks = [found.get("parameters") for found in metrics]
        facts |= {f"{profile}: parameters of {arm}": networks for arm in record["arms"]}
        for fact, value in facts.items():
            yield from compare(fact, known.setdefault(fact, value), value)
