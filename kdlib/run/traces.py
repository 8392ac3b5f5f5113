"""What two runs did differently, from their traces, in a closed vocabulary.

A claim names what its arms differ in. The words below are all that it may name; `differences` finds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kdlib.run.records import Record

__all__ = ["VOCABULARY", "arms_differ", "differences"]

VOCABULARY: Mapping[str, str] = {
    "network": "layers, what they are set to, their hooks, which weights learn, or names, types and shapes of tensors",
    "initial weights": "the weights and buffers before the first step",
    "data": "the examples",
    "view": "the augmentation of the inputs",
    "rows": "which rows are used, or their order",
    "mixing": "how rows and labels are mixed",
    "batch size": "the number of rows in a step",
    "steps": "the number of steps until the snapshot that is compared",
    "learning rate": "the learning rate of a step",
    "optimizer": "the class or a hyper-parameter of the optimizer",
    "optimizer state": "a change of weights or optimizer state between two epochs, or after the last one",
    "selection": "whether the weights are those of the last epoch, or of an earlier one that was chosen",
    "dropout": "the seeds of dropout",
    "soft targets": "the teacher's logits, or that there are any",
    "precision": "the precision of training steps, as configured",
    "outputs": "the network's outputs for the first batch, before any step, where nothing above can have changed them",
    "loss": "the loss of the same outputs and targets, or of the first batch if both arms have no teacher; not "
    "compared if one of them has",
}
SAME_LOSS = 1e-4  # relative: processors round differently
_MOVES_OUTPUTS = ("network", "initial weights", "data", "view", "rows", "mixing", "batch size", "dropout", "precision")
_MOVES_LOSS = (*_MOVES_OUTPUTS, "outputs", "soft targets")


def arms_differ(one: Record, arm: str, other: Record, rival: str) -> list[str] | None:
    """Return what two recorded arms did differently, in words of the vocabulary; None if one of them is not traced."""
    if not one.trace or not other.trace:
        return None
    pairs = ((one, arm), (other, rival))
    epochs = [int(record.metrics[record.arms[name]].get("epochs", len(record.history))) for record, name in pairs]
    precisions = [record.description["config"].get("precision") for record, _ in pairs]
    versions = [record.environment.get("versions", {}).get("torch") for record, _ in pairs]
    # Another version of torch may say more of a layer.
    traces = [record.trace if versions[0] == versions[1] else {**record.trace, "settings": None} for record, _ in pairs]
    found = differences(traces[0], traces[1], (epochs[0], epochs[1]), precisions[0] != precisions[1])
    # Two snapshots of one run have other weights: this is why they are two.
    if one.run != other.run:
        ends = [_end(record, record.arms[name], until) for (record, name), until in zip(pairs, epochs, strict=True)]
        if ends.count("none") == 1 and "unknown" not in ends:
            found.append("optimizer state")
        if {*ends} == {"early", "last"}:
            found.append("selection")
    return [word for word in VOCABULARY if word in found]


def _end(record: Record, snapshot: str, epochs: int) -> str:
    """At the end of which epoch a snapshot has its weights: an early one, the last one that it is said to have, none.

    Also "last, or best" of weights that may have been chosen, as the best epoch may be the last one.
    """
    known = record.trace.get("epoch_of", {})  # older traces have none
    if snapshot not in known or known[snapshot] is None:
        return "none" if snapshot in known else "unknown"
    if known[snapshot] < epochs:
        return "early"
    return "last, or best" if snapshot in record.trace.get("may_be_best", ()) else "last"


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], epochs: tuple[int, int], other_precision: bool = False
) -> list[str]:
    """Return in which words of the vocabulary two traces differ; `epochs`: those of the snapshots that are compared.

    Only what both have done is compared: the epochs up to the shorter length. A change of state counts in any epoch,
    since a training without one has none. Rows that follow from other data, for example, are not named again.
    """
    both = min(epochs)
    found = {
        "network": one["network"] != other["network"] or _settings_differ(one, other),
        "initial weights": one["start"] != other["start"],
        "data": one["data"].get("digest") != other["data"].get("digest"),
        "view": one["data"].get("view") != other["data"].get("view"),
        "rows": _differ(one, other, "rows", both),
        "mixing": one["mixed"] != other["mixed"] or _differ(one, other, "labels", both),
        "batch size": one["data"].get("size") != other["data"].get("size") or _differ(one, other, "sizes", both),
        "steps": _steps(one, epochs[0]) != _steps(other, epochs[1]),
        "learning rate": _differ(one, other, "rates", both),
        "optimizer": one["optimizer"] != other["optimizer"],
        "optimizer state": _changed(one, epochs[0]) != _changed(other, epochs[1]),
        "dropout": _differ(one, other, "layers", both),
        "soft targets": one["data"].get("soft") != other["data"].get("soft") or _differ(one, other, "targets", both),
        "precision": other_precision,
        "loss": not _same_loss(one["first_loss"], other["first_loss"]),
    }
    # What follows from another difference is not named again.
    if found["network"]:
        found["initial weights"] = False
        found["optimizer"] = _optimizer(one) != _optimizer(other)
    if found["data"]:
        found["rows"] = False
    if found["data"] or found["rows"]:
        found["mixing"] = one["mixed"] != other["mixed"]
    if found["data"] or found["rows"] or found["mixing"]:
        found["soft targets"] = one["data"].get("soft") != other["data"].get("soft")
    if found["data"] and one["data"].get("size") == other["data"].get("size"):
        found["batch size"] = False
    same = _close(one.get("outputs"), other.get("outputs"))
    found["outputs"] = not same and not any(found[word] for word in _MOVES_OUTPUTS)
    if any(found[word] for word in _MOVES_LOSS):
        found["loss"] = False
    if _probes_differ(one, other, both):
        found["loss"] = True
    return [word for word in VOCABULARY if found.get(word)]


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], name: str, epochs: int) -> bool:
    # Each digest is over all epochs up to its own, so the last common one tells.
    first, second = one["epochs"][name][:epochs], other["epochs"][name][:epochs]
    return bool(first != second)


def _settings_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    both = one.get("settings"), other.get("settings")  # older traces have none
    return None not in both and both[0] != both[1]


def _close(one: float | None, other: float | None) -> bool:
    """Whether two numbers are the same but for rounding; also if one is not known, as in older traces."""
    return one is None or other is None or math.isclose(one, other, rel_tol=SAME_LOSS)


def _probes_differ(one: Mapping[str, Any], other: Mapping[str, Any], epochs: int) -> bool:
    if one["probe"] is None or other["probe"] is None or not _close(one["probe"], other["probe"]):
        return not _close(one["probe"], other["probe"])
    if "probes" not in one or "probes" not in other:
        return False
    # If both change, it may be by what was learnt, such as an average of the weights, and not by another rule.
    changes = [any(epoch <= epochs for epoch, _ in trace["probes"]) for trace in (one, other)]
    return changes[0] != changes[1]


def _same_loss(one: float | None, other: float | None) -> bool:
    if one is None or other is None:  # no epoch was trained
        return one is other
    return math.isclose(one, other, rel_tol=SAME_LOSS)


def _steps(trace: Mapping[str, Any], epochs: int) -> int:
    return int(trace["steps"] * epochs / max(1, len(trace["epochs"]["rows"])))


def _optimizer(trace: Mapping[str, Any]) -> Any:
    """The optimizer without the number of weights, which follows from the network."""
    about = trace["optimizer"]
    groups = [{name: value for name, value in group.items() if name != "tensors"} for group in about["groups"]]
    return about["class"], groups


def _changed(trace: Mapping[str, Any], epochs: int) -> list[int]:
    return [epoch for epoch in trace["changed"] if epoch <= epochs]
