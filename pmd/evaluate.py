"""Sample a policy on a problem set and score it.

Saved samples (parquet, one row a response) are enough to recompute every metric without the model.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pmd.files import atomic, workers
from pmd.params import Evaluate
from pmd.policy import load_policy
from pmd.rollout import Engine, Sampling, TorchEngine
from pmd.seeds import derive
from pmd.stats import majority
from pmd.tasks import read_problems
from pmd.verifier import extract, reward


def respond(engine: Engine, tokenizer, problems: list[dict], k: int, sampling: Sampling, seed: int) -> pd.DataFrame:
    """k responses to each problem: columns prompt_id, sample, response, answer, reward, tokens, truncated."""
    prompts = [tokenizer.encode(problem["prompt"]) for problem in problems]
    sampled = engine.sample(prompts, k, sampling, seed)
    rows = [
        score(problem, response, tokenizer) | {"sample": i}
        for problem, responses in zip(problems, sampled, strict=True)
        for i, response in enumerate(responses)
    ]
    return pd.DataFrame(rows)[["prompt_id", "sample", "response", "answer", "reward", "tokens", "truncated"]]


def score(problem: dict, response: list[int], tokenizer) -> dict:
    """One response as text, its extracted answer and its reward."""
    ended = response[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(response, skip_special_tokens=True)
    return {
        "prompt_id": problem["id"],
        "response": text,
        "answer": extract(text) if ended else None,
        "reward": reward(text, problem["ground_truth"], ended),
        "tokens": len(response),
        "truncated": not ended,
    }


def summarise(samples: pd.DataFrame, problems: Iterable[dict]) -> dict:
    """Per-prompt counts, from which avg@k, pass@k, best@k and maj@k follow; problems in the given order.

    {"k", "correct": successes of k, "majority": 0/1 is the majority answer right, "length": mean tokens, "truncated"}.
    """
    problems = list(problems)
    groups = dict(list(samples.groupby("prompt_id", sort=False)))
    ordered = [groups[problem["id"]] for problem in problems]
    k = len(ordered[0])
    votes = [majority([a if isinstance(a, str) else None for a in group["answer"]]) for group in ordered]
    return {
        "k": k,
        "correct": [int(group["reward"].sum()) for group in ordered],
        "majority": [int(vote == problem["ground_truth"]) for vote, problem in zip(votes, problems, strict=True)],
        "length": [float(group["tokens"].mean()) for group in ordered],
        "truncated": float(samples["truncated"].mean()),
    }


def evaluate(config: Evaluate, model_dir: Path, sets: dict[str, list[dict]]) -> pd.DataFrame:
    """Sample the policy in a model folder on every set, each from its own seed; `respond`'s frame, `set` first."""
    model, tokenizer = load_policy(model_dir)
    engine = TorchEngine(model, tokenizer.eos_token_id)
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    frames = []
    for name, problems in sets.items():
        frame = respond(engine, tokenizer, problems, config.k, sampling, derive(config.seed, 0, f"evaluate/{name}"))
        frame.insert(0, "set", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def evaluate_all(config: Evaluate, run: Path, data: Path) -> pd.DataFrame:
    """Evaluate the base model and the last and validation-best checkpoint of every run below run/train.

    Writes run/evaluate/<method>/<seed>/<which>.parquet, atomically and in parallel; returns one row a model and set.
    """
    sets = {name: read_problems(data / f"{name}.jsonl") for name in config.sets}
    models = {Path("base") / "last.parquet": run / "base"}
    for result in sorted((run / "train").glob("*/*/result.json")):
        for which in ("last", "best"):
            models[result.parent.relative_to(run / "train") / f"{which}.parquet"] = result.parent / which
    if len(models) == 1:
        raise ValueError(
            f"{run / 'train'}: no finished run to evaluate; run notebooks/2-train.ipynb or `dvc repro` first"
        )
    with ProcessPoolExecutor(workers(1, "cpu"), multiprocessing.get_context("spawn")) as pool:
        arguments = [(config, model, sets, run / "evaluate" / path) for path, model in models.items()]
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


def _evaluate_one(arguments: tuple[Evaluate, Path, dict[str, list[dict]], Path]) -> pd.DataFrame:
    config, model, sets, path = arguments
    torch.set_num_threads(1)
    samples = evaluate(config, model, sets)
    atomic(path, lambda temporary: samples.to_parquet(temporary, index=False))
    row = samples.groupby("set").agg(avg=("reward", "mean"), tokens=("tokens", "mean"), truncated=("truncated", "mean"))
    return row.reset_index().assign(method=path.parts[-3] if path.parts[-2] != "base" else "base", which=path.stem)


def accuracy(summary: dict) -> float:
    """avg@k of a summary."""
    return float(np.mean(summary["correct"]) / summary["k"])
