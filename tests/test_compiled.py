"""Machine code that is kept between processes is that of the present source; the replications train without numba."""

import importlib.util
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdlib import code_cache, compiled

ROOT = Path(__file__).parents[1]
FORK = multiprocessing.get_context("fork")
HELPER = """
from kdlib.compiled import compiled
FACTOR = 2.0
def plain(x):
    return x
@compiled
def deeper(x):
    return x * FACTOR
@compiled
def scaled(x):
    return deeper(x) + 1
"""
CALLER = """
import numpy as np
from helper import FACTOR, plain, scaled
from kdlib.compiled import compiled, narrow, wide
@compiled
def total(x):
    result = 0.0
    for k in range(x.size):
        result += scaled(wide(x[k]))
    return result + np.float64(FACTOR)
"""
X = np.arange(3, dtype=np.float32)
TOTAL = 2 * (0 + 1 + 2) + 3 + 2.0


@pytest.fixture(scope="module")
def _warm():
    """Numba's first compilation takes seconds: here, so that the processes that are forked later need not repeat it."""
    compiled.njit(lambda x: x + 1)(1.0)


@pytest.fixture
def source(tmp_path, _warm):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "helper.py").write_text(HELPER)
    (folder / "caller.py").write_text(CALLER)
    return folder


def total(source, cache, together=None):
    """The value of the compiled function in a new process, and how often that process found its code in the cache."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_child, args=(source, cache, together, there))
    process.start()
    there.close()
    return here, process


def answer(here, process):
    assert here.poll(60)
    found = here.recv()
    process.join(10)
    assert process.exitcode == 0
    return found


def run(source, cache):
    return answer(*total(source, cache))


def _child(source, cache, together, there):
    sys.dont_write_bytecode = True  # an edit within a second, to a file of the same size, would not be seen
    sys.path.insert(0, str(source))
    compiled.SETTINGS.CACHE_DIR = str(cache)
    compiled._folder.cache_clear()
    spec = importlib.util.spec_from_file_location("caller", source / "caller.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if together is not None:
        together.wait(30)
    value = module.total(X)
    there.send((value, sum(module.total.stats.cache_hits.values())))
    there.close()
    os._exit(0)


def files(cache):
    return sorted((cache / "kdlib").iterdir())


def test_the_next_process_uses_the_code_that_was_kept(source, tmp_path):
    cache = tmp_path / "cache"
    assert run(source, cache) == (TOTAL, 0)
    kept = {path.name.partition("-")[0]: path.read_bytes() for path in files(cache)}
    assert kept.keys() == {"total", "scaled", "deeper"}
    assert run(source, cache) == (TOTAL, 1)
    (source / "helper.py").write_text("# a comment moves the lines and changes no code\n" + HELPER)
    assert run(source, cache) == (TOTAL, 1)
    assert {path.name.partition("-")[0]: path.read_bytes() for path in files(cache)} == kept
    assert (cache / "kdlib").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files(cache)} == {0o600}


@pytest.mark.parametrize(
    ("file", "old", "new", "value"),
    [
        ("helper.py", "deeper(x) + 1", "deeper(x) + 2", TOTAL + 3),
        ("helper.py", "x * FACTOR", "x - FACTOR", 3 - 6 + 3 + 2.0),  # a helper of the helper
        ("helper.py", "FACTOR = 2.0", "FACTOR = 3.0", 9 + 3 + 3.0),  # a constant, also taken from another file
        ("caller.py", "np.float64(FACTOR)", "np.float32(FACTOR) * 2", TOTAL + 2),
    ],
    ids=["helper", "helper of a helper", "constant", "function"],
)
def test_an_edit_of_anything_that_the_code_is_made_from_is_seen(source, tmp_path, file, old, new, value):
    cache, path = tmp_path / "cache", source / file
    assert run(source, cache) == (TOTAL, 0)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    assert run(source, cache) == (value, 0)
    path.write_text(text)
    assert run(source, cache) == (TOTAL, 1)


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbled": lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
    "an altered digest": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_read(tmp_path, damage):
    content = bytes(range(256)) * 4
    code_cache.write(tmp_path / "code", content)
    assert code_cache.read(tmp_path / "code") == content
    (tmp_path / "code").write_bytes(damage((tmp_path / "code").read_bytes()))
    assert code_cache.read(tmp_path / "code") is None


@pytest.mark.slow
def test_a_damaged_file_and_one_that_is_no_code_are_made_again(source, tmp_path):
    cache = tmp_path / "cache"
    run(source, cache)
    for path in files(cache):
        path.write_bytes(DAMAGES["garbled"](path.read_bytes()))
    assert run(source, cache) == (TOTAL, 0)
    for path in files(cache):
        code_cache.write(path, b"no pickle")
    assert run(source, cache) == (TOTAL, 0)
    assert run(source, cache) == (TOTAL, 1)


def test_where_nothing_can_be_written_the_code_is_compiled_every_time(source, tmp_path):
    (tmp_path / "file").touch()
    for _ in range(2):
        assert run(source, tmp_path / "file") == (TOTAL, 0)


def test_processes_that_compile_at_once_leave_whole_files(source, tmp_path):
    cache, together = tmp_path / "cache", FORK.Barrier(2)
    begun = [total(source, cache, together) for _ in range(2)]
    assert [answer(*each)[0] for each in begun] == [TOTAL, TOTAL]
    assert [path.name.partition("-")[0] for path in files(cache)] == ["deeper", "scaled", "total"]
    assert run(source, cache) == (TOTAL, 1)


# ---- the folder


def test_the_folder_belongs_to_this_user_alone(tmp_path, monkeypatch):
    folder = tmp_path / "made" / "cache"
    assert code_cache.private_folder(folder) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode, accepted in ((0o777, False), (0o770, False), (0o702, False), (0o755, True), (0o700, True)):
        folder.chmod(mode)
        assert (code_cache.private_folder(folder) == folder) == accepted, oct(mode)
    (tmp_path / "link").symlink_to(folder)
    assert code_cache.private_folder(tmp_path / "link") is None
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert code_cache.private_folder(folder) is None


def test_the_code_is_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled.SETTINGS, "CACHE_DIR", "")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    compiled._folder.cache_clear()
    try:
        assert compiled._folder() == tmp_path / "kdlib" / "compiled"
    finally:
        compiled._folder.cache_clear()


def test_the_files_used_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(code_cache, "KEPT", 3)
    for number in range(3):
        code_cache.write(tmp_path / str(number), b"code")
        os.utime(tmp_path / str(number), (number, number))
    assert code_cache.read(tmp_path / "0") == b"code"  # used now
    code_cache.write(tmp_path / "3", b"code")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3"]


def test_a_disk_that_is_full_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        code_cache.write(tmp_path / "code", b"code")
    assert not list(tmp_path.iterdir())


# ---- what code is made from


def function_of(text, **names):
    space = {"np": np, **names}
    exec(text, space)
    return space["f"]


def test_only_what_changes_the_code_changes_the_fingerprint():
    text = "def f(x, y=1):\n    return [np.sqrt(z + TABLE[0]) for z in range(x)]\n"
    same = {
        code_cache.fingerprint(function_of(lines + text, TABLE=np.arange(3.0))) for lines in ("", "\n\n", "a = 1\n")
    }
    others = {
        code_cache.fingerprint(function_of(changed, TABLE=table))
        for changed, table in (
            (text, np.arange(3)),
            (text, np.arange(1, 4.0)),
            (text, (0.0, 1.0, 2.0)),
            (text, (0.0, 1, 2.0)),
            (text.replace("sqrt", "cbrt"), np.arange(3.0)),
            (text.replace("y=1", "y=2"), np.arange(3.0)),
            (text.replace("[0]", "[1]"), np.arange(3.0)),
            (text.replace("z + ", "z - "), np.arange(3.0)),
        )
    }
    assert len(same) == 1
    assert len(others) == 8
    assert not same & others


def test_two_functions_of_one_name_are_told_apart():
    def helper(step):
        return lambda x: x + step

    small, large = helper(1), helper(2)

    def chain(one, other, last):
        def middle(x):
            return last(x)

        def whole(x):
            return one(x) + other(x) + middle(x)

        return whole

    prints = {code_cache.fingerprint(chain(small, large, last)) for last in (small, large)}
    assert len(prints) == 2


@pytest.mark.parametrize("value", [os, object(), [1], {1: 2}, np.array([None])], ids=lambda value: type(value).__name__)
def test_code_of_what_may_change_unseen_is_not_kept(value):
    with pytest.raises(code_cache.Unknown, match="TABLE"):
        code_cache.fingerprint(function_of("def f(x):\n    return x + TABLE\n", TABLE=value))


# ---- without numba

TRAIN = """
import builtins, importlib, sys
import torch
from kdlib import compiled
real = builtins.__import__
for error in (OSError, ImportError):  # a broken library, and none
    def refuse(name, *rest):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise error(name)
        return real(name, *rest)
    builtins.__import__ = refuse
    importlib.reload(compiled)
    assert not compiled.AVAILABLE
from replications.ecg import experiment as ecg
from replications.mnist import experiment as mnist
from replications.ta_chain import experiment as ta_chain
for network, inputs in (
    (ecg.student_network(), torch.rand(2, 187)),
    (mnist.student_network(), torch.randint(256, (2, 1, 28, 28), dtype=torch.uint8)),
    (ta_chain.Network(8), torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)),
):
    logits = network(inputs)
    logits.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    print(*logits.shape)
"""


@pytest.mark.slow
def test_networks_need_no_numba():
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 5", "2 10", "2 10"]
