"""Accuracy from k samples of each problem: avg@k, pass@k, best@k and maj@k, and the counts from which they follow.

The counts of a problem set are its summary, a row of eval.jsonl: {"k": samples of each problem, "correct": [successes
of each problem], "majority": [1 where the majority's answer is right, else 0], "length": [mean tokens], "truncated":
share of all samples that did not end by themselves}. Where a reward of your own judged, "reward", its mean, stands in
place of "majority", and a sample with full marks, a reward of 1, counts as a success.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd


def accuracy(summary: dict) -> float:
    """avg@k of a summary or of a row of eval.jsonl: the share of all samples that is right, in [0, 1]."""
    return float(np.mean(summary["correct"]) / summary["k"])


def score(summary: dict) -> float:
    """By what a policy is judged on a set: the mean reward where a reward of your own judged, else the accuracy."""
    return summary["reward"] if "reward" in summary else accuracy(summary)


def summarise(samples: pd.DataFrame, ids: Sequence[str]) -> dict:
    """The summary of k samples of each problem, problems in the order of `ids`; equal answers vote together.

    samples: prompt_id, sample (its number), answer (a string, else none was given), correct, tokens and truncated, in
    any order of rows.
    """
    rows = in_order(samples, ids)
    right = rows["correct"].to_numpy(dtype=bool).reshape(len(ids), -1)
    votes = zip(answers_of(rows, ids), right.tolist(), strict=True)
    return {
        "k": right.shape[1],
        "correct": right.sum(axis=1).tolist(),
        "majority": [int(maj_at_k(answers, flags)) for answers, flags in votes],
        "length": rows["tokens"].to_numpy(dtype=float).reshape(right.shape).mean(axis=1).tolist(),
        "truncated": float(rows["truncated"].mean()),
    }


def in_order(samples: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """The same rows, problems in the order of `ids` and each problem's samples by their number."""
    place = {name: i for i, name in enumerate(ids)}
    return samples.iloc[np.lexsort([samples["sample"], [place[name] for name in samples["prompt_id"]]])]


def answers_of(rows: pd.DataFrame, ids: Sequence[str]) -> list[list[str | None]]:
    """The answers of each problem, from rows in order; None for a sample without one."""
    answers = [answer if isinstance(answer, str) else None for answer in rows["answer"]]
    k = len(answers) // len(ids)
    return [answers[i : i + k] for i in range(0, len(answers), k)]


def _counts(correct: ArrayLike, n: int, k: int) -> NDArray[np.float64]:
    """Successes out of n as float64; ValueError if n or k is below 1 or a count is outside 0..n."""
    if n < 1 or k < 1:
        raise ValueError(f"n and k must be at least 1, got n={n}, k={k}")
    counts = np.asarray(correct, dtype=np.float64)
    if counts.size and (counts.min() < 0 or counts.max() > n):
        raise ValueError(f"correct: must lie in 0..n={n}, got {counts.min():g}..{counts.max():g}")
    return counts


def avg_at_k(correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """avg@k: the share of a prompt's k samples that is right.

    correct: successes out of k, integers of any shape. Returns float64 in [0, 1] of the same shape.
    Raises ValueError if a count is outside 0..k.
    """
    return _counts(correct, k, k) / k


def pass_at_k(correct: ArrayLike, n: int, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k from n ≥ k samples, 1 − C(n−c, k)/C(n, k) (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    correct: successes c out of n, integers of any shape. Returns float64 in [0, 1] of the same shape: the probability
    that k samples drawn *without* replacement from the n hold a success. The binomials' ratio is taken as the product
    of (1 − k/i) over i = n−c+1..n, which neither overflows nor cancels. Raises ValueError if k > n or a count is
    outside 0..n.
    """
    if k > n:
        raise ValueError(f"k: pass@k needs k ≤ n samples, got k={k}, n={n}")
    counts = _counts(correct, n, k)
    factors = 1 - k / np.arange(1, n + 1)  # that of i = k is 0, which ends every product that begins below it
    miss = np.append(np.cumprod(factors[::-1])[::-1], 1.0)  # miss[j] = prod of the factors j+1..n
    return 1 - miss[n - counts.astype(np.int64)]


def resampled_best_at_k(correct: ArrayLike, n: int, k: int) -> NDArray[np.float64]:
    """best@k as the reference code (OpenKimi, through verl) has it: the best of k drawn *with* replacement.

    Its expectation over the resampling is 1 − (1 − c/n)^k exactly, so nothing is simulated. It is biased low against
    the pass@k that it is often taken for: one success in 32 samples gives 0.638 at k = 32, where pass@32 of that pool
    is 1. Shapes, dtype and errors as for `pass_at_k`, but k may exceed n.
    """
    return 1 - (1 - _counts(correct, n, k) / n) ** k


def majority(answers: Sequence[Hashable | None]) -> Hashable | None:
    """The answer with the most votes; of equally many the one that was given first.

    answers: one entry a sample, in sampling order; None is a sample without an answer and never wins unless all are
    None (or there are none).
    """
    votes: dict[Hashable, int] = {}
    for answer in answers:
        if answer is not None:
            votes[answer] = votes.get(answer, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)  # dict order and max() both keep the first of equals


def maj_at_k(answers: Sequence[Hashable | None], right: Sequence[bool]) -> bool:
    """maj@k of one prompt: is the majority's answer right?

    answers: one entry a sample (None: no answer); right: whether that sample was rewarded, in the same order. Samples
    that agree are rewarded alike; the first decides. Raises ValueError if the lengths differ.
    """
    if len(answers) != len(right):
        raise ValueError(f"right: needs one entry an answer, got {len(right)} for {len(answers)}")
    winner = majority(answers)
    return winner is not None and bool(right[answers.index(winner)])
