"""From the minibatches of a step to forward passes: each rank's share of a minibatch, in passes of bounded size.

A group is never split before its baseline is known, since advantages are computed from the whole batch. What is divided
here is the work, response by response: the losses of all passes over a minibatch add up to its own, and so do their
gradients (pmd/trainer/objectives.py). An example: four groups of two responses, two minibatches, two ranks, and room
for two responses in a pass.

    minibatch 1: groups 0 and 1        minibatch 2: groups 2 and 3
    rank 0: {0: [0, 1]}                rank 0: {2: [0, 1]}
    rank 1: {1: [0, 1]}                rank 1: {3: [0, 1]}
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pmd.model.distributed import world
from pmd.model.packing import Packed, pack

Chosen = dict[int, list[int]]
"""{group: the responses of it} that are in one pass, in order. Empty in an idle pass: this rank has no response left,
but the other ranks have, and with sharded weights every rank must make as many passes."""


class Batch(Protocol):
    """Token ids of G prompts [group][token], and of the responses to each [group][response][token]."""

    @property
    def prompts(self) -> list[list[int]]: ...

    @property
    def responses(self) -> list[list[list[int]]]: ...


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: S responses, packed, and their advantages [S] fp32.

    An idle pass holds one token, whose loss is multiplied by 0.
    """

    packed: Packed
    advantage: Tensor
    chosen: Chosen

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(group, response) of each response, in order; none in an idle pass."""
        return [(g, i) for g, responses in self.chosen.items() for i in responses]

    @property
    def idle(self) -> bool:
        """Is it made only because other ranks still have responses?"""
        return not self.chosen


def split(groups: list[int], parts: int) -> list[list[int]]:
    """The groups in `parts` minibatches as equal as can be. None is empty, so with few groups there are fewer."""
    cuts = [len(groups) * i // parts for i in range(parts + 1)]
    return [groups[a:b] for a, b in pairwise(cuts) if a < b]


def share_by_rank(batch: Batch, groups: list[int], ranks: int) -> list[list[tuple[int, int]]]:
    """The (group, response) pairs of these groups, one contiguous share a rank, with about as many tokens each."""
    pairs = [(g, i) for g in groups for i in range(len(batch.responses[g]))]
    cost = np.array([_fed(batch, g, i) + len(batch.prompts[g]) / len(batch.responses[g]) for g, i in pairs])
    owner = (cost.cumsum() - cost / 2) * ranks // cost.sum()
    return [[pair for pair, o in zip(pairs, owner, strict=True) if o == rank] for rank in range(ranks)]


def _fed(batch: Batch, group: int, response: int) -> int:
    """How many tokens of a response the model reads: all but the last, after which nothing is predicted."""
    return len(batch.responses[group][response]) - 1


def fill_passes(batch: Batch, pairs: list[tuple[int, int]], budget: int | None) -> list[Chosen]:
    """(group, response) pairs in order, in passes of at most `budget` packed tokens each; None: all in one pass.

    A group's prompt is counted in every pass that holds responses of it. A response that is longer than the budget
    has a pass for itself. Beginnings that responses share are not subtracted, so a pass may be smaller than counted.
    """
    found: list[Chosen] = []
    tokens = 0
    for g, i in pairs:
        prompt, fed = len(batch.prompts[g]), _fed(batch, g, i)
        more = fed + (0 if found and g in found[-1] else prompt)
        if not found or (budget is not None and tokens + more > budget):
            found.append({})
            tokens, more = 0, fed + prompt
        found[-1].setdefault(g, []).append(i)
        tokens += more
    return found


def passes_of_rank(batch: Batch, groups: list[int], budget: int | None, rank: int, ranks: int) -> list[Chosen]:
    """One rank's passes over its share of these groups, a minibatch.

    A pass of a sharded policy is a collective, so idle passes follow until there are as many as the busiest rank's.
    """
    found = [fill_passes(batch, share, budget) for share in share_by_rank(batch, groups, ranks)]
    return found[rank] + [{}] * (max(map(len, found)) - len(found[rank]))


def make_pass(batch: Batch, chosen: Chosen, advantages: Tensor, device: str | torch.device) -> Pass:
    """The chosen responses, packed on the device, with their advantages out of [G, n]."""
    if not chosen:
        packed = pack([batch.prompts[0][:1]], [[batch.responses[0][0][:1]]], device)
        return Pass(packed, torch.zeros(1, device=device), chosen)
    responses = [[batch.responses[g][i] for i in some] for g, some in chosen.items()]
    packed = pack([batch.prompts[g] for g in chosen], responses, device)
    advantage = torch.cat([advantages[g, some] for g, some in chosen.items()])
    return Pass(packed, advantage.to(device), chosen)


def own_passes(
    batch: Batch, groups: list[int], budget: int | None, advantages: Tensor, device: str | torch.device
) -> list[Pass]:
    """This rank's passes over its share of these groups, packed on the device; advantages: [G, n]."""
    chosen = passes_of_rank(batch, groups, budget, *world())
    return [make_pass(batch, one, advantages, device) for one in chosen]
