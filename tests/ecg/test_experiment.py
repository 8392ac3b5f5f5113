"""The ECG experiment: exact networks, arms that differ only in what they claim to differ in, a run that repeats."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from kdlib.batches import Batch
from kdlib.data import mitdb, synthetic
from kdlib.networks import keras_glorot_, parameter_count
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, Profile, Run, load_experiment
from kdlib.run.plan import plan
from kdlib.run.store import Store
from kdlib.seeds import generator
from kdlib.training import hard_targets, train_step
from replications.ecg import experiment as ecg
from tests.oracles import check_predictions

TINY = replace(ecg.SMOKE, synthetic_rows=700, epochs=3, released_epochs=2)


def run_of(config, seed=0, data=None, parents=None):
    return Run(config, seed, data or ecg.EXPERIMENT.load_data(config, {}), torch.device("cpu"), "test", parents or {})


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
    expected = {
        "epochs": 122,
        "released_epochs": 62,
        "learning_rate": 1e-4,
        "batch": 64,
        "redraw_every": 2,
        "mixup_alpha": 0.1,
        "mae_weight": 0.1,
        "tail_epochs": 0,
        "split": "published",
        "precision": "float32",
    }
    assert expected.items() <= asdict(ecg.PAPER).items()
    assert ecg.PROFILES["full"].config == ecg.PAPER
    assert ecg.PROFILES["full"].seeds >= 5


def test_the_released_distilled_student_is_the_baselines_own_run():
    experiment = load_experiment("ecg")
    jobs = plan(
        experiment, ecg.PROFILES["smoke"], ["released_baseline", "released_distilled", "baseline"], [0], Compute(), {}
    )
    assert [job.arms for job in jobs] == [("released_baseline", "released_distilled", "baseline")]
    assert experiment.arm("released_baseline").snapshot == "at_released_stop"
    assert experiment.arm("released_distilled").snapshot == "final"


@pytest.mark.parametrize(
    ("taught", "untaught"),
    [
        ("distilled", "baseline_mixup"),
        ("distilled_balanced", "baseline_balanced"),
        ("distilled_plain", "baseline"),
        ("distilled", "sham"),
    ],
)
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
        return hard_targets(outputs, batch)

    for draws in ("plain", "mixup"):
        begun.clear()
        model = ecg.student_network()
        ecg.train(run_of(replace(TINY, epochs=1, released_epochs=1, draws=draws), seed=3), model, objective)
        assert all(torch.equal(begun[0][name], value) for name, value in expected.items())


def test_the_test_part_moves_no_weight():
    config = replace(TINY, epochs=6, learning_rate=2e-2)  # losses go up and down, so that the kept epoch is a choice
    data = ecg.load_data(config, {})
    noise = torch.rand(data.test.inputs.shape, generator=generator(0, "noise"))
    blind = replace(
        data, test=replace(data.test, labels=torch.zeros_like(data.test.labels), inputs=noise)
    )  # best at epoch 1
    first, second = (ecg.train_student(run_of(config, data=part)) for part in (data, blind))
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


@pytest.mark.slow
@pytest.mark.parametrize("train", [ecg.train_distilled, ecg.train_sham])
def test_a_taught_student_too_keeps_the_epoch_with_its_lowest_validation_loss(train):
    change = {"epochs": 8, "learning_rate": 0.2}
    result = train(taught(replace(TINY, **change))[0])
    losses = [entry["validation_loss"] for entry in result.history]
    best = losses.index(min(losses)) + 1
    assert best < 8  # else the last epoch is the best
    assert result.metrics["final"]["best_epoch"] == best
    again = train(taught(replace(TINY, **change | {"epochs": best}))[0])
    assert all(torch.equal(value, again.weights["final"][name]) for name, value in result.weights["final"].items())


def test_the_sham_permutes_both_parts_within_the_classes_and_otherwise_for_each_seed(monkeypatch):
    seen = []
    monkeypatch.setattr(ecg, "train", lambda run, model, objective, soft: seen.append(soft))
    run, kept = taught(TINY)
    for seed in (0, 1):
        ecg.train_sham(replace(run, seed=seed))
    for part in ("train", "validation"):
        labels, logits = getattr(run.data, part).labels, kept[f"final.{part}"]
        sources = []
        for soft in seen:
            source = torch.tensor([(logits == row).all(1).nonzero().item() for row in soft[part].logits])
            assert sorted(source.tolist()) == list(range(len(labels)))
            assert torch.equal(labels[source], labels)
            sources.append(source)
        assert (sources[0] != torch.arange(len(labels))).any()
        assert not torch.equal(*sources)


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


@pytest.mark.slow
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
    with pytest.raises(ecg.KDError, match="expected soft targets of these examples"):
        other.soft_targets("teacher", "train", other.data.train)


def test_soft_targets_of_plain_rows_are_refused_for_augmented_ones(trained):
    run = run_of(replace(ecg.SMOKE, synthetic_rows=1500), parents={"teacher": (trained["teacher"], "final")})
    with pytest.raises(ecg.KDError, match="view 'shifted'"):
        run.soft_targets("teacher", "train", replace(run.data.train, view="shifted"))


def test_a_teacher_at_chance_is_refused():
    with pytest.raises(ecg.KDError, match="above chance"):
        ecg.train_teacher(run_of(replace(TINY, learning_rate=0.0)))


@pytest.mark.slow
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
    with pytest.raises(ecg.KDError, match="split: expected published or inter-patient, found 'patients'"):
        ecg.load_data(replace(TINY, split="patients"), {})


def test_synthetic_heartbeats_are_split_by_patients_too():
    rows, classes, records = synthetic.heartbeats(TINY.synthetic_rows, seed=0)
    data = ecg.load_data(replace(TINY, split="inter-patient"), {})
    parts = mitdb.inter_patient_split(classes, records)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(data, part).inputs, torch.from_numpy(rows[getattr(parts, part)]))
    assert data.digest != ecg.load_data(TINY, {}).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 62, "tail_epochs": 538}, "run released_tail with --profile full"),
        ({"precision": "float64"}, "precision: expected float32, found 'float64'"),
        ({"redraw_every": 0}, "redraw_every of at least 1"),
        ({"mixup_alpha": 0.0}, "mixup_alpha above 0"),
    ],
    ids=["tail", "precision", "redraw_every", "mixup_alpha"],
)
def test_a_configuration_that_cannot_be_is_refused_before_it_trains(change, message):
    with pytest.raises(ecg.KDError, match=message):
        ecg.train_student(run_of(replace(TINY, **change)))


def test_the_figures_curve_is_of_the_weights_a_run_would_stop_with():
    from replications.ecg.figures import selected

    losses, scores = [0.9, 0.5, 0.7, 0.4, 0.4], [0.1, 0.2, 0.9, 0.3, 0.8]
    history = [{"validation_loss": loss, "test_macro_f1": score} for loss, score in zip(losses, scores, strict=True)]
    assert selected(history) == [0.1, 0.2, 0.2, 0.3, 0.3]


# ---- what each arm is trained with


def taught(config):
    """A run whose teacher has kept made-up logits."""
    data = ecg.load_data(config, {})
    kept = {
        f"final.{part}": torch.randn(len(getattr(data, part).labels), 5, generator=generator(0, part))
        for part in ("train", "validation", "test")
    }
    teacher = SimpleNamespace(
        id="teacher", description=SimpleNamespace(data=data.digest), soft_targets=kept.__getitem__
    )
    return run_of(config, data=data, parents={"teacher": (teacher, "final")}), kept


def test_transfer_is_the_divergence_from_the_teacher_plus_a_tenth_of_the_distance():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, 12, 5))
    p, q = softmax(teacher, 1), softmax(student, 1)
    expected = np.mean(np.sum(p * np.log(p / q), 1)) + 0.1 * np.mean(np.abs(p - q))
    batch = Batch(torch.zeros(12, 187), torch.zeros(12, dtype=torch.int64), torch.arange(12), torch.tensor(teacher))
    assert ecg.transfer(0.1)(torch.tensor(student), batch).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("draws", ["plain", "mixup"])
def test_taught_and_untaught_students_take_the_same_steps_from_the_same_weights(draws, monkeypatch):
    steps = []

    def step(model, optimizer, objective, batch):
        if not steps:
            steps.append([value.tolist() for value in model.parameters()])
        steps.append((batch.indices.tolist(), batch.inputs.sum().item(), optimizer.param_groups[0]["lr"]))
        return train_step(model, optimizer, objective, batch)

    monkeypatch.setattr("kdlib.training.train_step", step)
    run, _ = taught(replace(TINY, draws=draws))
    found = []
    for train in (ecg.train_student, ecg.train_distilled, ecg.train_sham):
        steps.clear()
        train(run)
        found.append(list(steps))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1 + 3 * math.ceil(len(run.data.train.labels) / 16)


def test_a_distilled_student_is_chosen_by_its_own_loss_and_compared_with_its_teacher():
    run, kept = taught(replace(TINY, epochs=1))
    result = ecg.train_distilled(run)
    model = ecg.student_network()
    model.load_state_dict(result.weights["final"])
    with torch.no_grad():
        found = {part: model.plain_features(getattr(run.data, part).inputs) for part in ("validation", "test")}
        found = {part: model.dense2(torch.relu(model.dense1(h))) for part, h in found.items()}
    p, q = (softmax(logits.double().numpy(), 1) for logits in (kept["final.validation"], found["validation"]))
    expected = np.mean(np.sum(p * np.log(p / q), 1)) + 0.1 * np.mean(np.abs(p - q))
    assert result.history[0]["validation_loss"] == pytest.approx(expected, rel=1e-5)
    check_predictions(result.metrics["final"], found["test"], kept["final.test"])


def test_the_released_stop_is_the_run_that_ends_there():
    short = ecg.train_student(run_of(replace(TINY, epochs=3, released_epochs=3, learning_rate=2e-2)))
    long = ecg.train_student(run_of(replace(TINY, epochs=8, released_epochs=3, learning_rate=2e-2)))
    assert long.metrics["final"]["best_epoch"] > 3  # else the two snapshots are one
    for name, value in short.weights["final"].items():
        assert torch.equal(long.weights["at_released_stop"][name], value)
    assert long.metrics["at_released_stop"] == short.metrics["final"]


def test_a_distilled_student_is_trained_on_its_teachers_logits_of_the_same_rows(monkeypatch):
    seen = []

    def step(model, optimizer, objective, batch):
        seen.append(batch)
        return train_step(model, optimizer, objective, batch)

    monkeypatch.setattr("kdlib.training.train_step", step)
    run, kept = taught(replace(TINY, epochs=1))
    ecg.train_distilled(run)
    assert sorted(torch.cat([batch.indices for batch in seen]).tolist()) == list(range(len(run.data.train.labels)))
    for batch in seen:
        assert torch.equal(batch.inputs, run.data.train.inputs[batch.indices])
        assert torch.equal(batch.soft, kept["final.train"][batch.indices])


def test_mixup_reaches_the_loss_in_inputs_and_labels():
    run = run_of(replace(TINY, epochs=1, draws="mixup"))
    seen = []

    def objective(outputs, batch):
        if outputs.requires_grad:
            seen.append(batch)
        return hard_targets(outputs, batch)

    ecg.train(run, ecg.student_network(), objective)
    data, mix = run.data.train, ecg.draws(run)(1)
    order = torch.randperm(len(data.labels), generator=generator(0, "order", 1))
    first, second, weight = mix.first[order], mix.second[order], mix.weight[order].unsqueeze(1)
    assert ((weight > 0.05) & (weight < 0.95)).float().mean() > 0.1
    for values, name in ((data.inputs, "inputs"), (torch.eye(5)[data.labels], "labels")):
        mixed = weight * values[first] + (1 - weight) * values[second]
        torch.testing.assert_close(torch.cat([getattr(batch, name) for batch in seen]), mixed)


def test_kept_targets_are_the_teachers_logits_row_by_row(monkeypatch):
    monkeypatch.setattr(ecg, "refuse_at_chance", lambda *_: None)  # so short a training is no better
    run = run_of(replace(TINY, epochs=6, learning_rate=2e-2))
    result = ecg.train_teacher(run)
    assert result.metrics["final"]["best_epoch"] < 6  # else the selected weights are the last ones
    model = ecg.teacher_network()
    model.load_state_dict(result.weights["final"])
    for part in ("train", "validation", "test"):
        h = model.plain_features(getattr(run.data, part).inputs)
        torch.testing.assert_close(
            result.soft_targets[f"final.{part}"], model.dense2(torch.relu(model.dense1(h))).detach()
        )


def test_the_tail_is_trained_at_its_own_rate():
    losses = {}
    for rate in (0.0, 1e-3):
        result = ecg.train_student(run_of(replace(TINY, epochs=2, tail_epochs=2, tail_rate=rate)))
        losses[rate] = [entry["validation_loss"] for entry in result.history]
    assert losses[0.0][:2] == losses[1e-3][:2]
    assert losses[0.0][0] != losses[0.0][1] == losses[0.0][2] == losses[0.0][3]
    assert losses[1e-3][2] != losses[1e-3][3]


# ---- the data


def test_the_parts_share_no_row_and_have_all_of_them_with_their_labels():
    data = ecg.load_data(TINY, {})
    rows, classes, _ = synthetic.heartbeats(700, seed=0)
    parts = [data.train, data.validation, data.test]
    found = [pair for part in parts for pair in zip(map(bytes, part.inputs.numpy()), part.labels.tolist(), strict=True)]
    assert sorted(found) == sorted(zip(map(bytes, rows), classes.tolist(), strict=True))
    assert len(set(found)) == 700
    assert [len(part.labels) for part in parts] == pytest.approx([490, 70, 140], abs=3)
    assert len({part.digest for part in parts}) == 3


def test_a_split_by_patients_shares_none_and_the_published_one_has_kaggles_sizes(monkeypatch, tmp_path):
    numbers = np.arange(109_446)
    classes, records = (
        (numbers % 5).astype(np.uint8),
        np.array(list(mitdb.RECORDS), np.int16)[numbers % len(mitdb.RECORDS)],
    )
    monkeypatch.setattr(mitdb, "heartbeats", lambda folder: (numbers[:, None].astype(np.float32), classes, records))

    def rows(split):
        data = ecg.load_data(replace(ecg.PAPER, split=split), {"mitdb": tmp_path})
        assert split in data.name
        parts = [data.train, data.validation, data.test]
        found = [part.inputs[:, 0].long() for part in parts]
        assert all(torch.equal(part.labels, row % 5) for part, row in zip(parts, found, strict=True))
        assert len(torch.cat(found).unique()) == sum(map(len, found))
        return [row.numpy() for row in found]

    # De Chazal, O'Dwyer and Reilly 2004, section II A; the validation records are ours.
    ds1 = {101, 106, 108, 109, 112, 114, 115, 116, 118, 119, 122, 124, 201, 203, 205, 207, 208, 209, 215, 220, 223, 230}
    ds2 = {100, 103, 105, 111, 113, 117, 121, 123, 200, 202, 210, 212, 213, 214, 219, 221, 222, 228, 231, 232, 233, 234}
    held = {101, 114, 124, 223}
    assert [set(records[part].tolist()) for part in rows("inter-patient")] == [ds1 - held, held, ds2]
    assert [len(part) for part in rows("published")] == [87_554, 4_379, 17_513]  # 21,892 in the test file
