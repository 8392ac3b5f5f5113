"""Inputs and teachers as users have them: dictionaries, tables, exported networks, rare classes."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdlib.batches import Batch, Batches, Examples, TeacherAtChance
from kdlib.chance import _variance_of_agreement
from kdlib.errors import KDError
from kdlib.losses import cross_entropy
from kdlib.probabilities import ProbabilitiesAsLogits
from kdlib.progress import Progress
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.trainable import WeightsNotTrained
from kdlib.training import epochs, hard_targets, predict_logits
from tests.small_trainings import BATCHES, EXAMPLES, INPUTS, adam, student, train

NAMED = {"values": INPUTS, "mask": torch.arange(24) % 3 > 0}


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = student(nn.Dropout(0.5))

    def forward(self, inputs):
        return {"logits": self.body(inputs["values"] * inputs["mask"][:, None])}


@pytest.mark.parametrize("size", [5, 24, 1000])
def test_logits_of_inputs_under_names(size):
    model = Masked()
    expected = predict_logits(model.body, INPUTS * NAMED["mask"][:, None])
    torch.testing.assert_close(predict_logits(model, NAMED, size, output="logits"), expected)
    parts = ({name: each[rows] for name, each in NAMED.items()} for rows in torch.arange(24).split(7))
    torch.testing.assert_close(predict_logits(model, parts, output="logits"), expected)
    with pytest.raises(KDError, match=r"same number of rows under each name, found the shapes .*'mask': \(23,\)"):
        predict_logits(model, NAMED | {"mask": NAMED["mask"][1:]}, output="logits")


def test_tables_and_lists_are_refused_with_what_makes_a_tensor_of_them():
    table = pd.DataFrame(INPUTS.numpy())
    with pytest.raises(KDError, match=r"found DataFrame; use torch.as_tensor\(inputs.to_numpy\(\)\)"):
        Examples(table, EXAMPLES.labels)
    with pytest.raises(KDError, match=r"labels: .* found Series; use torch.as_tensor\(labels.to_numpy\(\)\)"):
        Examples(INPUTS, pd.Series(EXAMPLES.labels.numpy(), index=range(24, 48)))
    with pytest.raises(KDError, match=r"found DataFrame; use its to_numpy\(\)"):
        predict_logits(student(), table)
    with pytest.raises(KDError, match=r"found list; use torch.stack\(inputs\)"):
        Examples([*INPUTS], EXAMPLES.labels)
    with pytest.raises(KDError, match="found dict; for several tensors an example, write a function of the epoch"):
        Examples(NAMED, EXAMPLES.labels)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.freeze, torch.jit.optimize_for_inference])
def test_a_network_of_one_mode_is_used_as_it_is(make):
    network = student(nn.BatchNorm1d(8)).eval()
    frozen = make(torch.jit.script(network))
    torch.testing.assert_close(predict_logits(frozen, INPUTS), predict_logits(network, INPUTS))


def test_an_exported_network_cannot_change_its_mode_and_is_refused():
    exported = torch.export.export(student().eval(), (INPUTS,)).module()
    with pytest.raises(KDError, match=r"expected a network that can be set to evaluation mode, .* call it as it is"):
        predict_logits(exported, INPUTS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda epoch: BATCHES, "found Batches; pass the Batches themselves"),
        (lambda epoch: None, "found NoneType; yield the batches one by one, or return a list of them"),
        (lambda epoch: Batch(INPUTS, EXAMPLES.labels, torch.arange(24)), "found Batch; yield the batches one by one"),
    ],
)
def test_a_function_that_returns_no_batches_is_refused(wrong, message):
    model = student()
    with pytest.raises(KDError, match=rf"expected that batches\(epoch\) gives the batches of an epoch, {message}"):
        next(epochs(Progress(model, adam(model)), wrong, hard_targets, count=1, seed=0))


def test_maps_as_soft_targets_are_to_be_flattened():
    with pytest.raises(KDError, match=r"found \(24, 3, 2, 2\) of run maps; flatten the places first"):
        EXAMPLES.check(SoftTargets(torch.zeros(24, 3, 2, 2), "maps", EXAMPLES.digest))


def test_soft_targets_of_one_sigmoid_are_told_as_a_whole():
    data = Examples(INPUTS, (INPUTS[:, 0] > 0).long())
    teacher = SoftTargets(torch.sigmoid(3 * INPUTS[:, :1]), "t", data.digest)
    with pytest.warns(ProbabilitiesAsLogits, match="of run t are all from 0 to 1"):
        Batches(data, 4, 0, teacher)


# ---- a teacher at chance


def of_rare_classes(found):
    """4,000 rows, of which 46 are positive; the teacher's logit is above 0 for `found` of them, and below it else."""
    labels = torch.zeros(4000).long()
    labels[:46] = 1
    logits = torch.randn(4000, generator=generator(0, "rare")) - 6
    logits[:46] += 4
    logits.clamp_(max=-0.1)[:found] = 0.5
    return labels, logits


@pytest.mark.parametrize("found", [0, 6])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_teacher_that_knows_a_rare_class_is_not_at_chance(found, columns):
    labels, logits = of_rare_classes(found)
    inputs, order = torch.zeros(4000, 1), torch.randperm(4000, generator=generator(0, "order"))
    data = Examples(inputs, labels)
    both = torch.stack([torch.zeros(4000), logits], 1)[:, -columns:]
    share = data.check(SoftTargets(both, "t", data.digest))  # a warning would fail
    assert share == pytest.approx(1 - (46 - found) / 4000)
    with pytest.warns(TeacherAtChance, match="the teacher is at chance: run t agrees with the labels of 9"):
        data.check(SoftTargets(both[order], "t", data.digest))


def test_the_variance_of_chance_agreement_is_that_of_random_orders():
    labels, found = np.repeat([0, 1, 2, 3], [30, 20, 8, 2]), np.repeat([0, 1, 2, 3], [25, 5, 5, 25])
    random = np.random.default_rng(0)
    shares = [np.mean(labels == random.permutation(found)) for _ in range(20_000)]
    parts = (torch.tensor(np.bincount(each) / 60) for each in (labels, found))
    assert math.sqrt(_variance_of_agreement(*parts) / 59) == pytest.approx(np.std(shares), rel=0.02)


# ---- extras that no optimizer holds


class Half(nn.Module):
    def forward(self, inputs):
        return inputs / 2


@pytest.mark.parametrize("held", [False, True])
def test_an_extra_that_the_loss_uses_and_no_optimizer_holds_is_told_once(tmp_path, held):
    model, hint = student(), nn.Linear(3, 3)
    weights = [*model.parameters(), *(hint.parameters() if held else ())]
    progress = Progress(
        model, torch.optim.SGD(weights, lr=0.1), extras={"hint": hint, "none": Half()}, checkpoint=tmp_path / "c"
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(progress, 3, lambda outputs, batch: hard_targets(hint(outputs), batch))
    assert [each.category for each in told] == [WeightsNotTrained] * (not held)
    if not held:
        assert "depends on hint.weight, hint.bias of the extras" in str(told[0].message)


def test_gradients_of_before_the_training_are_no_sign_of_a_weight_that_should_learn(tmp_path):
    model, teacher = student(), student(name="teacher")
    teacher(INPUTS).sum().backward()
    train(Progress(model, adam(model), extras={"teacher": teacher}))  # a warning would fail


# ---- weights that only the loss has


class Centres(nn.Module):
    """An objective with weights, as ArcFace is one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, outputs, batch):
        return hard_targets(outputs @ self.weight, batch)


def with_hint():
    hint = nn.Linear(3, 3)
    return hint, lambda outputs, batch: hard_targets(hint(outputs), batch)


def with_checkpointed_hint():
    hint = nn.Linear(3, 3)
    return hint, lambda outputs, batch: hard_targets(checkpoint(hint, outputs, use_reentrant=False), batch)


def with_teacher():
    teacher = student(name="teacher")
    return teacher, lambda outputs, batch: (outputs - teacher(batch.inputs)).square().mean()


def with_centres():
    centres = Centres()
    return centres, centres


MADE = [with_hint, with_checkpointed_hint, with_teacher, with_centres]


def told_in(model, optimizer, objective, **settings):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(Progress(model, optimizer, **settings), 3, objective)
    return [each.category for each in told], " ".join(str(each.message) for each in told)


@pytest.mark.parametrize("made", MADE)
def test_weights_of_the_loss_that_nobody_trains_are_told_once(made, tmp_path):
    model, (layer, objective) = student(), made()
    number = len([*layer.parameters()])
    for settings in ({}, {"checkpoint": tmp_path / "c"}):
        categories, text = told_in(model, torch.optim.SGD(model.parameters(), lr=0.1), objective, **settings)
        assert categories == [WeightsNotTrained]
        assert "weights that are neither the model's nor in extras, and no optimizer of this training holds" in text
        assert f"as they are: {number} in all, one of shape (" in text
    categories, text = told_in(model, torch.optim.SGD(model.parameters(), lr=0.1), objective, extras={"layer": layer})
    assert categories == [WeightsNotTrained]  # not a second time
    assert "of the extras" in text


@pytest.mark.parametrize("made", MADE)
def test_weights_of_the_loss_that_an_optimizer_holds_or_that_are_frozen_are_not(made):
    model, (layer, objective) = student(), made()
    own = torch.optim.SGD(model.parameters(), lr=0.1)
    others = {"layer": layer, "optimizer": torch.optim.SGD(layer.parameters(), lr=0.1)}
    assert told_in(model, torch.optim.SGD([*model.parameters(), *layer.parameters()], lr=0.1), objective)[0] == []
    assert told_in(model, own, objective, extras=others)[0] == []
    layer.requires_grad_(False)
    assert told_in(model, own, objective)[0] == []


class Critic:
    """An objective that trains a network of its own at each step."""

    def __init__(self):
        self.network = nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.network.parameters())

    def __call__(self, outputs, batch):
        self.optimizer.zero_grad()
        self.network(outputs.detach()).mean().backward()
        self.optimizer.step()
        return hard_targets(outputs, batch) - self.network(outputs).mean()


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(4, 8), nn.Linear(8, 3), reentrant

    def forward(self, inputs):
        return checkpoint(self.last, self.first(inputs), use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    "made",
    [
        lambda: (student(), Critic()),
        lambda: (Checkpointed(True), hard_targets),
        lambda: (Checkpointed(False), hard_targets),
        lambda: (torch.compile(student(), backend="aot_eager"), hard_targets),
    ],
)
def test_weights_that_something_else_trains_and_the_models_own_are_not(made):
    model, objective = made()
    assert told_in(model, torch.optim.SGD(model.parameters(), lr=0.1), objective) == ([], "")


def test_weights_of_the_model_that_no_optimizer_holds_are_told_as_such_alone():
    model = student()
    categories, text = told_in(model, torch.optim.SGD(model[2].parameters(), lr=0.1), hard_targets)
    assert categories == [WeightsNotTrained]
    assert "the optimizer does not hold 0.weight, 0.bias" in text


@pytest.mark.parametrize("by_data", [False, True])
def test_a_weight_of_the_loss_that_the_body_trains_is_not_told(by_data):
    model, scale = student(), nn.Parameter(torch.tensor(2.0))

    def body(epoch):
        with torch.no_grad():
            (scale.data if by_data else scale).sub_(0.1 * scale.grad)

    train(Progress(model, adam(model)), 2, lambda o, b: hard_targets(o / scale, b), body)  # a warning is an error


@pytest.mark.parametrize("hinted", [False, True])
def test_the_weights_of_replicas_are_their_own(hinted):
    model, hint = Replicas([student(), student(name="other")]), nn.Linear(3, 3)

    def objective(outputs, batch):
        return torch.vmap(cross_entropy)(torch.vmap(hint)(outputs) if hinted else outputs, batch.labels)

    batches = side_by_side([Batches(EXAMPLES, 8, seed) for seed in (0, 1)])
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert [*epochs(progress, batches, objective, count=1, seed=[0, 1])] == [1]
    assert [each.category for each in told] == [WeightsNotTrained] * hinted


def test_a_loss_of_very_many_operations_is_looked_at_in_part():
    """Torch crashes when it frees a long chain that Python has seen."""
    model, (_, objective) = student(), with_hint()

    def long(outputs, batch):
        loss = objective(outputs * 1.0, batch)
        for _ in range(60_000):
            loss = loss + 0.0
        return loss

    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(progress, 1, long, batches=Batches(EXAMPLES, 24, 0))
    assert told == []
