"""The static page: `results/site/index.html`, and one page for each replication, from `results/<name>/results.json`.

There is one page for each replication because all of them together would be a few megabytes, and because a reader of
one source should not have to scroll past the others. The pages load nothing: style, script and plots are in them.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdlib.collector import without_collector
from kdlib.errors import KDError
from kdlib.files import atomic_write
from kdlib.judge.claims import MODES
from kdlib.judge.verdicts import Outcome
from kdlib.report.as_json import write_json
from kdlib.report.chains import PARTS as CHAIN
from kdlib.report.chains import chain
from kdlib.report.commits import dates_of
from kdlib.report.dots import FEWEST, bars, claim_plots
from kdlib.report.markdown import NONE, Scale, percent
from kdlib.report.names import refuse_reserved
from kdlib.report.prose import rendered
from kdlib.report.roles import COLORS
from kdlib.report.texts import read_text
from kdlib.run.experiment import load_experiment
from kdlib.run.records import Record

__all__ = ["tone", "write_site"]

Row = Mapping[str, Any]

# How good a verdict is for the source, as a class of the style sheet, and a sign for readers who see no colours.
TONES = {
    Outcome.REPLICATED: "good",
    Outcome.LARGER: "fair",
    Outcome.SMALLER: "fair",
    Outcome.MUCH_SMALLER: "weak",
    Outcome.INCONCLUSIVE: "open",
    Outcome.TOO_FEW_SEEDS: "open",
    Outcome.INTERIM: "open",
    Outcome.NOT_REPLICATED: "bad",
    Outcome.NO_DIFFERENCE: "bad",
    Outcome.CONTRADICTED: "bad",
    Outcome.NOT_REPLICATED_REVERSED: "bad",
    Outcome.REVERSED: "bad",
}
SIGNS = {"good": "✓", "fair": "≈", "weak": "↓", "open": "?", "bad": "✕", "none": "·"}
# What a page shows at most of one table. More would be megabytes that no browser shows in time; the JSON has all.
MOST_RUNS = 2000
MOST_SEEDS = 100
PARTS = {"": "", "schedule": "schedule and data", "softness": "softness", "transfer": "transfer proper"}


def write_site(root: Path, records: Mapping[str, Sequence[Record]]) -> None:
    """Write the JSON of each replication and the pages, from its records; the same records give the same bytes."""
    for name in records:
        refuse_reserved(name)
    dates = dates_of(root, {str(one.environment.get("commit")) for found in records.values() for one in found})
    found = [write_json(load_experiment(name), of_one, root, dates) for name, of_one in records.items()]
    folder = root / "results" / "site"
    write_pages(folder, found)
    for stray in set(folder.glob("*.html")) - {folder / f"{name}.html" for name in ("index", *records)}:
        stray.unlink()


@without_collector()
def write_pages(folder: Path, found: Sequence[Row]) -> None:
    """Write the pages of some replications' results into a folder, next to which are the replications' own."""
    # What has a verdict comes first.
    sources = sorted((_headed(one) for one in found), key=lambda one: (one["row"] is None, one["main"] is None))
    pages = {"index.html": _template("index.html").render(sources=sources, told=told(sources), front=_front(folder))}
    for one in found:
        pages[f"{one['name']}.html"] = _template("replication.html").render(
            **_headed(one),
            prose=lambda text, name=one["name"]: Markup(rendered(text, f"../../replications/{name}")),
            figures={table["label"]: _figure(folder.parent / one["name"], table["label"]) for table in one["tables"]},
            costs=_rows(folder.parent / one["name"] / "cost.csv"),
        )
    for name, page in pages.items():
        # The template's blank lines would be a third of the file.
        atomic_write(folder / name, (re.sub(r"\n\s*\n+", "\n", page).strip() + "\n").encode())


def _headed(one: Row) -> dict[str, Any]:
    """The results of a replication with what its headline points to: table, claim and transfer proper."""
    place = one["headline"]
    table = next((table for table in one["tables"] if place and table["label"] == place["table"]), None)
    row = None
    if table and place:
        row = next(r for r in table["claims"] if (r["claim"], r["mode"]) == (place["claim"], place["mode"]))
    transfer = next((part for part in table["ingredients"] if part["role"] == "transfer"), None) if table else None
    if row is None or transfer is None or transfer["difference"] is None or transfer["metric"] != row["metric"]:
        transfer = None
    else:
        transfer = {**transfer, "own": _is_own(transfer, row, table["ingredients"] if table else [])}
    return {**one, "main": table or next(iter(one["tables"]), None), "row": row, "transfer": transfer}


def _is_own(transfer: Row, claim: Row, ingredients: Sequence[Row]) -> bool:
    """Whether transfer proper is a step of the claim's gain, of as many seeds."""
    if claim["kind"] == "best" or not claim["differences"] or transfer["n"] != claim["n"]:
        return False
    parts = [part for role in CHAIN for part in ingredients if part["role"] == role]
    gain = claim["differences"][0]
    steps = chain([(part["arm"], part["over"]) for part in parts], gain["arm"], gain["over"])
    return transfer in [parts[place] for place in steps]


def told(sources: Sequence[Row]) -> str:
    """Return in one sentence how many sources have which verdict."""
    found = [one["row"]["verdict"] for one in sources if one["row"]]
    verdicts = ["interim" if verdict.startswith("interim") else verdict for verdict in found]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)]
    rest = len(sources) - len(verdicts)
    return "; ".join([*counts, *([f"{rest} not yet run in full"] if rest else [])])


# ---- what the templates call


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("kdlib.report", "site"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _file("page.js")
    made.globals |= {
        "style": Markup(_file("style.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "signs": SIGNS,
        "colors": COLORS,
        "parts": PARTS,
        "most_runs": MOST_RUNS,
        "most_seeds": MOST_SEEDS,
        "claim_plots": claim_plots,
        "bars": bars,
    }
    made.filters |= {
        "tone": tone,
        "number": number,
        "between": between,
        "measured": measured_text,
        "percent": lambda share: percent(float("nan") if share is None else share),
        "duration": duration,
        "slug": slug,
        "device": short_device,
        "seeds": seeds_text,
        "by_seed": by_seed,
        "reason": reason,
    }
    return made


def _visible(value: Any) -> Any:
    """A text of a record or a file without characters that change how others are shown, such as marks of direction."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(ascii(c)[1:-1] if unicodedata.category(c)[0] == "C" and c != "\n" else c for c in value)


def _template(name: str) -> Any:
    return _templates().get_template(name)


def _file(name: str) -> str:
    text = (files("kdlib.report") / "site" / name).read_text(encoding="utf-8")
    return re.sub(r"\n\s*\n+", "\n", text).strip()  # as the page has it, or the script is not the one of its hash


def tone(verdict: str) -> str:
    """Return the class of a verdict's text; "none" for a row without one."""
    if verdict.startswith("interim"):
        return "open"
    return next((tone for outcome, tone in TONES.items() if verdict == outcome), "none")


def number(value: float | None, row: Row, sign: str = "") -> str:
    """Return a number as the row's scale shows it, an em dash for None."""
    return NONE if value is None else _scale(row["percent"], row["decimals"]).show(value, sign)


_scale = cache(Scale)


def between(row: Row, sign: str = "") -> str:
    """Return the interval of a row, from `low` to `high`; none of fewer than 3 seeds, which says next to nothing."""
    if row["low"] is None or row.get("n", FEWEST) < FEWEST:
        return NONE
    return f"{number(row['low'], row, sign)} to {number(row['high'], row, sign)}"


def measured_text(row: Row) -> str:
    """Return what was measured for a claim: a number, or whether counts are equal."""
    if row["measured"] is None or row["kind"] != "exact":
        return number(row["measured"], row, "+" if row["signed"] else "")
    return f"off by {row['measured']:,.12g}" if row["measured"] else "equal"


def by_seed(row: Row, arms: Sequence[Row], most: int) -> list[tuple[int, list[float | None], list[float | None]]]:
    """Return the first seeds, each with its value of each arm and its paired differences; None where it has none."""
    found, differences = (
        [dict(zip(each["seeds"], each["values"], strict=True)) for each in of] for of in (arms, row["differences"])
    )
    seeds = sorted({seed for values in found for seed in values})[:most]
    return [(seed, [values.get(seed) for values in found], [each.get(seed) for each in differences]) for seed in seeds]


def reason(row: Row) -> str:
    """Return why the verdict is what it is, without the numbers, which the table has in the claim's unit."""
    text = re.sub(r" \([+-][\d.e+-]+\)", "", str(row["detail"]).partition(":")[0])
    return "" if re.search(r"\d", text) else text.rstrip(".") + "." * bool(text)


def duration(seconds: float | None) -> str:
    """Return a time as people say it: 45 s, 12 min, 3.4 h."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3570 else f"{seconds / 3600:.1f} h"


@cache
def slug(text: str) -> str:
    """Return text that can be part of an anchor; different texts stay different."""
    plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", text)
    return plain if text in (plain, *MODES) else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def short_device(name: str) -> str:
    """Return the name of a device without marks of trade and clock rate."""
    return re.sub(r"\((R|TM)\)|\bProcessor\b|\bCPU\b|@.*", "", name).strip()


def seeds_text(seeds: Sequence[int]) -> str:
    """Return how many seeds there are."""
    return f"{len(seeds)} seed{'' if len(seeds) == 1 else 's'}"


# ---- files next to the results


def _figure(folder: Path, label: str) -> Row | None:
    """A table's figure: its path as seen from the page, what it shows in words, and its numbers."""
    return _picture(folder / f"{label}.svg", folder / f"{label}-figure.txt", folder / f"{label}-figure.csv")


def _front(folder: Path) -> Row | None:
    return _picture(*(folder.parent / f"front.{ending}" for ending in ("svg", "txt", "csv")))


def _picture(drawing: Path, words: Path, numbers: Path) -> Row | None:
    if not drawing.exists():
        return None
    file = f"../{drawing.name}" if drawing.stem == "front" else f"../{drawing.parent.name}/{drawing.name}"
    return {"file": file, "said": read_text(words).strip(), "rows": _rows(numbers)}


def _rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file, its heads first; nothing if there is no such file."""
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [[_short(cell) for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KDError(f"{path}: expected a CSV file in UTF-8, found: {error}; delete it, then `kd tables`") from error


def _short(cell: str) -> str:
    """A number with a fraction to six digits; the file has all of them."""
    return f"{float(cell):.6g}" if "." in cell and re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", cell) else cell
