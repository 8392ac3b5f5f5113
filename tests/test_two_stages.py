"""Trainings in several stages, layers with versions, and extras that have an optimizer or a scheduler of their own."""

import gc
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from kdlib.errors import KDError
from kdlib.modes import TrainedInEvaluation
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


def peer_training(folder, count, order=slice(None), change=None, body=None, batches=BATCHES, **settings):
    """A student, and a peer of its own optimizer, which the body of the loop trains with the epoch's number as goal."""
    model, peer = student(), student(name="peer")
    weights = [*peer.parameters()][order]
    other = (change or torch.optim.SGD)(weights, **{"lr": 0.01, "momentum": 0.9, **settings})
    extras = {"peer": peer, "optimizer": other}
    progress = Progress(model, adam(model), checkpoint=folder / "c", extras=extras)

    def usual(epoch):
        other.zero_grad()
        (peer(EXAMPLES.inputs) - epoch).square().mean().backward()
        other.step()

    train(progress, count, body=body or usual, batches=batches)
    return state_of(peer)


def test_the_weights_of_an_extras_optimizer_are_found_by_their_names(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "c").mkdir()
    whole = peer_training(tmp_path / "whole", 4)
    peer_training(tmp_path / "c", 2)
    assert same(whole, peer_training(tmp_path / "c", 4, order=slice(None, None, -1)))  # as that of a set may be


OTHERS = {
    "rate": (
        {"lr": 0.1},
        r"expected the learning rates that .*\[0.01\], found \[0.1\]; give the optimizer 'optimizer' ",
    ),
    "weight decay": ({"weight_decay": 0.5}, r"extras\.optimizer\.group 0\.weight_decay: the checkpoint has 0"),
    "class": ({"change": torch.optim.RMSprop}, r"extras\.optimizer\.class: the checkpoint has 'SGD'"),
    "weights": ({"order": slice(2)}, r"extras\.optimizer\.weights\.group 0: the checkpoint has \['extras/peer/2"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizer_among_the_extras_is_refused(tmp_path, name):
    changed, told = OTHERS[name]
    peer_training(tmp_path, 1)
    with pytest.raises(KDError, match=told):
        peer_training(tmp_path, 2, **changed)


def test_an_extras_optimizer_that_the_batches_step_loses_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr("kdlib.progress.CHECKPOINT_SECONDS", 0)  # after every step

    def run(name, stop=None):
        (tmp_path / name).mkdir(exist_ok=True)
        model = student()
        other = torch.optim.SGD([*model.parameters()][:2], lr=0.01, momentum=0.9)
        optimizer = torch.optim.Adam([*model.parameters()][2:], lr=0.05)
        progress = Progress(model, optimizer, checkpoint=tmp_path / name / "c", extras={"other": other})

        def batches(epoch):
            for step, batch in enumerate(BATCHES(epoch)):
                if (epoch, step) == stop:
                    raise Killed
                yield batch
                other.step()
                other.zero_grad()

        train(progress, 3, batches=batches)  # and no warning that some weights are not trained
        return state_of(model)

    whole = run("whole")
    with pytest.raises(Killed):
        run("c", stop=(2, 2))
    assert same(whole, run("c"))


class Bank(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(0, 3))


def test_extras_that_could_not_be_loaded_again_are_refused_at_the_first_checkpoint(tmp_path):
    model, bank = student(), Bank()

    def grow(epoch):
        bank.queue = torch.cat([bank.queue, torch.ones(2, 3)])

    progress = Progress(model, adam(model), checkpoint=tmp_path / "a", extras={"bank": bank})
    with pytest.raises(
        KDError, match=r"found extras/bank/queue of shape \(2, 3\), then \(0, 3\); .* which is no module"
    ):
        train(progress, body=grow)
    model, peer = student(), student(name="peer")
    other = torch.optim.SGD(peer[0].parameters(), lr=0.1)
    progress = Progress(model, adam(model), checkpoint=tmp_path / "b", extras={"peer": peer, "other": other})
    with pytest.raises(KDError, match="expected as many groups of weights as the optimizer had at first, 1, found 2"):
        train(progress, body=lambda epoch: other.add_param_group({"params": [*peer[2].parameters()]}))
    assert not [*tmp_path.iterdir()]


class Average:
    """An average of weights that is no module, as papers write it; and a counter, which begins with 0."""

    def __init__(self, *weights):
        self.weights, self.mean, self.count = weights, [w.detach().clone() for w in weights], torch.tensor(0.0)

    def state_dict(self):
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state):
        self.mean, self.count = state["mean"], state["count"]


class Holder(Average):
    """Its state is the weights themselves, as copies."""

    def state_dict(self):
        return {"weights": [weight.detach().clone() for weight in self.weights]}

    def load_state_dict(self, state):
        with torch.no_grad():
            for weight, value in zip(self.weights, state["weights"], strict=True):
                weight.copy_(value)


def test_an_equal_number_in_an_extra_is_no_copy_of_a_weight(tmp_path):
    def begin(kind):
        model, heat = student(), nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.Adam([*model.parameters(), heat])
        progress = Progress(model, optimizer, checkpoint=tmp_path / kind.__name__, extras={"extra": kind(heat)})
        train(progress, 1, objective=lambda o, b: nn.functional.cross_entropy(o * heat.exp(), b.labels))
        return heat.detach()

    with pytest.raises(
        KDError, match=r"expected the weights of all optimizers in the checkpoint, found 1 .* shape \(\):"
    ):
        begin(Average)
    assert float(begin(Holder)) != 0


def test_gradients_that_are_zeroed_in_place_are_no_kept_ones(tmp_path):
    class InPlace(torch.optim.SGD):
        def zero_grad(self):
            for weight in self.param_groups[0]["params"]:
                if weight.grad is not None:
                    weight.grad.zero_()

    def run(kind):
        model = student()
        train(Progress(model, kind(model.parameters(), lr=0.1), checkpoint=tmp_path / kind.__name__))
        return state_of(model)

    assert same(run(InPlace), run(torch.optim.SGD))


def test_a_head_alone_in_training_mode_is_trained_alone(tmp_path):
    model = student(nn.BatchNorm1d(8))
    model.eval()
    model[2].train()
    with pytest.warns(
        TrainedInEvaluation, match="training, .*: 0 have weights to train and are in evaluation mode, .* a B"
    ):
        train(Progress(model, adam(model), checkpoint=tmp_path / "c"))
    assert int(model[1].num_batches_tracked) == 0
    assert [part.training for part in model] == [False, False, True]


def test_classes_in_the_place_of_objects_are_told():
    model = student()
    scheduler = lr_scheduler.StepLR(adam(model), 1)
    for wrong in (torch.optim.SGD, scheduler):
        with pytest.raises(KDError, match=r"optimizer: expected .*Optimizer, found"):
            Progress(model, wrong)
    with pytest.raises(KDError, match=r"extras: expected objects with state_dict .*, found type under"):
        Progress(model, adam(model), extras={"peer": nn.Linear})


def test_a_scheduler_that_the_batches_step_goes_on_without_a_warning_of_torch(tmp_path):
    def run(stop=False):
        model = student()
        optimizer = adam(model)
        scheduler = lr_scheduler.StepLR(optimizer, 2, 0.5)

        def batches(epoch):
            for batch in BATCHES(epoch):
                yield batch
                scheduler.step()

        def stopped(progress):
            progress.save()
            if stop:
                raise Killed

        extras = {"scheduler": scheduler}
        progress = Progress(model, optimizer, checkpoint=tmp_path / "c", extras=extras, on_step=stopped)
        return train(progress, 1, batches=batches).epoch

    with pytest.raises(Killed):
        run(stop=True)
    assert run() == 1


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


def test_a_body_that_evaluates_the_parts_one_by_one_freezes_none():
    """The whole model holds nothing itself, so its own mode says nothing."""
    model = student(nn.BatchNorm1d(8))

    def body(epoch):
        for part in model:
            part.eval()

    train(Progress(model, adam(model)), 3, body=body)
    assert model[1].num_batches_tracked == 3 * len([*BATCHES(1)])


def test_parts_that_are_all_in_evaluation_mode_before_the_loop_remain_so():
    model = student(nn.BatchNorm1d(8))
    for part in model:
        part.eval()
    with pytest.warns(TrainedInEvaluation, match="training: 0, 2 have weights"):
        train(Progress(model, adam(model)), 2)
    assert model[1].num_batches_tracked == 0


def test_a_new_head_of_an_evaluated_network_is_told():
    """Only the new layer is in training mode: the others would be fine-tuned with the old averages."""
    model = student(nn.BatchNorm1d(8))
    model.eval()
    model[2] = nn.Linear(8, 3)
    with pytest.warns(TrainedInEvaluation, match=r"and so does a BatchNorm1d there: .* Call model\.train\(\) before"):
        train(Progress(model, adam(model)))
    model.train()
    train(Progress(model, adam(model)), 2)  # without a warning, which would fail
    assert model[1].num_batches_tracked == 2 * len([*BATCHES(1)])


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Dropout(0.0)], ids=str)
def test_a_part_that_the_body_leaves_in_evaluation_mode_is_told_once_if_that_changes_the_training(layer):
    model = nn.ModuleDict({"student": student(layer), "hint": nn.Linear(8, 8)})
    model.forward = lambda inputs: model["student"](inputs)
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in epochs(progress, BATCHES, hard_targets, count=3, seed=0):
            model["student"].eval()
    texts = [str(each.message) for each in told if issubclass(each.category, TrainedInEvaluation)]
    changes = isinstance(layer, nn.BatchNorm1d) or getattr(layer, "p", 0) > 0
    assert len(texts) == changes
    assert all("student.0, student.2 have weights to train" in text for text in texts)


@pytest.mark.parametrize("freeze", ["norm in the body", "frozen backbone", "last epoch", "teacher within"])
def test_a_frozen_part_is_no_slip(freeze):
    model = nn.ModuleDict({"student": student(nn.BatchNorm1d(8)), "teacher": student(nn.Dropout(0.5))})
    model.forward = lambda inputs: model["student"](inputs)
    if freeze == "frozen backbone":
        model["student"][0].requires_grad_(False)
        model["student"].eval()
        model["student"][2].train()
    if freeze == "teacher within":
        model["teacher"].requires_grad_(False).eval()
    weights = [weight for weight in model["student"].parameters() if weight.requires_grad]
    model["teacher"].requires_grad_(False)
    progress = Progress(model, torch.optim.SGD(weights, lr=0.1))
    for epoch in epochs(progress, BATCHES, hard_targets, count=3, seed=0):  # a warning would fail
        if freeze == "norm in the body":
            model["student"][1].eval()
        if freeze == "last epoch" and epoch == 3:
            model["student"].eval()
