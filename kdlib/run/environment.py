"""What a run's result may depend on in addition to its description: commit, code, versions, machine."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdlib.files import is_there, not_read, read_file

LIBRARY = Path(__file__).parents[1]
# The files of kdlib.run that can change a result. All files of the core can; an edit of the others (engine, export and
# import, records, judging, tables, command line) gives no notice.
RUN_FILES = tuple(
    f"{name}.py"
    for name in [
        "contradictions",
        "environment",
        "experiment",
        "finished",
        "imported",
        "loaded",
        "readable",
        "schema",
        "store",
    ]
)
# What `git status` looks at.
CODE = (":/kdlib", ":/replications", ":(top,exclude)*.md", ":(top,exclude,glob)replications/**/*.toml")
GIT_SECONDS = 20
# The files of the core that no training uses.
NO_CORE = ("cost.py", "export.py")
# The files of kdlib.data that only bring data sets here. The data have a digest in a run's description.
NOT_TRAINING = ("addresses.py", "connections.py", "fetch.py", "present.py", "sources.py", "transfer.py", "unpack.py")


def environment(experiment_folder: Path, device: str) -> dict[str, Any]:
    """Return commit, clean tree or not, digest of the source files, versions and device; without host names."""
    return {
        "replication": experiment_folder.name,
        "commit": git_state(experiment_folder)[0],
        "clean": is_clean(experiment_folder),
        "source": source_digest(experiment_folder),
        "versions": {**versions(experiment_folder)},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
    }


def is_clean(experiment_folder: Path) -> bool | None:
    """Return whether the commit of an experiment holds the code that runs; None where git does not say."""
    commit, clean = git_state(experiment_folder)
    if "site-packages" in LIBRARY.parts:  # installed: it has a version, and no commit
        return clean
    if clean and git_state(LIBRARY) not in ((commit, True), ("unknown", None)):
        return False  # kdlib has changes, or is of another checkout
    return clean


@cache
def versions(experiment_folder: Path) -> Mapping[str, str]:
    """Return the versions of Python and of the libraries that compute, also of those that the experiment imports."""
    from kdlib import __version__

    own = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": _version("numba") or "none",
        "kdlib": __version__,
    }
    root = experiment_folder.parent
    modules = [name for path in reached(experiment_folder / "experiment.py") for name in imports_of(path, root)]
    further = {name.partition(".")[0] for name in modules} - {*own, "replications", *sys.stdlib_module_names}
    return own | {name: found for name in sorted(further) if (found := _version(name))}


def _version(module: str) -> str:
    """The version of the distribution that a module is of: `sklearn` is of scikit-learn. Nothing if it has none."""
    try:
        return version(module)
    except (PackageNotFoundError, ValueError):
        return next(map(version, packages_distributions().get(module, [])), "")


def git_state(folder: Path) -> tuple[str, bool | None]:
    """Return (commit, clean) of the work tree that holds `folder`; ("unknown", None) where git does not say.

    Texts, claims and bands (which `kd record` writes) move no result, so a change of them leaves the tree clean. Each
    Python file of the folder, and of what its experiment imports, must be in the commit as it is: `git status` says
    nothing of ignored files, and of others if it is told so.
    """
    return asked_git(folder)[:2]


def no_commit(folder: Path) -> str:
    """Return why git does not name the commit of `folder`; nothing if it does, and outside of a work tree."""
    here = folder.resolve()
    return asked_git(folder)[2] if any(is_there(each / ".git") for each in (here, *here.parents)) else ""


@cache
def asked_git(folder: Path) -> tuple[str, bool | None, str]:
    """The commit, whether the tree is clean, and why git does not say."""

    def git(*arguments: str, lines: Iterable[str] = ()) -> str:
        found = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            input="".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"),
            capture_output=True,
            check=True,
            timeout=GIT_SECONDS,
        )
        return found.stdout.decode(errors="surrogateescape").strip()

    try:
        commit, top = git("rev-parse", "HEAD"), Path(git("rev-parse", "--show-toplevel"))
        if git("status", "--porcelain", "--untracked-files=normal", "--", *CODE):
            return commit, False, ""
        files = [str(path.resolve()) for path in {**source_files(folder), **dict.fromkeys(_sources_below(folder))}]
        # With filters for the ends of lines, and without: a file that was committed with CRLF remains so.
        now = [git("hash-object", "--stdin-paths", *how, lines=files).split() for how in ((), ("--no-filters",))]
        places = {os.path.relpath(Path(path).parent, top.resolve()).replace(os.sep, "/") for path in files}
        within = sorted(place for place in places if not place.startswith(".."))
        tree = [line.partition("\t") for line in git("ls-tree", "-r", "-z", "--full-tree", "HEAD", *within).split("\0")]
        held = {str(top.resolve() / path): about.split()[-1] for about, _, path in tree if about}
        return commit, all(held.get(path) in digests for path, *digests in zip(files, *now, strict=True)), ""
    except subprocess.CalledProcessError as error:
        return "unknown", None, f"git says: {' '.join(error.stderr.decode(errors='backslashreplace').split())}"
    except subprocess.TimeoutExpired:
        return "unknown", None, f"git does not answer within {GIT_SECONDS} seconds"
    except OSError as error:
        return "unknown", None, f"git cannot be called ({error})"


@cache
def source_digest(experiment_folder: Path) -> str:
    """Return the first 16 digits of the SHA-256 over the source files that can change a result of this experiment.

    These are its own files, also those in folders of its own, those of the packages and modules in replications/ that
    they import, kdlib's core and data, and the files of kdlib.run that it imports.
    """
    files = [
        *(path for path in _sources(LIBRARY) if path.name not in NO_CORE),
        *(path for path in _sources(LIBRARY / "data") if path.name not in NOT_TRAINING),
        *(LIBRARY / "run" / name for name in RUN_FILES),
    ]
    names = {**source_files(experiment_folder), **{path: f"kdlib/{path.name}" for path in files}}
    parts = sorted((name, hashlib.sha256(read_file(path)).hexdigest()) for path, name in names.items())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def source_files(experiment_folder: Path) -> dict[Path, str]:
    """Return the files in replications/ that can change a result of this experiment, each with its name in the digest.

    It is the name within the folder, not the path: a copied replication has the same digest.
    """
    places = [experiment_folder]
    for place in places:  # grows: a shared package may import another one
        for path in _sources_below(place):
            if path != experiment_folder / "figures.py":
                places += [found for found in _imported(path, experiment_folder.parent) if found not in places]
    return {
        path: path.relative_to(experiment_folder if place == experiment_folder else place.parent).as_posix()
        for place in places
        for path in _sources_below(place)
        if path != experiment_folder / "figures.py"
    }


def _sources(folder: Path) -> list[Path]:
    """The Python files of a folder, without those of editors and file systems: `.#a.py` is a link to nothing."""
    return [path for path in folder.glob("*.py") if not path.name.startswith(".") and path.is_file()]


def _sources_below(place: Path) -> list[Path]:
    """The Python files of a folder and of the folders in it, but not of hidden ones; or the one file itself."""
    if place.is_file():
        return [place]
    found, seen = list[Path](), set[str]()
    folders = [place]
    for folder in folders:  # grows; a link may lead to a folder that was looked at
        if (real := os.path.realpath(folder)) not in seen:
            seen.add(real)
            found += _sources(folder)
            try:
                folders += sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
            except OSError as error:
                raise not_read(folder, error) from error
    return found


def _imported(path: Path, root: Path) -> list[Path]:
    """The packages and modules of replications/, which is `root`, that a file imports, or names in full in a text."""
    found = {name.decode() for name in re.findall(rb"\breplications\.(\w+)", read_file(path))}
    modules = [name.split(".") for name in imports_of(path, root)]
    found |= {parts[1] for parts in modules if parts[0] == "replications" and len(parts) > 1}
    every = []
    for name in sorted(found):
        places = [place for place in (root / name, root / f"{name}.py") if place.is_dir() or place.is_file()]
        every += places or [each for each in [root / "__init__.py"] if each.is_file()]  # a name that is defined there
    return every


def imports_of(path: Path, root: Path) -> frozenset[str]:
    """Return the full names of the modules that a file in replications/, `root`, imports, and of what it takes of them.

    None of a file that is no Python: who imports it is told.
    """
    return _imports(read_file(path), ("replications", *path.relative_to(root).parent.parts))


@cache  # a session asks for those of the same files again and again
def _imports(content: bytes, package: tuple[str, ...]) -> frozenset[str]:
    try:
        nodes = [*ast.walk(ast.parse(content))]
    except (SyntaxError, ValueError):
        return frozenset()
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def reached(experiment: Path) -> dict[Path, None]:
    """Return the files in replications/ that experiment.py imports, and that these import, also within functions."""
    root, found = experiment.parents[1], {experiment: None}
    todo = [experiment]
    for path in todo:  # grows
        for module in imports_of(path, root):
            parts = module.split(".")[1:] if module.startswith("replications.") else []
            names = [root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
            files = [each for name in names for each in (name.with_suffix(".py"), name / "__init__.py")]
            todo += [each for each in files if each not in found and each.is_file()]
            found |= dict.fromkeys(todo)
    return found


@cache
def device_name(device: str) -> str:
    """Return the name of the processor or the accelerator."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
