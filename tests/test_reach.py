"""Which numbers of a program belong to a training: those that its functions use, in whatever class or module."""

import argparse
import dataclasses
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from kdlib.batches import Batches
from kdlib.held import TeacherInTraining
from kdlib.losses import soft_target_kl
from kdlib.ownership import OtherStart
from kdlib.reach import numbers_of
from kdlib.training import Progress, cross_entropy, epochs, hard_targets, predict_logits
from tests.small_trainings import BATCHES, EXAMPLES, adam, student

ROOT = Path(__file__).parents[1]


def draw(size=(8, 5)):
    return size


class Trainer:
    """As many programs have one: with the state of the session next to the settings of the training."""

    def __init__(self, place, count, temperature=4.0, **rest):
        network = student()
        self.count, self.temperature, self.steps = count, temperature, 5
        self.progress = Progress(network, adam(network), checkpoint=place, **rest)
        self.start, self.began = self.progress.epoch, time.perf_counter()

    def objective(self, outputs, batch):
        return cross_entropy(outputs / self.scale(), batch.labels)

    def scale(self):
        return self.temperature * 2.0

    def warm(self, epoch):
        return min(1.0, (epoch + 1) / self.steps)

    def fit(self):
        for _ in epochs(self.progress, BATCHES, self.objective, count=self.count, seed=0):
            assert self.start <= self.count
            assert time.perf_counter() - self.began < 1e6
            self.plot(7)

    def plot(self, width):
        return draw((width, 11))


def test_only_the_methods_that_an_objective_uses_have_numbers_of_it():
    found = numbers_of([Trainer(None, 2).objective], ())
    assert found == {"Trainer.temperature": "4.0", "Trainer.scale.numbers": "2.0"}


def test_a_trainer_goes_on_without_a_warning_and_with_other_numbers_it_is_told(tmp_path):
    Trainer(tmp_path / "c", 1).fit()
    Trainer(tmp_path / "c", 1).fit()
    Trainer(tmp_path / "c", 2).fit()
    with pytest.warns(OtherStart, match=r"Trainer\.temperature: the checkpoint has '4.0', this training '20.0'"):
        Trainer(tmp_path / "c", 3, 20.0).fit()


def test_a_scheduler_with_a_method_of_the_trainer_hides_nothing_of_it(tmp_path):
    def made(temperature):
        trainer = Trainer(None, 1, temperature)
        optimizer = trainer.progress.optimizer
        extras = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, trainer.warm)}
        trainer.progress = Progress(trainer.progress.model, optimizer, checkpoint=tmp_path / "c", extras=extras)
        return trainer

    made(4.0).fit()
    with pytest.warns(OtherStart, match=r"Trainer\.temperature"):
        made(20.0).fit()


EQUAL = torch.ones(3)
METHODS = {
    "a method": {"method": "other"},
    "a flag": {"hint": True},
    "the weights of a teacher": {"teacher": 2.0},
    "a weight of each class": {"classes": torch.tensor([1.0, 2.0, 4.0])},
    "the noise of an augmentation": {"noise": 0.5},
    "a whole objective": {"objective": lambda outputs, batch: hard_targets(outputs, batch)},
}


@pytest.mark.parametrize("changed", METHODS.values(), ids=METHODS)
def test_another_method_with_the_same_checkpoint_is_told(tmp_path, changed):
    def run(method="kd", hint=False, teacher=1.0, classes=EQUAL, noise=0.1, objective=None, device="cpu"):
        settings = argparse.Namespace(method=method, hint=hint, device=device, folder="runs/of/today")
        fixed = nn.Linear(4, 3).requires_grad_(False)
        nn.init.constant_(fixed.weight, teacher)
        nn.init.zeros_(fixed.bias)

        def loss(outputs, batch):
            assert settings.folder
            assert settings.device
            soft = predict_logits(fixed, batch.inputs)
            scale = 2.0 if settings.method == "kd" else 4.0
            hint = outputs.pow(2).mean() if settings.hint else 0
            return (
                soft_target_kl(outputs, soft, scale)
                + hint
                + nn.functional.cross_entropy(outputs, batch.labels, classes)
            )

        def augment(epoch):
            return lambda inputs: inputs + noise

        network = student()
        progress = Progress(network, adam(network), checkpoint=tmp_path / "c")
        batches = Batches(EXAMPLES, 8, 0, augment=augment, view="noise")
        for _ in epochs(progress, batches, objective or loss, count=1, seed=0):
            pass

    run()
    run()
    run(device="cuda")
    with pytest.warns(OtherStart, match="these values that the objective, the batches or the rate use are not"):
        run(**changed)


def test_seconds_of_a_clock_are_no_number():
    began, half = time.monotonic(), 3.5
    assert [*numbers_of([lambda outputs: (outputs * half, began)], ()).values()] == ["3.5"]


class Part:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs):
        return outputs * self.weight


def test_the_order_of_a_set_is_no_difference():
    parts = [Part(0.3), Part(0.1), Part(0.2)]

    def of(held):
        return numbers_of([lambda outputs: sum(part(outputs) for part in held)], ())

    assert of({*parts}) == of(parts) == of(parts[::-1]) == {"Part.weight": "0.1, 0.2, 0.3"}


def test_an_entry_that_is_set_under_another_key_or_in_a_tensor_hides_no_number():
    settings, features = {"temperature": 4.0, "seen": 0}, {}

    def keeps(outputs, batch):
        features["last"] = outputs
        return outputs * settings["temperature"]

    def masks(outputs, batch):
        outputs[batch.labels] = 0
        return outputs * settings["temperature"]

    def counts(outputs, batch):
        settings[batch.name] += 1
        return outputs * settings["temperature"]

    assert numbers_of([keeps], ())["temperature"] == numbers_of([masks], ())["temperature"] == "4.0"
    assert "temperature" not in numbers_of([counts], ())  # whose keys are not known


def test_ordered_settings_and_modules_in_packages_are_looked_into(tmp_path):
    settings = OrderedDict(temperature=4.0)
    assert numbers_of([lambda outputs: outputs * settings["temperature"]], ()) == {"temperature": "4.0"}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("N = 2.5\n")
    (tmp_path / "own" / "conf.py").write_text("import own\nT = 7.5\n")
    program = (
        "import own.conf\nfrom kdlib.reach import numbers_of\n"
        "def objective(outputs): return own.N * own.conf.T\nprint(numbers_of([objective], ()))"
    )
    (tmp_path / "program.py").write_text(program)
    environment = {"PYTHONPATH": f"{ROOT}"}
    run = [sys.executable, "program.py"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "{'objective.N': '2.5', 'objective.T': '7.5'}\n"


class Answering(dict):
    """Makes an entry for each name that it is asked for, as some dictionaries with dots do."""

    def __missing__(self, key):
        return self.setdefault(key, Answering())

    def __getattr__(self, name):
        return self[name]


def test_an_object_that_answers_to_any_name_is_not_changed_and_has_its_numbers():
    settings = Answering(temperature=4.0)
    assert numbers_of([lambda outputs: outputs * settings["temperature"]], ()) == {"temperature": "4.0"}
    assert settings == {"temperature": 4.0}


def test_a_class_without_a_module_and_long_tuples_end_no_training():
    nameless = type("Nameless", (), {"__module__": None, "rate": 0.25})
    rows = tuple(range(1000))
    assert numbers_of([lambda outputs: outputs * nameless.rate * len(rows)], ()) == {"Nameless.rate": "0.25"}


def test_many_plain_numbers_next_to_a_teacher_do_not_hide_it():
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    rows = [[100 * row + number / 1000 for number in range(100)] for row in range(100)]
    held = [[[[teacher]]]]

    def objective(outputs, batch):
        assert rows
        return soft_target_kl(outputs, held[0][0][0][0](batch.inputs).detach(), 2.0)

    network = student()
    with pytest.warns(TeacherInTraining):
        for _ in epochs(Progress(network, adam(network)), BATCHES, objective, count=1, seed=0):
            pass


@dataclasses.dataclass
class Config:
    alpha: float = 0.5
    epochs: int = 3
    run: str = "kd-Dec-01-04h44m49"


def test_of_a_configuration_only_the_fields_that_are_used_are_compared():
    config = Config(epochs=7)
    found = numbers_of([lambda outputs: (outputs * config.alpha, config.run)], ())
    assert {*found} == {"Config.alpha"}
