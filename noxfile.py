"""Sessions. Set-up: `python -m pip install nox`, then `nox -s replicate_ecg` or `nox -s tests`.

All sessions share one environment, `.nox/environment`, made from constraints.txt by the session `environment`; torch is large.
"""

import os
import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
HOME = ROOT / ".nox" / "environment"
BIN = HOME / ("Scripts" if os.name == "nt" else "bin")
REPLICATIONS = sorted(path.parent.name for path in ROOT.glob("replications/*/experiment.py"))


@nox.session(venv_backend="none")
def environment(session: nox.Session) -> None:
    """Make or renew the one environment that every other session uses."""
    stamp = HOME / "installed.txt"
    wanted = (ROOT / "pyproject.toml").read_text() + (ROOT / "constraints.txt").read_text() + sys.version
    if stamp.exists() and stamp.read_text() == wanted:
        session.log("the environment is up to date")
        return
    shutil.rmtree(HOME, ignore_errors=True)
    session.run(sys.executable, "-m", "venv", str(HOME), external=True)
    session.run(str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                "-c", "constraints.txt", "-e", ".[test,lint]", external=True)
    stamp.write_text(wanted)  # last: a broken install has no stamp


def run(session: nox.Session, *command: str) -> None:
    session.run(str(BIN / "python"), *command, external=True)


@nox.session(venv_backend="none", requires=["environment"])
def tests(session: nox.Session) -> None:
    """Run the tests (under 5 minutes on 2 cores)."""
    run(session, "-m", "pytest", "-n", "2", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def lint(session: nox.Session) -> None:
    """Check style with ruff."""
    run(session, "-m", "ruff", "check", ".")


@nox.session(venv_backend="none", requires=["environment"])
def types(session: nox.Session) -> None:
    """Check types with mypy, strict on kdlib."""
    run(session, "-m", "mypy")


@nox.session(venv_backend="none", requires=["environment"])
def bench(session: nox.Session) -> None:
    """Run the benchmarks."""
    only = ("-o", "addopts=--import-mode=importlib", "--benchmark-only")
    run(session, "-m", "pytest", "tests/benchmarks", *only, *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def check(session: nox.Session) -> None:
    """Retrain each replication's check arms in an empty store and compare with the recorded bands (needs the real data)."""
    run(session, "-m", "kdlib", "check", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def audit(session: nox.Session) -> None:
    """Derive every committed table, verdict and band anew from the committed runs, by other code than wrote them."""
    run(session, "-m", "kdlib.audit", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def mutants(session: nox.Session) -> None:
    """Inject known distillation bugs into a copy of the source, one at a time: the tests must fail under every one."""
    run(session, "tests/mutants/run.py", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def tables(session: nox.Session) -> None:
    """Make the committed tables again from the committed runs."""
    run(session, "-m", "kdlib", "tables", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def replicate(session: nox.Session) -> None:
    """Run every replication, whatever comes of those before it; options after -- as for one."""
    failed = []
    for name in REPLICATIONS:
        try:
            run(session, "-m", "kdlib", "run", name, *session.posargs)
        except CommandFailed:
            failed.append(name)
    if failed:
        session.error(f"something failed in {', '.join(failed)}: see above")


def add_replication(name: str) -> None:
    @nox.session(name=f"replicate_{name}", venv_backend="none", requires=["environment"])
    def replicate_one(session: nox.Session) -> None:
        run(session, "-m", "kdlib", "run", name, *session.posargs)

    replicate_one.__doc__ = f"Run replications/{name}; options after --, e.g. -- --profile smoke."


for _name in REPLICATIONS:
    add_replication(_name)
