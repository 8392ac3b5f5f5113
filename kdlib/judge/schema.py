"""Checked reading of TOML: every error names the file, line and key, and what was expected and found."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdlib.errors import KDError
from kdlib.files import not_read

__all__ = ["SchemaError", "Table", "read_toml"]

MAX_FILE_BYTES = 200_000  # tomllib takes up to a second for so many
MAX_TEXT = 500
MAX_PARTS = 16  # of a dotted key: tomllib takes minutes for one of 100,000
_PART = r"""(?:[\w-]++|"(?!"")(?:[^"\\\n]|\\.)*+"?|'(?!'')[^'\n]*+'?)"""
# A text in three quotes, a comment, a key of too many parts, any other word or text, or what is between them.
_TOKEN = re.compile(
    r'''"""(?:[^\\]|\\.)*?(?:"""|\Z)|'''
    r"""'''.*?(?:'''|\Z)|#[^\n]*+|"""
    rf"(?P<deep>{_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_PARTS}}})|{_PART}|[^\w\"'#-]++",
    re.ASCII | re.DOTALL,
)
MARKUP = re.compile(r"[<>`|\\\[\]*]")  # what would be live in a Markdown table or an HTML page
_MISSING: Any = object()


class SchemaError(KDError):
    """A file of reported or recorded numbers breaks its schema."""


@dataclass(frozen=True)
class Table:
    """One table of a TOML file: typed, range-checked access to its keys."""

    path: Path
    text: str
    keys: tuple[str, ...]  # where the table stands, from the file's root
    content: Mapping[str, Any]

    def error(self, key: str, expected: str, found: Any = _MISSING) -> SchemaError:
        """The error to raise about `key`, or about the table itself where that is empty."""
        keys = (*self.keys, key) if key else self.keys
        where = f"{self.path}, line {_line(self.text, keys)}"
        if found is _MISSING:
            found = self.content.get(key, _MISSING)
        shown = "nothing" if found is _MISSING else _shown(found)
        return SchemaError(f"{where}: {_dotted(keys)}: expected {expected}, found {shown}")

    def only(self, allowed: Collection[str]) -> None:
        """Refuse keys other than `allowed`."""
        for key in self.content:
            if key not in allowed:
                near = difflib.get_close_matches(key[:MAX_TEXT], allowed, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise self.error(key, f"only the keys {', '.join(sorted(allowed))}{hint}", key)

    def text_of(self, key: str, default: str = _MISSING, pattern: str = "", expected: str = "") -> str:
        """One line of plain text, without markup or control characters; `pattern` must match all of it."""
        if key not in self.content and default is not _MISSING:
            return default
        found = self.content.get(key)
        plain = f"one line of at most {MAX_TEXT} characters, without markup or control characters"
        if not isinstance(found, str) or not is_plain(found):
            raise self.error(key, expected or plain)
        if pattern and not re.fullmatch(pattern, found):
            raise self.error(key, expected)
        return found

    def choice(self, key: str, options: Collection[str], default: str = _MISSING) -> str:
        """One of a few texts."""
        if key not in self.content and default is not _MISSING:
            return default
        if not isinstance(found := self.content.get(key), str) or found not in options:
            raise self.error(key, f"one of {', '.join(options)}")
        return found

    def number(
        self, key: str, low: float = -1e15, high: float = 1e15, default: float = _MISSING, above: bool = False
    ) -> float:
        """A finite number from `low` (not itself, where `above`) to `high`."""
        if key not in self.content and default is not _MISSING:
            return default
        found = self.content.get(key)
        if isinstance(found, int | float) and not isinstance(found, bool):
            # comparisons come first: a huge integer cannot be made a float; nan fails them
            inside = low < found <= high if above else low <= found <= high
            if inside:
                return float(found)
        raise self.error(key, f"a number {'above' if above else 'from'} {low:g} to {high:g}")

    def integer(self, key: str, low: int, high: int, default: int = _MISSING) -> int:
        """A whole number from `low` to `high`."""
        if key not in self.content and default is not _MISSING:
            return default
        found = self.content.get(key)
        if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
            raise self.error(key, f"a whole number from {low} to {high}")
        return found

    def flag(self, key: str) -> bool:
        """Whether a key is true; a missing one is false."""
        if not isinstance(found := self.content.get(key, False), bool):
            raise self.error(key, "true or false")
        return found

    def list_of(self, key: str, fewest: int = 0, most: int = 1000) -> list[Any]:
        """A list of at least `fewest` and at most `most` things, its items not yet checked."""
        found = self.content.get(key, _MISSING if fewest else [])
        if not isinstance(found, list) or not fewest <= len(found) <= most:
            long = isinstance(found, list) and len(found) > most
            raise self.error(key, f"a list of at most {most}" if long else f"a list of at least {fewest}")
        return found

    def table(self, key: str, needed: bool = True) -> Table:
        """A table within this one."""
        found = self.content.get(key, _MISSING if needed else {})
        if not isinstance(found, dict):
            raise self.error(key, "a table")
        return Table(self.path, self.text, (*self.keys, key), found)

    def tables(self) -> Iterator[tuple[str, Table]]:
        """All keys of this table, each of which must be a table."""
        for key in self.content:
            yield key, self.table(key)

    def each(self, key: str) -> Iterator[Table]:
        """The tables of a list: `[[key]]` in the file."""
        for number, found in enumerate(self.list_of(key, 1)):
            if not isinstance(found, dict):
                raise self.error(key, "a list of tables", found)
            yield Table(self.path, self.text, (*self.keys, key, str(number)), found)


def read_toml(path: Path, line: re.Pattern[str] | None = None, most: int = MAX_FILE_BYTES) -> Table:
    """The root table of a TOML file of at most `most` bytes; beyond MAX_FILE_BYTES, each line must match `line`."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except FileNotFoundError as error:
        raise SchemaError(f"{path}: expected a readable TOML file, found: {error.strerror}") from error
    except OSError as error:
        raise not_read(path, error) from error
    if len(raw) > most:
        raise SchemaError(f"{path}: expected at most {most:,} bytes, found more")
    try:
        text = raw.decode("utf-8-sig")  # Notepad begins a file with a byte order mark
        if line is not None and len(raw) > MAX_FILE_BYTES:
            _refuse_other_lines(path, text, line)
        _refuse_deep_keys(path, text)
        # RecursionError: arrays nested without end; ValueError: also integers too long to convert
        return Table(path, text, (), tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{path}: expected TOML in UTF-8, found: {_shown(str(error))}") from error


def _refuse_other_lines(path: Path, text: str, line: re.Pattern[str]) -> None:
    for number, each in enumerate(text.split("\n"), 1):
        if not line.fullmatch(each.removesuffix("\r")):
            raise SchemaError(
                f"{path}, line {number}: expected a line as kdlib writes it in a file of more than {MAX_FILE_BYTES:,} "
                f"bytes, found {_shown(each)}"
            )


def _refuse_deep_keys(path: Path, text: str) -> None:
    for token in _TOKEN.finditer(text):
        if token.lastgroup:
            line = text.count("\n", 0, token.start()) + 1
            raise SchemaError(f"{path}, line {line}: expected a key of at most {MAX_PARTS} parts, found more")


def is_plain(text: str) -> bool:
    """Whether `text` is one short line that neither a terminal, Markdown nor HTML takes for more."""
    # C: control, format (the marks that reverse direction), private use; Zl, Zp: line breaks
    if not text.strip() or len(text) > MAX_TEXT:
        return False
    live = any(unicodedata.category(c) in ("Zl", "Zp") or unicodedata.category(c)[0] == "C" for c in text)
    return not live and not MARKUP.search(text)


def _shown(found: Any) -> str:
    if isinstance(found, float) and not math.isfinite(found):
        return f"{found}"
    try:
        shown = ascii(found)
    except ValueError:  # an integer of more digits than Python writes
        shown = "a number of thousands of digits"
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _dotted(keys: tuple[str, ...]) -> str:
    return ".".join(key if re.fullmatch(r"[\w-]{1,80}", key, re.ASCII) else _shown(key) for key in keys)


def _line(text: str, keys: tuple[str, ...]) -> int:
    """The line of a key, or of the nearest table around it; looked for, as tomllib keeps no places."""
    best, best_depth, header = 1, 0, tuple[str, ...]()
    for number, line in enumerate(text.splitlines(), 1):
        is_likely = "\\" in line or any(key in line for key in keys)  # reading each line would take seconds
        if line.lstrip().startswith("["):
            header = here = _keys_of(line) if is_likely else ("",)
        else:
            here = (*header, *_keys_of(line.partition("=")[0] + "= 0")) if is_likely and "=" in line else ()
        if here and len(here) > best_depth and keys[: len(here)] == here:
            best, best_depth = number, len(here)
        if best_depth == len(keys):
            break
    return best


def _keys_of(line: str) -> tuple[str, ...]:
    try:
        found: Any = tomllib.loads(line)
    except (ValueError, RecursionError):
        return ()
    keys = []
    while isinstance(found, dict) and found:
        key, found = next(iter(found.items()))
        keys.append(key)
    return tuple(keys)
