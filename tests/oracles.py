"""What runs say of their predictions, from the definitions, in NumPy and SciPy."""

import numpy as np
import pytest
from scipy.special import log_softmax


def check_predictions(metrics, logits, teacher=None):
    """Entropy and, beside a teacher, agreement and divergence from it: all of logits (N, K), in nats."""
    log_q = log_softmax(logits.double().numpy(), axis=1)
    assert metrics["entropy"] == pytest.approx(-np.mean(np.sum(np.exp(log_q) * log_q, 1)), rel=1e-5)
    if teacher is None:
        assert "teacher_kl" not in metrics
        return
    log_p = log_softmax(teacher.double().numpy(), axis=1)
    assert metrics["agreement"] == pytest.approx(np.mean(log_p.argmax(1) == log_q.argmax(1)))
    assert 0 < metrics["agreement"] < 1  # or this would tell little
    assert metrics["teacher_kl"] == pytest.approx(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), 1)), rel=1e-5)
