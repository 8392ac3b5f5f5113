"""A replication's tables and figure, and its place in the READMEs, from records."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from kdlib.collector import without_collector
from kdlib.errors import KDError, error_in_user_code, needs
from kdlib.files import atomic_write
from kdlib.judge.bands import read_bands
from kdlib.judge.claims import Reported
from kdlib.judge.reading import load_claims
from kdlib.report.frames import is_reduced
from kdlib.report.markdown import escaped
from kdlib.report.readme import replace_table, section, summary_line, summary_table
from kdlib.report.tables import MADE_OF, NO_FIGURE, Figure, Page, page_of
from kdlib.report.texts import deleted, read_text
from kdlib.run.experiment import Experiment, load_experiment, replications
from kdlib.run.records import Record, grouped, read_records

__all__ = [
    "Page",
    "committed",
    "draw_pictures",
    "figures_of",
    "label_of",
    "make_pages",
    "refuse_unknown_arms",
    "reported_of",
    "update_readmes",
    "write_pages",
]


T = TypeVar("T")


def reported_of(experiment: Experiment) -> Reported:
    """Return the source's numbers and claims."""
    arms = [arm.name for arm in experiment.arms]
    return load_claims(experiment.folder / "claims.toml", arms, experiment.known_metrics)


def make_pages(
    experiment: Experiment,
    records: Sequence[Record],
    *,
    committed: Sequence[Record],
    synthetic: bool,
    named: Callable[[str, Sequence[Record]], str] = lambda label, records: label,
) -> list[Page]:
    """Return the tables, with the figure if there is a `figures.py`, of each profile and data set; write nothing.

    Pages of reduced profiles show the verdicts of the judged runs among `committed`. `named` returns the name of a
    page's files. A figure that cannot be drawn is the `problem` of its page.
    """
    reported, bands = reported_of(experiment), read_bands(experiment.folder / "bands.toml")
    judged = experiment.judged
    # A reduced profile may train on a part of the data. It is compared with the judged runs of the same label, whose
    # data digest may be another.
    judged_data = {label_of(experiment, record): record.data for record in committed if record.profile == judged}
    pages = []
    for (digest, profile_name), group in grouped(records).items():
        label = label_of(experiment, group[0])
        data = digest if profile_name == judged else judged_data.get(label.replace(profile_name, judged, 1), digest)
        analogue = label != profile_name
        reduced = is_reduced(experiment.profile(profile_name), synthetic, analogue)
        name = named(label, group)
        page = page_of(
            name,
            experiment,
            reported,
            group,
            profile=profile_name,
            synthetic=synthetic,
            analogue=analogue,
            judged_bands=bands.get((data, judged)),
            figure=_figure(experiment, group, without_ranges(reported) if reduced else reported, name),
        )
        pages.append(page)
    return pages


def without_ranges(reported: Reported) -> Reported:
    """Return what the source reports, for runs that need not reach its numbers: these have no range then."""
    return replace(reported, values={key: replace(v, std=None, runs=None) for key, v in reported.values.items()})


def figures_of(experiment: Experiment) -> Any:
    """Return the module `figures` of a replication; None if it has none."""
    if not (experiment.folder / "figures.py").exists():
        return None
    needs("figures", "matplotlib")
    module = f"replications.{experiment.name}.figures"
    return _of_user(experiment, "", lambda: importlib.import_module(module), "a module that can be imported")


def _figure(experiment: Experiment, records: Sequence[Record], reported: Reported, label: str) -> Figure:
    """The files of what `draw` of `figures.py` returns, a `Drawing` or None; its `problem` if that fails."""

    def drawn() -> Figure:
        if (draw := getattr(figures_of(experiment), "draw", None)) is None:
            return NO_FIGURE
        from kdlib.report.figures import Drawing, files_of  # imports matplotlib

        drawing = draw(records, reported)
        if not isinstance(drawing, Drawing | None):
            raise KDError(
                f"{experiment.folder / 'figures.py'}: draw: expected a Drawing or None, found one of type "
                f"{type(drawing).__name__}; return what kdlib.report.figures.compose returns"
            )
        return NO_FIGURE if drawing is None else Figure(files_of(drawing, label), drawing.alt)

    try:
        return _of_user(experiment, ": draw", drawn)
    except KDError as error:
        return Figure({}, "", error)


def _of_user(experiment: Experiment, place: str, function: Callable[[], T], what: str = "a figure") -> T:
    """Call what runs code of `figures.py`; KDError, with file and line, for an error in it or in what it has made."""
    try:
        return function()
    except KDError as error:
        if str(error).startswith(str(experiment.folder)):
            raise
        raise KDError(f"{experiment.folder / 'figures.py'}{place}: {error}") from error
    except (Exception, SystemExit) as error:  # a session must not end without its tables
        raise error_in_user_code(f"{experiment.folder / 'figures.py'}{place}", error, what) from error


@without_collector()
def write_pages(
    experiment: Experiment, records: Sequence[Record], folder: Path, *, committed: Sequence[Record], synthetic: bool
) -> list[Page]:
    """Write what `make_pages` returns, each page under its own name, and return it."""
    pages = make_pages(experiment, records, committed=committed, synthetic=synthetic)
    for page in pages:
        page.write(folder)
    return pages


def draw_pictures(experiment: Experiment, data: Any, pages: Sequence[Page], folder: Path) -> None:
    """Draw the data, and pictures that the runs choose, if `figures.py` does so; git must ignore `folder`."""
    figures = figures_of(experiment)
    for page in pages:
        shown, chosen = (folder / f"{page.name}-{what}.png" for what in ("data", "pictures"))
        deleted(shown)  # of another session: this one may draw none
        deleted(chosen)
        if hasattr(figures, "draw_data"):
            _of_user(experiment, ": draw_data", partial(figures.draw_data, data, shown))
        if hasattr(figures, "draw_local"):
            _of_user(experiment, ": draw_local", partial(figures.draw_local, page.records, data, chosen))


def label_of(experiment: Experiment, record: Record) -> str:
    """Return the name of the files of a record's table."""
    return experiment.label(record.profile, record.description["config"])


def committed(root: Path) -> dict[str, list[Record]]:
    """Return the committed records of each replication; none of one that has not been recorded."""
    return {name: read_records(root / "results" / name / "runs.jsonl") for name in replications(root)}


def refuse_unknown_arms(experiment: Experiment, records: Sequence[Record], path: Path) -> None:
    """Raise KDError for recorded runs of an arm that the experiment has no more."""
    known = {arm.name for arm in experiment.arms}
    for record in records:
        if unknown := [arm for arm in record.arms if arm not in known]:
            raise KDError(
                f"{path}: expected runs of {experiment.name}'s arms, found run {record.run} of {unknown[0]!a}; name "
                "the arm so again in experiment.py, or delete the lines of its runs"
            )


def update_readmes(root: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """Write the front picture, and one row for each replication, into the top README.

    Write tables of judged runs into the replications' own READMEs.
    """
    rows, shown = [], {}
    for name, found in records.items():
        experiment, results = load_experiment(name), root / "results" / name
        groups = grouped(found).values()
        judged = next((group for group in groups if label_of(experiment, group[0]) == experiment.judged), [])
        declared = experiment.profile(experiment.judged).seeds if experiment.judged else 0
        rows.append(summary_line(name, reported_of(experiment), judged, declared))
        for profile_name, profile in experiment.profiles.items():
            if profile.in_readme and (text := read_text(results / f"{profile_name}.md")):
                shown[name] = section(text, "Arms")
        if text := read_text(results / f"{experiment.judged}.md"):
            places = {"claims": section(text, "Claims"), "ingredients": section(text, MADE_OF)}
            _update(root / "replications" / name / "README.md", places, needed=False)
    _update(root / "README.md", {"table": summary_table(rows), **shown})
    needs("figures", "matplotlib")
    from kdlib.report.front_picture import CAPTION, write_front

    picture = f"![{escaped(write_front(root))}](results/front.svg)\n\n{CAPTION}"
    _update(root / "README.md", {"front": picture}, needed=False)


def _update(path: Path, places: dict[str, str], needed: bool = True) -> None:
    """Write tables into a README, each at the marks of its name; if not `needed`, only where the marks are."""
    if not (text := read_text(path)):
        mark = next(iter(places), "table")
        raise KDError(
            f"{path}: expected a README to write the tables into, found none; write one with the lines "
            f"<!-- {mark}:begin --> and <!-- {mark}:end -->"
        )
    try:
        for mark, table in places.items():
            if needed or f"<!-- {mark}:begin -->" in text:
                text = replace_table(text, table, mark)
    except KDError as error:
        raise KDError(f"{path}: {error}") from error
    atomic_write(path, text.encode())
