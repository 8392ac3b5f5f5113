"""What has failed goes red: a run, a band, a verdict ends `run`, `check` and `record` with status 1 and is named."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from kdlib.cli import main
from kdlib.cli.commands import departures
from kdlib.cli.session import prepare
from kdlib.environment import environment
from kdlib.errors import KDError
from kdlib.experiment import load_experiment
from kdlib.recorded import read_recorded, write_recorded
from kdlib.report.evidence import read_records
from tests.conftest import TOY, write_toy

ROOT = TOY.parents[1]
REPORTED = """
[source]
citation = "A toy"
[claims.C1]
kind = "direction"
primary = true
metric = "accuracy"
statement = "Distillation helps."
place = "p. 1"
[claims.C1.modes]
controlled = { arm = "distilled", over = "baseline" }
"""


@pytest.fixture
def root(toy, tmp_path, monkeypatch):
    """A repository of the toy experiment alone, the current folder; where its data lie, it does not look."""
    folder = write_toy(tmp_path) / "replications" / "toy"
    (folder / "reported.toml").write_text(REPORTED)
    monkeypatch.setattr(toy.module, "__file__", str(folder / "experiment.py"))
    monkeypatch.setattr("kdlib.data.fetch.find", lambda name, *rest: tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kd(root, capsys):
    """Runs one command; gives its status, what it printed, and the sentences about what has failed."""
    def run(*arguments):
        status = main([*arguments, "--workers", "1"])
        printed = capsys.readouterr()
        return status, printed.out, [line.removeprefix("FAILED  ") for line in printed.err.splitlines()]

    return run


def move_bands(root):
    """To where no run of the toy lies; gives back what moves them back."""
    path = root / "replications" / "toy" / "recorded.toml"
    right = path.read_bytes()
    write_recorded(path, {key: replace(record, bands={name: replace(band, low=2.0, high=3.0)
                                                      for name, band in record.bands.items()})
                          for key, record in read_recorded(path).items()})
    return lambda: path.write_bytes(right)


@pytest.mark.parametrize("command", [("run", "toy", "--arms", "below_refused,crashed,baseline"), ("check",),
                                     ("record", "toy", "--seed", "0", "--arms", "below_refused,crashed,baseline")])
def test_a_run_that_failed_or_was_not_started(kd, toy, monkeypatch, command):
    monkeypatch.setattr(toy.module, "CHECK", ("below_refused", "crashed", "baseline"))
    status, _, failed = kd(*command)
    assert status == 1
    place = "toy: " if command == ("check",) else ""
    refused, crashed, blocked = failed[:3]
    assert refused == f"{place}refused, seed 0: failed: refused, seed 0: a reason a user can act on"
    assert crashed.startswith(f"{place}crashed, seed 0: failed: ZeroDivisionError: ")
    assert blocked == f"{place}below_refused, seed 0: not started, its parent refused, seed 0 failed"


def test_an_error_takes_no_earlier_failure_with_it(kd, toy, monkeypatch):
    names = iter(("toy", "gone"))

    def prepare_one(*arguments):
        if next(names) == "gone":
            raise KDError("its data are gone")
        return prepare(*arguments)

    monkeypatch.setattr("kdlib.cli.commands.prepare", prepare_one)
    monkeypatch.setattr(toy.module, "CHECK", ("crashed",))
    status, _, told = kd("check", "toy", "toy")
    assert status == 2
    assert told[0].startswith("toy: crashed, seed 0: failed: ZeroDivisionError: ")
    assert told[-1] == "kd: its data are gone"


def test_a_check_that_compares_nothing_has_failed(kd, toy, monkeypatch, tmp_path):
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[0] == 0
    monkeypatch.setattr(toy.module, "CHECK", ("baseline",))
    status, _, failed = kd("check")
    assert (status, failed) == (1, ["toy: no bands of its check arms are recorded; `kd record toy` makes them"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    status, _, failed = kd("check")
    assert status == 2
    assert failed[0].startswith("kd: expected folders replications/<name> with an experiment.py in ")


def test_records_are_read_and_written_under_one_lock(kd, root, monkeypatch):
    held = []

    def look(*arguments):
        try:
            with FileLock(root / "results" / "toy" / ".lock", timeout=0):
                held.append(False)
        except Timeout:
            held.append(True)
        return read_records(*arguments)

    monkeypatch.setattr("kdlib.report.evidence.read_records", look)
    assert kd("record", "toy", "--seed", "0", "--arms", "teacher")[0] == 0
    assert held == [False, True]  # a look before the training, and the one that is written


def test_a_number_outside_its_band(kd, root):
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[::2] == (0, [])
    commands = [("check",), ("check", "toy"), ("run", "toy", "--arms", "teacher")]
    for command in commands:
        status, out, failed = kd(*command)
        assert (status, failed) == (0, [])
        if "check" in command:
            assert "toy: 1 numbers of 1 arms checked, 0 outside their bands" in out
            assert "reused" not in out  # the store has this run; a check trains it again
    move_back = move_bands(root)
    for command in commands:
        status, out, (sentence,) = kd(*command)
        assert status == 1
        assert "teacher, seed 0: accuracy is 0." in sentence
        assert "outside its band 2 to 3, recorded by commit unknown" in sentence
        assert ("1 outside their bands" in out) == ("check" in command)
    move_back()
    assert kd("check")[0] == 0


def test_a_check_without_bands_checks_nothing(kd):
    status, _, failed = kd("check")
    assert (status, failed) == (1, ["toy: no bands are recorded for data toy-data; `kd record toy` makes them"])


def test_a_seed_is_recorded_beside_the_others(kd, root):
    def recorded():
        lines = map(json.loads, (root / "results" / "toy" / "runs.jsonl").read_text().splitlines())
        return sorted((arm, line["seed"], line["run"]) for line in lines for arm in line["arms"])

    assert kd("record", "toy", "--seed", "0", "--arms", "teacher,baseline")[0] == 0
    first = recorded()
    assert [cell[:2] for cell in first] == [("baseline", 0), ("teacher", 0)]
    assert kd("record", "toy", "--seed", "1", "--arms", "baseline")[0] == 0
    both = recorded()
    assert [cell[:2] for cell in both] == [("baseline", 0), ("baseline", 1), ("teacher", 0)]
    assert set(first) < set(both)
    assert kd("record", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    assert recorded() == both
    with (root / "results" / "toy" / "quick-arms.csv").open() as file:
        assert {row["arm"]: row["n"] for row in csv.DictReader(file)} == {"teacher": "1", "baseline": "2"}
    assert not read_recorded(root / "replications" / "toy" / "recorded.toml")  # no arm has 5 seeds yet


def test_runs_of_two_protocols_are_not_recorded_together(kd, root, toy, monkeypatch):
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    path = root / "results" / "toy" / "runs.jsonl"
    before = path.read_bytes()
    monkeypatch.setattr(toy.module, "PROTOCOL", toy.module.PROTOCOL + 1)
    status, out, (sentence,) = kd("record", "toy", "--seed", "0", "--arms", "baseline")
    assert status == 2
    assert "expected recorded runs of protocol 2 beside the new ones, found baseline, seed 1, of protocol 1" in sentence
    assert (out, path.read_bytes()) == ("", before)  # nothing was trained for it
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0  # all of them anew
    assert {line["description"]["protocol"] for line in map(json.loads, path.read_text().splitlines())} == {2}


def test_a_band_names_the_commits_of_its_arms_runs(kd, root):
    for arm, commit in (("teacher", "a" * 40), ("baseline", "b" * 40)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kdlib.engine.environment", lambda *of, commit=commit: {**environment(*of), "commit": commit})
            assert kd("record", "toy", "--seeds", "5", "--arms", arm)[0] == 0
    (recorded,) = read_recorded(root / "replications" / "toy" / "recorded.toml").values()
    commits = {key: band.commit for key, band in recorded.bands.items()}
    assert commits == {"teacher.accuracy": "a" * 12, "baseline.accuracy": "b" * 12}


# ---- the recorded runs of MNIST, with numbers moved


@pytest.fixture(scope="module")
def full():
    return [r for r in read_records(ROOT / "results" / "mnist" / "runs.jsonl") if r.profile == "full"]


def departing(full, moved, metric, value):
    """The departures where `value` of the seed stands in for a metric of the (arm, seed) in `moved`."""
    records = []
    for record in full:
        snapshots = {snapshot for arm, snapshot in record.arms.items() if (arm, record.seed) in moved}
        changed = {name: record.metrics[name] | {metric: value(record.seed)} for name in snapshots}
        records.append(replace(record, metrics={**record.metrics, **changed}))
    session = SimpleNamespace(experiment=load_experiment("mnist"), profile_name="full", seeds=range(20))
    return departures(session, records)


@pytest.mark.parametrize(("arm", "metric"), [("teacher", "accuracy"), ("sham", "accuracy"), ("distilled", "teacher_kl")])
def test_one_number_outside_its_band_is_a_departure(full, arm, metric):
    (recorded,) = (found for key, found in read_recorded(ROOT / "replications/mnist/recorded.toml").items() if key[1] == "full")
    band = recorded.bands[f"{arm}.{metric}"]
    for inside, outside in ((band.low + 1e-6, band.low - 1e-6), (band.high - 1e-6, band.high + 1e-6)):
        assert departing(full, {(arm, 3)}, metric, lambda seed, value=inside: value) == []
        (sentence,) = departing(full, {(arm, 3)}, metric, lambda seed, value=outside: value)
        assert sentence.startswith(f"{arm}, seed 3: {metric} is {outside:.6g}, outside its band {band.low:.6g} to ")


def test_another_verdict_and_another_place_are_departures(full):
    """Of numbers that all lie in their bands: the baseline is nearly as good as the distilled student."""
    found = departing(full, {("baseline", seed) for seed in range(20)}, "accuracy", lambda seed: 0.9877 + seed * 1e-5)
    assert [sentence.partition(", now ")[0] for sentence in found] == [
        *(f"C1, {mode}: recorded replicated" for mode in ("as described", "as released", "controlled")),
        "baseline.accuracy: recorded inside its reported range"]
