"""The loop at its edges: wrong losses and batches, frozen modules, short batches, NumPy, models of several outputs."""

import math
from collections import namedtuple
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlib.augment import balanced_draw, flip_and_shift, mixup
from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import hard_and_soft, soft_target_kl
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import derive_seed, generator
from kdlib.targets import SoftTargets
from kdlib.training import NonFiniteLoss, Progress, cosine, epochs, evaluating, hard_targets, predict_logits

N, K, SIZE = 22, 3, 8
FOUND = []  # of the test of default devices


def network():
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, K))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(0, "weights", index)) / 2)
    return model


@pytest.fixture
def examples():
    inputs = torch.randn(N, 5, generator=generator(0, "inputs"))
    return Examples(inputs, inputs[:, :K].argmax(1), "data")


def train(model, batches, objective=hard_targets, count=1, seed=0, body=lambda epoch: None, progress=None):
    progress = progress or Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for epoch in epochs(progress, batches, objective, count=count, seed=seed):
        body(epoch)
    return progress


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


# ---- the loss


def each(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch.labels, reduction="none")


@pytest.mark.parametrize(
    "objective",
    [each, lambda o, b: each(o, b).mean().view(1), lambda o, b: (hard_targets(o, b), 0), lambda o, b: 0.5],
    ids=["each example", "one element", "tuple", "number"],
)
def test_a_loss_that_is_not_one_number_is_refused_before_a_step(examples, objective):
    model = network()
    before = weights(model)
    with pytest.raises(KDError, match=r"expected one loss for the batch.*loss\.mean\(\)"):
        train(model, Batches(examples, SIZE, 0), objective)
    after = weights(model)
    assert all(torch.equal(before[name], after[name]) for name, _ in model.named_parameters())


def test_a_loss_without_a_gradient_is_refused(examples):
    with pytest.raises(KDError, match="without a gradient"):
        train(network(), Batches(examples, SIZE, 0), lambda outputs, batch: hard_targets(outputs.detach(), batch))


@pytest.mark.parametrize("reduce", [lambda loss: loss.mean(), lambda loss: loss[:, None], lambda loss: loss[:1]])
def test_replicas_need_one_loss_each(examples, reduce):
    model = Replicas([nn.Linear(5, K) for _ in range(2)])

    def objective(outputs, batch):
        return reduce(torch.vmap(nn.functional.cross_entropy)(outputs, batch.labels))

    with pytest.raises(KDError, match=r"one loss for each of the 2 replicas.*torch\.vmap"):
        train(model, side_by_side([Batches(examples, SIZE, seed) for seed in (0, 1)]), objective, seed=(0, 1))


# ---- what is said about a loss that is not finite


@pytest.mark.parametrize(("row", "value"), [(0, math.nan), (N - 1, math.inf)])
def test_nan_in_the_inputs_is_named_and_not_the_learning_rate(examples, row, value):
    inputs = examples.inputs.clone()
    inputs[row, 2] = value
    with pytest.raises(NonFiniteLoss, match=rf"the batch's inputs have {value} at \[\d, 2\]") as error:
        train(network(), Batches(replace(examples, inputs=inputs), SIZE, 0))
    assert "learning rate" not in str(error.value)
    step = int(str(error.value).partition("step ")[2].split()[0])
    order = Batches(examples, SIZE, 0).order(1).tolist()
    assert (step - 1) * SIZE <= order.index(row) < step * SIZE


def test_before_the_first_step_the_learning_rate_is_not_to_blame(examples):
    model = network()
    nn.init.constant_(model[4].bias, math.nan)
    with pytest.raises(NonFiniteLoss, match="no step had been made, so check the initial weights"):
        train(model, Batches(examples, SIZE, 0))


# ---- batches


def test_a_data_loader_is_refused_with_the_way_to_use_it(examples):
    loader = DataLoader(TensorDataset(examples.inputs, examples.labels), batch_size=SIZE)
    with pytest.raises(KDError, match=r"found DataLoader; .*kdlib/README\.md"):
        train(network(), loader)
    with pytest.raises(KDError, match=r"Batch\(inputs, labels, row numbers, soft targets\).* found list in epoch 1"):
        train(network(), lambda epoch: loader)
    with pytest.raises(KDError, match="found generator"):
        train(network(), iter(Batches(examples, SIZE, 0)(1)))


def test_batches_of_arrays_are_refused(examples):
    inputs, labels, rows = examples.inputs.numpy(), examples.labels, torch.arange(N)
    for batch in (Batch(inputs, labels, rows), Batch(examples.inputs, labels.numpy(), rows)):
        with pytest.raises(KDError, match="found ndarray in epoch 1"):
            train(network(), lambda epoch, batch=batch: [batch])
    for name, parts in (("inputs", (inputs, labels)), ("labels", (examples.inputs, labels.numpy()))):
        with pytest.raises(KDError, match=rf"use torch\.as_tensor\({name}\)"):
            Examples(*parts, "data")


def test_batches_that_are_used_up_are_refused_in_the_second_epoch(examples):
    once = iter(list(Batches(examples, SIZE, 0)(1)))
    with pytest.raises(KDError, match="expected batches in epoch 2, found none"):
        train(network(), lambda epoch: once, count=2)


def test_an_iterator_of_files_trains_as_the_same_data_in_memory(examples, tmp_path):
    batches = Batches(examples, SIZE, 0)

    def from_files(epoch):
        for number, batch in enumerate(batches(epoch)):
            torch.save({"x": batch.inputs, "y": batch.labels, "rows": batch.indices}, tmp_path / "part.pt")
            part = torch.load(tmp_path / "part.pt", weights_only=True)
            assert number < len(batches)
            yield Batch(part["x"], part["y"], part["rows"])

    first, second = network(), network()
    train(first, batches, count=2), train(second, from_files, count=2)
    assert same(weights(first), weights(second))


@pytest.mark.parametrize("count", [22, 24, 300])
def test_drop_last_leaves_out_the_rest_of_the_same_order(count):
    examples = Examples(torch.arange(count).float().view(count, 1), torch.zeros(count, dtype=torch.int64), "data")
    soft = SoftTargets(torch.arange(2.0 * count).view(count, 2), "run", "data")
    whole, cut = (Batches(examples, SIZE, 3, soft, drop_last=drop) for drop in (False, True))
    found = list(cut(2))
    assert len(found) == len(cut) == count // SIZE
    assert {len(batch.inputs) for batch in found} == {SIZE}
    rows = torch.cat([batch.indices for batch in found])
    assert torch.equal(rows, whole.order(2)[: len(found) * SIZE])
    assert torch.equal(torch.cat([batch.soft for batch in found]), soft.logits[rows])
    assert torch.equal(torch.cat([batch.inputs for batch in found])[:, 0].long(), rows)
    stacked = list(side_by_side([cut, Batches(examples, SIZE, 4, soft, drop_last=True)])(2))
    assert [batch.inputs.shape for batch in stacked] == [(2, SIZE, 1)] * len(found)
    assert torch.equal(torch.cat([batch.indices[0] for batch in stacked]), rows)
    assert cut.about()["drop_last"]
    assert "drop_last" not in whole.about()


def test_a_single_last_row_stops_batch_norm_unless_it_is_dropped(examples):
    short = Batches(examples.select(torch.arange(17)), SIZE, 0)
    with pytest.raises(ValueError, match="more than 1 value"):
        train(network(), short)
    train(network(), Batches(examples.select(torch.arange(17)), SIZE, 0, drop_last=True))


def test_sizes_that_make_no_batch_are_refused(examples):
    for size, drop_last in ((0, False), (-1, False), (N + 1, True)):
        with pytest.raises(KDError, match="batch size of at least 1"):
            Batches(examples, size, 0, drop_last=drop_last)
    with pytest.raises(KDError, match="labels from 0 to 1"):
        Batches(examples, SIZE, 0, classes=2)


# ---- NumPy


def test_numpys_numbers_are_numbers(examples):
    first, second = network(), network()
    train(first, Batches(examples, SIZE, 4), count=2, seed=4)
    progress = Progress(second, torch.optim.SGD(second.parameters(), lr=np.float64(9)))
    batches = Batches(examples, np.int64(SIZE), np.int64(4))
    for _ in epochs(
        progress, batches, hard_targets, count=np.int64(2), seed=np.int64(4), rate=lambda _: np.float64(0.1)
    ):
        progress.record(score=np.float32(0.5))
    assert same(weights(first), weights(second))
    assert progress.history[0]["score"] == 0.5
    found = predict_logits(first, examples.inputs.numpy(), np.int64(7))
    torch.testing.assert_close(found, predict_logits(first, examples.inputs))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 0.1}, "rate: expected a function from the epoch .* rate=lambda epoch: 0.1"),
        ({"count": -1}, "count: expected a whole number of 0 or more, found -1"),
        ({"count": 1.5}, "count: expected a whole number of 0 or more, found 1.5"),
        ({"seed": "0"}, "seed: expected a whole number, found '0'"),
        ({"seed": None}, "seed: expected a whole number, found None"),
        ({"seed": [0.5]}, "seed: expected a whole number, found 0.5"),
    ],
)
def test_settings_of_a_loop_that_are_none_are_told(examples, settings, told):
    model = network()
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loop = epochs(progress, Batches(examples, SIZE, 0), hard_targets, **{"count": 1, "seed": 0} | settings)
    with pytest.raises(KDError, match=told):
        next(loop)


@pytest.mark.parametrize("augment", [lambda inputs: inputs, lambda epoch: lambda inputs: None])
def test_an_augmentation_that_is_no_function_of_the_epoch_is_told(examples, augment):
    batches = Batches(examples, SIZE, 0, augment=augment, view="noise")
    with pytest.raises(KDError, match="augment: expected a function of the epoch that returns a function"):
        train(network(), batches)


def test_size_and_seed_of_batches_are_whole_numbers(examples):
    with pytest.raises(KDError, match="size: expected a whole number, found '8'"):
        Batches(examples, "8", 0)
    with pytest.raises(KDError, match=r"seed: expected a whole number, found 0\.5"):
        Batches(examples, 8, 0.5)


@pytest.mark.parametrize("value", ["x", None, torch.ones(2)])
def test_what_is_no_number_is_not_recorded(examples, value):
    model = network()
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(KDError, match="accuracy: expected a number to record"):
        train(model, Batches(examples, SIZE, 0), body=lambda _: progress.record(accuracy=value), progress=progress)


def test_a_checkpoints_name_is_one_of_a_file(examples):
    model = network()
    with pytest.raises(KDError, match="checkpoint: expected a path, found 'a"):
        Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint="a\0b")


def test_a_checkpoint_may_be_in_the_home_folder(examples, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = network()
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint="~/of mine/checkpoint")
    train(model, Batches(examples, SIZE, 0), progress=progress)
    assert (tmp_path / "of mine" / "checkpoint").exists()
    for path, told in (("", "an empty text"), ("~nobody at all/c", "without ~")):
        with pytest.raises(KDError, match=f"checkpoint: expected a path.*{told}"):
            Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=path)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_default_device_changes_nothing(examples, device):
    """It is often set in notebooks; no tensor of kdlib may be made there. On the device "meta" none has a value."""
    model, draws = network(), generator(0, "draws")
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), traced=True)
    soft = SoftTargets(torch.randn(N, K, generator=generator(0, "soft")), "teacher", "data")
    pictures = torch.arange(48.0).view(1, 3, 4, 4)

    def mixed_rows(epoch):
        return mixup(balanced_draw(examples.labels, N, K, generator(epoch, "rows")), 0.2, generator(epoch, "weights"))

    with torch.device(device):
        sham = soft.permuted_within_classes(examples.labels, generator(0, "sham"))
        batches = Batches(examples, SIZE, 0, sham)
        train(model, batches, lambda o, b: soft_target_kl(o, b.soft, 2.0), progress=progress)
        train(model, Batches(examples, SIZE, 0, mix=mixed_rows, classes=K), count=2, progress=progress)
        moved = [flip_and_shift(pictures, 1, draws) for _ in range(5)]
    assert progress.traces[0]["steps"] == 6
    assert progress.traces[0]["probe"] is not None
    FOUND.append({**weights(model), **{str(number): value for number, value in enumerate(moved)}})
    assert same(FOUND[0], FOUND[-1])


def test_several_seeds_are_for_replicas(examples):
    with pytest.raises(KDError, match="expected one seed for one model, found 2"):
        train(network(), Batches(examples, SIZE, 0), seed=(0, 1))


def test_the_cosine_does_not_rise_again():
    assert cosine(0.1, 4)(4) == pytest.approx(0.05 * (1 + math.cos(0.75 * math.pi)))
    for epoch in (0, 5, 6):
        with pytest.raises(KDError, match="epoch of the cosine"):
            cosine(0.1, 4)(epoch)
    for count in (0, -3, 2.5):
        with pytest.raises(KDError, match="count of the cosine"):
            cosine(0.1, count)


# ---- what is frozen remains frozen


@pytest.mark.parametrize(
    "body",
    [lambda model: None, lambda model: model.eval(), lambda model: (model.eval(), model.train())],
    ids=["nothing", "left in evaluation mode", "put back by hand"],
)
def test_frozen_batch_norm_stays_frozen_in_every_epoch_and_loop(examples, body):
    model = network()
    model[1].eval()
    averages, modes = weights(model[1]), []
    model[3].register_forward_hook(lambda module, *_: modes.append((module.training, model[1].training)))
    batches = Batches(examples, SIZE, 0)
    progress = train(model, batches, count=2, body=lambda epoch: body(model))
    if not model[1].training:
        train(model, batches, count=3, body=lambda epoch: body(model), progress=progress)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(averages[name], model[1].state_dict()[name])
    assert set(modes) == {(True, False)}
    assert not torch.equal(averages["weight"], model[1].weight)  # its weights are trained all the same


def test_a_model_that_is_in_evaluation_mode_as_a_whole_is_trained(examples):
    model = network().eval()
    train(model, Batches(examples, SIZE, 0))
    assert model[1].num_batches_tracked == 3


def test_a_frozen_layer_ends_where_a_hand_written_loop_ends(examples):
    model, by_hand = network(), network()
    model[1].eval()
    model[0].requires_grad_(False)
    train(model, Batches(examples, SIZE, 0), count=1)
    by_hand.train()[1].eval()
    by_hand[0].requires_grad_(False)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1)
    torch.manual_seed(derive_seed(0, "layers", 1))
    for batch in Batches(examples, SIZE, 0)(1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(batch.inputs), batch.labels).backward()
        optimizer.step()
    assert same(weights(model), weights(by_hand))


def test_a_teacher_within_the_student_or_in_the_objective_stays_in_evaluation_mode(examples):
    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = network(), network().eval().requires_grad_(False)

        def forward(self, x):
            return self.student(x), self.teacher(x)

    model = Joint()
    before, modes = weights(model.teacher), []
    model.teacher[3].register_forward_hook(lambda module, *_: modes.append(module.training))

    def within(outputs, batch):
        return hard_and_soft(outputs[0], outputs[1], batch.labels, 0.5, 0.5, 2.0)

    optimizer = torch.optim.SGD(model.student.parameters(), lr=0.1)
    train(model, Batches(examples, SIZE, 0), within, 2, progress=Progress(model, optimizer))
    teacher = network().train()
    teacher[3].register_forward_hook(lambda module, *_: modes.append(module.training))

    def asked(outputs, batch):
        with evaluating(teacher):
            hint = teacher[:2](batch.inputs)
        assert not hint.requires_grad
        return hard_and_soft(outputs, predict_logits(teacher, batch.inputs), batch.labels, 0.5, 0.5, 2.0)

    train(network(), Batches(examples, SIZE, 0), asked)
    assert same(before, weights(model.teacher))
    assert same(before, weights(teacher))
    assert modes
    assert not any(modes)


# ---- predictions of models with several outputs, and of data that are not in memory


class Several(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.layer, self.wrap = nn.Linear(5, K), wrap

    def forward(self, x):
        return self.wrap(x.sum(1, keepdim=True), self.layer(x))


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


class ModelOutput(dict):
    """As of a library of language models: keys, attributes and numbers."""

    def __getitem__(self, key):
        return dict.__getitem__(self, key) if isinstance(key, str) else list(self.values())[key]


Pair = namedtuple("Pair", "hidden logits")


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda h, z: (h, z), 1),
        (lambda h, z: [h, z], -1),
        (lambda h, z: {"hidden": h, "logits": z}, "logits"),
        (Pair, "logits"),
        (Pair, 1),
        (Output, "logits"),
        (lambda h, z: ModelOutput(hidden=h, logits=z), "logits"),
        (lambda h, z: ModelOutput(hidden=h, logits=z), 1),
    ],
)
def test_output_picks_one_of_several(examples, wrap, output):
    model = Several(wrap)
    found = predict_logits(model, examples.inputs, size=8, output=output)
    assert torch.allclose(found, examples.inputs @ model.layer.weight.T + model.layer.bias, atol=1e-6)
    with pytest.raises(KDError, match="pick one with output="):
        predict_logits(model, examples.inputs)
    for wrong in ("absent", 7):
        with pytest.raises(KDError, match="output: expected a part of the model's outputs"):
            predict_logits(model, examples.inputs, output=wrong)


def test_outputs_that_are_not_one_row_for_each_input_are_refused(examples):
    with pytest.raises(KDError, match="leave it out"):
        predict_logits(nn.Linear(5, K), examples.inputs, output=0)
    squeezed = nn.Sequential(nn.Linear(5, K))
    squeezed.register_forward_hook(lambda module, inputs, outputs: outputs.squeeze(0))
    with pytest.raises(KDError, match="expected one row of outputs for each of 1 inputs"):
        predict_logits(squeezed, examples.inputs, size=N - 1)


def test_inputs_may_come_from_an_iterator(examples):
    model = nn.Linear(5, K)
    loader = DataLoader(TensorDataset(examples.inputs, examples.labels), batch_size=5)
    expected = predict_logits(model, examples.inputs)
    torch.testing.assert_close(predict_logits(model, (inputs for inputs, labels in loader)), expected)
    for wrong, message in (
        (loader, "of a DataLoader use"),
        (list(examples.inputs), "torch.stack for a list of examples"),
        (iter(()), "without such parts"),
    ):
        with pytest.raises(KDError, match=message):
            predict_logits(model, wrong)
    with pytest.raises(KDError, match="size: expected a number from 1"):
        predict_logits(model, examples.inputs, size=0)


def test_a_model_of_several_outputs_trains_if_the_objective_picks(examples):
    model = Several(lambda h, z: (h, z))
    with pytest.raises(KDError, match="pick one of the outputs"):
        train(model, Batches(examples, SIZE, 0))
    train(model, Batches(examples, SIZE, 0), lambda outputs, batch: hard_targets(outputs[1], batch))
