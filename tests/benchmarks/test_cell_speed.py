"""What soft targets cost where they are looked up, and a cell of the grid against the loop that one writes first."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from kdlib.batches import Batches, Examples
from kdlib.losses import hard_and_soft
from kdlib.networks import keras_adam, keras_glorot_
from kdlib.seeds import derive_seed, generator
from kdlib.targets import SoftTargets
from kdlib.training import Progress, epochs, hard_targets, predict_logits
from replications.course_report.cifar import ResNet18, Student
from tests.benchmarks.processes import Train, together, worker

PICTURES, BATCH, RATE, SEED = 320, 32, 1e-3, 5
ALPHA, TEMPERATURE = 0.6, 8.0
OUR_EPOCHS, ROUNDS = 3, 4
MOST, REQUIRED = 1.05, 5.0


def pictures() -> Examples:
    g = torch.Generator().manual_seed(1)
    inputs = torch.randint(256, (PICTURES, 3, 32, 32), dtype=torch.uint8, generator=g)
    return Examples(inputs, torch.arange(PICTURES) % 10, "random")


@lru_cache(maxsize=1)
def teacher() -> ResNet18:
    return keras_glorot_(ResNet18(), generator(0, "teacher")).to(memory_format=torch.channels_last).eval()


def student() -> Student:
    return Student().initialise(generator(SEED, "weights"))


def distilled(outputs, batch):
    return hard_and_soft(outputs, batch.soft, batch.labels, 1 - ALPHA, ALPHA, TEMPERATURE)


def our_loop(objective: Callable = distilled) -> Train:
    examples = pictures()
    soft = (
        SoftTargets(predict_logits(teacher(), examples.inputs, 64), "teacher", "random")
        if objective is distilled
        else None
    )
    model = student().to(memory_format=torch.channels_last)
    progress = Progress(model, keras_adam(model.parameters(), RATE))
    batches = Batches(examples, BATCH, SEED, soft)

    def train(count):
        for _ in epochs(progress, batches, objective, count=progress.epoch + count, seed=SEED):
            pass
        return model.state_dict()

    return train


def loop_without_a_teacher() -> Train:
    return our_loop(hard_targets)


def plain_loop() -> Train:
    """As public code has it: a DataLoader of float32 pictures, and a forward pass of the teacher in every step."""
    model, examples, order = student(), pictures(), torch.Generator()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=1e-7)
    data = TensorDataset(examples.inputs.float(), examples.labels)
    # What shuffle=True makes, with a generator of ours, so that both loops see the pictures in one order.
    loader = DataLoader(data, BATCH, sampler=RandomSampler(data, generator=order))
    done = 0

    def train(count):
        nonlocal done
        for _ in range(count):
            done += 1
            order.manual_seed(derive_seed(SEED, "order", done))
            model.train()
            steps = iter(loader)
            torch.manual_seed(derive_seed(SEED, "layers", done))  # after iter(), which draws a number too
            for inputs, labels in steps:
                with torch.no_grad():
                    soft = teacher()(inputs)
                optimizer.zero_grad()
                hard_and_soft(model(inputs), soft, labels, 1 - ALPHA, ALPHA, TEMPERATURE).backward()
                optimizer.step()
        return model.state_dict()

    return train


def apart(name: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The distance between two trained tensors, as a share of the way from their start."""
    return float((one[name] - other[name]).norm() / (one[name] - student().state_dict()[name]).norm())


def test_a_distilled_epoch_costs_what_one_without_a_teacher_does(benchmark):
    with ExitStack() as stack:
        without, taught = (
            [stack.enter_context(worker(loop, threads=1))] for loop in (loop_without_a_teacher, our_loop)
        )
        together(without, 1), together(taught, 1)  # warms both up
        seconds = []

        def one_round_without() -> None:  # between the rounds of the other, so that both meet the same machine
            began = time.perf_counter()
            together(without, OUR_EPOCHS)
            seconds.append(time.perf_counter() - began)

        benchmark.pedantic(together, args=(taught, OUR_EPOCHS), setup=one_round_without, rounds=2 * ROUNDS)
    # The median over pairs of rounds that met the same machine: what else the machine does is in both.
    ratio = median(one / other for one, other in zip(benchmark.stats.stats.data, seconds, strict=True))
    benchmark.extra_info["ratio"] = ratio
    print(f"\na distilled epoch takes {ratio:.3f} times one without a teacher (at most {MOST})")
    assert ratio <= MOST


def test_cells_train_five_times_as_fast_as_the_plain_loop(benchmark):
    with ExitStack() as stack:
        plain = [stack.enter_context(worker(plain_loop, threads=2))]
        ours = [stack.enter_context(worker(our_loop, threads=1)) for _ in range(2)]
        (expected,), (found, twin) = together(plain, 1), together(ours, 1)  # warms both up
        assert all(torch.equal(found[name], twin[name]) for name in found)
        # It is the same training. Only the first layers are compared: Adam's first steps have the same size for every
        # gradient, so rounding soon changes the deeper layers.
        assert apart("blocks.0.2.running_mean", expected, found) < 0.02
        seconds = []

        def one_round_of_the_plain_loop() -> None:
            began = time.perf_counter()
            together(plain, 1)
            seconds.append(time.perf_counter() - began)

        benchmark.pedantic(together, args=(ours, OUR_EPOCHS), setup=one_round_of_the_plain_loop, rounds=ROUNDS)
    pairs = zip(benchmark.stats.stats.data, seconds, strict=True)
    ratio = median(2 * OUR_EPOCHS * plain_one / our_rounds for our_rounds, plain_one in pairs)
    benchmark.extra_info["ratio"] = ratio
    print(
        f"\n{PICTURES}-picture epochs a second: plain {1 / median(seconds):.3f}, two of ours "
        f"{2 * OUR_EPOCHS / benchmark.stats.stats.median:.3f}: {ratio:.1f} times"
    )
    assert ratio >= REQUIRED
