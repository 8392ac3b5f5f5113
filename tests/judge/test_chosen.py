"""An arm that is chosen among others: by a metric's highest mean, judged by another, and found again by the audit."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from kdlib.judge.claims import Choice
from kdlib.judge.judging import chosen, judge, outcomes, with_choices
from kdlib.judge.reading import load_claims
from kdlib.judge.schema import SchemaError
from kdlib.report import pages, site
from kdlib.report.recording import update_bands
from kdlib.run.experiment import load_experiment
from kdlib.run.records import read_records
from tests.audit import again, audit, tables
from tests.audit.claims import read_claims

ARMS = ("baseline", "a", "b", "c")
CLAIMS = """\
[source]
citation = "A source, 2020"
url = "https://example.org/post"

[values."baseline.accuracy"]
value = 0.8
unit = "accuracy, test"
decimals = 2
place = "Table 1"

[chosen.best_one]
by = "validation_accuracy"
among = ["a", "b", "c"]

[claims.C1]
kind = "effect"
primary = true
metric = "accuracy"
statement = "The best of them beats the baseline by 2 points."
place = "Table 1"
reported = 0.02
decimals = 2

[claims.C1.modes]
"controlled" = { arm = "best_one", over = "baseline", differs = [] }

[claims.C2]
kind = "direction"
metric = "accuracy"
statement = "The first of them beats the baseline."
place = "Table 1"

[claims.C2.modes]
"controlled" = { arm = "a", over = "baseline", differs = [] }
"""
CHOICE = Choice("best_one", "validation_accuracy", ("a", "b", "c"))


def load(tmp_path, *changes):
    text = CLAIMS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "claims.toml").write_text(text)
    return load_claims(tmp_path / "claims.toml", ARMS)


# ---- the file


def test_a_choice_is_read_and_claims_may_name_it(tmp_path):
    reported = load(tmp_path)
    assert reported.choices == (CHOICE,)
    assert reported.claims["C1"].modes["controlled"].arms == ("best_one",)
    assert load(tmp_path, ('"best_one", over = "baseline"', '"a", over = "best_one"')).claims["C1"].modes[
        "controlled"
    ].rivals == ("best_one",)


AMONG = 'among = ["a", "b", "c"]'


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (
            (AMONG, 'among = ["a", "b", "d"]'),
            13,
            "chosen.best_one.among: expected an arm of this experiment (a, b, baseline, c)",
        ),
        (
            (AMONG, 'among = ["a", "b", "best_one"]'),
            13,
            "expected an arm of this experiment (a, b, baseline, c), found 'best_one'",
        ),
        ((AMONG, 'among = ["a", "b", "a"]'), 13, "chosen.best_one.among: expected arms that are all different"),
        ((AMONG, 'among = ["a"]'), 13, "expected a list of at least 2"),
        ((AMONG, 'among = "a"'), 13, "expected a list of at least 2, found 'a'"),
        ((AMONG, ""), 11, "chosen.best_one.among: expected a list of at least 2, found nothing"),
        ((AMONG, f"{AMONG}\nmetric = 1"), 14, "expected only the keys among, by"),
        (
            ('by = "validation_accuracy"', 'by = "Validation accuracy"'),
            12,
            "chosen.best_one.by: expected a metric's name",
        ),
        (
            ('by = "validation_accuracy"\n', ""),
            11,
            "chosen.best_one.by: expected a metric's name, as macro_f1, found nothing",
        ),
        (
            ("[chosen.best_one]", "[chosen.c]"),
            11,
            "chosen.c: expected a name in small letters that no arm has",
        ),
        (("[chosen.best_one]", "[chosen.Best]"), 11, "chosen.Best: expected a name in small letters that no arm has"),
        (
            ('arm = "best_one"', 'arm = "best"'),
            25,
            "expected an arm of this experiment (a, b, baseline, best_one, c), found 'best'",
        ),
        (("baseline.accuracy", "best_one.accuracy"), 5, "the arm one of a, b, baseline, c"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[-30:],
)
def test_mistakes_are_named(tmp_path, change, line, said):
    with pytest.raises(SchemaError) as caught:
        load(tmp_path, change)
    assert said in str(caught.value)
    assert f"claims.toml, line {line}:" in str(caught.value)


# ---- the choice


def metrics_of(**validation):
    """Each arm's validation accuracies; the accuracy on test is better the worse the validation."""
    return {
        arm: {seed: {"validation_accuracy": value, "accuracy": 1 - value} for seed, value in enumerate(values)}
        for arm, values in validation.items()
    }


def test_the_lowest_mean_is_chosen():
    metrics = metrics_of(a=[0.3, 0.1], b=[0.1, 0.1], c=[0.5, 0.0])
    assert chosen(replace(CHOICE, lower_is_better=True), metrics) == "b"


def test_the_highest_mean_is_chosen():
    means = {"a": [0.9, 0.2], "b": [0.6, 0.6], "c": [0.5, 0.5]}  # a has the highest value, c is the best on test
    assert chosen(CHOICE, metrics_of(**means, baseline=[1.0, 1.0])) == "b"
    assert chosen(Choice("best_one", "accuracy", CHOICE.among), metrics_of(**means)) == "c"
    assert chosen(Choice("best_one", "accuracy", ("b", "a")), metrics_of(**means)) == "a"


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_of_equals_the_first_is_chosen(order):
    metrics = metrics_of(a=[0.5, 0.25], b=[0.25, 0.5], c=[0.375, 0.375])
    assert chosen(Choice("best_one", "validation_accuracy", order), metrics) == order[0]


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        metrics_of(a=[0.5], b=[0.6]),
        metrics_of(a=[0.5, 0.5], b=[0.6, 0.6], c=[0.9]),
        {**metrics_of(a=[0.5], b=[0.6]), "c": {1: {"validation_accuracy": 0.9}}},
        {**metrics_of(a=[0.5], b=[0.6]), "c": {0: {"accuracy": 0.9}}},
        {arm: {0: {"accuracy": 0.9}} for arm in "abc"},
    ],
    ids=["none", "an arm without runs", "fewer seeds", "another seed", "an arm without the metric", "none with it"],
)
def test_nothing_is_chosen_unless_all_have_it_for_the_same_seeds(metrics):
    assert chosen(CHOICE, metrics) is None
    assert with_choices([CHOICE], metrics) == metrics


def test_the_order_of_seeds_does_not_matter():
    metrics = metrics_of(a=[0.5, 0.6], b=[0.6, 0.6], c=[0.1, 0.9])
    turned = {arm: dict(reversed(seeds.items())) if arm == "b" else seeds for arm, seeds in metrics.items()}
    assert chosen(CHOICE, turned) == "b"


def test_the_chosen_arm_is_judged_under_its_own_name(tmp_path):
    reported, metrics = load(tmp_path), metrics_of(a=[0.5] * 6, b=[0.6] * 6, c=[0.1] * 6, baseline=[0.63] * 6)
    for seed in range(6):  # so that there is a spread
        metrics["b"][seed]["accuracy"] += 0.002 * seed
    kept = {arm: dict(seeds) for arm, seeds in metrics.items()}
    found = with_choices(reported.choices, metrics)
    assert metrics == kept
    assert found == {**kept, "best_one": kept["b"]}
    verdict = judge(reported.claims["C1"], "controlled", found, declared=6)
    differences = [0.03 + 0.002 * seed for seed in range(6)]
    assert (verdict.mean, verdict.n) == (pytest.approx(np.mean(differences)), 6)
    assert outcomes(reported, metrics, 6)["C1"] == {"controlled": verdict.outcome}
    del metrics["c"]
    found = outcomes(reported, metrics, 6)
    assert found["C1"] == {}
    assert found["C2"].keys() == {"controlled"}


# ---- the page and the audit, in a repository of one replication

EXPERIMENT = '''
"""A made-up replication."""

from dataclasses import dataclass
from types import SimpleNamespace

from kdlib.run.experiment import Arm, Experiment, Profile


@dataclass(frozen=True)
class Config:
    name: str = ""


def train(run):
    raise AssertionError


EXPERIMENT = Experiment(
    source="made-up",
    protocol=1,
    data=(),
    load_data=lambda config, folders: SimpleNamespace(digest="d", name="data"),
    arms=tuple(Arm(name, ("controlled",), train, change={"name": name}) for name in ("baseline", "a", "b", "c")),
    profiles={"full": Profile(Config(), 5, judged=True), "quick": Profile(Config(), 5)},
    check=(),
    banded=("accuracy",),
)
'''
ENVIRONMENT = {
    "clean": True,
    "commit": "0123456789abcdef" * 2,
    "device": "A CPU",
    "seconds": 1.0,
    "threads": 1,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "kdlib": "0.1"},
}
# Validation: b is the best on average, c has the highest value. Test: a is the best.
VALIDATION = {"baseline": 0.99, "a": 0.80, "b": 0.82, "c": 0.81}
RIGHT = {"baseline": 800, "a": 870, "b": 820, "c": 790}  # of 1,000


def record(arm, seed, profile):
    description = {
        "recipe": "made-up/train",
        "protocol": 1,
        "config": {"name": arm, "device": "cpu", "threads": 1},
        "seed": seed,
        "data": "d",
        "parents": {},
    }
    run = hashlib.sha256(json.dumps(description, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]
    validation = VALIDATION[arm] + (0.001 * (seed - 2) if arm != "c" else 0.02 * (seed - 2))
    right = RIGHT[arm] + (3 * seed * (arm == "b"))
    metrics = {
        "validation_accuracy": validation,
        "accuracy": right / 1000,
        "confusion": [[right, 1000 - right], [0, 0]],
    }
    return {
        "profile": profile,
        "seed": seed,
        "run": run,
        "arms": {arm: "final"},
        "data_name": "pictures",
        "description": description,
        "metrics": {"final": metrics},
        "history": [],
        "weights_sha256": "0" * 64,
        "environment": ENVIRONMENT,
    }


def written(root, records):
    """A repository with what `kd record` and `kd tables` write from these records."""
    folder = root / "replications/choosy"
    folder.mkdir(parents=True)
    (root / "replications/__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "experiment.py").write_text(EXPERIMENT)
    (folder / "claims.toml").write_text(CLAIMS)
    (folder / "README.md").write_text("<!-- claims:begin -->\n<!-- claims:end -->\n")
    (root / "README.md").write_text("<!-- table:begin -->\n<!-- table:end -->\n")
    path = root / "results/choosy/runs.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n" for line in records))


def write_pages(root):
    experiment = load_experiment("choosy")
    records = read_records(root / "results/choosy/runs.jsonl")
    update_bands(experiment, records)
    pages.write_pages(experiment, records, root / "results/choosy", committed=records, synthetic=False)
    pages.update_readmes(root, pages.committed(root))
    site.write_site(root, pages.committed(root))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Five full runs of each arm and two quick ones of all but c."""
    import replications

    monkeypatch.setattr(replications, "__path__", [*replications.__path__, str(tmp_path / "replications")])
    for name in ("replications.choosy", "replications.choosy.experiment"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    written(
        tmp_path,
        [
            *(record(arm, seed, "full") for seed in range(5) for arm in ARMS),
            *(record(arm, seed, "quick") for seed in range(2) for arm in ("baseline", "a", "b")),
        ],
    )
    write_pages(tmp_path)
    return tmp_path


def faults(root):
    return [str(fault) for fault in audit.derived(root, ["choosy"])]


def test_the_page_names_the_chosen_arm_and_judges_it(root):
    page = (root / "results/choosy/full.md").read_text()
    head = "- best_one: of 3 arms the one with the highest mean validation_accuracy: "
    means = [
        (arm, np.mean([record(arm, seed, "full")["metrics"]["final"][CHOICE.by] for seed in range(5)])) for arm in "abc"
    ]
    assert f"{head}b ({', '.join(f'{mean:.4g} of {arm}' for arm, mean in means)})\n" in page
    assert f"{head}not all of them have runs\n" in (root / "results/choosy/quick.md").read_text()
    rows = [line.split(",") for line in (root / "results/choosy/full-claims.csv").read_text().splitlines()]
    of_c1 = dict(zip(rows[0], rows[1], strict=True))
    assert of_c1["claim"] == "C1"
    assert float(of_c1["measured"]) == pytest.approx(0.026)  # b's: 20 and 0, 3, .. 12 of 1,000 more than the baseline
    recorded = (root / "replications/choosy/bands.toml").read_text()
    assert '[verdicts."d"."full"."C1"]\n"controlled" = "replicated"' in recorded
    assert '"quick"."C1"' not in recorded
    assert "replicated" in (root / "README.md").read_text()


@pytest.mark.slow
def test_the_audit_knows_the_same_arm(root, tmp_path_factory):
    assert faults(root) == []
    made = tmp_path_factory.mktemp("made")
    assert list(again.make_again(root, made, ["choosy"])) == []
    assert list(again.check(root, made, ["choosy"])) == []
    choice = read_claims(root / "replications/choosy/claims.toml").chosen["best_one"]
    records = [json.loads(line) for line in (root / "results/choosy/runs.jsonl").read_text().splitlines()]
    full, quick = ([line for line in records if line["profile"] == name] for name in ("full", "quick"))

    def found(*of):
        return tables.choice(choice, *of)

    assert (found(full), found(quick), found([])) == ("b", "", "")


def as_records(metrics):
    return [
        {"seed": seed, "arms": {arm: "final"}, "metrics": {"final": found}}
        for arm, seeds in metrics.items()
        for seed, found in seeds.items()
    ]


def test_both_choose_the_same_at_random():
    draws, answers = np.random.default_rng(5), set()
    for _ in range(300):
        counts = draws.choice([2, 3], 3, p=[0.1, 0.9])
        metrics = metrics_of(
            **{arm: list(draws.integers(0, 5, count) / 8) for arm, count in zip("abc", counts, strict=True)}
        )
        for arm in "abc":
            if draws.random() < 0.1:
                del metrics[arm]
        choice = replace(CHOICE, lower_is_better=bool(draws.integers(2)))
        mine = chosen(choice, metrics)
        assert (tables.choice(asdict(choice), as_records(metrics)) or None) == mine
        answers.add((mine, choice.lower_is_better and mine is not None))
    assert answers == {(None, False), *((arm, lower) for arm in "abc" for lower in (False, True))}


def test_both_choose_the_same_of_equals():
    draws = np.random.default_rng(5)
    for _ in range(50):
        counts = draws.integers(4000, 5000, 5)
        metrics = metrics_of(**{arm: list(draws.permutation(counts) / 5000) for arm in "abc"})
        theirs = tables.choice(asdict(CHOICE), as_records(metrics))
        assert chosen(CHOICE, metrics) == theirs == "a"


def test_of_arms_with_as_many_right_pictures_the_first_is_chosen():
    metrics = metrics_of(a=[0.15, 0.15], b=[0.1, 0.2], c=[0.0, 0.0])
    assert chosen(CHOICE, metrics) == "a"


def text(file, old, new):
    def act(root: Path) -> None:
        content, count = re.subn(old, new, (root / file).read_text(), count=1)
        assert count == 1
        (root / file).write_text(content)

    return act


LINE = "highest mean validation_accuracy: "
PAGES = {  # held by making them again
    "the chosen arm on the page": ("results/choosy/full.md", f"{LINE}b", f"{LINE}a"),
    "an arm where none could be chosen": ("results/choosy/quick.md", f"{LINE}not all of them have runs", f"{LINE}b"),
    "no line of it": ("results/choosy/full.md", f"- best_one: of 3 arms the one with the {LINE}b .*\n", ""),
    "the number of arms": ("results/choosy/full.md", "of 3 arms", "of 2 arms"),
    "the verdict on the page": ("results/choosy/full.md", r"\| replicated ", "| reversed   "),
    "the verdict in its own README": (
        "replications/choosy/README.md",
        r"\| replicated ",
        "| reversed   ",
    ),
    "the verdict in README": ("README.md", r"\| replicated ", "| reversed   "),
}
NUMBERS = {  # held by independent code
    "another arm's difference": (
        text("results/choosy/full-claims.csv", r"(C1,.*,controlled,nothing,0.02),[^,]*", r"\1,0.07"),
        "results/choosy/full-claims.csv, row C1, controlled, column measured: expected 0.0259",
    ),
    "the verdict in the table": (
        text("results/choosy/full-claims.csv", ",replicated,", ",not replicated,"),
        "row C1, controlled, column verdict: expected replicated, found not replicated",
    ),
    "the recorded verdict": (
        text("replications/choosy/bands.toml", '= "replicated"', '= "reversed"'),
        "verdicts, d, full, C1, controlled: expected replicated, found reversed",
    ),
    "no recorded verdict": (
        text("replications/choosy/bands.toml", '("C1"\\]\n)"controlled" = "replicated"\n', r"\1"),
        "verdicts, d, full, C1: expected {'controlled': 'replicated'}, found nothing",
    ),
    "another metric to choose by": (
        text("replications/choosy/claims.toml", 'by = "validation_accuracy"', 'by = "accuracy"'),
        "row C1, controlled, column measured: expected 0.0699",
    ),
    "fewer to choose among": (
        text("replications/choosy/claims.toml", '"a", "b", "c"', '"a", "c"'),
        "row C1, controlled, column measured: expected -0.01",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_tampered_page_is_named(root, tmp_path_factory, name):
    made = tmp_path_factory.mktemp("made") / "again"
    shutil.copytree(root, made)
    assert list(again.check(root, made, ["choosy"])) == []
    text(*PAGES[name])(root)
    assert PAGES[name][0] in {fault.file for fault in again.check(root, made, ["choosy"])}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_tampered_number_is_named(root, name):
    act, sentence = NUMBERS[name]
    act(root)
    found = faults(root)
    assert any(sentence in line for line in found), "\n".join(found) or "nothing found"


@pytest.mark.parametrize("wrong", ["a", None], ids=["best on test", "none"])
def test_an_error_in_choosing_shows(root, wrong, monkeypatch):
    with monkeypatch.context() as patched:
        for place in ("kdlib.judge.judging", "kdlib.report.tables"):
            patched.setattr(f"{place}.chosen", lambda choice, metrics: wrong)
        write_pages(root)
    files = {fault.file for fault in audit.derived(root, ["choosy"])}
    assert files >= {"results/choosy/full-claims.csv", "replications/choosy/bands.toml"}
