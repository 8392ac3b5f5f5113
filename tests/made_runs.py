"""Runs made up for tests of training functions: with a teacher that has kept logits, and what its steps are given."""

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
