"""(gold, answer) -> whether they are the same answer: each rule's comparison, in a quick and a full version.

The quick version (`quick_*`) decides from the strings alone; where they do not suffice, it returns None. The full
version (`equal_*`) decides every pair, but no comparison of formulas is sure to end, so it runs only in worker
processes with limits (`pmd.problems.limited_pool`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

INTEGER = re.compile(r"-?[0-9]+")
GROUPED_INTEGER = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+|-?[0-9]+")

# --- exact: the embedded task -----------------------------------------------------------------------------------------


def equal_exact(gold: str, answer: str) -> bool:
    """The same string."""
    return gold == answer


# --- dapo: equal in Minerva's normal form (arXiv:2206.14858), as DAPO (arXiv:2503.14476) has it -----------------------

REPLACED = {
    "an ": "",
    "a ": "",
    ".$": "$",
    "\\$": "",
    "\\ ": "",
    " ": "",
    "mbox": "text",
    ",\\text{and}": ",",
    "\\text{and}": ",",
    "\\text{m}": "\\text{}",
}
"""Replacements, made in this order: articles, full stops, escaped dollars, spaces, conjunctions and metres."""

REMOVED = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points"),
    *("feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students"),
    *("childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3"),
    *("\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)
"""Units and spacing commands, removed in this order."""

REWRITTEN = (
    (re.compile(r".*?\$(.*?)\$.*"), r"$\1$"),  # a formula within a sentence stands for the sentence
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),  # \frac12 is \frac{1}{2}
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),  # \sqrt2 is \sqrt{2}
)


def minerva_normal_form(answer: str) -> str:
    """A final answer without units, spacing and other differences of writing that do not change its meaning."""
    answer = answer.rpartition("=")[2]
    for old, new in REPLACED.items():
        answer = answer.replace(old, new)
    for unit in REMOVED:
        answer = answer.replace(unit, "")
    for pattern, new in REWRITTEN:
        answer = pattern.sub(new, answer)
    answer = answer.replace("$", "")
    digits = answer.replace(",", "")
    return digits if digits.isdigit() else answer.strip()


def quick_dapo(gold: str, answer: str) -> bool | None:
    """Equal strings are the same answer. Different integers without commas are not, because the normal form leaves them
    unchanged: 007 is not 7.
    """
    return gold == answer or (False if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer) else None)


def equal_dapo(gold: str, answer: str) -> bool:
    """The same string in normal form."""
    return minerva_normal_form(gold) == minerva_normal_form(answer)


# --- math: equal according to math-verify -----------------------------------------------------------------------------

DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
PERCENT = re.compile(r"\s*(?:percent(?:age)?|pct)\b", re.IGNORECASE)
IMPLICIT_PRODUCT = re.compile(r"(?<![\w}^_.])(\d+)\((?=\d+\))")  # 1000(26)


def quick_math(gold: str, answer: str) -> bool | None:
    """Equal strings are the same answer, and integers are compared by their value: 1,000 is 1000 and 007 is 7."""
    if gold == answer:
        return True
    if GROUPED_INTEGER.fullmatch(gold) and GROUPED_INTEGER.fullmatch(answer):
        return _plain_integer(gold) == _plain_integer(answer)
    return None


def _plain_integer(integer: str) -> str:
    """An integer without commas, leading zeros and the sign of zero.

    It stays a string, because the time that `int()` takes grows with the square of the length.
    """
    digits = integer.lstrip("-").replace(",", "").lstrip("0") or "0"
    return "-" + digits if integer.startswith("-") and digits != "0" else digits


def equal_math(
    gold: str,
    answer: str,
    extract: Sequence[str] = ("latex", "expr"),
    digits: int = 6,
    relations: bool = True,
    strict: bool = True,
) -> bool:
    """Whether math-verify finds the two answers equal.

    extract: the notations to read, of "latex" and "expr"; digits: decimal places to which floats are rounded;
    relations: whether a set equals the inequality that describes it; strict: whether the names of variables matter.
    math-verify's own time limits are off, because they work in the main thread only. Those of the worker hold instead.
    """
    import sympy.core.random
    from math_verify import verify as same

    sympy.core.random.seed(0)  # sympy compares at random points, and no verdict may depend on the comparisons before it
    return same(
        _parsed(gold, tuple(extract)),
        _parsed(answer, tuple(extract)),
        float_rounding=digits,
        allow_set_relation_comp=relations,
        strict=strict,
        timeout_seconds=None,
    )


@lru_cache(maxsize=1024)  # reading takes most of a comparison's time, and a gold is read again for every response to it
def _parsed(text: str, extract: tuple[str, ...]) -> list:
    """What math-verify reads in an answer: the formulas, and the text itself; empty if it finds nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [{"latex": LatexExtractionConfig, "expr": ExprExtractionConfig}[name]() for name in extract]
    if "latex" not in extract or DELIMITER.search(text.replace("\\$", "")):
        return parse(text, configs, parsing_timeout=None)
    text = IMPLICIT_PRODUCT.sub(r"\1\\cdot (", PERCENT.sub(r"\\%", text.replace("\\$", "")))
    return parse(f"${text}$", configs, parsing_timeout=None) or parse(text, configs, parsing_timeout=None)
