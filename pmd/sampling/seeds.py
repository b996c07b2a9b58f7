"""All randomness comes from (seed, step, purpose): no hidden state, so a resumed run needs none restored."""

from __future__ import annotations

import zlib

import numpy as np


def derive(seed: int, step: int, purpose: str) -> int:
    """A 63-bit seed for one purpose at one step of one run, the same on every machine."""
    words = np.random.SeedSequence([seed, step, zlib.crc32(purpose.encode())]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])


def prompt_order(seed: int, step: int, count: int, total: int) -> list[int]:
    """Which `count` of `total` prompts step 1, 2, … uses: the step's slice of one endless row of permutations."""
    indices: list[int] = []
    position = (step - 1) * count
    while len(indices) < count:
        epoch, offset = divmod(position + len(indices), total)
        order = np.random.default_rng(derive(seed, epoch, "order")).permutation(total)
        indices += order[offset : offset + count - len(indices)].tolist()
    return indices
