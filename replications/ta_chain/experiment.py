"""Teaching assistants between a large teacher and a small student (IIT Kanpur CS771A report, 2020, experiment 6).

Plain networks of 2 to 10 convolutions on CIFAR-10. According to the report, a student of 2 convolutions gains less from
a teacher of 10 than from an assistant of 4, 6 or 8 that this teacher has taught (the idea of Mirzadeh et al. 2019,
"Improved Knowledge Distillation via Teacher Assistant").

README.md in this folder says what the arms are, and where the text and the released code differ. The distillation loss,
the sham, the metrics and the pictures are in replications/course_report/__init__.py. convolution.py, dropout.py and
kernels.py next to it make the networks fast on a CPU; they can be skipped.

Shapes: B batch, C channels, K = 10 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import cli
from kdlib.batches import Batch, Batches
from kdlib.errors import KDError
from kdlib.metrics import accuracy
from kdlib.networks import he_uniform_, keras_adam, keras_glorot_, parameter_count
from kdlib.run.experiment import Arm, Experiment, Profile, Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets
from kdlib.training import Objective, Progress, epochs, hard_targets, predict_logits
from replications.course_report import (
    SOURCE,
    Data,
    cifar10_data,
    distillation,
    measure,
    sham_targets,
    teacher_targets,
    trains_in_bfloat16,
)
from replications.course_report.convolution import Convolution
from replications.course_report.dropout import Dropout
from replications.course_report.kernels import ReluNormPool


@dataclass(frozen=True)
class Config:
    """The report's values. "code": from its released notebooks; "ours": the source has no such setting."""

    size: int = 2  # number of convolutions
    epochs: int = 100  # text
    optimizer: str = "sgd"  # text; not stated there: 0.01 and momentum 0.9, the code's most common values
    momentum: float = 0.9
    batch: int = 64  # code
    alpha: float = 0.2  # weight of the teacher; not stated in the text: the code's most common
    temperature: float = 4.0  # not stated in the text: the code's most common
    # Penalty on the squared outputs of the dense layers. code: for networks from scratch; text: "all models".
    activity: float = 1e-4
    patience: int = 0  # code: epochs without a higher accuracy on TEST until training stops; 0: trains to the end
    extra_epochs: int = 0  # code: two networks were fitted once more, for one epoch, after they had stopped
    rounds: int = 1  # ours: trains this many times `epochs`; the weights after each round are a snapshot
    train_pictures: int = 50_000
    test_pictures: int = 10_000
    precision: str = "float32"  # or bfloat16: training steps under autocast; predictions are always float32

    @property
    def total_epochs(self) -> int:
        return self.epochs * self.rounds + self.extra_epochs


PAPER = Config()
QUICK = replace(PAPER, epochs=10, train_pictures=4_000)
# Six epochs are 150 steps: fewer are too short for batch norm's moving averages.
SMOKE = replace(PAPER, epochs=6, batch=8, train_pictures=200, test_pictures=100)

# By number of convolutions: filters of each 3x3 "same" convolution, P max-pool 2, D dropout 0.4; then the dense layers.
LAYERS = {
    2: "16 P 16 P flatten D 10",
    4: "16 16 P 32 32 P flatten D 10",
    6: "16 16 P 32 32 P D 64 64 P flatten D 10",
    8: "16 16 P D 32 32 P D 64 64 P D 128 128 P D flatten 64 10",
    10: "16 16 P D 32 32 P D 64 64 P D 128 128 D 128 128 P D flatten 128 D 10",
}


class Network(nn.Module):
    """Convolutions, each followed by ReLU and batch norm, then dense layers.

    `activity` is the sum of the dense layers' squared outputs in the last forward pass, per example.
    """

    def __init__(self, size: int, precision: str = "float32") -> None:
        super().__init__()
        self.in_bfloat16 = trains_in_bfloat16(precision)
        if size not in LAYERS:
            raise KDError(
                f"size: expected {', '.join(map(str, LAYERS))} convolutions, found {size}; correct the configuration"
            )
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
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16 and self.training):
            h = self.features(h).flatten(1)
            squares = []
            for layer in self.dense:
                h = layer(h)
                if isinstance(layer, nn.Linear):
                    h = h if layer is self.dense[-1] else F.relu(h)
                    squares.append(h.float().square().sum())
        if not torch.compiler.is_exporting():  # an exported network has its logits alone
            self.activity = torch.stack(squares).sum() / len(x)
        return h.float()

    def initialise(self, generator: torch.Generator) -> Network:
        he_uniform_(self.features, generator)
        keras_glorot_(self.dense, generator)  # code: the dense layers name no initialiser
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
    raise KDError(f"optimizer: expected sgd or adam, found {config.optimizer!r}; correct the configuration")


def last_epoch(accuracies: Sequence[float], config: Config) -> int:
    """Return the last epoch: that of Keras's EarlyStopping, from the test accuracies so far, plus the extra ones."""
    for epoch in range(config.patience + 1, len(accuracies) + 1):
        best = accuracies.index(max(accuracies[:epoch])) + 1
        if epoch - best >= config.patience:
            return epoch + config.extra_epochs
    return config.total_epochs


def result(run: Run, model: Network, progress: Progress) -> Result:
    """Return the metrics of each snapshot on the test pictures, and the logits that the network's students need."""
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


# ---- the arms


def network(arm: Arm, config: Config, data: Data) -> Network:
    return Network(config.size, config.precision)


# The text gives no alpha, T and rate; one choice for all arms is also the controlled setting.
BOTH = ("as described", "controlled")


def taught(
    name: str, size: int, teacher: str, modes: tuple[str, ...] = BOTH, snapshot: str = "final", **change: Any
) -> Arm:
    return Arm(name, modes, train_distilled, {"teacher": teacher}, {"size": size, **change}, snapshot)


def released(name: str, size: int, teacher: str = "", **change: Any) -> Arm:
    if not teacher:
        return Arm(name, ("as released",), train_scratch, change={"size": size, **change})
    # The released distillation step computes its own loss, without the dense layers' activity.
    change = {"size": size, "activity": 0.0, **change}
    return Arm(name, ("as released",), train_distilled, {"teacher": teacher}, change)


SGD, ADAM = {"optimizer": "sgd"}, {"optimizer": "adam"}

ARMS = (
    *(Arm(f"scratch_{size}", BOTH, train_scratch, change={"size": size}) for size in LAYERS),
    *(taught(f"student_2_of_{size}", 2, f"scratch_{size}") for size in (4, 6, 8)),
    # The student of 2 that the network of 10 teaches directly is one run of 4 rounds; its snapshots after 1, 2 and 4
    # rounds are arms. Table 3 and figure 5 report two numbers for the first of them, so it has two names.
    taught("direct", 2, "scratch_10", snapshot="round_1", rounds=4),
    taught("student_2_of_10", 2, "scratch_10", snapshot="round_1", rounds=4),
    *(taught(f"student_{size}_of_10", size, "scratch_10") for size in (4, 6, 8)),
    *(taught(f"ta_{size}", 2, f"student_{size}_of_10") for size in (4, 6, 8)),
    # The full chain is 10 -> 8 -> 6 -> 4 -> 2; its first link is student_8_of_10.
    taught("chain_6", 6, "student_8_of_10"),
    taught("chain_4", 4, "chain_6"),
    taught("chain", 2, "chain_4"),
    # Controls without an assistant: as many epochs as assistant and student together, and as all students of the chain.
    taught("direct_as_ta", 2, "scratch_10", ("controlled",), "round_2", rounds=4),
    taught("direct_as_chain", 2, "scratch_10", ("controlled",), rounds=4),
    Arm("sham", ("sham",), train_sham, {"teacher": "scratch_10"}, {"size": 2}),
    # Does the precision matter? The two runs of a seed have the same first weights, order of pictures and dropout.
    *(
        Arm(f"scratch_2_{precision}", ("controlled",), train_scratch, {}, {"size": 2, "precision": precision})
        for precision in ("float32", "bfloat16")
    ),
    # As released: every network has its own optimizer, length, alpha and T, chosen on the test pictures.
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
HEADLINE = (
    "scratch_2",
    "scratch_4",
    "scratch_10",
    "student_2_of_4",
    "student_2_of_10",
    "direct",
    "direct_as_ta",
    "student_6_of_10",
    "ta_6",
    "sham",
)

# ---- how much is run

PROFILES = {
    # The source uses float32 throughout. On a CPU with bfloat16 instructions, bfloat16 takes half the time (README.md,
    # Precision).
    "full": Profile(
        replace(PAPER, precision="bfloat16"),
        seeds=5,
        judged=True,
        reduced="training steps in bfloat16, predictions in float32",
    ),
    "float32": Profile(PAPER, seeds=5),
    "quick": Profile(
        QUICK,
        seeds=2,
        arms=HEADLINE,
        reduced="10 epochs and 4,000 training pictures instead of 100 and 50,000; "
        "the same networks, batch size and losses",
    ),
    "smoke": Profile(
        SMOKE,
        seeds=1,
        arms=("direct", "student_6_of_10", "ta_6", "sham"),
        synthetic=True,
        reduced="6 epochs of 200 synthetic pictures, batch 8",
    ),
}
EXPERIMENT = Experiment(
    source=SOURCE,
    protocol=3,  # raise with every edit that can move results
    data=("cifar10",),
    load_data=load_data,
    network=network,
    arms=ARMS,
    profiles=PROFILES,
    check=("scratch_2", "student_2_of_4"),  # what `kd check` trains, with seed 0
    banded=("accuracy", "training_loss", "entropy"),  # a sham teacher changes the last two most
    metrics=("accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl"),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
