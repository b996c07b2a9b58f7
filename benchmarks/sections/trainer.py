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

from pmd.harness.config import Train, train_config
from pmd.model.forward import log_probs
from pmd.model.packing import pack
from pmd.model.sharding import shard
from pmd.trainer.objectives import OBJECTIVES
from pmd.trainer.rollouts import Rollouts
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
    one_rank,
    opinionated,
    random_rollouts,
    whole,
)

UPDATE = {"prompts": 4, "group_size": 4, "minibatches": 2, "probe": 1, "warmup": 0}


def rows(context: Context) -> Iterator[Row]:
    """fp32 without TF32 first, then bf16."""
    with one_rank(context):
        yield from compared(context)


def compared(context: Context) -> Iterator[Row]:
    """The device's policy is sharded, as one that is trained on CUDA; the CPU's is in one piece."""
    config = TINY if context.quick else SMALL
    longest = 24 if context.quick else 200
    rollouts = random_rollouts(config.vocab_size, 4, 4, longest // 4, (longest // 3, longest), seed=5)
    start = opinionated(build(config, "cpu", torch.float32))
    exact = logs(start, rollouts, "cpu")

    def distance(method: str, dtype: torch.dtype, lr: float, adam: bool = False) -> float:
        """‖Δ on the device − Δ on the CPU‖ / ‖Δ on the CPU‖ of one step; on the device in more and smaller passes."""
        settings = UPDATE | {"lr": lr, "max_tokens": longest}
        here = updated(copy.deepcopy(start), rollouts, train_config(method, 1, **settings), adam)
        settings |= {"device": context.device, "microbatch_tokens": 3 * longest}
        there = updated(placed(start, context.device, dtype), rollouts, train_config(method, 1, **settings), adam)
        return error(change(whole(start), there), change(whole(start), here))

    difference = (logs(placed(start, context.device, torch.float32), rollouts, context.device) - exact).abs()
    yield bound("log-probabilities, fp32: largest difference", difference.max().item(), 1e-5, "nats")
    for method in OBJECTIVES:
        title = f"one update of {method}, fp32: change of the weights"
        yield bound(title, distance(method, torch.float32, 0.3), 1e-4)
    title = "one update of pmd-mean with AdamW, fp32: change of the weights"
    yield bound(title, distance("pmd-mean", torch.float32, 1e-4, adam=True), 2e-2)
    fresh(context.device)
    difference = (logs(placed(start, context.device, torch.bfloat16), rollouts, context.device) - exact).abs()
    yield bound("log-probabilities, bf16: largest difference", difference.max().item(), 0.15, "nats")
    yield bound("log-probabilities, bf16: mean difference", difference.mean().item(), 0.03, "nats")
    title = "one update of pmd-mean, bf16: change of the weights"
    yield bound(title, distance("pmd-mean", torch.bfloat16, 0.3), 0.1)


def placed(model: PreTrainedModel, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the model on the device, sharded, its products in `dtype`."""
    made = copy.deepcopy(model)
    made.compute_dtype = dtype
    shard(made, device)
    return made


@torch.no_grad()
def logs(model: PreTrainedModel, rollouts: Rollouts, device: str) -> Tensor:
    """log π of every response token, on the CPU."""
    return log_probs(model, pack(rollouts.prompts, rollouts.responses, device))[0].cpu()


def updated(model: PreTrainedModel, rollouts: Rollouts, config: Train, adam: bool) -> dict[str, Tensor]:
    """The weights after one step of the trainer's own `learn`."""
    make = torch.optim.AdamW if adam else torch.optim.SGD
    learn(config, 1, model, make(model.parameters(), config.lr), rollouts, PhaseClock(config.device))
    return whole(model)
