"""The custom loss for prime-rl against a stand-in of its interface, which its documentation publishes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor

import pmd
from pmd.prime_rl import pmd_mean
from pmd.trainer.objectives import moved

TAU, REWARDS = 0.3, torch.tensor([[1.0, 0.0, 0.25]])
LENGTHS = [3, 1, 4]
PROMPT = 2  # tokens before the response, which the mask leaves out


@dataclass
class LossInputs:
    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None


@dataclass
class LossOutputs:
    loss: Tensor
    metrics: dict[str, Tensor]


@pytest.fixture(autouse=True)
def prime_rl(monkeypatch):
    module = ModuleType("prime_rl.trainer.rl.loss")
    module.LossInputs, module.LossOutputs = LossInputs, LossOutputs
    for name in ("prime_rl", "prime_rl.trainer", "prime_rl.trainer.rl"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def sequences() -> list[LossInputs]:
    """One group's three sequences with prime-rl's advantages, the reward minus the mean of the group."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length, advantage in zip(LENGTHS, (REWARDS - REWARDS.mean())[0], strict=True):
        new, old = (-torch.rand(PROMPT + length, generator=generator) for _ in range(2))
        mask = torch.arange(PROMPT + length) >= PROMPT
        made.append(LossInputs(new.requires_grad_(), old, None, advantage * mask, mask, None))
    return made


@pytest.mark.parametrize("options", [{}, {"normalise": "constant", "max_tokens": 8}])
def test_the_sum_over_sequences_is_pmds_loss_times_their_number(options):
    group = sequences()
    outputs = [pmd_mean(inputs, tau=TAU, group_size=3, **options) for inputs in group]
    total = sum(output.loss for output in outputs)
    new, old = (torch.cat([getattr(inputs, name)[PROMPT:] for inputs in group])
                for name in ("trainer_logprobs", "inference_logprobs"))  # fmt: skip
    expected = 3 * pmd.loss(new, old, REWARDS, torch.tensor(LENGTHS), tau=TAU, **options)
    torch.testing.assert_close(total, expected)
    tokens = [inputs.trainer_logprobs for inputs in group]
    for got, want in zip(torch.autograd.grad(total, tokens), torch.autograd.grad(expected, tokens), strict=True):
        torch.testing.assert_close(got, want)
    s = (new - old)[:3].sum()[None]
    assert {name: value.item() for name, value in outputs[0].metrics.items()} == pytest.approx(
        {f"pmd_{name}": value for name, value in moved(s).items()}
    )


def test_a_sequence_without_trained_tokens_adds_nothing():
    inputs = sequences()[0]
    inputs.loss_mask = torch.zeros_like(inputs.loss_mask)
    output = pmd_mean(inputs, tau=TAU, group_size=3)
    assert output.loss.item() == 0
    assert torch.autograd.grad(output.loss, inputs.trainer_logprobs)[0].abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"tau": 0.0}, r"tau: got 0\.0, must be a finite number above 0"),
        ({}, {"group_size": 1}, r"group_size: got 1, must be the rollouts of a prompt, 2 or more"),
        ({}, {"normalise": "constant"}, r"max_tokens: got None, must be the longest response"),
        ({"advantages": torch.arange(5.0)}, {}, r"advantages: got several values in a sequence, must be one"),
        ({"loss_weights": torch.full((5,), 0.5)}, {}, r"loss_weights: got some other than 1, must be 1"),
    ],
)
def test_what_contradicts_the_objective_is_refused_in_one_line(change, options, message):
    inputs = sequences()[0]
    for name, value in change.items():
        setattr(inputs, name, value)
    with pytest.raises(ValueError, match=message) as refusal:
        pmd_mean(inputs, **{"tau": TAU, "group_size": 3} | options)
    assert "\n" not in str(refusal.value)
