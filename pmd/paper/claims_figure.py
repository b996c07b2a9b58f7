"""The figure of the claims: every effect in units of the smallest one that matters."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pmd.evaluators.intervals import Interval
from pmd.paper import style
from pmd.paper.claims import CONTRADICTED, EQUIVALENT, SUPPORTED, UNDECIDED

LOOKS = {
    SUPPORTED: ("blue", "o"),
    CONTRADICTED: ("vermillion", "X"),
    EQUIVALENT: ("black", "s"),
    UNDECIDED: ("grey", "D"),
}
"""The colour and the marker of a verdict."""

TOPICS = {"a": "accuracy", "b": "stability", "c": "time", "d": "few rollouts", "e": "the law"}
"""What the rows of a letter are about; the first of them in a figure says it."""

TICKS = (-10, -2, -1, 0, 1, 2, 5, 10, 20)


def verdicts(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A line a row of `claims.table` that has an effect, from the first at the top.

    The axis is linear within two margins and logarithmic beyond. Lines are 95 % intervals; where only a bound of the
    effect is known there is an arrow to the side on which it lies, and where nothing is known a dotted line. Plotted
    data: row, verdict, estimate, low, high and, where rows are of `claims.beside`, default: the default's estimate,
    drawn hollow. All are in margins, as `claims.table` says.
    """
    style.apply_style()
    plotted = pd.DataFrame([_numbers(row) for row in rows[rows["effect"].notna()].to_dict("records")])
    figure = style.Shown(figsize=(0.88 * style.SINGLE, 0.16 * len(plotted) + 0.75))
    axis = figure.subplots()
    axis.axvspan(-1, 1, color=style.COLOURS["light"], alpha=0.6, linewidth=0)
    axis.axvline(0, color=style.COLOURS["grey"], linewidth=0.5)
    for verdict, (colour, marker) in LOOKS.items():
        mine = plotted[plotted["verdict"] == verdict]
        look = {"color": style.COLOURS[colour], "zorder": 3}
        measured = mine[np.isfinite(mine["low"]) & np.isfinite(mine["high"])]
        axis.hlines(measured.index, measured["low"], measured["high"], linewidth=1.2, **look)
        axis.plot(mine["estimate"], mine.index, marker, markersize=4, markeredgewidth=0, label=verdict, **look)
        if "default" in mine:
            axis.plot(mine["default"], mine.index, "o", markersize=4, markerfacecolor="white", **look | {"zorder": 2})
    for place, row in plotted.iterrows():
        if np.isinf(row["low"]) or np.isinf(row["high"]):
            _bound(axis, place, row)
    axis.set_xscale("symlog", linthresh=2, linscale=1)
    axis.set_xticks(TICKS, [f"{tick}".replace("-", "−") for tick in TICKS])
    axis.set_xticks([], minor=True)
    first = ~plotted["row"].str[0].duplicated()
    topics = plotted["row"].str[0].map(TOPICS).where(first, "")
    axis.set_yticks(plotted.index, (topics + "  " + plotted["row"]).str.strip())
    axis.set_ylim(len(plotted) - 0.4, -0.6)  # the first row at the top
    axis.set_xlabel("against  ←  effect in margins  →  for")
    figure.legend(loc="outside upper center", ncols=2, handlelength=1.0, columnspacing=1.2)
    return figure, plotted


def _bound(axis: Axes, place: int, row: pd.Series) -> None:
    if np.isnan(row["estimate"]):
        axis.axhline(place, color=style.COLOURS["grey"], linewidth=0.8, linestyle=(0, (1, 2.5)))
        return
    tip = (-16 if np.isinf(row["low"]) else 16, 0)  # points
    look = {"arrowstyle": "<-", "linewidth": 0.8, "color": style.COLOURS["grey"], "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (row["estimate"], place), tip, textcoords="offset points", arrowprops=look)


def _numbers(row: dict) -> dict[str, str | float]:
    found = {"row": row["row"], "verdict": row["verdict"], **row["in_margins"]._asdict()}
    if "of_default" in row and not row["of_default"]:
        other = row["in_margins (default)"]
        found["default"] = other.estimate if isinstance(other, Interval) else np.nan
    return found
