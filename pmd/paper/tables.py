"""The tables T1, T2, T3 and T5, each a function from the frames of logs.py to a `Table`; T4 is in claims.py.

Accuracies are in percent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from pmd.evaluators import intervals
from pmd.evaluators.intervals import Interval
from pmd.methods import METHODS
from pmd.paper import logs, style
from pmd.paper.logs import SETS, Logs
from pmd.paper.typeset import Table, from_records

TARGET = 0.95
"""T2's target accuracy, as a share of GRPO's final overall accuracy."""

_LAUNCH = "reference code's 30B launch script"
_BASELINES = "arXiv:2503.14476, arXiv:2507.18071"
_CURVES = "reference code's 30B figure"
PAPER: dict[str, tuple[str, str]] = {
    "policy": ("Qwen2.5-7B, Qwen3-30B-A3B-Base", "paper"),
    "training problems": ("DAPO-Math-17k", "paper"),
    "test problems": ("AIME 2024, AIME 2025", "paper"),
    "optimizer": ("AdamW", "paper"),
    "KL to the reference policy": ("none", "paper"),
    "entropy bonus": ("none", "paper"),
    "train.prompts": ("512", "paper"),
    "train.group_size": ("16", "paper"),
    "train.minibatches": ("16 (of 32 prompts)", "paper"),
    "train.lr": ("1e-06", "paper"),
    "train.tau": ("0.01 to 0.1 with rewards ±1 (0.005 to 0.05 with rewards 0/1)", "paper"),
    "train.temperature": ("1.0", "paper"),
    "train.max_tokens": ("8192 (prompt: 2048)", "paper"),
    "train.normalise": ("length (seq-mean-token-mean)", _LAUNCH),
    "train.clip_low": ("0.2 (DAPO); 0.0003 (GSPO)", _BASELINES),
    "train.clip_high": ("0.28 (DAPO); 0.0004 (GSPO)", _BASELINES),
    "train.filter_low": ("none", _LAUNCH),
    "train.filter_high": ("none", _LAUNCH),
    "train.steps": ("300 shown", _CURVES),
    "train.eval_every": ("10 shown", _CURVES),
    "train.eval_k": ("32", "paper"),
    "train.eval_top_p": ("0.7", "paper"),
    "evaluate.k": ("32", "paper"),
    "evaluate.temperature": ("1.0", "paper"),
    "evaluate.top_p": ("0.7", "paper"),
}
"""Settings of the paper (arXiv:2602.05933) and of its code (OpenKimi, examples/math), with their source."""

_OURS = {
    "policy": "see base.* (trained from scratch)",
    "training problems": "embedded arithmetic task",
    "test problems": "test (in distribution), ood (longer)",
    "optimizer": "AdamW",
    "KL to the reference policy": "none",
    "entropy bonus": "none",
}


# --- T1 ---


def main_results(evaluated: pd.DataFrame, reported: pd.DataFrame, generator: np.random.Generator) -> Table:
    """T1: every method on every set at both checkpoints, beside the paper's 30B numbers.

    evaluated: `logs.evaluated`; reported: panel, method, step, value (results/reference).
    """
    k = int(evaluated.k.max())
    metrics = {f"avg@{k}": "avg", f"pass@{min(8, k)}": f"pass@{min(8, k)}", f"pass@{k}": f"pass@{k}"}
    metrics |= {f"best@{k} (resampled)": "best", f"maj@{k}": "maj", "length [tokens]": "length"}
    records = []
    for method in ["base", *logs.ordered(evaluated.method)]:
        for checkpoint in ("last", "best"):
            rows = evaluated[(evaluated.method == method) & (evaluated.checkpoint == checkpoint)]
            for name in ("overall", *SETS) if len(rows) else ():
                record = {"method": label_of(method), "checkpoint": checkpoint, "set": name}
                for label, metric in metrics.items():
                    scale = 1 if metric == "length" else 100
                    record[label] = _clustered(rows, name, metric, scale, generator)
                if name == "overall":
                    record |= _paper_result(reported, method, checkpoint)
                records.append(record)
    notes = (
        "avg@k, pass@k, best@k and maj@k in percent, with 95 % intervals clustered by seed and prompt (a "
        "pigeonhole bootstrap). pass@k is unbiased (Chen et al. 2021); best@k resamples with replacement, as "
        "the reference code does, and is biased low. “best” is the checkpoint with the highest validation "
        "accuracy, “last” the last one; overall pools both sets.",
        "Columns that begin with “paper 30B” are not ours: they are read off the reference code's figure for "
        "Qwen3-30B-A3B on AIME, at the step with the best overall avg@32 (rows “best”) and at the last step "
        "shown (rows “last”). Other models, other problems: compare orders, not values.",
        "The paper's main result for PMD-mean, as published (avg@32): 44.01 average, 50.83 AIME 2024, 37.19 AIME 2025.",
    )
    return Table("T1", "Main results: methods by test set and checkpoint.", from_records(records), notes)


def _paper_result(reported: pd.DataFrame, method: str, checkpoint: str) -> dict[str, float]:
    wide = reported[reported.method.str.lower() == method].pivot(index="step", columns="panel", values="value")
    if wide.empty:
        return {}
    wide = wide[wide["avg@32"].notna()]
    row = wide.loc[wide["avg@32"].idxmax() if checkpoint == "best" else wide.index.max()]
    panels = {"avg@32": "avg@32", "AIME24 avg@32": "aime2024_avg@32", "AIME25 avg@32": "aime2025_avg@32"}
    panels |= {"best@32": "best@32", "maj@32": "maj@32"}
    return {"paper 30B step": float(row.name)} | {
        f"paper 30B {label}": 100 * float(row[panel]) for label, panel in panels.items()
    }


# --- T2 ---


def time_efficiency(data: Logs) -> Table:
    """T2: seconds of training and generated tokens until overall accuracy reaches a target, at both K."""
    records = []
    for regime, runs in logs.regimes(data).items():
        costs = costs_to_target(data, runs)
        for method in logs.ordered(costs.method):
            mine = costs[costs.method == method]
            reached = mine[mine.seconds.notna()]
            record = {"regime": regime, "target [%]": 100 * mine.target.iloc[0], "method": label_of(method)}
            record |= {"runs": len(mine), "reached": len(reached)}
            for unit in ("seconds", "tokens"):
                record[unit] = _mean_cost(reached[unit])
            for unit in ("seconds", "tokens"):
                record[f"{unit}, ratio to GRPO"] = 1.0 if method == "grpo" else cost_ratio(costs, method, unit)
            records.append(record)
    notes = (
        f"The target is {100 * TARGET:g} % of GRPO's final overall accuracy in the same regime (mean over "
        "seeds); cost to target is interpolated linearly between evaluations. Seconds are those of training "
        "alone: evaluation and checkpoints are not counted.",
        "Geometric means over the runs that reached the target, with Student's t 95 % intervals of the "
        "logarithm. Ratios pair runs by seed, in the same way; a GRPO run that never reaches the target counts "
        "with all it spent, which favours GRPO; a method with a run that never does has no ratio.",
    )
    return Table("T2", "Time efficiency: cost to a target accuracy.", from_records(records), notes)


def costs_to_target(data: Logs, runs: pd.DataFrame) -> pd.DataFrame:
    """One row for each run: what it cost to reach the target (NaN if it never did) and what the whole run cost.

    Costs are seconds of training and generated tokens. The target is NaN if there is no run of GRPO.
    """
    curves = logs.clock(data)
    curves = curves[(curves.set == "overall") & curves.run.isin(runs.run)]
    final = logs.last(curves)
    target = TARGET * final[final.method == "grpo"].avg.mean()
    records = []
    for (method, seed), curve in curves.sort_values("step").groupby(["method", "seed"]):
        record = {"method": method, "seed": seed, "target": target}
        for unit in ("seconds", "tokens"):
            record[unit] = _cost_to(curve.avg.to_numpy(), curve[unit].to_numpy(dtype=float), target)
            record[f"all {unit}"] = float(curve[unit].iloc[-1])
        records.append(record)
    return pd.DataFrame(records)


def _cost_to(accuracy: np.ndarray, cost: np.ndarray, target: float) -> float:
    """Where the curve first crosses `target`, by linear interpolation; NaN if it never does."""
    above = np.flatnonzero(accuracy >= target)
    if above.size == 0:
        return np.nan
    i = above[0]
    if i == 0:
        return float(cost[0])
    share = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return float(cost[i - 1] + share * (cost[i] - cost[i - 1]))


def _mean_cost(costs: pd.Series) -> Interval:
    """The geometric mean, with Student's t interval of the logarithm, so that both ends are positive as costs are."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a target that the base model meets costs nothing
        return Interval(*(float(np.exp(value)) for value in intervals.t_interval(np.log(costs))))


def cost_ratio(costs: pd.DataFrame, method: str, unit: str) -> Interval | None:
    """The cost of `method` divided by GRPO's, paired by seed; None if a cost is unknown or zero.

    A run of GRPO that never reached the target counts with all that it cost, which is in GRPO's favour.
    """
    mine, grpo = (costs[costs.method == name].set_index("seed") for name in (method, "grpo"))
    seeds = mine.index.intersection(grpo.index)
    ours = mine.loc[seeds, unit]
    theirs = grpo.loc[seeds, unit].fillna(grpo.loc[seeds, f"all {unit}"])
    if len(seeds) == 0 or mine[unit].isna().any() or not ((ours > 0) & (theirs > 0)).all():
        return None
    return intervals.ratio_interval(ours, theirs)


# --- T3 ---


def hyperparameters(params: dict[str, Any], runs: pd.DataFrame) -> Table:
    """T3: every hyper-parameter, ours beside the paper's.

    params: params.yaml as nested dictionaries; runs: `Logs.runs`, from whose run.json fields the training
    settings are taken as they were used. A setting that a method does not read is not listed for it.
    """
    main = runs[runs.axis == "main"]
    hidden = {"run", "axis", "variant", "method", "best_step", "last_step", "threads", "device", "fingerprint"}
    hidden |= {"model_md5", "problems_md5", "history"}  # what a run was made of, no setting
    ours = dict(_OURS)
    for key in [key for key in main.columns if key not in hidden]:
        ours[f"train.{key}"] = _setting(main, key)
    for axis, field in (("tau", "tau"), ("group", "group_size"), ("stale", "minibatches")):
        values = sorted(set(runs[runs.axis == axis][field]))
        if values:
            ours[f"train.{field} (ablation)"] = ", ".join(f"{value:g}" for value in values)
    elsewhere = ("preset", "train", "methods", "ablate")
    ours |= _leaves({key: value for key, value in params.items() if key not in elsewhere})
    records = []
    for key, value in ours.items():
        paper, source = PAPER.get(key, ("–" if "ablation" in key else "not stated", "–"))
        records.append({"hyper-parameter": key, "ours": value, "the paper's": paper, "source": source})
    notes = (
        "The paper is arXiv:2602.05933, the reference code horizon-rl/OpenKimi; “not stated” means that no "
        "source used here states it. Our τ refers to rewards in {0, 1}; with rewards ±1 the same update has "
        "twice that τ.",
    )
    return Table("T3", "Hyper-parameters, ours and the paper's.", from_records(records), notes)


def _setting(runs: pd.DataFrame, key: str) -> str:
    """The value of one field of run.json, listed by method where methods differ, for those that read the field."""
    conditional = {"tau", "clip_low", "clip_high", "normalise"}
    readers = [m for m in logs.ordered(runs.method) if key not in conditional or key in METHODS[m].uses]
    shown = {m: ", ".join(dict.fromkeys(_plain(v) for v in runs[runs.method == m][key])) for m in readers}
    everyone = len(readers) == runs.method.nunique()
    if everyone and len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    by_value = {value: [label_of(m) for m in readers if shown[m] == value] for value in shown.values()}
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items()) or "not used"


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= _leaves(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(v, list) for item in value for v in _values(item)):
            for number, item in enumerate(value):
                found |= _leaves(item, f"{name}[{number}].")
        else:
            found[name] = _plain(value)
    return found


def _values(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else []


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return " and ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- T5 ---


def compute(stages: pd.DataFrame) -> Table:
    """T5: seconds and peak memory a stage, and the machine; stages: `logs.stages`."""
    records = [
        {
            "stage": row.stage,
            "seconds": float(row.seconds),
            "peak memory [MB]": float(row.peak_memory_mb),
            "machine": ", ".join(f"{key} {value}" for key, value in row.machine.items()),
        }
        for row in stages.itertuples()
    ]
    if records:
        total = {"stage": "total", "seconds": float(stages.seconds.sum())}
        records.append(total | {"peak memory [MB]": float(stages.peak_memory_mb.max())})
    columns = ["stage", "seconds", "peak memory [MB]", "machine"]
    return Table("T5", "Compute: seconds and peak memory of every stage.", from_records(records, columns))


# --- metrics for DVC ---


def summary(evaluated: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Accuracies at the last checkpoint, mean over seeds, in [0, 1]: {method: {"overall_avg@32": …, …}}."""
    rows = evaluated[evaluated.checkpoint == "last"]
    return {
        method: {
            f"{name}_{metric}@{mine.k.max()}": round(float(mine[mine.set == name][metric].mean()), 6)
            for name in ("overall", *SETS)
            for metric in ("avg", "best", "maj")
        }
        for method in ["base", *logs.ordered(rows.method)]
        for mine in [rows[rows.method == method]]
        if len(mine)
    }


def learning_curves(data: Logs) -> pd.DataFrame:
    """method, step, overall avg@k of the main matrix, mean over seeds: what `dvc plots show` draws."""
    rows = data.evals[(data.evals.axis == "main") & (data.evals.set == "overall")]
    return rows.groupby(["method", "step"], as_index=False).avg.mean().rename(columns={"avg": "accuracy"})


# --- shared ---


def label_of(method: str) -> str:
    """How tables name a method, or the base model."""
    return "base model" if method == "base" else style.method_style(method)["label"]


def matrices(rows: pd.DataFrame, name: str, metric: str) -> list[np.ndarray]:
    """The metric as matrices [seeds, prompts]: one of a test set, or one for each set of "overall"."""
    return [logs.matrix(rows[rows.set == part], metric) for part in (SETS if name == "overall" else (name,))]


def _clustered(rows: pd.DataFrame, name: str, metric: str, scale: float, generator: np.random.Generator) -> Interval:
    result = intervals.interval(matrices(rows, name, metric), generator)
    bounds = (-np.inf, np.inf) if metric == "length" else (0, 1)
    low, high = np.clip(result[1:], *bounds)
    return Interval(scale * result.estimate, float(scale * low), float(scale * high))
