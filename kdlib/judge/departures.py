"""What departs from the recorded runs: numbers outside their bands, whole sessions, and changed verdicts.

One number in 100 lies outside its 99% band by chance, so such a number is only a warning. A session fails if one number
is so far outside, or so many bands are missed, as chance alone does in 1 of 200 sessions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scipy import special

from kdlib.judge.bands import BAND_LEVEL, Band, Bands, inside_ranges
from kdlib.judge.claims import Reported
from kdlib.judge.intervals import limits, t_quantile
from kdlib.judge.judging import Metrics, outcomes

__all__ = ["SESSION_LEVEL", "Compared", "Miss", "changes", "compared", "misses", "of_banded_seeds"]

SESSION_LEVEL = 0.005  # of each of the two tests of a session


@dataclass(frozen=True)
class Miss:
    """A measured number outside its band (nan: the run lacks the metric); `arm` names all arms that share the run."""

    arm: str
    seed: int
    metric: str
    band: Band
    observed: float

    def __str__(self) -> str:
        band = f"{_shown(self.metric, self.band)}, recorded by commit {self.band.commit}"
        return f"{self.arm}, seed {self.seed}: {self.metric} is {self.observed:.6g}, outside its band {band}"


@dataclass(frozen=True)
class Compared:
    """A session's numbers next to their bands; a number of two arms that share a run counts once.

    `far`: the misses that lie outside a wider band too, at 1 - level / numbers (Bonferroni). `most`: so many bands may
    be missed by chance.
    """

    numbers: int
    bands: int
    seeds: int
    misses: tuple[Miss, ...]
    far: tuple[Miss, ...]
    level: float

    @property
    def missed(self) -> int:
        """The number of bands with a miss."""
        return len({(miss.metric, miss.band.values) for miss in self.misses})

    @property
    def most(self) -> int:
        """The largest number of missed bands whose binomial tail is not below the level.

        The seeds of one band share its error, so bands are counted and not numbers: each has a miss with a probability
        of 1% a seed at most.
        """
        chance = min(1.0, (1 - BAND_LEVEL) * self.seeds)
        likely = (m for m in range(self.bands, 0, -1) if special.bdtrc(m - 1, self.bands, chance) >= self.level)
        return next(likely, 0)

    @property
    def problems(self) -> list[str]:
        """A sentence for each reason to fail the session."""
        sessions = f"1 of {1 / self.level:,.0f} sessions"
        found = []
        for miss in self.far:
            wide = _shown(miss.metric, _widened(miss.band, self.level / self.numbers))
            found.append(f"{miss}; and outside {wide}, which a number leaves by chance in {sessions}")
        if self.missed > self.most:
            chance = f"chance misses more than {self.most} in fewer than {sessions}"
            found.append(f"bands missed: {self.missed} of {self.bands}; {chance}")
        return found

    @property
    def warnings(self) -> list[str]:
        """A line for each number outside its band that does not fail the session by itself, and their count."""
        lines = [f"warning: {miss}, as 1 number in 100 is" for miss in self.misses if miss not in self.far]
        if self.misses:
            numbers = f"numbers outside their bands: {len(self.misses)} of {self.numbers}"
            lines.append(
                f"warning: {numbers}; bands missed: {self.missed} of {self.bands}, by chance up to {self.most}"
            )
        return lines


def compared(bands: Mapping[str, Band], metrics: Metrics, level: float = SESSION_LEVEL) -> Compared:
    """Compare every measured number of a banded arm and metric with its band.

    `level`: how often each of the two tests may fail an honest session; of a session that is one of k, a k-th part.
    """
    numbers = _numbers(bands, metrics)
    missed = [number for number in numbers if _outside(number, number.band)]
    far = [number for number in missed if _outside(number, _widened(number.band, level / len(numbers)))]
    distinct = {(number.metric, number.band.values) for number in numbers}
    seeds = {number.seed for number in numbers}
    return Compared(len(numbers), len(distinct), len(seeds), tuple(missed), tuple(far), level)


def misses(bands: Mapping[str, Band], metrics: Metrics) -> list[Miss]:
    """Return every measured number of a banded arm and metric that is missing, not finite or outside its band."""
    return list(compared(bands, metrics).misses)


def _numbers(bands: Mapping[str, Band], metrics: Metrics) -> list[Miss]:
    """Every number that has a band."""
    found: dict[tuple[object, ...], Miss] = {}
    for key, band in sorted(bands.items()):
        arm, _, metric = key.partition(".")
        for seed, measured in sorted(metrics.get(arm, {}).items()):
            observed = measured.get(metric, math.nan)
            # Arms that are snapshots or copies of one run have the same band and the same number.
            number = (metric, seed, band.values, observed)
            same = found.get(number)
            found[number] = Miss(f"{same.arm}, {arm}" if same else arm, seed, metric, band, observed)
    return list(found.values())


def _outside(number: Miss, band: Band) -> bool:
    band = _on_scale(number.metric, band)
    slack = 1e-9 * max(abs(number.band.low), abs(number.band.high))  # for a band of no width, on another machine
    return not band.low - slack <= number.observed <= band.high + slack


def _widened(band: Band, outside: float) -> Band:
    """Return the band that a further run leaves with probability `outside`."""
    freedom = len(band.values) - 1
    wider = t_quantile(1 - outside / 2, freedom) / t_quantile((1 + BAND_LEVEL) / 2, freedom)
    middle, half = (band.low + band.high) / 2, (band.high - band.low) / 2 * wider
    return replace(band, low=middle - half, high=middle + half)


def _on_scale(metric: str, band: Band) -> Band:
    """Return the part of a band that the metric can reach."""
    least, most = limits(metric)
    return replace(band, low=max(band.low, least), high=min(band.high, most))


def _shown(metric: str, band: Band) -> str:
    band = _on_scale(metric, band)
    return f"{band.low:.6g} to {band.high:.6g}"


# ---- changed verdicts


def of_banded_seeds(known: Bands, metrics: Metrics) -> Metrics:
    """Return the metrics of the arms and seeds in the bands only; more seeds may legitimately change a verdict."""
    seeds = {key.partition(".")[0]: band.seeds for key, band in known.bands.items()}
    return {
        arm: {seed: measured[seed] for seed in seeds[arm] if seed in measured}
        for arm, measured in metrics.items()
        if arm in seeds
    }


def changes(known: Bands, reported: Reported, metrics: Metrics, declared: int) -> list[str]:
    """Return a sentence for each verdict, and each place in or out of a reported range, that has changed."""
    metrics = of_banded_seeds(known, metrics)
    verdicts, inside = outcomes(reported, metrics, declared), inside_ranges(reported, metrics)
    found = []
    for claim, modes in sorted(known.verdicts.items()):
        for mode, outcome in sorted(modes.items()):
            now = verdicts.get(claim, {}).get(mode, outcome)
            if now != outcome:
                found.append(f"{claim}, {mode}: recorded {outcome}, now {now}")
    for key, was in sorted(known.inside.items()):
        if inside.get(key, was) != was:
            places = ("outside", "inside")
            found.append(f"{key}: recorded {places[was]} its reported range, now {places[not was]}")
    return found
