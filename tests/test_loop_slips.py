"""Losses, inputs and members of Replicas that are nearly right: told, or right."""

import copy
import functools
import gc
import itertools
import random
from dataclasses import replace
from random import random as draw_of_python

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from numpy.random import rand
from torch import nn

from kdlib.batches import Batch, Batches, Examples
from kdlib.copies import CopyNotSaved
from kdlib.errors import KDError, NonFiniteLoss
from kdlib.held import GeneratorNotSaved, StateNotSaved, TeacherInTraining
from kdlib.losses import soft_target_kl
from kdlib.networks import keras_glorot_
from kdlib.replicas import Replicas
from kdlib.seeds import derive_seed, generator
from kdlib.training import Progress, epochs, hard_targets, predict_logits
from tests.small_trainings import BATCHES, EXAMPLES, INPUTS, STEPS, adam, same, state_of, student, train

# ---- losses


def test_a_loss_of_the_teachers_weights_is_refused():
    model, teacher = student(), student(name="teacher")
    with pytest.raises(KDError, match=r"none of them has a gradient; .* the order of its arguments"):
        train(Progress(model, adam(model)), objective=lambda o, b: soft_target_kl(teacher(b.inputs), o.detach(), 4.0))
    with pytest.raises(KDError, match=r"expected a loss of real numbers, found torch\.complex64"):
        train(Progress(model, adam(model)), objective=lambda o, b: o.mean() + 1j)


def test_inputs_of_several_parts_are_looked_at():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(4, 3)

        def forward(self, parts):
            return self.dense(parts["x"])

    broken = INPUTS.clone()
    broken[17, 2] = float("nan")
    model = Named()

    def batches(epoch):
        for batch in BATCHES(epoch):
            yield replace(batch, inputs={"x": broken[batch.indices]})

    with pytest.raises(NonFiniteLoss, match=r"the batch's inputs have nan at \[\d, 2\], so correct the data"):
        train(Progress(model, adam(model)), batches=batches)


# ---- replicas


class KeepsFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        self.features = self.inner(x)
        return self.head(self.features)


def test_members_that_keep_a_tensor_in_forward_can_be_taken_out():
    members = [keras_glorot_(KeepsFeatures(), generator(seed, "weights")) for seed in (0, 1)]
    model = Replicas(members)
    expected = [member(INPUTS) for member in members]
    outputs = model(torch.stack([INPUTS, INPUTS]))
    for number in (0, 1):
        torch.testing.assert_close(outputs[number], expected[number])
        torch.testing.assert_close(model.member(number)(INPUTS), expected[number])


def hooked(kind):
    model = student()
    if kind == "weight":
        model[0].weight.register_hook(lambda gradient: gradient * 0)
    else:
        model[0].register_full_backward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("kind", ["weight", "module"])
def test_hooks_on_gradients_are_refused_in_replicas(kind):
    with pytest.raises(KDError, match="found hooks on gradients in Linear '0'; remove them, or train the members"):
        Replicas([hooked(kind), hooked(kind)])


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([nn.LazyLinear(3), nn.LazyLinear(3)], "found the lazy weight; call each member once"),
        ([nn.DataParallel(nn.Linear(4, 3))], "found one within DataParallel; leave the wrapper out"),
        ([nn.Sequential(nn.Embedding(4, 3, sparse=True))], "sparse gradients in Embedding '0'; leave out sparse=True"),
        ((nn.Linear(4, 3) for _ in "ab"), "members: expected Sequence or ModuleList, found generator"),
        ([nn.Linear(4, 3).state_dict()], "members: expected Module, found OrderedDict; give the networks"),
    ],
    ids=["lazy", "wrapped", "sparse", "generator", "states"],
)
def test_members_that_are_no_plain_networks_are_told(members, told):
    with pytest.raises(KDError, match=told):
        Replicas(members)


def test_logits_that_are_probabilities_are_told():
    model = nn.Sequential(student(), nn.Softmax(1))
    with pytest.warns(UserWarning, match="distributions: every row is from 0 to 1"):
        predict_logits(model, INPUTS)


def test_inputs_of_numpy_are_in_the_networks_type():
    inputs = INPUTS.double().numpy()
    torch.testing.assert_close(predict_logits(student(), inputs), predict_logits(student(), INPUTS))


def test_batches_with_a_text_about_them_are_trained():
    class Own:
        about = identity = "my batches"

        def __call__(self, epoch):
            return BATCHES(epoch)

    model = student()
    assert train(Progress(model, adam(model), traced=True), batches=Own()).epoch == 2


@pytest.mark.parametrize("epoch_of_it", [2, 3])
def test_a_gradient_that_is_not_finite_replaces_no_checkpoint(tmp_path, epoch_of_it):
    """The loss of that step is finite, and so may all others of the epoch be."""

    def run(breaks):
        network = student()
        progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
        steps = [progress.epoch * STEPS]

        def objective(outputs, batch):
            steps[0] += 1
            loss = hard_targets(outputs, batch)
            if breaks[0] and steps[0] == epoch_of_it * STEPS:
                loss = loss + torch.sqrt(outputs[0, 0] * 0)  # its gradient is 0 / 0
            return loss

        train(progress, 3, objective)
        return network

    with pytest.raises(NonFiniteLoss, match=f"expected finite weights after epoch {epoch_of_it}, found NaN"):
        run([True])
    goes_on = run([False])  # in a list: a flag is told
    assert all(bool(value.isfinite().all()) for value in goes_on.parameters())
    whole = student()
    train(Progress(whole, adam(whole)), 3)
    assert same(goes_on.state_dict(), whole.state_dict())


def test_features_with_a_gradient_are_data():
    """Of an encoder that was called without `no_grad`; its graph would be gone after the first step."""
    torch.manual_seed(0)
    features = nn.Linear(4, 4)(INPUTS)
    assert features.requires_grad
    for inputs in (features, INPUTS.clone().requires_grad_(), nn.Parameter(INPUTS.clone())):
        network = student()
        train(Progress(network, adam(network)), 2, batches=Batches(Examples(inputs, EXAMPLES.labels), 8, 0))
        expected = student()
        plain = Batches(Examples(inputs.detach().clone(), EXAMPLES.labels), 8, 0)
        train(Progress(expected, adam(expected)), 2, batches=plain)
        assert same(network.state_dict(), expected.state_dict())


class Averaged:
    """An average of the weights as many write it, with a copy of the network."""

    def __init__(self, network):
        self.copy = copy.deepcopy(network).requires_grad_(False)

    def update(self, network):
        for own, other in zip(self.copy.parameters(), network.parameters(), strict=True):
            own.lerp_(other, 0.1)

    def state_dict(self):
        return self.copy.state_dict()

    def load_state_dict(self, state):
        self.copy.load_state_dict(state)


@pytest.mark.parametrize("average", [torch.optim.swa_utils.AveragedModel, Averaged])
@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize("is_updated", [True, False])
def test_an_average_that_no_checkpoint_holds_is_told(tmp_path, monkeypatch, recwarn, average, is_saved, is_updated):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network, other, teacher = student(), student(), student(name="teacher")
    averaged = average(network)
    extras = {"average": averaged} if is_saved else {}
    progress = Progress(network, adam(network), checkpoint=tmp_path / "c", extras=extras)
    peer = epochs(Progress(other, adam(other), checkpoint=tmp_path / "other"), BATCHES, hard_targets, count=4, seed=0)

    def body(epoch):
        next(peer)  # it has a checkpoint of its own
        if is_updated:
            averaged.update(network) if average is Averaged else averaged.update_parameters(network)

    train(progress, 4, lambda o, b: soft_target_kl(o, predict_logits(teacher, b.inputs), 2.0), body)
    told = [str(each.message) for each in recwarn if each.category is CopyNotSaved]
    assert bool(told) == (is_updated and not is_saved)
    assert all(
        "a copy of the network (an average of its weights, or older ones) that its checkpoint" in t for t in told
    )


class Shadow:
    """An average of the weights in a map or a list of tensors, as it is found in many programs."""

    def __init__(self, network, keys="names", in_place=True):
        self.network, self.in_place = network, in_place
        pairs = [*network.named_parameters()]
        if keys == "buffers":
            pairs = [*network.state_dict().items(), ("steps", torch.tensor(0))]
        values = [value.detach().clone() for _, value in pairs]
        self.shadow = dict(zip([name for name, _ in pairs], values, strict=True))
        if keys in ("numbers", "list"):
            self.shadow = values if keys == "list" else dict(enumerate(values))

    def update(self):
        for (name, value), number in zip(self.network.named_parameters(), itertools.count(), strict=False):
            key = name if name in self.shadow else number
            average = 0.9 * self.shadow[key] + 0.1 * value.detach()
            if self.in_place:
                self.shadow[key].copy_(average)
            else:
                self.shadow[key] = average

    def state_dict(self):
        return {"shadow": [*(self.shadow if isinstance(self.shadow, list) else self.shadow.values())]}

    def load_state_dict(self, state):
        for own, stored in zip(self.shadow, state["shadow"], strict=True):
            self.shadow[own] = stored


def told_of_copies(recwarn):
    return sum(each.category is CopyNotSaved for each in recwarn)


@pytest.mark.parametrize(
    ("keys", "in_place"), [("names", False), ("numbers", True), ("list", True), ("list", False), ("buffers", False)]
)
def test_an_average_in_a_map_or_a_list_of_tensors_is_told(tmp_path, monkeypatch, recwarn, keys, in_place):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network = student()
    average = Shadow(network, keys, in_place)
    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 4, body=lambda epoch: average.update())
    assert told_of_copies(recwarn) == 1


def test_an_average_that_begins_late_or_has_another_type_is_told(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network, late, made = student().to(torch.bfloat16), Examples(INPUTS.bfloat16(), EXAMPLES.labels), []

    def body(epoch):
        if epoch >= 3:
            made.append(made[-1] if made else copy.deepcopy(network).float())
            for own, value in zip(made[0].parameters(), network.parameters(), strict=True):
                own.data.lerp_(value.data.float(), 0.1)

    progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
    train(progress, 6, batches=Batches(late, 8, 0), body=body)
    assert told_of_copies(recwarn) == 1


def test_an_average_in_a_map_that_an_extra_saves_is_not_told(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network = student()
    average = Shadow(network)
    progress = Progress(network, adam(network), checkpoint=tmp_path / "c", extras={"average": average})
    train(progress, 4, body=lambda epoch: average.update())
    assert told_of_copies(recwarn) == 0


def test_other_maps_and_lists_of_a_training_are_not_told(tmp_path, monkeypatch, recwarn):
    """Gradients, views of the weights, the best weights, and those of the last epoch, each in a new map."""
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network, first = student(), student()
    progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
    gradients = [torch.zeros_like(value) for value in network.parameters()]
    by_name = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    views, weights = dict(network.named_parameters()), [value.detach() for value in network.parameters()]
    unchanged = {name: value.clone() for name, value in first.state_dict().items()}
    kept = {}

    def body(epoch):
        kept["before"] = {name: value.clone() for name, value in network.state_dict().items()}
        kept["best"] = copy.deepcopy(network.state_dict())
        progress.keep("best")
        for own, value in zip(gradients, network.parameters(), strict=True):
            own.copy_(value.grad)
        for name, value in network.named_parameters():
            by_name[name] = value.grad.clone()

    train(progress, 4, body=body)
    assert told_of_copies(recwarn) == 0
    assert (len(views), len(weights)) == (len([*network.parameters()]),) * 2
    assert same(unchanged, first.state_dict())


class Best:
    """The weights of epoch 1, as variables of a training function that keeps its best ones hold them."""

    def __init__(self, network, kind):
        self.network, self.kind, self.held = network, kind, None

    def body(self, epoch):
        if epoch == 1:
            self.held = copy.deepcopy(self.network if self.kind == "network" else self.network.state_dict())
            if self.kind == "list":
                self.held = [*self.held.values()]
        elif self.kind == "snapshots":
            self.held = [self.held, copy.deepcopy(self.network.state_dict())]

    def state_dict(self):
        return {"held": [*(self.held or self.network.state_dict()).values()]}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("kind", ["map", "list", "network", "snapshots"])
def test_best_weights_in_a_variable_are_told(tmp_path, monkeypatch, recwarn, kind):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network = student()
    best = Best(network, kind)
    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 2, body=best.body)
    assert [str(each.message).count('write progress.keep("best") instead') for each in recwarn] == [1]


def test_best_weights_are_told_although_the_body_changes_the_network_after_it(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network = student()
    best = Best(network, "map")

    def body(epoch):
        best.body(epoch)
        with torch.no_grad():
            network[0].weight.mul_(0.99)

    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 2, body=body)
    assert told_of_copies(recwarn) == 1


def test_best_weights_that_a_checkpoint_holds_are_not_told(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network = student()
    best = Best(network, "map")
    progress = Progress(network, adam(network), checkpoint=tmp_path / "saved", extras={"best": best})
    train(progress, 3, body=best.body)
    network = student()
    best = Best(network, "map")
    progress = Progress(network, adam(network), checkpoint=tmp_path / "kept")

    def body(epoch):
        best.body(epoch)
        if epoch == 1:
            progress.keep("best")

    train(progress, 3, body=body)
    network = student()
    for number in (0, 2):
        network[number].register_buffer("best", torch.zeros_like(network[number].weight))
        network[number].register_buffer("best_bias", torch.zeros_like(network[number].bias))
    held = {name: buffer for name, buffer in network.named_buffers()}

    def fill(epoch):
        for own, value in zip(held.values(), network.parameters(), strict=True):
            if epoch == 1:
                own.copy_(value.detach())

    train(Progress(network, adam(network), checkpoint=tmp_path / "buffers"), 3, body=fill)
    assert told_of_copies(recwarn) == 0


def test_weights_that_a_training_makes_again_are_not_told(tmp_path, monkeypatch, recwarn):
    """The first and the last ones, those of an equal training, and replaced networks that are in cycles."""
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    others, network = {}, student()
    training = Progress(network, adam(network))

    def rate(epoch):  # epoch 1 ends with the first weights, those from epoch 4 on with the weights of epoch 3
        return 0.05 if epoch in (2, 3) else 0.0

    train(training, 5, body=lambda epoch: others.update({epoch: state_of(network)}), rate=rate)
    network = student()
    held = {"first": copy.deepcopy(network.state_dict()), "first network": copy.deepcopy(network)}
    kept = {}  # that neither the objective nor the batches read

    def batches(epoch):
        held["before"] = copy.deepcopy(network.state_dict())
        yield from BATCHES(epoch)

    def body(epoch):
        if epoch == 3:
            held["last"] = state_of(network)
        kept["now"] = copy.deepcopy(network)
        kept["now"].itself = [kept["now"]]  # only the collector frees it

    gc.disable()
    try:
        train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 6, body=body, batches=batches, rate=rate)
    finally:
        gc.enable()
    assert same(others[5], training.network.state_dict())
    assert told_of_copies(recwarn) == 0


def test_a_weight_that_excludes_something_by_minus_infinity_is_trained():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = student(), student(name="other")
            self.mix = nn.Parameter(torch.tensor([0.0, -torch.inf, 0.3]))

        def forward(self, inputs):
            shares = self.mix.softmax(0)
            return shares[0] * self.first(inputs) + shares[2] * self.second(inputs)

    network = Mixes()
    train(Progress(network, torch.optim.SGD(network.parameters(), lr=0.1)), 2)
    assert network.mix.isfinite().tolist() == [True, False, True]


def pruned(copy):
    nn.utils.prune.l1_unstructured(copy[0], "weight", 0.5)


def emptied(copy):
    copy[0] = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [
        lambda copy: copy.half(),
        lambda copy: copy[0].weight.data.fill_(torch.nan),
        lambda copy: copy.to_empty(device="meta"),
        pruned,
        emptied,
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_copies_that_are_something_else_end_no_training(tmp_path, monkeypatch, change, first):
    monkeypatch.setattr("kdlib.copies.LEAST_SECONDS", 0)
    network, other = student(), student()
    half_made = nn.Sequential.__new__(nn.Sequential)
    if first:
        change(other)
    train(
        Progress(network, adam(network), checkpoint=tmp_path / "c"),
        4,
        body=lambda epoch: None if first or epoch != 3 else change(other),
    )
    assert half_made is not None


GENERATORS = {
    "torch": (lambda: torch.Generator().manual_seed(5), lambda draws: float(torch.rand((), generator=draws))),
    "NumPy": (lambda: np.random.default_rng(5), lambda draws: draws.random()),
    "older NumPy": (lambda: np.random.RandomState(5), lambda draws: draws.rand()),
    "Python": (lambda: random.Random(5), lambda draws: draws.random()),
}
OF_MODULE = random.Random(5)


class Noisy:
    def __init__(self, draws, draw):
        self.draws, self.draw = draws, draw

    def __call__(self, outputs, batch):
        return hard_targets(outputs, batch) * (1 + self.draw(self.draws))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def in_closure(draws, draw):
    return lambda outputs, batch: hard_targets(outputs, batch) * (1 + draw(draws))


def in_function_of_closure(draws, draw):
    objective = in_closure(draws, draw)
    return lambda outputs, batch: objective(outputs, batch)


def in_partial(draws, draw):
    return functools.partial(lambda draws, outputs, batch: hard_targets(outputs, batch) * (1 + draw(draws)), draws)


def told_of_generators(recwarn):
    return sum(each.category is GeneratorNotSaved for each in recwarn)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("holder", [in_closure, in_function_of_closure, in_partial, Noisy])
def test_a_generator_of_the_objective_that_no_checkpoint_holds_is_told_once(tmp_path, recwarn, kind, holder):
    make, draw = GENERATORS[kind]
    network = student()
    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 3, holder(make(), draw))
    assert told_of_generators(recwarn) == 1


def test_one_that_is_seeded_anew_in_each_epoch_loses_nothing(tmp_path):
    """Such a generator does not know its seed, so that it is told; the warning says what holds for it."""
    network, draws = student(), random.Random()

    def batches(epoch):
        draws.seed(epoch)
        return BATCHES(epoch)

    progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
    with pytest.warns(GeneratorNotSaved, match="one that is seeded anew in each epoch loses nothing"):
        train(progress, 2, lambda outputs, batch: hard_targets(outputs, batch) * (1 + draws.random()), batches=batches)


class Jitter:
    """A transform with a generator, as those for pictures have."""

    def __init__(self):
        self.draws = np.random.default_rng(5)

    def __call__(self, x):
        return x + self.draws.random()


class Transformed(torch.utils.data.Dataset):
    def __init__(self, transforms):
        self.transforms = transforms

    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, row):
        x = EXAMPLES.inputs[row]
        for each in self.transforms:
            x = each(x)
        return row, x, EXAMPLES.labels[row]


@pytest.mark.parametrize("within", [lambda data: data, lambda data: torch.utils.data.Subset(data, range(16))])
def test_a_generator_in_a_transform_of_a_data_set_is_told(tmp_path, recwarn, within):
    network, loader = student(), torch.utils.data.DataLoader(within(Transformed([Jitter()])), 8)

    def batches(epoch):
        for rows, inputs, labels in loader:
            yield Batch(inputs, labels, rows)

    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 3, batches=batches)
    assert told_of_generators(recwarn) == 1


class Annealed(nn.Module):
    """A loss with a state of its own."""

    def __init__(self, step=1):
        super().__init__()
        self.step = step
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, outputs, batch):
        self.steps += self.step
        return hard_targets(outputs, batch) * (1 + self.steps / 12)


class Counted:
    """The same without a module."""

    def __init__(self):
        self.steps = 0

    def __call__(self, outputs, batch):
        self.steps += 1
        return hard_targets(outputs, batch) * (1 + self.steps / 12)

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@pytest.mark.parametrize("make", [Annealed, Counted])
def test_a_loss_with_a_state_that_no_checkpoint_holds_is_told(tmp_path, make):
    network, loss = student(), make()
    with pytest.warns(StateNotSaved, match=f"hold a {make.__name__} that changes .* Name it in"):
        train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 3, lambda *given: loss(*given))
    # No warning, which would fail: one that is saved, one that remains as it is, and a training that is not saved.
    network, loss = student(), make()
    train(Progress(network, adam(network), checkpoint=tmp_path / "d", extras={"loss": loss}), 3, loss)
    network, loss = student(), make()
    train(Progress(network, adam(network)), 3, loss)
    network = student()
    train(Progress(network, adam(network), checkpoint=tmp_path / "e"), 3, Annealed(step=0))


TEACHERS = {
    "dropout": lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
}


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("of_batches", [True, False])
def test_a_teacher_in_training_mode_is_told_when_it_is_called(teacher, of_batches):
    made = TEACHERS[teacher]().requires_grad_(False)

    def training(called=lambda inputs: made(inputs), **rest):
        def batches(epoch):
            for batch in BATCHES(epoch):
                yield replace(batch, soft=called(batch.inputs)) if of_batches else batch

        def objective(outputs, batch):
            return soft_target_kl(outputs, batch.soft if of_batches else called(batch.inputs), 2.0)

        network = student()
        train(Progress(network, adam(network), **rest), 2, objective, batches=batches)

    with pytest.warns(TeacherInTraining, match="of a network that does not learn is called in training mode") as told:
        training()
    assert len(told) == 1
    assert not made._forward_pre_hooks
    # No warning, which would fail.
    training(lambda inputs: predict_logits(made, inputs))
    training(lambda inputs: made.eval()(inputs))
    made.train()
    training(extras={"teacher": made})
    training(lambda inputs: INPUTS[: len(inputs), :3])


class Loss(nn.Module):
    """A loss with a teacher, and a layer that learns."""

    def __init__(self, call=lambda teacher, inputs: teacher(inputs)):
        super().__init__()
        self.teacher, self.layer, self.call = TEACHERS["dropout"]().requires_grad_(False), nn.Linear(3, 3), call

    def forward(self, outputs, batch):
        return soft_target_kl(self.layer(outputs), self.call(self.teacher, batch.inputs), 2.0)


class Distiller(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.student, self.teacher = network, TEACHERS["batch norm"]().requires_grad_(False).eval()

    def loss(self, outputs, batch):
        return soft_target_kl(outputs, self.teacher(batch.inputs), 2.0)


class NotBegun(nn.Module):
    def __init__(self):  # without that of nn.Module
        pass

    def __call__(self, outputs, batch):
        return hard_targets(outputs, batch)


class OfClass:
    teacher = TEACHERS["dropout"]().requires_grad_(False)

    def __call__(self, outputs, batch):
        return soft_target_kl(outputs, self.targets(batch), 2.0)

    def targets(self, batch):
        return self.teacher(batch.inputs)


class OfSlots:
    __slots__ = ("teacher",)

    def __init__(self):
        self.teacher = TEACHERS["dropout"]().requires_grad_(False)

    def __call__(self, outputs, batch):
        return soft_target_kl(outputs, self.teacher(batch.inputs), 2.0)


def with_parts():
    teacher = TEACHERS["dropout"]().requires_grad_(False)
    return lambda outputs, batch: soft_target_kl(outputs, teacher[1:](teacher[0](batch.inputs)), 2.0)


def one_by_one():
    teachers = nn.ModuleList([TEACHERS["dropout"]().requires_grad_(False) for _ in range(2)])
    return lambda outputs, batch: soft_target_kl(outputs, sum(each(batch.inputs) for each in teachers), 2.0)


def of_chunks(outputs, batch):
    return soft_target_kl(outputs, torch.cat([OfClass.teacher(part) for part in batch.inputs.split(4)]), 2.0)


@pytest.mark.parametrize("make", [with_parts, one_by_one, OfClass, OfSlots, lambda: of_chunks, Loss])
def test_teachers_are_found_wherever_they_are(make):
    network, objective = student(), make()
    learns = objective.layer.parameters() if isinstance(objective, Loss) else []
    optimizer = torch.optim.SGD([*network.parameters(), *learns], lr=0.1)
    with pytest.warns(TeacherInTraining):
        train(Progress(network, optimizer), 1, objective)


def test_a_teacher_that_the_body_sets_to_training_mode_is_told():
    network, teacher = student(), TEACHERS["dropout"]().requires_grad_(False).eval()
    objective = functools.partial(lambda own, outputs, batch: soft_target_kl(outputs, own(batch.inputs), 2.0), teacher)
    told = pytest.warns(TeacherInTraining)
    with told:
        train(Progress(network, adam(network)), 2, objective, body=lambda epoch: teacher.train())


def test_other_networks_in_training_mode_are_not_told(tmp_path):  # a warning would fail
    network, objective = student(), Loss(predict_logits)
    optimizer = torch.optim.SGD([*network.parameters(), *objective.layer.parameters()], lr=0.1)
    train(Progress(network, optimizer), 2, objective)
    network, judge = student(), nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1), nn.Linear(4, 1))
    own = torch.optim.SGD(judge.parameters(), lr=0.1)

    def adversarial(outputs, batch):
        own.zero_grad()
        judge(outputs.detach()).mean().backward()
        own.step()
        return hard_targets(outputs, batch) - judge(outputs).mean()

    train(Progress(network, adam(network)), 2, adversarial)
    network = student()
    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), 2, Distiller(network).loss)
    network = student()
    train(Progress(network, adam(network), checkpoint=tmp_path / "d"), 2, NotBegun())
    network, lazy = student(), nn.Sequential(nn.LazyLinear(3), nn.Dropout(0.5)).eval()
    objective = functools.partial(lambda own, outputs, batch: hard_targets(outputs, batch) + 0 * len(own), lazy)
    train(Progress(network, adam(network), checkpoint=tmp_path / "e"), 2, objective)


def test_a_state_that_the_body_changes_is_told(tmp_path):
    network, loss = student(), Annealed(step=0)
    with pytest.warns(StateNotSaved):
        train(
            Progress(network, adam(network), checkpoint=tmp_path / "c"),
            4,
            loss,
            body=lambda epoch: loss.steps.add_(epoch > 1),
        )


def test_a_generator_of_a_module_and_one_of_the_batches_are_told(tmp_path, recwarn):
    network, draws = student(), np.random.default_rng(5)
    batches = Batches(EXAMPLES, 8, 0, augment=lambda epoch: lambda inputs: inputs + draws.random(), view="noise")
    train(Progress(network, adam(network), checkpoint=tmp_path / "c"), batches=batches)
    assert told_of_generators(recwarn) == 1
    network = student()
    by_module = Progress(network, adam(network), checkpoint=tmp_path / "other")
    train(by_module, 2, lambda outputs, batch: hard_targets(outputs, batch) * (1 + OF_MODULE.random()))
    assert told_of_generators(recwarn) == 2


def test_generators_that_a_stop_does_not_change_are_not_told(tmp_path, recwarn):
    made = np.random.default_rng(5), torch.Generator().manual_seed(5)
    noisy = Noisy(random.Random(5), lambda draws: draws.random())

    def objective(outputs, batch):  # of an extra, of the checkpoint itself, and one that only waits
        return noisy(outputs, batch) * (1 + rand() + draw_of_python()) + 0 * len(str(made[0]))

    def batches(epoch):
        made[1].manual_seed(derive_seed(0, "order", epoch))
        for batch in BATCHES(epoch):
            yield replace(batch, inputs=batch.inputs + torch.rand((), generator=made[1]))

    for place, extras in ((None, {}), (tmp_path / "c", {"noise": noisy})):
        network = student()
        train(Progress(network, adam(network), checkpoint=place, extras=extras), 2, objective, batches=batches)
    assert told_of_generators(recwarn) == 0
