"""What a machine of a cluster does with a group of runs: it trains them in an empty store and gives them back.

Nothing here knows the cluster. Finished runs, and checkpoints of others, travel as the bytes of their files.
"""

from __future__ import annotations

import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

from kdlib.data import fetch
from kdlib.errors import KDError
from kdlib.run.copying import Begun, checkpoints, copy_begun, copy_finished, read_begun, read_contents
from kdlib.run.environment import source_digest
from kdlib.run.events import Event, Report
from kdlib.run.experiment import Compute, Experiment, load_experiment
from kdlib.run.finished import FinishedRun
from kdlib.run.group import Group, Outcome, Setting, train_group, work_folder
from kdlib.run.store import Store

__all__ = ["Order", "Packed", "Parcel", "train_packed"]

Packed = tuple[FinishedRun, Mapping[str, bytes]]  # a finished run, and the bytes of its files by name


@dataclass(frozen=True)
class Order:
    """A group to train, and what the machine has to know for it.

    `source`: digest of the session's source files. `made_by`: what the session says of its code. `sets`: names of the
    data sets, which are found as the session finds them with its `data`. `seconds`: from the order to the session's
    deadline, which is at `until` by `time.time()`, as an order may wait for a machine. `store` is the session's; a
    machine sees the same folder if the file `token` in it has the text `secret`.
    """

    group: Group
    compute: Compute
    source: str
    made_by: Mapping[str, Any]
    sets: tuple[str, ...]
    data: Path | None
    seconds: float
    until: float
    store: Path
    token: str
    secret: str


class Parcel(NamedTuple):
    """What comes back: how the training ended, finished runs, checkpoints, and the traceback of an unexpected error."""

    outcome: Outcome
    finished: Sequence[Packed] = ()
    begun: Sequence[Begun] = ()
    log: str = ""


def train_packed(order: Order, begun: Sequence[Begun], *runs: Packed) -> Iterator[Event | Parcel]:
    """Train a group; yield its events, then a parcel. `runs`: the parents, and the runs of the group that are there."""
    told: SimpleQueue[Event | Parcel | BaseException] = SimpleQueue()

    def train() -> None:
        try:
            told.put(_trained(order, begun, runs, told.put))
        except BaseException as error:
            told.put(error)

    # Training calls back with its events; they can be yielded only by another thread.
    threading.Thread(target=train, daemon=True).start()
    while True:
        message = told.get()
        if isinstance(message, BaseException):
            raise message
        yield message
        if isinstance(message, Parcel):
            return


def _trained(order: Order, begun: Sequence[Begun], runs: Sequence[Packed], report: Report) -> Parcel:
    # A clock that is behind gives no more time than the order had.
    deadline = time.monotonic() + min(order.seconds, order.until - time.time())
    torch.set_num_threads(order.compute.threads)
    with tempfile.TemporaryDirectory(prefix="kd-node-") as folder:
        store = Store(Path(folder))
        try:
            experiment = _checked_code(order)
            folders = _checked_data(order, experiment)
            for run, contents in runs:
                copy_finished(run, contents, store)
            shared = _shared_store(order)
            for each in begun if shared is None else ():
                copy_begun(each, store)
        except (KDError, OSError) as error:
            return Parcel(Outcome(f"machine {platform.node()}: {error}"))
        setting = Setting(store, order.compute, folders, deadline, shared, order.made_by)
        return _parcel(train_group(order.group, setting, report), order.group, store, {run.id for run, _ in runs})


def _checked_code(order: Order) -> Experiment:
    """The experiment; KDError unless its source files are those of the session."""
    experiment = load_experiment(order.group[0].experiment)
    if (found := source_digest(experiment.folder)) != order.source:
        raise KDError(
            f"expected the source files of the session (digest {order.source}), found others (digest {found}) in "
            f"{experiment.folder} and the kdlib next to it; start the session again, or delete that copy"
        )
    return experiment


def _checked_data(order: Order, experiment: Experiment) -> Mapping[str, Path]:
    """The folders of the data sets; KDError unless they hold the data of the session."""
    folders = {name: fetch.find(name, order.data) for name in order.sets}
    for job in order.group:
        found = experiment.load_data(job.config, folders).digest
        if found != job.description.data:
            where = ", ".join(map(str, folders.values())) or experiment.folder
            raise KDError(
                f"expected the data of the session (digest {job.description.data}), found others (digest {found}) in "
                f"{where}; copy the session's data there"
            )
    return folders


def _shared_store(order: Order) -> Store | None:
    """The session's store, if this machine sees its folder."""
    with suppress(OSError):
        if (order.store / order.token).read_text(encoding="utf-8") == order.secret:
            return Store(order.store)
    return None


def _parcel(outcome: Outcome, group: Group, store: Store, given: set[str]) -> Parcel:
    made = [run for job in group if (run := job.description.id) in store.ids() and run not in given]
    finished = [read_contents(store.run_folder(run), pruned=False) for run in made]
    work = work_folder(group, store)
    begun = [read_begun(work, name) for name in checkpoints(work)]  # none, if all are finished
    log = work / "error.txt"
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    if text:
        outcome = outcome._replace(error=outcome.error.replace(f" (traceback in {log})", ""))
    return Parcel(outcome, finished, begun, text)
