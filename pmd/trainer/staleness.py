"""Training on rollouts that are some steps old, as asynchronous training does at scale.

With staleness s, the batch that step t trains on is sampled at step t − s, from the policy of that step, which is its
π_t. Until step t it waits together with the log-probabilities of that policy; checkpoints hold it too. The first s + 1
batches are sampled at step 1. For s = 2:

    step                    1        2     3     4
    samples the batches of  1, 2, 3  4     5     6
    trains on the batch of  1        2     3     4
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pmd.harness.clock import Clock
from pmd.harness.config import Train
from pmd.harness.passes import own_passes
from pmd.harness.policy import Policy
from pmd.model.distributed import gather
from pmd.model.forward import frozen_log_probs
from pmd.trainer.measurements import mean_over_ranks
from pmd.trainer.rollouts import Rollouts, sample


def batch_of_step(
    config: Train, step: int, policy: Policy, problems: list[dict], waiting: dict[int, Rollouts], clock: Clock
) -> Rollouts:
    """The batch that `step` trains on. waiting: batches by the step that will train on them; changed in place."""
    if config.staleness == 0:
        return sample(config, step, policy, problems, clock)
    for later in range(max(waiting, default=step - 1) + 1, step + config.staleness + 1):
        fresh = sample(config, later, policy, problems, clock)
        with clock.phase("old"):
            old, entropy = old_log_probs(config, policy.model, fresh)
        waiting[later] = replace(fresh, old=old, entropy=entropy)
    return waiting.pop(step)


def old_log_probs(config: Train, model: PreTrainedModel, rollouts: Rollouts) -> tuple[list[list[Tensor]], float]:
    """log π of every response's tokens by the present policy, [group][response] -> [tokens], and its mean entropy.

    Each rank makes the passes of its share of the batch, one without a bound; every rank gets all values, on the CPU.
    """
    everything = list(range(len(rollouts.prompts)))
    passes = own_passes(rollouts, everything, config.microbatch_tokens, rollouts.rewards, model.device)
    read = [(one, *frozen_log_probs(model, one.packed, config.temperature)) for one in passes]
    own: dict[tuple[int, int], Tensor] = {}
    for one, log_p, _ in read:
        own |= dict(zip(one.pairs, log_p.cpu().split(one.packed.lengths.tolist()), strict=one.chosen != {}))
    entropy = mean_over_ranks([entropies for one, _, entropies in read if not one.idle])
    found = {pair: piece for of_rank in gather(own) for pair, piece in of_rank.items()}
    return [[found[g, i] for i in range(len(group))] for g, group in enumerate(rollouts.responses)], entropy


# --- as tensors, for a checkpoint ----------------------------------------------------------------------------------


def to_tensors(rollouts: Rollouts) -> dict[str, Tensor]:
    """Every field of a batch as flat tensors."""
    flat = [response for group in rollouts.responses for response in group]
    made = {
        "prompts": torch.tensor([token for prompt in rollouts.prompts for token in prompt]),
        "prompt_lengths": torch.tensor([len(prompt) for prompt in rollouts.prompts]),
        "responses": torch.tensor([token for response in flat for token in response]),
        "lengths": torch.tensor([len(response) for response in flat]),
        "rewards": rollouts.rewards,
        "truncated": torch.tensor(rollouts.truncated, dtype=torch.float64),
    }
    if rollouts.old is not None:
        made["old"] = torch.cat([log_p for group in rollouts.old for log_p in group])
        made["entropy"] = torch.tensor(rollouts.entropy, dtype=torch.float64)
    if rollouts.sampled is not None:
        made["sampled"] = torch.tensor([x for g in rollouts.sampled for row in g for x in row], dtype=torch.float64)
    return made


def from_tensors(made: dict[str, Tensor]) -> Rollouts:
    """The batch of which these are `to_tensors`."""
    n, lengths = made["rewards"].shape[1], made["lengths"].tolist()

    def grouped(name: str) -> list[list[Tensor]] | None:
        pieces = made[name].split(lengths) if name in made else None
        return None if pieces is None else [list(pieces[i : i + n]) for i in range(0, len(pieces), n)]

    def listed(name: str) -> list | None:
        groups = grouped(name)
        return None if groups is None else [[piece.tolist() for piece in group] for group in groups]

    return Rollouts(
        prompts=[prompt.tolist() for prompt in made["prompts"].split(made["prompt_lengths"].tolist())],
        responses=listed("responses"),
        rewards=made["rewards"],
        truncated=made["truncated"].item(),
        old=grouped("old"),
        entropy=made["entropy"].item() if "entropy" in made else None,
        sampled=listed("sampled"),
    )
