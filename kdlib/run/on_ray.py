"""Runs on the machines of a Ray cluster: a task for each group, a finished run comes back and is then stored.

No folder has to be shared. The source files travel with the session. The session's process holds the locks of the runs
and alone writes to the store; a machine that sees the same store keeps its checkpoints there, so that they survive it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from kdlib.errors import KDError
from kdlib.files import atomic_write
from kdlib.run.copying import checkpoints, copy_begun, copy_finished, read_begun, read_contents
from kdlib.run.devices import share_of_card
from kdlib.run.environment import LIBRARY, git_state, is_clean, source_digest
from kdlib.run.events import Event, Report
from kdlib.run.executor import RESTARTS
from kdlib.run.experiment import load_experiment
from kdlib.run.group import Elsewhere, Group, Outcome, Setting, held, notices, work_folder
from kdlib.run.joining import no_cluster, refuse_where_nobody_listens, signals_kept
from kdlib.run.node import Order, Parcel, train_packed
from kdlib.run.queue import parents_of
from kdlib.run.store import clear_work

__all__ = ["OnRay", "fitting", "ray_module"]

PARENTS_KEPT = 32  # finished runs in the object store
LOOK_SECONDS = 2.0  # between two looks at the machines of the cluster


def ray_module() -> ModuleType:
    """Return the module ray; KDError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise KDError(
            f"--ray: expected the package ray, found none that can be imported ({error}); install it with "
            "python -m pip install 'kdlib[ray]'"
        ) from error
    module: ModuleType = ray
    return module


def fitting(machines: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Return how many tasks with these needs fit on machines with these resources at once."""
    small = 1e-6  # 3 thirds of a card are one
    return sum(min(int(machine.get(name, 0.0) / need + small) for name, need in needs.items()) for machine in machines)


@dataclass(eq=False)
class _Task:
    """A group that is trained somewhere, the messages that come of it, and the locks of its runs."""

    group: Group
    locks: ExitStack
    messages: Any
    heard: bool = False


class OnRay:
    """Trains groups on the cluster at `address`: "auto", "local", or an address that ray.init takes.

    "auto" takes the cluster that this machine belongs to and, without one, starts one of this machine, as "local" does.
    `replications`: the folder that travels with kdlib. `data`: the session's folder of data sets. `workers`: the most
    groups side by side; without it, as many as fit.
    """

    def __init__(
        self,
        ray: ModuleType,
        address: str,
        replications: Path,
        data: Path | None,
        workers: int | None,
        setting: Setting,
        report: Report,
    ) -> None:
        self.ray = ray
        self.address, self.replications, self.data, self.workers = address, replications, data, workers
        self.setting, self.report = setting, report
        self.tasks: list[_Task] = []
        self.done: list[tuple[Group, Outcome]] = []
        self.deaths: Counter[str] = Counter()  # by the id of a group's first run
        self.parents: dict[str, Any] = {}  # references to runs in the object store
        self.token, self.secret = Path("locks") / f"session-{secrets.token_hex(8)}", secrets.token_hex(16)
        self.looked, self.room, self.needs = -math.inf, 1, dict[str, float]()
        self.told = False  # that no machine is large enough

    @property
    def free(self) -> int:
        """The number of groups that can be begun; one waits for a machine if none is large enough yet."""
        self._look()
        return max(0, (self.workers or self.room) - len(self.tasks))

    @property
    def busy(self) -> bool:
        """Whether a group is trained, or was not returned yet."""
        return bool(self.tasks or self.done)

    def begin(self, group: Group) -> None:
        """Send a group to the cluster, unless another session trains it or has just trained it."""
        store = self.setting.store
        try:
            with ExitStack() as locks:
                locks.enter_context(held(group, store))
                if all(store.find(job.description, notices(job, self.report)) is not None for job in group):
                    self.done.append((group, Outcome()))
                    return
                messages = self._send(group)
                self.tasks.append(_Task(group, locks.pop_all(), messages))
        except Elsewhere:
            self.done.append((group, Outcome(elsewhere=True)))
        except KDError as error:
            self.done.append((group, Outcome(str(error))))

    def ended(self) -> list[tuple[Group, Outcome]]:
        """Wait a moment, pass events on, and return the groups that have ended since the last call, and how."""
        done, self.done = self.done, []
        if self.tasks:
            self._look()
            tasks = {task.messages: task for task in self.tasks}
            ready, _ = self.ray.wait(list(tasks), num_returns=1, timeout=0.01 if done else 0.2)
            for task in [tasks[messages] for messages in ready]:
                self.tasks.remove(task)
                self.tasks.append(task)  # Ray looks at them in this order: the next one is another's turn
                if (outcome := self._outcome(task)) is not None:
                    done.append(self._end(task, outcome))
            done += [self._end(task, Outcome(stopped=True)) for task in self._late()]
        return done

    def __enter__(self) -> OnRay:
        """Connect to the cluster, or start one."""
        with signals_kept():
            self._connect()
        atomic_write(self.setting.store.folder / self.token, self.secret.encode())
        self.task = self.ray.remote(train_packed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the cluster, which then ends what still trains for this session."""
        with signals_kept():
            self.ray.shutdown()
        for task in self.tasks:
            task.locks.close()
        with suppress(OSError):
            (self.setting.store.folder / self.token).unlink()

    def _connect(self) -> None:
        # The code travels, so that a machine needs no checkout, and an edit no round of updates; what arrives is
        # compared again (kdlib.run.node), as a folder of that name may be there already.
        modules = [str(LIBRARY), str(self.replications)]
        refuse_where_nobody_listens(self.address)
        quiet = {"runtime_env": {"py_modules": modules}, "log_to_driver": False, "logging_level": "error"}
        try:
            if self.address != "local":
                with suppress(*[ConnectionError] if self.address == "auto" else []):
                    self.ray.init(address=self.address, **quiet)
                    return
            self.ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises many kinds, and plain ones
            raise no_cluster(self.address, error) from error

    def _machines(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _look(self) -> None:
        """See what the cluster has now and then: machines come and go."""
        if time.monotonic() < self.looked + LOOK_SECONDS:
            return
        machines, compute = self._machines(), self.setting.compute
        self.needs = {"CPU": float(compute.threads)}
        if compute.device != "cpu":
            cards = sum(machine.get("GPU", 0.0) for machine in machines)
            self.needs["GPU"] = share_of_card(self.workers, cards)
        found = fitting(machines, self.needs)
        self.looked, self.room = time.monotonic(), max(1, found)
        if not found and self.tasks and not self.told:
            self.told = True
            needs = " and ".join(f"{need:g} {name}" for name, need in self.needs.items())
            text = f"no machine of the cluster has {needs}; this run waits for one"
            self.report(Event("notice", self.tasks[0].group[0], text))

    def _send(self, group: Group) -> Any:
        """Send a group with all that it needs; return the messages that will come."""
        self._look()
        store, compute = self.setting.store, self.setting.compute
        folder, left = load_experiment(group[0].experiment).folder, self.setting.deadline - time.monotonic()
        order = Order(
            group,
            replace(compute, device=compute.device.partition(":")[0]),  # a task sees its own card only
            source_digest(folder),
            {"commit": git_state(folder)[0], "clean": is_clean(folder)},
            tuple(self.setting.folders),
            self.data and self.data.absolute(),  # machines have other working folders
            left,
            time.time() + left,
            store.folder.absolute(),
            str(self.token),
            self.secret,
        )
        work = work_folder(group, store)
        begun = [read_begun(work, name) for name in checkpoints(work)]
        stored = [job.description.id for job in group if store.find(job.description) is not None]
        runs = [self._packed(run) for run in dict.fromkeys([*parents_of(group), *stored])]
        resources = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs.get("GPU", 0.0)}
        task = self.task.options(**resources, max_retries=0, num_returns="streaming")
        return task.remote(order, begun, *runs)

    def _packed(self, run: str) -> Any:
        """The reference to a finished run in the object store; those used last are kept there."""
        reference = self.parents.pop(run, None)
        if reference is None:
            reference = self.ray.put(read_contents(self.setting.store.run_folder(run), pruned=False))
        self.parents[run] = reference
        if len(self.parents) > PARENTS_KEPT:
            del self.parents[next(iter(self.parents))]
        return reference

    def _outcome(self, task: _Task) -> Outcome | None:
        """Take the next message of a task; return how its group has ended, None while it is trained."""
        errors = self.ray.exceptions
        try:
            message = self.ray.get(next(task.messages))
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:  # it cannot even import kdlib, say
            return Outcome(f"a machine of the cluster could not begin it: {str(error).strip()[-500:]}")
        except (errors.RayError, StopIteration) as error:
            return self._again(task, f"{type(error).__name__}")
        task.heard = True
        if isinstance(message, Parcel):
            return self._unpacked(task.group, message)
        self.report(message)
        return None

    def _again(self, task: _Task, why: str) -> Outcome | None:
        """Begin the group of a process or machine that is gone again, unless that happened too often."""
        name = task.group[0].description.id
        self.deaths[name] += 1
        if self.deaths[name] > RESTARTS:
            return Outcome(
                f"its training process or its machine was lost {self.deaths[name]} times ({why}; out of memory?). Run "
                "the same command again, with fewer --workers if memory is short"
            )
        text = f"its training process or its machine was lost ({why}); it is begun again on another one"
        self.report(Event("notice", task.group[0], text))
        try:
            task.messages, task.heard = self._send(task.group), False
        except KDError as error:
            return Outcome(str(error))
        return None

    def _unpacked(self, group: Group, parcel: Parcel) -> Outcome:
        """Store what has come back; every run is verified where it was made, and again as it is written here."""
        store, outcome = self.setting.store, parcel.outcome
        work = work_folder(group, store)
        try:
            for run, contents in parcel.finished:
                copy_finished(run, contents, store)
            for begun in parcel.begun:
                copy_begun(begun, store)
            if parcel.log:
                atomic_write(work / "error.txt", parcel.log.encode())
                outcome = outcome._replace(error=f"{outcome.error} (traceback in {work / 'error.txt'})")
        except KDError as error:
            return Outcome(str(error))
        if not outcome.error and not outcome.stopped:
            clear_work(work)
        return outcome

    def _late(self) -> list[_Task]:
        """The tasks that have not begun at the deadline; they are taken back."""
        late = [task for task in self.tasks if not task.heard] if time.monotonic() >= self.setting.deadline else []
        for task in late:
            self.ray.cancel(task.messages, force=True)
        return late

    def _end(self, task: _Task, outcome: Outcome) -> tuple[Group, Outcome]:
        self.tasks.remove(task)
        task.locks.close()
        return task.group, outcome
