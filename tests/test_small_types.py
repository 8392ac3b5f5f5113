"""Numbers of small types, excluded classes, one-logit targets and row numbers: the right value, or KDError."""

import hashlib
import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics import f1_score

from kdlib import losses, metrics
from kdlib.augment import Mix, balanced_draw, flip_and_shift, mixup, unmixed
from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.files import array_digest
from kdlib.seeds import generator
from kdlib.specialists import dustbin_logits, oversampling
from kdlib.targets import (
    SoftTargets,
    ensemble_targets,
    mean_of_distributions,
    mix_logits,
    smoothed_labels,
    virtual_teacher,
)

INF, NAN = math.inf, math.nan
STUDENT, TEACHER = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[2.0, 0.5, -1.0]])
LABELS = torch.tensor([2])


# ---- numbers of small types


@pytest.mark.parametrize(
    "twenty",
    [np.uint8(20), np.int8(20), np.float16(20), np.array(20, dtype=np.int8), torch.tensor(20, dtype=torch.int8)],
    ids=repr,
)
def test_a_temperature_of_a_small_type_is_that_number(twenty):
    s, t = (part.double().numpy() / 20 for part in (STUDENT, TEACHER))
    expected = 400 * rel_entr(softmax(t, 1), softmax(s, 1)).sum(1).mean()
    assert losses.soft_target_kl(STUDENT, TEACHER, twenty).item() == pytest.approx(expected, rel=1e-4)
    for call in (
        lambda number: mean_of_distributions([STUDENT, TEACHER], "arithmetic", number),
        lambda number: virtual_teacher(LABELS, 3, 0.9, number),
        lambda number: dustbin_logits(STUDENT, (0,), number),
        SoftTargets(TEACHER, "run", "data").probabilities,
    ):
        assert torch.equal(call(twenty), call(20.0))


def test_a_temperature_in_16_bits_has_a_square():
    wide = losses.soft_target_kl(STUDENT, TEACHER, 300.0)
    assert torch.equal(losses.soft_target_kl(STUDENT, TEACHER, torch.tensor(300.0, dtype=torch.float16)), wide)
    mapped = torch.vmap(lambda t: losses.soft_target_kl(STUDENT, TEACHER, t))(torch.tensor([20, 100], dtype=torch.int8))
    assert mapped[1].item() == pytest.approx(losses.soft_target_kl(STUDENT, TEACHER, 100.0).item(), rel=1e-6)


CALLS = {
    "soft_target_kl": lambda n: losses.soft_target_kl(STUDENT, TEACHER, n),
    "hard_weight": lambda n: losses.hard_and_soft(STUDENT, TEACHER, LABELS, n, 1.0, 2.0),
    "soft_weight": lambda n: losses.hard_and_soft(STUDENT, TEACHER, LABELS, 1.0, n, 2.0),
    "kl_plus_mae": lambda n: losses.kl_plus_mae(STUDENT, TEACHER, n),
    "binary": lambda n: losses.binary_distillation(STUDENT[0], TEACHER[0], torch.tensor([0, 1, 1]), n),
    "label_smoothing": lambda n: losses.label_smoothing(STUDENT, LABELS, n),
    "probabilities": lambda n: SoftTargets(TEACHER, "run", "data").probabilities(n),
    "mean": lambda n: mean_of_distributions([STUDENT, TEACHER], "geometric", n),
    "smoothed": lambda n: smoothed_labels(LABELS, 3, n),
    "virtual": lambda n: virtual_teacher(LABELS, 3, n, 2.0),
    "mixup": lambda n: mixup(torch.arange(4), n, generator(0, "mix")).weight,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_text_and_other_things_are_no_numbers(call):
    for wrong in ("0.5", None, [0.5], 0.5j, np.array([0.5]), np.array("0.5"), torch.tensor(0.5j)):
        with pytest.raises(KDError, match="expected a number"):
            call(wrong)
    with pytest.raises(KDError, match="expected"):
        call(10**400)


@pytest.mark.parametrize("call", [CALLS[name] for name in CALLS if name != "virtual"])
def test_one_is_one_in_every_type(call):
    for one in (1, True, np.uint8(1), np.bool_(True), np.float16(1), torch.tensor(1, dtype=torch.uint8)):
        assert torch.equal(call(one), call(1.0))
    assert torch.equal(call(torch.tensor(True)), call(1.0))


def test_a_temperature_that_would_make_logits_overflow_is_refused():
    with pytest.raises(KDError, match="temperature: expected a number from"):
        losses.soft_target_kl(STUDENT, TEACHER, 1e-40)


def test_numbers_of_classes_and_shifts_do_not_overflow():
    labels = np.arange(16, dtype=np.uint8)
    assert metrics.confusion_matrix(labels, labels, np.uint8(16)) == np.eye(16).tolist()
    pictures = torch.arange(300.0).view(1, 1, 1, 300).expand(50, 1, 210, 300)
    found = [flip_and_shift(pictures, kind(200), generator(0, "shift")) for kind in (int, np.uint8)]
    assert torch.equal(*found)


# ---- one logit, or places


def test_targets_of_one_logit_or_of_places_have_no_softmax():
    weight = torch.tensor([0.5, 0.5])
    for shape in ((2, 1), (2,), (2, 3, 4, 4)):
        values = torch.ones(shape)
        calls = [
            lambda v: SoftTargets(v, "run", "data").probabilities(),
            lambda v: mean_of_distributions([v, v], "geometric"),
            lambda v: ensemble_targets([SoftTargets(v, name, "data") for name in "ab"], "arithmetic", 1.0),
            lambda v: dustbin_logits(v, (0,)),
        ]
        if len(shape) == 2:
            calls.append(lambda v: mix_logits(v, v, weight))
        for call in calls:
            with pytest.raises(KDError, match=r"of shape \(N, K\).*(binary_distillation|flatten)"):
                call(values)


def test_mixed_batches_refuse_one_logit():
    examples = Examples(torch.randn(2, 4), torch.tensor([1, 0]))
    soft = SoftTargets(torch.tensor([[3.0], [-2.0]]), "run", examples.digest)
    batches = Batches(examples, 2, 0, soft=soft, classes=2, mix=lambda epoch: unmixed(torch.arange(2)))
    with pytest.raises(KDError, match="binary_distillation"):
        list(batches(1))


def test_the_remedy_for_one_logit_gives_the_mean_of_the_sigmoids():
    """The remedy in the error's text: two logits, 0 and z."""
    ones = [torch.tensor([[3.0], [-2.0]]), torch.tensor([[1.0], [-4.0]])]
    pad = torch.nn.functional.pad
    members = [SoftTargets(pad(z.view(-1, 1), (1, 0)), f"run {i}", "data") for i, z in enumerate(ones)]
    found = losses.binary_logit(ensemble_targets(members, "arithmetic", 1.0).logits).sigmoid()
    expected = [(1 / (1 + math.exp(-a)) + 1 / (1 + math.exp(-b))) / 2 for a, b in ((3, 1), (-2, -4))]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_means_and_mixtures_of_what_is_no_distribution_are_refused():
    apart = [torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]])]
    with pytest.raises(KDError, match="the geometric mean"):
        mean_of_distributions(apart, "geometric")
    assert mean_of_distributions(apart, "arithmetic").softmax(1).tolist() == [[0.5, 0.5]]
    with pytest.raises(KDError, match="the arithmetic mean"):
        mean_of_distributions([torch.tensor([[0.0, NAN]])], "arithmetic")
    for wrong in (-0.1, 1.5, NAN):
        with pytest.raises(KDError, match="weights from 0 to 1"):
            mix_logits(STUDENT, TEACHER, torch.tensor([wrong]))


# ---- classes that a student excludes


@pytest.mark.parametrize("gap", [1e9, torch.finfo(torch.float32).max, INF])
def test_a_class_of_probability_zero_adds_nothing_where_the_student_excludes_it(gap):
    student, teacher = torch.tensor([[1.0, 0.0, -INF]]), torch.tensor([[1.0, 0.5, -gap]])
    two = [part[:, :2].double().numpy() for part in (student, teacher)]
    kl = rel_entr(softmax(two[1] / 4, 1), softmax(two[0] / 4, 1)).sum()
    mae = np.abs(softmax(two[1], 1) - softmax(two[0], 1)).sum() / 3
    once = rel_entr(softmax(two[1], 1), softmax(two[0], 1)).sum()
    mixed = torch.tensor([[0.25, 0.75, 0.0]])
    expected = {
        lambda s: losses.soft_target_kl(s, teacher, 4.0): 16 * kl,
        lambda s: losses.kl_plus_mae(s, teacher, 0.1): once + 0.1 * mae,
        lambda s: losses.cross_entropy(s, mixed): -(log_softmax(two[0], 1) @ [0.25, 0.75])[0],
    }
    for loss, value in expected.items():
        logits = student.clone().requires_grad_()
        (slope,) = torch.autograd.grad(found := loss(logits), logits)
        assert found.item() == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert slope.isfinite().all()
        mapped = torch.vmap(loss)(student.expand(2, 1, 3))
        assert mapped.tolist() == pytest.approx([value] * 2, rel=1e-5, abs=1e-6)
    assert metrics.mean_kl(teacher, student) == pytest.approx(once, rel=1e-6)


def test_a_student_that_excludes_what_the_target_has_costs_infinitely_much():
    student = torch.tensor([[1.0, 0.0, -INF]])
    even = torch.full((1, 3), 1 / 3)
    for loss in (
        losses.soft_target_kl(student, TEACHER, 4.0),
        losses.kl_plus_mae(student, TEACHER, 0.1),
        losses.cross_entropy(student, even),
        losses.cross_entropy(student, LABELS),
        losses.hard_and_soft(student, TEACHER, LABELS, 0.5, 0.5, 2.0),
        losses.label_smoothing(student, torch.tensor([0]), 0.1),
    ):
        assert loss.item() == INF


def test_an_infinite_term_without_a_weight_adds_nothing():
    student = torch.tensor([[1.0, 0.0, -INF]])
    label = torch.tensor([0])
    hard = -log_softmax([1.0, 0.0])[0]
    for zero, one in ((0.0, 1.0), (torch.tensor(0.0), torch.tensor(1.0))):
        found = losses.hard_and_soft(student, TEACHER, label, one, zero, 2.0)
        assert found.item() == pytest.approx(hard, rel=1e-6)
        excluded = torch.tensor([[1.0, 0.5, -INF]])  # the label's term is infinite
        soft = losses.soft_target_kl(student, excluded, 2.0)
        assert torch.equal(losses.hard_and_soft(student, excluded, LABELS, zero, one, 2.0), soft)
    assert losses.label_smoothing(student, label, 0.0).item() == pytest.approx(hard, rel=1e-6)


def test_students_without_a_mean_or_a_binary_cross_entropy_are_refused():
    student = torch.tensor([[1.0, 0.0, -INF]])
    with pytest.raises(KDError, match=r"student that are finite, found -inf at \[0, 2\]"):
        losses.logit_matching(student, TEACHER)
    with pytest.raises(KDError, match="student that are finite"):
        losses.binary_distillation(student, TEACHER, torch.zeros(1, 3), 0.5)
    assert losses.logit_matching(torch.full((1, 3), NAN), TEACHER).isnan()  # left to the loop


def test_entropy_and_divergence_with_probabilities_that_are_zero_in_the_type():
    assert metrics.mean_kl([[0.0, -800.0]], [[0.0, -INF]]) == 0
    assert metrics.mean_kl([[0.0, -700.0]], [[0.0, -INF]]) == INF  # exp(-700) is a number of float64


# ---- metrics


def test_a_normalised_confusion_matrix_has_no_counts():
    counts = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 10]])
    labels, guesses = (np.repeat(axis, counts.ravel()) for axis in np.indices(counts.shape).reshape(2, -1))
    expected = f1_score(labels, guesses, average="macro")
    for same in (counts, counts.astype(float), counts.tolist(), torch.tensor(counts)):
        assert metrics.macro_f1_of_confusion(same) == pytest.approx(expected, rel=1e-12)
    for wrong in (counts / counts.sum(), counts / 10, np.where(counts == 8, INF, counts)):
        with pytest.raises(KDError, match=r"whole numbers.*must not be normalised"):
            metrics.f1_by_class(wrong)


def test_a_teacher_of_one_logit_or_labels_outside_are_refused_before_chance_is_computed():
    labels = torch.tensor([1] * 6 + [0] * 4)
    with pytest.raises(KDError, match="binary_distillation"):
        metrics.refuse_at_chance(torch.randn(10, 1), labels, metrics.accuracy, "teacher")
    with pytest.raises(KDError, match="found -100 in row 0"):
        metrics.refuse_at_chance(torch.randn(10, 2), labels.where(labels == 0, -100), metrics.accuracy, "teacher")
    good = np.eye(2)[labels.numpy()]
    metrics.refuse_at_chance(good, labels.numpy(), metrics.accuracy, "teacher")


def test_what_is_no_array_of_numbers_is_refused():
    for wrong in ("text", [[1.0, 2.0], [3.0]], np.array([[1.0, 2.0]])[:, ::-1], np.array([[1.0, 2.0]], dtype=">f4")):
        with pytest.raises(KDError, match="a tensor or numbers"):
            metrics.mean_entropy(wrong)


# ---- row numbers


ROWS = [3, 2, 1, 0]


@pytest.mark.parametrize(
    "rows", [torch.tensor(ROWS, dtype=torch.uint8), np.array(ROWS), np.array(ROWS, dtype=np.uint8), ROWS], ids=repr
)
def test_row_numbers_of_any_type_are_not_a_mask(rows):
    values = torch.randn(4, 2)
    four, soft = Examples(values, torch.arange(4)), SoftTargets(values, "run", "data")
    wanted = torch.tensor(ROWS)
    assert four.select(rows).labels.tolist() == ROWS
    assert four.select(rows).digest == four.select(wanted).digest
    assert torch.equal(soft.select(rows).logits, values.flip(0))
    plan = mixup(rows, 1.0, generator(0, "mix"))
    assert torch.equal(plan.blend(values), mixup(wanted, 1.0, generator(0, "mix")).blend(values))
    assert plan[rows].first.tolist() == [0, 1, 2, 3]
    assert unmixed(rows).first.tolist() == ROWS
    assert soft.select(np.array([True, False, True, False])).logits.tolist() == values[::2].tolist()


def test_a_mask_of_small_numbers_is_not_taken_for_row_numbers():
    """Rows 0 and 1 would come again and again."""
    values = torch.randn(4, 2)
    four, soft = Examples(values, torch.arange(4)), SoftTargets(values, "run", "data")
    plan = mixup(torch.arange(4), 1.0, generator(0, "mix"))
    for kind in (np.uint8, np.int8, np.int32, np.int64):
        mask = np.array([1, 0, 0, 1], dtype=kind)
        for each in (mask, torch.from_numpy(mask), mask.tolist()):
            for select in (four.select, soft.select, plan.__getitem__):
                with pytest.raises(KDError, match=r"of 0 and 1 alone; use rows\.bool\(\) for a mask"):
                    select(each)
    with pytest.raises(KDError, match="of 0 and 1 alone"):
        oversampling(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 0, 0, 1, 1, 0]), (1, 2))
    assert four.select([0, 1, 0]).labels.tolist() == [0, 1, 0]  # not as long as a mask
    two = Examples(values[:2], torch.arange(2))
    assert two.select([1, 0]).labels.tolist() == [1, 0]
    assert two.select([1, 1, 0]).labels.tolist() == [1, 1, 0]


def test_plans_of_masks_fractions_and_small_types_are_refused():
    weight = torch.ones(4)
    for kind in (torch.uint8, torch.bool, torch.float32):
        with pytest.raises(KDError, match="row numbers"):
            Mix(torch.tensor([1, 0, 1, 1]).to(kind), torch.arange(4), weight)
    for rows in (torch.tensor([True, False]), [0.5, 1.0], "text"):
        with pytest.raises(KDError, match="row numbers"):
            mixup(rows, 1.0, generator(0, "mix"))


def test_labels_may_be_arrays_or_lists():
    labels = [1, 0, 1, 0, 1]
    soft, wanted = SoftTargets(torch.randn(5, 2), "run", "data"), torch.tensor(labels)
    for given in (labels, np.array(labels), wanted.to(torch.uint8)):
        sham = [soft.permuted_within_classes(y, generator(0, "sham")).logits for y in (given, wanted)]
        assert torch.equal(*sham)
        assert torch.equal(*(balanced_draw(y, 20, 2, generator(0, "draw")) for y in (given, wanted)))
        assert torch.equal(smoothed_labels(given, 2, 0.1), smoothed_labels(wanted, 2, 0.1))
        assert torch.equal(virtual_teacher(given, 2, 0.9, 2.0), virtual_teacher(wanted, 2, 0.9, 2.0))
    with pytest.raises(KDError, match="expected labels, a tensor"):
        losses.binary_distillation(STUDENT[0], TEACHER[0], [0, 1, 1], 0.5)


# ---- digests


def test_the_digest_of_an_array_does_not_depend_on_the_order_of_its_bytes():
    little = np.arange(3, dtype="<f4")
    by_hand = hashlib.sha256(b"float32|(3,)|" + little.tobytes()).hexdigest()[:16]
    assert array_digest(little.astype(">f4")) == array_digest(little) == array_digest(torch.arange(3.0)) == by_hand
    assert array_digest(np.array([1], ">i4")) != array_digest(np.array([16777216], "<i4"))


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.ones(2, device="meta"), torch.ones(2).to(torch.float8_e4m3fn)], ids=str
)
def test_a_tensor_that_numpy_cannot_hold_has_no_digest(tensor):
    with pytest.raises(KDError, match="NumPy can hold"):
        array_digest(tensor)


class Named(torch.Tensor):
    """A subclass as fastai's and MONAI's."""


def test_values_of_a_tensor_subclass_are_looked_at():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([9, 0, 0, 0]).as_subclass(Named)
    with pytest.raises(KDError, match="label"):
        metrics.accuracy(logits.as_subclass(Named), labels)
    with pytest.raises(KDError, match="nan"):
        SoftTargets((logits * float("nan")).as_subclass(Named), "run", "data")
