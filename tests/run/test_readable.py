"""What could not be read back is refused: a configuration before training, a result before anything is stored."""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdlib.errors import KDError
from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute, Profile
from kdlib.run.group import Setting, train_group
from kdlib.run.plan import plan
from kdlib.run.records import read_records, record_of, write_records
from kdlib.run.store import Description, Result, Store
from tests.conftest import module_of

ABOUT = Description("source/train", 1, {"epochs": 3}, 0, "data")
GOOD = Result({"final": {"accuracy": 0.5}}, [{"training_loss": 0.1}], {"final": {"w": torch.zeros(2)}})


@dataclass(frozen=True)
class Odd:
    odd: Any
    epochs: int = 1


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


WRONG = {
    "whole keys": ({2: 0.1, 10: 0.01}, r"config\.odd to have texts as keys, found the key 2 of type int"),
    "nested keys": (({"a": {None: 1}},), r"config\.odd\.0\.a to have texts as keys, found the key None"),
    "path": (Path("/x"), r"config\.odd to be .*found one of type PosixPath"),
    "infinite": ([1.0, float("inf")], r"config\.odd\.1 to be a finite number.*found inf"),
    "nan": (float("nan"), "found nan"),
    "type": (torch.float32, "found one of type dtype"),
    "tensor": (torch.zeros(2), "found one of type Tensor"),
    "NumPy": (np.float32(1), "found one of type float32"),
    "set": ({1}, "found one of type set"),
    "half a character": ("\udc80", "text that can be written"),
    "within": (Odd(Odd(b"1")), r"config\.odd\.odd\.odd to be .*found one of type bytes"),
    "long": (10**400, "at most 300 digits"),
}
deep: Any = []
for _ in range(200):
    deep = [deep]
WRONG["deep"] = (deep, "nested at most 100 deep")


@pytest.mark.parametrize(("value", "words"), WRONG.values(), ids=WRONG)
def test_a_configuration_that_json_does_not_give_back_is_refused_when_it_is_loaded(toy, value, words):
    with pytest.raises(KDError, match=f"profile quick: expected .*{words}"):
        replace(toy, profiles={"quick": Profile(Odd(value), 1)}, arms=toy.arms[:1])
    with pytest.raises(KDError, match=f"arm 'teacher': expected .*{words.replace('odd', 'note', 1)}"):
        replace(toy, arms=(replace(toy.arms[0], change={"note": value}), *toy.arms[1:]))
    with pytest.raises(KDError, match=words):
        toy.describe(toy.arms[0], Odd(value), 0, "data", Compute(), {})


@pytest.mark.parametrize("value", [2**64, (1, (2.5, None)), {"2": 1, "10": [True]}, "ü\x00", -0.0, Odd((1,)), []])
def test_other_configurations_have_the_id_that_they_are_read_back_with(toy, value, tmp_path):
    about = toy.describe(toy.arms[0], Odd(value), 0, "data", Compute(), {})
    text = json.loads(json.dumps(vars(about)))
    assert Description(**text).id == about.id == Store(tmp_path).save(about, GOOD, {}).id


@pytest.mark.parametrize("part", ["digest", "name"])
@pytest.mark.parametrize("value", ["", None, 7])
def test_data_without_a_digest_or_a_name_are_refused_in_the_plan(toy, part, value):
    data = SimpleNamespace(**{"digest": "d", "name": "n", part: value})
    wrong = replace(toy, load_data=lambda config, folders: data)
    with pytest.raises(KDError, match=f"toy, arm 'teacher': expected load_data .*`{part}` is a text.*found {value!r}"):
        plan(wrong, wrong.profile("quick"), ["teacher"], [0], Compute(), {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": functools.partial(print)}, "a function with a name.*found one of type partial; write .* `def`"),
        ({"snapshot": "a/b"}, "a snapshot without '/' in its name, found 'a/b'"),
        ({"name": 7}, "texts as names of arms, found 7"),
        ({"seed": 0.5}, "a whole number as its seed, found 0.5"),
    ],
)
def test_an_arm_whose_runs_could_not_be_found_again(toy, change, words):
    with pytest.raises(KDError, match=words):
        replace(toy, arms=(*toy.arms, Arm(**{"name": "odd", "modes": (), "train": print, **change})))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"profiles": {"quick": Profile({}, 1)}}, "profile quick: expected a dataclass .*found one of type dict"),
        ({"profiles": {"quick": Profile(Odd, 1)}}, "found the class itself"),
        ({"protocol": 1.5}, "protocol: expected a whole number"),
        ({"source": None}, "source: expected a text, found None"),
    ],
)
def test_an_experiment_whose_runs_could_not_be_read(toy, change, words):
    with pytest.raises(KDError, match=words):
        replace(toy, **change)


RESULTS = {
    "large": ({"flops": 3 * 10**19}, r"metrics\.final\.flops to be a whole number <= 9223372036854775807"),
    "tensor": ({"loss": torch.zeros(())}, r"metrics\.final\.loss to be a finite number.*one of type Tensor"),
    "nan": ({"curve": [1.0, float("nan")]}, r"metrics\.final\.curve\.1 to be a finite number.*found nan"),
    "epochs": ({"epochs": 3.0}, r"metrics\.final\.epochs to be a whole number, found 3\.0"),
    "shares": ({"confusion": [[0.5, 0.5], [0, 1]]}, r"metrics\.final\.confusion\.0\.0 to be a whole number"),
    "ragged": ({"confusion": [[1, 2], [3]]}, "confusion with as many columns as rows"),
    "keys": ({"mixed": {1: 2, "1": 3}}, r"metrics\.final\.mixed to have texts as keys"),
}


def refused(toy, store, monkeypatch, result, words):
    """Train the toy's baseline to the end with this result: nothing is stored, and its checkpoint is kept."""
    module = module_of("toy")
    trained = toy.arm("baseline").train

    def train_student(run):
        trained(run)
        return result

    arms = (Arm("baseline", (), train_student),)
    monkeypatch.setattr(module, "EXPERIMENT", replace(toy, arms=arms, check=("baseline",)))
    jobs = plan(module.EXPERIMENT, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    for _ in range(2):
        (why,) = execute(jobs, store, compute=Compute(), folders={}).failed.values()
        assert re.search(words, why), why
        assert store.ids() == []
        assert not (store.folder / "damaged").exists()
        assert list(store.work_folder(jobs[0].id).glob("checkpoint-*.safetensors"))


def test_a_training_that_changes_the_data_is_refused_and_the_next_one_gets_them_as_they_were(toy, store, monkeypatch):
    module = module_of("toy")
    trained, seen = toy.arm("baseline").train, []

    def train_student(run):
        seen.append(run.data.train.inputs.clone())
        if run.seed == 0:
            run.data.train.inputs.sub_(1).mul_(2)
        return trained(run)

    arms = (Arm("baseline", (), train_student),)
    monkeypatch.setattr(module, "EXPERIMENT", replace(toy, arms=arms, check=("baseline",)))
    jobs = plan(module.EXPERIMENT, toy.profile("quick"), ["baseline"], [0, 1], Compute(), {})
    summary = execute(jobs, store, compute=Compute(), folders={})
    assert re.search(
        r"leaves the data as they are, found that it changed train\.inputs in place",
        *summary.failed.values(),
    )
    assert [*summary.finished] == [jobs[1].id]
    assert torch.equal(*seen)


def test_a_training_that_ends_the_process_fails_alone(toy, store, monkeypatch):
    module = module_of("toy")

    def train_student(run):
        sys.exit("no GPU")

    arms = (Arm("baseline", (), train_student),)
    monkeypatch.setattr(module, "EXPERIMENT", replace(toy, arms=arms, check=("baseline",)))
    jobs = plan(module.EXPERIMENT, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    (why,) = execute(jobs, store, compute=Compute(), folders={}).failed.values()
    assert "expected a Result from the training function, found that it called sys.exit('no GPU')" in why


def test_a_result_that_could_not_be_read_back_keeps_the_checkpoint(toy, store, monkeypatch):
    metrics, words = RESULTS["large"]
    refused(toy, store, monkeypatch, replace(GOOD, metrics={"final": metrics}), words)


def test_what_is_no_result_keeps_the_checkpoint(toy, store, monkeypatch):
    refused(toy, store, monkeypatch, {"final": 1}, "train_student: expected 1 Result.*found dict")


@pytest.mark.parametrize(("metrics", "words"), RESULTS.values(), ids=RESULTS)
def test_metrics_that_could_not_be_read_back(tmp_path, metrics, words):
    store = Store(tmp_path)
    with pytest.raises(KDError, match=words):
        store.save(ABOUT, replace(GOOD, metrics={"final": metrics}), {})
    assert store.ids() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history": [{"lr": None}]}, r"history\.0\.lr to be a number, found None"),
        ({"weights": {"a/b": {}}}, "weights of the snapshot 'a/b': expected a name without '/'"),
        ({"weights": {"final": {"w": 1}}}, "final, 'w': expected a tensor, found one of type int"),
        ({"soft_targets": {"final.a/b": torch.zeros(1, 2)}}, "soft targets 'final.a/b'"),
    ],
)
def test_other_parts_of_a_result(tmp_path, change, words):
    with pytest.raises(KDError, match=words):
        Store(tmp_path).save(ABOUT, replace(GOOD, **change), {})
    assert Store(tmp_path).ids() == []


def test_whole_keys_of_metrics_come_back_as_texts(tmp_path):
    run = Store(tmp_path).save(ABOUT, replace(GOOD, metrics={"final": {"per_class": {2: 0.5, 10: 0.25}}}), {})
    assert run.metrics == {"final": {"per_class": {"2": 0.5, "10": 0.25}}}


def test_a_stored_run_without_the_arms_snapshot_fails_with_a_remedy(toy, store, monkeypatch):
    module = module_of("toy")
    jobs = plan(toy, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    assert len(execute(jobs, store, compute=Compute(), folders={}).finished) == 1
    arms = tuple(replace(arm, snapshot="last") if arm.name == "baseline" else arm for arm in toy.arms)
    monkeypatch.setattr(module, "EXPERIMENT", replace(toy, arms=arms))
    (why,) = execute(jobs, store, compute=Compute(), folders={}).failed.values()
    assert "expected metrics of the snapshot 'last'" in why
    assert "raise `protocol`, or delete" in why
    assert store.ids() == [jobs[0].id]


WRONG = [
    {"data_name": ""},
    {"arms": {}},
    {"metrics": {"final": {"confusion": [[0.5]]}}},
    {"metrics": {"final": {"errors": 1e308}}},  # its square would be infinite
    {"history": [{"training_loss": -1e51}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_records_that_could_not_be_read_are_not_written(tmp_path, wrong):
    path = tmp_path / "runs.jsonl"
    good = record_of(Store(tmp_path).save(ABOUT, GOOD, {}), "quick", {"a": "final"}, "data")
    write_records(path, [good])
    with pytest.raises(KDError, match=f"run {ABOUT.id}: expected "):
        write_records(path, [replace(good, **wrong)])
    assert read_records(path) == [good]


# ---- what lies outside the store, and what is edited meanwhile


def test_a_link_in_the_place_of_a_work_folder_is_removed_alone(toy, store, tmp_path):
    (job,) = plan(toy, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("kept")
    work = store.work_folder(job.id)
    work.parent.mkdir(parents=True)
    work.symlink_to(tmp_path / "thesis", target_is_directory=True)
    assert [*execute([job], store, compute=Compute(), folders={}).finished] == [job.id]
    assert (tmp_path / "thesis" / "text").read_text() == "kept"
    assert not work.is_symlink()


def test_a_process_with_other_source_files_does_not_train_for_a_session(toy, store):
    (job,) = plan(toy, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    setting = Setting(store, Compute(), {}, float("inf"), sources={"toy": "0" * 16})
    outcome = train_group((job,), setting, lambda event: None)
    assert "expected the source files that the session began with (digest 0000000000000000), found" in outcome.error
    assert store.ids() == []


def test_a_reader_of_the_reports_that_is_gone_is_no_failure_of_the_run(toy, store):
    def gone(event):
        raise BrokenPipeError

    (job,) = plan(toy, toy.profile("quick"), ["baseline"], [0], Compute(), {})
    with pytest.raises(BrokenPipeError):
        train_group((job,), Setting(store, Compute(), {}, float("inf")), gone)
    assert not [*store.folder.rglob("error.txt")]
