"""An entry of `benchmark` in params.yaml. Importing this loads no torch, so that it is checked at once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pmd.params import Device, FileName, Settings, greedy_once, one_of
from pmd.sampling.engine import ENGINES

DTYPES = ("float32", "bfloat16", "float16")


class Benchmark(Settings):
    """An entry of `benchmark` in params.yaml: one model, and what it is compared with, on one problem set.

    Models are folders in the Hugging Face format, relative to the repository or absolute.
    """

    name: FileName  # the entry's key
    model: str
    against: str  # compared with it problem by problem; the same folder: no comparison (DVC's paths cannot be null)
    problems: str  # a JSONL file
    reward: str | None = None  # module:function in place of the verifier (pmd/problems/reward.py)
    trusted: bool = False  # the reward runs in this process, without limits
    limit: int | None = Field(ge=1)  # the first problems alone; null: all
    engine: Annotated[str, one_of(ENGINES)]  # what samples
    device: Device  # cpu, cuda, cuda:1, …
    dtype: Annotated[str, one_of(DTYPES)]  # of the weights
    k: int = Field(ge=1)  # responses to each problem
    temperature: float = Field(ge=0)  # 0: greedy decoding, and then k is 1
    top_p: float = Field(gt=0, le=1)  # they are sampled from the smallest set of tokens with this probability
    max_tokens: int = Field(ge=1)  # the longest response
    max_prompt_tokens: int = Field(ge=1)  # longer prompts are left out, and counted
    seed: int = Field(ge=0)

    _greedy = model_validator(mode="before")(greedy_once)
