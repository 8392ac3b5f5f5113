"""A network as an ONNX file, in float32 and in int8, and its predictions by onnxruntime (extra `export`)."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.checks import check_kind, path_of, tensor_of
from kdlib.cost import checked_inputs, exported_program
from kdlib.errors import KDError
from kdlib.files import atomic_write, read_file
from kdlib.packing import unwrapped
from kdlib.precision import older_setting
from kdlib.predictions import own_copy
from kdlib.training import evaluating, predict_logits

__all__ = ["OPSET", "TOLERANCE", "int8_file", "onnx_file", "onnx_predictor", "same_logits"]

OPSET = 20  # of the operators in the files
TOLERANCE = (
    1e-4  # of the largest logit: how far onnxruntime's logits may be from torch's, whose sums have another order
)
MOST = 0.9  # of the weights: a file with fewer in 8 bits says so
CALIBRATION = 128  # examples, from whose activations static quantisation takes its ranges


def onnx_file(module: nn.Module, examples: Tensor, path: Path | str) -> None:
    """Write a network in evaluation mode to `path` as ONNX: `inputs` (N, ...), as `examples`, to `logits` (N, K).

    Before, onnxruntime predicts all `examples`. KDError if one logit is further from torch's than TOLERANCE times the
    largest logit, if torch cannot export the network, and without the packages of the extra `export`.
    """
    _packages()
    module, examples = unwrapped(module), checked_inputs(module, examples)
    logits = _logits(module, examples)
    program = exported_program(module, examples, any_batch=True)
    with _quiet(), older_setting():
        made = torch.onnx.export(
            program,
            input_names=["inputs"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert made is not None
    proto = made.model_proto
    # Torch notes the source lines, with this machine's paths, at each of them. A small network's file would double.
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        part.ClearField("metadata_props")
        if hasattr(part, "doc_string"):
            part.ClearField("doc_string")
    content = proto.SerializeToString()
    same_logits(logits, _predicted(content, examples))
    atomic_write(path_of("path", path), content)


def _logits(module: nn.Module, examples: Tensor) -> Tensor:
    """The network's own logits; KDError for those that a file could not have."""
    with evaluating(module):
        outputs = module(own_copy(examples[:1]))
    remedy = "export a module around it that returns the logits alone"
    check_kind(f"outputs of {type(module).__name__}", outputs, Tensor, remedy)
    logits = predict_logits(module, examples, 64)
    if logits.dtype not in (torch.float32, torch.float64):
        raise KDError(f"expected a network in float32, found logits in {logits.dtype}; export module.float()")
    if not bool(logits.isfinite().all()):
        raise KDError("expected finite logits of these examples, found NaN or infinite ones; check weights and inputs")
    if not torch.equal(logits[:64], predict_logits(module, examples[:64], 64)):
        raise KDError(
            "expected the same logits each time in evaluation mode, found others in a second prediction: the network "
            "draws random numbers; give its dropout `training=self.training`, for example"
        )
    return logits


def same_logits(expected: Tensor, found: Tensor) -> None:
    """Raise KDError unless logits (N, K) differ by at most TOLERANCE times the largest of the expected ones.

    If that is below 1, they may differ by TOLERANCE.
    """
    scale = max(1.0, float(expected.abs().max()))
    furthest = float((expected - found).abs().max())
    if not furthest <= TOLERANCE * scale:  # also if one is NaN
        raise KDError(
            f"expected onnxruntime's logits within {TOLERANCE * scale:.1g} of torch's, found a difference of "
            f"{furthest:.3g}; nothing was written. Report this with the versions of torch and onnxruntime"
        )


def int8_file(source: Path | str, examples: Tensor, path: Path | str) -> str:
    """Write an int8 version of an ONNX file, and return how it was quantised.

    Weights have 8 bits and a scale for each channel. Activations have 8 bits as well: their ranges are those of the
    first CALIBRATION `examples` (N, ...), training examples for example (static quantisation, QDQ). Of recurrent
    layers, onnxruntime leaves most weights as they are; the text then says which share has 8 bits. KDError if none has.
    """
    _, quantization = _packages()
    found = tensor_of(examples, "examples")
    examples = found.float() if isinstance(examples, np.ndarray) and found.dtype == torch.float64 else found
    if not len(examples) or not bool(examples[:CALIBRATION].isfinite().all()):
        kind = "NaN or infinite ones" if len(examples) else "none"
        raise KDError(f"expected finite examples to take the ranges of activations from, found {kind}; correct them")
    onnx_predictor(source)(examples[:1])  # says what is wrong with the file, or with the examples
    batches = [{"inputs": part.detach().numpy()} for part in torch.split(examples[:CALIBRATION], 16)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> Any:
            return batches.pop(0) if batches else None

    with tempfile.TemporaryDirectory() as folder, _quiet():
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
        quantization.shape_inference.quant_pre_process(
            str(path_of("source", source)), str(ready), skip_symbolic_shape=True
        )
        quantization.quantize_static(
            str(ready),
            str(made),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # Processors without VNNI instructions add products of 8 bits in 16: 7 bits of the weights cannot overflow.
            reduce_range=True,
        )
        content = made.read_bytes()
        share = _share_in_int8(content)
    if not share:
        raise KDError(
            "expected layers that onnxruntime can quantise, found none: no weight would have 8 bits; export a network "
            "in float32, with convolutions or dense layers"
        )
    atomic_write(path_of("path", path), content)
    part = "" if share > MOST else f", {share:.0%} of the weights in 8 bits"
    return f"static, {min(CALIBRATION, len(examples))} examples{part}"


def _share_in_int8(content: bytes) -> float:
    """The share of the weights of an ONNX file that have 8 bits; biases have 32, and count with neither."""
    import onnx

    counts = {kind: 0 for kind in ("int8", "float")}
    for part in onnx.load_from_string(content).graph.initializer:
        if len(part.dims) > 1:  # no bias, scale or zero point
            is_int8 = part.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
            counts["int8" if is_int8 else "float"] += math.prod(part.dims)
    return counts["int8"] / max(1, sum(counts.values()))


def onnx_predictor(path: Path | str, threads: int = 1) -> Callable[[Tensor], Tensor]:
    """Return a function from inputs (N, ...) to onnxruntime's logits (N, K), computed on so many threads of the CPU.

    KDError for a file that cannot be read or is no ONNX file, and for inputs that it does not take.
    """
    return _predictor(read_file(path_of("path", path)), threads)


def _predicted(content: bytes, inputs: Tensor) -> Tensor:
    predict = _predictor(content, 1)
    return torch.cat([predict(part) for part in torch.split(inputs, 64)])


def _predictor(content: bytes, threads: int) -> Callable[[Tensor], Tensor]:
    runtime, _ = _packages()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own
        raise KDError(f"expected an ONNX file, found one that onnxruntime does not take ({_first(error)})") from error

    def predict(inputs: Tensor) -> Tensor:
        found = tensor_of(inputs, "inputs").detach()
        try:
            (logits,) = session.run(None, {"inputs": np.ascontiguousarray(found.numpy())})
        except Exception as error:
            raise KDError(
                f"expected inputs that the ONNX file takes, found {found.dtype} of shape {tuple(found.shape)} "
                f"({_first(error)})"
            ) from error
        return torch.from_numpy(logits)

    return predict


def _first(error: Exception) -> str:
    """The first line of an error's text, without the codes of onnxruntime before it."""
    return str(error).strip().partition("\n")[0].rpartition(" : ")[2][:200]


def _packages() -> tuple[Any, Any]:
    """The package onnxruntime and its module for quantisation."""
    try:
        import onnx  # noqa: F401  # what torch and onnxruntime need
        import onnxruntime
        import onnxscript  # noqa: F401
        from onnxruntime import quantization
    except ImportError as error:
        raise KDError(
            f"expected the packages onnx, onnxruntime and onnxscript, found no {error.name}; "
            "install them with: python -m pip install 'kdlib[export]'"
        ) from error
    return onnxruntime, quantization


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress, the advice and the warnings of the two libraries from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
