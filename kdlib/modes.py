"""Which layers a training leaves in evaluation mode although it trains their weights: often by an eval() too many."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["TrainedInEvaluation", "has_own", "warn_of_evaluation"]

SHOWN = 4  # names of modules in a message


class TrainedInEvaluation(UserWarning):
    """Layers whose weights are trained are in evaluation mode, and so is a batch norm or a dropout next to them."""


def warn_of_evaluation(
    network: nn.Module, evaluated: Sequence[nn.Module], trained: Collection[int], place: str
) -> None:
    """Warn (TrainedInEvaluation) of modules that stay in evaluation mode, if that cannot have been meant for each.

    `trained` are the ids of the weights that optimizers hold. Who freezes a batch norm evaluates that layer alone, or a
    part of the network whose other weights do not learn. A layer with weights that learn is evaluated with the module
    around it: by an `eval()` of a whole model before its head was replaced, or of a student in the body of the loop.
    """
    own = {id(module) for module in evaluated}
    learning = [
        name or "the network"
        for name, module in network.named_modules()
        if id(module) in own
        and not _is_norm(module)
        and any(
            value is not None and value.requires_grad and id(value) in trained for value in module._parameters.values()
        )
    ]
    if learning and (others := [module for module in evaluated if _depends_on_mode(module)]):
        names = ", ".join(learning[:SHOWN]) + (f" and {len(learning) - SHOWN} more" if len(learning) > SHOWN else "")
        warnings.warn(
            f"{place}: {names} have weights to train and are in evaluation mode, so they remain in it, and so does a "
            f"{type(others[0]).__name__} there: batch norm does not adapt, dropout does nothing. Call model.train() "
            "before the loop, and after an eval() in its body, or evaluate within `with kdlib.evaluating(model)`. To "
            "freeze batch norm alone, call the eval() of its layers",
            TrainedInEvaluation,
            stacklevel=4,
        )


def has_own(module: nn.Module) -> bool:
    """Return whether a module has weights or buffers of its own, or no modules within it, as dropout has none."""
    return bool(module._parameters or module._buffers or not module._modules)


def _is_norm(module: nn.Module) -> bool:
    return hasattr(module, "running_mean") or "norm" in type(module).__name__.lower()


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a layer of torch computes something else in evaluation mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    rate = getattr(module, "dropout", 0)  # of recurrent layers and of attention
    return getattr(module, "running_mean", None) is not None or (isinstance(rate, float) and rate > 0)
