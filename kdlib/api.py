"""The names that `from kdlib import ...` finds."""

from kdlib.augment import Mix, balanced_draw, mixup, unmixed
from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import (
    binary_distillation,
    binary_logit,
    cross_entropy,
    hard_and_soft,
    kl_plus_mae,
    label_smoothing,
    logit_matching,
    soft_target_kl,
)
from kdlib.seeds import derive_seed, generator
from kdlib.targets import (
    SoftTargets,
    ensemble_targets,
    mean_of_distributions,
    mix_logits,
    smoothed_labels,
    virtual_teacher,
)
from kdlib.training import Progress, epochs, hard_targets, predict_logits, predict_soft_targets

__all__ = [
    "Batch",
    "Batches",
    "Examples",
    "KDError",
    "Mix",
    "Progress",
    "SoftTargets",
    "balanced_draw",
    "binary_distillation",
    "binary_logit",
    "cross_entropy",
    "derive_seed",
    "ensemble_targets",
    "epochs",
    "generator",
    "hard_and_soft",
    "hard_targets",
    "kl_plus_mae",
    "label_smoothing",
    "logit_matching",
    "mean_of_distributions",
    "mix_logits",
    "mixup",
    "predict_logits",
    "predict_soft_targets",
    "smoothed_labels",
    "soft_target_kl",
    "unmixed",
    "virtual_teacher",
]
