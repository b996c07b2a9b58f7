"""The evidence of a preset, read from results/<preset>/evidence: what claims, figures and tables are made from.

pmd/experiments/evidence.py, law.py and finite.py say what the columns are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pmd.methods import METHODS
from pmd.sampling.accuracy import accuracy, avg_at_k

SETS = ("test", "ood")
"""The sets that are reported, pooled: problems of the trained lengths and longer ones."""

COLUMNS = {
    "runs": {"run", "variant", "method", "lr", "minibatches", "staleness", "base", "seed", "cpu", "seconds", "tokens"},
    "steps": {"run", "step", "reward", "entropy", "lambda", "lambda_theory", "seconds", "tokens"},
    "evals": {"run", "step", "set", "k", "correct", "majority", "final"},
    "bases": {"base", "set", "k", "correct", "majority"},
    "law": {"base", "tau", "normalise", "how", "step", "set", "p", "s_success", "s_failure", "minus_mean_s", "lam"},
    "finite": {"base", "n", "tau", "tau_b", "set", "prompt", "samples", "before", "after", "lam"},
}
"""What a file must hold."""


@dataclass(frozen=True)
class Evidence:
    """The frames of one preset. bases: the base models on whole sets. law, finite: None if that has not been run."""

    runs: pd.DataFrame
    steps: pd.DataFrame
    evals: pd.DataFrame
    bases: pd.DataFrame
    law: pd.DataFrame | None = None
    finite: pd.DataFrame | None = None


def load(folder: Path) -> Evidence:
    """The frames in a folder; ValueError in one line if the training map is missing or a file has another schema."""
    found = _read(folder)
    for name in ("runs", "steps", "evals", "bases"):
        if name not in found:
            file = folder / f"{name}.parquet"
            raise ValueError(f"{file}: missing; first execute notebooks 1 to 3 for this preset, or run `dvc repro`")
    runs, evals = found["runs"], found["evals"]
    keys = ["run", "variant", "method", "minibatches", "staleness", "lr", "base", "seed"]
    for name in ("steps", "evals"):
        found[name] = found[name].drop(columns=[key for key in keys[1:] if key in found[name]]).merge(runs[keys])
    if len(found["evals"]) != len(evals):
        raise ValueError(f"{folder / 'evals.parquet'}: of other runs than runs.parquet beside it")
    shares = [accuracy({"correct": row.correct, "k": row.k}) for row in evals.itertuples()]
    return Evidence(**found | {"evals": found["evals"].assign(accuracy=shares)})


def study(folder: Path, default: Evidence) -> tuple[Evidence, set[str]] | None:
    """(the study's evidence, the experiments in it that are its own: law, finite, train); None if there are none.

    A study is run in parts. What it has not finished is the default's: its training map counts when every cell of the
    default's map was trained from at least as many base models.
    """
    found = _read(folder)
    own = {name for name in ("law", "finite") if name in found}
    whole = load(folder) if {"runs", "steps", "evals", "bases"} <= set(found) else None
    if whole and _covers(whole.runs, default.runs):
        own |= {"train"}
    if not own:
        return None
    training = whole if whole and "train" in own else default
    return replace(training, **{name: found.get(name, getattr(default, name)) for name in ("law", "finite")}), own


def _covers(mine: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    counts = [runs.groupby(["variant", "minibatches", "staleness", "lr"]).base.nunique() for runs in (mine, theirs)]
    return bool((counts[0].reindex(counts[1].index).fillna(0) >= counts[1]).all())


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    found = {}
    for name, columns in COLUMNS.items():
        file = folder / f"{name}.parquet"
        if not file.exists():
            continue
        found[name] = pd.read_parquet(file)
        if lacking := sorted(columns - set(found[name].columns)):
            raise ValueError(f"{file}: of another schema, it has no column {', '.join(lacking)}")
    return found


def ordered(variants: Iterable[str]) -> list[str]:
    """The variants that occur, each once, in the order of pmd/methods.py; ValueError for a method that is not there."""
    found = sorted(set(variants))
    for name in found:
        if name.split(" ")[0] not in METHODS:
            raise ValueError(f"method: got {name!r}, must be one of pmd/methods.py: {', '.join(METHODS)}")
    return sorted(found, key=lambda name: (list(METHODS).index(name.split(" ")[0]), name))


def final(evidence: Evidence, sets: Iterable[str] = SETS) -> pd.DataFrame:
    """The evaluations at the end of every run, on whole sets: rows of evals."""
    return evidence.evals[evidence.evals.final.astype(bool) & evidence.evals["set"].isin(list(sets))]


def chosen(evidence: Evidence) -> pd.DataFrame:
    """The learning rate of each variant under each regime that has the best final accuracy on `val`, mean over runs.

    Columns variant, minibatches, staleness, lr and val; of equally good rates the smaller. A rate that has runs from
    fewer base models than another, because a map was stopped, is not chosen: the base models differ more than rates.
    """
    keys = ["variant", "minibatches", "staleness"]
    cells = final(evidence, ["val"]).groupby([*keys, "lr"])
    means = cells.agg(val=("accuracy", "mean"), bases=("base", "nunique")).reset_index().sort_values("lr")
    whole = means[means.bases == means.groupby(keys).bases.transform("max")]
    return whole.loc[whole.groupby(keys).val.idxmax(), [*keys, "lr", "val"]].reset_index(drop=True)


def compared(best: pd.DataFrame, evidence: Evidence) -> pd.DataFrame:
    """The rows of `chosen` of variants that were trained at as many learning rates as any: a best one is among them."""
    rates = evidence.runs.groupby("variant").lr.nunique()
    return best[best.variant.isin(rates.index[rates == rates.max()])]


def cell(rows: pd.DataFrame, variant: str, minibatches: int, lr: float | None = None, staleness: int = 0):
    """The rows of a variant under a regime, at one learning rate or, with None, at all of them."""
    mine = (rows.variant == variant) & (rows.minibatches == minibatches) & (rows.staleness == staleness)
    return rows[mine if lr is None else mine & np.isclose(rows.lr, lr)]


def scores(rows: pd.DataFrame) -> tuple[list[int], NDArray[np.float64]]:
    """(base models, accuracy [bases, problems]) of final evaluations, a base's mean over its runs; sets are pooled.

    rows: of `final`, or of `Evidence.bases`. Empty if there are none. ValueError if runs saw different numbers of
    problems.
    """
    bases = sorted(set(rows.base))
    if not bases:
        return [], np.zeros((0, 0))
    of_base, of_set = (rows[name].to_numpy() for name in ("base", "set"))
    shares = np.empty(len(rows), dtype=object)
    shares[:] = [avg_at_k(correct, k) for correct, k in zip(rows.correct, rows.k, strict=True)]
    parts = []
    for name in sorted(set(of_set)):
        mine = of_set == name
        if len(set(map(len, shares[mine]))) != 1 or set(of_base[mine]) != set(bases):
            raise ValueError(f"set {name}: its runs saw different problems or base models")
        parts.append(np.stack([np.mean(list(shares[mine & (of_base == base)]), axis=0) for base in bases]))
    return bases, np.concatenate(parts, axis=1)
