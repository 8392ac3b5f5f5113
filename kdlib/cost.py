"""What a prediction of a network costs: parameters, operations, bytes, memory and time.

All but the time are counted, not measured: they are the same on every machine. They are counted on the network's
exported program, in which fast layers of this library are torch's own (`torch.compiler.is_exporting`).
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from kdlib.checks import whole_number
from kdlib.errors import KDError
from kdlib.packing import unwrapped
from kdlib.precision import older_setting
from kdlib.predictions import evaluating, inputs_of, own_copy

__all__ = ["Cost", "Latency", "checked_inputs", "exported_program", "latency", "one_thread", "prediction_cost"]

WARM_UP = 20  # predictions that are not timed
REPEATS = 200
Shape = Sequence[int]


@dataclass(frozen=True)
class Cost:
    """The counted cost of a network and of one prediction.

    `parameters`: numbers that the file of the network needs, so also batch norm's moving mean and variance.
    `flops`: floating-point operations of products of matrices and of convolutions; a product and its sum are two.
    `float32_bytes`: 4 for each parameter. `peak_bytes`: the largest sum of the tensors that exist at one time during
    the prediction, parameters and input included; not what libraries need for themselves.
    """

    parameters: int
    flops: int
    float32_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Latency:
    """Half of the predictions take at most `p50_seconds`, 95% of them at most `p95_seconds`."""

    p50_seconds: float
    p95_seconds: float


def prediction_cost(module: nn.Module, example: Tensor) -> Cost:
    """Return the cost of predicting `example` (1, ...), which has the shape and the type of the network's inputs.

    KDError for more or fewer examples than one, for a network that cannot be exported, and for one with operators that
    may have products and whose operations have no formula; its text names them.
    """
    example = checked_inputs(module, example)
    if len(example) != 1:
        raise KDError(
            f"expected one example, a tensor of shape (1, ...), found {tuple(example.shape)}; pass inputs[:1]"
        )
    example = example.clone()  # a view would count as the whole tensor that it is a view of
    program = exported_program(module, example)
    predict = program.module()
    kept = module.state_dict().keys()  # not buffers with persistent=False, such as tables of positions
    buffers = [each for name, each in module.named_buffers() if name in kept and each.is_floating_point()]
    numbers = [*module.parameters(), *buffers]
    count = sum(tensor.numel() for tensor in numbers)
    known = [*program.state_dict.values(), *_tensors(program.constants), example]
    with torch.no_grad(), _without_fused_layers():
        flops = _flops(predict, example)
        with _LiveTensors(known) as live:
            predict(example)
    return Cost(count, flops, 4 * count, live.peak)


def exported_program(module: nn.Module, example: Tensor, *, any_batch: bool = False) -> torch.export.ExportedProgram:
    """Return the network's exported program in evaluation mode; with `any_batch`, it takes any number of examples.

    The network itself is not changed. `example` is what `checked_inputs` returned. KDError, with torch's reason, for a
    network that torch cannot export.
    """
    module = unwrapped(module)
    # torch takes a batch of 1 for a constant.
    batch = torch.cat([example[:1]] * 2) if any_batch else example
    shapes = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    with evaluating(module), older_setting(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules
        try:
            return torch.export.export(module, (batch,), dynamic_shapes=shapes)
        except Exception as error:  # it has no common class
            reason = str(error).strip().partition("\n")[0]
            remedy = "write its forward pass without choices that depend on the numbers in a tensor"
            if any_batch and "Constraints violated" in str(error):
                reason, remedy = "its forward pass takes one number of examples", "write x.shape[0] there, not len(x)"
            raise KDError(
                f"expected a network that torch.export takes, found {type(module).__name__}: {reason}; {remedy}"
            ) from error


def checked_inputs(module: nn.Module, inputs: Any) -> Tensor:
    """The inputs (N, ...) as a tensor; KDError for none, and for those that the network cannot predict."""
    module = unwrapped(module)
    found = inputs_of(module, inputs)
    if found.ndim == 0 or not len(found):
        raise KDError(f"expected inputs (N, ...) of at least one example, found shape {tuple(found.shape)}")
    with evaluating(module), torch.random.fork_rng():
        try:
            module(own_copy(found[:1]))
        except (RuntimeError, TypeError, IndexError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise KDError(
                f"expected inputs that {type(module).__name__} takes, found {found.dtype} of shape "
                f"{tuple(found.shape)}: {reason}; give it inputs as it was trained on"
            ) from error
    return found


def latency(
    predict: Callable[[], object],
    *,
    warm_up: int = WARM_UP,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Return the seconds that `predict()` takes: `repeats` times after `warm_up` untimed ones.

    Use `one_thread()` around it for torch's predictions on one thread. On a busy machine, `clock=time.thread_time`
    leaves out the time in which the thread waits for a core; it is right only if `predict` has no other threads.
    KDError unless there is at least one repeat.
    """
    if not callable(predict):
        raise KDError(
            f"predict: expected a function without arguments, found {type(predict).__name__}; write "
            "latency(lambda: network(inputs))"
        )
    repeats, warm_up = whole_number("repeats", repeats, least=1), whole_number("warm_up", warm_up, least=0)
    for _ in range(warm_up):
        predict()
    seconds = []
    for _ in range(repeats):
        begun = clock()
        predict()
        seconds.append(clock() - begun)
    p50, p95 = np.percentile(seconds, [50, 95]).tolist()
    return Latency(p50, p95)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread; afterwards on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- operations


def _trilinear_flops(inputs: Shape, weights: Shape, others: Shape, *_: Any, **__: Any) -> int:
    """Those of nn.Bilinear: x (N, I) times weights (O, I, J), then the sum over the products with z (N, J)."""
    (rows, first), (outputs, _first, second) = inputs, weights
    return 2 * rows * outputs * second * (first + 1)


def _matrix_flops(added: Shape, one: Shape, other: Shape, **_: Any) -> int:
    """Those of a product of two matrices, or of two batches of them, that is added to another."""
    return 2 * math.prod(one) * other[-1]


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Those of the scores and of the mean of the values by them, of (B, heads, places, width)."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


_ATEN = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {  # of shapes; torch has none for these
    **dict.fromkeys([_ATEN.addmm_, _ATEN.baddbmm_, _ATEN.addbmm, _ATEN.addbmm_], _matrix_flops),
    **dict.fromkeys([_ATEN.addmv, _ATEN.addmv_], lambda added, matrix, vector, **_: 2 * math.prod(matrix)),
    **dict.fromkeys([_ATEN.mv, _ATEN.dot, _ATEN.vdot], lambda one, vector, **_: 2 * math.prod(one)),
    _ATEN._trilinear: _trilinear_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
# Words in the names of operators that multiply matrices, convolve, or take as long as products do.
_WORDS = re.compile(
    r"(^|_)([a-z0-9]*mm|[a-z0-9]*mv|matmul|conv|conv_?[a-z]*\dd|convolution|linear|trilinear|rnn|lstm|gru|attention|transformer|cdist|"
    r"euclidean|fft|linalg|cholesky|solve|spsolve|geqrf|ormqr|orgqr|qr)(_|$)"
)
_NO_PRODUCTS = {"linalg_vector_norm", "linalg_cross", "_linalg_check_errors", "linalg_diagonal"}
_NO_PRODUCTS |= {"_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"}  # their products are operators before them


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    """Let torch compute a layer of LSTM by products that can be counted, as it does where these libraries are not."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


def _flops(predict: Callable[[Tensor], object], example: Tensor) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with _Unknown({*flop_registry, *_FORMULAS}) as unknown, counter:
        predict(example)
    if unknown.names:
        raise KDError(
            f"expected operators whose operations can be counted, found {', '.join(sorted(unknown.names))}; give a "
            "formula with torch.utils.flop_counter.register_flop_formula, or write the layer with products of matrices"
        )
    return int(counter.get_total_flops())


class _Unknown(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hints lack it
    """Notes the operators that may have products and have no formula: torch would count 0 for them."""

    def __init__(self, known: set[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        foreign = namespace not in ("aten", "prim", "prims")
        if func._overloadpacket not in self.known and (foreign or (_WORDS.search(name) and name not in _NO_PRODUCTS)):
            self.names.add(f"{namespace}.{name}")
        return func(*args, **(kwargs or {}))


# ---- memory


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the memory that lives after each operation; views share theirs."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = WeakIdKeyDictionary()
        self.peak = 0
        self._note(known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(_tensors(result))
        return result

    def _note(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.live[storage] = storage.nbytes()
        self.peak = max(self.peak, sum(self.live.values()))  # type: ignore[no-untyped-call]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
