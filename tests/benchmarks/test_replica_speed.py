"""How fast students side by side train, and which part of the device's bf16 matrix speed that is."""

from __future__ import annotations

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kdlib.batches import Batch
from kdlib.losses import cross_entropy, hard_and_soft
from kdlib.networks import keras_adam
from kdlib.replicas import Replicas
from kdlib.seeds import generator
from kdlib.training import train_step
from replications.course_report.cifar import Student

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REPLICAS, STEPS, SIDE = (25, 200, 8192) if DEVICE.type == "cuda" else (4, 5, 1024)
BATCH, EPOCH, EPOCHS = 32, 1563, 50  # steps of 32 of all 50,000 pictures
PRECISION = "bfloat16" if DEVICE.type == "cuda" else "float32"


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def operations_of_a_step() -> int:
    """Of one student, forward and backward; a multiplication and an addition are two."""
    student = Student()
    with FlopCounterMode(display=False) as counter:
        cross_entropy(
            student(torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8)), torch.zeros(BATCH, dtype=torch.int64)
        ).backward()
    return counter.get_total_flops()


def matrix_speed() -> float:
    """Operations a second of a product of two square bf16 matrices, the best of ten."""
    a, b = (torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(10):
        synchronize()
        began = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / min(seconds)


def test_students_side_by_side(benchmark: pytest.FixtureRequest) -> None:
    model = Replicas([Student(PRECISION).initialise(generator(seed, "weights")) for seed in range(REPLICAS)]).to(DEVICE)
    model.seed_layers(range(REPLICAS))
    model.train()
    optimizer = keras_adam(model.parameters())
    shape = (REPLICAS, BATCH)
    batch = Batch(
        torch.randint(256, (*shape, 3, 32, 32), dtype=torch.uint8, device=DEVICE),
        torch.randint(10, shape, device=DEVICE),
        torch.zeros(shape, dtype=torch.int64, device=DEVICE),
        torch.randn(*shape, 10, device=DEVICE),
    )
    mapped = torch.vmap(lambda outputs, soft, labels: hard_and_soft(outputs, soft, labels, 0.4, 0.6, 8.0))

    def steps() -> None:
        for _ in range(STEPS):
            train_step(model, optimizer, lambda outputs, batch: mapped(outputs, batch.soft, batch.labels), batch)
        synchronize()

    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    rate = STEPS / benchmark.stats.stats.min
    share = rate * REPLICAS * operations_of_a_step() / matrix_speed()
    benchmark.extra_info.update(steps_a_second=rate, share_of_matrix_speed=share)
    minutes = 25 / REPLICAS * EPOCH * EPOCHS / rate / 60
    print(
        f"\n{REPLICAS} students side by side on {DEVICE.type}, {PRECISION}: {rate:.2f} steps a second, {share:.1%} of "
        f"the measured bf16 matrix speed; 25 cells of {EPOCHS} epochs in {minutes:.0f} minutes"
    )
