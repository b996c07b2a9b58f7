"""One step of policy mirror descent on a batch of rollouts: log π_t, advantages, K optimizer steps, measurements.

log π_t is frozen for the whole batch, so minibatches 2..K are off-policy by design (arXiv:2602.05933, practical
algorithm). A minibatch too large for one pass is cut into microbatches, and divided among ranks; either way its
gradient is the sum of the pieces' gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pmd.harness.config import Train
from pmd.model.distributed import gather, total, world
from pmd.model.forward import frozen_log_probs, log_probs
from pmd.model.sharding import sharded
from pmd.theory import population
from pmd.trainer.objectives import OBJECTIVES, Hyper, Minibatch, group_mean, keep_groups, leave_one_out_mean
from pmd.trainer.passes import Microbatch, Rollouts, microbatch, passes, split


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def learn(config: Train, step: int, model: PreTrainedModel, optimizer, rollouts: Rollouts, clock: Clock) -> dict:
    """The K optimizer steps of one batch; returns its row of the log, the same on every rank."""
    objective = OBJECTIVES[config.method]
    advantages = objective.advantage(rollouts.rewards.double(), config.tau).float()
    kept = keep_groups(rollouts.rewards, config.filter_low, config.filter_high).nonzero()[:, 0].tolist()
    parts = split(kept, config.minibatches)
    with clock.phase("old"):
        minibatches = [own_batches(config, rollouts, [part], advantages, model.device) for part in parts]
        batches = [batch for minibatch in minibatches for batch in minibatch]
        forward, old, entropy = freeze(config, model, rollouts, minibatches)
    with clock.phase("update"):
        weights = [importance(config, rollouts, batch, log_p) for batch, log_p in zip(batches, old, strict=True)]
        known = iter(zip(batches, old, weights, strict=True))
        updates = [
            _update(config, step, model, optimizer, [next(known) for _ in minibatch], _size(rollouts, part), forward)
            for minibatch, part in zip(minibatches, parts, strict=True)
        ]
    with clock.phase("probe"):
        probed = [g for part in parts[: config.probe] for g in part]
        measured = _measure(model, batches[: sum(map(len, minibatches[: config.probe]))], old, config)
    return {
        **_rollout_metrics(rollouts),
        "kept": len(kept) / len(rollouts.prompts),
        "entropy": entropy,
        **{key: _mean([u[key] for u in updates]) for key in ("loss", "grad_norm", "clip_fraction")},
        **measured,
        **_predicted(config, rollouts.rewards[probed]),
        **_weighed(config, weights),
    }


def own_batches(
    config: Train, rollouts: Rollouts, parts: list[list[int]], advantages: Tensor, device: str | torch.device
) -> list[Microbatch]:
    """This rank's passes over its share of the minibatches `parts`, packed."""
    own = passes(rollouts, parts, config.microbatch_tokens, *world())
    return [microbatch(rollouts, part, advantages, device) for part in own]


# --- log π_t -------------------------------------------------------------------------------------------------------


def freeze(
    config: Train, model: PreTrainedModel, rollouts: Rollouts, minibatches: list[list[Microbatch]]
) -> tuple[list, list[Tensor], float | None]:
    """(the first update's own pass, log π_t of each microbatch, mean entropy of the batch in nats).

    The first minibatch is met at θ = θ_t: if it is one pass, the pass of its update is also its log π_t. Stale rollouts
    know their log π_t and entropy already.
    """
    batches = [batch for minibatch in minibatches for batch in minibatch]
    if rollouts.old is not None or not batches:
        known = rollouts.old or []
        old = [torch.cat([known[g][i] for g, i in b.pairs] or [torch.zeros(1)]).to(b.advantage.device) for b in batches]
        return [], old, rollouts.entropy
    shared = len(minibatches[0]) == 1 and not sharded(model)
    forward = [log_probs(model, batches[0].packed, config.temperature)] if shared else []
    first = [(log_p.detach(), entropy.detach()) for log_p, entropy in forward]
    read = first + [frozen_log_probs(model, batch.packed, config.temperature) for batch in batches[len(first) :]]
    real = [entropy for batch, (_, entropy) in zip(batches, read, strict=True) if batch.part]
    return forward, [log_p for log_p, _ in read], _mean_over_ranks(real)


def _mean_over_ranks(pieces: list[Tensor]) -> float:
    """The mean over all tokens of all ranks."""
    amount = sum(piece.mean().item() * len(piece) for piece in pieces)
    amount, count = total([amount, sum(map(len, pieces))])
    return amount / count


def remember(config: Train, model: PreTrainedModel, rollouts: Rollouts) -> dict:
    """{"old", "entropy"} of Rollouts: log π_t of every response and π_t's mean entropy, for rollouts that will wait."""
    batches = own_batches(config, rollouts, [list(range(len(rollouts.prompts)))], rollouts.rewards, model.device)
    read = [(batch, *frozen_log_probs(model, batch.packed, config.temperature)) for batch in batches]
    own: dict[tuple[int, int], Tensor] = {}
    for batch, log_p, _ in read:
        pieces = log_p.cpu().split(batch.packed.lengths.tolist())
        own |= dict(zip(batch.pairs, pieces, strict=False))  # an idle pass has no pairs
    entropy = _mean_over_ranks([entropy for batch, _, entropy in read if batch.part])
    found = {pair: piece for part in gather(own) for pair, piece in part.items()}
    old = [[found[g, i] for i in range(len(group))] for g, group in enumerate(rollouts.responses)]
    return {"old": old, "entropy": entropy}


# --- the update ----------------------------------------------------------------------------------------------------


def _size(rollouts: Rollouts, groups: list[int]) -> tuple[int, int]:
    """(responses, tokens) of a whole minibatch, over all microbatches and ranks."""
    lengths = [len(response) for g in groups for response in rollouts.responses[g]]
    return len(lengths), sum(lengths)


def _update(
    config: Train,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batches: list[tuple[Microbatch, Tensor, Tensor | None]],
    whole: tuple[int, int],
    forward: list[tuple],
) -> dict:
    """One optimizer step on one minibatch, given as this rank's microbatches, their log π_t and importance weights.

    forward: log-probabilities already computed with their graph; taken from the list, so that it is freed.
    """
    optimizer.zero_grad(set_to_none=True)
    loss_sum, active = 0.0, []
    for batch, before, weight in batches:
        packed = batch.packed
        new, _ = forward.pop() if forward else log_probs(model, packed, config.temperature, entropy=False)
        seen = Minibatch(
            new - before, batch.advantage, packed.sequence, packed.lengths, config.max_tokens, whole, weight
        )
        loss, clipped = OBJECTIVES[config.method].loss(seen, hyper(config))
        share = world()[1] if batch.part else 0  # FSDP2 averages over ranks; an idle pass counts for nothing
        (loss if share == 1 else share * loss).backward()
        loss_sum += loss.item() if batch.part else 0.0
        active += [] if clipped is None or not batch.part else [clipped.float()]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip, foreach=True)
    norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    clips, terms = sum(x.sum().item() for x in active), sum(map(len, active))
    loss_sum, clips, terms = total([loss_sum, clips, terms])
    if not (math.isfinite(loss_sum) and math.isfinite(norm)):
        raise FloatingPointError(
            f"step {step}: the loss is {loss_sum} and its gradient norm {norm} (method {config.method}, "
            f"lr {config.lr}, tau {config.tau}); training stopped before the update, the last checkpoint is kept"
        )
    for group in optimizer.param_groups:
        group["lr"] = config.lr * min(1.0, step / (config.warmup + 1))
    optimizer.step()
    fraction = float(np.float32(clips / terms)) if terms else None  # a mean of fp32 flags, as on one process
    return {"loss": loss_sum, "grad_norm": norm, "clip_fraction": fraction}


def hyper(config: Train) -> Hyper:
    """The loss's hyper-parameters of a run."""
    return Hyper(config.tau, config.clip_low, config.clip_high, config.normalise)


def importance(config: Train, rollouts: Rollouts, batch: Microbatch, before: Tensor) -> Tensor | None:
    """min(π_t(y)/π_engine(y), C) of each response [S]: truncated weights for an engine that does not sample exactly
    from π_t. They multiply a response's term before any mean is taken."""
    if config.importance_cap is None or not batch.part:
        return None
    theirs = torch.tensor([x for g, i in batch.pairs for x in rollouts.sampled[g][i]], dtype=torch.float64)
    s = Minibatch(before.double().cpu() - theirs, before, batch.packed.sequence.cpu(), batch.packed.lengths, 1).s
    return s.exp().clamp(max=config.importance_cap).to(batch.advantage)


def _weighed(config: Train, weights: list[Tensor | None]) -> dict:
    """Mean importance weight and the share at the cap, over all ranks; nothing where there are no weights."""
    if config.importance_cap is None:
        return {}
    used = torch.cat([w for w in weights if w is not None] or [torch.zeros(0)]).cpu()
    amount, capped, count = total([used.sum().item(), (used == config.importance_cap).sum().item(), len(used)])
    return {"weight": amount / max(1, count), "weight_capped": capped / max(1, count)}


# --- measurements --------------------------------------------------------------------------------------------------


@torch.no_grad()
def _measure(model: PreTrainedModel, batches: list[Microbatch], old: list[Tensor], config: Train) -> dict:
    """−mean(s), which estimates λ, and KL(π_{t+1}‖π_t), χ²(π_{t+1}‖π_t) from π_t's own rollouts, in nats.

    KL is the mean of ρ s − ρ + 1 and χ² of (ρ − 1)²: the unbiased estimators that cannot be negative.
    """
    if not batches:
        return {"lambda": 0.0, "kl": 0.0, "chi2": 0.0}
    own = []
    for batch, before in zip(batches, old, strict=False):
        after, _ = frozen_log_probs(model, batch.packed, config.temperature, entropy=False)
        s = Minibatch(after - before, before, batch.packed.sequence, batch.packed.lengths, 1).s.double()
        own.append(s if batch.part else s[:0])
    s = torch.cat(gather(torch.cat(own).cpu()))
    # far from π_t, ρ overflows; the log records the largest double rather than stopping the run
    rho = s.clamp(max=300).exp()
    values = {"lambda": -s.mean(), "kl": (rho * s - rho + 1).mean(), "chi2": ((rho - 1) ** 2).mean()}
    return {key: value.item() for key, value in values.items()}


def _predicted(config: Train, rewards: Tensor) -> dict:
    """What the population update predicts for the same groups: for the methods whose baseline is a mean, else None."""
    n = config.group_size
    tau = {leave_one_out_mean: config.tau * (n - 1) / n, group_mean: config.tau}.get(
        OBJECTIVES[config.method].advantage
    )
    if tau is None or "tau" not in OBJECTIVES[config.method].uses or len(rewards) == 0:
        return dict.fromkeys(("lambda_theory", "kl_theory", "chi2_theory"))
    predicted = population.predicted_lambda(rewards.double().numpy(), tau)
    return {
        f"{key}_theory": float(np.mean(value)) for key, value in zip(("lambda", "kl", "chi2"), predicted, strict=True)
    }


def _rollout_metrics(rollouts: Rollouts) -> dict:
    rewards = rollouts.rewards
    return {
        "reward": rewards.mean().item(),
        "signal": ((rewards != rewards[:, :1]).any(1)).float().mean().item(),
        "length": rollouts.tokens / rewards.numel(),
        "truncated": rollouts.truncated,
        "successes": (rewards == 1).sum(1).tolist(),
        "group_size": rewards.shape[1],
    }


def _mean(values: list[float | None]) -> float | None:
    """Mean; None if there is nothing to average."""
    return None if not values or values[0] is None else sum(values) / len(values)
