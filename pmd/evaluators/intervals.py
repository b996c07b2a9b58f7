"""Intervals for means over seeds and prompts, and for scalars of a run.

A finished experiment is a matrix of scores, one row a training seed, one column a test prompt. Both are samples:
another seed would train another policy, another prompt would be easier or harder. An interval that resamples only one
of them answers a narrower question than the one a reader asks, so the intervals here cluster by both. All randomness
comes from an explicit `numpy.random.Generator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit


class Interval(NamedTuple):
    """An estimate and the ends of its interval, all in the scores' unit; ends that are unknown are NaN."""

    estimate: float
    low: float
    high: float


def _spread(n: int, level: float) -> float:
    """The factor by which resampled means of n units are stretched, so that their interval covers at `level`.

    Resampling n units understates their variance by the factor (n−1)/n, and its quantiles are those of a normal
    distribution where those of Student's t with n−1 degrees of freedom are due (Hesterberg 2015, arXiv:1411.5279, on
    narrowness bias): with 4 seeds that differ, a plain percentile interval covers about 80 %, not 95 %.
    """
    tail = (1 + level) / 2
    return float(np.sqrt(n / (n - 1)) * stdtrit(n - 1, tail) / ndtri(tail))


def _resampled(effects: NDArray[np.float64], level: float, draws: int, g: np.random.Generator) -> NDArray[np.float64]:
    """`draws` resampled means of `effects` [n] minus their mean, stretched by `_spread`; zeros if n is 1."""
    n = effects.size
    if n == 1:
        return np.zeros(draws)
    weights = g.multinomial(n, np.full(n, 1 / n), size=draws)
    return weights @ (effects - effects.mean()) * (_spread(n, level) / n)


def interval(
    scores: ArrayLike | Sequence[ArrayLike],
    generator: np.random.Generator,
    level: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """The mean score and its interval, clustered by seed and prompt: a pigeonhole bootstrap (Owen 2007).

    scores: [seeds, prompts], every seed on the same prompts; or a sequence of such matrices, one a problem
    set, to be pooled: the sets share the seeds (rows in the same order), each set's prompts are resampled
    within the set, and every prompt weighs the same. One seed is allowed (then only prompts are resampled).

    The pigeonhole bootstrap resamples rows and columns independently, a draw being u'Mv with multinomial
    weights u, v. Here the draw is its linear part, mean + Σ u_s (row mean − mean) + Σ v_p (column mean −
    mean): the second-order term that is left out would count the seed × prompt noise a third time and only
    widen the interval. Both sums are stretched for small samples (`_spread`). The interval is the draws'
    percentiles; it may reach past the scores' own range when seeds are few.

    Raises ValueError if a matrix is empty or not two-dimensional, if sets differ in the number of seeds, if a
    score is not finite, or if `level` is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: must lie in (0, 1), got {level}")
    sets = [scores] if np.ndim(scores[0]) == 1 else list(scores)
    sets = [np.asarray(matrix, dtype=np.float64) for matrix in sets]
    shapes = [matrix.shape for matrix in sets]
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(f"scores: need non-empty [seeds, prompts] matrices with equally many seeds, got {shapes}")
    if not all(np.isfinite(matrix).all() for matrix in sets):
        raise ValueError("scores: every score must be finite")
    total = sum(matrix.shape[1] for matrix in sets)
    seeds = sum(matrix.sum(axis=1) for matrix in sets) / total
    resampled = seeds.mean() + _resampled(seeds, level, draws, generator)
    for matrix in sets:
        share = matrix.shape[1] / total
        resampled = resampled + share * _resampled(matrix.mean(axis=0), level, draws, generator)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(seeds.mean()), float(low), float(high))


def problem_interval(
    scores: ArrayLike, bounds: tuple[float, float], generator: np.random.Generator, level: float = 0.95
) -> Interval:
    """The interval of one policy's mean score over problems, from scores [problems] that lie within `bounds`.

    If scores differ it is `interval`, cut at the bounds. If all are equal, resampling gives an interval without width,
    as if a policy that solved none of 30 problems were known to solve none at all. Scores within [a, b] of mean m equal
    a value c with a probability of at most (m − a)/(c − a) and (b − m)/(b − c). The interval then holds every m for
    which n equal scores have a probability of at least (1 − level)/2: for none solved of 30 it reaches to 0.116, as
    Clopper and Pearson's does. For differences of shares the bounds are (−1, 1). Infinite bounds leave the interval
    without width. ValueError if there are no scores.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.size == 0 or np.ptp(x) > 1e-9 or not np.isfinite(bounds).all():
        estimate, low, high = interval([x], generator, level)
        return Interval(estimate, max(low, bounds[0]), min(high, bounds[1]))
    share, c = ((1 - level) / 2) ** (1 / x.size), x.flat[0]
    low, high = (share * c + (1 - share) * bound for bound in bounds)
    return Interval(float(c), float(low), float(high))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The mean and Student's t interval of a scalar that each seed has one of, such as seconds or a mean reward.

    values: [seeds], in any unit, which the result keeps. Of one value the ends are NaN; of none, the mean too.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return Interval(float(x[0]) if x.size else np.nan, np.nan, np.nan)
    with np.errstate(over="ignore"):  # a χ² estimate may be as large as a double gets: its interval is infinite
        half = stdtrit(x.size - 1, (1 + level) / 2) * x.std(ddof=1) / np.sqrt(x.size)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))
