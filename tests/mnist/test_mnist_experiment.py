"""MNIST: exact networks, arms that differ only in the teacher, one teacher for all seeds, a run that repeats."""

import math
import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_softmax, softmax
from torch import nn

from kdlib.data.pictures import Pictures
from kdlib.errors import KDError
from kdlib.judge.reading import load_claims
from kdlib.networks import parameter_count
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.plan import plan
from kdlib.run.store import Store
from kdlib.seeds import generator
from kdlib.training import evaluating, train_step
from replications.course_report import sham_targets
from replications.mnist import experiment as mnist
from tests import made_runs
from tests.made_runs import batches_of
from tests.oracles import check_predictions

TINY = replace(mnist.SMOKE, epochs=1, train_pictures=48, test_pictures=40)
NETWORKS = {"teacher": mnist.teacher_network, "student": mnist.student_network}


def run_of(config, seed=0, data=None):
    return made_runs.run_of(mnist.EXPERIMENT, config, seed, data)


def taught(config):
    return made_runs.taught(run_of(config))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    experiment = load_experiment("mnist")
    jobs = plan(experiment, experiment.profile("smoke"), [arm.name for arm in experiment.arms], [0, 1], Compute(), {})
    store = Store(tmp_path_factory.mktemp("store"))
    summary = execute(
        [job for job in jobs if job.description.seed == 0 or "distilled_by_one" in job.arms],
        store,
        compute=Compute(),
        folders={},
    )
    assert not summary.failed, summary.failed
    finished = [(job, run) for job in jobs if (run := summary.finished.get(job.description.id))]
    return {(arm, job.description.seed): run for job, run in finished for arm in job.arms}


# ---- the networks


def test_parameter_counts_are_the_sources():
    assert parameter_count(mnist.teacher_network()) == 1_422_378
    assert parameter_count(mnist.student_network()) == 693_962


def test_the_papers_values():
    expected = {
        "epochs": 10,
        "batch": 32,
        "learning_rate": 1e-3,
        "alpha": 0.2,
        "temperature": 10.0,
        "share": 1.0,
        "train_pictures": 60_000,
        "test_pictures": 10_000,
        "precision": "float32",
    }
    assert expected.items() <= asdict(mnist.PAPER).items()
    full = mnist.PROFILES["full"]
    assert full.config == mnist.PAPER
    assert full.seeds == 20
    assert not any(arm.change for arm in mnist.ARMS)


@pytest.mark.parametrize(("name", "widths"), [("teacher", (256, 128, 32, 10)), ("student", (128, 10))])
def test_the_forward_pass_is_that_of_separate_layers(name, widths):
    model = NETWORKS[name]().initialise(generator(0, "weights"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.2, 0.2, generator=generator(1, "biases"))
    assert [layer.out_features for layer in model.dense] == list(widths)
    x = torch.randint(256, (6, 1, 28, 28), generator=generator(0, "x"), dtype=torch.uint8)
    state = {key: value.double() for key, value in model.state_dict().items()}
    h = nn.functional.conv2d(x.double() / 255, state["conv.weight"], state["conv.bias"])
    assert h.shape == (6, 32, 26, 26)
    h = (
        nn.functional.max_pool2d(h.relu(), 2).permute(0, 2, 3, 1).flatten(1)
    )  # rows, columns, channels: as Keras flattens
    for number in range(len(widths)):
        h = h @ state[f"dense.{number}.weight"].T + state[f"dense.{number}.bias"]
        h = h.relu() if number < len(widths) - 1 else h
    with evaluating(model):
        torch.testing.assert_close(model(x).double(), h, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            model.plain_features(x / 255), mnist.features(x / 255, model.conv.weight, model.conv.bias)
        )


def test_dropout_takes_two_fifths_before_each_dense_layer_of_the_teacher_and_nothing_of_the_student():
    model = mnist.teacher_network().initialise(generator(0, "weights"))
    assert not any(isinstance(module, nn.Dropout) and module.p for module in mnist.student_network().modules())
    seen = []
    model.dropout.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    torch.manual_seed(0)
    x = torch.randint(256, (64, 1, 28, 28), generator=generator(0, "x"), dtype=torch.uint8)
    model(x)
    assert [inputs.shape[1] for inputs, _ in seen] == [5408, 256, 128, 32]
    for inputs, output in seen:
        assert (inputs >= 0).all()  # after ReLU
        alive = inputs > 0
        count = int(alive.sum())
        assert (output[alive] == 0).float().mean().item() == pytest.approx(0.4, abs=5 * math.sqrt(0.24 / count))
        kept = output > 0
        torch.testing.assert_close(output[kept], inputs[kept] / 0.6)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_begin_as_in_keras(name):
    draws = [NETWORKS[name]().initialise(generator(seed, "weights")) for seed in range(8)]
    # The normal cut at two standard deviations, whose own standard deviation is sqrt(2 / 9): a filter has 9 inputs.
    scale = math.sqrt(2 / 9) / stats.truncnorm(-2, 2).std()
    weights = torch.cat([model.conv.weight.flatten() for model in draws]).detach().double().numpy()
    assert stats.kstest(weights, stats.truncnorm(-2, 2, scale=scale).cdf).pvalue > 1e-3
    for layer in draws[0].dense:
        limit = math.sqrt(6 / (layer.in_features + layer.out_features))
        sample = layer.weight.detach().flatten()[:20_000].double().numpy()
        assert stats.kstest(sample, stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3
    assert all((parameter == 0).all() for parameter in draws[0].parameters() if parameter.dim() == 1)


def test_a_seeds_networks_begin_with_the_same_convolution_and_seeds_differ():
    weights = {
        (name, seed): make().initialise(generator(seed, "weights")).conv.weight
        for name, make in NETWORKS.items()
        for seed in (0, 1)
    }
    assert torch.equal(weights["teacher", 0], weights["student", 0])
    assert not torch.equal(weights["student", 0], weights["student", 1])


# ---- the arms


def test_one_teacher_taught_all_students_as_released_and_one_a_seed_those_of_the_control():
    experiment = load_experiment("mnist")
    jobs = plan(experiment, mnist.PROFILES["smoke"], [arm.name for arm in experiment.arms], range(20), Compute(), {})
    arms = {(name, job.description.seed): job for job in jobs for name in job.arms}

    def teachers(arm):
        return [arms[arm, seed].description.parents["teacher"] for seed in range(20)]

    assert set(teachers("distilled_by_one")) == {f"{arms['teacher', 0].description.id}/final"}
    assert len(set(teachers("distilled"))) == len(set(teachers("sham"))) == 20
    assert arms["one_teacher", 0] is arms["teacher", 0]
    assert [seed for name, seed in arms if name == "one_teacher"] == [0]
    assert len(jobs) == 20 + 20 + 20 + 19 + 20


def test_every_student_has_the_same_configuration():
    experiment = load_experiment("mnist")
    for profile in mnist.PROFILES.values():
        assert all(experiment.config(arm, profile) == profile.config for arm in experiment.arms)


def test_the_claims_are_about_arms_of_their_modes():
    experiment = load_experiment("mnist")
    reported = load_claims(experiment.folder / "claims.toml", [arm.name for arm in experiment.arms])
    modes = {arm.name: arm.modes for arm in experiment.arms}
    for claim in reported.claims.values():
        for mode, arms in claim.modes.items():
            assert all(mode in modes[arm] or "sham" in modes[arm] for arm in (*arms.arms, *arms.rivals)), (
                claim.name,
                mode,
            )
    # Right answers of 10,000, as the notebook prints them for its 20 students of each kind.
    alone = (
        9866,
        9857,
        9873,
        9868,
        9860,
        9857,
        9857,
        9859,
        9873,
        9876,
        9839,
        9830,
        9858,
        9862,
        9857,
        9862,
        9854,
        9871,
        9870,
        9858,
    )
    taught = (
        9887,
        9889,
        9893,
        9889,
        9892,
        9883,
        9887,
        9893,
        9895,
        9884,
        9899,
        9881,
        9882,
        9881,
        9886,
        9883,
        9887,
        9881,
        9884,
        9886,
    )
    for arm, right in (("baseline", alone), ("distilled_by_one", taught)):
        value = reported.value(arm, "accuracy")
        assert (value.value, value.runs) == (pytest.approx(statistics.mean(right) / 1e4, abs=5.1e-5), len(right))
        assert value.std == pytest.approx(statistics.stdev(right) / 1e4, abs=5e-6)
    spread = math.hypot(statistics.stdev(alone), statistics.stdev(taught)) / 1e4
    assert reported.claims["C1"].std == pytest.approx(spread, abs=1e-5)


# ---- what each arm is trained with


def test_the_loss_of_a_distilled_run_is_the_reports(monkeypatch):
    found = []

    def epochs(progress, batches, objective, **rest):
        batch = next(iter(batches(1)))
        found.append((objective(progress.model(batch.inputs), batch).item(), progress.model(batch.inputs), batch))
        progress.history.append({})
        yield 1

    monkeypatch.setattr(mnist, "epochs", epochs)
    assert (TINY.alpha, TINY.temperature) == (0.2, 10.0)
    mnist.train_mnist_distilled(taught(TINY)[0])
    ((loss, outputs, batch),) = found
    s, t = outputs.detach().double().numpy(), batch.soft.double().numpy()
    p, log_q = softmax(t / 10, 1), log_softmax(s / 10, 1)
    soft = 100 * np.mean(np.sum(p * (np.log(p) - log_q), 1))
    hard = -np.mean(log_softmax(s, 1)[np.arange(len(s)), batch.labels.numpy()])
    assert loss == pytest.approx(0.8 * hard + 0.2 * soft, rel=1e-5)


def test_taught_and_untaught_students_take_the_same_steps_from_the_same_weights(monkeypatch):
    steps = []

    def step(model, optimizer, objective, batch):
        if not steps:
            steps.append([value.sum().item() for value in model.parameters()])
        steps.append((batch.indices.tolist(), batch.inputs.sum().item(), optimizer.param_groups[0]["lr"]))
        return train_step(model, optimizer, objective, batch)

    monkeypatch.setattr("kdlib.training.train_step", step)
    run, _ = taught(replace(TINY, epochs=2))
    found = []
    for train in (mnist.train_mnist_student, mnist.train_mnist_distilled, mnist.train_mnist_sham):
        steps.clear()
        train(run)
        found.append(list(steps))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 1 + 2 * math.ceil(48 / 16)
    assert found[0][1][2] == 1e-3


def test_a_distilled_student_is_trained_on_its_teachers_logits_of_the_same_pictures(monkeypatch):
    run, kept = taught(TINY)
    seen = batches_of(mnist.train_mnist_distilled, run, monkeypatch)
    assert sorted(seen.indices.tolist()) == list(range(48))
    assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
    assert torch.equal(seen.soft, kept["final.train"][seen.indices])


@pytest.mark.parametrize("train", [mnist.train_mnist_teacher, mnist.train_mnist_distilled])
def test_what_a_run_says_of_its_predictions(train):
    run, kept = taught(TINY)
    alone = train is mnist.train_mnist_teacher
    result = train(replace(run, parents={}) if alone else run)
    model = (mnist.teacher_network if alone else mnist.student_network)()
    model.load_state_dict(result.weights["final"])
    with torch.no_grad():
        logits = model.eval()(run.data.test.inputs)
    check_predictions(result.metrics["final"], logits, None if alone else kept["final.test"])


def test_the_sham_gives_every_picture_the_targets_of_another_of_its_class(monkeypatch):
    run, kept = taught(TINY)
    seen = batches_of(mnist.train_mnist_sham, run, monkeypatch)
    labels, logits = run.data.train.labels, kept["final.train"]
    assert torch.equal(seen.labels, labels[seen.indices])
    source = [(logits == row).all(1).nonzero().item() for row in seen.soft]
    assert sorted(source) == list(range(48))
    assert torch.equal(labels[source], seen.labels)
    assert (torch.tensor(source) != seen.indices).float().mean() > 0.5  # classes of 4 or 5: one in five stays by chance
    targets = [sham_targets(replace(run, seed=seed)).logits for seed in (0, 1)]
    assert not torch.equal(*targets)  # each seed has its own permutation


@pytest.mark.parametrize("change", [{"alpha": 2.0}, {"temperature": 0.0}], ids=str)
def test_an_alpha_or_temperature_out_of_range_is_refused(change):
    with pytest.raises(KDError, match="expected alpha from 0 to 1, a finite temperature"):
        mnist.train_mnist_distilled(taught(replace(TINY, **change))[0])


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(KDError, match="precision: expected float32, found 'bfloat16'"):
        mnist.train_mnist_student(run_of(replace(TINY, precision="bfloat16")))


def test_soft_targets_of_other_pictures_are_refused():
    run, _ = taught(TINY)
    data = replace(run.data, train=replace(run.data.train, digest="other"))
    with pytest.raises(KDError, match="soft targets of these examples"):
        mnist.train_mnist_distilled(replace(run, data=data))


def test_kept_targets_are_the_teachers_logits_without_dropout():
    run = run_of(TINY)
    result = mnist.train_mnist_teacher(run)
    assert result.soft_targets.keys() == {"final.train", "final.test"}
    model = mnist.teacher_network().eval()
    model.load_state_dict(result.weights["final"])
    for part in ("train", "test"):
        with torch.no_grad():
            expected = model(getattr(run.data, part).inputs)
        torch.testing.assert_close(result.soft_targets[f"final.{part}"], expected)
    assert not mnist.train_mnist_student(run).soft_targets


def test_the_test_part_moves_no_weight_and_the_last_epochs_are_kept():
    config = replace(TINY, epochs=3)
    data = mnist.load_data(config, {})
    blind = replace(data, test=replace(data.test, labels=torch.zeros_like(data.test.labels)))
    first, second = (mnist.train_mnist_student(run_of(config, data=part)) for part in (data, blind))
    assert all(torch.equal(value, second.weights["final"][name]) for name, value in first.weights["final"].items())
    assert first.metrics["final"]["accuracy"] != second.metrics["final"]["accuracy"]
    assert len(first.history) == first.metrics["final"]["epochs"] == 3
    model = mnist.student_network()
    model.load_state_dict(first.weights["final"])
    with torch.no_grad():
        right = (model(data.test.inputs).argmax(1) == data.test.labels).float().mean().item()
    assert first.metrics["final"]["accuracy"] == pytest.approx(right)


def test_a_teacher_at_chance_teaches_nobody():
    run, kept = taught(TINY)
    kept["final.train"][:] = nn.functional.one_hot(torch.zeros(48, dtype=torch.int64), 10)
    with pytest.raises(KDError, match="above chance"):
        mnist.train_mnist_distilled(replace(run, data=replace(run.data, synthetic=False)))


# ---- a whole run


@pytest.mark.slow
def test_a_smoke_run_has_every_arm_and_repeats_to_the_last_bit(trained, tmp_path):
    assert {name for name, seed in trained if seed == 0} == {arm.name for arm in mnist.ARMS}
    teacher = trained["one_teacher", 0].id
    for seed in (0, 1):
        assert trained["distilled_by_one", seed].description.parents == {"teacher": f"{teacher}/final"}
    experiment = load_experiment("mnist")
    jobs = plan(experiment, experiment.profile("smoke"), ["baseline"], [0], Compute(), {})
    summary = execute(jobs, Store(tmp_path), compute=Compute(), folders={})
    (again,) = summary.finished.values()
    assert again.weights_sha256 == trained["baseline", 0].weights_sha256
    assert again.metrics == trained["baseline", 0].metrics


@pytest.mark.slow
def test_arms_that_differ_in_their_targets_end_in_different_students(trained):
    arms = ("baseline", "distilled", "sham")
    assert len({trained[arm, 0].weights_sha256 for arm in arms}) == 3
    assert trained["distilled", 0].id == trained["distilled_by_one", 0].id
    final = trained["baseline", 0].metrics["final"]
    assert final["accuracy"] > 0.5
    assert {"agreement", "teacher_kl"} <= trained["sham", 0].metrics["final"].keys() - final.keys()


# ---- the data


def test_the_parts_are_the_first_pictures_in_their_order(monkeypatch, tmp_path):
    numbers = np.arange(50, dtype=np.uint8)
    images = np.zeros((50, 1, 28, 28), np.uint8)
    images[:, 0, 0, 0] = numbers
    pictures = Pictures(images, numbers % 10, images[:20], numbers[:20] % 10)
    monkeypatch.setattr(mnist.mnist, "digits", lambda folder: pictures)
    data = mnist.load_data(replace(TINY, train_pictures=30, test_pictures=20), {"mnist": tmp_path})
    assert data.name == "MNIST, first 30 training pictures"
    assert data.train.inputs.dtype == torch.uint8
    assert data.train.inputs[:, 0, 0, 0].tolist() == list(range(30))
    assert torch.equal(data.train.labels, data.train.inputs[:, 0, 0, 0].long() % 10)
    assert data.test.inputs[:, 0, 0, 0].tolist() == list(range(20))
    whole = mnist.load_data(replace(TINY, train_pictures=50, test_pictures=20), {"mnist": tmp_path})
    assert whole.name == "MNIST"
    assert len({part.digest for each in (data, whole) for part in (each.train, each.test)}) == 4


# ---- the figure


def test_the_figure_is_drawn_and_pairs_the_seeds():
    from kdlib.run.records import Record
    from replications.mnist.figures import draw

    experiment = load_experiment("mnist")
    reported = load_claims(experiment.folder / "claims.toml", [arm.name for arm in experiment.arms])
    scores = {("baseline", 0): 0.98, ("baseline", 1): 0.97, ("distilled", 1): 0.99, ("sham", 1): 0.96}
    records = [
        Record(
            "quick",
            seed,
            f"{arm}{seed}",
            {arm: "final"},
            "MNIST",
            {"data": "d", "config": {}},
            {"final": {"accuracy": score}},
            [],
            {},
            "",
        )
        for (arm, seed), score in scores.items()
    ]
    table = draw(records, reported).data
    rows = table[(table["over"] != "") & (table["mark"] == "seed")].to_dict("records")
    assert {row["at"]: (row["seed"], row["value"]) for row in rows} == {
        "teacher per seed, over scratch": (1, pytest.approx(2)),
        "sham, over scratch": (1, pytest.approx(-1)),
        "teacher per seed, over sham": (1, pytest.approx(3)),
    }
