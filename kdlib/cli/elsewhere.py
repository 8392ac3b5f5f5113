"""Code of another place than the current folder: `kd` writes into this one, and names its commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import read_file
from kdlib.run.environment import LIBRARY
from kdlib.run.experiment import load_experiment

__all__ = ["refuse_elsewhere", "refuse_other_library"]


def refuse_elsewhere(name: str, root: Path) -> None:
    """Raise KDError for a replication that Python imports from another folder than the current one's.

    `kd record` writes the bands into the replication's folder, and the tables into results/ of the current folder. Both
    must be of one repository.
    """
    experiment = load_experiment(name)
    if experiment.folder.resolve() != (root / "replications" / name).resolve():
        raise KDError(
            f"{name}: expected replications/{name} in the current folder, {root.absolute()}, found that Python imports "
            f"{experiment.folder}; call kd in {experiment.folder.parents[1]}"
        )


def refuse_other_library(root: Path) -> None:
    """Raise KDError for a kdlib that is not as that of the current folder, if there is one.

    The folder's commit must hold the code of the runs.
    """
    own = root / LIBRARY.name
    if (own / "__init__.py").is_file() and (other := next(_differences(own.resolve(), LIBRARY.resolve()), None)):
        raise KDError(
            f"expected the kdlib of the current folder, {own.absolute()}, found that kd is installed in {LIBRARY} and "
            f"differs in {other}: runs would name a commit that is not of their code. Write `python -m kdlib` instead "
            "of `kd`, or delete build/, if there is such a folder, and install by `python -m pip install -e .`"
        )


def _differences(one: Path, other: Path) -> Iterator[Path]:
    if one != other:
        names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("[!.]*.py")}
        yield from (name for name in sorted(names) if _content(one / name) != _content(other / name))


def _content(path: Path) -> bytes:
    return read_file(path) if path.is_file() else b""
