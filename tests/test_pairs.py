"""Compared arms differ in what `claims.toml` names: by the traces of trained arms, and of made-up ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdlib.judge.claims import DIFFERENCES, Choice, Comparison, Direction, Reported, Source, Trend, pairs
from kdlib.report.pages import reported_of
from kdlib.report.pairs import pair_faults, traced_pairs
from kdlib.run import failures, load_experiment, prepare, records_of, replications, train
from kdlib.run.records import Record
from kdlib.run.traces import arms_differ
from kdlib.training import Progress
from tests.audit import traces as audited
from tests.audit.claims import read_claims

NAMES = replications(Path(__file__).parents[1])

# The arms are trained in profile smoke. Some arms have a length of their own, for which smoke has too many examples (or
# too few: a small share of them lacks classes, and the released tail of ecg begins after 62 epochs).
CIFAR = {"epochs": 2, "slow_from": 2, "batch": 8, "train_pictures": 74, "test_pictures": 20}
CIFAR |= {"teacher_epochs": 1, "teacher_batch": 64}
SMALLER: Mapping[str, Mapping[str, Any]] = {
    "ecg": {"epochs": 63, "released_epochs": 62, "synthetic_rows": 250, "batch": 128},
    "grid": CIFAR,
    "mnist": {"epochs": 2},
    "ta_chain": {"epochs": 2, "train_pictures": 16, "test_pictures": 20},
    "teacher_free": CIFAR,
    "xray": {"epochs": 7, "steps": 1},  # enough that the arm with early stopping stops before the others
}
# Arms that are not trained, because another arm has the same training function, the same changed fields and a teacher
# in the same role: only values of the changed fields differ.
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "grid": {
        f"{kind}_{percent}_percent": f"{kind}_25_percent"
        for kind in ("baseline", "distilled")
        for percent in (5, 10, 15)
    },
}


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


def compared(name: str, reported: Reported) -> list[tuple[str, list[tuple[str, str]], tuple[str, ...]]]:
    """The claims in each mode and the ingredients: name, pairs and named differences.

    The first arm that may be chosen stands for the chosen one.
    """
    first = {choice.name: choice.among[0] for choice in reported.choices}
    rows = [
        (f"{claim.name}, {mode}", [(first.get(arm, arm), rival) for arm, rival in pairs(claim, mode)], about.differs)
        for claim in reported.claims.values()
        for mode, about in claim.modes.items()
    ]
    rows += [(part.label, [(part.arm, part.rival)], part.differs) for part in reported.ingredients]
    left_out = LEFT_OUT.get(name, {})
    return [(row, [pair for pair in found if not {*pair} & {*left_out}], named) for row, found, named in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_arms_of_a_claim_differ_in_what_it_names(name, store, monkeypatch):
    monkeypatch.setattr(Progress, "save", lambda self: None)  # a third of the time: checkpoints, and nothing is killed
    experiment = load_experiment(name)
    reported = reported_of(experiment)
    elsewhere = {arm.name for arm in experiment.arms if arm.train.__name__ == "train_elsewhere"}  # never trained
    rows = [row for row in compared(name, reported) if not {arm for pair in row[1] for arm in pair} & elsewhere]
    session = prepare(
        name, "smoke", store=store, arms=sorted({arm for _, found, _ in rows for p in found for arm in p})
    )
    small = replace(session.profile, config=replace(session.profile.config, **SMALLER.get(name, {})))
    session = replace(session, profile=small)
    jobs = session.jobs()
    summary = train(session, jobs)
    assert failures(jobs, summary) == []
    records = records_of(session, jobs, summary)
    by_arm = {arm: record for record in records for arm in record.arms}
    for row, found, named in rows:
        each = {(one, other): arms_differ(by_arm[one], one, by_arm[other], other) for one, other in found}
        if None in each.values():  # an ensemble is measured, not trained: it has no trace
            assert {word for words in each.values() for word in words or ()} <= {*named}, (row, each)
            continue
        assert {word for words in each.values() for word in words} == {*named}, (row, each)
    # The same by the two checks of records, which are written independently of each other.
    assert pair_faults(experiment, reported, records) == []
    lines = [json.loads(json.dumps(vars(record))) for record in records]
    source = read_claims(experiment.folder / "claims.toml")
    assert [str(f) for f in (*audited.check_pairs(source, lines), *audited.check_traces(experiment, lines))] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_arm_that_is_not_trained_is_like_one_that_is(name):
    experiment = load_experiment(name)
    trained_instead = list(LEFT_OUT.get(name, {}).items())  # pairs: an arm, and the arm that is trained for it
    for choice in reported_of(experiment).choices:
        trained_instead += [(arm, choice.among[0]) for arm in choice.among]
    for pair in trained_instead:
        one, other = (experiment.arm(arm) for arm in pair)
        assert (one.train, one.change.keys(), one.needs) == (other.train, other.change.keys(), other.needs)
    rows = compared(name, reported_of(experiment))
    whole = [pairs(c, mode) for c in reported_of(experiment).claims.values() for mode in c.modes]
    assert [bool(found) for _, found, _ in rows[: len(whole)]] == [bool(found) for found in whole]  # each has a pair


# ---- made-up traces


LATER = "settings", "outputs", "probes", "epoch_of", "may_be_best"  # keys that older traces do not have


def trace(**other: Any) -> dict[str, Any]:
    """A trace of two epochs; `other` has other values of its keys, or of the keys of its tables."""
    made: dict[str, Any] = {
        "network": "n",
        "start": "s",
        "optimizer": {"class": "Adam", "groups": [{"eps": 1e-7, "tensors": 2}]},
        "data": {"digest": "d/train", "view": "plain", "size": 16, "soft": None},
        "mixed": False,
        "first_loss": 1.0,
        "probe": None,
        "steps": 6,
        "epochs": {name: ["1", "2"] for name in ("rows", "labels", "sizes", "rates", "targets", "layers")},
        "changed": [],
        "settings": "l",
        "outputs": 1.0,
        "probes": [],
        "epoch_of": {"final": 2},
        "may_be_best": [],
    }
    if other.pop("is_old", False):
        made = {key: value for key, value in made.items() if key not in LATER}
    for key, value in other.items():
        place = next((part for part in (made, made["data"], made["epochs"]) if key in part), {})
        place[key] = value
    return made


def record(arm: str, seed: int = 0, profile: str = "quick", **other: Any) -> Record:
    config = {"precision": other.pop("precision", "float32")}
    found = {} if other.pop("untraced", False) else trace(**other)
    metrics = {"final": {"epochs": 2, "accuracy": 0.5, "validation_accuracy": 0.1 * "abcd".index(arm)}}
    description = {"config": config, "data": "d", "seed": seed}
    return Record(profile, seed, f"{arm}{seed}", {arm: "final"}, "data", description, metrics, [{}, {}], {}, "", found)


OTHERS: Mapping[str, Any] = {
    "network": "m",
    "start": "t",
    "optimizer": {"class": "Adam", "groups": [{"eps": 1e-8, "tensors": 3}]},
    "digest": "e/train",
    "view": "flip",
    "size": 32,
    "soft": {"run": "r", "part": "final.train", "sha256": "5"},
    "mixed": True,
    "first_loss": 1.1,
    "probe": 0.5,
    "steps": 12,
    "changed": [2],
    "settings": "m",
    "outputs": 2.0,
    "probes": [[2, 0.7]],
    "epoch_of": {"final": 1},
    **{name: ["1", "3"] for name in ("rows", "labels", "sizes", "rates", "targets", "layers")},
    "precision": "bfloat16",
}


def test_both_checks_find_the_same_differences():
    rng, found = np.random.default_rng(0), set[str]()
    for _ in range(3000):
        some = {key: OTHERS[key] for key in OTHERS if rng.random() < rng.choice([0.05, 0.3])}
        first = {"is_old": True} if rng.random() < 0.1 else {"probe": 0.5} if rng.random() < 0.5 else {}
        first |= {"probes": [[1, 0.6]]} if rng.random() < 0.2 else {}
        one, other = record("a", **first), record("b", **some)
        words = arms_differ(one, "a", other, "b")
        sides = audited.done(vars(one), "a"), audited.done(vars(other), "b")
        assert audited.differences(*sides) == audited.differences(*sides[::-1]) == {*words}, some
        found |= {*words}
    assert found == {*DIFFERENCES}


def reported(**rows: tuple[str, list[str]]) -> Reported:
    """Claims by name: the arms, of which the last is the rival unless there are three, and what they differ in."""
    claims: dict[str, Any] = {}
    for name, (arms, differs) in rows.items():
        sides = (tuple(arms),) if len(arms) > 2 else (("best_one" if arms[0] == "?" else arms[0],), (arms[1],))
        about = {"metric": "accuracy", "statement": "", "place": ""}
        modes = {"controlled": Comparison(*sides, differs=tuple(differs))}
        claims[name] = (Trend if len(arms) > 2 else Direction)(name=name, modes=modes, **about)
    choice = Choice("best_one", "validation_accuracy", ("a", "b"))
    return Reported(Source("", ""), {}, claims, choices=(choice,))


def faults(claims: Reported, *records: Record) -> list[str]:
    experiment = replace(load_experiment("mnist"), name="toy")
    return [fault.partition("data d: ")[2] for fault in pair_faults(experiment, claims, records)]


def test_a_difference_that_is_not_named_is_a_fault():
    claims = reported(C1=("ab", ["soft targets"]))
    right = {"soft": OTHERS["soft"]}
    pair = [record("a", **right), record("b")]
    assert faults(claims, *pair) == []
    (fault,) = faults(claims, *pair, record("a", 1, size=32, **right), record("b", 1))
    assert fault == (
        "C1, controlled: expected a and b, seed 1, to differ in soft targets only, found a difference in batch size; "
        "train them in the same way, or name the difference in `differs`"
    )
    # Other tables are other pairs, and a run without a trace is not compared.
    assert faults(claims, *pair, record("a", 1, "full", size=32)) == []
    assert faults(claims, *pair, record("a", 1, untraced=True), record("b", 1, size=32)) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"epoch_of": {"final": 1}}, {}, ["selection"]),
        ({"epoch_of": {"final": 1}}, {"may_be_best": ["final"]}, []),  # it may have been chosen too
        ({"epoch_of": {"final": 1}, "may_be_best": ["final"]}, {}, ["selection"]),
        ({"epoch_of": {"final": 1}}, {"epoch_of": {"final": 0}}, []),
        ({"epoch_of": {"final": None}}, {}, ["optimizer state"]),
        ({"epoch_of": {"final": None}}, {"epoch_of": {"final": None}}, []),
        ({"epoch_of": {"final": None}}, {"may_be_best": ["final"]}, ["optimizer state"]),
        ({"epoch_of": {}}, {"epoch_of": {"final": None}}, []),  # weights of other tensors are not compared
        ({"is_old": True}, {"epoch_of": {"final": 1}}, []),
        ({"epoch_of": {"final": 3}}, {}, []),  # a snapshot that says that it is of an earlier epoch
    ],
)
def test_of_which_epoch_the_weights_are_is_compared(one, other, expected):
    pair = record("a", **one), record("b", **other)
    assert arms_differ(pair[0], "a", pair[1], "b") == arms_differ(pair[1], "b", pair[0], "a") == expected


def test_a_difference_that_is_named_in_vain_is_a_fault():
    claims = reported(C1=("ab", ["steps", "soft targets"]))
    pair = [record("a", soft=OTHERS["soft"]), record("b")]
    (fault,) = faults(claims, *pair)
    assert fault.startswith("C1, controlled: expected a difference in steps, found none in any seed; ")
    assert faults(claims, *pair, record("a", 1, steps=12), record("b", 1)) == []  # early stopping may hide it in a seed
    trend = reported(C1=("abc", ["loss", "steps"]))
    two = [record("a"), record("b", first_loss=2.0)]
    assert faults(trend, *two) == []  # the third arm may differ in steps
    assert len(faults(trend, *two, record("c", first_loss=3.0))) == 1
    assert faults(trend, *two, record("c", first_loss=2.0, steps=12)) == []


def test_the_chosen_arm_is_compared():
    claims = reported(C1=("?d", ["batch size"]))
    runs = [record("a"), record("d")]
    assert faults(claims, *runs) == []  # not all arms of the choice have run
    (fault,) = faults(claims, *runs, record("b", size=32, steps=12))
    assert "expected b and d, seed 0, to differ in batch size only, found a difference in steps" in fault


def test_an_arm_that_is_chosen_against_itself_is_no_pair():
    claims = reported(C1=("?b", ["loss"]))
    runs = [record("a", first_loss=2.0), record("b")]
    assert faults(claims, *runs) == []
    assert traced_pairs(claims, runs) == (0, 0)


def test_how_many_pairs_are_traced():
    claims = reported(C1=("ab", []), C2=("ba", []), C3=("abc", []))
    runs = [record("a"), record("b"), record("a", 1), record("b", 1, untraced=True), record("c"), record("c", 2)]
    assert traced_pairs(claims, runs) == (3, 2)  # a and b twice, b and c once
    assert traced_pairs(claims, []) == (0, 0)
