"""The commands that a session prints for the user to copy."""

import shlex
import subprocess
import sys

import pytest

from kdlib.cli import again


@pytest.mark.parametrize(
    ("given", "left_out", "added", "expected"),
    [
        ("run ecg --seed 3 --arms a,b", ["--seed"], ["--seeds", "5"], "run ecg --arms a,b --seeds 5"),
        ("run ecg --seeds=2 --minutes 5", ["--seeds", "--minutes"], [], "run ecg"),
        ("run --arm a ecg --arms b", ["--arm", "--arms"], [], "run ecg"),
        ("run ecg --data --seed", ["--data"], [], "run ecg"),  # a value that looks like an option
        ("run --seed 3 -- ecg", ["--seed"], ["--seeds", "5"], "run --seeds 5 -- ecg"),  # names follow --
    ],
)
def test_options_are_left_out_with_their_values(given, left_out, added, expected):
    assert again.with_options(given.split(), left_out, added) == expected.split()


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 20, 70])
def test_a_command_has_lines_that_fit_and_a_shell_joins_them(length, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["python"])
    monkeypatch.setattr(again.shutil, "which", lambda name: f"/bin/{name}")
    arguments = ["run", "ecg", "--arms", "x" * 15, "--data", "a b" + "c" * length, "--seeds", "5"]
    lines = again.lines_of_command(arguments)
    assert all(len(line) <= 80 or len(line.split()) <= 3 for line in lines)
    told = subprocess.run(
        ["sh", "-c", "\n".join(lines).replace("nox", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    assert told.stdout.splitlines() == ["-s", "replicate_ecg", "--", *arguments[2:]]
    if len(f"  {shlex.join(['nox', '-s', 'replicate_ecg', '--', *arguments[2:]])}") <= 80:
        assert len(lines) == 1


@pytest.mark.parametrize("lacks", ["nox", "noxfile.py"])
def test_without_nox_the_command_is_that_of_kd(lacks, monkeypatch, tmp_path):
    monkeypatch.setattr(again.shutil, "which", lambda name: None if lacks == "nox" else f"/bin/{name}")
    if lacks == "noxfile.py":
        monkeypatch.chdir(tmp_path)
    told = " ".join(again.lines_of_command(["run", "ecg", "--store", "my store"])).replace("\\", "")
    assert shlex.split(told) == [sys.executable, "-m", "kdlib", "run", "ecg", "--store", "my store"]
