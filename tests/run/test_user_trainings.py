"""Training functions as users write them: torch's settings, two stages, odd results, and long errors."""

from dataclasses import replace

import pytest
import torch

from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import contents, module_of


@pytest.fixture
def trained(toy, tmp_path, monkeypatch):
    """Train the toy's baseline by a function of the run and its usual training; return the store and the failures."""
    usual = toy.arm("baseline").train

    def train(function, name="store", seeds=(0,)):
        def train_student(run):
            return function(run, usual)

        module, arms = module_of("toy"), (Arm("baseline", (), train_student),)
        monkeypatch.setattr(module, "EXPERIMENT", replace(toy, arms=arms, check=("baseline",)))
        store = Store(tmp_path / name)
        jobs = plan(module.EXPERIMENT, toy.profile("quick"), ["baseline"], list(seeds), Compute(), {})
        return store, [*execute(jobs, store, compute=Compute(), folders={}).failed.values()]

    return train


def weights_of(store):
    return {name: value for name, value in contents(store.folder).items() if name.endswith("weights.safetensors")}


def by_default_type():
    torch.set_default_dtype(torch.float64)


def by_precision():
    torch.set_float32_matmul_precision("medium")


def without_gradients():
    torch.set_grad_enabled(False)


@pytest.fixture
def settings_put_back():
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    yield before
    torch.set_default_dtype(before[0])
    torch.set_float32_matmul_precision(before[1])
    torch.set_grad_enabled(before[2])


@pytest.mark.parametrize("change", [by_default_type, by_precision, without_gradients])
def test_a_result_does_not_depend_on_the_settings_of_the_process(trained, settings_put_back, change):
    plain, failed = trained(lambda run, usual: usual(run))
    assert not failed
    change()
    changed = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()
    assert changed != settings_put_back
    with torch.autocast("cpu", torch.bfloat16):
        other, failed = trained(lambda run, usual: usual(run), "other")
    assert not failed
    assert weights_of(other) == weights_of(plain)
    assert len(weights_of(plain)) == 1
    assert (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()) == changed


@pytest.mark.parametrize("change", [by_default_type, by_precision, without_gradients])
def test_a_run_does_not_depend_on_the_one_before_it(trained, settings_put_back, change):
    def leaves_it_changed(run, usual):
        result = usual(run)
        change()
        return result

    plain, failed = trained(lambda run, usual: usual(run), seeds=(0, 1))
    other, failed_too = trained(leaves_it_changed, "other", seeds=(0, 1))
    assert not failed + failed_too
    assert weights_of(other) == weights_of(plain)
    assert len(weights_of(plain)) == 2


def test_a_second_training_of_a_run_is_refused_before_it_begins(trained):
    steps = []

    def two_stages(run, usual):
        usual(run)
        steps.append("first")
        usual(run)
        steps.append("second")

    store, (why,) = trained(two_stages)
    assert "expected one training loop for each run, found a second one; give each network or stage an arm" in why
    assert steps == ["first"]
    assert store.ids() == []


def test_a_network_in_the_place_of_weights_is_told(trained):
    _, (why,) = trained(lambda run, usual: replace(usual(run), weights={"final": torch.nn.Linear(2, 2)}))
    assert why == "train_student: weights 'final': expected Mapping, found Linear; return progress.kept, for example"


def test_a_long_error_is_shortened_and_kept_whole_in_its_file(trained):
    def fails(run, usual):
        raise RuntimeError("size mismatch " * 10_000 + "at the end")

    store, (why,) = trained(fails)
    assert len(why) < 900
    assert "at the end (traceback in" in why
    (log,) = store.folder.rglob("error.txt")
    assert len(log.read_text()) > 140_000
