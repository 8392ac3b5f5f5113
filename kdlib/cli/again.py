"""Commands for the user to copy: one that continues a stopped session, and ones that run more of it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["how_to_go_on", "lines_of_command", "name_of", "with_options"]

_WIDTH = 80


def how_to_go_on(arguments: Sequence[str]) -> str:
    """Return what a stopped `run` or `record` has saved and which command continues it; nothing for other commands.

    The last line is the command alone, as it runs in this environment.
    """
    if not arguments or arguments[0] not in ("run", "record"):
        return ""
    lines = [" Every finished run is saved, and every other run up to its last checkpoint. To continue:"]
    if nox := _nox(arguments):
        lines += [_joined(nox), "or, without nox:"]
    return "\n".join([*lines, _joined([*_kd(), *arguments])])


def _joined(words: Sequence[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """A word as a shell reads it: $'...' if it has what a terminal does not show as it is."""
    if word.isprintable():
        return shlex.quote(word)
    text = "".join(
        {"'": r"\'", "\\": r"\\"}.get(c, c) if c.isprintable() else "".join(f"\\x{b:02x}" for b in os.fsencode(c))
        for c in word
    )
    return f"$'{text}'"


def name_of(text: str) -> str:
    """Return the name of a replication; a shell may have completed it to the path of its folder."""
    parts = Path(text).parts
    return parts[-1] if len(parts) == 1 or parts[-2:-1] == ("replications",) else text


def lines_of_command(arguments: Sequence[str]) -> list[str]:
    """Return the command of nox, or of kd without nox, as indented lines of 80 columns that a shell joins."""
    nox = _nox(arguments) if shutil.which("nox") and Path("noxfile.py").is_file() else []
    words = [_quoted(word) for word in nox or [*_kd(), *arguments]]
    lines = [f"  {words[0]}"]
    for place, word in enumerate(words[1:], 1):
        rest = " ".join(words[place:])
        if len(lines[-1]) + 1 + len(rest) > _WIDTH < len(lines[-1]) + len(f" {word} \\"):
            lines[-1] += " \\"
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return lines


def with_options(arguments: Sequence[str], left_out: Collection[str], added: Sequence[str] = ()) -> list[str]:
    """Return the arguments of a command without the options `left_out` and their values, and with the `added` ones."""
    kept: list[str] = []
    value = False
    for text in arguments:
        if not value and text.partition("=")[0] not in left_out:
            kept.append(text)
        value = not value and text in left_out
    end = kept.index("--") if "--" in kept else len(kept)  # what follows are names, even if they look like options
    return [*kept[:end], *added, *kept[end:]]


def _nox(arguments: Sequence[str]) -> list[str]:
    """The session of a `run` whose first argument is the replication; nothing for other commands."""
    if len(arguments) < 2 or arguments[0] != "run" or arguments[1].startswith("-"):
        return []
    return ["nox", "-s", f"replicate_{name_of(arguments[1])}", *(["--", *arguments[2:]] if arguments[2:] else [])]


def _kd() -> list[str]:
    if Path(sys.argv[0]).stem != "kd":
        return [sys.executable, "-m", "kdlib"]
    found = shutil.which("kd")
    return ["kd"] if found and Path(found).samefile(sys.argv[0]) else [sys.argv[0]]
