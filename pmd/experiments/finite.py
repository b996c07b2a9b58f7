"""Finite samples: one update from n rollouts of each prompt, its regression solved, for many baselines (notebook 2).

The baseline is τ_b log mean exp(r/τ_b) over the other rollouts of the group: PMD-part at τ_b = τ, PMD-mean at infinity,
and below the mean for τ_b < 0. What counts is the success rate of fresh responses afterwards, to the same prompts and
to prompts that the update has not seen. All baselines learn from the same rollouts, and the responses before and after
are sampled by the same random numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pmd import params
from pmd.experiments.bases import BASES
from pmd.experiments.cells import choose, run_cells
from pmd.experiments.settings import Finite, temperature
from pmd.experiments.solve import draw, freeze, log_ratios, solve
from pmd.model.loading import load_policy
from pmd.problems.reader import read_problems
from pmd.sampling.seeds import derive
from pmd.trainer.objectives import Hyper, leave_one_out_tilted, moved


def run_finite(settings: dict[str, Any], data: Path, out: Path, bases: Path = BASES) -> pd.DataFrame:
    """The rows of `cell` for every cell of namespace `finite`; each finished cell is kept below `out`.

    data: the folder of the problem sets.
    """
    finite = params.read(Finite, "finite", settings)
    read_problems(data / "rl.jsonl", 1)
    axes = {"bases", "seeds", "n", "tau", "tau_b", "threads"}
    fixed = finite.model_dump(exclude=axes)
    update = {"lr": fixed.pop("lr"), "steps": fixed.pop("steps"), "normalise": fixed.pop("normalise")}
    pairs = [(base, seed) for base in finite.bases for seed in finite.seeds]
    plan = {
        (base, seed, n, tau, temperature(tau_b, tau)): None
        for base, seed in pairs
        for n in finite.n
        for tau in finite.tau
        for tau_b in finite.tau_b
    }
    untouched = [{"base": base, "seed": seed, **fixed} for base, seed in pairs]
    updated = [
        {"base": base, "seed": seed, "n": n, "tau": tau, "tau_b": str(tau_b), **update, **fixed}
        for base, seed, n, tau, tau_b in plan
    ]
    found = run_cells("finite", cell, untouched + updated, data / "rl.jsonl", out, finite.threads, finite.device, bases)
    key = ["base", "seed", "set", "prompt"]
    before, after = found[found["n"] == 0], found[found["n"] > 0]
    return after.merge(before[[*key, "after"]].rename(columns={"after": "before"}), on=key, validate="many_to_one")


def cell(
    folder: Path, base: int, seed: int, prompts: int, others: int, same_k: int, other_k: int, max_tokens: int,
    problems: Path, n: int = 0, tau: float = 1.0, tau_b: str = "inf", lr: float = 0.0, steps: int = 0,
    normalise: str = "constant", device: str = "cpu",
) -> pd.DataFrame:  # fmt: skip
    """One cell, without n the base model itself: a row for each prompt and set ("same" or "other").

    after: successes among `samples` fresh responses. p: the success rate among the n rollouts, NaN for other prompts.
    lam, kl, chi2: −mean(s), KL(π_{t+1}‖π_t) and χ² of the whole cell, estimated on its rollouts.
    """
    chosen = choose(read_problems(problems), derive(seed, base, "finite"), prompts + others)
    same, other = chosen[:prompts], chosen[prompts:]
    model, tokenizer = load_policy(folder, device)
    rates, change = np.full(prompts, np.nan), {"lambda": math.nan, "kl": math.nan, "chi2": math.nan}
    if n:
        batch = draw(model, tokenizer, same, n, max_tokens, derive(seed, base, f"finite/{n}"))
        frozen, rewards = freeze(model, batch), batch.rewards.double()
        hyper = Hyper(tau, normalise=normalise)
        for _ in solve(model, frozen, leave_one_out_tilted(rewards, float(tau_b)), hyper, max_tokens, lr, steps):
            pass
        rates, change = (rewards == 1).double().mean(1).numpy(), moved(log_ratios(model, frozen))
    cells = {"base": base, "seed": seed, "n": n, "tau": tau, "tau_b": float(tau_b)}
    cells |= {"lam": change["lambda"], "kl": change["kl"], "chi2": change["chi2"]}
    found = []
    for name, asked, k, p in (("same", same, same_k, rates), ("other", other, other_k, np.full(others, np.nan))):
        fresh = draw(model, tokenizer, asked, k, max_tokens, derive(seed, base, f"finite/{name}"))
        right = (fresh.rewards == 1).sum(1).numpy()
        ids = [problem["id"] for problem in asked]
        found.append(pd.DataFrame({"set": name, "prompt": ids, "samples": k, "p": p, "after": right}).assign(**cells))
    return pd.concat(found, ignore_index=True)
