"""The CIFAR-10 protocol that grid and teacher_free share: configuration, teacher, student, and one function per method.

grid and teacher_free replicate experiments of one report (IIT Kanpur, CS771A, 2020) with one student. A baseline or a
teacher that both need is trained once in profile full; the reduced profiles of the two differ.

A method is a function from a list of runs to a list of results, `train_distilled(runs)`. It trains one student for each
run. The students of several runs are trained side by side, as one stacked network (kdlib/replicas.py). The distillation
loss, the sham and the metrics are in __init__.py.

Shapes: R students side by side, B batch, N pictures, C channels, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdlib.torchvision_operators  # noqa: F401  # before torchvision
from kdlib.augment import flip_and_shift
from kdlib.batches import Batch, Batches, Examples
from kdlib.compiled import AVAILABLE
from kdlib.errors import KDError
from kdlib.losses import cross_entropy, hard_and_soft, label_smoothing
from kdlib.metrics import accuracy
from kdlib.networks import he_uniform_, keras_adam, keras_batch_norm, keras_glorot_, parameter_count
from kdlib.replicas import Replicas, of_replica, side_by_side
from kdlib.run.experiment import Arm, Run
from kdlib.run.finished import Result, read_teacher
from kdlib.seeds import generator
from kdlib.targets import SoftTargets, virtual_teacher
from kdlib.training import Objective, Progress, epochs, hard_targets, predict_logits
from replications.course_report import (
    CLASSES,
    Data,
    check_weights,
    distillation,
    measure,
    sham_targets,
    teacher_targets,
    trains_in_bfloat16,
)
from replications.course_report.convolution import convolved
from replications.course_report.dropout import dropped
from replications.course_report.kernels import relu_norm_pool

PROTOCOL = 2  # of grid and teacher_free, which share runs; raise it with every edit that can move results
ALPHAS, TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0), (2, 4, 6, 8, 10)  # of the report's grids
RECORDED = Path(__file__).parent / "recorded_teachers"  # pruned runs, one folder each
RECORDED_TEACHER = "da8d35441307415d"  # used by profile quick; made by `kd run grid --profile teacher --threads 3`


@dataclass(frozen=True)
class Config:
    """The report's values. "code": from its released notebooks; "ours": the source has no such setting."""

    epochs: int = 50  # code
    batch: int = 32  # code: distilled students; the baseline has 64
    learning_rate: float = 1e-3  # code: Adam
    slows: bool = False  # code, experiments 4 and 5: a tenth of the learning rate ...
    slow_from: int = 30  # ... from this epoch on
    alpha: float = 0.6  # weight of the teacher; the report's best cell
    temperature: float = 8.0
    soft_weight: float = 1.0  # ours: one more factor of the soft term, as in the released code of Yuan et al.
    certainty: float = 0.9  # ours: the virtual teacher's probability of the right class, before it is softened
    share: float = 1.0  # share of the training pictures: the first ones
    seed_offset: int = 0  # ours: added to the seed, so that a teacher shares no random numbers with its student
    validated: bool = False  # ours: the last tenth of the training pictures is used to choose, and not to train
    teacher_epochs: int = 90  # code
    teacher_batch: int = 64  # code
    teacher_schedule: str = "steps"  # code; "one-cycle" for a shortened training
    recorded_teacher: str = ""  # id of a recorded run whose logits replace the teacher's training
    train_pictures: int = 50_000
    test_pictures: int = 10_000
    precision: str = "float32"  # or bfloat16: training steps under autocast; predictions are always float32


def cell(alpha: float, temperature: int) -> str:
    """Return the name of the arm with this alpha and T."""
    return f"alpha_{alpha}_T_{temperature}".replace(".", "_")


# ---- the teacher


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pool: 11,173,962 trainable parameters, 11,183,562 in all."""

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.in_bfloat16 = trains_in_bfloat16(precision)
        self.net = resnet18(num_classes=CLASSES, norm_layer=lambda channels: keras_batch_norm(channels, dims=2))
        self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()
        for name, layer in list(self.net.named_modules()):
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) and layer.kernel_size == (3, 3):
                layer.padding = (0, 0)  # TensorFlow's "same": nothing before, one row and one column after
                self.net.set_submodule(name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer))

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 3, 32, 32) -> logits (B, K)
        x = (x.float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16 and self.training):
            logits: Tensor = self.net(x).float()
        return logits


def teacher_optimizer(model: nn.Module) -> torch.optim.SGD:
    # Keras's L2 penalty of 1e-4 has the gradient 2e-4 w. The code has it on the 3x3 kernels only: not on the shortcuts,
    # batch norm and the dense layer.
    kernels = [w for w in model.parameters() if w.ndim == 4 and w.shape[-1] == 3]
    others = [w for w in model.parameters() if not (w.ndim == 4 and w.shape[-1] == 3)]
    groups = [{"params": kernels, "weight_decay": 2e-4}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)


def teacher_rate(config: Config, epoch: int) -> float:
    if config.teacher_schedule == "steps":  # code: epochs 30, 60 and 90 of 90, counted from 1
        return float(0.1 * 0.1 ** (epoch * 90 // config.teacher_epochs // 30))
    if config.teacher_schedule == "one-cycle":  # up to 0.1 in the first third (at least 2 epochs), then down to 0.001
        top = max(2, round(config.teacher_epochs / 3))
        return 0.1 * epoch / top if epoch <= top else 0.1 - 0.099 * (epoch - top) / max(1, config.teacher_epochs - top)
    raise KDError(
        f"teacher_schedule: expected steps or one-cycle, found {config.teacher_schedule!r}; correct the configuration"
    )


def train_resnet18(run: Run) -> Result:
    """Train the teacher; the weights are those of the last epoch. Its soft targets are of the plain pictures."""
    config: Config = run.config
    if config.recorded_teacher and not run.data.synthetic:
        return recorded_logits(run)
    run = replace(run, data=run.data.to(run.device))
    data: Data = run.data
    # A stream of its own: from the student's, both first layers would get the same numbers.
    model = keras_glorot_(ResNet18(config.precision), run.generator("teacher weights"))  # code: Keras's default
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    progress = run.progress(model, teacher_optimizer(model))

    def augment(epoch: int) -> Callable[[Tensor], Tensor]:
        draws = run.generator("views", epoch)
        return lambda pictures: flip_and_shift(pictures, 3, draws)

    def rate(epoch: int) -> float:
        return teacher_rate(config, epoch)

    batches = Batches(data.train, config.teacher_batch, run.seed, augment=augment, view="flip+shift")
    for _ in epochs(progress, batches, hard_targets, count=config.teacher_epochs, seed=run.seed, rate=rate):
        pass
    progress.keep("final")
    logits = {f"final.{part}": predict_logits(model, getattr(data, part).inputs, 256) for part in ("train", "test")}
    measured = measure(run, logits["final.test"]) | {"parameters": parameter_count(model), "epochs": progress.epoch}
    return Result({"final": measured}, progress.history, progress.kept, logits)


def recorded_logits(run: Run) -> Result:
    """Return the logits of a recorded teacher as a result; KDError if its seed, pictures or network are others."""
    data = run.data
    teacher = read_teacher(
        RECORDED / run.config.recorded_teacher,
        recipe=train_resnet18.__name__,
        seed=run.seed,
        data=data.whole,
        instead="train one for each seed with --profile full",
    )
    counts = {"train": len(data.train.labels), "test": len(data.test.labels)}
    logits = {f"final.{part}": teacher.soft_targets(f"final.{part}")[:count] for part, count in counts.items()}
    about = {name: teacher.metrics["final"][name] for name in ("parameters", "epochs")}
    return Result({"final": measure(run, logits["final.test"]) | about}, teacher.history, {}, logits)


# ---- the student


class Student(nn.Module):
    """Three blocks of two convolutions, then two dense layers: 815,530 trainable parameters, 816,938 in all.

    `forward` takes the random numbers of dropout as an argument, `draws` for each example; without it, it draws them.
    So students that are trained side by side on a GPU have the dropout that each would have alone there. A student
    alone on a CPU uses the fused layers of kernels.py, dropout.py and convolution.py, which draw other numbers.
    """

    RATES = (0.2, 0.3, 0.4, 0.4)
    SHAPES = ((32, 16, 16), (64, 8, 8), (128, 4, 4), (256,))  # of the outputs that dropout is applied to
    COUNTS = tuple(torch.Size(shape).numel() for shape in SHAPES)
    draws = sum(COUNTS)

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        self.in_bfloat16 = trains_in_bfloat16(precision)
        self.blocks = nn.ModuleList(block(*channels) for channels in ((3, 32), (32, 64), (64, 128)))
        self.hidden = nn.Linear(2048, 256)
        self.norm = keras_batch_norm(256, dims=0)
        self.output = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:  # uint8 (B, 3, 32, 32) -> logits (B, K)
        dtype = self.output.weight.dtype
        if self.training and uniform is None:
            if AVAILABLE and x.device.type == "cpu" and dtype == torch.float32:
                return self.fused(x)
            uniform = torch.rand(len(x), self.draws, device=x.device)
        noise = [None] * 4 if uniform is None else torch.split(uniform, list(self.COUNTS), dim=1)
        h = x.to(dtype) / 255
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16 and self.training):
            for layers, rate, shape, u in zip(self.blocks, self.RATES, self.SHAPES, noise, strict=False):
                h = dropout(layers(h), rate, u, shape)
            h = self.norm(F.relu(self.hidden(h.flatten(1))))
            logits: Tensor = self.output(dropout(h, self.RATES[3], noise[3], self.SHAPES[3]))
            return logits.to(dtype)

    def fused(self, x: Tensor) -> Tensor:  # the same function for a training step on a CPU
        h = x.contiguous(memory_format=torch.channels_last).float() / 255
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            layers: Any  # of `block`: 0 and 3 are the convolutions, 2 and 5 the norms
            for layers, rate in zip(self.blocks, self.RATES, strict=False):
                h = relu_norm_pool(convolved(h, layers[0]), layers[2], pool=False)
                h = dropped(relu_norm_pool(convolved(h, layers[3]), layers[5], pool=True), rate)
            h = self.norm(F.relu(self.hidden(h.flatten(1))))
            logits: Tensor = self.output(dropped(h, self.RATES[3]))
            return logits.float()

    def initialise(self, generator: torch.Generator) -> Student:
        he_uniform_(self, generator)
        keras_glorot_(self.output, generator)  # code: the last layer names no initialiser
        return self


def block(before: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, filters, 3, padding=1),
        nn.ReLU(),
        keras_batch_norm(filters, dims=2),
        nn.Conv2d(filters, filters, 3, padding=1),
        nn.ReLU(),
        keras_batch_norm(filters, dims=2),
        nn.MaxPool2d(2),
    )


def dropout(h: Tensor, rate: float, uniform: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if uniform is None:
        return h
    return h * ((uniform.view(-1, *shape) >= rate) / (1 - rate)).to(h.dtype)


# ---- methods: what the students learn from. The arm's `mapped` says what may differ between the runs of a list.


def train_student(runs: Sequence[Run]) -> list[Result]:
    loss = for_each_student(cross_entropy, runs)
    return train(runs, lambda outputs, batch: loss(outputs, batch.labels))


def train_distilled(runs: Sequence[Run]) -> list[Result]:
    return train(runs, distillation_of_each(runs), [teacher_targets(run) for run in runs])


def train_distilled_sham(runs: Sequence[Run]) -> list[Result]:
    return train(runs, distillation_of_each(runs), [sham_targets(run) for run in runs])


def train_smoothed(runs: Sequence[Run]) -> list[Result]:
    # (1 - alpha) CE(labels, student) + alpha KL(uniform || student)
    alpha = runs[0].config.alpha
    for run in runs:
        check_weights(run, run.config.soft_weight)
        if run.config.alpha != alpha or run.config.soft_weight != 1:
            raise KDError(
                f"{run.label}: expected alpha {alpha} and soft_weight 1, found {run.config.alpha} and "
                f"{run.config.soft_weight}; smoothed labels have no soft term, and students side by side have one alpha"
            )
    loss = for_each_student(lambda outputs, labels: label_smoothing(outputs, labels, alpha), runs)
    return train(runs, lambda outputs, batch: loss(outputs, batch.labels))


def train_virtual_teacher(runs: Sequence[Run]) -> list[Result]:
    """Distil from a virtual teacher: `certainty` on the right class, the rest spread evenly; T then softens it."""
    pictures: Examples = runs[0].data.train
    logits = virtual_teacher(pictures.labels, CLASSES, runs[0].config.certainty, temperature=1.0)
    soft = SoftTargets(logits, "virtual teacher", pictures.digest)
    return train(runs, distillation_of_each(runs), [soft] * len(runs))


def for_each_student(
    loss: Callable[[Tensor, Tensor], Tensor], runs: Sequence[Run]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of one student (B, K) as it is; that of several, (R, B, K), as R losses."""
    return loss if len(runs) == 1 else torch.vmap(loss)


def distillation_of_each(runs: Sequence[Run]) -> Objective:
    """Return the loss of course_report.distillation, for each student with its own alpha and T."""
    each = [distillation(run, run.config.soft_weight) for run in runs]
    if len(runs) == 1:
        return each[0]
    configs: list[Config] = [run.config for run in runs]
    weights = (
        [1 - config.alpha for config in configs],
        [config.soft_weight * config.alpha for config in configs],
        [float(config.temperature) for config in configs],
    )
    numbers = [torch.tensor(values, device=runs[0].device) for values in weights]
    loss = torch.vmap(hard_and_soft)

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return loss(outputs, batch.soft, batch.labels, *numbers)

    return objective


# ---- training


def network(arm: Arm, config: Config, data: Data) -> nn.Module:
    return ResNet18(config.precision) if arm.train is train_resnet18 else Student(config.precision)


def train(runs: Sequence[Run], objective: Objective, soft: Sequence[SoftTargets | None] | None = None) -> list[Result]:
    """Train one student for each run, side by side if there are several: Adam, and the weights of the last epoch.

    KDError for runs that differ in anything but their seed, alpha and temperature.
    """
    config: Config = runs[0].config
    if len({replace(run.config, alpha=0.0, temperature=1.0) for run in runs}) > 1:
        raise KDError(
            f"{runs[0].label}: expected students side by side that differ in alpha and temperature only, found other "
            "differences; correct `mapped` of their arms"
        )
    data: Data = runs[0].data.to(runs[0].device)
    runs = [replace(run, data=data) for run in runs]
    seeds = [run.seed + config.seed_offset for run in runs]
    students = [Student(config.precision).initialise(generator(seed, "weights")).to(runs[0].device) for seed in seeds]
    parts = [split(data.train, config, targets) for targets in (soft or [None] * len(runs))]
    batches = [
        Batches(examples, config.batch, seed, targets)
        for seed, (examples, targets, _) in zip(seeds, parts, strict=True)
    ]
    # A single student is not stacked, so its bytes are those of a plain training loop.
    alone = len(runs) == 1
    model: nn.Module = students[0] if alone else Replicas(students, runs[0].compute.convolutions)
    if alone:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    progress = runs[0].progress(model, keras_adam(model.parameters(), config.learning_rate))
    for _ in epochs(
        progress,
        batches[0] if alone else side_by_side(batches),
        objective,
        count=config.epochs,
        seed=seeds,
        rate=lambda epoch: rate(config, epoch),
    ):
        pass
    progress.keep("final")
    return [result(run, progress, number, parts[number][2]) for number, run in enumerate(runs)]


def rate(config: Config, epoch: int) -> float:
    return config.learning_rate * (0.1 if config.slows and epoch >= config.slow_from else 1)


def split(
    whole: Examples, config: Config, soft: SoftTargets | None
) -> tuple[Examples, SoftTargets | None, Examples | None]:
    """Return the first share of the pictures, their soft targets, and the last tenth if the run is validated."""
    share = min(config.share, 0.9) if config.validated else config.share
    count, tenth = round(share * len(whole.labels)), len(whole.labels) // 10
    absent = [k for k, pictures in enumerate(whole.labels[:count].bincount(minlength=CLASSES).tolist()) if not pictures]
    if not 0 < config.share <= 1 or absent:
        raise KDError(
            f"share: expected one above 0 and up to 1 with pictures of all {CLASSES} classes, found {config.share} "
            f"with {count} pictures and none of class {absent}; take a larger share"
        )
    # All pictures keep the digest that the teacher's examples have, so a trace shows that their data are the same.
    digest = whole.digest if count == len(whole.labels) else f"{whole.digest}, first {count}"
    if soft is not None:
        whole.check(soft)
        soft = replace(soft, logits=soft.logits[:count], data_digest=digest)
    kept_out = None
    if config.validated:
        kept_out = Examples(whole.inputs[-tenth:], whole.labels[-tenth:], f"{whole.digest}, last tenth")
    return Examples(whole.inputs[:count], whole.labels[:count], digest), soft, kept_out


def result(run: Run, progress: Progress, number: int, kept_out: Examples | None) -> Result:
    """Return the result of one student; `number`: its place in the list of runs."""
    student, weights, loss = progress.model, progress.kept["final"], "training_loss"
    if isinstance(student, Replicas):
        student, weights, loss = student.member(number), of_replica(weights, number), f"training_loss/{number}"
    data: Data = run.data
    logits = {f"final.{part}": predict_logits(student, getattr(data, part).inputs) for part in ("train", "test")}
    found: dict[str, Any] = measure(run, logits["final.test"])
    found |= {"parameters": parameter_count(student), "epochs": progress.epoch}
    if kept_out is not None:
        found["validation_accuracy"] = accuracy(predict_logits(student, kept_out.inputs), kept_out.labels)
    history = [{"training_loss": epoch[loss]} for epoch in progress.history]
    return Result({"final": found}, history, {"final": weights}, logits)
