"""A session with a deadline: what it begins, where it stops, and the same bytes when later sessions go on."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from kdlib import training
from kdlib.run.clock import Clock
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute
from kdlib.run.limit import Limit
from kdlib.run.plan import plan
from kdlib.run.session import complete
from kdlib.run.store import Store
from tests.conftest import contents
from tests.toy import EPOCHS, STEPS

CPU = Compute()
ARMS = ("distilled", "baseline")  # and their teacher
ALL = 3 * EPOCHS * STEPS  # steps


@pytest.fixture
def clock(monkeypatch):
    """A clock that a step moves by `clock.step` seconds; `clock.steps` counts them."""
    clock = SimpleNamespace(now=0.0, step=1.0, steps=0)
    for module in ("kdlib.progress", "kdlib.run.limit", "kdlib.run.group", "kdlib.run.clock"):
        monkeypatch.setattr(
            f"{module}.time", SimpleNamespace(monotonic=lambda: clock.now, process_time=lambda: clock.now)
        )
    train_step = training.train_step

    def timed(*arguments):
        clock.now += clock.step
        clock.steps += 1
        return train_step(*arguments)

    monkeypatch.setattr(training, "train_step", timed)
    return clock


def session(toy, store, limit=None, arms=ARMS, seeds=(0,)):
    """The outcome, the jobs, and the events as "kind arm"."""
    jobs, events = plan(toy, toy.profile("quick"), arms, seeds, CPU, {}), []
    summary = execute(jobs, store, compute=CPU, folders={}, report=events.append, limit=limit)
    return summary, jobs, [f"{event.kind} {event.job.arms[0]}" for event in events]


def arms_of(jobs, runs):
    return {f"{job.arms[0]} {job.description.seed}" for job in jobs if job.description.id in runs}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 4, 10])
def test_sessions_of_a_few_steps_end_in_the_same_bytes_and_repeat_no_step(toy, tmp_path, clock, seconds):
    whole, store = Store(tmp_path / "whole"), Store(tmp_path / "store")
    session(toy, whole)
    clock.steps, sessions = 0, 0
    while True:
        summary, jobs, _ = session(toy, store, Limit(clock.now + seconds))
        sessions += 1
        assert not summary.failed
        assert summary.finished.keys() | summary.left == {job.description.id for job in jobs}
        if not summary.left:
            break
        assert sessions < 2 * ALL
    assert contents(store.folder) == contents(whole.folder)
    assert clock.steps == ALL
    assert sessions > ALL // (seconds + 1)
    assert not list((store.folder / "work").iterdir())


def test_an_epoch_that_would_not_end_in_time_is_not_begun(toy, tmp_path, clock):
    """An epoch lasts 3 s: after two of them, 2.5 s are too short."""
    summary, jobs, events = session(toy, Store(tmp_path), Limit(8.5))
    assert clock.now == 6
    assert events == ["started teacher", "epoch teacher", "epoch teacher", "stopped teacher"]
    assert arms_of(jobs, summary.left) == {"teacher 0", "distilled 0", "baseline 0"}


def test_a_long_epoch_is_begun_and_stops_within(toy, tmp_path, clock):
    clock.step = 100.0
    session(toy, Store(tmp_path), Limit(450.0))
    assert clock.steps == 5


def test_a_run_that_reaches_no_checkpoint_in_time_is_not_begun(toy, tmp_path, clock):
    """A later one may still be begun. Of a long epoch, some steps are enough: a checkpoint can follow each of them."""
    known = {"teacher": 30.0, "baseline": 5.0}
    _, _, events = session(toy, Store(tmp_path / "1"), Limit(9.0, dict(known)))
    assert [event for event in events if event.startswith("started")] == ["started baseline"]
    _, _, events = session(toy, Store(tmp_path / "2"), Limit(clock.now + 11.0, dict(known)))
    assert events[0] == "started teacher"
    assert session(toy, Store(tmp_path / "4"), Limit(clock.now))[2] == []


def test_finished_runs_say_how_long_an_epoch_takes(toy, tmp_path, clock):
    """Seed 0 takes 3 s for an epoch. After its 9 s, 2 s are too short for one of seed 1."""
    summary, jobs, events = session(toy, Store(tmp_path), Limit(11.0), arms=("baseline",), seeds=(0, 1))
    assert (clock.now, events.count("started baseline")) == (9, 1)
    assert arms_of(jobs, summary.left) == {"baseline 1"}
    # Also a later session knows it, from the run in the store.
    assert session(toy, Store(tmp_path), Limit(clock.now + 2), arms=("baseline",), seeds=(0, 1))[2] == [
        "reused baseline"
    ]


def test_what_failed_is_told_in_a_session_that_stops_too(toy, tmp_path, clock):
    summary, jobs, _ = session(toy, Store(tmp_path), Limit(1.0), arms=("below_refused", "baseline", "teacher"))
    assert arms_of(jobs, summary.failed) == {"refused 0"}
    assert arms_of(jobs, summary.blocked) == {"below_refused 0"}
    assert arms_of(jobs, summary.left) == {"baseline 0", "teacher 0"}


def test_complete_seeds_with_all_that_they_need(toy):
    jobs = plan(toy, toy.profile("quick"), ARMS, (0, 1), CPU, {})
    of = {f"{job.arms[0]} {job.description.seed}": job.description.id for job in jobs}

    def kept(*left):
        summary = SimpleNamespace(finished={*of.values()} - {of[name] for name in left})
        return arms_of(jobs, {job.description.id for job in complete(jobs, summary)})

    assert kept() == of.keys()
    assert kept("baseline 1") == {"teacher 0", "distilled 0", "baseline 0"}
    assert kept("teacher 0", "distilled 0", "distilled 1") == set()


def test_the_parent_of_a_complete_seed_is_kept_although_its_own_seed_is_not_complete(toy):
    jobs = plan(toy, toy.profile("quick"), ("distilled", "baseline"), (0, 1), CPU, {})
    teacher, student, other = (
        next(job for job in jobs if name in job.arms and job.description.seed == seed)
        for name, seed in (("teacher", 0), ("distilled", 1), ("baseline", 0))
    )
    child = SimpleNamespace(description=student.description, parents=teacher_of(teacher))
    finished = {teacher.description.id, child.description.id}
    assert complete([teacher, other, child], SimpleNamespace(finished=finished)) == [teacher, child]


def teacher_of(job):
    return {"teacher": (job.description.id, "final")}


@pytest.mark.slow
def test_workers_stop_too(server, tmp_path):
    """Two sessions have some steps of 0.5 s, the last one has no limit; workers need seconds before the first step."""
    whole = tmp_path / "whole"
    server.run(whole, *ARMS, seeds=(0, 1))
    begun, left, wait = 0, True, 6.0
    while begun < 2 and left:
        assert wait < 200
        answer = server.run(tmp_path / "store", *ARMS, seeds=(0, 1), workers=2, seconds=wait, TOY_SLEEP="0.5")
        steps = any(event[0] == "epoch" for event in answer["events"])
        left, begun, wait = answer["left"], begun + steps, wait if steps else wait + 8  # a busy machine
    assert begun == 2
    assert not server.run(tmp_path / "store", *ARMS, seeds=(0, 1), workers=2)["left"]
    assert contents(tmp_path / "store") == contents(whole)


def test_a_run_that_waited_too_long_for_another_session_is_not_begun(toy, tmp_path, clock, monkeypatch):
    lock = Store.lock

    def waits(self, *arguments):
        clock.now = 50.0
        return lock(self, *arguments)

    monkeypatch.setattr(Store, "lock", waits)
    summary, jobs, events = session(toy, Store(tmp_path), Limit(40.0))
    assert (clock.steps, events) == (0, ["stopped teacher"])
    assert arms_of(jobs, summary.left) == {"teacher 0", "distilled 0", "baseline 0"}


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for_until_the_deadline(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("kdlib.run.limit.LEAST_SECONDS", 0.0)
    store = Store(tmp_path)
    (job,) = plan(toy, toy.profile("quick"), ("baseline",), (0,), CPU, {})
    code = (
        "import sys, time; from pathlib import Path; from kdlib.run.store import Store\n"
        f"with Store(Path({str(tmp_path)!r})).lock({job.description.id!r}):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        began = time.monotonic()
        summary, jobs, events = session(toy, store, Limit(began + 2.0), arms=("baseline",))
        waited = time.monotonic() - began
        other.kill()
    assert 1.5 < waited < 20
    assert arms_of(jobs, summary.left) == {"baseline 0"}
    assert events == ["notice baseline"]


def test_time_in_which_the_process_is_stopped_is_not_training_time(monkeypatch, tmp_path):
    passed = SimpleNamespace(wall=0.0, busy=0.0)
    made_up = SimpleNamespace(monotonic=lambda: passed.wall, process_time=lambda: passed.busy)
    monkeypatch.setattr("kdlib.run.clock.time", made_up)

    def spend(seconds, busy):
        passed.wall += seconds
        passed.busy += busy

    clock = Clock(tmp_path / "seconds.txt")
    spend(60, 30)  # it shared its core: all of it counts
    clock.epoch_ends()
    assert (clock.seconds, clock.epoch_seconds) == (60, 60)
    spend(3600, 20)  # it was stopped for most of an hour
    clock.epoch_ends()
    assert (clock.seconds, clock.epoch_seconds) == (80, 20)
    assert Clock(tmp_path / "seconds.txt").seconds == 80
