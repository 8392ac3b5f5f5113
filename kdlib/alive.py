"""Signs of life of who holds a lock: a lock may outlive a machine that has failed.

A kernel releases the locks of its own processes. But a file server may keep those of a machine that is gone, and on a
file system without flock a lock is a file, which stays. So the holder of a lock touches a file next to it.
"""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdlib.errors import KDError
from kdlib.files import is_there, read_file

__all__ = ["acquire", "refuse_dead", "shown", "sign_of"]

if TYPE_CHECKING:
    from filelock import FileLock

BEAT_SECONDS = 30.0
DEAD_SECONDS = 600.0  # a machine that sleeps or swaps may miss some beats


def sign_of(lock: Path) -> Path:
    """Return the file that the holder of a lock refreshes."""
    return lock.with_suffix(".alive")


@contextmanager
def shown(lock: Path) -> Iterator[None]:
    """Keep the sign of a lock fresh. This process holds the lock."""
    ended, sign, holder = threading.Event(), sign_of(lock), f"process {os.getpid()} of machine {platform.node()}\n"

    def show() -> None:
        try:
            sign.write_text(holder, encoding="utf-8")
        except OSError:  # a full disk must not end the training, nor make this process seem dead
            with suppress(OSError):
                os.utime(sign if is_there(sign) else lock)

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            show()

    with suppress(OSError):  # that of a killed process, which would say that this one is dead
        sign.unlink()
    show()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):
            sign.unlink()


def acquire(lock: FileLock, path: Path, on_wait: Callable[[], None]) -> None:
    """Take a lock. If another process holds it, call `on_wait`, then wait; KDError as `refuse_dead` raises it."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        on_wait()
    while True:
        refuse_dead(path)
        with suppress(Timeout):
            lock.acquire(timeout=BEAT_SECONDS)
            return


def refuse_dead(lock: Path) -> None:
    """Raise KDError for a lock whose holder has shown no sign of life for DEAD_SECONDS.

    A lock without a sign is as old as its file: its holder was killed at once, or is about to show one.
    """
    try:
        if _silent_seconds(lock) <= DEAD_SECONDS:
            return
        # The sign may be of a killed process, and the new holder about to replace it; or the machine may have slept.
        time.sleep(1.5 * BEAT_SECONDS)
        silent, holder = _silent_seconds(lock), _holder(lock)
    except (OSError, KDError):
        return
    if silent > DEAD_SECONDS:
        raise KDError(
            f"{lock}: expected a sign of life at most {DEAD_SECONDS:.0f} s old of the session that holds this lock "
            f"({holder}), found one {silent:.0f} s old. If that process is gone, delete this lock, then run the same "
            "command again"
        )


def _shown_by(lock: Path) -> Path:
    """The file that shows the life of a lock's holder: its sign, or the lock itself if there is no sign."""
    sign = sign_of(lock)
    return sign if is_there(sign) else lock


def _holder(lock: Path) -> str:
    """Who holds a lock, by its sign or by its file, which on a file system without flock names process and machine."""
    return " ".join(read_file(_shown_by(lock)).decode(errors="replace").split())[:200] or "not known"


def _silent_seconds(lock: Path) -> float:
    """The age of a sign of life by the clock of the file system: those of the machines may differ."""
    written = _shown_by(lock).stat().st_mtime
    with tempfile.TemporaryFile(dir=lock.parent) as file:
        return os.fstat(file.fileno()).st_mtime - written
