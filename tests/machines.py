"""A Ray cluster whose machines are processes of this one, on loopback, with separate folders and ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

TRIES = 5  # of a start: Ray gives a machine 15 s, which a busy one may need for its imports


@contextmanager
def machines(head: int, *cores: int) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster whose head has so many cores, and its other machines."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # 15 by default: on a busy machine, nearly nothing
        cluster = started(lambda: Cluster(True, head_node_args={"num_cpus": head, "include_dashboard": False}))
        nodes = [started(lambda count=count: cluster.add_node(num_cpus=count)) for count in cores]
    try:
        yield cluster, nodes
    finally:
        cluster.shutdown()


def started(start: Callable[[], Any]) -> Any:
    for _ in range(TRIES - 1):
        try:
            return start()
        except Exception as error:
            print(f"not started: {error}")
    return start()
