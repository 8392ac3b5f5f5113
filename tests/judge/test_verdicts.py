"""The rule of verdicts against SciPy, statsmodels, scikit-learn, its equations by hand, and simulation."""

from __future__ import annotations

import gc
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from kdlib.errors import KDError
from kdlib.judge import intervals, kinds, verdicts
from kdlib.judge.verdicts import Outcome, Verdict
from tests.judge.power import shares

# five numbers of mean 0 and standard deviation 1
UNIT = np.array([-1.0, -0.5, 0.0, 0.5, 1.0]) / math.sqrt(2.5 / 4)
NONE = (0.0, 0.0, 0.0, 0.0)


@pytest.fixture(autouse=True, scope="module")
def _cheap_garbage_collection():
    gc.freeze()  # statsmodels' multipletests collects garbage at every call: spare it what earlier tests have made


@st.composite
def samples(draw, fewest=2, most=12):
    n = draw(st.integers(fewest, most))
    seed = draw(st.integers(0, 2**32 - 1))
    mean, std = draw(st.floats(-3, 3)), draw(st.floats(0.01, 3))
    return np.random.default_rng(seed).normal(mean, std, n)


# ---- intervals


@given(samples())
def test_t_interval_is_scipys(sample):
    ours, test = intervals.t_interval(sample), stats.ttest_1samp(sample, 0)
    assert ours[:2] == pytest.approx(tuple(test.confidence_interval(0.95)), rel=1e-9, abs=1e-12)
    assert ours[2:4] == pytest.approx(tuple(test.confidence_interval(0.90)), rel=1e-9, abs=1e-12)
    assert ours.p == pytest.approx(test.pvalue, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("further", [1, 5])
def test_prediction_interval_covers_95_percent_of_new_means(further):
    generator, trials, runs = np.random.default_rng(1), 20_000, 6
    old, new = generator.normal(size=(trials, runs)), generator.normal(size=(trials, further)).mean(axis=1)
    mean, std = old.mean(axis=1), old.std(axis=1, ddof=1)
    bounds = [intervals.prediction_interval(m, s, runs, further) for m, s in zip(mean, std, strict=True)]
    low, high = np.array(bounds).T
    assert np.mean((low < new) & (new < high)) == pytest.approx(0.95, abs=0.006)


@given(samples())
def test_population_std_becomes_the_sample_one(sample):
    converted = intervals.sample_std(float(sample.std()), len(sample), "population")
    assert converted == pytest.approx(sample.std(ddof=1))
    assert intervals.sample_std(0.3, len(sample), "sample") == 0.3


@given(st.floats(0.01, 2), st.floats(0.2, 2))
def test_needed_seeds_is_the_first_n_that_is_narrow_enough(std, half_width):
    n = 5
    while stats.t.ppf(0.975, n - 1) * std / math.sqrt(n) >= half_width:
        n += 1
    assert intervals.needed_seeds(std, half_width) == n


def test_needed_seeds_gives_up():
    assert intervals.needed_seeds(1.0, 0.0) is None
    assert intervals.needed_seeds(1.0, 1e-3) is None


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_statsmodels(p_values):
    assert intervals.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9))
def test_kendall_is_scipys_with_ties(values):
    expected = stats.kendalltau(range(len(values)), values).statistic if len(set(values)) > 1 else 0.0
    assert intervals.kendall_tau(values) == pytest.approx(expected)


# ---- the error of the test set


@given(st.integers(0, 40), st.integers(1, 40))
def test_accuracy_interval_is_clopper_pearson(correct, more):
    ours = intervals.accuracy_interval(correct, correct + more)
    assert ours[:2] == pytest.approx(proportion_confint(correct, correct + more, 0.05, "beta"))
    assert ours[2:4] == pytest.approx(proportion_confint(correct, correct + more, 0.10, "beta"))


def _f1(labels, predictions):
    scores = []
    for c in range(3):
        hits = np.sum((labels == c) & (predictions == c))
        scores.append(2 * hits / (np.sum(labels == c) + np.sum(predictions == c)))
    return sum(scores) / 3


def test_f1_interval_is_that_of_a_bootstrap_by_hand():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 3, 150)
    found = np.where(generator.random(150) < 0.9, labels, generator.integers(0, 3, 150))
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, found), 1)
    assert _f1(labels, found) == pytest.approx(f1_score(labels, found, average="macro"))
    drawn = (generator.integers(0, 150, 150) for _ in range(4000))
    by_hand = np.quantile([_f1(labels[rows], found[rows]) for rows in drawn], [0.025, 0.975, 0.05, 0.95])
    assert intervals.f1_interval(confusion)[:4] == pytest.approx(by_hand, abs=0.01)


# ---- effect: each branch by hand. D = 0.10, so m = 0.05; n = 5: t(0.975, 4) = 2.776445, t(0.95, 4) = 2.1318


@pytest.mark.parametrize(
    ("mean", "std", "source", "outcome"),
    [
        # s = 0.02: L = d - 0.0248, U1 = d + 0.0191, PI = 2.776445 * 0.02 * sqrt(1.2) + 0.001 = 0.0618
        (0.100, 0.02, (None, None), Outcome.REPLICATED),
        (0.149, 0.02, (None, None), Outcome.REPLICATED),
        (0.051, 0.02, (None, None), Outcome.REPLICATED),
        (0.151, 0.02, (None, None), Outcome.LARGER),
        (0.035, 0.02, (None, None), Outcome.SMALLER),
        (0.030, 0.02, (None, None), Outcome.MUCH_SMALLER),
        (0.000, 0.02, (None, None), Outcome.NOT_REPLICATED),
        (0.024, 0.02, (None, None), Outcome.NOT_REPLICATED),
        (-0.024, 0.02, (None, None), Outcome.NOT_REPLICATED),
        (-0.026, 0.02, (None, None), Outcome.NOT_REPLICATED_REVERSED),
        # s = 0.06: L = d - 0.0745, U1 = d + 0.0572
        (0.040, 0.06, (None, None), Outcome.INCONCLUSIVE),
        (-0.006, 0.06, (None, None), Outcome.INCONCLUSIVE),
        (-0.008, 0.06, (None, None), Outcome.NOT_REPLICATED),
        # s = 0.015: PI = 0.0466; 0.0426 without the error of our own mean
        (0.055, 0.015, (None, None), Outcome.REPLICATED),
        (0.053, 0.015, (None, None), Outcome.SMALLER),
        # s = 0.002: PI = 0.0071 is below m / 4 = 0.0125, which then is the limit
        (0.088, 0.002, (None, None), Outcome.REPLICATED),
        (0.087, 0.002, (None, None), Outcome.SMALLER),
        (0.113, 0.002, (None, None), Outcome.LARGER),
        # the source's spread over 6 runs: PI = t(0.975, 9) sqrt(so^2 / 6 + s^2 / 5) + 0.001, t = 2.262157
        (0.072, 0.002, (0.03, 6), Outcome.REPLICATED),  # PI = 0.0288
        (0.0714, 0.002, (0.03, 6), Outcome.REPLICATED),  # with 10 degrees of freedom PI were 0.0284
        (0.070, 0.002, (0.03, 6), Outcome.SMALLER),
        (0.060, 0.002, (0.05, 6), Outcome.REPLICATED),  # PI = 0.0472
        (0.049, 0.002, (0.90, 6), Outcome.SMALLER),  # PI = 0.83: no spread makes up for the margin
    ],
)
def test_effect_by_hand(mean, std, source, outcome):
    found = kinds.effect(mean + std * UNIT, 0.10, 0.001, *source)
    assert found.outcome == outcome
    assert found.mean == pytest.approx(mean)
    half = 2.776445 * std / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), rel=1e-5)
    assert (found.needed_n is not None) == (outcome is Outcome.INCONCLUSIVE)


def _effect_by_the_equations(d, reported, r, so, n_p):
    """The rule in float64 NumPy, written from its statement."""
    n, mean, s = len(d), np.mean(d), np.std(d, ddof=1)
    low, high = stats.t.interval(0.95, n - 1, mean, s / np.sqrt(n)) if n > 1 else (np.nan, np.nan)
    upper = mean + stats.t.ppf(0.95, n - 1) * s / np.sqrt(n)
    m = reported / 2
    if n < 5:
        return "inconclusive (too few seeds)"
    if r >= reported / 2:
        return "replicated" if low > 0 else "reversed" if high < 0 else "inconclusive"
    nu = n + n_p - 2 if n_p >= 2 else n - 1
    so, n_p = (so, n_p) if n_p >= 2 else (s, 1)
    prediction = stats.t.ppf(0.975, nu) * np.sqrt(so**2 / n_p + s**2 / n) + r
    if low > 0 and abs(mean - reported) <= m and abs(mean - reported) <= max(prediction, m / 4):
        return "replicated"
    if low > 0 and upper < reported - m:
        return "much smaller than reported"
    if low > 0:
        size = "larger" if mean > reported else "smaller"
        return f"effect replicated, magnitude differs ({size})"
    if upper < reported - m:
        return "not replicated (reversed)" if high < 0 else "not replicated"
    return "inconclusive"


@settings(max_examples=200)
@given(samples(), st.floats(0.05, 4), st.floats(0, 0.6), st.floats(0.01, 2), st.sampled_from([0, 2, 6]))
def test_effect_is_its_equations(differences, reported, rounding, reported_std, runs):
    found = kinds.effect(differences, reported, rounding, *((reported_std, runs) if runs else (None, None)))
    assert found.outcome == _effect_by_the_equations(differences, reported, rounding, reported_std, runs)
    if found.outcome == "inconclusive" and rounding < reported / 2:
        assert found.needed_n is None or found.needed_n > found.n


@given(samples(5), st.floats(0.1, 4), st.floats(0.01, 100), st.randoms())
def test_effect_knows_neither_unit_nor_order(differences, reported, unit, random):
    shuffled = list(differences * unit)
    random.shuffle(shuffled)
    ours, other = kinds.effect(differences, reported, 0.0), kinds.effect(shuffled, reported * unit, 0.0)
    assert ours.outcome == other.outcome
    assert other.mean == pytest.approx(ours.mean * unit)


@pytest.mark.parametrize("n", [5, 6, 10])
@pytest.mark.parametrize("reported", [0.3, 1.0, 2.0, 4.0])
def test_no_true_effect_is_rarely_replicated(n, reported):
    found = shares(n, reported, 0.0)
    assert found[Outcome.REPLICATED] <= 0.026
    if (n, reported) == (5, 2.0):
        assert 0.3 < found[Outcome.INCONCLUSIVE] < 0.5


def test_a_true_effect_is_mostly_replicated():
    assert shares(5, 4.0, 4.0)[Outcome.REPLICATED] >= 0.85


def test_a_difference_printed_too_coarsely_is_a_direction():
    differences = 0.5 + 0.02 * UNIT  # far more than the 0.02 reported
    assert kinds.effect(differences, 0.02, 0.001).outcome == Outcome.LARGER
    assert kinds.effect(differences, 0.02, 0.01).outcome == Outcome.REPLICATED
    assert kinds.effect(-differences, 0.02, 0.01).outcome == Outcome.REVERSED


@pytest.mark.parametrize("reported", [0.0, -0.1, math.nan])
def test_a_reported_difference_is_above_zero(reported):
    with pytest.raises(KDError, match=r"reported: expected a number above 0 .* swap the arms"):
        kinds.effect(UNIT, reported, 0.0)


@given(samples(5), st.floats(0.5, 4), st.floats(0.01, 0.2))
def test_value_is_the_effect_rule_with_its_own_margin(above, reported, margin):
    assert kinds.value(above, reported, reported / 2, 0.0) == kinds.effect(above, reported, 0.0)
    found = kinds.value(above, reported, margin, 0.0).outcome
    if found == Outcome.REPLICATED:
        assert abs(above.mean() - reported) <= margin


def test_value_by_hand():
    # accuracy 0.90 reported, 0.10 by chance, margin 0.01, printed with 2 decimals: L, U1 = d -+ about 0.001
    for measured, outcome in (
        (0.897, Outcome.REPLICATED),
        (0.885, Outcome.MUCH_SMALLER),
        (0.915, Outcome.LARGER),
        (0.100, Outcome.NOT_REPLICATED),
        (0.050, Outcome.NOT_REPLICATED_REVERSED),
    ):
        assert kinds.value(measured - 0.1 + 0.001 * UNIT, 0.8, 0.01, 0.005).outcome == outcome


# ---- the other kinds


@given(samples(5))
def test_direction_is_the_paired_t_test(differences):
    test = stats.ttest_1samp(differences, 0)
    sure = Outcome.REPLICATED if differences.mean() > 0 else Outcome.REVERSED
    expected = sure if test.pvalue < 0.05 else Outcome.INCONCLUSIVE
    assert kinds.direction(differences).outcome == expected


@given(samples(5), st.floats(0.01, 3))
def test_comparable_is_statsmodels_tost(differences, margin):
    p = ttost_paired(differences, np.zeros_like(differences), -margin, margin)[0]
    found = kinds.comparable(differences, margin).outcome
    assert (found == Outcome.REPLICATED) == (p < 0.05)
    assert found == kinds.comparable(-differences, margin).outcome
    if found == Outcome.NOT_REPLICATED:
        outside = [
            stats.ttest_1samp(differences, margin, alternative="greater").pvalue,
            stats.ttest_1samp(differences, -margin, alternative="less").pvalue,
        ]
        assert min(outside) < 0.05


@given(samples(5), st.floats(0.01, 3))
def test_non_inferior_is_a_one_sided_t_test(differences, margin):
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue < 0.05
    below = stats.ttest_1samp(differences, -margin, alternative="less").pvalue < 0.05
    expected = Outcome.REPLICATED if above else Outcome.NOT_REPLICATED if below else Outcome.INCONCLUSIVE
    assert kinds.non_inferior(differences, margin).outcome == expected


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(-1.5, 1.5), st.integers(2, 5))
def test_best_is_holm_over_paired_t_tests(seed, lead, rivals):
    generator = np.random.default_rng(seed)
    arm, others = generator.normal(lead, 0.5, 6), generator.normal(0, 0.5, (rivals, 6))
    tests = [stats.ttest_rel(arm, other) for other in others]
    rejected = multipletests([t.pvalue for t in tests], 0.05, "holm")[0]
    better = [bool(r) and t.statistic > 0 for r, t in zip(rejected, tests, strict=True)]
    worse = [bool(r) and t.statistic < 0 for r, t in zip(rejected, tests, strict=True)]
    sure = Outcome.REPLICATED if all(better) else Outcome.INCONCLUSIVE
    expected = Outcome.CONTRADICTED if any(worse) else sure
    assert kinds.best({f"r{i}": arm - other for i, other in enumerate(others)}).outcome == expected


def test_best_by_hand():
    near, far = 0.1 * UNIT + 0.13, 0.1 * UNIT + 5  # p = 0.044 by itself
    assert kinds.direction(near).outcome == Outcome.REPLICATED
    assert kinds.best({"near": near, "far": far}).outcome == Outcome.REPLICATED  # Holm: 0.044 comes last
    assert kinds.best({"near": near, "nearer": near}).outcome == Outcome.INCONCLUSIVE  # 2 * 0.044
    contradicted = kinds.best({"far": far, "better": -far, "unsure": 9 * UNIT - 6})
    assert contradicted.outcome == Outcome.CONTRADICTED
    assert "better" in contradicted.detail
    assert kinds.best({"far": far, "few": far[:3]}).outcome == Outcome.TOO_FEW_SEEDS
    same = {"far": far, "same": np.zeros(5)}
    assert kinds.best(same).outcome == Outcome.NO_DIFFERENCE
    assert kinds.best({"far": far, "equal": np.full(5, 0.1)}).outcome == Outcome.INCONCLUSIVE


@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.integers(3, 6))
def test_trend_is_a_t_test_of_kendalls_tau(seed, slope, arms):
    measured = np.random.default_rng(seed).normal(size=(6, arms)) + slope * np.arange(arms)
    taus = np.array([stats.kendalltau(range(arms), row).statistic for row in measured])
    if np.ptp(taus) > 1e-9:
        low, high = stats.ttest_1samp(taus, 0).confidence_interval()
    else:
        low = high = taus[0]
    expected = Outcome.REPLICATED if low > 0 else Outcome.REVERSED if high < 0 else Outcome.INCONCLUSIVE
    assert kinds.trend(measured).outcome == expected


def test_trend_where_all_seeds_agree():
    rising = np.arange(4.0) + np.arange(5.0)[:, None]
    assert kinds.trend(rising).outcome == Outcome.REPLICATED
    assert kinds.trend(-rising).outcome == Outcome.REVERSED
    assert kinds.trend(np.ones((5, 4))).outcome == Outcome.NO_DIFFERENCE
    assert (kinds.trend(rising).low, kinds.trend(rising).high) == (1, 1)
    for few in (rising[:4], rising[:1]):
        assert kinds.trend(few).outcome == Outcome.TOO_FEW_SEEDS
        assert np.isnan(kinds.trend(few).low)
    assert kinds.trend([]).outcome == Outcome.TOO_FEW_SEEDS


def test_exact():
    expected = {"teacher": 17221.0, "student": 3909.0}
    equal = kinds.exact({"teacher": [17221.0], "student": [3909.0, 3909.0]}, expected)
    assert (equal.outcome, equal.n) == (Outcome.REPLICATED, 1)
    wrong = kinds.exact({"teacher": [17221.0], "student": [3909.0, 3910.0]}, expected)
    assert (wrong.outcome, wrong.mean) == (Outcome.NOT_REPLICATED, 1)
    assert "student is 3910, not 3909" in wrong.detail
    missing = kinds.exact({"teacher": [17221.0]}, expected)
    assert missing.outcome == Outcome.TOO_FEW_SEEDS
    assert "student" in missing.detail


# ---- s = 0, too few seeds, and the order of outcomes

EVERY_RULE = {
    "effect": lambda d: kinds.effect(d, 0.1, 0.001),
    "value": lambda d: kinds.value(d, 0.1, 0.02, 0.001),
    "direction": kinds.direction,
    "non-inferior": lambda d: kinds.non_inferior(d, 0.05),
    "comparable": lambda d: kinds.comparable(d, 0.05),
    "best": lambda d: kinds.best({"a": d, "b": d}),
}


@pytest.mark.parametrize("kind", EVERY_RULE)
@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_no_verdict_on_fewer_than_five_seeds(kind, n):
    found = EVERY_RULE[kind](0.1 + 0.001 * np.arange(n))
    assert (found.outcome, found.n) == (Outcome.TOO_FEW_SEEDS, n)
    assert found.needed_n is None
    assert EVERY_RULE[kind](np.zeros(n)).outcome == Outcome.TOO_FEW_SEEDS


@pytest.mark.parametrize("kind", EVERY_RULE)
def test_equal_differences_say_nothing_of_other_seeds(kind):
    # differ by rounding alone: 0.81 - 0.71, 0.82 - 0.72, ...
    equal = np.array([0.81, 0.82, 0.83, 0.84, 0.85]) - np.array([0.71, 0.72, 0.73, 0.74, 0.75])
    assert np.ptp(equal) > 0
    found = EVERY_RULE[kind](equal)
    assert (found.outcome, found.needed_n) == (Outcome.INCONCLUSIVE, None)


@pytest.mark.parametrize("kind", EVERY_RULE)
def test_zero_in_every_seed_is_no_difference(kind):
    same = kind in ("non-inferior", "comparable")  # these claim that there is no difference
    zero = np.array([0.3, 0.2, 0.1, 0.4, 0.5]) - np.array([0.1 + 0.2, 0.2, 0.1, 0.4, 0.5])
    assert zero.any()  # but for rounding
    assert EVERY_RULE[kind](zero).outcome == (Outcome.REPLICATED if same else Outcome.NO_DIFFERENCE)


@pytest.mark.parametrize("kind", EVERY_RULE)
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_numbers_must_be_finite(kind, wrong):
    with pytest.raises(KDError, match="finite"):
        EVERY_RULE[kind]([0.1, 0.2, wrong, 0.1, 0.1])


@pytest.mark.parametrize("kind", EVERY_RULE)
@pytest.mark.parametrize("wrong", [0.1, np.ones((5, 2)), ["a"] * 5, [[0.1], [0.1, 0.2]]])
def test_differences_are_one_number_for_each_seed(kind, wrong):
    with pytest.raises(KDError, match=r"expected one difference for each seed|expected an array of numbers"):
        EVERY_RULE[kind](wrong)


FIVE = [0.021, 0.034, 0.018, 0.027, 0.030]


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.01, None, "0.03"])
@pytest.mark.parametrize(
    ("name", "call"),
    {
        "reported": lambda x: kinds.effect(FIVE, x, 0.01),
        "rounding": lambda x: kinds.effect(FIVE, 0.03, x),
        "reported_std": lambda x: kinds.effect(FIVE, 0.03, 0.01, x if x is not None else math.nan, 5),
        "reported_runs": lambda x: kinds.effect(FIVE, 0.03, 0.01, 0.01, x if x is not None else math.nan),
        "reported ": lambda x: kinds.value(FIVE, x, 0.01, 0.001),
        "margin": lambda x: kinds.value(FIVE, 0.03, x, 0.001),
        "margin ": lambda x: kinds.non_inferior(FIVE, x),
        "margin  ": lambda x: kinds.comparable(FIVE, x),
    }.items(),
)
def test_every_size_is_a_number_that_can_be_one(name, call, wrong):
    with pytest.raises(KDError, match=f"^{name.strip()}: expected a number"):
        call(wrong)
    with pytest.raises(KDError, match=f"^{name.strip()}: expected a number"):
        call(wrong if wrong is None or isinstance(wrong, str) else np.float32(wrong))


def test_a_spread_and_its_runs_belong_together():
    for spread in ((0.01, None), (None, 5)):
        with pytest.raises(KDError, match="expected reported_std and reported_runs, or none of them"):
            kinds.effect(FIVE, 0.03, 0.01, *spread)
        with pytest.raises(KDError, match="expected reported_std and reported_runs, or none of them"):
            kinds.value(FIVE, 0.03, 0.02, 0.01, *spread)
    with pytest.raises(KDError, match="reported_runs: expected a number from 2"):
        kinds.effect(FIVE, 0.03, 0.01, 0.01, 1)
    with pytest.raises(KDError, match=r"reported_runs: expected a whole number from 2, found 2\.5"):
        kinds.effect(FIVE, 0.03, 0.01, 0.01, 2.5)
    assert kinds.effect(FIVE, 0.03, 0.01, 0.01, 5.0) == kinds.effect(FIVE, 0.03, 0.01, 0.01, 5)


def test_a_margin_of_zero_is_refused_where_it_decides_alone():
    for kind in (kinds.non_inferior, kinds.comparable):
        with pytest.raises(KDError, match="margin: expected a number above 0"):
            kind(FIVE, 0.0)


def test_rivals_arms_and_names_are_there():
    with pytest.raises(KDError, match="at least one rival"):
        kinds.best({})
    with pytest.raises(KDError, match=r"as many differences from each rival, found \[5, 6\]"):
        kinds.best({"a": FIVE, "b": [*FIVE, 0.02]})
    for wrong, shape in ((FIVE, "(5,)"), ([[x] for x in FIVE], "(5, 1)")):
        with pytest.raises(KDError, match=re.escape(f"of at least 2 arms, found shape {shape}")):
            kinds.trend(wrong)
    with pytest.raises(KDError, match="at least one name"):
        kinds.exact({}, {})
    for measured, expected in (([math.nan], 1.0), ([1.0], math.nan)):
        with pytest.raises(KDError, match="finite"):
            kinds.exact({"a": measured}, {"a": expected})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: intervals.accuracy_interval(11, 10), "correct: expected at most 10"),
        (lambda: intervals.accuracy_interval(0.9, 10), "correct: expected a whole number .* not their share"),
        (lambda: intervals.accuracy_interval(-1, 10), "correct: expected a number from 0"),
        (lambda: intervals.accuracy_interval(0, 0), "total: expected a number from 1"),
        (lambda: intervals.f1_interval([[5.9, 1], [1, 3]]), "counts, whole numbers"),
        (lambda: intervals.f1_interval([[0.9, 0.1], [0.2, 0.8]]), "must not be normalised"),
        (lambda: intervals.f1_interval([[0, 0], [0, 0]]), "with an example"),
        (lambda: intervals.f1_interval(np.ones((2, 3, 3), int)), "one confusion matrix"),
        (lambda: intervals.f1_interval([[5, 1], [1, 3]], resamples=0), "resamples: expected a number from 1"),
        (lambda: intervals.t_interval([0.1]), "at least 2 finite numbers"),
        (lambda: intervals.t_interval([0.1, 0.1]), "not all equal"),
        (lambda: intervals.t_interval([0.1, math.nan, 0.2]), "at least 2 finite numbers"),
        (lambda: intervals.prediction_interval(math.nan, 0.1, 5), "mean: expected"),
        (lambda: intervals.prediction_interval(0.1, -0.1, 5), "std: expected"),
        (lambda: intervals.prediction_interval(0.1, 0.1, 1), "runs: expected a number from 2"),
        (lambda: intervals.prediction_interval(0.1, 0.1, 5, 0), "further: expected a number from 1"),
        (lambda: intervals.prediction_interval(0.1, 0.1, 5, 1, 95), "level: expected a number from 0 to 1"),
        (lambda: intervals.sample_std(0.1, 1, "population"), "runs: expected a number from 2"),
        (lambda: intervals.sample_std(0.1, 5, "n - 1"), "kind: expected"),
        (lambda: intervals.needed_seeds(math.nan, 0.1), "std: expected"),
        (lambda: intervals.needed_seeds(0.1, math.nan), "half_width: expected"),
        (lambda: intervals.holm([0.1, math.nan]), "p values from 0 to 1"),
        (lambda: intervals.holm([0.1, 1.1]), "p values from 0 to 1"),
        (lambda: intervals.kendall_tau([0.1, math.nan]), "numbers"),
    ],
)
def test_what_has_no_interval_is_refused(call, match):
    with pytest.raises(KDError, match=match):
        call()


def test_headline_is_the_worst():
    def verdict(outcome):
        return Verdict(outcome, 0.0, 0.0, 0.0, 5, None, "")

    order = [
        "replicated",
        "effect replicated, magnitude differs (larger)",
        "effect replicated, magnitude differs (smaller)",
        "much smaller than reported",
        "inconclusive",
        "inconclusive (too few seeds)",
        "interim, no verdict",
        "not replicated",
        "no difference",
        "contradicted",
        "not replicated (reversed)",
        "reversed",
    ]
    for i, worse in enumerate(order):
        for better in order[: i + 1]:
            both = [verdict(Outcome(better)), verdict(Outcome(worse))]
            assert verdicts.headline(both).outcome == verdicts.headline(both[::-1]).outcome == worse
    assert len(order) == len(Outcome)
    with pytest.raises(ValueError, match="empty"):
        verdicts.headline([])
