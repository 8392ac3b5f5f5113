"""A student of grid alone on one core: fused layers and kept memory against torch's layers, in both precisions."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_input

from kdlib.batches import Batches, Examples
from kdlib.networks import keras_adam
from kdlib.run.memory import keep_freed_memory
from kdlib.seeds import generator
from kdlib.training import Progress, epochs, hard_targets
from replications.course_report import cifar
from tests.benchmarks.processes import Train, together, worker

PICTURES, BATCH, ROUNDS = 320, 32, 7
REQUIRED = 1.3
CAPABILITIES = torch.cpu.get_capabilities()
HAS_BFLOAT16 = bool(CAPABILITIES.get("avx512_bf16") or CAPABILITIES.get("amx_bf16"))
PRECISIONS = [
    "float32",
    pytest.param("bfloat16", marks=pytest.mark.skipif(not HAS_BFLOAT16, reason="no instructions for bfloat16")),
]


def loop(fused: bool, precision: str) -> Train:
    if fused:
        keep_freed_memory()  # as every session does
    else:
        cifar.AVAILABLE = False  # of this process
    draws = generator(0, "pictures")
    inputs = torch.randint(256, (PICTURES, 3, 32, 32), dtype=torch.uint8, generator=draws)
    student = cifar.Student(precision).initialise(generator(0, "weights")).to(memory_format=torch.channels_last)
    progress = Progress(student, keras_adam(student.parameters()))
    batches = Batches(Examples(inputs, torch.arange(PICTURES) % 10, "random"), BATCH, seed=0)

    def train(count):
        began = time.process_time()  # of this core: other programs may use it in between
        for _ in epochs(progress, batches, hard_targets, count=progress.epoch + count, seed=0):
            pass
        return {"seconds": torch.tensor(time.process_time() - began)}

    return train


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_student_alone_trains_faster_with_fused_layers(benchmark, precision):
    with ExitStack() as stack:
        old, new = ([stack.enter_context(worker(partial(loop, f, precision), threads=1))] for f in (False, True))
        together(old, 1), together(new, 1)  # warms both up
        seconds: dict[str, list[float]] = {"old": [], "new": []}

        def one_round() -> None:  # one after the other, so that both meet the same machine
            for name, process in (("old", old), ("new", new)):
                seconds[name] += [float(found["seconds"]) for found in together(process, 1)]

        benchmark.pedantic(one_round, rounds=ROUNDS)
    ratio = median(one / other for one, other in zip(seconds["old"], seconds["new"], strict=True))
    benchmark.extra_info["ratio"] = round(ratio, 2)
    before, now = (PICTURES / median(seconds[name]) for name in ("old", "new"))
    print(
        f"\n{precision}: {before:.0f} pictures a core-second with torch's layers, {now:.0f} with fused ones: "
        f"{ratio:.2f} times"
    )
    assert ratio >= REQUIRED


def test_the_input_gradient_of_large_pictures(benchmark):
    """Of 32 channels at 32x32: oneDNN's own, as a forward pass, and as a matrix product with 9 shifted copies."""
    dtype, side, channels = torch.bfloat16 if HAS_BFLOAT16 else torch.float32, 32, 32
    shape = (BATCH, channels, side, side)
    g = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)

    def as_forward():
        return F.conv2d(g, weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last), padding=1)

    def as_product():
        padded = F.pad(g.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
        b, h, w, c = padded.stride()
        copies = padded.as_strided((BATCH, side, side, 3, 3, channels), (b, h, w, h, w, c)).reshape(-1, 9 * channels)
        matrix = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(9 * channels, channels)
        return (copies @ matrix).view(BATCH, side, side, channels).permute(0, 3, 1, 2)

    ways = {"oneDNN": lambda: conv2d_input(shape, weight, g, padding=1), "forward": as_forward, "product": as_product}
    exact = conv2d_input(shape, weight.double(), g.double(), padding=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, way in ways.items():
            assert (way().double() - exact).abs().max() <= 2e-2 * exact.abs().max(), name
        taken = {name: [] for name in ways}

        def one_round():
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - began)

        benchmark.pedantic(one_round, rounds=30)
    finally:
        torch.set_num_threads(threads)
    texts = [f"{name} {1e3 * median(seconds):.1f} ms" for name, seconds in taken.items()]
    print(f"\ninput gradient of {channels} channels at {side}x{side}, {dtype}: {', '.join(texts)}")
