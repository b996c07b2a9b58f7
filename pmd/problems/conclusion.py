"""The answer of a response that announces none, for the rule `math`: what its last sentence concludes."""

from __future__ import annotations

import re

from pmd.problems.boxes import LIST_SEPARATOR
from pmd.problems.running_text import (
    BOLD_TEXT,
    COMMAND,
    COPULA,
    LONG_WORD,
    NUMBER,
    NUMBER_WITH_UNIT,
    OPEN_FORMULA,
    SCALE_FOLLOWS,
    SENTENCE_END,
    VALUE,
    formulas,
    plain,
    value_of,
)

WHOLE_LENGTH = 200

# What tells of a sentence whether it concludes something.

CONCLUDES = re.compile(
    r"\b(?:so|thus|therefore|hence|then|total|altogether|in all|result|finally|conclude|will|would|must|is|"
    r"are|was|were|be|has|have|had|equals?|gives?|makes?|made|gets?|got|obtain|find|found|left|remains?|leaves?|leaving|costs?|needs?|"
    r"yields?|yielding|resulting|comes?|paid|spent|took|sold|bought|ate|drank|ran|drove|read|won|lost|kept|gave|grew|each|"
    r"per|sum|product|area|value|amount|number|it's|that's|[a-z]{2,}ed)\b"
    r"|\b(?:he|she|it|they|you|this|which|(?-i:[A-Z])[a-z]+) (?:[a-z]+ly )?[a-z]+s\b|=|≈|→|:\s*[-−$€£.\d]",
    re.IGNORECASE,
)
"""Such a word, a verb in the past tense, a subject with its verb, an equals sign, or a colon before a number."""

DOUBTS = re.compile(
    r"^\s*let (?!us (?:now )?calculate)|\b(?:let me|let's|lets|check|checking|be checked|verify|verified|case \d|try|"
    r"suppose|assume|recall|note that|maybe|perhaps|might|hmm|cannot solve|"
    r"(?:theorem|lemma|figure|method) \d)\b|\?|:\s*$",
    re.IGNORECASE,
)
"""What settles nothing, even where the sentence computes."""

PLANS = re.compile(
    r"\b(?:step \d|consider|wait|(?:we|i) (?:now )?have \d+ cases|(?:we|i) (?:still )?(?:need|have|want) to|"
    r"equation \(?\d|(?:i|we)(?:'ll| will|'m| am|'re| are) |(?:question|problem) (?:says|asks|is)|example|divide|"
    r"multiply|plug|substitute|compute|calculate|look)\b"
    r"|^\s*(?:#+ *\d+[.)]|\d+[.)]\s|(?:next|first|second|third|now)\b,? (?:we|i)\b)",
    re.IGNORECASE,
)
COMPUTED = re.compile(r"\d[^=\n]*(?:[-+*/×÷]| x )[^=\n]*=|\b(?:to|we) get\b", re.IGNORECASE)
"""What says what will be done, unless the sentence also computes something."""

BOUNDARY = re.compile(SENTENCE_END.pattern + r"|(?<=[.!?])(?:\$+|\\[\])])(?=\s)|(?:\$\$|\\\])(?=[A-Z])")
"""The end of a sentence, also where it stands within a formula: `$x = 4.$ Hence`."""

# What stands directly before a number in it.

NEGATED = re.compile(
    r"(?:(?:\b(?:can)?not|n't)\s+(?:[a-z]+\s+)?|\b(?:more|less|fewer|greater|larger|smaller) than\s+|"
    r"\bbetween (?:\S{1,9} and )?|[≤≥≠<]\s*|(?<![-=\w])> ?)[$€£¥]?$",
    re.IGNORECASE,
)
"""It is denied, or only a bound of the answer."""

MENTIONED = re.compile(
    r"\b(?:the|all|these|those|other|first|last|next|remaining|his|her|their|its)\s+[$€£¥]?$", re.IGNORECASE
)
"""It counts something known already: `the 280 pages`."""

BESIDE = re.compile(r"\b(?:after|before|from|per|every|by|than)\s+(?:[a-z]+\s+){0,3}[$€£¥]?$", re.IGNORECASE)
"""It belongs to a circumstance: `after giving away 4`."""

RESULT = re.compile(r"[=≈]\s*[$€£¥₹]?\s?$")
COMPOUND = re.compile(r"\b\d+ (?:years?|weeks?|days?|hours?|minutes?|feet|foot|pounds?|dollars?),?(?: and)? $")
"""It is the second number of one quantity: `2 hours and 30 minutes`."""

# What is left out behind a conclusion, and other patterns.

NAME_BESIDE = re.compile(r"(\d[^$\s]*\$[^$.\n]{0,60}\b(?:of|for|in|on)) \$[A-Za-z](?:\([a-z]\))?\$")
"""A name behind a formula that has a number: `$501$ values of $k$`."""

SAID_WHY = re.compile(
    rf"""(?:
    (?P<said>\b(?:it|that|this)(?:'s|\ is|\ was)\ [$€£¥]?\s?{VALUE}(?:\ [a-z]+)?),\ (?:he|she|they|we|it)\ [^\n.=]*
    |(?P<value>(?:\b(?:is|are|was|equals)\ |=\s?)(?:\$[^$\n]+\$|[$€£¥]?\s?{VALUE})(?:\ [a-z]+)?)
     (?:,?\ (?:when|where|if|since|because)|,\ (?:attained|achieved|reached|obtained|occurring|or|i\.?e\.?)
       |,?\ at(?=\ \$?[a-z]\s?=))
     \ (?!.*\b(?:so|then|thus|hence|therefore)\b)(?:[^\n.]|\.\d)*
    )\.?\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
"""A conclusion at the end, and behind it a remark or a reason: `It is $18, she sells 9 eggs`, `is $4$ when $a=b=2$`."""

VERB = re.compile(COPULA.pattern + r"|:\s", re.IGNORECASE)
BARE_FORMULA = re.compile(r"\\(?!text\b)[A-Za-z]+|\\\\")
ENGLISH = re.compile(r"\b(?:is|it|so|to|he|we|me|my|no|on|of|in|at|as|be|by|do|go|if|up|us|an|am)\b", re.IGNORECASE)


def whole(response: str) -> str:
    """The whole response, if it is one line with nothing but a formula, a number, a number with a unit or one word."""
    text = plain(response).strip() if len(response) <= WHOLE_LENGTH else ""
    text = re.sub(r"^(?:[-=]?>|[⇒→∴])\s*", "", text)
    if not text or "\n" in text or "####" in text or re.search(r"(?:^|\s)[Aa](?:ns(?:wer)?)?\s?:", text):
        return ""
    pieces = list(formulas(text))
    if len(pieces) == 1 and pieces[0][0] == 0 and not text[pieces[0][1] :].strip(" ."):
        return value_of(pieces[0][2])
    if pieces or OPEN_FORMULA.search(text):
        return ""
    counted = NUMBER_WITH_UNIT.fullmatch(text.rstrip("."))
    if counted and not any(pattern.search(text) for pattern in (CONCLUDES, DOUBTS, PLANS)):
        return counted[1].strip()
    if re.fullmatch(r"[A-Za-z]+\.?", text):
        return text.rstrip(".")
    formula = re.sub(r"\\(?:text|mathrm|mbox|begin|end)\s*\{[^{}]*\}", "", text)
    if LONG_WORD.search(formula) or ENGLISH.search(text) or not re.search(r"[0-9A-Za-z\\√π∞¼-¾⅐-⅞]", text):
        return ""
    return value_of(text.rstrip(".").strip())


def last_expression(tail: str) -> str:
    """What the last sentence with a number or a formula concludes: its number where one follows the last formula, in
    bold before others, or else the last formula.

    A remark or a reason behind a conclusion is not searched. Empty if the response ends within a formula, or if the
    sentence concludes nothing.
    """
    bold = [match[1] for match in BOLD_TEXT.finditer(tail.rpartition("\n")[2] or tail)]
    tail = SAID_WHY.sub(lambda match: match["said"] or match["value"], plain(tail).rstrip())
    tail = NAME_BESIDE.sub(r"\1", tail)
    start, stop, formula = [(0, 0, ""), *formulas(tail)][-1]
    rest = tail[stop:]
    if OPEN_FORMULA.search(rest):
        return ""  # the response ends within a formula
    line = rest.rpartition("\n")[2]
    if BARE_FORMULA.search(line):
        after = COPULA.split(line)[-1].strip(" .")
        return "" if re.search(r"&|\\\\|[A-Za-z]{3,}", line if "&" in line else COMMAND.sub("", after)) else after
    numbers = [match for match in NUMBER.finditer(rest) if not _preceded(NEGATED, rest, match)]
    position = stop + numbers[-1].start(1) if numbers else start if formula else len(tail.rstrip(" .")) - 1
    begin = max([0, *(match.end() for match in BOUNDARY.finditer(tail, 0, position))])
    end = SENTENCE_END.search(tail, position)
    sentence = tail[begin : end.start() + 1 if end else len(tail)]
    if DOUBTS.search(sentence) or (PLANS.search(sentence) and not COMPUTED.search(sentence)):
        return ""
    clause = sentence[max(0, stop - begin) :]
    concludes_with_formula = start >= begin and re.search(r"\d", formula) and not CONCLUDES.search(clause)
    if formula and (not numbers or concludes_with_formula):
        return ", ".join(values_at_end(tail)).strip(" ,")
    if LONG_WORD.search(sentence) and not CONCLUDES.search(sentence):
        return ""
    emphasised = [found[1] for text in bold for found in NUMBER.finditer(text)]
    return (emphasised[-1] if emphasised else _expression(clause) or _concluded(clause)).strip(" ,")


def _expression(clause: str) -> str:
    """What stands behind the last verb of a clause if it is an expression, such as `2√3 cm` or `(1, 2)`, and at most
    three words follow it; "" for a plain number."""
    behind = VERB.split(clause)[-1].rstrip(" .") if VERB.search(clause) else ""
    word = LONG_WORD.search(behind)
    head, words = (behind[: word.start()], behind[word.start() :]) if word else (behind, "")
    expression = re.search(r"[0-9+*^√π∞(\[{<>≤≥]|^\s*[-−–]", NUMBER.sub("", head, count=1))
    return behind.strip() if expression and re.fullmatch(r"(?:[A-Za-z/²³^.]+ ?){0,3}", words) else ""


def _concluded(sentence: str) -> str:
    """The number of a sentence: behind its last equals sign if nothing is concluded after it, else the last one that is
    not only mentioned; with a scale such as `million`."""
    numbers = [
        match
        for match in NUMBER.finditer(sentence)
        if not _preceded(NEGATED, sentence, match) and not _preceded(MENTIONED, sentence, match)
    ]
    results = [match for match in numbers if _preceded(RESULT, sentence, match)]
    if results and not CONCLUDES.search(sentence, results[-1].end()):
        numbers = results
    numbers = [match for match in numbers if not _preceded(BESIDE, sentence, match)] or numbers
    if not numbers:
        return ""
    if compound := COMPOUND.search(sentence[: numbers[-1].start(1)]):
        return sentence[compound.start() :].strip(" .")
    scale = SCALE_FOLLOWS.match(sentence, numbers[-1].end())
    return numbers[-1][1].strip() + (scale[0] if scale else "")


def _preceded(pattern: re.Pattern[str], text: str, number: re.Match[str]) -> bool:
    return pattern.search(text, max(0, number.start() - 30), number.start(1)) is not None


def values_at_end(text: str) -> list[str]:
    """The value of the last formula, with those that `and` or `or` joins to it: `$x=3$ or $x=4$`."""
    found = list(formulas(text))
    values = [value_of(found[-1][2])]
    for (_, stop, formula), (start, _, following) in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        gap = text[stop:start]
        names = [variable(formula), variable(following)]
        joined = len(values) > 1 or names[0] or re.search(r"\b(?:and|or)\b", gap)
        if names[0] != names[1] or not joined or not LIST_SEPARATOR.fullmatch(gap):
            break
        values.insert(0, value_of(formula))
    return values


def variable(formula: str) -> str | None:
    """What stands before the first equals sign."""
    name, equals, _ = formula.partition("=")
    return name.strip() if equals else None
