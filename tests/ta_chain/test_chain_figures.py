"""The figure of the teaching assistants: the place of each measured number and of the reported one next to it."""

import pytest
from matplotlib import pyplot as plt

from kdlib.judge.reading import load_claims
from kdlib.report.roles import COLORS
from kdlib.run.experiment import load_experiment
from replications.ta_chain import figures
from tests.made_records import record

EXPERIMENT = load_experiment("ta_chain")
REPORTED = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
RECORDS = [
    *(record("direct", seed, value) for seed, value in enumerate((0.70, 0.72, 0.71))),
    record("direct_as_ta", 0, 0.73),
    record("ta_6", 0, 0.725),
    record("released_ta_6", 0, 0.715),
    record("sham", 0, 0.69),
    record("student_6_of_10", 0, 0.83),
    record("scratch_4", 0, 0.77),
    record("scratch_10", 0, 0.84),
]


@pytest.fixture
def drawing():
    yield figures.draw(RECORDS, REPORTED)
    plt.close("all")


def rows(drawing, panel, mark):
    found = drawing.data[(drawing.data["panel"] == panel) & (drawing.data["mark"] == mark)].to_dict("records")
    return [(row["series"].partition(",")[0], row["at"], row["value"]) for row in found]


CHAINS = "Student of 2, by assistant between it and the teacher of 10"


def test_text_and_code_have_their_own_numbers_of_the_assistants(drawing):
    assert rows(drawing, CHAINS, "mean") == [
        ("as described", "none", pytest.approx(71)),
        ("as described", "6", pytest.approx(72.5)),
        ("as released", "6", pytest.approx(71.5)),
        ("controlled or sham only", "none, twice as long", pytest.approx(73)),
        ("controlled or sham only", "sham", pytest.approx(69)),
    ]
    assert rows(drawing, CHAINS, "reported") == [
        ("as described", "none", pytest.approx(71.1)),
        ("as described", "6", pytest.approx(72.5)),
        ("as released", "6", pytest.approx(72.53)),
    ]


def test_places_without_records_are_left_out_and_modes_are_side_by_side(drawing):
    chains, scratch = drawing.figure.axes[0], drawing.figure.axes[1]
    assert [tick.get_text() for tick in chains.get_xticklabels()] == ["none", "6", "none, twice\nas long", "sham"]
    triangle = [line.get_xdata()[0] for line in chains.lines if line.get_marker() == "^"]
    square = [line.get_xdata()[0] for line in chains.lines if line.get_marker() == "s"]
    assert triangle == [1.2]
    assert square == [-0.2, 0.8, 2, 3]
    assert [tick.get_text() for tick in scratch.get_xticklabels()] == ["4", "10"]
    assert [line.get_xdata()[0] for line in scratch.lines if line.get_marker() == "s"] == [0, 1]  # one mode alone


def test_colours_are_those_of_the_roles(drawing):
    colors = {line.get_color() for line in drawing.figure.axes[0].lines if line.get_marker() == "o"}
    assert colors == {COLORS["distilled"], COLORS["sham"]}


def test_the_entropy_is_in_nats_and_has_no_reported_numbers(drawing):
    name = "How certain networks from scratch are"
    assert [value for _, _, value in rows(drawing, name, "mean")] == pytest.approx([0.23, 0.16])
    assert rows(drawing, name, "reported") == []
