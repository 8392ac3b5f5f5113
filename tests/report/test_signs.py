"""Differences are positive if the first arm does better, and maps survive cells without numbers."""

import pytest

from kdlib.judge.judging import values_of
from kdlib.report.frames import part_differences
from kdlib.report.pages import reported_of
from kdlib.run.experiment import load_experiment
from replications.grid import figures
from tests.made_records import records_of


@pytest.mark.parametrize(("name", "sign"), [("hinton", -1), ("mnist", 1)])
def test_the_parts_of_a_gain_are_positive_if_the_first_arm_does_better(name, sign):
    reported = reported_of(load_experiment(name))
    part = reported.part("transfer")
    assert part is not None
    metric = reported.primary.metric
    numbers = {part.arm: {0: {metric: 5.0}, 1: {metric: 2.0}}, part.rival: {0: {metric: 3.0}}}
    assert part_differences(part, numbers, reported.primary) == [sign * 2.0]


def test_paired_differences_are_of_the_seeds_that_both_arms_have():
    numbers = {"a": {2: {"errors": 5.0}, 0: {"errors": 4.0}, 1: {"accuracy": 1.0}}, "b": {0: {"errors": 7.0}, 1: {}}}
    assert list(values_of(numbers, "errors", "a").items()) == [(0, 4.0), (2, 5.0)]
    assert values_of(numbers, "errors", "a", "b") == {0: -3.0}
    assert values_of(numbers, "errors", "a", "b", lower_is_better=True) == {0: 3.0}
    assert values_of(numbers, "errors", "a", lower_is_better=True) == {0: 4.0, 2: 5.0}  # a value has no sign to turn
    assert values_of(numbers, "errors", "a", "c") == values_of(numbers, "errors", "c") == {}


def test_a_map_of_gains_without_its_baseline_is_empty_and_no_error():
    experiment = load_experiment("grid")
    cells = [arm.name for arm in experiment.arms if arm.name.startswith("alpha_")]
    records = records_of(cells, seeds=1)
    assert figures.draw(records, reported_of(experiment)) is not None
