"""Training processes: each trains one group at a time and tells its events to the session's process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

import torch

from kdlib.errors import error_in_user_code
from kdlib.run.devices import cards_of, next_card
from kdlib.run.events import Event, Report
from kdlib.run.executor import RESTARTS
from kdlib.run.group import Group, Outcome, Setting, train_group

__all__ = ["Here", "Workers"]

# What ends a session: Ctrl-C, a job's end, and Slurm's warning before it. Windows lacks the last one.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


STARTED = "started"  # a process's first message


class Here:
    """Trains one group after the other in this process."""

    def __init__(self, setting: Setting, report: Report) -> None:
        self.setting, self.report, self.free, self.busy = setting, report, 1, False
        self.done: list[tuple[Group, Outcome]] = []

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


@dataclass
class _Worker:
    """A training process, the way to it, and the group that it trains; it is idle without one."""

    process: BaseProcess
    connection: Connection
    device: str
    group: Group = field(default_factory=list)
    started: bool = False  # it has said that it can take groups

    def end(self, at_once: bool) -> None:
        """End the process: at once, or when it has done its work."""
        if at_once:
            self.process.kill()  # it ignores SIGTERM
        self.connection.close()
        self.process.join()


class Workers:
    """Trains groups in `count` spawned processes side by side, spread over the visible cards of a machine.

    A process that is ended from outside is replaced, and its group goes on from its checkpoint. (The kernel ends the
    largest process if memory is short.) A group whose process was ended more than RESTARTS times has failed.
    """

    def __init__(self, count: int, setting: Setting, report: Report) -> None:
        self.count, self.setting, self.report = count, setting, report
        self.workers: list[_Worker] = []
        self.cards = cards_of(setting.compute.device, count)
        self.deaths: Counter[str] = Counter()  # by the id of a group's first run

    def __enter__(self) -> Workers:
        """Each process starts with its first group."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes: at once if something is running, because its last checkpoint is on disk."""
        for worker in self.workers:
            worker.end(at_once=kind is not None)

    @property
    def running(self) -> list[_Worker]:
        """The processes that have a group."""
        return [worker for worker in self.workers if worker.group]

    @property
    def free(self) -> int:
        """The number of groups that can be begun."""
        return self.count - len(self.running)

    @property
    def busy(self) -> bool:
        """Whether a process has a group."""
        return bool(self.running)

    def begin(self, group: Group) -> None:
        """Give a group to a process that has none."""
        worker = next((worker for worker in self.workers if not worker.group), None) or self._started()
        worker.group = group
        with suppress(OSError):  # the process is gone, as `ended` finds out
            worker.connection.send(group)

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        device = next_card(self.cards, [worker.device for worker in self.workers])
        setting = replace(self.setting, compute=replace(self.setting.compute, device=device))
        here, there = context.Pipe()  # one for each process: one that is killed within a message spoils no other's
        with _signals_wait():
            process = context.Process(target=_work, args=(there, setting))
            process.start()
            self.workers.append(_Worker(process, here, device))
        there.close()  # now the process alone has this end, and its death is the end of the pipe
        return self.workers[-1]

    def ended(self) -> list[tuple[Group, Outcome]]:
        """Wait a moment, pass events on, and return the groups that have ended since the last call, and how."""
        ready = wait([worker.connection for worker in self.running], timeout=0.2)
        found = [(worker, self._outcome(worker)) for worker in self.running if worker.connection in ready]
        ended = [(worker.group, outcome) for worker, outcome in found if outcome is not None]
        for worker, outcome in found:
            worker.group = [] if outcome is not None else worker.group
        return ended

    def _outcome(self, worker: _Worker) -> Outcome | None:
        """Pass the events of a process on, and return how its group has ended; None while it is trained."""
        while True:
            try:
                message = worker.connection.recv() if worker.connection.poll() else None
            except (EOFError, OSError):
                return self._replace(worker)
            if message is None or isinstance(message, Outcome):
                return message
            if message == STARTED:
                worker.started = True
            else:
                self.report(message)

    def _replace(self, worker: _Worker) -> Outcome | None:
        """Begin the group of a process that is gone in a new one, unless it was begun too often."""
        group, name = worker.group, worker.group[0].description.id
        worker.end(at_once=True)
        self.workers.remove(worker)
        self.deaths[name] += 1
        status = worker.process.exitcode or 0
        if status > 0 and not worker.started:  # not ended from outside: each further one would end so too
            return Outcome(
                f"its training process ended with status {status} before it could begin; the lines above say why. A "
                'script that trains must be a file, and must do so below `if __name__ == "__main__":`, because each '
                "process imports it; or pass workers=1"
            )
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        if self.deaths[name] > RESTARTS:
            return Outcome(
                f"its training process was ended from outside {self.deaths[name]} times, now {how} (out of memory?). "
                "Its last checkpoint is kept: run the same command again, with --workers 1 if memory is short"
            )
        text = f"its training process was ended from outside, {how}; a new process goes on from the last checkpoint"
        self.report(Event("notice", group[0], text))
        self.begin(group)
        return None


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


def _work(connection: Connection, setting: Setting) -> None:
    """Train the groups that come, and send their events and outcomes, until the other side is closed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they are the parent's, which kills its workers
    torch.set_num_threads(setting.compute.threads)
    _end_with_parent()
    with suppress(EOFError, OSError):  # the other side is closed, or gone
        connection.send(STARTED)
        while True:
            try:
                group = connection.recv()
            except (EOFError, OSError):
                raise
            except Exception as error:  # its configuration is of a module that was edited meanwhile
                why = error_in_user_code("a replication's source files", error, "files that a new process can import")
                connection.send(Outcome(str(why)))
                continue
            connection.send(train_group(group, setting, connection.send))


def _end_with_parent() -> None:
    """Exit when the parent exits, so that a killed session leaves no orphan workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # the last epoch's checkpoint is on disk

    threading.Thread(target=watch, daemon=True).start()
