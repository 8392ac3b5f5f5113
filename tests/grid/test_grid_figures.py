"""The grid's figure: its cells are those of the report's heat map, and its curves are of the shares."""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from kdlib.judge.reading import load_claims
from kdlib.report.panels import ACCURACY, Panel
from kdlib.report.parts import colors_of
from kdlib.run.experiment import load_experiment
from kdlib.run.records import measured
from replications.grid import figures
from tests.made_records import records_of

EXPERIMENT = load_experiment("grid")
ARMS = [arm.name for arm in EXPERIMENT.arms]
REPORTED = load_claims(EXPERIMENT.folder / "claims.toml", ARMS)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_reported_cells_are_those_of_the_heat_map():
    # The report's heat map (section 4.3; its notebook's digits): alpha 0.2 to 1 down, T 2 to 10 across.
    drawing = figures.draw(records_of(ARMS, seeds=1), REPORTED)
    cells = drawing.data[drawing.data["panel"] == "reported: accuracy on test (%), one run a cell"]
    assert [*cells["at"][:2], *cells["at"][-1:]] == ["alpha 0.2, T 2", "alpha 0.2, T 4", "alpha 1.0, T 10"]
    assert cells["value"].to_numpy(float).reshape(5, 5) == pytest.approx(
        np.array(
            [
                [86.42, 87.84, 88.49, 88.79, 88.49],
                [87.65, 87.94, 88.65, 89.26, 89.13],
                [86.56, 88.30, 88.24, 89.41, 89.09],
                [87.41, 88.26, 88.90, 88.61, 88.54],
                [87.05, 88.11, 89.15, 89.35, 89.29],
            ]
        )
    )


def test_the_curves_are_of_the_shares_and_end_in_the_grids_arms():
    found = measured(records_of(ARMS, seeds=1))
    panel = Panel(plt.figure().subplots(), "A panel", ACCURACY, found, REPORTED)
    figures.amount(panel, colors_of(EXPERIMENT.arms))
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.axes.lines}
    shares = (5, 10, 15, 25, 50, 75)
    for label, part, whole in (("from scratch", "baseline", "baseline"), ("distilled", "distilled", "alpha_0_6_T_8")):
        expected = [[p, 100 * found[f"{part}_{p}_percent"][0]["accuracy"]] for p in shares]
        assert lines[label] == [pytest.approx(point) for point in [*expected, [100, 100 * found[whole][0]["accuracy"]]]]
    theirs = [y for _, y in lines["reported, distilled"]]
    assert theirs == pytest.approx([68.11, 73.01, 77.82, 82.22, 86.44, 88.26, 89.41])
