"""Which card each training process gets, and how many tasks fit on a cluster; no card is needed for that."""

import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest

from kdlib.errors import KDError
from kdlib.run.devices import cards_of, next_card, refuse_too_many, share_of_card
from kdlib.run.on_ray import OnRay, fitting, ray_module
from kdlib.run.session import prepare
from tests.conftest import changed

GIB = 2**30


@pytest.fixture
def cards(monkeypatch):
    """Four cards of 16 GiB, as torch shows them."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda card: SimpleNamespace(total_memory=16 * GIB))


@pytest.mark.parametrize("workers", range(1, 33))
def test_processes_spread_evenly_over_the_cards(cards, workers):
    used = []
    for _ in range(workers):
        used.append(next_card(cards_of("cuda", workers), used))
    counts = Counter(used)
    assert counts.keys() == {f"cuda:{card}" for card in range(min(4, workers))}
    assert max(counts.values()) - min(counts.values()) <= 1
    used.remove("cuda:0")  # its process has ended; the next one takes its place, unless another card is emptier
    assert used.count(next_card(cards_of("cuda", workers), used)) == min(
        used.count(f"cuda:{card}") for card in range(4)
    )


def test_a_named_card_and_a_cpu_are_taken_as_they_are(cards):
    assert cards_of("cuda:2", 99) == ["cuda:2"]
    assert cards_of("cpu", 99) == ["cpu"]


def test_more_processes_than_the_memory_holds_are_refused(cards):
    cards_of("cuda", 32)
    with pytest.raises(KDError, match=r"--workers 33: expected at most 32, .* \(there are 4, the smallest of 16 GiB\)"):
        cards_of("cuda", 33)
    refuse_too_many(3, [4 * GIB, 2 * GIB])  # two on the first card
    with pytest.raises(KDError, match="at most 2"):
        refuse_too_many(4, [4 * GIB, 2 * GIB])


@pytest.mark.parametrize(
    ("workers", "cards", "share"),
    [(None, 4, 1.0), (3, 4, 1.0), (4, 4, 1.0), (5, 4, 0.5), (8, 4, 0.5), (9, 4, 1 / 3), (7, 0, 1.0)],
)
def test_tasks_share_a_card_only_if_there_are_more_of_them(workers, cards, share):
    assert share_of_card(workers, cards) == share
    if workers and cards:
        machines = [{"CPU": 64.0, "GPU": float(cards)}]
        assert fitting(machines, {"CPU": 1.0, "GPU": share}) >= workers


def test_tasks_fit_within_machines_and_never_across_them():
    machines = [{"CPU": 3.0}, {"CPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}, {}]
    assert fitting(machines, {"CPU": 1.0}) == 12
    assert fitting(machines, {"CPU": 2.0}) == 1 + 0 + 4
    assert fitting(machines, {"CPU": 1.0, "GPU": 1 / 3}) == 3
    assert fitting(machines, {"CPU": 9.0}) == 0
    assert fitting([], {"CPU": 1.0}) == 0


def test_a_session_on_a_cluster_needs_no_card_of_its_own_and_says_how_to_get_ray(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("kdlib.run.session.ray_module", lambda: "ray")
    changed(monkeypatch, "toy", data=())
    found = prepare("toy", store=tmp_path, device="cuda", ray="auto", workers=3, data=tmp_path)
    assert isinstance(found.executor, partial)
    assert found.executor.func is OnRay
    assert found.executor.args == ("ray", "auto", toy.folder.parent, tmp_path, 3)
    with pytest.raises(KDError, match="--device gpu: expected cpu, cuda, or cuda:N"):
        prepare("toy", store=tmp_path, device="gpu", ray="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KDError, match=r"python -m pip install 'kdlib\[ray\]'"):
        ray_module()
