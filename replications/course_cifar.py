"""What grid and teacher_free share: the report's CIFAR-10 protocol, its ResNet-18 and its student (IIT Kanpur, CS771A, 2020).

Both replicate experiments of one report with one student, so a baseline or a teacher that both need is trained once (in profile
full; their reduced profiles differ).

Shapes: R students side by side, B batch, N pictures, C channels, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kdlib.torchvision_operators  # noqa: F401  # before torchvision
from kdlib.augment import flip_and_shift
from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.experiment import Run
from kdlib.losses import cross_entropy, hard_and_soft, label_smoothing
from kdlib.metrics import accuracy
from kdlib.networks import he_uniform_, keras_adam, keras_batch_norm, keras_glorot_, parameter_count
from kdlib.replicas import Replicas, beside, of_replica
from kdlib.runs import Result, read_run
from kdlib.targets import SoftTargets, virtual_teacher
from kdlib.training import Objective, epochs, predict_logits
from replications.course_report import (
    CLASSES,
    Data,
    check_weights,
    distillation,
    hard_targets,
    in_bfloat16,
    measure,
    sham_targets,
    teacher_targets,
)

ALPHAS, TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0), (2, 4, 6, 8, 10)  # of the report's grids
RECORDED = Path(__file__).parent / "recorded_teachers"  # pruned runs, one folder each
RECORDED_TEACHER = "da8d35441307415d"  # the one that profile quick uses: `kd run grid --profile teacher --threads 3`


@dataclass(frozen=True)
class Config:
    """The report's values; "code" stands for its released notebooks."""

    epochs: int = 50  # code
    batch: int = 32  # code: distilled students; the baseline 64
    learning_rate: float = 1e-3  # code: Adam
    slows: bool = False  # code, experiments 4 and 5: a tenth of the learning rate ...
    slow_from: int = 30  # ... from this epoch on
    alpha: float = 0.6  # weight of the teacher; the report's best cell
    temperature: float = 8.0
    soft_weight: float = 1.0  # ours: one more factor of the soft term, as Yuan et al.'s released code has
    certainty: float = 0.9  # ours: what the virtual teacher gives the right class, before it is softened
    share: float = 1.0  # of the training pictures: the first ones
    validated: bool = False  # ours: the last tenth of the training pictures chooses, and is not trained on
    teacher_epochs: int = 90  # code
    teacher_batch: int = 64  # code
    teacher_schedule: str = "steps"  # code; "one-cycle" for a shortened training
    recorded_teacher: str = ""  # the run whose logits stand for a training of the teacher
    train_pictures: int = 50_000
    test_pictures: int = 10_000
    precision: str = "float32"  # or bfloat16: training steps under autocast; predictions are float32 always


def cell(alpha: float, temperature: int) -> str:
    """The name of an arm with this alpha and T."""
    return f"alpha_{alpha}_T_{temperature}".replace(".", "_")


# ---- the teacher


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and no max-pool: 11,173,962 trainable parameters, 11,183,562 in all."""

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        from torchvision.models import resnet18

        self.half = in_bfloat16(precision)
        self.net = resnet18(num_classes=CLASSES, norm_layer=lambda channels: keras_batch_norm(channels, dims=2))
        self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()
        for name, layer in list(self.net.named_modules()):
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) and layer.kernel_size == (3, 3):
                layer.padding = (0, 0)  # TensorFlow's "same": nothing before, one row and column after
                self.net.set_submodule(name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer))

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 3, 32, 32) -> logits (B, K)
        x = (x.float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half and self.training):
            return self.net(x).float()


def teacher_optimizer(model: nn.Module) -> torch.optim.SGD:
    # Keras's L2 of 1e-4 has the gradient 2e-4 w, and stands on the 3x3 kernels only: not on shortcuts, batch norm, dense layer.
    kernels = [w for w in model.parameters() if w.ndim == 4 and w.shape[-1] == 3]
    others = [w for w in model.parameters() if not (w.ndim == 4 and w.shape[-1] == 3)]
    groups = [{"params": kernels, "weight_decay": 2e-4}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)


def teacher_rate(config: Config, epoch: int) -> float:
    if config.teacher_schedule == "steps":  # code: epochs 30, 60 and 90 of 90, counted from 1
        return float(0.1 * 0.1 ** (epoch * 90 // config.teacher_epochs // 30))
    if config.teacher_schedule == "one-cycle":  # up to 0.1 over the first third (2 epochs at least), then down to 0.001
        top = max(2, round(config.teacher_epochs / 3))
        return 0.1 * epoch / top if epoch <= top else 0.1 - 0.099 * (epoch - top) / max(1, config.teacher_epochs - top)
    raise KDError(f"teacher_schedule: expected steps or one-cycle, found {config.teacher_schedule!r}")


def train_resnet18(run: Run) -> Result:
    """The weights of the last epoch; its soft targets are of the plain pictures, and never of the augmented ones."""
    config: Config = run.config
    if config.recorded_teacher and not run.data.synthetic:
        return recorded_logits(run)
    run = replace(run, data=run.data.to(run.device))
    data: Data = run.data
    model = keras_glorot_(ResNet18(config.precision), run.generator("weights"))  # code: Keras's default
    model = model.to(run.device, memory_format=torch.channels_last)
    progress = run.progress(model, teacher_optimizer(model))
    batches = Batches(data.train, config.teacher_batch, run.seed)

    def augmented(epoch: int) -> Any:
        draws = run.generator("views", epoch)
        return (replace(batch, inputs=flip_and_shift(batch.inputs, 3, draws)) for batch in batches(epoch))

    for _ in epochs(progress, augmented, hard_targets, count=config.teacher_epochs, seed=run.seed,
                    rate=lambda epoch: teacher_rate(config, epoch)):
        pass
    progress.keep("final")
    logits = {f"final.{part}": predict_logits(model, getattr(data, part).inputs, 256) for part in ("train", "test")}
    measured = measure(run, logits["final.test"]) | {"parameters": parameter_count(model), "epochs": progress.epoch}
    return Result({"final": measured}, progress.history, progress.kept, logits)


def recorded_logits(run: Run) -> Result:
    """What a teacher trained earlier says of these pictures, which must be the first of those it was trained and tested on."""
    folder, data = RECORDED / run.config.recorded_teacher, run.data
    if not folder.is_dir():
        raise KDError(f"recorded_teacher: expected a run in {RECORDED}, found none named {run.config.recorded_teacher}")
    teacher = read_run(folder)
    if run.seed != teacher.description.seed:
        raise KDError(f"{run.label}: expected seed {teacher.description.seed}, that of the recorded teacher, found {run.seed}; "
                      "there is one recorded teacher: train one for each seed with --profile full")
    if teacher.description.recipe.partition("/")[2] != train_resnet18.__name__:
        raise KDError(f"{folder}: expected a run of {train_resnet18.__name__}, found one of {teacher.description.recipe}")
    if teacher.description.data != data.whole:
        raise KDError(f"{folder}: expected the teacher of these pictures (digest {data.whole}), found one of "
                      f"{teacher.description.data}; unpack CIFAR-10 anew, or train a teacher with --profile full")
    counts = {"train": len(data.train.labels), "test": len(data.test.labels)}
    logits = {f"final.{part}": teacher.soft_targets(f"final.{part}")[:count] for part, count in counts.items()}
    about = {name: teacher.metrics["final"][name] for name in ("parameters", "epochs")}
    return Result({"final": measure(run, logits["final.test"]) | about}, teacher.history, {}, logits)


# ---- the student


class Student(nn.Module):
    """Three blocks of two convolutions, then two dense layers: 815,530 trainable parameters, 816,938 in all.

    Its dropout takes the numbers it is given, `draws` an example, and draws them itself where it is given none: so a student
    has the same dropout alone and beside others.
    """

    RATES = (0.2, 0.3, 0.4, 0.4)
    SHAPES = ((32, 16, 16), (64, 8, 8), (128, 4, 4), (256,))  # where dropout stands
    draws = sum(torch.Size(shape).numel() for shape in SHAPES)

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        self.half = in_bfloat16(precision)
        self.blocks = nn.ModuleList(block(*channels) for channels in ((3, 32), (32, 64), (64, 128)))
        self.hidden = nn.Linear(2048, 256)
        self.norm = keras_batch_norm(256, dims=0)
        self.output = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:  # uint8 (B, 3, 32, 32) -> logits (B, K)
        weight = self.output.weight
        if self.training and uniform is None:
            uniform = torch.rand(len(x), self.draws, device=x.device)
        noise = [None] * 4 if uniform is None else torch.split(uniform, [torch.Size(s).numel() for s in self.SHAPES], dim=1)
        h = x.to(weight.dtype) / 255
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half and self.training):
            for layers, rate, shape, u in zip(self.blocks, self.RATES, self.SHAPES, noise, strict=False):
                h = dropout(layers(h), rate, u, shape)
            h = self.norm(F.relu(self.hidden(h.flatten(1))))
            return self.output(dropout(h, self.RATES[3], noise[3], self.SHAPES[3])).to(weight.dtype)

    def initialise(self, generator: torch.Generator) -> Student:  # code: He-uniform but for the last layer, which names none
        he_uniform_(self, generator)
        keras_glorot_(self.output, generator)
        return self


def block(before: int, filters: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, filters, 3, padding=1), nn.ReLU(), keras_batch_norm(filters, dims=2),
        nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU(), keras_batch_norm(filters, dims=2), nn.MaxPool2d(2),
    )


def dropout(h: Tensor, rate: float, uniform: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if uniform is None:
        return h
    return h * ((uniform.view(-1, *shape) >= rate) / (1 - rate)).to(h.dtype)


# ---- methods: what a student learns from


# Each trains one student, or several of one configuration side by side, which may differ in seed (distilled ones in alpha and T).


def train_student(run: Run) -> Result:
    return train_student_together([run])[0]


def train_student_together(runs: Sequence[Run]) -> list[Result]:
    loss = cross_entropy if len(runs) == 1 else torch.vmap(cross_entropy)
    return train(runs, lambda outputs, batch: loss(outputs, batch.labels))


def train_distilled(run: Run) -> Result:
    return train_distilled_together([run])[0]


def train_distilled_together(runs: Sequence[Run]) -> list[Result]:
    return train(runs, distillation_together(runs), [teacher_targets(run) for run in runs])


def train_distilled_sham(run: Run) -> Result:
    return train_distilled_sham_together([run])[0]


def train_distilled_sham_together(runs: Sequence[Run]) -> list[Result]:
    return train(runs, distillation_together(runs), [sham_targets(run) for run in runs])


def train_smoothed(run: Run) -> Result:
    return train_smoothed_together([run])[0]


def train_smoothed_together(runs: Sequence[Run]) -> list[Result]:
    # (1 - alpha) CE(labels, student) + alpha KL(uniform || student)
    config: Config = runs[0].config
    for run in runs:
        check_weights(run, run.config.soft_weight)
        if run.config.alpha != config.alpha or run.config.soft_weight != 1:
            raise KDError(f"{run.label}: expected alpha {config.alpha} and soft_weight 1, found {run.config.alpha} and "
                          f"{run.config.soft_weight}; smoothed labels have no soft term, and one alpha side by side")

    def smoothed(outputs: Tensor, labels: Tensor) -> Tensor:
        return label_smoothing(outputs, labels, config.alpha)

    loss = smoothed if len(runs) == 1 else torch.vmap(smoothed)
    return train(runs, lambda outputs, batch: loss(outputs, batch.labels))


def train_virtual_teacher(run: Run) -> Result:
    return train_virtual_teacher_together([run])[0]


def train_virtual_teacher_together(runs: Sequence[Run]) -> list[Result]:
    """Distilled from a teacher made by hand: `certainty` on the right class, the rest evenly spread; T then softens it."""
    whole = runs[0].data.train
    logits = virtual_teacher(whole.labels, CLASSES, runs[0].config.certainty, temperature=1.0)
    return train(runs, distillation_together(runs), [SoftTargets(logits, "virtual teacher", whole.digest)] * len(runs))


def distillation_together(runs: Sequence[Run]) -> Objective:
    """The loss of course_report.distillation, for each student side by side with its own alpha and T."""
    each = [distillation(run, run.config.soft_weight) for run in runs]
    if len(runs) == 1:
        return each[0]
    alphas, temperatures = ([float(getattr(run.config, name)) for run in runs] for name in ("alpha", "temperature"))
    weights = [run.config.soft_weight for run in runs]
    hard, soft = [1 - a for a in alphas], [w * a for w, a in zip(weights, alphas, strict=True)]
    mapped = torch.vmap(hard_and_soft)
    numbers = [torch.tensor(each, device=runs[0].device) for each in (hard, soft, temperatures)]
    return lambda outputs, batch: mapped(outputs, batch.soft, batch.labels, *numbers)


# ---- training


def train(runs: Sequence[Run], objective: Objective, soft: Sequence[SoftTargets | None] | None = None) -> list[Result]:
    """One student for each run, side by side where there are several; Adam, and the weights of the last epoch."""
    config: Config = runs[0].config
    if len({replace(run.config, alpha=0.0, temperature=1.0) for run in runs}) > 1:
        raise KDError(f"{runs[0].label}: expected students side by side to differ in alpha and temperature only; mend `mapped`")
    data: Data = runs[0].data.to(runs[0].device)
    runs = [replace(run, data=data) for run in runs]
    seeds = [run.seed for run in runs]
    members = [Student(config.precision).initialise(run.generator("weights")).to(run.device) for run in runs]
    parts = [split(data.train, config, targets) for targets in (soft or [None] * len(runs))]
    batches = [Batches(examples, config.batch, seed, targets) for (examples, targets, _), seed in zip(parts, seeds, strict=True)]
    alone = len(runs) == 1
    model = members[0].to(memory_format=torch.channels_last) if alone else Replicas(members)
    progress = runs[0].progress(model, keras_adam(model.parameters(), config.learning_rate))
    for _ in epochs(progress, batches[0] if alone else beside(batches), objective, count=config.epochs, seed=seeds,
                    rate=lambda epoch: rate(config, epoch)):
        pass
    progress.keep("final")
    results = []
    for number, run in enumerate(runs):
        student = members[0] if alone else model.member(number)
        logits = predict_logits(student, data.test.inputs)
        found = measure(run, logits) | {"parameters": parameter_count(student), "epochs": progress.epoch}
        if (kept_out := parts[number][2]) is not None:
            found["validation_accuracy"] = accuracy(predict_logits(student, kept_out.inputs), kept_out.labels)
        weights = progress.kept["final"] if alone else of_replica(progress.kept["final"], number)
        losses = "training_loss" if alone else f"training_loss/{number}"
        history = [{"training_loss": epoch[losses]} for epoch in progress.history]
        targets = {"final.train": predict_logits(student, data.train.inputs), "final.test": logits}
        results.append(Result({"final": found}, history, {"final": weights}, targets))
    return results


def rate(config: Config, epoch: int) -> float:
    return config.learning_rate * (0.1 if config.slows and epoch >= config.slow_from else 1)


def split(whole: Examples, config: Config, soft: SoftTargets | None) -> tuple[Examples, SoftTargets | None, Examples | None]:
    """The first share of the pictures with their soft targets and, where the run is validated, the last tenth by itself."""
    share = min(config.share, 0.9) if config.validated else config.share
    count = round(share * len(whole.labels))
    absent = [k for k in range(CLASSES) if k not in whole.labels[:count].unique().tolist()]
    if not 0 < config.share <= 1 or absent:
        raise KDError(f"share: expected one above 0 and up to 1 with pictures of all {CLASSES} classes, found {config.share} "
                      f"with {count} pictures and none of class {absent}; take a larger share")
    if soft is not None:
        soft.check(whole)
        soft = replace(soft, logits=soft.logits[:count], data_digest=f"{whole.digest}, first {count}")
    kept_out = Examples(whole.inputs[-(len(whole.labels) // 10):], whole.labels[-(len(whole.labels) // 10):],
                        f"{whole.digest}, last tenth") if config.validated else None
    return Examples(whole.inputs[:count], whole.labels[:count], f"{whole.digest}, first {count}"), soft, kept_out
