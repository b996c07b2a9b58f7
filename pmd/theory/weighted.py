"""The update when the regression weighs responses, as the practical loss does: w = 1/L for a response of L tokens.

Everything is per prompt, in the notation of population.py. With a weight w > 0 for every response,

    minimise ½ E w (s − a)²  subject to  E e^s = 1,      a = (r − b)/τ,

has the stationarity condition s + (λ/w) e^s = a. What follows from it:

- The objective. The same policy maximises E_π r − τ[KL(π‖π_t) + (λ/2) E ρ²/w], for every baseline with λ ≥ 0. Let
  q = w π_t/E w be the sampling policy tilted by the weights. Then E ρ²/w = (1 + χ²(π‖q))/E w: the χ² term pulls
  towards q, which for w = 1/L prefers short responses, and no longer towards π_t.
- The unit of λ. With weights c w the policy is the same and the multiplier is c λ; λ/w has no unit and is the weight
  of χ² for one response. For w = 1/L, λ is per token and λ/w = λL. With E w = 1, λ compares with that of equal weights.
- What a log measures. With b = E r, the plain mean, −E s = KL(π_t‖π_{t+1}) = λ E_{π_{t+1}}[1/w], so λ ≥ 0. With the
  weighted mean b = E[w r]/E w it is λ = −E[w s] instead. That mean may exceed τ log Z, where better responses have
  larger weights (are shorter), and then λ < 0. For any b, −E s = λ E_{π_{t+1}}[1/w] + (b − E r)/τ.
- Length. Among equally rewarded responses and for λ > 0, d log ρ/d log w = ω/(1 + ω) with ω = λρ/w > 0: a longer one
  gets the smaller ratio. That holds a good response back, to ρ nearer 1 or even below it, but pushes a bad one further
  down. Hence given the reward the mean of 1/w falls or stays: responses become shorter.
- The ideal baseline b = τ log Z gives λ = 0 and the exact step KL-PMD, whatever the weights.

How it is solved. With t = log(π_{t+1}/q) and w̃ = w/E w the condition reads t + λ/(E w) e^t = a − log w̃, E_q e^t = 1:
the problem of population.py at q with rewards r − τ log w̃. Its solver thus does the work in log space, for both signs
of λ, and tells where a solution ends: at ω = −1 for the response with the largest a − log w. The shift by log w̃ costs
digits where λ and s are tiny, so two Newton steps on E(e^s − 1) = 0 restore them for λ ≥ 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from pmd.theory.lambert import wright_omega
from pmd.theory.population import Array, Baseline, Update, discrete, divergences, population_update, positive, solve


def weighted_update(
    probs: ArrayLike, rewards: ArrayLike, weights: ArrayLike, tau: float, baseline: Baseline = "mean"
) -> Update:
    """The minimiser of ½E w(s − (r − b)/τ)² over normalised policies on a discrete response set.

    `probs`, `rewards`, `weights`: float64 [..., responses]; `weights` above 0 in any unit, which is the unit of the λ
    returned. `baseline` and the result are those of `population_update`; "mean" is the plain mean E r, for the weighted
    mean pass its value. ValueError as there, and for a weight that is not a finite number above 0.
    """
    probs, rewards = discrete(probs, rewards)
    weights = positive("weights", weights)
    if weights.shape != rewards.shape:
        raise ValueError(f"weights: shape {weights.shape} is not allowed; rewards has {rewards.shape}")
    plain = population_update(probs, rewards, tau, baseline)
    if isinstance(baseline, str) and baseline == "partition":
        return plain
    a = np.where(probs > 0, rewards - plain.b[..., None], 0.0) / tau
    mean = isinstance(baseline, str)
    if mean:
        a -= np.sum(probs * a, axis=-1, keepdims=True)  # the rounding of the mean
    lam, s = (x.reshape(shape) for x, shape in zip(fit(probs, a, weights, mean), (plain.b.shape, a.shape), strict=True))
    return Update(lam, s, ~np.isnan(lam), plain.b)


def fit(probs: Array, a: Array, weights: Array, mean: bool = False) -> tuple[Array, Array]:
    """λ [B] and s [B, N] of the weighted regression on targets a, all arguments [..., N]; NaN without a solution.

    mean: λ ≥ 0 is known beforehand, so rounding cannot make it negative.
    """
    probs, a, weights = (x.reshape(-1, x.shape[-1]) for x in (probs, a, weights))
    scale = np.sum(probs * weights, axis=-1)
    log_w = np.log(weights) - np.log(scale)[:, None]
    shifted = a - log_w
    best = np.where(probs > 0, shifted, -np.inf).max(axis=-1, keepdims=True)
    shifted = np.where(probs > 0, shifted, best)
    lam, t = solve(probs * np.exp(log_w), shifted, best - shifted, mean)
    s = np.where(probs > 0, t + log_w, 0.0)
    rows = lam >= 0
    lam[rows], s[rows] = _polished(probs[rows], a[rows], log_w[rows], np.where(np.any(a[rows], axis=-1), lam[rows], 0))
    return lam * scale, s


def _polished(probs: Array, a: Array, log_w: Array, lam: Array) -> tuple[Array, Array]:
    """λ ≥ 0 and s with the digits that the shift by log w took: Newton's method on E(e^s − 1) as a function of λ."""
    for last in (False, False, True):
        with np.errstate(divide="ignore"):
            omega = wright_omega(a + np.log(lam)[:, None] - log_w)
        s = np.where(probs > 0, a - omega, 0.0)
        excess = np.sum(probs * np.expm1(s), axis=-1)
        if not last:
            slope = np.sum(probs * np.exp(s) * np.exp(s - log_w) / (1 + omega), axis=-1)
            lam = np.maximum(lam + excess / slope, 0.0)
    return lam, np.where(probs > 0, s - np.log1p(excess)[:, None], 0.0)


def weighted_objective(
    probs: ArrayLike, rewards: ArrayLike, weights: ArrayLike, log_ratio: ArrayLike, tau: float, lam: ArrayLike
) -> Array:
    """E_π r − τ[KL(π‖π_t) + (λ/2) E ρ²/w] of a normalised π = π_t exp(log_ratio), shape [...], in units of reward."""
    probs, rho = np.asarray(probs, dtype=np.float64), np.exp(log_ratio)
    penalty = 0.5 * np.asarray(lam) * np.sum(probs * rho**2 / np.asarray(weights), axis=-1)
    kl = divergences(probs, log_ratio).kl
    return np.sum(probs * rho * np.asarray(rewards), axis=-1) - tau * (kl + penalty)
