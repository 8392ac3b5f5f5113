"""`kd new`: its template runs, records and passes lint and audit as it is (mypy reads the template itself)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdlib.cli import main
from kdlib.cli.new import write_template
from kdlib.data import fetch
from kdlib.errors import KDError
from kdlib.report.site import write_site

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """The top folder of a repository without replications."""
    (tmp_path / "replications").mkdir()
    (tmp_path / "replications" / "__init__.py").touch()
    (tmp_path / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("kdlib", "tests/audit"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(root, *command):
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_writes_one_folder_and_says_how_to_go_on(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    before = {path for path in root.rglob("*") if path.is_file()}
    assert main(["new", "my_paper"]) == 0
    new = {path.relative_to(root).as_posix() for path in {p for p in root.rglob("*") if p.is_file()} - before}
    names = ("README.md", "__init__.py", "claims.toml", "experiment.py")
    assert new == {f"replications/my_paper/{name}" for name in names}
    assert "kd run my_paper --profile smoke" in capsys.readouterr().out
    experiment = (root / "replications/my_paper/experiment.py").read_text()
    assert len(experiment.splitlines()) <= 90
    assert "NAME" not in experiment


@pytest.mark.parametrize("name", ["My", "a-b", "2nd", "", "a/b", "..", "a" * 41])
def test_a_name_that_is_no_module_is_refused(root, name):
    with pytest.raises(KDError, match="expected 1 to 40 small letters"):
        write_template(name, root)


@pytest.mark.parametrize("name", ["index", "site"])
def test_a_name_whose_page_is_that_of_all_results_is_refused(root, name):
    with pytest.raises(KDError, match="expected a name other than index and site"):
        write_template(name, root)
    assert not (root / "replications" / name).exists()
    with pytest.raises(KDError, match="expected a name other than index and site"):
        write_site(root, {name: []})
    assert not (root / "results").exists()


def test_nothing_is_overwritten(root):
    write_template("my_paper", root)
    (root / "replications/my_paper/experiment.py").write_text("mine")
    with pytest.raises(KDError, match="expected no such folder"):
        write_template("my_paper", root)
    assert (root / "replications/my_paper/experiment.py").read_text() == "mine"


def test_outside_a_repository_it_says_where_to_call_it(tmp_path):
    with pytest.raises(KDError, match="top folder"):
        write_template("my_paper", tmp_path)


@pytest.mark.slow
def test_the_template_runs_and_has_good_style(root):
    write_template("my_paper", root)
    said = run(root, "kdlib", "run", "my_paper", "--profile", "smoke")
    assert "distilled" in said
    assert "SYNTHETIC DATA" in said
    run(root, "ruff", "check", "replications")
    run(root, "ruff", "format", "--check", "replications")


@pytest.mark.slow
@pytest.mark.real_data
def test_the_template_records_and_passes_the_audit(root):
    if fetch.where("mnist") is None:
        pytest.skip("MNIST is not here; `kd data fetch mnist` downloads it")
    write_template("my_paper", root)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    run(root, "kdlib", "record", "my_paper")
    run(root, "kdlib", "check", "my_paper")
    run(root, "kdlib", "tables")
    assert "my_paper" in (root / "README.md").read_text()
    assert " 0 faults" in run(root, "tests.audit")
