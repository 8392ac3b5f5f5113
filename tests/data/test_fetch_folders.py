"""Finding and fetching sets that are folders of pictures, sets that a user gets by hand, and files without a hash."""

import hashlib
import io
import tarfile
from dataclasses import replace

import pytest

from kdlib.data import DataError, DataUnavailable, cats_dogs, chest_xray, fetch, sources, transfer, vgg16

LISTS = ("pets/lists/train.txt", "pets/lists/test.txt")
PICTURES = {f"images/{name}.jpg": name.encode() * 1000 for name in ("a", "b", "c")}
REST = {f"masks/{number}.png": b"x" * 100 for number in range(30)}


def tar(members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


IMAGES = tar(PICTURES)
TEXTS = tar({"lists/train.txt": b"a\nb\n", "lists/test.txt": b"c\n", **REST})


def check(folder):
    if not all((folder / "pets" / name).read_bytes() == content for name, content in PICTURES.items()):
        raise DataError(f"{folder}: expected other pictures")


def packed(name, content, holds, **limits):
    file = sources.File(name, hashlib.sha256(content).hexdigest(), len(content))
    return sources.Packed(file, holds, into="pets", **limits)


@pytest.fixture
def pets(tmp_path, monkeypatch, server):
    """A set of two archives: a folder of pictures, and two lists among other files."""
    for name in ("KDLIB_DATA", "KDLIB_MIRROR", "KDLIB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(fetch, "LIMITS", transfer.Limits(attempts=1))
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    archives = (
        packed("images.tar.gz", IMAGES, ("pets/images/",)),
        packed("lists.tar.gz", TEXTS, LISTS, most_members=40),
    )
    source = sources.Source("Pets", "MIT", "nobody", server.url, len(IMAGES) + len(TEXTS), files, check, archives)
    monkeypatch.setattr(fetch, "SOURCES", {"pets": source})
    server.routes.update({"/images.tar.gz": IMAGES, "/lists.tar.gz": TEXTS})
    return source


def files():
    return tuple(sources.File(name, None, None) for name in ("pets/images/", *LISTS))


def limited(monkeypatch, source, at, **limits):
    archives = list(source.packed)
    archives[at] = archives[at]._replace(**limits)
    monkeypatch.setattr(fetch, "SOURCES", {"pets": replace(source, packed=tuple(archives))})


def holds_all(folder):
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found == {*LISTS, *(f"pets/{name}" for name in PICTURES)}


def test_a_folder_comes_out_of_its_archive_into_its_place(pets, tmp_path):
    folder = fetch.fetch("pets")
    assert folder == tmp_path / "cache" / "pets"
    assert holds_all(folder)
    assert fetch.find("pets") == folder
    assert fetch.find("pets", folder) == folder  # torchvision's folder in --data DIR
    assert fetch.verify("pets") == []


def test_a_damaged_folder_is_fetched_again(pets):
    folder = fetch.fetch("pets")
    (folder / "pets/images/b.jpg").write_bytes(b"damaged")
    (folder / "pets/images/more.jpg").write_bytes(b"more")
    assert "expected other pictures" in fetch.verify("pets")[0]
    assert holds_all(fetch.fetch("pets"))
    assert fetch.verify("pets") == []


def test_a_missing_or_empty_folder_is_named(pets, tmp_path):
    (tmp_path / "own" / "pets" / "images").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"found 3 problems: pets/images/ is missing or empty; pets/lists/train\.txt is m"
    ):
        fetch.find("pets", tmp_path / "own")
    (tmp_path / "other" / "images").mkdir(parents=True)
    assert fetch.where("pets", tmp_path / "other") is None


@pytest.mark.parametrize(
    ("at", "limits"), [(0, {"most_other_bytes": 100}), (0, {"most_members": 2}), (1, {"most_members": 20})]
)
def test_an_archive_keeps_within_its_limits(pets, monkeypatch, tmp_path, at, limits):
    limited(monkeypatch, pets, at, **limits)
    with pytest.raises(DataUnavailable, match="expected an archive of at most"):
        fetch.fetch("pets")
    assert not (tmp_path / "cache" / "pets").exists()


def test_a_file_of_unknown_size_has_the_limit_of_its_set(pets, monkeypatch, server, tmp_path):
    server.routes["/weights.pth"] = bytes(3000)
    source = replace(
        pets, files=lambda: (sources.File("weights.pth", None, None),), check=lambda folder: None, packed=()
    )
    monkeypatch.setattr(fetch, "SOURCES", {"weights": replace(source, most_file_bytes=2999)})
    with pytest.raises(DataUnavailable, match="expected at most 2999 bytes, found more"):
        fetch.fetch("weights")
    monkeypatch.setattr(fetch, "SOURCES", {"weights": replace(source, most_file_bytes=3000)})
    assert (fetch.fetch("weights") / "weights.pth").read_bytes() == bytes(3000)


def test_a_set_by_hand_is_found_and_never_downloaded(pets, monkeypatch, server, tmp_path):
    monkeypatch.setattr(fetch, "SOURCES", {"pets": replace(pets, by_hand="Write a letter.")})
    for ask in (fetch.find, fetch.fetch):
        with pytest.raises(DataUnavailable, match=r"pets: expected on this machine, .*\. Write a letter\.$"):
            ask("pets")
    (tmp_path / "cache/pets/pets/images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"3 problems: .*\. Write a letter\.$"):
        fetch.find("pets")
    for name, content in PICTURES.items():
        (tmp_path / "cache/pets/pets" / name).write_bytes(content)
    for name in LISTS:
        (tmp_path / "cache/pets" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cache/pets" / name).write_text("a")
    assert fetch.find("pets") == fetch.fetch("pets") == tmp_path / "cache/pets"
    assert fetch.describe("pets")["by_hand"] == "Write a letter."
    assert server.asked == []


# --- the real sources --------------------


def test_the_layouts_of_the_real_sets_are_found(tmp_path, monkeypatch):
    monkeypatch.delenv("KDLIB_DATA", raising=False)
    made = {
        "chest_xray": [f"{folder}/x.jpeg" for folder in chest_xray.FOLDERS],
        "cats_dogs": [f"{folder}/x.jpg" for folder in cats_dogs.FOLDERS],
        "oxford_pets": [f"oxford-iiit-pet/{name}" for name in ("images/x.jpg", *cats_dogs.OXFORD_LISTS)],
        "vgg16": [vgg16.TORCHVISION],
    }
    for name, paths in [*made.items(), ("vgg16", [vgg16.KERAS])]:
        for root in (f"{name} itself", f"{name} below/{name}"):
            for path in paths:
                (tmp_path / root / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / root / path).write_text("x")
            assert fetch.find(name, tmp_path / root.split("/")[0]) == tmp_path / root
    for name in made:
        assert fetch.verify(name, tmp_path / f"{name} itself") != []  # "x" is no picture


def test_the_real_sources_say_how_to_get_them():
    by_hand = {name for name in fetch.names() if fetch.SOURCES[name].by_hand}
    assert by_hand == {"chest_xray", "cats_dogs"}
    for name in by_hand:
        assert "--data DIR" in fetch.describe(name)["by_hand"]
        assert fetch.SOURCES[name].packed == ()
    pets, about = fetch.SOURCES["oxford_pets"], fetch.describe("oxford_pets")
    assert (about["files"], about["folders"], about["bytes"]) == (2, 1, pets.bytes)
    assert "folders" not in fetch.describe("vgg16")
    assert pets.bytes == sum(archive.file.size for archive in pets.packed)
    assert {file.name for file in pets.files()} == {name for archive in pets.packed for name in archive.holds}
    assert all(len(archive.file.sha256) == 64 for archive in pets.packed)
    assert fetch.SOURCES["vgg16"].most_file_bytes > fetch.SOURCES["vgg16"].bytes
