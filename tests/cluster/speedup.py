"""Prints the share of the ideal speed-up on two machines of one core, with runs that sleep for ten seconds.

Call it in the top folder: python -m tests.cluster.speedup. They sleep because one computer plays all machines here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.on_ray import OnRay, ray_module
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import write_toy
from tests.machines import machines
from tests.toy import EPOCHS, STEPS

RUNS, SECONDS = 12, 10.0


def main() -> None:
    os.environ["TOY_SLEEP"] = str(SECONDS / EPOCHS / STEPS)
    with tempfile.TemporaryDirectory() as folder, machines(0, 1, 1) as (cluster, _):
        root = write_toy(Path(folder))
        os.chdir(root)
        sys.path.insert(0, str(root))
        sys.modules.pop("replications", None)
        toy = load_experiment("toy")
        jobs = plan(toy, toy.profile("quick"), ["baseline"], range(RUNS), Compute(), {})
        executor = partial(OnRay, ray_module(), cluster.address, root / "replications", None, None)
        moments: list[tuple[str, float]] = []
        began = time.monotonic()
        execute(
            jobs,
            Store(root / "store"),
            compute=Compute(),
            folders={},
            executor=executor,
            report=lambda event: moments.append((event.kind, time.monotonic())),
        )
        first = next(moment for kind, moment in moments if kind == "started")
        last = [moment for kind, moment in moments if kind == "finished"]
        assert len(last) == RUNS
        ideal = RUNS * SECONDS / 2
        print(f"start of the processes: {first - began:.1f} s")
        print(
            f"{RUNS} runs of {SECONDS:.0f} s: {last[-1] - first:.1f} s, {ideal / (last[-1] - first):.1%} of the ideal"
        )


if __name__ == "__main__":
    main()
