"""A failed run, a number outside its band and a changed verdict are named; the exit status is then 1."""

import csv
import json
import math
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from scipy import stats
from torch import nn

from kdlib.cli import commands, main
from kdlib.errors import KDError
from kdlib.judge.bands import read_bands, write_bands
from kdlib.judge.claims import SHAM
from kdlib.report.sessions import departures
from kdlib.run import prepare
from kdlib.run.environment import LIBRARY, asked_git, environment
from kdlib.run.records import read_records, write_records
from tests.conftest import TOY, changed, module_of, write_toy
from tests.toy import Config

ROOT = TOY.parents[1]
CLAIMS = """
[source]
citation = "A toy"
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
    """A repository with the toy experiment only, as the current folder. No data are looked for."""
    folder = write_toy(tmp_path) / "replications" / "toy"
    (folder / "claims.toml").write_text(CLAIMS)
    monkeypatch.setattr(module_of("toy"), "__file__", str(folder / "experiment.py"))
    monkeypatch.setattr("kdlib.data.fetch.find", lambda name, *rest: tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kd(root, capsys):
    """Return a function that runs one command: its status, its output, and the sentences about what failed."""

    def run(*arguments):
        status = main([*arguments, "--workers", "1"])
        printed = capsys.readouterr()
        return status, printed.out, [line.removeprefix("FAILED  ") for line in printed.err.splitlines()]

    return run


def put_bands(root, low, high):
    """Put all bands elsewhere, and return a function that puts them back."""
    path = root / "replications" / "toy" / "bands.toml"
    right = path.read_bytes()
    moved = {}
    for key, known in read_bands(path).items():
        bands = {name: replace(band, low=low, high=high) for name, band in known.bands.items()}
        moved[key] = replace(known, bands=bands)
    write_bands(path, moved)
    return lambda: path.write_bytes(right)


@pytest.mark.parametrize(
    "command",
    [
        ("run", "toy", "--arms", "below_refused,crashed,baseline"),
        ("check",),
        ("record", "toy", "--seed", "0", "--arms", "below_refused,crashed,baseline"),
    ],
)
def test_a_run_that_failed_or_was_not_started(kd, toy, monkeypatch, command):
    changed(monkeypatch, "toy", check=("below_refused", "crashed", "baseline"))
    status, _, failed = kd(*command)
    assert status == 1
    place = "toy: " if command == ("check",) else ""
    refused, crashed, blocked = failed[:3]
    assert refused == f"{place}refused, seed 0: failed: refused, seed 0: a reason a user can act on"
    assert crashed.startswith(f"{place}crashed, seed 0: failed: ZeroDivisionError: ")
    assert blocked == f"{place}below_refused, seed 0: not started, because its parent refused, seed 0 failed"


def test_an_error_takes_no_earlier_failure_with_it(kd, toy, monkeypatch):
    names = iter(("toy", "gone"))

    def prepare_one(*arguments, **options):
        if next(names) == "gone":
            raise KDError("its data are gone")
        return prepare(*arguments, **options)

    monkeypatch.setattr("kdlib.cli.commands.prepare", prepare_one)
    changed(monkeypatch, "toy", check=("crashed",))
    status, _, told = kd("check", "toy", "toy")
    assert status == 2
    assert told[0].startswith("toy: crashed, seed 0: failed: ZeroDivisionError: ")
    assert told[-1] == "kd: its data are gone"


def test_a_check_that_compares_nothing_has_failed(kd, toy, monkeypatch, tmp_path):
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[0] == 0
    changed(monkeypatch, "toy", check=("baseline",))
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

    monkeypatch.setattr("kdlib.report.recording.read_records", look)
    assert kd("record", "toy", "--seed", "0", "--arms", "teacher")[0] == 0
    assert held == [True, True]  # read before the training, and before writing


@pytest.mark.slow
def test_a_number_far_outside_its_band(kd, root):
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[::2] == (0, [])
    commands = [("check",), ("check", "toy"), ("run", "toy", "--arms", "teacher")]
    for command in commands:
        status, out, failed = kd(*command)
        assert (status, failed) == (0, [])
        if "check" in command:
            assert "toy: 1 number of 1 arm checked, 0 outside their bands" in out
            assert "reused" not in out  # the store has this run; a check trains it again
    put_back = put_bands(root, 0.0, 0.01)
    for command in commands:
        status, out, failed = kd(*command)
        assert status == 1
        (sentence,) = failed
        assert "teacher, seed 0: accuracy is 0." in sentence
        assert "outside its band 0 to 0.01, recorded by commit unknown; and outside 0 to 0.0" in sentence
        assert ("checked, 1 outside their bands" in out) == ("check" in command)
    put_back()
    assert kd("check")[0] == 0


def test_a_number_just_outside_its_band_is_a_warning(kd, root):
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[::2] == (0, [])
    (known,) = read_bands(root / "replications" / "toy" / "bands.toml").values()
    accuracy = known.bands["teacher.accuracy"].values[0]
    put_bands(root, accuracy - 0.21, accuracy - 0.01)  # the wider band reaches 0.02 further
    for command in (("check",), ("run", "toy", "--arms", "teacher", "--seed", "0")):
        status, out, failed = kd(*command)
        assert (status, failed) == (0, [])
        place = "toy: " if "check" in command else ""
        assert f"{place}warning: teacher, seed 0: accuracy is {accuracy:.6g}, outside its band " in out
        assert ", as 1 number in 100 is\n" in out
        assert f"{place}warning: numbers outside their bands: 1 of 1; bands missed: 1 of 1, by chance up to 1\n" in out


@pytest.mark.slow
def test_replications_that_are_checked_together_share_the_level(kd, root):
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[::2] == (0, [])
    (known,) = read_bands(root / "replications" / "toy" / "bands.toml").values()
    accuracy = known.bands["teacher.accuracy"].values[0]
    # Of one check, the band is 1.22 times as wide as the one of 99%; of three together, 1.64 times.
    put_bands(root, accuracy - 0.24, accuracy - 0.04)
    assert kd("check", "toy")[0] == 1
    assert kd("check", "toy", "toy", "toy")[0] == 0


def test_a_check_without_bands_checks_nothing(kd):
    status, _, failed = kd("check")
    assert (status, failed) == (1, ["toy: no bands are recorded for data toy-data; `kd record toy` makes them"])


@pytest.mark.parametrize("command", ["run", "record", "check", "cost"])
def test_outside_its_repository_a_replication_is_refused(kd, root, tmp_path, monkeypatch, command):
    """Python may find `replications` elsewhere: the bands there would be replaced, and the tables written here."""
    assert kd("record", "toy", "--seeds", "5", "--arms", "teacher")[0] == 0
    bands = (root / "replications" / "toy" / "bands.toml").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, _, (said,) = kd(command, "toy", *(["--seeds", "2"] if command in ("run", "record") else []))
    assert status == 2
    assert f"found that Python imports {root / 'replications' / 'toy'}; call kd in {root}" in said
    assert (root / "replications" / "toy" / "bands.toml").read_bytes() == bands
    assert [*Path().iterdir()] == []


def test_an_installed_kdlib_that_differs_from_the_folders_is_refused(kd, root, capsys):
    (own := root / "kdlib").mkdir()
    for path in LIBRARY.rglob("[!.]*.py"):
        (own / path.relative_to(LIBRARY)).parent.mkdir(parents=True, exist_ok=True)
        (own / path.relative_to(LIBRARY)).write_bytes(path.read_bytes())
    assert kd("run", "toy", "--arms", "teacher", "--seed", "0", "--dry-run")[0] == 0
    with (own / "losses.py").open("a") as file:
        file.write("# an edit\n")
    for command in (("run", "toy"), ("record", "toy"), ("check",), ("tables",)):
        status = main([*command])
        (said,) = capsys.readouterr().err.splitlines()
        assert status == 2
        assert f"found that kd is installed in {LIBRARY} and differs in losses.py" in said
        assert "python -m kdlib" in said


def test_of_all_replications_those_without_bands_are_left_out(kd, root, monkeypatch):
    chosen = []

    def prepare_one(name, *arguments, **options):
        chosen.append(name)
        raise KDError("not trained here")

    monkeypatch.setattr("kdlib.cli.commands.prepare", prepare_one)
    monkeypatch.setattr("kdlib.cli.commands.replications", lambda root: ["toy", "grid"])
    (root / "replications" / "grid").symlink_to(ROOT / "replications" / "grid")
    status, out, _ = kd("check")
    assert (status, chosen) == (2, ["grid"])
    assert "toy: left out, because nothing is recorded yet; `kd record toy` does it" in out
    chosen.clear()
    assert kd("check", "toy")[0] == 2
    assert chosen == ["toy"]


def test_a_seed_is_recorded_next_to_the_others(kd, root):
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
    assert not read_bands(root / "replications" / "toy" / "bands.toml")  # no arm has 5 seeds yet


def test_no_more_seeds_are_recorded_than_are_declared(kd, root, toy, monkeypatch):
    path = root / "results" / "toy" / "runs.jsonl"
    quick = replace(toy.profile("quick"), seeds=2, judged=True)
    changed(monkeypatch, "toy", profiles={**toy.profiles, "quick": quick})
    for seeds, found in ((("--seeds", "4"), "2, 3"), (("--seed", "2"), "2")):
        status, out, (sentence,) = kd("record", "toy", "--arms", "baseline", *seeds)
        assert (status, out) == (2, "")
        assert f"toy, profile quick: expected seeds 0 to 1, which experiment.py declares, found {found}; " in sentence
        assert "raise the declared number there first, with the date" in sentence
        assert not path.exists()  # nothing was trained for it
    assert kd("record", "toy", "--arms", "baseline")[0] == 0  # just the declared seeds
    assert {json.loads(line)["seed"] for line in path.read_text().splitlines()} == {0, 1}
    changed(monkeypatch, "toy", profiles={**toy.profiles, "quick": replace(quick, seeds=1)})
    assert "found 1;" in kd("record", "toy", "--arms", "baseline")[2][0]  # the recorded ones count too
    assert kd("run", "toy", "--arms", "baseline", "--seeds", "4")[0] == 0  # a session of your own may have more


def test_runs_of_two_protocols_are_not_recorded_together(kd, root, toy, monkeypatch):
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    path = root / "results" / "toy" / "runs.jsonl"
    before = path.read_bytes()
    changed(monkeypatch, "toy", protocol=2)
    told = "what is recorded of profile quick is of protocol 1, and these runs are of protocol 2: they need not agree"
    assert told in " ".join(kd("run", "toy", "--seed", "0", "--arms", "baseline")[1].split())
    status, out, (sentence,) = kd("record", "toy", "--seed", "0", "--arms", "baseline")
    assert status == 2
    assert "recorded runs of protocol 2 next to the new ones, found baseline, seed 1, of protocol 1" in sentence
    assert (out, path.read_bytes()) == ("", before)  # nothing was trained for it
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0  # all of them anew
    assert {line["description"]["protocol"] for line in map(json.loads, path.read_text().splitlines())} == {2}


def test_runs_of_two_configurations_are_not_recorded_together(kd, root, toy, monkeypatch):
    """Somebody changes a number in Config and forgets to raise the protocol."""
    assert kd("record", "toy", "--seeds", "3", "--arms", "baseline")[0] == 0
    path = root / "results" / "toy" / "runs.jsonl"
    before = path.read_bytes()
    profiles = {name: replace(each, config=replace(each.config, rate=0.02)) for name, each in toy.profiles.items()}
    changed(monkeypatch, "toy", profiles=profiles)
    monkeypatch.setattr("kdlib.run.group.environment", lambda *which: {**environment(*which), "source": "1" * 16})
    status, out, (sentence,) = kd("record", "toy", "--seeds", "2", "--arms", "baseline")
    assert status == 2
    assert "recorded runs of rate 0.02 next to the new ones, found baseline, seed 2, of rate 0.01; record" in sentence
    assert (out, path.read_bytes()) == ("", before)
    status, out, _ = kd("record", "toy", "--seeds", "3", "--arms", "baseline")  # all of them anew
    assert status == 0
    assert "recorded runs of this profile" not in " ".join(out.split())
    rates = [json.loads(line)["description"]["config"]["rate"] for line in path.read_text().splitlines()]
    assert rates == [0.02] * 3


def test_seeds_that_were_trained_in_different_ways_are_not_recorded_together(kd, root, monkeypatch):
    """The code was edited between them, and `protocol` was not raised."""
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    path, module = root / "results" / "toy" / "runs.jsonl", module_of("toy")
    before, usual = path.read_bytes(), module.network

    def other(stream):
        model = usual(stream)
        model[3].p = 0.4
        return model

    monkeypatch.setattr(module, "network", other)
    monkeypatch.setattr("kdlib.run.group.environment", lambda *which: {**environment(*which), "source": "1" * 16})
    status, _, (sentence,) = kd("record", "toy", "--seed", "2", "--arms", "baseline")
    assert status == 2
    assert "baseline of profile quick: seeds 0 and 2 differ in the network. Raise `protocol`" in sentence
    assert path.read_bytes() == before
    monkeypatch.setattr(module, "network", usual)
    monkeypatch.setattr("kdlib.run.group.environment", lambda *which: {**environment(*which), "source": "0" * 16})
    status, out, _ = kd("record", "toy", "--seed", "3", "--arms", "baseline")
    assert status == 0
    assert "2 recorded runs of this profile were trained with other source files" in " ".join(out.split())
    assert len(path.read_text().splitlines()) == 3


@dataclass(frozen=True)
class Wider(Config):
    decay: float = 0.1


def test_runs_of_configurations_with_other_fields_are_compared_by_their_traces(kd, root, toy, monkeypatch):
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    path, module = root / "results" / "toy" / "runs.jsonl", module_of("toy")
    before, usual = path.read_bytes(), module.network
    wider = {name: replace(each, config=Wider(**asdict(each.config))) for name, each in toy.profiles.items()}
    changed(monkeypatch, "toy", profiles=wider)
    monkeypatch.setattr(module, "network", lambda stream: usual(stream).append(nn.Identity()))
    monkeypatch.setattr("kdlib.run.group.environment", lambda *which: {**environment(*which), "source": "1" * 16})
    status, _, (sentence,) = kd("record", "toy", "--seed", "2", "--arms", "baseline")
    assert (status, path.read_bytes()) == (2, before)
    assert "baseline of profile quick: seeds 0 and 2 differ in the network. Raise `protocol`" in sentence
    monkeypatch.setattr(module, "network", usual)
    assert kd("record", "toy", "--seed", "3", "--arms", "baseline")[0] == 0  # a field that changes nothing
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert ["decay" in line["description"]["config"] for line in lines] == [False, False, True]
    write_records(path, [replace(record, trace={}) for record in read_records(path)])
    status, out, (sentence,) = kd("record", "toy", "--seed", "3", "--arms", "baseline")
    assert (status, out) == (2, "")
    assert "recorded runs of decay 0.1 next to the new ones, found baseline, seed 0, of decay (missing); re" in sentence


def test_seeds_with_a_failed_run_are_not_recorded(kd, root, monkeypatch):
    """The others are; so no arm has seeds that another one lacks."""
    module, command = module_of("toy"), ("record", "toy", "--seeds", "3", "--arms", "baseline,distilled")
    path, usual = root / "results" / "toy" / "runs.jsonl", module.train

    def full_disk(run, objective, keep_targets=False):
        if keep_targets and run.seed > broken:
            raise KDError("the disk is full")
        return usual(run, objective, keep_targets)

    broken = -1
    monkeypatch.setattr(module, "train", full_disk)
    status, out, failed = kd(*command)
    assert (status, len(failed), path.exists()) == (1, 6, False)  # each teacher, and its student
    assert "Nothing is recorded: no seed is complete." in out
    broken = 0
    status, out, failed = kd(*command)
    assert (status, len(failed)) == (1, 4)
    assert "Not recorded, because not all of their runs are finished: seeds 1, 2." in out
    places = {(record.seed, arm) for record in read_records(path) for arm in record.arms}
    assert places == {(0, arm) for arm in ("baseline", "teacher", "distilled")}


def test_code_that_is_not_committed_is_not_recorded(kd, root, monkeypatch):
    monkeypatch.setattr("kdlib.report.recording.is_clean", lambda folder: False)
    status, _, (sentence,) = kd("record", "toy", "--seed", "0", "--arms", "baseline")
    assert status == 2
    assert "expected code that is committed, so that a recorded run names it, found changes in kdlib/ or" in sentence
    assert not (root / ".kd" / "runs").exists()
    assert not (root / "results" / "toy" / "runs.jsonl").exists()


def test_a_repository_that_git_refuses_records_nothing(kd, root, monkeypatch):
    """That of another user of a shared folder, for example: no commit would name the code."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    subprocess.run(["git", "-C", str(root), "init"], check=True, capture_output=True)
    asked_git.cache_clear()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    status, _, (sentence,) = kd("record", "toy", "--seed", "0", "--arms", "baseline")
    assert status == 2
    assert (
        "expected git to name the commit of the code, so that a recorded run names it, found that git says" in sentence
    )
    assert "dubious ownership" in sentence
    assert not (root / ".kd" / "runs").exists()
    assert not (root / "results" / "toy" / "runs.jsonl").exists()


def test_runs_that_the_store_has_of_uncommitted_code_are_told(kd, root, monkeypatch):
    monkeypatch.setattr("kdlib.run.group.environment", lambda *which: {**environment(*which), "clean": False})
    status, out, _ = kd("record", "toy", "--seed", "0", "--arms", "baseline")
    assert status == 0
    assert "1 runs of the store were trained with code that no commit is known to hold" in " ".join(out.split())


@pytest.mark.slow
def test_tables_are_of_the_records_at_the_time_of_writing_and_renew_the_bands(kd, root, toy, monkeypatch):
    assert kd("record", "toy", "--seeds", "5", "--arms", "baseline")[0] == 0
    results, bands = root / "results" / "toy", root / "replications" / "toy" / "bands.toml"
    five, right = (results / "runs.jsonl").read_text(), bands.read_bytes()
    bands.write_text("")
    (root / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    found = commands.committed

    def before_the_others_record(folder):
        (results / "runs.jsonl").write_text("".join(five.splitlines(keepends=True)[:3]))
        known = found(folder)
        (results / "runs.jsonl").write_text(five)
        return known

    monkeypatch.setattr(commands, "committed", before_the_others_record)
    assert main(["tables"]) == 0
    assert bands.read_bytes() == right
    assert [row["n"] for row in csv.DictReader((results / "quick-arms.csv").read_text().splitlines())] == ["5"]


def test_tables_that_no_run_has_made_are_told(kd, root, capsys):
    assert kd("record", "toy", "--seeds", "2", "--arms", "baseline")[0] == 0
    (root / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    for name in ("toy/old.md", "toy/cost.md", "gone/runs.jsonl"):
        (root / "results" / name).parent.mkdir(exist_ok=True)
        (root / "results" / name).touch()
    assert main(["tables"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("results/")]
    assert [line.partition(":")[0] for line in told] == ["results/toy/old.*", "results/gone"]
    assert "delete" not in told[1]  # its runs are worth more than a tidy folder
    assert "there is no replication gone, but results/gone/runs.jsonl is here" in told[1]


@pytest.mark.slow
def test_a_band_names_the_commits_of_its_arms_runs(kd, root):
    for arm, commit in (("teacher", "a" * 40), ("baseline", "b" * 40)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "kdlib.run.group.environment", lambda *of, commit=commit: {**environment(*of), "commit": commit}
            )
            assert kd("record", "toy", "--seeds", "5", "--arms", arm)[0] == 0
    (recorded,) = read_bands(root / "replications" / "toy" / "bands.toml").values()
    commits = {key: band.commit for key, band in recorded.bands.items()}
    assert commits == {"teacher.accuracy": "a" * 12, "baseline.accuracy": "b" * 12}


# ---- the recorded runs of MNIST, with numbers moved


@pytest.fixture(scope="module")
def full():
    return [r for r in read_records(ROOT / "results" / "mnist" / "runs.jsonl") if r.profile == "full"]


@pytest.fixture(scope="module")
def session_of_mnist():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdlib.data.fetch.find", lambda name, *rest: ROOT)
        return prepare("mnist", "full")


def departing(session, full, moved, metric, value):
    """Return the departures and notes if a metric of each (arm, seed) in `moved` is replaced by `value(seed)`."""
    records = []
    for record in full:
        snapshots = {snapshot for arm, snapshot in record.arms.items() if (arm, record.seed) in moved}
        changed = {name: record.metrics[name] | {metric: value(record.seed)} for name in snapshots}
        records.append(replace(record, metrics={**record.metrics, **changed}))
    return departures(session, records)


@pytest.mark.parametrize(
    ("arm", "metric"), [("teacher", "accuracy"), ("sham", "accuracy"), ("distilled", "teacher_kl")]
)
def test_one_number_far_outside_its_band_is_a_departure(session_of_mnist, full, arm, metric):
    (recorded,) = (
        found for key, found in read_bands(ROOT / "replications/mnist/bands.toml").items() if key[1] == "full"
    )
    band = recorded.bands[f"{arm}.{metric}"]
    numbers = 20 * len(recorded.bands)
    half = stats.t.isf(0.005 / numbers / 2, 19) * np.std(band.values, ddof=1) * math.sqrt(1 + 1 / 20)
    low, high = band.mean - half, min(band.mean + half, 1.0)

    def found(value):
        return departing(session_of_mnist, full, {(arm, 3)}, metric, lambda seed: value)

    assert found(band.low + 1e-6) == ([], [])
    for near in (band.low - 1e-6, low + 1e-6, high - 1e-6):  # outside at 99%, but not for a whole session
        problems, notes = found(near)
        assert problems == []
        assert notes[0].startswith(f"warning: {arm}, seed 3: {metric} is {near:.6g}, outside its band {band.low:.6g} ")
        assert notes[1].startswith(f"warning: numbers outside their bands: 1 of {numbers}; bands missed: 1 of ")
    for far in (low - 1e-6, high + 1e-6):
        (sentence,), notes = found(far)
        assert sentence.startswith(f"{arm}, seed 3: {metric} is {far:.6g}, outside its band {band.low:.6g} to ")
        assert f"; and outside {low:.6g} to {high:.6g}, which a number leaves by chance in 1 of 200" in sentence


def test_another_verdict_and_another_place_are_departures(session_of_mnist, full):
    """All numbers lie in their bands, but the baseline is nearly as good as the distilled student."""
    moved = {("baseline", seed) for seed in range(20)}
    found, notes = departing(session_of_mnist, full, moved, "accuracy", lambda seed: 0.9877 + seed * 1e-5)
    assert notes == []
    assert [sentence.partition(", now ")[0] for sentence in found] == [
        *(f"C1, {mode}: recorded replicated" for mode in ("as described", "as released", "controlled")),
        "baseline.accuracy: recorded inside its reported range",
    ]


@pytest.mark.parametrize(
    ("arm", "over", "modes", "said"),
    [
        (
            "distilled",
            "baseline",
            {"baseline": ("as described",)},
            "found baseline, which is as described; take another",
        ),
        ("baseline", "distilled", {"baseline": (SHAM,)}, "found baseline, which is sham"),
        ("distilled", "baseline", {"baseline": (SHAM,)}, None),  # what a student is compared with may be a sham
    ],
)
def test_a_claim_is_about_arms_that_have_its_mode(kd, root, toy, monkeypatch, arm, over, modes, said):
    arms = tuple(replace(each, modes=modes.get(each.name, ("controlled",))) for each in toy.arms)
    changed(monkeypatch, "toy", arms=arms)
    text = CLAIMS.replace('arm = "distilled", over = "baseline"', f'arm = "{arm}", over = "{over}"')
    (root / "replications" / "toy" / "claims.toml").write_text(text)
    status, _, failed = kd("run", "toy", "--seed", "0", "--arms", "baseline")
    assert status == (2 if said else 0)
    assert not said or f"claims.C1.modes: expected arms of mode 'controlled', {said}" in failed[0]
