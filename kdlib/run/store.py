"""The store of finished runs: one folder for each run, named by what was run.

The same description is never trained twice. A run is written elsewhere and renamed into place when it is complete, so
no half run is ever in the list. Whoever moves or replaces a run holds its lock.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlib.errors import KDError
from kdlib.files import DamagedFile, atomic_write, is_there, locked, replace, save_tensors, sha256
from kdlib.run.finished import (
    ID_LENGTH,
    MANIFEST,
    SOFT_TARGETS,
    WEIGHTS,
    Description,
    FinishedRun,
    Result,
    read_run,
    read_settled,
)
from kdlib.run.readable import check_record, check_tensors

__all__ = [
    "ID_LENGTH",
    "Description",
    "FinishedRun",
    "Result",
    "Store",
    "clear_work",
    "prune",
    "read_run",
    "write_manifest",
]

ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")


class Store:
    """Finished runs below `folder`/runs, unfinished ones below `folder`/work."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of a finished run."""
        return self.folder / "runs" / run_id

    def work_folder(self, run_id: str) -> Path:
        """Return the folder of an unfinished run's checkpoint and log."""
        return self.folder / "work" / run_id

    def find(self, description: Description, notice: Callable[[str], None] = lambda text: None) -> FinishedRun | None:
        """Return the finished run of that description, or None; a damaged run is set aside, with a notice.

        A damaged run whose lock another session holds stays where it is: that session makes it again.
        """
        folder = self.run_folder(description.id)
        if not is_there(folder):
            return None
        with suppress(DamagedFile):
            return read_run(folder)
        with suppress(_Busy), self.lock(description.id, _busy):
            if not is_there(folder):  # another session was first
                return None
            try:  # again: it may have been pruned, or replaced by a good one, while it was read
                return read_run(folder)
            except DamagedFile as error:
                notice(f"{error}. Set aside as {self.set_aside(folder)}; the run is made again.")
        return None

    def has(self, description: Description) -> bool:
        """Return whether there is a complete run of that description; move nothing."""
        try:
            read_run(self.run_folder(description.id))
        except DamagedFile:
            return False
        return True

    def set_aside(self, folder: Path) -> Path:
        """Move a damaged run to `folder`/damaged and return its new place. The caller holds the run's lock."""
        target = self.folder / "damaged" / f"{folder.name}.{time.time_ns()}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(folder, target)
        except FileNotFoundError:
            pass  # another process was first
        except OSError as error:
            raise KDError(
                f"{folder}: damaged, and cannot be moved to {target} ({error.strerror}); remove it by hand"
            ) from error
        return target

    def save(
        self,
        description: Description,
        result: Result,
        environment: Mapping[str, Any],
        trace: Mapping[str, Any] | None = None,
        parents: Mapping[str, Mapping[str, str]] | None = None,
    ) -> FinishedRun:
        """Write a run to a temporary folder, the manifest last, read it back, then publish it; return it.

        KDError names what could not be read back, or written; then nothing is published, and the checkpoint is kept.
        """
        # A killed save leaves nothing in the list of runs.
        temporary = self.work_folder(description.id) / "finished" / description.id
        record = {
            "description": asdict(description),
            "metrics": result.metrics,
            "history": result.history,
            "trace": trace or {},
            "parents": parents or {},
        }
        check_record(record)
        for snapshot, state in result.weights.items():
            check_tensors(snapshot, state, "weights of the snapshot")
        for part, logits in result.soft_targets.items():
            check_tensors(part, {"logits": logits}, "soft targets")
        with self.lock(description.id):
            shutil.rmtree(temporary.parent, ignore_errors=True)
            try:
                _write_run(temporary, result, record, environment)
                _read_back(temporary)
                self.publish(description.id, temporary)
            finally:
                shutil.rmtree(temporary.parent, ignore_errors=True)
            return read_run(self.run_folder(description.id), check=False)  # it was just verified

    def publish(self, run_id: str, complete: Path) -> None:
        """Rename the folder of a complete run into place and clear its work folder. The caller holds the run's lock.

        A damaged run in its place is moved to `folder`/damaged. A good one, which someone has copied there meanwhile,
        stays, and `complete` is not used.
        """
        folder = self.run_folder(run_id)
        try:
            if is_there(folder):
                read_settled(folder)
            else:
                _move(complete, folder)
        except DamagedFile:
            self.set_aside(folder)
            _move(complete, folder)
        clear_work(self.work_folder(run_id))

    def lock_file(self, run_id: str) -> Path:
        """Return the file that is locked while a run is trained, moved or replaced."""
        return self.folder / "locks" / f"{run_id}.lock"

    @contextmanager
    def lock(self, run_id: str, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the run's kernel lock; a second process that wants the same run calls `waits`, then blocks."""
        with locked(self.lock_file(run_id), "choose another store with --store DIR", waits):
            yield

    def ids(self) -> list[str]:
        """Return the ids of all run folders, sorted. Other files are not ours and are left out."""
        return _names(self.folder / "runs")

    def begun(self) -> list[str]:
        """Return the names of all work folders, sorted: ids of unfinished runs, and of groups of them."""
        return _names(self.folder / "work")

    def resolve(self, prefix: str) -> FinishedRun:
        """Return the one run whose id starts with `prefix`; KDError if there is none, or more than one."""
        return read_run(self.run_folder(self.resolve_id(prefix)))

    def resolve_id(self, prefix: str) -> str:
        """Return the one id that starts with `prefix`, of a run that may be damaged; KDError as for `resolve`."""
        found = [run_id for run_id in self.ids() if run_id.startswith(prefix)]
        if len(found) != 1 or not prefix:
            raise KDError(
                f"run '{prefix}': expected the beginning of one id in {self.folder}, found {len(found)}; "
                "see `kd runs list`"
            )
        return found[0]


class _Busy(Exception):
    """Another session holds the lock."""


def _busy() -> None:
    raise _Busy


def _names(folder: Path) -> list[str]:
    if not is_there(folder):
        return []
    try:
        return sorted(entry.name for entry in folder.iterdir() if ID.fullmatch(entry.name))
    except OSError as error:
        raise KDError(
            f"{folder}: expected a folder of a store, but it cannot be read ({error.strerror}); mend this, then run "
            "the same command again"
        ) from error


def clear_work(folder: Path) -> None:
    """Delete the work folder of a finished run, but no file that was set aside as damaged."""
    with suppress(OSError):  # the run is finished, whatever is left here
        if folder.is_symlink():  # what it leads to is the user's
            folder.unlink()
            return
        for path in list(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif ".damaged" not in path.name:
                path.unlink()
        folder.rmdir()


def _write_run(folder: Path, result: Result, record: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    flat = {f"{snapshot}/{name}": value for snapshot, state in result.weights.items() for name, value in state.items()}
    save_tensors(folder / WEIGHTS, flat)
    if result.soft_targets:
        halves = {f"{part}/logits": _half(part, value) for part, value in result.soft_targets.items()}
        save_tensors(folder / SOFT_TARGETS, halves)
    size = sum(path.stat().st_size for path in folder.iterdir())
    weights = sha256((folder / WEIGHTS).read_bytes())
    rest = {"environment": {**environment, "stored_bytes": size}, "weights_sha256": weights}
    atomic_write(folder / "run.json", json_file({**record, **rest}))
    write_manifest(folder)


def _read_back(folder: Path) -> None:
    try:
        read_run(folder)
    except DamagedFile as error:  # the run in the store would be called damaged, and trained again
        raise KDError(f"expected to read a run as it was written, found: {error}; nothing was stored") from error


def _half(part: str, logits: Tensor) -> Tensor:
    half = logits.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise KDError(
            f"soft targets {part}: expected finite logits within +-65504 (they are kept as float16), found "
            f"{float(logits[~torch.isfinite(half)][0])}; nothing was stored"
        )
    return half


def prune(run: FinishedRun) -> int:
    """Delete a run's weights, keep their SHA-256 and its soft targets; return the number of bytes freed."""
    path = run.folder / WEIGHTS
    if not is_there(path):
        return 0
    size = path.lstat().st_size
    # Manifest first: if the process is killed before the unlink, an extra file is harmless. It keeps the digests that
    # the run was saved with: a file that was altered, or put there by someone else, does not become the run's.
    kept = {name: digest for name, digest in run.files.items() if name != WEIGHTS}
    atomic_write(run.folder / MANIFEST, json_file(kept))
    path.unlink(missing_ok=True)
    return size


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: the SHA-256 of every other file of the folder."""
    names = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST and not p.name.startswith("."))
    atomic_write(folder / MANIFEST, json_file({name: sha256((folder / name).read_bytes()) for name in names}))


def json_file(value: Any) -> bytes:
    """Return the text of a record or a manifest; KDError for a number that is not finite."""
    try:
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise KDError(f"a run's record holds a number that is not finite ({error}); nothing was stored") from error


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(source, target)
    except OSError as error:
        raise KDError(
            f"{target}: could not be written ({error.strerror}); choose another store with --store DIR"
        ) from error
