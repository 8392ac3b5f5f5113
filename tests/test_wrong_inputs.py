"""Losses, metrics and targets: the right number for unusual inputs, and KDError for what has no right number."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, rel_entr, softmax
from torch import nn

from kdlib import losses, metrics
from kdlib.augment import Mix, balanced_draw, flip_and_shift, mixup
from kdlib.batches import Batches, Examples
from kdlib.cost import latency
from kdlib.errors import KDError
from kdlib.networks import keras_glorot_
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import derive_seed, generator
from kdlib.specialists import corrected_dustbin, correlation_clusters, dustbin_logits
from kdlib.targets import SoftTargets, mean_of_distributions, mix_logits, smoothed_labels, virtual_teacher
from kdlib.training import predict_logits, predict_soft_targets

B, K = 6, 4
INF, NAN = math.inf, math.nan

CALLS = {
    "cross_entropy": lambda s, t, y: losses.cross_entropy(s, y),
    "soft_target_kl": lambda s, t, y: losses.soft_target_kl(s, t, 2.0),
    "hard_and_soft": lambda s, t, y: losses.hard_and_soft(s, t, y, 0.5, 0.5, 2.0),
    "kl_plus_mae": lambda s, t, y: losses.kl_plus_mae(s, t, 0.1),
    "logit_matching": lambda s, t, y: losses.logit_matching(s, t),
    "label_smoothing": lambda s, t, y: losses.label_smoothing(s, y, 0.1),
}
TAUGHT = ["soft_target_kl", "hard_and_soft", "kl_plus_mae", "logit_matching"]
HARD = ["cross_entropy", "hard_and_soft", "label_smoothing"]


def logits(seed=0, shape=(B, K), dtype=torch.float32):
    return (3 * torch.randn(shape, generator=generator(seed, "logits"))).to(dtype)


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


# ---- shapes and types of logits


@pytest.mark.parametrize("loss", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((B,), "binary_distillation"),
        ((B, 1), "binary_distillation"),
        ((2, 3, K), "flatten"),
        ((2, K, 3, 3), "flatten"),
        ((0, K), "at least one row"),
    ],
)
def test_losses_take_rows_of_two_or_more_classes_only(loss, shape, remedy):
    labels = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
    with pytest.raises(KDError, match=rf"of shape \(N, K\).*{remedy}"):
        loss(torch.zeros(shape), torch.ones(shape), labels)


@pytest.mark.parametrize("loss", CALLS.values(), ids=CALLS)
def test_the_outputs_of_a_model_that_returns_several_are_refused(loss):
    for outputs in ((logits(), logits(1)), {"logits": logits()}, logits().numpy()):
        with pytest.raises(KDError, match="pick one of the outputs"):
            loss(outputs, logits(2), LABELS)
    with pytest.raises(KDError, match="floating point"):
        loss(torch.ones(B, K, dtype=torch.int64), logits(), LABELS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_16_bits_give_the_loss_and_gradient_of_float64(dtype):
    rows, classes, temperature = 32, 10, 20.0
    student, teacher = (logits(seed, (rows, classes), dtype) for seed in (0, 1))
    s, t = (part.double().numpy() / temperature for part in (student, teacher))
    student.requires_grad_()
    loss = losses.soft_target_kl(student, teacher, temperature)
    loss.backward()
    expected = temperature**2 * rel_entr(softmax(t, 1), softmax(s, 1)).sum(1).mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    slope = temperature * (softmax(s, 1) - softmax(t, 1)) / rows
    error = np.linalg.norm(student.grad.double().numpy() - slope) / np.linalg.norm(slope)
    assert error < 2 * torch.finfo(dtype).eps  # of rounding the gradient to 16 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*CALLS, "binary"])
def test_every_loss_of_16_bits_is_that_of_the_same_numbers_in_float32(name, dtype):
    loss = CALLS.get(name, lambda s, t, y: losses.binary_distillation(s[:, 0], t[:, 0], (y > 1).long(), 0.3))
    student, teacher = logits(0, dtype=dtype), logits(1, dtype=dtype)
    assert torch.equal(loss(student, teacher, LABELS), loss(student.float(), teacher.float(), LABELS))
    assert losses.binary_logit(student[:, :2]).dtype == torch.float32


# ---- temperatures and weights


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF, 1e5, torch.tensor(0.0), torch.ones(B, 1)])
def test_a_temperature_must_be_above_zero_and_finite(temperature):
    for call in (
        lambda: losses.soft_target_kl(logits(), logits(1), temperature),
        lambda: losses.hard_and_soft(logits(), logits(1), LABELS, 0.5, 0.5, temperature),
    ):
        with pytest.raises(KDError, match="temperature: expected a number"):
            call()


@pytest.mark.parametrize("temperature", [0.0, -2.0, NAN, INF])
def test_targets_refuse_temperatures_too(temperature):
    for call in (
        lambda: mean_of_distributions([logits(), logits(1)], "arithmetic", temperature),
        lambda: virtual_teacher(LABELS, K, 0.9, temperature),
        lambda: dustbin_logits(logits(), (0, 1), temperature),
        lambda: SoftTargets(logits(), "run", "data").probabilities(temperature),
    ):
        with pytest.raises(KDError, match="temperature: expected a number above 0"):
            call()


def test_mapped_temperatures_and_weights_are_checked():
    student, teacher = logits(0, (2, B, K)), logits(1, (2, B, K))
    labels = LABELS.expand(2, B)
    numbers = [torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 4.0])]
    torch.vmap(losses.hard_and_soft)(student, teacher, labels, *numbers)
    for wrong, name in enumerate(["hard_weight", "soft_weight", "temperature"]):
        bad = [part.clone() for part in numbers]
        bad[wrong][1] = -1.0
        with pytest.raises(KDError, match=f"{name}: .* found -1"):
            torch.vmap(losses.hard_and_soft)(student, teacher, labels, *bad)


@pytest.mark.parametrize("weight", [-0.1, NAN, INF, torch.tensor(-0.1), torch.ones(B)])
def test_weights_must_not_be_negative(weight):
    for call in (
        lambda: losses.hard_and_soft(logits(), logits(1), LABELS, weight, 1.0, 2.0),
        lambda: losses.hard_and_soft(logits(), logits(1), LABELS, 1.0, weight, 2.0),
        lambda: losses.kl_plus_mae(logits(), logits(1), weight),
    ):
        with pytest.raises(KDError, match="weight: expected a number"):
            call()


@pytest.mark.parametrize("share", [-0.1, 1.1, NAN])
def test_shares_are_from_zero_to_one(share):
    for call in (
        lambda: losses.label_smoothing(logits(), LABELS, share),
        lambda: smoothed_labels(LABELS, K, share),
        lambda: losses.binary_distillation(logits()[:, 0], logits(1)[:, 0], LABELS > 1, share),
    ):
        with pytest.raises(KDError, match="expected a number from 0 to 1"):
            call()


# ---- labels


@pytest.mark.parametrize("wrong", [K, 255, -1, -100])
@pytest.mark.parametrize("name", HARD)
def test_a_label_outside_the_classes_is_refused_with_its_row(name, wrong):
    labels = LABELS.clone()
    labels[4] = wrong
    with pytest.raises(KDError, match=f"labels from 0 to 3.* found {wrong} in row 4"):
        CALLS[name](logits(), logits(1), labels)
    with pytest.raises(KDError, match=rf"found {wrong} at \[1, 4\]"):
        torch.vmap(losses.cross_entropy)(logits(0, (2, B, K)), torch.stack([LABELS, labels]))


@pytest.mark.parametrize(
    "labels",
    [LABELS[:-1], LABELS[:, None], LABELS.float(), nn.functional.one_hot(LABELS, K), torch.full((B, K - 1), 1 / 3)],
    ids=["fewer", "column", "fractions", "one hot", "other classes"],
)
def test_labels_of_other_shapes_and_types_are_refused(labels):
    with pytest.raises(KDError, match="expected labels for logits"):
        losses.cross_entropy(logits(), labels)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_whole_numbers_of_any_type_are_labels(dtype):
    assert torch.equal(losses.cross_entropy(logits(), LABELS.to(dtype)), losses.cross_entropy(logits(), LABELS))


@pytest.mark.parametrize("wrong", [[0.5, 0.5, 0.5, 0], [1.5, -0.5, 0, 0], [NAN, 1, 0, 0], [0, 0, 0, 0]])
def test_mixed_labels_must_be_distributions(wrong):
    labels = nn.functional.one_hot(LABELS, K).float()
    losses.cross_entropy(logits(), labels.bfloat16())
    labels[3] = torch.tensor(wrong)
    with pytest.raises(KDError, match=r"labels that are distributions.* in row 3"):
        losses.cross_entropy(logits(), labels)


def test_a_wrong_binary_label_is_named_with_its_row_also_within_vmap():
    labels = torch.tensor([[0, 1, 1], [0, 3, 1]])
    with pytest.raises(KDError, match="found 3 in row 1, 1"):
        torch.vmap(lambda y: losses.binary_distillation(torch.zeros(3), torch.zeros(3), y, 0.5))(labels)


def test_labels_of_targets_are_checked():
    for wrong in (torch.tensor([0, K]), torch.tensor([0, -1]), torch.tensor([0.0, 1.0])):
        for call in (lambda y: smoothed_labels(y, K, 0.1), lambda y: virtual_teacher(y, K, 0.9, 2.0)):
            with pytest.raises(KDError, match="labels"):
                call(wrong)
    with pytest.raises(KDError, match="two or more classes"):
        virtual_teacher(torch.zeros(3, dtype=torch.int64), 1, 0.9, 2.0)


# ---- a teacher's values


@pytest.mark.parametrize("name", ["soft_target_kl", "hard_and_soft", "kl_plus_mae"])
def test_classes_that_the_teacher_excludes_count_as_probability_zero(name):
    student, teacher = logits(0).double(), logits(1).double()
    teacher[:, 2], teacher[1, 0] = -INF, -INF
    student.requires_grad_()
    loss = CALLS[name](student, teacher, LABELS)
    (slope,) = torch.autograd.grad(loss, student)
    s, t = student.detach().numpy(), teacher.numpy()

    def kl(temperature):
        return rel_entr(softmax(t / temperature, 1), softmax(s / temperature, 1)).sum(1).mean()

    hard = -np.mean([log_softmax(row)[y] for row, y in zip(s, LABELS, strict=True)])
    expected = {
        "soft_target_kl": 4 * kl(2),
        "hard_and_soft": 0.5 * hard + 0.5 * 4 * kl(2),
        "kl_plus_mae": kl(1) + 0.1 * np.abs(softmax(t, 1) - softmax(s, 1)).mean(),
    }[name]
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert slope.isfinite().all()


def test_a_class_that_teacher_and_student_exclude_is_as_if_it_were_not_there():
    student, teacher = logits(0).double(), logits(1).double()
    fewer = losses.soft_target_kl(student[:, :3], teacher[:, :3], 2.0)
    student[:, 3], teacher[:, 3] = -INF, -INF
    student.requires_grad_()
    loss = losses.soft_target_kl(student, teacher, 2.0)
    assert loss.item() == pytest.approx(fewer.item(), rel=1e-12)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("wrong", [NAN, INF, None])
@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_that_is_no_distribution_is_refused_with_the_place(name, wrong):
    teacher = logits(1)
    teacher[2, 1] = 0.0 if wrong is None else wrong
    if wrong is None:
        teacher[2] = -INF
    with pytest.raises(KDError, match=r"logits of the teacher .* at \[2, "):
        CALLS[name](logits(), teacher, LABELS)
    with pytest.raises(KDError, match=r"logits of the teacher .* at \[2, "):
        SoftTargets(teacher, "run", "data")
    both = torch.stack([logits(), teacher])
    with pytest.raises(KDError, match=r"logits of the teacher .* at \[1, 2, "):
        torch.vmap(losses.soft_target_kl, (None, 0, None))(logits(), both, 2.0)


def test_logit_matching_has_no_mean_of_minus_infinity():
    teacher = logits(1)
    teacher[2, 1] = -INF
    with pytest.raises(KDError, match="that are finite, found -inf"):
        losses.logit_matching(logits(), teacher)


def test_huge_teachers_are_not_mistaken_for_infinite_ones():
    teacher = torch.full((B, K), 3e38)
    assert losses.soft_target_kl(torch.zeros(B, K), teacher, 1.0).item() == pytest.approx(0, abs=1e-6)


def test_a_binary_teacher_may_be_certain_but_not_nan():
    student, teacher, labels = torch.tensor([0.3, -2.0]), torch.tensor([INF, -INF]), torch.tensor([0, 1])
    targets = 0.5 * np.array([0, 1]) + 0.5 * np.array([1, 0])
    q = expit(student.double().numpy())
    expected = -np.mean(targets * np.log(q) + (1 - targets) * np.log(1 - q))
    assert losses.binary_distillation(student, teacher, labels, 0.5).item() == pytest.approx(expected, rel=1e-6)
    with pytest.raises(KDError, match="nan in row 1"):
        losses.binary_distillation(student, torch.tensor([0.0, NAN]), labels, 0.5)


def test_a_students_nan_is_left_to_the_loop_which_names_the_step():
    assert losses.soft_target_kl(torch.full((B, K), NAN), logits(1), 2.0).isnan()


# ---- targets


def test_soft_targets_are_a_tensor():
    with pytest.raises(KDError, match="found ndarray"):
        SoftTargets(logits().numpy(), "run", "data")


def test_rows_of_a_selection_are_in_the_data():
    soft = SoftTargets(logits(), "run", "data")
    for rows in (torch.tensor([0, B]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor([[0]])):
        with pytest.raises(KDError, match="row numbers"):
            soft.select(rows)


def test_mixtures_and_ensembles_of_other_shapes_are_refused_and_16_bits_are_float32():
    weight = torch.full((B,), 0.5)
    for first, second, share in ((logits(), logits(1)[:1], weight), (logits(), logits(1), weight[:, None])):
        with pytest.raises(KDError, match="a weight for each row"):
            mix_logits(first, second, share)
    for members in ([], [logits(), logits(1)[:1]]):
        with pytest.raises(KDError, match="all of one shape"):
            mean_of_distributions(members, "arithmetic")
    half = [logits(seed, dtype=torch.bfloat16) for seed in (0, 1)]
    assert torch.equal(mix_logits(*half, weight), mix_logits(*(part.float() for part in half), weight))
    found = mean_of_distributions(half, "arithmetic", 20.0)
    assert torch.equal(found, mean_of_distributions([part.float() for part in half], "arithmetic", 20.0))


def test_clusters_are_of_probabilities_and_dustbins_of_sampled_classes():
    with pytest.raises(KDError, match=r"use logits\.softmax"):
        correlation_clusters(logits())
    with pytest.raises(KDError, match="oversampled"):
        corrected_dustbin(logits(), NAN)


# ---- metrics

MEASURES = {
    "accuracy": lambda x: metrics.accuracy(x, LABELS),
    "error_count": lambda x: metrics.error_count(x, LABELS),
    "agreement": lambda x: metrics.agreement(logits(), x),
    "entropy": metrics.mean_entropy,
    "kl": lambda x: metrics.mean_kl(x, logits()),
    "calibration": lambda x: metrics.expected_calibration_error(x, LABELS),
    "all": lambda x: metrics.classification_metrics(x, LABELS, K),
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_metrics_refuse_one_logit_other_shapes_and_nan(measure):
    for shape in ((B,), (B, 1), (2, 3, K), (B, K, 2, 2), (0, K)):
        with pytest.raises(KDError, match=r"of shape \(N, K\)"):
            measure(torch.zeros(shape))
    for wrong in (NAN, INF):
        values = logits()
        values[3, 1] = wrong
        with pytest.raises(KDError, match=rf"found {wrong} at \[3, 1\]"):
            measure(values.numpy())
    for outputs in ((logits(), logits()), {"logits": logits()}):
        with pytest.raises(KDError, match="pick one"):
            measure(outputs)


@pytest.mark.parametrize("wrong", [K, -1, -100, 0.5])
def test_metrics_refuse_labels_outside(wrong):
    labels = LABELS.tolist()
    labels[2] = wrong
    for call in (
        lambda: metrics.accuracy(logits(), labels),
        lambda: metrics.error_count(logits(), np.array(labels)),
        lambda: metrics.expected_calibration_error(logits(), labels),
        lambda: metrics.confusion_matrix(LABELS, labels, K),
        lambda: metrics.confusion_matrix(labels, LABELS, K),
        lambda: metrics.macro_f1(labels, LABELS, K),
    ):
        with pytest.raises(KDError, match=rf"(found {wrong} in row 2|whole numbers)"):
            call()


def test_entropy_and_kl_with_excluded_classes():
    values, other = logits().double(), logits(1).double()
    values[:, 1], values[0, 2] = -INF, -INF
    probs, others = softmax(values.numpy(), 1), softmax(other.numpy(), 1)
    expected = -np.where(probs > 0, probs * np.log(np.where(probs > 0, probs, 1)), 0).sum(1).mean()
    assert metrics.mean_entropy(values) == pytest.approx(expected, rel=1e-12)
    assert metrics.mean_kl(values, other) == pytest.approx(rel_entr(probs, others).sum(1).mean(), rel=1e-12)
    assert metrics.mean_kl(other, values) == INF


def test_metrics_of_16_bits_are_those_of_the_same_numbers_in_float64():
    values = logits(dtype=torch.bfloat16)
    assert metrics.mean_entropy(values) == pytest.approx(metrics.mean_entropy(values.double()), rel=1e-12)


def test_no_row_no_bin_and_no_counts_are_refused():
    none = torch.zeros(0, dtype=torch.int64)
    for call in (
        lambda: metrics.macro_f1(none, none, K),
        lambda: metrics.expected_calibration_error(logits(), LABELS, 0),
        lambda: metrics.macro_f1_of_confusion([[1, 2, 3], [4, 5, 6]]),
        lambda: metrics.macro_f1_of_confusion([[1, -2], [3, 4]]),
        lambda: metrics.macro_f1_of_confusion([[1, NAN], [3, 4]]),
    ):
        with pytest.raises(KDError, match="expected"):
            call()


def test_a_teacher_whose_score_is_nan_is_not_above_chance():
    with pytest.raises(KDError, match="above chance"):
        metrics.refuse_at_chance(logits(), LABELS, lambda values, labels: NAN, "teacher")


# ---- augmentation, initialisation, seeds


@pytest.mark.parametrize("alpha", [0.0, -0.2, NAN, INF])
def test_mixup_needs_an_alpha_above_zero(alpha):
    with pytest.raises(KDError, match="alpha: expected a number above 0"):
        mixup(torch.arange(4), alpha, generator(0, "mix"))


def test_a_plan_of_mixed_rows_has_weights_from_zero_to_one_for_each_row():
    rows = torch.arange(3)
    for weight in (torch.tensor([0.5, 1.5, 0.5]), torch.tensor([0.5, NAN, 0.5]), torch.ones(2), torch.ones(3, 1)):
        with pytest.raises(KDError, match="weights"):
            Mix(rows, rows, weight)


def test_draws_and_shifts_refuse_what_they_cannot_do():
    for labels in (torch.tensor([0, -1]), torch.tensor([0.0, 1.0]), torch.zeros(2, 1, dtype=torch.int64)):
        with pytest.raises(KDError, match="expected labels"):
            balanced_draw(labels, 4, 2, generator(0, "draw"))
    for pictures, largest in ((torch.zeros(2, 4, 4), 1), (torch.zeros(2, 1, 4, 4), -1), (torch.zeros(2, 1, 4, 4), 4)):
        with pytest.raises(KDError, match="pictures"):
            flip_and_shift(pictures, largest, generator(0, "shift"))


def test_every_kind_of_convolution_is_initialised_and_computed_weights_are_refused():
    for layer in (nn.Conv3d(2, 3, 2), nn.ConvTranspose2d(4, 3, 2), nn.ConvTranspose1d(4, 3, 2)):
        keras_glorot_(layer, generator(0, "weights"))
        field = layer.weight[0, 0].numel()
        limit = math.sqrt(6 / (field * (layer.in_channels + layer.out_channels)))
        assert 0.5 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()
    with pytest.raises(KDError, match="weight is computed"):
        keras_glorot_(torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), generator(0, "weights"))


def test_numpys_whole_numbers_are_seeds_and_fractions_are_not():
    assert derive_seed(np.int64(3), "order", np.int32(2)) == derive_seed(3, "order", 2)
    for seed in (3.0, "3"):
        with pytest.raises(KDError, match="seed: expected a whole number"):
            derive_seed(seed, "order")
    with pytest.raises(KDError, match="epoch: expected a whole number"):
        derive_seed(3, "order", 2.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_students_side_by_side_are_checked_along_any_axis(axis):
    """The checks look at the classes, wherever vmap has the axis of the students."""
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 5), torch.randn(3, 4, 5).softmax(2)
    wanted = torch.stack([losses.cross_entropy(*pair) for pair in zip(logits, labels, strict=True)])
    found = torch.vmap(losses.cross_entropy, in_dims=axis)(logits.movedim(0, axis), labels.movedim(0, axis))
    torch.testing.assert_close(found, wanted)


def test_an_empty_batch_of_two_classes_is_refused():
    with pytest.raises(KDError, match="at least one logit"):
        losses.binary_distillation(torch.randn(0), torch.randn(0), torch.zeros(0), 0.5)


def test_logits_without_fractions_are_no_binary_logits():
    whole = torch.tensor([[3, 2]], dtype=torch.uint8)
    with pytest.raises(KDError, match=r"of floating point, found torch\.uint8; use logits.float\(\)"):
        losses.binary_logit(whole)
    for student, teacher in ((whole[0], torch.randn(2)), (torch.randn(2), whole[0])):
        with pytest.raises(KDError, match=r"of floating point, found torch\.uint8"):
            losses.binary_distillation(student, teacher, torch.tensor([0, 1]), 0.5)


def no_models():
    inputs, network = torch.randn(6, 4), nn.Linear(4, 3)
    examples = Examples(inputs, torch.arange(6) % 3)
    batches = Batches(examples, 2, 0)
    soft = SoftTargets(torch.randn(6, 4), "t", examples.digest)
    other = SoftTargets(torch.randn(6, 3), "t", examples.digest)
    members = [Batches(examples, 2, 0, each) for each in (soft, other)]
    replicas = Replicas([nn.Linear(4, 3)])
    return [
        (lambda: predict_logits(network, examples), "found Examples without such parts"),
        (lambda: predict_logits(network, batches), "found Batches without such parts"),
        (lambda: predict_logits(network, None), "found NoneType without such parts"),
        (lambda: predict_logits(inputs, network), "model: expected Module, found Tensor"),
        (lambda: predict_logits(nn.Linear, inputs), "model: expected Module, found type"),
        (lambda: predict_soft_targets(network, inputs), "examples: expected Examples, found Tensor"),
        (lambda: predict_soft_targets(examples, network), "examples: expected Examples, found Linear"),
        (lambda: examples.check(soft.logits), "soft: expected SoftTargets, found Tensor"),
        (lambda: side_by_side(batches), "members: expected a list of Batches, one for each member, found Batches"),
        (lambda: next(side_by_side(members)(1)), "soft targets of as many classes or all without, found others"),
        (lambda: replicas.member(5), "number of a member: expected"),
        (lambda: replicas.member("0"), "number of a member: expected"),
        (lambda: latency(network(inputs)), "predict: expected a function without arguments, found Tensor"),
    ]


@pytest.mark.parametrize("number", range(len(no_models())))
def test_what_was_given_in_the_place_of_another_thing_is_named(number):
    call, said = no_models()[number]
    with pytest.raises(KDError, match=said):
        call()
