"""What layers have besides their tensors: settings, which weights learn, the switches that their `train` goes by."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from kdlib.errors import KDError
from kdlib.modes import has_own_train
from kdlib.replicas import Replicas

__all__ = ["Settings", "changed_rules", "layers_of", "restore_rules", "restore_settings", "rules_of", "settings_of"]

Settings = dict[str, dict[str, str]]


def settings_of(parts: Mapping[str, nn.Module]) -> Settings:
    """Return what a checkpoint can say of modules besides their tensors, by the name of the layer.

    That is: class and settings of torch's own layers (the rate of dropout, a stride), and which parameters learn.
    """
    found: Settings = {}
    for place, module in layers_of(parts):
        learn = {name: str(p.requires_grad) for name, p in module._parameters.items() if p is not None}
        settings = {f"{name}.requires_grad": value for name, value in learn.items()}
        if type(module).__module__.startswith("torch.nn."):  # a class of the user's may be renamed
            plain = {name: _plain(value) for name, value in vars(module).items()}
            known = {name: repr(value) for name, value in plain.items() if _is_setting(name, value)}
            settings |= {"class": type(module).__qualname__, **known}
        if place.startswith("extras/"):  # the loop sets the mode of the network alone
            settings["training"] = repr(module.training)
        if settings:
            found[place] = settings
    return found


def restore_settings(parts: Mapping[str, nn.Module], settings: Settings) -> None:
    """Set what `settings_of` returned for these modules at another time: it may have been changed since.

    KDError for a layer of another class.
    """
    now, modules = settings_of(parts), dict(layers_of(parts))
    for place, layer in settings.items():
        module = modules[place]
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
                setattr(module, name, _number(text))


def rules_of(parts: Mapping[str, nn.Module]) -> Settings:
    """Return the numbers and switches of modules whose class has a `train` of its own: it may go by them."""
    found = {
        place: {name: repr(_plain(value)) for name, value in vars(module).items() if _is_setting(name, _plain(value))}
        for place, module in layers_of(parts)
        if has_own_train(module)
    }
    return {place: rules for place, rules in found.items() if rules}


def changed_rules(first: Settings, loaded: Settings, now: Settings) -> Settings:
    """Return those rules of now that a training has changed: they are not the `first` ones, or were `loaded`.

    The others are left to the script, which may have chosen new ones.
    """
    changed = {
        place: {
            name: text
            for name, text in rules.items()
            if first.get(place, {}).get(name) != text or name in loaded.get(place, {})
        }
        for place, rules in now.items()
    }
    return {place: rules for place, rules in changed.items() if rules}


def restore_rules(parts: Mapping[str, nn.Module], rules: Settings) -> None:
    """Set what `changed_rules` returned for these modules at another time."""
    modules = dict(layers_of(parts))
    for place, each in rules.items():
        for name, text in each.items():
            setattr(modules[place], name, _number(text))


def layers_of(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network and of extras with their names, and those of the members of Replicas."""
    for start, network in parts.items():
        for path, module in network.named_modules():
            yield f"{start}{path}".rstrip("/") or "the network", module
        if isinstance(network, Replicas):
            for path, module in network.template.named_modules():
                yield f"{start}members/{path}".rstrip("/"), module


def _plain(value: Any) -> Any:
    """A number of NumPy or torch as one of Python, as its text is read back."""
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    return value.item() if isinstance(value, np.generic | Tensor) and value.ndim == 0 else value


def _number(text: str) -> Any:
    return float(text) if text in ("inf", "-inf", "nan") else ast.literal_eval(text)


def _is_setting(name: str, value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    known = all(isinstance(part, bool | int | float | str | None) for part in parts)
    return known and name != "training" and not name.startswith("_")
