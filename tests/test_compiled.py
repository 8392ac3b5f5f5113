"""The replications also train without numba, with torch's own layers."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = """
import sys
sys.modules["numba"] = None  # an import of it fails
import torch
from kdlib import compiled
from replications.ecg import experiment as ecg
from replications.mnist import experiment as mnist
from replications.ta_chain import experiment as ta_chain
assert not compiled.AVAILABLE
for network, inputs in (
    (ecg.student_network(), torch.rand(2, 187)),
    (mnist.student_network(), torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)),
    (ta_chain.Network(8), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)),
):
    logits = network(inputs)
    logits.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    print(*logits.shape)
"""


def test_networks_need_no_numba():
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 5", "2 10", "2 10"]
