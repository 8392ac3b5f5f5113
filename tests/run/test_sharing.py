"""Sessions that have one store share the work; a lock that a dead machine has left is told and not waited for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from kdlib import alive
from kdlib.errors import KDError
from kdlib.files import locked
from kdlib.report.local import write_local
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute
from kdlib.run.plan import plan
from kdlib.run.store import Store
from kdlib.run.transfer import import_runs
from tests.conftest import contents
from tests.toy import EPOCHS

SEEDS = tuple(range(8))
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def started(answer):
    return {label for kind, label, _ in answer["events"] if kind == "started"}


@pytest.mark.slow
def test_four_sessions_take_different_runs(server, tmp_path):
    """Each run takes about a second of sleep, so no session is done before the last one begins."""
    log = tmp_path / "log"
    waits = [
        server.start(tmp_path / "store", ("baseline",), seeds=SEEDS, TOY_SLEEP="0.1", TOY_LOG=str(log))
        for _ in range(4)
    ]
    answers = [wait() for wait in waits]
    assert all(len(answer["finished"]) == len(SEEDS) and not answer["left"] for answer in answers)
    assert set(Counter(log.read_text().splitlines()).values()) == {1}
    assert len(log.read_text().splitlines()) == len(SEEDS) * EPOCHS
    shares = [started(answer) for answer in answers]
    assert sum(map(len, shares)) == len(SEEDS)
    assert all(shares)
    server.run(tmp_path / "alone", "baseline", seeds=SEEDS)
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")


class Holder:
    """Another process that holds a lock."""

    def __init__(self, lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "\n"

    def end(self):
        self.process.communicate("\n")


@pytest.fixture
def hold():
    holders = []

    def held(lock):
        holders.append(Holder(lock))
        return holders[-1]

    yield held
    for holder in holders:
        if holder.process.returncode is None:
            holder.end()


def test_a_run_of_another_session_is_passed_over_and_waited_for_when_nothing_else_is_left(toy, tmp_path, hold):
    store = Store(tmp_path)
    jobs = plan(toy, toy.profile("quick"), ("distilled", "baseline"), (0,), Compute(), {})
    teacher = jobs[0].description.id
    holder, events = hold(store.lock_file(teacher)), []

    def report(event):
        events.append(f"{event.kind} {event.job.arms[0]}")
        if event.kind == "notice":
            holder.end()

    summary = execute(jobs, store, compute=Compute(), folders={}, report=report)
    assert len(summary.finished) == 3
    assert [event for event in events if not event.startswith("epoch")] == [
        "started baseline",
        "finished baseline",
        "notice teacher",
        "started teacher",
        "finished teacher",
        "started distilled",
        "finished distilled",
    ]


def execute_one(toy, store, events):
    jobs = plan(toy, toy.profile("quick"), ("distilled", "baseline"), (0,), Compute(), {})
    summary = execute(jobs, store, compute=Compute(), folders={}, report=lambda event: events.append(event.kind))
    return {job.arms[0]: job.description.id for job in jobs}, summary


def test_a_lock_of_a_machine_that_is_gone_is_told_and_its_deletion_is_the_remedy(toy, tmp_path, hold, fast):
    """The lock is held, as by a file server that has not heard of the end of a machine."""
    store = Store(tmp_path)
    job = plan(toy, toy.profile("quick"), ("teacher",), (0,), Compute(), {})[0]
    lock = store.lock_file(job.description.id)
    hold(lock)
    lock.with_suffix(".alive").write_text("process 7 of machine gone\n")
    os.utime(lock.with_suffix(".alive"), (time.time() - 3600, time.time() - 3600))
    ids, summary = execute_one(toy, store, [])
    assert summary.finished.keys() == {ids["baseline"]}
    assert summary.failed.keys() == {ids["teacher"]}
    assert summary.blocked.keys() == {ids["distilled"]}
    text = summary.failed[ids["teacher"]]
    assert text.startswith(f"{lock}: expected a sign of life at most 600 s old")
    assert "process 7 of machine gone" in text
    assert "delete this lock, then run the same command again" in text
    lock.unlink()
    assert len(execute_one(toy, store, [])[1].finished) == 3
    assert not list(lock.parent.glob("*.alive"))


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_without_flock_a_lock_that_another_machine_has_left_is_told(toy, tmp_path, no_flock, fast):
    store = Store(tmp_path / "store")
    job = plan(toy, toy.profile("quick"), ("teacher",), (0,), Compute(), {})[0]
    lock = store.lock_file(job.description.id)
    lock.parent.mkdir(parents=True)
    lock.write_text("7\ngone\n")
    lock.with_suffix(".alive").write_text("process 7 of machine gone\n")
    os.utime(lock.with_suffix(".alive"), (time.time() - 3600, time.time() - 3600))
    ids, summary = execute_one(toy, store, [])
    assert summary.finished.keys() == {ids["baseline"]}
    assert "machine gone" in summary.failed[ids["teacher"]]
    lock.unlink()
    assert len(execute_one(toy, store, [])[1].finished) == 3
    assert not list(lock.parent.glob("*.lock"))


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(alive, "BEAT_SECONDS", 0.05)


def test_who_holds_a_lock_shows_that_it_is_alive_until_it_is_released(tmp_path, fast):
    lock, sign, threads = tmp_path / "one.lock", tmp_path / "one.alive", threading.active_count()
    sign.write_text("of a killed process")
    with locked(lock, "remedy"):
        with locked(lock, "remedy"):  # once more: the sign stays
            pass
        assert sign.read_text().startswith(f"process {os.getpid()} of machine ")
        os.utime(sign, (0, 0))
        alive.refuse_dead(lock)  # it looks a second time
        assert sign.stat().st_mtime > 0
    assert not sign.exists()
    assert threading.active_count() == threads
    alive.refuse_dead(lock)  # without a lock there is nothing to refuse
    lock.touch()
    alive.refuse_dead(lock)  # who has shown no sign may be about to
    sign.touch()
    for old in (sign, lock):
        os.utime(old, (0, 0))
        with pytest.raises(KDError, match="expected a sign of life"):
            alive.refuse_dead(lock)
        sign.unlink(missing_ok=True)


@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_does_not_make_the_holder_of_a_lock_seem_dead(tmp_path, fast, monkeypatch, there):
    lock, sign = tmp_path / "one.lock", tmp_path / "one.alive"

    def full(path, *_, **__):
        raise OSError(28, "No space left on device")

    if not there:
        monkeypatch.setattr(Path, "write_text", full)
    with locked(lock, "remedy"):
        monkeypatch.setattr(Path, "write_text", full)
        assert sign.exists() == there
        for path in filter(Path.exists, (sign, lock)):
            os.utime(path, (0, 0))
        alive.refuse_dead(lock)  # it looks a second time


def dead(lock):
    """A lock that a machine without flock has left: three hours old, without a sign of life."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("4242\nnode17\n")
    os.utime(lock, (time.time() - 10800,) * 2)
    return rf"{lock.name}: expected a sign of life .* \(4242 node17\), found one 108\d\d s old\. .* delete this lock"


@pytest.fixture
def no_flock(monkeypatch):
    import fcntl

    def absent(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", absent)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_no_lock_of_a_dead_machine_is_waited_for_though_it_has_no_sign_of_life(toy, tmp_path, no_flock, fast):
    store, waits = Store(tmp_path / "store"), []
    lock = store.lock_file(plan(toy, toy.profile("quick"), ("teacher",), (0,), Compute(), {})[0].description.id)
    expected = dead(lock)
    ids, summary = execute_one(toy, store, [])
    assert re.search(expected, summary.failed[ids["teacher"]])
    with pytest.raises(KDError, match=expected), store.lock(ids["teacher"], lambda: waits.append(1)):
        pass
    assert waits == [1]
    lock.unlink()
    assert len(execute_one(toy, store, [])[1].finished) == 3
    other = Store(tmp_path / "other")
    expected = dead(other.lock_file(ids["teacher"]))
    (refused,) = import_runs(store.folder, other).refused
    assert re.search(expected, str(refused))


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_tables_say_that_they_wait_and_refuse_the_lock_of_a_dead_session(tmp_path, no_flock, fast):
    waits, expected = [], dead(tmp_path / ".lock")
    with pytest.raises(KDError, match=expected):
        write_local(tmp_path, lambda named: [], waits.append)
    assert waits == [tmp_path / ".lock"]


def test_tables_wait_for_another_session_that_lives(tmp_path, hold, fast):
    holder = hold(tmp_path / ".lock")
    assert write_local(tmp_path, lambda named: [], lambda lock: holder.end()) == []


def test_a_run_in_training_has_a_sign_of_life(server, tmp_path):
    wait = server.start(tmp_path, ("baseline",), TOY_SLEEP="60")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("locks/*.alive")) and time.monotonic() < deadline:
        time.sleep(0.02)
    (sign,) = tmp_path.glob("locks/*.alive")
    assert sign.with_suffix(".lock").exists()
    assert wait(kill=True)["killed"]
