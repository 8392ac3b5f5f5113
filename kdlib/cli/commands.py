"""`kd run`, `check`, `record`, `tables`, `list`: options in, printed lines and an exit status out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdlib.cli.again import lines_of_command, name_of, with_options
from kdlib.cli.elsewhere import refuse_elsewhere, refuse_other_library
from kdlib.cli.live import Downloading, reporter
from kdlib.cli.say import say, say_page
from kdlib.cli.stopping import STOPPED
from kdlib.errors import KDError
from kdlib.files import is_there
from kdlib.judge.verdicts import MIN_SEEDS
from kdlib.report import recording, sessions
from kdlib.report.local import write_local
from kdlib.report.markdown import unescaped
from kdlib.report.names import refuse_unknown_names
from kdlib.report.pages import (
    Page,
    committed,
    draw_pictures,
    make_pages,
    refuse_unknown_arms,
    update_readmes,
    write_pages,
)
from kdlib.report.sessions import Replication
from kdlib.report.steps import Step, next_steps
from kdlib.report.summary import lines_of
from kdlib.report.texts import read_text
from kdlib.run.costs import Cost, costs
from kdlib.run.experiment import DEFAULT, load_experiment, replications
from kdlib.run.records import Record, read_records
from kdlib.run.session import Session, prepare

ROOT = Path()


def run(options: argparse.Namespace) -> int:
    """`kd run NAME`."""
    refuse_unknown_names(load_experiment(options.name))
    session = prepared(options, options.name, options.profile, seeds=_seeds(options), require_real=options.require_real)
    name = session.experiment.name
    folder = ROOT / "results" / name
    tables = options.out / name if options.out else folder / "local"
    for kept, what in (("runs.jsonl", "those of recorded runs"), ("experiment.py", "a replication")):
        if is_there(tables / kept):
            raise KDError(
                f"--out {options.out}: expected a folder for tables of this session alone, found that {tables} has "
                f"{what}; choose another folder, or leave --out away"
            )
    committed = read_records(folder / "runs.jsonl")
    if options.dry_run:
        _tell_costs(session, *costs(session, session.jobs(), committed))
        tell_again(session, options.profile)
        return 0
    found = sessions.replicate(session, reporter, committed)
    try:
        pages, wrong = _write(options, found, committed, tables), None
    except KDError as error:
        pages, wrong = [], error
    status = _status_of(_tell(found.problems, found.left), pages, wrong)
    tell_again(session, options.profile)
    return status


def _status_of(status: int, pages: Sequence[Page], wrong: KDError | None = None) -> int:
    """Print what has failed although the runs have not, such as figures; return the status that says so."""
    problems = dict.fromkeys(str(each) for each in (wrong, *(page.problem for page in pages)) if each is not None)
    for problem in problems:
        say(f"kd: {problem}", error=True)
    return 2 if problems else status


def _write(options: argparse.Namespace, found: Replication, committed: Sequence[Record], folder: Path) -> list[Page]:
    """Write and tell the outcome of a session; if the tables cannot be written, print them before the error."""
    session = found.session
    make = partial(make_pages, session.experiment, found.records, committed=committed, synthetic=session.synthetic)
    try:
        pages = write_local(folder, lambda named: make(named=named), _tell_waiting) if found.records else []
    except KDError:
        _tell_summary(options, found, make(), committed, None, whole=True)
        raise
    try:
        if pages:
            data = session.experiment.load_data(session.profile.config, session.folders)
            draw_pictures(session.experiment, data, pages, folder)
    except KDError as error:  # the tables are written all the same
        pages = [page._replace(problem=page.problem or error) for page in pages]
    _tell_summary(options, found, pages, committed, folder / f"{pages[0].name}.md" if pages else None)
    for name in (page.name.partition("-part-")[0] for page in pages if "-part-" in page.name):
        say(f"They have a name of their own, because {name}.md has arms or seeds that they lack.")
    return pages


def _tell_waiting(lock: Path) -> None:
    say(f"another session writes tables in {lock.parent}; this one waits until it releases {lock}")


def prepared(options: argparse.Namespace, name: str, profile: str, **rest: Any) -> Session:
    """The session that the options ask for; that synthetic data stand in for missing ones is the first line printed."""
    refuse_elsewhere(name, ROOT)
    refuse_other_library(ROOT)
    session = prepare(
        name,
        profile,
        settings=_settings(options.set),
        data=options.data,
        device=options.device,
        threads=options.threads,
        workers=options.workers,
        replicas=options.replicas,
        convolutions=options.convolutions,
        graphs=options.graphs,
        downloads=Downloading,
        ray=getattr(options, "ray", None) or "",
        **{name: value for name, value in vars(options).items() if name in ("arms", "store", "order", "minutes")},
        **rest,
    )
    # Data are prepared by many small steps, in which two threads wait for each other if other processes are busy.
    torch.set_num_threads(session.compute.threads)
    if session.unavailable:
        say_page(
            f"SYNTHETIC DATA: {name} runs profile {session.profile_name} instead of {profile}, and no claim gets a "
            "verdict,\nbecause the real data are not available (--require-real makes this an error):\n"
            f"{session.unavailable}\n"
        )
    return session


def tell_again(session: Session, asked: str) -> None:
    """Say as the last line that synthetic data stood in for missing ones, if they did; `asked` is the other profile."""
    if session.unavailable:
        say(f"SYNTHETIC DATA: profile {session.profile_name} ran instead of {asked}. The first lines say why.")


def _settings(texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise KDError(f"--set {text}: expected FIELD=VALUE, found no '='; write --set split=inter-patient")
    return dict(text.split("=", 1) for text in texts)


def _seeds(options: argparse.Namespace) -> Sequence[int] | None:
    if options.seed is not None:
        return (options.seed,)
    return range(options.seeds) if options.seeds else None


def check(options: argparse.Namespace) -> int:
    """`kd check [NAME ...]`: the check arms, seed 0, in an empty store, against the recorded bands.

    Without names, replications that have no bands yet are left out, if others have some.
    """
    problems: list[str] = []
    names = chosen(options.names) if options.names else _with_bands(chosen(()))
    for name in names:
        refuse_unknown_names(load_experiment(name))
    for name in names:
        try:
            arms = load_experiment(name).check
            session = prepared(options, name, DEFAULT, arms=arms, seeds=(0,), require_real=True)
            found = sessions.check(session, reporter, checks=len(names))
        except KDError:
            _tell(problems)  # the problems found so far, before the error ends the check
            raise
        for note in found.notes:
            say(f"{name}: {note}")
        problems += [f"{name}: {problem}" for problem in found.problems]
    return _tell(problems)


def _with_bands(names: Sequence[str]) -> Sequence[str]:
    """The replications that have bands or, if none has, all: then the check fails."""
    found = [name for name in names if (load_experiment(name).folder / "bands.toml").exists()]
    for name in names if found else ():
        if name not in found:
            say(f"{name}: left out, because nothing is recorded yet; `kd record {name}` does it")
    return found or names


def chosen(names: Sequence[str]) -> Sequence[str]:
    """Return the named replications, or all; KDError if one is not there, before anything is done."""
    names = [*map(name_of, names)] or replications(ROOT)  # one after an option was not parsed with the others
    if not names:
        raise KDError(
            f"expected folders replications/<name> with an experiment.py in {ROOT.absolute()}, found none; call kd "
            "in the top folder of the repository"
        )
    for name in names:
        refuse_elsewhere(name, ROOT)
    return names


def record(options: argparse.Namespace) -> int:
    """`kd record NAME`: run, then write runs.jsonl, bands.toml and the committed tables of one profile."""
    profile = load_experiment(options.name).profile(options.profile)
    refuse_unknown_names(load_experiment(options.name), bands=False)
    # Bands of a reduced profile need more seeds than a session of it trains.
    seeds = _seeds(options) or range(profile.seeds if profile.judged else max(MIN_SEEDS, profile.seeds))
    session = prepared(options, options.name, options.profile, seeds=seeds, require_real=True)
    found = recording.record(session, ROOT / "results", reporter, _tell_waiting)
    result = Replication(session, found.records, found.problems, found.notes, found.left)
    _tell_summary(options, result, found.pages, found.recorded, ROOT / "results" / options.name / f"{result.label}.md")
    if found.pages:
        say("README and the pages in results/site are made again by: kd tables")
    return _status_of(_tell(found.problems, found.left), found.pages)


def _tell_summary(
    options: argparse.Namespace,
    result: Replication,
    pages: Sequence[Page],
    committed: Sequence[Record],
    written: Path | None,
    whole: bool = False,
) -> None:
    """Print what a session ends with: the whole tables if they are asked for, its summary, and its notes."""
    for page in pages if options.print or whole else ():
        say_page("\n" + unescaped(page.text))
    steps = []
    for step in next_steps(result, committed):
        steps += [step.text, *lines_of_command(_command(options.given, step))]
    say()
    for line in [*lines_of(result, committed, written, steps), *result.notes]:
        say(line)


def _command(given: Sequence[str], step: Step) -> list[str]:
    """The arguments of a command that was given, changed so that it does a further step."""
    once = {"--seed", "--seeds", "--minutes"}
    if step.seeds is None:
        return with_options(given, {*once, "--arm", "--arms"})
    return with_options(given, once, ["--seeds", str(step.seeds)])


def tables(options: argparse.Namespace) -> int:
    """`kd tables [NAME ...]`: the committed tables, bands and the READMEs' tables, again, from the committed runs."""
    from kdlib.report.site import write_site  # imports jinja2

    refuse_other_library(ROOT)
    names, found = chosen(options.names), committed(ROOT)
    for name, records in found.items():  # before anything is written
        refuse_unknown_arms(load_experiment(name), records, ROOT / "results" / name / "runs.jsonl")
    for path in (ROOT / "README.md", ROOT / "DATA.md", *(ROOT / "replications" / name / "README.md" for name in found)):
        read_text(path)
    every: list[Page] = []
    for name in (name for name in names if found[name]):
        folder, experiment = ROOT / "results" / name, load_experiment(name)
        with recording.held(folder, _tell_waiting):
            records = found[name] = read_records(folder / "runs.jsonl")  # a session may have recorded more meanwhile
            for profile in dict.fromkeys(record.profile for record in records):
                recording.update_bands(experiment, [record for record in records if record.profile == profile])
            pages = write_pages(experiment, records, folder, committed=records, synthetic=False)
        every += pages
        say(f"written {folder}")
        for stale in sorted({path.stem for path in folder.glob("*.md")} - {"cost", *(page.name for page in pages)}):
            say(f"{folder / stale}.*: no recorded run has these tables any more; delete them")
    for folder in (ROOT / "results").iterdir() if (ROOT / "results").is_dir() else ():
        if (folder / "runs.jsonl").exists() and folder.name not in found:
            say(
                f"{folder}: there is no replication {folder.name}, but {folder / 'runs.jsonl'} is here; if the "
                "replication has another name now, give the folder its name"
            )
    update_readmes(ROOT, found)
    write_site(ROOT, found)
    say(f"written {ROOT / 'results' / 'site' / 'index.html'}")
    return _status_of(0, every)


def _tell_costs(session: Session, planned: Sequence[Cost], least_seconds: float) -> None:
    """Print the runs that a session would make, and their cost."""
    for cost in planned:
        known = "cost unknown" if cost.seconds is None else f"about {cost.seconds / 60:.1f} min"
        say(f"{cost.job.description.id}  {cost.job.label}: {'in the store' if cost.stored else known}")
    new = [cost for cost in planned if not cost.stored]
    unknown = [cost for cost in new if cost.seconds is None]
    runs = f"{len(planned)} run{'' if len(planned) == 1 else 's'}"
    if new and len(unknown) == len(new):
        say(f"{runs}; cost unknown (nothing recorded yet)")
        return
    disk = sum(cost.stored_bytes or 0.0 for cost in new)
    workers = f"{session.workers} worker{'' if session.workers == 1 else 's'}"
    left_out = f"; the cost of {len(unknown)} of them is unknown" if unknown else ""
    where = f"{disk / 1e6:.1f} MB in {session.store.folder}"
    say(f"{runs}; about {least_seconds / 60:.0f} minutes on {workers} and {where}{left_out}")


def _tell(problems: Sequence[str], left: int = 0) -> int:
    """Print what fails a session, and how many runs the end of its time has left; return the exit status."""
    for problem in problems:
        say(f"FAILED  {problem}", error=True)
    if left:
        say(f"The time is up: {left} run{'s are' if left > 1 else ' is'} not finished.")
    if problems:
        return 1
    return STOPPED if left else 0
