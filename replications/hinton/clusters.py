"""Which classes the specialists have: subsets of classes that the generalist confuses (section 5.3 of the paper).

Shapes: N pictures, K = 10 classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from kdlib.run.experiment import Run
from kdlib.specialists import Subset, kmeans_clusters

from .config import CLASSES

SPECIALISTS = 3
SMALLEST, LARGEST = 2, 4  # classes of a specialist


def confusable(probs: Tensor, run: Run) -> list[Subset]:
    """Return 3 subsets of 2 to 4 classes, the largest first, given the generalist's predictions (N, K).

    k-means clusters the columns of the covariance of the predictions. A cluster of more than 4 classes is clustered
    again into two, until none is left. Of the result, clusters of one class are left out. It begins with 3 clusters, or
    with more if fewer than 3 subsets remain. If they remain for no number of clusters, the subsets are those of
    `best_partition`.
    """
    for count in range(SPECIALISTS, CLASSES):
        clusters = kmeans_clusters(probs, count, run.generator("clusters"))
        subsets = [part for cluster in clusters for part in halved(probs, cluster, run) if len(part) >= SMALLEST]
        if len(subsets) >= SPECIALISTS:
            return sorted(subsets, key=len, reverse=True)[:SPECIALISTS]
    # A generalist that is sure of its training pictures has variances that are ten times the covariances. k-means then
    # splits off one class after the other.
    return sorted(best_partition(probs), key=len, reverse=True)


def halved(probs: Tensor, cluster: Subset, run: Run) -> list[Subset]:
    """Return a cluster as it is or, if it has more than 4 classes, in parts of at most 4."""
    if len(cluster) <= LARGEST:
        return [cluster]
    halves = kmeans_clusters(probs[:, list(cluster)], 2, run.generator("clusters"))
    parts = [tuple(cluster[place] for place in half) for half in halves]
    return [part for half in parts for part in halved(probs, half, run)]


def best_partition(probs: Tensor) -> tuple[Subset, ...]:
    """Return the partition of all classes into 3 subsets of 2 to 4 with the lowest objective of k-means.

    The objective is that of the columns of the covariance of the predictions (N, K): the sum of squared distances from
    the means of their subsets. It is computed for every partition; of equal ones, the first is taken.
    """
    columns = probs.double().t().cov()
    squared: list[list[float]] = torch.cdist(columns, columns).square().tolist()

    def scatter(subset: Subset) -> float:
        # The sum of squared distances from the mean is that of all pairs, divided by the number of members.
        return math.fsum(squared[one][other] for one, other in combinations(subset, 2)) / len(subset)

    return min(partitions(tuple(range(CLASSES)), SPECIALISTS), key=lambda parts: math.fsum(map(scatter, parts)))


def partitions(classes: tuple[int, ...], count: int) -> Iterator[tuple[Subset, ...]]:
    """Yield each partition of classes into `count` subsets of 2 to 4, in order of their smallest class, once."""
    if not classes or not count:
        yield from [()] * (not classes and not count)
        return
    first, *others = classes
    for size in range(SMALLEST, LARGEST + 1):
        for more in combinations(others, size - 1):
            left = tuple(each for each in others if each not in more)
            yield from (((first, *more), *rest) for rest in partitions(left, count - 1))
