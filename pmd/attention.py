"""Attention over packed tokens: each response behind its prompt, plugged into transformers' attention interface, so any
model that uses the interface can be trained."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from pmd.packing import Block, Packed

PACKED = "pmd_packed"
"""The name under which transformers finds `packed_attention`."""


def packed_attention(module, query, key, value, attention_mask, layout: Packed | None = None, **kwargs):
    """Causal attention of each response behind its prompt; without a layout, attention under a given 4-D mask.

    query: [B, heads, Q, d]; key, value: [B, kv_heads, K, d]; returns ([B, Q, heads, d], None). B is 1 with a layout.
    """
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the rotary embedding made them fp32
    if layout is None:
        return attend(query, key, value, attention_mask, scale).transpose(1, 2), None
    if layout.mask is not None:
        return masked(query, key, value, layout.mask, scale).transpose(1, 2), None
    d, heads = query.shape[-1], query.shape[1]
    q, kv = (x[0].transpose(0, 1).flatten(1) for x in (query, torch.cat([key, value], dim=1)))  # [N, heads * d]

    def rows(index: Tensor, flat: Tensor) -> Tensor:  # -> [rows, heads, width, d]
        return F.embedding(index, flat).unflatten(2, (-1, d)).transpose(1, 2)  # a gather with a fast CPU backward

    def attended(block: Block) -> Tensor:  # -> [rows * width, heads * d]
        out = attend(rows(block.queries, q), *rows(block.keys, kv).chunk(2, dim=1), block.bias, scale)
        return out.transpose(1, 2).reshape(-1, heads * d)

    out = torch.cat([attended(block) for block in layout.blocks])
    return F.embedding(layout.scatter, out).view(1, -1, heads, d), None


AttentionInterface.register(PACKED, packed_attention)


@cache
def compiled():
    """FlexAttention as one kernel, compiled for any number of tokens.

    Shapes being dynamic, it is compiled anew only for another dtype, model shape or gradient mode, and for a pass of a
    single tile; without a compiler it would hold the scores of all pairs.
    """
    return torch.compile(flex_attention, dynamic=True)


def masked(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """Attention over the packed tokens themselves: query [1, heads, N, d], key, value [1, kv_heads, N, d].

    Prompts are shared by their responses without a gather, and tiles that nobody looks at are not computed. On a CPU it
    runs uncompiled and, says PyTorch, without gradients.
    """
    flex = compiled() if query.is_cuda else flex_attention
    return flex(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ + bias) v; query: [B, heads, Q, d], key, value: [B, kv_heads, K, d], bias: [B or 1, 1, Q, K].

    On a CPU the fused kernel is several times slower than plain products at short lengths; heads that share a key stand
    as its queries there, so that nothing is repeated.
    """
    bias = bias.to(query.dtype)
    if query.is_cuda:
        return fused(query, key, value, bias, scale)
    b, heads, q, d = query.shape
    kv = key.shape[1]
    scores = torch.bmm((query * scale).reshape(b * kv, -1, d), key.flatten(0, 1).transpose(1, 2))
    scores.view(b, kv, heads // kv, q, -1).add_(bias[:, :, None])
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(b, heads, q, d)


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`attend` by PyTorch's fused kernels; those that take a bias know no shared keys.

    A decoding step's heads stand as the queries of their key, so that the cache is read once; in a prefill keys are
    repeated, which is little beside the scores.
    """
    b, heads, q, d = query.shape
    kv = key.shape[1]
    if q == 1:
        folded = query.view(b, kv, heads // kv, d)
        return F.scaled_dot_product_attention(folded, key, value, bias, scale=scale).reshape(b, heads, 1, d)
    key, value = (x.repeat_interleave(heads // kv, dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
