"""How a session goes on: bars that fit into 80 columns, and few short lines in a log, for all replications."""

from __future__ import annotations

import io
import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdlib.cli import live
from kdlib.run.events import Event
from kdlib.run.experiment import Compute, load_experiment, replications
from kdlib.run.plan import Job, plan
from kdlib.run.store import Description
from kdlib.terminal import width_of

NAMES = replications(Path(__file__).parents[2])


def job(*arms, seed=0, group=""):
    return Job("toy", Description(arms[0], 1, {}, seed, "d"), None, arms, {}, group)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is set."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(live.time, "monotonic", lambda: now.seconds)
    return now


def epoch(of, number, count=100, **numbers):
    return Event("epoch", of, epoch=number, count=count, numbers=numbers or {"training_loss": 0.5})


def jobs_of(name):
    experiment = load_experiment(name)
    nothing = replace(experiment, load_data=lambda config, folders: SimpleNamespace(digest="d", name="data"))
    seeds = range(98, 100)  # two digits
    return plan(nothing, experiment.profile("full"), [arm.name for arm in experiment.arms], seeds, Compute(), {})


# ---- time


@pytest.mark.parametrize("told", [False, True])
def test_a_run_that_goes_on_from_an_earlier_epoch_has_a_time_left(clock, told):
    """A process that died is replaced: the epochs since its last checkpoint are trained again."""
    own = job("baseline")
    trainings = live.Trainings([own])
    trainings.take(Event("started", own))
    for number in (5, 6):
        clock.seconds += 10.0
        trainings.take(epoch(own, number, 10))
    assert trainings.left(epoch(own, 6, 10)).end == clock.seconds + 4 * 10.0
    if told:
        trainings.take(Event("started", own))
    for number in (3, 4, 5):  # 4 was the last one before this session
        clock.seconds += 10.0
        event = epoch(own, number, 10)
        trainings.take(event)
        left = trainings.left(event).end
        assert left is not None
        assert left > clock.seconds
        assert not told or left == clock.seconds + (10 - number) * 10.0
    assert trainings.session_left().end is not None


def test_an_empty_data_set_is_downloaded_without_an_error(capsys):
    live.Downloading("empty")("file", 0, 0)
    assert "empty: downloading 0 MB" in capsys.readouterr().err


# ---- lines


def test_a_log_has_one_line_in_five_seconds_for_each_training_and_its_first_and_last_epoch(clock, capsys):
    first, second = job("baseline"), job("distilled")
    show = live.Plain([first, second])
    for of in (first, second):
        show(Event("started", of))
    for number in range(1, 101):
        clock.seconds += 1.0
        show(epoch(first, number))
        show(epoch(second, number))
    lines = capsys.readouterr().out.splitlines()
    for name in ("baseline", "distilled"):
        own = [line.partition("epoch ")[2].partition("/")[0] for line in lines if f" {name} s0: epoch" in line]
        assert own == [*map(str, range(1, 100, 5)), "100"]


def test_a_line_says_arm_seed_epoch_validation_metric_and_time_left(clock, capsys):
    own = job("baseline", seed=3)
    show = live.Plain([own, job("other")])
    show(Event("started", own))
    clock.seconds += 10.0
    numbers = {"training_loss": 0.25, "validation_loss": 0.5, "validation_macro_f1": 0.75}
    show(epoch(own, 2, 12, **numbers))  # an earlier session has trained the first epoch: 10 seconds an epoch
    show(Event("epoch", own, "a damaged checkpoint", 12, 12, {"training_loss": 0.25, "validation_loss": 0.5}))
    show(Event("finished", own, numbers={"seconds": 5400.0}))
    show(Event("failed", own, "no memory"))
    assert capsys.readouterr().out.splitlines() == [
        "[0/2] baseline s3: started",
        "[0/2] baseline s3: epoch 2/12, validation macro F1 0.7500, 2 min left",
        "[0/2] baseline s3: notice: a damaged checkpoint",
        "[0/2] baseline s3: epoch 12/12, validation loss 0.5000",
        "[1/2] baseline s3: finished in 1.5 h",
        "[2/2] baseline s3: failed: no memory",
    ]


def test_runs_side_by_side_have_the_lines_of_one(clock, capsys):
    members = [job("distilled", seed=seed, group="g") for seed in range(25)]
    show = live.Plain(members)
    for number, of in itertools.product(range(3), members):
        show(Event("started", of) if not number else epoch(of, number, 2))
    assert capsys.readouterr().out.splitlines() == [
        "[0/25] distilled s0 and 24 more: started",
        "[0/25] distilled s0 and 24 more: epoch 1/2, training loss 0.5000, 0 s left",
        "[0/25] distilled s0 and 24 more: epoch 2/2, training loss 0.5000",
    ]


def test_reused_runs_have_one_line(clock, capsys):
    several = [job(name) for name in ("a", "b", "c")]
    show = live.Plain(several)
    show(Event("reused", several[0]))
    show(Event("reused", several[1]))
    show(Event("started", several[2]))
    show(Event("reused", several[2]))
    show.close()
    assert capsys.readouterr().out.splitlines() == [
        "[2/3] 2 runs reused from the store",
        "[2/3] c s0: started",
        "[3/3] 1 run reused from the store",
    ]


def test_the_label_of_a_shared_run_is_the_shortest_arm():
    assert live.label([job("released_distilled", "baseline", "alone_again")]) == "baseline +2 s0"


def test_what_a_file_says_does_nothing_to_a_terminal(clock, capsys):
    show = live.Plain([job("a")])
    show(Event("failed", job("a"), "\x1b[2Jgone\r\nFAILED  forged \u202e"))
    assert capsys.readouterr().out == r"[1/1] a s0: failed: \x1b[2Jgone\r\nFAILED  forged \u202e" + "\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_lines_have_80_columns(name, clock, capsys):
    jobs = jobs_of(name)
    show = live.Plain(jobs)
    for of in jobs:
        show(Event("started", of))
        clock.seconds += 50.0
        show(epoch(of, 1, validation_accuracy=0.98765))
        show(epoch(of, 100, validation_accuracy=0.98765))
        show(Event("finished", of, numbers={"seconds": 4321.0}))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * len(jobs)
    assert max(map(len, lines)) <= 80
    assert all(re.search(r" s\d+: ", line) for line in lines)


# ---- bars


def shown(console, bars):
    with console.capture() as capture:
        console.print(bars.progress.get_renderable())
    return capture.get().splitlines()


def console_of(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True, color_system=None)


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("name", NAMES)
def test_bars_fit_with_count_epoch_time_left_and_number(name, width, clock):
    jobs = sorted(jobs_of(name), key=lambda job: -len(live.label([job])))[:12]
    console = console_of(width)
    bars = live.Bars(jobs, console)
    for of in jobs:
        bars(Event("started", of))
        clock.seconds += 60.0
        bars(epoch(of, 20, validation_accuracy=0.98765))
    whole, *lines = shown(console, bars)
    assert len(lines) == len(jobs)
    assert whole.startswith("all runs ")
    assert f"0/{len(jobs)}" in whole
    assert whole.rstrip().endswith(" left")
    for of, line in zip(jobs, lines, strict=True):
        assert width_of(line.rstrip()) <= width
        assert "…" not in line  # rich cuts with this letter
        assert " 20/100 " in line
        assert line.rstrip().endswith(" left validation accuracy 0.9877")
        assert f" s{of.description.seed} " in line


def test_the_time_left_runs_down_between_two_epochs(clock):
    own, console = job("baseline"), console_of(80)
    bars = live.Bars([own], console)
    bars(Event("started", own))
    clock.seconds += 10.0
    bars(epoch(own, 1, 5))
    assert "40 s left" in shown(console, bars)[1]
    clock.seconds += 7.0
    assert "33 s left" in shown(console, bars)[1]
    clock.seconds += 100.0
    assert " 0 s left" in shown(console, bars)[1]
    bars(Event("finished", own, numbers={"seconds": 1.0}))
    (whole,) = shown(console, bars)
    assert "1/1" in whole


def test_the_time_left_of_a_session_counts_the_epochs_of_this_session(clock):
    jobs, console = [job("a"), job("b"), job("c")], console_of(80)
    bars = live.Bars(jobs, console)
    bars(Event("reused", jobs[0]))
    bars(Event("started", jobs[1]))
    clock.seconds += 10.0
    bars(epoch(jobs[1], 8, 10))  # an earlier session has trained 7: a tenth of a run takes 10 s, 1.2 runs are left
    assert " 1/3 " in shown(console, bars)[0]
    assert " 2 min left" in shown(console, bars)[0]
    clock.seconds += 60.0
    assert " 60 s left" in shown(console, bars)[0]


def test_markup_in_a_text_is_text(clock):
    own = job("[red]a")
    console = console_of(80)
    bars = live.Bars([own], console)
    bars(Event("started", own))
    assert "[red]a s0" in shown(console, bars)[1]
    with console.capture() as capture:
        bars(Event("failed", own, "[bold]no\x1b[2J[/nothing]"))
    assert capture.get() == "[red]a s0: failed: [bold]no\\x1b[2J[/nothing]\n"


@pytest.mark.parametrize(
    ("terminal", "kind", "expected"),
    [(True, "xterm", live.Bars), (True, "dumb", live.Plain), (False, "xterm", live.Plain)],
)
def test_only_a_terminal_that_can_move_the_cursor_has_bars(monkeypatch, terminal, kind, expected):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", kind)
    with live.reporter([job("a")]) as show:
        assert type(show) is expected
