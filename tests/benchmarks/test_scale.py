"""Ten thousand runs in a graph of five levels on a hundred simulated workers: what the session's own process costs.

The workers have a clock of their own, which each training moves on by ten seconds, and all that the engine really needs
by as much. So the share of the ideal speed-up counts the engine, and no training.
"""

from __future__ import annotations

import heapq
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute, Experiment, Profile
from kdlib.run.finished import FinishedRun
from kdlib.run.group import Outcome
from kdlib.run.plan import plan
from kdlib.run.store import Store

LEVELS, WORKERS, SECONDS, EPOCHS = 5, 100, 10.0, 30


@dataclass(frozen=True)
class Config:
    rate: float = 0.1


def train(run):
    raise AssertionError("nothing is trained here")


ARMS = tuple(
    Arm(f"level{level}", (), train, {"teacher": f"level{level - 1}"} if level else {}, {"rate": 0.1 + level})
    for level in range(LEVELS)
)
EXPERIMENT = Experiment(
    source="scale",
    protocol=1,
    data=(),
    load_data=lambda config, folders: SimpleNamespace(digest="data", name="data"),
    arms=ARMS,
    profiles={"quick": Profile(Config(), seeds=1)},
    check=(),
    banded=(),
)


class Memory(Store):
    """A store whose runs are objects: a run as large as one of thirty epochs, without its tensors."""

    def __init__(self):
        super().__init__(Path("nowhere"))
        self.runs = {}

    def find(self, description, notice=lambda text: None):
        return self.runs.get(description.id)

    def save_made_up(self, description):
        history = [{"epoch": float(epoch), "loss": epoch / 7, "validation_loss": epoch / 9} for epoch in range(EPOCHS)]
        trace = {"order": [f"{epoch:064d}" for epoch in range(EPOCHS)]}
        about = {"seconds": SECONDS, "source": "made up", "replication": "scale"}
        run = FinishedRun(self.folder, description, {"final": {"accuracy": 0.5}}, history, about, "0" * 64, trace)
        self.runs[description.id] = run


class Simulated:
    """Workers with a clock of their own."""

    def __init__(self, store):
        self.store, self.running, self.now, self.number = store, [], 0.0, 0
        self.left = time.perf_counter()

    def _engine_has_worked(self):
        self.now += time.perf_counter() - self.left

    @property
    def free(self):
        return WORKERS - len(self.running)

    @property
    def busy(self):
        return bool(self.running)

    def begin(self, group):
        self._engine_has_worked()
        self.number += 1
        heapq.heappush(self.running, (self.now + SECONDS, self.number, group))
        self.left = time.perf_counter()

    def ended(self):
        self._engine_has_worked()
        if self.running:
            end, _, group = heapq.heappop(self.running)
            self.now = max(self.now, end)
            self.store.save_made_up(group[0].description)
        self.left = time.perf_counter()
        return [(group, Outcome())]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def simulate(runs, memory=False):
    """The seconds of the plan and of the engine for each run, the share of the ideal, and the peak of memory."""
    began = time.perf_counter()
    if memory:
        tracemalloc.start()
    jobs = plan(
        EXPERIMENT, EXPERIMENT.profile("quick"), [arm.name for arm in ARMS], range(runs // LEVELS), Compute(), {}
    )
    planned, store = time.perf_counter() - began, Memory()
    simulated = Simulated(store)
    began = time.perf_counter()
    summary = execute(jobs, store, compute=Compute(), folders={}, executor=lambda *_: simulated)
    engine = time.perf_counter() - began
    assert len(summary.finished) == runs
    peak = tracemalloc.get_traced_memory()[1] if memory else 0
    if memory:
        tracemalloc.stop()
    ideal = max(runs * SECONDS / WORKERS, LEVELS * SECONDS)
    return planned / runs, engine / runs, ideal / simulated.now, peak


@pytest.mark.parametrize("runs", [1_000, 10_000])
def test_scale(benchmark, monkeypatch, runs):
    monkeypatch.setattr("kdlib.run.reuse.other_source", lambda run, job: "")  # there is no folder
    for module in ("engine", "reuse"):
        monkeypatch.setattr(f"kdlib.run.{module}.load_experiment", lambda name: EXPERIMENT)
    monkeypatch.setattr("kdlib.run.engine.source_digest", lambda folder: "")
    found = benchmark.pedantic(simulate, args=(runs,), rounds=1)
    names = ("plan_seconds_per_run", "engine_seconds_per_run", "share_of_ideal")
    benchmark.extra_info.update(zip(names, found, strict=False))
    benchmark.extra_info["peak_bytes_per_run"] = simulate(runs, memory=True)[-1] / runs
    print({name: f"{value:.3g}" for name, value in benchmark.extra_info.items()})
