"""The vLLM engine for real, on a CPU: `make test-vllm` installs vLLM in an environment of its own and runs this."""

from __future__ import annotations

import gc
import importlib.util
import warnings

import numpy as np
import pytest
import torch

from pmd import params
from pmd.evaluators.intervals import t_interval
from pmd.files import read_jsonl
from pmd.harness.config import train_config
from pmd.model.forward import log_probs
from pmd.model.loading import load_policy, save_policy
from pmd.model.packing import pack
from pmd.problems.verifier import Verdict
from pmd.sampling.engine import Sampling
from pmd.sampling.torch_engine import TorchEngine
from pmd.scale import vllm_engine
from pmd.scale.vllm_engine import TOLERANCE, VLLMEngine, measure_drift
from pmd.trainer.loop import train
from tests.vllm.ranks import EOS, PROMPTS, SMALL, build

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"
)


@pytest.fixture(scope="session")
def tiny():
    """In place of the common one."""
    return build()


_shared: list[VLLMEngine] = []


@pytest.fixture
def engine():
    """One engine for the tests that start no other; its weights and settings are new ones in each."""
    model, _ = build()
    if not _shared:
        _shared.append(VLLMEngine(model, EOS, **SMALL))
    _shared[0].model.load_state_dict(model.state_dict())
    _shared[0].checked, _shared[0].handovers = 64, 0
    return _shared[0]


@pytest.fixture
def others():
    """For a test that starts engines of its own: each ends the one before."""
    _shared.clear()
    yield
    _shared.clear()


def perturb(model, size: float) -> None:
    """Add noise to every weight, in place, as an optimizer step does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p.dtype))


# --- the protocol --------------------------------------------------------------------------------------------------


def test_shapes_ends_and_lengths(engine):
    got = engine.sample(PROMPTS, 8, Sampling(6), 0)
    assert [len(group) for group in got] == [8, 8, 8]
    flat = [response for group in got for response in group]
    assert all(1 <= len(response) <= 6 for response in flat)
    assert all(EOS not in response[:-1] for response in flat)
    assert all(response[-1] == EOS for response in flat if len(response) < 6)
    assert any(response[-1] == EOS for response in flat)
    assert any(len(response) == 6 for response in flat)
    assert all(type(token) is int for response in flat for token in response)


@pytest.mark.parametrize("sampling", [Sampling(8), Sampling(8, 0.7, 0.8)])
def test_the_same_seed_and_weights_give_the_same_responses_whatever_came_before(engine, sampling):
    first = engine.sample(PROMPTS, 6, sampling, 2**62 + 5)
    engine.sample(PROMPTS[::-1], 3, sampling, 6)
    assert engine.sample(PROMPTS, 6, sampling, 2**62 + 5) == first
    assert engine.sample(PROMPTS, 6, sampling, 6) != first
    perturb(engine.model, 0.1)
    assert engine.sample(PROMPTS, 6, sampling, 2**62 + 5) != first


def test_every_declared_end_ends_a_response(engine):
    """Tokens 5 and 7 beside the end of sequence; vLLM's own notion of an end plays no part."""
    before = engine.sample(PROMPTS, 40, Sampling(8), 0)
    engine.ends = [EOS, 5, 7]
    try:
        found = [response for group in engine.sample(PROMPTS, 40, Sampling(8), 0) for response in group]
    finally:
        engine.ends = [EOS]
    assert {response[-1] for response in found if len(response) < 8} == {EOS, 5, 7}
    assert not [token for response in found for token in response[:-1] if token in (EOS, 5, 7)]
    assert any(5 in response[:-1] for group in before for response in group)


def test_temperature_zero_is_greedy_decoding(engine):
    """n times the same response, and the one that PyTorch's engine finds."""
    perturb(engine.model, 0.1)
    found, scores = engine.sample_scored(PROMPTS, 3, Sampling(8, 0), 0)
    assert found == TorchEngine(engine.model, EOS).sample(PROMPTS, 3, Sampling(8, 0), 1)
    assert [[len(row) for row in group] for group in scores] == [[len(row) for row in group] for group in found]
    assert len({tuple(group[0]) for group in found}) > 1


def test_weights_that_are_no_numbers_are_an_error(engine):
    with torch.no_grad():
        engine.model.base_model.norm.weight.fill_(float("nan"))
    with pytest.raises(
        RuntimeError, match=r"nan nats .* the model's logits are NaN or infinite in float32: its weights"
    ):
        engine.sample(PROMPTS, 2, Sampling(4), 0)


def test_a_share_samples_what_it_does_in_the_whole(engine):
    whole = engine.sample(PROMPTS, 8, Sampling(8), 3)
    assert engine.sample(PROMPTS[1:], 8, Sampling(8), 3, first=1) == whole[1:]
    assert engine.sample(PROMPTS[:2], 8, Sampling(8), 3) == whole[:2]
    assert engine.sample(PROMPTS[1:], 8, Sampling(8), 3) != whole[1:]
    assert engine.sample([], 8, Sampling(8), 3, first=3) == []


@pytest.mark.parametrize("sampling", [Sampling(8), Sampling(8, 0.7, 0.8)])
def test_scores_are_the_trainers_log_probs_at_temperature_one(engine, sampling):
    """Of every response, though only one is compared."""
    perturb(engine.model, 0.1)
    engine.checked = 1
    responses, scores = engine.sample_scored(PROMPTS, 8, sampling, 3)
    assert engine.drift.tokens == len(responses[0][0])
    assert responses == engine.sample(PROMPTS, 8, sampling, 3)
    assert [[len(row) for row in group] for group in scores] == [[len(row) for row in group] for group in responses]
    with torch.no_grad():
        log_p, _ = log_probs(engine.model, pack(PROMPTS, responses))
    assert torch.tensor([x for group in scores for row in group for x in row]).sub(log_p).abs().max() < 1e-5


def test_the_responses_to_a_prompt_differ_and_equal_prompts_get_others(engine):
    got = engine.sample([PROMPTS[1]] * 2, 16, Sampling(8), 0)
    assert len({tuple(response) for group in got for response in group}) > 24


@pytest.mark.usefixtures("others")
def test_a_second_start_samples_the_same_and_ends_the_first():
    """As a resumed run starts it; what is left of the first engine does not disturb the second."""
    engine = VLLMEngine(build()[0], EOS, **SMALL)
    first = engine.sample(PROMPTS, 6, Sampling(8), 4)
    again = VLLMEngine(engine.model, EOS, **SMALL)
    assert again.sample(PROMPTS, 6, Sampling(8), 4) == first
    del engine
    gc.collect()
    assert again.sample(PROMPTS, 6, Sampling(8), 4) == first


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (0.7, 0.6)])
def test_tokens_come_at_the_probability_of_the_policy(engine, temperature, top_p):
    """First tokens of 4,000 responses against the exact distribution; χ² over the possible tokens."""
    n = 4000
    perturb(engine.model, 0.3)  # far from uniform
    got = np.bincount(
        [r[0] for r in engine.sample(PROMPTS[:1], n, Sampling(2, temperature, top_p), 1)[0]], minlength=64
    )
    with torch.no_grad():
        every = [[[token, EOS] for token in range(engine.model.config.vocab_size)]]
        log_p, _ = log_probs(engine.model, pack(PROMPTS[:1], every), temperature)
    p = log_p[::2].double().exp().numpy()
    order = np.argsort(-p)
    p[order[np.cumsum(p[order]) - p[order] >= top_p]] = 0
    expected = n * p / p.sum()
    assert got.sum() == n
    assert not got[: len(p)][p == 0].any()
    often = expected >= 5
    chi2 = (((got[: len(p)] - expected) ** 2) / np.where(often, expected, 1))[often].sum()
    assert chi2 < often.sum() - 1 + 4 * np.sqrt(2 * often.sum())


def test_a_prompt_that_leaves_no_room_is_refused(engine):
    with pytest.raises(ValueError, match=r"at most 250 "):
        engine.sample([[3] * 251], 1, Sampling(6), 0)
    assert len(engine.sample([[3] * 250], 1, Sampling(6), 0)[0][0]) <= 6


# --- the hand-over -------------------------------------------------------------------------------------------------


def test_new_weights_are_used_and_proven(engine):
    """After a change the log-probs agree with the new weights and not with the old."""
    engine.sample(PROMPTS, 16, Sampling(8), 0)
    assert engine.drift.largest < 1e-5
    model = engine.model
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    perturb(model, 0.05)
    tokens = engine.sample(PROMPTS, 16, Sampling(8), 0)
    assert engine.handovers == 2
    assert engine.drift.largest < 1e-5
    assert engine.drift.tokens == sum(len(response) for group in tokens for response in group)
    prompts = [prompt for prompt in PROMPTS for _ in range(16)]
    flat, theirs = vllm_engine.generate(engine.llm, PROMPTS, 16, Sampling(8), 0, [EOS], {0, 1, 2})
    assert measure_drift(model, prompts, flat, theirs).mean < 1e-5
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(old[name])
    assert measure_drift(model, prompts, flat, theirs).mean > 100 * TOLERANCE[torch.float32]


def test_a_step_of_the_trainers_optimizer_is_handed_over(engine):
    """Its fused kernel leaves no trace in the weights' version counters."""
    tokens = engine.sample(PROMPTS, 8, Sampling(4), 0)
    optimizer = torch.optim.AdamW(engine.model.parameters(), 0.1, fused=True)
    log_p, _ = log_probs(engine.model, pack(PROMPTS, [[[4, 1]]] * 3))
    (-log_p.mean()).backward()
    optimizer.step()
    assert engine.sample(PROMPTS, 8, Sampling(4), 0) != tokens
    assert engine.drift.largest < 1e-5


@pytest.mark.parametrize("sampling", [Sampling(6), Sampling(6, 0.7, 0.7)])
def test_a_hand_over_that_was_left_out_is_an_error(engine, sampling, monkeypatch):
    """One small optimizer-sized change is enough; the weights vLLM still holds are the ones before it."""
    engine.sample(PROMPTS, 4, sampling, 0)
    perturb(engine.model, 1e-3)
    monkeypatch.setattr(type(engine.llm), "collective_rpc", lambda *_, **__: None)
    wrong = r"hand-over \d+: .* nats .* tokens\).* tolerance 0\.0001"
    with pytest.raises(RuntimeError, match=wrong) as caught:
        engine.sample(PROMPTS, 4, sampling, 0)
    assert "\n" not in str(caught.value)


def test_keys_and_values_of_old_weights_are_forgotten(engine):
    """A prompt longer than a block of the prefix cache, sampled before and after a change."""
    long = [[3 + i % 10 for i in range(200)]]
    engine.sample(long, 4, Sampling(6), 0)
    perturb(engine.model, 0.05)
    engine.sample(long, 4, Sampling(6), 0)
    assert engine.drift.largest < 1e-5


def test_only_so_many_responses_are_compared(engine):
    engine.checked = 5
    flat = [response for group in engine.sample(PROMPTS, 16, Sampling(6), 0) for response in group]
    assert engine.drift.tokens == sum(len(flat[i]) for i in (0, 10, 20, 30, 40))


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_within_its_tolerance(tiny_dir, dtype):
    model, tokenizer = load_policy(tiny_dir, dtype=dtype)
    engine = VLLMEngine(model, tokenizer.eos_token_id, **SMALL)
    for size in (0.0, 0.05):
        perturb(model, size)
        engine.sample(PROMPTS, 16, Sampling(8), 0)
        assert 0 < engine.drift.mean < TOLERANCE[model.dtype] / 3


@pytest.mark.usefixtures("others")
def test_a_policy_of_fp32_weights_that_computes_in_bfloat16_is_sampled_in_bfloat16(tiny_dir):
    model, tokenizer = load_policy(tiny_dir, compute="bfloat16")
    engine = VLLMEngine(model, tokenizer.eos_token_id, **SMALL)
    assert engine.llm.model_config.dtype == torch.bfloat16
    for size in (0.0, 0.05):
        perturb(model, size)
        engine.sample(PROMPTS, 16, Sampling(8), 0)
        assert 1e-5 < engine.drift.mean < TOLERANCE[torch.bfloat16] / 3


def test_the_process_keeps_its_own_thread_setting(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.set_num_threads(2)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)


# --- a run ---------------------------------------------------------------------------------------------------------

COMMITTED = params.load()
RUN = {"steps": 4, "prompts": 8, "group_size": 8, "minibatches": 4, "probe": 2, "max_tokens": 8, "eval_every": 2,
       "eval_k": 4, "eval_max_tokens": 8, "checkpoint_every": 2, "lr": 3e-3, "warmup": 1, "tau": 0.2}  # fmt: skip
PROBLEMS = [{"id": f"p{i}", "prompt": f"{i}+1=", "ground_truth": str(i + 1), "difficulty": 2} for i in range(20)]
SETS = {"val": PROBLEMS[:8]}


@pytest.fixture
def seven(monkeypatch):
    """Reward 1 for a response that begins with `7`: 1 in 16 at first."""

    def verify(rules, responses, golds, ended):
        return [Verdict(text, text[:1] == "7", float(text[:1] == "7"), False) for text in responses]

    monkeypatch.setattr("pmd.sampling.scoring.verify", verify)


def run(base, out, engine, seed: int = 1, **changes):
    config = train_config("pmd-mean", seed, COMMITTED, **(RUN | changes))
    return train(config, base, PROBLEMS, SETS, out, engine=engine, progress=False)


def vllm(model, eos):
    return VLLMEngine(model, eos, **SMALL)


@pytest.mark.usefixtures("others")
def test_a_run_reaches_the_accuracy_of_the_torch_engine(tiny_dir, tmp_path, seven):
    """Four seeds each: the 95 % interval of the difference holds 0 and is narrow, and both have learnt."""
    accuracy = {"torch": [], "vllm": []}
    for name, engine in (("torch", TorchEngine), ("vllm", vllm)):
        for seed in range(4):
            out = tmp_path / f"{name}{seed}"
            accuracy[name].append(run(tiny_dir, out, engine, seed, steps=20, eval_every=20, eval_k=64)["val_last"])
    first = [row["reward"] for s in range(4) for row in read_jsonl(tmp_path / f"vllm{s}" / "log.jsonl")[:2]]
    assert np.mean(first) < 0.3
    assert min(np.mean(values) for values in accuracy.values()) > 0.8
    difference = t_interval(np.subtract(accuracy["vllm"], accuracy["torch"]))
    assert difference.low <= 0 <= difference.high
    assert difference.high - difference.low < 0.3


@pytest.mark.usefixtures("others")
def test_an_engine_that_dies_ends_the_run_in_one_line_and_the_run_goes_on(tiny_dir, tmp_path, seven, monkeypatch):
    """It dies in step 4; the checkpoint of step 2 is whole, and the resumed run ends with an unbroken one's bits."""
    run(tiny_dir, tmp_path / "whole", vllm)
    out, built = tmp_path / "broken", []

    def doomed(model, eos):
        engine = vllm(model, eos)
        built.append(engine)
        executor, execute = engine.llm.llm_engine.model_executor, engine.llm.llm_engine.model_executor.execute_model

        def dying(*args, **kwargs):
            if (out / "log.jsonl").exists() and len(read_jsonl(out / "log.jsonl")) == 3:
                raise MemoryError("the device\nis gone")
            return execute(*args, **kwargs)

        executor.execute_model = dying
        return engine

    with pytest.raises(RuntimeError, match=r"vLLM failed while sampling \(.*the device is gone.*checkpoint") as caught:
        run(tiny_dir, out, doomed)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="has failed before"):
        built[0].sample(PROMPTS, 1, Sampling(2), 0)
    assert (out / "checkpoint-000002" / "state.json").exists()
    assert not (out / "result.json").exists()
    run(tiny_dir, out, vllm)
    for name in ("log.jsonl", "eval.jsonl", "result.json", "last/model.safetensors", "best/model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.usefixtures("others")
def test_a_benchmark_runs_with_it(tiny, tmp_path, monkeypatch):
    from pmd.evaluators import benchmark

    save_policy(*tiny, tmp_path / "model")
    values = {"model": str(tmp_path / "model"), "against": str(tmp_path / "model"), "problems": "x", "limit": None,
              "engine": "vllm", "device": "cpu", "dtype": "float32", "k": 4, "temperature": 1.0, "top_p": 0.7,
              "max_tokens": 6, "max_prompt_tokens": 64, "seed": 0}  # fmt: skip
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    config = params.read_entry(benchmark.Benchmark, "benchmark", {"x": values}, "x")
    samples, _ = benchmark.sample(config, tmp_path / "model", PROBLEMS, tmp_path / "work")
    assert len(samples) == 80
