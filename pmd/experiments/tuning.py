"""How learning rates, τ and clips are chosen: by validation accuracy alone, with as many tries for every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pmd import params
from pmd.experiments.launch import Job
from pmd.files import read_jsonl
from pmd.harness.config import seeds, train_config
from pmd.methods import METHODS
from pmd.sampling.accuracy import accuracy

TUNED = ("tau", "clip_low", "clip_high", "lr")
"""The settings that may be tuned: those that only some methods read, then the learning rate."""


def jobs(tune: dict[str, Any], train: dict[str, Any], methods: dict[str, dict]) -> list[Job]:
    """Every try of every method with every seed of `tune.seeds`, which must not be seeds that results are reported for.

    A grid of `tune.grids` has `methods`, learning rates `lr`, and `own`, a list of mappings from other settings to
    their values: every learning rate is tried with each mapping. ValueError if a method is in no grid or in two, or if
    it has more tries than another.
    """
    values, found = {"train": train, "methods": methods}, seeds(tune, "tune.seeds")
    reused = sorted(set(found) & set(seeds(train)))
    params.require(not reused, "tune.seeds", found, f"other seeds than train.seeds; {reused} are in both")
    tries: dict[str, list[dict[str, float]]] = {}
    for number, grid in enumerate(tune["grids"]):
        key = f"tune.grids[{number}]"
        params.require(set(grid) == {"methods", "lr", "own"}, key, grid, "a mapping with methods, lr and own")
        odd = [name for own in grid["own"] for name in own if name not in TUNED[:-1]]
        params.require(not odd, f"{key}.own", odd, f"mappings of {', '.join(TUNED[:-1])}")
        for method in grid["methods"]:
            good = method in methods and method not in tries
            params.require(good, f"{key}.methods", method, f"each of {', '.join(methods)} in one grid")
            tries[method] = [own | {"lr": lr} for own in grid["own"] for lr in grid["lr"]]
    budget = {method: len(tries.get(method, [])) for method in methods}
    params.require(len(set(budget.values())) == 1, "tune.grids", budget, "as many tries for every method")
    return [
        Job(
            train_config(method, seed, values, **settings),
            f"{method}/{','.join(f'{name}={value:g}' for name, value in settings.items())}/seed-{seed}",
            {"axis": "tune"},
        )
        for method in methods
        for settings in tries[method]
        for seed in found
    ]


def validation_accuracy(folder: Path) -> float:
    """A run's validation accuracy, the mean over the evaluations of its second half: less noisy than the last one."""
    evals = [row for row in read_jsonl(folder / "eval.jsonl") if row["set"] == "val"]
    half = max(row["step"] for row in evals) / 2
    late = [accuracy(row) for row in evals if row["step"] > half]
    return sum(late) / len(late)


def tuning_table(done: list[Job], out: Path) -> pd.DataFrame:
    """One row a try: its settings, the mean validation accuracy over seeds, each seed's, and whether it is chosen.

    Each method's best try is chosen; of equally good ones that with the smaller settings. A setting that the method
    does not read is blank.
    """
    tries = pd.DataFrame(
        {"method": (config := job.config).method}
        | {
            name: getattr(config, name) if name == "lr" or name in METHODS[config.method].uses else float("nan")
            for name in TUNED
        }
        | {"seed": f"seed {config.seed}", "accuracy": validation_accuracy(out / job.name)}
        for job in done
    )
    wide = tries.set_index(["method", *TUNED, "seed"])["accuracy"].unstack("seed")
    wide.insert(0, "mean", wide.mean(axis=1))
    wide = wide.reset_index().sort_values(["method", *TUNED], ignore_index=True)
    wide["chosen"] = wide.index.isin(wide.groupby("method")["mean"].idxmax())
    wide.columns.name = None
    return wide
