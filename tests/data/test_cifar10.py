"""CIFAR-10's binary files (small ones, written by hand) and the canonical order."""

import hashlib
import random

import numpy as np
import pytest

from kdlib.data import DataError, cifar10, fetch

PER_FILE = 20


def pictures_of(count, first):
    """Return `count` random pictures as (label, pixel bytes), with classes of equal size."""
    generator = random.Random(first)
    return [(k % 10, generator.randbytes(3072)) for k in range(count)]


def canonical(pictures):
    """Return images, then labels, sorted by the pixels' SHA-256, and the SHA-256 of both."""
    ordered = sorted(pictures, key=lambda picture: hashlib.sha256(picture[1]).hexdigest())
    pixels, labels = b"".join(pixels for _, pixels in ordered), bytes(label for label, _ in ordered)
    return pixels, labels, hashlib.sha256(pixels + labels).hexdigest()


def write(folder, train, test):
    folder.mkdir(parents=True, exist_ok=True)
    for name, start in zip(cifar10.TRAIN_FILES, range(0, 100, PER_FILE), strict=True):
        write_file(folder / name, train[start : start + PER_FILE])
    write_file(folder / "test_batch.bin", test)


def write_file(path, pictures):
    path.write_bytes(b"".join(bytes([label]) + pixels for label, pixels in pictures))


@pytest.fixture
def small(monkeypatch):
    """120 pictures in place of the published ones, 20 in each file."""
    train, test = pictures_of(100, 1), pictures_of(20, 2)
    monkeypatch.setattr(cifar10, "PICTURES_PER_FILE", PER_FILE)
    monkeypatch.setattr(cifar10, "FILE_BYTES", PER_FILE * 3073)
    monkeypatch.setattr(cifar10, "TRAIN_SHA256", canonical(train)[2])
    monkeypatch.setattr(cifar10, "TEST_SHA256", canonical(test)[2])
    return train, test


@pytest.mark.parametrize("inner", [cifar10.FOLDER, "."])
def test_any_order_of_rows_and_files_gives_the_same_arrays(tmp_path, small, inner):
    train, test = (list(part) for part in small)
    for seed in range(3):
        write(tmp_path / str(seed) / inner, train, test)
        found = cifar10.pictures(tmp_path / str(seed))
        assert [array.shape for array in found] == [(100, 3, 32, 32), (100,), (20, 3, 32, 32), (20,)]
        assert {array.dtype for array in found} == {np.dtype(np.uint8)}
        for part, images, labels in ((train, *found[:2]), (test, *found[2:])):
            assert (images.tobytes(), labels.tobytes()) == canonical(part)[:2]
        random.Random(seed).shuffle(train)
        random.Random(seed).shuffle(test)
    found.train_images[0] = 0  # arrays are writable; torch warns about others


def test_planes_are_red_green_blue_each_row_by_row(tmp_path, small, monkeypatch):
    """The layout is as described: 1,024 red bytes, then green, then blue, row by row, 32 in each row."""
    train, test = small
    pixels = bytes(
        100 * plane + 7 * (row == 2) + (column == 5) for plane in range(3) for row in range(32) for column in range(32)
    )
    test = [(test[0][0], pixels), *test[1:]]
    monkeypatch.setattr(cifar10, "TEST_SHA256", canonical(test)[2])
    write(tmp_path, train, test)
    images = cifar10.pictures(tmp_path).test_images
    (at,) = [k for k in range(20) if images[k].tobytes() == pixels]
    image = images[at]
    assert [image[0, 0, 0], image[1, 0, 0], image[2, 0, 0]] == [0, 100, 200]
    assert [image[1, 2, 0], image[1, 2, 5], image[1, 5, 2], image[1, 0, 5]] == [107, 108, 100, 101]


def test_equal_pictures_are_ordered_by_label():
    rows = np.zeros((3, 3073), np.uint8)
    rows[:, 0] = 2, 0, 1
    assert cifar10.canonical_order(rows) == [1, 2, 0]


def relabel(part, at, label):
    return [*part[:at], (label, part[at][1]), *part[at + 1 :]]


def test_a_label_above_nine_is_refused(tmp_path, small):
    train, test = small
    write(tmp_path, relabel(train, 45, 10), test)
    with pytest.raises(
        DataError, match=r"data_batch_3\.bin: expected labels from 0 to 9, found 10 in row 5.*kd data fetch"
    ):
        cifar10.pictures(tmp_path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_uneven_classes_are_refused(tmp_path, small, part):
    train, test = small
    write(tmp_path, *((relabel(train, 3, 4), test) if part == "train" else (train, relabel(test, 3, 4))))
    each = 10 if part == "train" else 2
    counts = rf"\[{each}, {each}, {each}, {each - 1}, {each + 1}, {each}, "
    with pytest.raises(DataError, match=rf"expected {each} pictures of each class .*found {counts}"):
        cifar10.pictures(tmp_path)


EDITS = {
    "two labels swapped": lambda train: relabel(relabel(train, 0, 1), 1, 0),
    "another pixel": lambda train: [(train[0][0], bytes([train[0][1][0] ^ 1]) + train[0][1][1:]), *train[1:]],
    "a picture twice": lambda train: [train[10], *train[1:]],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_other_pictures_are_refused(tmp_path, small, edit):
    train, test = small
    write(tmp_path, edit(train), test)
    with pytest.raises(
        DataError, match=r"expected the published pictures in data_batch_1\.bin, .*SHA-256 .*found .*Replace"
    ):
        cifar10.pictures(tmp_path)


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_a_file_of_another_length_is_refused(tmp_path, small, change):
    write(tmp_path, *small)
    content = (tmp_path / "test_batch.bin").read_bytes()
    (tmp_path / "test_batch.bin").write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(
        DataError, match=rf"test_batch\.bin: expected 61460 bytes \(20 pictures\), found {61460 + change}"
    ):
        cifar10.pictures(tmp_path)


def test_a_missing_file_is_named(tmp_path, small):
    write(tmp_path, *small)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin: expected a file, found none"):
        cifar10.pictures(tmp_path)


def test_the_published_sizes():
    assert cifar10.FILE_BYTES == 30_730_000
    assert len(cifar10.CLASSES) == 10


@pytest.mark.real_data
def test_the_real_pictures(real_folder_of):
    pictures = cifar10.pictures(real_folder_of("cifar10"))  # it checks their digest
    assert [array.shape for array in pictures] == [(50_000, 3, 32, 32), (50_000,), (10_000, 3, 32, 32), (10_000,)]
    # Means and deviations of the official files' red, green and blue bytes, as published by others.
    for images, means, deviations in (
        (
            pictures.train_images,
            [0.49139967861519607, 0.48215840839460783, 0.44653091444546567],
            [0.2470322324632819, 0.24348512800005573, 0.26158784172796434],
        ),
        (
            pictures.test_images,
            [0.4942142800245098, 0.4851313890165441, 0.4504090927542892],
            [0.24665251509498004, 0.24289226346005355, 0.26159237802202373],
        ),
    ):
        for channel in range(3):
            counts = np.bincount(images[:, channel].ravel(), minlength=256)
            values = np.arange(256) / 255
            mean = np.average(values, weights=counts)
            assert mean == pytest.approx(means[channel], abs=1e-13)
            assert np.sqrt(np.average((values - mean) ** 2, weights=counts)) == pytest.approx(
                deviations[channel], abs=1e-13
            )
    for images, labels, each in ((*pictures[:2], 5000), (*pictures[2:], 1000)):
        assert np.bincount(labels).tolist() == [each] * 10
        keys = [hashlib.sha256(image).digest() for image in images[:2000]]
        assert keys == sorted(keys)


@pytest.mark.real_data
def test_the_real_files_are_found_quickly_in_any_order(real_folder_of):
    folder = real_folder_of("cifar10")
    assert fetch.find("cifar10", folder) == folder
    assert fetch.find("cifar10", folder / cifar10.FOLDER if (folder / cifar10.FOLDER).is_dir() else folder)
