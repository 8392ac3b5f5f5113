"""The groups that a session has still to begin: which of them can be begun, and which never can."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from heapq import heapify, heappop, heappush

from kdlib.run.group import Group

__all__ = ["Queue", "parents_of"]


def parents_of(group: Group) -> list[str]:
    """Return the ids of the runs that a group needs."""
    return [run for job in group for run, _ in job.parents.values()]


class Queue:
    """Groups in their order; each waits until all of its parents are finished.

    Each step looks only at the groups that it changes, so that a session of ten thousand runs costs no more for each
    run than one of ten.
    """

    def __init__(self, groups: Sequence[Group], finished: Collection[str], failed: Collection[str]) -> None:
        self.groups = groups
        self.places = {group[0].id: place for place, group in enumerate(groups)}
        self.waiting = set(range(len(groups)))  # places of the groups that are not begun
        self.missing = [{run for run in parents_of(group) if run not in finished} for group in groups]
        self.children: dict[str, list[int]] = {}
        for place, runs in enumerate(self.missing):
            for run in runs:
                self.children.setdefault(run, []).append(place)
        # Heaps of places.
        self.ready = [place for place, runs in enumerate(self.missing) if not runs]
        self.fallen = [place for run in self.children if run in failed for place in self.children[run]]
        heapify(self.fallen)
        self.later: list[tuple[float, int]] = []  # when a group can be begun that another session trains just now

    def run_finished(self, run: str) -> None:
        """Note that a run is finished; a group that needs no other can be begun."""
        for place in self.children.pop(run, ()):
            self.missing[place].discard(run)
            if not self.missing[place]:
                heappush(self.ready, place)

    def run_failed(self, run: str) -> None:
        """Note that a run has failed, or will not be trained for the failure of another."""
        for place in self.children.pop(run, ()):
            heappush(self.fallen, place)

    def next_fallen(self) -> Group | None:
        """Remove and return the first group of which a parent has failed; None if there is none."""
        while self.fallen:
            place = heappop(self.fallen)
            if place in self.waiting:
                self.waiting.remove(place)
                return self.groups[place]
        return None

    def take(self, count: int, allows: Callable[[Group], bool]) -> list[Group]:
        """Remove and return the first groups, at most `count`, that can be begun now and that `allows` lets pass."""
        while self.later and self.later[0][0] <= time.monotonic():
            heappush(self.ready, heappop(self.later)[1])
        taken: list[int] = []
        refused: list[int] = []
        while self.ready and len(taken) < count:
            place = heappop(self.ready)
            (taken if allows(self.groups[place]) else refused).append(place)
        for place in refused:
            heappush(self.ready, place)
        self.waiting.difference_update(taken)
        return [self.groups[place] for place in taken]

    def give_back(self, group: Group, pause: float) -> None:
        """Take back a group that another session trains; it can be begun again after `pause` seconds."""
        place = self.places[group[0].id]
        self.waiting.add(place)
        heappush(self.later, (time.monotonic() + pause, place))

    def elsewhere(self) -> list[Group]:
        """Return the groups that other sessions train, in their order."""
        return [self.groups[place] for place in sorted(place for _, place in self.later)]

    def stuck(self) -> bool:
        """Whether groups wait, and each of them waits for a parent."""
        return bool(self.waiting) and not self.ready and not self.later

    def rest(self) -> list[Group]:
        """Return the groups that are not begun, in their order."""
        return [self.groups[place] for place in sorted(self.waiting)]
