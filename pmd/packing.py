"""Packing: a minibatch's prompts and responses laid out without padding.

A group's prompt stands once, its n responses follow, and no token is padding. Every layer of a model but attention
works on that flat list of tokens; for attention (pmd/attention.py) the layout says which tokens each may look at, in
one of two ways: "blocks" of rows with dense biases, fast at the short lengths that a CPU trains on, or "flex", a sparse
mask over the flat list itself, for lengths whose square is too much memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCKS = 3
"""Blocks of responses of similar length in which attention is computed."""

TILE = 128
"""Side of the tiles of a sparse mask. For "flex" packed tokens are padded to a multiple of it, by 127 at most, so every
tile is whole and compiled kernels meet few shapes."""


@dataclass(frozen=True)
class Packed:
    """G prompts and their S responses laid out without padding, as N packed tokens; all int64 but biases and mask.

    ids, positions: [1, N]. predictor, target, sequence: [M], for each response token the packed token that predicts it,
    its id and its response (tokens of one response are consecutive). lengths: [S] tokens of each response.

    Attention reads blocks of rows, a row being a prompt or a response behind its prompt, those of similar length
    together so that little of a block is padding. biases: one a block, [B, 1, Q, K], 0 where a query may look and -inf
    elsewhere; queries, keys: the packed tokens of the blocks' B x Q queries and B x K keys, block after block; scatter:
    [N], where among the queries each packed token is. For "flex" it reads mask, and the former are empty or None.
    """

    ids: Tensor
    positions: Tensor
    predictor: Tensor
    target: Tensor
    sequence: Tensor
    lengths: Tensor
    biases: tuple[Tensor, ...] = ()
    queries: Tensor | None = None
    keys: Tensor | None = None
    scatter: Tensor | None = None
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
    prompt_length, length = np.array([len(p) for p in prompts]), np.array([len(r) for r in flat])
    if not all(prompt_length) or not all(length):
        raise ValueError("a prompt or a response has no tokens")
    group = np.repeat(np.arange(len(prompts)), [len(g) for g in responses])
    # a piece is a prompt, or what is fed of a response; the pieces stand one after the other
    own = np.concatenate([prompt_length, length - 1])
    behind = np.concatenate([0 * prompt_length, prompt_length[group]])
    start = own.cumsum() - own
    piece, place = _places(own)
    sequence, t = _places(length)
    target = _joined(flat)
    fields = {
        "ids": np.concatenate([_joined(prompts), target[t < length[sequence] - 1]])[None],
        "positions": (behind[piece] + place)[None],
        # the prompt's last token predicts the first of the response
        "predictor": np.where(t == 0, (start + own - 1)[group[sequence]], start[len(prompts) + sequence] + t - 1),
        "target": target,
        "sequence": sequence,
        "lengths": length,
    }
    biases, mask = [], None
    if attention == "flex":
        owner = np.concatenate([np.arange(len(prompts)), group])[piece]
        response = np.maximum(piece - len(prompts), -1)
        padding = (0, -len(piece) % TILE)  # padding alone looks at padding
        tiled = (torch.from_numpy(np.pad(x, padding, constant_values=-1)) for x in (owner, response))
        mask = sparse_mask(*(x.to(device, torch.int32) for x in tiled))
        fields |= {name: np.pad(fields[name], ((0, 0), padding)) for name in ("ids", "positions")}
    else:
        biases, extra = _blocks(np.concatenate([0 * prompt_length, start[group]]), behind, start, own)
        fields |= extra
    moved = {name: torch.from_numpy(value).to(device) for name, value in fields.items()}
    return Packed(biases=tuple(torch.from_numpy(bias).to(device) for bias in biases), mask=mask, **moved)


def _joined(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """All rows' ids, one after the other."""
    return np.fromiter(chain.from_iterable(rows), np.int64)


def _places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of rows of these lengths, its row and its place there."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.arange(len(row)) - (lengths.cumsum() - lengths)[row]


# --- flex: a sparse mask over the packed tokens ---------------------------------------------------------------------


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
    before: np.ndarray, behind: np.ndarray, start: np.ndarray, own: np.ndarray
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """At most BLOCKS biases; queries, keys and scatter. A row is `own` tokens from `start`, which see the `behind` ones
    from `before` too."""
    rows = (behind + own).argsort(kind="stable")
    parts = np.array_split(rows[own[rows] > 0], BLOCKS)  # a response of one token is not fed
    blocks = [_block(before[i], behind[i], start[i], own[i]) for i in parts if len(i)]
    biases, queries, keys, real = zip(*blocks, strict=True)
    queries, keys, real = (np.concatenate([x.ravel() for x in xs]) for xs in (queries, keys, real))
    scatter = np.empty(own.sum(), np.int64)
    scatter[queries[real]] = real.nonzero()[0]
    return list(biases), {"queries": queries, "keys": keys, "scatter": scatter}


def _block(before: np.ndarray, behind: np.ndarray, start: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, ...]:
    """(bias [B, 1, Q, K], queries [B, Q], keys [B, K], which queries are real [B, Q]) of such rows.

    The queries and keys that are not real are token 0.
    """
    keys, seen = _span(before, behind)
    queries, real = _span(start, own)
    shape = (len(own), queries.shape[1])
    causal = np.tri(shape[1], dtype=bool)
    seen = np.concatenate([np.broadcast_to(x, (*shape, x.shape[-1])) for x in (seen[:, None], causal)], axis=2)
    bias = np.where(seen, np.float32(0), np.float32(-np.inf))[:, None]
    return bias, queries, np.concatenate([keys, queries], axis=1), real


def _span(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """start, start + 1, … of each row as one table, as wide as the longest row, and the mask of its real entries."""
    places = np.arange(length.max())
    real = places < length[:, None]
    return np.where(real, start[:, None] + places, 0), real
