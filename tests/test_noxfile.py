"""The shared environment of nox: another session does not lose it, and a set-up that fails puts it back."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


class Session:
    """What the sessions of the noxfile need of nox's."""

    def __init__(self):
        self.said = []

    def log(self, text):
        self.said.append(text)

    warn = log

    def error(self, text):
        raise SystemExit(text)


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("the_noxfile", ROOT / "noxfile.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def nox_file(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HOME", tmp_path / ".nox" / "environment")
    monkeypatch.setattr(module, "STAMP", tmp_path / ".nox" / "environment" / "installed.txt")

    def install(session):
        module.HOME.mkdir()
        (module.HOME / "made").write_text("new")

    monkeypatch.setattr(module, "install", install)
    yield module
    module.USED.close()


def made(nox_file, text):
    return (nox_file.HOME / "made").read_text() == text


def test_the_environment_is_made_once_and_again_after_a_change(nox_file):
    session = Session()
    nox_file.environment.func(session)
    assert made(nox_file, "new")
    (nox_file.HOME / "made").write_text("old")
    nox_file.environment.func(session)
    assert session.said == ["the environment is up to date"]
    assert made(nox_file, "old")
    nox_file.USED.close()
    nox_file.STAMP.write_text("another constraints.txt")
    nox_file.environment.func(session)
    assert made(nox_file, "new")
    assert [path.name for path in nox_file.HOME.parent.iterdir() if path.is_dir()] == ["environment"]


def test_a_set_up_that_fails_puts_the_environment_of_before_back(nox_file, monkeypatch):
    nox_file.environment.func(Session())
    nox_file.USED.close()
    nox_file.STAMP.write_text("another constraints.txt")
    (nox_file.HOME / "made").write_text("old")

    def offline(session):
        nox_file.HOME.mkdir()
        raise nox_file.CommandFailed("pip")

    monkeypatch.setattr(nox_file, "install", offline)
    session = Session()
    with pytest.raises(nox_file.CommandFailed):
        nox_file.environment.func(session)
    assert made(nox_file, "old")
    assert nox_file.STAMP.read_text() == "another constraints.txt"
    assert session.said[-1].endswith("is the one of before again")


def test_an_environment_that_another_session_uses_is_not_renewed(nox_file):
    nox_file.environment.func(Session())
    nox_file.USED.close()
    nox_file.STAMP.write_text("another constraints.txt")
    (nox_file.HOME / "made").write_text("old")
    lock = nox_file.HOME.parent / "environment-used.lock"
    code = f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        other.stdout.readline()
        with pytest.raises(
            SystemExit, match="another nox session uses it: wait for that, or stop it, then run the same"
        ):
            nox_file.environment.func(Session())
        assert made(nox_file, "old")
        other.communicate("\n")
    nox_file.environment.func(Session())
    assert made(nox_file, "new")
