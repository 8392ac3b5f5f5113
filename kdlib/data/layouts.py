"""The folder that holds a data set, somewhere in a user's folder: how it is found, and what is wrong or missing there.

A user's folder has the layout of the program that filled it: an archive's own folders, torchvision's, or Kaggle's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from kdlib.data import DataError
from kdlib.data.present import file_problem, is_there
from kdlib.data.sources import File, Source

DEPTH = 4  # folders below the user's that are searched
MOST_FOLDERS = 2_000  # that are searched
MOST_NAMES = 8  # of a folder, in a message
NOT_SEARCHED = ("__MACOSX",)  # and hidden folders
PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def folder_in(root: Path, name: str, source: Source) -> Path | None:
    """Return the folder that holds a data set, or a part of it: `root`/NAME, `root` itself, or one below.

    None if there is none. DataError if several folders below hold the whole set: nothing says which one is meant.
    """
    for folder in (root / name, root):
        if _holds_some(folder, source):
            return folder
    found = list(_below(root, source))
    whole = [folder for folder in found if not problems(source, folder, hashes=False)]
    if len(whole) > 1:
        raise DataError(
            f"{root}: expected one folder with the data set {name}, found {len(whole)}: "
            f"{', '.join(map(str, whole[:MOST_NAMES]))}. Pass the one to use: --data {whole[0]}"
        )
    return next(iter([*whole, *found]), None)


def problems(source: Source, folder: Path, hashes: bool) -> list[str]:
    """Return what is wrong with the files' names and sizes and, with `hashes` (slower), their bytes."""
    files = source.files()
    for names in source.instead:
        if not any(is_there(folder, name) for file in files for name in _names(file)):
            files = tuple(File(name, None, None) for name in names)
    return [problem for file in files if (problem := _problem(folder, file, hashes))]


def all_problems(source: Source, folder: Path) -> list[str]:
    """Return what is wrong with the files or, if nothing is, with their content."""
    found = problems(source, folder, hashes=True)
    if not found:
        try:
            source.check(folder)
        except DataError as error:
            found = [str(error)]
    return found


def lacking(origin: str, root: Path, name: str, source: Source) -> str:
    """Return the sentences that say what was looked for in a user's folder without a data set, and what is there."""
    files = source.files()
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    others = "".join(f", or {' and '.join(names)}" for names in source.instead)
    place = root / name if (root / name).is_dir() else root
    return (
        f"{origin} {root}: expected the data set {name}, found none. Looked for {files[0].name}{more}{others} in "
        f"{root / name}, in {root} and in the folders below (DATA.md has all layouts). {place} {_listed(place)}."
        f"{packed_in(root)}"
    )


def packed_in(root: Path) -> str:
    """Return a sentence about the archives in a folder and in those below, or nothing."""
    found = [
        str((folder / name).relative_to(root))
        for folder, names, _ in _walk(root)
        for name in names
        if name.lower().endswith(PACKED)
    ]
    if not found:
        return ""
    which = f"{', '.join(found[:MOST_NAMES])}{', ...' if len(found) > MOST_NAMES else ''}"
    return f" kdlib unpacks no archives of yours; if the set is in {which}, unpack it there (unzip, or tar -xf)."


def _names(file: File) -> tuple[str, ...]:
    return (file.name, *file.others)


def _problem(folder: Path, file: File, hashes: bool) -> str | None:
    """What is wrong with a file, under whichever of its names it is there."""
    name = next((name for name in _names(file) if is_there(folder, name)), file.name)
    same = name.rsplit("/", 1)[-1] == file.name.rsplit("/", 1)[-1]
    file = file._replace(name=name) if same else File(name, None, None)  # other bytes, which the reader checks
    return file_problem(folder / name, file, hashes)


def _evidence(source: Source) -> Iterator[str]:
    """The names that a data set is known by. A folder's other names, such as images/, say too little."""
    for file in source.files():
        yield file.name
        yield from (name for name in file.others if not name.endswith("/"))
    yield from chain.from_iterable(source.instead)


def _holds_some(folder: Path, source: Source) -> bool:
    return any(is_there(folder, name) for name in _evidence(source))


def _below(root: Path, source: Source) -> Iterator[Path]:
    """The folders below that hold a data set or a part of it; there is no search in such a folder."""
    known = list(_evidence(source))
    for folder, names, inner in _walk(root):
        here = {*names, *inner}
        if any(name.split("/", 1)[0] in here and is_there(folder, name) for name in known):
            inner.clear()
            yield folder


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield a folder and those below with the names of their files and folders, nearest first, each folder once.

    A caller that clears the names of folders keeps them from being searched.
    """
    level, seen = [root], set[str]()
    for _ in range(DEPTH + 1):
        deeper: list[Path] = []
        for folder in level:
            real = os.path.realpath(folder)
            if real in seen or len(seen) >= MOST_FOLDERS:
                continue
            seen.add(real)
            files, folders = _entries(folder)
            yield folder, files, folders
            deeper += [folder / name for name in folders if not name.startswith((".", *NOT_SEARCHED))]
        level = deeper


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The sorted names of a folder's files and folders; none if it cannot be read."""
    files, folders = list[str](), list[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(files), sorted(folders)


def _listed(folder: Path) -> str:
    files, folders = _entries(folder)
    names = [*(f"{name}/" for name in folders), *files]
    more = f", ... ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    return f"holds {', '.join(names[:MOST_NAMES])}{more}" if names else "is empty, or cannot be read"
