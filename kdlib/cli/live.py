"""Shows how a session goes on: moving bars on a terminal, lines of plain text in a pipe, a log or a dumb terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdlib.cli.say import say
from kdlib.errors import needs
from kdlib.run.events import Event
from kdlib.run.plan import Job, grouped
from kdlib.terminal import duration, printable, shortened, width_of, words_of

if TYPE_CHECKING:
    from rich.progress import Progress

SETTLED = ("finished", "reused", "failed", "blocked")
WIDTH = 80  # columns of a plain line
SECONDS = 5.0  # between two plain lines of one training, except its first and last epoch
LEAST = 12  # columns of a label
OTHERS = 48  # columns of a bar's line without the label and the bar itself


@contextmanager
def reporter(jobs: Sequence[Job]) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows the engine's events."""
    needs("suite", "rich")
    from rich.console import Console

    console = Console()
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        plain = Plain(jobs)
        yield plain
        plain.close()
        return
    bars = Bars(jobs, console)
    with bars.progress:
        yield bars


def _progress(console: Any, labels: int) -> Progress:
    """Bars of one line each, with `labels` columns for the labels, so that no line moves when another comes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(width=labels, no_wrap=True)),
        BarColumn(bar_width=_bar_width(console)),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[number]}", markup=False),
        console=console,
    )


def _bar_width(console: Any) -> int:
    return 8 if console.width < 100 else 24


class Downloading:
    """Says that a data set is being downloaded and, on a terminal, how much of it has arrived."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, -1  # whole percent

    def __call__(self, file: str, received: int, expected: int) -> None:
        """Show the progress: a file, the bytes of the whole set so far, the bytes expected."""
        if self.shown < 0:
            say(f"{self.name}: downloading {expected / 1e6:.0f} MB", error=True)
        if (percent := min(100, 100 * received // max(1, expected))) > self.shown:
            self.shown = percent
            if sys.stderr.isatty():
                say(f"{self.name}: {percent}%", error=True, start="\r", end="\n" if percent == 100 else "")

    def waits(self) -> None:
        """Say that another process downloads the same data set."""
        say(f"{self.name}: another process is downloading it; this one waits", error=True)


# ---- what both ways of showing know


@dataclass(frozen=True)
class Left:
    """The time left until a moment of `time.monotonic()`, as text; empty if that moment is not known."""

    end: float | None = None

    def __str__(self) -> str:
        return "" if self.end is None else f"{duration(max(0.0, self.end - time.monotonic()))} left"


class Trainings:
    """The trainings of a session: their labels, how far each is, and when it will end.

    Runs that are trained side by side are one training, because they move together.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        groups = grouped(jobs)
        self.labels = {name: label(group) for name, group in groups.items()}
        self.sizes = {name: len(group) for name, group in groups.items()}
        self.total, self.settled, self.trained = len(jobs), 0, 0
        self.began: dict[str, float] = {}
        self.before: dict[str, int] = {}  # epochs that an earlier session has trained
        self.shares: dict[str, tuple[float, float]] = {}  # of a training: in runs, done in this session and in all
        self.start = time.monotonic()

    def take(self, event: Event) -> str:
        """Take an event; return the name of its training."""
        name = name_of(event.job)
        if event.kind == "started":
            self.began[name] = time.monotonic()
            self.before.pop(name, None)  # the process was replaced: the run goes on from an earlier checkpoint
        elif event.kind == "epoch":
            self.before[name] = min(self.before.get(name, event.epoch - 1), event.epoch - 1)
            here, size = event.epoch - self.before[name], self.sizes[name]
            self.shares[name] = here / event.count * size, event.epoch / event.count * size
        elif event.kind in SETTLED:
            self.settled += 1
            self.trained += event.kind == "finished"
            self.shares.pop(name, None)
        return name

    def left(self, event: Event) -> Left:
        """Return the time that a training's other epochs will take, at the pace of those in this session."""
        name, now = name_of(event.job), time.monotonic()
        done = event.epoch - self.before[name]
        return Left(now + (now - self.began.get(name, self.start)) / done * (event.count - event.epoch))

    def session_left(self) -> Left:
        """Return the time that the other runs will take if they are like those trained so far."""
        now = time.monotonic()
        done = self.trained + sum(here for here, _ in self.shares.values())
        rest = self.total - self.settled - sum(whole for _, whole in self.shares.values())
        return Left(now + (now - self.start) / done * rest) if done and rest > 0 else Left()


def name_of(job: Job) -> str:
    """Return the name of a job's training: that of its group, or the run's id."""
    return job.group or job.description.id


def label(jobs: Sequence[Job]) -> str:
    """Return the short name of runs that are trained side by side: one arm and seed, and how many others there are.

    Of the arms that share a run, it is the shortest name: "baseline +2 s0".
    """
    first = jobs[0]
    arms = f" +{len(first.arms) - 1}" if len(first.arms) > 1 else ""
    runs = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return printable(f"{min(first.arms, key=len)}{arms} s{first.description.seed}{runs}")


def number_of(event: Event) -> str:
    """Return the one number that matters: the experiment's validation metric, else a loss; empty if there is none."""
    names = [name for name in event.numbers if name.startswith("validation_")]
    ranked = [*(name for name in names if name != "validation_loss"), *names, "training_loss"]
    name = next((name for name in ranked if name in event.numbers), "")
    return printable(f"{words_of(name)} {event.numbers[name]:.4f}") if name else ""


# ---- plain lines


class Plain:
    """Prints a line for each event, but for one training at most one epoch in some seconds."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.trainings, self.reused = Trainings(jobs), 0
        self.said: dict[str, float] = {}  # when the last epoch of a training was printed
        self.ended: set[str] = set()  # trainings of which the last epoch is printed

    def __call__(self, event: Event) -> None:
        """Print one event, if it is time."""
        again = name_of(event.job) in self.trainings.began
        name = self.trainings.take(event)
        if event.kind == "reused":
            self.reused += 1  # one line for all of them
            return
        self.close()
        if event.kind == "epoch" and event.text:
            self._say(label([event.job]), _other(event))
        if event.kind == "epoch":
            if self._is_due(name, event):
                self._say(self.trainings.labels[name], _epoch(event, self.trainings.left(event)))
        elif event.kind != "started":
            self._say(label([event.job]), _other(event))
        elif not again:
            self._say(self.trainings.labels[name], "started")

    def close(self) -> None:
        """Print what is not printed yet."""
        if self.reused:
            runs = f"{self.reused} run{'s' * (self.reused > 1)}"
            say(f"{self._head()}{runs} reused from the store")
            self.reused = 0

    def _is_due(self, name: str, event: Event) -> bool:
        """Whether an epoch is the first of a training in this session, the last, or late enough after another."""
        now = time.monotonic()
        if event.epoch == event.count:
            due = name not in self.ended
            self.ended.add(name)
        elif due := now - self.said.get(name, -math.inf) >= SECONDS:
            self.said[name] = now
        return due

    def _head(self) -> str:
        return f"[{self.trainings.settled}/{self.trainings.total}] "

    def _say(self, who: str, text: str) -> None:
        text = printable(text)
        room = WIDTH - len(self._head()) - len(text) - 2
        say(f"{self._head()}{shortened(who, max(LEAST, room))}: {text}")


def _epoch(event: Event, left: Left) -> str:
    rest = str(left) if event.epoch < event.count else ""
    return ", ".join(filter(None, [f"epoch {event.epoch}/{event.count}", number_of(event), rest]))


def _other(event: Event) -> str:
    if event.kind == "finished":
        return f"finished in {duration(event.numbers['seconds'])}"
    if event.kind == "blocked":  # its text says so
        return event.text
    return f"{'notice' if event.kind == 'epoch' else event.kind}: {event.text}".removesuffix(": ")


# ---- bars


class Bars:
    """Shows one bar for the whole session and one for each training, in a rich `console`."""

    def __init__(self, jobs: Sequence[Job], console: Any) -> None:
        self.trainings = Trainings(jobs)
        longest = max(map(width_of, self.trainings.labels.values()), default=0)
        self.width = max(LEAST, min(longest, console.width - OTHERS - _bar_width(console)))
        self.progress = _progress(console, self.width)
        self.tasks: dict[str, Any] = {}
        self.whole = self.progress.add_task("all runs", total=len(jobs), left=Left(), number="")

    def __call__(self, event: Event) -> None:
        """Move the bars for one event."""
        name = self.trainings.take(event)
        if event.kind == "started" and name not in self.tasks:
            who = shortened(self.trainings.labels[name], self.width)
            self.tasks[name] = self.progress.add_task(who, total=None, left=Left(), number="")
        elif event.kind == "epoch":
            known: dict[str, Any] = {"left": self.trainings.left(event), "number": number_of(event)}
            self.progress.update(self.tasks[name], completed=event.epoch, total=event.count, **known)
        elif event.kind in (*SETTLED, "stopped") and name in self.tasks:
            self.progress.remove_task(self.tasks.pop(name))
        self.progress.update(self.whole, completed=self.trainings.settled, left=self.trainings.session_left())
        if event.text:
            text = printable(f"{label([event.job])}: {_other(event)}")
            self.progress.console.print(text, markup=False, highlight=False)
