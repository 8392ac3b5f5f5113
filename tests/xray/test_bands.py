"""The bands of the x-ray replication distinguish a real teacher from the sham."""

from pathlib import Path

import pytest

from kdlib.judge.bands import read_bands
from kdlib.judge.departures import SESSION_LEVEL, compared, misses
from kdlib.run.records import grouped, measured, read_records
from replications.xray import experiment as xray

ROOT = Path(__file__).parents[2]
BANDS = read_bands(ROOT / "replications" / "xray" / "bands.toml")
RECORDS = grouped(read_records(ROOT / "results" / "xray" / "runs.jsonl"))
QUICK = [key for key in BANDS if key[1] == "quick"]  # none before the first recording


@pytest.mark.parametrize("key", QUICK, ids=str)
def test_recorded_runs_lie_in_their_own_bands(key):
    banded = {name.partition(".")[0] for name in BANDS[key].bands}
    assert set(xray.EXPERIMENT.check) <= banded
    assert misses(BANDS[key].bands, measured(RECORDS[key])) == []


@pytest.mark.parametrize("key", QUICK, ids=str)
def test_a_student_of_the_shams_targets_fails_the_check(key):
    sham = measured(RECORDS[key])["sham_corrected"]
    assert len(sham) >= 5
    for seed, metrics in sham.items():
        found = compared(BANDS[key].bands, {"distilled_T_6_corrected": {seed: metrics}}, SESSION_LEVEL)
        assert found.problems, seed
