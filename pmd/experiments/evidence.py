"""What the runs of the training map wrote, as small tables from which all claims, figures and tables are made.

results/<preset>/evidence/runs.parquet     a row a run: what it was, on which machine, seconds and tokens in all
results/<preset>/evidence/steps.parquet    a row a step: the measurements of log.jsonl
results/<preset>/evidence/evals.parquet    a row a run, evaluation and set: each problem's number of right answers
results/<preset>/evidence/bases.parquet    the same of the base models themselves

They are kept in the repository, the study's with them: its figures need no training.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from pmd.files import read_json, read_jsonl, write_frame

RUN = ["run", "variant", "method", "tau", "lr", "minibatches", "staleness", "prompts", "group_size", "steps", "base",
       "seed", "cpu", "seconds", "tokens", "settings"]  # fmt: skip
STEP = ["run", "step", "reward", "signal", "length", "truncated", "entropy", "grad_norm", "clip_fraction", "lambda",
        "kl", "chi2", "lambda_theory", "tokens", "seconds"]  # fmt: skip
BASE = ["base", "set", "k", "correct", "majority"]
EVAL = ["run", "step", "set", "k", "correct", "majority", "length", "truncated", "final"]


def collect(settings: dict[str, str], out: Path, cpu: str) -> dict[str, pd.DataFrame]:
    """{"runs", "steps", "evals"}: frames with the columns RUN, STEP and EVAL, of finished runs below `out`.

    settings: of `launch.settings`, by the names of the runs. cpu: the processor that they ran on. correct and majority
    hold a count and a 0 or 1 a problem.
    """
    runs, steps, evals = [], [], []
    for name, text in settings.items():
        folder = out / name
        seconds = {row["step"]: row["wall_s"] for row in read_jsonl(folder / "timing.jsonl")}
        log = [row | {"run": name, "seconds": seconds[row["step"]]} for row in read_jsonl(folder / "log.jsonl")]
        last = {"seconds": log[-1]["seconds"], "tokens": log[-1]["tokens"]}
        runs.append({**read_json(folder / "run.json"), "run": name, "cpu": cpu, "settings": text, **last})
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


def joined(frames: dict[str, pd.DataFrame], folder: Path, keep: Collection[str]) -> dict[str, pd.DataFrame]:
    """The frames with what `folder` holds of the runs named in `keep` in front of them."""
    found = {}
    for name, frame in frames.items():
        if (folder / f"{name}.parquet").exists():
            known = pd.read_parquet(folder / f"{name}.parquet")
            frame = pd.concat([known[known["run"].isin(set(keep) - set(frame["run"]))], frame], ignore_index=True)
        found[name] = frame
    return found


def known_runs(folder: Path, settings: dict[str, str]) -> set[str]:
    """The names of the runs in `folder` that have these settings (`launch.settings`).

    A run of the same name from before a setting or the problems were changed is no known run. A setting that did not
    exist when a run was made is taken to have been what it is now.
    """
    file = folder / "runs.parquet"
    if not file.exists():
        return set()
    rows = pd.read_parquet(file)
    if "settings" not in rows:
        raise ValueError(f"{file}: of another schema, it has no column settings")
    pairs = rows[["run", "settings"]].itertuples(index=False)
    return {run for run, was in pairs if run in settings and same(was, settings[run])}


def same(was: str, wanted: str) -> bool:
    """Do two settings agree in everything that both name?"""
    old, new = json.loads(was), json.loads(wanted)
    return all(old[key] == new[key] for key in old.keys() & new.keys())


def write(frames: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write NAME.parquet for each frame."""
    for name, frame in frames.items():
        write_frame(folder / f"{name}.parquet", frame)
