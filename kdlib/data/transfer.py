"""One file from a server or a local mirror: limited in bytes and time, checked, and whole or absent."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from kdlib.data import DataUnavailable
from kdlib.data.addresses import shown, why, without_secrets
from kdlib.files import replace

if TYPE_CHECKING:
    from requests import Response, Session

CHUNK_BYTES = 2**16
MOST_REDIRECTS = 5
REMEDY = "Try again later, set KDLIB_MIRROR to another source, or put the files into DIR and pass --data DIR."


@dataclass(frozen=True)
class Limits:
    """The limits of one download; a failed connection is tried again after a pause."""

    connect_seconds: float = 10
    read_seconds: float = 30  # without a single byte
    total_seconds: float = 900  # of one file, all attempts included
    attempts: int = 3
    pause_seconds: float = 2


class _WrongContentError(DataUnavailable):
    """The bytes received are not the start of the file, so they must not be kept."""


class _WrongRangeError(Exception):
    """The server answered a request for the rest of a file with other bytes; the text quotes its header."""


def download(
    session: Session,
    url: str,
    target: Path,
    sha256: str | None,
    most_bytes: int,
    limits: Limits,
    received: Callable[[int], None],
) -> None:
    """Download one file to `target`, unless it is already there; `received` is called with the bytes so far.

    If the file's hash is known, a broken download is kept next to the target as `.partial`, and the next try goes on
    from there. Raises DataUnavailable, and leaves nothing at `target`, if the server cannot be reached, answers with an
    error, a web page or another file, redirects from https to http, is too slow, or sends too many or too few bytes.
    No message, and no error in its chain, holds a password or the query of an address.
    """
    import pooch
    import requests
    import urllib3

    from kdlib.data.connections import cut_after

    partial = target.with_name(target.name + ".partial")
    asked = [url]  # all addresses that a server's text may repeat

    def stream(url: str, temporary: str, _: object) -> None:
        try:
            _stream(session, asked, partial, most_bytes, limits, received)
        except _WrongContentError:
            partial.unlink()
            raise
        if over.is_set():  # without a length, the end of a connection that was cut looks like that of the file
            raise requests.Timeout
        replace(partial, Path(temporary))

    refused = False  # the server has answered a request for the rest of the file with an error
    with cut_after(session, limits.total_seconds) as over:
        for attempt in range(1, limits.attempts + 1):
            if sha256 is None:
                partial.unlink(missing_ok=True)  # without a hash, a wrong start would not be noticed
            if refused and attempt == limits.attempts:
                partial.unlink(missing_ok=True)  # the server does not continue a file: the last attempt begins anew
            again, pause = partial.exists(), 0.0  # after a wrong hash: perhaps the part that was kept is wrong
            try:
                with _silent(pooch.get_logger(), logging.getLogger("urllib3")):
                    pooch.retrieve(url, sha256, target.name, target.parent, downloader=stream)
                return
            except (requests.RequestException, urllib3.exceptions.HTTPError, _WrongRangeError) as error:
                status = getattr(getattr(error, "response", None), "status_code", 0)
                no_rest = isinstance(error, _WrongRangeError) or status in (400, 403, 405, 406, 412, 501)
                refused = refused or (no_rest and partial.exists())
                problem, again, pause = f"expected a file, found: {why(error, *asked)}.", True, limits.pause_seconds
            except ValueError as error:  # pooch raises it if the hash differs; its text has both hashes
                problem = str(error)
            except Exception:
                if not over.is_set():
                    raise
            if over.wait(pause if again and attempt < limits.attempts else 0):
                received_bytes = partial.stat().st_size if partial.exists() else 0
                problem = (
                    f"expected the file within {limits.total_seconds:g} seconds, found {received_bytes} bytes by then."
                )
                again = False
            if not again:
                break
    # Outside the handlers: otherwise the errors of the libraries, which hold the whole address, would be in the chain.
    raise DataUnavailable(f"{shown(url)}: {problem} {REMEDY}")


def copy(source: Path, target: Path, sha256: str | None, most_bytes: int) -> int:
    """Copy one file of a local mirror to `target` and return its size in bytes; DataUnavailable as for `download`."""
    if not source.is_file():
        raise DataUnavailable(f"{source}: expected a file of the mirror, found none. {REMEDY}")
    size = source.stat().st_size
    if size > most_bytes:
        raise DataUnavailable(f"{source}: expected at most {most_bytes} bytes, found {size}. {REMEDY}")
    content = source.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise DataUnavailable(f"{source}: expected SHA-256 {sha256}, found {found}. {REMEDY}")
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(content)
    replace(temporary, target)
    return len(content)


def _stream(
    session: Session, asked: list[str], target: Path, most_bytes: int, limits: Limits, received: Callable[[int], None]
) -> None:
    """Write the server's bytes to `target`, after the bytes already there if the server can go on from them."""
    import requests

    url = asked[0]
    total = target.stat().st_size if target.exists() else 0
    with _open(session, asked, limits, total) as response:
        if total and not _goes_on(response, total):
            target.unlink()
            total = 0
        response.raise_for_status()
        if response.status_code != (206 if total else 200):  # for example 204, which has no content
            raise requests.HTTPError(response=response)
        with target.open("ab") as file:
            # read1 returns what has arrived, so that what a slow server sent by the deadline is kept.
            while chunk := response.raw.read1(CHUNK_BYTES):
                if total == 0 and _is_page(response, chunk):
                    page = without_secrets(chunk.decode("ascii", errors="replace"), *asked)
                    raise _WrongContentError(
                        f"{shown(url)}: expected a data file, found a web page (a login, proxy or error page): "
                        f"{page[:80]!r}. {REMEDY}"
                    )
                total += len(chunk)
                if total > most_bytes:
                    raise _WrongContentError(f"{shown(url)}: expected at most {most_bytes} bytes, found more. {REMEDY}")
                file.write(chunk)
                received(total)


def _goes_on(response: Response, start: int) -> bool:
    """Return whether the answer is the rest of the file from byte `start`.

    Raises requests' error for a server error, which does not answer the question, and _WrongRangeError for other bytes.
    """
    if response.status_code == 416:  # there is no rest: the part that was kept is as long as the file, and wrong
        return False
    response.raise_for_status()
    content_range = response.headers.get("content-range", "")
    if response.status_code == 206 and not content_range.startswith(f"bytes {start}-"):
        raise _WrongRangeError(f"expected the bytes from {start}, found {content_range[:80]!r}")
    return response.status_code == 206


def _open(session: Session, asked: list[str], limits: Limits, start: int) -> Response:
    """Request a file from byte `start`; follow redirects one by one, and check each address first.

    The addresses of redirects and proxies, and of logins in ~/.netrc, are appended to `asked`.
    """
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    timeout = (limits.connect_seconds, limits.read_seconds)
    first = url = asked[0]
    for _ in range(MOST_REDIRECTS + 1):
        with _addresses():
            asked += [url, *_logins(url)]
            response = session.get(url, stream=True, allow_redirects=False, timeout=timeout, headers=headers)
        if not response.is_redirect:
            return response
        response.close()
        with _addresses():
            url = _next_url(url, response.headers["location"])
    raise DataUnavailable(f"{shown(first)}: expected a file, found more than {MOST_REDIRECTS} redirects. {REMEDY}")


def _logins(url: str) -> Iterator[str]:
    """The addresses of proxies, and the one of a login in ~/.netrc, that requests uses for an address."""
    from requests.utils import get_environ_proxies, get_netrc_auth

    yield from get_environ_proxies(url).values()
    if login := get_netrc_auth(url):
        yield f"http://{quote(login[0], safe='')}:{quote(login[1], safe='')}@netrc"


@contextmanager
def _addresses() -> Iterator[None]:
    """Turn the errors about what is no address, for example that of a proxy without a host, into one of requests."""
    import requests

    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.exceptions.InvalidURL from error


def _next_url(url: str, location: str) -> str:
    onward = urljoin(url, location)
    schemes = ("https",) if urlsplit(url).scheme == "https" else ("https", "http")
    if urlsplit(onward).scheme not in schemes:
        raise DataUnavailable(
            f"{shown(url)}: expected to stay on {schemes[-1]}, found a redirect to "
            f"{without_secrets(shown(onward), url)}. {REMEDY}"
        )
    return onward


def _is_page(response: Response, start: bytes) -> bool:
    kind = response.headers.get("content-type", "")
    page = (b"<!doctype html", b"<html")
    return kind.startswith("text/html") or start.lstrip()[:14].lower().startswith(page)


@contextmanager
def _silent(*loggers: logging.Logger) -> Iterator[None]:
    """Keep pooch and urllib3 from printing: only the command line prints, and addresses may hold secrets."""
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
