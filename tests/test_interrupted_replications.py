"""Every replication's training functions, killed after every epoch or within: the same result to the last bit."""

from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from kdlib.run.experiment import load_experiment, replications
from kdlib.run.plan import wanted_arms
from tests.made_runs import Killed, assert_same_result, resumed, run_of, taught, with_parents

# Shorter than profile smoke, where a configuration has these fields; at least two epochs, so that one is resumed.
SHORT = {"train_pictures": 24, "test_pictures": 10, "teacher_epochs": 2}


# These train nothing.
MEASURES = {"average_members", "combine", "measure_limit"}
PARENTS = {}  # trained ones, by experiment and arm


def cases():
    """Return each training function of the smoke profiles once: experiment, arm, and number of runs trained."""
    seen, found = set(), []
    for name in replications(Path(__file__).parents[1]):
        experiment = load_experiment(name)
        for arm in wanted_arms(experiment, experiment.arms_of(experiment.profile("smoke"))):
            if arm.train not in seen and arm.train.__name__ not in MEASURES:
                seen.add(arm.train)
                for count in (1,) if arm.mapped is None else (1, 2):
                    found.append(pytest.param(experiment, arm, count, id=f"{name} {arm.train.__name__} {count}"))
    return found


def runs_of(experiment, arm, count):
    config = experiment.config(arm, experiment.profile("smoke"))
    known = {field.name for field in fields(config)}
    config = replace(config, **{field: value for field, value in SHORT.items() if field in known})
    runs = [run_of(experiment, config, seed) for seed in range(count)]
    if set(arm.needs) <= {"teacher"}:
        return [taught(run)[0] for run in runs] if arm.needs else runs
    return [with_parents(experiment, arm, run, PARENTS.setdefault(experiment.name, {})) for run in runs]


CASES = cases()


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "arm", "count"), CASES)
def test_killed_after_any_epoch_and_run_again(experiment, arm, count, tmp_path):
    runs = runs_of(experiment, arm, count)
    whole = arm.results(runs)
    if not runs[0].trainings:
        pytest.skip("it trains nothing")
    again, deaths = resumed(arm.results, runs, tmp_path / "checkpoint")
    assert deaths == list(range(1, len(whole[0].history) + 1))  # every session trained one epoch
    assert len(deaths) > 1
    assert len({str(result.history) for result in whole}) == count
    for result, expected in zip(again, whole, strict=True):
        assert_same_result(result, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "arm", "count"), CASES)
def test_killed_within_epochs_and_run_again(experiment, arm, count, tmp_path):
    """The lives of the process make 5, 9, 13, ... steps, wherever an epoch ends."""
    runs, lives = runs_of(experiment, arm, count), []
    whole = arm.results(runs)
    if not runs[0].trainings:
        pytest.skip("it trains nothing")

    def die(progress):
        lives[-1] += 1
        if lives[-1] == 1 + 4 * len(lives):
            progress.save()
            raise Killed

    first, *others = runs
    again = None
    while again is None:
        lives.append(0)
        assert len(lives) < 200
        with suppress(Killed):
            again = arm.results([replace(first, checkpoint=tmp_path / "c", on_step=die), *others])
    assert len(lives) > 1 or sum(lives) < 5
    for result, expected in zip(again, whole, strict=True):
        assert_same_result(result, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("experiment", "arm", "count"), CASES)
def test_trained_on_a_cuda_device(experiment, arm, count):
    runs = runs_of(experiment, arm, count)
    results = arm.results([replace(run, device=torch.device("cuda")) for run in runs])
    assert results[0].history[0].keys() == arm.results(runs)[0].history[0].keys()
