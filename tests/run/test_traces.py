"""Two trainings that differ in one thing differ in one word of the vocabulary, and what follows has no word."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlib.augment import balanced_draw, mixup, unmixed
from kdlib.batches import Batches, Examples
from kdlib.judge.claims import DIFFERENCES
from kdlib.losses import hard_and_soft
from kdlib.replicas import Replicas, side_by_side
from kdlib.run.records import Record, record_of
from kdlib.run.store import Description, Result, Store
from kdlib.run.traces import VOCABULARY, arms_differ, differences
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import Progress, epochs, hard_targets

pytestmark = pytest.mark.usefixtures("traced")

N, K, SIZE, EPOCHS = 40, 3, 16, 3  # steps of 16, 16 and 8 rows
INPUTS = torch.randn(N, 4, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :K].argmax(1), "data")
LOGITS = torch.randn(N, K, generator=generator(0, "soft"))


def soft(run="teacher", data="data", factor=1.0):
    return SoftTargets(factor * LOGITS, run, data, part="final.train")


def network(seed, width=8, activation=nn.ReLU, dropout=0.3):
    layers = nn.Linear(4, width), nn.BatchNorm1d(width), activation(), nn.Dropout(dropout), nn.Linear(width, K)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, "weights", number)))
    return model


def adam(model, **rest):
    return torch.optim.Adam(model.parameters(), lr=0.01, **rest)


def frozen(model):
    model[:4].requires_grad_(False)
    return adam(model[4])


def distillation(temperature):
    def objective(outputs, batch):
        return hard_and_soft(outputs, batch.soft, batch.labels, 0.5, 0.5, temperature)

    return objective


def mixed(alpha=0.7):
    def mix(epoch):
        draws = generator(0, "mix", epoch)
        return mixup(balanced_draw(EXAMPLES.labels, N, K, draws), alpha, draws)

    return mix


def drawn(epoch):
    """The rows that are mixed with each other in `mixed`, without mixing."""
    return unmixed(balanced_draw(EXAMPLES.labels, N, K, generator(0, "mix", epoch)))


def noise(scale):
    return lambda epoch: lambda inputs: inputs + scale * torch.ones_like(inputs)


def trained(
    seed=0, order=0, layers=0, model=None, examples=EXAMPLES, size=SIZE, soft=None, objective=hard_targets, make=adam,
    rate=None, count=EPOCHS, body=lambda progress: None, **batches,
):  # fmt: skip
    """The trace of a training; every argument changes one thing."""
    model = network(seed, **(model or {}))
    progress = Progress(model, make(model))
    made = Batches(examples, size, order, soft, **batches)
    for _ in epochs(progress, made, objective, count=count, seed=layers, rate=rate):
        body(progress)
    (trace,) = progress.traces
    return trace


def words(one, other, epochs=(EPOCHS, EPOCHS), **rest):
    """The words for two traces, which do not depend on which is first."""
    found = differences(one, other, epochs, **rest)
    assert differences(other, one, epochs[::-1], **rest) == found
    return found


TAUGHT = {"soft": soft(), "objective": distillation(4.0)}


def reset(progress):
    if progress.epoch == 2:
        progress.optimizer.state.clear()


def shrink(progress):
    with torch.no_grad():
        progress.model[0].weight.mul_(0.9)


def slower(progress):
    """From the second epoch on."""
    progress.optimizer.param_groups[0]["lr"] = 0.005


def clipped(model):
    for weight in model.parameters():
        weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return adam(model)


def hooked(model):
    optimizer = adam(model)
    optimizer.register_step_pre_hook(lambda *_: None)
    return optimizer


class Applied(nn.Module):
    """A layer whose function it does not tell."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


class Following:
    """An objective whose weight is the last epoch's loss."""

    def __init__(self):
        self.weight = 1.0

    def follow(self, progress):
        self.weight = progress.history[-1]["training_loss"]

    def __call__(self, outputs, batch):
        return hard_and_soft(outputs, batch.soft, batch.labels, 0.5, 0.5 * self.weight, 4.0)


def weakening():
    calls = 0

    def objective(outputs, batch):
        nonlocal calls
        calls += 1
        return hard_and_soft(outputs, batch.soft, batch.labels, 0.5, 0.5 if calls <= 3 else 0.1, 4.0)

    return objective


OTHER_DATA = replace(EXAMPLES, inputs=INPUTS + 1, digest="other data")
FEWER = Examples(INPUTS[:37], EXAMPLES.labels[:37], "data, first 37")

# Two trainings, and in what they differ.
PAIRS = {
    "nothing": ({}, {}, []),
    "nothing, taught": (TAUGHT, TAUGHT, []),
    "nothing, mixed": ({"mix": mixed(), "classes": K}, {"mix": mixed(), "classes": K}, []),
    "another width": ({}, {"model": {"width": 9}}, ["network"]),
    "another depth": (
        {},
        {"model": {"activation": lambda: nn.Sequential(nn.ReLU(), nn.Linear(8, 8))}},
        ["network"],
    ),
    "another activation": ({}, {"model": {"activation": nn.Tanh}}, ["network"]),
    "another rate of dropout": ({}, {"model": {"dropout": 0.2}}, ["network"]),
    "other initial weights": ({}, {"seed": 1}, ["initial weights"]),
    "other data": ({}, {"examples": OTHER_DATA}, ["data"]),
    "other data of another length": ({}, {"examples": FEWER}, ["data"]),
    "another augmentation": ({}, {"augment": noise(0.1), "view": "noise"}, ["view"]),
    "another order": ({}, {"order": 1}, ["rows"]),
    "another order, taught": (TAUGHT, TAUGHT | {"order": 1}, ["rows"]),
    "draws": ({}, {"mix": drawn, "classes": K}, ["rows"]),
    "mixed draws": ({"mix": drawn, "classes": K}, {"mix": mixed(), "classes": K}, ["mixing"]),
    "mixed draws, taught": (
        TAUGHT | {"mix": drawn, "classes": K},
        TAUGHT | {"mix": mixed(), "classes": K},
        ["mixing"],
    ),
    "another alpha": ({"mix": mixed(), "classes": K}, {"mix": mixed(0.2), "classes": K}, ["mixing"]),
    "other labels": ({}, {"examples": replace(EXAMPLES, labels=EXAMPLES.labels.roll(1))}, ["mixing"]),
    "14 rows in a step instead of 16": ({}, {"size": 14}, ["batch size"]),
    "8 rows in a step instead of 16": ({}, {"size": 8}, ["batch size", "steps"]),
    "another rate": ({}, {"rate": lambda epoch: 0.02}, ["learning rate"]),
    "the same rate": ({}, {"rate": lambda epoch: 0.01}, []),
    "another schedule": ({}, {"rate": lambda epoch: 0.01 if epoch < 3 else 0.001}, ["learning rate"]),
    "a rate that the body changes": ({}, {"body": slower}, ["learning rate"]),
    "another class of optimizer": ({}, {"make": lambda m: torch.optim.AdamW(m.parameters(), 0.01)}, ["optimizer"]),
    "frozen layers": ({}, {"make": frozen}, ["network"]),
    "another eps": ({}, {"make": lambda model: adam(model, eps=1e-7)}, ["optimizer"]),
    "a reset": ({}, {"body": reset}, ["optimizer state"]),
    "shrunk weights": ({}, {"body": shrink}, ["optimizer state"]),
    "other dropout": ({}, {"layers": 1}, ["dropout"]),
    "a teacher": ({}, TAUGHT, ["soft targets"]),
    "another teacher": (TAUGHT, TAUGHT | {"soft": soft("other", factor=2)}, ["soft targets"]),
    "another teacher with the same logits": (TAUGHT, TAUGHT | {"soft": soft("other")}, ["soft targets"]),
    "another snapshot": (TAUGHT, TAUGHT | {"soft": replace(soft(), part="early.train")}, ["soft targets"]),
    "a sham": (
        TAUGHT,
        TAUGHT | {"soft": soft().permuted_within_classes(EXAMPLES.labels, generator(0, "sham"))},
        ["soft targets"],
    ),
    "another temperature": (TAUGHT, TAUGHT | {"objective": distillation(2.0)}, ["loss"]),
    "another teacher and temperature": (
        TAUGHT,
        TAUGHT | {"soft": soft("other", factor=2), "objective": distillation(2.0)},
        ["soft targets", "loss"],
    ),
    "a loss that follows what was learnt": (
        TAUGHT | {"objective": (first := Following()), "body": first.follow},
        TAUGHT | {"soft": soft("other", factor=2), "objective": (second := Following()), "body": second.follow},
        ["soft targets"],
    ),
    "a loss that changes": (TAUGHT, TAUGHT | {"objective": weakening()}, ["loss"]),
    "other inputs of the same digest": ({}, {"examples": replace(EXAMPLES, inputs=INPUTS.flip(1))}, ["outputs"]),
    "the same": ({}, TAUGHT | {"examples": replace(EXAMPLES, inputs=INPUTS.flip(1))}, ["soft targets", "outputs"]),
    "another computation": ({}, {"model": {"activation": lambda: Applied(torch.tanh)}}, ["network"]),
    "another one under the same name": (
        {"model": {"activation": lambda: Applied(torch.relu)}},
        TAUGHT | {"model": {"activation": lambda: Applied(torch.tanh)}},
        ["soft targets", "outputs"],
    ),
    "another slope": (
        {"model": {"activation": lambda: nn.LeakyReLU(0.1)}},
        TAUGHT | {"model": {"activation": lambda: nn.LeakyReLU(0.9)}},
        ["network", "soft targets"],
    ),
    "a limit of gradients": ({}, {"make": clipped}, ["network"]),
    "a hook of the optimizer": ({}, {"make": hooked}, ["network"]),
    "everything": (
        TAUGHT,
        {
            "seed": 1, "order": 1, "layers": 1, "size": 8, "count": 2, "rate": lambda epoch: 0.1, "body": reset,
            "make": lambda model: adam(model, weight_decay=0.1),
        },
        ["initial weights", "rows", "batch size", "steps", "learning rate", "optimizer", "dropout", "soft targets"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::kdlib.modes.FrozenWeightsAdapt")  # told of "frozen layers"
@pytest.mark.parametrize(("one", "other", "expected"), PAIRS.values(), ids=PAIRS)
def test_trainings_that_differ_in_one_thing(one, other, expected):
    counts = one.get("count", EPOCHS), other.get("count", EPOCHS)
    assert words(trained(**one), trained(**other), counts) == expected


def test_every_word_but_those_of_records_is_found_alone():
    alone = {expected[0] for _, _, expected in PAIRS.values() if len(expected) == 1}
    assert alone == VOCABULARY.keys() - {"precision", "steps", "selection"}


def test_the_vocabulary_is_that_of_the_claims():
    assert tuple(VOCABULARY) == DIFFERENCES


def test_other_data_of_another_teacher_are_two_differences():
    """Soft targets that follow from mixing, rows or data are compared by their origin."""
    other = {"soft": soft("other", "other data"), "objective": distillation(4.0)}
    assert words(trained(**TAUGHT), trained(**other, examples=OTHER_DATA)) == ["data", "soft targets"]
    mixing = {"mix": mixed(), "classes": K}
    rival = TAUGHT | {"soft": soft("other"), "mix": drawn, "classes": K}
    assert words(trained(**TAUGHT, **mixing), trained(**rival)) == ["mixing", "soft targets"]


def test_other_data_in_batches_of_another_size():
    assert words(trained(), trained(examples=FEWER, size=15)) == ["data", "batch size"]
    assert words(trained(), trained(examples=FEWER, size=10)) == ["data", "batch size", "steps"]


def test_precision_as_configured():
    """The precision moves the loss, so the loss is not named as well."""
    trace = trained()
    rounded = trace | {"first_loss": trace["first_loss"] * 1.01}
    assert words(trace, trace, other_precision=True) == ["precision"]
    assert words(trace, rounded, other_precision=True) == ["precision"]
    assert words(trace, rounded) == ["loss"]


def test_another_processor_rounds_the_loss_differently():
    trace = trained()
    assert words(trace, trace | {"first_loss": trace["first_loss"] * (1 + 2e-6)}) == []


def test_steps_until_the_snapshot():
    short, long = trained(count=2), trained(count=4)
    assert words(short, long, (2, 4)) == ["steps"]
    assert words(short, long, (2, 2)) == []  # the snapshot that `long` kept after two epochs
    assert words(long, long, (1, 4)) == ["steps"]


def test_only_what_both_have_done_is_compared():
    """After the last epoch of the shorter one, rates are no difference; steps are, and a change of state is one."""

    def later(progress):
        if progress.epoch == 3:
            progress.optimizer.state.clear()

    short = trained(count=2)
    long = trained(count=4, rate=lambda epoch: 0.01 if epoch < 3 else 0.001, body=later)
    assert words(short, long, (2, 4)) == ["steps", "optimizer state"]
    assert words(short, long, (2, 3)) == ["steps"]
    assert words(trained(count=4), long, (3, 3)) == ["learning rate"]
    assert words(trained(count=4), long, (4, 4)) == ["learning rate", "optimizer state"]


def test_trainings_of_no_epochs():
    assert words(trained(count=0), trained(count=0), (0, 0)) == []
    assert words(trained(count=0), trained(), (0, EPOCHS)) == ["steps", "loss"]


def test_a_member_of_a_stack_and_a_student_trained_alone_do_not_differ():
    models = [nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, K)) for _ in range(2)]
    batches = [Batches(EXAMPLES, SIZE, seed, soft()) for seed in (0, 1)]
    stack = Replicas(models)
    each = torch.vmap(hard_and_soft, in_dims=(0, 0, 0, None, None, None))
    together = Progress(stack, adam(stack))

    def objective(outputs, batch):
        return each(outputs, batch.soft, batch.labels, 0.5, 0.5, 4.0)

    list(epochs(together, side_by_side(batches), objective, count=EPOCHS, seed=(0, 1)))
    for number, seed in enumerate((0, 1)):
        alone = Progress(models[number], adam(models[number]))
        list(epochs(alone, batches[number], distillation(4.0), count=EPOCHS, seed=seed))
        assert words(together.traces[number], *alone.traces) == []
    assert words(*together.traces) == ["initial weights", "rows", "dropout"]


# ---- of records


@pytest.fixture
def record(tmp_path):
    numbers = itertools.count()

    def made(trace, metrics, precision="float32", **arms) -> Record:
        history = [{"training_loss": 1.0}] * len(trace["epochs"]["rows"] if trace else [0])
        about = Description("train", 1, {"precision": precision, "number": next(numbers)}, 0, "data")
        weights = {snapshot: {"w": torch.zeros(1)} for snapshot in metrics}
        run = Store(tmp_path).save(about, Result(metrics, history, weights), {}, trace)
        return record_of(run, "quick", arms, "the data")

    return made


def test_two_snapshots_of_one_run_differ_in_steps_only(record):
    run = record(trained(), {"early": {"epochs": 1}, "final": {"accuracy": 0.5}}, short="early", long="final")
    assert arms_differ(run, "long", run, "short") == ["steps"]
    assert arms_differ(run, "short", run, "short") == []


def test_snapshots_are_compared_up_to_their_own_epochs(record):
    """The released student goes on where its baseline stops."""
    final = {"final": {"epochs": EPOCHS}}
    one = record(trained(), {"early": {"epochs": 2}} | final, early="early", one="final")
    other = record(trained(rate=lambda epoch: 0.01 if epoch < 3 else 0.001), final, other="final")
    assert arms_differ(one, "early", other, "other") == ["steps"]
    assert arms_differ(one, "one", other, "other") == ["learning rate"]


def test_the_precision_of_two_records(record):
    final = {"final": {"epochs": EPOCHS}}
    one, other = record(trained(), final, a="final"), record(trained(), final, "bfloat16", b="final")
    assert arms_differ(one, "a", other, "b") == ["precision"]


def test_a_record_without_a_trace_is_not_compared(record):
    final = {"final": {"epochs": EPOCHS}}
    traced, old = record(trained(), final, a="final"), record({}, final, b="final")
    assert arms_differ(traced, "a", old, "b") is None
    assert arms_differ(old, "b", traced, "a") is None
    assert arms_differ(traced, "a", traced, "a") == []
