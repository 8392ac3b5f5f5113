"""The rules of the tree: who may import whom, print, read the environment; and what a replication's folder holds."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdlib.judge.reading import load_claims
from kdlib.judge.verdicts import MIN_SEEDS
from kdlib.run.experiment import load_experiment, replications

ROOT = Path(__file__).parents[1]
NAMES = replications(ROOT)
LIBRARY = sorted((ROOT / "kdlib").rglob("*.py"))
REPLICATIONS = sorted((ROOT / "replications").rglob("*.py"))
SHARED = sorted(path.parent.name for path in ROOT.glob("replications/*/__init__.py") if path.parent.name not in NAMES)

BASE = {"alive", "collector", "contents", "errors", "files", "foreign", "terminal"}
MAY_IMPORT = {  # cli -> report -> {run, judge} -> core, data -> base
    "base": {"base"},
    "core": {"core", "base"},
    "data": {"data", "core", "base"},
    "judge": {"judge", "core", "base"},
    "run": {"run", "core", "data", "base"},
    "report": {"report", "run", "judge", "base"},
    "cli": {"cli", "report", "run", "judge", "core", "data", "base"},
}
LONGEST = 320  # lines of a file


def of(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def place_of(path: Path) -> str:
    return path.relative_to(ROOT / "kdlib").as_posix()


def imports(path: Path) -> set[str]:
    """The full names of all that a file imports, wherever in it: modules, and names in modules."""
    package, found = path.relative_to(ROOT).parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def layer(name: str) -> str:
    """The layer of a module of kdlib, or of a name in one."""
    parts = name.split(".")[1:]
    if parts and (ROOT / "kdlib" / parts[0]).is_dir():
        return parts[0]
    if parts and parts[0] == "__main__":
        return "cli"
    return "base" if parts and parts[0] in BASE else "core"


# ---- imports


def test_imports_are_read_with_their_full_names():
    found = imports(ROOT / "kdlib" / "report" / "sessions.py")
    assert {"kdlib.errors.KDError", "kdlib.run.store.Store", "tempfile", "pandas"} <= found  # pandas: for types only
    assert "replications.ecg.kernels.features" in imports(ROOT / "replications" / "ecg" / "experiment.py")
    assert {layer(name) for name in found if name.startswith("kdlib")} == {"report", "run", "judge", "base"}
    places = ("kdlib.errors.KDError", "kdlib.losses", "kdlib.data.fetch", "kdlib.__main__", "kdlib.__version__")
    assert [layer(name) for name in places] == ["base", "core", "data", "cli", "core"]
    assert {path.name for path in (ROOT / "kdlib").iterdir() if path.is_dir() and (path / "__init__.py").exists()} == {
        *MAY_IMPORT.keys() - {"base", "core"}
    }


@of(LIBRARY)
def test_imports_go_one_way(path):
    own = layer("kdlib." + place_of(path).removesuffix(".py").replace("/", "."))
    wrong = {name for name in imports(path) if name.split(".")[0] == "kdlib" and layer(name) not in MAY_IMPORT[own]}
    assert not wrong, f"{own} may import {', '.join(sorted(MAY_IMPORT[own]))}"


@of(LIBRARY)
def test_kdlib_imports_no_replication(path):
    assert not {name for name in imports(path) if name.split(".")[0] == "replications"}


@of([path for path in LIBRARY if place_of(path).startswith("judge/")])
def test_judging_needs_no_torch(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision", "safetensors")}


@of(REPLICATIONS)
def test_a_replication_imports_kdlib_and_shared_packages_alone(path):
    """A shared package is named in full, `replications.<name>`: so the source digest finds it."""
    own = path.relative_to(ROOT / "replications").parts[0]
    allowed = {own} if own in SHARED else {own, *SHARED}
    for name in imports(path):
        first, _, rest = name.partition(".")
        assert first != "tests", f"{path} imports {name}"
        assert first != "replications" or rest.split(".")[0] in allowed, f"{path} imports {name}"
    assert "from replications import" not in path.read_text()


def test_shared_packages_are_those_without_an_experiment():
    assert NAMES
    assert not {*NAMES} & {*SHARED}
    assert {*NAMES, *SHARED} == {path.parent.name for path in ROOT.glob("replications/*/*.py")}


# ---- what only one place may do


@of(LIBRARY)
def test_only_one_file_prints_and_only_the_command_line_parses_arguments(path):
    tree, in_cli = ast.parse(path.read_text()), layer("kdlib." + place_of(path).replace("/", ".")) == "cli"
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    streams = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert place_of(path) == "cli/say.py" or "print" not in calls  # there, text from files is escaped
    assert place_of(path) == "cli/live.py" or not calls & {"Console", "self.progress.console.print"}  # rich prints, too
    assert in_cli or not streams & {"sys.stdout", "sys.stderr", "sys.argv"}
    assert in_cli or not {name for name in imports(path) if name.split(".")[0] in ("argparse", "rich")}


@of(LIBRARY)
def test_only_fetch_reads_the_environment(path):
    """RAY_ADDRESS, which another module reads, is Ray's own."""
    text = path.read_text().replace('os.environ.get("RAY_ADDRESS", "")', "")
    assert ("os.environ" not in text and "getenv" not in text) or place_of(path) == "data/fetch.py"


# ---- names and sizes


@of(LIBRARY)
def test_no_class_and_no_file_is_called_recorded(path):
    classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    assert not [name for name in (path.stem, *classes) if "recorded" in name.lower()]


@of(LIBRARY)
def test_a_file_is_not_too_long(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST, "split it, or say it in fewer lines"


# ---- replications


@pytest.mark.parametrize("name", NAMES)
def test_a_replication_has_its_files_and_its_claims_name_its_arms(name):
    folder = ROOT / "replications" / name
    assert (folder / "README.md").stat().st_size > 500
    assert (folder / "__init__.py").read_text() == ""
    experiment = load_experiment(name)
    reported = load_claims(folder / "claims.toml", [arm.name for arm in experiment.arms])
    assert any(claim.primary for claim in reported.claims.values())


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_has_a_sham_arm_a_judged_profile_and_a_check_within_its_quick_one(name):
    experiment = load_experiment(name)
    assert any("sham" in arm.modes for arm in experiment.arms)
    assert experiment.profile(experiment.judged).seeds >= MIN_SEEDS
    assert not experiment.profile(experiment.judged).synthetic
    quick = experiment.profile("quick")
    assert set(experiment.check) <= set(experiment.arms_of(quick))
    assert quick.seeds >= 2
    assert sum(profile.in_readme for profile in experiment.profiles.values()) <= 1  # README has one place for each
    assert experiment.about


def kd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kdlib", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{folder}:{ROOT}", "HOME": str(folder)},
    )


@pytest.mark.slow
def test_a_copied_folder_is_one_more_replication_and_shares_its_runs(tmp_path):
    name, copy = NAMES[0], f"{NAMES[0]}_again"
    shutil.copytree(ROOT / "replications", tmp_path / "replications", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tmp_path / "replications" / name, tmp_path / "replications" / copy)
    shutil.copy(ROOT / "noxfile.py", tmp_path)
    listed = kd(tmp_path, "list")
    assert listed.returncode == 0, listed.stderr
    assert f"{copy}:" in listed.stdout
    planned = [
        kd(tmp_path, "run", each, "--profile", "smoke", "--dry-run").stdout.splitlines()[:-1] for each in (name, copy)
    ]
    assert planned[0]
    assert [line.split()[0] for line in planned[0]] == [line.split()[0] for line in planned[1]]
    sessions = subprocess.run(
        [sys.executable, "-m", "nox", "--list"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert f"replicate_{copy}" in sessions.stdout, sessions.stderr
