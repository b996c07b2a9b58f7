"""Effects: hand-computed errors, coverage when base models and problems vary, equivalence and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pmd.paper.effects import Effect, crossed, holm, over_bases


def test_a_matrix_by_hand():
    """Row means 2 and 4 (s² = 2, over 2 bases), column means 2, 3, 4 (s² = 1, over 3 problems)."""
    effect = crossed([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    assert effect.estimate == 3.0
    assert effect.error == pytest.approx(math.sqrt(2 / 2 + 1 / 3))
    assert effect.freedom == pytest.approx((1 + 1 / 3) ** 2 / (1 / 1 + (1 / 3) ** 2 / 2))


def test_scalars_are_a_t_test():
    values = [0.3, -0.1, 0.5, 0.2]
    effect, known = over_bases(values), stats.ttest_1samp(values, 0.1)
    assert effect.p_value(0.1) == pytest.approx(known.pvalue)
    assert effect.interval()[1:] == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))


def test_equivalence_is_the_larger_one_sided_test():
    values = [0.3, -0.1, 0.5, 0.2]
    low = stats.ttest_1samp(values, -0.6, alternative="greater").pvalue
    high = stats.ttest_1samp(values, 0.6, alternative="less").pvalue
    assert over_bases(values).p_within(0.6) == pytest.approx(max(low, high))
    assert high > low


def test_one_base_model_tells_nothing_and_equal_scores_have_no_error():
    alone = crossed([[0.1, 0.9]])
    assert not alone
    assert math.isnan(alone.p_value())
    assert math.isnan(alone.interval().low)
    same = crossed([[0.5, 0.5], [0.5, 0.5]])
    assert (same.error, same.p_value(), same.p_value(0.5), same.p_within(0.6)) == (0.0, 0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="need a finite matrix"):
        crossed([[0.5, np.nan]])


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Five bases and 40 problems, both of which vary: at least 95 % of 2,000 intervals hold 0, and not all."""
    g = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        x = g.normal(0, 1, (5, 1)) + g.normal(0, 3, (1, 40)) + g.normal(0, 2, (5, 40))
        low, high = crossed(x).interval()[1:]
        held += low < 0 < high
    assert 0.945 < held / 2000 < 0.99


def test_pooling_runs_would_cover_far_less():
    """The same data with all 200 scores taken as independent: what the crossed error is there to prevent."""
    g = np.random.default_rng(0)
    x = g.normal(0, 1, (5, 1)) + g.normal(0, 3, (1, 40)) + g.normal(0, 2, (5, 40))
    assert crossed(x).error > 2 * x.std(ddof=1) / math.sqrt(x.size)


def test_few_base_models_that_happen_to_agree_are_not_many():
    """Row means 0.9, 1 and 1.1, a hundred problems that vary: the problems' degrees of freedom would count alone."""
    problems = np.linspace(-5, 5, 100)
    effect = crossed(problems + np.array([[0.9], [1.0], [1.1]]))
    assert effect.freedom > 50
    assert effect.cautious(3).freedom == 2
    assert effect.cautious(3).p_value() > 2 * effect.p_value()
    assert over_bases([1.0, 2.0, 4.0]).cautious(3) == over_bases([1.0, 2.0, 4.0])
    assert Effect(1.0, 1.0, 1.5).cautious(3).freedom == 1.5  # two problems may tell less than three base models


def test_holm_by_hand():
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_an_effect_without_error_is_false():
    assert not Effect(1.0, math.nan, math.nan)
    assert Effect(1.0, 0.0, 2.0)
