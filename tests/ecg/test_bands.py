"""The bands of the ECG replication distinguish a real teacher from the sham."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdlib.judge.bands import read_bands
from kdlib.judge.departures import misses
from kdlib.run.records import grouped, measured, read_records
from replications.ecg import experiment as ecg

ROOT = Path(__file__).parents[2]
BANDS = read_bands(ROOT / "replications" / "ecg" / "bands.toml")
RECORDS = grouped(read_records(ROOT / "results" / "ecg" / "runs.jsonl"))
QUICK = [key for key in BANDS if key[1] == "quick"]


@pytest.fixture(params=QUICK, ids=str)
def key(request):
    return request.param


def test_quick_is_recorded_with_every_check_arm(key):
    banded = {name.partition(".")[0] for name in BANDS[key].bands}
    assert set(ecg.EXPERIMENT.check) <= banded
    assert BANDS[key].bands["distilled.teacher_kl"].seeds == (0, 1, 2, 3, 4, 5)


def test_recorded_runs_lie_in_their_own_bands(key):
    assert misses(BANDS[key].bands, measured(RECORDS[key])) == []


def test_a_student_of_the_shams_targets_misses_the_bands_of_the_distilled_one(key):
    sham = measured(RECORDS[key])["sham"]
    assert len(sham) >= 5
    for seed, metrics in sham.items():
        found = misses(BANDS[key].bands, {"distilled": {seed: metrics}})
        assert "teacher_kl" in [miss.metric for miss in found]


def test_a_moved_band_is_missed(key):
    name = "baseline.macro_f1"
    band = BANDS[key].bands[name]
    moved = {name: replace(band, low=band.high, high=2 * band.high - band.low)}
    assert len(misses(moved, measured(RECORDS[key]))) == len(band.seeds)
