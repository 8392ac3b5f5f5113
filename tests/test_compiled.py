"""Without numba the replications train all the same, with torch's own layers."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = """
import sys
sys.modules["numba"] = None  # an import of it fails
import torch
from kdlib import compiled
from kdlib.experiment import load_experiment
assert not compiled.AVAILABLE
ecg, mnist, ta_chain = (load_experiment(name).module for name in ("ecg", "mnist", "ta_chain"))
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
