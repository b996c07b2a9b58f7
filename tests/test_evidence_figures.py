"""The figures of the law and of finite samples: the numbers that they plot, by hand, and no warning."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import pandas as pd
import pytest

from pmd.evaluators.intervals import t_interval
from pmd.paper import finite_figures, law_figures

LAW = pd.DataFrame(
    [
        (base, 1, 0.5, norm, how, step, name, f"rl-{i}", p, lam + base / 10, 0.9, -0.8, 1.0, -1.0 + 0.1 * i, lam)
        for base in (1, 2)
        for norm in ("constant", "length")
        for how, step in (("practice", 8), ("solved", 1), ("solved", 4))
        for name in ("batch", "held out")
        for i, (p, lam) in enumerate([(0.25, 0.2), (0.5, 0.3), (1.0, 0.0)])
    ],
    columns=["base", "seed", "tau", "normalise", "how", "step", "set", "prompt", "p", "minus_mean_s", "s_success",
             "s_failure", "s1", "s0", "lam"],
)  # fmt: skip

FINITE = pd.DataFrame(
    [
        (base, 1, n, 0.1, tau_b, name, f"{name}-{i}", 4, 1, 1 + i + (name == "same") * base, 0.5 * base)
        for base in (1, 2)
        for n in (4, 8)
        for tau_b in (0.1, math.inf, -0.4, 1.0)
        for name in ("same", "other")
        for i in range(2)
    ],
    columns=["base", "seed", "n", "tau", "tau_b", "set", "prompt", "samples", "before", "after", "lam"],
)


def draw(figure) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="svg")


def test_the_law_plots_prompts_with_a_signal_and_their_distance_from_theory():
    figure, plotted = law_figures.law(LAW)
    draw(figure)
    dots = plotted[(plotted["panel"] == "lambda")]
    assert sorted(dots["y"]) == pytest.approx([0.3, 0.4, 0.4, 0.5])
    assert set(dots["prompt"]) == {"rl-0", "rl-1"}
    errors = plotted[(plotted["panel"] == "errors") & (plotted["x"] == 4) & (plotted["set"] == "batch")]
    found = errors.set_index("quantity")
    assert tuple(found.loc["minus_mean_s", ["y", "low", "high"]]) == pytest.approx(
        tuple(np.exp(t_interval(np.log([0.1, 0.2]))))  # the axis is logarithmic
    )
    # |0.9 − 1| and |−0.8 + 1|, |−0.8 + 0.9|: the mean over both kinds and both prompts, the same for both base models
    assert found.loc["s", "y"] == pytest.approx((0.1 + 0.2 + 0.1 + 0.1) / 4)
    curve = plotted[plotted["quantity"] == "failures, theory"]
    assert curve["y"].max() < 0


def test_finite_plots_gains_in_points_from_partition_to_below_the_mean():
    figure, plotted = finite_figures.finite(FINITE)
    draw(figure)
    rows = plotted[(plotted["n"] == 8) & (plotted["tau_b"] == -0.4)].set_index("panel")
    # gains of (i + base)/4 on the same prompts and i/4 on others, with i = 0, 1
    assert tuple(rows.loc["same", ["mean", "low", "high"]]) == pytest.approx(t_interval([37.5, 62.5]))
    assert rows.loc["other", "mean"] == pytest.approx(12.5)
    assert rows.loc["per nat", "mean"] == pytest.approx((37.5 / 0.5 + 62.5 / 1.0) / 2)
    assert list(plotted["tau_b"][:4]) == [0.1, 1.0, math.inf, -0.4]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.1\npart", "1", "∞\nmean", "−0.4"]


def test_a_gain_per_nat_is_left_out_where_hardly_anything_moved():
    """Base model 2 moves by 0.02 nats: its quotient would be of noise, so the point of both is absent."""
    frame = FINITE[FINITE["n"] == 4].copy()
    frame.loc[(frame["base"] == 2) & (frame["tau_b"] == 1.0), "lam"] = 0.02
    figure, plotted = finite_figures.finite(frame)
    draw(figure)
    point = plotted[plotted["panel"] == "per nat"].set_index("tau_b")["mean"]
    assert np.isnan(point[1.0])
    assert point.drop(1.0).notna().all()
    assert plotted[plotted["panel"] == "same"]["mean"].notna().all()


def test_an_exact_prediction_is_drawn_at_the_bottom_of_the_logarithmic_axis():
    exact = LAW.assign(minus_mean_s=LAW["lam"])
    figure, plotted = law_figures.law(exact)
    draw(figure)
    errors = plotted[(plotted["panel"] == "errors") & (plotted["quantity"] == "minus_mean_s")]
    assert errors["y"].tolist() == pytest.approx([law_figures.TINY] * len(errors))
