"""The embedded problem sets are right, disjoint, deterministic and pinned."""

from __future__ import annotations

import random
import re

import pytest
from ruamel.yaml import YAML

from pmd.__main__ import main
from pmd.files import ROOT
from pmd.params import read_entry
from pmd.problems import arithmetic
from pmd.problems.reader import read_problems


@pytest.fixture(scope="module")
def splits():
    return arithmetic.splits()


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


def test_longer_problems_than_in_reinforcement_learning_are_in_the_ood_split_alone(splits):
    for split, rows in splits.items():
        assert {row["difficulty"] for row in rows} == set(arithmetic.merged(arithmetic.BLOCKS)[split])
        assert set(rows[0]) - {"response"} == {"id", "prompt", "ground_truth", "source", "split", "difficulty"}
    assert max(row["difficulty"] for row in splits["rl"]) < min(row["difficulty"] for row in splits["ood"])


def test_traces_rewrite_what_remains_and_are_often_wrong(splits):
    """Without faults the last line would be the answer; about half are, and each fault's rate is as stated."""
    right = sum(row["response"].rpartition("=")[2] == row["ground_truth"] for row in splits["sft"])
    assert 0.40 < right / len(splits["sft"]) < 0.50
    first_carry = [r for r in splits["sft"] if r["difficulty"] == 2 and totals(r["prompt"])[1] != dropped(r["prompt"])]
    lost = sum(int(r["response"]) == dropped(r["prompt"]) for r in first_carry) / len(first_carry)
    assert lost == pytest.approx(arithmetic.FAULTS["carry"], abs=0.03)


def dropped(prompt: str) -> int:
    """The two-term result without carry or borrow, by string columns."""
    sign = "+" if "+" in prompt else "-"
    a, b = (x.zfill(2) for x in prompt.rstrip("=").split(sign))
    columns = [(int(x) + int(y) if sign == "+" else int(x) - int(y)) % 10 for x, y in zip(a, b, strict=True)]
    return int("".join(map(str, columns)))


def test_a_trace_without_faults_is_the_worked_answer(monkeypatch):
    monkeypatch.setattr(arithmetic, "FAULTS", dict.fromkeys(arithmetic.FAULTS, 0.0))
    assert arithmetic.trace(random.Random(0), 47, [("+", 38), ("-", 13)]) == "85-13=72"
    assert arithmetic.trace(random.Random(0), 5, [("+", 6)]) == "11"


def test_the_generator_writes_what_data_dvc_pins(tmp_path):
    assert arithmetic.generate(tmp_path / "a") == arithmetic.pinned_hash()


def test_a_changed_generator_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(arithmetic.FAULTS, "slip", 0.06)
    with pytest.raises(ValueError, match=r"data\.dvc pins"):
        arithmetic.generate_pinned(tmp_path / "a")


def test_the_data_card_names_no_file_that_may_move():
    """data.dvc pins the card too: a path in it would make every move a new version of the data."""
    assert not re.search(r"pmd[./]\w+[./]|python -m|\.py\b", arithmetic.card())


def test_pinning_writes_what_is_read_back(tmp_path):
    arithmetic.pin("abc.dir", tmp_path / "data.dvc")
    assert arithmetic.pinned_hash(tmp_path / "data.dvc") == "abc.dir"
    (tmp_path / "data.dvc").write_text("outs: []\n")
    with pytest.raises(ValueError, match="pins no hash"):
        arithmetic.pinned_hash(tmp_path / "data.dvc")


def test_data_dvc_pins_its_source_and_its_copy_alike():
    entry = YAML(typ="safe").load((ROOT / "data.dvc").read_text())
    assert entry["deps"][0]["md5"] == entry["outs"][0]["md5"] == arithmetic.pinned_hash()
    assert "frozen" not in entry  # else `dvc repro` would not materialise data/ on a fresh clone


# --- harder versions -----------------------------------------------------------------------------------------------

HARD = {"seed": 0, "digits": 3, "terms": [2, 3, 4], "ood": [5, 6], "val": 10, "test": 9, "rl": 30, "sft": 3000}


@pytest.fixture(scope="module")
def harder():
    spec = read_entry(arithmetic.Task, "tasks", {"hard": HARD}, "hard")
    return arithmetic.splits(spec.seed, list(spec.quota.items()), spec.digits)


def test_a_harder_version_is_right_in_range_and_disjoint(harder):
    assert {split: len(rows) for split, rows in harder.items()} == {
        "val": 10,
        "test": 9,
        "ood": 9,
        "rl": 30,
        "sft": 3000,
    }
    rows = [row for split in harder.values() for row in split]
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        running = totals(row["prompt"])
        assert str(running[-1]) == row["ground_truth"]
        assert 0 <= min(running) <= max(running) <= 999
        assert row["difficulty"] == len(running)
        assert row["difficulty"] in ((5, 6) if row["split"] == "ood" else (2, 3, 4))
    assert max(max(totals(row["prompt"])) for row in rows) > 900


def test_a_harder_versions_faults_drop_every_carry(harder):
    """Half of the steps that carry anywhere lose all carries; what no carry touches is as it should be."""
    assert arithmetic.drop_carry(587, "+", 256, 3) == 733
    assert arithmetic.drop_carry(500, "-", 1, 3) == 509
    assert arithmetic.drop_carry(87, "+", 56) == 33
    two = [row for row in harder["sft"] if row["difficulty"] == 2 and "+" in row["prompt"]]
    wrong = [row for row in two if row["response"] != row["ground_truth"]]

    def columns(prompt):
        a, b = (x.zfill(3) for x in prompt.rstrip("=").split("+"))
        return int("".join(str((int(x) + int(y)) % 10) for x, y in zip(a, b, strict=True)))

    carried = [row for row in two if str(columns(row["prompt"])) != row["ground_truth"]]
    lost = [row for row in carried if int(row["response"]) == columns(row["prompt"])]
    assert len(lost) / len(carried) == pytest.approx(arithmetic.FAULTS["carry"], abs=0.05)
    assert len(wrong) < len(two)


def test_equal_shares():
    assert arithmetic.share(10, [2, 3, 4]) == {2: 3, 3: 3, 4: 4}
    assert sum(arithmetic.share(16_000, [2, 3, 4, 5]).values()) == 16_000


def test_a_harder_version_is_written_with_its_card(tmp_path, monkeypatch):
    monkeypatch.setattr(arithmetic.params, "load", lambda: {"tasks": {"hard": HARD | {"sft": 30}}})
    arithmetic.generate_harder("hard", tmp_path / "a")
    main(["problems", "harder", "hard", str(tmp_path / "b")])
    assert arithmetic.directory_hash(tmp_path / "a") == arithmetic.directory_hash(tmp_path / "b")
    files = [tmp_path / "a" / f"{split}.jsonl" for split in arithmetic.merged(arithmetic.BLOCKS)]
    assert [len(read_problems(file)) for file in files] == [10, 9, 9, 30, 30]
    card = (tmp_path / "a" / "README.md").read_text()
    assert "harder hard" in card
    assert "0..999" in card
    assert "data.dvc" not in card
    with pytest.raises(SystemExit, match=r"tasks: got 'easy', must be one of its entries: hard"):
        main(["problems", "harder", "easy", str(tmp_path / "c")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digits": 1}, r"tasks\.hard\.digits: got 1, must be in 2\.\.9"),
        ({"terms": [1, 2]}, r"tasks\.hard\.terms: got \[1, 2\], must be a list of different integers"),
        ({"terms": []}, r"tasks\.hard\.terms"),
        ({"ood": [4, 5]}, r"tasks\.hard\.ood: got \[4, 5\], must be other numbers of terms"),
        ({"val": 2}, r"tasks\.hard\.val: got 2, must be at least 3"),
        ({"sft": 2_000_000}, r"tasks\.hard\.sft: .*of 1,001,000 problems of 2 terms it takes 666,6\d\d"),
        ({"size": 1}, r"tasks\.hard\.size: got 1, must be left out"),
    ],
)
def test_a_bad_harder_version_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        read_entry(arithmetic.Task, "tasks", {"hard": HARD | changes}, "hard")
