"""What float32 means: torch computes in fewer bits on a CUDA device by default, and on a CPU if it is told to.

TF32 keeps 10 of the 23 bits of a float32's fraction. A run that says "float32" must not be computed in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

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
    """Give what is within torch's own settings, whatever those of the process are, and put these back afterwards.

    That is: float32 as the type of new tensors, products and convolutions of a CPU in float32, gradients, no autocast.
    A notebook may have set others, or the run before in this process, and a result must not depend on them.
    """
    kinds = [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")]
    layers: list[Any] = [kind for kind in kinds if hasattr(kind, "fp32_precision")]  # older versions of torch have none
    dtype, precisions = torch.get_default_dtype(), [layer.fp32_precision for layer in layers]
    with ExitStack() as settings:
        for kind in {"cpu", device.type}:
            settings.enter_context(torch.autocast(kind, enabled=False))
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        try:
            torch.set_default_dtype(torch.float32)
            for layer in layers:
                layer.fp32_precision = "ieee"
            yield
        finally:
            torch.set_default_dtype(dtype)
            for layer, precision in zip(layers, precisions, strict=True):
                layer.fp32_precision = precision


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
