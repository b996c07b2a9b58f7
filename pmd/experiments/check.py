"""`pmd study check`: make one committed run again and compare.

On the same kind of processor the accuracies are the same to the last answer. On another one rounding differs, and
training carries the difference into every number; the run is then compared with the other runs of its cell.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from pmd import params
from pmd.evaluators.evaluate import Evaluate
from pmd.evaluators.intervals import t_interval
from pmd.experiments import training_map
from pmd.experiments.evidence import same
from pmd.experiments.launch import run_one, settings
from pmd.files import ROOT, read_jsonl
from pmd.processes import machine


def check(name: str, preset: str = "study", root: Path = ROOT) -> str:
    """Train the run NAME of a preset's evidence again, in a temporary folder; one sentence on how the two compare.

    ValueError in one line, before any work, if the evidence has no such run, or if the preset's settings would not make
    it any more. ValueError afterwards if the accuracy differs: on the same processor at all, on another by more than
    the cell's runs do.
    """
    folder = root / "results" / preset / "evidence"
    if not (folder / "runs.parquet").exists():
        raise ValueError(f"{folder / 'runs.parquet'}: missing; `pmd experiment {preset}` makes it")
    runs = pd.read_parquet(folder / "runs.parquet").set_index("run")
    near = params.listed(runs.index, name).rpartition("; ")[2] if len(runs) else "none"
    params.require(name in runs.index, "run", name, f"one of the {len(runs)} in {folder / 'runs.parquet'}; {near}")
    values = params.of_preset(preset, root)
    data, bases = root / values["data"], root / values["bases"]
    jobs = {job.name: job for job in training_map.jobs(values["grid"], values["train"], values["methods"], bases)}
    final = params.read(Evaluate, "evaluate", values["evaluate"])
    known = name in jobs and same(runs.loc[name, "settings"], settings([jobs[name]], data, final)[name])
    params.require(known, "run", name, f"made by the settings and data of preset {preset}, which have changed")
    with tempfile.TemporaryDirectory() as scratch:
        run_one(jobs[name], data, final, Path(scratch))
        again = {row["set"]: np.asarray(row["correct"]) for row in read_jsonl(Path(scratch) / "final.jsonl")}
    evals = pd.read_parquet(folder / "evals.parquet")
    return compared(name, runs, evals[evals.final.astype(bool)], again, machine()["cpu"])


def compared(name: str, runs: pd.DataFrame, ends: pd.DataFrame, again: dict[str, np.ndarray], cpu: str) -> str:
    """How a run made again compares with the committed one; see `check`.

    runs: indexed by run. ends: the final evaluations. again: each set's counts of right answers.
    """
    known = {row.set: np.asarray(row.correct) for row in ends[ends.run == name].itertuples()}
    k = int(ends[ends.run == name].k.iloc[0])
    if all(np.array_equal(known[part], again[part]) for part in known):
        return f"{name}: the same answers on all {sum(map(len, known.values()))} problems"
    if cpu == runs.loc[name, "cpu"]:
        raise ValueError(f"{name}: other answers on the same processor, {cpu}")
    key = ["variant", "minibatches", "staleness", "lr"]
    mates = runs.index[(runs[key] == runs.loc[name, key]).all(axis=1)]
    cell = {
        run: float(np.mean(np.concatenate([np.asarray(row.correct) for row in rows.itertuples()])) / k)
        for run, rows in ends[ends.run.isin(mates)].groupby("run")
    }
    if len(cell) == 1:
        raise ValueError(f"{name}: other answers on {cpu}, and the cell has no other run to compare with")
    found = float(np.mean(np.concatenate(list(again.values()))) / k)
    values = np.array(list(cell.values()))
    low, high = t_interval(values)[1:]
    half = (high - low) / 2 * np.sqrt(len(values) + 1)  # of one more run, not of their mean
    said = f"{name}: {100 * found:.1f} % on {cpu}, {100 * cell[name]:.1f} % before on {runs.loc[name, 'cpu']}"
    if not abs(found - values.mean()) <= half:
        raise ValueError(f"{said}; outside the cell's {100 * values.mean():.1f} ± {100 * half:.1f} %")
    return f"{said}; within the cell's {100 * values.mean():.1f} ± {100 * half:.1f} %"
