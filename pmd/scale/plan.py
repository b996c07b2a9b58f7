"""What a run takes before it is started: the memory of a GPU by part, whether it fits, and which settings help.

    pmd plan paper-7b --gpus 8 --memory 80

plans a preset or an entry of `scale` of params.yaml; pmd/scale/memory.py counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from pmd import params
from pmd.files import ROOT
from pmd.harness.config import Train, train_config
from pmd.model.device import GIB, RESERVE, held, spare
from pmd.model.from_scratch import build_policy
from pmd.model.settings import read_bases
from pmd.problems.arithmetic import SYMBOLS
from pmd.scale.entry import read_scale
from pmd.scale.memory import Parts, engine_memory, kept, kv_bytes, largest_pass, on_gpu, phases, ranks_per_engine
from pmd.scale.shape import Shape, architecture, shape


def shortfall(shape: Shape, train: Train, prompt: int, ranks: int, memory: float, free: float) -> dict[str, float]:
    """{phase: bytes too many} of `free` bytes on a GPU of `memory`, negative where it fits.

    The engine must also have room for one response of full length.
    """
    found = phases(shape, train, prompt, ranks, memory)
    over = {phase: sum(parts.values()) - free for phase, parts in found.items()}
    one = (prompt + train.max_tokens) * kv_bytes(shape, train) / ranks_per_engine(train)
    short = one - found["rollout"]["KV cache"]
    return over | ({"KV cache": short} if short > 0 else {})


def settings(shape: Shape, train: Train, prompt: int, ranks: int, memory: float, free: float) -> list[str] | None:
    """The fewest settings of `train` that make it fit on so many ranks, in order; None if there are none."""
    taken, one = [], prompt + train.max_tokens - 1
    for key, value in (("checkpoint_activations", True), ("microbatch_tokens", one)):
        if shortfall(shape, train, prompt, ranks, memory, free)["update"] > 0 and getattr(train, key) != value:
            train, taken = train.replace(**{key: value}), [*taken, f"train.{key}: {str(value).lower()}"]
    over = shortfall(shape, train, prompt, ranks, memory, free)
    if over["update"] > 0 or not (on_gpu(train) or max(over.values()) <= 0):
        return None
    if max(over.values()) <= 0:
        return taken
    for together in (t for t in (ranks_per_engine(train), 2, 4, 8) if ranks % t == 0):
        for share in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
            found = {"gpu_memory_utilization": share} | ({"tensor_parallel_size": together} if together > 1 else {})
            changed = train.replace(engine="vllm", engine_options=train.engine_options | found)
            if max(shortfall(shape, changed, prompt, ranks, memory, free).values()) <= 0:
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


def keepable(shape: Shape, train: Train, prompt: int, ranks: int, memory: float, free: float) -> int | None:
    """Bytes of `kv_bytes` with which the torch engine keeps its cache and CUDA graphs from one rollout to the next.

    None if it keeps them without, or if the run would not fit with them.
    """
    if not on_gpu(train) or train.engine != "torch" or "KV cache" in kept(shape, train, prompt, ranks, memory):
        return None
    size = math.ceil(engine_memory(shape, train, prompt, ranks, memory)["KV cache"])
    changed = train.replace(engine_options=train.engine_options | {"kv_bytes": size})
    return size if max(shortfall(shape, changed, prompt, ranks, memory, free).values()) <= 0 else None


def check_fit(
    config: PreTrainedConfig,
    train: Train,
    prompt: int,
    ranks: int,
    free: float,
    memory: float,
    together: int = 1,
    what: str = "",
    help: str = "",
) -> None:
    """ValueError in one line if a run does not fit: by how much, what others hold, and which settings make it fit.

    prompt: tokens of the longest prompt; ranks: all GPUs of the job; free, memory: bytes of one GPU as
    torch.cuda.mem_get_info gives them, before the model is there. together: processes like this one that share the GPU.
    what: the run's name, if it has one. help: which settings help, if not those of `train`.
    """
    own, room = shape(config), spare(free, memory) / together
    over = shortfall(own, train, prompt, ranks, memory / together, room)
    phase = max(over, key=over.get)
    if over[phase] > 0:
        notes = [held(free, memory), f"{together} processes share it, lower PMD_WORKERS" if together > 1 else None]
        said, name = "; ".join(filter(None, notes)), f"{what}: " if what else ""
        raise ValueError(
            f"{name}a {config.model_type} of {own.total / 1e9:.2f} B parameters does not fit on {ranks} x "
            f"{max(0.0, room) / GIB:.1f} GiB{f' ({said})' if said else ''}: {over[phase] / GIB:.1f} GiB too much for "
            f"the {phase}; {help or advice(own, train, prompt, ranks, memory, room)}"
        )


# --- the command ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """What is to be planned: a run, and what a preset's experiments make besides."""

    config: PreTrainedConfig
    train: Train
    prompt: int  # tokens of the longest prompt
    ranks: int
    regressions: dict[str, Train] = field(default_factory=dict)


def entry(name: str) -> Planned:
    """An entry of `scale`, else a preset, else ValueError.

    A preset without an entry is a pipeline: its base model, trained by its first method on one GPU, and regressions.
    """
    values = params.load()
    params.mapping(values, "scale")
    presets = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
    known = [*values["scale"], *presets]
    params.require(name in known, "plan", name, f"an entry of scale or a preset: {', '.join(known)}")
    if name not in values["scale"]:
        params.overlay(values, params.load(ROOT / "presets" / f"{name}.yaml"), name)
    scaled = name.replace(".", "_")  # DVC takes no dot in the entry of preset gsm8k-1.5b
    if scaled in values["scale"]:
        run, train = read_scale(values, scaled)
        return Planned(architecture(run.model), train, run.max_prompt_tokens, run.nodes * run.ranks)
    config, train = of_base(values), train_config("pmd-mean", 0, values)
    return Planned(config, train, room_for_prompt(config, train), 1, regressions(values))


def of_base(values: dict[str, Any]) -> PreTrainedConfig:
    """The architecture of namespace `base`."""
    base = read_bases(values["base"])[0]
    model, _ = build_policy(
        SYMBOLS, base.layers, base.width, base.heads, base.kv_heads, base.feedforward, base.seed, base.positions
    )
    return model.config


def room_for_prompt(config: PreTrainedConfig, train: Train) -> int:
    """The longest prompt that leaves room for a response in the model's context."""
    return config.max_position_embeddings - train.max_tokens


def regressions(values: dict[str, Any]) -> dict[str, Train]:
    """What the law and finite samples solve (pmd/experiments/solve.py), by name, as updates: one pass of the whole
    batch in fp32. The law's policy is made as that of a run is, and recomputes layers where runs do."""
    law, finite = values["law"], values["finite"]
    whole = {"dtype": "float32", "minibatches": 1, "probe": 1, "microbatch_tokens": None}
    plain = {"checkpoint_activations": False, "compile": False}
    asked = {
        "law": {"prompts": law["prompts"], "group_size": law["rollouts"]},
        "finite": {"prompts": finite["prompts"], "group_size": max(finite["n"])} | plain,
    }
    lengths = {name: dict.fromkeys(("max_tokens", "eval_max_tokens"), values[name]["max_tokens"]) for name in asked}
    return {
        name: train_config("pmd-mean", 0, values, **whole, **own, **lengths[name], device=values[name]["device"])
        for name, own in asked.items()
    }


LOWER = {
    "law": "lower law.prompts, law.rollouts or law.max_tokens",
    "finite": "lower finite.prompts or finite.max_tokens",
}
"""What helps where a regression does not fit."""


def parts_table(parts: Parts) -> str:
    """One line a part, in GiB, and their sum."""
    rows = [*parts.items(), ("sum", sum(parts.values()))]
    return "\n".join(f"  {name:<16}{size / GIB:>9.2f}" for name, size in rows)


def report(name: str, gpus: int | None = None, memory: float = 80) -> str:
    """The plan of a preset or an entry of `scale` as text; ValueError for an unknown one or an option that is not > 0.

    gpus: all of them, by default the entry's nodes x ranks; memory: GiB of one GPU.
    """
    for option, value in {"gpus": gpus, "memory": memory}.items():
        params.require(value is None or value > 0, f"--{option}", value, "> 0")
    planned = entry(name)
    train, prompt, ranks, own = planned.train, planned.prompt, gpus or planned.ranks, shape(planned.config)
    whole = memory * GIB
    free = (1 - RESERVE) * whole
    step = train.prompts * (prompt + train.group_size * train.max_tokens)
    lines = [
        f"{name}: {own.total:,} parameters, {own.products / 1e9:.2f} B of them multiplied with a token; {ranks} x "
        f"{memory:g} GiB",
        f"a step: {step:,} tokens at most, {step // ranks:,} a GPU, {largest_pass(train, prompt, ranks).tokens:,} in a "
        f"pass (prompts of {prompt:,}, responses of {train.max_tokens:,})",
    ]
    found, over = phases(own, train, prompt, ranks, whole), shortfall(own, train, prompt, ranks, whole, free)
    for part, run in planned.regressions.items():
        title = f"experiment {part}"
        found[title] = phases(own, run, room_for_prompt(planned.config, run), 1, whole)["update"]
        over[title] = sum(found[title].values()) - free
    for title, parts in found.items():
        lines += [f"GiB a GPU in the {title}:", parts_table(parts)]
    phase = max(over, key=over.get)
    room = f"{free / GIB:.1f} GiB a GPU, {RESERVE:.0%} being kept for CUDA, NCCL and fragmentation"
    if over[phase] > 0:
        lines += [f"it does not fit in {room}: {over[phase] / GIB:.1f} GiB too much for the {phase}"]
        lines += [LOWER.get(phase.removeprefix("experiment ")) or advice(own, train, prompt, ranks, whole, free)]
    else:
        lines += [f"it fits in {room}: the {phase} leaves {-over[phase] / GIB:.1f} GiB"]
        if size := keepable(own, train, prompt, ranks, whole, free):
            lines += [
                f"the decoder's cache of {size / GIB:.1f} GiB goes after each rollout, so that its CUDA graphs are "
                f"recorded again, in seconds; train.engine_options: {{kv_bytes: {size}}} keeps both, and it fits too"
            ]
    return "\n".join(lines)
