"""What float32 means on a CUDA device is set from the configuration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdlib.cost import exported_program
from kdlib.errors import KDError
from kdlib.precision import arithmetic, set_precision

pytestmark = pytest.mark.usefixtures("precision_put_back")


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


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32"])
def test_torch_itself_can_export_after_a_precision_was_set(precision):
    """torch.export reads the older settings, and fails where the newer ones say something else."""
    set_precision(precision)
    torch.export.export(torch.nn.Linear(3, 2), (torch.randn(4, 3),))
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize("alone", ["conv", "rnn"])
def test_a_network_can_be_exported_where_one_setting_was_changed_alone(alone):
    getattr(torch.backends.cudnn, alone).fp32_precision = "ieee"
    exported_program(torch.nn.Linear(3, 2), torch.randn(4, 3))
    found = {name: getattr(torch.backends.cudnn, name).fp32_precision for name in ("conv", "rnn")}
    assert found == {"conv": "tf32", "rnn": "tf32", alone: "ieee"}


def test_another_precision_is_refused():
    with pytest.raises(KDError, match="precision: expected float32, tf32, bfloat16, found 'float16'; correct the"):
        set_precision("float16")


@pytest.mark.slow
def test_the_usual_settings_import_no_compiler():
    """Torch imports it to set deterministic algorithms: seconds in each process, and a signal may fall into them."""
    code = (
        "import sys, torch; from kdlib.precision import usual_settings\n"
        "with usual_settings(torch.device('cpu')): pass\n"
        "print([name for name in ('sympy', 'torch._inductor', 'torch._dynamo') if name in sys.modules])"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    found = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
