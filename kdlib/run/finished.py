"""What a run is, and how a finished one is read and verified. Nothing here writes, and nothing reads pickle.

A run's id is the SHA-256 of its description (recipe, protocol, configuration, seed, data, parents). `manifest.json`
holds the SHA-256 of every other file and is written last, so a folder without a good manifest is not a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import asdict
from torch import Tensor

from kdlib.errors import KDError
from kdlib.files import DamagedFile, canonical_json, is_there, read_file, read_json, sha256, tensors_of
from kdlib.run.schema import RunShape, decoded
from kdlib.shapes import Misshapen

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
        if not is_there(path):
            raise KDError(
                f"run {self.id}: its weights were pruned; delete {self.folder} and run again to get them back"
            )
        # The manifest of a pruned run does not list the file.
        content = read_file(path)
        if (found := sha256(content)) != self.weights_sha256:
            raise DamagedFile(
                f"{path}: expected the weights of run {self.id}, SHA-256 {self.weights_sha256}, found {found}; "
                "delete the file"
            )
        return _part(content, path, snapshot)

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
        return _part(read_file(path), path, part)["logits"].float()


def _part(content: bytes, path: Path, snapshot: str) -> dict[str, Tensor]:
    tensors, _ = tensors_of(content, path)
    part = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith(snapshot + "/")}
    if not part:
        known = sorted({name.partition("/")[0] for name in tensors})
        raise KDError(f"{path}: expected snapshot '{snapshot}', found {', '.join(known)}")
    return part


def read_settled(folder: Path, *, follow: bool = True) -> FinishedRun:
    """Read a finished run as `read_run` does, and once more if it seems damaged: it may just be being pruned."""
    with suppress(DamagedFile):
        return read_run(folder, follow=follow)
    return read_run(folder, follow=follow)


def read_run(folder: Path, *, check: bool = True, follow: bool = True) -> FinishedRun:
    """Read a finished run; DamagedFile if a file is missing or altered, or belongs to another run.

    `check=False` skips the hashes (for lists); the description must still give the folder's name. Without `follow`,
    a link in place of a file counts as damage. KDError if a file cannot be read just now.
    """
    manifest = _read_json(folder / MANIFEST, follow)
    if "run.json" not in manifest or not all(PLAIN_NAME.fullmatch(name) for name in manifest):
        raise DamagedFile(
            f"{folder / MANIFEST}: expected plain file names, run.json among them, found {list(manifest)}"
        )
    for name, expected in manifest.items() if check else ():
        if (found := sha256(read_file(folder / name, follow=follow))) != expected:
            raise DamagedFile(f"{folder / name}: expected SHA-256 {str(expected)[:64]!r}, found {found}")
    path = folder / "run.json"
    try:
        record = decoded(read_file(path, follow=follow), RunShape)
    except ValueError as error:
        raise _unread(path, error) from error
    run = FinishedRun(folder, files=manifest, **{**asdict(record), "description": Description(**record.description)})
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


def read_teacher(folder: Path, *, recipe: str, seed: int, data: str, instead: str) -> FinishedRun:
    """Return the run in `folder` that a replication keeps in place of a teacher's training.

    KDError if it is not there, or if its training function (`recipe`, without the module), seed or data digest are
    others. `instead` ends the message: what to do without it.
    """
    if not folder.is_dir():
        raise KDError(
            f"recorded_teacher: expected a run in {folder.parent}, found none named {folder.name}; use one of its "
            f"folders, or {instead}"
        )
    run = read_run(folder)
    about = run.description
    other = "use another recorded teacher"
    for what, expected, found, remedy in (
        ("training function", recipe, about.recipe.partition("/")[2], other),
        ("seed", seed, about.seed, other),
        ("data digest", data, about.data, "get the data again (DATA.md)"),
    ):
        if found != expected:
            raise KDError(
                f"{folder}: expected a recorded teacher of {what} {expected}, found one of {found}; {remedy}, or "
                f"{instead}"
            )
    return run


def _read_json(path: Path, follow: bool) -> dict[str, Any]:
    try:
        value = read_json(read_file(path, follow=follow))
    except ValueError as error:
        raise _unread(path, error) from error
    if not isinstance(value, dict):
        raise DamagedFile(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _unread(path: Path, error: ValueError) -> DamagedFile:
    if isinstance(error, Misshapen):
        return DamagedFile(f"{path}: {error}")
    return DamagedFile(f"{path}: expected a JSON file of kdlib, found something unreadable ({error})")
