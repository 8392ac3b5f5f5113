"""Pairs of arms that claims and ingredients compare: what their runs differed in must be what `claims.toml` names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdlib.judge.claims import DIFFERENCES, Reported, pairs
from kdlib.judge.judging import chosen
from kdlib.run.experiment import Experiment
from kdlib.run.records import Record, grouped, measured
from kdlib.run.traces import arms_differ

__all__ = ["pair_faults", "traced_pairs"]

Runs = Mapping[str, Mapping[int, Record]]  # arm -> seed -> its run


@dataclass(frozen=True)
class _Row:
    """One row of a table: the pairs of arms that it compares, and all that it says they differ in."""

    name: str
    pairs: Sequence[tuple[str, str]]
    differs: Sequence[str]


def pair_faults(experiment: Experiment, reported: Reported, records: Sequence[Record]) -> list[str]:
    """Return a sentence for each difference between two traced runs that their row does not name, or names in vain.

    A row is a claim in one mode, or an ingredient. A named difference must show in a run of a row's pairs, if each of
    its pairs has runs with traces. Runs without a trace are not compared.
    """
    found = []
    for (data, profile), group in grouped(records).items():
        for row in _rows(reported, group):
            faults = _faults_of(row, _runs(group))
            found += [f"{experiment.name}, profile {profile}, data {data}: {text}" for text in faults]
    return found


def _faults_of(row: _Row, runs: Runs) -> Iterator[str]:
    seen: set[str] = set()
    traced = set()
    for arm, rival, seed in _shared(row, runs):
        words = arms_differ(runs[arm][seed], arm, runs[rival][seed], rival)
        if words is None:
            continue
        traced.add((arm, rival))
        seen |= set(words)
        if unnamed := [word for word in words if word not in row.differs]:
            yield (
                f"{row.name}: expected {arm} and {rival}, seed {seed}, to differ in {_listed(row.differs)} only, found "
                f"a difference in {_listed(unnamed)}; train them in the same way, or name the difference in `differs`"
            )
    vain = [word for word in DIFFERENCES if word in set(row.differs) - seen]
    if vain and row.pairs and traced == set(row.pairs):
        yield (
            f"{row.name}: expected a difference in {_listed(vain)}, found none in any seed; correct the arms, or take "
            "it out of `differs`"
        )


def traced_pairs(reported: Reported, records: Sequence[Record]) -> tuple[int, int]:
    """Return how many pairs of runs of one table are compared, and how many of these have two traces."""
    runs = _runs(records)
    shared = (pair for row in _rows(reported, records) for pair in _shared(row, runs))
    compared = {(frozenset((arm, rival)), seed) for arm, rival, seed in shared}
    traced = [arms for arms, seed in compared if all(runs[arm][seed].trace for arm in arms)]
    return len(compared), len(traced)


def _rows(reported: Reported, records: Sequence[Record]) -> Iterator[_Row]:
    """The rows about records of one table; in place of an arm that our runs choose, the chosen one.

    If our runs choose the very arm that a claim compares with the chosen one, there is no pair.
    """
    metrics = measured(records) if reported.choices else {}
    taken = {choice.name: chosen(choice, metrics) or choice.name for choice in reported.choices}
    for claim in reported.claims.values():
        for mode, compared in claim.modes.items():
            arms = [(taken.get(arm, arm), rival) for arm, rival in pairs(claim, mode)]
            yield _Row(f"{claim.name}, {mode}", [pair for pair in arms if pair[0] != pair[1]], compared.differs)
    for part in reported.ingredients:
        yield _Row(f"ingredient '{part.label}'", [(part.arm, part.rival)], part.differs)


def _runs(records: Sequence[Record]) -> Runs:
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        for arm in record.arms:
            runs.setdefault(arm, {})[record.seed] = record
    return runs


def _shared(row: _Row, runs: Runs) -> Iterator[tuple[str, str, int]]:
    """The pairs of a row, once for each seed that both arms have."""
    for arm, rival in row.pairs:
        for seed in sorted(runs.get(arm, {}).keys() & runs.get(rival, {}).keys()):
            yield arm, rival, seed


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "nothing"
