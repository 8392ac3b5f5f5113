"""Runs, trained in the order of their plan, in this process or in several, until all are there or the time is up.

Sessions that have one store share the work: a run that another session trains is left to it, and the next one is begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kdlib.errors import KDError
from kdlib.run import reuse
from kdlib.run.environment import source_digest
from kdlib.run.events import Event, Report
from kdlib.run.executor import Executor
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.group import Group, Outcome, Setting, notices
from kdlib.run.limit import Limit
from kdlib.run.plan import Job, grouped
from kdlib.run.queue import Queue, parents_of
from kdlib.run.store import FinishedRun, Store
from kdlib.run.workers import Here, Workers

__all__ = ["Summary", "execute"]

PAUSE = 0.5  # seconds, until a run that another session trains is looked at again


@dataclass
class Summary:
    """Outcome of each job, by run id."""

    finished: dict[str, FinishedRun] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)  # not finished, because the time is up
    stored: set[str] = field(default_factory=set, compare=False)  # runs that the store had before
    told: set[str] = field(default_factory=set, compare=False)  # notices about them


def execute(
    jobs: Sequence[Job],
    store: Store,
    *,
    compute: Compute,
    folders: Mapping[str, Path],
    workers: int = 1,
    executor: Callable[[Setting, Report], Executor] | None = None,
    report: Report = lambda event: None,
    limit: Limit | None = None,
    metrics: Mapping[str, Collection[str]] | None = None,
) -> Summary:
    """Make sure that every job has a finished run: take it from the store, or train it.

    Runs are begun in the order of `jobs`. A stored run is refused if a parent is no longer the one that it was trained
    with; it then counts as failed. A failed run blocks its descendants, and the runs in a group with one of them. With
    `workers` > 1 runs are trained in that many spawned processes of `compute.threads` threads each; with an `executor`,
    it makes what trains them. All ways give the same bytes. If one run of a group is missing, the whole group is
    trained.

    With a `limit`, a run that cannot reach a checkpoint in time is not begun, and the others stop at one. They are in
    the summary's `left`; a later session goes on with them.

    A run of an arm that lacks one of the arm's `metrics` fails.

    A run that another session trains is passed over. When nothing else is left, this session waits for it. Returns the
    outcome of each job; `report` is told of each event.
    """
    limit = limit or Limit()
    session = _Session(store, compute, report, limit, metrics or {})
    wanted = {job.id for job in jobs}
    for job in jobs:
        if (run := session.find(job, notices(job, report))) is not None:
            session.summary.stored.add(run.id)
            # A stored run waits for a parent that is still to be trained: it may become another than the run had.
            if not any(run in wanted and run not in session.summary.finished for run in parents_of([job])):
                session.accept(run, job)
    todo = [group for group in grouped(jobs).values() if session.missing(group)]
    sources = {name: source_digest(load_experiment(name).folder) for name in {job.experiment for job in jobs}}
    setting = Setting(store, compute, folders, limit.deadline, sources=sources)
    with _executor(workers if len(todo) > 1 else 1, executor if todo else None)(setting, report) as trainer:
        session.work(todo, trainer)
    return session.summary


def _executor(
    workers: int, executor: Callable[[Setting, Report], Executor] | None
) -> Callable[[Setting, Report], Executor]:
    if executor is not None:
        return executor
    return partial(Workers, workers) if workers > 1 else Here


def _name(group: Group) -> str:
    return group[0].id


@dataclass
class _Session:
    """What is settled so far, and what settles the rest."""

    store: Store
    compute: Compute
    report: Report
    limit: Limit
    metrics: Mapping[str, Collection[str]]
    summary: Summary = field(default_factory=Summary)
    waits: set[str] = field(default_factory=set)  # for these runs of other sessions

    def work(self, todo: Sequence[Group], executor: Executor) -> None:
        """Train the groups, those first that come first, as soon as their parents are there."""
        queue = Queue(todo, self.summary.finished, self.summary.failed)
        while True:
            self.block(queue)
            # Once a run has stopped, the time is up for all of them.
            begun = [] if self.summary.left else queue.take(executor.free, self.limit.allows)
            if not begun and not executor.busy and not self.wait([] if self.summary.left else queue.elsewhere()):
                break  # nothing is left, or not enough time
            for group in begun:
                executor.begin(group)
            for group, outcome in executor.ended():
                if outcome.elsewhere:
                    queue.give_back(group, PAUSE)
                else:
                    self.settle(group, outcome, queue)
        rest = queue.rest()
        # A parent that is left waits for another session, as its children do.
        if queue.stuck() and self.summary.left.isdisjoint(run for group in rest for run in parents_of(group)):
            raise KDError(f"{rest[0][0].label}: expected its parents among the jobs, found none; use plan()")
        self.summary.left.update(job.id for group in rest for job in self.missing(group))

    def wait(self, groups: Sequence[Group]) -> bool:
        """Wait a moment for other sessions, which train these groups; return whether one of them can still be begun."""
        groups = [group for group in groups if self.limit.allows(group)]
        for group in groups:
            if _name(group) not in self.waits:
                self.waits.add(_name(group))
                text = "another session is training this run; this one waits for it"
                self.report(Event("notice", group[0], text))
        if groups:
            time.sleep(PAUSE)
        return bool(groups)

    def block(self, queue: Queue) -> None:
        """Count the runs of groups as blocked of which a parent has failed or is itself blocked."""
        while (group := queue.next_fallen()) is not None:
            summary = self.summary
            parent = next(run for run in parents_of(group) if run in summary.failed or run in summary.blocked)
            for job in self.missing(group):
                summary.blocked[job.id] = parent
                needs = "it or a run of its group" if len(group) > 1 else "it"
                text = f"not started: run {parent}, which {needs} needs, failed"
                self.report(Event("blocked", job, text))
                queue.run_failed(job.id)

    def missing(self, group: Group) -> Group:
        """The jobs of a group that are neither finished nor failed."""
        finished, failed = self.summary.finished, self.summary.failed
        return [job for job in group if (run := job.id) not in finished and run not in failed]

    def find(self, job: Job, notice: Callable[[str], None] = lambda text: None) -> FinishedRun | None:
        """Return a job's run in the store, or None. A run that cannot be read fails, and the others go on."""
        try:
            return self.store.find(job.description, notice)
        except KDError as error:
            self.fail(job, str(error))
            return None

    def accept(self, run: FinishedRun, job: Job) -> None:
        """Count a run in the store as finished and give the notices about it, or refuse it for another parent."""
        summary = self.summary
        if problem := reuse.other_parent(run, job, summary.finished):
            self.fail(job, problem)
            return
        if problem := reuse.unfit(run, job, self.metrics):
            self.fail(job, problem)
            return
        summary.finished[run.id] = run
        self.limit.learn(job, run)
        for text in (reuse.other_source(run, job), reuse.other_machine(run, job, self.compute.device)):
            if text and text not in summary.told:  # one line, however many runs it is about
                summary.told.add(text)
                self.report(Event("notice", job, text))
        if run.id in summary.stored:
            self.report(Event("reused", job))
        else:
            self.report(Event("finished", job, numbers={"seconds": run.environment["seconds"]}))

    def settle(self, group: Group, outcome: Outcome, queue: Queue) -> None:
        """Note what has become of the jobs of a group that was trained."""
        for job in self.missing(group):
            run = self.find(job)  # a group may have failed after some of its runs were saved
            if run is not None:
                self.accept(run, job)
            elif job.id in self.summary.failed:
                continue
            elif outcome.stopped:
                self.summary.left.add(job.id)
                self.report(Event("stopped", job, "at a checkpoint, because the time is up"))
            else:
                self.fail(job, outcome.error or "the saved run failed verification immediately")
        for name in (job.id for job in group):
            if name in self.summary.finished:
                queue.run_finished(name)
            elif name in self.summary.failed:
                queue.run_failed(name)

    def fail(self, job: Job, why: str) -> None:
        """Count a job as failed."""
        self.summary.failed[job.id] = why
        self.report(Event("failed", job, why))
