"""Whose a checkpoint is: label, network, optimizer, and the seeds and data of the loop that trained its epochs."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_flatten_with_path

from kdlib.checkpoint import REMEDY, read_checkpoint
from kdlib.checks import check_kind
from kdlib.errors import CheckpointReplaced, KDError, some_of
from kdlib.files import canonical_json, identity, read_json
from kdlib.packing import layout_of

__all__ = [
    "OtherStart",
    "first_of",
    "loop_of",
    "named",
    "owner_of",
    "refuse_another",
    "refuse_another_loop",
    "refuse_changed",
    "refuse_late_copy",
    "refuse_more_epochs",
    "refuse_replaced",
    "refuse_second_start",
    "warn_of_other_start",
]

SHOWN = 4  # names of weights that an error tells of a group


class OtherStart(UserWarning):
    """A training goes on from a checkpoint whose training began with other weights or extras than this one's."""


def named(extras: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the extras of a training; KDError unless they are objects under names."""
    check_kind("extras", {} if extras is None else extras, Mapping, 'name each: extras={"scheduler": scheduler}')
    for name in extras or {}:
        check_kind("name of an extra", name, str, 'write extras={"scheduler": scheduler}, for example')
    return dict(extras or {})


def owner_of(label: str, about: Mapping[str, Any] | None, extras: Mapping[str, Any], place: str) -> Any:
    """Return what a checkpoint says of whose it is; KDError for what could not be read back."""
    check_kind("label", label, str, "write label=f'seed {seed}', for example")
    check_kind("about", {} if about is None else about, Mapping, "write about={'temperature': 4.0}, for example")
    return _json_of({"label": label, "about": about or {}, "extras": sorted(extras)}, place)


def loop_of(
    batches: Any, seeds: Sequence[int], frozen: Sequence[str], numbers: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Return what a checkpoint says of the loop that trains it: seeds, data, frozen modules, numbers of functions."""
    seed = seeds[0] if len(seeds) == 1 else [*seeds]
    return dict(_json_of({"seed": seed, "data": _data(batches), "frozen": [*frozen], "numbers": numbers}, place))


def first_of(extras: Mapping[str, Any]) -> dict[str, str]:
    """Return the numbers and texts in the first states of the extras, but not of modules, optimizers, schedulers."""
    others = {name: each for name, each in extras.items() if not isinstance(each, nn.Module | Optimizer | LRScheduler)}
    leaves, _ = tree_flatten_with_path({name: each.state_dict() for name, each in others.items()})
    return {_dotted(path): repr(value) for path, value in leaves if isinstance(value, bool | int | float | str)}


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def warn_of_other_start(stored: Mapping[str, Any], own: Mapping[str, Any], epoch: int, place: str) -> None:
    """Warn (OtherStart) if a checkpoint's training began with other weights, or other numbers and texts of extras.

    Weights may be random in each process.
    """
    if differ := _differences(stored["extras"], own["extras"]):
        warnings.warn(
            f"{place}: these extras are not as when the training of the checkpoint began: {some_of(differ, '; ')}. "
            f"It goes on with the checkpoint's, after epoch {epoch}. If this is another training, give it another "
            "checkpoint",
            OtherStart,
            stacklevel=5,
        )
    if stored["start"] != own["start"]:
        warnings.warn(
            f"{place}: the weights of this network, or of the extras, are not those that the training of the "
            f"checkpoint began with; it goes on with those of the checkpoint, after epoch {epoch}. If this is another "
            "training, give it another checkpoint. If it is the same, seed the weights with torch.manual_seed before "
            "you make them",
            OtherStart,
            stacklevel=5,
        )


def refuse_another_loop(stored: Mapping[str, Any], now: Mapping[str, Any], place: str) -> None:
    """Refuse (KDError) a checkpoint whose epochs were trained with other seeds, data or frozen modules.

    Warn (OtherStart) if values that the objective and the other functions use differ, of those that both have.
    """
    hint = (
        "frozen are the modules that are in evaluation mode when the loop begins, and a loop may leave others so: if "
        "this is the same training, make the network again; else "
    )
    _refuse(_differences(_facts(stored), _facts(now)), place, hint if stored["frozen"] != now["frozen"] else "")
    known, own = stored.get("numbers", {}), now["numbers"]
    both = known.keys() & own.keys()
    if differ := _differences(*({name: each[name] for name in sorted(both)} for each in (known, own))):
        warnings.warn(
            f"{place}: these values that the objective, the batches or the rate use are not as when the training of "
            f"the checkpoint began: {some_of(differ, '; ')}. It goes on with the new ones, and trains only the epochs "
            "that the checkpoint does not have. If this is another training, give it another checkpoint; put a "
            'temperature, for example, into Progress(..., about={"temperature": 4.0}), and it is refused',
            OtherStart,
            stacklevel=5,
        )


def _facts(loop: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a loop must not differ in."""
    return {name: value for name, value in (loop or {}).items() if name != "numbers"}


def _data(batches: Any) -> Any:
    """What the batches are made of, if they say so: one object, or one for each member of a stack under its number."""
    members = getattr(batches, "members", [batches])
    told = [getattr(member, "identity", getattr(member, "about", dict)) for member in members]
    about: list[dict[str, Any]] = [each() if callable(each) else {} for each in told]
    return about[0] if len(about) == 1 else {str(number): each for number, each in enumerate(about)}


def refuse_second_start(epoch: int, steps: int, count: int, has_checkpoint: bool, place: str) -> None:
    """Refuse (KDError) a second loop: with a checkpoint, after an epoch that broke off, or with no epoch to train.

    `epoch` and `steps` are what the first one has done, `count` what the second one is to do in all.
    """
    again = (
        "to go on with this training, make the network, the optimizer and Progress again: they go on from the "
        "checkpoint, if there is one"
    )
    if steps:
        raise KDError(
            f"{place}: expected a training at the end of an epoch, found one that broke off within epoch {epoch + 1}, "
            f"after {steps} steps; {again}"
        )
    if has_checkpoint:  # a script that is run again could not tell where its code between the two loops had been
        raise KDError(
            f"{place}: expected one loop for each checkpoint, found a second one; for another training of this "
            f"network, make another Progress with a checkpoint of its own, after the first loop; {again}"
        )
    if 0 < count <= epoch:
        raise KDError(
            f"{place}: expected more than {epoch} epochs, which this Progress has trained, found count={count}; it "
            f"counts all of them: write count={epoch + count} for {count} more, or make another Progress"
        )


def refuse_more_epochs(done: int, begun: bool, count: int, place: str) -> None:
    """Refuse (KDError) a checkpoint with more than `count` epochs: `done` ones, and another one if that is `begun`."""
    if done + begun > count:
        raise KDError(
            f"{place}: expected at most {count} epochs, as many as this loop is to train in all, found {done}"
            f"{' and a part of another' if begun else ''}; train more, or {REMEDY}"
        )


def refuse_another(stored: Mapping[str, Any], own: Mapping[str, Any], place: str) -> None:
    """Refuse (KDError) the checkpoint of another training, and name what differs.

    `stored` holds the notes of the checkpoint, `own` those of this training before any step, and its `Layers`.
    """
    network, other = stored["first"]["network"], own["first"]["network"]
    was, now = layout_of(stored["model"]), layout_of(own["model"])
    # Observers of quantisation find the shape of their buffers in the first step; load_state_dict refuses other ones.
    was |= {
        name: now[name] for name in own["layers"].shapes if name in now and _type_of(name, now) == _type_of(name, was)
    }
    pairs = [
        (stored["owner"], own["owner"]),
        ({"network": was}, {"network": now}),
        (_layouts(stored, own["layers"].parts), _layouts(own, own["layers"].parts)),
        ({"network": _shared(network, other)}, {"network": _shared(other, network)}),
        *_optimizers(stored, own),
        ({"schedulers": stored["first"]["schedulers"]}, {"schedulers": own["first"]["schedulers"]}),
    ]
    _refuse([text for one, other in pairs for text in _differences(one, other)], place)


def refuse_changed(is_changed: bool, place: str) -> None:
    """Refuse (KDError) to go on if the weights or the optimizer's state are no longer those of the checkpoint."""
    if is_changed:
        raise KDError(
            f"{place}: expected the weights and the optimizer state of the checkpoint, which Progress has loaded, "
            "found that something has changed them; make Progress last, right before its loop"
        )


def refuse_late_copy(name: str, kept: Collection[str], place: str) -> None:
    """Refuse (KDError) to keep weights before a loop that goes on, unless the checkpoint holds those of before it."""
    if name not in kept:
        raise KDError(
            f"{place}: expected that weights kept before the loop are in its checkpoint, found none under {name!r}: "
            "those of now are of a later epoch; keep them in the loop, or after it, and enter it also when all is "
            "trained, or remove the checkpoint to train anew"
        )


def refuse_replaced(path: Path, read: Any, told: tuple[Any, list[dict[str, float]], Any], place: str) -> None:
    """Refuse (CheckpointReplaced) to replace a checkpoint of another training than that of this owner, history, loop.

    `read` is the identity of the file that this training has read or written. A file system may number its files anew.
    """
    if identity(path) in (None, read):
        return
    try:
        _, notes = read_checkpoint(path)
    except KDError:
        return
    owner, history, loop = told
    found = notes["owner"], notes["history"] + history[len(notes["history"]) :], _facts(notes["loop"])
    if (owner, history, _facts(loop)) != found:
        raise CheckpointReplaced(
            f"{place}: expected the checkpoint that this training has written, found that another one has replaced it; "
            "give each training a checkpoint of its own, with its seed in the name, for example"
        )


def _json_of(about: Mapping[str, Any] | None, place: str) -> Any:
    """Return what a caller said about a training, as a file gives it back; KDError if JSON cannot hold it."""
    try:
        return read_json(canonical_json({} if about is None else dict(about)))
    except (TypeError, ValueError) as error:
        raise KDError(
            f"{place}: about: expected finite numbers, texts, lists and dicts, found what JSON cannot hold ({error}); "
            "name the numbers themselves, and texts in UTF-8"
        ) from error


def _optimizers(stored: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The settings and weights of each optimizer: those of the checkpoint, and those of this training."""
    first, now = stored["first"], own["first"]
    yield {"optimizers": sorted(first["optimizers"])}, {"optimizers": sorted(now["optimizers"])}
    for name, optimizer in now["optimizers"].items():
        if (before := first["optimizers"].get(name)) is None:
            continue
        last, place = stored["settings"][name], f"extras.{name}" if name else "optimizer"
        # Its settings may have changed since the training began, by a scheduler, for example.
        like = last if optimizer == last or before["class"] != last["class"] else before
        yield {place: _by_name(like, optimizer)}, {place: _by_name(optimizer, like)}
        weights, others, place = first["weights"][name], now["weights"][name], f"{place}.weights" if name else "weights"
        yield {place: _without(weights, others)}, {place: _without(others, weights)}


def _without(weights: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The names of an optimizer's weights, by group, that another one does not have there; the order may differ."""
    groups = [*others, *[[]] * len(weights)]
    lacking = [sorted({*names} - {*groups[number]})[:SHOWN] for number, names in enumerate(weights)]
    return {f"group {number}": names for number, names in enumerate(lacking) if names}


def _layouts(notes: Mapping[str, Any], parts: Iterable[str]) -> dict[str, Any]:
    """Type and shape of the tensors of the extras that are modules."""
    extras = dict(notes["extras"]["dict"])
    names = [part.removeprefix("extras/").removesuffix("/") for part in parts if part]
    return {f"extras.{name}": layout_of(extras[name]) for name in names if name in extras}


def _type_of(name: str, layout: Mapping[str, str]) -> str:
    return layout.get(name, "").partition(" ")[0]


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


def _refuse(differ: Sequence[str], place: str, hint: str = "") -> None:
    if differ:
        raise KDError(
            f"{place}: expected the checkpoint of this training, found another's "
            f"({some_of(differ, '; ')}); {hint}{REMEDY}"
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
