"""Trainings in several stages, layers with versions, and extras that have an optimizer or a scheduler of their own."""

import gc

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from kdlib.errors import KDError
from kdlib.training import Progress, epochs, hard_targets
from tests.made_runs import Killed
from tests.small_trainings import BATCHES, EXAMPLES, adam, same, state_of, student, train

# ---- a second loop, after a first one that had ended


def frozen_in_the_body(model, epoch):
    if epoch == 2:
        model[1].eval()


def evaluated_in_the_body(model, epoch):
    model.eval()
    model.train()


def left_in_evaluation(model, epoch):
    model.eval()


def thawed_in_the_body(model, epoch):
    model[1].train()


BODIES = (frozen_in_the_body, evaluated_in_the_body, left_in_evaluation, thawed_in_the_body)


@pytest.mark.parametrize("first", ["frozen at first", "training"])
@pytest.mark.parametrize("body", BODIES, ids=[body.__name__ for body in BODIES])
def test_a_finished_first_stage_leaves_each_module_in_its_mode(tmp_path, body, first):
    def run(name, stages=2, stop=None):
        (tmp_path / name).mkdir(exist_ok=True)
        model = student(nn.BatchNorm1d(8))
        model[1].train(first == "training")
        for stage in range(stages):
            progress = Progress(model, adam(model), checkpoint=tmp_path / name / str(stage))
            for epoch in train_epochs(progress, 3):
                body(model, epoch) if stage == 0 else None
                if (stage, epoch) == stop:
                    raise Killed
        return state_of(model)

    whole = run("whole")
    assert same(whole, run("whole"))  # finished already
    run("c", stages=1)
    with pytest.raises(Killed):
        run("c", stop=(1, 2))
    assert same(whole, run("c"))


def train_epochs(progress, count):
    """The epochs one by one, so that the body can stop the training."""
    return epochs(progress, BATCHES, hard_targets, count=count, seed=0)


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_training_that_is_over_is_gone_at_once(without_collector, tmp_path):
    class Weak(nn.Linear):
        gone = False

        def __del__(self):
            Weak.gone = True

    def stage():
        model = nn.Sequential(Weak(4, 3))
        train(Progress(model, adam(model), checkpoint=tmp_path / "c", traced=True), 1)

    stage()
    assert Weak.gone


def test_a_scheduler_of_an_earlier_stage_is_none_of_the_next_one(without_collector):
    model = student()
    optimizer = adam(model)

    def stage():
        scheduler = lr_scheduler.StepLR(optimizer, 1)
        progress = Progress(model, optimizer, extras={"scheduler": scheduler})
        progress.itself = progress  # a cycle of the user's: Python frees it later
        train(progress, body=lambda epoch: scheduler.step())

    stage()
    assert train(Progress(model, optimizer), rate=lambda epoch: 0.01).epoch == 2


class Trainer:
    """Has the methods of a scheduler, and is none."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class CosineScheduler(Trainer):
    """As those of other libraries, which are no subclasses of torch's."""


def test_what_only_looks_like_a_scheduler_is_none(tmp_path):
    model = student()
    optimizer = adam(model)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    trainer = Trainer(optimizer)
    assert train(Progress(model, optimizer, checkpoint=tmp_path / "c", extras={"s": scheduler}), 1).epoch == 1
    assert trainer.optimizer is optimizer
    forgotten = CosineScheduler(optimizer)
    with pytest.raises(KDError, match="does not have CosineScheduler; name each"):
        train(Progress(model, optimizer, checkpoint=tmp_path / "d", extras={"s": scheduler}), 1)
    del forgotten


# ---- layers with versions: torch keeps the version next to the state, and old files are converted


class SecondVersion(nn.Linear):
    _version = 2

    def _load_from_state_dict(self, state, prefix, about, *others):
        if about.get("version") is None:
            raise ValueError("expected a version")
        if about["version"] < 2:
            state[f"{prefix}weight"] = 2 * state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, about, *others)


def test_layers_with_versions_keep_their_weights(tmp_path):
    def run(name, count):
        model = nn.Sequential(SecondVersion(4, 3, bias=False))
        model[0].weight.data = torch.arange(12.0).view(3, 4) / 12
        extras = {"mean": torch.optim.swa_utils.AveragedModel(model)}
        progress = Progress(model, adam(model), checkpoint=tmp_path / name if name else None, extras=extras)
        train(progress, count, body=lambda epoch: extras["mean"].update_parameters(model))
        progress.keep("last")
        progress.restore("last")
        return state_of(model) | {f"mean.{key}": value for key, value in state_of(extras["mean"]).items()}

    plain = run(None, 3)
    assert same(plain, run("whole", 3))
    run("c", 1)
    assert same(plain, run("c", 3))
    older = SecondVersion(4, 3)
    SecondVersion._version = 1
    try:
        train(Progress(older, adam(older), checkpoint=tmp_path / "older"), 1)
    finally:
        SecondVersion._version = 2
    first, newer = state_of(older), SecondVersion(4, 3)
    with pytest.warns(UserWarning, match="began with"):
        Progress(newer, adam(newer), checkpoint=tmp_path / "older")
    assert torch.equal(newer.weight, 2 * first["weight"])  # as torch loads it


# ---- extras with an optimizer of their own


def with_a_peer(folder, extras, optimizer=adam, layer=None):
    """A student and a peer that has an optimizer, of which the checkpoint has the `extras` named."""
    model, peer = student(), layer or nn.Linear(4, 3)
    every = {"peer": peer, "optimizer": optimizer(peer)}
    every["scheduler"] = lr_scheduler.StepLR(every["optimizer"], 1, 0.5)
    named = {name: every[name] for name in extras}
    return Progress(model, adam(model), checkpoint=folder / "c", extras=named), every


def test_weights_and_schedulers_of_an_extras_optimizer_must_be_saved_too(tmp_path):
    progress, every = with_a_peer(tmp_path, ["optimizer", "scheduler"])
    with pytest.raises(KDError, match=r"weights of all optimizers in the checkpoint, found 2 .* shape \(3, 4\)"):
        train(progress)
    progress, every = with_a_peer(tmp_path, ["peer", "optimizer"])
    with pytest.raises(KDError, match="found that Progress does not have StepLR; name each"):
        train(progress)
    progress, every = with_a_peer(tmp_path, ["peer", "optimizer", "scheduler"])
    assert train(progress, rate=lambda epoch: 0.01).epoch == 2  # the rate is that of the student
    assert every["optimizer"].param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("fused", [False, True])
def test_an_extras_optimizer_goes_on_with_moments_as_its_weights_lie_in_memory(tmp_path, fused):
    def make(model):
        return torch.optim.Adam(model.parameters(), lr=0.05, fused=fused)

    def run(name, count):
        (tmp_path / name).mkdir(exist_ok=True)
        torch.manual_seed(0)
        layer = nn.Conv2d(2, 3, (2, 3)).to(memory_format=torch.channels_last)
        progress, every = with_a_peer(tmp_path / name, ["peer", "optimizer", "scheduler"], make, layer)

        def body(epoch):
            every["optimizer"].zero_grad()
            inputs = EXAMPLES.inputs.view(8, 2, 2, 3).to(memory_format=torch.channels_last)
            layer(inputs).square().sum().backward()
            every["optimizer"].step()

        train(progress, count, body=body)
        return state_of(layer)

    whole = run("whole", 4)
    run("c", 2)
    assert same(whole, run("c", 4))


def test_a_lazy_extra_is_named(tmp_path):
    model, hint = student(), nn.LazyLinear(2)
    optimizer = torch.optim.SGD([*model.parameters(), *hint.parameters()], lr=0.1)
    with pytest.raises(KDError, match=r"found the lazy weight of the extra 'hint'; call it first"):
        Progress(model, optimizer, checkpoint=tmp_path / "c", extras={"hint": hint})


# ---- names


def test_an_optimizer_of_named_weights_goes_on_with_a_wrapped_network(tmp_path):
    def run(wrap):
        model = wrap(student())
        progress = Progress(model, torch.optim.SGD(model.named_parameters(), lr=0.1), checkpoint=tmp_path / "c")
        return progress.epoch

    plain = student()
    train(Progress(plain, torch.optim.SGD(plain.named_parameters(), lr=0.1), checkpoint=tmp_path / "c"), 1)
    assert run(lambda model: torch.compile(model, backend="eager")) == 1
    assert run(lambda model: model) == 1


def test_the_name_of_an_earlier_checkpoint_is_refused(tmp_path):
    model = student()
    with pytest.raises(KDError, match="expected a name that does not begin with 'previous-'"):
        Progress(model, adam(model), checkpoint=tmp_path / "previous-c")
