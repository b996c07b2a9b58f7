"""Attention over packed tokens, where each response sees its prompt and its own earlier tokens.

It is registered in transformers' attention interface, so every model that uses the interface can be trained.

On CUDA there are two kernels. Packed tokens (training) go through FlexAttention with a sparse mask; prefills and
decoding steps have a dense mask and go through PyTorch's memory-efficient kernel. PyTorch may silently replace either
by a slow version that holds the scores of all pairs of tokens. For FlexAttention this is made an error; for the dense
kernel it is allowed, because some models have heads that no fused kernel supports.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from pmd.model.packing import Packed

PACKED = "pmd_packed"
"""The name under which transformers finds `packed_attention`."""


def packed_attention(module, query, key, value, attention_mask, layout: Packed | None = None, **kwargs):
    """Causal attention of each response behind its prompt; without a layout, attention under a given 4-D mask.

    query: [B, heads, Q, d]; key, value: [B, kv_heads, K, d]; returns ([B, Q, heads, d], None). B is 1 with a layout.
    """
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the rotary embedding made them fp32
    if layout is None and attention_mask is None:
        raise ValueError(f"{type(module).__name__} is not handed the layout of packed tokens: it is not supported")
    if layout is None:
        return attend(query, key, value, attention_mask, scale).transpose(1, 2), None
    if layout.mask is not None:
        return masked(query, key, value, layout.mask, scale).transpose(1, 2), None
    return blockwise(query, key, value, layout, scale), None


def blockwise(query: Tensor, key: Tensor, value: Tensor, layout: Packed, scale: float) -> Tensor:
    """Attention in the layout's blocks: query [1, heads, N, d], key, value [1, kv_heads, N, d] -> [1, N, heads, d]."""
    heads, d = query.shape[1], query.shape[3]
    q, kv = (x[0].transpose(0, 1).flatten(1) for x in (query * scale, torch.cat([key, value], dim=1)))  # [N, heads * d]
    shapes = [bias.shape for bias in layout.biases]
    # one gather for all blocks, by F.embedding because its backward pass is fast on a CPU
    queries = F.embedding(layout.queries, q).split([rows * width for rows, _, width, _ in shapes])
    keys = F.embedding(layout.keys, kv).split([rows * width for rows, _, _, width in shapes])

    def attended(bias: Tensor, q: Tensor, kv: Tensor) -> Tensor:  # -> [rows * width, heads * d]
        q, kv = (x.view(len(bias), -1, x.shape[1] // d, d).transpose(1, 2) for x in (q, kv))
        return attend(q, *kv.chunk(2, dim=1), bias).transpose(1, 2).reshape(-1, heads * d)

    out = torch.cat([attended(*block) for block in zip(layout.biases, queries, keys, strict=True)])
    return F.embedding(layout.scatter, out).view(1, -1, heads, d)


AttentionInterface.register(PACKED, packed_attention)


RECOMPILATIONS = 64
"""How many variants of FlexAttention a process may compile. They differ in dtype, in model shape, in whether gradients
are needed and in whether a pass is a single tile. PyTorch's own limit is 8, too few for several models."""


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """FlexAttention, to be compiled; a RuntimeError if run as it is, which would hold the scores of all pairs."""
    if not torch.compiler.is_compiling():
        raise RuntimeError("FlexAttention was not compiled; it would hold the scores of all pairs of tokens")
    return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


@cache
def compiled_flex():
    """`flex` compiled for any number of tokens, by the default backend of torch.compile.

    A variant that cannot be compiled, or one too many, is an error (fullgraph). Its kernels for the backward pass use
    no atomic additions, so repeated gradients are equal to the bit.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILATIONS)
    return torch.compile(flex, dynamic=True, fullgraph=True)


def masked(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """Attention over the packed tokens themselves: query [1, heads, N, d], key, value [1, kv_heads, N, d].

    Prompts are shared by their responses without a gather, and tiles that nobody looks at are not computed. On a CPU,
    where only tests come here, it runs uncompiled and PyTorch offers no gradients.
    """
    if query.is_cuda:
        return compiled_flex()(query, key, value, mask, scale)
    return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale q kᵀ + bias) v; query: [B, heads, Q, d], key, value: [B, kv_heads, K, d], bias: [B or 1, 1, Q, K].

    On a CPU the fused kernel is several times slower at short lengths than plain products, which are used there. The
    query heads that share a key head are computed as further queries of it, so that no key is copied.
    """
    bias = bias.to(query.dtype)
    if query.is_cuda:
        return fused(query, key, value, bias, scale)
    b, heads, q, d = query.shape
    kv = key.shape[1]
    query = query if scale == 1 else query * scale
    folded = query.unflatten(1, (kv, -1)).transpose(2, 3).reshape(b * kv, -1, d)  # a view if kv is 1
    scores = torch.bmm(folded, key.flatten(0, 1).transpose(1, 2)).view(b, kv, q, heads // kv, -1)
    bias = bias[:, :, :, None]
    scores = scores + bias if scores.requires_grad else scores.add_(bias)  # in place, a backward pass would copy more
    out = torch.bmm(scores.softmax(-1).view(b * kv, -1, scores.shape[-1]), value.flatten(0, 1)).view(b, kv, q, -1, d)
    return out.transpose(2, 3).flatten(1, 2)


DENSE = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The kernels that may compute attention under a dense mask. Left out is cuDNN, which PyTorch would prefer on Hopper:
it makes a plan for every new shape, and every prompt length is one. The flash kernels take no mask."""

ALIGNED = 8
"""The rows of a dense mask are padded in memory to a multiple of so many numbers: the memory-efficient kernel reads
only such masks, and PyTorch would copy any other in every layer."""


def dense_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores: 0 where `seen` [..., Q, K] is true, −inf elsewhere, its rows aligned in memory."""
    width = seen.shape[-1]
    room = torch.zeros(*seen.shape[:-1], -(-width // ALIGNED) * ALIGNED, dtype=dtype, device=seen.device)
    return room[..., :width].masked_fill_(~seen, float("-inf"))


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`attend` by PyTorch's fused kernels, which take a mask only if every head has a key of its own.

    In a decoding step (Q = 1) the query heads that share a key head are passed as queries of it, so that the cache is
    read once. In a prefill the keys are copied, which takes little memory beside the scores.
    """
    b, heads, q, d = query.shape
    kv = key.shape[1]
    with sdpa_kernel(DENSE):
        if q == 1:
            folded = query.view(b, kv, heads // kv, d)
            return F.scaled_dot_product_attention(folded, key, value, bias, scale=scale).reshape(b, heads, 1, d)
        key, value = (x.repeat_interleave(heads // kv, dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)
