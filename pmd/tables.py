"""Tables T1 to T5, each a function from frames to a `Table`, and one way to write any of them.

Accuracies are in percent. A cell may be an `Interval`: an estimate with its 95 % interval. T4 computes its
verdicts from the intervals, by one rule, so that no sentence about the outcome is typed by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pmd import logs, stats, style
from pmd.files import write_text
from pmd.logs import SETS, Logs
from pmd.objectives import OBJECTIVES
from pmd.stats import Interval

TARGET = 0.95
"""T2's target accuracy, as a share of GRPO's final overall accuracy."""

SUPPORTED = "supported"
INCONCLUSIVE = "not supported (inconclusive)"
OPPOSITE = "not supported (opposite of the claim)"
OUTSIDE = "not supported (outside a factor 2)"
NOT_TESTABLE = "not testable at this scale"

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


@dataclass(frozen=True)
class Table:
    """What is printed: name ("T1"), caption, the cells, and notes below them."""

    name: str
    caption: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


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
                record = {"method": _label(method), "checkpoint": checkpoint, "set": name}
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
    return Table("T1", "Main results: methods by test set and checkpoint.", _frame(records), notes)


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
        costs = _costs(data, runs)
        for method in logs.ordered(costs.method):
            mine = costs[costs.method == method]
            reached = mine[mine.seconds.notna()]
            record = {"regime": regime, "target [%]": 100 * mine.target.iloc[0], "method": _label(method)}
            record |= {"runs": len(mine), "reached": len(reached)}
            for unit in ("seconds", "tokens"):
                record[unit] = _mean_cost(reached[unit])
            for unit in ("seconds", "tokens"):
                record[f"{unit}, ratio to GRPO"] = 1.0 if method == "grpo" else _cost_ratio(costs, method, unit)
            records.append(record)
    notes = (
        f"The target is {100 * TARGET:g} % of GRPO's final overall accuracy in the same regime (mean over "
        "seeds); cost to target is interpolated linearly between evaluations. Seconds are those of training "
        "alone: evaluation and checkpoints are not counted.",
        "Geometric means over the runs that reached the target, with Student's t 95 % intervals of the "
        "logarithm. Ratios pair runs by seed, in the same way; a GRPO run that never reaches the target counts "
        "with all it spent, which favours GRPO; a method with a run that never does has no ratio.",
    )
    return Table("T2", "Time efficiency: cost to a target accuracy.", _frame(records), notes)


def _costs(data: Logs, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a run: its cost to target (NaN if never reached) and in all; without GRPO the target is NaN."""
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
    """Geometric mean with the t interval of the logarithm: a cost is positive, and so are both ends."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a target that the base model meets costs nothing
        return Interval(*(float(np.exp(value)) for value in stats.t_interval(np.log(costs))))


def _cost_ratio(costs: pd.DataFrame, method: str, unit: str) -> Interval | None:
    """Cost of `method` over GRPO's, paired by seed; None if it is not defined."""
    mine, grpo = (costs[costs.method == name].set_index("seed") for name in (method, "grpo"))
    seeds = mine.index.intersection(grpo.index)
    ours = mine.loc[seeds, unit]
    theirs = grpo.loc[seeds, unit].fillna(grpo.loc[seeds, f"all {unit}"])
    if len(seeds) == 0 or mine[unit].isna().any() or not ((ours > 0) & (theirs > 0)).all():
        return None
    return stats.ratio_interval(ours, theirs)


# --- T3 ---


def hyperparameters(params: dict[str, Any], runs: pd.DataFrame) -> Table:
    """T3: every hyper-parameter, ours beside the paper's.

    params: params.yaml as nested dictionaries; runs: `Logs.runs`, from whose run.json fields the training
    settings are taken as they were used. A setting that a method does not read is not listed for it.
    """
    main = runs[runs.axis == "main"]
    hidden = {"run", "axis", "variant", "method", "best_step", "last_step", "threads", "device", "fingerprint"}
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
    return Table("T3", "Hyper-parameters, ours and the paper's.", _frame(records), notes)


def _setting(runs: pd.DataFrame, key: str) -> str:
    """The value of one field of run.json, by method where they differ, for the methods that read it."""
    conditional = {"tau", "clip_low", "clip_high", "normalise"}
    readers = [m for m in logs.ordered(runs.method) if key not in conditional or key in OBJECTIVES[m].uses]
    shown = {m: ", ".join(dict.fromkeys(_plain(v) for v in runs[runs.method == m][key])) for m in readers}
    everyone = len(readers) == runs.method.nunique()
    if everyone and len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    by_value = {value: [_label(m) for m in readers if shown[m] == value] for value in shown.values()}
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items()) or "not used"


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= _leaves(value, f"{name}.") if isinstance(value, dict) else {name: _plain(value)}
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- T4 ---


def verdict(effect: Interval | None, null: float = 0.0) -> str:
    """The verdict on a claim that the effect exceeds `null`, from its interval alone."""
    if effect is None or not np.isfinite(effect).all():
        return NOT_TESTABLE
    return SUPPORTED if effect.low > null else OPPOSITE if effect.high < null else INCONCLUSIVE


def claims(
    data: Logs,
    evaluated: pd.DataFrame,
    generator: np.random.Generator,
    proofs: pd.DataFrame | None = None,
) -> Table:
    """T4: the claims of the paper's abstract, the metric testing each, the effect measured, the verdict.

    proofs: results/<preset>/theory/theory_claims.csv (`theory.claims`), None if the theory has not been run.
    """
    records = [
        *_accuracy_claims(data, evaluated, generator),
        *_stability_claims(data),
        *_efficiency_claims(data),
        *_robustness_claims(data, evaluated, generator),
        *_regulariser_claims(data),
        *_proved_claims(proofs),
        {
            "claim": "(g) These gains hold for language models of 4B to 30B parameters",
            "metric": "AIME 2024/2025 avg@32",
            "scope": "Qwen3-4B, Qwen2.5-7B, Qwen3-30B-A3B",
            "verdict": NOT_TESTABLE,
        },
    ]
    columns = ["claim", "metric", "scope", "effect", "unit", "seeds", "verdict"]
    notes = (
        "A verdict is computed from the 95 % interval: supported if the whole interval is on the claimed "
        "side of no effect, opposite if it is on the other side, inconclusive if it includes no effect. Rows "
        "are tested one by one, without a correction for their number. pp: percentage points of accuracy.",
        "Accuracy differences are paired by prompt and seed (pigeonhole bootstrap); scalars of a run "
        "(drawdown, cost, correlation) are paired by seed (Student's t); counts of runs have Newcombe's "
        "score interval. With one seed an accuracy's interval covers prompts alone, and there is no verdict. The "
        "runs behind different rows overlap: rows are not independent evidence.",
        "Drawdown: the furthest that overall avg@k falls below its running peak. Collapsed: a run that ends "
        "with less than half of what it had gained at its peak, and at least 5 pp below that peak. With "
        "n = 2 the leave-one-out baselines of PMD-mean and PMD-part are the same number, so (d) takes the "
        "smallest n above 2.",
    )
    return Table("T4", "The abstract's claims and what this experiment says of them.", _frame(records, columns), notes)


def _accuracy_claims(data: Logs, evaluated: pd.DataFrame, generator: np.random.Generator) -> list[dict]:
    records = []
    for regime, rows in _final(data, evaluated).items():
        for rival in ("grpo", "gspo", "grpo-unclipped"):
            if rival not in set(rows.method):
                continue
            for name in ("overall", *SETS) if rival == "grpo" else ("overall",):
                effect, seeds = _paired(rows, "pmd-mean", rival, name, generator)
                control = " (control: neither clips)" if rival == "grpo-unclipped" else ""
                records.append(
                    {
                        "claim": f"(a) PMD-mean is more accurate than {_label(rival)}{control}",
                        "metric": f"difference in avg@{rows.k.max()}, last checkpoint",
                        "scope": f"{regime}, {name}",
                        "effect": effect,
                        "unit": "pp",
                        "seeds": seeds,
                        "verdict": verdict(effect if seeds > 1 else None),
                    }
                )
    return records


def _stability_claims(data: Logs) -> list[dict]:
    overall = data.evals[data.evals.set == "overall"].sort_values("step")
    records = []
    for regime, runs in logs.regimes(data).items():
        mine = overall[overall.run.isin(runs.run)]
        falls = mine.groupby(["method", "seed"]).avg.agg(drawdown).unstack("method")
        falls = falls.reindex(columns=["pmd-mean", "grpo"]).dropna()
        effect = stats.t_interval(100 * (falls["grpo"] - falls["pmd-mean"]))
        records.append(
            {
                "claim": "(b) PMD-mean is more stable than GRPO",
                "metric": "worst drawdown of overall accuracy, GRPO − PMD-mean",
                "scope": regime,
                "effect": effect,
                "unit": "pp",
                "seeds": len(falls),
                "verdict": verdict(effect),
            }
        )
    return records


def _efficiency_claims(data: Logs) -> list[dict]:
    records = []
    for regime, runs in logs.regimes(data).items():
        costs = _costs(data, runs)
        mine = costs[costs.method == "pmd-mean"]
        missed = int(mine.seconds.isna().sum())
        for unit in ("seconds", "tokens"):
            ratio = _cost_ratio(costs, "pmd-mean", unit)
            known = ratio is not None or not missed or costs.target.isna().any()
            saved = ratio and Interval(1 - ratio.estimate, 1 - ratio.high, 1 - ratio.low)
            records.append(
                {
                    "claim": "(c) PMD-mean is more time-efficient than GRPO",
                    "metric": f"{unit} to {100 * TARGET:g} % of GRPO's final accuracy, ratio PMD-mean/GRPO",
                    "scope": regime,
                    "effect": ratio if known else f"target not reached in {missed} of {len(mine)} runs",
                    "unit": "ratio",
                    "seeds": len(mine),
                    "verdict": verdict(saved) if known else "not supported (target not reached)",
                }
            )
    return records


def _robustness_claims(data: Logs, evaluated: pd.DataFrame, generator: np.random.Generator) -> list[dict]:
    scopes, finals = _final(data, evaluated), logs.last(data.evals)
    for axis, name, above in (("tau", "τ", 0), ("group", "n", 2)):
        runs = logs.ablation(data, axis)
        shared = set(runs[runs.method == "pmd-mean"].x) & set(runs[runs.method == "pmd-part"].x)
        if shared := [x for x in shared if x > above]:
            chosen = runs[runs.x == min(shared)].run
            scopes[f"{name} = {min(shared):g}"] = finals[finals.run.isin(chosen)]
    claim = "(d) PMD-mean is more robust to finite-sample error than PMD-part"
    records = []
    for scope, rows in scopes.items():
        effect, seeds = _paired(rows, "pmd-mean", "pmd-part", "overall", generator)
        record = {"claim": claim, "metric": f"difference in overall avg@{rows.k.max()}, last checkpoint"}
        record |= {"scope": scope, "effect": effect, "unit": "pp", "seeds": seeds}
        record["verdict"] = verdict(effect if seeds > 1 else None)
        records.append(record)
    overall = data.evals[data.evals.set == "overall"].sort_values("step")
    fallen = overall.groupby(["method", "run"]).avg.agg(collapsed)
    part, mean = (fallen[fallen.index.get_level_values("method") == m].astype(int) for m in ("pmd-part", "pmd-mean"))
    if len(part) and len(mean):
        share = stats.share_difference(int(part.sum()), len(part), int(mean.sum()), len(mean))
        effect = Interval(*(100 * value for value in share))
        scope = f"all runs: PMD-part {part.sum()} of {len(part)}, PMD-mean {mean.sum()} of {len(mean)}"
        record = {"claim": claim, "metric": "share of collapsed runs, PMD-part − PMD-mean", "scope": scope}
        records.append(record | {"effect": effect, "unit": "% of runs", "verdict": verdict(effect)})
    return records


def _regulariser_claims(data: Logs) -> list[dict]:
    steps = data.steps[(data.steps.axis == "main") & (data.steps.method == "pmd-mean")]
    ranks, ratios = [], []
    for _, run in steps[steps.lambda_theory.notna()].groupby("run"):
        if run["lambda"].nunique() > 1 and run.lambda_theory.nunique() > 1:
            ranks.append(run["lambda"].rank().corr(run.lambda_theory.rank()))
        if run.lambda_theory.mean() > 0:
            ratios.append(run["lambda"].mean() / run.lambda_theory.mean())
    rank, ratio = stats.t_interval(ranks), stats.t_interval(ratios)
    rank = Interval(rank.estimate, *(float(end) for end in np.clip(rank[1:], -1, 1)))
    if not np.isfinite(ratio).all():
        agreement = NOT_TESTABLE
    elif ratio.low > 0.5 and ratio.high < 2:
        agreement = SUPPORTED
    else:
        agreement = OUTSIDE if ratio.high < 0.5 or ratio.low > 2 else INCONCLUSIVE
    claim = "(e) PMD-mean's update carries the implicit KL–χ² regulariser that theory predicts"
    shared = {"claim": claim, "scope": "main matrix, PMD-mean"}
    return [
        shared
        | {
            "metric": "Spearman's rank correlation over steps of −mean(s) and the predicted λ",
            "effect": rank,
            "unit": "ρ",
            "seeds": len(ranks),
            "verdict": verdict(rank),
        },
        shared
        | {
            "metric": "mean of −mean(s) over mean of the predicted λ; supported if within a factor 2 of 1",
            "effect": ratio,
            "unit": "ratio",
            "seeds": len(ratios),
            "verdict": agreement,
        },
    ]


def _proved_claims(proofs: pd.DataFrame | None) -> list[dict]:
    if proofs is None:
        return [
            {
                "claim": "(f) The update is more conservative where expected reward is low",
                "metric": "exact statement, proved and checked by the theory notebook",
                "scope": "population update",
                "verdict": "not tested here (execute the theory notebook first)",
            }
        ]
    missing = {"statement", "source", "proved_by", "residual", "tolerance"} - set(proofs.columns)
    if missing:
        raise ValueError(f"theory_claims.csv: has no column {', '.join(sorted(missing))}")
    return [
        {
            "claim": f"(f) Theory: {row.statement}",
            "metric": f"residual at most {row.tolerance:g}, proved by {row.proved_by.split('::')[-1]}",
            "scope": f"population update; {row.source}",
            "effect": f"{row.residual:.1e}",
            "unit": "residual",
            "verdict": f"proved and checked to residual {row.residual:.1e}"
            if row.residual <= row.tolerance
            else "not supported (the residual exceeds its tolerance)",
        }
        for row in proofs.itertuples()
    ]


def drawdown(curve: Iterable[float]) -> float:
    """The furthest a curve falls below its running maximum, in the curve's unit."""
    values = np.asarray(list(curve), dtype=float)
    return float((np.maximum.accumulate(values) - values).max())


def collapsed(curve: Iterable[float]) -> bool:
    """Does the curve end with less than half of its peak's gain, and at least 0.05 below the peak?"""
    values = np.asarray(list(curve), dtype=float)
    lost = values.max() - values[-1]
    return bool(lost >= 0.05 and lost > (values.max() - values[0]) / 2)


def _final(data: Logs, evaluated: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Scores at the last checkpoint by regime; those of the main matrix are the evaluate stage's."""
    regimes = logs.regimes(data)
    finals = logs.last(data.evals)
    found = {label: finals[finals.run.isin(runs.run)] for label, runs in regimes.items()}
    return found | {next(iter(regimes)): evaluated[(evaluated.checkpoint == "last") & (evaluated.method != "base")]}


def _paired(
    rows: pd.DataFrame, a: str, b: str, name: str, generator: np.random.Generator
) -> tuple[Interval | None, int]:
    """Accuracy of a minus b in percentage points on the seeds both have, and how many those are."""
    seeds = set(rows[rows.method == a].seed) & set(rows[rows.method == b].seed)
    if not seeds:
        return None, 0
    rows = rows[rows.seed.isin(seeds)]
    one, other = (_matrices(rows[rows.method == method], name, "avg") for method in (a, b))
    difference = stats.paired_interval(one, other, generator)
    return Interval(*(100 * value for value in difference)), len(seeds)


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
    return Table("T5", "Compute: seconds and peak memory of every stage.", _frame(records, columns))


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


# --- writing ---


def write(table: Table, directory: str | Path) -> list[Path]:
    """Write NAME.md, NAME.csv (an interval in three columns) and NAME.tex (booktabs), each atomically."""
    paths = [Path(directory) / f"{table.name}.{ending}" for ending in ("md", "csv", "tex")]
    csv = _spread(table.frame).to_csv(index=False, float_format="%.10g", lineterminator="\n")
    for path, text in zip(paths, (markdown(table), csv, latex(table)), strict=True):
        write_text(path, text)
    return paths


def markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown: caption, cells, notes."""
    rows = [list(table.frame.columns), ["---"] * table.frame.shape[1], *_cells(table.frame)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"**{table.name}.** {table.caption}", "", *lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex(table: Table) -> str:
    """The table for LaTeX with the packages booktabs, array, longtable, graphicx and rotating.

    Up to eight columns: a longtable, whose cells wrap and which goes on over pages. More: on its side, to fit a page.
    """
    cells = _cells(table.frame)
    head, *rows = [" & ".join(map(_escape, row)) + r" \\" for row in [list(table.frame.columns), *cells]]
    title = rf"\caption{{{_escape(table.caption)}}}\label{{tab:{table.name}}}"
    notes = [rf"\par\smallskip\footnotesize {_escape(note)}" for note in table.notes]
    if table.frame.shape[1] > 8:
        lines = [
            r"\begin{sidewaystable}\centering\setlength{\tabcolsep}{3pt}",
            title,
            rf"\resizebox{{\linewidth}}{{!}}{{\begin{{tabular}}{{{'l' * table.frame.shape[1]}}}\toprule",
            head + r"\midrule",
            *rows,
            r"\bottomrule\end{tabular}}",
            *notes,
            r"\end{sidewaystable}",
        ]
    else:
        lines = [
            r"{\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{longtable}}{{{_columns([list(table.frame.columns), *cells])}}}",
            title + r"\\\toprule",
            head + r"\midrule\endfirsthead\toprule",
            head + r"\midrule\endhead\bottomrule\endfoot",
            *(row + r"\addlinespace[2pt]" for row in rows),
            r"\end{longtable}",
            *notes,
            r"\par}",
        ]
    return "\n".join([*lines, ""])


def _columns(cells: list[list[str]]) -> str:
    """Columns for a longtable: as wide as their texts, or, if those fill no line, wrapped in shares of the line."""
    longest = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sum(longest) <= 80:
        return "l" * len(longest)
    wanted = [min(24, max(10, length)) for length in longest]
    wrapped = r">{{\raggedright\arraybackslash}}p{{\dimexpr {:.3f}\linewidth-2\tabcolsep}}"
    return "".join(wrapped.format(length / sum(wanted)) for length in wanted)


_TEXT = {"–": "--", "—": "---", "“": "``", "”": "''", "’": "'", "…": r"\dots{}", "|": r"\textbar{}"}
_TEXT |= {"_": r"\_\allowbreak{}", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SIGNS = "τ tau λ lambda χ chi π pi ρ rho Δ Delta ± pm × times ≥ ge ≤ le → to ‖ Vert ≈ approx √ surd ∞ infty"
_MATHS = {"−": "$-$", "<": "$<$", ">": "$>$", "²": "$^2$", "₀": "$_0$", "₁": "$_1$"}
_MATHS |= {sign: rf"$\{name}$" for sign, name in zip(_SIGNS.split()[::2], _SIGNS.split()[1::2], strict=True)}
_LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | _TEXT | _MATHS)
"""What pdfLaTeX needs spelled out, of the characters that occur here."""


def _escape(text: str) -> str:
    return text.translate(_LATEX)


def _number(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")


def _cell(value: Any) -> str:
    if isinstance(value, Interval):
        if np.isnan(value.estimate):
            return "–"
        ends = "" if np.isnan(value.low) else f" [{_number(value.low)}, {_number(value.high)}]"
        return _number(value.estimate) + ends
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return _number(value) if isinstance(value, float) else str(value)


def _cells(frame: pd.DataFrame) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]


def _spread(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with each column that holds intervals split into estimate, low and high."""
    columns = {}
    for name in frame:
        values = list(frame[name])
        columns[name] = [v.estimate if isinstance(v, Interval) else v for v in values]
        if any(isinstance(v, Interval) for v in values):
            for end in ("low", "high"):
                columns[f"{name} {end}"] = [getattr(v, end) if isinstance(v, Interval) else None for v in values]
    return pd.DataFrame(columns)


# --- shared ---


def _frame(records: list[dict], columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A frame that keeps intervals and missing cells as they are: None becomes no NaN, 3 no 3.0."""
    columns = list(columns or dict.fromkeys(key for record in records for key in record))
    cells = {name: pd.Series([record.get(name) for record in records], dtype=object) for name in columns}
    return pd.DataFrame(cells, columns=columns)


def _label(method: str) -> str:
    return "base model" if method == "base" else style.method_style(method)["label"]


def _matrices(rows: pd.DataFrame, name: str, metric: str) -> list[np.ndarray]:
    return [logs.matrix(rows[rows.set == part], metric) for part in (SETS if name == "overall" else (name,))]


def _clustered(rows: pd.DataFrame, name: str, metric: str, scale: float, generator: np.random.Generator) -> Interval:
    result = stats.interval(_matrices(rows, name, metric), generator)
    bounds = (-np.inf, np.inf) if metric == "length" else (0, 1)
    low, high = np.clip(result[1:], *bounds)
    return Interval(scale * result.estimate, float(scale * low), float(scale * high))
