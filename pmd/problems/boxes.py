r"""The boxes of a response, `\boxed{…}`: which of them form its answer, for the rule `math`."""

from __future__ import annotations

import re

from pmd.problems.brackets import braced

BOXES = 8
"""The largest number of boxes that are read together as one answer."""

BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}(?:(\{)|(-?[0-9][0-9,]*(?:\.[0-9]+)?))")

LIST_SEPARATOR = re.compile(r"(?:[\s$,;&()\[\]\\]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b|\\quad)*")
"""What may stand between two pieces of one answer: spaces, punctuation, delimiters, `and`, `or`."""

WORDS_BETWEEN = re.compile(
    r"[\s$,;)\]\\]*(?P<before>(?:[A-Za-z]+\s+){0,2})(?:,|and|or|along with)\s+(?P<after>(?:[A-Za-z]+\s+){0,2})"
    r"[$(\s\\]*(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?"
)
"""Words that may join two boxes of one answer: `\\boxed{3} apples and \\boxed{4} pears`."""

NO_LIST = re.compile(
    r"\b(?:is|are|so|thus|hence|then|therefore|answer|equals?|gives?|get|total|result|which|that|means?|equivalently|simply|"
    r"finally|ie|namely|not|approximately|about|for|where|when|with|since|if|as)\b",
    re.IGNORECASE,
)

SIGN_BEFORE = re.compile(
    r"(?:^|[=(\[{,:$&<>~]|\\(?:approx|to|le|ge|leq|geq|implies|quad|,|;)|[a-z]{2,})\s*(-|−|–|\\pm|±)\s*$"
)
"""A sign directly before a box that belongs to no other term: `a=-\\boxed{256}`."""

FACTOR_AFTER = re.compile(
    r"\$?\s*(\\?%|percent\b)|\s*((?:\\times|\\cdot)\s*10\s*\^\s*(?:\d|\{\s*-?\d{1,3}\s*\})|\\pi\b|\\sqrt\s*\{[^{}]*\})",
    re.IGNORECASE,
)
"""What directly after a box belongs to the value in it."""


def last_box(response: str) -> int:
    """Where the last box begins; -1 if there is none."""
    return max(response.rfind("\\boxed"), response.rfind("\\fbox"))


def boxed(response: str) -> str:
    """The content of the last box, together with the boxes before it that form one list with it."""
    boxes: list[str] = []
    start = stop = len(response)
    while len(boxes) < BOXES:
        start = max(response.rfind("\\boxed", 0, start), response.rfind("\\fbox", 0, start))
        found = BOX.match(response, start) if start >= 0 else None
        if found is None:
            break
        content = braced(response, found.end()) if found[1] else found[2].rstrip(",")
        if content is None:
            break
        end = found.end() + (len(content) + 1 if found[1] else len(content) - len(found[2]))
        if boxes and not (end <= stop and listed(response[end:stop])):
            break
        before = SIGN_BEFORE.search(response[max(0, start - 20) : start])
        after = FACTOR_AFTER.match(response, end) if content.strip() else None
        sign = before[1] if before and content.strip() and content.strip()[0] not in "-−+" else ""
        boxes.insert(0, (sign + content.strip() + ((after[1] or after[2]) if after else "")).strip())
        stop = start
    return ", ".join(filter(None, dict.fromkeys(boxes)))


def listed(gap: str) -> bool:
    """Whether a gap between two pieces says that they form one list."""
    if len(gap) > 60 or "\n\n" in gap:
        return len(gap) <= 60 and LIST_SEPARATOR.fullmatch(gap) is not None
    joined = WORDS_BETWEEN.fullmatch(gap)
    return LIST_SEPARATOR.fullmatch(gap) is not None or (joined is not None and not NO_LIST.search(gap))
