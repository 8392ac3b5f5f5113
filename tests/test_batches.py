"""Batches: what belongs together stays together, and an epoch is a function of its number."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from kdlib.augment import flip_and_shift, mixup
from kdlib.batches import STEPS_PER_GATHER, Batches, Examples, TeacherAtChance
from kdlib.errors import KDError
from kdlib.files import array_digest
from kdlib.losses import soft_target_kl
from kdlib.metrics import expected_calibration_error
from kdlib.networks import keras_glorot_
from kdlib.probabilities import ProbabilitiesAsLogits
from kdlib.replicas import side_by_side
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import Progress, epochs, hard_targets

K, SIZE = 5, 3
N = SIZE * STEPS_PER_GATHER * 2 + 7  # three gathers, the last batch short


@pytest.fixture
def examples():
    """Inputs that contain their row number."""
    rows = torch.arange(N)
    return Examples(torch.stack([rows, -rows], 1).double(), rows * 7 % K, "data")


@pytest.fixture
def soft():
    """Logits of which no two rows are the same."""
    return SoftTargets(torch.tensor(np.random.default_rng(3).normal(0, 2, (N, K))), "run", "data")


def plan(epoch):
    return mixup(torch.randperm(N, generator=generator(5, "rows", epoch)), 0.5, generator(5, "mix", epoch))


def joined(batches, epoch):
    parts = list(batches(epoch))
    return {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("inputs", "labels", "indices", "soft")
        if getattr(parts[0], name) is not None
    }


def test_every_row_once_with_its_label_and_its_soft_target(examples, soft):
    batches = Batches(examples, SIZE, 0, soft)
    seen = []
    for batch in batches(1):
        rows = batch.indices
        assert torch.equal(batch.inputs, torch.stack([rows, -rows], 1).double())
        assert torch.equal(batch.labels, rows * 7 % K)
        assert torch.equal(batch.soft, soft.logits[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(N))
    assert seen != sorted(seen)


def test_last_short_batch_is_kept_and_length_counts_it(examples):
    batches = Batches(examples, SIZE, 0)
    sizes = [len(batch.inputs) for batch in batches(1)]
    assert len(batches) == len(sizes) == math.ceil(N / SIZE)
    assert sizes == [SIZE] * (N // SIZE) + [N % SIZE]
    assert [len(batch.labels) for batch in Batches(examples, N + 1, 0)(1)] == [N]


@pytest.mark.parametrize("mix", [None, plan])
def test_an_epoch_is_a_pure_function_of_its_number(examples, soft, mix):
    batches = Batches(examples, SIZE, 0, soft, mix, K)
    first = joined(batches, 4)
    torch.rand(3)  # the global stream plays no part
    joined(batches, 5)
    for again in (joined(batches, 4), joined(Batches(examples, SIZE, 0, soft, mix, K), 4)):
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_order_differs_by_epoch_and_by_seed(examples):
    orders = [joined(Batches(examples, SIZE, seed), epoch)["indices"] for seed in (0, 1) for epoch in (1, 2)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_soft_targets_make_no_difference_to_the_order(examples, soft):
    alone, taught = joined(Batches(examples, SIZE, 0), 1), joined(Batches(examples, SIZE, 0, soft), 1)
    assert torch.equal(alone["indices"], taught["indices"])


@pytest.mark.parametrize(
    ("digest", "view", "rows", "named"),
    [
        ("other", "plain", N, "data other"),
        ("data", "flipped", N, "'flipped'"),
        ("data", "plain", N - 1, f"{N - 1} rows"),
    ],
)
def test_refuses_soft_targets_of_other_data_view_or_length(examples, soft, digest, view, rows, named):
    other = Examples(examples.inputs[:rows], examples.labels[:rows], digest, view)
    for check in (other.check, lambda soft: Batches(other, SIZE, 0, soft)):
        with pytest.raises(KDError, match=named) as caught:
            check(soft)
        assert f"those of run run (data data, view 'plain', {N} rows); predict" in str(caught.value)
    examples.check(soft)


# ---- identity by content


def test_without_a_name_the_digest_is_that_of_the_content(examples, soft):
    inputs, labels = examples.inputs, examples.labels
    own = Examples(inputs, labels)
    assert own.digest == array_digest(inputs.numpy(), labels.numpy())
    assert own.digest == Examples(inputs.clone(), labels.clone(), None).digest == own.to(torch.device("cpu")).digest
    altered = inputs.clone()
    altered[3, 1] += 1
    others = [
        Examples(altered, labels),
        Examples(inputs.flip(0), labels.flip(0)),
        Examples(inputs, labels.flip(0)),
        Examples(inputs.float(), labels),
        Examples(inputs[1:], labels[1:]),
        own.select(torch.arange(N)),
        replace(own, inputs=altered, digest=None),
    ]
    assert len({own.digest, *(other.digest for other in others)}) == len(others)  # the altered one is there twice
    for other in others:
        with pytest.raises(KDError, match="expected soft targets of these examples"):
            Batches(other, SIZE, 0, replace(soft, data_digest=own.digest))
    Batches(own.without_labels(), SIZE, 0, replace(soft, data_digest=own.digest))


# ---- the teacher's agreement with the labels


def test_check_gives_the_teachers_accuracy(examples, soft):
    expected = float(np.mean(soft.logits.numpy().argmax(1) == examples.labels.numpy()))
    assert examples.check(soft) == pytest.approx(expected)
    perfect = replace(soft, logits=torch.eye(K)[examples.labels])
    assert examples.check(perfect) == 1.0
    assert examples.without_labels().check(soft) is None
    one_logit = replace(soft, logits=examples.labels[:, None] * 2.0 - 1)
    assert replace(examples, labels=(examples.labels > 0).long()).check(one_logit) == 1.0


def rows_in_another_order(logits, labels):
    return logits[torch.randperm(N, generator=generator(1, "order"))]


def one_class(logits, labels):  # an accuracy of 90% can be chance
    return torch.eye(K)[torch.zeros(N, dtype=torch.int64)]


def most_in_another_order(logits, labels):
    return torch.cat([logits[: N // 50], rows_in_another_order(logits, labels)[N // 50 :]])


@pytest.mark.parametrize("spoil", [rows_in_another_order, one_class, most_in_another_order])
@pytest.mark.parametrize("skewed", [False, True])
def test_a_teacher_at_chance_is_said(examples, spoil, skewed):
    labels = torch.where(torch.arange(N) % 7 > 0, 0, examples.labels) if skewed else examples.labels
    data = replace(examples, labels=labels)
    good = torch.eye(K)[torch.where(torch.arange(N) % 3 > 0, labels, (labels + 1) % K)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.check(SoftTargets(good, "run", "data"))
    spoilt = SoftTargets(spoil(good, labels), "7", "data")
    for make in (lambda: data.check(spoilt), lambda: Batches(data, SIZE, 0, spoilt)):
        with pytest.warns(TeacherAtChance, match=rf"the teacher is at chance: run 7 agrees .* of {N} examples"):
            make()


def test_examples_of_one_class_say_nothing_about_chance(examples):
    labels = torch.zeros_like(examples.labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(examples, labels=labels).check(SoftTargets(torch.eye(K)[labels], "run", "data"))
        few = Examples(examples.inputs[:4], torch.tensor([0, 1, 2, 0]))
        few.check(SoftTargets(torch.eye(K)[few.labels], "run", few.digest))


def test_logits_that_are_no_numbers_or_no_rows_are_refused(examples, soft):
    logits = soft.logits.clone()
    logits[17, 2] = float("nan")
    with pytest.raises(KDError, match=r"found nan at \[17, 2\], counted from row 0"):
        Batches(examples, SIZE, 0, replace(soft, logits=logits))
    with pytest.raises(KDError, match=rf"expected logits of shape \(N, K\), .* found \({N},\)"):
        examples.check(replace(soft, logits=logits[:, 0]))


# ---- augmentation


def shifted(epoch):
    """Add a random number to each row of a batch."""
    draws = generator(5, "shift", epoch)
    return lambda inputs: inputs + torch.randint(1000, (len(inputs), 1), generator=draws)


def test_augmentation_is_applied_to_batch_after_batch_in_their_order(examples):
    plain = list(Batches(examples, SIZE, 0)(2))
    augmented = list(Batches(examples, SIZE, 0, augment=shifted, view="shift")(2))
    draws = generator(5, "shift", 2)
    assert len(augmented) == len(plain)
    for before, after in zip(plain, augmented, strict=True):
        noise = torch.randint(1000, (len(before.inputs), 1), generator=draws)
        assert torch.equal(after.inputs, before.inputs + noise)
        assert torch.equal(after.labels, before.labels)
        assert torch.equal(after.indices, before.indices)


def test_augmentation_is_a_function_of_the_epoch_and_leaves_the_examples_alone(examples):
    before = examples.inputs.clone()
    batches = Batches(examples, SIZE, 0, augment=shifted, view="shift")
    first = joined(batches, 4)["inputs"]
    joined(batches, 5)
    assert torch.equal(joined(batches, 4)["inputs"], first)
    assert torch.equal(examples.inputs, before)


def test_a_batch_is_augmented_only_when_it_is_asked_for(examples):
    sizes = []
    batches = Batches(examples, SIZE, 0, augment=lambda epoch: lambda x: (sizes.append(len(x)), x)[1], view="same")
    next(batches(1))
    assert sizes == [SIZE]


def test_pictures_are_flipped_and_shifted_as_by_hand():
    pictures = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "pictures"))
    examples = Examples(pictures, torch.arange(10) % K, "pictures")

    def augment(epoch):
        draws = generator(1, "views", epoch)
        return lambda inputs: flip_and_shift(inputs, 3, draws)

    draws = generator(1, "views", 1)
    for batch in Batches(examples, 4, 0, augment=augment, view="flip+shift")(1):
        assert torch.equal(batch.inputs, flip_and_shift(pictures[batch.indices], 3, draws))


def test_soft_targets_of_plain_inputs_are_refused_for_augmented_ones(examples, soft):
    with pytest.raises(KDError, match=r"view 'shift', .* view 'plain', .* leave the augmentation out"):
        Batches(examples, SIZE, 0, soft, augment=shifted, view="shift")
    of_view = replace(soft, view="shift")
    for batch in Batches(examples, SIZE, 0, of_view, augment=shifted, view="shift")(1):
        assert torch.equal(batch.soft, soft.logits[batch.indices])
    with pytest.raises(KDError, match=r"view 'plain', .* view 'shift'"):
        Batches(examples, SIZE, 0, of_view)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"augment": shifted}, "found augment without view"),
        ({"view": "shift"}, "found view without augment"),
        ({"augment": shifted, "view": "shift", "mix": plan, "classes": K}, "a mix or an augmentation, found both"),
    ],
)
def test_refuses_an_augmentation_without_its_name_or_with_a_mix(examples, given, named):
    with pytest.raises(KDError, match=named):
        Batches(examples, SIZE, 0, **given)


# ---- mixed rows


def test_mixes_inputs_labels_and_soft_targets_with_one_weight(examples, soft):
    batch = joined(Batches(examples, SIZE, 0, soft, plan, K), 1)
    mix = plan(1)
    row = {int(first): i for i, first in enumerate(mix.first)}  # first partners are all different here
    seen = [row[int(index)] for index in batch["indices"]]
    assert sorted(seen) == list(range(N))
    first, second = mix.first[seen].numpy(), mix.second[seen].numpy()
    weight = mix.weight[seen].double().numpy()[:, None]
    assert len(np.unique(weight)) > N / 2

    def mixed(values):
        return weight * values[first] + (1 - weight) * values[second]

    np.testing.assert_allclose(batch["inputs"], mixed(examples.inputs.numpy()), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(batch["labels"], mixed(np.eye(K)[examples.labels]), rtol=1e-12, atol=1e-12)
    probs = softmax(soft.logits.numpy(), 1)
    np.testing.assert_allclose(softmax(batch["soft"].numpy(), 1), mixed(probs), rtol=1e-6)


def test_mixed_batches_are_the_plan_in_the_order_of_plain_batches(examples):
    order = joined(Batches(examples, SIZE, 0), 1)["indices"]
    mixed = joined(Batches(examples, SIZE, 0, mix=plan, classes=K), 1)
    assert torch.equal(mixed["indices"], plan(1).first[order])


def test_refuses_a_mix_without_classes_or_of_another_length(examples):
    with pytest.raises(KDError, match="classes"):
        Batches(examples, SIZE, 0, mix=plan)
    short = Batches(examples, SIZE, 0, mix=lambda epoch: plan(epoch)[torch.arange(N - 1)], classes=K)
    with pytest.raises(KDError, match=f"a mix of {N} rows"):
        next(short(1))


@pytest.mark.parametrize(
    "labels", [torch.zeros(3), torch.zeros(4, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)]
)
def test_examples_refuse_labels_that_are_not_one_integer_per_input(labels):
    with pytest.raises(KDError, match="one per input"):
        Examples(torch.zeros(3, 2), labels, "data")


def test_bytes_are_batched_as_they_are_and_not_mixed():
    inputs = torch.arange(40, dtype=torch.uint8).reshape(10, 4)
    examples = Examples(inputs, torch.arange(10) % 2, "bytes")
    rows = torch.cat([batch.inputs[:, 0] for batch in Batches(examples, 3, seed=0)(1)])
    assert rows.dtype == torch.uint8
    assert sorted(rows.tolist()) == inputs[:, 0].tolist()
    with pytest.raises(KDError, match=r"torch\.uint8"):
        Batches(examples, 3, seed=0, mix=lambda epoch: None, classes=2)


# ---- transfer sets


def soft_targets(outputs, batch):
    return soft_target_kl(outputs, batch.soft, 2.0)


def test_a_transfer_set_without_a_class_fits_the_targets_of_its_rows_only(examples, soft):
    keep = torch.isin(examples.labels, torch.tensor([3]), invert=True)
    transfer, targets = examples.select(keep), soft.select(keep)
    assert transfer.digest == targets.data_digest != examples.digest
    seen = joined(Batches(transfer, SIZE, 0, targets), 1)
    assert 3 not in seen["labels"]
    rows = seen["inputs"][:, 0].long()  # inputs contain their row number
    assert sorted(rows.tolist()) == keep.nonzero()[:, 0].tolist()
    assert torch.equal(seen["soft"], soft.logits[rows])
    assert torch.equal(seen["labels"], examples.labels[rows])
    order = torch.arange(N).flip(0)
    for others in (soft, soft.select(~keep), soft.select(keep.nonzero()[:, 0].flip(0))):
        with pytest.raises(KDError, match="soft targets of these examples"):
            Batches(transfer, SIZE, 0, others)
    with pytest.raises(KDError, match="soft targets of these examples"):
        Batches(examples.select(order), SIZE, 0, soft)
    with pytest.raises(KDError, match="expected a mask"):
        examples.select(keep[1:])


def test_an_unlabelled_transfer_set_is_trained_on_soft_targets_and_refused_with_hard_ones(examples, soft):
    unlabelled = examples.without_labels()
    labelled, seen = (joined(Batches(each, SIZE, 0, soft), 1) for each in (examples, unlabelled))
    assert seen["labels"].shape == (N, 0)
    assert all(torch.equal(seen[name], labelled[name]) for name in ("inputs", "indices", "soft"))
    assert unlabelled.select(torch.arange(4)).labels.shape == (4, 0)
    assert Examples(examples.inputs, torch.empty(N, 0, dtype=torch.int64), "data").labels.shape == (N, 0)

    ends = []
    for each in (examples, unlabelled):
        model = torch.nn.Linear(2, K).double()
        torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        progress = Progress(model, torch.optim.SGD(model.parameters(), lr=1e-5))
        for _ in epochs(progress, Batches(each, SIZE, 0, soft), soft_targets, count=2, seed=0):
            pass
        ends.append(model.weight.detach())
    assert torch.equal(*ends)
    assert ends[0].abs().max() > 0
    with pytest.raises(KDError, match="expected labels for the hard term"):
        next(
            epochs(
                Progress(model, torch.optim.SGD(model.parameters())),
                Batches(each, SIZE, 0),
                hard_targets,
                count=1,
                seed=0,
            )
        )
    with pytest.raises(KDError, match="expected labels to mix"):
        Batches(unlabelled, SIZE, 0, soft, plan, K)


def test_unlabelled_batches_of_many_students_are_those_of_each(examples, soft):
    members = [Batches(examples.without_labels(), SIZE, seed, soft) for seed in (0, 1)]
    for together, *alone in zip(side_by_side(members)(1), *(member(1) for member in members), strict=True):
        assert together.labels.shape[2:] == (0,)
        assert torch.equal(together.soft, torch.stack([batch.soft for batch in alone]))


def test_a_teacher_that_ends_in_a_softmax_is_told():
    labels = torch.arange(30) % 3
    logits = 4 * torch.nn.functional.one_hot(labels, 3) + torch.randn(30, 3, generator=generator(0, "logits"))
    examples = Examples(torch.zeros(30, 2), labels)
    for probs in (logits.softmax(1), logits.softmax(1).bfloat16(), torch.full((30, 3), 1 / 3)):
        soft = SoftTargets(probs, "the teacher", examples.digest)
        with pytest.warns(ProbabilitiesAsLogits, match="run the teacher are distributions: .* its last softmax"):
            examples.check(soft)
    for fine in (logits, probs.log(), logits.softmax(1) * 1.1, torch.eye(3)[labels]):  # no warning, which would fail
        examples.check(SoftTargets(fine, "the teacher", examples.digest))
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of a metric are distributions"):
        expected_calibration_error(logits.softmax(1), labels)


def test_a_checkpoint_is_of_the_labels_it_was_trained_with(tmp_path):
    """`dataclasses.replace` keeps the digest of the data."""

    def train(labels):
        model = keras_glorot_(nn.Linear(2, 3), generator(0, "weights"))
        progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c")
        batches = Batches(replace(examples, labels=labels), 8, seed=0)
        return [*epochs(progress, batches, hard_targets, count=1, seed=0)]

    labels = torch.arange(30) % 3
    examples = Examples(torch.randn(30, 2, generator=generator(0, "inputs")), labels)
    assert train(labels) == [1]
    assert train(labels) == []
    with pytest.raises(KDError, match=r"data.labels: the checkpoint has .*, this training"):
        train(labels.flip(0))


def test_a_mix_is_a_function_that_returns_a_plan(examples):
    plan = mixup(torch.arange(len(examples.inputs)), 0.2, generator(0, "mix"))
    with pytest.raises(KDError, match="mix: expected a function of the epoch, found Mix"):
        Batches(examples, size=4, seed=0, mix=plan, classes=5)
    with pytest.raises(KDError, match="mix: expected Mix, found int"):
        next(iter(Batches(examples, size=4, seed=0, mix=lambda epoch: epoch, classes=5)(1)))
    with pytest.raises(KDError, match="classes: expected a whole number"):
        Batches(examples, size=4, seed=0, mix=lambda epoch: plan, classes=3.0)


def test_fewer_examples_than_a_batch_are_one_short_batch_and_none_with_drop_last(examples):
    few = examples.select(torch.arange(3))
    assert [len(batch.labels) for batch in Batches(few, size=8, seed=0)(1)] == [3]
    with pytest.raises(KDError, match="found size 8 and 3 examples"):
        Batches(few, size=8, seed=0, drop_last=True)


def test_one_number_is_no_examples():
    with pytest.raises(KDError, match=r"expected a tensor \(N, ...\), found one number"):
        Examples(torch.tensor(1.0), torch.tensor([0]))
