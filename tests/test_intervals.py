"""Intervals against closed forms, published examples and what they must cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions

from pmd.evaluators import intervals


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_interval_of_a_matrix_matches_its_resampling_in_closed_form():
    scores = rng(1).normal(size=(6, 40))
    result = intervals.interval(scores, rng(), draws=200_000)
    rows, columns = scores.mean(axis=1), scores.mean(axis=0)
    t = distributions.t.ppf(0.975, [5, 39]) / distributions.norm.ppf(0.975)
    deviation = np.sqrt(t[0] ** 2 * rows.var(ddof=1) / 6 + t[1] ** 2 * columns.var(ddof=1) / 40)
    assert result.estimate == pytest.approx(scores.mean(), abs=1e-12)
    assert result.high - result.low == pytest.approx(2 * 1.959964 * deviation, rel=0.02)


@pytest.mark.parametrize(("seed_sd", "prompt_sd", "noise_sd"), [(0.05, 0.05, 0.15), (0.02, 0.3, 0.15), (0.1, 0.0, 0.1)])
def test_four_seeds_cover_the_truth_whichever_source_of_noise_dominates(seed_sd, prompt_sd, noise_sd):
    g, covered, trials = rng(2), 0, 400
    for _ in range(trials):
        scores = seed_sd * g.normal(size=(4, 1)) + prompt_sd * g.normal(size=60) + noise_sd * g.normal(size=(4, 60))
        _, low, high = intervals.interval(scores, g, draws=300)
        covered += low <= 0 <= high
    assert 0.90 <= covered / trials <= 0.995


def test_intervals_come_from_the_given_generator_alone():
    scores = rng(3).random((4, 30))
    np.random.seed(0)  # noqa: NPY002 -- the legacy global state is what must not matter
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = intervals.interval(scores, rng(7))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert intervals.interval(scores, rng(7)) == first
    assert intervals.interval(scores, rng(8)) != first


def test_one_seed_resamples_prompts_only():
    prompts = rng(4).random(200)
    result = intervals.interval(prompts[None], rng(), draws=50_000)
    expected = intervals.t_interval(prompts)
    assert result == pytest.approx(expected, abs=2e-3)
    assert intervals.interval([[0.5, 0.5, 0.5]], rng()) == (0.5, 0.5, 0.5)
    assert intervals.interval([[0.25]], rng()) == (0.25, 0.25, 0.25)


def test_pooling_weighs_prompts_equally_and_keeps_sets_apart():
    easy, hard = np.full((3, 30), 0.9), np.full((3, 10), 0.1)
    assert intervals.interval([easy, hard], rng()) == pytest.approx((0.7, 0.7, 0.7))
    scores = rng(5).random((3, 20))
    assert intervals.interval([scores], rng()) == intervals.interval(scores, rng())


def test_a_pooled_set_counts_by_its_share_of_the_prompts():
    """Two sets of equal spread halve each one's part: the pooled error is 1/√2 of that of one alone."""
    prompts = rng(4).random((1, 200))
    alone, both = (intervals.interval([prompts] * sets, rng(), draws=20_000) for sets in (1, 2))
    assert (both.high - both.low) / (alone.high - alone.low) == pytest.approx(2**-0.5, rel=0.03)


def test_pooled_sets_share_their_seeds():
    g = rng(6)
    seeds = g.normal(size=(5, 1))
    alike = intervals.interval([np.repeat(seeds, 50, 1), np.repeat(seeds, 50, 1)], rng())
    opposed = intervals.interval([np.repeat(seeds, 50, 1), np.repeat(-seeds, 50, 1)], rng())
    assert opposed.high - opposed.low == pytest.approx(0, abs=1e-12)
    assert alike.high - alike.low > 0.5


@given(
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(0, 99),
    st.floats(-3, 3),
    st.floats(0.1, 10),
)
def test_intervals_follow_shifts_and_scales(seeds, prompts, seed, shift, scale):
    scores = rng(seed).random((seeds, prompts))
    plain = intervals.interval(scores, rng(seed), draws=100)
    assert plain.low - 1e-12 <= plain.high
    moved = intervals.interval(shift + scale * scores, rng(seed), draws=100)
    assert moved == pytest.approx([shift + scale * value for value in plain], abs=1e-9)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[]], "non-empty"),
        ([[[0.1, 0.2]], [[0.1], [0.2]]], "equally many seeds"),
        ([[0.1, np.nan]], "finite"),
    ],
)
def test_malformed_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        intervals.interval(scores, rng())


def test_t_interval_against_the_textbook():
    assert intervals.t_interval([1, 2, 3, 4]) == pytest.approx((2.5, 2.5 - 2.0542603, 2.5 + 2.0542603), abs=1e-6)
    one, none = intervals.t_interval([3.0]), intervals.t_interval([])
    assert one.estimate == 3.0
    assert np.isnan([one.low, one.high, *none]).all()
