"""The audit of Hinton's runs: several teachers, targets of a specialist, an arm of a fixed seed, counts of errors."""

import json

import pytest

from kdlib.run.experiment import load_experiment
from tests.audit import records, traces

EXPERIMENT = load_experiment("hinton")
MEMBERS = [f"{number:x}" * 16 for number in range(10)]


def of(part, run, name, parents, config, rows="train"):
    """The faults of the soft targets of one run."""
    soft = {"run": run, "part": part, "sha256": "s"}
    line = {
        "trace": {"data": {"digest": f"d/{rows}", "soft": soft}},
        "description": {"parents": parents, "config": config},
        "arms": {name: "final"},
        "seed": 0,
    }
    return [str(fault) for fault in traces._soft("run", EXPERIMENT, line, {})]


PARENTS = {f"member_{number}": f"{run}/final" for number, run in enumerate(MEMBERS)}
ENSEMBLE = {"mean": "arithmetic", "temperature": 20.0}
PART = "arithmetic mean of 10 at temperature 20: final.train"


@pytest.mark.parametrize(
    ("part", "run", "said"),
    [
        (PART, " + ".join(MEMBERS), ""),
        (PART, " + ".join(MEMBERS[:9]), "members"),
        (PART, " + ".join([*MEMBERS[:9], "a" * 16]), "members"),
        (PART.replace("arithmetic", "geometric"), " + ".join(MEMBERS), "expected arithmetic mean of 10"),
        (PART.replace("20", "1"), " + ".join(MEMBERS), "at temperature 20"),
        (PART.replace("train", "test"), " + ".join(MEMBERS), "expected arithmetic mean of 10"),
    ],
)
def test_the_targets_of_an_ensemble_are_those_of_its_members_at_the_students_temperature(part, run, said):
    faults = of(part, run, "by_ensemble_arithmetic", PARENTS, ENSEMBLE)
    assert (said in faults[0]) if said else not faults


@pytest.mark.parametrize(
    ("part", "rows", "fine"),
    [
        ("final.pictures, classes 3 5 and dustbin", "pictures, rows abc", True),
        ("final.pictures, classes 3 5 and dustbin", "train", False),
        ("final.test_pictures, classes 3 5 and dustbin", "pictures, rows abc", False),
        ("final.pictures, permuted within classes", "pictures, rows abc", False),
    ],
)
def test_the_targets_of_a_specialist_are_the_generalists_of_the_same_pictures(part, rows, fine):
    run = "b" * 16
    faults = of(part, run, "soft_specialist_0", {"generalist": f"{run}/final"}, {}, rows)
    assert (not faults) == fine


def test_an_arm_of_a_fixed_seed_has_that_seed_and_no_other():
    name = next(arm.name for arm in EXPERIMENT.arms if arm.seed == 100)

    def faults(seed):
        description = {"data": "d", "config": {}, "protocol": 1}
        line = {"arms": {name: "final"}, "seed": seed, "profile": "choice", "description": description}
        line |= {"data_name": "MNIST", "history": [{"training_loss": 1.0}], "metrics": {"final": {}}}
        return [str(fault) for fault in records._together(EXPERIMENT, [json.loads(json.dumps(line))])]

    assert not faults(100)
    assert "expected 100, found 0" in faults(0)[0]


def test_counts_of_errors_are_those_of_the_confusion_matrix():
    rows = [[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [1, 0, 0, 3]]
    right = {"confusion": rows, "errors": 2, "threes_accuracy": 0.75, "accuracy": 14 / 16}
    assert not list(records._of_confusion("run", right))
    for change in ({"errors": 3}, {"threes_accuracy": 0.5}):
        assert len(list(records._of_confusion("run", right | change))) == 1


def test_all_test_digits_are_the_same_and_runs_of_pictures_have_none():
    def line(arm, run, **metrics):
        described = {"description": {"data": "d", "config": {}, "protocol": 1}, "data_name": "MNIST", "history": []}
        return {
            "arms": {arm: "final"},
            "run": run,
            "seed": 0,
            "profile": "quick",
            "metrics": {"final": metrics},
        } | described

    def faults(other):
        lines = [line("teacher", "a", confusion=[[3, 1], [0, 4]]), line("specialist_0", "b"), other]
        return [str(fault) for fault in records._together(EXPERIMENT, lines)]

    assert not faults(line("distilled", "c", confusion=[[2, 2], [1, 3]]))
    assert "test examples of each class" in faults(line("distilled", "c", confusion=[[2, 1], [1, 3]]))[0]
