"""A configuration that trains within a second."""

from dataclasses import replace

from replications.hinton import experiment
from tests.made_runs import run_of

TINY = replace(
    experiment.SMOKE,
    epochs=2,
    teacher_epochs=2,
    batch=16,
    width=30,
    train_digits=120,
    test_digits=60,
    cifar_pictures=60,
    cifar_test_pictures=20,
)


def tiny_run(seed=0, data=None, **change):
    """Return a run on a few synthetic digits and pictures."""
    return run_of(experiment.EXPERIMENT, replace(TINY, **change), seed, data)
