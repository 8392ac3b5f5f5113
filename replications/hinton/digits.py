"""Teacher and students on MNIST: networks, losses, training and metrics (section 3 of the paper).

Shapes: B batch, N digits, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import hard_and_soft, soft_target_kl
from kdlib.metrics import accuracy, classification_metrics, error_count, refuse_at_chance
from kdlib.networks import he_normal_, keras_adam, parameter_count
from kdlib.run.experiment import Run
from kdlib.run.store import Result
from kdlib.seeds import derive_seed
from kdlib.targets import SoftTargets
from kdlib.training import Objective, Progress, cosine, epochs, hard_targets, predict_logits

from .config import CLASSES, Config
from .gradients import gradient_noise

PIXELS = 28 * 28
MOMENTUM = 0.9


class Perceptron(nn.Module):
    """784-h-h-10 with ReLU; dropout of the inputs and of both hidden layers."""

    def __init__(self, width: int, dropout: tuple[float, float] = (0.0, 0.0), precision: str = "float32") -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise KDError(f"precision: expected float32 or bfloat16, found {precision!r}; correct the configuration")
        self.in_bfloat16 = precision == "bfloat16"
        self.layers = nn.ModuleList(nn.Linear(*widths) for widths in pairwise((PIXELS, width, width, CLASSES)))
        self.dropouts = nn.ModuleList(nn.Dropout(rate) for rate in (dropout[0], dropout[1], dropout[1]))

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 1, 28, 28) -> logits (B, K)
        h = x.flatten(1).float() / 255
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16 and self.training):
            for number, (layer, dropout) in enumerate(zip(self.layers, self.dropouts, strict=True)):
                h = layer(dropout(F.relu(h) if number else h))
            return h.float()


def teacher_network(config: Config) -> Perceptron:
    return Perceptron(config.teacher_width, (config.input_dropout, config.hidden_dropout), config.precision)


def student_network(config: Config) -> Perceptron:
    return Perceptron(config.width, precision=config.precision)


class NormLimitedSGD(torch.optim.SGD):
    """SGD with Nesterov momentum; after each step, no hidden unit has incoming weights of more than a largest norm.

    It is a class and not a hook, so that the trace of a run names it.
    """

    def __init__(self, model: Perceptron, rate: float, largest_norm: float) -> None:
        hidden = [layer.weight for layer in list(model.layers)[:-1]]
        others = [weight for weight in model.parameters() if all(weight is not one for one in hidden)]
        groups: list[dict[str, Any]] = [
            {"params": hidden, "largest_norm": largest_norm},
            {"params": others, "largest_norm": None},
        ]
        super().__init__(groups, lr=rate, momentum=MOMENTUM, nesterov=True, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for weight in group["params"] if group["largest_norm"] is not None else ():
                norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
                weight.mul_((group["largest_norm"] / norms).clamp(max=1))
        return loss


def jittered(pictures: Tensor, largest: int, draws: torch.Generator) -> Tensor:
    """Return pictures (B, 1, H, W), each shifted by -largest to largest pixels along each axis, all equally likely.

    The gap is filled with zeros.
    """
    count, _, height, width = pictures.shape
    down, right = torch.randint(2 * largest + 1, (2, count), generator=draws).to(pictures.device)
    padded = F.pad(pictures[:, 0], (largest,) * 4)
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (B, shifts, shifts, H, W), without a copy
    rows = torch.arange(count, device=pictures.device)
    return windows[rows, 2 * largest - down, 2 * largest - right].unsqueeze(1)


def adam(model: nn.Module, rate: float) -> torch.optim.Adam:
    return keras_adam(model.parameters(), rate, epsilon=1e-8)  # torch's epsilon


# ---- the teacher


def train_teacher(run: Run) -> Result:
    """Train the large network with dropout, jitter and the constraint; the weights are those of the last epoch."""
    run, config = on_device(run)
    train, kept_out = parts_of(run.data.train, config)
    model = teacher_network(config)
    # A separate stream: teacher and student then share no first weights.
    he_normal_(model, run.generator("teacher weights")).to(run.device)
    progress = run.progress(model, NormLimitedSGD(model, config.teacher_rate, config.largest_norm))

    def augment(epoch: int) -> Callable[[Tensor], Tensor]:
        draws = run.generator("jitter", epoch)
        return lambda pictures: jittered(pictures, config.jitter, draws)

    batches = Batches(train, config.batch, run.seed, augment=augment, view="jitter")
    rate = cosine(config.teacher_rate, config.teacher_epochs)
    for _ in epochs(progress, batches, hard_targets, count=config.teacher_epochs, seed=run.seed, rate=rate):
        pass
    progress.keep("final")
    about = {"parameters": parameter_count(model), "epochs": progress.epoch}
    if kept_out is not None:  # a choice must not look at the test digits
        errors = error_count(predict_logits(model, kept_out.inputs), kept_out.labels)
        return Result({"final": about | {"validation_errors": errors}}, progress.history, progress.kept)
    targets = logits_of(model, run)
    found = measure(run, targets["final.test"]) | about
    return Result({"final": found}, progress.history, progress.kept, targets)


def parts_of(train: Examples, config: Config) -> tuple[Examples, Examples | None]:
    """Return what is trained on and, if the run is validated, the last sixth, which chooses the teacher's settings."""
    if not config.validated:
        return train, None
    first = torch.arange(len(train.labels)) < len(train.labels) * 5 // 6
    return train.select(first), train.select(~first)


# ---- the students


def train_hard(run: Run) -> Result:
    return train(run, hard_targets, keep_targets=True)


def train_soft(run: Run) -> Result:
    return train(run, distillation(run.config), teacher_targets(run))


def train_sham(run: Run) -> Result:
    """Give each digit the soft targets of some digit of its class."""
    soft = teacher_targets(run).permuted_within_classes(run.data.train.labels, run.generator("sham"))
    return train(run, distillation(run.config), soft)


def distillation(config: Config) -> Objective:
    """hard_weight CE(labels) + (1 - hard_weight) T^2 KL(teacher_T || student_T), or T^2 KL alone (section 2)."""

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        if config.soft_only:
            return soft_target_kl(outputs, batch.soft, config.temperature)
        hard, temperature = config.hard_weight, config.temperature
        return hard_and_soft(outputs, batch.soft, batch.labels, hard, 1 - hard, temperature)

    return objective


def teacher_targets(run: Run) -> SoftTargets:
    """Return the teacher's soft targets (N, K) of the training digits; KDError if the teacher is at chance."""
    soft = run.soft_targets("teacher", "train", run.data.train)
    refuse_at_chance(soft.logits, run.data.train.labels, accuracy, f"{run.label}, run {soft.teacher_run}")
    return soft


def train(run: Run, objective: Objective, soft: SoftTargets | None = None, keep_targets: bool = False) -> Result:
    """Train a student on all training digits; the weights are those of the last epoch."""
    run, _ = on_device(run)
    progress = fit(run, run.data.train, objective, soft)
    targets = logits_of(progress.model, run)
    found = measure(run, targets["final.test"]) | about_student(progress)
    found |= {name: gradient_noise(model, run.data.train, objective, soft) for name, model in moments(run, progress)}
    if "usual" in run.parents:  # the same arm at the usual learning rate
        usual, snapshot = run.parents["usual"]
        found["extra_errors"] = found["errors"] - usual.metrics[snapshot]["errors"]
    return Result({"final": found}, progress.history, last(progress), targets if keep_targets else {})


def fit(run: Run, examples: Examples, objective: Objective, soft: SoftTargets | None) -> Progress:
    """Train a student on some examples with Adam; its weights are kept as "first" after epoch 1, "final" at the end."""
    config: Config = run.config
    model = student(run)
    progress = run.progress(model, adam(model, config.learning_rate))
    batches = Batches(examples, config.batch, stream(run), soft)
    rate = cosine(config.learning_rate, config.epochs)
    for epoch in epochs(progress, batches, objective, count=config.epochs, seed=run.seed, rate=rate):
        if epoch == 1:
            progress.keep("first")
    progress.keep("final")
    return progress


def student(run: Run) -> Perceptron:
    """Return the student as it begins."""
    model = student_network(run.config)
    first = replace(run, seed=stream(run)).generator("weights")
    return he_normal_(model, first).to(run.device)


def stream(run: Run) -> int:
    """Return the seed of first weights and order: the run's, or for another member of an ensemble one derived of it."""
    return derive_seed(run.seed, f"member {run.config.member}") if run.config.member else run.seed


def moments(run: Run, progress: Progress) -> list[tuple[str, Perceptron]]:
    """Return the student before training and after its first epoch, by the metric that is measured there."""
    begun, first = student(run), student(run)
    first.load_state_dict(progress.kept["first"])
    return [("noise_at_start", begun), ("noise_after_epoch", first)]


def last(progress: Progress) -> dict[str, dict[str, Tensor]]:
    return {"final": progress.kept["final"]}


# ---- metrics


def on_device(run: Run) -> tuple[Run, Config]:
    return replace(run, data=run.data.to(run.device)), run.config


def logits_of(model: nn.Module, run: Run) -> dict[str, Tensor]:
    return {f"final.{part}": predict_logits(model, getattr(run.data, part).inputs) for part in ("train", "test")}


def about_student(progress: Progress) -> dict[str, Any]:
    return {"parameters": parameter_count(progress.model), "epochs": progress.epoch}


def measure(run: Run, logits: Tensor, teacher: Tensor | None = None) -> dict[str, Any]:
    """Return the metrics of logits (N, K) of the test digits, compared with the teacher's logits if there is one."""
    test: Examples = run.data.test
    if teacher is None and "teacher" in run.parents:
        teacher = run.soft_targets("teacher", "test", test).logits
    found = classification_metrics(logits, test.labels, CLASSES, teacher)
    return {"errors": error_count(logits, test.labels), **found}
