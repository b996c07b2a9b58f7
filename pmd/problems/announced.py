"""The answer that a phrase announces, such as `answer is`, `####` or `<answer>`, for the rule `math`."""

from __future__ import annotations

import re

from pmd.problems.boxes import listed
from pmd.problems.running_text import (
    COPULA,
    LONG_WORD,
    NUMBER,
    NUMBER_WITH_UNIT,
    SCALE_FOLLOWS,
    SENTENCE_END,
    formulas,
    plain,
)

ANNOUNCED = re.compile(
    r"\b(?:answers?|ans|(?:correct|right|best) (?:option|choice))\b[ \t*]*(?:(?:to|for|of)\b[^.:\n$=]{0,80}?)?[ \t*]*"
    r"(?:\b(?:is|are|was|must be|would be|should be|will be|comes out to|equals)\b[ \t]*:?|[:：=→⇒]|[-=]>|>>|"
    r"[-–—](?=\s))[ \t*:]*"
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
REASON = re.compile(
    r",?\s+(?:and not|but not|instead of|rather than|because|since|as|so|which|where|when|making|given)\s"
    r"|,\s+(?!and\b|or\b)(?=[a-z]{2,}\s)"
)
QUANTITY_FOLLOWS = re.compile(r"\s*\\?(?:[A-Za-z]+[.,]?\s+){1,3}(?:and\s+)?\$?\s?\\?[0-9]")
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
