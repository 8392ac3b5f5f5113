"""The tables of a replication as files, Markdown and CSV, and all replications' table in the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlib.claims import Choice, Claim, Reported
from kdlib.errors import KDError
from kdlib.experiment import Arm, Experiment
from kdlib.files import atomic_write
from kdlib.judging import chosen, judge, with_choices
from kdlib.recorded import Record as Bands
from kdlib.report.evidence import Record, digest_of, measured
from kdlib.report.frames import arms_table, claims_table, ingredients_table, is_full, metrics_of, on_claims_scale
from kdlib.report.markdown import NONE, aim, arms_shown, claims_shown, escaped, found, ingredients_shown, mark, scale, table
from kdlib.verdicts import MIN_SEEDS, headline

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["header", "page", "replace_table", "section", "summary_line", "summary_table", "update_explanation", "update_readme",
           "write_tables"]


def header(records: Sequence[Record], profile: str, reduced: str, synthetic: bool) -> str:
    """What the runs of a table are: data, profile, seeds, device, versions, commits."""
    seeds = sorted({record.seed for record in records})
    lines = {
        "data": _each(f"{record.data_name} (digest {record.data})" for record in records),
        "profile": profile + (f"; reduced: {reduced}" if reduced else ""),
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))}), {len({record.run for record in records})} runs",
        "records": f"SHA-256 {digest_of(records)}",
        "device": _each(_device(record) for record in records),
        "versions": _each(_versions(record.environment) for record in records),
        "commit": _each(_commit(record.environment) for record in records),
    }
    text = "\n".join(f"- {head}: {escaped(line)}" for head, line in lines.items())
    return f"{_SYNTHETIC}\n\n{text}" if synthetic else text


_SYNTHETIC = (
    "**SYNTHETIC DATA: these runs did not see the source's data. Their numbers show that all works and "
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
        f"{name} {versions[name]}" for name in ("python", "torch", "numpy", "numba", "kdlib") if name in versions
    )


def _commit(environment: Mapping[str, Any]) -> str:
    clean = environment.get("clean")
    state = "clean tree" if clean is True else "uncommitted changes" if clean is False else "tree not known"
    return f"{str(environment.get('commit', 'unknown'))[:10]} ({state})"


def page(
    experiment: Experiment, reported: Reported, arms: pd.DataFrame, claims: pd.DataFrame, ingredients: pd.DataFrame,
    heading: str, choices: Sequence[str] = (), *, full: bool, synthetic: bool = False,
) -> str:  # fmt: skip
    """The Markdown of a replication's tables; `heading` is what `header` gives, `full`: of full runs."""
    shown = arms_shown(arms, reported, metrics_of(reported))
    judged = claims_shown(claims, reported, full, synthetic)
    parts = ingredients_shown(ingredients, reported)
    right = [column for column in (*shown.columns, *judged.columns, *parts.columns) if column not in _LEFT]
    made_of = [f"## {MADE_OF}", table(parts, right), _OF_PARTS] if reported.ingredients else []
    return "\n\n".join([
        f"# {escaped(experiment.name)}",
        f"Source: {escaped(reported.source.citation)}, <{reported.source.url}>",
        heading,
        "## Arms", table(shown, right),
        *_selections(reported, arms),
        "## Claims", table(judged, right),
        "\n".join([*(_statement(claim) for claim in reported.claims.values()), *choices]),
        *made_of,
        "## How to read this", _NOTES + _of_one_teacher(experiment.arms, arms),
    ]) + "\n"  # fmt: skip


MADE_OF = "What the difference is made of"
_LEFT = ("arm", "over", "ingredient", "mode", "claim", "about", "verdict", "full verdict", "this run")
_OF_PARTS = (
    "Each row compares two arms that differ in what it names, in pairs that share a seed, on the primary claim's metric. "
    "The rows are ours and get no verdict. A row without numbers is of an arm that is not recorded."
)


def _statement(claim: Claim) -> str:
    kind = f"{mark(claim)}, {claim.kind}" if mark(claim) else claim.kind
    place = f" ({escaped(claim.place)})" if claim.place else ""
    return f"- {escaped(claim.name)}, {kind}: {escaped(claim.statement)}{place}"


def _selections(reported: Reported, frame: pd.DataFrame) -> list[str]:
    """How the source chose the numbers that stand beside the arms; nothing where that is not known."""
    arms: dict[str, list[str]] = {}
    for arm in [] if frame.empty else frame["arm"]:
        beside = [reported.value(arm, metric) for metric in metrics_of(reported)]
        for text in dict.fromkeys(value.selected for value in beside if value and value.selected):
            arms.setdefault(text, []).append(arm)
    lines = [f"- {escaped(text)}: {escaped(', '.join(names))}" for text, names in arms.items()]
    return ["How the source chose the numbers it reports:", "\n".join(lines)] if lines else []


def _choice(choice: Choice, arm: str | None) -> str:
    what = f"of {len(choice.among)} arms the one with the highest mean {choice.by}"
    return escaped(f"- {choice.name}: {what}: {arm or 'not all of them have runs'}")


_NOTES = f"""\
- `n` is the number of seeds. `95% over seeds` is Student's t interval of the mean: what other seeds change.
- `test-set ±` is half the 95% interval that the finite test set leaves to one run (macro F1: bootstrap;
  accuracy: Clopper-Pearson), averaged over the seeds: what other test examples would change. Neither of
  the two contains the other.
- `reported` is the source's number ± its standard deviation (n - 1), with its runs. `range` is where
  a mean of n runs should lie: the source's 95% prediction interval, and the rounding. A single run has no spread:
  there the range is a margin declared beforehand, which may be too wide or too narrow. `inside` says whether it lies there.
- `agree` is the share of test examples on which an arm and its teacher predict the same class; `KL`, from the
  teacher to the arm, and `entropy`, of the arm's predictions, are in nats, means over the test examples.
- Differences are of runs that share a seed, and positive where the claim's first arm does better. A trend is Kendall's
  tau; where all seeds have the same one, it is its own interval.
- *As described* is what the source's text says was done, *as released* what its code does, *controlled* the
  fair comparison; *sham* arms get soft targets permuted within each class, which real transfer must beat.
- Verdicts come from full runs alone, of at least {MIN_SEEDS} seeds (exact counts: one run). Others only say
  (`this run`) whether they agree with the full verdict; *too few seeds* there means that they do not decide.
  *Not run*: no seed has all arms of the claim.
- A verdict marked *analogue* is about other data, or another teacher, than the source's; what stands there under `reported`
  and `range` is the source's all the same."""


def _of_one_teacher(arms: Sequence[Arm], frame: pd.DataFrame) -> str:
    """A note on the arms of several seeds which all descend from one run, that of an arm of a fixed seed."""
    several = set() if frame.empty else set(frame.loc[frame["n"] > 1, "arm"])
    one: set[str] = set()
    for arm in arms:  # parents come before children
        if arm.seed is not None or one & set(arm.needs.values()):
            one.add(arm.name)
    taught = [escaped(arm.name) for arm in arms if arm.name in one & several]
    if not taught:
        return ""
    return f"\n- One teacher has taught all seeds of {', '.join(taught)}: their intervals leave the teacher's variance out."


def write_tables(
    folder: Path, label: str, experiment: Experiment, reported: Reported, records: Sequence[Record], *,
    profile: str, reduced: str = "", synthetic: bool = False, recorded: Bands | None = None,
) -> str:  # fmt: skip
    """Write `<label>.md`, `<label>-arms.csv` and `<label>-claims.csv`, each whole; gives the Markdown.

    A label that says more than the profile is of other data than the source's: its verdicts are marked as an analogue's.
    """
    analogue = label != profile
    arms = arms_table(experiment.arms, reported, records, synthetic)
    claims = claims_table(reported, records, recorded, synthetic, analogue)
    ingredients = ingredients_table(reported, records)
    heading = header(records, profile, reduced, synthetic)
    choices = [_choice(choice, chosen(choice, measured(records))) for choice in reported.choices]
    text = page(experiment, reported, arms, claims, ingredients, heading, choices, full=is_full(records), synthetic=synthetic)
    for name, frame in (("arms", arms), ("claims", claims)):
        content = frame.to_csv(index=False, lineterminator="\n")
        atomic_write(folder / f"{label}-{name}.csv", content.encode())
    atomic_write(folder / f"{label}.md", text.encode())
    return text


# ---- the README's table

def summary_line(name: str, reported: Reported, records: Sequence[Record]) -> dict[str, str]:
    """A replication's row: the primary claim and mode with the worst verdict of `records`, full runs.

    Without runs of the arms that such a claim is about, the row says that the replication has not been run in full.
    """
    primary = [claim for claim in reported.claims.values() if claim.primary]
    numbers = with_choices(reported.choices, measured(records))
    judged = [(judge(claim, mode, numbers), claim, mode) for claim in primary for mode in claim.modes]
    if not any(verdict.n for verdict, _, _ in judged):
        return _row(name, reported, primary[0], "") | {"verdict": "not yet run in full"}
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


def replace_table(text: str, content: str, mark: str = "table") -> str:
    """`text` with `content` between the lines <!-- mark:begin --> and <!-- mark:end -->; KDError where it has not one of each."""
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if text.count(begin) != 1 or text.count(end) != 1 or end in before:
        raise KDError(f"expected one line {begin} and one line {end} after it, found {text.count(begin)} and "
                      f"{text.count(end)}; put them where the table is to stand")  # fmt: skip
    return f"{before}{begin}\n{content}\n{end}{after}"


def section(page: str, name: str) -> str:
    """The table of a section of a replication's Markdown page."""
    return page.partition(f"## {name}\n\n")[2].partition("\n\n")[0]


def update_readme(path: Path, lines: Sequence[Mapping[str, str]], pages: Mapping[str, str]) -> None:
    """Put the rows of all replications into the README's table, and the arms of each page where its mark stands."""
    text = _read(path)
    try:
        text = replace_table(text, summary_table(lines))
        for mark, page in pages.items():
            text = replace_table(text, section(page, "Arms"), mark)
    except KDError as error:
        raise KDError(f"{path}: {error}") from error
    atomic_write(path, text.encode())


def update_explanation(path: Path, page: str) -> None:
    """Put the full runs' tables of claims and ingredients into a replication's README, where it has marks for them."""
    text = _read(path)
    try:
        for place, name in (("claims", "Claims"), ("ingredients", MADE_OF)):
            if f"<!-- {place}:begin -->" in text:
                text = replace_table(text, section(page, name), place)
    except KDError as error:
        raise KDError(f"{path}: {error}") from error
    atomic_write(path, text.encode())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise KDError(f"{path}: expected a README to put the tables into, found: {error.strerror}") from error
