"""Which entry of `sets` would load a row that the stated format does not fit."""

from __future__ import annotations

from typing import Any

QUESTIONS = ("question", "problem", "prompt", "query", "input", "instruction", "text")
ANSWERS = ("ground_truth", "answer", "final_answer", "expected_answer", "gold", "target", "label", "solution", "output")


def suggestion(row: dict[str, Any]) -> str:
    """The keys of an entry, as params.yaml has them, by the names of a row's columns."""
    names = {str(name) for name in row}
    if {"prompt", "reward_model"} <= names:
        return f"format: {'dapo' if 'Remember to put your answer on its own line' in str(row['prompt']) else 'verl'}"
    if {"question", "answer"} <= names and "####" in str(row["answer"]):
        return "format: gsm8k"
    if {"problem", "answer"} <= names:
        return f"format: {'math500' if names & {'unique_id', 'level', 'subject'} else 'aime'}"
    if {"problem", "solution"} <= names:
        return "format: math"
    if {"prompt", "ground_truth"} <= names:
        return "format: pmd"
    prompt, gold = (_first(wanted, row) for wanted in (QUESTIONS, ANSWERS))
    return f"format: columns, columns: {{prompt: {prompt or 'THEIRS'}, ground_truth: {gold or 'THEIRS'}}}"


def _first(wanted: tuple[str, ...], row: dict[str, Any]) -> str | None:
    """The first column with one of these names, in upper or lower case; the earlier names are preferred."""
    known = {str(name).strip().lower(): str(name) for name in reversed(row)}
    return next((known[name] for name in wanted if name in known), None)
