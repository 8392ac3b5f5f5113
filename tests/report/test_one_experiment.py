"""Seeds of an arm that were trained in different ways are told; what the seed itself draws is not."""

from dataclasses import replace

import pytest

from kdlib.report.one_experiment import unlike_seeds
from kdlib.run.records import Record

TRACE = {
    "network": "n",
    "optimizer": {"class": "Adam", "groups": [{"eps": 1e-8}]},
    "data": {"size": 16, "view": "plain"},
    "epochs": {"rates": ["a", "b"]},
}


def record(seed, source="s", torch="2.13", config=None, **changes):
    environment = {"source": source, "versions": {"torch": torch}}
    description = {"data": "d", "config": {"rate": 0.1, "device": "cpu", **(config or {})}}
    return Record(
        "full", seed, f"r{seed}", {"student": "final"}, "d", description, {}, [], environment, "", TRACE | changes
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "m"}, "the network"),
        ({"optimizer": {"class": "SGD", "groups": []}}, "the optimizer"),
        ({"epochs": {"rates": ["c", "b"]}}, "the learning rates of the first epoch"),
        ({"data": {"size": 32, "view": "plain"}}, "the batches"),
    ],
)
def test_seeds_of_other_source_files_that_were_trained_otherwise_are_told(changes, said):
    others = [record(0), record(1), record(2, source="t", **changes)]
    assert unlike_seeds(others) == [f"student of profile full: seeds 0 and 2 differ in {said}"]
    assert unlike_seeds([record(0), record(1), record(2, source="t")]) == []
    assert unlike_seeds([replace(one, profile=f"p{one.seed}") for one in others]) == []
    assert unlike_seeds([*others[:2], replace(others[2], trace={})]) == []
    fields = [record(0), record(1), record(2, source="t", config={"decay": 0.1}, **changes)]
    assert unlike_seeds(fields) == [f"student of profile full: seeds 0 and 2 differ in {said}"]
    assert unlike_seeds([*fields[:2], record(2, source="t", config={"decay": 0.1})]) == []


def test_what_a_seed_draws_and_settings_of_another_torch_are_not():
    drawn = {"epochs": {"rates": ["c"]}}
    assert unlike_seeds([record(0), record(1, **drawn), record(2, source="t", epochs={"rates": ["e"]})]) == []
    other = {"optimizer": {"class": "Adam", "groups": [{"eps": 1e-8, "decoupled_weight_decay": False}]}}
    assert unlike_seeds([record(0), record(1, source="t", torch="2.14", **other)]) == []
    assert len(unlike_seeds([record(0), record(1, source="t", **other)])) == 1
    on_cuda = record(1, config={"device": "cuda"}, **other)
    assert unlike_seeds([record(0), replace(on_cuda, environment=record(1, source="t").environment)]) == []
    assert len(unlike_seeds([record(0), on_cuda, record(2, source="t", **other)])) == 1
