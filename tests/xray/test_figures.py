"""The sheet of views shows the bank's own pictures, and sessions draw it."""

import numpy as np
import pytest

from kdlib.report.pages import Page, draw_pictures
from kdlib.run.experiment import load_experiment
from replications.xray import experiment as xray
from replications.xray import figures


def test_the_sheet_shows_two_pictures_of_each_class_in_all_their_views(monkeypatch, tmp_path):
    data, drawn = xray.load_data(xray.SMOKE, {}), []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append((figure, path)))
    draw_pictures(load_experiment("xray"), data, [Page("sheet", "", {}, [])], tmp_path)
    ((figure, path),) = drawn
    assert path == tmp_path / "sheet-data.png"
    shown = [axes.images[0].get_array() for axes in figure.axes]
    rows = [row for label in range(3) for row in np.flatnonzero(data.train.labels == label)[: 2 * data.views]]
    assert len(shown) == 12
    for picture, row in zip(shown, rows, strict=True):
        np.testing.assert_array_equal(picture, data.train.inputs[row, 0])
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == [
        "normal", "normal", "bacteria", "bacteria", "virus", "virus"]  # fmt: skip


@pytest.mark.parametrize("name", ["mnist"])
def test_other_replications_draw_no_data(name, tmp_path):
    draw_pictures(load_experiment(name), None, [Page("sheet", "", {}, [])], tmp_path)
    assert not list(tmp_path.iterdir())
