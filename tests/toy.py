"""A tiny experiment, copied by the tests to `replications/toy/experiment.py` of a temporary folder.

Run as a script it is a server that forks: importing torch takes seconds, and the tests want many processes to kill.
Environment variables, read by the copy only: TOY_LOG is a file that gets a line for every epoch begun, TOY_SLEEP makes
every step so many seconds longer, TOY_KILL=place:n ends the process by SIGKILL at the n-th passage of a place.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlib import files, training
from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import cross_entropy, soft_target_kl
from kdlib.metrics import accuracy
from kdlib.run import engine
from kdlib.run import store as runs
from kdlib.run.experiment import Arm, Compute, Experiment, Profile, Run, load_experiment
from kdlib.run.limit import Limit
from kdlib.run.plan import plan
from kdlib.run.store import Result, Store
from kdlib.seeds import generator

ROWS, SIZE, CLASSES, EPOCHS = 40, 16, 3, 3
STEPS = 3  # an epoch


@dataclass(frozen=True)
class Config:
    epochs: int = EPOCHS
    rate: float = 0.01
    note: str = ""


@dataclass(frozen=True)
class Data:
    train: Examples
    test: Examples
    digest: str = "toy-data"
    name: str = "toy"


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    def examples(part: str) -> Examples:
        inputs = torch.randn(ROWS, 4, generator=generator(0, part))
        return Examples(inputs, inputs[:, :CLASSES].argmax(1), f"toy-data/{part}")

    return Data(examples("train"), examples("test"))


def network(stream: torch.Generator) -> nn.Module:
    """Dropout draws from the global generator and batch norm has buffers: both must survive a resume."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=stream))
    return model


def train(run: Run, objective: Callable[[Tensor, Batch], Tensor], keep_targets: bool = False) -> Result:
    data: Data = run.data
    model = network(run.generator("weights"))
    soft = run.soft_targets("teacher", "train", data.train) if run.parents else None
    batches = Batches(data.train, SIZE, run.seed, soft)
    progress = run.progress(model, torch.optim.Adam(model.parameters()))

    def logged(epoch: int) -> Iterator[Batch]:
        if log := os.environ.get("TOY_LOG"):
            with Path(log).open("a") as file:
                file.write(f"{run.label}, epoch {epoch}\n")
        return batches(epoch)

    for epoch in training.epochs(
        progress, logged, objective, count=run.config.epochs, seed=run.seed, rate=lambda epoch: run.config.rate / epoch
    ):
        logits = training.predict_logits(model, data.test.inputs)
        progress.record(test_loss=float(cross_entropy(logits, data.test.labels)))
        if progress.is_lowest("test_loss"):
            progress.keep("best")
        if epoch == 1:
            progress.keep("early")
    progress.keep("final")
    metrics, targets = {}, {}
    for snapshot, weights in progress.kept.items():
        model.load_state_dict(weights)
        logits = training.predict_logits(model, data.test.inputs)
        loss = float(cross_entropy(logits, data.test.labels))
        metrics[snapshot] = {"accuracy": accuracy(logits, data.test.labels), "loss": loss}
        if keep_targets:
            targets[f"{snapshot}.train"] = training.predict_logits(model, data.train.inputs)
    return Result(metrics, progress.history, progress.kept, targets)


def hard(outputs: Tensor, batch: Batch) -> Tensor:
    return cross_entropy(outputs, batch.labels)


def soft(outputs: Tensor, batch: Batch) -> Tensor:
    assert batch.soft is not None
    return soft_target_kl(outputs, batch.soft, 2.0)


def train_teacher(run: Run) -> Result:
    return train(run, hard, keep_targets=True)


def train_student(run: Run) -> Result:
    return train(run, hard)


def train_distilled(run: Run) -> Result:
    return train(run, soft)


def train_assistant(run: Run) -> Result:
    return train(run, soft, keep_targets=True)


def train_refused(run: Run) -> Result:
    raise KDError(f"{run.label}: a reason a user can act on")


def train_crashed(run: Run) -> Result:
    raise ZeroDivisionError("ünexpected")  # not every locale can write this


def train_killed(run: Run) -> Result:
    """Ended from outside at its first try."""
    assert run.checkpoint is not None
    marker = run.checkpoint.parent.with_name("killed-once")
    if not marker.exists():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(run, hard)


def train_always_killed(run: Run) -> Result:
    os.kill(os.getpid(), signal.SIGKILL)
    return train(run, hard)


MODES = ("controlled",)
ARMS = (
    Arm("teacher", MODES, train_teacher),
    Arm("early_teacher", MODES, train_teacher, snapshot="early"),
    Arm("unkept", MODES, train_student, snapshot="absent"),
    Arm("refused", MODES, train_refused),
    Arm("below_refused", MODES, train_assistant, {"teacher": "refused"}),
    Arm("below_below_refused", MODES, train_distilled, {"teacher": "below_refused"}),
    Arm("crashed", MODES, train_crashed),
    Arm("diverged", MODES, train_student, change={"rate": 1e30}),
    Arm("killed", MODES, train_killed),
    Arm("always_killed", MODES, train_always_killed),
    Arm("below_killed", MODES, train_distilled, {"teacher": "always_killed"}),
    Arm("baseline", MODES, train_student),
    Arm("distilled", MODES, train_distilled, {"teacher": "teacher"}),
    Arm("distilled_early", MODES, train_distilled, {"teacher": "early_teacher"}),
    Arm("assistant", MODES, train_assistant, {"teacher": "teacher"}),
    Arm("grandchild", MODES, train_distilled, {"teacher": "assistant"}),
)
PROFILES = {"quick": Profile(Config(), seeds=1), "other": Profile(Config(note="other"), seeds=1)}
EXPERIMENT = Experiment(
    source="toy",
    protocol=1,
    data=("toy",),
    load_data=load_data,
    arms=ARMS,
    profiles=PROFILES,
    check=("teacher",),
    banded=("accuracy",),
)


# ---- traps


def set_traps() -> None:
    """Let this process be killed at the place TOY_KILL names, and train slowly if TOY_SLEEP says so."""
    if seconds := float(os.environ.get("TOY_SLEEP", "0")):
        wrap(training, "train_step", before=lambda *_: time.sleep(seconds))
    place, _, number = os.environ.get("TOY_KILL", "").partition(":")
    passages = iter(range(int(number) - 1, -1, -1) if number else ())

    def fatal(*arguments: Any) -> None:
        if next(passages, None) == 0:
            if place == "half written":
                path, content = arguments
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f".{path.name}.torn").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    if place == "step":
        wrap(training, "train_step", before=fatal)
    elif place == "half written":
        wrap(files, "atomic_write", before=fatal)
        wrap(runs, "atomic_write", before=fatal)
    elif place == "before rename":
        wrap(os, "replace", before=fatal)
    elif place == "after rename":
        wrap(os, "replace", after=fatal)
    elif place == "after write":  # of one file, before the next: between weights and manifest, say
        wrap(files, "atomic_write", after=fatal)
        wrap(runs, "atomic_write", after=fatal)


def wrap(
    owner: Any, name: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*arguments: Any) -> Any:
        if before:
            before(*arguments)
        value = original(*arguments)
        if after:
            after(*arguments)
        return value

    setattr(owner, name, wrapped)


# ---- the server that forks


def session(order: Mapping[str, Any]) -> dict[str, Any]:
    """One session as the command line has them; what came of it, JSON-able."""
    os.environ.update(order["env"])
    os.chdir(order["root"])
    sys.path.insert(0, order["root"])
    if order["limit"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is then an error: like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], resource.RLIM_INFINITY))
    events: list[list[Any]] = []
    answer: dict[str, Any] = {"events": events, "error": ""}
    try:
        experiment = load_experiment("toy")
        jobs = plan(experiment, experiment.profile("quick"), order["arms"], order["seeds"], Compute(), {})
        summary = engine.execute(
            jobs,
            Store(Path(order["store"])),
            compute=Compute(),
            folders={},
            workers=order["workers"],
            limit=Limit(time.monotonic() + order["seconds"]) if order["seconds"] else None,
            report=lambda event: events.append([event.kind, event.job.label, event.text]),
        )
        arms = {job.description.id: f"{job.arms[0]}/{job.description.seed}" for job in jobs}
        answer["finished"] = {arms[run]: str(value.folder) for run, value in summary.finished.items()}
        answer["left"] = [arms[run] for run in summary.left]
        answer["failed"] = {arms[run]: text for run, text in summary.failed.items()}
        answer["blocked"] = {arms[run]: parent for run, parent in summary.blocked.items()}
    except KDError as error:
        answer["error"] = f"KDError: {error}"
    except BaseException:
        answer["error"] = traceback.format_exc()
    return answer


def serve() -> None:
    """Fork a process for every line of standard input and say its number; "wait N" answers how it ended."""
    torch.set_num_threads(1)
    model = network(generator(0, "warm up"))  # the first step of an optimizer imports much of torch
    model(torch.zeros(2, 4)).sum().backward()
    torch.optim.Adam(model.parameters()).step()
    for line in sys.stdin:
        if line.startswith("wait "):
            _, status = os.waitpid(int(line.split()[1]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        sys.stdin = None  # type: ignore[assignment]  # the parent's
        order = json.loads(line)
        answer = session(order)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(order["answer"]).write_text(json.dumps(answer))
        os._exit(0)


if __name__ == "__main__":
    serve()
elif __name__.startswith("replications."):
    set_traps()
