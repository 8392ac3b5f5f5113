"""Students as the course report's, and how many steps a second they make on a device, for `kd gpu-check`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdlib.batches import Batch
from kdlib.captured import CapturedStep
from kdlib.losses import hard_and_soft
from kdlib.networks import he_uniform_, keras_adam
from kdlib.replicas import CONVOLUTIONS, Replicas
from kdlib.seeds import generator
from kdlib.training import Progress, train_step

CLASSES, BATCH = 10, 32
STEPS, EPOCHS, CELLS = 1563, 50, 25  # of the report's grid: steps an epoch, epochs, pairs of alpha and T


class Student(nn.Module):
    """Three blocks of two convolutions and two dense layers, as the course report's student, with its dropout."""

    draws = 32 * 256

    def __init__(self, seed: int, in_bfloat16: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, filters in ((3, 32), (32, 64), (64, 128)):
            for channels in (before, filters):
                layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(filters)]
            layers.append(nn.MaxPool2d(2))
        self.in_bfloat16, self.convolutions = in_bfloat16, nn.Sequential(*layers)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(2048, 256), nn.ReLU(), nn.Linear(256, CLASSES))
        he_uniform_(self, generator(seed, "weights"))

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return logits (B, K) of uint8 pictures (B, 3, 32, 32)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16):
            h = x.float() / 255
            if self.training:
                uniform = torch.rand(len(x), self.draws, device=x.device) if uniform is None else uniform
            for number, layer in enumerate(self.convolutions):
                h = layer(h)
                if number == 6 and self.training and uniform is not None:
                    h = h * (uniform.view(-1, 32, 16, 16) >= 0.2) / 0.8
            logits: Tensor = self.dense(h)
            return logits.float()


def students(count: int, device: torch.device, convolutions: str = "grouped", in_bfloat16: bool = False) -> nn.Module:
    """Return one student, or several side by side, ready to be trained."""
    members = [Student(seed, in_bfloat16) for seed in range(count)]
    model = (Replicas(members, convolutions) if count > 1 else members[0]).to(device)
    if isinstance(model, Replicas):
        model.seed_layers(range(count))
    return model.train()


def batch_of(count: int, device: torch.device) -> Batch:
    """Return a batch of random pictures, labels and soft targets for so many students."""
    shape, draws = (count, BATCH) if count > 1 else (BATCH,), generator(0, "batch")
    return Batch(
        torch.randint(256, (*shape, 3, 32, 32), dtype=torch.uint8, generator=draws).to(device),
        torch.randint(CLASSES, shape, generator=draws).to(device),
        torch.zeros(shape, dtype=torch.int64, device=device),
        torch.randn(*shape, CLASSES, generator=draws).to(device),
    )


def distillation(outputs: Tensor, batch: Batch) -> Tensor:
    """Return the report's loss of its best cell (alpha 0.6, T 8), one for each student."""
    assert batch.soft is not None
    if outputs.ndim == 2:
        return hard_and_soft(outputs, batch.soft, batch.labels, 0.4, 0.6, 8.0)
    one = torch.vmap(lambda o, s, y: hard_and_soft(o, s, y, 0.4, 0.6, 8.0))
    losses: Tensor = one(outputs, batch.soft, batch.labels)
    return losses


def step_of(model: nn.Module, graph: bool) -> Callable[[Batch], Tensor]:
    """Return the training step, launched one by one or recorded as a CUDA graph."""
    progress = Progress(model, keras_adam(model.parameters()))

    def step(batch: Batch) -> Tensor:
        return train_step(model, progress.optimizer, distillation, batch)

    return CapturedStep(step, progress) if graph else step


# ---- how fast


@dataclass(frozen=True)
class Speed:
    """One way to train students: how many, how, and what was measured."""

    students: int
    convolutions: str
    graph: bool
    precision: str
    rate: float  # steps a second
    share: float  # of the device's measured speed of products of large matrices

    def __str__(self) -> str:
        """Say it in one line, with the minutes of the report's grid."""
        minutes = CELLS / self.students * STEPS * EPOCHS / self.rate / 60
        how = "one graph a step" if self.graph else "launched one by one"
        return (
            f"{self.students} student{'s' * (self.students > 1)}, {self.convolutions}, {how}, {self.precision}: "
            f"{self.rate:.1f} steps/s, {self.share:.1%} of the matrix peak, {CELLS} cells in {minutes:.0f} min"
        )


def speeds(device: torch.device) -> Iterator[Speed]:
    """Measure each way that this device can train students in."""
    on_cuda = device.type == "cuda"
    peak, operations = matrix_speed(device), _operations()
    for count in (1, CELLS if on_cuda else 2):
        for convolutions in CONVOLUTIONS if count > 1 else CONVOLUTIONS[:1]:
            for graph in (False, True) if on_cuda else (False,):
                model = students(count, device, convolutions, in_bfloat16=on_cuda)
                rate = _rate(step_of(model, graph), batch_of(count, device))
                precision = "bfloat16" if on_cuda else "float32"
                yield Speed(count, convolutions, graph, precision, rate, rate * count * operations / peak)


def matrix_speed(device: torch.device) -> float:
    """Return the operations a second of a product of two square matrices, the best of five: bfloat16 on CUDA."""
    on_cuda = device.type == "cuda"
    side, kind = (8192, torch.bfloat16) if on_cuda else (1024, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    return 2 * side**3 / min(_seconds(lambda: a @ b, device) for _ in range(5))


def _operations() -> int:
    """Of a step of one student; a multiplication and an addition are two."""
    cpu = torch.device("cpu")
    batch = batch_of(1, cpu)
    with FlopCounterMode(display=False) as counter:
        distillation(students(1, cpu)(batch.inputs), batch).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def _rate(step: Callable[[Batch], Tensor], batch: Batch) -> float:
    """Steps a second, after a warm-up: of as many steps as take about two seconds."""
    device = batch.inputs.device
    warm = [_seconds(lambda: step(batch), device) for _ in range(5 if device.type == "cuda" else 1)]
    count = max(1, min(500, int(2 / warm[-1])))
    return count / _seconds(lambda: [step(batch) for _ in range(count)], device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began
