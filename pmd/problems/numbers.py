"""Numbers as people write them, read exactly: `1,250`, `-0.5`, `3/4`, `1 1/4`, `3e6`, `1.1 \\times 10^5`, `28\\%`."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

LONGEST = 60
"""Numbers with more characters are not read: the time that exact arithmetic takes grows faster than their length."""

_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_POWER = r"10\s*\^\s*(?:([+-]?\d)|\{\s*([+-]?\d{1,3})\s*\}|\(\s*([+-]?\d{1,3})\s*\)|([+-]?\d{2,3}))"
_SCIENTIFIC = re.compile(rf"(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?{_POWER}")
_EXPONENT = re.compile(rf"({_DECIMAL})(?:[eE]([+-]?\d{{1,3}}))?")
_SLASH = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})")
_FRACTION = re.compile(rf"\\frac\s*\{{\s*([+-]?\s*{_DECIMAL})\s*\}}\s*\{{\s*({_DECIMAL})\s*\}}")
_MIXED = re.compile(r"(\d+)(?:\s+(\d+)\s*/\s*(\d+)|\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\})")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_SIGN = re.compile(r"[+-]\s*")


class Number(NamedTuple):
    """An exact value, and how it was written: with a decimal point or a power of ten, and with a percent sign."""

    value: Fraction
    decimal: bool
    percent: bool


def read_number(text: str) -> Number | None:
    """The number that a text is, or None if it is anything else or longer than LONGEST characters."""
    if len(text) > LONGEST or not text.isascii():
        return None
    text = text.strip()
    percent = text.endswith("%")
    if percent:
        text = text[:-1].removesuffix("\\").strip()
    while len(text) > 1 and (text[0], text[-1]) == ("{", "}") and "}" not in text[1:-1]:
        text = text[1:-1].strip()
    sign = _SIGN.match(text)
    value = _unsigned(text[sign.end() :] if sign else text)
    if value is None:
        return None
    negative = sign is not None and text.startswith("-")
    return Number(-value if negative else value, "." in text or "e" in text.lower().replace("times", ""), percent)


def _unsigned(text: str) -> Fraction | None:
    """The value of a number without a sign."""
    if match := _EXPONENT.fullmatch(text):
        return Fraction(match[1]) * Fraction(10) ** int(match[2] or 0)
    if match := _SCIENTIFIC.fullmatch(text):
        return Fraction(match[1] or 1) * Fraction(10) ** int(next(filter(None, match.groups()[1:])))
    if match := _SLASH.fullmatch(text) or _FRACTION.fullmatch(text):
        above, below = (Fraction(part.replace(" ", "")) for part in match.groups())
        return above / below if below else None
    if match := _MIXED.fullmatch(text):
        whole, above, below = (int(part) for part in match.groups() if part is not None)
        return whole + Fraction(above, below) if 0 < above < below else None
    if match := _REPEATING.fullmatch(text):
        whole, before, period = match.groups()
        return Fraction(f"{whole or 0}.{before or 0}") + Fraction(
            int(period), (10 ** len(period) - 1) * 10 ** len(before)
        )
    return None


def same_number(gold: Number, answer: Number, digits: int) -> bool:
    """Whether two numbers are equal.

    A decimal number may be the other one rounded to `digits` decimal places, as long as that is also a small relative
    difference: 0.333333 is 1/3, but 1.6e-19 is not 9.1e-31. A percentage equals a number without the sign that is
    either its value or its figure (28 % is 0.28 and 28), because a gold answer often leaves the sign to the question.
    """
    scales = (1, 100) if gold.percent != answer.percent else (1,)
    plain, other = (answer, gold) if gold.percent else (gold, answer)
    decimal = gold.decimal or answer.decimal
    return any(_same_value(plain.value * scale, other.value, decimal, digits) for scale in scales)


def _same_value(one: Fraction, two: Fraction, decimal: bool, digits: int) -> bool:
    if one == two or not decimal:
        return one == two
    return round(one, digits) == round(two, digits) and close(one, two, digits)


def close(one: float | Fraction, two: float | Fraction, digits: int) -> bool:
    """Whether the relative difference is at most ten units of the last of `digits` decimal places."""
    return abs(one - two) <= Fraction(10) ** (1 - digits) * max(abs(one), abs(two))


# --- gold answers -----------------------------------------------------------------------------------------------------

_WRITTEN = re.compile(r"([+-]?)\s*((?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")
_DEGREE_SIGN = re.compile(r"(?:\\,)?\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)$")


def plain_number(text: str) -> str | None:
    """The number that a text is, written in full, however long it is; None if it is no number.

    Leading zeros, trailing zeros after the decimal point, thousands separators, an exponent and a degree sign go.
    """
    plain = _DEGREE_SIGN.sub("", text).replace("{,}", ",").replace(",\\!", ",").replace("−", "-").strip()
    match = _WRITTEN.fullmatch(plain)
    if match is None:
        return None
    sign, digits, exponent = match.groups()
    whole, _, part = format(Decimal(sign + digits.replace(",", "") + (exponent or "")), "f").partition(".")
    number = f"{whole}.{part}".rstrip("0").rstrip(".") if part else whole
    return "0" if number == "-0" else number
