"""A process is killed by SIGKILL: what is made afterwards equals what an unbroken session makes, to the last byte."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from tests.conftest import Server, contents
from tests.toy import EPOCHS, STEPS

ARMS = ("teacher", "distilled")
WRITES = 2 * EPOCHS + 4 + 3  # checkpoints; weights, soft targets, run.json, manifest; weights, run.json, manifest
RENAMES = WRITES + 2 + 2 * (EPOCHS - 1)  # and each run's folder into place; each checkpoint before the last one
PLACES = {
    "step": 2 * EPOCHS * STEPS,
    "half written": WRITES,
    "before rename": RENAMES,
    "after rename": RENAMES,
    "after write": WRITES,
}
ALL = [f"{place}:{n}" for place, count in PLACES.items() for n in range(1, count + 1)]
CHOSEN = sorted(
    {
        *random.Random(0).sample(ALL, 18),
        f"half written:{EPOCHS}",
        f"before rename:{2 * EPOCHS - 1}",  # the teacher's last checkpoint
        f"after write:{EPOCHS + 1}",
        f"before rename:{2 * EPOCHS + 1}",  # between its weights and its manifest
        f"after write:{EPOCHS + 4}",
        f"before rename:{2 * EPOCHS + 4}",  # complete, not yet in place
        f"after rename:{2 * EPOCHS + 4}",  # in place, its work folder still there
    }
)


@pytest.fixture(scope="module")
def unbroken(server, tmp_path_factory):
    store = tmp_path_factory.mktemp("unbroken")
    assert set(server.run(store, *ARMS)["finished"]) == {"teacher/0", "distilled/0"}
    return contents(store)


def begun(log):
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def as_unbroken(store, unbroken):
    assert contents(store) == unbroken
    assert sum(name.endswith("/weights.safetensors") for name in unbroken) == 2
    assert not list(store.glob("runs/.*"))
    assert not list(store.glob("runs/*/.*"))
    assert not list(store.glob("damaged/*"))


@pytest.mark.slow
def test_there_are_as_many_places_as_counted(server, tmp_path):
    """The process is killed at the last passage, and not at the one after it."""
    for place, count in PLACES.items():
        assert server.run(tmp_path / f"{place} last", *ARMS, TOY_KILL=f"{place}:{count}")["killed"], place
        answer = server.run(tmp_path / place, *ARMS, TOY_KILL=f"{place}:{count + 1}")
        assert not answer["killed"], place
        assert answer["error"] == ""
        assert len(answer["finished"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", CHOSEN)
def test_killed_and_run_again(server, unbroken, tmp_path, place):
    log = tmp_path / "log"
    assert server.run(tmp_path / "store", *ARMS, TOY_KILL=place, TOY_LOG=str(log))["killed"]
    answer = server.run(tmp_path / "store", *ARMS, TOY_LOG=str(log))
    assert set(answer["finished"]) == {"teacher/0", "distilled/0"}
    as_unbroken(tmp_path / "store", unbroken)
    epochs = begun(log)
    assert len(epochs) == 2 * EPOCHS
    assert epochs.total() <= 2 * EPOCHS + 1, epochs


@pytest.mark.slow
def test_killed_in_every_epoch(server, unbroken, tmp_path):
    """Like a machine that fails in every second epoch: each try gets one epoch further."""
    log, deaths = tmp_path / "log", 0
    while server.run(tmp_path / "store", *ARMS, TOY_KILL=f"step:{STEPS + 2}", TOY_LOG=str(log))["killed"]:
        deaths += 1
        assert deaths < 2 * EPOCHS
    as_unbroken(tmp_path / "store", unbroken)
    assert deaths == 2 * EPOCHS - 1  # the last epoch ends before step STEPS + 2
    assert max(begun(log).values()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_killed_at_any_time(server, unbroken, tmp_path, number):
    from time import sleep

    clock, log, deaths = random.Random(number), tmp_path / "log", 0
    while True:
        wait = server.start(tmp_path / "store", ARMS, TOY_LOG=str(log), TOY_SLEEP="0.01")
        sleep(clock.uniform(0.0, 0.5))
        killed = wait(kill=deaths < 3)["killed"]
        deaths += killed
        if not killed:
            break
    as_unbroken(tmp_path / "store", unbroken)
    assert begun(log).total() <= 2 * EPOCHS + deaths


@pytest.mark.slow
def test_a_killed_session_leaves_no_process_behind(toy_root, tmp_path):
    """Neither its workers, which are in a step that lasts a minute, nor the manager of its events remain."""
    server, log = Server(toy_root, tmp_path), tmp_path / "log"
    wait = server.start(tmp_path / "store", ("teacher", "baseline"), workers=2, TOY_SLEEP="60", TOY_LOG=str(log))
    deadline = time.monotonic() + 60
    while begun(log).total() < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert wait(kill=True) == {"killed": True}
    assert begun(log).total() == 2
    server.process.communicate(timeout=30)  # its output ends when the last process that inherited it does
