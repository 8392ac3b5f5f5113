"""The exceptions that a user is meant to read, and the checks that many modules share."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path
from traceback import extract_tb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 4  # names in a message


class KDError(Exception):
    """A mistake or a missing thing that the user can mend: says what was expected, what was found and what to do."""


class MissingPackage(KDError, ImportError):
    """A package that only a part of kdlib needs is not installed."""


class CheckpointReplaced(KDError):
    """Another training has written this one's checkpoint."""


class DataChanged(KDError):
    """A training function has changed data in place, or what lies at the top of its modules."""


class UnknownName(KDError):
    """A figure names an arm or a metric that the experiment does not have."""


class NonFiniteLoss(KDError):
    """The training loss, or a recorded measurement, became NaN or infinite."""


def some_of(names: Sequence[str], between: str = ", ") -> str:
    """Return the first names, or sentences with commas of their own, for a message, and how many there are more."""
    more = f"{between.rstrip(', ')} and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return between.join(names[:SHOWN]) + more


def needs(extra: str, *modules: str) -> None:
    """Raise MissingPackage unless these modules are installed; its text names the extra of kdlib that brings them."""
    for name in modules:
        try:
            found = find_spec(name) is not None
        except (ImportError, ValueError):  # an import hook refuses it, or it was made without a specification
            found = False
        if not found:
            raise MissingPackage(
                f"expected the package that has the module {name}, found none; install it with: "
                f"python -m pip install 'kdlib[{extra}]'",
                name=name,
            )


def error_in_user_code(
    place: str, error: Exception | SystemExit, what: str = "a module that can be imported"
) -> KDError:
    """Return the error about a user's module that cannot be imported, or function that fails: `place` names it.

    The line is the last one that is neither in this package nor in an installed one nor in Python itself.
    """
    frames = extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if _of_user(frame.filename)), frames[-1])
    if isinstance(error, MemoryError):
        return KDError(f"{place}: too little memory ({error or 'MemoryError'}); end other programs, or give it more")
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
    return KDError(
        f"{place}: expected {what}, found {type(error).__name__}: "
        f"{getattr(error, 'msg', None) or error} ({file}, line {line}); mend that line"
    )


def _of_user(file: str) -> bool:
    path, others = Path(file), (Path(__file__).parent, Path(get_path("stdlib")))
    return path.is_file() and "site-packages" not in path.parts and not {*others} & {*path.parents}


def same_shape(one: Tensor, other: Tensor) -> None:
    """Raise KDError unless both tensors have the same shape."""
    # Otherwise torch would broadcast (N,) and (N, 1) to all (N, N) pairs without a warning.
    if one.shape != other.shape:
        raise KDError(
            f"expected two tensors of one shape, found {tuple(one.shape)} and {tuple(other.shape)}; "
            "logits are (N, classes), labels and predicted classes (N,)"
        )
