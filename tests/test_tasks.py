"""The embedded problem sets: right, disjoint, deterministic, pinned; and the reader's complaints."""

from __future__ import annotations

import json
import random

import pytest
from ruamel.yaml import YAML

from pmd import tasks
from pmd.files import ROOT, write_jsonl


@pytest.fixture(scope="module")
def splits():
    return tasks.splits()


def totals(prompt: str) -> list[int]:
    """Running totals of an expression, by a parser that shares nothing with the generator."""
    tokens = prompt.rstrip("=").replace("+", " +").replace("-", " -").split()
    out = []
    for token in tokens:
        out.append(int(token) + (out[-1] if out else 0))
    return out


def test_every_answer_is_right_and_every_total_in_range(splits):
    for rows in splits.values():
        for row in rows:
            running = totals(row["prompt"])
            assert str(running[-1]) == row["ground_truth"]
            assert min(running) >= 0
            assert max(running) <= 99
            assert len(running) == row["difficulty"]


def test_no_prompt_occurs_twice_in_or_across_splits(splits):
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    ids = [row["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_longer_problems_are_in_the_ood_split_alone(splits):
    for split, rows in splits.items():
        assert {row["difficulty"] for row in rows} == set(tasks.SPLITS[split])
        assert all(row["difficulty"] > 5 for row in rows) == (split == "ood")
        assert set(rows[0]) - {"response"} == set(tasks.COLUMNS)


def test_traces_rewrite_what_remains_and_are_often_wrong(splits):
    """Without faults the last line would be the answer; about half are, and each fault's rate is as stated."""
    right = sum(row["response"].rpartition("=")[2] == row["ground_truth"] for row in splits["sft"])
    assert 0.40 < right / len(splits["sft"]) < 0.50
    first_carry = [r for r in splits["sft"] if r["difficulty"] == 2 and totals(r["prompt"])[1] != dropped(r["prompt"])]
    lost = sum(int(r["response"]) == dropped(r["prompt"]) for r in first_carry) / len(first_carry)
    assert lost == pytest.approx(tasks.FAULTS["carry"], abs=0.03)


def dropped(prompt: str) -> int:
    """The two-term result without carry or borrow, by string columns."""
    sign = "+" if "+" in prompt else "-"
    a, b = (x.zfill(2) for x in prompt.rstrip("=").split(sign))
    columns = [(int(x) + int(y) if sign == "+" else int(x) - int(y)) % 10 for x, y in zip(a, b, strict=True)]
    return int("".join(map(str, columns)))


def test_a_trace_without_faults_is_the_worked_answer(monkeypatch):
    monkeypatch.setattr(tasks, "FAULTS", dict.fromkeys(tasks.FAULTS, 0.0))
    assert tasks.trace(random.Random(0), 47, [("+", 38), ("-", 13)]) == "85-13=72"
    assert tasks.trace(random.Random(0), 5, [("+", 6)]) == "11"


def test_the_generator_writes_what_data_dvc_pins(tmp_path):
    assert tasks.generate(tmp_path / "a") == tasks.pinned_hash()


def test_a_changed_generator_is_noticed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(tasks.FAULTS, "slip", 0.06)
    with pytest.raises(SystemExit, match=r"data\.dvc pins"):
        tasks.main(["generate", str(tmp_path / "a")])


def test_pinning_writes_what_is_read_back(tmp_path):
    tasks.pin("abc.dir", tmp_path / "data.dvc")
    assert tasks.pinned_hash(tmp_path / "data.dvc") == "abc.dir"
    (tmp_path / "data.dvc").write_text("outs: []\n")
    with pytest.raises(ValueError, match="pins no hash"):
        tasks.pinned_hash(tmp_path / "data.dvc")


def test_data_dvc_pins_its_source_and_its_copy_alike():
    entry = YAML(typ="safe").load((ROOT / "data.dvc").read_text())
    assert entry["deps"][0]["md5"] == entry["outs"][0]["md5"] == tasks.pinned_hash()
    assert "frozen" not in entry  # else `dvc repro` would not materialise data/ on a fresh clone


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
        tasks.read_problems(tmp_path / "set.jsonl")


def test_a_repeated_id_is_refused(tmp_path):
    row = {"id": "x", "prompt": "1+1=", "ground_truth": "2"}
    write_jsonl(tmp_path / "set.jsonl", [row, row])
    with pytest.raises(ValueError, match=r":2: id 'x' occurs twice"):
        tasks.read_problems(tmp_path / "set.jsonl")


def test_a_foreign_set_with_two_columns_is_completed(tmp_path):
    (tmp_path / "mine.jsonl").write_text(json.dumps({"prompt": "1+1=", "ground_truth": "2"}) + "\n")
    [row] = tasks.read_problems(tmp_path / "mine.jsonl")
    filled = {"id": "mine-0", "source": "mine", "split": "mine", "difficulty": None, "rule": "exact"}
    assert row == filled | {"prompt": "1+1=", "ground_truth": "2"}


def test_a_missing_set_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        tasks.read_problems(tmp_path / "none.jsonl")
