"""The files of a damaged data set while it is downloaded again: they are kept until the new ones are checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from kdlib.data.sources import Source
from kdlib.files import replace

__all__ = ["put_back", "take_back"]


def take_back(source: Source, folder: Path, staging: Path, aside: Path) -> None:
    """Start from the files of a damaged set or a broken download; those that no hash can check are put `aside`."""
    if aside.exists():  # of a process that was killed
        put_back(staging, aside)
    if folder.exists():
        shutil.rmtree(staging, ignore_errors=True)
        replace(folder, staging)
    staging.mkdir(exist_ok=True)
    without_hash = [file.name.rstrip("/") for file in source.files() if file.sha256 is None]
    for name in (*without_hash, *(name for names in source.instead for name in names)):
        if os.path.lexists(staging / name):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            replace(staging / name, aside / name)
    for path in staging.iterdir():
        if path.is_dir() and path.name.startswith((".tmp", "tmp")):
            shutil.rmtree(path)
        elif path.name.startswith("tmp") or path.suffix == ".part":
            path.unlink()


def put_back(staging: Path, aside: Path) -> None:
    """Put the files back that the download has not replaced, and remove the others."""
    for path in sorted(aside.rglob("*")):
        target = staging / path.relative_to(aside)
        if os.path.lexists(path) and not os.path.lexists(target) and target.parent.is_dir():
            replace(path, target)
    shutil.rmtree(aside, ignore_errors=True)
