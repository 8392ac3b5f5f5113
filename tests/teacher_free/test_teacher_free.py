"""Teacher-free distillation: published cells, graph of arms, runs shared with grid, what each method learns from."""

import math
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from kdlib.judge.reading import load_claims
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.plan import plan
from kdlib.run.store import Store
from kdlib.seeds import generator
from replications.course_report import cifar as course_cifar
from replications.course_report import cifar10_data
from replications.teacher_free import experiment as teacher_free
from tests.audit import traces
from tests.conftest import contents
from tests.made_runs import run_of, taught

EXPERIMENT = load_experiment("teacher_free")
ARMS = {arm.name: arm for arm in EXPERIMENT.arms}
ALPHAS, TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0), (2, 4, 6, 8, 10)
# Experiment 4, accuracy on test in percent: rows alpha, columns T.
TABLE = (
    (88.74, 88.40, 88.34, 88.22, 87.63),
    (88.58, 88.61, 87.87, 87.38, 87.49),
    (88.67, 88.20, 87.81, 87.26, 87.57),
    (88.61, 87.93, 87.47, 86.80, 87.20),
    (88.44, 87.71, 86.95, 86.87, 87.02),
)
RESNET18 = (86.56, 88.30, 88.24, 89.41, 89.09)  # experiment 2, alpha 0.6
TINY = replace(teacher_free.SMOKE, epochs=1, batch=16, train_pictures=48, test_pictures=40)
CPU = Compute()


def name_of(prefix, alpha, temperature):
    return f"{prefix}_alpha_{str(alpha).replace('.', '_')}_T_{temperature}"


CELLS = {name_of("self", alpha, t): (alpha, t) for alpha in ALPHAS for t in TEMPERATURES}
BY_RESNET18 = {name_of("by_resnet18", 0.6, t): (0.6, t) for t in TEMPERATURES}
AGAIN = {name_of("again", alpha, t): (alpha, t) for alpha in (0.2, 0.4, 0.6) for t in (2, 4)}
SCRATCH = ("baseline_64", "baseline", "equal_teacher_64", "equal_teacher")


# ---- the published numbers


@pytest.fixture(scope="module")
def reported():
    return load_claims(EXPERIMENT.folder / "claims.toml", list(ARMS))


def test_every_published_cell_is_in_the_file(reported):
    published = {
        name_of("self", alpha, t): value
        for alpha, row in zip(ALPHAS, TABLE, strict=True)
        for t, value in zip(TEMPERATURES, row, strict=True)
    }
    # One of them the text has otherwise than the code's heat map.
    published |= {"self_alpha_0_2_T_2": 88.7, "teacher": 93.5}
    published |= {"baseline_64": 87.25, "again_alpha_0_4_T_4": 88.84, **dict(zip(BY_RESNET18, RESNET18, strict=True))}
    found = {value.arm: value for value in reported.values.values() if value.metric == "accuracy"}
    assert {arm: value.value for arm, value in found.items()} == pytest.approx(
        {arm: v / 100 for arm, v in published.items()}
    )
    decimals = {arm: 3 if arm in ("self_alpha_0_2_T_2", "teacher") else 4 for arm in published}
    assert {arm: value.decimals for arm, value in found.items()} == decimals
    assert all(round(100 * value.value, value.decimals - 2) == published[arm] for arm, value in found.items())


def test_the_first_claim_is_the_texts_difference(reported):
    claim = reported.claims["C1"]
    assert reported.primary is claim
    assert (claim.kind, claim.reported) == ("effect", pytest.approx((88.7 - 87.25) / 100))
    taught = "self_alpha_0_2_T_2"
    assert {mode: (*arms.arms, *arms.rivals) for mode, arms in claim.modes.items()} == {
        "as described": ("described_alpha_0_2_T_2", "baseline"),
        "as released": (taught, "baseline_64"),
        "controlled": (taught, "baseline_slowed"),
    }


def test_the_trend_runs_from_the_highest_temperature_to_the_lowest(reported):
    """A trend rises along its arms; here accuracy is to fall with T."""
    along = tuple(name_of("self", 0.2, t) for t in (10, 8, 6, 4, 2))
    assert {mode: arms.arms for mode, arms in reported.claims["C2"].modes.items()} == {
        "as released": along,
        "controlled": along,
    }


# ---- the graph of arms


def test_who_teaches_whom():
    teachers = {name: dict(arm.needs) for name, arm in ARMS.items()}
    assert {teachers[name]["teacher"] for name in CELLS} == {"equal_teacher_64"}
    assert {teachers[name]["teacher"] for name in AGAIN} == {"taught_teacher"}
    others = {
        "taught_teacher": "equal_teacher_64",
        "described_alpha_0_2_T_2": "equal_teacher",
        "sham": "equal_teacher_64",
        **dict.fromkeys(BY_RESNET18, "teacher"),
    }
    for name, teacher in others.items():
        assert teachers[name] == {"teacher": teacher}
    alone = {"teacher", "resnet18", *SCRATCH, "baseline_slowed", "smoothed", "virtual_teacher"}
    assert {name for name, needs in teachers.items() if not needs} == alone
    assert ARMS.keys() == {*CELLS, *AGAIN, *others, *alone}
    assert ARMS["teacher"].seed == 0
    assert [name for name, arm in ARMS.items() if arm.seed is not None] == ["teacher"]


def test_cells_have_their_alpha_and_temperature_and_all_else_is_one_protocol():
    """Batch 64 for the released baseline and for the teacher that is one; slower where the released code is slower."""
    constant = {"teacher", "resnet18", *SCRATCH, "described_alpha_0_2_T_2", *BY_RESNET18}
    offsets = {"equal_teacher_64": 10_000, "equal_teacher": 10_000, "taught_teacher": 20_000}
    best = ("described_alpha_0_2_T_2", "smoothed", "virtual_teacher", "sham")
    cells = CELLS | AGAIN | BY_RESNET18 | dict.fromkeys(best, (0.2, 2)) | {"taught_teacher": (0.6, 2)}
    for name, arm in ARMS.items():
        config = EXPERIMENT.config(arm, EXPERIMENT.profile("full"))
        alpha, temperature = cells.get(name, (0.6, 8.0))  # unused where there is no teacher
        expected = replace(
            course_cifar.Config(),
            alpha=alpha,
            temperature=temperature,
            slows=name not in constant,
            batch=64 if name in ("baseline_64", "equal_teacher_64") else 32,
            seed_offset=offsets.get(name, 0),
            precision="bfloat16",
        )
        assert config == expected, name
        exact = EXPERIMENT.config(arm, EXPERIMENT.profile("float32"))
        assert exact == replace(expected, precision="float32"), name
    paper = {
        "epochs": 50,
        "slow_from": 30,
        "learning_rate": 1e-3,
        "share": 1.0,
        "validated": False,
        "soft_weight": 1.0,
        "train_pictures": 50_000,
        "test_pictures": 10_000,
        "recorded_teacher": "",
    }
    assert paper.items() <= asdict(EXPERIMENT.profile("full").config).items()


# ---- runs shared with grid


def planned(experiment, replicas=1):
    """Return the jobs of profile full with two seeds, by arm and seed, on a few synthetic pictures."""
    few = replace(experiment, load_data=lambda config, folders: cifar10_data(None, 20, 10))
    names = [arm.name for arm in few.arms]
    jobs = plan(few, few.profile("full"), names, (0, 1), CPU, {}, replicas)
    return {(name, job.description.seed): job for job in jobs for name in job.arms}


def test_runs_that_grid_needs_too_are_trained_once():
    theirs, ours = planned(load_experiment("grid")), planned(EXPERIMENT)
    for name, seed in (("baseline_64", 0), ("baseline_64", 1), ("baseline", 0), ("baseline", 1), ("teacher", 0)):
        assert ours[name, seed].description.id == theirs[name, seed].description.id


def test_students_of_the_resnet18_are_those_of_grid():
    theirs, ours = planned(load_experiment("grid")), planned(EXPERIMENT)
    for seed in (0, 1):
        for name in BY_RESNET18:
            assert ours[name, seed].description.id == theirs[name.removeprefix("by_resnet18_"), seed].description.id


def test_the_teacher_of_all_students_is_the_resnet18_of_seed_0():
    jobs = planned(EXPERIMENT)
    assert jobs["teacher", 0] is jobs["resnet18", 0]
    assert ("teacher", 1) not in jobs
    for seed in (0, 1):
        assert jobs["by_resnet18_alpha_0_6_T_8", seed].parents["teacher"][0] == jobs["teacher", 0].description.id
        for name, teacher in (("self_alpha_0_2_T_2", "equal_teacher_64"), ("again_alpha_0_4_T_4", "taught_teacher")):
            assert jobs[name, seed].parents["teacher"][0] == jobs[teacher, seed].description.id
    assert jobs["resnet18", 1].description.id != jobs["teacher", 0].description.id


def test_25_replicas_are_the_25_cells_of_a_seed():
    jobs = planned(EXPERIMENT, replicas=25)
    for seed in (0, 1):
        assert len({jobs[name, seed].group for name in CELLS}) == 1
        assert {jobs[name, seed].description.config["replicas"] for name in CELLS} == {25}
    assert jobs["self_alpha_0_2_T_2", 0].group != jobs["self_alpha_0_2_T_2", 1].group
    groups = {}
    for (name, seed), job in jobs.items():
        if job.group:
            groups.setdefault(job.group, set()).add((name, seed))
    members = [{name for name, _ in group} for group in groups.values()]
    others = (
        *SCRATCH,
        "taught_teacher",
        "baseline_slowed",
        "described_alpha_0_2_T_2",
        "smoothed",
        "virtual_teacher",
        "sham",
    )
    by_seed = [[name] for name in others]  # groups of the seeds of one arm
    assert sorted(map(sorted, members)) == sorted(map(sorted, [BY_RESNET18, AGAIN, CELLS, CELLS, *by_seed]))


# ---- what is learned from


def run_of_arm(name, base, seed=0):
    """The arm's run; its teacher, where it needs one, has kept made-up logits."""
    arm = ARMS[name]
    change = {key: value for key, value in arm.change.items() if key != "batch"}
    run = run_of(EXPERIMENT, replace(base, **change), seed)
    return arm, taught(run)[0] if arm.needs else run


@pytest.fixture
def steps(monkeypatch):
    """What each step was given; nothing is trained."""
    seen = []

    def step(model, optimizer, objective, batch):
        rates = {group["lr"] for group in optimizer.param_groups}
        seen.append(SimpleNamespace(model=model, objective=objective, batch=batch, rates=rates))
        return torch.zeros(batch.labels.shape[:-1])  # of students side by side, one each

    monkeypatch.setattr("kdlib.training.train_step", step)
    return seen


def outputs_of(step):
    """A student's logits of the batch, and others, larger ones: float64, with a gradient."""
    with torch.no_grad():
        outputs = step.model(step.batch.inputs).double()
    wild = 5 * torch.randn(outputs.shape, generator=generator(0, "outputs"), dtype=torch.float64)
    return [each.requires_grad_() for each in (outputs, wild)]


def test_an_equal_teacher_shares_no_random_numbers_with_its_students(steps):
    arms = ("self_alpha_0_2_T_2", "equal_teacher_64", "taught_teacher")
    for name in arms:
        arm, run = run_of_arm(name, replace(TINY, epochs=1, batch=1000))
        arm.results([run])
    weights = [step.model.hidden.weight for step in steps]
    order = [step.batch.inputs for step in steps]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert torch.isclose(weights[one], weights[other]).double().mean() < 0.01
        assert not torch.equal(order[one], order[other])
        assert torch.equal(order[one].sum(0), order[other].sum(0))  # the same pictures


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_label_smoothing_is_cross_entropy_with_smoothed_labels_up_to_a_constant(steps, alpha):
    arm, run = run_of_arm("smoothed", TINY)
    assert run.config.alpha == 0.2
    arm.results([replace(run, config=replace(run.config, alpha=alpha))])
    assert sum(len(step.batch.labels) for step in steps) == 48
    for step in steps:
        assert step.batch.soft is None
        smoothed = np.full((len(step.batch.labels), 10), alpha / 10)
        smoothed[np.arange(len(smoothed)), step.batch.labels] += 1 - alpha
        for outputs in outputs_of(step):
            loss = step.objective(outputs, step.batch)
            logs = log_softmax(outputs.detach().numpy(), 1)
            expected = -(smoothed * logs).sum(1).mean() - alpha * math.log(10)
            assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)
            (gradient,) = torch.autograd.grad(loss, outputs)
            np.testing.assert_allclose(gradient, (np.exp(logs) - smoothed) / len(smoothed), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("certainty", "temperature"), [(0.9, 2.0), (0.99, 20.0)])
def test_the_virtual_teacher_is_right_with_its_certainty_before_the_loss_softens_it(steps, certainty, temperature):
    arm, run = run_of_arm("virtual_teacher", TINY)
    assert (run.config.certainty, run.config.alpha, run.config.temperature, run.config.soft_weight) == (
        0.9,
        0.2,
        2.0,
        1.0,
    )
    config = replace(run.config, certainty=certainty, temperature=temperature, soft_weight=1.5)
    arm.results([replace(run, config=config)])
    assert sorted(torch.cat([step.batch.indices for step in steps]).tolist()) == list(range(48))
    for step in steps:
        labels = step.batch.labels.numpy()
        assert torch.equal(step.batch.labels, run.data.train.labels[step.batch.indices])
        manual = np.full((len(labels), 10), (1 - certainty) / 9)  # Yuan et al. 2020, equation 8
        manual[np.arange(len(labels)), labels] = certainty
        np.testing.assert_allclose(softmax(step.batch.soft.double().numpy(), 1), manual, rtol=1e-5)
        teacher = manual ** (1 / temperature)  # a softmax at T of its logarithm
        teacher /= teacher.sum(1, keepdims=True)
        for outputs in outputs_of(step):
            student = outputs.detach().numpy()
            hard = -log_softmax(student, 1)[np.arange(len(labels)), labels].mean()
            soft = (teacher * (np.log(teacher) - log_softmax(student / temperature, 1))).sum(1).mean()
            expected = 0.8 * hard + 1.5 * 0.2 * temperature**2 * soft
            assert step.objective(outputs, step.batch).item() == pytest.approx(expected, rel=1e-5)


def rates_of(steps):
    assert {len(step.rates) for step in steps} == {1}
    return [rate for step in steps for rate in step.rates]


@pytest.mark.parametrize(
    ("name", "slows"),
    [
        ("baseline_64", False),
        ("baseline", False),
        ("equal_teacher_64", False),
        ("equal_teacher", False),
        ("described_alpha_0_2_T_2", False),
        ("by_resnet18_alpha_0_6_T_8", False),
        ("baseline_slowed", True),
        ("self_alpha_0_2_T_2", True),
        ("again_alpha_0_4_T_4", True),
        ("taught_teacher", True),
        ("smoothed", True),
        ("virtual_teacher", True),
        ("sham", True),
    ],
)
def test_the_learning_rate_of_each_epoch(steps, name, slows):
    arm, run = run_of_arm(name, replace(TINY, epochs=5, slow_from=4, batch=48))
    arm.results([run])
    assert rates_of(steps) == pytest.approx([1e-3] * 3 + [1e-4 if slows else 1e-3] * 2)


def test_students_side_by_side_slow_too(steps):
    runs = [run_of_arm(name, replace(TINY, epochs=3, slow_from=3, batch=48))[1] for name in list(CELLS)[:2]]
    ARMS["self_alpha_0_2_T_2"].results(runs)
    assert rates_of(steps) == pytest.approx([1e-3, 1e-3, 1e-4])


# ---- from end to end


@pytest.mark.slow
def test_the_smoke_arms_run_and_the_distilled_one_repeats_to_the_last_byte(tmp_path):
    """On a quarter of the smoke profile's pictures; the last epoch is slowed."""
    profile, store = EXPERIMENT.profile("smoke"), Store(tmp_path)
    profile = replace(profile, config=replace(profile.config, train_pictures=40, epochs=8, slow_from=8))
    jobs = {job.arms: job for job in plan(EXPERIMENT, profile, profile.arms, [0], CPU, {})}
    assert sorted(jobs) == [("described_alpha_0_2_T_2",), ("equal_teacher",), ("virtual_teacher",)]
    summary = execute(list(jobs.values()), store, compute=CPU, folders={})
    assert not summary.failed
    for arms, job in jobs.items():
        run = summary.finished[job.description.id]
        assert [math.isfinite(epoch["training_loss"]) for epoch in run.history] == [True] * 8
        assert run.metrics["final"]["parameters"] == 816_938
        assert ("teacher_kl" in run.metrics["final"]) == (arms == ("described_alpha_0_2_T_2",))
    before = contents(tmp_path)
    shutil.rmtree(store.run_folder(jobs["described_alpha_0_2_T_2",].description.id))
    execute(list(jobs.values()), store, compute=CPU, folders={})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("offset", [0, 10_000])
def test_the_audit_expects_the_dropout_seeds_of_a_teacher_with_an_offset(offset):
    arm, run = run_of_arm("equal_teacher", TINY)
    run = replace(run, config=replace(run.config, seed_offset=offset))
    arm.results([run])
    (trace,) = run.trainings[0].traces
    line = {"seed": run.seed, "history": [{}], "description": {"config": asdict(run.config)}}
    assert traces._layers(line) == trace["epochs"]["layers"]
    other = replace(run.config, seed_offset=1)
    assert traces._layers(line | {"description": {"config": asdict(other)}}) != trace["epochs"]["layers"]
