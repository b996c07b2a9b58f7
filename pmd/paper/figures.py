"""Figures F5 to F8, of the training map: each is a function from its evidence to a figure and the frame of all numbers
that it plots. `style.save` writes both side by side.

Lines are means over base models; bands are 95 % intervals over them by Student's t, absent where there is one. The law
and finite samples have files of their own, F1 to F4 are those of the theory.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from pmd.evaluators.intervals import t_interval
from pmd.paper import style
from pmd.paper.frames import SETS, Evidence, cell, chosen, compared, final, ordered, scores
from pmd.paper.questions import curves, stale

BANDED = ("pmd-mean", "grpo")
"""The variants whose bands are drawn; bands of all would hide every curve. The CSV has all of them."""

COLLAPSED = 0.5
"""A cell of the map is marked as collapsed below this share of its base models' accuracy."""

_FRESH = {"linestyle": "-", "marker": "*", "markersize": 6, "linewidth": 0.8}
"""How an on-policy run differs from the same variant at a larger K."""


def training_curves(evidence: Evidence) -> tuple[Figure, pd.DataFrame] | None:
    """F5: a row of panels for each K, variants at their best rate: accuracy on test and ood, reward, entropy.

    Variants that were trained at fewer learning rates than others are left out (`frames.compared`), as in F6. None if
    every run is on-policy.

    Plotted data: minibatches, panel, variant, lr, step, bases, mean, low, high; accuracy and reward in [0, 1], entropy
    in nats a token.
    """
    ks, best = stale(evidence), compared(chosen(evidence), evidence)
    if not ks:
        return None
    curve = evidence.evals[~evidence.evals.final.astype(bool)]
    panels = {
        "accuracy, test": (curve[curve["set"] == "test"], "accuracy"),
        "accuracy, ood": (curve[curve["set"] == "ood"], "accuracy"),
        "training reward": (evidence.steps, "reward"),
        "entropy [nats]": (evidence.steps, "entropy"),
    }
    figure = _figure(1.9 * len(ks) + 0.5)
    axes = figure.subplots(len(ks), len(panels), squeeze=False, sharey="col")
    plotted = []
    for row, k in zip(axes, ks, strict=True):
        for axis, (panel, (rows, value)) in zip(row, panels.items(), strict=True):
            for name in ordered(best[(best.minibatches == k) & (best.staleness == 0)].variant):
                rate = float(cell(best, name, k).lr.iloc[0])
                line = _over_bases(cell(rows, name, k, rate), value).assign(variant=name, lr=rate)
                plotted.append(line.assign(minibatches=k, panel=panel))
                _line(axis, line, line.step * k, name)
            axis.set(title=panel if k == ks[0] else None, xlabel="updates" if k == ks[-1] else None)
        row[0].set_ylabel(f"K = {k}")
    _legend(figure, best[best.minibatches.isin(ks)].variant)
    columns = ["minibatches", "panel", "variant", "lr", "step", "bases", "mean", "low", "high"]
    return figure, pd.concat(plotted, ignore_index=True)[columns]


_REPORTED = {
    "training_reward": "training reward (±1)", "response_length": "response length [tokens]",
    "entropy": "entropy [nats]", "avg@32": "avg@32, overall", "aime2024_avg@32": "avg@32, AIME 2024",
    "aime2025_avg@32": "avg@32, AIME 2025",
}  # fmt: skip


def reported_curves(reported: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """F5-reported: curves that the paper's authors report for Qwen3-30B-A3B, read off their figure.

    reported: columns panel, method, step, value (results/reference). Plotted data: the same, panels renamed.
    """
    rows = reported[reported.panel.isin(_REPORTED)].assign(variant=reported.method.str.lower())
    rows = rows.assign(panel=rows.panel.map(_REPORTED), step=rows.step.abs())  # −0.0 was read off
    figure = _figure(4.2)
    for axis, panel in zip(figure.subplots(2, 3, sharex=True).ravel(), _REPORTED.values(), strict=True):
        for name in ordered(rows.variant):
            mine = rows[(rows.panel == panel) & (rows.variant == name)].sort_values("step")
            axis.plot(mine.step, mine.value, **style.variant_style(name) | {"label": "_", "marker": ""})
        axis.set(title=panel, xlabel="training step" if axis.get_subplotspec().is_last_row() else None)
    title = "As reported by the paper's authors for Qwen3-30B-A3B; not runs of this repository"
    _legend(figure, rows.variant, title)
    return figure, rows[["panel", "method", "step", "value"]]


def time_efficiency(evidence: Evidence) -> tuple[Figure, pd.DataFrame]:
    """F6: accuracy over val, test and ood against seconds of training and generated tokens, at each variant's best K.

    On-policy runs (K = 1) are thin lines with stars. Plotted data: variant, minibatches, lr, step, bases, seconds and
    tokens (means), mean, low, high.
    """
    best, rows = compared(chosen(evidence), evidence), curves(evidence)
    best = best[best.staleness == 0]
    stale_best = best[best.minibatches > 1]
    picks = pd.concat([stale_best.loc[stale_best.groupby("variant").val.idxmax()], best[best.minibatches == 1]])
    figure, plotted = _figure(2.9), []
    axes = figure.subplots(1, 2, sharey=True)
    for pick in picks.itertuples():
        mine = cell(rows, pick.variant, pick.minibatches, pick.lr)
        line = _over_bases(mine, "accuracy").merge(mine.groupby("step", as_index=False)[["seconds", "tokens"]].mean())
        plotted.append(line.assign(variant=pick.variant, minibatches=pick.minibatches, lr=pick.lr))
        for axis, cost in zip(axes, ("seconds", "tokens"), strict=True):
            bare = line.assign(low=np.nan)  # bands over few base models would hide every curve
            _line(axis, bare, line[cost], pick.variant, _FRESH if pick.minibatches == 1 else {})
    axes[0].set(xlabel="seconds of training", ylabel="accuracy, all sets")
    axes[1].set(xlabel="generated tokens")
    axes[1].xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    _legend(figure, stale_best.variant, fresh=picks[picks.minibatches == 1].variant)
    columns = ["variant", "minibatches", "lr", "step", "bases", "seconds", "tokens", "mean", "low", "high"]
    return figure, pd.concat(plotted, ignore_index=True)[columns]


def implicit_regulariser(evidence: Evidence) -> tuple[Figure, pd.DataFrame] | None:
    """F7: −mean(s) after a step of training against the λ of the solved update, for the variants that theory knows.

    Batches that are used at once, since the λ of an older policy's batch is another. None if no run has such a λ.
    Plotted data: variant, minibatches, lr, run, step, lambda_theory, lambda.
    """
    rows = evidence.steps[(evidence.steps.lambda_theory > 0) & (evidence.steps.staleness == 0)]
    if rows.empty:
        return None
    figure = _figure(2.9)
    ks, line = sorted(set(rows.minibatches)), {"color": style.COLOURS["black"], "lw": 0.8}
    same = np.geomspace(rows.lambda_theory.min(), rows.lambda_theory.max(), 200)  # near 0 it is a curve on these axes
    for axis, k in zip(figure.subplots(1, len(ks), squeeze=False, sharex=True, sharey=True)[0], ks, strict=True):
        mine = rows[rows.minibatches == k]
        for name in ordered(mine.variant):
            part, look = mine[mine.variant == name], style.variant_style(name)
            dots = {"ms": 2.5, "mew": 0.5, "alpha": 0.6, "mfc": look.get("markerfacecolor", look["color"])}
            dots |= {"rasterized": True}  # thousands of them: as shapes they would be most of the report
            axis.plot(part.lambda_theory, part["lambda"], look["marker"], color=look["color"], **dots)
        axis.plot(same, same, **line)
        axis.set_xscale("log")
        axis.xaxis.set(major_locator=ticker.LogLocator(subs=(1, 3)), major_formatter=ticker.StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_yscale("symlog", linthresh=0.01)
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.set(title=f"K = {k}", xlabel="λ, solved update")
    figure.axes[0].set_ylabel("−mean(s), measured")
    _legend(figure, rows.variant, more=[line | {"label": "−mean(s) = λ"}])
    return figure, rows[["variant", "minibatches", "lr", "run", "step", "lambda_theory", "lambda"]]


def robustness_map(evidence: Evidence) -> tuple[Figure, pd.DataFrame]:
    """F8: the final accuracy on test and ood over learning rate and K, a panel a variant.

    The scale's neutral point is the accuracy of the base models; cells below half of it are marked as collapsed. What
    was not run is grey and says so with a dash. Variants that were trained in the same cell alone share the last panel.
    Plotted data: those of `cells`.
    """
    table = cells(evidence)
    base, alone = float(table.base.mean()), _alone(table)
    names = [name for name in ordered(table.variant) if name not in alone]
    panels = len(names) + bool(alone)
    columns = min(5 if panels == 5 else 3 if panels == 6 else 4, panels)
    figure = _figure(1.45 * -(-panels // columns) + 0.5)
    axes = figure.subplots(-(-panels // columns), columns, squeeze=False).ravel()
    span = max(abs(table.accuracy - base).max(), 0.05)
    look = {"cmap": style.diverging(), "norm": colors.TwoSlopeNorm(base, base - span, base + span), "aspect": "auto"}
    narrow = columns * table.lr.nunique() > 15
    rates, regimes = sorted(set(table.lr)), sorted(set(zip(table.minibatches, table.staleness, strict=True)))
    for i, (axis, name) in enumerate(zip(axes, names, strict=False)):
        mine = table[table.variant == name].pivot(index=["minibatches", "staleness"], columns="lr", values="accuracy")
        mine = mine.reindex(index=pd.MultiIndex.from_tuples(regimes), columns=rates)
        rows = [regime(*row) for row in regimes] if i % columns == 0 else []
        image = _cells_of(axis, mine.to_numpy(dtype=float), look, rows, [_power(rate) for rate in rates], narrow)
        axis.set_title(style.label_of(name), fontsize=7.5)
    if alone:
        mine, axis = table.set_index("variant").loc[alone], axes[len(names)]
        where = f"{regime(mine.minibatches.iloc[0], mine.staleness.iloc[0])}, {_power(mine.lr.iloc[0])}"
        _cells_of(axis, mine[["accuracy"]].to_numpy(), look, [style.label_of(name) for name in alone], [where])
        axis.set_title("others, one cell", fontsize=7.5)
    for axis in axes[panels:]:
        axis.set_visible(False)
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.01, format=ticker.PercentFormatter(1, 0))
    bar.set_label("final accuracy\n(white: base models)", fontsize=7)
    figure.supxlabel("learning rate  (× collapsed, – not run)", fontsize=7)
    return figure, table


def _alone(table: pd.DataFrame) -> list[str]:
    """The variants that were trained in one cell, the same for all, if the others have more and these are several."""
    counts = table.groupby("variant").size()
    single = table[table.variant.isin(counts.index[counts == 1])]
    shared = single.groupby(["minibatches", "staleness", "lr"]).variant.apply(ordered)
    most = max(shared, key=len, default=[])
    return most if 1 < len(most) < len(counts) else []


def _cells_of(
    axis: Axes, values: NDArray[np.float64], look: dict, rows: list[str], columns: list[str], narrow: bool = False
) -> AxesImage:
    """One panel of the map: values [regimes, rates], NaN where nothing was run. rows: no labels if empty.

    narrow: the cells have room for their mark below the number alone.
    """
    norm = look["norm"]
    image = axis.imshow(np.ma.masked_invalid(values), **look)
    axis.set_facecolor(style.COLOURS["light"])
    mark = "\n×" if narrow else " ×"
    for (i, j), value in np.ndenumerate(values):
        if not np.isfinite(value):
            axis.text(j, i, "–", ha="center", va="center", fontsize=7, color=style.COLOURS["grey"])
            continue
        dark = abs(value - norm.vcenter) > 0.8 * (norm.vmax - norm.vcenter)
        text = f"{100 * value:.0f}" + (mark if value < COLLAPSED * norm.vcenter else "")
        axis.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_xticks(range(len(columns)), columns, fontsize=6, rotation=90 if len(columns) > 3 else 0)
    axis.set_yticks(range(len(values)), rows or [""] * len(values), fontsize=6)
    axis.grid(False)
    return image


def cells(evidence: Evidence) -> pd.DataFrame:
    """The cells of the map: variant, minibatches, staleness, lr, bases, accuracy, base (its base models' own),
    collapsed, runs and how many of these fell by themselves below `COLLAPSED` of their base model's accuracy."""
    ends = final(evidence)
    known, matrix = scores(evidence.bases[evidence.bases["set"].isin(SETS)])
    before, records = pd.Series(matrix.mean(1), index=known), []
    for (name, k, late, rate), rows in ends.groupby(["variant", "minibatches", "staleness", "lr"]):
        bases, matrix = scores(rows)
        base, accuracy = float(before[bases].mean()), float(matrix.mean())
        of_run = rows.groupby(["run", "base"]).accuracy.mean()
        fallen = of_run < COLLAPSED * before[of_run.index.get_level_values("base")].to_numpy()
        collapsed = accuracy < COLLAPSED * base
        record = (name, int(k), int(late), rate, len(bases), accuracy, base, collapsed, len(of_run), int(fallen.sum()))
        records.append(record)
    columns = ["variant", "minibatches", "staleness", "lr", "bases", "accuracy", "base", "collapsed", "runs", "fallen"]
    return pd.DataFrame(records, columns=columns)


def regime(minibatches: int, staleness: int) -> str:
    """How figures and tables name a regime: K = 8, or K = 8, late 3 for rollouts that are three steps old."""
    return f"K = {minibatches}" + (f", late {staleness}" if staleness else "")


# --- parts ---


def _figure(height: float) -> Figure:
    style.apply_style()
    return style.Shown(figsize=(style.DOUBLE, height))


def _over_bases(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """step, bases, mean, low, high: over base models, each the mean of its runs."""
    means = rows.groupby(["step", "base"])[value].mean().groupby("step")
    records = [(step, len(group), *t_interval(group.astype(float))) for step, group in means]
    return pd.DataFrame(records, columns=["step", "bases", "mean", "low", "high"])


def _line(axis: Axes, rows: pd.DataFrame, x: pd.Series, variant: str, changes: dict | None = None) -> None:
    look = style.variant_style(variant) | {"label": "_", "markersize": 3} | (changes or {})
    axis.plot(x, rows["mean"], **look)
    if variant in BANDED and rows.low.notna().any():
        axis.fill_between(x.astype(float), rows.low, rows.high, color=look["color"], alpha=0.15, lw=0)


def _power(rate: float) -> str:
    """A learning rate in few characters, such as 1.5e−4."""
    digits, _, power = f"{rate:e}".partition("e")
    return f"{float(digits):g}e−{-int(power)}"


def _legend(
    figure: Figure, variants: Iterable[str], title: str = "", fresh: Iterable[str] = (), more: Iterable[dict] = ()
) -> None:
    """One legend above all panels, in rows of at most four. fresh: the variants that are drawn on-policy, too; more:
    the looks of other lines."""
    looks = [style.variant_style(name) for name in ordered(variants)]
    own = [style.variant_style(name) for name in ordered(fresh)]
    looks += [look | _FRESH | {"label": f"{look['label']}, on-policy"} for look in own]
    looks += more
    handles = [figure.axes[0].plot([], [], **look)[0] for look in looks]
    columns = -(-len(looks) // -(-len(looks) // 4))
    place = {"loc": "outside upper center", "ncols": columns, "columnspacing": 1.4}
    figure.legend(handles=handles, title=title or None, title_fontproperties={"size": 8, "weight": "bold"}, **place)
