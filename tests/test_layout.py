"""The rules of the tree: who may import whom, print, read the environment; and what a replication's folder holds."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdlib.claims import load_reported
from kdlib.experiment import load_experiment, replications

ROOT = Path(__file__).parents[1]
NAMES = replications(ROOT)
LIBRARY = sorted((ROOT / "kdlib").rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_kdlib_imports_no_replication(path):
    assert not {name for name in imports(path) if name.split(".")[0] == "replications"}


@pytest.mark.parametrize("path", sorted((ROOT / "replications").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_replication_imports_another(path):
    shared = {f"replications.{file.stem}" for file in (ROOT / "replications").glob("*.py")}
    for name in imports(path):
        assert not name.startswith("replications.") or name in shared, f"{path} imports {name}"
        assert not name.startswith(".."), f"{path} imports {name}"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_command_line_prints_and_only_fetch_reads_the_environment(path):
    place = path.relative_to(ROOT / "kdlib").as_posix()
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert "print" not in calls or place.startswith("cli/") or place == "audit/__main__.py"
    text = path.read_text()
    assert ("os.environ" not in text and "getenv" not in text) or place == "data/fetch.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_replication_has_its_files_and_its_claims_name_its_arms(name):
    folder = ROOT / "replications" / name
    assert (folder / "README.md").stat().st_size > 500
    assert (folder / "__init__.py").read_text() == ""
    arms = [arm.name for arm in load_experiment(name).arms]
    assert len(arms) == len(set(arms))
    reported = load_reported(folder / "reported.toml", arms)
    assert any(claim.primary for claim in reported.claims.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_has_a_sham_arm_and_a_check_within_its_quick_profile(name):
    experiment = load_experiment(name)
    assert any("sham" in arm.modes for arm in experiment.arms)
    quick = experiment.profile("quick")
    assert set(experiment.module.CHECK) <= set(experiment.arms_of(quick))
    assert quick.seeds >= 2


def kd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kdlib", *arguments], cwd=folder, capture_output=True, text=True, timeout=120,
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{folder}:{ROOT}", "HOME": str(folder)})


@pytest.mark.slow
def test_a_copied_folder_is_one_more_replication_and_shares_its_runs(tmp_path):
    shutil.copytree(ROOT / "replications", tmp_path / "replications", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tmp_path / "replications" / "ecg", tmp_path / "replications" / "ecg_again")
    shutil.copy(ROOT / "noxfile.py", tmp_path)
    listed = kd(tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    assert "ecg_again:" in listed.stdout
    planned = [kd(tmp_path, "run", name, "--profile", "smoke", "--dry-run").stdout.splitlines() for name in ("ecg", "ecg_again")]
    assert planned[0]
    assert [line.split()[0] for line in planned[0]] == [line.split()[0] for line in planned[1]]
    sessions = subprocess.run([sys.executable, "-m", "nox", "--list"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "replicate_ecg_again" in sessions.stdout, sessions.stderr
