"""The tables of arms and claims for LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdlib.report.markdown import unescaped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["as_text", "latex_of"]

# In centimetres; the widest table fits landscape A4. Other columns are of numbers, or of intervals.
_WIDTHS = {"arm": 3.0, "claim": 1.6, "mode": 2.0, "n": 0.5, "about": 3.8, "differs in": 2.2, "unit": 1.7}
_WIDTHS |= {"verdict": 2.8, "nearest other outcome": 2.8, "full verdict": 2.8, "this run": 2.2}
_NUMBER, _INTERVAL = 1.15, 1.75
# A bracket after the end of a row would be read as an option of it.
_ESCAPES = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}"}
    | {"[": "{[}", "]": "{]}", "*": "{*}", "-": "-{}", "'": "'{}", '"': r"\textquotedbl{}"}
    | {"—": "---", "±": r"$\pm$", "…": r"\ldots{}"}
)


def as_text(text: object) -> str:
    """Return LaTeX that shows a text unchanged: without commands, cells or ligatures."""
    return str(text).translate(_ESCAPES)


def latex_of(name: str, label: str, arms: pd.DataFrame, claims: pd.DataFrame, right: Sequence[str]) -> str:
    """Return LaTeX of two frames of escaped Markdown strings, whose columns `right` are numbers.

    The tables need `booktabs`, `longtable` and `array`, and fit landscape A4.
    """
    tables = [_table(f"{name}, {label}: {what}", frame, right) for what, frame in (("arms", arms), ("claims", claims))]
    head = (
        "% \\usepackage[T1]{fontenc} \\usepackage{array, booktabs, longtable}; landscape A4.\n"
        "% Letters that are not Latin need LuaLaTeX or XeLaTeX.\n"
    )
    return head + "\n".join(["\\begingroup\\scriptsize\\setlength{\\tabcolsep}{3pt}", *tables, "\\endgroup"]) + "\n"


def _table(caption: str, frame: pd.DataFrame, right: Sequence[str]) -> str:
    if frame.empty:
        return f"% {caption}: nothing has been run yet"
    shown = frame.map(lambda cell: as_text(unescaped(cell)))
    shown.columns = [as_text(unescaped(head)) for head in frame.columns]
    columns = "".join(_column(head, head in right) for head in frame.columns)
    text = shown.to_latex(index=False, escape=False, longtable=True, column_format=columns, caption=as_text(caption))
    return str(text).rstrip()


def _column(head: str, is_number: bool) -> str:
    wide = any(word in head for word in ("95%", "range", "reported"))
    width = _WIDTHS.get(head, _INTERVAL if wide else _NUMBER)
    return f">{{\\ragged{'left' if is_number else 'right'}\\arraybackslash}}p{{{width}cm}}"
