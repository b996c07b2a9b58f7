"""FSDP2 on one rank: a checkpoint saved and read, and the memory of every phase against the plan."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pmd.harness.config import train_config
from pmd.model import checkpoint
from pmd.model.forward import checkpoint_activations
from pmd.model.sharding import shard
from pmd.sampling.engine import Sampling
from pmd.sampling.torch_engine import TorchEngine
from pmd.scale.memory import phases, state
from pmd.scale.shape import shape
from pmd.trainer.update import learn
from sections.common import (
    EOS,
    TINY,
    Context,
    PhaseClock,
    Row,
    build,
    equal,
    fact,
    free,
    goal,
    held,
    one_rank,
    peak,
    qwen,
    random_rollouts,
    seconds,
    whole,
)

HALF_BILLION = qwen(151_936, 896, 24, 14, 2, 4_864)
"""Qwen2.5-0.5B, but for the longest context."""

ENGINE = ("engine weights", "KV cache")


def rows(context: Context) -> Iterator[Row]:
    """Half a billion parameters: an update, a rollout, a checkpoint."""
    with one_rank(context):
        yield from memory(context)


def memory(context: Context) -> Iterator[Row]:
    """Bytes held at the worst moment of every phase, beside what the plan says of it."""
    architecture = TINY if context.quick else HALF_BILLION
    groups, n, prompt, length = (2, 4, 8, 16) if context.quick else (4, 8, 256, 1024)
    rollouts = random_rollouts(architecture.vocab_size, groups, n, prompt, (length, length), seed=3)
    config = train_config(
        "pmd-mean",
        1,
        prompts=groups,
        group_size=n,
        minibatches=2,
        probe=1,
        max_tokens=length,
        eval_max_tokens=length,
        device=context.device,
        dtype=str(context.compute).removeprefix("torch."),
        microbatch_tokens=8 * length,
        checkpoint_activations=True,
    )
    model = build(architecture, context.device, torch.float32, context.compute)
    checkpoint_activations(model)
    shard(model, context.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    learn(config, 1, model, optimizer, rollouts, PhaseClock(context.device))  # makes the moments, and compiles
    free(context.device)
    own = shape(architecture)
    total = torch.cuda.get_device_properties(context.device).total_memory if context.cuda else 16 * 2**30
    planned = phases(own, config, prompt, 1, total)
    kept = sum(state(own, 1).values())
    yield from against(context, "weights, gradients and moments", held(context.device), kept)
    spent, _ = seconds(context.device, lambda: learn(config, 2, model, optimizer, rollouts, PhaseClock(context.device)))
    update = sum(size for name, size in planned["update"].items() if name not in ENGINE)
    yield from against(context, "update", peak(context.device), update)
    yield fact("update, log π and measurements with it", spent, "s")
    free(context.device)
    engine = TorchEngine(model, EOS)
    engine.sample(rollouts.prompts, n, Sampling(length), 1)
    yield from against(context, "rollout", peak(context.device), sum(planned["rollout"].values()))
    del engine
    optimizer.zero_grad(set_to_none=True)
    yield from saved(context, model, optimizer, kept)


def saved(context: Context, model, optimizer, kept: float) -> Iterator[Row]:
    """A checkpoint written and read: seconds, what it takes on the device meanwhile, and that it holds the bits."""
    before = whole(model)
    free(context.device)
    base = held(context.device)
    spent, path = seconds(context.device, lambda: checkpoint.save(context.scratch / "saved", 1, model, optimizer, {}))
    size = sum(file.stat().st_size for file in path.iterdir())
    yield fact("checkpoint: size", size / 2**30, "GiB")
    yield fact("checkpoint: saving", spent, "s")
    if context.cuda:
        yield goal("checkpoint: saving, memory beyond the state, of it", (peak(context.device) - base) / kept, most=0.1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    free(context.device)
    spent, _ = seconds(context.device, lambda: checkpoint.load(path, model, optimizer))
    yield fact("checkpoint: reading", spent, "s")
    if context.cuda:
        yield goal(
            "checkpoint: reading, memory beyond the state, of it", (peak(context.device) - base) / kept, most=0.2
        )
    after = whole(model)
    yield equal("checkpoint: the weights read", all(torch.equal(before[k], after[k]) for k in before))


def against(context: Context, phase: str, found: float, planned: float) -> Iterator[Row]:
    """A measured size and how far it is from the planned one; on a CPU nobody counts a tensor's bytes."""
    yield fact(f"{phase}: planned", planned / 2**30, "GiB")
    if context.cuda:
        yield fact(f"{phase}: measured", found / 2**30, "GiB")
        yield goal(f"{phase}: distance from the plan", 100 * abs(found / planned - 1), most=10, unit="%")
