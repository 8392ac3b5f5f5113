"""Teacher and students on MNIST: networks, constraint, jitter, losses, and what a choice of settings may see."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from kdlib.errors import KDError
from kdlib.networks import parameter_count
from kdlib.seeds import generator
from kdlib.training import evaluating
from replications.hinton import digits, experiment
from replications.hinton.config import Config
from tests.hinton.tiny import tiny_run
from tests.made_runs import batches_of, taught
from tests.oracles import check_predictions

# ---- networks


@pytest.mark.parametrize(("width", "count"), [(1200, 2_395_210), (800, 1_276_810), (300, 328_810), (30, 24_790)])
def test_parameter_counts(width, count):
    assert (
        parameter_count(digits.Perceptron(width)) == 784 * width + width + width**2 + width + 10 * width + 10 == count
    )


def test_the_forward_pass_is_that_of_separate_layers():
    model = digits.student(tiny_run())
    with torch.no_grad():
        for layer in model.layers:
            layer.bias.uniform_(-0.2, 0.2, generator=generator(1, "biases"))
    x = torch.randint(256, (6, 1, 28, 28), generator=generator(0, "x"), dtype=torch.uint8)
    w = [layer.weight.detach().double().numpy() for layer in model.layers]
    b = [layer.bias.detach().double().numpy() for layer in model.layers]
    h = x.numpy().reshape(6, 784) / 255.0
    for number in range(2):
        h = np.maximum(h @ w[number].T + b[number], 0)
    with evaluating(model):
        np.testing.assert_allclose(model(x).numpy(), h @ w[2].T + b[2], rtol=1e-4, atol=1e-5)


def test_only_the_teacher_has_dropout_and_its_rates_are_those_of_the_configuration():
    model = digits.Perceptron(1200, (0.2, 0.5))
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.2, 0.5, 0.5]
    assert not any(module.p for module in digits.student(tiny_run()).modules() if isinstance(module, nn.Dropout))


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(KDError, match="precision: expected float32 or bfloat16, found 'float16'"):
        digits.Perceptron(30, precision="float16")


def test_the_papers_values():
    expected = {
        "teacher_width": 1200,
        "width": 800,
        "temperature": 20.0,
        "jitter": 2,
        "epochs": 60,
        "learning_rate": 1e-3,
        "batch": 128,
    }
    assert expected.items() <= asdict(Config()).items()
    assert Config().largest_norm == pytest.approx(math.sqrt(15))
    full = experiment.PROFILES["full"]
    assert full.config == Config()
    assert full.seeds == 5


# ---- the teacher's constraint and jitter


def test_a_step_is_plain_nesterov_and_then_shortens_long_hidden_units_only():
    torch.manual_seed(0)
    model = digits.Perceptron(20)
    plain = digits.Perceptron(20)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        for network in (model, plain):
            network.layers[0].weight[3] *= 50
            network.layers[2].weight[4] *= 50
    ours = digits.NormLimitedSGD(model, 0.1, math.sqrt(15))
    other = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True)
    x, y = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8), torch.arange(8)
    for network, optimizer in ((model, ours), (plain, other)):
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    for number, (layer, before) in enumerate(zip(model.layers, plain.layers, strict=True)):
        wanted = before.weight.detach().double().numpy().copy()
        if number < 2:
            for row in wanted:
                row *= min(1, math.sqrt(15) / np.linalg.norm(row))
        np.testing.assert_allclose(layer.weight.detach().numpy(), wanted, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(layer.bias, before.bias)
    assert model.layers[0].weight[3].norm().item() == pytest.approx(math.sqrt(15), rel=1e-5)
    assert model.layers[2].weight[4].norm() > math.sqrt(15)


def test_the_trace_of_the_teacher_names_the_constraint():
    run = tiny_run()
    digits.train_teacher(run)
    (trace,) = run.trainings[0].traces
    assert trace["optimizer"]["class"] == "NormLimitedSGD"
    assert [group["largest_norm"] for group in trace["optimizer"]["groups"]] == [pytest.approx(math.sqrt(15)), None]
    assert trace["data"]["view"] == "jitter"
    assert all(
        layer.weight.norm(dim=1).max() <= math.sqrt(15) + 1e-4 for layer in list(run.trainings[0].model.layers)[:2]
    )


def test_jitter_is_a_shift_with_zeros():
    pictures = torch.randint(1, 256, (300, 1, 6, 7), generator=generator(0, "x"), dtype=torch.uint8)
    found = digits.jittered(pictures, 2, generator(5, "jitter")).numpy()
    down, right = torch.randint(5, (2, 300), generator=generator(5, "jitter")).numpy() - 2
    for n in range(300):
        wanted = np.zeros((6, 7), np.uint8)
        for row in range(6):
            for column in range(7):
                r, c = row - down[n], column - right[n]
                if 0 <= r < 6 and 0 <= c < 7:
                    wanted[row, column] = pictures[n, 0, r, c]
        assert (found[n, 0] == wanted).all()
    assert {*zip(down.tolist(), right.tolist(), strict=True)} == {(a, b) for a in range(-2, 3) for b in range(-2, 3)}


def test_a_choice_sees_neither_test_digits_nor_the_digits_that_choose(monkeypatch):
    run = tiny_run(validated=True)
    blind = replace(run.data, test=replace(run.data.test, inputs=run.data.test.inputs * 0))
    with monkeypatch.context() as patched:
        seen = batches_of(digits.train_teacher, replace(run, trainings=[]), patched)
    assert sorted({*seen.indices.tolist()}) == list(range(100))
    first, second = (digits.train_teacher(replace(run, data=data, trainings=[])) for data in (run.data, blind))
    assert first.metrics == second.metrics
    model = digits.Perceptron(100, (0.0, 0.3))
    model.load_state_dict(first.weights["final"])
    with evaluating(model):
        wrong = (model(run.data.train.inputs[100:]).argmax(1) != run.data.train.labels[100:]).sum().item()
    assert first.metrics["final"]["validation_errors"] == wrong
    assert "errors" not in first.metrics["final"]


# ---- the students


@pytest.mark.parametrize("soft_only", [False, True])
def test_the_loss_is_the_papers(soft_only):
    student, teacher = (3 * torch.randn(7, 10, generator=generator(0, name)) for name in ("student", "teacher"))
    labels = torch.arange(7)
    objective = digits.distillation(replace(Config(), soft_only=soft_only))
    batch = digits.Batch(torch.zeros(7), labels, labels, teacher)
    s, t = student.double().numpy(), teacher.double().numpy()
    p, log_q = softmax(t / 20, 1), log_softmax(s / 20, 1)
    soft = 400 * np.mean(np.sum(p * (np.log(p) - log_q), 1))
    hard = -np.mean(log_softmax(s, 1)[np.arange(7), labels.numpy()])
    expected = soft if soft_only else 0.1 * hard + 0.9 * soft
    assert objective(student, batch).item() == pytest.approx(expected, rel=1e-4)


def test_a_student_is_trained_on_its_teachers_logits_of_the_same_digits(monkeypatch):
    run, kept = taught(tiny_run(epochs=1))
    seen = batches_of(digits.train_soft, run, monkeypatch)
    assert sorted(seen.indices.tolist()) == list(range(120))
    assert torch.equal(seen.inputs, run.data.train.inputs[seen.indices])
    assert torch.equal(seen.soft, kept["final.train"][seen.indices])


def test_the_sham_gives_every_digit_the_targets_of_one_of_its_class(monkeypatch):
    run, kept = taught(tiny_run(epochs=1))
    seen = batches_of(digits.train_sham, run, monkeypatch)
    source = [(kept["final.train"] == row).all(1).nonzero().item() for row in seen.soft]
    assert sorted(source) == list(range(120))
    assert torch.equal(run.data.train.labels[source], seen.labels)
    assert (torch.tensor(source) != seen.indices).float().mean() > 0.5


def test_what_a_run_says_of_its_predictions():
    run, kept = taught(tiny_run())
    result = digits.train_soft(run)
    model = digits.Perceptron(30)
    model.load_state_dict(result.weights["final"])
    with evaluating(model):
        found = model(run.data.test.inputs)
    check_predictions(result.metrics["final"], found, kept["final.test"])
    assert result.metrics["final"]["errors"] == (found.argmax(1) != run.data.test.labels).sum().item()
    assert result.weights.keys() == {"final"}


def test_a_teacher_at_chance_teaches_nobody():
    run, kept = taught(tiny_run())
    kept["final.train"][:] = nn.functional.one_hot(torch.zeros(120, dtype=torch.int64), 10)
    with pytest.raises(KDError, match="expected a teacher above chance"):
        digits.train_soft(run)


def test_members_of_an_ensemble_differ_in_weights_and_order_and_so_do_their_seeds(monkeypatch):
    first, orders = set(), set()
    for seed in (0, 1):
        for member in (0, 1, 2):
            run = tiny_run(seed, member=member, epochs=1)
            first.add(digits.student(run).layers[0].weight.sum().item())
            with monkeypatch.context() as patched:
                orders.add(tuple(batches_of(digits.train_hard, run, patched).indices.tolist()))
    assert len(first) == len(orders) == 6


def test_errors_added_by_a_higher_rate_are_those_over_the_same_arm_at_the_usual_rate():
    run, _ = taught(tiny_run(learning_rate=1e-2))
    usual = run.parents["teacher"][0]
    usual.metrics = {"final": {"errors": 1000}}
    found = digits.train_soft(replace(run, parents={**run.parents, "usual": (usual, "final")})).metrics["final"]
    assert found["extra_errors"] == found["errors"] - 1000
