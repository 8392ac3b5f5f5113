"""Everything that `kd tables` writes, made again by the ordinary code and compared with the committed files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image
from numpy.typing import NDArray

import kdlib
from kdlib.run.experiment import replications
from tests.audit.faults import SAME_BITS, Fault, Faults, compare, in_file, shown

USED = (
    "README.md",
    "DATA.md",
    "results/commits.json",
    "results/*/cost.csv",
    "replications/**/*.py",
    "replications/*/*.md",
    "replications/*/*.toml",
    "results/*/runs.jsonl",
)
ENDS = ("csv", "md", "png", "svg", "tex", "txt")
MADE = ("README.md", "replications/*/README.md", "results/front.*", *(f"results/*/*.{end}" for end in ENDS))
LEVELS = 2  # of 255, by which pixels may differ
SITE = ("results/*/results.json", "results/commits.json", "results/site/*")


MEASURED = ("cost.csv", "cost.md")  # by `kd cost`, on one machine


def make_again(root: Path, folder: Path, names: Sequence[str]) -> Faults:
    """Copy what the tables are made from into `folder`, and make the tables there."""
    others = [path for path in root.glob("results/*/*.csv") if path.parent.name not in names]  # the pages need all
    for path in (*others, *(path for pattern in USED for path in root.glob(pattern))):
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    places = os.pathsep.join([str(folder), str(Path(kdlib.__file__).parents[1])])
    command = [sys.executable, "-m", "kdlib", "tables", *names]
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True)
    if done.returncode:
        yield Fault("kd tables", "the tables made again", shown(done.stderr.strip().rpartition("\n")[2]))


def check(root: Path, again: Path, names: Sequence[str]) -> Faults:
    """Give a fault for each table, figure and README that is missing, stray or not as it is made again."""
    patterns = MADE + SITE if set(names) == set(replications(root)) else MADE  # the pages are about all replications
    for file in sorted({path.relative_to(top) for top in (root, again) for p in patterns for path in top.glob(p)}):
        if file.parent.name in ("", "results", "site", *names) and file.name not in MEASURED:
            yield from in_file(file.as_posix(), _differences(again / file, root / file))


def _is_same_picture(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two pictures have the same pixels but for LEVELS of 255.

    The last bit of a place in a figure is not the same in each process on every processor, and so is the share of a
    pixel that a line covers.
    """
    return one.shape == other.shape and bool((np.abs(one - other) <= LEVELS / 255 + 1e-6).all())


def _differences(made: Path, committed: Path) -> Faults:
    if not made.exists() or not committed.exists():
        there = "no such file" if made.exists() else "a file that no records make"
        yield Fault("", "the files that kd tables makes", there)
    elif made.suffix == ".png":
        if not _is_same_picture(image.imread(made), image.imread(committed)):
            yield Fault("", "the picture made again", "other pixels")
    elif made.suffix == ".svg" and not SAME_BITS:  # the last digits may differ, and names made from them
        yield from compare("all but its numbers", *(_without_numbers(path) for path in (made, committed)))
    elif made.suffix not in (".csv", ".json") or SAME_BITS:  # otherwise the last digits of a number may differ
        texts = [path.read_text("utf-8").split("\n") for path in (made, committed)]
        for number, lines in enumerate(zip_longest(*texts, fillvalue="nothing"), 1):
            yield from compare(f"line {number}", *lines)


def _without_numbers(path: Path) -> str:
    return re.sub(r"x[0-9a-f]{8}-\d+|[-\d.]+", "", path.read_text("utf-8"))
