"""`kd gpu-check` asks whether a device computes what it should, how fast students are on it, and more.

Each line is one question and its answer. The command needs no data, no network and no numba.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kdlib.batches import Batches, Examples
from kdlib.captured import WARM_UP
from kdlib.cli.gpu_speed import BATCH, CLASSES, batch_of, distillation, speeds, step_of, students
from kdlib.cli.say import say
from kdlib.errors import KDError
from kdlib.networks import keras_adam
from kdlib.precision import arithmetic, set_precision
from kdlib.replicas import side_by_side
from kdlib.run.devices import device_of
from kdlib.run.environment import device_name
from kdlib.run.experiment import replications
from kdlib.run.session import prepare, records_of, train
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import Progress, epochs

SAME = 2e-4  # relative difference of a loss in float32 on two devices
IEEE = 1e-5  # relative error of a product of 512 terms; TF32's is about 3e-4


@dataclass(frozen=True)
class Answer:
    """One line of the check."""

    text: str
    right: bool = True


def gpu_check(options: argparse.Namespace) -> int:
    """Print one line for each question; return 1 if an answer is wrong."""
    device = torch.device(device_of(options.device))
    began, wrong, count = time.monotonic(), 0, 0
    for question in QUESTIONS:
        for answer in _answers(question, device):
            count, wrong = count + 1, wrong + (not answer.right)
            say(f"{'ok   ' if answer.right else 'WRONG'} {answer.text}")
    seconds = time.monotonic() - began
    say(f"gpu-check: {count - wrong} of {count} lines are right, after {seconds:.0f} s on {device_name(device.type)}")
    return 1 if wrong else 0


def _answers(question: Callable[[torch.device], Iterator[Answer]], device: torch.device) -> Iterator[Answer]:
    """The answers to a question; an error is a wrong one, so that the other questions are still asked."""
    try:
        yield from question(device)
    except Exception as error:
        yield Answer(f"{question.__name__}: {type(error).__name__}: {str(error).splitlines()[0]}", right=False)


# ---- what is there, and what float32 is


def versions(device: torch.device) -> Iterator[Answer]:
    """Name the versions and the device."""
    cuda = f", CUDA {torch.version.cuda}, {torch.cuda.device_count()} device(s)" if device.type == "cuda" else ""
    yield Answer(f"Python {platform.python_version()}, torch {torch.__version__}{cuda}: {device_name(device.type)}")


def precision(device: torch.device) -> Iterator[Answer]:
    """Compare float32 products and convolutions with float64: they must be IEEE float32, not TF32."""
    set_precision("float32")
    draws = generator(0, "gpu-check")
    a, b = torch.randn(256, 512, generator=draws), torch.randn(512, 256, generator=draws)
    pictures, kernel = a.view(2, 64, 32, 32), torch.randn(32, 64, 3, 3, generator=draws)
    for name, function, x, y in (
        ("products", torch.matmul, a, b),
        ("convolutions", torch.nn.functional.conv2d, pictures, kernel),
    ):
        exact = function(x.double(), y.double())
        error = float((function(x.to(device), y.to(device)).cpu() - exact).abs().max() / exact.abs().max())
        setting = arithmetic()[name]
        yield Answer(
            f"float32 {name}: set to {setting}, relative error {error:.1e}", setting == "ieee" and error < IEEE
        )


# ---- the replications


def replicated(device: torch.device) -> Iterator[Answer]:
    """Compare the first loss of each replication's networks with the CPU's."""
    names = replications(Path.cwd())
    if not names:
        yield Answer("expected folders replications/<name> here, found none; go to the repository", right=False)
    for name in names:
        expected = _first_losses(name, "cpu")
        if device.type == "cpu":
            yield Answer(f"{name}: {', '.join(expected)} train on the CPU; there is no other device to compare with")
            continue
        found = _first_losses(name, str(device))
        worst = max(abs(found[arm] / loss - 1) for arm, loss in expected.items())
        yield Answer(
            f"{name}: first losses of {', '.join(expected)} within {worst:.0e} of the CPU's (at most {SAME:.0e})",
            worst <= SAME,
        )


def _first_losses(name: str, device: str) -> dict[str, float]:
    """The first loss of each check arm of a replication, and of the arms that it needs, in profile smoke."""
    with tempfile.TemporaryDirectory(prefix="kd-gpu-check-") as store:
        session = prepare(name, "smoke", seeds=(0,), device=device, store=Path(store), workers=1)
        session = replace(session, arms=session.experiment.check)
        jobs = session.jobs()
        summary = train(session, jobs)
        if summary.failed:
            raise KDError(f"{name} on {device}: {next(iter(summary.failed.values()))}")
        return {" = ".join(r.arms): float(r.trace["first_loss"]) for r in records_of(session, jobs, summary) if r.trace}


# ---- many students


def captured(device: torch.device) -> Iterator[Answer]:
    """Compare steps from a CUDA graph with steps launched one by one."""
    if device.type != "cuda":
        yield Answer("CUDA graphs: none on this device; steps are launched one by one")
        return
    for count in (1, 4):
        ends = []
        for graph in (False, True):
            torch.manual_seed(0)
            model = students(count, device)
            step = step_of(model, graph)
            batch = batch_of(count, device)
            for _ in range(12):
                step(batch)
            ends.append(torch.cat([value.double().flatten() for value in model.parameters()]))
        worst = float((ends[0] - ends[1]).abs().max())
        text = f"weights differ by {worst:.1e} at most from steps launched one by one"
        yield Answer(f"CUDA graph of {count} student(s): {text}", worst <= 1e-4)


def resumed(device: torch.device) -> Iterator[Answer]:
    """Compare a training that is killed after an epoch, and within one, with one without interruption."""
    draws, rows = generator(0, "resumed"), (WARM_UP + 3) * BATCH + 8 if device.type == "cuda" else BATCH + 8
    inputs = torch.randint(256, (rows, 3, 32, 32), dtype=torch.uint8, generator=draws)
    soft = SoftTargets(torch.randn(rows, CLASSES, generator=draws), "made", "made")
    examples = Examples(inputs, soft.logits.argmax(1), "made").to(device)

    def trained(path: Path | None, steps: int = 0, until: int = 3) -> dict[str, Tensor] | None:
        """Train; be killed after a checkpoint that follows so many steps, or at the end of epoch `until`."""
        made = 0

        def on_step(progress: Progress) -> None:
            nonlocal made
            made += 1
            if made == steps:
                progress.save()
                raise _Killed

        model = students(2, device)
        progress = Progress(model, keras_adam(model.parameters()), checkpoint=path, on_step=on_step, graphs=True)
        batches = side_by_side([Batches(examples, BATCH, seed, soft) for seed in (0, 1)])
        try:
            for epoch in epochs(progress, batches, distillation, count=3, seed=(0, 1)):
                if epoch > until:
                    return None
        except _Killed:
            return None
        return {name: value.cpu() for name, value in model.state_dict().items()}

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        trained(path, until=1)  # one epoch has a checkpoint; the second one is lost
        trained(path, steps=1)
        again, whole = trained(path), trained(None)
    assert again is not None
    assert whole is not None
    equal = all(torch.equal(again[name], value) for name, value in whole.items())
    yield Answer(f"a killed and resumed training: {'equal' if equal else 'NOT equal'} to the last bit", equal)


class _Killed(Exception):
    """Stands for the end of the process."""


def fast(device: torch.device) -> Iterator[Answer]:
    """Measure each way to train students, and say which is the fastest."""
    best = None
    for speed in speeds(device):
        yield Answer(str(speed))
        if best is None or speed.rate * speed.students > best.rate * best.students:
            best = speed
    assert best is not None
    options = f"--replicas {best.students} --convolutions {best.convolutions}{'' if best.graph else ' --no-graphs'}"
    yield Answer(f"fastest: {best}; train with {options}")


QUESTIONS = (versions, precision, replicated, captured, resumed, fast)
