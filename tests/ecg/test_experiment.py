"""The ECG experiment: exact networks, arms that differ only in what they claim to differ in, a run that repeats."""

from dataclasses import asdict, replace

import pytest
import torch

from kdlib.engine import execute, plan
from kdlib.experiment import Compute, Profile, Run, load_experiment
from kdlib.networks import keras_glorot_, parameter_count
from kdlib.runs import Store
from kdlib.seeds import generator
from replications.ecg import experiment as ecg

TINY = replace(ecg.SMOKE, synthetic_rows=700, epochs=3, released_epochs=2)


def run_of(config, seed=0, data=None, parents=None):
    return Run(config, seed, data or ecg.load_data(config, {}), torch.device("cpu"), "test", parents or {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    experiment = load_experiment("ecg")
    store = Store(tmp_path_factory.mktemp("store"))
    profile = Profile(replace(ecg.SMOKE, synthetic_rows=1500), seeds=1, synthetic=True)
    jobs = plan(experiment, profile, ecg.HEADLINE, [0], Compute(), {})
    summary = execute(jobs, store, compute=Compute(), folders={})
    assert not summary.failed, summary.failed
    return {arm: summary.finished[job.description.id] for job in jobs for arm in job.arms}


def test_parameter_counts_are_the_sources():
    assert parameter_count(ecg.teacher_network()) == 17_221
    assert parameter_count(ecg.student_network()) == 3_909


def test_the_papers_values():
    expected = {"epochs": 122, "released_epochs": 62, "learning_rate": 1e-4, "batch": 64, "redraw_every": 2, "mixup_alpha": 0.1,
                "mae_weight": 0.1, "tail_epochs": 0, "split": "published", "precision": "float32"}
    assert expected.items() <= asdict(ecg.PAPER).items()
    assert ecg.PROFILES["full"].config == ecg.PAPER
    assert ecg.PROFILES["full"].seeds >= 5


def test_the_released_distilled_student_is_the_baselines_own_run():
    experiment = load_experiment("ecg")
    jobs = plan(experiment, ecg.PROFILES["smoke"], ["released_baseline", "released_distilled", "baseline"], [0], Compute(), {})
    assert [job.arms for job in jobs] == [("released_baseline", "released_distilled", "baseline")]
    assert experiment.arm("released_baseline").snapshot == "at_released_stop"
    assert experiment.arm("released_distilled").snapshot == "final"


@pytest.mark.parametrize(("taught", "untaught"), [("distilled", "baseline_mixup"), ("distilled_balanced", "baseline_balanced"),
                                                  ("distilled_plain", "baseline"), ("distilled", "sham")])
def test_controlled_pairs_share_batch_schedule_draws_and_steps(taught, untaught):
    experiment = load_experiment("ecg")
    for profile in ecg.PROFILES.values():
        first, second = (experiment.config(experiment.arm(name), profile) for name in (taught, untaught))
        assert first == second


def test_every_arm_of_a_seed_starts_from_the_same_fresh_weights():
    expected = keras_glorot_(ecg.student_network(), generator(3, "weights")).state_dict()
    begun = []

    def objective(outputs, batch):
        if not begun:
            begun.append({name: value.clone() for name, value in model.state_dict().items()})
        return ecg.hard_targets(outputs, batch)

    for draws in ("plain", "mixup"):
        begun.clear()
        model = ecg.student_network()
        ecg.train(run_of(replace(TINY, epochs=1, released_epochs=1, draws=draws), seed=3), model, objective)
        assert all(torch.equal(begun[0][name], value) for name, value in expected.items())


def test_the_test_part_moves_no_weight():
    data = ecg.load_data(TINY, {})
    blind = replace(data, test=replace(data.test, labels=data.test.labels.flip(0), inputs=torch.rand_like(data.test.inputs)))
    first, second = (ecg.train_student(run_of(TINY, data=part)) for part in (data, blind))
    for snapshot, weights in first.weights.items():
        assert all(torch.equal(value, second.weights[snapshot][name]) for name, value in weights.items())
    assert first.metrics["final"]["entropy"] != second.metrics["final"]["entropy"]


def test_the_kept_epoch_is_the_one_with_the_lowest_validation_loss():
    run = run_of(replace(TINY, epochs=6, learning_rate=2e-2))
    result = ecg.train_student(run)
    losses = [entry["validation_loss"] for entry in result.history]
    best = losses.index(min(losses)) + 1
    assert result.metrics["final"]["best_epoch"] == best
    again = ecg.train_student(run_of(replace(TINY, epochs=best, learning_rate=2e-2)))
    assert all(torch.equal(value, again.weights["final"][name]) for name, value in result.weights["final"].items())


def test_mixup_draws_classes_equally_and_renews_every_second_epoch():
    run = run_of(replace(TINY, draws="mixup"))
    plans = ecg.draws(run)
    labels = run.data.train.labels
    first = plans(1)
    shares = labels[first.first].bincount(minlength=5) / len(labels)
    assert (shares - 0.2).abs().max() < 0.08  # four standard errors at 490 rows
    assert torch.equal(first.second, first.first.flip(0))
    assert torch.equal(plans(2).first, first.first)
    assert not torch.equal(plans(3).first, first.first)
    assert ecg.draws(run_of(TINY)) is None


def test_the_sham_gives_every_row_the_targets_of_another_row_of_its_class(trained):
    teacher = trained["teacher"]
    config = replace(ecg.SMOKE, synthetic_rows=1500)
    run = run_of(config, parents={"teacher": (teacher, "final")})
    targets = run.soft_targets("teacher", "train", run.data.train)
    labels = run.data.train.labels
    sham = targets.permuted_within_classes(labels, run.generator("sham train"))
    for k in range(5):
        rows = lambda logits: sorted(map(tuple, logits[labels == k].tolist()))  # noqa: B023, E731
        assert rows(sham.logits) == rows(targets.logits)
    assert (sham.logits != targets.logits).any(1).float().mean() > 0.9


def test_students_of_the_real_teacher_are_nearer_to_it_than_the_shams(trained):
    real, sham = (trained[arm].metrics["final"] for arm in ("distilled", "sham"))
    assert real["teacher_kl"] < 0.8 * sham["teacher_kl"]


def test_soft_targets_of_other_data_are_refused(trained):
    other = run_of(replace(TINY, synthetic_rows=1500 + 1), parents={"teacher": (trained["teacher"], "final")})
    with pytest.raises(ecg.KDError, match="expected soft targets of these very examples"):
        other.soft_targets("teacher", "train", other.data.train)


def test_a_teacher_at_chance_is_refused():
    with pytest.raises(ecg.KDError, match="above chance"):
        ecg.train_teacher(run_of(replace(TINY, learning_rate=0.0)))


def test_runs_repeat_to_the_last_bit(trained, tmp_path):
    experiment = load_experiment("ecg")
    profile = Profile(replace(ecg.SMOKE, synthetic_rows=1500), seeds=1, synthetic=True)
    jobs = plan(experiment, profile, ["distilled"], [0], Compute(), {})
    summary = execute(jobs, Store(tmp_path), compute=Compute(), folders={})
    again = summary.finished[jobs[-1].description.id]
    assert again.weights_sha256 == trained["distilled"].weights_sha256
    assert again.metrics == trained["distilled"].metrics


def test_unknown_draws_and_splits_say_what_is_known():
    with pytest.raises(ecg.KDError, match="plain, balanced or mixup"):
        ecg.draws(run_of(replace(TINY, draws="mixed")))
