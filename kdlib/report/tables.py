"""The page and the files of a replication's tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kdlib.errors import KDError
from kdlib.files import atomic_write
from kdlib.judge.bands import Bands
from kdlib.judge.claims import Choice, Claim, Reported
from kdlib.judge.judging import chosen, means_of, of_declared
from kdlib.report.frames import arms_table, claims_table, ingredients_table, is_reduced, metrics_of
from kdlib.report.heading import header
from kdlib.report.latex import latex_of
from kdlib.report.markdown import (
    arms_shown,
    claims_shown,
    escaped,
    ingredients_shown,
    mark,
    table,
)
from kdlib.report.pairs import traced_pairs
from kdlib.report.texts import deleted
from kdlib.run.experiment import Arm, Experiment
from kdlib.run.records import Record, measured

if TYPE_CHECKING:
    import pandas as pd


__all__ = ["MADE_OF", "Page", "of_one_teacher", "page", "page_of"]

MADE_OF = "What the difference is made of"

# ---- a page


def page(
    experiment: Experiment,
    reported: Reported,
    arms: pd.DataFrame,
    claims: pd.DataFrame,
    ingredients: pd.DataFrame,
    heading: str,
    choices: Sequence[str] = (),
    *,
    judged: bool,
    synthetic: bool = False,
    picture: str = "",
) -> str:
    """Return the Markdown of a replication's tables; `heading` is what `header` returns, `picture` its figure's."""
    shown = arms_shown(arms, reported, metrics_of(reported))
    verdicts = claims_shown(claims, reported, judged, synthetic)
    parts = ingredients_shown(ingredients, reported)
    right = [column for column in (*shown.columns, *verdicts.columns, *parts.columns) if column not in _LEFT]
    url = reported.source.url
    made_of = [f"## {MADE_OF}", table(parts, right), _OF_PARTS] if reported.ingredients else []
    return (
        "\n\n".join(
            [
                f"# {escaped(experiment.name)}",
                f"Source: {escaped(reported.source.citation)}" + (f", <{url}>" if url else ""),
                heading,
                "## Arms",
                table(shown, right),
                *_selections(reported, arms),
                "## Claims",
                table(verdicts, right),
                "\n".join([*(_statement(claim) for claim in reported.claims.values()), *choices]),
                *made_of,
                *(["## Figure", picture] if picture else []),
                "## How to read this",
                _NOTES + _of_one_teacher(experiment.arms, arms),
            ]
        )
        + "\n"
    )


_LEFT = (
    *("arm", "over", "part", "ingredient", "mode", "differs in", "claim", "about", "unit"),
    *("verdict", "nearest other outcome", "full verdict", "this run"),
)
_OF_PARTS = (
    "Each row compares two arms that differ in what it names, in pairs that share a seed, on the primary claim's "
    "metric. The rows are ours and get no verdict. A row without numbers names an arm that has no recorded runs."
)


def _statement(claim: Claim) -> str:
    kind = f"{mark(claim)}, {claim.kind}" if mark(claim) else claim.kind
    place = f" ({escaped(claim.place)})" if claim.place else ""
    return f"- {escaped(claim.name)}, {kind}: {escaped(claim.statement)}{place}"


def _selections(reported: Reported, frame: pd.DataFrame) -> list[str]:
    """How the source chose the numbers next to the arms; nothing if that is not known."""
    arms: dict[str, list[str]] = {}
    for arm in [] if frame.empty else frame["arm"]:
        values = [reported.value(arm, metric) for metric in metrics_of(reported)]
        for text in dict.fromkeys(value.selected for value in values if value and value.selected):
            arms.setdefault(text, []).append(arm)
    lines = [f"- {escaped(text)}: {escaped(', '.join(names))}" for text, names in arms.items()]
    return ["How the source chose the numbers it reports:", "\n".join(lines)] if lines else []


def _choice(choice: Choice, arm: str | None, means: Mapping[str, float]) -> str:
    best = "lowest" if choice.lower_is_better else "highest"
    what = f"of {len(choice.among)} arms the one with the {best} mean {choice.by}"
    shown = ", ".join(f"{mean:.4g} of {name}" for name, mean in means.items()) if len(means) <= MOST_SHOWN else ""
    return escaped(f"- {choice.name}: {what}: {arm or 'not all of them have runs'}{shown and f' ({shown})'}")


MOST_SHOWN = 12  # arms of a choice whose means are shown

_NOTES = """\
`results/README.md` explains every column, kind of claim and outcome. In short:

- `95% over seeds` is Student's t interval of the mean: other seeds would change it. It needs 3 seeds. `test-set ±` is
  half the 95% interval of one run over the test examples, averaged over the seeds: other test examples would change
  it. Neither contains the other. An interval is cut where the metric ends: a share at 0 and 1, a loss at 0.
- `reported` is the source's number ± its standard deviation (n - 1) and its number of runs. `range` is where a mean of
  n runs should lie; `inside` says whether it lies there. Shortened runs, and runs on other data, have no range,
  because they are not expected to reach the source's numbers.
- `agreement` is the share of test examples for which an arm and its teacher predict the same class. `KL`, from the
  teacher to the arm, and `entropy`, of the arm's predictions, are means over the test examples.
- Differences are between runs that share a seed. They are positive if the claim's first arm does better.
- *As described* is what the source's text says, *as released* what its code does, *controlled* the fair comparison.
  *Sham* arms get the teacher's soft targets permuted within each class; real transfer must beat them.
- Only full runs give a verdict, and only if just the seeds are recorded that the experiment declares. With fewer seeds
  it is *interim* (a claim about an exact count needs one run). Other runs only say (`this run`) whether they agree with
  the full verdict. *Not run*: no seed has all arms of the claim.
- `firmness` is the share of 10,000 redraws of the seeds that give the same verdict. `nearest other outcome` says how
  far the mean is from another verdict.
- `differs in` names all that the compared arms differ in. For pairs of runs with traces, `kd record` and the audit
  compare it with what the training loop did. Other pairs are *not traced*: for them, it is what should differ.
- A verdict marked *analogue* is about other data, or another teacher, than the source's."""


def of_one_teacher(arms: Sequence[Arm], several: Collection[str]) -> list[str]:
    """Return those of the arms in `several`, which have more than one seed, that all descend from one run.

    That is because an arm that has taught them has a fixed seed.
    """
    one: set[str] = set()
    for arm in arms:  # parents come before children
        if arm.seed is not None or one & set(arm.needs.values()):
            one.add(arm.name)
    return [arm.name for arm in arms if arm.name in one and arm.name in several]


def _of_one_teacher(arms: Sequence[Arm], frame: pd.DataFrame) -> str:
    several = set() if frame.empty else set(frame.loc[frame["n"] > 1, "arm"])
    taught = [escaped(name) for name in of_one_teacher(arms, several)]
    if not taught:
        return ""
    return (
        f"\n- One teacher has taught all seeds of {', '.join(taught)}: "
        "their intervals do not contain the variance between teachers."
    )


class Figure(NamedTuple):
    """The files of a page's figure and its text alternative, or why it could not be drawn."""

    files: Mapping[str, bytes]
    alt: str
    problem: KDError | None = None


NO_FIGURE = Figure({}, "")


# Of the files of a page that it may lack: tables without rows, and the figure.
ENDS = ("-arms.csv", "-claims.csv", "-ingredients.csv", "-figure.csv", "-figure.txt", ".svg", ".png")


class Page(NamedTuple):
    """Tables of one profile and data set, with a figure if there is one: Markdown, and the content of files by name.

    `problem`: why there is no figure although `figures.py` should draw one.
    """

    name: str  # of the files, without their ends
    text: str
    files: Mapping[str, bytes]
    records: Sequence[Record]
    problem: KDError | None = None

    def write(self, folder: Path) -> None:
        """Write each file whole, and delete those of an earlier page of this name that this one does not have.

        An old figure would be taken for that of the new tables. KDError if that is not possible.
        """
        for name, content in self.files.items():
            atomic_write(folder / name, content)
        for end in ENDS:
            if f"{self.name}{end}" not in self.files:
                deleted(folder / f"{self.name}{end}")


def _traces(compared: int, traced: int) -> str:
    others = "" if traced == compared else " (the others: not traced)"
    return f"\n- traces: {traced} of {compared} compared pairs of runs are traced{others}" if compared else ""


def page_of(
    name: str,
    experiment: Experiment,
    reported: Reported,
    records: Sequence[Record],
    *,
    profile: str,
    synthetic: bool = False,
    analogue: bool = False,
    judged_bands: Bands | None = None,
    figure: Figure = NO_FIGURE,
) -> Page:
    """Return the page `<name>.md`, with `.tex`, and `-arms.csv`, `-claims.csv`, `-ingredients.csv` of what has rows.

    `analogue`: these are other data than the source's, and so are the verdicts.
    """
    about = experiment.profile(profile)
    arms = arms_table(experiment.arms, reported, records, is_reduced(about, synthetic, analogue))
    declared = about.seeds if about.judged else None
    claims = claims_table(reported, records, judged_bands, declared=declared, synthetic=synthetic, analogue=analogue)
    ingredients = ingredients_table(reported, records)
    numbers = of_declared(measured(records), declared) if reported.choices else {}
    choices = [_choice(choice, chosen(choice, numbers), means_of(choice, numbers)) for choice in reported.choices]
    heading = header(records, profile, about.reduced, synthetic, declared) + _traces(*traced_pairs(reported, records))
    text = page(
        experiment,
        reported,
        arms,
        claims,
        ingredients,
        heading,
        choices,
        judged=about.judged,
        synthetic=synthetic,
        picture=f"![{escaped(figure.alt)}]({name}.svg)" if figure.files else "",
    )
    frames = {"arms": arms, "claims": claims, "ingredients": ingredients}
    files = {f"{name}-{of}.csv": _csv(frame) for of, frame in frames.items() if not frame.empty}
    files[f"{name}.md"] = text.encode()
    shown = arms_shown(arms, reported, metrics_of(reported)), claims_shown(claims, reported, about.judged, synthetic)
    numbers_right = [column for frame in shown for column in frame.columns if column not in _LEFT]
    files[f"{name}.tex"] = latex_of(experiment.name, name, *shown, numbers_right).encode()
    return Page(name, text, {**files, **figure.files}, records, figure.problem)


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False, lineterminator="\n").encode()
