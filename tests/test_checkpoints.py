"""Whose a checkpoint is, and that it holds all that a training needs: rates, schedulers, averages, names, wrappers."""

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdlib.augment import mixup
from kdlib.batches import Batches, Examples
from kdlib.checkpoint import FORMAT
from kdlib.errors import KDError
from kdlib.files import load_tensors, save_tensors
from kdlib.losses import soft_target_kl
from kdlib.networks import keras_glorot_
from kdlib.packing import pack, unpack
from kdlib.progress import Progress
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import epochs, hard_targets
from tests.made_runs import Killed

pytestmark = pytest.mark.usefixtures("traced")

N, K, SIZE, SEED, STEPS = 20, 3, 8, 5, 3
INPUTS = torch.randn(N, 4, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :K].argmax(1))
SOFT = SoftTargets(INPUTS[:, :K] * 2, "teacher", EXAMPLES.digest)


def network(hidden=6):
    model = nn.Sequential(
        nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, K)
    )
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(1, "weights", number)))
    return model


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **settings})


def objective(outputs, batch):
    return soft_target_kl(outputs, batch.soft, 2.0)


def train(path, *, model=None, optimizer=sgd, batches=None, seed=SEED, count=2, rate=None, **about):
    model = model or network()
    progress = Progress(model, optimizer(model), checkpoint=path, **about)
    batches = batches or Batches(EXAMPLES, SIZE, SEED, SOFT)
    for _ in epochs(progress, batches, objective, count=count, seed=seed, rate=rate):
        pass
    return progress


# ---- whose a checkpoint is


def with_layer(number, layer):
    model = network()
    model[number] = layer
    return model


class Nothing(nn.Module):
    """A layer of a user: its class may be renamed, and so is not compared."""

    def forward(self, x):
        return x


MIXED = Batches(
    EXAMPLES, SIZE, SEED, SOFT, mix=lambda epoch: mixup(torch.arange(N), 0.2, generator(0, "mix", epoch)), classes=K
)
OWN = {"label": "student", "about": {"temperature": 4.0, "layers": [2, 3]}}
OTHERS = {
    "label": ({"label": "teacher"}, "label: the checkpoint has 'student', this training 'teacher'"),
    "temperature": (
        {"about": {"temperature": 8.0, "layers": [2, 3]}},
        "about.temperature: the checkpoint has 4.0, this training 8.0",
    ),
    "nothing said": ({"about": None}, "about.temperature: the checkpoint has 4.0, this training None"),
    "seed": ({"seed": 6}, "seed: the checkpoint has 5, this training 6"),
    "rows": (
        {"batches": Batches(Examples(INPUTS.flip(0), EXAMPLES.labels.flip(0)), SIZE, SEED)},
        f"data.digest: the checkpoint has '{EXAMPLES.digest}', this training '[0-9a-f]{{16}}'",
    ),
    "labels": ({"batches": Batches(Examples(INPUTS, (EXAMPLES.labels + 1) % K), SIZE, SEED)}, "data.digest"),
    "teacher": (
        {"batches": Batches(EXAMPLES, SIZE, SEED, replace(SOFT, logits=SOFT.logits * 2))},
        "data.soft.sha256: the checkpoint has",
    ),
    "batch size": ({"batches": Batches(EXAMPLES, 9, SEED, SOFT)}, "data.size: the checkpoint has 8, this training 9"),
    "order": ({"batches": Batches(EXAMPLES, SIZE, 6, SOFT)}, "data.seed: the checkpoint has 5, this training 6"),
    "mixed": ({"batches": MIXED}, "data.mixed: the checkpoint has False, this training True"),
    "dropout": (
        {"model": with_layer(3, nn.Dropout(0.5))},
        "network.3.p: the checkpoint has '0.2', this training '0.5'",
    ),
    "activation": ({"model": with_layer(2, nn.GELU())}, "network.2.class: the checkpoint has 'ReLU', this .* 'GELU'"),
    "a layer less": (
        {"model": with_layer(3, Nothing())},
        "network.3: the checkpoint has 'Dropout', this training None",
    ),
    "frozen layer": (
        {"model": with_layer(0, network()[0].requires_grad_(False))},
        "network.0.weight.requires_grad: the checkpoint has 'True', this training 'False'",
    ),
    "optimizer": (
        {"optimizer": lambda model: torch.optim.Adam(model.parameters())},
        r"found another's \(optimizer.class: the checkpoint has 'SGD', this training 'Adam'\)",
    ),
    "weight decay": (
        {"optimizer": lambda model: sgd(model, weight_decay=0.1)},
        "optimizer.group 0.weight_decay: the checkpoint has 0, this training 0.1",
    ),
    "learning rate": (
        {"optimizer": lambda model: sgd(model, lr=0.1)},
        r"expected the learning rates that the training began with, \[0.05\], found \[0.1\]",
    ),
    "network": (
        {"model": network(7)},
        r"network.0.weight: the checkpoint has 'float32 \(6, 4\)', this training 'float32 \(7, 4\)'.*and \d+ more",
    ),
    "precision": ({"model": network().double()}, "this training 'float64"),
    "fewer epochs": ({"count": 1}, "expected at most 1 epochs, as many as this loop is to train in all, found 2"),
}


@pytest.mark.parametrize(("change", "named"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("count", [2, 4])
def test_another_trainings_checkpoint_is_refused_with_what_differs(tmp_path, change, named, count):
    """Whether or not there are epochs left to train; the file stays as it is."""
    path = tmp_path / "c"
    train(path, **OWN)
    content = {file: file.read_bytes() for file in tmp_path.iterdir()}
    if change.get("count"):
        count = 1
    with pytest.raises(KDError, match=named) as caught:
        train(path, **(OWN | {"count": count} | change))
    assert str(path) in str(caught.value)
    assert "delete" in str(caught.value)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == content
    assert train(path, **OWN).epoch == 2


def test_the_same_training_goes_on_to_more_epochs(tmp_path):
    first = train(tmp_path / "c", count=2, **OWN)
    longer = train(str(tmp_path / "c"), count=4, **OWN)
    unbroken = train(None, count=4)
    assert longer.history[:2] == first.history
    assert longer.history == unbroken.history
    assert longer.traces == unbroken.traces


def test_replicas_of_other_seeds_or_data_are_refused(tmp_path):
    def each(outputs, soft):
        return soft_target_kl(outputs, soft, 2.0)

    def stacked(seeds=(1, 2), factor=1.0):
        model = Replicas([keras_glorot_(nn.Linear(4, K), generator(0, "weights")) for _ in seeds])
        progress = Progress(model, sgd(model), checkpoint=tmp_path / "c")
        soft = [SOFT, replace(SOFT, logits=SOFT.logits * factor)]
        batches = side_by_side([Batches(EXAMPLES, SIZE, *pair) for pair in zip(seeds, soft, strict=True)])
        list(epochs(progress, batches, lambda o, b: torch.vmap(each)(o, b.soft), count=1, seed=seeds))

    stacked()
    stacked()
    with pytest.raises(KDError, match=r"seed: the checkpoint has \[1, 2\], this training \[1, 3\]"):
        stacked(seeds=(1, 3))
    with pytest.raises(KDError, match=r"data\.1\.soft\.sha256"):
        stacked(factor=2.0)


def test_files_that_are_no_checkpoint_of_this_format_are_refused_and_kept(tmp_path):
    path = tmp_path / "c"
    train(path)
    tensors, notes = load_tensors(path)
    for other in (None, [], {name: value for name, value in notes.items() if name != "format"}, notes | {"format": 1}):
        save_tensors(path, tensors, other)
        content = path.read_bytes()
        with pytest.raises(KDError, match=f"expected a checkpoint of format {FORMAT}, found another file"):
            train(path)
        assert path.read_bytes() == content
    with pytest.raises(KDError, match="expected the name of a file, found a folder"):
        train(tmp_path)
    assert tmp_path.is_dir()


@pytest.mark.parametrize("about", [{"a": float("nan")}, {"a": {1, 2}}, {"a": torch.ones(1)}])
def test_what_a_file_cannot_hold_is_refused_as_about(about):
    with pytest.raises(KDError, match="about: expected finite numbers, texts, lists and dicts"):
        Progress(model := network(), sgd(model), about=about)


# ---- learning rates and schedulers

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.1),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [1, 3], 0.1),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "function": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "one cycle, momentum too": lambda o: lr_scheduler.OneCycleLR(o, 0.5, 6),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


def groups_of_two_rates(model):
    return torch.optim.SGD(
        [{"params": model[:2].parameters(), "lr": 0.02}, {"params": model[4].parameters()}], lr=0.2, momentum=0.9
    )


def step(scheduler, progress):
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(progress.history[-1]["training_loss"])
    else:
        scheduler.step()


def values(optimizer):
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


def scheduled(path, make, stop=None):
    model = network()
    optimizer = groups_of_two_rates(model)
    scheduler = make(optimizer)
    progress = Progress(model, optimizer, checkpoint=path, extras={"scheduler": scheduler})
    seen = []
    for epoch in epochs(progress, Batches(EXAMPLES, SIZE, SEED), hard_targets, count=5, seed=SEED):
        seen.append(values(optimizer))
        step(scheduler, progress)
        if epoch == stop:
            break
    return progress, seen


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_goes_on_where_it_was(tmp_path, make):
    unbroken, seen = scheduled(tmp_path / "whole", make)
    if "Plateau" not in type(make(sgd(network()))).__name__:  # by torch alone; that one needs the losses
        optimizer = groups_of_two_rates(network())
        alone, expected = make(optimizer), []
        for _ in range(5):
            expected.append(values(optimizer))
            optimizer.step()
            alone.step()
        assert seen == expected
    assert len({str(value) for value in seen}) > 1
    for first, stop in ((1, 2), (2, 3), (3, 5)):  # the checkpoint is that of the epoch before `stop`
        assert scheduled(tmp_path / "c", make, stop)[1] == seen[first - 1 : stop]
    resumed, _ = scheduled(tmp_path / "c", make)
    assert resumed.traces == unbroken.traces
    assert (tmp_path / "c").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_scheduler_with_other_settings_or_none_is_refused(tmp_path):
    scheduled(tmp_path / "c", SCHEDULERS["step"], stop=2)
    with pytest.raises(KDError, match=r"schedulers\.scheduler"):
        scheduled(tmp_path / "c", lambda o: lr_scheduler.StepLR(o, 3, 0.1))
    with pytest.raises(KDError, match=r"extras: the checkpoint has \['scheduler'\], this training \[\]"):
        train(tmp_path / "c", optimizer=groups_of_two_rates)


def test_a_scheduler_that_progress_does_not_have_is_refused_before_training(tmp_path):
    def of_a_scheduler(model):
        optimizer = sgd(model)
        optimizer.kept = lr_scheduler.StepLR(optimizer, 1)
        return optimizer

    with pytest.raises(KDError, match=r"expected all schedulers .* does not have StepLR; .*extras=\{"):
        train(tmp_path / "c", optimizer=of_a_scheduler)
    assert train(None, optimizer=of_a_scheduler).epoch == 2  # without a checkpoint nothing can be lost


def test_a_rate_does_not_level_groups_and_does_not_fight_a_scheduler():
    with pytest.raises(KDError, match=r"expected groups of one learning rate .*\[0.02, 0.2\]"):
        train(None, optimizer=groups_of_two_rates, rate=lambda epoch: 0.1)
    model = network()
    optimizer = sgd(model)
    progress = Progress(model, optimizer, extras={"s": lr_scheduler.StepLR(optimizer, 1)})
    with pytest.raises(KDError, match="expected `rate` or a scheduler, found both"):
        next(epochs(progress, Batches(EXAMPLES, SIZE, SEED), hard_targets, count=1, seed=0, rate=lambda epoch: 0.1))


def of_a_tensor(model):
    return torch.optim.Adam(model.parameters(), lr=torch.tensor(0.05), foreach=False)


def test_a_learning_rate_that_is_a_tensor_stays_that_tensor(tmp_path):
    """Compiled and recorded steps read it."""
    model = network()
    optimizer = of_a_tensor(model)
    own = optimizer.param_groups[0]["lr"]
    progress = Progress(model, optimizer, checkpoint=tmp_path / "c")
    batches = Batches(EXAMPLES, SIZE, SEED)
    list(epochs(progress, batches, hard_targets, count=2, seed=SEED, rate=lambda epoch: 0.25 / epoch))
    assert optimizer.param_groups[0]["lr"] is own
    assert float(own) == 0.125
    again = of_a_tensor(model := network())
    Progress(model, again, checkpoint=tmp_path / "c")
    assert torch.equal(again.param_groups[0]["lr"], torch.tensor(0.125))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
def test_a_rate_that_is_none_is_refused(value):
    with pytest.raises(KDError, match="rate: expected a number from 0 and finite, found"):
        train(None, rate=lambda epoch: value)


def test_a_rate_sets_what_another_process_left(tmp_path):
    """With `rate`, the learning rate that the optimizer is made with says nothing."""
    train(tmp_path / "c", count=1, rate=lambda epoch: 0.1 / epoch)
    resumed = train(tmp_path / "c", optimizer=lambda m: sgd(m, lr=7.0), count=3, rate=lambda epoch: 0.1 / epoch)
    assert resumed.traces == train(None, count=3, rate=lambda epoch: 0.1 / epoch).traces


def test_the_learning_rate_is_there_again_before_the_loop(tmp_path):
    set_by(by_hand_in_the_body, tmp_path / "c")
    model = network()
    Progress(model, optimizer := sgd(model), checkpoint=tmp_path / "c")
    assert values(optimizer) == [(0.05 * 0.5**3, 0.9 - 0.1 * 3)]


def by_hand_in_the_body(progress):
    def body():
        for group in progress.optimizer.param_groups:
            group["lr"] *= 0.5
            group["momentum"] = 0.9 - 0.1 * progress.epoch

    return Batches(EXAMPLES, SIZE, SEED, SOFT), body


def by_hand_at_each_step(progress):
    def batches(epoch):
        for batch in Batches(EXAMPLES, SIZE, SEED, SOFT)(epoch):
            progress.optimizer.param_groups[0]["lr"] *= 0.9
            yield batch

    return batches, lambda: None


def scheduler_at_each_step(progress):
    def batches(epoch):
        for number, batch in enumerate(Batches(EXAMPLES, SIZE, SEED, SOFT)(epoch)):
            if number:
                progress.extras["scheduler"].step()
            yield batch

    return batches, progress.extras["scheduler"].step


HANDS = [by_hand_in_the_body, by_hand_at_each_step, scheduler_at_each_step]


def set_by(hand, path, on_step=None):
    model = network()
    optimizer = sgd(model)
    extras = {"scheduler": lr_scheduler.OneCycleLR(optimizer, 0.2, 9)} if hand is scheduler_at_each_step else {}
    progress = Progress(model, optimizer, checkpoint=path, extras=extras, on_step=on_step)
    batches, body = hand(progress)
    for _ in epochs(progress, batches, objective, count=3, seed=SEED):
        body()
    return progress


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_rates_set_by_hand_or_at_each_step_are_those_of_an_unbroken_training(tmp_path, hand):
    """Killed after every step, within epochs and between them."""
    path, deaths = tmp_path / "c", 0

    def save_and_die(progress):
        progress.save()
        raise Killed

    while True:
        try:
            set_by(hand, path, save_and_die)
            break
        except Killed:
            deaths += 1
            assert deaths <= 3 * STEPS
    assert deaths == 3 * STEPS
    unbroken = set_by(hand, tmp_path / "whole")
    assert set_by(hand, path).traces == unbroken.traces
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


# ---- averages and other states


class Memory:
    """As a user writes one: tensors, numbers that JSON does not know, and what it counts."""

    def __init__(self, model):
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}
        self.best, self.counts, self.pair, self.array = float("inf"), Counter(), (1, None), np.arange(3.0)

    def update(self, model, loss):
        for name, value in model.named_parameters():
            self.shadow[name].lerp_(value.detach(), 0.1)
        self.best, self.array = min(self.best, loss), self.array + loss
        self.counts[round(loss)] += 1
        self.pair = (self.pair[0] + 1, b"\x00\xff")

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(copy.deepcopy(state))


def averaged(path, stop=None):
    model = network()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    memory = Memory(model)
    progress = Progress(model, sgd(model), checkpoint=path, extras={"average": average, "a/memory": memory})
    for epoch in epochs(progress, Batches(EXAMPLES, SIZE, SEED), hard_targets, count=4, seed=SEED):
        average.update_parameters(model)
        memory.update(model, progress.history[-1]["training_loss"])
        if epoch == stop:
            break
    return average, memory


def test_averages_of_weights_go_on_where_they_were(tmp_path):
    unbroken, memory = averaged(tmp_path / "whole")
    for stop in (2, 4):
        averaged(tmp_path / "c", stop)
    resumed, again = averaged(tmp_path / "c")
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), unbroken.state_dict().values(), strict=True)
    )
    assert int(resumed.n_averaged) == 4
    assert all(torch.equal(again.shadow[name], value) for name, value in memory.shadow.items())
    assert (again.best, again.counts, again.pair) == (memory.best, memory.counts, (5, b"\x00\xff"))
    assert type(again.counts) is Counter
    assert np.array_equal(again.array, memory.array)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "whole").read_bytes()


class Odd:
    def state_dict(self):
        return {"inner": {"f": lambda: 0}}

    def load_state_dict(self, state):
        raise AssertionError


def test_what_has_no_state_or_one_that_a_file_cannot_hold_is_refused_at_once(tmp_path):
    model = network()
    with pytest.raises(
        KDError, match="extras: expected objects with state_dict and load_state_dict, found int under 'x'"
    ):
        Progress(model, sgd(model), extras={"x": 3})
    with pytest.raises(KDError, match=r"extras/odd/inner/f: expected a state of tensors.*found function"):
        Progress(model, sgd(model), checkpoint=tmp_path / "c", extras={"odd": Odd()})
    sparse = nn.Module()
    sparse.register_buffer("links", torch.eye(3).to_sparse())
    with pytest.raises(KDError, match="model/links: expected a dense tensor"):
        Progress(sparse, sgd(network()), checkpoint=tmp_path / "c")


def test_states_come_back_as_they_were():
    nested = {"a/b": torch.ones(2), "a": {"b": torch.zeros(2), 3: [1, (2.5, float("-inf"))]}, "": None, "t": True}
    tensors = {}
    found = unpack(pack(nested, "x", tensors), tensors, torch.device("cpu"))
    assert len(tensors) == 2
    assert torch.equal(found["a/b"], nested["a/b"])
    assert torch.equal(found["a"]["b"], nested["a"]["b"])
    assert found["a"][3] == [1, (2.5, float("-inf"))]
    assert (found[""], found["t"]) == (None, True)


# ---- names, extra states, wrapped models


def test_weights_are_kept_under_any_name(tmp_path):
    names = ["best/early", "best", "a/0.weight", "", "100 %", "0"]

    def keep(path):
        model = network()
        progress = Progress(model, sgd(model), checkpoint=path)
        for _ in epochs(progress, Batches(EXAMPLES, SIZE, SEED), hard_targets, count=len(names), seed=SEED):
            progress.keep(names[progress.epoch - 1])
        return progress

    kept, again = keep(tmp_path / "c"), Progress(model := network(), sgd(model), checkpoint=tmp_path / "c")
    assert [*again.kept] == names
    for name in names:
        again.restore(name)
        assert all(torch.equal(value, kept.kept[name][key]) for key, value in model.state_dict().items())
    with pytest.raises(KDError, match=r"expected weights kept under 'worst', found .*'best/early'"):
        again.restore("worst")


class Extra(nn.Module):
    """Counts its forward passes in an extra state."""

    def __init__(self):
        super().__init__()
        self.inner, self.state = network(), {"seen": 0, "scale": torch.ones(1), "kind": "extra"}

    def forward(self, x):
        if self.training:
            self.state["seen"] += len(x)
        return self.inner(x)

    def get_extra_state(self):
        return dict(self.state)

    def set_extra_state(self, state):
        self.state = dict(state)


def test_extra_states_of_modules_are_part_of_the_weights(tmp_path):
    for count in (1, 3):
        resumed = train(tmp_path / "c", model=Extra(), count=count)
        resumed.keep("now")
    unbroken = train(None, model=Extra(), count=3)
    unbroken.keep("now")
    assert resumed.model.state["seen"] == unbroken.model.state["seen"] == 3 * N
    assert resumed.traces == unbroken.traces
    resumed.model.state["seen"] = 0
    assert resumed.kept["now"]["_extra_state"]["seen"] == 3 * N
    resumed.restore("now")
    assert resumed.model.state["seen"] == 3 * N


def test_a_change_of_an_extra_state_is_seen():
    model = Extra()
    progress = Progress(model, sgd(model))
    for epoch in epochs(progress, Batches(EXAMPLES, SIZE, SEED), hard_targets, count=3, seed=SEED):
        if epoch == 2:
            model.state["kind"] = "other"
    assert progress.traces[0]["changed"] == [3]


WRAPPERS = {"compiled": lambda model: torch.compile(model, backend="eager"), "data parallel": nn.DataParallel}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_models_share_files_with_plain_ones(tmp_path, wrap):
    plain = train(tmp_path / "plain", count=3)
    for count, model in enumerate((wrap(network()), network(), wrap(network())), 1):
        resumed = train(tmp_path / "c", model=model, count=count)
    assert resumed.history == plain.history
    assert resumed.traces == plain.traces
    resumed.keep("best")
    network().load_state_dict(resumed.kept["best"])
    resumed.restore("best")


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_replicas_are_refused(wrap):
    model = wrap(Replicas([nn.Linear(4, K)]))
    with pytest.raises(KDError, match="expected Replicas as they are, found them within"):
        Progress(model, sgd(model))


# ---- a file with a right digest and a wrong shape


def missing(key):
    return lambda tensors, notes: notes.pop(key)


def is_now(key, value):
    return lambda tensors, notes: notes.__setitem__(key, value)


def of(key, inner, value):
    return lambda tensors, notes: notes[key].__setitem__(inner, value)


def without_a_tensor(tensors, notes):
    del tensors["model/0.weight"]


def of_another_shape(tensors, notes):
    tensors["model/0.weight"] = tensors["model/0.weight"][:1]


def losses_between_epochs(tensors, notes):
    tensors |= {"epoch/losses": torch.ones(1)}


def an_odd_tensor(tensors, notes):
    tensors["epoch/x"] = torch.zeros(1)


KEYS = ["owner", "first", "loop", "history", "traces", "state", "settings", "layers"]
STATES = ["model", "kept", "optimizers", "extras", "rates", "begun_with"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        *((missing(key), f"expected the key '{key}'") for key in KEYS + STATES),
        *((is_now(key, 5), f"expected {key} to be") for key in KEYS + STATES),
        (of("loop", "seed", "x"), "expected loop.seed to be"),
        *((is_now(key, {"dict": 5}), f"expected {key} to be") for key in STATES),
        *((is_now(key, {}), f"expected {key} to be") for key in STATES),
        (is_now("new", 5), "'new'"),
        (is_now("history", [{"training_loss": "x"}] * 2), "expected history.0.training_loss to be a number"),
        (of("first", "rates", {"": ["x"]}), "expected first.rates.''.0 to be a number"),
        (of("owner", "label", None), "expected owner.label to be text"),
        (of("layers", "no layer", {"p": "0.5"}), "no layer"),
        (is_now("rates", {"dict": []}), "expected the key 'groups' in rates"),
        (is_now("rates", {"dict": [["groups", {"dict": []}], ["schedulers", {"dict": []}]]}), "not a checkpoint"),
        (without_a_tensor, "model/0.weight"),
        (of_another_shape, "model/0.weight"),
        (losses_between_epochs, "expected the key 'groups' in begun_with"),
        (an_odd_tensor, "'epoch/x'"),
    ],
)
def test_a_checkpoint_of_another_shape_is_told_by_its_key(tmp_path, change, named):
    path = tmp_path / "checkpoint"
    train(path, count=1)
    tensors, notes = load_tensors(path)
    change(tensors, notes)
    save_tensors(path, tensors, notes)
    content = path.read_bytes()
    with pytest.raises(KDError) as caught:
        train(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert "or delete that file to start again" in str(caught.value)
    assert path.read_bytes() == content


def test_within_an_epoch_another_number_of_generators_is_told(tmp_path):
    """On a CPU there are those of torch, NumPy and Python, and each CUDA device has one more."""
    path = tmp_path / "checkpoint"

    def stop(progress):
        progress.save()
        raise Killed

    with pytest.raises(Killed):
        train(path, on_step=stop)
    tensors, notes = load_tensors(path)
    save_tensors(path, tensors | {"epoch/3": tensors["epoch/0"]}, notes)
    with pytest.raises(KDError, match=r"expected the states of 3 generators .* found 4; go on with the kind of device"):
        train(path)
    save_tensors(path, tensors, notes)
    assert train(path).epoch == 2


def test_what_the_history_cannot_keep_is_told_before_it_is_written(tmp_path):
    path = tmp_path / "checkpoint"
    model = network()
    progress = Progress(model, sgd(model), checkpoint=path)
    loop = epochs(progress, Batches(EXAMPLES, SIZE, SEED, SOFT), objective, count=3, seed=SEED)
    next(loop)
    next(loop)
    progress.history[-1]["note"] = "a text"
    with pytest.raises(KDError, match="expected finite numbers under names in the history, found str a text for"):
        next(loop)
    assert len(load_tensors(path)[1]["history"]) == 1


def test_a_type_that_a_file_cannot_hold_is_refused_before_training(tmp_path):
    model = nn.Linear(4, 3)
    model.register_buffer("extra", torch.ones(2, dtype=torch.complex128))
    with pytest.raises(
        KDError, match=r"extra: expected a tensor of a type that safetensors holds, found torch\.complex"
    ):
        Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c")
