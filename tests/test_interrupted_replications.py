"""The replications' own training functions, stopped after an epoch and called again: to the last bit as if nothing had been."""

from dataclasses import replace

import pytest
import torch

from replications import course_cifar
from replications.ecg import experiment as ecg
from replications.grid import experiment as grid
from replications.mnist import experiment as mnist
from tests.made_runs import assert_same_result, resumed, run_of, taught

MNIST = replace(mnist.SMOKE, epochs=2, train_pictures=48, test_pictures=40)
ECG = replace(ecg.SMOKE, synthetic_rows=400, epochs=4, released_epochs=2, draws="mixup")
CIFAR = replace(grid.SMOKE, epochs=2, train_pictures=32, test_pictures=10)
RESNET = replace(CIFAR, teacher_epochs=2, train_pictures=16)


def side_by_side(run):
    """Two students that differ in alpha, in one loop; the first's checkpoint is that of both."""
    other = replace(run, config=replace(run.config, alpha=0.2), checkpoint=None, on_epoch=None)
    first, second = course_cifar.train_distilled_together([run, other])
    assert first.history != second.history
    return second


CASES = {  # module, configuration, training function
    "mnist teacher": (mnist, MNIST, mnist.train_mnist_teacher),
    "mnist distilled": (mnist, MNIST, mnist.train_mnist_distilled),
    "ecg student": (ecg, ECG, ecg.train_student),
    "ecg teacher": (ecg, ECG, ecg.train_teacher),
    "grid student": (grid, CIFAR, course_cifar.train_student),
    "grid distilled": (grid, CIFAR, course_cifar.train_distilled),
    "grid side by side": (grid, CIFAR, side_by_side),
    "ResNet-18": (grid, RESNET, course_cifar.train_resnet18),
}


def case(name):
    module, config, train = CASES[name]
    run = run_of(module, config)
    return train, taught(run)[0] if name in ("mnist distilled", "grid distilled", "grid side by side") else run


@pytest.fixture(autouse=True)
def _not_refused(monkeypatch):
    monkeypatch.setattr(ecg, "refuse_at_chance", lambda *_: None)  # so short a training is no better


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_after_any_epoch_and_run_again(name, tmp_path):
    train, run = case(name)
    unbroken = train(run)
    again, deaths = resumed(train, run, tmp_path / "checkpoint")
    assert deaths == list(range(1, len(unbroken.history) + 1))  # each life had one epoch
    assert_same_result(again, unbroken)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_trained_on_a_cuda_device(name):
    train, run = case(name)
    result = train(replace(run, device=torch.device("cuda")))
    assert result.history[0].keys() == train(run).history[0].keys()
