"""Weights, gradients and optimizer moments divided among ranks, by PyTorch's FSDP2.

A sharded policy keeps fp32 weights, of which every rank holds its rows. A pass gathers one layer after another in the
type of the products (pmd/model/forward.py), so the residual stream has that type too, and gradients are summed in fp32.
On CUDA a policy that is trained is always sharded, one GPU being the case of one rank: autocast would keep a cast copy
of all weights and a residual stream in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType

import torch
from torch import Tensor, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from pmd.model.distributed import world
from pmd.model.forward import SHARDED, compute_type, layers, packed_log_probs


def trained_sharded(device: str) -> bool:
    """Is a policy that is trained on this device sharded? With several ranks, and on CUDA with one too."""
    return world()[1] > 1 or device.startswith("cuda")


def shard(model: PreTrainedModel, device: str) -> None:
    """Divide a policy among the ranks, in place; `model.packed_log_probs` then gathers the weights that it needs.

    A policy on the meta device, in fp32, gets memory for this rank's rows alone, to be filled by the caller. Any other
    moves to the device layer after layer, so that it never holds more than one of them whole.
    """
    compute = compute_type(model)
    policy = MixedPrecisionPolicy() if compute == torch.float32 else MixedPrecisionPolicy(compute, torch.float32)
    empty = model.device.type == "meta"

    def place(module: nn.Module) -> nn.Module:
        return module if empty else module.to(device, torch.float32)

    mesh = init_device_mesh(torch.device(device).type, (world()[1],))
    for layer in layers(model):
        fully_shard(place(layer), mesh=mesh, mp_policy=policy)
    fully_shard(place(model), mesh=mesh, mp_policy=policy)
    if empty:
        allocate(model, device)
    setattr(model, SHARDED, MethodType(packed_log_probs, model))
    register_fsdp_forward_method(model, SHARDED)


def allocate(model: PreTrainedModel, device: str | torch.device) -> None:
    """Memory on the device for a model that was built on the meta device.

    Its parameters have no values yet. Its buffers, which no file holds, have theirs: rotary embeddings' frequencies.
    """
    model.to_empty(device=device)
    model.tie_weights()  # parameters that were one are two after that
    for module in model.modules():
        if module._buffers:
            model._init_weights(module)


def sharded(model: nn.Module) -> bool:
    """Are the weights divided among ranks?"""
    return hasattr(model, SHARDED)


def own_rows(parameter: nn.Parameter | Tensor) -> slice:
    """Which rows of the whole parameter this rank holds: all of one in a single piece."""
    rows = len(parameter)
    if not isinstance(parameter, DTensor):
        return slice(0, rows)
    rank, ranks = world()
    share = -(-rows // ranks)  # FSDP2 divides rows as torch.chunk does
    return slice(min(rank * share, rows), min((rank + 1) * share, rows))


def local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor, which share its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of the state dict, one gathered at a time; all ranks must go through it to its end."""
    for name, weight in model.state_dict().items():
        yield name, weight.full_tensor() if isinstance(weight, DTensor) else weight
