"""What the networks of a replication cost: measured on one machine, then written as CSV and as a page.

`kd tables` does not write these files again, because they are measurements and not derived from records.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from kdlib.errors import KDError
from kdlib.files import DamagedFile, atomic_write, read_file
from kdlib.judge.schema import Table, read_toml
from kdlib.report.markdown import NONE, escaped, table
from kdlib.report.roles import role_of
from kdlib.run.experiment import Arm, Experiment
from kdlib.run.network_cost import network_numbers
from kdlib.run.networks import Origin, trained_network
from kdlib.run.plan import Job, wanted_arms
from kdlib.run.session import Session, is_stored

__all__ = ["Row", "cost_page", "cost_path", "measured_rows", "source_costs", "write_cost"]


class Row(NamedTuple):
    """One network: the arm that names it, all its arms, the parts it plays, and its numbers by column.

    `run`: whose weights it has, "" if there are none, and then `why`.
    """

    network: str
    arms: tuple[str, ...]
    roles: tuple[str, ...]
    run: str
    why: str
    quantised: str
    numbers: dict[str, float]


@dataclass(frozen=True)
class _Network:
    arms: list[Arm]  # those with weights that are used first come first
    module: nn.Module


def measured_rows(session: Session, say: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Return a row for each distinct network of the session's arms, measured on this machine.

    Weights are of the first finished run in the session's store that has some: of a taught student before those of a
    baseline, and of the first seed. Torch and onnxruntime predict on one thread. `say` is told each network before it
    is measured. KDError, before that, if the experiment names no networks, or for a wrong `cost.toml`.
    """
    source_costs(session.experiment)  # a mistake in it is told before minutes of measuring
    networks = _distinct(session)
    if not networks:
        raise KDError(
            f"{session.experiment.name}: expected an experiment with network=..., found none; add a function that "
            "returns an arm's network (replications/README.md)"
        )
    jobs = session.jobs()
    rows = []
    for network in networks:
        say(network.arms[0].name)
        rows.append(_row(session, jobs, network))
    return rows


def _distinct(session: Session) -> list[_Network]:
    """The networks of the session's arms: two arms with the same layers have one."""
    experiment, found = session.experiment, dict[str, _Network]()
    for arm in wanted_arms(experiment, session.arms):
        module = experiment.network(arm, experiment.config(arm, session.profile), _data(session, arm))
        if module is not None:
            found.setdefault(repr(module), _Network([], module)).arms.append(arm)
    for network in found.values():
        network.arms.sort(key=lambda arm: role_of(arm, experiment.arms) in ("baseline", "sham"))
    return list(found.values())


def _data(session: Session, arm: Arm) -> Any:
    return session.experiment.load_data(session.experiment.config(arm, session.profile), session.folders)


def _row(session: Session, jobs: Sequence[Job], network: _Network) -> Row:
    first, parts = network.arms[0], {role_of(arm, session.experiment.arms) for arm in network.arms}
    # A baseline with the teacher's layers (a source's released teacher) does not make a student of the teacher.
    student = "distilled" in parts or parts <= {"baseline", "sham"}
    roles = [part for part in ("teacher", "assistant") if part in parts] + ["student"] * student
    module, run, why = network.module, "", "no finished run in the store"
    for job, arm in ((job, arm) for arm in network.arms for job in jobs if arm.name in job.arms):
        if is_stored(session, job):
            try:
                origin = Origin(session.experiment, arm, job.config, session.synthetic)
                stored = session.store.resolve(job.description.id)
                module, run, why = trained_network(stored, arm.snapshot, origin, _data(session, arm)), stored.id, ""
                break
            except KDError:
                why = "the weights of its runs are not kept"
    train, test = session.experiment.examples(first, _data(session, first), session.seeds[0])
    quantised, numbers = network_numbers(module.eval(), train, test, trained=bool(run))
    return Row(first.name, tuple(arm.name for arm in network.arms), tuple(roles), run, why, quantised, numbers)


# ---- files

COLUMNS = (
    *("parameters", "flops", "float32_bytes", "float32_file_bytes", "int8_file_bytes", "peak_bytes"),
    *(f"{name}_{point}_ms" for name in ("torch", "onnx", "int8") for point in ("p50", "p95")),
    *(f"{name}_{score}" for score in ("accuracy", "macro_f1") for name in ("onnx", "int8")),
)


def cost_path(folder: Path, label: str, rows: Sequence[Row], usual: bool) -> Path:
    """Return where the costs of rows are written below results/<name>, without the ending.

    The costs of real data that are `usual` for the profile `label` belong to the replication; others go to local/.
    Files of another profile, or with a network, a run or a number that these rows lack, are never replaced. KDError if
    those that are there cannot be read just now.
    """
    committed, local = folder / "cost", folder / "local" / f"{label}-cost"
    if usual and _is_of(committed.with_suffix(".md"), label) and not _has_more(committed.with_suffix(".csv"), rows):
        return committed
    numbered = (local if number == 1 else local.with_name(f"{local.name}-part-{number}") for number in count(1))
    return next(path for path in numbered if not _has_more(path.with_name(f"{path.name}.csv"), rows))


def _is_of(page: Path, profile: str) -> bool:
    """Whether a page is about a profile; one that is not there may be of any."""
    try:
        lines = read_file(page).decode(errors="replace").split("\n")
    except DamagedFile:
        return True
    return any(line.partition(";")[0] == f"- profile: {escaped(profile)}" for line in lines)


def _has_more(path: Path, rows: Sequence[Row]) -> bool:
    """Whether a file of costs has a cell that these rows leave empty, or a network that they lack."""
    try:
        lines = csv.DictReader(io.StringIO(read_file(path).decode()))
        there = {(line["network"], name) for line in lines for name, text in line.items() if text}
    except DamagedFile:
        return False  # there is none
    except (KeyError, ValueError, csv.Error):
        return True  # nobody knows what it is
    return not there <= {
        (line["network"], name) for line in _lines(rows) for name, cell in line.items() if cell not in ("", None)
    }


def write_cost(rows: Sequence[Row], page: str, path: Path) -> None:
    """Write `<path>.csv` and, as `<path>.md`, the page."""
    import pandas as pd

    text = pd.DataFrame(_lines(rows)).to_csv(index=False, lineterminator="\n")
    atomic_write(path.with_name(f"{path.name}.csv"), text.encode())
    atomic_write(path.with_name(f"{path.name}.md"), page.encode())


def _lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "network": row.network,
            "role": ", ".join(row.roles),
            "run": row.run,
            **{name: _rounded(row.numbers.get(name)) for name in COLUMNS},
        }
        for row in rows
    ]


def _rounded(value: float | None) -> float | int | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


def cost_page(session: Session, rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Return the page: what was measured, the costs, what the source says of them, and how each was measured.

    `about` says what was measured where and when.
    """
    import pandas as pd

    named = f"# {session.experiment.name}\n\n## What it costs\n"
    head = "\n".join(f"- {name}: {escaped(text)}" for name, text in about.items())
    costs = pd.DataFrame([_shown(row) for row in rows])
    parts = [named, head, "", table(costs, right=list(costs.columns[2:-1])), "", *_notes(rows)]
    if claims := source_costs(session.experiment):
        compared = table(pd.DataFrame(_compared(claims, rows)))
        parts += ["### What the source says of size and speed", "", compared, ""]
    return "\n".join([*parts, HOW])


def _shown(row: Row) -> dict[str, str]:
    numbers = row.numbers

    def both(names: Sequence[str], scale: float, decimals: int) -> str:
        found = [f"{scale * numbers[name]:,.{decimals}f}" if name in numbers else NONE for name in names]
        return " / ".join(found)

    return {
        "network": row.network,
        "role": ", ".join(row.roles),
        "parameters": f"{numbers['parameters']:,}",
        "million operations": f"{numbers['flops'] / 1e6:,.3f}",
        "kB float32 / int8": both(("float32_file_bytes", "int8_file_bytes"), 1e-3, 1),
        "peak memory, kB": f"{numbers['peak_bytes'] / 1e3:,.0f}",
        "torch, ms p50 / p95": both(("torch_p50_ms", "torch_p95_ms"), 1, 3),
        "onnxruntime float32, ms p50 / p95": both(("onnx_p50_ms", "onnx_p95_ms"), 1, 3),
        "int8, ms p50 / p95": both(("int8_p50_ms", "int8_p95_ms"), 1, 3),
        "accuracy float32 / int8, %": both(("onnx_accuracy", "int8_accuracy"), 100, 2),
        "macro F1 float32 / int8": both(("onnx_macro_f1", "int8_macro_f1"), 1, 3),
        "weights": f"run {row.run}" if row.run else "untrained",
    }


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.why:
            yield f"- {row.network}: no accuracy, because {row.why}. The other numbers do not depend on the weights."
    yield f"- int8: {'; '.join(sorted({row.quantised for row in rows}))}\n"


class _Claim(NamedTuple):
    """What the source says of one quantity, of one arm's network or of the ratio of two."""

    statement: str
    place: str
    reported: str
    quantity: str
    arms: tuple[str, ...]


def source_costs(experiment: Experiment) -> list[_Claim]:
    """Return what the source says of size and speed, from `cost.toml`, which is optional.

    SchemaError names file, line and key, for an arm or a quantity that does not exist, too.
    """
    path, arms = experiment.folder / "cost.toml", [arm.name for arm in experiment.arms]
    if not path.exists():
        return []
    root = read_toml(path)
    root.only({"claims"})
    return [_claim(table, arms) for table in root.each("claims")]


def _claim(table: Table, arms: Sequence[str]) -> _Claim:
    table.only({"statement", "place", "reported", "quantity", "of", "over"})
    named = tuple(table.choice(key, arms) for key in ("of", "over") if key == "of" or key in table.content)
    statement, place, reported = (table.text_of(key) for key in ("statement", "place", "reported"))
    return _Claim(statement, place, reported, table.choice("quantity", COLUMNS), named)


def _compared(claims: Sequence[_Claim], rows: Sequence[Row]) -> list[dict[str, str]]:
    """What the source says of size and speed, next to what was measured."""
    by_arm = {arm: row.numbers for row in rows for arm in row.arms}
    shown = []
    for claim in claims:
        values = [by_arm[arm][claim.quantity] for arm in claim.arms if claim.quantity in by_arm.get(arm, {})]
        measured = NONE
        if len(values) == len(claim.arms):
            first, *rest = values
            measured = f"{first / rest[0]:.1f} times" if rest else _with_unit(claim.quantity, first)
        texts = {"claim": claim.statement, "place": claim.place, "reported": claim.reported}
        shown.append({name: escaped(text) for name, text in texts.items()} | {"measured": measured})
    return shown


def _with_unit(quantity: str, value: float) -> str:
    if quantity.endswith("_bytes"):
        return f"{value / 1e6:.2f} MB"
    if quantity == "flops":
        return f"{value / 1e6:,.3f} million operations"
    if quantity.endswith("_ms"):
        return f"{value:,.3f} ms"
    if quantity.endswith("_accuracy"):
        return f"{100 * value:.2f}%"
    return f"{value:,.0f}" if quantity == "parameters" else f"{value:.3f}"


HOW = """How each number was found:

- parameters: numbers in the network, batch norm's moving mean and variance included.
- million operations: floating-point operations of convolutions and matrix products for one example, counted by torch.
  A multiplication and its addition are 2 operations.
- kB: size of the ONNX file, with 1,000 bytes a kB.
- peak memory: the largest sum of tensors that exist at one time while one example is predicted, parameters included.
  Memory that a library needs for itself is not counted.
- ms: the processor time of one prediction with a batch of 1 on one thread, median and 95th percentile of 200
  predictions after 20 that are not counted. On an idle machine this is the latency; the time in which the thread waits
  for a core is not counted.
- accuracy and macro F1: all test examples, predicted by onnxruntime, before and after quantisation. Before it,
  onnxruntime's logits of 32 test examples were compared with torch's. They agree within 1e-4 of the largest logit.
"""
