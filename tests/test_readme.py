"""The guides show code that works as written, and name files that exist."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
GUIDES = ["README.md", "CONTRIBUTING.md", "kdlib/README.md", "replications/README.md", "results/README.md"]


def blocks(guide):
    return re.findall(r"```python\n(.*?)```", (ROOT / guide).read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_runs_and_learns(capsys):
    (code,) = blocks("README.md")
    assert len(code.strip().splitlines()) <= 22
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < losses[0]


def test_the_library_guide_runs_from_top_to_bottom(capsys):
    names = {}
    codes = blocks("kdlib/README.md")
    for number, code in enumerate(codes):
        exec(compile(code, f"kdlib/README.md, block {number}", "exec"), names)
    assert len(codes) >= 7
    agreement, history, verdict = capsys.readouterr().out.strip().splitlines()
    assert float(agreement.split()[-4].rstrip("%")) > 60
    assert "'train_accuracy'" in history
    assert "n" in verdict
    student, again = names["student"], names["again"]
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    assert names["progress"].epoch == 6
    assert int(names["average"].n_averaged) == names["averaged"].epoch == names["scheduler"].last_epoch == 3
    best = min(entry["loss"] for entry in names["progress"].history)
    assert 1 - names["accuracy"](names["predict_logits"](student, names["inputs"]), names["labels"]) == best


@pytest.mark.parametrize("guide", GUIDES)
def test_the_named_files_exist(guide):
    text = (ROOT / guide).read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|results|replications|kdlib)/[\w/.-]+)`", text)
    # results/*/local is git-ignored: a run makes it, so a fresh clone does not hold it. my_paper is an example.
    missing = [
        name for name in named if "my_paper" not in name and not name.endswith("/local") and not (ROOT / name).exists()
    ]
    assert not missing


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
