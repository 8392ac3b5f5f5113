"""Usual slips: arguments of another kind are told with what to write, before anything is trained."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kdlib.augment import balanced_draw, mixup
from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.judge.claims import MODES, SHAM
from kdlib.losses import (
    binary_distillation,
    binary_logit,
    cross_entropy,
    kl_plus_mae,
    label_smoothing,
    logit_matching,
    soft_target_kl,
)
from kdlib.probabilities import ProbabilitiesAsLogits
from kdlib.progress import Progress
from kdlib.run import contradictions
from kdlib.run.loaded import LoadedOnce
from kdlib.run.session import prepare
from kdlib.seeds import generator
from kdlib.specialist_inference import combined_log_probs
from kdlib.specialists import corrected_dustbin, dustbin_logits
from kdlib.targets import SoftTargets, ensemble_targets, mean_of_distributions, mix_logits
from kdlib.training import epochs, hard_targets

INPUTS = torch.randn(12, 4, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, torch.arange(12) % 3)
LOGITS = torch.randn(12, 3, generator=generator(0, "logits"))
SOFT = SoftTargets(LOGITS, "teacher", EXAMPLES.digest)


def train(objective=hard_targets, progress=None, **settings):
    model = nn.Linear(4, 3)
    progress = progress or Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in epochs(progress, Batches(EXAMPLES, 4, 0), objective, count=1, seed=0, **settings):
        pass


MODEL = nn.Linear(4, 3)
SLIPS = {
    "batches without soft targets": (
        lambda: train(lambda outputs, batch: soft_target_kl(outputs, batch.soft, 2.0)),
        r"the batches have no soft targets; give them with Batches\(..., soft=...\)",
    ),
    "logits as soft targets": (
        lambda: Batches(EXAMPLES, 4, 0, LOGITS),
        r"soft: expected SoftTargets, found Tensor; make them with SoftTargets\(",
    ),
    "inputs as examples": (lambda: Batches(INPUTS, 4, 0), "examples: expected Examples, found Tensor; make them with"),
    "an ensemble of logits": (
        lambda: ensemble_targets([LOGITS], "arithmetic", 2.0),
        "members: expected SoftTargets, found Tensor; mean_of_distributions takes logits",
    ),
    "an ensemble of one": (
        lambda: ensemble_targets(SOFT, "arithmetic", 2.0),
        "members: expected list or tuple, found SoftTargets; give the members in a list",
    ),
    "a number of rows to mix": (
        lambda: mixup(64, 0.2, generator(0, "mix")),
        r"expected row numbers \(n,\) or a mask, found one number, 64; for n rows, use torch.arange\(n\)",
    ),
    "one weight for a mixture": (
        lambda: mix_logits(LOGITS, LOGITS, 0.3),
        r"and weights \(N,\), found \(12, 3\), \(12, 3\) and \(\); give a weight for each row",
    ),
    "optimizer first": (
        lambda: Progress(torch.optim.SGD(MODEL.parameters(), lr=0.1), MODEL),
        r"model: expected Module, found SGD; write Progress\(model, optimizer\)",
    ),
    "weights as the optimizer": (
        lambda: Progress(MODEL, MODEL.parameters()),
        "optimizer: expected Optimizer, found generator; write Progress",
    ),
    "the model as progress": (
        lambda: train(progress=MODEL),
        r"progress: expected Progress, found Linear; write epochs\(Progress\(model, optimizer\)",
    ),
    "a loss of torch": (lambda: train(nn.CrossEntropyLoss()), "found CrossEntropyLoss; write lambda outputs, batch: "),
    "no objective": (lambda: train(None), "objective: expected a function of the model's outputs and a Batch, found"),
    "a rate that is none": (lambda: train(rate=lambda epoch: None), "rate: expected a number, found None"),
    "a negative rate": (lambda: train(rate=lambda epoch: -1), "rate: expected a number from 0 and finite, found -1"),
    "a negative count": (
        lambda: balanced_draw([0, 1], -1, 2, generator(0, "draw")),
        "count: expected a whole number of 0 or more, found -1",
    ),
    "classes with a fraction": (
        lambda: balanced_draw([0, 1], 1, 2.0, generator(0, "draw")),
        r"classes: expected a whole number, found 2\.0",
    ),
    "a missing file of data": (
        lambda: LoadedOnce(lambda config, folders: Path("no such file").read_text())(object(), {}),
        r"load_data: expected a function that reads the data, found FileNotFoundError: .*_slips\.py, line \d+",
    ),
}


@pytest.mark.parametrize(("call", "told"), SLIPS.values(), ids=SLIPS)
def test_a_slip_in_the_library_is_told_with_the_remedy(call, told):
    with pytest.raises(KDError, match=told):
        call()


def with_arm(experiment, **changes):
    first, *others = experiment.arms
    return replace(experiment, arms=(replace(first, **changes), *others))


def with_profile(experiment, **changes):
    return replace(
        experiment, profiles={**experiment.profiles, "quick": replace(experiment.profile("quick"), **changes)}
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: with_arm(e, modes="sham"), r"expected a tuple of modes \(as described, .*\), found 'sham'"),
        (lambda e: with_arm(e, modes=("as-described",)), "found .'as-described'"),
        (lambda e: with_arm(e, needs=["teacher"]), "expected needs such as {'teacher': 'teacher'}, found"),
        (lambda e: replace(e, metrics="accuracy"), "metrics: expected a tuple of names, found a text; write a comma"),
        (
            lambda e: with_profile(e, seeds=1.5),
            r"profile quick: seeds: expected a whole number of 1 or more, found 1\.5",
        ),
        (
            lambda e: with_profile(e, seeds="2"),
            "profile quick: seeds: expected a whole number of 1 or more, found '2'",
        ),
    ],
)
def test_a_slip_in_an_experiment_is_told(toy, change, told):
    with pytest.raises(KDError, match=told):
        change(toy)


ONE = Batch(INPUTS, EXAMPLES.labels, torch.arange(12), LOGITS)
LOSSES = {
    "cross-entropy": lambda outputs, batch: cross_entropy(outputs, batch.labels),
    "soft targets": lambda outputs, batch: soft_target_kl(outputs, batch.soft, 2.0),
    "mean of probabilities": lambda outputs, batch: kl_plus_mae(outputs, batch.soft, 0.1),
    "logits": lambda outputs, batch: logit_matching(outputs, batch.soft),
}


@pytest.mark.parametrize("objective", LOSSES.values(), ids=LOSSES.keys())
def test_a_student_that_ends_in_a_softmax_is_told_in_its_first_step(objective):
    model = nn.Sequential(MODEL, nn.Softmax(1))
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of the student are distributions: .* its last softmax"):
        objective(model(INPUTS), ONE)
    with pytest.warns(ProbabilitiesAsLogits, match="the student"):  # students side by side
        torch.vmap(lambda outputs: objective(outputs, ONE))(torch.stack([model(INPUTS)] * 2))
    for fine in (MODEL(INPUTS), model(INPUTS).log(), torch.eye(3)[EXAMPLES.labels]):  # no warning, which would fail
        objective(fine, ONE)


def test_probabilities_of_two_classes_and_of_a_sigmoid_are_told():
    logits = 3 * torch.randn(64, 2, generator=generator(0, "two"))
    labels = torch.arange(64) % 2
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of the network are distributions"):
        binary_logit(logits.softmax(1))
    student = torch.linspace(-0.1, 0.9, 64)
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of the teacher are all from 0 to 1, on both sides of"):
        binary_distillation(student, binary_logit(logits).sigmoid(), labels, 0.5)
    # No warning, which would fail: logits, those of a teacher that is sure of one class, few ones, and labels.
    for fine in (binary_logit(logits), torch.linspace(0.6, 0.9, 64), torch.linspace(0.0, 1.1, 64), labels.float()):
        binary_distillation(student, fine, labels, 0.5)
    binary_distillation(student[:4], torch.tensor([0.2, 0.4, 0.6, 0.8]), labels[:4], 0.5)


@pytest.mark.parametrize("last", [nn.Flatten(0), nn.Identity()])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_student_that_ends_in_a_sigmoid_is_told_whatever_its_logits_are(last, kind):
    torch.manual_seed(0)
    body, inputs = nn.Linear(4, 1).to(kind), torch.full((2, 4), 0.1, dtype=kind)
    model = nn.Sequential(body, nn.Sigmoid(), last)
    other = torch.zeros_like(model(inputs).detach())
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of the student come from a sigmoid"):
        binary_distillation(model(inputs), other, other.long(), 0.5)
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of the student come from a sigmoid"):
        torch.vmap(lambda outputs: binary_distillation(outputs, other, other.long(), 0.5))(model(inputs)[None])
    # No warning, which would fail: a gate within the network, and first logits near a half.
    gated = nn.Sequential(body, nn.Sigmoid(), nn.Linear(1, 1, dtype=kind), last)
    half = last(torch.linspace(0.4, 0.6, 64, requires_grad=True).view(64, 1))
    binary_distillation(gated(inputs), other, other.long(), 0.5)
    binary_distillation(half, torch.zeros_like(half).detach(), torch.zeros_like(half).detach(), 0.5)


def test_a_warning_of_a_loss_is_of_the_line_that_calls_it_and_shown_once():
    teacher, labels = torch.rand(40, 16, generator=generator(0, "rows")), torch.zeros(16).long()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for row in teacher:
            binary_distillation(torch.zeros(16), row, labels, 0.5)
    assert [each.filename for each in told] == [__file__]


def test_few_rows_are_no_distributions_by_chance():
    for rows in torch.rand(20_000, 1, 2, generator=generator(0, "rows")):
        cross_entropy(rows, torch.tensor([0]))  # a warning would fail


SIX = 3 * torch.randn(64, 6, generator=generator(0, "six"))
SUBSET = (0, 1, 2)
ACTIVE = torch.ones(64, 1, dtype=torch.bool)
TAKERS_OF_LOGITS = {
    "a binary logit": lambda z: binary_logit(z[:, :2] if (z < 0).any() else z[:, :2] / z[:, :2].sum(1, keepdim=True)),
    "label smoothing": lambda z: label_smoothing(z, torch.zeros(64).long(), 0.1),
    "a mixture's first": lambda z: mix_logits(z, SIX, torch.full((64,), 0.5)),
    "a mixture's second": lambda z: mix_logits(SIX, z, torch.full((64,), 0.5)),
    "probabilities of soft targets": lambda z: SoftTargets(z, "run", "data").probabilities(4.0),
    "members of an ensemble": lambda z: mean_of_distributions([SIX, z], "arithmetic"),
    "the dustbin class": lambda z: dustbin_logits(z, SUBSET),
    "a corrected dustbin class": lambda z: corrected_dustbin(z, 2.0),
    "a generalist": lambda z: combined_log_probs(z, [SIX[:, :4]], [SUBSET], ACTIVE),
    "a specialist": lambda z: combined_log_probs(SIX, [z[:, :4] / (z[:, :4].sum(1, keepdim=True))], [SUBSET], ACTIVE),
}


@pytest.mark.parametrize("take", TAKERS_OF_LOGITS.values(), ids=TAKERS_OF_LOGITS)
def test_whoever_takes_logits_tells_probabilities(take):
    take(SIX)  # no warning, which would fail
    with pytest.warns(ProbabilitiesAsLogits, match="are distributions"):
        take(SIX.softmax(1))


def test_a_batch_of_probabilities_as_soft_targets_is_told():
    with pytest.warns(ProbabilitiesAsLogits, match="the logits of the teacher are distributions"):
        soft_target_kl(MODEL(INPUTS), LOGITS.softmax(1), 2.0)


def test_names_of_arms_are_a_list():
    with pytest.raises(KDError, match=r"arms: expected names of arms in a list, found a text; write \['teacher'\]"):
        prepare("mnist", arms="teacher")


def test_arms_have_the_modes_of_claims_and_the_sham():
    assert (*MODES, SHAM) == contradictions.MODES
