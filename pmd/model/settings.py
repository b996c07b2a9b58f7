"""Namespace `base` of params.yaml. Importing this loads no torch, so that it is checked at once."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pmd.params import Device, Settings, read, require


class Base(Settings):
    """A base model: its architecture and its supervised training. Namespace `base` of params.yaml is one for each of
    its `seeds`."""

    # --- the architecture ---
    layers: int = Field(ge=1)
    width: int = Field(ge=1)  # of the residual stream
    heads: int = Field(ge=1)  # of queries; they divide the width
    kv_heads: int = Field(ge=1)  # of keys and values; each serves as many query heads as the others
    feedforward: int = Field(ge=1)  # width of the gated block
    positions: int = Field(ge=1, default=256)  # tokens of the longest prompt and response together

    # --- the training ---
    seed: int = Field(ge=0)  # of the initial weights and of the order of the traces
    steps: int = Field(ge=1)  # optimizer steps
    batch: int = Field(ge=1)  # traces of a step
    lr: float = Field(gt=0)  # the learning rate after warm-up, which then falls as a cosine to a tenth
    warmup: int = Field(ge=0)  # steps over which the learning rate grows linearly

    # --- the machine ---
    device: Device  # cpu, cuda, cuda:1, …
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products in a pass; weights and optimizer stay float32
    threads: int = Field(ge=1)  # CPU threads

    @model_validator(mode="after")
    def _fits_together(self) -> Base:
        require(self.width % self.heads == 0, "heads", self.heads, f"a divisor of base.width = {self.width}")
        groups = f"a divisor of base.heads = {self.heads}"
        require(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, groups)
        require(self.warmup <= self.steps, "warmup", self.warmup, f"in 0..base.steps = {self.steps}")
        return self


def read_bases(values: Any) -> list[Base]:
    """Namespace `base` of params.yaml, checked: a `Base` for each of its `seeds`."""
    require(isinstance(values, dict), "base", values, "a mapping")
    seeds = values.get("seeds")
    good = isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)
    require(bool(good) and len(set(seeds)) == len(seeds), "base.seeds", seeds, "a list of different integers")
    shared = {key: value for key, value in values.items() if key != "seeds"}
    return [read(Base, "base", shared | {"seed": seed}) for seed in seeds]
