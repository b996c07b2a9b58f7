"""Gold answers as text: every number written in one way, everything else unchanged."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

EXACT_FLOAT = 2**53
"""From here on a floating-point number cannot hold every integer."""

_NUMBER = re.compile(r"([+-]?)\s*((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_DEGREE_SIGN = re.compile(r"(?:\\,)?\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)$")
_FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$([^$]*[^$\\])\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL
)


def normalise_gold(gold: Any) -> str | None:
    """A gold answer as text; None if it is null, NaN or blank. The value of a number never changes.

    The delimiters around a formula (`$`, `\\(`, `\\[`) are removed. If the rest is a number, it is written in full,
    without leading zeros, trailing zeros after the decimal point, thousands separators, an exponent or a degree sign:
    `073` becomes 73, `1,000` and `1e3` become 1000, `3.50` becomes 3.5 and `336^\\circ` 336. Anything else, such as
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
    text = _without_delimiters(writable(str(gold)))
    return _plain_number(text) or text or None


def _without_delimiters(text: str) -> str:
    """The text without the delimiters of a formula around the whole of it."""
    text = text.strip()
    while match := _FORMULA.fullmatch(text):
        text = next(inner for inner in match.groups() if inner is not None).strip()
    return text


def _plain_number(text: str) -> str | None:
    """The number that a text is, written in full; None if it is no number."""
    plain = _DEGREE_SIGN.sub("", text).replace("{,}", ",").replace(",\\!", ",").replace("−", "-").strip()
    match = _NUMBER.fullmatch(plain)
    if match is None:
        return None
    sign, digits, exponent = match.groups()
    whole, _, part = format(Decimal(sign + digits.replace(",", "") + (exponent or "")), "f").partition(".")
    number = f"{whole}.{part}".rstrip("0").rstrip(".") if part else whole
    return "0" if number == "-0" else number


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
