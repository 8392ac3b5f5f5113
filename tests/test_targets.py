"""Soft targets, their sham, and distributions made without a trained teacher."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import gmean

from kdlib.errors import KDError
from kdlib.probabilities import ProbabilitiesAsLogits
from kdlib.seeds import generator
from kdlib.targets import (
    SoftTargets,
    ensemble_targets,
    mean_of_distributions,
    mix_logits,
    smoothed_labels,
    virtual_teacher,
)

N, K = 40, 5


@pytest.fixture
def logits():
    return torch.tensor(np.random.default_rng(1).normal(0, 3, (N, K)))


@pytest.fixture
def labels():
    return torch.tensor(np.random.default_rng(2).integers(K, size=N))


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_probabilities(logits, temperature):
    probs = SoftTargets(logits, "run", "data").probabilities(temperature)
    np.testing.assert_allclose(probs, softmax(logits.numpy() / temperature, 1), rtol=1e-12)


def test_sham_permutes_within_classes_only(labels):
    soft = SoftTargets(torch.arange(N).view(N, 1), "run", "data", "shifted")
    sham = soft.permuted_within_classes(labels, generator(0, "sham"))
    source = sham.logits[:, 0]
    assert sorted(source.tolist()) == list(range(N))
    assert torch.equal(labels[source], labels)
    assert (source != torch.arange(N)).sum() > N / 2
    assert (sham.teacher_run, sham.data_digest, sham.view) == ("run", "data", "shifted")
    assert soft.logits[:, 0].tolist() == list(range(N))
    again = soft.permuted_within_classes(labels, generator(0, "sham"))
    assert torch.equal(again.logits, sham.logits)
    other = soft.permuted_within_classes(labels, generator(1, "sham"))
    assert not torch.equal(other.logits, sham.logits)


def test_sham_takes_every_permutation_of_a_class_equally_often():
    soft, labels = SoftTargets(torch.arange(5).view(5, 1), "run", "data"), torch.tensor([1, 0, 1, 0, 1])
    stream = generator(0, "sham")
    drawn = [tuple(soft.permuted_within_classes(labels, stream).logits[:, 0].tolist()) for _ in range(1200)]
    counts = [drawn.count(permutation) for permutation in set(drawn)]
    assert len(counts) == 12  # 3! x 2!
    assert max(abs(count - 100) for count in counts) < 45  # 4.5 standard deviations


def test_sham_refuses_labels_of_another_length(logits, labels):
    with pytest.raises(KDError, match="one per soft target"):
        SoftTargets(logits, "run", "data").permuted_within_classes(labels[1:], generator(0, "sham"))
    with pytest.raises(KDError, match="one per soft target"):  # an unlabelled transfer set
        SoftTargets(logits, "run", "data").permuted_within_classes(labels.new_empty(N, 0), generator(0, "sham"))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 20.0])
def test_means_of_distributions_at_the_temperature_that_is_used(logits, temperature):
    members = [logits, logits.flip(0), 2 * logits.roll(1, 1) + 9]
    probs = np.stack([softmax(member.numpy() / temperature, 1) for member in members])
    arithmetic = mean_of_distributions(members, "arithmetic", temperature).numpy()
    np.testing.assert_allclose(softmax(arithmetic / temperature, 1), probs.mean(0), rtol=1e-11)
    geometric = gmean(probs, axis=0)
    np.testing.assert_allclose(
        softmax(mean_of_distributions(members, "geometric", temperature).numpy() / temperature, 1),
        geometric / geometric.sum(1, keepdims=True),
        rtol=1e-11,
    )


def test_only_the_geometric_mean_holds_at_every_temperature(logits):
    members = [logits, logits.flip(0), 2 * logits.roll(1, 1) + 9]
    for kind, close in (("geometric", True), ("arithmetic", False)):
        one, other = (
            softmax(mean_of_distributions(members, kind, temperature).numpy() / 20, 1) for temperature in (1.0, 20.0)
        )
        assert np.allclose(one, other, rtol=1e-10) == close
        assert close or np.abs(one - other).max() > 0.02


def members_of(logits, **change):
    made = {"teacher_run": "run 1", "data_digest": "data", "view": "plain", "part": "final.train"}
    other = {**made, "teacher_run": "run 2", **change}
    return [SoftTargets(logits, **made), SoftTargets(logits.flip(0), **other)]


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_soft_targets_of_an_ensemble_say_where_they_come_from(logits, kind):
    members = members_of(logits)
    soft = ensemble_targets(members, kind, 4.0)
    probs = np.stack([softmax(member.logits.numpy() / 4, 1) for member in members])
    mean = probs.mean(0) if kind == "arithmetic" else gmean(probs, axis=0)
    np.testing.assert_allclose(soft.probabilities(4.0), mean / mean.sum(1, keepdims=True), rtol=1e-11)
    assert (soft.teacher_run, soft.data_digest, soft.view) == ("run 1 + run 2", "data", "plain")
    assert soft.part == f"{kind} mean of 2 at temperature 4: final.train"
    again = ensemble_targets(members, kind, 2.0)
    assert again.part != soft.part
    np.testing.assert_allclose(ensemble_targets(members[:1], kind, 4.0).probabilities(4.0), probs[0], rtol=1e-11)


def test_an_ensemble_refuses_members_of_other_examples(logits):
    for change in ({"data_digest": "other data"}, {"view": "shifted"}, {"logits": logits[1:]}):
        members = members_of(logits, **{name: value for name, value in change.items() if name != "logits"})
        members[1] = SoftTargets(change.get("logits", logits), "run 2", members[1].data_digest, members[1].view)
        with pytest.raises(KDError, match="same examples, view and shape"):
            ensemble_targets(members, "arithmetic", 4.0)
    with pytest.raises(KDError, match="no member"):
        ensemble_targets([], "arithmetic", 4.0)


def test_selected_targets_are_those_of_the_rows(logits):
    soft, rows = SoftTargets(logits, "run", "data", "shifted", "final.train"), torch.tensor([7, 3, 3, 30])
    chosen = soft.select(rows)
    assert torch.equal(chosen.logits, logits[[7, 3, 3, 30]])
    assert (chosen.teacher_run, chosen.view, chosen.part) == ("run", "shifted", "final.train")
    mask = torch.arange(N) % 3 == 1
    assert torch.equal(soft.select(mask).logits, logits[1::3])
    assert soft.select(mask).data_digest == soft.select(torch.arange(1, N, 3)).data_digest
    digests = {soft.select(rows.roll(shift)).data_digest for shift in range(4)} | {"data"}
    assert len(digests) == 5
    with pytest.raises(KDError, match=f"mask of shape \\({N},\\)"):
        soft.select(mask[1:])


def test_means_are_finite_at_huge_logits_and_refuse_another_kind():
    members = [torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]])]
    arithmetic = mean_of_distributions(members, "arithmetic")
    assert torch.isfinite(arithmetic).all()
    np.testing.assert_allclose(arithmetic.softmax(-1), [[0.5, 0.5, 0.0]])
    assert torch.isfinite(mean_of_distributions(members, "geometric")).all()
    with pytest.raises(KDError, match="harmonic"):
        mean_of_distributions(members, "harmonic")


def test_mix_logits_mixes_the_distributions(logits):
    weight = torch.linspace(0, 1, N, dtype=torch.float64)
    other = 2 * logits.flip(0) + 5
    share = weight.numpy()[:, None]
    expected = share * softmax(logits.numpy(), 1) + (1 - share) * softmax(other.numpy(), 1)
    np.testing.assert_allclose(softmax(mix_logits(logits, other, weight).numpy(), 1), expected, rtol=1e-12)


def test_mix_logits_is_finite_at_huge_logits_and_weights_0_and_1():
    first, second = torch.tensor([[1e4, -1e4, 0.0]] * 4), torch.tensor([[-1e4, 1e4, 0.0]] * 4)
    mixed = mix_logits(first, second, torch.tensor([0.0, 1.0, 0.25, 1e-30]))
    assert torch.isfinite(mixed).all()
    np.testing.assert_allclose(mixed.softmax(-1)[:3], [[0, 1, 0], [1, 0, 0], [0.25, 0.75, 0]], rtol=1e-6)


def test_smoothed_labels(labels):
    expected = np.full((N, K), 0.1 / K)
    expected[np.arange(N), labels] += 0.9
    np.testing.assert_allclose(smoothed_labels(labels, K, 0.1), expected, rtol=1e-6)
    np.testing.assert_array_equal(smoothed_labels(labels, K, 0.0), np.eye(K)[labels])


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_virtual_teacher_has_its_distribution_at_its_temperature(labels, temperature):
    soft = SoftTargets(virtual_teacher(labels, K, 0.9, temperature), "none", "data")
    expected = np.full((N, K), 0.1 / (K - 1))
    expected[np.arange(N), labels] = 0.9
    np.testing.assert_allclose(soft.probabilities(temperature), expected, rtol=1e-5)


@pytest.mark.parametrize("certainty", [0.0, 1.0])
def test_virtual_teacher_refuses_a_certain_one(labels, certainty):
    with pytest.raises(KDError, match="0 < correct_probability < 1"):
        virtual_teacher(labels, K, certainty, 1.0)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(6, 0), torch.zeros(6, 2, dtype=torch.complex64), torch.ones(6, 2, dtype=torch.bool)],
    ids=["no class", "complex", "bool"],
)
def test_soft_targets_are_numbers_of_a_class_or_more(logits):
    with pytest.raises(KDError, match="numbers of at least one class"):
        SoftTargets(logits, "teacher", "data")


@pytest.mark.parametrize(("probability", "temperature"), [(0.9, 1e39), (1e-50, 1.0)])
def test_a_virtual_teacher_whose_logits_are_infinite_is_refused(probability, temperature):
    with pytest.raises(KDError, match="whose logits float32 can hold"):
        virtual_teacher(torch.tensor([0, 1]), 3, probability, temperature)


def test_complex_labels_are_no_classes():
    with pytest.raises(KDError, match="expected labels"):
        smoothed_labels(torch.tensor([0j, 1]), 3, 0.1)


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_a_member_whose_logits_are_distributions_is_told(logits, kind):
    """The mean of softmax outputs looks like logits, so nothing behind it can see the fault."""
    members = [SoftTargets(each, "run", "data") for each in (logits, logits.softmax(1))]
    with pytest.warns(ProbabilitiesAsLogits, match="a member of the ensemble are distributions"):
        ensemble_targets(members, kind, 4.0)
    ensemble_targets(members[:1] * 2, kind, 4.0)  # warnings are errors here
