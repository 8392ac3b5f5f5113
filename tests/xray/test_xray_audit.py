"""The audit of x-ray runs: test pictures of each seed, one teacher that is measured on them, runs without weights."""

import copy
import json
from dataclasses import asdict, replace

import pytest

from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, Profile, load_experiment
from kdlib.run.plan import plan
from kdlib.run.records import record_of
from kdlib.run.store import Store
from replications.xray import experiment as xray
from tests.audit import provenance, records

EXPERIMENT = load_experiment("xray")
PROFILE = Profile(replace(xray.SMOKE, epochs=1, steps=2, batch=4), seeds=2, synthetic=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The finished runs of two seeds, each with the arms that it serves."""
    store, found = Store(tmp_path_factory.mktemp("store")), {}
    for seed in (0, 1):
        jobs = plan(EXPERIMENT, PROFILE, ["teacher_tested", "distilled_T_2"], [seed], Compute(), {})
        summary = execute(jobs, store, compute=Compute(), folders={})
        assert not summary.failed, summary.failed
        found |= {job.description.id: (summary.finished[job.description.id], job.arms) for job in jobs}
    return list(found.values())


@pytest.fixture
def lines(trained):
    made = [record_of(run, "smoke", dict.fromkeys(arms, "final"), "synthetic x-rays") for run, arms in trained]
    return {(next(iter(record.arms)), record.seed): json.loads(json.dumps(asdict(record))) for record in made}


def faults_of(lines):
    runs = {line["run"]: line for line in lines.values()}
    found = [fault for line in runs.values() for fault in records._measured(f"run {line['run']}", line, runs)]
    return [str(fault) for fault in [*found, *provenance.check_weights(list(runs.values()), {})]]


@pytest.mark.slow
def test_the_runs_of_two_seeds_are_without_fault(lines):
    assert {*lines} == {
        ("teacher", 0),
        *((arm, seed) for arm in ("teacher_tested", "distilled_T_2") for seed in (0, 1)),
    }
    assert not faults_of(lines)


@pytest.mark.slow
def test_a_student_is_compared_with_the_teacher_on_the_pictures_of_its_seed(lines):
    metrics = lines["teacher_tested", 1]["metrics"]["final"]
    student = lines["distilled_T_2", 1]["metrics"]["final"]
    student |= {**copy.deepcopy(metrics), "epochs": student["epochs"]}
    assert not faults_of(lines)
    student["entropy"] += 0.01
    assert any("entropy less its teacher's" in fault for fault in faults_of(lines))


def test_the_metrics_of_a_teacher_are_of_pictures_that_its_kept_logits_are_of(trained):
    teacher = next(run for run, arms in trained if "teacher" in arms)
    record = {"run": teacher.id, "metrics": copy.deepcopy(teacher.metrics)}
    assert not list(provenance._of_logits(teacher.folder, record, rounded=True))
    rare = teacher.soft_targets("final.others").argmax(1).bincount(minlength=3).argmin()
    record["metrics"]["final"]["confusion"] = [[9 * (k == rare) for k in range(3)]] * 3
    (fault,) = provenance._of_logits(teacher.folder, record, rounded=True)
    assert "predictions that are not its logits'" in str(fault)
