"""The plan: its memory by hand and against measured peaks, and its advice, followed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from pmd import params
from pmd.__main__ import main
from pmd.files import ROOT
from pmd.harness.config import train_config
from pmd.model import forward
from pmd.model.attention import PACKED
from pmd.model.packing import pack
from pmd.sampling import static_decoder
from pmd.sampling.torch_engine import TorchEngine
from pmd.scale import gpu, memory, plan
from pmd.scale.memory import Pass
from pmd.scale.plan import GIB
from pmd.scale.shape import architecture, shape
from pmd.scale.vllm_engine import PASS_TOKENS

VALUES = params.load()


def run(**changes):
    return train_config("pmd-mean", 0, VALUES, **changes)


CONFIG = Qwen2Config(vocab_size=1000, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                     intermediate_size=96, tie_word_embeddings=False)  # fmt: skip
SHAPE = plan.shape(CONFIG)
LAYER = (64 * 64 + 64) + 2 * (64 * 32 + 32) + 64 * 64 + 3 * 64 * 96 + 2 * 64
"""Queries, keys and values with biases, output, the gated block, two norms."""


def test_the_shape_is_counted():
    total = 3 * LAYER + 2 * 1000 * 64 + 64
    assert (SHAPE.total, SHAPE.layer, SHAPE.rest) == (total, LAYER, 2 * 64_000 + 64)
    assert SHAPE.products == total - 64_000  # the embedding is looked up
    assert (SHAPE.query, SHAPE.key, SHAPE.experts, SHAPE.normed) == (64, 32, 0, False)


def test_an_mixture_is_stored_whole_and_multiplied_in_part():
    own = plan.shape(plan.architecture("Qwen3-30B-A3B-Base"))
    assert own.experts == 48 * 128 * 3 * 768 * 2048
    assert own.total - own.products == 120 / 128 * own.experts + 151_936 * 2048
    assert memory.state(own, 32)["optimizer"] == 8 * own.total / 32
    assert own.feedforward == 8 * 768
    assert own.normed


def test_state_is_divided_and_copies_are_not():
    assert memory.state(SHAPE, 2) == {name: k * SHAPE.total / 2 for name, k in
                                    {"weights": 4, "gradients": 4, "optimizer": 8}.items()}  # fmt: skip
    half, whole = run(dtype="bfloat16"), run()
    assert memory.cast_weights(SHAPE, whole, 1, backward=True) == 0
    assert memory.cast_weights(SHAPE, half, 1, backward=True) == 2 * (3 * LAYER + 64_000)
    again = half.replace(checkpoint_activations=True)
    assert memory.cast_weights(SHAPE, again, 1, backward=True) == 2 * (LAYER + 64_000)
    assert memory.cast_weights(SHAPE, again, 1, backward=False) == 2 * (3 * LAYER + 64_000)
    for sharded, ranks in ((half, 4), (half.replace(device="cuda"), 1)):  # one GPU goes through FSDP2 too
        assert memory.cast_weights(SHAPE, sharded, ranks, backward=False) == 2 * (SHAPE.rest + 2 * LAYER)
        assert memory.cast_weights(SHAPE, sharded, ranks, backward=True) == 2 * (2 * SHAPE.rest + 2 * LAYER) + 6 * LAYER


def test_the_largest_pass_keeps_to_the_budget_and_never_splits_a_response():
    train = run(prompts=32, group_size=8, minibatches=8, max_tokens=101)  # 4 prompts, 32 responses a minibatch
    assert memory.largest_pass(train, 50, 1) == Pass(4 * 50 + 32 * 100, 32, 32 * 150 + 200, 32 * 100 * 150 + 4 * 2500)
    assert memory.largest_pass(train, 50, 4).responses == 8
    for budget, responses in ((849, 7), (850, 8), (999, 8), (1000, 9), (10, 1)):
        found = memory.largest_pass(train.replace(microbatch_tokens=budget), 50, 1)
        assert found.responses == responses
        assert found.tokens == responses * 100 + 50 * -(-responses // 8)


def test_activations_by_hand():
    size = Pass(tokens=10, responses=2, keys=12, pairs=40)
    exact = run()
    # floats a token: two norms' inputs and values, their outputs, queries, output, four of the gated block
    each = 2 * 2 * 64 + 2 * 64 + 2 * 64 + 4 * 96
    one = 4 * (10 * each + 12 * 2 * 32 + 4 * 40)  # keys and values behind responses; probabilities of four heads
    assert memory.layer_activations(SHAPE, exact, 1, size) == one
    last = 4 * (10 * 3 * 64 + 64 * 2 * exact.max_tokens)
    assert memory.activations(SHAPE, exact, 1, size, backward=True) == 3 * one + 4 * 40 + last
    again = exact.replace(checkpoint_activations=True)
    assert memory.activations(SHAPE, again, 1, size, backward=True) == 3 * 4 * 64 * 10 + one + 4 * 40 + last
    assert memory.activations(SHAPE, again, 1, size, backward=False) == 3 * 4 * 64 * 10 + 4 * 40 + last
    half = exact.replace(dtype="bfloat16")
    cuda = half.replace(device="cuda")
    # autocast: the stream in fp32, five casts, what a CPU keeps of attention; sharded: the stream in bf16
    quadratic = 2 * 12 * 2 * 32 + 2 * 4 * 40
    alone = 10 * (2 * 8 * 64 + 5 * 2 * 64 + 2 * 2 * 64 + 4 * 2 * 96) + quadratic
    assert memory.layer_activations(SHAPE, half, 1, size) == alone
    sharded = 10 * (2 * 6 * 64 + 2 * 2 * 64 + 2 * (3 * 64 + 2 * 32) + 4 * 2 * 96)  # nothing quadratic
    assert memory.layer_activations(SHAPE, cuda, 1, size) == memory.layer_activations(SHAPE, cuda, 2, size) == sharded


def test_logits_are_a_chunk_whatever_the_vocabulary():
    size = Pass(tokens=10, responses=2, keys=12, pairs=40)
    train = run(max_tokens=48)
    small = 4 * 2 * 48 * 1000
    assert memory.logits(SHAPE, train, size, backward=True) == 3 * small + 4 * 64_000
    large = replace(SHAPE, vocabulary=10**7, head=64 * 10**7)
    assert memory.logits(large, train, size, backward=True) == 3 * forward.CHUNK_BYTES + 2 * 4 * 64 * 10**7


def test_the_engines_memory():
    kv = 2 * 3 * 32 * 4
    assert memory.kv_bytes(SHAPE, run()) == kv
    found = memory.engine_memory(SHAPE, run(prompts=32, group_size=8, eval_max_tokens=80), 20, 1, 0)
    assert found == {"engine weights": 0, "KV cache": 256 * (100 * kv + memory.static_decoder.SAMPLED * 1000)}
    options = {"gpu_memory_utilization": 0.25, "tensor_parallel_size": 2}
    vllm = run(engine="vllm", engine_options=options, device="cuda", dtype="bfloat16")
    found = memory.engine_memory(SHAPE, vllm, 20, 4, 1e9)
    assert found == {"engine weights": SHAPE.total, "KV cache": 0.25e9 - SHAPE.total}
    assert "KV cache" not in memory.phases(SHAPE, vllm, 20, 4, 1e9)["update"]  # it sleeps
    assert "KV cache" in memory.phases(SHAPE, vllm.replace(device="cpu"), 20, 4, 1e9)["update"]


def test_what_stays_of_the_torch_engine_during_the_update():
    """On a GPU a small cache with its weights, or nothing; on a CPU a rank's copy of sharded weights."""
    train = run(prompts=32, group_size=8, dtype="bfloat16", device="cuda")
    weights = 2 * SHAPE.total
    small, large = (memory.phases(SHAPE, train, 20, 1, gib * GIB)["update"] for gib in (80, 0.1))
    assert small["engine weights"] == weights
    assert not {"engine weights", "KV cache"} & set(large)
    host = train.replace(device="cpu")
    assert [memory.phases(SHAPE, host, 20, n, GIB)["update"]["engine weights"] for n in (1, 2)] == [0, weights]


@pytest.mark.parametrize(("vocabulary", "prompts", "gib"), [(1000, 16, 80), (152_000, 16, 80), (1000, 512, 6)])
@pytest.mark.parametrize("share", [None, 0.3])
def test_the_engine_keeps_what_the_plan_says_that_it_keeps(monkeypatch, vocabulary, prompts, gib, share):
    """Its own rule on its own cache, on a GPU that is not there; logits and numbers for sampling do not count."""
    config = Qwen2Config(**SMALL | {"vocab_size": vocabulary})
    options = {} if share is None else {"kv_bytes": int(share * 2**30)}
    train = run(device="cuda", dtype="bfloat16", prompts=prompts, group_size=64, max_tokens=400, eval_max_tokens=400,
                minibatches=1, engine_options=options)  # fmt: skip
    own = shape(config)
    monkeypatch.setattr(static_decoder, "budget", lambda device: int(static_decoder.SHARE * 0.9 * gib * GIB))
    properties = SimpleNamespace(total_memory=gib * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    made = []

    def decoder(model, most, capacity):
        cache = SimpleNamespace(nbytes=most * capacity * memory.kv_bytes(own, train))
        made.append((most, capacity))
        return SimpleNamespace(most=most, capacity=capacity, cache=cache)

    monkeypatch.setattr(static_decoder, "Decoder", decoder)
    card, eos = torch.device("cuda"), 1
    model = SimpleNamespace(config=config, device=card, dtype=torch.bfloat16, generation_config=None)
    engine = TorchEngine(model, eos, **options)
    engine._weights = "copy"
    engine._room(model, static_decoder.ladder(100 + 400), prompts * 64)
    rows, length = memory.decoded(own, train, 100, 1, gib * GIB)
    assert made == [(pytest.approx(rows, rel=0.02), length)]
    engine._hand_back()
    found = memory.phases(own, train, 100, 1, gib * GIB)["update"]
    assert ("KV cache" in found) == ("engine weights" in found) == (engine._decoder is not None)
    assert (engine._decoder is None) == (engine._weights is None)
    if "KV cache" in found:
        assert found["KV cache"] == rows * (length * memory.kv_bytes(own, train) + 2 * vocabulary)


def test_the_plan_says_how_the_decoder_keeps_its_graphs(monkeypatch):
    """1.5B, 512 responses: the cache is more than a twentieth of the card, and the update leaves room for it."""
    own, free = plan.shape(plan.architecture("Qwen2.5-1.5B")), 0.9 * 80 * GIB
    train = run(device="cuda", dtype="bfloat16", prompts=64, group_size=8, minibatches=8, max_tokens=1024,
                eval_max_tokens=1024, microbatch_tokens=8192, checkpoint_activations=True)  # fmt: skip
    size = plan.keepable(own, train, 256, 1, 80 * GIB, free)
    assert size == 512 * (1280 * memory.kv_bytes(own, train) + static_decoder.SAMPLED * 151_936)
    keeping = train.replace(engine_options={"kv_bytes": size})
    rows = [memory.decoded(own, changed, 256, 1, 80 * GIB)[0] for changed in (train, keeping)]
    assert rows == [512, 512]  # as many at once as before
    kept = [memory.phases(own, changed, 256, 1, 80 * GIB)["update"] for changed in (train, keeping)]
    assert ["KV cache" in parts for parts in kept] == [False, True]
    assert sum(kept[1].values()) <= free
    for other in (keeping, train.replace(device="cpu"), train.replace(engine="vllm")):
        assert plan.keepable(own, other, 256, 1, 80 * GIB, free) is None
    assert plan.keepable(own, train, 256, 1, 80 * GIB, sum(kept[1].values()) - 1) is None  # it would not fit
    assert plan.keepable(own, train.replace(prompts=8), 256, 1, 80 * GIB, free) is None  # small: it stays as it is
    planned = plan.Planned(plan.architecture("Qwen2.5-1.5B"), train, 256, 1)
    monkeypatch.setattr(plan, "entry", lambda name: planned)
    assert f"train.engine_options: {{kv_bytes: {size}}} keeps both" in plan.report("mine", 1, 80)


def test_the_proof_of_vllms_weights_is_counted():
    """At the update's own budget it takes less than the update: no graph is kept, and vLLM sleeps."""
    train = run(engine="vllm", device="cuda", dtype="bfloat16", max_tokens=101, microbatch_tokens=1000)
    assert memory.proof_pass(train, 50) == Pass(6 * 150, 6, 6 * 200, 6 * (100 * 150 + 2500))
    assert memory.proof_pass(train.replace(microbatch_tokens=10), 50).tokens == 150  # one response is never cut
    assert memory.proof_pass(train.replace(microbatch_tokens=None), 50).tokens == PASS_TOKENS // 150 * 150
    found = memory.phases(SHAPE, train, 50, 4, 1e9)
    assert set(found) == {"update", "rollout", "proof"}
    assert "KV cache" not in found["proof"]
    assert sum(found["proof"].values()) < sum(found["update"].values())
    assert set(memory.phases(SHAPE, run(), 50, 4, 1e9)) == {"update", "rollout"}


def test_decoding_is_counted_with_the_engines_own_bound(tiny):
    assert memory.DECODED == TorchEngine(tiny[0], 1).batch == 4096


LARGE = {"prompts": 512, "group_size": 16, "minibatches": 16, "max_tokens": 8192, "eval_max_tokens": 8192,
         "device": "cuda", "dtype": "bfloat16"}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "ranks", "gib", "changes"),
    [
        ("Qwen2.5-7B", 8, 80, {}),
        ("Qwen2.5-7B", 1, 80, {"engine": "vllm"}),
        ("Qwen2.5-1.5B", 1, 48, {"engine": "vllm", "engine_options": {"gpu_memory_utilization": 0.9}}),
        ("Qwen3-30B-A3B-Base", 32, 80, {"engine": "vllm"}),
    ],
)
def test_what_does_not_fit_is_refused_and_the_advice_makes_it_fit(model, ranks, gib, changes):
    config, train = plan.architecture(model), run(**LARGE, **changes)
    where = (2048, ranks, gib * GIB, gib * GIB)
    with pytest.raises(
        ValueError, match=rf"does not fit on {ranks} x .* GiB too much for the .*; it fits with"
    ) as caught:
        plan.check_fit(config, train, *where)
    text = str(caught.value)
    assert "\n" not in text
    assert f"{plan.shape(config).total / 1e9:.2f} B" in text
    options = dict(train.engine_options)
    for change in text.rpartition("it fits with ")[2].split(" and "):
        key, _, value = change.removeprefix("train.").partition(": ")
        if change.endswith(" GPUs"):
            where = (2048, int(change.removesuffix(" GPUs")), *where[2:])
        elif key.startswith("engine_options."):
            options[key.removeprefix("engine_options.")] = float(value) if "." in value else int(value)
        else:
            train = train.replace(**{key: {"true": True, "vllm": "vllm"}.get(value) or int(value)})
    plan.check_fit(config, train.replace(engine_options=options), *where)


def test_what_other_processes_hold_is_said():
    config, train = plan.architecture("Qwen2.5-7B"), run(**LARGE)
    with pytest.raises(ValueError, match=r"fit on 8 x 23\.0 GiB \(other processes hold 49\.0 of its 80\.0 GiB\): "):
        plan.check_fit(config, train, 2048, 8, 30 * GIB, 80 * GIB)


def test_processes_that_share_a_gpu_divide_it_and_do_not_report_each_other():
    """7B's 70.2 GiB of the paper's preset fit alone; half of the card is 36 GiB."""
    planned = plan.entry("paper-7b")
    plan.check_fit(planned.config, planned.train, planned.prompt, 8, 80 * GIB, 80 * GIB)
    with pytest.raises(ValueError, match="lower x") as caught:
        plan.check_fit(planned.config, planned.train, planned.prompt, 8, 80 * GIB, 80 * GIB, 2, "mine", "lower x")
    assert str(caught.value).startswith("mine: a qwen2 of 7.62 B parameters does not fit on 8 x 36.0 GiB (2 processes ")
    assert "lower PMD_WORKERS" in str(caught.value)
    assert "other processes" not in str(caught.value)


@pytest.mark.parametrize(("ranks", "looked_at"), [("1", "cuda:1"), ("8", "cuda:3")])
def test_the_gpu_that_is_looked_at_is_the_one_that_the_process_uses(monkeypatch, ranks, looked_at):
    seen = []
    monkeypatch.setenv("WORLD_SIZE", ranks)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(gpu, "check_device", lambda device, dtype: seen.append((device, dtype)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: seen.append(device) or (60 * GIB, 80 * GIB))
    train = run(device="cuda:1", dtype="bfloat16")
    config = Qwen2Config(**SMALL)
    said = gpu.check_gpu(config, train, 20)
    assert seen == [(looked_at, "bfloat16"), looked_at]
    assert said == f"{looked_at}: other processes hold 19.0 of its 80.0 GiB; the run has room in what is left"
    assert gpu.check_gpu(config, train.replace(device="cpu"), 20) is None
    assert len(seen) == 2


def test_the_regressions_of_the_experiments_are_planned_as_one_pass_each():
    """Every response of the whole batch, in fp32, whatever passes training makes."""
    planned = plan.entry("gpu")
    law, finite = planned.regressions["law"], planned.regressions["finite"]
    assert (law.dtype, law.prompts, law.group_size, law.device) == ("float32", 16, 32, "cuda")
    assert memory.largest_pass(law, 100, 1).responses == 16 * 32
    assert memory.largest_pass(finite, 100, 1).responses == 32 * 8
    said = plan.report("gpu", 1, 20)
    assert "GiB too much for the experiment law\nlower law.prompts, law.rollouts or law.max_tokens" in said
    assert not plan.entry("paper-7b").regressions


def test_what_no_setting_helps_says_so():
    config = plan.architecture("Qwen2.5-7B")
    with pytest.raises(ValueError, match="no setting makes it fit on up to 128 GPUs: take a smaller model"):
        plan.check_fit(config, run(**LARGE), 2048, 1, GIB, GIB)


SMALL = {"vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 352, "tie_word_embeddings": True}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


@pytest.mark.parametrize("precision", ["float32", "autocast", "sharded"])
@pytest.mark.parametrize("config", [Qwen2Config(**SMALL), Qwen3Config(**SMALL), Qwen3MoeConfig(**SMALL, **EXPERTS)])
def test_what_autograd_keeps_is_what_the_plan_counts(config, precision):
    """Every tensor saved for the backward pass, in the three precisions; FSDP2's is that of bf16 weights."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
    model = model.bfloat16() if precision == "sharded" else model
    model.compute_dtype = torch.float32 if precision == "float32" else torch.bfloat16
    ranks, dtype = (2 if precision == "sharded" else 1), str(model.compute_dtype).removeprefix("torch.")
    train = run(prompts=4 * ranks, group_size=8, minibatches=1, probe=1, max_tokens=65, dtype=dtype)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def note(x):
        if x.untyped_storage().data_ptr() not in weights:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        result = forward.log_probs(model, pack([[g] * 16 for g in range(4)], [[[r] * 65 for r in range(8)]] * 4))
    own, size = plan.shape(config), memory.largest_pass(train, 16, ranks)
    counted = memory.activations(own, train, ranks, size, backward=True) + 4 * len(result[0]) * config.vocab_size
    counted += memory.cast_weights(own, train, 1, backward=True) if precision == "autocast" else 0
    assert sum(x.nbytes() for x in saved.values()) == pytest.approx(counted, rel=0.05)


MEASURE = """
import json, os, re, sys, torch
from transformers import AutoModelForCausalLM, Qwen2Config
from pmd.model import forward
from pmd.harness.config import train_config
from pmd.scale import gpu, memory, plan
from pmd.model.attention import PACKED
from pmd.model.packing import pack

for again, width, layers, vocabulary in json.loads(sys.argv[1]):
    if os.fork() == 0:
        break  # each case is a process, of one that has loaded everything
    assert os.wait()[1] == 0
else:
    sys.exit()
torch.set_num_threads(1)
forward.CHUNK_BYTES = 16 * 2**20
config = Qwen2Config(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=6,
                     num_key_value_heads=2, intermediate_size=1024, tie_word_embeddings=True)
train = train_config("pmd-mean", 0, prompts=4, group_size=8, minibatches=1, probe=1, max_tokens=97,
                     microbatch_tokens=1600, checkpoint_activations=again)
prompts, responses = [[1] * 32, [2] * 32], [[[r] * 97 for r in range(8)]] * 2  # one of the minibatch's two passes

def resident(key):  # not getrusage, whose peak is inherited from the process that started this one
    with open("/proc/self/status") as file:
        return 1024 * int(re.search(key + r":\\s+(\\d+) kB", file.read())[1])

def backward(prompts, responses):
    log_p, entropy = forward.log_probs(model, pack(prompts, responses))
    log_p.sum().backward()

def fused(model):
    return torch.optim.AdamW(model.parameters(), fused=True)

first = torch.nn.Linear(8, 8)  # what autograd and the optimizer load at their first use is not the run's
first(torch.ones(1, 8)).sum().backward()
fused(first).step()
before = resident("VmRSS")
model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED)
if again:
    forward.checkpoint_activations(model)
optimizer = fused(model)
backward([[1]], [[[2]]])
optimizer.step()  # AdamW's moments are there, and with them gradients: as in the second pass of any later step
backward(prompts, responses)
optimizer.step()
assert memory.largest_pass(train, 32, 1).tokens == len(pack(prompts, responses).ids[0])
print(resident("VmHWM") - before, *memory.phases(plan.shape(config), train, 32, 1, 0)["update"].values())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_a_measured_update_takes_what_the_plan_says():
    """One update in fp32 on this CPU, activations kept or computed again; many layers, or a large head."""
    cases = [(False, 384, 4, 8192), (True, 384, 8, 8192), (False, 384, 3, 16384)]  # again, width, layers, vocabulary
    command = [sys.executable, "-c", MEASURE, json.dumps(cases)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}  # freed memory goes back to the system at once
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        measured, *parts = map(float, line.split())
        assert measured == pytest.approx(sum(parts), rel=0.15), case
        assert max(parts) < 0.75 * measured, case  # no part of it alone would do


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("recomputed", {"microbatch_tokens": 17_408, "checkpoint_activations": True}),
        ("recomputed, compiled", {"microbatch_tokens": 17_408, "checkpoint_activations": True, "compile": True}),
        ("nothing recomputed, compiled, passes of 9k tokens", {"microbatch_tokens": 8_704, "compile": True}),
    ],
)
def test_an_update_measured_on_a_gpu_takes_what_the_plan_says(variant, changes):
    """The peaks that `make gpu` measured at the 1.5B shape, with the settings of its section "sizes"."""
    lines = (ROOT / "benchmarks" / "speed" / "nvidia-h200.md").read_text(encoding="utf-8").splitlines()
    [value] = [line.split("|")[3] for line in lines if line.startswith(f"| sizes | 1.5B, {variant}: peak memory |")]
    settings = {"prompts": 8, "group_size": 8, "minibatches": 2, "probe": 1, "max_tokens": 1536} | changes
    config = train_config("pmd-mean", 1, device="cuda", dtype="bfloat16", eval_max_tokens=1536, **settings)
    parts = memory.phases(shape(architecture("Qwen2.5-1.5B")), config, 256, 1, 139 * GIB)["update"]
    planned = sum(size for name, size in parts.items() if name not in ("engine weights", "KV cache"))
    assert planned / GIB == pytest.approx(float(value.split()[0]), rel=0.1)


def test_the_command_prints_a_plan_and_refuses_what_it_does_not_know(capsys):
    main(["plan", "paper-7b", "--gpus", "16", "--memory", "80"])
    text = capsys.readouterr().out
    assert "7,615,616,512 parameters" in text
    assert "16 x 80 GiB" in text
    assert f"{512 * (2048 + 16 * 8192):,} tokens at most" in text
    assert "GiB a GPU in the proof:" in text
    assert "it fits in 72.0 GiB" in text
    main(["plan", "paper-7b", "--gpus", "1"])
    assert "it does not fit in 72.0 GiB" in capsys.readouterr().out
    for arguments, message in (
        (["paper-8b"], "plan: got 'paper-8b', must be an entry of scale or a preset: .*paper-7b"),
        (["paper-7b", "--memory", "0"], "--memory: got 0.0, must be > 0"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["plan", *arguments])


def test_the_readme_states_what_the_plan_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r" ([\d.]+) \(`pmd plan (\S+) --gpus (\d+) --memory (\d+)`\)", text)
    assert len(rows) == 5
    for stated, name, gpus, gib in rows:
        said = plan.report(name, int(gpus), float(gib))
        assert max(map(float, re.findall(r"^  sum +([\d.]+)$", said, re.M))) == pytest.approx(float(stated), abs=0.05)
        assert "it fits" in said


def test_a_model_that_is_neither_a_directory_nor_known_is_refused():
    with pytest.raises(
        ValueError, match=r"model: got 'models/none', must be a model directory or one of Qwen2\.5-1\.5B"
    ):
        plan.architecture("models/none")
