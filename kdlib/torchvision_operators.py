"""Import this before torchvision: its models then load even if its compiled operators do not fit the installed torch.

A CPU build of torch cannot load the operators of torchvision's default wheel, for example. `import torchvision` then
fails with "operator torchvision::nms does not exist", because it describes two detection operators that nothing has
declared. This module declares the two without a body; a call of one still fails. If the operators do load, it declares
nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing() -> list[str]:
    """Load torchvision's compiled operators if they fit this torch, otherwise declare the two that it must have.

    Return the names of the operators that were declared.
    """
    spec = importlib.util.find_spec("torchvision")  # finds the package without running it
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for library in sorted(path for folder in folders for path in Path(folder).glob("_C.*")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError):  # built for another torch, or for a CUDA that is not here
            continue
    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        _OPERATORS.define(name + SCHEMA)  # type: ignore[no-untyped-call]
    return missing


# Kept in a variable: when the object is deleted, its declarations end.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
DECLARED = declare_missing()
