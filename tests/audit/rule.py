"""The rule for verdicts, from its definition: a claim, a mode and one number per seed and arm give an outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tests.audit.claims import Claim, Mode
from tests.audit.claims import margin as declared_margin
from tests.audit.statistics import LEAST, NAN, Sample, constant, holm, kendall, sample, t

Series = Mapping[str, Mapping[int, float]]  # arm -> seed -> value

REPLICATED = "replicated"
LARGER = "effect replicated, magnitude differs (larger)"
SMALLER = "effect replicated, magnitude differs (smaller)"
MUCH_SMALLER = "much smaller than reported"
INCONCLUSIVE = "inconclusive"
TOO_FEW = "inconclusive (too few seeds)"
NOT = "not replicated"
NO_DIFFERENCE = "no difference"
CONTRADICTED = "contradicted"
NOT_REVERSED = "not replicated (reversed)"
REVERSED = "reversed"


def verdict(claim: Claim, mode: Mode, series: Series) -> tuple[str, Sample]:
    """Return the outcome of a claim, and what it is judged by: one number per seed that all its arms have."""
    return _exact(mode, series) if claim.kind == "exact" else judged(claim, columns(claim, mode, series))


def columns(claim: Claim, mode: Mode, series: Series) -> list[list[float]]:
    """Return the numbers that a claim is judged by, one for each seed that all its arms have: a list for each rival."""
    arms = (*mode.arms, *mode.rivals)
    shared = set.intersection(*(set(series.get(arm, {})) for arm in arms))
    series = {arm: {seed: x for seed, x in series.get(arm, {}).items() if seed in shared} for arm in arms}
    if claim.kind == "trend":
        return [_taus(mode, series)]
    if claim.origin is not None:
        values = [value - claim.origin for _, value in sorted(series[mode.arms[0]].items())]
        return [[-value for value in values] if claim.lower else values]
    rivals = mode.rivals if claim.kind == "best" else mode.rivals[:1]
    return [differences(series, mode.arms[0], rival, claim.lower) for rival in rivals]


def judged(claim: Claim, found: Sequence[Sequence[float]]) -> tuple[str, Sample]:
    """Return the outcome on numbers such as those of `columns`."""
    samples = [sample(values) for values in found]
    if claim.kind == "best":
        return _best(samples)
    (one,) = samples
    if claim.kind == "trend" and one.n >= LEAST and constant(found[0]):  # then tau is its own bound
        one = Sample(one.n, one.mean, 0.0, *[found[0][0]] * 4)
    if claim.kind in ("effect", "value"):
        return _sized(one, claim), one
    return _bounded(one, claim) if claim.kind in ("comparable", "non-inferior") else _directed(one), one


# ---- how firm an outcome is


def firmness(claim: Claim, found: Sequence[Sequence[float]]) -> float:
    """Return the share of 10,000 redraws of the seeds with the same outcome; nan where there is no spread.

    A redraw is mean + z F: z (n, rivals) from NumPy's default generator with seed 0, F the upper Cholesky factor of the
    covariance, which is s for one rival. So the share can be compared to the last digit. Taus stay within -1 and 1.
    """
    if not _spread(claim, found):
        return NAN
    key = repr((claim.kind, claim.metric, dict(claim.keys), claim.std, claim.runs, found))
    if key not in _KNOWN:
        _KNOWN[key] = _share(claim, found)
    return _KNOWN[key]


_KNOWN: dict[str, float] = {}  # it takes half a second, and the audit's tests derive the same tables many times


def _share(claim: Claim, found: Sequence[Sequence[float]]) -> float:
    numbers = np.array(found).T
    factor = np.linalg.cholesky(np.atleast_2d(np.cov(numbers.T))).T
    drawn = numbers.mean(axis=0) + np.random.default_rng(0).standard_normal((10_000, *numbers.shape)) @ factor
    drawn = np.clip(drawn, -1, 1) if claim.kind == "trend" else drawn
    outcome = judged(claim, found)[0]
    return sum(judged(claim, redraw.T.tolist())[0] == outcome for redraw in drawn) / len(drawn)


def margin(claim: Claim, found: Sequence[Sequence[float]]) -> tuple[float, str]:
    """Return how far all numbers must be moved for another outcome, to nine digits, and that outcome.

    It is searched in steps of a 40th of the standard error that grow by 2%, and then by bisection.
    """
    if not _spread(claim, found):
        return NAN, ""
    here, place = judged(claim, found)[0], 0.0

    def at(shift: float) -> str:
        return judged(claim, [[value + shift for value in column] for column in found])[0]

    step = max(sample(column).std for column in found) / math.sqrt(len(found[0])) / 40
    for _ in range(800):
        ends = [
            _first(at, here, way * place, way * (place + step)) for way in (-1, 1) if at(way * (place + step)) != here
        ]
        if ends:
            nearest = min(ends, key=abs)
            return float(f"{abs(nearest):.9g}"), at(nearest)
        place, step = place + step, step * 1.02
    return NAN, ""


def _first(at: Callable[[float], str], here: str, near: float, far: float) -> float:
    """Return the first shift between two that has another outcome."""
    for _ in range(100):
        middle = (near + far) / 2
        near, far = (middle, far) if at(middle) == here else (near, middle)
    return far


def _spread(claim: Claim, found: Sequence[Sequence[float]]) -> bool:
    """Return whether there is a verdict on numbers that are not all equal."""
    spread = len(found[0]) >= LEAST and not all(constant(column) for column in found)
    return spread and judged(claim, found)[0] != NO_DIFFERENCE


def differences(series: Series, arm: str, rival: str, lower: bool = False) -> list[float]:
    """Return by how much an arm is better than another, one number per seed that both have."""
    better, worse = (series.get(name, {}) for name in ((rival, arm) if lower else (arm, rival)))
    return [better[seed] - worse[seed] for seed in sorted(better) if seed in worse]


def _early(found: Sample) -> str:
    """Return the outcome if the seeds do not allow any other, or nothing."""
    return TOO_FEW if found.n < LEAST else INCONCLUSIVE if math.isnan(found.low) else ""


def _zero(found: Sample) -> bool:
    return found.std == found.low == found.high == 0


def _sized(found: Sample, claim: Claim) -> str:
    """Judge an effect, or what a value exceeds the trivial one by."""
    reported, rounding = float(claim.keys["reported"]), 10.0 ** -claim.keys["decimals"]
    size, room = reported, reported / 2
    if claim.kind == "value":
        size, room = abs(reported - float(claim.keys["trivial"])), declared_margin(claim.keys, claim.metric)
        rounding /= 2
    if rounding > room or math.isclose(rounding, room):
        return _directed(found)
    if early := _early(found) or NO_DIFFERENCE * _zero(found):
        return early
    std, runs, freedom = found.std, 1, found.n - 1
    if claim.std is not None and claim.runs is not None and claim.runs >= 2:
        std, runs, freedom = claim.std, claim.runs, found.n + claim.runs - 2
    interval = t(0.975, freedom) * math.sqrt(std**2 / runs + found.std**2 / found.n) + rounding
    distance, far_below = abs(found.mean - size), found.one_sided_high < size - room
    if found.low > 0:
        near = distance <= room and distance <= max(interval, room / 4)
        return REPLICATED if near else MUCH_SMALLER if far_below else LARGER if found.mean > size else SMALLER
    return INCONCLUSIVE if not far_below else NOT_REVERSED if found.high < 0 else NOT


def _directed(found: Sample) -> str:
    if early := _early(found) or NO_DIFFERENCE * _zero(found):
        return early
    return REPLICATED if found.low > 0 else REVERSED if found.high < 0 else INCONCLUSIVE


def _bounded(found: Sample, claim: Claim) -> str:
    """Judge whether a difference lies above -margin, and of comparable arms also below the margin."""
    room = declared_margin(claim.keys, claim.metric)
    floor, ceiling = -room, room if claim.kind == "comparable" else math.inf
    if early := _early(found):
        return early
    if found.one_sided_low > floor and found.one_sided_high < ceiling:
        return REPLICATED
    return NOT if found.one_sided_high < floor or found.one_sided_low > ceiling else INCONCLUSIVE


def _best(rivals: Sequence[Sample]) -> tuple[str, Sample]:
    fewest = min(rivals, key=lambda found: found.n)
    if fewest.n < LEAST:
        return TOO_FEW, fewest
    ranked = sorted(zip(rivals, holm([found.p for found in rivals]), strict=True), key=lambda pair: pair[0].mean)
    for found, p in ranked:
        if found.mean < 0 and p < 0.05:
            return CONTRADICTED, found
    nearest = ranked[0][0]
    if all(p < 0.05 for _, p in ranked):
        return REPLICATED, nearest
    return NO_DIFFERENCE if _zero(nearest) else INCONCLUSIVE, nearest


def _taus(mode: Mode, series: Series) -> list[float]:
    base: Sequence[str | None] = mode.rivals or (None,) * len(mode.arms)
    pairs = list(zip(mode.arms, base, strict=True))
    return [
        kendall([series[arm][seed] - (series[less][seed] if less else 0.0) for arm, less in pairs])
        for seed in sorted(series[mode.arms[0]])
    ]


def _exact(mode: Mode, series: Series) -> tuple[str, Sample]:
    n = min(len(series.get(arm, {})) for arm in mode.arms)
    if n == 0:
        return TOO_FEW, sample([])
    pairs = zip(mode.arms, mode.expected, strict=True)
    off = max((value - wanted for arm, wanted in pairs for value in series[arm].values()), key=abs)
    return NOT if off else REPLICATED, Sample(n, off, 0.0, off, off)
