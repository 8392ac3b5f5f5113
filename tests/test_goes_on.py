"""A training that is stopped and run again ends in the same weights, whatever its layers and optimizer."""

import gc
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.networks import keras_glorot_
from kdlib.ownership import OtherStart
from kdlib.seeds import generator
from kdlib.training import Progress, hard_targets
from tests.made_runs import Killed
from tests.small_trainings import BATCHES, EXAMPLES, INPUTS, STEPS, Centred, adam, same, state_of, student, train

# ---- what goes on as it was


NUMBERS = {
    "float64": np.float64,
    "float32": np.float32,
    "tensor": torch.tensor,
    "float": float,
    "int64": lambda rate: np.int64(round(rate)),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_rate_of_dropout_of_any_kind_of_number_goes_on(tmp_path, kind):
    def run(name, count):
        model = student(nn.Dropout(0.0))

        def body(epoch):
            model[1].p = NUMBERS[kind](0.2 * epoch)

        train(Progress(model, adam(model), checkpoint=tmp_path / name), count, body=body)
        return model

    whole = run("whole", 4)
    run("c", 2)
    assert same(whole.state_dict(), run("c", 4).state_dict())


class Lookahead(torch.optim.SGD):
    """An optimizer with an entry of its own in its state: slow weights, to which the fast ones go back."""

    def __init__(self, parameters, strict, **settings):
        super().__init__(parameters, **settings)
        self.strict, self.steps = strict, 0
        self.slow = [weight.detach().clone() for group in self.param_groups for weight in group["params"]]

    def step(self, closure=None):
        super().step()
        self.steps += 1
        weights = [weight for group in self.param_groups for weight in group["params"]]
        if self.steps % 4 == 0:
            with torch.no_grad():
                for weight, slow in zip(weights, self.slow, strict=True):
                    slow += 0.5 * (weight - slow)
                    weight.copy_(slow)

    def state_dict(self):
        return super().state_dict() | {"slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state):
        if self.strict or "slow" in state:
            self.slow, self.steps = [value.clone() for value in state["slow"]], state["steps"]
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})


@pytest.mark.parametrize("strict", [True, False])
def test_an_optimizer_with_a_state_of_its_own_goes_on(tmp_path, strict):
    def run(name, count, order=1):
        model = student()
        optimizer = Lookahead([*model.parameters()][::order], strict, lr=0.1, momentum=0.9)
        return train(Progress(model, optimizer, checkpoint=tmp_path / name), count).model

    whole = run("whole", 3)
    run("c", 1)
    assert same(whole.state_dict(), run("c", 3).state_dict())
    with pytest.raises(KDError, match="does not know the order of its 'slow'; give it a list"):
        run("c", 4, order=-1)


def test_buffers_that_cannot_be_written_or_saved_are_left_alone(tmp_path):
    def run(name, count):
        model = keras_glorot_(Centred(), generator(0, "weights"))
        model.register_buffer("ones", torch.ones(3, 1).expand(3, 3), persistent=False)
        model.register_buffer("links", torch.eye(6).to_sparse(), persistent=False)
        return train(Progress(model, adam(model), checkpoint=tmp_path / name), count).model

    whole = run("whole", 3)
    run("c", 1)
    assert same(whole.state_dict(), run("c", 3).state_dict())


def test_the_mode_of_an_extra_goes_on(tmp_path):
    def run(name, count):
        model, hint = student(), keras_glorot_(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), generator(0, "hint"))
        hint.requires_grad_(False)

        def body(epoch):
            if epoch == 2:
                hint.eval()

        progress = Progress(model, adam(model), checkpoint=tmp_path / name, extras={"hint": hint})
        train(progress, count, objective=lambda o, b: nn.functional.cross_entropy(hint(o), b.labels), body=body)
        return model

    whole = run("whole", 4)
    run("c", 2)
    assert same(whole.state_dict(), run("c", 4).state_dict())


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
    message = r"frozen: the checkpoint has \['1'\], this training \[\]\).* make the network again; else give"
    with pytest.raises(KDError, match=message):
        run(False)


class KeepsItsNorm(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


@pytest.mark.parametrize("again", ["new", "set to training", "evaluated and trained", "the same"])
def test_a_network_that_freezes_its_norm_in_its_own_train_goes_on_however_it_was_set(tmp_path, again):
    def run(checkpoint, count, network=None, prepare=lambda network: None):
        network = network or KeepsItsNorm(*student(nn.BatchNorm1d(8)))
        prepare(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OtherStart)
            train(Progress(network, adam(network), checkpoint=tmp_path / checkpoint), count)
        return network

    first = run("c", 1)
    modes = {
        "set to training": lambda network: network.train(),
        "evaluated and trained": lambda network: network.eval().train(),
    }
    found = run("c", 3, first if again == "the same" else None, modes.get(again, lambda network: None))
    assert same(found.state_dict(), run("whole", 3).state_dict())
    assert found[1].num_batches_tracked == 0


def test_weights_kept_before_the_loop_remain_those_of_before_it(tmp_path):
    def run(count, *names):
        model = student()
        progress = Progress(model, adam(model), checkpoint=tmp_path / "c", traced=True)
        for name in names:
            progress.keep(name)
        return train(progress, count)

    first = state_of(student())
    assert same(run(1, "initial").kept["initial"], first)
    resumed = run(2, "initial")
    assert same(resumed.kept["initial"], first)
    assert resumed.traces[0]["kept"] == {"initial": [0]}
    with pytest.raises(KDError, match=r"none under 'other': those of now are of a later epoch; keep them in the loop"):
        run(3, "initial", "other")


def test_an_average_that_the_batches_update_goes_on(tmp_path):
    def run(name, *kill_at):
        model, calls = student(), []
        average = AveragedModel(model)

        def batches(epoch):
            for batch in BATCHES(epoch):
                average.update_parameters(model)
                yield batch

        def loss(outputs, batch):
            calls.append(batch)
            if len(calls) in kill_at:
                raise Killed
            return hard_targets(outputs, batch)

        progress = Progress(
            model, adam(model), checkpoint=tmp_path / name, extras={"average": average}, on_step=Progress.save
        )
        train(progress, 2, objective=loss, batches=batches)
        return average

    whole = run("whole")
    with pytest.raises(Killed):
        run("c", STEPS + 3)  # after two steps of the second epoch
    resumed = run("c")
    assert resumed.n_averaged == whole.n_averaged == 2 * STEPS
    assert same(whole.state_dict(), resumed.state_dict())


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_student_goes_on(tmp_path):
    def run(count):
        model = torch.jit.script(student())
        return train(Progress(model, adam(model), checkpoint=tmp_path / "c"), count)

    run(1)
    assert run(2).epoch == 2


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


class HalvingScheduler:
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
        scheduler = HalvingScheduler(optimizer)
        extras = {"scheduler": scheduler} if given else {}
        progress = Progress(model, optimizer, checkpoint=tmp_path / name, extras=extras)
        train(progress, count, body=lambda epoch: scheduler.step())
        return model

    whole = run("whole", 3)
    run("c", 1)
    assert same(whole.state_dict(), run("c", 3).state_dict())
    with pytest.raises(KDError, match=r"Progress does not have HalvingScheduler; name each of them in Progress"):
        run("d", 1, given=False)


class WarmUp:
    """A wrapper of a scheduler of torch, of another library."""

    def __init__(self, scheduler):
        self.scheduler, self.done = scheduler, 0

    def step(self):
        self.done += 1
        self.scheduler.step()

    def state_dict(self):
        return {"done": self.done, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state):
        self.done = state["done"]
        self.scheduler.load_state_dict(state["scheduler"])


def test_a_scheduler_within_another_one_goes_on(tmp_path):
    def run(name, count):
        model = student()
        optimizer = adam(model)
        scheduler = WarmUp(lr_scheduler.StepLR(optimizer, 1, 0.5))
        progress = Progress(model, optimizer, checkpoint=tmp_path / name, extras={"scheduler": scheduler})
        train(progress, count, body=lambda epoch: scheduler.step())
        return model

    whole = run("whole", 3)
    run("c", 1)
    assert same(whole.state_dict(), run("c", 3).state_dict())


def test_an_optimizer_whose_scheduler_is_gone_trains_another_loop(tmp_path):
    model = student()
    optimizer = adam(model)
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.1)
    train(Progress(model, optimizer, checkpoint=tmp_path / "a", extras={"scheduler": scheduler}), 1)
    del scheduler
    gc.collect()
    assert train(Progress(model, optimizer, checkpoint=tmp_path / "b"), 1).epoch == 1


# ---- entries of an optimizer's state


class Keeping(torch.optim.Optimizer):
    """Gradient descent that keeps an entry of the first step: torch gives it the type of the weight on loading."""

    def __init__(self, parameters, kind, lr=0.05):
        super().__init__(parameters, {"lr": lr})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                state, step = self.state[weight], group["lr"] * weight.grad
                state["entries"] = state.get("entries") or self.made(weight)
                entry = state["entries"][-1]["it"]
                if self.kind == "exact":
                    weight.copy_(entry.sub_(step.to(entry.dtype)))
                elif self.kind == "mask":
                    weight[entry] -= step[entry]
                else:
                    weight.view(-1)[entry] -= step.flatten()[entry]

    def made(self, weight):
        large = weight.abs() > 0.1
        kept = {"exact": weight.double(), "mask": large, "rows": large.flatten().nonzero()[:, 0]}[self.kind]
        return ["first", {"it": kept}]


@pytest.mark.parametrize("kind", ["exact", "mask", "rows"])
def test_entries_of_an_optimizer_keep_their_types(tmp_path, kind):
    def run(name, count):
        model = student()
        return train(Progress(model, Keeping(model.parameters(), kind), checkpoint=tmp_path / name), count).model

    whole = run("whole", 4)
    for count in range(1, 5):
        last = run("c", count)
    assert same(whole.state_dict(), last.state_dict())


@pytest.mark.parametrize("kind", ["NAdam", "ASGD", "Adam"])
def test_torchs_optimizers_of_a_network_in_16_bits_go_on(tmp_path, kind):
    """NAdam's mu_product is float32, whatever the weights are."""
    examples = Examples(INPUTS.bfloat16(), EXAMPLES.labels)

    def run(name, count):
        model = student().bfloat16()
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.02)
        train(Progress(model, optimizer, checkpoint=tmp_path / name), count, batches=Batches(examples, 8, 0))
        return {f"{n}.{key}": value for n, state in enumerate(optimizer.state.values()) for key, value in state.items()}

    whole = run("whole", 4)
    for count in range(1, 5):
        last = run("c", count)
    assert same(whole, last)
    assert {key: value.dtype for key, value in whole.items()} == {key: value.dtype for key, value in last.items()}


# ---- extras


class Average:
    """A running mean of the weights; its state has its settings too."""

    def __init__(self, model, decay):
        self.decay, self.kept = decay, state_of(model)

    def state_dict(self):
        return {"settings": {"decay": self.decay, "steps": [0]}, "kept": self.kept}

    def load_state_dict(self, state):
        self.decay, self.kept = state["settings"]["decay"], dict(state["kept"])


def test_an_extra_with_other_settings_is_told(tmp_path):
    def run(decay, count):
        model = student()
        extras = {"average": Average(model, decay)}
        return train(Progress(model, adam(model), checkpoint=tmp_path / "c", extras=extras), count)

    run(0.9, 2)
    expected = (
        r"these extras are not as .* began: average\.settings\.decay: the checkpoint has '0.9', this training '0.5'"
    )
    with pytest.warns(OtherStart, match=expected):
        run(0.5, 3)
    run(0.9, 4)  # warnings are errors here


class Several:
    """Schedulers in a dictionary and in a list within it."""

    def __init__(self, *schedulers):
        self.each = {"main": schedulers[0], "others": [*schedulers[1:]]}

    def every(self):
        return [self.each["main"], *self.each["others"]]

    def state_dict(self):
        return {"states": [scheduler.state_dict() for scheduler in self.every()]}

    def load_state_dict(self, state):
        for scheduler, own in zip(self.every(), state["states"], strict=True):
            scheduler.load_state_dict(own)


def test_schedulers_within_an_extra_are_no_lost_ones(tmp_path):
    def run(name, count):
        model = student()
        optimizer = adam(model)
        steps = Several(lr_scheduler.StepLR(optimizer, 1, 0.5), lr_scheduler.ExponentialLR(optimizer, 0.9))

        def body(epoch):
            for scheduler in steps.every():
                scheduler.step()

        return train(Progress(model, optimizer, checkpoint=tmp_path / name, extras={"s": steps}), count, body=body)

    whole = run("whole", 3)
    run("c", 2)
    assert same(whole.model.state_dict(), run("c", 3).model.state_dict())


class Counting(torch.optim.SGD):
    """An optimizer with an entry of its own next to those of its weights."""

    def step(self, closure=None):
        super().step()
        self.state["all"] = {"steps": self.state.get("all", {}).get("steps", 0) + 1, "sum": torch.ones(2)}


def test_an_entry_of_the_optimizer_as_a_whole_goes_on(tmp_path):
    def run(name, count):
        model = student()
        optimizer = Counting(model.parameters(), lr=0.1, momentum=0.9)
        train(Progress(model, optimizer, checkpoint=tmp_path / name), count)
        return model.state_dict(), optimizer.state["all"]["steps"]

    (whole, steps), _ = run("whole", 4), run("c", 2)
    found, again = run("c", 4)
    assert same(whole, found)
    assert steps == again == 4 * STEPS
