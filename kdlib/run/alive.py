"""Signs of life of a session that trains: a lock may outlive a machine that has failed.

A kernel releases the locks of its own processes. But a file server may keep those of a machine that is gone, and on a
file system without flock a lock is a file, which stays. So who trains touches a file next to the lock.
"""

from __future__ import annotations

import os
import platform
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import read_file

__all__ = ["refuse_dead", "shown"]

BEAT_SECONDS = 30.0
DEAD_SECONDS = 600.0  # a machine that sleeps or swaps may miss some beats


@contextmanager
def shown(locks: Sequence[Path]) -> Iterator[None]:
    """Keep a fresh file next to each of the locks that this process holds."""
    signs, ended = [_sign(lock) for lock in locks], threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            for sign in signs:
                with suppress(OSError):
                    os.utime(sign)

    for sign in signs:
        with suppress(OSError):  # on a full disk, others wait for the lock, however long
            sign.write_text(f"process {os.getpid()} of machine {platform.node()}\n", encoding="utf-8")
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for sign in signs:
            with suppress(OSError):
                sign.unlink()


def refuse_dead(lock: Path) -> None:
    """Raise KDError for a lock whose holder has shown no sign of life for DEAD_SECONDS.

    A holder that has never shown one trains nothing, and soon releases its lock.
    """
    sign = _sign(lock)
    try:
        silent, holder = _now(lock.parent) - sign.stat().st_mtime, read_file(sign).decode(errors="replace").strip()
    except (OSError, KDError):
        return
    if silent > DEAD_SECONDS:
        raise KDError(
            f"{lock}: expected a sign of life at most {DEAD_SECONDS:.0f} s old of the session that trains this run "
            f"({holder[:200]}), found one {silent:.0f} s old. If that process is gone, delete this lock, then run the "
            "same command again"
        )


def _sign(lock: Path) -> Path:
    return lock.with_suffix(".alive")


def _now(folder: Path) -> float:
    """The present time by the clock of the file system: those of the machines may differ."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
