"""What has to be said, or refused, before a stored run is used again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from kdlib.run.environment import device_name, source_digest, versions
from kdlib.run.experiment import Experiment, load_experiment
from kdlib.run.plan import Job
from kdlib.run.readable import check_metrics
from kdlib.run.store import FinishedRun
from kdlib.shapes import Misshapen, shown

__all__ = ["is_of_another_replication", "other_machine", "other_parent", "other_source", "unfit"]


def other_parent(run: FinishedRun, job: Job, finished: Mapping[str, FinishedRun]) -> str:
    """Return why a run may not be used: a parent in this store is not the one that it was trained with; else "".

    A parent that is still to be trained, and a run from before parents were recorded, cannot be compared.
    """
    for role, (parent_id, _) in job.parents.items():
        parent, bound = finished.get(parent_id), run.parents.get(role)
        if parent is None or not bound:
            continue
        for name in ("weights", "soft_targets"):
            expected, found = bound.get(name, "none"), parent.digests().get(name, "none")
            if expected != found:
                return (
                    f"run {run.id}: expected its {role}, run {parent_id}, with {name.replace('_', ' ')} of SHA-256 "
                    f"{expected}, as it was trained with; found {found} in this store. Delete {run.folder} to train "
                    f"it again with this parent, or put its own parent in place of {parent.folder}"
                )
    return ""


def unfit(run: FinishedRun, job: Job, metrics: Mapping[str, Collection[str]]) -> str:
    """Return why tables cannot be made with a run, which lacks a snapshot or one of an arm's `metrics`; else ""."""
    arms = load_experiment(job.experiment).arm
    try:
        check_metrics(run.metrics, [arms(name).snapshot for name in job.arms])
    except Misshapen as error:
        return (
            f"run {run.id}: {error}. It was made by another version of its training function: raise `protocol`, or "
            f"delete {run.folder} to train it again"
        )
    for name in job.arms:
        found = run.metrics[arms(name).snapshot]
        for metric in sorted({*metrics.get(name, ())} - {"training_loss"}):  # tables take that from the history
            if not isinstance(found.get(metric), int | float):
                return (
                    f"run {run.id}: expected a number as {metric} of {name}, which claims.toml compares, found "
                    f"{shown(found.get(metric))}. Correct claims.toml; or correct the training function, raise "
                    "`protocol` and run again"
                )
    return ""


def other_source(run: FinishedRun, job: Job) -> str:
    """Return a notice if a run was made by other source files, or by another replication's code; else ""."""
    own = load_experiment(job.experiment)
    maker, function = _maker(run.environment, own), run.description.recipe.rpartition("/")[2]
    if _is_other_code(maker, own, run.environment, function):
        return (
            f"reused runs were made by replications/{maker.name}, whose {function} is other code than that of "
            f"replications/{own.name}: both have the source '{own.source}', this protocol and this configuration. Give "
            "one of them another `source` if their results can differ"
        )
    if run.environment.get("source") == source_digest(maker.folder):
        return ""
    commit, of = str(run.environment.get("commit"))[:10], "" if maker.name == own.name else f" of {maker.name}"
    return (
        f"reused runs were made by other source files{of} than these (commit {commit}): their protocol and "
        "configuration are the same. Raise `protocol` if the edit can move results"
    )


def is_of_another_replication(environment: Mapping[str, Any], recipe: str, own: Experiment) -> bool:
    """Return whether another replication of the same source made a run, with other code than this one's."""
    return _is_other_code(_maker(environment, own), own, environment, recipe.rpartition("/")[2])


def _is_other_code(maker: Experiment, own: Experiment, environment: Mapping[str, Any], function: str) -> bool:
    digest = source_digest(own.folder)  # the two may have the same files, now or when the run was made
    same_files = digest in (environment.get("source"), source_digest(maker.folder))
    return maker.name != own.name and not same_files and not _share(maker, own, function)


def _maker(environment: Mapping[str, Any], own: Experiment) -> Experiment:
    try:  # replications of one source share runs: the files of the replication that made the run count
        return load_experiment(environment.get("replication", own.name))
    except Exception:  # it is gone, or somebody is editing it, which does not stop the others
        return own


def _share(one: Experiment, other: Experiment, function: str) -> bool:
    """Whether two replications train with the same function of a package that both import."""
    first, second = ({arm.train for arm in of.arms if arm.train.__name__ == function} for of in (one, other))
    return bool(first & second)


def other_machine(run: FinishedRun, job: Job, device: str) -> str:
    """Return a notice if a run was made on another processor or with other versions; else "".

    A session without the device itself leaves training to other machines.
    """
    if device != "cpu" and not torch.cuda.is_available():
        return ""
    made_by = {**run.environment, **run.environment.get("versions", {})}
    here = {"device": device_name(device), **versions(load_experiment(job.experiment).folder)}
    texts = [f"{name} {made_by[name]}, here {now}" for name, now in here.items() if made_by.get(name, now) != now]
    if not texts:
        return ""
    return f"reused runs were made elsewhere: {'; '.join(texts)}. Other processors and versions round differently"
