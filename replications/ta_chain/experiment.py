"""Teaching assistants between a large teacher and a small student (IIT Kanpur CS771A report, 2020, experiment 6).

Plain networks of 2 to 10 convolutions on CIFAR-10. A student of 2 taught by a teacher of 10 is said to gain less than one taught
by an assistant of 4, 6 or 8 that the teacher has taught (the idea of Mirzadeh et al. 2019, "Improved Knowledge Distillation via
Teacher Assistant").

What the arms are, and where text and released code differ, is in README.md beside this file.

Shapes: B batch, C channels, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import cli
from kdlib.batches import Batch, Batches
from kdlib.compiled import AVAILABLE
from kdlib.errors import KDError
from kdlib.experiment import Arm, Profile, Run
from kdlib.metrics import accuracy
from kdlib.networks import he_uniform_, keras_adam, keras_batch_norm, keras_glorot_, parameter_count
from kdlib.runs import Result
from kdlib.targets import SoftTargets
from kdlib.training import Objective, Progress, epochs, predict_logits
from replications.course_report import (
    SOURCE,
    Data,
    cifar10_data,
    distillation,
    hard_targets,
    in_bfloat16,
    measure,
    sham_targets,
    teacher_targets,
)

from .convolution import Convolution
from .dropout import Dropout
from .kernels import DTYPES, relu_norm_pool

__all__ = ["SOURCE"]  # runs are shared between replications of one source
PROTOCOL = 3  # raised whenever an edit can move results
DATA = ("cifar10",)
DATA_FIELDS = ()


@dataclass(frozen=True)
class Config:
    """The report's values; "code" stands for its released notebooks."""

    size: int = 2  # number of convolutions
    epochs: int = 100  # text
    optimizer: str = "sgd"  # text; at 0.01 with momentum 0.9, not stated there: the code's most common
    momentum: float = 0.9
    batch: int = 64  # code
    alpha: float = 0.2  # not stated in the text: the code's most common
    temperature: float = 4.0  # not stated in the text: the code's most common
    activity: float = 1e-4  # code: on the dense layers' outputs, where a network trains from scratch; text: "all models"
    patience: int = 0  # code: epochs without a higher accuracy on TEST until training stops; 0: trains to the end
    extra_epochs: int = 0  # code: two networks were fitted once more, for one epoch, after they had stopped
    rounds: int = 1  # ours: so many times the epochs; the weights after each round are a snapshot
    train_pictures: int = 50_000
    test_pictures: int = 10_000
    precision: str = "float32"  # or bfloat16: training steps under autocast; predictions are float32 always

    @property
    def total_epochs(self) -> int:
        return self.epochs * self.rounds + self.extra_epochs


PAPER = Config()
QUICK = replace(PAPER, epochs=10, train_pictures=4_000)
# Batch norm's moving averages need some 150 steps.
SMOKE = replace(PAPER, epochs=6, batch=8, train_pictures=200, test_pictures=100)

# By number of convolutions: filters of each 3x3 "same" convolution, P max-pool 2, D dropout 0.4; then the dense layers.
LAYERS = {
    2: "16 P 16 P flatten D 10",
    4: "16 16 P 32 32 P flatten D 10",
    6: "16 16 P 32 32 P D 64 64 P flatten D 10",
    8: "16 16 P D 32 32 P D 64 64 P D 128 128 P D flatten 64 10",
    10: "16 16 P D 32 32 P D 64 64 P D 128 128 D 128 128 P D flatten 128 D 10",
}


class ReluNormPool(nn.Module):
    """ReLU, then batch norm, then, where the layer has one, max-pool; in training on a CPU all in one operation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = keras_batch_norm(channels, dims=2)
        self.pool: nn.Module = nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        if AVAILABLE and self.training and z.device.type == "cpu" and z.dtype in DTYPES:
            return relu_norm_pool(z, self.norm, isinstance(self.pool, nn.MaxPool2d))
        result: Tensor = self.pool(self.norm(F.relu(z)))
        return result


class Network(nn.Module):
    """Convolutions, each followed by ReLU and batch norm, then dense layers; `activity` is that of the last forward pass."""

    def __init__(self, size: int, precision: str = "float32") -> None:
        super().__init__()
        self.half = in_bfloat16(precision)
        if size not in LAYERS:
            raise KDError(f"size: expected {', '.join(map(str, LAYERS))} convolutions, found {size}")
        convolutions, dense = (part.split() for part in LAYERS[size].split("flatten"))
        self.features = nn.Sequential()
        channels, side = 3, 32
        for layer in convolutions:
            if layer == "D":
                self.features.append(Dropout(0.4))
            elif layer == "P":
                self.features[-1].pool = nn.MaxPool2d(2)
                side //= 2
            else:
                self.features.append(Convolution(channels, channels := int(layer)))
                self.features.append(ReluNormPool(channels))
        self.dense = nn.ModuleList()
        width = channels * side * side
        for layer in dense:
            self.dense.append(Dropout(0.4) if layer == "D" else nn.Linear(width, width := int(layer)))
        self.activity = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 3, 32, 32) -> logits (B, K)
        h = x.contiguous(memory_format=torch.channels_last).float() / 255
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half and self.training):
            h = self.features(h).flatten(1)
            squares = []
            for layer in self.dense:
                h = layer(h)
                if isinstance(layer, nn.Linear):
                    h = h if layer is self.dense[-1] else F.relu(h)
                    squares.append(h.float().square().sum())
        self.activity = torch.stack(squares).sum() / len(x)  # of the dense layers' outputs, per example
        return h.float()

    def initialise(self, generator: torch.Generator) -> Network:  # code: the dense layers name no initialiser
        he_uniform_(self.features, generator)
        keras_glorot_(self.dense, generator)
        return self


def train_scratch(run: Run) -> Result:
    return train(run, hard_targets)


def train_distilled(run: Run) -> Result:
    return train(run, distillation(run), teacher_targets(run))


def train_sham(run: Run) -> Result:
    return train(run, distillation(run), sham_targets(run))


def train(run: Run, objective: Objective, soft: SoftTargets | None = None) -> Result:
    """Train one network of the configured size; the weights are those of the last epoch."""
    config: Config = run.config
    run = replace(run, data=run.data.to(run.device))
    data: Data = run.data
    model = Network(config.size, config.precision).initialise(run.generator("weights")).to(run.device)
    progress = run.progress(model, optimizer(config, model))

    def regularised(outputs: Tensor, batch: Batch) -> Tensor:
        return objective(outputs, batch) + config.activity * model.activity

    batches = Batches(data.train, config.batch, run.seed, soft)
    for epoch in epochs(progress, batches, regularised, count=config.total_epochs, seed=run.seed):
        if config.patience:
            logits = predict_logits(model, data.test.inputs)
            progress.record(test_accuracy=accuracy(logits, data.test.labels))
            if epoch >= last_epoch([entry["test_accuracy"] for entry in progress.history], config):
                break
        if config.rounds > 1 and epoch % config.epochs == 0 and epoch < config.total_epochs:
            progress.keep(f"round_{epoch // config.epochs}")
    progress.keep("final")
    return result(run, model, progress)


def optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return keras_adam(model.parameters(), 1e-3)
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=config.momentum, fused=True)
    raise KDError(f"optimizer: expected sgd or adam, found {config.optimizer!r}")


def last_epoch(accuracies: Sequence[float], config: Config) -> int:
    """The epoch after which Keras's EarlyStopping ends, and the extra ones: a function of the test accuracies so far."""
    for epoch in range(config.patience + 1, len(accuracies) + 1):
        best = accuracies.index(max(accuracies[:epoch])) + 1
        if epoch - best >= config.patience:
            return epoch + config.extra_epochs
    return config.total_epochs


def result(run: Run, model: Network, progress: Progress) -> Result:
    """Metrics of each snapshot on the test part, and the logits that students will need."""
    data: Data = run.data
    metrics, targets = {}, {}
    for snapshot, weights in progress.kept.items():
        model.load_state_dict(weights)
        logits = predict_logits(model, data.test.inputs)
        rounds = snapshot.removeprefix("round_")
        trained = progress.epoch if snapshot == "final" else int(rounds) * run.config.epochs
        metrics[snapshot] = measure(run, logits) | {"parameters": parameter_count(model), "epochs": trained}
        if snapshot == "final":
            targets = {"final.train": predict_logits(model, data.train.inputs), "final.test": logits}
    return Result(metrics, progress.history, progress.kept, targets)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    return cifar10_data(folders.get("cifar10"), config.train_pictures, config.test_pictures)


# Most runs serve two modes: the text is silent on alpha, T and rate, and one choice for all arms is also the fair one.
def plain(name: str, train: Callable[[Run], Result], size: int, teacher: str = "", **rest: Any) -> Arm:
    change = {"size": size, **rest.pop("change", {})}
    return Arm(name, ("as described", "controlled"), train, {"teacher": teacher} if teacher else {}, change, **rest)


def released(name: str, size: int, teacher: str = "", **change: Any) -> Arm:
    # The released distillation step computes its own loss, without the dense layers' activity.
    needs, activity = ({"teacher": teacher}, {"activity": 0.0}) if teacher else ({}, {})
    return Arm(name, ("as released",), train_distilled if teacher else train_scratch, needs, {"size": size, **activity, **change})


SIZES = tuple(LAYERS)
DIRECT = {"teacher": "scratch_10", "change": {"rounds": 4}}  # one run, looked at after 1, 2 and 4 times the epochs
SGD, ADAM = {"optimizer": "sgd"}, {"optimizer": "adam"}

ARMS = (
    *(plain(f"scratch_{size}", train_scratch, size) for size in SIZES),
    *(plain(f"student_2_of_{teacher}", train_distilled, 2, f"scratch_{teacher}") for teacher in (4, 6, 8)),
    # Table 3 and figure 5 report two numbers for this one network, so it has two names.
    plain("direct", train_distilled, 2, snapshot="round_1", **DIRECT),
    plain("student_2_of_10", train_distilled, 2, snapshot="round_1", **DIRECT),
    *(plain(f"student_{size}_of_10", train_distilled, size, "scratch_10") for size in (4, 6, 8)),
    *(plain(f"ta_{size}", train_distilled, 2, f"student_{size}_of_10") for size in (4, 6, 8)),
    # 10 -> 8 -> 6 -> 4 -> 2; its first link is student_8_of_10.
    plain("chain_6", train_distilled, 6, "student_8_of_10"),
    plain("chain_4", train_distilled, 4, "chain_6"),
    plain("chain", train_distilled, 2, "chain_4"),
    # Controls: no assistant, but as many epochs as assistant and student have together, or the students of the full chain.
    Arm("direct_as_ta", ("controlled",), train_distilled, {"teacher": "scratch_10"}, {"size": 2, "rounds": 4}, "round_2"),
    Arm("direct_as_chain", ("controlled",), train_distilled, {"teacher": "scratch_10"}, {"size": 2, "rounds": 4}),
    Arm("sham", ("sham",), train_sham, {"teacher": "scratch_10"}, {"size": 2}),
    # Does the precision matter? The pair shares its start, its order and its dropout.
    *(Arm(f"scratch_2_{precision}", ("controlled",), train_scratch, {}, {"size": 2, "precision": precision})
      for precision in ("float32", "bfloat16")),
    # As released: every network has an optimizer, a length, an alpha and a T of its own, chosen on the test pictures.
    released("released_scratch_2", 2, **ADAM, epochs=150, patience=20),
    released("released_scratch_4", 4, **SGD, patience=20),
    released("released_scratch_6", 6, **SGD, patience=10, extra_epochs=1),
    released("released_scratch_8", 8, **SGD, patience=10, extra_epochs=1),
    released("released_scratch_10", 10, **SGD, epochs=150, patience=20),
    released("released_2_of_4", 2, "released_scratch_4", **SGD, alpha=0.4),
    released("released_2_of_6", 2, "released_scratch_6", **ADAM, alpha=0.1, epochs=150),
    released("released_2_of_8", 2, "released_scratch_8", **ADAM, epochs=50, patience=10),
    released("released_2_of_10", 2, "released_scratch_10", **ADAM, alpha=0.6, temperature=8.0, epochs=30, patience=10),
    released("released_4_of_10", 4, "released_scratch_10", **ADAM, alpha=0.8, temperature=2.0, epochs=50, patience=10),
    released("released_6_of_10", 6, "released_scratch_10", **ADAM, alpha=0.1, temperature=2.0, epochs=50, patience=10),
    released("released_8_of_10", 8, "released_scratch_10", **SGD, temperature=8.0, epochs=50, patience=10),
    released("released_ta_4", 2, "released_4_of_10", **SGD, momentum=0.0, alpha=0.4, temperature=2.0),
    released("released_ta_6", 2, "released_6_of_10", **ADAM),
    released("released_ta_8", 2, "released_8_of_10", **ADAM),
    released("released_chain_6", 6, "released_8_of_10", **ADAM),
    released("released_chain_4", 4, "released_chain_6", **ADAM),
    released("released_chain", 2, "released_chain_4", **ADAM, temperature=10.0, epochs=45),
)
HEADLINE = ("scratch_2", "scratch_4", "scratch_10", "student_2_of_4", "student_2_of_10", "direct", "direct_as_ta",
            "student_6_of_10", "ta_6", "sham")
BANDED = ("accuracy", "training_loss")  # with recorded bands; the loss is what a sham teacher moves most
CHECK = ("scratch_2", "student_2_of_4")  # what `check` trains, with seed 0
PROFILES = {
    # The source has float32 throughout; on a CPU with bfloat16 instructions this takes half the time (README.md, Precision).
    "full": Profile(replace(PAPER, precision="bfloat16"), seeds=5, reduced="training steps in bfloat16, predictions in float32"),
    "float32": Profile(PAPER, seeds=5),
    "quick": Profile(QUICK, seeds=2, arms=HEADLINE, reduced="10 epochs and 4,000 training pictures instead of 100 and 50,000; "
                     "the same networks, batch size and losses"),
    "smoke": Profile(SMOKE, seeds=1, arms=("direct", "student_6_of_10", "ta_6", "sham"), synthetic=True,
                     reduced="6 epochs of 200 synthetic pictures, batch 8"),
}

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
