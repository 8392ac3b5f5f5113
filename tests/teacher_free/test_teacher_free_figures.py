"""The figure of teacher-free distillation: the lines of its second panel."""

import pytest
from matplotlib import pyplot as plt

from kdlib.judge.reading import load_claims
from kdlib.report.panels import ACCURACY, Panel
from kdlib.run.experiment import load_experiment
from kdlib.run.records import measured
from replications.teacher_free import figures
from tests.made_records import record

EXPERIMENT = load_experiment("teacher_free")


def test_the_lines_show_the_numbers_of_records_and_source():
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    found = measured(
        [record("self_alpha_0_2_T_4", 0, 0.80), record("self_alpha_0_2_T_4", 1, 0.82), record("sham", 0, 0.75)]
    )
    panel = Panel(plt.figure().subplots(), "A panel", ACCURACY, found, reported)
    figures.against_temperature(panel)
    lines = {line.get_label(): line.get_xydata().tolist() for line in panel.axes.get_lines()}
    plt.close("all")
    assert lines["measured: a student, alpha 0.2"] == [[4, pytest.approx(81)]]
    assert lines["reported: a student, alpha 0.2"] == [
        [t, pytest.approx(v)] for t, v in ((2, 88.7), (4, 88.40), (6, 88.34), (8, 88.22), (10, 87.63))
    ]
    assert lines["reported: ResNet-18, alpha 0.6"][3] == [8, pytest.approx(89.41)]
    assert "measured: ResNet-18, alpha 0.6" not in lines
