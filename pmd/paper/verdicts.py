"""`pmd verdicts`: the verdicts of two runs compared, from their table T1 alone."""

from __future__ import annotations

import csv
from pathlib import Path

from pmd.params import require


def read(path: Path) -> dict[str, str]:
    """{row: verdict} of a T1.csv, or of the one of a folder results/<preset>, in the order of the table.

    Where a study stands beside the default run, the verdicts are those of the default run: the study's come from
    evidence that a run does not make again. What a cell says beside its verdict is left out.
    ValueError in one line for a file that is not there or is no table of claims.
    """
    path = path / "tables" / "T1.csv" if path.is_dir() else path
    require(path.is_file(), "T1.csv", str(path), "a table of claims that a run made, or its folder results/<preset>")
    return parse(path.read_text(encoding="utf-8"), str(path))


def parse(text: str, where: str) -> dict[str, str]:
    """The same of the text of a T1.csv; where: its name in the error."""
    rows = list(csv.DictReader(text.splitlines()))
    columns = rows[0].keys() if rows else set()
    column = "verdict (default)" if "verdict (default)" in columns else "verdict"
    require({"", column} <= set(columns), where, sorted(columns), "a table with the columns of T1.csv")
    return {row[""]: row[column].partition(" (")[0].partition(" – ")[0] for row in rows}


def compare(before: Path, after: Path) -> str:
    """One sentence if both runs have the same verdict on every claim; ValueError with a line for each that differs."""
    old, new = read(before), read(after)
    rows = list(dict.fromkeys([*old, *new]))
    pairs = [(row, old.get(row, "absent"), new.get(row, "absent")) for row in rows]
    lines = [f"  {row}: {first} → {second}" for row, first, second in pairs if first != second]
    if lines:
        raise ValueError("\n".join([f"{len(lines)} of {len(rows)} verdicts differ ({before} → {after}):", *lines]))
    return f"all {len(rows)} verdicts are the same"
