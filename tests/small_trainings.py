"""A small network and its training, for tests of what a training takes over from a checkpoint, and what it refuses."""

import torch
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.networks import keras_glorot_
from kdlib.seeds import generator
from kdlib.training import epochs, hard_targets

INPUTS = torch.randn(24, 4, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :3].argmax(1))
BATCHES = Batches(EXAMPLES, 8, 0)
STEPS = 3


def student(*layers, name="weights"):
    middle = layers or (nn.ReLU(),)
    return keras_glorot_(nn.Sequential(nn.Linear(4, 8), *middle, nn.Linear(8, 3)), generator(0, name))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.05)


def train(progress, count=2, objective=hard_targets, body=lambda epoch: None, batches=BATCHES, **settings):
    for epoch in epochs(progress, batches, objective, count=count, seed=0, **settings):
        body(epoch)
    return progress


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Centred(nn.Module):
    """A network with a running centre that no state_dict has."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 3)
        self.register_buffer("centre", torch.zeros(4), persistent=False)

    def forward(self, x):
        if self.training:
            self.centre += 0.1 * (x.mean(0).detach() - self.centre)
        return self.dense(x - self.centre)
