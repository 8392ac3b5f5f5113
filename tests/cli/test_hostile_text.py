"""Text of files and servers does nothing to a terminal, whichever command shows it, and no edit of a record crashes it.

The oracle is a terminal's point of view: every character printed is a printable one or the end of a line.
"""

import copy
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from kdlib.cli import main
from kdlib.errors import KDError
from kdlib.files import canonical_json, sha256
from kdlib.report.pages import write_pages
from kdlib.run.experiment import load_experiment
from kdlib.run.records import read_records
from kdlib.run.store import Description, Result, Store, write_manifest

ROOT = Path(__file__).parents[2]
BAD = "\x1b]0;owned\x07\x1b[2J\r\nFAILED  forged\u202e\u2028\x9b"
ABOUT = Description("source/train", 1, {"rate": 0.1}, 0, "d" * 16, {"teacher": "0123456789abcdef/final"})
MADE_BY = {
    "replication": "mnist",
    "commit": "c" * 40,
    "clean": True,
    "source": "0" * 16,
    "versions": {"torch": "2.0"},
    "platform": "Linux",
    "device": "a processor",
    "threads": 1,
    "seconds": 3.0,
}


def kd(capfd, *arguments):
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # of argparse
        status = stop.code
    printed = capfd.readouterr()
    for text in (printed.out, printed.err):
        assert not [letter for letter in text if letter != "\n" and not letter.isprintable()]
        assert not [line for line in text.split("\n") if line.startswith("FAILED  forged")]
    return status, printed.out + printed.err


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A store in the work folder, and a function that rewrites the run in it as an attacker would: all hashes fit."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "replications").mkdir()
    store = Store(tmp_path / ".kd")
    metrics = {"final": {"accuracy": 0.5, "epochs": 1, "confusion": [[1, 0], [0, 1]]}}
    run = store.save(ABOUT, Result(metrics, [{"training_loss": 0.1}], {"final": {"w": torch.zeros(2)}}), MADE_BY)

    shutil.move(run.folder, tmp_path / "good")

    def rewrite(record):
        folder = store.run_folder(sha256(canonical_json(record["description"]).encode())[:16])
        shutil.copytree(tmp_path / "good", folder, dirs_exist_ok=True)
        (folder / "run.json").write_text(json.dumps(record))
        write_manifest(folder)
        return folder.name

    return json.loads((tmp_path / "good" / "run.json").read_text()), rewrite


def leaves(value, path=()):
    """The path to each value within lists and objects, themselves included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def changed(record, path, value):
    record = copy.deepcopy(record)
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


def commands(run_id):
    return (
        ["runs", "list"],
        ["runs", "show", run_id],
        ["runs", "verify"],
        ["explain", run_id],
        ["export", run_id, "model.onnx"],
        ["runs", "export", "elsewhere"],
        ["runs", "import", "elsewhere", "--store", "third"],
        ["runs", "prune", run_id],
    )


@pytest.mark.slow
def test_text_of_a_stored_run_does_nothing_to_a_terminal(saved, capfd):
    record, rewrite = saved
    for path in leaves(record):
        place = record
        for key in path:
            place = place[key]
        forged = [changed(record, path, BAD)] if isinstance(place, str) else []
        if isinstance(place, dict):
            forged.append(changed(record, (*path, BAD), 0.5 if path[0] in ("metrics", "history") else BAD))
        for one in forged:
            run_id = rewrite(one)
            for command in commands(run_id):
                kd(capfd, *command)


WRONG = (None, True, -1, 1.5, 10**400, "text", [[]], {"a": {}})


@pytest.mark.slow
def test_no_other_value_in_a_stored_run_shows_a_traceback(saved, capfd):
    record, rewrite = saved
    for path in leaves(record):
        for value in WRONG:
            run_id = rewrite(changed(record, path, value))
            status, text = kd(capfd, "explain", run_id)
            assert status == 0 or ": expected " in text or "belongs to run" in text
            assert kd(capfd, "runs", "list")[0] == 0
            shutil.rmtree(Path(".kd/runs") / run_id)


@pytest.fixture(scope="module")
def line():
    """A recorded run of MNIST with its trace, and that of another arm to compare it with."""
    records = read_records(ROOT / "results" / "mnist" / "runs.jsonl")
    return [asdict(one) for one in records if one.profile == "quick" and one.seed == 0 and one.trace][:2]


def outcome_of(function):
    """The text of a KDError, and what the function returns if there is none."""
    try:
        return "", function()
    except KDError as error:
        return str(error), None


@pytest.mark.slow
def test_no_other_value_in_a_record_shows_a_traceback(line, tmp_path):
    """Whatever is accepted can be tabled, of which some is tried; the rest is refused with the key."""
    experiment, path, accepted = load_experiment("mnist"), tmp_path / "runs.jsonl", []
    for where in leaves(line[0]):
        if len(where) > 3 and where[3] not in (0, "class"):  # not each number of a list
            continue
        for value in WRONG:
            one = changed(line[0], where, value)
            if where[0] == "description":
                one["run"] = sha256(canonical_json(one["description"]).encode())[:16]
            path.write_text(f"{json.dumps(one)}\n{json.dumps(line[1])}\n")
            text, records = outcome_of(lambda: read_records(path))
            assert not text or (text.startswith(f"{path}, line 1: expected ") and text.isprintable())
            if records:
                accepted.append((where, value, records))
    assert len(accepted) > 50
    for where, value, records in accepted[:: len(accepted) // 6]:
        print(where, repr(value)[:60])  # shown if the test fails
        outcome_of(
            lambda known=records: write_pages(experiment, known, tmp_path / "pages", committed=known, synthetic=False)
        )


def test_arguments_and_names_of_files_do_nothing_to_a_terminal(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    store = tmp_path / f"a{BAD.replace('/', '')}"
    (store / "runs" / f"x{BAD}").mkdir(parents=True)
    os.symlink("nowhere", store / "work")
    for command in (
        ["runs", "list", "--store", str(store)],
        ["runs", "show", BAD, "--store", str(store)],
        ["runs", "import", str(store)],
        ["runs", "export", str(store / "x"), "--store", str(store)],
        ["explain", BAD, "--store", BAD],
        ["run", BAD],
        ["run", "mnist", "--data", BAD],
        ["data", "fetch", BAD],
        ["data", "where", "mnist", "--data", BAD],
        ["new", BAD],
        [BAD],
        ["run", "mnist", "--seeds", BAD],
        ["tables", "--unknown", BAD],
    ):
        status, _ = kd(capfd, *command)
        assert status in (0, 1, 2), command
