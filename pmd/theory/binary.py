"""The update with rewards in {0, 1}, repeated updates, and what finitely many samples do to it, all exact.

With two rewards a policy is one number, the success probability p = P(r = 1): λ, the ratios ρ₁ of successes and ρ₀ of
failures and the next p follow from it and from τ.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pmd.theory.population import Array, log_mean_exp, log_partition, positive, probability, solve


class BinaryStep(NamedTuple):
    """One update with rewards in {0, 1}; `q_next` is 1 − p_{t+1}, accurate where p_{t+1} rounds to one."""

    lam: Array
    log_rho1: Array
    log_rho0: Array
    p_next: Array
    q_next: Array
    exists: NDArray[np.bool_]


def binary_update(
    p: ArrayLike,
    tau: ArrayLike,
    baseline: Literal["mean", "partition"] | float | Array = "mean",
    q: ArrayLike | None = None,
) -> BinaryStep:
    """One update with rewards in {0, 1} and P(r = 1) = p; all arguments broadcast, and so do the results.

    "mean" is PMD-mean: ln ρ₁ + λρ₁ = (1 − p)/τ, ln ρ₀ + λρ₀ = −p/τ, pρ₁ + (1 − p)ρ₀ = 1. "partition" is KL-PMD:
    logit p′ = logit p + 1/τ. A number is that baseline b. `q` = 1 − p may be given where p is too near 1 for a float.
    Rewards in {−1, +1} are this case with τ/2. At p = 0 or 1 the reward is constant: λ = 0 and nothing changes.
    ValueError for τ ≤ 0 or p outside [0, 1].
    """
    p = probability("p", p)
    q = 1 - p if q is None else probability("q", q)
    tau = positive("tau", tau)
    if isinstance(baseline, str) and baseline not in ("mean", "partition"):
        raise ValueError(f"baseline: {baseline!r} is not allowed; 'mean', 'partition' or a number")
    b = p if isinstance(baseline, str) else np.asarray(baseline, dtype=np.float64)
    p, q, tau, b = np.broadcast_arrays(p, q, tau, b)
    shape, (p, q, tau, b) = p.shape, (x.ravel() for x in (p, q, tau, b))
    probs = np.stack([q, p], axis=-1)
    a = np.stack([-b, q if isinstance(baseline, str) else 1 - b], axis=-1) / tau[:, None]
    if isinstance(baseline, str) and baseline == "partition":
        lam, s = np.zeros_like(p), a - log_mean_exp(probs, a)[:, None]
    else:
        delta = np.stack([1 / tau, np.zeros_like(tau)], axis=-1)
        lam, s = solve(probs, a, delta, mean=isinstance(baseline, str))
    constant = (p == 0) | (q == 0)
    lam, s0, s1 = (np.where(constant, 0.0, x) for x in (lam, s[:, 0], s[:, 1]))
    columns = (lam, s1, s0, p * np.exp(s1), q * np.exp(s0), ~np.isnan(lam))
    return BinaryStep(*(x.reshape(shape) for x in columns))


def binary_iterates(
    p0: ArrayLike, tau: ArrayLike, steps: int, baseline: Literal["mean", "partition"] = "mean"
) -> tuple[Array, Array]:
    """p_t and 1 − p_t for t = 0 … `steps` under repeated `binary_update`, each of shape [steps + 1, ...]."""
    p, tau = np.broadcast_arrays(probability("p0", p0), positive("tau", tau))
    ps, qs = [np.array(p)], [1 - p]
    for _ in range(steps):
        step = binary_update(ps[-1], tau, baseline, q=qs[-1])
        ps.append(np.minimum(step.p_next, 1.0))
        qs.append(np.minimum(step.q_next, 1.0))
    return np.stack(ps), np.stack(qs)


# --- finite samples ------------------------------------------------------------------------------------------------


def binomial(n: int, p: ArrayLike) -> Array:
    """P(k of n rollouts succeed), [..., n + 1] over k = 0 … n, where each does with p [...] strictly in (0, 1)."""
    k, p = np.arange(n + 1), np.asarray(p, dtype=np.float64)[..., None]
    ways = np.array([math.log(math.comb(n, i)) for i in range(n + 1)])
    return np.exp(ways + k * np.log(p) + (n - k) * np.log1p(-p))


def finite_sample(p: float, tau: float, n: int, estimator: Literal["mean", "partition"]) -> dict[str, Array]:
    """Every update that a baseline estimated from n rollouts can produce, rewards in {0, 1}, exactly.

    One rollout's baseline comes from the n − 1 others (leave one out, as in OpenKimi), k ~ Binomial(n − 1, p) of which
    succeed: b = k/(n − 1) for "mean", b = τ log((k e^{1/τ} + n − 1 − k)/(n − 1)) for "partition". The regression itself
    is taken over the whole population, so that the baseline varies and nothing else.

    Columns, each [n]: k, probability, b, error (b minus the value it estimates: p, or τ log Z), excess (b − τ log Z, of
    the sign of −λ), lam, p_next, gain (p_next − p), exists. lam, p_next and gain are NaN where no normalised solution
    exists. ValueError for n < 2, τ ≤ 0, p outside (0, 1) or an unknown estimator.
    """
    p, tau = float(probability("p", p)), float(positive("tau", tau))
    if n < 2 or p in (0.0, 1.0):
        raise ValueError(f"n, p: ({n}, {p}) is not allowed; a group needs n ≥ 2 rollouts and 0 < p < 1")
    if estimator not in ("mean", "partition"):
        raise ValueError(f"estimator: {estimator!r} is not allowed; 'mean' or 'partition'")
    k = np.arange(n)
    others = np.stack([(n - 1 - k) / (n - 1), k / (n - 1)], axis=-1)
    rewards = np.broadcast_to([0.0, 1.0], others.shape)
    b = others[:, 1] if estimator == "mean" else log_partition(others, rewards, tau)
    log_z = float(log_partition([1 - p, p], [0.0, 1.0], tau))
    step = binary_update(p, tau, b)
    return {
        "k": k,
        "probability": binomial(n - 1, p),
        "b": b,
        "error": b - (p if estimator == "mean" else log_z),
        "excess": b - log_z,
        "lam": step.lam,
        "p_next": step.p_next,
        "gain": step.p_next - p,
        "exists": step.exists,
    }


def quantile(values: ArrayLike, weights: ArrayLike, level: float) -> float:
    """The smallest value at which the weighted distribution reaches `level`; NaN values have no weight."""
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    values, weights = values[~np.isnan(values)], weights[~np.isnan(values)]
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) >= level * weights.sum() * (1 - 1e-12)
    return float(values[order][np.argmax(reached)])


def finite_sample_summary(p: float, tau: float, n: int, estimator: Literal["mean", "partition"]) -> dict[str, float]:
    """`finite_sample` in numbers, all exact.

    p_negative: P(λ < 0 or no solution), that is, that the baseline exceeds τ log Z; p_none: P(no normalised solution);
    p_no_signal: P(all n rewards are equal). Given that a solution exists: mean_gain and worst_decile (the 10 %
    quantile) of p′ − p, and the 10, 50 and 90 % quantiles of p′ (p_next_*) and of KL(π_t‖π_{t+1}) (kl_*, in nats).
    """
    table = finite_sample(p, tau, n, estimator)
    weight = table["probability"]
    alive = weight * table["exists"]
    kl = table["lam"] + (table["b"] - p) / tau  # from E s + λ = (E r − b)/τ
    return {
        "p_negative": float(weight[table["excess"] > 0].sum()),
        "p_none": float(weight[~table["exists"]].sum()),
        "p_no_signal": p**n + (1 - p) ** n,
        "mean_gain": float(np.nansum(alive * table["gain"]) / alive.sum()),
        "worst_decile": quantile(table["gain"], weight, 0.1),
        **{f"p_next_{level}": quantile(table["p_next"], weight, level / 100) for level in (10, 50, 90)},
        **{f"kl_{level}": quantile(kl, weight, level / 100) for level in (10, 50, 90)},
    }
