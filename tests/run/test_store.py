"""The store: ids, what is saved and found again, what damage does, pruning, ten thousand runs."""

import errno
import json
import math
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from kdlib.errors import KDError
from kdlib.files import DamagedFile, canonical_json, read_file, sha256
from kdlib.run import store as runs
from kdlib.run.store import Description, Result, Store, prune, read_run, write_manifest

DESCRIPTION = Description(
    "source/train_teacher",
    1,
    {"epochs": 3, "rate": 0.1, "draws": "plain", "threads": 1},
    0,
    "data",
    {"teacher": "0123456789abcdef/final"},
)
WEIGHTS = {"final": {"layer.weight": torch.arange(6.0).reshape(2, 3)}, "best": {"layer.weight": torch.ones(2, 3)}}
LOGITS = torch.tensor([[1.0, -2.0, 0.1], [10.0, 0.3, -7.7]])
RESULT = Result(
    {"final": {"accuracy": 0.5, "confusion": [[1, 2], [3, 4]]}},
    [{"training_loss": 0.25}],
    WEIGHTS,
    {"final.train": LOGITS},
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def run(store):
    return store.save(DESCRIPTION, RESULT, {"commit": "abc"})


def rewrite(run, change):
    """Alter run.json and write a manifest that fits, as an attacker would."""
    path = run.folder / "run.json"
    record = json.loads(path.read_text())
    path.write_text(change(record) or json.dumps(record))
    write_manifest(run.folder)


# ---- ids


def test_id_is_the_sha256_of_the_description_written_out():
    text = (
        '{"config":{"draws":"plain","epochs":3,"rate":0.1,"threads":1},"data":"data","parents":{"teacher":'
        '"0123456789abcdef/final"},"protocol":1,"recipe":"source/train_teacher","seed":0}'
    )
    assert DESCRIPTION.id == sha256(text.encode())[:16]


def test_id_does_not_depend_on_the_order_of_keys():
    turned = replace(DESCRIPTION, config=dict(reversed(DESCRIPTION.config.items())))
    assert list(turned.config) != list(DESCRIPTION.config)
    assert turned.id == DESCRIPTION.id


def test_every_field_moves_the_id():
    others = [
        replace(DESCRIPTION, **change)
        for change in (
            {"recipe": "source/train_student"},
            {"protocol": 2},
            {"seed": 1},
            {"data": "other"},
            {"parents": {}},
            {"parents": {"teacher": "0123456789abcdef/best"}},
            {"parents": {"assistant": "0123456789abcdef/final"}},
            *(
                {"config": {**DESCRIPTION.config, key: value}}
                for key, value in [
                    ("epochs", 4),
                    ("rate", 0.1000000001),
                    ("draws", "mixup"),
                    ("threads", 2),
                    ("new", None),
                ]
            ),
        )
    ]
    assert len({DESCRIPTION.id, *(other.id for other in others)}) == len(others) + 1


# ---- saving and finding


def test_what_is_saved_is_found(store, run):
    found = store.find(DESCRIPTION)
    assert found == run
    assert found.id == DESCRIPTION.id == found.folder.name
    assert found.description == DESCRIPTION
    assert found.metrics == RESULT.metrics
    assert found.history == RESULT.history
    assert found.environment == {
        "commit": "abc",
        "stored_bytes": sum(
            (found.folder / name).stat().st_size for name in ("weights.safetensors", "soft_targets.safetensors")
        ),
    }
    for snapshot in WEIGHTS:
        assert torch.equal(found.weights(snapshot)["layer.weight"], WEIGHTS[snapshot]["layer.weight"])
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "manifest.json",
        "run.json",
        "soft_targets.safetensors",
        "weights.safetensors",
    ]
    assert store.find(replace(DESCRIPTION, seed=1)) is None
    assert store.ids() == [run.id]
    assert store.resolve(run.id[:3]) == run


def test_soft_targets_are_rounded_to_float16(run):
    found = run.soft_targets("final.train")
    assert found.dtype == torch.float32
    assert found[0, 2] == 0.0999755859375  # the float16 nearest to 0.1
    assert torch.equal(found, LOGITS.half().float())


def test_unknown_parts_are_refused_with_those_there_are(run, store):
    with pytest.raises(KDError, match=r"expected snapshot 'last', found best, final"):
        run.weights("last")
    with pytest.raises(KDError, match=r"expected snapshot 'final.test', found final.train"):
        run.soft_targets("final.test")
    student = store.save(replace(DESCRIPTION, seed=5), replace(RESULT, soft_targets={}), {})
    with pytest.raises(KDError, match="not trained as a teacher"):
        student.soft_targets("final.train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": {"final": {"accuracy": math.nan}}}, r"metrics\.final\.accuracy to be a finite number.*found nan"),
        ({"history": [{"loss": math.inf}]}, r"history\.0\.loss to be a finite number.*found inf"),
        (
            {"soft_targets": {"final.train": LOGITS * 1e5}},
            r"final\.train: expected finite logits .*65504.*found 100000\.0",
        ),
        ({"soft_targets": {"final.train": LOGITS * math.nan}}, "found nan"),
    ],
)
def test_a_result_that_is_not_finite_is_not_stored(store, change, words):
    with pytest.raises(KDError, match=words):
        store.save(DESCRIPTION, replace(RESULT, **change), {})
    assert store.find(DESCRIPTION) is None
    assert store.ids() == []


def test_saving_removes_what_unfinished_tries_left(store):
    work = store.work_folder(DESCRIPTION.id)
    (work / "finished").mkdir(parents=True)
    (work / "finished" / "strange.bin").write_text("of a killed try")
    (work / "checkpoint.safetensors").write_text("x")
    run = store.save(DESCRIPTION, RESULT, {})
    assert not work.exists()
    assert not (run.folder / "strange.bin").exists()


def test_prefixes_that_are_not_one_run(store, run):
    for prefix in ("", "zz", "../runs", run.id + "0"):
        with pytest.raises(KDError, match="expected the beginning of one id"):
            store.resolve(prefix)


def test_an_empty_store_is_no_error(tmp_path):
    assert Store(tmp_path / "nothing").ids() == []
    assert Store(tmp_path / "nothing").find(DESCRIPTION) is None
    assert not (tmp_path / "nothing").exists()


def test_a_store_copied_elsewhere_works(tmp_path, store, run):
    shutil.copytree(store.folder, tmp_path / "elsewhere")
    shutil.rmtree(store.folder)
    found = Store(tmp_path / "elsewhere").find(DESCRIPTION)
    assert found == replace(run, folder=tmp_path / "elsewhere" / "runs" / run.id)
    assert found.weights("final").keys() == {"layer.weight"}


def test_runs_of_two_stores_merge_by_copying(tmp_path, store, run):
    other = Store(tmp_path / "other").save(replace(DESCRIPTION, seed=1), RESULT, {})
    shutil.copytree(tmp_path / "other" / "runs", store.folder / "runs", dirs_exist_ok=True)
    assert store.ids() == sorted([run.id, other.id])
    assert store.find(other.description).metrics == other.metrics


# ---- damage


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "emptied": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
STORED = ["weights.safetensors", "soft_targets.safetensors", "run.json", "manifest.json"]


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_run_is_named_set_aside_and_counts_as_absent(store, run, name, damage):
    damage(run.folder / name)
    before = {path.name for path in run.folder.iterdir()}
    blamed = (
        r"\w+\.\w+" if (name, damage) == ("manifest.json", flip) else re.escape(name)
    )  # a flipped hash blames its file
    with pytest.raises(DamagedFile, match=f"{run.id}/{blamed}: "):
        read_run(run.folder)
    told = []
    assert store.find(DESCRIPTION, told.append) is None
    assert re.search(f"{run.id}/{blamed}: ", told[0])
    assert "Set aside as" in told[0]
    assert not run.folder.exists()
    (aside,) = (store.folder / "damaged").iterdir()
    assert aside.name.startswith(run.id)
    assert str(aside) in told[0]
    assert {path.name for path in aside.iterdir()} == before
    assert store.save(DESCRIPTION, RESULT, {"commit": "abc"}) == run


@pytest.mark.parametrize("function", ["lstat", "iterdir"])
def test_a_store_that_may_not_be_read(store, run, monkeypatch, function):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, function, refuse)
    with pytest.raises(KDError, match=r"cannot be read \(Permission denied\)"):
        store.ids()


def test_a_run_that_is_pruned_while_it_is_read_is_not_damaged(store, run, monkeypatch):
    def read(path, **rest):
        content = read_file(path, **rest)
        if path.name == "manifest.json" and (run.folder / "weights.safetensors").exists():
            monkeypatch.undo()
            prune(run)
        return content

    monkeypatch.setattr("kdlib.run.finished.read_file", read)
    assert store.find(DESCRIPTION) == run
    assert not (run.folder / "weights.safetensors").exists()
    assert not (store.folder / "damaged").exists()


def test_a_good_run_that_was_copied_there_meanwhile_is_not_set_aside(store, run):
    """`find` saw nothing, or a damaged run; then, during the training, someone put a good one there."""
    trained_here = replace(RESULT, weights={"final": {"w": torch.zeros(2)}})
    assert store.save(DESCRIPTION, trained_here, {}).weights_sha256 == run.weights_sha256
    assert not (store.folder / "damaged").exists()
    assert not store.work_folder(run.id).exists()
    (run.folder / "manifest.json").unlink()
    assert store.save(DESCRIPTION, trained_here, {}).weights_sha256 != run.weights_sha256
    assert len(list((store.folder / "damaged").iterdir())) == 1


def test_damage_seen_by_two_at_once_is_set_aside_once(store, run):
    target = store.set_aside(run.folder)
    store.set_aside(run.folder)  # the other process comes late
    assert [target] == list((store.folder / "damaged").iterdir())


def test_a_damaged_run_that_cannot_be_moved(store, run):
    (run.folder / "weights.safetensors").unlink()
    (store.folder / "damaged").write_text("in the way")
    with pytest.raises(KDError, match="damaged, and cannot be moved"):
        store.find(DESCRIPTION)


def test_a_run_under_another_name_is_not_that_run(store, run):
    other = replace(DESCRIPTION, seed=9)
    run.folder.rename(store.run_folder(other.id))
    with pytest.raises(DamagedFile, match=f"belongs to run {run.id}"):
        read_run(store.run_folder(other.id))
    assert store.find(other) is None


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "manifest",
    [
        '{"run.json": "x", "../../../../etc/passwd": "x"}',
        '{"run.json": "x", "/etc/passwd": "x"}',
        '{"run.json": "x", "..": "x"}',
        '{"run.json": "x", "a\\u0000b": "x"}',
        '{"run.json": "x", "\\u001b[2J": "x"}',
        '{"run.json": "x", "\\ud800": "x"}',
        '{"run.json": "x", "": "x"}',
        '{"run.json": "x", "a/b": "x"}',
        "{}",
        "[]",
        "7",
        "null",
        "",
        "{",
        '{"run.json": NaN}',
        '{"run.json": 1e999}',
        "[" * 100_000,
        '{"weights.safetensors": "x"}',
        "\ufeff{}",
        '{"run.json":' + "9" * 5000 + "}",
    ],
)
def test_hostile_manifests(run, manifest, check):
    (run.folder / "manifest.json").write_text(manifest)
    with pytest.raises(DamagedFile, match=r"manifest\.json: expected") as caught:
        read_run(run.folder, check=check)
    str(caught.value).encode()  # can be printed,
    assert "\x1b" not in str(caught.value)  # and does nothing to a terminal


@pytest.mark.parametrize("expected", [7, None, [], {}, "", "x" * 64, 1.5, True])
def test_hostile_hashes(run, expected):
    manifest = json.loads((run.folder / "manifest.json").read_text())
    (run.folder / "manifest.json").write_text(json.dumps({**manifest, "run.json": expected}))
    with pytest.raises(DamagedFile, match=r"run\.json: expected SHA-256"):
        read_run(run.folder)


@pytest.mark.parametrize(
    "text",
    [
        '{"description": NaN}',
        '{"a": 1e999}',
        '{"a": -1e999}',
        '{"a": Infinity}',
        "[]",
        "",
        "null",
        '"text"',
        "[" * 100_000,
        "{}",
        '{"description": {}}',
        '{"description": []}',
        '{"description": null}',
        '{"a": "\udcff"}',
        "<script>alert(1)</script>",
    ],
)
def test_hostile_records(run, text):
    (run.folder / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    write_manifest(run.folder)
    with pytest.raises(DamagedFile, match=r"run\.json: expected"):
        read_run(run.folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("metrics", [], r"metrics to be an object, found \[\]"),
        ("metrics", {"final": 3}, "metrics.final to be an object, found 3"),
        (
            "metrics",
            {"good": {}, "final": {"a": 1, "b": 10**30}},
            "metrics.final.b to be a whole number <= 9223372036854775",
        ),
        ("metrics", {"\x1b[2J": 3}, r"metrics.'\\x1b\[2J' to be an object, found 3"),
        ("metrics", None, "metrics to be an object, found None"),
        ("history", {}, "history to be a list, found {}"),
        ("history", [1], "history.0 to be an object, found 1"),
        ("history", [{}, {"loss": 1}, {"loss": "low"}], "history.2.loss to be a number, found 'low'"),
        ("history", [{"loss": True}], "history.0.loss to be a number, found True"),
        ("environment", "x", "environment to be an object, found 'x'"),
        ("environment", None, "environment to be an object, found None"),
        ("environment", {"clean": "yes"}, "environment.clean to be true or false or null, found 'yes'"),
        ("environment", {"seconds": "\x1b"}, r"environment.seconds to be a number, found '\\x1b'"),
        ("environment", {"versions": ["torch"]}, r"environment.versions to be an object, found \['torch'\]"),
        ("environment", {"versions": {"torch": 2}}, "environment.versions.torch to be text, found 2"),
        ("environment", {"replication": 7}, "environment.replication to be text, found 7"),
        ("trace", {"steps": 1}, "the key 'network' in trace, found 'steps'"),
        ("parents", {"teacher": {"weights": None}}, "parents.teacher.weights to be text, found None"),
        ("weights_sha256", 5, "weights_sha256 to be text, found 5"),
        ("weights_sha256", "7" * 5000, "SHA-256 7{64}, found"),
    ],
)
def test_records_of_other_types_are_named_by_their_key(run, key, value, expected):
    rewrite(run, lambda record: record.update({key: value}))
    with pytest.raises(DamagedFile, match=rf"\w\.\w+: expected .*{expected}") as caught:
        read_run(run.folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("value", [1, 1.0, -0.0, 1e-300, 5e-324, 2**62, 0.1 + 0.2])
def test_numbers_keep_their_type_and_their_bits(run, value):
    rewrite(run, lambda record: record.update(metrics={"final": {"a": value, "b": [value]}}, history=[{"c": value}]))
    found = read_run(run.folder)
    for number in (found.metrics["final"]["a"], found.metrics["final"]["b"][0], found.history[0]["c"]):
        assert (type(number), repr(number)) == (type(value), repr(value))


def test_what_a_later_version_adds_to_the_environment_is_kept(run):
    rewrite(run, lambda record: record["environment"].update(later={"new": [1]}))
    assert read_run(run.folder).environment["later"] == {"new": [1]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", 1),
        ("recipe", ["<b>"]),
        ("protocol", "1"),
        ("protocol", True),
        ("config", []),
        ("config", "x"),
        ("seed", 0.0),
        ("seed", None),
        ("data", {}),
        ("parents", []),
        ("parents", {"teacher": 1}),
    ],
)
def test_descriptions_of_other_types(store, run, key, value):
    """Even in a folder whose name fits them; the key is named."""
    forged = {**asdict(DESCRIPTION), key: value}
    rewrite(run, lambda record: record.update(description=forged))
    folder = run.folder.rename(store.run_folder(sha256(canonical_json(forged).encode())[:16]))
    with pytest.raises(DamagedFile, match=rf"run\.json: expected description\.{key}\b.* to be .*, found "):
        read_run(folder)


def test_an_altered_description_with_a_fitting_manifest(run):
    rewrite(run, lambda record: record["description"].update(seed=1))
    with pytest.raises(DamagedFile, match="the record was altered or the folder renamed"):
        read_run(run.folder)


def test_unknown_keys_of_a_description(run):
    rewrite(run, lambda record: record["description"].update(more=1))
    with pytest.raises(DamagedFile, match="expected no key 'more' in description, found "):
        read_run(run.folder)


# ---- pruning


def test_pruning_drops_the_weights_and_keeps_the_rest(store, run):
    size = (run.folder / "weights.safetensors").stat().st_size
    before = sha256((run.folder / "weights.safetensors").read_bytes())
    assert prune(run) == size
    found = store.find(DESCRIPTION)
    assert found == run
    assert found.weights_sha256 == before
    assert torch.equal(found.soft_targets("final.train"), LOGITS.half().float())
    with pytest.raises(KDError, match=r"weights were pruned; delete .* and run again"):
        found.weights("final")
    assert prune(found) == 0


@pytest.mark.parametrize(("owner", "name"), [(Path, "unlink"), (runs, "atomic_write")])
def test_killed_while_pruning_is_no_damage(store, run, monkeypatch, owner, name):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        prune(run)
    monkeypatch.undo()
    assert store.find(DESCRIPTION) == run


# ---- many


@pytest.mark.slow
def test_ten_thousand_runs_are_listed_in_five_seconds(store):
    """Each with the history of a quick run, its files just written."""
    record = {
        "metrics": {"final": RESULT.metrics["final"]},
        "environment": {"commit": "abc"},
        "weights_sha256": "0" * 64,
        "history": [{f"metric_{i}": epoch / 7 + i for i in range(4)} for epoch in range(12)],
    }
    description = asdict(DESCRIPTION)
    rest = json.dumps(record)[1:]
    for seed in range(10_000):
        description["seed"] = seed
        folder = store.run_folder(sha256(canonical_json(description).encode())[:16])
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"description": ' + json.dumps(description) + ", " + rest)
        (folder / "manifest.json").write_text('{"run.json": "0"}')
    began = time.process_time()
    listed = [read_run(store.run_folder(run_id), check=False) for run_id in store.ids()]
    seconds = time.process_time() - began
    assert sorted(run.description.seed for run in listed) == list(range(10_000))
    assert seconds < 5  # of the processor: other work on the machine does not count
