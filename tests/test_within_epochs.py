"""Checkpoints within an epoch: a training killed after any step ends in the bytes of one that was not interrupted."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdlib import training
from kdlib.augment import flip_and_shift
from kdlib.batches import Batch, Batches, Examples
from kdlib.checkpoint import steps_of
from kdlib.epoch import OtherBatches
from kdlib.errors import KDError
from kdlib.files import load_tensors
from kdlib.losses import cross_entropy, soft_target_kl
from kdlib.ownership import OtherStart
from kdlib.progress import CHECKPOINT_SECONDS, Progress
from kdlib.replicas import Replicas, side_by_side
from kdlib.seeds import generator
from kdlib.targets import SoftTargets
from tests.made_runs import Killed

pytestmark = pytest.mark.usefixtures("traced")

N, K, SIZE, SEED, EPOCHS, STEPS = 22, 3, 6, 4, 2, 4
INPUTS = torch.randn(N, 5, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :K].argmax(1), "data")
PICTURES = Examples(torch.randn(N, 3, 4, 4, generator=generator(0, "pictures")), EXAMPLES.labels, "pictures")
SOFT = SoftTargets(torch.randn(N, K, generator=generator(0, "soft")), "teacher", "data")


class Network(nn.Module):
    """Batch norm, and dropout that accepts random numbers as Replicas require. It remembers its last output."""

    draws = 16

    def __init__(self, seed=SEED):
        super().__init__()
        self.hidden, self.norm, self.output = nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Linear(16, K)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, "weights", number)))

    def forward(self, x, uniform=None):
        h = self.norm(self.hidden(x)).relu()
        if self.training:
            uniform = torch.rand(len(x), self.draws) if uniform is None else uniform
            h = h * (uniform >= 0.4) / 0.6
        self.last = self.output(h)
        return self.last


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def alone():
    model = Network()

    def objective(outputs, batch):  # as one that adds a penalty on what the network computed last
        return soft_target_kl(outputs, batch.soft, 2.0) + model.last.square().mean()

    return model, adam(model), Batches(EXAMPLES, SIZE, SEED, SOFT), objective, SEED


def rates_by_step():
    model, optimizer, batches, objective, seed = alone()

    def stepwise(epoch):
        for step, batch in enumerate(batches(epoch)):
            optimizer.param_groups[0]["lr"] = 0.02 / (epoch + step)
            yield batch

    stepwise.about = batches.about
    return model, optimizer, stepwise, objective, seed


def augmented():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32, K))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator(SEED, "weights", number)))
    model.to(memory_format=torch.channels_last)

    def augment(epoch):
        draws = generator(SEED, "views", epoch)
        return lambda pictures: flip_and_shift(pictures, 1, draws)

    batches = Batches(PICTURES, SIZE, SEED, augment=augment, view="flip+shift")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, fused=True)
    return model, optimizer, batches, training.hard_targets, SEED


def replicas():
    seeds = (7, 1, 4)
    model = Replicas([Network(seed) for seed in seeds])
    each = torch.vmap(cross_entropy)
    batches = side_by_side([Batches(EXAMPLES, SIZE, seed, SOFT) for seed in seeds])
    return model, adam(model), batches, lambda outputs, batch: each(outputs, batch.labels), seeds


def drawn():
    """A number that depends on all global generators; an odd number of normal ones, as the second is kept."""
    return float(torch.rand(())) + np.random.randn() + random.random() + random.gauss(0, 1)


def draws_globally():
    """Objective and batches draw from the global generators, and so does the order of the rows."""
    model, optimizer, *_ = alone()

    def batches(epoch):
        for rows in np.array_split(np.random.permutation(N), STEPS):
            rows = torch.from_numpy(rows)
            yield Batch(INPUTS[rows] + drawn(), EXAMPLES.labels[rows], rows)

    return model, optimizer, batches, lambda outputs, batch: drawn() ** 2 * cross_entropy(outputs, batch.labels), SEED


def replicas_draw_globally():
    model, optimizer, batches, objective, seeds = replicas()
    return model, optimizer, batches, lambda outputs, batch: drawn() ** 2 * objective(outputs, batch), seeds


KINDS = [alone, rates_by_step, augmented, replicas, draws_globally, replicas_draw_globally]


def trained(kind, path):
    """The training after all epochs; its body draws random numbers, keeps weights and alters one."""
    model, optimizer, batches, objective, seed = kind()
    progress = Progress(model, optimizer, checkpoint=path)
    for epoch in training.epochs(progress, batches, objective, count=EPOCHS, seed=seed):
        drawn()
        progress.keep(f"epoch {epoch}")
        if epoch == 1:
            with torch.no_grad():
                next(iter(model.parameters())).mul_(1.5)
    return progress


def as_unbroken(kind, path, tmp_path):
    """Goes on from a checkpoint and compares all that is kept with a training of its own."""
    resumed, unbroken = trained(kind, path), trained(kind, tmp_path / "unbroken")
    assert resumed.traces == unbroken.traces
    assert [trace["changed"] for trace in resumed.traces] == [[2]] * len(resumed.traces)
    assert resumed.history == unbroken.history
    assert path.read_bytes() == (tmp_path / "unbroken").read_bytes()


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; a test moves it."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("kdlib.progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def before_each_step(monkeypatch, act):
    step = training.train_step

    def acted(*arguments):
        act()
        return step(*arguments)

    monkeypatch.setattr(training, "train_step", acted)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_every_step(kind, tmp_path, monkeypatch, clock):
    """Every life of the process makes one step, or ends one epoch, and dies."""
    saved, path, deaths = Progress.save, tmp_path / "c", 0

    def save_and_die(progress):
        saved(progress)
        raise Killed

    def later():
        clock.now += CHECKPOINT_SECONDS

    with monkeypatch.context() as patch:
        before_each_step(patch, later)
        patch.setattr(Progress, "save", save_and_die)
        while True:
            try:
                trained(kind, path)
                break
            except Killed:
                deaths += 1
                assert deaths <= EPOCHS * (STEPS + 1)
    assert deaths == EPOCHS * (STEPS + 1)
    as_unbroken(kind, path, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", range(1, EPOCHS * STEPS + 1))
def test_killed_before_any_step(kind, last, tmp_path, monkeypatch, clock):
    """A step takes so long that every third one is followed by a checkpoint: the others are made again."""
    path, steps = tmp_path / "c", []

    def count():
        steps.append(len(steps) + 1)
        clock.now += CHECKPOINT_SECONDS / 3 + 1
        if len(steps) == last:
            raise Killed

    with monkeypatch.context() as patch:
        before_each_step(patch, count)
        with pytest.raises(Killed):
            trained(kind, path)
    begun = (last - 1) % STEPS  # steps of the epoch before the kill
    with monkeypatch.context() as patch:
        before_each_step(patch, lambda: steps.append(0))
        trained(kind, path)
    assert len(steps) == EPOCHS * STEPS + 1 + (begun if begun < 3 else 0)
    as_unbroken(kind, path, tmp_path)


def test_no_checkpoint_within_an_epoch_before_its_time(tmp_path, monkeypatch, clock):
    """An epoch's end begins a new count."""
    seconds, at = CHECKPOINT_SECONDS / STEPS, []
    save = Progress.save
    monkeypatch.setattr(
        Progress, "save", lambda progress: (at.append((clock.now, len(progress.losses))), save(progress))
    )

    def later():
        clock.now += seconds

    before_each_step(monkeypatch, later)
    seconds -= 0.1
    trained(alone, tmp_path / "short")
    assert [steps for _, steps in at] == [0] * EPOCHS
    at.clear()
    seconds += 0.2
    trained(alone, tmp_path / "long")
    assert [steps for _, steps in at] == [STEPS, 0] * EPOCHS


def test_a_hook_decides_about_checkpoints_within_an_epoch(tmp_path, clock):
    clock.now, seen = 1e9, []
    model, optimizer, batches, objective, seed = alone()
    progress = Progress(
        model, optimizer, checkpoint=tmp_path / "c", on_step=lambda p: seen.append((p.due, len(p.losses)))
    )
    clock.now += CHECKPOINT_SECONDS
    list(training.epochs(progress, batches, objective, count=1, seed=seed))
    assert seen == [(True, step) for step in range(1, STEPS + 1)]


def test_an_epoch_that_broke_off_goes_on_from_its_checkpoint_and_not_from_its_weights(tmp_path, clock):
    """The steps from the checkpoint are skipped once; a caller that goes on after an error is refused."""
    path, calls = tmp_path / "c", []
    model, optimizer, batches, objective, seed = augmented()  # without soft targets: no probe calls the objective
    progress = Progress(model, optimizer, checkpoint=path, on_step=Progress.save)

    def fails(outputs, batch):
        calls.append(len(batch.labels))
        if len(calls) in (3, 4):
            raise Killed
        return objective(outputs, batch)

    def go_on(progress):
        list(training.epochs(progress, batches, fails, count=1, seed=seed))

    with pytest.raises(Killed):
        go_on(progress)
    with pytest.warns(OtherStart, match="goes on with those of the checkpoint, after epoch 0"):
        progress = Progress(model, optimizer, checkpoint=path)
    with pytest.raises(Killed):
        go_on(progress)
    assert len(calls) == 4  # two steps and a failure, then the third step again
    with pytest.raises(KDError, match="found one that broke off within epoch 1, after 2 steps"):
        go_on(progress)
    assert len(calls) == 4


def test_a_loss_that_is_not_finite_replaces_no_checkpoint_and_is_named_by_its_step(tmp_path, clock):
    path = tmp_path / "c"

    def run(is_bad, on_step=None):
        model, optimizer, batches, objective, seed = alone()
        progress = Progress(model, optimizer, checkpoint=path, on_step=on_step)

        def third(outputs, batch):
            return objective(outputs, batch) * (float("nan") if is_bad[0] and len(progress.losses) == 2 else 1)

        list(training.epochs(progress, batches, third, count=1, seed=seed))
        return progress

    def die(progress):
        progress.save()
        if len(progress.losses) == 3:
            raise Killed

    with pytest.raises(Killed):
        run([True], die)
    assert steps_of(load_tensors(path)[0]) == 2
    with pytest.raises(training.NonFiniteLoss, match=f"at epoch 1, step 3 of {STEPS}"):
        run([True])
    assert run([False]).epoch == 1


# ---- what does not fit a checkpoint is refused


def killed_in_the_second_epoch(path):
    model, optimizer, batches, objective, seed = alone()

    def kill(progress):
        if progress.epoch == 1 and len(progress.losses) == 2:
            progress.save()
            raise Killed

    progress = Progress(model, optimizer, checkpoint=path, on_step=kill)
    with pytest.raises(Killed):
        list(training.epochs(progress, batches, objective, count=EPOCHS, seed=seed))


def test_weights_changed_after_they_were_loaded_are_refused_within_an_epoch(tmp_path):
    killed_in_the_second_epoch(tmp_path / "checkpoint")
    model, optimizer, batches, objective, seed = alone()
    progress = Progress(model, optimizer, checkpoint=tmp_path / "checkpoint")
    with torch.no_grad():
        model.hidden.weight.mul_(1.5)
    with pytest.raises(KDError, match=r"expected the weights and the optimizer state of the checkpoint, .* changed"):
        list(training.epochs(progress, batches, objective, count=EPOCHS, seed=seed))


def test_other_batches_in_the_rest_of_an_epoch_are_told(tmp_path):
    """A loader that makes another order in each call: some examples come twice, others not at all."""
    killed_in_the_second_epoch(tmp_path / "checkpoint")
    model, optimizer, batches, objective, seed = alone()

    def turned(epoch):
        return reversed([*batches(epoch)])

    turned.identity = batches.identity
    progress = Progress(model, optimizer, checkpoint=tmp_path / "checkpoint")
    with pytest.warns(OtherBatches, match="the batch of step 2 is not the one that was trained before") as told:
        list(training.epochs(progress, turned, objective, count=EPOCHS, seed=seed))
    assert told[0].filename == __file__


def test_labels_that_are_mixed_anew_in_steps_that_are_skipped_are_no_other_batches(tmp_path):
    """Mixup from torch's own generator, from which dropout draws between the batches: the rest is the same."""

    def run(stop):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        inputs, labels = torch.arange(96.0).view(24, 4) / 96, torch.eye(3)[torch.arange(24) % 3]

        def batches(epoch):
            for first in (0, 8, 16):
                rows = torch.arange(first, first + 8)
                share = torch.rand(())
                mixed = share * labels[rows] + (1 - share) * labels[rows.flip(0)]
                yield Batch(inputs[rows], mixed, rows)

        def kill(progress):
            if stop and len(progress.losses) == 2:
                progress.save()
                raise Killed

        progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1), checkpoint=tmp_path / "c", on_step=kill)
        list(training.epochs(progress, batches, training.hard_targets, count=1, seed=0))
        return model.state_dict()

    whole = run(stop=False)
    (tmp_path / "c").unlink()
    with pytest.raises(Killed):
        run(stop=True)
    resumed = run(stop=False)  # a warning would fail
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_fewer_batches_than_steps_that_were_made_are_refused(tmp_path):
    """A loader that remembers its place has only the rest."""
    killed_in_the_second_epoch(tmp_path / "checkpoint")
    model, optimizer, batches, objective, seed = alone()

    def the_rest(epoch):
        return [*batches(epoch)][3:]

    the_rest.identity = batches.identity
    progress = Progress(model, optimizer, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(KDError, match=r"batches of epoch 2 again, of which 2 were trained .* found 1 in all"):
        list(training.epochs(progress, the_rest, objective, count=EPOCHS, seed=seed))


def test_nothing_is_saved_of_an_epoch_that_broke_off_before_a_new_step(tmp_path):
    killed_in_the_second_epoch(tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()
    model, optimizer, batches, objective, seed = alone()

    def broken(epoch):
        yield from [*batches(epoch)][:1]
        raise Killed

    broken.identity = batches.identity
    progress = Progress(model, optimizer, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(Killed):
        list(training.epochs(progress, broken, objective, count=EPOCHS, seed=seed))
    progress.save()
    assert (tmp_path / "checkpoint").read_bytes() == before


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_saving_before_the_loop_keeps_the_steps_of_a_checkpoint(tmp_path, seed):
    """As `finally: progress.save()` does where the loop is refused."""
    killed_in_the_second_epoch(tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()
    model, optimizer, batches, objective, _ = alone()
    progress = Progress(model, optimizer, checkpoint=tmp_path / "checkpoint")
    progress.save()
    if seed != SEED:
        with pytest.raises(KDError, match="seed: the checkpoint has"):
            list(training.epochs(progress, batches, objective, count=EPOCHS, seed=seed))
        progress.save()
    assert (tmp_path / "checkpoint").read_bytes() == before
