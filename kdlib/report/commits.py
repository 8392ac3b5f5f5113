"""The day of each commit that recorded runs were made by, in `results/commits.json`.

The file keeps them, so that the page has the same bytes in a copy without git's history.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import atomic_write, read_json

__all__ = ["dates_of"]


def dates_of(root: Path, commits: Iterable[str]) -> dict[str, str]:
    """Return the days (2026-11-28) of commits, without those that neither the file nor git knows; renew the file."""
    path = root / "results" / "commits.json"
    known = _known(path) if path.exists() else {}
    found = {commit: known.get(commit) or _day(root, commit) for commit in sorted(set(commits))}
    days = {commit: day for commit, day in found.items() if day}
    if days != known and days:
        atomic_write(path, (json.dumps(days, indent=1) + "\n").encode())
    return days


def _known(path: Path) -> dict[str, str]:
    try:
        found = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KDError(f"{path}: expected a JSON file, found: {error}; restore or delete it") from error
    wrong = {"": found} if not isinstance(found, dict) else {k: v for k, v in found.items() if not isinstance(v, str)}
    for key, value in wrong.items():
        raise KDError(f"{path}: expected a day for each commit, found {key} {value!a:.80}; restore or delete it")
    return dict(found)


def _day(root: Path, commit: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", commit):
        return ""
    command = ["git", "-C", str(root), "show", "--no-patch", "--format=%cs", commit]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
