"""Batches that a user makes, with other parts than those of `Batches`, go on within an epoch."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib import training
from kdlib.losses import cross_entropy, soft_target_kl
from kdlib.progress import Progress
from tests.made_runs import Killed
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
