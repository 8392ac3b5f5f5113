"""Wrong arguments of splits and stand-ins, and files that cannot be read, are mistakes with a remedy."""

import numpy as np
import pytest
import torch

from kdlib.data import DataError, chest_xray, cifar10, kaggle, mitdb, physionet, synthetic, vgg16
from kdlib.data.chest_xray import Xrays
from kdlib.errors import KDError

LABELS = np.arange(60, dtype=np.uint8) % 3
XRAYS = Xrays(np.zeros((60, 1, 2, 2), np.uint8), LABELS, np.arange(60), ())


def draw(sizes=(5, 2, 2), generator=None, seen=None):
    return chest_xray.split(XRAYS, generator or torch.Generator().manual_seed(0), sizes, seen=seen)


def test_sizes_of_a_split_are_three_whole_numbers_from_zero():
    assert [len(part) for part in draw()] == [15, 6, 6]
    for sizes in ((-5, 10, 10), (10, 5, 5, 100), (10, 5), (1.5, 1, 1)):
        with pytest.raises(KDError, match="sizes"):
            draw(sizes)


def test_a_split_needs_a_generator_and_rows_that_are_there():
    with pytest.raises(KDError, match="generator: expected Generator"):
        chest_xray.split(XRAYS, None)
    for seen in ([999], [-1]):
        with pytest.raises(DataError, match="rows of `seen` from 0 to 59"):
            draw(seen=seen)
    assert [len(part) for part in draw(seen=np.array([]))] == [15, 6, 6]


@pytest.mark.parametrize("seed", [None, -1, 0.5])
def test_seeds_are_whole_numbers_from_zero(seed):
    for made in (lambda: mitdb.stratified_split(LABELS, seed), lambda: synthetic.heartbeats(50, seed)):
        with pytest.raises(KDError, match="seed: expected a whole number"):
            made()


def test_fractions_are_three_and_classes_one_for_each_row():
    for fractions in ((0.25,) * 4, (0.5, 0.5), (1.0,)):
        with pytest.raises(DataError, match="three fractions"):
            mitdb.stratified_split(LABELS, 0, fractions)
    with pytest.raises(DataError, match=r"classes \(N,\), found shape \(60, 3\)"):
        mitdb.stratified_split(np.eye(3)[LABELS], 0)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: physionet.read_bytes(path),
        lambda path: list(kaggle.checked_lines(path, {})),
        lambda path: cifar10.read_rows(path),
        lambda path: vgg16._read_torchvision(path),
    ],
    ids=["physionet", "kaggle", "cifar10", "vgg16"],
)
def test_a_file_that_cannot_be_read_just_now_is_named(read, tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    path.write_bytes(bytes(cifar10.FILE_BYTES))

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refused)
    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(KDError, match=r"file\.bin: cannot be read \(Permission denied\)"):
        read(path)
