"""How firm verdicts are, against redraws by other code; how far the next outcome is; and the rule's error rates."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdlib.judge import kinds
from kdlib.judge.intervals import kendall_tau
from kdlib.judge.verdicts import Outcome, interim
from tests.judge import power

ROOT = Path(__file__).parents[2]
# ECG's first five full runs, distilled student less baseline, and what the source reports: 0.11 with 6 runs
ECG = np.array([0.03042, 0.0574, 0.0953, 0.06966, 0.03888])
OF_ECG = (0.11, 0.01, math.sqrt(2 * 0.02**2 * 6 / 5), 6)


def drawn(d):
    """Redraws of one difference a seed, as documented: NumPy's default generator, seed 0, mean + s z."""
    z = np.random.default_rng(0).standard_normal((10_000, len(d)))
    return np.mean(d) + np.std(d, ddof=1) * z


def seeds(mean, std, n, seed=1):
    return np.random.default_rng(seed).normal(mean, std, n)


# ---- firmness


def test_the_first_verdict_on_ecg_was_a_toss_up():
    found = kinds.effect(ECG, *OF_ECG)
    assert found.outcome is Outcome.SMALLER
    assert found.firmness == pytest.approx(0.56, abs=0.005)
    assert found.margin == (pytest.approx(0.00297, abs=1e-5), Outcome.REPLICATED)


@pytest.mark.parametrize("d", [seeds(0.5, 1, 8), seeds(0.0, 1, 5), seeds(-2, 1, 20), seeds(1, 1e-3, 6)])
def test_a_directions_firmness_is_that_of_t_tests(d):
    tests = stats.ttest_1samp(drawn(d), 0, axis=1)
    sure = (tests.pvalue < 0.05) * np.sign(tests.statistic)
    mine = stats.ttest_1samp(d, 0)
    assert kinds.direction(d).firmness == np.mean(sure == (mine.pvalue < 0.05) * np.sign(mine.statistic))


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.05, 0.08, 0.15])
@pytest.mark.parametrize("n", [5, 12])
def test_an_effects_firmness_is_that_of_the_equations(mean, n):
    d = seeds(mean, 0.04, n)
    redraws = drawn(d)
    center, s = redraws.mean(axis=1), redraws.std(axis=1, ddof=1)
    error = s / math.sqrt(n)
    low, high = (center + way * stats.t.ppf(0.975, n - 1) * error for way in (-1, 1))
    below = center + stats.t.ppf(0.95, n - 1) * error < 0.055
    room = stats.t.ppf(0.975, n + 4) * np.sqrt(OF_ECG[2] ** 2 / 6 + s**2 / n) + 0.01
    off = np.abs(center - 0.11)
    same = {
        Outcome.REPLICATED: (low > 0) & (off <= 0.055) & (off <= np.maximum(room, 0.055 / 4)),
        Outcome.NOT_REPLICATED: below & (low <= 0) & (high >= 0),
        Outcome.INCONCLUSIVE: (low <= 0) & ~below,
        Outcome.MUCH_SMALLER: (low > 0) & below & (off > np.minimum(0.055, np.maximum(room, 0.055 / 4))),
    }
    same[Outcome.LARGER] = (low > 0) & (center > 0.11) & ~same[Outcome.REPLICATED]
    same[Outcome.SMALLER] = (low > 0) & (center < 0.11) & ~same[Outcome.REPLICATED] & ~same[Outcome.MUCH_SMALLER]
    found = kinds.effect(d, *OF_ECG)
    assert found.firmness == np.mean(same[found.outcome])


def test_a_bounds_firmness_is_that_of_one_sided_tests():
    d = seeds(0.0, 1.0, 10)
    redraws = drawn(d)
    sure = stats.ttest_1samp(redraws, -0.8, axis=1, alternative="greater").pvalue < 0.05
    assert kinds.non_inferior(d, 0.8).outcome is Outcome.REPLICATED
    assert kinds.non_inferior(d, 0.8).firmness == np.mean(sure)
    sure &= stats.ttest_1samp(redraws, 0.8, axis=1, alternative="less").pvalue < 0.05
    assert kinds.comparable(d, 0.8).outcome is Outcome.REPLICATED
    assert kinds.comparable(d, 0.8).firmness == np.mean(sure)


def test_rivals_are_redrawn_with_their_covariance():
    shared = seeds(0.0, 1.0, 8)  # of the arm itself, so both differences have it
    d = np.stack([0.9 + shared + seeds(0, 0.1, 8, seed) for seed in (2, 3)], axis=1)
    z = np.random.default_rng(0).standard_normal((10_000, 8, 2))
    p = stats.ttest_1samp(d.mean(axis=0) + z @ np.linalg.cholesky(np.cov(d.T)).T, 0, axis=1).pvalue
    both = (p.max(axis=1) < 0.05) & (p.min(axis=1) < 0.025)
    found = kinds.best({"a": d[:, 0], "b": d[:, 1]})
    same = both if found.outcome is Outcome.REPLICATED else ~both
    assert found.firmness == pytest.approx(np.mean(same), abs=2e-4)  # no redraw is contradicted here
    independent = kinds.best({"a": d[:, 0], "b": np.roll(d[:, 1], 3)})
    assert abs(independent.firmness - found.firmness) > 0.01


def test_more_rivals_than_seeds_have_a_firmness():
    d = {f"r{k}": seeds(3, 1, 5, k) for k in range(9)}
    found = kinds.best(d)
    assert found.outcome is Outcome.REPLICATED
    # A factor of the covariance of 9 rivals on 5 seeds has 4 rows that are not zero; others give other redraws.
    d = np.stack(list(d.values()), axis=1)
    z = np.random.default_rng(1).standard_normal((10_000, 5, 5))
    redraws = d.mean(axis=0) + z @ (d - d.mean(axis=0)) / 2
    p = np.sort(stats.ttest_1samp(redraws, 0, axis=1).pvalue, axis=1)
    assert found.firmness == pytest.approx(np.mean((p * np.arange(9, 0, -1) < 0.05).all(axis=1)), abs=0.02)


def test_a_trends_redraws_are_taus():
    rows = np.arange(5.0) + seeds(0, 2.0, 25).reshape(5, 5)
    taus = np.array([kendall_tau(row) for row in rows])
    redraws = np.clip(drawn(taus), -1, 1)
    assert (np.abs(redraws) == 1).any()
    tests = stats.ttest_1samp(redraws, 0, axis=1)
    found = kinds.trend(rows)
    assert found.outcome is Outcome.REPLICATED
    assert found.firmness == np.mean((tests.pvalue < 0.05) & (tests.statistic > 0))


def test_a_firm_verdict_and_the_firmest_toss_up():
    assert kinds.effect(seeds(4, 0.1, 10), 4.0, 0.0).firmness == 1
    d = seeds(0, 1, 40)
    half = stats.t.ppf(0.975, 39) * d.std(ddof=1) / math.sqrt(40)
    assert kinds.direction(d - d.mean() + half * 1.0001).firmness == pytest.approx(0.5, abs=0.03)


NOTHING = {
    "an exact claim": kinds.exact({"a": [1.0]}, {"a": 1.0}),
    "too few seeds": kinds.direction(seeds(1, 1, 4)),
    "equal differences": kinds.effect(np.full(5, 0.1), 0.1, 0.0),
    "no difference": kinds.effect(np.zeros(5), 0.1, 0.0),
    "no difference, as claimed": kinds.comparable(np.zeros(5), 0.1),
    "the same order in all seeds": kinds.trend(np.arange(4.0) + np.zeros((5, 1))),
    "not yet all seeds": interim(kinds.direction(seeds(1, 1, 6)), 8),
}


@pytest.mark.parametrize("name", NOTHING)
def test_there_is_no_firmness_without_a_spread_or_a_verdict(name):
    assert math.isnan(NOTHING[name].firmness)
    assert math.isnan(NOTHING[name].margin[0])
    assert NOTHING[name].margin[1] is None


def test_two_calls_give_the_same_number():
    first, second = (kinds.effect(ECG, *OF_ECG) for _ in range(2))
    assert first.firmness == second.firmness
    assert first == second


# ---- the margin


RULES = {
    "effect": lambda d: kinds.effect(d[0], 1.0, 0.001),
    "effect with a spread": lambda d: kinds.effect(d[0], 1.0, 0.001, 0.3, 4),
    "value": lambda d: kinds.value(d[0], 1.0, 0.3, 0.001),
    "direction": lambda d: kinds.direction(d[0]),
    "non-inferior": lambda d: kinds.non_inferior(d[0], 0.5),
    "comparable": lambda d: kinds.comparable(d[0], 0.5),
    "best": lambda d: kinds.best({f"r{k}": row for k, row in enumerate(d)}),
}


@pytest.mark.parametrize("kind", RULES)
@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(-2, 2), st.floats(0.05, 1.5))
def test_the_margin_is_the_shortest_way_to_another_outcome(kind, seed, mean, std):
    d = np.random.default_rng(seed).normal(mean, std, (3, 7))
    rule = RULES[kind]
    here, (margin, beyond) = rule(d).outcome, rule(d).margin
    assert margin >= 0
    assert beyond is not here
    nearby = [rule(d + way * margin * share).outcome for way in (-1, 1) for share in (0.3, 0.7, 1 - 1e-6)]
    assert set(nearby) == {here}
    further = [rule(d + way * (margin * (1 + 1e-6) + 1e-12)).outcome for way in (-1, 1)]
    assert beyond in further


def test_the_margin_has_the_claims_unit():
    d = seeds(0.3, 1, 6)
    assert kinds.direction(10 * d).margin[0] == pytest.approx(10 * kinds.direction(d).margin[0])


# ---- error rates: the tables of results/README.md


def _table():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    rows = text.partition(power.HEAD)[2].partition("\n\n")[0].strip().splitlines()
    return [[float(cell.strip(" %")) for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_power_and_errors():
    printed = _table()
    assert len(printed) == len(power.SEEDS) * len(power.SIZES)
    for (n, size, found), row in zip(power.rows(trials=3000), printed, strict=True):
        assert [n, size] == row[:2]
        for share, percent in zip(found, row[2:], strict=True):
            error = math.sqrt(max(share * (1 - share), 1e-3) / 3000)
            assert share == pytest.approx(percent / 100, abs=4 * error + 5e-4)


def test_looking_after_every_seed_replicates_more_nulls():
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    five, twenty, looks = map(
        float, re.search(r"([\d.]+)% with 5 seeds.* ([\d.]+)% with 20.* ([\d.]+)%", text).groups()
    )
    assert power.shares(5, 1.0, 0.0)[Outcome.REPLICATED] == pytest.approx(five / 100, abs=0.003)
    assert power.shares(20, 1.0, 0.0)[Outcome.REPLICATED] == pytest.approx(twenty / 100, abs=0.003)
    assert power.ever_replicated(1.0, trials=5000) == pytest.approx(looks / 100, abs=0.012)
