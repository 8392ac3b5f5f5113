"""Whether several networks are one architecture: the same in everything but the values of parameters and buffers."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kdlib.attributes import attributes_of, class_of, same
from kdlib.errors import KDError
from kdlib.terminal import shortened

__all__ = ["refuse_differences", "refuse_what_cannot_be_stacked", "restore_settings", "settings_of"]

REMEDY = "train the others in a separate group"


def refuse_differences(members: Sequence[nn.Module]) -> None:
    """Refuse no member, and members that differ in anything but the values of tensors (KDError).

    That is: classes and names of modules, their attributes (the rate of dropout, a stride), their mode, hooks, and
    name, shape, type, device and `requires_grad` of parameters and buffers.
    """
    if not members:
        raise KDError(f"expected networks of one architecture, found none; {REMEDY}")
    first = _of(members[0])
    for number, member in enumerate(members[1:], 1):
        other = _of(member)
        stacked = {id(value) for network in (members[0], member) for value in _stacked(network)}
        for name in (*first, *other):
            here, there = first.get(name, "absent"), other.get(name, "absent")
            if not same(here, there, stacked):
                found = f"{_told(here)} and, in member {number}, {_told(there)}"
                raise KDError(
                    "expected networks of one architecture, that differ in the values of tensors only, found "
                    f"{name}: {found}; {REMEDY}"
                )


def refuse_what_cannot_be_stacked(member: nn.Module, has_draws: bool) -> None:
    """Refuse a network that vmap would map over wrongly, or from whose stack no member could be taken (KDError)."""
    for name, module in member.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0 and not has_draws:
            problem = f"dropout with its own random numbers in {name!r}; give the network `draws`, as Replicas says"
        elif type(module).get_extra_state is not nn.Module.get_extra_state:
            problem = f"an extra state in {type(module).__name__} {name!r}; keep it in buffers"
        elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # torch's vmap leaves this row out for the first member only.
            problem = f"padding_idx in the embedding {name!r}; leave it out, and set the padding to 0 in forward"
        elif any("/" in part for part in (name, *module._parameters, *module._buffers)):
            problem = f"a name with / in {type(module).__name__} {name!r}; rename it"
        else:
            continue
        raise KDError(f"expected a network that can be stacked, found {problem}, or train the members one by one")
    if next(member.parameters(), None) is None:
        raise KDError("expected a network that can be stacked, found no parameter; there is nothing to train")


def settings_of(network: nn.Module) -> dict[str, dict[str, str]]:
    """Return what a checkpoint can say of a network besides its tensors, by the name of the layer.

    That is: class and settings of torch's own layers (the rate of dropout, a stride), and which parameters learn.
    """
    found: dict[str, dict[str, str]] = {}
    for path, module in network.named_modules():
        learn = {name: str(p.requires_grad) for name, p in module._parameters.items() if p is not None}
        settings = {f"{name}.requires_grad": value for name, value in learn.items()}
        if type(module).__module__.startswith("torch.nn."):  # a class of the user's may be renamed
            plain = {name: repr(value) for name, value in vars(module).items() if _is_setting(name, value)}
            settings |= {"class": type(module).__qualname__, **plain}
        if settings:
            found[path or "the network"] = settings
    return found


def restore_settings(network: nn.Module, settings: dict[str, dict[str, str]]) -> None:
    """Set what `settings_of` returned for this network at another time: it may have been changed since.

    KDError for a layer of another class.
    """
    now = settings_of(network)
    for place, layer in settings.items():
        module = network.get_submodule("" if place == "the network" else place)
        for name, text in layer.items():
            if now.get(place, {}).get(name, text) == text:
                continue
            if name == "class":
                raise KDError(f"{place}: expected a layer of class {text}, found {now[place][name]}; begin with it")
            if name.endswith(".requires_grad"):
                parameter = module._parameters[name.removesuffix(".requires_grad")]
                assert parameter is not None
                parameter.requires_grad_(text == "True")
            else:
                setattr(module, name, float(text) if text in ("inf", "-inf", "nan") else ast.literal_eval(text))


def _is_setting(name: str, value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    known = all(isinstance(part, bool | int | float | str | None) for part in parts)
    return known and name != "training" and not name.startswith("_")


def _stacked(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _of(network: nn.Module) -> dict[str, Any]:
    """All that members must share, by name."""
    found: dict[str, Any] = {}
    for path, module in network.named_modules(remove_duplicate=False):  # tied modules under all of their names
        place = path or "the network"
        found[place] = class_of(module)
        for name, value in attributes_of(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                found[f"{place}, {name}"] = value
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            found[f"{place}, {name}"] = tensor
    # Weights that are tied in one member must be tied in all.
    found["parameters"] = [name for name, _ in network.named_parameters()]
    return found


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}, requires_grad {value.requires_grad}"
    return shortened(value.__qualname__ if isinstance(value, type) else repr(value), 200)
