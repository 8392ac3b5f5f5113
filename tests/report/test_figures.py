"""Figures are drawn for any records that there are, and show their numbers and those of the source."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import scipy.stats
from matplotlib import pyplot as plt

from kdlib.report.figures import bars, claim, differences, strip
from kdlib.report.pages import reported_of
from kdlib.run.experiment import load_experiment, replications
from kdlib.run.records import Record, measured
from replications.grid.figures import STRIP
from tests.made_records import record

ROOT = Path(__file__).parents[2]


def reported_by(name):
    return reported_of(load_experiment(name))


DRAWN = [
    name
    for name in replications(ROOT)
    if (ROOT / "replications" / name / "figures.py").exists() and (ROOT / "results" / name / "runs.jsonl").exists()
]


@pytest.fixture(params=DRAWN)
def drawn(request, tmp_path):
    """An experiment, a function that draws records and returns the file's bytes, and one that makes records up."""
    name = request.param
    draw = import_module(f"replications.{name}.figures").draw
    reported, path = reported_by(name), tmp_path / "there" / "figure.png"
    with (ROOT / "results" / name / "runs.jsonl").open() as file:
        pattern = Record(**json.loads(file.readline()))
    (*_, metrics) = pattern.metrics.values()

    def picture(records):
        draw(records, reported, path)
        return path.read_bytes()

    def made(arms, seeds=2, shift=0.0):
        """Records like a committed one, with other numbers for every arm; one record of an arm with a fixed seed."""
        records = []
        for place, arm in enumerate(arms):
            for seed in range(1 if arm == "teacher" else seeds):
                share = 0.5 + 0.004 * place + 0.002 * seed + shift
                numbers = {**metrics, "accuracy": share, "macro_f1": share, "entropy": 1 - share}
                records.append(replace(pattern, seed=seed, arms={arm: "final"}, metrics={"final": numbers}))
        return records

    return load_experiment(name), picture, made


@pytest.mark.parametrize("recorded", ["all", "quick", "one"])
def test_the_figure_is_written_for_any_records(drawn, recorded):
    experiment, picture, made = drawn
    every = [arm.name for arm in experiment.arms]
    one = next((arm.name for arm in experiment.arms if arm.seed is not None), every[0])  # without any difference
    arms = {"all": every, "quick": experiment.arms_of(experiment.profile("quick")), "one": [one]}
    assert picture(made(arms[recorded]))[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_same_records_give_the_same_bytes_and_others_do_not(drawn):
    experiment, picture, made = drawn
    arms = experiment.arms_of(experiment.profile("quick"))
    records = made(arms)
    assert picture(records) == picture(records[::-1]) != picture([*records[:-2], *made(arms, shift=0.1)[-2:]])


def test_a_strip_has_a_dot_for_each_seed_and_the_reported_number():
    figure, axes = plt.subplots()
    found = measured([record("baseline_64", 0, 0.86), record("baseline_64", 1, 0.88), record("teacher", 0, 0.93)])
    strip(axes, found, reported_by("grid"), STRIP)
    dots = {
        mark: sorted(float(y) for line in axes.lines if line.get_marker() == mark for y in line.get_ydata())
        for mark in "oDs"
    }
    places = {round(float(x)) for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()}
    plt.close(figure)
    assert dots["o"] == pytest.approx([86, 88, 93])
    assert dots["s"] == pytest.approx([87, 93])
    assert dots["D"] == pytest.approx([87.25, 87.25, 89.35, 89.41, 93.5])
    assert [STRIP[place][0] for place in sorted(places)] == ["teacher", "baseline_64"]


def test_bars_are_of_paired_differences_with_their_interval_and_seeds():
    accuracy = {"student": {0: 0.90, 1: 0.93, 2: 0.95, 7: 0.10}, "alone": {2: 0.93, 1: 0.90, 0: 0.89}}
    found = {arm: {seed: {"accuracy": value} for seed, value in seeds.items()} for arm, seeds in accuracy.items()}
    pairs = [("student, over alone", "student", "alone"), ("student, over nobody", "student", "nobody")]
    values = differences(found, "accuracy", pairs, scale=100)
    assert list(values) == ["student, over alone"]
    assert values["student, over alone"] == pytest.approx([1, 3, 2])  # of the seeds that both have, in their order
    figure, axes = plt.subplots()
    bars(axes, values, "points", "What it adds")
    claim(axes, 2.5, "student over alone")
    dots, interval, _, claimed = (line.get_xdata() for line in axes.lines)
    plt.close(figure)
    assert list(dots) == pytest.approx([1, 3, 2])
    assert list(interval) == pytest.approx(scipy.stats.t.interval(0.95, 2, 2, 1 / 3**0.5))
    assert list(claimed) == [2.5, 2.5]
    assert axes.get_xlabel() == "points\ndashed: reported, student over alone"
    assert axes.patches[0].get_width() == pytest.approx(2)
