"""Finished and begun runs travel between stores by way of a plain folder, which is itself a store.

A good run is never replaced. After a kill at any moment, the same command ends with the same runs; `kdlib.run.copying`
says how.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import canonical_json, not_read
from kdlib.run.copying import Refused, checkpoints, copy_begun, copy_finished, read_begun, read_contents
from kdlib.run.experiment import Arm, Experiment, loadable
from kdlib.run.finished import Description
from kdlib.run.store import Store

__all__ = ["Outcome", "export_runs", "import_runs"]


@dataclass
class Outcome:
    """How many finished and begun runs were copied, how many were there already, and why others were refused."""

    runs: int = 0
    begun: int = 0
    there: int = 0
    refused: list[str] = field(default_factory=list)


def export_runs(
    store: Store, folder: Path, *, prefixes: Sequence[str] = (), profile: str = "", pruned: bool = False
) -> Outcome:
    """Copy runs of a store to a folder, which becomes a store of them; return what was copied.

    `prefixes`: only runs whose ids begin so. `profile`: only finished runs with the configuration of an arm in that
    profile, and all begun runs, which do not say their profile. `pruned`: without the weights of finished runs.
    KDError if no id begins so, if no replication has that profile, or if the folder cannot be written.
    """
    _check_apart(store.folder, folder)
    ids, begun = _chosen(store.ids(), prefixes), _chosen(store.begun(), prefixes)
    for prefix in prefixes:
        if not prefix or not _chosen([*ids, *begun], [prefix]):
            raise KDError(f"run '{prefix}': expected the beginning of an id in {store.folder}, found none")
    wanted = _of_profile(profile) if profile else lambda about: True
    _check_writable(folder)
    return _copy(store, Store(folder), ids, begun, wanted, pruned)


def import_runs(folder: Path, store: Store) -> Outcome:
    """Copy the runs of an exported folder to a store; return what was copied.

    KDError if the folder is not one of runs, or if the store cannot be written.
    """
    _check_apart(folder, store.folder)
    _check_exported(folder)
    _check_writable(store.folder)
    source = Store(folder)
    return _copy(source, store, source.ids(), source.begun(), lambda about: True, False)


def _check_exported(folder: Path) -> None:
    parts = [folder / "runs", folder / "work"]
    try:
        links = [part for part in parts if part.is_symlink()]
        found = [part for part in parts if part.is_dir()]
    except OSError as error:
        raise not_read(folder, error) from error
    if links:
        raise KDError(f"{links[0]}: expected a folder of runs, found a link; links are not followed, copy it")
    if not found:
        raise KDError(
            f"{folder}: expected a folder that `kd runs export` made, with runs/ or work/ in it, found neither; name "
            "that folder"
        )


def _check_apart(one: Path, other: Path) -> None:
    try:
        same = one.resolve() == other.resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise KDError(f"{other}: expected a folder, found: {error}; name another one") from error
    if same:
        raise KDError(f"{other}: expected another folder than the store itself; name another one")


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise KDError(
            f"{folder}: expected a folder to write runs in, found that it cannot be written ({error.strerror}); change "
            "its permissions or name another folder"
        ) from error


def _chosen(ids: Iterable[str], prefixes: Collection[str]) -> list[str]:
    return [run_id for run_id in ids if not prefixes or run_id.startswith(tuple(prefixes))]


def _of_profile(name: str) -> Callable[[Description], bool]:
    """Whether a description is of an arm in that profile of a replication in the current folder."""
    having = [experiment for experiment in loadable(Path()) if name in experiment.profiles]
    if not having:
        raise KDError(
            f"--profile {name}: expected a profile of a replication in {Path.cwd()}, found none; call kd in the top "
            "folder of the repository, and see `kd list`"
        )
    arms = [(experiment, arm) for experiment in having for arm in experiment.arms]
    return lambda about: any(_trained_by(experiment, arm, name, about) for experiment, arm in arms)


def _trained_by(experiment: Experiment, arm: Arm, profile: str, about: Description) -> bool:
    if (about.recipe, about.protocol) != (f"{experiment.source}/{arm.train.__name__}", experiment.protocol):
        return False
    config = asdict(experiment.config(arm, experiment.profile(profile)))
    expected = {name: value for name, value in config.items() if name not in experiment.data_fields}
    found = {name: about.config.get(name) for name in expected}
    return canonical_json(expected) == canonical_json(found)  # as JSON: a tuple is stored as a list


def _copy(
    source: Store,
    target: Store,
    ids: Sequence[str],
    begun: Sequence[str],
    wanted: Callable[[Description], bool],
    pruned: bool,
) -> Outcome:
    outcome, finished = Outcome(), set[str]()
    for run_id in ids:
        with _told(outcome):
            run, contents = read_contents(source.run_folder(run_id), pruned)
            finished.add(run_id)
            if wanted(run.description):
                copied = copy_finished(run, contents, target)
                outcome.runs += copied
                outcome.there += not copied
    for run_id in [run_id for run_id in begun if run_id not in finished]:
        names: list[str] = []
        with _told(outcome):
            names = checkpoints(source.work_folder(run_id))
        for name in names:
            with _told(outcome):
                copied = copy_begun(read_begun(source.work_folder(run_id), name), target)
                outcome.begun += copied
                outcome.there += not copied
    return outcome


@contextmanager
def _told(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except Refused as error:
        outcome.refused.append(str(error))
