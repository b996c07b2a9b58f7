"""The weighted regression, against brute force, the unweighted solver, 50-digit arithmetic and its own claims."""

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pmd.theory.population import Temperature, divergences, log_partition, population_update
from pmd.theory.weighted import weighted_objective, weighted_update
from pmd.trainer.objectives import Hyper, Minibatch, group_mean, regression


def prompts(seed, responses=8, batch=()):
    """Random probabilities, rewards and weights 1/L, L from 1 to 2000 tokens."""
    rng = np.random.default_rng(seed)
    shape = (*batch, responses)
    return rng.dirichlet(np.ones(responses), size=batch), rng.normal(size=shape), 1 / rng.integers(1, 2000, size=shape)


@settings(max_examples=80, deadline=None)
@given(
    rewards=st.lists(st.integers(-5, 5), min_size=1, max_size=12),
    log_tau=st.floats(-3, 3),
    decades=st.floats(0, 8),
    seed=st.integers(0, 99),
)
def test_every_solution_is_stationary_and_normalised(rewards, log_tau, decades, seed):
    """s + (λ/w) e^s = (r − b)/τ, E e^s = 1, and λ = 0 only for a constant reward; weights over up to eight decades."""
    rng, rewards, tau = np.random.default_rng(seed), np.array(rewards, dtype=float), 10**log_tau
    probs, weights = rng.dirichlet(np.ones(len(rewards))), 10 ** (decades * rng.random(len(rewards)))
    lam, s, exists, b = weighted_update(probs, rewards, weights, tau)
    assert exists
    assert np.sum(probs * np.exp(s)) == pytest.approx(1, abs=1e-10)
    assert b == pytest.approx(np.sum(probs * rewards), abs=1e-14)
    a = (rewards - b) / tau
    np.testing.assert_allclose(s + lam / weights * np.exp(s), a, rtol=1e-10, atol=1e-10 * np.abs(a).max() + 1e-14)
    assert (lam > 0) == (len(set(rewards)) > 1)
    assert lam >= 0


@pytest.mark.parametrize("baseline", ["mean", "partition", Temperature(2.0), 0.2, np.arange(6) / 10])
def test_equal_weights_are_the_unweighted_update(baseline):
    probs, rewards, _ = prompts(0, batch=(2, 3))
    for value in (1.0, 1 / 731):
        weighted = weighted_update(probs, rewards, np.full_like(probs, value), 0.4, baseline)
        plain = population_update(probs, rewards, 0.4, baseline)
        np.testing.assert_allclose(weighted.lam, value * plain.lam, rtol=1e-10)
        np.testing.assert_allclose(weighted.log_ratio, plain.log_ratio, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(weighted.exists, plain.exists)
        np.testing.assert_allclose(weighted.b, plain.b, rtol=1e-14)


def test_no_policy_nearby_or_far_has_a_smaller_loss():
    """The gradient of the loss over softmax logits vanishes, and a search from random starts ends there."""
    probs, rewards, weights = prompts(1, 6)
    tau, scaled = 0.3, weights / weights.mean()
    update = weighted_update(probs, rewards, weights, tau)
    a = (rewards - update.b) / tau

    def loss(theta):
        log_pi = theta - np.logaddexp.reduce(theta)
        pull = probs * scaled * (log_pi - np.log(probs) - a)
        return 0.5 * np.sum(pull**2 / (probs * scaled)), pull - np.exp(log_pi) * pull.sum()

    best, gradient = loss(np.log(probs) + update.log_ratio)
    assert np.abs(gradient).max() < 1e-10
    for start in np.random.default_rng(0).normal(scale=3, size=(5, 6)):
        found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-12})
        assert found.fun >= best - 1e-13
        log_pi = found.x - np.logaddexp.reduce(found.x)
        np.testing.assert_allclose(log_pi - np.log(probs), update.log_ratio, atol=1e-5)


@pytest.mark.parametrize("baseline", ["mean", -0.7])
def test_it_maximises_the_mixed_regulariser_with_each_chi_square_weight_over_w(baseline):
    """No other policy has a larger E r − τ[KL + (λ/2) E ρ²/w]; its gradient is constant only for this λ."""
    probs, rewards, weights = prompts(2)
    tau = 0.2
    update = weighted_update(probs, rewards, weights, tau, baseline)
    noise = np.random.default_rng(0).normal(size=(5000, 8)) * np.geomspace(1e-3, 1, 5000)[:, None]
    others = update.log_ratio + noise
    others -= np.log(np.exp(others) @ probs)[:, None]
    reached = weighted_objective(probs, rewards, weights, update.log_ratio, tau, update.lam)
    assert weighted_objective(probs, rewards, weights, others, tau, update.lam).max() < reached
    for factor, constant in ((1.0, True), (1.1, False)):
        rho = np.exp(update.log_ratio)
        gradient = rewards - tau * (update.log_ratio + factor * update.lam * rho / weights)
        assert bool(np.ptp(gradient) < 1e-10) is constant


def test_the_penalty_is_a_chi_square_from_the_tilted_policy():
    probs, rewards, weights = prompts(3)
    s = weighted_update(probs, rewards, weights, 0.5).log_ratio
    tilted = probs * weights / np.sum(probs * weights)
    chi2 = divergences(tilted, s + np.log(probs / tilted)).chi2
    expected = (1 + chi2) / np.sum(probs * weights)
    assert np.sum(probs * np.exp(s) ** 2 / weights) == pytest.approx(expected, rel=1e-10)


def test_the_reverse_kl_is_the_mean_of_lambda_over_w_for_the_plain_mean():
    """−E s = λ E_new[1/w] + (b − E r)/τ: for b = E r it is λ E_new[1/w]; for the weighted mean λ = −E[w s]."""
    probs, rewards, weights = prompts(4, batch=(200,))
    tau, plain = 0.3, np.sum(probs * rewards, axis=1)
    weighted = np.sum(probs * weights * rewards, axis=1) / np.sum(probs * weights, axis=1)
    for b in ("mean", weighted, plain - 0.5):
        update = weighted_update(probs, rewards, weights, tau, b)
        where, s = update.exists, update.log_ratio
        right = update.lam * np.sum(probs * np.exp(s) / weights, axis=1) + (update.b - plain) / tau
        np.testing.assert_allclose(-np.sum(probs * s, axis=1)[where], right[where], rtol=1e-10)
        identity = np.abs(-np.sum(probs * weights * s, axis=1) / update.lam - 1)[where]
        assert (identity.max() < 1e-9) == (b is weighted)
    assert where.all()


def test_the_weighted_mean_can_exceed_the_ideal_baseline_and_the_plain_mean_cannot():
    """Success is short, failure long: b = E[w r]/E w = 10/11 > τ log Z, and λ < 0 or no solution is left."""
    probs, rewards, weights = [0.5, 0.5], [0.0, 1.0], [0.1, 1.0]
    assert log_partition(probs, rewards, 1.0) < 10 / 11
    assert weighted_update(probs, rewards, weights, 1.0, 10 / 11).lam < 0
    assert not weighted_update(probs, rewards, weights, 1.0, 3.0).exists
    assert weighted_update(probs, rewards, weights, 1.0).lam > 0


@pytest.mark.parametrize("factor", [1e-6, 0.25, 3e5])
def test_scaled_weights_scale_lambda_and_leave_the_policy(factor):
    probs, rewards, weights = prompts(5, batch=(50,))
    for b in ("mean", 0.1):
        one, other = (weighted_update(probs, rewards, w, 0.2, b) for w in (weights, factor * weights))
        np.testing.assert_allclose(other.lam, factor * one.lam, rtol=1e-10)
        np.testing.assert_allclose(other.log_ratio, one.log_ratio, rtol=1e-10, atol=1e-12)


def log_ratio(target, strength):
    """s with s + strength·e^s = target, by bisection."""
    low, high = -50.0, target
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle + strength * np.exp(middle) < target else (low, middle)
    return middle


def test_a_longer_response_gets_the_smaller_ratio_whether_it_is_good_or_bad():
    """Among equal rewards log ρ falls by ω/(1 + ω) of log L: good ones towards 1, bad ones away from it."""
    lengths, rewards = np.array([10.0, 100.0, 1000.0] * 2), np.array([0.0] * 3 + [1.0] * 3)
    probs = np.full(6, 1 / 6)
    lam, s, _, _ = weighted_update(probs, rewards, 1 / lengths, 0.5)
    assert (np.diff(s[:3]) < 0).all()
    assert (np.diff(s[3:]) < 0).all()
    assert (s[:3] < 0).all()
    assert s[3] > 0 > s[5]  # the longest success is even held below its old probability
    step, omega = 1e-5, lam * 100 * np.exp(s[4])
    longer, shorter = (log_ratio(1.0, lam * 100 * np.exp(sign * step)) for sign in (1, -1))  # Δ/τ of a success is 1
    assert (longer - shorter) / (2 * step) == pytest.approx(-omega / (1 + omega), rel=1e-6)
    pi = probs * np.exp(s)
    for kind in (slice(3), slice(3, 6)):
        assert np.average(lengths[kind], weights=pi[kind]) < lengths[kind].mean()


def test_the_first_gradient_step_spares_long_failures_and_the_solution_does_not():
    """At θ_t a failure is pushed down by 1/L, so that a long one rises against a short one; solved, it ends below."""
    counts = torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64)
    rewards, lengths = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), torch.tensor([1, 4, 2])
    drawn = torch.repeat_interleave(torch.arange(3), counts.long())
    advantage = group_mean(rewards[drawn][None], 0.5)[0]

    def descend(steps):
        theta = torch.log(counts).requires_grad_()
        for _ in range(steps):
            s = (torch.log_softmax(theta, 0) - torch.log(counts / counts.sum()))[drawn]
            rows = torch.repeat_interleave(torch.arange(len(drawn)), lengths[drawn])
            tokens = (s / lengths[drawn])[rows]
            loss, _ = regression(Minibatch(tokens, advantage, rows, lengths[drawn], 4), Hyper(tau=0.5))
            (gradient,) = torch.autograd.grad(loss, theta)
            theta = (theta - 4 * gradient).detach().requires_grad_()
        return (torch.log_softmax(theta, 0).detach() - torch.log(counts / counts.sum())).numpy()

    first, solved = descend(1), descend(4000)
    assert first[1] > first[0]
    assert solved[1] < solved[0]
    update = weighted_update(np.full(3, 1 / 3), rewards.numpy(), 1 / lengths.numpy(), 0.5)
    np.testing.assert_allclose(solved, update.log_ratio, atol=1e-9)


@pytest.mark.parametrize(("p", "tau"), [(3e-9, 37.0), (1e-3, 1e3), (0.2, 1e-3), (1 - 1e-9, 1.0)])
def test_fifty_digits(p, tau):
    weights = np.array([0.01, 0.03])
    lam, s, _, _ = weighted_update([1 - p, p], [0.0, 1.0], weights, tau)
    with mp.workdps(50):
        total = mp.mpf(1 - p) + mp.mpf(p)
        exact = [mp.mpf(1 - p) / total, mp.mpf(p) / total]
        targets = [(r - exact[1]) / mp.mpf(tau) for r in (0, 1)]

        def logs(value):
            rows = zip(targets, weights, strict=True)
            return [a - mp.lambertw(value / mp.mpf(float(w)) * mp.exp(a)) for a, w in rows]

        def excess(value):
            return mp.fsum(x * mp.expm1(mp.re(y)) for x, y in zip(exact, logs(value), strict=True))

        value = mp.mpf(float(lam))
        assert excess(value * (1 - mp.mpf("1e-10"))) > 0 > excess(value * (1 + mp.mpf("1e-10")))
        np.testing.assert_allclose(s, [float(mp.re(y)) for y in logs(value)], rtol=1e-10)


def test_responses_without_mass_and_constant_rewards_change_nothing():
    probs, rewards, weights = prompts(6)
    one = weighted_update(probs, rewards, weights, 0.3)
    padded = weighted_update(np.append(probs, 0), np.append(rewards, 99.0), np.append(weights, 50.0), 0.3)
    assert padded.lam == pytest.approx(one.lam, rel=1e-12)
    assert padded.log_ratio[-1] == 0
    probs, rewards, weights = prompts(6, batch=(200,))
    lam, s, exists, b = weighted_update(probs, np.full_like(rewards, 0.7), weights, 0.3)
    assert exists.all()
    assert (b == 0.7).all()
    assert not lam.any()
    assert not s.any()


def test_a_baseline_that_is_the_ideal_one_up_to_rounding_has_a_solution():
    """λ is then a rounding error of either sign, and Newton's steps must not leave its range."""
    probs, rewards, weights = prompts(7, batch=(500,))
    lam, s, exists, _ = weighted_update(probs, rewards, weights, 0.3, log_partition(probs, rewards, 0.3))
    assert exists.all()
    np.testing.assert_allclose(lam, 0, atol=1e-12)
    np.testing.assert_allclose(s, population_update(probs, rewards, 0.3, "partition").log_ratio, atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 0.0], r"weights: 0\.0 is not allowed; it must be a finite number above 0"),
        ([1.0, np.nan], "weights: nan is not allowed"),
        ([1.0], r"weights: shape \(1,\) is not allowed; rewards has \(2,\)"),
    ],
)
def test_errors_name_the_offending_weight(weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_update([0.5, 0.5], [0.0, 1.0], weights, 1.0)
