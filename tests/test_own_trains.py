"""Networks whose own `train` and `eval` do more than set a mode: they freeze by a rule, or merge weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.batches import Batches
from kdlib.errors import KDError
from kdlib.losses import hard_and_soft
from kdlib.metrics import accuracy
from kdlib.modes import TrainedInEvaluation, evaluated_by_train
from kdlib.progress import Progress
from kdlib.targets import SoftTargets
from kdlib.training import evaluating, hard_targets, predict_logits
from tests.made_runs import Killed
from tests.small_trainings import BATCHES, EXAMPLES, INPUTS, adam, same, state_of, student, train


def train_until(progress, killed_at, body):
    """Train five epochs; if the body is to be killed in one of them, it must be."""
    if killed_at:
        with pytest.raises(Killed):
            train(progress, 5, body=body)
    else:
        train(progress, 5, body=body)


class FrozenByRule(nn.Sequential):
    """A batch norm whose weights do not learn is evaluated."""

    def train(self, mode=True):
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d) and not module.weight.requires_grad:
                module.eval()
        return self


@pytest.mark.parametrize("at_first", [True, False])
@pytest.mark.parametrize("prepare", [lambda network: None, lambda network: network.train()])
def test_weights_that_learn_for_some_epochs_decide_about_the_norm_in_each_process(tmp_path, at_first, prepare):
    def run(name, killed_at=0):
        network = FrozenByRule(*student(nn.BatchNorm1d(8)))
        network[:2].requires_grad_(at_first)
        prepare(network)

        def body(epoch):
            if epoch == 2:
                network[:2].requires_grad_(not at_first)
            if epoch == killed_at:
                raise Killed

        progress = Progress(network, adam(network), checkpoint=tmp_path / name)
        train_until(progress, killed_at, body)  # without a warning of averages that change, which would fail
        return network

    run("c", killed_at=4)
    whole = run("whole")
    assert same(run("c").state_dict(), whole.state_dict())
    assert int(whole[1].num_batches_tracked) == (6 if at_first else 9)  # in each epoch, the rule decides anew


class Merging(nn.Linear):
    """A layer of low rank that merges its weights for evaluation, as loralib's."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.randn(2, inputs) / 2)
        self.up = nn.Parameter(torch.randn(outputs, 2) / 2)
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (self.up @ self.down).detach() * (-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x):
        low = 0 if self.merged else F.linear(F.linear(x, self.down), self.up)
        return F.linear(x, self.weight, self.bias) + low


def merging():
    torch.manual_seed(0)
    return nn.Sequential(Merging(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def by_hand(network, inputs):
    network.eval()
    with torch.no_grad():
        found = network(inputs)
    network.train()
    return found


def fails(network, inputs):
    with pytest.raises(Killed), evaluating(network):
        raise Killed
    return predict_logits(network, inputs)


@pytest.mark.parametrize("predict", [predict_logits, fails])
@pytest.mark.parametrize("place", ["objective", "body"])
def test_predictions_leave_merged_weights_as_by_hand(predict, place):
    def run(predict):
        network = merging()

        def objective(outputs, batch):
            if place == "body":
                return hard_targets(outputs, batch)
            return hard_and_soft(outputs, predict(network, batch.inputs), batch.labels, 0.5, 0.5, 2.0)

        def body(epoch):
            predict(network, INPUTS)

        train(Progress(network, adam(network)), 3, objective, body if place == "body" else lambda epoch: None)
        return network

    network, expected = run(predict), run(by_hand)
    assert same(network.state_dict(), expected.state_dict())
    assert network[0].training
    assert not network[0].merged


def test_an_evaluation_among_the_steps_does_not_leave_weights_merged():
    def run(evaluates):
        network = merging()

        def batches(epoch):
            for batch in BATCHES(epoch):
                if evaluates:
                    network.eval()
                    network.train()
                    network.eval()  # and forgets to go back
                yield batch

        train(Progress(network, adam(network)), 2, batches=batches)
        return network

    torch.testing.assert_close(state_of(run(True)), state_of(run(False)))


def test_a_merging_network_goes_on_with_measurements_before_and_within_the_training(tmp_path):
    def run(name, killed_at=0):
        network = merging()
        predict_logits(network, INPUTS)
        progress = Progress(network, adam(network), checkpoint=tmp_path / name)

        def body(epoch):
            progress.record(accuracy=accuracy(predict_logits(network, INPUTS), EXAMPLES.labels))
            if epoch == killed_at:
                raise Killed

        train_until(progress, killed_at, body)
        return network

    run("c", killed_at=4)
    assert same(run("c").state_dict(), run("whole").state_dict())


def test_parts_in_other_modes_are_put_back():
    network = nn.Sequential(merging(), merging(), FrozenByRule(*student(nn.BatchNorm1d(8))))
    network.forward = lambda inputs: network[0](inputs)
    network[1].eval()
    network[2][1].requires_grad_(False).eval()
    before = [(module, module.training, getattr(module, "merged", None)) for module in network.modules()]
    weights = state_of(network)
    predict_logits(network, INPUTS)
    assert [(module, module.training, getattr(module, "merged", None)) for module in network.modules()] == before
    torch.testing.assert_close(state_of(network), weights)
    assert evaluated_by_train(network, network.modules()) == {id(network[2][1])}
    torch.testing.assert_close(state_of(network), weights)


class Unfreezes(nn.Sequential):
    """A batch norm that is frozen for as long as a switch says."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.frozen = True

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            self[1].eval()
        return self


def unfreezes():
    return Unfreezes(*student(nn.BatchNorm1d(8), nn.ReLU()))


@pytest.mark.parametrize("also_train", [True, False])
def test_a_norm_is_frozen_for_as_long_as_the_networks_own_train_says(also_train):
    def body(network, epoch):
        if epoch == 2:
            network.frozen = False
            if also_train:
                network.train()

    network, expected = unfreezes(), unfreezes()
    train(Progress(network, adam(network)), 4, body=lambda epoch: body(network, epoch))
    optimizer = adam(expected)
    for epoch in range(1, 5):
        expected.train()
        for batch in BATCHES(epoch):
            optimizer.zero_grad()
            hard_targets(expected(batch.inputs), batch).backward()
            optimizer.step()
        body(expected, epoch)
    assert same(network.state_dict(), expected.state_dict())
    assert int(network[1].num_batches_tracked) == 6


def test_a_second_training_asks_the_networks_own_train_again():
    network = unfreezes()
    train(Progress(network, adam(network)), 2)
    network.frozen = False
    network.train()  # else it remains as the first training has left it
    train(Progress(network, adam(network)), 2)
    assert int(network[1].num_batches_tracked) == 6


@pytest.mark.parametrize("kind", [bool, np.bool_, torch.tensor, lambda value: None if not value else "yes"])
def test_the_switches_of_a_networks_own_train_go_on(tmp_path, kind):
    def run(name, killed_at=0, number=1):
        network = unfreezes()
        network.number = number
        network.train()

        def body(epoch):
            if epoch == 2:
                network.frozen = kind(False)
            if epoch == killed_at:
                raise Killed

        progress = Progress(network, adam(network), checkpoint=tmp_path / name)
        train_until(progress, killed_at, body)
        return network

    whole = run("whole")
    for killed_at in (2, 3, 4):
        run("c", killed_at)
    again = run("c", number=2)
    assert same(again.state_dict(), whole.state_dict())
    assert again.number == 2  # the training has not changed it, so the script decides
    assert not again.frozen
    assert int(again[1].num_batches_tracked) == 9


class TrainsAsTorch(nn.Sequential):
    """Its `train` does nothing of its own."""

    def train(self, mode=True):
        return super().train(mode)


class CannotBeCopied(TrainsAsTorch):
    """Its `train` cannot be asked on a copy."""

    def __deepcopy__(self, memo):
        raise NotImplementedError


@pytest.mark.parametrize("kind", [nn.Sequential, TrainsAsTorch])
def test_a_checkpoint_of_other_frozen_layers_is_refused(tmp_path, kind):
    def run(is_frozen, count):
        network = kind(*student(nn.BatchNorm1d(8)))
        if is_frozen:
            network[1].eval()
        train(Progress(network, adam(network), checkpoint=tmp_path / "c"), count)

    run(True, 2)
    for count in (2, 4):
        with pytest.raises(KDError, match=r"frozen: the checkpoint has \['1'\], this training \[\]"):
            run(False, count)
    run(True, 4)


def test_a_network_that_cannot_be_copied_is_trained(tmp_path):
    network = CannotBeCopied(*student(nn.BatchNorm1d(8)))
    network[1].eval()
    train(Progress(network, adam(network), checkpoint=tmp_path / "c"))
    assert int(network[1].num_batches_tracked) == 0


@pytest.mark.parametrize("learns_again", [True, False])
def test_a_frozen_norm_that_the_body_wakes_is_told(learns_again, recwarn):
    network = student(nn.BatchNorm1d(8))
    network[1].eval().requires_grad_(False)

    def body(epoch):
        if epoch == 2:
            network[1].train().requires_grad_(learns_again)

    train(Progress(network, adam(network)), 4, body=body)
    told = [str(each.message) for each in recwarn if each.category is TrainedInEvaluation]
    assert len(told) == learns_again
    assert all("1 have weights to train and are in evaluation mode, so they remain in it" in text for text in told)
    assert int(network[1].num_batches_tracked) == 0


class WithTeacher(nn.Module):
    """A student that evaluates its teacher by itself."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = student(nn.Dropout(0.1)), student(nn.Dropout(0.5), name="teacher")

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs):
        return self.student(inputs)


def test_a_teacher_that_the_network_itself_evaluates_is_no_slip():
    network = WithTeacher()
    train(Progress(network, adam(network)), 2)  # a warning would fail


def test_modes_are_put_back_after_a_network_that_cannot_change_them():
    exported = torch.export.export(student().eval(), (INPUTS,)).module()
    network = nn.ModuleDict({"student": student(), "teacher": exported})
    with pytest.raises(KDError, match="expected a network that can be set to evaluation mode"):
        predict_logits(network, INPUTS)
    assert network.training
    assert network["student"].training


def test_soft_targets_have_no_gradient():
    soft = SoftTargets(student()(INPUTS), "t", EXAMPLES.digest)
    assert not soft.logits.requires_grad
    network = student()
    train(
        Progress(network, adam(network)),
        2,
        lambda outputs, batch: F.mse_loss(outputs, batch.soft),
        batches=Batches(EXAMPLES, 8, 0, soft),
    )
