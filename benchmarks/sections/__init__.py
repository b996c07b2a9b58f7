"""The sections of `benchmarks/gpu.py`, the most telling first: a file each, with a function `rows(context)` that yields
its results one by one, so that what was measured before a failure is kept."""

SECTIONS = {
    "ceilings": 15,
    "attention": 80,
    "trainer": 60,
    "decoder": 20,
    "end_to_end": 150,
    "sharding": 40,
    "sizes": 100,
}
"""Seconds that each section is expected to take, compilation included: estimates, on the safe side of what an H200 took
that three processes shared (benchmarks/speed/nvidia-h200.md). A section is left out where less time is left."""
