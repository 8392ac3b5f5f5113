"""Teaching assistants: exact networks, a chain in which nothing is trained twice, the released stopping rule."""

import copy
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from kdlib.batches import Batch
from kdlib.networks import he_uniform_, parameter_count
from kdlib.run.engine import execute
from kdlib.run.experiment import Compute, load_experiment
from kdlib.run.plan import plan
from kdlib.run.store import Store, read_run
from kdlib.seeds import generator
from replications import course_report
from replications.ta_chain import experiment as chain
from tests import made_runs

TINY = replace(chain.SMOKE, epochs=1, batch=16, train_pictures=48, test_pictures=40)
COUNTS = {2: 13_146, 4: 37_530, 6: 83_226, 8: 328_922, 10: 658_586}


def run_of(config):
    return made_runs.run_of(chain.EXPERIMENT, config)


def taught(config):
    return made_runs.taught(run_of(config))[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    experiment = load_experiment("ta_chain")
    jobs = plan(experiment, chain.PROFILES["smoke"], ["direct", "sham", "scratch_2"], [0], Compute(), {})
    summary = execute(jobs, Store(tmp_path_factory.mktemp("store")), compute=Compute(), folders={})
    assert not summary.failed, summary.failed
    return {arm: summary.finished[job.description.id] for job in jobs for arm in job.arms}


@pytest.mark.parametrize(("size", "count"), COUNTS.items())
def test_parameter_counts_are_the_sources(size, count):
    assert parameter_count(chain.Network(size)) == count


@pytest.mark.parametrize(("size", "pools", "dropouts"), [(2, 2, 1), (4, 2, 1), (6, 3, 2), (8, 4, 4), (10, 4, 6)])
def test_the_networks_are_made_of_the_sources_layers(size, pools, dropouts):
    # Counted by hand in the table of the report's notebooks; dropout before the dense layers included.
    modules = list(chain.Network(size).modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == size
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) for c in convolutions)
    assert sum(isinstance(module, nn.MaxPool2d) for module in modules) == pools
    found = [module for module in modules if isinstance(module, nn.Dropout)]
    assert len(found) == dropouts
    assert {module.p for module in found} == {0.4}


def test_convolutions_start_he_uniform_and_dense_layers_glorot_uniform():
    model = chain.Network(8).initialise(generator(0, "weights"))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        fan_in, fan_out = layer.weight[0].numel(), len(layer.weight)
        limit = (6 / (fan_in + (0 if isinstance(layer, nn.Conv2d) else fan_out))) ** 0.5
        assert 0.95 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()


@pytest.mark.parametrize("size", COUNTS)
def test_the_forward_pass_is_that_of_separate_layers(size):
    model = he_uniform_(chain.Network(size), generator(0, "weights")).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.3, generator=generator(1, "mean"))
                module.running_var.uniform_(0.5, 2.0, generator=generator(1, "var"))
    x = torch.randint(256, (6, 3, 32, 32), generator=generator(0, "x"), dtype=torch.uint8)
    state = {name: value.double() for name, value in model.state_dict().items()}
    weights = iter(
        name.removesuffix(".weight") for name, value in state.items() if name.endswith("weight") and value.dim() > 1
    )
    h = x.double() / 255
    convolutions, dense = (part.split() for part in chain.LAYERS[size].split("flatten"))
    for layer in convolutions:
        if layer == "P":
            h = nn.functional.max_pool2d(h, 2)
        elif layer != "D":
            name = next(weights)
            h = nn.functional.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).relu()
            prefix, index = name.rsplit(".", 1)
            norm = f"{prefix}.{int(index) + 1}.norm"
            shape = (1, -1, 1, 1)
            h = (h - state[f"{norm}.running_mean"].view(shape)) / (
                state[f"{norm}.running_var"].view(shape) + 1e-3
            ).sqrt()
            h = h * state[f"{norm}.weight"].view(shape) + state[f"{norm}.bias"].view(shape)
    h = h.flatten(1)
    squares = 0.0
    for layer in (width for width in dense if width != "D"):
        name = next(weights)
        h = h @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        h = h if layer == "10" else h.relu()
        squares += h.square().sum().item()
    with torch.no_grad():
        assert torch.allclose(model(x).double(), h, atol=1e-5, rtol=1e-5)
    assert model.activity.item() == pytest.approx(squares / 6, rel=1e-5)


@pytest.mark.parametrize("size", COUNTS)
def test_a_training_step_is_that_of_separate_layers_in_float64(size):
    model = he_uniform_(chain.Network(size), generator(0, "weights")).train()
    separate = copy.deepcopy(model).double()  # what is not float32 goes through torch's own layers
    x = torch.randint(256, (64, 3, 32, 32), generator=generator(0, "x"), dtype=torch.uint8)
    torch.manual_seed(0)  # dropout
    model(x).square().mean().backward()
    torch.manual_seed(0)
    h = (x.double() / 255).contiguous(memory_format=torch.channels_last)  # the masks are drawn in the order of memory
    h = separate.features(h).flatten(1)
    for layer in separate.dense:
        h = layer(h)
        h = h.relu() if isinstance(layer, nn.Linear) and layer is not separate.dense[-1] else h
    h.square().mean().backward()
    for fused, exact in zip(model.parameters(), separate.parameters(), strict=True):
        assert (
            fused.grad - exact.grad
        ).norm() <= 1e-2 * exact.grad.norm() + 1e-6  # a unit near 0 may fall on its other side
    for fused, exact in zip(model.buffers(), separate.buffers(), strict=True):
        assert torch.allclose(fused.double(), exact.double(), rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_distilled_run_is_the_reports_with_the_dense_layers_activity(monkeypatch):
    losses = []

    def epochs(progress, batches, objective, **rest):
        batch = next(iter(batches(1)))
        progress.model.eval()  # dropout off
        losses.append((objective(progress.model(batch.inputs), batch).item(), progress.model, batch))
        progress.history.append({})
        yield 1

    monkeypatch.setattr(chain, "epochs", epochs)
    chain.train_distilled(taught(replace(TINY, alpha=0.3, temperature=5.0)))
    found, model, batch = losses[0]
    s, t = model(batch.inputs).detach().double().numpy(), batch.soft.double().numpy()
    p, log_q = softmax(t / 5, 1), log_softmax(s / 5, 1)
    soft = 25 * np.mean(np.sum(p * (np.log(p) - log_q), 1))
    hard = -np.mean(log_softmax(s, 1)[np.arange(len(s)), batch.labels.numpy()])
    assert found == pytest.approx(0.7 * hard + 0.3 * soft + 1e-4 * np.sum(s**2) / len(s), rel=1e-5)


def test_alpha_weighs_the_teacher():
    s, t = torch.randn(2, 4, 10, generator=generator(0, "logits"))
    batch = Batch(torch.zeros(4), torch.arange(4), torch.arange(4), t)
    hard = nn.functional.cross_entropy(s, batch.labels).item()
    only_hard, only_soft = (course_report.distillation(run_of(replace(TINY, alpha=alpha))) for alpha in (0.0, 1.0))
    assert only_hard(s, batch).item() == pytest.approx(hard)
    assert only_soft(t, batch).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "change", [{"alpha": -0.1}, {"alpha": 1.1}, {"temperature": 0.0}, {"temperature": np.nan}], ids=str
)
def test_an_alpha_or_temperature_out_of_range_is_refused(change):
    for train in (chain.train_distilled, chain.train_sham):
        with pytest.raises(chain.KDError, match="the run: expected alpha from 0 to 1, a finite temperature"):
            train(taught(replace(TINY, **change)))


def test_an_unknown_precision_is_refused():
    with pytest.raises(chain.KDError, match="precision: expected float32 or bfloat16, found 'fp16'"):
        chain.Network(2, "fp16")


CHAINS = (
    "scratch_2",
    "scratch_10",
    "direct",
    "direct_as_ta",
    "direct_as_chain",
    "student_4_of_10",
    "student_6_of_10",
    "student_8_of_10",
    "ta_4",
    "ta_6",
    "ta_8",
    "chain_6",
    "chain_4",
    "chain",
    "sham",
)


def test_nothing_in_the_chains_is_trained_twice():
    experiment = load_experiment("ta_chain")
    jobs = plan(experiment, chain.PROFILES["smoke"], CHAINS, [0], Compute(), {})
    assert len(jobs) == 13  # 15 names, three of them looks at one run
    runs = {arm: job for job in jobs for arm in job.arms}
    assert runs["direct"] is runs["direct_as_ta"] is runs["direct_as_chain"]
    eight = (runs["student_8_of_10"].description.id, "final")
    assert runs["chain_6"].parents["teacher"] == runs["ta_8"].parents["teacher"] == eight
    links = ["chain"]
    while parents := runs[links[-1]].parents:
        links.append(next(arm for arm, job in runs.items() if job.description.id == parents["teacher"][0]))
    assert links == ["chain", "chain_4", "chain_6", "student_8_of_10", "scratch_10"]


def test_arms_compared_in_the_controlled_mode_differ_in_size_and_rounds_only():
    experiment = load_experiment("ta_chain")
    configs = {
        arm.name: replace(experiment.config(arm, chain.PROFILES["full"]), size=2, rounds=1)
        for arm in experiment.arms
        if "controlled" in arm.modes or "sham" in arm.modes
    }
    exact = configs.pop("scratch_2_float32")
    assert set(configs.values()) == {replace(exact, precision="bfloat16")}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_recorded_teachers_are_those_that_profile_full_trains(seed):
    experiment = load_experiment("ta_chain")
    found = {
        run.description.seed: run
        for folder in (Path(course_report.__file__).parent / "recorded_teachers").iterdir()
        if (run := read_run(folder)).description.recipe == "course-report/train_scratch"
    }
    arm, about = experiment.arm("scratch_10"), found[seed].description
    config = experiment.config(arm, experiment.profile("full"))
    assert about == experiment.describe(arm, config, seed, about.data, Compute(), {})
    for part, count in (("train", 50_000), ("test", 10_000)):
        logits = found[seed].soft_targets(f"final.{part}")
        assert logits.shape == (count, 10)
        assert logits.isfinite().all()


def test_a_run_of_several_rounds_is_after_its_first_the_run_of_one():
    config = replace(TINY, rounds=3)
    several, one = chain.train_distilled(taught(config)), chain.train_distilled(taught(TINY))
    assert list(several.weights) == ["round_1", "round_2", "final"]
    assert [several.metrics[name]["epochs"] for name in several.metrics] == [1, 2, 3]
    assert all(torch.equal(value, several.weights["round_1"][name]) for name, value in one.weights["final"].items())
    assert one.metrics["final"] == several.metrics["round_1"]
    twice = chain.train_distilled(taught(replace(TINY, epochs=2 * TINY.epochs)))
    assert all(torch.equal(value, several.weights["round_2"][name]) for name, value in twice.weights["final"].items())


def keras_stops(accuracies, patience):
    """Keras's EarlyStopping, mode max, min_delta 0, as its counter is kept."""
    best, wait = float("-inf"), 0
    for epoch, accuracy in enumerate(accuracies, 1):
        wait += 1
        if accuracy > best:
            best, wait = accuracy, 0
        if wait >= patience:
            return epoch
    return None


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("extra", [0, 1])
def test_early_stopping_is_kerass(seed, extra):
    accuracies = np.random.default_rng(seed).integers(0, 40, 60) / 40 + np.linspace(0, 0.5, 60)
    config = replace(chain.PAPER, epochs=60, patience=5, extra_epochs=extra)
    stops = next(n for n in range(1, 99) if n >= chain.last_epoch(accuracies.tolist()[:n], config))
    expected = keras_stops(accuracies, 5)
    assert stops == (60 if expected is None else expected) + extra


def test_of_several_best_epochs_early_stopping_counts_from_the_first():
    accuracies, config = [0.1, 0.3, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3], replace(chain.PAPER, epochs=8, patience=3)
    assert chain.last_epoch(accuracies, config) == keras_stops(accuracies, 3) == 5


def test_released_runs_stop_early_on_the_test_accuracy_and_others_never_look_at_it():
    stopped = chain.train_scratch(run_of(replace(TINY, optimizer="adam", epochs=30, patience=2)))
    accuracies = [entry["test_accuracy"] for entry in stopped.history]
    assert len(accuracies) == keras_stops(accuracies, 2)
    assert stopped.metrics["final"]["accuracy"] == accuracies[-1]
    assert stopped.metrics["final"]["epochs"] == len(accuracies) < 30
    assert "test_accuracy" not in chain.train_scratch(run_of(TINY)).history[0]


@pytest.mark.slow
@pytest.mark.slow
def test_arms_that_differ_in_their_targets_end_in_different_students(trained):
    """All after six epochs from one start; a run's digest would also tell how many snapshots it has."""
    arms = {"scratch_2": "final", "direct": "round_1", "sham": "final"}
    weights = [
        torch.cat([value.flatten() for _, value in sorted(trained[arm].weights(snapshot).items())])
        for arm, snapshot in arms.items()
    ]
    assert not any(torch.equal(first, second) for first, second in combinations(weights, 2))


@pytest.mark.slow
def test_metrics_are_measured_on_the_test_pictures(trained):
    metrics = trained["sham"].metrics["final"]
    assert metrics.keys() == {"accuracy", "entropy", "confusion", "parameters", "agreement", "teacher_kl", "epochs"}
    assert metrics["parameters"] == COUNTS[2]
    assert trained["direct"].metrics["round_1"]["epochs"] == 6
    assert trained["direct"].metrics["final"]["epochs"] == 24


def test_nobody_is_taught_by_a_teacher_at_chance():
    run = taught(TINY)
    labels = run.data.train.labels
    run.parents["teacher"][0].soft_targets = lambda part: torch.zeros(len(labels), 10).index_fill_(
        1, labels.mode().values, 1.0
    )
    with pytest.raises(chain.KDError, match="above chance"):
        chain.train_distilled(replace(run, data=replace(run.data, synthetic=False)))


def test_bfloat16_changes_training_and_not_predictions():
    first, second = (chain.Network(2, precision) for precision in ("float32", "bfloat16"))
    second.load_state_dict(first.state_dict())
    x = torch.randint(256, (4, 3, 32, 32), generator=generator(0, "x"), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(first.eval()(x), second.eval()(x))
        torch.manual_seed(0)
        exact = first.train()(x)
        torch.manual_seed(0)
        rounded = second.train()(x)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.2


def test_sizes_and_optimizers_that_do_not_exist_say_what_does():
    with pytest.raises(chain.KDError, match="2, 4, 6, 8, 10"):
        chain.Network(3)
    with pytest.raises(chain.KDError, match="sgd or adam"):
        chain.train_scratch(run_of(replace(TINY, optimizer="lion")))


def test_taught_networks_have_the_layers_and_the_dropout_of_untaught_ones(monkeypatch):
    found = []

    def epochs(progress, *_, **__):
        found.append([(type(layer).__name__, getattr(layer, "p", None)) for layer in progress.model.modules()])
        return iter(())

    monkeypatch.setattr(chain, "epochs", epochs)
    monkeypatch.setattr(chain, "result", lambda *_: None)
    for train in (chain.train_scratch, chain.train_distilled, chain.train_sham):
        train(taught(replace(TINY, size=8)))
    assert ("Dropout", 0.4) in found[0]
    assert found[0] == found[1] == found[2]
