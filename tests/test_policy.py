"""Packed log-probabilities against the plain forward pass of transformers, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pmd import policy
from pmd.policy import load_policy, log_probs, pack, save_policy
from pmd.rollout import Sampling, TorchEngine

PROMPTS = [[3, 4, 15], [5, 13, 6, 7, 15]]
RESPONSES = [[[3, 1], [7], [4, 4, 4, 1]], [[9, 8, 1], [1], [5, 6, 15, 7, 1]]]


def plain(model, temperature: float = 1.0):
    """log-probabilities and entropies by one unpadded eager forward pass a response."""
    model.set_attn_implementation("eager")
    try:
        log_p, entropy = [], []
        for prompt, group in zip(PROMPTS, RESPONSES, strict=True):
            for response in group:
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
                logs = (logits.float() / temperature).log_softmax(-1)
                log_p.append(logs.gather(1, torch.tensor(response)[:, None])[:, 0])
                entropy.append(-(logs.exp() * logs).sum(-1))
    finally:
        model.set_attn_implementation(policy.PACKED)
    return torch.cat(log_p), torch.cat(entropy)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_equals_plain_in_value(tiny, temperature):
    got = log_probs(tiny[0], pack(PROMPTS, RESPONSES), temperature)
    torch.testing.assert_close(got, plain(tiny[0], temperature), atol=2e-6, rtol=0)


@pytest.mark.parametrize("chunk", [4096, 4])
def test_packed_equals_plain_in_gradient(tiny, chunk, monkeypatch):
    """Also in chunks of four rows, where logits are recomputed in the backward pass."""
    monkeypatch.setattr(policy, "CHUNK", chunk)
    model = tiny[0]
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for compute in (lambda: log_probs(model, pack(PROMPTS, RESPONSES)), lambda: plain(model)):
        model.zero_grad()
        log_p, entropy = compute()
        (weight * log_p + 0.3 * entropy).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_another_architecture_packs_too():
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=48,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=policy.PACKED)
    torch.testing.assert_close(log_probs(model, pack(PROMPTS, RESPONSES)), plain(model), atol=2e-6, rtol=0)


def test_packing_holds_each_prompt_once_and_no_padding():
    packed = pack(PROMPTS, RESPONSES)
    fed = sum(len(r) - 1 for group in RESPONSES for r in group)
    assert packed.ids.shape == (1, sum(map(len, PROMPTS)) + fed)
    assert packed.target.tolist() == [t for group in RESPONSES for r in group for t in r]
    assert packed.lengths.tolist() == [len(r) for group in RESPONSES for r in group]
    assert packed.positions[0, :8].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("prompts", "responses"), [([[]], [[[1]]]), ([[3]], [[[1], []]])])
def test_an_empty_prompt_or_response_is_refused(prompts, responses):
    with pytest.raises(ValueError, match="no tokens"):
        pack(prompts, responses)


def test_save_and_load_keep_every_bit(tiny, tmp_path):
    save_policy(*tiny, tmp_path / "m")
    save_policy(*tiny, tmp_path / "m")  # over an existing folder
    model, tokenizer = load_policy(tmp_path / "m")
    for name, parameter in tiny[0].named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name])
    assert tokenizer.encode("47+38-13=") == tiny[1].encode("47+38-13=")
    assert tokenizer.decode(tokenizer.encode("85-13=72")) == "85-13=72"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_without_weights_is_refused_by_name(tiny_dir):
    (tiny_dir / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model: not a model directory, it lacks \*\.safetensors"):
        load_policy(tiny_dir)


def test_broken_weights_are_refused_in_one_line(tiny_dir):
    (tiny_dir / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load_policy(tiny_dir)
    assert "\n" not in str(caught.value)


def test_half_precision_packs_and_decodes(tiny_dir):
    """bfloat16 keeps its type through attention and its log-probabilities to its own accuracy."""
    exact, _ = log_probs(load_policy(tiny_dir)[0], pack(PROMPTS, RESPONSES))
    model, tokenizer = load_policy(tiny_dir, dtype="bfloat16")
    half, _ = log_probs(model, pack(PROMPTS, RESPONSES))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0)
    assert len(TorchEngine(model, tokenizer.eos_token_id).sample(PROMPTS, 2, Sampling(4), 0)) == 2
