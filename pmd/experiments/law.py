"""The law: one update of PMD-mean in a transformer, its regression solved, beside the theorem (notebook 1).

A cell samples many rollouts of some prompts from a base model π_t and solves the regression on them, with the mean of
the whole group as the baseline. Along the way it measures s = log π_θ − log π_t, on the batch and on other rollouts of
the same prompts. Beside it stands practice: one pass over the same batch by the trainer's own update.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pmd import params
from pmd.experiments.bases import BASES
from pmd.experiments.cells import choose, run_cells
from pmd.experiments.settings import Law
from pmd.experiments.solve import draw, freeze, log_ratios, solve
from pmd.harness.clock import Clock
from pmd.harness.config import train_config
from pmd.harness.policy import make_policy
from pmd.model import distributed
from pmd.problems.reader import read_problems
from pmd.sampling.seeds import derive
from pmd.theory.population import population_update
from pmd.theory.weighted import weighted_update
from pmd.trainer.objectives import Hyper, group_mean
from pmd.trainer.rollouts import Rollouts
from pmd.trainer.update import learn


def run_law(
    settings: dict[str, Any], train: dict[str, Any], methods: dict[str, Any], data: Path, out: Path, bases: Path = BASES
) -> pd.DataFrame:
    """The rows of `cell` for every cell of namespace `law`; each finished cell is kept below `out`.

    train, methods: the namespaces that say what practice does. data: the folder of the problem sets.
    """
    law = params.read(Law, "law", settings)
    read_problems(data / "rl.jsonl", 1)
    axes = {"bases", "seeds", "tau", "normalise", "threads", "device"}
    fixed = law.model_dump(exclude=axes) | {"train": train | {"device": law.device}, "methods": methods}
    cells = [
        {"base": base, "seed": seed, "tau": tau, "normalise": normalise, **fixed}
        for base in law.bases
        for seed in law.seeds
        for tau in law.tau
        for normalise in law.normalise
    ]
    return run_cells("law", cell, cells, data / "rl.jsonl", out, law.threads, law.device, bases)


def cell(
    folder: Path, base: int, seed: int, tau: float, normalise: str, prompts: int, rollouts: int, held_out: int,
    max_tokens: int, lr: float, steps: int, measure: list[int], problems: Path, train: dict, methods: dict,
) -> pd.DataFrame:  # fmt: skip
    """One cell: a row for each prompt, set ("batch" or "held out") and measured step.

    how: "solved", or "practice" for one pass of the trainer, whose step is its number of minibatches. p: the batch's
    success rate for the prompt, from which theory predicts; n, successes and length (the mean, in tokens) are those of
    the set. s_success, s_failure: the means of s over them, NaN where there is none; minus_mean_s over both. lam, s1,
    s0: what theory says of minus_mean_s, s_success and s_failure of the batch.
    """
    asked = {"prompts": prompts, "group_size": rollouts, "tau": tau, "normalise": normalise, "max_tokens": max_tokens}
    asked |= {"dtype": "float32"}  # s is a small difference of large numbers
    config = train_config("kimi", seed, {"train": train, "methods": methods}, **asked)  # PMD-mean by the group's mean
    policy = make_policy(config, folder, distributed.start(config.device))
    chosen = choose(read_problems(problems), derive(seed, base, "law"), prompts)
    sets = {
        name: draw(policy.model, policy.tokenizer, chosen, n, max_tokens, derive(seed, base, f"law/{name}"))
        for name, n in (("batch", rollouts), ("held out", held_out))
    }
    frozen = {name: freeze(policy.model, one) for name, one in sets.items()}
    start = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    batch, known = sets["batch"], {"base": base, "seed": seed, "tau": tau, "normalise": normalise}
    predicted = theory(batch, tau, normalise)

    def measured(how: str, step: int) -> list[pd.DataFrame]:
        return [
            rows(one, log_ratios(policy.model, frozen[name])).assign(
                **known, how=how, step=step, set=name, prompt=[problem["id"] for problem in chosen], **predicted
            )
            for name, one in sets.items()
        ]

    learn(config, 1, policy.model, policy.optimizer, batch, Clock({}))
    found = measured("practice", config.minibatches)
    policy.model.load_state_dict(start)
    advantage, hyper = group_mean(batch.rewards.double(), tau), Hyper(tau, normalise=normalise)
    for step in solve(policy.model, frozen["batch"], advantage, hyper, max_tokens, lr, steps):
        if step in measure or step == steps:
            found += measured("solved", step)
    return pd.concat(found, ignore_index=True)


def rows(one: Rollouts, s: torch.Tensor) -> pd.DataFrame:
    """What is measured on a set of rollouts: a row a prompt."""
    s, right = s.reshape(one.rewards.shape).numpy(), (one.rewards == 1).numpy()
    return pd.DataFrame(
        {
            "n": np.full(len(s), s.shape[1]),
            "successes": right.sum(1),
            "length": lengths(one).mean(1),
            "s_success": _mean(s, right),
            "s_failure": _mean(s, ~right),
            "minus_mean_s": -s.mean(1),
        }
    )


def theory(batch: Rollouts, tau: float, normalise: str) -> dict[str, np.ndarray]:
    """What the theorem predicts for groups of rollouts, each as probable as it was sampled: a number a prompt."""
    rewards = batch.rewards.double().numpy()
    weights = 1 / lengths(batch) if normalise == "length" else np.ones_like(rewards)
    s, right = predicted_log_ratio(rewards, weights, tau), rewards == 1
    return {"p": right.mean(1), "lam": 0 - s.mean(1), "s1": _mean(s, right), "s0": _mean(s, ~right)}


def predicted_log_ratio(rewards: np.ndarray, weights: np.ndarray, tau: float) -> np.ndarray:
    """s [G, n] of the population update on the empirical distribution of each group, its mean as the baseline.

    weights: [G, n], by which the regression weighs a response; equal ones are the theorem's own case.
    """
    probs = np.full_like(rewards, 1 / rewards.shape[1])
    if np.ptp(weights) == 0:
        return population_update(probs, rewards, tau).log_ratio
    return weighted_update(probs, rewards, weights, tau).log_ratio


def lengths(one: Rollouts) -> np.ndarray:
    """The tokens of each response, [G, n]."""
    return np.array([[len(response) for response in group] for group in one.responses], dtype=float)


def _mean(x: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean of each row of x [G, n] where told; NaN for a row without any."""
    count = where.sum(1)
    return np.where(count > 0, np.where(where, x, 0).sum(1) / np.maximum(count, 1), np.nan)
