"""Distillation on MNIST, first experiment of a course project report (IIT Kanpur, CS771A, 2020).

A student of 693,962 parameters recognises handwritten digits. According to the report, its accuracy on the test
pictures is 98.87% taught by a teacher of 1,422,378 parameters, against 98.60% from scratch.

README.md in this folder says what the arms are, and where the text and the released code differ. The distillation loss,
the sham and the metrics are in replications/course_report/__init__.py. kernels.py makes the convolution fast on a CPU;
it can be skipped.

Shapes: B batch, N pictures, F = 5,408 features, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import cli
from kdlib.batches import Batches
from kdlib.compiled import AVAILABLE
from kdlib.data import mnist, synthetic_pictures
from kdlib.errors import KDError
from kdlib.networks import he_normal_, keras_adam, keras_glorot_, parameter_count
from kdlib.run.experiment import Arm, Experiment, Profile, Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets
from kdlib.training import Objective, epochs, hard_targets, predict_logits
from replications.course_report import (
    CLASSES,
    SOURCE,
    Data,
    distillation,
    first_pictures,
    measure,
    sham_targets,
    teacher_targets,
)

from .kernels import features

FILTERS, FEATURES = 32, 32 * 13 * 13


@dataclass(frozen=True)
class Config:
    """The report's values. "code": from its released notebooks."""

    pictures: str = "mnist"  # this, `share` and `precision` change nothing; the ids of the recorded runs contain them
    share: float = 1.0
    epochs: int = 10  # code
    batch: int = 32  # code
    learning_rate: float = 1e-3  # code: Adam
    alpha: float = 0.2  # code: weight of the teacher
    temperature: float = 10.0  # code
    train_pictures: int = 60_000
    test_pictures: int = 10_000
    precision: str = "float32"


PAPER = Config()
QUICK = replace(PAPER, epochs=5, train_pictures=10_000)
SMOKE = replace(PAPER, batch=16, train_pictures=160, test_pictures=200)


class Network(nn.Module):
    """conv 32 3x3 "valid" ReLU, max-pool 2, dense ReLU of widths `hidden`, dense 10; dropout before every dense."""

    def __init__(self, hidden: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, FILTERS, 3)
        self.dense = nn.ModuleList(nn.Linear(*widths) for widths in pairwise((FEATURES, *hidden, CLASSES)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 1, 28, 28) -> logits (B, K)
        x = x.float() / 255
        if AVAILABLE and x.device.type == "cpu" and not torch.compiler.is_exporting():
            assert self.conv.bias is not None
            h = features(x, self.conv.weight, self.conv.bias)
        else:
            h = self.plain_features(x)
        wide, *others = self.dense
        assert isinstance(wide, nn.Linear)
        # With the batch as the last axis, the product of the widest layer takes half the time on a CPU.
        h = torch.addmm(wide.bias.unsqueeze(1), wide.weight, self.dropout(h).t()).t()  # (B, hidden[0])
        for layer in others:
            h = layer(self.dropout(F.relu(h)))
        return h

    def plain_features(self, x: Tensor) -> Tensor:  # (B, 1, 28, 28) -> (B, F): the same function, layer by layer
        return F.relu(F.max_pool2d(self.conv(x), 2)).permute(0, 2, 3, 1).flatten(1)

    def initialise(self, generator: torch.Generator) -> Network:
        # Teacher and student of one seed start from the same convolution.
        he_normal_(self.conv, generator)
        keras_glorot_(self.dense, generator)
        return self


def teacher_network() -> Network:
    return Network((256, 128, 32), dropout=0.4)  # 1,422,378 parameters


def student_network() -> Network:
    return Network((128,))  # 693,962 parameters


def train_mnist_teacher(run: Run) -> Result:
    return train(run, teacher_network(), hard_targets, keep_targets=True)


def train_mnist_student(run: Run) -> Result:
    return train(run, student_network(), hard_targets)


def train_mnist_distilled(run: Run) -> Result:
    return train(run, student_network(), distillation(run), teacher_targets(run))


def train_mnist_sham(run: Run) -> Result:
    return train(run, student_network(), distillation(run), sham_targets(run))


def train(
    run: Run, model: Network, objective: Objective, soft: SoftTargets | None = None, keep_targets: bool = False
) -> Result:
    """Train with Adam at a constant rate; the weights are those of the last epoch, so no picture chooses anything."""
    config: Config = run.config
    if config.precision != "float32":
        raise KDError(f"precision: expected float32, found {config.precision!r}; these networks have no other")
    run = replace(run, data=run.data.to(run.device))
    model.initialise(run.generator("weights")).to(run.device)
    progress = run.progress(model, keras_adam(model.parameters(), config.learning_rate))
    batches = Batches(run.data.train, config.batch, run.seed, soft)
    for _ in epochs(progress, batches, objective, count=config.epochs, seed=run.seed):
        pass
    progress.keep("final")
    logits = predict_logits(model, run.data.test.inputs)
    targets = {}
    if keep_targets:
        targets = {"final.train": predict_logits(model, run.data.train.inputs), "final.test": logits}
    measured = measure(run, logits) | {"parameters": parameter_count(model), "epochs": progress.epoch}
    return Result({"final": measured}, progress.history, progress.kept, targets)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    """Return the first pictures of both parts, in a full run all; without a folder of MNIST, synthetic digits."""
    folder, train, test = folders.get("mnist"), config.train_pictures, config.test_pictures
    if folder is None:
        pictures = synthetic_pictures.digits(train, test, seed=0)
        return first_pictures("synthetic digits", pictures, train, test, synthetic=True)
    return first_pictures("MNIST", mnist.digits(folder), train, test)


# ---- the arms


def network(arm: Arm, config: Config, data: Data) -> Network:
    return teacher_network() if arm.train is train_mnist_teacher else student_network()


# The text does not say how often the teacher was trained; the code has one teacher for all 20 students. Apart from
# that, the report's protocol is fair: both students have the same steps, rate and batch, and the weights of the last
# epoch.
SOURCES = ("as described", "as released")
ARMS = (
    Arm("teacher", (*SOURCES, "controlled"), train_mnist_teacher),
    Arm("one_teacher", SOURCES, train_mnist_teacher, seed=0),
    Arm("baseline", (*SOURCES, "controlled"), train_mnist_student),
    Arm("distilled_by_one", SOURCES, train_mnist_distilled, {"teacher": "one_teacher"}),
    Arm("distilled", ("controlled",), train_mnist_distilled, {"teacher": "teacher"}),
    Arm("sham", ("sham",), train_mnist_sham, {"teacher": "teacher"}),
)

# ---- how much is run

PROFILES = {
    "full": Profile(PAPER, seeds=20, judged=True),
    "quick": Profile(
        QUICK,
        seeds=2,
        reduced="5 epochs and the first 10,000 training pictures instead of 10 and 60,000; the same "
        "networks, batch size, losses and test pictures",
    ),
    "smoke": Profile(SMOKE, seeds=1, synthetic=True, reduced="160 synthetic digits, batch 16"),
}
EXPERIMENT = Experiment(
    source=SOURCE,
    protocol=1,  # raise with every edit that can move results
    data=("mnist",),
    load_data=load_data,
    network=network,
    arms=ARMS,
    profiles=PROFILES,
    check=("teacher", "baseline", "distilled"),  # what `kd check` trains, with seed 0
    banded=("accuracy", "teacher_kl"),
    metrics=("accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl"),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
