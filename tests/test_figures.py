"""What the figures plot, against values computed by hand; what they say of themselves; no warning, ever."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest

from pmd.evaluators import intervals
from pmd.files import ROOT
from pmd.methods import METHODS as REGISTERED
from pmd.methods import Method
from pmd.paper import figures, logs, style, tables
from tests.synthetic import METHODS, write_preset, write_run


def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "toy"
    write_preset(directory, METHODS[:3], seeds=3, steps=6, every=3, problems=5, stale=(8, 16))
    return logs.load(directory)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "smoke"
    write_run(directory / "train/grpo/seed-0", "grpo", 0, steps=1, every=1, problems=2)
    return logs.load(directory)


@pytest.fixture(scope="module")
def reported():
    return pd.read_csv(ROOT / "results/reference/reported_30b_curves.csv")


def draw(figure):
    """Render as `style.save` does; any warning fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="svg")


def test_f5_plots_means_and_t_intervals_over_seeds_in_twelve_panels(data):
    figure, plotted = figures.training_curves(data)
    assert len(figure.axes) == 12
    assert plotted.panel.nunique() == 12
    assert set(plotted.method) == set(METHODS[:3])
    rows = data.evals[(data.evals.axis == "main") & (data.evals.set == "ood") & (data.evals.step == 3)]
    accuracy = [np.mean(correct) / 32 for correct in rows[rows.method == "grpo"].correct]
    mine = plotted.query("panel == 'avg@32, ood' and method == 'grpo' and step == 3").iloc[0]
    assert mine.seeds == 3
    assert (mine["mean"], mine.low, mine.high) == pytest.approx(intervals.t_interval(accuracy))
    entropy = data.steps.query("axis == 'main' and method == 'pmd-mean' and step == 2").entropy
    mine = plotted.query("panel == 'entropy [nats]' and method == 'pmd-mean' and step == 2").iloc[0]
    assert mine["mean"] == pytest.approx(entropy.mean())
    draw(figure)


def test_f5_draws_the_plotted_means_and_says_best_is_resampled(data):
    figure, plotted = figures.training_curves(data)
    axes = {axis.get_title(loc="left"): axis for axis in figure.axes}
    assert "best@32 (resampled), overall" in axes
    panel = plotted.query("panel == 'maj@32, test' and method == 'pmd-part'")
    drawn = [line.get_ydata().tolist() for line in axes["maj@32, test"].lines]
    assert panel["mean"].tolist() in drawn
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["PMD-mean", "PMD-part", "GRPO"]


def test_bands_of_shares_stay_within_their_range(data):
    _, plotted = figures.training_curves(data)
    shares = plotted[plotted.panel.str.contains("@|reward")].dropna()
    assert shares.low.min() >= 0
    assert shares.high.max() <= 1


def test_the_reported_curves_are_redrawn_as_they_are_and_named_the_papers(reported):
    figure, plotted = figures.reported_curves(reported)
    assert len(figure.axes) == 12
    assert len(plotted) == len(reported)
    at = "panel == 'avg@32, overall' and method == 'pmd-mean' and step == 290"
    assert plotted.query(at).value.item() == 0.43995
    assert plotted.value.sum() == pytest.approx(reported.value.sum())
    assert "not runs of this repository" in figure.legends[0].get_title().get_text()
    draw(figure)


def test_f6_puts_accuracy_at_the_mean_cost_of_each_evaluation(data):
    figure, plotted = figures.time_efficiency(data)
    assert set(plotted.regime) == {"K = 8", "K = 16"}
    assert len(figure.axes) == 4
    large = plotted.query("regime == 'K = 16' and method == 'grpo'").sort_values("step")
    assert large.step.tolist() == [0, 1, 2, 3]
    steps = data.steps[data.steps.run.str.startswith("ablate/stale/grpo-16/") & (data.steps.step == 3)]
    assert large.seconds.tolist()[0] == 0
    assert large.seconds.tolist()[3] == pytest.approx(steps.wall_s.mean())
    assert large.tokens.tolist() == [0, 20 * 1024 * 1, 20 * 1024 * 2, 20 * 1024 * 3]
    draw(figure)


def test_f7_sets_measured_against_predicted_only_where_theory_predicts(data):
    figure, plotted = figures.implicit_regulariser(data)
    points = plotted[plotted.panel == "points"]
    assert set(points.method) == {"pmd-mean"}
    assert len(points) == 3 * 6
    row = data.steps.query("run == 'train/pmd-mean/seed-2' and step == 4").iloc[0]
    mine = points.query("seed == 2 and step == 4").iloc[0]
    assert (mine.x, mine["mean"]) == (row.lambda_theory, row["lambda"])
    assert set(plotted[plotted.panel == "chi2"].method) == set(METHODS[:3])
    draw(figure)


def test_one_absurd_estimate_does_not_hide_the_others(data):
    steps = data.steps.copy()
    steps.loc[(steps.run == "train/pmd-part/seed-1") & (steps.step == 6), "chi2"] = 1e250
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, _ = figures.implicit_regulariser(logs.Logs(data.runs, steps, data.evals))
    assert figure.axes[3].get_ylim()[1] < 1e251
    draw(figure)


def test_f8_joins_the_main_matrix_where_only_the_axis_differs(data):
    figure, plotted = figures.ablations(data, rng())
    assert [axis.get_xlabel().split(" $")[0] for axis in figure.axes] == [
        "regularisation",
        "rollouts a prompt",
        "minibatches a batch",
    ]
    tau = plotted.query("axis == 'tau' and method == 'pmd-part'")
    assert tau.x.tolist() == [0.005, 0.02, 0.05, 0.2]
    finals = data.evals[(data.evals.set == "overall") & (data.evals.step == 6)].set_index("run").avg
    expected = np.mean([finals[f"ablate/tau/pmd-part-0.02/seed-{s}"] for s in range(3)])
    assert tau["mean"].tolist()[1] == pytest.approx(expected)
    expected = np.mean([finals[f"train/pmd-part/seed-{s}"] for s in range(3)])
    assert tau["mean"].tolist()[2] == pytest.approx(expected)
    stale = plotted.query("axis == 'stale'")
    assert set(stale.method) == {"pmd-mean", "pmd-part", "grpo", "grpo-unclipped", "rloo"}
    assert (stale.groupby("method").x.apply(list).map(tuple) == (8, 16)).all()
    assert (plotted.low <= plotted["mean"]).all()
    assert (plotted["mean"] <= plotted.high).all()
    draw(figure)


def test_a_registered_method_is_in_every_figure_and_table_and_an_unknown_one_is_an_error(tmp_path, monkeypatch):
    """A method that the runs have and that a list lacks was left out, and nobody told."""
    write_preset(tmp_path, ["grpo", "reinforce"], seeds=1, steps=2, every=1, problems=2, stale=(16,))
    write_run(tmp_path / "ablate/tau/reinforce-0.2/seed-0", "reinforce", 0, 2, 1, 2, tau=0.2, axis="tau")
    data, evaluated = logs.load(tmp_path), logs.evaluated(tmp_path)
    reported = pd.DataFrame(columns=["panel", "method", "step", "value"], dtype=object)
    made = {
        "F5": lambda: figures.training_curves(data)[0],
        "F6": lambda: figures.time_efficiency(data)[0],
        "F7": lambda: figures.implicit_regulariser(data)[0],
        "F8": lambda: figures.ablations(data, rng())[0],
        "T1": lambda: tables.main_results(evaluated, reported, rng()),
        "T2": lambda: tables.time_efficiency(data),
        "T3": lambda: tables.hyperparameters({}, data.runs),
    }
    for make in [*made.values(), lambda: tables.summary(evaluated)]:
        with pytest.raises(ValueError, match=r"method: (got )?'reinforce'"):
            make()
    method = Method("REINFORCE", "group_mean", "reinforce", ("normalise",), "plain policy gradient")
    monkeypatch.setitem(REGISTERED, "reinforce", method)
    monkeypatch.setitem(style.LOOKS, "reinforce", ("black", "-", "*"))
    for name, make in made.items():
        if name.startswith("F"):
            assert "REINFORCE" in [text.get_text() for text in make().legends[0].get_texts()], name
        elif name != "T3":
            assert "REINFORCE" in set(make().frame["method"]), name
    rows = made["T3"]().frame.set_index("hyper-parameter")["ours"]
    assert "REINFORCE" in rows["train.normalise"]
    assert "REINFORCE" not in rows["train.tau"]
    assert list(tables.summary(evaluated)) == ["base", "grpo", "reinforce"]


def test_the_smallest_run_is_drawn_without_bands_and_without_a_warning(smoke):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (figures.training_curves, figures.time_efficiency, figures.implicit_regulariser):
            figure, plotted = function(smoke)
            assert plotted.low.isna().all()
            assert not any(axis.collections for axis in figure.axes)
            draw(figure)
    with pytest.raises(ValueError, match="no run of the axes tau, group or stale"):
        figures.ablations(smoke, rng())
