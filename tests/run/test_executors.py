"""The contract of executors: one process, several, and a Ray cluster give the same runs and tell the same of them."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from kdlib.run.engine import execute
from kdlib.run.experiment import Compute
from kdlib.run.on_ray import OnRay, ray_module
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import contents
from tests.machines import machines

CPU = Compute()
NAMES = ("below_below_refused", "crashed", "distilled", "grandchild", "baseline")


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two machines with one core each, all of them on this one."""
    with machines(1, 1) as (cluster, _):
        yield cluster


@pytest.fixture(params=["here", "workers", "ray"])
def executor(request, toy, toy_root, monkeypatch):
    """The arguments of `execute` that choose an executor, which imports the toy experiment wherever it trains."""
    monkeypatch.chdir(toy_root)
    monkeypatch.syspath_prepend(str(toy_root))
    if request.param == "ray":
        found = request.getfixturevalue("cluster")
        return {"executor": partial(OnRay, ray_module(), found.address, toy_root / "replications", None, None)}
    return {"workers": 2 if request.param == "workers" else 1}


def jobs_of(toy, *names, seeds=(0,)):
    return plan(toy, toy.profile("quick"), names, seeds, CPU, {})


def run(jobs, folder, report=lambda event: None, **how):
    return execute(jobs, Store(folder), compute=CPU, folders={}, report=report, **how)


@pytest.mark.slow
def test_the_graph_is_trained_in_order_once_with_the_bytes_of_one_process(toy, executor, tmp_path):
    jobs, events = jobs_of(toy, *NAMES, seeds=(0, 1)), []
    summary = run(jobs, tmp_path / "store", events.append, **executor)
    serial = run(jobs, tmp_path / "serial")
    assert contents(tmp_path / "store") == contents(tmp_path / "serial") != {}
    assert summary.finished.keys() == serial.finished.keys()
    assert summary.failed.keys() == serial.failed.keys()
    assert summary.blocked == serial.blocked
    arms = {job.description.id: job.arms[0] for job in jobs}
    assert Counter(arms[run] for run in summary.finished) == dict.fromkeys(
        ("teacher", "assistant", "distilled", "grandchild", "baseline"), 2
    )
    assert Counter(arms[run] for run in summary.failed) == {"refused": 2, "crashed": 2}
    assert {arms[run]: arms[parent] for run, parent in summary.blocked.items()} == {
        "below_refused": "refused",
        "below_below_refused": "below_refused",
    }
    for run_id, why in summary.failed.items():
        if arms[run_id] == "crashed":
            log = tmp_path / "store" / "work" / run_id / "error.txt"
            assert why == f"ZeroDivisionError: ünexpected (traceback in {log})"
            assert "train_crashed" in log.read_text(encoding="utf-8")
        else:
            assert why.endswith(": a reason a user can act on")
    told = {
        run_id: [(event.kind, event.epoch) for event in events if event.job.description.id == run_id] for run_id in arms
    }
    ended = {event.job.description.id: place for place, event in enumerate(events) if event.kind == "finished"}
    begun = {event.job.description.id: place for place, event in enumerate(events) if event.kind == "started"}
    for job in jobs:
        run_id = job.description.id
        if run_id in summary.finished:  # begun once, and after its parents
            assert told[run_id] == [("started", 0), ("epoch", 1), ("epoch", 2), ("epoch", 3), ("finished", 0)]
            assert all(ended[parent] < begun[run_id] for parent, _ in job.parents.values())
        elif run_id in summary.failed:
            assert told[run_id] == [("started", 0), ("failed", 0)]
        else:
            assert told[run_id] == [("blocked", 0)]
    assert not list((tmp_path / "store" / "locks").glob("*.alive"))


@pytest.mark.slow
def test_a_session_that_ends_within_a_run_is_continued_by_the_same_call(toy, executor, tmp_path):
    jobs, epochs = jobs_of(toy, "distilled", "baseline"), []

    def die(event):
        if event.kind == "epoch" and event.epoch == 2:
            raise KeyboardInterrupt  # as Ctrl-C does

    with pytest.raises(KeyboardInterrupt):
        run(jobs, tmp_path / "store", die, **executor)
    assert len(Store(tmp_path / "store").ids()) < 3
    summary = run(jobs, tmp_path / "store", lambda event: epochs.append((event.job, event.epoch)), **executor)
    assert len(summary.finished) == 3
    run(jobs, tmp_path / "serial")
    assert contents(tmp_path / "store") == contents(tmp_path / "serial")
    first = [job.label for job, epoch in epochs if epoch == 1]
    assert len(first) < 3  # one went on from its checkpoint
    kinds = []
    again = run(jobs, tmp_path / "store", lambda event: kinds.append(event.kind), **executor)
    assert kinds == ["reused"] * 3
    assert again.finished.keys() == summary.finished.keys()
