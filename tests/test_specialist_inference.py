"""Inference with specialists against scipy.optimize, closed forms, and its known properties."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, rel_entr, softmax

from kdlib.errors import KDError
from kdlib.specialist_inference import active_specialists, combined_log_probs
from kdlib.specialists import dustbin_logits

K = 7
SUBSETS = {
    "disjoint": [(0, 4), (1, 2, 6)],  # classes 3 and 5 are in no subset
    "overlapping": [(0, 1, 2), (2, 1, 3), (3, 0)],
    "of one class": [(5,), (5, 0), (2,)],
    "all but one": [(6, 5, 4, 3, 2, 1), (0, 1)],
}
every_kind = pytest.mark.parametrize("subsets", SUBSETS.values(), ids=SUBSETS)


def made(subsets, count, seed=0, scale=2.0):
    """Logits of a generalist and of specialists that disagree with it, all active."""
    rng = np.random.default_rng(seed)
    generalist = torch.tensor(rng.normal(0, scale, (count, K)))
    specialists = [torch.tensor(rng.normal(0, scale, (count, len(subset) + 1))) for subset in subsets]
    return generalist, specialists, torch.ones(count, len(subsets), dtype=torch.bool)


def divergences(log_q, generalist, specialists, subsets, active):
    """Equation 5, example by example, in NumPy."""
    sums = []
    for n, row in enumerate(np.asarray(log_q)):
        q = np.exp(row)
        total = rel_entr(softmax(np.asarray(generalist[n])), q).sum()
        for m, subset in enumerate(subsets):
            if active[n, m]:
                p = softmax(np.asarray(specialists[m][n]))
                total += rel_entr(p, [*q[list(subset)], np.delete(q, subset).sum()]).sum()
        sums.append(total)
    return np.array(sums)


@every_kind
def test_equals_the_minimum_that_scipy_finds(subsets):
    generalist, specialists, active = made(subsets, 2)
    active[1, 0] = False
    found = combined_log_probs(generalist, specialists, subsets, active)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.exp().sum(1), 1, rtol=1e-14)
    for n in range(2):
        one = slice(n, n + 1)
        parts = (generalist[one], [logits[one] for logits in specialists], subsets, active[one])
        best = minimize(
            lambda z, parts=parts: divergences(log_softmax(z)[None], *parts)[0],  # the paper's: q = softmax(z)
            generalist[n].numpy(),
            method="BFGS",
            options={"gtol": 1e-9, "maxiter": 500},
        )
        np.testing.assert_allclose(found[n].exp(), softmax(best.x), atol=2e-5)
        assert divergences(found[one], *parts)[0] <= best.fun + 1e-9


def test_one_specialist_has_a_closed_form():
    """Within the subset q averages both; the rest keeps the generalist's proportions."""
    subset = (4, 1, 2)
    generalist, (specialist,), active = made([subset], 20)
    p, special = softmax(generalist.numpy(), 1), softmax(specialist.numpy(), 1)
    rest = np.delete(np.arange(K), subset)
    expected = np.empty_like(p)
    expected[:, subset] = (p[:, subset] + special[:, :-1]) / 2
    share = p[:, rest] / p[:, rest].sum(1, keepdims=True)
    expected[:, rest] = (p[:, rest] + special[:, -1:] * share) / 2
    found = combined_log_probs(generalist, [specialist], [subset], active, tolerance=1e-12)
    np.testing.assert_allclose(found.exp(), expected, rtol=1e-6)


def test_without_an_active_specialist_q_is_the_generalist():
    generalist, specialists, active = made(SUBSETS["overlapping"], 6)
    found = combined_log_probs(generalist, specialists, SUBSETS["overlapping"], torch.zeros_like(active))
    assert torch.equal(found, generalist.log_softmax(-1))
    assert torch.equal(combined_log_probs(generalist, [], [], active[:, :0]), generalist.log_softmax(-1))


@every_kind
def test_specialists_that_agree_with_the_generalist_change_nothing(subsets):
    generalist, _, active = made(subsets, 30)
    agreeing = [dustbin_logits(generalist, subset) + 3 for subset in subsets]
    found = combined_log_probs(generalist, agreeing, subsets, active, tolerance=1e-12)
    np.testing.assert_allclose(found, generalist.log_softmax(-1), atol=1e-5)


@every_kind
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_the_objective_falls_with_the_tolerance_and_is_within_it(subsets, scale):
    """A smaller tolerance means more steps of the same sequence."""
    generalist, specialists, active = made(subsets, 50, scale=scale)
    case = (generalist, specialists, subsets, active)
    tolerances = [10.0 ** (1 - power) for power in range(13)]
    sums = np.array([divergences(combined_log_probs(*case, tolerance), *case) for tolerance in tolerances])
    start = divergences(generalist.log_softmax(-1), *case)
    assert (np.diff([start, *sums], axis=0) <= 1e-11).all()
    assert (sums - sums[-1] <= np.array(tolerances)[:, None] + 1e-11).all()
    assert (start - sums[-1]).max() > 0.1
    # With overlapping subsets the first steps are not enough; otherwise this test would show little.
    assert subsets != SUBSETS["overlapping"] or (sums[0] - sums[-1]).max() > 1e-3


@every_kind
@pytest.mark.parametrize("scale", [300.0, 1e4])
@pytest.mark.parametrize("special_scale", [1.0, 20.0, 1e4])
def test_extreme_probabilities_are_combined_within_the_tolerance(subsets, scale, special_scale):
    generalist, specialists, active = made(subsets, 200, seed=3, scale=scale)
    specialists = [special_scale / scale * logits for logits in specialists]
    found = combined_log_probs(generalist, specialists, subsets, active, tolerance=1e-10)
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.exp().sum(1), 1, rtol=1e-12)
    # At the minimum, a step of expectation-maximisation changes nothing.
    p, q = softmax(generalist.numpy(), 1), found.exp().numpy()
    mass = p.copy()
    for subset, logits in zip(subsets, specialists, strict=True):
        special, rest = softmax(logits.numpy(), 1), np.delete(np.arange(K), subset)
        mass[:, subset] += special[:, :-1]
        shares = softmax(found.numpy()[:, rest], 1)
        mass[:, rest] += special[:, -1:] * shares
    np.testing.assert_allclose(mass / (1 + len(subsets)), q, atol=1e-4)


def test_a_tiny_rest_that_a_specialist_asks_for_keeps_its_proportions():
    generalist = torch.tensor([[0.0, -80.0, -81.0, -82.0]])
    specialist = torch.tensor([[-3.0, 3.0]])
    found = combined_log_probs(generalist, [specialist], [(0,)], torch.ones(1, 1, dtype=torch.bool))
    rest = softmax([-80, -81, -82]) * softmax([-3, 3])[1] / 2
    np.testing.assert_allclose(found.exp(), [[1 - rest.sum(), *rest]], rtol=1e-6)


@every_kind
def test_permuting_classes_and_examples_permutes_the_result(subsets):
    generalist, specialists, active = made(subsets, 12)
    active = active_specialists(generalist, subsets, n=2)
    found = combined_log_probs(generalist, specialists, subsets, active, tolerance=1e-12)
    classes, rows = torch.tensor([3, 0, 6, 4, 1, 5, 2]), torch.arange(12).roll(5).flip(0)
    place = classes.argsort().tolist()  # class k is now in column place[k]
    renamed = [tuple(place[k] for k in subset) for subset in subsets]
    permuted = generalist[rows][:, classes]
    assert torch.equal(active_specialists(permuted, renamed, n=2), active[rows])
    again = combined_log_probs(permuted, [x[rows] for x in specialists], renamed, active[rows], tolerance=1e-12)
    np.testing.assert_allclose(again.exp(), found[rows][:, classes].exp(), atol=1e-7)
    swapped = combined_log_probs(generalist, specialists[::-1], subsets[::-1], active.flip(1), tolerance=1e-12)
    np.testing.assert_allclose(swapped.exp(), found.exp(), atol=1e-7)


@every_kind
@pytest.mark.parametrize("scale", [2.0, 50.0])
def test_a_batch_is_combined_as_its_examples_one_by_one(subsets, scale):
    generalist, specialists, active = made(subsets, 25, scale=scale)
    active[::3, 0] = False
    found = combined_log_probs(generalist, specialists, subsets, active)
    for n in range(25):
        alone = combined_log_probs(
            generalist[n : n + 1], [x[n : n + 1] for x in specialists], subsets, active[n : n + 1]
        )
        # Either is within the tolerance of the minimum, and other sums of rounding errors may end at another point.
        np.testing.assert_allclose(alone[0], found[n], rtol=1e-6, atol=1e-9)


def test_float32_logits_are_combined_in_float64():
    generalist, specialists, active = made(SUBSETS["disjoint"], 5)
    single = [logits.float() for logits in specialists]
    found = combined_log_probs(generalist.float(), single, SUBSETS["disjoint"], active)
    double = combined_log_probs(generalist.float().double(), [x.double() for x in single], SUBSETS["disjoint"], active)
    assert torch.equal(found, double)


def test_active_specialists_hold_one_of_the_n_most_probable_classes():
    generalist, subsets = torch.tensor(np.random.default_rng(1).normal(size=(60, K))), SUBSETS["disjoint"]
    for n in (1, 2, K):
        best = np.argsort(-generalist.numpy(), axis=1)[:, :n]
        expected = [[bool({*row} & {*subset}) for subset in subsets] for row in best.tolist()]
        assert active_specialists(generalist, subsets, n).tolist() == expected
    assert 0 < active_specialists(generalist, subsets, 1).double().mean() < 1
    for n in (0, K + 1):
        with pytest.raises(KDError, match="1 <= n <= 7"):
            active_specialists(generalist, subsets, n)


def test_refuses_what_does_not_fit_together_and_a_tolerance_below_rounding():
    subsets = SUBSETS["disjoint"]
    generalist, specialists, active = made(subsets, 5)
    with pytest.raises(KDError, match="dustbin"):
        combined_log_probs(generalist, [specialists[0][:, :-1], specialists[1]], subsets, active)
    with pytest.raises(KDError, match="predict all specialists"):
        combined_log_probs(generalist, [specialists[0], specialists[1][1:]], subsets, active)
    with pytest.raises(KDError, match="mask of active specialists"):
        combined_log_probs(generalist, specialists, subsets, active[:, :1])
    with pytest.raises(KDError, match="mask of active specialists"):
        combined_log_probs(generalist, specialists, subsets, active.long())
    with pytest.raises(KDError, match="larger tolerance"):
        combined_log_probs(generalist, specialists, subsets, active, tolerance=-1.0)
    for used in (active, torch.zeros_like(active)):  # also where no specialist is asked
        with pytest.raises(KDError, match="expected logits that are numbers, found NaN"):
            combined_log_probs(generalist * torch.nan, specialists, subsets, used)


def test_the_number_of_asked_classes_is_whole():
    with pytest.raises(KDError, match="n: expected a whole number"):
        active_specialists(torch.randn(2, 4), [(0, 1)], n=2.0)
