"""The end of a session: at most 25 lines of 80 columns, for all replications, with the numbers of the frames."""

from __future__ import annotations

import random
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdlib import terminal
from kdlib.judge.bands import Band, Bands
from kdlib.judge.claims import Exact
from kdlib.judge.verdicts import Outcome
from kdlib.report import steps, summary
from kdlib.report.pages import reported_of
from kdlib.report.sessions import Replication
from kdlib.run.experiment import Compute, load_experiment, replications
from kdlib.run.records import Record
from kdlib.run.session import Session
from kdlib.run.store import Store

ROOT = Path(__file__).parents[2]
NAMES = replications(ROOT)


@pytest.fixture
def bands(monkeypatch):
    """A function that replaces the recorded bands and verdicts."""

    def put(found):
        for module in ("sessions", "summary"):
            monkeypatch.setattr(f"kdlib.report.{module}.read_bands", lambda path: found)

    put({})
    return put


def session_of(name, profile, seeds, tmp_path, arms=()):
    experiment = load_experiment(name)
    data = SimpleNamespace(digest="made", name="made data")
    experiment = replace(experiment, load_data=lambda config, folders: data)
    chosen = experiment.profile(profile)
    arms = arms or experiment.arms_of(chosen)
    store = Store(tmp_path / "store")
    return Session(experiment, profile, chosen, arms, tuple(range(seeds)), Compute(), 1, {"x": tmp_path}, store, 1)


def records_of(session, arms=None, shift=0.0, **fixed):
    """Made runs of a session: random shares, counts of errors and other numbers; the expected exact ones."""
    experiment, draw = session.experiment, random.Random(0)
    reported = reported_of(experiment)
    exact = {}
    for claim in reported.claims.values():
        for compared in claim.modes.values() if isinstance(claim, Exact) else ():
            exact |= {(arm, claim.metric): n for arm, n in zip(compared.arms, compared.expected, strict=True)}
    found = []
    for seed in session.seeds:
        for arm in arms or session.arms:
            metrics = {}
            for metric in [claim.metric for claim in reported.claims.values()] + [c.by for c in reported.choices]:
                number = draw.uniform(100, 9000) if "errors" in metric else draw.uniform(0.4, 0.6) + shift
                metrics[metric] = exact.get((arm, metric), fixed.get(arm, {}).get(metric, number))
            config = asdict(session.profile.config)
            description = {"data": "made", "config": config, "seed": seed}
            known = {"seconds": 1800.0}
            line = Record(
                session.profile_name,
                seed,
                f"{arm}{seed}",
                {arm: "final"},
                "made data",
                description,
                {"final": metrics},
                [],
                known,
                "",
            )
            found.append(line)
    return found


def recorded_verdicts(session, outcome):
    reported = reported_of(session.experiment)
    return Bands(verdicts={name: dict.fromkeys(claim.modes, outcome) for name, claim in reported.claims.items()})


def width(lines):
    return max(map(terminal.width_of, lines))


CASES = [("judged", None), ("judged", 2), ("quick", 2), ("quick", 7), ("smoke", 1)]


@pytest.mark.parametrize(("profile", "seeds"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_it_fits_on_a_screen_and_says_only_what_is_known(name, profile, seeds, bands, tmp_path, monkeypatch):
    monkeypatch.setattr("kdlib.judge.firmness.Basis.firmness", lambda basis: 1.0)  # slow, and not shown
    experiment = load_experiment(name)
    profile = experiment.judged if profile == "judged" else profile
    session = session_of(name, profile, seeds or experiment.profile(profile).seeds, tmp_path)
    bands({("made", experiment.judged): recorded_verdicts(session, Outcome.SMALLER)})
    result, before = Replication(session, records_of(session)), records_of(session, shift=0.01)
    following = [line for step in steps.next_steps(result, before) for line in (step.text, "  a command")]
    lines = summary.lines_of(result, before, ROOT / "results" / name / "local" / f"{profile}.md", following)
    assert len(lines) <= 25
    assert width(lines) <= 80
    text = "\n".join(lines)
    for line in lines:  # only a statement is cut, at its end
        assert ".." not in re.sub(r"^(\w+( \(\w+\))?, (reported|expected) .*: .{18,})\.\.$|^\.\.\. and", "", line)
    assert not re.search(r"nan|—|inside|None|\\|…", text)
    reported = reported_of(session.experiment)
    asked = [
        claim
        for claim in reported.claims.values()
        if any(summary.is_asked(session, reported, claim, mode) for mode in claim.modes)
    ]
    assert all(f"\n{claim.name} (primary), " in text for claim in asked if claim.primary)
    shown = [claim for claim in asked if re.search(rf"^{claim.name}( \(\w+\))?, (reported|expected) ", text, re.M)]
    more = re.search(r"^\.\.\. and (\d+) more claims?: see ", text, re.M)
    assert len(shown) + (int(more[1]) if more else 0) == len(asked)
    assert asked or f"\n{session.arms[0]} " in text  # an arm without a claim has its number
    intervals = re.findall(r" to [+-]?[\d.,]+\)", text)
    assert not intervals or (seeds or 5) >= 3


def test_a_path_is_not_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    session = session_of("mnist", "smoke", 1, tmp_path)
    result = Replication(session, records_of(session))
    folder = tmp_path / ("long" * 30)
    assert f"Tables: {folder / 'smoke.md'}" in summary.lines_of(result, [], folder / "smoke.md")
    place = ROOT / "results" / "mnist" / "local"
    assert "Tables: results/mnist/local/smoke.md (--print shows them)" in summary.lines_of(
        result, [], place / "smoke.md"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_single_arm_has_its_number(name, bands, tmp_path):
    experiment = load_experiment(name)
    reported = reported_of(experiment)
    arm = next(arm.name for arm in experiment.arms if not arm.needs)
    session = session_of(name, experiment.judged, 1, tmp_path, (arm,))
    records = records_of(session, **{arm: {reported.primary.metric: 0.25}})
    lines = summary.lines_of(Replication(session, records), [], tmp_path / "page.md")
    assert len(lines) <= 25
    assert any(line.split()[:1] == [arm] for line in lines) or any(line.startswith("C") for line in lines)
    assert all(name in ("", arm) for name in re.findall(r"^(\w+) +[\d.]+ +1$", "\n".join(lines), re.M))


F1 = {"baseline": [0.66, 0.68, 0.69, 0.65, 0.67, 0.66], "distilled": [0.77, 0.80, 0.78, 0.79, 0.77, 0.78]}


def made_ecg(tmp_path, profile, seeds, arms=("teacher", "baseline", "distilled")):
    session = session_of("ecg", profile, seeds, tmp_path, arms)
    records = records_of(session)
    for record in records:
        (arm,) = record.arms
        if arm in F1:
            record.metrics["final"]["macro_f1"] = F1[arm][record.seed]
    return session, records


def line_after(lines, start, mode):
    place = next(number for number, line in enumerate(lines) if line.startswith(start))
    return next(line for line in lines[place + 1 :] if line.strip().startswith(mode)).split(mode)[1].split("  ")


def cells(lines, start="C1 ", mode="as described"):
    return [cell.strip() for cell in line_after(lines, start, mode) if cell.strip()]


def test_a_judged_session_has_number_interval_record_and_verdict(bands, tmp_path):
    session, records = made_ecg(tmp_path, "full", 6)
    lines = summary.lines_of(Replication(session, records), records, tmp_path / "page.md")
    # by hand: differences 0.11, 0.12, 0.09, 0.14, 0.10, 0.12; s = 0.0175, t(0.975, 5) = 2.571
    expected = ["+0.113 (+0.095 to +0.132)", "6", "+0.113"]
    assert cells(lines)[:3] == expected
    assert cells(lines)[3].startswith(("replicated", "much smaller"))
    assert lines[0] == "ecg, profile full: seeds 0-5; 18 runs on made data"
    assert any(
        line.startswith("C1 (primary), reported +0.11 macro F1: Distillation from the teacher") for line in lines
    )
    assert not [line for line in lines if "as released" in line]  # its arms were not asked for
    bands({("made", "full"): recorded_verdicts(session, Outcome.LARGER)})
    lines = summary.lines_of(Replication(session, records), records, tmp_path / "page.md")
    assert cells(lines)[-1].endswith(" (replicated, larger)")


def test_too_few_seeds_say_how_many_are_needed(bands, tmp_path):
    session, records = made_ecg(tmp_path, "full", 2)
    assert cells(summary.lines_of(Replication(session, records), [], tmp_path / "page.md")) == [
        "+0.115",
        "2",
        "2 of 6 seeds",
    ]
    bands({("made", "full"): recorded_verdicts(session, Outcome.SMALLER)})
    verdict = cells(summary.lines_of(Replication(session, records), [], tmp_path / "page.md"))[-1]
    assert verdict == "2 of 6 seeds (replicated, smaller)"
    session, records = made_ecg(tmp_path, "quick", 2)
    verdict = cells(summary.lines_of(Replication(session, records), [], tmp_path / "page.md"))[-1]
    assert verdict == "needs 5 seeds (replicated, smaller)"
    session, records = made_ecg(tmp_path, "quick", 6)
    verdict = cells(summary.lines_of(Replication(session, records), [], tmp_path / "page.md"))[-1]
    assert verdict == "agrees (replicated, smaller)"
    bands({})
    assert cells(summary.lines_of(Replication(session, records), [], tmp_path / "page.md"))[-1] == "no full verdict yet"


def test_numbers_outside_their_bands_are_counted(bands, tmp_path):
    session, records = made_ecg(tmp_path, "quick", 2)
    band = Band(0.655, 0.69, 0.67, (0, 1, 2, 3, 4), (0.66, 0.68, 0.67, 0.665, 0.675), "c")
    bands({("made", "quick"): Bands({"baseline.macro_f1": band})})
    lines = summary.lines_of(Replication(session, records), [], tmp_path / "page.md")
    assert "Bands: 2 numbers compared, 0 outside their bands." in lines
    bands({("made", "quick"): Bands({"baseline.macro_f1": replace(band, low=0.67)})})
    lines = summary.lines_of(Replication(session, records), [], tmp_path / "page.md")
    assert "Bands: 2 numbers compared, 1 outside their bands." in lines
    bands({})
    assert any(
        line.startswith("Bands: none are recorded")
        for line in summary.lines_of(Replication(session, records), [], tmp_path / "page.md")
    )


def test_synthetic_runs_have_no_verdict_and_no_comparison(bands, tmp_path):
    session = session_of("ecg", "smoke", 1, tmp_path)
    bands({("made", "full"): recorded_verdicts(session, Outcome.REPLICATED)})
    text = "\n".join(summary.lines_of(Replication(session, records_of(session)), [], tmp_path / "page.md"))
    assert "SYNTHETIC DATA" in text
    assert not re.search(r"replicated|Bands|verdict \(", text, re.M)
    lines = summary.lines_of(Replication(session, records_of(session)), [], None)
    assert "Tables: not written" in lines


def test_a_session_without_runs_says_so(bands, tmp_path):
    session = session_of("ecg", "quick", 1, tmp_path)
    assert summary.lines_of(Replication(session, []), [], tmp_path / "page.md")[-1] == "No run has finished."


def test_a_failed_arm_leaves_a_line_that_says_what_is_missing(bands, tmp_path):
    session, records = made_ecg(tmp_path, "quick", 2)
    records = [record for record in records if "baseline" not in record.arms]
    assert cells(summary.lines_of(Replication(session, records), [], tmp_path / "page.md")) == [
        "0",
        "no seed has all its runs",
    ]


def test_text_of_files_is_harmless(bands, tmp_path):
    session, records = made_ecg(tmp_path, "quick", 2)
    records = [replace(record, data_name="\x1b[2J\u202edata") for record in records]
    text = "".join(summary.lines_of(Replication(session, records), [], tmp_path / "page.md"))
    assert text.isprintable()


# ---- what may follow


def test_more_seeds_come_with_their_time(tmp_path):
    session, records = made_ecg(tmp_path, "quick", 2)  # half an hour a run, of 3 arms; nothing is stored
    (step, rest) = steps.next_steps(Replication(session, records), [])
    assert (step.text, step.seeds) == ("For seeds 0 to 4 of these arms (about 7.5 h):", 5)
    assert rest.seeds is None
    assert re.fullmatch(r"For the other \d+ of the \d+ runs of this profile \(at least .*\):", rest.text)
    session, records = made_ecg(tmp_path, "full", 1)
    (step, _) = steps.next_steps(Replication(session, []), [])
    assert (step.text, step.seeds) == ("For seeds 0 to 5 of these arms (time unknown):", 6)
    assert steps.next_steps(Replication(session, records, left=1), []) == []


def test_a_synthetic_session_needs_no_more_seeds(tmp_path):
    session = session_of("ecg", "smoke", 1, tmp_path, ("baseline",))
    (step,) = steps.next_steps(Replication(session, records_of(session)), [])
    assert step.seeds is None
    stand_in = replace(session, unavailable="no network")
    assert steps.next_steps(Replication(stand_in, records_of(session)), []) == []


# ---- words


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("baseline", 8, "baseline"),
        ("caltech_squeezenet_distilled s0", 24, "caltech_squ..istilled s0"),
        ("abcdef", 4, "a..f"),
        ("日本語日本語", 8, "日..語"),  # two columns each
    ],
)
def test_a_long_name_loses_its_middle(text, columns, expected):
    assert terminal.shortened(text, columns) == expected
    assert terminal.width_of(expected) <= columns


def test_the_end_may_be_cut_off():
    assert terminal.shortened("a sentence that is long", 10, 0) == "a senten.."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (5399.0, "90 min"), (5400.0, "1.5 h"), (7.2e6, "2,000.0 h")],
)
def test_durations(seconds, text):
    assert terminal.duration(seconds) == text
