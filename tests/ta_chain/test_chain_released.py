"""Teaching assistants: arms and numbers against those copied here from the report's text, tables and notebooks."""

from dataclasses import asdict, replace

import pytest

from kdlib.judge.reading import load_claims
from kdlib.run.experiment import load_experiment
from replications.ta_chain import experiment as chain

EXPERIMENT = load_experiment("ta_chain")
ARMS = {arm.name: arm for arm in EXPERIMENT.arms}
COUNTS = {2: 13_146, 4: 37_530, 6: 83_226, 8: 328_922, 10: 658_586}
BOTH = ("as described", "controlled")

# Size, teacher, optimizer, momentum, alpha, T, epochs, patience, epochs more, activity; None where it is of no use.
COLUMNS = ("size", "optimizer", "momentum", "alpha", "temperature", "epochs", "patience", "extra_epochs", "activity")
RELEASED = {
    "scratch_2": (2, None, "adam", None, None, None, 150, 20, 0, 1e-4),
    "scratch_4": (4, None, "sgd", 0.9, None, None, 100, 20, 0, 1e-4),  # its cell prints 10, its log goes on for 20
    "scratch_6": (6, None, "sgd", 0.9, None, None, 100, 10, 1, 1e-4),
    "scratch_8": (8, None, "sgd", 0.9, None, None, 100, 10, 1, 1e-4),
    "scratch_10": (10, None, "sgd", 0.9, None, None, 150, 20, 0, 1e-4),
    "2_of_4": (2, "scratch_4", "sgd", 0.9, 0.4, 4, 100, 0, 0, 0),
    "2_of_6": (2, "scratch_6", "adam", None, 0.1, 4, 150, 0, 0, 0),
    "2_of_8": (2, "scratch_8", "adam", None, 0.2, 4, 50, 10, 0, 0),
    "2_of_10": (2, "scratch_10", "adam", None, 0.6, 8, 30, 10, 0, 0),
    "4_of_10": (4, "scratch_10", "adam", None, 0.8, 2, 50, 10, 0, 0),
    "6_of_10": (6, "scratch_10", "adam", None, 0.1, 2, 50, 10, 0, 0),
    "8_of_10": (8, "scratch_10", "sgd", 0.9, 0.2, 8, 50, 10, 0, 0),
    "ta_4": (2, "4_of_10", "sgd", 0.0, 0.4, 2, 100, 0, 0, 0),
    "ta_6": (2, "6_of_10", "adam", None, 0.2, 4, 100, 0, 0, 0),
    "ta_8": (2, "8_of_10", "adam", None, 0.2, 4, 100, 0, 0, 0),
    "chain_6": (6, "8_of_10", "adam", None, 0.2, 4, 100, 0, 0, 0),
    "chain_4": (4, "chain_6", "adam", None, 0.2, 4, 100, 0, 0, 0),
    "chain": (2, "chain_4", "adam", None, 0.2, 10, 45, 0, 0, 0),  # 40 and then 5 more
}
# The other modes: size, teacher, hundreds of epochs after which the arm is looked at, of how many, modes.
OTHERS = {
    "scratch_2": (2, None, 1, 1, BOTH),
    "scratch_4": (4, None, 1, 1, BOTH),
    "scratch_6": (6, None, 1, 1, BOTH),
    "scratch_8": (8, None, 1, 1, BOTH),
    "scratch_10": (10, None, 1, 1, BOTH),
    "student_2_of_4": (2, "scratch_4", 1, 1, BOTH),
    "student_2_of_6": (2, "scratch_6", 1, 1, BOTH),
    "student_2_of_8": (2, "scratch_8", 1, 1, BOTH),
    "student_2_of_10": (2, "scratch_10", 1, 4, BOTH),
    "direct": (2, "scratch_10", 1, 4, BOTH),
    "direct_as_ta": (2, "scratch_10", 2, 4, ("controlled",)),
    "direct_as_chain": (2, "scratch_10", 4, 4, ("controlled",)),
    "sham": (2, "scratch_10", 1, 1, ("sham",)),
    "student_4_of_10": (4, "scratch_10", 1, 1, BOTH),
    "student_6_of_10": (6, "scratch_10", 1, 1, BOTH),
    "student_8_of_10": (8, "scratch_10", 1, 1, BOTH),
    "ta_4": (2, "student_4_of_10", 1, 1, BOTH),
    "ta_6": (2, "student_6_of_10", 1, 1, BOTH),
    "ta_8": (2, "student_8_of_10", 1, 1, BOTH),
    "chain_6": (6, "student_8_of_10", 1, 1, BOTH),
    "chain_4": (4, "chain_6", 1, 1, BOTH),
    "chain": (2, "chain_4", 1, 1, BOTH),
    "scratch_2_float32": (2, None, 1, 1, ("controlled",)),
    "scratch_2_bfloat16": (2, None, 1, 1, ("controlled",)),
}
# Percent of the test pictures, with the printed digits, and the arms that they belong to.
ACCURACY = {
    "68.66": "scratch_2",
    "77.75": "scratch_4",
    "82.56": "scratch_6",
    "83.20": "scratch_8",
    "84.27": "scratch_10",
    "70.36": "2_of_4",
    "71.69": "2_of_6",
    "70.20": "2_of_8",
    "69.90": "2_of_10",
    "79.50": "4_of_10",
    "83.49": "6_of_10",
    "83.86": "8_of_10",
    "72.21": "chain",
}
TABLE_3 = {"direct": "71.1", "ta_4": "71.5", "ta_6": "72.5", "ta_8": "72.1"}
LOGS = {"released_ta_4": "71.54", "released_ta_6": "72.53", "released_ta_8": "72.18"}
# Points of accuracy between two arms in the mode in which the source measured them.
GAINS = {
    "C1": (1.4, "as described", "ta_6", "direct"),
    "C1code": (2.63, "as released", "released_ta_6", "released_2_of_10"),
    "C4s2": (1.24, "as released", "released_2_of_10", "released_scratch_2"),
    "C4s4": (1.75, "as released", "released_4_of_10", "released_scratch_4"),
    "C4s6": (0.93, "as released", "released_6_of_10", "released_scratch_6"),
    "C4s8": (0.66, "as released", "released_8_of_10", "released_scratch_8"),
}


@pytest.fixture(scope="module")
def reported():
    return load_claims(EXPERIMENT.folder / "claims.toml", list(ARMS))


def test_the_papers_values():
    assert asdict(chain.PAPER) == {
        "size": 2,
        "epochs": 100,
        "optimizer": "sgd",
        "momentum": 0.9,
        "batch": 64,
        "alpha": 0.2,
        "temperature": 4.0,
        "activity": 1e-4,
        "patience": 0,
        "extra_epochs": 0,
        "rounds": 1,
        "train_pictures": 50_000,
        "test_pictures": 10_000,
        "precision": "float32",
    }
    full, exact = EXPERIMENT.profile("full"), EXPERIMENT.profile("float32")
    assert (full.config, full.seeds, full.arms) == (replace(chain.PAPER, precision="bfloat16"), 5, ())
    assert "bfloat16" in full.reduced
    assert (exact.config, exact.seeds, exact.arms) == (chain.PAPER, 5, ())


def test_released_arms_are_the_notebooks():
    released = {name: arm for name, arm in ARMS.items() if arm.modes == ("as released",)}
    assert released.keys() == {f"released_{name}" for name in RELEASED}
    for name, (size, teacher, *rest) in RELEASED.items():
        arm = released[f"released_{name}"]
        assert dict(arm.needs) == ({"teacher": f"released_{teacher}"} if teacher else {}), name
        assert (arm.train, arm.snapshot) == (chain.train_distilled if teacher else chain.train_scratch, "final"), name
        known = {column: value for column, value in zip(COLUMNS, (size, *rest), strict=True) if value is not None}
        config = EXPERIMENT.config(arm, EXPERIMENT.profile("float32"))
        unused = {column: getattr(config, column) for column in COLUMNS if column not in known}
        assert config == replace(chain.PAPER, **known, **unused), name


def test_all_other_arms_are_the_texts_protocol_with_one_size_and_teacher():
    others = {name: arm for name, arm in ARMS.items() if arm.modes != ("as released",)}
    assert others.keys() == OTHERS.keys()
    for name, (size, teacher, looked, rounds, modes) in OTHERS.items():
        arm = others[name]
        assert dict(arm.needs) == ({"teacher": teacher} if teacher else {}), name
        how = chain.train_sham if name == "sham" else chain.train_distilled if teacher else chain.train_scratch
        assert (arm.train, arm.modes) == (how, modes), name
        assert arm.snapshot == ("final" if looked == rounds else f"round_{looked}"), name
        for profile, usual in (("full", "bfloat16"), ("float32", "float32")):
            precision = {"scratch_2_float32": "float32", "scratch_2_bfloat16": "bfloat16"}.get(name, usual)
            config = EXPERIMENT.config(arm, EXPERIMENT.profile(profile))
            assert config == replace(chain.PAPER, size=size, rounds=rounds, precision=precision), name


def test_published_accuracies_are_the_reports(reported):
    plain = {
        arm if arm.startswith(("scratch", "chain")) else f"student_{arm}": value for value, arm in ACCURACY.items()
    }
    published = plain | {f"released_{arm}": value for value, arm in ACCURACY.items()} | TABLE_3 | LOGS
    found = {name: value for name in ARMS if (value := reported.value(name, "accuracy"))}
    assert {name: f"{100 * value.value:.{value.decimals - 2}f}" for name, value in found.items()} == published
    for name, value in found.items():
        assert value.value == pytest.approx(float(published[name]) / 100, abs=1e-9), name
        assert (value.runs, value.std, value.margin) == (None, None, 0.01), name


def test_published_sizes_are_the_reports(reported):
    found = {name: value.value for name in ARMS if (value := reported.value(name, "parameters"))}
    sizes = {name: ARMS[name].change["size"] for name in found}
    assert found == {name: COUNTS[size] for name, size in sizes.items()}
    assert set(sizes.values()) == COUNTS.keys()
    exact = reported.claims["C8"].modes["as described"]
    assert dict(zip(exact.arms, exact.expected, strict=True)) == {
        f"scratch_{size}": count for size, count in COUNTS.items()
    }


def test_published_gains_are_the_differences_of_published_accuracies(reported):
    assert {name for name, claim in reported.claims.items() if claim.kind == "effect"} == GAINS.keys()
    assert reported.primary.name == "C1"
    for name, (points, mode, arm, over) in GAINS.items():
        claim = reported.claims[name]
        assert (claim.modes[mode].arms, claim.modes[mode].rivals) == ((arm,), (over,)), name
        assert claim.reported == pytest.approx(points / 100), name
        values = [reported.value(each, "accuracy").value for each in (arm, over)]
        assert claim.reported == pytest.approx(values[0] - values[1]), name
