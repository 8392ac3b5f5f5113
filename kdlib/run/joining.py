"""How a session joins a Ray cluster: signals remain its own, and an address where nobody listens is refused."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kdlib.errors import KDError
from kdlib.run.workers import SIGNALS

__all__ = ["no_cluster", "refuse_where_nobody_listens", "signals_kept"]

CONNECT_SECONDS = 10.0  # to the head of a cluster


def refuse_where_nobody_listens(address: str) -> None:
    """Refuse (KDError) a host and port that cannot be reached: Ray would try for many minutes."""
    found = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    host, _, port = found.rpartition(":")
    if "://" in found or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        where = f" (RAY_ADDRESS={found})" if address == "auto" else ""
        raise no_cluster(f"{address}{where}", error) from error


def no_cluster(address: str, error: Exception) -> KDError:
    """Return the error to raise where no cluster answers."""
    return KDError(
        f"--ray {address}: expected a Ray cluster that answers, found: {error}. Start it with `ray start --head`, give "
        "another address, or --ray local"
    )


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keep the session's ways with signals, meanwhile too: Ray would take SIGTERM over, and end without a word."""
    take_over = signal.signal

    def leave(number: int, handler: Any) -> Any:
        return signal.getsignal(number) if number in SIGNALS else take_over(number, handler)

    signal.signal = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = take_over
