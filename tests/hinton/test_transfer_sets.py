"""Transfer sets without some digits or with 3% of them, corrected biases, ensembles, and gradients of soft targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from torch.func import grad, vmap

from kdlib.batches import Examples
from kdlib.errors import KDError
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import hard_targets
from replications.hinton import digits, ensembles, experiment, gradients, transfer_sets
from replications.hinton.config import Config
from tests.hinton.tiny import tiny_run
from tests.made_runs import batches_of, taught

ARMS = {arm.name: arm for arm in experiment.ARMS}


def logits(rows, seed=0, scale=3.0):
    return scale * torch.randn(rows, 10, generator=generator(seed, "logits"))


# ---- which digits


@pytest.mark.parametrize(("arm", "kept"), [("no_threes", {*range(10)} - {3}), ("only_78", {7, 8})])
def test_transfer_sets_keep_all_and_only_the_right_digits_without_labels(arm, kept, monkeypatch):
    run, soft = taught(tiny_run(epochs=1, **ARMS[arm].change))
    labels = run.data.train.labels
    rows = [row for row in range(120) if labels[row].item() in kept]
    with monkeypatch.context() as patched:
        patched.setattr(transfer_sets, "best_bias", lambda *args: 0.0)
        seen = batches_of(transfer_sets.train_left_out, run, patched)
    assert seen.labels.shape == (len(rows), 0)
    assert sorted(seen.indices.tolist()) == list(range(len(rows)))
    source = torch.tensor(rows)[seen.indices]
    assert torch.equal(seen.inputs, run.data.train.inputs[source])
    assert torch.equal(seen.soft, soft["final.train"][source])


def test_the_three_arms_without_3s_are_snapshots_of_one_run_that_differ_in_one_bias():
    run, _ = taught(tiny_run(**ARMS["no_threes"].change))
    result = transfer_sets.train_left_out(run)
    assert result.weights.keys() == result.metrics.keys() == {"final", "corrected", "matched"}
    for snapshot in ("corrected", "matched"):
        for name, value in result.weights[snapshot].items():
            difference = value - result.weights["final"][name]
            if name == "layers.2.bias":
                assert difference[3].item() == pytest.approx(result.metrics[snapshot]["bias"], abs=1e-4)
                difference[3] = 0
            assert not difference.any()
        model = digits.Perceptron(30).eval()
        model.load_state_dict(result.weights[snapshot])
        predicted = model(run.data.test.inputs).argmax(1)
        labels = run.data.test.labels
        threes = labels == 3
        assert result.metrics[snapshot]["errors"] == (predicted != labels).sum().item()
        share = (predicted[threes] == 3).float().mean().item()
        assert result.metrics[snapshot]["threes_accuracy"] == pytest.approx(share)
    right = result.metrics["corrected"]["right_threes"]
    assert len(right) == result.metrics["corrected"]["confusion"][3][3]
    assert result.metrics["corrected"]["errors"] == min(
        [result.metrics["corrected"]["errors"], *(count for _, count in result.metrics["final"]["curve"])]
    )


@pytest.mark.parametrize(("arm", "shifted"), [("no_threes", [3]), ("only_78", [7, 8])])
def test_the_matched_bias_predicts_the_classes_as_often_as_the_teacher_on_the_transfer_set(arm, shifted):
    run, soft = taught(tiny_run(**ARMS[arm].change))
    result = transfer_sets.train_left_out(run)
    model = digits.Perceptron(30).eval()
    model.load_state_dict(result.weights["matched"])
    kept = ~torch.isin(run.data.train.labels, torch.tensor(run.config.left_out))
    own = softmax(model(run.data.train.inputs[kept]).detach().double().numpy(), axis=1)[:, shifted].sum(1).mean()
    aim = softmax(soft["final.train"][kept].double().numpy(), axis=1)[:, shifted].sum(1).mean()
    assert own == pytest.approx(aim, abs=1e-5)


@pytest.mark.parametrize("taught_by", [None, "teacher"])
def test_a_small_share_is_balanced_and_repeated_for_as_many_steps(taught_by, monkeypatch):
    run, soft = taught(tiny_run(epochs=1, small_share=0.25))
    train = transfer_sets.train_small_soft if taught_by else transfer_sets.train_small_hard
    seen = batches_of(train, run, monkeypatch)
    assert len(seen.labels) == 120
    inputs = {picture.numpy().tobytes(): row for row, picture in enumerate(run.data.train.inputs)}
    source = [inputs[picture.numpy().tobytes()] for picture in seen.inputs]
    distinct = sorted({*source})
    assert run.data.train.labels[distinct].bincount().tolist() == [3] * 10
    assert {source.count(row) for row in distinct} == {4}
    assert torch.equal(seen.labels, run.data.train.labels[source])
    if taught_by:
        assert torch.equal(seen.soft, soft["final.train"][source])
    else:
        assert seen.soft is None


def test_a_share_without_a_digit_of_each_class_is_refused():
    with pytest.raises(KDError, match="expected 0 digits of each class, at least 1"):
        transfer_sets.small_share(torch.arange(20) % 10, 0.01, generator(0, "x"))


# ---- biases


@pytest.mark.parametrize("classes", [(3,), (7, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_bias_is_that_of_a_search_by_brute_force(classes, seed):
    values, labels = logits(200, seed), torch.randint(10, (200,), generator=generator(seed, "labels"))
    values[torch.arange(200), labels] += 3
    values[:, list(classes)] -= 2.5
    found = transfer_sets.best_bias(values, labels, classes)
    errors = []
    for bias in np.linspace(-20, 20, 2001):
        changed = values.double().numpy().copy()
        changed[:, list(classes)] += bias
        errors.append(int((changed.argmax(1) != labels.numpy()).sum()))
    assert transfer_sets.errors_with(values, labels, classes, found) <= min(errors)
    best = np.linspace(-20, 20, 2001)[np.array(errors) == min(errors)]
    assert found <= best.max() + 0.5
    assert found > 0
    if transfer_sets.errors_with(values, labels, classes, 0.0) > min(errors):
        assert found != 0


def test_the_matching_bias_gives_the_teachers_frequency_without_labels():
    student, teacher = logits(500, 1), logits(500, 2)
    for classes in ((3,), (7, 8)):
        bias = transfer_sets.matching_bias(student, teacher, classes)
        changed = student.double().numpy().copy()
        changed[:, list(classes)] += bias
        means = [softmax(each, 1)[:, list(classes)].sum(1).mean() for each in (changed, teacher.double().numpy())]
        assert means[0] == pytest.approx(means[1], rel=1e-6)
    assert transfer_sets.matching_bias(teacher, teacher, (3,)) == pytest.approx(0, abs=1e-6)
    shifted = teacher.clone()
    shifted[:, 3] -= 2.25
    assert transfer_sets.matching_bias(shifted, teacher, (3,)) == pytest.approx(2.25, abs=1e-5)


def test_a_frequency_that_no_bias_reaches_is_refused():
    teacher = logits(5)
    teacher[:, 3] = -1000
    with pytest.raises(KDError, match="expected a bias between -100 and 100"):
        transfer_sets.matching_bias(logits(5), teacher, (3,))


# ---- ensembles


def members(part="train", rows=20):
    return [SoftTargets(logits(rows, seed).half().float(), f"run {seed}", f"data/{part}") for seed in range(10)]


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_means_of_members_are_those_of_scipy(kind, temperature, monkeypatch):
    soft = members()
    monkeypatch.setattr(
        "kdlib.run.experiment.Run.soft_targets", lambda run, role, part, examples: soft[int(role.split("_")[1])]
    )
    run = tiny_run(mean=kind)
    found = softmax(ensembles.of_members(run, "train", temperature).logits.double().numpy() / temperature, 1)
    each = np.stack([softmax(one.logits.double().numpy() / temperature, 1) for one in soft])
    wanted = each.mean(0) if kind == "arithmetic" else np.exp(np.log(each).mean(0))
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), rtol=2e-5)


def test_every_ensemble_has_ten_members_of_its_own_seed_and_the_baseline_is_one():
    for name in ("ensemble_arithmetic", "by_ensemble_geometric"):
        assert list(ARMS[name].needs.values()) == ["baseline", *(f"member_{number}" for number in range(1, 10))]
    assert {ARMS[name].seed for name in ARMS[name].needs.values()} == {None}


def test_a_mean_that_there_is_not_is_refused():
    with pytest.raises(KDError, match="mean: expected arithmetic or geometric, found 'harmonic'"):
        ensembles.kind_of("harmonic")


# ---- gradients


def test_the_limit_of_high_temperatures_is_logit_matching_and_gradients_fall_as_one_over_t_squared():
    run, kept = taught(tiny_run())
    student = (logits(60, 7).half().float(), logits(60, 8).half().float())
    about = replace(run).parents["teacher"][0]
    kept["final.test"] = student[0]
    other = type(about)(**{**about.__dict__, "soft_targets": lambda part: student[1]})
    run = replace(run, parents={"teacher": (about, "final"), "student": (other, "final")})
    result = gradients.measure_limit(run)
    assert result.metrics["final"] == {"matching_order": 1.0, "gradient_order": 2.0, "epochs": 0}
    v, z = (each.double().numpy() for each in student)
    v, z = v - v.mean(1, keepdims=True), z - z.mean(1, keepdims=True)
    errors, sizes = [], []
    for T in (1e4, 2e4):
        unscaled = (softmax(z / T, 1) - softmax(v / T, 1)) / T / 60  # Eq. 2, mean over the digits
        limit = (z - v) / 10 / 60  # Eq. 4 times T^2
        errors.append(np.linalg.norm(T**2 * unscaled - limit) / np.linalg.norm(limit))
        sizes.append(np.linalg.norm(unscaled))
    np.testing.assert_allclose(result.weights["final"]["relative_errors"].numpy(), errors, rtol=1e-6)
    np.testing.assert_allclose(result.weights["final"]["sizes"].numpy(), sizes, rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_the_noise_of_gradients_is_that_of_single_examples(soft):
    model = digits.Perceptron(12)
    x = torch.randint(256, (30, 1, 28, 28), generator=generator(0, "x"), dtype=torch.uint8)
    examples = Examples(x, torch.arange(30) % 10, "d")
    targets = SoftTargets(logits(30), "t", "d") if soft else None
    objective = digits.distillation(Config()) if soft else hard_targets
    found = gradients.gradient_noise(model, examples, objective, targets, count=20)
    weights = {name: value.detach().double() for name, value in model.named_parameters()}

    def loss(weights, x, label, row):
        h = x.reshape(1, 784).double() / 255
        for number in range(3):
            h = h.relu() if number else h
            h = h @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
        hard = nn.functional.cross_entropy(h, label[None])
        if not soft:
            return hard
        p, log_q = (row[None].double() / 20).softmax(1), (h / 20).log_softmax(1)
        return 0.1 * hard + 0.9 * 400 * (p * (p.log() - log_q)).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, x[:20], examples.labels[:20], logits(30)[:20])
    flat = torch.cat([value.flatten(1) for value in each.values()], 1)
    mean = flat.mean(0)
    wanted = ((flat - mean) ** 2).sum(1).mean() / (flat**2).sum(1).mean()
    assert found == pytest.approx(wanted.item(), rel=1e-4)
    assert 0 < found < 1


def test_the_first_weights_and_those_after_an_epoch_are_measured():
    run = tiny_run(epochs=2)
    found = digits.train_hard(run).metrics["final"]
    train = run.data.train
    assert found["noise_at_start"] == gradients.gradient_noise(digits.student(run), train, hard_targets, None)
    short = digits.student(run)
    optimizer = torch.optim.Adam(short.parameters(), 1e-3, fused=True)
    batches = digits.Batches(train, 16, 0)
    for batch in batches(1):
        optimizer.zero_grad()
        hard_targets(short(batch.inputs), batch).backward()
        optimizer.step()
    expected = gradients.gradient_noise(short, train, hard_targets, None)
    assert found["noise_after_epoch"] == pytest.approx(expected, rel=1e-5)
