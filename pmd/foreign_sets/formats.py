"""Read foreign problem sets: DAPO-Math, AIME, GSM8K, MATH-500 or your own, from a file or from the Hugging Face hub.

A set is one entry of params.yaml's `sets` or `hub_sets`. It says where the set is (`path`, or `hub` with a pinned
`revision`), its `format`, and optionally the `template` of its prompts and the `rule` that judges its responses, if
they are not to be those of the format. The format is always stated and never guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow
from pyarrow import parquet
from pydantic import Field, model_validator

from pmd.files import ROOT
from pmd.foreign_sets.golds import normalise_gold, shortened, writable
from pmd.params import Settings, must, one_of, read, require
from pmd.problems import prompts
from pmd.problems.verifier import RULES

OURS = ("prompt", "ground_truth", "id", "source", "difficulty")
"""Our columns that a foreign set may fill. It must fill prompt and ground_truth."""


# --- formats -------------------------------------------------------------------------------------------------------


def as_it_is(text: str) -> str:
    """The text unchanged, for formats that need no conversion."""
    return text


def dapo_question(prompt: str) -> str:
    """The question inside DAPO's prompt template; ValueError if the prompt is not in that template."""
    question = prompts.unwrap("dapo", prompt)
    if question is None:
        raise ValueError("the prompt is not in DAPO's template; for prompts without it state format: verl")
    return question


def verl_question(prompt: str) -> str:
    """The prompt unchanged; ValueError if it is in DAPO's prompt template, which would then be added a second time."""
    if prompts.unwrap("dapo", prompt) is not None:
        raise ValueError("the prompt is in DAPO's template; state format: dapo, which removes it")
    return prompt


def after_hashes(solution: str) -> str | None:
    """GSM8K's gold answer, which follows the last #### of the worked solution; None if there is no ####."""
    _, found, gold = solution.rpartition("####")
    return gold if found else None


class Format(NamedTuple):
    """A file format: its columns, and the template and rule that suit its problems.

    columns: our column -> theirs (a dot descends); question, gold: convert the content of the two main columns.
    """

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
    "dapo": Format(
        _VERL, "dapo", "dapo", question=dapo_question
    ),  # DAPO-Math-17k and the AIME 2024 set beside it, as they are on the hub
    "verl": Format(_VERL, "dapo", "dapo", question=verl_question),  # the same columns, prompts without the template
    "aime": Format({"prompt": "problem", "ground_truth": "answer"}, "dapo", "dapo"),
    "gsm8k": Format({"prompt": "question", "ground_truth": "answer"}, "boxed", "math", gold=after_hashes),
    "math500": Format(
        {"prompt": "problem", "ground_truth": "answer", "id": "unique_id", "difficulty": "level"}, "boxed", "math"
    ),
    "columns": Format({}, "boxed", "math"),  # a set of your own, whose entry states `columns`
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
    split: str  # the hub's split; the split of a file is only a label
    format: Annotated[str, one_of(FORMATS)]
    columns: dict[str, str] = Field({})  # for format "columns" only, ours -> theirs; a.b is b within a
    template: Annotated[str, one_of(prompts.TEMPLATES)]  # of the prompts; the format's own if not given
    rule: Annotated[str, one_of(RULES)]  # how responses are judged; the format's own if not given
    limit: int | None = Field(None, ge=1)  # keep at most this many, the first ones after cleaning; null: all

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
    """The entry `sets.NAME` with its defaults; ValueError names the key that is unknown, missing or wrong."""
    require(bool(re.fullmatch(r"[\w.-]+", name)), "sets", name, "names of letters, digits, '_', '.' and '-'")
    require(isinstance(values, dict), f"sets.{name}", values, f"a mapping with {', '.join(ProblemSet.model_fields)}")
    require("name" not in values, f"sets.{name}.name", values.get("name"), "left out: the entry's key is its name")
    form = values.get("format")
    require(isinstance(form, str) and form in FORMATS, f"sets.{name}.format", form, f"one of {', '.join(FORMATS)}")
    defaults = {"name": name, "template": FORMATS[form].template, "rule": FORMATS[form].rule}
    if values.get("hub") is None:
        defaults["split"] = name  # a file has no splits to choose from, so this is only a label
    return read(ProblemSet, f"sets.{name}", defaults | values)


# --- reading -------------------------------------------------------------------------------------------------------


def read_rows(spec: ProblemSet) -> Iterator[tuple[str, dict]]:
    """(place, row) of every row of the set, unchanged; the place is what an error message names.

    Only one row is held in memory at a time. Raises FileNotFoundError, or ValueError that names the file and the line,
    if the source cannot be read.
    """
    if spec.hub is not None:
        return _hub_rows(spec)
    path = ROOT / spec.path
    if not path.is_file():
        raise FileNotFoundError(f"sets.{spec.name}.path: {spec.path} is no file; correct it, or state hub instead")
    return _json_rows(path, spec.path) if path.suffix == ".jsonl" else _parquet_rows(path, spec.path)


def _json_rows(path: Path, shown: str) -> Iterator[tuple[str, dict]]:
    with path.open("rb") as file:  # lines end with \n only, because a string may hold other line separators
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
    if Path(spec.hub).exists():  # load_dataset would read the folder and ignore the revision
        raise ValueError(f"sets.{spec.name}.hub: {spec.hub} is a local folder here; state a file in it as path")
    try:
        rows = datasets.load_dataset(spec.hub, spec.config, split=spec.split, revision=spec.revision)
    except Exception as error:  # the network, the hub and each file format raise exceptions of their own
        message = " ".join(str(error).split())[:300]
        raise ValueError(
            f"sets.{spec.name}.hub: {where} could not be loaded ({type(error).__name__}: {message}); check hub, "
            "config, split and revision and the network, or download its file and state it as path"
        ) from error
    yield from ((f"{where}: row {number}", row) for number, row in enumerate(rows, start=1))


# --- one row -------------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A row before its prompt is made: the question, the normalised gold answer (None if there is none), the rest."""

    where: str
    question: str
    gold: str | None
    rest: dict[str, Any]


def to_problem(spec: ProblemSet, number: int, where: str, row: dict) -> Problem:
    """One foreign row, which is row `number` counted from 0.

    If the gold answer is absent, null or blank, it is None, and `clean` drops and counts the row. All other columns of
    the format must be there. The format "pmd" reads whichever of our optional columns the row has, including its rule.
    Raises ValueError that names the row and the column if it cannot be read.
    """
    form = FORMATS[spec.format]
    columns = spec.columns or form.columns
    if spec.format == "pmd":
        columns = columns | {key: key for key in CHECKS if key in row}
    rest = {"id": f"{spec.name}-{number}", "source": spec.name, "difficulty": None, "rule": spec.rule}
    column = columns["ground_truth"]
    try:
        gold = lookup(row, column, None)
        for key, column in columns.items():
            if key != "ground_truth":
                rest[key] = CHECKS[key](lookup(row, column))
        column = columns["prompt"]
        question = form.question(rest.pop("prompt"))
        column = columns["ground_truth"]
        gold = normalise_gold(form.gold(gold) if isinstance(gold, str) else gold, rest["rule"])
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
    """row[column], or the value that a dotted path leads to; KeyError if it is absent and there is no default."""
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
    """A prompt is text, or a chat that consists of one user message."""
    chat = isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict)
    text = value[0].get("content") if chat and value[0].get("role") == "user" else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"must be text or a list of one user message, got {shortened(value)}")
    return writable(text)


def check_label(value: Any) -> str:
    """An id or a source is text, or an integer, which becomes text."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"must be text or an integer, got {shortened(value)}")
    return writable(str(value))


def check_difficulty(value: Any) -> str | int | float | None:
    """A difficulty is text, a number or null; NaN becomes null."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"must be text, a number or null, got {shortened(value)}")
    return writable(value) if isinstance(value, str) else value


def check_rule(value: Any) -> str:
    """A rule is the name of one of the verifier's rules."""
    if value not in RULES:
        raise ValueError(f"must be one of {', '.join(RULES)}, got {shortened(value)}")
    return value


CHECKS: dict[str, Callable[[Any], Any]] = {
    "prompt": check_prompt,
    "id": check_label,
    "source": check_label,
    "difficulty": check_difficulty,
    "rule": check_rule,
}
