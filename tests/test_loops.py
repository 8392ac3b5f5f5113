"""A training of two loops, of which the first is left early, goes on and ends as it did at the first time."""

import pytest
import torch
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
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
