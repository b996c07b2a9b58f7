"""Table values against hand computation, verdicts that flip when the data flip, and files that parse."""

import io
import re
import warnings

import numpy as np
import pandas as pd
import pytest

from pmd.evaluators import intervals
from pmd.evaluators.intervals import Interval
from pmd.files import ROOT, write_text
from pmd.paper import claims, logs, report, tables, typeset
from pmd.paper.logs import Logs
from pmd.sampling.accuracy import pass_at_k
from pmd.theory.statements import checked_statements
from tests.synthetic import METHODS, write_preset

REPORTED = pd.read_csv(ROOT / "results/reference/reported_30b_curves.csv")
K, STEPS = 32, (0, 10, 20)


def rng():
    return np.random.default_rng(0)


def experiment(curves, measured=0.9, predicted=1.0, axis="main", **changes):
    """Logs of runs with given accuracies at steps 0, 10, 20: {method: [a curve a seed]}; a step costs 1 s."""
    runs, steps, evals = [], [], []
    for method, seeds in curves.items():
        for seed, curve in enumerate(seeds):
            identity = {"run": f"{axis}/{method}/{seed}", "axis": axis, "method": method, "seed": seed}
            config = {"tau": 0.05, "lr": 1e-4, "group_size": 8, "prompts": 64, "minibatches": 8, "steps": 20}
            runs.append(identity | {"variant": axis} | config | changes)
            for step in range(1, 21):
                theory_ = predicted * step if method == "pmd-mean" else np.nan
                noise = 1 + 0.01 * seed * (-1) ** step
                row = {"step": step, "wall_s": 1.0 * step, "tokens": 100 * step, "lambda_theory": theory_}
                steps.append(identity | row | {"lambda": measured * step * noise})
            for step, accuracy in zip(STEPS, curve, strict=True):
                for name in logs.SETS:
                    correct = [round(K * accuracy)] * 4
                    row = {"step": step, "set": name, "k": K, "correct": correct, "majority": [1, 1, 0, 0]}
                    evals.append(identity | row | {"lengths": [10.0] * 4, "truncated": 0.0})
    frame = pd.DataFrame(evals)
    pooled = [
        logs._summarised(part.drop(columns=["run", "step", "axis", "method", "seed"])).assign(
            run=run, step=step, axis=part.axis.iloc[0], method=part.method.iloc[0], seed=part.seed.iloc[0]
        )
        for (run, step), part in frame.groupby(["run", "step"])
    ]
    return Logs(pd.DataFrame(runs), pd.DataFrame(steps), pd.concat(pooled, ignore_index=True))


def joined(*parts):
    return Logs(*(pd.concat([getattr(p, name) for p in parts]) for name in ("runs", "steps", "evals")))


def evaluated(data):
    return logs.last(data.evals[data.evals.axis == "main"]).assign(checkpoint="last")


def rows_of(table, **where):
    frame = table.frame
    for column, text in where.items():
        frame = frame[frame[column].str.contains(text, regex=False)]
    return frame.to_dict("records")


def t4(data, proofs=None):
    return claims.table(data, evaluated(data), rng(), proofs)


FAST = [[0, 0.75, 1.0], [0, 0.75, 1.0], [0, 0.78125, 1.0]]
SLOW = [[0, 0.375, 0.75], [0, 0.375, 0.78125], [0, 0.375, 0.75]]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "toy"
    write_preset(directory, METHODS[:3], seeds=2, steps=4, every=2, problems=6, stale=(8, 16))
    return directory


# --- T1 ---


def test_t1_has_every_method_checkpoint_and_set_and_the_papers_numbers(toy):
    frame = logs.evaluated(toy)
    table = tables.main_results(frame, REPORTED, rng())
    assert len(table.frame) == 3 + 3 * 2 * 3
    rows = table.frame.set_index(["method", "checkpoint", "set"])
    mine = frame[(frame.method == "grpo") & (frame.checkpoint == "best") & (frame.set == "overall")]
    assert rows.loc[("GRPO", "best", "overall"), "avg@32"].estimate == pytest.approx(100 * mine.avg.mean())
    passed = [np.mean(pass_at_k(c, 32, 8)) for c in mine.correct]
    assert rows.loc[("GRPO", "best", "overall"), "pass@8"].estimate == pytest.approx(100 * np.mean(passed))
    assert rows.loc[("base model", "last", "test"), "avg@32"].estimate > 0
    best = rows.loc[("PMD-mean", "best", "overall")]
    assert best["paper 30B step"] == 290
    assert best["paper 30B avg@32"] == pytest.approx(43.995)
    assert best["paper 30B AIME24 avg@32"] == pytest.approx(50.815)
    assert best["paper 30B AIME25 avg@32"] == pytest.approx(37.175)
    assert rows.loc[("GRPO", "last", "overall"), "paper 30B avg@32"] == pytest.approx(31.652)
    assert rows.loc[("PMD-part", "best", "overall"), "paper 30B avg@32"] is None
    assert any("44.01" in note and "50.83" in note and "37.19" in note for note in table.notes)


def test_t1_intervals_stay_within_percent(toy):
    table = tables.main_results(logs.evaluated(toy), REPORTED, rng())
    cells = [cell for cell in table.frame["maj@32"] if isinstance(cell, Interval)]
    assert len(cells) == len(table.frame)
    assert min(cell.low for cell in cells) >= 0
    assert max(cell.high for cell in cells) <= 100


# --- T2 ---


def test_t2_interpolates_the_cost_and_pairs_the_ratio_by_seed():
    data = experiment({"pmd-mean": [[0, 0.75, 0.75]] * 2, "grpo": [[0, 0.375, 0.75]] * 2})
    pmd, grpo = tables.time_efficiency(data).frame.to_dict("records")
    assert pmd["target [%]"] == pytest.approx(95 * 0.75)
    assert pmd["seconds"].estimate == pytest.approx(10 * 0.95)
    assert grpo["seconds"].estimate == pytest.approx(10 + 10 * (0.95 * 0.75 - 0.375) / 0.375)
    assert pmd["tokens"].estimate == pytest.approx(100 * pmd["seconds"].estimate)
    assert pmd["seconds, ratio to GRPO"].estimate == pytest.approx(9.5 / 19)
    assert grpo["seconds, ratio to GRPO"] == 1.0


def test_t2_means_are_geometric_and_their_intervals_positive():
    data = experiment({"pmd-mean": [[0, 1, 1], [0, 0.125, 1]], "grpo": [[0, 0.5, 1], [0, 0.5, 1]]})
    pmd, grpo = tables.time_efficiency(data).frame.to_dict("records")
    costs = np.array([10 * 0.95, 10 + 10 * (0.95 - 0.125) / 0.875])
    reach = 12.706204736 * np.log(costs[1] / costs[0]) / 2  # t with one degree of freedom times std/√2
    middle = np.sqrt(costs.prod())
    assert pmd["seconds"] == pytest.approx((middle, middle * np.exp(-reach), middle * np.exp(reach)))
    assert pmd["seconds"].low > 0 > intervals.t_interval(costs).low
    assert grpo["seconds"] == pytest.approx((19, 19, 19))


def test_t2_a_target_that_the_base_model_meets_costs_nothing():
    data = experiment({"pmd-mean": [[1, 1, 1], [0.5, 1, 1]], "grpo": [[0.5, 0.5, 1], [1, 1, 1]]})
    pmd, _ = tables.time_efficiency(data).frame.to_dict("records")
    assert pmd["seconds"].estimate == 0
    assert np.isnan(pmd["seconds"][1:]).all()
    assert pmd["seconds, ratio to GRPO"] is None


def test_t2_counts_runs_that_never_reach_the_target():
    data = experiment({"pmd-mean": [[0, 0.5, 0.75], [0, 0.25, 0.5]], "grpo": [[0, 0.375, 0.75]] * 2})
    pmd, _ = tables.time_efficiency(data).frame.to_dict("records")
    assert (pmd["runs"], pmd["reached"]) == (2, 1)
    assert pmd["seconds, ratio to GRPO"] is None
    late = experiment({"pmd-mean": [[0, 0.75, 0.75]] * 2, "grpo": [[0, 0.5, 0.5], [0, 0.5, 1.0]]})
    pmd, grpo = tables.time_efficiency(late).frame.to_dict("records")
    assert grpo["reached"] == 1
    cost = 10 * 0.95  # target 0.7125; GRPO's seed 0 never gets there and counts with all its 20 s
    expected = intervals.ratio_interval([cost] * 2, [20, 10 + 10 * (0.7125 - 0.5) / 0.5])
    assert pmd["seconds, ratio to GRPO"] == pytest.approx(expected)


# --- T3 ---


def test_t3_sets_ours_beside_the_papers_and_lists_only_what_a_method_reads():
    made_of = {"model_md5": "0" * 32, "problems_md5": "1" * 32, "history": []}
    data = experiment({"pmd-mean": [[0, 0, 0]], "grpo": [[0, 0, 0]]}, clip_low=0.2, normalise="length", **made_of)
    wide = experiment({"pmd-mean": [[0, 0, 0]]}, axis="tau", tau=0.01)
    params = {"base": {"layers": 3, "deep": {"width": 96}}, "evaluate": {"top_p": 0.7}, "train": {"lr": 5}}
    params["tune"] = {"grids": [{"lr": [0.1, 0.2], "own": [{"clip_low": 0.1, "clip_high": 0.2}, {}]}]}
    table = tables.hyperparameters(params, joined(data, wide).runs)
    rows = table.frame.set_index("hyper-parameter")
    assert not rows.index.str.contains("md5|history").any()
    assert rows.loc["train.tau", "ours"] == "0.05 (PMD-mean)"
    assert rows.loc["train.clip_low", "ours"] == "0.2 (GRPO)"
    assert rows.loc["train.lr", ["ours", "the paper's"]].tolist() == ["0.0001", "1e-06"]
    assert rows.loc["train.tau (ablation)", "ours"] == "0.01"
    assert rows.loc["base.deep.width", ["ours", "the paper's"]].tolist() == ["96", "not stated"]
    assert rows.loc["evaluate.top_p", ["ours", "the paper's"]].tolist() == ["0.7", "0.7"]
    assert rows.loc["train.group_size", "the paper's"] == "16"
    assert rows.loc["tune.grids[0].lr", "ours"] == "0.1, 0.2"
    assert rows.loc["tune.grids[0].own", "ours"] == "clip_low 0.1 and clip_high 0.2, none"


# --- T4 ---


@pytest.mark.parametrize(
    ("effect", "expected"),
    [
        (Interval(2, 0.1, 4), claims.SUPPORTED),
        (Interval(2, 0.0, 4), claims.INCONCLUSIVE),
        (Interval(2, -1, 4), claims.INCONCLUSIVE),
        (Interval(-2, -4, -0.1), claims.OPPOSITE),
        (Interval(2, np.nan, np.nan), claims.NOT_TESTABLE),
        (None, claims.NOT_TESTABLE),
    ],
)
def test_a_verdict_follows_from_the_interval_alone(effect, expected):
    assert claims.verdict(effect) == expected


def test_t4_verdicts_flip_with_the_data():
    won = t4(experiment({"pmd-mean": FAST, "grpo": SLOW, "pmd-part": SLOW}))
    lost = t4(experiment({"pmd-mean": SLOW, "grpo": FAST, "pmd-part": FAST}))
    for letter in ("(a)", "(d)"):
        up, down = (rows_of(table, claim=letter, metric="difference")[0] for table in (won, lost))
        assert up["verdict"] == claims.SUPPORTED
        assert down["verdict"] == claims.OPPOSITE
        assert up["effect"].estimate == pytest.approx(100 * (3 - 0.75 * 2 - 0.78125) / 3)
        assert down["effect"].estimate == pytest.approx(-up["effect"].estimate)
    up, down = (rows_of(table, claim="(c)", metric="seconds")[0] for table in (won, lost))
    assert up["verdict"] == claims.SUPPORTED
    assert up["effect"].high < 1
    assert down["verdict"] == "not supported (target not reached)"
    assert down["effect"] == "target not reached in 3 of 3 runs"


def test_t4_calls_slower_the_opposite_and_equal_inconclusive():
    grpo = [[0, 0.75, 0.75], [0, 0.71875, 0.75], [0, 0.75, 0.75]]
    slower = t4(experiment({"pmd-mean": SLOW, "grpo": grpo}))
    assert rows_of(slower, claim="(c)", metric="seconds")[0]["verdict"] == claims.OPPOSITE
    equal = t4(experiment({"pmd-mean": grpo, "grpo": grpo}))
    assert rows_of(equal, claim="(a)")[0]["verdict"] == claims.INCONCLUSIVE
    assert rows_of(equal, claim="(c)", metric="tokens")[0]["effect"].estimate == pytest.approx(1)


def test_t4_measures_stability_by_the_worst_drawdown():
    falling = [[0, 1.0, 0.5], [0, 1.0, 0.53125], [0, 1.0, 0.5]]
    stable = t4(experiment({"pmd-mean": FAST, "grpo": falling}))
    row = rows_of(stable, claim="(b)")[0]
    assert row["effect"].estimate == pytest.approx(100 * (0.5 + 0.46875 + 0.5) / 3)
    assert row["verdict"] == claims.SUPPORTED
    wild = t4(experiment({"pmd-mean": falling, "grpo": FAST}))
    assert rows_of(wild, claim="(b)")[0]["verdict"] == claims.OPPOSITE


def test_t4_tests_large_k_with_unclipped_grpo_as_the_control():
    small = experiment({"pmd-mean": SLOW, "grpo": FAST})
    large = experiment({"pmd-mean": FAST, "grpo": SLOW, "grpo-unclipped": FAST}, axis="stale", minibatches=128)
    table = t4(joined(small, large))
    assert rows_of(table, claim="(a)", scope="K = 8, overall")[0]["verdict"] == claims.OPPOSITE
    rows = rows_of(table, claim="(a)", scope="K = 128, overall")
    assert [row["verdict"] for row in rows] == [claims.SUPPORTED, claims.INCONCLUSIVE]
    assert "control" in rows[1]["claim"]


def test_t4_compares_part_and_mean_at_the_smallest_tau_and_the_smallest_n_above_two():
    main = experiment({"pmd-mean": FAST, "pmd-part": FAST, "grpo": SLOW})
    both = {"pmd-mean": FAST, "pmd-part": [[0, 0.75, 0.25]] * 3}
    tau = [experiment(both, axis="tau", tau=value) for value in (0.01, 0.2)]
    group = [experiment(both, axis="group", group_size=n, prompts=512 // n) for n in (2, 4)]
    for index, part in enumerate([*tau, *group]):
        for frame in (part.runs, part.steps, part.evals):
            frame["run"] = frame["run"] + f"/{index}"
    rows = rows_of(t4(joined(main, *tau, *group)), claim="(d)")
    assert [row["scope"] for row in rows[:3]] == ["K = 8", "τ = 0.01", "n = 4"]
    assert [row["verdict"] for row in rows[:3]] == [claims.INCONCLUSIVE, claims.SUPPORTED, claims.SUPPORTED]
    assert rows[3]["scope"] == "all runs: PMD-part 12 of 15, PMD-mean 0 of 15"
    assert rows[3]["effect"] == pytest.approx([100 * v for v in intervals.share_difference(12, 15, 0, 15)])
    assert rows[3]["verdict"] == claims.SUPPORTED


@pytest.mark.parametrize(
    ("measured", "rank", "ratio"),
    [
        (0.9, claims.SUPPORTED, claims.SUPPORTED),
        (0.1, claims.SUPPORTED, claims.OUTSIDE),
        (-0.9, claims.OPPOSITE, claims.OUTSIDE),
    ],
)
def test_t4_asks_whether_lambda_tracks_theory(measured, rank, ratio):
    rows = rows_of(t4(experiment({"pmd-mean": FAST, "grpo": SLOW}, measured=measured)), claim="(e)")
    assert [row["verdict"] for row in rows] == [rank, ratio]
    assert rows[1]["effect"].estimate == pytest.approx(measured, rel=0.01)


def test_t4_asks_so_at_every_other_tau_of_the_ablation():
    main = experiment({"pmd-mean": FAST, "grpo": SLOW})
    near, far = (experiment({"pmd-mean": FAST}, m, axis="tau", tau=tau) for m, tau in ((0.1, 0.05), (0.6, 0.5)))
    for part, name in ((near, "near"), (far, "far")):
        for frame in (part.runs, part.steps, part.evals):
            frame["run"] = frame["run"] + name
    rows = rows_of(t4(joined(main, near, far)), claim="(e)", metric="mean of")
    assert [row["scope"] for row in rows] == ["main matrix, PMD-mean", "τ = 0.5, PMD-mean"]  # 0.05 is the main one's
    assert [row["effect"].estimate for row in rows] == pytest.approx([0.9, 0.6], rel=0.01)


def test_t4_quotes_the_proofs_with_their_residuals():
    data = experiment({"pmd-mean": FAST, "grpo": SLOW})
    columns = {"source": "paper", "proved_by": "tests/t.py::test_it", "tolerance": 1e-10}
    proofs = pd.DataFrame([{"statement": "A", "residual": 3e-15}, {"statement": "B", "residual": 0.5}])
    rows = rows_of(t4(data, proofs.assign(**columns)), claim="(f)")
    assert [row["verdict"] for row in rows] == [
        "proved and checked to residual 3.0e-15",
        "not supported (the residual exceeds its tolerance)",
    ]
    assert "theory notebook first" in rows_of(t4(data), claim="(f)")[0]["verdict"]
    with pytest.raises(ValueError, match=r"theory_claims\.csv: has no column proved_by"):
        t4(data, proofs.assign(source="", tolerance=1))


def test_t4_reads_the_theorys_own_table():
    rows = rows_of(t4(experiment({"pmd-mean": FAST, "grpo": SLOW}), checked_statements()), claim="(f)")
    assert len(rows) == len(checked_statements())
    assert all(row["verdict"].startswith("proved and checked to residual") for row in rows)


def test_t4_says_what_one_seed_or_a_missing_rival_cannot_test():
    alone = t4(experiment({"pmd-mean": FAST[:1]}))
    verdicts = {row["verdict"] for row in rows_of(alone, claim="(b)") + rows_of(alone, claim="(c)")}
    assert verdicts == {claims.NOT_TESTABLE}
    assert rows_of(alone, claim="(a)") == []
    duel = t4(experiment({"pmd-mean": FAST[:1], "grpo": SLOW[:1], "pmd-part": SLOW[:1]}))
    for row in rows_of(duel, claim="(a)") + rows_of(duel, claim="(d)", metric="difference"):
        assert row["effect"].low > 0
        assert row["verdict"] == claims.NOT_TESTABLE
    assert rows_of(alone, claim="(g)")[0]["verdict"] == claims.NOT_TESTABLE


def test_drawdown_and_collapse_by_hand():
    assert claims.drawdown([0.1, 0.6, 0.4, 0.7, 0.65]) == pytest.approx(0.2)
    assert claims.drawdown([0.1, 0.2]) == 0
    assert claims.collapsed([0.3, 0.8, 0.5])
    assert not claims.collapsed([0.3, 0.8, 0.6])
    assert not claims.collapsed([0.30, 0.32, 0.28])  # within 5 points of the peak: noise
    assert claims.collapsed([0.3, 0.2])


# --- T5 and metrics ---


def test_t5_lists_the_stages_and_their_total(toy):
    frame = tables.compute(logs.stages(toy)).frame.set_index("stage")
    assert frame.loc["total", ["seconds", "peak memory [MB]"]].tolist() == [900.0, 505.0]
    assert frame.loc["base", "machine"] == "cpu Synthetic CPU, cores 2, memory_gb 8, python 3.11.7"
    assert tables.compute(logs.stages(toy / "nowhere")).frame.empty


def test_metrics_for_dvc(toy):
    data, frame = logs.load(toy), logs.evaluated(toy)
    values = tables.summary(frame)
    assert list(values) == ["base", "pmd-mean", "pmd-part", "grpo"]
    mine = frame[(frame.method == "grpo") & (frame.checkpoint == "last") & (frame.set == "ood")]
    assert values["grpo"]["ood_avg@32"] == pytest.approx(mine.avg.mean(), abs=1e-6)
    curves = tables.learning_curves(data)
    assert curves.columns.tolist() == ["method", "step", "accuracy"]
    assert len(curves) == 3 * 3


# --- writing ---


def test_a_table_is_written_three_ways(tmp_path):
    cells = {"a|b_%": ["x", None], "value": [Interval(12.345, -1.0, 30.0), Interval(1234.5, np.nan, np.nan)]}
    table = typeset.Table("T9", "Cap & tion.", pd.DataFrame(cells, dtype=object), ("τ ≥ 0",))
    paths = typeset.write(table, tmp_path)
    markdown, csv, latex = (path.read_text() for path in paths)
    assert markdown.splitlines()[2:6] == [
        "| a\\|b_% | value |",
        "| --- | --- |",
        "| x | 12.3 [−1.00, 30.0] |",
        "| – | 1,234 |",
    ]
    frame = pd.read_csv(io.StringIO(csv))
    assert frame.columns.tolist() == ["a|b_%", "value", "value low", "value high"]
    assert frame["value high"].tolist()[0] == 30.0
    assert r"a\textbar{}b\_\allowbreak{}\% & value \\\midrule\endfirsthead" in latex
    assert r"x & 12.3 [$-$1.00, 30.0] \\" in latex
    assert r"Cap \& tion." in latex
    assert r"$\tau$ $\ge$ 0" in latex


def test_long_cells_wrap_in_latex_and_together_fill_the_line():
    cells = {"claim": ["x" * 100], "metric": ["y" * 20], "n": ["4"]}
    text = typeset.latex(typeset.Table("T9", "", pd.DataFrame(cells, dtype=object)))
    shares = [float(share) for share in re.findall(r"p\{\\dimexpr ([\d.]+)\\linewidth-2\\tabcolsep\}", text)]
    assert shares == pytest.approx([24 / 54, 20 / 54, 10 / 54], abs=1e-3)
    short = typeset.latex(typeset.Table("T9", "", pd.DataFrame({"claim": ["x" * 20], "n": ["4"]}, dtype=object)))
    assert r"\begin{longtable}{ll}" in short
    wide = typeset.latex(typeset.Table("T9", "", pd.DataFrame({name: ["1"] for name in "abcdefghi"}, dtype=object)))
    assert r"\begin{sidewaystable}" in wide


def test_every_table_is_plain_ascii_in_latex_and_rectangular_in_markdown(toy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, frame = logs.load(toy), logs.evaluated(toy)
        made = [
            tables.main_results(frame, REPORTED, rng()),
            tables.time_efficiency(data),
            tables.hyperparameters({"evaluate": {"sets": ["test", "ood"]}}, data.runs),
            claims.table(data, frame, rng(), checked_statements()),
            tables.compute(logs.stages(toy)),
        ]
    for table in made:
        assert not set(re.sub(r"[\x00-\x7f]", "", typeset.latex(table))), table.name
        rows = [line for line in typeset.markdown(table).splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, table.name


# --- the report ---


def test_the_report_has_verdicts_first_and_only_what_exists(tmp_path, toy):
    data, frame = logs.load(toy), logs.evaluated(toy)
    with pytest.raises(ValueError, match=r"T4\.csv: missing; write the tables before the report"):
        report.build(tmp_path, "toy")
    for table in (claims.table(data, frame, rng()), tables.time_efficiency(data)):
        typeset.write(table, tmp_path / "tables")
    for name in ("theory/figures/F2", "figures/F5", "figures/F7"):
        write_text(tmp_path / f"{name}.svg", "<svg/>")
    page = report.build(tmp_path, "toy").read_text()
    text = (tmp_path / "report.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# PMD-mean, preset “toy”: results",
        "## The abstract's claims",
        "## Figures",
        "### F2",
        "### F5",
        "### F7",
        "## Tables",
        "### T2",
        "### T4",
    ]
    assert re.findall(r'<img src="([^"]+)"', page) == [
        "theory/figures/F2.svg",
        "figures/F5.svg",
        "figures/F7.svg",
    ]
    assert page.count("<table>") == 3
    verdicts = rows_of(claims.table(data, frame, rng()), claim="(")
    assert page.count("<strong>not testable") == sum("not testable" in row["verdict"] for row in verdicts)


def test_every_caption_names_a_figure_and_claims_no_outcome():
    assert list(report.FIGURES) == ["F1", "F2", "F3", "F4", "F4-chain", "F5", "F5-reported", "F6", "F7", "F8"]
    for caption in report.FIGURES.values():
        assert not re.search(r"\b(outperform|better|worse|superior|beats|wins|faster)\b", caption)
