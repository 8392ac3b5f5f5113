"""When a session fails: single numbers, the whole session, and how often honest ones fail by chance."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kdlib.errors import KDError
from kdlib.judge.bands import Bands, band_of, read_bands, write_bands
from kdlib.judge.claims import SHAM
from kdlib.judge.departures import SESSION_LEVEL, compared, misses
from kdlib.judge.schema import MAX_FILE_BYTES, SchemaError
from kdlib.judge.verdicts import Outcome
from kdlib.run.experiment import load_experiment, replications
from kdlib.run.records import grouped, measured, read_records

ROOT = Path(__file__).parents[2]
NAMES = [name for name in replications(ROOT) if (ROOT / "replications" / name / "bands.toml").exists()]
# The five recorded accuracies of ta_chain's arm ta_6, and what a fresh clone on another processor measured for seed 0
TA_6, ON_ANOTHER_PROCESSOR = (0.4674, 0.4736, 0.4763, 0.5009, 0.5075), 0.378


def band(*values):
    return band_of(dict(enumerate(values)), "abc123")


def steady(mean=0.5, n=5):
    """A band of mean 0.5 and standard deviation 0.01."""
    values = np.arange(n) - (n - 1) / 2
    return band(*(mean + 0.01 * values / values.std(ddof=1)))


def session(arms, seeds, **moved):
    """Bands of the accuracy of so many arms, and runs that lie at their means but for `moved`: arm -> offset."""
    bands = {f"a{arm}.accuracy": steady(0.3 + 0.01 * arm) for arm in range(arms)}
    runs = {
        f"a{arm}": {seed: {"accuracy": 0.3 + 0.01 * arm + moved.get(f"a{arm}", 0.0)} for seed in range(seeds)}
        for arm in range(arms)
    }
    return bands, runs


# ---- one number


def test_a_number_just_outside_its_band_is_a_warning():
    found = compared(*session(20, 2, a7=0.055))
    assert (found.numbers, found.bands, found.seeds) == (40, 20, 2)
    assert found.problems == []
    first, second, count = found.warnings
    band = "0.319565 to 0.420435, recorded by commit abc123"
    assert first == f"warning: a7, seed 0: accuracy is 0.425, outside its band {band}, as 1 number in 100 is"
    assert "a7, seed 1" in second
    assert count == "warning: numbers outside their bands: 2 of 40; bands missed: 1 of 20, by chance up to 3"


@pytest.mark.parametrize("numbers", [1, 4, 40])
def test_a_number_outside_the_wider_band_fails(numbers):
    half = stats.t.isf(SESSION_LEVEL / numbers / 2, 4) * 0.01 * math.sqrt(1.2)
    assert compared(*session(numbers, 1, a0=half - 1e-6)).problems == []
    (sentence,) = compared(*session(numbers, 1, a0=half + 1e-6)).problems
    wide = f"{0.3 - half:.6g} to {0.3 + half:.6g}"
    assert sentence.startswith(
        f"a0, seed 0: accuracy is {0.3 + half + 1e-6:.6g}, outside its band 0.249565 to 0.350435"
    )
    assert sentence.endswith(f"and outside {wide}, which a number leaves by chance in 1 of 200 sessions")


def test_the_failing_number_is_no_warning_too():
    found = compared(*session(20, 1, a0=0.25, a1=0.055))
    assert len(found.problems) == 1
    assert [line.split(",")[0] for line in found.warnings] == [
        "warning: a1",
        "warning: numbers outside their bands: 2 of 20; bands missed: 2 of 20",
    ]


@pytest.mark.parametrize("observed", [math.nan, math.inf, None])
def test_a_number_that_is_missing_or_not_finite_fails(observed):
    runs = {"a0": {0: {} if observed is None else {"accuracy": observed}}}
    (sentence,) = compared({"a0.accuracy": steady()}, runs).problems
    assert sentence.startswith(f"a0, seed 0: accuracy is {math.nan if observed is None else observed}, outside")


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("accuracy", (0.98, 0.99, 1.0, 0.99, 0.995), " to 1,"),
        ("validation_macro_f1", (0.01, 0.05, 0.03, 0.02, 0.09), " 0 to "),
        ("agreement", (0.98, 0.99, 1.0, 0.99, 0.995), " to 1,"),
        ("teacher_kl", (0.01, 0.05, 0.03, 0.02, 0.09), " 0 to "),
        ("training_loss", (0.01, 0.05, 0.03, 0.02, 0.09), " 0 to "),
        ("entropy", (0.01, 0.05, 0.03, 0.02, 0.09), " 0 to "),
        ("temperature", (0.01, 0.05, 0.03, 0.02, 0.09), " -0"),
    ],
)
def test_a_band_does_not_leave_the_metrics_scale(metric, values, shown):
    assert not 0 < band(*values).low < band(*values).high < 1
    known = {f"a0.{metric}": band(*values)}
    (miss,) = misses(known, {"a0": {0: {metric: -9.0}}})
    assert shown in str(miss)
    (miss,) = misses(known, {"a0": {0: {metric: 9.0}}})
    assert shown in str(miss)
    impossible = band(*values).low / 2 if band(*values).low < 0 else (1 + band(*values).high) / 2
    assert len(misses(known, {"a0": {0: {metric: impossible}}})) == (metric != "temperature")


def test_a_band_without_width_allows_no_other_number():
    known = {"a0.accuracy": band(*[0.1] * 5)}
    assert compared(known, {"a0": {0: {"accuracy": 0.1 + 1e-12}}}).problems == []
    assert len(compared(known, {"a0": {0: {"accuracy": 0.11}}}).problems) == 1


# ---- the whole session


@pytest.mark.parametrize(("arms", "seeds", "level"), [(20, 2, 0.005), (4, 1, 0.001), (8, 20, 0.005), (9, 1, 0.005)])
def test_more_missed_bands_than_chance_allows_fail(arms, seeds, level):
    most = next(m for m in range(arms + 1) if stats.binom.sf(m, arms, 0.01 * seeds) < level)
    for missed in range(most + 2):
        moved = {f"a{arm}": 0.055 for arm in range(missed)}
        found = compared(*session(arms, seeds, **moved), level)
        assert (found.missed, found.most) == (missed, most)
        assert (found.problems == []) == (missed <= most)
    often = f"chance misses more than {most} in fewer than 1 of {1 / level:,.0f} sessions"
    assert found.problems == [f"bands missed: {most + 1} of {arms}; {often}"]


def test_all_seeds_outside_one_band_miss_it_once():
    bands, runs = session(8, 5, a0=0.055)
    assert compared(bands, runs).missed == 1
    assert compared(bands, runs).problems == []


def test_arms_that_share_a_run_count_once():
    bands, runs = session(3, 2, a0=0.055)
    again = bands | {"copy.accuracy": bands["a0.accuracy"]}
    found = compared(again, runs | {"copy": runs["a0"]})
    assert (found.numbers, found.bands, found.missed) == (6, 3, 1)
    assert found.warnings[0].startswith("warning: a0, copy, seed 0: accuracy")
    other = compared(again, runs | {"copy": {0: {"accuracy": 0.3}, 1: {"accuracy": 0.3}}})
    assert (other.numbers, len(other.misses)) == (8, 2)


def test_without_numbers_there_is_nothing_to_say():
    found = compared({"a0.accuracy": steady()}, {})
    assert (found.numbers, found.problems, found.warnings) == (0, [], [])


def test_an_honest_session_on_another_processor_passes_with_a_warning():
    """Its 40 numbers were compared with 99% bands, and one outside failed it: so did one in three honest sessions."""
    bands, runs = session(19, 2)
    known = bands | {"ta_6.accuracy": band(*TA_6)}
    runs["ta_6"] = {0: {"accuracy": ON_ANOTHER_PROCESSOR}, 1: {"accuracy": 0.49}}
    assert known["ta_6.accuracy"].low == pytest.approx(0.395, abs=5e-4)
    found = compared(known, runs)
    assert found.problems == []
    assert found.warnings[0].startswith("warning: ta_6, seed 0: accuracy is 0.378, outside its band 0.395")
    assert found.warnings[1:] == [
        "warning: numbers outside their bands: 1 of 40; bands missed: 1 of 20, by chance up to 3"
    ]


# ---- honest sessions, and the sham


def banded(name):
    """The bands of each profile and data set with at least 5 recorded seeds."""
    return read_bands(ROOT / "replications" / name / "bands.toml")


FAMILIES = [
    (name, *key, seeds)
    for name in NAMES
    for key in banded(name)
    for seeds in sorted({load_experiment(name).profile(key[1]).seeds, 5})
]


def sessions(rng, bands, seeds, trials):
    """Give honest sessions: new runs from normal distributions, as uncertain as the recorded runs leave them."""
    drawn = {}
    for known in {known.values: known for known in bands.values()}.values():
        n, values = len(known.values), np.array(known.values)
        spread = values.std(ddof=1) * np.sqrt((n - 1) / rng.chisquare(n - 1, (trials, 1)))
        mean = values.mean() + spread / math.sqrt(n) * rng.standard_normal((trials, 1))
        drawn[known.values] = (mean + spread * rng.standard_normal((trials, seeds))).tolist()
    for trial in range(trials):
        runs = {}
        for key, known in bands.items():
            arm, _, metric = key.partition(".")
            for seed, value in enumerate(drawn[known.values][trial]):
                runs.setdefault(arm, {}).setdefault(seed, {})[metric] = value
        yield runs


def failing(rng, bands, seeds, level, trials):
    """Return, for each of so many honest sessions, whether it fails."""
    # A normal distribution does not keep to the metric's scale, so the metric gets a name without one.
    bands = {f"{key}, drawn": known for key, known in bands.items()}
    return [bool(compared(bands, runs, level).problems) for runs in sessions(rng, bands, seeds, trials)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: " ".join(map(str, family)))
def test_at_most_one_honest_session_in_100_fails(family):
    name, digest, profile, seeds = family
    experiment = load_experiment(name)
    arms = experiment.arms_of(experiment.profile(profile))
    bands = {k: known for k, known in banded(name)[digest, profile].bands.items() if k.partition(".")[0] in arms}
    trials = 700
    failed = np.mean(failing(np.random.default_rng(seeds), bands, seeds, SESSION_LEVEL, trials))
    assert failed <= 0.01 + 2.5 * math.sqrt(0.01 * 0.99 / trials)


def check_bands(name):
    """The bands of a replication's check arms."""
    check = load_experiment(name).check
    (quick,) = (known.bands for key, known in banded(name).items() if key[1] == "quick")
    return {key: known for key, known in quick.items() if key.partition(".")[0] in check}


@pytest.mark.slow
def test_at_most_one_honest_check_in_100_fails():
    rng, trials = np.random.default_rng(0), 3000
    each = [failing(rng, check_bands(name), 1, SESSION_LEVEL / len(NAMES), trials) for name in NAMES]
    assert np.mean(np.any(each, axis=0)) <= 0.01 + 2.5 * math.sqrt(0.01 * 0.99 / trials)


@pytest.mark.parametrize("name", NAMES)
def test_a_check_fails_if_the_sham_stands_in_for_the_teacher(name):
    experiment = load_experiment(name)
    quick = next(
        group
        for key, group in grouped(read_records(ROOT / "results" / name / "runs.jsonl")).items()
        if key[1] == "quick"
    )
    numbers = measured(quick)
    taught = [arm for arm in experiment.check if experiment.arm(arm).needs]
    (sham,) = (arm.name for arm in experiment.arms if SHAM in arm.modes and arm.name in numbers)
    assert taught
    for arm in taught:
        for seed, metrics in numbers[sham].items():
            runs = {other: {0: numbers[other][0]} for other in experiment.check} | {arm: {0: metrics}}
            assert compared(check_bands(name), runs, SESSION_LEVEL / len(NAMES)).problems, f"seed {seed}"


# ---- large files


def many(count):
    bands = {f'a "{number}".accuracy': band(*np.linspace(0.1 + number, 0.2 + number, 10)) for number in range(count)}
    verdicts = {f"C{number}": {"as described": Outcome.REPLICATED} for number in range(count)}
    return {("0f" * 8, "full"): Bands(bands, verdicts, {f"a{number}.loss": True for number in range(count)})}


def test_a_file_of_bands_of_any_size_is_read_back(tmp_path):
    write_bands(tmp_path / "bands.toml", many(2_000))
    assert (tmp_path / "bands.toml").stat().st_size > 3 * MAX_FILE_BYTES
    assert read_bands(tmp_path / "bands.toml") == many(2_000)


@pytest.mark.parametrize(
    "line", ["a.b.c = 1", "x = {y = {z = 1}}", 'x = """', "x = [[1]]", "[[bands]]", "<<<<<<< HEAD"]
)
def test_a_large_file_of_other_lines_is_refused_at_once(tmp_path, line):
    """tomllib takes seconds for some megabytes of them."""
    write_bands(tmp_path / "bands.toml", many(2_000))
    with (tmp_path / "bands.toml").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(SchemaError, match=r"bands\.toml, line \d+: expected a line as kdlib writes it in a file of"):
        read_bands(tmp_path / "bands.toml")


def test_bands_of_all_that_records_may_hold_are_read_back(tmp_path):
    """Numbers up to 1e50, as many seeds as a session may have, and runs of many commits."""
    values = dict(enumerate(np.linspace(-1e50, 1e50, 5)))
    commits = ", ".join(f"{number:012x}" for number in range(60))
    large = band_of(values, commits)
    long = band_of(dict(enumerate(np.linspace(0.0, 1.0, 10_000))), "abc123")
    write_bands(tmp_path / "bands.toml", {("0f" * 8, "full"): Bands({"a.score": large, "b.score": long})})
    found = read_bands(tmp_path / "bands.toml")["0f" * 8, "full"].bands
    assert found["b.score"] == long
    assert found["a.score"].values == large.values
    assert found["a.score"].commit.endswith(f"{19:012x} and 40 more")


@pytest.mark.slow
def test_line_ends_of_windows_are_read_in_a_large_file(tmp_path):
    write_bands(tmp_path / "bands.toml", many(2_000))
    path = tmp_path / "bands.toml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_bands(path) == many(2_000)


def test_bands_that_cannot_be_read_just_now_are_not_to_be_deleted(tmp_path, monkeypatch):
    write_bands(tmp_path / "bands.toml", many(1))

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(KDError, match=r"bands\.toml: cannot be read \(Permission denied\)") as found:
        read_bands(tmp_path / "bands.toml")
    assert "delete" not in str(found.value)
