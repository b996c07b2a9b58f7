"""What this machine can do at best: the two numbers that every speed is held against."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sections.common import Context, Row, fact


def rows(context: Context) -> Iterator[Row]:
    """Capability, memory, the rate of a large matrix product and of a large copy."""
    if context.cuda:
        device = torch.cuda.get_device_properties(context.device)
        yield fact("capability", f"{device.major}.{device.minor}")
        free, total = torch.cuda.mem_get_info(context.device)
        yield fact("memory", total / 2**30, "GiB")
        yield fact("of which free at the start", free / 2**30, "GiB")
        yield fact("bf16", torch.cuda.is_bf16_supported())
    product = "8192³ in bf16" if context.cuda else "256³ in fp32"
    yield fact(f"matrix product, {product}, median of 20", context.flops / 1e12, "TFLOP/s")
    yield fact("copy, bytes read and written, median of 20", context.bandwidth / 1e12, "TB/s")
