"""Gold answers as text, each in the notation that its rule compares."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from pmd.problems.numbers import plain_number

EXACT_FLOAT = 2**53
"""From here on a floating-point number cannot hold every integer."""

_FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$([^$]*[^$\\])\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL
)


_REPEATABLE = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")


def same_gold(one: str, two: str, rule: str) -> bool:
    """Whether two normalised golds are one gold: the same text or, unless the rule is `exact`, the same number."""
    return one == two or (rule != "exact" and None is not plain_number(one) == plain_number(two))


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
