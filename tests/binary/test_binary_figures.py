"""The figure of the binary loss: accuracy against alpha, the chosen alpha, the controls and the teacher."""

import pytest
from matplotlib import pyplot as plt

from kdlib.judge.reading import load_claims
from kdlib.report.panels import ACCURACY, Panel
from kdlib.report.parts import colors_of
from kdlib.run.experiment import load_experiment
from kdlib.run.records import measured
from replications.binary import figures
from tests.made_records import record

EXPERIMENT = load_experiment("binary")
REPORTED = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])


def made(arm, seed, accuracy, validation=0.5):
    found = record(arm, seed, accuracy)
    found.metrics["final"]["validation_accuracy"] = validation
    return found


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_lines_show_means_over_the_seeds():
    records = [
        made("alpha_0_0", 0, 0.70, 0.71),
        made("alpha_0_0", 1, 0.74, 0.75),
        made("alpha_0_5", 0, 0.60, 0.65),
        made("sham_alpha_0_5", 0, 0.55),
    ]
    panel = Panel(plt.figure().subplots(), "A panel", ACCURACY, measured(records), REPORTED)
    figures.against_alpha(panel, "alpha_0_5", colors_of(EXPERIMENT.arms))
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.axes.get_lines()}
    assert lines["students, test"] == [[0, pytest.approx(72)], [0.5, pytest.approx(60)]]
    assert lines["students, validation"] == [[0, pytest.approx(73)], [0.5, pytest.approx(65)]]
    assert [x for x, _ in lines["best alpha: 0.5"]] == [0.5, 0.5]
    assert "sham" in lines
    assert "smoothed labels" not in lines
    rows = [(row["series"], row["at"], row["metric"], row["value"]) for row in panel.rows if row["mark"] == "mean"]
    assert rows == [
        ("students", "alpha 0", "accuracy", pytest.approx(72)),
        ("students", "alpha 0.5", "accuracy", pytest.approx(60)),
        ("students, validation", "alpha 0", "validation_accuracy", pytest.approx(73)),
        ("students, validation", "alpha 0.5", "validation_accuracy", pytest.approx(65)),
        ("sham", "alpha 0.5", "accuracy", pytest.approx(55)),
    ]


def test_the_bars_are_the_claims_differences():
    drawn = {(arm, rival) for _, arm, rival in figures.pairs("best_alpha")}
    claimed = {
        (*compared.arms, *compared.rivals) for claim in REPORTED.claims.values() for compared in claim.modes.values()
    }
    assert drawn == claimed - {("best_alpha", "teacher")}
    assert all(arm != "best_alpha" for _, arm, _ in figures.pairs(None))


def test_the_figure_has_the_panels_that_its_records_fill():
    every = [
        made(arm.name, seed, 0.6 + 0.01 * place + 0.002 * seed)
        for place, arm in enumerate(EXPERIMENT.arms)
        for seed in (0, 1)
    ]
    panels = [set(figures.draw(records, REPORTED).data["panel"]) for records in ([made("teacher", 0, 0.9)], every)]
    assert [len(names) for names in panels] == [1, 3]
    assert figures.draw([made("alpha_0_3", 0, 0.7)], REPORTED) is None
