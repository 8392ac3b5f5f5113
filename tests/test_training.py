"""The loop against one written by hand; modes, schedules, selection, checkpoints."""

import copy
import math
import os
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.batches import Batch, Batches, Examples, TeacherAtChance
from kdlib.checkpoint import CheckpointDamaged
from kdlib.cost import prediction_cost
from kdlib.losses import hard_and_soft
from kdlib.seeds import derive_seed, generator
from kdlib.targets import SoftTargets
from kdlib.training import (
    NonFiniteLoss,
    Progress,
    cosine,
    epochs,
    evaluating,
    hard_targets,
    predict_logits,
    predict_soft_targets,
    train_step,
)

N, K, SIZE, SEED = 37, 3, 8, 4


def network(dropout=0.4):
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, K))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(SEED, "weights", index)) / 2)
    return model


@pytest.fixture
def examples():
    inputs = torch.randn(N, 5, generator=generator(0, "inputs"))
    return Examples(inputs, inputs[:, :K].argmax(1), "data")


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def bits(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- the loop


def test_loop_is_the_hand_written_loop(examples):
    """Three epochs of shuffled batches, Adam, dropout and batch norm: the same parameters to the last bit."""
    soft = SoftTargets(torch.randn(N, K, generator=generator(0, "teacher")) * 3, "run", "data")

    def objective(outputs, batch):
        return hard_and_soft(outputs, batch.soft, batch.labels, 0.1, 0.9, 4.0)

    model = network()
    progress = Progress(model, adam(model))
    assert list(epochs(progress, Batches(examples, SIZE, SEED, soft), objective, count=3, seed=SEED)) == [1, 2, 3]

    by_hand = network()
    optimizer = adam(by_hand)
    by_hand.train()
    for epoch in (1, 2, 3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(derive_seed(SEED, "order", epoch)))
        torch.manual_seed(derive_seed(SEED, "layers", epoch))
        losses = []
        for start in range(0, N, SIZE):
            rows = order[start : start + SIZE]
            logits = by_hand(examples.inputs[rows])
            loss = hard_and_soft(logits, soft.logits[rows], examples.labels[rows], 0.1, 0.9, 4.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert progress.history[epoch - 1]["training_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert same(bits(model), bits(by_hand))
    assert not same(bits(model), bits(network()))


def test_hard_targets_are_the_cross_entropy_with_the_labels_alone():
    logits = torch.tensor([[0.0, math.log(3), 0.0], [math.log(2), 0.0, 0.0]], dtype=torch.float64)
    batch = Batch(torch.zeros(2, 1), torch.tensor([1, 2]), torch.arange(2), soft=torch.full((2, K), math.nan))
    assert hard_targets(logits, batch).item() == pytest.approx((math.log(5 / 3) + math.log(4)) / 2, rel=1e-12)


def test_one_step_of_plain_descent_by_arithmetic():
    """w = 2, loss (3 w)^2: gradient 18 w = 36, so w becomes 2 - 0.1 * 36."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    examples = Examples(torch.tensor([[3.0]]).double(), torch.tensor([0]), "data")
    (batch,) = Batches(examples, 1, 0)(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.weight.grad = torch.tensor([[1e6]]).double()  # of an earlier step: must not be added
    loss = train_step(model, optimizer, lambda outputs, batch: outputs.square().mean(), batch)
    assert loss.item() == 36.0
    assert not loss.requires_grad
    assert model.weight.item() == pytest.approx(2.0 - 3.6, rel=1e-15)


def test_student_trains_again_after_a_validation(examples):
    """If the model stayed in evaluation mode, epoch 2 would have no dropout and fixed batch norm averages."""
    model = network()
    progress = Progress(model, adam(model))
    modes = []
    model[3].register_forward_hook(lambda module, *_: modes.append(module.training))
    averages = []
    for _ in epochs(progress, Batches(examples, SIZE, SEED), hard_targets, count=3, seed=SEED):
        model.eval()  # like a body that validates and forgets to switch back
        averages.append(model[1].running_mean.clone())
    steps = len(Batches(examples, SIZE, SEED))
    assert modes == [True] * 3 * steps
    assert not torch.equal(averages[0], averages[1])
    assert model[1].num_batches_tracked == 3 * steps


@pytest.mark.parametrize("draw", [torch.rand, np.random.randn, lambda count: random.gauss()])
def test_what_the_body_draws_does_not_move_the_next_epoch(examples, draw):
    found = []
    for disturb in (False, True):
        model = network()

        def objective(outputs, batch):
            return (1 + float(np.random.rand()) + random.random()) * hard_targets(outputs, batch)

        def rate(epoch):
            return 0.01 * float(torch.rand(()) + np.random.rand() + random.random())

        progress = Progress(model, adam(model))
        for _ in epochs(progress, Batches(examples, SIZE, SEED), objective, count=2, seed=SEED, rate=rate):
            if disturb:
                draw(17)
        found.append(bits(model))
    assert same(*found)


def test_global_generators_are_as_before_after_the_loop(examples):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    model, before = network(), states()
    for _ in epochs(Progress(model, adam(model)), Batches(examples, SIZE, SEED), hard_targets, count=1, seed=SEED):
        assert all(now != then for now, then in zip(states(), before, strict=True))
        np.random.rand(), random.random()
    assert states() == before


def test_dropout_differs_between_epochs(examples):
    model = network()
    masks = []
    model[3].register_forward_hook(lambda _, inputs, output: masks.append((output == 0) & (inputs[0] != 0)))
    batches = list(Batches(examples, N, SEED)(1))
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.0))
    list(epochs(progress, lambda epoch: batches, hard_targets, count=2, seed=SEED))
    assert not torch.equal(masks[0], masks[1])


def test_rate_is_applied_each_epoch(examples):
    model = network()
    optimizer = torch.optim.SGD(
        [{"params": model[:2].parameters()}, {"params": model[4].parameters(), "weight_decay": 0.1}], lr=0.5
    )
    seen = []

    def objective(outputs, batch):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return hard_targets(outputs, batch)

    def rate(epoch):
        return 0.01 if epoch < 3 else 0.001

    list(epochs(Progress(model, optimizer), Batches(examples, N, SEED), objective, count=4, seed=SEED, rate=rate))
    assert seen == [[0.01] * 2, [0.01] * 2, [0.001] * 2, [0.001] * 2]


def test_cosine_is_the_rate_of_torchs_scheduler():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(1, 8):
        assert cosine(0.3, 7)(epoch) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_without_a_rate_the_optimizers_own_is_kept(examples):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    list(epochs(Progress(model, optimizer), Batches(examples, N, SEED), hard_targets, count=2, seed=SEED))
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_a_rate_of_zero_trains_nothing(examples):
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    list(
        epochs(
            Progress(model, adam(model)),
            Batches(examples, SIZE, SEED),
            hard_targets,
            count=1,
            seed=SEED,
            rate=lambda _: 0.0,
        )
    )
    assert all(map(torch.equal, before, model.parameters()))


def test_breaking_off_is_early_stopping(examples):
    model = network()
    progress = Progress(model, adam(model))
    for epoch in epochs(progress, Batches(examples, SIZE, SEED), hard_targets, count=9, seed=SEED):
        if epoch == 2:
            break
    assert progress.epoch == len(progress.history) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_names_run_epoch_and_step(examples, value):
    model = network()
    steps = iter(range(1, 99))

    def objective(outputs, batch):
        return hard_targets(outputs, batch) * (value if next(steps) == 5 + 3 else 1.0)  # 5 steps an epoch

    with pytest.raises(NonFiniteLoss, match=rf"^baseline, seed 3: .*found {value} at epoch 2, step 3 of 5; lower the"):
        list(
            epochs(
                Progress(model, adam(model), label="baseline, seed 3"),
                Batches(examples, SIZE, SEED),
                objective,
                count=3,
                seed=SEED,
            )
        )


def test_a_non_finite_loss_is_told_although_the_batches_cannot_be_made_again(examples):
    """They step a scheduler that is at its end then."""
    model = network()
    optimizer = adam(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
    batches, left = Batches(examples, SIZE, SEED), iter([1.0] * 4 + [math.nan])

    def stepped(epoch):
        for batch in batches(epoch):
            yield batch
            scheduler.step()

    progress = Progress(model, optimizer, extras={"scheduler": scheduler})
    with pytest.raises(NonFiniteLoss, match="found nan at epoch 1, step 5 of 5; lower the learning rate"):
        list(epochs(progress, stepped, lambda o, b: hard_targets(o, b) * next(left), count=1, seed=SEED))


def test_a_run_that_diverged_leaves_the_last_good_epoch(examples, tmp_path):
    model = network()
    path = tmp_path / "checkpoint"
    with pytest.raises(NonFiniteLoss, match="epoch 2, step 2"):
        list(
            epochs(
                Progress(model, adam(model), checkpoint=path),
                Batches(examples, SIZE, SEED),
                hard_targets,
                count=9,
                seed=SEED,
                rate=lambda epoch: 0.01 if epoch < 2 else 1e38,
            )
        )
    again = network()
    assert Progress(again, adam(again), checkpoint=path).epoch == 1


def test_an_infinite_measurement_is_refused_with_its_name(examples):
    model = network()
    progress = Progress(model, adam(model), label="teacher, seed 0")
    for _ in epochs(progress, Batches(examples, SIZE, SEED), hard_targets, count=1, seed=SEED):
        with pytest.raises(
            NonFiniteLoss, match="teacher, seed 0: expected a finite validation_loss, found nan at epoch 1"
        ):
            progress.record(validation_loss=math.nan)
    assert progress.history[0].keys() == {"training_loss"}


# ---- evaluation


def test_teacher_is_in_evaluation_mode_while_it_makes_targets(examples):
    teacher = network().train()
    averages = teacher[1].running_mean.clone()
    modes = []
    for module in teacher.modules():
        module.register_forward_hook(lambda module, *_: modes.append(module.training))
    logits = predict_logits(teacher, examples.inputs)
    assert modes
    assert not any(modes)
    assert torch.equal(averages, teacher[1].running_mean)
    assert torch.equal(logits, predict_logits(teacher, examples.inputs))  # dropout would differ
    assert not logits.requires_grad
    assert teacher.training


def test_logits_are_those_of_the_layers_written_out(examples):
    model = network().eval()
    first, norm, _, _, last = model
    nn.init.uniform_(norm.running_var, 0.5, 2)
    hidden = (examples.inputs @ first.weight.T + first.bias - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    by_hand = torch.relu(hidden * norm.weight + norm.bias) @ last.weight.T + last.bias
    assert torch.allclose(predict_logits(model, examples.inputs), by_hand, atol=1e-5)


class Normalizes(nn.Module):
    """A network that changes its inputs in place, which harms nobody with a DataLoader: it gives copies."""

    def __init__(self):
        super().__init__()
        self.layer = network()

    def forward(self, inputs):
        inputs = inputs["pixels"] if isinstance(inputs, dict) else inputs
        return self.layer(inputs.div_(2).sub_(0.5))


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x.numpy(), lambda x: {"pixels": x}, lambda x: iter([x])])
def test_a_network_that_changes_its_inputs_in_place_changes_no_data(make, examples):
    model, own = Normalizes(), examples.inputs.clone()
    with torch.no_grad():
        expected = model.eval().layer(own / 2 - 0.5)
    for _ in range(2):
        torch.testing.assert_close(predict_logits(model, make(own)), expected)
    assert torch.equal(own, examples.inputs)


def test_soft_targets_of_a_network_that_changes_its_inputs_leave_the_examples(examples):
    own = Examples(examples.inputs.clone(), examples.labels)
    predict_soft_targets(Normalizes(), own)
    assert torch.equal(own.inputs, examples.inputs)
    prediction_cost(Normalizes(), own.inputs[:1])
    assert torch.equal(own.inputs, examples.inputs)


def test_soft_targets_of_a_teacher_carry_the_identity_of_data_and_teacher(examples):
    teacher = network()
    data = Examples(examples.inputs, predict_logits(teacher, examples.inputs).argmax(1), view="plain, cut")
    soft = predict_soft_targets(teacher, data, size=5)
    assert torch.equal(soft.logits, predict_logits(teacher, data.inputs, 5))
    assert (soft.data_digest, soft.view) == (data.digest, "plain, cut")
    assert data.check(soft) == 1.0
    other, model = network(), nn.DataParallel(teacher)
    nn.init.zeros_(other[4].bias)
    names = [predict_soft_targets(model, data).teacher_run for model in (teacher, other, model)]
    assert names[0] == soft.teacher_run == names[2] != names[1]
    assert predict_soft_targets(teacher, data, "mine").teacher_run == "mine"
    with pytest.warns(TeacherAtChance):
        predict_soft_targets(teacher, Examples(data.inputs, data.labels.roll(7)))


@pytest.mark.parametrize("size", [1, 8, N, 1000])
def test_logits_do_not_depend_on_the_size_of_the_parts(examples, size):
    seen = []
    model = network()
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    logits = predict_logits(model, examples.inputs, size)
    assert torch.allclose(logits, predict_logits(model, examples.inputs), atol=1e-6)
    assert logits.shape == (N, K)
    assert max(seen[:-1]) <= size


def mixed_modes():
    model = network().train()
    model[1].eval()  # a frozen batch norm in a model that trains
    return model, [module.training for module in model.modules()]


def test_each_modules_own_mode_is_put_back(examples):
    model, modes = mixed_modes()
    predict_logits(model, examples.inputs)
    assert [module.training for module in model.modules()] == modes


def test_modes_are_put_back_after_an_error(examples):
    model, modes = mixed_modes()
    with pytest.raises(RuntimeError, match="shapes"):
        predict_logits(model, examples.inputs[:, :2])
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    model.eval()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert not model.training


# ---- what is kept


def test_lowest_is_strictly_below_every_earlier_one():
    model = network()
    progress = Progress(model, adam(model))
    found = []
    for value in (3.0, 2.0, 2.0, 2.5, 1.0):
        progress.history.append({"training_loss": 0.0})
        progress.record(validation_loss=value)
        found.append(progress.is_lowest("validation_loss"))
    assert found == [True, True, False, False, True]


def test_kept_weights_stay_as_they_were_and_come_back(examples):
    model = network()
    progress = Progress(model, adam(model))
    after = {}
    for epoch in epochs(progress, Batches(examples, SIZE, SEED), hard_targets, count=3, seed=SEED):
        after[epoch] = bits(model)
        if epoch < 3:
            progress.keep("best")
    assert not same(after[2], after[3])
    progress.restore("best")
    assert same(bits(model), after[2])
    with torch.no_grad():
        model[0].weight.zero_()
    assert same(progress.kept["best"], after[2])  # the restored weights are a copy


# ---- checkpoints


def trained(path, examples, count=4, stop=None, make=adam):
    """Train to `count` epochs in all, or stop after epoch `stop`, and return the progress."""
    model = network()
    progress = Progress(model, make(model), checkpoint=path, label="run")
    for epoch in epochs(
        progress, Batches(examples, SIZE, SEED), hard_targets, count=count, seed=SEED, rate=lambda epoch: 0.02 / epoch
    ):
        progress.record(score=float(predict_logits(model, examples.inputs).std()))
        if progress.is_lowest("score") or epoch == 2:
            progress.keep("best")
        if epoch == 1:
            progress.keep("first")
        if epoch == stop:
            break
    return progress


def everything(progress):
    kept = {f"{name}/{key}": value for name, state in progress.kept.items() for key, value in state.items()}
    state = copy.deepcopy(progress.optimizer.state_dict())["state"]
    moments = {
        f"{index}/{key}": value
        for index, entry in state.items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    return progress.history, bits(progress.model) | kept | moments


def same_everything(first, second):
    (history, tensors), (other_history, other_tensors) = everything(first), everything(second)
    return history == other_history and same(tensors, other_tensors)


OPTIMIZERS = {
    "adam": adam,
    "amsgrad": lambda model: torch.optim.Adam(model.parameters(), amsgrad=True),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "plain": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "two groups": lambda model: torch.optim.AdamW(
        [{"params": model[:2].parameters()}, {"params": model[4].parameters()}]
    ),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_interrupted_and_resumed_equals_unbroken(tmp_path, examples, make, stop):
    unbroken = trained(None, examples, make=make)
    trained(tmp_path / "checkpoint", examples, stop=stop, make=make)
    resumed = trained(tmp_path / "checkpoint", examples, make=make)
    assert resumed.notice == ""
    assert same_everything(resumed, unbroken)
    assert (resumed.kept.keys()) == {"best", "first"}
    trained(tmp_path / "whole", examples, make=make)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "checkpoint").read_bytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, fused=True),
        lambda model: torch.optim.Adam(model.parameters(), lr=0.02, fused=True),
    ],
    ids=["sgd", "adam"],
)
def test_weights_of_another_memory_layout_resume_too(tmp_path, make):
    """Fused optimizers pair weights and moments by their place in memory, which a file does not keep."""
    examples = Examples(torch.randn(24, 3, 6, 6, generator=generator(0, "pictures")), torch.arange(24) % K, "pictures")

    def train(path, stop=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, K))
        model = model.to(memory_format=torch.channels_last)
        progress = Progress(model, make(model), checkpoint=path)
        for epoch in epochs(progress, Batches(examples, SIZE, SEED), hard_targets, count=3, seed=SEED):
            if epoch == stop:
                break
        return progress

    unbroken = train(None)
    train(tmp_path / "checkpoint", stop=2)  # the checkpoint is that of epoch 1
    resumed = train(tmp_path / "checkpoint")
    assert not resumed.model[0].weight.is_contiguous()
    assert same_everything(resumed, unbroken)


def test_a_resumed_run_repeats_one_epoch_at_most(tmp_path, examples):
    begun = Counter()
    batches = Batches(examples, SIZE, SEED)

    def counted(epoch):
        begun[epoch] += 1
        return batches(epoch)

    for stop in (1, 3, None):
        model = network()
        for epoch in epochs(
            Progress(model, adam(model), checkpoint=tmp_path / "c"), counted, hard_targets, count=4, seed=SEED
        ):
            if epoch == stop:
                break
    assert begun == {1: 2, 2: 1, 3: 2, 4: 1}


def test_a_finished_training_is_not_trained_further(tmp_path, examples):
    whole = trained(tmp_path / "c", examples)
    content = (tmp_path / "c").read_bytes()
    again = trained(tmp_path / "c", examples)
    assert same_everything(again, whole)
    assert (tmp_path / "c").read_bytes() == content


DAMAGES = {
    "flipped in the weights": lambda content: content[:-5] + bytes([content[-5] ^ 4]) + content[-4:],
    "flipped in the history": lambda content: re.sub(rb'(training_loss\\":)\d', rb"\g<1>9", content, count=1),
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by one byte": lambda content: content[:-1],
    "a pickle": lambda content: b"\x80\x04\x95" + content,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_training_gives_the_same(tmp_path, examples, damage):
    path = tmp_path / "checkpoint.safetensors"
    trained(path, examples, stop=3)
    damaged = damage(path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.warns(CheckpointDamaged, match="this run goes on from the checkpoint before it"):
        resumed = trained(path, examples)
    assert str(path) in resumed.notice
    assert "Set aside as checkpoint.safetensors.damaged; this run goes on from the checkpoint before" in resumed.notice
    assert path.with_name("checkpoint.safetensors.damaged").read_bytes() == damaged
    assert same_everything(resumed, trained(None, examples))


def resume(path):
    model = network()
    return Progress(model, adam(model), checkpoint=path, label="run")


@pytest.mark.parametrize("links", [True, False])
def test_the_checkpoint_before_the_last_one_is_kept(tmp_path, examples, monkeypatch, links):
    if not links:  # as on exFAT

        def refuse(*_):
            raise OSError(1, "Operation not permitted")

        monkeypatch.setattr("kdlib.files.os.link", refuse)
    path = tmp_path / "c"
    trained(path, examples, stop=2)  # stopped before the checkpoint of epoch 2
    assert os.listdir(tmp_path) == ["c"]
    first = path.read_bytes()
    trained(path, examples, stop=4)
    assert sorted(os.listdir(tmp_path)) == ["c", "previous-c"]
    assert (resume(path).epoch, resume(tmp_path / "previous-c").epoch) == (3, 2)
    path.write_bytes(b"")
    with pytest.warns(CheckpointDamaged):
        resumed = resume(path)
    assert resumed.epoch == 2
    path.write_bytes(first)
    assert resume(path).epoch == 1


def test_two_damaged_checkpoints_are_set_aside_and_kept(tmp_path, examples):
    path = tmp_path / "c"
    trained(path, examples, stop=3)
    path.write_bytes(b"\0last")
    (tmp_path / "previous-c").write_bytes(b"\0before")
    with pytest.warns(CheckpointDamaged) as told:
        resumed = trained(path, examples)
    assert [each.filename for each in told] == [__file__, __file__]
    assert "Set aside as c.damaged; this run goes on from the checkpoint before it." in resumed.notice
    assert "Set aside as c.damaged-2; this run starts from its first epoch." in resumed.notice
    assert [(tmp_path / name).read_bytes() for name in ("c.damaged", "c.damaged-2")] == [b"\0last", b"\0before"]
    assert same_everything(resumed, trained(None, examples))


def test_a_kill_while_a_damaged_checkpoint_is_set_aside_loses_nothing(tmp_path, examples, monkeypatch):
    path = tmp_path / "c"
    trained(path, examples, stop=3)
    path.write_bytes(b"\0damaged")

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("kdlib.files.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            resume(path)
    with pytest.warns(CheckpointDamaged, match=r"c\.damaged-2"):
        resumed = trained(path, examples)
    assert "goes on from the checkpoint before it" in resumed.notice
    assert same_everything(resumed, trained(None, examples))


def test_a_deleted_checkpoint_begins_a_new_training(tmp_path, examples):
    path = tmp_path / "c"
    trained(path, examples, stop=3)
    path.unlink()
    assert resume(path).epoch == 0
    trained(path, examples, stop=2)
    assert os.listdir(tmp_path) == ["c"]


def test_on_epoch_is_called_after_the_checkpoint_is_written(tmp_path, examples):
    model = network()
    path = tmp_path / "c"
    seen = []

    def on_epoch(progress):
        fresh = network()
        seen.append((progress.epoch, Progress(fresh, adam(fresh), checkpoint=path).history[-1]["score"]))

    progress = Progress(model, adam(model), checkpoint=path, on_epoch=on_epoch)
    for epoch in epochs(progress, Batches(examples, SIZE, SEED), hard_targets, count=2, seed=SEED):
        progress.record(score=epoch * 10)
    assert seen == [(1, 10.0), (2, 20.0)]
