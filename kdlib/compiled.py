"""The only module that imports numba: it compiles loops to machine code, and says whether numba is there.

Machine code is kept between processes (kdlib/code_cache.py) if there is a folder for it. It is the only pickle that
kdlib reads. A result does not depend on whether the code was kept or compiled anew.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kdlib import code_cache

__all__ = ["AVAILABLE", "add_multiple", "compiled", "narrow", "wide"]

compiled: Any


def wide(x: Any) -> Any:
    """Return x as float32; x is a float32 or a uint16 with the bits of a bfloat16. Only for compiled functions."""
    raise NotImplementedError("for compiled functions")


def narrow(value: Any, row: Any) -> Any:
    """Return a float32 in the type of `row`: float32, or uint16 with the bits of the nearest bfloat16 (ties to even).

    Only for compiled functions.
    """
    raise NotImplementedError("for compiled functions")


def add_multiple(y: Any, at: Any, factor: Any, x: Any, start: Any, count: Any) -> None:
    """Do y[at : at + count] += factor * x[start : start + count] in vector instructions; only for compiled functions.

    y and x are flat, contiguous float32 arrays, and nobody checks their bounds. `count` is a constant multiple of 8. A
    loop that does the same first asks, each time, whether y and x overlap, which takes longer than so few numbers.
    """
    raise NotImplementedError("for compiled functions")


try:
    import llvmlite  # type: ignore[import-untyped]
    import numba
    from llvmlite import ir
    from numba import njit, types
    from numba.core.compiler import CompileResult
    from numba.core.serialize import dumps
    from numba.extending import intrinsic, overload

    SETTINGS: Any = numba.config
    AVAILABLE = not SETTINGS.DISABLE_JIT
except Exception:  # not installed, or no build for this machine, this Python or this NumPy
    AVAILABLE = False

if not AVAILABLE:  # callers use torch's own layers

    def compiled(function: Any) -> Any:
        """Return the function as it is."""
        return function
else:
    # a*b + c may be rounded only once. Sums keep their order and there is one thread: results repeat to the last bit.
    OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "nogil": True}
    VERSIONS = sys.version, numba.__version__, llvmlite.__version__, np.__version__

    def compiled(function: Any) -> Any:
        """Return a function that is compiled at its first call with arguments of new types."""
        made = njit(**OPTIONS)(function)
        made._cache = _Kept(function)
        return made

    @cache
    def _folder() -> Path | None:
        if SETTINGS.CACHE_DIR:  # NUMBA_CACHE_DIR
            return code_cache.private_folder(Path(SETTINGS.CACHE_DIR) / "kdlib")
        try:
            from platformdirs import user_cache_path

            return code_cache.private_folder(user_cache_path("kdlib") / "compiled")
        except (ImportError, OSError, RuntimeError):  # RuntimeError: no home folder
            return None

    class _Kept:
        """What numba asks for the machine code of one function, and gives it to keep (numba.core.caching._Cache)."""

        cache_path = None

        def __init__(self, function: Any) -> None:
            self.function = function

        def load_overload(self, signature: Any, target: Any) -> Any:
            target.refresh()
            try:
                path = self._path(signature, target.codegen())
                content = code_cache.read(path) if path else None
                return content and CompileResult._rebuild(target, *pickle.loads(content))  # type: ignore[no-untyped-call]
            except Exception:  # a file that cannot be used is as good as none
                return None

        def save_overload(self, signature: Any, result: Any) -> None:
            try:
                path = self._path(signature, result.codegen)
                if path and not result.lifted and not result.library.has_dynamic_globals:
                    code_cache.write(path, dumps(result._reduce()))  # type: ignore[no-untyped-call]
            except Exception:  # for example a full disk: the next process compiles again
                return

        def _path(self, signature: Any, codegen: Any) -> Path | None:
            folder = _folder()
            if folder is None:
                return None
            functions: list[Any] = [self.function, _wide, _narrow]
            sources = [code_cache.fingerprint(function, _python) for function in functions]
            processor = codegen.magic_tuple()
            instructions = [code_cache.described(f.__code__) for f in (_add_multiple, _add_eights._defn)]
            made_from = (
                self.function.__module__,
                sources,
                instructions,
                str(signature),
                processor,
                sorted(map(str, OPTIONS.items())),
            )
            digest = hashlib.sha256(repr((made_from, VERSIONS)).encode()).hexdigest()
            return folder / f"{self.function.__name__}-{digest[:32]}"

        def enable(self) -> None:
            """Do nothing: the code is always kept."""

    def _python(value: Any) -> Any:
        """Return the Python function of a compiled one, or of what has an overload; other values as they are."""
        return getattr(value, "py_func", value)

    @overload(wide, inline="always")
    def _wide(x):  # type: ignore[no-untyped-def]
        if isinstance(x, types.Integer):
            return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
        return lambda x: x

    @overload(narrow, inline="always")
    def _narrow(value, row):  # type: ignore[no-untyped-def]
        if isinstance(row.dtype, types.Integer):

            def rounded(value, row):  # type: ignore[no-untyped-def]
                bits = np.float32(value).view(np.uint32)
                nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
                return np.uint16(0x7FC0) if value != value else np.uint16(nearest)  # one bit pattern for NaN

            return rounded
        return lambda value, row: value

    @overload(add_multiple, inline="always")
    def _add_multiple(y, at, factor, x, start, count):  # type: ignore[no-untyped-def]
        return lambda y, at, factor, x, start, count: _add_eights(y, at, factor, x, start, count)  # type: ignore[call-arg]

    @intrinsic
    def _add_eights(context, y, at, factor, x, start, count):  # type: ignore[no-untyped-def]
        if not isinstance(count, types.IntegerLiteral):
            return None  # numba asks again, with the constant
        eight, number = ir.VectorType(ir.FloatType(), 8), ir.IntType(64)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            y, at, factor, x, start, _ = arguments
            places = [
                builder.gep(context.make_array(kind)(context, builder, array).data, [first])
                for kind, array, first in ((signature.args[0], y, at), (signature.args[3], x, start))
            ]
            nothing = ir.Constant(eight, ir.Undefined)
            factors = builder.insert_element(nothing, factor, ir.Constant(ir.IntType(32), 0))
            factors = builder.shuffle_vector(factors, nothing, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8))
            for first in range(0, count.literal_value, 8):
                out, source = (
                    builder.bitcast(builder.gep(place, [ir.Constant(number, first)]), eight.as_pointer())
                    for place in places
                )
                product = builder.fmul(factors, builder.load(source, align=4), flags=("contract",))
                builder.store(builder.fadd(product, builder.load(out, align=4), flags=("contract",)), out, align=4)
            return context.get_dummy_value()

        return types.none(y, types.uint64, types.float32, x, types.uint64, count), generate
