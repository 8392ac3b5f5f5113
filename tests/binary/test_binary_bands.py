"""The bands of the binary loss distinguish a real teacher from the sham; without recorded quick runs, all is skipped."""

from pathlib import Path

import pytest

from kdlib.judge.bands import read_bands
from kdlib.judge.departures import misses
from kdlib.run.records import grouped, measured, read_records
from replications.binary import experiment as binary

ROOT = Path(__file__).parents[2]
BANDS = read_bands(ROOT / "replications" / "binary" / "bands.toml")
RECORDS = grouped(read_records(ROOT / "results" / "binary" / "runs.jsonl"))


@pytest.fixture(params=[key for key in BANDS if key[1] == "quick"], ids=str)
def key(request):
    return request.param


def test_quick_is_recorded_with_every_check_arm(key):
    assert set(binary.EXPERIMENT.check) <= {name.partition(".")[0] for name in BANDS[key].bands}


def test_a_student_of_the_shams_targets_misses_the_bands_of_the_distilled_one(key):
    sham = measured(RECORDS[key])[f"sham_{binary.cell(0.0)}"]
    assert len(sham) >= 5
    for seed, metrics in sham.items():
        found = misses(BANDS[key].bands, {binary.cell(0.0): {seed: metrics}})
        assert "teacher_correlation" in [miss.metric for miss in found]
