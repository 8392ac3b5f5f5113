"""Distillation objectives: pure functions of logits (B, K) that give the mean over the batch.

The teacher is given by its logits and never receives a gradient.  Weights and temperatures may be numbers or
0-d tensors, so that many students can be mapped over them.  All logarithms are log-softmaxes, finite at any
finite logits.  Keras clips probabilities at 1e-7 instead: the two agree to 1e-6 unless an output is saturated
(probability below 1e-7), where Keras's gradient vanishes and this one does not.  KDError where the shapes of student and teacher
differ.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdlib.errors import KDError

__all__ = ["binary_distillation", "cross_entropy", "hard_and_soft", "kl_plus_mae", "label_smoothing",
           "logit_matching", "soft_target_kl"]

Number = float | Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with classes (B,) of int64 or with distributions (B, K), as mixed labels are."""
    return F.cross_entropy(logits, labels)


def soft_target_kl(student: Tensor, teacher: Tensor, temperature: Number) -> Tensor:
    """T^2 KL(teacher_T || student_T), in nats, summed over classes (Hinton, Vinyals, Dean 2015, section 2).

    T^2 keeps the gradient's size steady as the temperature changes; without it the gradient falls as 1/T^2.
    """
    _same_shape(student, teacher)
    teacher_log_probs = F.log_softmax(teacher.detach() / temperature, dim=-1)
    student_log_probs = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 / len(student) * _summed_kl(teacher_log_probs, student_log_probs)


def hard_and_soft(student: Tensor, teacher: Tensor, labels: Tensor, hard_weight: Number, soft_weight: Number,
                  temperature: Number) -> Tensor:
    """hard_weight CE(labels) + soft_weight T^2 KL(teacher_T || student_T), the hard term at temperature 1."""
    soft = soft_target_kl(student, teacher, temperature)
    return hard_weight * cross_entropy(student, labels) + soft_weight * soft


def kl_plus_mae(student: Tensor, teacher: Tensor, mae_weight: Number) -> Tensor:
    """KL(teacher || student), in nats, + mae_weight * mean over the classes of |teacher - student| probabilities.

    The loss of CVxTz's knowledge_distillation (2020), there with a weight of 0.1.
    """
    _same_shape(student, teacher)
    teacher_log_probs = F.log_softmax(teacher.detach(), dim=-1)
    student_log_probs = F.log_softmax(student, dim=-1)
    distance = F.l1_loss(student_log_probs.exp(), teacher_log_probs.exp())
    return _summed_kl(teacher_log_probs, student_log_probs) / len(student) + mae_weight * distance


def logit_matching(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of zero-meaned logits: the limit of soft_target_kl as T -> infinity.

    For one example of K classes it is sum_k (student_k - teacher_k)^2 / (2 K), each row's mean taken out; its
    gradient (student_k - teacher_k) / K is that of Hinton, Vinyals, Dean 2015, eq. 4, times T^2.
    """
    _same_shape(student, teacher)
    return (student - teacher.detach()).var(dim=-1, correction=0).mean() / 2


def binary_distillation(student_logit: Tensor, teacher_logit: Tensor, labels: Tensor,
                        hard_weight: Number) -> Tensor:
    """hard_weight BCE(labels) + (1 - hard_weight) BCE(teacher's probability), of one logit per example.

    Not zero at equal logits: its minimum is the entropy of the targets.
    """
    _same_shape(student_logit, teacher_logit)
    _same_shape(student_logit, labels)
    # BCE is linear in its target: mixing the targets mixes the losses.
    targets = hard_weight * labels.to(student_logit) + (1 - hard_weight) * teacher_logit.detach().sigmoid()
    return F.binary_cross_entropy_with_logits(student_logit, targets)


def label_smoothing(logits: Tensor, labels: Tensor, smoothing: Number) -> Tensor:
    """(1 - smoothing) CE(labels) + smoothing KL(uniform || student): a teacher that knows nothing (Szegedy et al. 2016, sec. 7).

    Labels (B,).  Equals cross-entropy with smoothed labels less the constant smoothing * ln K.
    """
    uniform = logits.new_zeros(logits.shape)
    return hard_and_soft(logits, uniform, labels, 1 - smoothing, smoothing, temperature=1)


def _summed_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def _same_shape(student: Tensor, other: Tensor) -> None:
    # Broadcasting would turn (B,) against (B, 1) into a loss of all pairs, silently.
    if student.shape != other.shape:
        raise KDError(f"expected student and targets of one shape, found {tuple(student.shape)} and "
                      f"{tuple(other.shape)}; pass one row of logits per example")
