"""What a prediction of a network costs: parameters, operations, bytes, memory and time.

All but the time are counted, not measured: they are the same on every machine. They are counted on the network's
exported program, in which fast layers of this library are torch's own (`torch.compiler.is_exporting`).
"""

from __future__ import annotations

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
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from kdlib.errors import KDError
from kdlib.precision import older_setting
from kdlib.training import evaluating

__all__ = ["Cost", "Latency", "exported_program", "latency", "one_thread", "prediction_cost"]

WARM_UP = 20  # predictions that are not timed
REPEATS = 200


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

    KDError for more or fewer examples than one, and for a network that cannot be exported.
    """
    if len(example) != 1:
        raise KDError(
            f"expected one example, a tensor of shape (1, ...), found {tuple(example.shape)}; pass inputs[:1]"
        )
    example = example.clone()  # a view would count as the whole tensor that it is a view of
    program = exported_program(module, example)
    predict = program.module()
    numbers = [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]
    count = sum(tensor.numel() for tensor in numbers)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        predict(example)
    with torch.no_grad(), _LiveTensors([*program.state_dict.values(), *_tensors(program.constants), example]) as live:
        predict(example)
    return Cost(count, int(counter.get_total_flops()), 4 * count, live.peak)


def exported_program(module: nn.Module, example: Tensor, *, any_batch: bool = False) -> torch.export.ExportedProgram:
    """Return the network's exported program in evaluation mode; with `any_batch`, it takes any number of examples.

    The network itself is not changed. KDError, with torch's reason, for a network that torch cannot export.
    """
    # torch takes a batch of 1 for a constant.
    batch = torch.cat([example[:1]] * 2) if any_batch else example
    shapes = ({0: torch.export.Dim("batch", min=1)},) if any_batch else None
    with evaluating(module), older_setting(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules
        try:
            return torch.export.export(module, (batch,), dynamic_shapes=shapes)
        except Exception as error:  # it has no common class
            reason = str(error).strip().partition("\n")[0]
            raise KDError(
                f"expected a network that torch.export takes, found {type(module).__name__}: {reason}; "
                "write its forward pass without choices that depend on the numbers in a tensor"
            ) from error


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
    """
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


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hints lack it
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
