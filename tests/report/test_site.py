"""The JSON and the pages: numbers on their scales, dots on their axis, Markdown without markup."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from markupsafe import Markup
from scipy import stats

from kdlib.errors import KDError
from kdlib.judge.rules import Outcome
from kdlib.judge.schema import SchemaError
from kdlib.report import commits, cost, dots, prose, site
from kdlib.report.markdown import Scale
from kdlib.run.experiment import load_experiment

ROOT = Path(__file__).parents[2]


def test_every_outcome_has_a_tone_and_every_tone_a_sign():
    assert {site.tone(str(outcome)) for outcome in Outcome} == {"good", "fair", "weak", "open", "bad"}
    assert site.tone("interim, 2 of 5 seeds, no verdict") == "open"
    assert site.tone("") == "none"
    assert site.TONES.keys() == set(Outcome)
    assert {*site.TONES.values(), "none"} == site.SIGNS.keys()


def test_numbers_are_shown_on_the_scale_of_their_row():
    row = {"percent": True, "decimals": 5, "kind": "effect", "signed": True, "measured": 0.00224, "low": 0.00148}
    row |= {"high": 0.003, "n": 20}
    assert (site.measured_text(row), site.between(row, "+")) == ("+0.224", "+0.148 to +0.300")
    assert site.between(row | {"n": 2}) == "—"
    assert site.measured_text(row | {"kind": "exact", "measured": 0.0}) == "equal"
    assert site.measured_text(row | {"kind": "exact", "measured": 3.0}) == "off by 3"
    assert [site.duration(seconds) for seconds in (None, 12, 90, 7200)] == ["—", "12 s", "2 min", "2.0 h"]


def test_no_text_reverses_or_hides_what_is_around_it():
    page = site._templates().from_string("{{ text }}|{{ made }}|{{ 5 }}")
    hostile = "a\u202eb\x1b[31mc\u200bd<b>é\n"
    found = page.render(text=hostile, made=Markup("<b>"))
    assert found == r"a\u202eb\x1b[31mc\u200bd&lt;b&gt;é" + "\n|<b>|5"


def test_anchors_of_different_names_differ():
    assert site.slug("as described") == "as-described"
    assert len({site.slug(text) for text in ("a<b", "a>b", "a b", "a-b", "a_b", "a--b")}) == 6


def claim(**rest):
    arm = {"arm": "student", "role": "distilled", "seeds": [0, 1, 2], "values": [0.70, 0.74, 0.81]}
    difference = {"arm": "student", "over": "alone", "seeds": [0, 1, 2], "values": [0.01, 0.03, 0.08]}
    return {
        "kind": "effect",
        "unit": "macro F1",
        "percent": False,
        "decimals": 3,
        "of_arms": {"unit": "macro F1", "percent": False, "decimals": 3},
        "reported": 0.05,
        "agrees": [0.03, 0.07],
        "arms": [arm | {"reported": 0.78, "range": [0.76, 0.80]}],
        "differences": [difference],
    } | rest


def test_dots_means_and_intervals_are_on_one_axis():
    values, differences = dots.claim_plots(claim())
    (row,) = values["rows"]
    numbers = [0.70, 0.74, 0.81, 0.78, 0.76, 0.80, math.fsum([0.70, 0.74, 0.81]) / 3]
    low, high = stats.t.interval(0.95, 2, numbers[-1], stats.sem([0.70, 0.74, 0.81]))
    places = [*row["dots"], row["reported_at"], *row["band_at"], row["mean_at"], row["low_at"], row["high_at"]]
    line = stats.linregress([*numbers, low, high], places)
    assert line.rvalue == pytest.approx(1, abs=1e-7)
    assert 0 <= min(places) < max(places) <= 100
    assert differences["zero"] == pytest.approx(differences["ticks"][0][0], abs=60)
    assert [float(text) for _, text in values["ticks"]] == sorted(float(text) for _, text in values["ticks"])
    assert len(values["ticks"]) >= 3


def test_two_seeds_have_no_interval_and_exact_claims_no_plot():
    arm = claim()["arms"][0] | {"seeds": [0, 1], "values": [0.7, 0.8]}
    (plot,) = dots.claim_plots(claim(arms=[arm], differences=[]))
    assert plot["rows"][0]["low"] is None
    assert dots.claim_plots(claim(kind="exact", differences=[])) == []


def test_a_tick_of_a_thousand_has_its_comma_and_zero_no_sign():
    axis = dots._Axis([-2000.0, 1500.0])
    shown = {axis.text(tick, Scale(), "+") for tick in axis.ticks}
    assert "+1,000" in shown
    assert "0" in shown
    assert "+0" not in shown


def test_ticks_have_the_decimals_that_tell_them_apart():
    axis = dots._Axis([0.9851, 0.9889])
    texts = [axis.text(tick, Scale(True, 5), "") for tick in axis.ticks]
    assert len({*texts}) == len(texts) >= 3
    assert [float(text) for text in texts] == pytest.approx([100 * tick for tick in axis.ticks])


README = """# A title

## The paper and ours

1. *One.* Text with `code` and [a link](../grid/README.md#part).
   It goes on.
2. *Two* <b>bold</b>.

## What came out

**Recorded.** All.

These are the claims:

<!-- claims:begin -->
| a |
<!-- claims:end -->

![figure](../../results/x.png)

The end.

## Cost
None.
"""


def test_the_numbered_differences_and_the_findings_are_read_from_the_readme():
    assert prose.title_of(README) == "A title"
    heading, items = prose.numbered(README)
    assert heading == "The paper and ours"
    assert items == ["*One.* Text with `code` and [a link](../grid/README.md#part).\nIt goes on.", "*Two* <b>bold</b>."]
    assert prose.section_of(README, "What came out") == "**Recorded.** All.\n\nThe end."
    assert prose.numbered("no list") == ("", [])


def test_markdown_becomes_html_without_its_markup_and_with_links_from_the_page():
    html = prose.rendered(README.partition("1. ")[2], "../../replications/xray")
    assert '<a href="../../replications/grid/README.md#part">' in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "<img" not in html
    assert "href" not in prose.rendered("[x](javascript:alert(1))", "..")


def test_the_row_of_a_data_set_is_found_by_its_name():
    (row,) = prose.data_sets((ROOT / "DATA.md").read_text(), ["mnist"])
    assert "CC BY-SA 3.0" in row["licence"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1]", r"found  \[1\]"),
        (b'{"c": 3}', "found c 3"),
        (b'{"c": NaN}', "JSON is malformed"),
        (b"\xff", "malformed|utf"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_file_of_days_that_is_none_is_named(tmp_path, content, said):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "commits.json").write_bytes(content)
    with pytest.raises(KDError, match=rf"commits\.json: expected .*({said})"):
        commits.dates_of(tmp_path, ["0" * 40])


@pytest.mark.parametrize("content", [b"\xff", b"a\n" + b"9" * 200_000, b'"' + b"x" * 200_000])
def test_a_table_that_is_none_is_named(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(KDError, match=r"a\.csv: expected a CSV file in UTF-8, found: "):
        site._rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('quantity = "parameters"', 'quantity = "weight"', "claims.0.quantity: expected one of parameters, "),
        ('of = "teacher"', "of = 3", "claims.0.of: expected one of released_teacher, "),
        ('of = "teacher"', "", "claims.0.of: expected one of .* found nothing"),
        ("statement =", "statment =", "claims.0.statment: expected only the keys .* did you mean statement?"),
        ("[[claims]]", "[claims]", "claims: expected a list of at least 1"),
        ("[[claims]]", "claims = [1]\n[other]", "other: expected only the keys claims"),
        ("[[claims]]", "[", "expected TOML in UTF-8"),
    ],
)
def test_a_mistake_in_cost_toml_names_the_key(tmp_path, old, new, said):
    text = (ROOT / "replications/ecg/cost.toml").read_text()
    assert old in text
    (tmp_path / "cost.toml").write_text(text.replace(old, new))
    experiment = replace(load_experiment("ecg"), folder=tmp_path)
    with pytest.raises(SchemaError, match=rf"cost\.toml.*: {said}"):
        cost.source_costs(experiment)


@pytest.mark.parametrize("path", sorted(ROOT.glob("replications/*/cost.toml")), ids=lambda path: path.parent.name)
def test_every_cost_toml_is_read(path):
    assert len(cost.source_costs(load_experiment(path.parent.name))) == path.read_text().count("[[claims]]")


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_days_of_commits_come_from_git_once_and_then_from_the_file(tmp_path):
    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "x", "--date", "2026-01-02T03:04:05")
    commit, day = git("rev-parse", "HEAD"), git("log", "-1", "--format=%cs")
    (tmp_path / "results").mkdir()
    assert commits.dates_of(tmp_path, [commit, "unknown"]) == {commit: day}
    shutil.rmtree(tmp_path / ".git")
    assert commits.dates_of(tmp_path, [commit]) == {commit: day}
    assert commits.dates_of(tmp_path, ["0" * 40]) == {}


def test_the_pages_are_the_same_bytes_each_time_and_hold_no_time_of_making(tmp_path):
    found = [json.loads(path.read_text()) for path in sorted(ROOT.glob("results/*/results.json"))]
    for folder in ("a", "b"):
        site.write_pages(tmp_path / folder / "site", found)
    names = sorted(path.name for path in (tmp_path / "a" / "site").iterdir())
    assert names == sorted(["index.html", *(f"{one['name']}.html" for one in found)])
    assert all((tmp_path / "a/site" / n).read_bytes() == (tmp_path / "b/site" / n).read_bytes() for n in names)


def test_the_arms_of_a_trend_are_shown_in_their_own_unit():
    of_arms = {"unit": "% accuracy", "percent": True, "decimals": 5}
    (plot,) = dots.claim_plots(claim(kind="trend", unit="Kendall's tau", of_arms=of_arms, differences=[], decimals=2))
    assert (plot["unit"], plot["percent"], plot["decimals"]) == ("% accuracy", True, 5)
    assert all(float(text) > 1 for _, text in plot["ticks"])


def test_no_committed_plot_of_arms_is_in_tau():
    for path in ROOT.glob("results/site/*.html"):
        assert "A dot is a seed, in Kendall" not in path.read_text()


@pytest.mark.parametrize(
    ("quantity", "value", "shown"),
    [
        ("parameters", 27_560_000, "27,560,000"),
        ("flops", 3.2e9, "3,200.000 million operations"),
        ("float32_bytes", 86e6, "86.00 MB"),
        ("torch_p50_ms", 1.5, "1.500 ms"),
        ("onnx_accuracy", 0.912, "91.20%"),
        ("int8_macro_f1", 0.8123, "0.812"),
    ],
)
def test_a_quantity_of_the_source_is_shown_in_its_unit(quantity, value, shown):
    claims = [cost._Claim("a statement", "a place", "much", quantity, ("teacher",))]
    row = cost.Row("teacher", ("teacher",), ("teacher",), "", "", "", {quantity: value})
    assert [line["measured"] for line in cost._compared(claims, [row])] == [shown]
