"""The front picture: which comparison is shown, which parts are steps of it, and what is said where nothing is run."""

import pytest
from matplotlib import pyplot as plt

from kdlib.judge.reading import load_claims
from kdlib.report.front import _row, _steps
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
    assert "transfer proper (of other arms) +1.00; the gain is not run." in text
    cells = {text.get_text() for axes in draw(rows).axes for text in axes.texts}
    plt.close("all")
    assert {"reported above 0", "measured: not run", "no such arms", "not run", "+1.00"} <= cells
