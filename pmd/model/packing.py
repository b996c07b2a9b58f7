"""Packing: a minibatch's prompts and responses laid out without padding and without repetition.

What several sequences begin with is stored and computed once: a prompt for its n responses, and the first tokens that
responses have in common, which are many where a policy is sure. Its gradient is the sum over the sequences that share
it, so only rounding differs. Every layer of a model but attention works on that flat list of tokens.

An example: the prompts are "ab" and "c", the responses "xy." and "xz." to the first and "w." to the second. The last
token of a response predicts nothing and is left out, and what remains is sorted, so that each sequence begins like the
one before it. The packed list holds what each sequence adds:

    packed token   0  1  2  3  4  5  6
    id             a  b  x  y  z  c  w
    position       0  1  2  3  3  0  1
    added by       ab    abxy  abxz c cw       (abxz shares abx, cw shares c)

The response tokens x y . x z . w . are predicted by the packed tokens 1 2 3 1 2 4 5 6.

Attention (pmd/model/attention.py) must know which tokens each may look at, and a layout says it in one of two ways.
"flex" is a sparse mask over the packed list itself, for lengths whose square is too much memory. "blocks" are small
dense masks, fast at the short lengths that a CPU trains on: a row's queries are the tokens that one sequence adds, and
its keys are the prefix that the sequence shares with earlier ones and those tokens. Rows of similar length make a
block, padded to its longest row.
Here there are three, where the keys before the bar are the shared prefix and . is padding:

    block 1   z looks at a b x | z        block 2   w .  look at c | w .       block 3   x y look at a b | x y
              c looks at . . . | c                  a b  look at . | a b

(x y is one row, since abxy adds both to its prompt; every query sees its prefix and, of the row, itself and what stands
before it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCKS = 3
"""Blocks of rows of similar length in which attention is computed."""

TILE = 128
"""Side of the tiles of a sparse mask. For "flex" packed tokens are padded to a multiple of it, so that every tile is
whole, and to two tiles at least: for a single one torch.compile would make kernels of its own, for half a minute."""


@dataclass(frozen=True)
class Packed:
    """G prompts and their S responses laid out without padding, as N packed tokens; all int64 but biases and mask.

    ids, positions: [1, N]. predictor, target, sequence: [M], for each response token the packed token that predicts it,
    its id and its response (tokens of one response are consecutive). lengths: [S] tokens of each response.

    For attention in blocks: a sequence is one row, whose queries are the tokens that it adds and whose keys are its
    shared prefix and those tokens. Rows are sorted by length and cut into at most BLOCKS blocks, each padded to its
    longest row. biases: one a block, [B, 1, Q, K], 0 where a query may look and −inf elsewhere. queries, keys: the
    packed tokens of the blocks' B x Q queries and B x K keys, block after block. scatter: [N], where among the queries
    each packed token is. For "flex" there is a mask instead, and these are empty or None.
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
    pairs = [(prompt, response) for prompt, group in zip(prompts, responses, strict=True) for response in group]
    behind, lengths = (np.array([len(pair[part]) for pair in pairs]) for part in (0, 1))
    if not all(behind) or not all(lengths):
        raise ValueError("a prompt or a response has no tokens")
    # a prompt is a row of its own: behind it, what responses add is of similar length
    fed = [*map(tuple, prompts), *((*prompt, *response[:-1]) for prompt, response in pairs)]
    order = sorted(range(len(fed)), key=fed.__getitem__)
    trie, row = _trie([fed[i] for i in order]), np.argsort(order)[len(prompts) :]
    sequence, t = _places(lengths)
    own = trie.place >= trie.shared[:, None]
    own &= trie.token >= 0
    fields = {
        "ids": trie.token[own][None],
        "positions": own.nonzero()[1][None],
        "predictor": trie.node[row[sequence], behind[sequence] + t - 1],
        "target": np.fromiter(chain.from_iterable(response for _, response in pairs), np.int64),
        "sequence": sequence,
        "lengths": lengths,
    }
    biases, mask = [], None
    if attention == "flex":
        n = fields["ids"].size
        padding = (0, max(2 * TILE - n, -n % TILE))
        fields |= {name: np.pad(fields[name], ((0, 0), padding)) for name in ("ids", "positions")}
        end = np.pad(_ends(trie), padding, constant_values=n + padding[1])  # padding alone looks at padding
        mask = sparse_mask(torch.from_numpy(end).to(device, torch.int32))
    else:
        biases, extra = _blocks(trie)
        fields |= extra
    moved = {name: torch.from_numpy(value).to(device) for name, value in fields.items()}
    return Packed(biases=tuple(torch.from_numpy(bias).to(device) for bias in biases), mask=mask, **moved)


class Trie(NamedTuple):
    """The S sequences of a minibatch, of at most W tokens, sorted so that each begins like the one before it; a prefix
    that is shared is stored once.

    token: [S, W], −1 beyond a sequence's end. place: [W], 0 … W−1. shared, own, start: [S], how many first tokens a
    sequence has in common with the one before, how many it adds, and the packed token where those begin. node: [S, W],
    the packed token of every token; without meaning beyond the end. Sequences that share tokens are neighbours, so a
    packed token's descendants, those that come after it in some sequence, are the ones directly behind it.
    """

    token: np.ndarray
    place: np.ndarray
    shared: np.ndarray
    own: np.ndarray
    start: np.ndarray
    node: np.ndarray


def _trie(sequences: list[tuple[int, ...]]) -> Trie:
    length = np.array(list(map(len, sequences)))
    place = np.arange(length.max())
    token = np.full((len(length), len(place)), -1)
    token[_places(length)] = np.fromiter(chain.from_iterable(sequences), np.int64)
    common = np.logical_and.accumulate((token[1:] == token[:-1]) & (token[1:] >= 0), axis=1)
    shared = np.append(0, common.sum(1))
    own = length - shared
    start = own.cumsum() - own
    # a shared place was added by the nearest earlier row that does not share it
    adds = np.where(shared[:, None] <= place, np.arange(len(length))[:, None], 0)
    by = np.maximum.accumulate(adds, axis=0)
    return Trie(token, place, shared, own, start, start[by] + place - shared[by])


def _places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The row of every token of rows of these lengths, and its place in the row; both [sum of lengths]."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return row, np.arange(len(row)) - (lengths.cumsum() - lengths)[row]


# --- flex: a sparse mask over the packed tokens ---------------------------------------------------------------------


def _ends(trie: Trie) -> np.ndarray:
    """[N], for each packed token the one behind its last descendant."""
    end = np.zeros(trie.own.sum(), np.int64)
    row, place = (trie.token >= 0).nonzero()
    end[trie.node[row, place]] = (trie.start + trie.own)[row]  # of all the rows that share a token, the last stays
    return end


def sparse_mask(end: Tensor) -> BlockMask:
    """Which packed tokens each may look at: itself and those that it descends from.

    end: [N] int32, for each token the one behind its last descendant; N is a multiple of TILE. Query q sees key k if
    k <= q < end[k]. Memory is [N] and [N/TILE, N/TILE], never [N, N].

    Which tiles FlexAttention computes follows from the largest and the smallest `end` of a tile's keys, without looking
    at pairs. All keys of a tile below the diagonal stand before all its queries. A key whose subtree reaches into the
    tile's queries reaches the first of them, because a subtree is one run of tokens; so some pair is seen if and only
    if the largest end lies behind the first query, and all are if the smallest lies behind the last. On the diagonal
    every query sees itself and none sees what follows it.
    """

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end[k])

    ends = end.view(-1, TILE)
    tile = torch.arange(len(ends), device=end.device)
    queries, below = tile[:, None] * TILE, tile < tile[:, None]  # the first query of each row of tiles
    every = below & (ends.amin(1) >= queries + TILE)
    some = below & (ends.amax(1) > queries) | (tile == tile[:, None])
    partial = [x[None, None] for x in _listed(some & ~every)]
    full = [x[None, None] for x in _listed(every)]
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=TILE, mask_mod=seen, seq_lengths=(len(end),) * 2)


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of a boolean table, how many entries are set, and its columns, set ones first; both int32."""
    return tiles.sum(1, dtype=torch.int32), tiles.int().argsort(dim=1, descending=True, stable=True).int()


# --- blocks: rows with dense biases ---------------------------------------------------------------------------------


def _blocks(trie: Trie) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """The biases of at most BLOCKS blocks, and {"queries", "keys", "scatter"}; see Packed."""
    rows = trie.own.argsort(kind="stable")
    parts = np.array_split(rows[trie.own[rows] > 0], BLOCKS)  # a sequence may add nothing
    blocks = [_block(trie.node[i], trie.shared[i], trie.start[i], trie.own[i]) for i in parts if len(i)]
    biases, queries, keys, real = zip(*blocks, strict=True)
    queries, keys, real = (np.concatenate([x.ravel() for x in xs]) for xs in (queries, keys, real))
    scatter = np.empty(trie.own.sum(), np.int64)
    scatter[queries[real]] = real.nonzero()[0]
    return list(biases), {"queries": queries, "keys": keys, "scatter": scatter}


def _block(node: np.ndarray, shared: np.ndarray, start: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, ...]:
    """(bias [B, 1, Q, K], queries [B, Q], keys [B, K], which queries are real [B, Q]) of such rows of a trie.

    The queries and keys that are not real are token 0.
    """
    q, k = np.arange(own.max()), np.arange(shared.max())
    real, seen = q < own[:, None], k < shared[:, None]
    queries = np.where(real, start[:, None] + q, 0)
    keys = np.concatenate([np.where(seen, node[:, : len(k)], 0), queries], axis=1)
    shape = (len(own), len(q))
    causal = np.tri(len(q), dtype=bool)
    looks = np.concatenate([np.broadcast_to(x, (*shape, x.shape[-1])) for x in (seen[:, None], causal)], axis=2)
    return np.where(looks, np.float32(0), np.float32(-np.inf))[:, None], queries, keys, real
