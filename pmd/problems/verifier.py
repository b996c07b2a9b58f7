"""Response -> extracted answer -> verdict and reward. Text from a model is only ever compared, never executed.

Three rules behind one interface: `exact` for the embedded task, `dapo` for the paper's runs, `math` for everything
written as mathematics. Extraction reads a bounded tail in linear time and runs here. What equal strings and integers
leave undecided is compared in killable workers (`pmd.problems.limited_pool`), because no comparison of formulas is
sure to end.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from pmd.problems.limited_pool import Killed, Pool
from pmd.processes import workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """How answers are found and compared; a right one earns 1.0, any other `wrong`.

    `quick` decides (gold, answer) from the strings, or returns None; `equal` then decides, in a worker.
    """

    extract: Callable[[str], str | None]
    quick: Callable[[str, str], bool | None]
    equal: Callable[..., bool]
    wrong: float


@dataclass(frozen=True)
class Verdict:
    """What became of one response; `killed` if comparing it broke a limit, which counts as wrong."""

    answer: str | None
    correct: bool
    reward: float
    killed: bool


def verify(
    rules: Sequence[str], responses: Sequence[str], golds: Sequence[str], ended: Sequence[bool]
) -> list[Verdict]:
    """Judge each response by its rule against its gold; one that did not end by itself is wrong and has no answer.

    ValueError naming the first unknown rule, or if the lengths differ.
    """
    _known(rules)
    answers = [
        RULES[rule].extract(response) if end else None
        for rule, response, end in zip(rules, responses, ended, strict=True)
    ]
    cases = list(zip(rules, golds, answers, strict=True))
    decided = _decide({case for case in cases if case[2] is not None})
    verdicts = []
    for rule, gold, answer in cases:
        found = decided.get((rule, gold, answer), False)
        correct = found is True
        verdicts.append(Verdict(answer, correct, 1.0 if correct else RULES[rule].wrong, isinstance(found, Killed)))
    return verdicts


def equivalent(rule: str, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    """Are the two answers of each pair (gold first) the same under `rule`? A comparison that is killed says no."""
    _known([rule])
    decided = _decide({(rule, gold, answer) for gold, answer in pairs})
    return [decided[rule, gold, answer] is True for gold, answer in pairs]


def compare(rule: str, gold: str, answer: str, settings: dict[str, Any] | None = None) -> bool:
    """A rule's comparison, under settings that differ from its own: what the workers run."""
    return RULES[rule].equal(gold, answer, **(settings or {}))


def _known(rules: Sequence[str]) -> None:
    for rule in rules:
        if rule not in RULES:
            raise ValueError(f"rule: unknown rule {rule!r}, must be one of {', '.join(RULES)}")


def _decide(cases: set[tuple[str, str, str]]) -> dict[tuple[str, str, str], bool | Killed]:
    """Decide each (rule, gold, answer) once: from the strings where that suffices, else in the pool."""
    decided: dict[tuple[str, str, str], bool | Killed] = {}
    for case in cases:
        rule, gold, answer = case
        quick = RULES[rule].quick(gold, answer)
        if quick is not None:
            decided[case] = quick
    rest = sorted(cases - decided.keys())
    for case, found in zip(rest, _pool().map(rest) if rest else [], strict=True):
        decided[case] = found
        if isinstance(found, Killed):
            log.warning("killed after %s, counts as wrong: rule %s, gold %.80r, answer %.80r", found.reason, *case)
    return decided


@cache
def _pool() -> Pool:
    return Pool(f"{__name__}:compare", workers(1, "cpu"), prepare=f"{__name__}:prepare")


def prepare() -> None:
    """Load what comparisons need, before a worker's clock runs."""
    logging.disable(logging.CRITICAL)
    assert _equal_math("x^2", "x\\cdot x"), "math-verify does not work"


# exact: the embedded task


def _extract_exact(response: str) -> str | None:
    """The text after the last `=` of a response (all of it where there is none); None if that is blank."""
    return response.rpartition("=")[2].strip() or None


def _same(gold: str, answer: str) -> bool:
    return gold == answer


# dapo: the grader of the paper's runs (DAPO, arXiv:2503.14476; its normalisation is that of Minerva, arXiv:2206.14858)

DAPO_TAIL = 300
"""Only so many last characters of a response count."""

ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)

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
"""In this order: articles, full stops, escaped dollars, spaces, conjunctions and metres."""

REMOVED = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "\\ldots", "sue", "points"),
    *("feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students"),
    *("childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3"),
    *("\\text{\n}", "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots"),
)
"""Units and spacing, in this order."""

REWRITTEN = (
    (re.compile(r".*?\$(.*?)\$.*"), r"$\1$"),  # a formula within a sentence stands for the sentence
    (re.compile(r"\\text\{(.*?)\}"), r"\1"),
    (re.compile(r"\\textbf\{(.*?)\}"), r"\1"),
    (re.compile(r"\\overline\{(.*?)\}"), r"\1"),
    (re.compile(r"\\boxed\{(.*)\}"), r"\1"),
    (re.compile(r"frac([^{])(.)"), r"frac{\1}{\2}"),  # \frac12 is \frac{1}{2}
    (re.compile(r"sqrt([^{])"), r"sqrt{\1}"),  # \sqrt2 is \sqrt{2}
)


def _extract_dapo(response: str) -> str | None:
    """The line after the last `Answer:`, any case, within the last 300 characters."""
    found = ANSWER_LINE.findall(response[-DAPO_TAIL:])
    return found[-1].strip() or None if found else None


def _normal(answer: str) -> str:
    """Minerva's normal form of a final answer."""
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


def _quick_dapo(gold: str, answer: str) -> bool | None:
    """Equal strings; integers without commas, which the normal form leaves as they are (007 is not 7)."""
    return gold == answer or (False if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer) else None)


def _equal_dapo(gold: str, answer: str) -> bool:
    return _normal(gold) == _normal(answer)


# math: math-verify on the last boxed or final expression

TAIL = 2000
"""A box holds at most so many characters; where there is none, only so many last characters of a response count."""

BOXES = 8
"""At most so many boxes make one answer."""

INTEGER = re.compile(r"-?[0-9]+")
GROUPED = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+|-?[0-9]+")
NUMBER = re.compile(r"(?:^|[\s=($€£])(-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?(?:\s?\\?%)?)(?![\w}^/])")
COUNTED = re.compile(r"(-?[0-9][0-9,./]*[0-9]%?|-?[0-9]%?)[,;:.]?\s+(?!and\b)[A-Za-z]{3,}[^0-9()^=+*/\\]*")
SPAN = re.compile(
    r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\n\\])+)\$|\\\[((?:[^\\]|\\[^\[\]])+)\\\]|\\\(((?:[^\\\n]|\\[^()\n])+)\\\)"
)
JOINT = re.compile(r"(?:[\s$,;&()\[\]\\]|\\text\{\s*(?:and|or)\s*\}|and|or|\\quad)*")
ANCHOR = re.compile(r"answer(?: is|:)[ \t*:]*", re.IGNORECASE)
CLOSING = re.compile(r"\.? I hope it is correct", re.IGNORECASE)
SENTENCE = re.compile(r"\n|\.\s")
OPENED = re.compile(r"(?<!\\)(?:\$|\\\(|\\\[)\s*\S")
EQUALS = re.compile(r"(?<![<>!\\])=")
DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
PERCENT = re.compile(r"\s*(?:percent(?:age)?|pct)\b", re.IGNORECASE)
TIMES = re.compile(r"(?<![\w}^_.])(\d+)\((?=\d+\))")


def _extract_math(response: str) -> str | None:
    """The last box and those listed right before it, else what follows the last `answer is`, else the last formula or
    number; None where there is nothing of the kind.
    """
    tail = response[-TAIL:]
    if len(response) > TAIL:
        tail = tail.partition("\n")[2] or tail  # no formula in dollars spans lines, so none is cut in two
    return _boxed(response) or _anchored(tail) or _last_expression(tail) or None


def _boxed(response: str) -> str:
    """The last box, or the last few where only `and`, commas and the like stand between them."""
    boxes: list[str] = []
    start = stop = len(response)
    while len(boxes) < BOXES and (start := response.rfind("\\boxed{", 0, start)) >= 0:
        box = _braced(response, start + len("\\boxed{"))
        end = start + len("\\boxed{}") + len(box or "")
        if box is None or (boxes and not (end <= stop and _listed(response[end:stop]))):
            break
        boxes.insert(0, box.strip())
        stop = start
    return ", ".join(filter(None, dict.fromkeys(boxes)))


def _braced(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes it; None if that does not come within TAIL characters."""
    depth, escaped = 1, False
    for i, character in enumerate(text[start : start + TAIL]):
        if not escaped and character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start : start + i]
        escaped = character == "\\" and not escaped
    return None


def _listed(gap: str) -> bool:
    """Do the pieces around this gap form a list?"""
    return len(gap) <= 60 and JOINT.fullmatch(gap) is not None


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Where each formula between delimiters starts and stops, and what it says."""
    for match in SPAN.finditer(text):
        yield match.start(), match.end(), match[match.lastindex].strip().rstrip(".,;").rstrip()


def _anchored(tail: str) -> str:
    """The formulas that come first after the last `answer is`; else a number before its unit; else a sentence."""
    anchors = list(ANCHOR.finditer(tail))
    if not anchors:
        return ""
    paragraph = CLOSING.split(tail[anchors[-1].end() :].strip(), maxsplit=1)[0].partition("\n\n")[0]
    stop, formulas = 0, []
    for start, end, formula in _spans(paragraph):
        if formulas and not _listed(paragraph[stop:start]):
            break
        if not formulas and re.search(r"\d|\n", paragraph[:start]):
            break
        formulas.append(formula)
        stop = end
    if formulas:
        return ", ".join(filter(None, formulas))
    sentence = SENTENCE.split(paragraph, maxsplit=1)[0].strip(" .*").strip()
    counted = COUNTED.fullmatch(sentence)
    return counted[1] if counted else sentence if len(sentence) <= 100 else ""


def _last_expression(tail: str) -> str:
    """The last formula, or a number after it; of a chain of equalities its last member."""
    _, stop, formula = [(0, 0, ""), *_spans(tail)][-1]
    rest = tail[stop:]
    if OPENED.search(rest):
        return ""  # the response broke off in a formula
    numbers = NUMBER.findall(rest)
    return (numbers[-1] if numbers else EQUALS.split(formula)[-1]).strip(" ,").strip()


def _quick_math(gold: str, answer: str) -> bool | None:
    """Equal strings; integers by their value (1,000 is 1000, 007 is 7)."""
    if gold == answer:
        return True
    return _value(gold) == _value(answer) if GROUPED.fullmatch(gold) and GROUPED.fullmatch(answer) else None


def _value(integer: str) -> str:
    """An integer without commas, leading zeros and the sign of zero; never an int, whose cost grows with its square."""
    digits = integer.lstrip("-").replace(",", "").lstrip("0") or "0"
    return "-" + digits if integer.startswith("-") and digits != "0" else digits


def _equal_math(
    gold: str,
    answer: str,
    extract: Sequence[str] = ("latex", "expr"),
    digits: int = 6,
    relations: bool = True,
    strict: bool = True,
) -> bool:
    """Does math-verify find both the same? Its own time limits are off: they need the main thread, the pool's do not.

    `extract`: the notations to read; `digits`: where floats are rounded; `relations`: a set equals the inequality that
    describes it; `strict`: the names of variables count.
    """
    import sympy.core.random
    from math_verify import verify as same

    sympy.core.random.seed(0)  # sympy compares at random points: the verdict must not depend on what came before
    return same(
        _read(gold, tuple(extract)),
        _read(answer, tuple(extract)),
        float_rounding=digits,
        allow_set_relation_comp=relations,
        strict=strict,
        timeout_seconds=None,
    )


@lru_cache(maxsize=1024)  # most of a comparison's time goes here, and a gold comes once for every response to it
def _read(text: str, extract: tuple[str, ...]) -> list:
    """What math-verify reads in an answer: formulas, and the text itself; empty if it finds nothing."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    configs = [{"latex": LatexExtractionConfig, "expr": ExprExtractionConfig}[name]() for name in extract]
    if "latex" not in extract or DELIMITER.search(text.replace("\\$", "")):
        return parse(text, configs, parsing_timeout=None)
    text = TIMES.sub(r"\1\\cdot (", PERCENT.sub(r"\\%", text.replace("\\$", "")))
    return parse(f"${text}$", configs, parsing_timeout=None) or parse(text, configs, parsing_timeout=None)


RULES = {
    "exact": Rule(_extract_exact, _same, _same, wrong=0.0),
    "dapo": Rule(_extract_dapo, _quick_dapo, _equal_dapo, wrong=-1.0),
    "math": Rule(_extract_math, _quick_math, _equal_math, wrong=0.0),
}
