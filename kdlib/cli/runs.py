"""`kd runs` and `kd explain` show the store."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdlib.errors import KDError
from kdlib.files import DamagedFile
from kdlib.run.environment import source_digest
from kdlib.run.experiment import load_experiment, replications
from kdlib.run.store import FinishedRun, Store, prune, read_run


def runs(options: argparse.Namespace) -> int:
    """`kd runs list | show | verify | prune [RUN ...]`."""
    if not options.names and options.action in ("show", "prune"):
        raise KDError(f"kd runs {options.action}: expected the beginning of a run's id, found none; see `kd runs list`")
    store = _store(options.store)
    ids = [store.resolve_id(prefix) for prefix in options.names] or store.ids()
    return {"list": _list, "show": _show, "verify": _verify, "prune": _prune}[options.action](store, ids)


def _store(folder: Path) -> Store:
    if not folder.is_dir():
        raise KDError(f"--store {folder}: expected a store of runs, found no such folder; `kd run` makes one")
    return Store(folder)


def _list(store: Store, ids: list[str]) -> int:
    for run_id in ids:
        try:
            run = read_run(store.run_folder(run_id), check=False)
        except DamagedFile as error:
            print(f"{run_id}  damaged: {error}")
            continue
        print(f"{run_id}  {run.description.recipe}  seed {run.description.seed}  {_main_numbers(run)}")
    return 0


def _main_numbers(run: FinishedRun) -> str:
    last = run.metrics.get("final", {})
    return "  ".join(f"{key} {last[key]:.4f}" for key in ("accuracy", "macro_f1") if key in last)


def _show(store: Store, ids: list[str]) -> int:
    for run_id in ids:
        read_run(store.run_folder(run_id), check=False)  # DamagedFile says what is wrong with it
        print((store.run_folder(run_id) / "run.json").read_text(), end="")
    return 0


def _verify(store: Store, ids: list[str]) -> int:
    damaged = 0
    for run_id in ids:
        try:
            read_run(store.run_folder(run_id))
        except DamagedFile as error:
            damaged += 1
            print(f"{run_id}  damaged: {error}")
    print(
        f"{len(ids)} runs, {damaged} damaged"
        + ("; a damaged run is set aside and trained again when it is next needed" if damaged else "")
    )
    return 1 if damaged else 0


def _prune(store: Store, ids: list[str]) -> int:
    for run_id in ids:
        print(f"{run_id}: {prune(store.resolve(run_id)) / 1e6:.2f} MB of weights dropped")
    return 0


def explain(options: argparse.Namespace) -> int:
    """`kd explain RUN`: configuration, parents, numbers, and whether its source files have changed since."""
    store = _store(options.store)
    run = store.resolve(options.run)
    about = run.description
    print(f"run {run.id}: {about.recipe}, protocol {about.protocol}, seed {about.seed}, data {about.data}")
    print("configuration: " + ", ".join(f"{key}={value}" for key, value in about.config.items()))
    for role, parent in about.parents.items():
        parent_id = parent.partition("/")[0]
        known = store.run_folder(parent_id).exists()
        print(f"{role}: run {parent}" + ("" if known else " (not in this store)"))
    environment = run.environment
    states = {True: "clean tree", False: "with uncommitted edits", None: "state of the tree not known"}
    clean = states[environment.get("clean")]
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("versions", {}).items())
    print(
        f"made by commit {environment.get('commit', 'unknown')} ({clean}) on "
        f"{environment.get('device', 'an unknown device')}, {environment.get('threads', '?')} threads, "
        f"in {environment.get('seconds', float('nan')):.0f} s, with {versions}"
    )
    same = [
        name
        for name in replications(Path())
        if source_digest(load_experiment(name).folder) == environment.get("source")
    ]
    print(
        "source files: "
        + (f"as they are now in {', '.join(same)}" if same else "edited since, or another replication's")
    )
    weights = "kept" if (run.folder / "weights.safetensors").exists() else "pruned"
    print(f"weights: {weights}, SHA-256 {run.weights_sha256}")
    for snapshot, metrics in run.metrics.items():
        numbers = (
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in metrics.items()
            if isinstance(value, int | float)
        )
        print(f"{snapshot}: " + ", ".join(numbers))
    return 0
