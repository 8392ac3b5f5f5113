"""Files: whole or absent; every change of a stored tensor or note is detected."""

import ast
import hashlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import kdlib
from kdlib.errors import KDError
from kdlib.files import (
    DamagedFile,
    array_digest,
    atomic_write,
    canonical_json,
    load_tensors,
    read_json,
    save_tensors,
    set_aside,
    sha256,
    tensor_digest,
)

TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "count": torch.tensor(7),
    "half": torch.tensor([1.5]).half(),
    "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}
NOTES = {"history": [{"loss": 0.5123}, {"loss": 0.25}], "label": "ä"}


def test_sha256_of_nothing():
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4 example


def test_canonical_json_knows_no_order_of_keys_and_no_infinity():
    assert canonical_json({"b": [1, 2.5], "a": {"d": None, "c": "ä"}}) == '{"a":{"c":"\\u00e4","d":null},"b":[1,2.5]}'
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json([value])


def test_json_is_read_without_numbers_that_are_not_finite():
    for text in ('{"a": [1, -2.5e3, "NaN", null, true]}', b'{"a": [1, -2.5e3, "NaN", null, true]}'):
        assert read_json(text) == {"a": [1, -2500.0, "NaN", None, True]}
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999"):
        with pytest.raises(ValueError, match=r"malformed|out of range"):
            read_json('{"a": [' + number + "]}")
    with pytest.raises(ValueError, match="truncated"):
        read_json("")
    for text in ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"', b'"\xff"', "[1] 2", "01"):
        with pytest.raises(ValueError, match=r"."):
            read_json(text)


def test_json_is_read_to_the_same_numbers_as_by_the_standard_library():
    draws = np.random.default_rng(0)
    bits = draws.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    texts = [repr(float(number)) for number in bits[np.isfinite(bits)]]
    texts += [
        f"{int(a)}.{int(b)}e{int(c)}" for a, b, c in draws.integers((0, 0, -340), (2**60, 2**60, 280), (20_000, 3))
    ]
    texts += ["-0", "0", "-0.0", "1E5", "1e-400", "5e-324", str(2**64), str(-(2**80)), "1" + "0" * 300]
    text = f"[{','.join(texts)}]"
    expected, found = json.loads(text), read_json(text)
    assert [(type(n), repr(n)) for n in found] == [(type(n), repr(n)) for n in expected]


def test_atomic_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file"
    atomic_write(path, b"long old content")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no rights of groups")
@pytest.mark.parametrize(
    ("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o666), (0o777, 0o600)]
)
def test_a_file_has_the_rights_that_the_umask_leaves_and_its_owner_always_has_some(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "file", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["x" * 300, "file/below"])
def test_a_name_that_cannot_be_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(KDError, match=re.escape(name)):
        atomic_write(tmp_path / name, b"")


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, name):
    def fail(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    atomic_write(path, b"old")
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(KDError, match=r"disk is full .*free some space.*same command again"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "words"), [(30, "may not be written"), (13, "permissions"), (5, "could not be written")]
)
def test_a_write_that_fails_says_why(tmp_path, monkeypatch, number, words):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KDError, match=words) as caught:
        atomic_write(tmp_path / "file", b"new")
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("number", [1, 13, 16])
def test_a_rename_that_is_refused_for_a_moment_is_tried_again(tmp_path, monkeypatch, number):
    """A virus scanner has the new file open; Windows then refuses."""
    rename, refusals = os.replace, []

    def scanned(source, target):
        if len(refusals) < 2:
            refusals.append(target)
            raise OSError(number, os.strerror(number))
        rename(source, target)

    monkeypatch.setattr(os, "replace", scanned)
    atomic_write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(refusals) == 2
    refusals.clear()
    assert set_aside(tmp_path / "file").read_bytes() == b"new"
    assert len(refusals) == 2


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(KDError, match="could not be written"):
        atomic_write(tmp_path / "store" / "runs" / "file", b"new")


def test_tensors_and_notes_come_back(tmp_path):
    save_tensors(tmp_path / "file", TENSORS, NOTES)
    tensors, notes = load_tensors(tmp_path / "file")
    assert notes == NOTES
    assert sorted(tensors) == sorted(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


def test_bytes_depend_on_content_only(tmp_path):
    shared = TENSORS["weights"]
    save_tensors(tmp_path / "a", {**TENSORS, "again": shared}, NOTES)
    turned = {name: value.clone() for name, value in reversed(TENSORS.items())}
    turned["again"] = shared.T.contiguous().T  # other strides
    save_tensors(tmp_path / "b", turned, {key: NOTES[key] for key in reversed(NOTES)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensor_digest_sees_names_types_shapes_and_values():
    base = torch.zeros(2, 3)
    variants = [
        {"a": base},
        {"b": base},
        {"a": base.double()},
        {"a": base.reshape(3, 2)},
        {"a": base + 1e-45},
        {"a": base.int()},
        {"a": base, "b": base},
        {"a": -base},
    ]
    assert len({tensor_digest(variant) for variant in variants}) == len(variants)


def test_array_digest_is_sha256_over_type_shape_and_bytes():
    array = np.array([[1, 2], [3, 4]], dtype="<i2")
    by_hand = hashlib.sha256(b"int16|(2, 2)|" + bytes([1, 0, 2, 0, 3, 0, 4, 0])).hexdigest()[:16]
    assert array_digest(array) == by_hand
    assert array_digest(np.asfortranarray(array)) == by_hand
    others = {
        array_digest(*arrays) for arrays in [(array, array), (array.T,), (array.astype("<i4"),), (array.reshape(4),)]
    }
    assert len({by_hand, *others}) == 5


def test_array_digest_of_a_tensor_is_that_of_its_numbers():
    numbers = np.arange(12).reshape(3, 4)
    for kind in ("<f4", "<f8", "<i8", "u1", "?", "<c8"):
        array = numbers.astype(kind)
        assert array_digest(torch.from_numpy(array)) == array_digest(array)
        assert array_digest(torch.from_numpy(array).t()) == array_digest(array.T)
    tensor = torch.from_numpy(numbers).float()
    assert array_digest(tensor.clone().requires_grad_()) == array_digest(tensor)
    half = [tensor.to(kind) for kind in (torch.bfloat16, torch.float16, torch.int16)]
    bits = half[0].view(torch.int16).numpy().tobytes()
    by_hand = hashlib.sha256(b"bfloat16|(3, 4)|" + bits).hexdigest()[:16]
    assert array_digest(half[0]) == by_hand
    assert len({array_digest(value) for value in (tensor, *half)}) == 4
    assert array_digest(tensor, half[0]) != array_digest(half[0], tensor)


@pytest.mark.parametrize("other", [[1, 2], np.array([{}]), 3.0, np.array([None, 1])], ids=str)
def test_array_digest_refuses_what_has_no_bytes_of_its_own(other):
    with pytest.raises(KDError, match="expected arrays or tensors of numbers, found"):
        array_digest(other)


def test_a_panic_of_safetensors_is_short_memory_and_no_damage(tmp_path, monkeypatch):
    class PanicException(BaseException):  # as the real one: no `except Exception` takes it
        pass

    def panics(content, *others):
        raise PanicException("PyObject pointer is null")

    save_tensors(tmp_path / "file", {"weights": torch.ones(2)})
    monkeypatch.setattr("safetensors.torch.load", panics)
    with pytest.raises(
        KDError, match=r"file: cannot be read \(PyObject pointer is null\)\. Nothing was changed"
    ) as found:
        load_tensors(tmp_path / "file")
    assert not isinstance(found.value, DamagedFile)
    before = (tmp_path / "file").read_bytes()
    monkeypatch.setattr("safetensors.torch.save", panics)
    with pytest.raises(MemoryError, match="PyObject pointer is null"):
        save_tensors(tmp_path / "file", {"weights": torch.zeros(2)})
    assert (tmp_path / "file").read_bytes() == before


def test_array_digest_refuses_a_mask():
    with pytest.raises(KDError, match=r"found a masked array; use array\.filled"):
        array_digest(np.ma.masked_equal(np.arange(3), 1))  # its bytes are the same with any mask


def test_every_flipped_byte_is_seen(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, {"weights": torch.arange(3.0)}, NOTES)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])  # a digit becomes another
        with pytest.raises(DamagedFile, match="expected"):
            load_tensors(path)


def test_every_cut_is_seen(tmp_path):
    path = tmp_path / "file"
    save_tensors(path, TENSORS, NOTES)
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 5), len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile, match=str(path)):
            load_tensors(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"other": "x"},
        {"kdlib": "["},
        {"kdlib": "[]"},
        {"kdlib": "{}"},
        {"kdlib": "1"},
        {"kdlib": json.dumps({"digest": 7, "notes": None})},
    ],
)
def test_files_of_others_are_refused(tmp_path, metadata):
    (tmp_path / "file").write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata))
    with pytest.raises(DamagedFile, match="expected"):
        load_tensors(tmp_path / "file")


def test_a_folder_or_nothing_in_place_of_a_file(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DamagedFile, match="expected a file, found none"):
            load_tensors(path)


@pytest.mark.slow
def test_kdlib_reads_no_pickle_but_machine_code_that_it_keeps():
    """No other file imports a module that unpickles, or calls a function that unpickles under another name."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    calls = {
        "torch.load",
        "np.load",
        "numpy.load",
        "pd.read_pickle",
        "pandas.read_pickle",
        "torch.hub.load",
        "eval",
        "exec",
    }
    folder = Path(kdlib.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                allowed = {"pickle"} if path == folder / "compiled.py" else set()
                assert not (modules - allowed) & {alias.name.partition(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in modules, path
                assert not (node.module in ("torch", "numpy") and "load" in {alias.name for alias in node.names}), path
            elif isinstance(node, ast.Call):
                allowed = {"torch.load"} if path == folder / "data" / "vgg16.py" else set()
                assert ast.unparse(node.func) not in calls - allowed, path
                if ast.unparse(node.func) in allowed:  # it then reads nothing but tensors
                    assert "weights_only=True" in ast.unparse(node), path
            elif isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_what_was_loaded_keeps_no_hold_of_the_file(tmp_path):
    """On Windows a mapped file cannot be replaced, and a resumed run replaces its checkpoint."""
    path = tmp_path / "checkpoint.safetensors"
    save_tensors(path, TENSORS, NOTES)
    tensors, _ = load_tensors(path)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert tensors.keys() == TENSORS.keys()
