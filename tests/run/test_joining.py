"""A session joins a Ray cluster: signals remain its own, and an address where nobody listens is refused at once."""

import signal
import socket

import pytest

from kdlib.errors import KDError
from kdlib.run.joining import refuse_where_nobody_listens, signals_kept


def test_an_address_where_nobody_listens_is_refused(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refuse_where_nobody_listens(f"127.0.0.1:{port}")
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        refuse_where_nobody_listens("auto")
    for wrong in (f"127.0.0.1:{port}", "127.0.0.1:1", "host name:5", "127.0.0.1:99999999"):
        with pytest.raises(KDError, match=rf"--ray {wrong}: expected a Ray cluster that answers, found: .*`ray start"):
            refuse_where_nobody_listens(wrong)
    with pytest.raises(KDError, match=rf"--ray auto \(RAY_ADDRESS=127\.0\.0\.1:{port}\): expected"):
        refuse_where_nobody_listens("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    for left_to_ray in ("auto", "local", "nonsense", "ray://127.0.0.1:1"):
        refuse_where_nobody_listens(left_to_ray)


def test_ray_does_not_take_signals_over():
    def own(*_):
        pass

    before = {number: signal.signal(number, own) for number in (signal.SIGTERM, signal.SIGUSR1)}
    take_over, other = signal.signal, signal.getsignal(signal.SIGHUP)
    try:
        with signals_kept():
            assert signal.signal(signal.SIGTERM, signal.SIG_DFL) is own  # as Ray does while it starts
            assert signal.getsignal(signal.SIGTERM) is own
            signal.signal(signal.SIGHUP, own)  # others are its own matter
        assert signal.getsignal(signal.SIGHUP) is own
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.signal is take_over
    finally:
        signal.signal(signal.SIGHUP, other)
        for number, handler in before.items():
            signal.signal(number, handler)
