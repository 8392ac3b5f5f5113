"""The figure of the teaching assistants: the place of each measured number and of the reported one next to it."""

import pytest
import scipy.stats
from matplotlib.colors import to_hex

from kdlib.judge.reading import load_claims
from kdlib.run.experiment import load_experiment
from replications.ta_chain import figures
from tests.made_records import record

EXPERIMENT = load_experiment("ta_chain")


@pytest.fixture
def axes(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    records = [
        *(record("direct", seed, value) for seed, value in enumerate((0.70, 0.72, 0.71))),
        record("direct_as_ta", 0, 0.73),
        record("direct_as_ta", 1, 0.73),
        record("sham", 0, 0.69),
        record("released_2_of_10", 0, 0.695),
        record("student_6_of_10", 0, 0.83),
        record("scratch_4", 0, 0.77),
    ]
    figures.draw(records, reported, tmp_path / "figure.png")
    return drawn[0].axes


def marks(axes, mark, color):
    """The marks of a colour, as (x to the nearest place, y)."""
    return sorted(
        (round(float(line.get_xdata()[0])), float(y))
        for line in axes.get_lines()
        if line.get_marker() == mark and to_hex(line.get_color()) == to_hex(color) and len(line.get_xdata())
        for y in line.get_ydata()[:1]
    )


def test_text_and_code_have_their_own_numbers_of_the_assistants(axes):
    text, code = [71.1, 71.5, 72.5, 72.1, 72.21], [69.90, 71.54, 72.53, 72.18, 72.21]
    assert marks(axes[3], "*", figures.DESCRIBED) == [(place, pytest.approx(value)) for place, value in enumerate(text)]
    assert marks(axes[3], "*", figures.RELEASED) == [(place, pytest.approx(value)) for place, value in enumerate(code)]


def test_means_intervals_and_controls_stand_in_their_places(axes):
    chains = axes[3]
    assert marks(chains, "o", figures.DESCRIBED) == [(0, pytest.approx(71))]
    assert marks(chains, "o", figures.RELEASED) == [(0, pytest.approx(69.5))]
    assert marks(chains, "o", figures.CONTROL) == [(5, pytest.approx(73)), (7, pytest.approx(69))]
    assert [tick.get_text() for tick in chains.get_xticklabels()][5::2] == ["none,\ntwice\nas long", "sham"]
    (interval,) = (line for line in chains.get_lines() if line.get_linestyle() == "-" and len(line.get_xdata()) == 2)
    assert list(interval.get_ydata()) == pytest.approx(scipy.stats.t.interval(0.95, 2, 71, 3**-0.5))


def test_every_panel_shows_its_arms(axes):
    scratch, taught, by_size, _, certainty, _ = axes
    assert marks(scratch, "o", figures.DESCRIBED) == [(4, pytest.approx(77))]
    assert marks(taught, "o", figures.DESCRIBED) == [(6, pytest.approx(83))]
    assert marks(by_size, "o", figures.RELEASED) == [(10, pytest.approx(69.5))]
    assert marks(certainty, "o", figures.DESCRIBED) == [(4, pytest.approx(1 - 0.77))]
    assert marks(taught, "*", figures.RELEASED) == [
        (n, pytest.approx(value)) for n, value in ((2, 69.90), (4, 79.50), (6, 83.49), (8, 83.86))
    ]
