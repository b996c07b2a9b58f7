"""Gold answers as text, each in the notation that its rule compares; several where any of them is right."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from pmd.problems.boxes import boxed, last_box
from pmd.problems.numbers import plain_number

Gold = str | list[str]
"""One gold answer, or several of which any is right."""

EXACT_FLOAT = 2**53
"""From here on a floating-point number cannot hold every integer."""

_FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$([^$]*[^$\\])\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL
)
_QUOTED_LIST = re.compile(r"""\[\s*(["']).*\1\s*,?\s*\]""", re.DOTALL)
_HASHES = re.compile(r"(?:^|\n)\s*####[ \t]*(\S[^\n]*)")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
LONG_GOLD = 12
"""A gold of so many words is a worked solution, whose last words need not be its answer."""

_REPEATABLE = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")


def same_gold(one: Gold, two: Gold, rule: str) -> bool:
    """Whether two normalised golds are one gold: the same text or, unless the rule is `exact`, the same number.

    Several answers are the same as others if each of them is among the others and the reverse.
    """
    if isinstance(one, str) and isinstance(two, str):
        return one == two or (rule != "exact" and None is not plain_number(one) == plain_number(two))
    ours, theirs = ([gold] if isinstance(gold, str) else gold for gold in (one, two))
    pairs = ((ours, theirs), (theirs, ours))
    return all(any(same_gold(a, b, rule) for b in others) for some, others in pairs for a in some)


def read_gold(value: Any, rule: str, find: Callable[[str], str | None]) -> tuple[Gold | None, str | None]:
    """A column's content as the gold, None if it has none, and a note: "worked" if it was taken from a worked solution,
    "unboxed" if it is one that does not say which part is the answer, else None.

    find: takes the answer from a text, as the format has it. A list, also as the text `["a", "b"]`, holds answers of
    which any is right. ValueError as `normalise_gold`.
    """
    found: list[str] = []
    note = None
    for gold in _alternatives(value, rule):
        if isinstance(gold, str):
            gold, about = _answer(find(gold), rule)
            note = note or about
        text = normalise_gold(gold, rule)
        if text is not None and not any(same_gold(text, other, rule) for other in found):
            found.append(text)
    return (found[0] if len(found) == 1 else found or None), note


def _alternatives(value: Any, rule: str) -> list[Any]:
    """The answers of a list, of a text that is the list of quoted texts, or the one answer."""
    if isinstance(value, str) and rule != "exact" and _QUOTED_LIST.fullmatch(value.strip()):
        value = structure(value)
    return value if isinstance(value, list) else [value]


def structure(text: str) -> Any:
    """The list or object that a text is, as JSON or as Python prints it; the text itself if it is none."""
    for load in (json.loads, ast.literal_eval):
        try:
            return load(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _answer(text: str | None, rule: str) -> tuple[str | None, str | None]:
    """The answer of a worked solution with its note; any other text as it is."""
    prose = len(_WORD.findall(text)) if text else 0
    if not text or (rule == "exact" and prose < 2):
        return text, None
    if last_box(text) >= 0 and (answer := boxed(text)):
        return answer, "worked" if text.strip() != f"\\boxed{{{answer}}}" else None
    if hashes := _HASHES.findall(text):
        return hashes[-1], "worked" if prose or "\n" in text.strip() else None
    if rule != "exact" and (prose >= LONG_GOLD or (prose >= 6 and "\n" in text.strip())):
        return None, "unboxed"
    return text, None


def normalise_gold(gold: Any, rule: str = "math") -> str | None:
    """A gold answer as text for the rule that judges by it; None if it is null, NaN or blank.

    Under `exact` the text stays as it is, but for spaces around it: 01234 may be a code. Under the other rules the
    delimiters around a formula (`$`, `\\(`, `\\[`) are removed. Under `math`, if the rest is a number, it is written in
    full, without leading zeros, trailing zeros after the decimal point, thousands separators, an exponent or a degree
    sign: `073` becomes 73, `1,000` and `1e3` become 1000, `3.50` becomes 3.5 and `336^\\circ` 336. Under `dapo` the
    zeros and the exponent stay, because an answer may repeat them; the comparison takes both. Anything else, such as
    LaTeX, stays as it is. Integers of any length are exact. Raises ValueError for a truth value, a list, infinity, or a
    floating-point number that is so large that it may have lost digits.
    """
    if isinstance(gold, float | Decimal) and math.isnan(gold):
        return None
    if gold is None:
        return None
    if isinstance(gold, float) and abs(gold) >= EXACT_FLOAT:
        raise ValueError(f"{gold!r} is a floating-point number that may have lost digits; store it as text")
    if isinstance(gold, bool) or not isinstance(gold, str | int | float | Decimal):
        raise ValueError(f"must be text or a number, got {shortened(gold)}")
    text = writable(str(gold)).strip()
    if rule == "exact":
        return text or None
    text = _without_delimiters(text)
    if rule == "dapo" and isinstance(gold, str) and _REPEATABLE.fullmatch(text):
        return text
    return plain_number(text) or text or None


def _without_delimiters(text: str) -> str:
    """The text without the delimiters of a formula around the whole of it."""
    text = text.strip()
    while match := _FORMULA.fullmatch(text):
        text = next(inner for inner in match.groups() if inner is not None).strip()
    return text


def writable(text: str) -> str:
    """The text itself; ValueError if it cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half of a surrogate pair at {error.start}, which no file can hold") from error
    return text


def shortened(value: Any) -> str:
    """A value as an error message shows it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
