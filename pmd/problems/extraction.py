"""Response -> answer: where each rule looks for the answer in a response.

Extraction takes time that is linear in the length of the response, so unlike the comparison of two answers it runs in
the caller's process without a limit. The text is only searched, never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# --- exact: the embedded task -----------------------------------------------------------------------------------------


def extract_exact(response: str) -> str | None:
    """The text after the last `=`, or the whole response if it has none; None if that text is blank."""
    return response.rpartition("=")[2].strip() or None


# --- dapo: the grader of the paper's runs (DAPO, arXiv:2503.14476) ----------------------------------------------------

DAPO_TAIL = 300
"""How many characters at the end of a response are searched."""

ANSWER_LINE = re.compile(r"answer\s*:\s*([^\n]+)", re.IGNORECASE)


def extract_dapo(response: str) -> str | None:
    """What follows the last `Answer:`, in upper or lower case, on its line; None if nothing does.

    Only the last DAPO_TAIL characters of the response are searched.
    """
    found = ANSWER_LINE.findall(response[-DAPO_TAIL:])
    return found[-1].strip() or None if found else None


# --- math: the last box, or else the final expression -----------------------------------------------------------------

TAIL = 2000
"""How many characters at the end of a response without a box are searched, and how many a box may hold."""

BOXES = 8
"""The largest number of boxes that are read together as one answer."""

NUMBER = re.compile(r"(?:^|[\s=($€£])(-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?(?:\s?\\?%)?)(?![\w}^/])")
"""A number in running text, such as `1,250`, `3/4` or `50%`, that is not a part of a word or of a formula."""

NUMBER_WITH_UNIT = re.compile(r"(-?[0-9][0-9,./]*[0-9]%?|-?[0-9]%?)[,;:.]?\s+(?!and\b)[A-Za-z]{3,}[^0-9()^=+*/\\]*")
"""A number that is followed by words alone, such as `12 apples`."""

FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$((?:\\.|[^$\n\\])+)\$|\\\[((?:[^\\]|\\[^\[\]])+)\\\]|\\\(((?:[^\\\n]|\\[^()\n])+)\\\)"
)
r"""A formula between delimiters: `$$…$$`, `$…$`, `\[…\]` or `\(…\)`."""

LIST_SEPARATOR = re.compile(r"(?:[\s$,;&()\[\]\\]|\\text\{\s*(?:and|or)\s*\}|and|or|\\quad)*")
"""What may stand between two pieces of one answer: spaces, punctuation, delimiters, `and`, `or`."""

ANSWER_IS = re.compile(r"answer(?: is|:)[ \t*:]*", re.IGNORECASE)
CLOSING_PHRASE = re.compile(r"\.? I hope it is correct", re.IGNORECASE)
SENTENCE_END = re.compile(r"\n|\.\s")
OPEN_FORMULA = re.compile(r"(?<!\\)(?:\$|\\\(|\\\[)\s*\S")
EQUALS_SIGN = re.compile(r"(?<![<>!\\])=")


def extract_math(response: str) -> str | None:
    """The answer by the first of three ways that finds one, or None if none does.

    1. The content of the last `\\boxed{…}`, with the boxes that are listed directly before it.
    2. What follows the last `answer is` or `answer:`.
    3. The last formula, or a number after it.
    """
    tail = response[-TAIL:]
    if len(response) > TAIL:
        tail = tail.partition("\n")[2] or tail  # begin with a whole line: no formula in dollars extends over two lines
    return _boxed(response) or _anchored(tail) or _last_expression(tail) or None


def _boxed(response: str) -> str:
    """The content of the last box, together with the boxes before it if only a list separator stands between them."""
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
    """The text from `start` to the closing brace that matches the brace before `start`; None if it is not closed within
    TAIL characters.
    """
    depth, escaped = 1, False
    for i, character in enumerate(text[start : start + TAIL]):
        if not escaped and character in "{}":
            depth += 1 if character == "{" else -1
            if depth == 0:
                return text[start : start + i]
        escaped = character == "\\" and not escaped
    return None


def _listed(gap: str) -> bool:
    """Whether a gap between two pieces says that they form one list."""
    return len(gap) <= 60 and LIST_SEPARATOR.fullmatch(gap) is not None


def _formulas(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, stop, content) of each formula that stands between delimiters, in order."""
    for match in FORMULA.finditer(text):
        yield match.start(), match.end(), match[match.lastindex].strip().rstrip(".,;").rstrip()


def _anchored(tail: str) -> str:
    """The answer after the last `answer is`, or an empty string.

    It is the first formulas of that paragraph, unless a number comes before them. Otherwise it is the first sentence,
    of which a number is taken without its unit.
    """
    anchors = list(ANSWER_IS.finditer(tail))
    if not anchors:
        return ""
    paragraph = CLOSING_PHRASE.split(tail[anchors[-1].end() :].strip(), maxsplit=1)[0].partition("\n\n")[0]
    stop, formulas = 0, []
    for start, end, formula in _formulas(paragraph):
        if formulas and not _listed(paragraph[stop:start]):
            break
        if not formulas and re.search(r"\d|\n", paragraph[:start]):
            break
        formulas.append(formula)
        stop = end
    if formulas:
        return ", ".join(filter(None, formulas))
    sentence = SENTENCE_END.split(paragraph, maxsplit=1)[0].strip(" .*").strip()
    counted = NUMBER_WITH_UNIT.fullmatch(sentence)
    return counted[1] if counted else sentence if len(sentence) <= 100 else ""


def _last_expression(tail: str) -> str:
    """The last number after the last formula; if there is none, that formula, or what follows its last equals sign."""
    _, stop, formula = [(0, 0, ""), *_formulas(tail)][-1]
    rest = tail[stop:]
    if OPEN_FORMULA.search(rest):
        return ""  # the response ends within a formula
    numbers = NUMBER.findall(rest)
    return (numbers[-1] if numbers else EQUALS_SIGN.split(formula)[-1]).strip(" ,").strip()
