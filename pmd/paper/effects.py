"""Effects with the error of what varied: base models, whose means contain their seeds' noise, and problems.

A difference of two methods is a matrix [bases, problems]. Base models and problems are both samples and are crossed:
another model would have answered the same problems. With row means m_b and column means m_p,

    SE² = s²(m_b)/B + s²(m_p)/P,

each variance with its n − 1. The noise of a single cell is in both terms, so the sum counts it twice, which can only
enlarge the standard error (Owen 2007 shows the same of the pigeonhole bootstrap). The degrees of freedom are Welch and
Satterthwaite's. They can be far too many where few base models happen to agree: then those of the problems count alone.
`cautious` is the same effect with no more than the base models' own. Nothing is resampled, so the numbers are the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from pmd.evaluators.intervals import Interval


class Effect(NamedTuple):
    """An estimate, its standard error and degrees of freedom; both are NaN where one base model cannot tell."""

    estimate: float
    error: float
    freedom: float

    def interval(self, level: float = 0.95) -> Interval:
        """Student's t interval at `level`; its ends are NaN where the error is."""
        half = stdtrit(self.freedom, (1 + level) / 2) * self.error
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    def cautious(self, bases: int) -> Effect:
        """The effect with at most the degrees of freedom of so many base models."""
        return self._replace(freedom=min(self.freedom, bases - 1))

    def p_value(self, null: float = 0.0) -> float:
        """The two-sided p-value of the effect being `null`."""
        return 2 * float(stdtr(self.freedom, -abs(self._t(null))))

    def p_within(self, margin: float) -> float:
        """The p-value of the effect being as large as ±margin: the larger of the two one-sided tests (TOST)."""
        return max(float(stdtr(self.freedom, -self._t(-margin))), float(stdtr(self.freedom, self._t(margin))))

    def _t(self, null: float) -> float:
        if self.error == 0:  # no variation at all
            return float(np.copysign(np.inf, self.estimate - null)) if self.estimate != null else 0.0
        return (self.estimate - null) / self.error

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.error))


def crossed(scores: ArrayLike) -> Effect:
    """The mean of scores [bases, problems] with the error of both. With one base model there is no error.

    ValueError if the matrix is empty, not two-dimensional or not finite.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"scores: need a finite matrix [bases, problems] that is not empty, got shape {x.shape}")
    if len(x) < 2:
        return Effect(float(x.mean()), np.nan, np.nan)
    parts = [(x.mean(1).var(ddof=1) / len(x), len(x) - 1)]
    if x.shape[1] > 1:
        parts.append((x.mean(0).var(ddof=1) / x.shape[1], x.shape[1] - 1))
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return Effect(float(x.mean()), 0.0, len(x) - 1)
    freedom = total**2 / sum(variance**2 / n for variance, n in parts)
    return Effect(float(x.mean()), float(np.sqrt(total)), float(freedom))


def over_bases(values: ArrayLike) -> Effect:
    """The mean of one number a base model, with Student's t over them."""
    x = np.asarray(values, dtype=np.float64)
    return crossed(x[:, None])


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; NaN stays NaN and is not counted."""
    p = np.asarray(p_values, dtype=np.float64)
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    adjusted, largest = p.copy(), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted.tolist()
