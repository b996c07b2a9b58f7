"""Foreign problem sets as this artifact's rows: DAPO-Math, AIME, GSM8K, MATH-500 or your own, cleaned and counted.

A set is one entry of params.yaml's `sets`: where it is (`path`, or `hub` with a pinned `revision`), its `format` and,
if not the format's own, the `template` of its prompts and the `rule` that judges its responses. The format is stated,
never guessed, and after the reading a local file and a hub's set go the same way.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow
from pyarrow import parquet
from pydantic import Field, model_validator

from pmd import params
from pmd.files import ROOT, write_json, write_jsonl
from pmd.params import Settings, must, one_of, read, require
from pmd.problems import prompts
from pmd.problems.arithmetic import RULES, read_problems

OURS = ("prompt", "ground_truth", "id", "source", "difficulty")
"""The columns that a foreign set may fill; prompt and ground_truth it must."""

EXACT_FLOAT = 2**53
"""Beyond it a floating-point number no longer holds every integer."""


# --- formats -------------------------------------------------------------------------------------------------------


def as_it_is(text: str) -> str:
    """Nothing to undo."""
    return text


def dapo_question(prompt: str) -> str:
    """The question inside DAPO's wrapper; ValueError if there is none."""
    question = prompts.unwrap("dapo", prompt)
    if question is None:
        raise ValueError("the prompt is not in DAPO's wrapper; for prompts without it state format: verl")
    return question


def verl_question(prompt: str) -> str:
    """The prompt, which must come without DAPO's wrapper, or it would be wrapped twice."""
    if prompts.unwrap("dapo", prompt) is not None:
        raise ValueError("the prompt is in DAPO's wrapper; state format: dapo, which removes it")
    return prompt


def after_hashes(solution: str) -> str | None:
    """GSM8K's gold: what follows the last #### of the worked solution."""
    _, found, gold = solution.rpartition("####")
    return gold if found else None


class Format(NamedTuple):
    """Where a format keeps our columns, what to undo, and the template and rule that suit it."""

    columns: dict[str, str]
    template: str
    rule: str
    question: Callable[[str], str] = as_it_is
    gold: Callable[[str], str | None] = as_it_is


_VERL = {
    "prompt": "prompt",
    "ground_truth": "reward_model.ground_truth",
    "id": "extra_info.index",
    "source": "data_source",
}
FORMATS = {
    "dapo": Format(_VERL, "dapo", "dapo", question=dapo_question),  # the hub's DAPO-Math-17k, AIME 2024 beside it
    "verl": Format(_VERL, "dapo", "dapo", question=verl_question),  # the same columns, the wrapper stripped
    "aime": Format({"prompt": "problem", "ground_truth": "answer"}, "dapo", "dapo"),
    "gsm8k": Format({"prompt": "question", "ground_truth": "answer"}, "boxed", "math", gold=after_hashes),
    "math500": Format(
        {"prompt": "problem", "ground_truth": "answer", "id": "unique_id", "difficulty": "level"}, "boxed", "math"
    ),
    "columns": Format({}, "boxed", "math"),  # a set of your own: `columns` says where ours are
    "pmd": Format({"prompt": "prompt", "ground_truth": "ground_truth"}, "plain", "exact"),
}


# --- one entry of params.yaml --------------------------------------------------------------------------------------


HubName = Annotated[str, must(re.compile(r"[\w.-]+/[\w.-]+").fullmatch, "owner/name")]


class ProblemSet(Settings):
    """An entry of `sets` or `hub_sets` in params.yaml: one foreign set, in a file or on a hub."""

    name: str  # the entry's key
    path: str | None = None  # a .jsonl or .parquet file, relative to the repository; null: the set is on a hub
    hub: HubName | None = None  # owner/name of a data set of the hub
    revision: str | None = None  # its commit, 40 hexadecimal digits
    config: str | None = None  # its configuration, if it has several
    split: str  # the hub's split; where the set is a file a label
    format: Annotated[str, one_of(FORMATS)]
    columns: dict[str, str] = Field({})  # of format "columns": ours -> theirs; a dot descends (a.b is b within a)
    template: Annotated[str, one_of(prompts.TEMPLATES)]  # of the prompts; the format's own if not given
    rule: Annotated[str, one_of(RULES)]  # how responses are judged; the format's own if not given
    limit: int | None = Field(None, ge=1)  # the first so many after cleaning; null: all

    @model_validator(mode="after")
    def _fits_together(self) -> ProblemSet:
        def check(condition: bool, key: str, allowed: str) -> None:
            require(condition, key, getattr(self, key), allowed)

        check((self.path is None) != (self.hub is None), "path", "given, or else sets.*.hub, and not both")
        if self.hub is None:
            for key in ("revision", "config"):
                check(getattr(self, key) is None, key, "left out: it belongs to a hub's set")
            check(Path(self.path).suffix in (".jsonl", ".parquet"), "path", "a .jsonl or .parquet file")
        else:
            pinned = re.fullmatch(r"[0-9a-f]{40}", self.revision or "")
            check(bool(pinned), "revision", "the commit to take, 40 hexadecimal digits (a name could move)")
        if self.format == "columns":
            good = {"prompt", "ground_truth"} <= set(self.columns) <= set(OURS)
            check(good, "columns", f"a mapping from prompt, ground_truth (and {', '.join(OURS[2:])}) to their columns")
        else:
            check(not self.columns, "columns", f"left out: format {self.format} has its own")
        return self


def problem_set(name: str, values: dict[str, Any]) -> ProblemSet:
    """The entry `sets.NAME`, defaults filled; ValueError names the key that is unknown, missing or wrong."""
    require(bool(re.fullmatch(r"[\w.-]+", name)), "sets", name, "names of letters, digits, '_', '.' and '-'")
    require(isinstance(values, dict), f"sets.{name}", values, f"a mapping with {', '.join(ProblemSet.model_fields)}")
    require("name" not in values, f"sets.{name}.name", values.get("name"), "left out: the entry's key is its name")
    form = values.get("format")
    require(isinstance(form, str) and form in FORMATS, f"sets.{name}.format", form, f"one of {', '.join(FORMATS)}")
    defaults = {"name": name, "template": FORMATS[form].template, "rule": FORMATS[form].rule}
    if values.get("hub") is None:
        defaults["split"] = name  # a file has no split to choose: only a label
    return read(ProblemSet, f"sets.{name}", defaults | values)


# --- reading -------------------------------------------------------------------------------------------------------


def read_rows(spec: ProblemSet) -> Iterator[tuple[str, dict]]:
    """Every row of the set as it is, with the place to name in a complaint; nothing is held but the row at hand.

    Raises FileNotFoundError, or ValueError naming the file and line, if the source cannot be read.
    """
    if spec.hub is not None:
        return _hub_rows(spec)
    path = ROOT / spec.path
    if not path.is_file():
        raise FileNotFoundError(f"sets.{spec.name}.path: {spec.path} is no file; correct it, or state hub instead")
    return _json_rows(path, spec.path) if path.suffix == ".jsonl" else _parquet_rows(path, spec.path)


def _json_rows(path: Path, shown: str) -> Iterator[tuple[str, dict]]:
    with path.open("rb") as file:  # lines end at \n alone: a string may hold other line separators
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{shown}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not valid JSON ({error}); correct or remove the line") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}")
            yield where, row


def _parquet_rows(path: Path, shown: str) -> Iterator[tuple[str, dict]]:
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{shown}: row {number}", row
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        message = " ".join(str(error).split())
        raise ValueError(f"{shown}: not readable as parquet after row {number} ({message}); fetch it anew") from error


def _hub_rows(spec: ProblemSet) -> Iterator[tuple[str, dict]]:
    import datasets  # takes seconds to load

    where = f"{spec.hub}@{spec.revision[:7]}"
    if Path(spec.hub).exists():  # load_dataset would take the folder, whatever the revision
        raise ValueError(f"sets.{spec.name}.hub: {spec.hub} is a local folder here; state a file in it as path")
    try:
        rows = datasets.load_dataset(spec.hub, spec.config, split=spec.split, revision=spec.revision)
    except Exception as error:  # the network, the hub and every file format raise their own
        message = " ".join(str(error).split())[:300]
        raise ValueError(
            f"sets.{spec.name}.hub: {where} could not be loaded ({type(error).__name__}: {message}); check hub, "
            "config, split and revision and the network, or download its file and state it as path"
        ) from error
    yield from ((f"{where}: row {number}", row) for number, row in enumerate(rows, start=1))


# --- one row -------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A row before its template: the exact question, the normalised gold (None if there is none), the rest."""

    where: str
    question: str
    gold: str | None
    rest: dict[str, Any]


def to_problem(spec: ProblemSet, number: int, where: str, row: dict) -> Problem:
    """One foreign row, the `number`-th from 0; ValueError naming the row and the column if it cannot be read.

    An absent, null or blank gold is None: such rows are dropped and counted. Everything else must be there.
    Format "pmd" takes which of our optional columns the row has; its own rule stands.
    """
    form = FORMATS[spec.format]
    columns = spec.columns or form.columns
    if spec.format == "pmd":
        columns = columns | {key: key for key in CHECKS if key in row}
    rest = {"id": f"{spec.name}-{number}", "source": spec.name, "difficulty": None, "rule": spec.rule}
    column = columns["ground_truth"]
    try:
        gold = lookup(row, column, None)
        gold = normalise_gold(form.gold(gold) if isinstance(gold, str) else gold)
        for key, column in columns.items():
            if key != "ground_truth":
                rest[key] = CHECKS[key](lookup(row, column))
        column = columns["prompt"]
        question = form.question(rest.pop("prompt"))
    except KeyError as error:
        raise ValueError(
            f"{where}: no column {column!r}, the row has {', '.join(map(str, row)) or 'none'}; "
            f"correct sets.{spec.name}.{'columns' if spec.format == 'columns' else 'format'}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: column {column!r}: {error}") from error
    return Problem(where, question, gold, rest)


_REQUIRED = object()


def lookup(row: dict, column: str, default: Any = _REQUIRED) -> Any:
    """row[column], or what a dotted path leads to; KeyError if it is absent and no default is given."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            if default is _REQUIRED:
                raise KeyError(column)
            return default
        value = value[part]
    return value


def check_prompt(value: Any) -> str:
    """A prompt: text, or a chat of one user message."""
    chat = isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict)
    text = value[0].get("content") if chat and value[0].get("role") == "user" else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"must be text or a list of one user message, got {_short(value)}")
    return _writable(text)


def check_label(value: Any) -> str:
    """An id or a source: text, or a whole number as text."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"must be text or an integer, got {_short(value)}")
    return _writable(str(value))


def check_difficulty(value: Any) -> str | int | float | None:
    """A difficulty: text, a number or null (NaN is null)."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"must be text, a number or null, got {_short(value)}")
    return _writable(value) if isinstance(value, str) else value


def check_rule(value: Any) -> str:
    """A rule by name."""
    if value not in RULES:
        raise ValueError(f"must be one of {', '.join(RULES)}, got {_short(value)}")
    return value


CHECKS: dict[str, Callable[[Any], Any]] = {
    "prompt": check_prompt,
    "id": check_label,
    "source": check_label,
    "difficulty": check_difficulty,
    "rule": check_rule,
}


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half of a surrogate pair at {error.start}, which no file can hold") from error
    return text


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# --- golds ---------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"([+-]?)\s*((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_DEGREE = re.compile(r"(?:\\,)?\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)$")
_MATH = re.compile(
    r"\$\$([^$]+)\$\$|\$([^$]*[^$\\])\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL
)


def normalise_gold(gold: Any) -> str | None:
    """A gold as text, None if it is null, NaN or blank; the value of a number never changes.

    The signs around a formula (`$`, `\\(`, `\\[`) go. If what remains is a number, it is written in full with neither
    leading zeros, thousands separators, trailing zeros, an exponent nor a degree sign: `073` 73, `1,000` 1000, `3.50`
    3.5, `1e3` 1000, `336^\\circ` 336. Anything else, such as LaTeX, stays as it is. Integers of any length are exact.
    ValueError for a truth value, a list, infinity, or a floating-point number so large that it may have lost digits.
    """
    if isinstance(gold, float | Decimal) and math.isnan(gold):
        return None
    if gold is None:
        return None
    if isinstance(gold, float) and abs(gold) >= EXACT_FLOAT:
        raise ValueError(f"{gold!r} is a floating-point number that may have lost digits; store it as text")
    if isinstance(gold, bool) or not isinstance(gold, str | int | float | Decimal):
        raise ValueError(f"must be text or a number, got {_short(gold)}")
    text = _bare(_writable(str(gold)))
    return _number(text) or text or None


def _bare(text: str) -> str:
    text = text.strip()
    while match := _MATH.fullmatch(text):
        text = next(inner for inner in match.groups() if inner is not None).strip()
    return text


def _number(text: str) -> str | None:
    plain = _DEGREE.sub("", text).replace("{,}", ",").replace(",\\!", ",").replace("−", "-").strip()
    match = _NUMBER.fullmatch(plain)
    if match is None:
        return None
    sign, digits, exponent = match.groups()
    whole, _, part = format(Decimal(sign + digits.replace(",", "") + (exponent or "")), "f").partition(".")
    number = f"{whole}.{part}".rstrip("0").rstrip(".") if part else whole
    return "0" if number == "-0" else number


# --- cleaning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """What became of the rows: rows = without_gold + repeats + texts, texts = conflicts + over_limit + kept.

    texts: different questions among the rows with a gold; conflicts: those given with more than one gold, dropped
    with all their rows; over_limit: left out because of `limit`.
    """

    rows: int
    without_gold: int
    repeats: int
    texts: int
    conflicts: int
    over_limit: int
    kept: int

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.without_gold:,} without a gold, {self.repeats:,} repeats, "
            f"{self.texts:,} different questions, {self.conflicts:,} with conflicting golds, "
            f"{self.over_limit:,} over the limit: {self.kept:,} kept"
        )


def clean(problems: Iterable[Problem], limit: int | None = None) -> tuple[list[Problem], Counts]:
    """Drop rows without a gold, then repeats of a question, then questions with conflicting golds; the first row stays.

    Questions are compared to the letter: two that differ in a space count as different.
    """
    first: dict[str, Problem] = {}
    conflicting: set[str] = set()
    rows = without_gold = 0
    for problem in problems:
        rows += 1
        if problem.gold is None:
            without_gold += 1
        elif first.setdefault(problem.question, problem).gold != problem.gold:
            conflicting.add(problem.question)
    agreed = [problem for question, problem in first.items() if question not in conflicting]
    kept = agreed[:limit]
    repeats = rows - without_gold - len(first)
    counts = (rows, without_gold, repeats, len(first), len(conflicting), len(agreed) - len(kept), len(kept))
    return kept, Counts(*counts)


def load(spec: ProblemSet) -> tuple[list[dict], Counts]:
    """The set as problem rows (id, prompt in its template, ground_truth, source, split, difficulty, rule), counted.

    Raises FileNotFoundError, or ValueError in one line naming the set, file, row or column and the fix.
    """
    found = read_rows(spec)
    first = next(found, None)
    if first is None:
        raise ValueError(f"sets.{spec.name}: {spec.path or spec.hub} is empty; it must hold at least one row")
    rows = enumerate(itertools.chain([first], found))
    kept, counts = clean((to_problem(spec, number, where, row) for number, (where, row) in rows), spec.limit)
    _require_any(spec, counts, list(first[1]))
    _require_different_ids(kept)
    made = [
        {
            "id": problem.rest["id"],
            "prompt": prompts.render(spec.template, problem.question),
            "ground_truth": problem.gold,
            "source": problem.rest["source"],
            "split": spec.split,
            "difficulty": problem.rest["difficulty"],
            "rule": problem.rest["rule"],
        }
        for problem in kept
    ]
    return made, counts


def _require_any(spec: ProblemSet, counts: Counts, columns: list[str]) -> None:
    where = f"sets.{spec.name}: {spec.path or spec.hub}"
    if counts.texts == 0:
        column = (spec.columns or FORMATS[spec.format].columns)["ground_truth"]
        what = "after a ####" if spec.format == "gsm8k" else "that is not null"
        raise ValueError(
            f"{where}: none of {counts.rows:,} rows has a gold {what} in column {column!r}; "
            f"the first row's columns are {', '.join(map(str, columns)) or 'none'}"
        )
    if counts.kept == 0:
        raise ValueError(f"{where}: each of {counts.texts:,} questions has conflicting golds; correct them")


def _require_different_ids(kept: list[Problem]) -> None:
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
    """A prompt without its template as lower-case words, numbers and operators in order (NFKC).

    Left out: spaces, braces, punctuation, `\\left`, `\\right` and every `\\` before a symbol (`\\,` `\\[`). Operators
    stay: x²+1 and x²-1 are different problems, and so are `1+23` and `12+3`.
    """
    text = unicodedata.normalize("NFKC", prompts.question(prompt)).casefold()
    tokens = (token for token in _TOKEN.findall(text) if token not in _IGNORED)
    return " ".join(token for token in tokens if not re.fullmatch(r"\\\W", token))


def overlap(train: Iterable[dict], test: Iterable[dict]) -> list[str]:
    """The ids of the test problems whose prompt, in normal form, is a train prompt; reworded ones go unnoticed."""
    seen = {normal_form(row["prompt"]) for row in train}
    return [row["id"] for row in test if normal_form(row["prompt"]) in seen]


# --- what the commands do ------------------------------------------------------------------------------------------


def write_set(name: str, out: Path, metrics: Path | None = None) -> str:
    """Write the set that params.yaml calls `name`, cleaned, as JSONL, and its counts as JSON; returns them in words."""
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
    return f"{name}: {counts}"


def report_overlap(train: Path, test: Path) -> str:
    """How many problems of `test` have a prompt that is in `train`, in normal form, and their ids, one a line."""
    asked = read_problems(test)
    found = overlap(read_problems(train), asked)
    return "\n".join([f"{len(found):,} of {len(asked):,} prompts of {test} are in {train}", *found])
