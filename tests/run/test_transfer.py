"""Runs travel between stores: verified, never in place of a good run, and whole or absent after every kill."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdlib.checkpoint import FORMAT
from kdlib.cli import main
from kdlib.errors import KDError
from kdlib.files import DamagedFile, save_tensors
from kdlib.run.store import Description, Result, Store, prune, read_run, write_manifest
from kdlib.run.transfer import Outcome, export_runs, import_runs
from tests.conftest import contents
from tests.made_runs import checkpoint_notes
from tests.toy import EPOCHS, STEPS

ROOT = Path(__file__).parents[2]
TEACHER = Description("source/train_teacher", 1, {"epochs": 3, "sizes": [1, 2]}, 0, "data")
CHILD = Description("source/train_student", 1, {"epochs": 3}, 0, "data", {"teacher": f"{TEACHER.id}/final"})
RESULT = Result(
    {"final": {"accuracy": 0.5}},
    [{"training_loss": 0.25}],
    {"final": {"w": torch.arange(3.0)}},
    {"final.train": torch.ones(2, 3)},
)
BEGUN, ORIGIN = "0123456789abcdef", "fedcba9876543210"
CHECKPOINT, SECONDS = f"checkpoint-{ORIGIN}.safetensors", f"seconds-{ORIGIN}.txt"


def begin(store, epochs, run_id=BEGUN, within=0):
    """Write the checkpoint of a run, within an epoch if it has losses of steps, and its seconds."""
    tensors = {"model/w": torch.full((2,), float(epochs))} | ({"epoch/losses": torch.ones(within)} if within else {})
    notes = checkpoint_notes() | {"history": [{"loss": 1.0}] * epochs}
    save_tensors(store.work_folder(run_id) / CHECKPOINT, tensors, notes)
    (store.work_folder(run_id) / SECONDS).write_text(f"{epochs}.50\n")


def filled(folder):
    """A store with a teacher, its student, and a run of 2 epochs."""
    store = Store(folder)
    store.save(TEACHER, RESULT, {"commit": "abc"})
    store.save(CHILD, replace(RESULT, soft_targets={}), {"commit": "abc"})
    begin(store, 2)
    return store


@pytest.fixture
def store(tmp_path):
    return filled(tmp_path / "store")


@pytest.fixture
def target(tmp_path):
    return Store(tmp_path / "target")


def tree(folder):
    """All files but the locks, with their content, and all links."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.relative_to(folder).parts[0] != "locks"
    }


def kd(capsys, *arguments):
    status = main(["runs", *(str(argument) for argument in arguments)])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err


# ---- there and back


def test_an_export_is_a_store_and_its_import_is_the_same_store(store, target, tmp_path, capsys):
    before, folder = tree(store.folder), tmp_path / "on" / "a" / "disk"
    assert kd(capsys, "export", folder, "--store", store.folder) == (
        0,
        ["2 runs exported, 1 begun run, 0 already there"],
        "",
    )
    assert tree(folder) == before
    assert tree(store.folder) == before
    listed = kd(capsys, "list", "--store", store.folder)
    assert len(listed[1]) == 1 + 2  # below the heads
    assert kd(capsys, "list", "--store", folder) == listed
    assert kd(capsys, "verify", "--store", folder)[0] == 0
    shutil.rmtree(folder / "locks")
    exported = tree(folder)
    assert kd(capsys, "import", folder, "--store", target.folder) == (
        0,
        ["2 runs imported, 1 begun run, 0 already there"],
        "",
    )
    assert tree(target.folder) == exported
    assert sorted(path.name for path in folder.iterdir()) == ["runs", "work"]  # nothing was written to it
    assert target.find(CHILD) == replace(store.find(CHILD), folder=target.run_folder(CHILD.id))
    for what in (("export", folder, "--store", store.folder), ("import", folder, "--store", target.folder)):
        assert kd(capsys, *what)[1] == [f"0 runs {what[0]}ed, 0 begun runs, 3 already there"]
    assert tree(target.folder) == tree(folder) == before


def test_weights_may_be_left_out_and_come_later(store, target):
    assert export_runs(store, target.folder, pruned=True) == Outcome(2, 1, 0)
    run = target.find(TEACHER)
    assert "weights.safetensors" not in run.files
    assert not (run.folder / "weights.safetensors").exists()
    assert run.digests() == store.find(TEACHER).digests()
    assert torch.equal(run.soft_targets("final.train"), torch.ones(2, 3))
    with pytest.raises(KDError, match="pruned"):
        run.weights("final")
    assert export_runs(store, target.folder, pruned=True) == Outcome(0, 0, 3)
    assert export_runs(store, target.folder) == Outcome(2, 0, 1)
    assert tree(target.folder) == tree(store.folder)
    assert export_runs(store, target.folder, pruned=True) == Outcome(0, 0, 3)
    assert tree(target.folder) == tree(store.folder)


def test_a_pruned_run_travels_and_takes_no_weights_away(store, target):
    prune(store.find(TEACHER))
    import_runs(store.folder, target)
    assert target.find(TEACHER) == replace(store.find(TEACHER), folder=target.run_folder(TEACHER.id))
    whole = filled(target.folder.with_name("whole"))
    assert import_runs(store.folder, whole) == Outcome(0, 0, 3)
    assert whole.find(TEACHER).weights("final").keys() == {"w"}


def test_only_runs_with_these_ids(store, target, capsys):
    assert TEACHER.id[:4] != CHILD.id[:4]
    assert export_runs(store, target.folder, prefixes=[CHILD.id[:4]]) == Outcome(1, 0, 0)
    assert target.ids() == [CHILD.id]  # without its parent
    assert import_runs(target.folder, Store(target.folder.with_name("third"))) == Outcome(1, 0, 0)
    assert export_runs(store, target.folder, prefixes=[BEGUN[:4], TEACHER.id]) == Outcome(1, 1, 0)
    status, _, errors = kd(capsys, "export", target.folder, "--runs", f"{TEACHER.id},zz", "--store", store.folder)
    assert (status, "run 'zz': expected the beginning of an id in" in errors) == (2, True)


def test_only_runs_of_a_profile(toy, toy_root, tmp_path, target, monkeypatch, server):
    monkeypatch.chdir(toy_root)
    folder = tmp_path / "toys"
    server.run(folder, "teacher", "distilled")
    store = Store(folder)
    store.save(replace(TEACHER, recipe="toy/train_teacher"), RESULT, {})  # with another configuration
    begin(store, 2)
    for profile, runs in (("other", 0), ("quick", 2)):
        assert export_runs(store, target.folder, profile=profile).runs == runs
    assert target.begun() == [BEGUN]
    with pytest.raises(KDError, match="--profile quikc: expected a profile of a replication in"):
        export_runs(store, target.folder, profile="quikc")


# ---- never in place of a good run


def test_another_run_of_the_same_id_is_refused_and_the_rest_goes_on(store, target, capsys):
    weights = {"final": {"w": torch.zeros(3)}}
    target.save(TEACHER, replace(RESULT, weights=weights), {})
    own, before = target.find(TEACHER), tree(target.folder)
    status, lines, _ = kd(capsys, "import", store.folder, "--store", target.folder)
    assert status == 1
    assert lines[-1] == "1 run imported, 1 begun run, 0 already there, 1 refused"
    assert own.weights_sha256 in lines[0]
    assert store.find(TEACHER).weights_sha256 in lines[0]
    assert tree(target.folder).items() >= before.items()
    assert target.find(CHILD) is not None


@pytest.mark.parametrize(
    "other", [{"soft_targets": {"final.train": torch.zeros(2, 3)}}, {"metrics": {"final": {"accuracy": 0.6}}}]
)
def test_equal_weights_with_other_soft_targets_or_numbers_are_refused(store, target, other):
    target.save(TEACHER, replace(RESULT, **other), {})
    before = tree(target.folder)
    outcome = import_runs(store.folder, target)
    assert (outcome.runs, len(outcome.refused)) == (1, 1)
    assert tree(target.folder).items() >= before.items()


def test_the_same_run_of_another_session_is_already_there(store, target):
    target.save(TEACHER, RESULT, {"commit": "another", "seconds": 7})
    before = tree(target.folder)
    assert import_runs(store.folder, target) == Outcome(1, 1, 1)
    assert tree(target.folder).items() >= before.items()


def test_a_damaged_run_of_the_target_is_set_aside_and_replaced(store, target):
    import_runs(store.folder, target)
    (target.run_folder(TEACHER.id) / "run.json").write_text("{}")
    assert import_runs(store.folder, target) == Outcome(1, 0, 2)
    assert target.find(TEACHER) is not None
    (aside,) = (target.folder / "damaged").iterdir()
    assert (aside / "run.json").read_text() == "{}"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "soft_targets.safetensors", "run.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-3])])
@pytest.mark.parametrize("direction", ["import", "export"])
def test_nothing_of_a_damaged_run_is_taken(store, target, name, damage, direction, capsys):
    damage(store.run_folder(TEACHER.id) / name)
    before = tree(store.folder)
    places = (store.folder, target.folder) if direction == "import" else (target.folder, store.folder)
    status, lines, _ = kd(capsys, direction, places[0], "--store", places[1])
    assert status == 1
    assert lines[0].startswith(f"refused: {store.run_folder(TEACHER.id)}")
    assert lines[-1] == f"1 run {direction}ed, 1 begun run, 0 already there, 1 refused"
    assert not [name for name in tree(target.folder) if TEACHER.id in name]
    assert tree(store.folder) == before


def test_a_record_that_was_altered_with_its_manifest_has_another_id(store, target):
    path = store.run_folder(TEACHER.id) / "run.json"
    record = json.loads(path.read_text())
    record["description"]["seed"] = 1
    path.write_text(json.dumps(record))
    write_manifest(path.parent)
    outcome = import_runs(store.folder, target)
    assert "its description belongs to run" in outcome.refused[0]
    assert target.ids() == [CHILD.id]


# ---- begun runs


@pytest.mark.parametrize(
    ("there", "copied"), [((1, 0), True), ((1, 9), True), ((2, 0), False), ((2, 1), False), ((3, 0), False)]
)
def test_a_begun_run_replaces_one_that_is_less_far(store, target, there, copied):
    begin(target, there[0], within=there[1])
    before = tree(target.folder)
    assert import_runs(store.folder, target) == Outcome(2, int(copied), int(not copied))
    work = {name: content for name, content in tree(target.folder).items() if name.startswith("work")}
    expected = {name: content for name, content in tree(store.folder).items() if name.startswith("work")}
    assert work == (expected if copied else before)


def test_steps_within_an_epoch_count(store, target):
    begin(store, 2, within=5)
    begin(target, 2, within=4)
    assert import_runs(store.folder, target).begun == 1
    begin(target, 2, within=6)
    assert import_runs(store.folder, target).begun == 0


def test_a_begun_run_that_the_target_has_finished_is_not_copied(store, target):
    begin(store, 2, CHILD.id)  # also finished in the source: nobody needs it
    assert export_runs(store, target.folder) == Outcome(2, 1, 0)
    assert target.begun() == [BEGUN]
    begun = Store(target.folder.with_name("begun"))
    begin(begun, 2, CHILD.id)
    assert import_runs(begun.folder, target) == Outcome(0, 0, 1)
    assert target.begun() == [BEGUN]


def test_a_finished_run_ends_the_begun_one_of_the_target(store, target):
    begin(target, 2, CHILD.id)
    (target.work_folder(CHILD.id) / "old.damaged").write_text("evidence")
    import_runs(store.folder, target)
    assert [path.name for path in target.work_folder(CHILD.id).iterdir()] == ["old.damaged"]


def test_a_damaged_checkpoint_is_refused_or_set_aside(store, target):
    begin(target, 1)
    own = target.work_folder(BEGUN) / CHECKPOINT
    flip(own)
    damaged = own.read_bytes()
    assert import_runs(store.folder, target).begun == 1
    assert own.with_name(own.name + ".damaged").read_bytes() == damaged
    flip(store.work_folder(BEGUN) / CHECKPOINT)
    begin(target, 1)
    before = tree(target.folder)
    outcome = import_runs(store.folder, target)
    assert (outcome.begun, len(outcome.refused)) == (0, 1)
    assert CHECKPOINT in outcome.refused[0]
    assert tree(target.folder) == before


def test_a_file_that_is_no_checkpoint_is_refused(store, target):
    path = store.work_folder(BEGUN) / CHECKPOINT
    notes = checkpoint_notes()
    for wrong, expected in (
        (["history"], "expected a checkpoint of format"),
        ({"format": FORMAT, "history": []}, "expected the key 'owner'"),
        (notes | {"traces": 5}, "expected traces to be a list, found 5"),
    ):
        save_tensors(path, {"w": torch.ones(1)}, wrong)
        (outcome,) = import_runs(store.folder, target).refused
        assert expected in outcome
        assert str(path) in outcome


@pytest.mark.parametrize("text", ["", "soon", "nan", "1e999"])
def test_damaged_seconds_cost_no_checkpoint(store, target, text):
    (store.work_folder(BEGUN) / SECONDS).write_text(text)
    assert import_runs(store.folder, target).begun == 1
    assert [path.name for path in target.work_folder(BEGUN).iterdir()] == [CHECKPOINT]


def test_a_run_begun_on_one_machine_goes_on_on_another(server, tmp_path):
    """To the bytes of a run that was not interrupted, and without the epochs that were done."""
    here, there, log = Store(tmp_path / "here"), Store(tmp_path / "there"), tmp_path / "log"
    assert server.run(here.folder, "teacher", "distilled", TOY_KILL=f"step:{(EPOCHS + 2) * STEPS}")["killed"]
    assert export_runs(here, tmp_path / "disk") == Outcome(1, 1, 0)
    assert import_runs(tmp_path / "disk", there) == Outcome(1, 1, 0)
    assert len(server.run(there.folder, "teacher", "distilled", TOY_LOG=str(log))["finished"]) == 2
    assert log.read_text().splitlines() == [f"distilled, seed 0, epoch {epoch}" for epoch in range(2, EPOCHS + 1)]
    server.run(tmp_path / "unbroken", "teacher", "distilled")
    assert contents(there.folder) == contents(tmp_path / "unbroken")


def test_runs_are_copied_into_a_store_in_use(server, tmp_path):
    """By several imports while two sessions train the same runs: whoever is first, the runs are the same."""
    server.run(tmp_path / "unbroken", "teacher", "distilled", "baseline")
    store, log = Store(tmp_path / "store"), tmp_path / "log"
    arms = ("teacher", "distilled", "baseline")
    sessions = [server.start(store.folder, arms, TOY_LOG=str(log), TOY_SLEEP="0.02") for _ in range(2)]
    while not log.exists():
        time.sleep(0.01)
    outcomes = [import_runs(tmp_path / "unbroken", store) for _ in range(3)]
    for outcome in outcomes:  # refused: those in training, which depends on the machine
        assert outcome.runs + outcome.there + len(outcome.refused) == 3
    assert all(len(wait()["finished"]) == 3 for wait in sessions)
    assert contents(store.folder) == contents(tmp_path / "unbroken")
    assert not (store.folder / "damaged").exists()
    assert import_runs(tmp_path / "unbroken", store) == Outcome(0, 0, 3)


def test_a_run_in_training_is_left_alone(store, target, capsys):
    for run_id in (TEACHER.id, BEGUN):
        lock = target.folder / "locks" / f"{run_id}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    code = (
        "import fcntl, sys; files = [open(name) for name in sys.argv[1:]]; "
        "[fcntl.flock(file, fcntl.LOCK_EX) for file in files]; print(flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, *(str(path) for path in (target.folder / "locks").iterdir())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    holder.stdout.readline()
    status, lines, _ = kd(capsys, "import", store.folder, "--store", target.folder)
    holder.communicate("\n")
    assert status == 1
    assert lines[-1] == "1 run imported, 0 begun runs, 0 already there, 2 refused"
    assert all("expected no session that trains it" in line for line in lines[:-1])
    assert kd(capsys, "import", store.folder, "--store", target.folder)[1] == [
        "1 run imported, 1 begun run, 1 already there"
    ]


# ---- hostile and foreign folders


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_foreign_files_links_and_pipes_are_ignored_or_refused(store, target, tmp_path):
    secret = filled(tmp_path / "secret")
    other = secret.save(replace(TEACHER, seed=5), RESULT, {})
    begin(secret, 2, "b" * 16)
    runs, work = store.folder / "runs", store.folder / "work"
    for name in (f"{TEACHER.id} (1)", "..a", "%2e%2e", f"{TEACHER.id}.tmp", "README"):
        shutil.copytree(runs / TEACHER.id, runs / name)
    (runs / TEACHER.id / "extra.bin").write_text("foreign")
    (runs / CHILD.id / "weights.safetensors").unlink()
    (runs / CHILD.id / "weights.safetensors").symlink_to(secret.run_folder(CHILD.id) / "weights.safetensors")
    (runs / other.id).symlink_to(other.folder)
    (runs / ("0" * 16)).symlink_to(runs / ("0" * 16))
    os.mkfifo(runs / ("1" * 16))
    (runs / ("2" * 16)).mkdir()
    os.mkfifo(runs / ("2" * 16) / "manifest.json")
    (runs / ("3" * 16)).mkdir()
    (runs / ("3" * 16) / "manifest.json").write_text('{"run.json": "x", "../../../secret": "x"}')
    (work / ("b" * 16)).symlink_to(secret.work_folder("b" * 16))
    (work / ("c" * 16)).mkdir()
    os.mkfifo(work / ("c" * 16) / CHECKPOINT)
    (work / BEGUN / f"checkpoint-..{ORIGIN[2:]}.safetensors").write_text("x")
    (work / BEGUN / SECONDS).unlink()
    os.mkfifo(work / BEGUN / SECONDS)
    outcome = import_runs(store.folder, target)
    assert (outcome.runs, outcome.begun, outcome.there) == (1, 1, 0)
    refused = (CHILD.id, other.id, "0" * 16, "1" * 16, "2" * 16, "3" * 16, "c" * 16)
    assert len(outcome.refused) == len(refused)
    for run_id in refused:
        assert any(run_id in text for text in outcome.refused)
    assert target.ids() == [TEACHER.id]
    assert sorted(tree(target.folder)) == sorted(
        [*(f"runs/{TEACHER.id}/{name}" for name in read_run(target.run_folder(TEACHER.id)).files),
         f"runs/{TEACHER.id}/manifest.json", f"work/{BEGUN}/{CHECKPOINT}"]
    )  # fmt: skip


@pytest.mark.parametrize("place", [BEGUN, f"{BEGUN}/incoming"])
def test_a_link_in_the_target_is_not_followed(store, target, tmp_path, place):
    outside = tmp_path / "outside"
    (outside / "incoming").mkdir(parents=True)
    (outside / "incoming" / "file").write_text("x")
    link = target.folder / "work" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    outcome = export_runs(store, target.folder)
    assert (outcome.runs, outcome.begun, len(outcome.refused)) == (2, 0, 1)
    assert "expected a folder, found a link" in outcome.refused[0]
    assert tree(outside) == {"incoming/file": b"x"}


@pytest.mark.parametrize("name", ["runs", "work"])
def test_links_in_place_of_the_folders_are_not_followed(store, target, tmp_path, name):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / name).symlink_to(store.folder / name)
    with pytest.raises(KDError, match="links are not followed"):
        import_runs(tmp_path / "given", target)
    assert not target.folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["import", "nowhere"], "nowhere: expected a folder that `kd runs export` made, .* found neither"),
        (["import", "store/runs"], "expected a folder that `kd runs export` made"),
        (["import", "store", "--store", "./store"], "expected another folder than the store itself"),
        (["export", "store/../store", "--store", "store"], "expected another folder than the store itself"),
        (["export", "out"], "--store .kd: expected a store of runs, found no such folder"),
        (["export", "--store", "store"], "expected one folder, found none; write `kd runs export DIR`"),
        (["export", "a", "b", "--store", "store"], "expected one folder, found a, b"),
        (["export", "file", "--store", "store"], "file: expected a folder to write runs in"),
        (["export", "file/below", "--store", "store"], "expected a folder to write runs in"),
        (["import", "store", "--store", "file/below"], "expected a folder to write runs in"),
        (["export", "in_the_way", "--store", "store"], "could not be written"),
        (["list", "--pruned", "--store", "store"], "expected --runs, --profile and --pruned for `kd runs export` only"),
        (["import", "store", "--runs", "a"], "for `kd runs export` only"),
    ],
)
def test_mistakes_say_what_to_do(store, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "in_the_way").mkdir()
    (tmp_path / "in_the_way" / "locks").write_text("x")
    before = tree(store.folder)
    status, _, errors = kd(capsys, *arguments)
    assert status == 2
    assert errors.startswith("kd: ")
    assert re.search(said, errors), errors
    assert tree(store.folder) == before


@pytest.mark.slow
def test_a_full_disk_ends_the_command_and_the_same_one_goes_on(store, target):
    pytest.importorskip("resource")
    code = (
        "import resource, signal, sys; from pathlib import Path; from kdlib.run.store import Store; "
        "from kdlib.run.transfer import import_runs; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); "
        "import_runs(Path(sys.argv[1]), Store(Path(sys.argv[2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.folder), str(target.folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert "the disk is full or a size limit was hit" in done.stderr
    assert tree(target.folder) == {}
    assert import_runs(store.folder, target) == Outcome(2, 1, 0)


# ---- killed


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize(("direction", "begun_there"), [("export", False), ("import", True)])
def test_killed_at_every_use_of_a_file(store, tmp_path, direction, begun_there):
    """Whether the target is empty, or has a pruned run, a damaged one, and a checkpoint that is less far."""
    prepared, folder = Store(tmp_path / "prepared"), tmp_path / "killed"
    prepared.folder.mkdir()
    if begun_there:
        export_runs(store, prepared.folder)
        prune(prepared.find(TEACHER))
        (prepared.run_folder(CHILD.id) / "run.json").write_text("{}")
        begin(prepared, 1)
    before = tree(store.folder)
    places = [str(place) for place in (store.folder, prepared.folder, folder)]
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("transfers_killed.py")), direction, *places],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    targets = [Store(folder / str(number)) for number in range(1, len(list(folder.iterdir())) + 1)]
    unbroken = {name: content for name, content in tree(targets[-1].folder).items() if not name.startswith("damaged")}
    assert unbroken == before
    assert tree(store.folder) == before
    assert len(targets) > 50
    states = set()
    for killed in targets:
        states.add(tuple(sorted(tree(killed.folder).items())))
        for path in (killed.folder / "runs").glob("*"):
            if not (begun_there and path.name == CHILD.id):
                read_run(path)
        whole = [run_id for run_id in killed.ids() if _is_good(killed, run_id)]
        outcome = export_runs(store, killed.folder) if direction == "export" else import_runs(store.folder, killed)
        assert outcome.refused == []
        found = tree(killed.folder)
        assert {name: content for name, content in found.items() if not name.startswith("damaged")} == unbroken
        assert not list(killed.folder.glob("work/*/incoming"))
        assert len(list(killed.folder.glob("damaged/*"))) == begun_there
        assert all(run_id in killed.ids() for run_id in whole)
    assert len(states) > 15


def _is_good(store, run_id):
    try:
        read_run(store.run_folder(run_id))
    except DamagedFile:
        return False
    return True
