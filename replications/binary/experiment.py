"""A distillation loss for binary classification, with cats and dogs (A. Kherchouche, blog post, August 2021).

The student learns from the labels with weight alpha and from the teacher's probability with weight 1 - alpha. According
to the post, alpha = 0.5 is not always best: a search over [0, 1] finds a better alpha.

Alpha is the weight of the LABELS here. In the course report (replications/grid) it is the weight of the teacher.

README.md in this folder says what the arms are and what the source leaves open. teacher.py has the frozen part of the
teacher.

Shapes: B batch, N pictures, F features; 0 is a cat and 1 a dog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import cli
from kdlib.batches import Batch, Batches, Examples
from kdlib.data import cats_dogs, synthetic_photographs, vgg16
from kdlib.data.pictures import Pictures
from kdlib.errors import KDError
from kdlib.files import array_digest, sha256
from kdlib.losses import binary_distillation, binary_logit
from kdlib.metrics import accuracy, classification_metrics, refuse_at_chance
from kdlib.networks import keras_adam, keras_glorot_, parameter_count
from kdlib.run.experiment import Arm, Experiment, Profile, Run
from kdlib.run.store import Result
from kdlib.seeds import generator
from kdlib.targets import SoftTargets, virtual_teacher
from kdlib.training import Objective, Progress, cosine, epochs, predict_logits

from .teacher import STAND_IN_SIDE, WholeTeacher, operations, stand_in_features, stored_features, vgg16_cost

CLASSES = 2
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Config:
    """ "text": the source's values. "ours": the source has no such setting; it gives no number and names no network."""

    alpha: float = 0.5  # text: weight of the labels, from 0 to 1
    pictures: str = "cats_dogs"  # text: cats and dogs; ours: this set, or oxford_pets, which is another one
    train_pictures: int = 1_600  # ours, as all below
    validation_pictures: int = 400
    test_pictures: int = 2_000  # at most so many
    epochs: int = 30
    batch: int = 32
    learning_rate: float = 3e-3  # Adam; falls to 0 along half a cosine
    precision: str = "float32"  # the student has no other


PAPER = Config()
QUICK = replace(PAPER, train_pictures=600, validation_pictures=150, test_pictures=300, epochs=24)
SMOKE = replace(PAPER, train_pictures=96, validation_pictures=32, test_pictures=64, epochs=3, batch=16)


@dataclass(frozen=True)
class Data:
    """Two parts that share no picture, and where the teacher's weights are.

    `train` has every picture of the training part twice: row i + N is the mirrored picture of row i < N. A run draws
    its training and validation pictures from it.
    """

    train: Examples  # inputs uint8 (2N, 3, 96, 96), labels 0 or 1
    test: Examples
    digest: str
    name: str
    weights: Path | None  # the folder of VGG16's weights; None: the stand-in without weights

    def to(self, device: torch.device) -> Data:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def features(self, examples: Examples) -> Examples:
        """Return the same examples with frozen features (N, F) as inputs, and with the digest of the pictures."""
        pictures = examples.inputs
        features = stand_in_features(pictures) if self.weights is None else stored_features(self.weights, pictures)
        return replace(examples, inputs=features.to(pictures.device))


# ---- the networks


def student_network() -> nn.Sequential:
    """Four convolutions with batch norm, the mean over all places, one logit: 64,161 parameters."""
    return nn.Sequential(
        Scale(),
        *convolution(3, 24, kernel=4, stride=4),  # 96 -> 24
        *convolution(24, 32, kernel=3, stride=2),  # 24 -> 12
        *convolution(32, 64, kernel=3, stride=1),
        *convolution(64, 64, kernel=3, stride=2),  # 12 -> 6
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 1),
    )


def convolution(into: int, out: int, kernel: int, stride: int) -> list[nn.Module]:
    padding = 1 if kernel == 3 else 0
    return [nn.Conv2d(into, out, kernel, stride, padding, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


class Scale(nn.Module):
    """Bytes to numbers from -1 to 1, with the channels last in memory, which is a tenth faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def network(arm: Arm, config: Config, data: Data) -> nn.Sequential:
    """Return the student, or the whole teacher: the frozen features of pictures, then the head."""
    if arm.train is not train_binary_teacher:
        return student_network()
    if data.weights is None:
        return WholeTeacher(None, teacher_head(3 * STAND_IN_SIDE**2))
    return WholeTeacher(vgg16.features(data.weights).tensors, teacher_head(vgg16.CHANNELS[-1]))


def teacher_head(features: int) -> nn.Sequential:
    """What is trained of the teacher: one logit of the frozen features."""
    return nn.Sequential(nn.BatchNorm1d(features), nn.Dropout(0.5), nn.Linear(features, 1))


# ---- the objectives


def labels_only(outputs: Tensor, batch: Batch) -> Tensor:
    # student_loss: -y log(q) - (1 - y) log(1 - q). The post prints + before its second term (README.md, difference 1).
    return F.binary_cross_entropy_with_logits(binary_logit(outputs), batch.labels.to(outputs))


def labels_and_teacher(alpha: float) -> Objective:
    # f = alpha * student_loss + (1 - alpha) * distillation_loss: alpha is the weight of the LABELS. No temperature.
    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return binary_distillation(binary_logit(outputs), binary_logit(batch.soft), batch.labels, alpha)

    return objective


# ---- training


def train_binary_teacher(run: Run) -> Result:
    """Train the head on frozen features, and keep the logits of all pictures in both views."""
    run = ready(run)
    data: Data = run.data
    train, test = (data.features(examples) for examples in (data.train, data.test))
    head = keras_glorot_(teacher_head(train.inputs.shape[1]), run.generator("weights"))
    progress = fit(run, head, train, labels_only)
    kept = {f"final.{part}": both_logits(head, each.inputs) for part, each in (("train", train), ("test", test))}
    validation, chosen = kept["final.train"][split(run)[1]], kept["final.train"][training_rows(run)]
    if data.weights is not None:
        refuse_at_chance(validation, data.train.labels[split(run)[1]], accuracy, run.label)
    frozen = (0, 0) if data.weights is None else vgg16_cost(cats_dogs.SIDE)
    found = measure(run, head, test.inputs, kept["final.test"], validation)
    found["parameters"] += frozen[0]
    found["flops"] += frozen[1]
    found["confidence"] = confidence(chosen)
    return Result({"final": found}, progress.history, progress.kept, kept)


def train_binary_student(run: Run) -> Result:
    run = ready(run)
    return train(run, teacher_targets(run))


def train_binary_sham(run: Run) -> Result:
    """Distil with soft targets permuted within each class among the run's training pictures."""
    run = ready(run)
    labels = run.data.train.labels[training_rows(run)]
    return train(run, teacher_targets(run).permuted_within_classes(labels, run.generator("sham")))


def train_binary_smoothed(run: Run) -> Result:
    """Distil from smoothed labels, which are as confident as the teacher is on average."""
    run = ready(run)
    soft, labels = teacher_targets(run), run.data.train.labels[training_rows(run)]
    level = confidence(soft.logits)
    logits = virtual_teacher(labels, CLASSES, level, temperature=1.0)
    origin = f"labels smoothed to the mean confidence of run {soft.teacher_run}"
    return train(run, SoftTargets(logits, origin, soft.data_digest, part=f"confidence {level:.6f}"))


def train(run: Run, soft: SoftTargets) -> Result:
    data: Data = run.data
    model = student_network()
    keras_glorot_(model, run.generator("weights")).to(run.device)
    progress = fit(run, model, data.train, labels_and_teacher(run.config.alpha), soft)
    test, validation = (both_logits(model, x) for x in (data.test.inputs, data.train.inputs[split(run)[1]]))
    found = measure(run, model, data.test.inputs, test, validation) | {"teacher_correlation": follows(run, model)}
    return Result({"final": found}, progress.history, progress.kept)


def ready(run: Run) -> Run:
    """Return the run with its data on its device; KDError for a configuration that this experiment cannot train."""
    config: Config = run.config
    if not 0 <= config.alpha <= 1:
        raise KDError(f"alpha: expected a weight of the labels from 0 to 1, found {config.alpha}; correct it")
    if config.precision != "float32":
        raise KDError(f"precision: expected float32, found {config.precision!r}; these networks have no other")
    return replace(run, data=run.data.to(run.device))


def split(run: Run) -> tuple[Tensor, Tensor]:
    """Return the rows of the plain training pictures and of the plain validation pictures, drawn by the seed."""
    order = torch.randperm(len(run.data.train.labels) // 2, generator=run.generator("split"))
    return order[: run.config.train_pictures], order[run.config.train_pictures :]


def training_rows(run: Run) -> Tensor:
    """Return the rows of the training pictures: all plain ones, then, in the same order, all mirrored ones."""
    plain = split(run)[0]
    return torch.cat([plain, plain + len(run.data.train.labels) // 2])


class OneView(Batches):
    """Batches of epochs that have each picture once: plain or, with probability 1/2, mirrored.

    The examples are all plain pictures, then all mirrored ones. All arms of a seed get the same views.
    """

    def __len__(self) -> int:
        return -(-(len(self.examples.inputs) // 2) // self.size)

    def order(self, epoch: int) -> Tensor:
        pictures = len(self.examples.inputs) // 2
        rows = torch.randperm(pictures, generator=generator(self.seed, "order", epoch))
        mirrored = torch.randint(2, (pictures,), generator=generator(self.seed, "mirrored", epoch))
        return (rows + pictures * mirrored).to(self.examples.inputs.device)


def fit(
    run: Run, model: nn.Module, examples: Examples, objective: Objective, soft: SoftTargets | None = None
) -> Progress:
    """Train on the run's training pictures; the weights are those of the last epoch, so no picture chooses any."""
    config: Config = run.config
    rate = cosine(config.learning_rate, config.epochs)
    progress = run.progress(model, keras_adam(model.parameters(), config.learning_rate))
    batches = OneView(examples.select(training_rows(run)), config.batch, run.seed, soft)
    for _ in epochs(progress, batches, objective, count=config.epochs, seed=run.seed, rate=rate):
        pass
    progress.keep("final")
    return progress


def teacher_targets(run: Run) -> SoftTargets:
    """Return the teacher's soft targets (2n, 2) of the run's training pictures in both views."""
    return run.soft_targets("teacher", "train", run.data.train).select(training_rows(run))


def both_logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits (N, 2) of a network with one logit: 0 for a cat, the network's for a dog."""
    logits = predict_logits(model, inputs, size=256)
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def confidence(logits: Tensor) -> float:
    """Return the mean probability of the predicted class, from 0.5 to 1."""
    return float(binary_logit(logits.double()).abs().sigmoid().mean())


def follows(run: Run, model: nn.Module) -> float:
    """Return the correlation of student's and teacher's logits within a class, the mean of both classes, in training.

    A student of the sham cannot follow the teacher within a class.
    """
    rows, teacher = training_rows(run), binary_logit(teacher_targets(run).logits)
    student, labels = binary_logit(both_logits(model, run.data.train.inputs[rows])), run.data.train.labels[rows]
    pairs = (torch.stack([student, teacher])[:, labels == k].double() for k in range(CLASSES))
    return sum(float(torch.corrcoef(pair)[0, 1]) for pair in pairs) / CLASSES


def measure(run: Run, model: nn.Module, inputs: Tensor, test: Tensor, validation: Tensor) -> dict[str, Any]:
    """Return the metrics of logits (N, 2) of the test and of the validation pictures, and the network's cost."""
    data: Data = run.data
    teacher = run.soft_targets("teacher", "test", data.test).logits if run.parents else None
    found = classification_metrics(test, data.test.labels, CLASSES, teacher)
    return found | {
        "validation_accuracy": accuracy(validation, data.train.labels[split(run)[1]]),
        "parameters": parameter_count(model),
        "flops": operations(lambda: predict_logits(model, inputs[:1])),
        "epochs": run.config.epochs,
    }


# ---- the data


def load_data(config: Config, folders: Mapping[str, Path]) -> Data:
    """Return pictures of the configuration's set, drawn once for all seeds; without folders, synthetic ones."""
    train, test = config.train_pictures + config.validation_pictures, config.test_pictures
    if config.pictures not in ("cats_dogs", "oxford_pets"):
        raise KDError(f"pictures: expected cats_dogs or oxford_pets, found {config.pictures!r}; correct it")
    if not folders:
        pictures = synthetic_photographs.pets(train, test, seed=0)
        return as_data("synthetic pets, stand-in for VGG16", pictures, train, test, None, "none")
    weights = vgg16.features(folders["vgg16"]).digest
    if config.pictures == "oxford_pets":
        name, found = "Oxford-IIIT Pet", cats_dogs.oxford_pets(folders["oxford_pets"])
    else:
        name, found = "cats and dogs (Asirra)", cats_dogs.pictures(folders["cats_dogs"])
    return as_data(name, found.pictures, train, test, folders["vgg16"], weights)


def as_data(name: str, pictures: Pictures, train: int, test: int, folder: Path | None, weights: str) -> Data:
    """Return `train` pictures in both views and at most `test` pictures; `weights` is the digest of the teacher's."""
    if len(pictures.train_labels) < train:
        raise KDError(
            f"{name}: expected at least {train} pictures in the training part, found {len(pictures.train_labels)}; "
            "fetch or copy the set again"
        )
    rows = drawn(len(pictures.train_labels), train, "train"), drawn(len(pictures.test_labels), test, "test")
    digest = sha256(f"{array_digest(*pictures)} {rows[0].tolist()} {rows[1].tolist()} {weights}".encode())[:16]
    images, labels = (torch.from_numpy(part)[rows[0]] for part in pictures[:2])
    test_images, test_labels = (torch.from_numpy(part)[rows[1]] for part in pictures[2:])
    both = torch.cat([images, images.flip(3)])
    return Data(
        Examples(both, torch.cat([labels, labels]).long(), f"{digest}/train"),
        Examples(test_images, test_labels.long(), f"{digest}/test"),
        digest,
        name,
        folder,
    )


def drawn(count: int, wanted: int, part: str) -> Tensor:
    """Return row numbers of `wanted` pictures of `count`, the same for all seeds: the files are ordered by class."""
    return torch.randperm(count, generator=generator(0, f"pictures/{part}"))[:wanted]


def data_sets(config: Config) -> tuple[str, ...]:
    if config.pictures not in ("cats_dogs", "oxford_pets"):
        raise KDError(
            f"pictures: expected cats_dogs or oxford_pets, found {config.pictures!r}; correct the configuration"
        )
    return config.pictures, "vgg16"


# ---- the arms


def cell(alpha: float) -> str:
    """Return the name of the arm with this alpha: alpha_0_5 for 0.5."""
    return f"alpha_{alpha:.1f}".replace(".", "_")


DESCRIBED, TAUGHT = ("as described", "controlled"), {"teacher": "teacher"}
ARMS = (
    Arm("teacher", DESCRIBED, train_binary_teacher),
    # With alpha 1 the teacher has no weight: this is the student without a teacher.
    *(
        Arm(
            cell(alpha),
            DESCRIBED,
            train_binary_student,
            TAUGHT,
            {"alpha": alpha},
            role="baseline" if alpha == 1 else "",
        )
        for alpha in ALPHAS
    ),
    # The controls have alpha 0, at which the soft targets do most, or 0.5, which the post calls not always best.
    Arm("sham", ("sham",), train_binary_sham, TAUGHT, {"alpha": 0.0}),
    Arm("sham_alpha_0_5", ("sham",), train_binary_sham, TAUGHT, {"alpha": 0.5}),
    Arm("smoothed", ("controlled",), train_binary_smoothed, TAUGHT, {"alpha": 0.0}, role="baseline"),
    Arm("smoothed_alpha_0_5", ("controlled",), train_binary_smoothed, TAUGHT, {"alpha": 0.5}, role="baseline"),
)
HEADLINE = ("teacher", cell(0.0), cell(0.5), cell(1.0), "sham", "smoothed")

# ---- how much is run

PROFILES = {
    "full": Profile(PAPER, seeds=10, judged=True),
    "quick": Profile(
        QUICK,
        seeds=2,
        arms=HEADLINE,
        reduced="600 training, 150 validation and 300 test pictures and 24 epochs instead of 1,600, 400, 2,000 and 30; "
        "alphas 0, 0.5 and 1 only; the same networks and losses",
    ),
    "smoke": Profile(
        SMOKE,
        seeds=1,
        arms=HEADLINE,
        synthetic=True,
        reduced="3 epochs of 96 synthetic pictures, batch 16; the teacher sees pictures of 12 x 12 instead of VGG16's "
        "features",
    ),
}
EXPERIMENT = Experiment(
    source="kherchouche-binary",
    protocol=1,  # raise with every edit that can move results
    data=data_sets,
    data_fields=("pictures",),  # --set pictures=oxford_pets is another data set, with tables of its own
    load_data=load_data,
    network=network,
    arms=ARMS,
    profiles=PROFILES,
    check=("teacher", cell(0.0)),  # what `kd check` trains, with seed 0
    banded=("accuracy", "teacher_correlation"),  # the correlation is what a sham teacher changes most
    metrics=(
        *("accuracy", "entropy", "epochs", "parameters", "agreement", "teacher_kl", "confidence", "flops"),
        *("teacher_correlation", "validation_accuracy"),
    ),
)

if __name__ == "__main__":
    cli.run_experiment(__spec__.name)
