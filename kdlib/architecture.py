"""Whether several networks are one architecture: the same in everything but the values of parameters and buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from kdlib.attributes import attributes_of, class_of, ids_within, same
from kdlib.checks import check_kind
from kdlib.errors import KDError
from kdlib.packing import lazy_names, unwrapped
from kdlib.terminal import shortened

__all__ = ["refuse_differences", "refuse_what_cannot_be_stacked", "refuse_what_is_shared"]

REMEDY = "train the others in a separate group"


def refuse_differences(members: Sequence[nn.Module]) -> None:
    """Refuse no member, what is no network, and members that differ in anything but the values of tensors (KDError).

    That is: classes and names of modules, their attributes (the rate of dropout, a stride), their mode, hooks, and
    name, shape, type, device and `requires_grad` of parameters and buffers.
    """
    check_kind("members", members, (Sequence, nn.ModuleList), "write Replicas([Student() for _ in seeds])")
    for member in members:
        check_kind("members", member, nn.Module, "give the networks themselves")
        if lazy := lazy_names(member):
            raise KDError(f"expected networks with weights, found the lazy {lazy[0]}; call each member once")
    if not members:
        raise KDError(f"expected networks of one architecture, found none; {REMEDY}")
    first = _of(members[0])
    for number, member in enumerate(members[1:], 1):
        other = _of(member)
        stacked = {id(value) for network in (members[0], member) for value in _stacked(network)}
        for name in (*first, *other):
            here, there = first.get(name, "absent"), other.get(name, "absent")
            if not same(here, there, stacked):
                found, remedy = f"{_told(here)} and, in member {number}, {_told(there)}", REMEDY
                if isinstance(here, Tensor) and _told(here) == _told(there):
                    found = f"{_told(here)} with other values in member {number}, neither a parameter nor a buffer"
                    remedy = (
                        "register it as one; weight_norm and spectral_norm: torch.nn.utils.parametrizations has others"
                    )
                raise KDError(
                    "expected networks of one architecture, that differ in the values of tensors only, found "
                    f"{name}: {found}; {remedy}"
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
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            problem = f"sparse gradients in {type(module).__name__} {name!r}; leave out sparse=True"
        elif _has_gradient_hooks(module):  # they are not called for the stack
            problem = f"hooks on gradients in {type(module).__name__} {name!r}; remove them"
        elif any("/" in part for part in (name, *module._parameters, *module._buffers)):
            problem = f"a name with / in {type(module).__name__} {name!r}; rename it"
        else:
            continue
        raise KDError(f"expected a network that can be stacked, found {problem}, or train the members one by one")
    if next(member.parameters(), None) is None:
        raise KDError("expected a network that can be stacked, found no parameter; there is nothing to train")
    if unwrapped(member) is not member:
        raise KDError(f"expected networks as they are, found one within {type(member).__name__}; leave the wrapper out")


def refuse_what_is_shared(member: nn.Module, copied: nn.Module) -> None:
    """Refuse a network if its copy still uses its layers or tensors (KDError): Python does not copy functions."""
    own = {
        id(part): name for name, part in (*member.named_modules(), *member.named_parameters(), *member.named_buffers())
    }
    for path, module in copied.named_modules():
        for name, value in attributes_of(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            if shared := [own[part] for part in own.keys() & ids_within(value)]:
                whose = min(shared) or "the network"
                raise KDError(
                    "expected a network whose copy has layers and weights of its own, found that "
                    f"{path or 'the network'}, {name} uses those of the first member ({whose}): Python does not copy "
                    "functions and weak references. Use a method of the network, or train the members one by one"
                )


def _has_gradient_hooks(module: nn.Module) -> bool:
    places = "_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks"
    objects = module, *module._parameters.values(), *module._buffers.values()
    return any(getattr(each, place, None) for each in objects for place in places)


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
