"""What a machine of a cluster does with a group, in this process and without a cluster."""

from __future__ import annotations

import math
import platform
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdlib.run import node
from kdlib.run.copying import copy_begun, copy_finished, read_contents
from kdlib.run.engine import execute
from kdlib.run.environment import source_digest
from kdlib.run.experiment import Compute
from kdlib.run.group import Outcome, train_group
from kdlib.run.node import Order, train_packed
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import changed, contents

CPU = Compute()


def jobs_of(toy, *names):
    return plan(toy, toy.profile("quick"), names, (0,), CPU, {})


@pytest.fixture
def order(toy, tmp_path):
    """A function that makes the order for a job; the machine sees another folder than the session's store."""
    (tmp_path / "store" / "locks").mkdir(parents=True)
    (tmp_path / "store" / "locks" / "token").write_text("secret")
    code = source_digest(toy.folder), {"commit": "c0ffee", "clean": True}
    place = tmp_path / "store", "locks/token", "that of another folder"
    return lambda *jobs: Order(list(jobs), CPU, *code, (), None, math.inf, math.inf, *place)


@pytest.fixture
def stops(monkeypatch):
    """Let the time be up when the first epoch has ended."""
    clock = SimpleNamespace(late=False)

    def trained(group, setting, report):
        def told(event):
            report(event)
            clock.late |= event.kind == "epoch"

        return train_group(group, setting, told)

    monkeypatch.setattr(node, "train_group", trained)
    monkeypatch.setattr("kdlib.run.group.time.monotonic", lambda: 1e9 if clock.late else 0.0)
    return clock


def serial(jobs, folder):
    execute(jobs, Store(folder), compute=CPU, folders={})
    return contents(folder)


def test_a_run_comes_back_whole_with_the_parent_that_was_sent(toy, order, tmp_path):
    teacher, student = jobs_of(toy, "distilled")
    store = Store(tmp_path / "store")
    *events, parcel = train_packed(order(teacher), [])
    assert [event.kind for event in events] == ["started", "epoch", "epoch", "epoch"]
    assert parcel.outcome == Outcome()
    ((run, files),) = parcel.finished
    assert (run.environment["commit"], run.environment["clean"]) == ("c0ffee", True)
    assert copy_finished(run, files, store)
    packed = read_contents(store.run_folder(teacher.id), pruned=False)
    *_, parcel = train_packed(order(student), [], packed)
    assert [run.id for run, _ in parcel.finished] == [student.id]  # the parent does not come back
    for run, files in parcel.finished:
        copy_finished(run, files, store)
    assert contents(store.folder) == serial([teacher, student], tmp_path / "serial")


def test_a_stopped_run_brings_its_checkpoint_back_and_another_machine_goes_on(toy, order, stops, tmp_path):
    (job,) = jobs_of(toy, "baseline")
    store = Store(tmp_path / "store")
    *events, parcel = train_packed(replace(order(job), seconds=1.0), [])
    assert parcel.outcome == Outcome(stopped=True)
    assert [event.epoch for event in events if event.kind == "epoch"] == [1]
    (begun,) = parcel.begun
    assert not parcel.finished
    assert copy_begun(begun, store)
    assert (store.work_folder(job.id) / begun.name).read_bytes() == begun.content
    stops.late = False
    *events, parcel = train_packed(order(job), [begun])
    assert [event.epoch for event in events if event.kind == "epoch"] == [2, 3]
    for run, files in parcel.finished:
        copy_finished(run, files, store)
    assert contents(store.folder) == serial([job], tmp_path / "serial")


def test_an_order_that_has_waited_for_a_machine_gets_no_time_beyond_the_deadline(toy, order):
    (job,) = jobs_of(toy, "baseline")
    sent = time.time() - 60
    (parcel,) = train_packed(replace(order(job), seconds=30.0, until=sent + 30), [])
    assert parcel == (Outcome(stopped=True), [], [], "")
    *_, parcel = train_packed(replace(order(job), seconds=90.0, until=sent + 90), [])
    assert parcel.outcome == Outcome()


def test_a_run_that_fails_in_mid_training_brings_its_checkpoint_back(toy, order, monkeypatch):
    (job,) = jobs_of(toy, "baseline")

    def trained(group, setting, report):
        def told(event):
            report(event)
            if event.epoch == 2:
                raise OSError("no space left")

        return train_group(group, setting, told)

    monkeypatch.setattr(node, "train_group", trained)
    *_, parcel = train_packed(order(job), [])
    assert parcel.outcome == Outcome("OSError: no space left")
    assert "told" in parcel.log
    monkeypatch.undo()
    *events, parcel = train_packed(order(job), parcel.begun)
    assert [event.epoch for event in events if event.kind == "epoch"] == [3]
    assert len(parcel.finished) == 1


def test_a_machine_that_sees_the_store_keeps_the_checkpoint_there_alone(toy, order, stops, tmp_path):
    (job,) = jobs_of(toy, "baseline")
    shared = replace(order(job), secret="secret", seconds=1.0)
    *_, parcel = train_packed(shared, [])
    assert parcel.outcome.stopped
    assert not parcel.begun
    assert list(Store(tmp_path / "store").work_folder(job.id).glob("checkpoint-*"))
    stops.late = False
    *events, parcel = train_packed(replace(shared, seconds=math.inf), [])
    assert [event.epoch for event in events if event.kind == "epoch"] == [2, 3]
    assert not Store(tmp_path / "store").ids()  # only the session writes runs
    assert len(parcel.finished) == 1


def test_other_source_files_and_other_data_are_refused_by_the_name_of_the_machine(toy, order, monkeypatch):
    (job,) = jobs_of(toy, "baseline")
    (parcel,) = train_packed(replace(order(job), source="0123456789abcdef"), [])
    assert parcel.outcome.error.startswith(
        f"machine {platform.node()}: expected the source files of the session (digest 0123456789abcdef), found others"
    )
    changed(monkeypatch, "toy", load_data=lambda config, folders: SimpleNamespace(digest="of another set", name="toy"))
    (parcel,) = train_packed(order(job), [])
    assert parcel.outcome.error.startswith(
        f"machine {platform.node()}: expected the data of the session (digest toy-data), found others (digest of "
    )
    (parcel,) = train_packed(replace(order(job), sets=("no such set",)), [])
    assert parcel.outcome.error.startswith(f"machine {platform.node()}: expected a data set (")


def test_a_run_that_fails_says_why_and_an_unexpected_error_comes_with_its_traceback(toy, order):
    refused, crashed = jobs_of(toy, "refused", "crashed")
    *_, parcel = train_packed(order(refused), [])
    assert parcel == (Outcome("refused, seed 0: a reason a user can act on"), [], [], "")
    *_, parcel = train_packed(order(crashed), [])
    assert parcel.outcome == Outcome("ZeroDivisionError: ünexpected")
    assert "in train_crashed" in parcel.log
