"""One process of `kd check-resume`: it runs a training script, and ends where a checkpoint is written, if it is to.

    python -m kdlib.cli.resume_trial PLAN SCRIPT [ARGUMENTS ...]

PLAN is a JSON file: `folder` gets the checkpoints and notes, no loop trains more than `epochs` epochs, and `steps` has
for each training the number of steps of each epoch, or is empty for a process that does not stop. The script remains as
it is: in this process only, `Progress` writes its checkpoints into the folder, and `epochs` ends earlier.
"""

from __future__ import annotations

import json
import operator
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import kdlib.api
import kdlib.training
from kdlib.files import identity, sha256
from kdlib.packing import state_digest
from kdlib.progress import Progress
from kdlib.trainable import state_of
from kdlib.training import epochs

__all__ = ["Trial", "digests"]


def digests(progress: Progress) -> dict[str, str]:
    """Return a SHA-256 of each part of a training's state, under the name of the part."""
    history, network = progress.history, progress.network
    parts: dict[str, Any] = {
        "weights": [network.state_dict(), progress.layers.buffers()],
        "kept weights": progress.kept,
        "learning rates": progress.rates.values(progress.optimizers),
        "optimizer": [state_of(each) for each in progress.optimizers.values()],
    }
    for name, extra in progress.extras.items():
        if name not in progress.optimizers:
            parts[f"extra {name}"] = extra.state_dict()
    for key in sorted({key for entry in history for key in entry}):
        parts[f"history of {key}"] = [entry.get(key) for entry in history]
    return {name: state_digest(part, name) for name, part in parts.items()}


def _digest_of_variable(name: str, value: Any) -> str:
    """The digest of a network, a tensor, an array, or a map or list of them; "" of anything else."""
    with suppress(Exception):  # of somebody else's objects
        if name[:1] != "_" and isinstance(value, nn.Module | Tensor | np.ndarray | dict | list):
            return state_digest(value.state_dict() if isinstance(value, nn.Module) else value, name)
    return ""


class Trial:
    """What this process does with the script's trainings, which are numbered in the order in which they are made."""

    def __init__(self, folder: Path, count: int, steps: list[list[int]]) -> None:
        self.folder, self.count, self.steps = folder, count, steps
        self.trainings: list[Progress] = []
        self.paths: list[str] = []  # of the checkpoints, as the script gives them
        self.counted: list[dict[int, int]] = []  # the steps of each epoch, by the number of the epoch

    def _number(self, progress: Progress) -> int:
        return next(number for number, each in enumerate(self.trainings) if each is progress)

    def install(self) -> None:
        """Put this trial between the script and `kdlib`."""
        begin, save = Progress.__init__, Progress.save

        def begun(progress: Progress, *arguments: Any, checkpoint: Path | str | None = None, **rest: Any) -> None:
            begin(progress, *arguments, checkpoint=None if checkpoint is None else self.place(checkpoint), **rest)
            if checkpoint is not None:
                self.trainings.append(progress)
                self.counted.append({})

        def saved(progress: Progress) -> None:
            before = None if progress.checkpoint is None else identity(progress.checkpoint)
            save(progress)
            if progress.checkpoint is not None and identity(progress.checkpoint) != before:
                self.written(progress)

        def limited(progress: Progress, *arguments: Any, count: Any, **rest: Any) -> Iterator[int]:
            is_short = not hasattr(count, "__index__") or operator.index(count) <= self.count  # a wrong one is refused
            return epochs(progress, *arguments, count=count if is_short else self.count, **rest)

        for name, value in {"__init__": begun, "save": saved, "due": property(self.is_due)}.items():
            setattr(Progress, name, value)
        for module in (kdlib.training, kdlib.api):
            setattr(module, "epochs", limited)  # noqa: B010 - for mypy, a module has no names to set

    def place(self, checkpoint: Path | str) -> Path:
        """The file of a checkpoint in the trial's folder: another path of the script is another file."""
        path = Path(checkpoint).absolute()
        self.paths.append(str(path))
        return self.folder / f"{sha256(str(path).encode())[:12]}-{path.name}"

    def is_due(self, progress: Progress) -> bool:
        """Whether a checkpoint is written after this step: in the middle of an epoch that this process has begun."""
        if not any(each is progress for each in self.trainings):
            return False
        number, epoch, done = self._number(progress), progress.epoch + 1, len(progress.losses)
        self.counted[number][epoch] = done
        return bool(self.steps) and not progress.resumed.losses and done == self._half(number, epoch)

    def _half(self, number: int, epoch: int) -> int:
        every = self.steps[number] if number < len(self.steps) else []
        return max(1, every[epoch - 1] // 2) if epoch <= len(every) else 0

    def written(self, progress: Progress) -> None:
        """Note the state at the end of an epoch; end the process if it is one that stops."""
        number, within = self._number(progress), len(progress.losses)
        if not within:
            self._note("epochs", {"training": number, "epoch": progress.epoch, "digests": digests(progress)})
        if self.steps and not (within and progress.resumed.losses):
            self._note("stops", {"place": [number, progress.epoch, within], "path": self.paths[number]})
            os._exit(0)  # as a kill: nothing that the script wants to do at its end is done

    def _note(self, name: str, value: Any) -> None:
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")

    def end(self, variables: Mapping[str, Any]) -> None:
        """Note the states at the end of the script, and what its variables hold: networks, tensors, maps of them."""
        held = {name: digest for name, value in variables.items() if (digest := _digest_of_variable(name, value))}
        for number, progress in enumerate(self.trainings):
            steps = [count for _, count in sorted(self.counted[number].items())]
            about = {"label": progress.label, "epochs": progress.epoch, "steps": steps, "digests": digests(progress)}
            self._note("end", about)
        (self.folder / "variables.json").write_text(json.dumps(held))  # last: it says that the script has ended


def run(plan: Path, script: str, arguments: list[str]) -> None:
    """Run a script, a path that ends with `.py` or the name of a module, as Python would, in a trial."""
    given = json.loads(plan.read_text(encoding="utf-8"))
    trial = Trial(Path(given["folder"]), given["epochs"], given["steps"])
    trial.install()
    sys.argv, variables = [script, *arguments], dict[str, Any]()
    try:
        if script.endswith(".py"):
            sys.path[0] = str(Path(script).absolute().parent)
            variables = runpy.run_path(script, run_name="__main__")
        else:
            variables = runpy.run_module(script, run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if ending.code not in (None, 0):
            raise
    trial.end(variables)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
