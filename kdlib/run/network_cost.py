"""The cost of one network as it predicts, in torch and in onnxruntime, and its scores before and after int8."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kdlib.batches import Examples
from kdlib.cost import latency, one_thread, prediction_cost
from kdlib.export import int8_file, onnx_file, onnx_predictor
from kdlib.metrics import accuracy, macro_f1

__all__ = ["network_numbers"]

SAME = 32  # test examples for which onnxruntime must give torch's logits
PART = 64  # examples predicted at a time


def network_numbers(module: nn.Module, train: Examples, test: Examples, trained: bool) -> tuple[str, dict[str, float]]:
    """Return how a network was quantised, and its cost and scores by name, on one thread of this CPU."""
    example = test.inputs[:1]
    found: dict[str, float] = dict(vars(prediction_cost(module, example)))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        float32, int8 = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx_file(module, test.inputs[:SAME], float32)
        how = int8_file(float32, train.inputs, int8)
        predictors = {"onnx": onnx_predictor(float32), "int8": onnx_predictor(int8)}
        found |= {"float32_file_bytes": float32.stat().st_size, "int8_file_bytes": int8.stat().st_size}
        with torch.no_grad():
            found |= _milliseconds("torch", lambda: module(example))
        for name, predict in predictors.items():
            found |= _milliseconds(name, partial(predict, example))
        for name, predict in predictors.items() if trained else ():
            found |= _scores(name, predict, test)
    return how, found


def _milliseconds(name: str, predict: Callable[[], object]) -> dict[str, float]:
    found = latency(predict, clock=time.thread_time)  # one thread, and the machine may be busy
    return {f"{name}_p50_ms": 1e3 * found.p50_seconds, f"{name}_p95_ms": 1e3 * found.p95_seconds}


def _scores(name: str, predict: Callable[[Tensor], Tensor], test: Examples) -> dict[str, float]:
    """Accuracy and macro F1, from 0 to 1, of all test examples."""
    logits = torch.cat([predict(part) for part in torch.split(test.inputs, PART)])
    if logits.shape[1] == 1:  # the logit of class 1
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    classes = logits.shape[1]
    score = macro_f1(logits.argmax(1), test.labels, classes)
    return {f"{name}_accuracy": accuracy(logits, test.labels), f"{name}_macro_f1": score}
