"""All files of a repository's replications, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from kdlib.audit import bands, derived, evidence, pages
from kdlib.audit import tables as csv_files
from kdlib.audit.evidence import Key, Record
from kdlib.audit.faults import Fault, shown
from kdlib.audit.reported import Reported, read_reported
from kdlib.experiment import Experiment, load_experiment, replications

Checked = Callable[[str], None]


def audit(root: Path, names: Sequence[str] = (), checked: Checked = lambda file: None) -> Iterator[Fault]:
    """Every fault of the committed results, bands and tables below `root`; `checked` is told each file when it is done.

    `names`: some of the replications; README's table and stray folders are looked at when none is named.
    """
    rows: list[dict[str, str]] = []
    tables: dict[str, list[dict[str, str]]] = {}  # of arms, by the mark that README shows them at
    for name in names or replications(root):
        experiment = load_experiment(name)
        file = f"replications/{name}/reported.toml"
        try:
            reported = read_reported(root / file)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            yield _misshapen(file, error)
            continue
        groups: dict[Key, list[Record]] = {}
        yield from _guarded(f"results/{name}", _replication(root, experiment, reported, groups, checked))
        by_label = {evidence.label(experiment, group[0]): group for group in groups.values()}
        rows.append(pages.summary(name, reported, by_label.get(derived.FULL, [])))
        if quick := by_label.get("quick"):
            tables[name] = [pages.arm_cells(row, reported) for row in derived.arms(experiment, reported, quick)]
    if not names:
        text = (root / "README.md").read_text(encoding="utf-8")
        yield from _guarded("README.md", pages.check_readme("README.md", text, {pages.SUMMARY: rows, **tables}))
        checked("README.md")
        for folder in sorted(path for path in (root / "results").glob("*") if path.is_dir()):
            if folder.name not in replications(root):
                yield Fault(f"results/{folder.name}", "", "a folder of the same name in replications/", "none")


def _guarded(file: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    """What is misshapen beyond comparing is a fault, not a crash."""
    try:
        yield from faults
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        yield _misshapen(file, error)


def _misshapen(file: str, error: Exception) -> Fault:
    return Fault(file, "", "what can be read", f"{type(error).__name__}: {shown(str(error))}")


def _replication(root: Path, experiment: Experiment, reported: Reported, groups: dict[Key, list[Record]],
                 checked: Checked) -> Iterator[Fault]:
    folder = root / "results" / experiment.name
    runs = f"results/{experiment.name}/runs.jsonl"
    records: list[Record] = []
    if (root / runs).exists():
        records, faults = evidence.read(root / runs, runs)
        yield from faults
        yield from evidence.check(runs, experiment, records)
        checked(runs)
    known = [r for r in records if r["profile"] in experiment.module.PROFILES]
    groups |= evidence.grouped(known)
    labelled = [(evidence.label(experiment, group[0]), group) for group in groups.values()]
    by_label = dict(labelled)
    expected = {name for label in by_label for name in (*(path.name for path in _files(folder, label)), f"{label}.png")}
    for path in sorted(path for kind in ("md", "csv", "png") for path in folder.glob(f"*.{kind}")):
        if path.name not in expected:
            yield Fault(f"results/{experiment.name}/{path.name}", "", "the records of this table", "none")
    for label, group in labelled:  # two groups of one label cannot both be what its tables say
        full = by_label.get(label.replace(group[0]["profile"], derived.FULL, 1), [])
        yield from _tables(folder, experiment, reported, label, group, full, checked)
    explanation = f"replications/{experiment.name}/README.md"
    if (root / explanation).exists():
        text, judged = (root / explanation).read_text(encoding="utf-8"), by_label.get(derived.FULL, [])
        rows = derived.claims(reported, judged, judged) if judged else []
        yield from pages.check_explanation(explanation, text, reported, judged, rows)
        checked(explanation)
    recorded = f"replications/{experiment.name}/recorded.toml"
    yield from bands.check(root / recorded, recorded, experiment, reported, groups)
    if (root / recorded).exists():
        checked(recorded)


def _files(folder: Path, label: str) -> tuple[Path, Path, Path]:
    return folder / f"{label}.md", folder / f"{label}-arms.csv", folder / f"{label}-claims.csv"


def _tables(folder: Path, experiment: Experiment, reported: Reported, label: str, group: Sequence[Record],
            full: Sequence[Record], checked: Checked) -> Iterator[Fault]:
    arms = derived.arms(experiment, reported, group)
    claims = derived.claims(reported, group, full, other_data=label != group[0]["profile"])
    for path in _files(folder, label):
        file = f"results/{experiment.name}/{path.name}"
        if not path.exists():
            yield Fault(file, "", f"the table of {len(group)} records", "no such file")
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            yield from _guarded(file, pages.check(file, text, experiment, reported, group, arms, claims))
        elif path.stem.endswith("-arms"):
            yield from _guarded(file, csv_files.check(file, text, arms, ["arm"]))
        else:
            yield from _guarded(file, csv_files.check(file, text, claims, ["claim", "mode"]))
        checked(file)
