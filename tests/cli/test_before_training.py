"""What is wrong in claims, bands, figures and recorded runs is an error in a second, before anything is trained."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kdlib.cli import main
from kdlib.errors import KDError
from kdlib.judge.bands import Band, Bands, read_bands, write_bands
from kdlib.judge.schema import SchemaError
from kdlib.judge.verdicts import Outcome
from kdlib.report import check, names, recording, replicate
from kdlib.report.cost import measured_rows, source_costs
from kdlib.report.figures import Part, compose
from kdlib.report.panels import ACCURACY
from kdlib.report.parts import differences, maps, strip
from kdlib.run import prepare
from kdlib.run.experiment import load_experiment, replications
from kdlib.run.records import measured, read_records
from tests.cli.test_gates import CLAIMS, kd, root  # noqa: F401 - fixtures
from tests.conftest import TOY, changed, module_of

METRICS = ("accuracy", "loss")
VALUE = """
[values."distilled.accuracy"]
value = 0.5
unit = "accuracy"
decimals = 2
place = "p. 1"
"""
CHOICE = '[chosen.taken]\nby = "accuracy"\namong = ["baseline", "distilled"]\n'
ALL = ("run toy", "run toy --dry-run", "check", "record toy")


@pytest.fixture(autouse=True)
def known(root, toy, monkeypatch):  # noqa: F811
    changed(monkeypatch, "toy", metrics=METRICS)
    (folder := root / "replications" / "toy").joinpath("claims.toml").write_text(VALUE + CHOICE + CLAIMS)
    return folder


def refused(kd, root, words, commands=ALL):  # noqa: F811
    for command in commands:
        status, out, errors = kd(*command.split())
        assert (status, out) == (2, ""), command
        assert words in errors[0]
        assert not (root / ".kd").exists()  # nothing was trained


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('arm = "distilled"', 'arm = "distiled"', "C1.modes.controlled.arm: expected an arm of this experiment"),
        ('over = "baseline"', 'over = "based"', "C1.modes.controlled.over: expected an arm of this experiment"),
        (
            'metric = "accuracy"',
            'metric = "acuracy"',
            "expected a metric of this experiment (accuracy, loss, training_",
        ),
        (
            '"distilled.accuracy"',
            '"distilled.f1"',
            "expected a metric of this experiment (accuracy, loss, training_loss), found 'f1'",
        ),
        ('"distilled.accuracy"', '"distilled.acc"', "expected a metric of this experiment (accuracy, loss, training_"),
        ('"distilled.accuracy"', '"taught.accuracy"', 'expected a table named "<arm>.<metric>", the arm one of'),
        ('by = "accuracy"', 'by = "validation_accuracy"', "by: expected a metric of this experiment"),
        ('kind = "direction"', "kind = ", "claims.toml"),
    ],
)
def test_a_claim_about_what_does_not_exist(kd, root, known, right, wrong, words):  # noqa: F811
    text = (known / "claims.toml").read_text()
    assert text.count(right) == 1
    (known / "claims.toml").write_text(text.replace(right, wrong))
    refused(kd, root, words)


def test_claims_that_are_not_there(kd, root, known):  # noqa: F811
    (known / "claims.toml").unlink()
    refused(kd, root, "claims.toml")


def test_the_loss_of_the_training_is_known_and_all_metrics_are_if_none_is_named(kd, known, monkeypatch):  # noqa: F811
    for metrics, metric in ((METRICS, "training_loss"), ((), "anything")):
        changed(monkeypatch, "toy", metrics=metrics)
        (known / "claims.toml").write_text(CLAIMS.replace('"accuracy"', f'"{metric}"'))
        assert kd("run", "toy", "--dry-run")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "bands", "words"),
    [
        ("quick", Bands({"studnet.accuracy": None}), "profile quick: an arm of toy (teacher, "),
        ("quick", Bands({"teacher.acuracy": None}), "a metric of toy (accuracy, loss, training_loss), found acuracy"),
        ("quick", Bands(inside={"gone.accuracy": True}), "an arm of toy"),
        ("quick", Bands(verdicts={"C7": {"controlled": Outcome.REPLICATED}}), "a claim of toy (C1), found C7"),
        (
            "quick",
            Bands(verdicts={"C1": {"as described": Outcome.REPLICATED}}),
            "a mode of claim C1 of toy (controlled)",
        ),
        ("quik", Bands({"teacher.accuracy": None}), "a profile of toy (quick, other), found quik"),
    ],
)
def test_a_band_about_what_does_not_exist(kd, root, known, profile, bands, words):  # noqa: F811
    band = Band(0.0, 1.0, 0.5, (0, 1, 2, 3, 4), (0.5,) * 5, "unknown")
    path = known / "bands.toml"
    write_bands(path, {("toy-data", profile): replace(bands, bands=dict.fromkeys(bands.bands, band))})
    refused(kd, root, words, ALL[:3])
    status, _, errors = kd("record", "toy", "--arms", "teacher,baseline", "--seeds", "5")  # makes the bands anew
    assert (status, errors) == (0, [])
    if profile == "quick":
        assert kd("run", "toy", "--arms", "teacher")[0] == 0


def draws(monkeypatch, known, *parts):
    (known / "figures.py").touch()
    module = SimpleNamespace(draw=lambda records, reported: compose([(1.0, parts)], measured(records), reported))
    monkeypatch.setitem(sys.modules, "replications.toy.figures", module)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (strip("Arms", ACCURACY, [("teacher", "t"), ("studnet", "s")], {}), "figure 'Arms': expected names of arms, "),
        (differences("Gains", ACCURACY, [("l", "distilled", "based")], {}, {}), "found based; there are teacher"),
        (differences("Gains", ACCURACY, [("l", "distiled", "baseline")], {}, {}), "found distiled; there are teacher"),
        (maps("m", [["baseline", "cell"]], ([0.5], [1, 2]), {})[0], "found cell; there are teacher"),
        (maps("m", [["baseline"]], ([0.5], [1]), {}, "basis")[3], "found basis; there are teacher"),
        (Part("Own", ACCURACY, ["teacher", "pupil"], lambda panel: None), "found pupil; there are teacher"),
        (
            strip("Arms", ACCURACY._replace(metric="f1"), [("teacher", "t")], {}),
            "expected names of metrics, found f1; there are accuracy, loss, training_loss",
        ),
    ],
)
def test_a_figure_of_what_does_not_exist(kd, root, known, monkeypatch, part, words):  # noqa: F811
    draws(monkeypatch, known, part)
    refused(kd, root, words)


def test_a_figure_that_needs_a_run_is_looked_at_when_it_is_drawn(kd, known, monkeypatch):  # noqa: F811
    (known / "figures.py").touch()
    figures = SimpleNamespace(draw=lambda records, reported: records[0].metrics["final"] and None)
    monkeypatch.setitem(sys.modules, "replications.toy.figures", figures)
    assert kd("run", "toy", "--arms", "teacher")[0] == 0


@pytest.fixture
def write(known, monkeypatch):
    """Return a function that writes the figures.py that Python imports."""
    monkeypatch.setattr(sys.modules["replications.toy"], "__path__", [str(known)])
    monkeypatch.delitem(sys.modules, "replications.toy.figures", raising=False)
    yield (known / "figures.py").write_text
    sys.modules.pop("replications.toy.figures", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import nopackage\n",
            "figures.py: expected a module that can be imported, found ModuleNotFoundError: No module named 'nop",
        ),
        ("def draw(records):\n    pass\n", "figures.py: expected draw(records, reported), found draw(records) ("),
    ],
)
def test_a_file_of_figures_that_cannot_be_used(kd, root, write, text, words):  # noqa: F811
    write(text)
    refused(kd, root, words)


DRAWS = {
    "fails": ("return records[0].metrics['no']", "figures.py: draw: expected a figure, found KeyError: 'no' ("),
    "returns a number": (
        "return 3",
        "figures.py: draw: expected a Drawing or None, found one of type int; return what",
    ),
    "cannot be rendered": (
        "import matplotlib.figure, pandas; from kdlib.report.figures import Drawing;"
        "figure = matplotlib.figure.Figure(); figure.suptitle('$\\\\frac$');"
        "return Drawing(figure, 'alt', pandas.DataFrame())",
        "figures.py: draw: expected a figure, found ValueError",
    ),
}


@pytest.mark.slow
def test_a_page_without_a_figure_keeps_no_older_one(kd, root, write):  # noqa: F811
    """The site would show it next to the new tables."""
    drawing = "Drawing(matplotlib.figure.Figure(), 'alt', pandas.DataFrame({'a': [1]}))"
    start = "import matplotlib.figure, pandas\nfrom kdlib.report.figures import Drawing\n"
    ends = ("quick.svg", "quick.png", "quick-figure.csv", "quick-figure.txt")
    folders = (root / "results" / "toy", root / "results" / "toy" / "local")
    commands = ("record toy --arms teacher --seeds 5", "run toy --arms teacher --seeds 5")

    def made(text):
        write(text)
        sys.modules.pop("replications.toy.figures", None)
        for command in commands:
            kd(*command.split())
        return [(folder / end).exists() for folder in folders for end in ends]

    assert all(made(f"{start}def draw(records, reported):\n    return {drawing}\n"))
    assert not any(made("def draw(records, reported):\n    return None\n"))
    assert all(made(f"{start}def draw(records, reported):\n    return {drawing}\n"))
    assert not any(made("def draw(records, reported):\n    return 1 / 0 if records[0].run else None\n"))


@pytest.mark.parametrize("text", ["import sys\nsys.exit(0)\n", "def draw(*_):\n    raise SystemExit\n"])
def test_a_figure_that_ends_python_ends_no_session_in_silence(kd, root, write, text):  # noqa: F811
    write(text)
    status, _, errors = kd("run", "toy", "--arms", "teacher", "--seed", "0")
    assert status == 2
    assert "found SystemExit" in errors[-1]


def test_bands_that_cannot_be_read_are_told_before_recording(kd, known):  # noqa: F811
    (known / "bands.toml").write_text("<<<<<<< HEAD\n")
    status, out, (said,) = kd("record", "toy", "--arms", "teacher", "--seeds", "5")
    assert (status, "started" in out) == (2, False)
    assert "expected TOML in UTF-8" in said
    assert "correct it, or delete the file and let `kd tables` write it again" in said


@pytest.mark.parametrize("name", DRAWS)
def test_a_figure_that_fails_costs_no_table(kd, root, write, name):  # noqa: F811
    body, words = DRAWS[name]
    write(f"def draw(records, reported):\n    {body}\n")
    results = root / "results" / "toy"
    for command in ("run toy --arms teacher", "record toy --arms teacher --seeds 5"):
        status, out, (said,) = kd(*command.split())
        assert status == 2
        assert words in said
        assert "toy, profile quick: seed" in out  # to the end
    for path in (results / "local" / "quick.md", results / "quick.md"):
        assert "| teacher " in path.read_text()
        assert not path.with_suffix(".svg").exists()


def test_a_file_of_figures_need_not_draw_the_tables_figure(kd, write):  # noqa: F811
    write("def draw_data(data, path):\n    path.write_bytes(b'')\n")
    status, _, errors = kd("run", "toy", "--arms", "teacher")
    assert (status, errors) == (0, [])


def test_a_claimed_metric_that_no_run_has_fails_the_run(kd, known, monkeypatch):  # noqa: F811
    changed(monkeypatch, "toy", metrics=(*METRICS, "fidelity"))
    (known / "claims.toml").write_text(CLAIMS.replace('"accuracy"', '"fidelity"'))
    status, _, errors = kd("run", "toy", "--arms", "teacher,baseline", "--seed", "0")
    assert status == 1
    (failed,) = (line for line in errors if "failed" in line)
    assert "baseline, seed 0: failed: run " in failed
    assert "expected a number as fidelity of baseline, which claims.toml compares, found None. Correct" in failed
    (known / "claims.toml").write_text(CLAIMS)
    assert kd("run", "toy", "--arms", "teacher,baseline", "--seed", "0")[0] == 0


def test_data_are_a_tuple_of_names(toy):
    with pytest.raises(KDError, match="data: expected a tuple of names, found a text; write a comma"):
        replace(toy, data="mnist")


def test_bands_are_of_metrics_that_runs_have(toy):
    for banded in (("f1",), ("accuracy", "acuracy")):
        with pytest.raises(
            KDError, match=f"banded: expected names of metrics, found {banded[-1]}; there are accuracy,"
        ):
            replace(toy, metrics=METRICS, banded=banded)
    assert replace(toy, metrics=METRICS, banded=("training_loss",)).known_metrics == (*METRICS, "training_loss")


def test_sessions_from_python_are_refused_too(root, known, tmp_path):  # noqa: F811
    (known / "claims.toml").write_text(CLAIMS.replace('"accuracy"', '"acuracy"'))
    session = prepare("toy", arms=("teacher",), seeds=(0,), store=tmp_path / "store", workers=1)
    for does in (replicate, check, lambda session: recording.record(session, tmp_path / "results")):
        with pytest.raises(KDError, match="expected a metric of this experiment"):
            does(session)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", replications(TOY.parents[1]))
def test_replications_name_what_they_have(name):
    """The names of metrics are compared with all that was ever recorded of a replication."""
    experiment = load_experiment(name)
    names.refuse_unknown_names(experiment)
    assert experiment.metrics
    records = read_records(TOY.parents[1] / "results" / name / "runs.jsonl")
    found = {
        metric
        for record in records
        for snapshot in record.arms.values()
        for metric, value in record.metrics[snapshot].items()
        if isinstance(value, int | float)
    }
    assert found <= {*experiment.metrics}


# ---- what a source says of costs

COST = """
[[claims]]
statement = "The student is smaller."
place = "p. 1"
reported = "4 times"
quantity = "parameters"
of = "teacher"
over = "baseline"
"""


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('"parameters"', '"paramters"', "claims.0.quantity: expected one of parameters, flops"),
        ('"teacher"', '"techer"', "claims.0.of: expected one of teacher, "),
        ('"baseline"', '"based"', "claims.0.over: expected one of teacher, "),
        ('place = "p. 1"', "", "claims.0.place: expected one line"),
        ("over =", "under =", "claims.0.under: expected only the keys "),
        ("[[claims]]", "[claims]", "claims: expected a list"),
    ],
)
def test_costs_of_what_does_not_exist_are_refused_before_measuring(toy, root, known, right, wrong, words):  # noqa: F811
    (known / "cost.toml").write_text(COST)
    assert [claim.arms for claim in source_costs(load_experiment("toy"))] == [("teacher", "baseline")]
    (known / "cost.toml").write_text(COST.replace(right, wrong))
    session = prepare("toy", seeds=(0,), store=root / "store", workers=1)
    with pytest.raises(SchemaError, match=r"cost\.toml") as error:
        measured_rows(session, pytest.fail)
    assert words in str(error.value)


# ---- recorded runs of other data


def other_data(monkeypatch, digest):
    module = module_of("toy")

    def load_data(config, folders):
        return replace(module.load_data(config, folders), digest=digest)

    changed(monkeypatch, "toy", load_data=load_data)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_runs_of_two_data_sets_are_not_recorded_together(kd, root, known, monkeypatch):  # noqa: F811
    """Both would have the same table. As for two protocols, all of them are replaced, or nothing is trained."""
    path = root / "results" / "toy" / "runs.jsonl"
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher,baseline")[0] == 0
    before = path.read_bytes()
    other_data(monkeypatch, "other-data")
    for few, found in (
        (("--seed", "0", "--arms", "baseline"), "teacher, seed 0, of"),
        (("--arms", "teacher"), "baseline, seed 0, of"),
    ):
        status, out, (sentence,) = kd("record", "toy", *few)
        assert status == 2
        assert f"expected recorded runs of data other-data next to the new ones, found {found}" in sentence
        assert "of data toy-data; record all recorded arms and seeds at once" in sentence
        assert (out, path.read_bytes()) == ("", before)
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher,baseline")[0] == 0
    assert {line["description"]["data"] for line in lines_of(path)} == {"other-data"}
    assert len(lines_of(path)) == 10
    assert {*read_bands(known / "bands.toml")} == {("other-data", "quick")}


def test_other_profiles_keep_their_data(kd, root, known, monkeypatch):  # noqa: F811
    path = root / "results" / "toy" / "runs.jsonl"
    assert kd("record", "toy", "--profile", "other", "--seed", "0", "--arms", "baseline")[0] == 0
    other_data(monkeypatch, "other-data")
    assert kd("record", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    assert [(line["profile"], line["description"]["data"]) for line in lines_of(path)] == [
        ("other", "toy-data"), ("quick", "other-data")]  # fmt: skip


@pytest.mark.parametrize("what", ["protocol", "data"])
def test_a_run_that_failed_leaves_no_run_of_another_kind_in_its_place(kd, root, known, monkeypatch, what):  # noqa: F811
    path, command = root / "results" / "toy" / "runs.jsonl", ("record", "toy", "--seeds", "2", "--arms", "baseline")
    assert kd(*command)[0] == 0
    before, right = path.read_bytes(), recording.trained

    def with_a_failure(*arguments):
        jobs, summary = right(*arguments)
        summary.failed[jobs[-1].description.id] = "no memory"
        del summary.finished[jobs[-1].description.id]
        return jobs, summary

    if what == "data":
        other_data(monkeypatch, "other-data")
    else:
        changed(monkeypatch, "toy", protocol=2)
    monkeypatch.setattr(recording, "trained", with_a_failure)
    status, out, errors = kd(*command)
    assert (status, path.read_bytes()) == (1, before)
    assert f"Nothing is recorded: toy, profile quick: expected recorded runs of {what} " in out
    assert "failed: no memory" in errors[0]


def test_recorded_runs_of_an_arm_that_is_gone_are_named(kd, root, known, toy, monkeypatch):  # noqa: F811
    assert kd("record", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    changed(monkeypatch, "toy", arms=tuple(arm for arm in toy.arms if arm.name != "baseline"))
    (known / "claims.toml").write_text(CLAIMS.replace('"baseline"', '"teacher"'))
    status, out, (sentence,) = kd("record", "toy", "--seed", "0", "--arms", "teacher")
    assert (status, out) == (2, "")
    assert "found baseline, seed 0; delete its line from runs.jsonl" in sentence


def test_results_that_cannot_be_written_are_an_error_before_training(kd, root):  # noqa: F811
    (root / "results").write_text("no folder")
    refused(kd, root, "results/toy/.lock: could not be written", ["record toy --seed 0 --arms baseline"])


# ---- code of a replication that fails or ends Python


WHOLE = "def draw(records, reported):\n    from kdlib.judge.intervals import t_interval\n"


def test_an_error_of_kdlib_in_a_figure_blocks_no_session(kd, root, write):  # noqa: F811
    """Without runs, an interval has no numbers; that is no mistake of names."""
    write(f"{WHOLE}    t_interval([run.metrics['final']['accuracy'] for run in records if 'baseline' in run.arms])\n")
    assert kd("run", "toy", "--arms", "baseline", "--seeds", "3")[0] == 0
    status, out, (said,) = kd("run", "toy", "--arms", "baseline", "--seeds", "1")
    assert (status, "Tables: " in out) == (2, True)
    assert "figures.py: draw: expected at least 2 finite numbers" in said


def test_pictures_of_an_earlier_session_do_not_stay(kd, root, write):  # noqa: F811
    local = root / "results" / "toy" / "local"
    write("def draw_local(records, data, path):\n    path.write_bytes(data.digest.encode())\n")
    assert kd("run", "toy", "--arms", "baseline", "--seed", "0")[0] == 0
    assert (local / "quick-pictures.png").read_text() == "toy-data"
    write("def draw_local(records, data, path):\n    pass\n")
    sys.modules.pop("replications.toy.figures")
    assert kd("run", "toy", "--arms", "baseline", "--seeds", "2")[0] == 0
    assert not (local / "quick-pictures.png").exists()


def test_pictures_that_fail_cost_no_table(kd, root, write):  # noqa: F811
    write("def draw_local(records, data, path):\n    raise ValueError('no')\n")
    status, out, (said,) = kd("run", "toy", "--arms", "baseline", "--seed", "0")
    assert status == 2
    assert "figures.py: draw_local: expected a figure, found ValueError: no" in said
    assert "Tables: results/toy/local/quick.md" in out
    assert (root / "results" / "toy" / "local" / "quick.md").exists()


def exits(*_, **__):
    raise SystemExit(0)


def test_data_that_end_python_are_told(kd, monkeypatch):  # noqa: F811
    changed(monkeypatch, "toy", load_data=exits)
    status, _, (said,) = kd("run", "toy", "--arms", "baseline", "--seed", "0")
    assert status == 2
    assert "load_data: expected a function that reads the data, found SystemExit: 0 (" in said


def test_a_network_that_ends_python_is_told(root, monkeypatch, capsys):  # noqa: F811
    changed(monkeypatch, "toy", network=exits)
    assert main(["cost", "toy"]) == 2
    assert "a replication: expected code that returns, found SystemExit: 0 (" in capsys.readouterr().err
