"""Sets that are published as .gz files or as an archive: unpacking, and resuming a broken download."""

import gzip
import hashlib
import io
import random
import shutil
import socket
import tarfile
import zlib
from dataclasses import replace

import pytest

from kdlib.data import DataError, DataUnavailable, cifar10, fetch, mnist, sources, transfer, unpack

CONTENT = {"raw/one.dat": random.Random(0).randbytes(300_000), "raw/two.dat": b"two" * 1000}
TOTAL = sum(map(len, CONTENT.values()))
QUICK = transfer.Limits(connect_seconds=2, read_seconds=0.4, total_seconds=5, attempts=2, pause_seconds=0)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def check(folder):
    """The check of a set whose files have no hash."""
    for name, content in CONTENT.items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            raise DataError(f"{folder / name}: expected other content")


def tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def gz(content):
    return gzip.compress(content, 1)


ARCHIVE = tar({"raw/readme.html": b"<html>", **CONTENT})


class World:
    """Two tiny sets on the local server: "box" is an archive, its files have no hashes; "bags" is two .gz files."""

    def __init__(self, server, monkeypatch, cache):
        self.server, self.cache = server, cache
        self.monkeypatch = monkeypatch
        self.offers = {}
        monkeypatch.setattr(fetch, "SOURCES", {})
        self.publish_box(ARCHIVE)
        self.publish_bags({name: gz(content) for name, content in CONTENT.items()})

    def publish_box(self, archive):
        files = tuple(sources.File(name, None, len(content)) for name, content in CONTENT.items())
        packed = sources.Packed(sources.File("box.tar.gz", sha256(archive), len(archive)), tuple(CONTENT))
        self.publish("box", files, (packed,), {"box.tar.gz": archive})

    def publish_bags(self, contents):
        files = tuple(sources.File(name, sha256(content), len(content)) for name, content in CONTENT.items())
        names = {name: name.removeprefix("raw/") + ".gz" for name in CONTENT}
        packed = tuple(
            sources.Packed(sources.File(names[name], sha256(it), len(it)), (name,)) for name, it in contents.items()
        )
        self.publish("bags", files, packed, {names[name]: it for name, it in contents.items()})

    def publish(self, name, files, packed, offers):
        size = sum(map(len, offers.values()))
        fetch.SOURCES[name] = sources.Source(
            name,
            "MIT",
            "nobody",
            f"{self.server.url}/{name}",
            size,
            lambda: files,
            check,
            packed,
            (("one.dat", "two.dat"),),
        )
        self.offers[name] = offers
        self.server.routes.update({f"/{name}/{file}": with_ranges(content) for file, content in offers.items()})


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch, server):
    for name in ("KDLIB_DATA", "KDLIB_MIRROR", "KDLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetch, "LIMITS", QUICK)
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    return World(server, monkeypatch, tmp_path / "cache")


def with_ranges(content, cut=None, start_shift=0, log=None):
    """Return a server's answer that follows Range; the connection breaks after `cut` bytes."""

    def answer(handler):
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if log is not None:
            log.append(start)
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        if asked:
            handler.send_header("Content-Range", f"bytes {start + start_shift}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        handler.wfile.write(content[start:] if cut is None else content[start : start + cut])

    return answer


def holds_all(folder):
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return found == CONTENT


BOTH = pytest.mark.parametrize("name", ["box", "bags"])


# --- unpacking --------------------


@BOTH
def test_the_files_appear_and_the_packed_ones_go(world, name, capfd):
    heard = []
    folder = fetch.find(name, progress=lambda *told: heard.append(told))
    assert folder == world.cache / name
    assert holds_all(folder)  # and no other file of the archive
    assert not (world.cache / f".{name}.part").exists()
    size = sum(map(len, world.offers[name].values()))
    assert heard[-1][1:] == (size, size)
    assert fetch.verify(name) == []
    assert fetch.find(name) == folder
    assert len(world.server.asked) == len(world.offers[name])
    assert capfd.readouterr() == ("", "")


@BOTH
@pytest.mark.parametrize("inner", [True, False])
def test_a_local_mirror_holds_what_the_source_offers(tmp_path, world, monkeypatch, name, inner):
    mirror = tmp_path / "mirror" / (name if inner else ".")
    mirror.mkdir(parents=True)
    for file, content in world.offers[name].items():
        (mirror / file).write_bytes(content)
    monkeypatch.setenv("KDLIB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", None)
    assert holds_all(fetch.find(name))


@BOTH
def test_a_mirror_replaces_the_source(world, monkeypatch, name):
    world.server.routes = {f"/m/{name}/{file}": content for file, content in world.offers[name].items()}
    monkeypatch.setenv("KDLIB_MIRROR", f"{world.server.url}/m")
    assert holds_all(fetch.find(name))


@BOTH
def test_offline_says_so(monkeypatch, name):
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    with pytest.raises(DataUnavailable, match="KDLIB_OFFLINE is set"):
        fetch.find(name)


@BOTH
@pytest.mark.parametrize("inner", ["raw", "."])
def test_a_folder_of_ones_own_needs_no_packed_file(tmp_path, world, name, inner):
    folder = tmp_path / "data" / name
    (folder / inner).mkdir(parents=True)
    for file, content in CONTENT.items():
        (folder / inner / file.removeprefix("raw/")).write_bytes(content)
    assert fetch.find(name, tmp_path / "data") == folder
    (folder / inner / "two.dat").unlink()
    with pytest.raises(DataError, match=r"two\.dat is missing"):
        fetch.find(name, tmp_path / "data")
    assert world.server.asked == []


@BOTH
def test_a_damaged_cache_is_repaired(world, name):
    folder = fetch.fetch(name)
    content = bytearray(CONTENT["raw/one.dat"])
    content[7] ^= 1
    (folder / "raw/one.dat").write_bytes(content)
    (folder / "note.txt").write_text("of the user")
    world.server.asked.clear()
    assert fetch.fetch(name) == folder
    assert world.server.asked == {"box": ["/box/box.tar.gz"], "bags": ["/bags/one.dat.gz"]}[name]
    assert (folder / "note.txt").read_text() == "of the user"
    (folder / "note.txt").unlink()
    assert holds_all(folder)


# --- hostile --------------------


def flip(content, at):
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (flip(ARCHIVE, 1000), "SHA256"),
        (ARCHIVE + b"x", "at most .* bytes, found more"),
        (b"<html>sign in</html>", "web page"),
        (ARCHIVE[:1000], "SHA256"),
        (b"", "SHA256"),
    ],
    ids=["a bit", "longer", "web page", "shorter", "empty"],
)
def test_another_archive_is_refused_and_leaves_nothing(world, bad, problem):
    world.server.routes["/box/box.tar.gz"] = bad
    with pytest.raises(DataUnavailable, match=rf"box\.tar\.gz: .*{problem}"):
        fetch.find("box")
    assert fetch.where("box") is None
    assert list((world.cache / ".box.part").iterdir()) == []
    world.publish_box(ARCHIVE)
    assert holds_all(fetch.find("box"))


BOXES = {
    "a link": ({**CONTENT, "raw/one.dat": None}, "'raw/one.dat', a link"),
    "outside": ({"../evil": b"x", **CONTENT}, "outside"),
    "too large": ({**CONTENT, "raw/more": bytes(sources.UNKNOWN_FILE_BYTES + 1)}, "more bytes than allowed"),
    "too many": ({**CONTENT, **{str(k): b"" for k in range(sources.MOST_MEMBERS)}}, "more than 20 members"),
    "a file missing": ({"raw/one.dat": CONTENT["raw/one.dat"]}, "expected raw/two.dat in this archive, found none"),
    "other content": ({**CONTENT, "raw/two.dat": b"owt" * 1000}, "two.dat: expected other content"),
}


@pytest.mark.parametrize("case", BOXES.values(), ids=BOXES.keys())
def test_what_a_hash_does_not_say_is_checked_too(tmp_path, world, case):
    """An archive with the right hash is checked, too."""
    world.publish_box(tar(case[0]))
    with pytest.raises(DataUnavailable, match=f"box: the downloaded files are not the published ones: .*{case[1]}"):
        fetch.find("box")
    assert fetch.where("box") is None
    assert not (tmp_path / "cache" / "evil").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    world.publish_box(ARCHIVE)
    assert holds_all(fetch.find("box"))


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        (gz(bytes(50_000_000)), "more bytes than allowed"),
        (gz(CONTENT["raw/two.dat"])[:-9], "Compressed file ended|end-of-stream"),
        (flip(gz(CONTENT["raw/two.dat"]), -6), "CRC check failed"),
        (b"plain", "Not a gzipped file"),
    ],
    ids=["bomb", "cut", "checksum", "plain"],
)
def test_a_bad_gz_file_is_refused(world, packed, problem):
    world.publish_bags({"raw/one.dat": gz(CONTENT["raw/one.dat"]), "raw/two.dat": packed})
    with pytest.raises(
        DataUnavailable, match=rf"two\.dat\.gz: expected a gzipped file of at most 3000 bytes, found .*{problem}"
    ):
        fetch.find("bags")
    assert fetch.where("bags") is None
    assert not any(path.is_file() and path.stat().st_size > 400_000 for path in world.cache.rglob("*"))
    world.publish_bags({name: gz(content) for name, content in CONTENT.items()})
    assert holds_all(fetch.find("bags"))


def test_gunzip_leaves_nothing_of_a_bad_file(tmp_path):
    (tmp_path / "a.gz").write_bytes(gz(bytes(2000)))
    with pytest.raises(
        DataError, match=r"a\.gz: expected a gzipped file of at most 1999 bytes, found more bytes than allowed"
    ):
        unpack.gunzip(tmp_path / "a.gz", tmp_path / "in" / "a", 1999)
    assert list((tmp_path / "in").iterdir()) == []
    unpack.gunzip(tmp_path / "a.gz", tmp_path / "in" / "a", 2000)
    assert (tmp_path / "in" / "a").read_bytes() == bytes(2000)


# --- resuming a broken download --------------------


def break_off(world, cut):
    world.server.routes["/box/box.tar.gz"] = with_ranges(ARCHIVE, cut=cut)
    with pytest.raises(DataUnavailable, match=r"box\.tar\.gz: expected a file, found"):
        fetch.find("box")
    assert fetch.where("box") is None
    (kept,) = (world.cache / ".box.part").iterdir()
    return kept


def test_a_broken_download_goes_on_within_and_between_calls(world):
    kept = break_off(world, 1000)
    assert kept.read_bytes() == ARCHIVE[:2000]  # two attempts; the second went on where the first broke off
    log, heard = [], []
    world.server.routes["/box/box.tar.gz"] = with_ranges(ARCHIVE, log=log)
    assert holds_all(fetch.find("box", progress=lambda *told: heard.append(told)))
    assert log == [2000]
    assert heard[0][1] > 2000
    assert heard[-1][1] == len(ARCHIVE)


def test_a_server_that_cannot_go_on_starts_over(world):
    break_off(world, 1000)
    world.server.routes["/box/box.tar.gz"] = ARCHIVE  # status 200 with the whole file, although a range was requested
    assert holds_all(fetch.find("box"))


@pytest.mark.parametrize(
    "bad", [b"x" * 2000, ARCHIVE + b"x", ARCHIVE[:-1] + b"x"], ids=["wrong", "too long", "wrong at the end"]
)
def test_a_wrong_start_is_given_up(world, bad):
    break_off(world, 1000).write_bytes(bad)
    world.publish_box(ARCHIVE)
    assert holds_all(fetch.find("box"))


def test_an_answer_from_elsewhere_in_the_file_is_not_appended(world):
    kept = break_off(world, 1000)
    world.server.routes["/box/box.tar.gz"] = with_ranges(ARCHIVE, start_shift=1)
    assert holds_all(fetch.find("box"))  # the last attempt asks for the whole file
    assert not kept.exists()


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_a_server_that_refuses_the_rest_of_a_file_is_asked_for_all_of_it(world, status):
    break_off(world, 1000)
    whole = with_ranges(ARCHIVE)
    world.server.routes["/box/box.tar.gz"] = lambda handler: (
        handler.send_error(status) if "range" in handler.headers else whole(handler)
    )
    assert holds_all(fetch.find("box"))


def test_a_server_error_says_nothing_about_what_was_kept(world):
    kept = break_off(world, 1000)
    world.server.routes["/box/box.tar.gz"] = lambda handler: handler.send_error(503)
    with pytest.raises(DataUnavailable, match="503"):
        fetch.find("box")
    assert kept.read_bytes() == ARCHIVE[:2000]


def test_an_archive_that_is_there_already_is_only_unpacked(world):
    kept = break_off(world, 1000)
    kept.unlink()
    kept.with_name("box.tar.gz").write_bytes(ARCHIVE)  # the process was killed just before
    shutil.copytree(world.cache / ".box.part", world.cache / ".box.part" / ".tmp-unpacked.x1")
    world.server.asked.clear()
    assert holds_all(fetch.find("box"))
    assert world.server.asked == []


# --- the real sources --------------------


@pytest.fixture
def real_sources(monkeypatch):
    monkeypatch.undo()
    return fetch.SOURCES


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_every_file_comes_out_of_what_is_downloaded(real_sources, name):
    source = real_sources[name]
    files = {file.name: file for file in source.files()}
    assert sorted(files) == sorted(inside for packed in source.packed for inside in packed.holds)
    assert source.bytes == sum(packed.file.size for packed in source.packed)
    assert all(len(packed.file.sha256) == 64 for packed in source.packed)
    assert source.url.startswith("https://")
    assert fetch.describe(name)["files"] == len(files)


def test_the_published_sizes(real_sources):
    assert [file.size for file in real_sources["mnist"].files()] == [47_040_016, 60_008, 7_840_016, 10_008]
    assert {file.size for file in real_sources["cifar10"].files()} == {30_730_000}


def test_folders_of_torchvision_and_of_the_files_alone_are_found(real_sources, tmp_path):
    for name, folders, files in (
        ("mnist", ["MNIST/raw", "."], list(mnist.FILES)),
        ("mnist", ["MNIST/raw", "."], [f"{file}.gz" for file in mnist.FILES]),
        ("cifar10", [cifar10.FOLDER, "."], [*cifar10.TRAIN_FILES, *cifar10.TEST_FILES]),
    ):
        for folder in folders:
            place = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
            (place / folder).mkdir(parents=True)
            for file in files:
                (place / folder / file).touch()
            assert fetch.where(name, place) == ("--data", place)
            with pytest.raises(DataError, match=rf"{len(files)} problems: .*{files[0]}: expected .* bytes, found 0"):
                fetch.find(name, place)


@pytest.mark.real_data
def test_mnist_is_fetched_from_a_mirror(real_sources, real_folder_of, tmp_path, monkeypatch):
    """Download and unpack the real digits; our own gzip of them has another hash than the published one."""
    folder = real_folder_of("mnist")
    packed = {name: gz(mnist_bytes(folder, name)) for name in mnist.FILES}
    (tmp_path / "mirror").mkdir()
    for name, content in packed.items():
        (tmp_path / "mirror" / f"{name}.gz").write_bytes(content)
    offers = tuple(
        sources.Packed(sources.File(f"{name}.gz", sha256(content), len(content)), (f"{mnist.FOLDER}/{name}",))
        for name, content in packed.items()
    )
    source = real_sources["mnist"]
    monkeypatch.setattr(fetch, "SOURCES", {"mnist": replace(source, packed=offers)})
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("KDLIB_MIRROR", str(tmp_path / "mirror"))
    assert len(mnist.digits(fetch.fetch("mnist")).train_images) == 60_000


def mnist_bytes(folder, name):
    path = mnist.find_file(folder, name)
    return zlib.decompress(path.read_bytes(), 31) if path.suffix == ".gz" else path.read_bytes()
