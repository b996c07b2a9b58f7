"""The questions behind the claims: each takes the evidence of a preset and answers with an effect and a reason.

PMD-mean is the variant "pmd-mean", at the paper's τ. A difference is always PMD-mean's value minus the other's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from pmd.paper.effects import Effect, crossed, over_bases
from pmd.paper.frames import Evidence, cell, chosen, final, scores
from pmd.paper.style import label_of

SHARE = 0.95
"""The target of the time claims: this share of what on-policy GRPO gains over its base model."""


class Answer(NamedTuple):
    """An effect, None where there is nothing to compare; the sentence that says why; base models and runs behind it.

    verdict: one that the evidence gives whatever the effect is; None to leave it to the rule.
    """

    effect: Effect | None
    reason: str
    bases: int
    runs: int
    verdict: str | None = None


def stale(evidence: Evidence) -> list[int]:
    """The K of the map that are not on-policy, ascending; batches that are used at once."""
    fresh = evidence.runs[(evidence.runs.staleness == 0) & (evidence.runs.minibatches > 1)]
    return sorted(int(k) for k in fresh.minibatches.unique())


def missing(what: str) -> Answer:
    return Answer(None, what, 0, 0)


def paired(mine: pd.DataFrame, theirs: pd.DataFrame, labels: tuple[str, str], where: str) -> Answer:
    """The difference in accuracy, in pp, of two sets of final evaluations on the base models that both have."""
    shared = set(mine.base) & set(theirs.base)
    mine, theirs = mine[mine.base.isin(shared)], theirs[theirs.base.isin(shared)]
    bases, a = scores(mine)
    _, b = scores(theirs)
    if not bases:
        return missing(f"no runs of both {labels[0]} and {labels[1]} {where}")
    effect = crossed(100 * (a - b))
    runs = mine.run.nunique() + theirs.run.nunique()
    return Answer(effect, sentence(labels, 100 * a.mean(), 100 * b.mean(), where, effect), len(bases), runs)


def sentence(labels: tuple[str, str], a: float, b: float, where: str, effect: Effect) -> str:
    low, high = effect.interval()[1:]
    known = f"; the 95 % interval of the difference is [{low:.1f}, {high:.1f}] pp" if effect else ""
    return f"{labels[0]} {a:.1f} %, {labels[1]} {b:.1f} % {where}{known}"


# --- (a), (b): accuracy and stability -------------------------------------------------------------------------------


def best_rates(evidence: Evidence, mine: str, rival: str, large: bool) -> Answer:
    """(a) Two variants, each at its best rate, at the largest or the smallest K above 1."""
    ks = stale(evidence)
    if not ks or (large and len(ks) < 2):
        return missing("the map has no such K")
    k, best, ends, rates = ks[-1 if large else 0], chosen(evidence), final(evidence), {}
    for name in (mine, rival):
        row = cell(best, name, k)
        if row.empty:
            return missing(f"no runs of {label_of(name)} at K = {k}")
        rates[name] = float(row.lr.iloc[0])
    rows = [cell(ends, name, k, rate) for name, rate in rates.items()]
    where = f"at K = {k} (rates {rates[mine]:g} and {rates[rival]:g})"
    return paired(rows[0], rows[1], (label_of(mine), label_of(rival)), where)


def whole_grid(evidence: Evidence, mine: str, rival: str) -> Answer:
    """(b) Two variants, each over all rates and all K above 1 that both were trained with."""
    ends = final(evidence)
    ends = ends[ends.minibatches.isin(stale(evidence)) & (ends.staleness == 0)]
    cells = [
        set(zip(ends.minibatches[rows], ends.lr[rows], strict=True))
        for rows in (ends.variant == mine, ends.variant == rival)
    ]
    shared = cells[0] & cells[1]
    if not shared:
        return missing(f"no runs of both {label_of(mine)} and {label_of(rival)}")
    rows = ends[[pair in shared for pair in zip(ends.minibatches, ends.lr, strict=True)]]
    where = f"over {len(shared)} cells of rate and K"
    return paired(rows[rows.variant == mine], rows[rows.variant == rival], (label_of(mine), label_of(rival)), where)


# --- (c): time ------------------------------------------------------------------------------------------------------


def curves(evidence: Evidence) -> pd.DataFrame:
    """A row a run and evaluation of its learning curve: accuracy over all problems of all sets, and seconds so far."""
    rows = evidence.evals[~evidence.evals.final.astype(bool)]
    rows = rows.assign(problems=rows.correct.map(len))
    rows = rows.assign(right=rows.accuracy * rows.problems)
    keys = ["run", "variant", "minibatches", "staleness", "lr", "base", "step"]
    summed = rows.groupby(keys, as_index=False)[["right", "problems"]].sum()
    summed["accuracy"] = summed.right / summed.problems
    cost = evidence.steps[["run", "step", "seconds", "tokens"]]
    summed = summed.merge(cost, on=["run", "step"], how="left").fillna({"seconds": 0.0, "tokens": 0.0})
    return summed.merge(evidence.runs[["run", "cpu"]], on="run")


def time_to(curve: pd.DataFrame, target: float) -> float:
    """Seconds until a curve first reaches `target`, linear between evaluations; NaN if it never does."""
    curve = curve.sort_values("step")
    seconds, accuracy = curve.seconds.to_numpy(), curve.accuracy.to_numpy()
    reached = np.flatnonzero(accuracy >= target)
    if not len(reached):
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return 0.0
    part = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return float(seconds[i - 1] + part * (seconds[i] - seconds[i - 1]))


def best_k(evidence: Evidence, variant: str) -> tuple[int, float] | None:
    """(K, rate) above K = 1 with the best accuracy on val; None if there is none."""
    best = chosen(evidence)
    best = best[(best.variant == variant) & best.minibatches.isin(stale(evidence)) & (best.staleness == 0)]
    row = best.loc[best.val.idxmax()] if len(best) else None
    return None if row is None else (int(row.minibatches), float(row.lr))


def seconds_to_target(evidence: Evidence, on_policy: bool) -> Answer:
    """(c) log seconds of PMD-mean minus those of GRPO, on-policy or at its best K, to the target; one number a base.

    A run of the rival that never reaches the target counts with all its seconds, which favours the rival. If PMD-mean
    misses it from some base models, the row stays undecided; from all of them, it is contradicted.
    """
    rows, best = curves(evidence), chosen(evidence)
    fresh, own, other = cell(best, "grpo", 1), best_k(evidence, "pmd-mean"), best_k(evidence, "grpo")
    if fresh.empty or own is None or other is None:
        return missing("on-policy GRPO, or a larger K, was not trained")
    reference = cell(rows, "grpo", 1, float(fresh.lr.iloc[0]))
    mine = cell(rows, "pmd-mean", *own)
    rival = reference if on_policy else cell(rows, "grpo", *other)
    logs, missed, bases = [], 0, sorted(set(mine.base) & set(rival.base) & set(reference.base))
    for base in bases:
        known = reference[reference.base == base]
        start, end = (known[known.step == step].accuracy.mean() for step in (0, known.step.max()))
        if end <= start:
            return missing(f"on-policy GRPO gains nothing from base model {base}: there is no target")
        target = start + SHARE * (end - start)
        took = [_seconds(part[part.base == base], target) for part in (mine, rival)]
        if len({*mine[mine.base == base].cpu, *rival[rival.base == base].cpu}) > 1:
            return missing("the runs were made on different processors")
        missed += bool(np.isnan(took[0][0]))
        logs.append(float(np.log(max(took[0][0], 1e-3)) - np.log(max(took[1][1], 1e-3))))
    if not bases:
        return missing("no base model has runs of all three")
    runs = mine.run.nunique() + rival.run.nunique()
    if missed:
        why = f"PMD-mean (K = {own[0]}) does not reach the target from {missed} of {len(bases)} base models"
        return Answer(None, why, len(bases), runs, "contradicted" if missed == len(bases) else "undecided")
    effect = over_bases(logs)
    name = "on-policy GRPO" if on_policy else f"GRPO (K = {other[0]})"
    why = f"PMD-mean (K = {own[0]}) takes {np.exp(effect.estimate):.2f} times the seconds of {name}"
    return Answer(effect, why, len(bases), runs)


def _seconds(rows: pd.DataFrame, target: float) -> tuple[float, float]:
    """(mean seconds of the runs to the target, NaN if one misses it; the same with the seconds of all of a run that
    does)."""
    found = [(time_to(curve, target), curve.seconds.max()) for _, curve in rows.groupby("run")]
    times = [t for t, _ in found]
    return float(np.mean(times)), float(np.mean([whole if np.isnan(t) else t for t, whole in found]))


# --- (d), (e): finite samples and the law ---------------------------------------------------------------------------


def baselines(evidence: Evidence, name: str, n: int = 8) -> Answer:
    """(d) Success after a solved update with the mean minus with the partition, in pp, at the smallest τ."""
    rows = evidence.finite
    if rows is None or n not in set(rows.n):
        return missing(f"the finite-sample experiment has no updates from n = {n}")
    rows = rows[(rows["set"] == name) & (rows.n == n) & (rows.tau == rows.tau.min())]
    tau = float(rows.tau.iloc[0])
    rates = rows.assign(rate=100 * rows.after / rows.samples).groupby(["base", "tau_b"]).rate.mean().unstack()
    if not {np.inf, tau} <= set(rates.columns):
        return missing("it lacks the mean or the partition")
    rates = rates[[np.inf, tau]].dropna()
    effect = over_bases(rates[np.inf] - rates[tau])
    before = 100 * (rows.before.sum() / rows.samples.sum())
    where = f"of {name} prompts at τ = {tau:g}, n = {n} ({before:.1f} % before)"
    why = sentence(("the mean", "the partition"), rates[np.inf].mean(), rates[tau].mean(), where, effect)
    return Answer(effect, why, len(rates), 2 * len(rates))


def _solved(evidence: Evidence) -> pd.DataFrame | None:
    """The prompts of the law after the last inner step, on the batch, with constant normalisation."""
    rows = evidence.law
    if rows is None:
        return None
    rows = rows[(rows.how == "solved") & (rows["set"] == "batch") & (rows.normalise == "constant")]
    return rows[rows.step == rows.step.max()]


def law_ratio(evidence: Evidence) -> Answer:
    """(e) The mean −mean(s) over the mean λ, minus 1: the mean over τ, a number a base model."""
    rows = _solved(evidence)
    if rows is None or rows.empty:
        return missing("the law was not measured")
    means = rows.groupby(["base", "tau"])[["minus_mean_s", "lam"]].mean()
    ratios = (means.minus_mean_s / means.lam).unstack("tau")
    effect = over_bases(ratios.mean(axis=1) - 1)
    shown = ", ".join(f"{ratio:.2f} at τ = {tau:g}" for tau, ratio in ratios.mean().items())
    return Answer(effect, f"−mean(s)/λ is {shown}", len(ratios), len(means))


def law_order(evidence: Evidence) -> Answer:
    """(e) Spearman's correlation of −mean(s) and λ over prompts, minus 0.5: the mean over τ, a number a base model."""
    rows = _solved(evidence)
    if rows is None or rows.empty:
        return missing("the law was not measured")
    ranks = {key: part.minus_mean_s.rank().corr(part.lam.rank()) for key, part in rows.groupby(["base", "tau"])}
    found = pd.Series(ranks).unstack()
    effect = over_bases(found.mean(axis=1) - 0.5)
    shown = ", ".join(f"{value:.2f} at τ = {tau:g}" for tau, value in found.mean().items())
    return Answer(effect, f"the rank correlation is {shown}", len(found), len(ranks))
