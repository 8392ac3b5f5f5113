"""A run, or a file of a begun run, that cannot be read just now stops nothing else and is not moved."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdlib.run.engine import execute
from kdlib.run.environment import source_digest
from kdlib.run.experiment import Compute
from kdlib.run.plan import plan
from kdlib.run.session import is_stored
from kdlib.run.store import Store

# Reading it fails, even for root, who may read everything.
UNREADABLE = Path("/proc/self/mem")
needs_proc = pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that cannot be read")


def session(toy, store, *arms):
    jobs = plan(toy, toy.profile("quick"), arms, (0,), Compute(), {})
    summary = execute(jobs, store, compute=Compute(), folders={})
    assert not summary.left
    return {name: job for job in jobs for name in job.arms}, summary


@needs_proc
def test_a_stored_run_that_cannot_be_read_fails_alone(toy, tmp_path):
    store = Store(tmp_path)
    session(toy, store, "distilled", "baseline")
    jobs, _ = session(toy, store, "baseline")
    folder = store.run_folder(jobs["baseline"].description.id)
    (folder / "manifest.json").rename(tmp_path / "manifest.json")
    (folder / "manifest.json").symlink_to(UNREADABLE)
    jobs, summary = session(toy, store, "distilled", "baseline", "assistant")
    ids = {name: job.description.id for name, job in jobs.items()}
    assert summary.finished.keys() == {ids["teacher"], ids["distilled"], ids["assistant"]}
    assert summary.failed.keys() == {ids["baseline"]}
    assert "manifest.json: cannot be read (Input/output error)" in summary.failed[ids["baseline"]]
    assert [is_stored(SimpleNamespace(store=store), jobs[name]) for name in ("baseline", "teacher")] == [False, True]
    assert not (tmp_path / "damaged").exists()
    (folder / "manifest.json").unlink()
    (tmp_path / "manifest.json").rename(folder / "manifest.json")
    assert len(session(toy, store, "distilled", "baseline", "assistant")[1].finished) == 4


@needs_proc
def test_a_checkpoint_that_cannot_be_read_stops_its_run_and_stays(toy, tmp_path):
    store = Store(tmp_path)
    session(toy, store, "teacher")
    work = tmp_path / "work"
    (baseline,) = plan(toy, toy.profile("quick"), ("baseline",), (0,), Compute(), {})
    path = work / baseline.description.id / f"checkpoint-{source_digest(toy.folder)}.safetensors"
    path.parent.mkdir(parents=True)
    path.symlink_to(UNREADABLE)
    _, summary = session(toy, store, "baseline", "distilled")
    assert len(summary.finished) == 2
    (text,) = summary.failed.values()
    assert "cannot be read (Input/output error)" in text
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_a_pipe_in_place_of_the_seconds_blocks_nothing(toy, tmp_path):
    (baseline,) = plan(toy, toy.profile("quick"), ("baseline",), (0,), Compute(), {})
    work = tmp_path / "work" / baseline.description.id
    work.mkdir(parents=True)
    os.mkfifo(work / f"seconds-{source_digest(toy.folder)}.txt")
    _, summary = session(toy, Store(tmp_path), "baseline")
    assert len(summary.finished) == 1
