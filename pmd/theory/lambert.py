"""Closed forms by Lambert's W: the paper's formula for the policy ratio, and how large a baseline may be.

The solver of population.py needs neither of them. They check it, and the figures plot them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pmd.theory.population import Array, check_all, discrete, positive, solve_gap


def wright_omega(x: ArrayLike) -> Array:
    """Wright's function ω = W(e^x), the solution of ω + ln ω = x, elementwise for x finite or −∞ (where it is 0).

    Newton's method for y = ln ω on e^y + y = x, which is increasing and convex in y: from above it cannot overshoot.
    """
    x = np.maximum(np.asarray(x, dtype=np.float64), -800.0)  # below it, ω is 0 in float64
    y = np.where(x < 1, x, np.log(np.maximum(x, 1.0)))
    for _ in range(5):  # quadratic from at most ln(1 + e) away
        power = np.exp(y)
        y = y - (power + y - x) / (1 + power)
    return np.where(x < 1, np.exp(y), x - y)


def lambert_log_ratio(x: ArrayLike, lam: ArrayLike) -> Array:
    """log ρ = x − W(λ e^x) for x = Δ/τ, λ ≥ 0, elementwise: the paper's formula, by Wright's ω function."""
    x, lam = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(lam, dtype=np.float64))
    check_all("lam", lam, lam >= 0, "it must be at least 0")
    with np.errstate(divide="ignore"):
        return x - wright_omega(x + np.log(lam))


def baseline_limit(probs: ArrayLike, rewards: ArrayLike, tau: float) -> Array:
    """The largest baseline b, shape [...], for which a normalised solution on the principal branch exists.

    With r* the best reward it is r* + τ(1 + log E[−W(−e^{−1−(r*−r)/τ})]), where ω = −1 in the text of population.py.
    Raises ValueError as `population_update` does.
    """
    probs, rewards = discrete(probs, rewards)
    tau = float(positive("tau", tau))
    best = np.where(probs > 0, rewards, -np.inf).max(axis=-1, keepdims=True)
    u = solve_gap(np.full_like(best, -1.0), np.maximum(best - rewards, 0) / tau)
    return best[..., 0] + tau * (1 + np.log(np.sum(probs * np.exp(-u), axis=-1)))
