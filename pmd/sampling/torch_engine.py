"""Sample responses from any transformers causal LM in the process that trains it.

Each prompt is prefilled once, responses to it are computed once for as long as they are the same, keys and values live
in one preallocated cache, and finished responses are compacted away. On CUDA decoding has static shapes and is recorded
as CUDA graphs (pmd/sampling/static_decoder.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from pmd.model import ends
from pmd.model.attention import dense_mask
from pmd.model.forward import compute_type, precision
from pmd.model.sharding import sharded
from pmd.sampling import static_decoder
from pmd.sampling.choice import check_finite, choose, ended
from pmd.sampling.engine import Responses, Sampling, context


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
        """Advance by one token. `parent`, ascending, holds for each distinct continuation the row that it extends.

        A row's first continuation keeps the row's place, every further one gets a copy of the row at the end. Rows
        without a continuation stay unused until they are a fifth of the cache or it is full. Returns (for each row now
        in use the row it was, for each continuation its row).
        """
        again = F.pad(parent[1:] == parent[:-1], (1, 0))
        end = self.rows + int(again.sum())
        if len(parent) < 0.8 * end or end > self.most:
            self.keep(parent)
            return parent, torch.arange(len(parent), device=parent.device)
        before, place = torch.arange(self.rows, device=parent.device), self.rows - 1 + again.cumsum(0)
        self.add(parent[again])
        return torch.cat([before, parent[again]]), place.where(again, parent)


class TorchEngine:
    """Sample from a transformers causal LM in its own process; it always sees the model's present weights.

    A response ends with `eos` or any other of the ends that the model declares (pmd/model/ends.py).
    batch: the most responses that are decoded at once. static: decode in static shapes; by default on CUDA alone, where
    a step is a CUDA graph. kv_bytes: the most bytes that a static decoder's cache takes; the cache and its graphs are
    then kept from call to call. Without it the cache takes a share of the memory that is free at the call (on a CPU
    there is no bound), and on CUDA it is handed back after the call if it is large, so that the next call builds the
    graphs again, in seconds.

    A sharded policy, and for a static decoder one that computes in another type than its weights have, is sampled from
    a whole copy in the compute type, which takes the present weights at every call, in `handover_s` seconds. Of a
    sharded policy that is a collective: all ranks call `sample` together, and then sample each at its pace.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        eos: int | None,
        batch: int = 4096,
        static: bool | None = None,
        kv_bytes: float | None = None,
    ):
        self.model, self.ends, self.batch = model, ends.declared(model, eos), batch
        self.kv_bytes = None if kv_bytes is None else int(kv_bytes)
        self.static = model.device.type == "cuda" if static is None else static
        self.handover_s = 0.0
        self._weights: PreTrainedModel | None = None
        self._decoder: static_decoder.Decoder | None = None

    def sample(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, seed: int, first: int = 0
    ) -> Responses:
        """n responses to each prompt; see Engine. ValueError if a prompt is empty or does not fit into the model's
        context with its response, or if a static decoder has not the memory for a single response; FloatingPointError
        if the model's logits are not finite."""
        model = self._hand_over()
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("a prompt has no tokens")
        longest, most = max(map(len, prompts), default=0), context(model.config)
        if most is not None and longest + sampling.max_tokens > most:
            raise ValueError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} of its response exceed the model's {most}"
            )
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(first + len(prompts), n, sampling.max_tokens, generator=generator)[first:]
        uniform = uniform.to(model.device)
        with torch.inference_mode():
            if self.static and prompts:
                return self._sample_static(model, prompts, uniform.flatten(0, 1), n, sampling)
            step = max(1, self.batch // n)
            responses: Responses = []
            with precision(model):
                for i in range(0, len(prompts), step):
                    numbers = uniform[i : i + step].flatten(0, 1)
                    responses += decode(model, prompts[i : i + step], numbers, n, sampling, self.ends)
            return responses

    def _hand_over(self) -> PreTrainedModel:
        """The model to sample from: the policy, or a whole copy with its present weights in the compute type."""
        compute, device = compute_type(self.model), self.model.device
        if not sharded(self.model) and (compute == self.model.dtype or not self.static):
            return self.model
        began = time.perf_counter()
        self._weights = self._weights or static_decoder.replica(self.model, compute)
        static_decoder.refresh(self._weights, self.model)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.handover_s = time.perf_counter() - began
        return self._weights

    def _sample_static(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], uniform: Tensor, n: int, sampling: Sampling
    ) -> Responses:
        """The responses by pmd.sampling.static_decoder, as many at once as the cache holds.

        uniform: [P · n, max_tokens]. The rows of a step follow from this call alone, though the cache may have room for
        more: products round by their shapes, and a run that goes on must end with the bits that it would have had.
        """
        decoder = self._room(model, static_decoder.ladder(max(map(len, prompts)) + sampling.max_tokens), len(uniform))
        full, rows = min(len(uniform), decoder.most), []
        for some in torch.arange(len(uniform), device=uniform.device).split(full):
            numbers, of_row = uniform[some], some // n
            start, end = int(of_row[0]), int(of_row[-1]) + 1

            def pick(logits: Tensor, alive: Tensor, t: int, numbers: Tensor = numbers) -> Tensor:
                return choose(logits, numbers[alive.clamp_max(len(numbers) - 1), t], sampling)

            rows += static_decoder.decode(
                decoder, prompts[start:end], of_row - start, self.ends, pick, sampling.max_tokens, full
            )
        self._hand_back()
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    def _room(self, weights: PreTrainedModel, capacity: int, wanted: int) -> static_decoder.Decoder:
        """A decoder for so many tokens a response, and as many responses as wanted or as there is room for."""
        device = weights.device
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
        """Drop the decoder and the copy of the weights, unless they are to be kept."""
        device = self.model.device
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            if not static_decoder.stays(self._decoder.cache.nbytes, self.kv_bytes, memory):
                self._decoder = self._weights = None


def sampler(model: PreTrainedModel, eos: int | None) -> TorchEngine:
    """An engine for a process that only samples: on CUDA it keeps its cache and its graphs from call to call, because
    nothing else wants the memory."""
    room = static_decoder.budget(model.device) if model.device.type == "cuda" else None
    return TorchEngine(model, eos, kv_bytes=room)


# --- decoding in shapes that follow the responses ------------------------------------------------------------------


def prefilled(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], n: int, room: int, eos: int
) -> tuple[Tensor, KVCache, Tensor, Tensor]:
    """Left-padded prompts through the model once: next logits, cache, mask and position of each prompt."""
    width = max(map(len, prompts))
    logits, cache, pad = static_decoder.prefill(model, prompts, width, eos)
    real = torch.arange(width, device=model.device) >= pad[:, None]
    bias = dense_mask(F.pad(real, (0, room), value=True)[:, None, None], model.dtype)
    return logits, KVCache(cache, n * len(prompts), width + room), bias, width - pad


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor,
    n: int,
    sampling: Sampling,
    ends: Sequence[int],
) -> Responses:
    """n responses to each prompt, each up to one of `ends`; uniform: [P · n, max_tokens].

    Responses that are the same so far share a row of the cache: they need one computation of what comes next.
    """
    logits, cache, bias, position = prefilled(model, prompts, n, sampling.max_tokens, ends[0])
    last = torch.tensor(ends, device=uniform.device)
    head, vocabulary = model.get_output_embeddings(), logits.shape[1]
    tokens = torch.full(uniform.shape, -1, device=uniform.device)
    alive = torch.arange(len(uniform), device=uniform.device)  # the responses that have not ended
    row = alive // n  # and the row of the cache where each of them stands
    for t in range(sampling.max_tokens):
        token = choose(logits, uniform[alive, t], sampling, row)
        check_finite(token, vocabulary, model.dtype)
        tokens[alive, t] = token
        goes = ~ended(token, last)
        alive, pair = alive[goes], (row * vocabulary + token)[goes]
        if len(alive) == 0 or t + 1 == sampling.max_tokens:
            break
        pair, which = pair.unique(return_inverse=True)
        origin, place = cache.fork(pair // vocabulary)
        bias, position, row = bias[origin], position[origin], place[which]
        ids = row.new_zeros(cache.rows).index_copy_(0, place, pair % vocabulary)
        hidden = model.base_model(
            input_ids=ids[:, None],
            attention_mask=bias[..., : cache.length + 1],
            position_ids=(position + t)[:, None],
            past_key_values=cache,
        ).last_hidden_state
        logits = head(hidden[:, -1])
    rows = [row[: row.index(-1)] if -1 in row else row for row in tokens.tolist()]
    return [rows[i : i + n] for i in range(0, len(rows), n)]
