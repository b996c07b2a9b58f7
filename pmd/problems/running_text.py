"""Running text for the rule `math`: its formulas, numbers and sentences, without the emphasis of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pmd.problems.brackets import equals_signs, split_outside
from pmd.problems.characters import VULGAR
from pmd.problems.normal_form import UNITS, VARIABLE

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

NUMBER_WITH_UNIT = re.compile(
    r"[$€£¥]?\s?([-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?\s?%?)[,;:.]?"
    r"\s+(?!and\b|or\b|(?:more|less|fewer|times|hundred|thousand|million|billion|trillion|dozen|plus|minus|half|halves|thirds?|"
    r"quarters?|squared|cubed|factorial|pi|sqrt|am|pm|by|to|mod)\b)"
    r"(?:[a-z]{3,}|of|m|cm|km|mm|kg|g|ft|in|h|s|L|°)[^0-9()^=+*/\\$]*",
    re.IGNORECASE,
)
"""A number that is followed by words alone, such as `12 apples`."""

SCALE_FOLLOWS = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|percent|%|\\%)", re.IGNORECASE)

LONG_WORD = re.compile(
    r"(?<![A-Za-z\\])(?!(?:sqrt|sin|cos|tan|log|exp|infinity|and|max|min|gcd|lcm|mod)(?![A-Za-z]))[A-Za-z]{3,}"
)
"""A word that belongs to no formula."""

SENTENCE_END = re.compile(r"\n|(?<!\\)[.!?](?=\s|$)(?<!\bSt\.)(?<!\bMr\.)(?<!\bDr\.)(?<!\bi\.e\.)(?<!\be\.g\.)")
COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?)|=)\s*(?:equal to\s+|about\s+|approximately\s+|therefore\s+)?", re.IGNORECASE
)
COMMAND = re.compile(r"\\[A-Za-z]+|\\.")

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
