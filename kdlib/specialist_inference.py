"""Inference with a generalist and specialists: the distribution that is nearest to all of them.

    active = active_specialists(generalist_logits, subsets, n=1)
    log_probs = combined_log_probs(generalist_logits, specialist_logits, subsets, active)

For each example, q minimises KL(p_g, q) + sum over active specialists m of KL(p_m, q_m) over all distributions q, where
q_m sums q over the classes outside the subset of m: its dustbin class (Hinton, Vinyals, Dean 2015, Eq. 5). The paper
descends the gradient of the logits of q. The problem is convex in q, so an interior-point method finds the same minimum
and bounds the distance from it.

Shapes: N examples, K classes, M specialists, A atoms. An atom is a set of classes that are in the same subsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.checks import check_values, whole_number
from kdlib.errors import KDError
from kdlib.probabilities import checked_logits
from kdlib.specialists import Subset, check_subset

__all__ = ["active_specialists", "combined_log_probs"]

MAX_STEPS = 100  # about 20 are the rule
FALL = 0.3  # of the relaxation, at each step
LEAST = 1e-16  # relaxation; below it rounding prevails
TO_BOUNDARY = 0.9  # of the way to the nearest zero that a step may go


def active_specialists(generalist: Tensor, subsets: Sequence[Subset], n: int = 1) -> Tensor:
    """Return a mask (N, M): whether one of the n most probable classes of logits (N, K) is in the specialist's subset.

    KDError unless 1 <= n <= K, for a subset that `check_subset` refuses, and for NaN or +inf (Hinton, Vinyals, Dean
    2015, section 5.4).
    """
    check_values(generalist.cpu(), "the generalist")
    classes, n = generalist.shape[-1], whole_number("n", n)
    if not 1 <= n <= classes:
        raise KDError(f"expected 1 <= n <= {classes}, the number of classes, found {n}")
    return (_membership(subsets, classes).to(generalist.device)[:, generalist.topk(n).indices]).any(-1).t()


def combined_log_probs(
    generalist: Tensor,
    specialists: Sequence[Tensor],
    subsets: Sequence[Subset],
    active: Tensor,
    tolerance: float = 1e-9,
) -> Tensor:
    """Return log-probabilities float64 (N, K): of the distribution nearest to the generalist and active specialists.

    `generalist` holds logits (N, K). Specialist m has logits (N, len(subsets[m]) + 1): the classes of its subset in its
    order, then the dustbin class, which must be corrected before (`corrected_dustbin`). `active` is a mask (N, M).
    Without an active specialist the result is the log-softmax of the generalist.

    The sum of divergences of each example is within `tolerance`, in nats, of its minimum. The computation is in
    float64, so 1e-12 can be reached. KDError for other shapes, for a subset that `check_subset` refuses, and if the
    tolerance is not reached.
    """
    inside = _membership(subsets, generalist.shape[-1]).to(generalist.device)
    _check_shapes(generalist, specialists, subsets, active)
    for logits in (generalist, *specialists) if len(generalist) else ():
        checked_logits(logits, "a generalist or specialist")
    log_general = F.log_softmax(generalist.double(), dim=-1)
    log_special = [F.log_softmax(logits.double(), dim=-1) for logits in specialists]
    if any(bool(torch.isnan(values).any()) for values in (log_general, *log_special)):
        raise KDError("expected logits that are numbers, found NaN or +inf, or a row of -inf; check the networks")
    combined = log_general.clone()
    for pattern in torch.unique(active, dim=0) if active.numel() else ():
        chosen, rows = pattern.nonzero()[:, 0].tolist(), (active == pattern).all(1)
        if chosen:
            parts = [(list(subsets[m]), log_special[m][rows]) for m in chosen]
            combined[rows] = _nearest(log_general[rows], parts, inside[chosen], tolerance)
    return combined


def _nearest(
    log_general: Tensor, parts: Sequence[tuple[list[int], Tensor]], inside: Tensor, tolerance: float
) -> Tensor:
    """Return log q (N, K), where all the specialists in `parts` are active."""
    # The objective is -sum_k a_k log q_k - sum_m d_m log Q_m + constant: a_k is what generalist and specialists give to
    # class k by name, d_m the dustbin of m, and Q_m what q gives to the classes outside its subset.
    log_a = log_general.clone()
    for subset, log_special in parts:
        log_a[:, subset] = torch.logaddexp(log_a[:, subset], log_special[:, :-1])
    log_d = torch.stack([log_special[:, -1] for _, log_special in parts], dim=1)
    # Within an atom, q is proportional to a. So only the sums over atoms are unknown.
    atoms, atom_of = torch.unique(inside.t(), dim=0, return_inverse=True)
    log_sums, start = (_summed(log_probs, atom_of, len(atoms)) for log_probs in (log_a, log_general))
    log_atoms = _minimum(log_sums, log_d, ~atoms.t(), start, tolerance)
    return F.log_softmax(log_a + (log_atoms - log_sums)[:, atom_of], dim=-1)


def _minimum(log_a: Tensor, log_d: Tensor, outside: Tensor, start: Tensor, tolerance: float) -> Tensor:
    """Return log q (N, A) at the minimum of -sum a log q - sum d log Q, given the mask (M, A) of Q and a first log q.

    A primal-dual interior-point method. At the minimum q s = a and Q w = d, where s = 1 + M - (sum of w over the
    specialists whose dustbin holds the atom). Newton steps follow the solutions for a + e and d + e to e = 1e-16. The
    best q so far is kept, so the objective never rises.
    """
    spread, best, least = outside.to(log_a), start, _objective(start, log_a, log_d, outside)
    q, w = torch.full_like(log_a, 1 / log_a.shape[1]), torch.full_like(log_d, 0.5)
    s = 1.0 + len(outside) - w @ spread
    result, rows, relaxation = torch.empty_like(log_a), torch.arange(len(log_a), device=log_a.device), 0.1
    for _ in range(MAX_STEPS):
        log_q = _polished(q, s, log_a, log_d, outside)
        value = _objective(log_q, log_a, log_d, outside)
        best = torch.where((value < least).unsqueeze(1), log_q, best)
        least = torch.where(value < least, value, least)
        going = ~(least - _dual(s, w, log_a, log_d) <= tolerance)  # so written, NaN goes on
        result[rows[~going]] = best[~going]
        rows, best, least, q, s, w, log_a, log_d = (x[going] for x in (rows, best, least, q, s, w, log_a, log_d))
        if len(rows) == 0:
            return result
        q, s, w = _newton_step(q, s, w, log_a.exp() + relaxation, log_d.exp() + relaxation, spread)
        relaxation = max(FALL * relaxation, LEAST)
    raise KDError(
        f"expected the sum of divergences within {tolerance} nats of its minimum after {MAX_STEPS} steps, found "
        f"{len(rows)} examples that are farther from it; pass finite logits and, if they are, a larger tolerance"
    )


def _newton_step(q: Tensor, s: Tensor, w: Tensor, a: Tensor, d: Tensor, spread: Tensor) -> tuple[Tensor, ...]:
    """Return q, s, w after one Newton step towards q s = a and Q w = d, cut so that all remain positive."""
    dustbins = q @ spread.t()
    matrix = torch.diag_embed(dustbins / w) + (spread * (q / s).unsqueeze(1)) @ spread.t()
    right = d / w - dustbins - (a / s - q) @ spread.t()
    # A diagonal of ones makes the solution exact enough where the entries differ by many orders of magnitude.
    scale = matrix.diagonal(dim1=1, dim2=2).rsqrt()
    scaled = scale.unsqueeze(1) * matrix * scale.unsqueeze(2)
    dw = scale * torch.linalg.solve_ex(scaled, scale * right).result
    ds = -dw @ spread
    dq = (a - q * ds) / s - q
    longest = torch.cat([-part / step for part, step in ((q, dq), (s, ds), (w, dw))], dim=1)
    longest = longest.masked_fill(longest <= 0, torch.inf).amin(1, keepdim=True)
    length = (TO_BOUNDARY * longest).clamp(max=1)
    return q + length * dq, s + length * ds, w + length * dw


def _polished(q: Tensor, s: Tensor, log_a: Tensor, log_d: Tensor, outside: Tensor) -> Tensor:
    """Return log q (N, A) of a distribution, as exact for tiny probabilities as for large ones."""
    # The relaxation hides an a below 1e-16. There q = a / s is exact, unless s is about to vanish: then the dustbins
    # give the atom more than a does.
    log_q = torch.where(s > 1e-4, log_a - s.log(), q.log())
    log_q = F.log_softmax(log_q, dim=-1)
    # A step of expectation-maximisation: every dustbin is divided in the proportions of q. It never raises the sum.
    shares = (log_q.unsqueeze(1) - _log_dustbins(log_q, outside).unsqueeze(2)).masked_fill(~outside, -torch.inf)
    return F.log_softmax(torch.logaddexp(log_a, (log_d.unsqueeze(2) + shares).logsumexp(1)), dim=-1)


def _objective(log_q: Tensor, log_a: Tensor, log_d: Tensor, outside: Tensor) -> Tensor:
    return -(log_a.exp() * log_q).sum(1) - (log_d.exp() * _log_dustbins(log_q, outside)).sum(1)


def _dual(s: Tensor, w: Tensor, log_a: Tensor, log_d: Tensor) -> Tensor:
    """Return the Lagrange dual (N,) at w, a lower bound of the objective of every q."""
    return (log_a.exp() * (s.log() - log_a)).sum(1) + (log_d.exp() * (w.log() - log_d)).sum(1)


def _summed(log_probs: Tensor, atom_of: Tensor, atoms: int) -> Tensor:
    return torch.stack([log_probs[:, atom_of == g].logsumexp(1) for g in range(atoms)], dim=1)


def _log_dustbins(log_q: Tensor, outside: Tensor) -> Tensor:
    return log_q.unsqueeze(1).masked_fill(~outside, -torch.inf).logsumexp(2)  # (N, M)


def _membership(subsets: Sequence[Subset], classes: int) -> Tensor:
    inside = torch.zeros(len(subsets), classes, dtype=torch.bool, device="cpu")
    for row, subset in zip(inside, subsets, strict=True):
        check_subset(subset, classes)
        row[list(subset)] = True
    return inside


def _check_shapes(generalist: Tensor, specialists: Sequence[Tensor], subsets: Sequence[Subset], active: Tensor) -> None:
    count = len(generalist)
    expected = [(count, len(subset) + 1) for subset in subsets]
    found = [tuple(logits.shape) for logits in specialists]
    if found != expected:
        raise KDError(
            f"expected specialist logits of shapes {expected}, one column per class of the subset and one for the "
            f"dustbin class, found {found}; predict all specialists on the examples of the generalist"
        )
    if active.dtype != torch.bool or active.shape != (count, len(subsets)):
        raise KDError(
            f"expected a mask of active specialists, bool of shape {(count, len(subsets))}, found {active.dtype} of "
            f"shape {tuple(active.shape)}; use active_specialists"
        )
