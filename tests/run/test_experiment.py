"""An experiment as its author writes it: contradictions are named when it is loaded, its data are read once."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from kdlib.data import DataError, DataUnavailable
from kdlib.errors import KDError
from kdlib.run import prepare
from kdlib.run.engine import execute
from kdlib.run.experiment import Arm, Compute, Experiment, Profile, load_experiment
from kdlib.run.imported import _is_installed, _refuse_code_elsewhere, imported
from kdlib.run.plan import plan
from kdlib.run.store import Store
from tests.conftest import changed, module_of, write_toy

# ---- contradictions

TEXT = '''"""A made-up replication.

More about it.
"""

from dataclasses import dataclass, replace

from kdlib.run.experiment import Arm, Experiment, Profile


@dataclass(frozen=True)
class Config:
    rate: float = 0.1
    split: str = "published"
    sizes: tuple = (1, 2)


def train_teacher(run):
    raise AssertionError


def train_student(run):
    raise AssertionError


ARMS = (
    Arm("teacher", (), train_teacher),
    Arm("baseline", (), train_student, change={"rate": 0.2}),
    Arm("distilled", (), train_student, {"teacher": "teacher"}, mapped=("rate",)),
)
PROFILES = {
    "full": Profile(Config(), 5, judged=True),
    "quick": Profile(Config(rate=0.3), 2, arms=("baseline",)),
}
EXPERIMENT = Experiment(
    source="made-up",
    protocol=1,
    data=(),
    load_data=lambda config, folders: None,
    arms=ARMS,
    profiles=PROFILES,
    check=("teacher",),
    banded=("accuracy",),
    data_fields=("split",),
)
'''
NUMBERS = itertools.count()


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads an experiment with this text, under a name that no other test uses."""
    import replications

    def load(text):
        name = f"made_up_{next(NUMBERS)}"
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        (folder / "experiment.py").write_text(text)
        monkeypatch.setattr(replications, "__path__", [*replications.__path__, str(tmp_path)])
        return load_experiment(name)

    return load


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("helpers_of_mine.py", "import helpers_of_mine"),
        ("helpers_of_mine/__init__.py", "from helpers_of_mine.losses import weight"),
        ("helpers_of_mine/losses.py", "import os, helpers_of_mine.losses"),
        ("replications/helpers_of_mine.py", "def later():\n    import helpers_of_mine"),
    ],
)
def test_code_that_no_run_would_know_is_refused(place, line, tmp_path, monkeypatch):
    """A module in the top folder, or next to the replications if these are on the path: a run would not change."""
    folder = write_toy(tmp_path) / "replications" / "toy"
    for path in (tmp_path / place, tmp_path / "helpers_of_mine" / "losses.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("weight = 1\n")
    if "losses" not in line:
        (tmp_path / "helpers_of_mine" / "losses.py").unlink()
        (tmp_path / "helpers_of_mine").rmdir()
    for entry in (tmp_path, tmp_path / "replications"):
        monkeypatch.syspath_prepend(str(entry))
    module = SimpleNamespace(__file__=folder / "experiment.py")
    monkeypatch.setattr("kdlib.run.imported.importlib", SimpleNamespace(import_module=lambda name: module))
    text = (folder / "experiment.py").read_text()
    (tmp_path / "logs" / "runs").mkdir(parents=True)
    (tmp_path / "logs" / "runs" / "copy.py").touch()
    (folder / "test_it.py").write_text(f"{line}\n")  # which no training imports
    for fine in ("", "from . import helpers_of_mine", "import json, numpy, torch, kdlib.errors, logs"):
        (folder / "experiment.py").write_text(f"{text}\n{fine}\n")
        imported("toy")
        _refuse_code_elsewhere.cache_clear()
    (folder / "experiment.py").write_text(f"{text}\n{line}\n")
    for _ in range(2):
        with pytest.raises(
            KDError, match=r"replications/toy: expected imports of kdlib, .* that experiment\.py imports h"
        ):
            imported("toy")


@pytest.fixture
def toy_folder(tmp_path, monkeypatch):
    """The folder of a replication, and a top folder with a module `helpers_of_mine` on Python's path."""
    folder = write_toy(tmp_path) / "replications" / "toy"
    module = SimpleNamespace(__file__=folder / "experiment.py")
    monkeypatch.setattr("kdlib.run.imported.importlib", SimpleNamespace(import_module=lambda name: module))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "helpers_of_mine.py").write_text("weight = 1\n")
    return folder


def adds(path, text):
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{text}\n")


@pytest.mark.parametrize(
    "line",
    ["from . import nets", "from .nets import weight", "from replications.toy import nets", "from .parts import x"],
)
def test_code_that_a_file_of_the_replication_imports_later_is_refused(line, toy_folder):
    adds(toy_folder / "experiment.py", f"def train_later(run):\n    {line}")
    (toy_folder / "parts").mkdir()
    adds(toy_folder / "parts" / "__init__.py", "from ..nets import weight as x")
    adds(toy_folder / "nets.py", "import json\nweight = 1")
    imported("toy")
    _refuse_code_elsewhere.cache_clear()
    adds(toy_folder / "nets.py", "import helpers_of_mine")
    with pytest.raises(KDError, match=r"that nets\.py imports helpers_of_mine from helpers_of_mine\.py: its runs"):
        imported("toy")


def test_code_on_the_path_that_is_not_installed_is_refused(toy_folder, tmp_path_factory, monkeypatch):
    """Of another project, on PYTHONPATH. If pip has installed it to be edited, it has a name and a version."""
    project = tmp_path_factory.mktemp("project")
    (project / "src").mkdir()
    (project / "src" / "other_project.py").write_text("RATE = 1\n")
    monkeypatch.syspath_prepend(str(project / "src"))
    adds(toy_folder / "experiment.py", "from other_project import RATE")
    with pytest.raises(KDError, match=r"experiment\.py imports other_project from .*other_project\.py: .* with pip"):
        imported("toy")
    about = project / "packages" / "other_project-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other_project\nVersion: 1.0\n")
    (about / "direct_url.json").write_text(json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}}))
    monkeypatch.syspath_prepend(str(project / "packages"))
    _is_installed.cache_clear()
    imported("toy")


def test_a_file_of_the_replication_may_be_imported_by_its_short_name(toy_folder, monkeypatch):
    adds(toy_folder / "nets.py", "weight = 1")
    adds(toy_folder / "experiment.py", "import nets")
    monkeypatch.syspath_prepend(str(toy_folder))
    imported("toy")


def test_figures_are_no_part_of_what_is_trained(toy_folder):
    adds(toy_folder / "figures.py", "from replications.toy.experiment import EXPERIMENT\nWIDTH = 8")
    imported("toy")
    _refuse_code_elsewhere.cache_clear()
    adds(toy_folder / "experiment.py", "def train_later(run):\n    from .figures import WIDTH")
    with pytest.raises(
        KDError, match=r"replications/toy: expected that no run depends on figures\.py, found that it is"
    ):
        imported("toy")


def test_python_itself_may_be_in_the_folder(toy_folder, tmp_path, monkeypatch):
    library = tmp_path / "env" / "lib"
    library.mkdir(parents=True)
    (library / "of_python.py").touch()
    monkeypatch.syspath_prepend(str(library))
    adds(toy_folder / "experiment.py", "import of_python, json")
    with pytest.raises(KDError, match=r"experiment\.py imports of_python from env/lib/of_python\.py"):
        imported("toy")
    monkeypatch.setattr("sys.base_prefix", str(tmp_path / "env"))
    imported("toy")
    _refuse_code_elsewhere.cache_clear()
    # A folder within the one of Python, such as /usr, is not all Python's.
    monkeypatch.setattr("sys.base_prefix", str(tmp_path.parent))
    with pytest.raises(KDError, match=r"experiment\.py imports of_python from env/lib/of_python\.py"):
        imported("toy")


def test_an_experiment_is_loaded_with_its_name_folder_and_first_line(load, tmp_path):
    found = load(TEXT)
    assert found.folder == tmp_path / found.name
    assert (found.folder / "experiment.py").exists()
    assert found.about == "A made-up replication."
    assert found.judged == "full"
    assert found.arms_of(found.profile("full")) == ("teacher", "baseline", "distilled")
    assert found.arms_of(found.profile("quick")) == ("baseline",)
    assert found.config(found.arm("baseline"), found.profile("quick")).rate == 0.2


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ('Arm("baseline"', 'Arm("teacher"', "expected arms of different names, found two called 'teacher'"),
        (
            'Arm("baseline", (), train_student',
            'Arm("baseline", (), lambda run: 1), Arm("other", (), lambda run: 2',
            r"found two called '<lambda>' \(arm 'other'\)",
        ),
        ('"teacher": "teacher"', '"teacher": "later"', "arm 'distilled' needs 'later': expected it before 'distilled'"),
        ('"teacher": "teacher"', '"teacher": "distilled"', "arm 'distilled' needs 'distilled': expected it before"),
        (
            'mapped=("rate",)',
            "seed=0",
            "all that arm 'distilled' needs to have its seed, 0, found None for 'teacher'; give it seed=0",
        ),
        ('check=("teacher",)', 'check=("techer",)', "check: expected names of arms, found techer; there are teacher, "),
        ('arms=("baseline",)', 'arms=("none",)', "quick: expected names of arms, found none; there are teacher, "),
        ('{"rate": 0.2}', '{"ratio": 0.2}', "arm 'baseline': expected fields of the configuration, found ratio"),
        ('mapped=("rate",)', 'mapped=("ratio",)', "arm 'distilled': expected fields of the configuration, found ratio"),
        ('data_fields=("split",)', 'data_fields=("part",)', "data_fields: expected fields of .* full.*, found part"),
        (
            'data_fields=("split",)',
            'data_fields=("sizes",)',
            "data_fields: .* that a text of --set can fill, found tuple for sizes",
        ),
        ("0.3), 2, arms", "0.3), 2, judged=True, arms", "expected one profile with judged=True at most, found several"),
        ('"quick": Profile', '"fast": Profile', r"expected a profile 'quick', .* found \['full', 'fast'\]"),
    ],
)
def test_a_contradiction_is_named_with_its_file_when_the_experiment_is_loaded(load, right, wrong, words):
    assert TEXT.count(right) == 1
    with pytest.raises(KDError, match=rf"^replications/made_up_\d+/experiment\.py: .*{words}"):
        load(TEXT.replace(right, wrong))


def test_a_copy_with_other_fields_is_checked_too(load):
    found = load(TEXT)
    with pytest.raises(KDError, match="check: expected names of arms, found nobody"):
        replace(found, check=("nobody",))


def test_a_fixed_seed_is_that_of_all_parents(load):
    teacher, *rest = load(TEXT).arms
    arms = (replace(teacher, seed=0), *rest, replace(rest[0], name="child", needs={"teacher": "teacher"}, seed=0))
    assert replace(load(TEXT), arms=arms).arm("child").seed == 0
    with pytest.raises(KDError, match="needs to have its seed, 0, found 1 for 'teacher'"):
        replace(load(TEXT), arms=(replace(teacher, seed=1), *arms[1:]))


def test_an_error_that_the_library_raises_names_the_line_of_the_experiment(load):
    line = TEXT.splitlines().index("EXPERIMENT = Experiment(") + 1
    with pytest.raises(KDError, match=rf"made_up_\d+/experiment\.py, line {line}\); mend that line"):
        load(TEXT.replace("check=(", "check=1, metrics=("))


@pytest.mark.parametrize("wrong", ["", "EXPERIMENT = ARMS"])
def test_a_module_without_an_experiment_is_named(load, wrong):
    head = TEXT.partition("EXPERIMENT =")[0]
    with pytest.raises(KDError, match=r"made_up_\d+/experiment\.py: expected EXPERIMENT = Experiment\(\.\.\.\), found"):
        load(head + wrong)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEXT.replace('    banded=("accuracy",),\n', ""), r"TypeError: .*'banded'"),
        ("import no_such_library\n" + TEXT, r"ModuleNotFoundError: No module named 'no_such_library' \(.*, line 1\)"),
        ("def (\n" + TEXT, r"SyntaxError: .* \(.*made_up_\d+/experiment\.py, line 1\); mend that line"),
        ("one = 1 / 0\n" + TEXT, r"ZeroDivisionError: division by zero \(.*/experiment\.py, line 1\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_line(load, text, found):
    with pytest.raises(KDError, match=rf"^replications/made_up_\d+/experiment\.py: .*found {found}"):
        load(text)


# ---- data


@dataclass(frozen=True)
class Config:
    epochs: int = 3
    rate: float = 0.1
    shuffled: bool = True
    split: str = "published"

    @property
    def inter_patient(self) -> bool:
        return self.split == "inter-patient"


def train(run):
    raise AssertionError


@pytest.fixture
def reads():
    """The splits that `load_data` was called for."""
    return []


@pytest.fixture
def experiment(reads):
    def load_data(config, folders):
        reads.append(config.split)
        return SimpleNamespace(digest=f"{config.split} {sorted(folders)}", name=config.split)

    return Experiment(
        source="made-up",
        protocol=1,
        data=(),
        load_data=load_data,
        arms=tuple(Arm(f"arm_{n}", (), train, change={"rate": n / 10}) for n in range(4)),
        profiles={"quick": Profile(Config(), 1)},
        check=(),
        banded=(),
        data_fields=("split",),
    )


def test_data_are_read_once_for_all_configurations_that_agree_in_what_is_read(experiment, reads):
    profile, names = experiment.profile("quick"), [arm.name for arm in experiment.arms]
    assert len(plan(experiment, profile, names, range(5), Compute(), {}, replicas=3)) == 20
    data = experiment.load_data(Config(epochs=9, rate=0.7, shuffled=False), {})
    assert reads == ["published"]
    assert experiment.load_data(Config(), {}) is data
    assert replace(experiment, name="copy").load_data(Config(), {}) is data


def test_data_are_read_again_for_another_value_and_other_folders(experiment, reads, tmp_path):
    splits = ("published", "inter-patient", "published", "inter-patient")
    found = [experiment.load_data(Config(split=split), {}).digest for split in splits]
    assert found == ["published []", "inter-patient []"] * 2
    assert reads == ["published", "inter-patient"]  # two data sets are kept
    assert experiment.load_data(Config(), {"ecg": tmp_path}).digest == "published ['ecg']"
    assert reads == ["published", "inter-patient", "published"]
    assert experiment.load_data(Config(split="inter-patient"), {}).digest == "inter-patient []"
    assert experiment.load_data(Config(), {}).digest == "published []"  # was dropped for the third
    assert reads[3:] == ["published"]


def test_a_property_of_the_configuration_is_one_of_the_values_that_are_read(experiment, reads):
    def load_data(config, folders):
        reads.append(config.inter_patient)
        return SimpleNamespace(digest="d", name="data")

    experiment = replace(experiment, load_data=load_data)
    for split in ("published", "other", "inter-patient", "published"):
        experiment.load_data(Config(split=split), {})
    assert reads == [False, True]


def test_data_that_could_not_be_read_are_tried_again(experiment, reads):
    def load_data(config, folders):
        reads.append(config.split)
        raise KDError("not here")

    experiment = replace(experiment, load_data=load_data)
    for _ in range(2):
        with pytest.raises(KDError, match="not here"):
            experiment.load_data(Config(), {})
    assert len(reads) == 2


def test_a_session_reads_the_data_once(toy, monkeypatch, tmp_path):
    calls, load_data = [], module_of("toy").load_data

    def counted(config, folders):
        calls.append(config)
        return load_data(config, folders)

    changed(monkeypatch, "toy", load_data=counted, data=())
    session = prepare("toy", arms=("distilled", "baseline"), seeds=(0, 1), store=tmp_path, workers=1)
    jobs = session.jobs()
    assert len(execute(jobs, Store(tmp_path), compute=session.compute, folders={}).finished) == len(jobs) == 6
    assert len(calls) == 1


# ---- settings


@pytest.fixture
def with_settings(toy, monkeypatch):
    """The toy experiment, with data fields of all types, which makes its data itself."""
    fields = ("epochs", "rate", "shuffled", "split")
    arms = (Arm("arm", (), train),)
    profiles = {"quick": Profile(Config(), 1)}
    changed(monkeypatch, "toy", arms=arms, profiles=profiles, data=(), data_fields=fields, check=())


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("epochs", "12", 12),
        ("rate", "12", 12.0),
        ("rate", "1e-3", 0.001),
        ("shuffled", "false", False),
        ("shuffled", "True", True),
        ("split", "12", "12"),
    ],
)
def test_a_setting_has_the_type_of_its_field(with_settings, field, text, value):
    found = getattr(prepare("toy", settings={field: text}).profile.config, field)
    assert (found, type(found)) == (value, type(value))
    assert getattr(prepare("toy").profile.config, field) == getattr(Config(), field)


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("epochs", "2.5", "a whole number, such as 3"),
        ("epochs", "", "a whole number, such as 3"),
        ("epochs", "true", "a whole number, such as 3"),
        ("rate", "fast", "a finite number, such as 0.1"),
        ("rate", "nan", "a finite number, such as 0.1"),
        ("rate", "-inf", "a finite number, such as 0.1"),
        ("shuffled", "yes", "true or false, such as True"),
        ("shuffled", "1", "true or false, such as True"),
    ],
)
def test_a_setting_of_another_type_is_refused(with_settings, field, text, expected):
    with pytest.raises(KDError, match=f"^--set {field}={text}: expected {expected}, found '{text}'"):
        prepare("toy", settings={field: text})


def test_a_setting_that_does_not_choose_data_is_refused(with_settings, toy, monkeypatch):
    with pytest.raises(KDError, match=r"--set note: .* which are epochs, rate, shuffled, split; edit experiment\.py"):
        prepare("toy", settings={"note": "x"})
    changed(monkeypatch, "toy", data_fields=())
    with pytest.raises(KDError, match="--set split: expected fields that choose the data of toy, which are none"):
        prepare("toy", settings={"split": "x"})


def test_a_setting_reaches_every_arm_and_the_data(with_settings, toy, monkeypatch):
    load_data = lambda config, folders: SimpleNamespace(digest=config.split, name="data")  # noqa: E731
    arms = tuple(Arm(f"arm_{n}", (), train, change={"rate": n / 7}) for n in range(3))
    changed(monkeypatch, "toy", arms=arms, load_data=load_data)
    jobs = prepare("toy", settings={"split": "other"}).jobs()
    assert [(job.config.split, job.description.data, job.config.rate) for job in jobs] == [
        ("other", "other", n / 7) for n in range(3)
    ]


def test_a_setting_may_choose_the_data_sets(with_settings, toy, monkeypatch, tmp_path):
    looked_for = []
    monkeypatch.setattr("kdlib.data.fetch.find", lambda name, *rest: looked_for.append(name) or tmp_path / name)
    changed(monkeypatch, "toy", data=lambda config: (config.split, "vgg16"))
    session = prepare("toy", settings={"split": "oxford_pets"})
    assert session.folders == {name: tmp_path / name for name in ("oxford_pets", "vgg16")}
    assert looked_for == ["oxford_pets", "vgg16"]
    assert not session.synthetic


# ---- experiments that make their own data


def test_an_experiment_that_makes_its_own_data_is_not_synthetic(toy, monkeypatch, tmp_path):
    def missing(name, *rest):
        raise AssertionError(f"{name} is looked for")

    monkeypatch.setattr("kdlib.data.fetch.find", missing)
    profiles = {**toy.profiles, "smoke": replace(toy.profiles["quick"], synthetic=True)}
    changed(monkeypatch, "toy", data=(), profiles=profiles)
    session = prepare("toy", require_real=True, store=tmp_path)
    assert (session.synthetic, session.folders, session.unavailable) == (False, {}, "")
    assert prepare("toy", "smoke", store=tmp_path).synthetic
    with pytest.raises(KDError, match="profile smoke of toy: expected one on real data"):
        prepare("toy", "smoke", require_real=True)


# ---- no real data


def test_without_real_data_the_session_is_the_short_synthetic_one(toy, monkeypatch, tmp_path):
    def missing(name, *rest):
        raise DataUnavailable(f"{name} is nowhere")

    monkeypatch.setattr("kdlib.data.fetch.find", missing)
    quick = toy.profiles["quick"]
    smoke = replace(quick, seeds=2, arms=("baseline",), synthetic=True)
    changed(monkeypatch, "toy", data=("mnist",), profiles={**toy.profiles, "smoke": smoke})
    session = prepare("toy", seeds=range(20), store=tmp_path)
    assert (session.profile_name, session.arms, session.seeds) == ("smoke", ("baseline",), (0, 1))
    assert (session.synthetic, session.folders, session.unavailable) == (True, {}, "mnist is nowhere")
    assert prepare("toy", store=tmp_path).seeds == (0, 1)
    assert prepare("toy", seeds=(7,), arms=("refused",), store=tmp_path).seeds == (7,)
    assert prepare("toy", arms=("refused",), store=tmp_path).arms == ("refused",)
    for name, require_real in (("quick", True), ("smoke", True)):
        with pytest.raises(KDError, match=r"nowhere|found synthetic data by design"):
            prepare("toy", name, require_real=require_real)
    changed(monkeypatch, "toy", profiles={"quick": quick})
    with pytest.raises(DataUnavailable, match=r"nowhere .*expected a profile of toy on synthetic data, found none"):
        prepare("toy", store=tmp_path)


def test_a_mistake_about_the_data_is_no_reason_for_synthetic_ones(toy, monkeypatch, tmp_path):
    changed(monkeypatch, "toy", data=("mnist",))
    with pytest.raises(DataError, match="expected the data set mnist, found none"):
        prepare("toy", data=tmp_path, store=tmp_path)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    monkeypatch.setattr("kdlib.data.fetch.cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(DataError, match="kd data fetch mnist"):
        prepare("toy", store=tmp_path)
