"""From rollouts to passes: K minibatches of whole groups, each rank's share of them, microbatches within a budget.

A group is never split before its baseline is known: advantages come from the whole batch (pmd/trainer/update.py). What
is cut here is the work, response by response; the losses of the pieces add up to the minibatch's own
(pmd/trainer/objectives.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pmd.model.packing import Packed, pack

Part = dict[int, list[int]]
"""{group: its responses} of one pass; an empty one is a pass that only keeps step with other ranks."""


@dataclass(frozen=True)
class Rollouts:
    """A step's G groups of n responses: token ids and rewards [G, n], and the share that was truncated.

    old, entropy: log π_t of each response's tokens and π_t's mean entropy, where π_t will not be the present policy any
    more when they are trained on; sampled: the log-probabilities that the engine itself reported, where asked for.
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
        return sum(len(response) for group in self.responses for response in group)


@dataclass(frozen=True)
class Microbatch:
    """S responses for one forward and backward pass, and their advantages [S]; with an empty part, a pass on behalf of
    other ranks, whose one token counts for nothing."""

    packed: Packed
    advantage: Tensor
    part: Part

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(group, response) of each response, in order."""
        return [(g, i) for g, chosen in self.part.items() for i in chosen]


def split(groups: list[int], parts: int) -> list[list[int]]:
    """K minibatches of whole groups, as equal as can be; none of them empty, so there may be fewer."""
    cuts = [len(groups) * i // parts for i in range(parts + 1)]
    return [groups[a:b] for a, b in pairwise(cuts) if a < b]


def deal(rollouts: Rollouts, groups: list[int], ranks: int) -> list[list[tuple[int, int]]]:
    """The groups' (group, response) pairs as one contiguous share a rank, of nearly equal tokens."""
    pairs = [(g, i) for g in groups for i in range(len(rollouts.responses[g]))]
    cost = np.array([_fed(rollouts, g, i) + len(rollouts.prompts[g]) / len(rollouts.responses[g]) for g, i in pairs])
    owner = (cost.cumsum() - cost / 2) * ranks // cost.sum()
    return [[pair for pair, o in zip(pairs, owner, strict=True) if o == rank] for rank in range(ranks)]


def _fed(rollouts: Rollouts, group: int, response: int) -> int:
    return len(rollouts.responses[group][response]) - 1


def cut(rollouts: Rollouts, pairs: list[tuple[int, int]], budget: int | None) -> list[Part]:
    """(group, response) pairs in passes of at most `budget` packed tokens each, None being no bound.

    A group's prompt stands in every pass that holds some of it; a response beyond the budget stands alone. What
    responses share besides is not subtracted.
    """
    parts: list[Part] = []
    tokens = 0
    for g, i in pairs:
        prompt, fed = len(rollouts.prompts[g]), _fed(rollouts, g, i)
        more = fed + (0 if parts and g in parts[-1] else prompt)
        if not parts or (budget is not None and tokens + more > budget):
            parts.append({})
            tokens, more = 0, fed + prompt
        parts[-1].setdefault(g, []).append(i)
        tokens += more
    return parts


def passes(rollouts: Rollouts, parts: list[list[int]], budget: int | None, rank: int, ranks: int) -> list[Part]:
    """One rank's passes over its shares of these minibatches, padded with empty ones to as many as the busiest rank's:
    a pass of a sharded policy is a collective."""
    dealt = [deal(rollouts, groups, ranks) for groups in parts]
    cuts = [cut(rollouts, [pair for shares in dealt for pair in shares[r]], budget) for r in range(ranks)]
    return cuts[rank] + [{}] * (max(map(len, cuts)) - len(cuts[rank]))


def microbatch(rollouts: Rollouts, part: Part, advantages: Tensor, device: str) -> Microbatch:
    """One pass's responses, packed; advantages: [G, n], of whole groups."""
    if not part:
        packed = pack([rollouts.prompts[0][:1]], [[rollouts.responses[0][0][:1]]], device)
        return Microbatch(packed, torch.zeros(1, device=device), part)
    responses = [[rollouts.responses[g][i] for i in chosen] for g, chosen in part.items()]
    packed = pack([rollouts.prompts[g] for g in part], responses, device)
    advantage = torch.cat([advantages[g, chosen] for g, chosen in part.items()])
    return Microbatch(packed, advantage.to(device), part)


# --- rollouts as tensors, for a checkpoint --------------------------------------------------------------------------


def to_tensors(rollouts: Rollouts) -> dict[str, Tensor]:
    """Every field of rollouts as flat tensors."""
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
    """The rollouts of `to_tensors`."""
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
