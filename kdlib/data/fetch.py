"""Find a data set on this machine, or download it. Only this module reads environment variables.

KDLIB_DATA     a folder that holds data sets, like DIR in `--data DIR`
KDLIB_MIRROR   a URL or a local folder to use instead of the sources: MIRROR/NAME/ holds the source's files of a set.
               A URL may have a user, a password and a query. No message shows them.
KDLIB_OFFLINE  1: open no socket
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kdlib.data import DataError, DataUnavailable, transfer
from kdlib.data.addresses import is_usable, shown
from kdlib.data.cache import cache_folder
from kdlib.data.layouts import all_problems, folder_in, lacking, packed_in, problems
from kdlib.data.present import file_problem, is_folder, is_there
from kdlib.data.repair import put_back, take_back
from kdlib.data.sources import SOURCES, File, Packed, Source
from kdlib.data.unpack import gunzip, unpack
from kdlib.errors import KDError, needs, some_of
from kdlib.files import locked, replace

Progress = Callable[[str, int, int], None]  # file, bytes of the whole set received so far, bytes expected
LIMITS = transfer.Limits(connect_seconds=5)  # behind a firewall that drops everything, three attempts take 19 s


class Place(NamedTuple):
    """The folder of a data set, and how it was found: `origin` is "--data", "KDLIB_DATA" or "cache"."""

    origin: str
    path: Path


def names() -> tuple[str, ...]:
    """Return the names of the data sets."""
    return tuple(SOURCES)


def describe(name: str) -> dict[str, Any]:
    """Return title, licence, citation, url, bytes to download or how to get the set by hand, and the number of files.

    A set with folders of pictures has their number, too.
    """
    source = _source(name)
    keys = ("title", "licence", "citation", "url", "by_hand" if source.by_hand else "bytes")
    folders = sum(file.name.endswith("/") for file in source.files())
    about = {"name": name, **{key: getattr(source, key) for key in keys}, "files": len(source.files()) - folders}
    return {**about, "folders": folders} if folders else about


def where(name: str, data: Path | str | None = None) -> Place | None:
    """Return the folder that holds a data set or a part of it, or None.

    With `data`, it is looked for there only, otherwise in KDLIB_DATA and the user cache. The folder is DIR/NAME, DIR
    itself, or one below.
    """
    source = _source(name)
    for origin, root in _roots(data):
        if folder := folder_in(root, name, source):
            return Place(origin, folder)
    return None


def find(
    name: str,
    data: Path | str | None = None,
    progress: Progress | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """Return the folder of a data set after a quick check of its files; download the set if it is not found.

    The places are those of `where`. Raises DataError if a folder that the user named lacks the set, or if the place
    found holds only a part of it; DataUnavailable if the download fails; KDError if a file or folder may not be read.
    """
    place = where(name, data)
    if place is None:
        refuse_lack(name, data)
        return fetch(name, progress, on_wait)
    if found := problems(_source(name), place.path, hashes=False):
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise DataError(
            f"{place.path} ({place.origin}): expected all files of {name}, found {count}: "
            f"{some_of(found, '; ')}.{packed_in(place.path)} "
            f"{_remedy(name, place.origin)}"
        )
    return place.path


def verify(name: str, data: Path | str | None = None) -> list[str]:
    """Read every byte of a data set in its place and return a list of what is wrong; it is empty if all is right."""
    source = _source(name)
    place = where(name, data)
    if place is None:
        return [f"{name}: not found; looked in {_looked_at(data)}"]
    return all_problems(source, place.path)


def fetch(name: str, progress: Progress | None = None, on_wait: Callable[[], None] = lambda: None) -> Path:
    """Download a data set into the user cache, or repair it there, and return its folder.

    After a broken connection the next call goes on with what was received. The folder appears only after all of it
    has been checked. A second process that wants the same set calls `on_wait`, then blocks. Raises DataUnavailable,
    which says why and what to do.
    """
    source = _source(name)
    mirror = _mirror()
    cache = cache_folder()
    folder, staging, aside = cache / name, cache / f".{name}.part", cache / f".{name}.before"
    if source.by_hand:
        return _put_by_hand(name, source, folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache / f".{name}.lock", transfer.REMEDY, on_wait):
            if is_folder(folder) and not all_problems(source, folder):
                return folder
            _refuse_offline(name, mirror)
            damaged = folder.exists()
            if damaged and not is_folder(folder):
                raise DataUnavailable(f"{folder}: expected a folder or nothing, found a file. Move it away.")
            take_back(source, folder, staging, aside)
            try:
                _fill(name, source, mirror, staging, progress)
                _unpack_all(source, staging)
                source.check(staging)
            except BaseException:
                put_back(staging, aside)
                if damaged:  # put it back, so that later calls report it as damaged instead of missing
                    replace(staging, folder)
                raise
            shutil.rmtree(aside, ignore_errors=True)
            replace(staging, folder)
    except DataUnavailable:
        raise
    except DataError as error:
        said = str(error).replace(str(staging), str(folder))  # the files are there again
        raise DataUnavailable(f"{name}: the downloaded files are not the published ones: {said}") from error
    except KDError as error:  # from the lock, or a file that may not be read
        raise DataUnavailable(str(error)) from error
    except OSError as error:
        where_to = (
            "a folder to write to" if str(error.filename) == str(cache) else "a file that can be read and written"
        )
        raise DataUnavailable(
            f"{error.filename or cache}: expected {where_to}, found: {error.strerror or error}. {transfer.REMEDY}"
        ) from error
    return folder


def _put_by_hand(name: str, source: Source, folder: Path) -> Path:
    if is_folder(folder) and not all_problems(source, folder):
        return folder
    raise DataUnavailable(
        f"{name}: expected on this machine, because kdlib does not download it, but found neither in --data DIR nor in "
        f"KDLIB_DATA nor, whole, in the user cache ({folder.parent}). {source.by_hand}"
    )


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise DataError(f"expected a data set ({', '.join(SOURCES)}), found {name!r}. See `kd data list`.")
    return SOURCES[name]


def refuse_lack(name: str, data: Path | str | None) -> None:
    """Raise DataError if the user has named a folder for the data: no other data may be used in silence instead."""
    origin, root = next(_roots(data))
    if origin == "cache":
        return
    source = _source(name)
    if source.by_hand:
        remedy = source.by_hand
    elif origin == "--data":
        remedy = (
            "Put the set there, correct --data, or leave it out: then KDLIB_DATA, the user cache and a download do."
        )
    else:
        remedy = f"Put the set there, or download it into the user cache, which is searched too: kd data fetch {name}"
    raise DataError(f"{lacking(origin, root, name, source)} {remedy}")


def _roots(data: Path | str | None) -> Iterator[tuple[str, Path]]:
    if data is not None:
        if not is_folder(Path(data)):
            raise DataError(
                f"--data {data}: expected a folder, found {_instead(Path(data))}. Correct it or leave it out."
            )
        yield "--data", Path(data)
        return
    if folder := os.path.expanduser(os.environ.get("KDLIB_DATA", "")):
        if not is_folder(Path(folder)):
            raise DataError(
                f"KDLIB_DATA={shown(folder)}: expected a folder, found {_instead(Path(folder))}. Correct or unset it."
            )
        yield "KDLIB_DATA", Path(folder)
    yield "cache", cache_folder()


def _instead(path: Path) -> str:
    return "a file (unpack it, if it is an archive)" if path.is_file() else "none"


def _looked_at(data: Path | str | None) -> str:
    return ", ".join(f"{root} ({origin})" for origin, root in _roots(data))


def _mirror() -> str | Path | None:
    """Return KDLIB_MIRROR as a URL or a folder, or None if it is not set."""
    mirror = os.path.expanduser(os.environ.get("KDLIB_MIRROR", ""))
    if not mirror:
        return None
    if mirror.startswith(("http://", "https://")) and is_usable(mirror):
        return mirror
    if not is_folder(Path(mirror)):
        raise DataError(
            f"KDLIB_MIRROR={shown(mirror)}: expected an http(s) URL or an existing folder, found neither. Correct or "
            "unset it. In a URL, write special letters of a password as %XX."
        )
    return Path(mirror)


def _address(mirror: str, name: str, file: str) -> str:
    """The address of a file of a mirror, whose own address may end in a query with a token."""
    parts = urlsplit(mirror)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}/{file}").geturl()


def _refuse_offline(name: str, mirror: str | Path | None) -> None:
    offline = os.environ.get("KDLIB_OFFLINE", "").lower() not in ("", "0", "false", "no")
    if offline and not isinstance(mirror, Path):
        raise DataUnavailable(
            f"{name}: expected on this machine, because KDLIB_OFFLINE is set, but found neither in --data DIR nor in "
            f"KDLIB_DATA nor in the user cache ({cache_folder()}). Unset KDLIB_OFFLINE to download it, or put the "
            f"files into DIR/{name} and pass --data DIR (or set KDLIB_DATA=DIR), or set KDLIB_MIRROR to a local folder."
        )


def _fill(name: str, source: Source, mirror: str | Path | None, staging: Path, progress: Progress | None) -> None:
    needs("data", "pooch", "requests", "urllib3")
    import requests

    done = 0  # bytes
    with requests.Session() as session:
        for file in _to_download(source, staging):

            def received(count: int, name: str = file.name, before: int = done) -> None:
                if progress is not None:
                    progress(name, before + count, source.bytes)

            target, most_bytes = staging / file.name, file.size or source.most_file_bytes
            if isinstance(mirror, Path):
                root = mirror / name if (mirror / name).is_dir() else mirror
                received(transfer.copy(root / file.name, target, file.sha256, most_bytes))
            else:
                url = f"{source.url}/{file.name}" if mirror is None else _address(mirror, name, file.name)
                transfer.download(session, url, target, file.sha256, most_bytes, LIMITS, received)
            done += target.stat().st_size


def _to_download(source: Source, staging: Path) -> list[File]:
    """Return the publisher's files, without those whose unpacked content is already there."""
    if not source.packed:
        return list(source.files())
    return [packed.file for packed in source.packed if not _is_unpacked(source, packed, staging)]


def _is_unpacked(source: Source, packed: Packed, staging: Path) -> bool:
    inside = [file for file in source.files() if file.name in packed.holds]
    return all(
        file.sha256 is not None and file_problem(staging / file.name, file, hashes=True) is None for file in inside
    )


def _unpack_all(source: Source, staging: Path) -> None:
    """Replace the packed files by the set's files that they hold; delete everything else in an archive."""
    sizes = {file.name: file.size or source.most_file_bytes for file in source.files()}
    unpacked = staging / "tmp-unpacked"
    for packed in source.packed:
        path = staging / packed.file.name
        if not path.is_file():
            continue
        most_bytes = sum(sizes[name] for name in packed.holds if not name.endswith("/"))
        if path.name.endswith(".tar.gz"):
            unpack(path, unpacked / packed.into, most_bytes + packed.most_other_bytes, packed.most_members)
        else:
            gunzip(path, unpacked / packed.holds[0], most_bytes)
        for name in packed.holds:
            if not is_there(unpacked, name):
                raise DataError(f"{path}: expected {name} in this archive, found none. {transfer.REMEDY}")
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            replace(unpacked / name, staging / name)
        shutil.rmtree(unpacked)
        path.unlink()


def _remedy(name: str, origin: str) -> str:
    if by_hand := _source(name).by_hand:
        return by_hand
    if origin == "cache":
        return f"`kd data fetch {name}` repairs it."
    return f"Copy the files there again, or leave {origin} out and `kd data fetch {name}`."
