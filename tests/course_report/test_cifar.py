"""The course report's CIFAR-10 part: networks, objective and training against NumPy and hand-written steps."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import correlate2d
from scipy.special import log_softmax, softmax
from torch import nn

from kdlib import augment
from kdlib.batches import Batch, Examples
from kdlib.data import synthetic_pictures
from kdlib.errors import KDError
from kdlib.networks import he_uniform_, keras_glorot_, parameter_count
from kdlib.run.experiment import Compute, load_experiment, replications
from kdlib.run.store import Description, Result, Store, prune, read_run
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import hard_targets, train_step
from replications.course_report import cifar as course_cifar
from replications.course_report import first_pictures
from replications.grid import experiment as grid
from tests import made_runs
from tests.made_runs import batches_of
from tests.oracles import check_predictions

CPU = torch.device("cpu")
TINY = replace(grid.SMOKE, epochs=1, batch=16, train_pictures=48, test_pictures=40, teacher_batch=4)


def run_of(config, seed=0, data=None):
    return made_runs.run_of(grid.EXPERIMENT, config, seed, data)


def alone(train):
    """Return a method as a function of one run."""
    return lambda run: train([run])[0]


train_student, train_distilled = alone(course_cifar.train_student), alone(course_cifar.train_distilled)


def taught(config, seed=0, data=None, teacher=0):
    return made_runs.taught(run_of(config, seed, data), teacher)


def random_pictures(count, size=32):
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator(0, "pictures"))


def unlike_the_start(model):
    """The model with batch norms that do something."""
    draws = generator(0, "norms")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for values, low, high in (
                    (module.running_mean, -0.1, 0.3),
                    (module.running_var, 0.5, 2.0),
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.2, 0.2),
                ):
                    values.uniform_(low, high, generator=draws)
    return model


class Written:
    """Layers written in float64 NumPy, with a network's weights; `training`: batch norm with the batch's moments."""

    def __init__(self, model, training=False):
        self.state = {name: value.double().numpy() for name, value in model.state_dict().items()}
        self.training = training

    def convolution(self, x, name, stride=1):
        """TensorFlow's "same": ceil(n / stride) outputs; what the padding lacks to be even goes after."""
        kernel = self.state[f"{name}.weight"]
        lacking = [
            max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(x.shape[2:], kernel.shape[2:], strict=True)
        ]
        padded = np.pad(x, [(0, 0), (0, 0), *((n // 2, n - n // 2) for n in lacking)])
        windows = sliding_window_view(padded, kernel.shape[2:], (2, 3))[:, :, ::stride, ::stride]
        found = np.moveaxis(np.tensordot(windows, kernel, ([1, 4, 5], [1, 2, 3])), 3, 1)
        return found + self.state.get(f"{name}.bias", np.zeros(len(kernel))).reshape(-1, 1, 1)

    def norm(self, x, name):
        axes = (0, 2, 3)[: x.ndim - 1]
        shape = (-1, 1, 1)[: x.ndim - 1]
        mean, variance = (self.state[f"{name}.running_{part}"] for part in ("mean", "var"))
        if self.training:
            mean, variance = x.mean(axes), x.var(axes)
        scale = self.state[f"{name}.weight"] / np.sqrt(variance + 1e-3)  # Keras's epsilon
        return (x - mean.reshape(shape)) * scale.reshape(shape) + self.state[f"{name}.bias"].reshape(shape)

    def dense(self, x, name):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def relu(x):
    return np.maximum(x, 0)


# ---- the teacher


@pytest.fixture(scope="module")
def resnet():
    return unlike_the_start(keras_glorot_(course_cifar.ResNet18(), generator(0, "weights"))).eval()


def name_of(model, layer):
    """The name of a ResNet's layer, whatever the padding has been put around it."""
    return next(name for name in (f"net.{layer}.1", f"net.{layer}") if f"{name}.weight" in model.state_dict())


@pytest.mark.parametrize(
    ("name", "trainable", "in_all"), [("ResNet18", 11_173_962, 11_183_562), ("Student", 815_530, 816_938)]
)
def test_parameter_counts_are_the_sources(name, trainable, in_all):
    network = getattr(course_cifar, name)()
    assert sum(parameter.numel() for parameter in network.parameters()) == trainable
    assert parameter_count(network) == in_all


def test_the_teachers_forward_pass_is_that_of_separate_layers(resnet):
    pictures, by = random_pictures(2), Written(resnet)

    def block(x, name, stride):
        h = relu(by.norm(by.convolution(x, name_of(resnet, f"{name}.conv1"), stride), f"net.{name}.bn1"))
        h = by.norm(by.convolution(h, name_of(resnet, f"{name}.conv2")), f"net.{name}.bn2")
        if stride == 2:
            x = by.norm(by.convolution(x, f"net.{name}.downsample.0", 2), f"net.{name}.downsample.1")
        return relu(h + x)

    h = relu(by.norm(by.convolution(pictures.numpy() / 255, "net.conv1"), "net.bn1"))
    for stage in (1, 2, 3, 4):
        h = block(block(h, f"layer{stage}.0", 1 if stage == 1 else 2), f"layer{stage}.1", 1)
    assert h.shape == (2, 512, 4, 4)
    expected = by.dense(h.mean((2, 3)), "net.fc")
    with torch.no_grad():
        np.testing.assert_allclose(resnet(pictures), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_convolution_of_stride_2_has_nothing_before_and_a_row_and_column_of_zeros_after(resnet):
    x = torch.randn(1, 64, 6, 8, generator=generator(0, "x"))
    weight = resnet.state_dict()[f"{name_of(resnet, 'layer2.0.conv1')}.weight"].double().numpy()
    padded = np.pad(x[0].double().numpy(), [(0, 0), (0, 1), (0, 1)])
    expected = [sum(correlate2d(padded[c], weight[o, c], "valid") for c in range(64))[::2, ::2] for o in range(5)]
    with torch.no_grad():
        np.testing.assert_allclose(resnet.net.layer2[0].conv1(x)[0, :5], expected, rtol=1e-4, atol=1e-5)


def test_a_step_of_the_teacher_is_kerass_with_its_penalty_on_the_3x3_kernels(resnet):
    """Keras adds 1e-4 times the sum of squares to the loss; 17 kernels: the stem's and two in each of eight blocks."""
    model = copy.deepcopy(resnet).train()
    optimizer = course_cifar.teacher_optimizer(model)
    batch = Batch(random_pictures(4, 8), torch.tensor([0, 3, 5, 9]), torch.arange(4))
    names = [
        f"{name_of(model, layer)}.weight"
        for layer in ("conv1", *(f"layer{s}.{b}.conv{c}" for s in (1, 2, 3, 4) for b in (0, 1) for c in (1, 2)))
    ]
    weights = dict(model.named_parameters())
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for _ in range(2):  # the second shows the momentum
        loss = hard_targets(model(batch.inputs), batch) + 1e-4 * sum(weights[name].square().sum() for name in names)
        gradients = dict(zip(weights, torch.autograd.grad(loss, weights.values()), strict=True))
        velocity = {name: 0.9 * velocity[name] - 0.1 * gradient for name, gradient in gradients.items()}
        expected = {name: weight.detach() + velocity[name] for name, weight in weights.items()}
        train_step(model, optimizer, hard_targets, batch)
        for name, weight in weights.items():
            assert torch.allclose(weight, expected[name], rtol=1e-4, atol=1e-6), name
    decayed = [weight for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]]
    assert {id(weight) for weight in decayed} == {id(weights[name]) for name in names}
    assert len(names) == 17


def test_the_teachers_rate_falls_as_in_the_code():
    rates = [course_cifar.teacher_rate(course_cifar.Config(), epoch) for epoch in range(1, 91)]
    assert rates == pytest.approx([0.1] * 29 + [0.01] * 30 + [0.001] * 30 + [0.0001])


def test_a_shortened_teachers_rate_goes_up_and_down_once():
    config = course_cifar.Config(teacher_epochs=12, teacher_schedule="one-cycle")
    rates = [course_cifar.teacher_rate(config, epoch) for epoch in range(1, 13)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert np.diff(rates[3:]) == pytest.approx([-0.099 / 8] * 8)
    assert rates[-1] == pytest.approx(0.001)
    with pytest.raises(KDError, match="steps or one-cycle, found 'cosine'"):
        course_cifar.teacher_rate(replace(config, teacher_schedule="cosine"), 1)


def test_the_teacher_sees_moved_pictures_and_keeps_logits_of_plain_ones(monkeypatch):
    """Also where a recorded one is named: it knows nothing of the stand-in's pictures."""
    seen = []

    def step(model, optimizer, objective, batch):
        outputs = torch.arange(10.0 * len(batch.labels)).view(-1, 10) % 7
        assert torch.equal(objective(outputs, batch), hard_targets(outputs, batch))
        seen.append(batch)
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    run = run_of(replace(TINY, train_pictures=10, test_pictures=10, recorded_teacher="0123456789abcdef"), seed=3)
    result = course_cifar.train_resnet18(run)
    assert [len(batch.labels) for batch in seen] == [4, 4, 2]
    draws = generator(3, "views", 1)
    for batch in seen:
        plain = run.data.train.inputs[batch.indices]
        assert torch.equal(batch.inputs, augment.flip_and_shift(plain, 3, draws))
        assert not torch.equal(batch.inputs, plain)
        assert torch.equal(batch.labels, run.data.train.labels[batch.indices])
    model = course_cifar.ResNet18().eval()
    model.load_state_dict(result.weights["final"])
    for part in ("train", "test"):
        with torch.no_grad():
            torch.testing.assert_close(result.soft_targets[f"final.{part}"], model(getattr(run.data, part).inputs))
    assert result.metrics["final"]["parameters"] == 11_183_562


@pytest.mark.slow
def test_the_teacher_is_trained_by_its_optimizer_at_its_rates(monkeypatch):
    seen = []

    def step(model, optimizer, objective, batch):
        seen.append([(group["lr"], group["momentum"], group["weight_decay"]) for group in optimizer.param_groups])
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    config = replace(TINY, train_pictures=10, test_pictures=10, teacher_epochs=90, teacher_batch=10)
    course_cifar.train_resnet18(run_of(config))
    expected = [0.1] * 29 + [0.01] * 30 + [0.001] * 30 + [0.0001]
    assert seen == [[(pytest.approx(rate), 0.9, 2e-4), (pytest.approx(rate), 0.9, 0.0)] for rate in expected]


# ---- the student


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_students_forward_pass_is_that_of_separate_layers(training):
    """In training, dropout drops where its given numbers are below 0.2, 0.3, 0.4, 0.4, and scales the rest up."""
    model = unlike_the_start(he_uniform_(course_cifar.Student(), generator(0, "weights"))).train(training)
    pictures, by = random_pictures(3), Written(model, training)
    uniform = torch.rand(3, 32 * 256 + 64 * 64 + 128 * 16 + 256, generator=generator(0, "uniform"))
    assert model.draws == uniform.shape[1]
    numbers, used = uniform.double().numpy(), 0
    h = pictures.numpy() / 255

    def dropped(h, rate):
        nonlocal used
        if not training:
            return h
        kept = numbers[:, used : used + h[0].size].reshape(h.shape) >= np.float32(rate)
        used += h[0].size
        return np.where(kept, h / (1 - rate), 0)

    for number, rate in enumerate((0.2, 0.3, 0.4)):
        for convolution in (0, 3):
            name = f"blocks.{number}"
            h = by.norm(relu(by.convolution(h, f"{name}.{convolution}")), f"{name}.{convolution + 2}")
        count, channels, height, width = h.shape
        h = dropped(h.reshape(count, channels, height // 2, 2, width // 2, 2).max((3, 5)), rate)
    h = h.reshape(3, 2048)
    h = dropped(by.norm(relu(by.dense(h, "hidden")), "norm"), 0.4)
    expected = by.dense(h, "output")
    assert used == (uniform.shape[1] if training else 0)
    with torch.no_grad():
        found = model(pictures, uniform) if training else model(pictures)
        doubled = model.double()(pictures, uniform) if training else model.double()(pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    tolerance = 1e-6 if training else 1e-9  # dropout's factor is of float32
    np.testing.assert_allclose(doubled, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4])
def test_dropout_zeroes_its_rate_and_scales_the_rest(rate):
    h = torch.ones(50, 8, 5, 5)
    found = course_cifar.dropout(h, rate, torch.rand(50, 200, generator=generator(0, "uniform")), (8, 5, 5))
    assert (found == 0).double().mean().item() == pytest.approx(rate, abs=0.02)
    assert found[found != 0].unique().tolist() == [pytest.approx(1 / (1 - rate))]
    assert course_cifar.dropout(h, rate, None, (8, 5, 5)) is h


@pytest.mark.slow
def test_a_student_alone_draws_its_dropout_anew_at_every_step_and_none_in_evaluation():
    model = he_uniform_(course_cifar.Student(), generator(0, "weights"))
    pictures = random_pictures(4)
    with torch.no_grad():
        torch.manual_seed(5)
        first, second = model(pictures), model(pictures)
        torch.manual_seed(5)
        again = model(pictures)
        model.eval()
        state = torch.get_rng_state()
        assert torch.equal(model(pictures), model(pictures))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_without_fused_layers_a_student_draws_the_numbers_that_it_is_given_side_by_side(monkeypatch):
    monkeypatch.setattr(course_cifar, "AVAILABLE", False)
    model, pictures = he_uniform_(course_cifar.Student(), generator(0, "weights")), random_pictures(4)
    with torch.no_grad():
        torch.manual_seed(5)
        found = model(pictures)
        torch.manual_seed(5)
        assert torch.equal(found, model(pictures, torch.rand(4, model.draws)))


def fused_and_plain(precision="float32"):
    """A fused training step, and the plain one with the same dropout: outputs, gradients, moving averages."""
    fused = unlike_the_start(he_uniform_(course_cifar.Student(precision), generator(0, "weights")))
    fused.to(memory_format=torch.channels_last)
    pictures, weights = random_pictures(6), torch.randn(6, 10, generator=generator(0, "outputs"))
    plain = copy.deepcopy(fused).double()
    torch.manual_seed(3)
    drawn = []
    for *shape, rate in ((32, 16, 16, 0.2), (64, 8, 8, 0.3), (128, 4, 4, 0.4), (256, 0.4)):
        size = 6 * math.prod(shape)
        bits = torch.empty(size // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        # 16 bits a number, channels last: 65,536 values, of which the lowest share is dropped.
        kept = (bits.int() + 2**15 >= round(rate * 2**16)).double().view(6, *shape[1:], shape[0])
        drawn.append(kept.movedim(-1, 1).flatten(1))
    found = []
    for model, arguments in ((fused, ()), (plain, (torch.cat(drawn, 1),))):
        torch.manual_seed(3)
        outputs = model(pictures, *arguments)
        (outputs * weights).sum().backward()
        averages = {name: value.double() for name, value in model.named_buffers() if "running" in name}
        found.append({"outputs": outputs} | {name: p.grad for name, p in model.named_parameters()} | averages)
    return found


@pytest.mark.slow
def test_a_fused_step_is_the_plain_one_in_float64():
    fused, plain = fused_and_plain()
    for name, expected in plain.items():
        assert fused[name].shape == expected.shape
        # A bias before batch norm has hardly any gradient: what is left is rounding.
        size = max(expected.abs().max(), 1e-3 * plain["output.bias"].abs().max())
        assert (fused[name].double() - expected).abs().max() <= 1e-3 * size, name


@pytest.mark.slow
def test_a_fused_step_in_bfloat16_is_near_the_plain_one():
    fused, plain = fused_and_plain("bfloat16")
    for name in ("outputs", "output.weight", "hidden.weight", "blocks.0.3.weight", "blocks.0.2.running_mean"):
        one, other = fused[name].double().flatten(), plain[name].flatten()
        assert nn.functional.cosine_similarity(one, other, 0) > 0.95, name


@pytest.mark.slow
def test_bfloat16_changes_training_and_not_predictions():
    for network in (course_cifar.Student, course_cifar.ResNet18):
        exact, rounded = network("float32"), network("bfloat16")
        rounded.load_state_dict(exact.state_dict())
        found = []
        for model in (exact, rounded):
            torch.manual_seed(0)
            with torch.no_grad():
                found.append((model.eval()(random_pictures(2)), model.train()(random_pictures(2))))
        assert torch.equal(found[0][0], found[1][0])
        assert found[1][1].dtype == torch.float32
        assert not torch.equal(found[0][1], found[1][1])
    with pytest.raises(KDError, match="precision: expected float32 or bfloat16, found 'float16'"):
        course_cifar.Student("float16")


def test_a_student_starts_he_uniform_but_for_its_last_layer():
    model = course_cifar.Student().initialise(generator(0, "weights"))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert len(layers) == 8
    for name, layer in layers.items():
        outputs, inputs = layer.weight.shape[0], layer.weight[0].numel()
        limit = np.sqrt(6 / (inputs + outputs if name == "output" else inputs))
        assert 0.98 * limit < layer.weight.abs().max().item() <= limit * (1 + 1e-6), name
        assert not layer.bias.any()


@pytest.mark.parametrize(("slows", "expected"), [(False, [1e-3] * 50), (True, [1e-3] * 29 + [1e-4] * 21)])
def test_the_students_rate(slows, expected):
    config = course_cifar.Config(slows=slows)
    assert [course_cifar.rate(config, epoch) for epoch in range(1, 51)] == pytest.approx(expected)


# ---- the objective

SETTINGS = ((0.6, 8.0, 1.0), (0.2, 2.0, 1.0), (1.0, 10.0, 0.5))  # alpha, T, weight of the soft term


def objective_of(*settings):
    names = ("alpha", "temperature", "soft_weight")
    runs = [run_of(replace(TINY, **dict(zip(names, each, strict=True))), data=SimpleNamespace()) for each in settings]
    return course_cifar.distillation_of_each(runs)


def by_hand(student, teacher, labels, alpha, temperature, weight):
    """(1 - alpha) CE(labels, student) + weight alpha T^2 KL(teacher_T || student_T) in float64 NumPy."""
    s, t = student.double().numpy(), teacher.double().numpy()
    hard = -log_softmax(s, 1)[np.arange(len(s)), labels.numpy()].mean()
    p = softmax(t / temperature, 1)
    soft = (p * (np.log(p) - log_softmax(s / temperature, 1))).sum(1).mean()
    return (1 - alpha) * hard + weight * alpha * temperature**2 * soft


def random_batch():
    student, teacher = 3 * torch.randn(2, 3, 7, 10, generator=generator(0, "logits"))
    labels = torch.randint(10, (3, 7), generator=generator(0, "labels"))
    return student, Batch(torch.zeros(3, 7), labels, torch.arange(7), teacher)


def test_the_loss_is_the_reports():
    outputs, batch = random_batch()
    for r, setting in enumerate(SETTINGS):
        one = Batch(batch.inputs[r], batch.labels[r], batch.indices, batch.soft[r])
        expected = by_hand(outputs[r], one.soft, one.labels, *setting)
        assert objective_of(setting)(outputs[r], one).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_students_side_by_side_is_that_of_each_with_its_own_alpha_and_t():
    outputs, batch = random_batch()
    outputs.requires_grad_()
    losses = objective_of(*SETTINGS)(outputs, batch)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    for r, setting in enumerate(SETTINGS):
        one = Batch(batch.inputs[r], batch.labels[r], batch.indices, batch.soft[r])
        alone = outputs[r].detach().requires_grad_()
        loss = objective_of(setting)(alone, one)
        torch.testing.assert_close(losses[r], loss)
        torch.testing.assert_close(gradient[r], *torch.autograd.grad(loss, alone))
        assert losses[r].item() == pytest.approx(by_hand(alone.detach(), one.soft, one.labels, *setting), rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"temperature": 0.0},
        {"temperature": -2.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"soft_weight": -1.0},
    ],
    ids=str,
)
def test_an_alpha_or_temperature_out_of_range_is_refused(change):
    run, _ = taught(replace(TINY, **change))
    fine, _ = taught(TINY)
    for runs in ([run], [fine, run]):
        with pytest.raises(KDError, match="the run: expected alpha from 0 to 1, a finite temperature"):
            course_cifar.train_distilled(runs)
    with pytest.raises(KDError, match="the run: expected alpha from 0 to 1, a finite temperature"):
        course_cifar.train_smoothed([run])


# ---- which pictures


def hundred():
    examples = Examples(random_pictures(100, 2), torch.arange(100) % 10, "data/train")
    return examples, SoftTargets(torch.randn(100, 10, generator=generator(0, "teacher")), "teacher", "data/train")


@pytest.mark.parametrize(
    ("share", "validated", "count"),
    [(1.0, False, 100), (0.25, False, 25), (0.1, False, 10), (1.0, True, 90), (0.95, True, 90), (0.5, True, 50)],
)
def test_a_share_is_the_first_pictures_with_their_targets_and_the_last_tenth_validates(share, validated, count):
    whole, soft = hundred()
    examples, targets, kept_out = course_cifar.split(whole, replace(TINY, share=share, validated=validated), soft)
    assert torch.equal(examples.inputs, whole.inputs[:count])
    assert torch.equal(examples.labels, whole.labels[:count])
    assert torch.equal(targets.logits, soft.logits[:count])
    examples.check(targets)
    assert (kept_out is not None) == validated
    if validated:
        assert torch.equal(kept_out.inputs, whole.inputs[90:])
        assert torch.equal(kept_out.labels, whole.labels[90:])


def test_parts_of_other_shares_are_other_data():
    whole, soft = hundred()
    _, targets, _ = course_cifar.split(whole, replace(TINY, share=0.5), soft)
    for config in (replace(TINY, share=0.4), TINY):
        with pytest.raises(KDError, match="soft targets of these examples"):
            course_cifar.split(whole, config, None)[0].check(targets)
    assert course_cifar.split(whole, TINY, None)[1] is None


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "found 0.0"),
        (-0.5, "found -0.5"),
        (1.01, "found 1.01"),
        (0.08, r"found 0.08 with 8 pictures and none of class \[8, 9\]"),
    ],
)
def test_shares_that_cannot_be_are_refused(share, said, validated):
    with pytest.raises(KDError, match=f"share: .*{said}"):
        course_cifar.split(hundred()[0], replace(TINY, share=share, validated=validated), None)


@pytest.mark.parametrize(
    "change",
    [{"data_digest": "other/train"}, {"view": "moved"}, {"logits": torch.zeros(90, 10)}],
    ids=["data", "view", "rows"],
)
def test_soft_targets_of_other_pictures_are_refused(change):
    whole, soft = hundred()
    with pytest.raises(KDError, match="soft targets of these examples"):
        course_cifar.split(whole, TINY, replace(soft, **change))


# ---- training


@pytest.mark.slow
def test_the_test_part_moves_no_weight_and_the_last_epochs_are_kept():
    config = replace(TINY, epochs=2)
    data = grid.load_data(config, {})
    other = replace(data.test, inputs=255 - data.test.inputs, labels=(data.test.labels + 1) % 10)
    first, second = (train_student(run_of(config, data=part)) for part in (data, replace(data, test=other)))
    assert all(torch.equal(value, second.weights["final"][name]) for name, value in first.weights["final"].items())
    assert first.metrics["final"]["entropy"] != second.metrics["final"]["entropy"]
    assert len(first.history) == first.metrics["final"]["epochs"] == 2
    assert first.metrics["final"]["parameters"] == 816_938
    model = course_cifar.Student().eval()
    model.load_state_dict(first.weights["final"])
    with torch.no_grad():
        logits = {part: model(getattr(data, part).inputs) for part in ("train", "test")}
    for part, expected in logits.items():  # it may teach in its turn
        torch.testing.assert_close(first.soft_targets[f"final.{part}"], expected)
    right = (logits["test"].argmax(1) == data.test.labels).double().mean().item()
    assert first.metrics["final"]["accuracy"] == pytest.approx(right)


def test_a_validated_student_is_measured_on_the_tenth_it_never_sees(monkeypatch):
    config = replace(TINY, train_pictures=100, validated=True)
    run, kept = taught(config)
    result = train_distilled(run)
    right = (result.soft_targets["final.train"][90:].argmax(1) == run.data.train.labels[90:]).double().mean().item()
    assert result.metrics["final"]["validation_accuracy"] == pytest.approx(right)
    seen = batches_of(train_distilled, run, monkeypatch)
    assert sorted(seen.indices.tolist()) == list(range(90))
    assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
    assert torch.equal(seen.soft, kept["final.train"][seen.indices])


def test_a_student_without_a_teacher_has_no_soft_targets(monkeypatch):
    run = run_of(TINY)
    seen = batches_of(train_student, run, monkeypatch)
    assert seen.soft is None
    assert sorted(seen.indices.tolist()) == list(range(48))
    assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
    assert torch.equal(seen.labels, run.data.train.labels[seen.indices])


def test_a_distilled_student_learns_from_its_teachers_logits_of_the_same_pictures(monkeypatch):
    run, kept = taught(replace(TINY, share=0.75))
    seen = batches_of(train_distilled, run, monkeypatch)
    assert sorted(seen.indices.tolist()) == list(range(36))
    assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
    assert torch.equal(seen.soft, kept["final.train"][seen.indices])


def test_the_sham_gives_every_picture_the_targets_of_another_of_its_class(monkeypatch):
    run, kept = taught(TINY)
    seen = batches_of(alone(course_cifar.train_distilled_sham), run, monkeypatch)
    labels, logits = run.data.train.labels, kept["final.train"]
    assert torch.equal(seen.labels, labels[seen.indices])
    source = torch.tensor([(logits == row).all(1).nonzero().item() for row in seen.soft])
    assert sorted(source.tolist()) == list(range(48))
    assert torch.equal(labels[source], seen.labels)
    assert (source != seen.indices).float().mean() > 0.5  # classes of 4 or 5: one in five stays by chance


def test_what_a_student_says_of_its_predictions():
    run, kept = taught(TINY)
    distilled, untaught = train_distilled(run), train_student(replace(run, parents={}))
    check_predictions(distilled.metrics["final"], distilled.soft_targets["final.test"], kept["final.test"])
    check_predictions(untaught.metrics["final"], untaught.soft_targets["final.test"])


def test_students_of_other_data_or_batches_are_not_trained_side_by_side():
    run, _ = taught(TINY)
    for change in ({"share": 0.5}, {"validated": True}, {"batch": 8}, {"epochs": 2}):
        other = replace(run, config=replace(TINY, **change))
        with pytest.raises(KDError, match="differ in alpha and temperature only"):
            course_cifar.train_distilled([run, other])


def test_all_arms_of_these_methods_may_differ_in_what_the_methods_map():
    root = Path(__file__).parents[2]
    experiments = {name: load_experiment(name) for name in replications(root)}
    arms = [arm for each in experiments.values() for arm in each.arms if arm.train.__module__ == course_cifar.__name__]
    assert len(arms) > 100
    for arm in arms:
        if arm.train is course_cifar.train_resnet18:
            assert arm.mapped is None
        else:  # a cell of the grid, or another arm, whose group then holds its own seeds only
            assert set(arm.mapped) <= ({"alpha", "temperature"} if arm.train is course_cifar.train_distilled else set())


def test_a_teacher_at_chance_teaches_nobody():
    data = replace(grid.load_data(TINY, {}), synthetic=False)
    run, kept = taught(TINY, data=data)
    kept["final.train"][:] = nn.functional.one_hot(torch.zeros(48, dtype=torch.int64), 10)
    for train in (course_cifar.train_distilled, course_cifar.train_distilled_sham):
        with pytest.raises(KDError, match="above chance"):
            train([run])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distilled", "student", "distilled_sham", "smoothed"])
def test_students_trained_side_by_side_end_where_each_would_alone(kind, monkeypatch):
    """In float64, so that rounding hides no mistake; float32 holds these alphas, T and T^2 / batch exactly."""
    student = course_cifar.Student
    monkeypatch.setattr(course_cifar, "Student", lambda precision: student(precision).double())
    config = replace(TINY, validated=True, train_pictures=36, test_pictures=10)  # two batches of 16
    data, runs = grid.load_data(config, {}), []
    train = getattr(course_cifar, f"train_{kind}")
    for seed, alpha, temperature in ((0, 0.25, 2.0), (5, 0.75, 8.0) if kind == "distilled" else (5, 0.25, 2.0)):
        run, kept = taught(replace(config, alpha=alpha, temperature=temperature), seed, data, teacher=seed)
        kept |= {part: logits.double() for part, logits in kept.items()}
        runs.append(run)
    side_by_side = train(runs)
    for run, found in zip(runs, side_by_side, strict=True):
        (expected,) = train([run])
        for name, value in expected.weights["final"].items():
            assert torch.allclose(found.weights["final"][name], value, rtol=1e-9, atol=1e-9), name
        assert found.weights["final"].keys() == expected.weights["final"].keys()
        assert found.soft_targets.keys() == expected.soft_targets.keys() == {"final.train", "final.test"}
        for part, logits in expected.soft_targets.items():
            assert torch.allclose(found.soft_targets[part], logits, rtol=1e-7, atol=1e-7), part
        for result in (found, expected):
            assert [entry.keys() for entry in result.history] == [{"training_loss"}]
        assert found.history[0] == pytest.approx(expected.history[0], rel=1e-9)
        assert found.metrics["final"].keys() == expected.metrics["final"].keys()
        for name in set(expected.metrics["final"]) - {"confusion"}:
            assert found.metrics["final"][name] == pytest.approx(expected.metrics["final"][name], rel=1e-7), name
        assert found.metrics["final"]["confusion"] == expected.metrics["final"]["confusion"]
    assert side_by_side[0].history != side_by_side[1].history


# ---- a recorded teacher


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A pruned run of a teacher of 60 and 40 pictures, with made-up logits; gives its id, logits and pictures."""
    pictures = synthetic_pictures.pictures(60, 40, seed=1)
    whole = first_pictures("CIFAR-10", pictures, 60, 40)
    counts = {"train": 60, "test": 40}
    logits = {f"final.{part}": torch.randn(count, 10, generator=generator(0, part)) for part, count in counts.items()}
    store = Store(tmp_path)
    measured = {"final": {"parameters": 11_183_562, "epochs": 5, "accuracy": 0.5}}
    about = Description("course-report/train_resnet18", 1, {}, 0, whole.digest)
    run = store.save(
        about, Result(measured, [{"training_loss": 1.0}] * 5, {"final": {"w": torch.zeros(1)}}, logits), {}
    )
    assert prune(run) > 0
    monkeypatch.setattr(course_cifar, "RECORDED", tmp_path / "runs")
    return run.id, logits, pictures


def teach(name, data):
    return course_cifar.train_resnet18(run_of(replace(TINY, recorded_teacher=name), data=data))


def test_a_recorded_teacher_gives_its_logits_of_the_first_pictures(recorded):
    name, logits, pictures = recorded
    data = first_pictures("CIFAR-10", pictures, 20, 30)
    result = teach(name, data)
    for part, count in (("train", 20), ("test", 30)):
        assert torch.equal(result.soft_targets[f"final.{part}"], logits[f"final.{part}"][:count].half().float())
    right = (logits["final.test"][:30].argmax(1) == data.test.labels).double().mean().item()
    assert result.metrics["final"]["accuracy"] == pytest.approx(right)
    assert result.metrics["final"]["epochs"] == 5
    assert result.metrics["final"]["parameters"] == 11_183_562
    assert not result.weights
    assert result.history == [{"training_loss": 1.0}] * 5


def test_a_recorded_teacher_of_other_pictures_is_refused(recorded):
    name, _, pictures = recorded
    pictures.train_images[59, 0, 0, 0] ^= 1  # not even one of those asked for
    with pytest.raises(KDError, match=r"of data digest .*, found one of .*; get the data again"):
        teach(name, first_pictures("CIFAR-10", pictures, 20, 30))


def test_a_recorded_teacher_replaces_that_of_its_own_seed_only(recorded):
    name, _, pictures = recorded
    config = replace(TINY, recorded_teacher=name)
    with pytest.raises(KDError, match="expected a recorded teacher of seed 1, found one of 0"):
        course_cifar.train_resnet18(run_of(config, seed=1, data=first_pictures("CIFAR-10", pictures, 20, 30)))


def test_smoothed_labels_have_no_soft_weight():
    with pytest.raises(KDError, match=r"found 0\.6 and 2\.0; smoothed labels have no soft term"):
        course_cifar.train_smoothed([run_of(replace(TINY, soft_weight=2.0))])


def test_a_recorded_teacher_that_is_not_there_is_named(recorded):
    with pytest.raises(KDError, match="found none named 0123456789abcdef"):
        teach("0123456789abcdef", first_pictures("CIFAR-10", recorded[2], 20, 30))


def test_a_recorded_teacher_that_was_altered_is_refused(recorded):
    path = course_cifar.RECORDED / recorded[0] / "soft_targets.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(KDError, match="SHA-256"):
        teach(recorded[0], first_pictures("CIFAR-10", recorded[2], 20, 30))


def test_a_recorded_run_of_another_kind_is_refused(recorded, monkeypatch):
    monkeypatch.setattr(course_cifar.train_resnet18, "__name__", "train_resnet34")
    with pytest.raises(KDError, match="of training function train_resnet34, found one of train_resnet18"):
        teach(recorded[0], first_pictures("CIFAR-10", recorded[2], 20, 30))


def test_the_recorded_teacher_is_the_one_that_its_profile_trains():
    experiment = load_experiment("grid")
    teacher = read_run(course_cifar.RECORDED / course_cifar.RECORDED_TEACHER)
    config = experiment.config(experiment.arm("teacher"), experiment.profile("teacher"))
    expected = experiment.describe(
        experiment.arm("teacher"), config, 0, teacher.description.data, Compute(threads=3), {}
    )
    # It is of protocol 1. Since then the training step of students has changed, and they may have a seed_offset.
    assert expected.config["seed_offset"] == 0
    known = {name: value for name, value in expected.config.items() if name != "seed_offset"}
    assert teacher.description == replace(expected, protocol=1, config=known)
    assert teacher.id == course_cifar.RECORDED_TEACHER
    for part, count in (("train", 50_000), ("test", 10_000)):
        logits = teacher.soft_targets(f"final.{part}")
        assert logits.shape == (count, 10)
        assert logits.isfinite().all()
    assert experiment.profile("quick").config.recorded_teacher == course_cifar.RECORDED_TEACHER


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["student", "distilled", "distilled_sham", "smoothed", "virtual_teacher"])
def test_every_method_trains_in_the_configured_precision(method, precision, monkeypatch):
    models = []

    def epochs(progress, *_, **__):
        models.append(progress.model)
        return iter(())

    monkeypatch.setattr(course_cifar, "epochs", epochs)
    monkeypatch.setattr(course_cifar, "result", lambda *_: None)
    run, _ = taught(replace(TINY, precision=precision))
    getattr(course_cifar, f"train_{method}")([run])
    assert [model.in_bfloat16 for model in models] == [precision == "bfloat16"]
