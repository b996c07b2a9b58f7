"""Accuracy from k samples of each problem, against brute force and by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions

from pmd.sampling import accuracy

counts = st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


def test_a_summary_by_hand_whatever_the_order_of_the_rows():
    rows = [
        ("b", 0, "7", False, 4.0, True),
        ("b", 1, None, False, 6.0, False),
        ("a", 0, "1", False, 1.0, False),
        ("a", 1, "2", True, 2.0, False),
    ]
    samples = pd.DataFrame(rows, columns=["prompt_id", "sample", "answer", "correct", "tokens", "truncated"])
    expected = {"k": 2, "correct": [1, 0], "majority": [0, 0], "length": [1.5, 5.0], "truncated": 0.25}
    for seed in range(5):
        assert accuracy.summarise(samples.sample(frac=1, random_state=seed), ["a", "b"]) == expected
    assert accuracy.accuracy(expected) == 0.25


def test_avg_at_k_is_the_share_of_right_samples():
    assert accuracy.avg_at_k([0, 8, 32], 32).tolist() == [0.0, 0.25, 1.0]


@given(counts)
def test_pass_at_k_is_the_share_of_subsets_with_a_success(case):
    n, c, k = case
    pool = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(pool, k))
    assert accuracy.pass_at_k(c, n, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased_for_a_fixed_success_probability():
    n, k, p = 10, 4, 0.15
    weights = distributions.binom.pmf(np.arange(n + 1), n, p)
    assert weights @ accuracy.pass_at_k(np.arange(n + 1), n, k) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_stays_exact_where_binomials_overflow():
    exact = 1 - math.comb(9_999, 5_000) / math.comb(10_000, 5_000)
    assert accuracy.pass_at_k([1, 10_000, 0], 10_000, 5_000) == pytest.approx([exact, 1.0, 0.0], abs=1e-12)


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, 5))))
def test_resampled_best_is_the_share_of_tuples_with_a_success(case):
    n, c, k = case
    tuples = list(itertools.product([True] * c + [False] * (n - c), repeat=k))
    assert accuracy.resampled_best_at_k(c, n, k) == pytest.approx(sum(map(any, tuples)) / len(tuples), abs=1e-12)


def test_resampled_best_is_biased_low_as_documented():
    assert accuracy.resampled_best_at_k(1, 32, 32) == pytest.approx(0.638, abs=5e-4)
    assert accuracy.pass_at_k(1, 32, 32) == 1.0


@given(counts)
def test_the_three_measures_are_ordered(case):
    n, c, k = case
    best = accuracy.resampled_best_at_k(c, n, k)
    assert c / n - 1e-12 <= best <= accuracy.pass_at_k(c, n, k) + 1e-12


@pytest.mark.parametrize("call", [lambda: accuracy.avg_at_k([3, 33], 32), lambda: accuracy.pass_at_k([-1], 4, 2)])
def test_impossible_counts_are_refused(call):
    with pytest.raises(ValueError, match="correct: must lie in"):
        call()


def test_pass_at_k_needs_enough_samples():
    with pytest.raises(ValueError, match="k=5, n=4"):
        accuracy.pass_at_k([1], 4, 5)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["7", "8", "8"], "8"),
        (["9", "8", "8", "9"], "9"),
        (["8", "9", "9", "8"], "8"),
        ([None, None, None, "3"], "3"),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority_breaks_ties_by_the_first_sample_and_never_elects_silence(answers, winner):
    assert accuracy.majority(answers) == winner


@given(st.lists(st.sampled_from(["a", "b", "c", None])))
def test_majority_equals_the_obvious_loop(answers):
    best, most = None, 0
    for answer in answers:
        if answer is not None and answers.count(answer) > most:
            best, most = answer, answers.count(answer)
    assert accuracy.majority(answers) == best


def test_maj_at_k_asks_whether_the_winner_is_right():
    assert accuracy.maj_at_k(["1", "2", "2"], [True, False, False]) is False
    assert accuracy.maj_at_k(["1", "2", "1"], [True, False, True]) is True
    assert accuracy.maj_at_k([None, None], [True, True]) is False  # silence is no answer, whatever it earned
    with pytest.raises(ValueError, match="2 for 1"):
        accuracy.maj_at_k(["1"], [True, False])
