"""The store of finished runs: one folder for each run, named by what was run.

A run's id is the SHA-256 of its description (recipe, protocol, configuration, seed, data, parents). The same
description is never trained twice. `manifest.json` holds the SHA-256 of every other file and is written last, so a
folder without a good manifest is not a run. Nothing here reads pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdlib.errors import KDError
from kdlib.files import (
    DamagedFile,
    atomic_write,
    canonical_json,
    load_tensors,
    locked,
    not_read,
    read_json,
    save_tensors,
    sha256,
)

ID_LENGTH = 16
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
SOFT_TARGETS = "soft_targets.safetensors"
PLAIN_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Description:
    """Everything that decides a run's result.

    `parents` maps a role ("teacher") to "<run id>/<snapshot>". `config` can be written as JSON and includes the kind of
    device, threads and precision.
    """

    recipe: str
    protocol: int
    config: Mapping[str, Any]
    seed: int
    data: str
    parents: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the description's canonical JSON."""
        return sha256(canonical_json(vars(self)).encode())[:ID_LENGTH]


@dataclass(frozen=True)
class Result:
    """What a training function returns.

    `metrics`: snapshot -> metric -> number or (nested) list. `weights`: snapshot -> state dict. `soft_targets`: logits
    (N, K) by "<snapshot>.<part>", for runs that will teach. They are kept as float16, so a student of a pruned teacher
    gets the same bytes as a student of a whole teacher.
    """

    metrics: Mapping[str, Mapping[str, Any]]
    history: list[dict[str, float]]
    weights: Mapping[str, Mapping[str, Tensor]]
    soft_targets: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FinishedRun:
    """A complete run in a store."""

    folder: Path
    description: Description
    metrics: Mapping[str, Mapping[str, Any]]
    history: list[dict[str, float]]
    environment: Mapping[str, Any]
    weights_sha256: str
    trace: Mapping[str, Any] = field(default_factory=dict)  # what the training did; empty: not traced
    parents: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # role -> SHA-256 of the parent's files
    files: Mapping[str, str] = field(default_factory=dict, compare=False)  # name -> SHA-256, from the manifest

    @property
    def id(self) -> str:
        """The run's id."""
        return self.description.id

    def weights(self, snapshot: str) -> dict[str, Tensor]:
        """Return the state dict of a snapshot; KDError if the run was pruned."""
        path = self.folder / WEIGHTS
        if not path.exists():
            raise KDError(
                f"run {self.id}: its weights were pruned; delete {self.folder} and run again to get them back"
            )
        # The manifest of a pruned run does not list the file.
        if (found := sha256(path.read_bytes())) != self.weights_sha256:
            raise DamagedFile(
                f"{path}: expected the weights of run {self.id}, SHA-256 {self.weights_sha256}, found {found}; "
                "delete the file"
            )
        return _part(path, snapshot)

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of the weights and of any soft targets; children record them."""
        soft = {"soft_targets": self.files[SOFT_TARGETS]} if SOFT_TARGETS in self.files else {}
        return {"weights": self.weights_sha256, **soft}

    def soft_targets(self, part: str) -> Tensor:
        """Return the run's logits (N, K) on a part of its data ("<snapshot>.<part>"): float32, rounded to float16."""
        path = self.folder / SOFT_TARGETS
        if SOFT_TARGETS not in self.files:  # a file that the manifest does not list is not this run's
            raise KDError(
                f"run {self.id}: expected soft targets in {path}, found none; it was not trained as a teacher"
            )
        return _part(path, part)["logits"].float()


def _half(part: str, logits: Tensor) -> Tensor:
    half = logits.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise KDError(
            f"soft targets {part}: expected finite logits within +-65504 (they are kept as float16), found "
            f"{float(logits[~torch.isfinite(half)][0])}; nothing was stored"
        )
    return half


def _part(path: Path, snapshot: str) -> dict[str, Tensor]:
    tensors, _ = load_tensors(path)
    part = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(snapshot + "/")}
    if not part:
        known = sorted({name.partition("/")[0] for name in tensors})
        raise KDError(f"{path}: expected snapshot '{snapshot}', found {', '.join(known)}")
    return part


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
        """Return the finished run of that description, or None; a damaged run is set aside, with a notice."""
        folder = self.run_folder(description.id)
        if not _is_there(folder):
            return None
        with suppress(DamagedFile):
            return read_run(folder)
        try:  # again, since it may have been pruned while it was read
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
        """Move a damaged run to `folder`/damaged and return its new place."""
        target = self.folder / "damaged" / f"{folder.name}.{time.time_ns()}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, target)
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
        """Write a run to a temporary folder, the manifest last, then rename it into place; return it as read back."""
        folder = self.run_folder(description.id)
        temporary = self.work_folder(description.id) / "finished"  # a killed save leaves nothing in the list of runs
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            flat = {
                f"{snapshot}/{name}": value
                for snapshot, state in result.weights.items()
                for name, value in state.items()
            }
            save_tensors(temporary / WEIGHTS, flat)
            if result.soft_targets:
                halves = {f"{part}/logits": _half(part, value) for part, value in result.soft_targets.items()}
                save_tensors(temporary / SOFT_TARGETS, halves)
            size = sum(path.stat().st_size for path in temporary.iterdir())
            record = {
                "description": asdict(description),
                "metrics": result.metrics,
                "history": result.history,
                "environment": {**environment, "stored_bytes": size},
                "weights_sha256": sha256((temporary / WEIGHTS).read_bytes()),
                "trace": trace or {},
                "parents": parents or {},
            }
            atomic_write(temporary / "run.json", _json_file(record))
            write_manifest(temporary)
            if folder.exists():  # left by an earlier, damaged try: `find` said that it is not a run
                self.set_aside(folder)
            _move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(self.work_folder(description.id), ignore_errors=True)
        return read_run(folder)

    def lock(self, run_id: str, waits: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """Hold the run's kernel lock; a second process that wants the same run calls `waits`, then blocks."""
        return locked(self.folder / "locks" / f"{run_id}.lock", "choose another store with --store DIR", waits)

    def ids(self) -> list[str]:
        """Return the ids of all run folders, sorted."""
        folder = self.folder / "runs"
        if not _is_there(folder):
            return []
        try:
            return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise KDError(
                f"{folder}: expected a store's folder of runs, but it cannot be read ({error.strerror})"
            ) from error

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


def _is_there(folder: Path) -> bool:
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise not_read(folder, error) from error
    return True


def read_run(folder: Path, *, check: bool = True) -> FinishedRun:
    """Read a finished run; DamagedFile if a file is missing or altered, or belongs to another run.

    `check=False` skips the hashes (for lists); the description must still give the folder's name.
    """
    manifest = _read_json(folder / MANIFEST)
    if "run.json" not in manifest or not all(PLAIN_NAME.fullmatch(name) for name in manifest):
        raise DamagedFile(
            f"{folder / MANIFEST}: expected plain file names, run.json among them, found {list(manifest)}"
        )
    for name, expected in manifest.items() if check else ():
        try:
            found = sha256((folder / name).read_bytes())
        except OSError as error:
            raise not_read(folder / name, error) from error
        if found != expected:
            raise DamagedFile(f"{folder / name}: expected SHA-256 {str(expected)[:64]!r}, found {found}")
    record = _read_json(folder / "run.json")
    try:
        run = FinishedRun(
            folder,
            Description(**record["description"]),
            record["metrics"],
            record["history"],
            record["environment"],
            record["weights_sha256"],
            record.get("trace", {}),  # older runs have none
            record.get("parents", {}),
            manifest,
        )
    except (KeyError, TypeError) as error:
        raise DamagedFile(f"{folder / 'run.json'}: expected a run's record, found other keys ({error})") from error
    if not _has_types(run):
        raise DamagedFile(f"{folder / 'run.json'}: expected a run's record, found values of other types")
    if manifest.get(WEIGHTS, run.weights_sha256) != run.weights_sha256:
        raise DamagedFile(
            f"{folder / WEIGHTS}: expected the weights of run {run.id}, SHA-256 {run.weights_sha256[:64]}, found "
            f"{str(manifest[WEIGHTS])[:64]!r} in its manifest"
        )
    if run.id != folder.name:
        raise DamagedFile(
            f"{folder}: its description belongs to run {run.id}; the record was altered or the folder renamed"
        )
    return run


def _has_types(run: FinishedRun) -> bool:
    about = run.description
    return (
        isinstance(about.recipe, str)
        and isinstance(about.data, str)
        and type(about.protocol) is type(about.seed) is int
        and isinstance(about.config, dict)
        and isinstance(about.parents, dict)
        and isinstance(run.environment, dict)
        and all(isinstance(parent, str) for parent in about.parents.values())
        and isinstance(run.weights_sha256, str)
        and isinstance(run.metrics, dict)
        and all(isinstance(metrics, dict) for metrics in run.metrics.values())
        and isinstance(run.trace, dict)
        and isinstance(run.parents, dict)
        and all(isinstance(digests, dict) for digests in run.parents.values())
        and isinstance(run.history, list)
        and all(isinstance(entry, dict) for entry in run.history)
    )


def prune(run: FinishedRun) -> int:
    """Delete a run's weights, keep their SHA-256 and its soft targets; return the number of bytes freed."""
    path = run.folder / WEIGHTS
    if not path.exists():
        return 0
    size = path.stat().st_size
    # Manifest first: if the process is killed before the unlink, an extra file is harmless. It keeps the digests that
    # the run was saved with: a file that was altered, or put there by someone else, does not become the run's.
    kept = {name: digest for name, digest in run.files.items() if name != WEIGHTS}
    atomic_write(run.folder / MANIFEST, _json_file(kept))
    path.unlink()
    return size


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: the SHA-256 of every other file of the folder."""
    names = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST and not p.name.startswith("."))
    atomic_write(folder / MANIFEST, _json_file({name: sha256((folder / name).read_bytes()) for name in names}))


def _json_file(value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise KDError(f"a run's record holds a number that is not finite ({error}); nothing was stored") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path.read_bytes())
    except OSError as error:
        raise not_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path}: expected a JSON file of kdlib, found something unreadable ({error})") from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    except OSError as error:
        raise KDError(
            f"{target}: could not be written ({error.strerror}); choose another store with --store DIR"
        ) from error
