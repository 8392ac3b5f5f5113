"""Keras's defaults for torch modules: initialisers, batch norm, Adam, and Keras's count of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdlib.checks import check_generator
from kdlib.errors import KDError

__all__ = ["he_normal_", "he_uniform_", "keras_adam", "keras_batch_norm", "keras_glorot_", "parameter_count"]

M = TypeVar("M", bound=nn.Module)

# Standard deviation of a standard normal cut at +-2; Keras divides by it so that the cut keeps the variance.
TRUNCATED_STD = 0.87962566103423978


def keras_glorot_(module: M, generator: torch.Generator) -> M:
    """Give every dense and convolutional layer Glorot-uniform weights and zero biases, and return the module.

    This is Keras's default. KDError for a layer whose weight is computed, as by a weight norm.
    """
    check_generator(generator)
    return _initialise(module, lambda w, fan_in, fan_out: _uniform(w, 6 / (fan_in + fan_out), generator))


def he_uniform_(module: M, generator: torch.Generator) -> M:
    """Give every dense and convolutional layer He-uniform weights and zero biases, and return the module.

    KDError for a layer whose weight is computed, as by a weight norm.
    """
    check_generator(generator)
    return _initialise(module, lambda w, fan_in, fan_out: _uniform(w, 6 / fan_in, generator))


def he_normal_(module: M, generator: torch.Generator) -> M:
    """Give every dense and convolutional layer He-normal weights and zero biases, and return the module.

    As in Keras, the normal distribution is cut at two standard deviations. KDError for a layer whose weight is
    computed, as by a weight norm.
    """
    check_generator(generator)

    def draw(weight: Tensor, fan_in: int, fan_out: int) -> Tensor:
        std = math.sqrt(2 / fan_in) / TRUNCATED_STD
        return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std, generator=generator)

    return _initialise(module, draw)


def keras_batch_norm(features: int, dims: int) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """Return a batch norm with Keras's epsilon and Keras's momentum of 0.99, which torch calls 0.01.

    `dims` is the number of axes after the features: 0 (dense), 1 or 2, otherwise KDError. The moving variance is of the
    biased variance after a dense layer, as in Keras, and otherwise of the unbiased one, which Keras has for pictures.
    """
    if dims not in (0, 1, 2):
        raise KDError(f"expected 0 (dense), 1 or 2 axes after the features, found {dims}")
    kind = (_DenseBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d)[dims]
    return kind(features, eps=1e-3, momentum=0.01)


class _DenseBatchNorm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            variance, mean = torch.var_mean(x.to(self.weight.dtype), dim=0, correction=0)
            for moving, found in ((self.running_mean, mean), (self.running_var, variance)):
                assert moving is not None
                moving.copy_(torch.lerp(moving, found, self.momentum or 0.0))
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


def keras_adam(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3, epsilon: float = 1e-7
) -> torch.optim.Adam:
    """Return Adam with Keras's default epsilon, 1e-7; on a CUDA device, one that a CUDA graph can record.

    It is not equal to Keras's Adam to the last bit: torch adds epsilon after the bias correction of sqrt(v), Keras
    before it, so at step t torch's epsilon is in effect smaller by the factor sqrt(1 - 0.999^t). That matters only in
    the first few thousand steps, for gradients not far above 1e-7.
    """
    adam = torch.optim.Adam(parameters, lr=lr, eps=epsilon, fused=True)
    for group in adam.param_groups:
        group["capturable"] = any(parameter.is_cuda for parameter in group["params"])
    return adam


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters as Keras counts them: also batch norm's moving mean and variance."""
    moving = [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
    return sum(p.numel() for p in [*module.parameters(), *moving])


def _initialise(module: M, draw: Callable[[Tensor, int, int], Tensor]) -> M:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            if is_lazy(layer.weight):
                raise KDError(
                    f"expected layers with weights, found {type(layer).__name__} without a shape; call the network on "
                    "one batch first"
                )
            if not isinstance(layer.weight, nn.Parameter):
                raise KDError(
                    f"expected layers with weights of their own, found {type(layer).__name__} whose weight is computed "
                    "(weight norm, for example); initialise first, then add the norm"
                )
            # Draw on the CPU, so that training starts from the same weights on every device.
            weight = torch.empty(layer.weight.shape, device="cpu")
            field = weight[0, 0].numel()
            fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
            with torch.no_grad():
                layer.weight.copy_(draw(weight, fan_in, fan_out))
                if layer.bias is not None:
                    layer.bias.zero_()
    return module


def _uniform(weight: Tensor, squared_limit: float, generator: torch.Generator) -> Tensor:
    limit = math.sqrt(squared_limit)
    return weight.uniform_(-limit, limit, generator=generator)
