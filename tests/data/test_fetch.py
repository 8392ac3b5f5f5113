"""Finding and downloading, also from a local server that sends wrong answers of every kind."""

import argparse
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace

import pytest

from kdlib.cli import data as commands
from kdlib.cli.live import Downloading
from kdlib.data import DataError, DataUnavailable, fetch, kaggle, mitdb, present, sources, transfer

CONTENT = {"one.dat": bytes(range(256)) * 2000, "two.dat": b"two" * 1000, "two.hea": b"two 1 360 3000\n"}
PINNED = ("one.dat", "two.dat")
LIMITS = transfer.Limits(attempts=2, pause_seconds=0)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def check(folder):
    """The check of the whole set: files without a hash must be right, too."""
    if (folder / "two.hea").is_file() and (folder / "two.hea").read_bytes() != CONTENT["two.hea"]:
        raise DataError(f"{folder / 'two.hea'}: expected a header, found another")


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch, server):
    """A tiny data set whose source is the local server, an empty cache, and no environment variables of kdlib."""
    for name in ("KDLIB_DATA", "KDLIB_MIRROR", "KDLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    files = [sources.File(name, sha256(CONTENT[name]), len(CONTENT[name])) for name in PINNED]
    files.append(sources.File("two.hea", None, None))
    total = sum(map(len, CONTENT.values()))
    source = sources.Source(
        "Tiny", "MIT", "nobody", server.url, total, lambda: tuple(files), check, instead=(("own.csv",),)
    )
    monkeypatch.setattr(fetch, "SOURCES", {"tiny": source})
    monkeypatch.setattr(fetch, "LIMITS", LIMITS)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    server.routes.update({f"/{name}": content for name, content in CONTENT.items()})


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def fill(folder):
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


def holds_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT


def no_socket(*_, **__):
    raise AssertionError("a socket was opened")


# --- the good cases --------------------


def test_a_download_is_complete_checked_and_reported(server, cache, capfd):
    heard = []
    folder = fetch.find("tiny", progress=lambda *told: heard.append(told))
    assert folder == cache / "tiny"
    assert holds_all(folder)
    assert sorted(path.name for path in cache.iterdir()) in ([".tiny.lock", "tiny"], ["tiny"])
    total = sum(map(len, CONTENT.values()))
    assert heard[-1] == ("two.hea", total, total)
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)
    assert fetch.find("tiny") == folder
    assert fetch.verify("tiny") == []
    assert len(server.asked) == 3  # each file was requested once
    assert capfd.readouterr() == ("", "")  # neither this library nor pooch prints


def test_places_are_looked_at_in_order(tmp_path, cache, monkeypatch, server):
    data, environment = fill(tmp_path / "data" / "tiny"), fill(tmp_path / "environment" / "tiny")
    fill(cache / "tiny")
    monkeypatch.setenv("KDLIB_DATA", str(environment.parent))
    assert fetch.where("tiny", data.parent) == ("--data", data)
    assert fetch.where("tiny") == ("KDLIB_DATA", environment)
    assert fetch.find("tiny", data.parent) == data
    assert fetch.find("tiny", data) == data  # the set's own folder is accepted, too
    shutil.rmtree(data)
    with pytest.raises(DataError, match=r"--data .*expected the data set tiny, found none"):
        fetch.find("tiny", data.parent)  # no other data in silence
    assert fetch.where("tiny", data.parent) is None
    shutil.rmtree(environment)
    assert fetch.where("tiny") == ("cache", cache / "tiny")  # what was fetched for KDLIB_DATA's sake is found
    shutil.rmtree(environment.parent)
    with pytest.raises(DataError, match=r"KDLIB_DATA=.*: expected a folder, found none"):  # probably a typing mistake
        fetch.where("tiny")
    monkeypatch.delenv("KDLIB_DATA")
    assert fetch.where("tiny") == ("cache", cache / "tiny")
    shutil.rmtree(cache / "tiny")
    assert fetch.where("tiny") is None
    assert fetch.verify("tiny")[0].startswith("tiny: not found; looked in")
    assert server.asked == []


def test_an_owned_file_of_another_publisher_will_do(tmp_path):
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    (folder / "own.csv").write_text("1,2,3\n")
    assert fetch.find("tiny", folder.parent) == folder
    assert fetch.verify("tiny", folder.parent) == []


def test_a_mirror_replaces_the_source(server, monkeypatch, cache):
    server.routes = {f"/mirror/tiny/{name}": content for name, content in CONTENT.items()}
    monkeypatch.setenv("KDLIB_MIRROR", f"{server.url}/mirror/")
    assert holds_all(fetch.find("tiny"))


@pytest.mark.parametrize("inner", ["tiny", "."])
def test_a_local_mirror_needs_no_socket(tmp_path, monkeypatch, inner):
    fill(tmp_path / "mirror" / inner)
    monkeypatch.setenv("KDLIB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", no_socket)
    assert holds_all(fetch.find("tiny"))


def test_a_redirect_to_another_path_is_followed(server):
    server.routes["/one.dat"] = redirect("/elsewhere")
    server.routes["/elsewhere"] = CONTENT["one.dat"]
    assert holds_all(fetch.find("tiny"))


def test_a_body_in_chunks_is_read(server):
    server.routes["/one.dat"] = chunked(CONTENT["one.dat"])
    assert holds_all(fetch.find("tiny"))


def test_a_passing_failure_is_tried_again(server):
    answers = iter([lambda handler: handler.send_error(503), send(CONTENT["one.dat"])])
    server.routes["/one.dat"] = lambda handler: next(answers)(handler)
    assert holds_all(fetch.find("tiny"))


# --- the hostile cases --------------------


def send(content, length=None, kind=None):
    def answer(handler):
        handler.send_response(200)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        if kind is not None:
            handler.send_header("Content-Type", kind)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def redirect(to):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def silent(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "512000")
    handler.end_headers()
    handler.wfile.write(b"x")
    handler.wfile.flush()
    handler.connection.settimeout(10)
    handler.connection.recv(1)  # until the client closes the connection


def dripping(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(500):  # unless the client closes the connection; each pause is shorter than read_seconds
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def chunked(content, whole=True):
    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 5000):
            piece = content[start : start + 5000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"1388\r\nxxx")
        handler.close_connection = True

    return answer


HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
HOSTILE = {
    "wrong hash": (send(CONTENT["one.dat"][:-1] + b"!"), "SHA256 .*expected " + sha256(CONTENT["one.dat"])),
    "web page with status 200": (send(HTML), "expected a data file, found a web page"),
    "web page by its type": (send(b"sign in", kind="text/html; charset=utf-8"), "found a web page"),
    "cut connection": (
        send(CONTENT["one.dat"][:1000], length=len(CONTENT["one.dat"])),
        "512000|IncompleteRead",
    ),
    "cut without a length": (send(CONTENT["one.dat"][:1000]), "SHA256"),
    "cut in a chunk": (chunked(CONTENT["one.dat"][:10_000], whole=False), "IncompleteRead|SHA256"),
    "empty": (send(b""), "SHA256"),
    "endless": (endless, "expected at most 512000 bytes, found more"),
    "silent": (silent, "timed out"),
    "dripping": (dripping, "expected the file within 0.3 seconds"),
    "missing": (lambda handler: handler.send_error(404), "404"),
    "broken": (lambda handler: handler.send_error(500), "500"),
    "redirects in a circle": (redirect("/one.dat"), "more than 5 redirects"),
    "redirect to a file": (redirect("file:///etc/passwd"), "file:///etc/passwd"),
    "not http": (lambda handler: handler.wfile.write(b"\0\1\2\3" * 100), "expected a file, found"),
}


HURRIED = {silent: replace(LIMITS, read_seconds=0.5), dripping: replace(LIMITS, total_seconds=0.3)}
BROKEN_OFF = [HOSTILE[name][0] for name in ("cut connection", "cut in a chunk", "silent", "dripping")]


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bad_answer_is_an_error_that_names_it_and_leaves_nothing(server, cache, monkeypatch, case):
    server.routes["/one.dat"] = case[0]
    monkeypatch.setattr(fetch, "LIMITS", HURRIED.get(case[0], LIMITS))
    with pytest.raises(DataUnavailable, match=rf"one\.dat: .*({case[1]})") as caught:
        fetch.find("tiny")
    assert transfer.REMEDY in str(caught.value)
    assert fetch.where("tiny") is None
    assert not (cache / "tiny").exists()
    begun = case[0] in BROKEN_OFF  # the part received may be right, so it is kept under another name
    assert [path.name for path in (cache / ".tiny.part").iterdir()] == ["one.dat.partial"] * begun
    monkeypatch.setattr(fetch, "LIMITS", LIMITS)
    server.routes["/one.dat"] = CONTENT["one.dat"]  # the next try succeeds
    assert holds_all(fetch.find("tiny"))


@pytest.mark.parametrize("content", [b"two 1 36", HTML], ids=["cut", "web page"])
def test_what_no_hash_speaks_for_is_checked_too(server, cache, content):
    server.routes["/two.hea"] = send(content)
    with pytest.raises(DataUnavailable, match=r"two\.hea: expected"):
        fetch.find("tiny")
    assert not (cache / "tiny").exists()
    server.routes["/two.hea"] = CONTENT["two.hea"]
    assert holds_all(fetch.find("tiny"))


def test_nobody_listening_is_an_error(server, monkeypatch):
    server.close()
    with pytest.raises(DataUnavailable, match=r"one\.dat: expected a file, found: .*refused"):
        fetch.find("tiny")


@pytest.fixture
def https_server(server, tmp_path, monkeypatch):
    """The same server with TLS; the test trusts its certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is not here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
    ]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make, "2", *files, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
    server.scheme = "https"
    monkeypatch.setenv("KDLIB_MIRROR", server.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server.routes = {f"/tiny/{name}": content for name, content in CONTENT.items()}
    return server


def test_https_is_not_left_for_http(https_server, cache):
    plain = type(https_server)()
    plain.routes["/one.dat"] = CONTENT["one.dat"]
    https_server.routes["/tiny/one.dat"] = redirect(f"{plain.url}/one.dat")
    with pytest.raises(DataUnavailable, match=rf"expected to stay on https, found a redirect to {plain.url}/one\.dat"):
        fetch.find("tiny")
    plain.close()
    assert plain.asked == []  # no request was sent
    assert not (cache / "tiny").exists()
    https_server.routes["/tiny/one.dat"] = redirect("/moved")
    https_server.routes["/moved"] = CONTENT["one.dat"]
    assert holds_all(fetch.find("tiny"))


def test_an_untrusted_certificate_is_refused(https_server, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(DataUnavailable, match="certificate"):
        fetch.find("tiny")


@pytest.mark.parametrize("onward", ["http://a.org/x", "ftp://a.org/x", "//a.org:80/x"])
def test_a_step_from_https_is_judged_by_its_scheme(onward):
    if onward.startswith("//"):
        assert transfer._next_url("https://a.org/y", onward) == "https://a.org:80/x"
    else:
        with pytest.raises(DataUnavailable, match="stay on https"):
            transfer._next_url("https://a.org/y", onward)


# --- offline, mirrors, incomplete folders --------------------


@pytest.mark.parametrize("mirror", [None, "https://example.org/mirror"])
def test_offline_opens_no_socket_and_says_what_to_do(monkeypatch, mirror):
    if mirror:
        monkeypatch.setenv("KDLIB_MIRROR", mirror)
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    with pytest.raises(DataUnavailable, match=r"KDLIB_OFFLINE is set.*--data DIR .*KDLIB_DATA=DIR.*KDLIB_MIRROR"):
        fetch.find("tiny")


def test_offline_off_is_not_offline(monkeypatch):
    monkeypatch.setenv("KDLIB_OFFLINE", "0")
    assert holds_all(fetch.find("tiny"))


@pytest.mark.parametrize("mirror", ["file:///tmp", "nowhere/at/all", "ftp://example.org"])
def test_a_mirror_that_is_none_is_refused(monkeypatch, mirror):
    monkeypatch.setenv("KDLIB_MIRROR", mirror)
    with pytest.raises(DataError, match=r"KDLIB_MIRROR=.*expected an http.* URL or an existing folder") as found:
        fetch.find("tiny")
    assert found.type is DataError  # a mistake is no reason for synthetic data


MIRROR_EDITS = {
    "wrong hash": (lambda path: path.write_bytes(b"x" * path.stat().st_size), "expected SHA-256 .*found"),
    "missing": (lambda path: path.unlink(), "expected a file of the mirror, found none"),
    "too large": (
        lambda path: path.write_bytes(bytes(600_000)),
        "expected at most 512000 bytes, found 600000",
    ),
}


@pytest.mark.parametrize("edit", MIRROR_EDITS.values(), ids=MIRROR_EDITS.keys())
def test_a_bad_local_mirror_is_refused(tmp_path, monkeypatch, cache, edit):
    mirror = fill(tmp_path / "mirror" / "tiny")
    edit[0](mirror / "one.dat")
    monkeypatch.setenv("KDLIB_MIRROR", str(mirror.parent))
    with pytest.raises(DataUnavailable, match=rf"one\.dat: {edit[1]}"):
        fetch.find("tiny")
    assert not (cache / "tiny").exists()


def test_a_part_of_a_set_is_never_taken_for_the_set(tmp_path, cache, server):
    data = fill(tmp_path / "data" / "tiny")
    (data / "two.dat").unlink()
    (data / "one.dat").write_bytes(b"short")
    with pytest.raises(
        DataError,
        match=r"data/tiny \(--data\): .*2 problems: one\.dat: expected 512000 bytes, found 5; two\.dat is m",
    ):
        fetch.find("tiny", data.parent)
    assert server.asked == []  # the set was not silently replaced by a download


def test_verify_reads_every_byte(tmp_path):
    data = fill(tmp_path / "data" / "tiny")
    (data / "one.dat").write_bytes(CONTENT["one.dat"][::-1])
    assert fetch.find("tiny", data.parent) == data  # the quick check does not detect it
    (problem,) = fetch.verify("tiny", data.parent)
    assert (
        problem == f"one.dat: expected SHA-256 {sha256(CONTENT['one.dat'])}, found {sha256(CONTENT['one.dat'][::-1])}"
    )
    (data / "one.dat").write_bytes(CONTENT["one.dat"])
    (data / "two.hea").write_bytes(b"nonsense")
    assert "two.hea: expected a header" in fetch.verify("tiny", data.parent)[0]


def test_a_damaged_cache_is_named_and_repaired_with_the_least_download(cache, server):
    fetch.fetch("tiny")
    (cache / "tiny" / "two.dat").write_bytes(b"")
    (cache / "tiny" / "note.txt").write_text("of the user")
    with pytest.raises(DataError, match=r"tiny \(cache\).*two\.dat: expected 3000 bytes, found 0.*kd data fetch tiny"):
        fetch.find("tiny")
    server.asked.clear()
    fetch.fetch("tiny")
    assert server.asked == ["/two.dat", "/two.hea"]
    assert fetch.verify("tiny") == []
    assert (cache / "tiny" / "note.txt").read_text() == "of the user"


def test_a_damaged_cache_that_cannot_be_repaired_is_still_named(cache, server):
    """If it were moved away, a run would find no data and use synthetic data instead."""
    fetch.fetch("tiny")
    (cache / "tiny" / "two.dat").write_bytes(b"")
    server.routes["/two.dat"] = send(b"two", length=3000)
    with pytest.raises(DataUnavailable):
        fetch.fetch("tiny")
    with pytest.raises(DataError, match=r"tiny \(cache\).*two\.dat.*kd data fetch tiny"):
        fetch.find("tiny")
    assert (cache / "tiny" / "one.dat").read_bytes() == CONTENT["one.dat"]
    server.routes["/two.dat"] = CONTENT["two.dat"]
    assert holds_all(fetch.fetch("tiny"))


def test_a_download_is_announced_once(capsys):
    fetch.find("tiny", progress=Downloading("tiny"))
    fetch.find("tiny", progress=Downloading("tiny"))
    assert capsys.readouterr().err == "tiny: downloading 1 MB\n"


def test_a_terminal_sees_each_percent_once(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    show = Downloading("tiny")
    for received in (1, 2, 60, 100, 101):
        show("one.dat", received, 100)
    assert capsys.readouterr().err == "tiny: downloading 0 MB\n\rtiny: 1%\rtiny: 2%\rtiny: 60%\rtiny: 100%\n"


def test_the_command_repairs_the_cache_but_no_folder_of_the_users(tmp_path, cache, capsys, monkeypatch):
    options = argparse.Namespace(action="fetch", names=("tiny",), data=None)
    assert commands.data(options) == 0
    (cache / "tiny" / "two.dat").write_bytes(b"")
    assert commands.data(options) == 0
    assert holds_all(cache / "tiny")
    monkeypatch.setenv("KDLIB_DATA", str(fill(tmp_path / "data" / "tiny").parent))
    assert commands.data(options) == 0
    assert capsys.readouterr().out.splitlines() == [f"tiny: fetched to {cache / 'tiny'}"] * 2 + [
        f"tiny: already at {tmp_path / 'data' / 'tiny'}, with all sizes; `kd data verify` reads it"
    ]


def test_a_broken_download_goes_on_where_it_was(server, cache):
    server.routes["/two.dat"] = send(b"two", length=3000)
    with pytest.raises(DataUnavailable):
        fetch.find("tiny")
    (cache / ".tiny.part" / "tmp_of_a_killed_process").write_bytes(b"half")
    server.routes["/two.dat"] = CONTENT["two.dat"]
    server.asked.clear()
    assert holds_all(fetch.find("tiny"))
    assert "/one.dat" not in server.asked


def test_two_fetches_at_once_download_once(server, cache, monkeypatch, capsys):
    both = threading.Event()  # both have started: the second says that it waits, or wrongly requests the file, too
    waits = Downloading.waits

    def answer(handler):
        if server.asked.count("/one.dat") > 1:
            both.set()
        both.wait(20)
        send(CONTENT["one.dat"])(handler)

    monkeypatch.setattr(Downloading, "waits", lambda shown: (waits(shown), both.set()))
    server.routes["/one.dat"] = answer
    options = argparse.Namespace(action="fetch", names=["tiny"], data=None)
    threads = [threading.Thread(target=commands.data, args=(options,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"tiny: fetched to {cache / 'tiny'}"] * 2
    assert said.err.splitlines().count("tiny: another process is downloading it; this one waits") == 1
    assert sorted(server.asked) == ["/one.dat", "/two.dat", "/two.hea"]


def test_a_lock_that_cannot_be_taken_is_an_error(cache):
    (cache / ".tiny.lock").mkdir(parents=True)
    with pytest.raises(DataUnavailable, match=r"tiny\.lock: could not be written"):
        fetch.fetch("tiny")


def test_a_cache_that_cannot_be_written_is_an_error(cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match="cache: expected a folder to write to, found"):
        fetch.fetch("tiny")


def test_mistaken_names_and_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a data set \(tiny\), found 'mnits'"):
        fetch.find("mnits")
    with pytest.raises(DataError, match=r"--data .*nowhere: expected a folder, found none"):
        fetch.find("tiny", tmp_path / "nowhere")


# --- the real sources --------------------


@pytest.fixture
def real_sources(monkeypatch):
    monkeypatch.undo()
    return fetch.SOURCES


def test_the_files_of_mitdb(real_sources):
    files = real_sources["mitdb"].files()
    assert len(files) == len({file.name for file in files}) == 144
    assert {file.name for file in files} == {f"{r}.{kind}" for r in mitdb.RECORDS for kind in ("dat", "atr", "hea")}
    assert sum(file.sha256 is not None for file in files) == 96
    assert all(file.size == 650_000 * 3 for file in files if file.name.endswith(".dat"))
    assert fetch.names()[:3] == ("mitdb", "mnist", "cifar10")
    facts = fetch.describe("mitdb")
    assert facts["files"] == 144
    assert facts["url"].startswith("https://")
    assert facts["licence"].startswith("Open Data Commons")


def test_kaggle_files_are_found_as_mitdb(real_sources, tmp_path):
    for name in kaggle.FILES:
        (tmp_path / name).write_text("0\n")
    assert fetch.find("mitdb", tmp_path) == tmp_path
    assert "mitbih_train.csv, line 1: expected 188 values" in fetch.verify("mitdb", tmp_path)[0]
    (tmp_path / kaggle.FILES[1]).unlink()
    with pytest.raises(DataError, match=r"mitbih_test\.csv is missing"):
        fetch.find("mitdb", tmp_path)


@pytest.mark.real_data
def test_the_real_records_verify(real_sources, real_folder, monkeypatch):
    assert fetch.verify("mitdb", real_folder) == []
    monkeypatch.setattr(present, "hashlib", None)  # finding the sets computes no hash
    assert fetch.find("mitdb", real_folder) == real_folder


def test_a_repair_that_fails_keeps_files_that_no_hash_can_check(cache, server):
    fetch.fetch("tiny")
    (cache / "tiny" / "two.dat").write_bytes(b"")
    (cache / "tiny" / "own.csv").write_text("another form of the set")
    for name in CONTENT:
        server.routes[f"/{name}"] = lambda handler: handler.send_error(503)
    for _ in range(2):
        with pytest.raises(DataUnavailable):
            fetch.fetch("tiny")
        assert (cache / "tiny" / "two.hea").read_bytes() == CONTENT["two.hea"]
        assert (cache / "tiny" / "own.csv").read_text() == "another form of the set"
    server.routes.update({f"/{name}": content for name, content in CONTENT.items()})
    assert holds_all(fetch.fetch("tiny"))
    assert sorted(path.name for path in cache.iterdir() if "lock" not in path.name) == ["tiny"]


def test_files_of_a_repair_that_was_killed_come_back(cache):
    fetch.fetch("tiny")
    (cache / "tiny").rename(cache / ".tiny.part")
    (cache / ".tiny.before").mkdir()
    (cache / ".tiny.part" / "two.hea").rename(cache / ".tiny.before" / "two.hea")
    assert holds_all(fetch.fetch("tiny"))
    assert not (cache / ".tiny.before").exists()


def test_a_file_in_the_place_of_a_set_is_left_alone(cache):
    cache.mkdir()
    (cache / "tiny").write_text("my file")
    with pytest.raises(DataUnavailable, match=r"tiny: expected a folder or nothing, found a file\. Move it away"):
        fetch.fetch("tiny")
    assert (cache / "tiny").read_text() == "my file"
    assert not (cache / ".tiny.part").exists()


def test_one_set_that_cannot_be_looked_at_does_not_keep_the_others(monkeypatch, capsys):
    monkeypatch.setattr(fetch, "SOURCES", {"other": fetch.SOURCES["tiny"], **fetch.SOURCES})

    def where(name, data=None):
        if name == "other":
            raise DataError("expected one folder with the data set, found 2")

    monkeypatch.setattr(fetch, "where", where)
    for action in ("list", "where", "verify"):
        options = argparse.Namespace(names=[], action=action, data=None)
        assert commands.data(options) == (action == "verify")
        out = capsys.readouterr().out
        assert "expected one folder with the data set, found 2" in out
        assert "tiny" in out.splitlines()[-1] or "tiny\n" in out
