"""NAME: one sentence on what is replicated (authors, year), then the claim in one sentence."""
# Template: a student of 32 hidden units learns handwritten digits with and without a teacher of 256. Replace all of it.

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from kdlib import Batch, Batches, Examples, SoftTargets, epochs, hard_and_soft, hard_targets, predict_logits
from kdlib.data import mnist, synthetic_pictures
from kdlib.files import array_digest
from kdlib.metrics import classification_metrics
from kdlib.networks import keras_glorot_, parameter_count
from kdlib.run import Arm, Experiment, Profile, Result, Run


@dataclass(frozen=True)
class Config:
    epochs: int = 10  # each value with its place in the source, or "not stated: our choice"
    batch: int = 32
    soft_weight: float = 0.9
    temperature: float = 4.0


def load_data(config: Config, folders: Mapping[str, Path]) -> SimpleNamespace:  # without folders: synthetic digits
    pictures = mnist.digits(folders["mnist"]) if folders else synthetic_pictures.digits(300, 200, seed=0)
    first, test = [part[:5_000] for part in pictures[:2]], pictures[2:]
    data = SimpleNamespace(digest=array_digest(*first, *test), name="MNIST" if folders else "synthetic digits")
    for part, (images, labels) in (("train", first), ("test", test)):
        inputs = torch.from_numpy(images).flatten(1) / 255  # (N, 784)
        setattr(data, part, Examples(inputs, torch.from_numpy(labels).long(), f"{data.digest}/{part}"))
    return data


def train_NAME_teacher(run: Run) -> Result:
    return train(run, 256)


def train_NAME_student(run: Run) -> Result:
    return train(run, 32)


def train_NAME_distilled(run: Run) -> Result:
    return train(run, 32, run.soft_targets("teacher", "train", run.data.train))


def train_NAME_sham(run: Run) -> Result:  # the teacher's soft targets, permuted within each class
    soft = run.soft_targets("teacher", "train", run.data.train)
    return train(run, 32, soft.permuted_within_classes(run.data.train.labels, run.generator("sham")))


def train(run: Run, hidden: int, soft: SoftTargets | None = None) -> Result:
    def objective(outputs: Tensor, batch: Batch) -> Tensor:  # (1 - w) CE(labels) + w T^2 KL(teacher_T || student_T)
        if batch.soft is None:
            return hard_targets(outputs, batch)
        w = run.config.soft_weight
        return hard_and_soft(outputs, batch.soft, batch.labels, 1 - w, w, run.config.temperature)

    model = nn.Sequential(nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    keras_glorot_(model, run.generator("weights")).to(run.device)
    progress = run.progress(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    train, test = run.data.train.to(run.device), run.data.test.to(run.device)
    batches = Batches(train, run.config.batch, run.seed, soft)
    for _ in epochs(progress, batches, objective, count=run.config.epochs, seed=run.seed):
        pass
    progress.keep("final")
    logits = {"final.train": predict_logits(model, train.inputs), "final.test": predict_logits(model, test.inputs)}
    found = classification_metrics(logits["final.test"], test.labels, 10)
    found |= {"parameters": parameter_count(model), "epochs": progress.epoch}
    return Result({"final": found}, progress.history, progress.kept, logits)


QUICK = Config(epochs=2)
ALL, TAUGHT = ("as described", "controlled"), {"teacher": "teacher"}
ARMS = (
    Arm("teacher", ALL, train_NAME_teacher),
    Arm("baseline", ALL, train_NAME_student),
    Arm("distilled", ALL, train_NAME_distilled, TAUGHT),
    Arm("sham", ("sham",), train_NAME_sham, TAUGHT),
)
PROFILES = {
    "full": Profile(Config(), seeds=5, judged=True),
    "quick": Profile(QUICK, seeds=2, reduced="2 epochs instead of 10"),
    "smoke": Profile(QUICK, seeds=1, synthetic=True, reduced="2 epochs of 300 synthetic digits"),
}
CHECK, METRICS = ("teacher", "baseline", "distilled"), ("accuracy", "entropy", "parameters", "epochs")  # of runs
EXPERIMENT = Experiment("NAME", 1, ("mnist",), load_data, ARMS, PROFILES, CHECK, ("accuracy",), metrics=METRICS)
