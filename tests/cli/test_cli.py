"""The command line: what it prints, its exit statuses, and that a user's mistake never shows a traceback."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import pytest

from kdlib.checks import path_of
from kdlib.cli import how_to_go_on, main, values
from kdlib.data import fetch
from kdlib.errors import KDError
from kdlib.judge.judging import outcomes
from kdlib.report.pages import reported_of
from kdlib.report.sessions import departures
from kdlib.run import prepare
from kdlib.run.records import measured, read_records
from tests.conftest import changed, module_of

ROOT = Path(__file__).parents[2]


def kd(capsys, *arguments):
    status = main(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """An empty work folder with the real replications and no data anywhere."""
    (tmp_path / "replications").symlink_to(ROOT / "replications")  # those that Python imports
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDLIB_OFFLINE", "1")
    monkeypatch.delenv("KDLIB_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "egc"], "no replication 'egc'"),
        (["run", "ecg", "--profile", "quik"], "no profile 'quik'; there are full, quick, smoke"),
        (["run", "ecg", "--profile", "smoke", "--arms", "studnet"], "no arm 'studnet'; there are"),
        (["run", "ecg", "--profile", "smoke", "--device", "tpu"], "expected cpu, cuda, or cuda:N"),
        (["run", "ecg", "--profile", "smoke", "--device", "cpu:0"], "expected cpu, cuda, or cuda:N"),
        (["run", "ecg", "--profile", "smoke", "--device", "cuda:99"], "expected CUDA device 99, found "),
        (["run", "ecg", "--require-real"], "KDLIB_OFFLINE"),
        (["run", "ecg", "--data", "nowhere"], "nowhere"),
        (["check", "ecg"], "KDLIB_OFFLINE"),
        (["runs", "show"], "expected the beginning of a run's id"),
        (["runs", "verify"], "--store .kd: expected a store of runs, found no such folder"),
        (["explain", "beef", "--store", "typo"], "--store typo: expected a store of runs, found no such folder"),
        (["explain", "beef", "--store", "."], "run 'beef'"),
        (["data", "where", "mnits"], "no data set 'mnits'"),
        (["tables", "ecgg"], "no replication 'ecgg'"),
        (["record", "ecg", "--profile", "smoke"], "profile smoke of ecg: expected one on real data"),
        (["run", "ecg", "--set", "split"], "--set split: expected FIELD=VALUE, found no '='"),
        (["run", "ecg", "--set", "epochs=3"], "expected fields that choose the data of ecg, which are split"),
        (
            ["run", "ecg", "--profile", "smoke", "--set", "split=any"],
            "split: expected published or inter-patient, found",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(tree, capsys, arguments, said):
    status, _, errors = kd(capsys, *arguments)
    assert status == 2
    assert errors.startswith("kd: ")
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "ecg", "--seeds", "0"],
        ["run", "ecg", "--seed", "-1"],
        ["frobnicate"],
        [],
        ["run", "ecg", "--seed", "x"],
        ["run", "ecg", "--seeds", "5", "--seed", "3"],
        ["run", "ecg", "--arms", ","],
        ["run", "ecg", "--seeds", str(10**30)],
        ["run", "ecg", "--seeds", "9" * 5000],
        ["run", "ecg", "--seed", str(10**30)],
        ["record", "ecg", "--seed", "-1"],
        ["run", "ecg", "--workers", "0"],
        ["run", "ecg", "--threads", "-1"],
        ["run", "ecg", "--threads", str(10**9)],
        ["run", "ecg", "--replicas", "1.5"],
        ["run", "ecg", "--minutes", "nan"],
        ["run", "ecg", "--minutes", "inf"],
        ["run", "ecg", "--minutes", "-1"],
        ["run", "ecg", "--store", ""],
        ["runs", "list", "--store", " "],
        ["runs", "list", "--store", __file__],
        ["run", "ecg", "--store", __file__],
        ["run", "ecg", "--ray", ""],
        ["runs", "export", "folder", "--profile", " "],
        ["run", "ecg", "--data", ""],
        ["data", "where", "--data", ""],
        ["cost", "ecg", "--data", ""],
        ["run", "ecg", "--minut", "5"],  # shortened: the command that goes on would keep it
    ],
)
def test_wrong_options_are_argparses_business(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: kd" in capsys.readouterr().err


@pytest.mark.slow
def test_without_the_data_a_run_is_smoke_marked_and_without_verdicts(tree, capsys, monkeypatch):
    ecg = module_of("ecg")
    smoke = replace(
        ecg.PROFILES["smoke"], config=replace(ecg.SMOKE, synthetic_rows=1500), arms=("baseline", "distilled")
    )
    changed(monkeypatch, "ecg", profiles={**ecg.PROFILES, "smoke": smoke})
    first = "SYNTHETIC DATA: ecg runs profile smoke instead of full, and no claim gets a verdict,"
    last = "SYNTHETIC DATA: profile smoke ran instead of full. The first lines say why."
    run = ["run", "ecg", "--store", str(tree / "store"), "--workers", "1", "--profile", "full", "--seeds", "6"]
    status, out, errors = kd(capsys, *run)
    assert (status, errors) == (0, "")
    assert (out.splitlines()[0], out.splitlines()[-1]) == (first, last)
    assert "KDLIB_OFFLINE is set" in out  # why the data are not there
    assert "[3/3]" in out  # one seed of teacher, baseline and distilled
    assert "To run" not in out
    assert "For the other" not in out
    assert "## Claims" not in out
    page = (tree / "results" / "ecg" / "local" / "smoke.md").read_text()
    assert "SYNTHETIC DATA" in page
    assert "none: synthetic data" in page
    assert [path.stem for path in (tree / "results" / "ecg" / "local").glob("*.md")] == ["smoke"]

    status, out, _ = kd(capsys, *run, "--print")
    assert status == 0
    assert out.index("## Claims") < out.index("\necg, profile smoke: ")  # the whole tables come first
    assert "[3/3] 3 runs reused from the store" in out  # teacher, baseline, distilled: nothing is trained again
    assert kd(capsys, *run, "--require-real")[0] == 2
    status, out, _ = kd(capsys, *run, "--dry-run", "--arms", "baseline")
    assert (status, out.splitlines()[0], out.splitlines()[-1]) == (0, first, last)
    assert "1 run;" in out

    store = ["--store", str(tree / "store")]
    status, out, _ = kd(capsys, "runs", "list", *store)
    ids = [line.split()[0] for line in out.splitlines()[1:]]
    assert (status, len(ids)) == (0, 3)
    assert json.loads(kd(capsys, "runs", "show", ids[0], *store)[1])["description"]["seed"] == 0
    status, out, _ = kd(capsys, "explain", ids[0][:6], *store)
    assert status == 0
    assert f"run {ids[0]}" in out
    assert "source files: as they are now in ecg" in out
    assert kd(capsys, "runs", "verify", *store)[0] == 0
    status, out, _ = kd(capsys, "runs", "prune", ids[0], *store)
    assert (status, "weights dropped" in out) == (0, True)
    assert kd(capsys, "runs", "verify", *store)[0] == 0
    with (tree / "store" / "runs" / ids[1] / "run.json").open("a") as file:
        file.write(" ")
    for named in ([], [ids[1][:8]]):
        status, out, _ = kd(capsys, "runs", "verify", *named, *store)
        assert (status, f"{ids[1]}  damaged" in out) == (1, True)
    (tree / "store" / "runs" / ids[2] / "run.json").unlink()
    status, _, errors = kd(capsys, "runs", "show", ids[2], *store)
    assert (status, errors.startswith("kd: ")) == (2, True)
    # Listing what is left moves nothing. Only a session that trains the damaged run again sets it aside, and says so.
    assert "in the store" in kd(capsys, "run", "ecg", "--dry-run", *store)[1]
    assert (tree / "store" / "runs" / ids[1]).exists()


def test_dry_run_trains_nothing(tree, capsys):
    status, out, _ = kd(capsys, "run", "ecg", "--profile", "smoke", "--dry-run", "--store", str(tree / "store"))
    assert status == 0
    assert out.splitlines()[-1] == "5 runs; cost unknown (nothing recorded yet)"
    assert not (tree / "store").exists()


def test_minutes_are_at_least_those_of_the_longest_chain(tree, capsys, monkeypatch):
    monkeypatch.setattr("kdlib.data.fetch.find", lambda *_: tree)  # pictures are made, but profile quick is listed
    pictures = module_of("ta_chain").EXPERIMENT.load_data
    changed(monkeypatch, "ta_chain", load_data=lambda config, folders: pictures(config, {}))
    (tree / "results").mkdir()
    shutil.copytree(ROOT / "results" / "ta_chain", tree / "results" / "ta_chain")
    arms = ("--arm", "ta_6", "--arm", "scratch_2")  # 10, 6 and 2, one after the other; and another of 2
    status, out, _ = kd(capsys, "run", "ta_chain", "--seed", "0", *arms, "--workers", "64", "--dry-run")
    minutes = {line.split()[1].strip(","): float(line.split("about ")[1].split()[0]) for line in out.splitlines()[:-1]}
    assert status == 0
    assert minutes.keys() == {"scratch_2", "scratch_10", "student_6_of_10", "ta_6"}
    chain = sum(minutes.values()) - minutes["scratch_2"]
    assert abs(float(out.splitlines()[-1].split("about ")[1].split()[0]) - chain) <= 0.7  # rounded


def test_a_terminal_without_dashes_gets_the_tables_all_the_same(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("kdlib.cli.listing.show_list", lambda options: print("a — b") or 0)
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["list"]) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"a \\u2014 b\n"


def full_session_of_mnist(monkeypatch, seeds):
    monkeypatch.setattr("kdlib.data.fetch.find", lambda name, *rest: ROOT)
    return prepare("mnist", "full", seeds=range(seeds))


def test_verdicts_of_fewer_seeds_are_not_held_against_the_recorded_ones(monkeypatch):
    """Ranges and verdicts depend on the number of seeds: MNIST's first 5 of 20 would change one."""
    records = [r for r in read_records(ROOT / "results" / "mnist" / "runs.jsonl") if r.profile == "full"]
    assert {r.seed for r in records} == set(range(20))
    note = "Verdicts and ranges are not compared with the recorded ones, which are of 20 seeds, 0 to 19."
    for seeds, notes in ((5, [note]), (20, [])):
        session = full_session_of_mnist(monkeypatch, seeds)
        assert departures(session, [r for r in records if r.seed < seeds]) == ([], notes)


def test_more_seeds_are_compared_by_those_that_are_recorded(monkeypatch):
    """Numbers of 20 more seeds, all in their bands, would change verdicts; the recorded seeds are as they were."""
    records = [r for r in read_records(ROOT / "results" / "mnist" / "runs.jsonl") if r.profile == "full"]
    more = []
    for record in records:
        level = {"final": {**record.metrics["final"], "accuracy": 0.9877 + record.seed * 1e-5}}
        moved = {**record.metrics, **level} if "baseline" in record.arms else record.metrics
        more.append(replace(record, seed=record.seed + 20, metrics=moved))
    session = full_session_of_mnist(monkeypatch, 40)
    reported = reported_of(session.experiment)
    now = outcomes(reported, measured([*records, *more]), 40)
    assert now["C1"]["controlled"] != outcomes(reported, measured(records), 20)["C1"]["controlled"]
    assert departures(session, [*records, *more]) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "ecg", "--seed", "3"], "nox -s replicate_ecg -- --seed 3\nor, without nox:\nkd run ecg --seed 3"),
        (["run", "--seed", "3", "ecg"], "kd run --seed 3 ecg"),
        (["run", "ecg", "--data", "my data"], "kd run ecg --data 'my data'"),
        (["record", "ecg"], "kd record ecg"),
        (["check"], ""),  # its store is a temporary folder
        (["data", "fetch"], ""),
    ],
)
def test_how_to_go_on(arguments, said, monkeypatch, tmp_path):
    (tmp_path / "kd").touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "kd")])
    monkeypatch.setenv("PATH", str(tmp_path))
    found = how_to_go_on(arguments).partition("To continue:\n")[2]
    assert found == said or found.endswith("\n" + said)
    monkeypatch.setenv("PATH", "")  # kd was called by its path
    by_path = said.rpartition("\n")[2].replace("kd", str(tmp_path / "kd"), 1)
    assert how_to_go_on(arguments).endswith(by_path)
    monkeypatch.setattr("sys.argv", ["kdlib/__main__.py"])  # as `python -m kdlib`, where kd may not be in the path
    assert how_to_go_on(arguments).endswith(said.rpartition("\n")[2].replace("kd", f"{sys.executable} -m kdlib", 1))


def test_list_names_every_replication_profile_and_arm(tree, capsys):
    status, out, _ = kd(capsys, "list")
    assert status == 0
    for word in ("ecg:", "quick:", "full:", "smoke:", "released_baseline", "sham"):
        assert word in out


def test_data_commands_say_where_and_what(tree, capsys):
    assert "not here" in kd(capsys, "data", "where")[1]
    status, out, _ = kd(capsys, "data", "verify")
    assert (status, "not here" in out) == (1, True)
    status, out, _ = kd(capsys, "data", "list")
    assert (status, "ODC-By 1.0" in out) == (0, True)
    assert out.count("\n  here: not here; `kd data fetch ") == len(fetch.names())
    (tree / "sets" / "mnist").mkdir(parents=True)
    (tree / "sets" / "mnist" / "train-images-idx3-ubyte.gz").touch()
    out = kd(capsys, "data", "list", "mnist", "mitdb", "--data", "sets")[1]
    assert f"mnist\n  here: {Path('sets') / 'mnist'} (--data)\n" in out
    assert "mitdb\n  here: not here\n" in out
    status, _, errors = kd(capsys, "data", "fetch")
    assert (status, "KDLIB_OFFLINE" in errors) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [["verify", "--data", "{}", "mnist"], ["--data", "{}", "verify", "mnist"], ["verify", "mnist", "--data", "{}"]],
)
def test_names_may_follow_options(tree, capsys, arguments):
    status, out, _ = kd(capsys, "data", *(text.format(tree) for text in arguments))
    assert status == 1
    assert out.startswith(f"mnist: --data {tree}: expected the data set mnist, found none. Looked for ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "list", "--all"],
        ["run", "ecg", "mnist"],
        ["check", "ecg", "--al", "mnist"],
        ["list", "--all"],
        ["check", "ecg", "--require-real"],
        ["check", "ecg", "--store=x"],
    ],
)
def test_what_no_command_has_is_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert (
        f"unrecognized arguments: {' '.join(arguments[2 if arguments[0] != 'list' else 1 :])}"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue_and_the_same_command_does(tree):
    (tree / "replications").unlink()  # a copy, since it is edited
    shutil.copytree(ROOT / "replications", tree / "replications", ignore=shutil.ignore_patterns("__pycache__"))
    experiment = tree / "replications" / "ecg" / "experiment.py"
    longer = experiment.read_text().replace("SMOKE = replace(QUICK, epochs=8,", "SMOKE = replace(QUICK, epochs=20,")
    assert longer != experiment.read_text()
    experiment.write_text(longer)  # so long that the signal comes in time on a busy machine too
    command = [
        sys.executable,
        "-m",
        "kdlib",
        "run",
        "ecg",
        "--profile",
        "smoke",
        "--arm",
        "baseline",
        "--store",
        "store",
    ]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tree}:{ROOT}", "HOME": str(tree), "PYTHONUNBUFFERED": "1"}
    # If the tests run in the background, SIGINT is ignored in their child processes too.
    stopped = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if "epoch 1/" in line:
            stopped.send_signal(signal.SIGINT)
            break
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "To continue:\nnox -s replicate_ecg -- --profile smoke --arm baseline --store store\n" in errors
    assert errors.endswith(f"{sys.executable} -m kdlib run ecg --profile smoke --arm baseline --store store\n")
    time.sleep(0.1)
    again = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "epoch 1/" not in again.stdout
    assert "epoch 20/20" in again.stdout


@pytest.mark.slow
def test_a_lost_reader_ends_a_command_and_a_lost_process_is_told(tree, monkeypatch, capfd):
    """Both are a BrokenPipeError."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdlib", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 141)
    process.stderr.close()

    def lost(options):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("kdlib.cli.listing.show_list", lost)
    assert main(["list"]) == 2
    assert "kd: a process that this one talks to is gone" in capfd.readouterr().err


def test_a_folder_below_home_is_that_one_though_no_shell_expands_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, path in (("~/runs", tmp_path / "runs"), ("~", tmp_path), ("a~/b", Path("a~/b"))):
        assert values.folder(text) == path_of("store", text) == path
    assert values.file("~/model.onnx") == tmp_path / "model.onnx"
    for wrong in ("./~", "~nobody-of-that-name/x"):
        with pytest.raises(ArgumentTypeError, match="expected a path without ~"):
            values.folder(wrong)
    with pytest.raises(KDError, match="store: expected a path without ~"):
        path_of("store", Path("~/runs"))


def test_data_below_home_are_found(tmp_path, monkeypatch):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KDLIB_DATA", "~/data")
    with pytest.raises(KDError, match=f"{tmp_path}/data"):
        fetch.find("mnist")


def test_data_that_are_not_found_are_told_with_what_is_there(tmp_path, capsys):
    (tmp_path / "Training" / "Cat").mkdir(parents=True)
    status, out, _ = kd(capsys, "data", "verify", "cats_dogs", "--data", str(tmp_path))
    assert status == 1
    assert f"cats_dogs: --data {tmp_path}: expected the data set cats_dogs, found none. Looked for training/cat" in out
    assert "Training" in out.partition("Looked for")[2]
