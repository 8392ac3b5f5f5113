"""Figures are drawn for any records that there are; what they draw is also in their table and text alternative."""

import csv
import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib import pyplot as plt

from kdlib.report.figures import Part, compose, files_of
from kdlib.report.pages import reported_of
from kdlib.report.panels import ACCURACY, GAIN, MOST, Panel, Quantity, Spot
from kdlib.report.parts import OTHERS, colors_of, differences, maps, strip
from kdlib.report.roles import COLORS
from kdlib.run.experiment import load_experiment, replications
from kdlib.run.records import Record, measured
from tests.made_records import record

ROOT = Path(__file__).parents[2]


def write(drawing, folder):
    folder.mkdir(exist_ok=True)
    for name, content in files_of(drawing, "quick").items():
        (folder / name).write_bytes(content)


def reported_by(name):
    return reported_of(load_experiment(name))


@pytest.fixture
def close():
    yield
    plt.close("all")


RECORDED = [name for name in replications(ROOT) if (ROOT / "results" / name / "runs.jsonl").exists()]
DRAWN = [name for name in RECORDED if (ROOT / "replications" / name / "figures.py").exists()]


@pytest.fixture(params=DRAWN)
def drawn(request):
    """An experiment, a function that draws records, and one that makes records up."""
    name = request.param
    draw, reported = import_module(f"replications.{name}.figures").draw, reported_by(name)
    with (ROOT / "results" / name / "runs.jsonl").open() as file:
        lines = [Record(**json.loads(line)) for line in file]
    metric = reported.primary.metric
    usual = next(line for line in lines if any(metric in found for found in line.metrics.values()))
    of_arm = {arm: (line, snapshot) for line in reversed(lines) for arm, snapshot in line.arms.items()}

    def made(arms, seeds=2, shift=0.0):
        """Records like the committed ones, with other numbers for every arm; one of an arm with a fixed seed."""
        records = []
        for place, arm in enumerate(arms):
            line, snapshot = of_arm.get(arm, (usual, [*usual.metrics][-1]))
            for seed in range(1 if arm == "teacher" else seeds):
                share = 0.5 + 0.004 * place + 0.002 * seed + shift
                numbers = {**line.metrics[snapshot], "accuracy": share, "macro_f1": share, "entropy": 1 - share}
                if "errors" in numbers:
                    numbers["errors"] = round(10_000 * (1 - share))
                records.append(
                    replace(usual, seed=seed, arms={arm: snapshot}, metrics={snapshot: numbers}, parents=line.parents)
                )
        return records

    yield load_experiment(name), lambda records: draw(records, reported), made
    plt.close("all")


@pytest.mark.parametrize(("chosen", "seeds"), [("all", 3), ("quick", 1), ("one", 1)])
def test_a_figure_has_no_empty_panel_and_a_table_of_its_seeds(drawn, chosen, seeds):
    experiment, draw, made = drawn
    every = [arm.name for arm in experiment.arms]
    one = next((arm.name for arm in experiment.arms if arm.seed is not None), every[0])  # without any difference
    records = made(
        {"all": every, "quick": experiment.arms_of(experiment.profile("quick")), "one": [one]}[chosen], seeds
    )
    drawing = draw(records)
    if drawing is None:  # a single arm that no panel is about
        assert chosen == "one"
        return
    panels = [axes for axes in drawing.figure.axes if axes.get_title()]
    assert panels
    assert all(axes.has_data() for axes in panels)
    assert {" ".join(axes.get_title().split()) for axes in panels} == {*drawing.data["panel"]}
    metrics = measured(records)
    for row in drawing.data[drawing.data["mark"] == "seed"].to_dict("records"):
        value = metrics[row["arm"]][row["seed"]][row["metric"]]
        other = metrics[row["over"]][row["seed"]][row["metric"]] if row["over"] else 0
        factor = -1 if row["quantity"].startswith("fewer") else 100 if re.search("%|points", row["quantity"]) else 1
        assert row["value"] == pytest.approx(factor * (value - other))
    assert (drawing.data["low"] != "").any() or seeds == 1
    assert not drawing.data[(drawing.data["mark"] == "mean") & (drawing.data["low"] != "")].size or seeds == 3


@pytest.mark.slow
def test_the_same_records_give_the_same_bytes_and_others_do_not(drawn, tmp_path):
    experiment, draw, made = drawn
    arms = experiment.arms_of(experiment.profile("quick"))
    records = made(arms)

    def files(records, name):
        write(draw(records), tmp_path / name)
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    first, again = files(records, "a"), files(records[::-1], "b")
    others = files(made(arms, shift=0.1), "c")
    assert [*first] == ["quick-figure.csv", "quick-figure.txt", "quick.png", "quick.svg"]
    assert first == again
    assert not {name for name in others if others[name] == first[name]} - {"quick-figure.txt"}
    assert first["quick.png"][:8] == b"\x89PNG\r\n\x1a\n"
    assert b"<svg" in first["quick.svg"]
    assert not re.search(rb"<dc:date>|<dc:creator>|<image", first["quick.svg"])  # no date, no version, no pixels
    assert first["quick-figure.txt"].count(b"\n") == 1


def panel(quantity=ACCURACY, found=None, name="grid", **more):
    return Panel(plt.figure().subplots(), "A panel", quantity, found or {}, reported_by(name), **more)


def metrics_of(**arms):
    return {arm: {seed: {"accuracy": value} for seed, value in seeds.items()} for arm, seeds in arms.items()}


def test_an_arm_is_its_seeds_their_mean_and_from_three_seeds_on_its_interval(close):
    there = panel(found=metrics_of(two={0: 0.5, 1: 0.7}, three={0: 0.90, 1: 0.93, 4: 0.96}))
    for place, arm in enumerate(("two", "three", "none")):
        there.arm(Spot(arm, place, arm, "black"))
    rows = [(row["arm"], row["mark"], row["seed"], row["value"], row["n"]) for row in there.rows]
    assert rows == [
        ("two", "seed", 0, pytest.approx(50), ""),
        ("two", "seed", 1, pytest.approx(70), ""),
        ("two", "mean", "", pytest.approx(60), 2),
        ("three", "seed", 0, pytest.approx(90), ""),
        ("three", "seed", 1, pytest.approx(93), ""),
        ("three", "seed", 4, pytest.approx(96), ""),
        ("three", "mean", "", pytest.approx(93), 3),
    ]
    low, high = scipy.stats.t.interval(0.95, 2, 93, 3 / 3**0.5)
    assert [(row["low"], row["high"]) for row in there.rows if row["mark"] == "mean"] == [
        ("", ""),
        (pytest.approx(low), pytest.approx(high)),
    ]
    (line,) = (line for line in there.axes.lines if line.get_linestyle() == "-")
    assert list(line.get_ydata()) == pytest.approx([low, high])
    dots = sorted(float(y) for line in there.axes.lines if line.get_marker() == "o" for y in line.get_ydata())
    assert dots == pytest.approx([50, 70, 90, 93, 96])


def test_the_sources_number_has_the_range_of_a_mean_of_our_runs(close):
    there = panel(found=metrics_of(baseline={seed: 0.98 for seed in range(4)}), name="mnist")
    assert there.theirs(Spot("baseline", 0, "baseline", "black")) == pytest.approx(98.60)
    (row,) = there.rows
    value = there.reported.value("baseline", "accuracy")
    half = (
        scipy.stats.t.ppf(0.975, value.runs - 1) * value.std * (1 / 4 + 1 / value.runs) ** 0.5
        + 0.5 * 10**-value.decimals
    )
    assert (row["low"], row["high"]) == (pytest.approx(98.60 - 100 * half), pytest.approx(98.60 + 100 * half))
    assert there.theirs(Spot("sham", 0, "sham", "black")) is None
    assert len(there.rows) == 1


def test_a_strip_leaves_out_arms_without_records(close):
    found = measured([record("baseline_64", 0, 0.86), record("baseline_64", 1, 0.88), record("teacher", 0, 0.93)])
    shown = [("teacher", "the\nteacher"), ("baseline", "from scratch"), ("baseline_64", "batch 64")]
    colors = colors_of(load_experiment("grid").arms)
    drawing = compose([(3, [strip("Arms", ACCURACY, shown, colors)])], found, reported_by("grid"))
    (axes,) = (axes for axes in drawing.figure.axes if axes.get_title())
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["the\nteacher", "batch 64"]
    means = {row["at"]: row["value"] for row in drawing.data.to_dict("records") if row["mark"] == "mean"}
    assert means == {"the teacher": pytest.approx(93), "batch 64": pytest.approx(87)}
    theirs = sorted(row["value"] for row in drawing.data.to_dict("records") if row["mark"] == "reported")
    assert theirs == pytest.approx([87.25, 93.5])
    assert drawing.alt == (
        "Arms. Means over the seeds, accuracy on test (%): the teacher: 93.00 (reported 93.50); "
        "batch 64: 87.00 (reported 87.25)."
    )
    legends = [text.get_text() for legend in drawing.figure.subfigs[-1].legends for text in legend.get_texts()]
    assert legends == ["teacher", "baseline", "a seed", "mean of the seeds", "reported"]


def of_any_arm():
    """Reported numbers of an experiment that does not say its arms."""
    return replace(reported_by("grid"), arms=(), metrics=())


def test_differences_are_paired_and_in_the_colour_of_the_arms_role(close):
    found = metrics_of(student={0: 0.90, 1: 0.93, 2: 0.95, 7: 0.10}, alone={2: 0.93, 1: 0.90, 0: 0.89})
    pairs = [("student, over alone", "student", "alone"), ("student, over nobody", "student", "nobody")]
    part = differences("What it adds", GAIN, pairs, found, {"student": "red"}, ("student over alone", "a", "b", 0.025))
    drawing = compose([(3, [part])], found, of_any_arm())
    rows = drawing.data.to_dict("records")
    assert [row["value"] for row in rows if row["mark"] == "seed"] == pytest.approx([1, 3, 2])  # seeds of both
    (mean,) = (row for row in rows if row["mark"] == "mean")
    assert (mean["low"], mean["high"]) == pytest.approx(scipy.stats.t.interval(0.95, 2, 2, 1 / 3**0.5))
    axes = drawing.figure.axes[0]
    assert axes.patches[0].get_width() == pytest.approx(2)
    assert axes.patches[0].get_facecolor()[:3] == (1, 0, 0)
    assert axes.get_xlabel() == "difference of accuracy on test (points)\ndashed: reported, student over alone"
    (claimed,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert list(claimed.get_xdata()) == [2.5, 2.5]


def test_a_curve_is_the_mean_of_the_seeds_that_still_train_at_a_hundred_epochs_at_most(close):
    there = panel(Quantity("loss", "loss"))
    there.curve("student", {0: list(range(1000)), 1: [2 * n for n in range(500)]}, "black")
    rows = {row["at"]: row for row in there.rows}
    assert len(rows) == MOST
    assert (next(iter(rows)), [*rows][-1]) == ("1", "1000")
    early, late = rows[[*rows][20]], rows["1000"]
    epoch = int(early["at"]) - 1
    assert (early["value"], early["low"], early["high"], early["n"]) == (1.5 * epoch, epoch, 2 * epoch, 2)
    assert (late["value"], late["n"]) == (999, 1)


def test_nothing_is_drawn_of_parts_without_records(close):
    part = Part("Empty", ACCURACY, ["a", "b"], lambda panel: pytest.fail("it is drawn"), least=2)
    assert compose([(3, [part])], metrics_of(a={0: 0.5}), of_any_arm()) is None


def test_maps_are_left_out_unless_half_of_their_cells_are_recorded(close):
    cells = [["alpha_0_2_T_2", "alpha_0_2_T_4"], ["alpha_0_4_T_2", "alpha_0_4_T_4"]]
    found = metrics_of(alpha_0_2_T_2={0: 0.85, 1: 0.87}, alpha_0_4_T_4={0: 0.80}, baseline={0: 0.80, 1: 0.81})
    reported = reported_by("grid")
    parts = maps("measured", cells, ([0.2, 0.4], [2, 4]), found, "baseline")
    drawing = compose([(3, parts[:2]), (3, parts[2:])], found, reported)
    shown = [[text.get_text() for text in axes.texts] for axes in drawing.figure.axes]
    assert shown == [["86.00", "80.00"], ["86.42", "87.84", "87.65", "87.94"], ["-0.42", "-7.94"], ["+5.50", "+0.00"]]
    (frame,) = drawing.figure.axes[3].patches
    assert frame.get_xy() == (-0.5, -0.5)
    cell = drawing.data.to_dict("records")[0]
    assert (cell["at"], cell["arm"], cell["n"]) == ("alpha 0.2, T 2", "alpha_0_2_T_2", 2)
    assert compose([(3, parts)], {"alpha_0_2_T_2": found["alpha_0_2_T_2"]}, reported) is None


def test_text_is_never_mathematics_and_files_are_whole(tmp_path, close):
    hostile = "a$b_{c$, <script>"
    part = strip(hostile, ACCURACY, [("a", hostile)], {"a": "black"})
    write(compose([(3, [part])], metrics_of(a={0: 0.5}), of_any_arm()), tmp_path)
    with (tmp_path / "quick-figure.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["at"] for row in rows} == {hostile}
    assert hostile in (tmp_path / "quick-figure.txt").read_text()
    assert "<script>" not in (tmp_path / "quick.svg").read_text()


def test_series_that_are_no_roles_have_other_colours():
    assert not {*OTHERS} & {*COLORS.values()}
    lightness = [np.dot([0.2126, 0.7152, 0.0722], [int(color[i : i + 2], 16) for i in (1, 3, 5)]) for color in OTHERS]
    assert np.diff(lightness).max() < -40  # distinguished in print, too
