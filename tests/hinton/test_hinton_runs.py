"""Whole runs of Hinton's experiments in profile smoke, the graph of arms, and the data."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from kdlib.data.pictures import Pictures
from kdlib.errors import KDError
from kdlib.judge.reading import load_claims
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.plan import plan
from kdlib.run.store import Store
from replications.hinton import config, experiment
from tests.made_runs import run_of

EXPERIMENT = load_experiment("hinton")
ARMS = {arm.name: arm for arm in EXPERIMENT.arms}
SMOKE = EXPERIMENT.profile("smoke")
# With their parents, one arm or more of each kind. The claims' tests train the others.
TRAINED = ["sham", "limit", "no_threes", "no_threes_corrected", "no_threes_matched", "only_78", "small_soft"]
TRAINED += ["ensemble_arithmetic", "ensemble_geometric", "by_ensemble_geometric", "soft_specialists_n1"]


def execute_arms(names, folder):
    jobs = plan(EXPERIMENT, SMOKE, names, [0], Compute(), {})
    summary = execute(jobs, Store(folder), compute=Compute(), folders={})
    assert not summary.failed, summary.failed
    return {arm: summary.finished[job.description.id] for job in jobs for arm in job.arms}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return execute_arms(TRAINED, tmp_path_factory.mktemp("store"))


@pytest.mark.slow
def test_smoke_runs_repeat_to_the_last_bit(trained, tmp_path):
    again = execute_arms(["sham", "no_threes", "small_soft", "soft_specialists_n1"], tmp_path)
    assert len(again) == 9  # with all parents
    for name, run in again.items():
        assert run.weights_sha256 == trained[name].weights_sha256
        assert run.metrics == trained[name].metrics
        assert run.trace == trained[name].trace


@pytest.mark.slow
def test_runs_that_differ_end_in_different_weights(trained):
    runs = {run.id: run.weights_sha256 for run in trained.values()}
    assert len({*runs.values()}) == len(runs)
    assert trained["no_threes"].id == trained["no_threes_corrected"].id == trained["no_threes_matched"].id


def test_what_is_measured_without_training_has_no_trace(trained):
    untraced = {name for name, run in trained.items() if not run.trace}
    assert untraced == {"limit", "ensemble_arithmetic", "ensemble_geometric", "soft_specialists_n1"}
    assert trained["limit"].metrics["final"]["matching_order"] == 1
    assert trained["limit"].metrics["final"]["gradient_order"] == 2


def test_the_students_of_an_ensemble_name_all_its_members(trained):
    members = [trained["baseline"].id, *(trained[f"member_{number}"].id for number in range(1, 10))]
    soft = trained["by_ensemble_geometric"].trace["data"]["soft"]
    assert soft["run"] == " + ".join(members)
    assert soft["part"] == "geometric mean of 10 at temperature 20: final.train"


def test_arms_have_the_settings_of_their_names():
    widths = {
        (name, ARMS[name].change["width"], ARMS[name].change["temperature"])
        for name in ARMS
        if name.startswith("width_")
    }
    expected = {(800, T) for T in (1, 2, 2.5, 4, 8, 50)} | {(300, T) for T in (8, 20, 50)}
    expected |= {(30, T) for T in (1, 2, 2.5, 4, 8, 20, 50)}
    assert widths == {(f"width_{width}_T_{T:g}".replace(".", "_"), width, T) for width, T in expected}
    assert ARMS["no_threes"].change == {"left_out": (3,), "soft_only": True}
    assert ARMS["only_78"].change["left_out"] == (0, 1, 2, 3, 4, 5, 6, 9)
    full = EXPERIMENT.profile("full")
    assert EXPERIMENT.config(ARMS["distilled_fast"], full).learning_rate == 10 * full.config.learning_rate
    tried = [arm for arm in EXPERIMENT.arms if arm.name.startswith("tried")]
    settings = {tuple(arm.change.values()) for arm in tried}
    assert settings == {
        (*which, rate, True) for which in ((0.2, 0.5, 150), (0.0, 0.3, 60), (0.0, 0.3, 150)) for rate in (0.05, 0.1)
    }
    assert {arm.seed for arm in tried} == {100}


def test_profiles_have_all_arms_that_can_be_trained_and_the_claims_are_about_arms_of_their_modes():
    elsewhere = {name for name, arm in ARMS.items() if arm.train is experiment.train_elsewhere}
    assert {*EXPERIMENT.profile("full").arms, *EXPERIMENT.profile("choice").arms} == ARMS.keys() - elsewhere
    reported = load_claims(EXPERIMENT.folder / "claims.toml", list(ARMS))
    named = set()
    for claim in reported.claims.values():
        for mode, about in claim.modes.items():
            compared = (*about.arms, *about.rivals)
            named |= {*compared} & elsewhere
            assert all(mode in ARMS[arm].modes or "sham" in ARMS[arm].modes for arm in compared), claim.name
            assert not {*compared} & elsewhere or "Not run" in claim.statement
    assert named == elsewhere


def test_an_arm_that_cannot_be_run_says_so():
    with pytest.raises(KDError, match=r"expected data that cannot be had here; README.md says why"):
        experiment.train_elsewhere(run_of(EXPERIMENT, SMOKE.config))


# ---- the data


def numbered(train, test, shape):
    parts = []
    for count in (train, test):
        images = np.zeros((count, *shape), np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        parts += [images, (np.arange(count) % 10).astype(np.uint8)]
    return Pictures(*parts)


def test_the_parts_are_the_first_examples_in_their_order(monkeypatch):
    monkeypatch.setattr(config.mnist, "digits", lambda folder: numbered(50, 20, (1, 28, 28)))
    monkeypatch.setattr(config.cifar10, "pictures", lambda folder: numbered(40, 30, (3, 32, 32)))
    folders = {"mnist": Path(), "cifar10": Path()}
    few = replace(SMOKE.config, train_digits=30, test_digits=20, cifar_pictures=25, cifar_test_pictures=15)
    data = config.load_data(few, folders)
    assert data.name == "MNIST and CIFAR-10, first 30 training digits and 25 training pictures"
    parts = [getattr(data, part) for part in config.PARTS]
    for part, count in zip(parts, (30, 20, 25, 15), strict=True):
        assert part.inputs[:, 0, 0, 0].tolist() == list(range(count))
        assert part.labels.tolist() == [n % 10 for n in range(count)]
    whole = config.load_data(replace(few, train_digits=50, cifar_pictures=40), folders)
    assert (whole.name, whole.synthetic) == ("MNIST and CIFAR-10", False)
    digests = [
        getattr(each, part).digest
        for each, part in chain.from_iterable([(d, p) for p in config.PARTS] for d in (data, whole))
    ]
    assert len({*digests}) == 8
    assert all(part.digest.startswith(f"{data.digest}/") for part in parts)
