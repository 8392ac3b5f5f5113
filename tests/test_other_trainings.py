"""A checkpoint of another training is told: other first weights, settings of members and extras, order of weights."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError, NonFiniteLoss
from kdlib.losses import soft_target_kl
from kdlib.networks import keras_glorot_
from kdlib.ownership import OtherStart
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.training import Progress, epochs, hard_targets, predict_logits
from tests.made_runs import Killed

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


# ---- whose a checkpoint is


def test_other_first_weights_are_told(tmp_path):
    first = student()
    train(Progress(first, adam(first), checkpoint=tmp_path / "c"))
    again = student()
    Progress(again, adam(again), checkpoint=tmp_path / "c")  # the same: nothing to tell
    other = student(name="pretrained")
    with pytest.warns(OtherStart, match="not those that the training of the checkpoint began with; .* after epoch 2"):
        Progress(other, adam(other), checkpoint=tmp_path / "c")
    assert same(first.state_dict(), other.state_dict())


def test_other_settings_of_replicas_are_refused(tmp_path):
    def stack(slope):
        model = Replicas([student(nn.LeakyReLU(slope), name=str(seed)) for seed in (0, 1)])
        progress = Progress(model, adam(model), checkpoint=tmp_path / "c")
        batches = side_by_side([Batches(EXAMPLES, 8, seed) for seed in (0, 1)])
        for _ in epochs(
            progress, batches, lambda o, b: torch.vmap(nn.functional.cross_entropy)(o, b.labels), count=1, seed=(0, 1)
        ):
            pass

    stack(0.1)
    stack(0.1)
    with pytest.raises(KDError, match=r"members/1\.negative_slope: the checkpoint has '0.1', this training '0.5'"):
        stack(0.5)


def test_other_settings_of_an_extra_are_refused(tmp_path):
    def with_hint(rate):
        model, hint = student(), nn.Sequential(nn.Linear(3, 3), nn.Dropout(rate))
        return train(Progress(model, adam(model), checkpoint=tmp_path / "c", extras={"hint": hint}), 1)

    with_hint(0.0)
    with_hint(0.0)
    with pytest.raises(KDError, match=r"extras/hint/1\.p: the checkpoint has '0.0', this training '0.9'"):
        with_hint(0.9)


def test_an_optimizer_with_its_weights_in_another_order_goes_on(tmp_path):
    def deep():
        middle = nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
        return student(*middle)

    def ordered(model, order):
        parameters = [*model.parameters()]
        return torch.optim.Adam([parameters[number] for number in order], lr=0.05)

    whole, first, resumed = deep(), deep(), deep()
    train(Progress(whole, ordered(whole, range(8)), checkpoint=tmp_path / "whole"), 4)
    train(Progress(first, ordered(first, range(8)), checkpoint=tmp_path / "c"), 2)
    order = [4, 5, 2, 3, 7, 6, 1, 0]  # as that of a set is another one in each process
    train(Progress(resumed, ordered(resumed, order), checkpoint=tmp_path / "c"), 3)
    again = deep()
    train(Progress(again, ordered(again, range(8)), checkpoint=tmp_path / "c"), 4)
    assert same(whole.state_dict(), again.state_dict())


def test_an_optimizer_of_other_weights_is_refused(tmp_path):
    model = student(nn.Linear(8, 8), nn.Linear(8, 8))
    model.requires_grad_(False)
    model[3].requires_grad_(True)

    def of_layer(number):
        optimizer = torch.optim.Adam([*model[number].parameters(), *model[3].parameters()])
        return Progress(model, optimizer, checkpoint=tmp_path / "c")

    train(of_layer(2))
    with pytest.raises(KDError, match=r"weights\.group 0: the checkpoint has \['2.bias', '2.weight'\], .* \['1.bias"):
        of_layer(1)


# ---- what goes on as it was


def test_a_student_within_data_parallel_is_in_training_mode(tmp_path):
    plain, inner = student(nn.BatchNorm1d(8)), student(nn.BatchNorm1d(8))
    for model in (plain, inner):
        model.eval()  # its accuracy was measured before
    train(Progress(plain, adam(plain)), 2)
    wrapped = nn.DataParallel(inner)
    assert wrapped.training
    assert not inner.training
    train(Progress(wrapped, adam(inner)), 2)
    assert inner[1].num_batches_tracked == 2 * STEPS
    assert same(plain.state_dict(), inner.state_dict())


@pytest.mark.parametrize("kill", [False, True])
def test_a_batch_norm_that_is_frozen_in_the_body_remains_so(tmp_path, kill):
    def run(count):
        model = student(nn.BatchNorm1d(8))

        def body(epoch):
            if epoch == 2:
                model[1].eval()

        train(Progress(model, adam(model), checkpoint=tmp_path / "c"), count, body=body)
        return model

    if kill:
        run(2)
    assert run(4)[1].num_batches_tracked == 2 * STEPS


def test_a_batch_norm_that_is_frozen_in_one_of_two_trainings_is_told(tmp_path):
    def run(frozen):
        model = student(nn.BatchNorm1d(8))
        progress = Progress(model, adam(model), checkpoint=tmp_path / "c")
        model[1].train(not frozen)
        train(progress, 1)

    run(True)
    run(True)
    with pytest.raises(KDError, match=r"frozen: the checkpoint has \['1'\], this training \[\]"):
        run(False)


def test_an_average_that_the_batches_update_goes_on(tmp_path):
    def run(name, kill_at=0):
        model, calls = student(), []
        average = AveragedModel(model)

        def batches(epoch):
            for batch in BATCHES(epoch):
                average.update_parameters(model)
                yield batch

        def loss(outputs, batch):
            calls.append(batch)
            if len(calls) == kill_at:
                raise Killed
            return hard_targets(outputs, batch)

        progress = Progress(
            model, adam(model), checkpoint=tmp_path / name, extras={"average": average}, on_step=Progress.save
        )
        train(progress, 2, objective=loss, batches=batches)
        return average

    whole = run("whole")
    with pytest.raises(Killed):
        run("c", kill_at=STEPS + 3)  # after two steps of the second epoch
    resumed = run("c")
    assert resumed.n_averaged == whole.n_averaged == 2 * STEPS
    assert same(whole.state_dict(), resumed.state_dict())


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


def test_buffers_that_no_state_dict_has_go_on(tmp_path):
    def run(name, count):
        model = keras_glorot_(Centred(), generator(0, "weights"))
        return train(Progress(model, adam(model), checkpoint=tmp_path / name), count).model

    whole = run("whole", 4)
    run("c", 2)
    resumed = run("c", 4)
    assert whole.centre.any()
    assert torch.equal(whole.centre, resumed.centre)
    assert same(whole.state_dict(), resumed.state_dict())


# ---- what could not be loaded again


class HidesItsTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher, self.dense = nn.Linear(4, 3), nn.Linear(4, 3)
        self.register_state_dict_post_hook(self.hide)

    @staticmethod
    def hide(module, state, prefix, metadata):
        del state[f"{prefix}teacher.weight"]

    def forward(self, x):
        return self.dense(x)


def test_a_network_that_cannot_load_its_own_state_is_refused(tmp_path):
    told = r"can load its own state_dict, found RuntimeError \(.*teacher\.weight.*train without a checkpoint"
    model = HidesItsTeacher()
    with pytest.raises(KDError, match=told):
        Progress(model, adam(model), checkpoint=tmp_path / "c")
    assert not [*tmp_path.iterdir()]
    progress = train(Progress(model, adam(model)), 1)
    with pytest.raises(KDError, match="copy the weights yourself"):
        progress.keep("best")  # not after the whole training


def test_an_extra_that_cannot_load_its_own_state_is_refused(tmp_path):
    model = student()
    told = r"an extra 'hint' that can load its own state_dict, found RuntimeError \(.*teacher\.weight"
    with pytest.raises(KDError, match=told):
        Progress(model, adam(model), checkpoint=tmp_path / "c", extras={"hint": HidesItsTeacher()})


def test_layers_that_come_in_the_body_are_refused_at_once(tmp_path):
    model = student()
    progress = Progress(model, adam(model), checkpoint=tmp_path / "c")
    with pytest.raises(KDError, match=r"found 3 that have come or gone, such as 0\.param.*Change layers before"):
        train(progress, body=lambda epoch: nn.utils.parametrizations.weight_norm(model[0]))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError(), OSError(24, "Too many open files")],
)
def test_a_checkpoint_that_cannot_be_taken_just_now_is_not_called_wrong(tmp_path, monkeypatch, error):
    model = student()
    train(Progress(model, adam(model), checkpoint=tmp_path / "c"))
    before = (tmp_path / "c").read_bytes()
    again, loads = student(), []
    load = again.load_state_dict

    def fails(state):
        loads.append(state)
        if len(loads) > 1:  # the first one is of its own state
            raise error
        return load(state)

    monkeypatch.setattr(again, "load_state_dict", fails)
    with pytest.raises(KDError, match=r"c: cannot be read \(.*\)\. Nothing was changed: mend this, then run"):
        Progress(again, adam(again), checkpoint=tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before


# ---- learning rates


def test_a_scheduler_that_a_rate_would_silence_is_refused():
    model = student()
    optimizer = adam(model)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    with pytest.raises(KDError, match=r"expected `rate` or a scheduler, found StepLR; leave `rate` out, or delete"):
        train(Progress(model, optimizer), rate=lambda epoch: 0.1)
    assert scheduler.last_epoch == 0
    del scheduler
    assert train(Progress(model, optimizer), rate=lambda epoch: 0.1).epoch == 2  # of a loop before, say


def test_groups_that_differ_after_progress_are_not_levelled():
    model = student()
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in (model[0], model[2])], lr=0.1)
    progress = Progress(model, optimizer)
    optimizer.param_groups[1]["lr"] = 0.001
    with pytest.raises(KDError, match=r"expected groups of one learning rate .*\[0.1, 0.001\]"):
        train(progress, rate=lambda epoch: 0.1)


class Halving:
    """A scheduler that is not of a class of torch's."""

    def __init__(self, optimizer):
        self.optimizer, self.done = optimizer, 0
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def step(self):
        self.done += 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] / 2**self.done

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def test_a_scheduler_of_another_library_goes_on(tmp_path):
    def run(name, count, given=True):
        model = student()
        optimizer = adam(model)
        scheduler = Halving(optimizer)
        extras = {"scheduler": scheduler} if given else {}
        progress = Progress(model, optimizer, checkpoint=tmp_path / name, extras=extras)
        train(progress, count, body=lambda epoch: scheduler.step())
        return model

    whole = run("whole", 3)
    run("c", 1)
    assert same(whole.state_dict(), run("c", 3).state_dict())
    with pytest.raises(KDError, match=r"Progress does not have Halving; name each of them in Progress"):
        run("d", 1, given=False)


def test_an_optimizer_whose_scheduler_is_gone_trains_another_loop(tmp_path):
    model = student()
    optimizer = adam(model)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    train(Progress(model, optimizer, checkpoint=tmp_path / "a", extras={"scheduler": scheduler}), 1)
    del scheduler
    gc.collect()
    assert train(Progress(model, optimizer, checkpoint=tmp_path / "b"), 1).epoch == 1


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_student_goes_on(tmp_path):
    def run(count):
        model = torch.jit.script(student())
        return train(Progress(model, adam(model), checkpoint=tmp_path / "c"), count)

    run(1)
    assert run(2).epoch == 2


def test_logits_that_are_probabilities_are_told():
    model = nn.Sequential(student(), nn.Softmax(1))
    with pytest.warns(UserWarning, match="distributions: every row is from 0 to 1"):
        predict_logits(model, INPUTS)
