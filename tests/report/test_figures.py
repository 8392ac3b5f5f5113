"""Figures are drawn for whatever is recorded, and show the numbers of the records and of the source."""

from importlib import import_module

import pytest
import scipy.stats
from matplotlib import pyplot as plt

from kdlib.claims import load_reported
from kdlib.experiment import load_experiment
from kdlib.report.evidence import measured
from kdlib.report.figures import bars, claim, differences, strip
from replications.grid.figures import STRIP
from tests.made_records import record, records_of


def reported_by(name):
    experiment = load_experiment(name)
    return load_reported(experiment.folder / "reported.toml", [arm.name for arm in experiment.arms])


@pytest.fixture(params=["grid", "mnist", "ta_chain", "teacher_free"])
def drawn(request, tmp_path):
    """The experiment, and its figure of some records as bytes."""
    name = request.param
    draw = import_module(f"replications.{name}.figures").draw
    reported, path = reported_by(name), tmp_path / "there" / "figure.png"

    def picture(records):
        draw(records, reported, path)
        return path.read_bytes()

    return load_experiment(name), picture


@pytest.mark.parametrize("recorded", ["all", "quick", "one"])
def test_the_figure_is_written_for_whatever_is_recorded(drawn, recorded):
    experiment, picture = drawn
    one = next((arm.name for arm in experiment.arms if arm.seed is not None), experiment.arms[0].name)  # of no difference
    arms = {"all": [arm.name for arm in experiment.arms], "quick": experiment.profile("quick").arms, "one": [one]}
    assert picture(records_of(arms[recorded]))[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("drawn", ["grid"], indirect=True)
def test_the_same_records_give_the_same_bytes_and_others_do_not(drawn):
    experiment, picture = drawn
    arms = experiment.profile("quick").arms
    records = records_of(arms)
    assert picture(records) == picture(records[::-1]) != picture([*records[:-1], record(arms[-1], 1, 0.9)])


def test_a_strip_has_a_dot_for_each_seed_and_the_reported_number():
    figure, axes = plt.subplots()
    found = measured([record("baseline_64", 0, 0.86), record("baseline_64", 1, 0.88), record("teacher", 0, 0.93)])
    strip(axes, found, reported_by("grid"), STRIP)
    dots = {mark: sorted(float(y) for line in axes.lines if line.get_marker() == mark for y in line.get_ydata())
            for mark in "oDs"}
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
