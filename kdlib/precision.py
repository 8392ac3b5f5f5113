"""What float32 means: torch computes in fewer bits on a CUDA device by default, and on a CPU if it is told to.

TF32 keeps 10 of the 23 bits of a float32's fraction. A run that says "float32" must not be computed in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from kdlib.errors import KDError

__all__ = ["PRECISIONS", "arithmetic", "older_setting", "set_precision", "usual_settings"]

PRECISIONS = ("float32", "tf32", "bfloat16")


def set_precision(precision: str) -> None:
    """Let CUDA devices compute float32 products and convolutions as a configuration's `precision` says.

    "float32" is IEEE arithmetic, "tf32" is TF32. With "bfloat16" a network casts to bfloat16 itself, by autocast; what
    it leaves in float32 is computed in IEEE arithmetic. Of several algorithms of one convolution, one that repeats to
    the last bit is taken. All this holds for the process. Nothing changes on a CPU. KDError for another precision.
    Torch's older settings, `allow_tf32`, say the same: torch.export reads them, and fails where the two differ.
    """
    if precision not in PRECISIONS:
        raise KDError(f"precision: expected {', '.join(PRECISIONS)}, found {precision!r}; correct the configuration")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    for backend in _backends().values():  # afterwards: the older setting says "none" where it means "ieee"
        backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def usual_settings(device: torch.device) -> Iterator[None]:
    """Give what is within torch's and NumPy's own settings, whatever those of the process are.

    That is: float32 as the type of new tensors, products and convolutions of a CPU in float32 and by oneDNN, gradients,
    no autocast, no deterministic algorithms, no search for anomalies, and NumPy's errors as warnings. Afterwards these
    are put back, and the number of threads, the default device, the treatment of denormal numbers and the current
    folder too. A notebook may have set others, or the run before in this process: no result must depend on them.
    """
    kinds = [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
    layers: list[Any] = [kind for kind in kinds if hasattr(kind, "fp32_precision")]  # older versions of torch have none
    with ExitStack() as settings:
        for kind in {"cpu", device.type}:
            settings.enter_context(torch.autocast(kind, enabled=False))
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        settings.enter_context(torch.autograd.set_detect_anomaly(False))
        settings.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        settings.enter_context(_folder_put_back())
        settings.callback(torch.set_num_threads, torch.get_num_threads())
        settings.callback(_set_default_device, torch.get_default_device())
        settings.callback(torch.set_flush_denormal, sys.float_info.min / 2 == 0)  # torch does not say how it is set
        settings.callback(torch.set_default_dtype, torch.get_default_dtype())
        settings.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        deterministic = torch.are_deterministic_algorithms_enabled()
        settings.callback(_set_deterministic, deterministic, warn_only)
        for layer in layers:
            settings.callback(setattr, layer, "fp32_precision", layer.fp32_precision)
            layer.fp32_precision = "ieee"
        torch.set_default_dtype(torch.float32)
        torch.backends.mkldnn.enabled = True  # type: ignore[assignment]  # torch's hints say what it is made by
        _set_deterministic(False, warn_only)
        yield


@contextmanager
def _folder_put_back() -> Iterator[None]:
    """Return to the current folder afterwards, if it was left: a relative name means another file elsewhere."""
    try:
        folder, before = os.getcwd(), os.stat(".")
    except OSError:  # it is deleted, so nothing can return to it
        yield
        return
    try:
        yield
    finally:
        if not os.path.samestat(os.stat("."), before):  # by its name, a folder that was renamed would be another one
            os.chdir(folder)


def _set_deterministic(mode: bool, warn_only: bool) -> None:
    now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if now != (mode, warn_only):  # to set it, torch imports its compiler, which takes seconds
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)


def _set_default_device(device: torch.device) -> None:
    if torch.get_default_device() != device:  # a default that is set costs time at each call, that of torch none
        torch.set_default_device(None if device == torch.device("cpu") else device)


def arithmetic() -> dict[str, str]:
    """Return how a CUDA device computes float32 products, convolutions and recurrent layers: "ieee" or "tf32"."""
    return {name: str(backend.fp32_precision) for name, backend in _backends().items()}


@contextmanager
def older_setting() -> Iterator[None]:
    """Let torch read its older setting of the precision, as torch.export does.

    Torch refuses to where the newer one has another value, on a CPU too. Afterwards all is as before.
    """
    layers = [backend for name, backend in _backends().items() if name != "products"]
    before = [backend.fp32_precision for backend in layers]
    try:
        older = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # the newer setting was changed alone, from the default
        older = True
    torch.backends.cudnn.allow_tf32 = True  # this sets the newer one too
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = older
        for backend, precision in zip(layers, before, strict=True):
            backend.fp32_precision = precision


def _backends() -> dict[str, Any]:
    # One by one: a setting for all of torch.backends does not reach the last two.
    return {
        "products": torch.backends.cuda.matmul,
        "convolutions": torch.backends.cudnn.conv,  # type: ignore[attr-defined]  # torch's hints lack it
        "recurrent layers": torch.backends.cudnn.rnn,
    }
