"""ECG heartbeats: knowledge distillation and mixup (CVxTz, blog post and code, February 2020).

A student of 3,909 parameters classifies heartbeats of the MIT-BIH Arrhythmia Database into five AAMI classes. According
to the post, it reaches a macro F1 of 0.78 taught by a teacher of 17,221 parameters, with mixup, against 0.67 from
scratch.

README.md in this folder says what the arms are, and where the text and the released code differ. kernels.py makes the
convolutions fast on a CPU; it can be skipped.

Shapes: B batch, N rows, L = 187 samples of a heartbeat, C filters, K = 5 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import cli
from kdlib.augment import Mix, balanced_draw, mixup, unmixed
from kdlib.batches import Batch, Batches, Examples
from kdlib.compiled import AVAILABLE
from kdlib.data import mitdb, synthetic
from kdlib.errors import KDError
from kdlib.files import array_digest
from kdlib.losses import kl_plus_mae
from kdlib.metrics import classification_metrics, macro_f1, refuse_at_chance
from kdlib.networks import keras_adam, keras_glorot_, parameter_count
from kdlib.run.experiment import Arm, Experiment, Profile, Run
from kdlib.run.store import Result
from kdlib.targets import SoftTargets
from kdlib.training import Objective, Progress, epochs, hard_targets, predict_logits

from .kernels import features

CLASSES = 5


@dataclass(frozen=True)
class Config:
    """The source's values. "code": from its released repository; "ours": the source has no such setting."""

    epochs: int = 122  # code: of the "distilled" student; the text does not say
    released_epochs: int = 62  # code: epochs until the learning rate of teacher and baseline falls to 1e-6
    learning_rate: float = 1e-4  # code: Adam
    batch: int = 64  # code
    # plain: the training rows; balanced: drawn with replacement, classes equally likely; mixup: balanced, then mixed
    draws: str = "plain"
    redraw_every: int = 2  # code: new mixup rows every 2 epochs
    mixup_alpha: float = 0.1  # code: Beta(0.1, 0.1); the text only names mixup
    mae_weight: float = 0.1  # code: loss = KL + 0.1 * MAE
    tail_epochs: int = 0  # code: 538 more epochs at tail_rate; left out except in the arm that shows their effect
    tail_rate: float = 1e-6  # code
    split: str = "published"  # code: Kaggle's test file cut into 80% test and 20% validation; inter-patient: ours
    synthetic_rows: int = 6000  # ours: number of synthetic heartbeats, which are used without the real records
    precision: str = "float32"  # these networks have no other

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.tail_epochs


PAPER = Config()
# A tenth of the epochs at ten times the rate: this almost reaches the result of 122 epochs at 1e-4, in minutes.
QUICK = replace(PAPER, epochs=12, released_epochs=6, learning_rate=1e-3)
# Fewer epochs leave the teacher of the split by patient at chance.
SMOKE = replace(QUICK, epochs=8, released_epochs=6, learning_rate=3e-3, batch=16, synthetic_rows=2000)


@dataclass(frozen=True)
class Data:
    """Three parts that share no row."""

    train: Examples  # inputs (N, L) in [0, 1], labels 0 to 4: N, S, V, F, Q
    validation: Examples
    test: Examples
    digest: str
    name: str

    def to(self, device: torch.device) -> Data:
        return replace(self, **{part: getattr(self, part).to(device) for part in ("train", "validation", "test")})


class Network(nn.Module):
    """conv 5 ReLU, max-pool 4, conv 3 ReLU, max-pool 4, global max-pool, dense ReLU, dense 5 (text, figures)."""

    def __init__(self, filters: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, filters, 5)
        self.conv2 = nn.Conv1d(filters, filters, 3)
        self.dense1 = nn.Linear(filters, hidden)
        self.dense2 = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # (B, L) -> logits (B, K)
        if AVAILABLE and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_exporting():
            assert self.conv1.bias is not None
            assert self.conv2.bias is not None
            h = features(x, self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias)
        else:
            h = self.plain_features(x)
        logits: Tensor = self.dense2(F.relu(self.dense1(h)))
        return logits

    def plain_features(self, x: Tensor) -> Tensor:  # (B, L) -> (B, C): the same function, layer by layer
        h = F.max_pool1d(F.relu(self.conv1(x.unsqueeze(1))), 4)
        return F.max_pool1d(F.relu(self.conv2(h)), 4).amax(dim=2)


def teacher_network() -> Network:
    return Network(filters=64, hidden=64)  # 17,221 parameters


def student_network() -> Network:
    return Network(filters=32, hidden=16)  # 3,909 parameters


def transfer(mae_weight: float) -> Objective:
    # KL(teacher || student) + 0.1 * mean_k |teacher_k - student_k|; no hard-label term, no temperature (code)
    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return kl_plus_mae(outputs, batch.soft, mae_weight)

    return objective


def train_teacher(run: Run) -> Result:
    return train(run, teacher_network(), hard_targets, keep_targets=True)


def train_student(run: Run) -> Result:
    return train(run, student_network(), hard_targets)


def train_distilled(run: Run) -> Result:
    soft = {part: run.soft_targets("teacher", part, getattr(run.data, part)) for part in ("train", "validation")}
    return train(run, student_network(), transfer(run.config.mae_weight), soft)


def train_sham(run: Run) -> Result:
    """Distil with soft targets permuted within each class: each row gets those of some row of its class."""
    soft = {}
    for part in ("train", "validation"):
        examples = getattr(run.data, part)
        targets = run.soft_targets("teacher", part, examples)
        soft[part] = targets.permuted_within_classes(examples.labels, run.generator(f"sham {part}"))
    return train(run, student_network(), transfer(run.config.mae_weight), soft)


def train(
    run: Run,
    model: Network,
    objective: Objective,
    soft: Mapping[str, SoftTargets] | None = None,
    keep_targets: bool = False,
) -> Result:
    """Train as the source trains all three models: Adam, and the weights of the epoch with the lowest validation loss.

    The validation loss is the arm's own objective (for a distilled student, its distance to the teacher).
    """
    config: Config = run.config
    check(config)
    run = replace(run, data=run.data.to(run.device))
    data: Data = run.data
    soft = soft or {}
    keras_glorot_(model, run.generator("weights")).to(run.device)
    progress = run.progress(model, keras_adam(model.parameters(), config.learning_rate))
    batches = Batches(data.train, config.batch, run.seed, soft.get("train"), draws(run), CLASSES)
    validation = whole(data.validation, soft.get("validation"))

    def rate(epoch: int) -> float:
        return config.learning_rate if epoch <= config.epochs else config.tail_rate

    for epoch in epochs(progress, batches, objective, count=config.total_epochs, seed=run.seed, rate=rate):
        logits, on_test = (predict_logits(model, part.inputs) for part in (data.validation, data.test))
        progress.record(
            validation_loss=float(objective(logits, validation)),
            validation_macro_f1=f1(logits, data.validation.labels),
            test_macro_f1=f1(on_test, data.test.labels),  # for a figure; chooses nothing
        )
        if progress.is_lowest("validation_loss"):
            progress.keep("final")
        if epoch == config.released_epochs:  # the weights that the released baseline stops with
            progress.kept["at_released_stop"] = progress.kept["final"]
    return result(run, model, progress, keep_targets)


def whole(examples: Examples, soft: SoftTargets | None) -> Batch:
    """Return all examples as one batch, for the objective."""
    rows = torch.arange(len(examples.labels))
    return Batch(examples.inputs, examples.labels, rows, None if soft is None else soft.logits)


def check(config: Config) -> None:
    """Refuse a configuration that this experiment cannot train (KDError)."""
    if config.tail_epochs and config.epochs != config.released_epochs:
        raise KDError(
            f"tail_epochs: expected them after the {config.released_epochs} epochs of the profile's released baseline, "
            f"found them after {config.epochs}; run released_tail with --profile full"
        )
    if config.precision != "float32":
        raise KDError(f"precision: expected float32, found {config.precision!r}; these networks have no other")
    if config.redraw_every < 1 or config.mixup_alpha <= 0:
        raise KDError(
            "expected redraw_every of at least 1 and mixup_alpha above 0, found "
            f"{config.redraw_every} and {config.mixup_alpha}; correct the configuration"
        )


def draws(run: Run) -> Callable[[int], Mix] | None:
    """Return a function from an epoch to its rows, drawn again every second epoch; None: the training rows."""
    config, labels = run.config, run.data.train.labels

    @lru_cache(maxsize=1)
    def drawn(block: int) -> Mix:
        stream = run.generator("draws", block)
        rows = balanced_draw(labels, len(labels), CLASSES, stream)
        return mixup(rows, config.mixup_alpha, stream) if config.draws == "mixup" else unmixed(rows)

    if config.draws == "plain":
        return None
    if config.draws not in ("balanced", "mixup"):
        raise KDError(f"draws: expected plain, balanced or mixup, found {config.draws!r}; correct the configuration")
    return lambda epoch: drawn((epoch - 1) // config.redraw_every)


def f1(logits: Tensor, labels: Tensor) -> float:
    return macro_f1(logits.argmax(1), labels, CLASSES)


def result(run: Run, model: Network, progress: Progress, keep_targets: bool) -> Result:
    """Return the metrics of each snapshot on the test part and, of a teacher, the logits that its students need."""
    data: Data = run.data
    metrics, targets = {}, {}
    for snapshot, weights in progress.kept.items():
        model.load_state_dict(weights)
        metrics[snapshot] = measure(run, model, snapshot, progress)
        if keep_targets:
            refuse_at_chance(predict_logits(model, data.validation.inputs), data.validation.labels, f1, run.label)
            for part in ("train", "validation", "test"):
                targets[f"{snapshot}.{part}"] = predict_logits(model, getattr(data, part).inputs)
    return Result(metrics, progress.history, progress.kept, targets)


def measure(run: Run, model: Network, snapshot: str, progress: Progress) -> dict[str, Any]:
    test: Examples = run.data.test
    until = run.config.released_epochs if snapshot == "at_released_stop" else len(progress.history)
    losses = [entry["validation_loss"] for entry in progress.history[:until]]
    logits = predict_logits(model, test.inputs)
    found: dict[str, Any] = {
        "macro_f1": f1(logits, test.labels),
        "parameters": parameter_count(model),
        "epochs": until,
        "best_epoch": losses.index(min(losses)) + 1,
        "validation_macro_f1": progress.history[losses.index(min(losses))]["validation_macro_f1"],
    }
    teacher = run.soft_targets("teacher", "test", test).logits if run.parents else None
    return found | classification_metrics(logits, test.labels, CLASSES, teacher)


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    """Return the heartbeats in the configuration's split; without a folder of the records, synthetic ones."""
    split, folder = config.split, folders.get("mitdb")
    if split not in ("published", "inter-patient"):
        raise KDError(f"split: expected published or inter-patient, found {split!r}; correct the configuration")
    if folder is None:
        name, (rows, classes, records) = "synthetic heartbeats", synthetic.heartbeats(config.synthetic_rows, seed=0)
    else:
        name, (rows, classes, records) = f"MIT-BIH heartbeats, {split} split", mitdb.heartbeats(folder)
    if split == "inter-patient":
        parts = mitdb.inter_patient_split(classes, records)
    elif folder is None:
        parts = mitdb.stratified_split(classes, seed=0, fractions=(0.7, 0.1, 0.2))
    else:
        parts = mitdb.published_split()
    digest = array_digest(rows, classes, *parts)

    def examples(part: str) -> Examples:
        chosen = getattr(parts, part)
        return Examples(torch.from_numpy(rows[chosen]), torch.from_numpy(classes[chosen]).long(), f"{digest}/{part}")

    return Data(examples("train"), examples("validation"), examples("test"), digest, name)


# ---- the arms


def network(arm: Arm, config: Config, data: Data) -> Network:
    return teacher_network() if arm.train is train_teacher else student_network()


DESCRIBED, CONTROLLED = ("as described", "controlled"), ("controlled",)
TAUGHT = {"teacher": "teacher"}
MIXUP, BALANCED = {"draws": "mixup"}, {"draws": "balanced"}
ARMS = (
    # The released code fits all three models to plain rows and hard labels; its "distilled" student is the baseline
    # trained for 122 epochs instead of 62. This is one run, with a snapshot at each of the two epochs.
    Arm("released_teacher", ("as released",), train_teacher, snapshot="at_released_stop", role="teacher"),
    Arm("released_baseline", ("as released",), train_student, snapshot="at_released_stop"),
    Arm("released_distilled", ("as released",), train_student),
    Arm("teacher", DESCRIBED, train_teacher),
    Arm("baseline", DESCRIBED, train_student),
    Arm("distilled", DESCRIBED, train_distilled, TAUGHT, MIXUP),
    Arm("baseline_mixup", CONTROLLED, train_student, change=MIXUP),
    Arm("sham", ("sham",), train_sham, TAUGHT, MIXUP),
    Arm("baseline_balanced", CONTROLLED, train_student, change=BALANCED),
    Arm("distilled_plain", CONTROLLED, train_distilled, TAUGHT),
    Arm("distilled_balanced", CONTROLLED, train_distilled, TAUGHT, BALANCED),
    # The effect of leaving out the epochs at 1e-6: the released baseline with them. In no profile: 600 epochs.
    Arm("released_tail", ("as released",), train_student, change={"epochs": 62, "tail_epochs": 538}),
)
HEADLINE = (
    "released_teacher",
    "released_baseline",
    "released_distilled",
    "teacher",
    "baseline",
    "distilled",
    "baseline_mixup",
    "sham",
)

# ---- how much is run

PROFILES = {
    "full": Profile(
        PAPER,
        seeds=6,
        arms=(*HEADLINE, "baseline_balanced", "distilled_plain", "distilled_balanced"),
        judged=True,
    ),
    "quick": Profile(
        QUICK,
        seeds=2,
        arms=HEADLINE,
        in_readme=True,
        reduced="12 epochs at 1e-3 instead of 122 at 1e-4 (released "
        "baseline: 6 instead of 62); the same data, networks, batch size and losses",
    ),
    "smoke": Profile(
        SMOKE, seeds=1, arms=HEADLINE, synthetic=True, reduced="8 epochs at 3e-3, batch 16, synthetic heartbeats"
    ),
}
EXPERIMENT = Experiment(
    source="cvxtz-ecg",
    protocol=1,  # raise with every edit that can move results
    data=("mitdb",),
    data_fields=("split",),  # another split (--set split=inter-patient) is other data, with tables of its own
    load_data=load_data,
    network=network,
    arms=ARMS,
    profiles=PROFILES,
    check=("teacher", "baseline", "distilled"),  # what `kd check` trains, with seed 0
    banded=("macro_f1", "teacher_kl"),
    metrics=(
        *("macro_f1", "accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl", "best_epoch"),
        *("validation_macro_f1",),
    ),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
