"""The figure of the law: what a solved update of PMD-mean does to responses, over what the theorem predicts.

`law` takes the frame of pmd/experiments/law.py and returns a figure and the frame of all numbers that it plots.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pmd.evaluators.intervals import t_interval
from pmd.paper import style
from pmd.theory.binary import binary_update

SUCCESS, FAILURE, BOTH = (style.COLOURS[name] for name in ("blue", "vermillion", "black"))

TINY = 1e-12
"""The smallest distance, in nats, that a logarithmic axis shows."""

DOTS = {"markersize": 2.2, "alpha": 0.45, "markeredgewidth": 0, "rasterized": True}
"""Hundreds of them, which as shapes would be most of an SVG."""

TITLES = (
    "(a) $s$ of a response; curves: theory",
    "(b) $-\\overline{s}$ of a prompt; line: equal",
    "(c) distance from theory",
)

BANDED = 5
"""Base models from which on intervals are drawn: of fewer they would cover the panel. The CSV has them all."""


def law(frame: pd.DataFrame, normalise: str = "constant") -> tuple[Figure, pd.DataFrame]:
    """A row of three panels for each τ: s against the group's success rate, −mean(s) against λ, errors against steps.

    Left and middle: a dot a prompt, after the last inner step, on the batch. Right: the mean distance between measured
    and predicted, over the prompts whose rewards differ; lines and bands are means and 95 % intervals over base models.
    Plotted data: panel, tau, base, seed, prompt, how, set, step, quantity, x, y, low, high; those that a panel lacks
    are empty.
    """
    style.apply_style()
    rows = frame[(frame["normalise"] == normalise) & frame["p"].between(0, 1, inclusive="neither")]
    taus = sorted(rows["tau"].unique())
    figure = style.Shown(figsize=(style.DOUBLE, 2.15 * len(taus) + 0.3))
    axes = figure.subplots(len(taus), 3, squeeze=False)
    plotted = []
    for row, tau in zip(axes, taus, strict=True):
        mine = rows[rows["tau"] == tau]
        solved = mine[(mine["how"] == "solved") & (mine["set"] == "batch")]
        last = solved[solved["step"] == solved["step"].max()]
        plotted += [_ratios(row[0], last, tau), _lambda(row[1], last), _errors(row[2], mine)]
        row[0].set_ylabel(f"τ = {tau:g}\n$s$ [nats]")
    for axis, title in zip(axes[0], TITLES, strict=True):
        axis.set_title(title)
    axes[0, 0].legend(loc="lower left", handletextpad=0.4)
    low, high = axes[0, 2].get_ylim()
    axes[0, 2].set_ylim(low * (low / high) ** 0.35)  # room for the legend below the curves
    axes[0, 2].legend(loc="lower left", ncols=1, handlelength=2.2)
    return figure, pd.concat(plotted, ignore_index=True)


def _ratios(axis: Axes, last: pd.DataFrame, tau: float) -> pd.DataFrame:
    """s of successes and failures against p, over the Lambert-W curves."""
    p = np.linspace(0.005, 0.995, 199)
    curve = binary_update(p, tau)
    plotted = []
    looks = (
        ("s_success", "successes", SUCCESS, "o", curve.log_rho1),
        ("s_failure", "failures", FAILURE, "s", curve.log_rho0),
    )
    for column, label, colour, marker, theory in looks:
        axis.plot(p, theory, color=colour, linewidth=1.4, zorder=3)
        axis.plot(last["p"], last[column], marker, color=colour, label=label, **DOTS)
        plotted.append(_dots("s", last, column, "p").assign(quantity=label))
        plotted.append(pd.DataFrame({"panel": "s", "tau": tau, "quantity": f"{label}, theory", "x": p, "y": theory}))
    axis.axhline(0, color=style.COLOURS["grey"], linewidth=0.5)
    axis.set(xlabel="success rate of the group", xlim=(0, 1))
    return pd.concat(plotted, ignore_index=True)


def _lambda(axis: Axes, last: pd.DataFrame) -> pd.DataFrame:
    """−mean(s) against λ, prompt by prompt."""
    most = 1.08 * max(last["lam"].max(), last["minus_mean_s"].max())
    axis.plot([0, most], [0, most], color=style.COLOURS["grey"], linewidth=0.8)
    axis.plot(last["lam"], last["minus_mean_s"], "o", color=BOTH, **DOTS)
    axis.set(xlabel="λ of theory [nats]", ylabel="$-\\overline{s}$ measured [nats]", xlim=(0, None))
    return _dots("lambda", last, "minus_mean_s", "lam").assign(quantity="minus_mean_s")


def _errors(axis: Axes, mine: pd.DataFrame) -> pd.DataFrame:
    """Distances between measured and predicted, from one pass of practice to the solution."""
    errors = mine[["base", "tau", "how", "set", "step"]].assign(
        s=(_distance(mine, "s_success", "s1") + _distance(mine, "s_failure", "s0")) / 2,
        minus_mean_s=_distance(mine, "minus_mean_s", "lam"),
    )
    means = errors.groupby(["tau", "how", "set", "step", "base"])[["s", "minus_mean_s"]].mean().reset_index()
    plotted = []
    for quantity, colour, name in (("minus_mean_s", BOTH, "$-\\overline{s}$"), ("s", style.COLOURS["purple"], "$s$")):
        for place, line, marker in (("batch", "-", "o"), ("held out", (0, (3, 1.2)), "^")):
            groups = means[means["set"] == place].groupby(["tau", "how", "set", "step"])[quantity]
            table = groups.apply(_geometric).unstack().reset_index()
            solved, practice = (table[table["how"] == how] for how in ("solved", "practice"))
            axis.plot(solved["step"], solved["y"], color=colour, linestyle=line, label=f"{name}, {place}")
            if mine["base"].nunique() >= BANDED:
                axis.fill_between(solved["step"], solved["low"], solved["high"], color=colour, alpha=0.12, linewidth=0)
            axis.plot([0.6] * len(practice), practice["y"], marker, color=colour, markersize=4, markerfacecolor="white")
            plotted.append(table.rename(columns={"step": "x"}).assign(panel="errors", quantity=quantity))
    steps = [step for step in sorted(mine.loc[mine["how"] == "solved", "step"].unique()) if step > 1]
    axis.set(xscale="log", yscale="log", xlabel="inner steps", ylabel="mean distance [nats]")
    crowded = [later < 1.6 * step for step, later in pairwise(steps)] + [False]
    labels = ["" if near else f"{step}" for step, near in zip(steps, crowded, strict=True)]
    axis.set_xticks([0.6, *steps], ["one\npass", *labels], minor=False)
    axis.set_xticks([], minor=True)
    return pd.concat(plotted, ignore_index=True)


def _geometric(distances: pd.Series) -> pd.Series:
    """The geometric mean over base models with its 95 % interval: on a logarithmic axis it has a lower end."""
    positive = distances.clip(lower=TINY)  # an exact prediction has no logarithm
    return pd.Series(np.exp(t_interval(np.log(positive))), ["y", "low", "high"])


def _distance(rows: pd.DataFrame, measured: str, predicted: str) -> pd.Series:
    return (rows[measured] - rows[predicted]).abs()


def _dots(panel: str, rows: pd.DataFrame, y: str, x: str) -> pd.DataFrame:
    kept = rows[["tau", "base", "seed", "prompt", "how", "set", "step", x, y]]
    return kept.rename(columns={x: "x", y: "y"}).assign(panel=panel)
