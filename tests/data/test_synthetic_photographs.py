"""Synthetic x-rays, cats and dogs: the form of the real ones; they repeat, and can be learned but not at a glance."""

import numpy as np
import pytest

from kdlib.data import chest_xray, synthetic_photographs
from kdlib.seeds import generator


def xrays(train, test, seed):
    """Synthetic x-rays in two parts, like the pets."""
    made = synthetic_photographs.xrays(train + test, seed)
    return made.images[:train], made.labels[:train], made.images[train:], made.labels[train:]


MAKERS = {"xrays": (xrays, (1, 224, 224), 3), "pets": (synthetic_photographs.pets, (3, 96, 96), 2)}


@pytest.fixture(scope="module", params=MAKERS.values(), ids=MAKERS.keys())
def made(request):
    make, shape, classes = request.param
    return make, shape, classes, make(240, 90, 0)


def test_form_is_that_of_the_real_sets(made):
    _, shape, classes, pictures = made
    assert [array.shape for array in pictures] == [(240, *shape), (240,), (90, *shape), (90,)]
    assert {array.dtype for array in pictures} == {np.dtype(np.uint8)}
    assert np.bincount(pictures[1]).tolist() == [240 // classes] * classes
    assert np.bincount(pictures[3]).tolist() == [90 // classes] * classes


def test_no_picture_is_a_copy_of_another(made):
    pictures = made[-1]
    assert len({image.tobytes() for images in (pictures[0], pictures[2]) for image in images}) == 330


def test_two_calls_give_the_same_bits_and_two_seeds_do_not(made):
    make = made[0]
    first, again, other = (make(7, 4, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def edges(images):
    """The differences of neighbours in a coarse picture: where the ears are."""
    count, _, side, _ = images.shape
    coarse = images.mean(1).reshape(count, 16, side // 16, 16, side // 16).mean((2, 4))
    across, down = np.abs(np.diff(coarse, axis=2)), np.abs(np.diff(coarse, axis=1))
    return np.concatenate([across.reshape(count, -1), down.reshape(count, -1)], 1)


def peaks(images):
    """The highest peaks of a coarse picture, wherever they are: how many spots there are, and how bright."""
    coarse = images[:, 0].reshape(len(images), 28, 8, 28, 8).mean((2, 4))
    around = coarse[:, :-2, 1:-1] + coarse[:, 2:, 1:-1] + coarse[:, 1:-1, :-2] + coarse[:, 1:-1, 2:]
    return np.sort((coarse[:, 1:-1, 1:-1] - around / 4).reshape(len(images), -1), 1)[:, -60:]


def test_classes_can_be_learned_but_not_by_their_brightness(made):
    neighbors = pytest.importorskip("sklearn.neighbors")
    make, shape, classes, pictures = made
    features = edges if shape[0] == 3 else peaks
    train, labels, test, test_labels = make(600, 200, 1) if shape[0] == 3 else pictures
    nearest = neighbors.KNeighborsClassifier(5).fit(features(train), labels)
    assert nearest.score(features(test), test_labels) > 1.3 / classes
    glance = neighbors.KNeighborsClassifier(15).fit(train.mean((1, 2, 3))[:, None], labels)
    assert glance.score(test.mean((1, 2, 3))[:, None], test_labels) < 1.25 / classes


def test_synthetic_persons_have_one_class_and_can_be_split():
    pictures = synthetic_photographs.xrays(32, 0)
    assert all(len(set(pictures.labels[pictures.persons == person])) == 1 for person in pictures.persons)
    assert np.bincount(pictures.persons).tolist() == [2] * 15 + [1, 1]
    parts = chest_xray.split(pictures, generator(0, "split"), (4, 2, 2), by_person=True)
    assert [len(part) for part in parts] == [12, 6, 6]
    assert synthetic_photographs.xrays(0, 0).images.shape == (0, 1, 224, 224)
