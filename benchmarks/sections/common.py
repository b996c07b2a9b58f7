"""What the sections share: rows and their verdicts, clocks, memory, models with random weights, random rollouts."""

from __future__ import annotations

import copy
import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, Qwen2Config

from pmd.model.attention import PACKED
from pmd.trainer.rollouts import Rollouts

EOS = 1
"""The end of a response, in models with random weights."""

# --- rows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One result. kind: "fact", "goal" (of speed or memory; missing it is reported) or "bound" (of correctness;
    breaking it fails the section). limit: what the value is held against, in words."""

    name: str
    value: float | str | bool
    unit: str = ""
    kind: str = "fact"
    limit: str = ""
    verdict: str = ""


def fact(name: str, value: float | str | bool, unit: str = "") -> Row:
    """A result that is held against nothing."""
    return Row(name, value, unit)


def bound(name: str, value: float, most: float, unit: str = "") -> Row:
    """A result that is wrong above `most`, or if it is not a number."""
    verdict = "holds" if value <= most else f"FAILS: must be at most {most:g}"
    return Row(name, value, unit, "bound", f"at most {most:g}", verdict)


def equal(name: str, same: bool) -> Row:
    """Two results that must be the same to the bit."""
    return Row(name, bool(same), "", "bound", "the same bits", "holds" if same else "FAILS: they differ")


def goal(name: str, value: float, *, most: float | None = None, least: float | None = None, unit: str = "") -> Row:
    """A result that should be at most `most`, or at least `least`."""
    limit, missed = (most, value / most - 1) if most is not None else (least, 1 - value / least)
    words = f"at {'most' if most is not None else 'least'} {limit:g}"
    return Row(name, value, unit, "goal", words, f"missed by {missed:.0%}" if not missed <= 0 else "met")


def skipped(name: str, why: str) -> Row:
    """A result that there is not, and why."""
    return Row(name, f"not run: {why}")


# --- the machine ---------------------------------------------------------------------------------------------------


@dataclass
class Context:
    """What every section is given. quick: smallest sizes; deadline: on `time.monotonic`'s clock."""

    device: str
    quick: bool
    out: Path
    scratch: Path
    deadline: float
    found: dict[str, float] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds until the command must end."""
        return self.deadline - time.monotonic()

    @property
    def compute(self) -> torch.dtype:
        """What matrix products are made in: few CPUs have instructions for bf16."""
        return torch.bfloat16 if self.cuda else torch.float32

    @property
    def flops(self) -> float:
        """FLOP/s of a large matrix product in `compute`, measured once."""
        if "flops" not in self.found:
            n = 8192 if self.cuda else 256
            a, b = (torch.randn(n, n, device=self.device, dtype=self.compute) for _ in range(2))
            self.found["flops"] = 2 * n**3 / statistics.median(times(self.device, lambda: a @ b, 20))
        return self.found["flops"]

    @property
    def bandwidth(self) -> float:
        """Bytes/s of a large copy within the device's memory, read and written, measured once."""
        if "bandwidth" not in self.found:
            n = 2**30 if self.cuda else 2**22
            source = torch.randint(0, 100, (n,), dtype=torch.int32, device=self.device)
            target = torch.empty_like(source)
            seconds = statistics.median(times(self.device, lambda: target.copy_(source), 20))
            self.found["bandwidth"] = 2 * source.nbytes / seconds
        return self.found["bandwidth"]


def synchronise(device: str) -> None:
    """Wait for what was asked of the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def times(device: str, work: Callable[[], object], repeats: int, warmup: int = 2) -> list[float]:
    """Seconds of each of `repeats` calls after some to warm up: by CUDA's events, on a CPU by its clock."""
    for _ in range(warmup):
        work()
    if not device.startswith("cuda"):
        return [seconds(device, work)[0] for _ in range(repeats)]
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for began, ended in events:
        began.record()
        work()
        ended.record()
    torch.cuda.synchronize(device)
    return [began.elapsed_time(ended) / 1000 for began, ended in events]


def seconds(device: str, work: Callable[[], object]) -> tuple[float, object]:
    """(seconds, result) of one call, the device's own time included."""
    synchronise(device)
    began = time.perf_counter()
    result = work()
    synchronise(device)
    return time.perf_counter() - began, result


class PhaseClock:
    """Seconds by phase, as the trainer's clock counts them, but each phase waits for the device."""

    def __init__(self, device: str):
        self.device, self.seconds = device, {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        synchronise(self.device)
        began = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def held(device: str) -> int:
    """Bytes that tensors hold on a GPU now; on a CPU nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def peak(device: str) -> int:
    """The most bytes that tensors held since `free`; on a CPU the process's since it began."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free(device: str) -> None:
    """Give back what is not held any more, and start measuring the peak anew."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def fresh(device: str) -> None:
    """`free`, and forget what was compiled: PyTorch compiles one function eight times at most, and a run meets fewer
    types and shapes than all sections together."""
    torch._dynamo.reset()
    free(device)


@contextmanager
def one_rank(context: Context) -> Iterator[None]:
    """A torchrun job of one rank, unless there is one: what FSDP2 needs."""
    if dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if context.cuda else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


# --- models and rollouts -------------------------------------------------------------------------------------------


def qwen(vocabulary: int, width: int, layers: int, heads: int, kv_heads: int, feedforward: int) -> Qwen2Config:
    """A Qwen2 architecture with one matrix for embedding and head, and room for 4,096 tokens."""
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feedforward,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )


SMALL = qwen(512, 256, 4, 4, 2, 768)
"""What a GPU is compared with a CPU on: 3 million parameters, heads of 64 as in the 0.5B shape."""

TINY = qwen(128, 64, 2, 4, 2, 128)
"""What a CPU runs in no time."""


def build(config: PreTrainedConfig, device: str, dtype: torch.dtype, compute: torch.dtype | None = None):
    """A model with random weights made on the device, in `dtype`; products in `compute`, by default the same."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=PACKED, dtype=dtype)
    model.compute_dtype = compute or dtype
    return model.eval()  # as a loaded policy is: in training mode layers that recompute drop the cache


@torch.no_grad()
def opinionated(model: PreTrainedModel) -> PreTrainedModel:
    """The model with logits of about one unit: as it is initialised, every token is nearly as likely as any other."""
    model.get_input_embeddings().weight.mul_(2.5)
    return model


def random_rollouts(vocabulary: int, groups: int, n: int, prompt: int, lengths: tuple[int, int], seed: int) -> Rollouts:
    """Groups of n random responses of `lengths[0]` to `lengths[1]` tokens behind a prompt; of each group some are
    rewarded."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(3, vocabulary, (count,), generator=generator).tolist()

    def length() -> int:
        return int(torch.randint(lengths[0], lengths[1] + 1, (1,), generator=generator))

    rewards = (torch.rand(groups, n, generator=generator) < 0.5).float()
    rewards[:, 0], rewards[:, 1] = 0, 1
    prompts = [ids(prompt) for _ in range(groups)]
    return Rollouts(prompts, [[ids(length()) for _ in range(n)] for _ in range(groups)], rewards, 0.0)


def error(found: Tensor, exact: Tensor) -> float:
    """‖found − exact‖ / ‖exact‖ in float64; NaN stays NaN."""
    found, exact = found.detach().double(), exact.detach().double().to(found.device)
    return ((found - exact).norm() / exact.norm()).item()


def whole(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every weight on the CPU, gathered if the model is sharded."""
    weights = ((name, p.full_tensor() if isinstance(p, DTensor) else p) for name, p in model.named_parameters())
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights}


def change(before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    """How the weights changed, as one vector; without the keys' biases, whose gradient is nothing but rounding."""
    return torch.cat([(after[k].double() - before[k].double()).flatten() for k in before if "k_proj.bias" not in k])
