"""Training functions as users write them: torch's settings, two stages, odd results, and long errors."""

import functools
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute
from kdlib.run.loaded import LoadedOnce
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


def by_threads():
    torch.set_num_threads(3)


def by_deterministic_algorithms():
    torch.use_deterministic_algorithms(True, warn_only=True)


def without_onednn():
    torch.backends.mkldnn.enabled = False


def by_errors_of_numpy():
    np.seterr(all="raise")


def by_anomalies():
    torch.autograd.set_detect_anomaly(True)


def by_denormal_numbers():
    torch.set_flush_denormal(True)


def by_default_device():
    torch.set_default_device("meta")


def by_folder():
    os.chdir(tempfile.gettempdir())


FOR_ALL = [by_default_type, by_precision, without_gradients, by_threads, by_deterministic_algorithms, without_onednn]
FOR_ALL += [by_errors_of_numpy, by_anomalies, by_folder]
REMAIN = [*FOR_ALL, by_denormal_numbers, by_default_device]  # settings that no run may leave to the next one


def settings():
    return {
        "type": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "errors": np.geterr(),
        "anomalies": torch.is_anomaly_enabled(),
        "denormal": sys.float_info.min / 2 > 0,
        "device": torch.get_default_device(),
        "folder": os.getcwd(),
    }


@pytest.fixture
def settings_put_back():
    before = settings()
    yield before
    torch.set_default_dtype(before["type"])
    torch.set_float32_matmul_precision(before["precision"])
    torch.set_grad_enabled(before["gradients"])
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warns only"])
    torch.backends.mkldnn.enabled = before["oneDNN"]
    np.seterr(**before["errors"])
    torch.autograd.set_detect_anomaly(before["anomalies"])
    torch.set_flush_denormal(not before["denormal"])
    torch.set_default_device(None)
    os.chdir(before["folder"])


@pytest.mark.parametrize("change", FOR_ALL)
def test_a_result_does_not_depend_on_the_settings_of_the_process(trained, settings_put_back, change):
    plain, failed = trained(lambda run, usual: usual(run))
    assert not failed
    change()
    changed = settings()
    assert changed != settings_put_back
    with torch.autocast("cpu", torch.bfloat16):
        other, failed = trained(lambda run, usual: usual(run), "other")
    assert not failed
    assert weights_of(other) == weights_of(plain)
    assert len(weights_of(plain)) == 1
    assert settings() == changed


@pytest.mark.parametrize("change", REMAIN)
def test_a_run_does_not_depend_on_the_one_before_it(trained, settings_put_back, change):
    found = []

    def leaves_it_changed(run, usual):
        found.append(settings() | {"precision": ""})  # torch's name of it stays, but no product is computed in it
        result = usual(run)
        change()
        return result

    plain, failed = trained(lambda run, usual: usual(run), seeds=(0, 1))
    other, failed_too = trained(leaves_it_changed, "other", seeds=(0, 1))
    assert not failed + failed_too
    assert found[0] == found[1]
    assert weights_of(other) == weights_of(plain)
    assert len(weights_of(plain)) == 2


@pytest.mark.parametrize("change", REMAIN)
def test_what_load_data_sets_is_not_left_to_the_first_run(toy, settings_put_back, change):
    def load_data(config, folders):
        change()
        return SimpleNamespace(digest="d")

    LoadedOnce(load_data)(object(), {})
    assert settings() | {"precision": ""} == settings_put_back | {"precision": ""}


def test_runs_and_checkpoints_are_in_their_store_whatever_folder_a_training_goes_to(
    toy, tmp_path, monkeypatch, settings_put_back
):
    elsewhere, module = tmp_path / "elsewhere", module_of("toy")
    elsewhere.mkdir()
    fails = [True]

    def goes_away(train):
        @functools.wraps(train)
        def function(run):
            os.chdir(elsewhere)
            result = train(run)
            if run.parents and fails:
                raise RuntimeError("stopped")
            return result

        return function

    arms = [replace(toy.arm(name), train=goes_away(toy.arm(name).train)) for name in ("teacher", "distilled")]
    made = replace(toy, arms=tuple(arms), check=("teacher", "distilled"))
    monkeypatch.setattr(module, "EXPERIMENT", made)
    monkeypatch.chdir(tmp_path)
    store = Store(Path("store"))
    jobs = plan(made, toy.profile("quick"), ["distilled"], [0], Compute(), {})
    (why,) = execute(jobs, store, compute=Compute(), folders={}).failed.values()
    assert "RuntimeError: stopped (traceback in store/work/" in why
    (work,) = (tmp_path / "store/work").iterdir()
    assert {path.name.partition("-")[0] for path in work.iterdir()} >= {"checkpoint", "seconds", "error.txt"}
    fails.clear()
    assert not execute(jobs, store, compute=Compute(), folders={}).failed
    assert len(store.ids()) == 2
    assert Path.cwd() == tmp_path
    assert [*elsewhere.iterdir()] == []


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
