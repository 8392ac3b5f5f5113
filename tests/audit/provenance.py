"""What a record says of its origin: the commit and its source files, the weights, and the logits of teachers."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import special

from tests.audit.faults import Fault, Faults, compare, in_file, within
from tests.audit.records import Record, identity, read

RULE = (
    "source_digest",
    "source_files",
    "_sources",
    "_sources_below",
    "_imported",
    "imports_of",
    "_imports",
)  # of a commit, as it has them
HALF = 1e-4  # nats; rounding logits to float16 changes a mean entropy by less


def check(root: Path, names: Sequence[str], history: History) -> Faults:
    """Give every fault of commits, weights and the logits of teachers."""
    files = {f"results/{name}/runs.jsonl": read(root / f"results/{name}/runs.jsonl")[0] for name in names}
    known: dict[str, Any] = {}
    for path in sorted(root.glob("replications/*/*/*/run.json")):
        file = path.parent.relative_to(root).as_posix()
        yield from in_file(file, _check_pruned(path.parent, files, known, history))
    for file, records in files.items():
        yield from in_file(file, check_source(records, history))
        yield from in_file(file, check_weights(records, known))
    for file, records in files.items():
        yield from in_file(file, check_parents(records, known))


# ---- commits


class History:
    """The source digests of earlier commits, from the files that git keeps and by the rule that each commit had."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root, folder
        self.digests = cache(self._digests)
        self.whole = (self._git("rev-parse", "--is-shallow-repository", "--show-prefix") or b"").strip() == b"false"

    def _git(self, *arguments: str) -> bytes | None:
        try:
            return subprocess.run(["git", "-C", self.root, *arguments], capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    def _digests(self, commit: str) -> dict[str, str]:
        """Return the digest of each replication of a commit, by name; none if the history does not have the commit."""
        if not re.fullmatch("[0-9a-f]{40}", commit) or self._git("merge-base", "--is-ancestor", commit, "HEAD") is None:
            return {}
        tree, files = self.folder / commit, self._git("archive", commit, "kdlib/*.py", "replications/*.py")
        with tarfile.open(fileobj=io.BytesIO(files or b"")) as archive:
            archive.extractall(tree, filter="data")
        (rule,) = tree.glob("kdlib/**/environment.py")
        names: dict[str, Any] = {
            "__file__": str(rule),
            "Path": Path,
            "hashlib": hashlib,
            "re": re,
            "ast": ast,
            "os": os,
        }
        names["read_file"] = Path.read_bytes
        for node in ast.parse(rule.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in RULE:
                node.decorator_list = []
            elif not isinstance(node, ast.Assign):
                continue
            exec(compile(ast.Module([node], []), rule, "exec"), names)
        return {
            file.parent.name: names["source_digest"](file.parent) for file in tree.glob("replications/*/experiment.py")
        }


def check_source(records: Sequence[Record], history: History) -> Faults:
    """Give a fault for each record that was not trained by a clean tree of its commit."""
    for record in records:
        place, environment = f"run {record['run']}", record["environment"]
        yield from compare(f"{place}: clean tree", True, environment["clean"])
        if history.whole:
            name = environment.get("replication")  # older records do not have it, and the folder may have been renamed
            digests = history.digests(environment["commit"])
            allowed = [digest for folder, digest in digests.items() if name in (None, folder)]
            if environment["source"] not in allowed:
                expected = f"{' or '.join(allowed) or 'of a commit of this history'}, by commit {environment['commit']}"
                yield Fault(f"{place}: source digest", expected, environment["source"])


# ---- weights


def check_weights(records: Sequence[Record], known: dict[str, Any]) -> Faults:
    """A run is the same wherever it is recorded, and two runs with equal weights are the same training.

    `known` are the records seen before, by run and by weights_sha256, and the digests of soft targets by run.
    """
    for record in records:
        first = known.setdefault(record["run"], record)
        yield from compare(f"run {record['run']}", _lasting(first), _lasting(record))
        twin = known.setdefault(record["weights_sha256"], record)
        if twin["run"] != record["run"]:
            place = f"run {record['run']}, with the weights of run {twin['run']}"
            yield from compare(place, _training(twin), _training(record))


def check_parents(records: Sequence[Record], known: dict[str, Any]) -> Faults:
    """A run was taught by its parents as they are recorded; all children of a parent had the same soft targets."""
    for record in (record for record in records if record.get("trace")):
        place, found = f"run {record['run']}, parents", record.get("parents", {})
        described = {role: parent.partition("/")[0] for role, parent in record["description"]["parents"].items()}
        yield from compare(f"{place}: roles", sorted(described), sorted(found))
        for role, run in described.items():
            if run in known:
                yield from compare(f"{place}, {role}: weights", known[run]["weights_sha256"], found[role]["weights"])
            soft = found[role].get("soft_targets", "")
            yield from compare(f"{place}, {role}: soft targets", known.setdefault(f"{run}, soft targets", soft), soft)


def _lasting(record: Record) -> dict[str, Any]:
    return {
        key: record.get(key, {})
        for key in ("description", "metrics", "history", "weights_sha256", "environment", "trace", "parents")
    }


def _training(record: Record) -> dict[str, Any]:
    described = {key: record["description"][key] for key in ("recipe", "protocol", "seed", "data")}
    # By the digests of their weights: one teacher has another id in each profile that looks it up.
    parents = record.get("parents") or record["description"]["parents"]
    return {**described, "parents": parents, "metrics": record["metrics"], "history": record["history"]}


# ---- pruned runs: teachers whose logits are committed


def _check_pruned(
    folder: Path, files: Mapping[str, Sequence[Record]], known: dict[str, Any], history: History
) -> Faults:
    """Give every fault of a pruned run, and of the records in `files` that stand in for it."""
    run = {**json.loads((folder / "run.json").read_text("utf-8")), "run": folder.name}
    run["history"] = [{key: float(f"{value:.6g}") for key, value in entry.items()} for entry in run["history"]]
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    yield from compare("manifest", {name: sums[name] for name in sums if name != "manifest.json"}, manifest)
    yield from compare("the SHA-256 of its description", identity(run["description"]), folder.name)
    yield from check_source([run], history)
    yield from check_weights([run], known)
    known[f"{folder.name}, soft targets"] = sums["soft_targets.safetensors"]
    yield from _of_logits(folder, run, rounded=True)
    for file, records in files.items():
        for record in records:
            described = record["description"]
            # A record that names this run in its configuration was not trained: it has the logits as they are kept.
            if described["recipe"] == run["description"]["recipe"] and folder.name in described["config"].values():
                yield from in_file(file, _of_logits(folder, record, rounded=False))
                yield from in_file(file, compare(f"run {record['run']}: history", run["history"], record["history"]))


def _of_logits(folder: Path, record: Record, rounded: bool) -> Faults:
    """Entropy and predictions are those of the kept logits; `rounded`: they were measured before the rounding."""
    kept = load_file(folder / "soft_targets.safetensors")
    for snapshot, metrics in record["metrics"].items():
        place = f"run {record['run']}: {snapshot}"
        if f"{snapshot}.test/logits" not in kept:
            yield from _among_others(place, kept[f"{snapshot}.others/logits"].astype(np.float64), metrics)
            continue
        logits = kept[f"{snapshot}.test/logits"].astype(np.float64)
        room, ties = (HALF, _near_ties(logits)) if rounded else (1e-12, 0)
        entropy = float(special.entr(special.softmax(logits, axis=1)).sum(axis=1).mean())
        yield from within(f"{place}: entropy", entropy - room, metrics["entropy"], entropy + room, ", by its logits")
        counts = np.array(metrics["confusion"]).sum(axis=0)
        others = np.abs(np.bincount(logits.argmax(axis=1), minlength=len(counts)) - counts).sum() / 2
        yield from within(f"{place}: predictions that are not its logits'", 0, float(others), ties)


def _among_others(place: str, logits: NDArray[np.float64], metrics: Record) -> Faults:
    """No more examples of a class are predicted than among all other examples, which the test examples are drawn from.

    Rounding the logits may have moved near ties.
    """
    counts = np.array(metrics["confusion"]).sum(axis=0)
    excess = np.maximum(counts - np.bincount(logits.argmax(axis=1), minlength=len(counts)), 0).sum()
    yield from within(f"{place}: predictions that are not its logits'", 0, float(excess), _near_ties(logits))


def _near_ties(logits: NDArray[np.float64]) -> int:
    """Return in how many rows rounding to float16, by 2^-11 of each logit, may have swapped the two largest."""
    first, second = -np.partition(-logits, 1, axis=1)[:, :2].T
    return int((first - second <= 2.0**-10 * np.maximum(np.abs(first), np.abs(second))).sum())
