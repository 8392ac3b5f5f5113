"""The one place where text leaves for the terminal. A test sees to it that nothing else in kdlib prints."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from kdlib.terminal import printable

__all__ = ["lost", "say", "say_page"]

lost: list[str] = []  # names of streams that could not be written


def say(text: str = "", *, error: bool = False, start: str = "", end: str = "\n") -> None:
    """Print one line, at once, to standard output or to the errors, as `printable` text.

    Names, ids and reasons come from files and servers, and what is not printable would do something to a terminal; a
    line break among them would make a line of its own. `start` and `end` are printed as they are. A stream that cannot
    be written, such as a log on a full disk, ends no training: this is said once, on the other stream.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(f"{start}{printable(text)}", end=end, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as problem:
        _lose(stream, problem.strerror)
        if not error:
            say(
                f"kd: standard output: expected a stream that can be written, found: {problem.strerror}; the command "
                "goes on, and what it prints there is lost",
                error=True,
            )


def _lose(stream: TextIO, why: str | None) -> None:
    lost.append(f"{stream.name}: {why}")
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is still in its buffer, too


def say_page(text: str, *, error: bool = False) -> None:
    """Print a text of several lines that kdlib has made, each as `say` does."""
    for line in text.split("\n"):
        say(line, error=error)
