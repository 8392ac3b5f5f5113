"""A training step of the teaching assistants' networks with fused layers against one with torch's own."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch

from kdlib.batches import Batch
from kdlib.losses import cross_entropy
from kdlib.seeds import generator
from kdlib.training import train_step
from replications.ta_chain import experiment as chain

STEPS, ROUNDS = 8, 9
REQUIRED = {2: 1.3, 10: 1.0}


def seconds(model, optimizer, batch):
    start = time.perf_counter()
    for _ in range(STEPS):
        train_step(model, optimizer, lambda outputs, batch: cross_entropy(outputs, batch.labels), batch)
    return time.perf_counter() - start


@pytest.mark.parametrize("size", REQUIRED)
def test_fused_layers_are_faster_than_separate_ones(benchmark, monkeypatch, size):
    pictures = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "pictures"))
    batch = Batch(pictures, torch.arange(64) % 10, torch.arange(64))
    networks = {}
    for fused in (True, False):
        model = chain.Network(size).initialise(generator(0, "weights")).train()
        networks[fused] = model, chain.optimizer(chain.PAPER, model)

    def one(fused):
        monkeypatch.setattr(chain, "AVAILABLE", fused)
        return seconds(*networks[fused], batch)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a training process has
    try:
        one(True), one(False)  # compiled, and memory taken
        ratios = []
        benchmark.pedantic(lambda: ratios.append(one(False) / one(True)), rounds=ROUNDS)
    finally:
        torch.set_num_threads(threads)
    benchmark.extra_info["separate over fused, median of paired rounds"] = round(median(ratios), 2)
    print(f"\n{size} convolutions: separate layers take {median(ratios):.2f} times as long as fused ones")
    assert median(ratios) >= REQUIRED[size]
