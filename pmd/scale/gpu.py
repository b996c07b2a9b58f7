"""The look at a GPU before any work: can PyTorch compute there, does the run fit, does somebody else use it?"""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedConfig

from pmd.harness.config import Train
from pmd.model.device import check_device, held
from pmd.model.distributed import own_device
from pmd.scale.memory import on_gpu
from pmd.scale.plan import check_fit


def check_gpu(
    config: PreTrainedConfig, train: Train, prompt: int, together: int = 1, what: str = "", help: str = ""
) -> str | None:
    """What other processes hold of the GPU that this rank will use, in words; None if that is little, or on a CPU.

    ValueError in one line, before a model is read, if PyTorch cannot compute there or if the run does not fit. The
    arguments are those of `check_fit`; none of the `together` processes that will share the GPU has begun.
    """
    if not on_gpu(train):
        return None
    device, ranks = own_device(train.device), int(os.environ.get("WORLD_SIZE", "1"))
    check_device(device, train.dtype)
    free, memory = torch.cuda.mem_get_info(device)
    check_fit(config, train, prompt, ranks, free, memory, together, what, help)
    others = held(free, memory)
    return others and f"{device}: {others}; the run has room in what is left"
