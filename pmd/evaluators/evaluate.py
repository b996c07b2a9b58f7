"""Every policy of a preset, evaluated side by side: one process a core.

The parent needs no torch, which takes seconds to load; the workers have it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pydantic import Field
from tqdm import tqdm

from pmd.files import atomic, read_json, workers
from pmd.params import Settings
from pmd.problems.arithmetic import read_problems
from pmd.processes import processes


class Evaluate(Settings):
    """Namespace `evaluate` of params.yaml: how a policy is sampled on the test sets."""

    sets: list[str] = Field(min_length=1)  # problem sets, by the names of their files
    k: int = Field(ge=1)  # responses to each problem
    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)  # they are sampled from the smallest set of tokens with this probability
    max_tokens: int = Field(ge=1)  # the longest response
    seed: int = Field(ge=0)
    device: str  # cpu, cuda, cuda:1, …


def evaluate_all(config: Evaluate, run: Path, data: Path) -> pd.DataFrame:
    """Evaluate the base model and the last and validation-best checkpoint of every run below run/train.

    Writes run/evaluate/<method>/<seed>/<which>.parquet, atomically, on a CPU in parallel; a checkpoint that is both is
    sampled once. Returns one row a model and set.
    """
    sets = {name: read_problems(data / f"{name}.jsonl") for name in config.sets}
    models = {run / "base": [run / "evaluate" / "base" / "last.parquet"]}
    for result in sorted((run / "train").glob("*/*/result.json")):
        out, steps = run / "evaluate" / result.parent.relative_to(run / "train"), read_json(result)
        for which in ("last", "best"):
            same = steps["best_step"] == steps["last_step"]
            models.setdefault(result.parent / ("last" if same else which), []).append(out / f"{which}.parquet")
    if len(models) == 1:
        raise ValueError(
            f"{run / 'train'}: no finished run to evaluate; run notebooks/2-train.ipynb or `dvc repro` first"
        )
    with processes(workers(1, config.device), config.device) as pool:
        arguments = [(config, model, sets, paths) for model, paths in models.items()]
        frames = list(
            tqdm(
                pool.map(_evaluate_one, arguments),
                total=len(models),
                desc="evaluate",
                unit="model",
                mininterval=5,
            )
        )
    return pd.concat(frames, ignore_index=True)


def _evaluate_one(arguments: tuple[Evaluate, Path, dict[str, list[dict]], list[Path]]) -> pd.DataFrame:
    from pmd.model import threads  # only here, as in pmd.experiments.launch
    from pmd.sampling.scoring import evaluate

    config, model, sets, paths = arguments
    threads.use(1)
    samples = evaluate(config, model, sets)
    means = samples.groupby("set").agg(
        avg=("correct", "mean"), tokens=("tokens", "mean"), truncated=("truncated", "mean")
    )
    rows = []
    for path in paths:
        atomic(path, lambda temporary: samples.to_parquet(temporary, index=False))
        method = path.parts[-3] if path.parts[-2] != "base" else "base"
        rows.append(means.reset_index().assign(method=method, which=path.stem))
    return pd.concat(rows, ignore_index=True)
