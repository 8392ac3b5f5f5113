"""Training steps of the teaching assistants' networks: fused layers against torch's own, bfloat16 against float32."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from kdlib.batches import Batch
from kdlib.losses import cross_entropy
from kdlib.seeds import generator
from kdlib.training import train_step
from replications.course_report import kernels
from replications.ta_chain import experiment as chain

STEPS, ROUNDS = 8, 9
REQUIRED = {2: 1.3, 10: 1.0}
REQUIRED_OF_BFLOAT16 = {4: 1.5, 10: 1.3}


@pytest.mark.parametrize("size", REQUIRED)
def test_fused_layers_are_faster_than_separate_ones(benchmark, monkeypatch, size):
    networks = {fused: trained(size) for fused in (True, False)}

    def one(fused):
        monkeypatch.setattr(kernels, "AVAILABLE", fused)
        return seconds(*networks[fused])

    ratio = paired(benchmark, lambda: one(False), lambda: one(True))
    print(f"\n{size} convolutions: separate layers take {ratio:.2f} times as long as fused ones")
    assert ratio >= REQUIRED[size]


@pytest.mark.skipif(
    not torch.cpu.get_capabilities().get("amx_bf16"), reason="the processor has no matrix unit for bfloat16"
)
@pytest.mark.parametrize("size", REQUIRED_OF_BFLOAT16)
def test_bfloat16_is_faster_than_float32_where_the_processor_has_a_unit_for_it(benchmark, size):
    exact, rounded = trained(size), trained(size, "bfloat16")
    ratio = paired(benchmark, lambda: seconds(*exact), lambda: seconds(*rounded))
    print(f"\n{size} convolutions: a step in float32 takes {ratio:.2f} times as long as one in bfloat16")
    assert ratio >= REQUIRED_OF_BFLOAT16[size]


def trained(size, precision="float32"):
    model = chain.Network(size, precision).initialise(generator(0, "weights")).train()
    return model, chain.optimizer(chain.PAPER, model)


def paired(benchmark, slow, fast):
    """Return the median ratio of the two times over rounds of one after the other, on one thread as in training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        slow(), fast()  # compiled, and memory taken
        ratios = []
        benchmark.pedantic(lambda: ratios.append(slow() / fast()), rounds=ROUNDS)
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info["ratio, median of paired rounds"] = round(median(ratios), 2)
    return median(ratios)


def seconds(model, optimizer):
    pictures = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "pictures"))
    batch = Batch(pictures, torch.arange(64) % 10, torch.arange(64))
    start = time.perf_counter()
    for _ in range(STEPS):
        train_step(model, optimizer, lambda outputs, batch: cross_entropy(outputs, batch.labels), batch)
    return time.perf_counter() - start
