r"""Answer -> the same answer in one notation, for the rule `math`: without units, currency, words and typesetting.

Gold answers and the answers of responses go through the same steps. Nothing is dropped that could change the value:
`4 million` becomes `4 \times 10^{6}`, while `4 hours 20 minutes` has two quantities and stays a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from pmd.problems.brackets import braced, depths, equals_signs, split_outside
from pmd.problems.characters import in_latex
from pmd.problems.numbers import read_number

BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(?=[\d-]))")
SPACE = r"\\[,;: ]|~|\ "
THOUSANDS = re.compile(
    rf"(?<![\w.,])\d{{1,3}}(?:(?P<mark>\{{(?:,|\\,| )\}}|,\\! ?|,|'|{SPACE})\d{{3}}(?:(?P=mark)\d{{3}})*)(?![\d/])"
)
MIXED_AFTER = re.compile(r"\s*/|,?\d")

TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf)?|math(?:rm|bf|it|sf|tt)|mbox|hbox|emph|underline|boldsymbol|bm|operatorname)"
    r"\s*\{((?:[^{}\\]|\\[^a-zA-Z{}])*)\}"
)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
SCALE = re.compile(rf"(?<=\d)\s*({'|'.join(SCALES)})s?(?![A-Za-z])", re.IGNORECASE)

STEPS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(?<![\w)])(\*\*|__)(?=\S)(.*?)(?<=\S)\1(?![\w(])", r"\2"),  # bold in Markdown
        (r"\*\*(?=\d|\()", "^"),
        (r"\*\*|`|\\(?:displaystyle|limits|euro|pounds|textdollar|bf|rm|it|tt|sf|[lL]arge)(?![A-Za-z])", ""),
        (r"\\(?:text)?color\s*\{\w+\}", ""),
        (r"(?<![A-Za-z\\])[A-Z]{1,2}(?=\\?\$\s?\d)", ""),  # A$18
        (r"\\\$|(?<!\\)\$|\\[()]|(?<!\\)\\[\[\]]", " "),  # delimiters of formulas, and dollars
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?", ""),
        (r"\\!", ""),
        (rf"(?<!\\)(?:{SPACE})|\\q?quad(?![A-Za-z])", " "),
        (r" {2,}", " "),
        (r"\\(?:[dtcsx]|nice)frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*([0-9])", r"\1{\2}"),
        (r"(?:√|\\?sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?:√|\\sqrt|(?<![A-Za-z\\])sqrt)\s*([0-9]+(?:\.[0-9]+)?|(?<=√)[a-z]|(?<=sqrt\s)[a-z])", r"\\sqrt{\1}"),
        (r"√\s*\{", r"\\sqrt{"),
        (r"(\\sqrt\s*\[[^\[\]]*\])\s*([0-9a-z])", r"\1{\2}"),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        (r"\\(?:leqslant|leq|le)(?![A-Za-z])|<=", r"\\le "),
        (r"\\(?:geqslant|geq|ge)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"!=|\\not\s*=", r"\\ne "),
        (r"\+/-", r"\\pm "),
        (r"\\ast(?![A-Za-z])|(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times "),
        (r"(?<=\d)[eE]([+-]?\d{1,3})(?![\d.])", r" \\times 10^{\1}"),
        (r"\^(-\d+)", r"^{\1}"),
        (r"(?<![A-Za-z\\])\+?(?:[Ii]nfinity|inf|oo)(?![A-Za-z])", r"\\infty "),
        (r"(?<![A-Za-z\\])(pi|sin|cos|tan|cot|csc|log|ln|exp)(?![A-Za-z])", r"\\\1 "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\varnothing(?![A-Za-z])|\b(?:the )?(?:empty|null) set\b|\\\{\s*\\\}", r"\\emptyset "),
        (r"(?<=[)\]])\s*(?:\\bigcup(?![A-Za-z])|[Uu])\s*(?=[(\[])", r"\\cup "),
        (r"\s*(?::|\\colon(?![A-Za-z]))\s*(?=\d)|(?<=\d) to (?=\d)", ":"),
        (r"(?<![A-Za-z])(?:minus|negative) +(?=[\d.\\])", "-"),
        (r"(?<=\d) an? (?=[a-z]{3,})", " per "),
        (r"(?<=[A-Za-z]) ?/ ?(?=[A-Za-z])", "/"),
        (r"\b(\d+) ?\(?base[ -](\d+)\)?", r"\1_{\2}"),
        (r"\((\d+)\)(?=_)", r"\1"),
        (r"\s*\\?%|\s*\b(?:percentage points?|percent(?:age)?|per cent|pct)\b\.?", r"\\%"),
        (r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*(?:[CF](?![A-Za-z]))?", " "),
        (r"(\d)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\b\s*\}?", r"\1 "),
        (r"\\(?:l|c|v|d)?dots[a-z]?(?![A-Za-z])|\.\.\.+", r"\\xi_{\\infty}"),
        (r",?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])", ", "),
        (r"(\d)\s+([ie])(?![A-Za-z])", r"\1\2"),
        (r"\s*\^\s*", "^"),
        (
            r"^\s*\\\{\s*[A-Za-z]\s*(?:\\in(?![A-Za-z])[^|:]*?)?(?:\\mid|\\vert|\||:)(.*)\\\}\s*$",
            r"\1",
        ),  # \{x \mid x > 3\}
        (r"(?:\\\\\s*)+$", ""),
        (r"\s+", " "),
    )
)
r"""Rewritings of notation, made in this order. Dots become a symbol, because `1, 2, \ldots` is not the list `1, 2`."""

LEAD = re.compile(
    r"(?:\s|:|(?:about|approximately|approx\.?|exactly|only|just|around|roughly|a total of|"
    r"US|USD|EUR|GBP|CHF|RMB|CNY|CAD|AUD|INR|Rs\.?|(?:[a-z]+ ){1,6}(?:is|are|equals):?|(?:final )?answer ?[:=])"
    r"(?=[\s\d])|\\approx(?![A-Za-z]))+",
    re.IGNORECASE,
)

UNITS = (
    r"(?:[cmkn]m|[mk]g|[mk][lL]|ft|in|yd|lbs?|oz|hrs?|mins?|secs?|km/h|mph|m/s|k?Hz|[kMG]B|cents?|"
    r"(?!sqrt|sinh|cosh|tanh)[a-z]{4,})"
)
"""Units that may be written without a space behind a number, and words in their place."""

GLUED_UNIT = re.compile(rf"(?<=\d)(?={UNITS}(?:\b|\^)|m\^\{{?[23]|/[a-z]{{2}})")
UNIT = re.compile(
    r"\(?/?(?:[A-Za-z]{2,}|[mgshLVNJKWCF](?![A-Za-z]))\.?(?:\^?\{?-?\d\}?)?(?:[/·][A-Za-z]+(?:\^?\{?-?\d\}?)?)*\)?[.,]?"
)
CHINESE_UNIT = re.compile(r"(?<=\d)\s?[一-鿿]{1,4}$")
CHINESE_SCALE = re.compile(r"[十百千万亿兆半多余分之到至或和以零几]")
NO_UNIT = re.compile(
    r"or|and|more|less|fewer|not?|least|most|times|plus|minus|hal(?:f|ves)|(?:third|quarter|fourth|fifth|sixth|eighth|tenth)s?|"
    r"(?:hundred|thousand|million|billion|trillion)s?|dozens?|score|gross|etc|squared|cubed|factorial|mod(?:ulo)?|div|choose|pi|sqrt|"
    r"roots?|if|when|where|for|because|to|by|than|over|is|are|was|but|without|unless|between|from|except|negative|below|[ap]m",
    re.IGNORECASE,
)
"""Words that change the value beside which they stand, so that a phrase with one of them is no unit."""

FUNCTIONS = re.compile(
    r"sqrt|sinh|cosh|tanh|arc(?:sin|cos|tan)|floor|ceil|frac|[pbv]?matrix|cases|array|operatorname|math(?:bb|cal)|align(?:ed)?"
)
"""Words of four letters and more that belong to formulas."""

BASE = re.compile(r"(?<![\w^.])(\d+)\s*\\?_(\{[^{}]*\}|\w+)")
"""The digits of a number and the base in which it is written, such as `1011_2`."""

WORD = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{4,}|(?i:yes|no|odd)(?![A-Za-z]))")
CHOICE = re.compile(
    r"(?i:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?:?\s*)?\(?\s*([A-J])\s*(?:\)\s*[.:]?|[.:](?=\s|$)|$)"
    r"(?!\s*(?:[,;(]|and\b|or\b))"
)
VARIABLE = re.compile(r"(?:\\?(?:[A-Za-z]|[A-Z]{2}|(?<=\\)[a-z]+)(?:_\w|_\{\w+\})?(?:\([A-Za-z0-9, ]+\))?[: ]*)+")
"""What may have a value: a variable, a function's value, a segment AB, or a ratio A:B."""


class Answer(NamedTuple):
    """An answer in normal form.

    text: the whole; parts: the elements of a list, or the one value; brackets: "()", "[)", … around the list, "" for
    none; unit: the words that were left out; is_text: whether it has words or breaks off, so that only the same text
    equals it; choice: the letter of a choice.
    """

    text: str
    parts: tuple[str, ...]
    brackets: str
    unit: str
    is_text: bool
    choice: str | None


def joined(parts: Iterable[str], brackets: str) -> str:
    """The elements of a list as one text."""
    opening, closing = (re.sub(r"([{}])", r"\\\1", bracket) for bracket in brackets or ("", ""))
    return opening + ", ".join(parts) + closing


@lru_cache(maxsize=4096)
def normal_form(text: str) -> Answer:
    """The answer in normal form; its time grows at worst with the square of the length."""
    text = re.sub(" +", " ", in_latex(text))  # runs of spaces would take the patterns below long
    text = _without_boxes(_without_thousands(text))
    for _ in range(2):  # \text within \text
        text = TEXT.sub(_unwrapped, text)
    if "begin{" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = text.lstrip()
    choice = CHOICE.match(text)
    text = (text[choice.end() :] if choice else "") or text
    text = SCALE.sub(lambda match: f" \\times 10^{{{SCALES[match[1].lower()]}}} ", text)
    for pattern, new in STEPS:
        text = pattern.sub(new, text)
    text = LEAD.sub("", text, count=1) if LEAD.match(text) else text
    text = text.strip().rstrip(".,;:").strip()
    text = re.sub(r"\s*\((?:[a-z]{2,}\s*)+\)$", "", text) or text  # a remark, such as 9 (apples)
    parts, brackets = _parts(text)
    units = [_split_unit(part) for part in parts]
    found = {unit for _, unit in units if unit}
    if len(found) == 1:
        parts = [value for value, _ in units]
        text = joined(parts, brackets)
    is_text = any(_is_text(part) for part in parts)
    return Answer(text, tuple(parts), brackets, " ".join(found), is_text, choice[1] if choice else None)


def _without_boxes(text: str) -> str:
    """The text with the content of each box in its place."""
    while match := BOX.search(text):
        content = braced(text, match.end()) if match[0].endswith("{") else ""
        if content is None:
            break
        end = match.end() + (len(content) + 1 if match[0].endswith("{") else 0)
        text = f"{text[: match.start()]} {content} {text[end:]}"
    return text


def _without_thousands(text: str) -> str:
    """`118\\,000`, `118 000` and `118,000` as 118000; within brackets, commas and spaces separate a list instead."""

    def joined(match: re.Match[str]) -> str:
        before = text[: match.start()].replace("\\(", "").replace("\\[", "").replace("\\)", "").replace("\\]", "")
        listed = any(before.count(one) > before.count(other) for one, other in ("()", "[]", ("\\{", "\\}")))
        mark = match["mark"]
        if (listed and mark in (",", " ")) or (mark != "," and MIXED_AFTER.match(text, match.end())):
            return match[0]
        return match[0].replace(mark, "")

    return THOUSANDS.sub(joined, text)


def _unwrapped(match: re.Match[str]) -> str:
    """The content of `\\text{…}`: a letter joins what stands before it, as a variable does; words stay apart."""
    content = match[1].strip()
    if len(content) != 1:
        return f" {match[1]} "
    return f" {content}" if content in "mgshLVNJKW" and match[1] != content else content


def _parts(text: str) -> tuple[list[str], str]:
    """The elements between top-level commas or semicolons, and the brackets around all of them, if any."""
    brackets = ""
    plain = text.replace("\\{", "{").replace("\\}", "}")
    if len(plain) > 1 and plain[0] in "([{" and plain[-1] in ")]}" and _closes_at_end(plain):
        opening, closing = (2 if text.startswith("\\") else 1), (2 if text.endswith("\\}") else 1)
        inner = text[opening:-closing]
        if len(split_outside(inner, ",;")) > 1 or opening == 2:
            brackets, text = plain[0] + plain[-1] if text[0] != "{" else "", inner  # a brace alone is not printed
    parts = [part.strip() for part in split_outside(text, ",;")]
    return [part for part in parts if part] if len(parts) > 1 else parts, brackets


def _closes_at_end(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    found = depths(text)
    return found[-1] == 0 and 0 not in found[:-1]


def _split_unit(part: str) -> tuple[str, str]:
    """A quantity as its number and its unit; the unit is "" if there is none, or if the words change the value."""
    if (chinese := CHINESE_UNIT.search(part)) and not CHINESE_SCALE.search(part):
        return part[: chinese.start()], chinese[0].strip()
    tokens = re.sub(r"(?<=[A-Za-z]) ?\\cdot ?(?=[A-Za-z])", "·", GLUED_UNIT.sub(" ", part)).split(" ")
    end = len(tokens)
    while end > 1 and UNIT.fullmatch(tokens[end - 1]):
        end -= 1
    words = [re.sub(r"[^A-Za-z]", "", token) for token in tokens[end:]]
    head = " ".join(tokens[:end])
    if end == len(tokens) or not head or head[-1] not in "0123456789})i%" or any(map(NO_UNIT.fullmatch, words)):
        return part, ""
    if (head.endswith("i") and not head.endswith("\\pi")) or re.search(r"\d [A-Za-z]{2,}", head):
        return part, ""  # i is the imaginary unit; 4 hours 20 minutes are two quantities
    return head, " ".join(words)


def _is_text(part: str) -> bool:
    """Whether a part is no formula: it has words, a number with its base, a ratio of more than two numbers, or digits
    that only a space separates."""
    if not all(map(FUNCTIONS.fullmatch, WORD.findall(part))) or "'" in part or BASE.search(part):
        return True
    return read_number(part) is None and re.search(r"(?<![_\d])\d+\s+\.?\d|\d:\d+:\d", part) is not None


def value_of_equation(part: str) -> str:
    """What follows the last equals sign outside brackets, or the whole part if there is none."""
    places = equals_signs(part)
    return part[places[-1] + 1 :].strip() if places else part


def variable_of(part: str) -> str | None:
    """The variable to which a part such as `x_1 = 3` gives a value; None if it is no such assignment."""
    places = equals_signs(part)
    name = part[: places[0]].strip() if len(places) == 1 else ""
    return name if VARIABLE.fullmatch(name) else None
