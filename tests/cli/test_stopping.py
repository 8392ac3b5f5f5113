"""A stopped session: status 3 or 130, no traceback at any moment, and a last line that continues to the same bytes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from kdlib import cli
from kdlib.cli.stopping import STOPPED, Stopped, Stopping
from kdlib.run.limit import Limit
from kdlib.run.records import read_records
from kdlib.run.workers import Here
from tests.cli.test_gates import CLAIMS, kd, root  # noqa: F401 - fixtures
from tests.conftest import TOY, contents, write_toy

ROOT = TOY.parents[1]
ARMS = ["--arms", "baseline,distilled"]  # and their teacher


@pytest.fixture
def groups(monkeypatch):
    """Return a function that lets sessions begin only so many runs."""

    begun, begin = [], Here.begin

    def counted(self, group):
        begun.append(group)
        begin(self, group)

    def let(number):
        begun.clear()
        monkeypatch.setattr(Limit, "allows", lambda self, group: len(begun) < number)

    monkeypatch.setattr(Here, "begin", counted)
    return let


# ---- in this process


def test_run_shows_what_is_finished_and_ends_with_the_command(kd, groups, root):  # noqa: F811
    groups(1)
    status, out, errors = kd("run", "toy", "--minutes", "60", *ARMS)
    assert status == STOPPED == 3
    assert not errors
    lines = out.splitlines()
    assert lines[-5] == "The time is up: 2 runs are not finished."
    assert lines[-3] == "nox -s replicate_toy -- --minutes 60 --arms baseline,distilled --workers 1"
    command = shlex.split(lines[-1])
    assert command[-9:] == ["kdlib", "run", "toy", "--minutes", "60", *ARMS, "--workers", "1"]
    assert "baseline" in (root / "results" / "toy" / "local" / "quick.md").read_text()
    groups(99)
    status, out, _ = kd("run", "toy", "--minutes", "60", *ARMS)
    assert status == 0
    assert "reused" in out
    assert "The time is up" not in out


@pytest.mark.slow
def test_record_writes_complete_seeds_only(kd, groups, root):  # noqa: F811
    path, command = root / "results" / "toy" / "runs.jsonl", ("record", "toy", "--seeds", "3", *ARMS)
    groups(2)
    status, out, _ = kd(*command, "--minutes", "60")
    assert status == 3
    assert "Nothing is recorded: no seed is complete." in out
    assert not path.exists()
    groups(3)  # 1 of seed 0, 2 of seed 1
    status, out, _ = kd(*command, "--minutes", "60")
    assert status == 3
    assert "Not recorded, because not all of their runs are finished: seeds 1, 2." in out
    assert {(record.seed, arm) for record in read_records(path) for arm in record.arms} == {
        (0, arm) for arm in ("baseline", "teacher", "distilled")
    }
    assert out.splitlines()[-1].endswith(
        "kdlib record toy --seeds 3 --arms baseline,distilled --minutes 60 --workers 1"
    )
    groups(99)
    assert kd(*command)[0] == 0
    first = path.read_bytes()
    assert {record.seed for record in read_records(path)} == {0, 1, 2}
    path.unlink()
    assert kd(*command, "--order", "arms")[0] == 0  # all from the store
    assert path.read_bytes() == first


def test_record_leaves_runs_of_another_protocol_alone(kd, groups, root, toy, monkeypatch):  # noqa: F811
    from tests.conftest import changed

    path, command = root / "results" / "toy" / "runs.jsonl", ("record", "toy", "--seeds", "2", "--arms", "baseline")
    assert kd(*command)[0] == 0
    before = path.read_bytes()
    changed(monkeypatch, "toy", protocol=2)
    groups(1)
    status, out, _ = kd(*command, "--minutes", "60")
    assert (status, path.read_bytes()) == (3, before)
    assert "Nothing is recorded" in out
    groups(99)
    assert kd(*command)[0] == 0
    assert {json.loads(line)["description"]["protocol"] for line in path.read_text().splitlines()} == {2}


def test_a_dry_run_lists_the_runs_in_the_order_of_work(kd, root):  # noqa: F811
    def listed(*arguments):
        lines = kd("run", "toy", "--seeds", "2", *ARMS, "--dry-run", *arguments)[1].splitlines()[:-1]
        return [line.split("  ")[1].partition(":")[0] for line in lines]

    arms = ("baseline", "teacher", "distilled")
    assert listed() == [f"{arm}, seed {seed}" for seed in (0, 1) for arm in arms]
    assert listed("--order", "arms") == [f"{arm}, seed {seed}" for arm in arms for seed in (0, 1)]


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon", ""])
def test_minutes_that_cannot_be(minutes, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "toy", "--minutes", minutes])
    assert stopped.value.code == 2
    assert "--minutes: expected a number of minutes above 0" in capsys.readouterr().err


@pytest.fixture
def ctrl_c():
    """Let Ctrl-C interrupt, also if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_raises_once_and_the_handlers_are_given_back(number, kind, ctrl_c):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def stopped():
        with Stopping(lambda status: "") as stopping:
            stopping.ready = True
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGTERM)  # no second exception disturbs the end

    with pytest.raises(KeyboardInterrupt) as stop:
        stopped()
    assert stop.type is kind
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 3), (signal.SIGUSR1, 3), (signal.SIGINT, 130)])
def test_the_status_is_that_of_the_signal_whatever_a_library_raises(number, status, ctrl_c, monkeypatch, capsys):
    """Ray raises KeyboardInterrupt in place of Stopped; Slurm's script queues a job again only after a status of 3."""

    def as_ray_does(options, given):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("kdlib.cli._status", as_ray_does)
    assert cli.main(["list"]) == status
    said = capsys.readouterr()
    assert "Stopped." in (said.err if status == 130 else said.out)


def test_a_later_signal_ends_a_session_that_lost_the_first(ctrl_c, monkeypatch):
    """Python drops an exception that is raised in a destructor."""
    now, ends, said = [0.0], [], []
    monkeypatch.setattr("kdlib.cli.stopping.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        "kdlib.cli.stopping.os", SimpleNamespace(_exit=ends.append, write=lambda *what: said.append(what))
    )
    with Stopping(lambda status: f"last words {status}") as stopping:
        stopping.ready = True
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert not ends
        now[0] = 5.1
        signal.raise_signal(signal.SIGTERM)
    assert ends == [3]
    assert said == [(1, b"last words 3")]


@pytest.mark.parametrize(("stop", "status"), [(Stopped, 3), (KeyboardInterrupt, 130)])
def test_the_statuses_of_a_stop(monkeypatch, capsys, stop, status):
    def stopped(options):
        raise stop

    monkeypatch.setattr("kdlib.cli.commands.run", stopped)
    assert cli.main(["run", "toy", "--seed", "3"]) == status
    printed = capsys.readouterr()
    said = printed.out if status == 3 else printed.err
    assert said.startswith("\nStopped. Every finished run is saved, and every other run up to its last checkpoint.")
    assert said.splitlines()[-1].endswith("kdlib run toy --seed 3")


# ---- in other processes


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A repository with a toy experiment that needs no data."""
    tree = write_toy(tmp_path_factory.mktemp("tree"))
    folder = tree / "replications" / "toy"
    with (folder / "experiment.py").open("a") as file:
        file.write("\nfrom dataclasses import replace\nEXPERIMENT = replace(EXPERIMENT, data=())\n")
    (folder / "claims.toml").write_text(CLAIMS)
    return tree


@pytest.fixture(scope="module")
def whole(tree):
    """The stored files of a session that is not interrupted."""
    started(tree, "--workers", "1", *ARMS, "--store", "whole").communicate(timeout=120)
    return contents(tree / "whole")


@pytest.fixture(autouse=True)
def _empty_store(request):
    if "tree" in request.fixturenames:
        shutil.rmtree(request.getfixturevalue("tree") / "store", ignore_errors=True)


def started(tree, *arguments, python=(), **env):
    """A process of the command line, the head of a group of its own. A file has its errors, so that none blocks it."""
    with (tree / "errors").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, *python, "-m", "kdlib", "run", "toy", "--store", "store", *arguments],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": f"{tree}:{ROOT}", "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def importing(tree, module):
    """Wait until a process that was started with `-X importtime` has imported a module."""
    while f"{module}\n" not in (tree / "errors").read_text():
        time.sleep(0.01)


def ended(tree, process, number):
    """Status, output and errors after a signal to the process and all that it has started."""
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    errors = (tree / "errors").read_text()
    assert "Traceback" not in out + errors
    return process.returncode, out, errors


STOPS = [(signal.SIGTERM, 3), (signal.SIGUSR1, 3), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "status"), STOPS)
def test_a_signal_while_modules_are_imported(tree, number, status):
    process = started(tree, python=("-X", "importtime"))
    importing(tree, "torch._utils_internal")  # amid the import of torch
    found, out, errors = ended(tree, process, number)
    assert found == status
    assert (out if status == 3 else errors).splitlines()[-1].endswith("kdlib run toy --store store")
    assert not (tree / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "workers"), [(signal.SIGTERM, 3, "1"), (signal.SIGINT, 130, "2")])
def test_a_signal_stops_at_once_and_the_last_line_continues(tree, whole, number, status, workers):
    arguments = ("--workers", workers, *ARMS)
    process = started(tree, *arguments, TOY_SLEEP="0.3")
    for line in process.stdout:
        if "epoch 1/" in line:  # of the later ones, only the last is printed at once
            break
    found, out, errors = ended(tree, process, number)
    assert found == status
    command = shlex.split((out if status == 3 else errors).splitlines()[-1])
    again = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": f"{tree}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert "baseline, seed 0: epoch 1/" not in again.stdout
    assert contents(tree / "store") == whole


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status", "wait"), [(*STOPS[1], 0.5), (*STOPS[2], 2.0)])
def test_a_signal_while_workers_start(tree, number, status, wait):
    process = started(tree, "--workers", "2", *ARMS, TOY_SLEEP="60", python=("-X", "importtime"))
    importing(tree, "kdlib.cli.commands")
    time.sleep(wait)
    assert ended(tree, process, number)[0] == status
