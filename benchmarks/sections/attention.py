"""Attention against float64, head by head: values and gradients of the compiled sparse kernel, values of the dense one.

On a CPU PyTorch refuses gradients of FlexAttention and it runs uncompiled: there only values are compared.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from pmd.model.attention import attend, masked
from pmd.model.packing import Packed, pack
from sections.common import Context, Row, bound, equal, error, fact, free, peak, times
from sections.work import seen_pairs

BOUNDS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""‖out − exact‖ / ‖exact‖: bf16 rounds to 2⁻⁹; fp32 without TF32 lands near 1e-6."""

GRAPHS = 8
"""After so many compilations of one function PyTorch gives up and runs it uncompiled."""


def rows(context: Context) -> Iterator[Row]:
    """All lengths in bf16 and in fp32, then the dense kernel, then how often anything was compiled."""
    heads, kv_heads, d = (12, 2, 128) if context.cuda else (4, 2, 16)
    graphs = counters["stats"]["unique_graphs"]
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in (1024, 4096, 16384, 128) if context.cuda else (256, 128):
            yield from sparse(context, tokens, (heads, kv_heads, d), dtype)
            free(context.device)
    for dtype in (torch.bfloat16, torch.float32):
        yield from dense(context, (heads, kv_heads, d), dtype)
    yield bound("graphs compiled", counters["stats"]["unique_graphs"] - graphs, GRAPHS)


def layout(tokens: int, device: str) -> tuple[list, list, Packed]:
    """Two prompts with three responses each, all of an eighth of the tokens."""
    generator = torch.Generator().manual_seed(tokens)

    def ids() -> list[int]:
        return torch.randint(3, 30_000, (tokens // 8,), generator=generator).tolist()

    prompts, responses = [ids(), ids()], [[ids() for _ in range(3)] for _ in range(2)]
    return prompts, responses, pack(prompts, responses, device, attention="flex")


def inputs(shape: tuple[int, int, int], tokens: int, dtype: torch.dtype, device: str, grad: bool) -> list[Tensor]:
    """Random queries [1, heads, N, d], keys and values [1, kv_heads, N, d]."""
    heads, kv_heads, d = shape
    made = [torch.randn(1, h, tokens, d, device=device).to(dtype) for h in (heads, kv_heads, kv_heads)]
    return [x.requires_grad_(grad) for x in made]


def exact(qkv: list[Tensor], seen: Tensor, scale: float, upstream: Tensor | None) -> list[Tensor]:
    """Attention in float64 and, given the gradient of its result, the gradients of queries, keys and values.

    Head after head, so that the pairs of one head alone are held.
    """
    query, key, value = (x.detach().double()[0] for x in qkv)
    out, grads = torch.empty_like(query), [torch.zeros_like(x) for x in (query, key, value)]
    share = len(query) // len(key)
    for h in range(len(query)):
        one = [x.clone().requires_grad_(upstream is not None) for x in (query[h], key[h // share], value[h // share])]
        weights = (scale * one[0] @ one[1].T).masked_fill(~seen, -torch.inf).softmax(-1)
        out[h] = (weights @ one[2]).detach()
        if upstream is not None:
            found = torch.autograd.grad(weights @ one[2], one, upstream[0, h].double())
            for whole, place, part in zip(grads, (h, h // share, h // share), found, strict=True):
                whole[place] += part
    return [out[None], *(g[None] for g in grads if upstream is not None)]


def sparse(context: Context, tokens: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Iterator[Row]:
    """FlexAttention on a packed layout: errors, the same gradients twice, memory, time."""
    torch.manual_seed(tokens)
    prompts, responses, packed = layout(tokens, context.device)
    n, grad, scale = packed.ids.shape[1], context.cuda, shape[2] ** -0.5
    name = f"{tokens:,} tokens, {str(dtype).removeprefix('torch.')}"
    qkv = inputs(shape, n, dtype, context.device, grad)
    upstream = torch.randn(1, shape[0], n, shape[2], device=context.device).to(dtype) if grad else None

    def once() -> list[Tensor]:
        out = masked(*qkv, packed.mask, scale)
        return [out.detach(), *(torch.autograd.grad(out, qkv, upstream) if grad else [])]

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = once()
        free(context.device)
        again = once()
    most = peak(context.device)
    place = torch.arange(n, device=context.device)
    seen = packed.mask.mask_mod(None, None, place[:, None], place)
    truth = exact(qkv, seen, scale, upstream)
    parts = ("values", *(("queries' gradient", "keys' gradient", "values' gradient") if grad else ()))
    for part, got, right in zip(parts, found, truth, strict=True):
        yield bound(f"{name}: {part}", error(got, right), BOUNDS[dtype])
    yield equal(f"{name}: the same twice", all(torch.equal(a, b) for a, b in zip(found, again, strict=True)))
    del truth, seen, found, again
    if not context.cuda:
        return
    unfused = [str(w.message).splitlines()[0] for w in said if "flex_attention" in str(w.message)]
    yield equal(f"{name}: fused{' (' + unfused[0] + ')' if unfused else ''}", not unfused)
    if tokens >= 16384:
        pairs = shape[0] * n * n * dtype.itemsize
        yield bound(f"{name}: peak memory, of the scores of all pairs", most / pairs, 0.5)
    flops = 12 * shape[0] * shape[2] * seen_pairs(prompts, responses)
    spent = statistics.median(times(context.device, once, 20))
    yield fact(f"{name}: forward and backward", 1e6 * spent, "µs")
    if dtype == torch.bfloat16:
        yield fact(f"{name}: time over that of its operations", spent * context.flops / flops)


def dense(context: Context, shape: tuple[int, int, int], dtype: torch.dtype) -> Iterator[Row]:
    """The kernel of prefills and decoding steps, behind more pads than a tile holds."""
    rows_, places, pads = 3, 768, (0, 150, 300)
    place = torch.arange(places, device=context.device)
    real = place >= torch.tensor(pads, device=context.device)[:, None]
    for queries in (1, 64):
        torch.manual_seed(queries)
        qkv = [
            torch.randn(rows_, h, n, shape[2], device=context.device).to(dtype)
            for h, n in ((shape[0], queries), (shape[1], places), (shape[1], places))
        ]
        causal = place <= place[places - queries :, None]
        seen = (real[:, None] & causal) | (place == place[places - queries :, None])
        bias = torch.zeros(seen.shape, dtype=dtype, device=context.device).masked_fill(~seen, -torch.inf)
        found = attend(*qkv, bias[:, None], shape[2] ** -0.5)
        truth = [exact([x[i : i + 1] for x in qkv], seen[i], shape[2] ** -0.5, None)[0] for i in range(rows_)]
        words = "a decoding step" if queries == 1 else f"{queries} queries of a prefill"
        yield bound(
            f"dense, {words}, {str(dtype).removeprefix('torch.')}", error(found, torch.cat(truth)), BOUNDS[dtype]
        )
