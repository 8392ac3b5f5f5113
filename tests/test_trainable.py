"""What a training refuses before its first step, and measurements without an epoch."""

import re

import pytest
import safetensors.torch
import torch
from torch import nn

from kdlib.batches import Batches, Examples
from kdlib.errors import KDError
from kdlib.progress import Progress
from kdlib.replicas import Replicas
from kdlib.seeds import generator
from kdlib.trainable import MembersMayMix, WeightsNotTrained
from kdlib.training import epochs, hard_targets, predict_logits, predict_soft_targets

INPUTS = torch.randn(32, 4, generator=generator(0, "inputs"))
EXAMPLES = Examples(INPUTS, INPUTS[:, :3].argmax(1))
BATCHES = Batches(EXAMPLES, 8, 0)
NOT_UTF_8 = b"caf\xe9".decode("utf-8", "surrogateescape")  # as os.listdir gives such a name


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(progress):
    return [*epochs(progress, Batches(EXAMPLES, 16, 0), hard_targets, count=2, seed=0)]


# ---- the optimizer


def test_another_networks_optimizer_is_refused_before_training():
    model = network()
    with pytest.raises(KDError, match=r"holds none of 0.weight, 0.bias, 2.weight, 2.bias; make it from model.param"):
        train(Progress(model, sgd(network())))


def test_a_head_that_replaced_another_is_told_and_a_frozen_one_is_not():
    model = network()
    progress = Progress(model, sgd(model))
    model[2] = nn.Linear(8, 3)
    with pytest.warns(WeightsNotTrained, match="does not hold 2.weight, 2.bias, so they remain as they are"):
        train(progress)
    model[2].requires_grad_(False)
    assert train(Progress(model, sgd(model[0]))) == [1, 2]  # warnings are errors here


def test_an_optimizer_may_hold_more_than_the_model():
    model, layer_of_the_loss = network(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD([*model.parameters(), *layer_of_the_loss.parameters()], lr=0.1)
    assert train(Progress(model, optimizer)) == [1, 2]


def test_an_optimizer_that_asks_for_the_loss_several_times_is_refused():
    model = network()
    with pytest.raises(KDError, match="found LBFGS, which needs the loss several times; use another"):
        Progress(model, torch.optim.LBFGS(model.parameters()))


def test_an_optimizer_that_would_mix_replicas_is_refused():
    model = Replicas([network(), network()])
    with pytest.raises(KDError, match="each number alone, as SGD and Adam do, found Adafactor, which would mix"):
        Progress(model, torch.optim.Adafactor(model.parameters()))
    Progress(network(), torch.optim.Adafactor(network().parameters()))


class LayerWise(torch.optim.SGD):
    """A step as long as the weights: one norm for each tensor, whatever the class is called."""

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad *= weight.detach().norm() / weight.grad.norm()
        super().step()


class Clipped(torch.optim.Adam):
    """One limit for the norm of all gradients together."""

    def step(self, closure=None):
        nn.utils.clip_grad_norm_([weight for group in self.param_groups for weight in group["params"]], 1.0)
        super().step()


class Limited(torch.optim.SGD):
    """The same, with a limit that is no setting of a group."""

    def __init__(self, parameters, lr, limit=None):
        super().__init__(parameters, lr=lr)
        self.limit = limit

    def step(self, closure=None):
        if self.limit is not None:
            nn.utils.clip_grad_norm_([weight for group in self.param_groups for weight in group["params"]], self.limit)
        super().step()


class OfMatrices(torch.optim.SGD):
    """Only matrices decay: a stack of vectors is one."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.mul_(0.9 if weight.ndim > 1 else 1.0)
        super().step()


class Lars(torch.optim.SGD):
    """A class that cannot be made anew from its settings is known by its name."""

    def __init__(self, network):
        super().__init__(network.parameters(), lr=0.1)


class Renamed(torch.optim.SGD):
    """It cannot be made anew: its setting has another name than its argument."""

    def __init__(self, parameters, lr, largest):
        super().__init__(parameters, lr=lr)
        self.limit = largest


class Noisy(torch.optim.SGD):
    """Langevin dynamics: noise at each step."""

    def step(self, closure=None):
        super().step()
        with torch.no_grad():
            for weight in self.param_groups[0]["params"]:
                weight.add_(0.01 * torch.randn_like(weight))


@pytest.mark.parametrize("make", [lambda weights: Renamed(weights, 0.1, 1.0), lambda weights: Noisy(weights, lr=0.1)])
def test_an_optimizer_of_replicas_that_cannot_be_tried_is_told(make):
    model = Replicas([network(), network()])
    optimizer, state = make(model.parameters()), torch.get_rng_state()
    with pytest.warns(MembersMayMix, match="it could not be tried whether (Renamed|Noisy) treats each number alone"):
        Progress(model, optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    Progress(network(), make(network().parameters()))  # without a warning, which would fail


@pytest.mark.parametrize("place", ["the loop's", "an extra"])
@pytest.mark.parametrize("kind", [LayerWise, Clipped, Limited, OfMatrices, Lars])
@pytest.mark.parametrize("rate", [0.1, 1e-9])
def test_an_optimizer_of_any_name_that_would_mix_replicas_is_refused(kind, rate, place):
    model = Replicas([network(), network()])
    settings = {"limit": 0.1} if kind is Limited else {}
    optimizer = kind(model) if kind is Lars else kind(model.parameters(), lr=rate, **settings)
    given = (optimizer, {}) if place == "the loop's" else (sgd(model), {"other": optimizer})
    with pytest.raises(KDError, match=f"found {kind.__name__}, which would mix the members"):
        Progress(model, given[0], extras=given[1])


def test_an_optimizer_of_other_weights_than_the_members_may_look_at_whole_tensors():
    model, layer = Replicas([network(), network()]), nn.Linear(3, 3)
    Progress(model, sgd(model), extras={"layer": layer, "other": torch.optim.Adafactor(layer.parameters())})
    Progress(model, Limited(model.parameters(), lr=0.1))  # without a limit


ELEMENT_WISE = ["ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("kind", ELEMENT_WISE)
@pytest.mark.parametrize("rate", [0.1, 1e-9])
def test_torchs_element_wise_optimizers_train_replicas(kind, rate):
    model, state = Replicas([network(), network()]), torch.get_rng_state()
    Progress(model, getattr(torch.optim, kind)(model.parameters(), lr=rate))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_optimizer_with_groups_and_options_trains_replicas():
    model = Replicas([network(), network()])
    first, *others = model.parameters()
    groups = [{"params": [first], "lr": 1.0}, {"params": others, "weight_decay": 0.0}]
    Progress(model, torch.optim.AdamW(groups, lr=torch.tensor(0.0), fused=True, amsgrad=True))


def test_the_list_of_element_wise_optimizers_is_whole():
    found = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    mixing = {"Adafactor", "LBFGS", "Muon"}
    assert found - mixing - {"SparseAdam", "Optimizer"} == set(ELEMENT_WISE)


def test_lazy_layers_are_refused():
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))
    with pytest.raises(KDError, match=r"found the lazy 0\.weight; call the model first"):
        Progress(model, sgd(model))


# ---- the checkpoint


def archive(path):
    torch.save(network().state_dict(), path)


def other_weights(path):
    safetensors.torch.save_file(network().state_dict(), path, {"format": "pt"})


def text(path):
    path.write_text("print('a script')")


@pytest.mark.parametrize("write", [archive, other_weights, text])
def test_a_file_of_the_users_is_not_moved(tmp_path, write):
    path, model = tmp_path / "model", network()
    write(path)
    content = path.read_bytes()
    with pytest.raises(KDError, match="expected a checkpoint, found a file of another kind; give this"):
        Progress(model, sgd(model), checkpoint=path)
    assert path.read_bytes() == content
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("about", [{"label": NOT_UTF_8}, {"about": {"file": NOT_UTF_8}}])
def test_a_text_that_no_file_can_hold_is_refused_before_training(tmp_path, about):
    model = network()
    with pytest.raises(KDError, match=r"what JSON cannot hold .*texts in UTF-8"):
        Progress(model, sgd(model), checkpoint=tmp_path / "c", **about)


def test_a_name_that_no_file_can_hold_is_refused(tmp_path):
    model = network()
    progress = Progress(model, sgd(model), checkpoint=tmp_path / "c")
    train(progress)
    progress.keep(NOT_UTF_8)
    with pytest.raises(KDError, match=re.escape(r"expected text that a file can hold, found 'caf\udce9'")):
        progress.save()


# ---- measurements, data, teachers


def test_a_measurement_belongs_to_an_epoch():
    model = network()
    progress = Progress(model, sgd(model))
    with pytest.raises(KDError, match="expected a trained epoch to record for, found none"):
        progress.record(accuracy=0.5)
    with pytest.raises(KDError, match="expected a measurement 'loss' of the current epoch, found"):
        progress.is_lowest("loss")


def test_a_measurement_of_some_epochs_is_compared_with_those_that_have_it():
    model = network()
    progress, lowest = Progress(model, sgd(model)), {}
    for epoch in epochs(progress, Batches(EXAMPLES, 16, 0), hard_targets, count=6, seed=0):
        if epoch % 2 == 0:
            progress.record(loss=[3.0, 4.0, 2.0][epoch // 2 - 1])
            lowest[epoch] = progress.is_lowest("loss")
    assert lowest == {2: True, 4: False, 6: True}


@pytest.mark.parametrize("inputs", [INPUTS.to_sparse(), INPUTS.to("meta")], ids=["sparse", "meta"])
def test_inputs_without_values_in_rows_are_refused(inputs):
    with pytest.raises(KDError, match="inputs: expected a dense tensor with values"):
        Examples(inputs, EXAMPLES.labels)


def test_a_teacher_with_several_outputs_gives_the_soft_targets_of_one():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return {"logits": self.network(x), "features": x}

    teacher = Several()
    soft = predict_soft_targets(teacher, EXAMPLES, output="logits")
    assert torch.equal(soft.logits, predict_logits(teacher.network, INPUTS))


class Scale:
    """An object with a state that is no module, and whose state is a copy."""

    def __init__(self):
        self.value = nn.Parameter(torch.tensor(0.5))

    def state_dict(self):
        return {"value": self.value.detach().clone()}

    def load_state_dict(self, state):
        self.value.data.copy_(state["value"])


@pytest.mark.parametrize("made", [lambda: nn.Linear(3, 4), lambda: nn.ParameterList([torch.tensor(0.5)]), Scale])
def test_weights_that_only_the_loss_uses_must_be_in_the_checkpoint(tmp_path, made):
    def train(path, saved, stop=None):
        model, extra = network(), made()
        weights = [extra.value] if isinstance(extra, Scale) else [*extra.parameters()]
        optimizer = torch.optim.SGD([*model.parameters(), *weights], lr=0.1, momentum=0.9)
        progress = Progress(model, optimizer, checkpoint=path, extras={"extra": extra} if saved else None)

        def objective(outputs, batch):
            return hard_targets(outputs * sum(weight.mean() for weight in weights), batch)

        for epoch in epochs(progress, BATCHES, objective, count=3, seed=0):
            if epoch == stop:
                break
        return [value.detach() for value in (*model.parameters(), *weights)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = train(None, saved=False)
        for stop in (2, None):
            torch.manual_seed(0)
            found = train(tmp_path / "c", saved=True, stop=stop)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(KDError, match=r"found \d that are neither the model's nor in extras, the first of shape \("):
        train(tmp_path / "other", saved=False)


@pytest.mark.parametrize("name", ["file/student", "link/student", "x" * 250, "x" * 300, f"{'x' * 300}/student"])
def test_a_place_where_no_checkpoint_can_be_written_is_told_before_training(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    model = network()
    with pytest.raises(KDError, match=r"expected a folder .*, found a file or a link that leads|at most 240 bytes"):
        Progress(model, sgd(model), checkpoint=tmp_path / name)
    Progress(model, sgd(model), checkpoint=tmp_path / "new" / "folders" / ("x" * 240))


def test_a_folder_that_may_not_be_written_is_told_before_training(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = network()
    train(Progress(model, sgd(model), checkpoint=tmp_path / "finished"))
    torch.manual_seed(0)
    model = network()
    monkeypatch.setattr("kdlib.checkpoint.os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(KDError, match="found one that may not be written; choose another place"):
        Progress(model, sgd(model), checkpoint=tmp_path / "new")
    trained = Progress(model, sgd(model), checkpoint=tmp_path / "finished")  # nothing more is to be written
    assert trained.epoch == 2
