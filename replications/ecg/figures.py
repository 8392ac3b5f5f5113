"""The figure of the ECG replication: macro F1 by arm and by epoch, and the effect of each ingredient.

`kd tables` draws it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdlib.judge.claims import Effect, Reported
from kdlib.report.figures import Drawing, Part, compose
from kdlib.report.panels import Panel, Quantity
from kdlib.report.parts import OTHERS, colors_of, differences, height_of, strip
from kdlib.run.records import Record, measured

from .experiment import ARMS

F1 = Quantity("macro_f1", "macro F1 on test", form=".3f")
GAIN = Quantity("macro_f1", "difference of macro F1 on test", form="+.3f")
CHOSEN = Quantity("test_macro_f1 of the lowest validation_loss", "macro F1 on test", form=".3f")
SHOWN = (  # arm, label
    ("teacher", "teacher"),
    ("baseline", "baseline"),
    ("baseline_mixup", "baseline,\nbalanced draws\nand mixup"),
    ("distilled", "distilled"),
    ("sham", "sham"),
)
CURVES = ("baseline", "baseline_mixup", "distilled", "sham")


def draw(records: Sequence[Record], reported: Reported) -> Drawing | None:
    """Return the figure of one profile's records."""
    found, first = measured(records), reported.claims["C1"]
    assert isinstance(first, Effect)
    colors = colors_of(ARMS)
    # A pair has no row if one of its arms is not recorded; the page's table names it.
    pairs = [(part.label, part.arm, part.rival) for part in reported.ingredients]
    claim = ("distilled over baseline", "distilled", "baseline", first.reported)
    ingredients = differences("What each ingredient adds", GAIN, pairs, found, colors, claim)
    histories = {arm: h for arm in CURVES if (h := histories_of(records, arm))}
    title = "Weights chosen so far (lowest validation loss);\nline: mean of the seeds, band: lowest to highest"
    by_epoch = Part(title, CHOSEN, histories, lambda panel: curves(panel, records, histories, colors))
    return compose(
        [(3.8, [strip("Arms", F1, SHOWN, colors), by_epoch]), (height_of(ingredients), [ingredients])], found, reported
    )


def histories_of(records: Sequence[Record], arm: str) -> dict[int, list[float]]:
    """Return the curve of each seed of an arm."""
    return {record.seed: selected(record.history) for record in records if record.arms.get(arm) == "final"}


def curves(
    panel: Panel,
    records: Sequence[Record],
    histories: Mapping[str, Mapping[int, Sequence[float]]],
    colors: Mapping[str, str],
) -> None:
    """Draw F1 by epoch, and where the released baseline stops."""
    for arm, curve in histories.items():
        # The second of two baselines gets another colour than its role's.
        panel.curve(arm, curve, OTHERS[1] if arm == "baseline_mixup" else colors[arm])
    if any("released_baseline" in record.arms for record in records):
        stop = records[0].description["config"]["released_epochs"]
        panel.axes.axvline(stop, color="black", linewidth=0.8, linestyle=":", label="the released baseline stops")
    panel.axes.set_xlabel("epochs trained")


def selected(history: Sequence[Mapping[str, float]]) -> list[float]:
    """Return after each epoch the test F1 of the weights chosen so far: those of the lowest validation loss."""
    chosen, lowest, best = list[float](), float("inf"), float("nan")
    for entry in history:
        if entry["validation_loss"] < lowest:
            lowest, best = entry["validation_loss"], entry["test_macro_f1"]
        chosen.append(best)
    return chosen
