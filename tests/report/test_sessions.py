"""Sessions from Python, as in a notebook: frames of arms and claims, the same as on the command line, and no output."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from kdlib.errors import KDError
from kdlib.judge import kinds
from kdlib.judge.bands import read_bands, write_bands
from kdlib.report import check, record, replicate
from kdlib.report.markdown import claims_shown
from kdlib.report.pages import reported_of
from kdlib.run import Store, costs, failures, load_experiment, measured, prepare, records_of, train
from kdlib.run.records import read_records
from kdlib.run.session import left_of_profile
from tests.conftest import TOY, changed, module_of, write_toy

ARMS = ("teacher", "baseline", "distilled")
CLAIMS = """
[source]
citation = "A toy"
url = "https://example.org/toy"

[values."distilled.accuracy"]
value = 0.5
unit = "accuracy, test"
decimals = 2
place = "p. 1"

[claims.C1]
kind = "direction"
primary = true
metric = "accuracy"
statement = "Distillation helps."
place = "p. 1"

[claims.C1.modes]
controlled = { arm = "distilled", over = "baseline", differs = ["soft targets"] }
"""


@pytest.fixture
def root(toy, tmp_path, monkeypatch):
    """A repository of the toy experiment, which makes its own data; not the current folder. Profile quick is judged."""
    folder = write_toy(tmp_path / "repository") / "replications" / "toy"
    (folder / "claims.toml").write_text(CLAIMS)
    monkeypatch.setattr(module_of("toy"), "__file__", str(folder / "experiment.py"))
    quick = replace(toy.profile("quick"), seeds=5, arms=ARMS, judged=True)
    changed(monkeypatch, "toy", data=(), profiles={**toy.profiles, "quick": quick})
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "repository"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all tests here, so that each run is trained once."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
def test_a_notebook_gets_frames_of_arms_and_claims(root, store, capfd, tmp_path):
    session = prepare("toy", store=store, workers=1)
    found = replicate(session)
    assert (found.problems, found.notes) == ([], [])
    assert [(run.seed, *run.arms) for run in found.records] == [
        (seed, arm) for seed in range(5) for arm in ("teacher", "baseline", "distilled")
    ]
    numbers = measured(found.records)
    arms = found.arms.set_index("arm")
    assert list(arms.index) == list(ARMS)
    for arm in ARMS:
        assert arms.loc[arm, "n"] == 5
        assert arms.loc[arm, "accuracy"] == np.mean([run["accuracy"] for run in numbers[arm].values()])
    assert arms.loc["distilled", "accuracy_reported"] == 0.5
    (claim,) = found.claims.to_dict("records")
    assert (claim["claim"], claim["mode"], claim["n"]) == ("C1", "controlled", 5)
    gains = [numbers["distilled"][seed]["accuracy"] - numbers["baseline"][seed]["accuracy"] for seed in range(5)]
    assert claim["measured"] == pytest.approx(np.mean(gains))
    judged = kinds.direction(gains)
    margin, beyond = judged.margin
    assert claim["verdict"] == str(judged.outcome)
    assert (claim["firmness"], claim["margin"]) == pytest.approx((judged.firmness, margin))
    assert 0 < claim["firmness"] <= 1
    assert claim["next_outcome"] == str(beyond)
    (shown,) = claims_shown(found.claims, reported_of(session.experiment), True, False).to_dict("records")
    assert shown["firmness"] == f"{judged.firmness:.0%}"
    assert shown["nearest other outcome"] == f"{margin:.3f} away: {beyond}"
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "here").iterdir())  # and nothing is written but runs


def test_other_arms_seeds_and_profiles(root, store, toy, monkeypatch):
    found = replicate(prepare("toy", arms=("baseline",), seeds=(3,), store=store, workers=1))
    assert list(found.arms["arm"]) == ["baseline"]
    assert [run.seed for run in found.records] == [3]
    assert list(found.claims["n"]) == [0]
    (claim,) = replicate(prepare("toy", seeds=(0, 1), store=store, workers=1)).claims.to_dict("records")
    assert claim["verdict"] == "interim, 2 of 5 seeds, no verdict"
    assert np.isnan(claim["firmness"])
    profiles = load_experiment("toy").profiles
    changed(monkeypatch, "toy", profiles={**profiles, "quick": replace(profiles["quick"], synthetic=True)})
    assert set(replicate(prepare("toy", store=store, workers=1)).claims["verdict"]) == {""}


def test_data_of_the_judged_profile_that_cannot_be_had_cost_a_short_session_nothing(root, store, toy, monkeypatch):
    def load_data(config, folders):
        if config.epochs == 9:
            raise KDError("expected at least 2000 pictures, found 40")
        return toy.load_data(config, folders)

    short = toy.profile("quick")
    judged = replace(short, config=replace(short.config, epochs=9), seeds=5, arms=ARMS, judged=True)
    short = replace(short, seeds=1, arms=ARMS, judged=False)
    changed(monkeypatch, "toy", load_data=load_data, profiles={"quick": short, "full": judged})
    found = replicate(prepare("toy", store=store, workers=1))
    assert list(found.claims["n"]) == [1]
    assert found.problems == []


def test_the_steps_of_a_session_one_by_one(root, store, toy):
    session = prepare("toy", arms=("below_refused", "baseline"), seeds=(0,), store=store, workers=1)
    jobs = session.jobs()
    events = []
    summary = train(session, jobs, events.append)
    assert failures(jobs, summary) == [
        "refused, seed 0: failed: refused, seed 0: a reason a user can act on",
        "below_refused, seed 0: not started, because its parent refused, seed 0 failed",
    ]
    assert {event.kind for event in events} >= {"failed", "blocked"}
    (line,) = records_of(session, jobs, summary)
    assert (line.profile, line.arms, line.data_name) == ("quick", {"baseline": "final"}, "toy")


def test_costs_are_those_of_recorded_runs_of_the_same_arm(root, store, tmp_path):
    def of(store):
        session = prepare("toy", arms=("distilled", "baseline"), seeds=(0, 1), store=store, workers=2)
        return session, session.jobs()

    records = replicate(prepare("toy", store=store, workers=1)).records
    for line in records:
        line.environment.update(seconds={"teacher": 60.0, "baseline": 10.0, "distilled": 30.0}[next(iter(line.arms))])
    session, jobs = of(tmp_path / "empty")
    found, seconds = costs(session, jobs, records)
    assert [(cost.stored, cost.seconds) for cost in found] == [(False, 60.0), (False, 30.0), (False, 10.0)] * 2
    assert seconds == 100.0  # two chains of 90 seconds and two runs of 10, on two workers
    assert costs(replace(session, workers=64), jobs, records)[1] == 90.0
    assert [cost.seconds for cost in costs(session, jobs, [])[0]] == [None] * 6
    session, jobs = of(store)
    found, seconds = costs(session, jobs, records)
    assert all(cost.stored for cost in found)
    assert seconds == 0.0


def test_what_is_left_of_a_profile(root, store, tmp_path):
    replicate(prepare("toy", store=store, workers=1))
    part = prepare("toy", arms=("baseline",), seeds=(0,), store=store, workers=1)
    assert left_of_profile(part) == (0, 15)
    assert left_of_profile(replace(part, store=Store(tmp_path / "empty"))) == (15, 15)


def test_record_then_check_and_replicate_against_the_bands(root, store, toy, monkeypatch, capfd, tmp_path):
    recording = record(prepare("toy", store=store, workers=1), tmp_path / "results")
    (page,) = recording.pages
    assert (recording.problems, recording.left) == ([], 0)
    (note,) = recording.notes  # outside git, no commit holds the code
    assert note.startswith("15 runs of the store were trained with code that no commit is known to hold, ")
    assert (tmp_path / "results" / "toy" / "quick.md").read_text() == page.text
    assert len(read_records(tmp_path / "results" / "toy" / "runs.jsonl")) == 15
    path = root / "replications" / "toy" / "bands.toml"
    ((key, known),) = read_bands(path).items()
    assert key == ("toy-data", "quick")
    assert set(known.bands) == {f"{arm}.accuracy" for arm in ARMS}
    assert set(known.verdicts) == {"C1"}  # of the judged profile
    assert set(known.inside) == {"distilled.accuracy"}

    alone = prepare("toy", arms=("teacher",), seeds=(0,), store=store, workers=1)
    found = check(alone)  # in a separate store
    assert (found.problems, found.notes) == ([], ["1 number of 1 arm checked, 0 outside their bands"])
    assert replicate(alone).notes == [
        "Verdicts and ranges are not compared with the recorded ones, which are of 5 seeds, 0 to 4."
    ]
    whole = prepare("toy", store=store, workers=1)
    assert (replicate(whole).problems, replicate(whole).notes) == ([], [])
    moved = {name: replace(band, low=0.0, high=0.01) for name, band in known.bands.items()}
    changed_inside = {name: not inside for name, inside in known.inside.items()}
    write_bands(path, {key: replace(known, bands=moved, inside=changed_inside)})
    problems = replicate(whole).problems
    # The toy's teacher and baseline are equal: 5 numbers of both, 5 of the distilled arm, their count, and the range.
    assert len(problems) == 12
    assert problems[0].startswith("baseline, teacher, seed 0: accuracy is ")
    assert problems[-2] == "bands missed: 2 of 2; chance misses more than 1 in fewer than 1 of 200 sessions"
    assert problems[-1].startswith("distilled.accuracy: recorded ")
    assert len(check(alone).problems) == 1
    assert list(replicate(whole).claims["recorded"]) == [str(known.verdicts["C1"]["controlled"])]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_verdicts_on_seeds_with_a_failed_run_are_not_compared(root, store, monkeypatch, tmp_path):
    record(prepare("toy", store=store, workers=1), tmp_path / "results")
    path, module = root / "replications" / "toy" / "bands.toml", module_of("toy")
    ((key, known),) = read_bands(path).items()
    write_bands(path, {key: replace(known, inside={name: not inside for name, inside in known.inside.items()})})
    usual = module.train

    def full_disk(run, objective, keep_targets=False):
        if run.seed == 4 and objective is module.soft:
            raise KDError("the disk is full")
        return usual(run, objective, keep_targets)

    monkeypatch.setattr(module, "train", full_disk)
    found = replicate(prepare("toy", store=tmp_path / "store", workers=1))
    assert found.problems == ["distilled, seed 4: failed: the disk is full"]
    assert "Verdicts and ranges are not compared with the recorded ones" in found.notes[-1]


def test_only_runs_of_the_judged_profile_are_recorded_with_verdicts(root, store, toy, monkeypatch, tmp_path):
    profiles = load_experiment("toy").profiles
    changed(monkeypatch, "toy", profiles={**profiles, "quick": replace(profiles["quick"], judged=False)})
    record(prepare("toy", store=store, workers=1), tmp_path / "results")
    (known,) = read_bands(root / "replications" / "toy" / "bands.toml").values()
    assert set(known.bands) == {f"{arm}.accuracy" for arm in ARMS}
    assert known.verdicts == known.inside == {}


def test_a_check_compares_the_check_arms_and_not_what_they_need(root, store, toy, monkeypatch, tmp_path):
    record(prepare("toy", store=store, workers=1), tmp_path / "results")
    path = root / "replications" / "toy" / "bands.toml"
    ((key, known),) = read_bands(path).items()
    moved = {"teacher.accuracy": replace(known.bands["teacher.accuracy"], low=0.0, high=0.01)}
    write_bands(path, {key: replace(known, bands={**known.bands, **moved})})
    changed(monkeypatch, "toy", check=("distilled",))
    found = check(prepare("toy", arms=("distilled",), seeds=(0,), store=store, workers=1))
    assert (found.problems, found.notes) == ([], ["1 number of 1 arm checked, 0 outside their bands"])
    assert len(found.records) == 2  # the distilled arm's run and its teacher's


def test_a_reporter_is_told_of_a_whole_session(root, store):
    told = []

    @contextmanager
    def reporter(jobs):
        told.append(len(jobs))
        yield lambda event: told.append(event.kind)
        told.append("over")

    replicate(prepare("toy", store=store, workers=1))
    replicate(prepare("toy", store=store, workers=1), reporter)
    assert told == [15, *["reused"] * 15, "over"]


def test_mistakes_are_errors_in_python_too(root, store):
    for options, words in (
        ({"profile": "quik"}, "no profile 'quik'"),
        ({"arms": ("studnet",)}, "no arm 'studnet'"),
        ({"device": "tpu"}, "expected cpu, cuda, or cuda:N"),
        ({"settings": {"split": "x"}}, "expected fields that choose the data"),
        ({"seeds": range(10**30)}, "expected 1 to 10000 of them, found more"),
        ({"seeds": ()}, "expected 1 to 10000 of them, found none"),
        ({"seeds": (0, -1)}, "seeds: expected a whole number from 0 to .*, found -1"),
        ({"seeds": (0.0,)}, "seeds: expected a whole number from 0 to .*, found 0.0"),
        ({"seeds": (10**5000,)}, "found a number of very many digits"),
        ({"seeds": 3}, r"expected whole numbers, as in range\(5\), found 3"),
        ({"workers": 0}, "workers: expected a whole number from 1 to 1024, found 0"),
        ({"threads": -1}, "threads: expected a whole number from 1 to 1024, found -1"),
        ({"threads": True}, "threads: expected a whole number"),
        ({"replicas": 10**30}, "replicas: expected a whole number from 1 to 1024"),
        ({"minutes": math.nan}, "minutes: expected a number of minutes above 0, found nan"),
        ({"minutes": 0}, "minutes: expected a number of minutes above 0, found 0"),
        ({"minutes": math.inf}, "minutes: expected a number of minutes above 0, found inf"),
        ({"store": ""}, "store: expected a path, found an empty text"),
        ({"data": ""}, "data: expected a path, found an empty text"),
    ):
        with pytest.raises(KDError, match=words):
            prepare("toy", **{"store": store, **options})


def test_a_seed_that_is_named_twice_is_one(root, store):
    assert prepare("toy", seeds=[np.int64(3), 0, 3], store=store).seeds == (3, 0)


IN_A_NOTEBOOK = """
import json
import sys
from pathlib import Path

from kdlib.report import replicate
from kdlib.run import prepare

found = replicate(prepare("toy", arms=("baseline",), store=Path("store"), data=Path("data"), workers=1))
answer = {
    "arms": list(found.arms["arm"]),
    "claims": list(found.claims["claim"]),
    "command line": [name for name in sys.modules if name.startswith("kdlib.cli")],
}
Path("answer.json").write_text(json.dumps(answer))
"""


@pytest.mark.slow
def test_a_fresh_process_needs_no_command_line_and_prints_nothing(tmp_path):
    folder = write_toy(tmp_path) / "replications" / "toy"
    text = (folder / "experiment.py").read_text()
    (folder / "experiment.py").write_text(text.replace('data=("toy",)', "data=()"))
    (folder / "claims.toml").write_text(CLAIMS)
    (tmp_path / "data").mkdir()
    path = os.pathsep.join([str(tmp_path), str(TOY.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NOTEBOOK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer == {"arms": ["baseline"], "claims": ["C1"], "command line": []}


@pytest.mark.parametrize("named", ["", '"steps", "soft targets"'])
def test_arms_that_differ_in_something_else_are_not_recorded(root, store, tmp_path, named):
    path = root / "replications" / "toy" / "claims.toml"
    path.write_text(CLAIMS.replace('"soft targets"', named))
    session, results = prepare("toy", seeds=(0, 1), store=store, workers=1), tmp_path / "results"
    with pytest.raises(KDError, match="nothing is recorded: compared arms are not as") as error:
        record(session, results)
    assert ("C1, controlled: expected distilled and baseline, seed 1, to differ" in str(error.value)) == (not named)
    assert ("C1, controlled: expected a difference in steps, found none" in str(error.value)) == bool(named)
    assert [file.name for file in (results / "toy").iterdir()] == [".lock"]
