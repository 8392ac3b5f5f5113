"""The audit passes on what the ordinary code makes, and finds whatever is changed in it afterwards."""

from __future__ import annotations

import ast
import copy
import csv
import hashlib
import io
import json
import math
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from scipy import stats

from kdlib.judge import intervals, judging, reading
from kdlib.report import frames, pages
from kdlib.run.environment import source_digest
from kdlib.run.experiment import load_experiment, replications
from kdlib.run.records import read_records
from tests.audit import __main__, again, audit, claims, faults, provenance, records, rule, statistics, tables, traces

ROOT = Path(__file__).parents[2]
NAMES = replications(ROOT)
RECORDED = [name for name in NAMES if (ROOT / "replications" / name / "bands.toml").exists()]
HISTORY = provenance.History(ROOT, Path())
whole_history = pytest.mark.skipif(not HISTORY.whole, reason="needs the whole git history")


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A copy of all that is committed."""
    root = tmp_path_factory.mktemp("audit") / "made"
    for folder in ("replications", "results"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("README.md", "DATA.md"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture(scope="session")
def history(tmp_path_factory):
    return provenance.History(ROOT, tmp_path_factory.mktemp("commits"))


def found(root, *names):
    return [str(fault) for fault in audit.derived(root, names or NAMES)]


# ---- it passes, and is independent


@pytest.mark.slow
def test_it_passes_and_looks_at_every_file(made, history):
    files: list[str] = []
    assert [str(fault) for fault in audit.derived(made, NAMES, files.append)] == []
    assert [str(fault) for fault in provenance.check(made, NAMES, history)] == []
    patterns = ("results/*/*.csv", "results/front.csv", "results/*/runs.jsonl", "replications/*/bands.toml")
    patterns += ("results/*/results.json", "results/site/*.html")
    assert sorted(files) == sorted(str(path.relative_to(made)) for p in patterns for path in made.glob(p))


def test_it_shares_nothing_with_what_it_checks():
    allowed = {"kdlib", "kdlib.errors", "kdlib.run.experiment"}
    for path in set(Path(__file__).parent.glob("*.py")) - {Path(__file__)}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = {node.module} if isinstance(node, ast.ImportFrom) else {alias.name for alias in node.names}
                assert not {name for name in names if name.startswith("kdlib")} - allowed, path


# ---- every number of every table


AGAIN_ONLY = "needed_n"  # a column that is only compared with the table made again
NAMES_A_ROW = ("seed", "at")  # columns of a figure's table: the numbers in them say what the others are of
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def changed_digit(number: str, rng: np.random.Generator) -> str:
    """Another number that differs in one digit and still is one in TOML."""
    while True:
        place = int(rng.choice([i for i, letter in enumerate(number) if letter.isdigit()]))
        other = number[:place] + str(int(rng.integers(10))) + number[place + 1 :]
        if not re.match(r"-?0\d", other) and float(other) != float(number):
            return other


@pytest.mark.slow
@pytest.mark.parametrize("same_bits", [True, False])
@pytest.mark.parametrize("name", RECORDED)
def test_every_changed_number_is_found(root, monkeypatch, name, same_bits):
    if same_bits and not faults.SAME_BITS:
        pytest.skip("this machine computes other last bits than those that wrote the committed files")
    monkeypatch.setattr(faults, "SAME_BITS", same_bits)
    rng = np.random.default_rng(3)
    count = 0

    def change(number: str) -> str:
        nonlocal count
        other = changed_digit(number, rng)
        if not same_bits and math.isclose(float(other), float(number), rel_tol=1e-11, abs_tol=1e-13):
            return number  # what another machine's rounding may do
        count += 1
        return other

    derived = [path for path in root.glob(f"results/{name}/*.csv") if path.name not in again.MEASURED]
    for path in [*derived, root / "results/front.csv", root / f"replications/{name}/bands.toml"]:
        content, count = path.read_text(), 0
        if path.suffix == ".csv":
            heads, *rows = csv.reader(content.splitlines())
            changed = io.StringIO()
            kept = [head == AGAIN_ONLY or head in NAMES_A_ROW for head in heads]
            cells = [
                [
                    cell if k or not re.fullmatch(NUMBER, cell) else change(cell)
                    for k, cell in zip(kept, row, strict=True)
                ]
                for row in rows
            ]
            csv.writer(changed, lineterminator="\n").writerows([heads, *cells])
            path.write_text(changed.getvalue())
        else:
            values = rf"(?<=[ \[]){NUMBER}(?=[,\n\]])"  # not within the quotes of a key
            path.write_text(re.sub(values, lambda match: change(match[0]), content))
        assert count > 3 or path.stem.endswith("ingredients")
        named = [fault for fault in audit.derived(root, [name]) if fault.file == str(path.relative_to(root))]
        assert len(named) == count, path
        path.write_text(content)


@pytest.mark.slow
@pytest.mark.parametrize("column", ["seed", "arm", "over", "metric"])
def test_a_changed_name_of_a_drawn_number_is_found(root, column):
    path = root / "results/mnist/full-figure.csv"
    heads, *rows = csv.reader(path.read_text().splitlines())
    place = heads.index(column)
    others = {"seed": "19", "arm": "teacher", "over": "sham", "metric": "entropy"}
    line = next(row for row in rows if row[heads.index("mark")] == "seed" and row[heads.index("arm")] == "distilled")
    line[place] = others[column]
    changed = io.StringIO()
    csv.writer(changed, lineterminator="\n").writerows([heads, *rows])
    path.write_text(changed.getvalue())
    assert {fault.file for fault in audit.derived(root, ["mnist"])} == {"results/mnist/full-figure.csv"}


def test_a_seed_that_is_left_out_of_a_figure_is_found(root):
    path = root / "results/mnist/full-figure.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))
    assert [fault.place for fault in audit.derived(root, ["mnist"])] == ["line 21, teacher, its seeds"]


@pytest.mark.slow
def test_every_changed_line_is_found(made, root):
    counts = {}
    for path in (path for pattern in again.MADE for path in root.glob(pattern) if path.name not in again.MEASURED):
        if path.suffix == ".png":
            picture = image.imread(path)
            picture[0, 0, 0] = 0
            image.imsave(path, picture)
            counts[str(path.relative_to(root))] = 1
            continue
        lines = path.read_text().split("\n")
        changed = [re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), line) for line in lines]
        counts[str(path.relative_to(root))] = sum(a != b for a, b in zip(lines, changed, strict=True))
        path.write_text("\n".join(changed))
    assert len(counts) > 40
    assert Counter(fault.file for fault in again.check(root, made, NAMES)) == counts


@pytest.mark.slow
def test_a_stray_and_a_missing_file_and_a_stray_folder_are_found(made, root):
    shutil.copy(root / "results/ecg/quick.md", root / "results/ecg/other.md")
    (root / "results/mnist/full-arms.csv").unlink()
    (root / "results/chess").mkdir()
    assert [str(fault) for fault in again.check(root, made, NAMES)] == [
        "results/ecg/other.md: expected the files that kd tables makes, found a file that no records make",
        "results/mnist/full-arms.csv: expected the files that kd tables makes, found no such file",
    ]
    assert any(line.startswith("results/chess: expected a folder of the same name") for line in found(root))
    assert any(line.startswith("results/mnist/full-arms.csv: expected what can be read") for line in found(root))


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "count"), [(0, 0), (2, 0), (-2, 0), (3, 1), (-200, 1)])
def test_a_pixel_that_differs_by_more_than_rounding_is_found(tmp_path, levels, count):
    pixels = np.full((4, 5, 4), 230, dtype=np.uint8)
    for name, change in (("made", 0), ("committed", levels)):
        pixels[2, 3, 1] = 230 + change
        image.imsave(tmp_path / f"{name}.png", pixels)
    assert len([*again._differences(tmp_path / "made.png", tmp_path / "committed.png")]) == count
    image.imsave(tmp_path / "committed.png", pixels[:3])
    assert len([*again._differences(tmp_path / "made.png", tmp_path / "committed.png")]) == 1


@pytest.mark.slow
def test_what_cannot_be_made_again_is_found(root, tmp_path):
    (root / "replications/mnist/claims.toml").write_text("[source")
    (fault,) = again.make_again(root, tmp_path / "made", ["mnist"])
    assert "claims.toml" in fault.found
    assert any(line.startswith("replications/mnist: expected what can be read") for line in found(root, "mnist"))


# ---- records


def read(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / f"results/{name}/runs.jsonl").read_text().splitlines()]


def write(root: Path, name: str, lines: list[dict[str, Any]]) -> None:
    (root / f"results/{name}/runs.jsonl").write_text("".join(records.canonical(line) + "\n" for line in lines))


def of_records(name: str, lines: list[dict[str, Any]], history: provenance.History) -> list[str]:
    """The faults of records alone: those that remain if all tables are made again."""
    return [
        str(fault)
        for part in (
            records.check(load_experiment(name), lines),
            provenance.check_source(lines, history),
            provenance.check_weights(lines, {}),
            *of_traces(name, lines),
        )
        for fault in faults.in_file(name, part)
    ]


def of_traces(name: str, lines: list[dict[str, Any]]) -> list[faults.Faults]:
    source = claims.read_claims(ROOT / f"replications/{name}/claims.toml")
    return [
        traces.check_traces(load_experiment(name), lines),
        traces.check_pairs(source, lines),
        provenance.check_parents(lines, {line["run"]: line for line in lines}),
    ]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to each value; of a list, to the first and the last one."""
    if isinstance(value, dict | list) and value:
        keys = sorted(value) if isinstance(value, dict) else sorted({0, len(value) - 1})
        for key in keys:
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def other(value: Any) -> Any:
    """A value that is nearly the same."""
    if value is None or isinstance(value, bool | dict):
        return not value
    if isinstance(value, list):
        return [*value, 2]
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return value * 1.0001 if isinstance(value, float) and value else value + 1


UNBOUND = {
    *(f"environment.{key}" for key in ("device", "peak_memory_bytes", "platform", "seconds", "stored_bytes")),
    *(f"environment.versions.{key}" for key in ("kdlib", "numba", "numpy", "python", "torch")),
    *("weights_sha256", "history.training_loss", "history.validation_loss", "history.validation_macro_f1"),
    *("history.test_macro_f1", "metrics.entropy", "metrics.teacher_kl"),
    # Another teacher, or none, gives other ones; of a digest of the data only the beginning is compared.
    *("trace.first_loss", "trace.data.soft.sha256", "trace.epochs.targets", "trace.data.digest"),
    "trace.probe",  # is compared to four digits
    "trace.optimizer.groups.tensors",  # how many tensors have these hyper-parameters
}


@pytest.mark.slow
@whole_history
@pytest.mark.parametrize(("name", "arm"), [("ecg", "sham"), ("teacher_free", "sham"), ("ta_chain", "scratch_2")])
def test_every_value_of_a_record_is_bound_except_what_only_training_again_shows(made, history, name, arm):
    profile = [line for line in read(made, name) if arm in line["arms"]][-1]["profile"]
    lines = [line for line in read(made, name) if line["profile"] == profile]
    # Of a seed with all arms: a start that no other run shares is bound by nothing.
    runs = Counter(line["seed"] for line in lines)
    last = [line for line in lines if arm in line["arms"] and runs[line["seed"]] == max(runs.values())][-1]
    place = lines.index(last)
    text = json.dumps(last)
    unbound = set()
    for path in leaves(last):
        lines[place] = json.loads(text)
        inner = lines[place]
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = other(inner[path[-1]])
        if path[0] == "description":  # a careful forger names the run anew
            lines[place]["run"] = records.identity(lines[place]["description"])
        if not of_records(name, lines, history):
            words = [key for key in path if isinstance(key, str) and key not in lines[place]["metrics"]]
            unbound.add(".".join(words))
    assert unbound <= UNBOUND
    assert {"weights_sha256", "environment.seconds", "metrics.entropy"} <= unbound


def renamed(line: dict[str, Any], **description: Any) -> None:
    line["description"] |= description
    line["run"] = records.identity(line["description"])


def teacher_of_another_seed(lines):
    first, second = [line for line in lines if line["profile"] == "quick" and "distilled" in line["arms"]][:2]
    renamed(first, parents=second["description"]["parents"])


def seed_left_out(lines):
    lines[:] = [line for line in lines if line["profile"] != "quick" or line["seed"] != 2]


def doubled(lines):
    lines.append(json.loads(json.dumps(lines[-1])))
    renamed(lines[-1], config={**lines[-1]["description"]["config"], "batch": 65})


def better_confusion(lines):
    rows = lines[-1]["metrics"]["final"]["confusion"]
    rows[0][0], rows[1][0] = rows[0][0] + 1, rows[1][0] - 1


def first_metrics(key: str, value: Any):
    return lambda lines: lines[-1]["metrics"]["final"].update({key: value})


def one_epoch_less(lines):
    del lines[-1]["history"][-1]


TAMPERED = {
    teacher_of_another_seed: "parents, teacher: expected",
    seed_left_out: "seeds of baseline, 108aae64794db38e, quick, 2: expected 2, found 3",
    doubled: "runs of an arm and seed, ('sham', '108aae64794db38e', 'quick', 5): expected 1, found 2",
    better_confusion: "by its confusion matrix",
    one_epoch_less: "length of its history",
    first_metrics("confusion", [[-1, 1], [0, 1]]): "a square of counts",
    first_metrics("entropy", 1.7): "the largest for its classes",
    first_metrics("best_epoch", 1): "by its history",
    (lambda lines: lines[-1].update(profile="smoke")): "one on real data (full, quick), found smoke",
    (lambda lines: lines[-1].update(profile="best")): "one on real data (full, quick), found best",
    (lambda lines: lines[-1]["arms"].update(ghost="final")): "no arm 'ghost'",
    (lambda lines: lines[-1].update(arms={})): "arms: expected at least one",
    (lambda lines: lines[-1].update(metrics={})): "what can be read",
    (lambda lines: lines[-1].update(weights_sha256="none")): "64 hexadecimal digits",
    (lambda lines: lines[-1].update(weights_sha256=lines[-2]["weights_sha256"])): "with the weights of run",
    (lambda lines: lines[-1]["environment"].update(clean=False)): "clean tree: expected True, found False",
    (lambda lines: lines[-1]["environment"].update(clean=None)): "clean tree: expected True, found None",
}


@pytest.mark.parametrize("act", TAMPERED)
def test_tampering_with_records_is_named(made, history, act):
    lines = read(made, "ecg")
    act(lines)
    named = of_records("ecg", lines, history)
    assert any(TAMPERED[act] in line for line in named), named[:9]


def test_a_teacher_that_two_profiles_look_up_is_one_parent(made, history):
    """Its runs have other ids, because the profiles' configurations differ; its weights are the same."""
    first = next(line for line in read(made, "ecg") if line.get("parents"))
    ((role, parent),) = first["description"]["parents"].items()
    second = copy.deepcopy(first) | {"run": "0" * 16, "profile": "other"}
    second["description"]["parents"] = {role: f"{'1' * 16}/{parent.partition('/')[2]}"}
    assert [*provenance.check_weights([first, second], {})] == []
    second["parents"][role]["weights"] = "2" * 64
    assert [*provenance.check_weights([first, second], {})]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"entropy":0.', '"entropy":NaN,"x":0.'),
        ('"entropy":0.', '"entropy":1e999,"x":0.'),
        ('"profile":"full"', '"profile":"full","profile":"full"'),
        ('{"arms":', '[{"arms":'),
        ('"seed":0,', '"seed": 0,'),
        ('"data_name":', '"dataname":'),
    ],
)
def test_a_line_that_is_no_record_is_found(root, old, new):
    path = root / "results/ecg/runs.jsonl"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert any("expected a finished run as canonical JSON" in str(fault) for fault in records.read(path)[1])


def test_a_verdict_and_bands_of_too_few_seeds_are_found(root):
    write(root, "ecg", [line for line in read(root, "ecg") if line["profile"] != "full" or line["seed"] < 3])
    named = found(root, "ecg")
    assert any(
        "full-claims.csv" in line and "expected interim, 3 of 6 seeds, no verdict, found" in line for line in named
    )
    for part in ("bands", "inside"):
        assert any(line.startswith(f"replications/ecg/bands.toml, tables, {part}") for line in named)


@pytest.mark.slow
def test_an_edited_experiment_is_found(made, monkeypatch):
    profiles = load_experiment("ecg").profiles
    edited = replace(profiles["full"], config=replace(profiles["full"].config, batch=32))
    monkeypatch.setitem(profiles, "full", edited)
    assert any("config, batch: expected 32, found 64" in line for line in found(made, "ecg"))


@pytest.mark.parametrize(
    ("profile", "said"),
    [("quick", "quick: protocol: expected 3, found 2"), ("full", "sham, protocol: expected 3, found 2")],
)
def test_one_run_of_an_earlier_protocol_is_found(made, history, profile, said):
    """A whole table without verdicts may be of an earlier one."""
    lines = [line for line in read(made, "ta_chain") if line["profile"] == profile]
    assert not of_records("ta_chain", lines, history)
    line = next(line for line in reversed(lines) if "sham" in line["arms"])  # it teaches nobody
    renamed(line, protocol=2)
    assert any(said in fault for fault in of_records("ta_chain", lines, history))


def test_a_table_of_an_earlier_protocol_is_right_if_it_has_no_verdicts(made):
    later = replace(load_experiment("grid"), protocol=9)
    assert not list(records.check(later, records.read(made / "results/grid/runs.jsonl")[0]))
    judged = {name: replace(profile, judged=name == "quick") for name, profile in later.profiles.items()}
    faults_found = list(
        records.check(replace(later, profiles=judged), records.read(made / "results/grid/runs.jsonl")[0])
    )
    assert any("protocol: expected 9" in str(fault) for fault in faults_found)


# ---- traces

NETWORKS = {"teacher": "0" * 16, "student": "1" * 16}


def traced(root: Path) -> list[dict[str, Any]]:
    """The quick records of ecg with made-up traces, in which arms differ in what `claims.toml` names."""
    lines = [line for line in read(root, "ecg") if line["profile"] == "quick"]
    for line in lines:
        arm, described = next(iter(line["arms"])), line["description"]
        mixed, taught = arm in ("distilled", "sham", "baseline_mixup"), bool(described["parents"])
        teacher = described["parents"].get("teacher", "/").partition("/")[0]
        kept = hashlib.sha256(teacher.encode()).hexdigest()
        epochs = {key: ["2" * 16] * len(line["history"]) for key in traces.EPOCHS}
        epochs |= {"layers": traces._layers(line), "rows": [str(int(mixed)) * 16] * len(line["history"])}
        soft = {"run": teacher, "part": "final.train" + traces.SHAM * (arm == "sham"), "sha256": f"{arm} {kept}"}
        line["trace"] = {
            "network": NETWORKS["teacher" if arm == "released_teacher" else "student"],
            "start": "3" * 64,
            "optimizer": {"class": "Adam", "groups": [{"eps": 1e-7, "tensors": 8}]},
            "data": {
                "digest": f"{described['data']}/train",
                "view": "plain",
                "size": 64,
                "soft": soft if taught else None,
            },
            "mixed": mixed,
            "first_loss": 1.5 + mixed + taught,
            "probe": 0.7 if taught else None,
            "steps": 1369 * len(line["history"]),
            "epochs": epochs,
            "changed": [],
        }
        weights = {other["run"]: other["weights_sha256"] for other in lines}
        line["parents"] = {"teacher": {"weights": weights[teacher], "soft_targets": kept}} if taught else {}
    return lines


def faults_of(lines: list[dict[str, Any]]) -> list[str]:
    return [str(fault) for part in of_traces("ecg", lines) for fault in faults.in_file("ecg", part)]


def test_traces_that_fit_have_no_fault_and_are_read(root):
    lines = traced(root)
    assert faults_of(lines) == []
    path = root / "results/ecg/runs.jsonl"
    path.write_text("".join(records.canonical({k: v for k, v in line.items() if v != {}}) + "\n" for line in lines))
    assert records.read(path) == ([{k: v for k, v in line.items() if v != {}} for line in lines], [])
    path.write_text(records.canonical({**lines[0], "trace": {}}) + "\n")  # a record without a trace lacks the key
    assert len(records.read(path)[1]) == 1


def of_trace(*keys: str, value: Any):
    """Change a value of a distilled student's trace."""

    def act(lines):
        inner = next(line for line in lines if "distilled" in line["arms"])
        for key in ("trace", *keys[:-1]):
            inner = inner[key]
        inner[keys[-1]] = value

    return act


def sham_of_another_seed(lines):
    first, second = [line["trace"]["data"]["soft"] for line in lines if "sham" in line["arms"]][:2]
    second |= {"run": first["run"], "sha256": first["sha256"]}


OTHER = ["4" * 16] * 12
TAMPERED_TRACES = {
    of_trace("network", value="5" * 16): "differ in: expected soft targets, found network, soft targets",
    of_trace("start", value="5" * 64): "found initial weights, soft targets",
    of_trace("optimizer", "class", value="SGD"): "found optimizer, soft targets",
    of_trace("optimizer", "groups", value=[{"eps": 1e-8}]): "found optimizer, soft targets",
    of_trace("data", "digest", value="another/train"): "trace: data: expected those of",
    of_trace("data", "view", value="flip"): "found soft targets, view",
    of_trace("data", "size", value=32): "found batch size, soft targets",
    of_trace(
        "data", "soft", "part", value="at_released_stop.train"
    ): "soft targets: expected final.train, found at_rel",
    of_trace("data", "soft", "part", value="final.train, permuted within classes"): "expected final.train, found final",
    of_trace("data", "soft", "run", value="0" * 16): "expected of a parent.train, found final.train",
    of_trace("data", "soft", value=None): "seed 0: differ in: expected soft targets, found loss",
    of_trace("steps", value=5): "steps and changed: expected whole numbers that fit 12 epochs",
    of_trace("steps", value=24): "found soft targets, steps",
    of_trace("changed", value=[7]): "found optimizer state, soft targets",
    of_trace("changed", value=[13]): "steps and changed: expected whole numbers that fit 12 epochs",
    of_trace("mixed", value=False): "found mixing, soft targets",
    of_trace("first_loss", value=math.inf): "mixed and first_loss: expected a flag and a number",
    of_trace("epochs", "rows", value=OTHER): "found rows, soft targets",
    of_trace("epochs", "rates", value=OTHER): "found learning rate, soft targets",
    of_trace("epochs", "sizes", value=OTHER): "found batch size, soft targets",
    of_trace("epochs", "labels", value=OTHER): "found mixing, soft targets",
    of_trace("epochs", "layers", value=OTHER): "trace, dropout seeds, 0: expected",
    of_trace("epochs", "rows", value=OTHER[1:]): "trace, epochs, rows: expected",
    of_trace("epochs", "rows", value=["rows"] * 12): "trace, epochs, rows, 0: expected 0000000000000000, found rows",
    of_trace("note", value="hello"): "trace, note: expected nothing",
    sham_of_another_seed: "seed of the sham's permutation: expected 0, found 1",
    (lambda lines: lines[-1].update(parents={})): "parents: roles: expected ['teacher'], found []",
    (lambda lines: lines[-1]["parents"]["teacher"].update(weights="0" * 64)): "teacher: weights: expected",
    (lambda lines: lines[-1]["parents"]["teacher"].update(soft_targets="0" * 64)): "teacher: soft targets: expected",
}


@pytest.mark.parametrize("act", TAMPERED_TRACES)
def test_tampering_with_traces_is_named(made, act):
    lines = traced(made)
    act(lines)
    named = faults_of(lines)
    assert any(TAMPERED_TRACES[act] in line for line in named), named[:9]


ROWS = {"trace.epochs.rows", "trace.epochs.labels"}  # no arm of this profile shares the baseline's rows


@pytest.mark.parametrize(
    ("arm", "also"), [("distilled", set()), ("sham", set()), ("baseline_mixup", set()), ("baseline", ROWS)]
)
def test_every_value_of_a_trace_is_bound_by_the_compared_traces(made, arm, also):
    lines = traced(made)
    line = next(line for line in lines if arm in line["arms"])
    unbound = set()
    for key in ("trace", "parents"):
        for path in leaves(line[key]):
            right = json.dumps(line[key])
            inner = line[key]
            for step in path[:-1]:
                inner = inner[step]
            if path:
                inner[path[-1]] = other(inner[path[-1]])
            if not faults_of(lines):
                unbound.add(".".join(step for step in (key, *path) if isinstance(step, str)))
            line[key] = json.loads(right)
    assert unbound - {"parents"} <= UNBOUND | also


def test_a_difference_that_is_named_and_not_there_is_found(made):
    lines = traced(made)
    for line in lines:
        line["trace"]["mixed"] = False
    (fault, *_) = faults_of(lines)
    assert "in some run, a difference in: expected mixing, rows, soft targets, found rows, soft targets" in fault


# ---- origins


def of_origins(root: Path, history: provenance.History) -> list[str]:
    return [str(fault) for fault in provenance.check(root, NAMES, history)]


def edited(path: Path, change: Callable[[Any], None], manifest: bool = True) -> None:
    """Change the JSON of a pruned run, and the manifest with it."""
    run = json.loads(path.read_text())
    change(run)
    path.write_text(json.dumps(run))
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.parent.iterdir()}
    if manifest:
        del sums["manifest.json"]
        (path.parent / "manifest.json").write_text(json.dumps(sums))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["run.json", "soft_targets.safetensors"])
def test_a_changed_byte_of_a_pruned_run_is_found(root, history, file):
    path = next(root.glob(f"replications/*/recorded_teachers/da8d35441307415d/{file}"))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"1")] = ord("2")
    path.write_bytes(content)
    assert any(f"da8d35441307415d, manifest, {file}: expected" in line for line in of_origins(root, history))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run["metrics"]["final"].update(entropy=0.75), "entropy: expected"),
        (lambda run: run["metrics"]["final"]["confusion"][0].reverse(), "predictions that are not its logits'"),
        (lambda run: run["history"].pop(), "history: expected"),
        (lambda run: run["description"].update(seed=1), "the SHA-256 of its description"),
        (lambda run: run["environment"].update(clean=False), "clean tree: expected True"),
    ],
)
def test_a_pruned_run_has_the_metrics_of_its_logits(root, history, change, said):
    edited(next(root.glob("replications/*/recorded_teachers/da8d35441307415d/run.json")), change)
    assert any(said in line for line in of_origins(root, history))


@pytest.mark.slow
def test_a_record_is_bound_to_the_pruned_run_of_its_id_or_of_its_configuration(root, history):
    lines = {name: read(root, name) for name in ("grid", "ta_chain")}
    (stand_in,) = (line for line in lines["grid"] if "teacher" in line["arms"])
    same = next(line for line in lines["ta_chain"] if line["run"] == "df9a6cabdfe70a32")
    for line in (stand_in, same):
        line["metrics"]["final"]["entropy"] += 1e-9
    same["weights_sha256"] = "0" * 64
    for name in lines:
        write(root, name, lines[name])
    named = [line.partition(": expected")[0] for line in of_origins(root, history)]
    assert named == [
        f"results/grid/runs.jsonl, run {stand_in['run']}: final: entropy",
        "results/ta_chain/runs.jsonl, run df9a6cabdfe70a32, metrics, final, entropy",
        "results/ta_chain/runs.jsonl, run df9a6cabdfe70a32, weights_sha256",
    ]


@whole_history
def test_the_source_digest_of_a_commit_is_by_its_own_rule(made, history):
    (line, *_), environment = read(made, "ecg"), {}
    for change in (
        {"source": "0" * 16},
        {"commit": read(made, "mnist")[-1]["environment"]["commit"]},
        {"commit": "0" * 40},
    ):
        environment = line["environment"] | change
        assert len(list(provenance.check_source([line | {"environment": environment}], history))) == 1


def test_the_present_rule_for_source_digests_is_understood(tmp_path):
    for folder, pattern in (("kdlib", "**/*.py"), ("replications", "**/*.py")):
        for path in (ROOT / folder).glob(pattern):
            copy = tmp_path / "work" / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "A commit"]):
        subprocess.run(["git", *command], cwd=tmp_path / "work", check=True)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path / "work", check=True, capture_output=True, text=True
    )
    digests = provenance.History(tmp_path / "work", tmp_path / "commits").digests(head.stdout.strip())
    assert digests == {name: source_digest(ROOT / "replications" / name) for name in NAMES}


# ---- the program


@pytest.mark.slow
def test_the_program_ends_with_status_1_after_one_changed_digit(root):
    path = root / "results/grid/quick-arms.csv"
    path.write_text(re.sub(r"(?<=,0\.)\d", lambda digit: str((int(digit[0]) + 1) % 10), path.read_text(), count=1))
    done = subprocess.run(
        [sys.executable, "-m", "tests.audit", "grid"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("FAULT        results/grid/quick-arms.csv, ") == 2  # by the rule, and made again
    assert done.stdout.endswith("10 files derived again from their records, 2 faults\n")


def test_the_program_ends_with_status_0_if_nothing_is_wrong(made, monkeypatch, capsys):
    for name in ("make_again", "check"):
        monkeypatch.setattr(again, name, lambda *_: iter(()))
    monkeypatch.chdir(made)
    assert __main__.main(["grid"]) == 0
    assert "NOT CHECKED  source digests of the runs" in capsys.readouterr().out  # there is no history


# ---- errors of the code that writes the tables


def swapped(right: Any) -> Any:
    return lambda claim, series, arm, rival: right(claim, series, rival, arm)


def unpaired(right: Any) -> Any:
    def shifted(metrics: Any, arm: str, metric: str) -> Any:
        seeds = right(metrics, arm, metric)
        return dict(zip(seeds, sorted(seeds.values()), strict=True))

    return shifted


BUGS = {
    "kdlib.judge.intervals.t_quantile": lambda right: lambda probability, freedom: float(stats.norm.ppf(probability)),
    "kdlib.judge.judging._differences": swapped,
    "kdlib.judge.judging._series": unpaired,
    "kdlib.report.frames.np.std": lambda right: lambda values, ddof=0: right(values),
    "kdlib.report.frames.measured": lambda right: lambda lines: right([line for line in lines if line.seed != 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", BUGS)
def test_an_error_of_the_code_that_writes_the_tables_is_found(root, monkeypatch, place):
    (root / "replications/ta_chain/figures.py").unlink()
    experiment = replace(load_experiment("ta_chain"), folder=root / "replications/ta_chain")
    lines = [line for line in read_records(root / "results/ta_chain/runs.jsonl") if line.profile == "quick"]
    module, _, name = place.rpartition(".")
    right = getattr(pkgutil.resolve_name(module), name)
    monkeypatch.setattr(place, BUGS[place](right))
    pages.write_pages(experiment, lines, root / "results/ta_chain", committed=lines, synthetic=False)
    monkeypatch.undo()
    assert {"results/ta_chain/quick-arms.csv", "results/ta_chain/quick-claims.csv"} & {
        fault.file for fault in audit.derived(root, ["ta_chain"])
    }


# ---- the statistics, against SciPy and against the rule of the tables


def test_statistics_agree_with_scipy():
    rng = np.random.default_rng(1)
    for n in (2, 5, 6, 30):
        values = list(rng.normal(0.1, 1, n))
        sample, test = statistics.sample(values), stats.ttest_1samp(values, 0)
        assert (sample.low, sample.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert (sample.one_sided_low, sample.one_sided_high) == pytest.approx(tuple(test.confidence_interval(0.9)))
        assert sample.p == pytest.approx(test.pvalue)
        assert statistics.kendall(values) == pytest.approx(stats.kendalltau(range(n), values).statistic)
    assert statistics.kendall([1, 1, 2, 3]) == pytest.approx(stats.kendalltau(range(4), [1, 1, 2, 3]).statistic)
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 3 * 0.01, 2 * 0.03, 1 * 0.04
    accuracy = stats.binomtest(93, 100).proportion_ci(0.95, "exact")
    assert statistics.half_width("accuracy", ((50, 4), (3, 43))) == pytest.approx((accuracy.high - accuracy.low) / 2)
    confusion = ((900, 100), (100, 900))  # the macro F1 is then nearly the accuracy: a binomial share
    assert statistics.half_width("macro_f1", confusion) == pytest.approx(1.96 * (0.9 * 0.1 / 2000) ** 0.5, rel=0.1)


KINDS = {
    "effect": 'kind = "effect"\nreported = 0.1\ndecimals = 2',
    "value": 'kind = "value"\nreported = 0.6\ntrivial = 0.5\ndecimals = 2\nmargin = 0.06',
    "direction": 'kind = "direction"',
    "threshold": 'kind = "direction"\nthreshold = 0.5',
    "non-inferior": 'kind = "non-inferior"\nmargin = 0.05',
    "comparable": 'kind = "comparable"\nmargin = 0.08',
    "best": 'kind = "best"',
    "trend": 'kind = "trend"',
    "exact": 'kind = "exact"',
}
COMPARED = {
    "value": 'arm = "a"',
    "threshold": 'arm = "a"',
    "best": 'arm = "a", over = ["b", "c"], differs = []',
    "trend": 'along = ["a", "b", "c"], differs = []',
    "exact": "expected = { a = 0.5, b = 0.5 }",
}
TOML = """
[source]
citation = "A report"
url = "https://example.org"
[claims.C1]
metric = "loss"
statement = "It is so."
place = "p. 1"
primary = true
{keys}
[claims.C1.modes]
controlled = {{ {compared} }}
"""


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_derivations_of_the_rule_agree(kind, lower, tmp_path):
    keys = KINDS[kind]
    if lower and kind not in ("comparable", "trend", "exact"):
        keys = keys.replace("reported = 0.6", "reported = 0.4") + "\nlower_is_better = true"
    path, rng, outcomes = tmp_path / "claims.toml", np.random.default_rng(11), set()
    path.write_text(TOML.format(keys=keys, compared=COMPARED.get(kind, 'arm = "a", over = "b", differs = []')))
    theirs, ours = reading.load_claims(path, "abc").claims["C1"], claims.read_claims(path).claims["C1"]
    for _ in range(60):
        n, noise = int(rng.integers(0, 9)), rng.choice([0, 0.01, 0.05, 0.3])
        shift = rng.choice([0, 0.03, 0.1, 0.5], 2) * rng.choice([-1, 1])
        series = {
            arm: {seed: float(0.5 + offset + noise * rng.standard_normal()) for seed in range(n)}
            for arm, offset in zip("abc", (*shift, 0), strict=True)
        }
        metrics = {arm: {seed: {"loss": value} for seed, value in seeds.items()} for arm, seeds in series.items()}
        expected = judging.judge(theirs, "controlled", metrics, declared=None)
        outcome, found = rule.verdict(ours, ours.modes["controlled"], series)
        assert (outcome, found.n) == (str(expected.outcome), expected.n)
        bounds = (expected.mean, expected.low, expected.high)
        assert (found.mean, found.low, found.high) == pytest.approx(bounds, nan_ok=True)
        outcomes.add(outcome)
    assert len(outcomes) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "exact"])
def test_both_derivations_of_firmness_and_margin_agree(kind, tmp_path):
    path, rng = tmp_path / "claims.toml", np.random.default_rng(2)
    path.write_text(TOML.format(keys=KINDS[kind], compared=COMPARED.get(kind, 'arm = "a", over = "b", differs = []')))
    theirs, ours = reading.load_claims(path, "abc").claims["C1"], claims.read_claims(path).claims["C1"]
    for offset in (-0.05, 0.02, 0.1):
        series = {
            arm: {seed: float(0.5 + shift + 0.05 * rng.standard_normal()) for seed in range(6)}
            for arm, shift in zip("abc", (offset, 0, offset / 2), strict=True)
        }
        metrics = {arm: {seed: {"loss": value} for seed, value in seeds.items()} for arm, seeds in series.items()}
        expected = judging.judge(theirs, "controlled", metrics, declared=6)
        found = rule.columns(ours, ours.modes["controlled"], series)
        assert rule.firmness(ours, found) == expected.firmness
        margin, beyond = expected.margin
        assert rule.margin(ours, found) == (margin, str(beyond))


def test_both_derivations_of_intervals_within_a_metrics_ends_agree():
    named = {claim.metric for name in NAMES for claim in pages.reported_of(load_experiment(name)).claims.values()}
    for metric in {*named, "training_loss", "teacher_kl", "agreement", "extra_errors"}:
        ends = tables.ends(metric)
        assert ends == intervals.limits(metric)
        for values in ([0.1, 0.9], [0.02, 0.9, 0.1], [0.99, 0.4, 1.0], [0.5, 0.5, 0.5]):
            expected = frames.bounds(values, ends)
            assert np.array_equal(tables._interval(values, *ends)[1:], expected, equal_nan=True), (metric, values)
            assert math.isnan(expected[0]) == (len(values) < 3 or len({*values}) == 1)
        assert tables._differences(metric) == frames.spread(metric)


# ---- the JSON and the pages


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("results/ecg/results.json", '"firmness": 0.7', '"firmness": 0.6', "firmness"),
        ("results/ecg/results.json", '"values": [0.8', '"values": [0.7', "C1, as described, distilled"),
        ("results/ecg/results.json", '"seconds": 1', '"seconds": 2', "seconds"),
        (
            "results/ecg/results.json",
            '"claim": "C1",\n  "mode": "as described"',
            '"claim": "C1",\n  "mode": "controlled"',
            "headline",
        ),
        (
            "results/site/ecg.html",
            '+0.058<span class="about unit">',
            '+0.059<span class="about unit">',
            "C1, as described, Measured",
        ),
        ("results/site/index.html", ">+0.058<", ">+0.068<", "ecg, Measured"),
        ("results/site/index.html", "</span> replicated</span>", "</span> reversed</span>", "verdict"),
    ],
)
def test_a_changed_number_of_the_json_or_a_page_is_found(root, file, old, new, said):
    path = root / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    names = NAMES if "index" in file else ["ecg"]
    assert any(line.startswith(file) and said in line for line in found(root, *names))
