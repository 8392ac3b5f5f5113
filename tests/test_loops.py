"""A training of two loops, of which the first is left early, goes on and ends as it did at the first time."""

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


def early_then_another(path, stop=None, count=6):
    """A loop that stops early, after epoch 4, then one with another objective; killed in epoch `stop`."""
    model = network()
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), checkpoint=path)
    trained = []

    def of_epoch(name, weight):
        def loss(outputs, batch):
            if progress.epoch + 1 == stop:
                raise Killed
            return weight * hard_targets(outputs, batch)

        return loss

    for epoch in epochs(progress, BATCHES, of_epoch("first", 1.0), count=100, seed=SEED):
        trained.append(("first", epoch))
        progress.record(distance=abs(epoch - 3))
        if not progress.is_lowest("distance"):
            break
    for epoch in epochs(progress, BATCHES, of_epoch("second", 0.1), count=count, seed=SEED):
        trained.append(("second", epoch))
        progress.record(distance=0)
    return trained, progress


FIRST, SECOND = [("first", epoch) for epoch in (1, 2, 3, 4)], [("second", epoch) for epoch in (5, 6)]


def test_a_loop_that_was_left_early_is_not_gone_on_with_when_another_followed(tmp_path):
    trained, progress = early_then_another(tmp_path / "c")
    assert trained == FIRST + SECOND
    for _ in range(2):
        again, same = early_then_another(tmp_path / "c")
        assert again == []
        assert same.history == progress.history
        assert all(torch.equal(*pair) for pair in zip(weights(same), weights(progress), strict=True))


@pytest.mark.parametrize(("stop", "left"), [(3, FIRST[2:] + SECOND), (5, FIRST[3:] + SECOND), (6, SECOND[1:])])
def test_early_then_another_go_on_from_where_they_were_killed(tmp_path, stop, left):
    with pytest.raises(Killed):
        early_then_another(tmp_path / "c", stop)
    trained, progress = early_then_another(tmp_path / "c")
    assert trained == left
    assert progress.history == early_then_another(None)[1].history


def test_the_count_after_a_loop_that_was_left_early_must_not_change(tmp_path):
    early_then_another(tmp_path / "c")
    with pytest.raises(KDError, match=r"expected a loop of 6 epochs in all after one that was left early.*found 8"):
        early_then_another(tmp_path / "c", count=8)


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
    with pytest.raises(KDError, match="one that broke off within epoch 2, after 1 steps; make the network"):
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


@pytest.mark.parametrize("stop", [None, 2, 5])
def test_weights_that_are_restored_between_two_loops_are_those_of_the_first_time(tmp_path, stop):
    def script(path, stop=None):
        progress = Progress(model := network(), torch.optim.SGD(model.parameters(), lr=0.05), checkpoint=path)

        def objective(outputs, batch):
            if progress.epoch + 1 == stop and len(progress.losses) == 1:
                raise Killed
            return hard_targets(outputs, batch)

        for epoch in epochs(progress, BATCHES, objective, count=3, seed=SEED):
            if epoch == 2:
                progress.keep("best")
        progress.keep("last of the first")
        progress.restore("best")
        for _ in epochs(progress, BATCHES, objective, count=6, seed=SEED):
            pass
        before = weights(progress)
        progress.restore("last of the first")
        return [*before, *weights(progress)]

    if stop:
        with pytest.raises(Killed):
            script(tmp_path / "c", stop)
    else:
        script(tmp_path / "c")
    assert all(torch.equal(*pair) for pair in zip(script(tmp_path / "c"), script(None), strict=True))
