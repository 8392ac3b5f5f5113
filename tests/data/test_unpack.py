"""Archives that may be hostile: some are unpacked, the others are refused and leave nothing behind."""

import gzip
import io
import tarfile

import pytest

from kdlib.data import DataError
from kdlib.data.unpack import unpack


def member(name, content=b"", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, target
    if not name.isprintable():  # only such a header keeps it
        info.pax_headers = {"path": name}
    return info, content


def archive_of(tmp_path, *members, mode="w:gz"):
    path = tmp_path / "set.tar.gz"
    with tarfile.open(path, mode) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_a_good_archive_unpacks(tmp_path, mode):
    members = member("a", kind=tarfile.DIRTYPE), member("a/one.bin", b"one" * 5000), member("two.bin", b"2")
    unpack(archive_of(tmp_path, *members, mode=mode), tmp_path / "out", 20_000, 3)
    assert (tmp_path / "out/a/one.bin").read_bytes() == b"one" * 5000
    assert (tmp_path / "out/two.bin").read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "set.tar.gz"]
    assert (tmp_path / "out").stat().st_mode == tmp_path.joinpath("out/a").stat().st_mode  # both as the umask says


HOSTILE = {
    "parent": ([member("ok", b"1"), member("../evil", b"x")], "outside"),
    "deep parent": ([member("a/../../evil", b"x")], "outside"),
    "symbolic link": ([member("link", kind=tarfile.SYMTYPE, target="/etc/passwd")], "'link', a link"),
    "link inside": ([member("a", b"1"), member("b", kind=tarfile.SYMTYPE, target="a")], "'b', a link"),
    "hard link": ([member("hard", kind=tarfile.LNKTYPE, target="../../evil")], "'hard', a link"),
    "device": ([member("device", kind=tarfile.CHRTYPE)], "special file"),
    "pipe": ([member("pipe", kind=tarfile.FIFOTYPE)], "special file"),
    "null character": ([member("ok", b"1"), member("a\0b", b"x")], "null"),
    "too many": ([member(str(k), b"1") for k in range(6)], "more than 5 members"),
    "too large": ([member("a", bytes(600)), member("b", bytes(600))], "more bytes than allowed"),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, case):
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = archive_of(inner, *case[0])
    with pytest.raises(DataError, match=rf"set\.tar\.gz: expected an archive of at most 5 .*found .*{case[1]}.*Delete"):
        unpack(archive, inner / "out", 1000, 5)
    assert [path.name for path in inner.iterdir()] == ["set.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_an_absolute_name_stays_inside(tmp_path):
    unpack(archive_of(tmp_path, member("/abs.bin", b"1")), tmp_path / "out", 1000, 5)
    assert (tmp_path / "out/abs.bin").read_bytes() == b"1"


def test_a_bomb_in_a_header_is_bounded(tmp_path):
    # A pax header that claims 50 MB: the reader would hold it all in memory before it yields a member.
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 50_000_000
    path = tmp_path / "set.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(50_000_000), 1))
    with pytest.raises(DataError, match="more bytes than allowed"):
        unpack(path, tmp_path / "out", 1000, 5)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_cut_archive_is_refused(tmp_path, keep):
    import random

    path = archive_of(tmp_path, member("a", random.Random(0).randbytes(50_000)), member("b", b"2"))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=r"set\.tar\.gz: expected"):
        unpack(path, tmp_path / "out", 100_000, 5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"<html>not found</html>" * 100, b"", b"\x1f\x8bgarbage" * 9])
def test_something_else_is_refused(tmp_path, content):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.tar\.gz: expected an archive"):
        unpack(path, tmp_path / "out", 1000, 5)


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="expected no folder of this name"):
        unpack(archive_of(tmp_path, member("a", b"1")), tmp_path / "out", 1000, 5)
