"""What a training refuses before its first step, because it could not be trained or resumed."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kdlib.checks import check_kind
from kdlib.element_wise import mixes_members
from kdlib.errors import KDError, NonFiniteLoss, some_of
from kdlib.files import tensor_digest
from kdlib.packing import lazy_names, unwrapped
from kdlib.replicas import Replicas

__all__ = [
    "MembersMayMix",
    "WeightsNotTrained",
    "Optimizers",
    "check_measurement",
    "check_optimizers",
    "check_training",
    "check_weights",
    "has_own_zero_grad",
    "load_state",
    "refusing_kept_gradients",
    "state_of",
    "weights_of",
    "weights_that_are_not_finite",
]


class WeightsNotTrained(UserWarning):
    """Weights of the model, of an extra or of the loss are to learn, but no optimizer holds them."""


class MembersMayMix(UserWarning):
    """Nobody knows whether an optimizer treats the members of Replicas apart."""


Optimizers = Mapping[str, torch.optim.Optimizer]  # that of the loop has the name "", others that of an extra


def check_training(model: nn.Module, optimizer: torch.optim.Optimizer, extras: Mapping[str, Any], place: str) -> None:
    """Refuse (KDError) models, optimizers and extras that the loop cannot train or a checkpoint cannot hold."""
    remedy = "write Progress(model, optimizer)"
    check_kind("model", model, nn.Module, remedy)
    if isinstance(optimizer, type) or not (hasattr(optimizer, "step") and hasattr(optimizer, "param_groups")):
        check_kind("optimizer", optimizer, torch.optim.Optimizer, remedy)
    if isinstance(unwrapped(model), Replicas) and unwrapped(model) is not model:
        raise KDError(
            f"{place}: expected Replicas as they are, found them within {type(model).__name__}; "
            "leave the wrapper out: the loop must seed the members' dropout"
        )
    if lazy := lazy_names(model):
        raise KDError(f"{place}: expected weights with values, found the lazy {lazy[0]}; call the model first")
    for name, value in extras.items():
        if isinstance(value, nn.Module) and (lazy := lazy_names(value)):
            raise KDError(
                f"{place}: expected weights with values, found the lazy {lazy[0]} of the extra {name!r}; call it first"
            )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise KDError(
            f"{place}: expected an optimizer that makes one step of one loss, found {type(optimizer).__name__}, which "
            "needs the loss several times; use another, such as SGD or Adam"
        )
    own = {id(weight) for weight in model.parameters()} if isinstance(model, Replicas) else set()
    for each in (optimizer, *(value for value in extras.values() if isinstance(value, torch.optim.Optimizer))):
        held = any(id(weight) in own for group in each.param_groups for weight in group["params"])
        mixes = held and mixes_members(each)
        if mixes is None:
            warnings.warn(
                f"{place}: it could not be tried whether {type(each).__name__} treats each number alone, as Replicas "
                "need it. If it does not (a limit of a norm over all weights, for example), it mixes the members; then "
                "train them alone",
                MembersMayMix,
                stacklevel=4,
            )
        if mixes:
            raise KDError(
                f"{place}: expected an optimizer that treats each number alone, as SGD and Adam do, found "
                f"{type(each).__name__}, which would mix the members; use one of those, or train the members alone"
            )
    for name, value in extras.items():
        if isinstance(value, type) or not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
            raise KDError(
                f"extras: expected objects with state_dict and load_state_dict, found {type(value).__name__} under "
                f"{name!r}; leave it out, or give it these methods"
            )


def check_optimizers(network: nn.Module, optimizers: Optimizers, saved: Mapping[str, Any] | None = None) -> None:
    """Refuse (KDError) optimizers that hold none of the weights to train; warn (WeightsNotTrained) if they lack some.

    They may also hold weights that are not the network's, such as those of a layer that only the loss uses. With a
    checkpoint, these must be in one of the `saved` extras (KDError).
    """
    every = weights_of(optimizers)
    held = {id(value) for value in every}
    if saved is not None:
        modules = [network, *(value for value in saved.values() if isinstance(value, nn.Module))]
        known = {id(weight) for module in modules for weight in module.parameters()}
        others = [value for value in saved.values() if not isinstance(value, nn.Module | torch.optim.Optimizer)]
        if lost := [value for value in every if id(value) not in known and not _is_saved(value, others)]:
            raise KDError(
                f"expected the weights of all optimizers in the checkpoint, found {len(lost)} that are neither the "
                f"model's nor in extras, the first of shape {tuple(lost[0].shape)}: a resumed training would lose "
                'them. Use Progress(..., extras={"hint": layer}), and nn.ParameterList([weight]) for a single weight'
            )
    learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
    left = [name for name, value in learning.items() if id(value) not in held]
    if not left:
        return
    names = some_of(left)
    if len(left) == len(learning):
        raise KDError(
            f"expected an optimizer of the model's weights, found one that holds none of {names}; make it from "
            "model.parameters(), after the last change of the model's layers"
        )
    warnings.warn(
        f"the optimizer does not hold {names}, so they remain as they are; make it after the last change of the "
        "model's layers, or call requires_grad_(False) on them",
        WeightsNotTrained,
        stacklevel=4,
    )


def weights_of(optimizers: Optimizers) -> list[Tensor]:
    """Return the weights that the optimizers hold."""
    return [value for each in optimizers.values() for group in each.param_groups for value in group["params"]]


def check_measurement(name: str, value: Any, label: str, epoch: int) -> None:
    """Refuse (NonFiniteLoss) a measurement of an epoch that is NaN or infinite, and what is no number (KDError)."""
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError, OverflowError) as error:  # a tensor of several numbers, a text
        raise KDError(f"{name}: expected a number to record, found {type(value).__name__} ({error})") from error
    if not finite:
        raise NonFiniteLoss(
            f"{label}: expected a finite {name}, found {float(value)} at epoch {epoch}; lower the learning rate or "
            "check the inputs"
        )


def weights_that_are_not_finite(optimizers: Optimizers) -> set[int]:
    """Return the ids of weights that hold NaN or infinite numbers: -inf may exclude something."""
    every = [value for value in weights_of(optimizers) if value.layout == torch.strided and not value.is_meta]
    return {id(value) for value in every if not bool(value.detach().isfinite().all())}


def check_weights(network: nn.Module, optimizers: Optimizers, before: set[int], label: str, epoch: int) -> None:
    """Refuse (NonFiniteLoss) weights that a step has made NaN or infinite: the losses before it were finite.

    `before` are the ids of weights that were so when the loop began.
    """
    names = {id(value): name for name, value in network.named_parameters()}
    if not (found := weights_that_are_not_finite(optimizers) - before):
        return
    wrong = next(value for value in weights_of(optimizers) if id(value) in found)
    raise NonFiniteLoss(
        f"{label or 'training'}: expected finite weights after epoch {epoch}, found NaN or infinite ones in "
        f"{names.get(id(wrong), 'a weight of the optimizer')}, although all losses were finite: the gradient of a step "
        "was not. Clip the gradients, lower the learning rate or look for a division by zero in the objective"
    )


def has_own_zero_grad(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer may keep gradients, to add up those of several steps: torch's own ones never do."""
    return getattr(optimizer.zero_grad, "__func__", None) is not torch.optim.Optimizer.zero_grad


def refusing_kept_gradients(step: Callable[[Any], Tensor], optimizer: torch.optim.Optimizer) -> Callable[[Any], Tensor]:
    """Return the step; then it refuses (KDError) an optimizer that keeps gradients, which no checkpoint holds."""

    def checked(batch: Any) -> Tensor:
        optimizer.zero_grad()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if any(weight.grad is not None and bool(weight.grad.any()) for weight in weights):
            raise KDError(
                f"expected an optimizer that clears the gradients before each step, found {type(optimizer).__name__}, "
                "which keeps them: a checkpoint does not hold gradients. Use larger batches, or train without a "
                "checkpoint"
            )
        return step(batch)

    return checked


def _is_saved(weight: Tensor, extras: Sequence[Any]) -> bool:
    """Whether the state of an extra holds a weight: then the state changes with it."""
    before = _digest_of(extras)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(1.0 if bool((kept != 1).any()) else 2.0)
        now = _digest_of(extras)
        weight.copy_(kept)
    return now != before


def _digest_of(extras: Sequence[Any]) -> str:
    leaves = tree_leaves([value.state_dict() for value in extras])
    return tensor_digest({str(number): leaf for number, leaf in enumerate(leaves) if isinstance(leaf, Tensor)})


def _in_saved_types(loaded: Any, saved: Any) -> Any:
    """Entries of an optimizer's state, also those within others, in the types in which they were saved."""
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        for key in loaded:
            loaded[key] = _in_saved_types(loaded[key], saved.get(key))
    elif isinstance(loaded, list | tuple) and isinstance(saved, list | tuple) and len(loaded) == len(saved):
        return type(loaded)(map(_in_saved_types, loaded, saved))
    return loaded


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state_dict of an optimizer without its groups, whose values `kdlib.rates.Rates` holds."""
    return {key: value for key, value in optimizer.state_dict().items() if key != "param_groups"}


def load_state(optimizer: torch.optim.Optimizer, state: dict[Any, Any]) -> None:
    """Give an optimizer the state_dict (moments, for example) of another one; its groups stay as they are."""
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    # torch gives all entries the type of their weight: masters in float32 of weights in 16 bits, masks, row numbers.
    for number, parameter in enumerate(weight for group in optimizer.param_groups for weight in group["params"]):
        if parameter in optimizer.state:
            saved = state.get("state", {}).get(number, {})
            optimizer.state[parameter] = _in_saved_types(optimizer.state[parameter], saved)
    # Fused optimizers pair weights and moments by their place in memory, so a moment needs the strides of its weight.
    # A file does not keep strides.
    for parameter, entries in optimizer.state.items():
        if not isinstance(parameter, Tensor) or not isinstance(entries, dict):
            continue  # an entry of the optimizer as a whole
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
