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

ALONE = "one base model alone has no interval"
SHARE = 0.95
"""The target of the time claims: this share of what on-policy GRPO gains over its base model."""


class Answer(NamedTuple):
    """An effect, None where there is nothing to compare; the sentence that says why; base models and runs behind it.

    only: the one verdict besides "undecided" that the evidence can give, because the effect is known as a bound:
    "above" for what an effect above 0 says, "below" for the other, "none" for neither; None if the effect is measured.
    but: what a reader of the verdict alone would not expect.
    """

    effect: Effect | None
    reason: str
    bases: int
    runs: int
    only: str | None = None
    but: str = ""


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
    known = f"; {interval_words(low, high)}" if effect else f"; {ALONE}"
    return f"{labels[0]} {a:.1f} %, {labels[1]} {b:.1f} % {where}{known}"


def interval_words(low: float, high: float) -> str:
    """The 95 % interval of a difference in pp, and whether 0 is in it."""
    word = "includes" if low <= 0 <= high else "excludes"
    ends = f"[{low:.1f}, {high:.1f}]".replace("-", "−")
    return f"the 95 % interval of the difference, {ends} pp, {word} 0"


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
    """(b) Two variants, each over all rates and all K above 1 that both were trained with from every base model.

    A cell that one of them lacks from some base model is left out for both, so that a map that was stopped compares
    like with like; every cell counts the same, however many seeds it has. The reason has the difference at each K too,
    since opposite ones make a mean near 0.
    """
    ends = final(evidence)
    ends = ends[ends.minibatches.isin(stale(evidence)) & (ends.staleness == 0)]
    ends = ends[ends.variant.isin([mine, rival])]
    bases = set(ends[ends.variant == mine].base) & set(ends[ends.variant == rival].base)
    ends = ends[ends.base.isin(bases)]
    found = ends[["minibatches", "lr", "variant", "base"]].drop_duplicates().groupby(["minibatches", "lr"]).size()
    shared = list(found.index[found == 2 * len(bases)]) if bases else []
    if not shared:
        return missing(f"no cell of rate and K has runs of both {label_of(mine)} and {label_of(rival)}")
    cells = [[cell(ends, name, k, lr) for k, lr in shared] for name in (mine, rival)]
    a, b = (np.stack([scores(rows)[1] for rows in group]) for group in cells)  # [cells, bases, problems]
    effect, left = crossed(100 * (a.mean(0) - b.mean(0))), len(found) - len(shared)
    of_k = pd.Series(100 * (a - b).mean((1, 2)), [k for k, _ in shared]).groupby(level=0).mean()
    where = f"over {len(shared)} cells of rate and K" + (f" ({left} incomplete ones left out)" if left else "")
    why = sentence((label_of(mine), label_of(rival)), 100 * a.mean(), 100 * b.mean(), where, effect)
    why += "; the difference is " + ", ".join(f"{gap:.1f} pp at K = {k}".replace("-", "−") for k, gap in of_k.items())
    return Answer(effect, why, len(bases), sum(rows.run.nunique() for group in cells for rows in group))


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
    summed = summed.merge(cost, on=["run", "step"], how="left")
    summed.loc[summed.step == 0, ["seconds", "tokens"]] = 0.0  # the base model itself
    if summed.seconds.isna().any():
        lost = summed.run[summed.seconds.isna()].iloc[0]
        raise ValueError(f"steps: run {lost} was evaluated at a step that is not there")
    return summed.merge(evidence.runs[["run", "cpu"]], on="run")


def time_to(curve: pd.DataFrame, target: float, cost: str = "seconds") -> float:
    """Seconds, or tokens, until a curve first reaches `target`, linear between evaluations; NaN if it never does."""
    curve = curve.sort_values("step")
    spent, accuracy = curve[cost].to_numpy(), curve.accuracy.to_numpy()
    reached = np.flatnonzero(accuracy >= target)
    if not len(reached):
        return float("nan")
    i = int(reached[0])
    if i == 0:
        return 0.0
    part = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
    return float(spent[i - 1] + part * (spent[i] - spent[i - 1]))


def best_k(evidence: Evidence, variant: str) -> tuple[int, float] | None:
    """(K, rate) above K = 1 with the best accuracy on val; None if there is none."""
    best = chosen(evidence)
    best = best[(best.variant == variant) & best.minibatches.isin(stale(evidence)) & (best.staleness == 0)]
    row = best.loc[best.val.idxmax()] if len(best) else None
    return None if row is None else (int(row.minibatches), float(row.lr))


def seconds_to_target(evidence: Evidence, on_policy: bool) -> Answer:
    """(c) log seconds of PMD-mean minus those of GRPO, on-policy or at its best K, to the target; one number a base.

    A run that never reaches the target counts with all its seconds, which is less than it would have taken. So where
    the rival misses it, the effect can only be lower, and the row can be supported but neither contradicted nor called
    equivalent; where PMD-mean misses it, the row can only be contradicted; where both do, it is undecided. The reason
    says how many runs these are.
    """
    rows, best = curves(evidence), chosen(evidence)
    fresh, own, other = cell(best, "grpo", 1), best_k(evidence, "pmd-mean"), best_k(evidence, "grpo")
    if fresh.empty or own is None or other is None:
        return missing("on-policy GRPO, or a larger K, was not trained")
    reference = cell(rows, "grpo", 1, float(fresh.lr.iloc[0]))
    mine = cell(rows, "pmd-mean", *own)
    rival = reference if on_policy else cell(rows, "grpo", *other)
    logs, tokens, missed, bases = (
        [],
        [],
        np.zeros(2, dtype=int),
        sorted(set(mine.base) & set(rival.base) & set(reference.base)),
    )
    for base in bases:
        known = reference[reference.base == base]
        start, end = (known[known.step == step].accuracy.mean() for step in (0, known.step.max()))
        if end <= start:
            return missing(f"on-policy GRPO gains nothing from base model {base}: there is no target")
        target = start + SHARE * (end - start)
        took = [_to_target(part[part.base == base], target, "seconds") for part in (mine, rival)]
        used = [_to_target(part[part.base == base], target, "tokens")[0] for part in (mine, rival)]
        if not all(used):
            return missing(f"on-policy GRPO gains so little from base model {base} that runs begin at the target")
        if len({*mine[mine.base == base].cpu, *rival[rival.base == base].cpu}) > 1:
            return missing("the runs were made on different processors")
        missed += [count for _, count in took]
        logs.append(float(np.log(took[0][0]) - np.log(took[1][0])))
        tokens.append(float(np.log(used[0]) - np.log(used[1])))
    if not bases:
        return missing("no base model has runs of all three")
    runs = mine.run.nunique() + rival.run.nunique()
    effect, names = over_bases(logs), (f"PMD-mean (K = {own[0]})", f"GRPO (K = {1 if on_policy else other[0]})")
    made = [part[part.base.isin(bases)].run.nunique() for part in (mine, rival)]
    late = [f"{some} of {of} runs of {name}" for some, of, name in zip(missed, made, names, strict=True) if some]
    bound = {(True, False): "above", (False, True): "below", (True, True): "none"}.get(tuple((missed > 0).tolist()))
    why = _in_words(effect, float(np.exp(np.mean(tokens))), names, late, bound)
    return Answer(effect, why, len(bases), runs, bound)


KNOWN = {"above": "at least", "below": "at most"}
"""How much of a ratio is known from a bound; of the bound "none" nothing."""


def _in_words(effect: Effect, tokens: float, names: tuple[str, str], late: list[str], bound: str | None) -> str:
    """The sentence about seconds and tokens; late: how many runs of whom miss the target."""
    ratio = float(np.exp(effect.estimate))
    if bound == "none":
        return f"{' and '.join(late)} miss the target, so the ratio is not known"
    if bound:
        known = f"takes {KNOWN[bound]} {ratio:.2f} times the seconds of"
        return f"{late[0]} miss the target; counting all of their seconds, {names[0]} {known} {names[1]}"
    low, high = np.exp(effect.interval()[1:])
    why = f"{names[0]} takes {ratio:.2f} times the seconds of {names[1]}; "
    why += f"the 95 % interval is [{low:.2f}, {high:.2f}]" if effect else ALONE
    return f"{why}; of generated tokens {tokens:.2f} times as many"


def _to_target(rows: pd.DataFrame, target: float, cost: str) -> tuple[float, int]:
    """(mean seconds or tokens of the runs to the target, all it has for a run that misses it; how many miss it)."""
    found = [(time_to(curve, target, cost), curve[cost].max()) for _, curve in rows.groupby("run")]
    costs = [whole if np.isnan(part) else part for part, whole in found]
    return float(np.mean(costs)), sum(np.isnan(part) for part, _ in found)


# --- (d), (e): finite samples and the law ---------------------------------------------------------------------------


def baselines(evidence: Evidence, name: str, n: int = 8) -> Answer:
    """(d) Success after a solved update with the mean minus with the partition, in pp, at the smallest τ of the
    experiment."""
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
    after = rates.mean()
    why = sentence((label_of("pmd-mean"), label_of("pmd-part")), after[np.inf], after[tau], where, effect)
    but = f"both lower success, from {before:.0f} % to {after[np.inf]:.0f} % and {after[tau]:.0f} %"
    return Answer(effect, why, len(rates), 2 * len(rates), but=but if after.max() < before else "")


def _solved(evidence: Evidence, place: str = "batch") -> pd.DataFrame | None:
    """The prompts of the law after the last inner step, with constant normalisation, on the batch or "held out"."""
    rows = evidence.law
    if rows is None:
        return None
    rows = rows[(rows.how == "solved") & (rows["set"] == place) & (rows.normalise == "constant")]
    return rows[rows.step == rows.step.max()]


def law_ratio(evidence: Evidence) -> Answer:
    """(e) The mean −mean(s) over the mean λ, minus 1: the mean over τ, a number a base model."""
    rows = _solved(evidence)
    if rows is None or rows.empty:
        return missing("the law was not measured")
    ratios = _ratios(rows)
    if not np.isfinite(ratios.to_numpy()).all():
        return missing("for some base model and τ every prompt was solved always or never, so that λ is 0")
    effect = over_bases(ratios.mean(axis=1) - 1)
    shown = _by_tau(ratios)
    other = _solved(evidence, "held out")
    if other is not None and len(other):
        shown += f"; on other rollouts of the same prompts {_by_tau(_ratios(other))}"
    return Answer(effect, f"−mean(s)/λ is {shown}{_RANGES}", len(ratios), ratios.size)


def _ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean −mean(s) over the mean λ: a row a base model, a column a τ."""
    means = rows.groupby(["base", "tau"])[["minus_mean_s", "lam"]].mean()
    return (means.minus_mean_s / means.lam).unstack("tau")


_RANGES = "; in brackets the range over base models"


def _by_tau(table: pd.DataFrame) -> str:
    """The means and ranges of the columns of a table of base models by τ, in words that `_RANGES` explains."""
    return ", ".join(f"{x.mean():.2f} ({x.min():.2f} to {x.max():.2f}) at τ = {tau:g}" for tau, x in table.items())


def law_order(evidence: Evidence) -> Answer:
    """(e) Spearman's correlation of −mean(s) and λ over prompts, minus 0.5: the mean over τ, a number a base model."""
    rows = _solved(evidence)
    if rows is None or rows.empty:
        return missing("the law was not measured")
    ranks = {key: part.minus_mean_s.rank().corr(part.lam.rank()) for key, part in rows.groupby(["base", "tau"])}
    found = pd.Series(ranks).unstack()
    if not np.isfinite(found.to_numpy()).all():
        return missing("for some base model and τ all prompts have the same λ, so that they have no order")
    effect = over_bases(found.mean(axis=1) - 0.5)
    return Answer(effect, f"the rank correlation is {_by_tau(found)}{_RANGES}", len(found), len(ranks))
