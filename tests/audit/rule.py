"""The rule for verdicts, from its definition: a claim, a mode and one number per seed and arm give an outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tests.audit.claims import Claim, Mode, margin
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
    """Return the outcome of a claim, and what it is judged by: one number per seed that its arms share."""
    if claim.kind == "exact":
        return _exact(mode, series)
    if claim.kind == "best":
        return _best([sample(differences(series, mode.arms[0], rival, claim.lower)) for rival in mode.rivals])
    if claim.kind == "trend":
        found = _trend(mode, series)
    elif claim.origin is not None:
        values = [value - claim.origin for _, value in sorted(series.get(mode.arms[0], {}).items())]
        found = sample([-value for value in values] if claim.lower else values)
    else:
        found = sample(differences(series, mode.arms[0], mode.rivals[0], claim.lower))
    return of_sample(found, claim), found


def of_sample(found: Sample, claim: Claim) -> str:
    """Return the outcome of a claim of one difference, or one value, for each seed."""
    if claim.kind in ("effect", "value"):
        return _sized(found, claim)
    return _bounded(found, claim) if claim.kind in ("comparable", "non-inferior") else _directed(found)


def firmness(claim: Claim, found: Sample, outcome: str) -> float:
    """Return the share of 10,000 redraws of the seeds with the same outcome; nan where the audit has no recipe for it.

    A redraw has n normal differences with the sample's mean and standard deviation; NumPy's default generator with seed
    0 draws them, so that the share can be compared to the last digit.
    """
    if claim.kind in ("exact", "best", "trend") or found.n < LEAST or found.std == 0 or outcome.startswith("interim"):
        return NAN
    normals = np.random.default_rng(0).standard_normal((10_000, found.n, 1))[:, :, 0]
    redraws = found.mean + found.std * normals
    return sum(of_sample(sample(row), claim) == outcome for row in redraws.tolist()) / len(redraws)


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
        size, room = abs(reported - float(claim.keys["trivial"])), margin(claim.keys, claim.metric)
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
    room = margin(claim.keys, claim.metric)
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


def _trend(mode: Mode, series: Series) -> Sample:
    """Return Kendall's tau of each seed; if it is the same for all seeds, it is its own bound."""
    base: Sequence[str | None] = mode.rivals or (None,) * len(mode.arms)
    pairs = list(zip(mode.arms, base, strict=True))
    shared = set.intersection(*(set(series.get(arm, {})) for arm in (*mode.arms, *mode.rivals)))
    taus = [
        kendall([series[arm][seed] - (series[less][seed] if less else 0.0) for arm, less in pairs])
        for seed in sorted(shared)
    ]
    found = sample(taus)
    return Sample(found.n, found.mean, 0.0, *[taus[0]] * 4) if found.n >= LEAST and constant(taus) else found


def _exact(mode: Mode, series: Series) -> tuple[str, Sample]:
    n = min(len(series.get(arm, {})) for arm in mode.arms)
    if n == 0:
        return TOO_FEW, sample([])
    pairs = zip(mode.arms, mode.expected, strict=True)
    off = max((value - wanted for arm, wanted in pairs for value in series[arm].values()), key=abs)
    return NOT if off else REPLICATED, Sample(n, off, 0.0, off, off)
