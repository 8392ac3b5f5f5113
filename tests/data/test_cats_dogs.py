"""Cats and dogs: both layouts with made files, torchvision's reader as oracle, and the real set if it is here."""

import numpy as np
import pytest
from PIL import Image

import kdlib.torchvision_operators  # noqa: F401 - before torchvision
from kdlib.data import DataError, cats_dogs
from kdlib.data.cats_dogs import oxford_pets, pictures
from kdlib.data.picture_files import Skipped


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cats_dogs, "SIDE", 8)


@pytest.fixture
def files(jpeg):
    names = [
        f"{part}/{kind}/{kind}.{number}.jpg"
        for part in ("training", "test")
        for kind in ("cat", "dog")
        for number in range(3)
    ]
    return {name: jpeg(at) for at, name in enumerate(names)}


def test_the_folder_says_part_and_class(write_files, files):
    folder = write_files(files)
    found = pictures(folder)
    assert [array.shape for array in found.pictures] == [(6, 3, 8, 8), (6,), (6, 3, 8, 8), (6,)]
    assert {array.dtype for array in found.pictures} == {np.dtype(np.uint8)}
    train_images, train_labels, test_images, test_labels = found.pictures
    assert train_labels.tolist() == test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    for images, part in ((train_images, "training"), (test_images, "test")):
        for image, name in zip(images, (name for name in files if name.startswith(part)), strict=True):
            with Image.open(folder / name) as picture:
                np.testing.assert_array_equal(image, np.asarray(picture).transpose(2, 0, 1))
    assert found.skipped == ()
    cats_dogs.check(folder)


def test_misnamed_files_and_copies_are_skipped(write_files, files, jpeg):
    first = pictures(write_files(files)).pictures
    more = {
        "test/cat/Dog.7.jpg": jpeg(70),
        "training/dog/\u72ac 1.jpg": jpeg(71),  # other names are good, also with spaces
        "training/cat/cat.9.jpg": files["test/cat/cat.1.jpg"],
        "training/dog/dog.8.jpg": jpeg(72),
        "test/cat/cat.8.jpg": jpeg(72),
    }
    folder = write_files(more)
    found = pictures(folder)
    different = "the same picture has different labels"
    assert found.skipped == (
        Skipped("test/cat/Dog.7.jpg", "misnamed: a name of a dog"),
        Skipped("test/cat/cat.8.jpg", different),
        Skipped("training/cat/cat.9.jpg", "a copy of test/cat/cat.1.jpg"),
        Skipped("training/dog/dog.8.jpg", different),
    )
    np.testing.assert_array_equal(found.pictures.test_images, first.test_images)
    assert found.pictures.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    with pytest.raises(DataError, match=r"skipped 3 of the files: test/cat/Dog\.7\.jpg \(misnamed.*labels"):
        cats_dogs.check(folder)


def test_missing_folders_and_classes_are_refused(write_files, files):
    with pytest.raises(DataError, match=r"training.dog: expected a folder of pictures, found none"):
        pictures(write_files({name: content for name, content in files.items() if "dog" not in name}, "no dogs"))
    folder = write_files({name: b"" if "test/dog" in name else content for name, content in files.items()})
    with pytest.raises(
        DataError, match=r"found 3 of cat, 0 of dog, and 3 skipped files: test/dog/dog\.0\.jpg \(empty\)"
    ):
        pictures(folder)


# --- Oxford-IIIT Pet --------------------

TRAINVAL = "Abyssinian_100 1 1 1\nAbyssinian_101 1 1 1\nsaint_bernard_1 29 2 19\nEgyptian_Mau_7 10 1 5\n"
TEST = "Abyssinian_2 1 1 1\nwheaten_terrier_9 36 2 25\n"


@pytest.fixture
def oxford(write_files, jpeg):
    def write(trainval=TRAINVAL, test=TEST, **images):
        names = [line.split()[0] for line in (TRAINVAL + TEST).splitlines()]
        made = {f"images/{name}.jpg": jpeg(at, 12) for at, name in enumerate(names)}
        lists = {"annotations/trainval.txt": trainval.encode(), "annotations/test.txt": test.encode()}
        every = {**made, **images, **lists}
        return write_files({f"oxford-iiit-pet/{name}": content for name, content in every.items()}, "pets")

    return write


def test_oxford_pets_are_those_of_torchvision(oxford):
    from torchvision.datasets import OxfordIIITPet

    folder = oxford()
    found = oxford_pets(folder)
    parts = {"trainval": found.pictures[:2], "test": found.pictures[2:]}
    for part, (images, labels) in parts.items():
        theirs = OxfordIIITPet(folder, part, target_types="binary-category")
        assert labels.tolist() == [label for _, label in theirs]
        for image, (picture, _) in zip(images, theirs, strict=True):
            small = picture.resize((8, 8), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, np.asarray(small).transpose(2, 0, 1))
    assert found.skipped == ()


def test_oxford_pets_that_are_no_jpeg_or_missing_are_skipped(oxford, jpeg):
    folder = oxford(**{"images/Egyptian_Mau_7.jpg": jpeg(50, mode="P", format="GIF")})
    (folder / "oxford-iiit-pet/images/Abyssinian_101.jpg").unlink()
    found = oxford_pets(folder)
    assert found.skipped == (
        Skipped("images/Abyssinian_101.jpg", "not readable (No such file or directory)"),
        Skipped("images/Egyptian_Mau_7.jpg", "not a whole JPEG picture"),
    )
    assert found.pictures.train_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "line", ["../../secret_1 1 1 1", "a/b_1 1 1 1", "Abyssinian_1 1 3 1", "Abyssinian_1 1 1", "", "<html>"]
)
def test_a_wrong_line_of_oxfords_lists_is_refused(oxford, line):
    with pytest.raises(DataError, match=r"test\.txt, line 3: expected `name breed 1 or 2 number`, found"):
        oxford_pets(oxford(test=f"{TEST}{line}\n"))


def test_missing_lists_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"trainval\.txt: expected a list of pictures, found"):
        oxford_pets(tmp_path)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_cats_and_dogs(real_folder_of, monkeypatch):
    monkeypatch.undo()
    folder = real_folder_of("cats_dogs")
    found = pictures(folder)
    assert found.pictures.train_images.shape[1:] == found.pictures.test_images.shape[1:] == (3, 96, 96)
    for part, labels in (("training", found.pictures.train_labels), ("test", found.pictures.test_labels)):
        skipped = [name.rsplit("/", 1)[0] for name, _ in found.skipped]
        for label, kind in enumerate(cats_dogs.CLASSES):
            files = len([path for path in (folder / part / kind).iterdir() if not path.name.startswith(".")])
            assert (labels == label).sum() == files - skipped.count(f"{part}/{kind}") > 0
    for row, path in enumerate(sorted((folder / "test/cat").glob("*.jpg"))[:20]):
        with Image.open(path) as picture:
            if picture.size == (96, 96) and not found.skipped:
                np.testing.assert_array_equal(found.pictures.test_images[row], np.asarray(picture).transpose(2, 0, 1))
