"""Ranks: what is divided among the processes of a torchrun job, and what every one of them holds.

Every rank holds the whole batch of rollouts, so groups and their baselines are never split and metrics need no
approximation. Divided are sampling and verification (`spread`), the forward and backward passes and, by PyTorch's
FSDP2 (pmd/model/sharding.py), the weights, gradients and optimizer moments. One process is the case of one rank: there
every function here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=2)
"""How long a rank waits for another in a collective, since one may sample for long. torchrun notices a dead rank."""


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_device(device: str) -> str:
    """The device of this rank: of a torchrun job on CUDA each has its own, a process alone that of its settings."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{os.environ['LOCAL_RANK']}" if device.startswith("cuda") and several else device


def start(device: str) -> str:
    """Join the torchrun job that this process belongs to, if any; returns the rank's own device.

    A single process on CUDA becomes a group of one rank, which FSDP2 asks for; a single process on a CPU needs none.
    """
    cuda, alone = device.startswith("cuda"), int(os.environ.get("WORLD_SIZE", "1")) == 1
    device = own_device(device)
    if cuda and torch.device(device).index is not None and torch.device(device).index < torch.cuda.device_count():
        torch.cuda.set_device(device)  # a device that is not there is reported when the policy is loaded
    if dist.is_initialized() or (alone and not cuda):
        return device
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if not alone:
        dist.init_process_group(backend, timeout=PATIENCE)
    elif torch.cuda.is_available():
        dist.init_process_group(backend, timeout=PATIENCE, store=dist.HashStore(), rank=0, world_size=1)
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


def agree(value: dict[str, Any]) -> None:
    """ValueError on every rank, naming the first difference, unless all ranks have the same mapping."""
    values = gather(value)
    for rank, other in enumerate(values):
        for key in sorted({*other, *values[0]}):
            if other.get(key) != values[0].get(key):
                raise ValueError(
                    f"ranks: rank {rank} has {key} = {other.get(key)!r}, rank 0 has {values[0].get(key)!r}; "
                    "start every rank from the same files and arguments"
                )


def spread(work: Callable[[list, int], list], items: list, copies: int = 1) -> list:
    """`work(share, first)` on each rank's contiguous share of the items; every rank gets all results, in order.

    first: how many items stand before the share. copies: how many neighbouring ranks work on the same share together
    (tensor parallelism). ValueError if the number of ranks is not a multiple of it.
    """
    rank, size = world()
    if size % copies:
        raise ValueError(f"tensor_parallel_size: got {copies}, must be a divisor of the {size} ranks")
    parts, part = size // copies, rank // copies
    bounds = [len(items) * i // parts for i in (part, part + 1)]
    found = gather(work(items[slice(*bounds)], bounds[0]))
    return [result for results in found[::copies] for result in results]
