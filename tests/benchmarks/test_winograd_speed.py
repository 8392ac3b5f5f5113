"""The convolution by tiles on one core against torch's: forward and backward pass, layers of VGG16 and of students."""

from __future__ import annotations

import time
from statistics import median

import pytest
import torch
from torch import nn

from kdlib import winograd
from kdlib.run.memory import keep_freed_memory

# layer: channels before and after, positions of a side, batch, how many times as fast it must be
LAYERS = {
    "VGG16, block 4": (512, 512, 28, 8, 2.0),
    "VGG16, block 5": (512, 512, 14, 32, 1.5),
    "grid, block 1": (32, 32, 32, 32, 1.0),
    "grid, block 2": (64, 64, 16, 32, 1.3),
    "grid, block 3": (128, 128, 8, 32, 1.3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_training_step_of_a_layer_is_faster_by_tiles(benchmark, name):
    before, after, side, batch, required = LAYERS[name]
    keep_freed_memory()  # as every session does
    layer = nn.Conv2d(before, after, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(batch, before, side, side).to(memory_format=torch.channels_last).requires_grad_()
    g = torch.randn(batch, after, side, side).to(memory_format=torch.channels_last)

    def seconds(function) -> float:
        began = time.process_time()
        torch.autograd.grad(function(x), (x, layer.weight, layer.bias), g)
        return time.process_time() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds(layer), seconds(lambda y: winograd.convolution(y, layer))  # warms both up
        ratios = []
        benchmark.pedantic(
            lambda: ratios.append(seconds(layer) / seconds(lambda y: winograd.convolution(y, layer))), rounds=7
        )
    finally:
        torch.set_num_threads(threads)
    print(f"\n{name}: {median(ratios):.2f} times as fast as torch's")
    assert median(ratios) >= required
