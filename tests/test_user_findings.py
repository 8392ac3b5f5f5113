"""What users of the loop and of its checkpoints do: second loops, other folders, links, quantisation, odd networks."""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from kdlib.architecture import refuse_what_cannot_be_stacked
from kdlib.augment import flip_and_shift, mixup
from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import binary_distillation
from kdlib.metrics import accuracy
from kdlib.networks import he_normal_, keras_glorot_
from kdlib.replicas import Replicas
from kdlib.seeds import generator
from kdlib.specialists import specialist_rows
from kdlib.targets import SoftTargets
from kdlib.training import Progress, epochs, hard_targets, predict_logits

INPUTS = torch.randn(24, 4, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :3].argmax(1))


def made(model=None, **settings):
    model = model or keras_glorot_(nn.Linear(4, 3), generator(0, "weights"))
    return Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), **settings)


def train(progress, count=2, body=lambda epoch: None):
    for epoch in epochs(progress, Batches(EXAMPLES, 8, 0), hard_targets, count=count, seed=0):
        body(epoch)
    return progress


# ---- a second loop


def test_a_second_loop_without_an_epoch_to_train_is_refused():
    progress = train(made(), 3)
    with pytest.raises(KDError, match="more than 3 epochs, which this Progress has trained, found count=3; it counts"):
        train(progress, 3)
    with pytest.raises(KDError, match="write count=5 for 2 more"):
        train(progress, 2)
    assert train(progress, 4).epoch == 4
    assert train(progress, 0).epoch == 4  # asks for nothing


# ---- where the checkpoint is


def test_a_checkpoint_stays_where_it_is_if_the_program_changes_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    train(made(checkpoint="c"), 2, lambda epoch: os.chdir(tmp_path / "sub"))
    os.chdir(tmp_path)
    assert made(checkpoint="c").epoch == 2
    assert [*(tmp_path / "sub").iterdir()] == []


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_is_followed(tmp_path, exists):
    scratch, link = tmp_path / "scratch" / "c", tmp_path / "c"
    scratch.parent.mkdir()
    if exists:
        train(made(checkpoint=scratch), 1)
    link.symlink_to(scratch)
    progress = train(made(checkpoint=link), 2)
    assert progress.notice == ""
    assert link.is_symlink()
    assert made(checkpoint=scratch).epoch == 2
    assert {path.name for path in tmp_path.iterdir()} == {"c", "scratch"}


# ---- buffers that change their shape


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_student_in_quantisation_aware_training_goes_on(tmp_path):
    def student():
        model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        keras_glorot_(model, generator(0, "weights"))
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        return torch.ao.quantization.prepare_qat(model.train())

    whole = train(made(student()), 3)
    train(made(student(), checkpoint=tmp_path / "c"), 1)
    resumed = made(student(), checkpoint=tmp_path / "c")
    assert resumed.epoch == 1
    train(resumed, 3)
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


class Bank(nn.Module):
    """A dense layer that remembers its inputs."""

    def __init__(self, rows=0, persistent=True):
        super().__init__()
        self.dense = nn.Linear(4, 3)
        self.register_buffer("bank", torch.zeros(rows, 4), persistent=persistent)

    def forward(self, x):
        self.bank = torch.cat([self.bank, x.detach()])
        return self.dense(x)


def banked(**settings):
    return keras_glorot_(Bank(**settings), generator(0, "weights"))


def test_a_buffer_that_grows_is_refused_at_the_first_checkpoint(tmp_path):
    progress = made(Bank(), checkpoint=tmp_path / "c")
    with pytest.raises(KDError, match=r"found bank of shape \(24, 4\), then \(0, 4\); a new network could not load"):
        train(progress, 1)
    assert not [*tmp_path.iterdir()]
    progress = train(made(banked(persistent=False), checkpoint=tmp_path / "d"), 1)
    again = made(banked(persistent=False), checkpoint=tmp_path / "d")
    assert again.epoch == 1
    assert again.model.bank.shape == (24, 4)
    assert torch.equal(again.model.bank, progress.model.bank)


def test_the_checkpoint_of_a_network_with_a_larger_buffer_is_refused(tmp_path):
    class Fixed(Bank):
        def forward(self, x):
            return self.dense(x)

    train(made(Fixed(2), checkpoint=tmp_path / "c"), 1)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(KDError, match="bank"):
        made(Fixed(3), checkpoint=tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before


# ---- whose a checkpoint is


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label": 3}, r"label: expected str, found int; write label=f'seed \{seed\}'"),
        ({"label": None}, "label: expected str, found NoneType"),
        ({"about": "T=4"}, r"about: expected Mapping, found str; write about=\{'temperature': 4\.0\}"),
        ({"about": [("T", 4.0)]}, "about: expected Mapping, found list"),
        ({"extras": {0: nn.Linear(2, 2)}}, "name of an extra: expected str, found int"),
        ({"extras": [nn.Linear(2, 2)]}, "extras: expected Mapping, found list; name each"),
    ],
)
@pytest.mark.parametrize("resumable", [False, True])
def test_what_a_checkpoint_could_not_say_is_refused_before_training(tmp_path, settings, said, resumable):
    with pytest.raises(KDError, match=said):
        made(checkpoint=tmp_path / "c" if resumable else None, **settings)


def scheduled(folder, *names):
    """A training with two schedulers, of which the checkpoint has those named."""
    model = keras_glorot_(nn.Linear(4, 3), generator(0, "weights"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    both = {
        "warm-up": torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=7),
        "steps": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    }
    extras = {name: both[name] for name in names}
    return Progress(model, optimizer, checkpoint=folder / "c", extras=extras), both


def test_a_second_scheduler_that_the_checkpoint_lacks_is_refused(tmp_path):
    progress, both = scheduled(tmp_path, "steps")
    with pytest.raises(KDError, match="found that Progress does not have LinearLR; name each of them in Progress"):
        train(progress)
    del both["warm-up"]
    assert train(progress, 1).epoch == 1
    (tmp_path / "c").unlink()
    progress, both = scheduled(tmp_path, "steps", "warm-up")
    train(progress)


@pytest.mark.parametrize("sequential", [True, False])
def test_the_parts_of_a_scheduler_come_with_it(tmp_path, sequential):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.StepLR(optimizer, 1)]
    whole = (
        torch.optim.lr_scheduler.SequentialLR(optimizer, parts, [2])
        if sequential
        else torch.optim.lr_scheduler.ChainedScheduler(parts)
    )
    progress = Progress(model, optimizer, checkpoint=tmp_path / "c", extras={"s": whole})
    assert train(progress, 1).epoch == 1


class Accumulating(torch.optim.SGD):
    def zero_grad(self, set_to_none=True):
        pass


class Clearing(torch.optim.SGD):
    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)


def test_gradients_that_a_checkpoint_would_lose_are_refused(tmp_path):
    def progress(kind, **settings):
        model = keras_glorot_(nn.Linear(4, 3), generator(0, "weights"))
        return Progress(model, kind(model.parameters(), lr=0.1), **settings)

    with pytest.raises(KDError, match="clears the gradients before each step, found Accumulating, which keeps them"):
        train(progress(Accumulating, checkpoint=tmp_path / "c"))
    train(progress(Accumulating))  # nothing can be lost
    train(progress(Clearing, checkpoint=tmp_path / "d"))


class WithFunction(torch.optim.SGD):
    def __init__(self, weights, function):
        super().__init__([{"params": [*weights], "schedule": function, 1: 2}], lr=0.1)


def test_a_function_among_an_optimizers_settings_is_no_other_training(tmp_path):
    def progress():
        model = keras_glorot_(nn.Linear(4, 3), generator(0, "weights"))
        return Progress(model, WithFunction(model.parameters(), lambda z: z), checkpoint=tmp_path / "c")

    train(progress(), 1)
    assert progress().epoch == 1


@pytest.mark.parametrize("entry", [{"ok": True}, {"n": 2**70}, {"x": float("nan")}, {1: 2.0}], ids=str)
def test_a_history_that_could_not_be_read_back_is_not_written(tmp_path, entry):
    progress = made(checkpoint=tmp_path / "c")
    with pytest.raises(KDError, match="expected finite numbers under names in the history"):
        train(progress, 1, lambda epoch: progress.history[-1].update(entry))
    assert [*tmp_path.iterdir()] == []


# ---- networks


@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4)])
def test_replicas_are_told_what_inputs_they_take(shape):
    replicas = Replicas([keras_glorot_(nn.Linear(4, 3), generator(seed, "weights")) for seed in range(2)])
    for predict in (replicas, lambda inputs: predict_logits(replicas, inputs)):
        with pytest.raises(KDError, match=r"inputs \(R, B, \.\.\.\) of R = 2 members, found .*let member\(i\) predict"):
            predict(torch.zeros(shape))


def test_a_binary_loss_without_soft_targets_says_where_they_come_from():
    with pytest.raises(KDError, match=r"found NoneType; give them with Batches\(\.\.\., soft=\.\.\.\)"):
        binary_distillation(torch.zeros(2), None, torch.tensor([0, 1]), 0.5)


def test_a_padding_index_cannot_be_stacked():
    """torch's vmap leaves the padding out for the first member only."""
    with pytest.raises(KDError, match="padding_idx in the embedding '0'; leave it out, and set the padding to 0"):
        refuse_what_cannot_be_stacked(nn.Sequential(nn.Embedding(10, 4, padding_idx=0)), has_draws=True)
    refuse_what_cannot_be_stacked(nn.Sequential(nn.Embedding(10, 4)), has_draws=True)


def test_a_model_without_weights_of_its_own_is_trained(tmp_path):
    """Features pass through, and the head belongs to the loss."""
    head = None

    def progress():
        nonlocal head
        head = keras_glorot_(nn.Linear(4, 3), generator(0, "weights"))
        return Progress(
            nn.Flatten(), torch.optim.SGD(head.parameters(), lr=0.1), checkpoint=tmp_path / "c", extras={"head": head}
        )

    def objective(outputs, batch):
        return nn.functional.cross_entropy(head(outputs), batch.labels)

    first = progress()
    for _ in epochs(first, Batches(EXAMPLES, 8, 0), objective, count=2, seed=0):
        pass
    assert first.history[1]["training_loss"] < first.history[0]["training_loss"]
    assert progress().epoch == 2


def test_switched_off_gradients_are_told():
    for off in (torch.no_grad(), torch.inference_mode()):
        progress = made()
        with off, pytest.raises(KDError, match="expected gradients, found them switched off; train outside of torch"):
            train(progress)


# ---- labels, tables and generators


@pytest.mark.parametrize("labels", [torch.ones(24, 5, dtype=torch.int64), torch.ones(24, 5), torch.ones(24)])
def test_labels_that_are_no_classes_are_told_how_they_are_trained(labels):
    with pytest.raises(KDError, match=r"for several labels of an input.*yields Batch\(inputs, labels, row numbers\)"):
        Examples(INPUTS, labels)
    with pytest.raises(KDError, match=r"found torch\.int32 of shape \(24,\); use labels\.long\(\), or without"):
        Examples(INPUTS, torch.ones(24, dtype=torch.int32))


@pytest.mark.parametrize("columns", [3, 4])
def test_a_table_of_pandas_is_an_array(columns):
    logits = np.random.default_rng(0).normal(size=(6, columns))
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % columns
    assert accuracy(pd.DataFrame(logits), pd.Series(labels)) == pytest.approx(5 / 6)


@pytest.mark.parametrize("wrong", [0, None, np.random.default_rng(0)], ids=["seed", "none", "NumPy"])
def test_what_is_no_generator_is_refused(wrong):
    soft = SoftTargets(torch.zeros(6, 3), "teacher", "data")
    calls = [
        lambda: soft.permuted_within_classes([0, 1, 2] * 2, wrong),
        lambda: mixup(torch.arange(4), 0.2, wrong),
        lambda: flip_and_shift(torch.zeros(2, 1, 8, 8), 2, wrong),
        lambda: keras_glorot_(nn.Linear(2, 2), wrong),
        lambda: he_normal_(nn.Linear(2, 2), wrong),
        lambda: specialist_rows(torch.arange(4), (0, 1), wrong),
    ]
    for call in calls:
        with pytest.raises(KDError, match=r"generator: expected Generator, found .*; write kdlib\.seeds\.generator"):
            call()
