"""What a run writes must be readable again: this is checked before it is trained, and before anything is stored.

Otherwise a finished run would be taken for damaged, or a file of records could not be read by any command.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from kdlib.errors import KDError
from kdlib.files import canonical_json
from kdlib.run.schema import MetricsShape, RunShape, decoded
from kdlib.shapes import Misshapen, check, shown

__all__ = ["check_metrics", "check_plain", "check_record", "check_tensors", "plain_name"]

DEEPEST = 100  # lists and objects in each other; a parser refuses some hundreds
LARGEST = 10**300  # Python refuses to write a whole number of 4,300 digits
PLAIN = "a finite number, text, True, False, None, or a list or dict of them"


def check_plain(value: Any, where: str, *, config: bool = False, depth: int = 0) -> None:
    """Raise Misshapen, which names the place below `where`, for a value that JSON would not give back.

    A tuple comes back as a list. Keys in a configuration (`config`) must be texts: others would come back as texts, in
    another order, and give another id; dataclasses come back as objects. Elsewhere keys may be whole numbers.
    """
    if depth > DEEPEST:
        raise Misshapen(f"{where[:200]}... to be nested at most {DEEPEST} deep", "more")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str | int | float):
        _check_one(value, where)
    elif isinstance(value, list | tuple | dict) or (config and is_dataclass(value) and not isinstance(value, type)):
        for key, part in _parts(value, where, config):
            check_plain(part, f"{where}.{key}", config=config, depth=depth + 1)
    else:
        raise Misshapen(f"{where} to be {PLAIN}", f"one of type {type(value).__name__}")


def _check_one(value: str | float, where: str) -> None:
    if isinstance(value, str):
        if not plain_name(value or "empty"):
            raise Misshapen(f"{where} to be text that can be written as UTF-8", shown(value))
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise Misshapen(f"{where} to be a whole number of at most 300 digits", "a longer one")
    elif not math.isfinite(value):
        raise Misshapen(f"{where} to be {PLAIN}", str(float(value)))


def _parts(value: Any, where: str, config: bool) -> Iterable[tuple[str, Any]]:
    if isinstance(value, list | tuple):
        return [(str(place), part) for place, part in enumerate(value)]
    if not isinstance(value, dict):
        return [(each.name, getattr(value, each.name)) for each in fields(value)]
    whole = not config and all(type(key) is int for key in value)
    for key in value:
        if not whole and not plain_name(key):
            raise Misshapen(f"{where} to have texts as keys", f"the key {shown(key)} of type {type(key).__name__}")
    return [(str(key) if whole or str(key).isidentifier() else shown(key), part) for key, part in value.items()]


def plain_name(name: Any) -> bool:
    """Return whether this is a text, not empty, that can be written as UTF-8: half a pair of surrogates cannot."""
    try:
        return isinstance(name, str) and bool(name.encode())
    except UnicodeEncodeError:
        return False


def check_metrics(metrics: Mapping[str, Any], snapshots: Collection[str]) -> None:
    """Raise Misshapen if a snapshot has no metrics, or `epochs` or `confusion` of another type than tables need."""
    for snapshot in snapshots:
        if snapshot not in metrics:
            raise Misshapen(f"metrics of the snapshot {snapshot!a}", ", ".join(map(ascii, metrics)) or "none")
        check(metrics[snapshot], MetricsShape, f"metrics.{snapshot}")
        confusion = metrics[snapshot].get("confusion", [])
        if any(len(row) != len(confusion) for row in confusion):
            raise Misshapen(f"metrics.{snapshot}.confusion with as many columns as rows", "others")


def check_record(record: Mapping[str, Any]) -> None:
    """Raise KDError, which names the key, if what `run.json` is to hold would be refused when it is read."""
    try:
        for name, value in record.items():
            check_plain(value, name, config=name == "description")
        found = decoded(canonical_json({**record, "environment": {}, "weights_sha256": ""}), RunShape)
        check_metrics(found.metrics, found.metrics)
    except Misshapen as error:
        raise KDError(
            f"the result of a training function: {error}; nothing was stored, and the checkpoint is kept. Let the "
            "function return it as expected: float(x) or x.tolist() makes numbers of an array or tensor"
        ) from error


def check_tensors(name: str, parts: Mapping[str, Any], kind: str) -> None:
    """Raise KDError unless the name can be found in a file, where "/" ends it, and its parts are tensors."""
    if not plain_name(name) or "/" in name:
        raise KDError(f"{kind} {shown(name)}: expected a name without '/', found one; rename it")
    for part, value in parts.items():
        if not isinstance(value, Tensor):
            raise KDError(
                f"{kind} {name}, {shown(part)}: expected a tensor, found one of type {type(value).__name__}; leave it "
                "out, or make it a tensor"
            )
