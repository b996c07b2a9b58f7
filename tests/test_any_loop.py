"""`pmd.loss` on flat and padded tensors against formulas by hand, and the family of baselines at its ends."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pmd
from pmd.any_loop import advantages, predicted, regress, sequence_log_ratio
from pmd.files import ROOT
from pmd.trainer.objectives import leave_one_out_mean, leave_one_out_tilted, moved

TAU = 0.3
REWARDS = torch.tensor([[1.0, 0.0, 0.25], [0.0, 0.0, 1.0]])
LENGTHS = torch.tensor([3, 1, 4, 2, 5, 2])
EXACT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def tokens():
    """Flat log π_θ and log π_t [17] in float64, the former with a gradient."""
    generator = torch.Generator().manual_seed(0)
    new, old = (-torch.rand(17, generator=generator, dtype=torch.float64) for _ in range(2))
    return new.requires_grad_(), old


def by_hand(new, old, baseline, divisors, weight=(1,) * 6):
    """mean_i w_i (τ/2) (A_i/τ − s_i)² / L_i, one response at a time."""
    total, begin = 0.0, 0
    for i, length in enumerate(LENGTHS.tolist()):
        group = REWARDS.tolist()[i // 3]
        others = group[: i % 3] + group[i % 3 + 1 :]
        s = (new[begin : begin + length] - old[begin : begin + length]).sum()
        total = total + weight[i] * TAU / 2 * ((group[i % 3] - baseline(others)) / TAU - s) ** 2 / divisors[i]
        begin += length
    return total / 6


def log_mean_exp(tau):
    return lambda others: tau * math.log(sum(math.exp(r / tau) for r in others) / len(others))


@pytest.mark.parametrize(
    ("options", "baseline", "divisors"),
    [
        ({}, lambda others: sum(others) / 2, LENGTHS.tolist()),
        ({"baseline": "partition"}, log_mean_exp(TAU), LENGTHS.tolist()),
        ({"baseline": "tilted", "tau_b": 2.0}, log_mean_exp(2.0), LENGTHS.tolist()),
        ({"baseline": "tilted", "tau_b": -0.7}, log_mean_exp(-0.7), LENGTHS.tolist()),
        ({"normalise": "constant", "max_tokens": 8}, lambda others: sum(others) / 2, [8] * 6),
    ],
)
def test_the_loss_and_its_gradient_equal_the_formula_flat_and_padded(tokens, options, baseline, divisors):
    new, old = tokens
    expected = by_hand(new, old, baseline, divisors)
    [gradient] = torch.autograd.grad(expected, new)
    mask = torch.arange(7) < LENGTHS[:, None]

    def padded(flat, filling):
        return torch.full((6, 7), filling, dtype=flat.dtype).masked_scatter(mask, flat)

    for form in (
        (new, old, REWARDS, LENGTHS),
        (padded(new, math.nan), padded(old, -math.inf), REWARDS, LENGTHS),
        (padded(new, 3.0), padded(old, math.nan), REWARDS, mask.long()),
    ):
        got = pmd.loss(*form, tau=TAU, **options)
        torch.testing.assert_close(got, expected, **EXACT)
        torch.testing.assert_close(torch.autograd.grad(got, new)[0], gradient, **EXACT)


def test_a_mask_may_have_holes_and_weights_multiply_the_terms(tokens):
    new, old = tokens
    mask = torch.zeros(6, 9, dtype=torch.bool)
    for i, length in enumerate(LENGTHS.tolist()):
        mask[i, torch.tensor([0, 2, 3, 5, 8])[:length]] = True
    spread = torch.zeros(6, 9, dtype=torch.float64)
    weight = [0.5, 2.0, 0.0, 1.0, 3.0, 0.1]
    got = pmd.loss(spread.masked_scatter(mask, new), spread.masked_scatter(mask, old), REWARDS, mask, tau=TAU,
                   weight=torch.tensor(weight))  # fmt: skip
    expected = by_hand(new, old, lambda others: sum(others) / 2, LENGTHS.tolist(), weight)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_passes_of_equally_many_responses_have_the_mean_of_their_losses(tokens):
    new, old = tokens
    whole = pmd.loss(new, old, REWARDS, LENGTHS, tau=TAU)
    advantage = advantages(REWARDS, TAU).flatten()
    halves = [
        regress(new[:8], old[:8], LENGTHS[:3], advantage[:3], TAU),
        regress(new[8:], old[8:], LENGTHS[3:], advantage[3:], TAU),
    ]
    torch.testing.assert_close(sum(halves) / 2, whole, **EXACT)


def test_a_response_without_tokens_counts_in_the_mean_as_zero(tokens):
    new, old = tokens
    none = torch.tensor([0])
    expected = regress(new[:3], old[:3], LENGTHS[:1], torch.tensor([0.5]), TAU) / 2
    both = (new[:3], old[:3], torch.cat([LENGTHS[:1], none]), torch.tensor([0.5, 1.0]), TAU)
    torch.testing.assert_close(regress(*both), expected, **EXACT)
    torch.testing.assert_close(regress(*both, weight=torch.tensor([3.0, 7.0])), 3 * expected, **EXACT)
    nothing = regress(new[None, :3], old[None, :3], torch.zeros(1, 3), torch.tensor([1.0]), TAU)
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, new)[0].abs().sum() == 0


def test_the_old_policy_is_a_constant(tokens):
    """On-policy both log-probabilities are often one tensor, and its two gradients would cancel."""
    new, _ = tokens
    got = torch.autograd.grad(pmd.loss(new, new, REWARDS, LENGTHS, tau=TAU), new)[0]
    expected = torch.autograd.grad(pmd.loss(new, new.detach().clone(), REWARDS, LENGTHS, tau=TAU), new)[0]
    assert torch.equal(got, expected)
    assert got.abs().max() > 0


@pytest.mark.parametrize("padded", [False, True])
def test_half_precision_is_subtracted_in_float32(padded):
    """In bfloat16 the difference below, −8 + 0.03, would be rounded to −7.96875."""
    new, old = torch.tensor([-8.0, -0.5]).bfloat16(), torch.tensor([-0.03, -0.5]).bfloat16()
    rows = (new[None], old[None]) if padded else (new, old)
    s = sequence_log_ratio(*rows, torch.tensor([2]))
    assert s.dtype == torch.float32
    assert s.item() == -8.0 - old[0].item()


GROUPS = st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=6)


@given(GROUPS, st.floats(0.02, 50))
def test_the_tilted_family_ends_in_partition_and_mean(group, tau):
    r = torch.tensor([group], dtype=torch.float64)
    mean = leave_one_out_mean(r, tau)
    others = [[x / tau for j, x in enumerate(group) if j != i] for i in range(len(group))]
    partition = tau * (torch.tensor(others, dtype=torch.float64).logsumexp(1) - math.log(len(group) - 1))
    torch.testing.assert_close(leave_one_out_tilted(r, tau), r - partition, **EXACT)
    for sign in (1, -1):
        assert torch.equal(leave_one_out_tilted(r, sign * math.inf), mean)
        # b(τ_b) − mean = Var/(2 τ_b) + …: at 1e13 nothing is left but rounding, which must not be multiplied by τ_b
        torch.testing.assert_close(leave_one_out_tilted(r, sign * 1e13), mean, **EXACT)
    # the mirror image: −b(−τ_b) of −r
    torch.testing.assert_close(leave_one_out_tilted(r, -tau), -leave_one_out_tilted(-r, tau), **EXACT)


def test_the_tilted_baseline_falls_from_the_maximum_to_the_minimum_of_the_others():
    r = torch.tensor([[1.0, 0.0, 0.4, 0.1]], dtype=torch.float64)
    baselines = [(r - leave_one_out_tilted(r, t))[0, 3].item() for t in (1e-4, 0.1, 1.0, math.inf, -1.0, -0.1, -1e-4)]
    assert baselines == sorted(baselines, reverse=True)
    assert baselines[0] == pytest.approx(1.0, abs=2e-4)
    assert baselines[-1] == pytest.approx(0.0, abs=2e-4)
    assert baselines[4] == pytest.approx(-math.log((math.exp(-1.0) + 1 + math.exp(-0.4)) / 3), abs=1e-15)


def test_what_the_policy_did_and_what_theory_predicts():
    s = torch.tensor([0.2, -0.4], dtype=torch.float64)
    rho = [math.exp(0.2), math.exp(-0.4)]
    got = moved(s)
    assert got["lambda"] == pytest.approx(0.1)
    assert got["kl"] == pytest.approx((rho[0] * 0.2 - rho[0] + 1 + rho[1] * -0.4 - rho[1] + 1) / 2)
    assert got["chi2"] == pytest.approx(((rho[0] - 1) ** 2 + (rho[1] - 1) ** 2) / 2)
    # ten rewards of which three are 1, leave-one-out at τ = 1/9: the reference value for p = 0.3 at τ = 0.1
    rewards = torch.tensor([[1.0] * 3 + [0.0] * 7])
    assert predicted(rewards, 1 / 9)["lambda_theory"] == pytest.approx(1.80654747, abs=1e-8)


def test_what_the_policy_did_keeps_its_digits_near_and_is_finite_far():
    """KL of s = 1e-4 is s²/2 + s³/3, of which float32 would leave nothing; JSON has no infinity."""
    assert moved(torch.tensor([1e-4]))["kl"] == pytest.approx(5e-9 + 1e-12 / 3, rel=1e-6)
    assert moved(torch.tensor([20.0]))["chi2"] == pytest.approx((math.exp(20) - 1) ** 2)
    assert all(map(math.isfinite, moved(torch.tensor([1000.0, -1000.0])).values()))


def test_the_example_of_the_documentation():
    space: dict = {}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8"), re.S)[1], space)
    assert space["log_probs"].grad.abs().min() > 0
    # A = 2/3, −2/3, −2/3, 2/3 and s = 0.1 L
    terms = [
        0.025 * (a / 0.05 - 0.1 * n) ** 2 / n for a, n in zip((2 / 3, -2 / 3, -2 / 3, 2 / 3), (3, 2, 4, 3), strict=True)
    ]
    assert space["loss"].item() == pytest.approx(sum(terms) / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 0.0}, r"tau: got 0\.0, must be a finite number above 0"),
        ({"tau": math.nan}, r"tau: got nan, must be a finite number above 0"),
        ({"tau": math.inf}, r"tau: got inf, must be a finite number above 0"),
        ({"tau": True}, r"tau: got True, must be a finite number above 0"),
        ({"baseline": "tilted", "tau_b": math.nan}, r"tau_b: got nan, must be a number other than 0"),
        ({"baseline": "median"}, r"baseline: got 'median', must be one of mean, partition, tilted"),
        ({"baseline": "tilted"}, r"tau_b: got None, must be a number where baseline is 'tilted'"),
        ({"tau_b": 1.0}, r"tau_b: got 1\.0, must be a number where baseline is 'tilted' and None elsewhere"),
        ({"baseline": "tilted", "tau_b": 0.0}, r"tau_b: got 0\.0, must be a number other than 0"),
        ({"normalise": "tokens"}, r"normalise: got 'tokens', must be 'length' or 'constant'"),
        ({"normalise": "constant"}, r"max_tokens: got None, must be the longest response"),
        ({"rewards": REWARDS.flatten()}, r"rewards: got shape \[6\], must be a tensor \[groups, responses\]"),
        ({"rewards": REWARDS.reshape(6, 1)}, r"rewards: got shape \[6, 1\], must be a tensor \[groups, responses\]"),
        ({"rewards": REWARDS.tolist()}, r"rewards: got a list, must be a tensor \[groups, responses\]"),
        ({"rewards": None}, r"rewards: got a NoneType, must be a tensor \[groups, responses\]"),
        ({"lengths": LENGTHS.tolist()}, r"lengths: got a list, must be a tensor"),
        ({"old_log_probs": None}, r"old_log_probs: got a NoneType, must be a tensor"),
        ({"rewards": REWARDS[:1]}, r"rewards: got 3 of them, must be as many as responses, 6"),
        ({"rewards": REWARDS.log()}, r"rewards: got -inf in group 0, response 1, must be a finite number"),
        ({"lengths": LENGTHS[:5]}, r"lengths: got \[3, 1, 4, 2, 5\], must add up to the 17 tokens of log_probs"),
        ({"lengths": LENGTHS.view(2, 3)}, r"lengths: got \[\[3, 1, 4\], \[2, 5, 2\]\], must add up to the 17 tokens"),
        ({"old_log_probs": torch.zeros(16)}, r"old_log_probs: got shape \[16\], must be that of log_probs, \[17\]"),
        (
            {"log_probs": torch.zeros(6, 4), "old_log_probs": torch.zeros(6, 4)},
            r"lengths: got shape \[6\], must fit log_probs, \[6, 4\]",
        ),
    ],
)
def test_a_bad_argument_is_refused_in_one_line(tokens, change, message):
    named = {"log_probs": tokens[0], "old_log_probs": tokens[1], "rewards": REWARDS, "lengths": LENGTHS, "tau": TAU}
    with pytest.raises(ValueError, match=message) as refusal:
        pmd.loss(**named | change)
    assert "\n" not in str(refusal.value)
