"""Packing: a minibatch's prompts and responses laid out without padding.

A group's prompt stands once, its n responses follow, and no token is padding. Every layer of a model but attention
works on that flat list of tokens; for attention (pmd/attention.py) the layout says which tokens each may look at, in
one of two ways: "blocks" of rows with dense biases, fast at the short lengths that a CPU trains on, or "flex", a sparse
mask over the flat list itself, for lengths whose square is too much memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

BLOCKS = 3
"""Blocks of responses of similar length in which attention is computed."""

TILE = 128
"""Side of the tiles of a sparse mask. For "flex" packed tokens are padded to a multiple of it, by 127 at most, so every
tile is whole and compiled kernels meet few shapes."""


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
    """G prompts and their S responses laid out without padding, as N packed tokens; all int64 but biases and mask.

    ids, positions: [1, N]. Attention reads blocks: the prompts, then the responses behind their prompts, those of
    similar length together so that little of a block is padding; scatter [N] says where in the blocks' flattened
    queries each packed token is. For "flex" it reads mask instead, and there are no blocks and no scatter. predictor,
    target, sequence: [M], for each response token the packed token that predicts it, its id and its response (tokens of
    one response are consecutive). lengths: [S] tokens of each response.
    """

    ids: Tensor
    positions: Tensor
    blocks: tuple[Block, ...]
    scatter: Tensor | None
    predictor: Tensor
    target: Tensor
    sequence: Tensor
    lengths: Tensor
    mask: BlockMask | None = None


def pack(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[Sequence[int]]],
    device: str | torch.device = "cpu",
    attention: str | None = None,
) -> Packed:
    """Lay out `responses[g]`, the token ids of the responses to `prompts[g]`.

    attention: "blocks" or "flex", by default the one that is fast on the device. The last token of a response predicts
    nothing and is not fed. ValueError if a prompt or a response is empty or there is no such attention.
    """
    attention = attention or ("flex" if torch.device(device).type == "cuda" else "blocks")
    if attention not in ("blocks", "flex"):
        raise ValueError(f"attention: got {attention!r}, must be blocks or flex")
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
    first = (prompt_length.cumsum(0) - 1)[group, None]  # the prompt's last token predicts the first of the response
    position = prompt_length[group, None] + torch.arange(response_rows.shape[1])
    fields = {
        "ids": torch.cat([prompt_ids[prompt_real], target_ids[:, :-1][fed_real]])[None],
        "positions": torch.cat([(prompt_real.cumsum(1) - 1)[prompt_real], position[fed_real]])[None],
        "predictor": torch.cat([first, response_rows], dim=1)[target_real],
        "target": target_ids[target_real],
        "sequence": torch.repeat_interleave(torch.arange(len(flat)), length),
        "lengths": length,
    }
    blocks, mask, extra = (), None, {}
    if attention == "flex":
        mask, extra = _masked(fields, prompt_length, group, length - 1, device)
    else:
        blocks, extra = _blocks(prompt_rows, prompt_length, response_rows, length, group)
    moved = {name: value.to(device) for name, value in (fields | extra).items()}
    return Packed(blocks=tuple(block.to(device) for block in blocks), mask=mask, **{"scatter": None} | moved)


# --- flex: a sparse mask over the packed tokens ---------------------------------------------------------------------


def _masked(
    fields: dict[str, Tensor], prompt_length: Tensor, group: Tensor, fed: Tensor, device: str | torch.device
) -> tuple[BlockMask, dict[str, Tensor]]:
    """The mask on its device, and ids and positions with their padding, which padding alone looks at."""
    tokens = torch.cat([prompt_length, fed])
    owner = torch.cat([torch.arange(len(prompt_length)), group]).repeat_interleave(tokens)
    response = torch.cat([torch.full_like(prompt_length, -1), torch.arange(len(fed))]).repeat_interleave(tokens)
    padding = (0, -len(owner) % TILE)
    owner, response = (F.pad(x, padding, value=-1).to(device, torch.int32) for x in (owner, response))
    return sparse_mask(owner, response), {name: F.pad(fields[name], padding) for name in ("ids", "positions")}


def sparse_mask(group: Tensor, response: Tensor) -> BlockMask:
    """Which packed tokens each may look at: those not after it, of its own response or of its group's prompt.

    group, response: [N] int32, the group of each packed token and its response, −1 in a prompt; N is a multiple of
    TILE. Memory is [TILE, N] and [N/TILE, N/TILE], never [N, N].
    """

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = (response[k] == -1) | (response[k] == response[q])
        return (k <= q) & (group[k] == group[q]) & same

    place = torch.arange(len(group), device=group.device)
    some, every = [], []  # of each tile's pairs, is one seen, are all
    for q in place.split(TILE):
        tiles = seen(None, None, q[:, None], place).unflatten(1, (-1, TILE))
        some.append(tiles.any(2).any(0))
        every.append(tiles.all(2).all(0))
    some, every = torch.stack(some), torch.stack(every)
    partial = [x[None, None] for x in _listed(some & ~every)]
    full = [x[None, None] for x in _listed(every)]
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=TILE, mask_mod=seen, seq_lengths=(len(group),) * 2)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of a table of tiles, how many are set, and their columns before all others; both int32."""
    return tiles.sum(1, dtype=torch.int32), tiles.int().argsort(dim=1, descending=True, stable=True).int()


# --- blocks: rows with dense biases ---------------------------------------------------------------------------------


def _blocks(
    prompt_rows: Tensor, prompt_length: Tensor, response_rows: Tensor, length: Tensor, group: Tensor
) -> tuple[list[Block], dict[str, Tensor]]:
    """The prompts' block and at most BLOCKS of responses, and `scatter`."""
    parts = (prompt_length[group] + length).argsort(stable=True).chunk(BLOCKS)
    blocks = [_block(prompt_rows[:, :0], prompt_length * 0, prompt_rows, prompt_length)]
    blocks += [_block(prompt_rows[group[i]], prompt_length[group[i]], response_rows[i], length[i] - 1) for i in parts]
    blocks = [(block, real) for block, real in blocks if real.numel()]  # a response of one token is not fed
    scatter = _slots([block.queries for block, _ in blocks], [real for _, real in blocks])
    return [block for block, _ in blocks], {"scatter": scatter}


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
