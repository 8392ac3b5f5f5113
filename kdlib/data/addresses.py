"""Addresses in messages: without user, password and query, which may be secrets."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

LONGEST = 300  # characters of an address or a reason in a message
SECRET = re.compile(r"[^\s'\"]*@|[?][^\s'\")]+")  # what an address may hold


def shown(address: str) -> str:
    """Return an address without user, password, query and fragment, which may be secrets."""
    scheme, mark, _ = address.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme, re.ASCII):
        return "***" if "@" in address else address[:LONGEST]
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


def without_secrets(text: str, address: str) -> str:
    """Return a server's text, which may repeat an address that was asked for, without what `shown` leaves out."""
    parts = urlsplit(address)
    known = {parts.username or "", parts.password or "", *(value for _, value in parse_qsl(parts.query))}
    text = SECRET.sub("***", text)
    for secret in sorted(known | {*map(unquote, known)}, key=len, reverse=True):
        text = text.replace(secret, "***") if secret else text
    return text


def why(error: BaseException, address: str) -> str:
    """Return what went wrong with the request of an address, without it: it, or that of a proxy, may hold a secret."""
    if (answer := getattr(error, "response", None)) is not None:
        reason = without_secrets(str(answer.reason or ""), address)
        return f"the answer {answer.status_code} {reason}".strip()[:LONGEST]
    if isinstance(error, ValueError):
        return "an address, perhaps that of a proxy, that cannot be used"
    while (inner := _cause(error)) is not None:
        error = inner
    return without_secrets(str(error), address)[:LONGEST]


def _cause(error: BaseException) -> BaseException | None:
    """What a library's error is about: the innermost one alone does not repeat the address."""
    found = [getattr(error, "reason", None), *error.args]
    return next((one for one in found if isinstance(one, BaseException)), None)
