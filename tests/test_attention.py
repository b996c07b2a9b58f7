"""The sparse attention of a GPU, run uncompiled on a CPU: equal to the dense blocks and to plain transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import create_block_mask

from pmd.model.attention import attend, fused
from pmd.model.forward import checkpoint_activations, log_probs
from pmd.model.packing import TILE, pack, sparse_mask

LAYOUTS = {
    "two groups": ([[3, 4, 15], [5, 13, 6, 7, 15]], [[[3, 1], [7], [4, 4, 4, 1]], [[9, 8, 1], [1], [5, 6, 15, 7, 1]]]),
    "one token each": ([[3], [4, 15]], [[[7], [1]], [[9]]]),
    "one group": ([[5, 6, 7, 15]], [[[3, 4, 5, 6, 7, 8, 1], [2, 1]]]),
    "several tiles": ([[3, 4] * 20, [5, 15] * 45], [[[7, 8, 9] * 40, [6, 1]], [[4] * 130, [9, 3] * 30, [1]]]),
}


@pytest.fixture
def gradients(monkeypatch):
    """PyTorch refuses gradients of FlexAttention on a CPU although its uncompiled form has them."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)


def plain(model, prompts, responses):
    """Log-probabilities by one unpadded forward pass a response, with transformers' own attention."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    found = []
    for prompt, group in zip(prompts, responses, strict=True):
        for response in group:
            logs = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(logs.gather(1, torch.tensor(response)[:, None])[:, 0])
    return model, torch.cat(found)


def packed_log_probs(model, prompts, responses, attention):
    model = copy.deepcopy(model)
    return model, log_probs(model, pack(prompts, responses, attention=attention))[0]


def graded(model, log_p):
    """The gradients of a weighted sum of the log-probabilities, by parameter."""
    (log_p * torch.linspace(-1, 1, len(log_p))).sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flex_blocks_and_plain_agree_in_value_and_gradient(tiny, layout, gradients):
    prompts, responses = LAYOUTS[layout]
    model, exact = plain(tiny[0], prompts, responses)
    expected = graded(model, exact)
    for attention in ("flex", "blocks"):
        model, log_p = packed_log_probs(tiny[0], prompts, responses, attention)
        torch.testing.assert_close(log_p, exact, atol=2e-6, rtol=0)
        for name, gradient in graded(model, log_p).items():
            close = 1e-5 * expected[name].abs().max().item() + 1e-7  # a key's bias has no gradient but rounding
            torch.testing.assert_close(gradient, expected[name], atol=close, rtol=0, msg=name)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 90), min_size=1, max_size=4)), min_size=1, max_size=4
    )
)
def test_flex_equals_blocks_at_any_lengths(tiny, shape):
    generator = torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(3, 16, (n,), generator=generator).tolist()

    prompts, responses = [ids(p) for p, _ in shape], [[ids(r) for r in group] for _, group in shape]
    with torch.no_grad():
        a, b = (log_probs(tiny[0], pack(prompts, responses, attention=way)) for way in ("flex", "blocks"))
    torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 90), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=3)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_the_mask_is_the_definition_token_by_token(shape):
    """A packed token sees those whose sequence its own begins with, and no other; tiles against PyTorch's own."""
    prompts = [[7] * p for p, _ in shape]
    responses = [[[9] * same + [5] * other for same, other in group] for _, group in shape]
    packed = pack(prompts, responses, attention="flex")
    mask, ids, places = packed.mask, packed.ids[0].tolist(), packed.positions[0].tolist()
    fed = {(*p, *r[:-1]) for p, group in zip(prompts, responses, strict=True) for r in group}
    tokens = sorted({x[: i + 1] for x in fed for i in range(len(x))})
    assert [(x[-1], len(x) - 1) for x in tokens] == list(zip(ids, places, strict=True))[: len(tokens)]
    expected = [[q[: len(k)] == k for k in tokens] for q in tokens]
    n = mask.seq_lengths[0]
    place = torch.arange(n)
    got = mask.mask_mod(None, None, place[:, None], place)
    assert n % TILE == 0
    assert n - len(tokens) < TILE
    assert got[: len(tokens), : len(tokens)].tolist() == expected
    assert not got[: len(tokens), len(tokens) :].any()  # nobody looks at the padding
    assert got.any(1).all()  # a row that sees nothing would be NaN
    theirs = create_block_mask(mask.mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=TILE)
    for name in ("kv", "full_kv", "q", "full_q"):
        for part in ("num_blocks", "indices"):
            assert torch.equal(getattr(mask, f"{name}_{part}"), getattr(theirs, f"{name}_{part}")), (name, part)


def test_a_sparse_mask_never_holds_all_pairs():
    """At 16,384 tokens no tensor has more than TILE · N entries; of two sequences the unseen half is not computed."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    n = 16_384
    with Watch():
        mask = sparse_mask((torch.arange(n, dtype=torch.int32) // (n // 2) + 1) * (n // 2))
    assert TILE * n == largest
    assert mask.sparsity() > 70  # two causal triangles of half the side


def test_the_layout_of_flex_has_padding_that_nothing_reads(tiny):
    prompts, responses = LAYOUTS["two groups"]
    sparse, dense = (pack(prompts, responses, attention=way) for way in ("flex", "blocks"))
    n = dense.ids.shape[1]
    assert sparse.ids.shape == sparse.positions.shape == (1, TILE)
    assert torch.equal(sparse.ids[:, :n], dense.ids)
    for name in ("predictor", "target", "sequence", "lengths"):
        assert torch.equal(getattr(sparse, name), getattr(dense, name))
    assert (sparse.biases, sparse.queries, sparse.keys, sparse.scatter) == ((), None, None, None)
    assert dense.mask is None
    with torch.no_grad():
        before = log_probs(tiny[0], sparse)[0]
        sparse.ids[0, n:] = 11
        assert torch.equal(log_probs(tiny[0], sparse)[0], before)


def test_recomputed_activations_and_bfloat16_work_under_flex(tiny, gradients):
    prompts, responses = LAYOUTS["several tiles"]
    model, log_p = packed_log_probs(tiny[0], prompts, responses, "flex")
    exact = graded(model, log_p)
    model = copy.deepcopy(tiny[0])
    checkpoint_activations(model)
    again = graded(model, log_probs(model, pack(prompts, responses, attention="flex"))[0])
    assert all(torch.equal(again[name], exact[name]) for name in exact)
    model.zero_grad()
    model.compute_dtype = torch.bfloat16
    half, _ = log_probs(model, pack(prompts, responses, attention="flex"))
    assert 1e-5 < (half - log_p).abs().max() < 0.1
    flat = [torch.cat([g.flatten() for g in grads.values()]) for grads in (graded(model, half), exact)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.999


def test_flex_is_compiled_once_for_all_lengths():
    """Layouts of any number of tokens and groups meet one graph."""
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(flex.flex_attention, backend=counter, dynamic=True, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for tokens in (300, 1000, 700, 4000, 2222):
        packed = pack([[3] * (tokens // 2), [4] * 9], [[[5] * (tokens // 3), [6] * 8], [[7] * 30]], attention="flex")
        n = packed.ids.shape[1]
        query, key, value = (torch.randn(1, h, n, 8, generator=generator) for h in (4, 2, 2))
        with torch.no_grad():
            got = compiled(query, key, value, block_mask=packed.mask, scale=0.3, enable_gqa=True)
            bias = torch.zeros(n, n).masked_fill(
                ~packed.mask.mask_mod(0, 0, torch.arange(n)[:, None], torch.arange(n)), -torch.inf
            )
            torch.testing.assert_close(got, attend(query, key, value, bias[None, None], 0.3), atol=2e-6, rtol=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize("queries", [1, 5])
def test_fused_attention_equals_plain_products(queries):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 6, queries, 8, generator=generator)
    key, value = torch.randn(2, 3, 2, 11, 8, generator=generator)
    seen = torch.rand(3, 1, queries, 11, generator=generator) < 0.6
    seen[..., 0] = True
    bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(
        fused(query, key, value, bias, 0.4), attend(query, key, value, bias, 0.4), atol=1e-6, rtol=0
    )


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"^attention: got 'dense', must be blocks or flex$"):
        pack([[3]], [[[1]]], attention="dense")
