"""`pmd study check`: the same bits on the same processor, else within the cell's spread."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pmd.experiments import check as module
from pmd.experiments.check import check, compared

CELL = {"variant": "rloo", "minibatches": 8, "staleness": 0, "lr": 1e-4, "cpu": "A"}
RUNS = pd.DataFrame([CELL | {"run": f"r{i}"} for i in range(4)] + [CELL | {"run": "other", "lr": 1e-3}]).set_index(
    "run"
)
RIGHT = {"r0": 5, "r1": 6, "r2": 5, "r3": 6, "other": 0}
ENDS = pd.DataFrame(
    {"run": run, "set": name, "k": 10, "final": True, "correct": np.full(20, right, dtype=np.uint8)}
    for run, right in RIGHT.items()
    for name in ("test", "ood")
)


def again(right):
    return {name: np.full(20, right) for name in ("test", "ood")}


def test_the_same_answers_are_the_same_on_any_processor():
    assert compared("r0", RUNS, ENDS, again(5), "B") == "r0: the same answers on all 40 problems"


def test_other_answers_on_the_same_processor_are_an_error():
    with pytest.raises(ValueError, match="r0: other answers on the same processor, A"):
        compared("r0", RUNS, ENDS, again(6), "A")


def test_on_another_processor_the_cell_decides_and_other_cells_do_not_count():
    """0.5, 0.6, 0.5, 0.6: mean 0.55, s = 0.0577, so one more run is within 0.55 ± 3.18 × 0.0577 × √(1 + 1/4)."""
    said = compared("r0", RUNS, ENDS, again(6), "B")
    assert said == "r0: 60.0 % on B, 50.0 % before on A; within the cell's 55.0 ± 20.5 %"
    with pytest.raises(ValueError, match=r"80\.0 % on B.*outside the cell's 55\.0 ± 20\.5 %"):
        compared("r0", RUNS, ENDS, again(8), "B")


def test_a_cell_of_one_run_has_no_interval():
    with pytest.raises(ValueError, match="other: other answers on B, and the cell has no other run to compare with"):
        compared("other", RUNS, ENDS, again(1), "B")


def test_a_run_that_is_not_in_the_study_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_one", lambda *_: pytest.fail("work began"))
    with pytest.raises(ValueError, match=r"runs\.parquet: missing; `pmd experiment study` makes it"):
        check("r0", root=tmp_path)
    folder = tmp_path / "results" / "study" / "evidence"
    folder.mkdir(parents=True)
    RUNS.reset_index().to_parquet(folder / "runs.parquet")
    with pytest.raises(ValueError, match=r"run: got 'othr', must be one of the 5 in .*; did you mean other\?"):
        check("othr", root=tmp_path)
