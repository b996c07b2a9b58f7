"""Evaluation: k answers of a policy to problem sets, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field, model_validator

from pmd.params import Device, Settings, greedy_once, require
from pmd.problems.prompts import within
from pmd.problems.reader import require_problems
from pmd.problems.reward import RewardFunction, read_reward, try_out
from pmd.sampling.seeds import derive


class Evaluate(Settings):
    """Namespace `evaluate` of params.yaml: how a policy is sampled on the test sets."""

    sets: list[str] = Field(min_length=1)  # problem sets, by the names of their files
    k: int = Field(ge=1)  # responses to each problem
    temperature: float = Field(ge=0)  # 0: greedy decoding, and then k is 1
    top_p: float = Field(gt=0, le=1)  # they are sampled from the smallest set of tokens with this probability
    max_tokens: int = Field(ge=1)  # the longest response
    seed: int = Field(ge=0)
    device: Device  # cpu, cuda, cuda:1, …
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the weights and of what is computed with them

    _greedy = model_validator(mode="before")(greedy_once)


def evaluate(
    config: Evaluate,
    model_dir: str | Path,
    sets: dict[str, list[dict]],
    reward: str | RewardFunction | None = None,
    trusted: bool = False,
) -> pd.DataFrame:
    """Sample k answers of the policy in a model folder to each problem of every set, and score them.

    config: such as `Evaluate(**load_params()["evaluate"])`.
    Each set is sampled from a seed of its own. Prompts that leave no room for a response in the model's context are
    left out, and a warning counts them. reward, trusted: as `pmd.train` takes them, in the verifier's place. Returns
    one row a response: the set's name in column `set`, then `pmd.sampling.scoring.COLUMNS`, of which `reward` is what
    the reward gave and `correct` whether that is full marks, 1. ValueError in one line if there
    is no set, if a set is empty, holds what is no problem or has no prompt that fits, if the folder holds no model, if
    there is no such device or if the reward cannot be called.
    """
    require(len(sets) > 0, "sets", sets, "a mapping of names to problem sets, one at least")
    for name, problems in sets.items():
        require_problems(f"sets.{name}", problems, judged=reward is None)
    own = read_reward(reward, trusted)
    try_out(own, *sets.values())
    from pmd.model.loading import load_policy  # only here: a parent of worker processes needs no torch
    from pmd.sampling.engine import Sampling, context
    from pmd.sampling.scoring import respond
    from pmd.sampling.torch_engine import sampler

    model, tokenizer = load_policy(Path(model_dir), config.device, config.dtype)
    engine = sampler(model, tokenizer.eos_token_id)
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    most, frames = context(model.config), []
    for name, problems in sets.items():
        if most is not None:
            problems = within(tokenizer, problems, most, config.max_tokens, f"sets.{name}")
        seed = derive(config.seed, 0, f"evaluate/{name}")
        frames.append(respond(engine, tokenizer, problems, config.k, sampling, seed, own))
        frames[-1].insert(0, "set", name)
    return pd.concat(frames, ignore_index=True)
