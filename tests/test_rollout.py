"""Sampling: exact against a plain loop, independent of batching, and in the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pmd.attention import PACKED
from pmd.rollout import Sampling, TorchEngine, choose

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


@pytest.mark.parametrize("sampling", [Sampling(12), Sampling(12, 0.7, 0.8)])
def test_engine_equals_plain_decoding(tiny, sampling):
    model, tokenizer = tiny
    got = TorchEngine(model, tokenizer.eos_token_id).sample(PROMPTS, 5, sampling, seed=4)
    uniform = torch.rand(len(PROMPTS), 5, 12, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        for g, prompt in enumerate(PROMPTS):
            for i in range(5):
                assert got[g][i] == plain_sample(model, prompt, uniform[g, i], sampling, tokenizer.eos_token_id)
    assert len({len(r) for group in got for r in group}) > 2  # some ended early, so rows were compacted


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


@pytest.mark.parametrize(("key", "value"), [("max_tokens", 0), ("temperature", 0.0), ("top_p", 0.0), ("top_p", 1.5)])
def test_bad_sampling_is_refused(key, value):
    with pytest.raises(ValueError, match=key):
        Sampling(**({"max_tokens": 5} | {key: value}))


def test_a_share_of_a_batch_is_sampled_as_in_the_whole(tiny):
    engine, prompts = TorchEngine(tiny[0], 1), [[3, 15], [4, 15], [5, 15], [6, 15], [7, 15]]
    whole = engine.sample(prompts, 3, Sampling(6), 11)
    assert engine.sample(prompts[:2], 3, Sampling(6), 11) + engine.sample(prompts[2:], 3, Sampling(6), 11, 2) == whole
    assert engine.sample(prompts[2:], 3, Sampling(6), 11) != whole[2:]
