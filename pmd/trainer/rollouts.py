"""Rollouts: the batch of a step, sampled from the policy and rewarded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pmd.harness.clock import Clock
from pmd.harness.config import Train
from pmd.harness.policy import Policy
from pmd.model.distributed import spread
from pmd.problems.prompts import encode
from pmd.problems.reward import Reward
from pmd.sampling.engine import Sampling
from pmd.sampling.scoring import ends_of, score
from pmd.sampling.seeds import derive, prompt_order


@dataclass(frozen=True)
class Rollouts:
    """G groups of n responses, each group to one prompt; every rank holds all of them.

    prompts: token ids [group][token]. responses: token ids [group][response][token]. rewards: [G, n] fp32.
    truncated: the share of responses that reached max_tokens without ending by themselves.

    old: log π_t of each response's tokens, [group][response] -> [tokens] fp32; entropy: the mean entropy of π_t in
    nats. With staleness both are computed when the batch is sampled, because the policy changes before the batch is
    used; without, they are None, because the present policy is π_t. sampled: the log-probabilities that the engine
    reported for its tokens, [group][response][token], if importance weights need them, else None.
    """

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    rewards: Tensor
    truncated: float
    old: list[list[Tensor]] | None = None
    entropy: float | None = None
    sampled: list[list[list[float]]] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all responses."""
        return sum(len(response) for group in self.responses for response in group)


def sample(config: Train, step: int, policy: Policy, problems: list[dict], clock: Clock) -> Rollouts:
    """The prompts of `step`, answered by the present policy and rewarded; each rank does its share of both.

    Prompts and random numbers depend on (seed, step) alone, not on the ranks or on when the step is sampled.
    """
    chosen = [problems[i] for i in prompt_order(config.seed, step, config.prompts, len(problems))]
    prompts = [encode(policy.tokenizer, problem["prompt"]) for problem in chosen]
    how = (config.group_size, Sampling(config.max_tokens, config.temperature), derive(config.seed, step, "rollout"))
    scored = config.importance_cap is not None

    def answer(share: list[list[int]], first: int) -> list:
        if scored:
            return list(zip(*policy.engine.sample_scored(share, *how, first), strict=True))
        return policy.engine.sample(share, *how, first)

    with clock.phase("rollout"):
        found = spread(answer, prompts, getattr(policy.engine, "ranks_per_engine", 1))
        responses, sampled = map(list, zip(*found, strict=True)) if scored else (found, None)
    with clock.phase("reward"):
        ends = ends_of(policy.engine, policy.tokenizer)
        judged = judge(chosen, prompts, responses, policy.tokenizer, ends, policy.reward)
        return replace(judged, sampled=sampled)


def judge(
    problems: list[dict],
    prompts: list[list[int]],
    responses: list[list[list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    reward: Reward | None = None,
) -> Rollouts:
    """Verify every response by its problem's rule, or by a reward; each rank verifies its share in one batch."""
    scores = spread(lambda part, at: score(part, responses[at : at + len(part)], tokenizer, ends, reward), problems)
    rewards = torch.tensor([s["reward"] for s in scores]).reshape(len(problems), -1)
    return Rollouts(prompts, responses, rewards, sum(s["truncated"] for s in scores) / len(scores))
