"""`kd runs` and `kd explain` show the store, and take runs from one machine to another."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path

from kdlib.checks import path_of
from kdlib.cli.say import say
from kdlib.errors import KDError
from kdlib.files import DamagedFile, is_there, not_read, read_file
from kdlib.run.environment import source_digest
from kdlib.run.experiment import loadable
from kdlib.run.labels import label_of
from kdlib.run.store import FinishedRun, Store, prune, read_run
from kdlib.run.transfer import Outcome, export_runs, import_runs
from kdlib.terminal import printable, shortened


def runs(options: argparse.Namespace) -> int:
    """`kd runs list | show | verify | prune [RUN ...]` and `kd runs export | import DIR`."""
    if options.action != "export" and (options.runs or options.profile or options.pruned):
        raise KDError(f"kd runs {options.action}: expected --runs, --profile and --pruned for `kd runs export` only")
    if options.action in ("export", "import"):
        return {"export": _export, "import": _import}[options.action](options)
    if not options.names and options.action in ("show", "prune"):
        raise KDError(f"kd runs {options.action}: expected the beginning of a run's id, found none; see `kd runs list`")
    store = store_of(options.store)
    ids = [store.resolve_id(prefix) for prefix in options.names] or store.ids()
    return {"list": _list, "show": _show, "verify": _verify, "prune": _prune}[options.action](store, ids)


def store_of(folder: Path) -> Store:
    """Return the store in a folder; KDError if there is none."""
    try:
        found = folder.is_dir()
    except OSError as error:
        raise not_read(folder, error) from error
    if not found:
        raise KDError(f"--store {folder}: expected a store of runs, found no such folder; `kd run` makes one")
    return Store(folder)


def _list(store: Store, ids: list[str]) -> int:
    """One line of 80 columns for each run; all runs of the store are read, because arms differ in their parents."""
    found: dict[str, FinishedRun] = {}
    unread: dict[str, str] = {}
    for run_id in {*ids, *store.ids()}:
        try:
            found[run_id] = read_run(store.run_folder(run_id), check=False)
        except KDError as error:  # one that cannot be read does not hide the others
            unread[run_id] = f"{'damaged' if isinstance(error, DamagedFile) else 'not read'}: {error}"
    say(_line("run", "arm", "seed", "profile", "date", "accuracy"))
    for run_id in ids:
        try:
            say(f"{run_id}  {unread[run_id]}" if run_id in unread else _about(found[run_id], found))
        except KDError as error:
            say(f"{run_id}  {error}")
    return 0


def _about(run: FinishedRun, runs: Mapping[str, FinishedRun]) -> str:
    label, made = label_of(run, runs), ""
    what = f"{label.replication} {label.arm}" if label.arm else run.description.recipe
    accuracy = run.metrics.get(label.snapshot, {}).get("accuracy")
    number = f"{accuracy:.4f}" if isinstance(accuracy, int | float) else ""
    with suppress(OSError, ValueError, OverflowError):  # it was just moved, or its clock was absurd
        made = date.fromtimestamp((run.folder / "run.json").stat().st_mtime).isoformat()
    return _line(run.id, what, str(run.description.seed), "/".join(label.profiles) or "other", made, number)


def _line(run: str, arm: str, seed: str, profile: str, made: str, accuracy: str) -> str:
    """Columns of 16, 24, 4, 11, 10 and 8 letters; a longer name loses its middle."""
    cells = f"{run:16} {shortened(printable(arm), 24):24} {shortened(seed, 5):>5} {shortened(profile, 11):11} {made:10}"
    return f"{cells} {accuracy:>8}"[:80].rstrip()


def _show(store: Store, ids: list[str]) -> int:
    def show(run_id: str) -> None:
        read_run(store.run_folder(run_id), check=False)  # DamagedFile says what is wrong with it
        text = read_file(store.run_folder(run_id) / "run.json").decode()
        for line in text.rstrip("\n").split("\n"):
            say(line)

    return _of_each(ids, show)


def _of_each(ids: list[str], act: Callable[[str], None], failed: str = "") -> int:
    """Do something with each run; one that cannot be read does not keep the others, and alone it is an error."""
    unread = 0
    for run_id in ids:
        try:
            act(run_id)
        except KDError as error:
            if len(ids) == 1:
                raise
            unread += 1
            say(f"{run_id}  {failed}{error}", error=True)
    return 1 if unread else 0


def _verify(store: Store, ids: list[str]) -> int:
    damaged = unread = 0
    for run_id in ids:
        try:
            read_run(store.run_folder(run_id))
        except DamagedFile as error:
            damaged += 1
            say(f"{run_id}  damaged: {error}")
        except KDError as error:
            unread += 1
            say(f"{run_id}  not read: {error}")
    say(
        f"{len(ids)} runs, {damaged} damaged"
        + (f", {unread} that cannot be read" if unread else "")
        + ("; a damaged run is set aside and trained again when it is next needed" if damaged else "")
    )
    return 1 if damaged or unread else 0


def _prune(store: Store, ids: list[str]) -> int:
    def drop(run_id: str) -> None:
        with store.lock(run_id, lambda: say("another session uses this run; this one waits for it")):
            say(f"{run_id}: {prune(store.resolve(run_id)) / 1e6:.2f} MB of weights dropped")

    return _of_each(ids, drop, "not pruned: ")


def _export(options: argparse.Namespace) -> int:
    return _tell(
        "exported",
        export_runs(
            store_of(options.store),
            _folder(options),
            prefixes=options.runs,
            profile=options.profile or "",
            pruned=options.pruned,
        ),
    )


def _import(options: argparse.Namespace) -> int:
    return _tell("imported", import_runs(_folder(options), Store(options.store)))


def _folder(options: argparse.Namespace) -> Path:
    if len(options.names) != 1 or not options.names[0]:
        found = ", ".join(options.names) or "none"
        raise KDError(
            f"kd runs {options.action}: expected one folder, found {found}; write `kd runs {options.action} DIR`"
        )
    return path_of("DIR", options.names[0])


def _tell(what: str, outcome: Outcome) -> int:
    """Print the refused runs and a last line that counts; return the exit status."""
    for text in outcome.refused:
        say(f"refused: {text}")
    runs, begun = (
        f"{count} {kind}{'' if count == 1 else 's'}"
        for count, kind in ((outcome.runs, "run"), (outcome.begun, "begun run"))
    )
    refused = f", {len(outcome.refused)} refused" if outcome.refused else ""
    say(f"{runs} {what}, {begun}, {outcome.there} already there{refused}")
    return 1 if outcome.refused else 0


def explain(options: argparse.Namespace) -> int:
    """`kd explain RUN`: configuration, parents, numbers, and whether its source files have changed since."""
    store = store_of(options.store)
    run = store.resolve(options.run)
    about = run.description
    say(f"run {run.id}: {about.recipe}, protocol {about.protocol}, seed {about.seed}, data {about.data}")
    say("configuration: " + ", ".join(f"{key}={value}" for key, value in about.config.items()))
    for role, parent in about.parents.items():
        parent_id = parent.partition("/")[0]
        known = is_there(store.run_folder(parent_id))
        say(f"{role}: run {parent}" + ("" if known else " (not in this store)"))
    environment = run.environment
    states = {True: "clean tree", False: "with uncommitted edits", None: "state of the tree not known"}
    clean = states[environment.get("clean")]
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("versions", {}).items())
    say(
        f"made by commit {environment.get('commit', 'unknown')} ({clean}) on "
        f"{environment.get('device', 'an unknown device')}, {environment.get('threads', '?')} threads, "
        f"in {environment.get('seconds', float('nan')):.0f} s, with {versions}"
    )
    same = [each.name for each in loadable(Path()) if source_digest(each.folder) == environment.get("source")]
    say(
        "source files: "
        + (f"as they are now in {', '.join(same)}" if same else "edited since, or another replication's")
    )
    weights = "kept" if is_there(run.folder / "weights.safetensors") else "pruned"
    say(f"weights: {weights}, SHA-256 {run.weights_sha256}")
    for snapshot, metrics in run.metrics.items():
        numbers = (
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in metrics.items()
            if isinstance(value, int | float)
        )
        say(f"{snapshot}: " + ", ".join(numbers))
    return 0
