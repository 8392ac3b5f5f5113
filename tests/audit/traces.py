"""What the training loops did, by the traces of their runs: two compared arms differ in what `claims.toml` names."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdlib.run.experiment import Experiment
from tests.audit.claims import Source
from tests.audit.faults import Fault, Faults, compare, shown
from tests.audit.records import Record, grouped
from tests.audit.tables import choice

EPOCHS = ("labels", "layers", "rates", "rows", "sizes", "targets")  # digests, each over all epochs so far
SHAM = ", permuted within classes"
DUSTBIN = re.compile(r", classes [\d ]+ and dustbin$")  # of a specialist

# ---- one trace


def check_traces(experiment: Experiment, records: Sequence[Record]) -> Faults:
    """Give every fault of the traces themselves: their form, and what they say of seed, data and teacher."""
    soft: dict[Any, Any] = {}
    for record in records:
        if record.get("trace"):
            place, trace = f"run {shown(record['run'])}: trace", record["trace"]
            yield from _shape(place, trace, len(record["history"]))
            yield from compare(f"{place}, dropout seeds", _layers(record), trace["epochs"]["layers"])
            if not str(trace["data"]["digest"]).startswith(record["description"]["data"]):
                yield Fault(f"{place}: data", f"those of {record['description']['data']}", shown(trace["data"]))
            yield from _soft(place, experiment, record, soft)


def _shape(place: str, trace: Record, epochs: int) -> Faults:
    shape = {
        **{"start": "0" * 64, "network": "0" * 16},
        **dict.fromkeys(("mixed", "first_loss", "probe", "steps", "changed"), ""),
        **(
            {}
            if "settings" not in trace
            else {**dict.fromkeys(("outputs", "probes", "epoch_of", "may_be_best"), ""), "settings": "0" * 16}
        ),
        **{"data": ["digest", "size", "soft", "view"], "optimizer": ["class", "groups"]},
        "epochs": {key: ["0" * 16] * epochs for key in EPOCHS},
    }
    found: dict[str, Any] = {
        key: re.sub("[0-9a-f]", "0", str(trace[key])) for key in ("start", "network", "settings") if key in trace
    }
    found |= {key: sorted(trace[key]) for key in ("data", "optimizer")}
    found["epochs"] = {key: [re.sub("[0-9a-f]", "0", d) for d in digests] for key, digests in trace["epochs"].items()}
    yield from compare(place, shape, {key: found.get(key, "") for key in trace})
    numbers = [trace["steps"], *trace["changed"]]
    if (
        not all(type(n) is int for n in numbers)
        or numbers[0] < epochs
        or not set(numbers[1:]) <= {*range(2, epochs + 1)}
    ):
        yield Fault(f"{place}: steps and changed", f"whole numbers that fit {epochs} epochs", shown(numbers))
    if type(trace["mixed"]) is not bool or not math.isfinite(trace["first_loss"]):
        yield Fault(
            f"{place}: mixed and first_loss", "a flag and a number", shown([trace["mixed"], trace["first_loss"]])
        )


def _layers(record: Record) -> list[str]:
    """Return the digests of the dropout seeds that the record's seed gives, and the offset of its configuration."""
    digest, digests, seed = "", [], record["seed"] + record["description"]["config"].get("seed_offset", 0)
    for epoch in range(1, len(record["history"]) + 1):
        first = hashlib.sha256(f"{seed}/layers/{epoch}".encode()).digest()[:8]
        digest = hashlib.sha256(f"{digest}{int.from_bytes(first, 'big') // 2}".encode()).hexdigest()[:16]
        digests.append(digest)
    return digests


def _soft(place: str, experiment: Experiment, record: Record, known: dict[Any, Any]) -> Faults:
    """Soft targets are those of a parent's snapshot, the same for all its students; a sham's permuted for each seed."""
    data = record["trace"]["data"]
    if data["soft"] is None:
        return
    run, part, digest = (data["soft"][key] for key in ("run", "part", "sha256"))
    parents = dict(parent.split("/") for parent in record["description"]["parents"].values())
    sham = any("sham" in experiment.arm(name).modes for name in record["arms"])
    rows = data["digest"].partition("/")[2].partition(",")[0]  # the part of the data that the examples are of
    if re.fullmatch("[0-9a-f]{16}", run):
        expected = f"{parents.get(run, 'of a parent')}.{rows}{SHAM * sham}"
        yield from compare(f"{place}: soft targets", expected, DUSTBIN.sub("", part))
    elif " + " in run:
        yield from compare(f"{place}: members", sorted(parents), sorted(run.split(" + ")))
        yield from compare(f"{place}: soft targets", _of_members(record, parents, rows), part)
    if part.endswith(SHAM):
        seed = known.setdefault((run, part, digest), record["seed"])
        yield from compare(f"{place}: seed of the sham's permutation", seed, record["seed"])
    else:
        same = known.setdefault((run, part, data["digest"]), digest)
        yield from compare(f"{place}: soft targets of run {run}, {part}", same, digest)


def _of_members(record: Record, parents: Mapping[str, str], rows: str) -> str:
    """Return what the soft targets of an ensemble must be called, by the configuration of its student."""
    config, parts = record["description"]["config"], sorted({f"{snapshot}.{rows}" for snapshot in parents.values()})
    mean = f"{config.get('mean')} mean of {len(parents)} at temperature {config.get('temperature'):g}"
    return f"{mean}: {' + '.join(parts)}"


# ---- two traces


@dataclass(frozen=True)
class Done:
    """What a run did until the snapshot that is an arm."""

    trace: Record
    epochs: int
    precision: Any
    snapshot: str
    torch: Any
    run: str


def done(record: Record, arm: str) -> Done | None:
    """Return what was done for an arm; None if its run is not traced."""
    if not record.get("trace"):
        return None
    metrics = record["metrics"][record["arms"][arm]]
    epochs = metrics.get("epochs", len(record["history"]))
    return Done(
        record["trace"],
        epochs,
        record["description"]["config"].get("precision"),
        record["arms"][arm],
        record["environment"].get("versions", {}).get("torch"),
        record["run"],
    )


def differences(one: Done, other: Done) -> set[str]:
    """Return in what two arms differ; what follows from another difference is left out.

    Epochs that only one of them has are not compared, but for changes of state: an honest training has none.
    """
    common = min(one.epochs, other.epochs)
    facts = _facts(one), _facts(other)
    found = {word for word, value in facts[0].items() if value != facts[1][word]}
    if "settings" in found:  # the traces of earlier runs have none, and another torch may say more
        is_known = None not in [each["settings"] for each in facts] and one.torch == other.torch
        found = found - {"settings"} | ({"network"} if is_known else set())
    rolled = {
        word
        for word, name in _ROLLED.items()
        if [t["epochs"][name][:common] for t in (one.trace, other.trace)].count(one.trace["epochs"][name][:common]) < 2
    }
    changed = [[epoch for epoch in each.trace["changed"] if epoch <= each.epochs] for each in (one, other)]
    known = [each.trace["epoch_of"] for each in (one, other) if each.snapshot in each.trace.get("epoch_of", {})]
    ends = [_end(each) for each in (one, other)] if one.run != other.run and len(known) == 2 else []
    rolled |= {"optimizer state"} if changed[0] != changed[1] or len({end == "loose" for end in ends}) == 2 else set()
    rolled |= {"selection"} if set(ends) == {"early", "last"} else set()
    # Other data have other rows, and so on along this chain.
    if "data" in found:
        rolled -= {"rows", "mixing", "batch size", "soft targets"}
    if "rows" in rolled:
        rolled -= {"mixing", "soft targets"}
    if "mixing" in found | rolled:
        rolled -= {"soft targets"}
    found |= rolled
    if "network" in found:
        found -= {"initial weights"}
    first, probe, outputs = (
        [each.trace.get(key) for each in (one, other)] for key in ("first_loss", "probe", "outputs")
    )
    if not found & (_MOVE_LOSS - {"soft targets"}) and _are_apart(outputs):
        found |= {"outputs"}
    if _are_apart(probe) or (not found & (_MOVE_LOSS | {"outputs"}) and _are_apart(first)):
        found |= {"loss"}
    if None not in probe and _later(one, other, common):
        found |= {"loss"}
    return found


def _end(arm: Done) -> str:
    """Of which epoch the weights are: an early one or the last one; they may have been chosen and be the last one's."""
    epoch = arm.trace["epoch_of"][arm.snapshot]
    if epoch is not None and epoch >= arm.epochs:
        return "by chance" if arm.snapshot in arm.trace["may_be_best"] else "last"
    return "loose" if epoch is None else "early"


def _are_apart(numbers: Sequence[Any]) -> bool:
    return None not in numbers and not math.isclose(*numbers, rel_tol=1e-4)


def _later(one: Done, other: Done, common: int) -> bool:
    """Whether one objective changes in a later epoch, and the other remains as it is."""
    if not all("probes" in each.trace for each in (one, other)):
        return False
    first = [min([epoch for epoch, _ in each.trace["probes"]], default=common + 1) for each in (one, other)]
    return (first[0] <= common) is not (first[1] <= common)


def _facts(arm: Done) -> dict[str, Any]:
    trace, data, groups = arm.trace, arm.trace["data"], arm.trace["optimizer"]["groups"]
    return {
        "network": trace["network"],
        "settings": trace.get("settings"),
        "initial weights": trace["start"],
        "data": data.get("digest"),
        "view": data.get("view"),
        "mixing": trace["mixed"],
        "batch size": data.get("size"),
        "steps": trace["steps"] * arm.epochs // max(1, len(trace["epochs"]["rows"])),
        "optimizer": (trace["optimizer"]["class"], [{**group, "tensors": 0} for group in groups]),
        "soft targets": data.get("soft"),
        "precision": arm.precision,
    }


_ROLLED = {
    "rows": "rows",
    "mixing": "labels",
    "batch size": "sizes",
    "learning rate": "rates",
    "dropout": "layers",
    "soft targets": "targets",
}
_MOVE_LOSS = {
    *("network", "initial weights", "data", "view", "rows", "mixing", "batch size", "dropout", "soft targets"),
    "precision",
}

# ---- the pairs of a table


def check_pairs(source: Source, records: Sequence[Record]) -> Faults:
    """Give a fault for each difference of two compared arms that is not named, or is named and not there."""
    for (data, profile), group in grouped(records).items():
        runs = {(arm, record["seed"]): done(record, arm) for record in group for arm in record["arms"]}
        seeds = sorted({seed for _, seed in runs})
        for name, pairs, named in rows(source, group):
            place, found, traced = f"{name} (profile {profile}, data {data})", set[str](), set[tuple[str, str]]()
            for pair in pairs:
                for seed in seeds:
                    arms = [runs.get((arm, seed)) for arm in pair]
                    if arms[0] and arms[1]:
                        words = differences(arms[0], arms[1])
                        traced, found = traced | {pair}, found | words
                        if words - named:
                            both = f"{pair[0]} and {pair[1]}, seed {seed}"
                            yield Fault(f"{place}: {both}: differ in", _listed(named), _listed(words))
            if pairs and traced == {*pairs} and named - found:
                yield Fault(f"{place}: in some run, a difference in", _listed(named), _listed(found))


def rows(source: Source, records: Sequence[Record]) -> Iterator[tuple[str, list[tuple[str, str]], set[str]]]:
    """Give the name, the compared pairs and the named differences of each claim, mode and ingredient."""
    for name, claim in source.claims.items():
        for key, mode in claim.modes.items():
            taken = {new: choice(keys, records) for new, keys in source.chosen.items()}
            pairs = [(taken.get(arm) or arm, rival) for arm, rival in claim.pairs(key)]
            yield f"{name}, {key}", [pair for pair in pairs if pair[0] != pair[1]], {*mode.differs}
    for part in source.ingredients:
        yield f"ingredient '{part['label']}'", [(part["arm"], part["over"])], {*part["differs"]}


def _listed(words: set[str]) -> str:
    return ", ".join(sorted(words)) or "nothing"
