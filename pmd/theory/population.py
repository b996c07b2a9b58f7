"""The population update of PMD-mean, exact to machine precision (Xu, Lu, Yu, Zhao, arXiv:2602.05933).

Everything is per prompt. π_t is the sampling policy, E its expectation, r the reward, τ > 0 the regularisation,
ρ = π_{t+1}/π_t the policy ratio and s = log ρ. Regressing s on (r − b)/τ over *normalised* policies,

    minimise ½ E (s − a)²  subject to  E e^s = 1,      a = (r − b)/τ,

has the stationarity condition s + λ e^s = a, hence ρ = W(λ e^a)/λ with W Lambert's function. The baseline b = E r
gives PMD-mean; b = τ log E exp(r/τ) gives λ = 0, the exact mirror-descent step KL-PMD.

How it is solved. e^a overflows and λ may be 1e-16 or 1e3, so the unknown is ω = λ ρ_best, the value of W at the
response with the highest reward. Subtracting the stationarity conditions of that response and of another gives

    u + ω (1 − e^{−u}) = δ,      δ = (r_best − r)/τ ≥ 0,   u = s_best − s ≥ 0,

one scalar equation per response with neither overflow nor special function, valid for every sign of λ: ω ≥ −1 is
exactly the principal branch of W. What is left is one equation for ω, E (ρ − 1) = 0 with s = a − ω e^{−u}, solved by
Newton's method on log E ρ inside a bracket. `expm1` keeps E (ρ − 1) free of cancellation when λ is tiny.

For λ ≥ 0 the solution is the global minimiser. For λ < 0 it is the continuation of the mirror-descent step, a strict
local minimiser as long as ω > −1. It ends at ω = −1, at the baseline that `lambert.baseline_limit` gives. Beyond it
`exists` is false and λ is NaN: no normalised policy is left on the principal branch. A stationary policy that treats
equally rewarded responses equally is then a saddle, and the regression lowers its loss by piling the surplus mass
onto a single one of the best responses.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
_BLOCK = 1 << 16  # elements solved together: the working set stays in the processor's cache


class Temperature(NamedTuple):
    """The baseline b(τ_b) = τ_b log E exp(r/τ_b): τ_b = τ is τ log Z, τ_b → ∞ the mean reward."""

    value: float


Baseline = Literal["mean", "partition"] | float | Array | Temperature


class Update(NamedTuple):
    """λ, log π_{t+1}/π_t (one axis more), whether a solution exists (else both are NaN), and the baseline b."""

    lam: Array
    log_ratio: Array
    exists: NDArray[np.bool_]
    b: Array


class Divergences(NamedTuple):
    """KL(π_{t+1}‖π_t), KL(π_t‖π_{t+1}) and χ²(π_{t+1}‖π_t) in nats, each of the batch's shape."""

    kl: Array
    reverse_kl: Array
    chi2: Array


class Prediction(NamedTuple):
    """λ, KL(π_{t+1}‖π_t) and χ²(π_{t+1}‖π_t) expected of one full update on each group, shape [groups]."""

    lam: Array
    kl: Array
    chi2: Array


# --- the solver ----------------------------------------------------------------------------------------------------
def solve_gap(omega: Array, delta: Array, near: Array | None = None) -> Array:
    """Solve u + ω(1 − e^{−u}) = δ for u ≥ 0, given ω ≥ −1 and δ ≥ 0 (the principal branch of Lambert's W).

    The start replaces 1 − e^{−u} by its bounds 2u/(2 + u) and 1. From there Halley steps always converge, the double
    root at ω = −1, δ = 0 included: at most four up to ω, δ = 1000, a few more at 1e6. For ω ≥ 0 the left side is
    increasing and concave, so they converge from `near`, the solution at another ω, too.
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


def log_mean_exp(probs: Array, x: Array) -> Array:
    """log E e^x over the last axis, without overflow and without cancellation for small x."""
    top = x.max(axis=-1, keepdims=True)
    excess = np.sum(probs * np.expm1(np.minimum(x, 500.0)), axis=-1)
    near = (top[..., 0] < 500) & (excess > -0.5)  # log1p keeps the digits of a logarithm near 0
    far = top[..., 0] + np.log(np.sum(probs * np.exp(x - top), axis=-1))
    return np.where(near, np.log1p(np.where(near, excess, 0.0)), far)


def _excess(
    omega: Array, probs: Array, a: Array, delta: Array, near: Array | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """At ω [B]: s [B, N], E(ρ − 1) [B] and its derivative in ω [B], the u [B, N] of `solve_gap` and du/dω [B, N].

    The last, du/dω, is right for ω ≥ 0 only, and only there is it used.
    """
    w = omega[:, None]
    u = solve_gap(w, delta, near)
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

    Returns ω and u there to first order, from which the next `solve_gap` starts.
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
    """`solve` for as many prompts as fit in the processor's cache together."""
    best = a.max(axis=-1)
    with np.errstate(divide="ignore"):
        log_mass = np.minimum(np.log(np.sum(probs * (delta == 0), axis=-1)), 0.0)
    zero = np.zeros(len(a))
    negative = np.zeros(len(a), dtype=bool) if mean else log_mean_exp(probs, a) < 0
    fold = (
        -1 - np.log(np.sum(probs * np.exp(-solve_gap(zero[:, None] - 1, delta)), axis=-1)) if negative.any() else zero
    )
    exists = ~negative | (best >= fold)
    # 1 ≤ ρ_best ≤ 1/P(best) for λ ≥ 0 and the principal branch for λ < 0
    low = np.where(negative, -1.0, np.maximum(best + log_mass, 0.0))
    high = np.where(negative, 0.0, np.maximum(best, low))
    omega, gap = _find_omega(probs, a, delta, low, high)
    s, excess, *_ = _excess(omega, probs, a, delta, gap)
    s = s - np.log1p(excess)[:, None]  # rounding only: E ρ = 1 to the last digit
    lam = omega * np.exp(omega - best)
    return np.where(exists, lam, np.nan), np.where(exists[:, None], s, np.nan)


def solve(probs: Array, a: Array, delta: Array, mean: bool) -> tuple[Array, Array]:
    """λ [B] and s [B, N] for targets a [B, N], block by block; both are NaN where there is no solution.

    delta: (r_best − r)/τ, [B, N]. mean: the baseline is the mean reward, so λ ≥ 0 whatever the rounding.
    """
    rows = max(1, _BLOCK // a.shape[1])
    blocks = [slice(i, i + rows) for i in range(0, len(a), rows)] or [slice(0, 0)]
    lam, s = zip(*(_solve_block(probs[i], a[i], delta[i], mean) for i in blocks), strict=True)
    return np.concatenate(lam), np.concatenate(s)


# --- checked arguments ---------------------------------------------------------------------------------------------
def positive(name: str, value: ArrayLike) -> Array:
    """`value` as float64; ValueError naming the first entry that is not a finite number above 0."""
    value = np.asarray(value, dtype=np.float64)
    return check_all(name, value, np.isfinite(value) & (value > 0), "it must be a finite number above 0")


def probability(name: str, value: ArrayLike) -> Array:
    """`value` as float64; ValueError naming the first entry outside [0, 1]."""
    value = np.asarray(value, dtype=np.float64)
    return check_all(name, value, (value >= 0) & (value <= 1), "it must lie in [0, 1]")


def check_all(name: str, value: Array, good: NDArray[np.bool_], allowed: str) -> Array:
    """`value`; ValueError naming its first entry that is not `good`."""
    if not good.all():
        raise ValueError(f"{name}: {value[~good].flat[0]} is not allowed; {allowed}")
    return value


def discrete(probs: ArrayLike, rewards: ArrayLike) -> tuple[Array, Array]:
    """Both as float64 [..., N], normalised exactly; ValueError naming the offending value."""
    probs, rewards = np.asarray(probs, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if probs.shape != rewards.shape or probs.ndim == 0 or probs.shape[-1] == 0:
        raise ValueError(
            f"rewards: shape {rewards.shape} is not allowed; probs has {probs.shape}, "
            "both must be [..., responses] with at least one response"
        )
    check_all("rewards", rewards, np.isfinite(rewards), "rewards must be finite")
    probability("probs", probs)
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


# --- the population solution ---------------------------------------------------------------------------------------
def log_partition(probs: ArrayLike, rewards: ArrayLike, tau: float) -> Array:
    """τ log Z = τ log E exp(r/τ), shape [...], in units of reward: the baseline of the exact step KL-PMD.

    `probs`, `rewards`: [..., responses]. Raises ValueError as `population_update` does.
    """
    probs, rewards = discrete(probs, rewards)
    tau = float(positive("tau", tau))
    mean, delta = _centred(probs, np.where(probs > 0, rewards, rewards.min()))
    return mean + tau * log_mean_exp(probs, delta / tau)


def _baseline(probs: Array, delta: Array, mean: Array, tau: float, baseline: Baseline) -> Array:
    """b − E r, shape [batch]."""
    if isinstance(baseline, str):
        if baseline not in ("mean", "partition"):
            raise ValueError(f"baseline: {baseline!r} is not allowed; 'mean', 'partition', a number or a Temperature")
        return tau * log_mean_exp(probs, delta / tau) if baseline == "partition" else np.zeros_like(mean)
    if isinstance(baseline, Temperature):
        if np.isposinf(baseline.value):
            return np.zeros_like(mean)
        tau_b = float(positive("baseline temperature", baseline.value))
        return tau_b * log_mean_exp(probs, delta / tau_b)
    value = np.asarray(baseline, dtype=np.float64)
    check_all("baseline", value, np.isfinite(value), "it must be finite")
    if value.ndim > 0 and value.size != mean.size:
        raise ValueError(f"baseline: {value.size} values for {mean.size} prompts; give one, or one a prompt")
    return value.reshape(-1) - mean


def population_update(probs: ArrayLike, rewards: ArrayLike, tau: float, baseline: Baseline = "mean") -> Update:
    """The minimiser of ½E(s − (r − b)/τ)² over normalised policies on a discrete response set.

    `probs` (of π_t) and `rewards`: float64 [..., responses], rows of `probs` summing to 1; `tau` in units of reward.
    `baseline`: "mean" (PMD-mean), "partition" (KL-PMD, λ = 0), a number b or one b a prompt, or `Temperature(τ_b)`. A
    response of probability 0 carries no mass: its log_ratio is reported as 0. A constant reward gives λ = 0. For
    b > τ log Z, λ < 0; past `lambert.baseline_limit` there is no solution and `exists` is false. Raises ValueError
    naming τ ≤ 0, NaN, probabilities that do not sum to 1, or shapes that disagree.
    """
    probs, rewards = discrete(probs, rewards)
    tau = float(positive("tau", tau))
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
        lam, s = solve(probs, a, (best - rewards) / tau, mean=isinstance(baseline, str))
    s = np.where(probs > 0, s, 0.0)
    lead = shape[:-1]
    exists = ~np.isnan(lam)
    return Update(lam.reshape(lead), s.reshape(shape), exists.reshape(lead), (mean + shift).reshape(lead))


# --- what the update maximises -------------------------------------------------------------------------------------
def divergences(probs: ArrayLike, log_ratio: ArrayLike) -> Divergences:
    """KL(π‖π_t), KL(π_t‖π) and χ²(π‖π_t) of a *normalised* π = π_t exp(log_ratio), each of shape [...].

    E(ρ − 1) = 0 is subtracted under the sums, so that every term is non-negative and small values keep their digits.
    """
    probs, s = np.asarray(probs, dtype=np.float64), np.asarray(log_ratio, dtype=np.float64)
    excess = np.expm1(s)
    kl = np.sum(probs * (np.exp(s) * s - excess), axis=-1)
    return Divergences(kl, np.sum(probs * (excess - s), axis=-1), np.sum(probs * excess**2, axis=-1))


def regularised_reward(probs: ArrayLike, rewards: ArrayLike, log_ratio: ArrayLike, tau: float, lam: ArrayLike) -> Array:
    """E_π r − τ [KL(π‖π_t) + (λ/2) χ²(π‖π_t)], shape [...]: the mixed regulariser that PMD-mean maximises at its λ."""
    kl, _, chi2 = divergences(probs, log_ratio)
    gain = np.sum(np.asarray(probs) * np.exp(log_ratio) * np.asarray(rewards), axis=-1)
    return gain - tau * (kl + 0.5 * np.asarray(lam) * chi2)


# --- the bridge to training ----------------------------------------------------------------------------------------
def predicted_lambda(group_rewards: ArrayLike, tau: float) -> Prediction:
    """λ, KL(π_{t+1}‖π_t), χ²(π_{t+1}‖π_t) of one full PMD-mean step, from logged rewards [groups, n].

    Each group's n rewards stand in for π_t(·|x) with weight 1/n, the baseline is the group mean, and each response is
    taken to be as probable as it was sampled. λ = KL(π_t‖π_{t+1}), so the measured counterpart in a training log is
    −mean(s) after an update on the same rollouts, with s = Σ_t (log π_θ − log π_t). For leave-one-out means pass
    τ(n − 1)/n: they scale the advantage by n/(n − 1). For rewards in {−1, +1} pass them as they are, with the τ that
    the run used.

    Bias: the empirical distribution replaces the true one. A group of equal rewards predicts 0 even where p is not 0
    or 1, and for weak updates (large τ), where λ ≈ Var r/(2τ²), the prediction is low by (n − 1)/n on average.

    A real network falls short of the prediction, which is the minimum of the regression for every prompt separately,
    with each response's probability free. A network shares its parameters among prompts and responses, takes a few
    small optimizer steps, divides its loss by the response's length, and sees each response once or twice.

    Raises ValueError for an array that is not [groups, n], τ ≤ 0 or a reward that is not finite.
    """
    rewards = np.asarray(group_rewards, dtype=np.float64)
    if rewards.ndim != 2 or rewards.size == 0:
        raise ValueError(f"group_rewards: shape {rewards.shape} is not allowed; it must be [groups, n], neither empty")
    probs = np.full_like(rewards, 1 / rewards.shape[1])
    update = population_update(probs, rewards, tau)
    kl, _, chi2 = divergences(probs, update.log_ratio)
    return Prediction(update.lam, kl, chi2)
