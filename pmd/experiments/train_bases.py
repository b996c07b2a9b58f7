"""Training base models and writing their card: notebook 5, `make bases`, and presets with base models of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from pmd.files import read_json
from pmd.model.settings import Base, read_bases
from pmd.problems.reader import read_problems
from pmd.processes import processes, workers
from pmd.sampling.accuracy import accuracy, pass_at_k

CARD = """# The base models

Qwen2-architecture models of {parameters:,} parameters, each trained from scratch from a seed of its own on the worked
answers with deliberate faults of `data/sft.jsonl` (data/README.md): {steps:,} steps of {batch} answers, AdamW at
{lr:g}, one thread of {cpu}. `make bases` trains them again (notebooks/5-bases.ipynb). They answer the embedded
arithmetic task and nothing else. `digests.json` holds the SHA-256 of their weights. Licence: Apache-2.0.

In percent, sampled at temperature 1 without truncation, as for reinforcement learning:

{table}
"""


def train_bases(settings: dict[str, Any], data: Path, folder: Path) -> None:
    """Train a base model for each seed of `settings` (namespace `base`) on data/sft.jsonl: `folder`/base-SEED.

    One process a core; a model that is finished with the same settings is kept. ValueError before any work for a bad
    setting.
    """
    configs = read_bases(settings)
    first = configs[0]
    with processes(min(len(configs), workers(first.threads, first.device)), first.device) as pool:
        for future in [pool.submit(_train_base, config, data, folder) for config in configs]:
            future.result()


def _train_base(config: Base, data: Path, folder: Path) -> None:
    from pmd.experiments.base_model import train_base  # only here, in the worker: the parent loads no torch

    train_base(config, read_problems(data / "sft.jsonl"), folder / f"base-{config.seed}", progress=config.seed == 1)


def card(settings: dict[str, Any], data: Path, folder: Path, cpu: str, k: int = 16) -> tuple[str, pd.DataFrame]:
    """(the models' card, its table): avg@k and pass@k of each on val, test and ood, its loss in nats a token."""
    with processes(workers(1, "cpu"), "cpu") as pool:
        rows = list(pool.map(_measure, settings["seeds"], *([x] * len(settings["seeds"]) for x in (data, folder, k))))
    table = pd.DataFrame(rows).set_index("base")
    parameters = read_json(folder / f"base-{settings['seeds'][0]}" / "metrics.json")["parameters"]
    return CARD.format(table=_markdown(table), parameters=parameters, cpu=cpu, **settings), table


def _measure(number: int, data: Path, folder: Path, k: int) -> dict[str, float]:
    from pmd.model.loading import load_policy  # only here, in the worker
    from pmd.sampling.engine import Sampling
    from pmd.sampling.scoring import respond, summarise_by_rule
    from pmd.sampling.torch_engine import TorchEngine

    model, tokenizer = load_policy(folder / f"base-{number}")
    row: dict[str, float] = {"base": number}
    for name in ("val", "test", "ood"):
        problems = read_problems(data / f"{name}.jsonl")
        samples = respond(TorchEngine(model, tokenizer.eos_token_id), tokenizer, problems, k, Sampling(80), seed=number)
        counts = summarise_by_rule(samples, problems)
        row |= {f"{name} avg@{k}": 100 * accuracy(counts)}
        row |= {f"{name} pass@{k}": 100 * float(pass_at_k(counts["correct"], k, k).mean())}
    return row | {"loss": read_json(folder / f"base-{number}" / "metrics.json")["loss"]}


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| base | " + " | ".join(table.columns) + " |", "| --- " * (len(table.columns) + 1) + "|"]
    lines += [f"| {base} | " + " | ".join(f"{value:.3g}" for value in row) + " |" for base, *row in table.itertuples()]
    return "\n".join(lines)
