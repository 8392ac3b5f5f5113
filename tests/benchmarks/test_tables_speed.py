"""Tables, JSON, figure and page of one replication with 10,000 recorded runs."""

from __future__ import annotations

import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from kdlib.report import pages, site
from kdlib.report.as_json import write_json
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.records import Record, read_records, write_records

ARMS = ("teacher", "baseline", "distilled_by_one", "distilled", "sham")
SEEDS = 2000
CONFUSION = (np.eye(10, dtype=int) * 890 + 10).tolist()


@pytest.fixture
def recorded(tmp_path):
    """MNIST's arms with 2,000 made-up seeds each, in the profile that declares no number of seeds."""
    experiment, draws = load_experiment("mnist"), np.random.default_rng(0)
    config = experiment.profile("quick").config
    records = []
    for number, name in enumerate(ARMS):
        arm = experiment.arm(name)
        for seed in range(SEEDS):
            told = experiment.describe(arm, config, seed, "d" * 16, Compute(), {})
            told = replace(told, recipe=name)  # arms of one recipe would be one run
            metrics = {"accuracy": float(draws.normal(0.98 + number / 1000, 0.001)), "entropy": 0.1, "epochs": 10}
            metrics |= {"parameters": 693962, "agreement": 0.9, "teacher_kl": 0.1, "confusion": CONFUSION}
            history = [{"training_loss": 0.1, "validation_loss": 0.2}] * 10
            environment = {"commit": "c" * 40, "clean": True, "device": "a processor", "seconds": 3.0}
            about = ("quick", seed, told.id, {name: arm.snapshot}, "MNIST", asdict(told))
            records.append(Record(*about, {arm.snapshot: metrics}, history, environment, "0" * 64))
    (tmp_path / "results" / "mnist").mkdir(parents=True)
    write_records(tmp_path / "results" / "mnist" / "runs.jsonl", records, ARMS)
    return tmp_path


def test_ten_thousand_runs_are_tabled_in_five_seconds(benchmark, recorded):
    experiment, folder = load_experiment("mnist"), recorded / "results" / "mnist"

    def tables() -> float:
        began = time.process_time()
        records = read_records(folder / "runs.jsonl")
        pages.write_pages(experiment, records, folder, committed=records, synthetic=False)
        site.write_pages(recorded / "results" / "site", [write_json(experiment, records, recorded, {})])
        return time.process_time() - began

    seconds = min(tables(), tables(), tables())  # the machine's other work makes some slower
    benchmark.extra_info["seconds"] = seconds
    benchmark.pedantic(tables, rounds=1)
    assert len((folder / "quick-arms.csv").read_text().splitlines()) == len(ARMS) + 1
    assert seconds < 5
