"""The figure of teacher-free distillation: it shows the numbers of the records and of the source, and draws what there is."""

import pytest
from matplotlib import pyplot as plt

from kdlib.claims import load_reported
from kdlib.experiment import load_experiment
from kdlib.report.evidence import Record, measured
from replications.teacher_free import figures

EXPERIMENT = load_experiment("teacher_free")
ARMS = [arm.name for arm in EXPERIMENT.arms]
QUICK = EXPERIMENT.profile("quick").arms


@pytest.fixture(scope="module")
def reported():
    return load_reported(EXPERIMENT.folder / "reported.toml", ARMS)


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def record(arm, seed, accuracy):
    return Record("full", seed, f"{arm}{seed}", {arm: "final"}, "CIFAR-10", {"data": "d", "config": {}},
                  {"final": {"accuracy": accuracy}}, [], {}, "")


def records_of(arms, seeds=2):
    """Every arm at an accuracy of its own; the teacher has seed 0 only."""
    return [record(arm, seed, 0.5 + 0.004 * place + 0.002 * seed) for place, arm in enumerate(arms)
            for seed in range(1 if arm == "teacher" else seeds)]


@pytest.mark.parametrize("arms", [ARMS, QUICK, ["teacher"]], ids=["all", "quick", "teacher"])
def test_the_figure_is_written_for_whatever_is_recorded(tmp_path, reported, arms):
    figures.draw(records_of(arms), reported, tmp_path / "there" / "figure.png")
    assert (tmp_path / "there" / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_same_records_give_the_same_bytes_and_others_do_not(tmp_path, reported):
    records = records_of(QUICK)
    changed = [*records[:-1], record(QUICK[-1], 1, 0.9)]
    for name, group in (("first", records), ("again", records[::-1]), ("other", changed)):
        figures.draw(group, reported, tmp_path / f"{name}.png")
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("first", "again", "other"))
    assert first == again != other


def test_the_strip_and_the_lines_show_the_numbers_of_records_and_source(axes, reported):
    found = measured([record("self_alpha_0_2_T_4", 0, 0.80), record("self_alpha_0_2_T_4", 1, 0.82), record("sham", 0, 0.75)])
    figures.against_temperature(axes, found, reported)
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["measured: a student, alpha 0.2"] == [[4, pytest.approx(81)]]
    assert lines["reported: a student, alpha 0.2"] == [[t, pytest.approx(v)] for t, v in
                                                       ((2, 88.7), (4, 88.40), (6, 88.34), (8, 88.22), (10, 87.63))]
    assert lines["reported: ResNet-18, alpha 0.6"][3] == [8, pytest.approx(89.41)]
    assert "measured: ResNet-18, alpha 0.6" not in lines
    figures.strip(axes, found, reported)
    assert [5 - 0.1, pytest.approx(75)] in [point for line in axes.get_lines() for point in line.get_xydata().tolist()]
