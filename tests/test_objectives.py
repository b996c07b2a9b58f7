"""Advantages against the obvious loop; losses and gradients against float64 formulas written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pmd.methods import METHODS
from pmd.trainer import objectives
from pmd.trainer.objectives import OBJECTIVES, Hyper, Minibatch, keep_groups

REWARDS = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 6)), elements=st.floats(-2, 2, width=32))
LENGTHS = [3, 1, 4, 2]
ADVANTAGE = [0.7, -0.3, 0.5, -0.9]
S = len(LENGTHS)


def loop(rewards: np.ndarray, tau: float, baseline) -> np.ndarray:
    """A_i = r_i − baseline(the others, the group), one response at a time."""
    out = np.empty_like(rewards)
    for g, group in enumerate(rewards):
        for i, r in enumerate(group):
            out[g, i] = r - baseline([x for j, x in enumerate(group) if j != i], group, tau)
    return out


@given(REWARDS, st.floats(0.05, 5))
def test_advantages_equal_the_obvious_loop(rewards, tau):
    tensor = torch.from_numpy(rewards)
    cases = {
        objectives.leave_one_out_mean: lambda others, group, tau: sum(others) / len(others),
        objectives.group_mean: lambda others, group, tau: sum(group) / len(group),
        objectives.leave_one_out_tilted: lambda others, group, tau: (
            tau * math.log(sum(math.exp(r / tau) for r in others) / len(others))
        ),
    }
    for function, baseline in cases.items():
        np.testing.assert_allclose(function(tensor, tau).numpy(), loop(rewards, tau, baseline), atol=1e-9)


@given(REWARDS)
def test_standardised_advantage(rewards):
    got = objectives.group_standardised(torch.from_numpy(rewards), 1.0).numpy()
    for row, group in zip(got, rewards, strict=True):
        std = math.sqrt(sum((r - group.mean()) ** 2 for r in group) / (len(group) - 1))
        np.testing.assert_allclose(row, (group - group.mean()) / (std + 1e-6), atol=1e-9)


def test_leave_one_out_is_the_group_mean_stretched():
    r = torch.tensor([[1.0, 0, 0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(objectives.leave_one_out_mean(r, 1), objectives.group_mean(r, 1) * 5 / 4)


def test_two_rollouts_make_mean_and_partition_identical():
    r = torch.tensor([[1.0, 0.0], [0.3, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(objectives.leave_one_out_mean(r, 0.01), objectives.leave_one_out_tilted(r, 0.01))


def test_a_lone_success_has_advantage_one_at_any_tau():
    """The reference code's clamp gives 18.4 τ here; and nothing overflows at τ = 0.001."""
    r = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    for tau in (0.001, 0.05, 1.0):
        assert objectives.leave_one_out_tilted(r, tau)[0, 0].item() == pytest.approx(1.0, abs=1e-12)
    # a failure beside the success: −τ log((e^{1/τ} + 2)/3) = −1 + τ log 3 up to e^{−1/τ}
    assert objectives.leave_one_out_tilted(r, 0.01)[0, 1].item() == pytest.approx(-1 + 0.01 * math.log(3), abs=1e-12)


def test_partition_tends_to_the_mean_as_tau_grows():
    r = torch.tensor([[1.0, 0, 0.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(
        objectives.leave_one_out_tilted(r, 1e6), objectives.leave_one_out_mean(r, 1e6), atol=1e-6, rtol=0
    )


def minibatch(seed: int = 0, spread: float = 0.3) -> tuple[Minibatch, torch.Tensor]:
    """Four responses whose token log-ratios are the leaf `x`."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64) * spread).requires_grad_()
    sequence = torch.repeat_interleave(torch.arange(S), torch.tensor(LENGTHS))
    return Minibatch(x, torch.tensor(ADVANTAGE, dtype=torch.float64), sequence, torch.tensor(LENGTHS), 8), x


def rows(x: torch.Tensor) -> list[np.ndarray]:
    return np.split(x.detach().numpy(), np.cumsum(LENGTHS)[:-1])


def by_hand(method: str, x: torch.Tensor, h: Hyper) -> float:
    """Each loss from its paper, one response at a time."""
    norm = LENGTHS if h.normalise == "length" else [8] * S
    total, tokens = 0.0, sum(LENGTHS)

    def ppo(ratio: float, a: float) -> float:
        return min(ratio * a, min(max(ratio, 1 - h.clip_low), 1 + h.clip_high) * a)

    for row, a, length, scale in zip(rows(x), ADVANTAGE, LENGTHS, norm, strict=True):
        s = row.sum()
        ratios = np.exp(row)
        total += {
            "regression": lambda a=a, s=s, scale=scale: h.tau / 2 * (a / h.tau - s) ** 2 / scale / S,
            "reinforce": lambda a=a, s=s, scale=scale: -a * s / scale / S,
            "token_clip": lambda a=a, ratios=ratios: -sum(ppo(r, a) for r in ratios) / tokens,
            "token_unclipped": lambda a=a, ratios=ratios: -sum(r * a for r in ratios) / tokens,
            "token_clip_constant": lambda a=a, ratios=ratios: -sum(ppo(r, a) for r in ratios) / 8 / S,
            "sequence_clip": lambda a=a, s=s, length=length: -ppo(math.exp(s / length), a) / S,
            "clipped_weight": lambda a=a, row=row, ratios=ratios: (
                -sum(min(max(r, 1 - h.clip_low), 1 + h.clip_high) * a * lr for r, lr in zip(ratios, row, strict=True))
                / tokens
            ),
        }[method]()
    return total


LOSSES = [
    "regression",
    "reinforce",
    "token_clip",
    "token_unclipped",
    "token_clip_constant",
    "sequence_clip",
    "clipped_weight",
]


@pytest.mark.parametrize("normalise", ["length", "constant"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_its_formula(name, normalise):
    hyper = Hyper(tau=0.3, clip_low=0.2, clip_high=0.28, normalise=normalise)
    batch, x = minibatch()
    assert getattr(objectives, name)(batch, hyper)[0].item() == pytest.approx(by_hand(name, x, hyper), rel=1e-12)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "clipped_weight"])
def test_gradient_equals_finite_differences(name):
    hyper = Hyper(tau=0.3, clip_low=0.2, clip_high=0.28)
    batch, x = minibatch()
    getattr(objectives, name)(batch, hyper)[0].backward()
    numeric = []
    for i in range(len(x)):
        step = torch.zeros_like(x)
        step[i] = 1e-6
        numeric.append((by_hand(name, x + step, hyper) - by_hand(name, x - step, hyper)) / 2e-6)
    np.testing.assert_allclose(x.grad.numpy(), numeric, atol=1e-7)


def test_cispo_gradient_keeps_every_token_and_bounds_its_weight():
    """∂/∂ log π_t = −clip(ρ_t) A / M, also where PPO's clip would make it 0; the weight has no gradient itself."""
    batch, x = minibatch()
    loss, active = objectives.clipped_weight(batch, Hyper(clip_low=0.2, clip_high=0.28))
    loss.backward()
    weight = x.detach().exp().clamp(0.8, 1.28)
    torch.testing.assert_close(x.grad, -weight * batch.advantage[batch.sequence] / len(x))
    assert torch.equal(active, (x.detach().exp() > 1.28) | (x.detach().exp() < 0.8))
    assert 0 < active.sum() < len(x)


def test_the_clip_is_active_only_where_the_gradient_vanishes():
    x = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)).requires_grad_()
    batch = Minibatch(x, torch.tensor([1.0, -1, 1, -1], dtype=torch.float64), torch.arange(4), torch.ones(4).long(), 8)
    loss, active = objectives.token_clip(batch, Hyper(clip_low=0.2, clip_high=0.2))
    loss.backward()
    assert active.tolist() == (x.grad == 0).tolist() == [True, False, False, True]


@pytest.mark.parametrize("normalise", ["length", "constant"])
@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_microbatches_add_up_to_their_minibatch(method, normalise):
    """Of unequal sizes, one of them a lone token, where an own mean over responses or over tokens would be the same."""
    hyper = Hyper(tau=0.3, clip_low=0.1, clip_high=0.1, normalise=normalise)
    batch, x = minibatch()
    loss, clipped = OBJECTIVES[method].loss(batch, hyper)
    (gradient,) = torch.autograd.grad(loss, x)
    losses, active = [], []
    for responses in ([0], [1], [2, 3]):
        own = torch.isin(batch.sequence, torch.tensor(responses))
        sequence, lengths = batch.sequence[own] - responses[0], batch.lengths[responses]
        part = Minibatch(x[own], batch.advantage[responses], sequence, lengths, 8, whole=(S, len(x)))
        done = OBJECTIVES[method].loss(part, hyper)
        losses.append(done[0])
        active.append(done[1])
    torch.testing.assert_close(sum(losses), loss, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(sum(losses), x)[0], gradient, atol=1e-14, rtol=0)
    assert clipped is None or torch.equal(torch.cat(active), clipped)


@pytest.mark.parametrize("method", sorted(OBJECTIVES))
def test_on_policy_gradient_is_the_policy_gradient_with_its_baseline(method):
    """K = 1: at θ = θ_t every method's gradient is −A ∇log π, in its own weights (arXiv:2602.05933, practical loss)."""
    x = torch.zeros(sum(LENGTHS), dtype=torch.float64, requires_grad=True)
    sequence = torch.repeat_interleave(torch.arange(S), torch.tensor(LENGTHS))
    a = torch.tensor(ADVANTAGE, dtype=torch.float64)
    batch = Minibatch(x, a, sequence, torch.tensor(LENGTHS), 8)
    OBJECTIVES[method].loss(batch, Hyper(tau=0.05))[0].backward()
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    if method in ("pmd-mean", "pmd-part", "pmd-tilted", "kimi", "rloo", "gspo"):
        weight = 1 / lengths / S
    elif method == "dr-grpo":
        weight = torch.full((S,), 1 / 8 / S, dtype=torch.float64)
    else:
        weight = torch.full((S,), 1 / sum(LENGTHS), dtype=torch.float64)
    torch.testing.assert_close(x.grad, (-a * weight)[sequence])


def test_regression_is_minimised_where_theory_says():
    """Unnormalised, the minimiser of a response's term is s = A/τ exactly, whatever its length."""
    batch, x = minibatch()
    moved = x.detach() + ((batch.advantage / 0.1 - batch.s.detach()) / batch.lengths)[batch.sequence]
    at_minimum = Minibatch(moved, batch.advantage, batch.sequence, batch.lengths, 8)
    assert objectives.regression(at_minimum, Hyper(tau=0.1))[0].item() == pytest.approx(0, abs=1e-24)


def test_a_method_reads_the_settings_that_it_says_and_no_others():
    """Each setting changed alone changes advantage or loss if and only if the method's entry lists it."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    before = {"tau": 0.3, "tau_b": 0.5, "clip_low": 0.1, "clip_high": 0.1, "normalise": "length"}
    after = {"tau": 0.6, "tau_b": -0.5, "clip_low": 0.01, "clip_high": 0.01, "normalise": "constant"}

    def value(method: str, settings: dict) -> list[float]:
        tau_b = settings["tau_b" if method == "pmd-tilted" else "tau"]
        advantage = OBJECTIVES[method].advantage(rewards, tau_b)[0]
        batches = [replace(minibatch(seed)[0], advantage=advantage) for seed in range(4)]
        hyper = Hyper(**{key: value for key, value in settings.items() if key != "tau_b"})
        return [OBJECTIVES[method].loss(batch, hyper)[0].item() for batch in batches]

    for method, entry in METHODS.items():
        read = {name for name in before if value(method, before) != value(method, before | {name: after[name]})}
        assert read == set(entry.uses), method


def test_sums_over_responses_and_their_gradients_are_those_of_adding_in_order():
    """To the bit: `segment_reduce` stands for `index_add`, whose order is not fixed on CUDA."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (50,), generator=generator)
    sequence = torch.repeat_interleave(torch.arange(50), lengths)
    x = torch.randn(len(sequence), generator=generator, requires_grad=True)
    sums = Minibatch(x, torch.zeros(50), sequence, lengths, 60).s
    added = x.new_zeros(50).index_add(0, sequence, x)
    assert torch.equal(sums, added)
    (own,), (expected,) = (torch.autograd.grad(total.square().sum(), x) for total in (sums, added))
    assert torch.equal(own, expected)


def test_groups_are_kept_in_the_open_interval():
    rewards = torch.tensor([[0.0, 0], [1, 0], [1, 1]])
    assert keep_groups(rewards, 0.0, 1.0).tolist() == [False, True, False]
    assert keep_groups(rewards, None, 1.0).tolist() == [True, True, False]
    assert keep_groups(rewards, None, None).all()
