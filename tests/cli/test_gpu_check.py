"""`kd gpu-check`: a wrong answer is said, the other questions are still asked, and little needs to be installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdlib.cli import gpu_check, gpu_speed, main
from kdlib.cli.gpu_check import Answer
from kdlib.replicas import Replicas

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("precision_put_back")
QUICK = ("versions", "precision", "captured", "resumed")


@pytest.fixture
def asked(monkeypatch):
    """Let the command ask these questions only; the others take minutes."""

    def only(*questions):
        monkeypatch.setattr(gpu_check, "QUESTIONS", questions)

    return only


@pytest.mark.slow
def test_all_is_right(asked, capsys):
    asked(*(getattr(gpu_check, name) for name in QUICK))
    assert main(["gpu-check", "--device", "cpu"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok    ") for line in lines)
    assert any("float32 convolutions: set to ieee, relative error" in line for line in lines)
    assert "ok    a killed and resumed training: equal to the last bit" in lines
    assert last.startswith(f"gpu-check: {len(lines)} of {len(lines)} lines are right, after ")


def test_a_wrong_answer_and_an_error_are_told(asked, capsys):
    def wrong(device):
        yield Answer("two and two are five", right=False)

    def broken(device):
        yield Answer("it begins well")
        raise RuntimeError("out of memory\nand more")

    asked(wrong, broken, gpu_check.versions)
    assert main(["gpu-check", "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "WRONG two and two are five",
        "ok    it begins well",
        "WRONG broken: RuntimeError: out of memory",
    ]
    assert lines[3].startswith("ok    Python ")
    assert lines[4].startswith("gpu-check: 2 of 4 lines are right")


@pytest.mark.parametrize("name", ["products", "convolutions"])
def test_tf32_is_found(asked, capsys, monkeypatch, name):
    """TF32 keeps 10 bits of the fraction: the error is then far above that of float32."""

    def rounded(x):
        if x.dtype == torch.float64:
            return x
        return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)

    place, function = {
        "products": (torch, "matmul"),
        "convolutions": (torch.nn.functional, "conv2d"),
    }[name]
    right = getattr(place, function)
    monkeypatch.setattr(place, function, lambda x, y: right(rounded(x), rounded(y)))
    answers = {answer.text.split(":")[0]: answer.right for answer in gpu_check.precision(CPU)}
    assert answers == {"float32 products": name != "products", "float32 convolutions": name != "convolutions"}


@pytest.mark.slow
def test_a_checkpoint_that_loses_something_is_found(monkeypatch):
    monkeypatch.setattr("kdlib.progress.Progress.save", lambda self: None)
    (answer,) = gpu_check.resumed(CPU)
    assert answer.right  # it starts again from its first epoch: the same result
    monkeypatch.undo()
    seed_layers = Replicas.seed_layers
    # Dropout that is seeded once and not at each epoch goes on differently after a kill.
    monkeypatch.setattr(Replicas, "seed_layers", lambda self, seeds: self.generators or seed_layers(self, seeds))
    (answer,) = gpu_check.resumed(CPU)
    assert not answer.right
    assert "NOT equal" in answer.text


def test_a_network_that_computes_something_else_is_found(monkeypatch):
    losses = iter([{"baseline": 2.0}, {"baseline": 2.001}, {"baseline": 2.0}, {"baseline": 2.0001}])
    monkeypatch.setattr(gpu_check, "replications", lambda root: ["one", "other"])
    monkeypatch.setattr(gpu_check, "_first_losses", lambda name, device: next(losses))
    found = list(gpu_check.replicated(torch.device("cuda")))
    assert [answer.right for answer in found] == [False, True]
    assert found[0].text.startswith("one: first losses of baseline within 5e-04 of the CPU's")


def test_the_speed_counts_all_students(monkeypatch):
    monkeypatch.setattr(gpu_speed, "_rate", lambda step, batch: 10.0)
    monkeypatch.setattr(gpu_speed, "matrix_speed", lambda device: 1e12)
    one, *two = gpu_speed.speeds(CPU)
    assert [(speed.students, speed.convolutions) for speed in two] == [(2, "grouped"), (2, "products")]
    assert two[0].share == pytest.approx(2 * one.share)
    # 39.7 million multiplications of the six convolutions and two dense layers, three times (forward and two backward;
    # the first layer has no gradient to its input), two operations each, 32 pictures, ten steps.
    convolutions = [9 * before * after * side**2 for before, after, side in SHAPES]
    products = 3 * (sum(convolutions) + 2048 * 256 + 2560) - convolutions[0]
    assert one.share == pytest.approx(10 * 32 * 2 * products / 1e12)
    assert str(one).endswith(
        f"10.0 steps/s, {one.share:.1%} of the matrix peak, 25 cells in 3256 min"
    )  # 25*1563*50/10 s


SHAPES = ((3, 32, 32), (32, 32, 32), (32, 64, 16), (64, 64, 16), (64, 128, 8), (128, 128, 8))


def test_no_device_is_an_error_in_words(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["gpu-check"]) == 2
    assert "--device cuda: expected CUDA device 0, found none that torch" in capsys.readouterr().err


BARE = """
import sys
class Absent:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("numba", "pooch", "platformdirs", "nox", "rich", "matplotlib", "wfdb"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from kdlib.cli import gpu_check, main
losses = gpu_check._first_losses("mnist", "cpu")
assert set(losses) == {"teacher", "baseline", "distilled"}
assert all(1 < loss < 10 for loss in losses.values())
gpu_check.QUESTIONS = (gpu_check.versions,)
sys.exit(main(["gpu-check", "--device", "cpu"]))
"""


@pytest.mark.slow
def test_it_runs_where_little_is_installed():
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 lines are right" in done.stdout
