"""The sections of `benchmarks/gpu.py`, the most telling first: a file each, with a function `rows(context)` that yields
its results one by one, so that what was measured before a failure is kept."""

SECTIONS = {
    "ceilings": 15,
    "attention": 80,
    "trainer": 60,
    "decoder": 45,
    "end_to_end": 85,
    "sharding": 40,
    "sizes": 60,
}
"""Seconds that each section is expected to take on an H100, compilation included: estimates, not measurements. A
section is left out where less time than that is left."""
