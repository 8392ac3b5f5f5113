"""Teaching assistants: what a network is trained on, what its run keeps and measures, and interrupted runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from kdlib.training import train_step
from replications.ta_chain import experiment as chain
from tests import made_runs
from tests.made_runs import assert_same_result, batches_of, resumed
from tests.oracles import check_predictions

TINY = replace(chain.SMOKE, epochs=1, batch=16, train_pictures=48, test_pictures=40)


def run_of(config):
    return made_runs.run_of(chain.EXPERIMENT, config)


def taught(config):
    return made_runs.taught(run_of(config))


# ---- what it is trained on


def test_every_picture_comes_as_it_is_with_its_label_and_its_teachers_logits(monkeypatch):
    run, kept = taught(TINY)
    for train, logits in ((chain.train_scratch, None), (chain.train_distilled, kept["final.train"])):
        seen = batches_of(train, run, monkeypatch)
        assert sorted(seen.indices.tolist()) == list(range(48))
        assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
        assert torch.equal(seen.labels, run.data.train.labels[seen.indices])
        assert seen.soft is None if logits is None else torch.equal(seen.soft, logits[seen.indices])


def test_the_sham_gives_every_picture_the_targets_of_another_of_its_class(monkeypatch):
    run, kept = taught(TINY)
    seen = batches_of(chain.train_sham, run, monkeypatch)
    labels, logits = run.data.train.labels, kept["final.train"]
    assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
    assert torch.equal(seen.labels, labels[seen.indices])
    source = torch.tensor([(logits == row).all(1).nonzero().item() for row in seen.soft])
    assert sorted(source.tolist()) == list(range(48))
    assert torch.equal(labels[source], seen.labels)
    assert (source != seen.indices).float().mean() > 0.5  # classes of 4 or 5: one in five stays by chance


def test_the_loss_from_scratch_is_cross_entropy_with_the_dense_layers_activity(monkeypatch):
    found = []

    def step(model, optimizer, objective, batch):
        model.eval()  # dropout off
        with torch.no_grad():
            found.append(
                (objective(model(batch.inputs), batch).item(), model(batch.inputs).double().numpy(), batch.labels)
            )
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    for activity in (1e-4, 0.0):
        found.clear()
        chain.train_scratch(run_of(replace(TINY, activity=activity)))
        for loss, s, labels in found:
            hard = -np.mean(log_softmax(s, 1)[np.arange(len(s)), labels.numpy()])
            assert loss == pytest.approx(hard + activity * np.sum(s**2) / len(s), rel=1e-5)
        assert len(found) == 3


# ---- what it is trained by


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_every_step_of_sgd_is_the_one_written_by_hand(momentum, monkeypatch):
    velocity, rows = {}, []

    def step(model, optimizer, objective, batch):
        before = {name: weight.detach().double() for name, weight in model.named_parameters()}
        loss = train_step(model, optimizer, objective, batch)
        for name, weight in model.named_parameters():
            velocity[name] = momentum * velocity.get(name, 0.0) - 0.01 * weight.grad.double()
            torch.testing.assert_close(weight.double(), before[name] + velocity[name], rtol=1e-6, atol=1e-7)
        rows.append(len(batch.labels))
        return loss

    monkeypatch.setattr("kdlib.training.train_step", step)
    chain.train_scratch(run_of(replace(TINY, epochs=2, batch=20, momentum=momentum)))
    assert rows == 2 * [20, 20, 8]
    assert max(change.abs().max() for change in velocity.values()) > 1e-3  # much more than the tolerance


def test_adam_is_kerass_with_its_defaults(monkeypatch):
    seen = []

    def step(model, optimizer, objective, batch):
        seen.append((model, optimizer, optimizer.param_groups[0]["lr"]))
        return torch.zeros(())

    monkeypatch.setattr("kdlib.training.train_step", step)
    chain.train_scratch(run_of(replace(TINY, epochs=2, optimizer="adam")))
    model, optimizer, _ = seen[0]
    assert type(optimizer) is torch.optim.Adam
    assert [rate for *_, rate in seen] == [1e-3] * 6
    expected = {"betas": (0.9, 0.999), "eps": 1e-7, "weight_decay": 0, "amsgrad": False, "maximize": False}
    (group,) = optimizer.param_groups
    assert {name: group[name] for name in expected} == expected
    assert {id(weight) for weight in group["params"]} == {id(weight) for weight in model.parameters()}


# ---- what its run keeps and measures


@pytest.mark.parametrize("train", [chain.train_scratch, chain.train_distilled, chain.train_sham])
def test_kept_and_measured_are_the_networks_logits_of_the_pictures_in_their_order(train):
    """Students keep theirs too: each link of the chain teaches the next."""
    run, kept = taught(replace(TINY, rounds=2))
    alone = train is chain.train_scratch
    result = train(replace(run, parents={}) if alone else run)
    assert list(result.weights) == list(result.metrics) == ["round_1", "final"]
    assert result.soft_targets.keys() == {"final.train", "final.test"}
    labels, model = run.data.test.labels.numpy(), chain.Network(2).eval()
    for snapshot, weights in result.weights.items():
        model.load_state_dict(weights)
        with torch.no_grad():
            logits = {f"final.{part}": model(getattr(run.data, part).inputs) for part in ("train", "test")}
        metrics, predicted = result.metrics[snapshot], logits["final.test"].numpy().argmax(1)
        check_predictions(metrics, logits["final.test"], None if alone else kept["final.test"])
        confusion = np.zeros((10, 10), int)
        np.add.at(confusion, (labels, predicted), 1)
        assert metrics["confusion"] == confusion.tolist()
        assert metrics["accuracy"] == pytest.approx(np.mean(predicted == labels))
    for part, expected in logits.items():  # of the last weights
        torch.testing.assert_close(result.soft_targets[part], expected)


# ---- interrupted


@pytest.mark.parametrize(
    ("train", "change"),
    [
        (chain.train_scratch, {"optimizer": "adam", "epochs": 20, "patience": 2}),
        (chain.train_scratch, {"epochs": 20, "patience": 2, "extra_epochs": 1}),
        (chain.train_distilled, {"epochs": 2, "rounds": 3}),
        (chain.train_sham, {"epochs": 2}),
    ],
    ids=["stopped early", "an epoch more", "rounds", "sham"],
)
def test_a_run_killed_after_every_epoch_is_the_unbroken_one(train, change, tmp_path):
    run, _ = taught(replace(TINY, **change))
    whole, early = train(run), bool(run.config.patience)
    assert (len(whole.history) < run.config.total_epochs) == early
    (again,), deaths = resumed(lambda runs: [train(*runs)], [run], tmp_path / "checkpoint.safetensors")
    assert len(deaths) == len(whole.history) - early  # the epoch that ends a run early is in no checkpoint
    assert_same_result(again, whole)
