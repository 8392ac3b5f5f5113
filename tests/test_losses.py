"""Every distillation loss against its equation and its known properties."""

import doctest
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_softmax, rel_entr, softmax

from kdlib import losses
from kdlib.errors import KDError
from kdlib.seeds import generator
from kdlib.targets import smoothed_labels

B, K, T = 12, 5, 4.0

# name -> loss of (student, teacher, labels), and the same from its equation in NumPy
LOSSES = {
    "cross_entropy": (lambda s, t, y: losses.cross_entropy(s, y), lambda s, t, y: hard(s, y)),
    "cross_entropy_mixed": (
        lambda s, t, y: losses.cross_entropy(s, t.detach().softmax(-1)),
        lambda s, t, y: -np.mean(np.sum(softmax(t, 1) * log_softmax(s, 1), 1)),
    ),
    "soft_target_kl": (lambda s, t, y: losses.soft_target_kl(s, t, T), lambda s, t, y: T**2 * kl(t / T, s / T)),
    "hard_and_soft": (
        lambda s, t, y: losses.hard_and_soft(s, t, y, 0.3, 0.9, T),
        lambda s, t, y: 0.3 * hard(s, y) + 0.9 * T**2 * kl(t / T, s / T),
    ),
    "kl_plus_mae": (
        lambda s, t, y: losses.kl_plus_mae(s, t, 0.1),
        lambda s, t, y: kl(t, s) + 0.1 * np.mean(np.abs(softmax(t, 1) - softmax(s, 1))),
    ),
    "logit_matching": (
        lambda s, t, y: losses.logit_matching(s, t),
        lambda s, t, y: np.mean(np.sum((centred(s) - centred(t)) ** 2, 1)) / (2 * K),
    ),
    "label_smoothing": (
        lambda s, t, y: losses.label_smoothing(s, y, 0.1),
        lambda s, t, y: 0.9 * hard(s, y) + 0.1 * kl(np.zeros_like(s), s),
    ),
    "binary_distillation": (
        lambda s, t, y: losses.binary_distillation(s[:, 0], t[:, 0], (y > 1).long(), 0.3),
        lambda s, t, y: 0.3 * bce(s[:, 0], y > 1) + 0.7 * bce(s[:, 0], expit(t[:, 0])),
    ),
}
TAUGHT = ["soft_target_kl", "hard_and_soft", "kl_plus_mae", "logit_matching", "binary_distillation"]
MULTICLASS = [name for name in LOSSES if name != "binary_distillation"]


def hard(student, labels):
    return -np.mean([log_softmax(row)[label] for row, label in zip(student, labels, strict=True)])


def kl(teacher, student):
    return np.mean(np.sum(rel_entr(softmax(teacher, 1), softmax(student, 1)), 1))


def centred(logits):
    return logits - logits.mean(1, keepdims=True)


def bce(logit, target):
    return -np.mean(target * np.log(expit(logit)) + (1 - target) * np.log(expit(-logit)))


@pytest.fixture
def example():
    """Student's and teacher's logits in float64, and labels."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 2, (2, B, K))
    return torch.tensor(student), torch.tensor(teacher), torch.tensor(rng.integers(K, size=B))


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(logits), logits)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_equals_its_equation_in_numpy(name, example):
    loss, equation = LOSSES[name]
    assert loss(*example).item() == pytest.approx(equation(*(part.numpy() for part in example)), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_soft_target_kl_at_other_temperatures(temperature, example):
    student, teacher, _ = example
    expected = temperature**2 * kl(teacher.numpy() / temperature, student.numpy() / temperature)
    assert losses.soft_target_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", ["soft_target_kl", "kl_plus_mae", "logit_matching"])
def test_zero_at_equal_logits_and_positive_elsewhere(name, example):
    student, teacher, labels = example
    loss, _ = LOSSES[name]
    assert loss(teacher, teacher, labels).item() == pytest.approx(0, abs=1e-15)
    assert gradient(lambda s: loss(s, teacher, labels), teacher).abs().max() < 1e-15
    assert loss(student, teacher, labels) > 0.1


def test_hard_and_soft_is_least_at_the_mixture_of_its_targets(example):
    _, teacher, labels = example
    targets = 0.3 * F.one_hot(labels, K).double() + 0.7 * teacher.softmax(-1)
    best = gradient(lambda s: losses.hard_and_soft(s, teacher, labels, 0.3, 0.7, 1.0), targets.log())
    assert best.abs().max() < 1e-15


def test_binary_distillation_is_least_at_the_teacher(example):
    _, teacher, labels = example
    logit, labels = teacher[:, 0], labels > 1
    p = expit(logit.numpy())
    entropy = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert losses.binary_distillation(logit, logit, labels, 0.0).item() == pytest.approx(entropy, rel=1e-12)
    slope = gradient(lambda s: losses.binary_distillation(s, logit, labels, 0.0), logit)
    assert slope.abs().max() < 1e-15


def test_label_smoothing_is_least_at_the_smoothed_labels(example):
    _, _, labels = example
    targets = smoothed_labels(labels, K, 0.1).double()
    assert gradient(lambda s: losses.label_smoothing(s, labels, 0.1), targets.log()).abs().max() < 1e-8


@pytest.mark.parametrize("name", MULTICLASS)
def test_unchanged_by_a_constant_added_to_the_logits(name, example):
    student, teacher, labels = example
    loss, _ = LOSSES[name]
    one, other = torch.linspace(-30, 30, B, dtype=torch.float64).view(B, 1), 17.0
    assert loss(student + one, teacher + other, labels).item() == pytest.approx(
        loss(student, teacher, labels).item(), rel=1e-11
    )


@pytest.mark.parametrize("name", MULTICLASS)
def test_unchanged_by_permuting_classes_and_examples_together(name, example):
    student, teacher, labels = example
    loss, _ = LOSSES[name]
    classes, rows = torch.tensor([3, 0, 4, 1, 2]), torch.arange(B).roll(5).flip(0)
    renamed = classes.argsort()[labels]  # class k is now in the column where `classes` has k
    permuted = loss(student[rows][:, classes], teacher[rows][:, classes], renamed[rows])
    assert permuted.item() == pytest.approx(loss(student, teacher, labels).item(), rel=1e-12)


def test_binary_distillation_is_unchanged_by_exchanging_the_two_classes(example):
    student, teacher, labels = (part[:, 0] if part.ndim == 2 else (part > 1).long() for part in example)
    exchanged = losses.binary_distillation(-student, -teacher, 1 - labels, 0.3)
    assert exchanged.item() == pytest.approx(
        losses.binary_distillation(student, teacher, labels, 0.3).item(), rel=1e-12
    )


def test_end_points_of_the_weights(example):
    student, teacher, labels = example
    only_hard, only_soft = (losses.hard_and_soft(student, teacher, labels, w, 1 - w, T) for w in (1.0, 0.0))
    assert only_hard == losses.cross_entropy(student, labels)
    assert only_soft == losses.soft_target_kl(student, teacher, T)
    assert losses.kl_plus_mae(student, teacher, 0.0).item() == pytest.approx(
        losses.soft_target_kl(student, teacher, 1.0).item(), rel=1e-14
    )
    assert losses.label_smoothing(student, labels, 0.0) == losses.cross_entropy(student, labels)
    assert losses.label_smoothing(student, labels, 1.0).item() == pytest.approx(
        kl(np.zeros((B, K)), student.numpy()), rel=1e-12
    )


@pytest.mark.parametrize(("hard_weight", "target"), [(1.0, "labels"), (0.0, "teacher")])
def test_end_points_of_binary_distillation(hard_weight, target, example):
    student, teacher, labels = (part[:, 0] if part.ndim == 2 else (part > 1).long() for part in example)
    targets = {"labels": labels.double(), "teacher": teacher.sigmoid()}[target]
    expected = F.binary_cross_entropy_with_logits(student, targets)
    assert losses.binary_distillation(student, teacher, labels, hard_weight) == expected


def test_the_hard_term_does_not_feel_the_temperature(example):
    student, teacher, labels = example
    cold, hot = (losses.hard_and_soft(student, teacher, labels, 1.0, 0.0, t) for t in (1.0, 20.0))
    assert cold == hot


def test_gradient_of_the_soft_term_is_steady_in_the_temperature(example):
    student, teacher, _ = example
    sizes = []
    for t in (2.0, 8.0, 32.0, 128.0):
        slope = gradient(lambda s, t=t: losses.soft_target_kl(s, teacher, t), student)
        # Hinton et al. 2015, eq. 2, times T^2
        expected = t * (softmax(student.numpy() / t, 1) - softmax(teacher.numpy() / t, 1)) / B
        np.testing.assert_allclose(slope, expected, rtol=1e-9)
        sizes.append(slope.norm().item())
    assert max(sizes) < 2 * min(sizes)


def test_logit_matching_is_the_limit_of_high_temperature(example):
    student, teacher, _ = example
    limit = losses.logit_matching(student, teacher)
    errors = [abs(losses.soft_target_kl(student, teacher, t) / limit - 1).item() for t in (100, 200, 400)]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_gradient_of_soft_targets_falls_as_the_square_of_the_temperature(example):
    """The reason for T^2 in the loss: with the hard term, the gradient of the soft term alone would vanish."""
    student, teacher, _ = example
    centred_difference = centred(student.numpy()) - centred(teacher.numpy())
    errors = []
    for t in (50.0, 100.0, 200.0, 400.0):
        plain = gradient(lambda s, t=t: losses.soft_target_kl(s, teacher, t) / t**2, student).numpy()
        # Hinton et al. 2015, eq. 2
        equation = (softmax(student.numpy() / t, 1) - softmax(teacher.numpy() / t, 1)) / t / B
        np.testing.assert_allclose(plain, equation, rtol=1e-9, atol=1e-18)
        limit = centred_difference / (K * t**2) / B  # eq. 4
        errors.append(np.linalg.norm(plain - limit) / np.linalg.norm(limit))
    assert errors[0] < 0.1
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 2, rtol=0.05)  # the error falls as 1 / T


def test_gradient_at_high_temperature_is_that_of_logit_matching(example):
    """The claim needs no zero-mean logits for the gradient of logit_matching, which subtracts the mean itself."""
    student, teacher, _ = example
    matched = gradient(lambda s: losses.logit_matching(s, teacher), student)
    np.testing.assert_allclose(matched, (centred(student.numpy()) - centred(teacher.numpy())) / K / B, atol=1e-15)
    sizes = [
        (gradient(lambda s, t=t: losses.soft_target_kl(s, teacher, t), student) - matched).norm().item()
        for t in (100.0, 200.0, 400.0)
    ]
    assert sizes[0] < 0.05 * matched.norm()
    np.testing.assert_allclose([sizes[0] / sizes[1], sizes[1] / sizes[2]], 2, rtol=0.05)


def test_label_smoothing_is_a_uniform_teacher_and_smoothed_labels(example):
    student, _, labels = example
    smoothing, constant = 0.3, 0.3 * np.log(K)
    value = losses.label_smoothing(student, labels, smoothing).item()
    uniform = torch.full_like(student, 7.0)
    taught = losses.hard_and_soft(student, uniform, labels, 1 - smoothing, smoothing, 1.0)
    smoothed = losses.cross_entropy(student, smoothed_labels(labels, K, smoothing).double())
    assert value == pytest.approx(taught.item(), rel=1e-12)
    assert value == pytest.approx(smoothed.item() - constant, rel=1e-6)  # smoothed_labels are float32
    assert value == pytest.approx(
        F.cross_entropy(student, labels, label_smoothing=smoothing).item() - constant, rel=1e-12
    )


@pytest.mark.parametrize("name", TAUGHT)
def test_no_gradient_reaches_the_teacher(name, example):
    student, teacher, labels = example
    student.requires_grad_(), teacher.requires_grad_()
    LOSSES[name][0](student, teacher, labels).backward()
    assert teacher.grad is None
    assert student.grad.norm() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_finite_in_float32_at_huge_logits(name):
    signs = torch.tensor([[1, -1, -1, 1, -1], [-1, 1, -1, -1, -1], [1, 1, 1, 1, 1], [-1, -1, -1, -1, -1]])
    student, labels = 1e4 * signs.float(), torch.tensor([1, 0, 2, 3])
    for teacher in (student, -student, student.roll(1, 0), torch.zeros_like(student)):
        loss = LOSSES[name][0](student.requires_grad_(), teacher.detach(), labels)
        (slope,) = torch.autograd.grad(loss, student)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()


def test_equals_keras_with_its_clipping_at_moderate_logits(example):
    student, teacher, _ = (part.clamp(-5, 5) if part.ndim == 2 else part for part in example)
    p, q = (np.clip(softmax(logits.numpy(), 1), 1e-7, 1) for logits in (teacher, student))
    keras = np.mean(np.sum(p * np.log(p / q), 1))
    assert losses.soft_target_kl(student, teacher, 1.0).item() == pytest.approx(keras, abs=1e-6)


def test_a_saturated_output_still_has_a_gradient_unlike_clipped_keras():
    student, teacher = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    slope = gradient(lambda s: losses.soft_target_kl(s, teacher, 1.0), student)
    assert slope.tolist() == [[0.5, -0.5]]


def test_weights_and_temperatures_may_be_tensors_and_mapped_over(example):
    student, teacher, labels = example
    hard_weights, temperatures = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 4.0, 20.0])
    students = torch.stack([student, 2 * student, teacher])
    calls = {
        "hard_and_soft": lambda s, w, t: losses.hard_and_soft(s, teacher, labels, w, 1 - w, t),
        "kl_plus_mae": lambda s, w, t: losses.kl_plus_mae(s, teacher, w),
        "label_smoothing": lambda s, w, t: losses.label_smoothing(s, labels, w),
        "logit_matching": lambda s, w, t: losses.logit_matching(s, teacher),
        "binary": lambda s, w, t: losses.binary_distillation(s[:, 0], teacher[:, 0], labels > 1, w),
    }
    for name, call in calls.items():
        mapped = torch.vmap(call)(students, hard_weights, temperatures)
        looped = [call(s, w.item(), t.item()) for s, w, t in zip(students, hard_weights, temperatures, strict=True)]
        np.testing.assert_allclose(mapped, torch.stack(looped), rtol=1e-6, atol=1e-12, err_msg=name)


def test_refuses_shapes_that_would_broadcast(example):
    student, teacher, labels = example
    for loss in (
        lambda: losses.soft_target_kl(student, teacher[:1], 1.0),
        lambda: losses.kl_plus_mae(student, teacher[0], 0.1),
        lambda: losses.logit_matching(student, teacher[:, :1]),
        lambda: losses.binary_distillation(student[:, :1], teacher[:, 0], labels, 0.5),
        lambda: losses.binary_distillation(student[:, 0], teacher[:, 0], labels[:, None], 0.5),
    ):
        with pytest.raises(KDError, match=r"one shape|of shape \(N, K\)"):
            loss()


@pytest.mark.parametrize(
    "wrong",
    [torch.tensor([0, 1, 2]), torch.tensor([0, -1, 1]), torch.tensor([0, 1, 0.5]), torch.tensor([1, 0, np.nan])],
)
def test_labels_other_than_0_and_1_are_refused(wrong):
    student, teacher = torch.zeros(3), torch.ones(3)
    losses.binary_distillation(student, teacher, torch.tensor([0.0, 1.0, 1.0]), 0.5)
    with pytest.raises(KDError, match=r"expected labels 0 and 1, found .* and 1 such labels in all"):
        losses.binary_distillation(student, teacher, wrong, 0.5)


def test_labels_may_be_mapped_over():
    students, labels = torch.randn(2, 4), torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    mapped = torch.vmap(lambda s, y: losses.binary_distillation(s, torch.ones(4), y, 0.4))(students, labels)
    looped = [losses.binary_distillation(s, torch.ones(4), y, 0.4) for s, y in zip(students, labels, strict=True)]
    torch.testing.assert_close(mapped, torch.stack(looped))


def test_a_softmax_of_two_logits_is_a_sigmoid_of_their_difference(example):
    _, teacher, _ = example
    two = 3 * teacher[:, :2]
    np.testing.assert_allclose(losses.binary_logit(two).sigmoid(), softmax(two.numpy(), 1)[:, 1], rtol=1e-12)
    assert torch.equal(losses.binary_logit(two[:, :1]), two[:, 0])
    for logits in (teacher, teacher[0, 0]):
        with pytest.raises(KDError, match=r"expected logits of shape \(\.\.\., 1\) or \(\.\.\., 2\)"):
            losses.binary_logit(logits)


def test_a_teacher_of_two_logits_and_a_student_of_one_are_refused_until_they_are_one_logit_each(example):
    student, teacher, labels = example
    student, teacher, labels = student[:, 0], teacher[:, :2], (labels > 1).long()
    with pytest.raises(KDError, match="binary_logit makes one logit"):
        losses.binary_distillation(student, teacher, labels, 0.3)
    found = losses.binary_distillation(student, losses.binary_logit(teacher), labels, 0.3)
    soft = softmax(teacher.numpy(), 1)[:, 1]
    expected = 0.3 * bce(student.numpy(), labels.numpy()) + 0.7 * bce(student.numpy(), soft)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_binary_distillation_of_several_labels_is_a_loop_over_each_of_them(example):
    student, teacher, _ = example
    labels = (torch.arange(B * K).view(B, K) % 3 == 0).long()
    total = 0.0
    for b in range(B):
        for k in range(K):
            z, p, y = student[b, k].item(), 1 / (1 + np.exp(-teacher[b, k].item())), labels[b, k].item()
            q = 1 / (1 + np.exp(-z))
            target = 0.3 * y + 0.7 * p
            total -= target * np.log(q) + (1 - target) * np.log(1 - q)
    found = losses.binary_distillation(student, teacher, labels, 0.3)
    assert found.item() == pytest.approx(total / (B * K), rel=1e-12)


def test_a_hard_term_refuses_an_unlabelled_transfer_set(example):
    student, teacher, labels = example
    absent = labels.new_empty(B, 0)
    for loss in (
        lambda: losses.cross_entropy(student, absent),
        lambda: losses.hard_and_soft(student, teacher, absent, 0.0, 1.0, T),
        lambda: losses.label_smoothing(student, absent, 0.1),
        lambda: torch.vmap(losses.cross_entropy)(student.expand(2, B, K), absent.expand(2, B, 0)),
    ):
        with pytest.raises(KDError, match="expected labels for the hard term"):
            loss()


def test_the_examples_in_the_docstrings_print_what_they_say():
    found = doctest.testmod(losses)
    shown = [name for name in losses.__all__ if ">>>" in (getattr(losses, name).__doc__ or "")]
    assert (found.failed, shown) == (0, losses.__all__)
    assert found.attempted > len(shown)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e3, 1e5, 1e6])
def test_a_teacher_of_fewer_bits_than_its_student_is_as_exact(kind, temperature):
    """T^2 multiplied the rounding of the teacher's log-probabilities."""
    student = torch.randn(6, 5, generator=generator(0, "student"), dtype=torch.float64)
    teacher = torch.randn(6, 5, generator=generator(0, "teacher"), dtype=torch.float64).to(kind)
    p, q = (log_softmax(z.double().numpy() / temperature, 1) for z in (teacher, student))
    expected = temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()
    assert losses.soft_target_kl(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-2)
    limit = (student - teacher.double()).numpy()
    limit -= limit.mean(1, keepdims=True)
    assert expected == pytest.approx((limit**2).sum(1).mean() / 10, rel=1e-2)  # that of matched logits


@pytest.mark.parametrize("also_student", [True, False])
def test_a_learnt_temperature_has_a_gradient_where_classes_are_excluded(also_student):
    teacher = torch.tensor([[2.0, -math.inf, 0.5, -1.0], [0.3, 1.0, -math.inf, 0.1]], dtype=torch.float64)
    student = torch.tensor([[0.5, 0.3, -0.2, 0.9], [1.0, 0.2, -0.7, 0.4]], dtype=torch.float64)
    if also_student:
        student = student.masked_fill(teacher == -math.inf, -math.inf)

    def equation(t):
        p, q = softmax(teacher.numpy() / t, 1), softmax(student.numpy() / t, 1)
        return t**2 / 2 * rel_entr(p, q).sum()

    temperature = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    found = losses.soft_target_kl(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(found, temperature)
    assert float(found.detach()) == pytest.approx(equation(3.0), rel=1e-9)
    assert float(gradient) == pytest.approx((equation(3 + 1e-5) - equation(3 - 1e-5)) / 2e-5, rel=1e-6)
