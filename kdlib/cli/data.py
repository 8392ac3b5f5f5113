"""`kd data` shows, downloads and verifies the data sets."""

from __future__ import annotations

import argparse

from kdlib.cli.live import Downloading
from kdlib.cli.say import say
from kdlib.data import DataError, fetch
from kdlib.data.cache import cache_folder
from kdlib.errors import KDError


def data(options: argparse.Namespace) -> int:
    """`kd data list | fetch | verify | where [NAME ...]`."""
    names = options.names or fetch.names()
    for name in names:
        if name not in fetch.names():
            raise KDError(f"no data set '{name}'; there are {', '.join(fetch.names())}")
    return {"list": _list, "fetch": _fetch, "verify": _verify, "where": _where}[options.action](names, options)


def _list(names: tuple[str, ...], options: argparse.Namespace) -> int:
    for name in names:
        about = fetch.describe(name)
        say(name)
        say(f"  here: {_told(name, options)}")
        for key, value in about.items():
            if key != "name":
                say(f"  {key}: {value}")
    return 0


def _fetch(names: tuple[str, ...], options: argparse.Namespace) -> int:
    if options.data is not None:
        raise KDError(
            f"--data {options.data}: expected no folder with fetch, which keeps data sets in {cache_folder()}; "
            "leave it away, or copy the sets from there"
        )
    status = 0
    for name in names:
        try:
            place = fetch.where(name)
            if place is None or place.origin == "cache":  # what is in the cache may need a repair
                shown = Downloading(name)
                say(f"{name}: fetched to {fetch.fetch(name, shown, shown.waits)}")
            else:
                say(f"{name}: already at {fetch.find(name)}, with all sizes; `kd data verify` reads it")
        except KDError as error:
            if len(names) == 1:
                raise
            say(f"kd: {error}", error=True)  # one that cannot be had does not keep the others
            status = 2
    return status


def _verify(names: tuple[str, ...], options: argparse.Namespace) -> int:
    problems = 0
    for name in names:
        try:
            if (place := fetch.where(name, options.data)) is None:
                fetch.refuse_lack(name, options.data)  # says what was looked for in a folder that the user named
                raise DataError("not here")
            found = fetch.verify(name, options.data)
        except KDError as error:  # one set does not keep the others
            problems += 1
            say(f"{name}: {error}")
            continue
        problems += len(found)
        say(f"{name}: {place.path}: " + ("good" if not found else f"{len(found)} problem{'s' * (len(found) != 1)}"))
        for problem in found:
            say(f"  {problem}")
    return 1 if problems else 0


def _told(name: str, options: argparse.Namespace) -> str:
    """Where a data set is, or why that cannot be told: one set does not keep the others."""
    try:
        return _place(name, options)
    except KDError as error:
        return str(error)


def _where(names: tuple[str, ...], options: argparse.Namespace) -> int:
    for name in names:
        say(f"{name}: {_told(name, options)}")
    return 0


def _place(name: str, options: argparse.Namespace) -> str:
    """Where a data set is, or that it is not here."""
    place = fetch.where(name, options.data)
    if place:
        return f"{place.path} ({place.origin})"
    return "not here" if options.data else f"not here; `kd data fetch {name}` gets it or says how"
