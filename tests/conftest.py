"""One thread; the toy experiment in a temporary repository, in this process or in forked ones that may be killed."""

from __future__ import annotations

import gc
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from types import ModuleType

from kdlib.progress import Progress
from kdlib.run.experiment import Experiment

TOY = Path(__file__).with_name("toy.py")

# No deadline, because a machine may be busy; the same examples on every machine. A test's own settings keep both.
settings.register_profile("kdlib", deadline=None, derandomize=True)
settings.load_profile("kdlib")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spare the search for cycles, and kdlib's for copies and schedulers, all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Files are made safe against a power cut, which no test simulates; a killed process needs none of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def precision_put_back() -> Iterator[None]:
    """For tests that call `set_precision`, which holds for the process: afterwards all is as before."""
    backends: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [backend.fp32_precision for backend in backends]
    older = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = older
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def write_toy(root: Path, name: str = "toy") -> Path:
    """A repository's root with the toy experiment in it."""
    folder = root / "replications" / name
    folder.mkdir(parents=True)
    shutil.copy(TOY, folder / "experiment.py")
    (folder / "__init__.py").touch()
    (folder.parent / "__init__.py").touch()
    return root


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def module_of(name: str) -> ModuleType:
    """The module of an experiment."""
    return importlib.import_module(f"replications.{name}.experiment")


def changed(monkeypatch: pytest.MonkeyPatch, name: str, **fields: Any) -> Experiment:
    """An experiment with other fields. Until the test ends, `load_experiment` returns it too in this process."""
    from kdlib.run.experiment import load_experiment

    module = module_of(name)
    monkeypatch.setattr(module, "EXPERIMENT", replace(module.EXPERIMENT, **fields))
    return load_experiment(name)


@pytest.fixture
def toy(toy_root: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The toy experiment, loaded in this process."""
    import replications
    from kdlib.run.experiment import load_experiment

    monkeypatch.setattr(replications, "__path__", [*replications.__path__, str(toy_root / "replications")])
    return load_experiment("toy")


class Server:
    """Starts sessions of the toy experiment in separate processes (see toy.py)."""

    def __init__(self, root: Path, folder: Path, **env: str) -> None:
        self.root, self.folder, self.numbers = root, folder, itertools.count()
        repository = str(TOY.parents[1])
        self.process = subprocess.Popen(
            [sys.executable, str(TOY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": repository, **env},
        )

    def ask(self, line: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(
        self,
        store: Path,
        arms: Sequence[str],
        *,
        seeds: Sequence[int] = (0,),
        workers: int = 1,
        limit: int = 0,
        seconds: float = 0,
        root: Path | None = None,
        **env: str,
    ) -> Callable[[], dict[str, Any]]:
        """Start a session; the returned function waits for its answer ({"killed": True} if SIGKILL ended it)."""
        answer = self.folder / f"answer-{next(self.numbers)}.json"
        order = {
            "root": str(root or self.root),
            "store": str(store),
            "arms": arms,
            "seeds": seeds,
            "workers": workers,
            "limit": limit,
            "seconds": seconds,
            "answer": str(answer),
            "env": env,
        }
        pid = self.ask(json.dumps(order))

        def wait(kill: bool = False) -> dict[str, Any]:
            if kill:
                os.kill(pid, signal.SIGKILL)
            status = self.ask(f"wait {pid}")
            assert status in (0, -signal.SIGKILL), status
            if status:
                return {"killed": True}
            found: dict[str, Any] = {"killed": False, **json.loads(answer.read_text())}
            assert not found["error"] or found["error"].startswith("KDError: "), found["error"]
            return found

        return wait

    def run(self, store: Path, *arms: str, **rest: Any) -> dict[str, Any]:
        return self.start(store, arms, **rest)()

    def close(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture(scope="session")
def server(toy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not hasattr(os, "fork"):
        pytest.skip("needs a system that forks")
    server = Server(toy_root, tmp_path_factory.mktemp("answers"))
    yield server
    server.close()


def contents(store: Path) -> dict[str, bytes]:
    """Every stored file by "<run id>/<name>"; of run.json what must not differ between machines and hours."""
    found = {}
    for path in sorted(store.glob("runs/*/*")):
        name, content = f"{path.parent.name}/{path.name}", path.read_bytes()
        if path.name == "run.json":
            content = json.dumps(
                {key: value for key, value in json.loads(content).items() if key != "environment"}
            ).encode()
        if path.name != "manifest.json":
            found[name] = content
    return found


@pytest.fixture
def traced(monkeypatch):
    """Every training is traced, as those of runs are."""
    monkeypatch.setitem(Progress.__init__.__kwdefaults__, "traced", True)
