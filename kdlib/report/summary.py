"""The README's table: one row a replication, from the recorded full runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdlib.claims import Claim, Reported, load_reported
from kdlib.errors import KDError
from kdlib.experiment import load_experiment, replications
from kdlib.files import atomic_write
from kdlib.judging import judge
from kdlib.report.evidence import Record, grouped, measured, read_records
from kdlib.report.markdown import NONE, aim, escaped, found, scale, table
from kdlib.report.frames import FULL, on_claims_scale
from kdlib.verdicts import headline

__all__ = ["replace_table", "summary_line", "summary_table", "update_readme"]

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def summary_line(name: str, reported: Reported, records: Sequence[Record]) -> dict[str, str]:
    """A replication's row: the primary claim and mode with the worst verdict of `records`, full runs on real data.

    Without records the row says that the replication has not been run in full.
    """
    primary = [claim for claim in reported.claims.values() if claim.primary]
    if not records:
        return _row(name, reported, primary[0], "") | {"verdict": "not yet run in full"}
    numbers = measured(records)
    judged = [(judge(claim, mode, numbers), claim, mode) for claim in primary for mode in claim.modes]
    worst = headline(verdict for verdict, _, _ in judged)
    claim, mode = next((claim, mode) for verdict, claim, mode in judged if verdict is worst)
    cells = found(claim, scale(reported, claim.metric), *on_claims_scale(claim, worst))
    interval = "" if cells["95%"] == NONE else f" ({cells['95%']})"
    measurement = f"{cells['measured']}{interval}, n = {worst.n}"
    return _row(name, reported, claim, f", {mode}") | {"measured": measurement, "verdict": str(worst.verdict)}


def _row(name: str, reported: Reported, claim: Claim, mode: str) -> dict[str, str]:
    return {
        "replication": escaped(name), "claim": f"{escaped(claim.name)}{mode}: {escaped(claim.statement)}",
        "reported": aim(claim, scale(reported, claim.metric)), "measured": NONE, "verdict": "",
    }  # fmt: skip


def summary_table(lines: Sequence[Mapping[str, str]]) -> str:
    """The Markdown of all replications' rows."""
    import pandas as pd

    return table(pd.DataFrame(lines))


def replace_table(text: str, content: str) -> str:
    """`text` with `content` between its two marks; KDError where it has not exactly one of each, in order."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or END in before:
        raise KDError(f"expected one line {BEGIN} and, after it, one line {END}, found {text.count(BEGIN)} and "
                      f"{text.count(END)}; put them where the table is to stand")  # fmt: skip
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def update_readme(root: Path) -> Path:
    """Make the table in `root`'s README.md again, from the committed runs of every replication; gives its path."""
    path = root / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise KDError(f"{path}: expected a README to put the table into, found: {error.strerror}") from error
    lines = [line for name in replications(root) for line in _lines(root, name)]
    try:
        replaced = replace_table(text, summary_table(lines))
    except KDError as error:
        raise KDError(f"{path}: {error}") from error
    atomic_write(path, replaced.encode())
    return path


def _lines(root: Path, name: str) -> list[dict[str, str]]:
    experiment = load_experiment(name)
    reported = load_reported(experiment.folder / "reported.toml", [arm.name for arm in experiment.arms])
    records = read_records(root / "results" / name / "runs.jsonl")
    full = [group for (_, profile), group in grouped(records).items() if profile == FULL]
    if len(full) < 2:
        return [summary_line(name, reported, full[0] if full else [])]
    # a row for each data set, which the row then names
    return [summary_line(f"{name}, {group[0].data_name}", reported, group) for group in full]
