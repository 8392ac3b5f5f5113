"""Put known distillation bugs into the code, one at a time; the ordinary tests must fail each time.

    python tests/mutants/run.py          every mutant
    python tests/mutants/run.py 4 9b     the mutants of bug 4, and one mutant of bug 9

Each of these bugs has been published with result tables:

 1 teacher and student swapped in the loss, or gradients into the teacher
 2 cached teacher logits in a shuffled order, used by position
 3 the student's own logits as its soft targets
 4 the student left in evaluation mode after the first validation
 5 KL divergence averaged over the classes too
 6 T^2 left out, or applied to the hard term
 7 softmax of probabilities; temperature applied to the teacher only
 8 a part of the data loaded from another set
 9 logits of plain inputs used with augmented inputs
10 mixup computed and not used; inputs mixed without their labels
11 a schedule that never fires
12 a second arm that continues from the first arm's weights
13 the best epoch chosen on the test set
14 the teacher in training mode while it makes targets
15 the baseline trained with another batch size or number of steps than the distilled arm

These are of the same kind: a pair that is said to differ in one thing differs in another, and nobody is told.

16 two arms that are compared differ in more than they are said to: batch size, learning rate, order, weights, ...
17 the trace of a run, or what binds it to its parents, is wrong, so that a difference of kind 16 or 18 is not seen
18 soft targets, or a sham, of another snapshot, part, seed or teacher, or only half of it
19 a step that was recorded, gathered, resumed or computed in another way is not the step that it stands for
20 a protocol, a split of the data or a layer of one replication is not the one that is described

A mutant is a file NN-name.patch in this folder: a line "Bug:", a line "Tests:" with the tests that must fail, and a
unified diff of one source file. The patch is applied to a temporary copy of the tree, and its tests run there; if they
pass, all tests run. A mutant is killed by a failed test. An import error, a misspelt name or a patch that no longer
applies does not count: refresh the patch then.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUGS = range(1, 21)
# Python's compiled code (__pycache__) is copied, so that no mutant has to compile it again.
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".nox", ".venv", ".kd", ".hypothesis", ".*_cache", ".benchmarks", "*.egg-info", "local"
)
# A test that ends with one of these errors found a broken patch; it says nothing about what the code computes.
CRASHES = re.compile(
    r"(\w+\.)*(ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|UnboundLocalError"
    r"|AttributeError|TypeError)\b"
)
TIMEOUT = 900  # seconds


@dataclass(frozen=True)
class Mutant:
    path: Path
    bug: str
    file: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    def answers_to(self, wanted: str) -> bool:
        label = self.name.partition("-")[0].lstrip("0")  # "9b"
        return wanted.lstrip("0") in (label, label.rstrip(string.ascii_lowercase), self.name)


@dataclass(frozen=True)
class Verdict:
    killed: bool
    text: str


def read(path: Path) -> Mutant:
    text = path.read_text(encoding="utf-8")
    head, _, diff = text.partition("--- ")
    fields = dict(re.findall(r"^(Bug|Tests): (.+)$", head, re.MULTILINE))
    files = re.findall(r"^\+\+\+ b/(\S+)$", diff, re.MULTILINE)
    if fields.keys() != {"Bug", "Tests"} or len(files) != 1:
        raise SystemExit(
            f"{path}: expected lines 'Bug:' and 'Tests:' and the diff of one file, found {sorted(fields)} and {files}"
        )
    return Mutant(path, fields["Bug"], files[0], tuple(fields["Tests"].split()))


def chosen(mutants: Sequence[Mutant], wanted: Sequence[str]) -> list[Mutant]:
    for name in wanted:
        if not any(mutant.answers_to(name) for mutant in mutants):
            raise SystemExit(f"no mutant {name}; there are {', '.join(mutant.name for mutant in mutants)}")
    missing = [bug for bug in BUGS if not any(mutant.answers_to(str(bug)) for mutant in mutants)]
    if missing:
        raise SystemExit(f"expected a patch for each bug from {BUGS[0]} to {BUGS[-1]}, found none for {missing}")
    return [mutant for mutant in mutants if not wanted or any(mutant.answers_to(name) for name in wanted)]


def run_tests(tree: Path, *arguments: str) -> tuple[int, dict[str, str], str]:
    """Return pytest's exit status, its failed tests with the first line of each error, and its whole output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "COLUMNS": "400"}
    # Hypothesis works without its plugin, and the plugin takes as long to import as torch.
    options = ["-q", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    done = subprocess.run(
        command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT
    )
    failed = re.findall(r"^FAILED (.+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    return done.returncode, dict(failed), done.stdout


def apply(mutant: Mutant, tree: Path) -> str:
    """Patch the tree; return "", or the reason why it cannot be patched."""
    before = (tree / mutant.file).read_bytes()
    done = subprocess.run(["git", "apply", str(mutant.path)], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip()
    return "" if (tree / mutant.file).read_bytes() != before else f"{mutant.file} did not change"


def judge(mutant: Mutant, base: Path) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(base, tree)
        if problem := apply(mutant, tree):
            return Verdict(False, f"the patch does not apply; refresh it: {problem}")
        try:
            status, failed, output = run_tests(tree, "-x", *mutant.tests)
            if status == 0:
                return fall_back(tree, base)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"its tests did not end within {TIMEOUT} s; refresh the patch")
    killers = {test: error for test, error in failed.items() if not CRASHES.match(error)}
    if status != 1 or not killers:
        return Verdict(
            False, "no test judged it; refresh the patch:\n" + re.sub(r"([=_!])\1{9,}", r"\1\1\1", output)[-3000:]
        )
    return Verdict(True, next(iter(killers)))


def fall_back(tree: Path, base: Path) -> Verdict:
    """Run all tests, because the named ones passed. A test that also fails without the patch does not count."""
    _, failed, _ = run_tests(tree)
    failed = {test: error for test, error in failed.items() if not CRASHES.match(error)}
    if failed:
        _, anyway, _ = run_tests(base, *failed)
        if killers := [test for test in failed if test not in anyway]:
            return Verdict(
                True, f"{killers[0]} and {len(killers) - 1} more (not the tests it names: correct its 'Tests:' line)"
            )
    return Verdict(False, "SURVIVED: every test passed; add one that sees this bug")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Put known distillation bugs into a copy of the code; the tests must fail."
    )
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="number (4), variant (9b) or patch name (default: all)")
    parser.add_argument("--workers", type=int, default=2, help="mutants tested at the same time (default: 2)")
    options = parser.parse_args()
    mutants = chosen([read(path) for path in sorted(HERE.glob("*.patch"))], options.bugs)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        base = Path(folder) / "base"
        shutil.copytree(ROOT, base, ignore=LEFT_OUT)
        status, _, output = run_tests(base, *sorted({test for mutant in mutants for test in mutant.tests}))
        if status:
            print(f"{output}\nexpected the tests named in the patches to exist and to pass without a patch; see above")
            return 1
        print(f"the tests pass without a patch ({time.monotonic() - began:.0f} s)", flush=True)

        def timed(mutant: Mutant) -> tuple[Mutant, Verdict, float]:
            start = time.monotonic()
            return mutant, judge(mutant, base), time.monotonic() - start

        missed = 0
        with ThreadPoolExecutor(options.workers) as pool:
            for mutant, verdict, seconds in pool.map(timed, mutants):
                missed += not verdict.killed
                print(
                    f"{'killed' if verdict.killed else 'FAILED'} {mutant.name} ({seconds:.0f} s): {verdict.text}",
                    flush=True,
                )
    print(f"{len(mutants) - missed} of {len(mutants)} mutants killed, {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
