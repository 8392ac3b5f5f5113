"""`kd export` writes a stored network as an ONNX file; `kd cost` measures what the networks of a replication cost."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from kdlib.cli.commands import ROOT, prepared, tell_again
from kdlib.cli.live import Downloading
from kdlib.cli.runs import store_of
from kdlib.cli.say import say, say_page
from kdlib.errors import KDError
from kdlib.export import OPSET, onnx_file
from kdlib.report.cost import cost_page, cost_path, measured_rows, write_cost
from kdlib.report.markdown import unescaped
from kdlib.run.environment import environment
from kdlib.run.experiment import loadable
from kdlib.run.finished import FinishedRun
from kdlib.run.labels import label_of
from kdlib.run.networks import Origin, origin_of, trained_network
from kdlib.run.session import Session, data_sets, folder_of
from kdlib.run.store import Store

CHECKED = 100  # test examples


def export(options: argparse.Namespace) -> int:
    """`kd export RUN FILE`: the network of a stored run, checked on test examples of the run's data."""
    if options.file.suffix != ".onnx":
        raise KDError(f"kd export: expected a file name that ends in .onnx, found {options.file}; write model.onnx")
    store = store_of(options.store)
    run = store.resolve(options.run)
    label = label_of(run, _with_parents(run, store))
    snapshot = options.snapshot or label.snapshot
    label = label.of(snapshot)
    origin = origin_of(run, loadable(ROOT), label.arms)
    data = _data_of(run, origin, options.data)
    network = trained_network(run, snapshot, origin, data)
    _, test = origin.experiment.examples(origin.arm, data, run.description.seed)
    inputs = test.inputs[:CHECKED]
    onnx_file(network, inputs, options.file)
    shape = ", ".join(map(str, inputs.shape[1:]))
    arm = label.arm or origin.arm.name
    say(
        f"{options.file}: {origin.experiment.name}, {arm}, seed {run.description.seed}, run {run.id}/"
        f"{snapshot}; ONNX opset {OPSET}, inputs {str(inputs.dtype).removeprefix('torch.')} (N, {shape}), "
        f"{options.file.stat().st_size / 1e3:.1f} kB"
    )
    say(f"onnxruntime gives torch's logits for {len(inputs)} test examples of {data.name}.")
    return 0


def _with_parents(run: FinishedRun, store: Store) -> dict[str, FinishedRun]:
    """A run and all runs that it needs, as far as the store has them, by their ids."""
    found = {run.id: run}
    for each in (runs := [run]):  # grows
        for parent in {str(name).partition("/")[0] for name in each.description.parents.values()} - {*found}:
            with suppress(KDError):
                found[parent] = store.resolve(parent)
                runs.append(found[parent])
    return found


def _data_of(run: FinishedRun, origin: Origin, folder: Path | None) -> Any:
    """The data of a run; made-up ones only if they are the run's, because profiles may share a configuration."""
    if origin.synthetic:
        made_up = origin.experiment.load_data(origin.config, {})
        if made_up.digest == run.description.data:
            return made_up
    names = data_sets(origin.experiment, origin.config)
    return origin.experiment.load_data(origin.config, {name: folder_of(name, folder, Downloading) for name in names})


def cost(options: argparse.Namespace) -> int:
    """`kd cost NAME`: measure the networks of a profile; write them below results/<name>."""
    if options.device != "cpu":
        raise KDError(f"kd cost: expected --device cpu, found {options.device}; onnxruntime measures on a processor")
    session = prepared(options, options.name, options.profile)
    rows = measured_rows(session, lambda network: say(f"measuring {network}"))
    # The page of a replication is about its usual data; others are for the user who asked for them.
    label = session.experiment.label(session.profile_name, asdict(session.profile.config))
    usual = label == session.profile_name and not session.synthetic
    page, folder = cost_page(session, rows, _about(session)), ROOT / "results" / session.experiment.name
    say_page("\n" + unescaped(page))
    path = cost_path(folder, label, rows, usual)
    write_cost(rows, page, path)  # afterwards: an error there does not lose the measurements
    say(f"Written to {path.parent}, {path.name}.md and {path.name}.csv")
    if usual and path.parent != folder:
        say(f"They have a name of their own, because {folder / 'cost.csv'} is of another profile or has more.")
    tell_again(session, options.profile)
    return 0


def _about(session: Session) -> dict[str, str]:
    """What the numbers of a page depend on."""
    made = environment(session.experiment.folder, "cpu")
    data = session.experiment.load_data(session.profile.config, session.folders)
    versions = made["versions"] | {name: version(name) for name in ("onnx", "onnxruntime")}
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else "not known"
    return {
        "data": f"{data.name} (digest {data.digest})",
        "profile": session.profile_name + (f"; reduced: {session.profile.reduced}" if session.profile.reduced else ""),
        "device": f"cpu ({made['device']}), 1 thread, {torch.backends.cpu.get_cpu_capability()}",
        "load average at the end": load,
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items()) + f", opset {OPSET}",
        "commit": f"{made['commit'][:10]} ({'clean tree' if made['clean'] else 'uncommitted changes'})",
        "date": date.today().isoformat(),
    }
