"""How hyper-parameters are chosen: the same grid of learning rates for every method, judged on validation alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pmd import params
from pmd.files import read_jsonl
from pmd.launch import Job


def jobs(tune: dict[str, Any], train: dict[str, Any], methods: dict[str, dict]) -> list[Job]:
    """Every method at every learning rate of `tune.lr` for every seed of `tune.seeds` (none is reported on)."""
    seeds = params.seeds(tune, "tune.seeds")
    reused = sorted(set(seeds) & set(params.seeds(train)))
    params.require(not reused, "tune.seeds", seeds, f"other seeds than train.seeds; {reused} are in both")
    return [
        Job(params.train(train, methods, method, seed, lr=lr), f"{method}/{lr:g}/seed-{seed}", {"axis": "tune"})
        for method in methods
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
    """One row a method and learning rate: the mean score over seeds, each seed's, and whether it is the method's best.

    Of equal scores the smaller learning rate is chosen.
    """
    scores = pd.DataFrame(
        {"method": j.config.method, "lr": j.config.lr, "seed": f"seed {j.config.seed}", "score": score(out / j.name)}
        for j in done
    )
    wide = scores.pivot(index=["method", "lr"], columns="seed", values="score")
    wide.insert(0, "mean", wide.mean(axis=1))
    wide = wide.reset_index().sort_values(["method", "lr"])
    best = wide.loc[wide.groupby("method")["mean"].idxmax(), ["method", "lr"]]
    wide["chosen"] = pd.MultiIndex.from_frame(wide[["method", "lr"]]).isin(pd.MultiIndex.from_frame(best))
    wide.columns.name = None
    return wide.reset_index(drop=True)
