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

__all__ = ["AVAILABLE", "compiled", "gather_windows", "narrow", "spread_windows", "wide"]

compiled: Any


def wide(x: Any) -> Any:
    """Return x as float32; x is a float32 or a uint16 with the bits of a bfloat16. Only for compiled functions."""
    raise NotImplementedError("for compiled functions")


def narrow(value: Any, row: Any) -> Any:
    """Return a float32 in the type of `row`: float32, or uint16 with the bits of the nearest bfloat16 (ties to even).

    Only for compiled functions.
    """
    raise NotImplementedError("for compiled functions")


def gather_windows(kernel: Any, at: Any, step: Any, x: Any, row: Any, places: Any, factors: Any, count: Any) -> None:
    """Add windows of x to a kernel: kernel[at + r step + c] += factors[t] x[places[t] + r row + c].

    For each t < count, r < 3 and c < 24; only for compiled functions. kernel, x and factors are flat, contiguous
    float32 arrays, places and all other numbers are uint64, and nobody checks bounds. All 72 sums stay in vector
    registers; in a plain loop, each would go to memory and back for every t.
    """
    raise NotImplementedError("for compiled functions")


def spread_windows(kernel: Any, at: Any, step: Any, x: Any, row: Any, places: Any, factors: Any, count: Any) -> None:
    """Add a kernel to windows of x: x[places[t] + r row + c] += factors[t] kernel[at + r step + c].

    Otherwise as `gather_windows`.
    """
    raise NotImplementedError("for compiled functions")


try:
    import llvmlite  # type: ignore[import-untyped]
    import numba
    from llvmlite import ir
    from numba import njit, types
    from numba.core import cgutils
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
            instructions = [code_cache.described(f.__code__) for f in (_gather, _spread, _windows._defn)]
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

    @overload(gather_windows, inline="always")
    def _gather(kernel, at, step, x, row, places, factors, count):  # type: ignore[no-untyped-def]
        return lambda kernel, at, step, x, row, places, factors, count: _windows(  # type: ignore[call-arg]
            True, kernel, at, step, x, row, places, factors, count
        )

    @overload(spread_windows, inline="always")
    def _spread(kernel, at, step, x, row, places, factors, count):  # type: ignore[no-untyped-def]
        return lambda kernel, at, step, x, row, places, factors, count: _windows(  # type: ignore[call-arg]
            False, kernel, at, step, x, row, places, factors, count
        )

    @intrinsic
    def _windows(context, gather, kernel, at, step, x, row, places, factors, count):  # type: ignore[no-untyped-def]
        if not isinstance(gather, types.BooleanLiteral):
            return None  # numba asks again, with the constant
        eight, number = ir.VectorType(ir.FloatType(), 8), ir.IntType(64)

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            _, kernel, at, step, x, row, places, factors, count = arguments
            kinds = dict(zip((kernel, x, places, factors), (signature.args[i] for i in (1, 4, 6, 7)), strict=True))

            def pointer(array: Any, index: Any) -> Any:
                return builder.gep(context.make_array(kinds[array])(context, builder, array).data, [index])

            def vectors(first: Any, step: Any) -> Any:
                for r in range(3):
                    start = builder.gep(first, [builder.mul(step, number(r))])
                    for c in (0, 8, 16):
                        yield builder.bitcast(builder.gep(start, [number(c)]), eight.as_pointer())

            of_kernel = [*vectors(pointer(kernel, at), step)]
            registers = [cgutils.alloca_once(builder, eight) for _ in of_kernel]  # type: ignore[no-untyped-call]
            for register, each in zip(registers, of_kernel, strict=True):
                builder.store(builder.load(each, align=4), register)
            with cgutils.for_range(builder, count) as loop:
                factor, nothing = builder.load(pointer(factors, loop.index)), eight(ir.Undefined)
                all_equal = builder.insert_element(nothing, factor, ir.IntType(32)(0))
                all_equal = builder.shuffle_vector(all_equal, nothing, ir.VectorType(ir.IntType(32), 8)([0] * 8))
                window = pointer(x, builder.load(pointer(places, loop.index)))
                for register, of_x in zip(registers, vectors(window, row), strict=True):
                    own, other = builder.load(register), builder.load(of_x, align=4)
                    added, kept = (other, own) if gather.literal_value else (own, other)
                    product = builder.fmul(all_equal, added, flags=("contract",))
                    total = builder.fadd(product, kept, flags=("contract",))
                    if gather.literal_value:
                        builder.store(total, register)
                    else:
                        builder.store(total, of_x, align=4)
            if gather.literal_value:
                for register, each in zip(registers, of_kernel, strict=True):
                    builder.store(builder.load(register), each, align=4)
            return context.get_dummy_value()

        whole = types.uint64
        return types.none(gather, kernel, whole, whole, x, whole, places, factors, whole), generate
