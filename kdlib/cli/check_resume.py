"""`kd check-resume SCRIPT` stops a training script again and again, and compares what it ends in with a whole run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdlib.cli.say import say, say_page
from kdlib.errors import KDError

SHOWN = 15  # last lines of a script that failed


def check_resume(options: argparse.Namespace) -> int:
    """Print what differs after stops, and return 1 if anything does that is equal in two runs without a stop."""
    script = options.script
    if not (Path(script).is_file() if script.endswith(".py") else _is_module(script)):
        raise KDError(f"expected a training script, found no file or module {script}; write train.py, or my.train")
    with tempfile.TemporaryDirectory(prefix="kd-check-resume-") as folder:
        return _compare(options, Path(folder), time.monotonic())


def _compare(options: argparse.Namespace, folder: Path, began: float) -> int:
    whole = _whole(folder / "whole", options)
    say(f"{options.script}: {_what(whole.end)}, in {time.monotonic() - began:.0f} s without a stop")
    stopped, problem = _stopped(folder / "stopped", options, [each["steps"] for each in whole.end])
    if not problem and _what(stopped.end) != _what(whole.end):
        problem = _other_trainings(whole, stopped)
    if problem:
        say(f"WRONG {problem}")
        return 1
    other = _differing(whole, stopped)
    again = _differing(whole, _whole(folder / "again", options)) if other else {}
    wrong = {what: epoch for what, epoch in other.items() if what not in again}
    for what in again:
        say(f"not compared: {what}, which differs between two runs without a stop, too")
    for what, epoch in wrong.items():
        say(f"WRONG {what}: other than without a stop" + (f", first after epoch {epoch}" if epoch else ""))
    _tell_warnings(whole, stopped)
    if wrong:
        say("check-resume: what goes on from step to step, or from epoch to epoch, is not all in the checkpoint.")
        say("kdlib/README.md says in 'Schedules, early stopping, resuming' where it belongs.")
    elif any(what.endswith(": weights") for what in again):
        say(
            "check-resume: the script does not repeat itself, so nothing is known about stops; seed what it draws from."
        )
    else:
        count, seconds = len(stopped.lines("stops")), time.monotonic() - began
        say(f"check-resume: stopped {count} times, the script ends in the same state, after {seconds:.0f} s")
        return 0
    return 1


class _Trial:
    """The processes that run a script in one folder, with or without stops."""

    def __init__(self, folder: Path, options: argparse.Namespace, steps: list[list[int]]) -> None:
        folder.mkdir()
        self.folder, self.log, self.plan = folder, folder / "log.txt", folder / "plan.json"
        self.plan.write_text(json.dumps({"folder": str(folder), "epochs": options.epochs, "steps": steps}))
        self.command = [
            sys.executable,
            "-m",
            "kdlib.cli.resume_trial",
            str(self.plan),
            options.script,
            *options.arguments,
        ]

    def run(self) -> int:
        with self.log.open("ab") as log:
            return subprocess.run(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            ).returncode

    @property
    def has_ended(self) -> bool:
        return (self.folder / "variables.json").exists()

    @property
    def end(self) -> list[dict[str, Any]]:
        return self.lines("end")

    def lines(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def states(self) -> dict[str, str]:
        """The digest of each part at the end, under a name that says which training's it is."""
        parts = {
            f"{_name(number, each)}: {part}": digest
            for number, each in enumerate(self.end)
            for part, digest in each["digests"].items()
        }
        variables = json.loads((self.folder / "variables.json").read_text(encoding="utf-8"))
        return parts | {f"the variable {name}": digest for name, digest in variables.items()}

    def output(self) -> list[str]:
        """The lines that the script has printed."""
        return self.log.read_text(encoding="utf-8", errors="backslashreplace").splitlines()

    def tell_end(self) -> None:
        """Print the last lines of the script's output."""
        say_page("\n".join(f"  {line}" for line in self.output()[-SHOWN:]), error=True)


def _whole(folder: Path, options: argparse.Namespace) -> _Trial:
    trial = _Trial(folder, options, [])
    status = trial.run()
    if not trial.has_ended:
        trial.tell_end()
        raise KDError(
            f"{options.script}: expected a script that runs to its end, found exit status {status}; its last lines are "
            "above; options of kd come before the script, its own ones after it"
        )
    if not any(each["epochs"] for each in trial.end):
        raise KDError(
            f"{options.script}: expected a training by kdlib.epochs with a checkpoint, found none; write "
            "Progress(model, optimizer, checkpoint=path), in the script's own process"
        )
    return trial


def _stopped(folder: Path, options: argparse.Namespace, steps: list[list[int]]) -> tuple[_Trial, str]:
    """Run the script until it has ended, each process to its next checkpoint; the text is what went wrong."""
    trial = _Trial(folder, options, steps)
    before: list[dict[str, Any]] = []
    while True:
        status, stops = trial.run(), trial.lines("stops")
        if trial.has_ended:
            return trial, ""
        if len(stops) == len(before):
            trial.tell_end()
            return trial, f"{_after(before)}, the script fails with status {status}; its last lines are above"
        now = stops[-1]
        if any(each["place"] == now["place"] for each in before):
            where = {each["path"] for each in stops if each["place"][0] == now["place"][0]}
            why = f": it has another checkpoint each time, {now['path']} for example" if len(where) > 1 else ""
            return trial, f"{_after(before)}, the training begins again{why}"
        before = stops


def _after(stops: list[dict[str, Any]]) -> str:
    if not stops:
        return "before the first stop"
    _, epoch, step = stops[-1]["place"]
    return f"after a stop at epoch {epoch + bool(step)}" + (f", step {step}" if step else "'s end")


def _differing(one: _Trial, other: _Trial) -> dict[str, int]:
    """The parts of the state that differ at the end, each with the first epoch after which it does (0: the end)."""
    first: dict[str, int] = {}
    ends = {(each["training"], each["epoch"]): each["digests"] for each in one.lines("epochs")}
    names = {number: _name(number, each) for number, each in enumerate(other.end)}
    for each in other.lines("epochs"):
        name = names.get(each["training"], "")
        for part, digest in each["digests"].items():
            if ends.get((each["training"], each["epoch"]), {}).get(part) != digest:
                first.setdefault(f"{name}: {part}", each["epoch"])
    own, others = one.states(), other.states()
    # A variable of the loop's body is not there if no epoch is left.
    both = [what for what in own | others if (what in own and what in others) or not what.startswith("the variable ")]
    return {what: first.get(what, 0) for what in both if own.get(what) != others.get(what)}


def _tell_warnings(*trials: _Trial) -> None:
    """Print the warnings of kdlib about what a checkpoint lacks."""
    found = [re.search(r"\w+(NotSaved|Start|Batches): .*", line) for trial in trials for line in trial.output()]
    for text in dict.fromkeys(each[0] for each in found if each):
        say(f"  {text}")


def _name(number: int, about: dict[str, Any]) -> str:
    return about["label"] or f"training {number + 1}"


def _is_module(name: str) -> bool:
    with suppress(Exception):  # of a package that does not import; no name of a module
        return importlib.util.find_spec(name) is not None
    return False


def _other_trainings(one: _Trial, other: _Trial) -> str:
    return (
        f"the script has trained {_what(one.end)}, and then {_what(other.end)}: what it leaves behind, such as a file "
        "with a teacher, changes its next run. If it only trains what is not there yet, run this command again"
    )


def _what(end: list[dict[str, Any]]) -> str:
    epochs = sum(each["epochs"] for each in end)
    return f"{epochs} epoch{'s' * (epochs > 1)} of {len(end)} training{'s' * (len(end) > 1)}"
