"""Batches that a user makes, with other parts than those of `Batches`, go on within an epoch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib import training
from kdlib.errors import KDError
from kdlib.losses import cross_entropy, soft_target_kl
from kdlib.progress import Progress
from tests.made_runs import Killed
from tests.small_trainings import BATCHES, train
from tests.test_within_epochs import EPOCHS, K, alone


def interrupted(path, made, objective, stop):
    """A training of the batches that `made` makes of plain ones; it dies after some steps, and ends in another life."""

    def life(on_step=None):
        model, optimizer, batches, _, seed = alone()
        progress = Progress(model, optimizer, checkpoint=path, on_step=on_step)
        steps = []

        def every(epoch):
            return (made(batch) for batch in batches(epoch))

        def die(progress):
            steps.append(1)
            if len(steps) == stop:
                progress.save()
                raise Killed

        progress.on_step = die if stop else on_step
        list(training.epochs(progress, every, objective, count=EPOCHS, seed=seed))
        return model.state_dict()

    if stop:
        with pytest.raises(Killed):
            life()
        stop = None
    return life()


def of_soft_targets(outputs, batch):
    return soft_target_kl(outputs, batch.soft, 2.0)


def relabelled(outputs, batch):
    batch.labels[batch.labels == 2] = 0
    return cross_entropy(outputs, batch.labels)


OWN_BATCHES = {
    "no labels": (lambda batch: replace(batch, labels=None), of_soft_targets),
    "no row numbers": (lambda batch: replace(batch, indices=None), of_soft_targets),
    "sparse labels": (
        lambda batch: replace(batch, labels=nn.functional.one_hot(batch.labels, K).float().to_sparse()),
        lambda outputs, batch: cross_entropy(outputs, batch.labels.to_dense()),
    ),
    "labels that the objective changes": (lambda batch: replace(batch, labels=batch.labels.clone()), relabelled),
}


@pytest.mark.parametrize("kind", OWN_BATCHES)
@pytest.mark.parametrize("stop", [1, 6])
def test_batches_of_other_parts_go_on_within_an_epoch(tmp_path, kind, stop):
    made, objective = OWN_BATCHES[kind]
    whole = interrupted(tmp_path / "whole", made, objective, None)
    found = interrupted(tmp_path / "c", made, objective, stop)  # warnings are errors here
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_a_traced_training_of_dictionaries_has_a_probe():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.dense(inputs["x"]) + inputs["y"]

    def batches(epoch):
        for batch in BATCHES(epoch):
            inputs = {"x": batch.inputs, "y": batch.inputs[:, :1]}
            yield replace(batch, inputs=inputs, soft=2 * batch.inputs[:, :3])

    def objective(outputs, batch):
        assert len(batch.inputs["x"]) == len(outputs)  # also of the probe
        return soft_target_kl(outputs, batch.soft, 2.0)

    model = Named()
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), traced=True)
    train(progress, objective=objective, batches=batches)
    (trace,) = progress.traces
    assert len(trace["probe"]) == 1 if isinstance(trace["probe"], list) else trace["probe"] > 0


@pytest.mark.parametrize("part", ["labels", "indices"])
def test_a_traced_training_needs_labels_and_row_numbers(part):
    model = nn.Linear(4, 3)
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), traced=True)
    with pytest.raises(KDError, match=r"expected labels and row numbers in each batch of a traced training"):
        train(progress, batches=lambda epoch: (replace(batch, **{part: None}) for batch in BATCHES(epoch)))
