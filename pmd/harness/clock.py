"""Where the seconds of a step go, and what a row of timing.jsonl says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pmd.processes import peak_memory_mb

PHASES = ("rollout", "reward", "old", "update", "probe", "eval", "checkpoint")
"""Sampling, verification, log π_t, the K optimizer steps, the measurements after them, evaluation, saving."""

NOT_TRAINING = ("eval", "checkpoint")
"""The phases that a training run could do without; wall_s and tokens/s leave them out."""


@dataclass
class Clock:
    """Seconds by phase."""

    seconds: dict[str, float]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of a `with` block to a phase of PHASES."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def timing(clock: Clock, step: int, row: dict, before: float) -> dict:
    """The step's row of timing.jsonl: seconds by phase, tokens/s and the largest memory so far [MB].

    row: the step's row of log.jsonl. before: wall_s of the steps before. wall_s and tokens/s count what training needs,
    without evaluation and checkpoints.
    """
    spent = sum(seconds for name, seconds in clock.seconds.items() if name not in NOT_TRAINING)
    gpu = {"peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_initialized() else {}
    return {
        "step": step,
        **{f"{name}_s": clock.seconds.get(name, 0.0) for name in PHASES},
        "wall_s": before + spent,
        "tokens_per_s": row["length"] * len(row["successes"]) * row["group_size"] / spent,
        "peak_memory_mb": peak_memory_mb(),
        **gpu,
    }
