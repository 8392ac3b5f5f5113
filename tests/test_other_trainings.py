"""A checkpoint of another training is told, and what no script could go on from is refused at once."""

import pytest
import torch
from torch import nn

from kdlib.batches import Batches
from kdlib.errors import KDError
from kdlib.networks import keras_glorot_
from kdlib.ownership import OtherStart
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.training import Progress, epochs
from tests.small_trainings import EXAMPLES, Centred, adam, same, student, train

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
        model, hint = student(), keras_glorot_(nn.Sequential(nn.Linear(3, 3), nn.Dropout(rate)), generator(0, "hint"))
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


def test_other_first_weights_and_shapes_of_extras_are_told(tmp_path):
    def with_heat(start, width=1):
        model, heat = student(), nn.ParameterList([torch.full((width,), start)])
        optimizer = torch.optim.Adam([*model.parameters(), *heat.parameters()])
        return Progress(model, optimizer, checkpoint=tmp_path / "c", extras={"heat": heat})

    first = with_heat(1.0)
    train(first, objective=lambda o, b: nn.functional.cross_entropy(o / first.extras["heat"][0], b.labels))
    with_heat(1.0)
    with pytest.warns(OtherStart, match="of this network, or of the extras, are not those that the training"):
        with_heat(8.0)
    with pytest.raises(KDError, match=r"extras\.heat\.0: the checkpoint has 'float32 \(1,\)', this .* \(2,\)'"):
        with_heat(1.0, width=2)


def test_other_first_buffers_that_no_state_dict_has_are_told(tmp_path):
    def centred(value):
        model = keras_glorot_(Centred(), generator(0, "weights"))
        model.centre += value
        return Progress(model, adam(model), checkpoint=tmp_path / "c")

    train(centred(0.0))
    centred(0.0)
    with pytest.warns(OtherStart):
        centred(5.0)


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


@pytest.mark.parametrize("layer", ["another class", "the same class"])
def test_a_layer_that_is_replaced_in_the_body_is_refused_at_once(tmp_path, layer):
    model = student(nn.Linear(8, 8), nn.Dropout(0.1))

    def body(epoch):
        if layer == "another class":
            model[2] = nn.Identity()
        else:
            model[1] = nn.Linear(8, 8)

    told = "found another 2; a new network" if layer == "another class" else "have come, gone or been replaced"
    with pytest.raises(KDError, match=told):
        train(Progress(model, adam(model), checkpoint=tmp_path / "c"), body=body)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("way", ["come", "go"])
def test_weights_that_come_or_go_in_a_group_are_refused_at_once(tmp_path, way):
    model = student()
    model[2].requires_grad_(way == "go")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def body(epoch):
        if way == "come":
            optimizer.param_groups[0]["params"].extend(model[2].parameters())
        else:
            del optimizer.param_groups[0]["params"][2:]

    with pytest.raises(KDError, match=r"same weights as at the beginning .* requires_grad_"):
        train(Progress(model, optimizer, checkpoint=tmp_path / "c"), body=body)
