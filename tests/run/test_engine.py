"""The graph of arms: order, shared runs, what a failure stops, and the same bytes from one process or several."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import PIL
import pytest
import scipy
import torch

from kdlib.errors import KDError
from kdlib.run.engine import execute
from kdlib.run.environment import (
    LIBRARY,
    NO_CORE,
    NOT_TRAINING,
    RUN_FILES,
    asked_git,
    environment,
    git_state,
    no_commit,
    source_digest,
)
from kdlib.run.experiment import Arm, Compute, Run, load_experiment
from kdlib.run.plan import plan, wanted_arms
from kdlib.run.store import Store, prune, read_run, write_manifest
from tests.conftest import TOY, changed, contents, module_of, write_toy
from tests.toy import STEPS

ROOT, CPU = TOY.parents[1], Compute()


def jobs_of(experiment, *names, seeds=(0,), profile="quick", compute=CPU):
    return plan(experiment, experiment.profile(profile), names, seeds, compute, {})


def by_arm(jobs):
    return {(name, job.description.seed): job for job in jobs for name in job.arms}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def run_here(jobs, store, **rest):
    events = []
    summary = execute(jobs, store, compute=CPU, folders={}, report=events.append, **rest)
    return summary, events


# ---- the plan


def test_what_an_arm_needs_is_pulled_in_parents_first(toy):
    assert [arm.name for arm in wanted_arms(toy, ["grandchild"])] == ["teacher", "assistant", "grandchild"]
    jobs = jobs_of(toy, "grandchild", "baseline", seeds=(3, 1))
    assert [(job.arms, job.description.seed) for job in jobs] == [
        ((name,), seed) for seed in (3, 1) for name in ("teacher", "assistant", "grandchild", "baseline")
    ]
    seen = set()
    for job in jobs:
        assert {run for run, _ in job.parents.values()} <= seen
        seen.add(job.description.id)


def test_parents_are_of_the_same_seed(toy):
    arms = by_arm(jobs_of(toy, "grandchild", seeds=(0, 1)))
    for seed in (0, 1):
        assert arms["assistant", seed].parents == {"teacher": (arms["teacher", seed].description.id, "final")}
        assert arms["grandchild", seed].parents == {"teacher": (arms["assistant", seed].description.id, "final")}


def test_snapshots_of_one_run_share_a_job_and_their_students_do_not(toy):
    arms = by_arm(jobs_of(toy, "distilled", "distilled_early"))
    assert arms["teacher", 0] is arms["early_teacher", 0]
    assert arms["teacher", 0].label == "teacher = early_teacher, seed 0"
    assert arms["distilled_early", 0].parents == {"teacher": (arms["teacher", 0].description.id, "early")}
    assert arms["distilled", 0].description.id != arms["distilled_early", 0].description.id
    assert len(jobs_of(toy, "distilled", "distilled_early")) == 3


def test_a_changed_teacher_changes_its_descendants_ids_and_no_other(toy):
    names = ("grandchild", "baseline")
    before = by_arm(jobs_of(toy, *names))
    arms = tuple(replace(arm, change={"rate": 0.02}) if arm.name == "teacher" else arm for arm in toy.arms)
    after = by_arm(jobs_of(replace(toy, arms=arms), *names))
    moved = {name for name, seed in before if before[name, seed].description.id != after[name, seed].description.id}
    assert moved == {"teacher", "assistant", "grandchild"}


def test_what_else_decides_a_result_moves_every_id(toy):
    def ids(experiment=toy, **rest):
        return {job.description.id for job in jobs_of(experiment, "grandchild", **rest)}

    found = [
        ids(),
        ids(seeds=(1,)),
        ids(profile="other"),
        ids(compute=Compute(threads=2)),
        ids(compute=Compute("cuda")),
        ids(replace(toy, protocol=2)),
        ids(replace(toy, source="other")),
        ids(replace(toy, load_data=lambda config, folders: SimpleNamespace(digest="other", name="toy"))),
    ]
    assert len(set.union(*found)) == 3 * len(found)
    assert ids(compute=Compute("cuda:1")) == ids(compute=Compute("cuda"))  # two cards share their runs


def test_a_copy_under_another_name_shares_the_runs(toy, toy_root, store):
    shutil.copytree(toy_root / "replications" / "toy", toy_root / "replications" / "copy")
    try:
        ids = [[job.description.id for job in jobs_of(load_experiment(name), "grandchild")] for name in ("toy", "copy")]
        assert ids[0] == ids[1]
        assert source_digest(load_experiment("copy").folder) == source_digest(toy.folder)
        # The copy's files may differ: a stored run is compared with the files of the replication that made it.
        with (toy_root / "replications" / "copy" / "experiment.py").open("a") as file:
            file.write("# other arms, say\n")
        source_digest.cache_clear()
        run_here(jobs_of(toy, "teacher"), store)
        _, events = run_here(jobs_of(load_experiment("copy"), "teacher"), store)
        assert [event.kind for event in events] == ["notice", "reused"]
        assert all(name in events[0].text for name in ("toy", "copy"))
    finally:
        shutil.rmtree(toy_root / "replications" / "copy")


def with_one_teacher(toy, monkeypatch, *further):
    module = module_of("toy")
    arms = (
        Arm("one_teacher", (), module.train_teacher, seed=0),
        *toy.arms,
        Arm("taught_by_one", (), module.train_distilled, {"teacher": "one_teacher"}),
        *further,
    )
    return changed(monkeypatch, "toy", arms=arms)


def test_an_arm_of_a_fixed_seed_is_one_run_that_all_seeds_share(toy, store, monkeypatch):
    names = ("teacher", "distilled", "taught_by_one")
    jobs = jobs_of(with_one_teacher(toy, monkeypatch), *names, seeds=(0, 1, 2))
    arms = by_arm(jobs)
    assert len(jobs) == 3 + 3 + 2  # seed 0's own teacher and student are those of the one teacher
    assert arms["one_teacher", 0].arms == ("one_teacher", "teacher")
    assert ("one_teacher", 1) not in arms
    for seed in (0, 1, 2):
        assert arms["taught_by_one", seed].parents == {"teacher": (arms["one_teacher", 0].description.id, "final")}
        assert arms["distilled", seed].parents == {"teacher": (arms["teacher", seed].description.id, "final")}
    summary, events = run_here(jobs, store)
    assert [event.kind for event in events].count("finished") == len(summary.finished) == 8


def test_a_session_of_another_seed_pulls_the_one_teacher_in(toy, monkeypatch):
    jobs = jobs_of(with_one_teacher(toy, monkeypatch), "taught_by_one", seeds=(5,))
    assert [(job.arms, job.description.seed) for job in jobs] == [(("one_teacher",), 0), (("taught_by_one",), 5)]


def test_unknown_names_are_answered_with_those_there_are(toy):
    with pytest.raises(KDError, match="toy: no arm 'student'; there are teacher, early_teacher"):
        jobs_of(toy, "student")
    with pytest.raises(KDError, match="toy: no profile 'full'; there are quick, other"):
        toy.profile("full")
    with pytest.raises(KDError, match="no replication 'nothing' here"):
        load_experiment("nothing")


# ---- in this process


def test_a_complete_run_is_never_trained_again(toy, store, tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    jobs = jobs_of(toy, "distilled", "early_teacher")
    first, events = run_here(jobs, store)
    assert [event.kind for event in events] == ["started", "epoch", "epoch", "epoch", "finished"] * 2
    assert [event.epoch for event in events if event.kind == "epoch"] == [1, 2, 3] * 2
    before, trained = contents(store.folder), log.read_text()
    second, events = run_here(jobs, store)
    assert [event.kind for event in events] == ["reused", "reused"]
    assert second == first
    assert log.read_text() == trained
    assert contents(store.folder) == before
    assert not list((store.folder / "work").iterdir())


def test_students_learn_from_the_snapshot_they_name(toy, store):
    jobs = by_arm(jobs_of(toy, "distilled", "distilled_early"))
    summary, _ = run_here(jobs_of(toy, "distilled", "distilled_early"), store)
    runs = {name: summary.finished[job.description.id] for (name, _), job in jobs.items()}
    assert set(runs["teacher"].metrics) == {"best", "early", "final"}
    assert not torch.equal(runs["teacher"].soft_targets("early.train"), runs["teacher"].soft_targets("final.train"))
    assert runs["distilled"].weights_sha256 != runs["distilled_early"].weights_sha256


def test_who_waits_for_another_session_says_so_and_takes_over_its_run(toy, store, monkeypatch):
    jobs, events = jobs_of(toy, "teacher"), []
    waits, another = threading.Event(), execute(jobs, Store(store.folder.with_name("another")), compute=CPU, folders={})

    def report(event):
        events.append((event.kind, event.text))
        waits.set()

    def look(*of):  # before the wait, because the source files may be edited meanwhile
        if "what code this is" not in events:
            events.append("what code this is")
        return environment(*of)

    monkeypatch.setattr("kdlib.run.group.environment", look)
    with store.lock(jobs[0].description.id):
        session = threading.Thread(
            target=execute, args=(jobs, store), kwargs=dict(compute=CPU, folders={}, report=report)
        )
        session.start()
        assert waits.wait(60)
        shutil.copytree(another.finished[jobs[0].description.id].folder, store.run_folder(jobs[0].description.id))
    session.join(60)
    assert events == [
        "what code this is",
        ("notice", "another session is training this run; this one waits for it"),
        ("finished", ""),
    ]


def test_a_failure_blocks_its_descendants_and_nothing_else(toy, store):
    names = ("below_below_refused", "crashed", "diverged", "unkept", "distilled")
    jobs = by_arm(jobs_of(toy, *names))
    summary, events = run_here(jobs_of(toy, *names), store)
    arm_of = {job.description.id: name for (name, _), job in jobs.items()}
    assert {arm_of[run] for run in summary.finished} == {"teacher", "distilled"}
    failed = {arm_of[run]: text for run, text in summary.failed.items()}
    assert failed.keys() == {"refused", "crashed", "diverged", "unkept"}
    assert failed["unkept"].startswith("unkept, seed 0: expected metrics of absent, found those of ")
    assert failed["refused"] == "refused, seed 0: a reason a user can act on"
    assert failed["diverged"].startswith("diverged, seed 0: expected a finite loss, found nan at epoch ")
    blocked = {arm_of[run]: arm_of[parent] for run, parent in summary.blocked.items()}
    assert blocked == {"below_refused": "refused", "below_below_refused": "below_refused"}
    assert {event.job.arms[0] for event in events if event.kind == "started"}.isdisjoint(blocked)
    text = failed["crashed"]
    assert text.startswith("ZeroDivisionError: ünexpected (traceback in ")
    traceback = Path(text.removesuffix(")").rpartition(" in ")[2]).read_text(encoding="utf-8")
    assert traceback.startswith("Traceback")
    assert 'raise ZeroDivisionError("ünexpected")' in traceback
    assert len(store.ids()) == 2


def test_a_student_of_a_pruned_teacher_gets_the_same_bytes(toy, tmp_path):
    (teacher,) = jobs_of(toy, "teacher")
    stores = {name: Store(tmp_path / name) for name in ("whole", "pruned")}
    for name, store in stores.items():
        summary, _ = run_here([teacher], store)
        if name == "pruned":
            assert prune(summary.finished[teacher.description.id]) > 0
        summary, events = run_here(jobs_of(toy, "grandchild"), store)
        assert events[0].kind == "reused"
        assert len(summary.finished) == 3
    whole, pruned = (contents(store.folder) for store in stores.values())
    assert whole.keys() - pruned.keys() == {f"{teacher.description.id}/weights.safetensors"}
    assert pruned == {name: whole[name] for name in pruned}


def test_a_damaged_run_is_told_and_made_again(toy, store):
    jobs = jobs_of(toy, "distilled")
    run_here(jobs, store)
    before = contents(store.folder)
    path = store.run_folder(jobs[0].description.id) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    summary, events = run_here(jobs, store)
    assert len(summary.finished) == 2
    assert contents(store.folder) == before
    (notice,) = (event for event in events if event.kind == "notice")
    assert str(path) in notice.text
    assert "Set aside as" in notice.text
    assert [event.kind for event in events if event.kind in ("reused", "finished")] == ["finished", "reused"]


def test_a_checkpoint_that_is_damaged_is_told(toy, store, tmp_path):
    (job,) = jobs_of(toy, "baseline")
    work = store.work_folder(job.description.id)
    work.mkdir(parents=True)
    name = f"checkpoint-{source_digest(toy.folder)}.safetensors"
    (work / name).write_bytes(b"")
    _, events = run_here([job], store)
    texts = [event.text for event in events if event.kind == "epoch"]
    assert name in texts[0]
    assert texts[1:] == ["", ""]


def test_a_checkpoint_made_by_other_source_files_is_not_continued(toy, store):
    (job,) = jobs_of(toy, "baseline")
    run = Run(
        job.config,
        0,
        toy.load_data(job.config, {}),
        torch.device("cpu"),
        "",
        {},
        store.work_folder(job.description.id) / "checkpoint-0123456789abcdef.safetensors",
    )
    toy.arm("baseline").train(run)
    assert run.checkpoint.exists()
    _, events = run_here([job], store)
    assert [event.kind for event in events][:2] == ["started", "notice"]
    assert "a checkpoint of other source files" in events[1].text
    assert [event.epoch for event in events if event.kind == "epoch"] == [1, 2, 3]


def test_jobs_without_their_parents_are_refused_rather_than_waited_for(toy, store):
    jobs = [job for job in jobs_of(toy, "distilled", seeds=(0, 1)) if "distilled" in job.arms]
    assert len(jobs) == 2
    with pytest.raises(KDError, match="expected its parents"):
        run_here(jobs, store, workers=2)


def test_the_seconds_of_earlier_lives_count(toy, store):
    (job,) = jobs_of(toy, "baseline")
    work = store.work_folder(job.description.id)
    work.mkdir(parents=True)
    (work / f"seconds-{source_digest(toy.folder)}.txt").write_text("1000\n")
    summary, _ = run_here([job], store)
    (run,) = summary.finished.values()
    assert 1000 < run.environment["seconds"] < 1100


def test_a_record_without_environment_is_reused_with_a_notice(toy, store):
    (job,) = jobs_of(toy, "baseline")
    summary, _ = run_here([job], store)
    (run,) = summary.finished.values()
    record = json.loads((run.folder / "run.json").read_text()) | {"environment": {}}
    (run.folder / "run.json").write_text(json.dumps(record))
    write_manifest(run.folder)
    _, events = run_here([job], store)
    assert [event.kind for event in events] == ["notice", "reused"]


def test_what_a_run_says_of_its_environment(toy, store):
    summary, _ = run_here(jobs_of(toy, "baseline"), store)
    (run,) = summary.finished.values()
    about = run.environment
    assert about["versions"]["torch"] == torch.__version__
    assert (about["commit"], about["clean"]) == ("unknown", None)
    assert about["source"] == source_digest(toy.folder)
    assert about["threads"] == 1
    assert about["replication"] == "toy"
    assert 0 <= about["seconds"] < 60
    assert read_run(run.folder) == run


# ---- in several processes


@pytest.mark.slow
def test_several_processes_give_the_bytes_of_one(server, tmp_path):
    """Even in another time zone, locale and order of hashes: spawned processes are fresh interpreters."""
    settings = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.ISO-8859-9", "PYTHONHASHSEED": "12345", "PYTHONUTF8": "0"}
    arms = ("below_below_refused", "crashed", "diverged", "grandchild", "baseline", "distilled_early")
    serial = server.run(tmp_path / "1", *arms, seeds=(0, 1))
    parallel = server.run(tmp_path / "2", *arms, seeds=(0, 1), workers=2, **settings)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert (
        set(parallel["finished"])
        == set(serial["finished"])
        == {
            f"{arm}/{seed}"
            for arm in ("teacher", "baseline", "distilled_early", "assistant", "grandchild")
            for seed in (0, 1)
        }
    )
    assert (
        set(parallel["blocked"])
        == set(serial["blocked"])
        == {f"{arm}/{seed}" for arm in ("below_refused", "below_below_refused") for seed in (0, 1)}
    )
    assert parallel["failed"]["refused/1"] == "refused, seed 1: a reason a user can act on"
    assert parallel["failed"]["diverged/0"] == serial["failed"]["diverged/0"]
    log = Path(parallel["failed"]["crashed/0"].removesuffix(")").rpartition(" in ")[2])
    assert log.is_relative_to(tmp_path / "2")
    assert "ZeroDivisionError: ünexpected" in log.read_text(encoding="utf-8")
    kinds = [event[0] for event in parallel["events"]]
    assert sorted(kinds) == sorted(event[0] for event in serial["events"])
    assert kinds.count("epoch") == 3 * 10


@pytest.mark.slow
def test_a_worker_ended_from_outside_is_replaced_and_its_run_goes_on(server, tmp_path):
    """Every process ends at its fifth step: a run of nine steps needs three of them, and repeats less than an epoch."""
    log = tmp_path / "log"
    answer = server.run(
        tmp_path / "store", "teacher", "baseline", workers=2, TOY_KILL=f"step:{STEPS + 2}", TOY_LOG=str(log)
    )
    assert answer["failed"] == {}
    assert set(answer["finished"]) == {"teacher/0", "baseline/0"}
    notices = [text for kind, _, text in answer["events"] if kind == "notice"]
    assert (
        notices
        == ["its training process was ended from outside, by signal 9; a new process goes on from the last checkpoint"]
        * 4
    )
    assert Counter(log.read_text().splitlines()) == {
        f"{arm}, seed 0, epoch {epoch}": times
        for arm in ("teacher", "baseline")
        for epoch, times in ((1, 1), (2, 2), (3, 2))
    }
    server.run(tmp_path / "unbroken", "teacher", "baseline")
    assert contents(tmp_path / "store") == contents(tmp_path / "unbroken")


@pytest.mark.slow
def test_a_run_whose_workers_end_again_and_again_fails_and_stops_no_other(server, tmp_path):
    answer = server.run(tmp_path / "store", "always_killed", "below_killed", "killed", "baseline", workers=2)
    assert answer["error"] == ""
    assert set(answer["finished"]) == {"killed/0", "baseline/0"}
    text = answer["failed"].pop("always_killed/0")
    assert text.startswith("its training process was ended from outside 4 times, now by signal 9 (out of memory?).")
    assert "--workers 1" in text
    assert answer["failed"] == {}
    assert set(answer["blocked"]) == {"below_killed/0"}
    kinds = [kind for kind, label, _ in answer["events"] if label.startswith("always_killed")]
    assert kinds == ["started", "notice"] * 3 + ["started", "failed"]


# ---- code and commits


@pytest.mark.slow
def test_edited_code_with_the_same_configuration_is_reused_with_a_notice(server, tmp_path):
    root = write_toy(tmp_path / "edited")
    server.run(tmp_path / "store", "teacher", root=root)
    same = server.run(tmp_path / "store", "teacher", root=write_toy(tmp_path / "copied"))
    assert [event[0] for event in same["events"]] == ["reused"]
    with (root / "replications" / "toy" / "experiment.py").open("a") as file:
        file.write("# an edit\n")
    answer = server.run(tmp_path / "store", "teacher", "baseline", root=root)
    kinds = [event[0] for event in answer["events"]]
    assert kinds == ["notice", "reused", "started", "epoch", "epoch", "epoch", "finished"]
    assert "were made by other source files than these (commit unknown)" in answer["events"][0][2]
    assert "Raise `protocol`" in answer["events"][0][2]
    assert set(answer["finished"]) == {"teacher/0", "baseline/0"}


def test_source_digest_is_that_of_the_files_not_of_their_place(tmp_path):
    folders = [
        write_toy(tmp_path / name, inner) / "replications" / inner for name, inner in (("a", "toy"), ("b", "other"))
    ]
    assert source_digest(folders[0]) == source_digest(folders[1])
    shutil.copytree(tmp_path / "a", tmp_path / "d")
    (tmp_path / "d" / "replications" / "toy" / "kernels.py").write_text("RATE = 1\n")
    shutil.copytree(tmp_path / "a", tmp_path / "e")
    (tmp_path / "e" / "replications" / "toy" / "README.md").write_text("words\n")
    digests = {name: source_digest(tmp_path / name / "replications" / "toy") for name in "ade"}
    assert digests["a"] == digests["e"] != digests["d"]


@pytest.fixture
def moves(tmp_path, monkeypatch):
    """Return whether an edit of a file changes the source digest of the toy experiment, in a copy of kdlib."""
    library, folder = tmp_path / "kdlib", write_toy(tmp_path) / "replications" / "toy"
    shutil.copytree(LIBRARY, library, ignore=shutil.ignore_patterns("__pycache__", "facts"))
    monkeypatch.setattr("kdlib.run.environment.LIBRARY", library)

    def edited(path):
        before, text = source_digest.__wrapped__(folder), path.read_text()
        path.write_text(text + "# edited\n")
        after = source_digest.__wrapped__(folder)
        path.write_text(text)
        return after != before

    return edited


@pytest.mark.slow
def test_source_digest_follows_the_core_the_data_and_two_files_of_run(moves, tmp_path):
    """Compare with the files that exist, because a wrong name in a list would have no effect."""
    library, folder = tmp_path / "kdlib", tmp_path / "replications" / "toy"
    (folder / "figures.py").write_text("COLOUR = 1\n")
    assert {path.name for path in library.glob("*.py") if not moves(path)} == {*NO_CORE}
    assert {path.name for path in library.glob("data/*.py") if not moves(path)} == {*NOT_TRAINING}
    assert {path.name for path in library.glob("run/*.py") if moves(path)} == {*RUN_FILES}
    others = [path for path in library.glob("*/*.py") if path.parent.name not in ("data", "run")]
    assert {path.parent.name for path in others} == {"judge", "report", "cli"}
    assert not [path for path in others if moves(path)]
    assert moves(folder / "experiment.py")
    assert not moves(folder / "figures.py")


@pytest.mark.parametrize("line", ["from replications.one_source import RATE", "import replications.one_source.more"])
def test_source_digest_follows_the_shared_package_that_an_experiment_imports(moves, tmp_path, line):
    for name in ("one_source", "other_source"):
        (tmp_path / "replications" / name).mkdir()
        for file in ("__init__.py", "more.py"):
            (tmp_path / "replications" / name / file).write_text("RATE = 1\n")
    (tmp_path / "replications" / "toy" / "kernels.py").write_text(line + "\n")
    moving = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("replications/*_source/*.py") if moves(path)}
    assert moving == {"replications/one_source/__init__.py", "replications/one_source/more.py"}


def test_all_that_an_experiment_trains_with_is_in_its_source_digest():
    paths = [path for path in ROOT.glob("replications/**/*.py") if path.name != "figures.py"]
    assert len(paths) > 10
    found: set[str] = set()
    while paths:
        new = {name for path in paths for name in imported_from_kdlib(path)} - found - {"cli/__init__.py"}
        found |= new
        paths = [LIBRARY / name for name in new if Path(name).name not in NOT_TRAINING]
    core = {path.name for path in LIBRARY.glob("*.py")}
    data = {f"data/{path.name}" for path in LIBRARY.glob("data/*.py")}
    assert found <= core | data | {f"run/{name}" for name in RUN_FILES}
    assert {"losses.py", "training.py", "data/mitdb.py", "run/store.py"} <= found


def imported_from_kdlib(path):
    """The files of kdlib that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "kdlib":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "kdlib"]
        else:
            continue
        for name in names:
            place = LIBRARY.joinpath(*name.split(".")[1:])
            options = [place.with_suffix(".py"), place / "__init__.py", place.parent.with_suffix(".py"),
                       place.parent / "__init__.py"]  # fmt: skip
            yield next(option for option in options if option.exists()).relative_to(LIBRARY).as_posix()


def test_git_state(tmp_path):
    assert git_state(tmp_path) == ("unknown", None)
    assert no_commit(tmp_path) == ""  # there is no repository
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path / "r"), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments],
            check=True,
            capture_output=True,
        )

    write_toy(tmp_path / "r")
    git("init")
    asked_git.cache_clear()
    assert re.search("^git says: fatal: .*HEAD", no_commit(tmp_path / "r" / "replications"))
    asked_git.cache_clear()
    git("add", ".")
    git("commit", "-m", "first")
    commit = subprocess.run(
        ["git", "-C", str(tmp_path / "r"), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    folder = tmp_path / "r" / "replications"
    assert git_state(folder) == (commit.stdout.strip(), True)
    (tmp_path / "r" / "README.md").write_text("no source")
    assert git_state(folder / "toy")[1] is True
    for name in ("README.md", "bands.toml", "claims.toml"):  # of which the second is written by `kd record`
        (folder / "toy" / name).write_text("# moves no result")
    asked_git.cache_clear()
    assert git_state(folder)[1] is True
    assert environment(folder / "toy", "cpu")["clean"] is False  # the kdlib that runs is of another checkout
    (folder / "toy" / "not_added.py").touch()
    asked_git.cache_clear()  # a session looks once
    assert git_state(folder) == (commit.stdout.strip(), False)
    (tmp_path / "r" / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / "r" / ".git" / "info" / "exclude").write_text("not_added.py\n")
    asked_git.cache_clear()
    assert git_state(folder / "toy")[1] is False  # ignored, and in no commit
    (tmp_path / "r" / ".git" / "info" / "exclude").write_text("")
    git("config", "status.showUntrackedFiles", "no")
    asked_git.cache_clear()
    assert git_state(folder / "toy")[1] is False
    (folder / "toy" / "not_added.py").unlink()
    asked_git.cache_clear()
    assert git_state(folder / "toy")[1] is True
    (folder / "toy" / "experiment.py").write_text("# edited\n")
    asked_git.cache_clear()
    assert git_state(folder) == (commit.stdout.strip(), False)


def git_in(folder):
    """Return a function that runs git in a folder; git is then asked anew."""
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)
        asked_git.cache_clear()

    return git


def test_ends_of_lines_that_git_leaves_alone_are_no_change(tmp_path):
    git = git_in(tmp_path)
    folder = write_toy(tmp_path) / "replications" / "toy"
    (folder / "helper.py").write_bytes(b"RATE = 1\r\n")
    git("init")
    git("-c", "core.autocrlf=false", "add", ".")
    git("commit", "-m", "first")
    for value in ("true", "input", "false"):
        git("config", "core.autocrlf", value)
        assert git_state(folder)[1] is True
    (folder / "helper.py").write_bytes(b"RATE = 2\r\n")
    asked_git.cache_clear()
    assert git_state(folder)[1] is False


def test_a_suite_in_a_subfolder_of_a_repository_with_changes_is_not_clean(tmp_path):
    git = git_in(tmp_path)
    folder = write_toy(tmp_path / "a suite \u00e4") / "replications" / "toy"
    (folder / "link.py").symlink_to(folder / "helper.py")
    (folder / "helper.py").write_text("RATE = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_state(folder)[1] is True
    (folder / "helper.py").write_text("RATE = 2\n")
    asked_git.cache_clear()
    assert git_state(folder)[1] is False
    git("update-index", "--assume-unchanged", str(folder / "helper.py"))
    assert git_state(folder)[1] is False
    (folder / "helper.py").write_text("RATE = 1\n")
    asked_git.cache_clear()
    assert git_state(folder)[1] is True
    (tmp_path / "outside.py").write_text("RATE = 3\n")
    (folder / "link.py").unlink()
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    git("add", str(folder))
    git("commit", "-m", "a link that leads to code of no commit")
    assert git_state(folder)[1] is False


def test_the_versions_of_a_run_are_also_those_of_what_its_experiment_imports(tmp_path):
    folder = write_toy(tmp_path) / "replications" / "toy"
    (folder / "experiment.py").write_text("import torch, scipy.special\nfrom replications.toy.pictures import read\n")
    (folder / "pictures.py").write_text(
        "import os, nowhere\n\ndef read(path):\n    from PIL import Image\n    return Image.open(path)\n"
    )
    (folder / "figures.py").write_text("import matplotlib\n")  # moves no result
    own = {"python", "torch", "numpy", "numba", "kdlib"}
    found = environment(folder, "cpu")["versions"]
    assert {*found} == own | {"scipy", "PIL"}
    assert (found["scipy"], found["PIL"]) == (scipy.__version__, PIL.__version__)


def test_the_environment_can_be_written_as_json_and_names_no_host(tmp_path):
    folder = write_toy(tmp_path) / "replications" / "toy"
    text = json.dumps(environment(folder, "cpu"))
    assert os.uname().nodename not in text
    assert str(tmp_path) not in text
    assert f'"python": "{sys.version.split()[0]}"' in text
