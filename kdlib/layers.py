"""What a checkpoint holds of layers besides their state_dict: settings, frozen modules, other buffers, and names."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlib.errors import KDError
from kdlib.files import tensor_digest
from kdlib.modes import evaluated_by_train, evaluated_within, is_norm, learns, set_modes, warn_of_modes
from kdlib.packing import can_be_saved, tensors_of_state, unwrapped
from kdlib.settings import Settings, changed_rules, layers_of, restore_rules, restore_settings, rules_of, settings_of
from kdlib.trainable import Optimizers, weights_of

__all__ = ["Layers"]


class Layers:
    """The layers of a training: which are frozen, and what a checkpoint holds of them besides their state_dict.

    `weights` are the names of the optimizer's weights, by group, `shapes` those of the network's buffers at first.
    """

    def __init__(self, network: nn.Module, extras: Mapping[str, Any], optimizers: Optimizers, place: str) -> None:
        self.network, self.parts, self._place = network, _parts_of(network, extras), place
        self._extras = extras
        self._trained = {id(weight) for weight in weights_of(optimizers)}
        self.weights = {name: _weight_names(each, self.parts) for name, each in optimizers.items()}
        self._told: set[str] = set()  # names of layers that a warning has named
        self.frozen: list[nn.Module] = []  # they remain in evaluation mode in all epochs
        self._asleep, self._woken = set[int](), set[int]()  # frozen norms that do not learn, and that learn again
        self._rules = rules_of(self.parts)  # at first
        evaluated = [module for module in network.modules() if not module.training]
        self._by_train = evaluated_by_train(network, evaluated)  # ids; it decides anew in each epoch
        self.shapes = {
            f"{start}{name}": v.shape for start, part in self.parts.items() for name, v in part.named_buffers()
        }
        self._others = {start: [*part.state_dict()] for start, part in self.parts.items() if start}
        self._kinds = {name: type(module) for name, module in layers_of(self.parts)}
        self._names: list[str] = []  # of the state_dict, as soon as the network has loaded one
        # The notes of the checkpoint.
        self._loaded: dict[str, Any] = {
            "layers": {},
            "frozen": [],
            "evaluated": [],
            "rules": {},
        }

    def freeze(self, anew: bool = False) -> None:
        """Let the modules that are in evaluation mode, if others are in training mode, remain so in all epochs.

        At the end of an epoch's body, a module that only holds other ones says nothing: the body may have evaluated
        the parts one by one.
        """
        if (found := evaluated_within(self.network, with_own=not anew)) is not None:
            self.frozen = [] if anew else self.frozen
            self._by_train |= evaluated_by_train(self.network, found) if anew else set()
            self._freeze_also(module for module in found if id(module) not in self._by_train)
        trained = [module for module in self.frozen if module.training and learns(module, self._trained)]
        self._woken |= self._asleep & {id(module) for module in trained}

    def begin_steps(self) -> list[tuple[nn.Module, bool]]:
        """Set and return the modes of an epoch's steps, after the network's `train`. Warns (`kdlib.modes`) of slips.

        What its own `train` has evaluated is left to it: in a later epoch it may decide otherwise.
        """
        self._by_train = {id(module) for module in self.network.modules() if not module.training}
        self.frozen = [module for module in self.frozen if module.training]
        self._asleep |= {id(m) for m in self.frozen if is_norm(m) and not learns(m, self._trained)}
        frozen, before = {id(module) for module in self.frozen}, [(m, m.training) for m in self.network.modules()]
        modes = [(module, training and id(module) not in frozen) for module, training in before]
        set_modes(self.network, modes)
        evaluated = [module for module, training in modes if not training]
        warn_of_modes(self.network, evaluated, self._trained, self._told, self._place, self._by_train, self._woken)
        return modes

    def state(self, remedy: str) -> dict[str, Any]:
        """Return a copy of the network's state. The first one is loaded into the network; KDError if it cannot be."""
        own = self.network.state_dict()
        state = copy.copy(own)  # with the versions of the layers, which torch keeps in an attribute
        for key, value in own.items():
            state[key] = value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        if not self._names:
            _check_state("a network", self.network, state, self._place, remedy)
        self._names = self._names or [*state]
        return state

    def prove(self, optimizers: Optimizers) -> str:
        """Let network, extras and optimizers load their own states; KDError if one cannot.

        Return the SHA-256 of all tensors of network and extras.
        """
        remedy = "train without a checkpoint"
        others = {name: each for name, each in self._extras.items() if name not in optimizers}
        own = {f"an extra {name!r}": value for name, value in others.items()}
        for optimizer in optimizers.values():
            if not type(optimizer).__module__.startswith("torch.optim"):
                own["an optimizer"] = optimizer
        for name, value in own.items():
            _check_state(name, value, copy.deepcopy(value.state_dict()), self._place, remedy)
        states = {"": self.state(remedy)} | {start: part.state_dict() for start, part in self.parts.items() if start}
        tensors = {f"{name} (not saved)": value for name, value in self.buffers().items()}
        for start, state in states.items():
            tensors |= {f"{start}{name}": value for name, value in tensors_of_state(state).items()}
        return tensor_digest(tensors)

    def settings(self) -> Settings:
        """Return the settings of all layers, by name."""
        return settings_of(self.parts)

    def frozen_names(self) -> list[str]:
        """Return the names of the frozen modules."""
        frozen = {id(module) for module in self.frozen}
        return [name for name, module in self.network.named_modules() if id(module) in frozen]

    def buffers(self) -> dict[str, Tensor]:
        """Return the buffers with `persistent=False`, which no state_dict has, by name."""
        return _unsaved_buffers(self.parts)

    def notes(self, optimizers: Optimizers) -> dict[str, Any]:
        """Return what a checkpoint says; KDError if the same script, run again, could not load the checkpoint."""
        for start, part in self.parts.items():
            _refuse_other_tensors(start, part, self._others.get(start, self._names), self.shapes, self._place)
        kinds = {name: type(module) for name, module in layers_of(self.parts)}
        if others := [name for name in {**self._kinds, **kinds} if kinds.get(name) is not self._kinds.get(name)]:
            raise KDError(
                f"{self._place}: expected the layers as at the beginning of the training, found another {others[0]}; "
                "a new network could not load a checkpoint of it. Change layers before Progress"
            )
        if any(_weight_names(each, self.parts) != self.weights[name] for name, each in optimizers.items()):
            raise KDError(
                f"{self._place}: expected an optimizer of the same weights as at the beginning of the training, found "
                "that some have come, gone or been replaced: a resumed training would lack them. Give the optimizer "
                "all weights at first, and requires_grad_(False) to those that learn later"
            )
        evaluated = [name for name, module in self.network.named_modules() if not module.training]
        notes = {"layers": self.settings(), "frozen": self.frozen_names(), "evaluated": evaluated}
        return notes | {"rules": changed_rules(self._rules, self._loaded["rules"], rules_of(self.parts))}

    def take(self, notes: Mapping[str, Any], buffers: Mapping[str, Tensor]) -> None:
        """Take what `notes` and `buffers` returned at another time."""
        self._loaded = {name: notes[name] for name in self._loaded}
        _restore_buffers(self.parts, buffers)
        restore_settings(self.parts, notes["layers"])
        restore_rules(self.parts, notes["rules"])

    def go_on(self) -> None:
        """Set the settings of the checkpoint again: code after Progress may have changed them; and freeze its modules.

        Without a further epoch, each module remains in the mode in which the body of the loop had left it.
        """
        restore_settings(self.parts, self._loaded["layers"])
        restore_rules(self.parts, self._loaded["rules"])
        modules = dict(self.network.named_modules())
        self._freeze_also(modules[name] for name in self._loaded["frozen"])
        for name, module in modules.items():
            module.training = name not in self._loaded["evaluated"]

    def _freeze_also(self, modules: Iterable[nn.Module]) -> None:
        known = {id(module) for module in self.frozen}
        self.frozen += [module for module in modules if id(module) not in known]


def _check_state(kind: str, owner: Any, state: Mapping[str, Any], place: str, remedy: str) -> None:
    """Refuse (KDError) what cannot load its own state_dict: its weights, for example, could not be had again."""
    try:
        owner.load_state_dict(state)
    except Exception as error:  # of any kind: the owner's own code raises it
        text = " ".join(str(error).split())[:200]
        raise KDError(
            f"{place}: expected {kind} that can load its own state_dict, found {type(error).__name__} ({text}); "
            f"correct its state_dict, or {remedy}"
        ) from error


def _refuse_other_tensors(
    start: str, network: nn.Module, first: Sequence[str], buffers: Mapping[str, Any], place: str
) -> None:
    """Refuse (KDError) to write a checkpoint that a new network, or an extra that is a module, could not load.

    `first` are the names of its state_dict at first, `buffers` the shapes of all buffers, `start` is what its names
    begin with there. A layer that loads its state in a way of its own, as the observers of quantisation do, may change
    these.
    """
    remedy = "a new network could not load a checkpoint of it"
    now = network.state_dict()
    if others := [*(name for name in now if name not in first), *(name for name in first if name not in now)]:
        raise KDError(
            f"{place}: expected the names of weights and buffers as at the beginning of the training, found "
            f"{len(others)} that have come or gone, such as {others[0]}; {remedy}. Change layers before Progress"
        )
    for path, module in network.named_modules():
        if type(module)._load_from_state_dict is not nn.Module._load_from_state_dict:
            continue
        for name, value in module._buffers.items():
            whole = start + f"{path}.{name}".lstrip(".")
            shape = buffers.get(whole)
            if value is not None and name not in module._non_persistent_buffers_set and value.shape != shape:
                raise KDError(
                    f"{place}: expected buffers as at the beginning of the training, found {whole} of shape "
                    f"{tuple(value.shape)}, then {tuple(shape or ())}; {remedy}. Give the buffer its whole size at "
                    "once, or keep it in an object of its own among the extras, which is no module"
                )


def _parts_of(network: nn.Module, extras: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Return the network and the extras that are modules, each under what its layers' names begin with."""
    modules = {name: unwrapped(value) for name, value in extras.items() if isinstance(value, nn.Module)}
    return {"": network, **{f"extras/{name}/": module for name, module in modules.items()}}


def _unsaved_buffers(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the buffers with `persistent=False`, which no state_dict has, by name."""
    found = {}
    for start, network in parts.items():
        for path, module in network.named_modules():
            for name in sorted(getattr(module, "_non_persistent_buffers_set", ())):
                if (value := module._buffers.get(name)) is not None and can_be_saved(value):
                    found[f"{start}{path}.{name}"] = value
    return found


def _restore_buffers(parts: Mapping[str, nn.Module], buffers: Mapping[str, Tensor]) -> None:
    """Set what `_unsaved_buffers` returned at another time; a buffer may have grown since it was made."""
    modules = {f"{start}{path}": module for start, part in parts.items() for path, module in part.named_modules()}
    for place, value in buffers.items():
        path, _, name = place.rpartition(".")
        if (module := modules.get(path)) is None:
            continue
        now = module._buffers.get(name)
        if now is None or (now.shape, now.dtype) != (value.shape, value.dtype):
            module.register_buffer(name, value, persistent=False)
        elif not torch.equal(now, value):  # a constant may be one that cannot be written
            with torch.no_grad():
                now.copy_(value)


def _weight_names(optimizer: torch.optim.Optimizer, parts: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return the names of the optimizer's weights, by group; one of none of the parts has its number and shape."""
    every = {
        id(value): f"{start}{name}" for start, module in parts.items() for name, value in module.named_parameters()
    }
    found = []
    for group in optimizer.param_groups:
        others = [value for value in group["params"] if id(value) not in every]
        numbers = {id(value): f"{number} of shape {tuple(value.shape)}" for number, value in enumerate(others)}
        found.append([(every | numbers)[id(value)] for value in group["params"]])
    return found


def in_order(state: Mapping[Any, Any], names: Sequence[Sequence[str]], now: Sequence[Sequence[str]]) -> dict[Any, Any]:
    """Return an optimizer's state_dict, without groups, for the same weights in their order of now.

    A set of weights, for example, has another order in each process. KDError for another order, and more entries than
    torch's own optimizers have.
    """
    if list(names) == list(now):
        return dict(state)
    if others := [key for key in state if key != "state"]:
        raise KDError(
            f"expected the optimizer's weights in the order of the checkpoint, found another one: kdlib does not know "
            f"the order of its {others[0]!r}; give it a list of weights in a fixed order"
        )
    before = {(group, name): n for n, (group, name) in enumerate(_numbered(names))}
    numbers = {before[key]: n for n, key in enumerate(_numbered(now))}
    return {"state": {numbers.get(number, number): value for number, value in state["state"].items()}}


def _numbered(names: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    return [(group, name) for group, part in enumerate(names) for name in part]
