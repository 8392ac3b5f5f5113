"""Import this before torchvision: it lets torchvision's models load beside a torch that its compiled operators do not fit.

Where those operators cannot be loaded (a CPU build of torch beside torchvision's default wheel), `import torchvision` stops at
"operator torchvision::nms does not exist", since it describes two detection operators that no one has declared.  Nothing here
detects anything, so the two are declared without a body: calling one still fails.  Where the operators do load, nothing happens.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_missing() -> list[str]:
    """Load torchvision's compiled operators if they fit this torch, else declare the two it must have; gives those declared."""
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


# Kept, because what it declares ends with it.
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
DECLARED = declare_missing()
