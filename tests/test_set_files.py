"""Problem sets as people have them: files and folders, golds in lists and solutions, chats, instructions."""

from __future__ import annotations

import csv
import gzip
import io
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from pmd.files import write_jsonl
from pmd.foreign_sets.cleaning import Counts, load
from pmd.foreign_sets.files import read_path
from pmd.foreign_sets.formats import problem_set
from pmd.foreign_sets.suggestion import suggestion
from pmd.problems.prompts import asked_rule, render
from pmd.problems.reader import read_problems

ROWS = [{"problem": "Is é 1?", "answer": "007"}, {"problem": 'say "a, b"\nhere', "answer": "x^2"}]
GOLDS = ["7", "x^2"]


def taken(path, **entry) -> tuple[list[dict], Counts]:
    return load(problem_set("mine", {"path": str(path), "format": "math500"} | entry))


def as_lines(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_table(rows, comma=",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=comma)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


FILES = {
    "a.jsonl": as_lines(ROWS),
    "a.ndjson": as_lines(ROWS).replace("\n", "\r\n\r\n"),
    "a.json": json.dumps(ROWS),
    "nested.json": json.dumps({"version": 1, "data": ROWS}),
    "lines.json": as_lines(ROWS),
    "a.csv": as_table(ROWS),
    "semicolons.csv": as_table(ROWS, ";").replace(", ", ""),
    "a.tsv": as_table(ROWS, "\t"),
    "tabs.csv": as_table(ROWS, "\t"),  # what Excel calls Unicode text
    "bars.CSV": "\n\n" + as_table(ROWS, "|"),
    "ids.json": json.dumps({"1": ROWS[0], "2": ROWS[1]}),
    "columns.json": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    "pandas.json": json.dumps({key: {"0": ROWS[0][key], "1": ROWS[1][key]} for key in ROWS[0]}),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_text_files_packed_and_in_every_encoding(tmp_path, name, packed, encoding):
    data = FILES[name].encode(encoding)
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    rows, counts = taken(path, template="plain")
    assert [row["ground_truth"] for row in rows] == GOLDS
    assert [row["prompt"].replace(", ", "") for row in rows] == ["Is é 1?", 'say "ab"\nhere']
    assert counts.kept == counts.rows == 2


def test_a_folder_of_files_named_by_their_splits(tmp_path):
    (tmp_path / "data").mkdir()
    for name, row in (("train-00000-of-00001", ROWS[0]), ("test-00000-of-00001", ROWS[1])):
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "data" / f"{name}.parquet")
    assert [row["ground_truth"] for row in taken(tmp_path, split="test")[0]] == ["x^2"]
    with pytest.raises(ValueError, match=r"or the split by which files are called$"):
        taken(tmp_path)


def test_a_pointer_of_git_lfs_is_told_from_the_file(tmp_path):
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 5\n")
    with pytest.raises(
        ValueError, match=r"a\.parquet: is a Git LFS pointer and not the file itself; fetch it with git lfs"
    ):
        taken(tmp_path / "a.parquet")


def test_a_verl_file_that_went_through_a_table_of_text(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    row = {"prompt": json.dumps(chat), "reward_model": json.dumps({"ground_truth": "2"}), "extra_info": {"index": 3.0}}
    printed = row | {"prompt": str(chat).replace("1+1", "2+2"), "extra_info": {"index": float("nan")}}
    (tmp_path / "a.jsonl").write_text(as_lines([row, printed]))
    rows, counts = taken(tmp_path / "a.jsonl", format="verl", template="plain")
    assert [(row["id"], row["prompt"]) for row in rows] == [("3", "Be brief.\n\n1+1?"), ("mine-1", "Be brief.\n\n2+2?")]
    assert (counts.system, [row["ground_truth"] for row in rows]) == (2, ["2", "2"])


def test_tables_and_what_save_to_disk_wrote(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "pieces").mkdir()
    for i in range(2):
        parquet.write_table(table.slice(i, 1), tmp_path / "pieces" / f"train-0000{i}-of-00002.parquet")
    saved = datasets.Dataset.from_list(ROWS[::-1]).select([1, 0])
    saved.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "dict"))
    for path in ("a.arrow", "pieces", "saved", "dict/train"):
        assert [row["ground_truth"] for row in taken(tmp_path / path)[0]] == GOLDS, path
    assert taken(tmp_path / "dict", split="test")[1].kept == 2
    with pytest.raises(ValueError, match=r"dict: holds the sets test, train; state one of them, path: .*dict/test$"):
        taken(tmp_path / "dict")


def test_a_folder_of_one_json_a_problem(tmp_path):
    """MATH, whose gold is in the box of the solution."""
    for i in (10, 2):
        for split in ("train", "test"):
            file = tmp_path / "MATH" / split / "algebra" / f"{i}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            solution = rf"As $\boxed{{0}}$ fails, it is $\boxed{{\frac{{{i}}}{{3}}}}$."
            file.write_text(json.dumps({"problem": f"{split} {i}?", "level": "Level 5", "solution": solution}))
    rows, counts = taken(tmp_path / "MATH", format="math", split="test")
    assert [row["ground_truth"] for row in rows] == [r"\frac{2}{3}", r"\frac{10}{3}"]  # 2.json before 10.json
    assert (rows[0]["difficulty"], rows[0]["rule"], rows[0]["id"]) == ("Level 5", "math", "mine-0")
    assert counts.worked == 2
    assert rows == [row | {"split": "test"} for row in taken(tmp_path / "MATH" / "test", format="math")[0]]
    with pytest.raises(ValueError, match=r"MATH: holds the sets test, train; state one of them, path: .*MATH/test"):
        taken(tmp_path / "MATH", format="math")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": "x"}, r"holds no problems; path must be a folder or a file"),
        ({"a.jsonl": "", "b.jsonl": ""}, r"holds a\.jsonl, b\.jsonl; state one of them, such as path: folder/a\.jsonl"),
        ({"1.json": "{}", "2.json": "[]"}, r"2\.json: expected one problem, got list; state the file itself as path"),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path, files, message):
    (tmp_path / "folder").mkdir()
    for name, text in files.items():
        (tmp_path / "folder" / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        list(read_path(tmp_path / "folder", "folder", "x"))
    assert "\n" not in str(error.value)


TORN = gzip.compress(b"problem,answer\n" * 99, mtime=0)[:-9]
"""Without the time of day, which would be another one in every process that runs tests."""


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.gz", b"\x1f\x8bnonsense", r"a\.jsonl\.gz: not readable \(.*\); fetch it anew"),
        ("a.csv.gz", TORN, r"a\.csv\.gz: not readable \(.*\); fetch it anew"),
        (
            "a.csv",
            b"problem,answer\nx,1\ny,2,3\n",
            r"a\.csv: row 2: has more values than there are columns \(problem, ",
        ),
        ("a.csv", b"problem,problem\nx,1\n", r"a\.csv: two columns are called 'problem'"),
        ("a.csv", b"problem,answer\n\xe9,1\n", r"a\.csv: not UTF-8 text \(.*\); save it as CSV in UTF-8"),
        ("a.json", b'{"problem": ', r"a\.json:1: not valid JSON"),
        ("a.json", b"[1]", r"a\.json: row 1: expected a JSON object, got int"),
        ("a.jsonl", b'[{"problem": "x"}]', r"a\.jsonl:1: expected a JSON object, got list; name a file .* \.json"),
        ("a.arrow", b"nonsense", r"a\.arrow: not readable as Arrow \(.*\); fetch it anew"),
        ("a.json", b'[{"question": "x", "answer": "so\\n#### 1"}]', r"no column 'problem'.*, such as format: gsm8k$"),
        ("a.csv", b"Question,gold\nx,1\n", r"columns, columns: \{prompt: Question, ground_truth: gold\}$"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        taken(tmp_path / name)
    assert "\n" not in str(error.value)


def test_the_entry_that_is_suggested():
    chat = [{"role": "user", "content": "x"}]
    wrapped = [{"role": "user", "content": render("dapo", "x")}]
    assert suggestion({"prompt": chat, "reward_model": {}}) == "format: verl"
    assert suggestion({"prompt": wrapped, "reward_model": {}}) == "format: dapo"
    assert suggestion({"question": "x", "answer": "y #### 1"}) == "format: gsm8k"
    assert suggestion({"problem": "x", "answer": "1"}) == "format: aime"
    assert suggestion({"problem": "x", "answer": "1", "unique_id": "u"}) == "format: math500"
    assert suggestion({"problem": "x", "solution": "1"}) == "format: math"
    assert suggestion({"prompt": "x", "ground_truth": "1"}) == "format: pmd"
    assert suggestion({"Query": "x", "y": 1}) == ("format: columns, columns: {prompt: Query, ground_truth: THEIRS}")


# --- golds ---------------------------------------------------------------------------------------------------------

COLUMNS = {"format": "columns", "columns": {"prompt": "q", "ground_truth": "a"}}
PROSE = "First we add the two numbers and then we see that it must be the number that was asked for, so 5"


@pytest.mark.parametrize(
    ("gold", "rule", "expected", "note"),
    [
        (["34"], "math", "34", None),
        (["34", "034", " 35 "], "math", ["34", "35"], None),
        (["34", "034"], "exact", ["34", "034"], None),
        ([1, 2.5], "math", ["1", "2.5"], None),
        ('["\\\\frac{1}{2}"]', "math", r"\frac{1}{2}", None),
        ("['3', '4']", "dapo", ["3", "4"], None),
        ("['3', '4']", "exact", "['3', '4']", None),
        ("[3, 4]", "math", "[3, 4]", None),
        ([], "math", None, None),
        ([None, "5"], "math", "5", None),
        (r"So $x=\boxed{05}$ holds.", "math", "5", "worked"),
        (r"So $x=\boxed{05}$ holds.", "exact", "05", "worked"),
        (r"\boxed{5}", "math", "5", None),
        ("He has 2 + 3 = <<2+3=5>>5 eggs.\n#### 5", "math", "5", "worked"),
        (PROSE, "math", None, "unboxed"),
        (PROSE, "exact", PROSE, None),
        ("all real numbers except 2", "math", "all real numbers except 2", None),
        ("01234", "exact", "01234", None),
    ],
)
def test_golds_in_lists_and_in_worked_solutions(tmp_path, gold, rule, expected, note):
    write_jsonl(tmp_path / "a.jsonl", [{"q": "x", "a": gold}, {"q": "y", "a": "1"}])
    rows, counts = taken(tmp_path / "a.jsonl", rule=rule, **COLUMNS)
    assert [row["ground_truth"] for row in rows] == ([expected] if expected else []) + ["1"]
    assert (counts.worked, counts.unboxed, counts.without_gold) == (note == "worked", note == "unboxed", not expected)
    warnings = {
        None: "",
        "worked": "warning: 1 rows have their gold inside",
        "unboxed": "warning: 1 rows have a worked",
    }
    warned = str(counts).partition("\n")[2]
    assert warned.startswith(warnings[note])
    assert bool(warned) == (note is not None)
    write_jsonl(tmp_path / "again.jsonl", rows)
    assert read_problems(tmp_path / "again.jsonl") == rows


def test_lists_of_golds_agree_in_any_order_and_else_conflict(tmp_path):
    golds = [("a", ["1", "2"]), ("a", ["2", "01"]), ("b", ["1", "2"]), ("b", "1")]
    write_jsonl(tmp_path / "a.jsonl", [{"q": question, "a": gold} for question, gold in golds])
    rows, counts = taken(tmp_path / "a.jsonl", rule="math", **COLUMNS)
    assert ([row["ground_truth"] for row in rows], counts.conflicts) == ([["1", "2"]], 1)


def test_a_missing_answer_is_taken_from_the_solutions_box_alone(tmp_path):
    rows = [
        {"problem": "x", "answer": None, "solution": r"It is $\boxed{5}$."},
        {"problem": "y", "solution": "short"},
        {"problem": "z", "answer": "3", "solution": r"$\boxed{4}$"},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    made, counts = taken(tmp_path / "a.jsonl")
    assert [row["ground_truth"] for row in made] == ["5", "3"]
    assert (counts.worked, counts.without_gold) == (1, 1)


# --- prompts -------------------------------------------------------------------------------------------------------


def verl(tmp_path, *messages: dict, **entry) -> tuple[list[dict], Counts]:
    """A verl file without extra_info and data_source, whose one prompt is these messages."""
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": list(messages), "reward_model": {"ground_truth": "5"}}])
    return taken(tmp_path / "a.jsonl", format="verl", **entry)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def test_a_verl_file_without_an_index_and_with_a_system_message(tmp_path):
    [row], counts = verl(tmp_path, {"role": "system", "content": "Be brief."}, user("2+3?"))
    assert (row["id"], row["source"], row["prompt"]) == ("mine-0", "mine", render("dapo", "Be brief.\n\n2+3?"))
    assert (counts.system, counts.asks) == (1, 0)
    [row], counts = verl(tmp_path, user("2+3?"))
    assert (row["prompt"], counts.system) == (render("dapo", "2+3?"), 0)
    with pytest.raises(ValueError, match="must be text or a list of one user message"):
        verl(tmp_path, user("2+3?"), {"role": "assistant", "content": "5"}, user("3+4?"))


BOX = "2+3? Put your final answer within \\boxed{}."


def test_a_prompt_with_an_instruction_of_its_own_keeps_it(tmp_path):
    [row], counts = verl(tmp_path, user(BOX))
    assert (row["prompt"], row["rule"], counts.asks, counts.asks_twice) == (BOX, "math", 1, 0)
    assert "warning: 1 rows say otherwise than the format's template" in str(counts)
    [row], counts = verl(tmp_path, {"role": "system", "content": "Answer in \\boxed{}."}, user("2+3?"))
    assert (row["prompt"], row["rule"]) == ("Answer in \\boxed{}.\n\n2+3?", "math")
    [row], counts = verl(tmp_path, user(BOX), template="dapo")
    assert (row["prompt"], row["rule"], counts.asks, counts.asks_twice) == (render("dapo", BOX), "dapo", 0, 1)
    [row], _ = verl(tmp_path, user(BOX), rule="dapo")
    assert (row["prompt"], row["rule"]) == (BOX, "dapo")
    line = 'End with a line "Answer: X".'
    [row], counts = verl(tmp_path, user(line))
    assert (row["prompt"], row["rule"], counts.asks_twice) == (render("dapo", line), "dapo", 1)


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        (r"Please reason step by step, and put your final answer within \boxed{}.", "math"),
        (r"Return it inside \boxed{answer}", "math"),
        (r"Write \boxed{your answer} last.", "math"),
        ("Give it after ####.", "math"),
        ("The last line should be '#### N'.", "math"),
        ("End with 'The answer is X'.", "math"),
        ("Use <think> and <answer> tags", "math"),
        (r"请以“Answer: \boxed{<final_answer>}”的格式输出", "dapo"),
        ("The last line of your response should be of the form Answer: $Answer", "dapo"),
        (r"What is the content of \boxed{\textbf{T A G}}?", None),
        ("Compute {x}.\n\nAnswer: is a word", None),
        ("Which answer is right?", None),
    ],
)
def test_what_a_question_asks_for(question, rule):
    assert asked_rule(question) == rule
