"""The synthetic digits and pictures: the form of the real ones; they repeat, and can be learned but not perfectly."""

import numpy as np
import pytest
import torch

from kdlib.batches import Batches, Examples
from kdlib.data import synthetic_pictures

MAKERS = {"digits": (synthetic_pictures.digits, (1, 28, 28)), "pictures": (synthetic_pictures.pictures, (3, 32, 32))}


@pytest.fixture(scope="module", params=MAKERS.values(), ids=MAKERS.keys())
def made(request):
    make, shape = request.param
    return make, shape, make(2000, 500, 0)


def test_form_is_that_of_the_real_sets(made):
    _, shape, pictures = made
    assert [array.shape for array in pictures] == [(2000, *shape), (2000,), (500, *shape), (500,)]
    assert {array.dtype for array in pictures} == {np.dtype(np.uint8)}
    assert np.bincount(pictures.train_labels).tolist() == [200] * 10
    assert np.bincount(pictures.test_labels).tolist() == [50] * 10
    assert (np.diff(pictures.train_labels[:100].astype(int)) != 0).mean() > 0.7  # classes are shuffled


def test_no_picture_is_a_copy_of_another(made):
    _, _, pictures = made
    everything = [image.tobytes() for images in (pictures.train_images, pictures.test_images) for image in images]
    assert len(set(everything)) == 2500


def test_two_calls_give_the_same_bits_and_two_seeds_do_not(made):
    make = made[0]
    first, again, other = (make(30, 10, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_count_that_is_no_multiple_of_the_classes_or_of_a_chunk_is_kept(made):
    make = made[0]
    pictures = make(synthetic_pictures.CHUNK + 7, 3, 0)
    assert [len(array) for array in pictures] == [synthetic_pictures.CHUNK + 7] * 2 + [3] * 2


def test_classes_can_be_learned_but_not_by_a_glance(made):
    neighbors = pytest.importorskip("sklearn.neighbors")
    _, _, pictures = made
    train, test = (images.reshape(len(images), -1) / 255 for images in (pictures.train_images, pictures.test_images))
    nearest = neighbors.KNeighborsClassifier(5).fit(train, pictures.train_labels)
    assert 0.6 < nearest.score(test, pictures.test_labels) < 0.95
    by_brightness = neighbors.KNeighborsClassifier(15).fit(train.mean(1, keepdims=True), pictures.train_labels)
    assert by_brightness.score(test.mean(1, keepdims=True), pictures.test_labels) < 0.4


def test_bytes_go_through_batches_as_they_are(made):
    _, _, pictures = made
    examples = Examples(torch.from_numpy(pictures.test_images), torch.from_numpy(pictures.test_labels).long(), "digest")
    seen = []
    for batch in Batches(examples, 64, seed=0)(0):
        assert batch.inputs.dtype == torch.uint8
        np.testing.assert_array_equal(batch.inputs.numpy(), pictures.test_images[batch.indices.numpy()])
        assert batch.labels.tolist() == pictures.test_labels[batch.indices.numpy()].tolist()
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(500))
