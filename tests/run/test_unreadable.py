"""A file that cannot be read just now costs nothing, and a special file in a store hides and blocks nothing.

The limits are real ones of the operating system, set in a process of their own.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from kdlib.cli import main
from kdlib.errors import KDError
from kdlib.files import DamagedFile, load_tensors, locked, read_file, save_tensors, set_aside
from kdlib.run.store import Description, Result, Store
from kdlib.run.transfer import import_runs

ROOT = Path(__file__).parents[2]
DESCRIPTION = Description("source/train_teacher", 1, {"epochs": 3}, 0, "data")
RESULT = Result(
    {"final": {"accuracy": 0.5}},
    [{"training_loss": 0.25}],
    {"final": {"w": torch.ones(2)}},
    {"final.train": torch.ones(2)},
)


def _may_read_everything():
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)


bound_by_permissions = pytest.mark.skipif(_may_read_everything(), reason="root may read everything")

LIMITED = """
import os, resource, sys
from pathlib import Path
from kdlib.errors import KDError
from kdlib.files import DamagedFile, load_tensors
from kdlib.run.finished import read_run
from kdlib.run.store import Description, Store
from kdlib.training import Progress
import torch

store, checkpoint, big = (Path(name) for name in sys.argv[1:])
description = Description("source/train_teacher", 1, {"epochs": 3}, 0, "data")
run = Store(store).find(description)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters())
looks = {
    "find": lambda: Store(store).find(description),
    "has": lambda: Store(store).has(description),
    "read_run": lambda: read_run(run.folder),
    "weights": lambda: run.weights("final"),
    "soft targets": lambda: run.soft_targets("final.train"),
    "checkpoint": lambda: Progress(model, optimizer, checkpoint=checkpoint),
}

def told(limit, value, looks):
    old = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, old[1]))
    for name, look in looks.items():
        try:
            print(name, "returned", look())
        except DamagedFile as error:
            print(name, "damaged", error)
        except KDError as error:
            print(name, "refused", error)
    resource.setrlimit(limit, old)

print("warm", Store(store).find(description) == run)
told(resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1, looks)  # the list itself is open while it is read
pages = int(Path("/proc/self/statm").read_text().split()[0])
told(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**28, {"big": lambda: load_tensors(big)})
print("again", Store(store).find(description) == run, looks["has"](), bool(run.weights("final")))
"""


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def run(store):
    return store.save(DESCRIPTION, RESULT, {})


def tree(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_with_no_file_descriptor_and_no_memory_left_nothing_is_damaged_or_moved(store, run, tmp_path):
    for name in ("checkpoint.safetensors", "previous-checkpoint.safetensors"):  # the older one is no way out
        save_tensors(tmp_path / name, {"model/weight": torch.ones(1, 1)}, {"history": []})
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2**34)  # takes no room on the disk
    before = {path: content for path, content in tree(tmp_path / "store").items() if path.parts[0] != "locks"}
    arguments = [str(store.folder), str(tmp_path / "checkpoint.safetensors"), str(tmp_path / "big")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "warm True"
    assert lines[-1] == "again True True True"
    names = ["find", "has", "read_run", "weights", "soft targets", "checkpoint", "big"]
    for name, line in zip(names, lines[1:-1], strict=True):
        assert line.startswith(f"{name} refused "), line
        assert "Too many open files" in line if name != "big" else "memory" in line.lower(), line
        assert "run the same command again" in line
    assert {path: content for path, content in tree(tmp_path / "store").items() if path.parts[0] != "locks"} == before
    assert not list(tmp_path.glob("*.damaged*"))
    assert len(list(tmp_path.glob("*checkpoint.safetensors"))) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder", "nothing", "device"])
def test_what_is_no_file_is_damage_and_blocks_nothing(tmp_path, kind):
    path = tmp_path / "file"
    {
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "nothing": lambda: None,
    }[kind]()
    for read in (read_file, load_tensors):
        with pytest.raises(DamagedFile, match="file: expected a file, found"):
            read(path)


def test_a_link_is_followed_or_not(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_file(tmp_path / "link") == b"x"
    with pytest.raises(DamagedFile, match="found a link"):
        read_file(tmp_path / "link", follow=False)


def test_files_set_aside_never_replace_each_other(tmp_path):
    for number in range(3):
        (tmp_path / "file").write_text(str(number))
        set_aside(tmp_path / "file")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file.damaged": "0",
        "file.damaged-2": "1",
        "file.damaged-3": "2",
    }


def test_a_finished_run_keeps_what_was_set_aside(store):
    work = store.work_folder(DESCRIPTION.id)
    (work / "inner").mkdir(parents=True)
    (work / "checkpoint.safetensors").touch()
    (work / "checkpoint.safetensors.damaged-2").write_text("evidence")
    store.save(DESCRIPTION, RESULT, {})
    assert tree(work) == {Path("checkpoint.safetensors.damaged-2"): b"evidence"}


def test_a_thread_takes_a_lock_again_and_another_process_does_not(tmp_path):
    told = []
    path = tmp_path / "lock"
    with locked(path, "remedy", lambda: told.append(1)), locked(path, "remedy", lambda: told.append(2)):
        assert holds(path) is False
    assert holds(path) is True
    assert told == []


def holds(path):
    """Whether another process gets the kernel's lock at once."""
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, str(path)], stderr=subprocess.DEVNULL).returncode == 0


def test_a_damaged_run_that_another_session_has_locked_stays_where_it_is(store, run):
    (run.folder / "weights.safetensors").write_bytes(b"")
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    lock = store.folder / "locks" / f"{run.id}.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    holder.stdout.readline()
    told = []
    assert store.find(DESCRIPTION, told.append) is None
    assert (told, run.folder.exists()) == ([], True)
    holder.communicate("\n")
    assert store.find(DESCRIPTION, told.append) is None
    assert ("Set aside as" in told[0], run.folder.exists()) == (True, False)


def test_a_good_run_put_in_place_of_a_damaged_one_is_not_set_aside(store, run, monkeypatch):
    """It is looked at again once the lock is held."""
    path, good = run.folder / "weights.safetensors", (run.folder / "weights.safetensors").read_bytes()
    path.write_bytes(b"")
    lock = store.lock

    def slow(*arguments):
        path.write_bytes(good)
        return lock(*arguments)

    monkeypatch.setattr(store, "lock", slow)
    assert store.find(DESCRIPTION) == run
    assert run.folder.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_lists_leave_out_foreign_files_and_name_what_cannot_be_read(store, run, capsys):
    runs = store.folder / "runs"
    other = store.save(Description("source/train_teacher", 1, {"epochs": 3}, 1, "data"), RESULT, {})
    for name in (f"{run.id} (1)", ".DS_Store", "desktop.ini", f"{run.id}.part", "..."):
        (runs / name).mkdir()
    loop, pipe = "0" * 16, "f" * 16
    (runs / loop).symlink_to(runs / loop)
    (runs / pipe).mkdir()
    os.mkfifo(runs / pipe / "manifest.json")
    assert store.ids() == sorted([run.id, other.id, loop, pipe])
    assert store.resolve(run.id) == run
    assert store.resolve(run.id[:15]) == run
    assert main(["runs", "list", "--store", str(store.folder)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines.keys() == {run.id, other.id, loop, pipe}
    assert lines[run.id].endswith(" 0.5000")
    assert "damaged" in lines[loop]
    assert "not a regular file" in lines[pipe]
    assert main(["runs", "verify", "--store", str(store.folder)]) == 1
    assert "4 runs, 2 damaged" in capsys.readouterr().out


@bound_by_permissions
@pytest.mark.parametrize("closed", ["run.json", "."])
def test_a_run_without_permission_hides_no_other(store, run, capsys, tmp_path, closed):
    other = store.save(Description("source/train_teacher", 1, {"epochs": 3}, 1, "data"), RESULT, {})
    (run.folder / closed).chmod(0)
    with pytest.raises(KDError, match="Permission denied") as raised:
        store.find(DESCRIPTION)
    assert not isinstance(raised.value, DamagedFile)
    assert main(["runs", "list", "--store", str(store.folder)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines[other.id].endswith(" 0.5000")
    assert "cannot be read (Permission denied)" in lines[run.id]
    outcome = import_runs(store.folder, Store(tmp_path / "target"))
    assert (outcome.runs, len(outcome.refused)) == (1, 1)
    assert "cannot be read (Permission denied)" in outcome.refused[0]
    (run.folder / closed).chmod(0o755)
    assert store.find(DESCRIPTION) == run


@bound_by_permissions
@pytest.mark.parametrize("closed", [".", "runs"])
def test_folders_without_permission_say_what_to_do(store, run, tmp_path, capsys, closed):
    place = store.folder / closed
    for mode in (0o000, 0o444):
        place.chmod(mode)
        for action in (["import", str(store.folder)], ["list", "--store", str(store.folder)]):
            rest = ["--store", str(tmp_path / "target")] if action[0] == "import" else []
            status = main(["runs", *action, *rest])
            printed = capsys.readouterr()
            assert status in (0, 1, 2)
            assert "Permission denied" in printed.out + printed.err
            assert status or action[0] == "list"
    place.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o500)
    assert main(["runs", "export", str(tmp_path / "closed"), "--store", str(store.folder)]) == 2
    assert "change its permissions or name another folder" in capsys.readouterr().err
