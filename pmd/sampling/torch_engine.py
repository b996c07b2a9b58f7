"""Rollouts: sample responses from the policy.

An engine turns prompts into responses; the trainer and the evaluator know only the protocol. `TorchEngine` samples
from any transformers causal LM: each prompt is prefilled once, responses to it are computed once for as long as they
are the same, keys and values live in one preallocated cache, and finished responses are compacted away. On CUDA it
decodes in static shapes, by CUDA graphs (pmd/sampling/static_decoder.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from pmd.model.forward import precision
from pmd.sampling import static_decoder

Responses = list[list[list[int]]]
"""[prompt][sample] -> token ids; a response that ended by itself ends with the end-of-sequence token."""


@dataclass(frozen=True)
class Sampling:
    """How to sample: at most `max_tokens` tokens, at this temperature, from the smallest set of mass `top_p`."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}, must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, must be > 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, must be in (0, 1]")


class Engine(Protocol):
    """Whatever samples responses: `n` to each prompt, the same ones for the same seed and weights.

    first: how many prompts of a larger batch stand before these; they get the random numbers they have in that batch.
    """

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> Responses: ...


class KVCache(DynamicCache):
    """Keys and values in preallocated memory: room for `most` sequences of `capacity` tokens, `rows` of them in use."""

    def __init__(self, prefill: DynamicCache, most: int, capacity: int):
        super().__init__()
        self.length, self.most = prefill.get_seq_length(), most
        self.rows = len(prefill.layers[0].keys)
        self.memory = [self._room(layer, capacity) for layer in prefill.layers]

    def _room(self, layer, capacity: int) -> list[Tensor]:
        room = []
        for x in (layer.keys, layer.values):
            _, heads, _, d = x.shape
            # under autocast the rotary embedding makes keys fp32; values have the type that attention computes in
            room.append(x.new_empty(self.most, heads, capacity, d, dtype=layer.values.dtype))
            room[-1][: self.rows, :, : self.length] = x
        return room

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append one token's key and value; return views of all so far. The last layer advances the length."""
        keys, values = (memory[: self.rows] for memory in self.memory[layer_idx])
        end = self.length + 1
        keys[:, :, self.length : end], values[:, :, self.length : end] = key, value
        if layer_idx == len(self.memory) - 1:
            self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in this order; one may be named more than once."""
        for memory in chain.from_iterable(self.memory):
            memory[: len(rows), :, : self.length] = memory[:, :, : self.length].index_select(0, rows)
        self.rows = len(rows)

    def add(self, rows: Tensor) -> None:
        """Go on with a copy of each of these rows behind all others."""
        end = self.rows + len(rows)
        for memory in chain.from_iterable(self.memory):
            memory[self.rows : end, :, : self.length] = memory[:, :, : self.length].index_select(0, rows)
        self.rows = end

    def fork(self, parent: Tensor) -> tuple[Tensor, Tensor]:
        """Go on with the continuations of rows, which `parent`, ascending, names once for each.

        Returns the row that every row now in use was, and the row that each continuation has become: the first of its
        parent stays there, others are added; rows without any stay unused, until they are too many.
        """
        again = F.pad(parent[1:] == parent[:-1], (1, 0))
        end = self.rows + int(again.sum())
        if len(parent) < 0.8 * end or end > self.most:
            self.keep(parent)
            return parent, torch.arange(len(parent), device=parent.device)
        before, place = torch.arange(self.rows, device=parent.device), self.rows - 1 + again.cumsum(0)
        self.add(parent[again])
        return torch.cat([before, parent[again]]), place.where(again, parent)


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling, row: Tensor | None = None) -> Tensor:
    """Inverse-CDF sampling: [R, V] logits and S uniform numbers -> [S] token ids, each from its row (default: its own).

    The uniform numbers are drawn per response beforehand, so a response does not depend on which others are alive.
    """
    p = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        p = p.scatter(1, index, ordered.where(before < sampling.top_p, 0.0))
    cdf = p.cumsum(-1) if row is None else p.cumsum(-1)[row]
    total = cdf[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not pick beyond the last possible token
    token = torch.searchsorted(cdf, torch.minimum(uniform[:, None] * total, below), right=True)[:, 0]
    return token.clamp_max(p.shape[-1] - 1)  # of logits that are not numbers: the loss will say so


def context(config: PreTrainedConfig) -> int | None:
    """The most tokens, prompt and response together, that a model was made for; None if its configuration is silent."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


class TorchEngine:
    """Sample from a transformers causal LM in its own process; it always sees the model's present weights.

    batch: bounds the responses decoded at once. static: decode in static shapes; by default on CUDA alone, where a step
    is a CUDA graph. Such a decoder has weights of its own if the policy computes in another type than it keeps them in;
    they are refreshed at every call, in `handover_s` seconds. Its cache takes at most kv_bytes, by default a share of
    the memory that is free at the call (on a CPU there is no bound then). A cache bounded by kv_bytes is kept for the
    next call, and so are its graphs; any other on CUDA is handed back if it is large.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: int,
        batch: int = 4096,
        static: bool | None = None,
        kv_bytes: int | None = None,
    ):
        self.model, self.eos, self.batch, self.kv_bytes = model, eos, batch, kv_bytes
        self.static = model.device.type == "cuda" if static is None else static
        self.handover_s = 0.0
        self._weights: PreTrainedModel | None = None
        self._decoder: static_decoder.Decoder | None = None

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> Responses:
        """n responses to each prompt; see Engine. ValueError if a prompt is empty or does not fit into the model's
        context with its response, or if a static decoder has not the memory for a single response."""
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("a prompt has no tokens")
        longest, most = max(map(len, prompts), default=0), context(self.model.config)
        if most is not None and longest + sampling.max_tokens > most:
            raise ValueError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} of its response exceed the model's {most}"
            )
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(first + len(prompts), n, sampling.max_tokens, generator=generator)[first:]
        uniform = uniform.to(self.model.device)
        if self.static and prompts:
            return self._sample_static(prompts, uniform.flatten(0, 1), n, sampling)
        step = max(1, self.batch // n)
        responses: Responses = []
        with precision(self.model):
            for i in range(0, len(prompts), step):
                responses += self._decode(prompts[i : i + step], uniform[i : i + step].flatten(0, 1), n, sampling)
        return responses

    def _sample_static(
        self, prompts: Sequence[Sequence[int]], uniform: Tensor, n: int, sampling: Sampling
    ) -> Responses:
        """The responses by pmd.sampling.static_decoder, as many at once as the cache holds.

        uniform: [P · n, max_tokens].
        """
        decoder = self._room(static_decoder.ladder(max(map(len, prompts)) + sampling.max_tokens), len(uniform))
        rows: list[list[int]] = []
        for some in torch.arange(len(uniform), device=uniform.device).split(decoder.most):
            numbers, of_row = uniform[some], some // n
            start, end = int(of_row[0]), int(of_row[-1]) + 1

            def pick(logits: Tensor, alive: Tensor, t: int, numbers: Tensor = numbers) -> Tensor:
                return choose(logits, numbers[alive.clamp_max(len(numbers) - 1), t], sampling)

            rows += static_decoder.decode(
                decoder, prompts[start:end], of_row - start, self.eos, pick, sampling.max_tokens
            )
        self._hand_back()
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    def _hand_over(self) -> PreTrainedModel:
        """The model to decode with: the policy, or a copy in the type of the products with its present weights."""
        began = time.perf_counter()
        compute, device = getattr(self.model, "compute_dtype", self.model.dtype), self.model.device
        if compute == self.model.dtype:
            return self.model
        self._weights = self._weights or static_decoder.replica(self.model, compute)
        static_decoder.refresh(self._weights, self.model)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.handover_s = time.perf_counter() - began
        return self._weights

    def _room(self, capacity: int, wanted: int) -> static_decoder.Decoder:
        """A decoder with the present weights for that many tokens, and as many responses as wanted or as there is room
        for."""
        weights, device = self._hand_over(), self.model.device
        old = self._decoder
        capacity, most = max(capacity, old.capacity if old else 0), min(wanted, self.batch)
        size = static_decoder.row_bytes(weights.config, capacity, weights.dtype)
        room = self.kv_bytes
        if room is None and device.type == "cuda":
            room = static_decoder.budget(device) + (old.cache.nbytes if old else 0)
        if room is not None:
            most = min(most, room // size)
            if most < 1:
                raise ValueError(
                    f"decoding a response of {capacity} tokens takes {size / 2**20:.1f} MiB and {room / 2**20:.1f} are "
                    f"to be had on {device}; lower max_tokens, or raise kv_bytes if it is set"
                )
        if old is None or old.capacity < capacity or old.most < most:
            self._decoder = old = None  # its memory goes first
            self._decoder = static_decoder.Decoder(weights, most, capacity)
        return self._decoder

    def _hand_back(self) -> None:
        """Drop the decoder and weights of its own, unless they are to be kept."""
        device = self.model.device
        if self.kv_bytes is None and device.type == "cuda":
            small = static_decoder.KEPT * torch.cuda.get_device_properties(device).total_memory
            if self._decoder.cache.nbytes > small:
                self._decoder = self._weights = None

    def _prefill(self, prompts: Sequence[Sequence[int]], n: int, room: int) -> tuple[Tensor, KVCache, Tensor, Tensor]:
        """Left-padded prompts through the model once: next logits, cache, mask and position of each prompt."""
        width = max(map(len, prompts))
        logits, cache, pad = static_decoder.prefill(self.model, prompts, width, self.eos)
        real = torch.arange(width, device=self.model.device) >= pad[:, None]
        seen = F.pad(real, (0, room), value=True)[:, None, None]
        bias = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device).masked_fill(~seen, float("-inf"))
        return logits, KVCache(cache, n * len(prompts), width + room), bias, width - pad

    def _decode(self, prompts: Sequence[Sequence[int]], uniform: Tensor, n: int, sampling: Sampling) -> Responses:
        """Responses that are the same so far share a row of the cache: they need one computation of what comes next."""
        logits, cache, bias, position = self._prefill(prompts, n, sampling.max_tokens)
        head, vocabulary = self.model.get_output_embeddings(), logits.shape[1]
        tokens = torch.full(uniform.shape, -1, device=uniform.device)
        alive = torch.arange(len(uniform), device=uniform.device)  # the responses that have not ended
        row = alive // n  # and the row of the cache where each of them stands
        for t in range(sampling.max_tokens):
            token = choose(logits, uniform[alive, t], sampling, row)
            tokens[alive, t] = token
            goes = token != self.eos
            alive, pair = alive[goes], (row * vocabulary + token)[goes]
            if len(alive) == 0 or t + 1 == sampling.max_tokens:
                break
            pair, which = pair.unique(return_inverse=True)
            origin, place = cache.fork(pair // vocabulary)
            bias, position, row = bias[origin], position[origin], place[which]
            ids = row.new_zeros(cache.rows).index_copy_(0, place, pair % vocabulary)
            hidden = self.model.base_model(
                input_ids=ids[:, None],
                attention_mask=bias[..., : cache.length + 1],
                position_ids=(position + t)[:, None],
                past_key_values=cache,
            ).last_hidden_state
            logits = head(hidden[:, -1])
        rows = [row[: row.index(-1)] if -1 in row else row for row in tokens.tolist()]
        return [rows[i : i + n] for i in range(0, len(rows), n)]
