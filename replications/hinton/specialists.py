"""One generalist and three specialists on CIFAR-10 (section 5 of the paper, which has JFT and 61 specialists).

A specialist knows a few classes that the generalist confuses, and one dustbin class for all others. It starts from the
generalist's weights. Half of its pictures are of its classes, half of the others.

Shapes: B batch, N pictures, K = 10 classes, S classes of a specialist.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.batches import Batch, Batches, Examples
from kdlib.losses import hard_and_soft
from kdlib.metrics import accuracy, mean_entropy
from kdlib.networks import he_normal_, parameter_count
from kdlib.run.experiment import Run
from kdlib.run.store import Result
from kdlib.specialist_inference import active_specialists, combined_log_probs
from kdlib.specialists import (
    Subset,
    corrected_dustbin,
    correlation_clusters,
    dustbin_labels,
    dustbin_logits,
    oversampling,
    specialist_head,
    specialist_rows,
)
from kdlib.targets import SoftTargets
from kdlib.training import Objective, Progress, cosine, epochs, hard_targets, predict_logits

from .clusters import SPECIALISTS, confusable
from .config import CLASSES, Config, Data
from .digits import adam, on_device


class PictureNetwork(nn.Module):
    """conv 32 5x5 of stride 2, conv 48 3x3, max-pool 2, conv 64 3x3, max-pool 2, dense 128, dense 10; ReLU."""

    def __init__(self, precision: str = "float32") -> None:
        super().__init__()
        self.in_bfloat16 = precision == "bfloat16"
        self.conv1 = nn.Conv2d(3, 32, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 4 * 4, 128)
        self.output = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # uint8 (B, 3, 32, 32) -> logits (B, K), of a specialist (B, S + 1)
        h = (x.float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.in_bfloat16 and self.training):
            h = F.relu(self.conv1(h))
            h = F.max_pool2d(F.relu(self.conv2(h)), 2)
            h = F.max_pool2d(F.relu(self.conv3(h)), 2)
            logits: Tensor = self.output(F.relu(self.hidden(h.flatten(1))))
            return logits.float()


# ---- the generalist


def train_generalist(run: Run) -> Result:
    run, config = on_device(run)
    model = he_normal_(PictureNetwork(config.precision), run.generator("generalist weights"))
    return of_generalist(
        run, fit(run, model, run.data.pictures, hard_targets, None, config.picture_epochs, config.picture_rate)
    )


def train_generalist_longer(run: Run) -> Result:
    """Train the generalist for as many more epochs as a specialist, at its rates, on all pictures: the fair rival."""
    run, config = on_device(run)
    return of_generalist(
        run,
        fit(
            run,
            generalist(run),
            run.data.pictures,
            hard_targets,
            None,
            config.specialist_epochs,
            config.specialist_rate,
        ),
    )


def fit(
    run: Run,
    model: PictureNetwork,
    pictures: Examples,
    objective: Objective,
    soft: SoftTargets | None,
    count: int,
    first_rate: float,
) -> Progress:
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's hints lack it
    progress = run.progress(model, adam(model, first_rate))
    batches = Batches(pictures, run.config.batch, run.seed, soft)
    for _ in epochs(progress, batches, objective, count=count, seed=run.seed, rate=cosine(first_rate, count)):
        pass
    progress.keep("final")
    return progress


def of_generalist(run: Run, progress: Progress) -> Result:
    data: Data = run.data
    logits = {
        f"final.{part}": predict_logits(progress.model, getattr(data, part).inputs)
        for part in ("pictures", "test_pictures")
    }
    on_seen, on_test = logits.values()
    found: dict[str, Any] = about(
        progress, accuracy(on_seen, data.pictures.labels), accuracy(on_test, data.test_pictures.labels)
    )
    probs = on_seen.softmax(1)
    found |= {
        "entropy": mean_entropy(on_test),
        "covariance": [[round(value, 6) for value in row] for row in probs.double().t().cov().tolist()],
        "clusters": [list(subset) for subset in correlation_clusters(probs)],
    }
    return Result({"final": found}, progress.history, progress.kept, logits)


def about(progress: Progress, on_seen: float, on_test: float) -> dict[str, Any]:
    sizes = {"parameters": parameter_count(progress.model), "epochs": progress.epoch}
    return {"accuracy": on_test, "gap": on_seen - on_test, **sizes}


def generalist(run: Run) -> PictureNetwork:
    """Return a copy of the trained generalist."""
    trained, snapshot = run.parents["generalist"]
    model = PictureNetwork(run.config.precision)
    model.load_state_dict(trained.weights(snapshot))
    return model


def generalist_targets(run: Run, part: str) -> SoftTargets:
    return run.soft_targets("generalist", part, getattr(run.data, part))


# ---- the specialists


def subsets_of(run: Run) -> list[Subset]:
    """Return the classes of the specialists, from the generalist's predictions of the training pictures."""
    return confusable(generalist_targets(run, "pictures").probabilities(), run)


def train_specialist(run: Run) -> Result:
    return train_one(run, taught=False)


def train_soft_specialist(run: Run) -> Result:
    return train_one(run, taught=True)


def train_one(run: Run, taught: bool) -> Result:
    """Train one specialist on its pictures: on hard labels alone, or also on soft targets of the generalist."""
    run, config = on_device(run)
    subset = subsets_of(run)[config.specialist]
    pictures, test = run.data.pictures, run.data.test_pictures
    rows = specialist_rows(pictures.labels, subset, run.generator(f"rest {config.specialist}"))
    oversampled = oversampling(pictures.labels, rows, subset)
    seen = with_dustbin(pictures.select(rows), subset)
    soft = soft_targets(run, rows, subset, oversampled) if taught else None
    model = generalist(run)
    model.output = specialist_head(model.output, subset)
    objective = distillation(config) if taught else hard_targets
    progress = fit(run, model, seen, objective, soft, config.specialist_epochs, config.specialist_rate)
    logits = predict_logits(model, test.inputs)
    on_seen = half_and_half(predict_logits(model, seen.inputs), seen.labels)
    found = about(progress, on_seen, half_and_half(logits, dustbin_labels(test.labels, subset)))
    found |= {"subset": list(subset), "oversampled": oversampled}
    kept = {"final.test_pictures": corrected_dustbin(logits, oversampled)}
    return Result({"final": found}, progress.history, progress.kept, kept)


def with_dustbin(pictures: Examples, subset: Subset) -> Examples:
    return replace(pictures, labels=dustbin_labels(pictures.labels, subset))


def soft_targets(run: Run, rows: Tensor, subset: Subset, oversampled: float) -> SoftTargets:
    """Return the generalist's soft targets (n, S + 1) of a specialist's pictures, in their proportions.

    The other classes are summed at T = 1, at which the specialist is asked. Summed at the temperature of the loss, they
    would teach it a dustbin that is too probable at T = 1, against the labels.
    """
    whole = generalist_targets(run, "pictures").select(rows)
    logits = corrected_dustbin(dustbin_logits(whole.logits, subset), 1 / oversampled)
    names = " ".join(map(str, subset))
    return replace(whole, logits=logits, part=f"{whole.part}, classes {names} and dustbin")


def distillation(config: Config) -> Objective:
    """hard_weight CE(labels) + (1 - hard_weight) T^2 KL(generalist_T || specialist_T)."""
    hard, temperature = config.specialist_hard_weight, config.specialist_temperature

    def objective(outputs: Tensor, batch: Batch) -> Tensor:
        assert batch.soft is not None
        return hard_and_soft(outputs, batch.soft, batch.labels, hard, 1 - hard, temperature)

    return objective


def half_and_half(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of two accuracies: of the specialist's classes and of the dustbin, the last label.

    The training pictures of a specialist have both halves, so this makes training and test comparable.
    """
    dustbin = labels == logits.shape[1] - 1
    return (accuracy(logits[dustbin], labels[dustbin]) + accuracy(logits[~dustbin], labels[~dustbin])) / 2


# ---- both together


def role(number: int) -> str:
    return f"specialist_{number}"


def combine(run: Run) -> Result:
    """Measure the distribution that is nearest to the generalist's and the active specialists' (Eq. 5)."""
    run, config = on_device(run)
    subsets, labels = subsets_of(run), run.data.test_pictures.labels
    logits = generalist_targets(run, "test_pictures").logits
    each = [
        run.soft_targets(role(number), "test_pictures", run.data.test_pictures).logits for number in range(SPECIALISTS)
    ]
    active = active_specialists(logits, subsets, config.active)
    log_probs = combined_log_probs(logits, each, subsets, active).float()
    trained = [parent.metrics[snapshot] for name, (parent, snapshot) in run.parents.items() if name != "generalist"]
    found = {
        "accuracy": accuracy(log_probs, labels),
        "gap": math.fsum(metrics["gap"] for metrics in trained) / len(trained),
        "asked": float(active.double().sum(1).mean()),
        "entropy": mean_entropy(log_probs),
        "epochs": 0,
    }
    # Nothing is trained. The predictions stand in for weights, so that two such runs are not taken for one.
    return Result({"final": found}, [], {"final": {"log_probs": log_probs}})
