"""Decoding in static shapes, so that a step can be a CUDA graph: launched once instead of kernel by kernel.

A step decodes the first `rows` sequences of a cache in fixed memory and looks at its first `end` places. Whatever
changes from step to step stands in tensors, so a step recorded once for (rows, end) is right whenever it is replayed,
with the weights that the model has then. Few pairs occur: `rows` is halved as sequences end, and `end` takes four
values between a power of two and the next. The step is the same on every device; only `capture` needs CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from pmd.model.attention import PACKED, dense_mask
from pmd.model.device import available
from pmd.model.sharding import allocate, full_weights
from pmd.sampling.choice import check_finite, ended

PREFILL = 8192
"""Tokens of a prefill pass, padding included. Its mask holds all pairs of places of each prompt: PREFILL times the
longest prompt's length in all, or that length squared if it is more."""

KEPT = 1 / 20
"""Share of a device's memory below which a cache and its graphs stay between calls; more is handed back to training."""

SHARE = 0.8
"""Share of a device's free memory that a cache may take; the rest is for activations, logits and sampling."""

SAMPLED = 40
"""Bytes of a token of the vocabulary in `pmd.sampling.choice.choose`, counted generously."""

CHECK = 16
"""Steps between two looks at which sequences have ended: each look waits for the device."""


# --- sizes ---------------------------------------------------------------------------------------------------------


def ladder(length: int) -> int:
    """The next of the lengths 128, 256, 384, 512, 640, … 1024, 1280, …: from 512 on at most a quarter longer."""
    unit = max(128, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // unit) * unit


def bucket(rows: int, most: int) -> int:
    """The smallest of most, most/2, most/4, … (rounded down) that holds so many rows."""
    while most // 2 >= rows:
        most //= 2
    return most


def row_bytes(config: PreTrainedConfig, capacity: int, dtype: torch.dtype) -> int:
    """Bytes of one sequence of `capacity` tokens: its keys and values, its logits and what sampling makes of them."""
    layers, heads, d = _shape(config)
    return 2 * layers * heads * capacity * d * dtype.itemsize + SAMPLED * config.vocab_size


def stays(nbytes: float, kv_bytes: float | None, memory: float) -> bool:
    """Does a cache whose keys and values take so many bytes stay on a GPU between calls, with its graphs and the copy
    of the weights? kv_bytes: the engine's option; memory: bytes of the GPU."""
    return kv_bytes is not None or nbytes <= KEPT * memory


def _shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Layers, key heads and their width."""
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    of_queries = 1 if getattr(config, "multi_query", False) else config.num_attention_heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or of_queries, d


def budget(device: torch.device) -> int:
    """Bytes that a cache may take now: a share of what is free on the device or held by PyTorch without use."""
    return int(SHARE * available(device)[0])


# --- the step ------------------------------------------------------------------------------------------------------


class StaticCache(DynamicCache):
    """Keys and values in memory that never moves: per layer two tensors [most, key heads, capacity, d].

    A step writes its tokens' at `place` [1] and sees the first `end` places of the first `rows` sequences.
    """

    def __init__(self, config: PreTrainedConfig, most: int, capacity: int, dtype: torch.dtype, device: torch.device):
        super().__init__()
        layers, heads, d = _shape(config)
        self.memory = [torch.zeros(2, most, heads, capacity, d, dtype=dtype, device=device) for _ in range(layers)]
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.rows, self.end = most, capacity
        self.nbytes = sum(memory.nbytes for memory in self.memory)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write one token a sequence; return views of all that the step may look at."""
        keys, values = self.memory[layer_idx][:, : self.rows, :, : self.end]
        keys.index_copy_(2, self.place, key.to(keys.dtype))
        values.index_copy_(2, self.place, value.to(values.dtype))
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.end - 1

    def keep(self, chosen: Tensor, length: int) -> None:
        """Move these sequences' first `length` places to the front, in this order."""
        for memory in self.memory:
            memory[:, : len(chosen), :, :length] = memory[:, chosen, :, :length]


@dataclass
class State:
    """What a step reads beside the cache: each row's last token [most] and the padding before its prompt [most]."""

    token: Tensor
    pad: Tensor


def step(model: PreTrainedModel, cache: StaticCache, state: State, rows: int, end: int) -> Tensor:
    """Logits [rows, V] of the token after `state.token`, which it writes into the cache at `cache.place` < end.

    It is idempotent: run twice, it writes the same values, so it can be warmed up before it is recorded. It never reads
    a value back from the device, nor copies one to it.
    """
    cache.rows, cache.end = rows, end
    pad, place = state.pad[:rows, None], torch.arange(end, device=state.pad.device)
    seen = (place >= pad) & (place <= cache.place)
    return model(
        input_ids=state.token[:rows, None],
        attention_mask=dense_mask(seen, model.dtype)[:, None, None],
        position_ids=cache.place - pad,
        past_key_values=cache,
    ).logits[:, -1]


Run = Callable[[], object]
"""A step, or its recording, that does the same again in the same memory."""


def capture(run: Run, device: torch.device, pool: tuple[int, int]) -> Run:
    """`run` as a CUDA graph; graphs share the pool, so none may leave a tensor of its own behind.

    Only what this thread does can break the recording ("thread_local"): another one may allocate memory meanwhile.
    RuntimeError in one line if the model waits for the device within a step.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up, outside the graph
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                run()
        except RuntimeError as error:
            raise RuntimeError(
                f"a decoding step cannot be a CUDA graph ({str(error).splitlines()[0]}); set "
                "engine: vllm, or give pmd.train engine=functools.partial(TorchEngine, static=False)"
            ) from error
    return graph.replay


def recorder(device: torch.device) -> Callable[[Run], Run]:
    """How steps are recorded on a device: as CUDA graphs, or not at all."""
    if device.type != "cuda":
        return lambda run: run
    return partial(capture, device=device, pool=torch.cuda.graph_pool_handle())


# --- the decoder ---------------------------------------------------------------------------------------------------


class Decoder:
    """A cache for `most` sequences of `capacity` tokens, and the steps recorded on it, each at its first use."""

    def __init__(self, model: PreTrainedModel, most: int, capacity: int, record: Callable[[Run], Run] | None = None):
        self.model, self.most, self.capacity = model, most, capacity
        self.record = record or recorder(model.device)
        self.cache = StaticCache(model.config, most, capacity, model.dtype, model.device)
        self.state = State(*torch.zeros(2, most, dtype=torch.int64, device=model.device))
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self.logits = torch.zeros(most, vocabulary, dtype=model.dtype, device=model.device)
        self.steps: dict[tuple[int, int], Run] = {}

    def prefill(self, prompts: Sequence[Sequence[int]], of_row: Tensor, eos: int) -> tuple[Tensor, int]:
        """Read each prompt once and give its keys and values to its rows; of_row: the prompt of each row, ascending.

        Returns the next token's logits [rows, V] and the prompts' width, the same for all rows.
        """
        width = max(map(len, prompts))
        counts = torch.bincount(of_row, minlength=len(prompts))
        ends = counts.cumsum(0).tolist()
        logits, size = [], max(1, PREFILL // width)
        for i in range(0, len(prompts), size):
            some, each = prompts[i : i + size], counts[i : i + size]
            out, cache, pad = prefill(self.model, some, width, eos)
            rows = slice(ends[i - 1] if i else 0, ends[i + len(some) - 1])
            whose = torch.arange(len(some), device=pad.device).repeat_interleave(each)  # the prompt of each row
            self.state.pad[rows] = pad[whose]
            for layer, memory in zip(cache.layers, self.cache.memory, strict=True):
                for x, room in zip((layer.keys, layer.values), memory, strict=True):
                    room[rows, :, :width] = x.to(room.dtype)[whose]
            logits.append(out[whose])
        return torch.cat(logits), width

    def next(self, rows: int, place: int) -> Tensor:
        """Logits [rows, V] after the tokens of `state`, which stand at `place`; the next call overwrites them."""
        self.cache.place.fill_(place)
        end = min(ladder(place + 1), self.capacity)

        def run() -> None:
            self.logits[:rows] = step(self.model, self.cache, self.state, rows, end)

        if (rows, end) not in self.steps:
            self.steps[rows, end] = self.record(run)
        self.steps[rows, end]()
        return self.logits[:rows]

    def keep(self, chosen: Tensor, length: int) -> None:
        """Go on with these rows alone, moved to the front; see StaticCache.keep."""
        self.cache.keep(chosen, length)
        for x in (self.state.token, self.state.pad):
            x[: len(chosen)] = x[chosen]


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], width: int, eos: int
) -> tuple[Tensor, DynamicCache, Tensor]:
    """Prompts, left-padded to `width`, through the model once: next logits [P, V], their cache, the padding [P]."""
    ids = torch.tensor([[eos] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    pad = torch.tensor([width - len(p) for p in prompts], device=model.device)
    place = torch.arange(width, device=model.device)
    causal = place <= place[:, None]
    seen = (causal & (place >= pad[:, None])[:, None]) | (place == place[:, None])  # a pad sees itself: no empty row
    cache = DynamicCache()
    out = model(
        input_ids=ids,
        attention_mask=dense_mask(seen[:, None], model.dtype),
        position_ids=(place - pad[:, None]).clamp_min(0),
        past_key_values=cache,
        logits_to_keep=1,
    )
    return out.logits[:, -1], cache, pad


def decode(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    of_row: Tensor,
    ends: Sequence[int],
    pick: Callable[[Tensor, Tensor, int], Tensor],
    most: int,
    full: int,
) -> list[list[int]]:
    """At most `most` tokens for each of R rows; of_row [R], ascending: their prompts; pick(logits, rows, t): tokens.

    A response ends with one of `ends`, and is computed further until half of the rows can be dropped. full: of how many
    rows, R at least, a step has a half, a quarter and so on.
    """
    rows = bucket(len(of_row), full)
    filled = torch.cat([of_row, of_row[-1:].expand(rows - len(of_row))])
    logits, width = decoder.prefill(prompts, filled, ends[0])
    last, vocabulary = torch.tensor(ends, device=logits.device), logits.shape[1]
    alive = torch.arange(rows, device=logits.device)  # the response that each row of the cache decodes
    open_ = alive < len(of_row)
    tokens = torch.full((rows, most), -1, device=logits.device)
    for t in range(most):
        token = pick(logits, alive, t)
        tokens[alive, t] = token.where(open_, -1)
        open_ &= ~ended(token, last)
        decoder.state.token[:rows] = token.clamp_max(vocabulary - 1)  # see check_finite
        if t + 1 == most:
            break
        if t % CHECK == CHECK - 1:
            left = int(open_.sum())
            if left == 0:
                break
            if (smaller := bucket(left, full)) < rows:
                chosen = (~open_).int().argsort(stable=True)[:smaller]  # the open rows, then others to fill the bucket
                decoder.keep(chosen, width + t)
                rows, alive, open_ = smaller, alive[chosen], open_[chosen]
        logits = decoder.next(rows, width + t)
    check_finite(tokens[: len(of_row)].flatten(), vocabulary, decoder.model.dtype)
    found = tokens[: len(of_row)].tolist()
    return [row[: row.index(-1)] if -1 in row else row for row in found]


# --- weights in the type of the products ----------------------------------------------------------------------------


def replica(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A whole model of the same architecture in `dtype` on the same device, whose weights `refresh` fills in."""
    with torch.device("meta"):
        copy = AutoModelForCausalLM.from_config(model.config, attn_implementation=PACKED, dtype=dtype)
    allocate(copy, model.device)
    return copy.requires_grad_(False).eval()


@torch.no_grad()
def refresh(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Hand the model's weights over, in place, rounded to the copy's type; of a sharded model every rank must call."""
    own = copy.state_dict()
    for name, weight in full_weights(model):
        own[name].copy_(weight)
