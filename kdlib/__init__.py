"""kdlib: knowledge distillation, training that resumes, and a fixed rule for judging replications."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdlib.api import *  # noqa: F403 - the same names, for type checkers

__version__ = "0.2.0"  # pyproject.toml reads it here; CITATION.cff has it too


if not TYPE_CHECKING:  # a type checker would take any name for one that is found here

    def __getattr__(name: str) -> Any:
        # At the first use only: torch takes seconds to import, and the command line must handle Ctrl-C before that.
        api = import_module("kdlib.api")
        if name == "__all__" or name in api.__all__:
            return getattr(api, name)
        raise AttributeError(f"module 'kdlib' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *import_module("kdlib.api").__all__])
