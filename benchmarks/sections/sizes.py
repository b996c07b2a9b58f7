"""Speed at the sizes of Qwen2.5-1.5B and 7B, random weights: the update's utilisation and decoding over its bound.

What is counted is said in sections/work.py. At 1.5B the trainer's own `learn` runs on 64 responses of 512 to 1,536
tokens in passes of at most 17,408. At 7B weights, gradients and moments take 113 GiB and do not fit an 80 GB card:
there one pass forward and backward is measured, in bf16 and without an optimizer. Two profiles say where the time of a
missed goal goes: of an update (profile.md) and of decoding (profile-decoding.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedConfig, PreTrainedModel

from pmd.files import write_text
from pmd.harness.config import train_config
from pmd.model.forward import checkpoint_activations, compile_layers, log_probs
from pmd.model.packing import pack
from pmd.model.sharding import shard
from pmd.sampling.engine import Sampling
from pmd.sampling.static_decoder import budget
from pmd.sampling.torch_engine import TorchEngine
from pmd.scale.shape import architecture
from pmd.trainer.rollouts import Rollouts
from pmd.trainer.update import learn
from sections.common import (
    EOS,
    TINY,
    Context,
    PhaseClock,
    Row,
    build,
    fact,
    free,
    fresh,
    goal,
    one_rank,
    peak,
    random_rollouts,
    seconds,
    skipped,
)
from sections.work import packed_tokens, sampling_bytes, training_flops

TOP = 20
"""Kernels that a profile lists."""


@dataclass(frozen=True)
class Variant:
    """A way to run the update. seconds: what it is expected to take, compilation included."""

    name: str
    recompute: bool
    compile: bool
    budget: int
    seconds: float
    profiled: bool = False


VARIANTS = (
    Variant("recomputed, compiled", True, True, 17_408, 90, profiled=True),
    Variant("recomputed", True, False, 17_408, 25),
    Variant("nothing recomputed, compiled, passes of 9k tokens", False, True, 8_704, 25),
    Variant("nothing recomputed, compiled, passes of 17k tokens", False, True, 17_408, 25),
)


def rows(context: Context) -> Iterator[Row]:
    """1.5B: the usual update, rollouts, other ways to update; then 7B; then rollouts of another kind at 1.5B."""
    found: list[Row] = []
    for row in updates(context, VARIANTS[:1]):
        found.append(row)
        yield row
    yield from decoding(context, "1.5B", 25)
    free(context.device)
    for row in updates(context, VARIANTS[1:]):
        found.append(row)
        yield row
    best = max([row.value for row in found if row.name.endswith("MFU")], default=0.0)
    yield goal(f"{name(context, '1.5B')}: the best MFU of an update", best, least=50, unit="%")
    if context.left < 45:
        yield skipped("7B", f"{context.left:.0f} s left, 45 needed")
    else:
        yield from one_pass(context)
        fresh(context.device)
        yield from decoding(context, "7B", 20)
    fresh(context.device)
    yield from decoding(context, "1.5B", 30, fuse=True)  # a trial, last, so that its failure loses nothing


def updates(context: Context, variants: Sequence[Variant]) -> Iterator[Row]:
    """The rows of each variant; of one that has not the time or the memory, why not."""
    with one_rank(context):
        for variant in variants:
            title = f"{name(context, '1.5B')}, {variant.name}"
            if context.left < variant.seconds:
                yield skipped(title, f"{context.left:.0f} s left, {variant.seconds:.0f} needed")
                continue
            try:
                yield from update(context, variant)
            except torch.OutOfMemoryError as caught:
                yield skipped(title, str(caught).splitlines()[0][:150])
            fresh(context.device)


def name(context: Context, shape: str) -> str:
    """What rows call a shape."""
    return f"smallest, for {shape}" if context.quick else shape


def size(context: Context, shape: str) -> PreTrainedConfig:
    """An architecture in presets/models; the smallest if quick."""
    return TINY if context.quick else architecture(f"Qwen2.5-{shape}")


def batch(context: Context, vocabulary: int, groups: int, seed: int) -> Rollouts:
    """Rollouts of the lengths that the top of the file states."""
    prompt, lengths = (8, (8, 24)) if context.quick else (256, (512, 1536))
    return random_rollouts(vocabulary, groups, 4 if context.quick else 8, prompt, lengths, seed)


def update(context: Context, variant: Variant) -> Iterator[Row]:
    """Tokens a second, MFU and peak memory of the fastest of four updates, after one to warm up; then a profile."""
    groups = 2 if context.quick else 8
    model = build(size(context, "1.5B"), context.device, torch.float32, context.compute)
    rollouts = batch(context, model.config.vocab_size, groups, seed=1)
    config = train_config(
        "pmd-mean",
        1,
        prompts=groups,
        group_size=len(rollouts.responses[0]),
        minibatches=2,
        probe=1,
        max_tokens=1536,
        warmup=0,
        lr=1e-6,
        device=context.device,
        dtype=str(context.compute).removeprefix("torch."),
        microbatch_tokens=40 if context.quick else variant.budget,
    )
    if variant.recompute:
        checkpoint_activations(model)
    if variant.compile and context.cuda:
        compile_layers(model)
    shard(model, context.device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, fused=True)

    def step(number: int, what: Rollouts = rollouts) -> dict[str, float]:
        clock = PhaseClock(context.device)
        learn(config, number, model, optimizer, what, clock)
        return clock.seconds

    cold, _ = seconds(context.device, lambda: step(1))
    free(context.device)
    spent = min((step(number) for number in (2, 3, 4, 5)), key=lambda found: found["update"])
    tokens = packed_tokens(rollouts.prompts, rollouts.responses)
    flops = training_flops(model, rollouts.prompts, rollouts.responses)
    title = f"{name(context, '1.5B')}, {variant.name}"
    yield fact(f"{title}: update", tokens / spent["update"], "tokens/s")
    yield fact(f"{title}: MFU", 100 * flops / spent["update"] / context.flops, "%")
    yield fact(f"{title}: log π, update and measurements", tokens / sum(spent.values()), "tokens/s")
    yield fact(f"{title}: peak memory", peak(context.device) / 2**30, "GiB")
    yield fact(f"{title}: the first update, compilation included", cold, "s")
    if variant.profiled:
        few = batch(context, model.config.vocab_size, 2, seed=2)
        page, _ = profiled(context, lambda: step(6, few))
        write_text(context.out / "profile.md", page)


def profiled(context: Context, work: Callable[[], object]) -> tuple[str, float]:
    """(the kernels that take the most time, as a Markdown table; the share of the time in which kernels run, in %)."""
    with profile(activities=[ProfilerActivity.CUDA if context.cuda else ProfilerActivity.CPU]) as seen:
        took, _ = seconds(context.device, work)  # the profiler's own start and end left out
    key = "self_device_time_total" if context.cuda else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    lines = [
        f"| {event.key[:110].replace('|', '/')} | {event.count} | {getattr(event, key) / 1000:.2f} | "
        f"{getattr(event, key) / total:.1%} |"
        for event in events[:TOP]
    ]
    page = "\n".join(["| kernel | calls | ms | of all |", "| --- | --- | --- | --- |", *lines]) + "\n"
    return page, total / took / 1e4


def decoding(context: Context, shape: str, needed: float, fuse: bool = False) -> Iterator[Row]:
    """Tokens a second of the second of two calls, as a multiple of the bound; the first call records the graphs.

    fuse: norms and feed-forward blocks are compiled, which the trainer does not do for decoding. A decoding step of
    Qwen2 launches about 45 kernels a layer, most of them tiny; how much of the time is theirs is the profile's to say.
    """
    title = f"{name(context, shape)}{', compiled' if fuse else ''}"
    if context.left < needed:
        yield skipped(f"{title}: rollout", f"{context.left:.0f} s left, {needed:.0f} needed")
        return
    model: PreTrainedModel = build(size(context, shape), context.device, context.compute)
    if fuse and context.cuda:
        compile_layers(model)
    rows_, prompt, tokens = (4, 8, 12) if context.quick else (128, 256, 512)
    engine = TorchEngine(model, EOS, kv_bytes=budget(model.device) if context.cuda else None)
    prompts = random_rollouts(model.config.vocab_size, 1, 2, prompt, (1, 1), seed=4).prompts
    calls = [
        seconds(context.device, lambda s=seed: engine.sample(prompts, rows_, Sampling(tokens), s)) for seed in (1, 2)
    ]
    spent, made = calls[1]
    lengths = [len(response) for response in made[0]]
    least = sampling_bytes(model, prompt, lengths, context.compute.itemsize) / context.bandwidth
    yield fact(f"{title}: rollout of {rows_} responses", sum(lengths) / spent, "tokens/s")
    yield goal(f"{title}: rollout, time over its bound", spent / least, most=2)
    yield fact(f"{title}: rollout, the first call", calls[0][0], "s")
    yield fact(f"{title}: rollout, peak memory", peak(context.device) / 2**30, "GiB")
    if shape == "1.5B":
        short = Sampling(tokens // 8)
        page, busy = profiled(context, lambda: engine.sample(prompts, rows_, short, 3))
        yield fact(f"{title}: rollout, time in kernels while profiled", busy, "%")
        write_text(context.out / f"profile-decoding{'-compiled' if fuse else ''}.md", page)


def one_pass(context: Context) -> Iterator[Row]:
    """7B: one pass of 16k tokens forward and backward, layers recomputed; no optimizer."""
    title = name(context, "7B")
    model = build(size(context, "7B"), context.device, context.compute)
    checkpoint_activations(model)
    rollouts = batch(context, model.config.vocab_size, 2, seed=1)
    packed = pack(rollouts.prompts, rollouts.responses, context.device)

    def once() -> None:
        model.zero_grad(set_to_none=True)
        log_probs(model, packed)[0].mean().backward()

    once()
    spent = min(seconds(context.device, once)[0] for _ in range(2))
    tokens = packed_tokens(rollouts.prompts, rollouts.responses)
    flops = training_flops(model, rollouts.prompts, rollouts.responses)
    yield fact(f"{title}, forward and backward alone", tokens / spent, "tokens/s")
    yield goal(f"{title}, forward and backward alone: MFU", 100 * flops / spent / context.flops, least=50, unit="%")
    yield fact(f"{title}, forward and backward alone: peak memory", peak(context.device) / 2**30, "GiB")
