"""The chain of repeated sampled updates, against the project's own objective, every path, and a simulation."""

import itertools
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from pmd.paper import style, theory_figures
from pmd.theory.binary import binary_update, binomial, quantile
from pmd.theory.chain import TOP, chain, chain_summary, group_update
from pmd.theory.population import Temperature, log_partition
from pmd.trainer.objectives import Hyper, Minibatch, leave_one_out_mean, leave_one_out_tilted, regression

ADVANTAGES = {"mean": leave_one_out_mean, "partition": leave_one_out_tilted}


def odds(p):
    return np.log(p) - np.log1p(-p)


# --- one update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [*ADVANTAGES, Temperature(1.5)])
@pytest.mark.parametrize(("p", "tau"), [(0.1, 0.1), (0.1, 0.5), (0.6, 0.25)])
def test_the_update_is_where_the_projects_objective_ends(estimator, p, tau):
    """Policies over success, failure and a third kind that no rollout shows, rare in π_t; every group of 5."""
    rare = 1e-7
    log_pi = torch.log(torch.tensor([1 - p - rare, p, rare], dtype=torch.float64))
    update = group_update(p, tau, 5, estimator)
    tilted = isinstance(estimator, Temperature)
    for k in range(6):
        group = torch.tensor([1.0] * k + [0.0] * (5 - k), dtype=torch.float64)
        advantage = ADVANTAGES["partition" if tilted else estimator](group[None], estimator.value if tilted else tau)[0]

        def loss(theta, group=group, advantage=advantage):
            theta = torch.tensor(theta, requires_grad=True)
            s = (torch.log_softmax(theta, 0) - log_pi)[group.long()]
            ones = torch.ones(5, dtype=torch.int64)
            value, _ = regression(Minibatch(s, advantage, torch.arange(5), ones, 1), Hyper(tau=tau))
            (gradient,) = torch.autograd.grad(value, theta)
            return float(value.detach()), gradient.numpy()

        # equal rewards: π_t is a minimum already. Else the minimum is unique, but from π_t the third is found late.
        start = log_pi.numpy() if k in (0, 5) else np.log([0.4, 0.4, 0.2])
        theta = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 5000}).x
        pi = np.exp(theta - np.logaddexp.reduce(theta))
        assert pi[1] == pytest.approx(float(update.p_next[k]), abs=2e-5)
        assert pi[2] == pytest.approx(float(update.surplus[k]), abs=2e-5)


def test_the_update_of_a_large_group_is_the_population_update():
    n, p, tau = 4000, 0.3, 0.5
    for estimator in ADVANTAGES:
        update = group_update(p, tau, n, estimator)
        exact = binary_update(p, tau, estimator)
        assert update.p_next[1200] == pytest.approx(float(exact.p_next), abs=1e-3)
        assert update.surplus[1200] == pytest.approx(0, abs=1e-3)


def test_a_next_p_is_a_probability_where_it_rounds_to_one():
    """The logarithm of 1 − p would be NaN behind it."""
    p = np.linspace(0.001, 0.999, 999)
    for n in (2, 8):
        for estimator in ADVANTAGES:
            assert group_update(p, 0.01, n, estimator).p_next.max() == 1


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(-2, 2), st.integers(2, 20), st.sampled_from([0.3, 1.0, 4.0, math.inf]))
def test_p_never_falls_and_equal_rewards_change_nothing(p, log_tau, n, ratio):
    tau = 10**log_tau
    update = group_update(p, tau, n, Temperature(ratio * tau))
    assert (update.p_next >= p * (1 - 1e-12)).all()
    np.testing.assert_array_equal(update.p_next[[0, n]], p)
    np.testing.assert_array_equal(update.surplus[[0, n]], 0)
    assert (update.surplus >= 0).all()
    assert (update.p_next + update.surplus <= 1 + 1e-12).all()


@pytest.mark.parametrize("tau", [0.05, 0.5, 3.0])
def test_the_mean_leaves_a_surplus_only_when_it_exceeds_the_ideal_baseline(tau):
    """Leaving one out is the group mean at τ(n − 1)/n, and so that τ decides."""
    n, k = 12, np.arange(13)
    for p in (0.01, 0.2, 0.7):
        ideal = log_partition([1 - p, p], [0.0, 1.0], tau * (n - 1) / n)
        expected = (k / n > ideal) & (k > 0) & (k < n)
        np.testing.assert_array_equal(group_update(p, tau, n).surplus > 0, expected)


def test_more_successes_move_the_partition_less_and_the_mean_more():
    """By hand for τ → 0: a success whose n − 1 mates hold j successes has the ratio (n − 1)/j."""
    part = group_update(0.02, 0.02, 9, "partition")
    np.testing.assert_allclose(part.p_next[2:9], 0.02 * 8 / np.arange(1, 8), rtol=1e-9)
    np.testing.assert_allclose(part.surplus[2:9], 1 - 0.02 * 8 / np.arange(1, 8), rtol=1e-9)
    assert part.p_next[1] > 0.999
    mean = group_update(0.02, 0.02, 9)
    assert (np.diff(mean.p_next[:7]) > 0).all()
    assert not mean.surplus[:7].any()


def test_the_surplus_given_to_the_two_kinds_would_only_raise_p_further():
    n, p, tau = 8, 0.1, 0.5
    for estimator in ADVANTAGES:
        update = group_update(p, tau, n, estimator)
        for k in np.flatnonzero(update.surplus):
            group = torch.tensor([[1.0] * k + [0.0] * (n - k)], dtype=torch.float64)
            a = ADVANTAGES[estimator](group, tau)[0].numpy() / tau

            def loss(x, a=a, k=k):
                s1, s0 = math.log(x / p), math.log((1 - x) / (1 - p))
                return k * (s1 - a[0]) ** 2 + (n - k) * (s0 - a[-1]) ** 2

            kept = minimize_scalar(loss, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-9}).x
            assert kept > update.p_next[k] + 1e-3


# --- the chain ------------------------------------------------------------------------------------------------------


def paths(p, tau, n, steps, estimator, chance=1.0, intact=True):
    """Every path of the chain: (p after `steps` updates, its probability, whether no surplus exceeded 0.1)."""
    if steps == 0:
        return [(p, chance, intact)]
    update, found = group_update(p, tau, n, estimator), []
    for k in range(n + 1):
        weight = chance * math.comb(n, k) * p**k * (1 - p) ** (n - k)
        after = min(float(update.p_next[k]), TOP)
        found += paths(after, tau, n, steps - 1, estimator, weight, intact and update.surplus[k] <= 0.1)
    return found


@pytest.mark.parametrize("estimator", [*ADVANTAGES, Temperature(1.0)])
@pytest.mark.parametrize(("p0", "tau"), [(0.05, 0.1), (0.2, 0.5)])
def test_the_grid_agrees_with_the_enumeration_of_every_path(estimator, p0, tau):
    n, steps = 5, 3
    ends, weights, intact = (np.array(x) for x in zip(*paths(p0, tau, n, steps, estimator), strict=True))
    errors = []
    for points in (76, 601, 2401):
        result = chain(p0, tau, n, steps, estimator, points=points)
        last = result.probability[-1]
        assert last.sum() == pytest.approx(1, abs=1e-12)
        errors.append(abs(np.sum(last * result.p) - np.sum(weights * ends)))
    assert errors[1] < 2e-4
    assert errors[2] < max(errors[0] / 8, 1e-9)
    summary = chain_summary(p0, tau, n, steps, estimator)
    assert summary["unsolved"] == pytest.approx(weights[ends < 0.5].sum(), abs=0.01)
    assert summary["surplus"] == pytest.approx(weights[~intact].sum(), abs=0.01)
    for name, level in (("median", 0.5), ("worst_decile", 0.1)):
        expected = quantile(ends, weights, level)
        assert odds(summary[name]) == pytest.approx(odds(expected), abs=0.06)
    assert summary["unseen"] == pytest.approx((1 - p0) ** 15, rel=1e-14)


@pytest.mark.parametrize("estimator", ADVANTAGES)
def test_a_simulation_agrees_within_its_own_error(estimator):
    """Seeded draws of 8 rollouts, five times, updates solved at each chain's own p, which no grid has rounded."""
    p0, tau, n, steps, draws = 0.05, 0.5, 8, 5, 4000
    rng = np.random.default_rng(0)
    p, intact = np.full(draws, p0), np.ones(draws, dtype=bool)
    for _ in range(steps):
        k, update = rng.binomial(n, p), group_update(p, tau, n, estimator)
        intact &= update.surplus[np.arange(draws), k] <= 0.1
        p = np.minimum(update.p_next[np.arange(draws), k], TOP)
    result, summary = chain(p0, tau, n, steps, estimator), chain_summary(p0, tau, n, steps, estimator)
    grid = 0.005
    for sample, exact in (
        (p < 0.5, summary["unsolved"]),
        (~intact, summary["surplus"]),
        (p < p0 * (1 + 1e-9), result.probability[-1][0]),
        (p, np.sum(result.probability[-1] * result.p)),
    ):
        assert abs(sample.mean() - exact) < 4 * sample.std() / math.sqrt(draws) + grid
    for name, level in (("median", 0.5), ("worst_decile", 0.1)):
        share = np.mean(odds(p) <= odds(summary[name]) + 0.06)  # two grid points
        assert share >= level - 4 * math.sqrt(level * (1 - level) / draws)
        share = np.mean(odds(p) < odds(summary[name]) - 0.06)
        assert share <= level + 4 * math.sqrt(level * (1 - level) / draws)


def test_a_chain_that_has_seen_one_kind_is_where_it_began():
    """P(p = p0 after T updates) is the chance of T groups of equal rewards, the same for every baseline."""
    for estimator in (*ADVANTAGES, Temperature(2.0)):
        stays = chain(0.1, 0.2, 4, 6, estimator).probability[:, 0]
        np.testing.assert_allclose(stays, (0.1**4 + 0.9**4) ** np.arange(7), rtol=1e-12)


def test_a_limit_of_zero_spares_the_groups_without_a_surplus():
    p0, tau, n = 0.2, 0.2, 6
    surplus = group_update(p0, tau, n, "partition").surplus
    expected = binomial(n, p0)[surplus == 0].sum()
    assert 0.5 < expected < 0.9
    assert chain(p0, tau, n, 1, "partition", limit=0.0).intact[1] == pytest.approx(expected, rel=1e-12)


def test_what_the_baselines_share_and_what_they_do_not():
    """At τ = 0.1, n = 16 both take off equally often; only PMD-part throws mass on responses that nobody drew."""
    mean, part = (chain_summary(0.05, 0.1, 16, 5, estimator) for estimator in ADVANTAGES)
    assert mean["unsolved"] == pytest.approx(part["unsolved"], abs=0.002)
    assert mean["surplus"] < 1e-6
    assert 0.3 < part["surplus"] < 0.36


def test_the_figure_plots_the_chains_it_says():
    with mpl.rc_context():
        style.apply_style()
        figure, data = theory_figures.chain_figure(theory_figures.chain_data([0.5, 2.0], [2, 4], 0.1, 2))
    plt.close(figure)
    assert len(figure.axes) == 6
    row = data[(data["method"] == "pmd-part") & (data["tau"] == 2.0) & (data["n"] == 4)].iloc[0]
    for name, value in chain_summary(0.1, 2.0, 4, 2, "partition").items():
        assert row[name] == value
    unsolved = data[(data["method"] == "pmd-mean") & (data["tau"] == 0.5)]["unsolved"].tolist()
    assert unsolved in [line.get_ydata().tolist() for line in figure.axes[2].lines]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["PMD-mean", "PMD-part"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_update(0.3, 1.0, 1), "n: 1 is not allowed; a group needs n ≥ 2 rollouts"),
        (lambda: group_update([0.3, 1.0], 1.0, 4), r"p: 1\.0 is not allowed; it must lie strictly between 0 and 1"),
        (lambda: group_update(0.3, 0.0, 4), r"tau: 0\.0 is not allowed"),
        (lambda: group_update(0.3, 1.0, 4, "median"), "estimator: 'median' is not allowed; 'mean', 'partition'"),
        (lambda: chain(0.0, 1.0, 4, 2), r"p0: 0\.0 is not allowed; it must lie strictly between 0 and 0\.999999"),
    ],
)
def test_errors_name_the_offending_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_group_of_a_batch_is_updated_by_itself():
    p = np.array([[0.01, 0.5], [0.2, 0.9]])
    batch = group_update(p, 0.3, 6, "partition")
    assert batch.p_next.shape == batch.surplus.shape == (2, 2, 7)
    for i, j in itertools.product(range(2), repeat=2):
        np.testing.assert_allclose(batch.p_next[i, j], group_update(p[i, j], 0.3, 6, "partition").p_next, rtol=1e-12)
