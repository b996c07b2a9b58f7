"""The memory of one rank by part: while it samples, while vLLM's weights are proven, and while it trains.

It is counted from the architecture and from what the trainer keeps (pmd/trainer/update.py, pmd/model/forward.py): fp32
weights, gradients and AdamW moments, divided among the ranks; weights cast to the compute type; what the backward pass
needs of one pass; one chunk of logits. Rollouts and update take turns, so the peak is the largest of the phases. Saving
a checkpoint adds nothing on the GPU, because it copies one tensor at a time to the CPU. Sizes are bytes, and every
response is taken to be as long as it may be.

Tests hold the count against peaks measured on a CPU, and on a GPU at the 1.5B shape (benchmarks/speed/nvidia-h200.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from inspect import signature

from pmd.harness.config import Train
from pmd.model import forward
from pmd.model.device import RESERVE
from pmd.sampling import static_decoder
from pmd.sampling.torch_engine import TorchEngine
from pmd.scale.shape import Shape
from pmd.scale.vllm_engine import CPU_CACHE, GPU_SHARE, PASS_TOKENS

DECODED = signature(TorchEngine).parameters["batch"].default
"""Responses that the torch engine decodes at once at most."""

Parts = dict[str, float]


@dataclass(frozen=True)
class Pass:
    """The largest forward and backward pass of one rank."""

    tokens: int  # packed tokens: each prompt once, each response but its last token
    responses: int
    keys: int  # what attention reads where the prompt's keys are copied to every response
    pairs: int  # of a query and a key


def largest_pass(train: Train, prompt: int, ranks: int) -> Pass:
    """The largest pass of an update, in which no two responses to a prompt begin alike; it keeps to microbatch_tokens
    unless a single response is longer. prompt: tokens of the longest prompt; ranks: all processes of the job."""
    fed, n = train.max_tokens - 1, train.group_size
    whole = math.ceil((train.prompts // train.minibatches) * n / ranks)
    budget = train.microbatch_tokens or math.inf
    fits = [s for s in range(1, whole + 1) if s * fed + math.ceil(s / n) * prompt <= budget]
    s = max(fits, default=1)
    g = math.ceil(s / n)
    return Pass(s * fed + g * prompt, s, s * (prompt + fed) + g * prompt, s * fed * (prompt + fed) + g * prompt**2)


def proof_pass(train: Train, prompt: int) -> Pass:
    """The largest forward pass by which vLLM's weights are proven: responses that share no prompt."""
    fed = train.max_tokens - 1
    s = max(1, (train.microbatch_tokens or PASS_TOKENS) // (prompt + fed))
    return Pass(s * (prompt + fed), s, s * (2 * prompt + fed), s * (fed * (prompt + fed) + prompt**2))


def on_gpu(train: Train) -> bool:
    return train.device.startswith("cuda")


def sharded(train: Train, ranks: int) -> bool:
    """Whether FSDP2 holds the weights: with several ranks, and on a GPU with one rank too."""
    return ranks > 1 or on_gpu(train)


def bytes_of(train: Train) -> int:
    """Bytes of a number in the type that products are computed in."""
    return 2 if train.dtype == "bfloat16" else 4


def stream_bytes(train: Train, ranks: int) -> int:
    """Bytes of a number of the residual stream, which runs from layer to layer: FSDP2 computes it in the compute type;
    in one process on a CPU it is fp32, because autocast leaves the embedding's output in fp32."""
    return bytes_of(train) if sharded(train, ranks) else 4


def state(shape: Shape, ranks: int) -> Parts:
    """What a rank always holds: its part of the fp32 weights, of their gradients and of AdamW's two moments."""
    own = 4 * shape.total / ranks
    return {"weights": own, "gradients": own, "optimizer": 2 * own}


def cast_weights(shape: Shape, train: Train, ranks: int, backward: bool) -> float:
    """Weights beside the fp32 ones of `state`, and gradients beside its gradients:

    - FSDP2: the layer at work and the next one, and all that is outside the layers, gathered in the compute type; in
      the backward pass also the gradients of what is outside, and one layer's gradient, which is summed in fp32;
    - one process on a CPU in fp32: none;
    - one process on a CPU under autocast: every product's weight in the compute type, but experts', which autocast
      does not know. Where layers are recomputed, the backward pass has one layer's at a time.
    """
    c = bytes_of(train)
    if sharded(train, ranks):
        gathered = c * (shape.rest + 2 * shape.layer)
        return gathered + (c * shape.rest + (c + 4) * shape.layer if backward else 0)
    if c == 4:
        return 0
    layers = 1 if backward and train.checkpoint_activations else shape.layers
    return c * (layers * (shape.layer - shape.experts / shape.layers) + shape.head)


def layer_activations(shape: Shape, train: Train, ranks: int, size: Pass) -> float:
    """What one layer keeps of a pass for its backward pass, its own input included.

    Norms keep their input in fp32 and its normalised value; under autocast every product keeps its own cast of its
    input. Attention keeps queries, keys, values and its output. On a CPU it also keeps a copy of the keys and values
    for every response, and the probabilities. Compiled on a GPU, a norm keeps its input as it is, and a feed-forward
    block what its two first products make; the rest is computed again.
    """
    c, x, cuda = bytes_of(train), stream_bytes(train, ranks), on_gpu(train)
    h, q, k, f = shape.hidden, shape.query, shape.key, shape.feedforward
    fused = cuda and train.compile
    norms = (2 * x * h if fused else 2 * (4 + x) * h) + ((4 + c) * (q + k) if shape.normed else 0)
    inputs = (4 if shape.routed else 5) * c * h if x > c else 2 * x * h
    attention = c * (3 * q + 2 * k) if cuda else 2 * c * q
    gated = (x if shape.routed else c) * (4 * f + 2 * h * shape.routed)  # experts' products know no autocast
    if fused and not shape.routed:
        gated = c * 2 * f
    each = norms + inputs + attention + gated
    seen = 0 if cuda else 2 * c * k * size.keys + c * shape.heads * size.pairs
    return size.tokens * each + seen


def around_layers(shape: Shape, train: Train, ranks: int, size: Pass) -> float:
    """Activations outside the layers: the last norm, the rows that predict a token, on a CPU the mask in fp32."""
    x = stream_bytes(train, ranks)
    last = (4 + 2 * x) * shape.hidden * size.tokens + x * shape.hidden * size.responses * train.max_tokens
    return last + (0 if on_gpu(train) else 4 * size.pairs)


def activations(shape: Shape, train: Train, ranks: int, size: Pass, backward: bool) -> float:
    """What a pass keeps: the activations of every layer; or, where layers are recomputed, every layer's input and, in
    the backward pass, the activations of one layer."""
    one = layer_activations(shape, train, ranks, size)
    inputs = shape.layers * stream_bytes(train, ranks) * shape.hidden * size.tokens + (one if backward else 0)
    layers = inputs if train.checkpoint_activations else shape.layers * one
    return layers + around_layers(shape, train, ranks, size)


def logits(shape: Shape, train: Train, size: Pass, backward: bool) -> float:
    """One chunk of logits and its log-probabilities in fp32. The backward pass adds a gradient in fp32, one in a
    narrower compute type, and the output head's own gradient, of this chunk and of the chunks before it."""
    c, whole = bytes_of(train), 4 * size.responses * train.max_tokens * shape.vocabulary
    chunk = min(whole, max(forward.CHUNK_BYTES, 4 * shape.vocabulary))
    head = c * shape.head * (2 if whole > chunk else 1) if backward else 0
    return (3 if backward else 2) * chunk + (chunk / 2 if c == 2 else 0) + head


def kv_bytes(shape: Shape, train: Train) -> int:
    """Bytes of the keys and values of one token."""
    return 2 * shape.layers * shape.key * bytes_of(train)


def ranks_per_engine(train: Train) -> int:
    """Ranks that sample together as one engine."""
    return train.engine_options.get("tensor_parallel_size", 1)


def engine_memory(shape: Shape, train: Train, prompt: int, ranks: int, memory: float) -> Parts:
    """The engine's weights and its KV cache.

    vLLM takes the share `gpu_memory_utilization` of the GPU. The torch engine makes room for every response that it
    decodes at once.
    """
    c, length = bytes_of(train), prompt + max(train.max_tokens, train.eval_max_tokens)
    if train.engine == "vllm":
        weights = c * shape.total / ranks_per_engine(train)
        share = train.engine_options.get("gpu_memory_utilization", GPU_SHARE) * memory - weights
        room = share if on_gpu(train) else train.engine_options.get("kv_cache_memory_bytes", CPU_CACHE)
        return {"engine weights": weights, "KV cache": room}
    weights = c * shape.total if sharded(train, ranks) else 0  # of a sharded policy it samples from a copy
    rows, length = decoded(shape, train, prompt, ranks, memory)
    return {"engine weights": weights, "KV cache": rows * decoded_bytes(shape, train, length)}


def decoded(shape: Shape, train: Train, prompt: int, ranks: int, memory: float) -> tuple[int, int]:
    """(responses that the torch engine decodes at once, tokens that its cache has room for in each of them).

    On a GPU it decodes in static shapes, no more at once than `kv_bytes` or a share of the free memory holds.
    """
    responses = math.ceil(train.prompts / ranks) * train.group_size
    length = prompt + max(train.max_tokens, train.eval_max_tokens)
    if not on_gpu(train):
        return min(responses, DECODED // train.group_size * train.group_size or 1), length
    length = static_decoder.ladder(length)
    free = (1 - RESERVE) * memory - bytes_of(train) * shape.total - sum(state(shape, ranks).values())
    room = train.engine_options.get("kv_bytes", static_decoder.SHARE * max(0, free))
    return min(responses, DECODED, int(room // decoded_bytes(shape, train, length))), length


def decoded_bytes(shape: Shape, train: Train, length: int) -> float:
    """Bytes of a response of `length` tokens while it is decoded: keys, values, logits, what sampling makes of them."""
    return length * kv_bytes(shape, train) + static_decoder.SAMPLED * shape.vocabulary


def kept(shape: Shape, train: Train, prompt: int, ranks: int, memory: float) -> Parts:
    """What of the engine stays during the update.

    On a GPU vLLM sleeps, and the torch engine drops its cache and its copy of the weights, by its own rule; what stays
    are keys, values and one step's logits. On a CPU vLLM keeps everything and the torch engine its copy of sharded
    weights.
    """
    engine = engine_memory(shape, train, prompt, ranks, memory)
    if train.engine == "vllm":
        return {} if on_gpu(train) else engine
    weights = {"engine weights": engine["engine weights"]}
    if not on_gpu(train):
        return weights
    rows, length = decoded(shape, train, prompt, ranks, memory)
    cache = rows * length * kv_bytes(shape, train)
    if not static_decoder.stays(cache, train.engine_options.get("kv_bytes"), memory):
        return {}
    return weights | {"KV cache": cache + rows * bytes_of(train) * shape.vocabulary}


def phases(shape: Shape, train: Train, prompt: int, ranks: int, memory: float) -> dict[str, Parts]:
    """The parts of a rank's memory while it samples and while it trains, there at the worse of forward and backward
    pass; with vLLM also while its weights are proven. memory: of the rank's GPU, of which vLLM takes a share."""

    def a_pass(size: Pass, backward: bool, activations: float) -> Parts:
        casts = cast_weights(shape, train, ranks, backward)
        return {"cast weights": casts, "activations": activations, "logits": logits(shape, train, size, backward)}

    own, size = state(shape, ranks), largest_pass(train, prompt, ranks)
    moments = [a_pass(size, backward, activations(shape, train, ranks, size, backward)) for backward in (False, True)]
    worst = max(moments, key=lambda parts: sum(parts.values()))
    engine = engine_memory(shape, train, prompt, ranks, memory)
    found = {"update": own | worst | kept(shape, train, prompt, ranks, memory), "rollout": own | engine}
    if train.engine == "vllm":
        size = proof_pass(train, prompt)  # without a graph: one layer at a time
        layer = layer_activations(shape, train, ranks, size) + around_layers(shape, train, ranks, size)
        found["proof"] = own | a_pass(size, False, layer) | kept(shape, train, prompt, ranks, memory)
    return found
