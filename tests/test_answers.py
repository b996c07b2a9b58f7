"""Answers before and after a run: the problem on which it gained most, and who is right."""

from __future__ import annotations

import pandas as pd
import pytest

from pmd.evaluators.evaluate import Evaluate, evaluate
from pmd.experiments.answers import most_gained, side_by_side
from pmd.files import ROOT, write_jsonl
from tests.test_loop import PROBLEMS

FINAL = Evaluate(sets=["val"], k=2, temperature=0.7, top_p=0.7, max_tokens=60, seed=0, device="cpu")


def test_the_problem_with_the_largest_rise_is_chosen_although_k_differs(tmp_path):
    file = tmp_path / "test.jsonl"
    write_jsonl(file, PROBLEMS[:3])
    before, after = pd.Series({"correct": [4, 0, 1], "k": 4}), pd.Series({"correct": [2, 1, 2], "k": 2})
    assert most_gained(after, before, file)["id"] == PROBLEMS[2]["id"]  # rises of 0, 1/2 and 3/4


def test_each_policy_answers_at_temperature_1_from_all_tokens_and_right_answers_are_marked(tiny_dir, server):
    problem = {"id": "a", "prompt": "20-4+15=", "ground_truth": "31", "source": "pmd/arithmetic"}
    models = {"trained": ROOT / "bases" / "base-1", "untrained": tiny_dir}
    found = side_by_side(models, problem, 6, FINAL)
    how = FINAL.model_copy(update={"k": 6, "temperature": 1.0, "top_p": 1.0})
    assert list(found) == list(models)
    for name, folder in models.items():
        rows = evaluate(how, folder, {"problem": [problem]})
        assert found[name].str[-1].map({"✓": True, "✗": False}).tolist() == rows.correct.tolist()
        assert found[name].str[:-2].tolist() == rows.response.tolist()
    assert found["trained"].str.endswith("✓").any()


def test_an_error_of_a_worker_reaches_the_caller(tmp_path, server):
    with pytest.raises((ValueError, FileNotFoundError), match="base"):
        side_by_side({"before": tmp_path / "base"}, PROBLEMS[0], 2, FINAL)
