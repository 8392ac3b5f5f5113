"""A server that answers byte by byte ends at the deadline, and no message holds a secret of an address."""

import contextlib
import gc
import hashlib
import logging
import socket
import threading
import time
import traceback
import urllib.parse
from dataclasses import replace

import pytest
import requests

from kdlib.cli import main
from kdlib.data import DataUnavailable, fetch, sources, transfer
from kdlib.data.addresses import shown, without_secrets
from kdlib.errors import KDError

CONTENT = b"content" * 1000
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LIMITS = transfer.Limits(connect_seconds=5, read_seconds=5, total_seconds=0.6, attempts=3, pause_seconds=0)


class RawServer:
    """Sends `first` and then, unless it is None, `more` again and again, with a pause before each."""

    def __init__(self, first, more, pause):
        self.first, self.more, self.pause = first, more, pause
        self.asked = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.ended = threading.Event()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.answer, args=(self.listening.accept()[0],), daemon=True).start()

    def answer(self, connection):
        with connection, contextlib.suppress(OSError):
            self.asked.append(connection.recv(65536))
            connection.sendall(self.first)
            while self.more is not None and not self.ended.wait(self.pause):
                connection.sendall(self.more)

    def close(self):
        self.ended.set()
        self.listening.close()


@pytest.fixture
def raw_server():
    servers = []

    def start(first, more=None, pause=0.0):
        servers.append(RawServer(first, more, pause))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def download(url, target, limits=LIMITS, sha256=SHA256):
    with requests.Session() as session:
        transfer.download(session, url, target, sha256, 10**6, limits, lambda count: None)


# ---- the deadline

ENDLESS = {
    "bytes of the first line": (b"HTTP/1.1 200 ", b"O", 0.05),
    "bytes of a header": (OK + b"X: ", b"x", 0.05),
    "headers": (OK, b"X: x\r\n", 0.05),
    "100 Continue, slowly": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05),
    "100 Continue, at once": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, 0.0),
    "bytes of a body": (OK + b"Content-Length: 7000\r\n\r\n", b"c", 0.05),
    "a body without a length": (OK + b"\r\n", b"c", 0.05),
    "the size of a chunk": (CHUNKED, b"0", 0.05),
    "an extension of a chunk": (CHUNKED + b"7;", b"x", 0.05),
    "chunks of one byte": (CHUNKED, b"1;" + b"x" * 100 + b"\r\nc\r\n", 0.05),
    "trailers": (CHUNKED + b"0\r\n", b"X: x\r\n", 0.0),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /again\r\nX: ", b"x", 0.05),
    "nothing": (b"", b"", 60),
}


@pytest.mark.parametrize("known", [True, False], ids=["with a hash", "without a hash"])
@pytest.mark.parametrize("case", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_endless_answer_ends_at_the_deadline(raw_server, tmp_path, case, known):
    server = raw_server(*case)
    began, threads = time.monotonic(), threading.active_count()
    options = {} if known else {"sha256": None}
    with pytest.raises(DataUnavailable, match=r"/one\.dat: expected the file within 0\.6 seconds, found \d+ bytes"):
        download(f"{server.url}/one.dat", tmp_path / "one.dat", **options)
    assert 0.4 < time.monotonic() - began < 3
    assert not (tmp_path / "one.dat").exists()
    server.close()
    assert threading.active_count() <= threads + 2  # the server's own


def test_what_a_slow_server_sent_is_kept_and_one_deadline_holds_for_all_attempts(raw_server, tmp_path):
    """Each connection ends before the deadline; together they do not."""
    broken = raw_server(OK + b"Content-Length: 7000\r\n\r\n" + CONTENT[:700])
    began = time.monotonic()
    with pytest.raises(DataUnavailable, match=r"within 0\.6 seconds, found 700 bytes"):
        download(f"{broken.url}/one.dat", tmp_path / "one.dat", replace(LIMITS, attempts=10_000, pause_seconds=0.1))
    assert time.monotonic() - began < 3
    assert (tmp_path / "one.dat.partial").read_bytes() == CONTENT[:700]


def test_a_session_that_was_cut_downloads_the_next_file(raw_server, tmp_path):
    slow = raw_server(OK + b"X: ", b"x", 0.05)
    good = raw_server(OK + b"Content-Length: 7000\r\n\r\n" + CONTENT)
    with requests.Session() as session:
        for server in (slow, good):
            with contextlib.suppress(DataUnavailable):
                transfer.download(session, f"{server.url}/a", tmp_path / "a", None, 10**6, LIMITS, lambda count: None)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("line", [b"103 Early Hints", b"204 No Content", b"206 Partial Content", b"304 Not Modified"])
def test_an_answer_that_is_not_the_file_is_an_error(raw_server, tmp_path, line):
    server = raw_server(b"HTTP/1.1 " + line + b"\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(DataUnavailable, match=f"expected a file, found: the answer {line.decode()}"):
        download(f"{server.url}/a", tmp_path / "a", sha256=None)
    assert not (tmp_path / "a").exists()


# ---- secrets

SECRETS = ("hidden", "s3cret")  # the user and the password or token of the tests


def told(error):
    """All that an error says, to the library's caller, too: it, all errors in its chain, and the printed traceback."""
    texts, seen = ["".join(traceback.format_exception(error))], []
    while error is not None and error not in seen:
        seen.append(error)
        texts += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


@pytest.fixture
def tiny(tmp_path, monkeypatch, caplog):
    """A data set of one file whose only source is KDLIB_MIRROR; the log is written down to the last detail."""
    caplog.set_level(logging.DEBUG)
    files = (sources.File("one.dat", SHA256, len(CONTENT)),)
    source = sources.Source("Tiny", "MIT", "nobody", "http://127.0.0.1:1", 7000, lambda: files, lambda folder: None)
    monkeypatch.setattr(fetch, "SOURCES", {"tiny": source})
    monkeypatch.setattr(fetch, "LIMITS", replace(LIMITS, attempts=1))
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("KDLIB_DATA", raising=False)
    monkeypatch.delenv("KDLIB_OFFLINE", raising=False)
    return source


ANSWERS = {
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "wrong bytes": OK + b"Content-Length: 3\r\n\r\nabc",
    "too many bytes": OK + b"Content-Length: 9000\r\n\r\n" + bytes(9000),
    "a page": OK + b"Content-Length: 6\r\n\r\n<html>",
    "a reason that repeats the address": b"HTTP/1.1 403 /one.dat?token=s3cret of hidden:s3cret\r\n\r\n",
    "a page that repeats the address": OK
    + b"Content-Length: 60\r\n\r\n<html>No /data?token=s3cret for hidden, s3cret"
    + b" " * 14,
    "no HTTP": b"\0\1\2\3" * 10,
    "nothing": b"",
    "a cut body": OK + b"Content-Length: 7000\r\n\r\nabc",
    "a redirect with secrets": b"HTTP/1.1 302 Found\r\nLocation: ftp://hidden:s3cret@127.0.0.1/x?s3cret\r\n\r\n",
    "a redirect that is none": b"HTTP/1.1 302 Found\r\nLocation: http://hidden:s3cret/@[127.0.0.1/x\r\n\r\n",
    "redirects in a circle": b"HTTP/1.1 302 Found\r\nLocation: /x?s3cret#s3cret\r\nContent-Length: 0\r\n\r\n",
    "too slow": OK + b"X: ",
}


@pytest.mark.parametrize("case", ANSWERS)
def test_no_message_holds_a_secret_of_the_mirror(raw_server, tiny, monkeypatch, caplog, capfd, case):
    server = raw_server(ANSWERS[case], b"x" if case == "too slow" else None, 0.05)
    place = server.url.removeprefix("http://")
    monkeypatch.setenv("KDLIB_MIRROR", f"http://hidden:s3cret@{place}/data?token=s3cret")
    with pytest.raises(DataUnavailable, match=r"http://\*\*\*@127\.0\.0\.1:.*/data/tiny/one\.dat\?\*\*\*: ") as caught:
        fetch.find("tiny")
    printed = main(["data", "fetch", "tiny"]), main(["data", "list"]), capfd.readouterr()
    for secret in SECRETS:
        assert secret not in told(caught.value) + caplog.text + str(printed)
    assert server.asked[0].startswith(b"GET /data/tiny/one.dat?token=s3cret HTTP/1.1\r\n")  # and yet they are used
    assert b"Authorization: Basic aGlkZGVuOnMzY3JldA==\r\n" in server.asked[0]  # base64 of hidden:s3cret


REPEATED = {  # what the user writes, and what a server may repeat of it
    "/f?TOKEN123": "TOKEN123",
    "/f?sig=ab%2Bcd%3D": "ab%2Bcd%3D",
    "/f?sig=ab%2bcd%3d;x": "ab%2bcd%3d",
    "/f?sig=ab+cd": "ab+cd",
    "/f?sig=ab%20cd": "ab%20cd",
    "/f?a=1&TOKEN123&b": "TOKEN123",
    "user:pa55word@/f": "dXNlcjpwYTU1d29yZA==",  # base64 of user:pa55word
    "user:p%40ss@/f": "dXNlcjpwQHNz",  # base64 of user:p@ss
    "token55@/f": "dG9rZW41NTo=",  # base64 of token55:
    "/f?sig=gr%C3%BCn": "gr%C3%BCn",
}


@pytest.mark.parametrize("way", ["at once", "after a redirect", "page"])
@pytest.mark.parametrize("written", REPEATED)
def test_a_server_that_repeats_what_it_was_sent_tells_no_secret(raw_server, tmp_path, written, way):
    """The server's own text is written by hand here; decoded values are what a server reads."""
    secret, (login, _, path) = REPEATED[written], written.rpartition("@")
    server = raw_server(b"")
    place = server.url.removeprefix("http://")
    address = f"http://{login}@{place}{path}" if login else f"http://{place}{path}"
    read = urllib.parse.unquote_plus(secret)
    seen = {read, read.encode().decode("latin-1"), read.encode().decode("ascii", errors="replace")}
    body = f"<html>{secret} {read}".encode()
    server.first = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if way != "page":
        server.first = f"HTTP/1.1 403 denied: {secret} {read}\r\n\r\n".encode()
    if way == "after a redirect":
        first = raw_server(f"HTTP/1.1 302 Found\r\nLocation: {address}\r\nContent-Length: 0\r\n\r\n".encode())
        address = f"{first.url}/f"
    with pytest.raises(DataUnavailable, match=r"web page|the answer 403") as caught:
        download(address, tmp_path / "one.dat", replace(LIMITS, attempts=1))
    assert server.asked
    assert secret not in told(caught.value)
    assert not any(each in told(caught.value) for each in seen)


def test_a_server_that_repeats_a_login_of_netrc_tells_no_secret(raw_server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password pa55word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server = raw_server(b"HTTP/1.1 403 denied: Basic dXNlcjpwYTU1d29yZA== pa55word\r\n\r\n")
    with pytest.raises(DataUnavailable, match=r"the answer 403 denied: Basic \*\*\* \*\*\*") as caught:
        download(f"{server.url}/f", tmp_path / "one.dat", replace(LIMITS, attempts=1))
    assert b"Authorization: Basic dXNlcjpwYTU1d29yZA==" in server.asked[0]
    assert "pa55word" not in told(caught.value)


def test_a_proxy_that_repeats_its_login_tells_no_secret(raw_server, tmp_path, monkeypatch):
    server = raw_server(b"HTTP/1.1 403 denied: Basic dXNlcjpwYTU1d29yZA== pa55word\r\n\r\n")
    monkeypatch.setenv("http_proxy", f"http://user:pa55word@{server.url.removeprefix('http://')}")
    with pytest.raises(DataUnavailable, match=r"the answer 403 denied: Basic \*\*\* \*\*\*"):
        download("http://example.invalid/f", tmp_path / "one.dat", replace(LIMITS, attempts=1))


MISTAKEN = [
    "http://hidden:s3cret/x@127.0.0.1/data",
    "http://hidden:12/s3cret@127.0.0.1/data",
    "http://hidden:s3cret?x@127.0.0.1/data",
    "http://hidden:s3cret#x@127.0.0.1/data",
    "http://[hidden:s3cret@127.0.0.1/data",
    "ftp://hidden:s3cret@127.0.0.1/data",
    "hidden:s3cret@127.0.0.1/data",
    "https//hidden:s3cret@127.0.0.1/data",
]


@pytest.mark.parametrize("address", MISTAKEN)
@pytest.mark.parametrize("variable", ["KDLIB_MIRROR", "KDLIB_DATA"])
def test_a_mistaken_address_is_an_error_without_it(tiny, monkeypatch, caplog, variable, address):
    monkeypatch.setenv(variable, address)
    with pytest.raises(KDError, match=f"{variable}=.*: expected") as caught:
        fetch.find("tiny")
    assert "s3cret" not in told(caught.value) + caplog.text


PROXIES = [
    "http://hidden:s3cret@127.0.0.1:1",
    "hidden:s3cret@127.0.0.1:1",
    "http://hidden:s3cret@127.0.0.1:s3cret",
    "http://hidden:s3cret/x@127.0.0.1:1",
    "http://hidden:s3cret@",
    "socks5://hidden:s3cret@127.0.0.1:1",
    "xyz://hidden:s3cret@127.0.0.1:1",
    "http://[hidden:s3cret@127.0.0.1:1",
]


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_message_holds_a_secret_of_a_proxy(tiny, monkeypatch, caplog, scheme, proxy):
    monkeypatch.setenv(f"{scheme}_proxy", proxy)
    monkeypatch.setenv("KDLIB_MIRROR", f"{scheme}://example.invalid")
    with pytest.raises(DataUnavailable, match=r"expected a file, found: \w") as caught:
        fetch.find("tiny")
    for secret in SECRETS:
        assert secret not in told(caught.value) + caplog.text


# urllib3 does not close the socket of a proxy whose answer breaks off.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_proxy_that_never_ends_its_answer_ends_at_the_deadline(raw_server, tiny, monkeypatch):
    monkeypatch.setenv("https_proxy", raw_server(OK + b"X: ", b"x", 0.05).url)
    monkeypatch.setenv("KDLIB_MIRROR", "https://example.invalid")
    began = time.monotonic()
    with pytest.raises(DataUnavailable, match=r"within 0\.6 seconds"):
        fetch.find("tiny")
    assert time.monotonic() - began < 3
    gc.collect()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://example.org/a/b.dat", "https://example.org/a/b.dat"),
        ("https://example.org:80/a", "https://example.org:80/a"),
        ("https://u:p@example.org/a?b#c", "https://***@example.org/a?***"),
        ("https://token@example.org", "https://***@example.org"),
        ("https://u:p@x@example.org/a", "https://***@example.org/a"),
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("/a/folder", "/a/folder"),
        ("u:p://x@example.org", "***"),
        ("/a/me@work", "/a/me@work"),
        ("C:\\data", "C:\\data"),
        ("127.0.0.1:80/x?token=SECRET", "***"),
        ("http:/127.0.0.1/x?token=SECRET", "***"),
        ("example.org/x?token=SECRET", "***"),
        ("anna:geheim7:127.0.0.1", "***"),
        ("//host/x?token=SECRET", "***"),
    ],
)
def test_an_address_is_shown_without_its_secrets(address, expected):
    assert shown(address) == expected


# ---- files that may not be read


@pytest.mark.parametrize("step", ["is_file", "stat", "open"])
def test_a_file_that_may_not_be_read_is_an_error_that_names_it(tmp_path, tiny, monkeypatch, step):
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    path = tmp_path / "data" / "tiny" / "one.dat"
    path.write_bytes(CONTENT)
    real = getattr(type(path), step)

    def refused(self, *args, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **options)

    monkeypatch.setattr(type(path), step, refused)
    with pytest.raises(KDError, match=r"one\.dat: cannot be read \(Permission denied\).* mend this"):
        fetch.verify("tiny", tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("wrong password p@ss-LongTail for alice", "http://alice:p%40ss-LongTail@host/m", "wrong password *** for ***"),
        ("403 bad s3cr@t pw/1", "http://u:s3cr%40t%20pw%2F1@host/m", "403 bad ***"),
        ("wrong token a?bc'LongTail", "http://host/m?token=a%3Fbc%27LongTail", "wrong *** ***"),
        ("at http://bob:other@there/x", "http://alice:p%40ss@host/m", "at ***there/x"),
    ],
)
def test_a_secret_with_a_sign_of_addresses_is_removed_as_a_whole(text, address, shown):
    found = without_secrets(text, address)
    assert "LongTail" not in found
    assert "pw/1" not in found
    assert "other" not in found
    assert found == shown or found.replace("token", "***") == shown
