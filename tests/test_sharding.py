"""A policy under FSDP2 with one rank, as one GPU trains it: here a group of one gloo rank in this process."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pmd.model import checkpoint, loading
from pmd.model.checkpoint import MOMENTS
from pmd.model.forward import checkpoint_activations, compile_layers, frozen_log_probs, log_probs
from pmd.model.loading import load_policy, save_policy
from pmd.model.packing import pack
from pmd.model.sharding import local, shard, sharded, trained_sharded
from pmd.sampling.engine import Sampling
from pmd.sampling.torch_engine import TorchEngine

PACKED = pack([[3, 4, 15], [5, 13, 6, 7, 15]], [[[3, 1], [7], [4, 4, 4, 1]], [[9, 8, 1], [5, 6, 15, 7, 1]]])


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), 1e-2, fused=True)


def step(model, optimizer):
    """One update; returns the log-probabilities before it."""
    log_p, entropy = log_probs(model, PACKED, entropy=False)
    assert entropy is None
    optimizer.zero_grad()
    (log_p * torch.linspace(-1, 1, len(log_p))).sum().backward()
    optimizer.step()
    return log_p.detach()


def same_weights(model, other):
    a, b = dict(model.named_parameters()), dict(other.named_parameters())
    return a.keys() == b.keys() and all(torch.equal(local(a[name]), local(b[name])) for name in a)


def test_what_is_trained_on_cuda_is_sharded_and_on_a_cpu_with_several_ranks_only(one_rank):
    assert [trained_sharded(device) for device in ("cuda", "cuda:1", "cpu")] == [True, True, False]


def test_one_rank_trains_with_the_bits_of_an_undivided_policy(tiny_dir, one_rank):
    """Built without memory, its rows read from the files: weights, buffers, log-probabilities, three updates."""
    whole, _ = load_policy(tiny_dir)
    divided, _ = load_policy(tiny_dir, divided=True)
    assert sharded(divided)
    assert not sharded(whole)
    assert same_weights(divided, whole)
    assert not divided.training
    assert len(list(divided.parameters())) == len(list(whole.parameters()))  # embedding and head are still one
    buffers = dict(whole.named_buffers())
    assert buffers
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in divided.named_buffers())
    optimizers = [optimizer_of(model) for model in (whole, divided)]
    for _ in range(3):
        assert torch.equal(frozen_log_probs(divided, PACKED)[1], frozen_log_probs(whole, PACKED)[1])
        assert torch.equal(step(whole, optimizers[0]), step(divided, optimizers[1]))
    assert same_weights(divided, whole)


def test_a_policy_in_memory_is_sharded_as_one_from_disk(tiny, tiny_dir, one_rank):
    model = copy.deepcopy(tiny[0])
    model.compute_dtype = torch.float32
    shard(model, "cpu")
    assert same_weights(model, load_policy(tiny_dir, divided=True)[0])


def test_weights_under_other_names_on_disk_are_converted_by_transformers(tiny_dir, one_rank, monkeypatch):
    """Then every rank loads the model whole; what it keeps is the same."""
    expected, _ = load_policy(tiny_dir, divided=True)
    asked, whole = [], loading._whole
    monkeypatch.setattr(loading, "_whole", lambda *args: asked.append(args) or whole(*args))
    assert same_weights(load_policy(tiny_dir, divided=True)[0], expected)
    assert not asked
    weights = load_file(tiny_dir / "model.safetensors")
    renamed = {name.removeprefix("model."): weight for name, weight in weights.items()}  # a base model's names
    save_file(renamed, tiny_dir / "model.safetensors", {"format": "pt"})
    assert same_weights(load_policy(tiny_dir, divided=True)[0], expected)
    assert len(asked) == 1


MIXTURE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
           "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
           "max_position_embeddings": 128, "tie_word_embeddings": True}  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("rows", [slice(0, 4), slice(1, 3)])
def test_of_a_mixture_a_rank_reads_its_own_experts_alone(tiny, tmp_path, one_rank, monkeypatch, kind, rows):
    """Equal to what transformers makes of the file; the second rank of others would hold experts 1 and 2 of 4."""
    torch.manual_seed(0)
    sizes = MIXTURE | {"vocab_size": len(tiny[1]), "shared_expert_intermediate_size": 20, "intermediate_size": 20}
    save_policy(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)), tiny[1], tmp_path / "mixture")
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in load_file(tmp_path / "mixture" / "model.safetensors")
    expected = {name: p.detach() for name, p in load_policy(tmp_path / "mixture")[0].named_parameters()}
    part, read = [name for name in expected if ".experts." in name], []
    whole_rows, opened = loading.own_rows, loading.safe_open

    class Counted:
        def __init__(self, slice_, name):
            self.slice, self.name = slice_, name

        def get_shape(self):
            return self.slice.get_shape()

        def __getitem__(self, which):
            read.append(self.name)
            return self.slice[which]

    class File:
        def __init__(self, *arguments):
            self.file = opened(*arguments)

        def __enter__(self):
            self.inside = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.inside.keys()

        def get_slice(self, name):
            return Counted(self.inside.get_slice(name), name)

    mixtures = lambda parameter: parameter.dim() == 3  # noqa: E731
    monkeypatch.setattr(loading, "safe_open", File)
    monkeypatch.setattr(loading, "own_rows", lambda p: rows if mixtures(p) else whole_rows(p))
    monkeypatch.setattr(loading, "local", lambda p: local(p)[rows] if mixtures(p) else local(p))
    monkeypatch.setattr(loading, "_whole", lambda *arguments: pytest.fail("the whole model was read"))
    model, _ = load_policy(tmp_path / "mixture", divided=True)
    for name, parameter in model.named_parameters():
        mine = rows if name in part else slice(None)
        assert torch.equal(local(parameter)[mine], expected[name][mine]), name
    experts = {int(name.split(".experts.")[1].split(".")[0]) for name in read if ".experts." in name}
    assert experts == set(range(4)[rows])
    assert len(part) == 4


def test_bfloat16_keeps_the_residual_stream_and_float32_the_weights(tiny_dir, one_rank):
    """Every layer's output is bfloat16; weights, gradients and log-probabilities are float32, near the exact ones."""
    exact, _ = load_policy(tiny_dir)
    model, _ = load_policy(tiny_dir, compute="bfloat16", divided=True)
    types = set()
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda module, inputs, output: types.add(output.dtype))
    half, reference = (log_probs(m, PACKED)[0] for m in (model, exact))
    for log_p in (half, reference):
        log_p.pow(2).sum().backward()
    assert types == {torch.bfloat16}
    assert half.dtype == torch.float32
    assert 1e-5 < (half - reference).abs().max() < 0.05
    assert {(p.dtype, p.grad.dtype) for p in model.parameters()} == {(torch.float32, torch.float32)}
    flat = [torch.cat([local(p.grad).flatten() for p in m.parameters()]) for m in (model, exact)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.999


def test_a_sharded_policy_is_sampled_from_a_copy_in_the_compute_type(tiny_dir, one_rank):
    """The same tokens as from a bfloat16 model, static or not, also after an update."""
    model, tokenizer = load_policy(tiny_dir, compute="bfloat16", divided=True)
    optimizer, prompts = optimizer_of(model), [[3, 4, 15], [5, 15]]
    engines = [TorchEngine(model, tokenizer.eos_token_id, static=static) for static in (False, True)]
    found = []
    for _ in range(2):
        save_policy(model, tokenizer, tiny_dir)
        half, _ = load_policy(tiny_dir, dtype="bfloat16")
        expected = TorchEngine(half, tokenizer.eos_token_id).sample(prompts, 8, Sampling(20), 3)
        for engine in engines:
            assert engine.sample(prompts, 8, Sampling(20), 3) == expected
            assert engine.sample([], 8, Sampling(20), 3) == []
        found.append(expected)
        step(model, optimizer)
    assert found[0] != found[1]
    kept = engines[0]._weights
    assert {p.dtype for p in kept.parameters()} == {torch.bfloat16}
    assert kept.get_output_embeddings().weight is kept.get_input_embeddings().weight
    assert all(torch.equal(buffer, dict(half.named_buffers())[name]) for name, buffer in kept.named_buffers())


@pytest.mark.parametrize(
    ("compute", "divided", "saved"),
    [
        ("float32", False, "float32"),
        ("float32", True, "float32"),
        ("bfloat16", False, "float32"),
        ("bfloat16", True, "bfloat16"),
    ],
)
def test_a_sharded_policy_is_saved_in_the_type_that_it_computes_in(
    tiny_dir, tmp_path, one_rank, compute, divided, saved
):
    model, tokenizer = load_policy(tiny_dir, compute=compute, divided=divided)
    save_policy(model, tokenizer, tmp_path / "saved")
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, saved)}
    assert sum(weight.nbytes for weight in weights.values()) == getattr(torch, saved).itemsize * model.num_parameters()
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == saved
    again, _ = load_policy(tmp_path / "saved", dtype="auto")
    assert again.dtype == getattr(torch, saved)


@pytest.mark.parametrize("divided", [False, True])
def test_a_run_goes_on_from_its_checkpoint_with_the_same_bits(tiny_dir, tmp_path, one_rank, divided):
    """Also where a policy in one piece wrote it and a sharded one reads it, and the other way round."""
    model, _ = load_policy(tiny_dir, divided=not divided)
    optimizer = optimizer_of(model)
    for _ in range(2):
        step(model, optimizer)
    path = checkpoint.save(tmp_path, 2, model, optimizer, {})
    again, _ = load_policy(tiny_dir, divided=divided)
    resumed = optimizer_of(again)
    checkpoint.load(path, again, resumed)
    step(model, optimizer)
    step(again, resumed)
    assert same_weights(again, model)
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert resumed.state[a]["step"] == 3
        assert all(torch.equal(local(resumed.state[a][key]), local(optimizer.state[b][key])) for key in MOMENTS)


def test_a_checkpoint_is_written_from_memory_that_is_there(tiny_dir, tmp_path, one_rank, monkeypatch):
    """On a CPU nothing is copied: what is written is the memory of weights and moments themselves."""
    model, _ = load_policy(tiny_dir, divided=True)
    optimizer, written = optimizer_of(model), set()
    step(model, optimizer)
    kept = checkpoint.save_file
    monkeypatch.setattr(
        checkpoint,
        "save_file",
        lambda tensors, path: written.update(t.data_ptr() for t in tensors.values()) or kept(tensors, path),
    )
    checkpoint.save(tmp_path, 1, model, optimizer, {})
    held = [local(p) for p in model.parameters()] + [local(s[k]) for s in optimizer.state.values() for k in MOMENTS]
    assert {tensor.data_ptr() for tensor in held} < written  # beside them each parameter's count of steps


def test_compiled_and_recomputed_layers_train_under_sharding(tiny_dir, one_rank, monkeypatch):
    """By the compiler's front end alone, which is what meets FSDP2's hooks and the recomputation."""
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, backend="aot_eager", **options))
    torch._dynamo.reset()
    plain, _ = load_policy(tiny_dir, compute="bfloat16", divided=True)
    model, _ = load_policy(tiny_dir, compute="bfloat16", divided=True)
    checkpoint_activations(model)
    compile_layers(model)
    for other in (plain, model):
        other.found = [step(other, optimizer_of(other)), frozen_log_probs(other, PACKED)[0]]
    for a, b in zip(plain.found, model.found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=0)
