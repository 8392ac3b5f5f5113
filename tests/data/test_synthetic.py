"""The synthetic heartbeats: the form of the real ones; they repeat, and can be learned but not perfectly."""

import numpy as np
import pytest

from kdlib.data import mitdb, synthetic


@pytest.fixture(scope="module")
def beats():
    return synthetic.heartbeats(2500, 0)


def test_form_is_that_of_the_real_set(beats):
    rows, classes, records = beats
    assert (rows.shape, rows.dtype) == ((2500, 187), np.float32)
    assert (classes.shape, classes.dtype) == ((2500,), np.uint8)
    assert (records.shape, records.dtype) == ((2500,), np.int16)
    assert rows.min() == 0.0
    assert rows.max() == 1.0
    assert (rows[:, -1] == 0).mean() > 0.8  # most rows end in padding
    assert (np.diff(records) >= 0).all()


def test_two_calls_give_the_same_bits_and_two_seeds_do_not():
    first, again, other = (synthetic.heartbeats(300, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_class_frequencies_are_near_the_real_ones():
    real = np.array([72_471 + 18_118, 2_223 + 556, 5_788 + 1_448, 641 + 162, 6_431 + 1_608])
    np.testing.assert_allclose(synthetic.class_counts(100_000) / 100_000, real / real.sum(), atol=1e-5)


@pytest.mark.parametrize("count", [5, 40, 300, 2500])
def test_every_class_has_a_handful(count):
    counts = synthetic.class_counts(count)
    assert counts.sum() == count
    assert counts.min() >= min(8, count // 5)


def test_every_split_applies(beats):
    _, classes, records = beats
    split = mitdb.inter_patient_split(classes, records)
    assert min(map(len, split)) > 0
    assert all(np.bincount(classes[part], minlength=5).min() > 0 for part in mitdb.stratified_split(classes, 0))
    paced = np.isin(records, mitdb.PACED)
    assert (classes[paced] == 4).all()
    assert paced.sum() > (classes == 4).sum() / 2


def test_waves_peak_where_the_model_says():
    theta = np.linspace(-np.pi, np.pi, 20_001)
    signal = synthetic._waves(theta, np.ones(5), np.ones(5))
    # By hand, from their Table I: a b^2 is 0.3 for R (30 * 0.01), 0.12 for T, 0.075 for P; R is 1.2 mV.
    # Its neighbours Q and S (a = -5 and -7.5, b = 0.1, pi / 12 away) make R lower.
    tail = np.exp(-((np.pi / 12) ** 2) / 0.02)
    at = {0.0: 0.3 - (0.05 + 0.075) * tail, np.pi / 2: 0.12, -np.pi / 3: 0.075}
    for angle, height in at.items():
        assert signal[np.abs(theta - angle).argmin()] == pytest.approx(4 * height, abs=0.01)


@pytest.mark.slow
def test_classes_can_be_learned_but_not_by_a_linear_glance(beats):
    linear_model = pytest.importorskip("sklearn.linear_model")
    metrics = pytest.importorskip("sklearn.metrics")
    rows, classes, _ = beats
    split = mitdb.stratified_split(classes, 0, (0.6, 0.0, 0.4))
    model = linear_model.LogisticRegression(C=10, solver="newton-cholesky", class_weight="balanced")
    model.fit(rows[split.train], classes[split.train])
    score = metrics.f1_score(classes[split.test], model.predict(rows[split.test]), average="macro")
    always_normal = metrics.f1_score(classes[split.test], 0 * classes[split.test], average="macro")
    assert always_normal + 0.2 < score < 0.9
