"""The shape of a checkpoint, checked as a whole before anything of it is used."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os.path import realpath
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from kdlib.checks import path_of
from kdlib.errors import KDError
from kdlib.files import (
    DamagedFile,
    ForeignFile,
    identity,
    is_there,
    keep_previous,
    load_tensors,
    not_read,
    save_tensors,
    set_aside,
    tensors_of,
)
from kdlib.packing import unpack
from kdlib.shapes import Misshapen, Number, OptimizerShape, TraceShape, check

__all__ = [
    "CheckpointDamaged",
    "REMEDY",
    "as_of_a_checkpoint",
    "checkpoint_path",
    "read_checkpoint",
    "sound_checkpoint",
    "steps_of",
    "tensors_of_epoch",
    "unpacked",
    "write_checkpoint",
]

FORMAT = 9
LONGEST_NAME = 240  # file systems allow 255, and a file that is being written has a longer name
REMEDY = "give this training another checkpoint, or delete that file to start again"
PARTS = ("model", "buffers", "kept", "optimizers", "extras", "rates", "begun_with")
LOSSES = "epoch/losses"

Packed = dict[str, Any]  # what `kdlib.packing.pack` makes of a dict
Layers = dict[str, dict[str, str]]


class CheckpointDamaged(UserWarning):
    """A checkpoint was set aside, and the training goes on from an older one or begins again."""


class OwnerShape(msgspec.Struct, forbid_unknown_fields=True):
    """What the caller said about the training."""

    label: str
    about: dict[str, Any]
    extras: list[str]


class FirstShape(msgspec.Struct):
    """The training before its first step."""

    optimizers: dict[str, OptimizerShape]
    rates: dict[str, Annotated[list[Number], msgspec.Meta(min_length=1)]]
    schedulers: dict[str, Any]
    network: Layers
    start: str
    extras: dict[str, str]
    weights: dict[str, list[list[str]]]


class LoopShape(msgspec.Struct, forbid_unknown_fields=True):
    """The loop over epochs."""

    seed: int | list[int]
    data: Any
    frozen: list[str]
    numbers: dict[str, str] = {}  # of the functions; an older version has not noted them


class RatesShape(msgspec.Struct, forbid_unknown_fields=True):
    """What `kdlib.rates.Rates.values` returns."""

    groups: dict[str, list[dict[str, Any]]]
    schedulers: dict[str, dict[str, Any]]


class NotesShape(msgspec.Struct, forbid_unknown_fields=True):
    """What a checkpoint says as JSON. The same file holds its tensors."""

    format: int
    owner: OwnerShape
    first: FirstShape
    loop: LoopShape | None
    history: list[dict[str, Number]]
    traces: list[TraceShape]
    state: str
    batch: str
    settings: dict[str, OptimizerShape]
    layers: Layers
    frozen: list[str]
    evaluated: list[str]
    rules: Layers
    model: Packed
    buffers: Packed
    kept: Packed
    optimizers: Packed
    extras: Packed
    rates: Packed
    begun_with: Packed


def checkpoint_path(value: Path | str) -> Path:
    """Return the whole path of a checkpoint; KDError for a folder, and for a new file that cannot be written.

    So the file stays where it is if the program changes its current folder. A link is followed, also to a file that is
    not there yet: the checkpoint is written in its folder, and not in the link's.
    """
    path = path_of("checkpoint", value).absolute()
    path = Path(realpath(path)) if os.path.islink(path) else path
    if len(os.fsencode(path.name)) > LONGEST_NAME or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise KDError(
            f"checkpoint {str(path)[:400]}: expected a name of at most {LONGEST_NAME} bytes, in folders of at most 255 "
            "bytes each, found a longer one; choose another"
        )
    if os.path.isdir(path):
        raise KDError(f"checkpoint {path}: expected the name of a file, found a folder; add a name to it")
    if not os.path.lexists(path):  # a finished training may lie where nobody may write
        folder = next(each for each in path.parents if os.path.lexists(each))
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
            found = "one that may not be written" if os.path.isdir(folder) else "a file or a link that leads nowhere"
            raise KDError(f"checkpoint {path}: expected a folder {folder}, found {found}; choose another place")
    return path


def read_checkpoint(path: Path, content: bytes | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return (tensors, notes) of a checkpoint, of its `content` if that was read before.

    DamagedFile as `kdlib.files.load_tensors`; KDError, with the key, for a checkpoint of another format or shape.
    """
    tensors, notes = load_tensors(path) if content is None else tensors_of(content, path)
    if not isinstance(notes, dict) or notes.get("format") != FORMAT:
        raise KDError(
            f"{path}: expected a checkpoint of format {FORMAT}, found another file, or one of another version of "
            f"kdlib; finish the training with that version, or {REMEDY}"
        )
    with as_of_a_checkpoint(path):
        check(notes, NotesShape, "")
        _check_epoch(tensors)
    return tensors, notes


def sound_checkpoint(path: Path, place: str) -> tuple[Any, tuple[int, int] | None, str]:
    """Return what `read_checkpoint` does, the file's identity and a notice: a damaged one is set aside.

    Then the checkpoint before it is taken; (None, None, notice) without one. KDError for a file of another kind.
    """
    notice = ""
    while is_there(path):
        own = identity(path)
        try:
            return read_checkpoint(path), own, notice
        except ForeignFile as error:
            raise KDError(f"{place}: expected a checkpoint, found a file of another kind; {REMEDY}") from error
        except DamagedFile as error:
            aside = set_aside(path)  # the one before it takes its place
            where = "goes on from the checkpoint before it" if is_there(path) else "starts from its first epoch"
            text = f"{error}. Set aside as {aside.name}; this run {where}"
            notice = f"{notice} {text}.".strip()
            warnings.warn(f"{place}: {text}", CheckpointDamaged, stacklevel=4)
    return None, None, notice


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, Any], place: str) -> None:
    """Write a checkpoint atomically; the one before it is kept. KDError if the history has more than numbers."""
    for name, value in (item for entry in notes["history"] for item in entry.items()):
        if not isinstance(name, str) or not _is_number(value):  # `read_checkpoint` would refuse it
            raise KDError(
                f"{place}: expected finite numbers under names in the history, found {type(value).__name__} "
                f"{str(value)[:40]} for {name!r}; use progress.record, and keep other things yourself"
            )
    keep_previous(path)
    save_tensors(path, tensors, {"format": FORMAT, **notes})


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**63


def _check_epoch(tensors: Mapping[str, Tensor]) -> None:
    names = [name.removeprefix("epoch/") for name in tensors if name.startswith("epoch/")]
    for name in names:
        if (name != "losses" and not name.isdecimal()) or "losses" not in names:
            raise Misshapen(f"{LOSSES!r} and numbered states of an epoch", ascii(f"epoch/{name}"))


def unpacked(notes: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Return the states that a checkpoint holds, by the name of the part; an exception if one is not whole.

    The part "epoch" is what `tensors_of_epoch` was given: two empty lists between epochs.
    """
    parts = {}
    for name in PARTS:
        try:
            parts[name] = unpack(notes[name], tensors, device)
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration, RecursionError) as error:
            raise Misshapen(
                f"{name} to be a state as kdlib writes it", f"one that cannot be read ({error!r})"
            ) from error
        if not isinstance(parts[name], dict):
            raise Misshapen(f"{name} to be a state with names", type(parts[name]).__name__)
    for name in ("rates", "begun_with"):
        if parts[name] or name == "rates" or LOSSES in tensors:
            check(parts[name], RatesShape, name)
    return parts | {"epoch": _epoch_of(tensors, device)}


def tensors_of_epoch(losses: Sequence[Tensor], states: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the losses of an epoch's steps, and the states of its generators, as tensors under a name each."""
    return {LOSSES: torch.stack(list(losses)), **{f"epoch/{number}": state for number, state in enumerate(states)}}


def steps_of(tensors: Mapping[str, Tensor]) -> int:
    """Return how many steps of an unfinished epoch a checkpoint holds."""
    return len(tensors.get(LOSSES, ()))


def _epoch_of(tensors: Mapping[str, Tensor], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Return what `tensors_of_epoch` was given, the losses on a device; nothing between epochs."""
    found = {name: value for name, value in tensors.items() if name.startswith("epoch/")}
    if not found:
        return [], []
    losses = found.pop(LOSSES).to(device)
    return list(losses.unbind()), [found[name] for name in sorted(found, key=lambda name: int(name[6:]))]


@contextmanager
def as_of_a_checkpoint(path: Path) -> Iterator[None]:
    """Raise KDError, with the file's name and what to do, in place of whatever a checkpoint's content raises."""
    try:
        yield
    except KDError:
        raise
    except Exception as error:
        if isinstance(error, OSError | MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise not_read(path, error) from error
        what = str(error) if isinstance(error, Misshapen) else f"expected a state that fits, found {error!r}"
        raise KDError(
            f"{path}: not a checkpoint as kdlib writes it: {what}. The file was not changed: {REMEDY}"
        ) from error
