"""One group of runs, trained in this process: locks, checkpoints, and what becomes of them in the store."""

from __future__ import annotations

import copy
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import torch

from kdlib.alive import refuse_dead
from kdlib.batches import TeacherAtChance
from kdlib.checkpoint import CheckpointDamaged
from kdlib.errors import CheckpointReplaced, DataChanged, KDError
from kdlib.files import atomic_write, canonical_json, is_there, sha256
from kdlib.precision import arithmetic, set_precision, usual_settings
from kdlib.progress import Progress
from kdlib.run.clock import Clock
from kdlib.run.environment import environment, source_digest
from kdlib.run.events import Event, Report
from kdlib.run.experiment import Compute, Experiment, Run, load_experiment
from kdlib.run.limit import OutOfTime
from kdlib.run.memory import keep_freed_memory
from kdlib.run.plan import Job
from kdlib.run.store import ID_LENGTH, Store, clear_work
from kdlib.seeds import seeded
from kdlib.terminal import shortened
from kdlib.trace import with_snapshots

__all__ = ["Elsewhere", "Group", "Outcome", "Setting", "held", "notices", "train_group", "work_folder"]

SHOWN = 500  # letters of an unexpected error; error.txt has all

Group = list[Job]  # jobs that are trained in one loop; most groups have one


class Outcome(NamedTuple):
    """How the training of a group ended; without a reason, its runs are in the store."""

    error: str = ""
    stopped: bool = False  # at a checkpoint, because the time is up
    elsewhere: bool = False  # nothing was done, because another session trains one of its runs


@dataclass(frozen=True)
class Setting:
    """Where groups are trained: store, device and threads, folders of the data, and the deadline (monotonic).

    `checkpoints`: another store, whose work folders hold the checkpoints. `made_by`: what the session says of its code
    to a copy of it that is outside git. `sources`: the digests of the experiments' source files in the session.
    """

    store: Store
    compute: Compute
    folders: Mapping[str, Path]
    deadline: float
    checkpoints: Store | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def refuse_other_source(experiment: Experiment, sources: Mapping[str, str]) -> None:
    """Raise KDError if this process has imported other source files than the session, which began before an edit."""
    expected, found = sources.get(experiment.name), source_digest(experiment.folder)
    if expected not in (None, found):
        raise KDError(
            f"expected the source files that the session began with (digest {expected}), found others (digest "
            f"{found}): they were edited meanwhile, and this process has read them anew. Run the same command again"
        )


def notices(job: Job, report: Report) -> Callable[[str], None]:
    """Return a function that reports a text as a notice about the job."""
    return lambda text: report(Event("notice", job, text))


class Elsewhere(Exception):
    """Another session trains a run of this group."""


def train_group(group: Group, setting: Setting, report: Report) -> Outcome:
    """Train what the store lacks of a group, unless another session does so: it waits for none.

    The traceback of an unexpected error goes to the group's work folder.
    """
    store = setting.store
    try:
        experiment = load_experiment(group[0].experiment)
        # Of the code that this process has imported: the files may be edited while it trains.
        made_by = {**environment(experiment.folder, setting.compute.device), **setting.made_by}
        refuse_other_source(experiment, setting.sources)
        with held(group, store):
            missing = [job for job in group if store.find(job.description, notices(job, report)) is None]
            if missing:
                if time.monotonic() >= setting.deadline:  # this process may have taken long to start
                    raise OutOfTime
                for job in missing:
                    report(Event("started", job))
                with usual_settings(torch.device(setting.compute.device)):
                    torch.set_num_threads(setting.compute.threads)
                    _train(experiment, made_by, group, missing, setting, report)
        return Outcome()
    except Elsewhere:
        return Outcome(elsewhere=True)
    except OutOfTime:
        return Outcome(stopped=True)
    except CheckpointReplaced:
        return Outcome(
            "another session has taken this run over, because the lock of this one was deleted; nothing is lost: run "
            "the same command again"
        )
    except KDError as error:
        return Outcome(str(error))
    except BrokenPipeError:  # nobody reads the reports any more
        raise
    except Exception as error:
        log, what = work_folder(group, store) / "error.txt", shortened(f"{type(error).__name__}: {error}", SHOWN)
        try:
            atomic_write(log, traceback.format_exc().encode(errors="backslashreplace"))  # in place of a link or a pipe
        except KDError as problem:  # a full disk may be what went wrong in the first place
            return Outcome(f"{what} (its traceback could not be written: {problem})")
        return Outcome(f"{what} (traceback in {log})")


@contextmanager
def held(group: Group, store: Store) -> Iterator[None]:
    """Hold the locks of a group's runs."""
    names = sorted(job.description.id for job in group)
    if len(group) > 1:  # `kd runs import` knows a group by its work folder
        names.append(work_folder(group, store).name)

    def taken(name: str) -> None:
        refuse_dead(store.lock_file(name))
        raise Elsewhere

    with ExitStack() as locks:
        for name in names:
            locks.enter_context(store.lock(name, partial(taken, name)))
        yield


def work_folder(group: Group, store: Store) -> Path:
    """The work folder of the whole group, since another group may begin with the same run."""
    ids = [job.description.id for job in group]
    return store.work_folder(ids[0] if len(ids) == 1 else sha256("".join(ids).encode())[:ID_LENGTH])


def _train(
    experiment: Experiment,
    made_by: Mapping[str, Any],
    group: Group,
    missing: Group,
    setting: Setting,
    report: Report,
) -> None:
    # By absolute names: a training function may change the current folder, which is put back at the end.
    store = Store(setting.store.folder.absolute())
    work = work_folder(group, setting.checkpoints or setting.store).absolute()
    parents = [{role: (store.resolve(run), snapshot) for role, (run, snapshot) in job.parents.items()} for job in group]
    bound = [{role: parent.digests() for role, (parent, _) in roles.items()} for roles in parents]
    # Named by source files and parents: a run that was begun with others starts again, so that no run is of both.
    begun_with = sha256(canonical_json([made_by["source"], bound]).encode())[:ID_LENGTH]
    origin = begun_with if any(bound) else made_by["source"]
    checkpoint = work / f"checkpoint-{origin}.safetensors"
    clock = Clock(work / f"seconds-{origin}.txt")
    looked_at: WeakSet[Progress] = WeakSet()
    if not is_there(checkpoint) and list(work.glob("checkpoint-*.safetensors")):
        text = (
            f"{work} holds a checkpoint of other source files than these, or of another parent; this run starts from "
            "its first epoch"
        )
        report(Event("notice", group[0], text))

    def on_step(progress: Progress) -> None:
        late = time.monotonic() >= setting.deadline
        if late or progress.due:
            progress.save()
            clock.save()
        if late:
            raise OutOfTime

    def on_epoch(progress: Progress) -> None:
        clock.epoch_ends()
        if progress not in looked_at:  # now, and not after hours of training
            looked_at.add(progress)
            refuse_changed()
        for number, job in enumerate(group):
            if job in missing:
                numbers = {name.removesuffix(f"/{number}"): value for name, value in progress.history[-1].items()}
                report(Event("epoch", job, progress.notice, progress.epoch, progress.count, numbers))
                progress.notice = ""
        if progress.epoch < progress.count and not clock.allows_an_epoch(setting.deadline):
            raise OutOfTime

    runs = []
    for job, roles in zip(group, parents, strict=True):
        data, device = experiment.load_data(job.config, setting.folders), torch.device(setting.compute.device)
        if data.digest != job.description.data:
            raise KDError(
                f"expected the data of digest {job.description.data}, with which the session has begun, found "
                f"{data.digest}: they are others each time that they are loaded, or were changed meanwhile. Seed what "
                "load_data draws, or run the same command again"
            )
        seed, label = job.description.seed, job.label
        hooks = checkpoint, on_epoch, on_step, setting.compute
        config = copy.deepcopy(job.config)  # a list within it would be that of all runs
        runs.append(Run(config, seed, data, device, label, roles, *hooks, in_session=True))
    arm = experiment.arm(group[0].arms[0])
    if device.index is not None:  # recorded steps have their streams on the current card
        torch.cuda.set_device(device)
    if device.type == "cuda":  # on a CPU, float32 is float32
        set_precision(getattr(group[0].config, "precision", "float32"))
        made_by = {**made_by, "float32": arithmetic()}
    keep_freed_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TeacherAtChance)  # claims and bands judge teachers; in profile smoke, chance is
        warnings.simplefilter("ignore", CheckpointDamaged)  # it is told as a notice of the run
        # One call trains all students of a group, so the seed of the first run is used for all.
        try:
            with _no_exit(group[0].label), experiment.unchanged(group[0].label) as refuse_changed, seeded(runs[0].seed):
                results = arm.results(runs)
        except DataChanged:  # its epochs were trained on data that no other run has
            clear_work(work)
            raise
    _refuse_changed_configurations(group, runs)
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
            store.save(job.description, result, about, with_snapshots(trace, result.weights), digests)
    if setting.checkpoints is None:  # otherwise the run has still to come to that store
        clear_work(work)


def _refuse_changed_configurations(group: Group, runs: Sequence[Run]) -> None:
    for job, run in zip(group, runs, strict=True):
        before, now = asdict(job.config), asdict(run.config)
        if changed := [name for name, value in before.items() if repr(now.get(name)) != repr(value)]:
            raise KDError(
                f"{job.label}: expected a training function that leaves its configuration as it is, found that it "
                f"changed {', '.join(changed)}: the run would be recorded with another one. Copy it first: "
                f"list(run.config.{changed[0]}), for example"
            )


@contextmanager
def _no_exit(label: str) -> Iterator[None]:
    try:
        yield
    except SystemExit as stop:  # it would end the session without a word
        raise KDError(
            f"{label}: expected a Result from the training function, found that it called sys.exit({stop.code!r}); "
            "return a Result, or raise an error"
        ) from stop


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
