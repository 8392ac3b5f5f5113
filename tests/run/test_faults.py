"""What goes wrong outside: full disks, stores that cannot be written, many processes at once, a teacher at chance."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from kdlib.errors import KDError
from kdlib.run.store import Store, read_run
from tests.conftest import contents
from tests.toy import EPOCHS

ARMS = ("teacher", "distilled", "baseline")


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    store = tmp_path_factory.mktemp("whole")
    assert len(server.run(store, *ARMS)["finished"]) == 3
    return contents(store)


def finished(answer):
    return {name.partition("/")[0] for name in answer["finished"]}


@pytest.mark.slow
@pytest.mark.parametrize("limit", [100, 2000, 4000])
def test_a_full_disk_is_told_and_loses_nothing(server, whole, tmp_path, limit):
    """A limit on file sizes acts as a full disk: at the first byte, in a checkpoint, in the teacher's weights."""
    store = tmp_path / "store"
    server.run(store, "baseline")
    before = contents(store)
    answer = server.run(store, *ARMS, limit=limit)
    assert finished(answer) == {"baseline"}
    assert "the disk is full or a size limit was hit (File too large); free some space" in answer["failed"]["teacher/0"]
    assert "Nothing that was complete is lost" in answer["failed"]["teacher/0"]
    assert set(answer["blocked"]) == {"distilled/0"}
    assert contents(store) == before
    again = server.run(store, *ARMS)
    assert finished(again) == set(ARMS)
    assert contents(store) == whole


@pytest.mark.slow
def test_a_disk_too_full_for_the_traceback(server, tmp_path):
    """An error stops only its own arm, even if its traceback cannot be written."""
    answer = server.run(tmp_path / "store", "crashed", "refused", limit=10)
    assert answer["failed"]["crashed/0"].startswith(
        "ZeroDivisionError: ünexpected (its traceback could not be written: "
    )
    assert answer["failed"]["refused/0"] == "refused, seed 0: a reason a user can act on"


@pytest.mark.parametrize("part", ["", "runs", "work", "locks"])
def test_a_file_in_the_way_of_a_folder(server, whole, tmp_path, part):
    store = tmp_path / "store"
    path = store / part if part else store
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    answer = server.run(store, "baseline")
    assert answer["error"] == ""
    assert re.search("could not be written|expected a folder .* found a file or a link", answer["failed"]["baseline/0"])
    assert "Traceback" not in answer["failed"]["baseline/0"]
    assert path.read_text() == "in the way"
    path.unlink()
    assert finished(server.run(store, "baseline")) == {"baseline"}
    assert contents(store).items() <= whole.items()


def test_a_store_that_may_only_be_read_serves_what_it_holds(server, whole, tmp_path):
    """Files are in the way, since root ignores permissions: complete runs are found, a new one says what is wrong."""
    store = tmp_path / "store"
    server.run(store, "baseline")
    for path in (store / "work", store / "locks"):
        for inner in path.iterdir():
            inner.unlink()
        path.rmdir()
        path.write_text("in the way")
    assert finished(server.run(store, "baseline")) == {"baseline"}
    answer = server.run(store, "baseline", "teacher")
    assert finished(answer) == {"baseline"}
    assert "choose another store with --store DIR" in answer["failed"]["teacher/0"]


def test_an_error_of_training_is_not_blamed_on_the_lock(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(PermissionError, match="of the training"), store.lock("run"):
        raise PermissionError("of the training")
    with store.lock("run"):  # and the lock is free again
        pass


def test_eight_processes_want_one_run(server, whole, tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    waits = [server.start(store, ("distilled",), TOY_LOG=str(log), TOY_SLEEP="0.01") for _ in range(8)]
    answers = [wait() for wait in waits]
    assert all(finished(answer) == {"teacher", "distilled"} for answer in answers)
    assert contents(store).items() <= whole.items()
    epochs = Counter(log.read_text().splitlines())
    assert len(epochs) == 2 * EPOCHS
    assert set(epochs.values()) == {1}
    assert sorted(path.name for path in store.iterdir()) == ["locks", "runs", "work"]


def test_eight_processes_find_one_damaged_run(server, whole, tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    (folder,) = server.run(store, "baseline")["finished"].values()
    path = store / "runs" / folder.rpartition("/")[2] / "weights.safetensors"
    path.write_bytes(b"")
    waits = [server.start(store, ("baseline",), TOY_LOG=str(log), TOY_SLEEP="0.01") for _ in range(8)]
    assert all(finished(wait()) == {"baseline"} for wait in waits)
    assert contents(store).items() <= whole.items()
    assert read_run(path.parent).folder == path.parent
    assert any(not (aside / "weights.safetensors").read_bytes() for aside in (store / "damaged").iterdir())


def test_a_lock_of_a_killed_process_is_free(server, tmp_path):
    assert server.run(tmp_path / "store", "baseline", TOY_KILL="step:5")["killed"]
    assert list((tmp_path / "store" / "locks").iterdir())
    assert finished(server.run(tmp_path / "store", "baseline")) == {"baseline"}


def test_a_nan_loss_names_arm_epoch_and_step(server, tmp_path):
    answer = server.run(tmp_path / "store", "diverged", "baseline")
    assert finished(answer) == {"baseline"}
    text = answer["failed"]["diverged/0"]
    assert text.startswith("diverged, seed 0: expected a finite loss, found nan at epoch ")
    assert ", step " in text
    again = server.run(tmp_path / "store", "diverged")["failed"]["diverged/0"]
    assert again == text  # also when it resumes from its last good epoch


def test_a_teacher_at_chance_is_refused():
    """Its students would learn nothing from it (test_engine: a refused parent blocks them)."""
    from kdlib.batches import Examples
    from replications.ecg import experiment as ecg

    labels = torch.tensor([0] * 16 + [1, 2, 3, 4])
    part = Examples(torch.eye(5)[labels], labels, "d")
    data = SimpleNamespace(train=part, validation=part, test=part)
    run = SimpleNamespace(label="teacher, seed 0", data=data, config=ecg.SMOKE, parents={})
    model = torch.nn.Linear(5, 5)

    def result(weight, keep_targets):
        kept = {"final": {"weight": weight, "bias": torch.zeros(5)}}
        history = [{"validation_loss": 1.0, "validation_macro_f1": 0.5}]
        return ecg.result(run, model, SimpleNamespace(kept=kept, history=history), keep_targets)

    words = r"teacher, seed 0: expected a teacher above chance \(0\.178, .* its students are not started"
    with pytest.raises(KDError, match=words):
        result(torch.zeros(5, 5), keep_targets=True)
    assert result(torch.zeros(5, 5), keep_targets=False).metrics["final"]["accuracy"] == 0.8  # a student may be poor
    assert "final.train" in result(torch.eye(5), keep_targets=True).soft_targets
