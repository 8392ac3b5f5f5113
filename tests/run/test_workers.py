"""What the session's process makes of its training processes, without starting any."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdlib.run.events import Event
from kdlib.run.experiment import Compute
from kdlib.run.group import Outcome, Setting
from kdlib.run.store import Store
from kdlib.run.workers import RESTARTS, STARTED, Workers, _work, _Worker

SETTING = SimpleNamespace(compute=SimpleNamespace(device="cpu"))
GROUP = [SimpleNamespace(description=SimpleNamespace(id="run"))]


class Begun(Workers):
    """Training processes that are pipes; the test holds the other ends."""

    def __init__(self, report):
        super().__init__(1, SETTING, report)
        self.others, self.killed = [], 0

    def _started(self):
        here, there = Pipe()
        self.others.append(there)
        self.workers.append(_Worker(SimpleNamespace(kill=self._kill, join=lambda: None, exitcode=-9), here, "cpu"))
        return self.workers[-1]

    def _kill(self):
        self.killed += 1


def test_events_and_the_outcome_come_in_their_order():
    events = []
    workers = Begun(events.append)
    workers.begin(GROUP)
    assert (workers.free, workers.busy) == (0, True)
    assert workers.others[0].recv()[0].description.id == "run"
    for number in (1, 2):
        workers.others[0].send(Event("epoch", None, epoch=number))
    assert workers.ended() == []
    workers.others[0].send(Outcome("failed"))
    assert workers.ended() == [(GROUP, Outcome("failed"))]
    assert [event.epoch for event in events] == [1, 2]
    assert (workers.free, workers.busy) == (1, False)
    workers.begin(GROUP)  # in the same process
    assert len(workers.others) == 1


@pytest.mark.parametrize("left", [b"", b"\0", b"\0\0\0\x10half a"])
def test_a_process_that_ends_within_a_message_is_replaced_up_to_three_times(left):
    events = []
    workers = Begun(events.append)
    workers.begin(GROUP)
    for death in range(1, RESTARTS + 1):
        os.write(workers.others[-1].fileno(), left)
        workers.others[-1].close()
        assert workers.ended() == []
        assert len(workers.others) == death + 1
        assert workers.others[-1].recv()[0].description.id == "run"
    workers.others[-1].close()
    ((group, outcome),) = workers.ended()
    assert group == GROUP
    assert outcome.error.startswith("its training process was ended from outside 4 times, now by signal 9")
    assert [event.kind for event in events] == ["notice"] * RESTARTS
    assert workers.killed == RESTARTS + 1
    assert (workers.free, workers.busy) == (1, False)


def test_a_process_that_ends_by_itself_before_it_can_begin_is_not_replaced():
    events = []
    workers = Begun(events.append)
    workers.begin(GROUP)
    workers.workers[0].process.exitcode = 1
    workers.others[0].close()
    ((_, outcome),) = workers.ended()
    assert outcome.error.startswith("its training process ended with status 1 before it could begin")
    assert (events, len(workers.others), workers.free) == ([], 1, 1)


def test_a_process_that_has_begun_and_ends_with_a_status_is_replaced():
    workers = Begun(lambda event: None)
    workers.begin(GROUP)
    workers.others[0].send(STARTED)
    workers.workers[0].process.exitcode = 1
    workers.others[0].close()
    assert workers.ended() == []
    assert len(workers.others) == 2


SCRIPT = """
from pathlib import Path
from kdlib.run.session import prepare, train
session = prepare("toy", "quick", arms=["baseline"], seeds=[0, 1], store=Path("store"), workers=2)
print(*train(session, session.jobs()).failed.values(), sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["a file", "stdin"])
def test_a_script_without_a_main_guard_is_told_so_at_once(toy_root, tmp_path, way):
    root = shutil.copytree(toy_root, tmp_path / "root")
    toy = root / "replications" / "toy" / "experiment.py"
    toy.write_text(toy.read_text().replace('data=("toy",)', "data=()"))
    script = root / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script) if way == "a file" else "-"],
        input=SCRIPT,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}:{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.count("ended with status 1 before it could begin") == 2, done.stderr
    assert "__main__" in done.stdout
    assert done.stderr.count("Traceback (most recent call last)") <= 4  # two processes, of which each says why once


class NotImported:
    """What a group is to a new process after its experiment.py was edited."""

    def __reduce__(self):
        return eval, ("1 +",)


def test_a_group_that_a_process_cannot_import_fails_with_its_error(monkeypatch):
    monkeypatch.setattr("kdlib.run.workers.SIGNALS", [])
    monkeypatch.setattr("kdlib.run.workers._end_with_parent", lambda: None)
    here, there = Pipe()
    received = []

    def session():
        received.append(here.recv())
        for _ in range(2):
            here.send(NotImported())
            received.append(here.recv())
        here.close()

    other = threading.Thread(target=session)
    other.start()
    _work(there, Setting(Store(Path("nowhere")), Compute(), {}, math.inf))
    other.join()
    assert received[0] == STARTED
    for outcome in received[1:]:  # the process goes on
        assert "a replication's source files: expected files that a new process can import, found" in outcome.error
        assert "SyntaxError" in outcome.error


def test_an_idle_process_that_is_gone_is_replaced():
    workers = Begun(lambda event: None)
    workers.begin(GROUP)
    workers.others[0].send(Outcome())
    assert workers.ended() == [(GROUP, Outcome())]
    workers.others[0].close()
    workers.begin(GROUP)
    assert workers.ended() == []
    workers.others[1].send(Outcome())
    assert workers.ended() == [(GROUP, Outcome())]


def test_an_error_of_the_report_is_not_taken_for_the_end_of_a_process():
    def report(event):
        raise BrokenPipeError("nobody reads the output")

    workers = Begun(report)
    workers.begin(GROUP)
    workers.others[0].send(Event("epoch", None))
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        workers.ended()
    assert workers.killed == 0
