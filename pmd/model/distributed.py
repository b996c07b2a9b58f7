"""Ranks: what is divided among the processes of a torchrun job, and what every one of them holds.

Every rank holds the whole batch of rollouts, so groups and their baselines are never split and metrics need no
approximation. Divided are sampling and verification (`spread`), the forward and backward passes (pmd/trainer/passes.py)
and, by PyTorch's FSDP2 (`shard`), the weights, gradients and optimizer moments. One process is the case of one rank:
there every function here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pmd.model.attention import PACKED
from pmd.model.forward import score
from pmd.sampling.torch_engine import Responses, Sampling, TorchEngine

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another in a collective: one may sample for long. A dead rank is torchrun's to notice."""


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start(device: str) -> str:
    """Join the torchrun job that this process belongs to, if any; returns the rank's own device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        if int(os.environ["LOCAL_RANK"]) < torch.cuda.device_count():  # else load_policy says so
            torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    return device


def barrier() -> None:
    """Wait for every rank."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in order, on every rank."""
    _, size = world()
    values = [value] * size
    if size > 1:
        dist.all_gather_object(values, value)
    return values


def total(values: list[float]) -> list[float]:
    """Sums over ranks, in float64 and in the order of the ranks, so that every rank has the same bits."""
    return [sum(column) for column in zip(*gather(values), strict=True)]


def agree(what: str, value: dict[str, Any]) -> None:
    """ValueError on every rank, naming the first difference, unless all ranks have the same mapping."""
    values = gather(value)
    for rank, other in enumerate(values):
        for key in sorted({*other, *values[0]}):
            if other.get(key) != values[0].get(key):
                raise ValueError(
                    f"{what}: rank {rank} has {key} = {other.get(key)!r}, rank 0 has {values[0].get(key)!r}; "
                    "start every rank from the same files and arguments"
                )


def spread(work: Callable[[list, int], list], items: list, copies: int = 1) -> list:
    """`work(share, first)` on each rank's contiguous share of the items; every rank gets all results, in order.

    first: the items before the share; copies: neighbouring ranks that do the same share together (tensor parallelism).
    ValueError if the ranks cannot be grouped so.
    """
    rank, size = world()
    if size % copies:
        raise ValueError(f"tensor_parallel_size: got {copies}, must be a divisor of the {size} ranks")
    parts, part = size // copies, rank // copies
    bounds = [len(items) * i // parts for i in (part, part + 1)]
    found = gather(work(items[slice(*bounds)], bounds[0]))
    return [result for results in found[::copies] for result in results]


# --- sharded weights -----------------------------------------------------------------------------------------------


def shard(model: PreTrainedModel, device: str) -> None:
    """Divide weights, gradients and optimizer moments among the ranks (FSDP2), in place.

    Weights are kept in fp32; products are in the model's compute type and gradients summed in fp32. Layer after layer
    goes to the device, so that it never holds more than one of them whole. `score` becomes a method that gathers the
    weights it needs.
    """
    compute = model.compute_dtype
    policy = MixedPrecisionPolicy() if compute == torch.float32 else MixedPrecisionPolicy(compute, torch.float32)
    for layer in model.base_model.layers:
        fully_shard(layer.to(device, torch.float32), mp_policy=policy)
    fully_shard(model.to(device, torch.float32), mp_policy=policy)
    model.score = MethodType(score, model)
    register_fsdp_forward_method(model, "score")


def sharded(model: nn.Module) -> bool:
    """Are the weights divided among ranks?"""
    return any(isinstance(p, DTensor) for p in model.parameters())


def full_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of the state dict, one gathered at a time; all ranks must go through it to its end."""
    for name, weight in model.state_dict().items():
        yield name, weight.full_tensor() if isinstance(weight, DTensor) else weight


class ReplicaEngine:
    """The torch engine on a whole copy of a sharded policy, refreshed at every call: ranks sample each at its pace."""

    def __init__(self, model: PreTrainedModel, eos: int):
        self.model = model
        copy = AutoModelForCausalLM.from_config(model.config, attn_implementation=PACKED, dtype=model.compute_dtype).to(
            model.device
        )
        copy.compute_dtype = model.compute_dtype
        self.engine = TorchEngine(copy, eos)

    def sample(self, prompts: list[list[int]], n: int, sampling: Sampling, seed: int, first: int = 0) -> Responses:
        """See pmd.sampling.torch_engine.Engine."""
        own = self.engine.model.state_dict()
        for name, weight in full_weights(self.model):
            own[name].copy_(weight)
        return self.engine.sample(prompts, n, sampling, seed, first)
