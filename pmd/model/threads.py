"""How this process uses a CPU: its threads and its allocator."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def use_threads(threads: int) -> None:
    """Compute on so many threads, and keep freed memory for the next step.

    glibc hands large freed blocks back to the kernel, so that every step faults the pages of its activations in anew:
    some 4 % of a step at the default's size. Blocks of more than 32 MiB are still handed back. Without glibc only the
    threads are set.
    """
    torch.set_num_threads(threads)
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(TRIM_THRESHOLD, 2**30)
