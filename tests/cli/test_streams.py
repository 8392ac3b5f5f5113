"""Output that cannot be written: a log on a full disk, or no output at all, as under some schedulers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kd(redirected):
    command = f'"$0" -m kdlib list mnist {redirected}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-c", command, sys.executable], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_on_the_other_stream():
    done = kd("> /dev/full")
    assert done.stderr.splitlines() == [
        "kd: standard output: expected a stream that can be written, found: No space left on device; the command goes "
        "on, and what it prints there is lost"
    ]
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes a stream")
def test_without_a_standard_output_a_command_ends_as_usual():
    done = kd(">&-")
    assert (done.returncode, done.stderr) == (0, "")
