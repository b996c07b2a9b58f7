"""What a run takes before it is started: memory a GPU by part, tokens a step, seconds at stated throughputs.

    pmd plan paper-7b --gpus 8 --memory 80 --flops 400 --bandwidth 3

plans a preset or an entry of `scale` of params.yaml. Memory is counted from the model's architecture, built without
weights, and from what the trainer keeps (pmd/trainer/update.py, pmd/model/forward.py): fp32 weights, gradients and
AdamW moments, divided among the ranks; copies in the compute type; what the backward pass needs of one microbatch; one
chunk of logits. Rollouts and update take turns, so the peak is the larger of the two. On a CPU the count is held
against measured peaks (tests/test_plan.py); on a GPU it has not been measured. Sizes are bytes, and every response is
as long as it may be.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from pmd import params
from pmd.files import ROOT, read_json
from pmd.harness.config import Train
from pmd.model import forward
from pmd.model.from_scratch import Base
from pmd.model.loading import build_policy
from pmd.params import Scale
from pmd.problems.arithmetic import SYMBOLS
from pmd.sampling import static_decoder

GIB = 2**30

RESERVE = 0.1
"""Share of a GPU's memory left for the CUDA context, NCCL and fragmentation: an allowance, not a measurement."""

DECODED = 4096
"""Responses that the torch engine decodes at once at most (pmd/sampling/torch_engine.py)."""

Parts = dict[str, float]


# --- the model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Parameters of a model and the widths of its activations.

    total: all parameters; experts: those in expert blocks, of which a token uses the share `used`; layer: of the
    largest decoder layer; head: vocabulary x hidden, which is there twice unless tied. query, key: heads x head width;
    feedforward: width of the gated block, of the k experts together in an MoE (routed = k, else 0); normed: queries and
    keys are normalised.
    """

    total: int
    experts: int
    used: float
    layer: int
    head: int
    tied: bool
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    query: int
    key: int
    feedforward: int
    routed: int
    normed: bool

    @property
    def rest(self) -> int:
        """Parameters outside the layers."""
        return self.total - self.layers * self.layer

    @property
    def products(self) -> float:
        """Parameters that one token is multiplied with: of an MoE the experts it is sent to; no embedding look-up."""
        return self.total - (1 - self.used) * self.experts - (0 if self.tied else self.head)


def shape(config: PreTrainedConfig) -> Shape:
    """The shape of an architecture, counted on the meta device: no weights are made."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    every = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    routed = config.num_experts_per_tok if every else 0
    own = getattr(config, "moe_intermediate_size", config.intermediate_size)
    return Shape(
        total=sum(sizes.values()),
        experts=sum(size for name, size in sizes.items() if ".experts." in name),
        used=routed / every if every else 1.0,
        layer=max(sum(p.numel() for p in layer.parameters()) for layer in model.base_model.layers),
        head=config.vocab_size * config.hidden_size,
        tied=config.tie_word_embeddings,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        heads=heads,
        query=heads * width,
        key=kv_heads * width,
        feedforward=routed * own if every else config.intermediate_size,
        routed=routed,
        normed=any(".q_norm." in name for name in sizes),
    )


def architecture(model: str) -> PreTrainedConfig:
    """The configuration of a model directory, or of a model of the hub whose architecture is in presets/models.

    ValueError if it is neither.
    """
    folder, known = ROOT / model, sorted(path.stem for path in (ROOT / "presets" / "models").glob("*.json"))
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    name = re.fullmatch(r"(?:.*/)?([^/@]+)(?:@[0-9a-f]{40})?", model)
    params.require(bool(name) and name[1] in known, "model", model, f"a model directory or one of {', '.join(known)}")
    values = read_json(ROOT / "presets" / "models" / f"{name[1]}.json")
    return AutoConfig.for_model(values.pop("model_type"), **values)


# --- memory --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """The largest pass of one rank: packed tokens and responses; keys: tokens that attention reads, the prompt once
    a response; pairs: of a query and a key."""

    tokens: int
    responses: int
    keys: int
    pairs: int


def largest_pass(train: Train, prompt: int, ranks: int) -> Pass:
    """Of the update and of log π_t, where no two responses begin alike. One beyond the budget stands alone."""
    fed, n = train.max_tokens - 1, train.group_size
    whole = math.ceil((train.prompts // train.minibatches) * n / ranks)
    budget = train.microbatch_tokens or math.inf
    fits = [s for s in range(1, whole + 1) if s * fed + math.ceil(s / n) * prompt <= budget]
    s = max(fits, default=1)
    g = math.ceil(s / n)
    return Pass(s * fed + g * prompt, s, s * (prompt + fed) + g * prompt, s * fed * (prompt + fed) + g * prompt**2)


def bytes_of(train: Train) -> int:
    """Of a number in the type that products are computed in."""
    return 2 if train.dtype == "bfloat16" else 4


def stream_bytes(train: Train, ranks: int) -> int:
    """Of a number between layers: under autocast, which one process uses, the embedding and with it this stay fp32."""
    return 4 if ranks == 1 else bytes_of(train)


def state(shape: Shape, ranks: int) -> Parts:
    """What a rank always holds: its part of the fp32 weights, of their gradients and of AdamW's two moments."""
    own = 4 * shape.total / ranks
    return {"weights": own, "gradients": own, "optimizer": 2 * own}


def copies(shape: Shape, train: Train, ranks: int, backward: bool) -> float:
    """Weights beside the fp32 ones, and gradients beside those of `state`.

    One process: autocast casts every product's weight but experts'; recomputed layers cast theirs again, so that of all
    of them only the forward pass has them together. Several: FSDP2 gathers the layer at work and the next; what is
    outside the layers stays whole, and so does its gradient; a layer's gradient is summed in fp32.
    """
    c = bytes_of(train)
    if ranks == 1 and c == 4:
        return 0
    if ranks == 1:
        layers = 1 if backward and train.checkpoint_activations else shape.layers
        return c * (layers * (shape.layer - shape.experts / shape.layers) + shape.head)
    gathered = c * (shape.rest + 2 * shape.layer)
    return gathered + (c * shape.rest + (c + 4) * shape.layer if backward else 0)


def layer_activations(shape: Shape, train: Train, ranks: int, size: Pass) -> float:
    """What one layer keeps of a pass for its backward pass, its own input included.

    Norms keep their input in fp32 and its normalised value; under autocast every product keeps its own cast of its
    input. Attention keeps queries, keys, values and its output; on a CPU keys and values stand behind every response,
    and the probabilities are kept too.
    """
    c, x, cuda = bytes_of(train), stream_bytes(train, ranks), train.device.startswith("cuda")
    h, q, k, f = shape.hidden, shape.query, shape.key, shape.feedforward
    norms = 2 * (4 + x) * h + ((4 + c) * (q + k) if shape.normed else 0)
    inputs = (4 if shape.routed else 5) * c * h if x > c else 2 * x * h
    attention = c * (3 * q + 2 * k) if cuda else 2 * c * q
    gated = (x if shape.routed else c) * (4 * f + 2 * h * shape.routed)  # experts' products know no autocast
    each = norms + inputs + attention + gated
    seen = 0 if cuda else 2 * c * k * size.keys + c * shape.heads * size.pairs
    return size.tokens * each + seen


def activations(shape: Shape, train: Train, ranks: int, size: Pass, backward: bool) -> float:
    """What a pass keeps: every layer's activations, or every layer's input and, while it is recomputed, one layer's
    whole; on a CPU the mask in fp32; the last norm and the rows that predict."""
    x, one = stream_bytes(train, ranks), layer_activations(shape, train, ranks, size)
    inputs = shape.layers * x * shape.hidden * size.tokens + (one if backward else 0)
    layers = inputs if train.checkpoint_activations else shape.layers * one
    last = (4 + 2 * x) * shape.hidden * size.tokens + x * shape.hidden * size.responses * train.max_tokens
    return layers + (0 if train.device.startswith("cuda") else 4 * size.pairs) + last


def logits(shape: Shape, train: Train, size: Pass, backward: bool) -> float:
    """One chunk: logits and log p in fp32, in the backward pass also a gradient, and one in a narrower type; there also
    the head's own gradient, of this chunk and of those before it."""
    c, whole = bytes_of(train), 4 * size.responses * train.max_tokens * shape.vocabulary
    chunk = min(whole, max(forward.CHUNK_BYTES, 4 * shape.vocabulary))
    head = c * shape.head * (2 if whole > chunk else 1) if backward else 0
    return (3 if backward else 2) * chunk + (chunk / 2 if c == 2 else 0) + head


def kv_bytes(shape: Shape, train: Train) -> int:
    """Keys and values of one token."""
    return 2 * shape.layers * shape.key * bytes_of(train)


def engines(train: Train) -> int:
    """Ranks that sample together as one engine."""
    return train.engine_options.get("tensor_parallel_size", 1)


def responses_of(train: Train, ranks: int) -> int:
    """Responses that one rank's engine samples in a step."""
    return math.ceil(train.prompts / ranks) * train.group_size


def sampling(shape: Shape, train: Train, prompt: int, ranks: int, memory: float) -> Parts:
    """The engine's weights and its KV cache. vLLM takes the share `gpu_memory_utilization` of the GPU; the torch engine
    has room for every response that it decodes at once, on CUDA no more than a share of what is free."""
    c, length = bytes_of(train), prompt + max(train.max_tokens, train.eval_max_tokens)
    if train.engine == "vllm":
        weights = c * shape.total / engines(train)
        share = train.engine_options.get("gpu_memory_utilization", 0.5) * memory - weights
        cuda = train.device.startswith("cuda")
        room = share if cuda else train.engine_options.get("kv_cache_memory_bytes", 2 << 30)
        return {"engine weights": weights, "KV cache": room}
    rows = min(responses_of(train, ranks), DECODED // train.group_size * train.group_size or 1)
    weights = c * shape.total if ranks > 1 or c == 2 else 0
    room = rows * (length * kv_bytes(shape, train) + static_decoder.SAMPLED * shape.vocabulary)
    if train.device.startswith("cuda"):
        free = (1 - RESERVE) * memory - weights - sum(state(shape, ranks).values())
        room = min(room, static_decoder.SHARE * max(0, free))
    return {"engine weights": weights, "KV cache": room}


def kept(train: Train, ranks: int, engine: Parts, memory: float) -> Parts:
    """What of the engine stays during the update: vLLM sleeps, a small cache and what a replica samples from stay."""
    if train.engine == "vllm":
        return {} if train.device.startswith("cuda") else engine
    small = train.device.startswith("cuda") and engine["KV cache"] <= static_decoder.KEPT * memory
    return engine if small else {"engine weights": engine["engine weights"]} if ranks > 1 else {}


def phases(shape: Shape, train: Train, prompt: int, ranks: int, memory: float) -> dict[str, Parts]:
    """{"update": parts, "rollout": parts} of a rank, the update at its worst moment: forward pass or backward
    pass. memory: of its GPU, of which vLLM takes a share."""
    own, size = state(shape, ranks), largest_pass(train, prompt, ranks)
    moments = [
        {
            "copies": copies(shape, train, ranks, backward),
            "activations": activations(shape, train, ranks, size, backward),
            "logits": logits(shape, train, size, backward),
        }
        for backward in (False, True)
    ]
    worst = max(moments, key=lambda parts: sum(parts.values()))
    engine = sampling(shape, train, prompt, ranks, memory)
    return {"update": own | worst | kept(train, ranks, engine, memory), "rollout": own | engine}


# --- does it fit ---------------------------------------------------------------------------------------------------


def lacks(shape: Shape, train: Train, prompt: int, ranks: int, memory: float, free: float) -> dict[str, float]:
    """{phase: bytes too many} of `free` bytes on a GPU of `memory`, negative where it fits.

    The engine must also have room for one response of full length.
    """
    found = phases(shape, train, prompt, ranks, memory)
    over = {phase: sum(parts.values()) - free for phase, parts in found.items()}
    one = (prompt + train.max_tokens) * kv_bytes(shape, train) / engines(train)
    short = one - found["rollout"]["KV cache"]
    return over | ({"KV cache": short} if short > 0 else {})


def settings(shape: Shape, train: Train, prompt: int, ranks: int, memory: float, free: float) -> list[str] | None:
    """The fewest settings of `train` that make it fit on so many ranks, in order; None if there are none."""
    taken, one = [], prompt + train.max_tokens - 1
    for key, value in (("checkpoint_activations", True), ("microbatch_tokens", one)):
        if lacks(shape, train, prompt, ranks, memory, free)["update"] > 0 and getattr(train, key) != value:
            train, taken = train.replace(**{key: value}), [*taken, f"train.{key}: {str(value).lower()}"]
    over = lacks(shape, train, prompt, ranks, memory, free)
    if over["update"] > 0 or not (train.device.startswith("cuda") or max(over.values()) <= 0):
        return None
    if max(over.values()) <= 0:
        return taken
    for together in (t for t in (engines(train), 2, 4, 8) if ranks % t == 0):
        for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
            found = {"gpu_memory_utilization": share} | ({"tensor_parallel_size": together} if together > 1 else {})
            changed = train.replace(engine="vllm", engine_options=train.engine_options | found)
            if max(lacks(shape, changed, prompt, ranks, memory, free).values()) <= 0:
                engine = [] if train.engine == "vllm" else ["train.engine: vllm"]
                return [*taken, *engine, *(f"train.engine_options.{key}: {value}" for key, value in found.items())]
    return None


def advice(shape: Shape, train: Train, prompt: int, ranks: int, memory: float, free: float) -> str:
    """Which settings, together, make it fit; where none do, on how many GPUs they would."""
    for more in (ranks * 2**i for i in range(8)):
        found = settings(shape, train, prompt, more, memory, free)
        if found is not None:
            return "it fits with " + " and ".join([*found, f"{more} GPUs"] if more > ranks else found)
    return f"no setting makes it fit on up to {ranks * 2**7} GPUs: take a smaller model or shorter responses"


def check_fit(config: PreTrainedConfig, train: Train, prompt: int, ranks: int, free: float, memory: float) -> None:
    """ValueError in one line if a run does not fit: by how much, and which settings make it.

    prompt: the longest prompt in tokens; ranks: all GPUs of the job; free, memory: bytes of one GPU as
    torch.cuda.mem_get_info gives them, before the model is there.
    """
    own = shape(config)
    over = lacks(own, train, prompt, ranks, memory, free)
    phase = max(over, key=over.get)
    if over[phase] > 0:
        raise ValueError(
            f"a {config.model_type} of {own.total / 1e9:.2f} B parameters does not fit on {ranks} x "
            f"{free / GIB:.1f} GiB: {over[phase] / GIB:.1f} GiB too much for the {phase}; "
            f"{advice(own, train, prompt, ranks, memory, free)}"
        )


# --- time ----------------------------------------------------------------------------------------------------------


def tokens_of(train: Train, prompt: int, length: int) -> int:
    """Packed tokens of a step: each prompt once, each response of `length` tokens."""
    return train.prompts * (prompt + train.group_size * length)


def flops_of(shape: Shape, train: Train, prompt: int, length: int) -> dict[str, float]:
    """Floating-point operations of a step by phase: 2 a parameter and token forward, twice that backward, once more
    where activations are recomputed; attention 4 a query width and pair of tokens that see each other, alike."""
    pairs = prompt**2 / 2 + train.group_size * (length * prompt + length**2 / 2)
    products = 2 * shape.products * tokens_of(train, prompt, length)
    once = products + 4 * shape.layers * shape.query * train.prompts * pairs
    return {
        "rollout": once,
        "old log-probs": once,
        "update": (4 if train.checkpoint_activations else 3) * once,
        "probe": once * train.probe / train.minibatches,
    }


def read_bytes(shape: Shape, train: Train, rows: float, length: float) -> float:
    """Read for one more token of each of `rows` responses of which `length` tokens are there: the weights, of an MoE
    those experts that any of them is sent to if routing is even, and all keys and values."""
    touched = 1 - (1 - shape.used) ** rows if shape.experts else 1.0
    weights = shape.total - shape.experts * (1 - touched) - (0 if shape.tied else shape.head)
    return bytes_of(train) * weights + rows * length * kv_bytes(shape, train)


def seconds_of(
    shape: Shape, train: Train, prompt: int, length: int, ranks: int, memory: float, flops: float, bandwidth: float
) -> dict[str, float]:
    """Seconds of a step by phase, at `flops` operations and `bandwidth` bytes a second of each GPU; without hand-over,
    communication, verification and idle time. Rollouts take what the slower of the two needs."""
    work = flops_of(shape, train, prompt, length)
    found = {phase: amount / (ranks * flops) for phase, amount in work.items()}
    together = engines(train)
    room = phases(shape, train, prompt, ranks, memory)["rollout"]["KV cache"] * together
    wanted = responses_of(train, ranks) * together
    rows = max(1, min(wanted, room // ((prompt + train.max_tokens) * kv_bytes(shape, train))))
    each = read_bytes(shape, train, rows, prompt + length / 2) / (together * bandwidth)
    return found | {"rollout": max(found["rollout"], math.ceil(wanted / rows) * length * each)}


# --- the command ---------------------------------------------------------------------------------------------------


def entry(name: str) -> tuple[PreTrainedConfig, Train, int, int]:
    """(architecture, run, longest prompt, ranks) of an entry of `scale`, else of a preset, else ValueError.

    A preset without an entry is a pipeline: its base model, trained by its first method on one GPU.
    """
    values = params.load()
    presets = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    known = [*values["scale"], *presets]
    params.require(name in known, "plan", name, f"an entry of scale or a preset: {', '.join(known)}")
    if name not in values["scale"]:
        params.overlay(values, params.load(ROOT / "presets" / f"{name}.yaml"), name)
    scaled = name.replace(".", "_")  # DVC takes no dot in the entry of preset gsm8k-1.5b
    if scaled in values["scale"]:
        scale: Scale
        scale, train = params.scale(values, scaled)
        return architecture(scale.model), train, scale.max_prompt_tokens, scale.nodes * scale.ranks
    base = params.read(Base, "base", values["base"])
    model, _ = build_policy(SYMBOLS, base.layers, base.width, base.heads, base.kv_heads, base.feedforward, base.seed)
    train = params.train(values["train"], values["methods"], values["compare"][0], params.seeds(values["train"])[0])
    return model.config, train, model.config.max_position_embeddings - train.max_tokens, 1


def table(parts: Parts) -> str:
    """One line a part, in GiB, and their sum."""
    rows = [*parts.items(), ("sum", sum(parts.values()))]
    return "\n".join(f"  {name:<16}{size / GIB:>9.2f}" for name, size in rows)


def report(
    name: str,
    gpus: int | None = None,
    memory: float = 80,
    flops: float | None = None,
    bandwidth: float | None = None,
    tokens: int | None = None,
) -> str:
    """The plan of a preset or an entry of `scale` as text; ValueError for an unknown one or an option that is not > 0.

    gpus: all of them (None: the entry's nodes x ranks); memory: GiB of one; flops: TFLOP/s that a GPU sustains in
    training; bandwidth: TB/s that it reads its memory with; tokens: mean length of a response (None: the longest).
    """
    options = {"gpus": gpus, "memory": memory, "flops": flops, "bandwidth": bandwidth, "tokens": tokens}
    for option, value in options.items():
        params.require(value is None or value > 0, f"--{option}", value, "> 0")
    config, train, prompt, ranks = entry(name)
    ranks, gib, memory, own = gpus or ranks, memory, memory * GIB, shape(config)
    length, free = tokens or train.max_tokens, (1 - RESERVE) * memory
    step = tokens_of(train, prompt, length)
    lines = [
        f"{name}: {own.total:,} parameters, {own.products / 1e9:.2f} B of them multiplied with a token; {ranks} x "
        f"{gib:g} GiB",
        f"a step: {step:,} tokens, {step // ranks:,} a GPU, {largest_pass(train, prompt, ranks).tokens:,} in a pass "
        f"(prompts of {prompt:,}, responses of {length:,})",
    ]
    for title, parts in phases(own, train, prompt, ranks, memory).items():
        lines += [f"GiB a GPU in the {title}:", table(parts)]
    over = lacks(own, train, prompt, ranks, memory, free)
    phase = max(over, key=over.get)
    spare = f"{free / GIB:.1f} GiB a GPU, {RESERVE:.0%} being kept for CUDA, NCCL and fragmentation"
    if over[phase] > 0:
        lines += [f"it does not fit in {spare}: {over[phase] / GIB:.1f} GiB too much for the {phase}"]
        lines += [advice(own, train, prompt, ranks, memory, free)]
    else:
        lines += [f"it fits in {spare}: the {phase} leaves {-over[phase] / GIB:.1f} GiB"]
    work = flops_of(own, train, prompt, length)
    lines += ["TFLOP a step: " + ", ".join(f"{name} {amount / 1e12:,.0f}" for name, amount in work.items())]
    if not (flops and bandwidth):
        return "\n".join([*lines, "for seconds, state --flops and --bandwidth as a GPU sustains them"])
    found = seconds_of(own, train, prompt, length, ranks, memory, flops * 1e12, bandwidth * 1e12)
    at = f"at {flops:g} TFLOP/s and {bandwidth:g} TB/s a GPU"
    each = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in found.items())
    return "\n".join([*lines, f"seconds a step {at}: {sum(found.values()):,.1f} ({each})"])
