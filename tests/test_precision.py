"""What float32 means on a CUDA device is set from the configuration."""

import pytest
import torch

from kdlib.cost import exported_program
from kdlib.errors import KDError
from kdlib.precision import arithmetic, set_precision


@pytest.fixture(autouse=True)
def as_before():
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [backend.fp32_precision for backend in backends]
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


@pytest.mark.parametrize(("precision", "expected"), [("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")])
def test_convolutions_too_are_what_the_configuration_says(precision, expected):
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # torch's default
    set_precision(precision)
    assert arithmetic() == {"products": expected, "convolutions": expected, "recurrent layers": expected}
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == expected
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_a_network_can_be_exported_after_a_precision_was_set():
    set_precision("float32")
    exported_program(torch.nn.Linear(3, 2), torch.randn(4, 3))
    assert arithmetic() == {"products": "ieee", "convolutions": "ieee", "recurrent layers": "ieee"}


def test_another_precision_is_refused():
    with pytest.raises(KDError, match="precision: expected float32, tf32, bfloat16, found 'float16'; correct the"):
        set_precision("float16")
