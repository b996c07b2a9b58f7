"""Figures and tables of evidence as it really is: curves on fewer problems and responses than the ends, cells that were
not run, runs on older rollouts, and runs that fall alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pmd.files import ROOT
from pmd.paper import figures, frames, tables
from tests import evidence as made

REPORTED = pd.read_csv(ROOT / "results" / "reference" / "reported_30b_curves.csv")


def fewer(row, k):
    """An evaluation's row with k responses of the first half of its problems."""
    half = len(row.correct) // 2
    right = np.round(np.asarray(row.correct, dtype=float)[:half] * k / row.k).astype(np.uint8)
    return row._replace(k=k, correct=right, majority=row.majority[:half])


def load(folder, change=lambda frames: frames, **how):
    found = made.frames(how.pop("accuracy", lambda variant, k, rate: 0.6), **how)
    rows = [row if row.final else fewer(row, 20) for row in found["evals"].itertuples(index=False)]
    made.write(folder, **change(found | {"evals": pd.DataFrame(rows)}))
    return frames.load(folder)


def test_base_models_stand_in_the_columns_of_the_methods(tmp_path):
    """They are those of the whole sets, and not the first evaluations of the runs, which are of fewer problems."""
    frame = tables.accuracy(load(tmp_path, variants=("pmd-mean",)), REPORTED).frame
    assert [name for name in frame if name.startswith("avg@")] == ["avg@200, test", "avg@200, ood"]
    base, trained = frame.iloc[0], frame.iloc[1]
    assert base["avg@200, test"].estimate == pytest.approx(40, abs=1)
    assert base["pass@8, test"].estimate < trained["pass@8, test"].estimate
    assert base["maj@200, test"].estimate == 0
    assert trained["maj@200, test"].estimate == 100


def test_a_run_that_falls_alone_is_counted_though_its_cell_does_not(tmp_path):
    def fall(found):
        name = found["runs"].run[(found["runs"].base == 2) & (found["runs"].minibatches == 40)].iloc[0]
        rows = found["evals"]
        right = [
            c // 10 if run == name and end else c
            for run, end, c in zip(rows.run, rows.final, rows.correct, strict=True)
        ]
        return found | {"evals": rows.assign(correct=right)}

    frame = tables.stability(load(tmp_path, fall, variants=("rloo",))).frame.set_index("K")
    assert frame["collapsed"].to_dict() == {"8": "0 of 2", "40": "0 of 2"}
    assert frame["runs collapsed"].to_dict() == {"8": "0 of 8", "40": "1 of 8"}


def test_on_policy_can_be_told_from_the_same_method_at_a_larger_k(tmp_path):
    figure, _ = figures.time_efficiency(load(tmp_path, variants=("grpo", "gspo")))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) and line.get_color() == "#009E73"]
    assert {line.get_marker() for line in lines} == {"^", "*"}
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["GRPO", "GSPO", "GRPO, on-policy"]


def test_a_cell_that_was_not_run_is_no_white_cell(tmp_path):
    figure, table = figures.robustness_map(load(tmp_path, variants=("pmd-mean", "gspo")))
    assert len(table) == 6 + 4
    texts = {axis.get_title(loc="left") or axis.get_title(): [t.get_text() for t in axis.texts] for axis in figure.axes}
    assert texts["GSPO"].count("–") == 2
    assert "–" not in texts["PMD-mean"]
    assert figure.axes[1].get_facecolor()[:3] != (1.0, 1.0, 1.0)


def test_practice_leaves_out_older_rollouts(tmp_path):
    def late(found):
        runs = found["runs"]
        return found | {"runs": runs.assign(staleness=np.where(runs.minibatches == 40, 3, 0))}

    evidence = load(tmp_path, late, variants=("pmd-mean",))
    assert set(figures.implicit_regulariser(evidence)[1].minibatches) == {1, 8}
    assert set(tables.accuracy(evidence, REPORTED).frame.K) == {None, 1, 8}
    assert set(tables.stability(evidence).frame.K) == {"1", "8", "40, late 3"}
    figure, table = figures.robustness_map(evidence)
    assert set(table.staleness) == {0, 3}
    assert "K = 40, late 3" in [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_a_figure_of_nothing_is_left_out(tmp_path):
    assert figures.implicit_regulariser(load(tmp_path / "1", variants=("grpo",))) is None
    fresh = load(tmp_path / "2", variants=("grpo",), ks=())
    assert figures.training_curves(fresh) is None
    assert figures.robustness_map(fresh) is not None
