"""The limits that docs/experiments.md states of the committed runs: each number from the evidence."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pmd.files import ROOT
from pmd.paper import claims, frames, questions
from pmd.paper.effects import Effect, crossed

TEXT = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
LIMITS = " ".join(TEXT.partition("## Limits of the rule, found after the runs")[2].split())


@pytest.fixture(scope="module")
def default():
    return frames.load(ROOT / "results" / "default" / "evidence")


@pytest.fixture(scope="module")
def study(default):
    found, own = frames.study(ROOT / "results" / "study" / "evidence", default)
    assert own == {"law", "finite", "train"}
    return found


def best_rate(evidence: frames.Evidence, variant: str, k: int, bases: set[int]) -> float:
    """The rate with the best mean accuracy on val over the runs from these base models alone."""
    rows = frames.cell(frames.final(evidence, ["val"]), variant, k)
    return float(rows[rows.base.isin(bases)].groupby("lr").accuracy.mean().idxmax())


def of_the_others(evidence: frames.Evidence, rival: str, k: int) -> Effect:
    """Row (a) with each base model's rates chosen from the runs of the other base models."""
    ends, bases = frames.final(evidence), set(evidence.runs.base)
    shares = []
    for name in ("pmd-mean", rival):
        rows = [frames.cell(ends, name, k, best_rate(evidence, name, k, bases - {base})) for base in sorted(bases)]
        own = [part[part.base == base] for part, base in zip(rows, sorted(bases), strict=True)]
        shares.append(frames.scores(pd.concat(own))[1])
    return crossed(100 * (shares[0] - shares[1]))


def test_rates_that_are_chosen_from_the_other_base_models(study):
    as_it_is = questions.best_rates(study, "pmd-mean", "grpo", False).effect
    assert of_the_others(study, "grpo", 8).interval() == as_it_is.interval()
    estimate, low, high = of_the_others(study, "gspo", 40).interval()
    said = f"the same; (a) 4 would be {estimate:.1f} pp, [{low:.1f}, {high:.1f}].".replace("-", "−")
    assert said in LIMITS


def words(effect: Effect, sign: int = 1) -> str:
    """An effect of this sign as the text has it, such as "1.9 pp, [1.2, 2.6]"."""
    estimate, *ends = effect.interval()
    low, high = sorted(sign * end for end in ends)
    return f"{sign * estimate:.1f} pp, [{low:.1f}, {high:.1f}]".replace("-", "−")


def test_a_larger_tau_and_no_tau_at_all(study):
    found = questions.best_rates(study, "pmd-mean tau=0.5", "grpo", False).effect
    assert len(set(frames.cell(study.runs, "pmd-mean tau=0.5", 8).lr)) == 4
    assert found.interval().high < 0
    assert f"Found: {words(found)}, so a larger τ is not enough." in LIMITS
    ends, labels = frames.final(study), ("PMD-mean", "GRPO")
    fresh = questions.paired(*(frames.cell(ends, name, 1) for name in ("pmd-mean", "grpo")), labels, "")
    assert f"is behind GRPO as well, by {words(fresh.effect, -1)}." in LIMITS


def test_the_edge_of_the_grid(study):
    rates = frames.cell(study.runs, "pmd-mean", 40).lr
    assert best_rate(study, "pmd-mean", 40, set(study.runs.base)) == rates.min()
    assert "At K = 40 the best rate of PMD-mean in the study is the smallest of the grid" in LIMITS


def test_opposite_differences_make_a_mean_near_zero(study):
    reason = questions.whole_grid(study, "pmd-mean", "grpo").reason
    assert reason.endswith("the difference is −2.1 pp at K = 8, 1.8 pp at K = 40")
    assert "so is (b) 3, the mean of −2.1 pp at K = 8 and 1.8 pp at K = 40." in LIMITS
    rows = claims.table(study).set_index("row")
    assert rows.verdict[["b3", "b4"]].tolist() == [claims.EQUIVALENT] * 2
    assert rows.effect["b4"].high < 0  # small, and not 0


def committed(path: str) -> bool:
    """Is a file that of HEAD? A run on another processor writes one with other rounding."""
    return subprocess.run(["git", "diff", "--quiet", "HEAD", "--", path], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(not committed("results/default/evidence/law.parquet"), reason="the default's law was run again")
def test_the_law_at_the_larger_tau_alone(study, default):
    asked = tuple(claim for claim in claims.CLAIMS if claim.row == "e1")
    for evidence in (study, default):
        assert claims.table(evidence, asked).verdict.item() == claims.SUPPORTED
        alone = replace(evidence, law=evidence.law[np.isclose(evidence.law.tau, 0.5)])
        assert claims.table(alone, asked).verdict.item() == claims.UNDECIDED
    assert "At τ = 0.5 alone it would be undecided, in the study, where base models differ" in LIMITS
    assert f"where the ratio is {1 + claims.table(alone, asked).effect.item().estimate:.2f}." in LIMITS
