"""Replications with one `source` share runs; if the runs are made by other code, both are named."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdlib.errors import KDError
from kdlib.report import recording
from kdlib.run import prepare, reuse, train
from kdlib.run.environment import source_digest
from kdlib.run.experiment import load_experiment
from tests.conftest import write_toy
from tests.report.test_sessions import CLAIMS


@pytest.fixture
def notices(tmp_path, monkeypatch):
    """Return a function that trains an arm of a replication in one store, and returns what is said of it."""
    import replications

    folders = [write_toy(tmp_path / name, name) / "replications" for name in ("first", "copied", "edited")]
    monkeypatch.setattr(replications, "__path__", [*replications.__path__, *map(str, folders)])
    monkeypatch.setattr("kdlib.data.fetch.find", lambda name, *rest: tmp_path)
    with (folders[-1] / "edited" / "experiment.py").open("a") as file:
        file.write("RATE = 1\n")

    def run(name):
        session, events = prepare(name, arms=("baseline",), seeds=(0, 1), store=tmp_path / "store", workers=1), []
        train(session, session.jobs(), events.append)
        return [event.text for event in events if event.kind == "notice"], {event.kind for event in events}

    return run


def test_runs_of_other_code_are_not_shared_in_silence(notices):
    assert notices("first") == ([], {"started", "epoch", "finished"})
    assert notices("first") == notices("copied") == ([], {"reused"})
    (text,), kinds = notices("edited")  # one notice, however many runs
    assert kinds == {"notice", "reused"}
    assert "made by replications/first, whose train_student is other code than that of replications/edited" in text
    assert "both have the source 'toy', this protocol and this configuration" in text


def test_runs_of_other_code_are_not_recorded(notices, tmp_path, monkeypatch):
    notices("first")
    session = prepare("edited", arms=("baseline",), seeds=(0, 1), store=tmp_path / "store", workers=1)
    (session.experiment.folder / "claims.toml").write_text(CLAIMS)
    monkeypatch.setattr("kdlib.report.recording.is_clean", lambda folder: True)
    told = "of replications/edited, found run .* in the store, which replications/first made with other code"
    with pytest.raises(KDError, match=told):
        recording.record(session, tmp_path / "results")
    assert not (tmp_path / "results" / "edited" / "runs.jsonl").exists()


@pytest.mark.parametrize(("maker", "own"), [("grid", "teacher_free"), ("teacher_free", "grid")])
def test_replications_that_train_with_one_function_share_runs(maker, own):
    def run_of(name, source):
        about = SimpleNamespace(recipe="course-report/train_student")
        environment = {"replication": name, "source": source, "commit": "c" * 40}
        return SimpleNamespace(id="f" * 16, description=about, environment=environment)

    job = SimpleNamespace(experiment=own)
    assert reuse.other_source(run_of(maker, source_digest(load_experiment(maker).folder)), job) == ""
    text = reuse.other_source(run_of(maker, "edited since"), job)
    assert f"were made by other source files of {maker} than these (commit cccccccccc)" in text
    text = reuse.other_source(run_of("mnist", "another"), job)
    assert f"made by replications/mnist, whose train_student is other code than that of replications/{own}" in text
    assert "were made by other source files than these" in reuse.other_source(run_of("gone", "another"), job)


# ---- the files that count


@pytest.fixture
def package(tmp_path):
    """A folder `replications` with one replication, which has a folder of its own, and shared code next to it."""
    files = {
        "one/experiment.py": "from .nets.student import student",
        "one/figures.py": "import replications.unused",
        "one/nets/__init__.py": "",
        "one/nets/student.py": "from ...common import layers",
        "one/nets/.#student.py": "",
        "one/.hidden/other.py": "",
        "common/__init__.py": "import replications.single as single",
        "common/deep/layers.py": "",
        "single.py": "def broken(:",
        "unused/__init__.py": "",
        "two/experiment.py": "from replications import common, HIDDEN",
        "__init__.py": "HIDDEN = 32",
    }
    for name, text in files.items():
        path = tmp_path / "replications" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "replications"


def digest(folder):
    source_digest.cache_clear()
    return source_digest(folder)


COUNTED = ("one/experiment.py", "one/nets/student.py", "common/__init__.py", "common/deep/layers.py", "single.py")
OTHERS = ("one/figures.py", "one/nets/.#student.py", "one/.hidden/other.py", "unused/__init__.py", "two/experiment.py")


@pytest.mark.parametrize("name", [*COUNTED, *OTHERS])
def test_an_edit_of_a_file_that_may_be_imported_changes_the_source(package, name):
    before = digest(package / "one")
    with (package / name).open("a") as file:
        file.write("\n# edited\n")
    assert (digest(package / "one") != before) == (name in COUNTED)


@pytest.mark.parametrize(
    "line",
    [
        "from ..common import layers",
        "from .. import common",
        "from replications import common",
        "from replications.common.deep import layers",
        "import os, replications.common.deep.layers as layers",
        "def late():\n    from ..common.deep.layers import anything",
        "import importlib\nlayers = importlib.import_module('replications.common.deep.layers')",
    ],
)
def test_a_shared_package_counts_however_it_is_imported(package, line):
    (package / "one" / "experiment.py").write_text(line)
    (package / "one" / "nets" / "student.py").write_text("")
    before = digest(package / "one")
    (package / "common" / "deep" / "layers.py").write_text("# edited")
    assert digest(package / "one") != before


def test_a_copied_replication_has_the_same_source(package):
    shutil.copytree(package / "one", package / "copy")
    assert digest(package / "copy") == digest(package / "one")
    (package / "copy" / "nets" / "student.py").rename(package / "copy" / "student.py")
    assert digest(package / "copy") != digest(package / "one")


def test_names_that_the_package_of_all_replications_defines_count(package):
    before = digest(package / "two"), digest(package / "one")
    (package / "__init__.py").write_text("HIDDEN = 320")
    assert digest(package / "two") != before[0]
    assert digest(package / "one") == before[1]


def test_a_linked_folder_counts_and_a_loop_of_links_ends(package, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "layers.py").touch()
    (package / "one" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(package / "one")
    before = digest(package / "one")
    (tmp_path / "elsewhere" / "layers.py").write_text("# edited")
    assert digest(package / "one") != before


def test_files_that_are_exchanged_with_those_of_a_shared_package_change_the_source(package):
    (package / "one" / "layers.py").write_text("# own")
    (package / "common" / "layers.py").write_text("# shared")
    before = digest(package / "one")
    (package / "one" / "layers.py").write_text("# shared")
    (package / "common" / "layers.py").write_text("# own")
    assert digest(package / "one") != before


def test_a_folder_that_may_not_be_read_is_named(package, monkeypatch):
    listed = Path.iterdir

    def refused(path):
        if path.name == "nets":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(KDError, match=r"one/nets: cannot be read \(Permission denied\)"):
        digest(package / "one")
