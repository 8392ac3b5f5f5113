"""A process that copies the store `source` to folders and is killed: in folder n, before its n-th use of a file.

Called as `transfers_killed.py export|import SOURCE PREPARED FOLDER`. A fork of this process begins with a copy of
PREPARED in FOLDER/n. The last folder is that of a process which came to its end.
"""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from filelock import FileLock

from kdlib.run.store import Store
from kdlib.run.transfer import export_runs, import_runs

USES = ("open", "os.")  # of audit events: opened, renamed, deleted, made, listed, changed in its mode
FileLock(os.devnull)  # imported once, before the forks
os.fsync = lambda handle: None  # type: ignore[assignment]  # a killed process needs none, and it takes time


def copy(direction: str, source: Path, target: Path) -> None:
    if direction == "export":
        export_runs(Store(source), target)
    else:
        import_runs(source, Store(target))


def end_before(number: int, folder: str) -> None:
    """End this process before the use of that number, from 1, of a file below a folder."""
    uses = itertools.count(1)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if not event.startswith(USES):
            return
        # A tree is deleted by plain names in an open folder.
        inner = event in ("os.remove", "os.rmdir") and arguments[-1] != -1
        below = any(isinstance(name, str | Path) and folder in str(name) for name in arguments)
        if (inner or below) and next(uses) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def main(direction: str, source: Path, prepared: Path, folder: Path) -> None:
    for number in itertools.count(1):
        target = folder / str(number)
        shutil.copytree(prepared, target)
        child = os.fork()
        if not child:
            end_before(number, str(folder))
            copy(direction, source, target)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], *(Path(name) for name in sys.argv[2:]))
