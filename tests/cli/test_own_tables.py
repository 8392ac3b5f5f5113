"""A session of one's own: its tables never replace those of more runs, and its hints go on with the same options."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdlib.cli import main, runs
from kdlib.run.labels import _configs, label_of
from kdlib.run.store import Store
from tests.cli.test_gates import kd, root  # noqa: F401 - fixtures
from tests.conftest import module_of

TWO = ("--arms", "baseline,distilled")


@pytest.fixture
def local(root):  # noqa: F811
    return root / "results" / "toy" / "local"


def n_of(path):
    """The number of seeds by arm of a page's table."""
    with path.with_name(f"{path.stem}-arms.csv").open() as file:
        return {row["arm"]: int(row["n"]) for row in csv.DictReader(file)}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("earlier_version", [False, True])
def test_tables_are_not_replaced_by_those_of_fewer_runs(kd, local, earlier_version):  # noqa: F811
    def run(*options):
        status, out, errors = kd("run", "toy", *options)
        assert (status, errors) == (0, [])
        return out

    out = run("--seeds", "2", *TWO)
    assert "Tables: results/toy/local/quick.md" in out
    assert "a name of their own" not in out
    everything = {"teacher": 2, "baseline": 2, "distilled": 2}
    assert n_of(local / "quick.md") == everything
    if earlier_version:
        (local / "quick-runs.csv").unlink()
    before = contents(local)
    out = run("--seed", "0", *TWO)  # fewer seeds
    assert "Tables: results/toy/local/quick-part-2.md" in out
    assert "They have a name of their own, because quick.md has arms or seeds that they lack." in out
    out = run("--seeds", "2", "--arms", "baseline")  # fewer arms
    assert "Tables: results/toy/local/quick-part-3.md" in out
    assert n_of(local / "quick-part-2.md") == dict.fromkeys(everything, 1)
    assert n_of(local / "quick-part-3.md") == {"baseline": 2}
    parts = contents(local)
    assert {name: parts[name] for name in before} == before
    assert {name: text for name, text in parts.items() if name not in before}.keys() == {
        f"quick-part-{number}{end}"
        for number in (2, 3)
        for end in (".md", ".tex", "-arms.csv", "-claims.csv", "-runs.csv")
    }
    run("--seed", "0", *TWO)  # the same part again has the same name
    assert contents(local) == parts
    run("--seeds", "3", *TWO)  # more
    assert n_of(local / "quick.md") == dict.fromkeys(everything, 3)


def test_one_seed_does_not_replace_another(kd, local):  # noqa: F811
    for seed in ("3", "4"):
        assert kd("run", "toy", "--seed", seed, "--arms", "baseline")[0] == 0
    seeds = {name: (local / f"{name}-runs.csv").read_text().split() for name in ("quick", "quick-part-2")}
    assert {name: lines[1].split(",")[:2] for name, lines in seeds.items()} == {
        "quick": ["baseline", "3"],
        "quick-part-2": ["baseline", "4"],
    }


def test_a_list_of_runs_that_nobody_understands_is_kept(kd, local):  # noqa: F811
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    (local / "quick-runs.csv").write_bytes(b"\xff\x00")
    before = contents(local)
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    assert before.items() <= contents(local).items()
    assert (local / "quick-part-2.md").exists()


def test_tables_that_cannot_be_read_just_now_are_kept(kd, local):  # noqa: F811
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    (local / "quick-runs.csv").chmod(0)
    if os.access(local / "quick-runs.csv", os.R_OK):
        pytest.skip("root may read everything")
    before = (local / "quick.md").read_bytes()
    status, out, errors = kd("run", "toy", "--seed", "1", "--arms", "baseline")
    assert (status, "## Arms" in out) == (2, True)
    assert "quick-runs.csv: cannot be read (Permission denied)" in errors[0]
    assert (local / "quick.md").read_bytes() == before


def test_tables_are_written_elsewhere(kd, root):  # noqa: F811
    status, out, _ = kd("run", "toy", "--seed", "0", "--arms", "baseline", "--out", "my tables")
    assert status == 0
    assert "Tables: my tables/toy/quick.md" in out
    assert n_of(root / "my tables" / "toy" / "quick.md") == {"baseline": 1}
    assert not (root / "results").exists()


def test_recorded_tables_are_not_replaced_by_those_of_a_session(kd, root):  # noqa: F811
    assert kd("record", "toy", "--seeds", "3", *TWO)[0] == 0
    folder = root / "results" / "toy"
    before = contents(folder)
    status, _, (error,) = kd("run", "toy", "--seeds", "4", *TWO, "--out", "results")
    assert status == 2
    assert "--out results: expected a folder for tables of this session alone, found that results/toy has" in error
    status, _, (error,) = kd("run", "toy", "--seeds", "4", *TWO, "--out", "replications")
    assert status == 2
    assert "this session alone, found that replications/toy has a replication; choose another folder" in error
    assert contents(folder) == before


def test_a_run_that_is_recorded_twice_is_told_before_anything_is_trained(kd, root):  # noqa: F811
    assert kd("record", "toy", "--seeds", "2", *TWO)[0] == 0
    path = root / "results" / "toy" / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))
    shutil.rmtree(root / ".kd")
    for command in (("run", "toy", *TWO), ("record", "toy", *TWO)):
        status, out, (error,) = kd(*command)
        assert status == 2
        assert f"runs.jsonl, line {len(lines) + 1}: expected one run for each arm and seed, found " in error
        assert "which line 2 has too; delete the wrong line" in error
        assert "started" not in out
    assert not (root / ".kd").exists()


@pytest.mark.parametrize("options", [[], ["--out", "out"]])
def test_tables_that_cannot_be_written_are_printed_before_the_error(kd, root, options):  # noqa: F811
    (root / "out").mkdir()
    (root / "out" / "toy").touch()
    (root / "results" / "toy").mkdir(parents=True)
    (root / "results" / "toy" / "local").touch()
    status, out, errors = kd("run", "toy", "--seed", "0", "--arms", "baseline", *options)
    assert status == 2
    assert out.index("## Arms") < out.index("## Claims") < out.index("\ntoy, profile quick: seed 0; 1 run on toy")
    assert "Tables: not written\n" in out
    (error,) = errors
    assert ("out/toy" if options else "results/toy/local") in error
    assert "choose another folder with --out DIR" in error


def command_of(out):
    """The arguments of the one command that a session ends with."""
    _, _, after = out.partition("):\n  ")
    lines = after.splitlines()
    last = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
    return shlex.split("\n".join(lines[: last + 1]).replace("\\\n", ""))  # as a shell joins them


def test_the_command_that_goes_on_has_the_same_options_and_does_go_on(root, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (root / "my data; rm").mkdir()
    options = [
        *("--store", "my store", "--data", "my data; rm", "--out", "$HOME", "--threads", "1", "--workers", "1"),
        *("--device", "cpu", "--replicas", "1", "--order", "arms", "--no-graphs", "--arms", "baseline"),
    ]
    assert main(["run", "toy", "--seed", "2", "--minutes", "50", *options]) == 0
    out = capsys.readouterr().out
    assert "For seeds 0 to 4 of these arms" in out
    command = command_of(out)
    assert command[1:] == ["-m", "kdlib", "run", "toy", *options, "--seeds", "5"]
    assert main(command[3:]) == 0
    out = capsys.readouterr().out
    assert "1 run reused from the store" in out
    assert n_of(root / "$HOME" / "toy" / "quick.md") == {"baseline": 5}
    assert not (root / ".kd").exists()
    assert not (root / "results").exists()


@pytest.mark.parametrize(("umask", "others"), [(0o077, 0), (0o777, 0), (0o300, 0o077), (0, 0o077)])
def test_a_session_works_with_any_umask_and_keeps_private_what_is_to_be_private(kd, root, umask, others):  # noqa: F811
    before = os.umask(umask)
    try:
        status, _, errors = kd("run", "toy", "--seed", "0", "--arms", "baseline")
    finally:
        os.umask(before)
    assert (status, errors) == (0, [])
    made = [path for name in ("results", ".kd") for path in (root / name).rglob("*")]
    assert len(made) > 10
    for path in made:
        mode = path.stat().st_mode
        assert mode & (0o700 if path.is_dir() else 0o600) == (0o700 if path.is_dir() else 0o600), path
        assert not mode & 0o077 & ~others, path


# ---- lists


def test_a_listed_arm_has_the_accuracy_of_its_own_weights(kd, root, toy, capsys, monkeypatch):  # noqa: F811
    """A run serves the arm of a snapshot too, which may have the shorter name."""
    early = replace(toy.arm("early_teacher"), name="early")
    left = [arm for arm in toy.arms if arm.name != "distilled_early"]
    arms = tuple(early if arm.name == "early_teacher" else arm for arm in left)
    monkeypatch.setattr(module_of("toy"), "EXPERIMENT", replace(toy, arms=arms))
    _configs.cache_clear()
    try:
        assert kd("run", "toy", "--arms", "teacher,early")[0] == 0
        assert main(["runs", "list"]) == 0
        _, line = capsys.readouterr().out.splitlines()
        (run,) = [Store(root / ".kd").resolve(each) for each in Store(root / ".kd").ids()]
        label = label_of(run, {run.id: run})
    finally:
        _configs.cache_clear()
    assert "toy early +1" in line
    assert run.metrics["early"]["accuracy"] != run.metrics["final"]["accuracy"]
    assert line.split()[-1] == f"{run.metrics['early']['accuracy']:.4f}"
    assert (label.arm, label.snapshot) == ("early +1", "early")
    assert (label.of("final").arm, label.of("final").snapshot) == ("teacher", "final")
    assert (label.of("other").arm, label.of("other").snapshot) == ("", "final")


def test_a_store_is_listed_with_arm_seed_profile_and_date(kd, root, capsys, monkeypatch):  # noqa: F811
    assert kd("run", "toy", "--seeds", "2", "--arms", "distilled,early_teacher")[0] == 0
    assert kd("run", "toy", "--profile", "other", "--seed", "7", "--arms", "distilled_early")[0] == 0
    assert main(["runs", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "arm", "seed", "profile", "date", "accuracy"]
    assert max(map(len, [head, *lines])) <= 80
    found = sorted(tuple(line[17:].rsplit(maxsplit=4)[:3]) for line in lines)
    assert found == [
        ("toy distilled", "0", "quick"),
        ("toy distilled", "1", "quick"),
        ("toy distilled_early", "7", "other"),
        ("toy teacher +1", "0", "quick"),
        ("toy teacher +1", "1", "quick"),
        ("toy teacher +1", "7", "other"),
    ]
    for line in lines:
        run = Path(".kd") / "runs" / line[:16] / "run.json"
        os.utime(run, (86400 * 365.25 * 30,) * 2)
    main(["runs", "list", lines[0][:16]])
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.split()[-2] == "2000-01-01"
    monkeypatch.setattr(runs, "date", SimpleNamespace(fromtimestamp=lambda moment: date.fromtimestamp(moment * 1e6)))
    assert main(["runs", "list"]) == 0  # not every file system has times beyond the year 9999
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_a_replication_that_cannot_be_imported_hides_no_run_of_another(kd, root, capsys):  # noqa: F811
    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    (root / "replications" / "edited").mkdir()
    (root / "replications" / "edited" / "experiment.py").write_text("x = (")
    main(["runs", "list"])
    run = capsys.readouterr().out.splitlines()[1][:16]
    assert main(["explain", run]) == 0
    assert "source files: as they are now in toy\n" in capsys.readouterr().out


def test_a_run_of_nobody_is_listed_by_its_function(kd, root, toy, monkeypatch, capsys):  # noqa: F811
    from tests.conftest import changed

    assert kd("run", "toy", "--seed", "0", "--arms", "baseline")[0] == 0
    changed(monkeypatch, "toy", source="renamed")
    main(["runs", "list"])
    line = capsys.readouterr().out.splitlines()[1]
    assert line[17:].split()[:3] == ["toy/train_student", "0", "other"]


def test_one_replication_is_listed_with_seeds_hours_needs_and_claims(root, capsys):  # noqa: F811
    assert main(["record", "toy", "--seed", "0", "--arms", "distilled", "--workers", "1"]) == 0
    path = root / "results" / "toy" / "runs.jsonl"
    text = path.read_text().replace('"seconds":', '"seconds":36000, "was":')
    path.write_text(text)
    capsys.readouterr()
    assert main(["list", "toy"]) == 0
    out = capsys.readouterr().out
    assert "  quick: 1 seed, 16 arms, at least 20.0 h, data toy\n" in out  # teacher and distilled, 10 hours each
    assert "  other: 1 seed, 16 arms, time unknown, data toy\n" in out
    assert "  distilled: controlled; needs teacher\n" in out
    assert "  C1 (primary, direction): Distillation helps. controlled: no verdict yet\n" in out
    assert main(["list", "toys"]) == 2
    assert "no replication 'toys'" in capsys.readouterr().err
