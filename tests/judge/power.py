"""How often the rule of an effect is right: verdicts on simulated seeds, by their number and the size of the effect.

    python -m tests.judge.power

prints the table of results/README.md, and what looking at the results after every seed would do. Differences are normal
with standard deviation s = 1, and the source reports D, without a spread. Either its effect is there (mean D) or there
is none (mean 0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from kdlib.judge.rules import Moments, Outcome, Sized

SEEDS, SIZES = (5, 10, 20), (0.5, 1.0, 2.0, 4.0)  # n, and D in units of s
TRIALS = 20_000
THERE = (Outcome.REPLICATED, Outcome.LARGER, Outcome.SMALLER, Outcome.MUCH_SMALLER)
NOT_THERE = (Outcome.NOT_REPLICATED, Outcome.NOT_REPLICATED_REVERSED)


def shares(n: int, size: float, true: float, trials: int = TRIALS) -> dict[Outcome, float]:
    """Return the share of each outcome on n seeds whose differences have the mean `true`; D = `size`."""
    codes = Sized(size, size / 2, 0.0).outcomes(Moments.of(_seeds(n, true, trials)))
    return dict(zip(Outcome, np.bincount(codes, minlength=len(Outcome)) / trials, strict=True))


def ever_replicated(size: float, most: int = 20, trials: int = TRIALS) -> float:
    """Return the share of nulls that are "replicated" at some n from 5 to `most`, if one looks after every seed."""
    found, seeds = np.zeros(trials, dtype=bool), _seeds(most, 0.0, trials)
    for n in range(5, most + 1):
        found |= Sized(size, size / 2, 0.0).outcomes(Moments.of(seeds[:, :n])) == list(Outcome).index(
            Outcome.REPLICATED
        )
    return float(found.mean())


def _seeds(n: int, mean: float, trials: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return mean + np.random.default_rng(n).standard_normal((trials, n, 1))


def rows(trials: int = TRIALS) -> Iterator[tuple[int, float, list[float]]]:
    """Give n, D, and the four shares of each row of the table."""

    def total(found: dict[Outcome, float], of: Collection[Outcome]) -> float:
        return sum(found[outcome] for outcome in of)

    for n in SEEDS:
        for size in SIZES:
            real, null = (shares(n, size, true, trials) for true in (size, 0.0))
            yield (
                n,
                size,
                [
                    real[Outcome.REPLICATED],
                    total(real, THERE),
                    null[Outcome.REPLICATED],
                    total(null, NOT_THERE),
                ],
            )


HEAD = """\
| n | D / s | effect D is there: replicated | an effect is found | no effect is there: replicated | not replicated |
|-|-|-|-|-|-|"""


def main() -> None:
    """Print the table, and the shares of false replications with and without looks in between."""
    print(HEAD)
    for n, size, found in rows():
        print(f"| {n} | {size:g} | " + " | ".join(f"{share:.1%}" for share in found) + " |")
    once = shares(20, 1.0, 0.0, 200_000)[Outcome.REPLICATED]
    print(f"D = 1 s, n = 20: {once:.2%} once, {ever_replicated(1.0, trials=200_000):.2%} with a look after every seed")
    for n in (5, 6, 8, 10, 15, 20):
        print(n, f"{shares(n, 1.0, 0.0, 200_000)[Outcome.REPLICATED]:.2%}", f"{ever_replicated(1.0, n, 100_000):.2%}")


if __name__ == "__main__":
    main()
