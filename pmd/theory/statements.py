"""The statements of the theory, each checked here: the largest residual over random and extreme cases.

Each names the test that establishes it. Tables and the theory notebook show the list.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pmd.theory.binary import binary_update, finite_sample_summary
from pmd.theory.chain import group_update
from pmd.theory.lambert import lambert_log_ratio
from pmd.theory.population import Temperature, divergences, log_partition, population_update
from pmd.theory.weighted import weighted_update

Rows = list[tuple[str, str, str, float, float]]
"""(statement, source, name of its test, residual, tolerance) of each."""


def _population() -> Rows:
    """The update on the whole population: the rows that tests/test_theory.py proves."""
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


def _weighted() -> Rows:
    """The regression with a weight w a response: the rows that tests/test_weighted.py proves."""
    rng = np.random.default_rng(0)
    probs, rewards, tau = rng.dirichlet(np.ones(16), size=500), rng.normal(size=(500, 16)), 0.3
    lengths = rng.integers(1, 2000, size=(500, 16))
    lam, s = weighted_update(probs, rewards, 1 / lengths, tau)[:2]
    rho = np.exp(s)
    gradient = rewards - tau * (s + lam[:, None] * lengths * rho)
    reverse_kl, per_length = -np.sum(probs * s, axis=1), lam * np.sum(probs * rho * lengths, axis=1)
    scaled = weighted_update(probs, rewards, 100 / lengths, tau)
    tilted = probs / lengths / np.sum(probs / lengths, axis=1, keepdims=True)
    anchored = (1 + divergences(tilted, s + np.log(probs / tilted)).chi2) / np.sum(probs / lengths, axis=1)
    levels = np.round(rewards)
    ratio = weighted_update(probs, levels, 1 / lengths, tau).log_ratio
    equal = (levels[:, :, None] == levels[:, None, :]) & (lengths[:, :, None] > lengths[:, None, :])
    here = "derived here"
    return [
        (
            "With weights w the update maximises E r − τ[KL + (λ/2) E ρ²/w]: the gradient is constant over responses",
            here,
            "test_it_maximises_the_mixed_regulariser_with_each_chi_square_weight_over_w",
            float(np.ptp(gradient, axis=1).max()),
            1e-10,
        ),
        (
            "With weights w and b = E r, KL(π_t‖π_{t+1}) = λ E_{π_{t+1}}[1/w]",
            here,
            "test_the_reverse_kl_is_the_mean_of_lambda_over_w_for_the_plain_mean",
            float(np.abs(reverse_kl / per_length - 1).max()),
            1e-10,
        ),
        (
            "E ρ²/w = (1 + χ²(π‖q))/E w with q = w π_t/E w: the χ² term pulls towards q",
            here,
            "test_the_penalty_is_a_chi_square_from_the_tilted_policy",
            float(np.abs(np.sum(probs * rho**2 * lengths, axis=1) / anchored - 1).max()),
            1e-10,
        ),
        (
            "Weights c w: the same policy, and c λ in place of λ",
            here,
            "test_scaled_weights_scale_lambda_and_leave_the_policy",
            float(max(np.abs(scaled.lam / (100 * lam) - 1).max(), np.abs(scaled.log_ratio - s).max())),
            1e-10,
        ),
        (
            "Of two equally rewarded responses that with the smaller w, the longer, has the smaller ρ"
            " (share of exceptions)",
            here,
            "test_a_longer_response_gets_the_smaller_ratio_whether_it_is_good_or_bad",
            float(np.mean((ratio[:, :, None] - ratio[:, None, :])[equal] >= 0)),
            0.0,
        ),
    ]


def _sampled() -> Rows:
    """The regression on n rollouts, rewards in {0, 1}: the rows that tests/test_chain.py proves."""
    p, n, k = np.geomspace(1e-6, 0.999, 50), 16, np.arange(17)
    falls, wrong = [], []
    for tau in (0.02, 0.1, 0.5, 2.0):
        for estimator in ("mean", "partition", Temperature(3 * tau)):
            falls.append(np.max(1 - group_update(p, tau, n, estimator).p_next / p[:, None]))
        probs, ideal = np.stack([1 - p, p], axis=-1), tau * (n - 1) / n
        above = k / n > log_partition(probs, np.broadcast_to([0.0, 1.0], probs.shape), ideal)[:, None]
        wrong.append(np.mean((group_update(p, tau, n).surplus > 0) != (above & (k > 0) & (k < n))))
    here = "derived here"
    return [
        (
            "Learning from n rollouts never lowers p, whatever baseline they estimate (largest relative fall)",
            here,
            "test_p_never_falls_and_equal_rewards_change_nothing",
            float(max(falls)),
            1e-12,
        ),
        (
            "The mean of n rollouts leaves a surplus of probability only where it exceeds τ log Z, τ meaning τ(n − 1)/n"
            " (share of cases with the wrong sign)",
            here,
            "test_the_mean_leaves_a_surplus_only_when_it_exceeds_the_ideal_baseline",
            float(np.mean(wrong)),
            0.0,
        ),
    ]


def checked_statements() -> list[dict[str, Any]]:
    """One row a statement: statement, source, proved_by (a test), residual, tolerance, holds (residual ≤ tolerance)."""
    columns = ("statement", "source", "proved_by", "residual", "tolerance")
    table = []
    for file, rows in (("theory", _population()), ("weighted", _weighted()), ("chain", _sampled())):
        for row in (dict(zip(columns, values, strict=True)) for values in rows):
            test = f"tests/test_{file}.py::{row['proved_by']}"
            table.append(row | {"proved_by": test, "holds": row["residual"] <= row["tolerance"]})
    return table
