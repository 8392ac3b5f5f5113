"""Data that cannot be read just now are not taken for damaged, and no picture is left out because of it.

The limits are real ones of the operating system, set in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

ROOT = Path(__file__).parents[2]

LIMITED = """
import os, resource, sys
from pathlib import Path
from kdlib.data import DataError, cats_dogs, mnist, vgg16
from kdlib.data.picture_files import Named, decoded
from kdlib.errors import KDError

folder = Path(sys.argv[1])
looks = {
    "picture": lambda: decoded(folder / "pictures", [Named("a.jpg", 0)], 8, "L"),
    "list": lambda: cats_dogs.oxford_pets(folder),
    "digits": lambda: mnist.digits(folder),
    "weights": lambda: vgg16.features(folder),
}

def told(name, look):
    try:
        look()
        print(name, "returned")
    except DataError as error:
        print(name, "damaged", error)
    except KDError as error:
        print(name, "refused", error)

for name, look in looks.items():
    told(name, look)  # imports what it needs
old = resource.getrlimit(resource.RLIMIT_NOFILE)
for path in folder.rglob(".kdlib-*"):
    path.unlink()
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, old[1]))
for name, look in looks.items():
    told(name, look)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_with_no_file_descriptor_left_no_data_are_damaged_or_skipped(tmp_path, jpeg):
    for name in ("pictures", "oxford-iiit-pet/annotations", "oxford-iiit-pet/images"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pictures" / "a.jpg").write_bytes(jpeg(1))
    for name in ("trainval.txt", "test.txt"):
        (tmp_path / "oxford-iiit-pet" / "annotations" / name).write_text("Abyssinian_100 1 1 1\n")
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"not digits")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "vgg16_features.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["picture", "returned"],
        ["list", "damaged"],  # no such pictures
        ["digits", "damaged"],
        ["weights", "damaged"],
    ]
    for name, line in zip(["picture", "list", "digits", "weights"], lines[4:], strict=True):
        assert line.startswith(f"{name} refused "), line
        assert "cannot be read (Too many open files)" in line
