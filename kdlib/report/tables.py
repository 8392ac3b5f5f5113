"""The tables of a replication as files: a page in Markdown, and its two frames as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlib.claims import Claim, Reported, load_reported
from kdlib.experiment import Experiment
from kdlib.files import atomic_write
from kdlib.judging import judge
from kdlib.recorded import Record as Bands
from kdlib.recorded import read_recorded
from kdlib.report.evidence import Record, grouped, measured, read_records
from kdlib.report.frames import FULL, arms_table, claims_table, is_full, metrics_of
from kdlib.report.markdown import NONE, arms_shown, claims_shown, escaped, mark, table
from kdlib.verdicts import Outcome

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["header", "outcomes", "page", "rebuild", "write_tables"]


def outcomes(reported: Reported, records: Sequence[Record]) -> dict[str, dict[str, Outcome]]:
    """The verdicts by claim and mode, as `recorded.toml` holds them; too few seeds are no verdict."""
    numbers = measured(records)
    decided: dict[str, dict[str, Outcome]] = {}
    for claim in reported.claims.values():
        for mode in claim.modes:
            outcome = judge(claim, mode, numbers).verdict
            if outcome is not Outcome.TOO_FEW_SEEDS:
                decided.setdefault(claim.name, {})[mode] = outcome
    return decided


def header(records: Sequence[Record], profile: str, reduced: str, synthetic: bool) -> str:
    """What the runs of a table are: data, profile, seeds, device, versions, commits."""
    seeds = sorted({record.seed for record in records})
    lines = {
        "data": _each(f"{record.data_name} (digest {record.data})" for record in records),
        "profile": profile + (f"; reduced: {reduced}" if reduced else ""),
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))}), {len(records)} runs",
        "device": _each(_device(record) for record in records),
        "versions": _each(_versions(record.environment) for record in records),
        "commit": _each(_commit(record.environment) for record in records),
    }
    text = "\n".join(f"- {head}: {escaped(line)}" for head, line in lines.items())
    return f"{_SYNTHETIC}\n\n{text}" if synthetic else text


_SYNTHETIC = (
    "**SYNTHETIC DATA: these runs did not see the source's data. Their numbers show that everything works and "
    "say nothing about the source; no claim gets a verdict.**"
)


def _each(texts: Iterable[str]) -> str:
    return "; ".join(sorted(set(texts))) or NONE


def _device(record: Record) -> str:
    config, environment = record.description["config"], record.environment
    threads = config.get("threads", environment.get("threads", "unknown"))
    name = environment.get("device", "unknown processor")
    return f"{config.get('device', 'unknown')} ({name}), {threads} thread{'' if threads == 1 else 's'} a run"


def _versions(environment: Mapping[str, Any]) -> str:
    versions = environment.get("versions", {})
    return ", ".join(
        f"{name} {versions[name]}" for name in ("python", "torch", "numpy", "kdlib") if name in versions
    )


def _commit(environment: Mapping[str, Any]) -> str:
    clean = environment.get("clean")
    state = "clean tree" if clean is True else "uncommitted changes" if clean is False else "tree not known"
    return f"{str(environment.get('commit', 'unknown'))[:10]} ({state})"


def page(
    experiment: Experiment, reported: Reported, arms: pd.DataFrame, claims: pd.DataFrame, heading: str, *,
    full: bool, synthetic: bool = False,
) -> str:  # fmt: skip
    """The Markdown of a replication's tables; `heading` is what `header` gives, `full` says that runs are full ones."""
    shown = arms_shown(arms, reported, metrics_of(reported))
    judged = claims_shown(claims, reported, full, synthetic)
    right = [column for column in (*shown.columns, *judged.columns) if column not in _LEFT]
    return "\n\n".join([
        f"# {escaped(experiment.name)}",
        f"Source: {escaped(reported.source.citation)}, <{reported.source.url}>",
        heading,
        "## Arms", table(shown, right),
        "## Claims", table(judged, right),
        "\n".join(_statement(claim) for claim in reported.claims.values()),
        "## How to read this", _NOTES,
    ]) + "\n"  # fmt: skip


_LEFT = ("arm", "mode", "claim", "about", "verdict", "full verdict", "this run")


def _statement(claim: Claim) -> str:
    kind = f"{mark(claim)}, {claim.kind}" if mark(claim) else claim.kind
    place = f" ({escaped(claim.place)})" if claim.place else ""
    return f"- {escaped(claim.name)}, {kind}: {escaped(claim.statement)}{place}"


_NOTES = """\
- `n` is the number of seeds. `95% over seeds` is Student's t interval of the mean: what other seeds would change.
- `test-set ±` is half the 95% interval that the finite test set leaves to one run (macro F1: bootstrap;
  accuracy: Clopper-Pearson), averaged over the seeds: what other test examples would change. Neither of the two
  contains the other.
- `reported` is the source's number ± its standard deviation (n - 1), with its number of runs. `range` is where a
  mean of n runs should lie: the source's 95% prediction interval, or the declared margin; and the rounding.
  `inside` says whether it does.
- `agree` is the share of test examples on which an arm and its teacher predict the same class; `KL`, from the
  teacher to the arm, and `entropy`, of the arm's predictions, are in nats, means over the test examples.
- Differences are of runs that share a seed, and positive where the claim's first arm does better.
- *As described* is what the source's text says was done, *as released* what its code does, *controlled* the fair
  comparison; *sham* arms get soft targets permuted within each class, which real transfer must beat.
- Verdicts come from full runs alone, of at least 5 seeds. Other runs only say whether they agree with them."""


def write_tables(
    folder: Path, label: str, experiment: Experiment, reported: Reported, records: Sequence[Record], *,
    profile: str, reduced: str = "", synthetic: bool = False, recorded: Bands | None = None,
) -> str:  # fmt: skip
    """Write `<label>.md`, `<label>-arms.csv` and `<label>-claims.csv`, each whole or not at all; gives the Markdown."""
    arms = arms_table(experiment.arms, reported, records, synthetic)
    claims = claims_table(reported, records, recorded, synthetic)
    heading = header(records, profile, reduced, synthetic)
    text = page(experiment, reported, arms, claims, heading, full=is_full(records), synthetic=synthetic)
    for name, frame in (("arms", arms), ("claims", claims)):
        content = frame.to_csv(index=False, lineterminator="\n")
        atomic_write(folder / f"{label}-{name}.csv", content.encode())
    atomic_write(folder / f"{label}.md", text.encode())
    return text


def rebuild(experiment: Experiment, path: Path) -> list[Path]:
    """Write the tables of every profile in a `runs.jsonl` beside it, from its records alone; gives the pages' paths."""
    reported = load_reported(experiment.folder / "reported.toml", [arm.name for arm in experiment.arms])
    full_records = read_recorded(experiment.folder / "recorded.toml")
    pages = []
    for (data, profile), records in grouped(read_records(path)).items():
        first = path.parent / f"{profile}.md"
        label = (
            f"{profile}-{data[:8]}" if first in pages else profile
        )  # a further data set has tables of its own
        reduced = experiment.profile(profile).reduced
        write_tables(path.parent, label, experiment, reported, records, profile=profile, reduced=reduced,
                     recorded=full_records.get((data, FULL)))  # fmt: skip
        pages.append(path.parent / f"{label}.md")
    return pages
