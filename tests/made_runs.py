"""Runs for tests of training functions: taught by made-up logits, observed at their steps, killed after every epoch."""

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from kdlib.batches import Batch
from kdlib.checkpoint import read_checkpoint
from kdlib.progress import Progress
from kdlib.run.experiment import Run
from kdlib.seeds import generator

PARTS = ("train", "validation", "test", "others")  # of the data, of which a teacher may keep logits


def checkpoint_notes():
    """Return the notes of a checkpoint of a training that has not begun."""
    with tempfile.TemporaryDirectory() as folder:
        model, path = nn.Linear(2, 2), Path(folder) / "checkpoint"
        Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=path).save()
        return read_checkpoint(path)[1]


def run_of(experiment, config, seed=0, data=None):
    """Return a run of an experiment on its synthetic data."""
    return Run(config, seed, data or experiment.load_data(config, {}), torch.device("cpu"), "the run", {})


def taught(run, teacher=0):
    """Return the run with a teacher that is mostly right, and the logits that this teacher has kept."""
    parts = {part: getattr(run.data, part) for part in PARTS if hasattr(run.data, part)}
    classes = int(run.data.train.labels.max()) + 1
    kept = {}
    for part, examples in parts.items():
        noise = torch.randn(len(examples.labels), classes, generator=generator(teacher, part))
        kept[f"final.{part}"] = noise + 2 * F.one_hot(examples.labels, classes)
    description = SimpleNamespace(data=run.data.digest)
    about = SimpleNamespace(
        id=f"teacher {teacher}",
        description=description,
        soft_targets=kept.__getitem__,
        metrics={"final": {"parameters": 7, "epochs": 3}},
    )
    return replace(run, parents={"teacher": (about, "final")}), kept


def with_parents(experiment, arm, run, known):
    """Return the run with the parents that its arm needs, trained in profile smoke; `known` keeps them by name."""

    def parent(name):
        if name not in known:
            needed = experiment.arm(name)
            config = experiment.config(needed, experiment.profile("smoke"))
            alone = replace(run, config=config, parents={}, trainings=[])
            (result,) = needed.results([with_parents(experiment, needed, alone, known)])
            description = SimpleNamespace(data=run.data.digest)
            known[name] = SimpleNamespace(
                id=name,
                description=description,
                metrics=result.metrics,
                weights=result.weights.__getitem__,
                soft_targets=result.soft_targets.__getitem__,
            )
        return known[name]

    parents = {role: (parent(name), experiment.arm(name).snapshot) for role, name in arm.needs.items()}
    return replace(run, parents=parents)


class Killed(Exception):
    pass


def resumed(train, runs, checkpoint):
    """Return the results if every session dies after one epoch, and the epochs that the sessions died after."""
    deaths = []

    def die(progress):
        deaths.append(progress.epoch)
        raise Killed

    first, *others = runs  # the checkpoint of the first run is that of all students side by side
    while len(deaths) < 40:
        try:
            return train([replace(first, checkpoint=checkpoint, on_epoch=die), *others]), deaths
        except Killed:
            continue
    raise AssertionError("no session came to the end")


def assert_same_result(result, expected):
    """Compare to the last bit: history, metrics, weights and kept logits."""
    assert result.history == expected.history
    assert result.metrics == expected.metrics
    assert result.weights.keys() == expected.weights.keys()
    for snapshot, weights in expected.weights.items():
        assert result.weights[snapshot].keys() == weights.keys()
        assert all(torch.equal(value, result.weights[snapshot][name]) for name, value in weights.items()), snapshot
    assert result.soft_targets.keys() == expected.soft_targets.keys()
    assert all(torch.equal(value, result.soft_targets[part]) for part, value in expected.soft_targets.items())


def batches_of(train, run, monkeypatch):
    """Return everything that the steps of a training function get, as one batch; nothing is trained."""
    seen = []

    def step(model, optimizer, objective, batch):
        seen.append(batch)
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    train(run)
    soft = None if seen[0].soft is None else torch.cat([batch.soft for batch in seen])
    return Batch(
        *(torch.cat([getattr(batch, name) for batch in seen]) for name in ("inputs", "labels", "indices")), soft
    )
