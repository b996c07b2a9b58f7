"""Sampling: exact against a plain loop, independent of batching, and in the right distribution."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, LlamaConfig

from pmd.model import attention
from pmd.model.attention import PACKED
from pmd.model.loading import load_policy
from pmd.sampling import static_decoder
from pmd.sampling.choice import choose, nucleus
from pmd.sampling.engine import Sampling
from pmd.sampling.torch_engine import KVCache, TorchEngine, sampler
from tests.conftest import OTHER_ARCHITECTURES

PROMPTS = [[3, 4, 15], [5, 13, 6, 7, 15], [9, 15]]


def plain_sample(model, prompt: list[int], uniform: torch.Tensor, sampling: Sampling, eos: int) -> list[int]:
    """One response, re-reading everything for every token."""
    model.set_attn_implementation("eager")
    tokens: list[int] = []
    for u in uniform:
        logits = model(torch.tensor([prompt + tokens])).logits[0, -1:]
        tokens.append(choose(logits, u[None], sampling).item())
        if tokens[-1] == eos:
            break
    model.set_attn_implementation(PACKED)
    return tokens


@pytest.mark.parametrize("sampling", [Sampling(12), Sampling(12, 0.7, 0.8), Sampling(12, 0.7, 0.4)])
def test_engine_equals_plain_decoding(tiny, sampling):
    model, tokenizer = tiny
    got = TorchEngine(model, tokenizer.eos_token_id).sample(PROMPTS, 5, sampling, seed=4)
    uniform = torch.rand(len(PROMPTS), 5, 12, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for g, prompt in enumerate(PROMPTS):
            for i in range(5):
                assert got[g][i] == plain_sample(model, prompt, uniform[g, i], sampling, tokenizer.eos_token_id)
    assert len({len(r) for group in got for r in group}) > 2  # some ended early, so rows were compacted


def test_responses_are_computed_once_while_they_are_the_same(tiny, monkeypatch):
    model, tokenizer = tiny
    rows = []
    forward = type(model.base_model).forward

    def counted(self, input_ids, **kwargs):
        rows.append(len(input_ids))
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model.base_model), "forward", counted)
    engine = TorchEngine(model, tokenizer.eos_token_id)
    engine.sample(PROMPTS, 40, Sampling(10, 1.0, 1e-6), 1)  # the likeliest token alone: one response a prompt
    assert rows[1:]
    assert max(rows) <= len(PROMPTS)
    rows.clear()
    got = engine.sample(PROMPTS, 40, Sampling(10, 1.0, 0.5), 1)
    distinct = [len({(g, *r[:t]) for g, group in enumerate(got) for r in group if len(r) > t}) for t in range(10)]
    assert distinct[0] == 3 < distinct[1] < 120  # the prompts, then less than the responses
    assert len(rows) == sum(d > 0 for d in distinct)
    for computed, needed in zip(rows, distinct, strict=False):
        assert needed <= computed <= needed / 0.8


@settings(deadline=None)
@given(st.data())
def test_a_fork_gives_every_continuation_the_past_of_its_parent(data):
    """Rows hold their own past as numbers; whatever is forked, kept or added, each continuation finds its parent's."""
    count, most = data.draw(st.integers(1, 4)), 12
    prefill = DynamicCache()
    prefill.update(torch.arange(count).view(-1, 1, 1, 1).float(), torch.zeros(count, 1, 1, 1), 0)
    cache, past = KVCache(prefill, most, 9), [[float(i)] for i in range(count)]
    place = list(range(count))
    for step in range(1, 8):
        chosen = sorted(
            data.draw(st.lists(st.sampled_from(range(len(past))), min_size=1, max_size=most)), key=place.__getitem__
        )
        before = cache.rows
        origin, places = cache.fork(torch.tensor([place[i] for i in chosen]))
        assert cache.rows == len(origin) <= most
        assert origin.max() < before
        past, place = [[*past[i], 100.0 * step + j] for j, i in enumerate(chosen)], places.tolist()
        new = torch.full((cache.rows, 1, 1, 1), -1.0)
        new[places, 0, 0, 0] = torch.tensor([x[-1] for x in past])
        keys, _ = cache.update(new, new, 0)
        assert keys[places, 0, :, 0].tolist() == past


def test_batching_does_not_change_a_response(tiny):
    model, tokenizer = tiny
    whole = TorchEngine(model, tokenizer.eos_token_id).sample(PROMPTS, 4, Sampling(10), 1)
    parts = TorchEngine(model, tokenizer.eos_token_id, batch=4).sample(PROMPTS, 4, Sampling(10), 1)
    assert whole == parts
    assert whole != TorchEngine(model, tokenizer.eos_token_id).sample(PROMPTS, 4, Sampling(10), 2)


def test_the_engine_sees_new_weights_at_once(tiny):
    model, tokenizer = tiny
    engine = TorchEngine(model, tokenizer.eos_token_id)
    before = engine.sample(PROMPTS, 4, Sampling(10), 1)
    head = model.get_output_embeddings().weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.copy_(kept.flip(0))
    assert engine.sample(PROMPTS, 4, Sampling(10), 1) != before
    with torch.no_grad():
        head.copy_(kept)
    assert engine.sample(PROMPTS, 4, Sampling(10), 1) == before


def test_inverse_cdf_frequencies():
    """400,000 evenly spread uniforms give each token its probability to 1e-5."""
    logits = torch.tensor([[0.5, -1.0, 2.0, float("-inf"), 0.0]])
    uniform = (torch.arange(400_000) + 0.5) / 400_000
    for sampling in (Sampling(1), Sampling(1, 0.5)):
        got = choose(logits.expand(400_000, -1), uniform, sampling)
        expected = (logits[0] / sampling.temperature).softmax(-1)
        np.testing.assert_allclose(torch.bincount(got, minlength=5) / 400_000, expected, atol=1e-5)


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    uniform = (torch.arange(1000) + 0.5) / 1000
    got = torch.bincount(choose(logits.expand(1000, -1), uniform, Sampling(1, 1.0, 0.6)), minlength=4) / 1000
    np.testing.assert_allclose(got, [4 / 7, 3 / 7, 0, 0], atol=1.1e-3)
    exact = torch.tensor([[0.5, 0.25, 0.25]])  # the first reaches a half, the second of them three quarters
    assert nucleus(exact, 0.5, 3).tolist() == [[0.5, 0, 0]]
    assert nucleus(exact, 0.75, 3).tolist() == [[0.5, 0.25, 0]]


@given(st.data())
def test_sorting_the_likeliest_alone_keeps_the_same_tokens(data):
    """Also of equal probabilities, which are many here, and where the likeliest are not enough."""
    rows, size, most = (data.draw(st.integers(1, n)) for n in (4, 12, 12))
    weights = st.lists(st.integers(0, 5), min_size=size, max_size=size).filter(any)
    p = torch.tensor(data.draw(st.lists(weights, min_size=rows, max_size=rows))).double()
    p /= p.sum(-1, keepdim=True)
    top_p = data.draw(st.floats(0.01, 1))
    assert torch.equal(nucleus(p, top_p, most), nucleus(p, top_p, size))


def test_likeliest_tokens_spare_the_sort_of_all(monkeypatch):
    sizes = []
    sort = torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "sort", lambda self, *a, **k: sizes.append(self.shape[-1]) or sort(self, *a, **k))
    p = torch.tensor([[4.0, 3.0, 2.0, 1.0, *[0.1] * 50]]).softmax(-1)
    nucleus(p, 0.6, 8)
    assert sizes == [8, 8]
    nucleus(p, 0.99, 8)
    assert sizes == [8, 8, 8, 8, 54]


class Cumsums(TorchDispatchMode):
    """Notes how many rows are added up at a time."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.cumsum.default:
            self.rows.append(len(args[0]))
        return function(*args, **(kwargs or {}))


class Cuda(torch.Tensor):
    """Says that it is on a GPU, as do all tensors that are made of it."""

    is_cuda = True


@pytest.mark.parametrize(("rows", "added"), [(1, 2), (4, 4)])
def test_a_single_row_is_never_added_up_alone_on_cuda(rows, added):
    """There PyTorch lists cumsum among what differs from call to call: it takes another kernel for a single row."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 3000, generator=generator)
    for sampling in (Sampling(1), Sampling(1, 1.0, 0.9), Sampling(1, 0.01, 0.5)):
        for row in (None, torch.arange(rows).repeat(2)):
            uniform = torch.rand(rows if row is None else 2 * rows, generator=generator)
            with Cumsums() as seen:
                found = choose(logits.as_subclass(Cuda), uniform, sampling, row)
            assert found.tolist() == choose(logits, uniform, sampling, row).tolist()
            assert set(seen.rows) == {added}


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=8),
    st.floats(0, 1, exclude_max=True, width=32),
    st.floats(0.01, 1),
)
def test_an_impossible_token_is_never_chosen(logits, u, top_p):
    token = choose(torch.tensor([[*logits, float("-inf")]]), torch.tensor([u]), Sampling(1, 1.0, top_p)).item()
    p = torch.tensor(logits).softmax(-1)
    assert token < len(logits)
    assert p[p > p[token]].sum() < top_p + 1e-5


def test_a_number_that_was_rounded_to_one_chooses_the_last_possible_token():
    assert choose(torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([1.0]), Sampling(1)).tolist() == [1]


@pytest.mark.parametrize("static", [False, True])
def test_a_prompt_and_its_response_stay_within_the_models_context(tiny, static):
    most, longest = tiny[0].config.max_position_embeddings, max(map(len, PROMPTS))
    engine = TorchEngine(tiny[0], 1, static=static)
    assert len(engine.sample(PROMPTS, 1, Sampling(most - longest), 0)) == len(PROMPTS)
    with pytest.raises(ValueError, match=rf"^a prompt of {longest} tokens and .* exceed the model's {most}$"):
        engine.sample(PROMPTS, 1, Sampling(most - longest + 1), 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5)],
)
def test_bad_sampling_is_refused(key, value):
    with pytest.raises(ValueError, match=key):
        Sampling(**({"max_tokens": 5} | {key: value}))


def test_a_share_of_a_batch_is_sampled_as_in_the_whole(tiny):
    engine, prompts = TorchEngine(tiny[0], 1), [[3, 15], [4, 15], [5, 15], [6, 15], [7, 15]]
    whole = engine.sample(prompts, 3, Sampling(6), 11)
    assert engine.sample(prompts[:2], 3, Sampling(6), 11) + engine.sample(prompts[2:], 3, Sampling(6), 11, 2) == whole
    assert engine.sample(prompts[2:], 3, Sampling(6), 11) != whole[2:]


@pytest.mark.parametrize("static", [False, True])
def test_temperature_zero_takes_the_likeliest_token_every_time(tiny, static):
    """The same as a top-p so small that one token is left, whatever the seed; and the same for all n."""
    model, generator = copy.deepcopy(tiny[0]), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # else it repeats the prompt's last token
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    greedy = TorchEngine(model, 1, static=static).sample(PROMPTS, 3, Sampling(20, 0), 5)
    assert greedy == TorchEngine(model, 1).sample(PROMPTS, 3, Sampling(20, 1.0, 1e-6), 6)
    assert all(group[0] == group[1] == group[2] for group in greedy)
    assert len({tuple(group[0]) for group in greedy}) == len(PROMPTS)
    assert choose(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 0.0]]), torch.rand(2), Sampling(1, 0)).tolist() == [1, 0]
    rows = torch.tensor([1, 0, 1])
    assert choose(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), torch.rand(3), Sampling(1, 0), rows).tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    ("dtype", "why"), [("float16", "a dtype of bfloat16 or float32"), ("float32", "its weights are")]
)
def test_logits_that_are_no_numbers_are_an_error(tiny, dtype, why, static, temperature):
    """Every weight is finite: the numbers overflow on the way, at the second prompt alone."""
    model = copy.deepcopy(tiny[0]).to(getattr(torch, dtype))
    with torch.no_grad():
        model.get_input_embeddings().weight[13] = torch.finfo(model.dtype).max  # its square is infinite
        model.base_model.norm.weight.fill_(float("inf") if dtype == "float32" else 1)
        model.base_model.layers[0].mlp.down_proj.weight.fill_(6e4)
    engine = TorchEngine(model, 1, static=static)
    with pytest.raises(FloatingPointError, match=rf"^the model's logits are NaN or infinite in {dtype}: {why}"):
        engine.sample(PROMPTS, 2, Sampling(6, temperature), 0)


def test_logits_that_are_no_numbers_choose_no_token():
    logits = torch.tensor([[0.0, float("nan")], [0.0, float("inf")], [0.0, 1.0]])
    for temperature in (0.0, 1.0):
        assert choose(logits, torch.full((3,), 0.9), Sampling(1, temperature)).tolist() == [2, 2, 1]


# --- decoding in static shapes, as on a GPU ---------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Notes every operation of a step, and refuses those that would wait for the device, or copy to it from Python."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "_unique2", "lift_fresh")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.WAITING, name
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out


def recorded(run):
    """`run` as a CUDA graph would replay it: the same operations on the same memory, and no line of Python."""
    operations = Operations()
    with operations:
        run()

    def replay():
        for function, args, kwargs, out in operations.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)

    return replay


@pytest.fixture
def recordings(monkeypatch):
    """Steps are recorded and replayed as on CUDA; the list grows by one a recording."""
    made = []

    def record(run):
        made.append(recorded(run))
        return made[-1]

    monkeypatch.setattr(static_decoder, "recorder", lambda device: record)
    return made


@pytest.mark.parametrize("kind", OTHER_ARCHITECTURES)
def test_other_architectures_decode_in_static_shapes(folder_of, kind, recordings):
    model, _ = load_policy(folder_of(kind))
    expected = TorchEngine(model, 1).sample(PROMPTS, 4, Sampling(40), 3)
    assert TorchEngine(model, 1, static=True).sample(PROMPTS, 4, Sampling(40), 3) == expected
    uniform = torch.rand(len(PROMPTS), 4, 40, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert expected[1][2] == plain_sample(model, PROMPTS[1], uniform[1, 2], Sampling(40), 1)


@pytest.mark.parametrize("run", [lambda: torch.ones(1).item(), lambda: torch.tensor([1.0])])
def test_a_step_that_waits_for_the_device_is_noticed(run):
    with pytest.raises(AssertionError, match=r"_local_scalar_dense|item|lift_fresh"):
        recorded(run)


LONG = Sampling(150)


@pytest.mark.parametrize("sampling", [LONG, Sampling(40, 0.7, 0.8), Sampling(1)])
@pytest.mark.parametrize("batch", [4096, 7])
def test_static_decoding_samples_the_same_tokens(tiny, sampling, batch, recordings):
    """By replayed steps, over several buckets of rows and lengths, also with batches that cut through a group."""
    model, tokenizer = tiny
    prompts = [[3, 4] * 50, *PROMPTS]
    engine = TorchEngine(model, tokenizer.eos_token_id, batch, static=True)
    expected = TorchEngine(model, tokenizer.eos_token_id).sample(prompts, 5, sampling, seed=4)
    assert engine.sample(prompts, 5, sampling, seed=4) == expected
    steps = engine._decoder.steps
    assert len(recordings) == len(steps)
    if sampling is LONG:
        most = 20 if batch == 4096 else 7
        assert engine._decoder.most == most
        assert {end for _, end in steps} == {128, 256}  # 100 + 150 places at most
        assert {rows for rows, _ in steps} <= ({20, 10, 5, 2, 1} if most == 20 else {7, 3, 1})
        assert len({rows for rows, _ in steps}) > 1  # sequences ended, so smaller buckets went on


def test_static_steps_are_recorded_once_an_engine_and_see_new_weights(tiny, recordings):
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    plain, static = (TorchEngine(model, tokenizer.eos_token_id, static=way) for way in (False, True))
    for _ in range(2):
        assert static.sample(PROMPTS, 4, LONG, 1) == plain.sample(PROMPTS, 4, LONG, 1)
    known, before = len(recordings), plain.sample(PROMPTS, 4, LONG, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = plain.sample(PROMPTS, 4, LONG, 1)
    assert after != before
    assert static.sample(PROMPTS, 4, LONG, 1) == after
    assert static._decoder.steps.keys() >= {(12, 128)}
    assert len(recordings) == len(static._decoder.steps) >= known
    shorter = static._decoder
    assert static.sample(PROMPTS[:1], 2, Sampling(5), 1) == plain.sample(PROMPTS[:1], 2, Sampling(5), 1)
    assert static._decoder is shorter  # a smaller call finds room in the same memory
    assert static.sample(PROMPTS, 6, Sampling(200), 1) == plain.sample(PROMPTS, 6, Sampling(200), 1)
    assert static._decoder is not shorter


def test_the_shapes_of_a_static_call_do_not_depend_on_calls_before_it(tiny, monkeypatch):
    """A run that goes on rolls out first, one that never stopped has evaluated: products round by their shapes."""
    shapes, real = [], static_decoder.step
    monkeypatch.setattr(static_decoder, "step", lambda *args: shapes.append(args[3:]) or real(*args))
    engines = [TorchEngine(tiny[0], 1, static=True) for _ in range(2)]
    engines[0].sample(PROMPTS, 6, Sampling(200), 1)
    found = []
    for engine in engines:
        shapes.clear()
        found.append((engine.sample(PROMPTS, 4, LONG, 2), list(shapes)))
    assert [engine._decoder.most for engine in engines] == [18, 12]
    assert found[0] == found[1]
    assert found[0][1][0] == (12, 128)


def test_the_logits_of_static_steps_are_those_of_a_plain_pass(tiny, recordings):
    """Teacher-forced, to 1e-5, across a change of length and a compaction that reorders the rows."""
    model, tokenizer = tiny
    given = torch.randint(3, 16, (4, 140), generator=torch.Generator().manual_seed(2))
    of_row = torch.tensor([0, 0, 1, 2])
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        exact = [
            model(torch.tensor([PROMPTS[p] + row.tolist()])).logits[0, len(PROMPTS[p]) - 1 :]
            for p, row in zip(of_row.tolist(), given, strict=True)
        ]
        model.set_attn_implementation(PACKED)
        decoder = static_decoder.Decoder(model, 4, 256)
        logits, width = decoder.prefill(PROMPTS, of_row, tokenizer.eos_token_id)
        rows = torch.arange(4)
        for t in range(140):
            expected = torch.stack([exact[row][t] for row in rows.tolist()])
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
            if t == 50:
                chosen = torch.tensor([3, 1])
                decoder.keep(chosen, width + t)
                rows = rows[chosen]
            decoder.state.token[: len(rows)] = given[rows, t]
            logits = decoder.next(len(rows), width + t)
    assert set(decoder.steps) == {(4, 128), (2, 128), (2, 256)}


def test_long_prompts_are_read_in_several_passes(tiny, monkeypatch):
    expected = TorchEngine(tiny[0], 1, static=True).sample(PROMPTS, 3, Sampling(8), 5)
    monkeypatch.setattr(static_decoder, "PREFILL", 10)  # two prompts of width five
    passes = []
    kept = static_decoder.prefill
    monkeypatch.setattr(static_decoder, "prefill", lambda *args: passes.append(len(args[1])) or kept(*args))
    assert TorchEngine(tiny[0], 1, static=True).sample(PROMPTS, 3, Sampling(8), 5) == expected
    assert passes == [2, 1]


def test_long_prompts_decode_by_the_kernels_of_cuda(tiny, monkeypatch):
    """700 tokens, and 100 behind 600 of padding, so that whole leading tiles of the mask hide everything."""
    model, prompts = copy.deepcopy(tiny[0]), [[3, 4] * 350, [5, 6] * 50]
    model.config.max_position_embeddings = 1024
    expected = TorchEngine(model, 1).sample(prompts, 3, Sampling(30), 5)
    calls = []
    monkeypatch.setattr(attention, "attend", lambda *args: calls.append(args) or attention.fused(*args))
    assert TorchEngine(model, 1, static=True).sample(prompts, 3, Sampling(30), 5) == expected
    assert {len(args[0][0, 0]) for args in calls} == {1, 700}
    assert all(stride % attention.ALIGNED == 0 for args in calls for stride in args[3].stride()[:-1])


def test_a_byte_budget_bounds_the_rows_and_changes_no_token(tiny):
    model = tiny[0]
    row = static_decoder.row_bytes(model.config, 128, torch.float32)
    assert row == 2 * 2 * 2 * 128 * 8 * 4 + 40 * 16  # keys and values, layers, heads, places, width, bytes; sampling
    engine = TorchEngine(model, 1, static=True, kv_bytes=4 * row + row // 2)
    assert engine.sample(PROMPTS, 3, Sampling(20), 0) == TorchEngine(model, 1).sample(PROMPTS, 3, Sampling(20), 0)
    assert engine._decoder.most == 4
    kept = engine._decoder
    engine.sample(PROMPTS, 5, Sampling(20), 0)
    assert engine._decoder is kept
    with pytest.raises(
        ValueError, match=r"^decoding a response of 256 tokens takes 0\.1 MiB and 0\.0 are .* max_tokens"
    ):
        TorchEngine(model, 1, static=True, kv_bytes=row).sample(PROMPTS, 1, Sampling(200), 0)


def test_a_static_decoder_has_weights_in_the_type_of_the_products(tiny_dir, recordings):
    """fp32 weights, bfloat16 products: its own copy is rounded, refreshed at every call, and no parameter moves."""
    model, tokenizer = load_policy(tiny_dir, compute="bfloat16")
    half, _ = load_policy(tiny_dir, dtype="bfloat16")
    rng = torch.get_rng_state()
    engine = TorchEngine(model, tokenizer.eos_token_id, static=True)
    for _ in range(2):
        assert engine.sample(PROMPTS, 4, LONG, 3) == TorchEngine(half, tokenizer.eos_token_id).sample(
            PROMPTS, 4, LONG, 3
        )
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), half.parameters(), strict=True):
                mine.mul_(1.25)
                theirs.copy_(mine)
    assert torch.equal(torch.get_rng_state(), rng)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert engine.handover_s > 0


def test_sizes_of_static_steps():
    lengths = (1, 128, 129, 500, 513, 1025, 8193)
    assert list(map(static_decoder.ladder, lengths)) == [128, 128, 256, 512, 640, 1280, 10240]
    assert all(n <= static_decoder.ladder(n) <= 1.25 * n + 128 for n in range(1, 20_000))
    assert len({static_decoder.ladder(n) for n in range(1, 10_241)}) == 21
    assert [static_decoder.bucket(k, 100) for k in (100, 51, 50, 26, 25, 3, 1)] == [100, 100, 50, 50, 25, 3, 1]


@pytest.mark.parametrize(("kind", "expected"), [("cuda", 7 * 2**30), ("cpu", None)])
def test_what_only_samples_keeps_its_cache_on_a_gpu(monkeypatch, kind, expected):
    monkeypatch.setattr(static_decoder, "budget", lambda device: 7 * 2**30 if device.type == "cuda" else 1)
    model = SimpleNamespace(device=torch.device(kind), config=LlamaConfig(), generation_config=None)
    assert sampler(model, 1).kv_bytes == expected
