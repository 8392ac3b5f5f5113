"""Addresses in messages: without user, password and query, which may be secrets."""

from __future__ import annotations

import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from functools import partial
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlsplit

LONGEST = 300  # characters of an address or a reason in a message
SECRET = re.compile(r"[^\s'\"]*@|[?][^\s'\")]+")  # what an address may hold


def shown(address: str) -> str:
    """Return an address without user, password, query and fragment, which may be secrets."""
    scheme, mark, _ = address.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme, re.ASCII):
        is_path = re.match(r"/(?!/)|~|\.|[A-Za-z]:[\\/]", address)
        return "***" if re.search("[@?:]", address) and not is_path else address[:LONGEST]
    if not is_usable(address):  # its parts may be others than the user thinks
        return f"{scheme}://***"
    parts = urlsplit(address)
    _, at, place = parts.netloc.rpartition("@")
    rest = "?***" if parts.query or parts.fragment else ""
    return f"{scheme}://{'***@' if at else ''}{place}{parts.path}{rest}"[:LONGEST]


def is_usable(address: str) -> bool:
    """Return whether an address can be taken apart, and has no @ after its host: a password may hold a slash."""
    try:
        parts = urlsplit(address)
        return (parts.port or 1) > 0 and "@" not in parts.path + parts.query + parts.fragment
    except ValueError:
        return False


def without_secrets(text: str, *addresses: str) -> str:
    """Return a server's text, which may repeat addresses that were asked for, without what `shown` leaves out."""
    known = {secret for address in addresses for secret in _secrets(address)}
    for secret in sorted(known, key=len, reverse=True):  # first: one may hold an @ itself
        text = re.sub(re.escape(secret), "***", text, flags=re.IGNORECASE)  # %2b is %2B
    return SECRET.sub("***", text)


def _secrets(address: str) -> set[str]:
    """What an address holds of secrets, as it was written, as it is read, and as it is sent."""
    try:
        parts = urlsplit(address)
    except ValueError:  # nothing was asked for there
        return set()
    login, at, _ = parts.netloc.rpartition("@")
    texts = {login, *login.split(":", 1)}
    for query in (parts.query, parts.fragment):
        texts |= {query, *(value for piece in re.split("[&;]", query) for value in (piece, piece.partition("=")[2]))}
    texts |= {read(text) for text in texts for read in (unquote, unquote_plus)}
    texts |= {written(text) for text in texts for written in (quote, quote_plus, partial(quote, safe=""))}
    user, _, password = login.partition(":")
    for coding in ("utf-8", "latin-1") if at else ():  # of the header Authorization
        pair = f"{unquote(user)}:{unquote(password)}".encode(coding, errors="ignore")
        texts |= {b64encode(pair).decode(), urlsafe_b64encode(pair).decode()}
    texts |= {read for text in texts for read in _misread(text)}
    return texts - {""}


def _misread(text: str) -> Iterator[str]:
    """A text as a reader shows its bytes who takes them to be in another coding."""
    for written, read in (("utf-8", "latin-1"), ("utf-8", "ascii"), ("latin-1", "utf-8"), ("latin-1", "ascii")):
        yield text.encode(written, errors="ignore").decode(read, errors="replace")


def why(error: BaseException, *addresses: str) -> str:
    """Return what went wrong with the requests of addresses, without them: they may hold secrets."""
    if (answer := getattr(error, "response", None)) is not None:
        reason = without_secrets(str(answer.reason or ""), *addresses)
        return f"the answer {answer.status_code} {reason}".strip()[:LONGEST]
    if isinstance(error, ValueError):
        return "an address, perhaps that of a proxy, that cannot be used"
    while (inner := _cause(error)) is not None:
        error = inner
    return without_secrets(str(error), *addresses)[:LONGEST]


def _cause(error: BaseException) -> BaseException | None:
    """What a library's error is about: the innermost one alone does not repeat the address."""
    found = [getattr(error, "reason", None), *error.args]
    return next((one for one in found if isinstance(one, BaseException)), None)
