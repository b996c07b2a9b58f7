"""`pmd verdicts`: the same, another, or no verdict on a claim."""

from __future__ import annotations

import pytest

from pmd.__main__ import main
from pmd.files import ROOT
from pmd.paper import verdicts

TABLE = ROOT / "results" / "default" / "tables" / "T1.csv"


@pytest.fixture
def written(tmp_path):
    def write(name, header, *rows):
        path = tmp_path / name / "tables" / "T1.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")
        return path

    return write


def test_the_committed_table_equals_itself(capsys):
    main(["verdicts", str(TABLE), str(ROOT / "results" / "default")])
    assert capsys.readouterr().out == f"all {len(verdicts.read(TABLE))} verdicts are the same\n"
    assert set(verdicts.read(TABLE).values()) <= {
        "supported", "contradicted", "undecided", "equivalent within the margin", "not testable here",
    }  # fmt: skip


def test_each_verdict_that_differs_is_named_and_the_exit_status_is_1(written):
    old = written("old", ",claim,verdict,effect", "a1,x,undecided,1", "a2,y,supported,2", "b1,z,contradicted,3")
    new = written("new", ",claim,verdict,effect", "a1,x,supported,4", "a2,y,supported,5", "c1,w,undecided,6")
    with pytest.raises(SystemExit) as stop:
        main(["verdicts", str(old), str(new.parent.parent)])
    first, *lines = stop.value.code.split("\n")  # text: it is printed to stderr, with status 1
    assert first.startswith("3 of 4 verdicts differ")
    assert lines == ["  a1: undecided → supported", "  b1: contradicted → absent", "  c1: absent → undecided"]


def test_a_run_beside_a_study_is_compared_by_its_own_verdicts_without_remarks(written):
    weak = "undecided (too few base models to rely on it; judged cautiously: contradicted)"
    alone = written("alone", ",claim,verdict,effect", f"a1,x,{weak},1")
    joined = written("joined", ",claim,verdict (study),verdict (default)", f"a1,x,supported,{weak} – disagrees")
    assert verdicts.read(joined) == {"a1": "undecided"}
    assert verdicts.compare(alone, joined) == "all 1 verdicts are the same"


def test_another_table_is_an_error_in_one_line(written):
    path = written("other", ",claim,effect", "a1,x,1")
    with pytest.raises(ValueError, match=r"T1\.csv: got \['', 'claim', 'effect'\], must be a table with the columns"):
        verdicts.read(path)
