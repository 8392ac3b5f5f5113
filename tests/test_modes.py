"""Modes of layers: what a training leaves in evaluation mode, and what it tells of modes that were hardly meant."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.batches import Batch, Batches
from kdlib.modes import FrozenWeightsAdapt, TrainedInEvaluation
from kdlib.progress import Progress
from kdlib.replicas import Replicas, side_by_side
from kdlib.training import epochs, hard_targets
from tests.small_trainings import BATCHES, EXAMPLES, STEPS


class Net(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), *(layers or (nn.BatchNorm1d(8),)), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def tracked(model):
    return int(model.backbone[1].num_batches_tracked)


def test_a_backbone_that_learns_later_is_told_once_although_its_train_is_undone(tmp_path):
    model = Net()
    model.backbone.requires_grad_(False).eval()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for epoch in epochs(Progress(model, sgd(model)), BATCHES, hard_targets, count=4, seed=0):
            if epoch == 2:
                model.backbone.requires_grad_(True).train()
    (text,) = [str(each.message) for each in told]
    assert "backbone.0, backbone.1 have weights to train" in text
    assert "so does a BatchNorm1d there" in text
    assert tracked(model) == 0


def test_a_training_that_goes_on_tells_what_the_first_one_froze_in_its_last_epoch(tmp_path):
    def run(count):
        model = Net()
        for _ in epochs(
            Progress(model, sgd(model), checkpoint=tmp_path / "c"), BATCHES, hard_targets, count=count, seed=0
        ):
            model.backbone.eval()
        return model

    run(1)  # a warning would fail: nothing is trained with these modes
    with pytest.warns(TrainedInEvaluation, match=r"backbone\.0 have weights"):
        assert tracked(run(3)) == STEPS
    run(3)  # it is finished


@pytest.mark.parametrize("place", ["batches", "objective"])
@pytest.mark.parametrize("part", ["the network", "backbone"])
def test_an_evaluation_among_the_steps_changes_no_step(place, part):
    """Hard examples that are looked for between the batches; the student as its own teacher in the objective."""
    model = Net()
    evaluated = model if part == "the network" else model.backbone

    def look(inputs):
        evaluated.eval()
        with torch.no_grad():
            model(inputs)

    def batches(epoch):
        for batch in BATCHES(epoch):
            if place == "batches":
                look(batch.inputs)
            yield batch

    def objective(outputs, batch):
        if place == "objective":
            look(batch.inputs)
        return hard_targets(outputs, batch)

    modes = []
    for _ in epochs(Progress(model, sgd(model)), batches, objective, count=2, seed=0):  # a warning would fail
        modes.append(evaluated.training)
    assert modes == [True, True]
    # In the batches' case of the backbone alone, look() counts nothing either: it is evaluated there.
    assert tracked(model) == 2 * STEPS


def test_replicas_freeze_what_each_member_alone_would_freeze():
    """A network that was evaluated, with a new head: the other layers stay in evaluation mode."""

    def member(seed):
        model = Net()
        model.eval().requires_grad_(False)
        torch.manual_seed(seed)
        model.head = nn.Linear(8, 3)
        return model

    members = [member(0), member(1)]
    stacked = Replicas(members)
    batches = side_by_side([Batches(EXAMPLES, 8, seed) for seed in (0, 1)])
    objective = torch.vmap(F.cross_entropy)
    together = Progress(stacked, torch.optim.SGD([w for w in stacked.parameters() if w.requires_grad], lr=0.1))
    for _ in epochs(together, batches, lambda o, b: objective(o, b.labels), count=2, seed=[0, 1]):
        pass
    for seed, alone in enumerate(members):
        for _ in epochs(Progress(alone, sgd(alone.head)), Batches(EXAMPLES, 8, seed), hard_targets, count=2, seed=seed):
            pass
        found = stacked.member(seed)
        assert torch.equal(found.backbone[1].running_mean, torch.zeros(8))
        torch.testing.assert_close(found.head.weight, alone.head.weight)


def test_replicas_of_members_that_are_trained_in_evaluation_mode_are_told():
    members = [Net(), Net()]
    for each in members:
        each.backbone.eval()
    with pytest.warns(TrainedInEvaluation, match=r"Replicas: backbone\.0 have weights"):
        Replicas(members)


class DropPath(nn.Module):
    """As timm has it."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return x


class StochasticDepth(nn.Module):
    """As torchvision has it."""

    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return x


class Functional(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout

    def forward(self, x):
        return F.dropout(x, self.dropout, self.training)


class Recurrent(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.cell = nn.GRU(8, 8, num_layers=2, dropout=dropout)

    def forward(self, x):
        return self.cell(x)[0]


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("layer", [DropPath, StochasticDepth, nn.Dropout, Recurrent, nn.AlphaDropout, Functional])
def test_layers_that_drop_something_depend_on_their_mode(layer, rate):
    model = Net(layer(rate))
    model.backbone.eval()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        next(epochs(Progress(model, sgd(model)), BATCHES, hard_targets, count=1, seed=0))
    assert [issubclass(each.category, TrainedInEvaluation) for each in told] == [True] * (rate > 0)


def test_a_batch_norm_that_adapts_although_its_weights_do_not_learn_is_told():
    """A teacher within the model that was not evaluated; a backbone whose weights alone were frozen."""
    model = Net()
    model.backbone.requires_grad_(False)
    with pytest.warns(FrozenWeightsAdapt, match=r"the averages of backbone\.1 change in training mode"):
        next(epochs(Progress(model, sgd(model)), BATCHES, hard_targets, count=1, seed=0))
    assert tracked(model) == STEPS
    model.backbone.eval()
    next(epochs(Progress(model, sgd(model)), BATCHES, hard_targets, count=1, seed=0))  # a warning would fail


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8, affine=False), nn.LayerNorm(8), nn.BatchNorm1d(8, momentum=0.0)])
def test_a_norm_without_averages_or_weights_is_no_slip(norm):
    model = Net(norm)
    model.backbone.requires_grad_(False)
    next(epochs(Progress(model, sgd(model)), BATCHES, hard_targets, count=1, seed=0))  # a warning would fail


def test_modes_within_an_epoch_are_those_of_an_own_train_method():
    """A network that keeps its batch norm evaluated by itself is left alone."""

    class Own(Net):
        def train(self, mode=True):
            super().train(mode)
            self.backbone[1].eval()
            return self

    model = Own()
    model.backbone[1].requires_grad_(False)
    list(epochs(Progress(model, sgd(model)), BATCHES, hard_targets, count=2, seed=0))  # a warning would fail
    assert tracked(model) == 0


def test_batches_may_be_of_another_class_of_modes():
    """A model in two parts, of which the batches need one alone: it is in training mode again at each step."""
    model, seen = Net(), []
    model.head.register_forward_hook(lambda module, *_: seen.append(module.training))

    def batches(epoch):
        for batch in BATCHES(epoch):
            model.head.eval()
            yield Batch(batch.inputs, batch.labels, batch.indices)

    list(epochs(Progress(model, sgd(model)), batches, hard_targets, count=1, seed=0))
    assert seen == [True] * STEPS
