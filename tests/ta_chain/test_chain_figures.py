"""The figure of the teaching assistants: which reported number stands beside which arm."""

import pytest

from kdlib.claims import load_reported
from kdlib.experiment import load_experiment
from replications.ta_chain import figures
from tests.made_records import record

EXPERIMENT = load_experiment("ta_chain")
TEXT, CODE = figures.REPORTED.values()


@pytest.mark.parametrize("released", [False, True])
def test_text_and_code_have_their_own_numbers_of_the_assistants(released, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    reported = load_reported(EXPERIMENT.folder / "reported.toml", [arm.name for arm in EXPERIMENT.arms])
    records = [record("direct", 0, 0.70), record("direct", 1, 0.72), record("direct_as_ta", 0, 0.73)]
    figures.draw([*records, record("released_2_of_10", 0, 0.69)] if released else records, reported, tmp_path / "figure.png")
    lines = {line.get_label(): line for line in drawn[0].axes[2].get_lines()}
    assert list(lines[TEXT].get_ydata()) == pytest.approx([71.1, 71.5, 72.5, 72.1, 72.21])
    assert (CODE in lines) == released
    if released:
        assert list(lines[CODE].get_ydata()) == pytest.approx([69.90, 71.54, 72.53, 72.18, 72.21])
    assert lines["as described, controlled (n = 2)"].get_ydata()[0] == pytest.approx(71)
    assert lines["direct_as_ta (n = 1)"].get_ydata()[0] == pytest.approx(73)
