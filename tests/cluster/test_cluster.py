"""A head and two machines of one core each, as processes of this machine, some of which are killed in mid-run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest

from kdlib.run.engine import execute
from kdlib.run.experiment import Compute
from kdlib.run.on_ray import OnRay
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import contents
from tests.machines import machines as started_machines
from tests.machines import started

ray = pytest.importorskip("ray", reason="needs the extra ray")

CPU = Compute()
MANY = 200


class Apart(OnRay):
    """The machines see another folder under the store's name."""

    def __enter__(self):
        super().__enter__()
        self.secret = "that of the other folder"
        return self


@pytest.fixture(scope="module")
def machines():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_SLEEP", "0.002")  # seconds of each of nine steps, on the machines
        with started_machines(0, 1, 1) as (cluster, nodes):
            yield SimpleNamespace(cluster=cluster, nodes=nodes, address=cluster.address)


@pytest.fixture
def session(machines, toy, toy_root, tmp_path, monkeypatch):
    """Trains jobs on the machines; `events` has what was told."""
    monkeypatch.chdir(toy_root)
    jobs_of = partial(plan, toy, toy.profile("quick"), compute=CPU, folders={})

    def train(jobs, store="store", kind=OnRay, tell=lambda event: None, **rest):
        def report(event):
            found.events.append((event.kind, event.job.label, event.epoch, event.text))
            tell(event)

        executor = partial(kind, ray, machines.address, toy_root / "replications", None, None)
        return execute(jobs, Store(tmp_path / store), compute=CPU, folders={}, executor=executor, report=report, **rest)

    def serial(jobs):
        (tmp_path / "serial" / "work").mkdir(parents=True)
        (tmp_path / "serial" / "work" / "killed-once").touch()  # this process is not to be killed
        execute(jobs, Store(tmp_path / "serial"), compute=CPU, folders={})
        return contents(tmp_path / "serial")

    found = SimpleNamespace(
        events=[], train=train, serial=serial, folder=tmp_path, jobs=lambda *names, seeds=(0,): jobs_of(names, seeds)
    )
    return found


def test_many_short_runs_end_and_none_is_trained_twice(session):
    jobs = session.jobs("baseline", seeds=range(MANY))
    began = time.monotonic()
    assert len(session.train(jobs).finished) == MANY
    print(f"{MANY} runs of 20 ms on 2 machines: {time.monotonic() - began:.1f} s")
    assert [kind for kind, *_ in session.events].count("started") == MANY


def test_without_a_shared_folder_runs_and_their_parents_travel(session):
    jobs = session.jobs("grandchild", "baseline", "crashed")
    summary = session.train(jobs, kind=Apart)
    assert len(summary.failed) == 1
    found = contents(session.folder / "store")
    assert found == session.serial([job for job in jobs if job.arms != ("crashed",)])
    assert len(summary.finished) == 4


def test_a_killed_process_is_replaced_and_its_run_goes_on(session):
    jobs = session.jobs("killed", "baseline")
    assert len(session.train(jobs).finished) == 2
    (notice,) = [event for event in session.events if event[0] == "notice"]
    assert notice[1] == "killed, seed 0"
    assert "was lost" in notice[3]
    assert contents(session.folder / "store") == session.serial(jobs)


def test_a_run_whose_process_is_always_lost_fails_and_blocks_its_children_alone(session):
    summary = session.train(session.jobs("below_killed", "baseline"))
    assert len(summary.finished) == len(summary.blocked) == len(summary.failed) == 1
    (why,) = summary.failed.values()
    assert why.startswith("its training process or its machine was lost 4 times")


def test_a_machine_that_is_lost_in_mid_run_costs_no_epoch_where_the_folder_is_shared(session, machines, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "1")
    slow = started(lambda: machines.cluster.add_node(num_cpus=1))
    jobs, ends, lost = session.jobs("baseline", seeds=range(4)), {}, []

    def kill(event):
        name, now = event.job.label, time.monotonic()
        if event.kind == "epoch":  # three steps of one second: it is on the slow machine
            if event.epoch == 2 and now - ends[name] > 2.9 and not lost:
                lost.append(name)
                machines.cluster.remove_node(slow, allow_graceful=False)
            ends[name] = now

    assert len(session.train(jobs, tell=kill).finished) == 4
    assert [label for kind, label, _, text in session.events if kind == "notice" and "was lost" in text] == lost
    for job in jobs:
        epochs = [epoch for kind, label, epoch, _ in session.events if kind == "epoch" and label == job.label]
        assert epochs == [1, 2, 3] or job.label in lost
        assert epochs in ([1, 2, 3], [1, 2, 2, 3])  # an epoch is told before its checkpoint is written
    assert len(lost) == 1
    assert contents(session.folder / "store") == session.serial(jobs)


SESSION = """
import sys
from functools import partial
from pathlib import Path
import ray
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.on_ray import OnRay
from kdlib.run.plan import plan
from kdlib.run.store import Store

toy = load_experiment("toy")
jobs = plan(toy, toy.profile("quick"), ["baseline"], range(500), Compute(), {})
executor = partial(OnRay, ray, sys.argv[1], Path("replications").absolute(), None, None)
execute(jobs, Store(Path(sys.argv[2])), compute=Compute(), folders={}, executor=executor,
        report=lambda event: print(event.kind, event.job.description.id, event.text, flush=True))
"""


def in_its_own_process(machines, toy_root, folder):
    path = os.pathsep.join([str(toy_root), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, machines.address, str(folder)],
        cwd=toy_root,
        env={**os.environ, "PYTHONPATH": path, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("finished"):
            return process
    raise AssertionError(f"no run was finished, status {process.wait()}")


def test_a_killed_session_leaves_whole_runs_and_the_same_command_goes_on(session, machines, toy_root):
    process = in_its_own_process(machines, toy_root, session.folder / "store")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = contents(session.folder / "store")
    assert found
    jobs = [job for job in session.jobs("baseline", seeds=range(500)) if f"{job.description.id}/run.json" in found]
    jobs += session.jobs("grandchild")
    session.train(jobs)
    assert contents(session.folder / "store") == session.serial(jobs)


def test_without_its_head_a_session_ends_and_what_is_finished_stays(session, machines, toy_root):
    """The last test: afterwards there is no cluster."""
    process = in_its_own_process(machines, toy_root, session.folder / "store")
    machines.cluster.head_node.kill_gcs_server()
    output, _ = process.communicate(timeout=90)
    print(output[-3000:])
    assert process.returncode != 0, output[-2000:]
    found = contents(session.folder / "store")
    jobs = [job for job in session.jobs("baseline", seeds=range(500)) if f"{job.description.id}/run.json" in found]
    assert jobs
    assert found == session.serial(jobs)
