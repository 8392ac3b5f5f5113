"""Chest x-rays: a VGG16 of 27.6 million parameters teaches a student of 0.3 million (blog post, data of Kermany 2018).

The student tells normal x-rays from bacterial and viral pneumonia. According to the source, taught by a VGG16 at
T = 6 it reaches an accuracy of 75% on 300 test pictures, against 64% from scratch; the teacher reaches 77%.

README.md in this folder says what the arms are, and where the text and ours differ. Read in this order:
1. this file: configuration, networks, objective, training, the arms and the profiles;
2. data.py: which pictures are for training, validation and test, of which seed;
3. views.py: the augmented views of the training pictures, and the batches;
4. pooling.py: how the student's max-pools save time on a CPU.

Shapes: B batch, N training pictures, V views of each, M other pictures, K = 3 classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import cli, winograd
from kdlib.batches import Batch, Examples
from kdlib.errors import KDError
from kdlib.losses import hard_and_soft
from kdlib.metrics import accuracy, classification_metrics, confusion_matrix, refuse_at_chance
from kdlib.networks import keras_adam, keras_glorot_, parameter_count
from kdlib.run.experiment import Arm, Experiment, Profile, Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets
from kdlib.training import Objective, Progress, epochs, hard_targets, predict_logits

from .data import CLASSES, Data, Parts, load
from .pooling import pooled
from .recorded import RECORDED_TEACHER, recorded_logits
from .views import Views


@dataclass(frozen=True)
class Config:
    """The source's values. "ours": the source has no such setting."""

    epochs: int = 50  # text; at most, where training stops early
    patience: int = 0  # text: 5 for teacher and baseline; epochs without a better validation accuracy, 0: never stops
    steps: int = 90  # text: of an epoch
    batch: int = 32  # not stated: 32, of which 10 validation batches cover the 300 pictures
    learning_rate: float = 1e-4  # text: Adam, epsilon 1e-8
    decay: float = 1e-3  # text: the rate of step s, counted from 0, is learning_rate / (1 + decay s)
    alpha: float = 0.5  # text: weight of the labels
    temperature: float = 6.0  # text: 2, then 6
    corrected: bool = False  # ours: the soft term has the factors 1 - alpha and T^2, which the source leaves out
    views: int = 4  # ours: of each training picture; the source draws a new view at each use
    teacher_start: str = "imagenet"  # text: VGG16's weights; ours: "scratch" without them, another teacher
    recorded_teacher: str = ""  # ours: id of a recorded run whose logits replace the teacher's training
    precision: str = "float32"  # or bfloat16: training steps under autocast; predictions are always float32


PAPER = Config()
FULL = replace(PAPER, recorded_teacher=RECORDED_TEACHER)
# Few pictures, in small batches: the student begins to learn after some hundred steps, whatever their size, and not at
# all at rates of 4e-4 and more. The teacher is the full one.
QUICK = replace(FULL, epochs=4, steps=200, batch=8, learning_rate=1.5e-4)
SMOKE = replace(PAPER, epochs=2, steps=3, batch=8, learning_rate=1e-3, views=2)

# ---- the networks


class Network(nn.Module):
    """What both networks have: grey bytes in, three equal channels from 0 to 1, and a precision for training."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        if precision not in ("float32", "bfloat16"):
            raise KDError(f"precision: expected float32 or bfloat16, found {precision!r}; correct the configuration")
        self.in_bfloat16 = precision == "bfloat16"

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 1, 224, 224) -> logits (B, K)
        # As the source, without the normalisation of VGG16's authors. The order of the colours makes no difference.
        h = (x.float() / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16 and self.training):
            return self.logits(h).float()

    def logits(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class Vgg16(Network):
    """VGG16 without its top, then dense 512 ReLU, dropout 0.5 and dense 3: 27,561,795 parameters.

    `width` is the number of channels of the first block, 64. Names are torchvision's.
    """

    BLOCKS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))  # channels, divided by the width
    FROZEN = 12  # modules: blocks 1 and 2 and the first convolution of block 3, as the source's first 8 Keras layers

    def __init__(self, precision: str = "float32", width: int = 64) -> None:
        super().__init__(precision)
        layers, channels = list[nn.Module](), 3
        for block in self.BLOCKS:
            for each in block:
                layers += [nn.Conv2d(channels, each * width, 3, padding=1), nn.ReLU()]
                channels = each * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.features[: self.FROZEN].requires_grad_(False)
        self.hidden = nn.Linear(49 * channels, 512)
        self.output = nn.Linear(512, CLASSES)

    def logits(self, h: Tensor) -> Tensor:  # (B, 3, 224, 224) -> (B, K)
        layers = list(self.features)
        # Two pictures at a time, as many as a processor's cache holds; an exported network takes all at once.
        parts = (h,) if torch.compiler.is_exporting() else torch.split(h, 2)
        with torch.no_grad():
            h = torch.cat([convolved(pictures, layers[: self.FROZEN]) for pictures in parts])
        h = F.relu(self.hidden(convolved(h, layers[self.FROZEN :]).flatten(1)))
        logits: Tensor = self.output(F.dropout(h, 0.5, self.training))
        return logits


def convolved(h: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    for layer in layers:  # convolutions on a CPU in float32 by tiles: a third of the time
        h = winograd.convolution(h, layer) if isinstance(layer, nn.Conv2d) else layer(h)
    return h


class Student(Network):
    """Five blocks of two 3x3 "valid" convolutions and a max-pool, dense 256 ReLU, dropout 0.5, dense 3: 295,947."""

    CHANNELS = (3, 8, 16, 32, 64, 64)

    def __init__(self, precision: str = "float32") -> None:
        super().__init__(precision)
        pairs = zip(self.CHANNELS[:-1], self.CHANNELS[1:], strict=True)
        self.first = nn.ModuleList()
        self.second = nn.ModuleList()
        for before, after in pairs:
            self.first.append(nn.Conv2d(before, after, 3))
            self.second.append(nn.Conv2d(after, after, 3))
        self.hidden = nn.Linear(576, 256)
        self.output = nn.Linear(256, CLASSES)

    def logits(self, h: Tensor) -> Tensor:  # (B, 3, 224, 224) -> (B, K)
        for first, second in zip(self.first, self.second, strict=True):
            assert isinstance(second, nn.Conv2d)
            h = pooled(first(h), second)  # ReLU, second convolution, max-pool 2 and ReLU, without zero gradients
        h = F.dropout(F.relu(self.hidden(h.flatten(1))), 0.5, self.training)
        logits: Tensor = self.output(h)
        return logits


# ---- the objective


def distillation(config: Config) -> Objective:
    # alpha CE(labels) + KL(teacher_T || student_T); corrected: alpha CE(labels) + (1 - alpha) T^2 KL(teacher_T || ...)
    check(config)
    # The library's soft term has the factor T^2.
    soft_weight = 1 - config.alpha if config.corrected else config.temperature**-2

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return hard_and_soft(outputs, batch.soft, batch.labels, config.alpha, soft_weight, config.temperature)

    return objective


def check(config: Config) -> None:
    """Refuse a configuration that this experiment cannot train (KDError)."""
    if not 0 <= config.alpha <= 1 or not 0 < config.temperature < 1e4:
        raise KDError(
            f"expected alpha from 0 to 1 and a temperature above 0 and below 10,000, found {config.alpha} and "
            f"{config.temperature}; correct the configuration"
        )


# ---- methods: what a network learns from


def train_teacher(run: Run) -> Result:
    """Train the teacher, and keep its logits of the bank and of all other pictures."""
    config, data = run.config, run.data
    if config.recorded_teacher and not data.synthetic:
        logits, about, history = recorded_logits(run, train_teacher.__name__)
        measured = measure(run, logits["final.others"]) | about
        return Result({"final": measured}, history, instead_of_weights(logits["final.others"]), logits)
    model = keras_glorot_(teacher_network(config, data), run.generator("teacher weights"))
    if data.weights is not None:
        model.load_state_dict(model.state_dict() | data.weights.tensors)
    found, progress = train(run, model, hard_targets, validation=torch.from_numpy(data.teacher_validation))
    part = {"train": found.data.train, "others": found.data.others}
    logits = {f"final.{name}": logits_of(model, examples.inputs) for name, examples in part.items()}
    measured = measure(found, logits["final.others"]) | about_training(model, progress)
    return Result({"final": measured}, progress.history, progress.kept, logits)


def teacher_network(config: Config, data: Data) -> Vgg16:
    # Synthetic pictures teach nothing, so a sixteenth of the channels is enough to run everything.
    return Vgg16(config.precision, width=4 if data.synthetic else 64)


def train_teacher_tested(run: Run) -> Result:
    """Measure the one teacher on the test pictures of a seed; nothing is trained."""
    parent, snapshot = run.parents["teacher"]
    logits = teacher_of_others(run)
    found = measure(run, logits) | {"parameters": parent.metrics[snapshot]["parameters"], "epochs": 0}
    return Result({"final": found}, [], instead_of_weights(logits[run.data.parts(run.seed).test]))


def instead_of_weights(logits: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return logits in the place of weights, so that two runs that train nothing are not taken for one."""
    return {"final": {"logits": logits}}


def train_student(run: Run) -> Result:
    return student_result(run, hard_targets)


def train_distilled(run: Run) -> Result:
    return student_result(run, distillation(run.config), teacher_targets(run))


def train_distilled_sham(run: Run) -> Result:
    """Distil with the soft targets permuted within each class: a view gets those of some view of its class."""
    soft = teacher_targets(run)
    sham = soft.permuted_within_classes(run.data.train.labels, run.generator("sham"))
    return student_result(run, distillation(run.config), sham)


def teacher_targets(run: Run) -> SoftTargets:
    """Return the teacher's logits (N V, K) of the bank; KDError if the teacher is at chance."""
    train = run.data.train
    soft = run.soft_targets("teacher", "train", train, view=train.view)
    if not run.data.synthetic:  # some steps on synthetic pictures need not teach anything
        refuse_at_chance(soft.logits, train.labels, accuracy, f"{run.label}, run {soft.teacher_run}")
    return soft


def teacher_of_others(run: Run) -> Tensor:
    return run.soft_targets("teacher", "others", run.data.others).logits


# ---- training


def student_result(run: Run, objective: Objective, soft: SoftTargets | None = None) -> Result:
    """Train a student, from fresh weights or from those of the run in the role "start", with a new optimizer."""
    model = Student(run.config.precision)
    if "start" in run.parents:
        parent, snapshot = run.parents["start"]
        model.load_state_dict(parent.weights(snapshot))
    else:
        keras_glorot_(model, run.generator("weights"))
    found, progress = train(run, model, objective, soft)
    measured = measure(found, logits_of(model, found.data.others.inputs)) | about_training(model, progress)
    if soft is not None:
        measured["target_correlation"] = follows(model, found.data, soft)
    return Result({"final": measured}, progress.history, progress.kept)


def follows(model: nn.Module, data: Data, soft: SoftTargets) -> float:
    """Return the correlation of the student's logits and its soft targets within a class, the mean of the classes.

    On the first view of each training picture. What all pictures of a class share does not count, so a student cannot
    follow the sham's soft targets, which are random within a class.
    """
    first = slice(None, None, data.views)
    labels, both = data.train.labels[first], []
    for logits in (logits_of(model, data.train.inputs[first]), soft.logits[first].to(labels.device)):
        centred = logits.double() - logits.double().mean(1, keepdim=True)  # softmax takes no note of the mean
        both.append([centred[labels == k] - centred[labels == k].mean(0) for k in range(CLASSES)])
    pairs = (torch.stack([student.flatten(), teacher.flatten()]) for student, teacher in zip(*both, strict=True))
    return sum(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) / CLASSES


def train(
    run: Run, model: Network, objective: Objective, soft: SoftTargets | None = None, validation: Tensor | None = None
) -> tuple[Run, Progress]:
    """Train as the source does, to the weights of the last epoch; return the run with its data on its device.

    `validation`: rows of the other pictures, by default those of the run's seed.
    """
    config, data = run.config, run.data.to(run.device)
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    progress = run.progress(model, keras_adam(learning, config.learning_rate, epsilon=1e-8))
    how = config.steps, progress.optimizer, config.learning_rate, config.decay
    batches = Views(data.train, config.views, config.batch, run.seed, *how, soft)
    rows = data.parts(run.seed).validation if validation is None else validation
    pictures, labels = data.others.inputs[rows], data.others.labels[rows]
    for _ in epochs(progress, batches, objective, count=config.epochs, seed=run.seed):
        progress.record(validation_accuracy=accuracy(logits_of(model, pictures), labels))
        if config.patience and stops([entry["validation_accuracy"] for entry in progress.history], config.patience):
            break
    progress.keep("final")
    return replace(run, data=data), progress


def stops(scores: Sequence[float], patience: int) -> bool:
    """Return whether the last `patience` scores are none above all earlier ones (Keras's EarlyStopping)."""
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def logits_of(model: nn.Module, pictures: Tensor) -> Tensor:
    return predict_logits(model, pictures, 16)  # as many as a processor's cache holds: faster than more


# ---- metrics


def measure(run: Run, logits: Tensor) -> dict[str, Any]:
    """Return the metrics of logits (M, K) of all other pictures, for the parts of the run's seed."""
    data: Data = run.data
    parts: Parts = data.parts(run.seed)
    labels = data.others.labels
    teacher = teacher_of_others(run)[parts.test] if "teacher" in run.parents else None
    return classification_metrics(logits[parts.test], labels[parts.test], CLASSES, teacher) | {
        "validation_accuracy": accuracy(logits[parts.validation], labels[parts.validation]),
        "unseen_accuracy": balanced_accuracy(logits[parts.unseen], labels[parts.unseen]),
        "unseen_person_accuracy": balanced_accuracy(logits[parts.unseen_persons], labels[parts.unseen_persons]),
    }


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the mean, over the classes that occur, of the share of a class's pictures that are right."""
    counts = torch.tensor(confusion_matrix(logits.argmax(1), labels, CLASSES), dtype=torch.float64)
    occurs = counts.sum(1) > 0
    return float((counts.diagonal()[occurs] / counts.sum(1)[occurs]).mean())


def about_training(model: nn.Module, progress: Progress) -> dict[str, Any]:
    return {"parameters": parameter_count(model), "epochs": progress.epoch}


def network(arm: Arm, config: Config, data: Data) -> Network | None:
    if arm.train is train_teacher_tested:  # nothing is trained
        return None
    return teacher_network(config, data) if arm.train is train_teacher else Student(config.precision)


def examples(arm: Arm, data: Data, seed: int) -> tuple[Examples, Examples]:
    """Return training pictures and the test pictures of a seed."""
    test = torch.as_tensor(data.parts(seed).test)
    return data.train, data.others.select(test)


def data_sets(config: Config) -> tuple[str, ...]:
    from_weights = config.teacher_start == "imagenet" and not config.recorded_teacher
    return ("chest_xray", "vgg16") if from_weights else ("chest_xray",)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    return load(config, folders)


# ---- the arms

DESCRIBED, CONTROLLED, BOTH = ("as described",), ("controlled",), ("as described", "controlled")
STOPS = {"patience": 5}
TEACHER = {"teacher": "teacher"}


def at(temperature: float) -> dict[str, Any]:
    return {"temperature": temperature}


CORRECTED = at(6.0) | {"corrected": True}
ARMS = (
    Arm("teacher", DESCRIBED, train_teacher, change=STOPS, seed=0),
    Arm("teacher_tested", BOTH, train_teacher_tested, TEACHER),
    Arm("baseline", DESCRIBED, train_student, change=STOPS),
    Arm("baseline_50", CONTROLLED, train_student),
    # 50 epochs more, as distilled_T_6 has, without a teacher
    Arm("baseline_100", CONTROLLED, train_student, {"start": "baseline_50"}),
    Arm("distilled_T_2", BOTH, train_distilled, TEACHER, at(2.0)),
    # The source goes on with the student of T = 2. We give it a new optimizer, as compiling a Keras model again does.
    Arm("distilled_T_6", DESCRIBED, train_distilled, TEACHER | {"start": "distilled_T_2"}, at(6.0)),
    Arm("distilled_T_6_fresh", CONTROLLED, train_distilled, TEACHER, at(6.0)),
    Arm("distilled_T_6_corrected", CONTROLLED, train_distilled, TEACHER, CORRECTED),
    Arm("sham", ("sham",), train_distilled_sham, TEACHER, at(6.0)),
    # As printed, the soft term is so small at T = 6 that any soft targets teach about the same.
    Arm("sham_corrected", ("sham",), train_distilled_sham, TEACHER, CORRECTED),
)
HEADLINE = ("teacher_tested", "baseline_50", "distilled_T_6_fresh", "distilled_T_6_corrected", "sham_corrected")

# ---- how much is run

PROFILES = {
    # Only the teacher's logits teach, so its training, of 10 hours, is done once: by profile own_teacher.
    "full": Profile(FULL, seeds=5, judged=True),
    "own_teacher": Profile(PAPER, seeds=5, reduced="as full, but the teacher is trained instead of looked up"),
    # The same on a GPU, or on a CPU with bfloat16 instructions, in less time.
    "bfloat16": Profile(replace(FULL, precision="bfloat16"), seeds=5, reduced="training steps in bfloat16"),
    "quick": Profile(
        QUICK,
        seeds=2,
        arms=HEADLINE,
        reduced="4 epochs of 200 steps, batch 8, at a learning rate of 1.5e-4 instead of 50 of 90, batch 32, at 1e-4; "
        "the recorded teacher, and the same pictures, student and loss",
    ),
    "smoke": Profile(
        SMOKE, seeds=1, synthetic=True, reduced="2 epochs of 3 steps, synthetic x-rays, a teacher of few channels"
    ),
}
EXPERIMENT = Experiment(
    source="xray",
    protocol=1,  # raise with every edit that can move results
    data=data_sets,
    data_fields=("teacher_start",),  # a teacher from scratch is another one: --set teacher_start=scratch
    load_data=load_data,
    network=network,
    examples=examples,
    arms=ARMS,
    profiles=PROFILES,
    # What `kd check` trains, with seed 0. At T = 6 as printed, the bands could not detect a sham teacher.
    check=("baseline_50", "distilled_T_6_corrected"),
    # The correlation is what a sham teacher changes most. Training losses differ too much between seeds.
    banded=("unseen_accuracy", "teacher_kl", "training_loss", "target_correlation"),
    metrics=(
        *("accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl", "unseen_accuracy"),
        *("unseen_person_accuracy", "validation_accuracy", "target_correlation"),
    ),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
