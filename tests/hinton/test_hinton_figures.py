"""The figure of Hinton's experiments: points, curves, frames and the contact sheet show the numbers of the records."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from kdlib.judge.reading import load_claims
from kdlib.report import pages
from kdlib.report.panels import Panel
from kdlib.run.experiment import load_experiment
from kdlib.run.records import Record, measured
from replications.hinton import figures

EXPERIMENT = load_experiment("hinton")


def record(arm, seed, snapshot="final", **metrics):
    return Record(
        "quick",
        seed,
        f"{arm}{seed}",
        {arm: snapshot},
        "MNIST",
        {"data": "d", "config": {}},
        {snapshot: metrics},
        [],
        {},
        "",
    )


RECORDS = [
    record("width_30_T_4", 0, errors=400),
    record("width_30_T_4", 1, errors=420),
    record("width_30_T_8", 0, errors=500),
    record("distilled", 0, errors=80),
    record("no_threes", 0, errors=200, curve=[[-1, 300], [0, 200], [1, 150]]),
    record("no_threes_corrected", 0, "corrected", errors=110, bias=2.5, right_threes=[1, 3]),
    record("no_threes_matched", 0, "matched", errors=190, bias=0.1),
    record("generalist", 0, accuracy=0.5, covariance=np.diag(np.arange(10.0)).tolist()),
    record("specialist_0", 0, accuracy=0.5, subset=[3, 5, 7]),
    record("specialist_1", 0, accuracy=0.5, subset=[1, 9]),
]


def panel(quantity):
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    return Panel(plt.figure().subplots(), "A panel", quantity, measured(RECORDS), reported)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_errors_against_temperature_are_means_by_width():
    there = panel(figures.ERRORS)
    figures.against_temperature(there)
    lines = {line.get_label(): line.get_xydata().tolist() for line in there.axes.get_lines()}
    assert lines["30 units"] == [[4, 410], [8, 500]]
    assert lines["800 units"] == [[20, 80]]
    assert "300 units" not in lines


def test_the_curve_of_the_bias_and_the_two_chosen_points():
    there = panel(figures.ERRORS)
    figures.against_bias(there, RECORDS)
    curve, test, matched = (line.get_xydata().tolist() for line in there.axes.get_lines())
    assert curve == [[-1, 300], [0, 200], [1, 150]]
    assert (test, matched) == ([[2.5, 110]], [[pytest.approx(0.1), 190]])
    rows = [(row["mark"], row["arm"], row["at"], row["value"]) for row in there.rows]
    assert rows == [
        ("bias", "no_threes", "-1", 300),
        ("bias", "no_threes", "0", 200),
        ("bias", "no_threes", "1", 150),
        ("seed", "no_threes_corrected", "2.5", 110),
        ("seed", "no_threes_matched", "0.1", 190),
    ]


def test_frames_are_around_the_classes_of_the_specialists():
    there = panel(figures.COVARIANCE)
    figures.clusters(there, RECORDS)
    frames = [(patch.get_xy(), patch.get_width()) for patch in there.axes.patches if isinstance(patch, Rectangle)]
    assert frames == [((-0.5, -0.5), 3), ((2.5, 2.5), 2)]
    labels = [label.get_text() for label in there.axes.get_xticklabels()]
    assert labels[:5] == ["cat", "dog", "horse", "automobile", "truck"]
    assert len({*labels}) == 10
    values = there.axes.collections[0].get_array().reshape(10, 10)
    assert (values.diagonal()[:5] == [3000, 5000, 7000, 1000, 9000]).all()
    assert [row["value"] for row in there.rows if row["at"] == "horse, horse"] == [7000]


def test_the_whole_figure_and_the_sheet_are_drawn(tmp_path):
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    drawing = figures.draw(RECORDS, reported)
    assert len([axes for axes in drawing.figure.axes if axes.get_title()]) == 4
    digits = np.zeros((4, 1, 28, 28), np.uint8)
    digits[3] = 255
    figures.contact_sheet(RECORDS, digits, tmp_path / "sheet.png")
    assert (image.imread(tmp_path / "sheet.png")[..., 0] < 0.1).mean() == pytest.approx(0.01, abs=0.005)


def test_nothing_is_drawn_of_arms_without_records():
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    drawing = figures.draw([RECORDS[3]], reported)
    assert {*drawing.data["panel"]} == {"Main arms"}


def test_pictures_of_the_data_are_for_a_folder_that_git_ignores(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "contact_sheet", lambda *_: pytest.fail("a picture is drawn"))
    page = pages.Page("full", "", {}, RECORDS[3:4])
    monkeypatch.setattr(pages, "page_of", lambda *_, **__: page)
    pages.write_pages(EXPERIMENT, RECORDS[3:4], tmp_path, committed=[], synthetic=False)
    assert not list(tmp_path.glob("*-pictures.png"))
    data = SimpleNamespace(synthetic=False, test=SimpleNamespace(inputs=torch.zeros(1, dtype=torch.uint8)))
    with pytest.raises(pytest.fail.Exception):
        pages.draw_pictures(EXPERIMENT, data, [page], tmp_path)
    pages.draw_pictures(EXPERIMENT, SimpleNamespace(synthetic=True), [page], tmp_path)
