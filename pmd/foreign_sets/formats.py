"""Read foreign problem sets: DAPO-Math, AIME, GSM8K, MATH or your own, from files or from the Hugging Face hub.

A set is one entry of params.yaml's `sets` or `hub_sets`. It says where the set is (`path`, or `hub` with a pinned
`revision`), its `format`, and optionally the `template` of its prompts and the `rule` that judges its responses, if
they are not to be those of the format. The format is always stated and never guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from pmd.files import ROOT
from pmd.foreign_sets import files
from pmd.foreign_sets.golds import Gold, read_gold, shortened, structure, writable
from pmd.foreign_sets.suggestion import suggestion
from pmd.params import FileName, Settings, must, one_of, read, require
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

    columns: our column -> theirs (a dot descends); question, gold: convert the content of the two main columns;
    solution: where the answer is taken from if the column of the gold has none.
    """

    columns: dict[str, str]
    template: str
    rule: str
    question: Callable[[str], str] = as_it_is
    gold: Callable[[str], str | None] = as_it_is
    solution: str | None = None


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
    "aime": Format({"prompt": "problem", "ground_truth": "answer"}, "dapo", "dapo", solution="solution"),
    "gsm8k": Format({"prompt": "question", "ground_truth": "answer"}, "boxed", "math", gold=after_hashes),
    "math500": Format(
        {"prompt": "problem", "ground_truth": "answer", "id": "unique_id", "difficulty": "level"},
        "boxed",
        "math",
        solution="solution",
    ),
    "math": Format({"prompt": "problem", "ground_truth": "solution", "difficulty": "level"}, "boxed", "math"),
    "columns": Format({}, "boxed", "math"),  # a set of your own, whose entry states `columns`
    "pmd": Format({"prompt": "prompt", "ground_truth": "ground_truth"}, "plain", "exact"),
}


# --- one entry of params.yaml --------------------------------------------------------------------------------------


HubName = Annotated[str, must(re.compile(r"[\w.-]+/[\w.-]+").fullmatch, "owner/name")]


def _null_or(names: Collection[str]) -> AfterValidator:
    return must(lambda value: value is None or value in names, f"one of {', '.join(names)}")


class ProblemSet(Settings):
    """An entry of `sets` or `hub_sets` in params.yaml: one foreign set, in a file or on a hub."""

    name: FileName  # the entry's key
    path: str | None = None  # a file or a folder, relative to the repository; null: the set is on a hub
    hub: HubName | None = None  # owner/name of a data set of the hub
    revision: str | None = None  # its commit, 40 hexadecimal digits
    config: str | None = None  # its configuration, if it has several
    split: str  # the hub's split or a subfolder of the folder; the split of a file is only a label
    format: Annotated[str, one_of(FORMATS)]
    columns: dict[str, str] = Field({})  # for format "columns" only, ours -> theirs; a.b is b within a
    template: Annotated[str | None, _null_or(prompts.TEMPLATES)] = None  # of the prompts; null: see `manner`
    rule: Annotated[str | None, _null_or(RULES)] = None  # how responses are judged; null: see `manner`
    limit: int | None = Field(None, ge=1)  # keep at most this many, the first ones after cleaning; null: all

    @model_validator(mode="after")
    def _fits_together(self) -> ProblemSet:
        def check(condition: Any, key: str, allowed: str) -> None:
            require(bool(condition), key, getattr(self, key), allowed)

        check((self.path is None) != (self.hub is None), "path", "given, or else sets.*.hub, and not both")
        if self.hub is None:
            for key in ("revision", "config"):
                check(getattr(self, key) is None, key, "left out: it belongs to a hub's set")
            check(files.kind(Path(self.path)) or (ROOT / self.path).is_dir(), "path", files.ALLOWED)
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
    good = isinstance(name, str) and re.fullmatch(r"[\w-]+", name)  # a dot would be a path within params.yaml for DVC
    require(bool(good), "sets", name, "names of letters, digits, '_' and '-'")
    require(isinstance(values, dict), f"sets.{name}", values, f"a mapping with {', '.join(ProblemSet.model_fields)}")
    require("name" not in values, f"sets.{name}.name", values.get("name"), "left out: the entry's key is its name")
    form = values.get("format")
    require(isinstance(form, str) and form in FORMATS, f"sets.{name}.format", form, f"one of {', '.join(FORMATS)}")
    defaults = {"name": name}
    if values.get("hub") is None:
        defaults["split"] = name  # a file has no splits to choose from, so this is only a label
    return read(ProblemSet, f"sets.{name}", defaults | values)


# --- reading -------------------------------------------------------------------------------------------------------


def read_rows(spec: ProblemSet) -> files.Rows:
    """(place, row) of every row of the set, unchanged; the place is what an error message names.

    Raises FileNotFoundError, or ValueError in one line, for what cannot be read.
    """
    if spec.path is None:
        return _hub_rows(spec)
    path = ROOT / spec.path
    if not path.exists():
        raise FileNotFoundError(f"sets.{spec.name}.path: {spec.path} is no file; correct it, or state hub instead")
    return files.read_path(path, spec.path, spec.split)


def _hub_rows(spec: ProblemSet) -> files.Rows:
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
    """A row before its prompt is made: the question, the normalised gold answer (None if there is none), the rest.

    notes: what was done with it that its owner should know, some of cleaning.NOTES.
    """

    where: str
    question: str
    gold: Gold | None
    rest: dict[str, Any]
    notes: tuple[str, ...] = ()


def to_problem(spec: ProblemSet, number: int, where: str, row: dict) -> Problem:
    """One foreign row, which is row `number` counted from 0.

    If the gold answer is absent, null or blank, it is None, and `clean` drops and counts the row. The columns that an
    entry states must be there; of a format's own columns only the prompt must. The format "pmd" reads whichever of our
    optional columns the row has, including its rule. Raises ValueError that names the row and the column if it cannot
    be read.
    """
    form = FORMATS[spec.format]
    columns = spec.columns or form.columns
    if spec.format == "pmd":
        columns = columns | {key: key for key in CHECKS if key in row}
    rest = {"id": f"{spec.name}-{number}", "source": spec.name, "difficulty": None}
    column = columns["ground_truth"]
    try:
        for key, column in columns.items():
            needed = key == "prompt" or bool(spec.columns)
            value = None if key == "ground_truth" else lookup(row, column, _REQUIRED if needed else None)
            absent = value in (None, "") or (isinstance(value, float) and math.isnan(value))
            if (needed and key != "ground_truth") or not absent:
                rest[key] = CHECKS[key](value)
        column = columns["prompt"]
        question = form.question(rest.pop("prompt"))
        notes = ["system"] if len(messages(lookup(row, column))) > 1 else []
        rest = manner(spec, question) | rest
        if rest["template"] != (spec.template or form.template):
            notes.append("asks")
        elif rest["template"] != "plain" and prompts.asked_rule(question):
            notes.append("asks_twice")
        column = columns["ground_truth"]
        gold, note = read_gold(lookup(row, column, None), rest["rule"], form.gold)
        if gold is None and form.solution:
            column = form.solution
            gold, note = read_gold(lookup(row, column, None), rest["rule"], form.gold)
            gold = gold if note == "worked" else None
    except KeyError as error:
        raise ValueError(
            f"{where}: no column {column!r}, the row has {', '.join(map(str, row)) or 'none'}; "
            f"correct sets.{spec.name}.{'columns' if spec.format == 'columns' else 'format'}, such as {suggestion(row)}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: column {column!r}: {error}") from error
    return Problem(where, question, gold, rest, (*notes, *([note] if note else [])))


def manner(spec: ProblemSet, question: str) -> dict[str, str]:
    """The template and the rule of a question: the entry's, or else the format's own.

    A question may say itself how to give the answer, and otherwise than the format's template would: within a box,
    where the template asks for a line `Answer:`. It is then left as it is, where the entry states no template, and
    judged by the rule that reads such an answer, where the entry states no rule.
    """
    form, asked = FORMATS[spec.format], prompts.asked_rule(question)
    contradicts = asked is not None and form.template != "plain" and asked != form.rule
    template = spec.template or ("plain" if contradicts else form.template)
    return {
        "template": template,
        "rule": spec.rule or (asked if contradicts and template == "plain" else form.rule),
    }


_REQUIRED = object()


def lookup(row: dict, column: str, default: Any = _REQUIRED) -> Any:
    """row[column], or the value that a dotted path leads to; KeyError if it is absent and there is no default."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = structure(value) if isinstance(value, str) and value.startswith("{") else value
        if not isinstance(value, dict) or part not in value:
            if default is _REQUIRED:
                raise KeyError(column)
            return default
        value = value[part]
    return value


def messages(value: Any) -> list[dict]:
    """The messages of a chat, which a table may hold as text; none if the value is no chat."""
    if isinstance(value, str) and value.startswith("[{"):
        value = structure(value)
    return value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else []


def check_prompt(value: Any) -> str:
    """A prompt is text, or a chat of one user message, which a system message may precede: its text then stands before
    the question."""
    turns = messages(value)
    roles, texts = [turn.get("role") for turn in turns], [turn.get("content") for turn in turns]
    chat = roles in (["user"], ["system", "user"]) and all(isinstance(text, str) for text in texts)
    text = "\n\n".join(text for text in texts if text.strip()) if chat and texts[-1].strip() else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"must be text or a list of one user message (and a system message before it), got {shortened(value)}"
        )
    return writable(text)


def check_label(value: Any) -> str:
    """An id or a source is text, or an integer, which becomes text: pandas writes it as 3.0 beside missing ones."""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
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
