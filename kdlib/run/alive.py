"""Signs of life of a session that trains: a lock may outlive a machine that has failed.

A kernel releases the locks of its own processes. But a file server may keep those of a machine that is gone, and on a
file system without flock a lock is a file, which stays. So who trains touches a file next to the lock.
"""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import read_file

__all__ = ["refuse_dead", "shown"]

BEAT_SECONDS = 30.0
DEAD_SECONDS = 600.0  # a machine that sleeps or swaps may miss some beats


@contextmanager
def shown(signs: Sequence[Path]) -> Iterator[None]:
    """Keep these files fresh. This process holds the locks that they are about."""
    ended, holder = threading.Event(), f"process {os.getpid()} of machine {platform.node()}\n"

    def show() -> None:
        for sign in signs:
            with suppress(OSError):  # on a full disk, others wait for the lock, however long
                sign.write_text(holder, encoding="utf-8")

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            show()

    show()
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


def refuse_dead(lock: Path, sign: Path) -> None:
    """Raise KDError for a lock whose holder has shown no sign of life for DEAD_SECONDS.

    A holder that has never shown one trains nothing, and soon releases its lock.
    """
    try:
        if _silent_seconds(sign) <= DEAD_SECONDS:
            return
        # The sign may be of a killed process, and the new holder about to replace it; or the machine may have slept.
        time.sleep(1.5 * BEAT_SECONDS)
        silent, holder = _silent_seconds(sign), read_file(sign).decode(errors="replace").strip()
    except (OSError, KDError):
        return
    if silent > DEAD_SECONDS:
        raise KDError(
            f"{lock}: expected a sign of life at most {DEAD_SECONDS:.0f} s old of the session that trains this run "
            f"({holder[:200]}), found one {silent:.0f} s old. If that process is gone, delete this lock, then run the "
            "same command again"
        )


def _silent_seconds(sign: Path) -> float:
    """The age of a sign of life by the clock of the file system: those of the machines may differ."""
    written = sign.stat().st_mtime
    with tempfile.TemporaryFile(dir=sign.parent) as file:
        return os.fstat(file.fileno()).st_mtime - written
