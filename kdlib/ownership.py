"""Whose a checkpoint is: label, network, optimizer, and the seeds and data of the loops that trained its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdlib.checkpoint import REMEDY
from kdlib.errors import KDError
from kdlib.files import canonical_json, read_json
from kdlib.packing import layout_of

__all__ = ["Loops", "json_of", "refuse_another"]

SHOWN = 4  # differences that an error names


class Loops:
    """The loops that trained a training's epochs: the first epoch of each, its seeds, its data, and its count.

    A training may consist of several loops. A resumed training calls them all again, and those that are done train
    nothing; so each call of a loop is compared with the epochs that it would have trained. A loop that was left early
    is done if another one followed. Two loops of one seed, count and data are taken for one.
    """

    def __init__(self) -> None:
        self.stored: list[dict[str, Any]] = []
        self.known = 0  # epochs whose loops this process has trained or compared
        self.called = 0  # stored loops that this process has called again, or trained
        self.now: dict[str, Any] = {}

    @property
    def replays(self) -> bool:
        """Whether this process has called again some of a checkpoint's loops, and not yet the last one."""
        return 0 < self.called < len(self.stored)

    def is_done(self, batches: Any, seeds: Sequence[int], count: int, begun: int, place: str) -> bool:
        """Take a loop of `count` epochs in all; return whether the checkpoint has a later one.

        `begun` epochs are begun. KDError for another count after a loop that was left early.
        """
        now = {"seed": seeds[0] if len(seeds) == 1 else [*seeds], "data": _data(batches), "count": count}
        self.now, spans = json_of(now, place), self._spans(begun)
        same = (n for n in range(self.called, len(spans)) if self._is_now(spans[n][2]))
        found = next(same, None)
        if found is not None:
            self.called = found + 1
            if self.called < len(spans):
                self.known = max(self.known, spans[found][1])
                return True
        elif 0 < self.called == len(spans) - 1 and any(until < loop["count"] for _, until, loop in spans[:-1]):
            # The count may have been computed from the number of epochs, which was another one at the first time.
            raise KDError(
                f"{place}: expected a loop of {spans[-1][2]['count']} epochs in all after one that was left early, as "
                f"at the first time, found {count}; write that number, and add another loop for further epochs"
            )
        return False

    def begins(self, count: int, done: int, begun: int, place: str) -> bool:
        """Begin the loop that `is_done` took; return whether it goes on from the last epoch of a checkpoint.

        `done` epochs are finished. KDError, with `place` and what differs, if the checkpoint's epochs were trained with
        other seeds or data, or if it holds more epochs than were asked for.
        """
        last, before = min(count, begun), self.known
        for first, until, loop in self._spans(begun):
            if first <= last and until > before:
                _refuse_another(loop, self.now, place)
            if before < count < done and first <= count <= until and loop["count"] != count:
                raise KDError(
                    f"{place}: expected at most {count} epochs, as many as this loop is to train in all, found {done}; "
                    f"train {done} or more, or {REMEDY}"
                )
        self.known = max(before, last)
        return before < begun == last

    def trains(self, epoch: int) -> None:
        """Note that the current loop trains an epoch."""
        self.stored = [loop for loop in self.stored if loop["first"] < epoch]  # it may have broken off, and begin again
        if not self.stored or not self._is_now(self.stored[-1]):
            self.stored.append({"first": epoch, **self.now})
        self.known, self.called = epoch, len(self.stored)

    def _is_now(self, loop: Mapping[str, Any]) -> bool:
        return self.now == {name: loop[name] for name in self.now}

    def _spans(self, begun: int) -> list[tuple[int, int, dict[str, Any]]]:
        """First and last epoch of each stored loop."""
        firsts = [loop["first"] for loop in self.stored]
        untils = [*(first - 1 for first in firsts[1:]), begun]
        return list(zip(firsts, untils, self.stored, strict=bool(firsts)))


def _data(batches: Any) -> Any:
    """What the batches are made of, if they say so: one object, or one for each member of a stack under its number."""
    members = getattr(batches, "members", [batches])
    about: list[dict[str, Any]] = [getattr(member, "identity", getattr(member, "about", dict))() for member in members]
    return about[0] if len(about) == 1 else {str(number): each for number, each in enumerate(about)}


def _refuse_another(stored: dict[str, Any], now: dict[str, Any], place: str) -> None:
    _refuse(_differences(*({name: loop[name] for name in ("seed", "data")} for loop in (stored, now))), place)


def refuse_another(stored: Mapping[str, Any], own: Mapping[str, Any], place: str) -> None:
    """Refuse (KDError) the checkpoint of another training, and name what differs.

    `stored` holds the notes of the checkpoint, `own` the same notes of this training before any step.
    """
    first, last, optimizer = stored["first"]["optimizer"], stored["settings"], own["first"]["optimizer"]
    # Its settings may have changed since the training began, by a scheduler, for example.
    like = last if optimizer == last or first["class"] != last["class"] else first
    network, other = stored["first"]["network"], own["first"]["network"]
    pairs = [
        (stored["owner"], own["owner"]),
        ({"network": layout_of(stored["model"])}, {"network": layout_of(own["model"])}),
        ({"network": _shared(network, other)}, {"network": _shared(other, network)}),
        ({"optimizer": _by_name(like, optimizer)}, {"optimizer": _by_name(optimizer, like)}),
        ({"schedulers": stored["first"]["schedulers"]}, {"schedulers": own["first"]["schedulers"]}),
    ]
    _refuse([text for one, other in pairs for text in _differences(one, other)], place)


def json_of(about: Mapping[str, Any] | None, place: str) -> Any:
    """Return what a caller said about a training, as a file gives it back; KDError if JSON cannot hold it."""
    try:
        return read_json(canonical_json({} if about is None else dict(about)))
    except (TypeError, ValueError) as error:
        raise KDError(
            f"{place}: about: expected finite numbers, texts, lists and dicts, found what JSON cannot hold ({error}); "
            "name the numbers themselves, and texts in UTF-8"
        ) from error


def _shared(network: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network's layers that the other network's layers of the same name have too."""
    # Another version of torch may have settings that this one does not know.
    return {
        place: {name: value for name, value in layer.items() if name in other[place]}
        if place in other
        else layer.get("class")
        for place, layer in network.items()
    }


def _by_name(optimizer: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's class and, if the other one is of this class, the settings of its groups."""
    # Another version of torch may have settings that this one does not know.
    groups = optimizer["groups"] if optimizer["class"] == other["class"] else []
    known = [{*group} for group in other["groups"]]
    return {"class": optimizer["class"]} | {
        f"group {number}": {k: v for k, v in group.items() if number >= len(known) or k in known[number]}
        for number, group in enumerate(groups)
    }


def _refuse(differ: Sequence[str], place: str) -> None:
    if differ:
        more = f"; and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise KDError(
            f"{place}: expected the checkpoint of this training, found another's "
            f"({'; '.join(differ[:SHOWN])}{more}); {REMEDY}"
        )


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs between two JSON objects; an object within an object is compared entry by entry."""
    found = []
    for name in [*stored, *(name for name in given if name not in stored)]:
        first, second = stored.get(name), given.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += [f"{name}.{text}" for text in _differences(first, second)]
        elif first != second or isinstance(first, bool) != isinstance(second, bool):
            found.append(f"{name}: the checkpoint has {first!r}, this training {second!r}")
    return found
