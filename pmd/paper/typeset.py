"""A table of the paper: its cells, caption and notes, and how they are written as Markdown, CSV and LaTeX.

A cell may be an `Interval` of pmd/evaluators/intervals.py: an estimate with its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pmd.evaluators.intervals import Interval
from pmd.files import write_text


@dataclass(frozen=True)
class Table:
    """A table: its name ("T1"), its caption, its cells, and notes to print below them."""

    name: str
    caption: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


def from_records(records: list[dict], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A frame of objects, one row for each record; a column that a record lacks is None there.

    Of dtype object, because pandas would otherwise make NaN of None, 3.0 of 3 and a tuple of an interval.
    """
    columns = list(columns or dict.fromkeys(key for record in records for key in record))
    cells = {name: pd.Series([record.get(name) for record in records], dtype=object) for name in columns}
    return pd.DataFrame(cells, columns=columns)


def write(table: Table, directory: str | Path) -> list[Path]:
    """Write NAME.md, NAME.csv (where an interval takes three columns) and NAME.tex (booktabs), each atomically."""
    paths = [Path(directory) / f"{table.name}.{ending}" for ending in ("md", "csv", "tex")]
    csv = _spread(table.frame).to_csv(index=False, float_format="%.10g", lineterminator="\n")
    for path, text in zip(paths, (markdown(table), csv, latex(table)), strict=True):
        write_text(path, text)
    return paths


def markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown: caption, cells, notes."""
    rows = [list(table.frame.columns), ["---"] * table.frame.shape[1], *_cells(table.frame)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"**{table.name}.** {table.caption}", "", *lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: Table) -> str:
    """The table for LaTeX with the packages booktabs, array, longtable, graphicx and rotating.

    A table of up to eight columns is a longtable, whose cells wrap and which may be longer than a page. A wider one is
    turned on its side and scaled to the page.
    """
    cells = _cells(table.frame)
    head, *rows = [" & ".join(map(_escape, row)) + r" \\" for row in [list(table.frame.columns), *cells]]
    title = rf"\caption{{{_escape(table.caption)}}}\label{{tab:{table.name}}}"
    notes = [rf"\par\smallskip\footnotesize {_escape(note)}" for note in table.notes]
    if table.frame.shape[1] > 8:
        lines = [
            r"\begin{sidewaystable}\centering\setlength{\tabcolsep}{3pt}",
            title,
            rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{{'l' * table.frame.shape[1]}}}\toprule",
            head + r"\midrule",
            *rows,
            r"\bottomrule\end{tabular}}",
            *notes,
            r"\end{sidewaystable}",
        ]
    else:
        lines = [
            r"{\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{longtable}}{{{_columns([list(table.frame.columns), *cells])}}}",
            title + r"\\\toprule",
            head + r"\midrule\endfirsthead\toprule",
            head + r"\midrule\endhead\bottomrule\endfoot",
            *(row + r"\addlinespace[2pt]" for row in rows),
            r"\end{longtable}",
            *notes,
            r"\par}",
        ]
    return "\n".join([*lines, ""])


def _columns(cells: list[list[str]]) -> str:
    """The column specification of a longtable.

    Columns are as wide as their longest text if all fit into a line; otherwise each wraps within a share of the line.
    """
    longest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sum(longest) <= 80:
        return "l" * len(longest)
    wanted = [min(24, max(10, length)) for length in longest]
    wrapped = r">{{\raggedright\arraybackslash}}p{{\dimexpr {:.3f}\linewidth-2\tabcolsep}}"
    return "".join(wrapped.format(length / sum(wanted)) for length in wanted)


_TEXT = {"–": "--", "—": "---", "“": "``", "”": "''", "’": "'", "…": r"\dots{}", "|": r"\textbar{}"}
_TEXT |= {"_": r"\_\allowbreak{}", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SIGNS = "τ tau λ lambda χ chi π pi ρ rho Δ Delta ± pm × times ≥ ge ≤ le → to ‖ Vert ≈ approx √ surd ∞ infty"
_MATHS = {"−": "$-$", "<": "$<$", ">": "$>$", "²": "$^2$", "₀": "$_0$", "₁": "$_1$"}
_MATHS |= {sign: rf"$\{name}$" for sign, name in zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True)}
_LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | _TEXT | _MATHS)
"""How the characters that pdfLaTeX does not take as they are, of those that occur in tables, are written."""


def _escape(text: str) -> str:
    return text.translate(_LATEX)


def _number(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def _interval(value: Interval) -> str:
    """Three numbers with as many decimals each: three significant digits of the largest."""
    largest = max((abs(number) for number in value if np.isfinite(number) and number), default=100.0)
    decimals = max(0, 2 - int(np.floor(np.log10(largest))))
    estimate, low, high = (f"{round(number, decimals) + 0.0:,.{decimals}f}".replace("-", "−") for number in value)
    return f"{estimate} [{low}, {high}]"


def cell_text(value: Any) -> str:
    """A cell as text: three significant digits, an interval in brackets, – for what is absent."""
    if isinstance(value, Interval):
        if np.isnan(value.estimate):
            return "–"
        return _number(value.estimate) if np.isnan(value.low) else _interval(value)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return _number(value) if isinstance(value, float) else str(value)


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    return [[cell_text(value) for value in row] for row in frame.itertuples(index=False, name=None)]


def _spread(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with each column that holds intervals split into estimate, low and high."""
    columns = {}
    for name in frame:
        values = list(frame[name])
        columns[name] = [v.estimate if isinstance(v, Interval) else v for v in values]
        if any(isinstance(v, Interval) for v in values):
            for end in ("low", "high"):
                columns[f"{name} {end}"] = [getattr(v, end) if isinstance(v, Interval) else None for v in values]
    return pd.DataFrame(columns)
