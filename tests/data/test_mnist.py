"""MNIST's IDX files; the tests write small ones from the description of the format."""

import gzip
import hashlib
import tracemalloc

import numpy as np
import pytest

from kdlib.data import DataError, fetch, mnist, present

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def big_endian(number):
    return bytes([number >> 24 & 255, number >> 16 & 255, number >> 8 & 255, number & 255])


def idx(shape, values, kind=8):
    """Return an IDX file: two zero bytes, type, number of axes; the axes; then the values."""
    return bytes([0, 0, kind, len(shape)]) + b"".join(map(big_endian, shape)) + bytes(values)


def pixel(image, row, column):
    return (37 * image + 5 * row + 3 * column) % 256


@pytest.fixture
def small(monkeypatch):
    """The content of four small files (7 and 3 pictures of 5 x 4) in place of the published ones."""
    contents, files = {}, {}
    for part, count in (("train", 7), ("t10k", 3)):
        values = [pixel(image, row, column) for image in range(count) for row in range(5) for column in range(4)]
        contents[f"{part}-images-idx3-ubyte"] = idx((count, 5, 4), values)
        contents[f"{part}-labels-idx1-ubyte"] = idx((count,), [(3 * k) % 10 for k in range(count)])
        files[f"{part}-images-idx3-ubyte"] = (count, 5, 4)
        files[f"{part}-labels-idx1-ubyte"] = (count,)
    hashed = {name: (shape, hashlib.sha256(contents[name]).hexdigest()) for name, shape in files.items()}
    monkeypatch.setattr(mnist, "FILES", hashed)
    return contents


def write(folder, contents, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", ["MNIST/raw", "."])
def test_pictures_and_labels_are_read_in_order(tmp_path, small, inner, packed):
    write(tmp_path / inner, small, packed)
    digits = mnist.digits(tmp_path)
    assert [array.shape for array in digits] == [(7, 1, 5, 4), (7,), (3, 1, 5, 4), (3,)]
    assert {array.dtype for array in digits} == {np.dtype(np.uint8)}
    for image in range(7):
        assert digits.train_labels[image] == 3 * image % 10
        for row in range(5):
            assert digits.train_images[image, 0, row].tolist() == [pixel(image, row, column) for column in range(4)]
    assert digits.test_labels.tolist() == [0, 3, 6]
    digits.train_images[0] = 0  # arrays are writable; torch warns about others


def test_the_plain_file_is_read_before_a_gzipped_one(tmp_path, small):
    write(tmp_path / "MNIST/raw", small)
    (tmp_path / "MNIST/raw" / f"{IMAGES}.gz").write_bytes(b"nonsense")
    assert len(mnist.digits(tmp_path).train_images) == 7


GOOD = [pixel(image, row, column) for image in range(7) for row in range(5) for column in range(4)]
EDITS = {
    "other type": (IMAGES, idx((7, 5, 4), GOOD, kind=13), "begins with 00000803 .*found 00000d03"),
    "labels for images": (IMAGES, idx((7,), range(7)), "begins with 00000803 .*found 00000801"),
    "a web page": (LABELS, b"<html></html>", "begins with 00000801 .*found 3c68746d"),
    "empty": (IMAGES, b"", "begins with 00000803"),
    "other count": (IMAGES, idx((6, 5, 4), GOOD[:120]), r"axes of \(7, 5, 4\), found \(6, 5, 4\)"),
    "other width": (IMAGES, idx((7, 4, 5), GOOD), r"axes of \(7, 5, 4\), found \(7, 4, 5\)"),
    "cut in the header": (IMAGES, idx((7, 5, 4), GOOD)[:9], r"axes of \(7, 5, 4\), found \(7, 0, 0\)"),
    "a byte short": (IMAGES, idx((7, 5, 4), GOOD[:-1]), "156 bytes, found 155"),
    "a byte more": (IMAGES, idx((7, 5, 4), [*GOOD, 0]), "156 bytes, found more"),
    "label 10": (LABELS, idx((7,), [0, 3, 6, 9, 10, 5, 8]), "labels from 0 to 9, found 10 in row 4"),
    "other labels": (LABELS, idx((7,), [0, 3, 6, 9, 2, 5, 7]), "published file, SHA-256 .*found .*Fashion-MNIST"),
    "another pixel": (IMAGES, idx((7, 5, 4), [1, *GOOD[1:]]), "published file, SHA-256"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_another_file_is_refused_by_name(tmp_path, small, edit, packed):
    name, content, problem = edit
    write(tmp_path, {**small, name: content}, packed)
    with pytest.raises(DataError, match=rf"{name}(\.gz)?: expected .*{problem}.*kd data fetch mnist"):
        mnist.digits(tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda packed: packed[:-9], lambda packed: b"\x1f\x8b" + packed[9:], lambda packed: b"plain"]
)
def test_a_damaged_gzipped_file_is_refused(tmp_path, small, spoil):
    write(tmp_path, small, packed=True)
    (tmp_path / f"{LABELS}.gz").write_bytes(spoil(gzip.compress(small[LABELS])))
    with pytest.raises(DataError, match=rf"{LABELS}\.gz: expected a readable file, found"):
        mnist.digits(tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path, small):
    write(tmp_path, small, packed=True)
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(small[LABELS] + bytes(50_000_000), 1))
    tracemalloc.start()
    with pytest.raises(DataError, match="expected 15 bytes, found more"):
        mnist.digits(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path, small):
    write(tmp_path / "MNIST/raw", {name: content for name, content in small.items() if name != LABELS})
    with pytest.raises(DataError, match=rf"MNIST/raw/{LABELS}: expected a file \(or {LABELS}\.gz.*found none"):
        mnist.digits(tmp_path)


@pytest.mark.real_data
def test_the_real_digits(real_folder_of, monkeypatch):
    folder = real_folder_of("mnist")
    digits = mnist.digits(folder)
    assert [array.shape for array in digits] == [(60_000, 1, 28, 28), (60_000,), (10_000, 1, 28, 28), (10_000,)]
    # The mean 0.1307 and the deviation 0.3081 are in common use to normalise the pictures.
    assert digits.train_images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert digits.train_images.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert digits.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert digits.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert fetch.verify("mnist", folder) == []
    monkeypatch.setattr(present, "hashlib", None)  # finding the set computes no hash
    assert fetch.find("mnist", folder) == folder
