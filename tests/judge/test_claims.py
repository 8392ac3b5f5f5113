"""The schema of `claims.toml` and `bands.toml`, and judging: claims, arms and seeds to a verdict."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kdlib.errors import KDError
from kdlib.judge.bands import (
    Bands,
    band_of,
    bands_of,
    inside_ranges,
    read_bands,
    write_bands,
)
from kdlib.judge.claims import AS_DESCRIBED, AS_RELEASED, CONTROLLED, pairs, reported_range
from kdlib.judge.departures import changes, misses
from kdlib.judge.judging import judge, outcomes
from kdlib.judge.reading import load_claims
from kdlib.judge.schema import SchemaError
from kdlib.judge.verdicts import Outcome

ARMS = ("teacher", "baseline", "distilled", "released_baseline", "t2", "t4", "t8", "sham")
ECG = Path(__file__).parents[2] / "replications" / "ecg" / "claims.toml"
ECG_ARMS = (
    "released_teacher",
    "released_baseline",
    "released_distilled",
    "teacher",
    "baseline",
    "distilled",
    "baseline_balanced",
    "baseline_mixup",
    "distilled_plain",
    "distilled_balanced",
    "sham",
    "released_tail",
)

GOOD = """\
[source]
citation = "A source, 2020"
url = "https://example.org/post"

[values."distilled.accuracy"]
value = 0.75
unit = "accuracy, test"
decimals = 2
spread = 0.02
spread_kind = "population"
runs = 5
place = "Table 1"
also = ["t2"]

[values."baseline.accuracy"]
value = 0.64
unit = "accuracy, test"
decimals = 2
place = "Table 1"

[claims.C1]
kind = "effect"
primary = true
metric = "accuracy"
statement = "Distillation gains 11 points."
place = "Table 1"
reported = 0.11
decimals = 2

[claims.C1.modes]
"as described" = { differs = ["rows", "soft targets"], arm = "distilled", over = "baseline" }
"controlled" = { differs = ["loss"], arm = "t4", over = "baseline" }

[claims.C2]
kind = "KIND"
metric = "accuracy"
statement = "Another one."
place = "Section 2"
"""

KINDS = {
    "effect": ("reported = 0.1\ndecimals = 2", '{ arm = "t4", over = "t2" }'),
    "value": ("reported = 0.75\ndecimals = 2\ntrivial = 0.5", '{ arm = "distilled" }'),
    "direction": ("", '{ arm = "distilled", over = "sham" }'),
    "direction by threshold": ("threshold = 0.7", '{ arm = "distilled" }'),
    "non-inferior": ("margin = 0.03", '{ arm = "distilled", over = "teacher" }'),
    "comparable": ("margin = 0.03", '{ arm = "distilled", over = "teacher" }'),
    "best": ("", '{ arm = "t4", over = ["t2", "t8"] }'),
    "trend": ("", '{ along = ["t2", "t4", "t8"] }'),
    "exact": ("", "{ expected = { teacher = 0.5, t2 = 0.25 } }"),
}
COMPARING = ("effect", "direction", "non-inferior", "comparable", "best", "trend")  # arms with each other


def _text(kind="direction", more=None, mode=None):
    keys, arms = KINDS[kind]
    keys, arms = keys if more is None else more, arms if mode is None else mode
    if kind in COMPARING and "differs" not in arms:
        arms = arms.replace("{ ", "{ differs = [], ", 1)
    claim = GOOD.replace("KIND", kind.split(" ")[0])
    return f'{claim}{keys}\n\n[claims.C2.modes]\n"controlled" = {arms}\n'


def _load(tmp_path, text):
    path = tmp_path / "claims.toml"
    path.write_text(text, encoding="utf-8")
    return load_claims(path, ARMS)


def _refused(tmp_path, text, key, expected, line_of=None):
    """The error names the file, the key, what was expected, and the line (that of the text `line_of`)."""
    with pytest.raises(SchemaError) as caught:
        _load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "claims.toml"))
    assert key in message
    assert expected in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 700
    if line_of is not None:
        line = text[: text.index(line_of)].count("\n") + 1
        assert f"line {line}:" in message
    return message


# ---- the schema


def test_a_file_is_read_whole(tmp_path):
    reported = _load(tmp_path, _text())
    assert reported.source.citation == "A source, 2020"
    distilled = reported.values["distilled.accuracy"]
    assert (distilled.arm, distilled.metric) == ("distilled", "accuracy")
    assert (distilled.value, distilled.runs) == (0.75, 5)
    assert distilled.std == pytest.approx(0.02 * math.sqrt(5 / 4))
    assert reported.value("t2", "accuracy") is distilled
    assert reported.value("t4", "accuracy") is None
    assert reported.values["baseline.accuracy"].margin == 0.01  # one point, unless it says otherwise
    claim = reported.claims["C1"]
    assert (claim.kind, claim.primary, claim.ours, claim.reported) == ("effect", True, False, 0.11)
    assert set(claim.modes) == {AS_DESCRIBED, CONTROLLED}
    assert (claim.modes[CONTROLLED].arms, claim.modes[CONTROLLED].rivals) == (("t4",), ("baseline",))
    assert claim.modes[AS_DESCRIBED].differs == ("rows", "soft targets")
    assert claim.std is None  # the baseline's is not reported


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_written_and_judged(tmp_path, kind):
    claim = _load(tmp_path, _text(kind)).claims["C2"]
    found = judge(claim, CONTROLLED, {}, declared=None)
    assert (found.outcome, found.n) == (Outcome.TOO_FEW_SEEDS, 0)


def test_the_sources_spread_of_a_difference_serves_every_mode(tmp_path):
    spread = 'decimals = 2\nspread = 0.03\nspread_kind = "sample"\nruns = 4\nplace'
    head, header, tail = _text().partition('[values."baseline.accuracy"]')
    reported = _load(tmp_path, head + header + tail.replace("decimals = 2\nplace", spread, 1))
    assert reported.claims["C1"].std == pytest.approx(math.sqrt(0.02**2 * 5 / 4 + 0.03**2))
    assert reported.claims["C1"].runs == 4


NOT_NUMBERS = ["nan", "inf", "-inf", "1e999", "true", '"0.11"', "[0.11]", "1" + "0" * 400]


@pytest.mark.parametrize("wrong", [*NOT_NUMBERS, "0", "0.0", "-0.11", "11"])
def test_a_reported_effect_is_a_share_above_zero(tmp_path, wrong):
    text = _text().replace("reported = 0.11", f"reported = {wrong}")
    _refused(tmp_path, text, "claims.C1.reported", "a number above 0 to 1", "reported = ")


@pytest.mark.parametrize("wrong", [*NOT_NUMBERS, "75"])
def test_a_value_is_a_finite_share(tmp_path, wrong):
    text = _text().replace("value = 0.75", f"value = {wrong}")
    _refused(tmp_path, text, "values.'distilled.accuracy'.value", "a number from 0 to 1", "value = ")


@pytest.mark.parametrize(
    ("right", "wrong", "key", "expected"),
    [
        (
            "decimals = 2",
            "decimals = 1",
            ".decimals",
            "as many decimals as 0.75 has here, as a share and not in percent",
        ),
        ("decimals = 2", "decimals = 2.0", ".decimals", "a whole number from -9 to 15"),
        ("decimals = 2", "decimals = true", ".decimals", "a whole number"),
        ("decimals = 2", "decimals = 400", ".decimals", "a whole number"),
        ("decimals = 2\n", "", ".decimals", "a whole number"),
        ("runs = 5", "runs = 1", ".runs", "at least 2"),
        ("runs = 5\n", "", ".runs", "at least 2"),
        ("spread = 0.02\n", "", ".spread", "a number from 0"),
        ("spread = 0.02", "spread = -0.02", ".spread", "a number from 0"),
        ("spread = 0.02", "spread = 2.2", ".spread", "a number from 0 to 0.5"),  # points are no shares
        ("value = 0.75", "margin = 1\nvalue = 0.75", ".margin", "a number from 0 to 0.5"),
        ('"population"', '"standard"', ".spread_kind", "one of population, sample"),
        ('spread_kind = "population"\n', "", ".spread_kind", "one of population, sample"),
        ('also = ["t2"]', 'also = ["t3"]', ".also", "an arm of this experiment"),
        ('also = ["t2"]', 'also = "t2"', ".also", "a list"),
        ('also = ["t2"]', 'also = [["t2"]]', ".also", "an arm of this experiment"),
        ('[values."baseline.accuracy"]', '[values."t2.accuracy"]', "t2.accuracy", "one reported accuracy"),
        ('[values."baseline.accuracy"]', '[values."student.accuracy"]', "student.accuracy", "the arm one of"),
        ('[values."baseline.accuracy"]', "[values.baseline]", "values.baseline", "<arm>.<metric>"),
        ('unit = "accuracy, test"\n', "", ".unit", "one line"),
        ('url = "https://', 'url = "http://', "source.url", "https://"),
        ('url = "https://example.org/post"', 'url = "javascript:alert(1)"', "source.url", "https://"),
        ("[source]", "[origin]", "origin", "only the keys"),
        ('citation = "A source, 2020"\n', "", "source.citation", "one line"),
        ("primary = true", "primary = 1", "claims.C1.primary", "true or false"),
        ("primary = true\n", "", "claims", "at least one claim with primary = true"),
        ("primary = true", "primary = true\nours = true", "claims.C1.primary", "only the source's claims"),
        ('kind = "effect"', 'kind = "efect"', "claims.C1.kind", "one of effect, value"),
        ('kind = "effect"\n', "", "claims.C1.kind", "one of effect, value"),
        ('kind = "effect"', 'kind = ["effect"]', "claims.C1.kind", "one of effect, value"),
        ("reported = 0.11", "reportd = 0.11", "claims.C1.reportd", "did you mean reported?"),
        ("reported = 0.11", "reported = 0.11\nmargin = 0.1", "claims.C1.margin", "only the keys"),
        ("reported = 0.11", "reported = 0.15", "modes.'as described'.arm", "what the reported values give"),
        ("[claims.C1]", "[claims.claim1]", "claims.claim1", "a claim named by a capital"),
        ('metric = "accuracy"', 'metric = "Accuracy %"', "claims.C1.metric", "a metric's name"),
        ('place = "Section 2"\n', "", "claims.C2.place", "one line"),
        ('"as described" =', '"as desribed" =', "claims.C1.modes", "did you mean as described?"),
        ('"as described" =', '"sham" =', "claims.C1.modes.sham", "only the keys"),
        (
            '{ differs = ["rows", "soft targets"], arm = "distilled", over = "baseline" }',
            "1",
            "'as described'",
            "a table",
        ),
        ('over = "baseline" }\n"con', 'over = "x" }\n"con', "described'.over", "an arm of this experiment"),
        ('arm = "distilled", over = "baseline"', 'arm = 1, over = "t2"', ".arm", "an arm of this experiment"),
        ('arm = "distilled", over', 'arm = "baseline", over', "'as described'.over", "different arms"),
        ('over = "baseline" }\n"con', 'over = "baseline", under = "t2" }\n"con', ".under", "only the keys"),
        ('over = "baseline" }\n"con', 'unter = "baseline" }\n"con', ".unter", "only the keys"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, right, wrong, key, expected):
    text = _text()
    assert right in text
    _refused(tmp_path, text.replace(right, wrong, 1), key, expected)


@pytest.mark.parametrize(
    ("kind", "more", "mode", "key", "expected"),
    [
        ("value", "reported = 0.75\ndecimals = 2", None, ".trivial", "a number from 0 to 1"),
        ("value", "reported = 0.4\ndecimals = 2\ntrivial = 0.5", None, ".reported", "better than the triv"),
        ("value", "reported = 0.8\ndecimals = 2\ntrivial = 0.5", None, ".arm", "the reported values give"),
        ("value", None, '{ arm = "distilled", over = "baseline" }', ".over", "only the keys"),
        ("direction", "margin = 0.1", None, ".margin", "only the keys"),
        ("direction by threshold", None, '{ arm = "t2", over = "t4" }', ".over", "only the keys"),
        ("direction by threshold", "threshold = nan", None, ".threshold", "a number"),
        ("non-inferior", "", None, ".margin", "a number above 0"),
        ("non-inferior", "margin = 0", None, ".margin", "a number above 0"),
        ("non-inferior", "margin = 1", None, ".margin", "a number above 0 to 0.5"),
        ("comparable", "margin = 1.5", None, ".margin", "a number above 0 to 0.5"),
        ("direction by threshold", "threshold = 40", None, ".threshold", "a number from 0 to 1"),
        ("exact", None, "{ expected = { teacher = 91.2 } }", ".teacher", "a number from 0 to 1"),
        ("comparable", "margin = -0.1", None, ".margin", "a number above 0"),
        ("comparable", "margin = 0.1\nlower_is_better = true", None, ".lower_is_better", "only the keys"),
        ("best", None, '{ arm = "t4", over = ["t2"] }', ".over", "a list of at least 2"),
        ("best", None, '{ arm = "t4", over = "t2" }', ".over", "a list of at least 2"),
        ("best", None, '{ arm = "t4", over = ["t2", "t4"] }', ".over", "none of them t4"),
        ("best", None, '{ arm = "t4", over = ["t2", "t2"] }', ".over", "different arms"),
        ("trend", None, '{ along = ["t2", "t4"] }', ".along", "a list of at least 3"),
        ("trend", None, '{ along = ["t2", "t4", "t2"] }', ".along", "all different"),
        ("trend", None, '{ along = ["t2", "t4", "t8"], over = ["t2", "t2", "t2", "t2"] }', ".over", "as ma"),
        ("exact", None, "{ expected = {} }", ".expected", "at least one"),
        ("exact", None, '{ arm = "teacher" }', ".arm", "only the keys expected"),
        ("exact", None, "{ expected = { student = 1 } }", ".student", "an arm of this experiment"),
        ("exact", None, '{ expected = { teacher = "1" } }', ".teacher", "a number"),
        ("exact", None, "{ expected = { teacher = inf } }", ".teacher", "a number"),
    ],
)
def test_a_mistake_in_a_kind_of_claim(tmp_path, kind, more, mode, key, expected):
    inside = ".modes.controlled" if mode or key == ".arm" else ""
    place = '"controlled" = { arm = "distilled" }' if key == ".arm" and not mode else None
    message = _refused(tmp_path, _text(kind, more, mode), f"claims.C2{inside}", expected, place)
    assert f"{key}: expected" in message


def test_a_claim_needs_a_mode(tmp_path):
    text = _text().replace('"controlled" = { differs = [], arm = "distilled", over = "sham" }\n', "")
    _refused(tmp_path, text, "claims.C2.modes", "at least one of as described", "[claims.C2.modes]")


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("", "a list of all that the arms differ in, in the words network, initial weights, data,"),
        ('differs = "rows", ', "a list"),
        ('differs = ["rows", "teacher"], ', "in the words network, initial weights, data,"),
        ("differs = [1], ", "in the words network"),
        ('differs = [["rows"]], ', "in the words network"),
        ('differs = ["rows", "rows"], ', "words that are all different"),
    ],
)
def test_compared_arms_differ_in_words_of_the_list(tmp_path, wrong, expected):
    for kind in (kind for kind in KINDS if kind in COMPARING):
        text = _text(kind).replace("{ differs = [], ", f"{{ {wrong}")
        _refused(tmp_path, text, "claims.C2.modes.controlled.differs", expected)
    part = '\n[ingredients.part]\nlabel = "a part"\narm = "t2"\nover = "t4"\n' + wrong.replace(", ", "\n")
    if "," not in wrong[:-2]:
        _refused(tmp_path, _text() + part, "ingredients.part.differs", expected)


def test_arms_that_are_compared_with_numbers_do_not_differ(tmp_path):
    for kind in ("value", "direction by threshold", "exact"):
        text = _text(kind, mode=KINDS[kind][1].replace("{ ", '{ differs = ["rows"], ', 1))
        _refused(tmp_path, text, "claims.C2.modes.controlled.differs", "only the keys")


def test_the_pairs_of_a_claim(tmp_path):
    compared = {kind: pairs(_load(tmp_path, _text(kind)).claims["C2"], CONTROLLED) for kind in KINDS}
    assert compared["best"] == [("t4", "t2"), ("t4", "t8")]
    assert compared["trend"] == [("t2", "t4"), ("t4", "t8")]
    assert compared["effect"] == [("t4", "t2")]
    assert [kind for kind in KINDS if not compared[kind]] == ["value", "direction by threshold", "exact"]
    gain = _text("trend", mode='{ along = ["t2", "t4", "t8"], over = ["sham", "baseline", "sham"] }')
    assert pairs(_load(tmp_path, gain).claims["C2"], CONTROLLED) == [
        *[("t2", "t4"), ("t4", "t8")],
        *[("t2", "sham"), ("t4", "baseline"), ("t8", "sham")],
    ]


def test_the_line_is_that_of_the_key_or_else_of_its_table(tmp_path):
    text = _text().replace("reported = 0.11", "reported = -1")
    _refused(tmp_path, text, "claims.C1.reported", "above 0", "reported = -1")
    text = _text().replace("reported = 0.11\n", "")
    _refused(tmp_path, text, "claims.C1.reported", "found nothing", "[claims.C1]")
    text = _text().replace("runs = 5", "runs = 0")
    _refused(tmp_path, text, "runs", "whole number", "runs = 0")


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "a | b",
        "![x](http://example.org)",
        "`code`",
        "**bold**",
        r"\u001b[31mred",
        r"line\nbreak",
        r"tab\there",
        r"\u202egnp",
        r"\u2028",
        r"\u0000",
        r"\u007f",
        "",
        "   ",
        "x" * 501,
    ],
)
@pytest.mark.parametrize("key", ["statement", "citation", "place", "unit"])
def test_text_is_plain(tmp_path, key, hostile):
    before, _, after = _text().partition(f'{key} = "')
    text = f'{before}{key} = "{hostile}{after[after.index(chr(34)) :]}'
    _refused(tmp_path, text, key, "one line of at most 500 characters")


def test_names_are_shown_without_what_they_hide(tmp_path):
    name = r'"\u001b[2J\u202e<b>"'
    _refused(tmp_path, _text() + f"\n[claims.{name}]\nkind = 'direction'\n", "claims.", "a claim named")
    _refused(tmp_path, _text() + f"\n[values.{name}]\nvalue = 1\n", "values.", "<arm>.<metric>")
    _refused(tmp_path, _text() + f"\n[{name}]\n", "x1b", "only the keys")
    _refused(tmp_path, _text().replace('arm = "t4"', f"arm = {name}"), ".arm", "an arm of this experiment")


@pytest.mark.parametrize(
    "content",
    [
        b"[source",
        b"a = 1\na = 2",
        b"\xff\xfe",
        b"a = " + b"[" * 100_000,
        b"a = " + b"9" * 10_000,
        b"a = 1\n" * 200_000,
    ],
    ids=["cut", "twice", "bytes", "nested", "digits", "large"],
)
def test_what_is_not_toml_is_refused(tmp_path, content):
    path = tmp_path / "claims.toml"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=r"claims\.toml: expected") as caught:
        load_claims(path, ARMS)
    assert len(str(caught.value)) < 400


QUOTED = '"\\\\""'  # a key that is one quotation mark
SLOW = {  # tomllib takes seconds to hours for the first ones; the others have as much of one thing as there can be
    "dotted key": "a." * 80_000 + "a = 1",
    "dotted key of quoted parts": f"{QUOTED}." * 35_000 + f"{QUOTED} = 1",
    "dotted key of literal parts, with spaces": "'x' . " * 30_000 + "a = 1",
    "dotted key in a table": "x = {" + "a." * 80_000 + "a = 1}",
    "dotted key after a text": 'x = """a\n"b"""\n' + "a." * 80_000 + "a = 1",
    "keys in a deep table": f"[{'a.' * 17}a]\n" + "".join(f"k{n} = 1\n" for n in range(14_000)),
    "keys": "".join(f"source{n} = 1\n" for n in range(12_000)),
    "tables": "".join(f"[source{n}]\n" for n in range(13_000)),
    "deep tables": "".join(f"[a{n}.b.c.d.e.f.g.h]\n" for n in range(9_000)),
    "deep keys": "".join(f"a.b.c.d.e.f.g.i{n} = 1\n" for n in range(8_000)),
    "tables of quoted names": "".join(f'["source{n}"]\n' for n in range(11_000)),
    "tables in a list": "[[a]]\n" * 33_000,
    "numbers": f"a = [{'1,' * 95_000}]",
    "escapes": 'a = "' + r"\"" * 95_000,
    "quotes": '"' * 195_000,
    "a name": f"{'k' * 195_000} = 1",
    "a number": f"a = 0x{'f' * 195_000}",
    "900 KB of bands": '[bands."d".quick."a.m"]\nlow = 0.5\nhigh = 0.6\n' * 18_000,
}


@pytest.mark.parametrize("read", [lambda path: load_claims(path, ARMS), read_bands], ids=["claims", "bands"])
@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW.keys())
def test_hostile_toml_is_refused_in_a_second(tmp_path, content, read):
    path = tmp_path / "claims.toml"
    path.write_text(content)
    began = time.process_time()
    with pytest.raises(SchemaError, match=r"claims\.toml.*: expected") as caught:
        read(path)
    assert time.process_time() - began < 2  # on a busy machine
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_a_key_of_too_many_parts_is_named_by_its_line_and_dots_elsewhere_are_not(tmp_path):
    dots = ".".join("a" * 40)
    text = _text().replace("Another one.", dots) + f"# {dots}\n"
    assert _load(tmp_path, text).claims["C2"].statement == dots
    _refused(tmp_path, f"{text}{dots} = 1\n", "", "a key of at most 16 parts", f"{dots} = 1")


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_bytes(b"\xef\xbb\xbf" + _text().encode())
    marked = load_claims(path, ARMS)
    path.write_text(_text())
    assert marked == load_claims(path, ARMS)
    path.write_bytes(b"\xef\xbb\xbf[source]\nwrong = 1\n")
    with pytest.raises(SchemaError, match=r"line 2: .*wrong"):
        load_claims(path, ARMS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SchemaError, match="expected a readable TOML file"):
        load_claims(tmp_path / "claims.toml", ARMS)


# ---- ranges


def test_a_range_is_the_prediction_interval_or_the_margin(tmp_path):
    values = _load(tmp_path, _text()).values
    s = 0.02 * math.sqrt(5 / 4)
    for n in (1, 5):
        half = stats.t.ppf(0.975, 4) * s * math.sqrt(1 / n + 1 / 5) + 0.005
        assert reported_range(values["distilled.accuracy"], n) == pytest.approx((0.75 - half, 0.75 + half))
    assert reported_range(values["baseline.accuracy"]) == pytest.approx((0.64 - 0.015, 0.64 + 0.015))


def test_inside_ranges(tmp_path):
    reported = _load(tmp_path, _text())
    # a mean of five is held to a narrower range (0.706 to 0.794) than one run is (0.677 to 0.823)
    metrics = _metrics("accuracy", baseline=[0.62, 0.66, 0.65], distilled=[0.81] * 5, t2=[0.81], t4=[0.1])
    inside = inside_ranges(reported, metrics)
    assert inside == {"baseline.accuracy": True, "distilled.accuracy": False, "t2.accuracy": True}


# ---- judging


def _metrics(metric, **arms):
    return {arm: {seed: {metric: x} for seed, x in enumerate(values)} for arm, values in arms.items()}


def _judged(tmp_path, kind, metrics, more=None, mode=None):
    return judge(_load(tmp_path, _text(kind, more, mode)).claims["C2"], CONTROLLED, metrics, declared=None)


def test_only_seeds_that_both_arms_have_are_paired(tmp_path):
    metrics = {
        "distilled": {seed: {"accuracy": 0.8 + 0.01 * seed} for seed in (0, 1, 2, 3, 4, 5, 9)},
        "baseline": {seed: {"accuracy": 0.7 + 0.011 * seed} for seed in (5, 4, 3, 2, 1, 7)},
    }
    found = judge(_load(tmp_path, _text()).claims["C1"], AS_DESCRIBED, metrics, declared=None)
    differences = np.array([0.1 - 0.001 * seed for seed in (1, 2, 3, 4, 5)])
    low, high = stats.ttest_1samp(differences, 0).confidence_interval()
    assert (found.n, found.outcome) == (5, Outcome.REPLICATED)
    assert (found.mean, found.low, found.high) == pytest.approx((differences.mean(), low, high))
    del metrics["baseline"][3]
    found = judge(_load(tmp_path, _text()).claims["C1"], AS_DESCRIBED, metrics, declared=None)
    assert (found.n, found.outcome) == (4, Outcome.TOO_FEW_SEEDS)


NOISE = np.array([-0.002, -0.001, 0.0, 0.001, 0.002])


@pytest.mark.parametrize(
    ("kind", "arms", "mode", "outcome", "mean"),
    [
        ("effect", {"t4": 0.8 + NOISE, "t2": [0.7] * 5}, None, Outcome.REPLICATED, 0.1),
        ("effect", {"t4": 0.7 + NOISE, "t2": [0.8] * 5}, None, Outcome.NOT_REPLICATED_REVERSED, -0.1),
        ("value", {"distilled": 0.751 + NOISE}, None, Outcome.REPLICATED, 0.251),
        ("value", {"distilled": 0.5 + NOISE}, None, Outcome.NOT_REPLICATED, 0.0),
        ("direction", {"distilled": 0.8 + NOISE, "sham": [0.7] * 5}, None, Outcome.REPLICATED, 0.1),
        ("direction by threshold", {"distilled": 0.69 + NOISE}, None, Outcome.REVERSED, -0.01),
        ("non-inferior", {"distilled": 0.79 + NOISE, "teacher": [0.8] * 5}, None, Outcome.REPLICATED, -0.01),
        ("non-inferior", {"distilled": 0.9 + NOISE, "teacher": [0.8] * 5}, None, Outcome.REPLICATED, 0.1),
        ("comparable", {"distilled": 0.9 + NOISE, "teacher": [0.8] * 5}, None, Outcome.NOT_REPLICATED, 0.1),
        ("best", {"t4": 0.8 + NOISE, "t2": [0.7] * 5, "t8": [0.6] * 5}, None, Outcome.REPLICATED, 0.1),
        ("best", {"t4": 0.65 + NOISE, "t2": [0.7] * 5, "t8": [0.6] * 5}, None, Outcome.CONTRADICTED, -0.05),
        ("trend", {"t2": 0.1 + NOISE, "t4": 0.2 - NOISE, "t8": 0.3 + NOISE}, None, Outcome.REPLICATED, 1.0),
        (
            "trend",
            {"t2": [0.1] * 5, "t4": [0.2] * 5, "t8": [0.3] * 5, "baseline": [0.0] * 5, "sham": [0.9] * 5},
            '{ along = ["t2", "t4", "t8"], over = ["baseline", "baseline", "sham"] }',
            Outcome.REVERSED,
            -1 / 3,
        ),
        ("exact", {"teacher": [0.5], "t2": [0.25] * 2}, None, Outcome.REPLICATED, 0.0),
        ("exact", {"teacher": [0.5], "t2": [0.25, 0.5]}, None, Outcome.NOT_REPLICATED, 0.25),
    ],
)
def test_each_kind_reads_its_arms(tmp_path, kind, arms, mode, outcome, mean):
    found = _judged(tmp_path, kind, _metrics("accuracy", **arms), mode=mode)
    assert (found.outcome, found.mean) == (outcome, pytest.approx(mean))
    assert not found.analogue


@pytest.mark.parametrize(
    ("kind", "more", "arms"),
    [
        (
            "effect",
            "reported = 0.1\ndecimals = 2\nlower_is_better = true",
            {"t4": 0.2 + NOISE, "t2": [0.3] * 5},
        ),
        ("direction", "lower_is_better = true", {"distilled": 0.2 + NOISE, "sham": [0.3] * 5}),
        ("direction by threshold", "threshold = 0.7\nlower_is_better = true", {"distilled": 0.6 + NOISE}),
        (
            "non-inferior",
            "margin = 0.03\nlower_is_better = true",
            {"distilled": 0.3 + NOISE, "teacher": [0.4] * 5},
        ),
        ("best", "lower_is_better = true", {"t4": 0.1 + NOISE, "t2": [0.2] * 5, "t8": [0.3] * 5}),
    ],
)
def test_fewer_errors_are_better(tmp_path, kind, more, arms):
    found = _judged(tmp_path, kind, _metrics("accuracy", **arms), more=more)
    assert (found.outcome, found.mean) == (Outcome.REPLICATED, pytest.approx(0.1))


def test_a_lower_value_is_better_than_a_higher_trivial_one(tmp_path):
    more = "reported = 0.25\ndecimals = 2\ntrivial = 0.5\nlower_is_better = true"
    outcomes = {0.251: Outcome.REPLICATED, 0.3: Outcome.MUCH_SMALLER, 0.1: Outcome.LARGER}
    for measured, outcome in outcomes.items():
        metrics = _metrics("accuracy", t4=measured + NOISE)
        assert _judged(tmp_path, "value", metrics, more, '{ arm = "t4" }').outcome == outcome


def test_a_difference_is_rounded_twice_as_much_as_a_value(tmp_path):
    coarse = "reported = 0.015\ndecimals = 2"  # 0.01 is more than half of it: a direction only
    metrics = _metrics("accuracy", t4=0.8 + NOISE, t2=[0.7] * 5)
    assert _judged(tmp_path, "effect", metrics, coarse).outcome == Outcome.REPLICATED
    assert _judged(tmp_path, "effect", metrics, coarse.replace("2", "3")).outcome == Outcome.LARGER
    value = _load(tmp_path, _text("value")).claims["C2"]
    assert value.rounding == 0.005 < value.margin


def test_analogue_is_marked(tmp_path):
    metrics = _metrics("accuracy", distilled=0.8 + NOISE, sham=[0.7] * 5)
    claim = _load(tmp_path, _text(more="analogue = true")).claims["C2"]
    assert judge(claim, CONTROLLED, metrics, declared=None).analogue
    claim = _load(tmp_path, _text()).claims["C2"]
    assert judge(claim, CONTROLLED, metrics, declared=5, analogue=True).analogue


@pytest.mark.parametrize("wrong", [{}, {"accuracy": math.nan}, {"accuracy": math.inf}, {"accuracy": 93.2}])
def test_a_run_without_a_finite_metric_is_named(tmp_path, wrong):
    metrics = _metrics("accuracy", distilled=[0.8] * 5, sham=[0.7] * 5)
    metrics["sham"][3] = wrong
    with pytest.raises(
        KDError, match=r"sham, seed 3: expected a finite accuracy from 0 to 1, found .*raise `protocol`"
    ):
        _judged(tmp_path, "direction", metrics)


def test_a_mode_the_claim_lacks_is_refused(tmp_path):
    with pytest.raises(KDError, match="expected a mode of controlled, found 'as released'"):
        judge(_load(tmp_path, _text()).claims["C2"], AS_RELEASED, {}, declared=None)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [(0.9, 0.8, Outcome.INCONCLUSIVE), (0.8, 0.8, Outcome.NO_DIFFERENCE)],
)
def test_seeds_that_all_say_the_same(tmp_path, first, second, outcome):
    metrics = _metrics("accuracy", distilled=[first] * 5, sham=[second] * 5)
    assert _judged(tmp_path, "direction", metrics).outcome == outcome


# ---- the ECG replication's file


def test_the_ecg_claims():
    reported = load_claims(ECG, ECG_ARMS)
    c1 = reported.claims["C1"]
    assert [name for name, claim in reported.claims.items() if claim.primary] == ["C1"]
    assert [name for name, claim in reported.claims.items() if claim.ours] == ["S1"]
    assert c1.std == pytest.approx(math.sqrt(2 * 0.02**2 * 6 / 5))
    assert c1.runs == 6
    for mode, arms in (
        (AS_DESCRIBED, ("distilled", "baseline")),
        (AS_RELEASED, ("released_distilled", "released_baseline")),
        (CONTROLLED, ("distilled", "baseline_mixup")),
    ):
        assert (c1.modes[mode].arms + c1.modes[mode].rivals) == arms
    assert c1.modes[CONTROLLED].differs == ("soft targets",)
    same = _metrics("macro_f1", released_teacher=0.82 + NOISE, released_distilled=[0.78] * 5)
    assert judge(reported.claims["C2"], AS_RELEASED, same, declared=None).outcome == Outcome.REPLICATED
    counts = {"teacher": 17221, "baseline": 3909, "distilled": 3909}
    metrics = {arm: {0: {"parameters": float(count)}} for arm, count in counts.items()}
    assert judge(reported.claims["C3"], AS_DESCRIBED, metrics, declared=6).outcome == Outcome.REPLICATED
    assert set(inside_ranges(reported, metrics).values()) == {True}
    assert reported.value("released_baseline", "macro_f1").value == 0.67


# ---- bands


def test_a_band_is_the_prediction_interval_of_one_more_run():
    values = {3: 0.81, 0: 0.80, 1: 0.79, 2: 0.83, 7: 0.78, 5: 0.80}
    found = band_of(values, "abc123")
    sample = np.array(list(values.values()))
    half = stats.t.ppf(0.995, 5) * sample.std(ddof=1) * math.sqrt(1 + 1 / 6)
    assert (found.low, found.high) == pytest.approx((sample.mean() - half, sample.mean() + half))
    assert found.seeds == (0, 1, 2, 3, 5, 7)
    assert found.values == (0.80, 0.79, 0.83, 0.81, 0.80, 0.78)


def test_a_band_needs_five_finite_runs():
    for values in ({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}, {**dict.fromkeys(range(5), 0.1), 5: math.nan}):
        with pytest.raises(KDError, match="run more seeds"):
            band_of(values, "abc123")


def test_a_miss_names_arm_seed_band_observed_and_commit():
    metrics = _metrics("macro_f1", baseline=[0.70, 0.72, 0.71, 0.73, 0.69])
    known = bands_of(metrics, ["macro_f1", "accuracy"], {"baseline": "abc123"})
    assert set(known.bands) == {"baseline.macro_f1"}
    assert known.verdicts == known.inside == {}  # only judged runs have them
    assert misses(known.bands, metrics) == []
    assert misses(known.bands, {}) == []
    observed = {"baseline": {4: {"macro_f1": 0.9}, 1: {"macro_f1": 0.71}, 2: {}, 3: {"macro_f1": math.inf}}}
    found = misses(known.bands, observed)
    assert [miss.seed for miss in found] == [2, 3, 4]
    expected = known.bands["baseline.macro_f1"]
    bounds = f"{expected.low:.6g} to {expected.high:.6g}"
    for part in ("baseline", "seed 4", "macro_f1", "0.9", bounds, "abc123"):
        assert part in str(found[2])


def test_an_arm_with_fewer_than_five_seeds_has_no_band_and_no_verdict(tmp_path):
    reported = _load(tmp_path, _text())
    metrics = _metrics("accuracy", baseline=0.64 - NOISE, distilled=0.75 + NOISE, sham=0.6 - NOISE, t2=[0.7] * 4)
    found = bands_of(metrics, ["accuracy"], dict.fromkeys(metrics, "abc123"), reported, 5)
    assert set(found.bands) == {"baseline.accuracy", "distilled.accuracy", "sham.accuracy"}
    assert found.verdicts == {
        "C1": {AS_DESCRIBED: Outcome.REPLICATED},  # its other mode compares an arm without runs
        "C2": {CONTROLLED: Outcome.REPLICATED},
    }
    assert found.inside == {"baseline.accuracy": True, "distilled.accuracy": True}


def test_a_band_without_width_forgives_rounding_only():
    known = bands_of(_metrics("accuracy", t2=[0.1 + 0.2] * 5), ["accuracy"], {"t2": "abc123"})
    assert misses(known.bands, _metrics("accuracy", t2=[0.3])) == []
    assert len(misses(known.bands, _metrics("accuracy", t2=[0.3001]))) == 1


def _known():
    bands = bands_of(
        _metrics("macro_f1", baseline=[0.70, 0.72, 0.71, 0.73, 0.69], teacher=[0.8, 0.81, 0.82, 0.83, 0.84]),
        ["macro_f1"],
        {"baseline": "abc123", "teacher": "abc123"},
    )
    verdicts = {"C1": {AS_RELEASED: Outcome.REPLICATED, AS_DESCRIBED: Outcome.SMALLER}}
    full = Bands({}, verdicts, {"teacher.macro_f1": True, "baseline.macro_f1": False})
    return {("91a4", "quick"): bands, ("91a4", "full"): full, ("0000", "quick"): bands}


def test_bands_come_back_as_written(tmp_path):
    path, again = tmp_path / "bands.toml", tmp_path / "again.toml"
    assert read_bands(path) == {}
    known = _known()
    write_bands(path, known)
    assert read_bands(path) == known
    write_bands(again, dict(reversed(known.items())))
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("right", "wrong", "key", "expected"),
    [
        ("low = ", "low = nan #", ".low", "a number"),
        ("low = ", "low = 9 #", ".low", "at most high"),
        ("high = ", "hihg = ", ".hihg", "did you mean high?"),
        ("n = 5", "n = 6", ".n", "the number of seeds, 5"),
        ("seeds = [0, ", "seeds = [0.5, ", ".seeds", "whole numbers"),
        ("seeds = [0, ", "seeds = [7, 0, ", ".n", "the number of seeds, 6"),
        ("values = [0.7, ", "values = [true, ", ".values", "finite numbers"),
        ("values = [0.7, ", "values = [nan, ", ".values", "finite numbers"),
        ('commit = "abc123"', 'commit = "<b>"', ".commit", "one line"),
        ('= "replicated"', '= "yes"', "C1.'as released'", "one of replicated"),
        ('"teacher.macro_f1" = true', '"teacher.macro_f1" = 1', "teacher.macro_f1", "true or false"),
        ("[bands.", "[band.", "band", "did you mean bands?"),
    ],
)
def test_a_broken_file_of_bands_is_named(tmp_path, right, wrong, key, expected):
    path = tmp_path / "bands.toml"
    write_bands(path, _known())
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    with pytest.raises(SchemaError, match=r"bands\.toml, line \d+: ") as caught:
        read_bands(path)
    assert key in str(caught.value)
    assert expected in str(caught.value)


def _of_c1(distilled, baseline=0.64, **rest):
    return _metrics("accuracy", distilled=distilled + NOISE, baseline=baseline - NOISE, **rest)


def test_a_changed_verdict_is_a_sentence(tmp_path):
    reported, before = _load(tmp_path, _text()), _of_c1(0.75, t4=0.75 + NOISE)
    known = bands_of(before, ["accuracy"], dict.fromkeys(before, "abc123"), reported, 5)
    assert known.verdicts["C1"] == dict.fromkeys((AS_DESCRIBED, CONTROLLED), Outcome.REPLICATED)
    assert known.inside == {"baseline.accuracy": True, "distilled.accuracy": True}
    assert changes(known, reported, before, 5) == []
    assert changes(known, reported, {}, 5) == []  # what was not run has not changed
    found = changes(known, reported, _of_c1(0.64, 0.62, t4=0.73 + NOISE), 5)
    assert found == [
        "C1, as described: recorded replicated, now much smaller than reported",
        "baseline.accuracy: recorded inside its reported range, now outside",
        "distilled.accuracy: recorded inside its reported range, now outside",
    ]
    again = bands_of(_of_c1(0.64, 0.62), ["accuracy"], dict.fromkeys(before, "abc123"), reported, 5)
    assert "baseline.accuracy: recorded outside its reported range, now inside" in changes(again, reported, before, 5)


def test_only_the_arms_and_seeds_with_a_band_are_compared(tmp_path):
    reported, before = _load(tmp_path, _text()), _of_c1(0.75)
    known = bands_of(before, ["accuracy"], dict.fromkeys(before, "abc123"), reported, 5)
    more = {arm: {**seeds, **{seed + 5: {"accuracy": 0.5} for seed in seeds}} for arm, seeds in before.items()}
    more["t4"] = {seed: {"accuracy": 0.1} for seed in range(10)}
    assert outcomes(reported, more, 10)["C1"] != known.verdicts["C1"]
    assert changes(known, reported, more, 10) == []


def test_a_run_that_lacks_a_banded_metric_is_named():
    metrics = _metrics("accuracy", taught=[0.9, 0.91, 0.92, 0.93, 0.94])
    metrics["taught"][3] = {"loss": 1.0}
    with pytest.raises(KDError, match="taught: expected accuracy of all 5 runs, found none in that of seed 3"):
        bands_of(metrics, ["accuracy"], {"taught": "abc123"})
