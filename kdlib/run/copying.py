"""One run is copied from a store to another one: verified where it is read, and again where it was written.

It is written in the target's work folder and then renamed into place, so a process that is killed leaves no half run.
Nothing in the source is changed or trusted, and no link in it is followed.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from kdlib.alive import refuse_dead
from kdlib.checkpoint import read_checkpoint, steps_of
from kdlib.errors import KDError
from kdlib.files import (
    DamagedFile,
    atomic_write,
    is_there,
    not_read,
    read_file,
    replace,
    set_aside,
    sha256,
)
from kdlib.run.finished import MANIFEST, WEIGHTS, FinishedRun, read_run, read_settled
from kdlib.run.store import Store, clear_work, json_file, write_manifest

__all__ = ["Begun", "Refused", "checkpoints", "copy_begun", "copy_finished", "read_begun", "read_contents"]

CHECKPOINT = re.compile(r"checkpoint-([0-9a-f]{16})\.safetensors")


class Refused(KDError):
    """One run is not copied; the others are."""


@contextmanager
def _refusing() -> Iterator[None]:
    """An error in here is about one run: another one may be good."""
    try:
        yield
    except KDError as error:
        raise Refused(str(error)) from error
    except OSError as error:  # names its file
        raise Refused(f"cannot be read ({error}); mend this, then run the same command again") from error


@contextmanager
def _held(target: Store, run_id: str) -> Iterator[Path]:
    """Hold a run's lock in the target; yield an empty folder's path to write in, which is deleted afterwards."""

    def busy() -> None:
        with _refusing():
            refuse_dead(target.lock_file(run_id))
        raise Refused(
            f"run {run_id}: expected no session that trains it in {target.folder}, found one; nothing was copied. Run "
            "the same command again when that session has ended"
        )

    incoming = target.work_folder(run_id) / "incoming"
    for place in (incoming.parent, incoming):  # what is written and deleted here stays in the target
        if place.is_symlink():
            raise Refused(f"{place}: expected a folder, found a link; links are not followed, delete it")
    with target.lock(run_id, busy):
        shutil.rmtree(incoming, ignore_errors=True)  # left by a killed process
        try:
            yield incoming
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
            with suppress(OSError):
                incoming.parent.rmdir()


# ---- finished runs


def read_contents(folder: Path, pruned: bool) -> tuple[FinishedRun, dict[str, bytes]]:
    """Return a run and the bytes of the files in its manifest, each as its SHA-256 says."""
    with _refusing():
        if folder.is_symlink():
            raise DamagedFile(f"{folder}: expected the folder of a run, found a link; links are not followed")
        with suppress(DamagedFile):  # once more: it may just be being pruned
            return _contents(folder, pruned)
        return _contents(folder, pruned)


def _contents(folder: Path, pruned: bool) -> tuple[FinishedRun, dict[str, bytes]]:
    run = read_run(folder, follow=False)
    contents = {}
    for name, expected in run.files.items():
        if not (pruned and name == WEIGHTS):
            contents[name] = read_file(folder / name, follow=False)
            if (found := sha256(contents[name])) != expected:
                raise DamagedFile(f"{folder / name}: expected SHA-256 {expected}, found {found}")
    return run, contents


def copy_finished(run: FinishedRun, contents: Mapping[str, bytes], target: Store) -> bool:
    """Copy a run to the target, or the weights that the target's run lacks; return whether there was need."""
    with _held(target, run.id) as incoming:
        own = _own(target, run.id)
        if own is not None:
            _check_equal(own, run)
            if WEIGHTS in own.files or WEIGHTS not in contents:
                clear_work(target.work_folder(run.id))
                return False
            _add_weights(own, contents[WEIGHTS], incoming)
            clear_work(target.work_folder(run.id))
            return True
        for name, content in contents.items():
            atomic_write(incoming / run.id / name, content)
        write_manifest(incoming / run.id)
        # Read back: what is renamed into place is what was verified in the source.
        if read_run(incoming / run.id, follow=False).files != {name: run.files[name] for name in contents}:
            raise KDError(f"{incoming}: expected the files of run {run.id} as they were written, found others")
        target.publish(run.id, incoming / run.id)
        return True


def _own(target: Store, run_id: str) -> FinishedRun | None:
    """The target's good run of that id. One that cannot be read just now may be good, so it is not replaced."""
    folder = target.run_folder(run_id)
    try:
        return read_settled(folder) if is_there(folder) else None
    except DamagedFile:
        return None
    except KDError as error:
        raise Refused(str(error)) from error


def _check_equal(own: FinishedRun, run: FinishedRun) -> None:
    for name in sorted({*own.digests(), *run.digests()}):
        here, there = own.digests().get(name, "none"), run.digests().get(name, "none")
        if here != there:
            raise Refused(
                f"{run.folder}: expected the same run as in {own.folder}, with {name.replace('_', ' ')} of SHA-256 "
                f"{here[:64]}, found {there[:64]}; nothing was copied. Delete the one of the two that you do not want"
            )
    if (own.metrics, own.history) != (run.metrics, run.history):
        raise Refused(
            f"{run.folder}: expected the same numbers as in {own.folder}, whose weights are the same (SHA-256 "
            f"{own.weights_sha256[:64]}), found others; nothing was copied. Delete the one of the two that you do not "
            "want"
        )


def _add_weights(own: FinishedRun, weights: bytes, incoming: Path) -> None:
    # Weights first: a run whose manifest does not list them is a pruned one, and complete.
    atomic_write(incoming / WEIGHTS, weights)
    atomic_write(incoming / MANIFEST, json_file({**own.files, WEIGHTS: own.weights_sha256}))
    for name in (WEIGHTS, MANIFEST):
        _replace(incoming / name, own.folder / name)


# ---- begun runs


def checkpoints(work: Path) -> list[str]:
    """Return the names of the checkpoints in a work folder; one that is a link has none."""
    try:
        if work.is_symlink() or not work.is_dir():
            return []
        return sorted(path.name for path in work.iterdir() if CHECKPOINT.fullmatch(path.name))
    except OSError as error:
        raise Refused(str(not_read(work, error))) from error


class Begun(NamedTuple):
    """A checkpoint, and the seconds trained so far, of the run or the group that the work folder is named after."""

    work: Path
    name: str
    content: bytes
    seconds: bytes


def read_begun(work: Path, name: str) -> Begun:
    """Return a checkpoint in a work folder, and its seconds, if there are any."""
    with _refusing():
        return Begun(work, name, read_file(work / name, follow=False), _seconds(work, name))


def copy_begun(begun: Begun, target: Store) -> bool:
    """Write a checkpoint and its seconds unless the target has the finished run, or a checkpoint that is as far."""
    with _refusing():
        done = _steps(begun.content, begun.work / begun.name)
    with _held(target, begun.work.name) as incoming:
        own = target.work_folder(begun.work.name) / begun.name
        if _own(target, begun.work.name) is not None or _steps_of_own(own) >= done:
            return False
        # Seconds first: if the process is killed in between, the checkpoint still is the older one, and all is copied
        # again.
        for file, text in ((_seconds_name(begun.name), begun.seconds), (begun.name, begun.content)):
            if text:
                atomic_write(incoming / file, text)
                _replace(incoming / file, own.with_name(file))
        return True


def _steps(content: bytes, path: Path) -> tuple[int, int]:
    """How far a checkpoint is: finished epochs, and steps of the epoch after them, whose losses it then holds."""
    tensors, notes = read_checkpoint(path, content)
    return len(notes["history"]), steps_of(tensors)


def _steps_of_own(path: Path) -> tuple[int, int]:
    try:
        return _steps(read_file(path), path) if is_there(path) else (-1, 0)
    except DamagedFile:
        set_aside(path)  # the checkpoint before it, if there is one, takes its place
        return _steps_of_own(path)
    except KDError as error:  # it cannot be read just now, and may be further
        raise Refused(str(error)) from error


def _seconds_name(checkpoint: str) -> str:
    return checkpoint.replace("checkpoint-", "seconds-").replace(".safetensors", ".txt")


def _seconds(work: Path, checkpoint: str) -> bytes:
    """The file of the seconds trained so far, or nothing: a damaged one costs a number in a table, no result."""
    with suppress(DamagedFile, ValueError):
        text = read_file(work / _seconds_name(checkpoint), follow=False)
        if math.isfinite(float(text)):
            return text
    return b""


def _replace(source: Path, target: Path) -> None:
    try:
        replace(source, target)
    except OSError as error:
        raise KDError(f"{target}: could not be written ({error.strerror}); change its permissions") from error
