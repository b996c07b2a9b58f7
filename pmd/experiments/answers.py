"""What a run changed in the policy's own words: answers to one problem before and after."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pmd.evaluators.evaluate import Evaluate, evaluate
from pmd.problems.reader import read_problems
from pmd.processes import processes, workers
from pmd.sampling.accuracy import avg_at_k


def most_gained(after: pd.Series, before: pd.Series, file: Path) -> dict:
    """The problem of a set on which accuracy rose most, the first of several.

    after, before: the rows of evals and bases (pmd/experiments/evidence.py) of one set, whose problems stand in `file`.
    """
    rise = avg_at_k(after.correct, after.k) - avg_at_k(before.correct, before.k)
    return read_problems(file)[int(rise.argmax())]


def side_by_side(models: dict[str, Path], problem: dict, k: int, final: Evaluate) -> pd.DataFrame:
    """k answers to one problem by the policy in each model folder, a column each, marked ✓ or ✗.

    They are sampled as `final` says, but from all tokens and at temperature 1: the policy as it is. Each policy is
    loaded in a worker process, so that the caller needs no torch.
    """
    how = final.model_copy(update={"k": k, "temperature": 1.0, "top_p": 1.0})
    with processes(min(len(models), workers(1, how.device)), how.device) as pool:
        futures = {name: pool.submit(evaluate, how, folder, {"problem": [problem]}) for name, folder in models.items()}
        rows = {name: future.result() for name, future in futures.items()}
    return pd.DataFrame({name: [_marked(row) for row in part.itertuples()] for name, part in rows.items()})


def _marked(row) -> str:
    return f"{row.response} {'✓' if row.correct else '✗'}"
