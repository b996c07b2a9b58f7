"""The reader of problem sets completes what it may and refuses everything else by file, line and column."""

from __future__ import annotations

import json

import pytest

from pmd.files import write_jsonl
from pmd.problems.reader import read_problems, require_problems


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "empty"),
        ('{"prompt": "1+1="}\n', r":1: column 'ground_truth' must be a non-empty string or a list of them, got None"),
        ('{"prompt": "1+1=", "ground_truth": []}\n', r":1: column 'ground_truth' .* got \[\]"),
        ('{"prompt": "1+1=", "ground_truth": ["2", 2]}\n', r":1: column 'ground_truth' .* got \['2', 2\]"),
        ('{"prompt": ["1+1="], "ground_truth": "2"}\n', r":1: column 'prompt' must be a non-empty string, got"),
        ('{"prompt": "", "ground_truth": "2"}\n', r":1: column 'prompt'"),
        ('{"prompt": "1+1=", "ground_truth": 2}\n', r":1: column 'ground_truth' .* got 2"),
        ('{"prompt": "1+1=", "ground_truth": "2"}\nnonsense\n', r":2: not valid JSON"),
        ("[1, 2]\n", r":1: expected a JSON object, got list"),
        (
            '{"prompt": "1+1=", "ground_truth": "2", "id": [1]}\n',
            r":1: column 'id' must be a string or a number, got \[1\]",
        ),
        ('{"prompt": "1+1=", "ground_truth": "2", "rule": ["math"]}\n', r":1: column 'rule' must be one of exact"),
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


def test_a_list_of_golds_is_kept_and_a_list_of_one_is_that_gold(tmp_path):
    write_jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": "p", "ground_truth": ["2"]}, {"prompt": "q", "ground_truth": ["2", "3"]}],
    )
    assert [row["ground_truth"] for row in read_problems(tmp_path / "a.jsonl")] == ["2", ["2", "3"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_other_encodings_and_blank_lines_are_read(tmp_path, encoding):
    row = json.dumps({"prompt": "é?", "ground_truth": "2"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(f"{row}\r\n\r\n \n{row}\n\n".encode(encoding))
    assert [row["prompt"] for row in read_problems(tmp_path / "a.jsonl")] == ["é?", "é?"]
    (tmp_path / "a.jsonl").write_bytes(f"{row}\n\n{{\n".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.jsonl:3: not valid JSON"):
        read_problems(tmp_path / "a.jsonl")


GOOD = {"id": "a", "prompt": "1+1=", "ground_truth": "2"}


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ("data/rl.jsonl", r"^mine: got 'data/rl\.jsonl', must be a list of problems, such as read_problems"),
        ([GOOD, "1+1="], r"^mine\[1\]: got '1\+1=', must be a mapping with id, prompt and ground_truth$"),
        ([{"prompt": "1+1=", "ground_truth": "2"}], r"^mine\[0\]\.id: got None, must be a string or a number$"),
        (
            [GOOD | {"ground_truth": 2}],
            r"^mine\[0\]\.ground_truth: got 2, must be a non-empty string or a list of them$",
        ),
        ([GOOD | {"prompt": None}], r"^mine\[0\]\.prompt: got None, must be a non-empty string$"),
        ([GOOD | {"rule": "sympy"}], r"^mine\[0\]\.rule: got 'sympy', must be one of exact, dapo, math$"),
        ([GOOD, GOOD | {"ground_truth": "3"}], r"^mine\[1\]\.id: got 'a', must be its own, but mine\[0\] has it too$"),
    ],
)
def test_problems_made_in_python_are_checked_as_those_of_a_file_are(problems, message):
    with pytest.raises(ValueError, match=message):
        require_problems("mine", problems)


def test_a_problem_may_stand_there_twice_and_a_reward_of_ones_own_needs_no_ground_truth():
    require_problems("mine", [GOOD, {"id": 7, "prompt": "1+1=", "ground_truth": ["2", "two"]}, GOOD])
    require_problems("mine", [{"id": "a", "prompt": "Write a poem."}], judged=False)
    with pytest.raises(ValueError, match=r"^mine\[0\]\.ground_truth: got None"):
        require_problems("mine", [{"id": "a", "prompt": "Write a poem."}])
