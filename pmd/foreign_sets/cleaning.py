"""A foreign set as problem rows: cleaned, counted and written; and the overlap of two sets."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pmd import params
from pmd.files import ROOT, write_json, write_jsonl
from pmd.foreign_sets.formats import FORMATS, Problem, ProblemSet, problem_set, read_rows, to_problem
from pmd.foreign_sets.golds import same_gold
from pmd.foreign_sets.suggestion import suggestion
from pmd.params import require
from pmd.problems import prompts
from pmd.problems.reader import read_problems

# --- cleaning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What became of the rows of a set: rows = without_gold + repeats + texts; texts = conflicts + over_limit + kept.

    texts: the number of different questions among the rows with a gold answer; conflicts: questions with more than one
    gold answer, which are dropped with all their rows; over_limit: questions left out because of `limit`. The others
    count rows with a note, see NOTES.
    """

    rows: int
    without_gold: int
    repeats: int
    texts: int
    conflicts: int
    over_limit: int
    kept: int
    worked: int = 0
    unboxed: int = 0
    system: int = 0
    asks: int = 0
    asks_twice: int = 0

    def __str__(self) -> str:
        notes = "".join(
            f"\nwarning: {getattr(self, key):,} {text}" for key, text in NOTES.items() if getattr(self, key)
        )
        return (
            f"{self.rows:,} rows, {self.without_gold:,} without a gold, {self.repeats:,} repeats, "
            f"{self.texts:,} different questions, {self.conflicts:,} with conflicting golds, "
            f"{self.over_limit:,} over the limit: {self.kept:,} kept{notes}"
        )


NOTES = {
    "worked": "rows have their gold inside a worked solution; it was taken from the box, or after the ####, at its end",
    "unboxed": "rows have a worked solution for a gold, without a box; they count as rows without a gold",
    "system": "rows have a system message; it stands before the question in the prompt",
    "asks": "rows say otherwise than the format's template how to give the answer; they were left without it and are "
    "judged by the rule that reads such an answer, unless the entry states a rule",
    "asks_twice": "rows say how to give the answer, and the template says it once more; template: plain leaves it out",
}
"""What is told of the rows of which something was done that their owner should know."""


def clean(problems: Iterable[Problem], limit: int | None = None) -> tuple[list[Problem], Counts]:
    """Keep the first row of each question; drop rows without a gold answer and questions whose gold answers conflict.

    Questions are the same only if they agree in every character: two that differ in a space count as different.
    """
    first: dict[str, Problem] = {}
    conflicting: set[str] = set()
    notes: Counter[str] = Counter()
    rows = without_gold = 0
    for problem in problems:
        rows += 1
        notes.update(problem.notes)
        if problem.gold is None:
            without_gold += 1
            continue
        earlier = first.setdefault(problem.question, problem)
        if not same_gold(earlier.gold, problem.gold, problem.rest.get("rule", "exact")):
            conflicting.add(problem.question)
    agreed = [problem for question, problem in first.items() if question not in conflicting]
    kept = agreed[:limit]
    repeats = rows - without_gold - len(first)
    counts = (rows, without_gold, repeats, len(first), len(conflicting), len(agreed) - len(kept), len(kept))
    return kept, Counts(*counts, **notes)


def load(spec: ProblemSet) -> tuple[list[dict], Counts]:
    """The rows of the set as `pmd.problems.reader` reads them, each prompt in its template, and their counts.

    Raises FileNotFoundError, or ValueError in one line that names the set, file, row or column and what to do.
    """
    found = read_rows(spec)
    first = next(found, None)
    if first is None:
        raise ValueError(f"sets.{spec.name}: {spec.path or spec.hub} is empty; it must hold at least one row")
    rows = enumerate(itertools.chain([first], found))
    kept, counts = clean((to_problem(spec, number, where, row) for number, (where, row) in rows), spec.limit)
    _require_any(spec, counts, first[1])
    _require_different_ids(kept)
    made = [
        {
            "id": problem.rest["id"],
            "prompt": prompts.render(problem.rest["template"], problem.question),
            "ground_truth": problem.gold,
            "source": problem.rest["source"],
            "split": spec.split,
            "difficulty": problem.rest["difficulty"],
            "rule": problem.rest["rule"],
        }
        for problem in kept
    ]
    return made, counts


def _require_any(spec: ProblemSet, counts: Counts, first: dict) -> None:
    """ValueError if no problem is left; `first` is the first row."""
    where = f"sets.{spec.name}: {spec.path or spec.hub}"
    if counts.texts == 0:
        column = (spec.columns or FORMATS[spec.format].columns)["ground_truth"]
        what = "after a ####" if spec.format == "gsm8k" else "that is not null"
        raise ValueError(
            f"{where}: none of {counts.rows:,} rows has a gold {what} in column {column!r}; "
            f"the first row's columns are {', '.join(map(str, first)) or 'none'}; an entry that may load it has "
            f"{suggestion(first)}"
        )
    if counts.kept == 0:
        raise ValueError(f"{where}: each of {counts.texts:,} questions has conflicting golds; correct them")


def _require_different_ids(kept: list[Problem]) -> None:
    """ValueError if two problems have the same id."""
    seen: dict[str, str] = {}
    for problem in kept:
        other = seen.setdefault(problem.rest["id"], problem.where)
        if other != problem.where:
            raise ValueError(
                f"{problem.where}: id {problem.rest['id']!r} is also that of {other}, whose question differs; "
                "take the set with format: columns and no id"
            )


# --- overlap -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\\[a-z]+|\\.|[^\W\d_]+|\d+(?:\.\d+)?|\S", re.DOTALL)
_IGNORED = {r"\left", r"\right", *'${}.,;:?"“”'}


def normal_form(prompt: str) -> str:
    """The question of a prompt as its words in lower case, numbers and operators, separated by spaces (after NFKC).

    Spaces, braces, punctuation, `\\left`, `\\right` and every backslash with a symbol after it, such as `\\,`, are left
    out. Operators stay, because x²+1 and x²-1 are different problems, and so are `1+23` and `12+3`.
    """
    text = unicodedata.normalize("NFKC", prompts.question(prompt)).casefold()
    tokens = (token for token in _TOKEN.findall(text) if token not in _IGNORED)
    return " ".join(token for token in tokens if not re.fullmatch(r"\\\W", token))


def overlap(train: Iterable[dict], test: Iterable[dict]) -> list[str]:
    """The ids of the test problems whose prompt is, in normal form, a training prompt; reworded ones are not found."""
    seen = {normal_form(row["prompt"]) for row in train}
    return [row["id"] for row in test if normal_form(row["prompt"]) in seen]


# --- what the commands do ------------------------------------------------------------------------------------------


def write_set(name: str, out: Path, metrics: Path | None = None) -> str:
    """Write the set that params.yaml calls `name`, cleaned, as JSONL, and its counts as JSON; says what was made."""
    values = params.load(ROOT / "params.yaml")
    sets = {}
    for key in ("sets", "hub_sets"):
        require(isinstance(values.get(key, {}), dict), key, values.get(key), "a mapping of names to problem sets")
        sets |= values.get(key, {})
    require(name in sets, "sets", name, f"one of {', '.join(map(str, sets)) or 'none: it is empty'}")
    rows, counts = load(problem_set(name, sets[name]))
    write_jsonl(out, rows)
    if metrics:
        write_json(metrics, asdict(counts))
    return f"{out}: {counts}"


def report_overlap(train: Path, test: Path) -> str:
    """How many problems of `test` have a prompt that is in `train`, in normal form, and their ids, one a line."""
    asked = read_problems(test)
    found = overlap(read_problems(train), asked)
    return "\n".join([f"{len(found):,} of {len(asked):,} prompts of {test} are in {train}", *found])
