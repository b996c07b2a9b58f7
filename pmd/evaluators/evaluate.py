"""Evaluation: k answers of a policy to problem sets, scored; and the stage that does so for every policy of a preset.

The stage runs one process a core. Its parent does not load torch, which takes seconds: the workers do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field, model_validator
from tqdm import tqdm

from pmd.files import atomic, read_json
from pmd.params import Device, Settings, greedy_once
from pmd.problems.reader import read_problems
from pmd.processes import processes, workers
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


def evaluate(config: Evaluate, model_dir: str | Path, sets: dict[str, list[dict]]) -> pd.DataFrame:
    """Sample k answers of the policy in a model folder to each problem of every set, and score them.

    Each set is sampled from a seed of its own. Returns one row a response: the set's name in column `set`, then
    `pmd.sampling.scoring.COLUMNS`. ValueError in one line if the folder holds no model or there is no such device.
    """
    from pmd.model.loading import load_policy  # only here: a parent of worker processes needs no torch
    from pmd.sampling.engine import Sampling
    from pmd.sampling.scoring import respond
    from pmd.sampling.torch_engine import TorchEngine

    model, tokenizer = load_policy(Path(model_dir), config.device, config.dtype)
    engine = TorchEngine(model, tokenizer.eos_token_id)
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    frames = []
    for name, problems in sets.items():
        seed = derive(config.seed, 0, f"evaluate/{name}")
        frames.append(respond(engine, tokenizer, problems, config.k, sampling, seed))
        frames[-1].insert(0, "set", name)
    return pd.concat(frames, ignore_index=True)


def evaluate_all(config: Evaluate, run: Path, data: Path) -> pd.DataFrame:
    """Evaluate the base model and the last and validation-best checkpoint of every run below run/train.

    Writes run/evaluate/<method>/<seed>/<which>.parquet, each atomically. A checkpoint that is both the last and the
    best is sampled once and written twice. Returns one row a checkpoint and set: method, which, set, and the means avg
    (the accuracy), tokens and truncated. ValueError if no run is finished.
    """
    sets = {name: read_problems(data / f"{name}.jsonl") for name in config.sets}
    outputs = {run / "base": [run / "evaluate" / "base" / "last.parquet"]}
    for result in sorted((run / "train").glob("*/*/result.json")):
        folder, steps = run / "evaluate" / result.parent.relative_to(run / "train"), read_json(result)
        for which in ("last", "best"):
            same = steps["best_step"] == steps["last_step"]
            outputs.setdefault(result.parent / ("last" if same else which), []).append(folder / f"{which}.parquet")
    if len(outputs) == 1:
        raise ValueError(
            f"{run / 'train'}: no finished run to evaluate; run notebooks/2-train.ipynb or `dvc repro` first"
        )
    jobs = [(config, model, sets, paths) for model, paths in outputs.items()]
    with processes(workers(1, config.device), config.device) as pool:
        done = pool.map(_evaluate_one, jobs)
        frames = list(tqdm(done, total=len(jobs), desc="evaluate", unit="model", mininterval=5))
    return pd.concat(frames, ignore_index=True)


def _evaluate_one(job: tuple[Evaluate, Path, dict[str, list[dict]], list[Path]]) -> pd.DataFrame:
    """In a worker: evaluate one model folder on one thread, and write its samples to every path that stands for it."""
    from pmd.model.threads import use_threads  # only here, for the reason that `evaluate` gives

    config, model, sets, paths = job
    use_threads(1)
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
