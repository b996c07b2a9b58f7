"""The reader of problem sets completes what it may and refuses everything else by file, line and column."""

from __future__ import annotations

import json

import pytest

from pmd.files import write_jsonl
from pmd.problems.reader import read_problems


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "empty"),
        ('{"prompt": "1+1="}\n', r":1: column 'ground_truth' must be a non-empty string, got None"),
        ('{"prompt": "", "ground_truth": "2"}\n', r":1: column 'prompt'"),
        ('{"prompt": "1+1=", "ground_truth": 2}\n', r":1: column 'ground_truth' .* got 2"),
        ('{"prompt": "1+1=", "ground_truth": "2"}\nnonsense\n', r":2: not valid JSON"),
        ("[1, 2]\n", r":1: expected a JSON object, got list"),
    ],
)
def test_a_bad_problem_set_is_refused_by_line(tmp_path, lines, message):
    (tmp_path / "set.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        read_problems(tmp_path / "set.jsonl")


def test_a_repeated_id_is_refused(tmp_path):
    row = {"id": "x", "prompt": "1+1=", "ground_truth": "2"}
    write_jsonl(tmp_path / "set.jsonl", [row, row])
    with pytest.raises(ValueError, match=r":2: id 'x' occurs twice"):
        read_problems(tmp_path / "set.jsonl")


def test_a_foreign_set_with_two_columns_is_completed(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "1+1=", "ground_truth": "2"}) + "\n")
    [row] = read_problems(tmp_path / "mine.jsonl")
    filled = {"id": "mine-0", "source": "mine", "split": "mine", "difficulty": None, "rule": "exact"}
    assert row == filled | {"prompt": "1+1=", "ground_truth": "2"}


def test_a_missing_set_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        read_problems(tmp_path / "none.jsonl")


def test_a_row_names_its_rule_or_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"prompt": "1+1=", "ground_truth": "2"}])
    assert read_problems(path)[0]["rule"] == "exact"
    write_jsonl(path, [{"prompt": "1+1=", "ground_truth": "2", "rule": "sympy"}])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: column 'rule' must be one of exact, dapo, math, got 'sympy'"):
        read_problems(path)
