"""The base model: supervised training on worked answers with deliberate faults."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from pmd.bar import progress_bar
from pmd.files import digest, fingerprint, write_json, write_jsonl
from pmd.harness.run_folder import remove_other
from pmd.model import checkpoint
from pmd.model.device import check_device
from pmd.model.forward import log_probs
from pmd.model.from_scratch import build_policy
from pmd.model.loading import save_policy
from pmd.model.packing import pack
from pmd.model.settings import Base
from pmd.model.threads import use_threads
from pmd.problems.arithmetic import SYMBOLS
from pmd.sampling.seeds import derive, prompt_order

CHECKPOINT_EVERY = 250
"""Optimizer steps between two checkpoints."""


def learning_rate(config: Base, step: int) -> float:
    """Linear warm-up to `lr`, then a cosine to a tenth of it; step counts from 1."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.1 + 0.9 * (1 + math.cos(math.pi * part)) / 2)


def train_base(config: Base, traces: list[dict], out: str | Path, progress: bool = True) -> dict:
    """Train from scratch on `traces` (prompt, response) and write the model folder `out`; returns its metrics.

    Minimises the mean negative log-likelihood of the response tokens, in nats. A run that stopped goes on from its last
    checkpoint, unless other parameters, traces or code began it. Returns the last loss and the number of parameters.
    ValueError before any work if a trace has no response or if there is no such device; FloatingPointError at a loss
    that is not finite.
    """
    out = Path(out)
    check_device(config.device, config.dtype)
    for number, trace in enumerate(traces, start=1):
        if not trace.get("response"):
            raise ValueError(f"supervised trace {number} (id {trace['id']!r}): column 'response' is missing or empty")
    use_threads(config.threads)
    torch.manual_seed(derive(config.seed, 0, "sft"))
    model, tokenizer = build_policy(
        SYMBOLS,
        config.layers,
        config.width,
        config.heads,
        config.kv_heads,
        config.feedforward,
        config.seed,
        config.positions,
    )
    model.to(config.device)
    model.compute_dtype = getattr(torch, config.dtype)

    @cache  # a trace is encoded when it is first drawn
    def tokens(i: int) -> tuple[list[int], list[list[int]]]:
        prompt, response = (tokenizer.encode(traces[i][part]) for part in ("prompt", "response"))
        return prompt, [[*response, tokenizer.eos_token_id]]

    optimizer = torch.optim.AdamW(model.parameters(), config.lr, (0.9, 0.95), weight_decay=0.1, fused=True)
    work = out.with_name(f"{out.name}-work")
    run = config.model_dump() | {"traces": digest(traces), "code": fingerprint()}
    remove_other(work, run)
    write_json(work / "run.json", run)
    found = checkpoint.latest(work)
    state = checkpoint.load(found, model, optimizer)[0] if found else {"step": 0, "log": [], "seconds": 0.0}
    start = time.perf_counter() - state["seconds"]
    with progress_bar(
        total=config.steps, initial=state["step"], disable=not progress, desc="base", mininterval=1
    ) as bar:
        for step in range(state["step"] + 1, config.steps + 1):
            chosen = prompt_order(config.seed, step, config.batch, len(traces))
            loss = _step(config, step, model, optimizer, *zip(*map(tokens, chosen), strict=True))
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if step % 20 == 0 or step == config.steps:
                state["log"].append({"step": step, "loss": loss, "lr": learning_rate(config, step)})
            if step % CHECKPOINT_EVERY == 0:
                state.update(step=step, seconds=time.perf_counter() - start)
                checkpoint.save(work, step, model, optimizer, state)
    save_policy(model, tokenizer, out)
    write_jsonl(out / "log.jsonl", state["log"])
    metrics = {"loss": state["log"][-1]["loss"], "parameters": sum(p.numel() for p in model.parameters())}
    write_json(out / "metrics.json", metrics)
    shutil.rmtree(work)
    return metrics


def _step(
    config: Base, step: int, model, optimizer, prompts: Sequence[list[int]], responses: Sequence[list[list[int]]]
) -> float:
    log_p, _ = log_probs(model, pack(prompts, responses, config.device))
    loss = -log_p.mean()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"step {step}: the supervised loss is {loss.item()} (base.lr {config.lr}); lower base.lr"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    optimizer.step()
    return loss.item()
