"""Packed log-probabilities against the plain forward pass of transformers, in value and gradient."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import huggingface_hub
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen2Config

from pmd.files import ROOT
from pmd.model import forward, loading
from pmd.model.attention import PACKED
from pmd.model.forward import checkpoint_activations, compile_layers, log_probs
from pmd.model.loading import load_policy, save_policy
from pmd.model.packing import pack
from pmd.sampling.engine import Sampling
from pmd.sampling.torch_engine import TorchEngine
from tests.conftest import OTHER_ARCHITECTURES

PROMPTS = [[3, 4, 15], [5, 13, 6, 7, 15]]
RESPONSES = [[[3, 1], [7], [4, 4, 4, 1]], [[9, 8, 1], [1], [5, 6, 15, 7, 1]]]


def plain(model, prompts=PROMPTS, responses=RESPONSES, temperature: float = 1.0):
    """log-probabilities and entropies by one unpadded eager forward pass a response."""
    model.set_attn_implementation("eager")
    try:
        log_p, entropy = [], []
        for prompt, group in zip(prompts, responses, strict=True):
            for response in group:
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
                logs = (logits.float() / temperature).log_softmax(-1)
                log_p.append(logs.gather(1, torch.tensor(response)[:, None])[:, 0])
                entropy.append(-(logs.exp() * logs).sum(-1))
    finally:
        model.set_attn_implementation(PACKED)
    return torch.cat(log_p), torch.cat(entropy)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_packed_equals_plain_in_value(tiny, temperature):
    got = log_probs(tiny[0], pack(PROMPTS, RESPONSES), temperature)
    torch.testing.assert_close(got, plain(tiny[0], temperature=temperature), atol=2e-6, rtol=0)


@pytest.mark.parametrize("rows", [4096, 4, 0])
def test_packed_equals_plain_in_gradient(tiny, rows, monkeypatch):
    """Also in chunks of four rows or, the budget being less than that, of one, recomputed in the backward pass."""
    model = tiny[0]
    monkeypatch.setattr(forward, "CHUNK_BYTES", 4 * rows * model.config.vocab_size)
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


@pytest.mark.parametrize("rows", [24, 16])
def test_a_vocabulary_of_151936_is_exact(rows, monkeypatch):
    """Log-probabilities, entropies and their gradients against float64."""
    monkeypatch.setattr(forward, "CHUNK_BYTES", 4 * rows * 151_936)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=151_936, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, intermediate_size=16, initializer_range=0.2)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    packed = pack([[3, 4]], [[[150_000, 7], [9, 8, 77_777, 151_935, 1, 0], [*range(0, 151_936, 9_999)]]])
    hidden = model.base_model(input_ids=packed.ids, position_ids=packed.positions, layout=packed).last_hidden_state
    logs = (model.lm_head.double()(hidden[0, packed.predictor].double()) / 0.7).log_softmax(-1)
    expected = logs.gather(1, packed.target[:, None])[:, 0], -(logs.exp() * logs).sum(-1)
    weight = torch.linspace(-1, 1, 24)
    gradients = []
    for compute in (lambda: expected, lambda: log_probs(model.float(), packed, 0.7)):
        model.zero_grad()
        log_p, entropy = compute()
        torch.testing.assert_close(log_p.double(), expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy.double(), expected[1], atol=0, rtol=1e-5)  # ten nats: log p's error tenfold
        (weight * (log_p + 0.3 * entropy)).sum().backward()
        gradients.append([p.grad.double() for p in model.parameters()])
    for got, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(got, exact, atol=1e-5 * exact.abs().max().item(), rtol=0)


def test_without_entropies_log_probabilities_and_gradients_are_the_same_bits(tiny):
    """And the exponentials that entropies take are not computed."""
    model, found = tiny[0], []
    for entropy in (True, False):
        model.zero_grad()
        log_p, entropies = log_probs(model, pack(PROMPTS, RESPONSES), entropy=entropy)
        assert (entropies is None) is not entropy
        log_p.sum().backward()
        found.append([log_p.detach(), *(p.grad.clone() for p in model.parameters())])
    model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_the_loss_that_cuda_compiles_is_the_loss(compiler):
    """Log-probabilities, entropies and gradients, for several numbers of rows by one graph."""
    counter = CompileCounterWithBackend(compiler or "eager")
    torch._dynamo.reset()
    compute = torch.compile(forward.fusible_log_probs, backend=counter, dynamic=True) if compiler else None
    generator = torch.Generator().manual_seed(0)
    for rows in (7, 30, 12):
        logits = 3 * torch.randn(rows, 50, generator=generator)
        target = torch.randint(50, (rows,), generator=generator)
        weight = torch.linspace(-1, 1, rows)
        found = []
        for way in (forward.chosen_log_probs, compute or forward.fusible_log_probs):
            own = logits.clone().requires_grad_()
            log_p, entropy = way(own, target, 0.7, True)
            (weight * log_p + 0.3 * entropy).sum().backward()
            found.append((log_p.detach(), entropy.detach(), own.grad))
            assert way(own, target, 0.7, False)[1] is None
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)
    assert not compiler or counter.frame_count == 2  # with entropies and without


def test_a_pass_keeps_one_copy_of_the_logits(tiny):
    """The entropy keeps none of its own: for the backward pass, one tensor of [tokens, vocabulary] is kept."""
    kept = set()

    def note(x):
        if x.shape == (16, tiny[0].config.vocab_size):
            kept.add(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        result = log_probs(tiny[0], pack(PROMPTS, RESPONSES))
    assert len(kept) == 1
    assert result[1].requires_grad


MEASURE = """
import re, sys, torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen2Config
from pmd.model import forward
from pmd.model.attention import PACKED
from pmd.model.packing import pack

tokens, vocabulary, naive_too = int(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3
# a tenth is a tenth at any size: the budget of a chunk shrinks with [tokens, vocabulary]
forward.CHUNK_BYTES = int(forward.CHUNK_BYTES * tokens * vocabulary / (16384 * 151936))
config = Qwen2Config(vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                     num_key_value_heads=1, intermediate_size=8, tie_word_embeddings=True)
model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
packed = pack([[1, 2]], torch.arange(tokens).remainder(vocabulary).view(1, -1, 64).tolist())

def naive():
    hidden = model.base_model(input_ids=packed.ids, position_ids=packed.positions, layout=packed).last_hidden_state
    log_p = F.log_softmax(model.lm_head(hidden[0, packed.predictor]), dim=-1)
    return log_p.gather(1, packed.target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)

def resident(key):  # not getrusage, whose peak is inherited from the process that started this one
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(key + r":\\s+(\\d+) kB", file.read())[1])

def peak(compute):
    before = resident("VmRSS")
    log_p, entropy = compute()
    log_p.sum().backward()
    return resident("VmHWM") - before

ours = peak(lambda: forward.log_probs(model, packed))
print(ours, peak(naive) if naive_too else 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_the_peak_memory_of_the_loss_is_below_a_tenth_of_the_naive_one():
    """2,048 tokens and a vocabulary of 16,384 stand in for 16,384 and 151,936: chunks are the same share of all."""
    command = [sys.executable, "-c", MEASURE, "2048", "16384", "naive"]
    # as with the large blocks of the full size, freed memory goes back to the system at once
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    ours, naive = map(int, done.stdout.split())
    assert naive > 3 * 4 * 2048 * 16384, "the naive computation was not measured"
    assert ours < naive / 10


def test_recomputing_activations_changes_no_bit_of_the_gradient(tiny):
    """Layers run again in the backward pass, packed attention included; rollouts keep their cache."""
    gradients, runs = [], []
    for recompute in (False, True):
        model, calls = copy.deepcopy(tiny[0]).eval(), []
        if recompute:
            checkpoint_activations(model)
        for layer in model.base_model.layers:
            layer.mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        log_probs(model, pack(PROMPTS, RESPONSES))[0].pow(2).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        runs.append(len(calls))
        assert not any(module.training for module in model.modules())
        assert TorchEngine(model, 1).sample(PROMPTS, 2, Sampling(6), 0) == TorchEngine(tiny[0], 1).sample(
            PROMPTS, 2, Sampling(6), 0
        )
    assert runs == [2, 4]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_compiled_layers_compute_the_same(tiny, monkeypatch):
    """Values, gradients and rollouts, for several numbers of tokens; traced, but without the need of a C++ compiler."""
    plain_compile, traced = torch.nn.Module.compile, []

    def compile_traced(module, **options):
        traced.append(type(module).__name__)
        plain_compile(module, **options, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_traced)
    exact, model = tiny[0], copy.deepcopy(tiny[0])
    compile_layers(model)
    assert sorted(traced) == sorted(["Qwen2RMSNorm", "Qwen2RMSNorm", "Qwen2MLP"] * 2)
    for prompts, responses in ((PROMPTS, RESPONSES), (PROMPTS[:1], RESPONSES[:1])):
        packed, gradients = pack(prompts, responses), []
        torch.testing.assert_close(log_probs(model, packed), log_probs(exact, packed), atol=2e-6, rtol=0)
        for each in (exact, model):
            each.zero_grad()
            log_probs(each, packed)[0].pow(2).sum().backward()
            gradients.append([p.grad.clone() for p in each.parameters()])
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    samples = [TorchEngine(each, 1).sample(PROMPTS, 2, Sampling(6), 0) for each in (exact, model)]
    assert samples[0] == samples[1]


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
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    torch.testing.assert_close(log_probs(model, pack(PROMPTS, RESPONSES)), plain(model), atol=2e-6, rtol=0)


def prefixes(prompts, responses):
    """Everything that is fed, from the first token of a sequence on, by the definition."""
    fed = [prompt + response[:-1] for prompt, group in zip(prompts, responses, strict=True) for response in group]
    return {tuple(x[: i + 1]) for x in fed for i in range(len(x))}


def test_packing_holds_what_sequences_begin_with_once_and_no_padding():
    prompts = [[3, 4, 15], [3, 4, 6, 15]]
    responses = [[[9, 8, 7, 1], [9, 8, 5, 5, 1], [9, 8, 7, 2], [9, 1]], [[5], [9, 8]]]
    packed = pack(prompts, responses)
    # 3 4 (6 15 (9)) (15 (9 8 (5 5) (7)))
    assert packed.ids.tolist() == [[3, 4, 6, 15, 9, 15, 9, 8, 5, 5, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 5]]
    assert packed.predictor.tolist() == [5, 6, 7, 10, 5, 6, 7, 8, 9, 5, 6, 7, 10, 5, 6, 3, 3, 4]
    assert packed.target.tolist() == [t for group in responses for r in group for t in r]
    assert packed.lengths.tolist() == [len(r) for group in responses for r in group]
    assert packed.ids.numel() == len(prefixes(prompts, responses))


words = st.lists(st.integers(3, 4), min_size=1, max_size=6)  # of two tokens, so that most beginnings are shared


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=3))
def test_sharing_changes_no_value_and_no_gradient(tiny, groups):
    prompts, responses = [prompt for prompt, _ in groups], [group for _, group in groups]
    packed = pack(prompts, responses)
    assert packed.ids.numel() == len(prefixes(prompts, responses))
    model, found = copy.deepcopy(tiny[0]), []
    weight = torch.randn(len(packed.target), generator=torch.Generator().manual_seed(0))
    for compute in (lambda: log_probs(model, packed), lambda: plain(model, prompts, responses)):
        model.zero_grad()
        log_p, entropy = compute()
        (weight * log_p + 0.3 * entropy).sum().backward()
        found.append([log_p.detach(), entropy.detach(), *(p.grad.clone() for p in model.parameters())])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_responses_of_one_token_pack(tiny):
    whole, _ = log_probs(tiny[0], pack(PROMPTS, RESPONSES))
    alone, _ = log_probs(tiny[0], pack(PROMPTS, [[[7]], [[1]]]))
    torch.testing.assert_close(alone, whole[[2, 10]], atol=2e-6, rtol=0)


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


def write(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_of_the_hub_is_fetched_at_its_revision_without_code_or_pickle(tiny_dir, monkeypatch):
    asked = {}

    def fetch(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, files=allow_patterns)
        return str(tiny_dir)

    monkeypatch.setattr(loading, "snapshot_download", fetch)
    model, _ = load_policy("some-one/a.model@" + "0a" * 20)
    assert model.config.vocab_size == 16
    assert asked["name"] == "some-one/a.model"
    assert asked["revision"] == "0a" * 20
    assert {pattern.rpartition(".")[2] for pattern in asked["files"]} == {"json", "jinja", "safetensors"}


def test_a_model_of_the_hub_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    name = "some-one/model@" + "0" * 40
    with pytest.raises(ValueError, match=f"{name}: cannot be fetched .* `hf download some-one/model --rev") as caught:
        load_policy(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["some-one/model", "some-one/model@main", "model@" + "0" * 40, "runs/none"])
def test_a_name_that_is_neither_a_directory_nor_pinned_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: no such directory; .*owner/name@revision"):
        load_policy(name)


def test_a_tokenizer_of_another_model_is_refused(tiny_dir):
    for file in ("config.json", "generation_config.json"):
        write(tiny_dir / file, eos_token_id=[5, 2])
    with pytest.raises(ValueError, match=r"ends a response with token 1 \(<eos>\), the model with \[2, 5\]; make"):
        load_policy(tiny_dir)
    write(tiny_dir / "generation_config.json", eos_token_id=[5, 1])  # a model may have several ends
    load_policy(tiny_dir)


def test_an_architecture_that_packing_would_change_is_refused(tiny_dir):
    write(tiny_dir / "config.json", model_type="abacus")
    with pytest.raises(ValueError, match=r"model: the model cannot be loaded \(.*abacus") as caught:
        load_policy(tiny_dir)
    assert "\n" not in str(caught.value)
    sliding = Qwen2Config(use_sliding_window=True, max_window_layers=2, num_hidden_layers=4)
    with pytest.raises(ValueError, match="qwen2 has sliding_attention"):
        loading._check_architecture(sliding)
    with pytest.raises(ValueError, match=r"gemma2 has .*attn_logit_softcapping, final_logit_softcapping"):
        loading._check_architecture(Gemma2Config())
    loading._check_architecture(Qwen2Config())


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        ("deepseek_v3", SMALL | LATENT, "deepseek_v3 has latent keys of width 12 and values of width 8"),
        ("jamba", SMALL | {"num_key_value_heads": 4}, "jamba has linear_attention"),
        ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"]}, "lfm2 has conv"),
        ("doge", SMALL, "doge has a mask of its own for every head"),
        ("jetmoe", {"hidden_size": 32}, "jetmoe has heads that are chosen for every token"),
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "gptj computes attention by itself"),
        ("bert", SMALL, "BertLMHeadModel does not compute its hidden states by causal attention alone"),
        ("nemotron", SMALL | {"num_key_value_heads": 4}, "NemotronAttention is not handed the layout"),
    ],
)
def test_an_architecture_that_does_more_than_attention_is_refused_in_one_line(tiny, tmp_path, kind, sizes, reason):
    config = AutoConfig.for_model(kind, vocab_size=16, eos_token_id=1, bos_token_id=1, pad_token_id=0, **sizes)
    save_policy(*tiny, tmp_path / kind)
    config.save_pretrained(tmp_path / kind)
    if kind in ("bert", "nemotron"):  # found by trying
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
    with pytest.raises(ValueError, match=rf"{kind}: the model cannot be loaded \({reason}") as caught:
        load_policy(tmp_path / kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", OTHER_ARCHITECTURES)
def test_architectures_with_other_names_pack_and_compile(folder_of, kind, monkeypatch):
    """Log-probabilities and gradients of GPT-2's and OPT's, also with layers recomputed and compiled."""
    plain_compile, traced = torch.nn.Module.compile, []
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **how: traced.append(type(self).__name__) or plain_compile(self, **how, backend="aot_eager"),
    )
    exact, model = (load_policy(folder_of(kind))[0] for _ in range(2))
    checkpoint_activations(model)
    compile_layers(model)
    assert traced.count("LayerNorm") == 4
    assert len(traced) == (4 if kind == "opt" else 6)  # OPT's products stand alone
    packed = pack(PROMPTS, RESPONSES)
    expected = plain(exact)
    for each in (exact, model):
        got = log_probs(each, packed)
        torch.testing.assert_close(got, expected, atol=5e-6, rtol=0)
        got[0].pow(2).sum().backward()
    for got, gradient in zip(model.parameters(), exact.parameters(), strict=True):
        if gradient.grad is None:
            assert got.grad is None
        else:
            torch.testing.assert_close(got.grad, gradient.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tiny, tmp_path, value, divided, request):
    if divided:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        request.addfinalizer(dist.destroy_process_group)
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.base_model.layers[1].mlp.up_proj.weight[3, 4] = value
    save_policy(model, tiny[1], tmp_path / "m")
    with pytest.raises(
        ValueError, match=r"loaded \(model\.layers\.1\.mlp\.up_proj\.weight is NaN or infinite in float32\)"
    ):
        load_policy(tmp_path / "m", divided=divided)


def test_weights_that_overflow_in_float16_are_refused_with_what_helps(tiny, tmp_path):
    model = copy.deepcopy(tiny[0])
    with torch.no_grad():
        model.base_model.norm.weight[0] = 7e4
    save_policy(model, tiny[1], tmp_path / "m")
    load_policy(tmp_path / "m", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"norm\.weight is NaN or infinite in float16; a dtype of bfloat16 or float32"):
        load_policy(tmp_path / "m", dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_missing_cuda_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"device: got 'cuda:1', but PyTorch .* sees 0 CUDA devices"):
        load_policy(tmp_path / "none", "cuda:1")


def test_bfloat16_computes_over_float32_weights(tiny_dir):
    """Products in bfloat16, log-softmax in float32, gradients in float32; rollouts alike, and new weights are seen."""
    packed = pack(PROMPTS, RESPONSES)
    exact_model, _ = load_policy(tiny_dir)
    model, tokenizer = load_policy(tiny_dir, compute="bfloat16")
    types = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: types.append(output.dtype))
    exact, half = log_probs(exact_model, packed)[0], log_probs(model, packed)[0]
    assert {p.dtype for p in model.parameters()} == {half.dtype} == {torch.float32}
    assert 1e-5 < (half - exact).abs().max() < 0.05
    assert not torch.equal(half, half.bfloat16().float())
    for log_p in (exact, half):
        log_p.pow(2).sum().backward()
    flat = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (exact_model, model)]
    assert flat[1].dtype == torch.float32
    assert torch.cosine_similarity(*flat, dim=0) > 0.999
    engine = TorchEngine(model, tokenizer.eos_token_id)
    before = engine.sample(PROMPTS, 4, Sampling(6), 0)
    assert set(types) == {torch.bfloat16}
    with torch.no_grad():
        model.get_output_embeddings().weight.copy_(model.get_output_embeddings().weight.flip(0))
    assert engine.sample(PROMPTS, 4, Sampling(6), 0) != before
    assert (log_probs(model, packed)[0] - half).abs().max() > 0.05


def test_half_precision_packs_and_decodes(tiny_dir):
    """bfloat16 keeps its type through attention and its log-probabilities to its own accuracy."""
    exact, _ = log_probs(load_policy(tiny_dir)[0], pack(PROMPTS, RESPONSES))
    model, tokenizer = load_policy(tiny_dir, dtype="bfloat16")
    half, _ = log_probs(model, pack(PROMPTS, RESPONSES))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0)
    assert len(TorchEngine(model, tokenizer.eos_token_id).sample(PROMPTS, 2, Sampling(4), 0)) == 2
