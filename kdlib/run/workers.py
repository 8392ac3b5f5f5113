"""Training processes: each trains one group at a time and tells its events to the session's process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

import torch

from kdlib.errors import KDError
from kdlib.run.events import Report
from kdlib.run.group import Group, Outcome, Setting, train_group

__all__ = ["Here", "Workers"]

# What ends a session: Ctrl-C, a job's end, and Slurm's warning before it. Windows lacks the last one.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Here:
    """Trains one group after the other in this process."""

    def __init__(self, setting: Setting, report: Report) -> None:
        self.setting, self.report, self.free, self.busy = setting, report, 1, False
        self.done: list[tuple[Group, Outcome]] = []
        torch.set_num_threads(setting.compute.threads)

    def begin(self, group: Group) -> None:
        """Train a group to its end."""
        self.done.append((group, train_group(group, self.setting, self.report)))

    def ended(self) -> list[tuple[Group, Outcome]]:
        """Return the groups that have ended since the last call, and how."""
        done, self.done = self.done, []
        return done

    def __enter__(self) -> Here:
        """Nothing has to be started."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing has to be ended."""


class Workers:
    """Trains groups in `count` spawned processes side by side."""

    def __init__(self, count: int, setting: Setting, report: Report) -> None:
        self.count, self.setting, self.report = count, setting, report
        self.running: dict[Future[Outcome], Group] = {}

    def __enter__(self) -> Workers:
        """Prepare the pool; each worker starts with its first group."""
        context = multiprocessing.get_context("spawn")
        self.others = set(multiprocessing.active_children())
        with _signals_wait():  # its locks start a process
            self.events = context.SimpleQueue()
        arguments = self.setting.compute.threads, self.events
        self.pool = ProcessPoolExecutor(self.count, context, initializer=_start_worker, initargs=arguments)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers: at once if something is running, because its last checkpoint is on disk."""
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self.others:
                process.kill()  # they ignore SIGTERM
        self.pool.shutdown(wait=True, cancel_futures=True)

    @property
    def free(self) -> int:
        """The number of workers without a group."""
        return self.count - len(self.running)

    @property
    def busy(self) -> bool:
        """Whether a worker has a group."""
        return bool(self.running)

    def begin(self, group: Group) -> None:
        """Give a group to a free worker."""
        with _signals_wait():
            self.running[self.pool.submit(_train_in_worker, group, self.setting)] = group

    def ended(self) -> list[tuple[Group, Outcome]]:
        """Wait a moment, pass events on, and return the groups that have ended since the last call, and how."""
        done, _ = wait(self.running, timeout=0.2, return_when=FIRST_COMPLETED)
        while not self.events.empty():  # an event is in the pipe before its `put` returns, so none is missed
            self.report(self.events.get())
        return [(self.running.pop(future), _outcome(future)) for future in done]


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise KDError(
            "a training process was ended from outside (out of memory?); everything finished is "
            "stored: run the same command again, with --workers 1 if memory is short"
        ) from None


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Let the signals that end a session wait while a process is spawned, and in that process until it ignores them.

    A signal to the whole group of processes would otherwise end a worker that is still importing its modules, and an
    exception in the middle of a start would leave a process that nobody ends.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # of this thread alone, and inherited by the process
    try:
        resource_tracker.ensure_running()  # when it starts, it lets two of them through again
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _start_worker(threads: int, events: Any) -> None:
    global _events
    _events = events
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they are the parent's, which kills its workers
    torch.set_num_threads(threads)
    _end_with_parent()


def _end_with_parent() -> None:
    """Exit when the parent exits, so that a killed session leaves no orphan workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the last epoch's checkpoint is on disk

    threading.Thread(target=watch, daemon=True).start()


_events: Any = None  # a worker's way to the session; a queue can only be handed over when a process starts


def _train_in_worker(group: Group, setting: Setting) -> Outcome:
    return train_group(group, setting, _events.put)
