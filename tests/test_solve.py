"""The regression solved: against a softmax policy's exact solution, the loop without sharing, and its own optimum."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pmd.experiments.solve import draw, freeze, log_ratios, mean_of_copies, solve
from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.trainer.objectives import Hyper, Minibatch, leave_one_out_mean, regression
from pmd.trainer.rollouts import Rollouts

PROMPTS = [[3, 4], [5]]
RESPONSES = [[[6, 7, 1], [8, 1], [6, 7, 1], [6, 9, 1]], [[7, 1], [7, 1], [7, 1], [8, 8, 1]]]
REWARDS = torch.tensor([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
ROLLOUTS = Rollouts(PROMPTS, RESPONSES, REWARDS, 0.0)
"""Three of the eight responses are copies of others."""


@pytest.fixture
def model(tiny):
    return copy.deepcopy(tiny[0])


def by_hand(model, advantage: torch.Tensor, hyper: Hyper, before: torch.Tensor) -> torch.Tensor:
    """The trainer's loss on all eight responses, none of them shared."""
    packed = pack(PROMPTS, RESPONSES)
    new, _ = log_probs(model, packed, entropy=False)
    return regression(Minibatch(new - before, advantage, packed.sequence, packed.lengths, 10), hyper)[0]


@pytest.mark.parametrize("normalise", ["length", "constant"])
def test_a_step_follows_the_gradient_of_the_trainers_loss_over_all_responses(model, normalise):
    """Also where copies of a response have different advantages, and away from the first step."""
    advantage = torch.tensor([0.7, -0.2, 0.1, -0.5, 0.4, -0.9, 0.3, 0.2])
    hyper = Hyper(0.3, normalise=normalise)
    with torch.no_grad():
        before = log_probs(model, pack(PROMPTS, RESPONSES), entropy=False)[0]
    frozen, other = freeze(model, ROLLOUTS), copy.deepcopy(model)
    assert len(frozen.times) == 5
    steps = solve(model, frozen, advantage, hyper, 10, lr=1e-2, steps=3)
    optimizer = torch.optim.Adam(other.parameters(), betas=(0.9, 0.99))
    for rate in (1.0, 0.75, 0.25):  # (1 + cos(π k/3))/2
        next(steps)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.zero_grad()
        by_hand(other, advantage, hyper, before).backward()
        for mine, other_one in zip(model.parameters(), other.parameters(), strict=True):
            if rate < 1:
                torch.testing.assert_close(mine.grad, other_one.grad, atol=2e-6, rtol=1e-3)
        optimizer.step()
    assert next(steps, None) is None


def test_the_mean_over_copies_is_added_in_their_order():
    """The very bits of one addition after another, of numbers whose sum depends on the order; by no atomic addition."""
    generator = torch.Generator().manual_seed(0)
    which = torch.cat([torch.arange(7), torch.randint(7, (500,), generator=generator)])
    values = torch.randn(507, generator=generator, dtype=torch.float64)
    values *= 10 ** (8 * torch.rand(507, generator=generator, dtype=torch.float64))
    sums = [0.0] * 7
    for i, value in zip(which.tolist(), values.tolist(), strict=True):
        sums[i] += value
    times = which.bincount()
    names = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    with Watch():
        found = mean_of_copies(values, which, times)
    assert found.tolist() == [total / count for total, count in zip(sums, times.tolist(), strict=True)]
    assert not [name for name in names if "index_add" in name or "scatter" in name or "index_put" in name]


def test_targets_that_can_be_reached_are_reached(model):
    """Targets read off another policy: the regression's minimum is 0, and s of every response becomes its target."""
    frozen, target = freeze(model, ROLLOUTS), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in target.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    s = log_ratios(target, frozen)
    assert s.abs().max() > 0.1
    assert log_ratios(model, frozen).abs().max() == 0
    tau = 0.5
    assert list(solve(model, frozen, tau * s, Hyper(tau, normalise="constant"), 10, 3e-3, 150)) == list(range(1, 151))
    np.testing.assert_allclose(log_ratios(model, frozen), s, atol=5e-3)


def test_successes_gain_and_failures_lose(model):
    frozen = freeze(model, ROLLOUTS)
    list(solve(model, frozen, leave_one_out_mean(REWARDS.double(), 0.5), Hyper(0.5), 10, 3e-3, 60))
    s = log_ratios(model, frozen).reshape(2, 4)
    assert (s[REWARDS == 1] > 0.1).all()
    assert (s[REWARDS == 0] < -0.1).all()
    assert s[0, 0] == s[0, 2]  # copies


def test_responses_are_drawn_by_their_seed(tiny):
    problems = [{"id": "a", "prompt": "1+1=", "ground_truth": "2"}, {"id": "b", "prompt": "2+5=", "ground_truth": "7"}]
    first, again, other = (draw(*tiny, problems, 3, 6, seed) for seed in (1, 1, 2))
    assert first.responses == again.responses != other.responses
    assert [len(group) for group in first.responses] == [3, 3]
    assert first.rewards.shape == (2, 3)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(model):
    frozen, start = freeze(model, ROLLOUTS), copy.deepcopy(model.state_dict())
    advantage = torch.full((8,), torch.inf)
    with pytest.raises(FloatingPointError, match=r"inner step 1: the loss is inf; lower lr = 0\.1"):
        list(solve(model, frozen, advantage, Hyper(), 10, 0.1, 2))
    assert all(torch.equal(start[name], weight) for name, weight in model.state_dict().items())
