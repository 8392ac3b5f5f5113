"""A replication's tables, figure and row in the README, from records."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kdlib.claims import Reported, load_reported
from kdlib.experiment import Experiment, load_experiment, replications
from kdlib.recorded import read_recorded
from kdlib.report import evidence
from kdlib.report import tables as report
from kdlib.report.frames import FULL

EXAMPLE = "ecg"  # the replication whose quick table README shows


def reported_of(experiment: Experiment) -> Reported:
    """The source's numbers and claims."""
    return load_reported(experiment.folder / "reported.toml", [arm.name for arm in experiment.arms])


def write_pages(experiment: Experiment, records: Sequence[evidence.Record], folder: Path, *,
                committed: Sequence[evidence.Record], synthetic: bool) -> list[str]:
    """The tables (and the figure, where the replication has a `figures.py`) of each profile and data set among the records.

    Those of reduced profiles show the recorded verdicts of the full runs among `committed`.
    """
    reported, bands = reported_of(experiment), read_recorded(experiment.folder / "recorded.toml")
    # A reduced profile may train on a part of the data: the full runs to compare with are those of the same label, not digest.
    full_data = {_label(experiment, record, False): record.data for record in committed if record.profile == FULL}
    pages = []
    for (digest, profile_name), group in evidence.grouped(records).items():
        profile = experiment.profile(profile_name)
        label = _label(experiment, group[0], synthetic and not profile.synthetic)
        data = digest if profile_name == FULL else full_data.get(label.replace(profile_name, FULL, 1), digest)
        pages.append(report.write_tables(folder, label, experiment, reported, group, profile=profile_name,
                                         reduced=profile.reduced, synthetic=synthetic, recorded=bands.get((data, FULL))))
        if (experiment.folder / "figures.py").exists():
            importlib.import_module(f"replications.{experiment.name}.figures").draw(group, reported, folder / f"{label}.png")
    return pages


def _label(experiment: Experiment, record: evidence.Record, stand_in: bool) -> str:
    """The name of a table's files: the profile and whatever in the data differs from the profile's own."""
    usual = asdict(experiment.profile(record.profile).config)
    other = [str(value) for key, value in record.description["config"].items()
             if key in experiment.module.DATA_FIELDS and value != usual[key]]
    return "-".join([record.profile, *other, *(["synthetic"] if stand_in else [])])


def update_readme(root: Path) -> None:
    """Put one row for each replication into README's table, and the full tables into the replications' own READMEs."""
    rows = []
    for name in replications(root):
        experiment, path = load_experiment(name), root / "results" / name / "runs.jsonl"
        records = evidence.read_records(path)
        usual = [r for r in records if r.profile == FULL and _label(experiment, r, False) == FULL]
        rows.append(report.summary_line(name, reported_of(experiment), usual))
    shown = {EXAMPLE: page.read_text(encoding="utf-8")} if (page := root / "results" / EXAMPLE / "quick.md").exists() else {}
    report.update_readme(root / "README.md", rows, shown)
    for name in replications(root):
        if (page := root / "results" / name / "full.md").exists():
            report.update_explanation(root / "replications" / name / "README.md", page.read_text(encoding="utf-8"))
