"""An installation of kdlib: the library alone needs little, and type checkers see an editable one."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import build_meta

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = {  # of the packages whose module has another name
    "jinja2": "jinja2",
    "markdown-it-py": "markdown_it",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
CORE = sorted(path.stem for path in (ROOT / "kdlib").glob("*.py") if not path.stem.startswith("__"))

ONLY = "import sys\nsys.modules.update(dict.fromkeys({hidden}))\n"  # Python takes these modules for missing


def modules(extra):
    """The modules of all packages of an extra, those that it takes from other extras included."""
    found = set()
    for text in EXTRAS[extra] if extra else PROJECT["dependencies"]:
        name, inner = re.fullmatch(r"([\w-]+)(?:\[([\w,]+)\])?(?:>=.*)?", text).groups()
        found |= set().union(*(modules(each) for each in inner.split(","))) if inner else {MODULES.get(name, name)}
    return found


def without(*hidden, code):
    """Run code in a Python that lacks packages."""
    script = ONLY.format(hidden=set(hidden)) + code
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )


OPTIONAL = sorted(set().union(*map(modules, EXTRAS)) - modules("") - {"setuptools"})

TRAINING = """
import importlib, torch
import kdlib
for name in {core}:
    importlib.import_module(f"kdlib.{{name}}")
from kdlib import Batches, Examples, Progress, epochs, hard_and_soft, predict_soft_targets
examples = Examples(torch.randn(32, 4), torch.arange(32) % 3)
soft = predict_soft_targets(torch.nn.Linear(4, 3), examples, run="a")
student = torch.nn.Linear(4, 3)
progress = Progress(student, torch.optim.SGD(student.parameters(), lr=0.1))
objective = lambda outputs, batch: hard_and_soft(
    outputs, batch.soft, batch.labels, hard_weight=0.5, soft_weight=0.5, temperature=2.0
)
print([epoch for epoch in epochs(progress, Batches(examples, size=8, seed=0, soft=soft), objective, count=2, seed=0)])
"""


@pytest.mark.slow
def test_the_library_needs_no_package_of_an_extra():
    assert {"pandas", "matplotlib", "PIL", "torchvision", "numba", "scipy", "sklearn", "onnx"} <= {*OPTIONAL}
    done = without(*OPTIONAL, code=TRAINING.format(core=CORE))
    assert done.returncode == 0, done.stderr
    assert len(ast.literal_eval(done.stdout)) == 2


CASES = {  # module that is missing: code, and the extra that its error names
    "PIL": ("import kdlib.data.mnist", "data"),
    "pooch": ("from kdlib.data import fetch; fetch._fill('mnist', None, None, Path(), None)", "data"),
    "scipy": ("from kdlib.judge.kinds import Effect", "judge"),
    "pandas": ("from kdlib.report import replicate", "suite"),
    "matplotlib": (
        "from kdlib.report import pages; from kdlib.run import load_experiment; "
        "pages.figures_of(load_experiment('ecg'))",
        "figures",
    ),
    "sklearn": ("specialists.kmeans_clusters(torch.eye(3), 2, torch.Generator())", "specialists"),
    "onnxscript": ("export.onnx_file(torch.nn.Linear(2, 2), torch.ones(1, 2), Path('x'))", "export"),
    "rich": ("from kdlib.cli.live import reporter; reporter([]).__enter__()", "suite"),
    "jinja2": ("import kdlib.cli; sys.exit(kdlib.cli.main(['list']))", "suite"),
}
EACH = """
import contextlib, io, torch
from pathlib import Path
from kdlib import errors, export, specialists
for name, (code, _) in {cases}.items():
    sys.modules[name] = None
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            exec(code)
    except (errors.KDError, SystemExit) as error:
        print([name, type(error).__name__, str(error), told.getvalue()])
    del sys.modules[name]
    for each in [each for each in sys.modules if each.startswith(("kdlib.data", "kdlib.judge", "kdlib.report"))]:
        del sys.modules[each]  # so that it is imported anew
"""


@pytest.mark.slow
def test_a_missing_package_is_told_with_its_extra():
    done = without(code=EACH.format(cases=CASES))
    assert done.returncode == 0, done.stderr
    told = {name: rest for name, *rest in map(ast.literal_eval, done.stdout.splitlines())}
    assert told.keys() == CASES.keys()
    for name, (code, extra) in CASES.items():
        kind, error, printed = told[name]
        assert name in modules(extra)
        if "main" in code:
            assert (kind, error) == ("SystemExit", "2")
            assert re.fullmatch(rf"kd: expected all packages of .* module {name}; .*'kdlib\[suite\]'\n", printed)
        else:
            assert (kind, printed) == ("MissingPackage" if extra != "export" else "KDError", "")
            assert re.search(rf"{name}.* found no.*pip install 'kdlib\[{extra}\]'|found no {name};.*\[{extra}\]", error)


def test_each_import_of_the_library_is_a_declared_dependency():
    """Of the core, the required ones; of the other layers, those of the extra `suite`, too."""
    core, rest = set(), set()
    for path in (ROOT / "kdlib").rglob("*.py"):
        found = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            for alias in getattr(node, "names", ())
            if isinstance(node, ast.Import)
        }
        found |= {
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and not node.level and node.module
        }
        others = {name.split(".")[0] for name in found} - sys.stdlib_module_names - {"kdlib", "replications"}
        if path.parent.name == "kdlib":
            core |= others
        else:
            rest |= others
    assert modules("") <= core | rest
    assert core - modules("") == {"numba", "llvmlite", "platformdirs", "sklearn", "onnx", "onnxruntime", "onnxscript"}
    assert rest <= modules("") | modules("suite") | modules("export") | modules("ray")


def test_an_editable_install_is_a_path_to_the_typed_package(tmp_path, monkeypatch):
    """mypy and pyright follow a path in a .pth file; they do not run the import hooks that setuptools else installs."""
    shutil.copytree(ROOT / "kdlib", tmp_path / "clone" / "kdlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "clone")
    (tmp_path / "clone" / "tests").mkdir()  # a second top folder, as in the repository
    monkeypatch.chdir(tmp_path / "clone")
    wheel = tmp_path / build_meta.build_editable(str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert inside == [name for name in inside if name.endswith(".pth")] != []
        (line,) = archive.read(inside[0]).decode().split()
    assert Path(line) == tmp_path / "clone"
    assert (Path(line) / "kdlib" / "py.typed").is_file()
