"""The front picture: which comparison is shown, which parts are steps of it, and what is said where nothing is run."""

from dataclasses import replace

import pytest
from matplotlib import pyplot as plt

from kdlib.judge.judging import judge
from kdlib.judge.reading import load_claims
from kdlib.report import readme, site
from kdlib.report.chains import chain
from kdlib.report.front import _row, _steps, table_of
from kdlib.report.front_picture import alt_of, draw
from kdlib.run.experiment import load_experiment


def reported_by(name):
    experiment = load_experiment(name)
    return load_claims(experiment.folder / "claims.toml", [arm.name for arm in experiment.arms])


def row(name, numbers, profile="full", seeds=5):
    reported = reported_by(name)
    return _row(name, reported, reported.primary, profile, seeds, numbers)


def metrics(metric, **arms):
    return {arm: {seed: {metric: value} for seed, value in enumerate(values)} for arm, values in arms.items()}


@pytest.mark.parametrize(
    ("name", "mode", "roles"),
    [
        ("ecg", "as described", ["schedule", "softness", "transfer"]),
        ("grid", "as released", ["schedule", "softness", "transfer"]),
        ("mnist", "controlled", ["softness", "transfer"]),
        ("xray", "controlled", ["softness", "transfer"]),
        ("ta_chain", "as described", []),
    ],
)
def test_the_comparison_is_the_one_that_most_parts_make_up(name, mode, roles):
    reported = reported_by(name)
    parts = [part for role in ("schedule", "softness", "transfer") if (part := reported.part(role))]
    found, steps = _steps(reported.primary, parts)
    assert (found, [part.role for part in steps]) == (mode, roles)


def test_own_parts_add_up_to_the_gain():
    shown = row(
        "mnist", metrics("accuracy", baseline=[0.90, 0.92, 0.91], sham=[0.95, 0.92, 0.93], distilled=[0.95] * 3)
    )
    values = {mark.part: mark.value for mark in shown.marks}
    assert values["softness"] + values["transfer"] == pytest.approx(values["measured"])
    assert values == pytest.approx({"reported": 0.0027, "measured": 0.04, "softness": 0.07 / 3, "transfer": 0.05 / 3})


def test_fewer_errors_are_a_gain():
    shown = row("hinton", metrics("errors", baseline=[150, 140], distilled=[80, 90], sham=[100, 100]))
    assert {mark.part: mark.value for mark in shown.marks} == {
        "reported": 72, "measured": 60, "softness": 45, "transfer": 15}  # fmt: skip
    assert {mark.low for mark in shown.marks} == {""}  # two seeds have no interval


def test_words_say_what_is_not_run_and_the_picture_is_drawn():
    rows = [row("binary", {}, "", 0), row("ta_chain", metrics("accuracy", direct=[0.7, 0.71], sham=[0.69, 0.7]))]
    text = alt_of(rows)
    assert "binary C2, as described, accuracy, not run: reported above 0; the gain is not run." in text
    assert "transfer proper (of other arms or seeds) +1.00; the gain is not run." in text
    cells = {text.get_text() for axes in draw(rows).axes for text in axes.texts}
    plt.close("all")
    assert {"reported above 0", "measured: not run", "no part of this claim", "not run", "+1.00"} <= cells


def test_parts_of_other_seeds_are_no_steps_of_the_gain():
    numbers = metrics("accuracy", baseline=[0.90, 0.92, 0.91], sham=[0.95, 0.92], distilled=[0.95] * 3)
    assert {mark.part: mark.own for mark in row("mnist", numbers).marks} == {
        "reported": True,
        "measured": True,
        "softness": False,
        "transfer": False,
    }


@pytest.mark.parametrize(("name", "claim"), [("teacher_free", "C2"), ("hinton", "C4c")])
def test_a_trend_and_the_best_of_several_show_the_number_of_their_verdict(name, claim):
    reported = reported_by(name)
    primary = replace(reported.claims[claim], primary=True)
    compared = primary.modes[next(iter(primary.modes))]
    arms = dict.fromkeys((*compared.arms, *compared.rivals))
    numbers = {
        arm: {seed: {primary.metric: 0.5 + place / 20 + seed * (-1) ** place / 100} for seed in range(5)}
        for place, arm in enumerate(arms)
    }
    shown = _row(name, reported, primary, "full", 5, numbers)
    verdict = judge(primary, shown.mode, numbers, declared=None)
    (mark,) = shown.marks
    assert (mark.part, mark.value, mark.n) == ("measured", verdict.mean, 5)
    assert (mark.low, mark.high) == pytest.approx((max(verdict.low, -1), min(verdict.high, 1)))
    assert table_of([shown])["metric"].tolist() == [f"{'tau of ' * (name == 'teacher_free')}{primary.metric}"]
    plt.close(draw([shown]))


def test_a_chain_is_the_longest_row_of_neighbouring_steps():
    steps = [("b", "a"), ("c", "b"), ("d", "c")]
    assert [*chain(steps, "d", "a")] == [0, 1, 2]
    assert [*chain(steps, "c", "b")] == [1]
    assert [*chain(steps, "a", "d")] == [*chain(steps, "d", "z")] == [*chain([], "b", "a")] == []


def test_a_transfer_that_is_no_part_of_the_number_next_to_it_is_marked():
    reported = reported_by("mnist")
    arms = {"baseline": 0.9, "sham": 0.91, "distilled": 0.93, "distilled_by_one": 0.94}
    numbers = metrics(
        "accuracy", **{arm: [value, value + 0.001 * (arm == "sham"), value] for arm, value in arms.items()}
    )
    told = {mode: readme._transfer(reported, numbers, reported.primary, mode) for mode in reported.primary.modes}
    assert told["controlled"].startswith("+1.967 (+1.823 to +2.110)")
    assert told["as described"] == f"{told['controlled']}, of other arms or seeds"
    fewer = {**numbers, "sham": {0: {"accuracy": 0.91}}}
    assert readme._transfer(reported, fewer, reported.primary, "controlled") == "+2.000, of other arms or seeds"
    other = next(claim for claim in reported.claims.values() if claim is not reported.primary)
    assert readme._transfer(reported, numbers, other, next(iter(other.modes))) == "—"


def test_a_page_marks_it_too():
    parts = [
        {"role": role, "arm": arm, "over": over, "n": 5, "difference": 0.1, "metric": "accuracy"}
        for role, arm, over in (("softness", "sham", "alone"), ("transfer", "taught", "sham"), ("", "x", "y"))
    ]
    claim = {"kind": "effect", "n": 5, "differences": [{"arm": "taught", "over": "alone"}]}
    assert site._is_own(parts[1], claim, parts)
    for other in ({"n": 4}, {"kind": "best"}, {"differences": []}, {"differences": [{"arm": "x", "over": "alone"}]}):
        assert not site._is_own(parts[1], claim | other, parts)
