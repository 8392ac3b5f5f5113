"""The figure of the binary loss: accuracy against alpha, the chosen alpha, the controls and the teacher."""

import pytest
from matplotlib import pyplot as plt

from kdlib.judge.reading import load_claims
from kdlib.run.experiment import load_experiment
from kdlib.run.records import measured
from replications.binary import figures
from tests.made_records import record

EXPERIMENT = load_experiment("binary")


def made(arm, seed, accuracy, validation=0.5):
    found = record(arm, seed, accuracy)
    found.metrics["final"]["validation_accuracy"] = validation
    return found


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_the_lines_show_means_over_the_seeds(axes):
    records = [
        made("alpha_0_0", 0, 0.70, 0.71),
        made("alpha_0_0", 1, 0.74, 0.75),
        made("alpha_0_5", 0, 0.60, 0.65),
        made("sham_alpha_0_5", 0, 0.55),
    ]
    figures.against_alpha(axes, measured(records), "alpha_0_5")
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["test"] == [[0, pytest.approx(72)], [0.5, pytest.approx(60)]]
    assert lines["validation, which chooses alpha"] == [[0, pytest.approx(73)], [0.5, pytest.approx(65)]]
    assert lines["best alpha: 0.5"] == [[0.5, pytest.approx(60)]]
    assert lines["sham"] == [[0.5 - 0.012, pytest.approx(55)]]
    assert "smoothed labels" not in lines


def test_the_teacher_is_a_line_at_its_mean(axes):
    figures.teacher_line(axes, measured([made("teacher", 0, 0.90), made("teacher", 1, 0.94)]))
    (line,) = axes.get_lines()
    assert line.get_ydata() == pytest.approx([92, 92])


def test_the_bars_are_the_claims_differences():
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    drawn = {(arm, rival) for _, arm, rival in figures.pairs("best_alpha")}
    claimed = {
        (*compared.arms, *compared.rivals) for claim in reported.claims.values() for compared in claim.modes.values()
    }
    assert drawn == claimed - {("best_alpha", "teacher")}
    found = {"best": {0: {"accuracy": 0.7}}, "teacher": {0: {"accuracy": 0.9}}}
    assert figures.below_teacher(found, "best").endswith("(C1): -20.0, not drawn")
    assert figures.below_teacher(found, None) == ""
    assert all(arm != "best_alpha" for _, arm, _ in figures.pairs(None))


def test_the_figure_is_drawn_of_some_records_and_of_all(tmp_path):
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    every = [
        made(arm.name, seed, 0.6 + 0.01 * place + 0.002 * seed)
        for place, arm in enumerate(EXPERIMENT.arms)
        for seed in (0, 1)
    ]
    for records in ([made("teacher", 0, 0.9)], [made("alpha_0_3", 0, 0.7)], every):
        path = tmp_path / "figure.png"
        figures.draw(records, reported, path)
        assert path.read_bytes().startswith(b"\x89PNG")
        path.unlink()
