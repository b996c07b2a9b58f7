"""What the runs of the training map wrote, as small tables from which all claims, figures and tables are made.

results/<preset>/evidence/runs.parquet     a row a run: what it was, on which machine, seconds and tokens in all
results/<preset>/evidence/steps.parquet    a row a step: the measurements of log.jsonl
results/<preset>/evidence/evals.parquet    a row a run, evaluation and set: each problem's number of right answers
results/<preset>/evidence/bases.parquet    the same of the base models themselves

They are kept in the repository, the study's with them: its figures need no training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pmd.files import read_json, read_jsonl, write_frame
from pmd.harness.config import Train

RUN = ["run", "variant", "method", "tau", "lr", "minibatches", "staleness", "prompts", "group_size", "steps", "base",
       "seed", "cpu", "seconds", "tokens"]  # fmt: skip
SETTINGS = ["method", "tau", "lr", "minibatches", "staleness", "prompts", "group_size", "steps", "seed"]
STEP = ["run", "step", "reward", "signal", "length", "truncated", "entropy", "grad_norm", "clip_fraction", "lambda",
        "kl", "chi2", "lambda_theory", "tokens", "seconds"]  # fmt: skip
BASE = ["base", "set", "k", "correct", "majority"]
EVAL = ["run", "step", "set", "k", "correct", "majority", "length", "truncated", "final"]


def collect(names: list[str], out: Path, cpu: str) -> dict[str, pd.DataFrame]:
    """{"runs", "steps", "evals"}: frames with the columns RUN, STEP and EVAL, of the finished runs
    with these names below `out`.

    cpu: the processor that they ran on. correct and majority hold a count and a 0 or 1 a problem.
    """
    runs, steps, evals = [], [], []
    for name in names:
        folder = out / name
        seconds = {row["step"]: row["wall_s"] for row in read_jsonl(folder / "timing.jsonl")}
        log = [row | {"run": name, "seconds": seconds[row["step"]]} for row in read_jsonl(folder / "log.jsonl")]
        last = {"seconds": log[-1]["seconds"], "tokens": log[-1]["tokens"]}
        runs.append({**read_json(folder / "run.json"), "run": name, "cpu": cpu, **last})
        steps += log
        for kind in ("eval", "final"):
            evals += [
                row | {"run": name, "final": kind == "final", "length": float(np.mean(row["length"]))}
                for row in read_jsonl(folder / f"{kind}.jsonl")
            ]
    frames = {"runs": (runs, RUN), "steps": (steps, STEP), "evals": (evals, EVAL)}
    return {name: _compact(pd.DataFrame(rows)[columns]) for name, (rows, columns) in frames.items()}


def _compact(frame: pd.DataFrame) -> pd.DataFrame:
    """The same in narrower types: a measurement in float32, a count of at most 255 in a byte."""
    for column in frame:
        if column in ("correct", "majority"):
            frame[column] = frame[column].map(lambda counts: np.asarray(counts, dtype=np.uint8))
        elif column in STEP[2:-2]:
            frame[column] = frame[column].astype(np.float32)
    return frame


def of_bases(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """{"bases"}: the rows of launch.evaluate_bases, with the columns BASE."""
    return {"bases": _compact(rows[BASE].copy())}


def joined(frames: dict[str, pd.DataFrame], folder: Path) -> dict[str, pd.DataFrame]:
    """The frames with what `folder` holds of other runs in front of them."""
    found = {}
    for name, frame in frames.items():
        if (folder / f"{name}.parquet").exists():
            known = pd.read_parquet(folder / f"{name}.parquet")
            frame = pd.concat([known[~known["run"].isin(frame["run"])], frame], ignore_index=True)
        found[name] = frame
    return found


def known_runs(folder: Path, configs: dict[str, Train]) -> set[str]:
    """The names of the runs in `folder` that had the settings which `configs`, by name, give them.

    A run of other settings under the same name, from before a preset was changed, is no known run.
    """
    file = folder / "runs.parquet"
    if not file.exists():
        return set()
    rows = pd.read_parquet(file, columns=["run", *SETTINGS]).to_dict("records")
    return {row["run"] for row in rows if row["run"] in configs and _same(row, configs[row["run"]])}


def _same(row: dict[str, Any], config: Train) -> bool:
    return all(row[key] == getattr(config, key) for key in SETTINGS)


def write(frames: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write NAME.parquet for each frame."""
    for name, frame in frames.items():
        write_frame(folder / f"{name}.parquet", frame)
