"""A recorded step against the same steps made one by one; on a CPU, a repeated call stands in for a CUDA graph."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.captured import WARM_UP, CapturedStep
from kdlib.errors import KDError
from kdlib.losses import cross_entropy, hard_and_soft
from kdlib.networks import keras_adam
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from kdlib.training import train_step

N, K, SIZE, EPOCHS = 22, 3, 4, 5  # five full batches and one of two rows
INPUTS = torch.randn(N, 5, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :K].argmax(1), "data")
SOFT = SoftTargets(torch.randn(N, K, generator=generator(0, "soft")), "teacher", "data")


class Repeats:
    """Records a call as a CUDA graph does: recording it makes no step, and a replay writes to the same loss.

    A replay uses the optimizer and the learning rates with which it was recorded.
    """

    def __init__(self, trained):
        self.count, self.trained = 0, trained

    def __call__(self, step):
        self.count += 1
        loss = torch.full((), torch.nan)

        old = self.trained.optimizer
        rates = [group["lr"] for group in old.param_groups]

        def replay():
            now, self.trained.optimizer = self.trained.optimizer, old
            before = [group["lr"] for group in old.param_groups]
            set_rates(old, rates)
            result = step()
            set_rates(old, before)
            self.trained.optimizer = now
            loss.resize_(result.shape).copy_(result)

        return replay, loss


def set_rates(optimizer, rates):
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def network(seed=0):
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, K))
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator(seed, "weights", number)))
    return model


def hard(outputs, batch):
    return cross_entropy(outputs, batch.labels)


def taught(outputs, batch):
    return hard_and_soft(outputs, batch.soft, batch.labels, 0.4, 0.6, 4.0)


def trained(objective, soft=None, recorded=True, rate=lambda epoch: 0.01, optimizer=keras_adam):
    model = network()
    made = optimizer(model.parameters(), lr=0.01)

    def step(batch):
        return train_step(model, made, objective, batch)

    changed = SimpleNamespace(model=model, optimizer=made)
    capture = Repeats(changed)
    step = CapturedStep(step, changed, capture) if recorded else step
    torch.manual_seed(0)
    losses = []
    for epoch in range(1, EPOCHS + 1):
        made.param_groups[0]["lr"] = rate(epoch)
        losses += [step(batch).item() for batch in Batches(EXAMPLES, SIZE, 0, soft)(epoch)]
    return model.state_dict(), losses, capture.count


@pytest.mark.parametrize(("objective", "soft"), [(hard, None), (taught, SOFT)])
def test_the_same_weights_and_losses(objective, soft):
    weights, losses, graphs = trained(objective, soft)
    expected, losses_one_by_one, _ = trained(objective, soft, recorded=False)
    assert losses == losses_one_by_one
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert graphs == 2  # of the full batches and, in the fourth epoch, of the short one


def test_another_learning_rate_is_used():
    def rate(epoch):
        return 0.01 if epoch < 3 else 0.001

    _, losses, graphs = trained(hard, rate=rate)
    assert losses == trained(hard, recorded=False, rate=rate)[1]
    assert losses != trained(hard)[1]
    assert graphs == 2  # of the full batches, once for each rate


def test_a_rate_in_a_tensor_of_the_cpu_is_compared_by_its_number():
    model, rate = network(), torch.tensor(0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    changed = SimpleNamespace(model=model, optimizer=optimizer)
    capture = Repeats(changed)
    step = CapturedStep(lambda batch: train_step(model, optimizer, hard, batch), changed, capture)
    full = [batch for batch in Batches(EXAMPLES, SIZE, 0)(1) if len(batch.labels) == SIZE]
    for batch in 2 * full:
        step(batch)
    assert capture.count == 1
    rate.fill_(0.005)  # as a scheduler does
    for batch in 2 * full:
        step(batch)
    assert capture.count == 2


def test_an_optimizer_that_is_replaced_between_epochs_is_used():
    def end(recorded):
        model = network()
        trained = SimpleNamespace(model=model, optimizer=keras_adam(model.parameters(), lr=0.01))
        capture = Repeats(trained)

        def step(batch):
            return train_step(model, trained.optimizer, hard, batch)

        step = CapturedStep(step, trained, capture) if recorded else step
        torch.manual_seed(0)
        for epoch in range(1, EPOCHS + 1):
            if epoch == 4:
                trained.optimizer = keras_adam(model.parameters(), lr=0.01)
            if recorded:
                step.refresh()
            for batch in Batches(EXAMPLES, SIZE, 0)(epoch):
                step(batch)
        return model.state_dict(), capture.count

    weights, graphs = end(True)
    expected, _ = end(False)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert graphs == EPOCHS  # one an epoch, of the full batches


def test_a_loss_is_not_overwritten_by_the_next_step():
    model = network()
    made = torch.optim.SGD(model.parameters(), lr=0.1)
    changed = SimpleNamespace(model=model, optimizer=made)
    step = CapturedStep(lambda batch: train_step(model, made, hard, batch), changed, Repeats(changed))
    batches = [batch for epoch in (1, 2) for batch in Batches(EXAMPLES, SIZE, 0)(epoch) if len(batch.labels) == SIZE]
    losses = [step(batch) for batch in batches]
    assert len({float(loss) for loss in losses}) == len(losses) > WARM_UP + 2


def test_students_side_by_side():
    def losses(recorded):
        model = Replicas([network(seed)[:3] for seed in range(3)])
        made = keras_adam(model.parameters())

        def step(batch):
            return train_step(model, made, lambda outputs, batch: outputs.square().mean((1, 2)), batch)

        changed = SimpleNamespace(model=model, optimizer=made)
        step = CapturedStep(step, changed, Repeats(changed)) if recorded else step
        batches = side_by_side([Batches(EXAMPLES, SIZE, seed) for seed in range(3)])
        return torch.stack([step(batch) for epoch in (1, 2) for batch in batches(epoch)])

    assert torch.equal(losses(True), losses(False))


def test_a_step_that_cannot_be_recorded_is_an_error():
    def refuses(step):
        raise RuntimeError("operation not permitted when stream is capturing\nmore about it")

    model = network()
    made = torch.optim.SGD(model.parameters(), lr=0.1)
    trained = SimpleNamespace(model=model, optimizer=made)
    step = CapturedStep(lambda batch: train_step(model, made, hard, batch), trained, refuses)
    with pytest.raises(KDError) as refused:
        list(map(step, Batches(EXAMPLES, SIZE, 0)(1)))
    assert str(refused.value) == (
        "the training step could not be recorded as a CUDA graph (operation not permitted when stream is capturing); "
        "launch its operations one by one (--no-graphs, or Progress(..., graphs=False))"
    )


def test_an_optimizer_that_counts_elsewhere_is_refused():
    model = network()
    made = torch.optim.Adam(model.parameters(), lr=0.01)
    trained = SimpleNamespace(model=model, optimizer=made)

    def step(batch):
        loss = train_step(model, made, hard, batch)
        for state in made.state.values():
            state["count"] = 3  # a graph would not add to it
        return loss

    recorded = CapturedStep(step, trained, Repeats(trained))
    with pytest.raises(KDError, match="as a CUDA graph: Adam keeps 'count' on the CPU; launch its operations"):
        list(map(recorded, Batches(EXAMPLES, SIZE, 0)(1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_does_what_single_launches_do():
    def ends(recorded):
        torch.manual_seed(0)
        model = network().cuda()
        made = keras_adam(model.parameters())

        def step(batch):
            return train_step(model, made, hard, batch)

        step = CapturedStep(step, SimpleNamespace(model=model, optimizer=made)) if recorded else step
        batches = Batches(EXAMPLES.to(torch.device("cuda")), SIZE, 0)
        losses = [step(batch) for epoch in range(1, EPOCHS + 1) for batch in batches(epoch)]
        return torch.stack(losses), model.state_dict()

    (losses, weights), (expected, weights_one_by_one) = ends(True), ends(False)
    assert torch.equal(losses, expected)
    assert all(torch.equal(weights[name], value) for name, value in weights_one_by_one.items())
