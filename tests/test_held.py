"""What the functions of a training hold: teachers, states and copies that a stop would lose, and numbers."""

import argparse
import collections
import copy
import functools
import io
import threading
import time
import types
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.copies import CopyNotSaved, sample
from kdlib.held import GeneratorNotSaved, StateNotSaved, TeacherInTraining
from kdlib.losses import hard_and_soft, soft_target_kl
from kdlib.ownership import OtherStart
from kdlib.reach import numbers_of
from kdlib.training import Progress, epochs, hard_targets, predict_logits
from tests.small_trainings import BATCHES, STEPS, adam, student, train


def teacher():
    return student(nn.ReLU(), nn.Dropout(0.5), name="teacher")


def taught_by(network):
    return lambda outputs, batch: soft_target_kl(outputs, network(batch.inputs).detach(), 2.0)


def fit(objective, count=2, place=None, body=lambda epoch: None, batches=BATCHES, network=None, **rest):
    network = network or student()
    return train(Progress(network, adam(network), checkpoint=place), count, objective, body, batches, **rest)


# ---- teachers in training mode, wherever they are; a warning that is not expected fails


class ByHand(nn.Module):
    """Its dropout is no layer."""

    def __init__(self, p):
        super().__init__()
        self.dense, self.p = nn.Linear(4, 3), p

    def forward(self, inputs):
        return F.dropout(self.dense(inputs), self.p, self.training)


class OfBase(ByHand):
    def forward(self, inputs):
        return 1.0 * super().forward(inputs)


class OfMethod(ByHand):
    def forward(self, inputs):
        return self.head(inputs)

    def head(self, inputs):
        return F.dropout(self.dense(inputs), self.p, self.training)


class OfConfig(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.dense, self.config = nn.Linear(4, 3), types.SimpleNamespace(dropout=rate)

    def forward(self, inputs):
        return F.dropout(self.dense(inputs), self.config.dropout, self.training)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 3)

    def drop_auxiliary(self, outputs):
        return outputs[0]

    def forward(self, inputs):
        outputs = self.dense(inputs), inputs
        return outputs[0] if self.training else self.drop_auxiliary(outputs)


class InClass:
    def __init__(self, network):
        self.network = network

    def logits(self, inputs):
        return self.network(inputs)


class Inherits(InClass):
    def __call__(self, outputs, batch):
        return soft_target_kl(outputs, self.logits(batch.inputs).detach(), 2.0)


OF_CLASS = teacher()


class OfStaticMethod:
    @staticmethod
    def logits(inputs):
        return OF_CLASS(inputs)

    def __call__(self, outputs, batch):
        return soft_target_kl(outputs, self.logits(batch.inputs).detach(), 2.0)


class OfProperty:
    @property
    def network(self):
        return OF_CLASS

    def __call__(self, outputs, batch):
        return soft_target_kl(outputs, self.network(batch.inputs).detach(), 2.0)


class AtFirstUse:
    network = None

    def __call__(self, outputs, batch):
        self.network = self.network or teacher()
        return soft_target_kl(outputs, self.network(batch.inputs).detach(), 2.0)


def of_cache():
    made = functools.cache(teacher)
    return lambda outputs, batch: soft_target_kl(outputs, made()(batch.inputs).detach(), 2.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: taught_by(ByHand(0.5)),
        lambda: taught_by(OfBase(0.5)),
        lambda: taught_by(OfMethod(0.5)),
        lambda: taught_by(OfConfig(0.5)),
        lambda: Inherits(teacher()),
        OfStaticMethod,
        OfProperty,
        AtFirstUse,
        of_cache,
        lambda: taught_by(teacher().requires_grad_(False)),
    ],
)
def test_a_teacher_in_training_mode_is_told(make):
    with pytest.warns(TeacherInTraining, match="is called in training mode"):
        fit(make())


@pytest.mark.parametrize("network", [ByHand(0.0), OfConfig(0.0), TwoOutputs(), OfBase(0.5).eval(), teacher().eval()])
def test_a_teacher_without_dropout_is_not_told(network):
    fit(taught_by(network))


def test_a_network_that_the_body_trains_is_no_teacher():
    judge = teacher()
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.1)

    def body(epoch):
        optimizer.zero_grad()
        judge(BATCHES(epoch).__iter__().__next__().inputs).mean().backward()
        optimizer.step()

    fit(taught_by(judge), body=body)


class Locked(nn.Module):
    """A loss that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, outputs, batch):
        return hard_targets(outputs, batch)


def saved(network):
    torch.save(network, io.BytesIO())
    return network


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("use", [copy.deepcopy, saved, torch.jit.script])
def test_a_teacher_can_be_copied_saved_and_scripted_in_a_step(tmp_path, use):
    loss, network = Locked(), teacher().eval().requires_grad_(False)

    def objective(outputs, batch):
        return loss(outputs, batch) + soft_target_kl(outputs, use(network)(batch.inputs), 2.0)

    fit(objective, place=tmp_path / "c")


def test_the_copy_of_a_teacher_holds_nothing_of_the_training(tmp_path):
    loss, network, copies = Locked(), teacher(), []

    def objective(outputs, batch):
        copies.append(copy.deepcopy(network))
        return loss(outputs, batch) + 0 * len(str(network))

    fit(objective, 1, tmp_path / "c")
    (hook,) = copies[0][2]._forward_pre_hooks.values()
    assert hook.held is None
    assert not network[2]._forward_pre_hooks


# ---- states


class Bank:
    """Self-distillation from the last epoch: the past logits of each row."""

    def __init__(self, past):
        self.past = past

    def __call__(self, outputs, batch):
        self.past[batch.indices] = outputs.detach() if isinstance(self.past, torch.Tensor) else outputs.detach().numpy()
        return hard_targets(outputs, batch)


def centred():
    centre = torch.zeros(3)

    def objective(outputs, batch):
        loss = hard_targets(outputs - centre, batch)
        centre.mul_(0.9).add_(outputs.detach().mean(0), alpha=0.1)
        return loss

    return objective


def by_data():
    centre = torch.zeros(3)

    def objective(outputs, batch):
        centre.data.mul_(0.9).add_(outputs.detach().mean(0), alpha=0.1)  # torch does not count these changes
        return hard_targets(outputs - centre, batch)

    return objective


BANKS = [lambda: Bank(torch.zeros(24, 3)), lambda: Bank(np.zeros((24, 3)))]


@pytest.mark.parametrize("make", [centred, by_data, *BANKS])
def test_tensors_that_go_on_through_a_training_are_told(tmp_path, make):
    with pytest.warns(StateNotSaved, match="and a tensor as a buffer of a module") as told:
        fit(make(), place=tmp_path / "c")
    assert told[0].filename.endswith("small_trainings.py")  # the line of the loop
    fit(make())  # without a checkpoint nothing goes on


def test_a_sum_that_the_body_clears_is_not_told(tmp_path):
    total = torch.zeros(3)

    def objective(outputs, batch):
        total.add_(outputs.detach().mean(0))
        return hard_targets(outputs, batch)

    fit(objective, 3, tmp_path / "c", body=lambda epoch: total.zero_())


class Taken(collections.deque):
    """Who iterates over it takes from it."""

    def __iter__(self):
        while len(self):
            yield self.popleft()


def test_what_a_container_does_when_it_is_read_is_not_done():
    weights, seen = Taken([0.5, 0.25, 0.125]), []

    def objective(outputs, batch):
        seen.append(len(weights))
        return hard_targets(outputs, batch)

    fit(objective, 1)
    assert {*seen} == {3}


def test_weights_of_rows_that_the_body_changes_are_told(tmp_path):
    weights = torch.ones(24)

    def batches(epoch):
        assert len(weights) == 24
        yield from BATCHES(epoch)

    with pytest.warns(StateNotSaved):
        fit(hard_targets, place=tmp_path / "c", batches=batches, body=lambda epoch: weights.mul_(0.5))


def seeded_by(epoch):
    DRAWS.manual_seed(epoch)


def seeded_alike(epoch):
    DRAWS.manual_seed(7)


def set_to_the_first_state(epoch):
    DRAWS.set_state(FIRST)


DRAWS = torch.Generator().manual_seed(1)
FIRST = DRAWS.get_state()


@pytest.mark.parametrize("begin", [seeded_by, seeded_alike, set_to_the_first_state])
def test_a_generator_that_begins_anew_in_each_epoch_is_not_told(tmp_path, begin):
    def batches(epoch):
        begin(epoch)
        yield from BATCHES(epoch)

    def objective(outputs, batch):
        return hard_targets(outputs, batch) * (1 + torch.rand((), generator=DRAWS))

    fit(objective, 5, tmp_path / "c", batches=batches)
    with pytest.warns(GeneratorNotSaved):
        fit(objective, place=tmp_path / "other")


def test_what_is_set_from_the_epoch_is_not_told(tmp_path):
    class Annealed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("alpha", torch.zeros(()))

        def forward(self, outputs, batch):
            return self.alpha * hard_targets(outputs, batch)

    loss, network, snapshots = Annealed(), teacher().eval(), [teacher().state_dict(), student(nn.ReLU(), nn.Dropout(0))]

    def batches(epoch):
        network.load_state_dict(snapshots[0] if epoch % 2 else snapshots[1].state_dict())
        yield from BATCHES(epoch)

    def rate(epoch):
        loss.alpha.fill_(epoch / 10)
        return 0.01

    fit(lambda *given: loss(*given) + taught_by(network)(*given), 5, tmp_path / "c", batches=batches, rate=rate)


def test_the_last_epochs_student_as_teacher_is_told(tmp_path):
    network = student()
    held = [copy.deepcopy(network)]

    def objective(outputs, batch):
        return hard_targets(outputs, batch) + soft_target_kl(outputs, predict_logits(held[0], batch.inputs), 2.0)

    def body(epoch):
        held[0] = copy.deepcopy(network)

    with pytest.warns(CopyNotSaved, match="use a copy that this training has made of its network"):
        fit(objective, place=tmp_path / "c", body=body, network=network)


# ---- numbers


@dataclass
class Config:
    temperature: float


def by_closure(value):
    return lambda outputs, batch: hard_and_soft(outputs, outputs.detach(), batch.labels, 1.0, 0.5, value)


def by_default(value):
    def objective(outputs, batch, temperature=value):
        return by_closure(temperature)(outputs, batch)

    return objective


def by_partial(value):
    return functools.partial(
        lambda outputs, batch, temperature: by_closure(temperature)(outputs, batch), temperature=value
    )


def by_attribute(value):
    config = Config(value)
    return lambda outputs, batch: by_closure(config.temperature)(outputs, batch)


def by_dictionary(value):
    config = {"temperature": value}
    return lambda outputs, batch: by_closure(config["temperature"])(outputs, batch)


def by_namespace(value, make=types.SimpleNamespace):
    config = make(temperature=value)
    return lambda outputs, batch: by_closure(config.temperature)(outputs, batch)


def by_arguments(value):
    return by_namespace(value, argparse.Namespace)


def by_constant(value):
    names = {"by_closure": by_closure}
    exec(f"def objective(outputs, batch): return by_closure({value})(outputs, batch)", names)
    return names["objective"]


def by_global(value):
    names = {"by_closure": by_closure, "TEMPERATURE": value}
    exec("def objective(outputs, batch): return by_closure(TEMPERATURE)(outputs, batch)", names)
    return names["objective"]


def by_tuple(value):
    def objective(outputs, batch):
        temperature, weight = value_and_weight
        return by_closure(temperature)(outputs, batch) * weight

    value_and_weight = value, 1.0
    return objective


def by_literals(value):
    names = {"by_closure": by_closure}
    exec(
        f"def objective(outputs, batch):\n    t, w = {value}, 1.0\n    return by_closure(t)(outputs, batch) * w", names
    )
    return names["objective"]


class Setting(NamedTuple):
    temperature: float


def by_named_tuple(value):
    config = Setting(value)
    return lambda outputs, batch: by_closure(config.temperature)(outputs, batch)


def by_numpy(value):
    return by_closure(np.float64(value))


def by_unpacking(value):
    config = {"temperature": value}
    return lambda outputs, batch: by_partial(1.0)(outputs, batch, **config)


def by_loss(value):
    loss = nn.SmoothL1Loss(beta=value)
    return lambda outputs, batch: loss(outputs, torch.zeros_like(outputs))


MAKERS = [
    by_tuple,
    by_literals,
    by_named_tuple,
    by_numpy,
    by_unpacking,
    by_loss,
    by_closure,
    by_default,
    by_partial,
    by_attribute,
    by_dictionary,
    by_namespace,
    by_arguments,
    by_constant,
    by_global,
]


@pytest.mark.parametrize("make", MAKERS)
def test_another_temperature_with_the_same_checkpoint_is_told(tmp_path, make):
    fit(make(4.0), place=tmp_path / "c")
    fit(make(4.0), place=tmp_path / "c")
    with pytest.warns(
        OtherStart, match=r"the checkpoint has '.*4\.0.*', this training '.*20\.0.*'.* trains only the epochs"
    ):
        assert fit(make(20.0), place=tmp_path / "c").epoch == 2


def test_counters_in_lists_and_other_objects_are_no_numbers_of_a_function():
    steps, network = [3], nn.Linear(2, 2)

    def objective(outputs, batch):
        steps[0] += 1
        return network(outputs) * 2.5

    name = "test_counters_in_lists_and_other_objects_are_no_numbers_of_a_function.<locals>.objective.numbers"
    assert numbers_of([objective], ()) == {name: "0, 1, 2.5"}


def test_counters_in_a_dictionary_are_no_numbers_of_a_function():
    state = {"step": 7, "temperature": 4.0}

    def reads(outputs, batch):
        return outputs * state["temperature"]

    def counts(outputs, batch):
        state["step"] += 1
        return outputs * state["temperature"]

    assert numbers_of([reads], ()) == {"temperature": "4.0"}
    assert "step" not in "".join(numbers_of([counts], ()))


def test_swapped_weights_are_told():
    def one(outputs, batch):
        return hard_and_soft(outputs, outputs, batch.labels, 0.1, 0.9, 4.0)

    def other(outputs, batch):
        return hard_and_soft(outputs, outputs, batch.labels, 0.9, 0.1, 4.0)

    assert {*numbers_of([one], ()).values()} == {"0.1, 0.9, 4.0"}
    assert {*numbers_of([other], ()).values()} == {"0.9, 0.1, 4.0"}


class Trainer:
    def __init__(self, **settings):
        self.step, self.began, self.log = 0, time.time(), {"caf\udce9": 3}
        self.arguments = argparse.Namespace(temperature=4.0, **settings)

    def __call__(self, outputs, batch):
        self.step += 1
        assert time.time() >= self.began
        assert self.log
        return by_closure(self.arguments.temperature)(outputs, batch)


def test_what_a_rerun_has_otherwise_is_no_number(tmp_path):
    calls = size = 0

    def counted(outputs, batch):
        nonlocal calls
        calls += 1
        return hard_targets(outputs, batch) * batch.inputs.size(0) / 8

    assert numbers_of([counted], ()).keys() == {f"{counted.__qualname__}.numbers"}
    assert size == 0
    first, second = Trainer(epochs=2, workers=2), Trainer(epochs=3, workers=8)
    fit(first, 2, tmp_path / "c")
    fit(second, 3, tmp_path / "c")
    fit(first, 4, tmp_path / "c")  # as a cell of a notebook that is run again
    assert first.step == 3 * STEPS


def test_a_file_that_has_another_number_on_its_disk_is_the_trainings_own(tmp_path):
    fit(by_closure(4.0), 1, tmp_path / "c")
    network = student()
    progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
    content = (tmp_path / "c").read_bytes()
    (tmp_path / "other").write_bytes(content)
    (tmp_path / "other").replace(tmp_path / "c")
    with pytest.warns(OtherStart):
        assert train(progress, 2, by_closure(5.0)).epoch == 2


def test_a_checkpoint_without_numbers_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("kdlib.held.numbers_of", lambda functions, known: {})
        fit(by_closure(4.0), place=tmp_path / "c")
    network = student()
    progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
    assert [*epochs(progress, BATCHES, by_closure(20.0), count=3, seed=0)] == [3]


def test_long_names_are_told_apart_by_their_ends():
    def a_function_with_a_name_that_is_as_long_as_the_names_of_functions_in_tests_are():
        first, second = 2.5, 3.5
        return lambda outputs, batch: first * second * 4.5

    found = numbers_of([a_function_with_a_name_that_is_as_long_as_the_names_of_functions_in_tests_are()], ())
    assert {name[-8:]: value for name, value in found.items()} == {
        "a>.first": "2.5",
        ">.second": "3.5",
        ".numbers": "4.5",
    }


# ---- what is filled once, and what is meant to be in training mode


def test_caches_that_are_full_after_an_epoch_are_not_told(tmp_path):
    network, cache = teacher().eval().requires_grad_(False), torch.full((len(BATCHES.examples.labels), 3), float("nan"))

    def objective(outputs, batch):
        if (new := cache[batch.indices].isnan().any(1)).any():
            cache[batch.indices[new]] = network(batch.inputs[new])
        return soft_target_kl(outputs, cache[batch.indices], 2.0)

    fit(objective, 5, tmp_path / "c")


def test_networks_that_learn_between_steps_without_requires_grad_are_not_told(tmp_path):
    judge, mean = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), teacher().requires_grad_(False)

    def learns(outputs, batch):
        with torch.no_grad():
            for weight in mean.parameters():
                weight *= 0.9
        return hard_targets(outputs, batch) + soft_target_kl(outputs, mean(batch.inputs), 2.0) - judge(outputs).mean()

    def body(epoch):
        with torch.no_grad():
            for weight in judge.parameters():
                weight += 0.1

    judge.requires_grad_(False)
    fit(learns, 2, body=body)


def test_the_layers_of_a_teacher_are_compared_once_and_not_for_each_call(monkeypatch):
    compared = []
    network = nn.Sequential(nn.Linear(4, 3), *(nn.Dropout(0.1) for _ in range(20)))
    monkeypatch.setattr("kdlib.held.sample", lambda weight: compared.append(weight))
    with pytest.warns(TeacherInTraining):
        fit(taught_by(network), 1)
    assert len(compared) < 40  # of 20 layers with two weights, in three steps


def test_a_layer_without_a_rate_in_a_network_that_asks_its_mode_drops_nothing():
    class Block(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.dense, self.dropout = nn.Linear(4, 3), dropout

        def forward(self, inputs):
            return self.dropout(self.dense(inputs) * (1.0 if self.training else 1))

    class Decorated(ByHand):
        @torch.no_grad()
        def forward(self, inputs):
            return F.dropout(self.dense(inputs), self.p, self.training)

    fit(taught_by(Block(nn.Identity())), 1)
    fit(taught_by(Block(nn.Dropout(0.0))), 1)
    with pytest.warns(TeacherInTraining):
        fit(taught_by(Decorated(0.5)), 1)


def test_numbers_of_what_is_not_contiguous_or_complex_are_known_again():
    pictures = np.random.default_rng(0).random((6, 5, 4, 3))
    view = pictures.transpose(0, 3, 1, 2)
    assert sample(view) == sample(view.copy()) == sample(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    assert sample(view) != sample(view + 1)
    turns = torch.polar(torch.ones(5), torch.arange(5.0))
    others = turns.conj().clone(), turns.real + 0j
    assert sample(turns) == sample(turns.clone()) is not None
    assert sample(turns) not in map(sample, others)


class Annealed:
    """It is not called, but holds a number that the objective reads and the body changes."""

    def __init__(self):
        self.temperature = 4.0

    def state_dict(self):
        return {"temperature": self.temperature}

    def load_state_dict(self, state):
        self.temperature = state["temperature"]

    def step(self, epoch):
        self.temperature *= 0.8


class Center(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("now", torch.zeros(3))


def test_what_only_the_body_or_a_hook_of_the_optimizer_changes_is_told_too(tmp_path):
    annealed, center, network, last = Annealed(), Center(), student(), []

    def cools(outputs, batch):
        return hard_targets(outputs / annealed.temperature, batch)

    def centred(outputs, batch):
        last[:] = [outputs.detach().mean(0)]
        return hard_targets(outputs - center.now, batch)

    with pytest.warns(StateNotSaved, match="hold a Annealed that changes"):
        fit(cools, 3, tmp_path / "c", annealed.step)
    optimizer = adam(network)
    optimizer.register_step_post_hook(lambda *_: center.now.mul_(0.9).add_(0.1 * last[0]))
    with pytest.warns(StateNotSaved, match="hold a Center that changes"):
        train(Progress(network, optimizer, checkpoint=tmp_path / "d"), 3, centred)
