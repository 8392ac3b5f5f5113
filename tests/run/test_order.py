"""The order of work: the arms as they are named, seeds or arms outermost; it changes no id, no group and no record."""

from __future__ import annotations

import itertools
import random

import pytest

from kdlib.errors import KDError
from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import changed, module_of
from tests.run.test_groups import TEACHER, grouped, planned

CPU = Compute()


def planned_arms(experiment, *names, seeds=(0, 1), **rest):
    jobs = plan(experiment, experiment.profile("quick"), names, seeds, CPU, {}, **rest)
    return [f"{job.arms[0]} {job.description.seed}" for job in jobs]


def test_arms_are_in_the_order_of_their_names_and_each_follows_its_parents(toy):
    assert planned_arms(toy, "baseline", "distilled", seeds=(0,)) == ["baseline 0", "teacher 0", "distilled 0"]
    assert planned_arms(toy, "distilled", "baseline", seeds=(0,)) == ["teacher 0", "distilled 0", "baseline 0"]
    assert planned_arms(toy, "baseline", "grandchild", "teacher", seeds=(0,)) == [
        "baseline 0",
        "teacher 0",
        "assistant 0",
        "grandchild 0",
    ]


def test_seeds_are_outermost_unless_arms_are_asked_for(toy):
    names = ("distilled", "baseline")
    by_seed = [f"{arm} {seed}" for seed in (2, 0) for arm in ("teacher", "distilled", "baseline")]
    by_arm = [f"{arm} {seed}" for arm in ("teacher", "distilled", "baseline") for seed in (2, 0)]
    assert planned_arms(toy, *names, seeds=(2, 0)) == planned_arms(toy, *names, seeds=(2, 0), order="seeds") == by_seed
    assert planned_arms(toy, *names, seeds=(2, 0), order="arms") == by_arm


def test_another_order_is_refused(toy):
    with pytest.raises(KDError, match="order: expected seeds or arms, found 'random'"):
        planned_arms(toy, "baseline", order="random")


def test_the_run_of_a_fixed_seed_comes_when_it_is_first_needed(toy, monkeypatch):
    module = module_of("toy")
    arms = (
        Arm("one_teacher", (), module.train_teacher, seed=0),
        *toy.arms,
        Arm("of_one", (), module.train_distilled, {"teacher": "one_teacher"}),
    )
    several = changed(monkeypatch, "toy", arms=arms)
    expected = ["baseline 3", "one_teacher 0", "of_one 3", "baseline 4", "of_one 4"]
    assert planned_arms(several, "baseline", "of_one", seeds=(3, 4)) == expected


def test_in_random_graphs_the_order_moves_no_run_and_parents_come_first():
    for number in range(60):
        draws, arms = random.Random(number), [TEACHER]
        for place in range(draws.randrange(1, 8)):
            parent = draws.choice(arms).name
            arms.append(grouped(f"a{place}", parent, alpha=place / 10, rate=draws.choice((0.01, 0.02))))
        seeds, replicas = range(draws.randrange(1, 4)), draws.randrange(1, 5)
        names = [arm.name for arm in arms]
        draws.shuffle(names)
        found = []
        for order, chosen in itertools.product(("seeds", "arms"), ([arm.name for arm in arms], names)):
            jobs = planned(*arms, seeds=seeds, replicas=replicas, order=order, names=chosen)
            seen = set()
            for job in jobs:
                assert {run for run, _ in job.parents.values()} <= seen
                seen.add(job.description.id)
            # Also the order within a group, because it names the group's work folder.
            members = {}
            for job in jobs:
                members.setdefault(job.group, []).append(job.description.id)
            members.pop("", None)
            found.append(({job.description.id: job for job in jobs}, members))
        assert all(one == found[0] for one in found)


def test_runs_are_begun_in_the_order_of_the_plan(toy, tmp_path):
    jobs = plan(toy, toy.profile("quick"), ("distilled", "baseline"), (0, 1), CPU, {}, order="arms")
    begun = []
    execute(
        jobs,
        Store(tmp_path),
        compute=CPU,
        folders={},
        report=lambda event: begun.append(event.job) if event.kind == "started" else None,
    )
    assert begun == jobs
