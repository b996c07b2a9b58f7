"""One step of policy mirror descent on a batch of rollouts: advantages, log π_t, K optimizer steps, measurements.

log π_t is frozen for the whole batch, so minibatches 2..K are off-policy by design (arXiv:2602.05933, practical
algorithm). A minibatch that is too large for one pass is divided into several, and among the ranks; its gradient is the
sum of the gradients of all its passes (pmd/harness/passes.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pmd.harness.clock import Clock
from pmd.harness.config import Train
from pmd.harness.passes import Pass, own_passes, split
from pmd.model.distributed import total, world
from pmd.model.forward import frozen_log_probs, log_probs
from pmd.model.sharding import sharded
from pmd.trainer import measurements
from pmd.trainer.objectives import OBJECTIVES, Hyper, Minibatch, keep_groups, per_response
from pmd.trainer.rollouts import Rollouts


def learn(
    config: Train,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    clock: Clock,
) -> dict:
    """The K optimizer steps on one batch; returns the step's row of log.jsonl, the same on every rank.

    FloatingPointError, before any weight changes, at a minibatch whose loss or gradient is not finite.
    """
    advantages = OBJECTIVES[config.method].advantage(rollouts.rewards.double(), config.tau_b or config.tau).float()
    kept = keep_groups(rollouts.rewards, config.filter_low, config.filter_high).nonzero()[:, 0].tolist()
    minibatches = split(kept, config.minibatches)
    with clock.phase("old"):
        by_minibatch = [
            own_passes(rollouts, groups, config.microbatch_tokens, advantages, model.device) for groups in minibatches
        ]
        passes = [one for own in by_minibatch for one in own]
        first, old, entropy = freeze(config, model, rollouts, by_minibatch)
    with clock.phase("update"):
        weights = [importance(config, rollouts, one, before) for one, before in zip(passes, old, strict=True)]
        work = iter(zip(passes, old, weights, strict=True))
        updates = [
            update(config, step, model, optimizer, [next(work) for _ in own], size(rollouts, groups), first)
            for own, groups in zip(by_minibatch, minibatches, strict=True)
        ]
    with clock.phase("probe"):
        probed = sum(map(len, by_minibatch[: config.probe]))
        change = measurements.policy_change(config, model, passes[:probed], old[:probed])
    groups = [g for minibatch in minibatches[: config.probe] for g in minibatch]
    return {
        **measurements.of_rollouts(rollouts),
        "kept": len(kept) / len(rollouts.prompts),
        "entropy": entropy,
        **{key: measurements.mean([u[key] for u in updates]) for key in ("loss", "grad_norm", "clip_fraction")},
        **change,
        **measurements.predicted(config, rollouts.rewards[groups]),
        **measurements.of_weights(config, weights),
    }


def freeze(
    config: Train, model: PreTrainedModel, rollouts: Rollouts, by_minibatch: list[list[Pass]]
) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor], float | None]:
    """(the first update's own forward pass, log π_t [M] of each pass, the mean entropy of π_t in nats).

    The first minibatch is trained on before any weight changes, so its training pass gives log π_t too and is not made
    twice, if it is a single pass over whole weights; else the first list is empty. Rollouts that waited know their
    log π_t and entropy already. The entropy is None if no group is kept.
    """
    passes = [one for own in by_minibatch for one in own]
    if rollouts.old is not None or not passes:
        known = rollouts.old or []
        old = [torch.cat([known[g][i] for g, i in one.pairs] or [torch.zeros(1)]).to(model.device) for one in passes]
        return [], old, rollouts.entropy
    shared = len(by_minibatch[0]) == 1 and not sharded(model)
    first = [log_probs(model, passes[0].packed, config.temperature)] if shared else []
    read = [(log_p.detach(), entropy.detach()) for log_p, entropy in first]
    read += [frozen_log_probs(model, one.packed, config.temperature) for one in passes[len(first) :]]
    entropies = [entropy for one, (_, entropy) in zip(passes, read, strict=True) if not one.idle]
    return first, [log_p for log_p, _ in read], measurements.mean_over_ranks(entropies)


def size(rollouts: Rollouts, groups: list[int]) -> tuple[int, int]:
    """(responses, tokens) of a whole minibatch, over all its passes and ranks."""
    lengths = [len(response) for g in groups for response in rollouts.responses[g]]
    return len(lengths), sum(lengths)


def update(
    config: Train,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    work: list[tuple[Pass, Tensor, Tensor | None]],
    whole: tuple[int, int],
    first: list[tuple[Tensor, Tensor]],
) -> dict:
    """One optimizer step on one minibatch; returns its loss, gradient norm and share of clipped terms.

    work: this rank's passes, each with its log π_t [M] and importance weights [S]. whole: `size` of the minibatch.
    first: the forward pass that `freeze` made, with its autograd graph, if it is this minibatch's, else an empty list.
    It is taken out of the list, so that its memory is freed after the backward pass.
    """
    optimizer.zero_grad(set_to_none=True)
    losses, flags = [], []
    hyper = Hyper(config.tau, config.clip_low, config.clip_high, config.normalise)
    for one, before, weight in work:
        packed = one.packed
        new, _ = first.pop() if first else log_probs(model, packed, config.temperature, entropy=False)
        seen = Minibatch(new - before, one.advantage, packed.sequence, packed.lengths, config.max_tokens, whole, weight)
        loss, clipped = OBJECTIVES[config.method].loss(seen, hyper)
        share = 0 if one.idle else world()[1]  # FSDP2 averages gradients over the ranks; they must be summed
        (loss if share == 1 else share * loss).backward()
        if not one.idle:
            losses.append(loss.detach())  # its value is read behind all passes, because reading waits for the device
            flags += [] if clipped is None else [clipped.float()]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip, foreach=True)
    norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    # np.cumsum adds one after another on every Python, where the built-in sum compensates from 3.12 on
    loss_sum = float(np.cumsum([0.0, *(loss.item() for loss in losses)])[-1])
    loss_sum, clips, terms = total([loss_sum, sum(x.sum().item() for x in flags), sum(map(len, flags))])
    if not (math.isfinite(loss_sum) and math.isfinite(norm)):
        raise FloatingPointError(
            f"step {step}: the loss is {loss_sum} and its gradient norm {norm} (method {config.method}, "
            f"lr {config.lr}, tau {config.tau}); training stopped before the update, the last checkpoint is kept"
        )
    for group in optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, step / (config.warmup + 1))
    optimizer.step()
    fraction = float(np.float32(clips / terms)) if terms else None  # in fp32, as the mean of the flags would be
    return {"loss": loss_sum, "grad_norm": norm, "clip_fraction": fraction}


def importance(config: Train, rollouts: Rollouts, one: Pass, before: Tensor) -> Tensor | None:
    """min(π_t(y)/π_engine(y), C) of each response [S]: truncated importance weights, for an engine whose probabilities
    are not exactly those of π_t. None where the run has no cap C, and for an idle pass."""
    if config.importance_cap is None or one.idle:
        return None
    theirs = torch.tensor([x for g, i in one.pairs for x in rollouts.sampled[g][i]], dtype=torch.float64)
    ratio = per_response(before.double() - theirs.to(before.device), one.packed.lengths).exp()
    return ratio.clamp(max=config.importance_cap).to(one.advantage)
