"""How learning rates and τ are chosen: the same learning rates for every method, judged on validation alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pmd import params
from pmd.files import read_jsonl
from pmd.launch import Job
from pmd.objectives import OBJECTIVES


def jobs(tune: dict[str, Any], train: dict[str, Any], methods: dict[str, dict]) -> list[Job]:
    """Every method at every learning rate of `tune.lr` for every seed of `tune.seeds` (none is reported on).

    `tune.tau` maps methods to the τ that they are tried with besides `train.tau`.
    """
    seeds = params.seeds(tune, "tune.seeds")
    reused = sorted(set(seeds) & set(params.seeds(train)))
    params.require(not reused, "tune.seeds", seeds, f"other seeds than train.seeds; {reused} are in both")
    unknown = [method for method in tune["tau"] if method not in methods]
    params.require(not unknown, "tune.tau", unknown, f"left out, or among the keys of methods: {', '.join(methods)}")
    return [
        Job(
            params.train(train, methods, method, seed, lr=lr, tau=tau),
            f"{method}/{lr:g}/{tau:g}/seed-{seed}",
            {"axis": "tune"},
        )
        for method in methods
        for tau in sorted({train["tau"], *tune["tau"].get(method, [])})
        for lr in tune["lr"]
        for seed in seeds
    ]


def score(folder: Path) -> float:
    """A run's validation accuracy averaged over the evaluations of its second half: steadier than its last one."""
    evals = [row for row in read_jsonl(folder / "eval.jsonl") if row["set"] == "val"]
    half = max(row["step"] for row in evals) / 2
    late = [sum(row["correct"]) / len(row["correct"]) / row["k"] for row in evals if row["step"] > half]
    return sum(late) / len(late)


def table(done: list[Job], out: Path) -> pd.DataFrame:
    """One row a method, τ and learning rate: the mean score over seeds, each seed's, and whether it is the best one.

    Of equal scores the smaller τ, then the smaller learning rate is chosen. τ is blank where the method has none.
    """
    scores = pd.DataFrame(
        {
            "method": (config := job.config).method,
            "tau": config.tau if "tau" in OBJECTIVES[config.method].uses else float("nan"),
            "lr": config.lr,
            "seed": f"seed {config.seed}",
            "score": score(out / job.name),
        }
        for job in done
    )
    wide = scores.set_index(["method", "tau", "lr", "seed"])["score"].unstack("seed")
    wide.insert(0, "mean", wide.mean(axis=1))
    wide = wide.reset_index().sort_values(["method", "tau", "lr"], ignore_index=True)
    wide["chosen"] = wide.index.isin(wide.groupby("method")["mean"].idxmax())
    wide.columns.name = None
    return wide
