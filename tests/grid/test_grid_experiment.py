"""The grid's arms: compared arms differ only in what the comparison is about; and the published numbers."""

from dataclasses import asdict, replace

import pytest

from kdlib.judge.reading import load_claims
from kdlib.run.experiment import load_experiment
from replications.course_report.cifar import train_distilled, train_student

EXPERIMENT = load_experiment("grid")
FULL = EXPERIMENT.profile("full")
CELLS = {
    0.2: (86.42, 87.84, 88.49, 88.79, 88.49),
    0.4: (87.65, 87.94, 88.65, 89.26, 89.13),
    0.6: (86.56, 88.30, 88.24, 89.41, 89.09),
    0.8: (87.41, 88.26, 88.90, 88.61, 88.54),
    1.0: (87.05, 88.11, 89.15, 89.35, 89.29),
}
AMOUNT = {
    5: (61.14, 68.11),
    10: (68.78, 73.01),
    15: (72.93, 77.82),
    25: (78.09, 82.22),
    50: (83.26, 86.44),
    75: (85.70, 88.26),
}
NAMES = {(alpha, t): f"alpha_{alpha}_T_{t}".replace(".", "_") for alpha in CELLS for t in (2, 4, 6, 8, 10)}


def config(arm, profile=FULL):
    return asdict(EXPERIMENT.config(EXPERIMENT.arm(arm), profile))


def differences(arm, over):
    one, other = config(arm), config(over)
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}


def test_the_protocol_is_the_reports():
    expected = {
        "epochs": 50,
        "batch": 32,
        "learning_rate": 1e-3,
        "share": 1.0,
        "train_pictures": 50_000,
        "slows": False,
        "teacher_epochs": 90,
        "teacher_batch": 64,
        "teacher_schedule": "steps",
        "recorded_teacher": "",
    }
    assert expected.items() <= config("alpha_0_6_T_8").items()


def test_the_full_profile_differs_from_the_reports_float32_in_its_precision_alone():
    exact = EXPERIMENT.profile("float32").config
    assert FULL.config == replace(exact, precision="bfloat16")
    assert exact.precision == EXPERIMENT.profile("quick").config.precision == "float32"
    assert FULL.judged


@pytest.mark.parametrize(("alpha", "temperature"), NAMES)
def test_a_cell_differs_from_its_fair_baseline_in_the_teacher_alone(alpha, temperature):
    for prefix, baseline in (("", "baseline"), ("validated_", "validated_baseline")):
        arm = EXPERIMENT.arm(prefix + NAMES[alpha, temperature])
        assert (arm.train, arm.needs) == (train_distilled, {"teacher": "teacher"})
        assert (config(arm.name)["alpha"], config(arm.name)["temperature"]) == (alpha, temperature)
        # A student from scratch does not use these two.
        assert differences(arm.name, baseline).keys() <= {"alpha", "temperature"}
        assert EXPERIMENT.arm(baseline).train is train_student


def test_the_released_baseline_differs_in_its_batch_size_too():
    assert differences("baseline_64", "baseline") == {"batch": (64, 32)}
    assert "as released" not in EXPERIMENT.arm("baseline").modes


@pytest.mark.parametrize("percent", AMOUNT)
def test_a_part_of_the_data_is_the_only_thing_that_changes(percent):
    assert differences(f"baseline_{percent}_percent", "baseline") == {"share": (percent / 100, 1.0)}
    assert differences(f"distilled_{percent}_percent", "alpha_0_6_T_8") == {"share": (percent / 100, 1.0)}


def test_the_sham_differs_in_its_soft_targets_alone():
    assert not differences("sham", "alpha_0_6_T_8")
    assert EXPERIMENT.arm("sham").needs == {"teacher": "teacher"}


def test_all_published_numbers_are_those_of_their_arms():
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    published = {
        NAMES[alpha, t]: value for alpha, row in CELLS.items() for t, value in zip((2, 4, 6, 8, 10), row, strict=True)
    }
    published |= {
        f"{kind}_{percent}_percent": value
        for percent, pair in AMOUNT.items()
        for kind, value in zip(("baseline", "distilled"), pair, strict=True)
    }
    published |= {"teacher": 93.5, "baseline_64": 87.25}
    found = {arm: reported.value(arm, "accuracy") for arm in published}
    assert {arm: round(100 * value.value, 4) for arm, value in found.items() if value} == published


def test_the_claims_compare_the_arms_that_the_report_compares():
    claims = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms]).claims
    shares = (75, 50, 25, 15, 10, 5)
    fewer = ("alpha_0_6_T_8", *(f"distilled_{percent}_percent" for percent in shares))
    scratch = tuple(f"baseline_{percent}_percent" for percent in shares)
    for mode, baseline in (("as described", "baseline"), ("as released", "baseline_64"), ("controlled", "baseline")):
        modes = {name: claims[name].modes[mode] for name in ("C1", "C2", "C3", "D1", "D2")}
        assert {name: (found.arms, found.rivals) for name, found in modes.items()} == {
            "C1": (("alpha_0_6_T_8",), (baseline,)),
            "C2": (tuple(NAMES[0.6, t] for t in (2, 4, 6, 8, 10)), ()),
            "C3": (("alpha_1_0_T_8",), (baseline,)),
            "D1": (fewer, (baseline, *scratch)),
            "D2": (("distilled_25_percent",), (baseline,)),
        }
    assert claims["C1"].reported == pytest.approx(0.8941 - 0.8725)
    assert claims["C3"].reported == pytest.approx(0.8935 - 0.8725)


def test_the_choice_on_validation_is_among_the_validated_cells():
    reported = load_claims(EXPERIMENT.folder / "claims.toml", [arm.name for arm in EXPERIMENT.arms])
    (choice,) = reported.choices
    assert choice.by == "validation_accuracy"
    assert sorted(choice.among) == sorted(f"validated_{name}" for name in NAMES.values())
    assert reported.claims["C1v"].modes["controlled"].rivals == ("validated_baseline",)
