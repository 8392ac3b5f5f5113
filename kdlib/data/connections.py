"""Connections to a server that may be slow or hostile are cut at a deadline."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import requests
from requests.adapters import HTTPAdapter

CUT_SECONDS = 0.1  # between two cuts: a connection that is being opened has no socket yet


class _Kept:
    """A connection that tells its sockets, one after the other: the plain one and, over it, the one with TLS."""

    sockets: WeakSet[socket.socket]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "sock" and isinstance(value, socket.socket):
            self.sockets.add(value)


class _Adapter(HTTPAdapter):
    """Knows the sockets of its connections: requests alone keeps them until the headers of an answer have come."""

    def __init__(self) -> None:
        self.sockets: WeakSet[socket.socket] = WeakSet()
        super().__init__()

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        kind = pool.ConnectionCls
        if not issubclass(kind, _Kept):
            pool.ConnectionCls = type(kind.__name__, (_Kept, kind), {"sockets": self.sockets})
        return pool

    def cut(self) -> None:
        """End the connections: whoever waits for their bytes gets an error, or the end of the bytes."""
        for one in list(self.sockets):
            with suppress(OSError):
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # not TLS's own shutdown, which waits for the server


@contextmanager
def cut_after(session: requests.Session, seconds: float) -> Iterator[threading.Event]:
    """Cut the connections of a session when the time is up; yield the event that is then set.

    A limit on each read does not do: a server that sends a byte now and then can make one line of a header last for
    days, and answer "100 Continue" without end.
    """
    adapter, over, done = _adapter_of(session), threading.Event(), threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            over.set()
            adapter.cut()
            while not done.wait(CUT_SECONDS):
                adapter.cut()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield over
    finally:
        done.set()
        watcher.join()


def _adapter_of(session: requests.Session) -> _Adapter:
    """One for all files of a session: its connections are used again."""
    adapter = session.get_adapter("https://")
    if not isinstance(adapter, _Adapter):
        adapter = _Adapter()
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter)
    return adapter
