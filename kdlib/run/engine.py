"""Runs, trained in the order of their graph, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import queue as queues
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch

from kdlib.errors import KDError
from kdlib.files import canonical_json, sha256
from kdlib.run import reuse
from kdlib.run.environment import environment
from kdlib.run.experiment import Compute, Experiment, Run, load_experiment
from kdlib.run.plan import Job
from kdlib.run.store import ID_LENGTH, FinishedRun, Store
from kdlib.training import Progress


@dataclass(frozen=True)
class Event:
    """Something that a session shows; `kind` is started, epoch, finished, reused, failed, blocked or notice."""

    kind: str
    job: Job
    text: str = ""
    epoch: int = 0
    count: int = 0  # epochs in all
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """Outcome of each job, by run id."""

    finished: dict[str, FinishedRun] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set, compare=False)  # runs that the store had before
    told: set[str] = field(default_factory=set, compare=False)  # notices about them


Group = list[Job]  # jobs that are trained in one loop; most groups have one
Report = Callable[[Event], None]


def execute(
    jobs: Sequence[Job],
    store: Store,
    *,
    compute: Compute,
    folders: Mapping[str, Path],
    workers: int = 1,
    report: Report = lambda event: None,
) -> Summary:
    """Make sure that every job has a finished run: take it from the store, or train it.

    A stored run is refused if a parent is no longer the one that it was trained with; it then counts as failed. A
    failed run blocks its descendants, and the runs in a group with one of them. With `workers` > 1 runs are trained
    in that many spawned processes of `compute.threads` threads each; both ways give the same bytes. If one run of a
    group is missing, the whole group is trained. Returns the outcome of each job; `report` is told of each event.
    """
    summary = Summary()
    groups: dict[str, Group] = {}
    wanted = {job.description.id for job in jobs}
    for job in jobs:
        groups.setdefault(job.group or job.description.id, []).append(job)
        if (run := store.find(job.description, _notices(job, report))) is not None:
            summary.stored.add(run.id)
            # A stored run waits for a parent that is still to be trained: it may become another than the run had.
            if all(parent not in wanted - summary.finished.keys() for parent, _ in job.parents.values()):
                _accept(run, job, compute, report, summary)
    todo = [group for group in groups.values() if _missing(group, summary)]
    if workers > 1 and len(todo) > 1:
        _in_processes(todo, store, compute, folders, workers, report, summary)
        return summary
    torch.set_num_threads(compute.threads)
    while todo := [group for group in todo if not _blocked(group, summary, report)]:
        group = _ready(todo, summary)[0]
        todo.remove(group)
        error = _train_safely(group, store, compute, folders, report)
        _settle(group, error, store, compute, summary, report)
    return summary


def _ready(todo: Sequence[Group], summary: Summary, running: bool = False) -> list[Group]:
    done = summary.finished
    ready = [group for group in todo if all(run in done for job in group for run, _ in job.parents.values())]
    if todo and not ready and not running:
        raise KDError(f"{todo[0][0].label}: expected its parents among the jobs, found none; use plan()")
    return ready


def _notices(job: Job, report: Report) -> Callable[[str], None]:
    return lambda text: report(Event("notice", job, text))


def _in_processes(
    todo: list[Group],
    store: Store,
    compute: Compute,
    folders: Mapping[str, Path],
    workers: int,
    report: Report,
    summary: Summary,
) -> None:
    context = multiprocessing.get_context("spawn")
    manager = SyncManager(ctx=context)
    manager.start(_end_with_parent)
    with manager:
        events = manager.Queue()
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(compute.threads,))
        running: dict[Future[str], Group] = {}
        try:
            while todo or running:
                todo[:] = [group for group in todo if not _blocked(group, summary, report)]
                for group in _ready(todo, summary, bool(running))[: workers - len(running)]:
                    todo.remove(group)
                    running[pool.submit(_train_in_worker, group, store, compute, folders, events)] = group
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _pass_on(events, report)
                for future in done:
                    group = running.pop(future)
                    try:
                        error = future.result()
                    except BrokenProcessPool:
                        raise KDError(
                            "a training process was ended from outside (out of memory?); everything finished is "
                            "stored: run the same command again, with --workers 1 if memory is short"
                        ) from None
                    _settle(group, error, store, compute, summary, report)
        finally:
            # On Ctrl-C the workers are ended at once: their last epoch's checkpoint is on disk.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                if running:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(threads: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
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


def _pass_on(events: Any, report: Report) -> None:
    while True:
        try:
            report(events.get_nowait())
        except queues.Empty:
            return


def _train_in_worker(group: Group, store: Store, compute: Compute, folders: Mapping[str, Path], events: Any) -> str:
    return _train_safely(group, store, compute, folders, events.put)


def _blocked(group: Group, summary: Summary, report: Report) -> bool:
    for parent in [run for job in group for run, _ in job.parents.values()]:
        if parent in summary.failed or parent in summary.blocked:
            for job in _missing(group, summary):
                summary.blocked[job.description.id] = parent
                needs = "it or a run of its group" if len(group) > 1 else "it"
                report(Event("blocked", job, f"not started: run {parent}, which {needs} needs, failed"))
            return True
    return False


def _missing(group: Group, summary: Summary) -> Group:
    settled = summary.finished.keys() | summary.failed.keys()
    return [job for job in group if job.description.id not in settled]


def _accept(run: FinishedRun, job: Job, compute: Compute, report: Report, summary: Summary) -> None:
    """Count a run in the store as finished and give the notices about it, or refuse it for another parent."""
    if problem := reuse.other_parent(run, job, summary.finished):
        summary.failed[run.id] = problem
        report(Event("failed", job, problem))
        return
    summary.finished[run.id] = run
    for text in (reuse.other_source(run, job), reuse.other_machine(run, compute.device)):
        if text and text not in summary.told:  # one line, however many runs it is about
            summary.told.add(text)
            report(Event("notice", job, text))
    if run.id in summary.stored:
        report(Event("reused", job))
    else:
        report(Event("finished", job, numbers={"seconds": run.environment["seconds"]}))


def _settle(group: Group, error: str, store: Store, compute: Compute, summary: Summary, report: Report) -> None:
    for job in _missing(group, summary):
        run = store.find(job.description)  # a group may have failed after some of its runs were saved
        if run is None:
            summary.failed[job.description.id] = error or "the saved run failed verification immediately"
            report(Event("failed", job, summary.failed[job.description.id]))
        else:
            _accept(run, job, compute, report, summary)


def _train_safely(group: Group, store: Store, compute: Compute, folders: Mapping[str, Path], report: Report) -> str:
    """Train a group; return "" or why it failed (the traceback of an unexpected error goes to its work folder)."""
    try:
        experiment = load_experiment(group[0].experiment)
        # Of the code that this process has imported: the files may be edited while it waits for a lock, or trains.
        made_by = environment(experiment.folder, compute.device)
        with ExitStack() as locks:
            for job in sorted(group, key=lambda job: job.description.id):
                waits = partial(_notices(job, report), "another session is training this run; this one waits for it")
                locks.enter_context(store.lock(job.description.id, waits))
            missing = [job for job in group if store.find(job.description, _notices(job, report)) is None]
            if missing:
                for job in missing:
                    report(Event("started", job))
                _train(experiment, made_by, group, missing, store, compute, folders, report)
        return ""
    except KDError as error:
        return str(error)
    except Exception as error:
        log = _work_folder(group, store) / "error.txt"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        except OSError as problem:  # a full disk may be what went wrong in the first place
            return f"{type(error).__name__}: {error} (its traceback could not be written: {problem})"
        return f"{type(error).__name__}: {error} (traceback in {log})"


def _work_folder(group: Group, store: Store) -> Path:
    """The work folder of the whole group, since another group may begin with the same run."""
    ids = [job.description.id for job in group]
    return store.work_folder(ids[0] if len(ids) == 1 else sha256("".join(ids).encode())[:ID_LENGTH])


def _train(
    experiment: Experiment,
    made_by: Mapping[str, Any],
    group: Group,
    missing: Group,
    store: Store,
    compute: Compute,
    folders: Mapping[str, Path],
    report: Report,
) -> None:
    work = _work_folder(group, store)
    parents = [{role: (store.resolve(run), snapshot) for role, (run, snapshot) in job.parents.items()} for job in group]
    bound = [{role: parent.digests() for role, (parent, _) in roles.items()} for roles in parents]
    # Named by source files and parents: a run that was begun with others starts again, so that no run is of both.
    begun_with = sha256(canonical_json([made_by["source"], bound]).encode())[:ID_LENGTH]
    origin = begun_with if any(bound) else made_by["source"]
    checkpoint = work / f"checkpoint-{origin}.safetensors"
    clock = Clock(work / f"seconds-{origin}.txt")
    if not checkpoint.exists() and list(work.glob("checkpoint-*.safetensors")):
        text = (
            f"{work} holds a checkpoint of other source files than these, or of another parent; this run starts from "
            "its first epoch"
        )
        report(Event("notice", group[0], text))

    def on_epoch(progress: Progress) -> None:
        clock.save()
        for number, job in enumerate(group):
            if job in missing:
                numbers = {name.removesuffix(f"/{number}"): value for name, value in progress.history[-1].items()}
                report(Event("epoch", job, progress.notice, progress.epoch, progress.count, numbers))
                progress.notice = ""

    runs = []
    for job, roles in zip(group, parents, strict=True):
        data, device = experiment.load_data(job.config, folders), torch.device(compute.device)
        runs.append(Run(job.config, job.description.seed, data, device, job.label, roles, checkpoint, on_epoch))
    arm = experiment.arm(group[0].arms[0])
    results = arm.results(runs)
    traces = _traces(runs)
    about = {**made_by, "seconds": round(clock.seconds / len(runs), 2), "threads": torch.get_num_threads()}
    for job, result, trace, digests in zip(group, results, traces, bound, strict=True):
        if lost := {experiment.arm(name).snapshot for name in job.arms} - result.metrics.keys():
            found = ", ".join(result.metrics)
            raise KDError(
                f"{job.label}: expected metrics of {', '.join(sorted(lost))}, found those of {found}; let the training "
                "function keep that snapshot, or correct the configuration so that it is reached"
            )
        if job in missing:
            store.save(job.description, result, about, trace, digests)
    shutil.rmtree(work, ignore_errors=True)


def _traces(runs: Sequence[Run]) -> Sequence[Mapping[str, Any]]:
    """The trace of each run; empty for runs that trained nothing, as a recorded teacher."""
    traces = [trace for run in runs for training in run.trainings for trace in training.traces]
    if not traces:
        return [{}] * len(runs)
    if len(traces) != len(runs):
        raise KDError(
            f"{runs[0].label}: expected one training loop for each run, found {len(traces)} for {len(runs)}; "
            "give further networks separate arms"
        )
    return traces


class Clock:
    """Training seconds, summed over interrupted sessions."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()
        try:
            self.before = float(path.read_text())
        except (OSError, ValueError):  # the first session, or a damaged file: it costs a number in a table, no result
            self.before = 0.0

    @property
    def seconds(self) -> float:
        """Training seconds so far."""
        return self.before + time.monotonic() - self.began

    def save(self) -> None:
        """Save the seconds for a later session, if the disk allows it."""
        with suppress(OSError):
            self.path.write_text(f"{self.seconds:.2f}\n")
