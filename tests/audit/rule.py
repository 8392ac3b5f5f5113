"""The verdict rule, from its definition: A claim, a mode and one number a seed of each arm give a ruling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdlib.audit.reported import Claim, Mode
from kdlib.audit.statistics import LEAST, NAN, Sample, constant, deciding, holm, kendall, sample, t

Series = Mapping[str, Mapping[int, float]]  # arm -> seed -> value

# from best to worst: a headline is the worst
OUTCOMES = (
    "replicated", "effect replicated, magnitude differs (larger)", "effect replicated, magnitude differs (smaller)",
    "much smaller than reported", "inconclusive", "inconclusive (too few seeds)", "not replicated", "no difference",
    "contradicted", "not replicated (reversed)", "reversed",
)  # fmt: skip
(REPLICATED, LARGER, SMALLER, MUCH_SMALLER, INCONCLUSIVE, TOO_FEW, NOT, NO_DIFFERENCE, CONTRADICTED, NOT_REVERSED,
 REVERSED) = OUTCOMES


@dataclass(frozen=True)
class Ruling:
    """An outcome with its numbers; `reason` holds those that its explanation names first."""

    outcome: str
    mean: float
    low: float
    high: float
    n: int
    needed: int | None = None
    reason: tuple[str, ...] = ()
    counted: bool = False  # by equality: there is no interval to name

    @property
    def explained(self) -> list[str]:
        """Every number that an explanation in words has to name."""
        if not self.n or self.counted:
            return list(self.reason)
        bounds = [] if math.isnan(self.low) else ["95", f"{self.low:+.4g}", f"{self.high:+.4g}"]
        return [*self.reason, f"{self.mean:+.4g}", *bounds, str(self.n)]


def ruling(claim: Claim, mode: Mode, series: Series) -> Ruling:
    """The verdict on a claim, over the seeds that its arms share."""
    if claim.kind == "exact":
        return _exact(mode, series)
    if claim.kind == "trend":
        return _trend(mode, series)
    if claim.kind == "best":
        return _best({rival: sample(_differences(series, mode.arms[0], rival, claim.lower)) for rival in mode.over})
    if claim.kind == "value" or "threshold" in claim.keys:
        origin = float(claim.keys["threshold"] if "threshold" in claim.keys else claim.keys.get("trivial", 0.0))
        values = [value for _, value in sorted(series.get(mode.arms[0], {}).items())]
        found = sample([-(value - origin) if claim.lower else value - origin for value in values])
    else:
        found = sample(_differences(series, mode.arms[0], mode.over[0], claim.lower))
    if claim.kind == "effect":
        size = float(claim.keys["reported"])
        return _sized(claim, found, size, size / 2)
    if claim.kind == "value":
        return _sized(claim, found, abs(float(claim.keys["reported"]) - float(claim.keys["trivial"])), claim.margin)
    if claim.kind == "direction":
        return _directed(found)
    return _bounded(found, claim.margin, two_sided=claim.kind == "comparable")


def _differences(series: Series, arm: str, over: str, lower: bool) -> list[float]:
    better, worse = (over, arm) if lower else (arm, over)
    first, second = series.get(better, {}), series.get(worse, {})
    return [first[seed] - second[seed] for seed in sorted(first) if seed in second]


def _made(outcome: str, found: Sample, aim: float = 0.0, reason: Sequence[str] = ()) -> Ruling:
    """`aim`: the half-width of the interval that would decide."""
    needed = deciding(found.std, aim) if found.std > 0 and outcome == INCONCLUSIVE else None
    return Ruling(outcome, found.mean, found.low, found.high, found.n, needed, tuple(reason))


def _undecidable(found: Sample) -> Ruling | None:
    if found.n < LEAST:
        return _made(TOO_FEW, found, reason=[str(LEAST)])
    return _made(INCONCLUSIVE, found) if math.isnan(found.low) else None


def _nothing(found: Sample) -> bool:
    """Whether every seed says zero."""
    return found.std == found.low == found.high == 0


def _sized(claim: Claim, found: Sample, size: float, margin: float) -> Ruling:
    rounding = claim.rounding
    if rounding > margin or math.isclose(rounding, margin):
        return _directed(found)
    if early := _undecidable(found):
        return early
    if _nothing(found):
        return _made(NO_DIFFERENCE, found, 0.0, [f"{size:+.4g}"])
    if claim.std is not None and claim.runs is not None and claim.runs >= 2:
        std, runs, freedom = claim.std, claim.runs, found.n + claim.runs - 2
    else:
        std, runs, freedom = found.std, 1, found.n - 1
    interval = t(0.975, freedom) * math.sqrt(std**2 / runs + found.std**2 / found.n) + rounding
    distance, far_below = abs(found.mean - size), found.upper < size - margin
    if found.low > 0:
        near = distance <= margin and distance <= max(interval, margin / 4)
        outcome = REPLICATED if near else MUCH_SMALLER if far_below else LARGER if found.mean > size else SMALLER
    elif far_below:
        outcome = NOT_REVERSED if found.high < 0 else NOT
    else:
        outcome = INCONCLUSIVE
    return _made(outcome, found, margin / 2, [f"{size:+.4g}"])


def _directed(found: Sample) -> Ruling:
    if early := _undecidable(found):
        return early
    if _nothing(found):
        return _made(NO_DIFFERENCE, found)
    outcome = REPLICATED if found.low > 0 else REVERSED if found.high < 0 else INCONCLUSIVE
    return _made(outcome, found, abs(found.mean))


def _bounded(found: Sample, margin: float, two_sided: bool) -> Ruling:
    room = min(abs(found.mean + margin), abs(margin - found.mean) if two_sided else math.inf)
    if early := _undecidable(found):
        return early
    ceiling = margin if two_sided else math.inf
    if found.lower > -margin and found.upper < ceiling:
        outcome = REPLICATED
    else:
        outcome = NOT if found.upper < -margin or found.lower > ceiling else INCONCLUSIVE
    return _made(outcome, found, room, [f"{margin:.4g}"])


def _best(rivals: Mapping[str, Sample]) -> Ruling:
    fewest = min(rivals.values(), key=lambda found: found.n)
    if fewest.n < LEAST:
        return _made(TOO_FEW, fewest, reason=[str(LEAST)])
    adjusted = dict(zip(rivals, holm([found.p for found in rivals.values()]), strict=True))
    ranked = sorted(rivals.items(), key=lambda item: item[1].mean)
    for name, found in ranked:
        if found.mean < 0 and adjusted[name] < 0.05:
            return _made(CONTRADICTED, found)
    nearest = ranked[0][1]
    if all(p < 0.05 for p in adjusted.values()):
        return _made(REPLICATED, nearest)
    return _made(NO_DIFFERENCE, nearest) if _nothing(nearest) else _made(INCONCLUSIVE, nearest, abs(nearest.mean))


def _trend(mode: Mode, series: Series) -> Ruling:
    shared = set.intersection(*(set(series.get(arm, {})) for arm in mode.all))
    base = mode.over or (None,) * len(mode.arms)
    pairs = list(zip(mode.arms, base, strict=True))
    taus = [kendall([series[arm][seed] - (series[less][seed] if less else 0.0) for arm, less in pairs])
            for seed in sorted(shared)]
    found = sample(taus)
    if len(taus) >= LEAST and constant(taus):  # one order in all seeds: their tau is its own bound
        found = Sample(found.n, found.mean, 0.0, taus[0], taus[0], taus[0], taus[0])
    return _directed(found)


def _exact(mode: Mode, series: Series) -> Ruling:
    n = min(len(series.get(arm, {})) for arm in mode.arms)
    if n == 0:
        return Ruling(TOO_FEW, NAN, NAN, NAN, 0)
    misses = [(value - wanted, value, wanted) for arm, wanted in zip(mode.arms, mode.expected, strict=True)
              for value in series[arm].values() if value != wanted]
    if not misses:
        return Ruling(REPLICATED, 0.0, 0.0, 0.0, n, counted=True)
    off, value, wanted = max(misses, key=lambda miss: abs(miss[0]))
    return Ruling(NOT, off, off, off, n, None, (f"{value:.12g}", f"{wanted:.12g}"), counted=True)
