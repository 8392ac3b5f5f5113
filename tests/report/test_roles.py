from kdlib.report.roles import COLORS, role_of
from kdlib.run.experiment import load_experiment


def roles(name: str) -> dict[str, str]:
    arms = load_experiment(name).arms
    return {arm.name: role_of(arm, arms) for arm in arms}


def test_the_arms_of_a_source_have_the_parts_that_the_source_gives_them():
    assert {
        name: roles("xray")[name] for name in ("teacher", "teacher_tested", "baseline_100", "distilled_T_2", "sham")
    } == {
        "teacher": "teacher",
        "teacher_tested": "teacher",
        "baseline_100": "baseline",
        "distilled_T_2": "distilled",
        "sham": "sham",
    }


def test_an_assistant_is_taught_and_teaches():
    found = roles("ta_chain")
    assert found["scratch_10"] == "teacher"
    assert "assistant" in found.values()
    assert set(found.values()) <= COLORS.keys()


def test_an_arm_says_its_part_where_its_needs_do_not():
    assert roles("ecg")["released_teacher"] == "teacher"
    found = roles("binary")
    assert {found[name] for name in ("alpha_1_0", "smoothed")} == {"baseline"}
    assert found["alpha_0_9"] == "distilled"
