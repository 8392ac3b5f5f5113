"""Each replication names the network that its training functions train, and a stored run gets its network back."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdlib.errors import KDError
from kdlib.run import prepare, train
from kdlib.run.experiment import Arm, Profile, Run, load_experiment, replications
from kdlib.run.networks import origin_of, trained_network
from kdlib.run.store import prune
from kdlib.training import predict_logits
from tests.made_runs import run_of, taught

ROOT = Path(__file__).parents[2]
NAMES = replications(ROOT)


class Begun(Exception):
    """A training function has built its network."""


def trained_by(arm: Arm, run: Run, monkeypatch):
    """Return the network that the arm's training function builds; nothing is trained."""

    def begin(self, model, optimizer):
        raise Begun(model)

    monkeypatch.setattr(Run, "progress", begin)
    with pytest.raises(Begun) as begun:
        arm.results([run])
    return begun.value.args[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_takes_the_weights_of_what_its_arm_trains(name, monkeypatch):
    experiment, seen = load_experiment(name), set()
    for arm in experiment.arms:
        config = experiment.config(arm, experiment.profile("smoke"))
        run = run_of(experiment, config)
        network = experiment.network(arm, config, run.data)
        if network is None or arm.train in seen or set(arm.needs) - {"teacher"}:
            continue
        seen.add(arm.train)
        built = trained_by(arm, taught(run)[0] if arm.needs else run, monkeypatch)
        network.load_state_dict(built.state_dict())  # strict: the same names and shapes
        train_part, test_part = experiment.examples(arm, run.data, 0)
        assert len(train_part.inputs) > 0
        assert len(predict_logits(network, test_part.inputs[:2])) == 2
    assert len(seen) >= 2


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A session of profile smoke of ecg, and its runs by arm."""
    store = tmp_path_factory.mktemp("store")
    session = prepare("ecg", "smoke", arms=["teacher", "distilled"], store=store, workers=1)
    jobs = session.jobs()
    done = train(session, jobs).finished
    return session, {arm: done[job.description.id] for job in jobs for arm in job.arms}


@pytest.mark.slow
def test_a_run_gets_its_arm_configuration_and_network_back(stored):
    session, runs = stored
    everything = [load_experiment(name) for name in NAMES]
    for arm in ("teacher", "distilled"):
        origin = origin_of(runs[arm], everything)
        expected = session.experiment.config(session.experiment.arm(arm), session.profile)
        assert (origin.experiment.name, origin.config, origin.synthetic) == ("ecg", expected, True)
        data = session.experiment.load_data(origin.config, {})
        network = trained_network(runs[arm], "final", origin, data)
        assert not network.training
        found = predict_logits(network, data.test.inputs).argmax(1)
        hits = sum(row[k] for k, row in enumerate(runs[arm].metrics["final"]["confusion"]))
        assert int((found == data.test.labels).sum()) == hits


@pytest.mark.parametrize("profile", ["smoke", "quick", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_the_origin_of_a_run_is_an_arm_with_its_whole_configuration(name, profile):
    """Arms without changes share a training function with those that change it."""
    experiment = load_experiment(name)
    chosen = experiment.profile(profile)
    for arm in experiment.arms:
        config = experiment.config(arm, chosen)
        stored = json.loads(json.dumps(asdict(config))) | {"device": "cpu", "threads": 1}
        description = SimpleNamespace(config=stored, recipe=f"{experiment.source}/{arm.train.__name__}")
        run = SimpleNamespace(id="r", description=description, environment={"replication": name})
        origin = origin_of(run, [experiment])
        assert (origin.config, origin.arm.train) == (config, arm.train)
        profiles = [each for each in experiment.profiles.values() if experiment.config(origin.arm, each) == config]
        assert chosen in profiles
        assert origin.synthetic == any(each.synthetic for each in profiles)
        assert origin_of(run, [experiment], ["another", arm.name]).arm == arm


def test_a_run_of_data_that_no_profile_has_is_of_its_arm_all_the_same():
    ecg = load_experiment("ecg")
    arm = ecg.arm("baseline_mixup")
    config = replace(ecg.config(arm, ecg.profile("quick")), split="inter-patient")
    description = SimpleNamespace(config=asdict(config), recipe=f"{ecg.source}/{arm.train.__name__}")
    run = SimpleNamespace(id="r", description=description, environment={"replication": "ecg"})
    assert (origin_of(run, [ecg]).arm, origin_of(run, [ecg]).config) == (arm, config)


@dataclass(frozen=True)
class Inner:
    hidden: int = 32


@dataclass(frozen=True)
class Nested:
    """Values that a run's file does not have as they are: tuples of tuples, lists, dataclasses."""

    layers: tuple[tuple[str, int], ...] = (("hidden", 32),)
    sizes: list[int] = field(default_factory=lambda: [32])
    net: Inner = Inner()
    rate: float = 0.1


@pytest.mark.parametrize("change", [{}, {"net": Inner(64)}, {"layers": (("hidden", 8), ("other", 8)), "rate": 0.2}])
def test_a_configuration_comes_back_as_its_experiment_writes_it(change):
    ecg = load_experiment("ecg")
    first = ecg.arm("teacher")
    arms = (first, replace(first, name="changed", change=change)) if change else (first,)
    profiles = {"quick": Profile(Nested(rate=0.3), seeds=1), "smoke": Profile(Nested(), seeds=1, synthetic=True)}
    experiment = replace(ecg, arms=arms, profiles=profiles, check=(), banded=(), data_fields=(), network=ecg.network)
    config = experiment.config(arms[-1], profiles["smoke"])
    stored = json.loads(json.dumps(asdict(config))) | {"device": "cpu"}
    description = SimpleNamespace(config=stored, recipe=f"{ecg.source}/{first.train.__name__}")
    origin = origin_of(SimpleNamespace(id="r", description=description, environment={}), [experiment])
    assert (origin.config, origin.arm, origin.synthetic) == (config, arms[-1], True)


@pytest.mark.slow
def test_a_copied_folder_is_preferred_if_the_run_names_it(stored):
    _, runs = stored
    ecg = load_experiment("ecg")
    copy = replace(ecg, name="again")
    run = replace(runs["teacher"], environment={"replication": "again"})
    assert origin_of(run, [ecg, copy]).experiment.name == "again"


def test_what_has_no_network_is_refused(stored):
    session, runs = stored
    ecg, run = session.experiment, runs["teacher"]
    origin = origin_of(run, [ecg])
    data = ecg.load_data(origin.config, {})
    with pytest.raises(KDError, match="expected one of a replication in this folder, found recipe cvxtz-ecg/train_t"):
        origin_of(run, [load_experiment("mnist")])
    with pytest.raises(KDError, match="expected snapshot 'best', found at_released_stop, final"):
        trained_network(run, "best", origin, data)
    without = replace(ecg, network=lambda arm, config, data: None)
    with pytest.raises(KDError, match="expected a run that trained one network, found an ensemble"):
        trained_network(run, "final", replace(origin, experiment=without), data)
    with pytest.raises(KDError, match="expected the data that it was trained on, digest"):
        trained_network(run, "final", origin, replace(data, digest="other"))
    other = replace(ecg, network=lambda arm, config, data: torch.nn.Linear(2, 2))
    with pytest.raises(KDError, match="expected weights of its network, found none that fit"):
        trained_network(run, "final", replace(origin, experiment=other), data)


def test_a_pruned_run_says_so(stored):
    session, runs = stored
    run = runs["distilled"]
    prune(run)
    origin = origin_of(run, [session.experiment])
    with pytest.raises(KDError, match="its weights were pruned"):
        trained_network(run, "final", origin, session.experiment.load_data(origin.config, {}))
