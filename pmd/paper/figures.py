"""Figures F5 to F8: each is a function from the frames of logs.py to a figure and the frame of all numbers it plots.

`style.save` writes both side by side. Lines are means over seeds; bands are 95 % intervals over seeds by Student's t
(`intervals.t_interval`), absent where there is one seed. F1 to F4 are those of the theory, in theory_figures.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from pmd.evaluators import intervals
from pmd.paper import logs, style
from pmd.paper.logs import Logs

PROMINENT = ("pmd-mean", "pmd-part", "grpo", "gspo")
"""The methods that the paper compares: their lines are thick, those of the others thin."""

BANDED = ("pmd-mean", "grpo")
"""The methods whose bands are drawn. Bands of all methods would hide every curve; the CSV has all of them."""

_REPORTED_SETS = {"": "overall", "aime2024_": "AIME 2024", "aime2025_": "AIME 2025"}
_METRICS = {"avg": "avg@{k}", "best": "best@{k} (resampled)", "maj": "maj@{k}"}


def training_curves(data: Logs) -> tuple[Figure, pd.DataFrame]:
    """F5: the twelve panels of the reference code's 30B figure, for our runs of the main matrix.

    Plotted data: panel, method, step, seeds, mean, low, high. Accuracies and rewards are shares in [0, 1],
    response length is in tokens, entropy in nats a token.
    """
    main = data.evals[data.evals.axis == "main"]
    k = int(main.k.max())
    steps = data.steps[data.steps.axis == "main"]
    panels = {
        "training reward": _over_seeds(steps, "reward", (0, 1)),
        "response length [tokens]": _over_seeds(steps, "length"),
        "entropy [nats]": _over_seeds(steps, "entropy"),
    }
    for metric, label in _METRICS.items():
        for name in ("overall", *logs.SETS):
            rows = main[main.set == name]
            panels[f"{label.format(k=k)}, {name}"] = _over_seeds(rows, metric, (0, 1))
    figure, axes = _twelve_panels(panels, main.method)
    for axis, rows in zip(axes, panels.values(), strict=True):
        _curves(axis, rows, "step")
    plotted = pd.concat([rows.assign(panel=panel) for panel, rows in panels.items()], ignore_index=True)
    return figure, plotted[["panel", "method", "step", "seeds", "mean", "low", "high"]]


def reported_curves(reported: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """F5-reported: the same twelve panels as the paper's authors report them for Qwen3-30B-A3B.

    reported: columns panel, method, step, value (results/reference). Plotted data: the same columns, panels
    renamed as in F5. Accuracies are shares in [0, 1]; the training reward is theirs, in {−1, +1}.
    """
    names = {
        "training_reward": "training reward (±1)",
        "response_length": "response length [tokens]",
        "entropy": "entropy [nats]",
    }
    for metric, label in _METRICS.items():
        for prefix, title in _REPORTED_SETS.items():
            names[f"{prefix}{metric}@32"] = f"{label.format(k=32)}, {title}"
    plotted = reported.assign(panel=reported.panel.map(names), method=reported.method.str.lower())
    plotted = plotted.rename(columns={"value": "mean"}).assign(step=plotted.step.abs())  # −0.0 was read off
    panels = {panel: plotted[plotted.panel == panel] for panel in names.values()}
    source = "As reported by the paper's authors for Qwen3-30B-A3B; not runs of this repository"
    figure, axes = _twelve_panels(panels, plotted.method, source)
    for axis, rows in zip(axes, panels.values(), strict=True):
        _curves(axis, rows, "step")
    return figure, plotted.rename(columns={"mean": "value"})


def time_efficiency(data: Logs) -> tuple[Figure, pd.DataFrame]:
    """F6: overall accuracy against seconds of training and against generated tokens, small K above large K.

    Plotted data: regime, method, step, seeds, seconds, tokens (both cumulative, means over seeds), mean, low,
    high (overall avg@k in [0, 1]).
    """
    costs = logs.clock(data)
    costs = costs[costs.set == "overall"]
    regimes = logs.regimes(data)
    figure = _figure(2.3 * len(regimes) + 0.4)
    axes = figure.subplots(len(regimes), 2, squeeze=False, sharey="row")
    plotted, units = [], ("training time [s]", "generated tokens")
    for row, (label, runs) in zip(axes, regimes.items(), strict=True):
        mine = costs[costs.run.isin(runs.run)]
        means = mine.groupby(["method", "step"], as_index=False)[["seconds", "tokens"]].mean()
        curve = _over_seeds(mine, "avg", (0, 1)).merge(means, on=["method", "step"])
        for axis, cost, unit in zip(row, ("seconds", "tokens"), units, strict=True):
            _curves(axis, curve, cost)
            axis.set(xlabel=unit, title=label)
        row[1].xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        row[0].set_ylabel(f"overall avg@{mine.k.max()}")
        plotted.append(curve.assign(regime=label))
    _legend(figure, costs[costs.run.isin(pd.concat(regimes.values()).run)].method)
    columns = ["regime", "method", "step", "seeds", "seconds", "tokens", "mean", "low", "high"]
    return figure, pd.concat(plotted, ignore_index=True)[columns]


def implicit_regulariser(data: Logs) -> tuple[Figure, pd.DataFrame]:
    """F7: −mean(s) measured after each update against the λ of theory; KL and χ² of every method's step.

    λ = KL(π_t‖π_{t+1}) for the population solution of PMD-mean, so −mean(s) over the rollouts estimates λ.
    Plotted data: panel ("points": one row a run and step, x = λ predicted, mean = λ measured; "lambda",
    "lambda_theory", "kl", "chi2": means over seeds), method, seed, step, x, mean, low, high.
    """
    steps = data.steps[data.steps.axis == "main"]
    known = steps[steps.lambda_theory.notna()]
    points = known[["method", "seed", "step"]].assign(panel="points", x=known.lambda_theory, mean=known["lambda"])
    series = {
        name: _over_seeds(rows, name).assign(panel=name)
        for name, rows in {"lambda": known, "lambda_theory": known, "kl": steps, "chi2": steps}.items()
    }
    figure = _figure(5.2)
    axes = figure.subplots(2, 2).ravel()
    for method, rows in points.groupby("method"):
        look = style.method_style(method)
        axes[0].plot(rows.x, rows["mean"], look["marker"], color=look["color"], ms=2.5, mew=0, alpha=0.5)
    _identity(axes[0], points)
    axes[0].set(title="λ, measured against predicted", xlabel="λ predicted", ylabel="−mean(s) measured")
    _curves(axes[1], series["lambda"], "step")
    for method, rows in series["lambda_theory"].groupby("method"):
        look = style.method_style(method)
        axes[1].plot(rows.step, rows["mean"], color=look["color"], lw=0.8, ls=(0, (1, 1)))
    axes[1].set(title="λ: measured (line), predicted (thin dots)", xlabel="training step", ylabel="λ")
    for axis, name, label in ((axes[2], "kl", "KL"), (axes[3], "chi2", "χ²")):
        _curves(axis, series[name], "step")
        title = rf"{label}$(\pi_{{t+1}}\Vert\pi_t)$ of one step"
        axis.set(title=title, xlabel="training step", ylabel=f"{label} [nats]" if name == "kl" else label)
    for axis in axes[:2]:  # the measured λ may be a hundredth of the predicted one, and below 0
        axis.set_yscale("symlog", linthresh=0.01)
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    axes[0].set_xscale("symlog", linthresh=0.01)  # the same transform, so that the line of equality is one
    axes[0].xaxis.set_minor_locator(ticker.NullLocator())
    for axis, name in zip(axes[2:], ("kl", "chi2"), strict=True):
        _fit(axis, series[name]["mean"])
    _legend(figure, steps.method)
    plotted = pd.concat([points, *series.values()], ignore_index=True)
    return figure, plotted[["panel", "method", "seed", "step", "x", "mean", "low", "high"]]


def ablations(data: Logs, generator: np.random.Generator) -> tuple[Figure, pd.DataFrame]:
    """F8: final overall accuracy against τ, group size n, and staleness K at a fixed sample budget.

    Intervals are clustered by seed and prompt (`intervals.interval`, drawn from `generator`). Plotted data: axis,
    method, x, seeds, mean, low, high. Axes without runs are left out; no ablation at all raises ValueError.
    """
    labels = {
        "tau": r"regularisation $\tau$",
        "group": "rollouts a prompt $n$",
        "stale": "minibatches a batch $K$",
    }
    tables = {axis: _ablated(data, axis, generator) for axis in labels if (data.runs.axis == axis).any()}
    if not tables:
        raise ValueError("ablations: no run of the axes tau, group or stale; execute the ablations notebook first")
    figure = _figure(2.8)
    axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axes_, (axis, rows) in zip(axes, tables.items(), strict=True):
        methods = logs.ordered(rows.method)
        apart = max(2.0, rows.x.max() / rows.x.min()) ** 0.015
        for index, method in enumerate(methods):
            mine, look = rows[rows.method == method], style.method_style(method)
            x = mine.x * apart ** (index - (len(methods) - 1) / 2)  # so that no bar hides another
            error = np.clip([mine["mean"] - mine.low, mine.high - mine["mean"]], 0, None)
            axes_.errorbar(x, mine["mean"], error, capsize=1.5, elinewidth=0.7, **look | {"markersize": 4})
        axes_.set_xscale("log")
        axes_.minorticks_off()
        axes_.set_xticks(sorted(set(rows.x)), [f"{x:g}" for x in sorted(set(rows.x))])
        axes_.set_xlabel(labels[axis])
    axes[0].set_ylabel(f"overall avg@{data.evals.k.max()}, last step")
    _legend(figure, pd.concat(tables.values()).method)
    plotted = pd.concat([rows.assign(axis=axis) for axis, rows in tables.items()], ignore_index=True)
    return figure, plotted[["axis", "method", "x", "seeds", "mean", "low", "high"]]


# --- parts ---


def _figure(height: float) -> Figure:
    style.apply_style()
    return Figure(figsize=(style.DOUBLE, height))


def _over_seeds(rows: pd.DataFrame, value: str, bounds: tuple[float, float] = (-np.inf, np.inf)) -> pd.DataFrame:
    """The mean and the t interval of `value` over the seeds, for each method and step; intervals end at `bounds`."""
    records = []
    for (method, step), group in rows.groupby(["method", "step"]):
        mean, low, high = intervals.t_interval(group[value].astype(float))
        low, high = np.clip([low, high] if np.isfinite(high) else [np.nan, np.nan], *bounds)
        records.append((method, step, len(group), mean, low, high))
    return pd.DataFrame(records, columns=["method", "step", "seeds", "mean", "low", "high"])


def _curves(axes: Axes, rows: pd.DataFrame, x: str) -> None:
    """Draw a line for each method over column `x`, with a band where `rows` has low and high."""
    methods = logs.ordered(rows.method)
    if x == "step":
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=7))
    for index, method in enumerate(methods):
        mine, look = rows[rows.method == method].sort_values(x), style.method_style(method)
        look |= {"label": "_", "markersize": 3, "markeredgewidth": 0}
        if method not in PROMINENT:
            look |= {"linewidth": 0.8, "markersize": 2.5, "alpha": 0.85, "zorder": 1.5}
        every = max(1, len(mine) // 6)
        axes.plot(mine[x], mine["mean"], markevery=(index * every // len(methods), every), **look)
        if method in BANDED and "low" in mine and mine.low.notna().any():
            axes.fill_between(mine[x].astype(float), mine.low, mine.high, color=look["color"], alpha=0.18, lw=0)


def _legend(figure: Figure, methods: Iterable[str], title: str = "") -> None:
    """One legend above all panels, in rows of at most five."""
    shown = logs.ordered(methods)
    axes = figure.axes[0]
    handles = []
    for method in shown:
        look = style.method_style(method)
        if method not in PROMINENT:
            look |= {"linewidth": 0.8}
        handles += axes.plot([], [], **look)
    columns = -(-len(shown) // -(-len(shown) // 5))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=columns,
        columnspacing=1.4,
        title=title or None,
        title_fontproperties={"size": 8, "weight": "bold"},
    )


def _twelve_panels(
    panels: dict[str, pd.DataFrame], methods: Iterable[str], title: str = ""
) -> tuple[Figure, np.ndarray]:
    figure = _figure(7.6)
    axes = figure.subplots(4, 3, sharex=True).ravel()
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel)
    for axis in axes[9:]:
        axis.set_xlabel("training step")
    _legend(figure, methods, title)
    return figure, axes


def _fit(axes: Axes, values: pd.Series) -> None:
    """Scale the y axis to all but the extreme `values`, logarithmically if they are positive and span a decade.

    An estimate of χ² may be wrong by many orders of magnitude once the policy has moved far from the one that sampled
    its batch, and one such value would hide all others.
    """
    low, high = values.quantile([0.02, 0.98])
    if (values > 0).all() and high > 10 * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 3, high * 3)
        if high < 1000 * low:
            _plain_ticks(axes.yaxis)
    elif values.max() > 10 * high > 0:
        axes.set_ylim(top=3 * high)


def _plain_ticks(axis: Axis) -> None:
    """Label 1, 2 and 5 of every decade as plain numbers."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def _identity(axes: Axes, points: pd.DataFrame) -> None:
    """Draw the line where prediction and measurement agree; the axes become logarithmic if all values are positive."""
    values = pd.concat([points.x, points["mean"]])
    if values.empty:
        return
    if (values > 0).all():
        axes.set(xscale="log", yscale="log")
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
    ends = [values.min(), values.max()]
    axes.plot(ends, ends, color=style.COLOURS["black"], lw=0.8, zorder=1)
    axes.annotate("equal", (ends[1], ends[1]), fontsize=7, ha="right", va="bottom")


def _ablated(data: Logs, axis: str, generator: np.random.Generator) -> pd.DataFrame:
    """The final accuracy, pooled over both test sets, for each method and value x of an ablation."""
    runs, final = logs.ablation(data, axis), logs.last(data.evals)
    records = []
    for (method, x), group in runs.groupby(["method", "x"]):
        mine = final[final.run.isin(group.run)]
        sets = [logs.matrix(mine[mine.set == name], "avg") for name in logs.SETS]
        mean, low, high = intervals.interval(sets, generator)
        records.append((method, x, len(group), mean, *np.clip([low, high], 0, 1)))
    return pd.DataFrame(records, columns=["method", "x", "seeds", "mean", "low", "high"])
