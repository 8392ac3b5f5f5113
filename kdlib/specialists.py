"""Specialists: networks for subsets of classes that a generalist confuses, with a dustbin class for all other classes.

    subsets = kmeans_clusters(generalist_probs, 3, generator(0, "clusters"))
    rows = specialist_rows(labels, subset, generator(0, "rest"))
    specialist.head = specialist_head(generalist.head, subset)
    ... train with dustbin_labels(labels, subset) or dustbin_logits(generalist_logits, subset) ...
    logits = corrected_dustbin(logits, oversampling(labels, rows, subset))

A subset is a tuple of class numbers. A specialist's outputs are the classes of its subset in this order, then the
dustbin class. `kdlib.specialist_inference` combines generalist and specialists. Source: Hinton, Vinyals, Dean 2015,
section 5.

Shapes: N examples, K classes, S classes of the subset.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.checks import (
    check_classes,
    check_generator,
    check_number,
    check_values,
    computes_as,
    row_numbers,
    tensor_of,
    whole_number,
)
from kdlib.class_labels import class_numbers
from kdlib.errors import KDError, needs
from kdlib.probabilities import checked_logits

__all__ = [
    "Subset",
    "check_subset",
    "correlation_clusters",
    "corrected_dustbin",
    "dustbin_labels",
    "dustbin_logits",
    "kmeans_clusters",
    "oversampling",
    "specialist_head",
    "specialist_rows",
]

Subset = tuple[int, ...]


def check_subset(subset: Subset, classes: int) -> None:
    """Refuse a subset that is empty, repeats a class, names an unknown one or leaves none for the dustbin (KDError)."""
    known = _are_numbers(subset) and {*subset} <= {*range(classes)}
    if not known or not 1 <= len({*subset}) == len(subset) < classes:
        raise KDError(
            f"expected a subset of 1 to {classes - 1} different classes of 0 to {classes - 1}, found {subset}; "
            "the dustbin class needs at least one class outside the subset"
        )


def _are_numbers(subset: Any) -> bool:
    """Whether a subset is a tuple, or the like, of whole numbers: True and 1.0 would be taken for class 1."""
    numbers = isinstance(subset, Sequence) and all(isinstance(k, int | np.integer) for k in subset)
    return numbers and not any(isinstance(k, bool) for k in subset)


# ---- which classes belong together


def kmeans_clusters(probs: Tensor, count: int, generator: torch.Generator) -> list[Subset]:
    """Return `count` disjoint subsets that together hold all classes, in order of their smallest class.

    The columns of the covariance matrix of a generalist's predictions, probs (N, K), are clustered by k-means, the best
    of 10 starts. A subset may have one class. KDError without scikit-learn, unless 1 <= count <= K, for less than two
    rows or classes, for rows that are no probabilities, and for fewer than `count` different columns.
    """
    count = whole_number("count", count)
    probs = _probabilities(probs, least=0)  # predictions for some of the classes have a covariance, too
    needs("specialists", "sklearn")
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if not 1 <= count <= probs.shape[1]:
        raise KDError(f"expected 1 to {probs.shape[1]} clusters of {probs.shape[1]} classes, found {count}")
    check_generator(generator)
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device="cpu"))
    columns = probs.t().cov().cpu().numpy()  # symmetric, so its rows are its columns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer different columns, which the error says
        subsets = _subsets(KMeans(count, n_init=10, random_state=seed).fit_predict(columns).tolist())
    if len(subsets) < count:
        raise KDError(
            f"expected predictions that differ between {count} classes or more, found columns of their covariance that "
            f"are equal but for {len(subsets)}; train the generalist longer, or take fewer clusters"
        )
    return subsets


def correlation_clusters(probs: Tensor) -> list[Subset]:
    """Return disjoint subsets that together hold all classes, in order of their smallest class; their number is found.

    It is correlation clustering (Bansal, Blum, Chawla 2004): classes that are predicted together more than chance
    belong together. The weight of two classes is the correlation of their predictions, probs (N, K), plus 1 / (K - 1),
    because predictions sum to one: errors that are spread evenly over K classes have a correlation of -1 / (K - 1).
    From subsets of one class on, the two with the largest sum of weights between them are joined, while it is positive.
    A class with a constant prediction remains alone. KDError for less than two rows or
    classes, and for rows that are no probabilities.
    """
    found = _probabilities(probs, least=1)
    covariance = found.t().cov()
    # The variance of a constant column is rounded, and need not be 0; its range is, but for what softmax rounds.
    given = tensor_of(probs, "a generalist's predictions (N, K)").dtype
    rounding = torch.finfo(given if given.is_floating_point else torch.float64).eps
    constant = found.amax(0) - found.amin(0) <= 8 * rounding * found.amax(0)
    spread = torch.where(constant, 0.0, covariance.diagonal().sqrt())
    weights = covariance / (spread.unsqueeze(1) * spread) + 1 / (len(spread) - 1)
    between = weights.nan_to_num(0.0, 0.0, 0.0).fill_diagonal_(-torch.inf)
    cluster_of = torch.arange(len(spread), device="cpu")
    while between.max() > 0:
        kept, joined = sorted(divmod(int(between.argmax()), len(spread)))
        cluster_of[cluster_of == joined] = kept
        sums = between[kept] + between[joined]
        between[kept], between[:, kept] = sums, sums
        between[joined], between[:, joined] = -torch.inf, -torch.inf
    return _subsets(cluster_of.tolist())


def _probabilities(probs: Tensor, least: float) -> Tensor:
    """Return a generalist's predictions (N, K) in float64, with row sums from `least` to 1; KDError for others."""
    found = tensor_of(probs, "a generalist's predictions (N, K)").detach().double()
    if found.ndim != 2 or found.shape[0] < 2 or found.shape[1] < 2:
        raise KDError(
            f"expected a generalist's predictions (N, K), N >= 2 rows of K >= 2 classes, found shape "
            f"{tuple(found.shape)}; one row says nothing about classes that are predicted together"
        )
    sums = found.sum(1)
    error = 0.01  # of sums of probabilities in 16 bits
    wrong = ~((found >= 0) & (found <= 1)).all(1) | ~((sums >= least - error) & (sums <= 1 + error))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise KDError(
            f"expected a generalist's predictions, probabilities from 0 to 1 with "
            f"{'the sum 1' if least else 'a sum of at most 1'}, found row {row} with numbers from "
            f"{float(found[row].min()):g} to {float(found[row].max()):g} and the sum {float(sums[row]):g}; "
            "use logits.softmax(1)"
        )
    return found


def _subsets(cluster_of: list[int]) -> list[Subset]:
    order = dict.fromkeys(cluster_of)  # by smallest class
    return [tuple(k for k, own in enumerate(cluster_of) if own == cluster) for cluster in order]


# ---- what a specialist is trained on


def _class_numbers(labels: Tensor, subset: Subset) -> Tensor:
    """Return labels (N,) as int64, and refuse what is wrong for any number of classes."""
    found = class_numbers(labels)
    if not _are_numbers(subset) or not 1 <= len({*subset}) == len(subset) or min(subset) < 0:
        found_subset = f"{type(subset).__name__} {subset}"
        raise KDError(
            f"expected a subset of different classes from 0, a tuple of whole numbers, found {found_subset}; write "
            "(1, 3), for example, or tuple(subset.tolist())"
        )
    return found


def _inside(labels: Tensor, subset: Subset) -> Tensor:
    """Return a mask (N,) of the labels that are of the subset, of which each class must have one."""
    found = _class_numbers(labels, subset)
    if absent := sorted(set(subset) - set(found.tolist())):
        raise KDError(
            f"expected examples inside and outside the classes {subset}, of each of them, found none of {absent}; "
            "choose a subset of classes that have examples"
        )
    return torch.isin(found, torch.tensor(subset, device=found.device))


def specialist_rows(labels: Tensor, subset: Subset, generator: torch.Generator) -> Tensor:
    """Return row numbers in ascending order, for labels (N,): half are of the subset, half drawn from the other rows.

    The smaller of the two parts is used whole, and as many rows of the other are drawn without replacement. KDError if
    a part is empty, for labels that are no numbers of classes (N,), and for a class of the subset without a row.
    """
    inside = _inside(labels, subset)
    parts = [part.nonzero()[:, 0] for part in (inside, ~inside)]
    half = min(len(part) for part in parts)
    if half == 0:
        raise KDError(f"expected rows inside and outside the classes {subset}, found {[len(p) for p in parts]}")
    check_generator(generator)
    orders = [torch.randperm(len(part), generator=generator, device="cpu")[:half] for part in parts]
    drawn = [part[order.to(part.device)] for part, order in zip(parts, orders, strict=True)]
    return torch.cat(drawn).sort().values


def dustbin_labels(labels: Tensor, subset: Subset, classes: int | None = None) -> Tensor:
    """Return labels int64 (N,) of a specialist: the position in the subset, and S for every other class.

    KDError for labels that are no numbers of classes (N,), and for a subset that is empty or repeats a class. With the
    number of `classes`, K, also for a label outside and for a subset that `check_subset` refuses.
    """
    labels = _class_numbers(labels, subset)
    if classes is not None:
        check_subset(subset, classes)
        check_classes(labels.cpu(), classes)
    matches = labels.unsqueeze(1) == torch.tensor(subset, device=labels.device)
    return torch.where(matches.any(1), matches.int().argmax(1), len(subset))


def dustbin_logits(logits: Tensor, subset: Subset, temperature: float = 1.0) -> Tensor:
    """Return logits (N, S + 1) with the other classes summed: soft targets of a specialist, from logits (N, K).

    At `temperature` the softmax gives the dustbin class the sum of the probabilities outside the subset. The usual 1 is
    right for a specialist that is asked at 1, as in `kdlib.specialist_inference`, also if its loss has a higher
    temperature: summed at that, the dustbin class is too probable at 1. Logits in 16 bits give float32. KDError for
    logits that are not (N, K) with K >= 2, a subset that `check_subset` refuses, a temperature that is not above 0, and
    NaN or +inf.
    """
    logits = checked_logits(logits, "the generalist")
    check_subset(subset, logits.shape[-1])
    temperature = check_number("temperature", temperature, 0, math.inf, "1 leaves the logits as they are", above=True)
    check_values(logits, "the generalist")
    rest = [k for k in range(logits.shape[-1]) if k not in subset]
    dustbin = temperature * (logits[:, rest] / temperature).logsumexp(1, keepdim=True)
    return torch.cat([logits[:, list(subset)], dustbin], dim=1)


def specialist_head(head: nn.Linear, subset: Subset) -> nn.Linear:
    """Return a new output layer (S + 1 units) for a copy of the generalist, made from its output layer (K units).

    The classes of the subset keep their weights. The dustbin class gets the mean weights and bias of the other K - S
    classes, and ln(K - S) more bias. Its logit is then that of their summed probabilities where these are equal, and
    lower elsewhere. The paper states no rule for it. KDError for a subset that `check_subset` refuses, and for a layer
    with code of its own or with hooks: its weights alone do not say what it computes.
    """
    if not computes_as(head, nn.Linear):
        raise KDError(
            f"head: expected an nn.Linear without hooks and without a forward of its own, found {type(head).__name__}; "
            "make an nn.Linear with the weights that it computes with"
        )
    check_subset(subset, head.out_features)
    rest = [k for k in range(head.out_features) if k not in subset]
    bias = head.weight.new_zeros(head.out_features) if head.bias is None else head.bias.detach()
    # On the device "meta", torch draws no weights, so its global generator stays as it is.
    made = nn.Linear(head.in_features, len(subset) + 1, device="meta", dtype=bias.dtype).to_empty(device=bias.device)
    with torch.no_grad():
        made.weight.copy_(torch.cat([head.weight[list(subset)], head.weight[rest].mean(0, keepdim=True)]))
        made.bias.copy_(torch.cat([bias[list(subset)], bias[rest].mean(0, keepdim=True) + math.log(len(rest))]))
    return made


# ---- correction for the training set


def oversampling(labels: Tensor, rows: Tensor, subset: Subset) -> float:
    """Return how many times more often than the other classes the subset was sampled: rows (n,) from labels (N,).

    It is the odds of the subset among the rows, divided by its odds among all labels. KDError if one of the four parts
    is empty, for a class of the subset without a label, and for row numbers that are none of the labels.
    """
    inside = _inside(labels, subset)
    rows = row_numbers(rows, len(inside)).to(inside.device)
    fits = rows.shape == inside.shape if rows.dtype == torch.bool else bool(((rows >= 0) & (rows < len(inside))).all())
    if rows.ndim != 1 or not fits:
        raise KDError(
            f"expected row numbers (n,) from 0 to {len(inside) - 1}, or a mask ({len(inside)},), found shape "
            f"{tuple(rows.shape)} or numbers outside; `specialist_rows` returns them"
        )
    counts = [int(part.sum()) for part in (inside[rows], ~inside[rows], inside, ~inside)]
    if 0 in counts:
        raise KDError(
            f"expected examples inside and outside the classes {subset}, among the rows and in all, found {counts}"
        )
    return counts[0] / counts[1] / (counts[2] / counts[3])


def corrected_dustbin(logits: Tensor, oversampled: float) -> Tensor:
    """Return logits (N, S + 1) with ln(oversampled) added to the dustbin class, the last one (`oversampling`).

    A specialist that is exact on its training set is then exact on data in their natural proportions. KDError unless
    `oversampled` is above 0.
    """
    logits = checked_logits(logits, "the specialist")
    oversampled = check_number("oversampled", oversampled, 0, math.inf, "`oversampling` returns it", above=True)
    return torch.cat([logits[:, :-1], logits[:, -1:] + math.log(oversampled)], dim=1)
