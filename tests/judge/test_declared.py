"""Verdicts need just the declared seeds: fewer are interim, more do not count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdlib.judge.bands import bands_of
from kdlib.judge.claims import CONTROLLED, Best, Choice, Comparison, Direction, Exact, Reported, Source, Trend
from kdlib.judge.departures import changes
from kdlib.judge.judging import judge, of_declared, outcomes
from kdlib.judge.verdicts import Outcome, headline

ABOUT = {"name": "C1", "metric": "accuracy", "statement": "It is so.", "place": "p. 1"}
HELPS = Direction(**ABOUT, primary=True, modes={CONTROLLED: Comparison(("student",), ("alone",))})


def metrics(seeds, **gains):
    """Each arm's accuracy: `gains` over 0.5, with noise that differs from seed to seed."""
    noise = np.random.default_rng(3).normal(0, 0.01, (len(gains), 40))
    return {
        arm: {seed: {"accuracy": 0.5 + gain + noise[row, seed]} for seed in seeds}
        for row, (arm, gain) in enumerate(gains.items())
    }


@pytest.mark.parametrize("seeds", [0, 1, 4, 5, 7])
def test_fewer_seeds_than_declared_are_interim(seeds):
    measured = metrics(range(seeds), student=0.1, alone=0.0)
    found = judge(HELPS, CONTROLLED, measured, declared=8)
    assert found.outcome is Outcome.INTERIM
    assert str(found) == f"interim, {seeds} of 8 seeds, no verdict"
    assert found.detail.startswith("No verdict before all 8 declared seeds are recorded: ")
    assert (found.n, found.needed_n) == (seeds, None)
    assert math.isnan(found.firmness)
    assert found.margin[1] is None
    undeclared = judge(HELPS, CONTROLLED, measured, declared=None)
    assert [found.mean, found.low, found.high] == pytest.approx(
        [undeclared.mean, undeclared.low, undeclared.high], nan_ok=True
    )


def test_just_the_declared_seeds_give_a_verdict_and_no_others_count():
    eight = metrics(range(8), student=0.1, alone=0.0)
    found = judge(HELPS, CONTROLLED, eight, declared=8)
    assert (found.outcome, str(found), found.n) == (Outcome.REPLICATED, "replicated", 8)
    assert found.firmness > 0.99
    more = metrics(range(8, 40), student=-0.3, alone=0.0)
    both = {arm: eight[arm] | more[arm] for arm in eight}
    assert judge(HELPS, CONTROLLED, both, declared=8) == found
    assert judge(HELPS, CONTROLLED, both, declared=None).outcome is Outcome.REVERSED
    assert of_declared(both, 8) == eight
    assert of_declared(both, None) == both


def test_seeds_of_other_numbers_do_not_stand_in():
    measured = metrics([0, 1, 2, 3, 5], student=0.1, alone=0.0)
    assert str(judge(HELPS, CONTROLLED, measured, declared=5)) == "interim, 4 of 5 seeds, no verdict"


def test_every_arm_of_a_claim_needs_them():
    arms = metrics(range(6), student=0.2, alone=0.0, other=0.1)
    del arms["other"][2]
    best = Best(**ABOUT, modes={CONTROLLED: Comparison(("student",), ("alone", "other"))})
    trend = Trend(**ABOUT, modes={CONTROLLED: Comparison(("alone", "other", "student"))})
    for claim in (best, trend):
        assert str(judge(claim, CONTROLLED, arms, declared=6)) == "interim, 5 of 6 seeds, no verdict"
        assert judge(claim, CONTROLLED, arms, declared=5).n == 4  # and seeds that not all of them have do not count
    assert judge(HELPS, CONTROLLED, arms, declared=6).outcome is Outcome.REPLICATED


def test_an_exact_claim_needs_one_run():
    claim = Exact(**ABOUT, modes={CONTROLLED: Comparison(("student",), expected=(0.5,))})
    assert judge(claim, CONTROLLED, {"student": {0: {"accuracy": 0.5}}}, declared=20).outcome is Outcome.REPLICATED
    assert judge(claim, CONTROLLED, {}, declared=20).outcome is Outcome.TOO_FEW_SEEDS
    more = {"student": {0: {"accuracy": 0.5}, 7: {"accuracy": 0.4}}}
    assert judge(claim, CONTROLLED, more, declared=5).outcome is Outcome.REPLICATED


def test_an_interim_verdict_makes_the_headline_as_too_few_seeds_do():
    interim = judge(HELPS, CONTROLLED, metrics(range(7), student=0.1, alone=0.0), declared=8)
    undecided = judge(HELPS, CONTROLLED, metrics(range(8), student=0.001, alone=0.0), declared=8)
    reversed_ = judge(HELPS, CONTROLLED, metrics(range(8), student=-0.1, alone=0.0), declared=8)
    assert undecided.outcome is Outcome.INCONCLUSIVE
    assert headline([undecided, interim]) is interim
    assert headline([reversed_, interim]) is reversed_
    order = list(Outcome)
    assert order.index(Outcome.INTERIM) == order.index(Outcome.TOO_FEW_SEEDS) + 1


def reported(*claims, choices=()):
    return Reported(Source("A source", ""), {}, {claim.name: claim for claim in claims}, (), choices)


def test_bands_have_verdicts_on_complete_claims_only():
    measured = metrics(range(7), student=0.1, alone=0.0)
    commits = dict.fromkeys(measured, "abc123")
    interim = bands_of(measured, ["accuracy"], commits, reported(HELPS), 8)
    assert set(interim.bands) == {"student.accuracy", "alone.accuracy"}
    assert interim.verdicts == {"C1": {}}
    complete = bands_of(measured, ["accuracy"], commits, reported(HELPS), 7)
    assert complete.verdicts == {"C1": {CONTROLLED: Outcome.REPLICATED}}
    moved = metrics(range(7), student=-0.1, alone=0.0)
    assert changes(complete, reported(HELPS), moved, 7) == [
        "C1, controlled: recorded replicated, now reversed",
    ]
    assert changes(complete, reported(HELPS), moved, 8) == []  # nothing is judged yet


def test_bands_have_exact_verdicts_of_one_run():
    claim = Exact(**ABOUT, modes={CONTROLLED: Comparison(("student",), expected=(0.5,))})
    found = bands_of({"student": {0: {"accuracy": 0.5}}}, ["accuracy"], {"student": "abc123"}, reported(claim), 20)
    assert (found.bands, found.verdicts) == ({}, {"C1": {CONTROLLED: Outcome.REPLICATED}})


def test_an_arm_is_chosen_by_the_declared_seeds():
    first, rest = (metrics(seeds, a=a, b=0.1, alone=0.0) for seeds, a in ((range(5), 0.2), (range(5, 10), -0.4)))
    all_ten = {arm: first[arm] | rest[arm] for arm in first}
    claim = Direction(**ABOUT, modes={CONTROLLED: Comparison(("best_one",), ("alone",))})
    rules = reported(claim, choices=(Choice("best_one", "accuracy", ("a", "b")),))
    assert outcomes(rules, all_ten, 5) == {"C1": {CONTROLLED: Outcome.REPLICATED}}
    with_b = Direction(**ABOUT, modes={CONTROLLED: Comparison(("best_one",), ("b",))})
    rules = reported(with_b, choices=rules.choices)
    assert outcomes(rules, all_ten, 5) == {"C1": {CONTROLLED: Outcome.REPLICATED}}  # a is chosen
    assert outcomes(rules, all_ten, 10) == {"C1": {CONTROLLED: Outcome.NO_DIFFERENCE}}  # b is
