"""Training and evaluation mode of layers: which ones a training leaves as they are, and which were hardly meant."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from kdlib.errors import some_of
from kdlib.parts import is_of_library, names_of

__all__ = [
    "FrozenWeightsAdapt",
    "TrainedInEvaluation",
    "evaluated_by_train",
    "evaluated_within",
    "depends_on_mode",
    "has_own_train",
    "is_norm",
    "learns",
    "set_modes",
    "warn_of_modes",
]

RATES = ("drop_prob", "drop_path", "drop_rate", "dropout")  # attributes of layers that drop something
_forwards = WeakKeyDictionary[type, set[str]]()  # the names that the `forward` of a class uses


class TrainedInEvaluation(UserWarning):
    """Layers whose weights are trained are in evaluation mode, and so is a batch norm or a dropout next to them."""


class FrozenWeightsAdapt(UserWarning):
    """A batch norm whose weights do not learn is in training mode, so its averages change."""


def evaluated_within(network: nn.Module, with_own: bool = False) -> list[nn.Module] | None:
    """Return the modules in evaluation mode, but not the network, if others are in training mode; else None.

    `with_own`: these others must have weights, buffers or no module within them.
    """
    modules = [*network.modules()]
    if any(module.training and not (with_own and _only_holds_others(module)) for module in modules):
        return [module for module in modules if not (module.training or module is network)]
    return None


def evaluated_by_train(network: nn.Module, modules: Iterable[nn.Module]) -> set[int]:
    """Return the ids of those of a network's modules that its own `train` evaluates: many freeze their batch norm so.

    A copy without numbers is asked, because layers of low rank would merge their weights. There are none if the network
    cannot be copied.
    """
    owners = [module for module in network.modules() if has_own_train(module)]
    within = {id(module) for owner in owners for module in owner.modules()}
    if within.isdisjoint(map(id, modules)):
        return set()
    try:
        copied = copy.deepcopy(network, _without_numbers(network))
        copied.train()
        pairs = list(zip(network.modules(), copied.modules(), strict=True))
    except Exception:  # of any kind: the network's own code raises it
        return set()
    return {id(module) for module, other in pairs if not other.training}


def _without_numbers(network: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` in which each tensor of a network is a tensor of the device "meta"."""
    found: dict[int, Any] = {}
    for module in network.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                empty = value.detach().to("meta")
                is_weight = isinstance(value, nn.Parameter)
                found[id(value)] = nn.Parameter(empty, value.requires_grad) if is_weight else empty
    return found


def set_modes(network: nn.Module, modes: Sequence[tuple[nn.Module, bool]]) -> None:
    """Set the mode of each of these modules of a network: batches or an objective may have evaluated it.

    A class may do more than set the mode: layers of low rank merge their weights for evaluation. So its own `train` and
    `eval` are called.
    """
    if all(module.training == training for module, training in modes):
        return
    _call_own_trains(network, {id(module): training for module, training in modes})
    for module, training in modes:
        if module.training != training:
            module.training = training


def _call_own_trains(module: nn.Module, modes: Mapping[int, bool]) -> None:
    now = getattr(module, "training", None)
    training = modes.get(id(module), now)
    if training != now and has_own_train(module):
        module.train() if training else module.eval()
    for child in module.children():
        _call_own_trains(child, modes)


def has_own_train(module: nn.Module) -> bool:
    """Return whether the class of a module has a `train` or `eval` that is not torch's."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def warn_of_modes(
    network: nn.Module,
    frozen: Sequence[nn.Module],
    trained: Collection[int],
    told: set[str],
    place: str,
    by_its_train: Collection[int] = (),
    woken: Collection[int] = (),
) -> None:
    """Warn (TrainedInEvaluation, FrozenWeightsAdapt) of modes that cannot have been meant for each of these modules.

    `frozen` are the modules that stay in evaluation mode, `trained` the ids of the weights that optimizers hold. Names
    that were `told` are not told again, and modules that the network evaluates in its own `train` are meant so. Who
    freezes a batch norm evaluates that layer alone, or a part of the network whose other weights do not learn. A layer
    with weights that learn is evaluated with the module around it: by an `eval()` of a whole model before its head was
    replaced, or of a student in the body of the loop. `woken` are norms that the body has trained again, with weights
    that learn from then on.
    """
    named = {name or "the network": module for name, module in network.named_modules()}
    still = {id(module) for module in frozen}
    slips = still - {*by_its_train}
    learning = [
        name
        for name, each in named.items()
        if id(each) in slips and (id(each) in woken or not is_norm(each)) and learns(each, trained)
    ]
    others = [module for module in frozen if depends_on_mode(module)]
    if others and (new := [name for name in learning if name not in told]):
        told |= {*new}
        warnings.warn(
            f"{place}: {some_of(new)} have weights to train and are in evaluation mode, so they remain in it, and so "
            f"does a {type(others[0]).__name__} there: batch norm does not adapt, dropout does nothing. Call "
            "model.train() before the loop, and after an eval() in its body, or evaluate within `with "
            "kdlib.evaluating(model)`; a part that was frozen needs its train() before another loop. To freeze batch "
            "norm alone, call the eval() of its layers; of a teacher within the model, call requires_grad_(False)",
            TrainedInEvaluation,
            stacklevel=4,
        )
    adapt = [name for name, each in named.items() if id(each) not in still and _adapts(each) and name not in told]
    if adapt:
        told |= {*adapt}
        warnings.warn(
            f"{place}: the averages of {some_of(adapt)} change in training mode, although its weights do not learn. "
            "If a part is to remain as it is, a teacher for example, call its eval() before the loop",
            FrozenWeightsAdapt,
            stacklevel=4,
        )


def _only_holds_others(module: nn.Module) -> bool:
    return bool(module._modules) and not (module._parameters or module._buffers)


def learns(module: nn.Module, trained: Collection[int]) -> bool:
    """Return whether a module has weights of its own that learn, of those whose ids are `trained`."""
    own = [value for value in module._parameters.values() if value is not None]
    return any(value.requires_grad and id(value) in trained for value in own)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a norm, as far as its class tells."""
    return hasattr(module, "running_mean") or "norm" in type(module).__name__.lower()


def _adapts(module: nn.Module) -> bool:
    """Whether a module is a batch norm with averages whose weights, if it has some, do not learn."""
    own = [value for value in module._parameters.values() if value is not None]
    has_averages = getattr(module, "running_mean", None) is not None and getattr(module, "momentum", None) != 0
    return has_averages and bool(own) and not any(value.requires_grad for value in own)


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a layer computes something else in evaluation mode, as far as its class and attributes tell."""
    if getattr(module, "running_mean", None) is not None:
        return True
    name = type(module).__name__.lower()
    rates = [value for each in RATES if isinstance(value := getattr(module, each, None), int | float)]
    if "drop" in name or "stochasticdepth" in name:
        rates += [value] if isinstance(value := getattr(module, "p", None), int | float) else []
        return any(rate > 0 for rate in rates) if rates else True
    # Of recurrent layers, of attention, and of classes that call torch.nn.functional.dropout.
    return any(0 < rate <= 1 for rate in rates if isinstance(rate, float)) or _drops_by_hand(module)


def _drops_by_hand(module: nn.Module) -> bool:
    """Whether `forward`, or a method that it calls, uses `self.training` and something that drops at a rate above 0."""
    names = _names_of_forward(type(module))
    drops = {name for name in names if "drop" in name.lower() and not hasattr(type(module), name)}
    drops -= module._modules.keys()  # layers, which are asked themselves
    if "training" not in names or not drops:
        return False
    holders = [module, *(part for name in names if (part := module.__dict__.get(name)) is not None)]  # a configuration
    rates = [getattr(holder, name, None) for holder in holders for name in (*drops, *({"p"} & names))]
    numbers = [rate for rate in rates if isinstance(rate, int | float)]
    return any(rate > 0 for rate in numbers) if numbers else True


def _names_of_forward(kind: type) -> set[str]:
    """The names that `forward` uses, and the methods of the class that it calls, but for those of libraries."""
    if kind in _forwards:
        return _forwards[kind]
    found, methods = _forwards.setdefault(kind, set()), {"forward"}
    for name in (todo := [*methods]):  # grows
        for each in kind.__mro__:
            method: Any = vars(each).get(name)
            code = getattr(inspect.unwrap(method), "__code__", None)
            if isinstance(code, CodeType) and not is_of_library(each.__module__):
                found |= names_of(code)
                new = {other for other in names_of(code) - methods if hasattr(kind, other)}
                methods |= new
                todo += sorted(new)
    return found
