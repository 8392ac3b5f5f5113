"""What README shows works as written."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def test_the_example_runs_and_learns(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 22
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_the_named_files_exist():
    named = re.findall(r"`((?:tests|results|replications|kdlib)/[\w/.]+)`", (ROOT / "README.md").read_text())
    # results/*/local is git-ignored: a run makes it, so a fresh clone does not hold it
    missing = [name for name in named if "<" not in name and not name.endswith("/local") and not (ROOT / name).exists()]
    assert named
    assert not missing
