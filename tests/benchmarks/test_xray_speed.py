"""A training step of xray's student on one core, with and without the gradients that max-pools leave out."""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F

from kdlib.run.memory import keep_freed_memory
from replications.xray import experiment

REQUIRED = 1.4


def test_a_step_of_the_student_leaves_out_gradients_that_are_zero(benchmark, monkeypatch):
    keep_freed_memory()  # as every session does
    student = experiment.Student().to(memory_format=torch.channels_last)
    pictures = (F.interpolate(torch.rand(32, 1, 28, 28), size=224, mode="bilinear") * 255).byte()
    ours = experiment.pooled

    def seconds(way) -> float:
        monkeypatch.setattr(experiment, "pooled", way)
        began = time.process_time()
        student(pictures).logsumexp(1).sum().backward()
        return time.process_time() - began

    def torchs(h, layer):
        return F.relu(F.max_pool2d(layer(F.relu_(h)), 2))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds(ours), seconds(torchs)  # warms both up
        pairs = []
        benchmark.pedantic(lambda: pairs.append((seconds(torchs), seconds(ours))), rounds=7)
    finally:
        torch.set_num_threads(threads)
    ratio = median(slow / fast for slow, fast in pairs)
    print(
        f"\n{32 / median(fast for _, fast in pairs):.0f} pictures per core-second, {ratio:.2f} times as many as torch"
    )
    assert ratio >= REQUIRED
