"""The figure of finite samples: what the baseline of an update from n rollouts does to the success rate.

`finite` takes the frame of pmd/experiments/finite.py and returns a figure and the frame of all numbers that it plots.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pmd.evaluators.intervals import t_interval
from pmd.paper import style

LOOKS = {
    4: ("orange", "s", (0, (3, 1.2))),
    8: ("vermillion", "D", "-"),
    16: ("black", "^", (0, (5, 1.2, 1, 1.2))),
    64: ("sky", "o", ":"),
}
"""Colour, marker and line of the numbers of rollouts that the presets have."""

LEAST = 0.05
"""The smallest −mean(s), in nats, by which a gain is divided."""

PANELS = {
    "same": "gain on the same prompts [pp]",
    "other": "gain on other prompts [pp]",
    "per nat": "gain on the same prompts\nper nat of $-\\overline{s}$ [pp]",
}


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What each base model gains: columns tau, n, tau_b, base, and in percentage points same, other and per nat.

    The means are over its seeds and prompts; per nat is the gain on the same prompts divided by the mean −mean(s), NaN
    where that is less than LEAST.
    """
    frame = frame.assign(gain=100 * (frame["after"].astype(float) - frame["before"]) / frame["samples"])
    key = ["tau", "n", "tau_b", "base"]
    table = frame.pivot_table(index=key, columns="set", values="gain", aggfunc="mean")
    moved = frame.groupby([*key, "seed"])["lam"].first().groupby(key).mean()
    return table.assign(**{"per nat": table["same"] / moved.where(moved >= LEAST)}).reset_index()


def finite(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A row of three panels for each τ: the gain on the same prompts, on other prompts, and per nat, by the baseline.

    Baselines stand from PMD-part over the mean to below the mean. Lines are means over base models, bars 95 % intervals
    by Student's t. Plotted data: panel, tau, n, tau_b, bases, mean, low, high.
    """
    style.apply_style()
    table = gains(frame)
    taus, sizes = sorted(table["tau"].unique()), sorted(table["n"].unique())
    looks = {n: LOOKS.get(n) or list(LOOKS.values())[i % len(LOOKS)] for i, n in enumerate(sizes)}
    figure = style.Shown(figsize=(style.DOUBLE, 2.2 * len(taus) + 0.5))
    axes = figure.subplots(len(taus), len(PANELS), squeeze=False)
    plotted = []
    for row, tau in zip(axes, taus, strict=True):
        mine = table[table["tau"] == tau]
        for axis, panel in zip(row, PANELS, strict=True):
            plotted.append(_panel(axis, mine, panel, looks).assign(panel=panel, tau=tau))
            axis.set_title(PANELS[panel] if tau == taus[0] else "")
        row[0].set_ylabel(f"τ = {tau:g}")
    for axis in axes[-1]:
        axis.set_xlabel("temperature τ$_b$ of the baseline")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(sizes), title="rollouts of a prompt")
    return figure, pd.concat(plotted, ignore_index=True)[["panel", "tau", "n", "tau_b", "bases", "mean", "low", "high"]]


def _panel(axis: Axes, mine: pd.DataFrame, panel: str, looks: dict) -> pd.DataFrame:
    order = sorted(mine["tau_b"].unique(), key=lambda tau_b: -1 / tau_b)
    records = []
    shifts = 0.12 * (np.arange(len(looks)) - (len(looks) - 1) / 2)  # so that the bars stand side by side
    for shift, (n, (colour, marker, line)) in zip(shifts, looks.items(), strict=True):
        groups = [mine.loc[(mine["n"] == n) & (mine["tau_b"] == tau_b), panel] for tau_b in order]
        ends = [t_interval(group) if group.notna().all() else (np.nan,) * 3 for group in groups]
        mean, low, high = np.array(ends).T
        x, colour = np.arange(len(order)) + shift, style.COLOURS[colour]
        axis.plot(x, mean, color=colour, marker=marker, linestyle=line, markersize=3, label=f"n = {n}")
        axis.vlines(x, low, high, color=colour, linewidth=0.8)
        values = zip(order, groups, mean, low, high, strict=True)
        records += [(n, tau_b, len(group), *rest) for tau_b, group, *rest in values]
    axis.axhline(0, color=style.COLOURS["grey"], linewidth=0.6)
    axis.set_xticks(range(len(order)), [_name(tau_b, mine["tau"].iloc[0]) for tau_b in order])
    axis.tick_params(axis="x", labelsize=6)
    axis.yaxis.set_major_locator(ticker.MaxNLocator(5))
    return pd.DataFrame(records, columns=["n", "tau_b", "bases", "mean", "low", "high"])


def _name(tau_b: float, tau: float) -> str:
    """A tick: the number, and below it the method that it is."""
    if np.isinf(tau_b):
        return "∞\nmean"
    return f"{tau_b:g}\npart" if tau_b == tau else f"{tau_b:g}".replace("-", "−")
