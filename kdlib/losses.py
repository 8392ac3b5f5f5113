"""Distillation losses: pure functions of logits (B, K) that return the mean over the batch, a 0-d tensor.

The teacher is given by its logits and receives no gradient. Weights and temperatures are numbers or 0-d tensors, so
that `torch.vmap` can map them over many students. Logits in 16 bits are taken to float32, and so is the loss.

KDError for what would give a wrong number: logits that are not (B, K) with K >= 2, student and teacher of different
shapes, labels outside the classes, rows of mixed labels that are no distributions, the empty labels of an unlabelled
transfer set in a hard term, a temperature that is not above 0, a negative weight, and a teacher's logit that is NaN or
+inf. On a CUDA device only shapes and Python's numbers are checked, since a look at values would make the CPU wait at
every step. ProbabilitiesAsLogits, a warning, tells logits that are distributions.

-inf excludes a class. A term of the sum is 0 if its target is 0, also if the student excludes the class. The loss is
infinite if the student excludes a class whose target is above 0.

Every logarithm is a log-softmax, which is finite for all finite logits. Keras clips probabilities at 1e-7 instead. Both
agree to 1e-6 unless an output is saturated (a probability below 1e-7): there Keras's gradient is zero and this one is
not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.checks import (
    check_labels,
    check_logits,
    check_number,
    check_values,
    in_float32,
    may_be_infinite,
    readable,
)
from kdlib.errors import KDError, same_shape
from kdlib.probabilities import warn_of_last_sigmoid, warn_of_probabilities, warn_of_sigmoid

__all__ = [
    "binary_distillation",
    "binary_logit",
    "cross_entropy",
    "hard_and_soft",
    "kl_plus_mae",
    "label_smoothing",
    "logit_matching",
    "soft_target_kl",
]

Number = float | Tensor

NO_LABEL = -(2**62)
EXCLUDED = -1e30  # a logit whose probability is 0 at each temperature


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, in nats, with labels int64 (B,) or distributions (B, K), for example mixed labels.

    KDError for the empty labels (B, 0) of an unlabelled transfer set.

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> print(f"{cross_entropy(logits, torch.tensor([0])):.4f}")
    0.1698
    >>> print(f"{cross_entropy(logits, torch.tensor([[0.8, 0.2, 0.0]])):.4f}")  # mixed labels
    0.5698
    """
    logits = check_logits(logits, "the student")
    if isinstance(labels, Tensor) and labels.shape[1:] == (0,):
        raise KDError(
            "expected labels for the hard term of the loss, found an unlabelled transfer set; "
            "use soft_target_kl or logit_matching alone, or examples with labels"
        )
    labels = check_labels(labels, *logits.shape)
    warn_of_probabilities(logits, "the student")
    if labels.is_floating_point() and may_be_infinite(logits):
        # torch multiplies: a label 0 times the log-probability -inf would be NaN.
        least = torch.finfo(logits.dtype).min / 2
        logits = logits.masked_fill((logits == -math.inf) & (labels == 0), least)
    # torch leaves out rows with the label -100 unless it is told another number; none is left out here.
    return F.cross_entropy(logits, labels, ignore_index=NO_LABEL)


def soft_target_kl(student: Tensor, teacher: Tensor, temperature: Number) -> Tensor:
    """Return T^2 KL(teacher_T || student_T), in nats, summed over classes (Hinton, Vinyals, Dean 2015, section 2).

    T^2 keeps the size of the gradient when the temperature changes; without it the gradient falls as 1/T^2. Its
    rounding grows as T^2 too: KDError for a temperature above 2896 in float32, where it may reach 1 nat. KDError also
    for a temperature below 1.2e-7, since logits divided by it may overflow.

    >>> student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[3.0, 1.0, -2.0]])
    >>> print(f"{soft_target_kl(student, teacher, temperature=4.0):.4f}")
    0.2877
    >>> print(f"{soft_target_kl(teacher, teacher, temperature=4.0):.4f}")
    0.0000
    """
    student, teacher, excluded = _student_and_teacher(student, teacher)
    temperature = _check_temperature(temperature, student.dtype)
    same_shape(student, teacher)
    if excluded and isinstance(temperature, Tensor) and temperature.requires_grad:
        # The gradient of -inf / T would be infinite, times a probability of 0.
        both = (student == -math.inf) & (teacher == -math.inf)
        student = student.masked_fill(both, EXCLUDED)
        teacher = teacher.masked_fill(teacher == -math.inf, EXCLUDED)
    teacher_log_probs = F.log_softmax(teacher.detach() / temperature, dim=-1)
    student_log_probs = F.log_softmax(student / temperature, dim=-1)
    return temperature**2 / len(student) * _summed_kl(teacher_log_probs, student_log_probs, excluded)


def hard_and_soft(
    student: Tensor, teacher: Tensor, labels: Tensor, hard_weight: Number, soft_weight: Number, temperature: Number
) -> Tensor:
    """Return hard_weight CE(labels) + soft_weight T^2 KL(teacher_T || student_T), in nats.

    The hard term has temperature 1. Labels are int64 (B,) or distributions (B, K). Source: Hinton, Vinyals, Dean 2015,
    section 2.

    >>> student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[3.0, 1.0, -2.0]])
    >>> loss = hard_and_soft(student, teacher, torch.tensor([0]), hard_weight=0.1, soft_weight=0.9, temperature=4.0)
    >>> print(f"{loss:.4f}")
    0.2759
    """
    hard_weight, soft_weight = _check_weight("hard_weight", hard_weight), _check_weight("soft_weight", soft_weight)
    soft = soft_target_kl(student, teacher, temperature)
    return _weighted(hard_weight, cross_entropy(student, labels)) + _weighted(soft_weight, soft)


def kl_plus_mae(student: Tensor, teacher: Tensor, mae_weight: Number) -> Tensor:
    """Return KL(teacher || student), in nats, + mae_weight * mean |teacher's - student's probability| over the classes.

    It is the loss of CVxTz's knowledge_distillation (2020), which uses a weight of 0.1.

    >>> student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[3.0, 1.0, -2.0]])
    >>> print(f"{kl_plus_mae(student, teacher, mae_weight=0.1):.4f}")
    0.0276
    """
    student, teacher, excluded = _student_and_teacher(student, teacher)
    mae_weight = _check_weight("mae_weight", mae_weight)
    same_shape(student, teacher)
    teacher_log_probs = F.log_softmax(teacher.detach(), dim=-1)
    student_log_probs = F.log_softmax(student, dim=-1)
    distance = F.l1_loss(student_log_probs.exp(), teacher_log_probs.exp())
    return _summed_kl(teacher_log_probs, student_log_probs, excluded) / len(student) + mae_weight * distance


def logit_matching(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference of zero-mean logits: the limit of soft_target_kl as T -> infinity.

    For one example of K classes it is sum_k (student_k - teacher_k)^2 / (2 K), after the mean of each row is
    subtracted. Its gradient (student_k - teacher_k) / K is T^2 times that of Hinton, Vinyals, Dean 2015, eq. 4. KDError
    also for -inf, of teacher or student: it has no mean.

    >>> student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[3.0, 1.0, -2.0]])
    >>> print(f"{logit_matching(student, teacher):.4f}")
    0.4444
    >>> print(f"{soft_target_kl(student.double(), teacher.double(), temperature=1000.0):.3f}")
    0.444
    """
    student, teacher, _ = _student_and_teacher(student, teacher, minus_infinity=False)
    same_shape(student, teacher)
    _refuse_infinite(student)
    return (student - teacher.detach()).var(dim=-1, correction=0).mean() / 2


def binary_distillation(student_logit: Tensor, teacher_logit: Tensor, labels: Tensor, hard_weight: Number) -> Tensor:
    """Return hard_weight BCE(labels) + (1 - hard_weight) BCE(teacher's probability), in nats, the mean over all logits.

    Logits and labels are (B,), or (B, L) for L labels that do not exclude each other. The minimum is not zero but the
    entropy of the targets. KDError for other shapes, for a weight outside 0 to 1 and, on a CPU, for a label that is
    neither 0 nor 1, a teacher's logit that is NaN and a student's that is infinite.

    >>> student, teacher, labels = torch.tensor([0.5, -1.0]), torch.tensor([2.0, -3.0]), torch.tensor([1, 0])
    >>> print(f"{binary_distillation(student, teacher, labels, hard_weight=0.5):.4f}")
    0.4204
    """
    hard_weight = check_number("hard_weight", hard_weight, 0, 1, "the teacher's weight is 1 - hard_weight")
    student_logit, teacher_logit = in_float32(student_logit), in_float32(teacher_logit)
    for other in (teacher_logit, labels):
        _one_logit_each(student_logit, other)
    _refuse_other_than_0_and_1(labels)
    _refuse_nan(teacher_logit)
    _refuse_infinite(student_logit)
    warn_of_sigmoid(teacher_logit, "the teacher")
    warn_of_last_sigmoid(student_logit, "the student")
    # BCE is linear in its target: mixing the targets mixes the losses.
    targets = hard_weight * labels.to(student_logit) + (1 - hard_weight) * teacher_logit.detach().sigmoid()
    return F.binary_cross_entropy_with_logits(student_logit, targets)


def binary_logit(logits: Tensor) -> Tensor:
    """Return one logit (...) for each example, that of class 1, from logits (..., 1) or (..., 2) of two classes.

    It is z_1 - z_0, whose sigmoid is the softmax's probability of class 1. Logits in 16 bits give float32. KDError for
    another number of logits.

    >>> binary_logit(torch.tensor([[0.5, 2.0], [1.0, 0.0]]))
    tensor([ 1.5000, -1.0000])
    """
    logits = in_float32(logits)
    if logits.ndim and logits.shape[-1] == 1:
        return logits[..., 0]
    if logits.ndim and logits.shape[-1] == 2:
        warn_of_probabilities(logits, "the network")
        return logits[..., 1] - logits[..., 0]
    raise KDError(
        f"expected logits of shape (..., 1) or (..., 2), of two classes, found {tuple(logits.shape)}; "
        "more than two classes need soft_target_kl, and labels that do not exclude each other need no conversion"
    )


def label_smoothing(logits: Tensor, labels: Tensor, smoothing: Number) -> Tensor:
    """Return (1 - smoothing) CE(labels) + smoothing KL(uniform || student), in nats: the teacher is uniform.

    Labels are int64 (B,). It is the cross-entropy with smoothed labels minus the constant smoothing * ln K
    (Szegedy et al. 2016, section 7).

    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> print(f"{label_smoothing(logits, torch.tensor([0]), smoothing=0.1):.4f}")
    0.2267
    """
    logits = check_logits(logits, "the student")
    smoothing = check_number("smoothing", smoothing, 0, 1, "0.1 is usual")
    uniform = logits.new_zeros(logits.shape)
    return hard_and_soft(logits, uniform, labels, 1 - smoothing, smoothing, temperature=1)


def _student_and_teacher(student: Tensor, teacher: Tensor, minus_infinity: bool = True) -> tuple[Tensor, Tensor, bool]:
    """The logits of both in 32 or 64 bits, and whether one of them may exclude classes by -inf."""
    student, teacher = check_logits(student, "the student"), check_logits(teacher, "the teacher")
    warn_of_probabilities(student, "the student")
    warn_of_probabilities(teacher, "the teacher")
    if student.dtype == torch.float64:  # T^2 multiplies the rounding of the coarser of the two
        teacher = teacher.double()
    return student, teacher, check_values(teacher, "the teacher", minus_infinity) or may_be_infinite(student)


def _check_temperature(temperature: Number, dtype: torch.dtype) -> Number:
    # The sum over the classes is rounded at about eps, and then multiplied by T^2.
    eps = torch.finfo(dtype).eps
    remedy = "1 leaves the logits as they are, and logit_matching is the limit of high temperatures"
    checked: Number = check_number("temperature", temperature, eps, eps**-0.5, remedy)
    return checked


def _check_weight(name: str, weight: Number) -> Number:
    checked: Number = check_number(name, weight, 0, math.inf, "a negative weight would maximise this term")
    return checked


def _weighted(weight: Number, term: Tensor) -> Tensor:
    if isinstance(weight, Tensor) or weight == 0:  # 0 times an infinite term is 0 and not NaN
        term = term.masked_fill((weight == 0) & term.isinf(), 0)
    return weight * term


def _refuse_infinite(student: Tensor) -> None:
    values = readable(student) if may_be_infinite(student) else None
    if values is not None and bool(values.isinf().any()):  # NaN is left to the loop, which names the step
        place = values.isinf().nonzero()[0].tolist()
        raise KDError(
            f"expected logits of the student that are finite, found {values[values.isinf()][0].item()} at {place}, "
            "counted from row 0; leave out what the student excludes, or lower the learning rate if it diverged"
        )


def _one_logit_each(student_logit: Tensor, other: Tensor) -> None:
    if not isinstance(other, Tensor):
        raise KDError(f"expected labels, a tensor, found {type(other).__name__}; use torch.as_tensor(labels)")
    if not student_logit.numel():
        raise KDError("expected at least one logit of the student, found an empty batch; leave empty batches out")
    if other.shape != student_logit.shape:
        raise KDError(
            "expected logits of the student, logits of the teacher and labels of one shape, one for each example, "
            f"found {tuple(student_logit.shape)} and {tuple(other.shape)}; binary_logit makes one logit of two classes'"
        )


def _refuse_other_than_0_and_1(labels: Tensor) -> None:
    values = readable(labels)
    if values is None or values.dtype == torch.bool:
        return
    wrong = (values != 0) & (values != 1)  # NaN is one of them
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise KDError(
            f"expected labels 0 and 1, found {values[wrong][0].item():g} in row {', '.join(map(str, place))} and "
            f"{int(wrong.sum())} such labels in all; correct them, or give soft labels as teacher logits"
        )


def _refuse_nan(teacher_logit: Tensor) -> None:
    values = readable(teacher_logit)
    if values is not None and bool(values.isnan().any()):
        row = values.isnan().nonzero()[0].tolist()
        raise KDError(f"expected a teacher's logits, found nan in row {', '.join(map(str, row))}; correct the teacher")


def _summed_kl(log_p: Tensor, log_q: Tensor, excluded: bool) -> Tensor:
    p = log_p.exp()
    terms = p * (log_p - log_q)
    # A class of probability 0 adds 0 log 0 = 0 and not NaN, whatever the student says.
    return (terms.masked_fill(p == 0, 0) if excluded else terms).sum()
