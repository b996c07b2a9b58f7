"""The measurements of a step, which make up its row of log.jsonl."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pmd.harness.config import Train
from pmd.harness.passes import Pass
from pmd.model.distributed import gather, total
from pmd.model.forward import frozen_log_probs
from pmd.sampling.engine import Engine
from pmd.trainer.objectives import OBJECTIVES, full_step, group_mean, leave_one_out_mean, moved, per_response
from pmd.trainer.rollouts import Rollouts


@torch.no_grad()
def policy_change(config: Train, model: PreTrainedModel, passes: list[Pass], old: list[Tensor]) -> dict:
    """λ, KL(π_{t+1}‖π_t) and χ²(π_{t+1}‖π_t), estimated by `moved` on the responses of these passes."""
    if not passes:
        return {"lambda": 0.0, "kl": 0.0, "chi2": 0.0}
    own = []
    for one, before in zip(passes, old, strict=True):
        after, _ = frozen_log_probs(model, one.packed, config.temperature, entropy=False)
        s = per_response(after - before, one.packed.lengths).double()
        own.append(s[:0] if one.idle else s)
    return moved(torch.cat(gather(torch.cat(own).cpu())))


def predicted(config: Train, rewards: Tensor) -> dict:
    """What the population update of PMD-mean predicts for groups with these rewards [G, n]: their mean λ, KL and χ².

    It applies to a method whose baseline is a mean and that reads τ; for others the values are None. It is the case of
    the theorem, constant normalisation; pmd/theory/weighted.py predicts where terms are divided by lengths.
    """
    n = config.group_size  # the leave-one-out mean stretches advantages by n/(n − 1), as a smaller τ does
    objective = OBJECTIVES[config.method]
    tau = {leave_one_out_mean: config.tau * (n - 1) / n, group_mean: config.tau}.get(objective.advantage)
    if tau is None or "tau" not in objective.uses or len(rewards) == 0:
        return dict.fromkeys(("lambda_theory", "kl_theory", "chi2_theory"))
    return full_step(rewards, tau)


def of_rollouts(rollouts: Rollouts) -> dict:
    """Mean reward; signal: the share of groups whose rewards differ; mean length in tokens; each group's successes."""
    rewards = rollouts.rewards
    return {
        "reward": rewards.mean().item(),
        "signal": ((rewards != rewards[:, :1]).any(1)).float().mean().item(),
        "length": rollouts.tokens / rewards.numel(),
        "truncated": rollouts.truncated,
        "successes": (rewards == 1).sum(1).tolist(),
        "group_size": rewards.shape[1],
    }


def of_weights(config: Train, weights: list[Tensor | None]) -> dict:
    """Mean importance weight and the share of them at the cap, over all ranks; nothing where there are no weights."""
    if config.importance_cap is None:
        return {}
    used = torch.cat([w for w in weights if w is not None] or [torch.zeros(0)]).cpu()
    amount, capped, count = total([used.sum().item(), (used == config.importance_cap).sum().item(), len(used)])
    return {"weight": amount / max(1, count), "weight_capped": capped / max(1, count)}


def of_engine(engine: Engine) -> dict:
    """How far the engine's log-probabilities are from the trainer's, over all ranks, in nats: the mean and the largest
    difference. Nothing for an engine that does not compare them."""
    drifts = [drift for drift in gather(getattr(engine, "drift", None)) if drift and drift.tokens]
    if not drifts:
        return {}
    tokens = sum(drift.tokens for drift in drifts)
    mean = sum(drift.mean * drift.tokens for drift in drifts) / tokens
    return {"drift": mean, "drift_largest": max(drift.largest for drift in drifts)}


def mean_over_ranks(pieces: list[Tensor]) -> float:
    """The mean of all numbers in these tensors of all ranks."""
    amount = sum(piece.mean().item() * len(piece) for piece in pieces)
    amount, count = total([amount, sum(map(len, pieces))])
    return amount / count


def mean(values: list[float | None]) -> float | None:
    """The mean of numbers; None if there are none or the method has no such quantity."""
    return None if not values or values[0] is None else sum(values) / len(values)
