"""What can be checked of `cost.csv`: counted numbers by hand-written formulas, measured ones by the runs' records."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from tests.audit.faults import Fault, Faults, compare, within
from tests.audit.records import Record
from tests.audit.statistics import f1_of

ORDERED = (  # each of a pair is at most the other
    # Not the weights and their file: the export joins batch norms with the convolutions before them.
    ("int8_file_bytes", "float32_file_bytes"),
    ("float32_bytes", "peak_bytes"),
    *((f"{name}_p50_ms", f"{name}_p95_ms") for name in ("torch", "onnx", "int8")),
)
TIES = 3  # examples whose class may change with the order of sums


def _dense(*widths: int) -> int:
    return sum(2 * before * after for before, after in pairwise(widths))


def _squares(*layers: tuple[int, int, int]) -> int:
    """3x3 convolutions of pictures: channels before and after, and the side of the outputs."""
    return sum(2 * side * side * 9 * before * after for before, after, side in layers)


def _ecg(filters: int, hidden: int) -> int:
    first, second = 183 * 5 * filters, 43 * 3 * filters * filters  # outputs of 187 - 4, and of 183 // 4 - 2
    return 2 * (first + second) + _dense(filters, hidden, 5)


_FOUR = ((3, 16, 32), (16, 16, 32), (16, 32, 16), (32, 32, 16))
_EIGHT = (*_FOUR, (32, 64, 8), (64, 64, 8), (64, 128, 4), (128, 128, 4))
_STUDENT = ((3, 32, 32), (32, 32, 32), (32, 64, 16), (64, 64, 16), (64, 128, 8), (128, 128, 8))
# A multiplication and its addition are 2 operations. By the number of parameters, which the sources state.
FLOPS = {
    17_221: _ecg(64, 64),
    3_909: _ecg(32, 16),
    1_422_378: _squares((1, 32, 26)) + _dense(5_408, 256, 128, 32, 10),
    693_962: _squares((1, 32, 26)) + _dense(5_408, 128, 10),
    13_146: _squares((3, 16, 32), (16, 16, 16)) + _dense(1_024, 10),
    37_530: _squares(*_FOUR) + _dense(2_048, 10),
    83_226: _squares(*_EIGHT[:6]) + _dense(1_024, 10),
    328_922: _squares(*_EIGHT) + _dense(512, 64, 10),
    658_586: _squares(*_EIGHT, (128, 128, 4), (128, 128, 4)) + _dense(512, 128, 10),
    816_938: _squares(*_STUDENT) + _dense(2_048, 256, 10),
}


def check(folder: Path, records: Sequence[Record]) -> Faults:
    """Give every fault of `cost.csv` and `cost.md` in a folder of results."""
    lines = (folder / "cost.md").read_text("utf-8").split("\n")
    for row in csv.DictReader((folder / "cost.csv").read_text("utf-8").split("\n")):
        place = f"row {row['network']}"
        numbers = {name: float(cell) for name, cell in row.items() if name not in ("network", "role", "run") and cell}
        yield from _counted(place, numbers)
        for low, high in ORDERED:
            yield from within(f"{place}, {low}", 0.0, numbers[low], numbers[high])
        if row["run"]:
            yield from _recorded(place, row["run"], numbers, records)
        shown = f"{int(numbers['parameters']):,}"
        if not any(row["network"] in line and shown in line and row["run"] in line for line in lines):
            yield Fault(place, f"a line of cost.md with {row['network']}, {shown} and {row['run']}", "none")


def _counted(place: str, numbers: Mapping[str, float]) -> Faults:
    yield from compare(f"{place}, float32_bytes", 4 * numbers["parameters"], numbers["float32_bytes"])
    expected = FLOPS.get(int(numbers["parameters"]))
    if expected is not None:
        yield from compare(f"{place}, flops", float(expected), numbers["flops"])


def _recorded(place: str, run: str, numbers: Mapping[str, float], records: Sequence[Record]) -> Faults:
    """The weights are of a recorded run, and onnxruntime predicts with them what torch did."""
    found = [record for record in records if record["run"] == run]
    if not found:
        yield Fault(place, "the weights of a recorded run", run)
        return
    candidates = [metrics for metrics in found[0]["metrics"].values() if math.isfinite(metrics.get("accuracy", 0))]
    near = min(candidates, key=lambda metrics: abs(metrics["accuracy"] - numbers["onnx_accuracy"]))
    examples = int(np.sum(near["confusion"]))
    for name in ("parameters", "flops"):
        yield from compare(f"{place}, {name}", float(near.get(name, numbers[name])), numbers[name])
    room = TIES / examples + 1e-6
    yield from within(f"{place}, accuracy", near["accuracy"] - room, numbers["onnx_accuracy"], near["accuracy"] + room)
    confusion = np.array(near["confusion"])
    score, rare = float(f1_of(confusion)), 1 / confusion.sum(axis=1).min()
    yield from within(f"{place}, macro F1", score - TIES * rare, numbers["onnx_macro_f1"], score + TIES * rare)
