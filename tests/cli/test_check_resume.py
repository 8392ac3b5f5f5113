"""`kd check-resume` accepts a script whose result no stop changes; of other scripts it names what a stop changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from kdlib.cli import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # each script is run in up to nine processes

SCRIPT = """
import sys
import time
import torch
from torch import nn
from kdlib import Batches, Examples, Progress, epochs, hard_targets

torch.manual_seed(0)
inputs, labels = torch.randn(40, 5), torch.randint(3, (40,))
torch.manual_seed({seed})
model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Linear(8, 3))
optimizer = torch.optim.Adam(model.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
{before}
extras = {{"scheduler": scheduler}}
progress = Progress(model, optimizer, checkpoint={checkpoint}, label="student", extras=extras)
batches = Batches(Examples(inputs, labels), size=10, seed=0)
for epoch in epochs(progress, batches, {objective}, count=9, seed=0):
    scheduler.step()
    {body}
{after}
"""


@pytest.fixture
def check(tmp_path, monkeypatch, capfd):
    """Write a script and return the exit status and the lines of the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def checked(
        body="pass",
        objective="hard_targets",
        before="",
        checkpoint="'student.safetensors'",
        seed="0",
        after="",
        epochs="1",
    ):
        script = tmp_path / "train.py"
        script.write_text(
            SCRIPT.format(body=body, objective=objective, before=before, checkpoint=checkpoint, seed=seed, after=after)
        )
        status = main(["check-resume", "--epochs", epochs, "train.py"])
        assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == []  # they are in a temporary folder
        return status, capfd.readouterr().out.splitlines()

    return checked


def test_a_script_that_goes_on_is_stopped_within_and_after_each_epoch_and_ends_in_the_same_state(check):
    status, (first, *others, last) = check("progress.record(seconds=time.time()); progress.keep('last')", epochs="2")
    assert first.startswith("train.py: 2 epochs of 1 training, in ")
    assert others == ["not compared: student: history of seconds, which differs between two runs without a stop, too"]
    assert last.startswith("check-resume: stopped 4 times, the script ends in the same state, after ")
    assert status == 0


CENTRE = """
class Centre:
    value = 0.0
centre = Centre()
def objective(outputs, batch):
    centre.value = 0.9 * centre.value + 0.1 * float(outputs.detach().mean())
    return hard_targets(outputs, batch) + (outputs.mean() - centre.value) ** 2
"""


def test_a_state_that_kdlib_cannot_see_is_found_with_the_first_epoch_that_it_changes(check):
    status, lines = check(before=CENTRE, objective="objective")
    assert status == 1
    for part in ("weights", "optimizer", "history of training_loss"):
        assert f"WRONG student: {part}: other than without a stop, first after epoch 1" in lines
    assert not any("learning rates" in line or "not compared" in line for line in lines)


def test_what_only_the_body_keeps_is_found_at_the_end(check):
    body = "best = best or {name: tensor.clone() for name, tensor in model.state_dict().items()}"
    status, lines = check(
        body, before="best = {}", after="model.load_state_dict(best or model.state_dict())", epochs="2"
    )
    assert status == 1
    assert "WRONG student: weights: other than without a stop" in lines


def test_an_average_that_only_a_variable_holds_is_found(check):
    before = "average = torch.optim.swa_utils.AveragedModel(model)"
    status, lines = check("average.update_parameters(model)", before=before)
    assert status == 1
    assert lines[1] == "WRONG the variable average: other than without a stop"


def test_a_script_that_finds_its_own_files_later_is_told_so(check):
    before = """
from pathlib import Path
if not Path("teacher").exists():
    teacher = nn.Linear(5, 3)
    first = Progress(teacher, torch.optim.SGD(teacher.parameters(), lr=0.1), checkpoint="teacher.safetensors")
    for _ in epochs(first, Batches(Examples(inputs, labels), size=10, seed=0), hard_targets, count=1, seed=0):
        pass
    Path("teacher").touch()
"""
    status, lines = check(before=before)
    assert status == 1
    told = "WRONG the script has trained 2 epochs of 2 trainings, and then 1 epoch of 1 training: what it leaves behind"
    assert lines[-1].startswith(told)
    assert check(before=before)[0] == 0  # the file is there now


def test_the_warnings_of_kdlib_say_what_may_be_the_cause(check):
    before = """
centre = torch.zeros(())
def objective(outputs, batch):
    centre.mul_(0.9).add_(0.1 * outputs.detach().mean())
    return hard_targets(outputs, batch) + (outputs.mean() - centre) ** 2
"""
    status, lines = check(before=before, objective="objective", epochs="2")
    assert status == 1
    assert any(line.startswith("  StateNotSaved: ") for line in lines)


def test_a_script_with_other_first_weights_in_each_process_is_not_blamed_for_its_stops(check):
    status, lines = check(seed="time.time_ns() % 2**31")
    assert status == 1
    assert lines[-1].startswith("check-resume: the script does not repeat itself")


def test_a_checkpoint_with_another_path_in_each_process_is_told(check):
    status, lines = check(checkpoint="f'{time.time_ns()}.safetensors'")
    assert status == 1
    assert lines[-1].startswith(
        "WRONG after a stop at epoch 1, step 2, the training begins again: it has another check"
    )


def test_a_script_that_fails_only_after_a_stop_is_told_with_the_last_stop(check):
    status, lines = check(after="print(epoch)")  # no epoch is left after the last stop
    assert status == 1
    why = "the script fails with status 1; its last lines are above"
    assert lines[-1] == f"WRONG after a stop at epoch 1's end, {why}"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("", "found no file or module train.py"),
        ("import sys\nsys.exit(5)", "found exit status 5"),
        ("1 / 0", "found exit status 1"),
        ("print('nothing')", "found none; write Progress"),
    ],
)
def test_scripts_that_cannot_be_checked_are_refused_with_the_reason(script, why, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    if script:
        (tmp_path / "train.py").write_text(script)
    run = [sys.executable, "-m", "kdlib", "check-resume", "train.py"]
    done = subprocess.run(run, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert why in done.stderr.splitlines()[-1]
    assert ("ZeroDivisionError" in done.stderr) == (script == "1 / 0")


@pytest.mark.parametrize("script", ["training", ".", "own.training", "own", "no such thing"])
def test_what_is_no_script_is_refused_before_anything_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.txt").touch()
    assert main(["check-resume", script]) == 2
    assert capsys.readouterr().err.endswith(f"found no file or module {script}; write train.py, or my.train\n")
