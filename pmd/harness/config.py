"""The settings of a training run: namespace `train` of params.yaml, with a method's own values from `methods`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pmd.methods import METHODS
from pmd.params import Device, Settings, load, mapping, must, one_of, read, require
from pmd.sampling.engine import ENGINES

DTYPES = ("float32", "bfloat16")
"""What a pass may compute in. In float16 gradients would underflow, for there is no loss scale."""


class Train(Settings):
    """The settings of one run: what each is, its type and its bounds. The paper's symbols stand in brackets."""

    # --- the run ---
    method: Annotated[str, one_of(METHODS)]  # which advantage and loss
    seed: int = Field(ge=0)  # of prompt order and sampling; all randomness is derived from it
    steps: int = Field(ge=0)  # batches of rollouts to learn from
    checkpoint_every: int = Field(ge=1)  # steps between two checkpoints; one more is written at the end

    # --- the batch of a step ---
    prompts: int = Field(ge=1)  # prompts of a step
    group_size: int = Field(ge=2)  # [n] responses to each prompt; a baseline needs at least two
    minibatches: int = Field(ge=1)  # [K] optimizer steps on a batch, on parts of whole groups
    max_tokens: int = Field(ge=1)  # the longest response
    temperature: float = Field(gt=0)  # of the rollouts; their top-p is 1, since log-ratios need the whole support
    staleness: int = Field(ge=0)  # how many steps before it is trained on a batch is sampled
    filter_low: float | None  # leave out groups whose mean reward is not above this; null: none
    filter_high: float | None  # leave out groups whose mean reward is not below this; null: none

    # --- the loss and the optimizer (AdamW) ---
    tau: float = Field(gt=0)  # [τ] the regularisation, for rewards in {0, 1}: with {−1, 1} it would be twice as large
    tau_b: Annotated[float | None, must(lambda x: x != 0, "a number other than 0")] = None  # [τ_b] of pmd-tilted
    clip_low: float = Field(ge=0, le=1)  # ratios are clipped below 1 − clip_low
    clip_high: float = Field(ge=0)  # and above 1 + clip_high
    normalise: Literal["length", "constant"]  # divide a response's term by its length, or by max_tokens
    importance_cap: float | None = Field(gt=0)  # weigh a response by min(π_t/π_engine, this); null: no weights
    lr: float = Field(gt=0)  # the learning rate after warm-up
    warmup: int = Field(ge=0)  # steps over which the learning rate grows linearly
    beta1: float = Field(ge=0, lt=1)  # decay of the mean of gradients
    beta2: float = Field(ge=0, lt=1)  # decay of the mean of squared gradients
    weight_decay: float = Field(ge=0)  # decoupled from the gradient
    grad_clip: float = Field(gt=0)  # the largest norm of a minibatch's gradient

    # --- evaluation and measurement ---
    probe: int = Field(ge=1)  # minibatches, the first of each batch, on which λ, KL and χ² are measured
    eval_every: int = Field(ge=1)  # steps between two evaluations; the last step is evaluated too
    eval_prompts: int = Field(ge=1)  # prompts of each set, its first ones
    eval_k: int = Field(ge=1)  # responses to each of them
    eval_max_tokens: int = Field(ge=1)  # the longest of them
    eval_top_p: float = Field(gt=0, le=1)  # they are sampled from the smallest set of tokens with this probability

    # --- the machine ---
    device: Device  # cpu, cuda, cuda:1, …
    dtype: Annotated[str, one_of(DTYPES)]  # of the products in a pass; weights and optimizer stay float32
    microbatch_tokens: int | None = Field(ge=1)  # packed tokens of one forward pass; null: a minibatch in one
    checkpoint_activations: bool  # keep the layers' inputs alone for the backward pass and compute the rest again
    compile: bool  # let torch.compile fuse parts of the layers; on a CPU that takes a C++ compiler
    engine: Annotated[str, one_of(ENGINES)]  # what samples
    engine_options: dict[str, Any]  # vLLM's own; for torch {kv_bytes: …}, what its cache may take and keep
    threads: int = Field(ge=1)  # CPU threads of a process

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        def check(condition: bool, key: str, allowed: str) -> None:
            require(condition, key, getattr(self, key), allowed)

        check(self.prompts % self.minibatches == 0, "minibatches", f"a divisor of train.prompts = {self.prompts}")
        tilted = "tau_b" in METHODS[self.method].uses
        check(tilted == (self.tau_b is not None), "tau_b", "a number other than 0 for pmd-tilted and null for others")
        check(self.probe <= self.minibatches, "probe", f"in 1..train.minibatches = {self.minibatches}")
        low, high = self.filter_low, self.filter_high
        check(low is None or high is None or low < high, "filter_low", f"below train.filter_high = {high}")
        known = self.engine != "torch" or set(self.engine_options) <= {"kv_bytes"}
        check(known, "engine_options", "{} or {kv_bytes: …} for the torch engine")
        weighted = self.importance_cap is not None
        check(not weighted or self.engine == "vllm", "importance_cap", "null unless train.engine is vllm")
        check(not weighted or self.temperature == 1, "importance_cap", "null unless train.temperature is 1")
        return self


def train_config(method: str, seed: int, values: dict[str, Any] | None = None, **changes: Any) -> Train:
    """The settings of one run: namespace `train`, overridden by the method's own entry of `methods`, then by `changes`.

    values: the namespaces of params.yaml, at least `train` and `methods`; None: the committed ones. ValueError
    `key: got value, must be …` for a setting that is unknown, missing, of another type or out of bounds.
    """
    values = load() if values is None else values
    require(method in METHODS, "method", method, f"one of {', '.join(METHODS)}")
    methods = mapping(values, "methods")
    if method not in methods:
        raise ValueError(f"methods.{method}: missing, must be a mapping of train's keys (at least lr)")
    own = mapping(methods, method, "methods.")
    return read(Train, "train", mapping(values, "train") | own | changes | {"method": method, "seed": seed})


def identity(config: Train, tags: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a run: every setting and the tags."""
    return config.model_dump() | tags
