"""Generalist and specialists on pictures: subsets, pictures and targets of a specialist, and both together."""

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import nn

from kdlib.files import tensor_digest
from kdlib.networks import parameter_count
from kdlib.seeds import generator
from kdlib.training import evaluating
from replications.hinton import clusters, experiment, specialists
from tests.hinton.tiny import tiny_run
from tests.made_runs import batches_of, with_parents

ARMS = {arm.name: arm for arm in experiment.ARMS}
SUBSETS = [(3, 5, 7), (1, 9), (0, 8)]
PICTURES = {"cifar_pictures": 200, "cifar_test_pictures": 40, "picture_epochs": 1, "specialist_epochs": 2, "batch": 20}


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(specialists, "confusable", lambda probs, run: SUBSETS)
    return {}


def run_of(arm, known, **change):
    """A run of an arm, with parents of the same small configuration."""
    small = replace(experiment.PROFILES["smoke"], config=tiny_run(**PICTURES).config)
    tiny = replace(experiment.EXPERIMENT, profiles={**experiment.PROFILES, "smoke": small})
    return with_parents(tiny, ARMS[arm], tiny_run(**PICTURES, **ARMS[arm].change, **change), known)


def test_the_network_is_that_of_separate_layers():
    model = specialists.he_normal_(specialists.PictureNetwork(), generator(0, "w"))
    assert parameter_count(model) == 32 * 76 + 48 * 289 + 64 * 433 + 128 * 1025 + 10 * 129 == 176_506
    x = torch.randint(256, (5, 3, 32, 32), generator=generator(0, "x"), dtype=torch.uint8)
    w = {name: value.double() for name, value in model.state_dict().items()}
    h = nn.functional.conv2d(x.double() / 255, w["conv1.weight"], w["conv1.bias"], stride=2, padding=2).relu()
    for name in ("conv2", "conv3"):
        h = nn.functional.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], padding=1).relu()
        h = nn.functional.max_pool2d(h, 2)
    h = (h.flatten(1) @ w["hidden.weight"].T + w["hidden.bias"]).relu()
    with evaluating(model):
        torch.testing.assert_close(model(x).double(), h @ w["output.weight"].T + w["output.bias"], rtol=1e-4, atol=1e-4)


def test_subsets_are_confused_classes_of_two_to_four():
    """Classes 0, 1 and 2, 3 and 4, 5, 6, 7 are confused with each other; 8 and 9 with none."""
    found = clusters.confusable(confused([(0, 1), (2, 3), (4, 5, 6, 7), (8,), (9,)]), tiny_run())
    assert found == [(4, 5, 6, 7), (0, 1), (2, 3)]


def test_a_large_cluster_is_clustered_again():
    found = clusters.halved(confused([(2, 5, 7), (3, 4, 8), (0,), (1,), (6,), (9,)]), (2, 3, 4, 5, 7, 8), tiny_run())
    assert sorted(found) == [(2, 5, 7), (3, 4, 8)]
    assert clusters.halved(torch.zeros(0, 10), (1, 2, 3, 4), tiny_run()) == [(1, 2, 3, 4)]


def confused(blocks):
    """Predictions (N, 10) of a network that confuses the classes of each block."""
    draws, labels = generator(0, "x"), torch.arange(3000) % 10
    logits = 0.3 * torch.randn(3000, 10, generator=draws)
    for block in blocks:
        rows = torch.isin(labels, torch.tensor(block)).nonzero()
        logits[rows, torch.tensor(block)] += 6 + 2 * torch.randn(len(rows), len(block), generator=draws)
    return logits.softmax(1)


def test_three_subsets_are_found_where_kmeans_splits_off_one_class_after_the_other(monkeypatch):
    """As it does for a generalist that is sure of its training pictures: variances are far above covariances."""

    def peeled(probs, count, draws):
        return [*((k,) for k in range(count - 1)), tuple(range(count - 1, probs.shape[1]))]

    monkeypatch.setattr(clusters, "kmeans_clusters", peeled)
    found = clusters.confusable(confused([(0, 3, 8), (1, 2), (4, 5, 6, 7)]), tiny_run())
    assert found[0] in ((4, 5, 6, 7), (0, 3, 8, 9))
    assert {*map(len, found)} == {2, 4}
    assert (1, 2) in found


def test_the_best_partition_has_the_lowest_objective_of_kmeans():
    """Against scikit-learn's own inertia of each labelling into three subsets of 2 to 4."""
    columns = confused([(0, 4, 8), (1, 2), (3, 5, 6), (7, 9)]).double().t().cov().numpy()
    labels = np.array([each for each in product(range(3), repeat=10) if set(Counter(each).values()) <= {2, 3, 4}])
    labels = labels[[len({*row}) == 3 for row in labels]]
    assert len(labels) == 3675 * 6  # each partition in six orders
    inertia = np.zeros(len(labels))
    for part in range(3):
        inside = (labels == part)[..., None]
        mean = (inside * columns).sum(1) / inside.sum(1)
        inertia += (((columns - mean[:, None]) ** 2) * inside).sum((1, 2))
    best = labels[inertia.argmin()]
    expected = sorted(tuple(np.flatnonzero(best == part).tolist()) for part in range(3))
    found = clusters.best_partition(confused([(0, 4, 8), (1, 2), (3, 5, 6), (7, 9)]))
    assert sorted(found) == expected
    assert len({*map(frozenset, clusters.partitions(tuple(range(10)), 3))}) == 3675


@pytest.mark.parametrize("number", range(3))
def test_a_specialist_sees_half_of_its_classes_and_half_of_the_others(number, known, monkeypatch):
    run = run_of(f"specialist_{number}", known)
    with monkeypatch.context() as patched:
        run = replace(run, config=replace(run.config, specialist_epochs=1), trainings=[])
        seen = batches_of(specialists.train_specialist, run, patched)
    subset = SUBSETS[number]
    own = seen.labels < len(subset)
    assert own.sum() == (~own).sum() == 20 * len(subset)
    source = {picture.numpy().tobytes(): row for row, picture in enumerate(run.data.pictures.inputs)}
    labels = run.data.pictures.labels[[source[picture.numpy().tobytes()] for picture in seen.inputs]]
    assert [subset[label] for label in seen.labels[own]] == labels[own].tolist()
    assert not set(labels[~own].tolist()) & set(subset)
    assert seen.soft is None


def test_a_specialist_starts_from_the_generalist(known):
    run = run_of("specialist_1", known)
    specialists.train_specialist(run)
    general = known["generalist"].weights("final")
    begun = specialists.generalist(run)
    begun.output = specialists.specialist_head(begun.output, SUBSETS[1])
    (trace,) = run.trainings[0].traces
    assert trace["start"] == tensor_digest(begun.state_dict())
    for name, value in begun.state_dict().items():
        if not name.startswith("output"):
            assert torch.equal(value, general[name])


def test_the_soft_targets_are_the_generalists_with_the_rest_summed_in_the_specialists_proportions(known, monkeypatch):
    run = run_of("soft_specialist_0", known)
    with monkeypatch.context() as patched:
        run = replace(run, config=replace(run.config, specialist_epochs=1), trainings=[])
        seen = batches_of(specialists.train_soft_specialist, run, patched)
    source = {picture.numpy().tobytes(): row for row, picture in enumerate(run.data.pictures.inputs)}
    rows = [source[picture.numpy().tobytes()] for picture in seen.inputs]
    logits = known["generalist"].soft_targets("final.pictures")[rows].double().numpy()
    rest = [k for k in range(10) if k not in SUBSETS[0]]
    probs = np.exp(logits)
    wanted = np.concatenate([probs[:, list(SUBSETS[0])], probs[:, rest].sum(1, keepdims=True)], 1)
    wanted[:, -1] *= 3 / 7  # 3 of 10 classes are half of the pictures: oversampled 7 to 3
    found = softmax(seen.soft.double().numpy(), 1)
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), rtol=1e-4)


def test_a_kept_specialist_is_corrected_for_its_pictures(known):
    run = run_of("specialist_1", known)
    result = specialists.train_specialist(run)
    model = specialists.generalist(run)
    model.output = specialists.specialist_head(model.output, SUBSETS[1])
    model.load_state_dict(result.weights["final"])
    with evaluating(model):
        logits = model(run.data.test_pictures.inputs)
    logits[:, -1] += np.log(8 / 2)
    assert result.metrics["final"]["oversampled"] == pytest.approx(4)
    torch.testing.assert_close(result.soft_targets["final.test_pictures"], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_both_together_are_nearest_to_the_generalist_and_the_active_specialists(n, known):
    run = run_of(f"specialists_n{n}", known)
    result = specialists.combine(run)
    found = result.weights["final"]["log_probs"].double().numpy()
    general = log_softmax(known["generalist"].soft_targets("final.test_pictures").double().numpy(), 1)
    special = [
        log_softmax(known[f"specialist_{m}"].soft_targets("final.test_pictures").double().numpy(), 1) for m in range(3)
    ]
    asked = 0
    for row in range(40):
        top = set(np.argsort(-general[row])[:n].tolist())
        active = [m for m in range(3) if top & set(SUBSETS[m])]
        asked += len(active)
        if row % 8:
            continue

        def divergence(z, row=row, active=active):
            q = softmax(z)
            total = np.sum(np.exp(general[row]) * (general[row] - np.log(q)))
            for m in active:
                folded = np.append(q[list(SUBSETS[m])], 1 - q[list(SUBSETS[m])].sum())
                total += np.sum(np.exp(special[m][row]) * (special[m][row] - np.log(folded)))
            return total

        wanted = minimize(divergence, general[row], method="BFGS", options={"gtol": 1e-8}).x
        np.testing.assert_allclose(np.exp(found[row]), softmax(wanted), atol=1e-4)
    labels = run.data.test_pictures.labels.numpy()
    assert result.metrics["final"]["accuracy"] == pytest.approx((found.argmax(1) == labels).mean())
    assert result.metrics["final"]["asked"] == pytest.approx(asked / 40)
    gaps = [known[f"specialist_{m}"].metrics["final"]["gap"] for m in range(3)]
    assert result.metrics["final"]["gap"] == pytest.approx(np.mean(gaps))


def test_the_accuracy_of_a_specialist_counts_both_halves_alike():
    labels = torch.tensor([0, 1, 2, 2, 2, 2])
    logits = nn.functional.one_hot(torch.tensor([0, 0, 2, 2, 2, 1]), 3).float()
    assert specialists.half_and_half(logits, labels) == pytest.approx((1 / 2 + 3 / 4) / 2)
