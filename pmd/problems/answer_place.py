r"""Where a response without a box states its answer, for `math`: after a phrase such as `answer is`, or at its end.

Each function returns the answer's text, or "" where it finds none. All take time that is linear in the length of the
response; the patterns are applied to the last few thousand characters only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pmd.problems.boxes import LIST_SEPARATOR, listed
from pmd.problems.brackets import equals_signs, split_outside
from pmd.problems.characters import VULGAR
from pmd.problems.normal_form import UNITS, VARIABLE

# --- formulas and numbers in running text -----------------------------------------------------------------------------

FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\n\\])+)\$|\\\[((?:[^\\]|\\[^\[\]])+)\\\]|\\\(((?:[^\\\n]|\\[^()\n])+)\\\)"
)
r"""A formula between delimiters: `$$…$$`, `$…$`, `\[…\]` or `\(…\)`."""

MONEY = re.compile(r"\s?[-−]?\.?[0-9]")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}(?:\s|[.,;]\s)|[.;]\s+[A-Z]|\s[-+*/=]\s*$")
OPEN_FORMULA = re.compile(
    r"(?<!\\)(?:(?<!\d)(?<!\d )\$(?!\s?[-−]?\.?[0-9](?:[^\\^_{}\n]|\\(?:times|cdot|div)\b)*(?:\n|$))\s*\S|\\\(|\\\[)"
)

VALUE = rf"""
    (?:(?:[0-9]+\s?)?{VULGAR}
      |[0-9]+\ [0-9]+/[0-9]+
      |[0-9]+(?::[0-9]+)+
      |(?:[0-9]{{1,3}}(?:[ \u00a0\u2009\u202f][0-9]{{3}})+|[0-9][0-9,]*|(?=\.[0-9]))(?:\.[0-9]+)?
       (?:\s?/\s?[0-9]+(?!\d|\.\d))?(?:[eE][+-]?[0-9]{{1,3}}\b)?)
    (?:\s?\\?%)?"""
NUMBER = re.compile(
    rf"""(?:^|(?<=[\s=($€£¥₹:\[{{,~+*×÷≈>"“]))
    ((?:(?<![\d)]\s)(?<![\w)*/.])[-−–])?{VALUE})
    (?!\d|[.,]\d)(?:(?=(?:{UNITS}|[mghsL])(?:[²³^]|\b))|(?![\w}}^]|/(?![a-z]{{2}})))""",
    re.VERBOSE,
)
"""A number in running text, such as `1,250`, `118 000`, `-.5`, `2 3/4`, `1½`, `50%`, `7:30`, `12.5cm` or `10/hour`, not
part of a word or formula."""

BOLD = re.compile(r"(?<![\w)])(?:\*\*|__)(?=\S)|(?<=\S)(?:\*\*|__)(?![\w(])")
BOLD_TEXT = re.compile(r"(?<![\w)*])\*\*(?=\S)([^*\n]{1,200})(?<=\S)\*\*(?![\w(*])")
ITALIC = re.compile(
    r"(?<![\w)*\s\\])\*(\S[^*\n]{0,100})(?<=\S)\*(?![\w(*])|(?<=\s)\*(?=\S)([^*\n]{1,100})(?<=\S)\*(?![\w(*])"
)
UNDERSCORED = re.compile(r"(?<![^\s(*:])_(?=[^\s_])([^_\n]{1,100})(?<=\S)_(?!\w)")
CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")
TAG = re.compile(
    r"<\|[^|<>\n]{1,30}\|>|</?(?:b|i|u|em|strong|p|br|s|eos)\s?/?>|[∎□■]|\$?\\(?:blacksquare|square|qed)(?![A-Za-z])\$?"
)
DRESSED = re.compile(r"\\(?:textbf|textit|emph|underline)\{([^{}]*)\}|“([^”\n]{1,60})”|‘([^’\n]{1,60})’")
NEGATIVE_MONEY = re.compile(r"(?<![\w)*/.])(?<![\d)]\s)([-−–])\s?(\\?\$)\s?(?=\d)")
ALIGNED = re.compile(
    r"(?:\$\$|\\\[)?\s*\\begin\{(align|aligned|equation|gather|gathered|split|eqnarray)\*?\}(?P<lines>(?:[^\\$]|\\(?!end\{))*)"
    r"\\end\{\1\*?\}\s*(?:\$\$|\\\])?"
)
CHOSEN = re.compile(r"\b(?:option|choice) (\(?[A-J]\)?) is (?:the )?(?:correct|right)\b[^.\n]*")
PERCENT = re.compile(r"(?<=\d)\s?per\s?cent\b", re.IGNORECASE)
REMARK = re.compile(
    r"(\d%?\$?[.,]?(?: [a-z]+(?=[a-z ]* \((?![^()]*(?:\bis\b|\bare\b|=)))){0,2})"
    r" \((?!mod\b|or\b|base\b)(?=[^()]*(?:[a-z]{3}|i\.e\.))(?:[^()\\\n$]|\$(?=\d)){1,200}\)(?!\S*\w)",
    re.IGNORECASE,
)
"""A number, possibly with its unit, and a remark in words about it: `$18 (she sells 9 eggs)`."""


def plain(text: str) -> str:
    """The text without emphasis of Markdown, LaTeX and HTML, without GSM8K's calculator annotations and remarks that
    follow a number in parentheses; a percentage is written with its sign, and of aligned formulas the last line stays.
    """
    text = TAG.sub("", CALCULATOR.sub("", text)).replace("`", "")
    text = DRESSED.sub(lambda match: match[match.lastindex], text)
    text = UNDERSCORED.sub(r"\1", ITALIC.sub(lambda match: match[1] or match[2], BOLD.sub("", text)))
    text = CHOSEN.sub(r"the answer is \1", NEGATIVE_MONEY.sub(r"\2\1", ALIGNED.sub(_last_line, text)))
    return REMARK.sub(r"\1", PERCENT.sub("%", text))


def _last_line(match: re.Match[str]) -> str:
    """The last line of aligned formulas as one formula."""
    lines = [line for line in match["lines"].split("\\\\") if line.strip()]
    return "$$" + lines[-1].replace("&", "").strip() + "$$" if lines else ""


def formulas(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, stop, content) of each formula that stands between delimiters, in order; money is no formula."""
    position = 0
    while match := FORMULA.search(text, position):
        content = match[match.lastindex]
        after = text[match.end() : match.end() + 1]
        money = MONEY.match(content) or text[match.start() - 1 : match.start()].isdigit()
        if match[2] is not None and money and (PROSE.search(content + " ") or after.isdigit()):
            position = match.start() + 1
            continue
        yield match.start(), match.end(), content.strip().rstrip(".,;").rstrip()
        position = match.end()


def value_of(formula: str) -> str:
    """What follows the last equals sign of a formula; the whole formula if it is a list, has no such sign, or is an
    equation between variables, such as `x^2+y^2=1`.

    An equals sign within braces, such as the one of `\\sum_{k=0}^n`, belongs to another term.
    """
    places = equals_signs(formula)
    if not places or len(split_outside(formula[places[0] :], ",;")) > 1:
        return formula
    before = formula[: places[0]].strip()
    after = formula[places[-1] + 1 :].strip()
    left, right = (re.search(r"[A-Za-z]", COMMAND.sub("", side)) for side in (before, after))
    equation = len(places) == 1 and ((left and not VARIABLE.fullmatch(before)) or (left and right))
    return formula if equation or not after else after


LONG_WORD = re.compile(
    r"(?<![A-Za-z\\])(?!(?:sqrt|sin|cos|tan|log|exp|infinity|and|max|min|gcd|lcm|mod)(?![A-Za-z]))[A-Za-z]{3,}"
)
"""A word that belongs to no formula."""

# --- a phrase that announces the answer -------------------------------------------------------------------------------

ANNOUNCED = re.compile(
    r"\b(?:answers?|ans|(?:correct|right|best) (?:option|choice))\b[ \t*]*(?:(?:to|for|of)\b[^.:\n$=]{0,80}?)?[ \t*]*"
    r"(?:\b(?:is|are|was|must be|would be|should be|will be|comes out to|equals)\b[ \t]*:?|[:：=→⇒]|[-=]>|>>|[-–—](?=\s))[ \t*:]*"
    r"|(?:^|\n)[ \t]*####(?!#)[ \t]*(?=[^\n]*\S)"
    r"|<answer>"
    r"|(?:^|\n)[ \t*]*A:[ \t*]+(?=[^\n]*\s*$)",
    re.IGNORECASE,
)
LEAD_IN = re.compile(
    r"(?:(?:therefore|thus|then|hence|simply|just|indeed|clearly|also|again|now|equal to|given by|found to be|exactly|"
    r"approximately|about|only|a total of|option|choice|as follows|the following|that)\b|[\s:,*])+",
    re.IGNORECASE,
)
CLOSING_PHRASE = re.compile(r"\.? I hope it is correct|</answer>", re.IGNORECASE)
SENTENCE_END = re.compile(r"\n|(?<!\\)[.!?](?=\s|$)(?<!\bSt\.)(?<!\bMr\.)(?<!\bDr\.)(?<!\bi\.e\.)(?<!\be\.g\.)")
REASON = re.compile(r",?\s+(?:and not|but not|instead of|rather than|because|since|as|so|which|where|when|making|given)\s|,\s+(?!and\b|or\b)(?=[a-z]{2,}\s)")
COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?)|=)\s*(?:equal to\s+|about\s+|approximately\s+|therefore\s+)?", re.IGNORECASE
)
NUMBER_WITH_UNIT = re.compile(
    r"[$€£¥]?\s?([-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?\s?%?)[,;:.]?"
    r"\s+(?!and\b|or\b|(?:more|less|fewer|times|hundred|thousand|million|billion|trillion|dozen|plus|minus|half|halves|thirds?|"
    r"quarters?|squared|cubed|factorial|pi|sqrt|am|pm|by|to|mod)\b)"
    r"(?:[a-z]{3,}|of|m|cm|km|mm|kg|g|ft|in|h|s|L|°)[^0-9()^=+*/\\$]*",
    re.IGNORECASE,
)
"""A number that is followed by words alone, such as `12 apples`."""

QUANTITY_FOLLOWS = re.compile(r"\s*\\?(?:[A-Za-z]+[.,]?\s+){1,3}(?:and\s+)?\$?\s?\\?[0-9]")
SCALE_FOLLOWS = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|percent|%|\\%)", re.IGNORECASE)


QUESTION = re.compile(r"[^.!?\n]*\?")
ONE_CHOICE = re.compile(r"\(?[A-J]\)(?=\s|$)|[A-J][.:](?=\s)")
NAMES = re.compile(r"\$\(?[A-Za-z](?:\s?,\s?[A-Za-z])*\)?\$")
FINAL = re.compile(r"final answer\b", re.IGNORECASE)
UNCERTAIN = re.compile(r"\bnot\b|n't\b|\b(?:least|most|than|between|or|if|unless|except|times)\b|\?", re.IGNORECASE)


def anchored(tail: str) -> str:
    """The answer after the last phrase that announces one."""
    tail = plain(tail)
    for anchor in reversed(list(ANNOUNCED.finditer(tail))):
        phrase = anchor[0].strip()
        if QUESTION.match(tail, anchor.end()):
            continue
        paragraph = CLOSING_PHRASE.split(tail[anchor.end() :].strip(), maxsplit=1)[0].partition("\n\n")[0].strip()
        if phrase.startswith("####") or phrase[:2] in ("A:", "a:"):
            paragraph, _, more = paragraph.partition("\n")
            words = more and LONG_WORD.search(paragraph) and not re.search(r"\d|\\|\$", paragraph)
            if words or re.match(r"\d+[.)]\s+[A-Za-z]", paragraph):
                continue  # a heading
        return announced_value(paragraph)
    return ""


def announced_value(paragraph: str) -> str:
    """The value with which a paragraph begins: its first formulas, or its first sentence without reasons and units.

    A sentence that names the quantity first, such as `The largest $n$ is 34`, is read from its verb on.
    """
    lead = LEAD_IN.match(paragraph)
    paragraph = paragraph[lead.end() :] if lead else paragraph
    if ONE_CHOICE.match(paragraph):
        return paragraph.partition("\n")[0].strip(" .*")
    sentence = SENTENCE_END.split(paragraph, maxsplit=1)[0]
    verbs = [verb for verb in COPULA.finditer(sentence) if not _within_formula(sentence, verb.start())]
    if verbs and re.match(r"[A-Za-z]{2,}\s|[A-Za-z]\s(?!\+|-|=)", paragraph) and sentence[verbs[-1].end() :].strip():
        paragraph = paragraph[verbs[-1].end() :]
    stop, found = 0, []
    for start, end, formula in formulas(paragraph):
        if found and not listed(paragraph[stop:start]):
            break
        if not found and re.search(r"\d|\n", paragraph[:start].strip("(:\n ")):
            break  # the value stands before the formula
        found.append(formula)
        stop = end
    if found:
        rest = paragraph[stop:]
        if QUANTITY_FOLLOWS.match(rest.partition(".")[0]) and not re.match(
            r"\s*(?:for|when|if|where|since|because|as)\b", rest
        ):
            return SENTENCE_END.split(paragraph, maxsplit=1)[0].strip()
        scale = SCALE_FOLLOWS.match(rest)
        return ", ".join(filter(None, found)) + (scale[0] if scale else "")
    sentence = REASON.split(SENTENCE_END.split(paragraph, maxsplit=1)[0], maxsplit=1)[0]
    sentence = NAMES.sub("", sentence).lstrip(" *").rstrip(" .*")
    counted = NUMBER_WITH_UNIT.fullmatch(sentence)
    if counted:
        return counted[1].strip()
    numbers = NUMBER.findall(sentence)
    in_words = len(sentence.split()) > 4 and LONG_WORD.search(sentence)
    if len(numbers) == 1 and in_words and not UNCERTAIN.search(sentence):
        return numbers[0].strip()
    return sentence if len(sentence) <= 100 else ""


def _within_formula(text: str, position: int) -> bool:
    return any(start <= position < stop for start, stop, _ in formulas(text))


# --- the end of the response ------------------------------------------------------------------------------------------

WHOLE_LENGTH = 200
CONCLUDES = re.compile(
    r"\b(?:so|thus|therefore|hence|then|total|altogether|in all|result|finally|conclude|will|would|must|is|are|was|were|be|"
    r"has|have|had|equals?|gives?|makes?|made|gets?|got|obtain|find|found|left|remains?|leaves?|costs?|needs?|paid|spent|took|"
    r"sold|bought|ate|drank|ran|drove|read|won|lost|kept|gave|grew|each|per|sum|product|area|value|amount|number|it's|that's|"
    r"leaving|yields?|yielding|resulting|comes?|[a-z]{2,}ed)\b|:\s*[-−$€£.\d]|\b(?:he|she|it|they|you|this|which|(?-i:[A-Z])[a-z]+) (?:[a-z]+ly )?[a-z]+s\b|=|≈|→",
    re.IGNORECASE,
)
"""What a sentence that concludes something has: such a word, a verb in the past tense, or a subject with its verb."""

DOUBTS = re.compile(
    r"^\s*let (?!us (?:now )?calculate)|\b(?:let me|let's|lets|check|checking|be checked|verify|verified|case \d|try|suppose|assume|"
    r"recall|note that|maybe|perhaps|might|hmm|(?:theorem|lemma|figure|method) \d|cannot solve)\b|\?|:\s*$",
    re.IGNORECASE,
)
"""What a sentence has that settles nothing, even where it computes."""

PLANS = re.compile(
    r"\b(?:step \d|consider|wait|(?:we|i) (?:now )?have \d+ cases|(?:we|i) (?:still )?(?:need|have|want) to|"
    r"(?:i|we)(?:'ll| will|'m| am|'re| are) |equation \(?\d|(?:question|problem) (?:says|asks|is)|example|divide|multiply|plug|"
    r"substitute|compute|calculate|look)\b|^\s*(?:#+ *\d+[.)]|\d+[.)]\s|(?:next|first|second|third|now)\b,? (?:we|i)\b)",
    re.IGNORECASE,
)
COMPUTED = re.compile(r"\d[^=\n]*(?:[-+*/×÷]| x )[^=\n]*=|\b(?:to|we) get\b", re.IGNORECASE)
"""What a sentence has that says what will be done, unless it also computes something."""

BOUNDARY = re.compile(SENTENCE_END.pattern + r"|(?<=[.!?])(?:\$+|\\[\])])(?=\s)|(?:\$\$|\\\])(?=[A-Z])")
"""The end of a sentence, also where it stands within a formula: `$x = 4.$ Hence`."""

BESIDE = re.compile(r"\b(?:after|before|from|per|every|by|than)\s+(?:[a-z]+\s+){0,3}[$€£¥]?$", re.IGNORECASE)
"""What stands before a number that belongs to a circumstance: `after giving away 4`."""

COMPOUND = re.compile(r"\b\d+ (?:years?|weeks?|days?|hours?|minutes?|feet|foot|pounds?|dollars?),?(?: and)? $")
"""What stands before the second number of one quantity: `2 hours and 30 minutes`."""

VERB = re.compile(COPULA.pattern + r"|:\s", re.IGNORECASE)
NAME_BESIDE = re.compile(r"(\d[^$\s]*\$[^$.\n]{0,60}\b(?:of|for|in|on)) \$[A-Za-z](?:\([a-z]\))?\$")
"""A name behind a formula that has a number: `$501$ values of $k$`."""

RESULT = re.compile(r"[=≈]\s*[$€£¥₹]?\s?$")
BARE_FORMULA = re.compile(r"\\(?!text\b)[A-Za-z]+|\\\\")
NEGATED = re.compile(
    r"(?:(?:\b(?:can)?not|n't)\s+(?:[a-z]+\s+)?|\b(?:more|less|fewer|greater|larger|smaller) than\s+|[≤≥≠<]\s*|(?<![-=\w])> ?|"
    r"\bbetween (?:\S{1,9} and )?)[$€£¥]?$",
    re.IGNORECASE,
)
"""What stands before a number that is denied, or only a bound of the answer."""

MENTIONED = re.compile(r"\b(?:the|all|these|those|other|first|last|next|remaining|his|her|their|its)\s+[$€£¥]?$", re.IGNORECASE)
"""What stands before a number that counts something known already: `the 280 pages`."""

COMMAND = re.compile(r"\\[A-Za-z]+|\\.")
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


SAID_WHY = re.compile(
    rf"""(?:(?P<said>\b(?:it|that|this)(?:'s|\ is|\ was)\ [$€£¥]?\s?{VALUE}(?:\ [a-z]+)?),\ (?:he|she|they|we|it)\ [^\n.=]*
    |(?P<value>(?:\b(?:is|are|was|equals)\ |=\s?)(?:\$[^$\n]+\$|[$€£¥]?\s?{VALUE})(?:\ [a-z]+)?)
     (?:,?\ (?:when|where|if|since|because)|,\ (?:attained|achieved|reached|obtained|occurring|or|i\.?e\.?)|,?\ at(?=\ \$?[a-z]\s?=))
     \ (?!.*\b(?:so|then|thus|hence|therefore)\b)(?:[^\n.]|\.\d)*)\.?\s*$""",
    re.IGNORECASE | re.VERBOSE,
)
"""A conclusion at the end, and behind it a remark or a reason: `It is $18, she sells 9 eggs`, `is $4$ when $a=b=2$`."""


def last_expression(tail: str) -> str:
    """What the last sentence with a number or a formula concludes: its number where one follows the last formula, in bold
    before others, or else the last formula.

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
    if formula and (not numbers or start >= begin and re.search(r"\d", formula) and not CONCLUDES.search(clause)):
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
