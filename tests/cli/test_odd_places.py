"""Odd values, places and replications: what is told before training, and what does not hide the rest."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kdlib.cli import again, main
from kdlib.cli.new import write_template
from kdlib.data import fetch
from kdlib.errors import CheckpointReplaced, KDError
from kdlib.run import prepare
from kdlib.run.environment import source_digest
from kdlib.run.experiment import load_experiment
from kdlib.run.labels import label_of
from kdlib.run.store import Store, prune

from .test_gates import kd, root  # noqa: F401

REPOSITORY = Path(__file__).parents[2]


def test_a_value_that_no_file_can_be_called_is_refused_before_training(tmp_path):
    for value in ("a/b", "", "../x", "x" * 300):
        with pytest.raises(KDError, match="expected a pictures of 1 to 60 letters"):
            prepare("binary", "smoke", settings={"pictures": value}, store=tmp_path)
    session = prepare("binary", "smoke", settings={"pictures": "foo"}, store=tmp_path)
    with pytest.raises(KDError, match="pictures: expected cats_dogs or oxford_pets, found 'foo'"):
        session.jobs()


def test_a_run_that_cannot_be_labelled_does_not_hide_the_others(kd, monkeypatch, capsys):  # noqa: F811
    assert kd("run", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    first, second = sorted(Store(Path(".kd")).ids())

    def labelled(run, runs):
        if run.id == first:
            raise KDError("expected a plain name, found another")
        return label_of(run, runs)

    monkeypatch.setattr("kdlib.cli.runs.label_of", labelled)
    assert main(["runs", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0] == f"{first}  expected a plain name, found another"
    assert lines[1].startswith(second)


def test_runs_of_an_older_protocol_are_of_no_profile(kd, toy, monkeypatch, tmp_path, capsys):  # noqa: F811
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    newer = replace(load_experiment("toy"), protocol=load_experiment("toy").protocol + 1)
    monkeypatch.setattr("kdlib.run.labels.load_experiment", lambda name: newer)
    monkeypatch.setattr("kdlib.run.transfer.loadable", lambda _: [newer])
    assert main(["runs", "list"]) == 0
    assert " other " in capsys.readouterr().out.splitlines()[1]
    assert main(["runs", "export", str(tmp_path / "copy"), "--profile", "quick"]) == 0
    assert list((tmp_path / "copy").glob("runs/*")) == []


@pytest.mark.slow
def test_the_synthetic_heartbeats_can_be_split_by_patient(tmp_path):
    command = [sys.executable, "-m", "kdlib", "run", "ecg", "--profile", "smoke", "--set", "split=inter-patient"]
    done = subprocess.run(
        [*command, "--arms", "released_teacher,teacher", "--store", tmp_path / "s", "--out", tmp_path / "o"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_replications_that_python_imports_from_elsewhere_are_told(tmp_path, monkeypatch):
    (tmp_path / "replications" / "mine").mkdir(parents=True)
    (tmp_path / "replications" / "mine" / "experiment.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KDError, match=r"imports replications from .*; make an empty file replications/__init__\.py"):
        load_experiment("mine")
    (tmp_path / "new" / "replications").mkdir(parents=True)
    write_template("mine", tmp_path / "new")
    assert (tmp_path / "new" / "replications" / "__init__.py").read_bytes() == b""


@pytest.mark.parametrize("name", ["1abc", "_x", "a" * 41, "A", "a-b"])
def test_the_name_of_a_new_replication_is_refused_with_the_whole_rule(name, tmp_path):
    with pytest.raises(KDError, match="1 to 40 small letters, digits and underscores, a letter first"):
        write_template(name, tmp_path)


def test_an_experiment_that_somebody_is_editing_does_not_hide_the_others(root, capsys):  # noqa: F811
    draft = root / "replications" / "draft"
    draft.mkdir()
    (draft / "experiment.py").write_text("x = (\n")
    assert main(["list"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("draft: ") for line in lines)
    assert any(line.startswith("toy: ") for line in lines)
    assert main(["list", "draft"]) == 2


def test_files_of_editors_and_file_systems_are_no_source_files(kd, root):  # noqa: F811
    """Emacs links `.#name` to nothing while a file is edited; macOS writes `._name` of bytes on foreign disks."""
    folder = root / "replications" / "toy"
    (folder / ".#experiment.py").symlink_to("me@host.1234:17")
    (folder / "._experiment.py").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "notes.py").write_bytes(b"# caf\xe9\n")  # nothing imports it
    source_digest.cache_clear()
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    assert main(["list"]) == 0


def test_the_digest_of_source_files_is_that_of_their_bytes(root):  # noqa: F811
    folder = root / "replications" / "toy"
    source_digest.cache_clear()
    first = source_digest(folder)
    (folder / ".#experiment.py").symlink_to("nowhere")
    source_digest.cache_clear()
    assert source_digest(folder) == first
    (folder / "more.py").write_text("x = 1\n")
    source_digest.cache_clear()
    assert source_digest(folder) != first


def test_a_replication_that_may_not_be_read_is_not_gone(root, monkeypatch, capsys):  # noqa: F811
    """`kd tables` would say that it has another name, and delete its page."""
    closed = root / "replications" / "closed"
    closed.mkdir()
    real = Path.lstat

    def lstat(self):
        if self.parent.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "lstat", lstat)
    (root / "replications" / "loop").symlink_to("loop")
    assert main(["tables"]) == 2
    assert "closed/experiment.py: cannot be read (Permission denied)" in capsys.readouterr().err
    assert main(["list"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("toy: ") for line in lines)
    assert any(line.startswith("closed: ") for line in lines)
    assert not any(line.startswith("loop") for line in lines)


def test_a_text_that_is_not_utf_8_is_named_before_anything_is_written(kd, root, capsys):  # noqa: F811
    (root / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    (root / "replications" / "toy" / "README.md").write_bytes(b"caf\xe9\n")
    before = sorted(path for path in root.rglob("*") if path.is_file())
    assert main(["tables"]) == 2
    told = capsys.readouterr().err
    assert "toy/README.md: expected text in UTF-8, found another byte at 3; save it in UTF-8" in told
    assert sorted(path for path in root.rglob("*") if path.is_file()) == before


def test_odd_paths_are_mistakes_and_not_tracebacks(kd, root, capsys):  # noqa: F811
    for command in (
        ["run", "toy", "--seed", "0", "--arms", "baseline", "--out", "x" * 300],
        ["run", "toy", "--seed", "0", "--arms", "baseline", "--data", "nowhere"],
        ["run", "toy", "--seed", "0", "--arms", "baseline", "--replicas", "4"],
    ):
        assert main(command) == 2, command
        assert capsys.readouterr().err.startswith("kd: ")
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    (root / "loop").symlink_to(root / "loop")
    assert main(["runs", "export", "loop"]) == 2
    assert main(["tables"]) == 2  # there is neither results/ nor a README
    assert "write one with the lines <!-- table:begin --> and <!-- table:end -->" in capsys.readouterr().err


def test_data_are_fetched_to_the_cache_and_one_set_does_not_keep_the_others(monkeypatch, tmp_path, capsys):
    assert main(["data", "fetch", "mnist", "--data", str(tmp_path)]) == 2
    assert "expected no folder with fetch, which keeps data sets in" in capsys.readouterr().err
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    monkeypatch.delenv("KDLIB_DATA", raising=False)
    monkeypatch.setattr(fetch, "where", lambda name, data=None: None)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path)
    assert main(["data", "fetch"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("kd: ").partition(":")[0] for line in said] == list(fetch.names())


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "it's\n", "back\\slash\n", b"a\xffb", "plain", "a b", "é\x7f"])
def test_the_command_that_goes_on_is_read_by_a_shell_as_it_was_given(name):
    word = name if isinstance(name, str) else os.fsdecode(name)
    quoted = again._quoted(word)
    assert quoted.isprintable()
    printed = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True).stdout
    assert printed == os.fsencode(word)


def test_a_session_whose_run_another_one_has_taken_says_so(kd, monkeypatch):  # noqa: F811
    def lost(*_):
        raise CheckpointReplaced("x")

    monkeypatch.setattr("kdlib.run.group._train", lost)
    status, _, told = kd("run", "toy", "--seed", "0", "--arms", "baseline")
    assert status == 1
    assert any("another session has taken this run over" in line for line in told)


@pytest.mark.parametrize("name", ["toy/", "replications/toy", "./replications/toy/"])
def test_a_name_that_a_shell_has_completed_is_that_of_the_replication(kd, name):  # noqa: F811
    assert kd("run", name, "--seed", "0", "--arms", "baseline")[0] == 0
    assert main(["list", name]) == 0


def test_a_run_that_cannot_be_pruned_does_not_keep_the_others(kd, monkeypatch, capsys):  # noqa: F811
    assert kd("run", "toy", "--seeds", "3", "--arms", "baseline")[0] == 0
    first, *others = sorted(Store(Path(".kd")).ids())

    def pruned(run):
        if run.id == first:
            raise KDError("cannot be read just now")
        return prune(run)

    monkeypatch.setattr("kdlib.cli.runs.prune", pruned)
    assert main(["runs", "prune", first, *others]) == 1
    printed = capsys.readouterr()
    assert f"{first}  not pruned: cannot be read just now" in printed.err
    assert all(f"{other}: 0." in printed.out for other in others)


def test_an_experiment_that_ends_python_is_told_and_hides_no_other(kd, root, monkeypatch, capsys):  # noqa: F811
    draft = root / "replications" / "draft"
    draft.mkdir()
    (draft / "__init__.py").touch()
    (draft / "experiment.py").write_text("import sys\nsys.exit(0)\n")
    import replications

    monkeypatch.setattr(replications, "__path__", [*replications.__path__, str(root / "replications")])
    for command in (["run", "draft"], ["check"], ["tables", "draft"]):
        assert main(command) == 2
        assert "draft/experiment.py: expected a module that can be imported, found SystemExit: 0 (" in (
            capsys.readouterr().err
        )
    assert kd("run", "toy", "--arms", "baseline", "--seed", "0")[0] == 0
    assert main(["list"]) == 2
    printed = capsys.readouterr().out
    assert "toy: " in printed
    assert "draft: replications/draft/experiment.py: expected a module" in printed


@pytest.mark.parametrize("name", ["toy/", "replications/toy/"])
def test_the_command_that_continues_has_the_name_alone(name):
    text = again.how_to_go_on(["run", name, "--seeds", "2"])
    assert "nox -s replicate_toy -- --seeds 2" in text
    assert again.name_of("/home/me/replications/toy") == "toy"
    assert again.name_of("elsewhere/toy") == "elsewhere/toy"


def test_a_name_after_an_option_is_one_too(kd, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr("kdlib.cli.commands.refuse_elsewhere", lambda name, _: seen.append(name))
    monkeypatch.setattr("kdlib.cli.commands.load_experiment", lambda name: exits())
    assert main(["check", "toy/", "--device", "cpu", "replications/toy/"]) == 2
    assert seen == ["toy", "toy"]


def exits():
    raise KDError("looked at")


def test_a_run_that_cannot_be_read_does_not_keep_the_others_from_being_shown(kd, capsys):  # noqa: F811
    assert kd("run", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    first, second = sorted(Store(Path(".kd")).ids())
    (Store(Path(".kd")).run_folder(first) / "run.json").write_text("{")
    assert main(["runs", "show", first, second]) == 1
    printed = capsys.readouterr()
    assert first in printed.err
    assert f'"run": "{second}"' in printed.out or '"description"' in printed.out
