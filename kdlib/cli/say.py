"""The one place where text leaves for the terminal. A test sees to it that nothing else in kdlib prints."""

from __future__ import annotations

import sys

from kdlib.terminal import printable

__all__ = ["say", "say_page"]


def say(text: str = "", *, error: bool = False, start: str = "", end: str = "\n") -> None:
    """Print one line, at once, to standard output or to the errors, as `printable` text.

    Names, ids and reasons come from files and servers, and what is not printable would do something to a terminal; a
    line break among them would make a line of its own. `start` and `end` are printed as they are.
    """
    print(f"{start}{printable(text)}", end=end, file=sys.stderr if error else sys.stdout, flush=True)


def say_page(text: str, *, error: bool = False) -> None:
    """Print a text of several lines that kdlib has made, each as `say` does."""
    for line in text.split("\n"):
        say(line, error=error)
