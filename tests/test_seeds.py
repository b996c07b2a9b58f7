"""Randomness from (seed, step, purpose) alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pmd.sampling.seeds import derive, prompt_order


def test_seeds_are_pinned_and_differ_in_every_argument():
    """Every committed run depends on these values."""
    assert derive(0, 1, "rollout") == 1600848812625924382
    assert (
        len({derive(s, t, p) for s in range(20) for t in range(20) for p in ("rollout", "order", "eval/val")}) == 1200
    )
    assert all(0 <= derive(s, 1, "x") < 2**63 for s in range(100))


def test_each_epoch_has_an_order_of_its_own():
    assert prompt_order(1, 1, 10, 10) == [7, 3, 0, 1, 4, 2, 9, 8, 5, 6]
    assert prompt_order(1, 2, 10, 10) == [7, 8, 2, 0, 1, 4, 3, 5, 9, 6]


@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 60))
def test_every_epoch_uses_every_prompt_once(seed, count, total):
    """The steps' slices, laid end to end, are one permutation after another."""
    steps = 2 * total // count + 2
    row = [i for step in range(1, steps + 1) for i in prompt_order(seed, step, count, total)]
    for epoch in range(2):
        assert sorted(row[epoch * total : (epoch + 1) * total]) == list(range(total))
