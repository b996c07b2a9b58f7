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

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pmd.files import read_jsonl
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
    ids: set[str] = set()
    for number, row in enumerate(read_jsonl(path), start=1):
        gold = row.get("ground_truth")
        if isinstance(gold, list) and len(gold) == 1:
            row["ground_truth"] = gold = gold[0]
        good = {"prompt": _is_text(row.get("prompt")), "ground_truth": _is_text(gold) or _are_texts(gold)}
        for column, fine in good.items():
            if not fine:
                kind = "a non-empty string" + (" or a list of them" if column == "ground_truth" else "")
                raise ValueError(f"{path}:{number}: column {column!r} must be {kind}, got {row.get(column)!r}")
        row = {
            "id": f"{path.stem}-{number - 1}",
            "source": path.stem,
            "split": path.stem,
            "difficulty": None,
            "rule": "exact",
        } | row
        if row["rule"] not in RULES:
            raise ValueError(f"{path}:{number}: column 'rule' must be one of {', '.join(RULES)}, got {row['rule']!r}")
        if row["id"] in ids:
            raise ValueError(f"{path}:{number}: id {row['id']!r} occurs twice")
        ids.add(row["id"])
        yield row


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))
