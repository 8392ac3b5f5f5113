"""What trains groups of runs for a session: this process, several processes, or the machines of a cluster."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from kdlib.run.group import Group, Outcome

__all__ = ["RESTARTS", "Executor"]

RESTARTS = 3  # of a group whose process or machine is gone


class Executor(Protocol):
    """Trains the groups that a session begins, side by side, and tells their events to the session's `report`.

    The parents of a group are in the store when it is begun. An outcome without a reason says that its runs are in the
    store; the same runs have the same bytes from every executor on the same kind of processor. A group whose process or
    machine is gone is begun again, RESTARTS times, and then has failed. What is still trained on exit is ended: it goes
    on from its last checkpoint in a later session.
    """

    @property
    def free(self) -> int:
        """The number of groups that can be begun now."""

    @property
    def busy(self) -> bool:
        """Whether `ended` has still to return a group."""

    def begin(self, group: Group) -> None:
        """Train a group; return at once, or at its end."""

    def ended(self) -> list[tuple[Group, Outcome]]:
        """Pass events on, and return the groups that have ended since the last call, and how; wait but a moment."""

    def __enter__(self) -> Executor:
        """Start what trains."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what trains."""
