"""A training that is run again ends as it did at the first time: scripts of two loops, and what the body changes."""

import pytest
import torch
from torch import nn

from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import soft_target_kl
from kdlib.progress import Progress
from kdlib.seeds import generator
from kdlib.training import epochs, hard_targets
from tests.made_runs import Killed

SEED = 5
INPUTS = torch.randn(20, 4, generator=generator(0, "inputs"))
BATCHES = Batches(Examples(INPUTS, INPUTS[:, :3].argmax(1)), 8, SEED)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))


class Stop(Exception):
    """Ends a script in the middle."""


def script(folder, stop=None):
    """Train a loop that stops early; measure; go on from the best weights; train another loop; measure again.

    Each loop has a checkpoint of its own. The script is stopped in a loop and an epoch, after a step.
    """
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    average, measured, trained = torch.optim.swa_utils.AveragedModel(model), [], []

    def measure():
        measured.append((len(trained), [value.clone() for value in model.state_dict().values()]))

    def progress(number, **settings):
        path = None if folder is None else folder / f"checkpoint-{number}"

        def loss(outputs, batch):
            if [number, made.epoch + 1] == stop and made.losses:
                raise Stop
            return hard_targets(outputs, batch) / number

        made = Progress(model, optimizer, checkpoint=path, **settings)
        return made, loss

    first, loss = progress(1, extras={"average": average})
    for epoch in epochs(first, BATCHES, loss, count=100, seed=SEED, rate=lambda epoch: 0.1 / epoch):
        trained.append((1, epoch))
        average.update_parameters(model)
        first.record(distance=abs(epoch - 3))
        if not first.is_lowest("distance"):
            break
        first.keep("best")
    measure()
    first.restore("best")
    measure()
    model.load_state_dict(average.module.state_dict())
    measure()
    optimizer.param_groups[0]["lr"] = 0.02
    second, loss = progress(2)
    for epoch in epochs(second, BATCHES, loss, count=2, seed=SEED + 1):
        trained.append((2, epoch))
    measure()
    return trained, [weights for _, weights in measured], second.history


def equal(one, other):
    return all(torch.equal(*pair) for parts in zip(one, other, strict=True) for pair in zip(*parts, strict=True))


@pytest.mark.parametrize("stop", [[1, 1], [1, 3], [1, 4], [2, 1], [2, 2], None])
def test_a_script_of_two_loops_measures_the_same_when_it_is_run_again(tmp_path, stop):
    trained, measured, history = script(None)
    assert trained == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]
    if stop:
        with pytest.raises(Stop):
            script(tmp_path, stop)
    for _ in range(2):
        again, found, same = script(tmp_path)
        assert equal(found, measured)
        assert same == history
    assert again == [(1, 4)]  # the loop was left before its checkpoint was written


def test_a_checkpoint_is_of_one_loop(tmp_path):
    progress = Progress(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c")
    assert [*epochs(progress, BATCHES, hard_targets, count=1, seed=SEED)] == [1]
    with pytest.raises(KDError, match="expected one loop for each checkpoint, found a second one; for another"):
        next(epochs(progress, BATCHES, hard_targets, count=2, seed=SEED))
    without = Progress(model := network(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert [*epochs(without, BATCHES, hard_targets, count=1, seed=SEED)] == [1]
    assert [*epochs(without, BATCHES, hard_targets, count=3, seed=SEED)] == [2, 3]


def loads(model, optimizer):
    model.load_state_dict(network().state_dict())


def resets(model, optimizer):
    optimizer.state.clear()


@pytest.mark.parametrize("change", [loads, resets])
def test_what_changes_the_weights_after_they_were_loaded_is_refused(tmp_path, change):
    def train(count):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        progress = Progress(model, optimizer, checkpoint=tmp_path / "c")
        change(model, optimizer)
        return [*epochs(progress, BATCHES, hard_targets, count=count, seed=SEED)]

    assert train(2) == [1, 2]
    for count in (2, 3):  # done, and not yet
        with pytest.raises(KDError, match="expected the weights and the optimizer state of the checkpoint"):
            train(count)


@pytest.mark.filterwarnings("ignore::kdlib.ownership.OtherStart")
def test_a_second_progress_is_made_after_the_first_loop(tmp_path):
    def train():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        first, second = (Progress(model, optimizer, checkpoint=tmp_path / name) for name in "ab")
        for progress in (first, second):
            for _ in epochs(progress, BATCHES, hard_targets, count=2, seed=SEED):
                pass

    train()
    with pytest.raises(KDError, match="make Progress last, right before its loop"):
        train()


def test_a_part_of_an_epoch_after_the_last_one_is_refused(tmp_path):
    def train(count, *stop):
        progress = Progress(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c")

        def loss(outputs, batch):
            if progress.epoch + 1 in stop and progress.losses:
                progress.save()
                raise Stop
            return hard_targets(outputs, batch)

        return [*epochs(progress, BATCHES, loss, count=count, seed=SEED)]

    with pytest.raises(Stop):
        train(3, 3)
    with pytest.raises(KDError, match=r"expected at most 2 epochs, .* found 2 and a part of another; train more"):
        train(2)
    assert train(3) == [3]


def weights(progress):
    return [value.detach() for value in progress.model.state_dict().values()]


# ---- what the body changes


def changing(path, change, stop=None, first=lambda model: None):
    """Train six epochs; after the second one, the body calls `change`. Stop in the middle of epoch `stop`."""
    model = network()
    first(model)
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), checkpoint=path)

    def objective(outputs, batch):
        if progress.epoch + 1 == stop and len(progress.losses) == 1:
            raise Killed
        return hard_targets(outputs, batch)

    for epoch in epochs(progress, BATCHES, objective, count=6, seed=SEED):
        if epoch == 2:
            change(model)
    return progress


def freeze(model):
    model[0].requires_grad_(False)


CHANGES = {
    "unfrozen": (lambda model: model[0].requires_grad_(True), freeze),
    "frozen": (freeze, lambda model: None),
    "dropout": (lambda model: setattr(model[2], "p", 0.5), lambda model: None),
}


@pytest.mark.parametrize(("change", "first"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("stop", [2, 4])
def test_what_the_body_changed_in_layers_is_so_again_after_a_kill(tmp_path, change, first, stop):
    with pytest.raises(Killed):
        changing(tmp_path / "c", change, stop, first)
    resumed, unbroken = changing(tmp_path / "c", change, first=first), changing(None, change, first=first)
    assert resumed.history == unbroken.history
    assert all(torch.equal(*pair) for pair in zip(weights(resumed), weights(unbroken), strict=True))


def test_a_group_of_weights_that_is_added_later_is_refused_where_it_could_not_be_resumed(tmp_path):
    for path in (None, tmp_path / "c"):
        model = network()
        freeze(model)
        progress = Progress(model, torch.optim.SGD(model[3].parameters(), lr=0.1), checkpoint=path)

        def train(progress=progress, model=model):
            for epoch in epochs(progress, BATCHES, hard_targets, count=3, seed=SEED):
                if epoch == 1:
                    progress.optimizer.add_param_group({"params": model[0].requires_grad_(True).parameters()})

        if path is None:
            train()
        else:
            with pytest.raises(KDError, match="expected as many groups of weights as the optimizer had at first, 1, "):
                train()


def test_an_epoch_that_broke_off_is_not_begun_again_with_its_weights(tmp_path):
    progress = Progress(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c")
    calls = []

    def objective(outputs, batch):
        calls.append(1)
        if len(calls) == 5:  # the second step of epoch 2
            raise Killed
        return hard_targets(outputs, batch)

    def cell():
        return [*epochs(progress, BATCHES, objective, count=3, seed=SEED)]

    with pytest.raises(Killed):
        cell()
    with pytest.raises(
        KDError, match="one that broke off within epoch 2, after 1 steps; to go on with this training, make"
    ):
        cell()


@pytest.mark.parametrize("left", [False, True])
def test_what_is_drawn_after_a_loop_does_not_depend_on_whether_it_trained(tmp_path, left):
    def drawn():
        torch.manual_seed(3)
        model = nn.Linear(4, 3)
        progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c")
        for epoch in epochs(progress, BATCHES, hard_targets, count=3, seed=SEED):
            if left and epoch == 2:
                break
        return torch.rand(2)

    first = drawn()
    assert torch.equal(drawn(), first)
    torch.manual_seed(3)
    nn.Linear(4, 3)
    assert torch.equal(torch.rand(2), first)


def test_two_trainings_do_not_write_one_checkpoint(tmp_path):
    path, other = tmp_path / "c", network()
    progress = Progress(model := network(), torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=path)
    second = Progress(other, torch.optim.SGD(other.parameters(), lr=0.1), checkpoint=path, label="another")
    begun = epochs(progress, BATCHES, hard_targets, count=3, seed=SEED)
    next(begun), next(begun)
    content = path.read_bytes()
    with pytest.raises(KDError, match="found that another one has replaced it; give each training"):
        list(epochs(second, BATCHES, hard_targets, count=3, seed=SEED))
    assert path.read_bytes() == content
    (tmp_path / "copy").write_bytes(content)
    (tmp_path / "copy").replace(path)  # a file system may number its files anew
    assert list(begun) == [3]


def test_batches_of_different_lengths_are_trained_and_the_objective_is_called_for_each_alone():
    model, calls = nn.Embedding(50, 5), []

    def batches(epoch):
        for length in (7, 9):
            tokens = torch.arange(4 * length).view(4, length) % 50
            yield Batch(tokens, tokens % 5, torch.arange(4), torch.ones(4, length, 5))

    def loss(outputs, batch):
        calls.append(len(outputs.flatten(0, -2)))
        return soft_target_kl(outputs.flatten(0, -2), batch.soft.flatten(0, -2), 2.0)

    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert list(epochs(progress, batches, loss, count=2, seed=SEED)) == [1, 2]
    assert calls == [28, 36] * 2
