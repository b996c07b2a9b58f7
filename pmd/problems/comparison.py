"""(gold, answer) -> whether they are the same answer: each rule's comparison, in a quick and a full version.

The quick version (`quick_*`) decides from the strings alone; where they do not suffice, it returns None. The full
version (`equal_*`) decides every pair, but no comparison of formulas is sure to end, so it runs only in worker
processes with limits (`pmd.problems.limited_pool`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pmd.problems.normal_form import BASE, Answer, joined, normal_form, value_of_equation, variable_of
from pmd.problems.numbers import Number, close, plain_number, read_number, same_number

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
    unchanged: 007 is not 7. Only a gold answer with leading zeros may be given without them.
    """
    if gold == answer:
        return True
    return _plain_integer(gold) == answer if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer) else None


def equal_dapo(gold: str, answer: str) -> bool:
    """The same string in normal form. A gold answer that is a number may be given as written or written in full."""
    written = {minerva_normal_form(gold), minerva_normal_form(plain_number(gold) or gold)}
    return minerva_normal_form(answer) in written


# --- math: equal numbers, equal texts, or equal formulas according to math-verify -------------------------------------

QUICK_LENGTH = 2500
"""Longer answers are compared by the workers."""

IMPLICIT_PRODUCT = re.compile(r"(?<![\w}^_.])(\d+)\((?=\d+\))")  # 1000(26)
DECIMAL_COMMA = re.compile(r"(-?\d+), ?(\d{1,2})")
LETTER_UNIT = re.compile(r"-?[\d.]*\d[A-Za-z]")
NOT_COMPARED = re.compile(r'(?<!\d)[\s.,;:{}\\"“”]+|[\s.,;:{}\\"“”]+(?!\d)')
BETWEEN_DIGITS = re.compile(r"(?<=\d)[\s,;:{}\\]+(?=\d)")
INEQUALITY = re.compile(
    r"(?:(?P<low>[^<>]+?)\s*(?P<above><|\\le ))?\s*[A-Za-z]\s*(?P<sign>[<>]|\\[lg]e )\s*(?P<end>[^<>]+)"
)


def quick_math(gold: str, answer: str, digits: int = 6) -> bool | None:
    """What the normal forms decide: numbers, lists of numbers, texts and choices; None if a formula is to be compared.

    Integers of any length are compared by their value: 1,000 is 1000 and 007 is 7.
    """
    if gold == answer:
        return True
    if GROUPED_INTEGER.fullmatch(gold) and GROUPED_INTEGER.fullmatch(answer):
        return _plain_integer(gold) == _plain_integer(answer)
    if max(len(gold), len(answer)) > QUICK_LENGTH:
        return None
    return _decided(*_aligned(normal_form(gold), normal_form(answer)), digits)


def _plain_integer(integer: str) -> str:
    """An integer without commas, leading zeros and the sign of zero.

    It stays a string, because the time that `int()` takes grows with the square of the length.
    """
    digits = integer.lstrip("-").replace(",", "").lstrip("0") or "0"
    return "-" + digits if integer.startswith("-") and digits != "0" else digits


def _aligned(gold: Answer, answer: Answer) -> tuple[Answer, Answer]:
    """Both answers with or both without the variables that the values belong to: `x = 5` is 5 where one has no `x`.

    A gold that states its base, such as `1011_2`, may be given by its digits, because the question asks for that base.
    Digits with a base are not the same digits without: `4_2` is not 4.
    """
    if BASE.search(gold.text) and not BASE.search(answer.text):
        gold = normal_form(BASE.sub(r"\1", gold.text))
    names = [{variable_of(part) for part in one.parts} for one in (gold, answer)]
    same_variable = names[0] == names[1] and len(names[0]) == 1 and None not in names[0]
    equations = ["=" in gold.text, "=" in answer.text]
    if same_variable or (equations[0] and not equations[1] and len(names[0]) == 1 and None not in names[0]):
        gold = _values_alone(gold)
    if same_variable or (equations[1] and not equations[0]):
        answer = _values_alone(answer)
    if ("\\cup" in gold.text) != ("\\cup" in answer.text):
        gold, answer = _union(gold), _union(answer)
    return gold, answer


def _union(answer: Answer) -> Answer:
    """A list of inequalities, such as `x < -1, 2 < x \\le 3`, as the union of intervals."""
    found = [INEQUALITY.fullmatch(part) for part in answer.parts]
    return normal_form(" \\cup ".join(map(_interval, found))) if None not in found else answer


def _interval(inequality: re.Match[str]) -> str:
    low, above, sign, end = inequality.group("low", "above", "sign", "end")
    if ">" in sign or "g" in sign:
        return ("(" if sign == ">" else "[") + end + r", \infty)"
    opening = "[" if above and above != "<" else "("
    return opening + (low or r"-\infty") + ", " + end + (")" if sign == "<" else "]")


def _values_alone(answer: Answer) -> Answer:
    parts = tuple(value_of_equation(part) for part in answer.parts)
    return answer._replace(parts=parts, text=joined(parts, answer.brackets))


def _decided(gold: Answer, answer: Answer, digits: int) -> bool | None:
    """Whether the answers are the same, as far as their texts and numbers show it."""
    if gold.choice and answer.choice:
        return gold.choice == answer.choice
    if gold.text == answer.text or (gold.parts, gold.brackets) == (answer.parts, answer.brackets):
        return True
    if gold.is_text or answer.is_text:
        return _words(gold.text) == _words(answer.text) != ""
    ours = [read_number(_without_letter(part, answer.unit)) for part in gold.parts]
    letters = "mgshLlV" if None not in ours else ""
    theirs = [read_number(_without_letter(part, letters + gold.unit)) for part in answer.parts]
    if len(gold.parts) != len(answer.parts):
        ours, theirs = _decimal_comma(gold, ours), _decimal_comma(answer, theirs)
    if None in ours or None in theirs:
        return None
    ordered = {gold.brackets, answer.brackets} - {"", "{}"}
    if not ordered:
        return _each_in(ours, theirs, digits) and _each_in(theirs, ours, digits)
    interval = len(ours) == 2 and ordered != {"()"}
    if "{}" in (gold.brackets, answer.brackets) or (interval and "" in (gold.brackets, answer.brackets)):
        return False
    same_length = len(ours) == len(theirs) and len(ordered) == 1
    return same_length and all(same_number(one, two, digits) for one, two in zip(ours, theirs, strict=True))


def _words(text: str) -> str:
    """A text without what does not tell it from another: spaces, punctuation, capitals and a plural at the end."""
    return NOT_COMPARED.sub("", BETWEEN_DIGITS.sub(" ", text)).casefold().removesuffix("s")


def _without_letter(part: str, units: str) -> str:
    """A number without the one letter of its unit, such as 12m, if that letter is among the units."""
    return part[:-1] if LETTER_UNIT.fullmatch(part) and part[-1] in units else part


def _decimal_comma(answer: Answer, numbers: list[Number | None]) -> list[Number | None]:
    """`1,22` as 1.22."""
    found = DECIMAL_COMMA.fullmatch(answer.text)
    return [read_number(f"{found[1]}.{found[2]}")] if found else numbers


def _each_in(some: list[Number], others: list[Number], digits: int) -> bool:
    """Whether every number is the same as one of the others."""
    return all(any(same_number(other, one, digits) for other in others) for one in some)


def equal_math(gold: str, answer: str, digits: int = 6, relations: bool = True, strict: bool = True) -> bool:
    """Whether the two answers are the same: what `quick_math` decides, and for formulas what math-verify finds.

    digits: decimal places to which floats are rounded; relations: whether a set equals the inequality that describes
    it; strict: whether the names of variables matter. A formula must be readable from its beginning to its end.
    math-verify's own time limits are off, because they work in the main thread only. Those of the worker hold instead.
    """
    import sympy.core.random
    from math_verify import verify as same

    one, two = _aligned(normal_form(gold), normal_form(answer))
    decided = gold == answer or _decided(one, two, digits)
    if decided is not None:
        return decided
    ours, theirs = _parsed(one.text), _parsed(two.text)
    if ours is None or theirs is None:
        return False
    sympy.core.random.seed(0)  # sympy compares at random points, and no verdict may depend on the comparisons before it
    found = same(
        ours,
        theirs,
        float_rounding=digits,
        allow_set_relation_comp=relations,
        strict=strict,
        timeout_seconds=None,
    )
    return found and not _far_apart(ours, theirs, digits)


@lru_cache(maxsize=1024)  # reading takes most of a comparison's time, and a gold is read again for every response to it
def _parsed(text: str) -> Any:
    """The whole text as a sympy object; None if it cannot be read from its beginning to its end.

    math-verify's own `parse` takes a part where it cannot read the whole: 4 of `4+` and of `\\neq 4`.
    """
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
    from math_verify.parser import parse_latex_cached
    from sympy import I

    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    text = IMPLICIT_PRODUCT.sub(r"\1\\cdot (", text.removesuffix("\\%"))
    try:
        found = parse_latex_cached(normalize_latex(text, config))
        return found.subs(
            {symbol: I for symbol in found.free_symbols if symbol.name == "i"}
        )  # the parser's is a letter
    except Exception:  # whatever the parser says, it could not read the text
        return None


def _far_apart(one: Any, two: Any, digits: int) -> bool:
    """Whether numbers that math-verify calls equal differ by more than rounding: it compares absolute differences."""
    ours, theirs = _values(one), _values(two)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    pairs = zip(sorted(ours, key=_real_first), sorted(theirs, key=_real_first), strict=True)
    return not all(a == b or close(a, b, digits) or max(abs(a), abs(b)) < 1e-100 for a, b in pairs)


def _real_first(value: complex) -> tuple[float, float]:
    return value.real, value.imag


def _values(expression: Any) -> list[complex] | None:
    """The numbers that an expression, a set or a tuple consists of; None if it has variables or no finite value."""
    from sympy import Eq, FiniteSet, Interval, Tuple

    if isinstance(expression, Eq) and expression.lhs.is_Symbol:
        expression = expression.rhs
    elements = expression.args if isinstance(expression, FiniteSet | Tuple) else [expression]
    if isinstance(expression, Interval):
        elements = [expression.start, expression.end]
    try:
        return [complex(element.evalf(15)) for element in elements]
    except Exception:  # anything that is no number, such as a matrix or infinity
        return None
