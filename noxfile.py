"""Sessions. Set-up: `python -m pip install nox`, then `nox -s replicate_ecg` or `nox -s tests`.

All sessions share one environment, `.nox/environment`, which the session `environment` makes from constraints.txt. It
is shared because torch is large.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nox
from nox.command import CommandFailed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if sys.version_info < (3, 11, 4):
    found = ".".join(map(str, sys.version_info[:3]))
    raise SystemExit(
        f"nox runs with Python {found}, expected 3.11.4 or later. Install a newer Python, then nox with it: "
        "python3.11 -m pip install nox && python3.11 -m nox -s replicate_ecg"
    )

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
HOME = ROOT / ".nox" / "environment"
STAMP = HOME / "installed.txt"
USED = ExitStack()  # until this process ends
PYTHON = HOME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
REPLICATIONS = sorted(path.parent.name for path in ROOT.glob("replications/*/experiment.py"))

# The modules of the API reference; a package brings its own modules.
DOCUMENTED = " ".join(
    f"kdlib.{name}"
    for name in (
        *("api", "losses", "targets", "batches", "augment", "training", "replicas", "specialists"),
        *("specialist_inference", "metrics", "networks", "seeds", "cost", "export", "data", "run", "judge", "report"),
    )
)

TESTS = "-n 2 --ignore tests/browser --ignore tests/cluster"

# Each session is one or more commands of the environment's Python. What follows `--` is added to the last one.
SESSIONS = {
    "tests": ("Run the tests (some 6 minutes on 2 cores).", f"-m pytest {TESTS} -m 'not slow'"),
    "slow": ("Run the tests that take more than some seconds each.", f"-m pytest {TESTS} -m slow"),
    "lint": ("Check style and formatting with ruff.", "-m ruff check .", "-m ruff format --check ."),
    "types": ("Check types with mypy, strictly.", "-m mypy"),
    "bench": (
        "Run the benchmarks.",
        "-m pytest tests/benchmarks -o addopts=--import-mode=importlib --benchmark-only",
    ),
    "check": (
        "Train the check arms of each replication in an empty store and compare them with the recorded bands.",
        "-m kdlib check",
    ),
    "audit": (
        "Derive every committed number, verdict and band again from the committed runs, with independent code.",
        "-m tests.audit",
    ),
    "mutants": (
        "Inject known distillation bugs into a copy of the source and check that the tests catch each one.",
        "tests/mutants/run.py",
    ),
    "tables": ("Make the committed tables and pages again from the committed runs.", "-m kdlib tables"),
    "browser": ("Test the pages in a headless Chromium; skipped where there is none.", "-m pytest tests/browser"),
    "cluster": (
        "Train on a Ray cluster of this machine and kill parts of it (under 3 minutes); skipped where there is no Ray.",
        "-m pytest tests/cluster",
    ),
    "docs": (
        "Build the API reference in build/docs; warnings are errors.",
        f"-W error -m pdoc --docformat markdown --output-directory build/docs {DOCUMENTED}",
    ),
    **{
        f"replicate_{name}": (
            f"Run replications/{name}; options after --, for example -- --profile smoke.",
            f"-m kdlib run {name}",
        )
        for name in REPLICATIONS
    },
}


@nox.session(venv_backend="none")
def environment(session: nox.Session) -> None:
    """Make the environment that every other session uses, or renew it."""
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text() + sys.version
    with locked("environment-made.lock"):  # another set-up is waited for
        if STAMP.exists() and STAMP.read_text() == wanted:
            session.log("the environment is up to date")
        else:
            renew(session, wanted)
        USED.enter_context(locked("environment-used.lock", shared=True))


def renew(session: nox.Session, wanted: str) -> None:
    """Make the environment anew; the one of before is put back if that fails."""
    before = HOME.with_name("environment-before")
    try:
        with locked("environment-used.lock", wait=False):
            if STAMP.exists():  # whole
                shutil.rmtree(before, ignore_errors=True)
                HOME.rename(before)
            shutil.rmtree(HOME, ignore_errors=True)
            try:
                install(session)
                STAMP.write_text(wanted)  # last, so that a broken install has no stamp
            except BaseException:
                if before.exists():
                    shutil.rmtree(HOME, ignore_errors=True)
                    before.rename(HOME)
                    session.warn(f"{HOME} is the one of before again")
                raise
            shutil.rmtree(before, ignore_errors=True)
    except BlockingIOError:
        session.error(
            "the environment must be renewed, since pyproject.toml, constraints.txt or Python has changed, and another "
            "nox session uses it: wait for that, or stop it, then run the same command again"
        )


@contextmanager
def locked(name: str, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a lock of this folder; BlockingIOError if it is taken and not to be waited for."""
    if fcntl is None:  # Windows does not delete files that are in use
        yield
        return
    HOME.parent.mkdir(exist_ok=True)
    with (HOME.parent / name).open("w") as file:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        yield


def install(session: nox.Session) -> None:
    session.run(sys.executable, "-m", "venv", str(HOME), external=True)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", "constraints.txt", "-e"]
    run(session, *pip, ".[suite,test,lint,browser,docs]")
    try:
        run(session, *pip, ".[ray]")
    except CommandFailed:  # Ray has no package for every system
        session.warn("Ray could not be installed: its tests are skipped")


def run(session: nox.Session, *command: str) -> None:
    # On Ctrl-C the command needs some seconds to say how to go on; nox would end it after 0.3 s.
    session.run(str(PYTHON), *command, external=True, interrupt_timeout=30, terminate_timeout=10)


@nox.session(venv_backend="none", requires=["environment"])
def replicate(session: nox.Session) -> None:
    """Run every replication, also after one has failed; options after -- as for one."""
    failed = []
    for name in REPLICATIONS:
        try:
            run(session, "-m", "kdlib", "run", name, *session.posargs)
        except CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"something failed in {', '.join(failed)}: see above")


def add_session(name: str, about: str, *commands: str) -> None:
    @nox.session(name=name, venv_backend="none", requires=["environment"])
    def one(session: nox.Session) -> None:
        for command in commands[:-1]:
            run(session, *shlex.split(command))
        run(session, *shlex.split(commands[-1]), *session.posargs)

    one.__doc__ = about


for _name, _parts in SESSIONS.items():
    add_session(_name, *_parts)
