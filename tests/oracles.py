"""The measures of a run's predictions, computed from their definitions with NumPy and SciPy."""

import numpy as np
import pytest
from scipy.special import log_softmax


def check_predictions(metrics, logits, teacher=None):
    """Check the entropy and, with a teacher, the agreement with it and the divergence from it; logits are (N, K)."""
    log_q = log_softmax(logits.double().numpy(), axis=1)
    assert metrics["entropy"] == pytest.approx(-np.mean(np.sum(np.exp(log_q) * log_q, 1)), rel=1e-5)
    if teacher is None:
        assert "teacher_kl" not in metrics
        return
    log_p = log_softmax(teacher.double().numpy(), axis=1)
    assert metrics["agreement"] == pytest.approx(np.mean(log_p.argmax(1) == log_q.argmax(1)))
    assert 0 < metrics["agreement"] < 1  # otherwise the test would show little
    assert metrics["teacher_kl"] == pytest.approx(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), 1)), rel=1e-5)
