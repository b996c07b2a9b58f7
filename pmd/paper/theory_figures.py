"""The figures F1 to F4-chain of the theory: for each a function that computes its data and one that draws them.

The first is named *_data, the second *_figure; the second returns the figure and the frame of everything plotted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from pmd.paper.style import COLOURS, DOUBLE, SINGLE, method_style
from pmd.theory.binary import binary_iterates, binary_update, finite_sample_summary
from pmd.theory.chain import chain_summary
from pmd.theory.lambert import lambert_log_ratio

Drawn = tuple[Figure, pd.DataFrame]

_BASELINES = {"PMD-mean": "mean", "KL-PMD": "partition"}
_GUIDE = {"color": COLOURS["grey"], "linestyle": (0, (1, 1.5)), "linewidth": 1.0, "zorder": 1}


def _update_style(update: str) -> dict[str, Any]:
    """PMD-mean as in every figure; KL-PMD, the step that PMD-part estimates, as PMD-part."""
    return method_style("pmd-mean") if update == "PMD-mean" else method_style("pmd-part") | {"label": "KL-PMD"}


def _strengths(values: Sequence[float]) -> dict[float, dict[str, Any]]:
    """A shade and a marker for each λ or τ, darker for smaller: the order survives in greyscale."""
    shades = sns.color_palette("flare_r", len(values)).as_hex()
    return {
        value: {"color": shade, "marker": marker}
        for value, shade, marker in zip(sorted(values), shades, "os^Dv", strict=False)
    }


def _name_panels(panels: Sequence[Axes]) -> None:
    for letter, panel in zip("abcdefghijkl", panels, strict=False):
        panel.set_title(f"({letter}) {panel.get_title(loc='left')}".strip(), loc="left")


# --- F1: the policy ratio ---------------------------------------------------------------------------


def ratio_data(lams: Sequence[float], low: float = -4, high: float = 8, points: int = 121) -> pd.DataFrame:
    """ρ = W(λ e^x)/λ at x = Δ/τ, and the regulariser's curvature 1/ρ + λ at ρ: quantity, lam, x, y."""
    x, rho = np.linspace(low, high, points), np.geomspace(1e-2, 1e2, points)
    parts = []
    for lam in lams:
        ratio = np.exp(lambert_log_ratio(x, lam))
        parts.append(pd.DataFrame({"quantity": "ratio", "lam": lam, "x": x, "y": ratio}))
        parts.append(pd.DataFrame({"quantity": "curvature", "lam": lam, "x": rho, "y": 1 / rho + lam}))
    return pd.concat(parts, ignore_index=True)


def ratio_figure(data: pd.DataFrame) -> Drawn:
    """F1: the policy ratio against Δ/τ for several λ (0 is KL's exponential), the curvature inset."""
    figure, axes = plt.subplots(figsize=(SINGLE, 2.9))
    inset = axes.inset_axes((0.14, 0.66, 0.36, 0.33))
    shades = _strengths([lam for lam in data["lam"].unique() if lam > 0])
    for lam in sorted(data["lam"].unique()):
        style = _update_style("KL-PMD") | {"label": "0 (KL)", "marker": "", "linewidth": 1.6}
        if lam > 0:
            style = shades[lam] | {"label": f"{lam:g}", "linewidth": 1.4}
        for panel, quantity in ((axes, "ratio"), (inset, "curvature")):
            rows = data[(data["quantity"] == quantity) & (data["lam"] == lam)]
            panel.plot(rows["x"], rows["y"], markevery=20 if panel is axes else 40, **style)
    axes.set(yscale="log", xlabel=r"advantage over temperature, $\Delta/\tau$", ylabel=r"policy ratio $\rho$")
    axes.legend(title=r"weight $\lambda$ of $\chi^2$", loc="lower right")
    inset.set(xscale="log", yscale="log")
    inset.set_xlabel(r"$\rho$", labelpad=0)
    inset.set_title(r"curvature $1/\rho+\lambda$", fontsize=7, pad=2, loc="center")
    inset.set(xticks=[0.01, 1, 100], yticks=[0.01, 1, 100])
    return figure, data


# --- F2: the update as a function of p ---------------------------------------------------------------------


def update_data(taus: Sequence[float], low: float = 1e-4, points: int = 97) -> pd.DataFrame:
    """λ, ρ₁ and ρ₀ of both updates on a grid of success probabilities p: update, tau, p, lam, rho1, rho0."""
    p = np.geomspace(low, 0.999, points)
    parts = []
    for update, baseline in _BASELINES.items():
        for tau in taus:
            step = binary_update(p, tau, baseline)
            ratios = {"rho1": np.exp(step.log_rho1), "rho0": np.exp(step.log_rho0)}
            parts.append(pd.DataFrame({"update": update, "tau": tau, "p": p, "lam": step.lam, **ratios}))
    return pd.concat(parts, ignore_index=True)


def update_figure(data: pd.DataFrame) -> Drawn:
    """F2: λ, ρ₁ and ρ₀ against p for several τ, PMD-mean solid and KL-PMD dashed, the asymptotes dotted."""
    figure, panels = plt.subplots(1, 3, figsize=(DOUBLE, 2.5))
    shades = _strengths(data["tau"].unique())
    for (update, tau), rows in data.groupby(["update", "tau"]):
        mean = update == "PMD-mean"
        style = {
            "color": shades[tau]["color"],
            "linestyle": "-" if mean else _update_style(update)["linestyle"],
        }
        style |= {"marker": shades[tau]["marker"] if mean else "", "linewidth": 1.6 if mean else 1.2}
        for panel, column in zip(panels, ("lam", "rho1", "rho0"), strict=True):
            if mean or column != "lam":
                panel.plot(rows["p"], rows[column], markevery=16, **style)
    smallest = data["tau"].min()
    p = np.sort(data["p"].unique())
    rare = p[p < 0.3 * smallest]
    panels[0].plot(p, p * (1 - p) / smallest, **_GUIDE)
    panels[1].plot(rare, (rare * smallest) ** -0.5, **_GUIDE)
    panels[2].plot(p, np.exp(-p / smallest), **_GUIDE)
    note = {"fontsize": 7, "color": "#444444"}
    panels[0].text(1.8e-4, 2.2e-3, r"$p(1-p)/\tau$", rotation=36, rotation_mode="anchor", **note)
    panels[1].text(1.2e-4, 8.5e2, r"$(p\tau)^{-1/2}$", rotation=-21, rotation_mode="anchor", **note)
    panels[2].text(1.5e-2, 1.6e-2, r"$e^{-p/\tau}$", **note)
    for panel, title in zip(panels, (r"$\lambda$", r"$\rho_1$ of successes", r"$\rho_0$ of failures"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel=r"success probability $p$", title=title)
    panels[2].set_ylim(1e-4, 2)
    handles = [Line2D([], [], label=rf"$\tau={tau:g}$", **style) for tau, style in shades.items()]
    lines = [
        Line2D([], [], color="black", label="PMD-mean", linewidth=1.6),
        Line2D([], [], color="black", label="KL-PMD", linestyle=_update_style("KL-PMD")["linestyle"]),
        Line2D([], [], label="asymptote", **_GUIDE),
    ]
    figure.legend(handles=[*handles, *lines], loc="outside lower center", ncols=len(handles) + 3)
    _name_panels(panels)
    return figure, data


# --- F3: convergence -----------------------------------------------------------------------------------


def convergence_data(steps: dict[float, int], starts: Sequence[float]) -> pd.DataFrame:
    """Iterates of both updates: update, tau, p0, t, p, error = 1 − p; `steps` of each τ."""
    parts = []
    for update, baseline in _BASELINES.items():
        for tau, count in steps.items():
            ps, errors = binary_iterates(np.array(starts), tau, count, baseline)
            for i, start in enumerate(starts):
                curve = {"t": np.arange(count + 1), "p": ps[:, i], "error": errors[:, i]}
                parts.append(pd.DataFrame({"update": update, "tau": tau, "p0": start, **curve}))
    return pd.concat(parts, ignore_index=True)


def convergence_figure(data: pd.DataFrame) -> Drawn:
    """F3: p_t (top) and log(1 − p_t) (bottom) against t, a column per τ, the rate e^{−t/τ} dotted."""
    taus, starts = sorted(data["tau"].unique()), sorted(data["p0"].unique())
    figure, panels = plt.subplots(2, len(taus), figsize=(DOUBLE, 3.7), sharex="col", sharey="row")
    fills = dict(zip(starts, ("full", "none"), strict=True))
    for column, tau in enumerate(taus):
        for (update, start), rows in data[data["tau"] == tau].groupby(["update", "p0"]):
            every = max(1, (len(rows) - 1) // 8)
            style = _update_style(update) | {"fillstyle": fills[start], "markevery": every, "linewidth": 1.3}
            panels[0, column].plot(rows["t"], rows["p"], **style)
            panels[1, column].plot(rows["t"], rows["error"], **style)
        last = int(data.loc[data["tau"] == tau, "t"].max())
        t = np.array([0.0, last])
        panels[1, column].plot(t, 0.3 * np.exp(-t / tau), **_GUIDE)
        panels[0, column].set_title(rf"$\tau={tau:g}$", loc="left")
        panels[1, column].set(yscale="log", ylim=(1e-12, 3), xlabel=r"update $t$", xlim=(-0.02 * last, last))
    panels[0, 0].set_ylabel(r"$p_t$")
    panels[1, 0].set_ylabel(r"$1-p_t$")
    handles = [
        Line2D(
            [],
            [],
            **(_update_style(update) | {"fillstyle": fills[start], "label": f"{update}, $p_0={start:g}$"}),
        )
        for update in _BASELINES
        for start in starts
    ]
    handles.append(Line2D([], [], label=r"rate $e^{-t/\tau}$", **_GUIDE))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.2)
    _name_panels(panels.ravel())
    return figure, data


# --- F4: finite samples ----------------------------------------------------------------------------------


def finite_sample_data(settings: Sequence[tuple[float, float]], sizes: Sequence[int]) -> pd.DataFrame:
    """`finite_sample_summary` for each (p, τ), estimator and n; *_exact is the value for n → ∞."""
    rows = []
    for method, estimator in {"pmd-mean": "mean", "pmd-part": "partition"}.items():
        for p, tau in settings:
            step = binary_update(p, tau, estimator)
            kl = -(p * step.log_rho1 + (1 - p) * step.log_rho0)
            exact = {"p_next_exact": float(step.p_next), "kl_exact": float(kl)}
            for n in sizes:
                summary = finite_sample_summary(p, tau, n, estimator)
                rows.append({"method": method, "p": p, "tau": tau, "n": n} | summary | exact)
    return pd.DataFrame(rows)


def finite_sample_figure(data: pd.DataFrame) -> Drawn:
    """F4 against n, a column per (p, τ): P(λ < 0); then median and 10 to 90 % of p′ and of KL to π_{t+1}."""
    settings = list(data[["p", "tau"]].drop_duplicates().itertuples(index=False, name=None))
    sizes = sorted(data["n"].unique())
    figure, panels = plt.subplots(3, len(settings), figsize=(DOUBLE, 5.2), sharex=True, sharey="row", squeeze=False)
    hollow = {"fillstyle": "none", "linewidth": 0.8, "markersize": 3}
    for (p, tau), top, *spreads in zip(settings, *panels, strict=True):
        for method, dodge in (("pmd-part", 0.14), ("pmd-mean", -0.14)):
            rows = data[(data["p"] == p) & (data["tau"] == tau) & (data["method"] == method)].sort_values("n")
            x, style = np.arange(len(rows)), method_style(method) | {"linewidth": 1.4}
            top.plot(x, rows["p_negative"], **style)
            top.plot(x, rows["p_none"], **style | hollow)
            for panel, name in zip(spreads, ("p_next", "kl"), strict=True):
                line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.8}
                panel.axhline(rows[f"{name}_exact"].iloc[0], **line)
                middle = rows[f"{name}_50"]
                reach = (middle - rows[f"{name}_10"], rows[f"{name}_90"] - middle)
                panel.errorbar(x + dodge, middle, yerr=reach, **style | {"linestyle": "none"})
        top.set_title(rf"$p={p:g}$, $\tau={tau:g}$", loc="left")
        spreads[-1].set_xticks(range(len(sizes)), [f"{n}" for n in sizes])
        spreads[-1].set_xlabel(r"rollouts per prompt $n$")
    labels = ("probability", r"$p_{t+1}$ after the update", r"KL$(\pi_t\Vert\pi_{t+1})$, nats")
    for panel, label in zip(panels[:, 0], labels, strict=True):
        panel.set_ylabel(label)
    handles = []
    for style in (method_style("pmd-mean"), method_style("pmd-part")):
        handles.append(Line2D([], [], **style | {"label": style["label"] + r": $\lambda<0$"}))
        handles.append(Line2D([], [], **style | hollow | {"label": style["label"] + ": no solution"}))
    low, high = data[["kl_10", "kl_exact"]].min().min(), data[["kl_90", "kl_exact"]].max().max()
    panels[2, 0].set(yscale="log", ylim=10 ** np.array([np.floor(np.log10(low)), np.ceil(np.log10(high))]))
    panels[2, 0].yaxis.set_minor_formatter(NullFormatter())
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    _name_panels(panels.ravel())
    return figure, data


# --- F4-chain: repeated updates from finite samples -------------------------------------------------------


def chain_data(taus: Sequence[float], sizes: Sequence[int], p0: float, steps: int) -> pd.DataFrame:
    """`chain_summary` after `steps` updates from p0 for each estimator, τ and n."""
    return pd.DataFrame(
        {"method": method, "p0": p0, "steps": steps, "tau": tau, "n": n} | chain_summary(p0, tau, n, steps, estimator)
        for method, estimator in {"pmd-mean": "mean", "pmd-part": "partition"}.items()
        for tau in taus
        for n in sizes
    )


def chain_figure(data: pd.DataFrame) -> Drawn:
    """F4-chain against n, a column per τ: median to worst decile of p after T updates; P(p < ½); P(a surplus)."""
    taus, sizes = sorted(data["tau"].unique()), sorted(data["n"].unique())
    p0, steps = data["p0"].iloc[0], data["steps"].iloc[0]
    figure, panels = plt.subplots(3, len(taus), figsize=(DOUBLE, 5.0), sharex=True, sharey="row", squeeze=False)
    x = np.arange(len(sizes))
    for tau, (top, middle, bottom) in zip(taus, panels.T, strict=True):
        top.axhline(p0, **_GUIDE)
        for method, dodge in (("pmd-part", 0.12), ("pmd-mean", -0.12)):
            rows = data[(data["tau"] == tau) & (data["method"] == method)].sort_values("n")
            style = method_style(method) | {"linewidth": 1.4}
            reach = (rows["median"] - rows["worst_decile"], np.zeros(len(rows)))
            top.errorbar(x + dodge, rows["median"], yerr=reach, **style | {"linestyle": "none"})
            middle.plot(x + dodge, rows["unsolved"], **style)
            bottom.plot(x + dodge, rows["surplus"], **style)
        middle.plot(x, rows["unseen"], **_GUIDE)
        top.set_title(rf"$\tau={tau:g}$", loc="left")
        bottom.set_xticks(x, [f"{n}" for n in sizes])
        bottom.set_xlabel(r"rollouts per prompt $n$")
    labels = (f"$p_{{{steps}}}$, median\nto worst decile", f"$P(p_{{{steps}}}<1/2)$", "$P$(surplus > 10 %)")
    for panel, label in zip(panels[:, 0], labels, strict=True):
        panel.set(ylabel=label, ylim=(-0.04, 1.04))
    handles = [Line2D([], [], **method_style(method)) for method in ("pmd-mean", "pmd-part")]
    handles.append(Line2D([], [], label=f"top: $p_0={p0:g}$; middle: no success seen", **_GUIDE))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    _name_panels(panels.ravel())
    return figure, data


# --- the explorer: one prompt, moved by sliders --------------------------------------------------------


def explorer_figure(p: float, tau: float, n: int) -> Figure:
    """One prompt with success probability p: its ratio curve, λ among other p, and p′ from n rollouts."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(DOUBLE, 2.6))
    grid = np.geomspace(min(1e-3, p), 0.999, 80)
    sizes = sorted({2, 4, 8, 16, 32, 64, n})
    samples = finite_sample_data([(p, tau)], sizes)
    for update, method in (("PMD-mean", "pmd-mean"), ("KL-PMD", "pmd-part")):
        style = _update_style(update)
        step = binary_update(p, tau, _BASELINES[update])
        x = np.linspace(-p, 1 - p, 80) / tau
        shift = x[-1] - step.log_rho1 - step.lam * np.exp(step.log_rho1)  # τ log Z − E r over τ, or 0
        left.plot(x, np.exp(lambert_log_ratio(x - shift, step.lam)), **style | {"marker": ""})
        ends = np.exp([step.log_rho0, step.log_rho1])
        left.plot(x[[0, -1]], ends, color=style["color"], marker=style["marker"], linestyle="none")
        rows = samples[samples["method"] == method]
        reach = (rows["p_next_50"] - rows["p_next_10"], rows["p_next_90"] - rows["p_next_50"])
        dodge = 0.95 if update == "PMD-mean" else 1.05
        right.errorbar(rows["n"] * dodge, rows["p_next_50"], yerr=reach, **style)
    lam = binary_update(p, tau).lam
    middle.plot(grid, binary_update(grid, tau).lam, color=COLOURS["black"])
    middle.plot([p], [lam], **method_style("pmd-mean") | {"linestyle": "none", "markersize": 6})
    right.axvline(n, **_GUIDE)
    left.set(yscale="log", xlabel=r"$\Delta/\tau$", title=r"policy ratio $\rho$")
    middle.set(xscale="log", yscale="log", xlabel="$p$", title=rf"$\lambda(p)$; here {lam:.3g}")
    right.set(xscale="log", xlabel="rollouts $n$", title="$p_{t+1}$, median and 10–90 %", ylim=(-0.03, 1.03))
    right.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
    right.set_xticks([], minor=True)
    mean, part = samples.loc[samples["n"] == n, "p_negative"]
    chances = rf"$P(\lambda<0)$ is {mean:.2f} for PMD-mean and {part:.2f} for PMD-part"
    figure.suptitle(rf"$\tau={tau:.3g}$, $p={p:.3g}$, $n={n}$: {chances}", fontsize=8)
    left.legend(loc="lower right")
    return figure
