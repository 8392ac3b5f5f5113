"""Runs trained side by side: which ones are, what is stored of them, and the same bytes after any interruption."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from kdlib import cli
from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute, Experiment, Profile, load_experiment
from kdlib.run.plan import plan
from kdlib.run.records import record_of
from kdlib.run.store import Store
from tests.audit import records as audited
from tests.cli.test_gates import CLAIMS
from tests.conftest import changed, contents, module_of, write_toy

CPU = Compute()

# ---- the plan, of arms that are never trained


@dataclass(frozen=True)
class Config:
    alpha: float = 0.5
    rate: float = 0.01


def train_teacher(run):
    raise AssertionError


def train_student(run):
    raise AssertionError


def train_other(run):
    raise AssertionError


def grouped(name, teacher="", train=train_student, **change):
    return Arm(name, (), train, {"teacher": teacher} if teacher else {}, change, mapped=("alpha",))


TEACHER = Arm("teacher", (), train_teacher)


def planned(*arms, seeds=(0,), replicas=1, data=lambda config: "d", names=(), order="seeds", compute=CPU):
    profile = Profile(Config(), 1)
    experiment = Experiment(
        source="made-up",
        protocol=1,
        data=(),
        load_data=lambda config, folders: SimpleNamespace(digest=data(config), name="data"),
        arms=arms,
        profiles={"quick": profile},
        check=(),
        banded=(),
    )
    return plan(experiment, profile, names or [arm.name for arm in arms], seeds, compute, {}, replicas, order)


def groups_of(jobs):
    """The groups as sets of "arm seed"; a run without a group is not in it."""
    found = {}
    for job in jobs:
        if job.group:
            found.setdefault(job.group, []).append(f"{job.arms[0]} {job.description.seed}")
    return sorted(map(sorted, found.values()))


def counterparts(first, second):
    """Pairs of jobs that serve the same arms with the same seed; a group moves its runs in the order of work."""
    assert len(first) == len(second)
    of = {(job.arms, job.description.seed): job for job in second}
    return [(job, of[job.arms, job.description.seed]) for job in first]


def identity(recipe, seed, parents=None, **config):
    description = {
        "recipe": f"made-up/{recipe}",
        "protocol": 1,
        "seed": seed,
        "data": "d",
        "parents": parents or {},
        "config": {"alpha": 0.5, "rate": 0.01, "device": "cpu", "threads": 1} | config,
    }
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_runs_that_differ_in_seed_and_mapped_fields_alone_are_grouped():
    jobs = planned(
        grouped("a", alpha=0.1),
        grouped("b", alpha=0.2),
        grouped("faster", rate=0.1),
        grouped("other", train=train_other),
        Arm("alone", (), train_teacher),
        seeds=(0, 1),
        replicas=10,
    )
    assert groups_of(jobs) == [["a 0", "a 1", "b 0", "b 1"], ["faster 0", "faster 1"], ["other 0", "other 1"]]
    assert len(jobs) == 10


def test_runs_on_other_data_are_not_grouped():
    arms = grouped("a", alpha=0.1), grouped("b", alpha=0.2), grouped("c", alpha=0.3)
    assert groups_of(planned(*arms, replicas=3, data=lambda config: str(config.alpha < 0.25))) == [["a 0", "b 0"]]


@pytest.mark.parametrize(("replicas", "sizes"), [(1, []), (2, [2, 2]), (3, [3, 2]), (4, [4]), (5, [5]), (9, [5])])
def test_a_group_has_at_most_so_many_and_one_that_is_left_over_is_trained_alone(replicas, sizes):
    jobs = planned(grouped("a"), seeds=range(5), replicas=replicas)
    assert [len(group) for group in groups_of(jobs)] == sizes
    for job in jobs:
        size = sum(other.group == job.group for other in jobs) if job.group else 1
        side_by_side = {"replicas": size} if size > 1 else {}
        assert job.description.id == identity("train_student", job.description.seed, **side_by_side)


def test_a_group_is_of_runs_that_stand_together_in_the_plan():
    """Seed by seed: 25 cells and 25 replicas are a group for each seed."""
    jobs = planned(*(grouped(f"a{n}", alpha=n / 10) for n in range(3)), seeds=(0, 1), replicas=3)
    assert groups_of(jobs) == [[f"a{n} {seed}" for n in range(3)] for seed in (0, 1)]


def test_nothing_but_the_number_of_replicas_and_the_parents_differs_in_a_description():
    below = Arm("below", (), train_other, {"teacher": "again"})
    arms = TEACHER, grouped("student", "teacher"), grouped("again", "student"), below
    plain, side_by_side = planned(*arms, seeds=(0, 1)), planned(*arms, seeds=(0, 1), replicas=2)
    ids = {}  # of the plain runs' counterparts
    for alone, job in counterparts(plain, side_by_side):
        ids[alone.description.id] = job.description.id
        assert (job.arms, job.config) == (alone.arms, alone.config)
        together = job.arms[0] in ("student", "again")
        assert bool(job.group) == together
        parents = {role: (ids[run], snapshot) for role, (run, snapshot) in alone.parents.items()}
        assert job.parents == parents
        assert job.description == replace(
            alone.description,
            config={**alone.description.config, **({"replicas": 2} if together else {})},
            parents={role: f"{run}/{snapshot}" for role, (run, snapshot) in parents.items()},
        )
    assert groups_of(side_by_side) == [["again 0", "again 1"], ["student 0", "student 1"]]


def test_a_plan_without_replicas_has_the_ids_it_always_had():
    jobs = planned(TEACHER, grouped("student", "teacher", alpha=0.1), seeds=(3,))
    teacher = identity("train_teacher", 3)
    assert [job.description.id for job in jobs] == [
        teacher,
        identity("train_student", 3, {"teacher": f"{teacher}/final"}, alpha=0.1),
    ]
    assert planned(TEACHER, grouped("student", "teacher", alpha=0.1), seeds=(3,), replicas=1) == jobs
    assert not any(job.group for job in jobs)


def test_the_way_of_convolutions_is_part_of_a_run_that_is_trained_side_by_side():
    arms = TEACHER, grouped("student", "teacher")
    ways = [
        planned(*arms, seeds=(0, 1), replicas=2, compute=Compute(convolutions=way)) for way in ("grouped", "products")
    ]
    for usual, other in zip(*ways, strict=True):
        extra = {"convolutions": "products"} if other.group else {}
        assert other.description.config == {**usual.description.config, **extra}
    assert sum(bool(job.group) for job in ways[1]) == 2
    # How steps are launched changes no number.
    assert planned(*arms, compute=Compute(graphs=False)) == planned(*arms)


def test_students_of_one_teacher_and_of_another_are_grouped():
    arms = TEACHER, Arm("better", (), train_teacher, change={"rate": 0.1})
    jobs = planned(*arms, grouped("a", "teacher"), grouped("b", "better"), replicas=2)
    assert groups_of(jobs) == [["a 0", "b 0"]]


def test_an_arm_of_a_fixed_seed_is_in_a_group_once():
    one = replace(grouped("one", alpha=0.1), seed=0)
    jobs = planned(one, grouped("a", "one"), seeds=(0, 1, 2), replicas=9)
    assert groups_of(jobs) == [["a 0", "a 1", "a 2"]]
    assert [job.arms for job in jobs] == [("one",), ("a",), ("a",), ("a",)]
    assert {parents for job in jobs[1:] for parents in job.parents.values()} == {(jobs[0].description.id, "final")}


def test_no_group_waits_for_itself():
    """In random graphs, and in any order of training, there is always a group whose parents are all trained."""
    for seed in range(100):
        draws, arms, depth = random.Random(seed), [TEACHER], {"teacher": 0}
        for number in range(draws.randrange(1, 9)):
            parent, name = draws.choice(arms).name, f"a{number}"
            arms.append(grouped(name, parent, alpha=number / 10, rate=draws.choice((0.01, 0.02))))
            depth[name] = depth[parent] + 1
        jobs = planned(*arms, seeds=range(draws.randrange(1, 4)), replicas=draws.randrange(2, 6))
        waiting = {}
        for job in jobs:
            waiting.setdefault(job.group or job.description.id, []).append(job)
        for group in waiting.values():
            assert len({depth[job.arms[0]] for job in group}) == 1
        had = set()
        while waiting:
            ready = [
                key
                for key, group in waiting.items()
                if all(run in had for job in group for run, _ in job.parents.values())
            ]
            assert ready
            had |= {job.description.id for key in ready for job in waiting.pop(key)}


@pytest.mark.parametrize(("arguments", "expected"), [([], 1), (["--replicas", "25"], 25)])
def test_the_option(arguments, expected):
    for command in (["run", "ecg"], ["record", "ecg"], ["check"]):
        assert cli._parser().parse_args([*command, *arguments]).replicas == expected


@pytest.mark.parametrize("number", ["0", "-2", "two"])
def test_a_number_of_replicas_that_cannot_be(number, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "ecg", "--replicas", number])
    assert stopped.value.code == 2
    assert "--replicas" in capsys.readouterr().err


# ---- groups that are trained: the toy experiment, and students of it side by side

STUDENTS = """

# ---- students side by side

from dataclasses import replace

from kdlib.losses import hard_and_soft
from kdlib.replicas import Replicas, side_by_side, of_replica


@dataclass(frozen=True)
class Config(Config):
    alpha: float = 0.5


class Student(nn.Module):
    draws = 8

    def __init__(self, stream):
        super().__init__()
        self.hidden, self.output = nn.Linear(4, 8), nn.Linear(8, CLASSES)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=stream))

    def forward(self, x, uniform=None):
        h = self.hidden(x).relu()
        return self.output(h if uniform is None else h * (uniform >= 0.3))


calls = []  # what was trained in this process: the runs' labels


def train_pupil(runs):
    calls.append([(run.label, run.config.alpha) for run in runs])
    if runs[0].config.note:
        raise {"refused": KDError, "crashed": ZeroDivisionError}[runs[0].config.note](f"no, {runs[0].label}")
    soft = [run.soft_targets("teacher", "train", run.data.train) for run in runs]
    model = Replicas([Student(run.generator("weights")) for run in runs])
    batches = side_by_side([Batches(run.data.train, SIZE, run.seed, s) for run, s in zip(runs, soft)])
    progress = runs[0].progress(model, torch.optim.Adam(model.parameters(), 0.01))
    alpha = torch.tensor([run.config.alpha for run in runs])
    mapped = torch.vmap(lambda outputs, soft, labels, a: hard_and_soft(outputs, soft, labels, 1 - a, a, 2.0))
    for _ in training.epochs(progress, batches, lambda outputs, batch: mapped(outputs, batch.soft, batch.labels, alpha),
                             count=run_epochs(runs), seed=[run.seed for run in runs]):
        pass
    progress.keep("final")
    results = []
    for r, run in enumerate(runs):
        logits = {f"final.{part}": training.predict_logits(model.member(r), getattr(run.data, part).inputs)
                  for part in ("train", "test")}
        found = {"accuracy": accuracy(logits["final.test"], run.data.test.labels), "alpha": run.config.alpha}
        history = [{"training_loss": epoch[f"training_loss/{r}"]} for epoch in progress.history]
        results.append(Result({"final": found}, history, {"final": of_replica(progress.kept["final"], r)}, logits))
    return results


def run_epochs(runs):
    (epochs,) = {run.config.epochs for run in runs}
    return epochs


def pupil(name, teacher, **change):
    return Arm(name, MODES, train_pupil, {"teacher": teacher}, change, mapped=("alpha",))


ARMS = (
    Arm("teacher", MODES, train_teacher),
    Arm("bad_teacher", MODES, train_refused, seed=1),
    pupil("pupil", "teacher"),
    pupil("surer", "teacher", alpha=0.9),
    pupil("again", "surer"),
    pupil("of_bad", "bad_teacher", epochs=EPOCHS + 2),  # so that it is not in a group with the others
    pupil("below_bad", "of_bad", epochs=EPOCHS + 2),
    pupil("refused", "teacher", note="refused"),
    pupil("below_refused", "refused"),
    pupil("crashed", "teacher", note="crashed"),
)
PROFILES = {"quick": Profile(Config(), seeds=1, synthetic=True)}
EXPERIMENT = replace(EXPERIMENT, arms=ARMS, profiles=PROFILES)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_toy(tmp_path_factory.mktemp("groups"), "groups")
    with (root / "replications" / "groups" / "experiment.py").open("a") as file:
        file.write(STUDENTS)
    return root


@pytest.fixture
def experiment(root, monkeypatch):
    import replications

    monkeypatch.setattr(replications, "__path__", [*replications.__path__, str(root / "replications")])
    found = load_experiment("groups")
    return found


@pytest.fixture
def calls(experiment, monkeypatch):
    """The labels of the runs that this process has trained, one list for each call of a training function."""
    seen = []
    # A class is left as it is after a run; a list would be put back.
    monkeypatch.setattr(module_of("groups"), "calls", type("Calls", (), {"append": seen.append}))
    return seen


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def jobs_of(experiment, *names, seeds=(0,), replicas=2):
    return plan(experiment, experiment.profile("quick"), names, seeds, CPU, {}, replicas)


def run(jobs, store, **rest):
    events = []
    summary = execute(jobs, store, compute=CPU, folders={}, report=events.append, **rest)
    return summary, events


def of_runs(store, *jobs):
    """The stored files of these runs."""
    ids = {job.description.id for job in jobs}
    found = {name: content for name, content in contents(store.folder).items() if name.partition("/")[0] in ids}
    assert len(found) == 3 * len(ids)  # weights, soft targets, run.json
    return found


def pupils_of(jobs, *seeds):
    return [job for job in jobs if "pupil" in job.arms and job.description.seed in (seeds or (job.description.seed,))]


def no_work_left(store):
    return not list((store.folder / "work").iterdir())


class Killed(BaseException):
    """Like Ctrl-C, this is no error of the run."""


def killed_after(jobs, store, epoch, group):
    """Train until `group` (the label of one of its runs) has saved that epoch."""

    def report(event):
        if event.kind == "epoch" and event.job.label == group and event.epoch == epoch:
            raise Killed

    with pytest.raises(Killed):
        execute(jobs, store, compute=CPU, folders={}, report=report)
    assert not any((store.folder / "runs" / job.description.id).exists() for job in jobs if job.group)


def test_a_group_is_one_call_with_its_runs_in_order(experiment, store, calls):
    jobs = jobs_of(experiment, "pupil", "surer", seeds=(0, 1), replicas=4)
    summary, events = run(jobs, store)
    labels = [("pupil, seed 0", 0.5), ("surer, seed 0", 0.9), ("pupil, seed 1", 0.5), ("surer, seed 1", 0.9)]
    assert calls == [labels]
    assert len(summary.finished) == 6
    for job in jobs:
        found = summary.finished[job.description.id]
        assert (found.id, found.description) == (job.description.id, job.description)
        if job.group:
            assert found.metrics["final"]["alpha"] == job.config.alpha
            assert found.description.config["replicas"] == 4
            assert [entry.keys() for entry in found.history] == [{"training_loss"}] * 3
    assert len({summary.finished[job.description.id].weights_sha256 for job in jobs}) == 6
    for label, _ in labels:
        assert [event.kind for event in events if event.job.label == label] == ["started", *["epoch"] * 3, "finished"]
    for job in jobs:  # each is told its own losses
        told = [event for event in events if event.kind == "epoch" and event.job is job]
        assert [(event.epoch, event.count) for event in told] == [(1, 3), (2, 3), (3, 3)]
        losses = [entry["training_loss"] for entry in summary.finished[job.description.id].history]
        assert [event.numbers["training_loss"] for event in told] == losses
    assert no_work_left(store)


def test_a_group_holds_the_locks_of_all_its_runs_taken_in_one_order(experiment, store, monkeypatch):
    """Two sessions whose groups share runs would otherwise train one twice, or wait for each other without end."""
    held, orders, lock, save = [], [], Store.lock, Store.save

    @contextmanager
    def watched(self, run_id, *rest):
        with lock(self, run_id, *rest):
            if run_id in held:  # `save` takes it once more
                yield
                return
            held.append(run_id)
            orders.append(list(held))
            yield
            held.remove(run_id)

    def saved(self, description, *rest):
        assert description.id in held
        return save(self, description, *rest)

    monkeypatch.setattr(Store, "lock", watched)
    monkeypatch.setattr(Store, "save", saved)
    jobs = jobs_of(experiment, "pupil", "surer", seeds=(0, 1), replicas=4)
    ids = [job.description.id for job in jobs if job.group]
    work = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]  # the name of the group's work folder
    assert ids != sorted(ids)  # the plan has another order, and another session's plan has yet another
    told = []

    def report(event):
        if event.job.group and event.kind in ("started", "epoch"):
            told.append(sorted(held))

    summary = execute(jobs, store, compute=CPU, folders={}, report=report)
    assert len(summary.finished) == 6
    assert told == [sorted([*ids, work])] * (4 + 4 * 3)
    assert orders[-5:] == [[*sorted(ids), work][:n] for n in (1, 2, 3, 4, 5)]


def test_a_group_shares_its_seconds(experiment, store, monkeypatch):
    run(jobs_of(experiment, "teacher", seeds=(0, 1)), store)
    jobs = jobs_of(experiment, "pupil", seeds=(0, 1))
    # Before the training the time is read for two locks, the deadline and the clock.
    passed, used = iter([0.0] * 4 + [6.0] * 99), iter([0.0] + [6.0] * 99)
    made_up = SimpleNamespace(monotonic=passed.__next__, process_time=used.__next__)
    for module in ("group", "clock"):
        monkeypatch.setattr(f"kdlib.run.{module}.time", made_up)
    summary, _ = run(jobs, store)
    assert [summary.finished[job.description.id].environment["seconds"] for job in pupils_of(jobs)] == [3.0, 3.0]


def test_members_are_as_students_trained_alone(experiment, store):
    """The numbers are the same up to rounding; because of it the ids differ."""
    side_by_side, alone = (jobs_of(experiment, "pupil", "surer", seeds=(0, 1), replicas=n) for n in (4, 1))
    first, second = run(side_by_side, store)[0], run(alone, store)[0]
    for job, single in counterparts(side_by_side, alone):
        one, other = first.finished[job.description.id], second.finished[single.description.id]
        assert (one.id == other.id) == (not job.group)
        for name, value in one.weights("final").items():
            assert value.sub(other.weights("final")[name]).abs().max() < 1e-4, name


def test_students_of_students_are_taught_by_the_runs_of_the_group(experiment, store, calls):
    jobs = jobs_of(experiment, "again", seeds=(0, 1))
    summary, _ = run(jobs, store)
    assert len(summary.finished) == 6
    assert [len(call) for call in calls] == [2, 2]
    for seed in (0, 1):
        parent, child = (
            next(j for j in jobs if name in j.arms and j.description.seed == seed) for name in ("surer", "again")
        )
        assert child.description.parents == {"teacher": f"{parent.description.id}/final"}
        assert parent.description.config["replicas"] == 2


def test_a_run_that_is_stored_is_not_saved_again_and_the_others_are_as_in_a_clean_store(
    experiment, store, tmp_path, calls
):
    jobs = jobs_of(experiment, "pupil", "surer", seeds=(0, 1), replicas=4)
    run(jobs, store)
    before = contents(store.folder)
    stored, *missing = [job for job in jobs if job.group]
    folders = {job.description.id: store.run_folder(job.description.id) for job in missing}
    for folder in folders.values():
        folder.rename(tmp_path / folder.name)
    untouched = {path: path.stat().st_mtime_ns for path in store.run_folder(stored.description.id).iterdir()}
    calls.clear()
    _, events = run(jobs, store)
    assert [len(call) for call in calls] == [4]  # whole
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert contents(store.folder) == before
    assert Counter(event.job.description.id for event in events if event.kind == "finished").keys() == folders.keys()
    assert [event.kind for event in events if event.job == stored] == ["reused"]
    assert no_work_left(store)
    calls.clear()
    assert {event.kind for event in run(jobs, store)[1]} == {"reused"}
    assert not calls


def test_a_group_that_was_killed_goes_on_from_its_last_epoch(experiment, store, tmp_path):
    clean = Store(tmp_path / "clean")
    jobs = jobs_of(experiment, "pupil", seeds=(0, 1))
    run(jobs, clean)
    for epoch in (1, 3):  # the last one: killed before any run was saved
        broken = Store(tmp_path / str(epoch))
        killed_after(jobs, broken, epoch, "pupil, seed 1")
        _, events = run(jobs, broken)
        assert [event.epoch for event in events if event.kind == "epoch"] == [
            n for n in range(epoch + 1, 4) for _ in range(2)
        ]
        assert contents(broken.folder) == contents(clean.folder)
        assert no_work_left(broken)


def test_a_group_that_was_killed_between_two_saves(experiment, store, tmp_path, monkeypatch):
    clean = Store(tmp_path / "clean")
    jobs = jobs_of(experiment, "pupil", seeds=(0, 1))
    run(jobs, clean)
    save = Store.save

    def killed(self, description, *rest):
        if description == pupils_of(jobs)[1].description:
            raise Killed
        return save(self, description, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "save", killed)
        with pytest.raises(Killed):
            run(jobs, store)
    assert len(store.ids()) == 3
    _, events = run(jobs, store)
    assert not [event for event in events if event.kind == "epoch"]  # all of them were trained
    assert contents(store.folder) == contents(clean.folder)
    assert no_work_left(store)


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_what_a_killed_group_left_is_not_taken_up_by_another_that_begins_with_the_same_run(
    experiment, store, tmp_path, epoch
):
    clean = Store(tmp_path / "clean")
    killed_after(jobs_of(experiment, "pupil", seeds=(0, 1)), store, epoch, "pupil, seed 0")
    jobs = jobs_of(experiment, "pupil", seeds=(0, 2))
    run(jobs, clean)
    _, events = run(jobs, store)
    assert [event.epoch for event in events if event.kind == "epoch" and "pupil" in event.job.arms] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert of_runs(store, *pupils_of(jobs)) == of_runs(clean, *pupils_of(jobs))
    # The first group still continues from its last epoch.
    jobs = jobs_of(experiment, "pupil", seeds=(0, 1))
    _, events = run(jobs, store)
    assert sorted({event.epoch for event in events if event.kind == "epoch"}) == list(range(epoch + 1, 4))
    run(jobs, clean)
    assert contents(store.folder) == contents(clean.folder)
    assert no_work_left(store)


@pytest.mark.slow
def test_a_run_is_stored_with_one_and_trained_again_with_two_others(experiment, store, tmp_path, calls):
    """The run of seed 0 is saved once, and the runs in its groups are as they would be in a clean store."""
    for other in (1, 2, 3):
        jobs, clean = jobs_of(experiment, "pupil", seeds=(0, other)), Store(tmp_path / f"clean {other}")
        calls.clear()
        run(jobs, store)
        assert calls == [[("pupil, seed 0", 0.5), (f"pupil, seed {other}", 0.5)]]
        assert no_work_left(store)
        run(jobs, clean)
        assert of_runs(store, *pupils_of(jobs, other)) == of_runs(clean, *pupils_of(jobs, other))
        # A run's bytes depend on the number of runs in its group, not on which they are.
        assert of_runs(store, *pupils_of(jobs, 0)) == of_runs(clean, *pupils_of(jobs, 0))
    assert len(of_runs(store, *pupils_of(jobs_of(experiment, "pupil", seeds=(0, 1, 2, 3))))) == 12


def test_a_runs_place_in_its_group_does_not_matter(experiment, store, tmp_path):
    other = Store(tmp_path / "other")
    for seeds, where in (((0, 1), store), ((1, 0), other)):
        run(jobs_of(experiment, "pupil", seeds=seeds), where)
    assert contents(store.folder) == contents(other.folder)


def test_a_failed_parent_blocks_the_whole_group_and_what_is_below_it(experiment, store):
    jobs = jobs_of(experiment, "below_bad", "pupil", seeds=(0, 1))
    summary, events = run(jobs, store)
    arms = {job.description.id: (job.arms[0], job.description.seed) for job in jobs}
    (bad,) = summary.failed
    assert arms[bad] == ("bad_teacher", 1)
    blocked = {f"{name} {seed}" for name, seed in map(arms.get, summary.blocked)}
    assert blocked == {"of_bad 0", "of_bad 1", "below_bad 0", "below_bad 1"}
    texts = {event.job.label: event.text for event in events if event.kind == "blocked"}
    assert texts.keys() == {f"{name}, seed {seed}" for name in ("of_bad", "below_bad") for seed in (0, 1)}
    assert texts["of_bad, seed 0"] == f"not started: run {bad}, which it or a run of its group needs, failed"
    assert {arms[run] for run in summary.finished} == {(name, seed) for name in ("teacher", "pupil") for seed in (0, 1)}


def test_one_failed_parent_is_enough(experiment, store, monkeypatch):
    """A group is trained as a whole, so a run is blocked too if only another run's parent failed."""
    train = module_of("groups").train_teacher

    def failing(run):
        if run.seed == 1:
            raise ZeroDivisionError
        return train(run)

    experiment = changed(monkeypatch, "groups", arms=(Arm("teacher", (), failing), *experiment.arms[1:]))
    jobs = jobs_of(experiment, "pupil", seeds=(0, 1, 2))
    summary, events = run(jobs, store)
    assert {(event.job.label, event.kind) for event in events if "pupil" in event.job.arms} == {
        ("pupil, seed 0", "blocked"),
        ("pupil, seed 1", "blocked"),
        *(("pupil, seed 2", kind) for kind in ("started", "epoch", "finished")),
    }
    assert len(summary.failed) == 1
    assert set(summary.blocked.values()) == set(summary.failed)


def test_a_failing_group_fails_each_of_its_runs(experiment, store, calls):
    jobs = jobs_of(experiment, "below_refused", "crashed", "pupil", seeds=(0, 1))
    summary, events = run(jobs, store)
    failed = {event.job.label: event.text for event in events if event.kind == "failed"}
    assert failed.keys() == {f"{name}, seed {seed}" for name in ("refused", "crashed") for seed in (0, 1)}
    assert {summary.failed[job.description.id] for job in jobs if "refused" in job.arms} == {"no, refused, seed 0"}
    (crash,) = {summary.failed[job.description.id] for job in jobs if "crashed" in job.arms}
    assert crash.startswith("ZeroDivisionError: no, crashed, seed 0 (traceback in ")
    assert {event.job.label for event in events if event.kind == "blocked"} == {
        "below_refused, seed 0",
        "below_refused, seed 1",
    }
    assert len(summary.finished) == 4
    assert not [call for call in calls if "below" in call[0][0]]


def test_the_traceback_of_a_crashed_group_is_gone_when_it_is_trained_at_last(experiment, store, monkeypatch):
    run(jobs_of(experiment, "pupil", seeds=(0, 1)), store)
    jobs = jobs_of(experiment, "pupil", seeds=(0, 2))
    with monkeypatch.context() as patched:
        patched.setattr(module_of("groups"), "run_epochs", lambda runs: 1 / 0)
        assert len(run(jobs, store)[0].failed) == 1
    assert not run(jobs, store)[0].failed
    assert no_work_left(store)


def test_the_audit_takes_records_of_groups(experiment, store, monkeypatch):
    profiles = {"quick": replace(experiment.profile("quick"), synthetic=False)}
    experiment = changed(monkeypatch, "groups", profiles=profiles)
    jobs = jobs_of(experiment, "pupil", "surer", "again", seeds=(0, 1))
    summary, _ = run(jobs, store)
    records = []
    for job in jobs:
        found = summary.finished[job.description.id]
        clean = replace(found, environment={**found.environment, "commit": "0" * 40, "clean": True})
        line = asdict(record_of(clean, "quick", dict.fromkeys(job.arms, "final"), "toy"))
        records.append(json.loads(json.dumps(line)) | {"history": []})  # the toy's teacher keeps more in it
    assert [str(fault) for fault in audited.check(experiment, records)] == []


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(experiment, root, store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root))  # spawned processes look there for the experiment
    names = ("again", "crashed", "below_bad")
    jobs = jobs_of(experiment, *names, seeds=(0, 1))
    serial, events = run(jobs, store)
    parallel, others = run(jobs, Store(tmp_path / "parallel"), workers=2)
    assert contents(tmp_path / "parallel") == contents(store.folder)
    assert parallel.finished.keys() == serial.finished.keys()
    assert parallel.blocked == serial.blocked
    assert parallel.failed.keys() == serial.failed.keys()
    told, as_told = (Counter((event.kind, event.job.label) for event in each) for each in (events, others))
    assert told == as_told
    assert len(serial.finished) == 6


def test_a_session_plans_as_many_replicas_as_are_asked_for(experiment, root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    (root / "replications" / "groups" / "claims.toml").write_text(
        CLAIMS.replace("distilled", "pupil").replace("baseline", "surer")
    )
    arguments = ["run", "groups", "--arms", "pupil", "--seeds", "3", "--dry-run"]
    for replicas in (1, 2):
        assert cli.main([*arguments, "--replicas", str(replicas)]) == 0
        printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]]
        assert printed == [
            job.description.id for job in jobs_of(experiment, "pupil", seeds=range(3), replicas=replicas)
        ]


def test_a_group_is_trained_in_the_way_that_is_asked_for(experiment, store, monkeypatch):
    found, results = [], Arm.results

    def watched(arm, runs):
        found.extend(run.compute for run in runs)
        return results(arm, runs)

    monkeypatch.setattr(Arm, "results", watched)
    compute = Compute(convolutions="products", graphs=False)
    jobs = jobs_of(experiment, "pupil", seeds=range(2), replicas=2)
    assert not execute(jobs, store, compute=compute, folders={}).failed
    assert found == [compute] * 4  # two teachers and a group of two


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_float32_means_on_a_cuda_device_is_set_and_on_record(experiment, store, monkeypatch, device):
    set_to = []
    for place in ("environment", "reuse"):
        monkeypatch.setattr(f"kdlib.run.{place}.device_name", lambda device: "a card")
    monkeypatch.setattr("kdlib.run.group.set_precision", set_to.append)
    monkeypatch.setattr("kdlib.run.group.arithmetic", lambda: {"convolutions": "ieee"})
    results, cpu = Arm.results, torch.device("cpu")  # where these tests can train
    monkeypatch.setattr(Arm, "results", lambda arm, runs: results(arm, [replace(run, device=cpu) for run in runs]))
    compute = Compute(device=device)
    jobs = plan(experiment, experiment.profile("quick"), ["teacher"], [0], compute, {})
    summary = execute(jobs, store, compute=compute, folders={})
    (run,) = summary.finished.values()
    assert set_to == (["float32"] if device == "cuda" else [])
    assert run.environment.get("float32") == ({"convolutions": "ieee"} if device == "cuda" else None)
