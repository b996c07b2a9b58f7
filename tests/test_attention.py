"""The sparse attention of a GPU, run uncompiled on a CPU: equal to the dense blocks and to plain transformers."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_block_mask

from pmd.model.attention import ALIGNED, attend, compiled_flex, dense_mask, flex, fused
from pmd.model.forward import check_attention, checkpoint_activations, log_probs
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
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


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
@example([(1, [(0, TILE + 1)])])  # of the second tile of queries the first alone is a token
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
    assert n == 2 * TILE if len(tokens) <= TILE else n - len(tokens) < TILE
    assert got[: len(tokens), : len(tokens)].tolist() == expected
    assert not got[: len(tokens), len(tokens) :].any()  # nobody looks at the padding
    assert got.any(1).all()  # a row that sees nothing would be NaN
    theirs = create_block_mask(mask.mask_mod, None, None, n, n, device="cpu", BLOCK_SIZE=TILE)
    for name in ("kv", "full_kv", "q", "full_q"):
        for part in ("num_blocks", "indices"):
            assert torch.equal(getattr(mask, f"{name}_{part}"), getattr(theirs, f"{name}_{part}")), (name, part)


def test_a_sparse_mask_is_closed_form():
    """At 16,384 tokens no tensor is larger than the table of tiles and the work does not grow with their number; of two
    sequences the half that is not seen is not computed."""
    largest, calls = 0, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            calls.append(function)
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    n = 16_384
    with Watch():
        mask = sparse_mask((torch.arange(n, dtype=torch.int32) // (n // 2) + 1) * (n // 2))
    assert largest <= 2 * n == 2 * (n // TILE) ** 2
    assert len(calls) < 100
    assert mask.sparsity() > 70  # two causal triangles of half the side


def test_the_layout_of_flex_has_padding_that_nothing_reads(tiny):
    prompts, responses = LAYOUTS["two groups"]
    sparse, dense = (pack(prompts, responses, attention=way) for way in ("flex", "blocks"))
    n = dense.ids.shape[1]
    assert sparse.ids.shape == sparse.positions.shape == (1, 2 * TILE)
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
    traced = torch.compile(flex, backend=counter, dynamic=True, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for tokens in (300, 1000, 700, 4000, 2222):
        packed = pack([[3] * (tokens // 2), [4] * 9], [[[5] * (tokens // 3), [6] * 8], [[7] * 30]], attention="flex")
        n = packed.ids.shape[1]
        query, key, value = (torch.randn(1, h, n, 8, generator=generator) for h in (4, 2, 2))
        with torch.no_grad():
            got = traced(query, key, value, packed.mask, 0.3)
            bias = dense_mask(packed.mask.mask_mod(0, 0, torch.arange(n)[:, None], torch.arange(n)), torch.float32)
            torch.testing.assert_close(got, attend(query, key, value, bias[None, None], 0.3), atol=2e-6, rtol=0)
    assert counter.frame_count == 1


def test_the_unfused_form_of_flex_is_an_error():
    """Also where torch.compile quietly runs a function as it is, and past the limit of variants."""
    packed = pack(*LAYOUTS["two groups"], attention="flex")
    query, key, value = torch.randn(3, 1, 2, packed.ids.shape[1], 8)
    for run in (flex, torch.compiler.disable(flex)):
        with pytest.raises(RuntimeError, match=r"^FlexAttention was not compiled; it would hold the scores of all"):
            run(query, key, value, packed.mask, 0.3)
    torch._dynamo.reset()
    traced = torch.compile(flex, backend="eager", dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        traced(query, key, value, packed.mask, 0.3)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            traced(query.double(), key.double(), value.double(), packed.mask, 0.3)
    before = torch._dynamo.config.recompile_limit
    compiled_flex()
    assert torch._dynamo.config.recompile_limit == 64
    torch._dynamo.config.recompile_limit = before


def test_the_backward_pass_that_autograd_traces_for_flex_equals_dense_attention(gradients):
    """The joint graph that the compiler gets on CUDA, run as it is: gradients of all three, also of shared keys."""
    torch._dynamo.reset()
    traced = torch.compile(flex, backend="aot_eager", dynamic=True, fullgraph=True)
    packed = pack(*LAYOUTS["several tiles"], attention="flex")
    n, place = packed.ids.shape[1], torch.arange(packed.ids.shape[1])
    inputs = [
        torch.randn(1, h, n, 16, generator=torch.Generator().manual_seed(h), requires_grad=True) for h in (4, 2, 1)
    ]
    query, key, value = inputs[0], inputs[1], inputs[2].expand(-1, 2, -1, -1)
    bias = dense_mask(packed.mask.mask_mod(0, 0, place[:, None], place), torch.float32)[None, None]
    weight = torch.randn(1, 4, n, 16, generator=torch.Generator().manual_seed(9))
    found, expected = (
        torch.autograd.grad((out * weight).sum(), inputs)
        for out in (traced(query, key, value, packed.mask, 0.3), attend(query, key, value, bias, 0.3))
    )
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact, atol=2e-5, rtol=0)
        assert exact.abs().max() > 0.1


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles for a CPU by a C++ compiler")
def test_flex_compiled_by_inductor_equals_dense_attention():
    """The forward pass through the compiler that CUDA uses too; on a CPU it offers no backward pass."""
    torch._dynamo.reset()
    packed = pack(*LAYOUTS["several tiles"], attention="flex")
    n, place = packed.ids.shape[1], torch.arange(packed.ids.shape[1])
    query, key, value = (torch.randn(1, h, n, 16, generator=torch.Generator().manual_seed(h)) for h in (4, 2, 2))
    bias = dense_mask(packed.mask.mask_mod(0, 0, place[:, None], place), torch.float32)[None, None]
    with torch.no_grad():
        got = compiled_flex()(query, key, value, packed.mask, 0.3)
    torch.testing.assert_close(got, attend(query, key, value, bias, 0.3), atol=2e-6, rtol=0)


@pytest.mark.parametrize("width", [1, 8, 11, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rows_of_a_dense_mask_are_aligned(width, dtype):
    """Every stride but the last is a multiple of eight, which is what PyTorch asks before it copies a mask."""
    seen = torch.rand(2, 1, 5, width, generator=torch.Generator().manual_seed(0)) < 0.5
    mask = dense_mask(seen, dtype)
    assert mask.dtype == dtype
    assert torch.equal(mask, torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf))
    assert mask.stride(-1) == 1
    assert all(stride % ALIGNED == 0 for stride in mask.stride()[:-1])


@pytest.mark.parametrize("queries", [1, 5])
def test_fused_attention_equals_plain_products(queries):
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 6, queries, 8, generator=generator)
    key, value = torch.randn(2, 3, 2, 11, 8, generator=generator)
    seen = torch.rand(3, 1, queries, 11, generator=generator) < 0.6
    seen[..., 0] = True
    bias = dense_mask(seen, torch.float32)
    torch.testing.assert_close(
        fused(query, key, value, bias, 0.4), attend(query, key, value, bias, 0.4), atol=1e-6, rtol=0
    )


def test_the_example_in_the_words_of_the_module():
    a, b, c, w, x, y, z, end = range(8)
    packed = pack([[a, b], [c]], [[[x, y, end], [x, z, end]], [[w, end]]])
    assert packed.ids.tolist() == [[a, b, x, y, z, c, w]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 3, 0, 1]]
    assert packed.target.tolist() == [x, y, end, x, z, end, w, end]
    assert packed.predictor.tolist() == [1, 2, 3, 1, 2, 4, 5, 6]
    queries = packed.queries.split([bias[:, 0, :, 0].numel() for bias in packed.biases])
    keys = packed.keys.split([bias[:, 0, 0].numel() for bias in packed.biases])
    looks = [(bias[:, 0] == 0).int().tolist() for bias in packed.biases]
    assert looks == [
        [[[1, 1, 1, 1]], [[0, 0, 0, 1]]],
        [[[1, 1, 0], [1, 1, 1]], [[0, 1, 0], [0, 1, 1]]],
        [[[1, 1, 1, 0], [1, 1, 1, 1]]],
    ]
    assert [x.tolist() for x in queries] == [[4, 5], [6, 0, 0, 1], [2, 3]]  # z, c | w and padding, a b | x y
    assert [x.tolist() for x in keys] == [[0, 1, 2, 4, 0, 0, 0, 5], [5, 6, 0, 0, 0, 1], [0, 1, 2, 3]]


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match=r"^attention: got 'dense', must be blocks or flex$"):
        pack([[3]], [[[1]]], attention="dense")


def test_a_trial_whose_hidden_states_are_not_numbers_is_no_proof(tiny):
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"packed tokens get others, by nan of their norm"):
        check_attention(model)
