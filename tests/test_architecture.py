"""Replicas refuse members that differ in more than tensors, keep what is frozen, and fail before a step."""

import dataclasses
import functools
import math
import operator
import re
import threading
import weakref
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.training import Progress, epochs

N, K, SEEDS = 12, 3, (0, 1)


class Member(nn.Module):
    """Attributes of many kinds that members must share, and two tensors that they need not."""

    draws = 1

    def __init__(self, **changed):
        super().__init__()
        self.layer, self.norm = nn.Linear(5, K), nn.BatchNorm1d(K)
        self.dropout = nn.Dropout(0.0)
        self.scale, self.sizes, self.options = 1.0, [1, 2], {"kind": {"a"}}
        self.activation = functools.partial(nn.functional.leaky_relu, negative_slope=0.1)
        self.function = lambda x, factor=2.0: x * factor
        self.constant, self.kept_out = torch.ones(2), [torch.zeros(1)]
        for name, value in changed.items():
            setattr(self, name, value)

    def forward(self, x, uniform=None):
        return self.norm(self.activation(self.layer(x)) * self.scale)


class Same(nn.Linear):
    pass


def made(factor):
    return lambda x: x * factor


CHANGES = {
    "scale": 2.0,
    "sizes": [1, 3],
    "options": {"kind": {"b"}},
    "activation": functools.partial(nn.functional.leaky_relu, negative_slope=0.2),
    "function": lambda x, factor=3.0: x * factor,
    "constant": torch.zeros(2),
    "kept_out": [torch.ones(1)],
    "draws": 2,
    "layer": Same(5, K),
    "norm": nn.BatchNorm1d(K, momentum=0.2),
    "dropout": nn.Dropout(0.5),
    "extra": 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_members_that_differ_in_anything_but_tensors_are_refused(name):
    with pytest.raises(KDError, match=rf"of one architecture.* found .*{name}.*in member 2"):
        Replicas([Member(), Member(), Member(**{name: CHANGES[name]})])


def changed(change):
    member = Member()
    change(member)
    return member


@pytest.mark.parametrize(
    "change",
    [
        lambda member: member.layer.weight.requires_grad_(False),
        lambda member: member.norm.eval(),
        lambda member: member.double(),
        lambda member: member.layer.register_forward_hook(lambda *_: None),
        lambda member: setattr(member.norm, "momentum", None),
        lambda member: setattr(member.norm, "weight", member.norm.bias),
    ],
    ids=["requires_grad", "mode", "type", "hook", "momentum", "tied"],
)
def test_members_that_were_changed_in_one_way_are_refused(change):
    with pytest.raises(KDError, match="of one architecture"):
        Replicas([Member(), changed(change)])
    Replicas([changed(change), changed(change)])


def test_functions_with_the_same_code_and_other_numbers_are_other_functions():
    Replicas([Member(function=made(2)), Member(function=made(2))])
    with pytest.raises(KDError, match="function"):
        Replicas([Member(function=made(2)), Member(function=made(3))])


# ---- attributes of any type


class Holder(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layer, self.value = nn.Linear(5, K), value

    def forward(self, x):
        return self.layer(x)


@dataclasses.dataclass(slots=True)
class Slots:
    factor: float


class SlotsAndMore:
    __slots__ = ("__dict__", "factor")

    def __init__(self, factor):
        self.factor, self.name = factor, "a name"


class Struct(msgspec.Struct):
    factor: float


class Named(dict):
    def __init__(self, name):
        super().__init__(key=1)
        self.name = name


class Scaling:
    def __init__(self, factor):
        self.factor = factor

    def scale(self, x):
        return x * self.factor


class Nested:
    def __init__(self, value, depth):
        self.inner = Nested(value, depth - 1) if depth else value


def by_keyword(factor):
    def scaled(x, *, by=factor):
        return x * by

    return scaled


def of_a_class_made_for(factor):
    class Made(Holder):
        def forward(self, x):
            return super().forward(x) * factor

    return Made(None)


def within_itself(number):
    found = [number]
    found.append(found)
    return found


OF_TWO_VALUES = {
    "functions of C": (torch.relu, torch.tanh),
    "others": (torch.nn.functional.gelu, torch.nn.functional.softplus),
    "methods of a class of C": (torch.Tensor.relu, torch.Tensor.tanh),
    "methods of an object of C": ([1].count, [2].count),
    "ufuncs": (np.tanh, np.sinh),
    "operators": (operator.itemgetter(1), operator.itemgetter(2)),
    "modules": (math, operator),
    "methods": (Scaling(1).scale, Scaling(2).scale),
    "keyword defaults": (by_keyword(1), by_keyword(2)),
    "partial": (functools.partial(pow, 2), functools.partial(pow, 3)),
    "slots": (Slots(1.0), Slots(2.0)),
    "slots and attributes": (SlotsAndMore(1), SlotsAndMore(2)),
    "structs": (Struct(1.0), Struct(2.0)),
    "fractions": (Fraction(1, 2), Fraction(1, 3)),
    "decimals": (Decimal(1), Decimal(2)),
    "patterns": (re.compile("a"), re.compile("b")),
    "attributes of a dict": (Named("a"), Named("b")),
    "counters": (Counter("a"), Counter("b")),
    "deep": (Nested(1, 30), Nested(2, 30)),
    "within itself": (within_itself(1), within_itself(2)),
    "layers outside": ([nn.Linear(2, 2)], [nn.Linear(2, 3)]),
}


@pytest.mark.parametrize("name", OF_TWO_VALUES)
def test_attributes_of_any_type_are_compared_by_what_they_contain(name):
    first, second = OF_TWO_VALUES[name]
    with pytest.raises(KDError, match="of one architecture"):
        Replicas([Holder(first), Holder(second)])


def test_classes_that_a_function_has_made_are_compared_by_what_they_contain():
    Replicas([of_a_class_made_for(2), of_a_class_made_for(2)])
    with pytest.raises(KDError, match="of one architecture"):
        Replicas([of_a_class_made_for(2), of_a_class_made_for(3)])


def with_itself(find):
    member = Holder(None)
    member.value = find(member)
    return member


def weight_normed():
    member = Holder(None)
    torch.nn.utils.parametrizations.weight_norm(member.layer)
    return member


# Each function makes a new network, from the same code and the same values.
MAKERS = {
    "function of C": lambda: Holder(torch.relu),
    "slots": lambda: Holder(Slots(1.0)),
    "struct": lambda: Holder(Struct(1.0)),
    "decimal": lambda: Holder(Decimal("1.5")),
    "method": lambda: Holder(Scaling(1).scale),
    "own method": lambda: with_itself(lambda member: member.forward),
    "itself": lambda: with_itself(lambda member: [member]),
    "a weak reference": lambda: Holder(weakref.ref(Holder)),
    "deep": lambda: Holder(Nested(1, 30)),
    "within itself": lambda: Holder(within_itself(1)),
    "a set": lambda: Holder({"a", "b", ("c", 1)}),
    "a path": lambda: Holder(Path("a")),
    "generators": lambda: Holder([torch.Generator(), np.random.default_rng()]),
    "weight norm": weight_normed,
    "traced": lambda: torch.fx.symbolic_trace(Holder(None)),
    "attention": lambda: nn.MultiheadAttention(4, 2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_two_networks_of_the_same_code_and_values_are_one_architecture(name):
    first, second = MAKERS[name](), MAKERS[name]()
    assert len(Replicas([first, second])) == 2


def test_a_traced_network_is_compared_by_its_code():
    with pytest.raises(KDError, match="of one architecture"):
        Replicas([torch.fx.symbolic_trace(Member(scale=scale)) for scale in (1.0, 2.0)])


def test_a_network_that_cannot_be_copied_is_refused():
    shared = threading.Lock()
    with pytest.raises(KDError, match=r"that copy\.deepcopy can copy, found TypeError"):
        Replicas([Holder(shared), Holder(shared)])


# ---- what no member could be taken from, or vmap could not map over


class Extra(nn.Linear):
    def get_extra_state(self):
        return 1

    def set_extra_state(self, state):
        pass


def with_slash():
    member = nn.Sequential(nn.Linear(5, K))
    member.add_module("a/b", nn.Linear(K, K))
    return member


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Extra(5, K), "an extra state"),
        (with_slash, "a name with /"),
        (lambda: nn.Sequential(nn.Linear(5, K), nn.Dropout(0.1)), "dropout"),
        (lambda: nn.ReLU(), "no parameter"),
    ],
)
def test_members_that_cannot_be_stacked_are_refused_at_once(make, found):
    with pytest.raises(KDError, match=f"that can be stacked, found {found}"):
        Replicas([make(), make()])


class Averaging(nn.Module):
    def __init__(self, in_place):
        super().__init__()
        self.layer, self.in_place = nn.Linear(5, K), in_place
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x):
        if self.training and self.in_place:
            self.average.mul_(0.5).add_(x.mean())
        elif self.training:
            self.average = 0.5 * self.average + x.mean()
        return self.layer(x)


def test_a_buffer_that_is_replaced_would_be_lost_and_is_refused():
    inputs = torch.randn(2, 4, 5, generator=generator(0, "x"))
    with pytest.raises(KDError, match=r"change their buffers in place, found that average is replaced"):
        Replicas([Averaging(False), Averaging(False)])(inputs)
    model = Replicas([Averaging(True), Averaging(True)])
    model(inputs), model(inputs)
    torch.testing.assert_close(model.average, 1.5 * inputs.mean((1, 2)))


class Random(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(5, K)

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize("make", [lambda: Random(5, K), Recurrent], ids=["dropout", "lstm"])
def test_layers_that_vmap_cannot_map_over_are_refused_at_the_first_step(make):
    with pytest.raises(KDError, match=r"that torch\.vmap can map over"):
        Replicas([make(), make()])(torch.zeros(2, 4, 5))


# ---- frozen, tied and non-persistent


class Tied(nn.Module):
    """Two layers of one weight, a frozen bias, a frozen batch norm and a buffer that is not in state_dict()."""

    def __init__(self, seed):
        super().__init__()
        self.first, self.norm, self.second, self.head = (
            nn.Linear(5, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, 5),
            nn.Linear(5, K),
        )
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, "weights", number)) / 2)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.register_buffer("shift", torch.randn(5, generator=generator(seed, "shift")), persistent=False)
        self.norm.eval()

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(x)).relu()) + self.shift)


def train(model, batches, objective, seed):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    progress = Progress(model, torch.optim.Adam(parameters, lr=0.01))
    for _ in epochs(progress, batches, objective, count=3, seed=seed):
        pass
    return model


def test_replicas_with_frozen_and_tied_parts_end_where_single_networks_do():
    inputs = torch.randn(N, 5, generator=generator(0, "inputs"))
    examples = Examples(inputs, inputs[:, :K].argmax(1), "data")
    batches = [Batches(examples, 4, seed) for seed in SEEDS]
    loss = nn.functional.cross_entropy
    members = [Tied(seed) for seed in SEEDS]
    model = Replicas(members)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {"first/bias"}
    assert "shift" not in model.state_dict()
    train(model, side_by_side(batches), lambda o, b: torch.vmap(loss)(o, b.labels), SEEDS)
    for number, (member, seed) in enumerate(zip(members, SEEDS, strict=True)):
        train(member, batches[number], lambda o, b: loss(o, b.labels), seed)
        found = model.member(number)
        for name, value in (member.state_dict() | {"shift": member.shift}).items():
            torch.testing.assert_close((found.state_dict() | {"shift": found.shift})[name], value, msg=name)
        assert torch.equal(found.norm.running_mean, torch.zeros(5))
        assert found.second.weight is found.first.weight
        assert not found.first.bias.requires_grad
        assert torch.equal(found.first.bias, Tied(seed).first.bias)
        assert [module.training for module in found.modules()] == [module.training for module in member.modules()]


def test_a_member_of_replicas_in_evaluation_mode_is_in_it_too_and_frozen_parts_return_with_training():
    model = Replicas([Tied(seed) for seed in SEEDS])
    assert not any(module.training for module in model.eval().member(0).modules())
    assert [name for name, module in model.train().member(0).named_modules() if not module.training] == ["norm"]


def function_of_an_unset_variable():
    """A function that refers to a variable which never gets its value."""

    def function(x):
        return x * factor

    if function is None:
        factor = 1.0
    return function


def test_members_with_nan_or_a_variable_without_a_value_can_be_equal_and_can_differ():
    equal_members = [Member(scale=float("nan"), function=function_of_an_unset_variable()) for _ in range(2)]
    replicas = Replicas(equal_members)  # no error: they count as equal
    assert isinstance(replicas.member(1), Member)
    with pytest.raises(KDError, match=r"scale: nan and, in member 1, 1\.0"):
        Replicas([Member(scale=float("nan")), Member()])


def test_a_tensor_that_is_neither_weight_nor_buffer_is_told_as_one():
    told = r"found 0, weight: torch.float32 of .* in member 1, neither a parameter nor a buffer; register it"
    with pytest.raises(KDError, match=told):
        Replicas([nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3))) for _ in range(2)])


# ---- functions, which Python does not copy


class Functional(nn.Module):
    """A network whose forward uses a function or a hook that knows the network itself."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, K)
        self.gain = nn.Parameter(torch.rand(8))
        if kind == "closure":
            self.paths = {"first": lambda x: self.first(x) * self.gain}
        elif kind == "default":
            self.paths = {"first": lambda x, first=self.first: first(x)}
        elif kind == "partial":
            self.paths = {"first": functools.partial(lambda of, x: of(x), lambda x: self.first(x))}
        elif kind == "hook":
            self.paths = {"first": self.first}
            self.first.register_forward_hook(lambda module, inputs, outputs: outputs * self.gain)
        elif kind == "weakref":
            own = weakref.ref(self.first)
            self.paths = {"first": lambda x: own()(x)}
        elif kind == "only a weakref":  # copy.deepcopy leaves it as it is
            self.paths, self.owner = {"first": self.first}, weakref.ref(self)
        elif kind == "method":
            self.paths = {"first": self.first_part}
        elif kind == "free":
            factor = 2.0
            self.paths = {"first": self.first}
            self.first.register_forward_hook(lambda module, inputs, outputs: outputs * factor * module.weight.mean())

    def first_part(self, x):
        return self.first(x) * self.gain

    def forward(self, x):
        return self.last(self.paths["first"](x).relu())


@pytest.mark.parametrize("kind", ["closure", "default", "partial", "hook", "weakref", "only a weakref"])
def test_a_function_that_knows_its_network_is_refused(kind):
    """All members would be computed with the weights of the first one."""
    with pytest.raises(
        KDError, match=r"(paths|hooks|owner) uses those of the first member .*: Python does not copy functions and weak"
    ):
        Replicas([Functional(kind) for _ in SEEDS])


@pytest.mark.parametrize("kind", ["method", "free"])
def test_a_method_and_a_hook_that_knows_no_network_are_stacked(kind):
    members = [Functional(kind) for _ in SEEDS]
    model, inputs = Replicas(members), torch.randn(2, 4, 5, generator=generator(0, "x"))
    outputs = model(inputs)
    for number, member in enumerate(members):
        torch.testing.assert_close(outputs[number], member(inputs[number]))
        torch.testing.assert_close(model.member(number)(inputs[number]), member(inputs[number]))


class LateMean(nn.Module):
    """A buffer that a training replaces after two steps: each member would lose it."""

    def __init__(self):
        super().__init__()
        self.layer, self.steps = nn.Linear(5, K), 0
        self.register_buffer("mean", torch.zeros(K))

    def forward(self, x):
        self.steps += 1
        outputs = self.layer(x)
        if self.steps > 2:
            self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean(0)
        return outputs - self.mean


def test_a_buffer_that_is_replaced_in_a_later_step_is_refused():
    model, inputs = Replicas([LateMean() for _ in SEEDS]), torch.zeros(2, 4, 5)
    model(inputs)
    model(inputs)
    with pytest.raises(KDError, match="change their buffers in place, found that mean is replaced"):
        model(inputs)


class Rematerialized(nn.Module):
    """Activation checkpointing: the backward pass computes the hidden layer again."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(5, 8), nn.Linear(8, K)

    def forward(self, x):
        return self.last(checkpoint(self.layer, x, use_reentrant=False).relu())


def test_what_vmap_refuses_in_the_backward_pass_is_told():
    examples = Examples(torch.randn(N, 5, generator=generator(0, "x")), torch.arange(N) % K)
    model = Replicas([Rematerialized() for _ in SEEDS])
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    each = torch.vmap(torch.nn.functional.cross_entropy)
    batches = side_by_side([Batches(examples, 4, seed) for seed in SEEDS])
    with pytest.raises(KDError, match=r"members that torch.vmap can map over, found: .* train the members one by one"):
        list(epochs(progress, batches, lambda o, b: each(o, b.labels), count=1, seed=SEEDS))


class Cached(nn.Module):
    """A buffer that the first forward makes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, K)
        self.register_buffer("scale", None)

    def forward(self, x):
        if self.scale is None:
            self.scale = torch.ones(K)
        return self.layer(x) * self.scale


def test_a_buffer_that_forward_makes_is_refused():
    with pytest.raises(KDError, match="change their buffers in place, found that scale is replaced"):
        Replicas([Cached() for _ in SEEDS])(torch.zeros(2, 4, 5))
