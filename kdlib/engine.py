"""Arms as a graph of runs, trained in topological order, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import queue as queues
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdlib.environment import environment, peak_memory_bytes
from kdlib.errors import KDError
from kdlib.experiment import Arm, Compute, Experiment, Profile, Run, load_experiment
from kdlib.runs import Description, FinishedRun, Store
from kdlib.training import Progress


@dataclass(frozen=True)
class Job:
    """One run to be had: its description, the arms it serves, and its parents as role -> (run id, snapshot)."""

    experiment: str
    description: Description
    config: Any
    arms: tuple[str, ...]
    parents: Mapping[str, tuple[str, str]]

    @property
    def label(self) -> str:
        """What people call it: arms and seed."""
        return f"{' = '.join(self.arms)}, seed {self.description.seed}"


@dataclass(frozen=True)
class Event:
    """Something to tell: kind is started, epoch, finished, reused, failed, blocked or notice."""

    kind: str
    job: Job
    text: str = ""
    epoch: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """What became of the jobs, by run id."""

    finished: dict[str, FinishedRun] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)


Report = Callable[[Event], None]
Environment = Mapping[str, Any]


def wanted_arms(experiment: Experiment, names: Iterable[str]) -> list[Arm]:
    """The named arms and all they need, in the experiment's order."""
    wanted: set[str] = set()
    pending = list(names)
    while pending:
        arm = experiment.arm(pending.pop())
        if arm.name not in wanted:
            wanted.add(arm.name)
            pending.extend(arm.needs.values())
    return [arm for arm in experiment.arms if arm.name in wanted]


def plan(experiment: Experiment, profile: Profile, names: Iterable[str], seeds: Sequence[int], compute: Compute,
         folders: Mapping[str, Path]) -> list[Job]:
    """The runs behind the named arms, parents first, seed by seed; arms that are snapshots of one run share a job."""
    jobs: dict[str, Job] = {}
    arms = wanted_arms(experiment, names)
    for seed in seeds:
        placed: dict[str, tuple[str, str]] = {}  # arm -> (run id, snapshot)
        for arm in arms:
            config = experiment.config(arm, profile)
            try:
                parents = {role: placed[name] for role, name in arm.needs.items()}
            except KeyError as error:
                raise KDError(f"{experiment.name}: arm '{arm.name}' needs {error}, which must stand before it in ARMS") from error
            description = experiment.describe(arm, config, seed if arm.seed is None else arm.seed,
                                              experiment.load_data(config, folders).digest, compute,
                                              {role: "/".join(parent) for role, parent in parents.items()})
            known = jobs.get(description.id)
            # An arm of a fixed seed comes by once for every seed.
            names_of = tuple(dict.fromkeys((*known.arms, arm.name))) if known else (arm.name,)
            jobs[description.id] = Job(experiment.name, description, config, names_of, parents)
            placed[arm.name] = (description.id, arm.snapshot)
    return list(jobs.values())


def execute(jobs: Sequence[Job], store: Store, *, compute: Compute, folders: Mapping[str, Path], workers: int = 1,
            report: Report = lambda event: None) -> Summary:
    """Have every job's run: reused where the store holds it, trained otherwise.

    A failed run blocks only its descendants.  `workers` > 1 trains in so many spawned processes of `compute.threads`
    threads each; both ways give the same bytes.
    """
    summary = Summary()
    todo: list[Job] = []
    # Looked up now, not when a run ends: the tree may be edited meanwhile, and the code in memory is that of now.
    made_by = {name: environment(load_experiment(name).folder, compute.device) for name in {job.experiment for job in jobs}}
    for job in jobs:
        run = store.find(job.description, _notices(job, report))
        if run is None:
            todo.append(job)
            continue
        summary.finished[run.id] = run
        if run.environment.get("source") != made_by[job.experiment]["source"]:
            report(Event("notice", job, f"run {run.id} was made by other source files than these (commit "
                                        f"{str(run.environment.get('commit'))[:10]}); it is reused because its protocol and "
                                        "configuration are the same. Raise PROTOCOL where the edit can move results"))
        report(Event("reused", job))
    if workers > 1 and len(todo) > 1:
        _in_processes(todo, store, compute, folders, made_by, workers, report, summary)
    else:
        torch.set_num_threads(compute.threads)
        while todo:
            job = todo.pop(0)
            if not _blocked(job, summary, report):
                error = _train_safely(job, store, compute, folders, made_by[job.experiment], report)
                _settle(job, error, store, summary, report)
    return summary


def _notices(job: Job, report: Report) -> Callable[[str], None]:
    return lambda text: report(Event("notice", job, text))


def _in_processes(todo: list[Job], store: Store, compute: Compute, folders: Mapping[str, Path],
                  made_by: Mapping[str, Environment], workers: int, report: Report, summary: Summary) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        events = manager.Queue()
        pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(compute.threads,))
        running: dict[Future[str], Job] = {}
        try:
            while todo or running:
                todo[:] = [job for job in todo if not _blocked(job, summary, report)]
                ready = [job for job in todo if all(run in summary.finished for run, _ in job.parents.values())]
                if todo and not ready and not running:
                    raise KDError(f"{todo[0].label}: expected its parents among the runs to be had, found none; use plan()")
                for job in ready[: workers - len(running)]:
                    todo.remove(job)
                    running[pool.submit(_train_in_worker, job, store, compute, folders, made_by[job.experiment], events)] = job
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _pass_on(events, report)
                for future in done:
                    job = running.pop(future)
                    try:
                        error = future.result()
                    except BrokenProcessPool:
                        raise KDError("a training process was ended from outside (out of memory?); everything finished is "
                                      "stored: run the same command again, with --workers 1 if memory is short") from None
                    _settle(job, error, store, summary, report)
        finally:
            # On Ctrl-C the workers are ended at once: their last epoch's checkpoint is on disk.
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                if running:
                    process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(threads: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)


def _pass_on(events: Any, report: Report) -> None:
    while True:
        try:
            report(events.get_nowait())
        except queues.Empty:
            return


def _train_in_worker(job: Job, store: Store, compute: Compute, folders: Mapping[str, Path], made_by: Environment,
                     events: Any) -> str:
    def report(event: Event) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            os._exit(1)  # the session was killed: do not train on behind the user's back; the checkpoint is on disk
        events.put(event)

    return _train_safely(job, store, compute, folders, made_by, report)


def _blocked(job: Job, summary: Summary, report: Report) -> bool:
    for parent, _ in job.parents.values():
        if parent in summary.failed or parent in summary.blocked:
            summary.blocked[job.description.id] = parent
            report(Event("blocked", job, f"not started: its parent run {parent} failed"))
            return True
    return False


def _settle(job: Job, error: str, store: Store, summary: Summary, report: Report) -> None:
    run = None if error else store.find(job.description)
    if run is None:
        summary.failed[job.description.id] = error or "its run was damaged as soon as it was written"
        report(Event("failed", job, summary.failed[job.description.id]))
    else:
        summary.finished[run.id] = run
        report(Event("finished", job, numbers={"seconds": run.environment["seconds"]}))


def _train_safely(job: Job, store: Store, compute: Compute, folders: Mapping[str, Path], made_by: Environment,
                  report: Report) -> str:
    """Train a job; gives "" or why it failed (the traceback of an unexpected error goes to the run's work folder)."""
    try:
        with store.lock(job.description.id):
            if store.find(job.description, _notices(job, report)) is None:
                report(Event("started", job))
                _train(job, store, compute, folders, made_by, report)
        return ""
    except KDError as error:
        return str(error)
    except Exception as error:
        log = store.work_folder(job.description.id) / "error.txt"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
        except OSError as problem:  # a full disk may be what went wrong in the first place
            return f"{type(error).__name__}: {error} (its traceback could not be written: {problem})"
        return f"{type(error).__name__}: {error} (traceback in {log})"


def _train(job: Job, store: Store, compute: Compute, folders: Mapping[str, Path], made_by: Environment,
           report: Report) -> None:
    experiment = load_experiment(job.experiment)
    parents = {role: (store.resolve(run_id), snapshot) for role, (run_id, snapshot) in job.parents.items()}
    work = store.work_folder(job.description.id)
    clock = Clock(work / "seconds.txt")

    def on_epoch(progress: Progress) -> None:
        clock.save()
        report(Event("epoch", job, epoch=progress.epoch, numbers=progress.history[-1], text=progress.notice))
        progress.notice = ""

    # Named by the source files: a run that was begun by other code starts again rather than become half of each.
    run = Run(job.config, job.description.seed, experiment.load_data(job.config, folders), torch.device(compute.device),
              job.label, parents, work / f"checkpoint-{made_by['source']}.safetensors", on_epoch)
    result = experiment.arm(job.arms[0]).train(run)
    store.save(job.description, result, {**made_by, "seconds": round(clock.seconds, 2), "threads": torch.get_num_threads(),
                                         "peak_memory_bytes": peak_memory_bytes()})


class Clock:
    """Seconds a run has trained, over all its lives: what an earlier life had saved is counted in."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.monotonic()
        try:
            self.before = float(path.read_text())
        except (OSError, ValueError):  # a first life; a damaged file costs a number in a table, no result
            self.before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.monotonic() - self.began

    def save(self) -> None:
        """Keep the seconds for a later life, if the disk allows."""
        with suppress(OSError):
            self.path.write_text(f"{self.seconds:.2f}\n")
