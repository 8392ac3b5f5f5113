"""Runs made up for tests of training functions: taught by kept logits, seen at their steps, killed after every epoch."""

from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from kdlib.batches import Batch
from kdlib.experiment import Run
from kdlib.seeds import generator


def run_of(module, config, seed=0, data=None):
    """A run of an experiment's module on its synthetic data."""
    return Run(config, seed, data or module.load_data(config, {}), torch.device("cpu"), "the run", {})


def taught(run, teacher=0):
    """The run with a teacher that is mostly right, and the logits this has kept."""
    parts = {"train": run.data.train.labels, "test": run.data.test.labels}
    kept = {f"final.{part}": torch.randn(len(labels), 10, generator=generator(teacher, part)) + 2 * F.one_hot(labels, 10)
            for part, labels in parts.items()}
    description = SimpleNamespace(data=run.data.digest)
    about = SimpleNamespace(id=f"teacher {teacher}", description=description, soft_targets=kept.__getitem__)
    return replace(run, parents={"teacher": (about, "final")}), kept


class Killed(Exception):
    pass


def resumed(train, run, checkpoint):
    """The run's result where every session dies as soon as one epoch is in its checkpoint, and the epochs they died after."""
    deaths = []

    def die(progress):
        deaths.append(progress.epoch)
        raise Killed

    while len(deaths) < 40:
        try:
            return train(replace(run, checkpoint=checkpoint, on_epoch=die)), deaths
        except Killed:
            continue
    raise AssertionError("no session came to the end")


def assert_same_result(result, expected):
    """To the last bit: history, metrics, weights and kept logits."""
    assert result.history == expected.history
    assert result.metrics == expected.metrics
    assert result.weights.keys() == expected.weights.keys()
    for snapshot, weights in expected.weights.items():
        assert result.weights[snapshot].keys() == weights.keys()
        assert all(torch.equal(value, result.weights[snapshot][name]) for name, value in weights.items()), snapshot
    assert result.soft_targets.keys() == expected.soft_targets.keys()
    assert all(torch.equal(value, result.soft_targets[part]) for part, value in expected.soft_targets.items())


def batches_of(train, run, monkeypatch):
    """All that the steps of a training function are given, in one batch; nothing is trained."""
    seen = []

    def step(model, optimizer, objective, batch):
        seen.append(batch)
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    train(run)
    soft = None if seen[0].soft is None else torch.cat([batch.soft for batch in seen])
    return Batch(*(torch.cat([getattr(batch, name) for batch in seen]) for name in ("inputs", "labels", "indices")), soft)
