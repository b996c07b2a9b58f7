"""The tables T1 to T4 and T6, each a function from the evidence to a `Table`; T5 is in settings_table.py.

Accuracies are in percent. Intervals are 95 % and count base models (with their seeds) and problems, as effects.py says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pmd.evaluators.intervals import Interval
from pmd.files import read_json
from pmd.methods import METHODS
from pmd.paper.claims import doubt, printed
from pmd.paper.effects import crossed
from pmd.paper.figures import COLLAPSED, cells, regime
from pmd.paper.frames import SETS, Evidence, cell, chosen, final, ordered, scores
from pmd.paper.style import label_of
from pmd.paper.typeset import Table, from_records
from pmd.sampling.accuracy import avg_at_k, pass_at_k


def claims_table(rows: pd.DataFrame) -> Table:
    """T1: the claims and their verdicts; rows: of `claims.table`, or of `claims.beside` with the default's verdicts,
    and perhaps of `claims.with_gpu`."""
    both, gpu = "verdict (default)" in rows, "verdict (GPU)" in rows
    records = []
    for row in rows.to_dict("records"):
        record = {"": row["row"], "verdict" + (" (study)" if both else ""): _verdict(row)}
        if both and row["of_default"]:
            record["verdict (study)"] = "–"
        if both:
            record["verdict (default)"] = _verdict(row, " (default)") + (" – disagrees" if row["disagree"] else "")
        record |= {"claim": row["claim"], "effect": printed(row), "unit": row["unit"], "why": row["reason"]}
        if gpu:
            record |= {"verdict (GPU)": row["verdict (GPU)"], "effect (GPU)": row["effect (GPU)"]}
        records.append(record)
    notes = (
        "pp: percentage points of accuracy. Ratio: seconds of PMD-mean over the other's. K: updates from one batch of "
        "rollouts; the small K is the smallest above 1, the large one the largest. Accuracy: the mean over "
        "sampled answers to problems of the lengths trained on (test) and to longer ones (ood).",
        "The rows and their rule were written down before the runs; docs/experiments.md says what came later, and how "
        "each number is computed. Intervals are 95 %, over base models (whose means contain their seeds) and, in (a) "
        "and (b), problems, by Student's t; T1-details has margins and p-values. Equivalence is tested at 5 % on each "
        "side, which is a 90 % interval, so that a 95 % interval may reach a little beyond the margin; it is not "
        "corrected for the number of rows.",
        "Judged cautiously: with no more degrees of freedom than the base models give, the row has that other verdict "
        "(docs/experiments.md, the last section).",
        *(["GPU: another model and longer responses (presets/gpu.yaml); corrected by itself."] if gpu else []),
    )
    return Table("T1", "The claims, and what this experiment says of them.", from_records(records), notes)


def _verdict(row: dict, whose: str = "") -> str:
    """A verdict of a row of claims as its cell says it; whose: " (default)" for the one that stands beside."""
    weak = doubt(row[f"verdict{whose}"], row[f"cautious{whose}"])
    return row[f"verdict{whose}"] + (f" ({weak})" if weak else "")


def claims_details(rows: pd.DataFrame) -> Table:
    """T1-details: how each verdict of T1 was reached; rows as for `claims_table`."""
    records = [
        {
            "": row["row"],
            "metric": row["metric"],
            "margin": row["margin"],
            "unit": row["unit"],
            "p (Holm)": None if row["only"] == "none" else row["p"],
            "base models": row["bases"],
            "runs": row["runs"],
        }
        for row in rows.to_dict("records")
    ]
    notes = (
        "Margin: the smallest effect that matters. Equivalent: both one-sided tests reject an effect as large as the "
        "margin. p: two-sided, of (e1) that of equivalence or, for an effect beyond the margin, that of being beyond "
        "it; corrected by Holm over all rows with an effect, those of (c) among them whose ratio is not known, so the "
        "interval of a row may exclude 0 and the row be undecided.",
    )
    return Table("T1-details", "How the verdicts of T1 were reached.", from_records(records), notes)


def accuracy(evidence: Evidence, reported: pd.DataFrame) -> Table:
    """T2: every variant at its best rate for each K, on both sets, beside the base models.

    reported: panel, method, step, value (results/reference).
    """
    best, ends = chosen(evidence), final(evidence)
    k = int(ends.k.max())
    records = [{"method": "base models", "K": None, "rate": None} | _measures(evidence.bases, k)]
    picks = best[best.staleness == 0].set_index("variant")
    for name in ordered(picks.index):
        for pick in picks.loc[[name]].sort_values("minibatches").itertuples():
            record = {"method": label_of(name), "K": int(pick.minibatches), "rate": f"{pick.lr:g}"}
            records.append(record | _measures(cell(ends, name, pick.minibatches, pick.lr), k))
    reached = {name: _reported(reported, name) for name in ordered(set(picks.index) & set(METHODS))}
    theirs = ", ".join(f"{label_of(name)} {value:.1f}" for name, value in reached.items() if value is not None)
    notes = (
        f"avg@{k}: the mean accuracy; pass@{min(8, k)}: at least one of {min(8, k)} is right (unbiased); maj@{k}: the "
        "most frequent answer is right. K: updates from one batch of rollouts, 1 is on-policy. Rate: the learning rate "
        "that is best on validation problems. Base models: those that the runs began from.",
        f"The paper's runs of Qwen3-30B-A3B end at an avg@32 on AIME of {theirs}, read off the reference code's figure:"
        " other models, other problems and another K, so that orders compare and values do not.",
    )
    return Table("T2", "Accuracy at each method's best learning rate.", from_records(records), notes)


def _measures(rows: pd.DataFrame, k: int) -> dict[str, Interval]:
    """avg@k, pass@8 and maj@k of each set, in percent, with intervals over base models and problems."""
    few, found = min(8, k), {}
    for name in SETS:
        part = rows[rows["set"] == name]
        metrics = {
            f"avg@{k}": lambda row: avg_at_k(row.correct, row.k),
            f"pass@{few}": lambda row: pass_at_k(np.asarray(row.correct, dtype=int), row.k, few),
            f"maj@{k}": lambda row: np.asarray(row.majority, dtype=float),
        }
        for metric, score in metrics.items():
            by_base = [
                np.mean([score(row) for row in part[part.base == base].itertuples()], axis=0)
                for base in sorted(set(part.base))
            ]
            effect = crossed(100 * np.stack(by_base))
            low, high = np.clip(effect.interval()[1:], 0, 100)
            found[f"{metric}, {name}"] = Interval(effect.estimate, float(low), float(high))
    return found


def _reported(reported: pd.DataFrame, method: str) -> float | None:
    mine = reported[(reported.method.str.lower() == method) & (reported.panel == "avg@32")].sort_values("step")
    return 100 * float(mine.value.iloc[-1]) if len(mine) else None


def stability(evidence: Evidence) -> Table:
    """T3: each variant over the grid of rates, for each K: mean, best and worst cell, collapsed cells and runs."""
    table, ends, records = cells(evidence), final(evidence), []
    for name in ordered(table.variant):
        for (k, late), rows in table[table.variant == name].groupby(["minibatches", "staleness"]):
            record = {"method": label_of(name), "K": regime(k, late).removeprefix("K = "), "rates": len(rows)}
            record |= {
                "mean": _over_rates(cell(ends, name, k, staleness=late)),
                "best": 100 * float(rows.accuracy.max()),
            }
            record |= {
                "worst": 100 * float(rows.accuracy.min()),
                "collapsed": f"{int(rows.collapsed.sum())} of {len(rows)}",
                "runs collapsed": f"{int(rows.fallen.sum())} of {int(rows.runs.sum())}",
            }
            records.append(record)
    notes = (
        f"Final accuracy on test and ood, in percent, mean over runs; base models: {100 * table.base.mean():.1f}. "
        "Mean: over the rates, with its interval over base models and problems where all of them have every rate. "
        f"Collapsed: the mean of a cell, or a single run, ends below {COLLAPSED:g} of its base models' accuracy. Rows "
        "(b) of T1 compare the means.",
    )
    return Table("T3", "Stability over learning rates and K.", from_records(records), notes)


def _over_rates(rows: pd.DataFrame) -> Interval:
    """The mean accuracy over the learning rates in percent, each rate counted the same."""
    found = [scores(part) for _, part in rows.groupby("lr")]
    if any(bases != found[0][0] for bases, _ in found):
        return Interval(100 * float(np.mean([matrix.mean() for _, matrix in found])), np.nan, np.nan)
    return crossed(100 * np.mean([matrix for _, matrix in found], axis=0)).interval()


def theory(statements: pd.DataFrame) -> Table:
    """T4: claim (f), the exact statements; statements: results/<preset>/theory/theory_claims.csv."""
    missing = {"statement", "source", "proved_by", "residual", "tolerance"} - set(statements.columns)
    if missing:
        raise ValueError(f"theory_claims.csv: has no column {', '.join(sorted(missing))}")
    records = [
        {
            "statement": row.statement,
            "source": row.source,
            "checked by": row.proved_by.split("::")[-1],
            "residual": f"{row.residual:.1e}",
            "tolerance": f"{row.tolerance:g}",
            "verdict": "holds" if row.residual <= row.tolerance else "fails",
        }
        for row in statements.itertuples()
    ]
    return Table("T4", "(f) The theory: exact statements, checked numerically.", from_records(records))


def stages(directory: Path) -> pd.DataFrame:
    """runs/<preset>/stages: stage, seconds, peak_memory_mb and machine; empty if there is none."""
    keys = ["stage", "seconds", "peak_memory_mb", "machine"]
    records = [read_json(path) for path in sorted((directory / "stages").rglob("*.json"))]
    return pd.DataFrame([{key: record[key] for key in keys} for record in records], columns=keys)


def compute(rows: pd.DataFrame) -> Table:
    """T6: seconds and peak memory a stage, and the machine; rows: of `stages`."""
    records = [
        {
            "stage": row.stage,
            "seconds": float(row.seconds),
            "peak memory [MB]": float(row.peak_memory_mb),
            "machine": ", ".join(f"{key} {value}" for key, value in row.machine.items()),
        }
        for row in rows.itertuples()
    ]
    if records:
        total = {"stage": "total", "seconds": float(rows.seconds.sum())}
        records.append(total | {"peak memory [MB]": float(rows.peak_memory_mb.max())})
    columns = ["stage", "seconds", "peak memory [MB]", "machine"]
    return Table("T6", "Compute: seconds and peak memory of every stage.", from_records(records, columns))
