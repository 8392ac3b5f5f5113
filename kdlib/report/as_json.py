"""A replication's results as one JSON object, with everything that the page shows: `results/<name>/results.json`.

It is made from the committed records, from the CSV files next to them, and from what the READMEs say in words. Numbers
have all their digits and are shares, not percent; a number that is not known is null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdlib.collector import without_collector
from kdlib.files import atomic_write, sha256
from kdlib.judge.claims import Claim, Reported
from kdlib.judge.judging import of_declared, with_choices
from kdlib.report.frames import is_reduced
from kdlib.report.json_rows import arm_rows, claim_rows, command, ingredient_rows, run_rows
from kdlib.report.markdown import aim, mark, scale, unit
from kdlib.report.pages import label_of, reported_of
from kdlib.report.pairs import traced_pairs
from kdlib.report.prose import data_sets, numbered, section_of, title_of
from kdlib.report.readme import worst_primary
from kdlib.report.tables import of_one_teacher
from kdlib.report.texts import read_text
from kdlib.run.experiment import Experiment
from kdlib.run.records import Record, grouped, measured

__all__ = ["replication_json", "write_json"]

AGAINST = "What stands against the claim"  # a section of a README


@without_collector()
def write_json(
    experiment: Experiment, records: Sequence[Record], root: Path, dates: Mapping[str, str]
) -> dict[str, Any]:
    """Write and return the results of a replication; `dates` holds the day of each commit."""
    content = replication_json(experiment, records, root, dates)
    text = "{\n" + ",\n".join(_lines(content, 0)) + "\n}\n"
    atomic_write(root / "results" / experiment.name / "results.json", text.encode())
    return content


def _lines(content: Mapping[str, Any], depth: int) -> list[str]:
    """One line for each row of a table, so that a difference between two versions can be read."""
    return [f"{' ' * (depth + 1)}{json.dumps(key)}: {_value(value, depth + 1)}" for key, value in content.items()]


def _value(value: Any, depth: int) -> str:
    space = " " * depth
    if isinstance(value, dict) and depth < 3 and value:
        return "{\n" + ",\n".join(_lines(value, depth)) + f"\n{space}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict | str):
        return "[\n" + ",\n".join(f"{space} {_value(each, depth + 1)}" for each in value) + f"\n{space}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def replication_json(
    experiment: Experiment, records: Sequence[Record], root: Path, dates: Mapping[str, str]
) -> dict[str, Any]:
    """Return the results of a replication; see the module."""
    reported, readme = reported_of(experiment), read_text(experiment.folder / "README.md")
    heading, items = numbered(readme)
    return {
        "name": experiment.name,
        "title": title_of(readme) or experiment.name,
        "about": experiment.about,
        "source": {"citation": reported.source.citation, "url": reported.source.url},
        "claims": [_claim(reported, claim) for claim in reported.claims.values()],
        "judged": experiment.judged,
        "headline": _headline(experiment, reported, records),
        "differences": {"heading": heading, "items": items},
        "findings": section_of(readme, "What came out"),
        "against": section_of(readme, AGAINST),
        "data": data_sets(read_text(root / "DATA.md"), _data_names(experiment)),
        "tables": _tables(experiment, reported, records, root, dates),
    }


def _claim(reported: Reported, claim: Claim) -> dict[str, Any]:
    shown = scale(reported, claim.metric)
    return {
        "claim": claim.name,
        "mark": mark(claim),
        "kind": claim.kind,
        "statement": claim.statement,
        "place": claim.place,
        "aim": aim(claim, shown),
        "unit": unit(claim, shown),
        "modes": list(claim.modes),
    }


def _data_names(experiment: Experiment) -> tuple[str, ...]:
    if not callable(experiment.data):
        return experiment.data
    chosen = (experiment.data(profile.config) for profile in experiment.profiles.values() if not profile.synthetic)
    return tuple(dict.fromkeys(name for names in chosen for name in names))


def _headline(experiment: Experiment, reported: Reported, records: Sequence[Record]) -> dict[str, Any] | None:
    """Where the worst verdict on a primary claim is: the table, the claim and the mode."""
    groups = grouped(records).values()
    judged = next((group for group in groups if label_of(experiment, group[0]) == experiment.judged), [])
    if not judged:
        return None
    declared = experiment.profile(experiment.judged).seeds
    numbers = with_choices(reported.choices, of_declared(measured(judged), declared))
    worst = worst_primary(reported, numbers, declared)
    return {"table": experiment.judged, "claim": worst[1].name, "mode": worst[2]} if worst else None


def _tables(
    experiment: Experiment, reported: Reported, records: Sequence[Record], root: Path, dates: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The tables: the judged profile's first, then those of other data, then the other profiles."""
    # The records' own lines: writing 10,000 of them as JSON again, for the digest, takes a second.
    lines = read_text(root / "results" / experiment.name / "runs.jsonl").split("\n")
    filled = [number for number, line in enumerate(lines, 1) if line.strip()]
    line_of = {id(record): number for number, record in zip(filled, records, strict=True)}  # a run may have two lines
    made = []
    for group in grouped(records).values():
        numbers = [line_of[id(record)] for record in group]
        digest = sha256("".join(sorted(f"{lines[number - 1]}\n" for number in numbers)).encode())
        made.append(_table(experiment, reported, group, root, dates, numbers) | {"records_sha256": digest})
    return sorted(made, key=lambda table: (table["label"] != experiment.judged, not table["judged"]))


def _table(
    experiment: Experiment,
    reported: Reported,
    records: Sequence[Record],
    root: Path,
    dates: Mapping[str, str],
    lines: Sequence[int],
) -> dict[str, Any]:
    first = records[0]
    label, profile = label_of(experiment, first), experiment.profile(first.profile)
    folder = root / "results" / experiment.name
    pairs, traced = traced_pairs(reported, records)
    arms = arm_rows(experiment, folder / f"{label}-arms.csv")
    ranged = not is_reduced(profile, synthetic=False, analogue=label != first.profile)
    return {
        "label": label,
        "profile": first.profile,
        "judged": profile.judged,
        "declared": profile.seeds if profile.judged else None,
        "analogue": label != first.profile,
        "reduced": profile.reduced,
        "data": {"name": first.data_name, "digest": first.data},
        "seeds": sorted({record.seed for record in records}),
        "records_sha256": "",
        "pairs": {"compared": pairs, "traced": traced},
        "provenance": _provenance(records, dates),
        "notes": _notes(experiment, reported, arms),
        "metrics": {
            name: {"percent": scale(reported, name).percent, "decimals": scale(reported, name).decimals}
            for name in dict.fromkeys(
                [claim.metric for claim in reported.claims.values()] + [v.metric for v in reported.values.values()]
            )
        },
        "arms": arms,
        "claims": claim_rows(experiment, reported, records, folder / f"{label}-claims.csv", ranged),
        "ingredients": ingredient_rows(reported, folder / f"{label}-ingredients.csv"),
        "command": command(experiment, records, ["ARM"], "SEED"),
        "runs": run_rows(records, dates, lines),
    }


def _provenance(records: Sequence[Record], dates: Mapping[str, str]) -> dict[str, Any]:
    """Where and with what the runs were made; each thing with its number of runs."""
    environments = {record.run: record.environment for record in records}.values()
    versions = [
        ", ".join(f"{name} {version}" for name, version in sorted(env.get("versions", {}).items()))
        for env in environments
    ]
    commits = [(str(env.get("commit", "unknown")), env.get("clean")) for env in environments]
    return {
        "seconds": sum(float(env.get("seconds", 0)) for env in environments),
        "devices": _counted([str(env.get("device", "unknown")) for env in environments]),
        "versions": _counted(versions),
        "commits": [
            {"commit": commit, "clean": clean, "date": dates.get(commit), "runs": commits.count((commit, clean))}
            for commit, clean in sorted(set(commits), key=lambda one: (dates.get(one[0], ""), one[0]))
        ],
    }


def _counted(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [{"name": text, "runs": texts.count(text)} for text in sorted(set(texts))]


def _notes(experiment: Experiment, reported: Reported, arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know of these runs, in sentences."""
    notes = []
    if taught := of_one_teacher(experiment.arms, {row["arm"] for row in arms if row["n"] > 1}):
        notes.append(
            f"One teacher has taught all seeds of {', '.join(taught)}: their intervals do not contain the variance "
            "between teachers."
        )
    selected: dict[str, list[str]] = {}
    for row in arms:
        values = [value for value in reported.values.values() if row["arm"] in value.arms and value.selected]
        for text in dict.fromkeys(value.selected for value in values):
            selected.setdefault(text, []).append(row["arm"])
    notes += [f"How the source chose the numbers of {', '.join(names)}: {text}." for text, names in selected.items()]
    return notes
