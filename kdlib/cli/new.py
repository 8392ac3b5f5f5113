"""`kd new NAME` writes the folder of a new replication from a template that runs as it is."""

from __future__ import annotations

import argparse
import re
from importlib.resources import files
from pathlib import Path

from kdlib.cli.say import say
from kdlib.errors import KDError
from kdlib.files import atomic_write
from kdlib.report.names import refuse_reserved


def new(options: argparse.Namespace) -> int:
    """`kd new NAME`."""
    for line in write_template(options.name, Path()):
        say(line)
    return 0


def write_template(name: str, root: Path) -> list[str]:
    """Write `replications/<name>/` and return lines that say what was written and what to do next.

    KDError for a name that is no Python name in small letters, or is that of a page of all results, and for a folder
    that is there already.
    """
    folder = root / "replications" / name
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", name):
        raise KDError(
            f"kd new {name}: expected 1 to 40 small letters, digits and underscores, a letter first, as in my_paper"
        )
    refuse_reserved(name)
    if not folder.parent.is_dir():
        raise KDError(
            f"expected a folder replications in {root.absolute()}, found none; call kd in the repository's top folder"
        )
    if folder.exists():
        raise KDError(f"{folder}: expected no such folder yet, found one; choose another name or remove it")
    package = folder.parent / "__init__.py"
    if not package.exists():  # without it, Python may take the replications of another folder for these
        atomic_write(package, b"")
    for file in ("experiment.py", "claims.toml", "README.md"):
        text = (files("kdlib.cli") / "template" / file).read_text(encoding="utf-8")
        atomic_write(folder / file, text.replace("NAME", name).encode())
    atomic_write(folder / "__init__.py", b"")
    return [
        f"written {folder}: experiment.py, claims.toml, README.md, __init__.py",
        f"It runs as it is: kd run {name} --profile smoke",
        f"Then edit it (replications/README.md says how), and: kd record {name} && kd tables",
    ]
