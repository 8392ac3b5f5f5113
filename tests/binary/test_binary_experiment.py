"""The binary loss: the networks and their cost, splits and views, what each arm is trained with, a run that repeats."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_expit
from scipy.stats import pearsonr

from kdlib.batches import Batch
from kdlib.data import vgg16
from kdlib.errors import KDError
from kdlib.judge.reading import load_claims
from kdlib.losses import binary_distillation
from kdlib.networks import parameter_count
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.plan import plan
from kdlib.run.store import Store
from kdlib.seeds import generator
from kdlib.training import train_step
from replications.binary import experiment as binary
from replications.binary import teacher as frozen
from tests import made_runs
from tests.made_runs import batches_of
from tests.oracles import check_predictions

TINY = replace(binary.SMOKE, train_pictures=40, validation_pictures=16, test_pictures=24, epochs=2)
N = 56  # pictures of the training part: 40 + 16
STUDENTS = {
    "student": binary.train_binary_student,
    "sham": binary.train_binary_sham,
    "smoothed": binary.train_binary_smoothed,
}


def run_of(config, seed=0, data=None):
    return made_runs.run_of(binary.EXPERIMENT, config, seed, data)


def taught(config, seed=0):
    return made_runs.taught(run_of(config, seed))


def smoke(store):
    experiment = load_experiment("binary")
    profile = replace(experiment.profile("smoke"), config=TINY)
    jobs = plan(experiment, profile, experiment.arms_of(profile), [0], Compute(), {})
    summary = execute(jobs, Store(store), compute=Compute(), folders={})
    assert not summary.failed, summary.failed
    return {arm: summary.finished[job.description.id] for job in jobs for arm in job.arms}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return smoke(tmp_path_factory.mktemp("store"))


# ---- the networks and their cost


def products(layers, side):
    """The multiplications of convolutions (into, out, kernel, stride, padding) one after the other."""
    total = 0
    for into, out, kernel, stride, padding in layers:
        side = (side + 2 * padding - kernel) // stride + 1
        total += into * out * kernel**2 * side**2
    return total


@pytest.mark.slow
def test_the_student_has_the_stated_parameters_and_operations():
    layers = [(3, 24, 4, 4, 0), (24, 32, 3, 2, 1), (32, 64, 3, 1, 1), (64, 64, 3, 2, 1)]
    weights = sum(into * out * kernel**2 for into, out, kernel, *_ in layers)
    assert parameter_count(binary.student_network()) == weights + 4 * (24 + 32 + 64 + 64) + 64 + 1 == 64_161
    model = binary.student_network().eval()
    found = frozen.operations(lambda: model(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)))
    assert found == 2 * (products(layers, 96) + 64) == 11_280_512


def test_the_teacher_is_more_than_ten_times_the_student_in_parameters_and_operations():
    layers, total, side = list(zip(vgg16.CHANNELS[:-1], vgg16.CHANNELS[1:], strict=True)), 0, 96
    for count in (2, 2, 3, 3, 3):
        block, layers = layers[:count], layers[count:]
        total += products([(into, out, 3, 1, 1) for into, out in block], side)
        side //= 2
    parameters, operations = frozen.vgg16_cost(96)
    assert (parameters, operations) == (14_714_688, 2 * total)
    assert parameters > 10 * 64_161
    assert operations > 10 * 11_280_512


def test_the_frozen_features_are_vgg16s():
    """The oracle is made of layers, in double precision, with the weights read for red, green, blue."""
    draw = generator(0, "weights")
    tensors, layers = {}, []
    for place, into, out in zip(vgg16.PLACES, vgg16.CHANNELS, vgg16.CHANNELS[1:], strict=False):
        layer = torch.nn.Conv2d(into, out, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) * math.sqrt(2 / (9 * into)))
            layer.bias.copy_(torch.randn(out, generator=draw))
        tensors[f"features.{place}.weight"] = layer.weight.detach().float()
        tensors[f"features.{place}.bias"] = layer.bias.detach().float()
        layers += [layer, torch.nn.ReLU()]
        if place in (2, 7, 14, 21, 28):  # torchvision's vgg16().features has its max-poolings 2 places later
            layers.append(torch.nn.MaxPool2d(2))
    pictures = torch.randint(256, (2, 3, 32, 32), generator=draw, dtype=torch.uint8)
    red, green, blue = pictures.double().unbind(1)
    x = torch.stack([blue - 103.939, green - 116.779, red - 123.68], 1)
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers)(x).mean((2, 3))
        found = frozen.vgg16_features(tensors, pictures)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_features_are_computed_once_for_the_same_pictures_and_weights(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(frozen.vgg16, "features", lambda folder: SimpleNamespace(tensors={}, digest=str(len(weights))))
    monkeypatch.setattr(
        frozen, "vgg16_features", lambda tensors, part: calls.append(len(part)) or part.float().mean((2, 3))
    )
    weights = ["one"]
    pictures = torch.randint(256, (60, 3, 4, 4), generator=generator(0, "x"), dtype=torch.uint8)
    first = frozen.stored_features(tmp_path, pictures)
    torch.testing.assert_close(first, pictures.float().mean((2, 3)))
    assert torch.equal(frozen.stored_features(tmp_path, pictures), first)
    assert calls == [50, 10]
    frozen.stored_features(tmp_path, pictures.flip(0))
    weights.append("other")
    frozen.stored_features(tmp_path, pictures)
    assert len(calls) == 6


# ---- the losses


def test_the_printed_formula_has_no_least_value_for_a_cat_and_the_right_one_has():
    logits = torch.tensor([0.0, 10.0, 100.0, 1e4], dtype=torch.float64)
    cats = torch.zeros(4, dtype=torch.float64)
    # printed: -y log(q) + (1 - y) log(1 - q); log(1 - q) = -softplus(logit)
    printed = -cats * F.logsigmoid(logits) + (1 - cats) * -F.softplus(logits)
    assert printed.tolist() == pytest.approx([-math.log(2), -10, -100, -1e4], rel=1e-4)
    batch = Batch(cats, cats.long(), cats.long())
    right = [binary.labels_only(logit.view(1, 1), replace(batch, labels=batch.labels[:1])).item() for logit in logits]
    assert right == pytest.approx([math.log(2), 10, 100, 1e4], rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_the_weight_of_the_labels(alpha):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (12, 1)), rng.normal(0, 3, (12, 2))
    labels = rng.integers(0, 2, 12)
    q, p = student[:, 0], expit(teacher[:, 1] - teacher[:, 0])
    loss = 0.0
    for n in range(12):
        of_label = -log_expit(q[n]) if labels[n] else -log_expit(-q[n])
        of_teacher = -p[n] * log_expit(q[n]) - (1 - p[n]) * log_expit(-q[n])
        loss += (alpha * of_label + (1 - alpha) * of_teacher) / 12
    batch = Batch(torch.zeros(12), torch.tensor(labels), torch.arange(12), torch.tensor(teacher))
    found = binary.labels_and_teacher(alpha)(torch.tensor(student), batch)
    assert found.item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_the_loss_and_its_gradient_are_finite_in_float32_at_huge_logits(size):
    for label in (0, 1):
        for soft in (1e4, -1e4, 0.0):
            logit = torch.tensor([size], requires_grad=True)
            loss = binary_distillation(logit, torch.tensor([soft]), torch.tensor([label]), 0.5)
            loss.backward()
            target = 0.5 * label + 0.5 * expit(soft)
            assert loss.item() == pytest.approx(max(size, 0) - size * target, rel=1e-6)
            assert logit.grad.item() == pytest.approx((size > 0) - target, abs=1e-6)


def test_with_alpha_1_a_student_is_trained_as_without_a_teacher():
    run, _ = taught(replace(TINY, alpha=1.0))
    found = binary.train_binary_student(run)
    model = binary.student_network()
    binary.keras_glorot_(model, run.generator("weights"))
    alone = binary.fit(replace(run, parents={}), model, run.data.train, binary.labels_only)
    for name, value in alone.kept["final"].items():
        assert torch.equal(value, found.weights["final"][name]), name


# ---- the data


def test_a_run_has_its_own_split_and_no_validation_picture_is_trained_on(monkeypatch):
    seen = {}
    for seed in (0, 1):
        run, _ = taught(TINY, seed)
        train, validation = binary.split(run)
        assert (len(train), len(validation)) == (40, 16)
        assert sorted([*train.tolist(), *validation.tolist()]) == list(range(N))
        seen[seed] = set(train.tolist())
        batch = batches_of(binary.train_binary_student, replace(run, config=replace(TINY, epochs=1)), monkeypatch)
        used = [(run.data.train.inputs == picture).flatten(1).all(1).nonzero().item() for picture in batch.inputs]
        assert sorted(row % N for row in used) == sorted(seen[seed])
        assert 5 < sum(row >= N for row in used) < 35  # mirrored; 40 with probability 1/2
    assert seen[0] != seen[1]


def test_the_second_half_of_the_training_part_is_the_first_mirrored():
    data = binary.load_data(TINY, {})
    images = data.train.inputs
    assert images.shape == (2 * N, 3, 96, 96)
    assert torch.equal(images[N:], images[:N].flip(3))
    assert torch.equal(data.train.labels[N:], data.train.labels[:N])
    assert not (images[:N, None] == data.test.inputs[None, :8]).flatten(2).all(2).any()


@pytest.mark.slow
def test_all_arms_of_a_seed_take_the_same_steps_from_the_same_weights(monkeypatch):
    steps = []

    def step(model, optimizer, objective, batch):
        if not steps:
            steps.append([value.sum().item() for value in model.parameters()])
        steps.append((batch.inputs.double().sum().item(), batch.labels.tolist(), optimizer.param_groups[0]["lr"]))
        return train_step(model, optimizer, objective, batch)

    monkeypatch.setattr("kdlib.training.train_step", step)
    found = []
    for train in STUDENTS.values():
        for alpha in (0.0, 1.0):
            steps.clear()
            train(taught(replace(TINY, alpha=alpha))[0])
            found.append(list(steps))
    assert all(each == found[0] for each in found)
    assert [each[2] for each in found[0][1:]] == pytest.approx([3e-3] * 3 + [1.5e-3] * 3)


@pytest.mark.parametrize("change", [{"alpha": 1.5}, {"alpha": math.nan}, {"precision": "bfloat16"}], ids=str)
def test_a_configuration_that_cannot_be_is_refused(change):
    with pytest.raises(KDError, match="expected"):
        binary.train_binary_student(taught(replace(TINY, **change))[0])


def test_other_pictures_are_other_data_sets():
    assert binary.EXPERIMENT.data(binary.PAPER) == ("cats_dogs", "vgg16")
    assert binary.EXPERIMENT.data(replace(binary.PAPER, pictures="oxford_pets")) == ("oxford_pets", "vgg16")
    with pytest.raises(KDError, match="expected cats_dogs or oxford_pets, found 'horses'"):
        binary.EXPERIMENT.data(replace(binary.PAPER, pictures="horses"))


def test_each_set_is_read_from_its_folder_and_has_its_name(monkeypatch, tmp_path):
    pictures = binary.synthetic_photographs.pets(N, 30, seed=1)
    monkeypatch.setattr(binary.vgg16, "features", lambda folder: SimpleNamespace(digest=folder.name))
    read = []
    for name in ("pictures", "oxford_pets"):
        found = lambda folder, name=name: read.append(folder.name) or SimpleNamespace(pictures=pictures)  # noqa: E731
        monkeypatch.setattr(binary.cats_dogs, name, found)
    folders = {name: tmp_path / name for name in ("cats_dogs", "oxford_pets", "vgg16")}
    sets = [binary.load_data(replace(TINY, pictures=name), folders) for name in ("cats_dogs", "oxford_pets")]
    assert read == ["cats_dogs", "oxford_pets"]
    assert [data.name for data in sets] == ["cats and dogs (Asirra)", "Oxford-IIIT Pet"]
    data = sets[0]
    assert (len(data.train.labels), len(data.test.labels)) == (2 * N, 24)
    places = [
        (torch.from_numpy(pictures.test_images) == x).flatten(1).all(1).nonzero().item() for x in data.test.inputs
    ]
    assert torch.equal(torch.from_numpy(pictures.test_labels)[places].long(), data.test.labels)
    other = binary.load_data(TINY, {**folders, "vgg16": tmp_path / "others"})
    assert other.digest != data.digest  # another teacher
    with pytest.raises(KDError, match=f"expected at least 500 pictures in the training part, found {N}"):
        binary.load_data(replace(TINY, train_pictures=484), folders)


# ---- what each arm is trained with


def of_rows(run, kept):
    """The teacher's logits of the pictures that the run trains on, by the bytes of the picture."""
    return {bytes(x.numpy()): z for x, z in zip(run.data.train.inputs, kept["final.train"], strict=True)}


def test_a_student_gets_its_teachers_logits_of_the_picture_in_its_view(monkeypatch):
    run, kept = taught(TINY)
    expected = of_rows(run, kept)
    seen = batches_of(STUDENTS["student"], run, monkeypatch)
    assert len({tuple(z.tolist()) for z in expected.values()}) == 2 * N
    for x, soft in zip(seen.inputs, seen.soft, strict=True):
        assert torch.equal(soft, expected[bytes(x.numpy())])


def test_the_sham_gives_each_picture_the_logits_of_a_training_picture_of_its_class(monkeypatch):
    run, kept = taught(replace(TINY, epochs=1))
    rows = torch.cat([binary.split(run)[0], binary.split(run)[0] + N])
    seen = batches_of(STUDENTS["sham"], run, monkeypatch)
    labels, logits = run.data.train.labels[rows], kept["final.train"][rows]
    source = [(logits == soft).all(1).nonzero().item() for soft in seen.soft]
    assert torch.equal(labels[source], seen.labels)
    own = of_rows(run, kept)
    same = [torch.equal(soft, own[bytes(x.numpy())]) for x, soft in zip(seen.inputs, seen.soft, strict=True)]
    assert sum(same) < 10  # of 40; by chance about one


def test_smoothed_labels_are_as_confident_as_the_teacher_is_on_average(monkeypatch):
    run, kept = taught(TINY)
    rows = torch.cat([binary.split(run)[0], binary.split(run)[0] + N])
    p = expit((kept["final.train"][rows, 1] - kept["final.train"][rows, 0]).double().numpy())
    level = np.maximum(p, 1 - p).mean()
    seen = batches_of(STUDENTS["smoothed"], run, monkeypatch)
    found = expit((seen.soft[:, 1] - seen.soft[:, 0]).double().numpy())
    assert 0.6 < level < 0.95
    np.testing.assert_allclose(found, np.where(seen.labels == 1, level, 1 - level), rtol=1e-5)
    # At alpha 0 the objective is the cross-entropy with labels of 1 - e / 2, e = 2 (1 - level): label smoothing.
    outputs = torch.linspace(-2, 2, len(seen.labels)).view(-1, 1)
    e = 2 * (1 - level)
    target = (1 - e) * seen.labels.double() + e / 2
    expected = F.binary_cross_entropy_with_logits(outputs[:, 0].double(), target)
    assert binary.labels_and_teacher(0.0)(outputs, seen).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_teacher_keeps_its_logits_of_every_picture_in_both_views():
    run = run_of(TINY)
    result = binary.train_binary_teacher(run)
    head = binary.teacher_head(432).eval()
    head.load_state_dict(result.weights["final"])
    for part in ("train", "test"):
        pictures = getattr(run.data, part).inputs
        small = pictures.double().view(-1, 3, 12, 8, 12, 8).mean((3, 5)) / 255
        with torch.no_grad():
            expected = head(small.flatten(1).float())[:, 0]
        logits = result.soft_targets[f"final.{part}"]
        assert (logits[:, 0] == 0).all()
        torch.testing.assert_close(logits[:, 1], expected, atol=1e-4, rtol=1e-4)
    rows = torch.cat([binary.split(run)[0], binary.split(run)[0] + N])
    p = expit(result.soft_targets["final.train"][rows, 1].double().numpy())
    assert result.metrics["final"]["confidence"] == pytest.approx(np.maximum(p, 1 - p).mean(), rel=1e-6)


def test_a_teacher_at_chance_is_refused_on_real_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(binary, "stored_features", lambda folder, pictures: torch.zeros(len(pictures), 5))
    run = run_of(TINY)
    with pytest.raises(KDError, match="above chance"):
        binary.train_binary_teacher(replace(run, data=replace(run.data, weights=tmp_path)))


def test_what_a_run_says_of_its_predictions():
    run, kept = taught(TINY)
    result = binary.train_binary_student(run)
    model = binary.student_network().eval()
    model.load_state_dict(result.weights["final"])
    validation = binary.split(run)[1]
    with torch.no_grad():
        test, held = model(run.data.test.inputs)[:, 0], model(run.data.train.inputs[validation])[:, 0]
    metrics = result.metrics["final"]
    right = ((test > 0) == (run.data.test.labels == 1)).sum().item()
    held_right = ((held > 0) == (run.data.train.labels[validation] == 1)).sum().item()
    assert metrics["accuracy"] == pytest.approx(right / 24)
    assert metrics["validation_accuracy"] == pytest.approx(held_right / 16)
    check_predictions(metrics, torch.stack([torch.zeros_like(test), test], 1), kept["final.test"])
    rows = torch.cat([binary.split(run)[0], binary.split(run)[0] + N])
    with torch.no_grad():
        followed = model(run.data.train.inputs[rows])[:, 0].double().numpy()
    led, classes = np.diff(kept["final.train"][rows].double().numpy())[:, 0], run.data.train.labels[rows].numpy()
    of_classes = [pearsonr(followed[classes == k], led[classes == k]).statistic for k in (0, 1)]
    assert metrics["teacher_correlation"] == pytest.approx(np.mean(of_classes), abs=1e-4)
    assert (metrics["parameters"], metrics["flops"], metrics["epochs"]) == (64_161, 11_280_512, 2)


def test_the_test_part_moves_no_weight():
    run, _ = taught(TINY)
    noise = torch.randint(256, run.data.test.inputs.shape, generator=generator(0, "noise"), dtype=torch.uint8)
    blind = replace(run.data, test=replace(run.data.test, inputs=noise, labels=1 - run.data.test.labels))
    first, second = (binary.train_binary_student(replace(run, data=data)) for data in (run.data, blind))
    assert all(torch.equal(value, second.weights["final"][name]) for name, value in first.weights["final"].items())
    assert first.metrics["final"]["accuracy"] != second.metrics["final"]["accuracy"]


@pytest.mark.slow
def test_smoke_repeats_to_the_last_bit(trained, tmp_path):
    again = smoke(tmp_path)
    assert again.keys() == trained.keys()
    for arm, run in trained.items():
        assert again[arm].weights_sha256 == run.weights_sha256, arm
        assert again[arm].metrics == run.metrics
        assert again[arm].trace == run.trace


# ---- the arms and the claims


def test_the_sweep_has_all_alphas_and_nothing_else_changes():
    for profile in binary.PROFILES.values():
        for number in range(11):
            arm = binary.EXPERIMENT.arm(f"alpha_{number // 10}_{number % 10}")
            config = binary.EXPERIMENT.config(arm, profile)
            assert asdict(config) == {**asdict(profile.config), "alpha": pytest.approx(number / 10)}
            assert (arm.train, arm.needs) == (binary.train_binary_student, {"teacher": "teacher"})
    full = binary.PROFILES["full"]
    assert full.config == binary.PAPER
    assert (full.seeds, full.judged) == (10, True)
    assert (full.config.train_pictures, full.config.validation_pictures) == (1_600, 400)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_controls_differ_from_their_cell_in_the_soft_targets_alone(alpha):
    full, cell = binary.PROFILES["full"], binary.EXPERIMENT.arm(binary.cell(alpha))
    for kind in ("sham", "smoothed"):
        control = binary.EXPERIMENT.arm(kind if alpha == 0 else f"{kind}_{cell.name}")
        assert binary.EXPERIMENT.config(control, full) == binary.EXPERIMENT.config(cell, full)
        assert control.needs == cell.needs


def test_the_best_alpha_is_chosen_on_validation_and_the_smallest_of_equals():
    experiment = load_experiment("binary")
    reported = load_claims(experiment.folder / "claims.toml", [arm.name for arm in experiment.arms])
    (choice,) = reported.choices
    assert choice.by == "validation_accuracy"
    assert choice.among == tuple(binary.cell(alpha) for alpha in binary.ALPHAS)
    rivals = {name: reported.claims[name].modes["as described"].rivals for name in ("C1", "C2", "C3")}
    assert rivals == {"C1": ("teacher",), "C2": ("alpha_0_5",), "C3": ("alpha_1_0",)}
    assert {reported.claims[name].modes["as described"].arms for name in rivals} == {("best_alpha",)}
    assert reported.primary.name == "C2"
    assert reported.claims["C1"].margin == 0.02
