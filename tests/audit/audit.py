"""The whole audit: each replication's records, tables and bands, the origin of its runs, and everything made again.

Numbers and verdicts are derived by independent code. Texts, pages, figures and the column `needed_n` are made again by
the ordinary code and must not differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdlib.run.experiment import Experiment, load_experiment, replications
from tests.audit import again, costs, figures, provenance, records, site, tables, traces
from tests.audit.claims import read_claims
from tests.audit.faults import Fault, Faults, in_file
from tests.audit.records import Record

Tell = Callable[[str], None]


def audit(root: Path, folder: Path, names: Sequence[str], checked: Tell, unchecked: Tell) -> Faults:
    """Give every fault of the committed results below `root`, of the named replications or of all.

    `folder` is an empty one. `checked` is told each file that was derived again, `unchecked` what could not be checked.
    """
    names = names or replications(root)
    yield from list(again.make_again(root, folder / "made", names)) or again.check(root, folder / "made", names)
    yield from derived(root, names, checked)
    history = provenance.History(root, folder / "commits")
    yield from provenance.check(root, names, history)
    if not history.whole:
        unchecked("source digests of the runs: they need the whole git history (a clone without --depth)")


def derived(root: Path, names: Sequence[str], checked: Tell = lambda file: None) -> Faults:
    """Give every fault of records, tables and bands that independent code finds."""
    for name in names:
        file, experiment = f"results/{name}/runs.jsonl", load_experiment(name)
        found, faults = records.read(root / file)
        yield from in_file(file, faults)
        yield from in_file(file, records.check(experiment, found))
        yield from in_file(file, _traces(root, experiment, found))
        yield from in_file(f"replications/{name}", _tables(root, experiment, found, checked))
        if found:  # nothing of a replication may be recorded yet
            checked(file)
        if (root / (cost := f"results/{name}/cost.csv")).exists():
            yield from in_file(cost, costs.check(root / f"results/{name}", found))
            checked(cost)
    file = "results/front.csv"
    yield from in_file(file, _front(root, file))
    checked(file)
    yield from _pages(root, names, checked)
    for path in sorted(root.glob("results/*/")):
        if path.name not in (*replications(root), "site"):
            yield Fault("", "a folder of the same name in replications/", "none", f"results/{path.name}")


def _front(root: Path, file: str) -> Faults:
    rows: tables.Rows = {}
    for name in replications(root):
        found, _ = records.read(root / f"results/{name}/runs.jsonl")
        source = read_claims(root / "replications" / name / "claims.toml")
        rows |= figures.front_rows(name, load_experiment(name), source, found)
    yield from tables.check_csv(root / file, rows, tables.NAMED["front"])


def _traces(root: Path, experiment: Experiment, found: Sequence[Record]) -> Faults:
    yield from traces.check_traces(experiment, found)
    yield from traces.check_pairs(read_claims(root / "replications" / experiment.name / "claims.toml"), found)


def _tables(root: Path, experiment: Experiment, found: Sequence[Record], checked: Tell) -> Faults:
    judged, source = experiment.judged, read_claims(root / "replications" / experiment.name / "claims.toml")
    groups = records.grouped(record for record in found if record["profile"] in experiment.profiles)
    made: dict[str, dict[str, Any]] = {}
    for (_, profile), group in groups.items():
        # A reduced profile may train on a part of the data. Its verdicts are those of runs on the same choice of data.
        key = _label(experiment, group[0], judged)
        full = [record for record in found if record["profile"] == judged and _label(experiment, record, judged) == key]
        label = _label(experiment, group[0], profile)
        # Shortened runs, and runs on other data than the source's, need not reach its numbers.
        expected = label == profile and (profile == judged or experiment.profiles[profile].reduced == "")
        parts = {
            "arms": tables.arm_rows(experiment, source, group, expected),
            "claims": tables.claim_rows(experiment, source, group, full, profile == judged),
            "ingredients": tables.ingredient_rows(source, group),
        }
        declared = experiment.profiles[profile].seeds if profile == judged else None
        made[label] = {**parts, "records": group, "declared": declared, "expected": expected}
        for part, rows in parts.items():
            file = f"results/{experiment.name}/{label}-{part}.csv"
            if rows:
                yield from in_file(file, tables.check_csv(root / file, rows, tables.NAMED[part]))
                checked(file)
        file = f"results/{experiment.name}/{label}-figure.csv"
        if (root / file).exists():  # whether there is a figure, is seen when it is made again
            yield from in_file(file, figures.check_figure(root / file, source, group, expected))
            checked(file)
    file = f"replications/{experiment.name}/bands.toml"
    yield from in_file(file, tables.check_bands(root / file, experiment, source, groups))
    if found:
        checked(file)
    file = f"results/{experiment.name}/results.json"
    yield from in_file(file, site.check_json(root / file, experiment, source, made))
    checked(file)


def _pages(root: Path, names: Sequence[str], checked: Tell) -> Faults:
    """The pages show what the JSON says, which is checked before."""
    contents = {}
    for name in names:
        file = f"results/site/{name}.html"
        try:
            contents[name] = json.loads((root / f"results/{name}/results.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue  # a fault of its own
        yield from in_file(file, site.check_page(root / file, contents[name]))
        checked(file)
    if set(names) == set(replications(root)):
        file = "results/site/index.html"
        yield from in_file(file, site.check_index(root / file, list(contents.values())))
        checked(file)


def _label(experiment: Experiment, record: Record, profile: str) -> str:
    return experiment.label(profile, record["description"]["config"]) if profile else ""
