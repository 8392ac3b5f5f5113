"""The audit passes on what `kd record` and `kd tables` write, and names whatever is changed in it afterwards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdlib import claims, intervals, judging, verdicts
from kdlib.audit import Fault, __main__, audit, bands, derived, rule, statistics
from kdlib.audit import evidence as audited_evidence
from kdlib.audit import reported as audited
from kdlib.audit import tables as csv_files
from kdlib.audit.faults import numbers
from kdlib.cli import commands, pages
from kdlib.experiment import Arm, Experiment, load_experiment
from kdlib.report import evidence, tables

ROOT = Path(__file__).parents[1]
EXPLANATION = "replications/ecg/README.md"
RUNS, BANDS, REPORTED = "results/ecg/runs.jsonl", "replications/ecg/recorded.toml", "replications/ecg/reported.toml"
LEVEL = {"train_teacher": 0.95, "train_student": 0.85, "train_distilled": 0.92, "train_sham": 0.86}  # how often right

ENVIRONMENT = {"clean": True, "commit": "0123456789abcdef" * 2, "device": "A CPU @ 2.5GHz", "platform": "Linux", "seconds": 1.25,
               "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "kdlib": "0.1"}}


# ---- a repository with made-up records, written without kdlib's classes


def identity(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def rounded_f1(confusion: np.ndarray) -> float:
    scores = [2 * confusion[k, k] / max(1, confusion[k].sum() + confusion[:, k].sum()) for k in range(len(confusion))]
    return float(np.mean(scores))


def measurements(rng: np.random.Generator, level: float, epochs: int, history: list[dict[str, float]],
                 taught: bool) -> dict[str, Any]:
    seen = history[:epochs]
    best = min(range(epochs), key=lambda i: seen[i]["validation_loss"])
    right = level + 0.01 * rng.standard_normal()
    sizes = (2000, 300, 400, 80, 300)
    confusion = np.array([rng.multinomial(size, [right if k == j else (1 - right) / 4 for j in range(5)])
                          for k, size in enumerate(sizes)])
    found = {"macro_f1": rounded_f1(confusion), "accuracy": float(confusion.trace() / confusion.sum()),
             "confusion": confusion.tolist(), "entropy": float(rng.uniform(0.1, 0.4)), "epochs": epochs, "best_epoch": best + 1,
             "parameters": 17221 if level == 0.95 else 3909, "validation_macro_f1": seen[best]["validation_macro_f1"]}
    seen[best]["test_macro_f1"] = float(f"{found['macro_f1']:.6g}")
    if taught:
        found |= {"agreement": float(rng.uniform(0.9, 1)), "teacher_kl": float(rng.uniform(0.01, 0.2))}
    return found


def records_of(experiment: Experiment, profile: str, seeds: int, names: tuple[str, ...], split: str, rng: np.random.Generator,
               ) -> list[dict[str, Any]]:
    lines: dict[str, dict[str, Any]] = {}
    for seed in range(seeds):
        placed: dict[str, str] = {}
        for arm in (experiment.arm(name) for name in names):
            config = replace(experiment.config(arm, experiment.profile(profile)), split=split)
            description = {
                "recipe": f"cvxtz-ecg/{arm.train.__name__}", "protocol": experiment.module.PROTOCOL,
                "config": {**asdict(config), "device": "cpu", "threads": 1}, "seed": seed,
                "data": f"{profile[0]}{split:f<15.15}",  # quick trains on a part
                "parents": {role: placed[parent] for role, parent in arm.needs.items()},
            }
            run = identity(description)
            placed[arm.name] = f"{run}/{arm.snapshot}"
            if run in lines:
                lines[run]["arms"][arm.name] = arm.snapshot
                continue
            epochs = config.epochs + config.tail_epochs
            history = [{"epoch": i + 1, "training_loss": float(f"{rng.uniform(0.1, 1):.6g}"),
                        "validation_loss": float(f"{rng.uniform(0.1, 1):.6g}"),
                        "validation_macro_f1": float(f"{rng.uniform(0.5, 0.9):.6g}"), "test_macro_f1": 0.5}
                       for i in range(epochs)]
            level = LEVEL[arm.train.__name__]
            metrics = {snapshot: measurements(rng, level, until, history, bool(arm.needs))
                       for snapshot, until in (("at_released_stop", config.released_epochs), ("final", epochs))}
            for found in metrics.values():  # both may have kept one epoch: then they are one network
                if found["best_epoch"] == metrics["final"]["best_epoch"]:
                    found |= {key: value for key, value in metrics["final"].items() if key != "epochs"}
            lines[run] = {
                "profile": profile, "seed": seed, "run": run, "arms": {arm.name: arm.snapshot},
                "data_name": f"beats, {split} split", "description": description, "metrics": metrics, "history": history,
                "weights_sha256": f"{seed:064x}", "environment": ENVIRONMENT,
            }
    return list(lines.values())


def dumped(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n" for record in records)


def write_pages(root: Path) -> None:
    """What `kd record` and `kd tables` write from the records."""
    real = load_experiment("ecg")
    module = SimpleNamespace(**{**vars(real.module), "__file__": str(root / "replications/ecg/experiment.py")})
    experiment = Experiment("ecg", module)  # the same, in the copy
    records = evidence.read_records(root / RUNS)
    commands.write_bands(experiment, records)
    pages.write_pages(experiment, records, (root / RUNS).parent, committed=records, synthetic=False)
    reported = claims.load_reported(root / REPORTED, [arm.name for arm in real.arms])
    full = [r for r in records if r.profile == "full" and "published" in r.data_name]
    if full:
        tables.update_explanation(root / EXPLANATION, (root / "results/ecg/full.md").read_text())
    shown = {"ecg": (root / "results/ecg/quick.md").read_text()}
    tables.update_readme(root / "README.md", [tables.summary_line("ecg", reported, full)], shown)


SHORT = {"epochs": 20, "released_epochs": 10}  # of the full profile, here: less to read


@pytest.fixture(scope="module", autouse=True)
def _quicker() -> Iterator[None]:
    """A short full profile; and the tables' bootstrap of a confusion matrix is not made a second time."""
    right, known, profiles = intervals.f1_interval, {}, load_experiment("ecg").module.PROFILES

    def f1_interval(counts: np.ndarray) -> intervals.Interval:
        if counts.tobytes() not in known:
            known[counts.tobytes()] = right(counts)
        return known[counts.tobytes()]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intervals, "f1_interval", f1_interval)
        patched.setitem(profiles, "full", replace(profiles["full"], config=replace(profiles["full"].config, **SHORT)))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("audited")
    (root / "replications/ecg").mkdir(parents=True)
    (root / "replications/__init__.py").touch()
    for name in ("__init__.py", "experiment.py", "kernels.py", "reported.toml"):
        shutil.copy(ROOT / "replications/ecg" / name, root / "replications/ecg")
    for paper, short in (("epochs: int = 122", SHORT["epochs"]), ("released_epochs: int = 62", SHORT["released_epochs"])):
        text("replications/ecg/experiment.py", paper, f"{paper.partition('=')[0]}= {short}")(root)
    marks = [f"<!-- {mark}:{end} -->" for mark in ("table", "ecg") for end in ("begin", "end")]
    (root / "README.md").write_text("# kdlib\n\n" + "\n".join(marks) + "\n")
    inner = [f"<!-- {mark}:{end} -->" for mark in ("claims", "ingredients") for end in ("begin", "end")]
    (root / EXPLANATION).write_text("# ECG\n\n" + "\n".join(inner) + "\n")
    (root / "results/ecg").mkdir(parents=True)
    experiment, rng = load_experiment("ecg"), np.random.default_rng(7)
    headline = experiment.module.HEADLINE
    groups = [("full", 5, headline, "published"), ("full", 3, ("baseline_balanced",), "published"),
              ("quick", 6, ("teacher", "distilled"), "published"),
              ("full", 2, ("teacher", "baseline"), "inter-patient")]
    records: dict[str, dict[str, Any]] = {}
    for group in groups:
        for record in records_of(experiment, *group, rng):
            records[record["run"]] = record
    (root / RUNS).write_text(dumped(list(records.values())))
    write_pages(root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def faults(root: Path) -> list[Fault]:
    return list(audit(root))


# ---- it passes, and is independent


def test_it_passes_on_what_was_written_and_looks_at_every_file(made):
    files: list[str] = []
    assert [str(fault) for fault in audit(made, checked=files.append)] == []
    written = {str(path.relative_to(made)) for path in made.rglob("*") if path.suffix in (".md", ".csv", ".jsonl")}
    assert set(files) == written | {BANDS}
    assert len(files) == 13
    assert {line.split(",")[1] for line in (made / "results/ecg/full-claims.csv").read_text().splitlines()} > {"primary"}


def test_tables_of_a_part_of_the_data_show_the_full_runs_verdicts(made):
    def column(label, name):
        rows = csv.DictReader(io.StringIO((made / f"results/ecg/{label}-claims.csv").read_text()))
        return {(row["claim"], row["mode"]): row[name] for row in rows if row[name]}

    records = [json.loads(line) for line in (made / RUNS).read_text().splitlines()]
    assert len({record["description"]["data"] for record in records}) == 3  # full, a part of it, another split
    assert column("quick", "recorded")
    assert column("quick", "recorded").items() <= column("full", "verdict").items()
    assert not column("full-inter-patient", "recorded")


def test_it_passes_before_the_full_runs(root):
    lines = (root / RUNS).read_text().splitlines(keepends=True)
    (root / RUNS).write_text("".join(line for line in lines if '"profile":"quick"' in line))
    for path in [*root.glob("results/ecg/full*"), root / BANDS]:
        path.unlink()
    assert "no table before there are full runs" in "".join(map(str, faults(root)))
    (root / EXPLANATION).write_text("# ECG\n")
    write_pages(root)
    assert "not yet run in full" in (root / "README.md").read_text()
    assert [str(fault) for fault in faults(root)] == []


def environment(root: Path, home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": f"{root}{os.pathsep}{ROOT}", "HOME": str(home),
            "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_program_imports_nothing_of_what_it_checks(made, tmp_path):
    code = ("import sys\nfrom kdlib.audit.__main__ import main\nstatus = main(sys.argv[1:])\n"
            "print('imported:', *sorted(name for name in sys.modules if name.startswith('kdlib.')))\nsys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code], cwd=made, env=environment(made, tmp_path), capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 files derived again from their records, 0 faults" in done.stdout
    imported = done.stdout.partition("imported:")[2].split()
    assert "kdlib.audit.rule" in imported
    for name in ("report", "claims", "judging", "verdicts", "intervals", "recorded"):
        assert not [module for module in imported if module.startswith(f"kdlib.{name}")]


def test_without_results_only_the_readme_is_looked_at(tmp_path):
    (tmp_path / "replications/ecg").mkdir(parents=True)
    for name in ("experiment.py", "reported.toml"):
        shutil.copy(ROOT / "replications/ecg" / name, tmp_path / "replications/ecg")
    (tmp_path / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    assert [str(fault) for fault in faults(tmp_path)] == ["README.md, table table: expected 1 rows, found 0 rows"]


# ---- changed digits: every one, in a sample of places


LABELS, ENDS = ("full", "quick", "full-inter-patient"), (".md", "-arms.csv", "-claims.csv")
FILES = [f"results/ecg/{label}{end}" for label in LABELS for end in ENDS]


def places(file: str, content: str) -> list[tuple[int, int]]:
    """Begin and end of every cell (CSV, Markdown) or value (TOML) or line of text that has a number in it."""
    pattern = r"(?<== )[^\n]+" if file.endswith(".toml") else r'(?:"[^"\n]*"|[^,\n"]+)' if file.endswith(".csv") else r"[^|\n]+"
    found = [match.span() for match in re.finditer(pattern, content)]
    return [(begin, end) for begin, end in found if numbers(content[begin:end])]


def set_alike(monkeypatch: pytest.MonkeyPatch, alike: bool) -> None:
    """Audit as a machine that computes the committed tables' last digits, or as one that computes others."""
    if alike and not csv_files.ALIKE:
        pytest.skip("this machine computes other last digits than those that made the committed tables")
    for module in (csv_files, bands):
        monkeypatch.setattr(module, "ALIKE", alike)


@pytest.mark.parametrize(("file", "alike"), [
    *((file, True) for file in (*FILES, BANDS, "README.md", EXPLANATION)),
    *((file, False) for file in (*FILES, BANDS) if not file.endswith(".md"))])  # Markdown is rounded
def test_a_changed_digit_in_any_cell_is_found(root, monkeypatch, file, alike):
    set_alike(monkeypatch, alike)
    content, rng = (root / file).read_text(), np.random.default_rng(3)
    assert len(places(file, content)) >= 3
    for _ in range(2):  # one digit of every cell at once; every cell must be named
        changed, count = list(content), 0
        for begin, end in places(file, content):
            number = str(rng.choice(numbers(content[begin:end])))
            start = begin + content[begin:end].index(number)
            place = int(rng.choice([i for i in range(start, start + len(number)) if content[i].isdigit()]))
            digit = str((int(content[place]) + int(rng.integers(1, 10))) % 10)
            after = content[start:place] + digit + content[place + 1:start + len(number)]
            if file.endswith((".csv", ".toml")) and "," not in number:
                if float(number) == float(after):
                    continue  # the 17th digit of the same float
                if not alike and math.isclose(float(number), float(after), rel_tol=2e-12, abs_tol=2e-14):
                    continue  # within what another machine's rounding may do
            if file.endswith(".toml") and re.search(r"(^|[^\d.])0\d", after):
                continue  # no TOML
            changed[place] = digit
            count += 1
        (root / file).write_text("".join(changed))
        found = faults(root)
        assert len(found) >= count
        assert {fault.file for fault in found} == {file}


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("file", ["results/ecg/full-arms.csv", BANDS])
def test_another_last_bit_is_a_fault_only_where_the_machine_computes_the_same_bits(root, monkeypatch, file, alike):
    set_alike(monkeypatch, alike)
    content = (root / file).read_text()
    pattern = r"(?<=,)0\.\d{10,}" if file.endswith(".csv") else r"(?<= = )0\.\d{10,}"
    changed, count = re.subn(pattern, lambda match: repr(math.nextafter(float(match[0]), math.inf)), content)
    assert count > 20
    (root / file).write_text(changed)
    assert len(faults(root)) == count * alike


# ---- changed files: what is done, and what the fault must say

Records = list[dict[str, Any]]


def on_records(change: Callable[[Records], None]) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        records = [json.loads(line) for line in (root / RUNS).read_text().splitlines()]
        change(records)
        (root / RUNS).write_text(dumped(records))
    return act


def renamed(record: dict[str, Any]) -> None:
    record["run"] = identity(record["description"])


def teacher_of_another_seed(records: Records) -> None:
    first, other = (r for r in records if "distilled" in r["arms"] and r["profile"] == "quick" and r["seed"] in (0, 1))
    first["description"]["parents"] = other["description"]["parents"]
    renamed(first)


def parent_gone(records: Records) -> None:
    records.remove(next(r for r in records if "teacher" in r["arms"] and r["seed"] == 5))


def reconfigured(**change: Any) -> Callable[[Records], None]:
    def act(records: Records) -> None:
        sham = next(r for r in records if "sham" in r["arms"])  # nobody's parent
        sham["description"]["config"] |= change
        renamed(sham)
    return act


def described_as(**change: Any) -> Callable[[Records], None]:
    def act(records: Records) -> None:
        sham = next(r for r in records if "sham" in r["arms"])
        sham["description"] |= change
        renamed(sham)
    return act


def seed_left_out(records: Records) -> None:
    records[:] = [r for r in records if r["profile"] != "quick" or r["seed"] != 2]


def doubled(records: Records) -> None:
    twin = json.loads(json.dumps(records[-1]))
    twin["description"]["config"]["threads"] = 2
    renamed(twin)
    records.append(twin)


def two_seeds_fewer(records: Records) -> None:
    records[:] = [r for r in records if r["profile"] != "full" or r["seed"] < 3]


def moved_example(records: Records) -> None:
    record = records[3]
    for metrics in record["metrics"].values():
        confusion = np.array(metrics["confusion"])
        confusion[0, 0] -= 1
        confusion[1, 1] += 1
        metrics |= {"confusion": confusion.tolist(), "macro_f1": rounded_f1(confusion),
                    "accuracy": float(confusion.trace() / confusion.sum())}
        record["history"][metrics["best_epoch"] - 1]["test_macro_f1"] = float(f"{metrics['macro_f1']:.6g}")


def seconds_changed(records: Records) -> None:
    records[0]["environment"] = records[0]["environment"] | {"seconds": 2.5}


def history_changed(key: str, to: float | None = None) -> Callable[[Records], None]:
    def act(records: Records) -> None:
        best = records[0]["metrics"]["final"]["best_epoch"] - 1
        records[0]["history"][best][key] = to if to is not None else records[0]["history"][best][key] + 1e-4
    return act


def epoch_left_out(records: Records) -> None:
    del records[0]["history"][-1]


def metric(name: str, value: Any) -> Callable[[Records], None]:
    def act(records: Records) -> None:
        for found in records[0]["metrics"].values():
            found[name] = value(found[name])
    return act


def text(file: str, old: str, new: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        content = (root / file).read_text()
        assert old in content
        (root / file).write_text(content.replace(old, new, 1))
    return act


def edited(file: str, edit: Callable[[str], str]) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        content = (root / file).read_text()
        assert edit(content) != content
        (root / file).write_text(edit(content))
    return act


def line_changed(old: str, new: str) -> Callable[[Path], None]:
    return text(RUNS, old, new)


def raw_verdict(root: Path) -> None:
    """A verdict in the CSV of a mode with three seeds, tables and bands otherwise made again."""
    on_records(two_seeds_fewer)(root)
    write_pages(root)
    path = root / "results/ecg/full-claims.csv"
    path.write_text(path.read_text().replace("inconclusive (too few seeds)", "replicated", 1))


def band_of_three(root: Path) -> None:
    on_records(two_seeds_fewer)(root)
    kept = (root / BANDS).read_text()
    write_pages(root)
    (root / BANDS).write_text(kept)


def removed(file: str) -> Callable[[Path], None]:
    return lambda root: (root / file).unlink()


def stray(root: Path) -> None:
    shutil.copy(root / "results/ecg/quick.md", root / "results/ecg/other.md")


def stray_folder(root: Path) -> None:
    shutil.copytree(root / "results/ecg", root / "results/chess")


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "another seed's teacher": (on_records(teacher_of_another_seed), "teacher of distilled, arm teacher of the same seed"),
    "a teacher that is not recorded": (on_records(parent_gone), "expected a recorded run, found"),
    "another epoch count": (on_records(reconfigured(epochs=123)), "epochs of sham: expected 20, found 123"),
    "a configuration field more": (on_records(reconfigured(dropout=0.5)), "dropout of sham: expected None, found 0.5"),
    "another split under the same digest": (on_records(reconfigured(split="inter-patient")), "name and fields of the data"),
    "another protocol": (on_records(described_as(protocol=7)), "protocol: expected 1, found 7"),
    "another recipe": (on_records(described_as(recipe="cvxtz-ecg/train_student")), "recipe of sham"),
    "a parent that is not needed": (on_records(described_as(parents={})), "parents of sham: expected ['teacher']"),
    "a seed in the record only": (line_changed('"seed":1,"weights', '"seed":4,"weights'), "seed: expected 1, found 4"),
    "a seed in the description": (line_changed('"seed":1},', '"seed":4},'), "the SHA-256 of its description"),
    "another run id": (on_records(lambda rs: rs[0].update(run="0" * 16)), "the SHA-256 of its description"),
    "another snapshot": (on_records(lambda rs: rs[-1]["arms"].update({k: "at_released_stop" for k in rs[-1]["arms"]})),
                         "snapshot of baseline: expected final"),
    "an arm that is not in the experiment": (on_records(lambda rs: rs[0]["arms"].update(ghost="final")), "found ghost"),
    "a synthetic profile": (on_records(lambda rs: rs[0].update(profile="smoke")), "one on real data (full, quick), found smoke"),
    "a profile of no experiment": (on_records(lambda rs: rs[0].update(profile="best")), "(full, quick), found best"),
    "the worst seed left out": (on_records(seed_left_out), "expected [0, 1, 2, 3, 4], found [0, 1, 3, 4, 5]"),
    "one arm and seed twice": (on_records(doubled), "baseline, seed 1: expected one run, found 2 runs"),
    "macro F1 in the record, tables remade": (on_records(metric("macro_f1", lambda x: x + 1e-9)), "by its confusion matrix"),
    "accuracy in the record": (on_records(metric("accuracy", lambda x: x + 1e-9)), "by its confusion matrix"),
    "a confusion matrix of other examples": (on_records(moved_example), "test examples of each class"),
    "a negative count": (on_records(metric("confusion", lambda c: [[-1, *c[0][1:]], *c[1:]])), "a square of counts"),
    "entropy in the record": (on_records(metric("entropy", lambda x: x + 1e-9)), "column entropy"),
    "parameters in the record": (on_records(metric("parameters", lambda x: x + 1)), "column parameters"),
    "an agreement above 1": (on_records(lambda rs: rs[-1]["metrics"]["final"].update(agreement=1.5)), "a share from 0 to 1"),
    "another best epoch": (on_records(metric("best_epoch", lambda x: x + 1)), "by its history"),
    "test F1 in the history": (on_records(history_changed("test_macro_f1")), "test_macro_f1"),
    "validation F1 in the history": (on_records(history_changed("validation_macro_f1")), "validation_macro_f1"),
    "a loss in the history": (on_records(history_changed("validation_loss", 2.0)), "best_epoch"),
    "a training loss that nothing else depends on": (on_records(history_changed("training_loss")), "records: SHA-256"),
    "the seconds a run took": (on_records(seconds_changed), "records: SHA-256"),
    "an epoch left out of the history": (on_records(epoch_left_out), "length of its history: expected 20, found 19"),
    "a commit in a record": (on_records(lambda rs: rs[0]["environment"].update(commit="fedcba9876543210" * 2)), "- commit: "),
    "weights without a digest": (on_records(lambda rs: rs[0].update(weights_sha256="none")), "64 hexadecimal digits"),
    "a number that is none": (line_changed('"entropy":0.', '"entropy":NaN,"x":0.'), "NaN, which is no finite number"),
    "an infinite number": (line_changed('"entropy":0.', '"entropy":1e999,"x":0.'), "1e999, which is no finite number"),
    "a key twice": (line_changed('"profile":"full"', '"profile":"full","profile":"full"'), "another spelling"),
    "a line cut off": (edited(RUNS, lambda content: content[:-40]), "a finished run as canonical JSON"),
    "a table without records": (stray, "results/ecg/other.md: expected the records of this table, found none"),
    "a table whose records are gone": (removed(RUNS), "quick.md: expected the records of this table, found none"),
    "records without a table": (removed("results/ecg/full-arms.csv"), "expected the table of 28 records, found no such file"),
    "a folder of no replication": (stray_folder, "results/chess: expected a folder of the same name"),
    "no bands": (removed(BANDS), "the bands of the recorded runs"),
    "a verdict from three seeds": (raw_verdict, "none from fewer than 5 seeds, found replicated, n = 3"),
    "bands from three seeds": (band_of_three, "nothing: no 5 seeds are recorded for it"),
    "a verdict in recorded.toml": (text(BANDS, '"as described" = "', '"as described" = "reversed'),
                                   "verdicts.fpublishedffffff.full.C1, as described: expected"),
    "a place inside a range": (edited(BANDS, lambda content: re.sub(
        r'(distilled\.macro_f1" = )(true|false)', lambda m: m[1] + {"true": "false", "false": "true"}[m[2]], content, count=1)),
        "inside.fpublishedffffff.full.distilled.macro_f1"),
    "a verdict in Markdown": (text("results/ecg/full.md", "| not replicated", "| replicated    "), "column verdict"),
    "a verdict in README": (edited("README.md", lambda content: re.sub(r"[a-z ]+ \|\n<!-- table:e", "replicated |\n<!-- table:e",
                            content)), ", ecg, column verdict: expected not replicated, found replicated"),
    "a row left out": (edited("results/ecg/quick.md", lambda content: re.sub(r"\n\| distilled .*", "", content)),
                       "table Arms: expected 2 rows, found 1 rows"),
    "an ingredient left out": (edited("results/ecg/full.md", lambda content: re.sub(r"\n\| the 538 .*", "", content)),
                               "table What the difference is made of: expected 12 rows, found 11 rows"),
    "an ingredient that is not in reported.toml": (edited("results/ecg/full.md", lambda content: re.sub(
        r"(\n\| the 538 .*)", r"\1\1", content)), "expected 12 rows, found 13 rows"),
    "an ingredient of other arms": (text(REPORTED, 'arm = "distilled"\nover = "sham"', 'arm = "teacher"\nover = "sham"'),
                                    "column arm: expected teacher, found distilled"),
    "the mark of other data": (edited("results/ecg/full-inter-patient-claims.csv", lambda content: re.sub(
        r"True", "False", content, count=1)), "column analogue"),
    "a column left out": (edited("results/ecg/quick-arms.csv", lambda content: re.sub(r"(?m),[^,\n]*$", "", content)),
                          "columns"),
    "a line with a number added": (text("results/ecg/quick.md", "## Claims", "Ours is 3 times better.\n\n## Claims"),
                                   "no other line with numbers"),
    "how the source chose": (text("results/ecg/full.md", "with the best validation loss: ", "with the best test loss: "),
                             "weights of the epoch with the best validation loss: "),
    "an arm of how the source chose": (edited("results/ecg/full.md", lambda content: re.sub(
        r"(validation loss: .*), distilled\n", r"\1\n", content)), "validation loss: "),
    "a reported number": (text(REPORTED, "reported = 0.11", "reported = 0.12"), "column reported"),
    "a reported spread": (text(REPORTED, "spread = 0.006", "spread = 0.007"), "column macro_f1_reported_std"),
    "a claim's kind": (text(REPORTED, 'kind = "direction"', 'kind = "non-inferior"\nmargin = 0.01'), "column kind"),
    "a reported file that is no TOML": (text(REPORTED, "[source]", "[source"), "replications/ecg/reported.toml"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_named(root, name):
    act, sentence = TAMPERED[name]
    act(root)
    found = [str(fault) for fault in faults(root)]
    assert any(sentence in line for line in found), "\n".join(found[:12]) or "nothing found"


def test_an_edited_experiment_shows(root, monkeypatch):
    module = load_experiment("ecg").module
    monkeypatch.setitem(module.PROFILES, "full", replace(module.PROFILES["full"], config=replace(module.PAPER, batch=32)))
    assert any("batch of teacher: expected 32, found 64" in str(fault) for fault in faults(root))


# ---- the program's exit status

CHANGED_DIGIT = edited("results/ecg/quick-arms.csv", lambda content: re.sub(  # the first number after a decimal point
    r"(?<=,0\.)\d", lambda match: str((int(match[0]) + 1) % 10), content, count=1))


def test_the_program_ends_with_status_1_after_one_changed_digit(root, tmp_path):
    CHANGED_DIGIT(root)
    done = subprocess.run([sys.executable, "-m", "kdlib.audit"], cwd=root, env=environment(root, tmp_path), capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAULT    results/ecg/quick-arms.csv, row teacher, column macro_f1: expected 0." in done.stdout
    assert done.stdout.endswith("13 files derived again from their records, 1 faults\n")


EXITS: dict[str, tuple[Callable[[Path], Any], str, int]] = {
    "nothing changed": (lambda root: None, "0 faults", 0),
    "a digit": (CHANGED_DIGIT, "1 faults", 1),
    "no README": (removed("README.md"), "FAULT    [Errno 2] No such file or directory: 'README.md'", 1),
    "no TOML": (edited(REPORTED, lambda content: "[source"), f"FAULT    {REPORTED}: expected what can be read, found ", 1),
}


@pytest.mark.parametrize("name", EXITS)
def test_the_exit_status(root, monkeypatch, capsys, name):
    act, said, status = EXITS[name]
    act(root)
    monkeypatch.chdir(root)
    assert __main__.main([]) == status
    assert said in capsys.readouterr().out


# ---- errors of the code that writes the tables


def wrong_quantile(monkeypatch: pytest.MonkeyPatch) -> None:
    right = verdicts.t_interval
    monkeypatch.setattr("kdlib.intervals.t_quantile", lambda p, freedom: float(stats.norm.ppf(p)))
    assert right([1.0, 2.0, 4.0]) != stats.t.interval(0.95, 2, 7 / 3, stats.sem([1.0, 2.0, 4.0]))


def swapped_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    right = judging._pair
    monkeypatch.setattr(judging, "_pair", lambda claim, series, arm, over: right(claim, series, over, arm))


def population_std(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.std
    monkeypatch.setattr("kdlib.report.frames.np.std", lambda values, ddof=0: right(values))


def unpaired(monkeypatch: pytest.MonkeyPatch) -> None:
    right = judging._series
    monkeypatch.setattr(judging, "_series", lambda metrics, arm, metric: dict(
        zip(found := right(metrics, arm, metric), sorted(found.values()), strict=True)))


def rounding_in_the_wrong_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlib.report.markdown.Scale.show", lambda self, number, sign="", decimals=None: (
        "—" if number != number else f"{int(number * 1000) / 1000:{sign}.3f}"))


@pytest.mark.parametrize("bug", [wrong_quantile, swapped_sign, population_std, unpaired, rounding_in_the_wrong_place])
def test_an_error_of_the_tables_code_shows(root, bug, monkeypatch):
    with monkeypatch.context() as patched:
        bug(patched)
        write_pages(root)
    assert {fault.file for fault in faults(root)} & {f"results/ecg/full{end}" for end in ENDS}


# ---- the statistics, against SciPy and against the rule of the tables


def test_statistics_agree_with_scipy():
    rng = np.random.default_rng(1)
    for n in (2, 5, 6, 30):
        values = list(rng.normal(0.1, 1, n))
        found, test = statistics.sample(values), stats.ttest_1samp(values, 0)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
        assert (found.lower, found.upper) == pytest.approx(tuple(test.confidence_interval(0.9)))
        assert found.p == pytest.approx(test.pvalue)
        assert statistics.kendall(values) == pytest.approx(stats.kendalltau(range(n), values).statistic)
    assert statistics.kendall([1, 1, 2, 3]) == pytest.approx(stats.kendalltau(range(4), [1, 1, 2, 3]).statistic)
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # by hand: 3 * 0.01, 2 * 0.03, 1 * 0.04
    assert statistics.deciding(1.0, 0.5) == next(n for n in range(5, 99) if stats.t.ppf(0.975, n - 1) / n**0.5 < 0.5)
    accuracy = stats.binomtest(93, 100).proportion_ci(0.95, "exact")
    assert statistics.half_width("accuracy", ((50, 4), (3, 43))) == pytest.approx((accuracy.high - accuracy.low) / 2)
    confusion = ((900, 100), (100, 900))  # macro F1 is then nearly the accuracy: a binomial share
    assert statistics.half_width("macro_f1", confusion) == pytest.approx(1.96 * (0.9 * 0.1 / 2000) ** 0.5, rel=0.1)


KINDS = {
    "effect": {"reported": 0.1, "decimals": 2}, "value": {"reported": 0.6, "trivial": 0.5, "decimals": 2, "margin": 0.06},
    "direction": {}, "threshold": {"threshold": 0.5}, "non-inferior": {"margin": 0.05}, "comparable": {"margin": 0.08},
    "best": {}, "trend": {}, "exact": {},
}  # fmt: skip


def claim_of(kind: str, lower: bool) -> dict[str, Any]:
    keys = {"kind": "direction" if kind == "threshold" else kind, "metric": "loss", "statement": "It is so.", "place": "p. 1",
            "primary": True, **KINDS[kind]}
    if lower and kind not in ("comparable", "trend", "exact"):
        keys |= {"lower_is_better": True} | ({"reported": 0.4} if kind == "value" else {})
    mode = {"value": {"arm": "a"}, "threshold": {"arm": "a"}, "best": {"arm": "a", "over": ["b", "c"]},
            "trend": {"along": ["a", "b", "c"]}, "exact": {"expected": {"a": 0.5, "b": 0.5}}}
    return keys | {"modes": {"controlled": mode.get(kind, {"arm": "a", "over": "b"})}}


def as_toml(claim: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in claim.items() if key != "modes"]
    mode = ", ".join(f"{key} = " + (("{ " + ", ".join(f"{k} = {v}" for k, v in value.items()) + " }") if isinstance(value, dict)
                                    else json.dumps(value)) for key, value in claim["modes"]["controlled"].items())
    return ('[source]\ncitation = "c"\nurl = "https://example.org"\n[claims.C1]\n' + "\n".join(lines)
            + f"\n[claims.C1.modes]\ncontrolled = {{ {mode} }}\n")


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_both_derivations_of_the_rule_agree(kind, lower, tmp_path):
    path, rng, outcomes = tmp_path / "reported.toml", np.random.default_rng(11), set()
    path.write_text(as_toml(claim_of(kind, lower)))
    theirs = claims.load_reported(path, "abc").claims["C1"]
    (ours,) = audited.read_reported(path).claims
    for _ in range(60):
        n, noise = int(rng.integers(0, 9)), rng.choice([0, 0.01, 0.05, 0.3])
        shift = rng.choice([0, 0.03, 0.1, 0.5], 2) * rng.choice([-1, 1])
        series = {arm: {seed: float(0.5 + offset + noise * rng.standard_normal()) for seed in range(n)}
                  for arm, offset in zip("abc", (*shift, 0), strict=True)}
        metrics = {arm: {seed: {"loss": value} for seed, value in seeds.items()} for arm, seeds in series.items()}
        expected = judging.judge(theirs, "controlled", metrics)
        found = rule.ruling(ours, ours.modes["controlled"], series)
        assert (found.outcome, found.n, found.needed) == (str(expected.verdict), expected.n, expected.needed_n)
        assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high), nan_ok=True)
        outcomes.add(found.outcome)
    assert len(outcomes) >= 2


def test_the_csv_reader_is_not_fooled_by_commas(made):
    rows = list(csv.DictReader(io.StringIO((made / "results/ecg/full-claims.csv").read_text())))
    assert any("," in row["statement"] for row in rows)


def test_a_source_with_one_teacher_has_it_as_the_parent_of_every_seed():
    arms = (Arm("teacher", (), print), Arm("one", (), print, seed=0), Arm("student", (), print, {"teacher": "one"}))

    def record(run, seed, names, **parents):
        return {"profile": "full", "run": run, "seed": seed, "arms": dict.fromkeys(names, "final"),
                "description": {"data": "d", "parents": parents}}

    records = [record("t0", 0, ["teacher", "one"]), record("t1", 1, ["teacher"])]
    wrong = "teacher of student, arm one of seed 0: expected t0/final, found t1/final"
    for parent, said in (("t0/final", []), ("t1/final", [wrong])):
        student, experiment = record("s1", 1, ["student"], teacher=parent), SimpleNamespace(arms=arms)
        found = [str(fault) for fault in audited_evidence._parents("runs", "s1", experiment, student, [*records, student])]
        assert [fault.partition("s1: ")[2] for fault in found] == said


def test_both_derivations_name_the_arms_that_one_teacher_has_taught():
    arms = (Arm("one", (), print, seed=0), Arm("plain", (), print), Arm("taught", (), print, {"teacher": "one"}),
            Arm("below", (), print, {"teacher": "taught"}), Arm("own", (), print, {"teacher": "plain"}),
            Arm("once", (), print, {"teacher": "one"}))
    ran = {"one": [0], "once": [0], **{arm: [0, 1, 2] for arm in ("plain", "taught", "below", "own")}}
    parents = {arm.name: {role: (name, next(a.seed for a in arms if a.name == name)) for role, name in arm.needs.items()}
               for arm in arms}
    records = [{"run": f"{arm}{seed}", "arms": {arm: "final"}, "description": {"parents": {
        role: f"{name}{seed if fixed is None else fixed}/final" for role, (name, fixed) in parents[arm].items()}}}
        for arm, seeds in ran.items() for seed in seeds]
    assert derived.of_one_teacher(SimpleNamespace(arms=arms), records) == ["taught", "below"]
    note = tables._of_one_teacher(arms, pd.DataFrame([{"arm": arm, "n": len(seeds)} for arm, seeds in ran.items()]))
    assert note == "\n- One teacher has taught all seeds of taught, below: their intervals leave the teacher's variance out."
    assert tables._of_one_teacher(arms, pd.DataFrame()) == ""
