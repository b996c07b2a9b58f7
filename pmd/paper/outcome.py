"""What a run says at its end: its verdicts beside the committed ones, and the numbers by which runs are compared."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

from pmd.files import ROOT
from pmd.paper.claims import CONTRADICTED, SUPPORTED, UNDECIDED
from pmd.paper.frames import SETS, Evidence, cell, chosen, final, scores
from pmd.paper.verdicts import parse, read


def known_verdicts(table: Path, root: Path = ROOT) -> tuple[str, dict[str, str]]:
    """("committed", {row: verdict}) of a preset's T1.csv in HEAD; ("before", ...) of the file where git has none.

    Only the verdicts of the preset's own runs count, not those of the study beside them. {} if there is no such file.
    """
    try:
        command = ["git", "show", f"HEAD:./{table.relative_to(root).as_posix()}"]
        shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
        return "committed", parse(shown, table.name)
    except (OSError, subprocess.CalledProcessError):  # no git, no commit, or the file is in none
        return "before", read(table) if table.exists() else {}


def beside(verdicts: pd.DataFrame, when: str, known: dict[str, str]) -> str:
    """The verdicts beside the known ones, a line a row, and a line that names the differences.

    verdicts: columns row and verdict. when, known: of `known_verdicts`.
    """
    lines = [f"{'':4}{'verdict':30}{when if known else ''}".rstrip()]
    differ = []
    for row, verdict in zip(verdicts["row"], verdicts["verdict"], strict=True):
        old = known.get(row, "–" if known else "")
        differs = bool(known) and old != verdict
        differ += [row] if differs else []
        lines.append(f"{row:4}{verdict:30}{old}{'   differs' if differs else ''}".rstrip())
    if not known:
        return "\n".join([*lines, "there are no verdicts to compare these with"])
    same = f"{len(verdicts) - len(differ)} of {len(verdicts)} verdicts are the same as {when}"
    return "\n".join([*lines, f"{same}; {', '.join(differ)}: other ones" if differ else same])


def metrics(evidence: Evidence, verdicts: pd.DataFrame) -> dict[str, float | int | None]:
    """The numbers of metrics.json, by which `dvc exp show` and `dvc metrics diff` compare runs.

    base, and each method without settings of its own: final accuracy on test and ood [%], at the rate that is best on
    val and the smallest K above 1. law: row e1's effect, finite: d1's [pp]. Then how many rows have which verdict.
    """
    rows, best = final(evidence), chosen(evidence)
    best = best[(best.staleness == 0) & ~best.variant.str.contains(" ")]
    fresh = best[best.minibatches > 1] if (best.minibatches > 1).any() else best
    found: dict[str, float | int | None] = {"base": _percent(evidence.bases[evidence.bases["set"].isin(SETS)])}
    for pick in fresh[fresh.minibatches == fresh.minibatches.min()].itertuples():
        found[pick.variant] = _percent(cell(rows, pick.variant, pick.minibatches, pick.lr))
    effects = dict(zip(verdicts["row"], verdicts["effect"], strict=True))
    for name, row in (("law", "e1"), ("finite", "d1")):
        found[name] = round(effects[row].estimate, 3) if effects.get(row) else None
    return found | {word: int((verdicts["verdict"] == word).sum()) for word in (SUPPORTED, CONTRADICTED, UNDECIDED)}


def _percent(rows: pd.DataFrame) -> float:
    return round(100 * float(np.mean(scores(rows)[1])), 2)
