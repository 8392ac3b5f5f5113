"""A run depends on its own configuration, data and seed, and not on what ran before it in the same process."""

import copy
import datetime
import functools
import itertools
import os
import pickle
import random
import re
import subprocess
import sys
from argparse import Namespace
from array import array
from collections import OrderedDict, UserDict
from collections.abc import MutableMapping
from configparser import ConfigParser
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.contents import digest_of_numbers
from kdlib.errors import KDError
from kdlib.parts import Parts
from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute
from kdlib.run.loaded import LoadedOnce
from kdlib.run.plan import plan
from kdlib.run.store import Result, Store
from kdlib.seeds import seeded
from kdlib.training import epochs, hard_targets
from tests.conftest import contents, module_of, write_toy


@dataclass
class Slotted:
    __slots__ = ("x",)
    x: np.ndarray


class Named(NamedTuple):
    x: torch.Tensor


class Extended(dict):
    """A dictionary with an attribute of its own."""

    def __init__(self):
        super().__init__(x=1)
        self.extra = torch.arange(3.0)


class Own:
    """A data set of one's own, which is no table."""

    def __init__(self):
        self.x = np.arange(3.0)

    def to_numpy(self):
        return self.x.copy()


def returning(kept):
    return lambda: kept


def with_gradient():
    made = torch.zeros(2, requires_grad=True)
    made.grad = torch.ones(2)
    return made


def data():
    inputs = torch.arange(12.0).reshape(6, 2)
    return SimpleNamespace(
        digest="d",
        train=Examples(inputs, torch.arange(6)),
        plain=torch.arange(4.0),
        array=np.arange(5.0),
        parts={"first": torch.arange(3.0), "numbers": [3, 1, 2]},
        pair=(torch.arange(2.0), "name"),
        slotted=Slotted(np.arange(3.0)),
        named=Named(torch.arange(2.0)),
        layer=nn.Linear(2, 2),
        function=len,
        within=SimpleNamespace(),
        nothing=None,
        names={"a", "b"},
        table=pd.DataFrame({"x": [1, 2]}),
        objects=np.array(["a", None], dtype=object),
        ragged=np.array([np.arange(3.0), np.arange(5000.0)], dtype=object),
        tensors=np.array([torch.arange(2.0), None], dtype=object),
        column=pd.DataFrame({"n": [1, 2], "x": [np.arange(3.0), np.arange(2000.0)]}),
        read_only=MappingProxyType({"x": torch.arange(3.0)}),
        user=UserDict(x=torch.arange(3.0), names=["a"]),
        bound=partial(torch.add, torch.arange(3.0), names=["a"]),
        closure=returning(torch.arange(3.0)),
        extended=Extended(),
        sparse=torch.eye(3).to_sparse(),
        own=Own(),
        kept=with_gradient(),
        codes=array("i", [1, 2, 3]),
        draws=[torch.Generator().manual_seed(1), np.random.default_rng(1), random.Random(1)],
    )


IN_PLACE = {
    "train.inputs": lambda d: d.train.inputs.sub_(1),
    "plain": lambda d: d.plain.numpy().__isub__(1),
    " plain": lambda d: d.plain.data.sub_(1),
    "array": lambda d: d.array.__isub__(1),
    "parts['first']": lambda d: d.parts["first"].neg_(),
    "pair[0]": lambda d: d.pair[0].neg_(),
    "slotted.x": lambda d: d.slotted.x.__isub__(1),
    "named[0]": lambda d: d.named.x.neg_(),
    "layer._parameters['bias']": lambda d: d.layer.bias.data.add_(1),
    "table": lambda d: d.table.insert(1, "y", 1),
    "ragged[1]": lambda d: d.ragged[1].__setitem__(slice(1000, 2000), 0),
    "tensors[0]": lambda d: d.tensors[0].neg_(),
    "column['x'][1]": lambda d: d.column["x"][1].__imul__(2),
    " train.inputs": lambda d: d.train.inputs.unsqueeze_(1),
    " array": lambda d: setattr(d.array, "dtype", np.int64),
    "read_only['x']": lambda d: d.read_only["x"].neg_(),
    "user.data['x']": lambda d: d.user["x"].neg_(),
    "bound.args[0]": lambda d: d.bound.args[0].neg_(),
    "closure's kept": lambda d: d.closure().neg_(),
    "extended.extra": lambda d: d.extended.extra.neg_(),
    "sparse": lambda d: d.sparse._values().neg_(),
    "own.x": lambda d: d.own.x.__imul__(2),
    "kept's gradient": lambda d: d.kept.sum().backward(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_numbers_that_a_training_changes_in_place_are_told(name):
    load = LoadedOnce(lambda config, folders: data())
    first = load(object(), {})
    told = rf"leaves the data as they are, found that it changed {re.escape(name.strip())} in place"
    with pytest.raises(KDError, match=told), load.unchanged("run"):
        IN_PLACE[name](first)
    assert load(object(), {}) is not first


def table():
    """A column of each type that pandas holds in a form of its own."""
    days = pd.to_datetime(["2020-01-01", "2021-01-01"])
    return pd.DataFrame(
        {
            "text": ["a", "b"],
            "object": np.array([datetime.date(2020, 1, 1), "a"], dtype=object),
            "day": days,
            "zone": days.tz_localize("Europe/Berlin"),
            "age": days - days[0],
            "month": pd.period_range("2020-01", periods=2, freq="M"),
            "part": pd.cut([1.0, 2.0], 2),
            "span": pd.arrays.IntervalArray.from_breaks([0.0, 1.0, 2.0]),
            "label": pd.Categorical(["x", "y"]),
            "count": pd.array([1, None], dtype="Int64"),
            "share": pd.array([0.5, None], dtype="Float32"),
            "number": [1.0, 2.0],
        }
    )


def test_tables_that_nobody_touches_are_the_same():
    """pandas makes a new object of a time or an interval each time that it is asked for one."""
    known = table()
    named = np.array([(1, datetime.date(2020, 1, 1))], dtype=[("a", "i4"), ("b", "O")])
    every = [known, known.set_index(["day", "part"]), named, *(known[name] for name in known), pd.Index(known["zone"])]
    load = LoadedOnce(lambda config, folders: SimpleNamespace(digest="d", every=every))
    load(object(), {})
    with load.unchanged("run") as refuse:
        kept = [np.arange(5) for _ in range(100)]  # takes the places of objects that are gone
        refuse()
    assert len(kept) == 100
    assert all(digest_of_numbers(each) for each in every)


@pytest.mark.parametrize("name", table().columns)
def test_each_value_and_type_of_a_table_counts(name):
    known = table()
    before = digest_of_numbers(known)
    other = known.copy()
    other.loc[1, name] = known.loc[0, name]
    assert digest_of_numbers(other) != before
    if known[name].dtype != object:
        assert digest_of_numbers(known.assign(**{name: known[name].astype(object)})) != before
    assert digest_of_numbers(known.rename(columns={name: "other"})) != before
    assert digest_of_numbers(known.set_axis([0, 5])) != before


def replaces(d):
    d.train = d.train.select([0])
    d.plain, d.digest, d.slotted.x = d.plain + 1, "e", None
    d.parts["first"] = d.parts.pop("first") + 1
    d.parts["numbers"].sort()
    d.parts["new"] = d.within.new = "of this run"
    d.nothing = 3
    d.names.add("c")
    d.objects[0] = "b"
    d.codes[0], d.user["new"], d.bound.keywords["new"] = 5, 1, 1
    d.user["names"].append("b")
    d.extended["y"] = 2
    d.train.inputs.requires_grad_()
    d.train.inputs.square().sum().backward()
    d.layer.eval()
    for draw in (lambda: torch.rand(1, generator=d.draws[0]), d.draws[1].random, d.draws[2].random):
        draw()


def fails(d):
    replaces(d)
    raise RuntimeError("stopped")


def test_what_a_training_replaces_or_adds_is_put_back():
    load = LoadedOnce(lambda config, folders: data())
    first = load(object(), {})
    before = repr(first)
    states = str([first.draws[0].get_state(), first.draws[1].bit_generator.state, first.draws[2].getstate()])
    for _ in range(2):
        with load.unchanged("run"):
            replaces(first)
            assert repr(first) != before
        assert load(object(), {}) is first
        assert repr(first) == before
        assert first.layer.training
        assert (first.train.inputs.grad, first.train.inputs.requires_grad) == (None, False)
        assert (first.objects[0], [*first.codes], first.user["names"]) == ("a", [1, 2, 3], ["a"])
        assert first.slotted.x.tolist() == [0, 1, 2]
        assert list(vars(first.within)) == []
        assert (
            str([first.draws[0].get_state(), first.draws[1].bit_generator.state, first.draws[2].getstate()]) == states
        )
    with pytest.raises(RuntimeError, match="stopped"), load.unchanged("run"):
        fails(first)
    assert repr(first) == before


@pytest.mark.parametrize("make", [lambda: iter([1, 2]), lambda: (each for each in [1]), lambda: map(len, ["a"])])
def test_data_that_the_first_run_would_use_up_are_refused(make):
    load = LoadedOnce(lambda config, folders: SimpleNamespace(digest="d", parts=[make()]))
    load(object(), {})
    with (
        pytest.raises(KDError, match=r"found a \w+ at parts\[0\]: who reads it first uses it up"),
        load.unchanged("run"),
    ):
        pass


def test_pictures_that_were_opened_with_the_data_are_read_by_each_run(tmp_path):
    """A picture closes its file when it is read: to put the open file back is to break it."""
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", x=np.arange(5.0))

    def load_data(config, folders):
        return SimpleNamespace(
            digest="d", picture=Image.open(tmp_path / "a.png"), file=np.load(tmp_path / "a.npz"), held=held
        )

    held = of_library(SimpleNamespace(x=np.arange(3.0)))
    load = LoadedOnce(load_data)
    first = load(object(), {})
    for _ in range(2):
        with load.unchanged("run"):
            assert np.asarray(first.picture).mean() == 7
            assert first.file["x"].sum() == 10
            held.new = 1
    assert held.new == 1
    with pytest.raises(KDError, match=r"changed held\.x in place"), load.unchanged("run"):
        held.x += 1


class OfLibrary:
    """An object of a library's class, as a meter or a tokenizer."""

    def __init__(self, **parts):
        self.__dict__.update(parts)


class Settings(MutableMapping):
    """As OmegaConf's settings: values are objects of the library's, within a dictionary of its own."""

    def __init__(self, **values):
        self.content = {name: OfLibrary(value=value) for name, value in values.items()}

    def __getitem__(self, name):
        return self.content[name].value

    def __setitem__(self, name, value):
        self.content.setdefault(name, OfLibrary()).value = value

    def __delitem__(self, name):
        del self.content[name]

    def __iter__(self):
        return iter(self.content)

    def __len__(self):
        return len(self.content)


Settings.__module__ = OfLibrary.__module__ = "pandas.settings"  # an installed package


def of_library(parts):
    return OfLibrary(**vars(parts))


def test_equal_values_of_other_types_have_data_of_their_own():
    load = LoadedOnce(lambda config, folders: torch.tensor(config.scale))
    kinds = [load(SimpleNamespace(scale=scale), {}).dtype for scale in (1, 1.0, True, (1,), (1.0,))]
    assert kinds == [torch.int64, torch.float32, torch.bool, torch.int64, torch.float32]


def test_arrays_that_cannot_be_written_to_are_not_read_again(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4.0))
    parts = SimpleNamespace(digest="d", a=np.load(tmp_path / "a.npy", mmap_mode="r"), b=np.arange(3.0)[::-1])
    parts.b.flags.writeable = False
    load = LoadedOnce(lambda config, folders: parts)
    load(object(), {})
    with load.unchanged("run"):
        pass
    assert [place for place, *_ in load.known[0].before.digests] == ["b"]  # its base can be written to


def test_long_chains_of_objects_are_looked_at():
    chain = SimpleNamespace(digest="d", array=np.arange(3))
    for _ in range(5000):
        chain = SimpleNamespace(digest="d", within=chain)
    load = LoadedOnce(lambda config, folders: chain)
    load(object(), {})
    with load.unchanged("run"):
        pass


def test_data_are_told_that_ask_for_another_field_after_they_were_loaded():
    class Lazy:
        digest = "d"

        def __init__(self, config):
            self.config, self.rows = config, config.rows

        def later(self, name):
            return getattr(self.config, name)

    load = LoadedOnce(lambda config, folders: Lazy(config))
    made = load(SimpleNamespace(rows=3, examples=500), {})
    assert made.later("rows") == 3
    with load.unchanged("run"):
        made.later("rows")
    with pytest.raises(KDError, match=r"they asked for 'examples' afterwards: .* Read config\.examples in load_data"):
        made.later("examples")
    assert load(SimpleNamespace(rows=3, examples=9), {}) is made


@dataclass(frozen=True)
class WithList:
    epochs: int = 2
    milestones: list[int] = field(default_factory=lambda: [1, 2])


@pytest.fixture
def trained(toy, tmp_path, monkeypatch):
    """Train seeds of one arm by a function of the run; return the store and the failures."""

    def train(function, name, seeds, config=None, workers=1):
        def train_student(run):
            return function(run)

        module, profile = module_of("toy"), toy.profile("quick")
        profile = replace(profile, config=config or profile.config)
        arms = (Arm("baseline", (), train_student),)
        made = replace(toy, arms=arms, check=("baseline",), profiles={"quick": profile})
        monkeypatch.setattr(module, "EXPERIMENT", made)
        store = Store(tmp_path / name)
        jobs = plan(made, profile, ["baseline"], list(seeds), Compute(), {})
        return store, [*execute(jobs, store, compute=Compute(), folders={}).failed.values()]

    return train


def test_a_training_that_changes_its_configuration_is_refused(trained):
    seen = []

    def train(run):
        seen.append([*run.config.milestones])
        run.config.milestones.pop()
        return Result({"final": {"accuracy": 0.5}}, [], {})

    config = WithList()
    store, failed = trained(train, "store", (0, 1), config)
    assert len(failed) == 2
    assert all("found that it changed milestones: the run would be recorded with another one" in why for why in failed)
    assert seen == [[1, 2], [1, 2]]
    assert config.milestones == [1, 2]
    assert store.ids() == []


@pytest.fixture
def top(monkeypatch):
    """Put things at the top of the experiment's module, as they are when it is imported."""
    module = module_of("toy")

    def put(**things):
        for name, value in things.items():
            monkeypatch.setattr(module, name, value, raising=False)
        return module

    return put


def test_what_is_at_the_top_of_a_module_is_the_same_for_each_run(trained, top):
    network, table = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), np.arange(3.0)
    module = top(NETWORK=network, SEEN=[], COUNT=0, KNOWN={"a": torch.zeros(2)}, TABLE=table, within=returning([]))
    first = copy.deepcopy(network.state_dict())
    found = []

    def train(run):
        assert module.within() == module.SEEN == []
        assert (module.COUNT, [*module.KNOWN], module.KNOWN["a"].tolist()) == (0, ["a"], [0, 0])
        assert module.TABLE.tolist() == [0, 1, 2]
        assert not hasattr(module, "LATER")
        found.append({name: value.clone() for name, value in module.NETWORK.state_dict().items()})
        module.SEEN.append(1)
        module.within().append(1)
        module.COUNT += 1
        module.KNOWN["a"] += 1
        module.KNOWN["b"] = module.LATER = 1
        module.TABLE[0] = 5
        model = module.NETWORK
        progress = run.progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in epochs(progress, Batches(run.data.train, 16, run.seed), hard_targets, count=1, seed=run.seed):
            pass
        progress.keep("final")
        return Result({"final": {"accuracy": 0.5}}, progress.history, progress.kept)

    store, failed = trained(train, "store", (0, 1))
    assert not failed
    assert len(made_by(store)) == 2
    assert all(torch.equal(each[name], value) for each in found for name, value in first.items())
    assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())
    assert network.training
    assert (module.SEEN, module.COUNT, [*module.KNOWN], table.tolist()) == ([], 0, ["a"], [0, 1, 2])


class AnswersAll(dict):
    __getattr__ = dict.get
    __setattr__ = dict.__setitem__


class FailsForAll(dict):
    def __getattr__(self, name):
        return self[name]


class Hostile:
    def __getattribute__(self, name):
        raise ReferenceError(name)


class Ordered(OrderedDict):
    def items(self):
        raise KeyError("items")


def test_settings_at_the_top_are_the_same_for_each_run(trained, top):
    parser = ConfigParser()
    parser.read_dict({"a": {"width": "4"}})
    every = {
        "ARGS": Namespace(width=4),
        "CONF": Settings(width=4),
        "DOT": AnswersAll(width=4),
        "ATTR": FailsForAll(width=4),
        "ORDERED": Ordered(width=4),
        "PARSER": parser,
    }
    module = top(**every, HOSTILE=Hostile())

    def train(run):
        assert (module.ARGS.width, module.PARSER["a"]["width"]) == (4, "4")
        module.ARGS.width, module.PARSER["a"]["width"] = 5, "5"
        for name in ("CONF", "DOT", "ATTR", "ORDERED"):
            settings = every[name]
            assert (settings["width"], len(settings)) == (4, 1)
            settings["width"] = settings["new"] = 5
        return torchs_own(run)

    _, failed = trained(train, "store", (0, 1))
    assert not failed
    assert [*module.ORDERED] == ["width"]


def test_an_objects_own_errors_leave_no_part_of_it_behind():
    """What answers to any name, or to none, is no table, and what cannot be put back is told."""
    locked = np.arange(3)
    parts = Parts([("a", AnswersAll(x=1)), ("b", FailsForAll(x=1)), ("c", Hostile()), ("d", locked)], "kept")
    locked[0] = 5
    locked.flags.writeable = False
    assert parts.put_back() == ["d"]


@pytest.mark.parametrize("gradient", [None, [1.0, 2.0]])
def test_a_call_that_is_put_back_leaves_no_gradients(gradient):
    peer = nn.Linear(2, 1, bias=False)
    peer.weight.grad = known = None if gradient is None else torch.tensor([gradient])
    meter = OfLibrary(sum=0.0, count=0)

    def objective():
        peer(torch.ones(1, 2)).sum().backward()
        meter.sum += 1.5
        meter.count += 1

    for kind in ("code", "kept"):
        parts = Parts([("objective", objective)], kind)
        objective()
        parts.put_back()
        assert peer.weight.grad is known
        assert gradient is None or known.tolist() == [gradient]
        assert kind == "kept" or vars(meter) == {"sum": 0.0, "count": 0}


@pytest.mark.parametrize("place", ["data", "top"])
def test_changed_numbers_are_told_after_the_first_epoch(trained, top, monkeypatch, place):
    module, looks, count = top(TABLE=pd.DataFrame({"weight": [1.0, 2.0]})), [], []
    usual = Parts.changed
    monkeypatch.setattr(Parts, "changed", lambda self: looks.append(1) or usual(self))

    def train(run, changes=True):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        progress = run.progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
        for epoch in epochs(progress, Batches(run.data.train, 16, run.seed), hard_targets, count=3, seed=run.seed):
            count.append(epoch)
            if changes and place == "data":
                run.data.train.inputs.add_(1)
            elif changes:
                module.TABLE["weight"] *= 2
        progress.keep("final")
        return Result({"final": {"accuracy": 0.5}}, progress.history, progress.kept)

    _, (told,) = trained(train, "store", (0,))
    assert "in place" in told
    assert count == [1]
    module.TABLE = pd.DataFrame({"weight": [1.0, 2.0]})
    looks.clear()
    _, failed = trained(functools.partial(train, changes=False), "other", (0,))
    assert not failed
    assert count == [1, 1, 2, 3]
    # At the end of the first epoch, and when data and modules are put back.
    assert len(looks) == 4


def test_no_run_follows_on_one_that_changed_its_modules(trained, top):
    module = top(TABLE=pd.DataFrame({"weight": [1.0, 2.0]}))

    def train(run):
        if run.seed == 0:
            module.TABLE["weight"] *= 2
        return Result({"final": {"accuracy": float(module.TABLE["weight"].sum())}}, [], {})

    _, told = trained(train, "store", (0, 1))
    assert "in place" in told[0]
    assert told[1].startswith("this run was not begun: an earlier one of the process has changed TABLE in place")
    module.TABLE["weight"] /= 2
    assert "in place" in trained(train, "other", (0,))[1][0]


def test_a_run_that_changed_its_data_begins_anew(trained):
    """Its checkpoint has epochs on data that no other run has."""
    begun = []

    def train(run):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        progress = run.progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
        begun.append(progress.epoch)
        for epoch in epochs(progress, Batches(run.data.train, 16, run.seed), hard_targets, count=3, seed=run.seed):
            if epoch == 1:  # as a cache that is filled once
                run.data.train.inputs.add_(1)
        progress.keep("final")
        return Result({"final": {"accuracy": 0.5}}, progress.history, progress.kept)

    told = [trained(train, "store", (0,))[1] for _ in range(2)]
    assert all("in place" in message for (message,) in told)
    assert begun == [0, 0]


class Shared:
    """A class of the experiment."""

    steps = 0
    seen: ClassVar[list] = []


@functools.cache
def pretrained():
    return nn.Linear(4, 3)


def test_classes_caches_and_optimizers_at_the_top_are_the_same_for_each_run(trained, top, monkeypatch):
    for each in (Shared, pretrained):
        monkeypatch.setattr(each, "__module__", "replications.toy.experiment")
    layer = nn.Linear(4, 3)
    made = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    rows = torch.utils.data.TensorDataset(torch.zeros(2))
    module = top(Shared=Shared, pretrained=pretrained, LAYER=layer, MADE=made, PAIRS=rows)
    seen = []

    def train(run):
        seen.append(
            (Shared.steps, [*Shared.seen], pretrained().bias.tolist(), made.param_groups[0]["lr"], len(made.state))
        )
        assert rows.tensors[0].tolist() == [0, 0]
        Shared.steps += 1
        Shared.seen.append(1)
        Shared.new = 1
        pretrained().bias.data.fill_(len(seen))
        made.param_groups[0]["lr"] = 5.0
        layer(torch.ones(1, 4)).sum().backward()
        made.step()
        rows.tensors[0].fill_(1)
        return torchs_own(run)

    _, failed = trained(train, "store", (0, 0 + 1))
    assert not failed
    assert [each[:2] + each[3:] for each in seen] == [(0, [], 0.1, 0)] * 2
    assert 1.0 not in seen[1][2]
    assert not hasattr(module.Shared, "new")


def test_a_table_at_the_top_that_a_run_changes_is_told(trained, top):
    top(TABLE=pd.DataFrame({"weight": [1.0, 2.0]}))

    def train(run):
        module_of("toy").TABLE["weight"] *= 2
        return torchs_own(run)

    _, (told,) = trained(train, "store", (0,))
    assert "found that it changed TABLE in place, which cannot be put back; change a copy of it" in told


def test_what_cannot_be_copied_at_the_top_is_left(trained, top):
    with torch.device("meta"):
        counted = nn.Linear(2, 2)
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    many = {
        "A": torch.eye(3).to_sparse(),
        "C": torch.full((1,), torch.nan).expand(7),
    }
    module = top(COUNTED=counted, LAZY=nn.LazyLinear(3), NESTED=nested, IDS=itertools.count(), **many)

    def train(run):
        next(module.IDS)
        module.A._values().fill_(5)
        return torchs_own(run)

    _, failed = trained(train, "store", (0, 1))
    assert not failed
    assert module.A.to_dense().tolist() == torch.eye(3).tolist()


@pytest.mark.slow
def test_a_network_at_the_top_of_a_module_has_the_same_weights_in_each_process(tmp_path):
    write_toy(tmp_path)
    path = tmp_path / "replications" / "toy" / "experiment.py"
    path.write_text(f"{path.read_text()}\nNETWORK = nn.Linear(3, 2)\n")
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = (
        "from kdlib.run.experiment import load_experiment; import sys; load_experiment('toy');"
        "print(sys.modules['replications.toy.experiment'].NETWORK.weight.tolist())"
    )
    made = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=here, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert made[0] == made[1] != ""


def torchs_own(run, **settings):
    """A network with the first weights that torch gives it, and other draws from the global generators."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    noise = float(torch.rand(()) + np.random.rand() + random.random())
    progress = run.progress(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)
    for _ in epochs(progress, Batches(run.data.train, 16, run.seed), hard_targets, count=2, seed=run.seed):
        progress.record(noise=noise)
    progress.keep("final")
    return Result({"final": {"accuracy": noise / 3}}, progress.history, progress.kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda runs: [nn.Linear(3, 2) for _ in runs],
        lambda runs: [nn.Linear(3, 2) for _, run in enumerate(runs) if run.config is not None],
        lambda runs: [nn.Linear(3, 2) for number in range(len(runs)) if runs[number]],
    ],
)
def test_first_weights_of_students_side_by_side_depend_on_their_own_seeds(make):
    """Other runs of the group are others in another session, and each run has the same id in both."""

    def weights_of(*seeds):
        runs = [SimpleNamespace(seed=seed, config="c", trainings=[]) for seed in seeds]
        found = []

        def train(runs):
            found.extend([*layer.weight.tolist(), layer.bias.tolist()] for layer in make(runs))
            runs[0].trainings.append("begun")
            state = torch.get_rng_state()
            assert [run.seed for run in runs] == [*seeds]
            assert torch.equal(torch.get_rng_state(), state)  # what a loop draws goes on
            return [Result({"final": {}}, [], {}) for _ in runs]

        with seeded(seeds[0]):
            Arm("a", (), train, mapped=()).results(runs)
        return dict(zip(seeds, found, strict=True))

    together, others, alone = weights_of(0, 1, 2), weights_of(2, 1), weights_of(1)
    assert together[1] == others[1] == alone[1]
    assert together[2] == others[2]
    assert len({str(each) for each in together.values()}) == 3


def made_by(store):
    return {name: value for name, value in contents(store.folder).items() if name.endswith("weights.safetensors")}


def test_first_weights_of_torch_depend_on_the_seed_alone(trained):
    together, failed = trained(torchs_own, "together", (0, 1))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    torch.rand(3)
    alone, failed_too = trained(torchs_own, "alone", (1,))
    assert not failed + failed_too
    torch.set_rng_state(before[0])
    torch.rand(3)
    state = torch.get_rng_state()
    torch.set_rng_state(before[0])
    torch.rand(3)
    trained(torchs_own, "again", (2,))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    both, one = made_by(together), made_by(alone)
    assert len(both) == 2
    assert len(one) == 1
    assert one.items() <= both.items()
    assert len({*both.values()}) == 2


def test_extras_of_a_run_go_on(trained, tmp_path):
    """A scheduler and an average of the weights, with a stop between two epochs."""

    def train(stops):
        def function(run):
            model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            average = torch.optim.swa_utils.AveragedModel(model)
            rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
            progress = run.progress(model, optimizer, extras={"average": average, "rates": rates})
            for epoch in epochs(progress, Batches(run.data.train, 16, run.seed), hard_targets, count=4, seed=run.seed):
                if epoch == stops:
                    raise RuntimeError("stopped")
                average.update_parameters(model)
                rates.step()
            model.load_state_dict(average.module.state_dict())
            progress.keep("final")
            return Result({"final": {"accuracy": 0.5}}, progress.history, progress.kept)

        return function

    whole, failed = trained(train(0), "whole", (0,))
    assert not failed
    _, (why,) = trained(train(3), "stopped", (0,))
    assert "stopped" in why
    again, failed = trained(train(0), "stopped", (0,))
    assert not failed
    assert made_by(again) == made_by(whole)
    assert len(made_by(whole)) == 1


@dataclass(frozen=True, order=True)
class Rows:
    rows: int = 3
    other: int = 1

    def twice(self):
        return 2 * self.rows

    def key(self):
        return asdict(self)["rows"]

    def __len__(self):
        return self.rows


@pytest.mark.parametrize(
    "take",
    [
        copy.deepcopy,
        copy.copy,
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: SimpleNamespace(**vars(config)),
        lambda config: SimpleNamespace(rows=int(re.findall(r"rows=(\d+)", str(config))[0])),
        lambda config: SimpleNamespace(**asdict(config)),
        lambda config: SimpleNamespace(rows=getattr(config, fields(config)[0].name)),
        lambda config: replace(config, other=5),
        lambda config: SimpleNamespace(rows=config.key()),
        lambda config: SimpleNamespace(rows=len(config)),
        lambda config: SimpleNamespace(rows=3 if config == Rows(3) else 4),
        lambda config: SimpleNamespace(rows=3 if Rows(3) == config else 4),
        lambda config: SimpleNamespace(rows={Rows(3): 3}.get(config, 4)),
        lambda config: SimpleNamespace(rows=3 if config < Rows(4) else 4),
        lambda config: SimpleNamespace(rows=config.rows if isinstance(config, Rows) else 0),
    ],
)
def test_a_copied_configuration_is_read_as_a_whole(take):
    load = LoadedOnce(lambda config, folders: SimpleNamespace(digest="d", rows=take(config).rows))
    first = load(Rows(3), {})
    assert first.rows == 3
    assert load(Rows(4), {}).rows == 4
    assert load(Rows(3), {}) is first


def test_a_method_of_the_configuration_tells_what_it_reads():
    load = LoadedOnce(lambda config, folders: SimpleNamespace(digest="d", rows=config.twice()))
    first = load(Rows(3), {})
    assert load(Rows(3, other=2), {}) is first
    assert load(Rows(4), {}).rows == 8


def test_what_data_draw_from_global_generators_is_the_same_in_each_process():
    def draws(config, folders):
        return SimpleNamespace(digest="d", drawn=(float(torch.rand(())), np.random.rand(), random.random()))

    first = LoadedOnce(draws)(object(), {}).drawn
    torch.rand(2), np.random.rand(2), random.random()
    assert LoadedOnce(draws)(object(), {}).drawn == first


def test_a_run_is_not_stored_under_data_that_it_did_not_see(toy, tmp_path, monkeypatch):
    usual, count = module_of("toy").load_data, []

    def other_each_time(config, folders):
        count.append(1)
        return replace(usual(config, folders), digest=f"data {len(count)}")

    def train(run):
        return torchs_own(run)

    module = module_of("toy")
    arms = (Arm("baseline", (), train),)
    made = replace(toy, arms=arms, check=("baseline",), load_data=other_each_time)
    jobs = plan(made, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    monkeypatch.setattr(module, "EXPERIMENT", replace(made, load_data=other_each_time))
    store = Store(tmp_path / "store")
    (why,) = execute(jobs, store, compute=Compute(), folders={}).failed.values()
    assert "expected the data of digest data 1, with which the session has begun, found data 2" in why
