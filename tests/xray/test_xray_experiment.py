"""The x-ray experiment: exact networks, the printed loss, frozen layers, continued students, and runs that repeat."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from sklearn.metrics import balanced_accuracy_score

from kdlib.batches import Batch
from kdlib.judge.reading import load_claims
from kdlib.networks import keras_adam, keras_glorot_, parameter_count
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, Profile, load_experiment
from kdlib.run.finished import read_run
from kdlib.run.plan import plan
from kdlib.run.store import Description, Result, Store
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import hard_targets, train_step
from replications.xray import experiment as xray
from replications.xray import recorded
from tests.conftest import contents
from tests.made_runs import run_of, taught

EXPERIMENT = load_experiment("xray")
ARMS = {arm.name: arm for arm in EXPERIMENT.arms}
TINY = replace(xray.SMOKE, epochs=1, steps=2, batch=4)
CPU = Compute()


def config_of(name, profile="full"):
    return EXPERIMENT.config(ARMS[name], EXPERIMENT.profile(profile))


# ---- the networks


def test_parameter_counts_are_the_sources():
    with torch.device("meta"):
        assert parameter_count(xray.Vgg16()) == 27_561_795
    assert parameter_count(xray.Student()) == 295_947
    assert 93 < 27_561_795 / 295_947 < 94


def test_the_student_is_the_sources_stack_of_layers():
    """Written layer by layer, with ReLU before the max-pool: the same logits and gradients."""
    model = keras_glorot_(xray.Student(), generator(0, "weights")).eval()
    pictures = torch.randint(0, 256, (3, 1, 224, 224), generator=generator(0, "x"), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    h, sides = (pictures.float() / 255).repeat(1, 3, 1, 1), []
    for first, second in zip(model.first, model.second, strict=True):
        assert first.padding == second.padding == (0, 0)
        h = F.max_pool2d(F.relu(second(F.relu(first(h)))), 2)
        sides.append(tuple(h.shape[1:]))
    assert sides == [(8, 110, 110), (16, 53, 53), (32, 24, 24), (64, 10, 10), (64, 3, 3)]
    expected = model.output(F.relu(model.hidden(h.flatten(1))))
    found = model(pictures)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    grads = [torch.autograd.grad(F.cross_entropy(out, labels), model.parameters()) for out in (expected, found)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("network", "layer"), [(xray.Student, "output"), (lambda: xray.Vgg16(width=1), "output")])
def test_half_of_the_hidden_layer_is_dropped_in_training_alone(network, layer):
    torch.manual_seed(0)
    model, seen = network(), []
    getattr(model, layer).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.hidden.bias.data.fill_(5)  # so that ReLU lets everything through
    picture = torch.zeros(4, 1, 224, 224, dtype=torch.uint8)
    model.train()(picture)
    model.eval()(picture)
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert (seen[1] != 0).all()


def test_the_teachers_first_eight_keras_layers_do_not_move_and_all_others_do():
    model = keras_glorot_(xray.Vgg16(width=2), generator(0, "w"))
    keras = ["input", "conv", "conv", "pool", "conv", "conv", "pool", "conv"]  # the first eight
    frozen = [name for name in keras if name == "conv"]
    convolutions = [layer for layer in model.features if isinstance(layer, torch.nn.Conv2d)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    batch = Batch(torch.randint(0, 256, (6, 1, 224, 224), dtype=torch.uint8), torch.arange(6) % 3, torch.arange(6))
    train_step(model.train(), keras_adam(learning, 1e-2), hard_targets, batch)
    moved = [not torch.equal(c.weight, b) for c, b in zip(
        convolutions, [v for n, v in before.items() if "features" in n and "weight" in n], strict=True)]  # fmt: skip
    assert moved == [False] * len(frozen) + [True] * (13 - len(frozen))
    assert len(frozen) == 5
    for name in ("hidden.weight", "output.weight"):
        assert not torch.equal(model.state_dict()[name], before[name])


def test_the_teacher_begins_with_the_given_weights():
    pretrained = {
        name: torch.full_like(value, 0.01) for name, value in xray.Vgg16(width=4).features.state_dict().items()
    }
    tensors = {f"features.{name}": value for name, value in pretrained.items()}
    run = run_of(EXPERIMENT, replace(TINY, learning_rate=0.0))
    run.data = replace(run.data, weights=SimpleNamespace(tensors=tensors))
    weights = xray.train_teacher(run).weights["final"]
    assert all(torch.equal(weights[name], value) for name, value in tensors.items())
    run.data = replace(run.data, weights=SimpleNamespace(tensors={"features.99.weight": torch.zeros(1)}))
    with pytest.raises(RuntimeError, match=r"features\.99\.weight"):
        xray.train_teacher(run)


# ---- the loss


@pytest.mark.parametrize(("temperature", "corrected"), [(2.0, False), (6.0, False), (6.0, True)])
def test_the_loss_is_the_printed_one(temperature, corrected):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (2, 12, 3))
    labels = rng.integers(0, 3, 12)
    hard = -log_softmax(student, 1)[np.arange(12), labels].mean()
    p, q = log_softmax(teacher / temperature, 1), log_softmax(student / temperature, 1)
    divergence = np.sum(np.exp(p) * (p - q), 1).mean()
    expected = 0.5 * hard + (0.5 * temperature**2 if corrected else 1) * divergence
    config = replace(xray.PAPER, temperature=temperature, corrected=corrected)
    batch = Batch(torch.zeros(12, 1), torch.from_numpy(labels), torch.arange(12), torch.from_numpy(teacher))
    assert xray.distillation(config)(torch.from_numpy(student), batch).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("change", [{"alpha": 1.1}, {"alpha": math.nan}, {"temperature": 0.0}])
def test_weights_out_of_range_are_refused(change):
    with pytest.raises(xray.KDError, match="expected alpha from 0 to 1 and a temperature above 0"):
        xray.distillation(replace(xray.PAPER, **change))


def test_another_precision_is_refused():
    with pytest.raises(xray.KDError, match="precision: expected float32 or bfloat16, found 'float16'"):
        xray.Student("float16")


# ---- the arms


def test_the_papers_values():
    expected = {
        "epochs": 50,
        "steps": 90,
        "batch": 32,
        "learning_rate": 1e-4,
        "decay": 1e-3,
        "alpha": 0.5,
        "teacher_start": "imagenet",
        "recorded_teacher": "",
        "precision": "float32",
    }
    assert expected.items() <= asdict(xray.PAPER).items()
    full = EXPERIMENT.profile("full")
    assert (full.config, full.seeds >= 5, full.arms) == (xray.FULL, True, ())
    # The recorded teacher had the paper's settings, in this code's own training.
    assert replace(full.config, recorded_teacher="") == xray.PAPER == EXPERIMENT.profile("own_teacher").config
    teacher = read_run(recorded.RECORDED / full.config.recorded_teacher)
    described = asdict(config_of("teacher", "own_teacher")) | {"device": "cpu", "threads": 1}
    assert described == teacher.description.config


def test_what_each_arm_is():
    needs = {name: dict(arm.needs) for name, arm in ARMS.items()}
    teacher = {"teacher": "teacher"}
    assert needs == {
        "teacher": {},
        "teacher_tested": teacher,
        "baseline": {},
        "baseline_50": {},
        "baseline_100": {"start": "baseline_50"},
        "distilled_T_2": teacher,
        "distilled_T_6": teacher | {"start": "distilled_T_2"},
        "distilled_T_6_fresh": teacher,
        "distilled_T_6_corrected": teacher,
        "sham": teacher,
        "sham_corrected": teacher,
    }
    assert [name for name, arm in ARMS.items() if arm.seed is not None] == ["teacher"]
    for name in ARMS:
        config = config_of(name)
        expected = replace(
            xray.FULL,
            patience=5 if name in ("teacher", "baseline") else 0,
            temperature=2.0 if name == "distilled_T_2" else 6.0,
            corrected=name.endswith("corrected"),
        )
        assert config == expected, name


def test_the_claims_numbers_are_the_texts():
    reported = load_claims(EXPERIMENT.folder / "claims.toml", list(ARMS))
    for arm, value in {"teacher": 0.77, "distilled_T_2": 0.74, "distilled_T_6": 0.75, "baseline": 0.64}.items():
        assert reported.value(arm, "accuracy").value == value
    assert reported.claims["C1"].reported == pytest.approx(0.75 - 0.64)
    assert {name for name, claim in reported.claims.items() if not claim.ours} == {"C1", "C2", "C3", "C4"}
    assert reported.claims["C2"].margin == 0.03


@pytest.mark.parametrize(
    ("scores", "stopped"),
    [
        ([0.3], 0),
        ([0.5, 0.4, 0.4, 0.4, 0.4], 0),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], 6),
        ([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], 6),  # an equal score is no better one
        ([0.1, 0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9], 10),
    ],
)
def test_training_stops_five_epochs_after_the_best_one(scores, stopped):
    """The rule of Keras's EarlyStopping, as a loop that counts."""
    best, wait, at = -1.0, 0, 0
    for epoch, score in enumerate(scores, 1):
        best, wait = (score, 0) if score > best else (best, wait + 1)
        if wait >= 5 and not at:
            at = epoch
    assert at == stopped
    first = next((n for n in range(1, len(scores) + 1) if xray.stops(scores[:n], 5)), 0)
    assert first == stopped


def test_a_training_that_no_longer_improves_stops():
    config = replace(TINY, epochs=4, steps=1, learning_rate=0.0, patience=2)
    result = xray.train_student(run_of(EXPERIMENT, config))
    assert len(result.history) == 3 == result.metrics["final"]["epochs"]


def test_the_correlation_with_the_soft_targets_is_the_one_within_classes():
    """Written as loops, in NumPy; what all pictures of a class share, and what all logits share, does not count."""
    run = run_of(EXPERIMENT, TINY)
    train, views = run.data.train, run.data.views
    model = keras_glorot_(xray.Student(), generator(1, "weights")).eval()
    student = model(train.inputs).detach().double().numpy()
    noise = torch.randn(student.shape, dtype=torch.float64, generator=generator(0, "noise")).numpy()
    teacher = student + 0.003 * noise + 7 * np.eye(3)[train.labels] + np.arange(len(student))[:, None]
    each = []
    for k in range(3):
        pairs = [[], []]
        rows = [row for row in range(0, len(student), views) if train.labels[row] == k]
        for logits, values in zip((student, teacher), pairs, strict=True):
            relative = [logits[row] - logits[row].mean() for row in rows]
            values += [value for row in relative for value in row - np.mean(relative, axis=0)]
        each.append(np.corrcoef(*pairs)[0, 1])
    soft = SoftTargets(torch.from_numpy(teacher), "made", train.digest, train.view)
    found = xray.follows(model, run.data, soft)
    assert found == pytest.approx(np.mean(each), abs=1e-6)
    assert 0.1 < found < 0.9
    sham = soft.permuted_within_classes(train.labels, generator(0, "sham"))
    assert abs(xray.follows(model, run.data, sham)) < found / 2


# ---- what each arm is trained with


def steps_of(monkeypatch, train, run):
    """The initial weights of a training and what it does at each step."""
    seen = []

    def step(model, optimizer, objective, batch):
        if not seen:
            seen.append([value.detach().clone() for value in model.parameters()])
            assert not optimizer.state
            assert (type(optimizer), optimizer.param_groups[0]["eps"]) == (torch.optim.Adam, 1e-8)
        rate = optimizer.param_groups[0]["lr"]
        seen.append((batch.indices.tolist(), batch.inputs.sum().item(), rate, batch.soft))
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    train(run)
    return seen


def test_arms_of_a_seed_take_the_same_views_at_the_same_rates_from_the_same_weights(monkeypatch):
    run, kept = taught(run_of(EXPERIMENT, replace(TINY, epochs=2), seed=3))
    every = [
        steps_of(monkeypatch, train, run)
        for train in (xray.train_student, xray.train_distilled, xray.train_distilled_sham)
    ]
    expected = keras_glorot_(xray.Student(), generator(3, "weights")).parameters()
    assert all(torch.equal(a, b) for a, b in zip(every[0][0], expected, strict=True))
    for other in every[1:]:
        assert all(torch.equal(a, b) for a, b in zip(every[0][0], other[0], strict=True))
        assert [step[:3] for step in other[1:]] == [step[:3] for step in every[0][1:]]
    assert [step[2] for step in every[0][1:]] == [1e-3 / (1 + 1e-3 * step) for step in range(4)]
    labels, logits = run.data.train.labels, kept["final.train"]
    for real, sham in zip(every[1][1:], every[2][1:], strict=True):
        assert torch.equal(real[3], logits[real[0]])
        source = [(logits == row).all(1).nonzero().item() for row in sham[3]]
        assert labels[source].tolist() == labels[sham[0]].tolist()
    assert any(not torch.equal(a[3], b[3]) for a, b in zip(every[1][1:], every[2][1:], strict=True))


def test_a_continued_student_begins_with_the_last_weights_of_its_parent(monkeypatch):
    run, _ = taught(run_of(EXPERIMENT, TINY))
    weights = keras_glorot_(xray.Student(), generator(9, "others")).state_dict()
    parent = SimpleNamespace(weights={"final": weights}.__getitem__)
    begun = steps_of(
        monkeypatch, xray.train_distilled, replace(run, parents=run.parents | {"start": (parent, "final")})
    )
    assert all(torch.equal(a, b) for a, b in zip(begun[0], weights.values(), strict=True))


def test_plain_soft_targets_do_not_fit_the_bank():
    run, _ = taught(run_of(EXPERIMENT, TINY))
    with pytest.raises(xray.KDError, match="view 'bank of 2 views, rule 1'"):
        run.soft_targets("teacher", "train", run.data.train)


# ---- metrics


def test_metrics_are_of_the_seeds_parts():
    run, kept = taught(run_of(EXPERIMENT, TINY, seed=5))
    logits = torch.randn(len(run.data.others.labels), 3, generator=generator(0, "logits"))
    found = xray.measure(run, logits)
    parts, labels, guess = run.data.parts(5), run.data.others.labels, logits.argmax(1)
    assert found["accuracy"] == pytest.approx((guess == labels)[parts.test].float().mean().item())
    assert found["validation_accuracy"] == pytest.approx((guess == labels)[parts.validation].float().mean().item())
    for name, rows in (("unseen_accuracy", parts.unseen), ("unseen_person_accuracy", parts.unseen_persons)):
        assert found[name] == pytest.approx(balanced_accuracy_score(labels[rows], guess[rows]))
    teacher = kept["final.others"][parts.test].argmax(1)
    assert found["agreement"] == pytest.approx((guess[parts.test] == teacher).float().mean().item())


def test_the_teacher_is_measured_on_the_pictures_of_each_seed():
    run, kept = taught(run_of(EXPERIMENT, TINY, seed=2))
    result = xray.train_teacher_tested(run)
    found = result.metrics["final"]
    expected = xray.measure(replace(run, parents={}), kept["final.others"])
    assert found["agreement"] == 1
    assert expected.items() <= found.items()
    assert (found["parameters"], found["epochs"]) == (7, 0)
    assert torch.equal(result.weights["final"]["logits"], kept["final.others"][run.data.parts(2).test])


# ---- the recorded teacher


@pytest.fixture
def kept_teacher(tmp_path, monkeypatch):
    """A function that records a teacher of given description and returns the run that looks it up."""
    monkeypatch.setattr(recorded, "RECORDED", tmp_path / "runs")
    run = run_of(EXPERIMENT, TINY)
    run.data = replace(run.data, synthetic=False)
    logits = {f"final.{part}": F.one_hot(getattr(run.data, part).labels, 3).float() for part in ("train", "others")}

    def made(recipe="xray/train_teacher", seed=0, data=""):
        description = Description(recipe, 1, {}, seed, data or recorded.expected_data(run.data))
        metrics = {"final": {"parameters": 27_561_795, "epochs": 9}}
        finished = Store(tmp_path).save(description, Result(metrics, [{"training_loss": 0.5}] * 9, {}, logits), {})
        return replace(run, config=replace(TINY, recorded_teacher=finished.id))

    return made


def test_a_recorded_teacher_gives_its_logits(kept_teacher):
    run = kept_teacher()
    result = xray.train_teacher(run)
    assert result.metrics["final"]["accuracy"] == 1
    assert result.metrics["final"]["parameters"] == 27_561_795
    assert len(result.history) == 9 == result.metrics["final"]["epochs"]
    assert torch.equal(result.weights["final"]["logits"], result.soft_targets["final.others"])
    assert torch.equal(result.soft_targets["final.train"].argmax(1), run.data.train.labels)


@pytest.mark.parametrize(
    ("about", "change", "message"),
    [
        ({}, {"recorded_teacher": "none"}, "expected a run in .*, found none named none; use one of its folders"),
        ({}, {"teacher_start": "scratch"}, "teacher_start: expected imagenet, as the recorded teacher has, found 'scr"),
        ({"seed": 1}, {}, "expected a recorded teacher of seed 0, found one of 1"),
        ({"recipe": "xray/train_student"}, {}, "of training function train_teacher, found one of train_student"),
        ({"data": "0123456789abcdef"}, {}, "of data digest .*, found one of 0123456789abcdef; get the data again"),
    ],
)
def test_another_recorded_teacher_is_refused(kept_teacher, about, change, message):
    run = kept_teacher(**about)
    with pytest.raises(xray.KDError, match=message):
        xray.train_teacher(replace(run, config=replace(run.config, **change)))


# ---- whole runs


@pytest.mark.slow
def test_runs_repeat_to_the_last_byte(tmp_path):
    found = []
    for folder in ("first", "second"):
        store, profile = Store(tmp_path / folder), Profile(TINY, seeds=1, synthetic=True)
        jobs = plan(EXPERIMENT, profile, ["distilled_T_6"], [0], CPU, {})
        summary = execute(jobs, store, compute=CPU, folders={})
        assert not summary.failed, summary.failed
        found.append(contents(Path(store.folder)))
    assert found[0] == found[1]
    assert len(found[0]) == 7  # 3 runs of 2 files, and the teacher's soft targets
    (start, continued) = (
        summary.finished[job.description.id] for job in jobs if {"distilled_T_2", "distilled_T_6"} & {*job.arms}
    )
    assert continued.trace["start"] != start.trace["start"]
    assert continued.parents["start"]["weights"] == start.weights_sha256
