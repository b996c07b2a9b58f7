"""The trainer on the device against the trainer on a CPU: log-probabilities, and one update of every objective.

Updates are compared by how the weights change under plain gradient descent, whose step is proportional to the gradient.
AdamW's first step is near the gradient's sign, which rounding can turn where the gradient is nearly zero: its bound is
wider.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.trainer.objectives import OBJECTIVES
from pmd.trainer.passes import Rollouts
from pmd.trainer.update import learn
from sections.common import (
    SMALL,
    TINY,
    Context,
    PhaseClock,
    Row,
    bound,
    build,
    change,
    error,
    fresh,
    opinionated,
    random_rollouts,
    train_config,
    whole,
)

UPDATE = {"prompts": 4, "group_size": 4, "minibatches": 2, "probe": 1, "warmup": 0, "lr": 0.3}


def rows(context: Context) -> Iterator[Row]:
    """fp32 without TF32 first, then bf16."""
    config = TINY if context.quick else SMALL
    longest = 24 if context.quick else 200
    rollouts = random_rollouts(config.vocab_size, 4, 4, longest // 4, (longest // 3, longest), seed=5)
    start = opinionated(build(config, "cpu", torch.float32))
    exact = logs(start, rollouts, "cpu")
    difference = (logs(placed(start, context.device, torch.float32), rollouts, context.device) - exact).abs()
    yield bound("log-probabilities, fp32: largest difference", difference.max().item(), 1e-5, "nats")
    for method in OBJECTIVES:
        difference = compared(context, start, rollouts, method, torch.float32, "sgd")
        yield bound(f"one update of {method}, fp32: change of the weights", difference, 1e-4)
    yield bound(
        "one update of pmd-mean with AdamW, fp32: change of the weights",
        compared(context, start, rollouts, "pmd-mean", torch.float32, "adamw"),
        2e-2,
    )
    fresh(context.device)
    difference = (logs(placed(start, context.device, torch.bfloat16), rollouts, context.device) - exact).abs()
    yield bound("log-probabilities, bf16: largest difference", difference.max().item(), 0.15, "nats")
    yield bound("log-probabilities, bf16: mean difference", difference.mean().item(), 0.03, "nats")
    yield bound(
        "one update of pmd-mean, bf16: change of the weights",
        compared(context, start, rollouts, "pmd-mean", torch.bfloat16, "sgd"),
        0.1,
    )


def placed(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the model on the device, its products in `dtype`."""
    made = copy.deepcopy(model).to(device)
    made.compute_dtype = dtype
    return made


@torch.no_grad()
def logs(model: PreTrainedModel, rollouts: Rollouts, device: str) -> Tensor:
    """log π of every response token, on the CPU."""
    return log_probs(model, pack(rollouts.prompts, rollouts.responses, device))[0].cpu()


def compared(
    context: Context, start: PreTrainedModel, rollouts: Rollouts, method: str, dtype: torch.dtype, optimizer: str
) -> float:
    """‖Δ on the device − Δ on the CPU‖ / ‖Δ on the CPU‖ of one step; on the device in more and smaller passes."""
    budget = max(len(r) for group in rollouts.responses for r in group) * 3
    here = updated(start, rollouts, method, "cpu", torch.float32, optimizer, None)
    there = updated(start, rollouts, method, context.device, dtype, optimizer, budget)
    return error(there, here)


def updated(
    start: PreTrainedModel,
    rollouts: Rollouts,
    method: str,
    device: str,
    dtype: torch.dtype,
    optimizer: str,
    budget: int | None,
) -> Tensor:
    """How one step of the trainer's own `learn` changes the weights."""
    longest = max(len(r) for group in rollouts.responses for r in group)
    model = placed(start, device, dtype)
    lr = UPDATE["lr"] if optimizer == "sgd" else 1e-4
    config = train_config(
        method, 1, **UPDATE | {"lr": lr, "max_tokens": longest, "device": device, "microbatch_tokens": budget}
    )
    make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    learn(config, 1, model, make(model.parameters(), lr), rollouts, PhaseClock(device))
    return change(whole(start), whole(model))
