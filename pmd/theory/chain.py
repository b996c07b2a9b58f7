"""Repeated updates from n rollouts each: the exact Markov chain of the success probability, rewards in {0, 1}.

One update. Of n rollouts k ~ Binomial(n, p) succeed, and the regression is taken over these n, as a trainer does:

    minimise (1/n) Σ_i ½ (s_i − A_i/τ)²,      A_i = r_i − b_i,

b_i estimated from the other n − 1 rollouts (leave one out, the practical loss of this repository and of OpenKimi). All
successes share one ratio ρ₁ and all failures share ρ₀: what is learned of a kind holds for the whole kind. The group is
then a weighted prompt of weighted.py, whose weights say how often a kind was drawn for how often it was expected,
w₁ = (k/n)/p and w₀ = (1 − k/n)/(1 − p), with targets a₁ ≥ 0 ≥ a₀. (`binary.finite_sample` takes the regression over
the whole population, so that the baseline alone varies. Repeated, that would raise successes that nobody saw.)

- All rewards equal, k = 0 or n: every advantage is 0, so p stays, whatever the baseline.
- Targets that ask for at least the whole mass, p e^{a₁} + (1 − p) e^{a₀} ≥ 1: λ ≥ 0, and the solution is unique.
- Targets that ask for less: over the whole population this is λ < 0, the surplus must go to responses that have a
  target, and past a point no solution treats them equally (population.py). A group leaves other room: a response that
  no rollout showed has no term in the loss, so the minimum 0 is reached at s = a with the surplus on such responses.
  The constraint is E e^s ≤ 1, a solution always exists, and p′ = p e^{a₁}.

The surplus counts as failure: it lies on responses like none that was drawn. That is the pessimistic reading. If it
went to the two kinds instead, as it does while the optimizer has not found such responses, p′ would be larger.

Two things are then certain. p never falls, for any baseline between the smallest and the largest reward: a success has
A ≥ 0, a failure A ≤ 0. So a prompt cannot die out by the noise of the baseline; it can fail to take off. And as long as
no group has had both rewards, p is where it began, whatever the baseline. The baselines differ in the surplus: the mean
leaves one if and only if k/n > τ′ log E exp(r/τ′) with τ′ = τ(n − 1)/n and k < n.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pmd.theory.binary import binomial, quantile
from pmd.theory.population import Array, Temperature, check_all, log_partition, positive, probability
from pmd.theory.weighted import fit

TOP = 1 - 1e-6
"""The grid's last p. Beyond it less than one rollout in a million fails, and p stays."""


class GroupUpdate(NamedTuple):
    """What n rollouts of which k succeed do, [..., n + 1] over k: the next p, and the surplus 1 − E e^a or 0."""

    p_next: Array
    surplus: Array


class Chain(NamedTuple):
    """p [points] and its probability [steps + 1, points] after t updates.

    intact [steps + 1]: the probability that none of the first t updates had a surplus beyond `chain`'s `limit`.
    """

    p: Array
    probability: Array
    intact: Array


Estimator = Literal["mean", "partition"] | Temperature


def group_update(p: ArrayLike, tau: float, n: int, estimator: Estimator = "mean") -> GroupUpdate:
    """The update from n rollouts for every number k = 0 … n of successes, and each p [...] strictly between 0 and 1.

    `estimator`: the baseline from the other rollouts, their mean reward, τ log of their mean exp(r/τ) ("partition"), or
    τ_b log of their mean exp(r/τ_b) for `Temperature(τ_b)`. ValueError for n < 2, τ ≤ 0, p outside (0, 1), and an
    unknown estimator.
    """
    p, tau = probability("p", p), float(positive("tau", tau))
    check_all("p", p, (p > 0) & (p < 1), "it must lie strictly between 0 and 1")
    if n < 2:
        raise ValueError(f"n: {n} is not allowed; a group needs n ≥ 2 rollouts")
    b = _baselines(n - 1, tau, estimator)
    a = np.stack([-b[1:], 1 - b[:-1]], axis=-1) / tau  # k = 1 … n − 1: a failure's others hold k, a success's k − 1
    k = np.arange(1, n)[:, None]
    drawn = np.concatenate([n - k, k], axis=-1) / n
    probs = np.stack([1 - p, p], axis=-1)[..., None, :]
    probs, a, drawn = np.broadcast_arrays(probs, a, drawn)
    room = -np.sum(probs * np.expm1(a), axis=-1)
    s1, full = a[..., 1].copy(), room < 0
    if full.any():
        s1[full] = fit(probs[full], a[full], drawn[full] / probs[full])[1][:, 1]
    stay = p[..., None]
    p_next = np.concatenate([stay, stay * np.exp(s1), stay], axis=-1)
    surplus = np.pad(np.maximum(room, 0.0), [(0, 0)] * p.ndim + [(1, 1)])
    return GroupUpdate(np.minimum(p_next, 1.0), surplus)


def _baselines(others: int, tau: float, estimator: Estimator) -> Array:
    """The baseline estimated from `others` rollouts of which 0, 1, … all succeed: [others + 1]."""
    k = np.arange(others + 1) / others
    if estimator == "mean" or estimator == Temperature(np.inf):
        return k
    if not isinstance(estimator, Temperature) and estimator != "partition":
        raise ValueError(f"estimator: {estimator!r} is not allowed; 'mean', 'partition' or a Temperature")
    groups = np.stack([1 - k, k], axis=-1)
    return log_partition(
        groups, np.broadcast_to([0.0, 1.0], groups.shape), tau if estimator == "partition" else estimator.value
    )


def chain(
    p0: float, tau: float, n: int, steps: int, estimator: Estimator = "mean", limit: float = 0.1, points: int = 601
) -> Chain:
    """The distribution of p after 0 … `steps` updates of `group_update`, from p0.

    p lives on a grid of `points` values, even in log-odds from p0, below which it cannot fall, to TOP. A next p between
    two of them is divided between them so that the mean log-odds are kept; tests bound what this changes. `limit` is
    the surplus that counts in `intact`. ValueError as in `group_update`, and for p0 outside (0, TOP).
    """
    if not 0 < p0 < TOP:
        raise ValueError(f"p0: {p0} is not allowed; it must lie strictly between 0 and {TOP}")
    ends = [np.log(x / (1 - x)) for x in (p0, TOP)]
    odds = np.linspace(*ends, points)
    p = 1 / (1 + np.exp(-odds))
    update, chance = group_update(p, tau, n, estimator), binomial(n, p)
    with np.errstate(divide="ignore"):
        place = (np.log(update.p_next) - np.log1p(-update.p_next) - ends[0]) / (odds[1] - odds[0])
    place[:, [0, -1]] = np.arange(points)[:, None]
    place = np.clip(place, 0, points - 1)
    left = np.minimum(place.astype(int), points - 2)
    right = place - left

    def moved(mass: Array, kept: Array) -> Array:
        share = mass[:, None] * chance * kept
        low = np.bincount(left.ravel(), (share * (1 - right)).ravel(), points)
        return low + np.bincount(left.ravel() + 1, (share * right).ravel(), points)

    spared = update.surplus <= limit
    masses = [np.eye(1, points)[0]]
    untouched = [masses[0]]
    for _ in range(steps):
        masses.append(moved(masses[-1], np.ones_like(spared)))
        untouched.append(moved(untouched[-1], spared))
    return Chain(p, np.stack(masses), np.sum(untouched, axis=1))


def chain_summary(
    p0: float, tau: float, n: int, steps: int, estimator: Estimator = "mean", limit: float = 0.1
) -> dict[str, float]:
    """`chain` after `steps` updates in numbers.

    median and worst_decile (10 % quantile) of p; unsolved: P(p < ½); unseen: P(no group so far had a success), which no
    baseline can change; surplus: P(at least one update left more than `limit` of the mass to responses never drawn).
    """
    result = chain(p0, tau, n, steps, estimator, limit)
    last = result.probability[-1]
    return {
        "median": quantile(result.p, last, 0.5),
        "worst_decile": quantile(result.p, last, 0.1),
        "unsolved": float(last[result.p < 0.5].sum()),
        "unseen": float((1 - p0) ** (n * steps)),
        "surplus": max(float(1 - result.intact[-1]), 0.0),
    }
