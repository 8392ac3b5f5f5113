"""A run depends on its own configuration, data and seed, and not on what ran before it in the same process."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute
from kdlib.run.loaded import LoadedOnce
from kdlib.run.plan import plan
from kdlib.run.store import Result, Store
from kdlib.training import epochs, hard_targets
from tests.conftest import contents, module_of


@dataclass
class Slotted:
    __slots__ = ("x",)
    x: np.ndarray


class Named(NamedTuple):
    x: torch.Tensor


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
    )


def set_(part, name, value):
    setattr(part, name, value)


CHANGES = {
    "train.inputs": lambda d: d.train.inputs.sub_(1),
    "train.labels": lambda d: set_(d, "train", Examples(d.train.inputs, d.train.labels.flip(0))),
    "plain": lambda d: set_(d, "plain", d.plain + 1),
    "plain ": lambda d: d.plain.numpy().__isub__(1),
    " plain": lambda d: d.plain.data.sub_(1),
    "array": lambda d: d.array.__isub__(1),
    "parts['first']": lambda d: d.parts["first"].neg_(),
    "parts['first'] ": lambda d: d.parts.pop("first"),
    "parts['numbers']": lambda d: d.parts["numbers"].sort(),
    "pair[0]": lambda d: d.pair[0].neg_(),
    "slotted.x": lambda d: d.slotted.x.__isub__(1),
    "named.x": lambda d: d.named.x.neg_(),
    "layer._parameters['bias']": lambda d: d.layer.bias.data.add_(1),
    "digest": lambda d: set_(d, "digest", "e"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_a_training_changes_in_the_data_is_refused(name):
    load = LoadedOnce(lambda config, folders: data())
    first = load(object(), {})
    told = r"expected a training function that leaves the data as they are, found that it changed "
    with pytest.raises(KDError, match=told) as error, load.unchanged("run"):
        CHANGES[name](first)
    assert name.strip() in str(error.value) or (name == "named.x" and "named[0]" in str(error.value))
    again = load(object(), {})
    assert again is not first
    with load.unchanged("run"):
        again.function(again.parts)
        again.within.made_later = torch.arange(3)  # a table that is made when it is first asked for
    with pytest.raises(KDError, match=r"within\.made_later"), load.unchanged("run"):
        again.within.made_later += 1


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


def torchs_own(run, **settings):
    """A network with the first weights that torch gives it, and other draws from the global generators."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    noise = float(torch.rand(()) + np.random.rand() + random.random())
    progress = run.progress(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)
    for _ in epochs(progress, Batches(run.data.train, 16, run.seed), hard_targets, count=2, seed=run.seed):
        progress.record(noise=noise)
    progress.keep("final")
    return Result({"final": {"accuracy": noise / 3}}, progress.history, progress.kept)


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


def test_a_text_of_a_folder_is_data_too():
    load = LoadedOnce(lambda config, folders: SimpleNamespace(digest="d", place=Path("a")))
    made = load(object(), {})
    with pytest.raises(KDError, match="found that it changed place"), load.unchanged("run"):
        made.place = Path("b")
