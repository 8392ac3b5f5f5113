"""Records, tables and README's table, from made-up runs; numbers are compared with SciPy and with hand calculation."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdlib.errors import KDError
from kdlib.judge import intervals
from kdlib.judge.bands import Bands
from kdlib.judge.claims import AS_DESCRIBED, Comparable, Direction, NonInferior, Trend
from kdlib.judge.reading import load_claims
from kdlib.judge.verdicts import Outcome
from kdlib.report import frames, heading, markdown, pages, readme, tables
from kdlib.run.experiment import Arm, Experiment, Profile, load_experiment
from kdlib.run.records import Record, measured, merged, read_records, record_of, write_records
from kdlib.run.store import Description, FinishedRun

CLAIMS = """
[source]
citation = "Someone: a post & its code, 2020"
url = "https://example.org/post"

[values."student.macro_f1"]
value = 0.78
unit = "macro F1, test"
decimals = 2
spread = 0.02
spread_kind = "sample"
runs = 6
place = "post"
selected = "best epoch on test"

[values."alone.macro_f1"]
value = 0.67
unit = "macro F1, test"
decimals = 2
place = "post"

[values."student.accuracy"]
value = 0.954
unit = "percent, test"
decimals = 3
place = "post"

[claims.C1]
kind = "effect"
primary = true
metric = "macro_f1"
statement = "Distillation raises the macro F1 of the small student by very much, namely by 0.11 in all."
place = "post, Results"
reported = 0.11
decimals = 2

[claims.C1.modes]
"as described" = { arm = "student", over = "alone", differs = ["rows", "soft targets"] }

[claims.C2]
kind = "exact"
metric = "parameters"
statement = "The student has 3,909 parameters."
place = "post"

[claims.C2.modes]
"as described" = { expected = { student = 3909, alone = 3909 } }

[claims.C3]
kind = "value"
metric = "accuracy"
statement = "The student is right in 95.4 percent."
place = "post"
reported = 0.954
trivial = 0.8
decimals = 3

[claims.C3.modes]
"as described" = { arm = "student" }

[claims.S1]
kind = "direction"
ours = true
metric = "entropy"
lower_is_better = true
statement = "The student is surer than the sham."

[claims.S1.modes]
"controlled" = { arm = "student", over = "sham", differs = [] }
"""


@dataclass(frozen=True)
class Config:
    epochs: int = 12


def train(run):
    raise AssertionError


ARMS = tuple(
    Arm(name, modes, train)
    for name, modes in (
        ("teacher", ("as described",)),
        ("alone", ("as described", "controlled")),
        ("student", ("as described",)),
        ("sham", ("sham",)),
    )
)
F1 = {"alone": [0.66, 0.68, 0.69, 0.65, 0.67], "student": [0.77, 0.80, 0.78, 0.79, 0.77]}
CONFUSION = [[90, 10], [20, 80]]


@pytest.fixture
def reported(tmp_path):
    (tmp_path / "claims.toml").write_text(CLAIMS)
    return load_claims(tmp_path / "claims.toml", [arm.name for arm in ARMS])


def record(arm, seed, profile="full", data="d1", arms=None, environment=None, **metrics):
    description = Description(f"test/{arm}", 1, {"device": "cpu", "threads": 1}, seed, data)
    numbers = {
        "macro_f1": 0.5,
        "accuracy": 0.85,
        "entropy": 0.3,
        "parameters": 3909,
        "epochs": 12,
        "confusion": CONFUSION,
    } | metrics
    known = {
        "commit": "0123456789abcdef",
        "clean": True,
        "device": "A processor",
        "versions": {"python": "3.11.9", "torch": "2.9.0"},
    }
    return Record(
        profile,
        seed,
        description.id,
        arms or {arm: "final"},
        "beats, published split",
        asdict(description),
        {"final": numbers, "early": numbers},
        [{"training_loss": 0.123456789, "epoch": 1}],
        known | (environment or {}),
        "00ff",
    )


def five(profile="full", **rest):
    return [
        record(arm, seed, profile, macro_f1=f1, accuracy=0.95 + seed / 1000, **rest)
        for arm, scores in F1.items()
        for seed, f1 in enumerate(scores)
    ]


# ---- records


def test_records_come_back_as_they_were(tmp_path):
    path = tmp_path / "results" / "runs.jsonl"
    write_records(path, [record("alone", 0, macro_f1=1 / 3)])
    assert read_records(path) == [record("alone", 0, macro_f1=1 / 3)]
    assert read_records(tmp_path / "none.jsonl") == []


def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path):
    records = [record(arm, seed, profile) for arm in F1 for seed in (1, 0) for profile in ("quick", "full")]
    in_order = write_records(tmp_path / "a", records, ["student", "alone"])
    write_records(tmp_path / "b", records[::-1], ["student", "alone"])
    assert [r.run for r in in_order] == [r.run for r in read_records(tmp_path / "a")]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    order = [(r.profile, r.seed, *r.arms) for r in read_records(tmp_path / "a")]
    assert order == [(p, s, a) for p in ("full", "quick") for s in (0, 1) for a in ("student", "alone")]


def test_each_line_is_compact_json_with_sorted_keys(tmp_path):
    write_records(tmp_path / "a", [record("alone", 0)])
    (line,) = (tmp_path / "a").read_text().splitlines()
    assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))


def test_record_of_a_finished_run(tmp_path):
    description = Description("test/alone", 1, {"sizes": (3, 4)}, 7, "d1")
    metrics = {"final": {"accuracy": 0.1 + 0.2}}
    run = FinishedRun(tmp_path, description, metrics, [{"loss": 1.23456789}], {"commit": "c"}, "00ff")
    made = record_of(run, "quick", {"alone": "final"}, "beats")
    write_records(tmp_path / "a", [made])
    assert read_records(tmp_path / "a") == [made]
    assert (made.run, made.seed, made.data) == (run.id, 7, "d1")
    assert made.metrics["final"]["accuracy"] == 0.1 + 0.2
    assert made.history == [{"loss": 1.23457}]


def test_what_is_not_finite_is_not_written(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KDError, match="finite"):
        write_records(tmp_path / "a", [record("alone", 0, macro_f1=math.nan)])
    assert (tmp_path / "a").read_text() == "old"


def test_runs_of_an_arm_that_is_gone_are_named(tmp_path):
    mnist = load_experiment("mnist")
    pages.refuse_unknown_arms(mnist, [record("alone", 0, arms={"teacher": "final"})], tmp_path)
    gone = record("alone", 0, arms={"zzz\x1b": "final"})
    expected = rf"runs.jsonl: expected runs of mnist's arms, found run {gone.run} of 'zzz\\x1b'; name the arm so again"
    with pytest.raises(KDError, match=expected):
        pages.refuse_unknown_arms(mnist, [gone], tmp_path / "runs.jsonl")


def _broken(change):
    content = asdict(record("alone", 0))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a line of JSON"),
        ("[" * 100_000, "a line of JSON"),
        ("[1]", r"the whole to be an object, found \[1\]"),
        ('{"profile": "quick"}', "the key 'seed', found 'profile'"),
        (_broken(lambda c: c.update(seed="0")), "seed to be a whole number, found '0'"),
        (_broken(lambda c: c.update(seed=True)), "seed to be a whole number"),
        (_broken(lambda c: c.update(seed=1)), "seed 0, as in the description, found 1"),
        (_broken(lambda c: c["description"].update(seed=5)), "the description of run"),
        (_broken(lambda c: c["description"].update(more=5)), "no key 'more' in description"),
        (_broken(lambda c: c["description"].update(config=[])), "config to be an object"),
        (_broken(lambda c: c["arms"].update(alone="best")), "metrics of the snapshot 'best'"),
        (_broken(lambda c: c["metrics"]["final"].update(macro_f1=math.nan)), "a line of JSON, found JSON is malformed"),
        (
            _broken(lambda c: c["metrics"]["final"].update(macro_f1=10**30)),
            "metrics.final.macro_f1 to be a whole number <= 9",
        ),
        (
            _broken(lambda c: c["metrics"]["final"].update(epochs="3")),
            "metrics.final.epochs to be a whole number",
        ),
        (_broken(lambda c: c["metrics"]["final"].update(epochs=-3)), "metrics.final.epochs to be a whole number"),
        (_broken(lambda c: c["environment"].update(commit=7)), "environment.commit to be text, found 7"),
        (_broken(lambda c: c["environment"].update(commit="<b>|x")), "environment.commit"),
        (_broken(lambda c: c["environment"].update(seconds=1e300)), "environment.seconds to be a number <= 1e"),
        (_broken(lambda c: c["environment"].update(seconds=-1)), "environment.seconds to be a whole number >= 0"),
        (_broken(lambda c: c["metrics"]["final"].update(confusion=[])), "confusion to be a list of length >= 1, found"),
        (_broken(lambda c: c["history"].append({"training_loss": None})), "training_loss to be a number, found None"),
        (_broken(lambda c: c.update(trace={"steps": 3})), "the key 'network' in trace, found 'steps'"),
        (_broken(lambda c: c.update(more=1)), "no key 'more', found "),
        (_broken(lambda c: c.pop("arms")), "the key 'arms', found "),
        (
            _broken(lambda c: None).replace("3909", "9" * 5000),
            "a line of JSON, found .*out of range",
        ),
        (_broken(lambda c: None).replace("3909", "1e999"), "a line of JSON, found .*out of range"),
    ],
)
def test_a_broken_line_is_named_with_what_was_expected_and_found(tmp_path, line, message):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(asdict(record("alone", 0))) + "\n" + line + "\n")
    with pytest.raises(KDError, match=f"line 2: expected .*{message}"):
        read_records(path)


def test_measured_holds_the_numbers_of_each_arms_snapshot():
    both = record("student", 3, arms={"student": "final", "stopped": "early"}, macro_f1=0.7, good=True)
    both.metrics["early"] = {"macro_f1": 0.6}
    found = measured([both, record("alone", 3, macro_f1=0.4)])
    assert found["stopped"].keys() == {3}
    assert found["stopped"][3]["macro_f1"] == 0.6
    assert found["student"][3]["macro_f1"] == 0.7
    assert not {"confusion", "good"} & set(found["student"][3])
    assert set(found) == {"student", "stopped", "alone"}
    assert set(measured([both], ["stopped"])) == {"stopped"}


def test_the_training_loss_is_of_the_last_epoch_that_the_snapshot_saw():
    both = record("student", 3, arms={"student": "final", "stopped": "early"})
    both.metrics["early"] = {"macro_f1": 0.6, "epochs": 2}
    both.history[:] = [{"training_loss": loss} for loss in (0.9, 0.7, 0.5)]
    found = measured([both])
    assert (found["student"][3]["training_loss"], found["stopped"][3]["training_loss"]) == (0.5, 0.7)


def test_runs_that_do_not_belong_together_are_refused():
    for other in (record("alone", 0, data="d2"), record("alone", 1, profile="quick")):
        with pytest.raises(KDError, match="one profile on one data set"):
            measured([record("alone", 0), other])
    with pytest.raises(KDError, match="alone, seed 0: expected one run"):
        measured([record("alone", 0), record("alone", 0)])


def test_new_runs_replace_old_ones_cell_by_cell():
    old = [record("student", 0, arms={"student": "final", "stopped": "early"}), record("alone", 0)]
    kept = [record("alone", 1), record("alone", 0, profile="quick"), record("alone", 0, data="d2")]
    new = [record("student", 0, macro_f1=0.9), record("alone", 0, macro_f1=0.9)]
    assert merged([*old, *kept], new) == [replace(old[0], arms={"stopped": "early"}), *kept, *new]


# ---- arms


def test_an_arms_mean_and_interval_are_scipys(reported):
    frame = frames.arms_table(ARMS, reported, five()).set_index("arm")
    assert list(frame.index) == ["alone", "student"]  # the order of ARMS, those that were run
    for arm, scores in F1.items():
        row = frame.loc[arm]
        low, high = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
        assert row["n"] == 5
        assert [row["macro_f1"], row["macro_f1_std"]] == pytest.approx([np.mean(scores), np.std(scores, ddof=1)])
        assert [row["macro_f1_low"], row["macro_f1_high"]] == pytest.approx([low, high])
    assert frame.loc["student", "accuracy"] == pytest.approx(0.952)


def test_the_test_sets_error_is_that_of_the_confusion_matrix(reported):
    half = frames.arms_table(ARMS, reported, five()).iloc[0]
    exact = stats.binomtest(170, 200).proportion_ci(method="exact")
    assert half["accuracy_test_set"] == pytest.approx((exact.high - exact.low) / 2, rel=1e-6)
    # the normal approximation of a bootstrap: macro F1 of two nearly balanced classes moves as accuracy does
    assert half["macro_f1_test_set"] == pytest.approx(1.96 * math.sqrt(0.85 * 0.15 / 200), rel=0.1)


def test_the_reported_range_is_next_to_the_mean(reported):
    frame = frames.arms_table(ARMS, reported, five()).set_index("arm")
    # the source's 95% prediction interval of a mean of 5 after 6 runs, and half a unit of the last decimal
    half = stats.t.ppf(0.975, 5) * 0.02 * math.sqrt(1 / 5 + 1 / 6) + 0.005
    student, alone = frame.loc["student"], frame.loc["alone"]
    spans = [student["macro_f1_range_low"], student["macro_f1_range_high"]]
    assert spans == pytest.approx([0.78 - half, 0.78 + half])
    assert [alone["macro_f1_range_low"], alone["macro_f1_range_high"]] == pytest.approx([0.645, 0.695])
    assert bool(student["macro_f1_inside"])
    # accuracy: 0.952 within 0.954 -+ (0.01 + 0.0005)
    assert bool(student["accuracy_inside"])
    assert alone["accuracy_inside"] is None  # nothing is reported of it
    outside = [replace(r, metrics={"final": r.metrics["final"] | {"macro_f1": 0.9 + r.seed / 100}}) for r in five()]
    assert frames.arms_table(ARMS, reported, outside)["macro_f1_inside"].tolist() == [False, False]
    assert frames.arms_table(ARMS, reported, five(), reduced=True)["macro_f1_inside"].tolist() == [
        None,
        None,
    ]


def test_one_seed_has_no_interval(reported):
    records = [record("student", 0, macro_f1=0.7812, agreement=0.9)]
    frame = frames.arms_table(ARMS, reported, records)
    assert math.isnan(frame["macro_f1_low"][0])
    shown = markdown.arms_shown(frame, reported, ["macro_f1"]).iloc[0]
    assert "95% over seeds" not in shown  # no arm has one
    assert (shown["macro F1"], shown["agreement"], shown["parameters"]) == ("0.781", "0.900", "3,909")
    assert (shown["entropy (nats)"], "KL (nats)" in shown) == ("0.300", False)  # no run has a KL
    scores = [0.6, 0.7, 0.64]
    for n, interval in ((2, False), (3, True)):  # two seeds have none either
        several = [*records, *(record("alone", seed, macro_f1=f1) for seed, f1 in enumerate(scores[:n]))]
        shown = markdown.arms_shown(frames.arms_table(ARMS, reported, several), reported, ["macro_f1"])
        assert ("95% over seeds" in shown) == interval
    low, high = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert shown["95% over seeds"].tolist() == [f"{low:.3f} to {high:.3f}", "—"]


def test_no_interval_leaves_the_scale_of_its_metric(reported):
    wild = {"alone": [0.05, 0.9, 0.1], "student": [0.99, 0.5, 1.0]}
    runs = [
        record(arm, seed, macro_f1=f1, accuracy=f1, entropy=f1)
        for arm, scores in wild.items()
        for seed, f1 in enumerate(scores)
    ]
    arms = frames.arms_table(ARMS, reported, runs).set_index("arm")
    assert [arms.loc["alone", "macro_f1_low"], arms.loc["student", "macro_f1_high"]] == [0.0, 1.0]
    high = stats.ttest_1samp(wild["alone"], 0).confidence_interval(0.95).high
    assert arms.loc["alone", "macro_f1_high"] == min(high, 1.0)
    assert arms.loc["student", "accuracy_range_high"] == pytest.approx(0.9645)  # is not cut
    found = frames.claims_table(reported, runs, None, declared=None).set_index("claim")
    interval = stats.ttest_1samp(np.subtract(wild["student"], wild["alone"]), 0).confidence_interval(0.95)
    assert interval.high > 1
    assert interval.low < -1
    assert list(found.loc["C1", ["low", "high"]]) == [-1.0, 1.0]  # a difference of two shares
    assert found.loc["C3", "high"] == 1.0  # the share itself
    assert found.loc["C3", "low"] == pytest.approx(stats.ttest_1samp(wild["student"], 0).confidence_interval(0.95).low)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("unseen_accuracy", (0, 1)),
        ("macro_f1", (0, 1)),
        ("training_loss", (0, math.inf)),
        ("errors", (0, math.inf)),
        ("extra_errors", (-math.inf, math.inf)),  # a difference
        ("gap", (-math.inf, math.inf)),
    ],
)
def test_the_limits_of_a_metric(metric, expected):
    assert intervals.limits(metric) == expected


def test_reduced_runs_have_no_range(reported):
    frame = frames.arms_table(ARMS, reported, five("quick"), reduced=True)
    shown = markdown.arms_shown(frame, reported, frames.metrics_of(reported))
    assert not [head for head in shown if "range" in head or "inside" in head]
    assert "macro F1: reported" in shown
    config = Config()
    assert frames.is_reduced(Profile(config, 2, reduced="2 epochs"), synthetic=False)
    assert frames.is_reduced(Profile(config, 5), synthetic=True)
    assert not frames.is_reduced(Profile(config, 5), synthetic=False)  # in another precision, say
    assert not frames.is_reduced(Profile(config, 5, reduced="bfloat16", judged=True), synthetic=False)


def test_numbers_that_are_no_shares_are_never_multiplied_for_a_word_in_their_unit(reported):
    known = next(value for value in reported.values.values() if value.metric == "accuracy")
    for value, unit, shown in ((146.0, "errors of 10,000 (1.46%)", "146"), (91.2, "points", "91"), (0.912, "%", "91")):
        one = replace(known, value=value, unit=unit, metric="errors", decimals=0, std=None)
        scale = markdown.scale(replace(reported, values={"one": one}, claims={}), "errors")
        assert scale.show(value, decimals=0) == shown


def test_percent_only_where_the_source_writes_percent(reported):
    frame = frames.arms_table(ARMS, reported, five())
    student = markdown.arms_shown(frame, reported, frames.metrics_of(reported)).set_index("arm").loc["student"]
    assert student["macro F1"] == "0.782"
    assert student["macro F1: reported"] == "0.78 ± 0.02 (6)"
    assert student["accuracy %"] == "95.20"  # one decimal more than the source's 95.4
    assert student["accuracy: reported"] == "95.4"
    assert student["accuracy: range"] == "94.35 to 96.45"


def test_every_claim_has_its_unit(reported):
    percent, share = markdown.Scale(percent=True), markdown.Scale()
    c1, c2, c3, s1 = (reported.claims[name] for name in ("C1", "C2", "C3", "S1"))
    assert markdown.unit(c1, share) == "macro F1"
    assert markdown.unit(replace(c1, metric="accuracy"), percent) == "points of accuracy"
    assert markdown.unit(c2, share) == "parameters"
    assert markdown.unit(c3, percent) == "% accuracy"  # of one arm, not of a difference
    assert markdown.unit(s1, share) == "nats of entropy"
    assert markdown.unit(replace(s1, metric="teacher_kl"), share) == "nats of KL"
    trend = Trend(name="C9", metric="accuracy", statement="It rises.", place="", modes={})
    assert markdown.unit(trend, percent) == "Kendall's tau"
    shown = markdown.claims_shown(frames.claims_table(reported, five(), None, declared=5), reported, True, False)
    assert dict(zip(shown["claim"], shown["unit"], strict=True)) == {
        "C1 (primary)": "macro F1",
        "C2": "parameters",
        "C3": "% accuracy",
        "S1 (ours)": "nats of entropy",
    }


# ---- claims


def claims(reported, records, full=None, synthetic=False):
    judged = {record.profile for record in records} == {"full"}
    return frames.claims_table(reported, records, full, declared=5 if judged else None, synthetic=synthetic).set_index(
        "claim"
    )


def test_full_runs_get_verdicts(reported):
    frame = claims(reported, five())
    differences = np.subtract(F1["student"], F1["alone"])
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    c1 = frame.loc["C1"]
    assert [c1["measured"], c1["low"], c1["high"]] == pytest.approx([differences.mean(), *interval])
    assert (c1["verdict"], c1["says"], c1["n"], c1["mark"]) == ("replicated", "", 5, "primary")
    assert (frame.loc["C2", "verdict"], frame.loc["C2", "measured"]) == ("replicated", 0)
    # a value is shown itself, not what it exceeds the trivial one by
    assert frame.loc["C3", "measured"] == pytest.approx(0.952)
    assert (frame.loc["S1", "mark"], frame.loc["S1", "n"]) == ("ours", 0)
    assert math.isnan(frame.loc["S1", "measured"])


def test_lower_is_better_differences_are_positive_where_the_arm_is_better(reported):
    pairs = [("student", 0.1), ("sham", 0.4)]
    records = [record(arm, seed, entropy=start + seed / 100) for arm, start in pairs for seed in range(5)]
    assert claims(reported, records).loc["S1", "measured"] == pytest.approx(0.3)


@pytest.mark.parametrize("seeds", [2, 5])
def test_other_profiles_only_say_whether_they_agree(reported, seeds):
    records = [r for r in five("quick") if r.seed < seeds]
    frame = claims(reported, records)
    assert set(frame["verdict"]) == set(frame["detail"]) == {""}
    assert set(frame["says"]) == {"no full verdict yet"}
    for recorded, expected in ((Outcome.SMALLER, "agrees"), (Outcome.NOT_REPLICATED, "disagrees")):
        full = Bands(verdicts={"C1": {AS_DESCRIBED: recorded}})
        row = claims(reported, records, full).loc["C1"]
        assert (row["recorded"], row["verdict"]) == (recorded, "")
        assert row["says"] == (expected if seeds == 5 else "too few seeds")
    frame = frames.claims_table(reported, records, full, declared=None)
    text = markdown.table(markdown.claims_shown(frame, reported, judged=False, synthetic=False))
    assert "| not replicated " in text
    assert "replicated" not in text.replace("not replicated", "")


def test_synthetic_data_get_no_verdict(reported):
    full = Bands(verdicts={"C1": {AS_DESCRIBED: Outcome.REPLICATED}})
    frame = frames.claims_table(reported, five(), full, declared=5, synthetic=True)
    assert set(frame["verdict"]) == set(frame["says"]) == set(frame["recorded"]) == {""}
    shown = markdown.claims_shown(frame, reported, True, True)
    assert set(shown["verdict"]) == {"none: synthetic data"}


@pytest.mark.parametrize(
    ("here", "recorded", "expected"),
    [
        (Outcome.REPLICATED, None, "no full verdict yet"),
        (Outcome.REPLICATED, Outcome.TOO_FEW_SEEDS, "no full verdict yet"),
        (Outcome.TOO_FEW_SEEDS, Outcome.REPLICATED, "too few seeds"),
        (Outcome.TOO_FEW_SEEDS, Outcome.INCONCLUSIVE, "too few seeds"),
        (Outcome.INCONCLUSIVE, Outcome.REPLICATED, "too few seeds"),
        (Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE, "agrees"),
        (Outcome.REPLICATED, Outcome.INCONCLUSIVE, "disagrees"),
        (Outcome.SMALLER, Outcome.REPLICATED, "agrees"),
        (Outcome.MUCH_SMALLER, Outcome.REPLICATED, "disagrees"),
        (Outcome.NO_DIFFERENCE, Outcome.NOT_REPLICATED, "agrees"),
        (Outcome.REVERSED, Outcome.NOT_REPLICATED, "disagrees"),
        (Outcome.REVERSED, Outcome.NOT_REPLICATED_REVERSED, "agrees"),
    ],
)
def test_what_reduced_runs_say(here, recorded, expected):
    assert frames.says(here, recorded) == expected


@given(st.sampled_from(Outcome))
def test_every_outcome_but_too_few_seeds_agrees_with_itself(outcome):
    expected = "no full verdict yet" if outcome in (Outcome.TOO_FEW_SEEDS, Outcome.INTERIM) else "agrees"
    assert frames.says(outcome, outcome) == expected


# ---- the page

EXPERIMENT = Experiment(
    source="beats",
    protocol=1,
    data=(),
    load_data=lambda config, folders: None,
    arms=ARMS,
    profiles={
        "full": Profile(Config(), 5, judged=True),
        "quick": Profile(Config(), 2, reduced="2 epochs | less"),
    },
    check=(),
    banded=(),
    name="beats",
)


def written(folder, label, experiment, reported, records, profile):
    """Write a page and return its Markdown."""
    analogue = label != profile
    page = tables.page_of(label, experiment, reported, records, profile=profile, analogue=analogue)
    page.write(folder)
    return page.text


def test_the_page_and_its_csv_files(reported, tmp_path):
    text = written(tmp_path / "out", "full", EXPERIMENT, reported, five(), profile="full")
    assert (tmp_path / "out" / "full.md").read_text() == text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "full-arms.csv",
        "full-claims.csv",
        "full.md",
        "full.tex",
    ]
    arms = list(csv.DictReader((tmp_path / "out" / "full-arms.csv").read_text().splitlines()))
    assert float(arms[1]["macro_f1"]) == np.mean(F1["student"])  # to the last bit
    judged = pd.read_csv(io.StringIO((tmp_path / "out" / "full-claims.csv").read_text()))
    assert judged["verdict"].tolist()[0] == "replicated"
    assert "SYNTHETIC" not in text
    for line in (
        "- data: beats, published split (digest d1)",
        "- seeds: 5 (0-4), 10 runs",
        "- device: cpu (A processor), 1 thread a run",
        "- versions: python 3.11.9, torch 2.9.0",
        "- commit: 0123456789 (clean tree)",
        "- profile: full",
    ):
        assert line in text.splitlines()
    assert "Someone: a post \\& its code, 2020" in text
    assert "- C1, primary, effect: Distillation raises the macro F1" in text
    assert "How the source chose the numbers it reports:\n\n- best epoch on test: student\n" in text


def test_the_same_records_give_the_same_page(reported, tmp_path):
    first, second = (
        written(tmp_path / label, "full", EXPERIMENT, reported, records, profile="full")
        for label, records in (("a", five()), ("b", five()[::-1]))
    )
    assert first == second


def test_the_heading_says_what_is_reduced_synthetic_or_unclean():
    records = [record("alone", 0, "quick"), record("student", 0, "quick", environment={"clean": False})]
    text = heading.header(records, "quick", "2 epochs | less", True)
    assert text.startswith("**SYNTHETIC DATA")
    assert "- profile: quick; reduced: 2 epochs \\| less" in text
    assert "- commit: 0123456789 (clean tree); 0123456789 (uncommitted changes)" in text


def test_the_heading_says_on_which_seeds_the_claims_are_judged_if_there_are_more(reported, tmp_path):
    more = [record("student", seed, "full") for seed in range(5, 7)]
    text, alone = (
        written(tmp_path / label, "full", EXPERIMENT, reported, records, profile="full")
        for label, records in (("more", [*five(), *more]), ("five", five()))
    )
    assert (
        "runs; the claims are judged on the 5 declared seeds alone, 0-4; all other numbers are also of 5, 6\n" in text
    )
    assert "declared seeds alone" not in alone


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([0, 1], "0, 1"),
        ([0, 1, 2], "0-2"),
        (range(20), "0-19"),
        ([0, 1, 2, 5, 7, 8, 9, 10, 12, 13], "0-2, 5, 7-10, 12, 13"),
    ],
)
def test_seeds_in_a_row_are_a_range(seeds, text):
    assert heading.ranges(seeds) == text


def test_a_label_beyond_the_profile_is_of_other_data(reported, tmp_path):
    """Its verdicts are those of an analogue."""
    for label, marked in (("full", False), ("full-inter-patient", True)):
        text = written(tmp_path, label, EXPERIMENT, reported, five(), profile="full")
        assert ("| replicated (analogue) " in text) == marked


def test_the_profile_says_what_is_reduced_and_whether_verdicts_are_given(reported, tmp_path):
    text = written(tmp_path, "quick", EXPERIMENT, reported, five("quick"), profile="quick")
    assert "- profile: quick; reduced: 2 epochs \\| less\n" in text
    assert "| full verdict " in text
    assert "| verdict " not in text
    full = written(tmp_path, "full", EXPERIMENT, reported, five(), profile="full")
    assert "reduced" not in full.partition("## Arms")[0]
    assert "| verdict " in full


def test_text_from_files_cannot_leave_its_cell(reported, tmp_path):
    hostile = "x | y\n\n# head <script>alert(1)</script> [a](http://b.c) `d` **e** @you\u202e"
    records = [replace(r, data_name=hostile, environment=r.environment | {"device": hostile}) for r in five()]
    text = written(tmp_path, "full", EXPERIMENT, reported, records, profile="full")
    for live in (" | y", "\n# head", " <script", " [a]", "http://b", " `d`", " **e", " @you", "\u202e"):
        assert live not in text
    assert "x \\| y \\# head \\<script\\>" in text


@given(st.text(alphabet="ab_|\\\n\r\u2028<*`&w.:/", max_size=40))
def test_escaped_text_is_one_cell(text):
    shown = markdown.escaped(text)
    assert len(shown.splitlines()) < 2
    assert "|" not in shown.replace("\\\\", "").replace("\\|", "")


def test_names_stay_readable_when_escaped():
    assert markdown.escaped("released_baseline 0.5 (x-y)") == "released_baseline 0.5 (x-y)"
    assert markdown.escaped("_a_ www.b.c") == "\\_a\\_ www\\.b.c"


@pytest.mark.parametrize("records", [[], [record("sham", 0, "quick")]])
def test_tables_of_next_to_nothing(reported, tmp_path, records):
    text = written(tmp_path, "quick", EXPERIMENT, reported, records, profile="quick")
    assert ("Nothing has been run yet." in text) == (not records)
    assert text.count("| not run ") == 4


# ---- the README's table


def test_the_summary_takes_the_worst_primary_verdict(reported):
    line = readme.summary_line("beats", reported, five(), 5)
    differences = np.subtract(F1["student"], F1["alone"])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert line["replication"] == "beats"
    assert line["claim"].startswith("C1, as described: Distillation raises")
    assert (line["unit"], line["reported"]) == ("macro F1", "+0.11")
    assert line["measured"] == f"{differences.mean():+.3f} ({low:+.3f} to {high:+.3f}), n = 5"
    assert line["verdict"] == "replicated"
    further = replace(reported.claims["C1"], name="C4", reported=0.5)
    both = replace(reported, claims=reported.claims | {"C4": further})
    worst = readme.summary_line("beats", both, five(), 5)
    assert worst["claim"].startswith("C4")
    assert worst["verdict"] == "much smaller than reported"


def test_the_summary_before_any_full_run(reported):
    others = [record for record in five() if "student" not in record.arms]
    assert others  # full runs, but of no arm that the claim is about
    for records in ([], others):
        line = readme.summary_line("beats", reported, records, 5)
        assert (line["measured"], line["verdict"]) == ("—", "not yet run in full")
    assert readme.summary_table([line]).splitlines()[0].startswith("| replication")


BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def test_the_table_is_put_between_its_marks():
    text = f"a\n{BEGIN}\nold\n{END}\nb\n"
    once = readme.replace_table(text, "new")
    assert once == f"a\n{BEGIN}\nnew\n{END}\nb\n"
    assert readme.replace_table(once, "new") == once
    for wrong in (
        "a",
        BEGIN,
        f"{END} {BEGIN}",
        text + BEGIN,
        text + END,
    ):
        with pytest.raises(KDError, match="put them around the place of the table"):
            readme.replace_table(wrong, "new")


OF_A_REPOSITORY = """
from dataclasses import dataclass

from kdlib.run.experiment import Arm, Experiment, Profile, load_experiment


@dataclass(frozen=True)
class Config:
    epochs: int = 12


def train(run):
    raise AssertionError


EXPERIMENT = Experiment(
    source="beats",
    protocol=1,
    data=(),
    load_data=lambda config, folders: None,
    arms=tuple(Arm(name, ("as described",), train) for name in ("teacher", "alone", "student", "sham")),
    profiles={
        "paper": Profile(Config(), 5, judged=True),
        "quick": Profile(Config(), 2, in_readme=True),
    },
    check=(),
    banded=(),
)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository of two replications: a judged profile called paper, and quick, whose arms README shows."""
    import replications

    monkeypatch.setattr(replications, "__path__", [*replications.__path__, str(tmp_path / "replications")])
    for name in ("beats", "other"):
        folder = tmp_path / "replications" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "experiment.py").write_text(OF_A_REPOSITORY)
        (folder / "claims.toml").write_text(CLAIMS + PARTS)
        (folder / "README.md").write_text(f"# {name}\n")
        for module in (f"replications.{name}", f"replications.{name}.experiment"):
            monkeypatch.delitem(sys.modules, module, raising=False)
    marks = "<!-- claims:begin -->\n<!-- claims:end -->\n<!-- ingredients:begin -->\n<!-- ingredients:end -->\n"
    (tmp_path / "replications" / "beats" / "README.md").write_text(marks)
    (tmp_path / "README.md").write_text(f"# top\n{BEGIN}\n{END}\n<!-- beats:begin -->\nold\n<!-- beats:end -->\n")
    write_records(tmp_path / "results" / "beats" / "runs.jsonl", [*five("paper"), *five("quick")])
    return tmp_path


def test_a_source_without_a_link_has_none_in_its_page(reported, tmp_path):
    def line(url):
        source = replace(reported, source=replace(reported.source, url=url))
        text = written(tmp_path / "out", "full", EXPERIMENT, source, five(), profile="full")
        return text.splitlines()[2]

    assert line("https://example.org") == line("") + ", <https://example.org>"
    assert line("").startswith("Source: ")
    assert "<" not in line("")


def test_the_readmes_get_their_tables(root):
    experiment, folder = load_experiment("beats"), root / "results" / "beats"
    records = read_records(folder / "runs.jsonl")
    made = pages.write_pages(experiment, records, folder, committed=records, synthetic=False)
    assert [page.name for page in made] == ["paper", "quick"]
    assert all(page.text == (folder / f"{page.name}.md").read_text() for page in made)
    pages.update_readmes(root, pages.committed(root))
    text, own = ((root / place / "README.md").read_text() for place in ("", "replications/beats"))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split()[1] for row in rows][:3] == ["replication", "beats", "other"]
    assert "| replicated " in rows[1]
    assert "| not yet run in full " in rows[2]

    def table(page, head):
        return page.partition(f"## {head}\n\n")[2].partition("\n\n")[0]

    paper, quick = ((folder / f"{name}.md").read_text() for name in ("paper", "quick"))
    assert f"<!-- beats:begin -->\n{table(quick, 'Arms')}\n<!-- beats:end -->\n" in text
    assert f"<!-- claims:begin -->\n{table(paper, 'Claims')}\n<!-- claims:end -->\n" in own
    assert f"<!-- ingredients:begin -->\n{table(paper, tables.MADE_OF)}\n<!-- ingredients:end -->\n" in own
    assert len(table(paper, tables.MADE_OF).splitlines()) == 3
    assert (root / "replications" / "other" / "README.md").read_text() == "# other\n"
    pages.update_readmes(root, pages.committed(root))
    assert (root / "README.md").read_text() == text


def test_a_readme_that_cannot_take_its_table_is_named(root):
    for content in ("# no marks", None):
        if content is None:
            (root / "README.md").unlink()
        else:
            (root / "README.md").write_text(content)
        with pytest.raises(KDError, match=r"README\.md: expected"):
            pages.update_readmes(root, pages.committed(root))


def test_reduced_runs_are_compared_with_the_judged_runs_on_the_same_choice_of_data(root):
    """A reduced profile may train on a part of the data, so its digest may be another."""
    experiment = load_experiment("beats")
    (root / "replications" / "beats" / "bands.toml").write_text(
        '[verdicts."d1"."paper"."C1"]\n"as described" = "reversed"\n'
    )
    records = [*five("paper"), *five("quick", data="d2")]
    (quick,) = pages.make_pages(experiment, records[-10:], committed=records, synthetic=False)
    assert "| reversed " in quick.text
    (quick,) = pages.make_pages(experiment, records[-10:], committed=[], synthetic=False)
    assert "| reversed " not in quick.text


def test_pages_of_synthetic_data_say_so(root):
    experiment, folder = load_experiment("beats"), root / "results" / "beats" / "local"
    (page,) = pages.write_pages(experiment, five("quick"), folder, committed=[], synthetic=True)
    assert page.text == (folder / "quick.md").read_text()
    assert "**SYNTHETIC DATA" in page.text
    assert "none: synthetic data" in page.text


# ---- ingredients

PARTS = """
[ingredients.teacher]
label = "the teacher & nothing else"
arm = "student"
over = "alone"
differs = ["soft targets"]
"""


def test_an_ingredient_is_the_mean_paired_difference_over_shared_seeds(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(CLAIMS + PARTS)
    student, alone = {0: 0.80, 1: 0.77, 2: 0.79, 5: 0.1}, {0: 0.70, 1: 0.71, 2: 0.66, 4: 0.2}
    made = [record("student", seed, macro_f1=f1) for seed, f1 in student.items()]
    made += [record("alone", seed, macro_f1=f1) for seed, f1 in alone.items()]
    (row,) = frames.ingredients_table(load_claims(path, [arm.name for arm in ARMS]), made).to_dict("records")
    differences = [0.10, 0.06, 0.13]
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert row["n"] == 3
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((np.mean(differences), low, high), rel=1e-12)


def test_the_ingredients_are_in_a_csv_file_to_the_last_bit(tmp_path):
    (tmp_path / "claims.toml").write_text(CLAIMS + PARTS)
    reported = load_claims(tmp_path / "claims.toml", [arm.name for arm in ARMS])
    text = written(tmp_path, "full", EXPERIMENT, reported, five(), profile="full")
    (row,) = csv.DictReader((tmp_path / "full-ingredients.csv").read_text().splitlines())
    differences = np.subtract(F1["student"], F1["alone"])
    assert (row["ingredient"], row["arm"], row["over"]) == ("the teacher & nothing else", "student", "alone")
    assert (row["metric"], float(row["difference"]), row["n"]) == ("macro_f1", float(np.mean(differences)), "5")
    assert f"{np.mean(differences):+.3f}" in text.partition(tables.MADE_OF)[2]


def test_tables_name_what_arms_differ_in_and_pages_how_many_pairs_are_traced(tmp_path):
    (tmp_path / "claims.toml").write_text(CLAIMS + PARTS)
    reported = load_claims(tmp_path / "claims.toml", [arm.name for arm in ARMS])
    text = written(tmp_path, "full", EXPERIMENT, reported, five(), profile="full")
    named = [row["differs"] for row in csv.DictReader((tmp_path / "full-claims.csv").read_text().splitlines())]
    assert named == ["rows, soft targets", "", "", "nothing"]  # arms that are compared with numbers have no pair
    (row,) = csv.DictReader((tmp_path / "full-ingredients.csv").read_text().splitlines())
    assert row["differs"] == "soft targets"
    claims = text.partition("## Claims")[2].partition("##")[0].splitlines()
    column = [line.split("|")[4].strip() for line in claims if line.startswith("|")]
    assert column == ["differs in", column[1], "rows, soft targets", "—", "—", "nothing"]
    assert "\n- traces: 0 of 5 compared pairs of runs are traced (the others: not traced)\n" in text
    traced = [replace(record, trace={"steps": 1}) for record in five()]
    text = written(tmp_path, "full", EXPERIMENT, reported, traced, profile="full")
    assert "\n- traces: 5 of 5 compared pairs of runs are traced\n" in text
    alone = [record for record in traced if "student" not in record.arms]
    assert "- traces:" not in written(tmp_path, "full", EXPERIMENT, reported, alone, profile="full")


def test_an_ingredient_whose_arm_is_not_recorded_stays_without_numbers(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(CLAIMS + PARTS)
    reported = load_claims(path, [arm.name for arm in ARMS])
    shown = markdown.ingredients_shown(frames.ingredients_table(reported, [record("student", 0)]), reported)
    expected = {
        "part": "—",
        "ingredient": r"the teacher \& nothing else",
        "arm": "student",
        "over": "alone",
        "differs in": "soft targets",
        "difference (macro F1)": "—",
        "95%": "—",
    }
    assert shown.to_dict("records") == [expected | {"n": "0"}]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('over = "alone"', 'over = "student"', "another arm than student"),
        ('over = "alone"', 'over = "nobody"', "an arm of this experiment"),
        ('over = "alone"', 'over = "alone"\nverdict = "replicated"', "only the keys arm, differs, label, over"),
        ('"the teacher & nothing else"', '"<b>"', "without markup"),
    ],
)
def test_an_ingredient_that_breaks_the_schema_is_refused(tmp_path, old, new, said):
    path = tmp_path / "claims.toml"
    path.write_text(CLAIMS + PARTS.replace(old, new))
    with pytest.raises(KDError, match=said):
        load_claims(path, [arm.name for arm in ARMS])


@pytest.mark.parametrize("text", ["a@b `x` *y* _z_ https://www.a.b [l](m) a|b 1_000 \\ <q> #1", "a_b _c_ ~d~ $e$"])
def test_a_terminal_shows_the_text_without_its_escapes(text):
    assert markdown.unescaped(markdown.escaped(text)) == text


def test_the_readme_shows_the_transfer_next_to_the_gain(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(CLAIMS + PARTS.replace("label =", 'role = "transfer"\nlabel =', 1))
    reported = load_claims(path, [arm.name for arm in ARMS])
    part = reported.part("transfer")
    assert part is not None
    assert reported.part("softness") is None
    runs = [record(arm, seed) for arm in (part.arm, part.rival) for seed in range(5)]
    row = readme.summary_line("toy", reported, runs, 5)
    assert row["transfer proper"].startswith(("+", "-"))


@pytest.mark.parametrize(
    ("number", "percent", "decimals", "shown"),
    [
        (-0.000306, False, 3, "-0.0003"),
        (0.00004, True, 4, "+0.004"),
        (0.04, False, 1, "+0.04"),
        (1e-9, False, 3, "+0.000000"),
        (0.0, False, 3, "+0.000"),
        (0.0006, False, 3, "+0.001"),
    ],
)
def test_a_number_is_not_rounded_to_nothing(number, percent, decimals, shown):
    assert markdown.Scale(percent, decimals).show(number, "+") == shown


def test_what_decides_is_shown_with_all_its_digits(reported):
    effect, value = reported.claims["C1"], reported.claims["C3"]
    places = {
        name: getattr(value, name) for name in ("name", "metric", "statement", "place", "modes", "primary", "ours")
    }
    percent, share = markdown.Scale(True, 4), markdown.Scale(False, 3)
    said = [
        markdown.aim(claim, shown)
        for claim, shown in (
            (Direction(**places, threshold=0.9996), percent),
            (NonInferior(**places, margin=0.0004), percent),
            (NonInferior(**places, margin=0.0), share),
            (Comparable(**places, margin=0.0025), percent),
            (Comparable(**places, margin=0.0002), share),
            (replace(effect, reported=72.0, decimals=0), markdown.Scale(False, 1)),
            (replace(effect, reported=3410.0, decimals=0), markdown.Scale(False, 1)),
        )
    ]
    assert said == [
        *("above 99.96", "above -0.04", "above +0.000", "within 0.25", "within 0.0002", "+72", "+3,410"),
    ]


def test_runs_on_other_data_have_no_range(reported, tmp_path):
    for label, ranged in (("full", True), ("full-inter-patient", False)):
        text = written(tmp_path, label, EXPERIMENT, reported, five(), profile="full")
        assert (" range " in text.partition("## Claims")[0]) == ranged
    plain = pages.without_ranges(reported)
    assert {value.std for value in plain.values.values()} == {None}
    assert [value.value for value in plain.values.values()] == [value.value for value in reported.values.values()]


def test_the_reason_of_a_verdict_ends_with_one_full_stop():
    from kdlib.report import site

    assert [site.reason({"detail": text}) for text in ("Equal in every run.: 3", "So it is: 3", "")] == [
        "Equal in every run.",
        "So it is.",
        "",
    ]
