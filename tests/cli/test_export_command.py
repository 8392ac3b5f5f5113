"""`kd export` and `kd cost` on runs of profile smoke."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from kdlib.cli import export as export_command
from kdlib.cli import main
from kdlib.report.cost import Row, cost_path, write_cost
from kdlib.run.experiment import load_experiment
from kdlib.run.networks import Origin

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A work folder with the replications, and a store with smoke runs of ecg."""
    root = tmp_path_factory.mktemp("tree")
    (root / "replications").symlink_to(ROOT / "replications")  # those that Python imports
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["run", "ecg", "--profile", "smoke", "--arms", "distilled", "--workers", "1"]) == 0
    return root


@pytest.fixture(autouse=True)
def _in_tree(tree, monkeypatch):
    monkeypatch.chdir(tree)


def run_of(tree, name):
    (found,) = [path for path in (tree / ".kd/runs").iterdir() if name in (path / "run.json").read_text()]
    return found.name


@pytest.mark.slow
def test_a_stored_student_is_exported_by_the_beginning_of_its_id(tree, capsys):
    run = run_of(tree, "train_distilled")
    assert main(["export", run[:8], "student.onnx"]) == 0
    assert f"ecg, distilled, seed 0, run {run}/final" in capsys.readouterr().out
    data = load_experiment("ecg").load_data(load_experiment("ecg").profile("smoke").config, {})
    logits = onnxruntime.InferenceSession("student.onnx").run(None, {"inputs": data.test.inputs.numpy()})[0]
    confusion = np.zeros((5, 5), int)
    np.add.at(confusion, (data.test.labels.numpy(), logits.argmax(1)), 1)
    assert str(confusion.tolist()).replace(" ", "") in "".join(
        (tree / ".kd/runs" / run / "run.json").read_text().split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("digest", ["made up", "real"])
def test_the_data_of_a_run_are_chosen_by_their_digest(monkeypatch, digest):
    """Profiles quick and smoke of a new replication have one configuration."""
    experiment = SimpleNamespace(
        data=("mnist",),
        load_data=lambda config, folders: SimpleNamespace(digest="real" if folders else "made up"),
    )
    monkeypatch.setattr(export_command, "folder_of", lambda name, folder, downloads: Path(name))
    run = SimpleNamespace(description=SimpleNamespace(data=digest))
    assert export_command._data_of(run, Origin(experiment, None, None, synthetic=True), None).digest == digest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "zz", "model.onnx"], "run 'zz': expected the beginning of one id"),
        (["export", "zz", "model.pt"], "expected a file name that ends in .onnx"),
        (["export", "zz", "model.onnx", "--store", "nowhere"], "expected a store of runs"),
    ],
)
def test_a_mistake_is_explained(capsys, arguments, said):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_of_synthetic_runs_goes_to_the_folder_that_git_ignores(tree):
    assert main(["cost", "ecg", "--profile", "smoke"]) == 0
    with (tree / "results/ecg/local/smoke-cost.csv").open() as file:
        teacher, student = csv.DictReader(file)
    assert (teacher["role"], teacher["parameters"], student["role"], student["parameters"]) == (
        *("teacher", "17221"),
        *("student", "3909"),
    )
    assert student["run"] == run_of(tree, "train_distilled")
    assert 0 <= float(student["int8_accuracy"]) <= 1
    page = (tree / "results/ecg/local/smoke-cost.md").read_text()
    assert "| 4 times    | 4.4 times  |" in page
    assert "data: synthetic heartbeats" in page


def row(network="student", run="", **numbers):
    return Row(network, (network,), ("student",), run, "", "", {"parameters": 7, **numbers})


FULL = [row("teacher", "aa", onnx_accuracy=0.9), row("student", "bb", onnx_accuracy=0.8)]
LESS = {
    "no run": [row("teacher", "aa", onnx_accuracy=0.9), row("student")],
    "no number": [FULL[0], row("student", "bb")],
    "no teacher": FULL[1:],
}


@pytest.mark.parametrize("less", LESS.values(), ids=LESS.keys())
def test_costs_are_never_replaced_by_less(tmp_path, less):
    place = cost_path(tmp_path, "quick", FULL, usual=True)
    assert place == tmp_path / "cost"
    write_cost(FULL, "page\n- profile: quick; reduced\n", place)
    assert cost_path(tmp_path, "quick", FULL, usual=True) == place
    assert cost_path(tmp_path, "full", FULL, usual=True) == tmp_path / "local" / "full-cost"  # another profile
    assert cost_path(tmp_path, "quick", FULL, usual=False) == tmp_path / "local" / "quick-cost"
    assert cost_path(tmp_path, "quick", less, usual=True) == tmp_path / "local" / "quick-cost"
    write_cost(FULL, "page", tmp_path / "local" / "quick-cost")
    assert cost_path(tmp_path, "quick", less, usual=True) == tmp_path / "local" / "quick-cost-part-2"
    assert (tmp_path / "cost.md").read_text().startswith("page")


def test_costs_that_nobody_understands_are_not_replaced(tmp_path):
    (tmp_path / "cost.csv").write_bytes(b"\xff")
    assert cost_path(tmp_path, "quick", FULL, usual=True) == tmp_path / "local" / "quick-cost"
