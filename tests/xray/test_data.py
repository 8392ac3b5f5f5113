"""Which pictures are for training, validation and test: nothing that was trained on or chosen with is tested."""

import numpy as np
import pytest
import torch

from kdlib.data import chest_xray
from kdlib.data.synthetic_photographs import xrays
from kdlib.errors import KDError
from kdlib.seeds import generator
from replications.xray import data as xray_data
from replications.xray import experiment as xray

CONFIG = xray.SMOKE


@pytest.fixture(scope="module")
def data():
    return xray.load_data(CONFIG, {})


@pytest.fixture(scope="module")
def pictures():
    return xrays(xray_data.SYNTHETIC, seed=0)


def numbers_of(images, pictures):
    """The numbers of some images in the whole set, found by their bytes."""
    known = {bytes(image): number for number, image in enumerate(pictures.images)}
    return [known[bytes(image.numpy())] for image in images]


def test_training_and_other_pictures_are_the_whole_set(data, pictures):
    others = numbers_of(data.others.inputs, pictures)
    split = chest_xray.split(pictures, generator(0, "teacher split"), xray_data.SYNTHETIC_SIZES)
    assert sorted([*others, *split.train.tolist()]) == list(range(len(pictures.labels)))
    assert data.others.labels.tolist() == pictures.labels[others].tolist()
    assert data.persons.tolist() == pictures.persons[others].tolist()
    assert sorted(np.array(others)[data.teacher_validation]) == split.validation.tolist()
    assert data.train.labels[:: data.views].tolist() == pictures.labels[split.train].tolist()
    assert len(data.train.inputs) == 2 * len(split.train)
    assert torch.equal(data.train.inputs[2:4], xray_data.bank_of(
        torch.from_numpy(pictures.images[split.train[1:2]]), [int(split.train[1])], 2))  # fmt: skip


def test_no_seed_tests_what_a_training_or_a_selection_has_seen(data, pictures):
    others = np.array(numbers_of(data.others.inputs, pictures))
    split = chest_xray.split(pictures, generator(0, "teacher split"), xray_data.SYNTHETIC_SIZES)
    drawn = set()
    for seed in range(30):
        parts = data.parts(seed)
        validation, test, unseen, strangers = (set(others[rows.numpy()].tolist()) for rows in parts)
        assert not (validation | test | unseen) & set(split.train.tolist())
        assert not (validation | test | unseen) & set(split.validation.tolist())
        assert not validation & unseen
        assert test < unseen
        assert unseen | validation == set(others.tolist()) - set(split.validation.tolist())
        for part in (validation, test):
            assert np.bincount(pictures.labels[list(part)]).tolist() == [3, 3, 3]
        seen = [*split.train, *split.validation, *validation]
        assert strangers == {row for row in unseen if pictures.persons[row] not in pictures.persons[seen]}
        assert 0 < len(strangers) < len(unseen)
        drawn.add(frozenset(test))
    assert len(drawn) == 30


def test_a_seeds_parts_are_the_same_each_time(data):
    assert all(torch.equal(a, b) for a, b in zip(data.parts(4), data.parts(4), strict=True))


def test_other_views_are_other_data(data):
    other = xray.load_data(xray.replace(CONFIG, views=1), {})
    assert other.digest != data.digest
    assert other.train.view != data.train.view


def test_the_digest_names_the_weights(data):
    first, second = (xray_data.digest_with(data.whole, name) for name in ("a", "b"))
    assert len({first, second, data.whole}) == 3
    assert len(first) == len(data.whole)
    assert data.digest == data.whole  # a teacher of synthetic pictures begins with none


def test_a_full_teacher_without_weights_is_refused_before_it_is_trained(tmp_path, monkeypatch, pictures):
    monkeypatch.setattr(chest_xray, "xrays", lambda folder: pictures)
    monkeypatch.setattr(chest_xray, "SIZES", xray_data.SYNTHETIC_SIZES)
    folders = {"chest_xray": tmp_path}
    with pytest.raises(KDError, match=r"expected VGG16's weights .* found none; `kd data fetch vgg16` downloads"):
        xray.load_data(CONFIG, folders)
    scratch = xray.load_data(xray.replace(CONFIG, teacher_start="scratch"), folders)
    taught = xray.load_data(xray.replace(CONFIG, recorded_teacher="some run"), folders)
    assert scratch.digest == scratch.whole == taught.digest
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]  # the bank is made once
