"""The queue of groups against one that looks at all groups at each step."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdlib.run.queue import Queue, parents_of


def group_of(name, parents, size):
    """A group of `size` runs, of which the first has the parents."""
    return [
        SimpleNamespace(id=f"{name}.{number}", parents={run: (run, "final") for run in parents} if not number else {})
        for number in range(size)
    ]


@st.composite
def graphs(draw):
    groups, runs = [], []
    for number in range(draw(st.integers(1, 12))):
        parents = draw(st.lists(st.sampled_from(runs), unique=True, max_size=3)) if runs else []
        groups.append(group_of(f"{number:02}", parents, draw(st.integers(1, 2))))
        runs += [job.id for job in groups[-1]]
    return groups


@given(graphs(), st.integers(0, 2**16), st.integers(1, 4))
def test_it_gives_what_a_look_at_all_groups_gives(groups, seed, count):
    choose = random.Random(seed)
    finished, failed, todo, running = set(), set(), list(groups), []
    queue = Queue(groups, finished, failed)
    while todo or running:
        while True:  # one after the other, as each failure may bring down others
            fallen = next((group for group in todo if failed & set(parents_of(group))), None)
            assert queue.next_fallen() == fallen
            if fallen is None:
                break
            todo.remove(fallen)
            for job in fallen:
                failed.add(job.id)
                queue.run_failed(job.id)
        ready = [group for group in todo if finished >= set(parents_of(group))]
        assert queue.rest() == todo
        assert queue.stuck() == (bool(todo) and not ready)
        refused = {choose.choice(ready)[0].id} if ready and choose.random() < 0.3 else set()
        taken = queue.take(count, lambda group, refused=refused: group[0].id not in refused)
        assert taken == [group for group in ready if group[0].id not in refused][:count]
        todo = [group for group in todo if group not in taken]
        running += taken
        if running:
            ended = running.pop(choose.randrange(len(running)))
            if choose.random() < 0.1:  # another session trains it
                queue.give_back(ended, 0.0)
                todo = [group for group in groups if group in todo or group is ended]
                assert queue.elsewhere() == [ended]
                queue.take(0, lambda group: True)
                continue
            for job in ended:
                good = choose.random() < 0.8
                (finished if good else failed).add(job.id)
                (queue.run_finished if good else queue.run_failed)(job.id)


def test_what_is_settled_before_counts():
    groups = [group_of("a", ["old"], 1), group_of("b", ["bad"], 1), group_of("c", ["b.0"], 1), group_of("d", ["x"], 1)]
    queue = Queue(groups, {"old"}, {"bad"})
    assert queue.next_fallen() == groups[1]
    assert queue.next_fallen() is None
    assert queue.take(9, lambda group: True) == [groups[0]]
    assert queue.stuck()
    assert queue.rest() == groups[2:]


@pytest.mark.parametrize("runs", [100, 1000])
def test_a_group_is_looked_at_a_fixed_number_of_times(runs, monkeypatch):
    groups, looks = [group_of(f"{number:04}", [], 1) for number in range(runs)], []
    queue = Queue(groups, (), ())
    for _ in range(runs):
        (group,) = queue.take(1, lambda group: looks.append(group) or True)
        queue.run_finished(group[0].id)
    assert len(looks) == runs
