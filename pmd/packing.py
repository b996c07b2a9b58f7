"""Packing: a minibatch's prompts and responses laid out without padding.

A group's prompt stands once, its n responses follow, and no token is padding. Every layer of a model but attention
works on that flat list of tokens; for attention (pmd/attention.py) the layout says which tokens each may look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCKS = 3
"""Blocks of responses of similar length in which attention is computed."""


@dataclass(frozen=True)
class Block:
    """B rows of packed tokens for attention: queries [B, Q], keys [B, K], and bias [B, 1, Q, K], 0 where a query may
    look and -inf elsewhere."""

    queries: Tensor
    keys: Tensor
    bias: Tensor

    def to(self, device: str) -> Block:
        return Block(self.queries.to(device), self.keys.to(device), self.bias.to(device))


@dataclass(frozen=True)
class Packed:
    """G prompts and their S responses laid out without padding, as N packed tokens; all int64 but the biases.

    ids, positions: [1, N]. Attention reads blocks: the prompts, then the responses behind their prompts, those of
    similar length together so that little of a block is padding; scatter [N] says where in the blocks' flattened
    queries each packed token is. predictor, target, sequence: [M], for each response token the packed token that
    predicts it, its id and its response (tokens of one response are consecutive). lengths: [S] tokens of each response.
    """

    ids: Tensor
    positions: Tensor
    blocks: tuple[Block, ...]
    scatter: Tensor
    predictor: Tensor
    target: Tensor
    sequence: Tensor
    lengths: Tensor


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], device: str = "cpu") -> Packed:
    """Lay out `responses[g]`, the token ids of the responses to `prompts[g]`.

    The last token of a response predicts nothing and is not fed. ValueError if a prompt or a response is empty.
    """
    flat = [response for group in responses for response in group]
    if not all(map(len, prompts)) or not all(map(len, flat)):
        raise ValueError("a prompt or a response has no tokens")
    group = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor([len(g) for g in responses]))
    prompt_length, length = torch.tensor([len(p) for p in prompts]), torch.tensor([len(r) for r in flat])
    prompt_ids, prompt_real = _table(prompts)
    target_ids, target_real = _table(flat)
    fed_real = target_real[:, 1:]  # [S, R]: every token but the last is fed
    prompt_rows = _number(prompt_real, 0)
    response_rows = _number(fed_real, int(prompt_length.sum()))
    parts = (prompt_length[group] + length).argsort(stable=True).chunk(BLOCKS)
    blocks = [_block(prompt_rows[:, :0], prompt_length * 0, prompt_rows, prompt_length)]
    blocks += [_block(prompt_rows[group[i]], prompt_length[group[i]], response_rows[i], length[i] - 1) for i in parts]
    blocks = [(block, real) for block, real in blocks if real.numel()]  # a response of one token is not fed
    first = (prompt_length.cumsum(0) - 1)[group, None]  # the prompt's last token predicts the first of the response
    position = prompt_length[group, None] + torch.arange(response_rows.shape[1])
    layout = Packed(
        ids=torch.cat([prompt_ids[prompt_real], target_ids[:, :-1][fed_real]])[None],
        positions=torch.cat([(prompt_real.cumsum(1) - 1)[prompt_real], position[fed_real]])[None],
        blocks=tuple(block for block, _ in blocks),
        scatter=_slots([block.queries for block, _ in blocks], [real for _, real in blocks]),
        predictor=torch.cat([first, response_rows], dim=1)[target_real],
        target=target_ids[target_real],
        sequence=torch.repeat_interleave(torch.arange(len(flat)), length),
        lengths=length,
    )
    moved = {name: value.to(device) for name, value in vars(layout).items() if name != "blocks"}
    return Packed(blocks=tuple(block.to(device) for block in layout.blocks), **moved)


def _block(behind: Tensor, behind_length: Tensor, rows: Tensor, length: Tensor) -> tuple[Block, Tensor]:
    """Rows of packed tokens [B, Q] that attend to those before them [B, P] and causally to themselves; and which of
    the queries are real [B, Q]. Both are cut to the longest row."""
    p, q = int(behind_length.max()), int(length.max())
    behind, rows = behind[:, :p], rows[:, :q]
    before = torch.arange(p) < behind_length[:, None]
    causal = torch.ones(q, q, dtype=torch.bool).tril()
    seen = torch.cat([before[:, None].expand(-1, q, -1), causal.expand(len(rows), -1, -1)], dim=2)
    bias = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]
    return Block(rows, torch.cat([behind, rows], dim=1), bias), torch.arange(q) < length[:, None]


def _slots(queries: list[Tensor], real: list[Tensor]) -> Tensor:
    """Where each packed token stands in the blocks' flattened queries."""
    token, real = (torch.cat([x.flatten() for x in xs]) for xs in (queries, real))
    return torch.empty(int(real.sum()), dtype=torch.int64).scatter_(0, token[real], real.nonzero()[:, 0])


def _table(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one table of ids and the mask of its real entries, both [rows, longest]."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]
    table = np.zeros(real.shape, dtype=np.int64)
    table[real] = np.concatenate([np.asarray(row) for row in rows])
    return torch.from_numpy(table), torch.from_numpy(real)


def _number(real: Tensor, start: int) -> Tensor:
    """Number the real entries row by row from `start`; the others point at token 0 and are never read."""
    return torch.where(real, real.flatten().cumsum(0).view_as(real) - 1 + start, 0)
