"""One reader for every problem set, in the field's convention for verifiable rewards.

A problem set is a JSONL file, one problem a line, with these columns:

prompt, ground_truth   the text given to the policy and the right answer (both needed); a list holds several answers,
                       any of which is right
id                     unique within the file (filled in from the row number)
source, split          where the problem comes from and what it is for (both filled in from the file's name)
difficulty             a number, a text or null (filled in as null)
rule                   how responses are judged, a name of `pmd.problems.verifier.RULES` (filled in as "exact")
response               of supervised sets only: a worked answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pmd.files import read_jsonl
from pmd.params import require
from pmd.problems.verifier import RULES


def read_problems(path: str | Path, limit: int | None = None) -> list[dict]:
    """The problems of a file, at most the first `limit` of them, with the missing optional columns filled in.

    Raises FileNotFoundError if there is no file. Raises ValueError that names the file, the line and the column if the
    file is empty, a needed column is missing or blank, a rule is unknown, or an id occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such problem set (the embedded ones are made by `dvc repro data.dvc`)")
    rows = list(_checked(path))[:limit]
    if not rows:
        raise ValueError(f"{path}: the problem set is empty")
    return rows


def _checked(path: Path) -> Iterator[dict]:
    """Each row of the file, checked and with the missing columns filled in."""
    ids: set[str | float] = set()
    for number, row in enumerate(read_jsonl(path), start=1):
        gold = row.get("ground_truth")
        if isinstance(gold, list) and len(gold) == 1:
            row["ground_truth"] = gold[0]
        row = {
            "id": f"{path.stem}-{number - 1}",
            "source": path.stem,
            "split": path.stem,
            "difficulty": None,
            "rule": "exact",
        } | row
        for column, allowed in _faults(row):
            raise ValueError(f"{path}:{number}: column {column!r} must be {allowed}, got {row.get(column)!r}")
        if row["id"] in ids:
            raise ValueError(f"{path}:{number}: id {row['id']!r} occurs twice")
        ids.add(row["id"])
        yield row


def require_problems(name: str, problems: list[dict], judged: bool = True) -> None:
    """ValueError `name[i].column: got value, must be …` in one line if these are no problems to answer.

    There must be one at least, and each needs a prompt and an id of its own: by its id an answer finds its problem
    again, and with another's it would be judged by the other's ground truth. The same problem may stand there twice.
    judged: the verifier judges the answers, so that each also needs its ground truth; a reward of your own reads what
    it likes. A problem may lack a `rule`, which is then "exact".
    """
    allowed = "a list of problems, such as read_problems(path) returns"
    require(not isinstance(problems, str | Path | Mapping), name, problems, allowed)
    require(len(problems) > 0, name, problems, "at least one problem")
    first: dict[str | float, int] = {}
    for i, row in enumerate(problems):
        here = f"{name}[{i}]"
        require(isinstance(row, Mapping), here, row, "a mapping with id, prompt and ground_truth")
        for column, allowed in _faults({"rule": "exact", **row}, judged):
            require(False, f"{here}.{column}", row.get(column), allowed)
        other = first.setdefault(row["id"], i)
        require(problems[other] == row, f"{here}.id", row["id"], f"its own, but {name}[{other}] has it too")


def _faults(row: Mapping[str, Any], judged: bool = True) -> Iterator[tuple[str, str]]:
    """Each column that a problem cannot have as it is, and what it must be."""
    gold, rule = row.get("ground_truth"), row.get("rule")
    if not _is_text(row.get("prompt")):
        yield "prompt", "a non-empty string"
    if judged and not (_is_text(gold) or _are_texts(gold)):
        yield "ground_truth", "a non-empty string or a list of them"
    if judged and not (isinstance(rule, str) and rule in RULES):
        yield "rule", f"one of {', '.join(RULES)}"
    if not isinstance(row.get("id"), str | int | float):
        yield "id", "a string or a number"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))
