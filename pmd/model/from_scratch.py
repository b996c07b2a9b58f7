"""The base model's settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pmd.params import Device, Settings, require


class Base(Settings):
    """Namespace `base` of params.yaml: the architecture of the base model and its supervised training."""

    # --- the architecture ---
    layers: int = Field(ge=1)
    width: int = Field(ge=1)  # of the residual stream
    heads: int = Field(ge=1)  # of queries; they divide the width
    kv_heads: int = Field(ge=1)  # of keys and values; each serves as many query heads as the others
    feedforward: int = Field(ge=1)  # width of the gated block

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
