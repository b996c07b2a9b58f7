"""Foreign sets: each format read right, every trap counted or refused in one line, the real files' counts."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import datasets
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pmd.__main__ import main
from pmd.files import ROOT, read_json, write_jsonl, write_text
from pmd.foreign_sets import cleaning, formats
from pmd.foreign_sets.cleaning import Counts, clean, load, normal_form, overlap
from pmd.foreign_sets.formats import problem_set
from pmd.problems.prompts import render
from pmd.problems.reader import read_problems

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB = {"hub": "someone/maths", "revision": REVISION, "config": "main", "split": "test", "format": "gsm8k"}


def taken(path: Path, name: str = "mine", **entry) -> tuple[list[dict], Counts]:
    """The set in a file, by the entry that params.yaml would have."""
    return load(problem_set(name, {"path": str(path)} | entry))


def lines(path: Path, *rows: dict) -> Path:
    write_jsonl(path, rows)
    return path


def table(path: Path, rows: list[dict]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def verl(question: str, gold: str, index, wrapped: bool) -> dict:
    """A row as DAPO-Math-17k has it."""
    content = render("dapo", question) if wrapped else question
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": content, "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": index},
    }


# --- formats -------------------------------------------------------------------------------------------------------


def test_wrapped_and_stripped_dapo_rows_are_the_same_problems(tmp_path):
    questions = [("What is $1+1$?", "2", "a-1"), ("Compute {x}.\n\nAnswer: is a word", "-7", "b-2")]
    native = table(tmp_path / "native.parquet", [verl(*q, wrapped=True) for q in questions])
    stripped = table(tmp_path / "stripped.parquet", [verl(*q, wrapped=False) for q in questions])
    rows, counts = taken(native, format="dapo")
    assert rows == taken(stripped, format="verl")[0]
    assert rows[1] == {
        "id": "b-2",
        "prompt": "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nCompute {x}.\n\n"
        'Answer: is a word\n\nRemember to put your answer on its own line after "Answer:".',
        "ground_truth": "-7",
        "source": "math_dapo",
        "split": "mine",
        "difficulty": None,
        "rule": "dapo",
    }
    assert counts == Counts(rows=2, without_gold=0, repeats=0, texts=2, conflicts=0, over_limit=0, kept=2)
    assert taken(native, format="dapo", template="plain")[0][0]["prompt"] == "What is $1+1$?"


def test_a_set_in_the_other_dapo_format_is_refused(tmp_path):
    native = table(tmp_path / "native.parquet", [verl("1+1?", "2", 0, wrapped=True)])
    stripped = table(tmp_path / "stripped.parquet", [verl("1+1?", "2", 0, wrapped=False)])
    with pytest.raises(ValueError, match=r"native\.parquet: row 1: column 'prompt': .*state format: dapo"):
        taken(native, format="verl")
    with pytest.raises(ValueError, match=r"stripped\.parquet: row 1: column 'prompt': .*state format: verl"):
        taken(stripped, format="dapo")


def test_aime_gsm8k_and_math500_rows(tmp_path):
    aime = lines(tmp_path / "aime.jsonl", {"problem": "Angle?", "answer": r"336^\circ"})
    (row,), _ = taken(aime, "aime25", format="aime", split="2025")
    assert (row["id"], row["ground_truth"], row["split"], row["rule"]) == ("aime25-0", "336", "2025", "dapo")
    gsm8k = lines(tmp_path / "gsm8k.jsonl", {"question": "How much?", "answer": "#### is not it\n#### 2,250"})
    (row,), _ = taken(gsm8k, format="gsm8k")
    assert (row["prompt"], row["ground_truth"], row["rule"]) == (render("boxed", "How much?"), "2250", "math")
    math500 = {"problem": "p?", "answer": r"\frac{1}{2}", "solution": "…", "level": 3, "unique_id": "test/a/1.json"}
    (row,), _ = taken(lines(tmp_path / "math.jsonl", math500), format="math500", rule="exact", template="plain")
    assert row == {
        "id": "test/a/1.json",
        "prompt": "p?",
        "ground_truth": r"\frac{1}{2}",
        "source": "mine",
        "split": "mine",
        "difficulty": 3,
        "rule": "exact",
    }


def test_a_set_of_your_own_by_its_columns(tmp_path):
    rows = [
        {"q": "a?", "meta": {"gold": 10**19, "n": 7}, "a.b": 1},
        {"q": "b?", "meta": {"gold": " 5 ", "n": 8}, "a.b": 2},
    ]
    columns = {"prompt": "q", "ground_truth": "meta.gold", "id": "meta.n", "difficulty": "a.b"}
    made, _ = taken(lines(tmp_path / "mine.jsonl", *rows), format="columns", columns=columns, limit=1)
    assert [(r["id"], r["ground_truth"], r["difficulty"]) for r in made] == [("7", "1" + 19 * "0", 1)]
    assert made[0]["prompt"] == render("boxed", "a?")


def test_our_own_columns_come_back_as_they_were(tmp_path):
    row = {
        "id": "x",
        "prompt": "1+1=",
        "ground_truth": "2",
        "source": "s",
        "split": "t",
        "difficulty": 2,
        "rule": "math",
    }
    path = lines(tmp_path / "mine.jsonl", row, {"prompt": "1+2=", "ground_truth": "3"})
    made, _ = taken(path, format="pmd", split="t")
    filled = {"id": "mine-1", "source": "mine", "split": "t", "difficulty": None, "rule": "exact"}
    assert made == [row, {"prompt": "1+2=", "ground_truth": "3"} | filled]
    write_jsonl(tmp_path / "again.jsonl", made)
    assert read_problems(tmp_path / "again.jsonl") == made


# --- cleaning ------------------------------------------------------------------------------------------------------


def test_cleaning_is_counted(tmp_path):
    golds = [
        ("a", "1"),
        ("b", "2"),
        ("a", "01"),
        ("c", None),
        ("b", "3"),
        ("b", "2"),
        ("d", " "),
        ("e", "5"),
        ("f", "6"),
    ]
    rows = [{"problem": question, "answer": gold} for question, gold in golds] + [{"problem": "g"}]
    made, counts = taken(lines(tmp_path / "mine.jsonl", *rows), format="aime", template="plain", limit=2)
    assert [(row["id"], row["prompt"], row["ground_truth"]) for row in made] == [
        ("mine-0", "a", "1"),
        ("mine-7", "e", "5"),
    ]
    assert counts == Counts(rows=10, without_gold=3, repeats=3, texts=4, conflicts=1, over_limit=1, kept=2)
    assert str(counts) == (
        "10 rows, 3 without a gold, 3 repeats, 4 different questions, 1 with conflicting golds, "
        "1 over the limit: 2 kept"
    )


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["1", "2", None])), max_size=30), st.integers(1, 5))
def test_the_counts_add_up_and_the_rest_is_unambiguous(pairs, limit):
    problems = [formats.Problem(str(i), q, gold, {}) for i, (q, gold) in enumerate(pairs)]
    kept, counts = clean(problems, limit)
    assert counts.rows == len(pairs) == counts.without_gold + counts.repeats + counts.texts
    assert counts.texts == counts.conflicts + counts.over_limit + counts.kept
    golds = {question: {g for q, g in pairs if q == question and g} for question in "abcd"}
    agreed = [question for question in dict.fromkeys(q for q, g in pairs if g) if len(golds[question]) == 1]
    assert [problem.question for problem in kept] == agreed[:limit]
    assert counts.conflicts == sum(len(found) > 1 for found in golds.values())


# --- overlap -------------------------------------------------------------------------------------------------------


def test_overlap_sees_through_template_spacing_and_case_but_not_operators():
    train = [{"prompt": render("dapo", r"Find $\left|x - 1\right|$,  if $x_{1} = 1.5$.")}, {"prompt": "1+23="}]
    test = [
        {"id": "same", "prompt": render("boxed", r"find \[|x-1|\] if ${x}_1=1.5$")},
        {"id": "operator", "prompt": r"Find $|x + 1|$ if $x_1 = 1.5$."},
        {"id": "number", "prompt": r"Find $|x - 1|$ if $x_1 = 15$."},
        {"id": "sum", "prompt": "12+3="},
    ]
    assert overlap(train, test) == ["same"]
    assert normal_form("Ｆind  $\\left( x^2 \\right)$!") == "find ( x ^ 2 ) !"


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with one good set and one whose second row is broken."""
    lines(tmp_path / "good.jsonl", {"problem": "a?", "answer": 1}, {"problem": "a?", "answer": "01"})
    write_text(tmp_path / "bad.jsonl", '{"problem": "a?", "answer": "1"}\n{"problem":\n')
    write_text(
        tmp_path / "params.yaml",
        "sets:\n  good: {path: good.jsonl, format: aime}\n  bad: {path: bad.jsonl, format: aime}\n",
    )
    monkeypatch.setattr(formats, "ROOT", tmp_path)
    monkeypatch.setattr(cleaning, "ROOT", tmp_path)
    return tmp_path


def test_the_command_writes_rows_and_counts(root, capsys):
    main(["sets", "good", str(root / "out" / "good.jsonl"), "--metrics", str(root / "m" / "good.json")])
    assert [row["ground_truth"] for row in read_problems(root / "out" / "good.jsonl")] == ["1"]
    assert read_json(root / "m" / "good.json") == {
        "rows": 2,
        "without_gold": 0,
        "repeats": 1,
        "texts": 1,
        "conflicts": 0,
        "over_limit": 0,
        "kept": 1,
        "worked": 0,
        "unboxed": 0,
        "system": 0,
        "asks": 0,
        "asks_twice": 0,
    }
    assert capsys.readouterr().out.startswith(f"{root / 'out' / 'good.jsonl'}: 2 rows, ")
    main(["overlap", str(root / "out" / "good.jsonl"), str(root / "out" / "good.jsonl")])
    assert re.match(r"1 of 1 prompts of .*\ngood-0\n$", capsys.readouterr().out)


def test_a_broken_set_leaves_what_was_written_before(root):
    out = root / "bad-out.jsonl"
    out.write_text("before")
    before = sorted(root.iterdir())
    with pytest.raises(SystemExit) as stop:
        main(["sets", "bad", str(out), "--metrics", str(root / "m.json")])
    assert re.fullmatch(r"bad\.jsonl:2: not valid JSON \(.*\); correct or remove the line", str(stop.value.code))
    assert out.read_text() == "before"
    assert sorted(root.iterdir()) == before


def test_a_set_that_params_does_not_have_is_named(root):
    with pytest.raises(SystemExit, match=r"sets: got 'ugly', must be one of good, bad"):
        main(["sets", "ugly", str(root / "out.jsonl")])


# --- bad input -----------------------------------------------------------------------------------------------------

GOOD = {"path": "a.jsonl", "format": "aime"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "a.jsonl", "format": "x"}, r"sets\.s\.format: got 'x', must be one of dapo, verl, aime, "),
        ({"path": "a.jsonl"}, r"sets\.s\.format: got None, must be one of"),
        (GOOD | {"template": "x"}, r"sets\.s\.template: got 'x', must be one of plain, dapo, boxed"),
        (GOOD | {"rule": "x"}, r"sets\.s\.rule: got 'x', must be one of exact, dapo, math"),
        (GOOD | {"limit": 0}, r"sets\.s\.limit: got 0, must be at least 1"),
        (GOOD | {"limit": "9"}, r"sets\.s\.limit: got '9', must be an integer or null"),
        (GOOD | {"colums": {}}, r"sets\.s\.colums: got \{\}, must be left out: the keys are"),
        (GOOD | {"name": "t"}, r"sets\.s\.name: got 't', must be left out"),
        (GOOD | {"columns": {"prompt": "q"}}, r"sets\.s\.columns: .* left out: format aime has its own"),
        (GOOD | {"format": "columns"}, r"sets\.s\.columns: got \{\}, must be a mapping from prompt, ground_truth"),
        (GOOD | {"format": "columns", "columns": ["q"]}, r"sets\.s\.columns: got \['q'\], must be a mapping"),
        (GOOD | {"format": "columns", "columns": {"prompt": "q", "ground_truth": "a", "x": "y"}}, "got .*'x': 'y'"),
        (GOOD | {"path": None}, r"sets\.s\.path: got None, must be given, or else"),
        (GOOD | {"path": "a.xlsx"}, r"sets\.s\.path: got 'a\.xlsx', must be a folder or a file \.jsonl, \.ndjson, "),
        (GOOD | {"path": "a.parquet.gz"}, r"sets\.s\.path: got 'a\.parquet\.gz', must be a folder or a file"),
        (GOOD | {"revision": REVISION}, r"sets\.s\.revision: .* left out: it belongs to a hub's set"),
        (HUB | {"path": "a.jsonl"}, r"sets\.s\.path: got 'a\.jsonl', must be .* not both"),
        (HUB | {"revision": "main"}, r"sets\.s\.revision: got 'main', must be the commit to take, 40 hexadecimal"),
        (HUB | {"revision": None}, r"sets\.s\.revision: got None, must be the commit"),
        (HUB | {"hub": "json"}, r"sets\.s\.hub: got 'json', must be owner/name"),
        ({k: v for k, v in HUB.items() if k != "split"}, r"sets\.s\.split: missing, must be a string"),
        ("a.jsonl", r"sets\.s: got 'a\.jsonl', must be a mapping"),
    ],
)
def test_a_bad_entry_is_refused_by_its_key(entry, message):
    with pytest.raises(ValueError, match=message) as error:
        problem_set("s", entry)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b", "", "a b", "a.b"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match=r"sets: got '.*', must be"):
        problem_set(name, GOOD)


MAPPED = {"format": "columns", "columns": {"prompt": "q", "ground_truth": "a", "id": "n"}}


@pytest.mark.parametrize(
    ("text", "entry", "message"),
    [
        ("", MAPPED, r"sets\.mine: .*a\.jsonl is empty; it must hold at least one row"),
        ("\n \n", MAPPED, "is empty"),
        ('{"q": "x", "a": "1", "n": 1}\n{"q"\n', MAPPED, r"a\.jsonl:2: not valid JSON"),
        ("[" * 100_000, MAPPED, r"a\.jsonl:1: not valid JSON"),
        ("9" * 5000, MAPPED, r"a\.jsonl:1: not valid JSON"),
        ("[1]\n", MAPPED, r"a\.jsonl:1: expected a JSON object, got list"),
        (
            '{"question": "x", "a": "1"}\n',
            MAPPED,
            r":1: no column 'q', the row has question, a; correct sets\.mine\.columns",
        ),
        ('{"q": "x", "a": "1"}\n', MAPPED, r":1: no column 'n', the row has q, a; correct sets\.mine\.columns"),
        (
            '{"problem": "x", "gold": "1"}\n',
            {"format": "aime"},
            r"none of 1 rows has a gold .* columns are problem, gold",
        ),
        ('{"question": "x", "answer": "1"}\n', {"format": "gsm8k"}, "none of 1 rows has a gold after a ####"),
        (
            '{"q": "x", "answer": "1"}\n',
            {"format": "gsm8k"},
            r":1: no column 'question', .* correct sets\.mine\.format",
        ),
        ('{"q": "x", "a": true, "n": 1}\n', MAPPED, r":1: column 'a': must be text or a number, got True"),
        ('{"q": "x", "a": {"b": 1}, "n": 1}\n', MAPPED, r":1: column 'a': must be text or a number, got \{'b': 1\}"),
        ('{"q": "x", "a": [["1"]], "n": 1}\n', MAPPED, r":1: column 'a': must be text or a number, got \['1'\]"),
        ('{"q": "x", "a": 1e20, "n": 1}\n', MAPPED, r":1: column 'a': 1e\+20 .* store it as text"),
        (
            '{"q": " ", "a": "1", "n": 1}\n',
            MAPPED,
            r":1: column 'q': must be text or a list of one user message \(.*\), got ' '",
        ),
        ('{"q": ["x"], "a": "1", "n": 1}\n', MAPPED, r":1: column 'q': must be text or a list of one user message"),
        ('{"q": "\\ud800", "a": "1", "n": 1}\n', MAPPED, r":1: column 'q': holds half of a surrogate pair"),
        ('{"q": "x", "a": "1", "n": null}\n', MAPPED, r":1: column 'n': must be text or an integer, got None"),
        (
            '{"q": "x", "a": "1", "n": 1}\n{"q": "x", "a": "2", "n": 1}',
            MAPPED,
            "each of 1 questions has conflicting golds",
        ),
        (
            '{"q": "x", "a": "1", "n": 1}\n{"q": "y", "a": "2", "n": 1}',
            MAPPED,
            r"a\.jsonl:2: id '1' is also that of .*a\.jsonl:1, whose question differs",
        ),
    ],
)
def test_a_bad_file_is_refused_by_line_and_column(tmp_path, text, entry, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        taken(tmp_path / "a.jsonl", **entry)
    assert "\n" not in str(error.value)


def test_text_in_another_encoding_is_refused_by_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"problem": "x", "answer": "1"}\n{"problem": "\xe9", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not UTF-8 text \('utf-8' codec.*; save the file in UTF-8$"):
        taken(tmp_path / "a.jsonl", format="aime")


def test_windows_line_ends_and_other_separators_inside_text_are_read(tmp_path):
    """A byte-order mark, \\r\\n, and U+2028, which str.splitlines would take for the end of a line."""
    text = '\ufeff{"problem": "a\u2028b\x85c", "answer": "1"}\r\n{"problem": "d", "answer": 2}\r\n'
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    rows, _ = taken(tmp_path / "a.jsonl", format="aime", template="plain")
    assert [(row["prompt"], row["ground_truth"]) for row in rows] == [("a\u2028b\x85c", "1"), ("d", "2")]


def test_integers_that_a_table_keeps_as_floats_are_read(tmp_path):
    """What pandas makes of integers beside a null."""
    path = table(tmp_path / "a.parquet", [{"problem": "x", "answer": 73.0}, {"problem": "y", "answer": float("nan")}])
    rows, counts = taken(path, format="aime")
    assert ([row["ground_truth"] for row in rows], counts.without_gold) == (["73"], 1)


def test_a_corrupt_parquet_is_refused(tmp_path):
    path = table(tmp_path / "a.parquet", [{"problem": f"{i}?", "answer": str(i)} for i in range(1000)])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1 nonsense PAR1", whole[:4] + b"\xff" * 2000 + whole[2004:]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"a\.parquet: not readable as parquet after row \d+ \(.*\); fetch"
        ) as error:
            taken(path, format="aime")
        assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"sets\.mine\.path: .*none\.jsonl is no file"):
        taken(tmp_path / "none.jsonl", format="aime")


# --- the hub -------------------------------------------------------------------------------------------------------


def test_a_hubs_set_goes_the_same_way_as_a_file(tmp_path, monkeypatch):
    """The real load_dataset, given a folder in the hub's layout for the name; what it is asked for is pinned."""
    rows = [{"question": "a?", "answer": "so #### 1,000"}, {"question": "b?", "answer": "#### -3"}]
    (tmp_path / "maths").mkdir()
    local = lines(tmp_path / "maths" / "test.jsonl", *rows, rows[0])
    real, asked = datasets.load_dataset, []

    def fake(*names, **options):
        asked.append((names, options))
        return real(str(tmp_path / "maths"), split=options["split"], cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", fake)
    found = load(problem_set("mine", HUB))
    assert asked == [(("someone/maths", "main"), {"split": "test", "revision": REVISION})]
    assert found == taken(local, format="gsm8k", split="test")
    assert [row["ground_truth"] for row in found[0]] == ["1000", "-3"]


def test_an_unreachable_hub_is_one_line_with_the_fix(monkeypatch):
    def fake(*names, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fake)
    message = (
        r"sets\.mine\.hub: someone/maths@0123456 could not be loaded \(ConnectionError: no route to host\); check "
    )
    with pytest.raises(ValueError, match=message) as error:
        load(problem_set("mine", HUB))
    assert "\n" not in str(error.value)


def test_a_local_folder_never_stands_in_for_the_hub(tmp_path, monkeypatch):
    (tmp_path / "someone" / "maths").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"sets\.mine\.hub: someone/maths is a local folder here"):
        load(problem_set("mine", HUB))


# --- the real files ------------------------------------------------------------------------------------------------

REAL = Path(os.environ.get("PMD_REAL_DATA") or ROOT.parent / "shared" / "data")


@cache
def real(path: str, form: str) -> tuple[list[dict], Counts]:
    """One of the real sets, read once, or a skip that says what is absent."""
    if not (REAL / path).is_file():
        pytest.skip(f"the real problem sets are not here: no {path} in PMD_REAL_DATA")
    return taken(REAL / path, format=form)


@pytest.mark.parametrize(
    ("path", "form", "counts"),
    [
        ("dapo/dapo_math_17k.parquet", "verl", Counts(17_917, 0, 627, 17_290, 11, 0, 17_279, asks_twice=20)),
        ("dapo/native_schema_2000.parquet", "dapo", Counts(2000, 0, 22, 1978, 1, 0, 1977)),
        ("dapo/native_schema_duplicated.parquet", "dapo", Counts(300, 0, 200, 100, 0, 0, 100)),
        ("aime/aime2024_dapo_native.parquet", "dapo", Counts(960, 0, 930, 30, 0, 0, 30)),
        ("aime/aime2025.jsonl", "aime", Counts(30, 0, 0, 30, 0, 0, 30)),
        ("gsm8k/train.jsonl", "gsm8k", Counts(7473, 0, 0, 7473, 0, 0, 7473)),
        ("gsm8k/test.jsonl", "gsm8k", Counts(1319, 0, 0, 1319, 0, 0, 1319)),
        ("math500/test.jsonl", "math500", Counts(500, 0, 0, 500, 0, 0, 500)),
    ],
)
def test_the_counts_of_the_real_files(path, form, counts):
    rows, found = real(path, form)
    assert found == counts
    assert len({row["id"] for row in rows}) == counts.kept
    if form != "math500":
        assert all(re.fullmatch(r"0|-?[1-9]\d*", row["ground_truth"]) for row in rows)


def test_the_two_forms_of_dapo_are_the_same_problems():
    native, _ = real("dapo/native_schema_2000.parquet", "dapo")
    stripped, _ = real("dapo/dapo_math_17k.parquet", "verl")
    pairs = {(row["prompt"], row["ground_truth"]) for row in stripped}
    # the other one's second gold comes further down in the whole set, which therefore drops it
    assert sum((row["prompt"], row["ground_truth"]) in pairs for row in native) == 1976


def test_the_math500_problems_that_are_in_dapo():
    """Seven, none by a change of operator: precalculus/285 has z⁴+z²+1 where DAPO has z⁴-z²+1. None of AIME 2024."""
    train, _ = real("dapo/dapo_math_17k.parquet", "verl")
    (math500, _), (aime, _) = real("math500/test.jsonl", "math500"), real("aime/aime2024_dapo_native.parquet", "dapo")
    numbers = [1849, 582, 991, 1411, 90, 2146]
    expected = {f"test/intermediate_algebra/{n}.json" for n in numbers} | {"test/algebra/1282.json"}
    found = overlap(train, [*math500, *aime])
    assert set(found) == expected
    assert len(found) == 7
