"""The trace of a training against digests of what a hand-written loop does, and what it must not depend on."""

import copy
import functools
import hashlib
import itertools
import json
import random
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.augment import flip_and_shift, mixup, unmixed
from kdlib.batches import Batch, Batches, Examples
from kdlib.files import load_tensors, save_tensors
from kdlib.losses import soft_target_kl
from kdlib.probe import form_of, mean_squares, probed
from kdlib.replicas import Replicas, side_by_side
from kdlib.run.experiment import Run
from kdlib.run.store import Description, Result, Store
from kdlib.seeds import generator
from kdlib.targets import SoftTargets, mix_logits
from kdlib.trace import with_snapshots
from kdlib.training import Progress, epochs, hard_targets, predict_logits
from tests.made_runs import Killed

pytestmark = pytest.mark.usefixtures("traced")

N, K, SIZE, SEED, EPOCHS = 22, 3, 8, 4, 4  # steps of 8, 8 and 6 rows
SIZES = [8, 8, 6]
INPUTS = torch.randn(N, 5, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :K].argmax(1), "data")
SOFT = SoftTargets(torch.randn(N, K, generator=generator(0, "soft")), "teacher", "data", part="final.train")


class Network(nn.Module):
    """A dense layer, batch norm, and dropout that accepts its random numbers as Replicas require."""

    draws = 16

    def __init__(self, seed=SEED, rate=0.4):
        super().__init__()
        self.rate = rate
        self.hidden, self.norm, self.output = nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Linear(16, K)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, "weights", number)))

    def forward(self, x, uniform=None):
        h = self.norm(self.hidden(x)).relu()
        if self.training:
            uniform = torch.rand(len(x), self.draws) if uniform is None else uniform
            h = h * (uniform >= self.rate) / (1 - self.rate)
        return self.output(h)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def soft_targets(outputs, batch):
    return soft_target_kl(outputs, batch.soft, 2.0)


def trained(
    batches, objective=hard_targets, model=None, make=adam, body=lambda progress: None, path=None, count=EPOCHS, **rest
):
    """The training after `count` epochs; `body` is called after each."""
    model = model or Network()
    progress = Progress(model, make(model), checkpoint=path)
    for _ in epochs(progress, batches, objective, count=count, **{"seed": SEED, **rest}):
        body(progress)
    return progress


def trace_of(*arguments, **rest):
    (trace,) = trained(*arguments, **rest).traces
    assert len(trace["ends"]) == len(trace["epochs"]["rows"])
    return {name: value for name, value in trace.items() if name != "ends"}  # which a record has not either


# ---- the same by hand


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def chain(contents):
    """Each digest is over the one before and the bytes of its epoch."""
    digests = [""]
    for content in contents:
        digests.append(sha256(digests[-1].encode() + content)[:16])
    return digests[1:]


def seed_of(seed, name, epoch):
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{epoch}".encode()).digest()[:8], "big") >> 1


def order(epoch, seed=SEED):
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed_of(seed, "order", epoch))).numpy()


def digest_by_hand(tensors):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].numpy()
        digest.update(f"{name}|{tensors[name].dtype}|{value.shape}|".encode() + value.tobytes())
    return digest.hexdigest()


ORDERS = [order(epoch) for epoch in range(1, EPOCHS + 1)]


# ---- what a trace says


def test_a_trace_is_that_of_the_loop_written_by_hand():
    model = Network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, SOFT), soft_targets, model, rate=lambda epoch: 0.01 / epoch)
    labels, logits = EXAMPLES.labels.numpy(), SOFT.logits.numpy()
    shapes = [
        ("hidden.weight", "torch.float32", (16, 5)),
        ("hidden.bias", "torch.float32", (16,)),
        ("norm.weight", "torch.float32", (16,)),
        ("norm.bias", "torch.float32", (16,)),
        ("norm.running_mean", "torch.float32", (16,)),
        ("norm.running_var", "torch.float32", (16,)),
        ("norm.num_batches_tracked", "torch.int64", ()),
        ("output.weight", "torch.float32", (3, 16)),
        ("output.bias", "torch.float32", (3,)),
    ]
    settings = [
        ("", "", []),
        ("hidden", "in_features=5, out_features=16, bias=True", []),
        ("norm", nn.BatchNorm1d(16).extra_repr(), []),  # which is not the same in all versions of torch
        ("output", "in_features=16, out_features=3, bias=True", []),
    ]
    layers = [
        ("", "Network", None),
        ("hidden", "Linear", None),
        ("norm", "BatchNorm1d", None),
        ("output", "Linear", None),
    ]
    assert trace.pop("optimizer")["class"] == "Adam"
    assert trace.pop("first_loss") > 0
    alone, first = Network(), EXAMPLES.inputs[torch.from_numpy(ORDERS[0])][:SIZE]
    alone.load_state_dict(state)
    torch.manual_seed(seed_of(SEED, "layers", 1))
    with torch.no_grad():
        assert trace.pop("outputs") == pytest.approx(float((alone.train()(first) ** 2).mean()))
    draws = generator(0, "probe")
    outputs, soft = torch.randn(4, 3, generator=draws), torch.randn(4, 3, generator=draws)
    probed = soft_targets(outputs, Batch(EXAMPLES.inputs[:4], torch.arange(4) % 3, torch.arange(4), soft))
    assert trace.pop("probe") == pytest.approx(float(probed))
    assert trace == {
        "network": sha256(repr([shapes, layers]).encode())[:16],
        "start": digest_by_hand(state),
        "data": {
            "digest": "data",
            "view": "plain",
            "size": 8,
            "soft": {"run": "teacher", "part": "final.train", "sha256": digest_by_hand({"logits": SOFT.logits})},
        },
        "mixed": False,
        "steps": 12,
        "epochs": {
            "rows": chain(rows.tobytes() for rows in ORDERS),
            "labels": chain(labels[rows].tobytes() for rows in ORDERS),
            "targets": chain(logits[rows].tobytes() for rows in ORDERS),
            "sizes": chain([repr(SIZES).encode()] * EPOCHS),
            "rates": chain(repr([(0, [0.01 / epoch])]).encode() for epoch in range(1, EPOCHS + 1)),
            "layers": chain(str(seed_of(SEED, "layers", epoch)).encode() for epoch in range(1, EPOCHS + 1)),
        },
        "changed": [],
        "settings": sha256(repr([*settings, []]).encode())[:16],
        "probes": [],
        "tensors": [[name, kind, [*size]] for name, kind, size in shapes],
        "kept": {},
    }


def test_the_weights_of_each_end_are_in_the_trace():
    ends = []
    progress = trained(Batches(EXAMPLES, SIZE, SEED), body=lambda p: ends.append(digest_by_hand(p.model.state_dict())))
    (trace,) = progress.traces
    assert trace["ends"] == [digest[:16] for digest in ends]
    state = progress.model.state_dict()
    weights = {
        "last": state,
        "first": Network().state_dict(),
        "half": {name: value / 2 if value.is_floating_point() else value for name, value in state.items()},
    }
    wrapped = {f"module.{name}": value for name, value in state.items()} | {"n_averaged": torch.tensor(3)}
    part = {name: value for name, value in state.items() if name != min(state)}
    weights |= {"wrapped": wrapped, "part": part, "small": {name: value.half() for name, value in state.items()}}
    found = with_snapshots(json.loads(json.dumps(trace)), weights)  # as of a checkpoint
    assert found["epoch_of"] == {"last": EPOCHS, "first": 0, "half": None, "wrapped": EPOCHS}
    assert found["may_be_best"] == []
    assert not {"ends", "tensors", "kept"} & found.keys()
    lacks = {name: value for name, value in trace.items() if name not in ("tensors", "kept")}  # of an older checkpoint
    assert with_snapshots(lacks, weights)["epoch_of"] == {}


def test_whether_weights_may_have_been_chosen_is_in_the_trace():
    def body(progress):
        progress.record(error=abs(progress.epoch - 2))
        if progress.is_lowest("error"):
            progress.keep("best")

    def found(progress, **weights):
        made = with_snapshots(progress.traces[0], progress.kept | weights)
        return made["epoch_of"], made["may_be_best"]

    def stopped():
        progress = Progress(model := Network(), torch.optim.Adam(model.parameters()), traced=True)
        for epoch in epochs(progress, batches, hard_targets, count=EPOCHS, seed=SEED):
            if epoch == 2:
                break
        return progress

    batches = Batches(EXAMPLES, SIZE, SEED)
    chosen, last, early = trained(batches, body=body), trained(batches), stopped()
    for each in (last, early):
        each.keep("final")
        each.keep("final")  # as a training does that is run again after its last checkpoint
    assert found(chosen) == ({"best": 2}, ["best"])
    assert found(last) == ({"final": EPOCHS}, [])
    assert found(early) == ({"final": 2}, [])
    # The best epoch is the last one by chance, and may be kept under another name too; another one was planned.
    often = trained(batches, body=lambda p: p.keep("best") if p.epoch != 2 else p.keep("at 2"))
    often.keep("final")
    assert found(often) == ({"best": EPOCHS, "at 2": 2, "final": EPOCHS}, ["best", "final"])
    each = trained(batches, body=lambda p: p.keep(f"epoch {p.epoch}"))
    assert found(each) == ({f"epoch {number}": number for number in range(1, EPOCHS + 1)}, [])


class Counts:
    """An objective with a state of each kind."""

    def __init__(self):
        self.calls, self.seen, self.centre, self.model = 0, [], torch.zeros(K), None
        self.draws = torch.Generator().manual_seed(1)

    def __call__(self, outputs, batch):
        self.calls += 1
        self.seen.append(len(outputs))
        self.centre = 0.9 * self.centre + 0.1 * outputs.detach().mean(0)
        noise = np.random.rand() + random.random() + float(torch.rand(1, generator=self.draws))
        return soft_targets(outputs - self.centre, batch) * (1 + 0.01 * self.calls + 0.01 * noise)


def averages_in_place(model, own):
    with torch.no_grad():
        for average, value in zip(own.parameters(), model.parameters(), strict=True):
            average.lerp_(value, 0.1)


def two_views(model):
    return lambda outputs, batch: soft_targets(outputs, batch) + model(batch.inputs + 1).square().mean()


def mean_teacher(model):
    own = copy.deepcopy(model).requires_grad_(False)

    def objective(outputs, batch):
        averages_in_place(model, own)
        return soft_targets(outputs, batch) + (outputs - predict_logits(own, batch.inputs)).square().mean()

    return objective


CALLS = {"n": 0}


def counted(model):
    def objective(outputs, batch):
        CALLS["n"] += 1
        return soft_targets(outputs, batch) * (1 + 0.1 * CALLS["n"])

    CALLS["n"] = 0
    return objective


def annealed(model):
    step = 0

    def objective(outputs, batch):
        nonlocal step
        step += 1
        return soft_targets(outputs, batch) / step

    return objective


def next_of_a_list(model):
    weights = itertools.cycle([1.0, 2.0, 3.0])
    return lambda outputs, batch: soft_targets(outputs, batch) * next(weights)


COUNTED, DRAWS = np.zeros(K), np.random.default_rng(0)


class Shared:
    """An objective that counts for all objects of its class, and in an array of its module."""

    calls = 0

    def __call__(self, outputs, batch):
        type(self).calls += 1
        np.add.at(COUNTED, batch.labels.numpy(), 1)
        return soft_targets(outputs, batch) * (1 + 0.1 * self.calls + 0.01 * float(COUNTED[0]))


def drawn():
    return float(DRAWS.random())


def weighted(model, outputs, batch):
    COUNTED[1] += 1
    return soft_targets(outputs, batch) * (drawn() + float(COUNTED[1]))


def shared(model):
    Shared.calls, COUNTED[:] = 0, 0
    return Shared()


def with_helpers(model):
    COUNTED[:] = 0
    DRAWS.bit_generator.state = np.random.default_rng(0).bit_generator.state
    return functools.partial(weighted, model)


STATEFUL = [shared, with_helpers, lambda model: Counts(), two_views, mean_teacher, counted, annealed, next_of_a_list]


@pytest.mark.parametrize("make", STATEFUL)
def test_an_objective_with_a_state_is_trained_as_without_a_trace(make):
    def ends(is_traced):
        model = Network()
        progress = Progress(model, adam(model))
        if not is_traced:
            progress.tracer = NoTracer(progress)
        np.random.seed(0)
        random.seed(0)
        list(epochs(progress, Batches(EXAMPLES, SIZE, SEED, SOFT), make(model), count=2, seed=SEED))
        return model.state_dict() | {"draws": torch.tensor([np.random.rand(), random.random()])}

    traced, plain = ends(True), ends(False)
    assert all(torch.equal(value, plain[name]) for name, value in traced.items())


@pytest.mark.parametrize("make", [lambda model: Counts(), annealed, counted])
def test_what_can_be_put_back_is_probed(make):
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, SOFT), make(None))
    assert trace["probe"] is not None
    assert [epoch for epoch, _ in trace["probes"]] == [1, 2, 3, 4]


class Masked(nn.Module):
    """Logits, a mask that is added to them, and numbers beyond those of float32's square."""

    def __init__(self):
        super().__init__()
        self.layers = Network()

    def forward(self, inputs):
        logits = self.layers(inputs)
        hidden = torch.full_like(logits, torch.finfo(torch.float32).min)
        return logits, hidden, torch.full_like(logits, -torch.inf), torch.full_like(logits, torch.nan), inputs.long()


def test_outputs_that_are_masks_are_left_out():
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED), lambda outputs, batch: hard_targets(outputs[0], batch), Masked())
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace
    assert trace["outputs"] == pytest.approx(trace_of(Batches(EXAMPLES, SIZE, SEED))["outputs"])


def test_a_probe_that_is_not_finite_is_none():
    def objective(outputs, batch):
        return soft_targets(outputs, batch) * (torch.inf if len(outputs) == 4 else 1.0)  # the probe has four rows

    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, SOFT), objective)
    assert (trace["probe"], trace["probes"]) == (None, [])


def test_an_objective_may_change_the_outputs_in_place():
    def objective(outputs, batch):
        return soft_targets(outputs.mul_(1.0), batch)

    batches = Batches(EXAMPLES, SIZE, SEED, SOFT)
    assert trace_of(batches, objective)["probe"] == pytest.approx(trace_of(batches, soft_targets)["probe"])


def test_the_probe_leaves_the_training_as_it_is():
    def noisy(outputs, batch):
        return soft_targets(outputs + 0.1 * torch.rand(outputs.shape), batch)

    def ends(tracer):
        model = Network()
        progress = Progress(model, adam(model))
        if not tracer:
            progress.tracer = NoTracer(progress)
        list(epochs(progress, Batches(EXAMPLES, SIZE, SEED, SOFT), noisy, count=EPOCHS, seed=SEED))
        return model.state_dict()

    with_trace, without = ends(True), ends(False)
    assert all(torch.equal(value, without[name]) for name, value in with_trace.items())


@dataclass(slots=True)
class Slots:
    logits: torch.Tensor
    features: torch.Tensor


@dataclass
class Named:
    logits: torch.Tensor
    features: torch.Tensor
    loss: None = None


FORMS = {
    "tuple": (lambda *outputs: outputs, lambda outputs: outputs[0]),
    "dictionary": (lambda logits, features: {"a": features, "b": logits}, lambda outputs: outputs["b"]),
    "object": (Named, lambda outputs: outputs.logits),
    "object with slots": (Slots, lambda outputs: outputs.logits),
    "distribution": (
        lambda logits, features: torch.distributions.Categorical(logits=logits, validate_args=False),
        lambda outputs: outputs.logits,
    ),
}


class Several(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.layers, self.make = Network(), make

    def forward(self, inputs):
        return self.make(self.layers(inputs), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_each_form_are_noted_and_probed(form):
    make, logits_of = FORMS[form]
    batches = Batches(EXAMPLES, SIZE, SEED, SOFT)
    trace = trace_of(batches, lambda outputs, batch: soft_targets(logits_of(outputs), batch), Several(make))
    if form == "distribution":  # it subtracts what the soft targets of a student do not depend on
        assert trace["outputs"] > 0
    else:
        squares = trace_of(batches, soft_targets)["outputs"], float((INPUTS[ORDERS[0]][:SIZE] ** 2).mean())
        assert trace["outputs"] == pytest.approx((K * squares[0] + 5 * squares[1]) / (K + 5))
    assert trace["probe"] == pytest.approx(trace_of(batches, soft_targets)["probe"])


@pytest.mark.parametrize("form", FORMS)
def test_a_stop_after_an_epochs_last_step_leaves_the_trace_as_it_is(tmp_path, form):
    make, logits_of = FORMS[form]

    def ends(path, stop):
        steps, model = 0, Several(make)

        def on_step(progress):
            nonlocal steps
            steps += 1
            if steps == stop:
                progress.save()
                raise Killed

        def objective(outputs, batch):  # it changes from the second epoch on
            return soft_targets(logits_of(outputs), batch) * (1 + (progress.epoch > 0))

        progress = Progress(model, adam(model), checkpoint=path, on_step=on_step)
        list(epochs(progress, Batches(EXAMPLES, SIZE, SEED, SOFT), objective, count=2, seed=SEED))
        return progress.traces

    with pytest.raises(Killed):
        ends(tmp_path / "c", len(SIZES) * 2)
    assert ends(tmp_path / "c", None) == ends(tmp_path / "whole", None)


def test_features_and_other_outputs_have_fixed_numbers_in_the_probe():
    def objective(outputs, batch):
        logits, features, words, scale = outputs
        assert len(logits) > 4 or (features.shape == (4, 5, 2) and not words.any() and float(scale) == 1.0)
        return soft_targets(logits, batch) * scale.detach() + features.square().mean() + words.sum()

    def make(logits, inputs):
        return logits, inputs[:, :, None].expand(-1, -1, 2), inputs.long().clamp(0, 1), logits.mean()

    traces = [trace_of(Batches(EXAMPLES, SIZE, seed, SOFT), objective, Several(make)) for seed in (0, 1)]
    assert traces[0]["probe"] is not None
    assert traces[0]["probe"] == traces[1]["probe"]


def test_the_probe_is_that_of_the_weights_before_the_first_step():
    """An objective may depend on the weights, which soft targets move from the first step on."""
    probes = []
    for logits in (SOFT.logits, -SOFT.logits):
        model = Network()
        model.norm = nn.Identity()

        def objective(outputs, batch, model=model):
            return soft_targets(outputs, batch) + (model(batch.inputs + 0.1) - outputs).square().mean()

        batches = Batches(EXAMPLES, SIZE, SEED, replace(SOFT, logits=logits))
        trace = trace_of(batches, objective, model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
        probes.append(trace["probe"])
    assert probes[0] == pytest.approx(probes[1])


def test_the_probe_tells_nothing_to_the_user():
    def objective(outputs, batch):
        warnings.warn("of the first batch" if len(outputs) > 4 else "of the probe", stacklevel=2)
        return soft_targets(outputs, batch)

    with pytest.warns(UserWarning, match="of the first batch") as told:
        trace_of(Batches(EXAMPLES, SIZE, SEED, SOFT), objective)
    assert "of the probe" not in {str(each.message) for each in told}


class NoCopy:
    def __init__(self, logits, features):
        self.logits = logits

    def __copy__(self):
        raise TypeError("it is one of a kind")


def test_outputs_that_cannot_be_looked_into_end_no_training():
    batches = Batches(EXAMPLES, SIZE, SEED, SOFT)
    trace = trace_of(batches, lambda outputs, batch: soft_targets(outputs.logits, batch), Several(NoCopy))
    assert (trace["probe"], trace["steps"]) == (None, EPOCHS * len(SIZES))
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert form_of((ragged, ragged), Batch(INPUTS, EXAMPLES.labels, torch.arange(N))) is None
    one_logit = Batch(INPUTS[None], EXAMPLES.labels[None], torch.arange(N)[None], soft=INPUTS[None, :, 0])
    assert probed(soft_targets, form_of(one_logit.soft, one_logit), one_logit, 1, []) == [None]


def test_words_and_pixels_are_probed():
    """Soft targets (B, L, K) of words."""
    inputs, labels = INPUTS[:, :, None].expand(-1, -1, K), (INPUTS > 0).long()
    soft, model = torch.randn(N, 5, K, generator=generator(0, "words")), nn.Linear(K, K)

    def objective(outputs, batch):
        assert batch.labels.shape == outputs.shape[:2] == batch.soft.shape[:2]
        return soft_targets(outputs.flatten(0, 1), replace(batch, soft=batch.soft.flatten(0, 1)))

    def batches(epoch):
        for rows in torch.arange(N).split(SIZE):
            yield Batch(inputs[rows], labels[rows], rows, soft[rows])

    assert trace_of(batches, objective, model)["probe"] > 0


def test_long_epochs_have_the_same_digests(monkeypatch):
    batches = Batches(EXAMPLES, SIZE, SEED, SOFT)
    whole = trace_of(batches, soft_targets)
    monkeypatch.setattr("kdlib.trace.HELD", 0)
    assert trace_of(batches, soft_targets) == whole


class Mean(nn.Module):
    """The hook of a weight that adds a running mean of its gradients."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, gradient):
        self.mean.mul_(0.9).add_(gradient.mean(), alpha=0.1)
        return gradient + self.mean


def in_closure():
    mean = torch.zeros(())

    def hook(gradient):
        mean.mul_(0.9).add_(gradient.mean(), alpha=0.1)
        return gradient + mean

    return hook


@pytest.mark.parametrize("make", [Mean, in_closure])
def test_a_hook_with_a_state_is_not_called_for_the_trace(make):
    def weights(is_traced):
        model = Network()
        model.output.weight.register_hook(make())
        progress = Progress(model, adam(model), traced=is_traced)
        for _ in epochs(progress, Batches(EXAMPLES, SIZE, SEED), hard_targets, count=2, seed=SEED):
            pass
        return model.state_dict()

    traced, plain = weights(True), weights(False)
    assert all(torch.equal(traced[name], plain[name]) for name in plain)


class Node:
    """Outputs that refer to those of which they are a part."""

    def __init__(self, logits, parent=None):
        self.logits, self.parent, self.parts = logits, parent, []
        if parent is not None:
            parent.parts.append(self)


def test_outputs_that_refer_to_each_other_are_looked_at_once():
    whole = Node(torch.full((N, K), 1.0))
    parts = [Node(torch.full((N, K), float(number)), whole) for number in (2, 3)]
    for part in parts:
        part.others = [other for other in parts if other is not part]
    assert mean_squares(whole, 1) == [pytest.approx((1 + 4 + 9) / 3)]
    form = form_of(whole, Batch(INPUTS, EXAMPLES.labels, torch.arange(N)))
    assert [part.parent is form for part in form.parts] == [True, True]
    assert form.logits.shape == (0, K)
    assert whole.parts[0].others[0] is whole.parts[1]
    assert whole.logits.shape == (N, K)


def test_hooks_that_only_read_are_no_difference():
    def settings(change):
        model = Network()
        change(model)
        return trace_of(Batches(EXAMPLES, SIZE, SEED), model=model)["settings"]

    def limited(limit):
        config = {"limit": limit}
        return lambda model: model.output.weight.register_hook(lambda g: g.clamp(-config["limit"], config["limit"]))

    norms, begun = [], time.time()
    plain = settings(lambda model: None)
    assert settings(lambda model: model.hidden.register_forward_hook(lambda *given: None)) == plain
    reads = settings(lambda m: m.output.weight.register_hook(lambda g: norms.append((float(g.norm()), begun))))
    assert reads == plain
    assert len(norms) == EPOCHS * len(SIZES)  # and not once more
    others = [settings(limited(0.1)), settings(limited(0.2)), settings(lambda m: m.hidden.requires_grad_(False))]
    assert len({plain, *others}) == 4


def test_without_a_teacher_there_are_no_targets():
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED))
    assert trace["data"]["soft"] is None
    assert trace["probe"] is None
    assert trace["epochs"]["targets"] == chain([b""] * EPOCHS)


def test_batches_of_another_making_are_traced_by_what_is_in_them():
    """A function that only wraps Batches has no `about`."""
    inner = Batches(EXAMPLES, SIZE, SEED, SOFT)
    plain, wrapped = trace_of(inner, soft_targets), trace_of(lambda epoch: inner(epoch), soft_targets)
    assert wrapped == {**plain, "data": {}}


def test_numbers_that_numpy_does_not_know():
    logits = SOFT.logits.bfloat16()
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, replace(SOFT, logits=logits)), soft_targets)
    as_bytes = logits.view(torch.uint8).view(N, K * 2).numpy()
    assert trace["epochs"]["targets"] == chain(as_bytes[rows].tobytes() for rows in ORDERS)


def two_groups(model):
    output = [*model.output.parameters()]
    others = [p for name, p in model.named_parameters() if "output" not in name]
    return torch.optim.SGD(
        [{"params": others, "lr": 0.02}, {"params": output, "weight_decay": 0.5}], lr=0.1, momentum=0.9, nesterov=True
    )


def rates_of(*each):
    """Digests of epochs with these rates: (step, rates of all groups) where they change."""
    return chain(repr(list(rates)).encode() for rates in each)


def changed_on_the_way(progress):
    """Batches that halve the rate of the second group before the third step of every epoch."""

    def batches(epoch):
        for step, batch in enumerate(Batches(EXAMPLES, SIZE, SEED)(epoch)):
            if step == 2:
                progress.optimizer.param_groups[1]["lr"] /= 2
            yield batch

    return batches


def test_rates_of_all_groups_by_step():
    batches = Batches(EXAMPLES, SIZE, SEED)
    own = trace_of(batches, make=two_groups)
    assert own["epochs"]["rates"] == rates_of(*[[(0, [0.02, 0.1])]] * EPOCHS)

    def of_one_rate(model):
        optimizer = two_groups(model)
        optimizer.param_groups[1]["lr"] = 0.02
        return optimizer

    given = trace_of(batches, make=of_one_rate, rate=lambda epoch: epoch / 100)
    assert given["epochs"]["rates"] == rates_of(*([(0, [e / 100, e / 100])] for e in (1, 2, 3, 4)))

    def body(progress):
        progress.optimizer.param_groups[0]["lr"] = 0.5 / progress.epoch

    scheduled = trace_of(batches, make=two_groups, body=body)
    assert scheduled["epochs"]["rates"] == rates_of(*([(0, [rate, 0.1])] for rate in (0.02, 0.5, 0.25, 0.5 / 3)))


def test_a_rate_that_changes_within_an_epoch():
    model = Network()
    progress = Progress(model, two_groups(model))
    list(epochs(progress, changed_on_the_way(progress), hard_targets, count=2, seed=SEED))
    (trace,) = progress.traces
    expected = rates_of([(0, [0.02, 0.1]), (2, [0.02, 0.05])], [(0, [0.02, 0.05]), (2, [0.02, 0.025])])
    assert trace["epochs"]["rates"] == expected


def test_the_optimizers_class_and_hyper_parameters():
    found = trace_of(Batches(EXAMPLES, SIZE, SEED), make=two_groups)["optimizer"]
    assert found["class"] == "SGD"
    first, second = found["groups"]
    known = {"momentum": 0.9, "nesterov": True, "dampening": 0, "maximize": False}
    assert first.items() >= (known | {"weight_decay": 0, "tensors": 4}).items()
    assert second.items() >= (known | {"weight_decay": 0.5, "tensors": 2}).items()
    assert not {"lr", "params"} & {*first, *second}
    found = trace_of(Batches(EXAMPLES, SIZE, SEED))["optimizer"]
    assert found["groups"][0].items() >= {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0}.items()
    assert json.loads(json.dumps(found)) == found


def test_a_hyper_parameter_that_changes_is_part_of_the_rates_from_that_step_on():
    def body(progress):
        progress.optimizer.param_groups[0]["momentum"] = 0.9 if progress.epoch != 2 else 0.5

    batches = Batches(EXAMPLES, SIZE, SEED)
    plain, other = trace_of(batches, make=two_groups), trace_of(batches, make=two_groups, body=body)
    first, second = plain["optimizer"]["groups"]
    expected = {"class": "SGD", "groups": [{**first, "momentum": 0.5}, second]}
    usual = [(0, [0.02, 0.1])]
    assert other["epochs"]["rates"] == rates_of(usual, usual, [(0, [0.02, 0.1], expected)], usual)
    assert other == plain | {"epochs": plain["epochs"] | {"rates": other["epochs"]["rates"]}}


def test_another_optimizer_is_part_of_the_rates():
    def body(progress):
        if progress.epoch == 2:
            progress.optimizer = torch.optim.SGD(progress.model.parameters(), lr=0.5)

    trace = trace_of(Batches(EXAMPLES, SIZE, SEED), body=body)
    sgd = trace_of(Batches(EXAMPLES, SIZE, SEED), make=lambda m: torch.optim.SGD(m.parameters(), lr=0.5))["optimizer"]
    assert trace["epochs"]["rates"] == rates_of(*[[(0, [0.01])]] * 2, *[[(0, [0.5], sgd)]] * 2)
    assert trace["changed"] == [3]  # its state is empty


def test_the_first_loss_is_that_before_any_step():
    model = nn.Linear(5, K)
    weight, bias = (value.detach().double().numpy().copy() for value in (model.weight, model.bias))
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED), model=model)
    rows = ORDERS[0][:SIZE]
    logits = INPUTS.double().numpy()[rows] @ weight.T + bias
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(SIZE), EXAMPLES.labels.numpy()[rows]]
    assert trace["first_loss"] == pytest.approx(loss.mean(), rel=1e-6)


def mixed(epoch):
    draws = generator(SEED, "mix", epoch)
    return mixup(torch.randperm(N, generator=draws), 0.7, draws)


def test_mixed_rows():
    """Labels and soft targets are digested as they were used; the rows are those of the first partners."""
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, SOFT, mixed, K), soft_targets)
    assert trace["mixed"] is True
    one_hot, rows, labels, targets = np.eye(K, dtype=np.float32)[EXAMPLES.labels.numpy()], [], [], []
    for epoch, taken in enumerate(ORDERS, 1):
        mix = mixed(epoch)
        first, second, weight = (value.numpy()[taken] for value in (mix.first, mix.second, mix.weight))
        rows.append(first.tobytes())
        a, b, w = one_hot[first], one_hot[second], weight[:, None]
        labels.append(np.where(w < 0.5, b + w * (a - b), a - (a - b) * (1 - w)).tobytes())
        soft = mix_logits(SOFT.logits[first], SOFT.logits[second], torch.from_numpy(weight))
        targets.append(soft.numpy().tobytes())
    assert trace["epochs"]["rows"] == chain(rows)
    assert trace["epochs"]["labels"] == chain(labels)
    assert trace["epochs"]["targets"] == chain(targets)


def test_a_draw_without_mixing_is_not_mixed():
    rows = torch.arange(N).flip(0)
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, None, lambda epoch: unmixed(rows), K))
    assert trace["mixed"] is False
    assert trace["epochs"]["rows"] == chain(rows.numpy()[taken].tobytes() for taken in ORDERS)


def test_mixed_in_a_later_epoch_only():
    trace = trace_of(Batches(EXAMPLES, SIZE, SEED, None, lambda e: mixed(e) if e == 3 else unmixed(torch.arange(N)), K))
    assert trace["mixed"] is True


def test_the_view_names_the_augmentation():
    pictures = Examples(torch.rand(N, 1, 4, 4), EXAMPLES.labels, "pictures")

    def augment(epoch):
        draws = generator(SEED, "augment", epoch)
        return lambda inputs: flip_and_shift(inputs, 1, draws)

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, K))
    augmented = Batches(pictures, SIZE, SEED, augment=augment, view="flip+shift")
    assert trace_of(augmented, model=model)["data"]["view"] == "flip+shift"
    seen_augmented = replace(pictures, view="flipped once")
    assert trace_of(Batches(seen_augmented, SIZE, SEED), model=model)["data"]["view"] == "flipped once"


def test_soft_targets_of_a_run_and_of_its_sham(tmp_path):
    logits = {"final.train": SOFT.logits, "early.train": -SOFT.logits}
    result = Result({"final": {}}, [], {"final": {"w": torch.zeros(1)}}, logits)
    teacher = Store(tmp_path).save(Description("train_teacher", 1, {}, 0, "data"), result, {})
    examples = replace(EXAMPLES, digest="data/train")

    def soft(snapshot):
        run = Run(None, SEED, None, torch.device("cpu"), "", {"teacher": (teacher, snapshot)})
        return run.soft_targets("teacher", "train", examples)

    def origin(targets):
        return trace_of(Batches(examples, SIZE, SEED, targets), soft_targets)["data"]["soft"]

    def expected(snapshot, values):
        return {"run": teacher.id, "part": snapshot, "sha256": digest_by_hand({"logits": values})}

    kept = SOFT.logits.half().float()
    assert origin(soft("final")) == expected("final.train", kept)
    assert origin(soft("early")) == expected("early.train", -kept)
    sham = soft("final").permuted_within_classes(examples.labels, generator(SEED, "sham"))
    assert not torch.equal(sham.logits, kept)
    assert origin(sham) == expected("final.train, permuted within classes", sham.logits)


# ---- what it does not depend on


def altered_after(epoch):
    def body(progress):
        if progress.epoch == epoch:
            with torch.no_grad():
                next(iter(progress.model.parameters())).mul_(1.5)

    return body


SEEDS = (7, 1, 4)


def stacked(seeds=SEEDS):
    return Replicas([Network(seed) for seed in seeds])


def stack_batches():
    return side_by_side([Batches(EXAMPLES, SIZE, seed, SOFT) for seed in SEEDS])


def each_soft_targets(outputs, batch):
    return torch.vmap(soft_target_kl, in_dims=(0, 0, None))(outputs, batch.soft, 2.0)


TRAININGS = {
    "alone": lambda **rest: trained(
        Batches(EXAMPLES, SIZE, SEED, SOFT, mixed, K), soft_targets, rate=lambda epoch: 0.01 / epoch, **rest
    ),
    "two groups": lambda **rest: trained(Batches(EXAMPLES, SIZE, SEED), make=two_groups, **rest),
    "side by side": lambda **rest: trained(stack_batches(), each_soft_targets, stacked(), **{"seed": SEEDS, **rest}),
}


@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
def test_a_run_killed_after_every_epoch_has_the_trace_of_an_unbroken_one(tmp_path, train, monkeypatch):
    """The body also alters a weight, which the next life of the process must notice too."""
    unbroken, deaths = train(body=altered_after(2)), 0
    saved = Progress.save

    def save_and_die(progress):
        saved(progress)
        raise Killed

    while deaths < 2 * EPOCHS:
        monkeypatch.setattr(Progress, "save", save_and_die)
        try:
            resumed = train(body=altered_after(2), path=tmp_path / "c")
            break
        except Killed:
            deaths += 1
    assert deaths == EPOCHS
    assert resumed.traces == unbroken.traces
    assert resumed.history == unbroken.history
    assert [trace["changed"] for trace in unbroken.traces] == [[3]] * len(unbroken.traces)
    assert json.loads(json.dumps(unbroken.traces)) == unbroken.traces


@pytest.mark.parametrize("seeds", [SEEDS, (7,)], ids=["three", "one"])
def test_members_of_a_stack_have_the_trace_of_students_trained_alone(seeds):
    """They differ in soft targets, mixing and examples too."""
    members = []
    for number, seed in enumerate(seeds):
        examples = replace(EXAMPLES, inputs=INPUTS + number, digest=f"data {number}")
        targets = SoftTargets(SOFT.logits - number, f"teacher {number}", f"data {number}")
        mix = mixed if number != 1 else lambda epoch: unmixed(torch.arange(N))
        members.append(Batches(examples, SIZE, seed, targets, mix, K))
    together = trained(side_by_side(members), each_soft_targets, stacked(seeds), seed=seeds)
    for seed, batches, trace in zip(seeds, members, together.traces, strict=True):
        alone = trace_of(batches, soft_targets, Network(seed), seed=seed)
        rounded = {name: trace[name] for name in ("first_loss", "outputs")}
        assert rounded == pytest.approx({name: alone[name] for name in rounded}, rel=1e-5)
        assert {name: value for name, value in trace.items() if name != "ends"} == alone | rounded
    assert len({json.dumps(trace) for trace in together.traces}) == len(seeds)
    assert [trace["mixed"] for trace in together.traces] == [True, False, True][: len(seeds)]


def test_a_stack_notices_that_one_member_was_altered():
    def body(progress):
        if progress.epoch == 1:
            with torch.no_grad():
                next(iter(progress.model.parameters()))[1].mul_(1.5)

    together = trained(stack_batches(), each_soft_targets, stacked(), seed=SEEDS, body=body)
    assert [trace["changed"] for trace in together.traces] == [[2]] * 3  # the state of a stack is one


class NoTracer:
    def __init__(self, progress):
        self.traces, self.state = [], ""

    def watch(self, batches):
        return batches

    def begin(self, *_):
        pass

    def noting_outputs(self, called, objective):
        return called

    epoch_begins = epoch_ends = begin


@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS)
def test_tracing_does_not_move_a_result(train, monkeypatch):
    torch.manual_seed(0)
    traced, drawn = train(), torch.rand(3)
    monkeypatch.setattr("kdlib.progress.Tracer", NoTracer)
    torch.manual_seed(0)
    plain, drawn_without = train(), torch.rand(3)
    assert traced.history == plain.history
    for name, value in plain.model.state_dict().items():
        assert torch.equal(traced.model.state_dict()[name], value), name
    assert torch.equal(drawn, drawn_without)
    assert plain.traces == []


# ---- changes from outside the loop


def clear(progress):
    progress.optimizer.state.clear()


def replace_by_a_new_one(progress):
    progress.optimizer = adam(progress.model)


def restore(progress):
    progress.restore("first")


@torch.no_grad()
def multiply(progress):
    for parameter in progress.model.parameters():
        parameter.mul_(0.5)


@torch.no_grad()
def alter_a_buffer(progress):
    progress.model.norm.running_var[3] += 1e-3


@torch.no_grad()
def alter_an_entry_of_the_state(progress):
    progress.optimizer.state[progress.model.output.bias]["exp_avg"][1] += 1e-6


def forget_a_step(progress):
    progress.optimizer.state[progress.model.output.bias]["step"] -= 1


CHANGES = [clear, replace_by_a_new_one, restore, multiply, alter_a_buffer, alter_an_entry_of_the_state, forget_a_step]


def changing(change, epoch=2):
    def body(progress):
        if progress.epoch == 1:
            progress.keep("first")
        if progress.epoch == epoch:
            change(progress)

    return body


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_from_outside_is_seen_before_the_next_epoch(change):
    batches = Batches(EXAMPLES, SIZE, SEED)
    trace, plain = trace_of(batches, body=changing(change)), trace_of(batches)
    assert trace == plain | {"changed": [3], "kept": {"first": [1]}}
    assert trace_of(batches, body=changing(change, 3))["changed"] == [4]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen_if_the_process_died_after_it(change, tmp_path, monkeypatch):
    batches, saved = Batches(EXAMPLES, SIZE, SEED), Progress.save

    def save_and_die(progress):
        saved(progress)
        if progress.epoch == 2:
            raise Killed

    monkeypatch.setattr(Progress, "save", save_and_die)
    with pytest.raises(Killed):
        trained(batches, body=changing(change), path=tmp_path / "c")
    assert trace_of(batches, body=changing(change), path=tmp_path / "c")["changed"] == [3]


def test_a_change_between_two_lives_is_seen(tmp_path):
    """A checkpoint that was edited, with a digest that fits, or that someone put there."""
    batches = Batches(EXAMPLES, SIZE, SEED)
    trained(batches, path=tmp_path / "c", count=2)
    tensors, notes = load_tensors(tmp_path / "c")
    tensors["optimizers//state/0/exp_avg"][0, 0] += 1e-6
    save_tensors(tmp_path / "c", tensors, notes)
    assert trace_of(batches, path=tmp_path / "c")["changed"] == [3]


def test_what_only_looks_is_no_change():
    def body(progress):
        progress.record(deviation=float(predict_logits(progress.model, INPUTS).std()))
        progress.keep(f"epoch {progress.epoch}")
        progress.restore(f"epoch {progress.epoch}")

    assert trace_of(Batches(EXAMPLES, SIZE, SEED), body=body)["changed"] == []


def test_a_training_of_no_epochs_has_a_start_only():
    trace, longer = (trace_of(Batches(EXAMPLES, SIZE, SEED), count=count) for count in (0, 1))
    assert trace == longer | {
        "steps": 0,
        "first_loss": None,
        "outputs": None,
        "epochs": {name: [] for name in longer["epochs"]},
    }
