"""The theory of PMD-mean, exact to machine precision (Xu, Lu, Yu, Zhao, arXiv:2602.05933).

Everything is per prompt. π_t is the sampling policy, E its expectation, r the reward, τ > 0 the
regularisation, ρ = π_{t+1}/π_t the policy ratio and s = log ρ. Regressing s on (r − b)/τ over *normalised*
policies,

    minimise ½ E (s − a)²  subject to  E e^s = 1,      a = (r − b)/τ,

has the stationarity condition s + λ e^s = a, hence ρ = W(λ e^a)/λ with W Lambert's function. The baseline
b = E r gives PMD-mean; b = τ log E exp(r/τ) gives λ = 0, the exact mirror-descent step KL-PMD.

How it is solved. e^a overflows and λ may be 1e-16 or 1e3, so the unknown is ω = λ ρ_best, the value of W
at the response with the highest reward. Subtracting the stationarity conditions of that response and of
another gives

    u + ω (1 − e^{−u}) = δ,      δ = (r_best − r)/τ ≥ 0,   u = s_best − s ≥ 0,

one scalar equation per response with neither overflow nor special function, valid for every sign of λ: ω ≥
−1 is exactly the principal branch of W. What is left is one equation for ω, E (ρ − 1) = 0 with s = a − ω
e^{−u}, solved by Newton's method on log E ρ inside a bracket. `expm1` keeps E (ρ − 1) free of cancellation
when λ is tiny.

For λ ≥ 0 the solution is the global minimiser. For λ < 0 it is the continuation of the mirror-descent
step, a strict local minimiser as long as ω > −1. It ends at ω = −1, at the baseline that `baseline_limit`
computes. Beyond it `exists` is false and λ is NaN: no normalised policy is left on the principal branch.
A stationary policy that treats equally rewarded responses equally is then a saddle, and the regression
lowers its loss by piling the surplus mass onto a single one of the best responses.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import wrightomega

Array = NDArray[np.float64]
_BLOCK = 1 << 16  # elements solved together: the working set stays in the processor's cache


class Temperature(NamedTuple):
    """The baseline b(τ_b) = τ_b log E exp(r/τ_b): τ_b = τ is τ log Z, τ_b → ∞ the mean reward."""

    value: float


Baseline = Literal["mean", "partition"] | float | Array | Temperature


class Update(NamedTuple):
    """A population solution: `lam`, `b`, `exists` have the batch's shape, `log_ratio` one more axis.

    `lam` and `log_ratio` are NaN where `exists` is false (see the module's text); log_ratio = log
    π_{t+1}/π_t.
    """

    lam: Array
    log_ratio: Array
    exists: NDArray[np.bool_]
    b: Array


class Divergences(NamedTuple):
    """KL(π_{t+1}‖π_t), KL(π_t‖π_{t+1}) and χ²(π_{t+1}‖π_t) in nats, each of the batch's shape."""

    kl: Array
    reverse_kl: Array
    chi2: Array


class BinaryStep(NamedTuple):
    """One update with rewards in {0, 1}; `q_next` is 1 − p_{t+1}, accurate where p_{t+1} rounds to one."""

    lam: Array
    log_rho1: Array
    log_rho0: Array
    p_next: Array
    q_next: Array
    exists: NDArray[np.bool_]


class Prediction(NamedTuple):
    """λ, KL(π_{t+1}‖π_t) and χ²(π_{t+1}‖π_t) expected of one full update on each group, shape [groups]."""

    lam: Array
    kl: Array
    chi2: Array


# --- the solver -----------------------------------------------------------------------------------


def _gap(omega: Array, delta: Array, near: Array | None = None) -> Array:
    """Solve u + ω(1 − e^{−u}) = δ for u ≥ 0, given ω ≥ −1 and δ ≥ 0 (the principal branch of Lambert's W).

    The start replaces 1 − e^{−u} by its bounds 2u/(2 + u) and 1. From there Halley steps always converge,
    the double root at ω = −1, δ = 0 included: at most four up to ω, δ = 1000, a few more at 1e6.
    For ω ≥ 0 the left side is increasing and concave, so they converge from `near`, the solution at another ω, too.
    """
    regular = omega.min(initial=0.0) >= 0  # then the slope is at least 1
    u = near if regular and near is not None else _gap_start(omega, delta)
    for _ in range(12):
        if regular:
            kept = np.exp(-u)
            kept *= omega  # ω e^{−u}
            slope = 1 + kept
            step = (u - delta) + omega
            step -= kept
            step /= slope
            step /= 1 + step * (0.5 - 0.5 / slope)
        else:
            drawn = -omega * np.expm1(-u)  # ω(1 − e^{−u}), which keeps its digits near the double root
            slope = (1 + omega) - drawn
            with np.errstate(divide="ignore", invalid="ignore"):
                newton = (u + drawn - delta) / slope
                halley = newton / (1 + newton * (omega - drawn) / (2 * slope))
            step = np.where(slope > 0, halley, 0.0)
        u = np.maximum(u - step, 0.0)
        if max(step.max(initial=0.0), -step.min(initial=0.0)) < 1e-6:  # cubic: the next step is below rounding
            break
    return u


def _gap_start(omega: Array, delta: Array) -> Array:
    half = (1 + omega) - delta / 2
    root = np.sqrt(half * half + 2 * delta)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = np.where(half > 0, 2 * delta / (half + root), root - half)
    return np.where(omega > 0, np.maximum(u, delta - omega), np.minimum(u, delta - omega))


def _log_mean_exp(probs: Array, x: Array) -> Array:
    """log E e^x over the last axis, without overflow and without cancellation for small x."""
    top = x.max(axis=-1, keepdims=True)
    excess = np.sum(probs * np.expm1(np.minimum(x, 500.0)), axis=-1)
    near = (top[..., 0] < 500) & (excess > -0.5)  # log1p keeps the digits of a logarithm near 0
    far = top[..., 0] + np.log(np.sum(probs * np.exp(x - top), axis=-1))
    return np.where(near, np.log1p(np.where(near, excess, 0.0)), far)


def _excess(
    omega: Array, probs: Array, a: Array, delta: Array, near: Array | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """At ω [B]: s [B, N], E(ρ − 1) [B] and its derivative in ω [B], the u [B, N] of `_gap` and du/dω [B, N].

    du/dω is of use, and right, for ω ≥ 0 only.
    """
    w = omega[:, None]
    u = _gap(w, delta, near)
    e = np.exp(-u)
    s = a - w * e
    change = probs * np.expm1(s)
    moved = (probs + change) * e  # for the derivative alone, which may lose digits
    slope = 1 + w * e
    if omega.min(initial=0.0) >= 0:
        return s, np.sum(change, axis=-1), -(1 + omega) * np.sum(moved / slope, axis=-1), u, (e - 1) / slope
    denominator = (1 + w) + w * np.expm1(-u)  # keeps its digits near the double root ω = −1, u = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(denominator > 0, (1 + w) / denominator, 1.0)
    return s, np.sum(change, axis=-1), -np.sum(moved * weight, axis=-1), u, slope


def _find_omega(probs: Array, a: Array, delta: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """The root ω ∈ [low, high] of E(ρ − 1), decreasing in ω: Newton on log E ρ, bisection where it strays.

    Returns ω and u there to first order, from which the next `_gap` starts.
    """
    start = a.max(axis=-1) + np.log(np.sum(probs * np.exp(-delta), axis=-1))
    omega = np.clip(start, low, high)
    noise = 4 * np.finfo(float).eps * np.sum(probs * np.abs(a), axis=-1)
    active, gap = np.arange(len(omega)), _gap_start(omega[:, None], delta)
    for _ in range(100):
        now = omega[active]
        _, excess, slope, u, drift = _excess(now, probs[active], a[active], delta[active], gap[active])
        low[active] = np.where(excess > 0, now, low[active])
        high[active] = np.where(excess < 0, now, high[active])
        new = now - np.log1p(excess) * (1 + excess) / slope
        outside = ~((new >= low[active]) & (new <= high[active]))
        new = np.where(outside, (low[active] + high[active]) / 2, new)
        omega[active] = new
        gap[active] = np.maximum(u + drift * (new - now)[:, None], 0.0)
        # Newton's error is squared by the step just made, so a step this small leaves rounding error only
        moving = np.abs(new - now) > 1e-8 * np.minimum(1.0, np.abs(new)) + noise[active]
        active = active[moving]
        if active.size == 0:
            break
    return omega, gap


def _solve_block(probs: Array, a: Array, delta: Array, mean: bool) -> tuple[Array, Array]:
    """λ [B] and s [B, N] for targets a; `mean`: b is the mean reward, so λ ≥ 0 whatever the rounding."""
    best = a.max(axis=-1)
    with np.errstate(divide="ignore"):
        log_mass = np.minimum(np.log(np.sum(probs * (delta == 0), axis=-1)), 0.0)
    zero = np.zeros(len(a))
    negative = np.zeros(len(a), dtype=bool) if mean else _log_mean_exp(probs, a) < 0
    fold = -1 - np.log(np.sum(probs * np.exp(-_gap(zero[:, None] - 1, delta)), axis=-1)) if negative.any() else zero
    exists = ~negative | (best >= fold)
    # 1 ≤ ρ_best ≤ 1/P(best) for λ ≥ 0 and the principal branch for λ < 0
    low = np.where(negative, -1.0, np.maximum(best + log_mass, 0.0))
    high = np.where(negative, 0.0, np.maximum(best, low))
    omega, gap = _find_omega(probs, a, delta, low, high)
    s, excess, *_ = _excess(omega, probs, a, delta, gap)
    s = s - np.log1p(excess)[:, None]  # rounding only: E ρ = 1 to the last digit
    lam = omega * np.exp(omega - best)
    return np.where(exists, lam, np.nan), np.where(exists[:, None], s, np.nan)


def _solve(probs: Array, a: Array, delta: Array, mean: bool) -> tuple[Array, Array]:
    """`_solve_block` over a batch [B, N], block by block."""
    rows = max(1, _BLOCK // a.shape[1])
    lam, s = np.empty(len(a)), np.empty_like(a)
    for i in range(0, len(a), rows):
        part = slice(i, i + rows)
        lam[part], s[part] = _solve_block(probs[part], a[part], delta[part], mean)
    return lam, s


# --- checks that speak to people ------------------------------------------------------------------


def _positive(name: str, value: ArrayLike) -> Array:
    value = np.asarray(value, dtype=np.float64)
    bad = ~(np.isfinite(value) & (value > 0))
    if bad.any():
        raise ValueError(f"{name}: {value[bad].flat[0]} is not allowed; it must be a finite number above 0")
    return value


def _probability(name: str, value: ArrayLike) -> Array:
    value = np.asarray(value, dtype=np.float64)
    bad = ~((value >= 0) & (value <= 1))
    if bad.any():
        raise ValueError(f"{name}: {value[bad].flat[0]} is not allowed; it must lie in [0, 1]")
    return value


def _discrete(probs: ArrayLike, rewards: ArrayLike) -> tuple[Array, Array]:
    """Both as float64 [..., N], normalised exactly; ValueError naming the offending value."""
    probs, rewards = np.asarray(probs, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if probs.shape != rewards.shape or probs.ndim == 0 or probs.shape[-1] == 0:
        raise ValueError(
            f"rewards: shape {rewards.shape} is not allowed; probs has {probs.shape}, "
            "both must be [..., responses] with at least one response"
        )
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards: {rewards[~np.isfinite(rewards)].flat[0]} is not allowed; rewards must be finite")
    _probability("probs", probs)
    total = probs.sum(axis=-1, keepdims=True)
    if (np.abs(total - 1) > 1e-8).any():
        worst = total.flat[np.argmax(np.abs(total - 1))]
        raise ValueError(f"probs: a row sums to {worst!s}; every row must sum to 1 (within 1e-8)")
    return probs / total, rewards


def _centred(probs: Array, rewards: Array) -> tuple[Array, Array]:
    """Mean reward [...] and Δ = r − E r [..., N]; the second pass removes the rounding of the first."""
    mean = np.sum(probs * rewards, axis=-1, keepdims=True)
    delta = rewards - mean
    rest = np.sum(probs * delta, axis=-1, keepdims=True)
    return (mean + rest)[..., 0], delta - rest


# --- the population solution ----------------------------------------------------------------------


def log_partition(probs: ArrayLike, rewards: ArrayLike, tau: float) -> Array:
    """τ log Z = τ log E exp(r/τ), shape [...], in units of reward: the baseline of the exact step KL-PMD.

    `probs`, `rewards`: [..., responses]. Raises ValueError as `population_update` does.
    """
    probs, rewards = _discrete(probs, rewards)
    tau = float(_positive("tau", tau))
    mean, delta = _centred(probs, np.where(probs > 0, rewards, rewards.min()))
    return mean + tau * _log_mean_exp(probs, delta / tau)


def baseline_limit(probs: ArrayLike, rewards: ArrayLike, tau: float) -> Array:
    """The largest baseline b, shape [...], for which a normalised solution on the principal branch exists.

    With r* the best reward it is r* + τ(1 + log E[−W(−e^{−1−(r*−r)/τ})]), where ω = −1 in the module's text.
    Raises ValueError as `population_update` does.
    """
    probs, rewards = _discrete(probs, rewards)
    tau = float(_positive("tau", tau))
    best = np.where(probs > 0, rewards, -np.inf).max(axis=-1, keepdims=True)
    u = _gap(np.full_like(best, -1.0), np.maximum(best - rewards, 0) / tau)
    return best[..., 0] + tau * (1 + np.log(np.sum(probs * np.exp(-u), axis=-1)))


def _baseline(probs: Array, delta: Array, mean: Array, tau: float, baseline: Baseline) -> Array:
    """b − E r, shape [batch]."""
    if isinstance(baseline, str):
        if baseline not in ("mean", "partition"):
            raise ValueError(f"baseline: {baseline!r} is not allowed; 'mean', 'partition', a number or a Temperature")
        return tau * _log_mean_exp(probs, delta / tau) if baseline == "partition" else np.zeros_like(mean)
    if isinstance(baseline, Temperature):
        if np.isposinf(baseline.value):
            return np.zeros_like(mean)
        tau_b = float(_positive("baseline temperature", baseline.value))
        return tau_b * _log_mean_exp(probs, delta / tau_b)
    value = np.asarray(baseline, dtype=np.float64)
    if not np.isfinite(value).all():
        raise ValueError(f"baseline: {value[~np.isfinite(value)].flat[0]} is not allowed; it must be finite")
    if value.ndim > 0 and value.size != mean.size:
        raise ValueError(f"baseline: {value.size} values for {mean.size} prompts; give one, or one a prompt")
    return value.reshape(-1) - mean


def population_update(probs: ArrayLike, rewards: ArrayLike, tau: float, baseline: Baseline = "mean") -> Update:
    """The minimiser of ½E(s − (r − b)/τ)² over normalised policies on a discrete response set.

    `probs` (of π_t) and `rewards`: float64 [..., responses], rows of `probs` summing to 1; `tau` in units
    of reward. `baseline`: "mean" (PMD-mean), "partition" (KL-PMD, λ = 0), a number b or one b a prompt, or
    `Temperature(τ_b)`. A response of probability 0 carries no mass: its log_ratio is reported as 0. A
    constant reward gives λ = 0. For b > τ log Z, λ < 0; past `baseline_limit` there is no solution and
    `exists` is false. Raises ValueError naming τ ≤ 0, NaN, probabilities that do not sum to 1, or shapes
    that disagree.
    """
    probs, rewards = _discrete(probs, rewards)
    tau = float(_positive("tau", tau))
    shape = rewards.shape
    probs, rewards = probs.reshape(-1, shape[-1]), rewards.reshape(-1, shape[-1])
    best = np.where(probs > 0, rewards, -np.inf).max(axis=-1, keepdims=True)
    rewards = np.where(probs > 0, rewards, best)
    mean, advantage = _centred(probs, rewards - best)  # a constant reward becomes exactly 0
    mean += best[:, 0]
    shift = _baseline(probs, advantage, mean, tau, baseline)
    a = (advantage - shift[:, None]) / tau
    if isinstance(baseline, str) and baseline == "partition":
        lam, s = np.zeros_like(mean), a
    else:
        lam, s = _solve(probs, a, (best - rewards) / tau, mean=isinstance(baseline, str))
    s = np.where(probs > 0, s, 0.0)
    lead = shape[:-1]
    exists = ~np.isnan(lam)
    return Update(lam.reshape(lead), s.reshape(shape), exists.reshape(lead), (mean + shift).reshape(lead))


def lambert_log_ratio(x: ArrayLike, lam: ArrayLike) -> Array:
    """log ρ = x − W(λ e^x) for x = Δ/τ, λ ≥ 0, elementwise: the paper's formula, by Wright's ω function."""
    x, lam = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(lam, dtype=np.float64))
    if (lam < 0).any() or np.isnan(lam).any():
        raise ValueError(f"lam: {lam[~(lam >= 0)].flat[0]} is not allowed; it must be at least 0")
    with np.errstate(divide="ignore"):
        return x - wrightomega(x + np.log(lam))


# --- objectives -----------------------------------------------------------------------------------


def regression_loss(probs: ArrayLike, rewards: ArrayLike, log_ratio: ArrayLike, tau: float, b: ArrayLike) -> Array:
    """½ E (s − (r − b)/τ)² of shape [...], the regression in log-policy space; `log_ratio` is [..., N]."""
    residual = np.asarray(log_ratio) - (np.asarray(rewards) - np.asarray(b)[..., None]) / tau
    return 0.5 * np.sum(np.asarray(probs) * residual**2, axis=-1)


def divergences(probs: ArrayLike, log_ratio: ArrayLike) -> Divergences:
    """KL(π‖π_t), KL(π_t‖π) and χ²(π‖π_t) of a *normalised* π = π_t exp(log_ratio), each of shape [...].

    E(ρ − 1) = 0 is subtracted under the sums, so that every term is non-negative and small values keep
    their digits.
    """
    probs, s = np.asarray(probs, dtype=np.float64), np.asarray(log_ratio, dtype=np.float64)
    excess = np.expm1(s)
    kl = np.sum(probs * (np.exp(s) * s - excess), axis=-1)
    return Divergences(kl, np.sum(probs * (excess - s), axis=-1), np.sum(probs * excess**2, axis=-1))


def regularised_reward(probs: ArrayLike, rewards: ArrayLike, log_ratio: ArrayLike, tau: float, lam: ArrayLike) -> Array:
    """E_π r − τ [KL(π‖π_t) + (λ/2) χ²(π‖π_t)], shape [...]: what PMD-mean maximises, at its own λ."""
    kl, _, chi2 = divergences(probs, log_ratio)
    gain = np.sum(np.asarray(probs) * np.exp(log_ratio) * np.asarray(rewards), axis=-1)
    return gain - tau * (kl + 0.5 * np.asarray(lam) * chi2)


# --- binary rewards -------------------------------------------------------------------------------


def binary_update(
    p: ArrayLike,
    tau: ArrayLike,
    baseline: Literal["mean", "partition"] | float | Array = "mean",
    q: ArrayLike | None = None,
) -> BinaryStep:
    """One update with rewards in {0, 1} and P(r = 1) = p; all arguments broadcast, and so do the results.

    PMD-mean: ln ρ₁ + λρ₁ = (1 − p)/τ, ln ρ₀ + λρ₀ = −p/τ, pρ₁ + (1 − p)ρ₀ = 1; "partition": logit p′ =
    logit p + 1/τ; a number: that baseline b. `q` = 1 − p may be given where p is too near 1 for a float.
    Rewards in {−1, +1} are this case with τ/2. At p = 0 or 1 the reward is constant: λ = 0 and nothing
    changes. ValueError for τ ≤ 0, p outside [0, 1].
    """
    p = _probability("p", p)
    q = 1 - p if q is None else _probability("q", q)
    tau = _positive("tau", tau)
    if isinstance(baseline, str) and baseline not in ("mean", "partition"):
        raise ValueError(f"baseline: {baseline!r} is not allowed; 'mean', 'partition' or a number")
    b = p if isinstance(baseline, str) else np.asarray(baseline, dtype=np.float64)
    p, q, tau, b = np.broadcast_arrays(p, q, tau, b)
    shape, (p, q, tau, b) = p.shape, (x.ravel() for x in (p, q, tau, b))
    probs = np.stack([q, p], axis=-1)
    a = np.stack([-b, q if isinstance(baseline, str) else 1 - b], axis=-1) / tau[:, None]
    if isinstance(baseline, str) and baseline == "partition":
        lam, s = np.zeros_like(p), a - _log_mean_exp(probs, a)[:, None]
    else:
        delta = np.stack([1 / tau, np.zeros_like(tau)], axis=-1)
        lam, s = _solve(probs, a, delta, mean=isinstance(baseline, str))
    constant = (p == 0) | (q == 0)
    lam, s0, s1 = (np.where(constant, 0.0, x) for x in (lam, s[:, 0], s[:, 1]))
    columns = (lam, s1, s0, p * np.exp(s1), q * np.exp(s0), ~np.isnan(lam))
    return BinaryStep(*(x.reshape(shape) for x in columns))


def binary_iterates(
    p0: ArrayLike, tau: ArrayLike, steps: int, baseline: Literal["mean", "partition"] = "mean"
) -> tuple[Array, Array]:
    """p_t and 1 − p_t for t = 0 … `steps` under repeated `binary_update`, each of shape [steps + 1, ...]."""
    p, tau = np.broadcast_arrays(_probability("p0", p0), _positive("tau", tau))
    ps, qs = [np.array(p)], [1 - p]
    for _ in range(steps):
        step = binary_update(ps[-1], tau, baseline, q=qs[-1])
        ps.append(np.minimum(step.p_next, 1.0))
        qs.append(np.minimum(step.q_next, 1.0))
    return np.stack(ps), np.stack(qs)


# --- finite samples -------------------------------------------------------------------------------


def finite_sample(p: float, tau: float, n: int, estimator: Literal["mean", "partition"]) -> pd.DataFrame:
    """Every update that a baseline estimated from n rollouts can produce, rewards in {0, 1}, exactly.

    One rollout's baseline comes from the n − 1 others (leave one out, as in OpenKimi), k ~ Binomial(n − 1,
    p) of which succeed: b = k/(n − 1) for "mean", b = τ log((k e^{1/τ} + n − 1 − k)/(n − 1)) for
    "partition". The regression itself is taken over the whole population, so that what varies is the
    baseline and nothing else.

    Columns: k, probability, b, error (b minus the value it estimates: p, or τ log Z), excess (b − τ log Z,
    of the sign of −λ), lam, p_next, gain (p_next − p), exists. lam, p_next and gain are NaN where no
    normalised solution exists. Raises ValueError for n < 2, τ ≤ 0, p outside (0, 1) or an unknown
    estimator.
    """
    from scipy.stats import binom  # only here: it takes half a second to load, and a training run has no use for it

    p, tau = float(_probability("p", p)), float(_positive("tau", tau))
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
    return pd.DataFrame(
        {
            "k": k,
            "probability": binom.pmf(k, n - 1, p),
            "b": b,
            "error": b - (p if estimator == "mean" else log_z),
            "excess": b - log_z,
            "lam": step.lam,
            "p_next": step.p_next,
            "gain": step.p_next - p,
            "exists": step.exists,
        }
    )


def quantile(values: ArrayLike, weights: ArrayLike, level: float) -> float:
    """The smallest value at which the weighted distribution reaches `level`; NaN values have no weight."""
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    values, weights = values[~np.isnan(values)], weights[~np.isnan(values)]
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) >= level * weights.sum() * (1 - 1e-12)
    return float(values[order][np.argmax(reached)])


def finite_sample_summary(p: float, tau: float, n: int, estimator: Literal["mean", "partition"]) -> dict[str, float]:
    """`finite_sample` in numbers, all exact.

    p_negative: P(λ < 0 or no solution), i.e. the baseline exceeds τ log Z; p_none: P(no normalised
    solution); p_no_signal: P(all n rewards are equal). Given that a solution exists: mean_gain and
    worst_decile (the 10 % quantile) of p′ − p, and the 10, 50 and 90 % quantiles of p′ (p_next_*) and of
    KL(π_t‖π_{t+1}) (kl_*, nats).
    """
    table = finite_sample(p, tau, n, estimator)
    weight = table["probability"].to_numpy()
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


# --- the bridge to training -----------------------------------------------------------------------


def predicted_lambda(group_rewards: ArrayLike, tau: float) -> Prediction:
    """λ, KL(π_{t+1}‖π_t), χ²(π_{t+1}‖π_t) of one full PMD-mean step, from logged rewards [groups, n].

    Each group's n rewards stand in for π_t(·|x) with weight 1/n, the baseline is the group mean, and each
    response is taken to be as probable as it was sampled. λ = KL(π_t‖π_{t+1}), so a training log's
    −mean(s) after an update on the same rollouts, with s = Σ_t (log π_θ − log π_t), is the measured
    counterpart. For leave-one-out means pass τ(n − 1)/n: they scale the advantage by n/(n − 1). For
    rewards in {−1, +1} pass them as they are, with the τ that the run used.

    Bias. The empirical distribution replaces the true one: a group of equal rewards predicts 0 even where
    p is not 0 or 1, and for weak updates (large τ), where λ ≈ Var r/(2τ²), the prediction is low by the
    factor (n − 1)/n on average.

    Why a real network falls short of it: the prediction is the minimum of the regression for every prompt
    separately, with each response's probability free. A network shares its parameters among prompts and
    responses, is given a few optimizer steps at a small learning rate, has its loss divided by the
    response's length, and sees each response once or twice in a huge space. The prediction is the ceiling
    that the measurement approaches as the steps per batch and the capacity grow.

    Raises ValueError for an array that is not [groups, n], τ ≤ 0 or a reward that is not finite.
    """
    rewards = np.asarray(group_rewards, dtype=np.float64)
    if rewards.ndim != 2 or rewards.size == 0:
        raise ValueError(f"group_rewards: shape {rewards.shape} is not allowed; it must be [groups, n], neither empty")
    probs = np.full_like(rewards, 1 / rewards.shape[1])
    update = population_update(probs, rewards, tau)
    kl, _, chi2 = divergences(probs, update.log_ratio)
    return Prediction(update.lam, kl, chi2)


# --- the claims -----------------------------------------------------------------------------------


def _claim_rows() -> list[tuple[str, str, str, float, float]]:
    rng = np.random.default_rng(0)
    probs, rewards, tau = rng.dirichlet(np.ones(16), size=500), rng.normal(size=(500, 16)), 0.3
    lam, s, _, b = population_update(probs, rewards, tau)
    delta = (rewards - b[:, None]) / tau
    gradient = rewards - tau * (s + lam[:, None] * np.exp(s))
    above = population_update(probs, rewards, tau, log_partition(probs, rewards, tau) + 0.1 * tau)
    below = population_update(probs, rewards, tau, log_partition(probs, rewards, tau) - 0.1 * tau)
    grid_p, grid_tau = np.geomspace(1e-9, 0.999, 200)[:, None], np.geomspace(1e-3, 1e3, 60)
    step, exact = binary_update(grid_p, grid_tau), binary_update(grid_p, grid_tau, "partition")
    small = binary_update(1e-9, 0.01)
    certain = [binary_update(1 - 1e-9, 0.5, x, q=1e-9).q_next / 1e-9 * np.exp(2) for x in ("mean", "partition")]
    mean, part = (finite_sample_summary(0.05, 0.1, 16, e) for e in ("mean", "partition"))
    paper, here = "arXiv:2602.05933", "derived here"
    return [
        (
            "The population solution is ρ = W(λ e^{Δ/τ})/λ",
            paper,
            "test_the_lambert_formula_is_the_solution",
            float(np.abs(lambert_log_ratio(delta, lam[:, None]) - s).max()),
            1e-10,
        ),
        (
            "It maximises E r − τ[KL + (λ/2) χ²]: the gradient is constant over responses",
            paper,
            "test_an_independent_solver_finds_the_same_policy_for_both_objectives",
            float(np.ptp(gradient, axis=1).max()),
            1e-10,
        ),
        (
            "λ = KL(π_t‖π_{t+1})",
            here,
            "test_properties_of_every_solution",
            float(np.abs(-np.sum(probs * s, axis=1) / lam - 1).max()),
            1e-10,
        ),
        (
            "A baseline below τ log Z gives λ > 0, above it λ < 0 (share of cases with the wrong sign)",
            here,
            "test_lambda_is_the_reverse_kl_less_the_excess_of_the_baseline",
            float(np.mean(~((below.lam > 0) & ((above.lam < 0) | ~above.exists)))),
            0.0,
        ),
        (
            "PMD-mean's step in log-odds is smaller than KL-PMD's (largest excess, nats)",
            paper,
            "test_binary_equations_and_steps_in_log_odds",
            float(np.max(-step.lam * (np.exp(step.log_rho1) - np.exp(step.log_rho0)))),
            0.0,
        ),
        (
            "Failures keep at least e^{−p/τ−λ} of their probability (largest relative shortfall of log ρ₀)",
            here,
            "test_failures_lose_between_the_two_bounds_and_never_more_than_under_kl",
            float(np.max((-grid_p / grid_tau - step.lam - step.log_rho0) / (grid_p / grid_tau + step.lam))),
            1e-10,
        ),
        (
            "Failures lose no more than under KL-PMD (largest relative excess in log ρ₀)",
            paper,
            "test_failures_lose_between_the_two_bounds_and_never_more_than_under_kl",
            float(np.max((exact.log_rho0 - step.log_rho0) / -exact.log_rho0)),
            1e-10,
        ),
        (
            "Small p: ρ₁ → √((1/τ − ln ρ₁)/p), at p = 1e-9, τ = 0.01",
            here,
            "test_small_p_the_ratio_grows_like_the_square_root",
            float(abs(np.exp(small.log_rho1) * np.sqrt(1e-9 / (100 - small.log_rho1)) - 1)),
            1e-3,
        ),
        (
            "p → 1: both updates contract 1 − p by e^{−1/τ}, at 1 − p = 1e-9, τ = 0.5",
            here,
            "test_near_certainty_both_updates_contract_the_error_by_the_same_factor",
            float(np.abs(np.array(certain) - 1).max()),
            1e-8,
        ),
        (
            "τ → 0: λ = p(1 − p)/τ + p ln p + o(1), at p = 0.3, τ = 0.001",
            here,
            "test_small_tau_lambda_grows_like_the_variance_over_tau",
            float(abs(binary_update(0.3, 1e-3).lam / (0.21 / 1e-3 + 0.3 * np.log(0.3)) - 1)),
            1e-8,
        ),
        (
            "The mean baseline is the robust one: P(λ < 0) at p = 0.05, τ = 0.1, n = 16"
            f" (PMD-part: {part['p_negative']:.3f})",
            paper,
            "test_finite_samples_equal_the_enumeration_of_every_group",
            mean["p_negative"],
            1e-6,
        ),
    ]


def claims() -> pd.DataFrame:
    """The theory's claims: statement, source, proved_by (a test), measured residual, tolerance, holds."""
    table = pd.DataFrame(_claim_rows(), columns=["statement", "source", "proved_by", "residual", "tolerance"])
    table["proved_by"] = "tests/test_theory.py::" + table["proved_by"]
    return table.assign(holds=table["residual"] <= table["tolerance"])
