"""Class-balanced draws, mixup plans, flips and shifts against their distributions."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from kdlib.augment import Mix, balanced_draw, flip_and_shift, mixup, unmixed
from kdlib.errors import KDError
from kdlib.seeds import generator

LABELS = torch.tensor([2] * 50 + [0] * 3 + [1] * 10 + [0] * 2)


def test_balanced_draw_takes_classes_equally_and_rows_within_them_equally():
    rows = balanced_draw(LABELS, 30_000, 3, generator(0, "draw"))
    assert rows.dtype == torch.int64
    share = 1 / (3 * LABELS.bincount()[LABELS].double())  # of one row
    test = stats.chisquare(rows.bincount(minlength=len(LABELS)), 30_000 * share)
    assert test.pvalue > 0.01
    assert stats.chisquare(LABELS[rows].bincount()).pvalue > 0.01
    # successive draws are independent
    pairs = LABELS[rows].view(-1, 2)
    assert stats.chisquare((3 * pairs[:, 0] + pairs[:, 1]).bincount()).pvalue > 0.01


def test_balanced_draw_repeats_with_its_generator():
    draws = [balanced_draw(LABELS, 40, 3, generator(seed, "draw")).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(("classes", "named"), [(5, r"\[3, 4\]"), (2, "labels up to 2")])
def test_balanced_draw_refuses_an_absent_or_unknown_class(classes, named):
    with pytest.raises(KDError, match=named):
        balanced_draw(LABELS, 10, classes, generator(0, "draw"))


def test_mixup_pairs_each_row_with_the_one_opposite():
    rows = torch.tensor([7, 3, 3, 9])
    mix = mixup(rows, 1.0, generator(0, "mix"))
    assert mix.first.tolist() == [7, 3, 3, 9]
    assert mix.second.tolist() == [9, 3, 3, 7]
    assert len(set(mix.weight.tolist())) == 4  # one for each ordered pair


@pytest.mark.parametrize("alpha", [0.4, 1.0, 3.0])
def test_mixup_weights_are_beta_distributed(alpha):
    weight = mixup(torch.arange(5000), alpha, generator(0, "mix")).weight
    assert stats.kstest(weight.double().numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixup_weights_are_beta_distributed_where_most_round_to_0_or_1():
    weight = mixup(torch.arange(50_000), 0.1, generator(0, "mix")).weight
    assert ((weight >= 0) & (weight <= 1)).all()  # false for NaN
    # float32 rounds 9% of the weights to exactly 1, so the distribution is tested in bins
    edges = np.array([0, 1e-6, 1e-3, 0.03, 0.2, 0.5, 0.8, 0.97, 0.999, 1.0])
    expected = 50_000 * np.diff(stats.beta(0.1, 0.1).cdf(edges))
    assert stats.chisquare(np.histogram(weight.double(), edges)[0], expected).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1e-4, 1e-2])
def test_mixup_weights_are_numbers_at_the_smallest_alphas(alpha):
    weight = mixup(torch.arange(20_000), alpha, generator(0, "mix")).weight
    assert ((weight >= 0) & (weight <= 1)).all()
    assert weight.mean().item() == pytest.approx(0.5, abs=0.02)


def test_mixup_repeats_with_its_generator_and_moves_it_on():
    stream = generator(0, "mix")
    first, second = (mixup(torch.arange(9), 0.1, stream).weight for _ in range(2))
    assert torch.equal(first, mixup(torch.arange(9), 0.1, generator(0, "mix")).weight)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3, 3)])
def test_blend_is_the_weighted_sum_of_the_partners(shape):
    values = torch.tensor(np.random.default_rng(0).normal(size=shape))
    mix = Mix(torch.tensor([0, 5, 2]), torch.tensor([1, 1, 4]), torch.tensor([0.25, 1.0, 0.0]))
    expected = torch.stack([0.25 * values[0] + 0.75 * values[1], values[5], values[4]])
    np.testing.assert_allclose(mix.blend(values), expected, rtol=1e-12)


def test_some_rows_of_a_plan():
    mix = mixup(torch.arange(10, 20), 1.0, generator(0, "mix"))
    part = mix[torch.tensor([3, 0])]
    assert (part.first.tolist(), part.second.tolist()) == ([13, 10], [16, 19])
    assert torch.equal(part.weight, mix.weight[[3, 0]])


def test_unmixed_leaves_the_rows_as_they_are():
    values = torch.randn(8, 3, generator=generator(0, "values"))
    rows = torch.tensor([4, 4, 0])
    assert torch.equal(unmixed(rows).blend(values), values[rows])


# ---- pictures

LARGEST = 3


def moved(picture, flip, down, right):
    """Shift a picture one axis after the other, fill the gap with its border, then mirror it."""
    height, width = picture.shape[1:]
    wide = np.pad(picture, [(0, 0), (LARGEST, LARGEST), (LARGEST, LARGEST)], mode="edge")
    part = wide[:, LARGEST - down :, LARGEST - right :][:, :height, :width]
    return part[:, :, ::-1] if flip else part


def every_move(picture):
    shifts = range(-LARGEST, LARGEST + 1)
    return {moved(picture, *move).tobytes(): move for move in itertools.product((False, True), shifts, shifts)}


def test_pictures_are_flipped_and_shifted_over_a_repeated_border():
    """A picture moves as a whole, with all channels, by one of 2 * 7 * 7 moves, each with its probability."""
    picture = np.random.default_rng(0).integers(256, size=(3, 9, 7), dtype=np.uint8)
    moves = every_move(picture)
    assert len(moves) == 98
    found = flip_and_shift(torch.from_numpy(picture).expand(4000, -1, -1, -1), LARGEST, generator(0, "views")).numpy()
    count = Counter(moves[each.tobytes()] for each in found)  # KeyError: no such move
    odds = {shift: 1 / 4 if shift == 0 else 1 / 8 for shift in range(-LARGEST, LARGEST + 1)}
    expected = {move: 4000 * odds[move[1]] * odds[move[2]] / 2 for move in moves.values()}
    assert stats.chisquare([count[move] for move in expected], list(expected.values())).pvalue > 0.01
    for axis in (1, 2):
        sizes = Counter(abs(move[axis]) for move in count.elements())
        assert stats.chisquare([sizes[size] for size in range(LARGEST + 1)]).pvalue > 0.01
    assert stats.binomtest(sum(move[0] for move in count.elements()), 4000).pvalue > 0.01


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_each_picture_is_moved_by_itself_and_the_given_ones_stay(dtype):
    pictures = np.random.default_rng(1).integers(256, size=(30, 2, 6, 8)).astype(dtype)
    given = torch.from_numpy(pictures.copy())
    found = flip_and_shift(given, LARGEST, generator(0, "views"))
    assert found.dtype == given.dtype
    assert np.array_equal(given.numpy(), pictures)
    moves = [every_move(picture)[each.tobytes()] for picture, each in zip(pictures, found.numpy(), strict=True)]
    assert len(set(moves)) > 15


def test_flips_and_shifts_repeat_with_their_generator_and_move_it_on():
    pictures = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8, generator=generator(0, "pictures"))
    stream = generator(0, "views")
    first, second = (flip_and_shift(pictures, LARGEST, stream) for _ in range(2))
    assert torch.equal(first, flip_and_shift(pictures, LARGEST, generator(0, "views")))
    assert not torch.equal(first, second)


def test_a_largest_shift_of_none_only_flips():
    picture = torch.arange(12).view(1, 1, 3, 4)
    found = flip_and_shift(picture.expand(20, -1, -1, -1), 0, generator(0, "views"))
    assert {tuple(each.flatten().tolist()) for each in found} == {
        tuple(range(12)),
        (3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8),
    }


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.uint64, torch.int32])
def test_labels_of_any_whole_type_are_drawn_alike(dtype):
    labels = torch.tensor([1, 0, 1, 1, 0])
    drawn = balanced_draw(labels.to(dtype), 10, 2, generator(0, "draw"))
    assert torch.equal(drawn, balanced_draw(labels, 10, 2, generator(0, "draw")))


def test_no_labels_and_complex_ones_are_refused():
    with pytest.raises(KDError, match=r"no row of \[0, 1\]"):
        balanced_draw(torch.zeros(0, dtype=torch.int64), 3, 2, generator(0, "draw"))
    with pytest.raises(KDError, match="expected labels"):
        balanced_draw(torch.tensor([0j, 1]), 3, 2, generator(0, "draw"))


def test_the_largest_alpha_mixes_halves_and_a_larger_one_is_refused():
    assert torch.allclose(mixup(torch.arange(8), 1e300, generator(0, "mix")).weight, torch.tensor(0.5))
    with pytest.raises(KDError, match="alpha: expected a number above 0 and at most 1e"):
        mixup(torch.arange(8), 1e308, generator(0, "mix"))


def test_whole_numbers_are_not_mixed_and_rows_must_be_there():
    plan = mixup(torch.arange(3), 0.2, generator(0, "mix"))
    with pytest.raises(KDError, match=r"found torch.int64; use values.float\(\)"):
        plan.blend(torch.arange(3))
    with pytest.raises(KDError, match="rows from 0 to 1, found rows from 0 to 2"):
        plan.blend(torch.rand(2, 4))
    with pytest.raises(KDError, match="found rows from -1 to 0"):
        Mix(torch.tensor([-1, 0]), torch.tensor([0, 0]), torch.ones(2)).blend(torch.rand(2, 4))
