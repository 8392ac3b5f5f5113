"""Shows how a session goes on: moving bars on a terminal, one plain line for each event elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kdlib.run.events import Event
from kdlib.run.plan import Job

SHOWN = ("training_loss", "validation_loss", "validation_macro_f1", "validation_accuracy")
SETTLED = ("finished", "reused", "failed", "blocked")


@contextmanager
def reporter(jobs: Sequence[Job]) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows the engine's events."""
    if not sys.stdout.isatty():
        yield Plain(jobs)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns) as bars:
        yield Bars(jobs, bars)


class Downloading:
    """Says that a data set is being downloaded and, on a terminal, how much of it has arrived."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, -1  # whole percent

    def __call__(self, file: str, received: int, expected: int) -> None:
        """Show the progress: a file, the bytes of the whole set so far, the bytes expected."""
        if self.shown < 0:
            print(f"{self.name}: downloading {expected / 1e6:.0f} MB", file=sys.stderr, flush=True)
        if (percent := min(100, 100 * received // expected)) > self.shown:
            self.shown = percent
            if sys.stderr.isatty():
                print(f"\r{self.name}: {percent}%", end="\n" if percent == 100 else "", file=sys.stderr, flush=True)

    def waits(self) -> None:
        """Say that another process downloads the same data set."""
        print(f"{self.name}: another process is downloading it; this one waits", file=sys.stderr, flush=True)


class Plain:
    """Prints one line for each event."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.total, self.settled = len(jobs), 0

    def __call__(self, event: Event) -> None:
        """Print one event."""
        if event.kind in SETTLED:
            self.settled += 1
        text = {"epoch": _epoch, "finished": _finished}.get(event.kind, lambda e: f"{e.kind} {e.text}".rstrip())(event)
        print(f"[{self.settled}/{self.total}] {event.job.label}: {text}", flush=True)
        if event.kind == "epoch" and event.text:
            print(f"  notice: {event.text}", flush=True)


class Bars:
    """Shows one bar for the whole session and one for each run that is training."""

    def __init__(self, jobs: Sequence[Job], bars: Any) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}
        self.whole = bars.add_task("all runs", total=len(jobs), numbers="")

    def __call__(self, event: Event) -> None:
        """Move the bars for one event."""
        run = event.job.description.id
        if event.kind == "started":
            self.tasks[run] = self.bars.add_task(event.job.label, total=None, numbers="")
        elif event.kind == "epoch":
            self.bars.update(self.tasks[run], completed=event.epoch, total=event.count, numbers=_numbers(event))
        elif event.kind in (*SETTLED, "stopped"):
            self.bars.advance(self.whole, event.kind in SETTLED)
            if run in self.tasks:
                self.bars.remove_task(self.tasks.pop(run))
        if event.text:
            self.bars.console.print(f"{event.job.label}: {event.kind}: {event.text}", markup=False)


def _epoch(event: Event) -> str:
    return f"epoch {event.epoch}/{event.count}  {_numbers(event)}"


def _finished(event: Event) -> str:
    return f"finished in {event.numbers['seconds']:.0f} s"


def _numbers(event: Event) -> str:
    return "  ".join(f"{name} {event.numbers[name]:.4f}" for name in SHOWN if name in event.numbers)
