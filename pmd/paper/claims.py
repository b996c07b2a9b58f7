"""T4: the claims of the paper's abstract, what tests each, the effect measured and the verdict.

Verdicts are computed from the intervals by one rule, so that nobody writes by hand what the outcome was.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from pmd.evaluators import intervals
from pmd.evaluators.intervals import Interval
from pmd.paper import logs
from pmd.paper.logs import SETS, Logs
from pmd.paper.tables import TARGET, cost_ratio, costs_to_target, label_of, matrices
from pmd.paper.typeset import Table, from_records

SUPPORTED = "supported"
INCONCLUSIVE = "not supported (inconclusive)"
OPPOSITE = "not supported (opposite of the claim)"
OUTSIDE = "not supported (outside a factor 2)"
NOT_TESTABLE = "not testable at this scale"


def verdict(effect: Interval | None, null: float = 0.0) -> str:
    """The verdict on a claim that the effect exceeds `null`, from its interval alone."""
    if effect is None or not np.isfinite(effect).all():
        return NOT_TESTABLE
    return SUPPORTED if effect.low > null else OPPOSITE if effect.high < null else INCONCLUSIVE


def table(
    data: Logs,
    evaluated: pd.DataFrame,
    generator: np.random.Generator,
    proofs: pd.DataFrame | None = None,
) -> Table:
    """T4: the claims of the paper's abstract, the metric testing each, the effect measured, the verdict.

    proofs: results/<preset>/theory/theory_claims.csv (`pmd.theory.statements.checked_statements`), None if the theory
    notebook has not been executed.
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
    return Table(
        "T4", "The abstract's claims and what this experiment says of them.", from_records(records, columns), notes
    )


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
                        "claim": f"(a) PMD-mean is more accurate than {label_of(rival)}{control}",
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
        effect = intervals.t_interval(100 * (falls["grpo"] - falls["pmd-mean"]))
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
        costs = costs_to_target(data, runs)
        mine = costs[costs.method == "pmd-mean"]
        missed = int(mine.seconds.isna().sum())
        for unit in ("seconds", "tokens"):
            ratio = cost_ratio(costs, "pmd-mean", unit)
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
        share = intervals.share_difference(int(part.sum()), len(part), int(mean.sum()), len(mean))
        effect = Interval(*(100 * value for value in share))
        scope = f"all runs: PMD-part {part.sum()} of {len(part)}, PMD-mean {mean.sum()} of {len(mean)}"
        record = {"claim": claim, "metric": "share of collapsed runs, PMD-part − PMD-mean", "scope": scope}
        records.append(record | {"effect": effect, "unit": "% of runs", "verdict": verdict(effect)})
    return records


def _regulariser_claims(data: Logs) -> list[dict]:
    main = data.runs[(data.runs.axis == "main") & (data.runs.method == "pmd-mean")]
    scopes = {"main matrix, PMD-mean": main.run}
    ablation = logs.ablation(data, "tau")
    for tau, runs in ablation[ablation.method == "pmd-mean"].groupby("x"):
        if tau not in set(main.tau):
            scopes[f"τ = {tau:g}, PMD-mean"] = runs.run
    return [record for scope, runs in scopes.items() for record in _lambda_claims(data.steps, scope, runs)]


def _lambda_claims(steps: pd.DataFrame, scope: str, runs: pd.Series) -> list[dict]:
    """Two rows: whether −mean(s), an estimate of λ, changes as the predicted λ does, and whether it is as large."""
    ranks, ratios = [], []
    for _, run in steps[steps.run.isin(runs) & steps.lambda_theory.notna()].groupby("run"):
        if run["lambda"].nunique() > 1 and run.lambda_theory.nunique() > 1:
            ranks.append(run["lambda"].rank().corr(run.lambda_theory.rank()))
        if run.lambda_theory.mean() > 0:
            ratios.append(run["lambda"].mean() / run.lambda_theory.mean())
    rank, ratio = intervals.t_interval(ranks), intervals.t_interval(ratios)
    rank = Interval(rank.estimate, *(float(end) for end in np.clip(rank[1:], -1, 1)))
    if not np.isfinite(ratio).all():
        agreement = NOT_TESTABLE
    elif ratio.low > 0.5 and ratio.high < 2:
        agreement = SUPPORTED
    else:
        agreement = OUTSIDE if ratio.high < 0.5 or ratio.low > 2 else INCONCLUSIVE
    claim = "(e) PMD-mean's update carries the implicit KL–χ² regulariser that theory predicts"
    shared = {"claim": claim, "scope": scope}
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
            "scope": f"exact theory; {row.source}",
            "effect": f"{row.residual:.1e}",
            "unit": "residual",
            "verdict": f"proved and checked to residual {row.residual:.1e}"
            if row.residual <= row.tolerance
            else "not supported (the residual exceeds its tolerance)",
        }
        for row in proofs.itertuples()
    ]


def drawdown(curve: Iterable[float]) -> float:
    """How far a curve falls below its running maximum at most, in the unit of the curve."""
    values = np.asarray(list(curve), dtype=float)
    return float((np.maximum.accumulate(values) - values).max())


def collapsed(curve: Iterable[float]) -> bool:
    """Whether a curve ends with less than half of what it had gained at its peak, and at least 0.05 below the peak."""
    values = np.asarray(list(curve), dtype=float)
    lost = values.max() - values[-1]
    return bool(lost >= 0.05 and lost > (values.max() - values[0]) / 2)


def _final(data: Logs, evaluated: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The scores at the last checkpoint for each regime; those of the main matrix come from the evaluate stage."""
    regimes = logs.regimes(data)
    finals = logs.last(data.evals)
    found = {label: finals[finals.run.isin(runs.run)] for label, runs in regimes.items()}
    return found | {next(iter(regimes)): evaluated[(evaluated.checkpoint == "last") & (evaluated.method != "base")]}


def _paired(
    rows: pd.DataFrame, a: str, b: str, name: str, generator: np.random.Generator
) -> tuple[Interval | None, int]:
    """The accuracy of a minus that of b in percentage points on the seeds that both have, and how many those are."""
    seeds = set(rows[rows.method == a].seed) & set(rows[rows.method == b].seed)
    if not seeds:
        return None, 0
    rows = rows[rows.seed.isin(seeds)]
    one, other = (matrices(rows[rows.method == method], name, "avg") for method in (a, b))
    difference = intervals.paired_interval(one, other, generator)
    return Interval(*(100 * value for value in difference)), len(seeds)
