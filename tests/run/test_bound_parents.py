"""Runs are bound to the bytes of their parents and of their own files, and reuse tells what it must."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from kdlib.errors import KDError
from kdlib.files import DamagedFile, load_tensors, save_tensors, sha256
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute
from kdlib.run.plan import plan
from kdlib.run.records import read_records, record_of, write_records
from kdlib.run.store import Store, prune, read_run, write_manifest
from tests.conftest import contents, module_of, write_toy

CPU = Compute()
CHAIN = ("teacher", "assistant", "grandchild", "baseline")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def session(toy, store):
    """Run arms; the answer has the outcome of each, and the events as (kind, arm, text)."""

    class Session:
        def __init__(self, *arms, seeds=(0,), into=store):
            self.events = []
            jobs = plan(toy, toy.profile("quick"), arms, seeds, CPU, {})
            self.arms = {job.description.id: job.arms[0] for job in jobs}
            self.summary = execute(jobs, into, compute=CPU, folders={}, report=self.note)
            self.runs = {self.arms[run]: found for run, found in self.summary.finished.items()}
            self.failed = {self.arms[run]: text for run, text in self.summary.failed.items()}
            self.blocked = {self.arms[run]: self.arms[parent] for run, parent in self.summary.blocked.items()}

        def note(self, event):
            self.events.append((event.kind, event.job.arms[0], event.text))

        def of(self, *kinds):
            return [(kind, arm) for kind, arm, _ in self.events if kind in kinds]

        @property
        def trained(self):
            return [arm for kind, arm in self.of("started")]

    return Session


def rewrite(run, **changes):
    """Alter run.json, with a manifest that fits."""
    path = run.folder / "run.json"
    record = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(record))
    write_manifest(run.folder)


# ---- what is recorded


def file_digest(run, name):
    return sha256((run.folder / name).read_bytes())


def test_a_run_records_the_bytes_of_its_parents(session):
    runs = session(*CHAIN).runs
    for child, parent in (("assistant", "teacher"), ("grandchild", "assistant")):
        assert runs[child].parents == {
            "teacher": {
                "weights": file_digest(runs[parent], "weights.safetensors"),
                "soft_targets": file_digest(runs[parent], "soft_targets.safetensors"),
            }
        }
    assert runs["teacher"].parents == runs["baseline"].parents == {}


# ---- a parent with other bytes


def other_weights(module, monkeypatch):
    """An edit of the code that does not raise the protocol: everything starts from other weights."""
    network = module.network

    def turned(stream):
        model = network(stream)
        with torch.no_grad():
            model[0].weight.neg_()
        return model

    monkeypatch.setattr(module, "network", turned)


def other_soft_targets(module, monkeypatch):
    result = module.Result

    def warmer(metrics, history, weights, targets):
        return result(metrics, history, weights, {part: 2 * logits for part, logits in targets.items()})

    monkeypatch.setattr(module, "Result", warmer)


def tampered_weights(run):
    tensors, notes = load_tensors(run.folder / "weights.safetensors")
    save_tensors(run.folder / "weights.safetensors", {name: -value for name, value in tensors.items()}, notes)
    rewrite(run, weights_sha256=file_digest(run, "weights.safetensors"))


def tampered_soft_targets(run):
    tensors, notes = load_tensors(run.folder / "soft_targets.safetensors")
    save_tensors(run.folder / "soft_targets.safetensors", {name: -value for name, value in tensors.items()}, notes)
    write_manifest(run.folder)


def dropped_soft_targets(run):
    (run.folder / "soft_targets.safetensors").unlink()
    write_manifest(run.folder)


def refused(text, child, parent, name):
    """Both digests and what can be done."""
    file = f"{name}.safetensors"
    found = file_digest(parent, file) if (parent.folder / file).exists() else "none"
    expected = child.parents["teacher"][name]
    assert expected != found
    assert text == (
        f"run {child.id}: expected its teacher, run {parent.id}, with {name.replace('_', ' ')} of SHA-256 {expected}, "
        f"as it was trained with; found {found} in this store. Delete {child.folder} to train it again with this "
        f"parent, or put its own parent in place of {parent.folder}"
    )


TAMPERED = {
    "weights": (tampered_weights, "weights"),
    "soft targets": (tampered_soft_targets, "soft_targets"),
    "no soft targets": (dropped_soft_targets, "soft_targets"),
}


@pytest.mark.parametrize(("tamper", "name"), TAMPERED.values(), ids=TAMPERED)
def test_a_child_of_a_tampered_parent_is_refused_and_its_children_are_blocked(session, store, tamper, name):
    first = session(*CHAIN).runs
    before = contents(store.folder)
    tamper(first["teacher"])
    second = session(*CHAIN)
    assert second.failed.keys() == {"assistant"}
    refused(second.failed["assistant"], first["assistant"], first["teacher"], name)
    assert second.blocked == {"grandchild": "assistant"}
    assert second.runs.keys() == {"teacher", "baseline"}
    assert second.of("reused", "failed", "blocked", "finished", "started") == [
        ("reused", "teacher"),
        ("failed", "assistant"),
        ("reused", "baseline"),
        ("blocked", "grandchild"),
    ]
    after = contents(store.folder)
    for arm in ("assistant", "grandchild", "baseline"):  # nothing is lost
        assert read_run(first[arm].folder) == first[arm]
        assert {n for n in before if n.startswith(first[arm].id)} == {n for n in after if n.startswith(first[arm].id)}


RETRAINED = {"weights": (other_weights, "weights"), "soft targets": (other_soft_targets, "soft_targets")}


@pytest.mark.parametrize(("edit", "name"), RETRAINED.values(), ids=RETRAINED)
def test_a_child_of_a_parent_that_was_trained_again_is_refused_in_the_same_session(
    toy, session, store, monkeypatch, edit, name
):
    first = session(*CHAIN).runs
    shutil.rmtree(first["teacher"].folder)
    edit(module_of("toy"), monkeypatch)
    for trained in (["teacher"], []):  # the session that trains it, and the next
        second = session(*CHAIN)
        assert second.trained == trained
        assert second.failed.keys() == {"assistant"}
        refused(second.failed["assistant"], first["assistant"], second.runs["teacher"], name)
        assert second.blocked == {"grandchild": "assistant"}
        assert read_run(first["assistant"].folder) == first["assistant"]


def test_a_parent_that_is_trained_again_with_the_same_bytes_is_the_same(session, store):
    first, before = session(*CHAIN).runs, contents(store.folder)
    shutil.rmtree(first["teacher"].folder)
    second = session(*CHAIN)
    assert second.trained == ["teacher"]
    assert second.of("reused", "finished") == [
        ("reused", "baseline"),
        ("finished", "teacher"),
        ("reused", "assistant"),
        ("reused", "grandchild"),
    ]
    assert contents(store.folder) == before


def test_the_remedies(session, store, tmp_path):
    """The child is trained again with the present parent, or the parent that it had is put back."""
    first = session(*CHAIN).runs
    kept = tmp_path / "kept"
    shutil.copytree(first["teacher"].folder, kept)
    tampered_soft_targets(first["teacher"])

    shutil.move(first["assistant"].folder, tmp_path / "assistant")
    second = session(*CHAIN)
    assert second.trained == ["assistant"]
    assert second.runs["assistant"].parents != first["assistant"].parents
    assert second.runs["assistant"].weights_sha256 != first["assistant"].weights_sha256
    assert second.failed.keys() == {"grandchild"}  # its teacher is another now

    shutil.rmtree(first["assistant"].folder)
    shutil.move(tmp_path / "assistant", first["assistant"].folder)
    shutil.rmtree(first["teacher"].folder)
    shutil.move(kept, first["teacher"].folder)
    third = session(*CHAIN)
    assert third.runs == first
    assert third.trained == []


def test_a_parent_that_fails_blocks_a_stored_child_and_loses_nothing(session, store, monkeypatch):
    first = session("distilled").runs
    shutil.rmtree(first["teacher"].folder)
    monkeypatch.setattr(module_of("toy"), "network", None)
    second = session("distilled")
    assert second.failed.keys() == {"teacher"}
    assert second.blocked == {"distilled": "teacher"}
    monkeypatch.undo()
    assert read_run(first["distilled"].folder) == first["distilled"]


@pytest.mark.slow
def test_several_processes_refuse_it_too(server, tmp_path):
    store, edited = tmp_path / "store", write_toy(tmp_path / "edited")
    path = edited / "replications" / "toy" / "experiment.py"
    path.write_text(path.read_text().replace("training.predict_logits(model, data.train.inputs)", "logits"))
    first = server.run(store, *CHAIN)
    shutil.rmtree(first["finished"]["teacher/0"])
    second = server.run(store, *CHAIN, workers=2, root=edited)
    assert second["failed"].keys() == {"assistant/0"}
    assert "as it was trained with; found " in second["failed"]["assistant/0"]
    assert second["blocked"].keys() == {"grandchild/0"}
    assert second["finished"].keys() == {"teacher/0", "baseline/0"}


# ---- a parent that is the same


def test_a_pruned_parent_is_the_same(session, store):
    first = session(*CHAIN).runs
    for arm in ("teacher", "assistant"):
        assert prune(first[arm]) > 0
    second = session(*CHAIN)
    assert second.runs == first
    assert second.of("reused", "notice", "started") == [("reused", arm) for arm in CHAIN]


def test_a_run_from_before_parents_were_recorded_is_reused(session, store):
    first = session(*CHAIN).runs
    rewrite(first["assistant"], parents=None, trace=None)
    tampered_soft_targets(first["teacher"])
    second = session(*CHAIN)
    assert second.runs.keys() == set(CHAIN)
    assert (second.runs["assistant"].parents, second.runs["assistant"].trace) == ({}, {})


def test_children_of_a_parent_that_is_not_in_the_plan_are_reused(toy, session, store):
    first = session("distilled").runs
    shutil.rmtree(first["teacher"].folder)
    jobs = [job for job in plan(toy, toy.profile("quick"), ["distilled"], (0,), CPU, {}) if "distilled" in job.arms]
    summary = execute(jobs, store, compute=CPU, folders={})
    assert list(summary.finished.values()) == [first["distilled"]]


# ---- a parent that changes while its child is trained


class Killed(BaseException):
    """Like Ctrl-C, this is no error of the run."""


def test_a_child_that_was_begun_with_another_parent_starts_again(toy, session, store, tmp_path):
    first = session("teacher").runs

    def die(event):
        if (event.kind, event.job.arms[0], event.epoch) == ("epoch", "distilled", 2):
            raise Killed

    with pytest.raises(Killed):
        execute(
            plan(toy, toy.profile("quick"), ["distilled"], (0,), CPU, {}),
            store,
            compute=CPU,
            folders={},
            report=die,
        )
    tampered_soft_targets(first["teacher"])
    clean = Store(tmp_path / "clean")
    shutil.copytree(first["teacher"].folder, clean.run_folder(first["teacher"].id))
    second, whole = session("distilled"), session("distilled", into=clean)
    (notice,) = (text for kind, _, text in second.events if kind == "notice")
    assert "holds a checkpoint of other source files than these, or of another parent" in notice
    assert len(second.of("epoch")) == 3
    assert contents(store.folder) == contents(clean.folder)
    assert second.runs["distilled"].parents["teacher"]["soft_targets"] == file_digest(
        first["teacher"], "soft_targets.safetensors"
    )
    assert whole.runs["distilled"].trace == second.runs["distilled"].trace


def test_a_child_goes_on_if_its_parent_was_pruned_meanwhile(toy, session, store):
    first = session("teacher").runs

    def die(event):
        if (event.kind, event.job.arms[0], event.epoch) == ("epoch", "distilled", 2):
            raise Killed

    jobs = plan(toy, toy.profile("quick"), ["distilled"], (0,), CPU, {})
    with pytest.raises(Killed):
        execute(jobs, store, compute=CPU, folders={}, report=die)
    prune(first["teacher"])
    assert len(session("distilled").of("epoch")) == 1


# ---- files of a run


def test_weights_put_into_a_pruned_run_are_refused(session):
    runs = session("teacher", "distilled").runs
    prune(runs["teacher"])
    shutil.copy(runs["distilled"].folder / "weights.safetensors", runs["teacher"].folder)
    found = read_run(runs["teacher"].folder)
    with pytest.raises(DamagedFile) as error:
        found.weights("final")
    text = str(error.value)
    assert f"expected the weights of run {found.id}, SHA-256 {found.weights_sha256}" in text
    assert f"found {runs['distilled'].weights_sha256}; delete the file" in text


def test_a_pruned_runs_own_weights_may_come_back(session, tmp_path):
    run = session("teacher").runs["teacher"]
    before = run.weights("final")
    shutil.copy(run.folder / "weights.safetensors", tmp_path)
    prune(run)
    shutil.copy(tmp_path / "weights.safetensors", run.folder)
    assert all(torch.equal(value, before[name]) for name, value in read_run(run.folder).weights("final").items())


def test_weights_with_a_fitting_manifest_that_are_not_the_runs_are_damage(session, store):
    """They are set aside and trained again, to the same bytes."""
    first = session("distilled").runs
    before = contents(store.folder)
    shutil.copy(first["distilled"].folder / "weights.safetensors", first["teacher"].folder)
    write_manifest(first["teacher"].folder)
    with pytest.raises(DamagedFile, match=f"expected the weights of run {first['teacher'].id}, SHA-256 "):
        read_run(first["teacher"].folder, check=False)
    second = session("distilled")
    assert second.trained == ["teacher"]
    assert second.runs.keys() == {"teacher", "distilled"}
    assert contents(store.folder) == before


@pytest.mark.parametrize("pruned", [False, True], ids=["", "pruned afterwards"])
def test_soft_targets_that_the_manifest_does_not_list_are_refused(session, pruned):
    runs = session("teacher", "baseline").runs
    shutil.copy(runs["teacher"].folder / "soft_targets.safetensors", runs["baseline"].folder)
    if pruned:
        prune(runs["baseline"])
    found = read_run(runs["baseline"].folder)
    assert found.digests() == {"weights": runs["baseline"].weights_sha256}
    with pytest.raises(KDError, match=r"expected soft targets in .*, found none; it was not trained as a teacher"):
        found.soft_targets("final.train")


def test_pruning_does_not_bless_soft_targets_that_were_altered(session):
    run = session("teacher").runs["teacher"]
    path = run.folder / "soft_targets.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    prune(run)
    with pytest.raises(DamagedFile, match=r"soft_targets\.safetensors: expected SHA-256"):
        read_run(run.folder)


# ---- notices


def made_elsewhere(run, device=None, **versions):
    about = dict(run.environment)
    about |= {"device": device or about["device"], "versions": about["versions"] | versions}
    rewrite(run, environment=about)


def test_reuse_from_another_processor_is_told_once_for_all_runs(session):
    for run in session("grandchild", "baseline", seeds=(0, 1)).summary.finished.values():
        made_elsewhere(run, "Other CPU")
    again = session("grandchild", "baseline", seeds=(0, 1))
    assert again.trained == []
    (text,) = [text for kind, _, text in again.events if kind == "notice"]
    assert text.startswith("reused runs were made elsewhere: device Other CPU, here ")
    assert "\n" not in text


def test_reuse_with_other_versions_is_told_once_and_names_those(session):
    runs = session("grandchild", "baseline").summary.finished.values()
    for run in runs:
        made_elsewhere(run, torch="2.0.0")
    (text,) = [text for kind, _, text in session("grandchild", "baseline").events if kind == "notice"]
    assert text == (
        f"reused runs were made elsewhere: torch 2.0.0, here {torch.__version__}. Other processors and versions round "
        "differently"
    )


def test_each_other_processor_is_told(session):
    for number, run in enumerate(session("grandchild", "baseline").summary.finished.values()):
        made_elsewhere(run, f"CPU {number % 2}")
    texts = [text for kind, _, text in session("grandchild", "baseline").events if kind == "notice"]
    assert len(texts) == 2


def test_reuse_here_is_not_told(session):
    session("grandchild", "baseline")
    assert session("grandchild", "baseline").of("notice") == []


# ---- records


def test_records_with_trace_and_parents_come_back(session, tmp_path):
    path, runs = tmp_path / "runs.jsonl", session("distilled").runs
    records = [record_of(run, "quick", {arm: "final"}, "toy") for arm, run in runs.items()]
    write_records(path, records)
    content = path.read_bytes()
    found = read_records(path)
    assert sorted(found, key=lambda r: r.run) == sorted(records, key=lambda r: r.run)
    by_arm = {next(iter(record.arms)): record for record in found}
    assert by_arm["distilled"].trace == runs["distilled"].trace
    assert by_arm["distilled"].trace["steps"] == 9
    assert by_arm["distilled"].parents == {"teacher": runs["teacher"].digests()}
    assert by_arm["teacher"].parents == {}
    write_records(path, found)
    assert path.read_bytes() == content
    assert content.count(b'"parents":{"teacher":{"soft_targets":"') == 1  # no key for a run without parents


def test_records_from_before_keep_their_bytes(session, tmp_path):
    """A line without trace and parents is read and written as it is."""
    path, (run,) = tmp_path / "runs.jsonl", session("baseline").runs.values()
    old = asdict(record_of(run, "quick", {"baseline": "final"}, "toy"))
    del old["trace"], old["parents"]
    line = json.dumps(old, sort_keys=True, separators=(",", ":")) + "\n"
    path.write_text(line)
    (record,) = read_records(path)
    assert (record.trace, record.parents) == ({}, {})
    write_records(path, [record])
    assert path.read_text() == line
    traced = record_of(run, "quick", {"other": "final"}, "toy")
    write_records(path, [traced, record])
    assert line in path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize(("key", "value"), [("trace", []), ("trace", True), ("parents", "teacher")])
def test_records_with_another_kind_of_trace_or_parents_are_refused(session, tmp_path, key, value):
    path, (run,) = tmp_path / "runs.jsonl", session("baseline").runs.values()
    content = asdict(replace(record_of(run, "quick", {"baseline": "final"}, "toy"), **{key: value}))
    path.write_text(json.dumps(content) + "\n")
    with pytest.raises(KDError, match=rf"runs.jsonl, line 1: expected {key} to be an object"):
        read_records(path)


@pytest.mark.parametrize(("key", "value"), [("trace", []), ("parents", []), ("parents", {"teacher": "0" * 64})])
def test_runs_with_another_kind_of_trace_or_parents_are_damaged(session, key, value):
    (run,) = session("baseline").runs.values()
    rewrite(run, **{key: value})
    with pytest.raises(DamagedFile, match=rf"run\.json: expected {key}\b.* to be "):
        read_run(run.folder)
