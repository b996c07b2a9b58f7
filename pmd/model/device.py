"""Whether this PyTorch can compute on a device, and what memory is to be had there: one line says no before any work.

`refusal`, `spare` and `held` are pure, so that they can be tested where there is no GPU.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass

import torch

GIB = 2**30

CONTEXT = 1 * GIB
"""What this process itself may hold of a GPU at its start, for the CUDA context: an allowance, not a measurement."""

RESERVE = 0.1
"""Share of a GPU's memory left for the CUDA context, NCCL and fragmentation: an allowance, not a measurement."""

BFLOAT16 = (8, 0)
"""The lowest compute capability whose matrix products take bfloat16: that of the A100."""


@dataclass(frozen=True)
class Cuda:
    """What a process sees of CUDA before it uses a device."""

    torch: str  # PyTorch's version
    build: str | None  # the CUDA version that PyTorch was built with; None: it was built for CPUs alone
    driver: tuple[int, int] | None  # the CUDA version that the driver supports; None: there is no driver
    devices: int  # how many GPUs PyTorch can use
    name: str = ""  # of the GPU in question, if it is there
    capability: tuple[int, int] = (0, 0)


def check_device(device: str, dtype: str = "float32") -> None:
    """ValueError in one line unless this PyTorch can compute there in this type, one of torch's names."""
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: got 'mps', but PyTorch sees no GPU of Apple's; choose cpu or cuda")
    if device.partition(":")[0] == "cuda" and (line := refusal(device, dtype, _cuda(device))):
        raise ValueError(line)


def refusal(device: str, dtype: str, cuda: Cuda) -> str | None:
    """Why PyTorch cannot compute on a CUDA device in this type, or None if it can."""
    need = tuple(map(int, cuda.build.split("."))) if cuda.build else None
    if need and cuda.driver and cuda.driver[0] < need[0]:  # within a major version older drivers do
        return (
            f"device: got {device!r}, but the driver of this machine supports CUDA {_dotted(cuda.driver)} and PyTorch "
            f"{cuda.torch} needs {need[0]}.0 or newer; update the driver, choose cpu, or install a PyTorch built for "
            f"CUDA {cuda.driver[0]}"
        )
    if int(device.partition(":")[2] or 0) >= cuda.devices:
        return (
            f"device: got {device!r}, but PyTorch {cuda.torch} sees {cuda.devices} CUDA devices; "
            "choose cpu, or install a PyTorch with CUDA and check the driver with nvidia-smi"
        )
    if dtype == "bfloat16" and cuda.capability < BFLOAT16:
        return (
            f"dtype: got 'bfloat16', must be float32 on {device}, a {cuda.name} of compute capability "
            f"{_dotted(cuda.capability)}: bfloat16 takes {_dotted(BFLOAT16)}"
        )
    return None


def available(device: str | torch.device) -> tuple[float, float]:
    """(what this process may still take, all) of a CUDA device's bytes; what PyTorch holds without use can be taken."""
    free, total = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total


def taken(free: float, total: float) -> float:
    """Bytes of a GPU's memory that are in use, beside this process's own CUDA context."""
    return max(0.0, total - free - CONTEXT)


def spare(free: float, total: float) -> float:
    """Bytes of a GPU that a run may plan with: RESERVE of the whole is kept, whatever else is in use."""
    return (1 - RESERVE) * total - taken(free, total)


def held(free: float, total: float) -> str | None:
    """How much of a GPU's memory other processes hold, in words; None if it is little. free, total: bytes, as
    torch.cuda.mem_get_info gives them before this process has put anything there."""
    others = taken(free, total)
    return f"other processes hold {others / GIB:.1f} of its {total / GIB:.1f} GiB" if others > 0 else None


def check_memory(device: str, need: float, what: str, help: str) -> None:
    """ValueError in one line if `what` takes more bytes than a CUDA device has to spare; help: what the user can do."""
    if device.partition(":")[0] != "cuda":
        return
    gc.collect()  # a sharded policy that nobody uses any more is a cycle, which would keep its weights and gradients
    free, total = available(device)
    if (room := spare(free, total)) < need:
        raise ValueError(
            f"device: {what} takes {need / GIB:.1f} GiB at least, and {device} has {max(0.0, room) / GIB:.1f} of its "
            f"{total / GIB:.1f} to spare: {(need - room) / GIB:.1f} too much; {help}"
        )


def _cuda(device: str) -> Cuda:
    """The facts about a device, as they are."""
    index, devices = int(device.partition(":")[2] or 0), torch.cuda.device_count() if torch.cuda.is_available() else 0
    facts = (torch.__version__, torch.version.cuda, _driver(), devices)
    if index >= devices:
        return Cuda(*facts)
    return Cuda(*facts, torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))


def _driver() -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver supports."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:  # no driver
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
