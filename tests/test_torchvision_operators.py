"""torchvision with a torch that its compiled operators do not fit, and with one that they fit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kdlib.torchvision_operators as operators

ROOT = Path(__file__).parents[1]

# A fresh interpreter: the tests' own process has loaded modules that would hide missing operators.
WITHOUT_AND_WITH = """
import importlib, sys
try:
    import torchvision
except RuntimeError as error:
    print("without:", error)
else:
    print("fits")
    sys.exit()
for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
    del sys.modules[name]
import kdlib.torchvision_operators
import torchvision.models
print("with:", *kdlib.torchvision_operators.DECLARED)
"""

PRESENT = """
import importlib.util, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torchvision" else find(name, *rest)
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl(name, lambda dets, scores, iou_threshold: scores + iou_threshold, "CPU")
from kdlib.torchvision_operators import DECLARED, declare_missing
found = [getattr(torch.ops.torchvision, name)(torch.zeros(1, 4), torch.ones(1), 0.5).item() for name in ("nms", "qnms")]
print(DECLARED, declare_missing(), found)
"""


def python(script):
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_torchvision_loads_with_the_declarations_and_not_without():
    lines = python(WITHOUT_AND_WITH)
    if lines == ["fits"]:
        pytest.skip("the installed torchvision fits the installed torch, so nothing is missing")
    assert lines == ["without: operator torchvision::nms does not exist", "with: nms qnms"]


@pytest.mark.slow
def test_operators_that_are_there_are_left_alone():
    assert python(PRESENT) == ["[] [] [1.5, 1.5]"]


def test_nothing_is_declared_twice():
    assert operators.declare_missing() == []


@pytest.mark.parametrize("name", ["nms", "qnms"])
def test_a_declared_operator_cannot_be_called(name):
    if name not in operators.DECLARED:
        pytest.skip(f"the installed torchvision brings {name} itself")
    with pytest.raises(NotImplementedError, match=f"torchvision::{name}"):
        getattr(torch.ops.torchvision, name)(torch.zeros(1, 4), torch.ones(1), 0.5)
