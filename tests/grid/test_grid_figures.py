"""The grid's figure: it shows the numbers of the records and of the source, and draws what there is."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import Normalize

from kdlib.judge.reading import load_claims
from kdlib.report.figures import heat, maps, means, reported_means
from kdlib.run.experiment import load_experiment
from kdlib.run.records import measured
from replications.course_report.cifar import ALPHAS, TEMPERATURES
from replications.grid import figures
from tests.made_records import record, records_of

EXPERIMENT = load_experiment("grid")
ARMS = [arm.name for arm in EXPERIMENT.arms]


@pytest.fixture(scope="module")
def reported():
    return load_claims(EXPERIMENT.folder / "claims.toml", ARMS)


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_cells_are_means_over_the_seeds_in_percent():
    found = measured(
        [
            record("alpha_0_6_T_8", 0, 0.89),
            record("alpha_0_6_T_8", 1, 0.90),
            record("alpha_1_0_T_2", 3, 0.87),
            record("baseline", 0, 0.80),
            record("validated_alpha_0_2_T_2", 0, 0.70),
        ]
    )
    cells = means(found, figures.ARMS)
    assert cells.shape == (5, 5)
    assert cells[2, 3] == pytest.approx(89.5)
    assert cells[4, 0] == pytest.approx(87)
    assert np.isnan(cells).sum() == 23


def test_the_maps_are_measured_reported_and_their_difference(reported):
    found = measured(
        [record("alpha_0_6_T_8", 0, 0.89), record("alpha_0_6_T_8", 1, 0.90), record("alpha_1_0_T_2", 3, 0.87)]
    )
    figure, axes = plt.subplots(1, 3)
    maps(axes, found, reported, figures.ARMS, (ALPHAS, TEMPERATURES))
    assert axes[0].get_title() == "measured: 2 of 25 cells recorded, n = 1 to 2"
    assert sorted(text.get_text() for text in axes[0].texts) == ["87.00", "89.50"]
    assert len(axes[1].texts) == 25
    assert sorted(text.get_text() for text in axes[2].texts) == ["+0.09", "-0.05"]
    plt.close(figure)


def test_the_best_cell_over_the_baseline_is_framed(axes):
    found = measured(
        [
            record("alpha_0_6_T_8", 0, 0.85),
            record("alpha_1_0_T_2", 0, 0.87),
            record("alpha_0_2_T_2", 0, 0.79),
            record("baseline", 0, 0.80),
            record("baseline_64", 0, 0.60),
        ]
    )
    figures.over_baseline(axes, found)
    assert sorted(text.get_text() for text in axes.texts) == ["+5.00", "+7.00", "-1.00"]
    (frame,) = axes.patches
    assert frame.get_xy() == (-0.5, 3.5)  # T 2, alpha 1


def test_reported_cells_are_those_of_the_heat_map(reported):
    # The report's heat map (section 4.3; its notebook's digits): alpha 0.2 to 1 down, T 2 to 10 across.
    assert reported_means(reported, figures.ARMS) == pytest.approx(
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


def test_a_heat_map_says_each_number_at_its_alpha_and_t(axes):
    values = np.full((5, 5), np.nan)
    values[2, 3], values[4, 0] = 89.5, 87
    heat(axes, values, (ALPHAS, TEMPERATURES), "", "viridis", Normalize(80, 90))
    columns, rows = ([tick.get_text() for tick in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels()))
    shown = {
        (rows[round(y)], columns[round(x)]): text.get_text() for text in axes.texts for x, y in [text.get_position()]
    }
    assert shown == {("0.6", "8"): "89.50", ("1.0", "2"): "87.00"}
    assert axes.images[0].get_array().mask.sum() == 23
    assert axes.patch.get_hatch()


def test_the_curves_are_of_the_shares_and_end_in_the_grids_arms(axes, reported):
    found = measured(records_of(ARMS, seeds=1))
    figures.amount(axes, found, reported)
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    shares = (5, 10, 15, 25, 50, 75)
    for label, part, whole in (
        ("from scratch (n = 1)", "baseline", "baseline"),
        ("distilled, alpha 0.6, T 8 (n = 1)", "distilled", "alpha_0_6_T_8"),
    ):
        expected = [[p, 100 * found[f"{part}_{p}_percent"][0]["accuracy"]] for p in shares]
        assert lines[label] == [pytest.approx(point) for point in [*expected, [100, 100 * found[whole][0]["accuracy"]]]]
    theirs = [y for _, y in lines["reported, distilled"]]
    assert theirs == pytest.approx([68.11, 73.01, 77.82, 82.22, 86.44, 88.26, 89.41])
