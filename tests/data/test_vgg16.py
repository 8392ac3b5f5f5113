"""VGG16's weights: a made pair of files with few channels, hostile files, and the real weights if they are here."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

from kdlib.data import DataError, vgg16
from kdlib.errors import KDError

CHANNELS = (3, 4, 5, 2, 3, 2, 4, 1, 2, 3, 1, 2, 3, 2)
PLACES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]


def made():
    """Weights of few channels as Keras has them, by torchvision's names."""
    draw, tensors = torch.Generator().manual_seed(0), {}
    for place, into, out in zip(PLACES, CHANNELS, CHANNELS[1:], strict=False):
        tensors[f"features.{place}.weight"] = torch.randn(out, into, 3, 3, generator=draw)
        tensors[f"features.{place}.bias"] = torch.randn(out, generator=draw)
    return tensors


def digest_of(tensors):
    """The digest by hand, number by number: height, width, in, out; then the bias."""
    found = hashlib.sha256()
    for place in PLACES:
        kernel, bias = tensors[f"features.{place}.weight"].numpy(), tensors[f"features.{place}.bias"].numpy()
        out, into = kernel.shape[:2]
        numbers = [kernel[o, i, y, x] for y in range(3) for x in range(3) for i in range(into) for o in range(out)]
        found.update(b"".join(struct.pack("<f", number) for number in [*numbers, *bias]))
    return found.hexdigest()


def turned(tensors):
    """The same weights for red, green, blue."""
    first = tensors["features.0.weight"]
    return {**tensors, "features.0.weight": torch.stack([first[:, 2], first[:, 1], first[:, 0]], 1)}


def write_torchvision(folder, content, monkeypatch):
    path = folder / vgg16.TORCHVISION
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    monkeypatch.setattr(vgg16, "TORCHVISION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(vgg16, "CHANNELS", CHANNELS)
    monkeypatch.setattr(vgg16, "KERAS_DIGEST", digest_of(made()))


def test_both_files_give_the_same_tensors_and_the_same_digest(tmp_path, monkeypatch):
    (tmp_path / "keras").mkdir()
    safetensors.torch.save_file(made(), tmp_path / "keras" / vgg16.KERAS)
    classifier = {"classifier.0.weight": torch.full((2, 2), torch.nan)}
    write_torchvision(tmp_path, {**turned(made()), **classifier}, monkeypatch)
    for found in (vgg16.features(tmp_path / "keras"), vgg16.features(tmp_path)):
        assert list(found.tensors) == list(made())
        for name, tensor in made().items():
            assert torch.equal(found.tensors[name], tensor)
            assert found.tensors[name].is_contiguous() or name == "features.0.weight"
        assert found.digest == digest_of(made())


def test_other_weights_have_another_digest(tmp_path, monkeypatch):
    other = turned(made())
    other["features.28.bias"][1] += 1
    write_torchvision(tmp_path, other, monkeypatch)
    assert vgg16.features(tmp_path).digest == digest_of(turned(other)) != digest_of(made())
    safetensors.torch.save_file(turned(made()), tmp_path / vgg16.KERAS)  # is read before torchvision's
    with pytest.raises(DataError, match=r"vgg16_features\.safetensors: expected weights of SHA-256 .*, found .*fetch"):
        vgg16.features(tmp_path)


def test_a_file_with_another_hash_is_not_opened(tmp_path, monkeypatch):
    path = write_torchvision(tmp_path, made(), monkeypatch)
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(DataError, match=r"88682ab5\.pth: expected a SHA-256 that begins with ........, found"):
        vgg16.features(tmp_path)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_pickled_program_is_not_run(tmp_path, monkeypatch):
    target = tmp_path / "written"
    hostile = {**made(), "features.0.weight": Hostile(target)}
    for content in (pickle.dumps(hostile, 2), hostile, b""):
        write_torchvision(tmp_path, content, monkeypatch)
        with pytest.raises(DataError, match=r"\.pth: expected tensors, found unreadable content"):
            vgg16.features(tmp_path)
    assert not target.exists()
    write_torchvision(tmp_path, b"PK\x03\x04 no archive", monkeypatch)  # with the SHA-256 that is expected
    with pytest.raises(KDError, match=r"\.pth: cannot be read \(PytorchStreamReader"):
        vgg16.features(tmp_path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"features.5.weight": torch.zeros(2, 2, 3, 3)}, r"found \('torch.float32', \(2, 2, 3, 3\)\)"),
        ({"features.5.weight": torch.zeros(2, 5, 3, 3).half()}, "found .'torch.float16'"),
        ({"features.5.weight": "text"}, "found .'str'"),
        (None, "found None"),
    ],
)
def test_other_shapes_types_and_names_are_refused(tmp_path, monkeypatch, change, found):
    tensors = {name: tensor for name, tensor in made().items() if change or name != "features.5.weight"}
    write_torchvision(tmp_path, {**tensors, **(change or {})}, monkeypatch)
    with pytest.raises(DataError, match=rf"expected features\.5\.weight in float32 of shape \(2, 5, 3, 3\), {found}"):
        vgg16.features(tmp_path)


def test_a_list_and_no_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"expected vgg16_features\.safetensors or .*, found neither"):
        vgg16.features(tmp_path)
    write_torchvision(tmp_path, [1, 2], monkeypatch)
    with pytest.raises(DataError, match="expected tensors by name, found a list"):
        vgg16.features(tmp_path)
    (tmp_path / vgg16.KERAS).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="expected a safetensors file, found unreadable content"):
        vgg16.features(tmp_path)


@pytest.mark.real_data
def test_the_real_weights(real_folder_of, monkeypatch):
    monkeypatch.undo()
    found = vgg16.features(real_folder_of("vgg16"))
    assert sum(tensor.numel() for tensor in found.tensors.values()) == 14_714_688
    assert found.tensors["features.0.weight"].shape == (64, 3, 3, 3)
    assert found.tensors["features.28.bias"].shape == (512,)
    assert len(found.digest) == 64
    assert np.isfinite([tensor.abs().max() for tensor in found.tensors.values()]).all()
