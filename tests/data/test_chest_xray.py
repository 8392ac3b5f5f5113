"""Chest x-rays: made files with the real forms of names, the split, and the real set if it is here."""

import collections
import hashlib

import numpy as np
import pytest
from PIL import Image

from kdlib.data import DataError, chest_xray
from kdlib.data.chest_xray import Xrays, split, xrays
from kdlib.seeds import generator

# Each form of a name that the set has: (class, person).
NAMES = {
    "train/NORMAL/IM-0115-0001.jpeg": (0, "IM-0115"),
    "train/NORMAL/IM-0011-0001-0002.jpeg": (0, "IM-0011"),
    "test/NORMAL/IM-0011-0001.jpeg": (0, "IM-0011"),
    "test/NORMAL/NORMAL2-IM-0011-0001.jpeg": (0, "NORMAL2-IM-0011"),
    "train/PNEUMONIA/person1_bacteria_1.jpeg": (1, "person1"),
    "test/PNEUMONIA/person1_virus_6.jpeg": (2, "person1"),
    "train/PNEUMONIA/person10_bacteria_43.jpeg": (1, "person10"),
    "train/PNEUMONIA/person447_virus_921_1.jpeg": (2, "person447"),
    "train/PNEUMONIA/person447_virus_921.jpeg": (2, "person447"),
}
IN_ORDER = sorted(NAMES, key=lambda name: name.rsplit("/", 1)[1])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(chest_xray, "SIDE", 8)


@pytest.fixture
def files(jpeg):
    return {name: jpeg(at) for at, name in enumerate(NAMES)}


def test_class_and_person_are_in_the_name(write_files, files):
    found = xrays(write_files(files))
    assert (found.images.shape, found.images.dtype) == ((len(NAMES), 1, 8, 8), np.uint8)
    assert found.labels.tolist() == [NAMES[name][0] for name in IN_ORDER]
    expected = [NAMES[name][1] for name in IN_ORDER]
    for persons in (found.persons.tolist(), [sorted(set(expected)).index(person) for person in expected]):
        together = {(a, b) for a in range(len(NAMES)) for b in range(len(NAMES)) if persons[a] == persons[b]}
        assert together == {(a, b) for a in range(len(NAMES)) for b in range(len(NAMES)) if expected[a] == expected[b]}
    assert (found.labels.dtype, found.persons.dtype, found.skipped) == (np.uint8, np.int64, ())


def test_misnamed_files_are_named_and_hidden_files_are_not_looked_at(write_files, files, jpeg):
    wrong = [
        "test/NORMAL/person1_virus_7.jpeg",
        "test/NORMAL/IM-0001.jpeg",
        "test/PNEUMONIA/IM-0001-0001.jpeg",
        "test/PNEUMONIA/person1_fungus_2.jpeg",
        "test/PNEUMONIA/person1_virus_8 (copy).jpeg",
        "test/PNEUMONIA/person\u0661_virus_9.jpeg",  # an Arabic digit
        "train/NORMAL/p\u00e9.jpeg",
    ]
    folder = write_files({**files, **{name: jpeg(99) for name in wrong}, "train/NORMAL/.DS_Store": b"x"})
    found = xrays(folder)
    assert sorted(name for name, _ in found.skipped) == sorted(wrong)
    assert {reason for _, reason in found.skipped} == {"misnamed: the name does not say class and person"}
    assert len(found.labels) == len(NAMES)
    with pytest.raises(DataError, match="skipped 7 of the files: train/NORMAL/p"):
        chest_xray.check(folder)


def test_the_folder_of_a_picture_does_not_matter_and_its_name_does(write_files, files, jpeg):
    """A copy of the set has some of the training pictures in a folder val."""
    first = xrays(write_files(files, "first"))
    moved = dict(files)
    moved["val/PNEUMONIA/person1_bacteria_1.jpeg"] = moved.pop("train/PNEUMONIA/person1_bacteria_1.jpeg")
    folder = write_files(moved, "moved set")
    chest_xray.check(folder)
    assert xrays(folder).digest == first.digest
    renamed = dict(files)
    renamed["train/PNEUMONIA/person1_virus_1.jpeg"] = renamed.pop("train/PNEUMONIA/person1_bacteria_1.jpeg")
    assert xrays(write_files(renamed, "renamed")).digest != first.digest
    other = {**files, "train/NORMAL/IM-0115-0001.jpeg": jpeg(77)}
    assert xrays(write_files(other, "other")).digest != first.digest


def test_missing_folders_and_classes_are_refused(write_files, files, jpeg):
    train = {name: content for name, content in files.items() if name.startswith("train")}
    with pytest.raises(DataError, match=r"test.NORMAL: expected a folder of x-rays, found none"):
        xrays(write_files(train, "train only"))
    no_virus = {name: content if "virus" not in name else b"" for name, content in files.items()}
    with pytest.raises(DataError, match=r"found 4 of normal, 2 of bacteria, 0 of virus, and 3 skipped files: .*empty"):
        xrays(write_files(no_virus, "no virus"))


# --- the split --------------------


def made(per_class=60, largest=4):
    """X-rays without pixels: persons have 1 to `largest` pictures; some have bacteria and virus."""
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), per_class).astype(np.uint8)
    persons = np.repeat(np.arange(3 * per_class), draw.integers(1, largest + 1, 3 * per_class))[: 3 * per_class]
    return Xrays(np.empty((3 * per_class, 1, 0, 0), np.uint8), labels, persons.astype(np.int64))


@pytest.mark.parametrize("by_person", [False, True])
def test_a_split_has_its_sizes_and_repeats_and_other_seeds_give_others(by_person):
    pictures = made()
    draw = lambda seed: split(pictures, generator(seed, "split"), (20, 5, 3), by_person)  # noqa: E731
    parts = draw(0)
    for part, count in zip(parts, (20, 5, 3), strict=True):
        assert np.bincount(pictures.labels[part]).tolist() == [count] * 3
        assert (np.diff(part) > 0).all()
        assert part.dtype == np.int64
    assert len(set(np.concatenate(parts).tolist())) == 84
    assert all(np.array_equal(a, b) for a, b in zip(parts, draw(0), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(parts, draw(1), strict=True))


@pytest.mark.parametrize("by_person", [False, True])
def test_no_person_is_on_two_sides_of_the_split_by_person(by_person):
    pictures, shared = made(), 0
    for seed in range(20):
        sides = [
            set(pictures.persons[part].tolist())
            for part in split(pictures, generator(seed, "x"), (20, 9, 9), by_person)
        ]
        shared += sum(len(a & b) for at, a in enumerate(sides) for b in sides[at + 1 :])
    assert (shared == 0) == by_person


@pytest.mark.parametrize("by_person", [False, True])
def test_what_a_teacher_has_seen_is_never_tested(by_person):
    pictures = made()
    teacher = split(pictures, generator(0, "teacher"), (20, 5, 5), by_person)
    in_training = 0
    for seed in range(20):
        student = split(pictures, generator(seed, "student"), (20, 5, 5), by_person, seen=teacher.train)
        tested = np.concatenate(student[1:])
        assert not np.isin(tested, teacher.train).any()
        assert not by_person or not np.isin(pictures.persons[tested], pictures.persons[teacher.train]).any()
        in_training += np.isin(student.train, teacher.train).sum()
    assert in_training > 0


def test_every_picture_of_a_class_is_drawn_as_often_as_the_others():
    pictures, seeds = made(12, 1), 600
    drawn = np.zeros((3, 36))
    for seed in range(seeds):
        for part, rows in enumerate(split(pictures, generator(seed, "x"), (6, 3, 2))):
            drawn[part, rows] += 1
    for part, count in enumerate((6, 3, 2)):
        share = count / 12
        assert np.abs(drawn[part] / seeds - share).max() < 5 * np.sqrt(share * (1 - share) / seeds)


def test_too_few_pictures_are_refused():
    pictures = made(10, 1)
    split(pictures, generator(0, "x"), (8, 1, 1))
    with pytest.raises(DataError, match="expected 9 normal pictures for training, found 8 that may be drawn"):
        split(pictures, generator(0, "x"), (9, 1, 1))
    with pytest.raises(DataError, match="expected 2 bacteria pictures for validation, found 1 that may be drawn"):
        split(pictures, generator(0, "x"), (1, 2, 2), seen=np.arange(10, 17))


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_xrays(real_folder_of, monkeypatch):
    monkeypatch.undo()
    folder = real_folder_of("chest_xray")
    found = xrays(folder)
    assert found.images.shape[1:] == (1, 224, 224)
    names = {path.name: path for path in folder.glob("*/*/*.jpeg") if not path.name.startswith(".")}
    kinds = ["bacteria" if "bacteria" in name else "virus" if "virus" in name else "normal" for name in names]
    skipped = {name.rsplit("/", 1)[1] for name, _ in found.skipped}
    assert len(found.labels) + len(skipped) == len(names) >= 5840
    kept = [kind for name, kind in zip(names, kinds, strict=True) if name not in skipped]
    assert dict(zip(chest_xray.CLASSES, np.bincount(found.labels), strict=True)) == collections.Counter(kept)
    assert all(reason.startswith("a copy of ") for _, reason in found.skipped)
    copies = collections.Counter(hashlib.sha256(path.read_bytes()).digest() for path in names.values())
    assert len(skipped) >= len(names) - len(copies) > 0
    ordered = [names[name] for name in sorted(names) if name not in skipped]
    for row in range(0, len(ordered), 500):
        with Image.open(ordered[row]) as picture:
            if picture.size == (224, 224):
                np.testing.assert_array_equal(found.images[row, 0], np.asarray(picture.convert("L")))
        person = ordered[row].name.split("_")[0] if "person" in ordered[row].name else None
        if person:  # by a slower way: all rows of the same person, and no others
            same = [path.name.startswith(f"{person}_") for path in ordered]
            np.testing.assert_array_equal(found.persons == found.persons[row], same)
    for by_person in (False, True):
        parts = split(found, generator(0, "split"), by_person=by_person)
        assert [np.bincount(found.labels[part]).tolist() for part in parts] == [[800] * 3, [100] * 3, [100] * 3]
