"""Gradients of soft targets: their limit at high temperatures, and how much they vary between examples.

Shapes: B batch, N digits, K = 10 classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.batches import Batch, Examples
from kdlib.losses import logit_matching, soft_target_kl
from kdlib.run.experiment import Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets
from kdlib.training import Objective

if TYPE_CHECKING:
    from .digits import Perceptron

HIGH = 10_000.0  # a temperature far above the size of any logit
MEASURED = 1_000  # digits whose gradients are compared


def measure_limit(run: Run) -> Result:
    """Measure, on the teacher's and a student's logits of the test digits, how the soft gradient nears its limit.

    Section 2.1: with zero-mean logits, the gradient of T^2 KL at a high T is that of logit matching. `matching_order`
    is how many powers of 1/T its relative error falls by, `gradient_order` how many the gradient without T^2 falls by.
    """
    test: Examples = run.data.test
    teacher, student = (
        centred(run.soft_targets(role, "test", test).logits.double().cpu()) for role in ("teacher", "student")
    )
    limit = gradient(partial(logit_matching, teacher=teacher), student)
    soft = {T: gradient(partial(soft_target_kl, teacher=teacher, temperature=T), student) for T in (HIGH, 2 * HIGH)}
    errors = torch.stack([(value - limit).norm() / limit.norm() for value in soft.values()])
    sizes = torch.stack([value.norm() / T**2 for T, value in soft.items()])
    orders = {name: round(halvings(pair), 2) for name, pair in (("matching", errors), ("gradient", sizes))}
    found: dict[str, Any] = {f"{name}_order": value for name, value in orders.items()}
    return Result({"final": found | {"epochs": 0}}, [], {"final": {"relative_errors": errors, "sizes": sizes}})


def centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(logits), logits)
    return found


def halvings(pair: Tensor) -> float:
    return math.log2(pair[0] / pair[1])


def gradient_noise(
    model: Perceptron, examples: Examples, objective: Objective, soft: SoftTargets | None, count: int = MEASURED
) -> float:
    """Return 1 - |mean g|^2 / mean |g|^2 for the gradients g of single examples: the share that averages out.

    It is 0 if all examples have the same gradient, and near 1 if their gradients have nothing in common. It does not
    depend on the size of the gradients, which differs between hard and soft targets. The first `count` examples are
    measured. A linear layer with inputs a and gradient d of its outputs has the gradient d a^T for one example, so all
    norms follow from one backward pass.
    """
    rows = torch.arange(min(count, len(examples.labels)), device=examples.labels.device)
    targets = None if soft is None else soft.logits[rows].to(examples.inputs.device)
    batch = Batch(examples.inputs[rows], examples.labels[rows], rows, targets)
    inputs, outputs = [], []
    h = batch.inputs.flatten(1).float() / 255
    for number, layer in enumerate(model.layers):
        inputs.append(F.relu(h) if number else h)
        h = layer(inputs[-1])
        outputs.append(h)
    deltas = torch.autograd.grad(objective(h, batch) * len(rows), outputs)
    squares = h.new_zeros(len(rows), dtype=torch.float64)
    square_of_mean = 0.0
    for a, d in zip((a.detach().double() for a in inputs), (d.double() for d in deltas), strict=True):
        squares += (1 + (a**2).sum(1)) * (d**2).sum(1)
        square_of_mean += float(((d.t() @ a / len(rows)) ** 2).sum() + (d.mean(0) ** 2).sum())
    return 1 - square_of_mean / float(squares.mean())
