"""What a source reports and claims: one small class for each kind of claim, and the numbers reported for the arms.

`reading` reads them from `claims.toml`, `judging` gives the verdicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from kdlib.judge import intervals

__all__ = [
    "AS_DESCRIBED",
    "AS_RELEASED",
    "CONTROLLED",
    "DIFFERENCES",
    "KINDS",
    "MODES",
    "ROLES",
    "SHAM",
    "Best",
    "Choice",
    "Claim",
    "Comparable",
    "Comparison",
    "Direction",
    "Effect",
    "Exact",
    "Ingredient",
    "NonInferior",
    "Reported",
    "ReportedValue",
    "Source",
    "Trend",
    "Value",
    "fixed_rival",
    "pairs",
    "reported_range",
]

AS_DESCRIBED, AS_RELEASED, CONTROLLED, SHAM = "as described", "as released", "controlled", "sham"
ROLES = ("schedule", "softness", "transfer")  # of ingredients: what a difference is made of
MODES = (AS_DESCRIBED, AS_RELEASED, CONTROLLED)  # the modes in which a claim is judged; `sham` marks arms only

# What two arms may differ in. `kdlib.run.traces.VOCABULARY` explains the words; a test compares the two lists.
DIFFERENCES = (
    "network",
    "initial weights",
    "data",
    "view",
    "rows",
    "mixing",
    "batch size",
    "steps",
    "learning rate",
    "optimizer",
    "optimizer state",
    "selection",
    "dropout",
    "soft targets",
    "precision",
    "outputs",
    "loss",
)


@dataclass(frozen=True)
class Comparison:
    """The arms that a claim compares in one mode: `arms` with `rivals`, or, for an exact claim, with `expected`.

    `differs` names all that the compared arms differ in, in words of `DIFFERENCES`.
    """

    arms: tuple[str, ...]
    rivals: tuple[str, ...] = ()
    expected: tuple[float, ...] = ()
    differs: tuple[str, ...] = ()


# ---- claims, one class for each kind


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What claims of all kinds have."""

    kind: ClassVar[str]
    keys: ClassVar[frozenset[str]] = frozenset()  # of `claims.toml`, in addition to those of all kinds

    name: str
    metric: str
    statement: str
    place: str  # in the source
    primary: bool = False
    ours: bool = False  # not a claim of the source
    analogue: bool = False  # judged on other data, or with another teacher, than the source's
    lower_is_better: bool = False
    modes: Mapping[str, Comparison]


@dataclass(frozen=True, kw_only=True)
class Effect(_Claim):
    """One arm exceeds another by the reported difference; `std` is the source's, of the difference, over `runs`."""

    kind = "effect"
    keys = frozenset({"reported", "decimals", "lower_is_better"})

    reported: float
    decimals: int
    std: float | None = None
    runs: int | None = None

    @property
    def rounding(self) -> float:
        """How much the printed decimals leave open: a difference carries the error of two numbers."""
        return 10.0**-self.decimals


@dataclass(frozen=True, kw_only=True)
class Value(_Claim):
    """One arm reaches the reported value; its size is what the value exceeds a `trivial` baseline by."""

    kind = "value"
    keys = frozenset({"reported", "decimals", "trivial", "margin", "lower_is_better"})

    reported: float
    decimals: int
    trivial: float
    margin: float
    std: float | None = None
    runs: int | None = None

    @property
    def rounding(self) -> float:
        """How much the printed decimals leave open."""
        return 0.5 * 10.0**-self.decimals


@dataclass(frozen=True, kw_only=True)
class Direction(_Claim):
    """One arm is better than another, or than a `threshold`; the source gives no size."""

    kind = "direction"
    keys = frozenset({"threshold", "lower_is_better"})

    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class NonInferior(_Claim):
    """One arm is less than `margin` worse than another."""

    kind = "non-inferior"
    keys = frozenset({"margin", "lower_is_better"})

    margin: float


@dataclass(frozen=True, kw_only=True)
class Comparable(_Claim):
    """Two arms differ by less than `margin`."""

    kind = "comparable"
    keys = frozenset({"margin"})

    margin: float


@dataclass(frozen=True, kw_only=True)
class Best(_Claim):
    """One arm is better than each of its rivals."""

    kind = "best"
    keys = frozenset({"lower_is_better"})


@dataclass(frozen=True, kw_only=True)
class Trend(_Claim):
    """The metric rises along the arms; with rivals, the gain over them does."""

    kind = "trend"


@dataclass(frozen=True, kw_only=True)
class Exact(_Claim):
    """Each arm has exactly the expected number."""

    kind = "exact"


Claim = Effect | Value | Direction | NonInferior | Comparable | Best | Trend | Exact
KINDS: Mapping[str, type[Claim]] = {
    kind.kind: kind for kind in (Effect, Value, Direction, NonInferior, Comparable, Best, Trend, Exact)
}


def fixed_rival(claim: Claim) -> float | None:
    """Return the number that one arm is compared with; None if a claim compares arms with each other."""
    match claim:
        case Value():
            return claim.trivial
        case Direction():
            return claim.threshold
    return None


def pairs(claim: Claim, mode: str) -> list[tuple[str, str]]:
    """Return the pairs of arms that a claim compares with each other; none if it compares arms with numbers.

    A trend compares neighbours, and each arm with the one that is subtracted from it.
    """
    compared = claim.modes[mode]
    if isinstance(claim, Trend):
        return [*pairwise(compared.arms), *zip(compared.arms, compared.rivals, strict=False)]
    return [(compared.arms[0], rival) for rival in compared.rivals]


# ---- a whole file


@dataclass(frozen=True)
class Source:
    """Where the reported numbers come from."""

    citation: str
    url: str


@dataclass(frozen=True)
class ReportedValue:
    """A number that the source reports; `std` is the sample (n - 1) standard deviation over its `runs`.

    `selected` says how the source chose the number, `also` names further arms that it stands next to.
    """

    arm: str
    metric: str
    value: float
    unit: str
    decimals: int
    place: str
    margin: float
    std: float | None = None
    runs: int | None = None
    selected: str = ""
    also: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that the number stands next to."""
        return (self.arm, *self.also)


@dataclass(frozen=True)
class Ingredient:
    """Two arms whose difference `label` describes. It is no claim of the source and gets no verdict.

    `differs` names all that the arms differ in, in words of `DIFFERENCES`. `role` says which part of the primary
    claim's difference it is: its schedule and data (arms without a teacher), the softness of each class (sham over no
    teacher), or the transfer proper (a taught student over the sham).
    """

    label: str
    arm: str
    rival: str
    differs: tuple[str, ...] = ()
    role: str = ""


@dataclass(frozen=True)
class Choice:
    """An arm that our runs choose: the arm of `among` with the best mean of the metric `by` over the seeds."""

    name: str
    by: str
    among: tuple[str, ...]
    lower_is_better: bool = False


@dataclass(frozen=True)
class Reported:
    """The content of a `claims.toml`: values by `<arm>.<metric>`, claims by name.

    `arms` and `metrics` are those of the experiment; none: it does not say them.
    """

    source: Source
    values: Mapping[str, ReportedValue]
    claims: Mapping[str, Claim]
    ingredients: tuple[Ingredient, ...] = ()
    choices: tuple[Choice, ...] = ()
    arms: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    def part(self, role: str) -> Ingredient | None:
        """Return the ingredient with this role; None if there is none."""
        return next((part for part in self.ingredients if part.role == role), None)

    @property
    def primary(self) -> Claim:
        """The first primary claim."""
        return next(claim for claim in self.claims.values() if claim.primary)

    def value(self, arm: str, metric: str) -> ReportedValue | None:
        """Return the reported number that stands next to an arm's metric."""
        found = (v for v in self.values.values() if v.metric == metric and arm in v.arms)
        return next(found, None)


def reported_range(value: ReportedValue, n: int = 1) -> tuple[float, float]:
    """Return where a mean of `n` runs should lie: the source's 95% prediction interval or the margin, plus rounding."""
    rounding = 0.5 * 10.0**-value.decimals
    if value.std is None or value.runs is None:
        return value.value - value.margin - rounding, value.value + value.margin + rounding
    low, high = intervals.prediction_interval(value.value, value.std, value.runs, n)
    return low - rounding, high + rounding
