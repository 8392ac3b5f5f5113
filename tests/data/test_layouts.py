"""Data sets in users' folders, as torchvision, Kaggle and the archives lay them out: taken unchanged, or told.

The small sets are those of the tests of their readers.
"""

import gzip
import os
import pickle
import shutil
import struct

import numpy as np
import pytest

from kdlib.data import DataError, cifar10, fetch, layouts, mnist
from kdlib.errors import KDError
from tests.data.test_cifar10 import PER_FILE, pictures_of
from tests.data.test_cifar10 import small as small_cifar10  # noqa: F401
from tests.data.test_cifar10 import write as write_cifar10
from tests.data.test_mnist import small as small_mnist  # noqa: F401


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    """An empty cache, no environment variables of kdlib, and no socket."""
    for name in ("KDLIB_DATA", "KDLIB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def same(found, expected):
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def dotted(name):
    return name.replace("-idx", ".idx")


# ---- MNIST

MNIST = {
    "usual": lambda name: f"mnist/MNIST/raw/{name}",
    "torchvision's root": lambda name: f"MNIST/raw/{name}",
    "the folder raw": lambda name: f"mnist/raw/{name}",
    "Kaggle's dots": lambda name: f"mnist/{dotted(name)}",
    "Kaggle's folders": lambda name: f"mnist/{name}/{name}",
    "Kaggle's folders below": lambda name: f"archive/{name}/{name}",
    "dots in raw": lambda name: f"MNIST/raw/{dotted(name)}",
    "a folder below": lambda name: f"downloads/digits/{name}",
    "torchvision's root below": lambda name: f"torch/datasets/MNIST/raw/{name}",
}


@pytest.mark.parametrize("layout", MNIST.values(), ids=MNIST.keys())
@pytest.mark.parametrize("packed", ["none", "all", "some"])
def test_layouts_of_mnist_give_the_same_digits(tmp_path, small_mnist, layout, packed):  # noqa: F811
    usual = mnist.digits(put(tmp_path / "usual", small_mnist))
    files = {layout(name): content for name, content in small_mnist.items()}
    zipped = {"none": [], "all": list(files), "some": list(files)[1:3]}[packed]
    for name in zipped:
        files[f"{name}.gz"] = gzip.compress(files.pop(name))
    folder = fetch.find("mnist", put(tmp_path / "mine", files))
    assert same(mnist.digits(folder), usual)
    assert fetch.verify("mnist", tmp_path / "mine") == []


def test_torchvisions_root_may_hold_fashion_too(tmp_path, small_mnist):  # noqa: F811
    usual = mnist.digits(put(tmp_path / "usual", small_mnist))
    put(tmp_path / "mine/FashionMNIST/raw", {name: content[:-1] + b"\1" for name, content in small_mnist.items()})
    folder = fetch.find("mnist", tmp_path / "mine")  # nothing else is there: reading it says what it is
    with pytest.raises(DataError, match="Fashion-MNIST has files of the same names"):
        mnist.digits(folder)
    put(tmp_path / "mine/MNIST/raw", small_mnist)
    assert same(mnist.digits(fetch.find("mnist", tmp_path / "mine")), usual)


def test_kaggles_folders_of_the_files_names_are_no_files(tmp_path, small_mnist):  # noqa: F811
    for name, content in small_mnist.items():
        put(tmp_path, {f"{name}/{name}": content, dotted(name): content})
    assert fetch.find("mnist", tmp_path) == tmp_path
    assert len(mnist.digits(tmp_path).train_images) == 7


def test_two_whole_copies_below_are_refused_and_one_next_to_a_part_is_taken(tmp_path, small_mnist):  # noqa: F811
    put(tmp_path / "a/part", dict(list(small_mnist.items())[:2]))
    put(tmp_path / "b/whole", small_mnist)
    assert fetch.find("mnist", tmp_path) == tmp_path / "b/whole"
    put(tmp_path / "c/whole", small_mnist)
    with pytest.raises(DataError, match=r"expected one folder with the data set mnist, found 2: .*b/whole, .*c/whole"):
        fetch.find("mnist", tmp_path)


def test_hidden_folders_links_in_a_circle_and_deep_folders_are_not_searched(tmp_path, small_mnist):  # noqa: F811
    put(tmp_path / ".hidden", small_mnist)
    put(tmp_path / "__MACOSX", small_mnist)
    put(tmp_path / "1/2/3/4/5", small_mnist)
    (tmp_path / "1/again").symlink_to(tmp_path)
    assert fetch.where("mnist", tmp_path) is None
    shutil.move(tmp_path / "1/2/3/4/5", tmp_path / "1/2/3/x")
    assert fetch.where("mnist", tmp_path) == ("--data", tmp_path / "1/2/3/x")
    (tmp_path / "link").symlink_to(tmp_path / "1/2/3/x")  # one folder by two ways is one
    assert fetch.find("mnist", tmp_path).samefile(tmp_path / "1/2/3/x")


# ---- CIFAR-10


def python_2_pickle(pictures, first_is_columns=False):
    """The bytes of a file of the published Python version, operation by operation, as Python 2's cPickle writes it."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    rows = np.array([np.frombuffer(pixels, np.uint8) for _, pixels in pictures])
    pixels = rows.tobytes("F" if first_is_columns else "C")
    shape = b"M" + struct.pack("<H", len(pictures)) + b"M" + struct.pack("<H", 3072) + b"\x86"
    return (
        b"\x80\x02}q\x01("
        + short(b"batch_label")
        + b"q\x02"
        + short(b"training batch 1 of 5")
        + b"q\x03"
        + short(b"labels")
        + b"q\x04]q\x05("
        + b"".join(b"K" + bytes([label]) for label, _ in pictures)
        + b"e"
        + short(b"data")
        + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85"
        + short(b"b")
        + b"\x87Rq\t(K\x01"
        + shape
        + b"cnumpy\ndtype\nq\n"
        + short(b"u1")
        + b"K\x00K\x01\x87Rq\x0b"
        + b"(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + (b"\x88" if first_is_columns else b"\x89")
        + b"T"
        + struct.pack("<i", len(pixels))
        + pixels
        + b"tb"
        + short(b"filenames")
        + b"q\x0c]q\r("
        + b"".join(short(b"a.png") for _ in pictures)
        + b"eu."
    )


WRITERS = {
    "row by row": python_2_pickle,
    "column by column": lambda pictures: python_2_pickle(pictures, first_is_columns=True),
}


def write_python(folder, train, test, content):
    parts = [(f"data_batch_{n + 1}", train[PER_FILE * n : PER_FILE * (n + 1)]) for n in range(5)]
    return put(folder, {name: content(part) for name, part in [*parts, ("test_batch", test)]})


@pytest.mark.parametrize("content", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("inner", ["cifar10/cifar-10-batches-py", "cifar-10-batches-py", "cifar10", "a/b"])
def test_the_python_version_gives_the_same_pictures(tmp_path, small_cifar10, content, inner):  # noqa: F811
    write_cifar10(tmp_path / "usual", *small_cifar10)
    write_python(tmp_path / "mine" / inner, *small_cifar10, content)
    folder = fetch.find("cifar10", tmp_path / "mine")
    assert same(cifar10.pictures(folder), cifar10.pictures(tmp_path / "usual"))
    assert fetch.verify("cifar10", tmp_path / "mine") == []


def test_the_reference_of_the_python_version_is_right():
    pictures = pictures_of(PER_FILE, 1)
    for columns in (False, True):
        found = pickle.loads(python_2_pickle(pictures, columns), encoding="bytes")
        assert found[b"labels"] == [label for label, _ in pictures]
        assert [row.tobytes() for row in found[b"data"]] == [pixels for _, pixels in pictures]


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


BAD = {
    "nothing is run": (lambda pictures: pickle.dumps(Hostile()), "found 0 labels and no pixels"),
    "no pickle": (lambda pictures: b"<html>", "expected a file of CIFAR-10's Python version, found"),
    "cut": (lambda pictures: python_2_pickle(pictures)[:5000], "expected a file of CIFAR-10's Python version, found"),
    "fewer labels": (lambda pictures: python_2_pickle(pictures).replace(b"(K\0K", b"(K", 1), "found 19 labels"),
    "too large": (lambda pictures: bytes(130_000), "expected at most 122920 bytes, found 130000"),
}


@pytest.mark.parametrize(("content", "problem"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_of_the_python_version_is_refused_by_name(
    tmp_path,
    small_cifar10,  # noqa: F811
    monkeypatch,
    content,
    problem,
):
    monkeypatch.chdir(tmp_path)
    write_python(tmp_path / "mine", *small_cifar10, python_2_pickle)
    (tmp_path / "mine/data_batch_1").write_bytes(content(small_cifar10[0][:PER_FILE]))
    with pytest.raises(DataError, match=rf"data_batch_1: .*{problem}"):
        cifar10.pictures(tmp_path / "mine")
    assert not (tmp_path / "hostile").exists()


# ---- the others, and what is not taken


def test_sets_of_folders_and_tables_are_found_below(tmp_path, write_files, jpeg):
    from kdlib.data import cats_dogs, chest_xray, kaggle

    xrays = {
        "train/NORMAL/IM-0001-0001.jpeg": jpeg(1, 300),
        "train/PNEUMONIA/person1_virus_1.jpeg": jpeg(2, 300),
        "test/NORMAL/IM-0002-0001.jpeg": jpeg(3, 300),
        "test/PNEUMONIA/person2_bacteria_2.jpeg": jpeg(4, 300),
    }
    usual = chest_xray.xrays(write_files(xrays, "usual/chest_xray"))
    write_files(xrays, "mine/chest_xray/chest_xray")
    write_files({f"._{name.split('/')[-1]}": b"x" for name in xrays}, "mine/chest_xray/__MACOSX/train/NORMAL")
    nested = chest_xray.xrays(fetch.find("chest_xray", tmp_path / "mine"))
    assert nested.digest == usual.digest
    write_files({name: b"0\n" for name in kaggle.FILES}, "mine/archive")
    assert fetch.find("mitdb", tmp_path / "mine") == tmp_path / "mine/archive"
    pets = {f"{name}/x.jpg": jpeg(5 + at) for at, name in enumerate(cats_dogs.FOLDERS)}
    write_files(pets, "mine/asirra/set")
    assert fetch.find("cats_dogs", tmp_path / "mine") == tmp_path / "mine/asirra/set"


def test_oxfords_archives_may_be_unpacked_without_torchvisions_folder(tmp_path, write_files, jpeg):
    from kdlib.data import cats_dogs

    files = {f"images/{name}_1.jpg": jpeg(at, 100) for at, name in enumerate(("Abyssinian", "beagle", "Bombay", "pug"))}
    files["annotations/trainval.txt"] = b"Abyssinian_1 1 1 1\nbeagle_1 2 2 1\n"
    files["annotations/test.txt"] = b"Bombay_1 1 1 1\npug_1 2 2 1\n"
    usual = cats_dogs.oxford_pets(write_files(files, "usual/oxford-iiit-pet").parent)
    write_files(files, "mine/oxford_pets")
    assert same(cats_dogs.oxford_pets(fetch.find("oxford_pets", tmp_path / "mine")).pictures, usual.pictures)


LACKING = {
    "archives": (
        "cifar10",
        ["cifar-10-python.tar.gz", "more/x.ZIP"],
        r"unpacks no archives of yours; if the set is in "
        r"cifar-10-python\.tar\.gz, more/x\.ZIP, unpack it there \(unzip, or tar -xf\)",
    ),
    "its own folder": ("mnist", ["mnist/digits.csv"], r"/mnist holds digits\.csv\. "),
    "other files": (
        "mitdb",
        ["b.txt", "a/c.txt"],
        r"Looked for 100\.atr and 143 more, or mitbih_train\.csv and "
        r"mitbih_test\.csv in .*/mine/mitdb, in .*/mine and in the folders below .*/mine holds a/, b\.txt\. ",
    ),
    "many files": ("mnist", [f"{n}.txt" for n in range(20)], r"holds 0\.txt, 1\.txt, .*, \.\.\. \(20 in all\)\. "),
    "nothing": ("mnist", [], "/mine is empty, or cannot be read. "),
    "by hand": ("cats_dogs", ["training_set/cats/1.jpg"], r"holds training_set/\. Put pictures into DIR/cats_dogs/"),
}


@pytest.mark.parametrize(("name", "files", "told"), LACKING.values(), ids=LACKING.keys())
@pytest.mark.parametrize("origin", ["--data", "KDLIB_DATA"])
def test_a_folder_without_the_set_is_an_error_that_says_what_is_there(tmp_path, monkeypatch, name, files, told, origin):
    (tmp_path / "mine").mkdir()
    put(tmp_path / "mine", dict.fromkeys(files, b"x"))
    if origin == "KDLIB_DATA":
        monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "mine"))
    with pytest.raises(DataError, match=rf"^{origin} .*/mine: expected the data set {name}, found none\. ") as found:
        fetch.find(name, tmp_path / "mine" if origin == "--data" else None)
    found.match(told)
    remedies = {"--data": "correct --data, or leave it out", "KDLIB_DATA": f"kd data fetch {name}"}
    assert (remedies[origin] in str(found.value)) == (name != "cats_dogs")
    assert type(found.value) is DataError  # not DataUnavailable: no synthetic data stand in for a mistake


def test_a_part_of_a_set_next_to_its_archive_is_told(tmp_path):
    put(tmp_path, {"cifar-10-batches-bin/test_batch.bin": b"x", "cifar-10-binary.tar.gz": b"x"})
    with pytest.raises(DataError, match=r"6 problems: .*\. kdlib unpacks no archives.* in cifar-10-binary\.tar\.gz"):
        fetch.find("cifar10", tmp_path)


def test_a_search_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "MOST_FOLDERS", 20)
    for number in range(50):
        (tmp_path / f"{number:02}").mkdir()
    put(tmp_path / "40", {"train-images-idx3-ubyte": b"x"})
    assert fetch.where("mnist", tmp_path) is None


def test_an_attempt_behind_a_firewall_that_drops_everything_is_short():
    limits = fetch.LIMITS  # a connection that is never answered takes connect_seconds
    assert limits.attempts * limits.connect_seconds + (limits.attempts - 1) * limits.pause_seconds < 20


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_an_empty_one(tmp_path):
    with pytest.raises(KDError, match=r"cannot be read .*File name too long"):  # so does a folder without permission
        layouts.is_there(tmp_path / ("x" * 300), "100.dat")


def test_an_archive_is_no_folder(tmp_path, monkeypatch):
    put(tmp_path, {"set.zip": b"x"})
    with pytest.raises(DataError, match=r"--data .*set\.zip: expected a folder, found a file \(unpack it, if"):
        fetch.find("mnist", tmp_path / "set.zip")
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "set.zip"))
    with pytest.raises(DataError, match=r"KDLIB_DATA=.*set\.zip: expected a folder, found a file \(unpack it, if"):
        fetch.find("mnist")


def test_a_folder_with_an_at_sign_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "me@work"))
    with pytest.raises(DataError, match=r"KDLIB_DATA=/.*/me@work: expected a folder, found none"):
        fetch.find("mnist")


def test_a_bad_file_is_named_as_it_is_there(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(bytes(100))
    found = [text for text in fetch.verify("mnist", tmp_path / "mnist") if "t10k-labels" in text]
    assert found == ["t10k-labels-idx1-ubyte: expected 10008 bytes, found 100"]
