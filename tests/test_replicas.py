"""Students side by side against the same students trained one after another."""

import math
from collections import Counter

import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlib.batches import Batch, Batches, Examples
from kdlib.errors import KDError
from kdlib.losses import cross_entropy, hard_and_soft
from kdlib.networks import he_uniform_, keras_adam, keras_glorot_
from kdlib.replicas import Replicas, of_replica, side_by_side
from kdlib.seeds import derive_seed, generator
from kdlib.targets import SoftTargets
from kdlib.training import NonFiniteLoss, Progress, epochs, hard_targets, predict_logits, train_step
from replications.course_report.cifar import Student

N, K, SIZE = 22, 3, 8  # the last batch is short
SEEDS = (7, 1, 4)


class Small(nn.Module):
    """A dense layer, batch norm, and dropout that accepts its random numbers as Replicas require."""

    draws = 16

    def __init__(self, seed, rate=0.4):
        super().__init__()
        self.rate = rate
        self.hidden, self.norm, self.output = nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Linear(16, K)
        he_uniform_(self, generator(seed, "weights"))

    def forward(self, x, uniform=None):
        h = self.norm(self.hidden(x).relu())
        if self.training:
            uniform = torch.rand(len(x), self.draws) if uniform is None else uniform
            h = h * (uniform >= self.rate) / (1 - self.rate)
        return self.output(h)


def examples_of(seed=0, count=N, noise=0.0):
    inputs = torch.randn(count, 5, generator=generator(seed, "inputs"))
    disturbed = inputs + noise * torch.randn(count, 5, generator=generator(seed, "noise"))
    return Examples(inputs, disturbed[:, :K].argmax(1), f"data {seed}")


def hard(outputs, batch):
    return cross_entropy(outputs, batch.labels)


def each_hard(outputs, batch):
    return torch.vmap(cross_entropy)(outputs, batch.labels)


def group(seeds=SEEDS, checkpoint=None):
    model = Replicas([Small(seed) for seed in seeds])
    return Progress(model, keras_adam(model.parameters(), 0.01), checkpoint=checkpoint, label="group")


def batches_of(seeds=SEEDS):
    return side_by_side([Batches(examples_of(), SIZE, seed) for seed in seeds])


def close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.allclose(found[name], value, rtol=tolerance, atol=tolerance), name


# ---- side by side and one after another


def student(seed, rates):
    model = he_uniform_(Student(), generator(seed, "weights")).double()
    model.RATES = rates
    return model


def pictures_with_targets(seed):
    draws = generator(seed, "pictures")
    inputs = torch.randint(256, (14, 3, 32, 32), dtype=torch.uint8, generator=draws)
    examples = Examples(inputs, torch.arange(14) % 10, f"pictures {seed}")
    return examples, SoftTargets(
        3 * torch.randn(14, 10, generator=draws, dtype=torch.float64), "teacher", f"pictures {seed}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.0,) * 4, Student.RATES], ids=["no dropout", "dropout"])
def test_replicas_end_where_single_runs_do(rates):
    """Weights, averages of batch norm and losses are equal after an epoch of four steps, of which the last is short.

    The students differ in seed, examples, soft targets, alpha and temperature.
    """
    alphas, temperatures = (0.2, 0.6, 1.0), (2.0, 8.0, 4.0)
    batches = [Batches(examples, 4, seed, soft) for seed in SEEDS for examples, soft in [pictures_with_targets(seed)]]

    model = Replicas([student(seed, rates) for seed in SEEDS])
    a, t = torch.tensor([alphas, temperatures], dtype=torch.float64)
    progress = Progress(model, keras_adam(model.parameters()))
    list(
        epochs(
            progress,
            side_by_side(batches),
            lambda outputs, batch: torch.vmap(hard_and_soft)(outputs, batch.soft, batch.labels, 1 - a, a, t),
            count=1,
            seed=SEEDS,
        )
    )

    for r, (seed, alpha, temperature) in enumerate(zip(SEEDS, alphas, temperatures, strict=True)):
        single, before = student(seed, rates), student(seed, rates).state_dict()
        alone = Progress(single, keras_adam(single.parameters()))
        list(
            epochs(
                alone,
                batches[r],
                lambda outputs, batch, a=alpha, t=temperature: hard_and_soft(
                    outputs, batch.soft, batch.labels, 1 - a, a, t
                ),
                count=1,
                seed=seed,
            )
        )
        close(model.member(r).state_dict(), single.state_dict(), 1e-9)
        assert progress.history[0][f"training_loss/{r}"] == pytest.approx(alone.history[0]["training_loss"], rel=1e-9)
        # The batch norm of a dense layer does not count its batches: nothing reads the number.
        trained = {name: value for name, value in single.state_dict().items() if name != "norm.num_batches_tracked"}
        assert all((value != before[name]).any() for name, value in trained.items())


class Reused(nn.Module):
    """One layer twice, and two layers that share their weights."""

    def __init__(self, seed):
        super().__init__()
        self.twice, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        keras_glorot_(self, generator(seed, "weights"))
        self.second.weight = self.twice.weight
        self.body = nn.Sequential(self.twice, nn.ReLU(), self.twice, nn.Tanh(), self.second, nn.ReLU(), self.last)
        self.double()

    def forward(self, x):
        return self.body(x)


def test_layers_that_are_used_twice_and_tied_weights_end_where_single_runs_do():
    inputs = torch.randn(14, 6, generator=generator(0, "inputs"), dtype=torch.float64)
    batches = [Batches(Examples(inputs, inputs[:, :3].argmax(1)), 4, seed) for seed in SEEDS]
    model = Replicas([Reused(seed) for seed in SEEDS])
    progress = Progress(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    objective = torch.vmap(cross_entropy)
    for _ in epochs(progress, side_by_side(batches), lambda o, b: objective(o, b.labels), count=2, seed=SEEDS):
        pass
    for r, seed in enumerate(SEEDS):
        single = Reused(seed)
        alone = Progress(single, torch.optim.SGD(single.parameters(), lr=0.1, momentum=0.9))
        for _ in epochs(alone, batches[r], hard_targets, count=2, seed=seed):
            pass
        member = model.member(r)
        close(member.state_dict(), single.state_dict(), 1e-9)
        assert member.second.weight is member.twice.weight


def test_a_replicas_dropout_is_of_its_own_seed():
    """Another seed changes that member and no other, so the students of the test above do have dropout."""
    ends = []
    for seeds in (SEEDS, (*SEEDS[:2], 99)):
        progress = group()
        list(epochs(progress, batches_of(), each_hard, count=1, seed=seeds))
        ends.append(progress.model)
    close(ends[0].member(0).state_dict(), ends[1].member(0).state_dict(), 0.0)
    assert not torch.equal(ends[0].member(2).output.weight, ends[1].member(2).output.weight)


class Calls(TorchDispatchMode):
    """Count the operators that reach the device, and note the groups of the convolutions."""

    def __init__(self):
        super().__init__()
        self.count, self.groups = Counter(), set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count[operator.name()] += 1
        if operator is torch.ops.aten.convolution.default:
            self.groups.add(args[8])
        return operator(*args, **(kwargs or {}))


def test_a_step_of_many_makes_as_many_convolution_calls_as_a_step_of_one():
    found = {}
    for replicas in (1, 2, 5):
        model = Replicas([Student() for _ in range(replicas)])
        model.seed_layers(range(replicas))
        pictures = torch.zeros(replicas, 2, 3, 32, 32, dtype=torch.uint8)
        batch = Batch(pictures, torch.tensor([[0, 1]] * replicas), torch.arange(2))
        with Calls() as calls:
            train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), each_hard, batch)
        assert calls.groups == {replicas}
        found[replicas] = tuple(calls.count[f"aten::convolution{part}"] for part in ("", "_backward"))
    assert set(found.values()) == {(6, 6)}  # a student has six convolutions


def test_dropout_of_replicas_is_torchs_on_average():
    """Ten students side by side and ten alone with torch's own dropout (other random numbers): equal mean losses."""

    class Plain(Small):
        def forward(self, x):
            return self.output(nn.functional.dropout(self.norm(self.hidden(x).relu()), self.rate, self.training))

    tests = examples_of(1, 400)

    def batches(seed):
        return Batches(examples_of(0, 96, noise=1.0), 16, seed)

    def losses(models):
        return [cross_entropy(predict_logits(model, tests.inputs), tests.labels).item() for model in models]

    def alone(seed, rate):
        model = Plain(seed, rate)
        list(epochs(Progress(model, keras_adam(model.parameters(), 0.01)), batches(seed), hard, count=8, seed=seed))
        return model

    seeds = range(10)
    model = Replicas([Small(seed, 0.5) for seed in seeds])
    list(
        epochs(
            Progress(model, keras_adam(model.parameters(), 0.01)),
            side_by_side([batches(seed) for seed in seeds]),
            each_hard,
            count=8,
            seed=seeds,
        )
    )
    replicas = losses(model.member(r) for r in seeds)
    low, high = stats.ttest_rel(replicas, losses(alone(seed, 0.5) for seed in seeds)).confidence_interval(0.99)
    assert low < 0 < high
    without = losses(alone(seed, 0.0) for seed in seeds)
    assert stats.ttest_rel(replicas, without).pvalue < 0.001  # the test would notice if there were no dropout


# ---- killed and resumed


def test_a_killed_and_resumed_group_gives_the_bytes_of_an_unbroken_one(tmp_path):
    def train(path, killed_in=None):
        progress = group(checkpoint=path)
        steps = Counter()

        def objective(outputs, batch):
            steps[progress.epoch + 1] += 1
            if killed_in == progress.epoch + 1 and steps[killed_in] == 2:
                raise KeyboardInterrupt
            return each_hard(outputs, batch)

        for epoch in epochs(progress, batches_of(), objective, count=3, seed=SEEDS, rate=lambda epoch: 0.01 / epoch):
            if epoch == 1:
                progress.keep("first")
        return progress, steps

    whole, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", killed_in=2)
    resumed, steps = train(tmp_path / "killed")
    assert steps == {2: 3, 3: 3}  # epoch 1 was not trained again
    assert not resumed.notice
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert resumed.history == whole.history
    for tensors in (
        {name: (value, resumed.model.state_dict()[name]) for name, value in whole.model.state_dict().items()},
        {name: (value, resumed.kept["first"][name]) for name, value in whole.kept["first"].items()},
    ):
        assert all(torch.equal(*pair) for pair in tensors.values())


def test_a_checkpoint_of_fewer_replicas_is_refused(tmp_path):
    for _ in epochs(group(SEEDS[:2], tmp_path / "c"), batches_of(SEEDS[:2]), each_hard, count=1, seed=SEEDS[:2]):
        pass
    with pytest.raises(KDError, match=r"network.hidden/weight: the checkpoint has 'float32 \(2, 16, 5\)'"):
        group(SEEDS, tmp_path / "c")


# ---- members


def test_a_member_is_its_own_network():
    members = [Small(seed) for seed in SEEDS]
    model = Replicas(members)
    assert len(model) == 3
    for r, member in enumerate(members):
        close(model.member(r).state_dict(), member.state_dict(), 0.0)
    copy = model.member(1)
    with torch.no_grad():
        copy.output.weight.zero_()
    assert torch.equal(model.member(1).output.weight, members[1].output.weight)
    with torch.no_grad():
        members[0].output.weight.zero_()
    assert model.member(0).output.weight.any()


def test_outputs_in_evaluation_are_the_members_own():
    model = Replicas([Small(seed) for seed in SEEDS]).eval()
    inputs = torch.randn(3, 4, 5, generator=generator(0, "x"))
    for r, outputs in enumerate(model(inputs)):
        member = model.member(r)
        assert not member.training
        torch.testing.assert_close(outputs, member(inputs[r]))
    assert model.train().member(0).training


def test_parts_of_stacked_tensors_are_copies_under_the_members_names():
    stacked = {"hidden/0/weight": torch.arange(6.0).view(3, 2), "steps": torch.tensor([4, 5, 6])}
    part = of_replica(stacked, 1)
    assert {name: value.tolist() for name, value in part.items()} == {"hidden.0.weight": [2.0, 3.0], "steps": 5}
    part["hidden.0.weight"].zero_()
    assert stacked["hidden/0/weight"][1].tolist() == [2.0, 3.0]


def test_a_member_without_draws_is_given_its_inputs_only():
    model = Replicas([nn.Linear(5, K) for _ in range(2)])
    assert model.train()(torch.zeros(2, 4, 5)).shape == (2, 4, K)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [nn.Linear(5, 3), nn.Linear(5, 4)],
        [nn.Linear(5, 3), nn.Linear(5, 3, bias=False)],
        [nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 3))],
    ],
    ids=["none", "shapes", "parts", "names"],
)
def test_other_architectures_are_refused(members):
    with pytest.raises(KDError, match="of one architecture"):
        Replicas(members)


@pytest.mark.parametrize("seeds", [3, (3,), (1, 2, 3, 4)])
def test_every_replica_has_a_seed(seeds):
    with pytest.raises(
        KDError, match=f"expected 3 seeds, one for each replica, found {1 if seeds == 3 else len(seeds)}"
    ):
        next(epochs(group(), batches_of(), each_hard, count=1, seed=seeds))


# ---- losses and batches


def test_the_history_has_each_replicas_mean_loss_and_their_mean():
    progress, losses = group(), []

    def objective(outputs, batch):
        losses.append(each_hard(outputs, batch))
        return losses[-1]

    list(epochs(progress, batches_of(), objective, count=1, seed=SEEDS))
    means = torch.stack(losses).detach().double().mean(0).tolist()
    expected = {"training_loss": sum(means) / 3, **{f"training_loss/{r}": mean for r, mean in enumerate(means)}}
    assert progress.history == [pytest.approx(expected, rel=1e-12)]
    assert len(set(means)) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_in_one_replica_is_refused(value):
    progress, factors = group(), [1.0, 1.0, 1.0]

    def objective(outputs, batch):
        factors[1] = value if batch.inputs.shape[1] < SIZE else 1.0  # in the short batch, the third
        return each_hard(outputs, batch) * torch.tensor(factors)

    with pytest.raises(
        NonFiniteLoss, match=rf"^group: .* found \[.*, {value}, .*\] of replica 1, .* at epoch 1, step 3 of 3"
    ):
        list(epochs(progress, batches_of(), objective, count=1, seed=SEEDS))


def test_batches_beside_each_other_have_each_members_own_order_and_soft_targets():
    every = [examples_of(seed) for seed in SEEDS]
    logits = [torch.randn(N, K, generator=generator(seed, "teacher")) for seed in SEEDS]
    members = [
        Batches(examples, SIZE, seed, SoftTargets(rows, "teacher", examples.digest))
        for examples, seed, rows in zip(every, SEEDS, logits, strict=True)
    ]
    batches = list(side_by_side(members)(2))
    assert [batch.inputs.shape for batch in batches] == [(3, 8, 5), (3, 8, 5), (3, 6, 5)]
    for r, seed in enumerate(SEEDS):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(derive_seed(seed, "order", 2)))
        wholes = {"indices": torch.arange(N), "inputs": every[r].inputs, "labels": every[r].labels, "soft": logits[r]}
        for name, whole in wholes.items():
            assert torch.equal(torch.cat([getattr(batch, name)[r] for batch in batches]), whole[order]), name


def test_batches_without_soft_targets_have_none_and_other_lengths_are_refused():
    assert next(batches_of()(1)).soft is None
    with pytest.raises(KDError, match="batches of one size"):
        list(side_by_side([Batches(examples_of(0, count), SIZE, 0) for count in (16, 24)])(1))


# ---- batches of one data set are gathered by one index


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("count", [5, 21, 24, 700])
def test_gathered_batches_are_the_stacked_ones(soft, count):
    examples = examples_of(count=count)
    targets = [
        SoftTargets(torch.randn(count, K, generator=generator(seed, "soft")), str(seed), examples.digest)
        for seed in SEEDS
    ]
    members = [Batches(examples, SIZE, seed, one if soft else None) for seed, one in zip(SEEDS, targets, strict=True)]
    gathered = list(side_by_side(members)(2))
    stacked = list(side_by_side([member.__call__ for member in members])(2))  # plain functions are asked one by one
    assert len(gathered) == len(stacked) == math.ceil(count / SIZE)
    for one, other in zip(gathered, stacked, strict=True):
        for name in ("inputs", "labels", "indices"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.inputs.is_contiguous()
        assert torch.equal(one.soft, other.soft) if soft else one.soft is other.soft is None


def test_members_of_other_data_are_not_gathered_from_the_first():
    members = [Batches(examples_of(seed), SIZE, 0) for seed in range(2)]
    for batch in side_by_side(members)(1):
        assert torch.equal(batch.indices[0], batch.indices[1])
        assert not torch.equal(batch.inputs[0], batch.inputs[1])


def test_a_transposed_view_is_not_gathered_from_the_first():
    square = torch.randn(N, 4, 4, generator=generator(0, "square"))
    one, other = (Examples(x, examples_of().labels, "d") for x in (square, square.transpose(1, 2)))
    batch = next(side_by_side([Batches(one, SIZE, 0), Batches(other, SIZE, 0)])(1))
    assert torch.equal(batch.inputs[0], batch.inputs[1].transpose(1, 2))
