"""Predictions in evaluation mode, whatever mode a network is in: of a student, or of a teacher in an objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.checks import check_kind, check_number, tensor_of, whole_number
from kdlib.errors import KDError
from kdlib.modes import set_modes
from kdlib.probabilities import warn_of_probabilities

__all__ = ["evaluating", "inputs_of", "own_copy", "predict_logits"]

Inputs = Tensor | Mapping[str, Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients; afterwards, also after an error, restore the mode of each module.

    A network that was frozen by `torch.jit.freeze` has no other mode. KDError for one that cannot change its mode.
    """
    check_kind("model", model, nn.Module, "give the network itself, and the inputs after it")
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    try:
        try:
            model.eval()
        except NotImplementedError as error:  # torch.export
            raise KDError(
                f"expected a network that can be set to evaluation mode, found that it cannot ({error}); take the "
                "network that it was made from, or, if it was made in evaluation mode, call it as it is, within "
                "torch.no_grad"
            ) from error
        with torch.no_grad():
            yield
    finally:
        set_modes(model, modes)


def predict_logits(
    model: nn.Module, inputs: Inputs | Iterable[Inputs], size: int = 1024, output: int | str | None = None
) -> Tensor:
    """Return logits (N, K) of inputs (N, ...), computed `size` rows at a time in evaluation mode without gradients.

    Inputs may be a dictionary of tensors (N, ...). Afterwards the model is in its mode of before. Data that are larger
    than memory are an iterator of inputs (B, ...) of any sizes. Of a model that returns a tuple, a dictionary or an
    object, `output` picks one part: its number, key or attribute. KDError for outputs that are not one row for each
    input. Warns (ProbabilitiesAsLogits) if all rows of the first part are distributions.
    """
    with evaluating(model):
        found = [_one_output(model(own_copy(part)), output, _rows(part)) for part in _parts(model, inputs, size)]
    warn_of_probabilities(found[0], "the model")
    return torch.cat(found)


def own_copy(part: Any) -> Any:
    """Return a copy of inputs for a network that may change them in place, such as one that begins with x.div_(255).

    A DataLoader, too, gives copies. Mappings of other classes, which an iterator made, are returned as they are.
    """
    if isinstance(part, Tensor):
        return part.clone()
    return {name: each.clone() for name, each in part.items()} if type(part) is dict else part


def inputs_of(model: nn.Module, inputs: Any) -> Tensor:
    """Return inputs (N, ...) as a tensor; an array, which NumPy makes in 64 bits, in the type of the model's weights.

    KDError for what is neither a tensor nor numbers.
    """
    found = tensor_of(inputs, "inputs")
    if isinstance(inputs, np.ndarray) and found.is_floating_point():
        found = found.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), found.dtype))
    return found


def _parts(model: nn.Module, inputs: Any, size: int) -> Iterable[Inputs]:
    if isinstance(inputs, Tensor | np.ndarray) or _is_dictionary(inputs):
        check_number("size", size, 1, math.inf, "it is the number of rows at a time")
        yield from _split(model, inputs, whole_number("size", size))
        return
    if hasattr(inputs, "to_numpy"):
        raise KDError(
            f"expected inputs (N, ...), a tensor or an array, found {type(inputs).__name__}; use its to_numpy()"
        )
    part = None
    for part in () if isinstance(inputs, list | tuple | Mapping) or not isinstance(inputs, Iterable) else inputs:
        if not isinstance(part, Tensor) and not _is_dictionary(part):
            raise KDError(
                f"expected an iterator of inputs, tensors (B, ...) or dictionaries of them, found one of "
                f"{type(part).__name__}; of a DataLoader use (inputs for inputs, labels in loader)"
            )
        yield part
    if part is None:
        raise KDError(
            f"expected inputs (N, ...), a tensor, an array, a dictionary of tensors or an iterator of such parts, "
            f"found {type(inputs).__name__} without such parts; use torch.stack for a list of examples, and the inputs "
            "of Examples or of each Batch"
        )


def _is_dictionary(inputs: Any) -> bool:
    """Whether inputs are tensors (N, ...) under names, as tokenizers return them."""
    return isinstance(inputs, Mapping) and bool(inputs) and all(isinstance(each, Tensor) for each in inputs.values())


def _rows(part: Inputs) -> int:
    return len(part) if isinstance(part, Tensor) else len(next(iter(part.values())))


def _split(model: nn.Module, inputs: Any, size: int) -> Iterable[Inputs]:
    if not isinstance(inputs, Mapping):
        return torch.split(inputs_of(model, inputs), size)
    shapes = {name: tuple(each.shape) for name, each in inputs.items()}
    if any(not shape or shape[:1] != (_rows(inputs),) for shape in shapes.values()):
        raise KDError(f"expected inputs of the same number of rows under each name, found the shapes {shapes}")
    parts = zip(*(torch.split(each, size) for each in inputs.values()), strict=True)
    return [dict(zip(inputs, part, strict=True)) for part in parts]


def _one_output(outputs: Any, output: int | str | None, rows: int) -> Tensor:
    if output is not None and not isinstance(outputs, Tensor):
        by_name = isinstance(output, str) and not hasattr(outputs, "keys")
        try:
            found = getattr(outputs, str(output)) if by_name else outputs[output]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise KDError(
                f"output: expected a part of the model's outputs, {_names(outputs)}, found {output!r}"
            ) from error
    elif output is not None:
        raise KDError(f"output: expected none for a model that returns one tensor, found {output!r}; leave it out")
    else:
        found = outputs
    if not isinstance(found, Tensor):
        raise KDError(
            f"expected logits, a tensor, found {type(found).__name__}; pick one with output=..., of {_names(outputs)}"
        )
    if found.ndim == 0 or len(found) != rows:
        raise KDError(
            f"expected one row of outputs for each of {rows} inputs, found shape {tuple(found.shape)}; let the model "
            "keep the first axis, also for a single input"
        )
    return found


def _names(outputs: Any) -> str:
    if hasattr(outputs, "keys"):
        return ", ".join(repr(key) for key in outputs.keys())  # noqa: SIM118  # model outputs have keys of their own
    return (
        f"0 to {len(outputs) - 1}" if isinstance(outputs, tuple | list) else f"an attribute of {type(outputs).__name__}"
    )
